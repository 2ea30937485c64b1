//! The dump: everything that this process knows, as JSON, in the order and shapes that `istioctl` reads.
//!
//! Collected on the control thread (counted references, nothing is copied), written by a thread of its own, which
//! waits for its client piece by piece: a hundred thousand workloads stall nobody, and no dump is ever in memory as a
//! whole. Invariant: equal states give equal bytes, so that dumps can be compared. Specification: section 5 of the
//! admin contract.

use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;

use crate::config::LocalSource;
use crate::control::admin::Live;
use crate::control::certificates::Standing;
use crate::control::demands::Inventory;
use crate::control::http::Body;
use crate::control::local_state;
use crate::control::roster::Listed;
use crate::limits;
use crate::mesh::{LocalState, NamespacedHostname, Snapshot};
use crate::tls::CertifiedIdentity;

pub mod process;
mod resources;

use process::{CertificateShape, Pods};
use resources::{Endpoints, PolicyShape, ServiceShape, WorkloadShape, each};

/// What does not change while the process lives.
#[derive(Debug, Clone, Default)]
pub struct Constants {
    /// As `process::settings` makes it.
    pub settings: Value,
    pub version: Value,
    /// Read again for each dump.
    pub local_state: Option<LocalSource>,
}

/// What is shown: the state of one moment.
pub struct Dump {
    pub snapshot: Arc<Snapshot>,
    pub certificates: Inventory,
    pub pods: Listed,
    pub constants: Arc<Constants>,
    /// Asked when the dump gets there.
    pub live: Live,
}

impl Dump {
    /// The whole, for a writer that may block.
    pub fn write(&self, out: impl Write) -> io::Result<()> {
        serde_json::to_writer_pretty(out, self).map_err(io::Error::from)
    }

    /// Begins to write, on a thread of its own that holds `place` until it is done. Needs a tokio runtime.
    pub fn stream(self, place: OwnedSemaphorePermit) -> io::Result<Body> {
        let (pieces, queue) = mpsc::channel(limits::DUMP_CHUNKS_QUEUED_MAX);
        let runtime = Handle::current();
        let writing = move || {
            let _place = place;
            let mut out = Pieces {
                gathered: Vec::with_capacity(limits::DUMP_CHUNK_BYTES),
                pieces,
                runtime,
            };
            let written = self.write(&mut out).and_then(|()| out.finish());
            if let Err(error) = written {
                tracing::debug!(%error, "a dump was not written to its end");
            }
        };
        std::thread::Builder::new()
            .name("config-dump".to_owned())
            .spawn(writing)?;
        Ok(Streamed(queue).boxed_unsync())
    }

    fn certificates(&self) -> Vec<(String, &Standing<CertifiedIdentity>)> {
        let named = self.certificates.iter();
        let mut listed: Vec<_> = named.map(|(identity, it)| (identity.to_string(), it)).collect();
        listed.sort_by(|a, b| a.0.cmp(&b.0));
        listed
    }
}

impl Serialize for Dump {
    /// Lists are sorted one after the other, as references.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry(
            "certificates",
            &each(&self.certificates(), |(identity, standing)| {
                CertificateShape::new(identity, standing)
            }),
        )?;
        map.serialize_entry("config", &self.constants.settings)?;
        let mut policies: Vec<_> = self.snapshot.policies().collect();
        policies.sort_unstable_by_key(|policy| &policy.key);
        map.serialize_entry("policies", &each(&policies, |it| PolicyShape::new(it)))?;
        let mut services: Vec<_> = self.snapshot.services().collect();
        services.sort_unstable_by_key(|service| (&service.hostname, &service.namespace));
        let services = each(&services, |it| ServiceShape::in_force(it, &self.snapshot));
        map.serialize_entry("services", &services)?;
        map.serialize_entry("stagedServices", &Staged(&self.snapshot))?;
        map.serialize_entry("staticConfig", &Static(self.constants.local_state.as_ref()))?;
        map.serialize_entry("version", &self.constants.version)?;
        map.serialize_entry("workloadState", &Pods(&self.pods, &self.live.by_pod()))?;
        let mut workloads: Vec<_> = self.snapshot.workloads().collect();
        workloads.sort_unstable_by_key(|workload| &workload.uid);
        map.serialize_entry("workloads", &each(&workloads, |it| WorkloadShape::new(it)))?;
        map.end()
    }
}

/// Endpoints that wait for their service.
struct Staged<'a>(&'a Snapshot);

impl Serialize for Staged<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut staged: Vec<_> = self.0.staged().collect();
        staged.sort_unstable_by_key(|(key, _)| *key);
        let mut map = serializer.serialize_map(Some(staged.len()))?;
        for (NamespacedHostname { namespace, hostname }, endpoints) in staged {
            let waiting = Endpoints::new(endpoints);
            map.serialize_entry(&format_args!("{namespace}/{hostname}"), &waiting)?;
        }
        map.end()
    }
}

/// What the local file says now.
struct Static<'a>(Option<&'a LocalSource>);

impl Serialize for Static<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let state = self.0.map_or_else(LocalState::default, read_again);
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("policies", &each(&state.policies, PolicyShape::new))?;
        map.serialize_entry("services", &each(&state.services, ServiceShape::of_file))?;
        map.serialize_entry("workloads", &each(&state.workloads, WorkloadShape::of_file))?;
        map.end()
    }
}

/// The start of the process has read it once without a fault; what became of it since is no reason to show nothing.
fn read_again(source: &LocalSource) -> LocalState {
    local_state::read(source).unwrap_or_else(|error| {
        tracing::warn!("the dump shows no static configuration: {error}");
        LocalState::default()
    })
}

/// What goes from the writing thread to the connection.
enum Piece {
    Bytes(Bytes),
    /// Without it the dump was cut off.
    End,
}

/// Gathers what is written into pieces, and waits for room in the queue.
struct Pieces {
    gathered: Vec<u8>,
    pieces: mpsc::Sender<Piece>,
    runtime: Handle,
}

impl Pieces {
    fn send(&self, piece: Piece) -> io::Result<()> {
        // The timer has to be made where the runtime is.
        let sending = async { timeout(limits::DUMP_STALL_MAX, self.pieces.send(piece)).await };
        match self.runtime.block_on(sending) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone")),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client does not read",
            )),
        }
    }

    fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.send(Piece::End)
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= limits::DUMP_CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let room = Vec::with_capacity(limits::DUMP_CHUNK_BYTES);
        let gathered = std::mem::replace(&mut self.gathered, room);
        self.send(Piece::Bytes(gathered.into()))
    }
}

/// The body of the answer.
struct Streamed(mpsc::Receiver<Piece>);

impl hyper::body::Body for Streamed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0.poll_recv(context).map(|piece| match piece {
            Some(Piece::Bytes(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(Piece::End) => None,
            None => Some(Err(io::Error::other("the dump was cut off"))),
        })
    }
}

#[cfg(test)]
mod tests;
