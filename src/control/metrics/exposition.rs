//! The metrics server on port 15020: what a scrape is answered.
//!
//! Control thread; the text is made on a thread of its own, since there may be very much of it. Specification:
//! section 1 of the observability contract.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderName, HeaderValue, VARY};
use hyper::{Request, Response, StatusCode};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::sync::Mutex;

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
    /// How many wait for it.
    waiting: Arc<AtomicUsize>,
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
    };
    let scrape = Scrape {
        registry: registry.into(),
        written: Arc::default(),
        waiting: Arc::default(),
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
        let waiting = Waiting::new(&self.waiting);
        let mut written = Arc::clone(&self.written).lock_owned().await;
        drop(waiting);
        let known = written.0[usize::from(is_gzip)].clone();
        if self.waiting.load(Ordering::Relaxed) == 0 {
            *written = Written::default();
        }
        if let Some((begun, text)) = known
            && begun >= asked
        {
            return Ok(text);
        }
        let (registry, waiting) = (Arc::clone(&self.registry), Arc::clone(&self.waiting));
        let writing = tokio::task::spawn_blocking(move || {
            let begun = clock::now();
            let text = encode(&registry, is_gzip)?;
            // With the lock, which a client that goes must not give to the next one while this thread still works.
            if waiting.load(Ordering::Relaxed) > 0 {
                written.0[usize::from(is_gzip)] = Some((begun, text.clone()));
            }
            Ok(text)
        });
        writing.await.map_err(io::Error::other)?
    }
}

/// One that waits, until it is dropped.
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
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
    use std::sync::atomic::Ordering::SeqCst;
    use std::time::Duration;

    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::DescriptorEncoder;

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

    #[derive(Debug)]
    struct Watched {
        writing: AtomicUsize,
        most: Arc<AtomicUsize>,
        written: Arc<AtomicUsize>,
    }

    impl Collector for Watched {
        fn encode(&self, _: DescriptorEncoder<'_>) -> std::fmt::Result {
            self.most.fetch_max(self.writing.fetch_add(1, SeqCst) + 1, SeqCst);
            std::thread::sleep(Duration::from_millis(20));
            self.written.fetch_add(1, SeqCst);
            self.writing.fetch_sub(1, SeqCst);
            Ok(())
        }
    }

    #[tokio::test]
    async fn those_that_ask_at_once_share_one_text_and_nobody_gets_an_older_one() {
        let (most, count) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Watched {
            writing: AtomicUsize::new(0),
            most: Arc::clone(&most),
            written: Arc::clone(&count),
        }));
        let scrape = Arc::new(Scrape {
            registry: registry.into(),
            written: Arc::default(),
            waiting: Arc::default(),
        });
        let ask = |number: usize| {
            let scrape = Arc::clone(&scrape);
            async move { scrape.text(number % 2 == 1).await.expect("a text") }
        };
        // One that goes does not let another one in beside it.
        let gone = tokio::time::timeout(Duration::from_millis(5), ask(0)).await;
        assert!(gone.is_err());
        let all: tokio::task::JoinSet<Bytes> = (0..64).map(ask).collect();
        assert_eq!(all.join_all().await.len(), 64);
        assert_eq!(most.load(SeqCst), 1);
        let written = count.load(SeqCst);
        assert!((2..=3).contains(&written), "{written}");
        ask(0).await;
        assert_eq!(count.load(SeqCst), written + 1);
        let kept = scrape.written.lock().await;
        assert!(kept.0.iter().all(Option::is_none), "nobody waits");
    }
}
