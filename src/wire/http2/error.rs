//! How an HTTP/2 connection or stream fails: codes on the wire, and the reasons that a log line shows.
//!
//! Plain values. Every reason names what the peer did; the code that goes into GOAWAY follows from the reason.
//! Specification: RFC 9113 sections 5.4 and 7.

use std::fmt;

use super::frame::Kind;
use super::hpack::HpackError;
use crate::limits;

/// RFC 9113 section 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    NoError,
    ProtocolError,
    InternalError,
    FlowControlError,
    SettingsTimeout,
    StreamClosed,
    FrameSizeError,
    RefusedStream,
    Cancel,
    CompressionError,
    ConnectError,
    EnhanceYourCalm,
    InadequateSecurity,
    Http11Required,
    /// Section 7: "unknown or unsupported error codes MUST NOT trigger any special behavior".
    Unknown(u32),
}

impl ErrorCode {
    pub fn get(self) -> u32 {
        match self {
            Self::NoError => 0x0,
            Self::ProtocolError => 0x1,
            Self::InternalError => 0x2,
            Self::FlowControlError => 0x3,
            Self::SettingsTimeout => 0x4,
            Self::StreamClosed => 0x5,
            Self::FrameSizeError => 0x6,
            Self::RefusedStream => 0x7,
            Self::Cancel => 0x8,
            Self::CompressionError => 0x9,
            Self::ConnectError => 0xa,
            Self::EnhanceYourCalm => 0xb,
            Self::InadequateSecurity => 0xc,
            Self::Http11Required => 0xd,
            Self::Unknown(code) => code,
        }
    }
}

impl From<u32> for ErrorCode {
    fn from(code: u32) -> Self {
        match code {
            0x0 => Self::NoError,
            0x1 => Self::ProtocolError,
            0x2 => Self::InternalError,
            0x3 => Self::FlowControlError,
            0x4 => Self::SettingsTimeout,
            0x5 => Self::StreamClosed,
            0x6 => Self::FrameSizeError,
            0x7 => Self::RefusedStream,
            0x8 => Self::Cancel,
            0x9 => Self::CompressionError,
            0xa => Self::ConnectError,
            0xb => Self::EnhanceYourCalm,
            0xc => Self::InadequateSecurity,
            0xd => Self::Http11Required,
            code => Self::Unknown(code),
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoError => "NO_ERROR",
            Self::ProtocolError => "PROTOCOL_ERROR",
            Self::InternalError => "INTERNAL_ERROR",
            Self::FlowControlError => "FLOW_CONTROL_ERROR",
            Self::SettingsTimeout => "SETTINGS_TIMEOUT",
            Self::StreamClosed => "STREAM_CLOSED",
            Self::FrameSizeError => "FRAME_SIZE_ERROR",
            Self::RefusedStream => "REFUSED_STREAM",
            Self::Cancel => "CANCEL",
            Self::CompressionError => "COMPRESSION_ERROR",
            Self::ConnectError => "CONNECT_ERROR",
            Self::EnhanceYourCalm => "ENHANCE_YOUR_CALM",
            Self::InadequateSecurity => "INADEQUATE_SECURITY",
            Self::Http11Required => "HTTP_1_1_REQUIRED",
            Self::Unknown(code) => return write!(f, "error code {code:#x}"),
        })
    }
}

/// The peer broke the connection. The session sends `Connection::close(code, reason)` and closes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ConnectionError {
    pub code: ErrorCode,
    pub reason: Reason,
}

impl From<Reason> for ConnectionError {
    fn from(reason: Reason) -> Self {
        Self {
            code: reason.code(),
            reason,
        }
    }
}

/// What the peer did, in the words of a log line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("the peer does not speak HTTP/2: its first bytes are not the client preface")]
    Preface,
    #[error("the first frame is {0}, it has to be SETTINGS")]
    FirstFrame(Kind),
    #[error("{kind} frame of {bytes} bytes, at most {bytes_max} were offered")]
    FrameTooLarge { kind: Kind, bytes: u32, bytes_max: u32 },
    #[error("{kind} frame of {bytes} bytes, which is no valid length for it")]
    FrameLength { kind: Kind, bytes: u32 },
    #[error("{kind} frame on stream {stream}, where it is not allowed")]
    FrameStream { kind: Kind, stream: u32 },
    #[error("{kind} frame on stream {stream}, which was never opened")]
    IdleStream { kind: Kind, stream: u32 },
    #[error("{0} frame with more padding than payload")]
    Padding(Kind),
    #[error("PUSH_PROMISE, although push is off")]
    Push,
    #[error("{kind} frame on stream {stream} inside the header block of stream {block}")]
    HeaderBlockInterrupted { kind: Kind, stream: u32, block: u32 },
    #[error("CONTINUATION frame on stream {0} without a header block")]
    ContinuationUnexpected(u32),
    #[error("setting {id:#x} with the invalid value {value}")]
    SettingValue { id: u16, value: u32 },
    #[error("acknowledgement of SETTINGS that were not sent")]
    SettingsAck,
    #[error("WINDOW_UPDATE of 0 bytes on the connection")]
    WindowUpdateZero,
    #[error("window of stream {0} (0: connection) grown beyond 2^31-1 bytes")]
    WindowOverflow(u32),
    #[error("frame beyond the window: {bytes} bytes on stream {stream}, the stream may send {window}")]
    StreamWindow { stream: u32, bytes: u32, window: i64 },
    #[error("frame beyond the window: {bytes} bytes on stream {stream}, the connection may send {window}")]
    ConnectionWindow { stream: u32, bytes: u32, window: i64 },
    #[error("invalid header block: {0}")]
    Compression(HpackError),
    #[error("header list too large: {0}")]
    HeaderExpansion(HpackError),
    #[error("header block too large: more than {bytes_max} bytes")]
    HeaderBlock { bytes_max: usize },
    #[error("header list too large: more than {} in short order", limits::HTTP2_HEADER_LISTS_TOO_LARGE.burst)]
    HeaderList,
    #[error(
        "CONTINUATION flood: more than {} frames in one header block",
        limits::HTTP2_CONTINUATIONS
    )]
    ContinuationFlood,
    #[error(
        "rapid reset: streams given up before they were answered, more than {} within 1 s",
        limits::HTTP2_RESETS_UNSERVED.burst
    )]
    RapidReset,
    #[error(
        "rapid reset: streams broken by protocol errors, more than {} within 1 s",
        limits::HTTP2_RESETS_UNSERVED.burst / limits::HTTP2_RESET_PROVOKED_WEIGHT
    )]
    ProvokedReset,
    #[error("SETTINGS flood: more than {} frames or entries", limits::HTTP2_SETTINGS.burst)]
    SettingsFlood,
    #[error("PING flood: more than {} per second", limits::HTTP2_PINGS.per_second)]
    PingFlood,
    #[error("empty DATA flood: more than {} per second", limits::HTTP2_DATA_EMPTY.per_second)]
    DataEmptyFlood,
    #[error("tiny DATA flood: {} frames wait for readers", limits::HTTP2_DATA_TINY_HELD)]
    DataTinyFlood,
    #[error("WINDOW_UPDATE flood: more than {} per second", limits::HTTP2_WINDOW_UPDATES.per_second)]
    WindowUpdateFlood,
    #[error("flood of frames without effect: more than {} per second", limits::HTTP2_FRAMES_IDLE.per_second)]
    IdleFrameFlood,
    #[error(
        "the peer asks but does not read: more than {} bytes of answers wait",
        limits::HTTP2_OUTPUT_BYTES
    )]
    OutputQueue,
}

impl Reason {
    /// The code for GOAWAY.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Preface
            | Self::FirstFrame(_)
            | Self::FrameStream { .. }
            | Self::IdleStream { .. }
            | Self::Padding(_)
            | Self::Push
            | Self::HeaderBlockInterrupted { .. }
            | Self::ContinuationUnexpected(_)
            | Self::SettingsAck
            | Self::WindowUpdateZero => ErrorCode::ProtocolError,
            Self::FrameTooLarge { .. } | Self::FrameLength { .. } => ErrorCode::FrameSizeError,
            // RFC 9113 section 6.5.2: an INITIAL_WINDOW_SIZE above 2^31-1 is the one with its own code.
            Self::SettingValue { id, .. } if *id == super::frame::SETTING_INITIAL_WINDOW_SIZE => {
                ErrorCode::FlowControlError
            }
            Self::SettingValue { .. } => ErrorCode::ProtocolError,
            Self::WindowOverflow(_) | Self::StreamWindow { .. } | Self::ConnectionWindow { .. } => {
                ErrorCode::FlowControlError
            }
            Self::Compression(_) => ErrorCode::CompressionError,
            Self::HeaderExpansion(_)
            | Self::HeaderBlock { .. }
            | Self::HeaderList
            | Self::ContinuationFlood
            | Self::RapidReset
            | Self::ProvokedReset
            | Self::SettingsFlood
            | Self::PingFlood
            | Self::DataEmptyFlood
            | Self::DataTinyFlood
            | Self::WindowUpdateFlood
            | Self::IdleFrameFlood
            | Self::OutputQueue => ErrorCode::EnhanceYourCalm,
        }
    }
}

/// Why no further stream can be opened now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("the peer is going away")]
    GoingAway,
    #[error("the peer allows no more than {0} concurrent streams")]
    StreamsMax(u32),
    #[error("all stream numbers of the connection are used")]
    NumbersUsed,
    #[error("the connection has failed")]
    Failed,
}
