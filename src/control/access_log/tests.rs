//! The reference is what upstream wrote for real traffic (tests/data/access-*.log): every captured line is read
//! into a record, and the record must print as the same line.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use time::OffsetDateTime;
use tracing_subscriber::filter::LevelFilter;

use super::*;
use crate::bridge::log::log_queue;
use crate::clock::{Duration, SystemTime};
use crate::mesh::TunnelAuthority;

macro_rules! captured {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/", $name))
    };
}

const PLAIN: [&str; 2] = [
    captured!("access-plain-node1.log"),
    captured!("access-plain-node2.log"),
];
const JSON: [&str; 2] = [
    captured!("access-json-node1.log"),
    captured!("access-json-node2.log"),
];

type Fields = BTreeMap<String, String>;

#[test]
fn every_captured_plain_line_is_written_byte_for_byte() {
    let mut lines = 0;
    for line in PLAIN.iter().flat_map(|log| log.lines()) {
        let mut columns = line.splitn(5, '\t');
        let mut next = || columns.next().expect("five columns");
        let (time, level_name, target, message, fields) = (next(), next(), next(), next(), next());
        assert_eq!(target, TARGET);
        check(
            line,
            Format::Plain,
            time,
            level_name,
            message,
            &plain_fields(fields),
        );
        lines += 1;
    }
    assert!(lines > 20, "the captures are there");
}

#[test]
fn every_captured_json_line_is_written_byte_for_byte() {
    let mut lines = 0;
    for line in JSON.iter().flat_map(|log| log.lines()) {
        let object: BTreeMap<String, serde_json::Value> = serde_json::from_str(line).expect("JSON");
        let mut fields: Fields = object
            .into_iter()
            .map(|(key, value)| match value {
                serde_json::Value::String(text) => (key, text),
                other => (key, other.to_string()),
            })
            .collect();
        let mut take = |key: &str| fields.remove(key).expect("present");
        let (time, level_name, scope, message) =
            (take("time"), take("level"), take("scope"), take("message"));
        assert_eq!(scope, TARGET);
        check(line, Format::Json, &time, &level_name, &message, &fields);
        lines += 1;
    }
    assert!(lines > 20, "the captures are there");
}

#[test]
fn an_opened_connection_is_a_debug_line_without_counts() {
    let record = record(AccessEvent::Opened, None);
    assert_eq!(level(&record), Level::DEBUG);
    let mut out = Vec::new();
    push_record(&mut out, Format::Plain, &record);
    let text = String::from_utf8(out).expect("utf-8");
    assert_eq!(
        text,
        "1970-01-01T00:00:00.000000Z\tdebug\taccess\tconnection opened\t\
         src.addr=10.0.0.1:1 dst.addr=10.0.0.2:2 direction=\"outbound\"\n"
    );
}

#[test]
fn batches_go_out_by_few_writes_and_dropped_lines_are_reported() {
    let (sink, queue) = log_queue();
    let failed = |count| vec![record(AccessEvent::Failed, Some("no")); count];
    for _ in 0..2 {
        sink.access(failed(limits::LOG_ACCESS_LINES_QUEUED_MAX / 2 - 3));
    }
    sink.access(failed(7));
    sink.access(failed(6));
    // The room for lines of connections is full, that for other lines is not.
    sink.line(b"a line of another kind\n".to_vec());
    sink.access(failed(1));
    drop(sink);

    let writes = Writes::default();
    let subscriber = tracing_subscriber::registry::Registry::default();
    tracing::subscriber::with_default(subscriber, || run(&queue, Format::Plain, &mut writes.clone()));
    let writes = writes.0.lock().expect("no panic").clone();
    let text: String = writes
        .iter()
        .map(|write| std::str::from_utf8(write).expect("utf-8"))
        .collect();
    assert_eq!(
        text.matches("connection failed").count(),
        limits::LOG_ACCESS_LINES_QUEUED_MAX
    );
    assert!(text.contains("a line of another kind\n"));
    assert!(
        text.contains("\twarn\tlog\tlog lines dropped: "),
        "the loss is told"
    );
    assert!(text.contains("\tlines=8\n"));
    // What the loss is told with goes out by itself.
    let writes_max = text.len() / limits::LOG_WRITE_BYTES_MAX + 2;
    assert!(writes.len() <= writes_max, "{} writes", writes.len());
    assert!(
        writes.iter().all(|write| write.ends_with(b"\n")),
        "no line is split over two writes"
    );
}

#[test]
fn records_below_the_filter_level_are_left_out() {
    use tracing_subscriber::layer::SubscriberExt;

    let (sink, queue) = log_queue();
    sink.access(vec![
        record(AccessEvent::Opened, None),
        record(AccessEvent::Failed, Some("no")),
    ]);
    drop(sink);
    let writes = Writes::default();
    let subscriber = tracing_subscriber::registry::Registry::default().with(LevelFilter::INFO);
    tracing::subscriber::with_default(subscriber, || run(&queue, Format::Plain, &mut writes.clone()));
    let text = writes.0.lock().expect("no panic").concat();
    let text = std::str::from_utf8(&text).expect("utf-8");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("connection failed"));
}

/// Remembers what every single write was given.
#[derive(Clone, Default)]
struct Writes(Arc<Mutex<Vec<Vec<u8>>>>);

impl Write for Writes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn record(event: AccessEvent, error: Option<&str>) -> AccessRecord {
    AccessRecord {
        time: SystemTime::UNIX_EPOCH,
        event,
        source: Party::unknown("10.0.0.1:1".parse().expect("address")),
        destination: Party::unknown("10.0.0.2:2".parse().expect("address")),
        hbone_address: None,
        service: None,
        direction: Direction::Outbound,
        error: error.map(str::to_owned),
    }
}

fn check(line: &str, format: Format, time: &str, level_text: &str, message: &str, fields: &Fields) {
    let get = |key: &str| fields.get(key).map(String::as_str);
    let number = |key: &str| get(key).expect("present").parse().expect("a number");
    let party = |side: &str| Party {
        address: get(&format!("{side}.addr"))
            .expect("present")
            .parse()
            .expect("an address"),
        workload: get(&format!("{side}.workload")).map(Into::into),
        namespace: get(&format!("{side}.namespace")).map(Into::into),
        identity: get(&format!("{side}.identity")).map(|identity| identity.parse().expect("an identity")),
        cluster: get(&format!("{side}.cluster")).map(Into::into),
    };
    let event = match message {
        "connection complete" => {
            let milliseconds = get("duration")
                .and_then(|text| text.strip_suffix("ms"))
                .expect("present");
            AccessEvent::Complete {
                bytes_sent: number("bytes_sent"),
                bytes_received: number("bytes_recv"),
                duration: Duration::from_millis(milliseconds.parse().expect("a number")),
            }
        }
        "connection failed" => AccessEvent::Failed,
        other => panic!("unexpected message {other}"),
    };
    let time = OffsetDateTime::parse(time, &time::format_description::well_known::Rfc3339).expect("a time");
    let record = AccessRecord {
        time: time.into(),
        event,
        source: party("src"),
        destination: party("dst"),
        hbone_address: get("dst.hbone_addr")
            .map(|address| TunnelAuthority::Address(address.parse().expect("an address"))),
        service: get("dst.service").map(Into::into),
        direction: match get("direction") {
            Some("inbound") => Direction::Inbound,
            Some("outbound") => Direction::Outbound,
            other => panic!("unexpected direction {other:?}"),
        },
        error: get("error").map(str::to_owned),
    };
    assert_eq!(level_name(level(&record)), level_text);
    let mut out = Vec::new();
    push_record(&mut out, format, &record);
    assert_eq!(std::str::from_utf8(&out), Ok(&*format!("{line}\n")));
}

/// `k=v k="v"`, with the escapes that occur in the captures.
fn plain_fields(mut text: &str) -> Fields {
    let mut fields = Fields::new();
    while let Some((key, rest)) = text.split_once('=') {
        let (value, rest) = match rest.strip_prefix('"') {
            None => {
                let (value, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                (value.to_owned(), rest)
            }
            Some(quoted) => {
                let mut value = String::new();
                let mut characters = quoted.char_indices();
                let end = loop {
                    match characters.next().expect("a closing quote") {
                        (index, '"') => break index + 1,
                        (_, '\\') => value.push(characters.next().expect("an escaped character").1),
                        (_, character) => value.push(character),
                    }
                };
                (value, quoted[end..].trim_start())
            }
        };
        fields.insert(key.to_owned(), value);
        text = rest;
    }
    fields
}
