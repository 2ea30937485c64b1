//! From captured frames back to the byte streams of TCP connections.
//!
//! Handles what a veth shows: segments of up to 64 KiB, retransmissions, overlaps and reordering. Sequence
//! numbers decide; checksums are not looked at (they are not filled in on a veth).

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of one direction that may wait for a missing segment.
const PENDING_BYTES_MAX: usize = 64 << 20;

/// One direction of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Direction {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

impl Direction {
    /// At either end.
    pub fn has_port(&self, port: u16) -> bool {
        self.source.port() == port || self.destination.port() == port
    }
}

/// A TCP segment as found in a frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    pub direction: Direction,
    pub sequence: u32,
    pub synchronise: bool,
    pub payload: &'a [u8],
}

/// The TCP segment in an Ethernet frame, or `None` when it carries something else.
pub fn parse_frame(frame: &[u8]) -> Option<Segment<'_>> {
    let ethertype = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
    let packet = frame.get(14..)?;
    let (source, destination, segment) = match ethertype {
        0x0800 => parse_v4(packet)?,
        0x86dd => parse_v6(packet)?,
        _ => return None,
    };
    let header_bytes = usize::from(segment.get(12)? >> 4) * 4;
    let port = |at: usize| Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?]));
    Some(Segment {
        direction: Direction {
            source: SocketAddr::new(source, port(0)?),
            destination: SocketAddr::new(destination, port(2)?),
        },
        sequence: u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?),
        synchronise: segment.get(13)? & 0x02 != 0,
        payload: segment.get(header_bytes..)?,
    })
}

fn parse_v4(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let header_bytes = usize::from(packet.first()? & 0x0f) * 4;
    if *packet.get(9)? != libc::IPPROTO_TCP as u8 {
        return None;
    }
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets).into())
    };
    Some((address(12)?, address(16)?, packet.get(header_bytes..total)?))
}

/// Without extension headers: hosts do not add any to TCP unless asked.
fn parse_v6(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    if *packet.get(6)? != libc::IPPROTO_TCP as u8 {
        return None;
    }
    let payload = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(octets).into())
    };
    Some((address(8)?, address(24)?, packet.get(40..40 + payload)?))
}

/// Where the stream of one direction stands.
#[derive(Debug, Default)]
struct Stream {
    /// Sequence number of the next byte; `None` until the SYN was seen.
    next: Option<u32>,
    pending: BTreeMap<u32, Vec<u8>>,
    pending_bytes: usize,
    overflowed: bool,
}

/// Puts segments in order, direction by direction.
#[derive(Debug, Default)]
pub struct Reassembler {
    streams: HashMap<Direction, Stream>,
    /// Directions that carried bytes although their beginning was not captured.
    pub headless: std::collections::BTreeSet<Direction>,
}

impl Reassembler {
    /// Takes a segment and calls `deliver` with the bytes that are in order now.
    pub fn push(&mut self, segment: &Segment<'_>, mut deliver: impl FnMut(Direction, &[u8])) {
        let stream = self.streams.entry(segment.direction).or_default();
        if segment.synchronise {
            // A reused port begins a new stream; a repeated SYN of the same stream changes nothing.
            let next = segment.sequence.wrapping_add(1);
            if stream.next.is_none_or(|old| old.wrapping_sub(next) as i32 != 0) && stream.pending.is_empty() {
                stream.next = Some(next);
            }
            return;
        }
        if segment.payload.is_empty() {
            return;
        }
        let Some(mut next) = stream.next else {
            self.headless.insert(segment.direction);
            return;
        };
        let ahead = segment.sequence.wrapping_sub(next) as i32;
        if ahead > 0 {
            stream.keep(segment);
            return;
        }
        let known = ahead.unsigned_abs() as usize;
        if known >= segment.payload.len() {
            return;
        }
        deliver(segment.direction, &segment.payload[known..]);
        next = next.wrapping_add((segment.payload.len() - known) as u32);
        stream.next = Some(stream.drain(next, |bytes| deliver(segment.direction, bytes)));
    }

    /// Directions in which bytes are missing.
    pub fn gaps(&self) -> Vec<Direction> {
        let broken = self
            .streams
            .iter()
            .filter(|(_, stream)| !stream.pending.is_empty() || stream.overflowed);
        broken.map(|(direction, _)| *direction).collect()
    }
}

impl Stream {
    fn keep(&mut self, segment: &Segment<'_>) {
        if self.pending_bytes + segment.payload.len() > PENDING_BYTES_MAX {
            self.overflowed = true;
            return;
        }
        self.pending_bytes += segment.payload.len();
        if let Some(old) = self.pending.insert(segment.sequence, segment.payload.to_vec()) {
            self.pending_bytes -= old.len();
            if old.len() > segment.payload.len() {
                self.pending_bytes += old.len() - segment.payload.len();
                self.pending.insert(segment.sequence, old);
            }
        }
    }

    /// Delivers what waited and is in order now; returns the next sequence number.
    fn drain(&mut self, mut next: u32, mut deliver: impl FnMut(&[u8])) -> u32 {
        loop {
            // The map is ordered by raw number, which is wrong across the wrap: so look at each distance.
            let ready = self
                .pending
                .keys()
                .copied()
                .find(|start| start.wrapping_sub(next) as i32 <= 0);
            let Some(start) = ready else { return next };
            let bytes = self
                .pending
                .remove(&start)
                .expect("invariant: the key was just found");
            self.pending_bytes -= bytes.len();
            let known = next.wrapping_sub(start) as usize;
            if known < bytes.len() {
                deliver(&bytes[known..]);
                next = next.wrapping_add((bytes.len() - known) as u32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(sequence: u32, synchronise: bool, payload: &[u8]) -> Segment<'_> {
        let source = SocketAddr::from(([198, 18, 1, 10], 4000));
        let destination = SocketAddr::from(([198, 18, 2, 10], 15008));
        Segment {
            direction: Direction { source, destination },
            sequence,
            synchronise,
            payload,
        }
    }

    fn reassemble(segments: &[(u32, &[u8])]) -> (String, Reassembler) {
        let mut reassembler = Reassembler::default();
        let mut text = Vec::new();
        reassembler.push(&segment(u32::MAX - 3, true, b""), |_, _| ());
        for (offset, payload) in segments {
            let segment = segment((u32::MAX - 2).wrapping_add(*offset), false, payload);
            reassembler.push(&segment, |_, bytes| text.extend_from_slice(bytes));
        }
        (String::from_utf8(text).expect("text"), reassembler)
    }

    #[test]
    fn order_repetition_and_overlap_do_not_matter_even_across_the_wrap() {
        let cases: [&[(u32, &[u8])]; 4] = [
            &[(0, b"abcd"), (4, b"efgh")],
            &[(4, b"efgh"), (0, b"abcd")],
            &[(0, b"abcd"), (0, b"abcd"), (2, b"cdef"), (6, b"gh")],
            &[(6, b"gh"), (2, b"cdef"), (6, b"gh"), (0, b"ab")],
        ];
        for case in cases {
            let (text, reassembler) = reassemble(case);
            assert_eq!(text, "abcdefgh", "{case:?}");
            assert!(reassembler.gaps().is_empty());
        }
    }

    #[test]
    fn missing_bytes_are_reported() {
        let (text, reassembler) = reassemble(&[(0, b"ab"), (4, b"ef")]);
        assert_eq!(text, "ab");
        assert_eq!(reassembler.gaps().len(), 1);
    }

    #[test]
    fn bytes_without_a_beginning_are_reported() {
        let mut reassembler = Reassembler::default();
        reassembler.push(&segment(5, false, b"x"), |_, _| {
            panic!("nothing can be delivered")
        });
        assert_eq!(reassembler.headless.len(), 1);
    }

    #[test]
    fn frames_of_both_families_are_parsed() {
        let mut tcp = vec![
            0x0f, 0xa0, 0x3a, 0xa0, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, 0x18, 0, 0, 0, 0, 0, 0,
        ];
        tcp.extend(b"hi");
        let mut v4 = vec![0; 12];
        v4.extend([
            0x08, 0x00, 0x45, 0, 0, 42, 0, 0, 0, 0, 64, 6, 0, 0, 198, 18, 1, 10, 198, 18, 2, 10,
        ]);
        v4.extend(&tcp);
        // Ethernet pads short frames: bytes after the packet's own length are none of TCP's.
        v4.extend([0; 8]);
        let parsed = parse_frame(&v4).expect("a segment");
        assert_eq!(parsed, segment(9, false, b"hi"));

        let mut v6 = vec![0; 12];
        v6.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 22, 6, 64]);
        v6.extend(Ipv6Addr::LOCALHOST.octets());
        v6.extend(Ipv6Addr::LOCALHOST.octets());
        v6.extend(&tcp);
        let parsed = parse_frame(&v6).expect("a segment");
        assert_eq!(
            (parsed.direction.destination.port(), parsed.payload),
            (15008, &b"hi"[..])
        );
        assert_eq!(parse_frame(&v6[..50]), None);
    }
}
