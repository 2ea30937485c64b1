//! Network namespaces: an open namespace, its identity, and running a piece of code inside one.
//!
//! A socket belongs for life to the namespace of the thread that created it, so only the creation of a socket
//! needs the namespace; bind, listen, connect and everything after work from any thread.
//!
//! Threads: a `Namespace` is shared freely; `run` switches the calling thread only. Invariant: when `run` is
//! over the thread is back in the namespace in which it started, or the process is gone.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// An open network namespace. It lives as long as this value, also when no process is left in it.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
    id: NamespaceId,
}

/// Two descriptors with equal ids are the same namespace (as long as one of them is open).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NamespaceId {
    pub device: u64,
    pub inode: u64,
}

impl Namespace {
    /// Takes a descriptor of a namespace file, as the CNI agent passes it.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let metadata = file.metadata()?;
        Ok(Self {
            id: NamespaceId {
                device: metadata.dev(),
                inode: metadata.ino(),
            },
            fd: file.into(),
        })
    }

    /// Opens a namespace file, such as `/proc/1/ns/net` or `/run/netns/name`.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_fd(File::open(path)?.into())
    }

    /// Stands for a host of the simulated network. Nothing can be run inside.
    ///
    /// # Errors
    /// No descriptor is left.
    #[cfg(feature = "sim")]
    pub fn simulated(host: super::sim::HostId) -> io::Result<Self> {
        Ok(Self {
            fd: File::open("/dev/null")?.into(),
            id: NamespaceId {
                device: u64::MAX,
                inode: host.0.into(),
            },
        })
    }

    /// The namespace in which the calling thread is now.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    pub fn id(&self) -> NamespaceId {
        self.id
    }

    /// Whether the descriptor really is a network namespace. `false` also for a namespace of another kind.
    pub fn is_network(&self) -> bool {
        // SAFETY: this request takes no argument; the descriptor is open as long as `self`. On a file that is
        // not a namespace the kernel answers ENOTTY.
        let kind = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::NS_GET_NSTYPE) };
        kind == libc::CLONE_NEWNET
    }

    /// Runs `inside` with the calling thread in this namespace, then returns to the thread's own, also when
    /// `inside` panics. When returning fails the process aborts: every later socket of this thread would be
    /// in a tenant's namespace. A closure, not a guard value, so that it cannot be held across an await point
    /// or forgotten. Does not nest.
    ///
    /// # Errors
    /// As `setns(2)`: EPERM without CAP_SYS_ADMIN, EINVAL when the descriptor is not a network namespace.
    pub fn run<R>(&self, inside: impl FnOnce() -> R) -> io::Result<R> {
        HOME.with(|home| {
            let namespace = match home.namespace.get() {
                Some(namespace) => namespace,
                None => {
                    let current = Namespace::current()?;
                    home.namespace.get_or_init(|| current)
                }
            };
            assert!(
                !home.away.get(),
                "entering a namespace does not nest: returning would skip the outer one"
            );
            set_namespace(&self.fd)?;
            let _back = Back {
                namespace,
                away: &home.away,
            };
            home.away.set(true);
            Ok(inside())
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Where this thread belongs: looked up once, when it first leaves.
struct Home {
    namespace: std::cell::OnceCell<Namespace>,
    away: Cell<bool>,
}

thread_local! {
    static HOME: Home = const {
        Home { namespace: std::cell::OnceCell::new(), away: Cell::new(false) }
    };
}

struct Back<'a> {
    namespace: &'a Namespace,
    away: &'a Cell<bool>,
}

impl Drop for Back<'_> {
    fn drop(&mut self) {
        if let Err(error) = set_namespace(&self.namespace.fd) {
            eprintln!("cannot return to the thread's own network namespace: {error}; stopping");
            std::process::abort();
        }
        self.away.set(false);
    }
}

fn set_namespace(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: no memory is passed; the descriptor is open.
    if unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// A new, empty namespace. Needs CAP_SYS_ADMIN, as the proxy itself does.
    pub fn fresh() -> Namespace {
        std::thread::spawn(|| {
            // SAFETY: changes the namespace of this new thread only.
            let outcome = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(
                outcome,
                0,
                "unshare: {} (tests of namespaces run as root)",
                io::Error::last_os_error()
            );
            Namespace::current().expect("own namespace file")
        })
        .join()
        .expect("the thread made a namespace")
    }

    fn here() -> NamespaceId {
        Namespace::current().expect("own namespace file").id()
    }

    #[test]
    fn code_runs_inside_and_the_thread_comes_back() {
        let before = here();
        let other = fresh();
        assert_ne!(other.id(), before);
        assert_eq!(other.run(here).expect("entered"), other.id());
        assert_eq!(here(), before);
        assert_eq!(other.run(here).expect("entered again"), other.id());
    }

    #[test]
    fn a_panic_inside_does_not_leave_the_thread_there() {
        let before = here();
        let other = fresh();
        let outcome = catch_unwind(AssertUnwindSafe(|| other.run(|| panic!("inside"))));
        assert!(outcome.is_err());
        assert_eq!(here(), before);
    }

    #[test]
    fn a_file_that_is_no_network_namespace_is_told_apart_and_not_entered() {
        let file = Namespace::open(Path::new("/proc/self/status")).expect("opened");
        assert!(!file.is_network());
        assert_eq!(
            file.run(|| ()).expect_err("not a namespace").raw_os_error(),
            Some(libc::EINVAL)
        );
        let mount = Namespace::open(Path::new("/proc/self/ns/mnt")).expect("opened");
        assert!(!mount.is_network());
        assert!(Namespace::current().expect("own").is_network());
    }
}
