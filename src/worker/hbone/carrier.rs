//! A CONNECT stream that carries another session, to a gateway that passes it on: to its user what a socket is.
//!
//! A slot of its worker. At first a task owns it, which shakes hands over it (`Line`), then the session inside does.
//! Window goes back to the gateway as soon as the session inside has taken bytes in: what it holds is bounded by its own
//! windows, so that a reader who stops there stops its own stream and nothing else, as on a socket.

use std::io;
use std::net::SocketAddr;

use super::dial::OpenStream;
use super::session::{Blocked, Ending, Listed, Session, UserState};
use crate::runtime::oneshot;
use crate::runtime::slab::Key;
use crate::sys::buffer::{Payload, RecvBuffer, Slice};
use crate::sys::driver::{Driver, Received, SendStatus};
use crate::wire::http2::{ErrorCode, StreamId};
use crate::worker::core::Core;
use crate::worker::outcome::Outcome;
use crate::worker::shell::{Medium, Shell};

pub struct Carrier {
    /// The session to the gateway.
    outer: Key<Session>,
    stream: StreamId,
    user: u32,
    owner: Owner,
    /// The peer ended its direction.
    has_ended: bool,
    /// What the windows, or the send buffer of the session to the gateway, have no room for yet.
    pending: Option<Pending>,
    /// In the outer session's lists.
    pub(super) listed: Listed,
}

enum Owner {
    /// A task that shakes hands.
    Task {
        /// As many bytes at most as the stream's window lets come.
        arrived: Vec<u8>,
        lost: Option<Ending>,
        /// Told when there is anything new.
        changed: Option<oneshot::Sender<()>>,
    },
    Session(Key<Session>),
}

struct Pending {
    bytes: Vec<u8>,
    from: usize,
    end: usize,
}

/// A carrier that a task owns. Dropping it resets the stream, unless it was released to a session.
pub struct Line<D: Driver + 'static> {
    shell: Shell<D>,
    key: Option<Key<Carrier>>,
}

impl<D: Driver + 'static> Line<D> {
    /// On a stream that the gateway has answered.
    pub fn open(stream: OpenStream<D>, shell: &Shell<D>) -> Result<Self, Outcome> {
        let key = shell.with(|core| core.carry(stream.session, stream.stream, stream.user))?;
        stream.attached();
        Ok(Self {
            shell: shell.clone(),
            key: Some(key),
        })
    }

    fn key(&self) -> Key<Carrier> {
        self.key
            .expect("invariant: a line keeps its carrier until it is released or dropped")
    }

    /// Gives the carrier away, to a session that becomes its owner.
    pub fn release(mut self) -> Key<Carrier> {
        let key = self.key();
        self.key = None;
        key
    }

    /// Why the stream is gone, if it is.
    pub fn lost(&self) -> Option<Ending> {
        self.shell
            .with(|core| match &core.carriers.get(self.key())?.owner {
                Owner::Task { lost, .. } => lost.clone(),
                Owner::Session(_) => None,
            })
    }

    /// The next of what `look` finds, as soon as there is any.
    async fn wait<R>(&self, mut look: impl FnMut(&mut Core<D>, Key<Carrier>) -> Option<R>) -> R {
        loop {
            let (sender, changed) = oneshot::channel();
            let found = self.shell.with(|core| {
                let found = look(core, self.key());
                let carrier = core.carriers.get_mut(self.key());
                if let Some(Owner::Task { changed, .. }) = carrier.map(|carrier| &mut carrier.owner) {
                    *changed = found.is_none().then_some(sender);
                }
                found
            });
            match found {
                Some(found) => return found,
                None => changed.await,
            };
        }
    }
}

impl<D: Driver + 'static> Medium for Line<D> {
    async fn send(&self, bytes: Vec<u8>, end: usize) -> io::Result<()> {
        if end == 0 {
            return Ok(());
        }
        let mut bytes = Some(bytes);
        self.wait(|core, key| {
            if let Some(bytes) = bytes.take() {
                match core.carrier_send(key, bytes, end) {
                    SendStatus::Done(_) => return Some(Ok(())),
                    SendStatus::Queued => return None,
                    SendStatus::Failed { error, .. } => return Some(Err(error)),
                }
            }
            match core.carriers.get(key) {
                Some(carrier) if carrier.is_lost() => Some(Err(io::ErrorKind::ConnectionReset.into())),
                Some(carrier) => carrier.pending.is_none().then_some(Ok(())),
                None => Some(Err(io::ErrorKind::NotConnected.into())),
            }
        })
        .await
    }

    async fn receive(&self, bytes_max: usize) -> Received {
        self.wait(|core, key| core.carrier_arrived(key, bytes_max)).await
    }
}

impl<D: Driver + 'static> Drop for Line<D> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.shell.with(|core| core.close_carrier(key));
        }
    }
}

impl Carrier {
    fn is_lost(&self) -> bool {
        matches!(&self.owner, Owner::Task { lost: Some(_), .. })
    }

    pub fn buffered_bytes(&self) -> usize {
        let arrived = match &self.owner {
            Owner::Task { arrived, .. } => arrived.capacity(),
            Owner::Session(_) => 0,
        };
        arrived + self.pending.as_ref().map_or(0, |pending| pending.bytes.len())
    }

    fn tell(&mut self) {
        if let Owner::Task { changed, .. } = &mut self.owner
            && let Some(changed) = changed.take()
        {
            // A task that ended meanwhile wants nothing.
            let _ = changed.send(());
        }
    }
}

impl<D: Driver + 'static> Core<D> {
    fn carry(&mut self, outer: Key<Session>, stream: StreamId, user: u32) -> Result<Key<Carrier>, Outcome> {
        let session = self.sessions.get_mut(outer);
        let session = session.ok_or_else(|| Outcome::SessionClosed("the session ended".to_owned()))?;
        let found = session.user_mut(user, stream);
        let found = found.ok_or(Outcome::StreamReset(ErrorCode::Cancel))?;
        let mut held = match &mut found.state {
            UserState::Preparing { held } => std::mem::take(held),
            UserState::Asked { .. } | UserState::Relaying(_) | UserState::Carrying(_) => {
                return Err(Outcome::StreamReset(ErrorCode::Cancel));
            }
        };
        if let Some(gone) = held.gone {
            return Err(gone.outcome());
        }
        let mut arrived = Vec::new();
        while !held.backlog.is_empty() {
            let slices = held.backlog.take(&mut self.buffers);
            slices
                .iter()
                .for_each(|slice| arrived.extend_from_slice(slice.bytes()));
            self.buffers.recycle_list(slices);
        }
        let key = self.carriers.insert(Carrier {
            outer,
            stream,
            user,
            owner: Owner::Task {
                arrived,
                lost: None,
                changed: None,
            },
            has_ended: held.end,
            pending: None,
            listed: Listed::default(),
        });
        found.state = UserState::Carrying(key);
        Ok(key)
    }

    /// `None` while nothing has arrived that the task has not taken.
    fn carrier_arrived(&mut self, key: Key<Carrier>, bytes_max: usize) -> Option<Received> {
        let Some(carrier) = self.carriers.get_mut(key) else {
            return Some(Received::Failed(io::ErrorKind::NotConnected.into()));
        };
        let Owner::Task { arrived, lost, .. } = &mut carrier.owner else {
            return Some(Received::Failed(io::ErrorKind::NotConnected.into()));
        };
        if lost.is_some() {
            return Some(Received::Failed(io::ErrorKind::ConnectionReset.into()));
        }
        if arrived.is_empty() {
            return carrier.has_ended.then_some(Received::End);
        }
        let buffer = RecvBuffer::copied(&arrived[..arrived.len().min(bytes_max)]);
        arrived.drain(..buffer.len());
        let (outer, stream) = (carrier.outer, carrier.stream);
        self.credit(outer, stream, buffer.len());
        Some(Received::Data(buffer))
    }

    /// The session `inside` owns the carrier from now on. What arrived meanwhile is its first input.
    pub(super) fn give_carrier(&mut self, key: Key<Carrier>, inside: Key<Session>) {
        let Some(carrier) = self.carriers.get_mut(key) else {
            let why = Ending::Said("the session to the network gateway ended".to_owned());
            return self.drop_session(inside, &why);
        };
        let owner = std::mem::replace(&mut carrier.owner, Owner::Session(inside));
        let has_ended = carrier.has_ended;
        let Owner::Task { arrived, lost, .. } = owner else {
            return;
        };
        if let Some(why) = lost {
            return self.drop_session(inside, &why);
        }
        let (outer, stream) = (carrier.outer, carrier.stream);
        if !arrived.is_empty() {
            self.session_received(inside, &arrived);
            self.credit(outer, stream, arrived.len());
        }
        if has_ended {
            self.carrier_end(key);
        }
        // During the handshake there was nothing to retire with it.
        if self.sessions.get(outer).is_some_and(|outer| outer.retired) {
            self.retire_session(inside);
        }
    }

    pub(super) fn carrier_data(&mut self, key: Key<Carrier>, slice: Slice) {
        let Some(carrier) = self.carriers.get_mut(key) else {
            return;
        };
        match &mut carrier.owner {
            Owner::Task { arrived, .. } => {
                arrived.extend_from_slice(slice.bytes());
                carrier.tell();
            }
            Owner::Session(inside) => {
                let (inside, outer, stream) = (*inside, carrier.outer, carrier.stream);
                self.session_received(inside, slice.bytes());
                self.credit(outer, stream, slice.len());
            }
        }
    }

    fn credit(&mut self, outer: Key<Session>, stream: StreamId, bytes: usize) {
        if let Some(session) = self.sessions.get_mut(outer) {
            session.http2.consumed(stream, bytes);
        }
        self.mark_session(outer);
    }

    pub(super) fn carrier_end(&mut self, key: Key<Carrier>) {
        let Some(carrier) = self.carriers.get_mut(key) else {
            return;
        };
        carrier.has_ended = true;
        match carrier.owner {
            Owner::Task { .. } => carrier.tell(),
            Owner::Session(inside) => self.close_session(inside, &Ending::by_peer()),
        }
    }

    /// The stream is gone, and with it everything that it carried.
    pub(super) fn carrier_lost(&mut self, key: Key<Carrier>, why: &Ending) {
        let Some(carrier) = self.carriers.get_mut(key) else {
            return;
        };
        match &mut carrier.owner {
            Owner::Task { lost, .. } => {
                *lost = Some(why.clone());
                carrier.tell();
            }
            Owner::Session(inside) => {
                let inside = *inside;
                self.drop_session(inside, why);
            }
        }
    }

    /// Sends `bytes[..end]`. As `Driver::send`: what there is no room for now is sent when there is, and `session_sent`
    /// tells of its end.
    pub(super) fn carrier_send(&mut self, key: Key<Carrier>, bytes: Vec<u8>, end: usize) -> SendStatus {
        let failed = |bytes| SendStatus::Failed {
            taken: 0,
            error: io::ErrorKind::NotConnected.into(),
            payload: Payload::Bytes { bytes, from: 0, end },
        };
        let Some(carrier) = self.carriers.get_mut(key) else {
            return failed(bytes);
        };
        if carrier.is_lost() {
            return failed(bytes);
        }
        assert!(carrier.pending.is_none(), "invariant: one send at a time");
        carrier.pending = Some(Pending { bytes, from: 0, end });
        match self.push_pending(key) {
            Some(payload) => SendStatus::Done(payload),
            None => SendStatus::Queued,
        }
    }

    /// Seals what fits; the payload when all of it did.
    fn push_pending(&mut self, key: Key<Carrier>) -> Option<Payload> {
        let carrier = self.carriers.get_mut(key)?;
        let outer_key = carrier.outer;
        let pending = carrier.pending.as_mut()?;
        let outer = self.sessions.get_mut(outer_key)?;
        let left = &pending.bytes[pending.from..pending.end];
        pending.from += outer.send_copied(carrier.stream, left, &mut self.buffers);
        let done = if pending.from == pending.end {
            carrier.pending.take()
        } else {
            outer.list(Blocked::Carrier(key), carrier.stream, &mut carrier.listed);
            None
        };
        self.mark_session(outer_key);
        done.map(|Pending { bytes, from, end }| Payload::Bytes { bytes, from, end })
    }

    /// Goes on with a carrier that waited for window or room.
    pub(super) fn unblock_carrier(&mut self, key: Key<Carrier>) {
        let Some(payload) = self.push_pending(key) else {
            return;
        };
        let Some(carrier) = self.carriers.get_mut(key) else {
            return;
        };
        match carrier.owner {
            Owner::Task { .. } => carrier.tell(),
            Owner::Session(inside) => self.session_sent(inside, None, payload),
        }
    }

    /// Ends our direction. Only when no send is outstanding.
    pub(super) fn end_carrier(&mut self, key: Key<Carrier>) {
        let Some(carrier) = self.carriers.get(key) else {
            return;
        };
        let (outer, stream) = (carrier.outer, carrier.stream);
        if let Some(session) = self.sessions.get_mut(outer) {
            session.send_end(stream, &mut self.buffers);
        }
        self.mark_session(outer);
    }

    /// Gives the stream up: with an end where the peer has ended and everything was sent, else with a reset.
    pub(super) fn close_carrier(&mut self, key: Key<Carrier>) {
        let Some(carrier) = self.carriers.remove(key) else {
            return;
        };
        let Carrier { outer, stream, .. } = carrier;
        let Some(session) = self.sessions.get_mut(outer) else {
            return;
        };
        session.unlist(Blocked::Carrier(key), carrier.listed);
        if carrier.has_ended && carrier.pending.is_none() {
            session.send_end(stream, &mut self.buffers);
        }
        session.http2.reset(stream, ErrorCode::Cancel);
        session.remove_user(carrier.user, stream);
        session.last_used = self.now;
        self.mark_session(outer);
    }

    /// The sessions that streams of this one carry.
    pub(super) fn carried_by(&self, outer: Key<Session>) -> Vec<Key<Session>> {
        let Some(session) = self.sessions.get(outer) else {
            return Vec::new();
        };
        let carriers = session.users.iter().filter_map(|(_, user)| match user.state {
            UserState::Carrying(carrier) => self.carriers.get(carrier),
            UserState::Asked { .. } | UserState::Preparing { .. } | UserState::Relaying(_) => None,
        });
        let inside = carriers.filter_map(|carrier| match carrier.owner {
            Owner::Session(inside) => Some(inside),
            Owner::Task { .. } => None,
        });
        inside.collect()
    }

    /// Where the connection that carries it comes from.
    pub(super) fn carrier_address(&self, key: Key<Carrier>) -> Option<SocketAddr> {
        let carrier = self.carriers.get(key)?;
        Some(self.sessions.get(carrier.outer)?.local_address)
    }
}

#[cfg(test)]
mod tests;
