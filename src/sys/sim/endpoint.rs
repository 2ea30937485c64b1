//! One end of a simulated stream, or a simulated listener: what a file descriptor is to the kernel.
//!
//! Calls never wait. Dropping it closes it as `close(2)` does.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use super::network::{Network, Phase, State, Token, Watcher};
use crate::sys::driver::Close;

pub struct Endpoint {
    network: Network,
    index: u32,
}

impl Endpoint {
    pub(super) fn new(network: Network, index: u32) -> Self {
        Self { network, index }
    }

    fn change<R>(&self, change: impl FnOnce(&mut State, u32) -> R) -> R {
        let result = change(&mut self.network.lock(), self.index);
        self.network.changed();
        result
    }

    /// The same for the whole life of the network.
    pub fn number(&self) -> u32 {
        self.index
    }

    pub fn network(&self) -> &Network {
        &self.network
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        Ok(self.network.lock().node(self.index).local)
    }

    pub fn peer_address(&self) -> SocketAddr {
        self.network.lock().node(self.index).peer
    }

    /// Where a redirected connection was going.
    pub fn original_destination(&self) -> SocketAddr {
        self.network.lock().node(self.index).original
    }

    /// The watcher is told, by `token`, when the endpoint may have something to do: now for the first time.
    pub fn watch(&self, watcher: Watcher, token: Token) {
        self.change(|state, index| state.watch(index, Some((watcher, token))));
    }

    pub fn connect(&self, peer: SocketAddr) {
        self.change(|state, index| state.start_connect(index, peer));
    }

    /// How the connect ended, once; `None` while it is under way.
    pub fn take_connected(&self) -> Option<io::Result<()>> {
        self.change(|state, index| {
            let node = state.node(index);
            let Phase::Connecting { outcome } = &mut node.phase else {
                return None;
            };
            let outcome = outcome.take()?;
            if outcome.is_ok() {
                node.phase = Phase::Stream;
                state.tell(index);
            }
            Some(outcome.map_err(io::Error::from_raw_os_error))
        })
    }

    /// Whether a listener has a connection to accept.
    pub fn has_waiting(&self) -> bool {
        let mut state = self.network.lock();
        matches!(&state.node(self.index).phase, Phase::Listening { queue, .. } if !queue.is_empty())
    }

    /// # Errors
    /// `WouldBlock` when nobody waits.
    pub fn accept(&self) -> io::Result<(Endpoint, SocketAddr)> {
        let accepted = self.change(|state, index| {
            let Phase::Listening { queue, .. } = &mut state.node(index).phase else {
                return Err(io::Error::from(io::ErrorKind::InvalidInput));
            };
            let accepted = queue.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
            state.node(accepted).accepted = true;
            Ok(accepted)
        })?;
        let endpoint = Endpoint::new(self.network.clone(), accepted);
        let peer = endpoint.peer_address();
        Ok((endpoint, peer))
    }

    /// Bytes that wait to be read.
    pub fn readable_bytes(&self) -> usize {
        self.network.lock().node(self.index).inbox.len()
    }

    /// Whether a read has something to say: bytes, the end, or an error.
    pub fn is_readable(&self) -> bool {
        let mut state = self.network.lock();
        let node = state.node(self.index);
        !node.inbox.is_empty() || node.fin_arrived || node.broken.is_some()
    }

    /// Bytes that a write would take now.
    pub fn room(&self) -> usize {
        self.network.lock().room(self.index)
    }

    /// As a socket's option of that name: what one may write before the other reads.
    pub fn set_send_buffer(&self, bytes: usize) {
        self.change(|state, index| state.node(index).buffer_bytes = bytes);
    }

    /// Whether a write has something to say.
    pub fn is_writable(&self) -> bool {
        let mut state = self.network.lock();
        let node = state.node(self.index);
        node.is_worth_writing() || node.broken.is_some()
    }

    /// 0 is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock`; a reset.
    pub fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        self.change(|state, index| {
            let node = state.node(index);
            if matches!(node.phase, Phase::Fresh | Phase::Connecting { .. }) {
                return Err(io::ErrorKind::NotConnected.into());
            }
            let n = into.len().min(node.inbox.len()).min(node.until_mark());
            if n > 0 {
                let (front, back) = node.inbox.as_slices();
                let first = n.min(front.len());
                into[..first].copy_from_slice(&front[..first]);
                into[first..n].copy_from_slice(&back[..n - first]);
                node.inbox.drain(..n);
                node.read_bytes += n as u64;
                state.was_read(index, n);
                return Ok(n);
            }
            // What arrived before a reset is read first, and so is the end.
            match (node.fin_arrived, node.broken) {
                (true, _) => {
                    node.end_read |= node.broken.is_none();
                    Ok(0)
                }
                (false, Some(errno)) => Err(io::Error::from_raw_os_error(errno)),
                (false, None) => Err(io::ErrorKind::WouldBlock.into()),
            }
        })
    }

    /// Whether everything was read and the end has arrived, which then counts as read.
    pub fn take_end(&self) -> bool {
        self.change(|state, index| {
            let node = state.node(index);
            let ends = node.inbox.is_empty() && node.fin_arrived && node.broken.is_none();
            node.end_read |= ends;
            ends
        })
    }

    /// Takes as much as there is room for.
    ///
    /// # Errors
    /// `WouldBlock`; a reset; the sending side was shut down.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.change(|state, index| {
            let room = state.room(index);
            let node = state.node(index);
            if node.phase != Phase::Stream {
                return Err(io::ErrorKind::NotConnected.into());
            }
            if let Some(errno) = node.broken {
                return Err(io::Error::from_raw_os_error(errno));
            }
            if node.fin_sent {
                return Err(io::Error::from_raw_os_error(libc::EPIPE));
            }
            if room == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let n = room.min(bytes.len());
            state.send(index, &bytes[..n]);
            Ok(n)
        })
    }

    /// Sends a byte out of band. It takes no room, and nobody can read it: the receiver takes it out of the stream,
    /// and a read ends where it was.
    ///
    /// # Errors
    /// A reset; the sending side was shut down.
    pub fn write_urgent(&self) -> io::Result<()> {
        self.change(|state, index| {
            let node = state.node(index);
            if node.phase != Phase::Stream {
                return Err(io::ErrorKind::NotConnected.into());
            }
            match (node.broken, node.fin_sent) {
                (Some(errno), _) => Err(io::Error::from_raw_os_error(errno)),
                (None, true) => Err(io::Error::from_raw_os_error(libc::EPIPE)),
                (None, false) => {
                    state.send_urgent(index);
                    Ok(())
                }
            }
        })
    }

    /// # Errors
    /// The stream is broken, or there is none.
    pub fn shutdown_send(&self) -> io::Result<()> {
        self.change(|state, index| {
            let node = state.node(index);
            if node.phase != Phase::Stream || node.broken.is_some() {
                return Err(io::ErrorKind::NotConnected.into());
            }
            state.end(index);
            Ok(())
        })
    }

    pub fn close(self, how: Close) {
        self.change(|state, index| state.close(index, how == Close::Reset));
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.change(|state, index| state.close(index, false));
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({})", self.index)
    }
}
