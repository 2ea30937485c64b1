//! Our own small HTTP servers: readiness, admin, metrics. HTTP/1.1 in clear text, nothing of it on the data path.
//!
//! Control thread. What is answered is the business of whoever implements `Answer`. Invariant: a client that sends
//! slowly, or does not read, holds one of its server's places for a bounded time, and nothing else.
//! Specification: section 1 of the admin contract.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::limits;

/// A body in one piece or in many; an error cuts the connection, so that a part is never taken for the whole.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What a server says.
pub trait Answer: 'static {
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Response<Body>>;

    /// A connection has ended.
    fn connection_ended(&self) {}
}

/// What one server allows its clients.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    /// In log lines.
    pub name: &'static str,
    pub connections_max: usize,
    /// After which a connection is cut, whatever goes on.
    pub connection_time_max: Duration,
}

/// A server, bound but not serving yet. Clones of one answer may serve on several addresses.
#[derive(Debug)]
pub struct Server<A> {
    listener: TcpListener,
    answer: Rc<A>,
    allowance: Allowance,
}

impl<A: Answer> Server<A> {
    /// `listener` listens already. Needs a tokio runtime.
    ///
    /// # Errors
    /// The runtime cannot take the descriptor.
    pub fn new(listener: OwnedFd, answer: Rc<A>, allowance: Allowance) -> io::Result<Self> {
        let listener = std::net::TcpListener::from(listener);
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener: TcpListener::from_std(listener)?,
            answer,
            allowance,
        })
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until dropped. Needs a `LocalSet`.
    pub async fn serve(self) {
        let Allowance {
            name,
            connections_max,
            connection_time_max,
        } = self.allowance;
        let places = Arc::new(Semaphore::new(connections_max));
        loop {
            let place = Arc::clone(&places)
                .acquire_owned()
                .await
                .expect("invariant: never closed");
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let answer = Rc::clone(&self.answer);
                    tokio::task::spawn_local(async move {
                        let serving = serve_connection(stream, &*answer, name);
                        if tokio::time::timeout(connection_time_max, serving).await.is_err() {
                            tracing::debug!("{name}: connection cut after {connection_time_max:?}");
                        }
                        answer.connection_ended();
                        drop(place);
                    });
                }
                Err(error) => {
                    // No descriptors or no memory: wait for some to come back instead of spinning.
                    tracing::warn!(%error, "{name}: cannot accept");
                    tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn serve_connection<A: Answer>(stream: TcpStream, answer: &A, name: &str) {
    // Only a matter of speed.
    let _ = stream.set_nodelay(true);
    let answering =
        service_fn(move |request| async move { Ok::<_, Infallible>(answer.answer(request).await) });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HTTP_HEADER_TIMEOUT)
        .max_buf_size(limits::HTTP_HEADER_BYTES_MAX)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), answering)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "{name}: connection failed");
    }
}

/// A status and nothing else.
pub fn empty(status: StatusCode) -> Response<Body> {
    with_body(status, Full::default())
}

pub fn text(status: StatusCode, body: String) -> Response<Body> {
    typed(status, "text/plain", body)
}

pub fn typed(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = with_body(status, Full::new(body.into()));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn with_body(status: StatusCode, body: Full<Bytes>) -> Response<Body> {
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}
