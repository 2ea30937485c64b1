//! The HTTP messages of HBONE: CONNECT requests and their responses as header blocks, and what a peer sent, checked.
//!
//! Specification: RFC 9113 8.3 and 8.5 (pseudo-header fields, CONNECT), RFC 9110 9.3.6, RFC 7239 (`forwarded`).
//! Pure; what is decided about a request is for `mesh` and the journeys.

mod authority;
mod forwarded;
mod incoming;

use super::http2::hpack;

pub use authority::{Authority, InvalidAuthority};
pub use forwarded::{forwarded_host, forwarded_value};
pub use incoming::{
    IncomingRequest, IncomingResponse, MalformedMessage, Method, RequestFields, ResponseFields, check_trailer,
};

/// What a client asks for. Only `authority` is required.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectRequest<'a> {
    pub authority: &'a str,
    pub baggage: Option<&'a str>,
    pub forwarded: Option<&'a str>,
    pub traceparent: Option<&'a str>,
    /// `x-forwarded-network`: only inside double HBONE.
    pub forwarded_network: Option<&'a str>,
}

impl ConnectRequest<'_> {
    /// Appends the header block. RFC 9113 8.5: no `:scheme`, no `:path`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        hpack::encode_literal(out, b":method", b"CONNECT");
        hpack::encode_literal(out, b":authority", self.authority.as_bytes());
        let optional = [
            ("baggage", self.baggage),
            ("forwarded", self.forwarded),
            ("traceparent", self.traceparent),
            ("x-forwarded-network", self.forwarded_network),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                hpack::encode_literal(out, name.as_bytes(), value.as_bytes());
            }
        }
    }
}

/// What a server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectResponse<'a> {
    pub status: u16,
    pub baggage: Option<&'a str>,
}

impl ConnectResponse<'_> {
    /// Appends the header block. `status` has three digits.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self.status {
            // RFC 7541 appendix A.
            200 => hpack::encode_indexed(out, 8),
            400 => hpack::encode_indexed(out, 12),
            status => {
                assert!((100..1000).contains(&status), "a status has three digits");
                let digits = [status / 100, status / 10 % 10, status % 10].map(|digit| b'0' + digit as u8);
                hpack::encode_literal(out, b":status", &digits);
            }
        }
        if let Some(baggage) = self.baggage {
            hpack::encode_literal(out, b"baggage", baggage.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests;
