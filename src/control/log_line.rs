//! The shape of one log line, plain or JSON: what every reader of the log relies on.
//!
//! Used by the log thread (access records) and by whichever thread logs an event. Plain:
//! `time TAB level TAB target TAB message TAB k=v k=v`, strings quoted, numbers and addresses bare. JSON: one
//! object, keys in the order level, time, scope, message, fields.
//!
//! Invariant: a line holds exactly one line feed, its last byte, whatever the values hold.

use std::fmt;
use std::io::Write as _;

use time::OffsetDateTime;

use crate::clock::SystemTime;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    #[default]
    Plain,
    Json,
}

/// The value of a field, kept until its line is written.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Quoted in plain lines.
    Text(String),
    /// Not quoted in plain lines: addresses, and what prints itself.
    Bare(String),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
}

/// A line under construction at the end of a buffer.
#[derive(Debug)]
pub struct Line<'a> {
    out: &'a mut Vec<u8>,
    format: Format,
    /// What comes before the next field.
    separator: Option<u8>,
}

impl<'a> Line<'a> {
    /// `target` may carry the spans of a plain line.
    pub fn begin(
        out: &'a mut Vec<u8>,
        format: Format,
        time: SystemTime,
        level: &str,
        target: &str,
        message: &str,
    ) -> Self {
        let separator = match format {
            Format::Plain => {
                push_time(out, time);
                for column in [level, target, message] {
                    out.push(b'\t');
                    push_bare(out, format_args!("{column}"));
                }
                b'\t'
            }
            Format::Json => {
                out.extend_from_slice(b"{\"level\":");
                push_json(out, level);
                out.extend_from_slice(b",\"time\":\"");
                push_time(out, time);
                out.extend_from_slice(b"\",\"scope\":");
                push_json(out, target);
                out.extend_from_slice(b",\"message\":");
                push_json(out, message);
                b','
            }
        };
        Self {
            out,
            format,
            separator: Some(separator),
        }
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        match self.format {
            Format::Plain => push_bare(self.out, format_args!("{value:?}")),
            Format::Json => push_json(self.out, value),
        }
    }

    /// A value whose text needs no quotes in a plain line.
    pub fn bare(&mut self, key: &str, value: impl fmt::Display) {
        self.key(key);
        match self.format {
            Format::Plain => push_bare(self.out, format_args!("{value}")),
            Format::Json => push_json(self.out, &value.to_string()),
        }
    }

    /// A number or a truth value: unquoted in both formats.
    pub fn number(&mut self, key: &str, value: impl fmt::Display) {
        self.key(key);
        push_bare(self.out, format_args!("{value}"));
    }

    pub fn value(&mut self, key: &str, value: &Value) {
        match value {
            Value::Text(text) => self.text(key, text),
            Value::Bare(text) => self.bare(key, text),
            Value::Unsigned(number) => self.number(key, number),
            Value::Signed(number) => self.number(key, number),
            Value::Float(number) if number.is_finite() => self.number(key, number),
            // JSON knows no infinities.
            Value::Float(number) => self.bare(key, number),
            Value::Bool(value) => self.number(key, value),
        }
    }

    /// Fields under one key. Only in JSON lines: plain ones carry spans in their target.
    pub fn object(&mut self, key: &str, fields: &[(&'static str, Value)]) {
        assert_eq!(self.format, Format::Json, "plain lines have no objects");
        self.key(key);
        self.out.push(b'{');
        self.separator = None;
        for (key, value) in fields {
            self.value(key, value);
        }
        self.out.push(b'}');
        self.separator = Some(b',');
    }

    pub fn end(self) {
        match self.format {
            Format::Plain => self.out.push(b'\n'),
            Format::Json => self.out.extend_from_slice(b"}\n"),
        }
    }

    fn key(&mut self, key: &str) {
        self.out.extend(self.separator);
        match self.format {
            Format::Plain => {
                push_bare(self.out, format_args!("{key}="));
                self.separator = Some(b' ');
            }
            Format::Json => {
                push_json(self.out, key);
                self.out.push(b':');
                self.separator = Some(b',');
            }
        }
    }
}

impl fmt::Display for Value {
    /// As in a plain line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Bare(text) => f.write_str(text),
            Self::Unsigned(number) => write!(f, "{number}"),
            Self::Signed(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Bool(value) => write!(f, "{value}"),
        }
    }
}

/// RFC 3339, microseconds, `Z`.
fn push_time(out: &mut Vec<u8>, time: SystemTime) {
    let time = OffsetDateTime::from(time);
    push_bare(
        out,
        format_args!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
            time.year(),
            u8::from(time.month()),
            time.day(),
            time.hour(),
            time.minute(),
            time.second(),
            time.microsecond()
        ),
    );
}

/// Control characters become spaces: a value must not be able to start a line or a column of its own.
fn push_bare(out: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    let start = out.len();
    out.write_fmt(text).expect("invariant: a vector takes every byte");
    for byte in &mut out[start..] {
        if byte.is_ascii_control() {
            *byte = b' ';
        }
    }
}

fn push_json(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text)
        .expect("invariant: a string is valid JSON and a vector takes every byte");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn line(format: Format, fill: impl FnOnce(&mut Line<'_>)) -> String {
        let time = SystemTime::UNIX_EPOCH + Duration::from_micros(1_767_323_045_000_006);
        let mut out = Vec::new();
        let mut line = Line::begin(&mut out, format, time, "info", "access", "connection complete");
        fill(&mut line);
        line.end();
        String::from_utf8(out).expect("utf-8")
    }

    fn fill(line: &mut Line<'_>) {
        line.bare("src.addr", "10.1.0.4:40112");
        line.text("src.workload", "we\"b");
        line.number("bytes_sent", 120);
        line.value("ok", &Value::Bool(true));
    }

    #[test]
    fn a_plain_line_has_five_columns_and_quotes_texts_only() {
        assert_eq!(
            line(Format::Plain, fill),
            "2026-01-02T03:04:05.000006Z\tinfo\taccess\tconnection complete\t\
             src.addr=10.1.0.4:40112 src.workload=\"we\\\"b\" bytes_sent=120 ok=true\n"
        );
        assert_eq!(
            line(Format::Plain, |_| ()),
            "2026-01-02T03:04:05.000006Z\tinfo\taccess\tconnection complete\n"
        );
    }

    #[test]
    fn a_json_line_is_one_object_with_its_keys_in_order() {
        let text = line(Format::Json, |line| {
            fill(line);
            line.object(
                "proxy",
                &[
                    ("wl", Value::Text("shop/web".to_owned())),
                    ("id", Value::Unsigned(7)),
                ],
            );
            line.number("after", 1);
        });
        assert_eq!(
            text,
            "{\"level\":\"info\",\"time\":\"2026-01-02T03:04:05.000006Z\",\"scope\":\"access\",\
             \"message\":\"connection complete\",\"src.addr\":\"10.1.0.4:40112\",\"src.workload\":\"we\\\"b\",\
             \"bytes_sent\":120,\"ok\":true,\"proxy\":{\"wl\":\"shop/web\",\"id\":7},\"after\":1}\n"
        );
        serde_json::from_str::<serde_json::Value>(&text).expect("one JSON value");
    }

    #[test]
    fn no_value_can_start_a_line_or_a_column_of_its_own() {
        for format in [Format::Plain, Format::Json] {
            let text = line(format, |line| {
                line.bare("bare", "a\nb\tc\rd");
                line.text("text", "a\nb\tc\rd");
                line.value("float", &Value::Float(f64::INFINITY));
            });
            assert_eq!(text.matches('\n').count(), 1, "{text}");
            assert!(text.matches('\t').count() <= 4, "{text}");
        }
    }
}
