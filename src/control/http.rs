//! Our own small HTTP servers: readiness, admin, metrics. HTTP/1.1 in clear text, nothing of it on the data path.
//!
//! Control thread. What is answered is the business of whoever implements `Answer`. Invariant: a client that sends
//! slowly, or does not read, holds one of its server's places for a bounded time and no longer than nobody else needs it.
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
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::clock;
use crate::limits;
use clients::{Answered, Client, Watched};

mod clients;

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
    /// For how long a client may take nothing of its answer before its place is another's: where answers are large and
    /// ways are slow, sockets fill by far more than is read at a time.
    pub unread_time_max: Duration,
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
            unread_time_max,
        } = self.allowance;
        let places = Arc::new(Semaphore::new(connections_max));
        let mut clients: Vec<Rc<Client>> = Vec::new();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let place = place(&places, &mut clients).await;
                    let (answer, client) = (Rc::clone(&self.answer), Client::new(unread_time_max));
                    clients.push(Rc::clone(&client));
                    tokio::task::spawn_local(async move {
                        let serving = serve_connection(stream, &*answer, Rc::clone(&client), name);
                        tokio::select! {
                            ended = tokio::time::timeout(connection_time_max, serving) => if ended.is_err() {
                                tracing::debug!("{name}: connection cut after {connection_time_max:?}");
                            },
                            () = client.has_to_give_way() => {
                                tracing::debug!("{name}: connection cut: another one needs its place");
                            }
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

/// A free one, or that of whoever has let the server wait for longest.
async fn place(places: &Arc<Semaphore>, clients: &mut Vec<Rc<Client>>) -> OwnedSemaphorePermit {
    loop {
        // Those that have ended are held by nobody else.
        clients.retain(|client| Rc::strong_count(client) > 1);
        if let Ok(place) = Arc::clone(places).try_acquire_owned() {
            return place;
        }
        let now = clock::now();
        let longest = clients
            .iter()
            .filter_map(|client| Some((client.gives_way_at()?, client)))
            .min_by_key(|(at, _)| *at);
        if let Some((at, client)) = longest
            && at <= now
        {
            client.give_way();
        }
        // Unless a place becomes free, those who have one are looked at again.
        let free = Arc::clone(places).acquire_owned();
        if let Ok(place) = tokio::time::timeout(limits::ACCEPT_PAUSE, free).await {
            return place.expect("invariant: never closed");
        }
    }
}

async fn serve_connection<A: Answer>(stream: TcpStream, answer: &A, client: Rc<Client>, name: &str) {
    // Only a matter of speed.
    let _ = stream.set_nodelay(true);
    let stream = Watched::new(stream, Rc::clone(&client));
    let answering = service_fn(move |request| {
        let client = Rc::clone(&client);
        async move {
            client.request_came();
            let response = answer.answer(request).await;
            Ok::<_, Infallible>(response.map(|body| Answered::new(body, client)))
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HTTP_HEADER_TIMEOUT)
        .max_buf_size(limits::HTTP_HEADER_BYTES_MAX)
        .half_close(true)
        .serve_connection(stream, answering)
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::Ipv4Addr;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper::body::Frame;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;
    use tokio::task::LocalSet;

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    const UNREAD_TIME_MAX: Duration = Duration::from_millis(700);

    /// Never ends.
    struct Endless;

    impl hyper::body::Body for Endless {
        type Data = Bytes;
        type Error = io::Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 4096])))))
        }
    }

    /// Answers at once, but `/slow` only when it is told to, and `/large` without end.
    #[derive(Default)]
    struct Gate {
        begun: Cell<usize>,
        open: Notify,
    }

    impl Answer for Rc<Gate> {
        async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
            self.begun.set(self.begun.get() + 1);
            match request.uri().path() {
                "/slow" => self.open.notified().await,
                "/large" => return Response::new(Endless.boxed_unsync()),
                _ => {}
            }
            empty(StatusCode::OK)
        }
    }

    /// Of two places.
    fn serve(gate: &Rc<Gate>) -> SocketAddr {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let allowance = Allowance {
            name: "test",
            connections_max: 2,
            connection_time_max: Duration::from_secs(60),
            unread_time_max: UNREAD_TIME_MAX,
        };
        let server = Server::new(listener.into(), Rc::new(Rc::clone(gate)), allowance).expect("a server");
        let address = server.local_address().expect("bound");
        tokio::task::spawn_local(server.serve());
        address
    }

    /// With a part of a request, or a whole one.
    async fn client(address: SocketAddr, says: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(says).await.expect("sent");
        stream
    }

    async fn status(stream: &mut TcpStream) -> Vec<u8> {
        let mut status = vec![0; b"HTTP/1.1 200 OK".len()];
        let reading = tokio::time::timeout(limits::HTTP_HEADER_TIMEOUT / 2, stream.read_exact(&mut status));
        reading.await.expect("answered in time").expect("answered");
        status
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn the_client_that_has_let_the_server_wait_for_longest_gives_its_place_to_a_new_one() {
        run(async {
            let address = serve(&Rc::default());
            let mut idle = client(address, REQUEST).await;
            assert_eq!(status(&mut idle).await, b"HTTP/1.1 200 OK");
            let mut slow = client(address, b"GET").await;
            let mut prober = client(address, REQUEST).await;
            assert_eq!(status(&mut prober).await, b"HTTP/1.1 200 OK");
            let mut rest = Vec::new();
            let ended = tokio::time::timeout(limits::HTTP_HEADER_TIMEOUT / 2, idle.read_to_end(&mut rest));
            assert!(ended.await.expect("ended in time").is_ok());
            slow.write_all(&REQUEST[3..]).await.expect("sent");
            assert_eq!(
                status(&mut slow).await,
                b"HTTP/1.1 200 OK",
                "waited for less long"
            );
        });
    }

    #[test]
    fn who_does_not_read_its_answer_gives_its_place_to_a_new_one() {
        run(async {
            let address = serve(&Rc::default());
            let large = b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n";
            let since = clock::now();
            let mut deaf = [client(address, large).await, client(address, large).await];
            for client in &mut deaf {
                assert_eq!(status(client).await, b"HTTP/1.1 200 OK");
            }
            let mut prober = client(address, REQUEST).await;
            let mut status = [0; b"HTTP/1.1 200 OK".len()];
            // Long before their time is over.
            let reading = tokio::time::timeout(Duration::from_secs(20), prober.read_exact(&mut status));
            reading.await.expect("answered in time").expect("answered");
            assert_eq!(&status, b"HTTP/1.1 200 OK");
            assert!(since.elapsed() >= UNREAD_TIME_MAX, "{:?}", since.elapsed());
        });
    }

    #[test]
    fn whose_answer_is_being_made_keeps_its_place() {
        run(async {
            let gate = Rc::new(Gate::default());
            let address = serve(&gate);
            let mut working = client(address, b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
            while gate.begun.get() == 0 {
                tokio::task::yield_now().await;
            }
            let _silent = client(address, b"").await;
            let mut prober = client(address, REQUEST).await;
            assert_eq!(status(&mut prober).await, b"HTTP/1.1 200 OK");
            gate.open.notify_one();
            assert_eq!(status(&mut working).await, b"HTTP/1.1 200 OK");
        });
    }
}
