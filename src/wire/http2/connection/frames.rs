//! Frames to events: flow control, resets and everything else that is neither settings
//! nor a header block.
//!
//! Owned by the connection. Specification: RFC 9113 section 6, with the rule beside each check.

use std::time::Instant;

use super::super::error::Reason;
use super::super::frame::{self, FLAG_ACK, FLAG_END_STREAM, FLAG_PADDED, FrameHeader, Kind};
use super::super::stream::{Answer, Phase};
use super::super::{ConnectionError, ErrorCode, Event, StreamId};
use super::receive::{Data, State, Step};
use super::{Connection, PING_AFTER_GOAWAY, Role};
use crate::limits;

impl Connection {
    /// A frame whose first bytes are known: `prelude` holds them. Sets the state for the rest of its payload.
    pub(super) fn begin(
        &mut self,
        header: FrameHeader,
        prelude: [u8; 8],
        now: Instant,
    ) -> Result<Step, ConnectionError> {
        let [p0, p1, p2, p3, p4, p5, p6, p7] = prelude;
        let word = u32::from_be_bytes([p0, p1, p2, p3]);
        self.parser.state = State::Skip { left: 0 };
        match header.kind {
            Kind::Data => self.begin_data(header, p0, now),
            Kind::Headers => self.begin_headers(header, p0),
            Kind::Continuation => self.begin_continuation(header),
            Kind::Settings => self.begin_settings(header, now),
            Kind::RstStream => {
                check_length(header, 4)?;
                self.on_reset(header, ErrorCode::from(word), now)
            }
            Kind::WindowUpdate => {
                check_length(header, 4)?;
                self.on_window_update(header, word & frame::WINDOW_BYTES_MAX, now)
            }
            Kind::Ping => {
                check_length(header, 8)?;
                self.on_ping(header, prelude, now)
            }
            Kind::GoAway => {
                self.parser.state = State::Skip {
                    left: header.bytes - 8,
                };
                let code = ErrorCode::from(u32::from_be_bytes([p4, p5, p6, p7]));
                self.on_goaway(header, word & frame::STREAM_MAX, code, now)
            }
            Kind::Priority => self.on_priority(header, now),
            // Section 8.4: we are a server, or a client that said ENABLE_PUSH 0.
            Kind::PushPromise => Err(Reason::Push.into()),
            // Section 5.5.
            Kind::Unknown(_) => {
                self.parser.state = State::Skip { left: header.bytes };
                self.guard.idle_frame(now)?;
                Ok(Step::Next)
            }
        }
    }

    /// Section 6.1.
    fn begin_data(&mut self, header: FrameHeader, pad: u8, now: Instant) -> Result<Step, ConnectionError> {
        let FrameHeader { bytes, stream, .. } = header;
        self.check_opened(header)?;
        let (payload, padding) = split_padding(header, bytes, pad)?;
        // Section 6.9.1: the whole frame counts, on the connection also when the stream is gone.
        if !self.receive.allows(bytes) {
            return Err(Reason::ConnectionWindow {
                stream,
                bytes,
                window: self.receive.granted(),
            }
            .into());
        }
        let end = header.has(FLAG_END_STREAM);
        let fault = match self.streams.get(stream) {
            // Section 5.1, closed: what was under way when we reset the stream is dropped, and credited.
            None => return self.drop_data(bytes, payload + padding, now),
            Some(entry) if !entry.phase.may_receive() => Some(ErrorCode::StreamClosed),
            // Section 8.1: content before the final response.
            Some(entry) if self.role == Role::Client && entry.answer == Answer::Awaited => {
                Some(ErrorCode::ProtocolError)
            }
            Some(entry) if !entry.receive.allows(bytes) => {
                return Err(Reason::StreamWindow {
                    stream,
                    bytes,
                    window: entry.receive.granted(),
                }
                .into());
            }
            Some(_) => None,
        };
        if let Some(code) = fault {
            self.drop_data(bytes, payload + padding, now)?;
            return self.break_stream(stream, code, now);
        }
        if payload == 0 && !end {
            self.guard.data_empty(now)?;
        }
        let entry = self.streams.get_mut(stream).expect("invariant: looked up above");
        if payload > 0 && payload < limits::HTTP2_DATA_TINY_BYTES && entry.receive.unread() > 0 {
            entry.tiny_held += 1;
            self.guard.hold_tiny()?;
        }
        entry.receive.arrive(bytes, payload);
        self.receive.arrive(bytes, payload);
        if payload < bytes && !end {
            // Padding has no reader: nobody else would give it back.
            self.credit_stream(stream);
        }
        self.credit_connection();
        self.parser.state = State::Data(Data {
            stream,
            left: payload,
            padding,
            end,
        });
        Ok(Step::Next)
    }

    fn drop_data(&mut self, bytes: u32, left: u32, now: Instant) -> Result<Step, ConnectionError> {
        if bytes < limits::HTTP2_DATA_TINY_BYTES {
            self.guard.idle_frame(now)?;
        }
        self.receive.arrive(bytes, 0);
        self.credit_connection();
        self.parser.state = State::Skip { left };
        Ok(Step::Next)
    }

    /// The peer ended its direction outside of a payload.
    pub(super) fn end_remote(&mut self, stream: u32) -> Step {
        let Some(key) = self.streams.get(stream).map(|entry| entry.key) else {
            return Step::Next;
        };
        self.streams.end_remote(stream);
        Step::Event(Event::End {
            stream: StreamId(stream),
            key,
        })
    }

    /// Section 5.4.2: the peer broke a rule on one stream.
    pub(super) fn break_stream(
        &mut self,
        stream: u32,
        code: ErrorCode,
        now: Instant,
    ) -> Result<Step, ConnectionError> {
        self.guard.reset_provoked(now)?;
        frame::write_reset(&mut self.output, stream, code);
        Ok(self.report_reset(stream, code))
    }

    fn report_reset(&mut self, stream: u32, code: ErrorCode) -> Step {
        match self.forget(stream) {
            Some(entry) => Step::Event(Event::Reset {
                stream: StreamId(stream),
                key: entry.key,
                code,
            }),
            None => Step::Next,
        }
    }

    /// Section 6.4.
    fn on_reset(
        &mut self,
        header: FrameHeader,
        code: ErrorCode,
        now: Instant,
    ) -> Result<Step, ConnectionError> {
        self.check_opened(header)?;
        match self.streams.get(header.stream) {
            Some(entry) if entry.phase != Phase::Draining => {
                if self.role == Role::Server && entry.answer == Answer::Awaited {
                    self.guard.reset_unserved(now)?;
                }
                Ok(self.report_reset(header.stream, code))
            }
            // Section 5.1, closed: may cross our own RST_STREAM or END_STREAM.
            Some(_) | None => {
                self.guard.idle_frame(now)?;
                Ok(Step::Next)
            }
        }
    }

    /// Section 6.9.
    fn on_window_update(
        &mut self,
        header: FrameHeader,
        bytes: u32,
        now: Instant,
    ) -> Result<Step, ConnectionError> {
        self.guard.window_update(now)?;
        if header.stream == 0 {
            if bytes == 0 {
                return Err(Reason::WindowUpdateZero.into());
            }
            // Section 6.9.1.
            let opened = self
                .send
                .shift(i64::from(bytes))
                .map_err(|_| Reason::WindowOverflow(0))?;
            return Ok(if opened {
                Step::Event(Event::ConnectionWritable)
            } else {
                Step::Next
            });
        }
        self.check_opened(header)?;
        // The peer may not know yet that the stream is closed (section 5.1).
        let Some(entry) = self.streams.get_mut(header.stream) else {
            return Ok(Step::Next);
        };
        if bytes == 0 {
            return self.break_stream(header.stream, ErrorCode::ProtocolError, now);
        }
        let opened = match entry.send.shift(i64::from(bytes)) {
            Ok(opened) => opened,
            Err(_) => return self.break_stream(header.stream, ErrorCode::FlowControlError, now),
        };
        if opened && entry.phase.may_send() && self.send.available() > 0 {
            let stream = StreamId(header.stream);
            return Ok(Step::Event(Event::Writable {
                stream,
                key: entry.key,
            }));
        }
        Ok(Step::Next)
    }

    /// Section 6.7.
    fn on_ping(
        &mut self,
        header: FrameHeader,
        payload: [u8; 8],
        now: Instant,
    ) -> Result<Step, ConnectionError> {
        check_stream_zero(header)?;
        if !header.has(FLAG_ACK) {
            self.guard.ping(now)?;
            frame::write_ping(&mut self.output, true, &payload);
            return Ok(Step::Next);
        }
        if self.pings_unanswered == 0 {
            self.guard.idle_frame(now)?;
            return Ok(Step::Next);
        }
        self.pings_unanswered -= 1;
        if self.is_announcing() && payload == PING_AFTER_GOAWAY {
            self.close(ErrorCode::NoError, "");
            return Ok(Step::Next);
        }
        Ok(Step::Event(Event::Pong { payload }))
    }

    /// Section 6.8.
    fn on_goaway(
        &mut self,
        header: FrameHeader,
        last_stream: u32,
        code: ErrorCode,
        now: Instant,
    ) -> Result<Step, ConnectionError> {
        check_stream_zero(header)?;
        if self.goaway.received.is_some() {
            self.guard.idle_frame(now)?;
        }
        // A later frame may only lower it; one that raises it cannot revive what was reported as refused.
        let last = self
            .goaway
            .received
            .map_or(last_stream, |known| known.min(last_stream));
        self.goaway.received = Some(last);
        if self.role == Role::Client {
            for number in self.streams.numbers_above(last) {
                if let Step::Event(event) = self.report_reset(number, ErrorCode::RefusedStream) {
                    self.events.push_back(event);
                }
            }
        }
        self.events.push_back(Event::GoAway {
            last_stream: last,
            code,
        });
        Ok(Step::Next)
    }

    /// Section 6.3: deprecated and without meaning here, but its form is checked.
    fn on_priority(&mut self, header: FrameHeader, now: Instant) -> Result<Step, ConnectionError> {
        self.parser.state = State::Skip { left: header.bytes };
        if header.stream == 0 {
            return Err(Reason::FrameStream {
                kind: header.kind,
                stream: 0,
            }
            .into());
        }
        self.guard.idle_frame(now)?;
        if header.bytes != 5 {
            // A stream error also for a stream that is closed or idle; the connection error is the stricter and
            // allowed reading (section 5.4.1), and nobody's bytes depend on it.
            return Err(Reason::FrameLength {
                kind: header.kind,
                bytes: header.bytes,
            }
            .into());
        }
        Ok(Step::Next)
    }

    /// Section 5.1: nothing but HEADERS and PRIORITY on a stream that was never opened, nothing of this kind on
    /// stream 0.
    pub(super) fn check_opened(&self, header: FrameHeader) -> Result<(), ConnectionError> {
        let FrameHeader { kind, stream, .. } = header;
        if stream == 0 {
            return Err(Reason::FrameStream { kind, stream }.into());
        }
        if self.was_opened(stream) {
            Ok(())
        } else {
            Err(Reason::IdleStream { kind, stream }.into())
        }
    }

    /// Only clients open streams here, with odd numbers (section 5.1.1).
    pub(super) fn was_opened(&self, stream: u32) -> bool {
        let bound = match self.role {
            Role::Client => self.number_next,
            Role::Server => self.number_peer + 1,
        };
        stream % 2 == 1 && stream < bound
    }
}

/// Payload and padding of a frame of which `bytes` are left with the pad length among them (section 6.1).
pub(super) fn split_padding(header: FrameHeader, bytes: u32, pad: u8) -> Result<(u32, u32), ConnectionError> {
    if !header.has(FLAG_PADDED) {
        return Ok((bytes, 0));
    }
    let padding = u32::from(pad);
    match bytes.checked_sub(1 + padding) {
        Some(payload) => Ok((payload, padding)),
        None => Err(Reason::Padding(header.kind).into()),
    }
}

pub(super) fn check_length(header: FrameHeader, bytes: u32) -> Result<(), ConnectionError> {
    if header.bytes == bytes {
        return Ok(());
    }
    Err(Reason::FrameLength {
        kind: header.kind,
        bytes: header.bytes,
    }
    .into())
}

pub(super) fn check_stream_zero(header: FrameHeader) -> Result<(), ConnectionError> {
    if header.stream == 0 {
        return Ok(());
    }
    Err(Reason::FrameStream {
        kind: header.kind,
        stream: header.stream,
    }
    .into())
}
