//! What the sessions of one source hold for peers that do not read: each counts its unsent bytes, on all pods of the
//! worker together.
//!
//! Owned by the worker. A session alone has bounds of its own, but one peer may have thousands of them. Invariant: over
//! `limits::SOURCE_UNSENT_BYTES_SOFT` a session takes from its applications only when it holds nothing itself, so that
//! each goes on as fast as its own peer reads, and none has to be woken by another. Applications simply are not read;
//! only a peer that makes us answer and does not read the answers loses its session, over
//! `limits::SOURCE_UNSENT_BYTES_MAX`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use super::session::{Ending, Role, Session};
use crate::limits;
use crate::runtime::slab::Key;
use crate::sys::driver::Driver;
use crate::wire::http2::ErrorCode;
use crate::worker::core::Core;

/// The sources of all sessions; those without any are not there.
#[derive(Clone, Default)]
pub struct Sources(Rc<RefCell<HashMap<IpAddr, Rc<Source>>>>);

#[derive(Default)]
struct Source {
    bytes: Cell<usize>,
    warned: Cell<Option<Instant>>,
}

/// One session's part of what its source holds.
pub struct Unsent {
    sources: Sources,
    address: IpAddr,
    source: Rc<Source>,
    bytes: usize,
}

impl Sources {
    /// For a session of the source with this address.
    pub fn unsent(&self, address: IpAddr) -> Unsent {
        let source = self.0.borrow_mut().entry(address).or_default().clone();
        Unsent {
            sources: self.clone(),
            address,
            source,
            bytes: 0,
        }
    }

    /// Of all of them.
    pub fn bytes(&self) -> usize {
        self.0.borrow().values().map(|source| source.bytes.get()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }
}

impl Unsent {
    /// The session holds so many bytes now.
    pub fn set(&mut self, bytes: usize) {
        if bytes != self.bytes {
            let others = self.source.bytes.get() - self.bytes;
            self.source.bytes.set(others + bytes);
            self.bytes = bytes;
        }
    }

    /// Whether the source holds so much that its sessions have to do with little each.
    pub fn is_short(&self) -> bool {
        self.source.bytes.get() >= limits::SOURCE_UNSENT_BYTES_SOFT
    }

    /// Whether it holds more than any source may.
    pub fn is_exhausted(&self) -> bool {
        self.source.bytes.get() >= limits::SOURCE_UNSENT_BYTES_MAX
    }

    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Whether the log should hear of it now: once in a while, however many sessions there are.
    fn is_news(&self, now: Instant) -> bool {
        let warned = self.source.warned.get();
        let is_due =
            warned.is_none_or(|at| now.saturating_duration_since(at) >= limits::SOURCE_WARNING_INTERVAL);
        let is_news = is_due && self.is_short();
        if is_news {
            self.source.warned.set(Some(now));
        }
        is_news
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.set(0);
        // This one and the table's.
        if Rc::strong_count(&self.source) == 2 {
            self.sources.0.borrow_mut().remove(&self.address);
        }
    }
}

impl<D: Driver + 'static> Core<D> {
    /// Counts what a session holds, and says so when its source holds much. One whose peer makes us answer, and reads
    /// no answer, is ended when the source holds too much.
    pub(super) fn count_unsent(&mut self, key: Key<Session>) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(key) else {
            return;
        };
        session.count_unsent();
        let unsent = session.unsent();
        if !unsent.is_short() {
            return;
        }
        let (source, is_news, is_exhausted) = (unsent.address(), unsent.is_news(now), unsent.is_exhausted());
        let mib = |bytes: usize| bytes >> 20;
        if is_news {
            let soft = mib(limits::SOURCE_UNSENT_BYTES_SOFT);
            tracing::warn!(
                target: "hbone", %source,
                "more than {soft} MiB wait to be sent on the sessions of this source, whose peers do not read; \
                 applications are read in small pieces until they do"
            );
        }
        let control = session.http2.output().len();
        let is_peers = matches!(session.role, Role::Server) && !session.is_closing();
        if is_exhausted && is_peers && control > limits::SOURCE_ANSWERS_BYTES {
            let most = mib(limits::SOURCE_UNSENT_BYTES_MAX);
            let peer = self.peer_of(key);
            tracing::warn!(
                target: "hbone", %peer, %source,
                "session closed: its peer leaves {control} bytes of answers unread, and {most} MiB wait on the \
                 sessions of this source"
            );
            let why = Ending::Said(
                "its peer does not read, nor do those of its source's other sessions".to_owned(),
            );
            self.end_session(key, ErrorCode::EnhanceYourCalm, &why, false);
        }
    }
}

#[cfg(test)]
mod tests;
