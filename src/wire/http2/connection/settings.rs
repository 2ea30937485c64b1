//! SETTINGS of the peer, and what it acknowledges of ours.
//!
//! Owned by the connection. Specification: RFC 9113 sections 6.5 and 6.9.2.

use std::time::Instant;

use super::super::error::Reason;
use super::super::frame::{
    self, FLAG_ACK, FrameHeader, SETTING_ENABLE_PUSH, SETTING_HEADER_TABLE_SIZE, SETTING_INITIAL_WINDOW_SIZE,
    SETTING_MAX_CONCURRENT_STREAMS, SETTING_MAX_FRAME_SIZE,
};
use super::super::{ConnectionError, Event, StreamId};
use super::frames::{check_length, check_stream_zero};
use super::receive::{SettingsFrame, State, Step};
use super::{Connection, Role};
use crate::limits;

impl Connection {
    /// Section 6.5.
    pub(super) fn begin_settings(
        &mut self,
        header: FrameHeader,
        now: Instant,
    ) -> Result<Step, ConnectionError> {
        check_stream_zero(header)?;
        if header.has(FLAG_ACK) {
            check_length(header, 0)?;
            return self.on_settings_ack();
        }
        if !header.bytes.is_multiple_of(6) {
            return Err(Reason::FrameLength {
                kind: header.kind,
                bytes: header.bytes,
            }
            .into());
        }
        self.guard.settings(now)?;
        if header.bytes / 6 > limits::HTTP2_SETTINGS.burst {
            return Err(Reason::SettingsFlood.into());
        }
        self.parser.settings = SettingsFrame::default();
        self.parser.state = State::Settings {
            have: 0,
            left: header.bytes,
        };
        Ok(Step::Next)
    }

    /// Sections 6.5.3 and 6.9.2: from here on the peer goes by our stream window, also on streams that it used
    /// with the larger one that it started with.
    fn on_settings_ack(&mut self) -> Result<Step, ConnectionError> {
        if self.ours_acknowledged {
            return Err(Reason::SettingsAck.into());
        }
        self.ours_acknowledged = true;
        let window = i64::from(self.ours.stream_window_bytes);
        let delta = window - window.max(i64::from(frame::WINDOW_BYTES_DEFAULT));
        if delta < 0 {
            for (_, stream) in self.streams.iter_mut() {
                stream.receive.shift(delta);
            }
        }
        Ok(Step::Next)
    }

    /// One entry. Section 6.5.2: unknown ones are ignored. The stream window is applied at the end of the frame,
    /// so that a frame full of changes costs one visit to the streams.
    pub(super) fn setting(&mut self, id: u16, value: u32) -> Result<(), ConnectionError> {
        let invalid = || Err(Reason::SettingValue { id, value }.into());
        match id {
            // RFC 7541 section 4.2: a table that gets smaller has to be confirmed by our encoder, although it
            // does not use it.
            SETTING_HEADER_TABLE_SIZE
                if (value as usize) < limits::HTTP2_HEADER_TABLE_BYTES && !self.table_update_sent =>
            {
                self.table_update_due = true;
            }
            SETTING_ENABLE_PUSH if value > u32::from(self.role == Role::Server) => return invalid(),
            SETTING_MAX_CONCURRENT_STREAMS => {
                self.peer.streams_max = value;
                self.parser.settings.streams_max_seen = true;
            }
            SETTING_INITIAL_WINDOW_SIZE => {
                if value > frame::WINDOW_BYTES_MAX {
                    return invalid();
                }
                self.parser.settings.stream_window_bytes = Some(value);
            }
            SETTING_MAX_FRAME_SIZE => {
                if !(frame::FRAME_BYTES_MIN..=frame::FRAME_BYTES_MAX).contains(&value) {
                    return invalid();
                }
                self.peer.frame_bytes_max = value;
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn end_settings(&mut self) -> Result<Step, ConnectionError> {
        let frame = self.parser.settings;
        if !self.peer.received {
            self.peer.received = true;
            if !frame.streams_max_seen {
                // Section 6.5.2: "Initially, there is no limit to this value."
                self.peer.streams_max = u32::MAX;
            }
        }
        frame::write_settings_ack(&mut self.output);
        self.events.push_back(Event::SettingsReceived);
        if let Some(bytes) = frame.stream_window_bytes {
            self.shift_windows(bytes)?;
        }
        Ok(Step::Next)
    }

    /// Section 6.9.2: a change of the initial window moves the windows of all streams, possibly below zero.
    fn shift_windows(&mut self, bytes: u32) -> Result<(), ConnectionError> {
        let delta = i64::from(bytes) - i64::from(self.peer.stream_window_bytes);
        self.peer.stream_window_bytes = bytes;
        let connection_open = self.send.available() > 0;
        let mut opened = Vec::new();
        for (number, stream) in self.streams.iter_mut() {
            let opens = stream
                .send
                .shift(delta)
                .map_err(|_| Reason::WindowOverflow(number))?;
            if opens && connection_open && stream.phase.may_send() {
                opened.push((StreamId(number), stream.key));
            }
        }
        // Oldest first: the order must not depend on the table.
        opened.sort_unstable();
        self.events.extend(
            opened
                .into_iter()
                .map(|(stream, key)| Event::Writable { stream, key }),
        );
        Ok(())
    }
}
