//! A connection that is not read from for a while, although something may have come.
//!
//! Control thread. Small messages that come one after the other cost little each, and much for waking up: whatever is
//! needed for one has left the CPU's caches by then. Whoever has no use for them at once lets them gather in the
//! socket, and reads them in one go. Invariants: a pause ends by itself; until then the task of the connection is not
//! run for what comes; writing is not held up.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::clock;
use crate::limits;
use crate::sys::socket;

/// For whoever decides about pauses. Clones are of the same connection.
#[derive(Debug, Clone, Default)]
pub struct Pauses(Arc<Mutex<Pause>>);

#[derive(Debug, Default)]
struct Pause {
    until: Option<Instant>,
    /// Who waits for something to read.
    reader: Option<Waker>,
}

/// A stream that is read with pauses.
#[derive(Debug)]
pub struct Paused<S> {
    stream: S,
    pauses: Pauses,
    alarm: Pin<Box<Sleep>>,
    is_muted: bool,
}

/// What can be told to be silent about what comes.
pub trait Mute {
    /// Nobody is woken for less than `limits::CONTROL_MUTED_BYTES`. Best effort.
    fn mute(&self, muted: bool);
}

impl Mute for TcpStream {
    fn mute(&self, muted: bool) {
        let bytes = if muted { limits::CONTROL_MUTED_BYTES } else { 1 };
        // Without it, the thread wakes in vain.
        let _ = socket::tell_of_bytes_from(self.as_fd(), bytes);
    }
}

impl Pauses {
    /// Nothing is read before `until`.
    pub fn pause(&self, until: Instant) {
        self.set(Some(until));
    }

    /// Reading goes on.
    pub fn end(&self) {
        self.set(None);
    }

    /// Who waits looks at it again.
    fn set(&self, until: Option<Instant>) {
        let reader = self.with(|pause| {
            pause.until = until;
            pause.reader.take()
        });
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn with<R>(&self, action: impl FnOnce(&mut Pause) -> R) -> R {
        action(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S> Paused<S> {
    pub fn new(stream: S, pauses: Pauses) -> Self {
        Self {
            stream,
            pauses,
            alarm: Box::pin(sleep_until(Instant::from_std(clock::now()))),
            is_muted: false,
        }
    }
}

impl<S: Mute> Paused<S> {
    /// Whoever polls is woken when a pause begins or ends.
    fn poll_pause(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut alarm = self.alarm.as_mut();
        let is_paused = self.pauses.with(|pause| {
            pause.reader = Some(context.waker().clone());
            let Some(until) = pause.until else {
                return false;
            };
            if alarm.deadline() != until {
                alarm.as_mut().reset(until);
            }
            let is_over = alarm.poll(context).is_ready();
            if is_over {
                pause.until = None;
            }
            !is_over
        });
        if is_paused != self.is_muted {
            self.is_muted = is_paused;
            self.stream.mute(is_paused);
        }
        match is_paused {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    }
}

impl<S: AsyncRead + Mute + Unpin> AsyncRead for Paused<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_pause(context));
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paused<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::timeout;

    use super::*;

    impl Mute for DuplexStream {
        fn mute(&self, _: bool) {}
    }

    /// Time that passes only while everybody waits.
    fn in_time_of_its_own(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(test);
    }

    #[test]
    fn what_comes_in_a_pause_is_read_after_it_in_one_go() {
        in_time_of_its_own(async {
            let (mut peer, stream) = duplex(64);
            let pauses = Pauses::default();
            let mut stream = Paused::new(stream, pauses.clone());
            let mut bytes = [0; 64];
            peer.write_all(b"at once").await.expect("written");
            assert_eq!(stream.read(&mut bytes).await.expect("read"), 7);
            let begun = Instant::now();
            pauses.pause(begun + Duration::from_millis(50));
            for _ in 0..3 {
                peer.write_all(b"later ").await.expect("written");
                let early = timeout(Duration::from_millis(10), stream.read(&mut bytes)).await;
                assert!(early.is_err(), "read in a pause");
                stream.write_all(b"held up?").await.expect("written");
            }
            assert_eq!(stream.read(&mut bytes).await.expect("read"), 18);
            assert_eq!(begun.elapsed(), Duration::from_millis(50));
            peer.write_all(b"at once").await.expect("written");
            assert_eq!(stream.read(&mut bytes).await.expect("read"), 7);
            assert_eq!(begun.elapsed(), Duration::from_millis(50));
        });
    }

    #[test]
    fn a_pause_that_is_ended_ends_for_a_reader_that_waits() {
        in_time_of_its_own(async {
            let (mut peer, stream) = duplex(64);
            let pauses = Pauses::default();
            let mut stream = Paused::new(stream, pauses.clone());
            let begun = Instant::now();
            pauses.pause(begun + Duration::from_secs(3600));
            peer.write_all(b"now").await.expect("written");
            let mut bytes = [0; 64];
            let ending = async {
                tokio::task::yield_now().await;
                pauses.end();
            };
            let (read, ()) = tokio::join!(stream.read(&mut bytes), ending);
            assert_eq!(read.expect("read"), 3);
            assert_eq!(begun.elapsed(), Duration::ZERO);
        });
    }
}
