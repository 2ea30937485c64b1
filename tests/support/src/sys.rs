//! The system calls of the rig that std and socket2 do not offer. The only unsafe code of this crate.
//!
//! Every function is safe to call with any argument: pointers are taken from live slices and descriptors are
//! borrowed.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Descriptors that one packet of the CNI socket may carry in a test (one is legal, more is garbage).
const FDS_MAX: usize = 8;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Repeats `call` for as long as a signal interrupts it. A socket with a timeout is not read again by itself, whatever
/// the signal's handler asks for (signal(7)), and this process has children whose ends are signals.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Moves the calling thread into the network namespace `namespace`.
pub fn enter_network_namespace(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: setns takes a descriptor and a flag; it touches no memory of ours.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Sends `signal` to the process `pid`; signal 0 only asks whether it exists.
pub fn send_signal(pid: u32, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: kill takes two integers.
    check(unsafe { libc::kill(pid as libc::pid_t, signal) }).map(drop)
}

/// CPU time of a process: of its threads, and of those that it had.
pub fn process_cpu_ns(pid: u32) -> io::Result<u64> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: the C library writes one clock id.
    let outcome = unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &mut clock) };
    if outcome != 0 {
        return Err(io::Error::from_raw_os_error(outcome));
    }
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one `timespec`.
    check(unsafe { libc::clock_gettime(clock, &mut time) })?;
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// The calling thread runs before all ordinary ones of its CPU: for clocks that measure what others wait for.
pub fn run_first() -> io::Result<()> {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: `priority` is a valid sched_param for the whole call; 0 is the calling thread.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &priority) }).map(drop)
}

/// The calling thread runs after all others of its CPU.
pub fn run_last() -> io::Result<()> {
    // SAFETY: setpriority takes three integers; on Linux 0 is the calling thread.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) }).map(drop)
}

/// True when the process exists and is not ours to reap yet.
pub fn process_exists(pid: u32) -> bool {
    send_signal(pid, 0).is_ok()
}

pub fn effective_user_id() -> u32 {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

/// Raises the limit of open descriptors to the hard limit: 2,000 connections have ends in one process here.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit for the whole call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }).map(drop)
}

/// Sends one packet with `fds` attached (`SCM_RIGHTS`).
pub fn send_with_fds(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    assert!(
        fds.len() <= FDS_MAX,
        "at most {FDS_MAX} descriptors in one packet"
    );
    let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let payload_bytes = mem::size_of_val(raw.as_slice()) as u32;
    let mut control = [0u64; 16];
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: msghdr is plain data; all zero is a valid value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    if !raw.is_empty() {
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE is arithmetic on its argument.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(payload_bytes) } as usize;
        assert!(message.msg_controllen <= mem::size_of_val(&control));
        // SAFETY: `control` is aligned for cmsghdr and at least `msg_controllen` long (asserted), so the first
        // header and `payload_bytes` after it lie inside it.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(payload_bytes) as usize;
            ptr::copy_nonoverlapping(
                raw.as_ptr().cast::<u8>(),
                libc::CMSG_DATA(header),
                payload_bytes as usize,
            );
        }
    }
    // SAFETY: `message` points to `iov`, `bytes` and `control`, all alive until the call returns; the kernel
    // only reads them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(sent as usize)
    }
}

/// A packet socket that sees every IP frame that enters or leaves the interface `index` of the calling
/// thread's namespace.
pub fn open_packet_socket(index: u32) -> io::Result<OwnedFd> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: socket takes three integers.
    let fd = check(unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            i32::from(protocol),
        )
    })?;
    // SAFETY: `fd` was just returned by the kernel and is owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: sockaddr_ll is plain data; all zero is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = index as i32;
    // SAFETY: `address` is a valid sockaddr_ll of the length given.
    check(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    })?;
    let bytes: libc::c_int = 256 << 20;
    // SAFETY: the option value is a live c_int of the length given.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    })?;
    Ok(socket)
}

/// Packets that the packet socket had to drop since the last call.
pub fn packet_drops(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut statistics = libc::tpacket_stats {
        tp_packets: 0,
        tp_drops: 0,
    };
    let mut length = mem::size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: `statistics` is a live tpacket_stats of the length given.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &mut length,
        )
    })?;
    Ok(statistics.tp_drops)
}

/// Receives one frame; `Ok(None)` when `timeout_ms` passed without one.
pub fn receive_frame(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    timeout_ms: i32,
) -> io::Result<Option<usize>> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: the buffer is a live slice of the length given.
    let got = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            flags,
        )
    };
    if got >= 0 {
        return Ok(Some(got as usize));
    }
    let error = io::Error::last_os_error();
    if error.kind() != io::ErrorKind::WouldBlock {
        return Err(error);
    }
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one live pollfd.
    if check(unsafe { libc::poll(&mut poll, 1, timeout_ms) })? == 0 {
        return Ok(None);
    }
    // SAFETY: as for the first receive.
    let got = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            flags,
        )
    };
    if got < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(Some(got as usize))
    }
}

/// Index of the interface `name` in the calling thread's namespace.
pub fn interface_index(name: &str) -> io::Result<u32> {
    let name = std::ffi::CString::new(name).map_err(io::Error::other)?;
    // SAFETY: `name` is a live NUL-terminated string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(index)
    }
}

/// Lets the process react to Ctrl-C by itself: SIGINT and SIGTERM are blocked in the calling thread and in all
/// threads it starts later, and `wait_for_interrupt` returns them. To be called first in `main`.
pub fn block_interrupts() -> io::Result<()> {
    let set = interrupt_set();
    // SAFETY: `set` is an initialised signal set; no old set is asked for.
    check(unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) }).map(drop)
}

/// Waits for SIGINT or SIGTERM (blocked before by `block_interrupts`); false when `timeout` passed first.
pub fn wait_for_interrupt(timeout: std::time::Duration) -> bool {
    let set = interrupt_set();
    let limit = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    // SAFETY: both structures are initialised and live; no siginfo is asked for.
    unsafe { libc::sigtimedwait(&set, ptr::null_mut(), &limit) > 0 }
}

/// Undoes `block_interrupts` in a child between fork and exec: a blocked signal mask survives exec, and a proxy
/// must see its SIGTERM.
pub fn unblock_interrupts_in_child(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: the closure only calls sigemptyset, sigaddset and pthread_sigmask, which are async-signal-safe,
    // and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            let set = interrupt_set();
            check(libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut())).map(drop)
        });
    }
}

/// Installs a seccomp filter in the child between fork and exec: io_uring_setup, io_uring_enter and
/// io_uring_register (425 to 427 on every architecture) fail with EPERM. Needs root, which may filter itself
/// without giving up privileges.
pub fn deny_io_uring_in_child(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_GREATER_OR_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let filter = [
        // The number of the call is the first word of seccomp_data.
        libc::sock_filter {
            code: LOAD_WORD,
            jt: 0,
            jf: 0,
            k: 0,
        },
        libc::sock_filter {
            code: JUMP_IF_GREATER_OR_EQUAL,
            jt: 0,
            jf: 2,
            k: 425,
        },
        libc::sock_filter {
            code: JUMP_IF_GREATER_OR_EQUAL,
            jt: 1,
            jf: 0,
            k: 428,
        },
        libc::sock_filter {
            code: RETURN,
            jt: 0,
            jf: 0,
            k: libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        },
        libc::sock_filter {
            code: RETURN,
            jt: 0,
            jf: 0,
            k: libc::SECCOMP_RET_ALLOW,
        },
    ];
    // SAFETY: the closure makes one system call with pointers to its own captured array and to a local, both live
    // until the call returns; it allocates nothing.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog {
                len: filter.len() as u16,
                filter: filter.as_ptr().cast_mut(),
            };
            let operation = libc::SECCOMP_SET_MODE_FILTER;
            let result = libc::syscall(libc::SYS_seccomp, operation, 0, &raw const program);
            check(result as libc::c_int).map(drop)
        });
    }
}

fn interrupt_set() -> libc::sigset_t {
    // SAFETY: sigset_t is plain data and is initialised by sigemptyset before anything reads it.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGINT);
        libc::sigaddset(&mut set, libc::SIGTERM);
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_thread_that_ended_still_counts() {
        const WORK_NS: u64 = 20_000_000;
        let pid = std::process::id();
        let before = process_cpu_ns(pid).expect("readable");
        let worked = std::thread::spawn(move || {
            while process_cpu_ns(pid).expect("readable") < before + WORK_NS {
                std::hint::black_box(0);
            }
        });
        worked.join().expect("ended");
        let after = process_cpu_ns(pid).expect("readable");
        assert!(after >= before + WORK_NS, "{before} {after}");
    }

    #[test]
    fn a_process_that_is_not_there_has_no_clock() {
        let mut child = std::process::Command::new("true").spawn().expect("runs");
        assert!(child.wait().expect("ended").success());
        let error = process_cpu_ns(child.id()).expect_err("it is gone");
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
    }
}
