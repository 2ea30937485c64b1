//! What journeys see of their worker: sockets, deadlines and short looks at its data.
//!
//! A journey borrows the worker's data only within `Shell::with`, never across an `await`. Futures here own
//! their slot in the worker's wait table, so that dropping one takes its operation back.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::core::{Core, TimerEvent, Wait};
use super::owner::Owned;
use crate::runtime::slab::Key;
use crate::runtime::tasks::{Lane, Spawner};
use crate::runtime::timer::TimerId;
use crate::sys::buffer::Payload;
use crate::sys::descriptor::Descriptor;
use crate::sys::driver::{Close, Driver, ReceiveMode, Received, SendStatus, SocketId, SocketSpec};

/// A worker as its tasks see it.
pub struct Shell<D: Driver> {
    core: Rc<RefCell<Core<D>>>,
    spawner: Spawner,
}

impl<D: Driver> Clone for Shell<D> {
    fn clone(&self) -> Self {
        Self {
            core: self.core.clone(),
            spawner: self.spawner.clone(),
        }
    }
}

/// A deadline passed before the work was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

impl<D: Driver + 'static> Shell<D> {
    pub fn new(core: Core<D>, spawner: Spawner) -> Self {
        Self {
            core: Rc::new(RefCell::new(core)),
            spawner,
        }
    }

    /// Looks at or changes the worker's data. Must not be nested.
    pub fn with<R>(&self, look: impl FnOnce(&mut Core<D>) -> R) -> R {
        look(&mut self.core.borrow_mut())
    }

    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.spawner.spawn(task);
    }

    /// Starts a task among those of a tenant.
    pub fn spawn_in(&self, lane: Lane, task: impl Future<Output = ()> + 'static) {
        self.spawner.spawn_in(lane, task);
    }

    /// Ends with what `end` brings, and drops `work`, when that comes first.
    pub async fn unless<E, R>(
        &self,
        end: impl Future<Output = E>,
        work: impl Future<Output = R>,
    ) -> Result<R, E> {
        match either(pin!(work), pin!(end)).await {
            Either::First(result) => Ok(result),
            Either::Second(end) => Err(end),
        }
    }

    /// Ends with `Elapsed`, and drops `work`, when it takes longer than `limit`.
    pub async fn within<R>(&self, limit: Duration, work: impl Future<Output = R>) -> Result<R, Elapsed> {
        let mut work = pin!(work);
        // Most work that has a deadline is done at once.
        let mut expiry = None;
        poll_fn(|context| {
            if let Poll::Ready(result) = work.as_mut().poll(context) {
                return Poll::Ready(Ok(result));
            }
            let expiry = expiry.get_or_insert_with(|| Expiry::start(self, limit));
            expiry
                .waiting
                .poll(context, |wait| wait.expired.then_some(Err(Elapsed)))
        })
        .await
    }
}

pub enum Either<A, B> {
    First(A),
    Second(B),
}

/// Whichever is over before the other, which can be waited for afterwards.
pub async fn either<A, B>(
    mut first: Pin<&mut impl Future<Output = A>>,
    mut second: Pin<&mut impl Future<Output = B>>,
) -> Either<A, B> {
    poll_fn(|context| match first.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Either::First(done)),
        Poll::Pending => second.as_mut().poll(context).map(Either::Second),
    })
    .await
}

/// A deadline that runs, until it is dropped.
struct Expiry<D: Driver + 'static> {
    waiting: Waiting<D>,
    timer: TimerId,
}

impl<D: Driver + 'static> Expiry<D> {
    fn start(shell: &Shell<D>, limit: Duration) -> Self {
        let waiting = Waiting::new(shell);
        let timer = shell.with(|core| {
            let deadline = core.now + limit;
            core.timers.start(deadline, TimerEvent::Wake(waiting.key))
        });
        Self { waiting, timer }
    }
}

impl<D: Driver + 'static> Drop for Expiry<D> {
    fn drop(&mut self) {
        self.waiting.shell.with(|core| core.timers.cancel(self.timer));
    }
}

/// A slot of the wait table, freed on drop.
struct Waiting<D: Driver + 'static> {
    shell: Shell<D>,
    key: Key<Wait>,
}

impl<D: Driver + 'static> Waiting<D> {
    fn new(shell: &Shell<D>) -> Self {
        let key = shell.with(|core| core.waits.insert(Wait::default()));
        Self {
            shell: shell.clone(),
            key,
        }
    }

    /// Ready as soon as `take` finds what it waits for in the slot.
    fn poll<R>(&self, context: &mut Context<'_>, take: impl FnOnce(&mut Wait) -> Option<R>) -> Poll<R> {
        self.shell.with(|core| {
            let wait = core
                .waits
                .get_mut(self.key)
                .expect("invariant: a wait slot lives as long as its owner");
            match take(wait) {
                Some(result) => Poll::Ready(result),
                None => {
                    wait.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
    }
}

impl<D: Driver + 'static> Drop for Waiting<D> {
    fn drop(&mut self) {
        self.shell.with(|core| core.waits.remove(self.key));
    }
}

/// A socket that a task owns. Dropping it closes it, unless it was released to a slot.
pub struct Socket<D: Driver + 'static> {
    id: Option<SocketId>,
    waiting: Waiting<D>,
    /// How a drop closes it.
    dropped: Close,
}

impl<D: Driver + 'static> Socket<D> {
    /// Takes over an accepted connection.
    pub fn adopt(shell: &Shell<D>, fd: Descriptor) -> io::Result<Self> {
        Self::make(shell, |core, owner| core.driver.adopt(fd, owner))
    }

    pub fn open(shell: &Shell<D>, spec: &SocketSpec, family_of: IpAddr) -> io::Result<Self> {
        Self::make(shell, |core, owner| core.driver.open(spec, family_of, owner))
    }

    fn make(
        shell: &Shell<D>,
        open: impl FnOnce(&mut Core<D>, crate::sys::driver::Owner) -> io::Result<SocketId>,
    ) -> io::Result<Self> {
        let waiting = Waiting::new(shell);
        let owner = Owned::Task(waiting.key).to_owner();
        let id = shell.with(|core| open(core, owner))?;
        Ok(Self {
            id: Some(id),
            waiting,
            dropped: Close::Orderly,
        })
    }

    /// Dropping it resets the connection: the other end must not take a client that went away for one that had
    /// nothing to say.
    pub fn resetting(mut self) -> Self {
        self.dropped = Close::Reset;
        self
    }

    pub fn id(&self) -> SocketId {
        self.id
            .expect("invariant: a socket keeps its handle until it is released or dropped")
    }

    /// `Err` of kind `TimedOut`, which says who did not accept and for how long, when `limit` passes first.
    pub async fn connect(&self, peer: SocketAddr, limit: Duration) -> io::Result<()> {
        let shell = &self.waiting.shell;
        shell.with(|core| core.driver.connect(self.id(), peer));
        let connected = poll_fn(|context| self.waiting.poll(context, |wait| wait.connected.take()));
        match shell.within(limit, connected).await {
            Ok(result) => result,
            Err(Elapsed) => {
                let reason = format!("{peer} did not accept within {limit:?}");
                Err(io::Error::new(io::ErrorKind::TimedOut, reason))
            }
        }
    }

    /// Gives the socket away, to a slot of the worker that becomes its owner.
    pub fn release(mut self) -> SocketId {
        self.id
            .take()
            .expect("invariant: a socket keeps its handle until it is released or dropped")
    }
}

/// What a handshake is made over.
pub trait Medium {
    /// Sends `bytes[..end]`.
    fn send(&self, bytes: Vec<u8>, end: usize) -> impl Future<Output = io::Result<()>>;

    /// The next bytes, the end, or an error.
    fn receive(&self, bytes_max: usize) -> impl Future<Output = Received>;
}

impl<D: Driver + 'static> Medium for Socket<D> {
    async fn send(&self, bytes: Vec<u8>, end: usize) -> io::Result<()> {
        if end == 0 {
            return Ok(());
        }
        let payload = Payload::Bytes { bytes, from: 0, end };
        match self
            .waiting
            .shell
            .with(|core| core.driver.send(self.id(), payload))
        {
            SendStatus::Done(_) => Ok(()),
            SendStatus::Failed { error, .. } => Err(error),
            SendStatus::Queued => {
                poll_fn(|context| self.waiting.poll(context, |wait| wait.sent.take())).await
            }
        }
    }

    async fn receive(&self, bytes_max: usize) -> Received {
        self.waiting
            .shell
            .with(|core| core.driver.receive(self.id(), ReceiveMode::Once { bytes_max }));
        poll_fn(|context| self.waiting.poll(context, |wait| wait.received.take())).await
    }
}

impl<D: Driver + 'static> Drop for Socket<D> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.waiting
                .shell
                .with(|core| core.driver.close(id, self.dropped));
        }
    }
}
