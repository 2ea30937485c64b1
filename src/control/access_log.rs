//! The access log: one line per connection, and the log thread that writes it and every other line.
//!
//! The thread takes what workers and control put into the log queue, formats it, and writes it by one `write`
//! per batch. It alone writes to standard output, so a slow reader stops this thread and nothing else; what the
//! queue cannot take meanwhile is dropped, counted, and reported here as soon as there is room.

use std::io::Write;
use std::sync::mpsc;

use tracing::Level;

use crate::bridge::log::ACCESS_TARGET as TARGET;
use crate::bridge::{AccessEvent, AccessRecord, Direction, LogItem, LogQueue, Party};
use crate::clock;
use crate::control::log_line::{Format, Line};
use crate::limits;

/// Runs the log thread until every sink is gone. Errors of `out` are ignored: there is nowhere to report them.
pub fn run(queue: &LogQueue, format: Format, out: &mut dyn Write) {
    let mut text = Vec::with_capacity(limits::LOG_WRITE_BYTES_MAX);
    let mut flushes: Vec<mpsc::SyncSender<()>> = Vec::new();
    while let Some(first) = queue.wait() {
        let mut next = Some(first);
        while let Some(item) = next {
            match item {
                LogItem::Access(batch) => push_batch(&mut text, format, &batch),
                LogItem::Line(line) => text.extend_from_slice(&line),
                LogItem::Flush(done) => flushes.push(done),
            }
            next = if text.len() < limits::LOG_WRITE_BYTES_MAX {
                queue.next()
            } else {
                None
            };
        }
        push_dropped(&mut text, format, queue.take_dropped());
        let _ = out.write_all(&text);
        let _ = out.flush();
        let is_behind = text.len() >= limits::LOG_WRITE_BYTES_MAX;
        text.clear();
        text.shrink_to(limits::LOG_WRITE_BYTES_MAX);
        let is_waited_for = !flushes.is_empty();
        for done in flushes.drain(..) {
            // Whoever asked may have lost patience.
            let _ = done.send(());
        }
        if !is_behind && !is_waited_for {
            // A thread that waits for its queue is woken by every line, which costs the sender more than the line
            // itself: about a tenth of a short connection. So lines of busy times are gathered meanwhile.
            std::thread::sleep(limits::LOG_GATHER_TIME);
        }
    }
}

/// The level of a record's line.
pub fn level(record: &AccessRecord) -> Level {
    match (record.event, &record.error) {
        (AccessEvent::Opened, _) => Level::DEBUG,
        (AccessEvent::Complete { .. }, None) => Level::INFO,
        (AccessEvent::Complete { .. }, Some(_)) => Level::ERROR,
        (AccessEvent::Failed, _) => Level::WARN,
    }
}

/// Appends the line of a record.
pub fn push_record(out: &mut Vec<u8>, format: Format, record: &AccessRecord) {
    let message = match record.event {
        AccessEvent::Opened => "connection opened",
        AccessEvent::Complete { .. } => "connection complete",
        AccessEvent::Failed => "connection failed",
    };
    let mut line = Line::begin(
        out,
        format,
        record.time,
        level_name(level(record)),
        TARGET,
        message,
    );
    line.bare("src.addr", record.source.address);
    push_party(
        &mut line,
        ["src.workload", "src.namespace", "src.identity", "src.cluster"],
        &record.source,
    );
    line.bare("dst.addr", record.destination.address);
    if let Some(address) = &record.hbone_address {
        line.bare("dst.hbone_addr", address);
    }
    if let Some(service) = &record.service {
        line.text("dst.service", service);
    }
    push_party(
        &mut line,
        ["dst.workload", "dst.namespace", "dst.identity", "dst.cluster"],
        &record.destination,
    );
    let direction = match record.direction {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
    };
    line.text("direction", direction);
    match record.event {
        AccessEvent::Complete {
            bytes_sent,
            bytes_received,
            duration,
        } => {
            line.number("bytes_sent", bytes_sent);
            line.number("bytes_recv", bytes_received);
            line.text("duration", &format!("{}ms", duration.as_millis()));
        }
        AccessEvent::Opened | AccessEvent::Failed => {}
    }
    if let Some(error) = &record.error {
        line.text("error", error);
    }
    line.end();
}

/// As the level is written in a line.
pub fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

fn push_party(line: &mut Line<'_>, keys: [&str; 4], party: &Party) {
    let [workload, namespace, identity, cluster] = keys;
    if let Some(value) = &party.workload {
        line.text(workload, value);
    }
    if let Some(value) = &party.namespace {
        line.text(namespace, value);
    }
    if let Some(value) = &party.identity {
        line.text(identity, &value.to_string());
    }
    if let Some(value) = &party.cluster {
        line.text(cluster, value);
    }
}

fn push_batch(out: &mut Vec<u8>, format: Format, batch: &[AccessRecord]) {
    for record in batch {
        if is_enabled(level(record)) {
            push_record(out, format, record);
        }
    }
}

/// What `RUST_LOG` says about access lines.
fn is_enabled(level: Level) -> bool {
    match level {
        Level::ERROR => tracing::enabled!(target: TARGET, Level::ERROR),
        Level::WARN => tracing::enabled!(target: TARGET, Level::WARN),
        Level::INFO => tracing::enabled!(target: TARGET, Level::INFO),
        Level::DEBUG => tracing::enabled!(target: TARGET, Level::DEBUG),
        Level::TRACE => tracing::enabled!(target: TARGET, Level::TRACE),
    }
}

fn push_dropped(out: &mut Vec<u8>, format: Format, dropped: u64) {
    if dropped == 0 {
        return;
    }
    let message = "log lines dropped: standard output takes them slower than they come";
    let mut line = Line::begin(
        out,
        format,
        clock::wall(),
        level_name(Level::WARN),
        "log",
        message,
    );
    line.number("lines", dropped);
    line.end();
}

#[cfg(test)]
mod tests;
