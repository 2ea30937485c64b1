//! One io_uring instance: made disabled, restricted to what a proxy needs, then enabled on the thread that
//! uses it; entries in, completions out, one system call for both.
//!
//! Runs on the worker thread that made it (SINGLE_ISSUER binds the thread that enables the ring). Invariant:
//! the ring can do nothing but the operations in `ALLOWED`; whoever takes over the process cannot open files
//! or start programs through it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};

use super::features::{FeatureSet, Profile};

/// Everything that the driver ever submits.
const ALLOWED: [u8; 7] = [
    opcode::PollAdd::CODE,
    opcode::Accept::CODE,
    opcode::Connect::CODE,
    opcode::Recv::CODE,
    opcode::Send::CODE,
    opcode::SendMsg::CODE,
    opcode::AsyncCancel::CODE,
];

/// `IORING_REGISTER_RING_FDS` and its undoing (linux/io_uring.h), since 5.18.
const REGISTER_RING_FDS: u8 = 20;
const UNREGISTER_RING_FDS: u8 = 21;

/// A step of making and using a ring, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Setup,
    Restrict,
    RegisterBuffers,
    Enable,
    Receive,
    Send,
    Accept,
    Cancel,
    Drain,
}

impl Step {
    pub fn name(self) -> &'static str {
        match self {
            Self::Setup => "io_uring_setup",
            Self::Restrict => "restricting the ring",
            Self::RegisterBuffers => "registering buffers",
            Self::Enable => "enabling the ring",
            Self::Receive => "receiving through the ring",
            Self::Send => "sending through the ring",
            Self::Accept => "accepting through the ring",
            Self::Cancel => "cancelling a receive",
            Self::Drain => "draining the ring",
        }
    }
}

/// What went wrong, and where.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", .step.name())]
pub struct RingError {
    pub step: Step,
    pub error: io::Error,
}

impl Step {
    pub(super) fn failed(self, error: io::Error) -> RingError {
        RingError { step: self, error }
    }
}

/// A ring that is still disabled: nothing can be submitted, buffers can be registered.
pub(super) struct DisabledRing {
    ring: IoUring,
    profile: Profile,
}

impl DisabledRing {
    pub fn new(profile: Profile) -> Result<Self, RingError> {
        let mut builder = IoUring::builder();
        builder
            .dontfork()
            .setup_r_disabled()
            .setup_clamp()
            .setup_cqsize(profile.entries * 4);
        if profile.set >= FeatureSet::V5_18 {
            builder.setup_submit_all();
        }
        // Cooperative task work spares the interruption of a running thread; deferred goes further.
        if profile.set == FeatureSet::V5_19 || profile.set == FeatureSet::V6_0 {
            builder.setup_coop_taskrun();
        }
        if profile.set >= FeatureSet::V6_0 {
            builder.setup_single_issuer();
        }
        if profile.set >= FeatureSet::V6_1 {
            builder.setup_defer_taskrun();
        }
        if profile.set >= FeatureSet::V6_6 {
            builder.setup_no_sqarray();
        }
        let ring = builder
            .build(profile.entries)
            .map_err(|error| Step::Setup.failed(error))?;
        Ok(Self { ring, profile })
    }

    /// Registers a ring of buffers as group `group`.
    ///
    /// # Safety
    /// `entries * 16` bytes from `address` must stay mapped until the ring is gone.
    pub unsafe fn register_buffers(&self, address: u64, entries: u16, group: u16) -> Result<(), RingError> {
        // SAFETY: as the caller promises.
        let registered = unsafe {
            self.ring
                .submitter()
                .register_buf_ring_with_flags(address, entries, group, 0)
        };
        registered.map_err(|error| Step::RegisterBuffers.failed(error))
    }

    pub fn enable(self) -> Result<Ring, RingError> {
        let submitter = self.ring.submitter();
        // Sockets never need kernel worker threads; should an operation be punted all the same, then to few.
        submitter
            .register_iowq_max_workers(&mut [1, 1])
            .map_err(|error| Step::Restrict.failed(error))?;
        let registered = if self.profile.registered_ring() {
            register_descriptor(&self.ring).ok()
        } else {
            None
        };
        let mut restrictions: Vec<Restriction> = ALLOWED.into_iter().map(Restriction::sqe_op).collect();
        restrictions.push(Restriction::sqe_flags_allowed(
            squeue::Flags::BUFFER_SELECT.bits(),
        ));
        restrictions.push(Restriction::register_op(UNREGISTER_RING_FDS));
        let enabled = submitter
            .register_restrictions(&mut restrictions)
            .map_err(|error| Step::Restrict.failed(error))
            .and_then(|()| {
                submitter
                    .register_enable_rings()
                    .map_err(|error| Step::Enable.failed(error))
            });
        // An idle ring with armed receives looks like a machine waiting for disks (iowait, IO pressure) unless
        // the wait says otherwise, which kernels from 6.15 understand.
        let no_iowait = self.profile.set == FeatureSet::NEWEST && self.ring.params().is_feature_no_iowait();
        let ring = Ring {
            inner: self.ring,
            registered,
            wait_flags: if no_iowait {
                EnterFlags::NO_IOWAIT
            } else {
                EnterFlags::empty()
            },
            backlog: VecDeque::new(),
            enters: 0,
        };
        enabled.map(|()| ring)
    }
}

pub(super) struct Ring {
    inner: IoUring,
    /// Index by which this thread's enters name the ring, which spares a descriptor look-up each.
    registered: Option<u32>,
    wait_flags: EnterFlags,
    /// Entries that found the submission queue full and the kernel unwilling to take from it. Bounded by the
    /// number of sockets: each has at most three operations and as many cancellations.
    backlog: VecDeque<squeue::Entry>,
    enters: u64,
}

impl Ring {
    pub fn enters(&self) -> u64 {
        self.enters
    }

    /// Queues an entry; the kernel sees it at the next `enter`.
    ///
    /// # Safety
    /// Memory that the entry names must stay valid, and untouched as the operation demands, until its
    /// completion.
    pub unsafe fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() {
            // SAFETY: the caller's promise.
            if unsafe { self.inner.submission().push(&entry) }.is_ok() {
                return;
            }
            // The queue is full: hand it over without waiting. A failure shows at the next `enter` again.
            if self.call(0, EnterFlags::empty(), &SubmitArgs::new()).is_ok() {
                // SAFETY: the caller's promise.
                if unsafe { self.inner.submission().push(&entry) }.is_ok() {
                    return;
                }
            }
        }
        self.backlog.push_back(entry);
    }

    /// Hands queued entries to the kernel, lets it run what is due, and waits for one completion up to
    /// `timeout` (`None`: for ever; zero: not at all). Signals and a kernel that must be reaped first end the
    /// wait without an error.
    pub fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: promised by whoever called `push`; the operation is not complete, as it never started.
            if unsafe { self.inner.submission().push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
        // Who sleeps does not hand over what is left.
        let timeout = match self.backlog.is_empty() {
            true => timeout,
            false => Some(Duration::ZERO),
        };
        let outcome = match timeout {
            // Deferred task work runs only in a call that asks for events, also when it does not wait.
            Some(Duration::ZERO) => self.call(0, EnterFlags::GETEVENTS, &SubmitArgs::new()),
            Some(timeout) => {
                let time = Timespec::from(timeout);
                self.call(
                    1,
                    EnterFlags::GETEVENTS | self.wait_flags,
                    &SubmitArgs::new().timespec(&time),
                )
            }
            None => self.call(1, EnterFlags::GETEVENTS | self.wait_flags, &SubmitArgs::new()),
        };
        match outcome.map_err(|error| (error.raw_os_error(), error)) {
            Ok(()) => Ok(()),
            // ETIME: nothing came. EBUSY, EAGAIN: completions must be taken, or memory found, first.
            Err((Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) => Ok(()),
            Err((_, error)) => Err(error),
        }
    }

    fn call(&mut self, wait_for: u32, flags: EnterFlags, arguments: &SubmitArgs<'_, '_>) -> io::Result<()> {
        self.enters += 1;
        let queued = self.inner.submission().len() as u32;
        let flags = flags | EnterFlags::EXT_ARG;
        match self.registered {
            // SAFETY: `arguments` is the structure that EXT_ARG stands for and outlives the call; queued
            // entries are valid by the contract of `push`.
            None => unsafe {
                self.inner
                    .submitter()
                    .enter(queued, wait_for, flags.bits(), Some(arguments))
                    .map(drop)
            },
            Some(index) => {
                let flags = flags | EnterFlags::REGISTERED_RING;
                // SAFETY: as above; the index was registered by this thread and is unregistered on drop.
                let taken = unsafe {
                    libc::syscall(
                        libc::SYS_io_uring_enter,
                        index,
                        queued,
                        wait_for,
                        flags.bits(),
                        std::ptr::from_ref(arguments),
                        size_of_val(arguments),
                    )
                };
                if taken < 0 {
                    Err(io::Error::last_os_error())
                } else {
                    Ok(())
                }
            }
        }
    }

    /// The oldest completion that was not taken yet.
    pub fn completion(&mut self) -> Option<cqueue::Entry> {
        self.inner.completion().next()
    }

    /// Whether `completion` has something, without asking the kernel.
    pub fn has_completions(&mut self) -> bool {
        !self.inner.completion().is_empty()
    }

    pub fn has_submissions(&mut self) -> bool {
        !self.backlog.is_empty() || !self.inner.submission().is_empty()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // A registered index keeps the ring alive until its thread ends.
        if let Some(index) = self.registered.take() {
            let mut update = RingDescriptor {
                offset: index,
                reserved: 0,
                data: 0,
            };
            let _freed = register(&self.inner, UNREGISTER_RING_FDS, &mut update);
        }
    }
}

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct RingDescriptor {
    offset: u32,
    reserved: u32,
    data: u64,
}

fn register_descriptor(ring: &IoUring) -> io::Result<u32> {
    let mut update = RingDescriptor {
        // Any free index.
        offset: u32::MAX,
        reserved: 0,
        data: ring.as_raw_fd() as u64,
    };
    register(ring, REGISTER_RING_FDS, &mut update)?;
    Ok(update.offset)
}

fn register(ring: &IoUring, what: u8, update: &mut RingDescriptor) -> io::Result<()> {
    // SAFETY: both operations read and write one `RingDescriptor`, which outlives the call.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            u32::from(what),
            std::ptr::from_mut(update),
            1,
        )
    };
    if outcome < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
