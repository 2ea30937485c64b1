//! Bytes to frames: where in the byte stream of the peer we are, whatever way it was cut into pieces.
//!
//! Owned by the connection. Payload of DATA is named, not copied. Of the other frames at most 8 bytes are
//! collected here; header blocks are collected when they do not arrive in one piece, up to the largest header list.
//! Specification: RFC 9113 sections 3.4, 4.1, 4.2, 6.10.

use std::time::Instant;

use super::super::error::Reason;
use super::super::frame::{FLAG_ACK, FLAG_PADDED, FLAG_PRIORITY, FrameHeader, HEADER_BYTES, Kind, PREFACE};
use super::super::{ConnectionError, Event, StreamId};
use super::{Connection, Role};
use crate::limits;

pub(super) struct Parser {
    pub(super) state: State,
    /// Bytes of a frame header, of a short control frame or of a settings entry that arrived so far.
    scratch: [u8; HEADER_BYTES],
    /// Header block that arrived so far, when not in one piece.
    pub(super) block: Vec<u8>,
    /// The stream and flags of the header block that CONTINUATION frames have to complete.
    pub(super) open_block: Option<OpenBlock>,
    pub(super) settings: SettingsFrame,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct OpenBlock {
    pub stream: u32,
    pub end_stream: bool,
    pub continuations: u32,
}

/// What the entries of one SETTINGS frame said, applied together at its end.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SettingsFrame {
    pub stream_window_bytes: Option<u32>,
    pub streams_max_seen: bool,
}

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) enum State {
    /// The client preface, of which `have` bytes matched.
    Preface {
        have: usize,
    },
    Header {
        have: usize,
    },
    /// The fixed bytes at the start of a payload (or all of it): `have` of `need` are in `scratch`.
    Prelude {
        header: FrameHeader,
        have: usize,
        need: usize,
    },
    /// Entries of SETTINGS; `left` bytes of the frame are not in `scratch` yet.
    Settings {
        have: usize,
        left: u32,
    },
    Data(Data),
    /// A fragment of a header block.
    Fragment {
        left: u32,
        padding: u32,
        end_headers: bool,
    },
    Skip {
        left: u32,
    },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Data {
    pub stream: u32,
    pub left: u32,
    pub padding: u32,
    pub end: bool,
}

/// What a piece of input led to.
pub(super) enum Step {
    Event(Event),
    Next,
    /// The input is used up.
    Starved,
}

impl Parser {
    pub(super) fn new(role: Role) -> Self {
        let state = match role {
            Role::Client => State::Header { have: 0 },
            Role::Server => State::Preface { have: 0 },
        };
        Self {
            state,
            scratch: [0; HEADER_BYTES],
            block: Vec::new(),
            open_block: None,
            settings: SettingsFrame::default(),
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.block.capacity()
    }

    /// Moves bytes of `rest` into `scratch` until `need` are there. Returns how many were moved.
    fn collect(&mut self, rest: &[u8], have: usize, need: usize) -> usize {
        let moved = (need - have).min(rest.len());
        self.scratch[have..have + moved].copy_from_slice(&rest[..moved]);
        moved
    }
}

impl Connection {
    /// Parses from `input[*at..]`, advances `*at` and returns the next event, or `None` when the input is used up.
    /// Ranges in events are of `input`. `now` drives the rate guards. After an error every further call returns
    /// the same error.
    pub fn receive(
        &mut self,
        input: &[u8],
        at: &mut usize,
        now: Instant,
    ) -> Result<Option<Event>, ConnectionError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.advance(input, at, now);
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    fn advance(
        &mut self,
        input: &[u8],
        at: &mut usize,
        now: Instant,
    ) -> Result<Option<Event>, ConnectionError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            let rest = &input[*at..];
            let (used, step) = match self.parser.state {
                State::Preface { have } => self.on_preface(rest, have)?,
                State::Header { have } => self.on_header(rest, have, now)?,
                State::Prelude { header, have, need } => self.on_prelude(rest, header, have, need, now)?,
                State::Settings { have, left } => self.on_settings(rest, have, left)?,
                State::Data(data) => self.on_data(rest, *at, data),
                State::Fragment {
                    left,
                    padding,
                    end_headers,
                } => self.on_fragment(rest, left, padding, end_headers, now)?,
                State::Skip { left } => self.on_skip(rest, left),
            };
            *at += used;
            match step {
                Step::Event(event) => return Ok(Some(event)),
                Step::Next => {}
                Step::Starved => return Ok(None),
            }
        }
    }

    /// RFC 9113 section 3.4.
    fn on_preface(&mut self, rest: &[u8], have: usize) -> Result<(usize, Step), ConnectionError> {
        let piece = &rest[..rest.len().min(PREFACE.len() - have)];
        if *piece != PREFACE[have..have + piece.len()] {
            return Err(Reason::Preface.into());
        }
        let have = have + piece.len();
        if have < PREFACE.len() {
            self.parser.state = State::Preface { have };
            return Ok((piece.len(), Step::Starved));
        }
        self.parser.state = State::Header { have: 0 };
        Ok((piece.len(), Step::Next))
    }

    fn on_header(
        &mut self,
        rest: &[u8],
        have: usize,
        now: Instant,
    ) -> Result<(usize, Step), ConnectionError> {
        let used = self.parser.collect(rest, have, HEADER_BYTES);
        if have + used < HEADER_BYTES {
            self.parser.state = State::Header { have: have + used };
            return Ok((used, Step::Starved));
        }
        let header = FrameHeader::decode(&self.parser.scratch);
        self.check_header(header)?;
        // Only what a peer asks for and does not read gets this far.
        if self.output.len() > limits::HTTP2_OUTPUT_BYTES {
            return Err(Reason::OutputQueue.into());
        }
        let need = prelude_bytes(header);
        if header.bytes < need {
            return Err(Reason::FrameLength {
                kind: header.kind,
                bytes: header.bytes,
            }
            .into());
        }
        if need > 0 {
            self.parser.state = State::Prelude {
                header,
                have: 0,
                need: need as usize,
            };
            return Ok((used, Step::Next));
        }
        Ok((used, self.begin(header, [0; 8], now)?))
    }

    fn on_prelude(
        &mut self,
        rest: &[u8],
        header: FrameHeader,
        have: usize,
        need: usize,
        now: Instant,
    ) -> Result<(usize, Step), ConnectionError> {
        let used = self.parser.collect(rest, have, need);
        if have + used < need {
            self.parser.state = State::Prelude {
                header,
                have: have + used,
                need,
            };
            return Ok((used, Step::Starved));
        }
        let mut prelude = [0; 8];
        prelude[..need].copy_from_slice(&self.parser.scratch[..need]);
        Ok((used, self.begin(header, prelude, now)?))
    }

    fn on_settings(&mut self, rest: &[u8], have: usize, left: u32) -> Result<(usize, Step), ConnectionError> {
        if left == 0 && have == 0 {
            self.parser.state = State::Header { have: 0 };
            return Ok((0, self.end_settings()?));
        }
        let used = self.parser.collect(rest, have, 6);
        let left = left - used as u32;
        if have + used < 6 {
            self.parser.state = State::Settings {
                have: have + used,
                left,
            };
            return Ok((used, Step::Starved));
        }
        let [i0, i1, v0, v1, v2, v3, ..] = self.parser.scratch;
        self.setting(u16::from_be_bytes([i0, i1]), u32::from_be_bytes([v0, v1, v2, v3]))?;
        self.parser.state = State::Settings { have: 0, left };
        Ok((used, Step::Next))
    }

    /// Payload first, then padding, then the end of the stream: END_STREAM counts when the frame is complete.
    fn on_data(&mut self, rest: &[u8], at: usize, data: Data) -> (usize, Step) {
        let Data {
            stream,
            left,
            padding,
            end,
        } = data;
        if left > 0 {
            let used = left.min(bytes_u32(rest));
            if used == 0 {
                return (0, Step::Starved);
            }
            let left = left - used;
            let complete = left == 0 && padding == 0;
            self.parser.state = if complete {
                State::Header { have: 0 }
            } else {
                State::Data(Data { left, ..data })
            };
            let used = used as usize;
            // A stream that was reset in the middle of a frame: the rest of it was credited then.
            let Some(key) = self.streams.get(stream).map(|entry| entry.key) else {
                return (used, Step::Next);
            };
            let end = complete && end;
            if end {
                self.streams.end_remote(stream);
            }
            let stream = StreamId(stream);
            return (
                used,
                Step::Event(Event::Data {
                    stream,
                    key,
                    range: at..at + used,
                    end,
                }),
            );
        }
        let used = padding.min(bytes_u32(rest));
        if used < padding {
            self.parser.state = State::Data(Data {
                padding: padding - used,
                ..data
            });
            return (used as usize, Step::Starved);
        }
        self.parser.state = State::Header { have: 0 };
        (
            used as usize,
            if end { self.end_remote(stream) } else { Step::Next },
        )
    }

    fn on_fragment(
        &mut self,
        rest: &[u8],
        left: u32,
        padding: u32,
        end_headers: bool,
        now: Instant,
    ) -> Result<(usize, Step), ConnectionError> {
        let used = left.min(bytes_u32(rest));
        let piece = &rest[..used as usize];
        let left = left - used;
        let complete = left == 0 && end_headers;
        self.parser.state = match left {
            0 => State::Skip { left: padding },
            left => State::Fragment {
                left,
                padding,
                end_headers,
            },
        };
        if complete && self.parser.block.is_empty() {
            return Ok((used as usize, self.end_block(piece, now)?));
        }
        self.parser.block.extend_from_slice(piece);
        if complete {
            let mut block = std::mem::take(&mut self.parser.block);
            let step = self.end_block(&block, now)?;
            block.clear();
            block.shrink_to(limits::HTTP2_BLOCK_BYTES_KEPT);
            self.parser.block = block;
            return Ok((used as usize, step));
        }
        Ok((used as usize, if left == 0 { Step::Next } else { Step::Starved }))
    }

    fn on_skip(&mut self, rest: &[u8], left: u32) -> (usize, Step) {
        let used = left.min(bytes_u32(rest));
        if used < left {
            self.parser.state = State::Skip { left: left - used };
            return (used as usize, Step::Starved);
        }
        self.parser.state = State::Header { have: 0 };
        (used as usize, Step::Next)
    }

    /// What every frame has to keep, whatever its kind.
    fn check_header(&self, header: FrameHeader) -> Result<(), ConnectionError> {
        let FrameHeader {
            bytes, kind, stream, ..
        } = header;
        // RFC 9113 section 4.2. Most of these may be stream errors; a peer that ignores the size is not one to
        // go on with.
        if bytes > self.ours.frame_bytes_max {
            return Err(Reason::FrameTooLarge {
                kind,
                bytes,
                bytes_max: self.ours.frame_bytes_max,
            }
            .into());
        }
        // Section 3.4.
        if !self.peer.received && (kind != Kind::Settings || header.has(FLAG_ACK)) {
            return Err(Reason::FirstFrame(kind).into());
        }
        // Section 6.10: nothing comes between the frames of a header block.
        match self.parser.open_block {
            Some(block) if kind != Kind::Continuation || stream != block.stream => {
                Err(Reason::HeaderBlockInterrupted {
                    kind,
                    stream,
                    block: block.stream,
                }
                .into())
            }
            None if kind == Kind::Continuation => Err(Reason::ContinuationUnexpected(stream).into()),
            Some(_) | None => Ok(()),
        }
    }
}

/// Bytes at the start of the payload which have to be known before the rest can be handled.
fn prelude_bytes(header: FrameHeader) -> u32 {
    let padding = u32::from(header.has(FLAG_PADDED));
    match header.kind {
        Kind::Data => padding,
        Kind::Headers => padding + if header.has(FLAG_PRIORITY) { 5 } else { 0 },
        Kind::RstStream | Kind::WindowUpdate => 4,
        Kind::Ping | Kind::GoAway => 8,
        Kind::Priority | Kind::Settings | Kind::PushPromise | Kind::Continuation | Kind::Unknown(_) => 0,
    }
}

fn bytes_u32(rest: &[u8]) -> u32 {
    u32::try_from(rest.len()).unwrap_or(u32::MAX)
}
