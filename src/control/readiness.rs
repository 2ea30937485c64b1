//! Readiness: what the process still waits for, told to the kubelet on port 15021.
//!
//! Control thread; tasks are also registered and finished by `process::boot`. Contract: `GET /healthz/ready` is
//! 200 `ready` when nothing is pending, else 500 with the sorted names, and below them a line for each of which the
//! reason is known; another method is 405, another path 404.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};

use crate::control::http::{self, Allowance, Answer, Body, empty, text};
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

/// The server.
pub type Server = http::Server<Readiness>;

/// `listener` listens already. Needs a tokio runtime.
///
/// # Errors
/// The runtime cannot take the descriptor.
pub fn server(listener: OwnedFd, readiness: Readiness) -> io::Result<Server> {
    let allowance = Allowance {
        name: "readiness",
        connections_max: limits::READINESS_CONNECTIONS_MAX,
        connection_time_max: limits::PROBE_CONNECTION_TIME_MAX,
        unread_time_max: limits::PROBE_UNREAD_TIME_MAX,
    };
    Server::new(listener, Rc::new(readiness), allowance)
}

impl Answer for Readiness {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if request.uri().path() != "/healthz/ready" {
            return empty(StatusCode::NOT_FOUND);
        }
        if request.method() != Method::GET {
            return empty(StatusCode::METHOD_NOT_ALLOWED);
        }
        let pending = self.report();
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
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
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
            let serving = server(listener.into(), readiness.clone()).expect("registered");
            let address = serving.local_address().expect("an address");
            tokio::task::spawn_local(serving.serve());

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
