//! The admin server on the loopback's port 15000: dump, log levels, end.
//!
//! Control thread. Nothing here makes a worker wait; the thread of a dump asks them for their connections. Specification: sections 1, 3 and 4 of the admin
//! contract.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::bridge::SnapshotCell;
use crate::control::demands::{Inspector, Inventory};
use crate::control::http::{self, Allowance, Answer, Body, empty, text, typed};
use crate::control::roster::Roster;
use crate::limits;

pub mod dump;
mod live;

pub use live::Live;

use dump::{Constants, Dump};

const DASHBOARD: &str = "\
<!DOCTYPE html>
<html lang=\"en\">
<head><title>uztunnel</title></head>
<body>
<h1>uztunnel</h1>
<table>
<tr><td><a href=\"config_dump\">config_dump</a></td><td>everything this proxy knows, as JSON</td></tr>
<tr><td>logging</td><td>POST: show the log filter; <code>?level=LIST</code> adds to it, <code>?reset</code> goes
back to that of the start</td></tr>
<tr><td>quitquitquit</td><td>POST: end in good order</td></tr>
</table>
<p>Metrics are on the stats port, 15020 unless it was changed: <code>/metrics</code>.</p>
</body>
</html>
";

const LOGGING_USAGE: &str = "\
usage: POST /logging                       show the log filter
       POST /logging?level=LIST            add to it
       POST /logging?reset                 go back to the filter of the start
       POST /logging?level=LIST&reset      go back, then add
LIST is LEVEL or TARGET=LEVEL (also TARGET:LEVEL), separated by commas;
LEVEL is one of off, error, warn, info, debug, trace
";

/// The filter of the process's log.
pub trait LogFilter {
    /// What is logged now.
    fn text(&self) -> String;

    /// Goes back to the start if `reset`, then adds the clauses of `list`. Changes nothing when a clause is none.
    fn change(&self, reset: bool, list: &str) -> Result<(), String>;
}

/// What the admin server shows and does.
pub struct Admin<F> {
    pub snapshots: SnapshotCell,
    pub inspector: Inspector,
    pub roster: Roster,
    pub constants: Arc<Constants>,
    pub filter: F,
    /// Who is asked for live connections.
    pub live: Live,
    pub ending: Ending,
    /// Places of dumps that are being written.
    pub dumps: Arc<Semaphore>,
}

/// A request to end, made over the admin port. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Ending {
    asked: Rc<Cell<bool>>,
    told: Rc<Notify>,
}

impl Ending {
    /// Resolves when somebody asked, and was answered.
    pub async fn asked(&self) {
        self.told.notified().await;
    }
}

pub type Server<F> = http::Server<Admin<F>>;

/// `listener` listens already. Needs a tokio runtime.
///
/// # Errors
/// The runtime cannot take the descriptor.
pub fn server<F: LogFilter + 'static>(listener: OwnedFd, admin: Rc<Admin<F>>) -> io::Result<Server<F>> {
    let allowance = Allowance {
        name: "admin",
        connections_max: limits::ADMIN_CONNECTIONS_MAX,
        connection_time_max: limits::ADMIN_CONNECTION_TIME_MAX,
        unread_time_max: limits::DUMP_STALL_MAX,
    };
    Server::new(listener, admin, allowance)
}

impl<F: LogFilter + 'static> Answer for Admin<F> {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let is_post = request.method() == Method::POST;
        match request.uri().path() {
            "/" => typed(StatusCode::OK, "text/html; charset=utf-8", DASHBOARD),
            "/config_dump" => self.dump().await,
            "/logging" if is_post => self.logging(request.uri().query().unwrap_or_default()),
            "/logging" => text(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("Invalid HTTP method\n{LOGGING_USAGE}"),
            ),
            "/quitquitquit" if is_post => self.quit(),
            "/quitquitquit" => empty(StatusCode::METHOD_NOT_ALLOWED),
            _ => empty(StatusCode::NOT_FOUND),
        }
    }

    /// Whoever asked for the end has its answer now.
    fn connection_ended(&self) {
        if self.ending.asked.take() {
            self.ending.told.notify_one();
        }
    }
}

impl<F: LogFilter> Admin<F> {
    async fn dump(&self) -> Response<Body> {
        let place = Arc::clone(&self.dumps).acquire_owned().await;
        let place = place.expect("invariant: never closed");
        let dump = Dump {
            snapshot: self.snapshots.load(),
            certificates: self.certificates().await,
            pods: self.roster.listed(),
            constants: Arc::clone(&self.constants),
            live: self.live.clone(),
        };
        match dump.stream(place) {
            Ok(body) => {
                let mut response = Response::new(body);
                let json = HeaderValue::from_static("application/json");
                response.headers_mut().insert(CONTENT_TYPE, json);
                response
            }
            Err(error) => {
                let error = format!("cannot start a thread for the dump: {error}\n");
                text(StatusCode::INTERNAL_SERVER_ERROR, error)
            }
        }
    }

    /// None when the loop that has them is over: the process is on its way out.
    async fn certificates(&self) -> Inventory {
        let (asked, answer) = oneshot::channel();
        match self.inspector.send(asked).await {
            Ok(()) => answer.await.unwrap_or_default(),
            Err(_) => Inventory::default(),
        }
    }

    fn logging(&self, query: &str) -> Response<Body> {
        let (mut list, mut reset) = (String::new(), false);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "level" => list = value.into_owned(),
                "reset" => reset = true,
                // As with every unknown parameter.
                _ => {}
            }
        }
        match self.filter.change(reset, &list) {
            Ok(()) => text(
                StatusCode::OK,
                format!("current log level is {}\n", self.filter.text()),
            ),
            Err(clause) => text(
                StatusCode::BAD_REQUEST,
                format!("Invalid level provided: {clause}\n{LOGGING_USAGE}"),
            ),
        }
    }

    fn quit(&self) -> Response<Body> {
        self.ending.asked.set(true);
        let mut response = text(StatusCode::OK, "shutdown now\n".to_owned());
        // The end begins when the connection is over: the answer must be out before the process is.
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
        response
    }
}
