//! Readiness: what the process still waits for, told to the kubelet on port 15021.
//!
//! Control thread; tasks are also registered and finished by `process::boot`. Contract: `GET /healthz/ready` is
//! 200 `ready` when nothing is pending, else 500 with the sorted names, and below them a line for each of which the
//! reason is known; another method is 405, another path 404.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::limits;

/// Something that must be done before the node may send traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// The mesh is known.
    StateManager,
    /// The workers run.
    Proxy,
    /// The node agent's snapshot was received and every pod of it is served.
    WorkloadProxyManager,
}

impl Task {
    fn name(self) -> &'static str {
        match self {
            Self::StateManager => "state manager",
            Self::Proxy => "proxy",
            Self::WorkloadProxyManager => "workload proxy manager",
        }
    }
}

/// The tasks that are pending, and why, as far as that is known. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<Task, Option<String>>>>);

impl Readiness {
    pub fn pending(&self, task: Task) {
        self.tasks(|tasks| {
            tasks.entry(task).or_default();
        });
    }

    /// Says what a pending task waits for now.
    pub fn explain(&self, task: Task, reason: String) {
        self.tasks(|tasks| {
            if let Some(known) = tasks.get_mut(&task) {
                *known = Some(reason);
            }
        });
    }

    pub fn done(&self, task: Task) {
        self.tasks(|tasks| tasks.remove(&task));
    }

    pub fn is_ready(&self) -> bool {
        self.tasks(|tasks| tasks.is_empty())
    }

    /// Names of the pending tasks, sorted, and their reasons.
    fn report(&self) -> Vec<(&'static str, Option<String>)> {
        let mut report: Vec<_> = self.tasks(|tasks| {
            let tasks = tasks.iter();
            tasks
                .map(|(task, reason)| (task.name(), reason.clone()))
                .collect()
        });
        report.sort_unstable();
        report
    }

    /// A map survives a panic of whoever held the lock: no operation leaves it half changed.
    fn tasks<R>(&self, look: impl FnOnce(&mut BTreeMap<Task, Option<String>>) -> R) -> R {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The server, bound but not serving yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    readiness: Readiness,
}

impl Server {
    /// `listener` listens already. Needs a tokio runtime.
    ///
    /// # Errors
    /// The runtime cannot take the descriptor.
    pub fn new(listener: OwnedFd, readiness: Readiness) -> io::Result<Self> {
        let listener = std::net::TcpListener::from(listener);
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener: TcpListener::from_std(listener)?,
            readiness,
        })
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until dropped. Needs a `LocalSet`.
    pub async fn serve(self) {
        let slots = Arc::new(Semaphore::new(limits::READINESS_CONNECTIONS_MAX));
        loop {
            let slot = Arc::clone(&slots)
                .acquire_owned()
                .await
                .expect("invariant: never closed");
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let readiness = self.readiness.clone();
                    tokio::task::spawn_local(async move {
                        serve_connection(stream, readiness).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    // No descriptors or no memory: wait for some to come back instead of spinning.
                    tracing::warn!(%error, "readiness: cannot accept");
                    tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, readiness: Readiness) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), &readiness);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HTTP_HEADER_TIMEOUT)
        .max_buf_size(limits::HTTP_HEADER_BYTES_MAX)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "readiness: connection failed");
    }
}

fn answer(method: &Method, path: &str, readiness: &Readiness) -> Response<Full<Bytes>> {
    if path != "/healthz/ready" {
        return empty(StatusCode::NOT_FOUND);
    }
    if method != Method::GET {
        return empty(StatusCode::METHOD_NOT_ALLOWED);
    }
    let pending = readiness.report();
    if pending.is_empty() {
        return text(StatusCode::OK, "ready\n".to_owned());
    }
    let names: Vec<_> = pending.iter().map(|(name, _)| *name).collect();
    let mut body = format!("not ready, pending: {}\n", names.join(", "));
    for (name, reason) in &pending {
        if let Some(reason) = reason {
            body.push_str(&format!("{name}: {reason}\n"));
        }
    }
    text(StatusCode::INTERNAL_SERVER_ERROR, body)
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::LocalSet;

    use super::*;

    /// Status line and body of the answer to one request.
    async fn ask(address: SocketAddr, request: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        let request = format!("{request} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        (
            head.lines().next().unwrap_or_default().to_owned(),
            body.to_owned(),
        )
    }

    #[test]
    fn the_probe_is_answered_by_contract() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            let readiness = Readiness::default();
            for task in [Task::StateManager, Task::Proxy, Task::WorkloadProxyManager] {
                readiness.pending(task);
            }
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
            let server = Server::new(listener.into(), readiness.clone()).expect("registered");
            let address = server.local_address().expect("an address");
            tokio::task::spawn_local(server.serve());

            let (status, body) = ask(address, "GET /healthz/ready").await;
            assert_eq!(status, "HTTP/1.1 500 Internal Server Error");
            assert_eq!(
                body,
                "not ready, pending: proxy, state manager, workload proxy manager\n"
            );
            readiness.explain(Task::StateManager, "no answer".to_owned());
            let (_, body) = ask(address, "GET /healthz/ready").await;
            assert_eq!(
                body,
                "not ready, pending: proxy, state manager, workload proxy manager\nstate manager: no answer\n"
            );
            readiness.done(Task::StateManager);
            readiness.explain(Task::StateManager, "too late".to_owned());
            readiness.done(Task::WorkloadProxyManager);
            assert_eq!(
                ask(address, "GET /healthz/ready").await.1,
                "not ready, pending: proxy\n"
            );
            readiness.done(Task::Proxy);
            let ready = ("HTTP/1.1 200 OK".to_owned(), "ready\n".to_owned());
            assert_eq!(ask(address, "GET /healthz/ready?verbose").await, ready);
            readiness.pending(Task::WorkloadProxyManager);
            assert!(!readiness.is_ready());
            assert_eq!(
                ask(address, "GET /healthz/ready").await.1,
                "not ready, pending: workload proxy manager\n",
                "a lost node agent makes it unready again"
            );

            let (status, body) = ask(address, "POST /healthz/ready").await;
            assert_eq!(
                (status.as_str(), body.as_str()),
                ("HTTP/1.1 405 Method Not Allowed", "")
            );
            let (status, body) = ask(address, "GET /").await;
            assert_eq!((status.as_str(), body.as_str()), ("HTTP/1.1 404 Not Found", ""));
        });
    }
}
