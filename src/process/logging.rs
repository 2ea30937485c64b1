//! Operational log: `tracing` events become lines of the log thread's queue.
//!
//! Whichever thread logs formats its own line and puts it into the queue; it never waits for standard output.
//! Shape of a line: `control::log_line`. Targets lose the crate's name in plain lines and keep it in JSON.

use std::fmt::{self, Write as _};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;

use crate::bridge::log::{LogSink, log_queue};
use crate::clock;
use crate::control::access_log::{self, level_name};
use crate::control::log_line::{Format, Line, Value};
use crate::process::log_filter::{Clauses, Filter};

/// How long a process on its way out waits for its last lines to be written.
pub const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

const OWN_CRATE: &str = "uztunnel";

#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error(
        "invalid env var RUST_LOG={value:?} ({clause:?} is no level and no target=level; levels are off, error, \
         warn, info, debug, trace)"
    )]
    Filter { value: String, clause: String },
    #[error("cannot start the log thread: {0}")]
    Thread(#[source] io::Error),
    #[error("logging was set up already")]
    Twice,
}

/// Starts the log thread and makes it the destination of all events. `filter`: as `RUST_LOG`; what is given back
/// changes it.
pub fn start(filter: &str, format: Format) -> Result<(LogSink, Filter), LoggingError> {
    let clauses = parse_filter(filter)?;
    let parsed = clauses.filter().map_err(|clause| LoggingError::Filter {
        value: filter.to_owned(),
        clause,
    })?;
    let (subscriber_filter, in_use) = reload::Layer::new(parsed);
    let (sink, queue) = log_queue();
    // Not `io::stdout()`: its buffer would split a batch, and its lock could be held by a blocked write.
    let stdout = io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map_err(LoggingError::Thread)?;
    let mut stdout = std::fs::File::from(stdout);
    std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || access_log::run(&queue, format, &mut stdout))
        .map_err(LoggingError::Thread)?;
    let lines = Lines {
        sink: sink.clone(),
        format,
    };
    let subscriber = Registry::default().with(subscriber_filter).with(lines);
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LoggingError::Twice)?;
    end_with_a_panic(sink.clone());
    Ok((sink, Filter::new(clauses, in_use)))
}

/// The process aborts, also where it was built to unwind: a thread that is missing would be noticed much later. What was
/// logged before is often why, and must reach the reader first.
fn end_with_a_panic(sink: LogSink) {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        sink.flush(FLUSH_PATIENCE);
        report(panic);
        std::process::abort();
    }));
}

fn parse_filter(text: &str) -> Result<Clauses, LoggingError> {
    Clauses::parse(text).map_err(|clause| LoggingError::Filter {
        value: text.to_owned(),
        clause,
    })
}

/// The layer that makes lines of events.
struct Lines {
    sink: LogSink,
    format: Format,
}

impl<S> Layer<S> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let spans = || {
            context
                .event_scope(event)
                .into_iter()
                .flat_map(|scope| scope.from_root())
        };
        let target = match self.format {
            Format::Json => metadata.target().to_owned(),
            Format::Plain => {
                let mut target = short_target(metadata.target()).to_owned();
                for span in spans() {
                    if let Some(fields) = span.extensions().get::<Fields>() {
                        push_span(&mut target, span.name(), &fields.fields);
                    }
                }
                target
            }
        };
        let mut bytes = Vec::with_capacity(256);
        let level = level_name(*metadata.level());
        let mut line = Line::begin(
            &mut bytes,
            self.format,
            clock::wall(),
            level,
            &target,
            &fields.message,
        );
        for (key, value) in &fields.fields {
            line.value(key, value);
        }
        match self.format {
            Format::Plain => {}
            Format::Json => {
                for span in spans() {
                    if let Some(fields) = span.extensions().get::<Fields>() {
                        line.object(span.name(), &fields.fields);
                    }
                }
            }
        }
        line.end();
        self.sink.line(bytes);
    }
}

/// What an event or a span carries.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl Fields {
    /// A span's field that is recorded again takes its new value.
    fn put(&mut self, field: &Field, value: Value) {
        match self.fields.iter_mut().find(|(name, _)| *name == field.name()) {
            Some((_, old)) => *old = value,
            None => self.fields.push((field.name(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.put(field, Value::Bare(text));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = value.to_owned();
        } else {
            self.put(field, Value::Text(value.to_owned()));
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::Unsigned(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::Signed(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, Value::Float(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::Bool(value));
    }
}

fn short_target(target: &str) -> &str {
    target
        .strip_prefix(OWN_CRATE)
        .and_then(|rest| rest.strip_prefix("::"))
        .unwrap_or(target)
}

/// `:name{k=v k=v}`; without fields only the name.
fn push_span(target: &mut String, name: &str, fields: &[(&'static str, Value)]) {
    target.push(':');
    target.push_str(name);
    if fields.is_empty() {
        return;
    }
    for (index, (key, value)) in fields.iter().enumerate() {
        let open = if index == 0 { '{' } else { ' ' };
        write!(target, "{open}{key}={value}").expect("invariant: a string takes every text");
    }
    target.push('}');
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;
    use crate::bridge::log::LogItem;

    /// The lines that `log` makes, without their time.
    fn logged(format: Format, filter: &str, log: impl FnOnce()) -> Vec<String> {
        let (sink, queue) = log_queue();
        let filter = parse_filter(filter).expect("a valid filter");
        let filter = filter.filter().expect("a valid filter");
        let subscriber = Registry::default().with(filter).with(Lines { sink, format });
        tracing::subscriber::with_default(subscriber, log);
        let mut lines = Vec::new();
        while let Some(item) = queue.next() {
            let LogItem::Line(line) = item else {
                panic!("only lines are logged")
            };
            let line = String::from_utf8(line).expect("utf-8");
            lines.push(match format {
                Format::Plain => line.split_once('\t').expect("a time column").1.to_owned(),
                Format::Json => {
                    let (head, rest) = line.split_once(",\"time\":\"").expect("a time");
                    format!("{head}{}", &rest["2026-01-02T03:04:05.000006Z\"".len()..])
                }
            });
        }
        lines
    }

    fn log_in_spans() {
        let proxy = tracing::info_span!("proxy", wl = "shop/web");
        let _proxy = proxy.enter();
        let inbound = tracing::info_span!("inbound", id = %"ab", peer = tracing::field::Empty);
        inbound.record("peer", 7);
        let _inbound = inbound.enter();
        tracing::info!(target: "uztunnel::worker::inbound", count = 3, ok = true, text = "a \"b\"", "it {}", "is");
    }

    /// In a process of its own, which is this test once more.
    #[test]
    fn a_thread_that_panics_ends_the_process_after_its_last_words() {
        const INSIDE: &str = "UZTUNNEL_TEST_PANICS";
        if std::env::var_os(INSIDE).is_some() {
            start("info", Format::Plain).expect("the only logging of this process");
            tracing::info!("its last words");
            let panicked = std::thread::spawn(|| panic!("nobody catches this")).join();
            unreachable!("the process goes on: {panicked:?}");
        }
        let mut inside = Command::new(std::env::current_exe().expect("this program"));
        let own_name = "process::logging::tests::a_thread_that_panics_ends_the_process_after_its_last_words";
        let ended = inside
            .args(["--exact", own_name, "--nocapture"])
            .env(INSIDE, "")
            .output()
            .expect("started");
        assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{ended:?}");
        let [said, complaint] = [&ended.stdout, &ended.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        assert!(said.contains("its last words"), "{said}");
        assert!(complaint.contains("nobody catches this"), "{complaint}");
    }

    #[test]
    fn a_plain_line_names_its_spans_in_the_target() {
        assert_eq!(
            logged(Format::Plain, "info", log_in_spans),
            [
                "info\tworker::inbound:proxy{wl=\"shop/web\"}:inbound{id=ab peer=7}\tit is\t\
              count=3 ok=true text=\"a \\\"b\\\"\"\n"
            ]
        );
    }

    #[test]
    fn a_json_line_has_its_spans_as_objects_after_the_fields() {
        assert_eq!(
            logged(Format::Json, "info", log_in_spans),
            [
                "{\"level\":\"info\",\"scope\":\"uztunnel::worker::inbound\",\"message\":\"it is\",\
              \"count\":3,\"ok\":true,\"text\":\"a \\\"b\\\"\",\
              \"proxy\":{\"wl\":\"shop/web\"},\"inbound\":{\"id\":\"ab\",\"peer\":7}}\n"
            ]
        );
    }

    #[test]
    fn levels_are_lower_case_and_a_plain_target_loses_the_crates_name_only() {
        let log = || {
            tracing::error!(target: "uztunnel", "e");
            tracing::warn!(target: "uztunnel::control::zds", "w");
            tracing::debug!(target: "access", "d");
        };
        assert_eq!(
            logged(Format::Plain, "debug", log),
            [
                "error\tuztunnel\te\n",
                "warn\tcontrol::zds\tw\n",
                "debug\taccess\td\n"
            ]
        );
    }

    #[test]
    fn the_filter_is_by_target_and_upstreams_crate_name_means_ours() {
        let log = || {
            tracing::debug!(target: "uztunnel::control::zds", "a");
            tracing::debug!(target: "access", "b");
            tracing::info!(target: "hyper", "c");
            tracing::info!(target: "hickory_server::server", "d");
        };
        assert_eq!(
            logged(Format::Plain, "", log),
            ["info\thyper\tc\n"],
            "info when nothing is said"
        );
        assert_eq!(
            logged(Format::Plain, "off,ztunnel::control=debug", log),
            ["debug\tcontrol::zds\ta\n"]
        );
        assert_eq!(
            logged(Format::Plain, "access=debug,warn", log),
            ["debug\taccess\tb\n"]
        );
    }

    #[test]
    fn a_filter_that_is_none_is_refused_by_name() {
        for bad in ["inof", "access=loud", "info,=debug", "a b"] {
            let error = parse_filter(bad).expect_err(bad).to_string();
            assert!(
                error.starts_with(&format!("invalid env var RUST_LOG={bad:?}")),
                "{error}"
            );
        }
    }
}
