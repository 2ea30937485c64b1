//! A stand-in for another network's gateway: an HBONE server of a pod that writes down what it is asked for and passes
//! the bytes of the streams on, as they are, to where the test says. It sees no more of them than a gateway does.
//!
//! Made of rustls and h2, with the windows that RFC 9113 begins with: the smallest that a peer may expect.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::Response;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::applications::Server;
use crate::hbone::{Asked, Credentials, PORT, config, record};
use crate::lock;
use crate::world::Pod;

/// Bytes read from the other network at once.
const READ_BYTES: usize = 64 * 1024;

/// What the test wants to happen, counted.
#[derive(Debug, Clone, Copy, Default)]
struct Wishes {
    goodbyes: usize,
    resets: usize,
}

#[derive(Default)]
struct Record {
    asked: Vec<Asked>,
    sessions: usize,
}

/// Ends when dropped.
pub struct Gateway {
    record: Arc<Mutex<Record>>,
    target: watch::Sender<SocketAddr>,
    wishes: watch::Sender<Wishes>,
    server: Server,
}

/// What a connection of the gateway shares with all others.
#[derive(Clone)]
struct Shared {
    record: Arc<Mutex<Record>>,
    target: watch::Receiver<SocketAddr>,
    wishes: watch::Receiver<Wishes>,
}

impl Gateway {
    /// Passes every stream on to `target`.
    pub fn start(pod: &Pod, credentials: Credentials, target: SocketAddr) -> Self {
        let tls = TlsAcceptor::from(Arc::new(config(credentials)));
        let record = Arc::new(Mutex::new(Record::default()));
        let (target, target_seen) = watch::channel(target);
        let (wishes, wishes_seen) = watch::channel(Wishes::default());
        let shared = Shared {
            record: Arc::clone(&record),
            target: target_seen,
            wishes: wishes_seen,
        };
        let server = pod.serve(PORT, move |socket, peer| {
            serve(socket, peer, tls.clone(), shared.clone())
        });
        Self {
            record,
            target,
            wishes,
            server,
        }
    }

    /// Requests of all sessions, in the order of their arrival.
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.record).asked.clone()
    }

    /// Sessions that were made: with a handshake that went well.
    pub fn sessions(&self) -> usize {
        lock(&self.record).sessions
    }

    /// How connections to it ended.
    pub fn connections_ended(&self) -> Vec<Result<(), io::ErrorKind>> {
        self.server.ended()
    }

    /// Where streams go from now on.
    pub fn lead_to(&self, target: SocketAddr) {
        self.target.send_replace(target);
    }

    /// Takes no further streams on the sessions that there are; those on them go on.
    pub fn say_goodbye(&self) {
        self.wishes.send_modify(|wishes| wishes.goodbyes += 1);
    }

    /// Resets every stream.
    pub fn reset_streams(&self) {
        self.wishes.send_modify(|wishes| wishes.resets += 1);
    }
}

async fn serve(socket: TcpStream, peer: SocketAddr, tls: TlsAcceptor, mut shared: Shared) -> io::Result<()> {
    shared.wishes.mark_unchanged();
    let mut goodbyes = shared.wishes.borrow().goodbyes;
    let socket = tls.accept(socket).await?;
    let mut connection = h2::server::handshake(socket).await.map_err(io::Error::other)?;
    lock(&shared.record).sessions += 1;
    let mut streams = tokio::task::JoinSet::new();
    let mut wishes = shared.wishes.clone();
    loop {
        tokio::select! {
            request = connection.accept() => {
                let Some(request) = request else { return Ok(()) };
                let (request, respond) = request.map_err(io::Error::other)?;
                lock(&shared.record).asked.push(record(&request, peer));
                streams.spawn(pass_on(request.into_body(), respond, shared.clone()));
            }
            Ok(()) = wishes.changed() => {
                let now = wishes.borrow_and_update().goodbyes;
                if std::mem::replace(&mut goodbyes, now) != now {
                    connection.graceful_shutdown();
                }
            }
        }
    }
}

async fn pass_on(body: RecvStream, mut respond: SendResponse<Bytes>, mut shared: Shared) {
    let resets = shared.wishes.borrow().resets;
    let target = *shared.target.borrow();
    let Ok(server) = TcpStream::connect(target).await else {
        let response = Response::builder().status(503).body(());
        // The peer has gone otherwise: nobody has to be told.
        let _ = respond.send_response(response.expect("invariant: a status is all that it has"), true);
        return;
    };
    // As the bytes come: a gateway collects nothing.
    let _ = server.set_nodelay(true);
    let Ok(mut out) = respond.send_response(Response::new(()), false) else {
        return;
    };
    let (reader, writer) = server.into_split();
    let copied = async {
        let there = send_there(body, writer);
        let back = send_back(reader, &mut out);
        tokio::join!(there, back)
    };
    let wished = shared.wishes.wait_for(|wishes| wishes.resets != resets);
    tokio::select! {
        _ = copied => {}
        Ok(_) = wished => out.send_reset(Reason::INTERNAL_ERROR),
    }
}

/// A stream that breaks breaks the connection.
async fn send_there(mut body: RecvStream, mut writer: OwnedWriteHalf) -> io::Result<()> {
    while let Some(data) = body.data().await {
        let Ok(data) = data else {
            SockRef::from(writer.as_ref()).set_linger(Some(Duration::ZERO))?;
            return Err(io::ErrorKind::ConnectionReset.into());
        };
        writer.write_all(&data).await?;
        let released = body.flow_control().release_capacity(data.len());
        released.map_err(io::Error::other)?;
    }
    writer.shutdown().await
}

async fn send_back(mut reader: OwnedReadHalf, out: &mut SendStream<Bytes>) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let got = match reader.read(&mut buffer).await {
            Ok(got) => got,
            Err(error) => {
                out.send_reset(Reason::CANCEL);
                return Err(error);
            }
        };
        let mut data = Bytes::copy_from_slice(&buffer[..got]);
        while !data.is_empty() {
            out.reserve_capacity(data.len());
            let granted = poll_fn(|context| out.poll_capacity(context)).await;
            let granted = granted.ok_or(io::ErrorKind::ConnectionReset)?;
            let granted = granted.map_err(io::Error::other)?;
            let part = data.split_to(granted.min(data.len()));
            out.send_data(part, false).map_err(io::Error::other)?;
        }
        if got == 0 {
            return out.send_data(Bytes::new(), true).map_err(io::Error::other);
        }
    }
}
