//! The metrics server on port 15020: what a scrape is answered.
//!
//! Control thread; the text is made on a thread of its own, since there may be very much of it. Specification:
//! section 1 of the observability contract.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderName, HeaderValue, VARY};
use hyper::{Request, Response, StatusCode};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::clock::{self, Instant};
use crate::control::http::{self, Allowance, Answer, Body, empty, typed};
use crate::limits;

const OPEN_METRICS: &str = "application/openmetrics-text";
const OPEN_METRICS_TYPE: &str = "application/openmetrics-text;charset=utf-8;version=1.0.0";
const TEXT_TYPE: &str = "text/plain; charset=utf-8";

pub type Server = http::Server<Scrape>;

/// What the metrics server says.
#[derive(Debug)]
pub struct Scrape {
    registry: Arc<Registry>,
    /// Held by whoever writes the text: anybody may ask, and all that ask at once get one text, for the time of one
    /// thread.
    written: Arc<Mutex<Written>>,
}

/// What was written last, as it is and compressed, and when that was begun. Kept while somebody waits.
#[derive(Debug, Default)]
struct Written([Option<(Instant, Bytes)>; 2]);

/// `listener` listens already. Needs a tokio runtime.
///
/// # Errors
/// The runtime cannot take the descriptor.
pub fn server(listener: OwnedFd, registry: Registry) -> io::Result<Server> {
    let allowance = Allowance {
        name: "metrics",
        connections_max: limits::METRICS_CONNECTIONS_MAX,
        connection_time_max: limits::PROBE_CONNECTION_TIME_MAX,
        unread_time_max: limits::PROBE_UNREAD_TIME_MAX,
    };
    let scrape = Scrape {
        registry: registry.into(),
        written: Arc::default(),
    };
    Server::new(listener, Rc::new(scrape), allowance)
}

impl Answer for Scrape {
    /// Whatever the method.
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        match request.uri().path() {
            "/metrics" | "/stats/prometheus" => {}
            _ => return empty(StatusCode::NOT_FOUND),
        }
        let headers = request.headers();
        // The body is the same in both cases: readers of the older format take it as well.
        let content_type = if accepts_open_metrics(headers) {
            OPEN_METRICS_TYPE
        } else {
            TEXT_TYPE
        };
        let is_gzip = accepts_gzip(headers);
        match self.text(is_gzip).await {
            Ok(body) => {
                let mut response = typed(StatusCode::OK, content_type, body);
                let headers = response.headers_mut();
                headers.insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
                if is_gzip {
                    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                }
                response
            }
            Err(error) => {
                tracing::error!(%error, "cannot write the metrics");
                http::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
            }
        }
    }
}

impl Scrape {
    /// No older than this call.
    async fn text(&self, is_gzip: bool) -> io::Result<Bytes> {
        let asked = clock::now();
        let mut written = Arc::clone(&self.written).lock_owned().await;
        let known = written.0[usize::from(is_gzip)].clone();
        if !others_wait(&written) {
            *written = Written::default();
        }
        if let Some((begun, text)) = known
            && begun >= asked
        {
            return Ok(text);
        }
        let registry = Arc::clone(&self.registry);
        let writing = tokio::task::spawn_blocking(move || {
            let begun = clock::now();
            let text = encode(&registry, is_gzip)?;
            // With the lock, which a client that goes must not give to the next one while this thread still works.
            if others_wait(&written) {
                written.0[usize::from(is_gzip)] = Some((begun, text.clone()));
            }
            Ok(text)
        });
        writing.await.map_err(io::Error::other)?
    }
}

/// Whoever waits for the lock has it in its hands, as its owner and the server have.
fn others_wait(written: &OwnedMutexGuard<Written>) -> bool {
    Arc::strong_count(OwnedMutexGuard::mutex(written)) > 2
}

fn encode(registry: &Registry, is_gzip: bool) -> io::Result<Bytes> {
    let mut exposition = String::new();
    text::encode(&mut exposition, registry).map_err(io::Error::other)?;
    if !is_gzip {
        return Ok(exposition.into());
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(exposition.as_bytes())?;
    Ok(encoder.finish()?.into())
}

fn accepts_open_metrics(headers: &HeaderMap) -> bool {
    entries(headers, ACCEPT).any(|entry| {
        let media_type = entry.split(';').next().unwrap_or_default().trim();
        media_type.eq_ignore_ascii_case(OPEN_METRICS)
    })
}

/// By name and not with a quality of zero.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    entries(headers, ACCEPT_ENCODING).any(|entry| {
        let mut parts = entry.split(';').map(str::trim);
        let is_named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let is_refused = parts
            .filter_map(|part| part.strip_prefix("q="))
            .any(|quality| quality.parse() == Ok(0.0));
        is_named && !is_refused
    })
}

fn entries(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
}

#[cfg(test)]
mod tests {
    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::DescriptorEncoder;
    use tokio::sync::mpsc;
    use tokio::task::JoinSet;

    use super::*;

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn open_metrics_is_chosen_wherever_it_stands_in_the_list() {
        for (accept, expected) in [
            ("application/openmetrics-text", true),
            ("application/openmetrics-text;version=1.0.0;q=0.5", true),
            (
                "text/plain;q=0.2, Application/OpenMetrics-Text; version=1.0.0",
                true,
            ),
            ("text/plain", false),
            ("*/*", false),
            ("application/openmetrics-texts", false),
        ] {
            assert_eq!(
                accepts_open_metrics(&headers(ACCEPT, accept)),
                expected,
                "{accept}"
            );
        }
        assert!(!accepts_open_metrics(&HeaderMap::new()));
    }

    #[test]
    fn gzip_is_used_when_it_is_named_and_wanted() {
        for (accept, expected) in [
            ("gzip", true),
            ("br, GZIP;q=0.5", true),
            ("gzip;q=0", false),
            ("gzip; q=0.000", false),
            ("deflate, br", false),
            ("identity", false),
        ] {
            let accepts = accepts_gzip(&headers(ACCEPT_ENCODING, accept));
            assert_eq!(accepts, expected, "{accept}");
        }
    }

    /// Begins, and waits to be let go.
    #[derive(Debug)]
    struct Watched {
        begun: mpsc::UnboundedSender<()>,
        gate: std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
    }

    impl Collector for Watched {
        fn encode(&self, _: DescriptorEncoder<'_>) -> std::fmt::Result {
            let gate = self.gate.try_lock().expect("one at a time");
            self.begun.send(()).expect("somebody watches");
            gate.recv().map_err(|_| std::fmt::Error)
        }
    }

    #[tokio::test]
    async fn those_that_ask_at_once_share_one_text_and_nobody_gets_an_older_one() {
        let (begun, mut watching) = mpsc::unbounded_channel();
        let (let_go, gate) = std::sync::mpsc::channel();
        let mut registry = Registry::default();
        let gate = std::sync::Mutex::new(gate);
        registry.register_collector(Box::new(Watched { begun, gate }));
        let scrape = Arc::new(Scrape {
            registry: registry.into(),
            written: Arc::default(),
        });
        let ask = |number: usize| {
            let scrape = Arc::clone(&scrape);
            async move { scrape.text(number % 2 == 1).await.expect("a text") }
        };
        let first = tokio::spawn(ask(0));
        watching.recv().await.expect("it writes");
        // It goes, and lets nobody in beside the thread that still writes.
        first.abort();
        let all: JoinSet<Bytes> = (0..64).map(ask).collect();
        while Arc::strong_count(&scrape.written) < 2 + 64 {
            tokio::task::yield_now().await;
        }
        // That one, which is too old for them, and one of each kind for all.
        for _ in 0..3 {
            let_go.send(()).expect("the gate is there");
        }
        assert_eq!(all.join_all().await.len(), 64);
        let further = tokio::spawn(ask(0));
        let_go.send(()).expect("the gate is there");
        further.await.expect("a text");
        let mut written = 1;
        while watching.try_recv().is_ok() {
            written += 1;
        }
        assert_eq!(written, 4);
        let kept = scrape.written.lock().await;
        assert!(kept.0.iter().all(Option::is_none), "nobody waits");
    }
}
