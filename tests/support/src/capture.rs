//! Captures what crosses a wire between two nodes and says whether it was only TLS.
//!
//! A packet socket in the node's namespace sees every frame of both directions. The bytes of each connection are
//! put in order and judged at once, so a capture needs no disk and no memory for the traffic. A frame that was
//! dropped, a gap or a connection whose beginning is missing makes the check fail: it never passes for lack of
//! evidence.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::namespace::Namespace;
use crate::reassembly::{Direction, Reassembler, parse_frame};
use crate::tls_records::RecordChecker;
use crate::{Result, RigError, istiod, sys};

/// The port of the tunnels: all that it carries has to be TLS.
const HBONE_PORT: u16 = 15008;
/// Every byte of these connections has to be TLS.
const TLS_PORTS: [u16; 2] = [HBONE_PORT, istiod::PORT];

/// Larger than any frame that a veth passes on (64 KiB with segmentation offload).
const FRAME_BYTES_MAX: usize = 128 * 1024;
const POLL_MS: i32 = 20;

pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<CaptureReport>>,
}

impl Capture {
    /// Starts capturing on `interface`. `marker` is a text that must not be readable in any TLS flow; empty: none.
    pub fn start(node: &Namespace, interface: &str, marker: &[u8]) -> Result<Self> {
        let socket = node
            .run(|| sys::open_packet_socket(sys::interface_index(interface)?))
            .map_err(|error| RigError::new(format!("capturing on {interface}"), error))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let marker = marker.to_vec();
        let thread = thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || capture_all(&socket, &stopping, marker))
            .map_err(|error| RigError::new("starting the capture", error))?;
        Ok(Self { stop, thread })
    }

    /// Stops after the frames that already arrived, and reports.
    pub fn stop(self) -> Result<CaptureReport> {
        self.stop.store(true, Ordering::Release);
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// One direction of one connection, as it crossed the wire.
#[derive(Debug)]
pub struct Flow {
    pub direction: Direction,
    pub bytes: u64,
    /// The marker was readable.
    pub marker_seen: bool,
    /// `None` for a flow that belongs to neither a tunnel nor the control plane.
    pub tls: Option<RecordChecker>,
}

#[derive(Debug, Default)]
pub struct CaptureReport {
    pub flows: Vec<Flow>,
    pub frames: u64,
    /// Frames that the kernel could not hand over.
    pub dropped: u32,
    pub gaps: Vec<Direction>,
    pub headless: Vec<Direction>,
}

/// What a clean capture contained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TlsSummary {
    /// Of tunnels, as are `records` and `bytes`.
    pub flows: usize,
    pub records: u64,
    pub bytes: u64,
    pub control_plane_flows: usize,
}

impl CaptureReport {
    /// Flows that have nothing to do with a tunnel or the control plane.
    pub fn plain_flows(&self) -> impl Iterator<Item = &Flow> {
        self.flows.iter().filter(|flow| flow.tls.is_none())
    }

    /// The marker was readable in a flow of neither a tunnel nor the control plane.
    pub fn marker_in_plain_flow(&self) -> bool {
        self.plain_flows().any(|flow| flow.marker_seen)
    }

    /// Every byte was seen, there was at least one tunnel, and all bytes of all connections were TLS records.
    pub fn check_only_tls(&self) -> std::result::Result<TlsSummary, String> {
        if let Some(flow) = self.plain_flows().next() {
            return Err(format!(
                "a connection that is no tunnel crossed the wire: {}",
                describe(&flow.direction)
            ));
        }
        self.check_tunnels()
    }

    /// As `check_only_tls`, but other connections may have crossed the wire as well.
    pub fn check_tunnels(&self) -> std::result::Result<TlsSummary, String> {
        if self.dropped > 0 {
            return Err(format!(
                "{} frames were dropped by the capture: nothing is proven",
                self.dropped
            ));
        }
        if let Some(direction) = self.gaps.first() {
            return Err(format!("bytes are missing in {}", describe(direction)));
        }
        if let Some(direction) = self.headless.first() {
            return Err(format!(
                "the beginning of {} was not captured",
                describe(direction)
            ));
        }
        let mut summary = TlsSummary::default();
        for flow in &self.flows {
            let Some(tls) = &flow.tls else { continue };
            if let Some(violation) = tls.violation() {
                return Err(format!("{} is not TLS: {violation}", describe(&flow.direction)));
            }
            if flow.marker_seen {
                return Err(format!("plaintext is readable in {}", describe(&flow.direction)));
            }
            if !flow.direction.has_port(HBONE_PORT) {
                summary.control_plane_flows += 1;
                continue;
            }
            summary.flows += 1;
            summary.records += tls.records_total();
            summary.bytes += flow.bytes;
        }
        if summary.records == 0 {
            return Err("no tunnel crossed the wire: nothing is proven".to_owned());
        }
        Ok(summary)
    }
}

fn describe(direction: &Direction) -> String {
    format!("{} -> {}", direction.source, direction.destination)
}

fn capture_all(socket: &OwnedFd, stop: &AtomicBool, marker: Vec<u8>) -> Result<CaptureReport> {
    let failed = |error| RigError::new("reading captured frames", error);
    let mut observer = Observer {
        marker,
        ..Observer::default()
    };
    let mut frame = vec![0; FRAME_BYTES_MAX];
    loop {
        // Asked before reading: what was on the wire before `stop` is read to the last frame.
        let last_round = stop.load(Ordering::Acquire);
        while let Some(length) =
            sys::receive_frame(socket.as_fd(), &mut frame, if last_round { 0 } else { POLL_MS })
                .map_err(failed)?
        {
            if length > frame.len() {
                return Err(RigError::new("capturing", format!("a frame of {length} bytes")));
            }
            observer.push(&frame[..length]);
        }
        if last_round {
            let dropped = sys::packet_drops(socket.as_fd()).map_err(failed)?;
            return Ok(observer.finish(dropped));
        }
    }
}

#[derive(Default)]
struct Observer {
    marker: Vec<u8>,
    frames: u64,
    reassembler: Reassembler,
    flows: BTreeMap<Direction, (Flow, MarkerSearch)>,
}

impl Observer {
    fn push(&mut self, frame: &[u8]) {
        self.frames += 1;
        let Some(segment) = parse_frame(frame) else { return };
        let Self {
            marker,
            reassembler,
            flows,
            ..
        } = self;
        reassembler.push(&segment, |direction, bytes| {
            let (flow, search) = flows.entry(direction).or_insert_with(|| {
                let tls = TLS_PORTS.iter().any(|port| direction.has_port(*port));
                let tls = tls.then(RecordChecker::default);
                (
                    Flow {
                        direction,
                        bytes: 0,
                        marker_seen: false,
                        tls,
                    },
                    MarkerSearch::default(),
                )
            });
            flow.bytes += bytes.len() as u64;
            if let Some(tls) = &mut flow.tls {
                tls.push(bytes);
            }
            flow.marker_seen |= search.push(marker, bytes);
        });
    }

    fn finish(self, dropped: u32) -> CaptureReport {
        CaptureReport {
            flows: self.flows.into_values().map(|(flow, _)| flow).collect(),
            frames: self.frames,
            dropped,
            gaps: self.reassembler.gaps(),
            headless: self.reassembler.headless.into_iter().collect(),
        }
    }
}

/// Finds a text in a stream also where it spans two segments.
#[derive(Default)]
struct MarkerSearch {
    carried: Vec<u8>,
}

impl MarkerSearch {
    fn push(&mut self, marker: &[u8], bytes: &[u8]) -> bool {
        if marker.is_empty() {
            return false;
        }
        let overlap = marker.len() - 1;
        self.carried.extend_from_slice(&bytes[..bytes.len().min(overlap)]);
        let found = contains(&self.carried, marker) || contains(bytes, marker);
        if bytes.len() >= overlap {
            self.carried.clear();
            self.carried.extend_from_slice(&bytes[bytes.len() - overlap..]);
        } else {
            let excess = self.carried.len().saturating_sub(overlap);
            self.carried.drain(..excess);
        }
        found
    }
}

fn contains(bytes: &[u8], marker: &[u8]) -> bool {
    let mut from = 0;
    // The first byte is searched for alone: most of the stream is passed at the speed of memchr.
    while let Some(at) = bytes[from..].iter().position(|byte| *byte == marker[0]) {
        if bytes[from + at..].starts_with(marker) {
            return true;
        }
        from += at + 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_found_wherever_the_segments_are_cut() {
        let text = b"xxmarmarkerxx";
        for cut in 0..text.len() {
            for second in cut..text.len() {
                let mut search = MarkerSearch::default();
                let parts = [&text[..cut], &text[cut..second], &text[second..]];
                let found = parts.iter().any(|part| search.push(b"marker", part));
                assert!(found, "cut at {cut} and {second}");
            }
        }
        let mut search = MarkerSearch::default();
        assert!(
            ![&b"mark"[..], b"e", b"xr"]
                .iter()
                .any(|part| search.push(b"marker", part))
        );
    }

    #[test]
    fn a_capture_without_a_tunnel_proves_nothing() {
        assert!(CaptureReport::default().check_only_tls().is_err());
    }
}
