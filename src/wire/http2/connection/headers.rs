//! Header blocks to requests, responses and ends of streams.
//!
//! Owned by the connection. Invariant: every complete block goes through the decoder, also one for a stream that
//! is refused or gone, because its table has to stay in step with the peer (RFC 9113 section 4.3).
//! Specification: RFC 9113 sections 6.2, 6.10, 8.1, 8.5; RFC 7541.

use std::time::Instant;

use super::super::error::Reason;
use super::super::frame::{self, FLAG_END_HEADERS, FLAG_END_STREAM, FLAG_PRIORITY, FrameHeader};
use super::super::hpack::HpackError;
use super::super::stream::Answer;
use super::super::{ConnectionError, ErrorCode, Event, KEY_NONE, StreamId};
use super::frames::split_padding;
use super::receive::{OpenBlock, State, Step};
use super::{Connection, Role};
use crate::limits;
use crate::wire::hbone::{RequestFields, ResponseFields};

/// What a header block is, by the stream it came on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Request,
    Response,
    Trailers,
    /// A request beyond what we take.
    Refused,
    /// After END_STREAM.
    Late,
    /// Of a stream that is gone.
    Nothing,
}

impl Connection {
    /// RFC 9113 section 6.2.
    pub(super) fn begin_headers(&mut self, header: FrameHeader, pad: u8) -> Result<Step, ConnectionError> {
        let FrameHeader { kind, stream, .. } = header;
        if stream == 0 {
            return Err(Reason::FrameStream { kind, stream }.into());
        }
        // Section 5.1.1: clients use odd numbers; a server opens nothing here, as push is off.
        let may_open = self.role == Role::Server && stream % 2 == 1;
        if !may_open && !self.was_opened(stream) {
            return Err(Reason::IdleStream { kind, stream }.into());
        }
        let bytes = header.bytes - if header.has(FLAG_PRIORITY) { 5 } else { 0 };
        let (fragment, padding) = split_padding(header, bytes, pad)?;
        let end_stream = header.has(FLAG_END_STREAM);
        self.parser.open_block = Some(OpenBlock {
            stream,
            end_stream,
            continuations: 0,
        });
        self.begin_fragment(fragment, padding, header.has(FLAG_END_HEADERS))
    }

    /// Section 6.10; `check_header` has seen to the order. The count bounds what empty frames cost.
    pub(super) fn begin_continuation(&mut self, header: FrameHeader) -> Result<Step, ConnectionError> {
        let block = self
            .parser
            .open_block
            .as_mut()
            .expect("invariant: check_header lets it pass only then");
        block.continuations += 1;
        if block.continuations > limits::HTTP2_CONTINUATIONS {
            return Err(Reason::ContinuationFlood.into());
        }
        self.begin_fragment(header.bytes, 0, header.has(FLAG_END_HEADERS))
    }

    /// A block that is larger than the list it may hold would have to be collected to keep the decoder in step:
    /// it ends the connection instead.
    fn begin_fragment(
        &mut self,
        left: u32,
        padding: u32,
        end_headers: bool,
    ) -> Result<Step, ConnectionError> {
        let bytes_max = self.ours.header_list_bytes_max as usize;
        if self.parser.block.len() + left as usize > bytes_max {
            return Err(Reason::HeaderBlock { bytes_max }.into());
        }
        self.parser.state = State::Fragment {
            left,
            padding,
            end_headers,
        };
        Ok(Step::Next)
    }

    /// A header block is complete.
    pub(super) fn end_block(&mut self, block: &[u8], now: Instant) -> Result<Step, ConnectionError> {
        let OpenBlock {
            stream, end_stream, ..
        } = self
            .parser
            .open_block
            .take()
            .expect("invariant: a block that ends was begun");
        let meaning = self.meaning(stream);
        if self.role == Role::Server {
            self.number_peer = self.number_peer.max(stream);
        }
        match meaning {
            Meaning::Request => self.on_request(stream, block, end_stream, now),
            Meaning::Response => self.on_response(stream, block, end_stream, now),
            Meaning::Trailers => {
                self.skip_block(block, now)?;
                // Section 8.1: trailers end the stream. Section 8.5 has none on a tunnel; their fields are
                // ignored.
                match end_stream {
                    true => Ok(self.end_remote(stream)),
                    false => self.break_stream(stream, ErrorCode::ProtocolError, now),
                }
            }
            Meaning::Refused => {
                self.skip_block(block, now)?;
                self.guard.reset_unserved(now)?;
                if self.goaway.sent.is_none() {
                    // Section 5.1.2; "REFUSED_STREAM enables automatic retry".
                    frame::write_reset(&mut self.output, stream, ErrorCode::RefusedStream);
                }
                Ok(Step::Next)
            }
            Meaning::Late => {
                self.skip_block(block, now)?;
                // Section 5.1, half-closed (remote).
                self.break_stream(stream, ErrorCode::StreamClosed, now)
            }
            Meaning::Nothing => {
                self.skip_block(block, now)?;
                self.guard.idle_frame(now)?;
                Ok(Step::Next)
            }
        }
    }

    fn meaning(&self, stream: u32) -> Meaning {
        match (self.streams.get(stream), self.role) {
            (Some(entry), _) if !entry.phase.may_receive() => Meaning::Late,
            (Some(entry), Role::Client) if entry.answer == Answer::Awaited => Meaning::Response,
            (Some(_), _) => Meaning::Trailers,
            (None, Role::Client) => Meaning::Nothing,
            (None, Role::Server) if stream <= self.number_peer => Meaning::Nothing,
            (None, Role::Server) if self.takes_streams() => Meaning::Request,
            (None, Role::Server) => Meaning::Refused,
        }
    }

    fn takes_streams(&self) -> bool {
        let streams_max = self.ours.streams_max as usize;
        self.goaway.sent.is_none()
            && self.streams.open() < streams_max
            && self.streams.len() < streams_max * limits::HTTP2_STREAMS_KEPT_FACTOR
    }

    fn on_request(
        &mut self,
        stream: u32,
        block: &[u8],
        end: bool,
        now: Instant,
    ) -> Result<Step, ConnectionError> {
        let mut fields = RequestFields::new();
        if !self.decode(block, now, &mut |name, value| fields.push(name, value))? {
            frame::write_reset(&mut self.output, stream, ErrorCode::EnhanceYourCalm);
            return Ok(Step::Next);
        }
        match fields.finish() {
            Ok(request) => {
                self.insert(stream, KEY_NONE);
                if end {
                    self.streams.end_remote(stream);
                }
                let request = Box::new(request);
                Ok(Step::Event(Event::Connect {
                    stream: StreamId(stream),
                    request,
                    end,
                }))
            }
            // Section 8.1.1.
            Err(_) => self.break_stream(stream, ErrorCode::ProtocolError, now),
        }
    }

    fn on_response(
        &mut self,
        stream: u32,
        block: &[u8],
        end: bool,
        now: Instant,
    ) -> Result<Step, ConnectionError> {
        let mut fields = ResponseFields::new();
        if !self.decode(block, now, &mut |name, value| fields.push(name, value))? {
            return self.break_stream(stream, ErrorCode::EnhanceYourCalm, now);
        }
        let response = match fields.finish() {
            // Section 8.1: an informational response does not end a stream.
            Ok(response) if !(response.is_interim() && end) => response,
            Ok(_) | Err(_) => return self.break_stream(stream, ErrorCode::ProtocolError, now),
        };
        if response.is_interim() {
            self.guard.idle_frame(now)?;
            return Ok(Step::Next);
        }
        let entry = self
            .streams
            .get_mut(stream)
            .expect("invariant: a response has its stream");
        entry.answer = Answer::Given;
        let key = entry.key;
        if end {
            self.streams.end_remote(stream);
        }
        let response = Box::new(response);
        Ok(Step::Event(Event::Response {
            stream: StreamId(stream),
            key,
            response,
            end,
        }))
    }

    fn skip_block(&mut self, block: &[u8], now: Instant) -> Result<(), ConnectionError> {
        self.decode(block, now, &mut |_, _| {}).map(|_| ())
    }

    /// False when the list is too large for us, but the decoder is in step.
    fn decode(
        &mut self,
        block: &[u8],
        now: Instant,
        field: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<bool, ConnectionError> {
        let list_bytes_max = self.ours.header_list_bytes_max as usize;
        match self.decoder.decode(block, list_bytes_max, field) {
            Ok(()) => Ok(true),
            Err(error) if error.spares_connection() => {
                self.guard.header_list_too_large(now)?;
                Ok(false)
            }
            Err(error @ HpackError::ExpansionTooLarge { .. }) => Err(Reason::HeaderExpansion(error).into()),
            Err(error) => Err(Reason::Compression(error).into()),
        }
    }
}
