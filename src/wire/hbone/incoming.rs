//! Requests and responses as a peer sent them: the fields of a header block become a message, or a reason why not.
//!
//! The HTTP/2 engine pushes the fields as HPACK yields them, then calls `finish`. A message that RFC 9113 calls
//! malformed (8.1.1) is a stream error PROTOCOL_ERROR. Everything kept is bounded by `limits`: what a request is
//! routed by must fit, or the message is malformed; what only labels it (baggage, forwarded, traceparent) is left
//! out when it does not.

use crate::limits::{
    AUTHORITY_BYTES_MAX, BAGGAGE_BYTES_MAX, FORWARDED_BYTES_MAX, METHOD_BYTES_MAX, NETWORK_BYTES_MAX,
};
use crate::wire::traceparent;

/// A request's method, as far as HBONE cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    Connect,
    Other(String),
}

/// A request whose form is right. Its authority may still be none, or empty: that is answered with 400.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingRequest {
    pub method: Method,
    /// As sent; parse it as `Authority`.
    pub authority: String,
    /// One per header line.
    pub baggage: Vec<String>,
    pub traceparent: Option<String>,
    pub forwarded: Option<String>,
    pub forwarded_network: Option<String>,
}

/// A response whose form is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingResponse {
    pub status: u16,
    /// All header lines, joined by commas (RFC 9110 5.3).
    pub baggage: Option<String>,
}

impl IncomingResponse {
    /// RFC 9110 15.2: another response follows.
    pub fn is_interim(&self) -> bool {
        self.status < 200
    }
}

/// What makes a message malformed (RFC 9113 8.1.1). Names are as sent, cut to `NAME_SHOWN_BYTES_MAX`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MalformedMessage {
    #[error("invalid header name {0:?}")]
    FieldName(String),
    #[error("invalid value of header {0:?}")]
    FieldValue(String),
    #[error("header {0:?} is not allowed in HTTP/2")]
    ConnectionSpecific(String),
    #[error("pseudo-header {0:?} is unknown here")]
    PseudoUnknown(String),
    #[error("pseudo-header {0:?} after a regular header")]
    PseudoMisplaced(String),
    #[error("pseudo-header {0:?} more than once")]
    PseudoRepeated(&'static str),
    #[error("pseudo-header {0:?} is missing")]
    PseudoMissing(&'static str),
    #[error("pseudo-header {0:?} in a CONNECT request")]
    PseudoForbidden(&'static str),
    #[error("{name} of {bytes} bytes (at most {max})")]
    TooLong {
        name: &'static str,
        bytes: usize,
        max: usize,
    },
    #[error("invalid :status {0:?} (expected three digits, not 101)")]
    Status(String),
}

/// Longest part of a peer's header name that an error repeats.
const NAME_SHOWN_BYTES_MAX: usize = 64;

/// Collects a request. The first fault is kept and reported by `finish`.
#[derive(Default)]
pub struct RequestFields {
    fault: Option<MalformedMessage>,
    regular_begun: bool,
    method: Option<Method>,
    authority: Option<String>,
    scheme: Option<()>,
    path: Option<()>,
    baggage: Vec<String>,
    baggage_bytes: usize,
    traceparent: Option<String>,
    forwarded: Option<String>,
    forwarded_network: Option<String>,
}

impl RequestFields {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        if self.fault.is_none() {
            self.fault = self.take(name, value).err();
        }
    }

    fn take(&mut self, name: &[u8], value: &[u8]) -> Result<(), MalformedMessage> {
        check_value(name, value)?;
        if name.starts_with(b":") {
            return self.take_pseudo(name, value);
        }
        self.regular_begun = true;
        check_regular_name(name, value)?;
        match name {
            b"baggage" => {
                self.baggage_bytes = self.baggage_bytes.saturating_add(value.len());
                if self.baggage_bytes <= BAGGAGE_BYTES_MAX {
                    self.baggage.push(text(value));
                }
            }
            b"traceparent" if value.len() == traceparent::TEXT_BYTES => {
                self.traceparent.get_or_insert_with(|| text(value));
            }
            b"forwarded" if value.len() <= FORWARDED_BYTES_MAX => {
                self.forwarded.get_or_insert_with(|| text(value));
            }
            b"x-forwarded-network" => {
                bounded("x-forwarded-network", value, NETWORK_BYTES_MAX)?;
                self.forwarded_network.get_or_insert_with(|| text(value));
            }
            _ => {}
        }
        Ok(())
    }

    /// RFC 9113 8.3: known ones only, each once, before the regular fields.
    fn take_pseudo(&mut self, name: &[u8], value: &[u8]) -> Result<(), MalformedMessage> {
        if self.regular_begun {
            return Err(MalformedMessage::PseudoMisplaced(shown(name)));
        }
        match name {
            b":method" => {
                bounded(":method", value, METHOD_BYTES_MAX)?;
                // RFC 9110 9.1: methods are case-sensitive.
                let method = match value {
                    b"CONNECT" => Method::Connect,
                    other => Method::Other(text(other)),
                };
                once(&mut self.method, ":method", method)
            }
            b":authority" => {
                bounded(":authority", value, AUTHORITY_BYTES_MAX)?;
                once(&mut self.authority, ":authority", text(value))
            }
            b":scheme" => once(&mut self.scheme, ":scheme", ()),
            b":path" => once(&mut self.path, ":path", ()),
            // `:protocol` as well: RFC 8441 is for servers that announced it.
            _ => Err(MalformedMessage::PseudoUnknown(shown(name))),
        }
    }

    pub fn finish(self) -> Result<IncomingRequest, MalformedMessage> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let method = self.method.ok_or(MalformedMessage::PseudoMissing(":method"))?;
        match method {
            // RFC 9113 8.5. A missing `:authority` is malformed too, but 8.1.1 lets a server answer, and 400 says
            // more than a reset.
            Method::Connect => {
                forbidden(self.scheme, ":scheme")?;
                forbidden(self.path, ":path")?;
            }
            // RFC 9113 8.3.1.
            Method::Other(_) => {
                self.scheme.ok_or(MalformedMessage::PseudoMissing(":scheme"))?;
                self.path.ok_or(MalformedMessage::PseudoMissing(":path"))?;
            }
        }
        Ok(IncomingRequest {
            method,
            authority: self.authority.unwrap_or_default(),
            // All or nothing: a part could join one workload's namespace with another one's name.
            baggage: if self.baggage_bytes <= BAGGAGE_BYTES_MAX {
                self.baggage
            } else {
                Vec::new()
            },
            traceparent: self.traceparent,
            forwarded: self.forwarded,
            forwarded_network: self.forwarded_network,
        })
    }
}

/// Collects a response. The first fault is kept and reported by `finish`.
#[derive(Default)]
pub struct ResponseFields {
    fault: Option<MalformedMessage>,
    regular_begun: bool,
    status: Option<u16>,
    baggage: Option<String>,
    baggage_bytes: usize,
}

impl ResponseFields {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        if self.fault.is_none() {
            self.fault = self.take(name, value).err();
        }
    }

    fn take(&mut self, name: &[u8], value: &[u8]) -> Result<(), MalformedMessage> {
        check_value(name, value)?;
        if name.starts_with(b":") {
            if self.regular_begun {
                return Err(MalformedMessage::PseudoMisplaced(shown(name)));
            }
            // RFC 9113 8.3.2: only `:status`.
            return match name {
                b":status" => once(&mut self.status, ":status", parse_status(value)?),
                _ => Err(MalformedMessage::PseudoUnknown(shown(name))),
            };
        }
        self.regular_begun = true;
        check_regular_name(name, value)?;
        if name == b"baggage" {
            self.baggage_bytes = self.baggage_bytes.saturating_add(value.len() + 1);
            if self.baggage_bytes <= BAGGAGE_BYTES_MAX {
                let line = text(value);
                match &mut self.baggage {
                    None => self.baggage = Some(line),
                    Some(baggage) => {
                        baggage.push(',');
                        baggage.push_str(&line);
                    }
                }
            }
        }
        Ok(())
    }

    pub fn finish(self) -> Result<IncomingResponse, MalformedMessage> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        Ok(IncomingResponse {
            status: self.status.ok_or(MalformedMessage::PseudoMissing(":status"))?,
            baggage: self.baggage.filter(|_| self.baggage_bytes <= BAGGAGE_BYTES_MAX),
        })
    }
}

/// A field of trailers is regular and well formed (RFC 9113 8.1: no pseudo-header fields there).
pub fn check_trailer(name: &[u8], value: &[u8]) -> Result<(), MalformedMessage> {
    if name.starts_with(b":") {
        return Err(MalformedMessage::PseudoMisplaced(shown(name)));
    }
    check_value(name, value)?;
    check_regular_name(name, value)
}

/// RFC 9113 8.2.1 (characters) and 8.2.2 (fields of HTTP/1.1 connections).
fn check_regular_name(name: &[u8], value: &[u8]) -> Result<(), MalformedMessage> {
    let permitted = |b: &u8| matches!(b, 0x21..=0x39 | 0x3b..=0x40 | 0x5b..=0x7e);
    if name.is_empty() || !name.iter().all(permitted) {
        return Err(MalformedMessage::FieldName(shown(name)));
    }
    match name {
        b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade" => {
            Err(MalformedMessage::ConnectionSpecific(shown(name)))
        }
        b"te" if value != b"trailers" => Err(MalformedMessage::FieldValue(shown(name))),
        _ => Ok(()),
    }
}

/// RFC 9113 8.2.1.
fn check_value(name: &[u8], value: &[u8]) -> Result<(), MalformedMessage> {
    let is_blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    let bad = value.iter().any(|b| matches!(b, 0 | b'\r' | b'\n'));
    if bad || is_blank(value.first()) || is_blank(value.last()) {
        return Err(MalformedMessage::FieldValue(shown(name)));
    }
    Ok(())
}

/// RFC 9110 15: three digits. RFC 9113 8.6: not 101.
fn parse_status(value: &[u8]) -> Result<u16, MalformedMessage> {
    let digits = value.len() == 3 && value.iter().all(u8::is_ascii_digit);
    let status = value
        .iter()
        .take(3)
        .fold(0, |status, b| status * 10 + u16::from(b.wrapping_sub(b'0')));
    if digits && status >= 100 && status != 101 {
        Ok(status)
    } else {
        Err(MalformedMessage::Status(shown(value)))
    }
}

fn once<T>(slot: &mut Option<T>, name: &'static str, value: T) -> Result<(), MalformedMessage> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(MalformedMessage::PseudoRepeated(name)),
    }
}

fn forbidden(slot: Option<()>, name: &'static str) -> Result<(), MalformedMessage> {
    match slot {
        None => Ok(()),
        Some(()) => Err(MalformedMessage::PseudoForbidden(name)),
    }
}

fn bounded(name: &'static str, value: &[u8], max: usize) -> Result<(), MalformedMessage> {
    if value.len() > max {
        return Err(MalformedMessage::TooLong {
            name,
            bytes: value.len(),
            max,
        });
    }
    Ok(())
}

/// Bytes that are no UTF-8 become U+FFFD, which every reader of these texts refuses.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

fn shown(name: &[u8]) -> String {
    text(&name[..name.len().min(NAME_SHOWN_BYTES_MAX)])
}
