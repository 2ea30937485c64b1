//! Finds out what the kernel's io_uring can do, by doing it: a driver with the real flags passes bytes through
//! a socket pair, accepts, cancels and drains. What a version, a feature bit or an opcode list says is no
//! evidence: sandboxes allow the set-up and refuse the rest, distributions backport.
//!
//! Runs once at start, on the thread that asks; every worker then makes its ring by the profile found.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::UringDriver;
use super::features::{FeatureSet, KernelRelease, Profile};
use super::ring::{RingError, Step};
use crate::clock;
use crate::limits;
use crate::sys::buffer::Payload;
use crate::sys::driver::{Close, Driver, Event, Owner, ReceiveMode, Received, SendStatus, SocketId};

/// Everything here is over in microseconds; a sandbox that accepts operations and forgets them is not.
const STEP_MAX: Duration = Duration::from_secs(2);

const MESSAGES: [&[u8]; 3] = [b"first", b"second message", b"third"];

/// The newest generation, not above `mask`, that works here.
///
/// # Errors
/// The first step that failed for another reason than being unknown to this kernel.
pub fn probe(mask: Option<FeatureSet>, release: Option<KernelRelease>) -> Result<Profile, RingError> {
    let mut set = mask.unwrap_or(FeatureSet::NEWEST);
    let mut entries = limits::RING_ENTRIES;
    loop {
        let profile = Profile::new(set, entries, release);
        let refused = match UringDriver::new(profile).and_then(exercise) {
            Ok(()) => return Ok(profile),
            Err(refused) => refused,
        };
        match (refused.error.raw_os_error(), set.older()) {
            (Some(libc::EINVAL | libc::EOPNOTSUPP), Some(older)) => set = older,
            (Some(libc::ENOMEM), _) if entries > limits::RING_ENTRIES_MIN => {
                entries = limits::RING_ENTRIES_MIN;
            }
            _ => return Err(refused),
        }
    }
}

/// Uses everything that a worker will use.
fn exercise(mut driver: UringDriver) -> Result<(), RingError> {
    let (ours, theirs) = UnixStream::pair().map_err(|error| Step::Receive.failed(error))?;
    let mut adopt = |fd: OwnedFd| {
        let adopted = driver.adopt(fd.into(), Owner(0));
        adopted.map_err(|error| Step::Receive.failed(error))
    };
    let sender = adopt(ours.into())?;
    let receiver = adopt(theirs.into())?;
    driver.receive(receiver, ReceiveMode::Stream);
    for message in MESSAGES {
        pass(&mut driver, sender, receiver, message)?;
    }
    driver.receive(sender, ReceiveMode::Once { bytes_max: 16 });
    pass(&mut driver, receiver, sender, b"answer")?;

    driver.receive(sender, ReceiveMode::Once { bytes_max: 16 });
    let armed = driver.in_use().operations;
    driver.stop_receive(sender);
    wait(&mut driver, Step::Cancel, |driver, _| {
        Ok(driver.in_use().operations < armed)
    })?;
    accept(&mut driver)?;

    driver.close(sender, Close::Orderly);
    driver.close(receiver, Close::Orderly);
    wait(&mut driver, Step::Drain, |driver, _| {
        let left = driver.in_use();
        Ok(left.sockets == 0 && left.operations == 0 && left.buffers == 0)
    })
}

fn pass(driver: &mut UringDriver, from: SocketId, to: SocketId, message: &[u8]) -> Result<(), RingError> {
    // Through the ring, not directly.
    driver.direct_sends_left = 0;
    let payload = Payload::Bytes {
        bytes: message.to_vec(),
        from: 0,
        end: message.len(),
    };
    let SendStatus::Queued = driver.send(from, payload) else {
        unreachable!("invariant: only direct sends are over at once")
    };
    let (mut sent, mut received) = (false, Vec::new());
    wait(driver, Step::Receive, |_, event| {
        match event {
            Some(Event::Sent {
                error: Some(error), ..
            }) => return Err(Step::Send.failed(error)),
            Some(Event::Sent { error: None, .. }) => sent = true,
            Some(Event::Received { socket, data, .. }) if socket == to => match data {
                Received::Data(buffer) => received.extend_from_slice(buffer.bytes()),
                Received::End => return Err(Step::Receive.failed(io::ErrorKind::UnexpectedEof.into())),
                Received::Failed(error) => return Err(Step::Receive.failed(error)),
            },
            Some(_) | None => {}
        }
        Ok(sent && received.len() >= message.len())
    })?;
    if received != message {
        return Err(Step::Receive.failed(io::ErrorKind::InvalidData.into()));
    }
    Ok(())
}

/// Accepts on a Unix socket: there need not be a network. Its peer has no internet address, so the driver drops
/// what it accepted, which the client sees as an end.
fn accept(driver: &mut UringDriver) -> Result<(), RingError> {
    let failed = |error| Step::Accept.failed(error);
    let socket = |kind: Type| Socket::new(Domain::UNIX, kind, None).map_err(failed);
    let listener = socket(Type::STREAM)?;
    // An empty path: the kernel picks a name that nobody else has.
    let unnamed = SockAddr::unix("").map_err(failed)?;
    listener.bind(&unnamed).map_err(failed)?;
    listener.listen(2).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let listener = driver
        .adopt(OwnedFd::from(listener).into(), Owner(0))
        .map_err(failed)?;
    driver.listen(listener);
    for _ in 0..2 {
        let client = socket(Type::STREAM)?;
        client.connect(&address).map_err(failed)?;
        client.set_nonblocking(true).map_err(failed)?;
        wait(driver, Step::Accept, |_, event| {
            if let Some(Event::AcceptFailed { error, .. }) = event {
                return Err(failed(error));
            }
            match is_over(&client) {
                Ok(over) => Ok(over),
                Err(error) => Err(failed(error)),
            }
        })?;
    }
    driver.close(listener, Close::Orderly);
    Ok(())
}

fn is_over(client: &Socket) -> io::Result<bool> {
    let mut poll = libc::pollfd {
        fd: client.as_fd().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one structure, which outlives the call; it does not wait.
    match unsafe { libc::poll(&raw mut poll, 1, 0) } {
        -1 => Err(io::Error::last_os_error()),
        ready => Ok(ready > 0),
    }
}

/// Polls until `done`, which sees every event, and is asked once after every poll.
fn wait(
    driver: &mut UringDriver,
    step: Step,
    mut done: impl FnMut(&UringDriver, Option<Event>) -> Result<bool, RingError>,
) -> Result<(), RingError> {
    let end: Instant = clock::now() + STEP_MAX;
    let mut events = Vec::new();
    loop {
        let left = end.saturating_duration_since(clock::now());
        if left.is_zero() {
            return Err(step.failed(io::Error::from_raw_os_error(libc::ETIME)));
        }
        driver
            .poll(Some(left), &mut events)
            .map_err(|error| step.failed(error))?;
        for event in events.drain(..) {
            done(driver, Some(event))?;
        }
        if done(driver, None)? {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_generation_works_on_this_kernel() {
        for set in ["5.15", "5.18", "5.19", "6.0", "6.1", "6.6"] {
            let set: FeatureSet = set.parse().expect("known");
            let profile = probe(Some(set), None).expect("this kernel runs rings");
            assert_eq!(profile.set, set);
            assert_eq!(profile.entries, limits::RING_ENTRIES);
        }
    }

    #[test]
    fn a_kernel_with_unsafe_buffer_rings_is_used_without_them() {
        let profile = probe(None, KernelRelease::parse("6.5.3")).expect("this kernel runs rings");
        assert_eq!(profile.set, FeatureSet::NEWEST);
        assert!(!profile.buffer_rings && !profile.multishot_receive());
        assert!(!profile.is_worthwhile());
    }

    #[test]
    fn the_ring_refuses_what_a_proxy_never_does() {
        let mut driver = UringDriver::new(Profile::new(FeatureSet::NEWEST, 8, None)).expect("ring");
        let path = c"/proc/self/status";
        let cwd = io_uring::types::Fd(libc::AT_FDCWD);
        let open = io_uring::opcode::OpenAt::new(cwd, path.as_ptr()).build();
        // SAFETY: the path is static; the restriction refuses the operation before it is looked at.
        unsafe { driver.ring.push(open.user_data(u64::MAX)) };
        driver.ring.enter(Some(STEP_MAX)).expect("entered");
        let refused = driver.ring.completion().expect("a completion");
        assert_eq!(refused.user_data(), u64::MAX);
        assert_eq!(refused.result(), -libc::EACCES);
    }
}
