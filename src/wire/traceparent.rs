//! The `traceparent` header (W3C Trace Context), which identifies a connection in the logs of both nodes.

use std::fmt;

/// Length of a `traceparent` of version 00: `00-<32 hex>-<16 hex>-<2 hex>`.
pub const TEXT_BYTES: usize = 55;

/// One connection's place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    pub trace_id: u128,
    pub parent_id: u64,
    pub flags: u8,
}

impl TraceContext {
    /// Not sampled.
    pub fn new(trace_id: u128, parent_id: u64) -> Self {
        Self {
            trace_id,
            parent_id,
            flags: 0,
        }
    }

    /// `None` for whatever is not of the form; the caller then begins a trace of its own. Hexadecimal digits of
    /// both cases are taken. W3C: version ff and ids of zero are invalid.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != TEXT_BYTES {
            return None;
        }
        let mut parts = text.split('-');
        let mut part = |digits| hex(parts.next()?, digits);
        let version = part(2)?;
        let trace_id = part(32)?;
        let parent_id = u64::try_from(part(16)?).ok()?;
        let flags = u8::try_from(part(2)?).ok()?;
        let valid = version != 0xff && trace_id != 0 && parent_id != 0;
        valid.then_some(Self {
            trace_id,
            parent_id,
            flags,
        })
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id, self.parent_id, self.flags
        )
    }
}

/// Exactly `digits` hexadecimal digits; `from_str_radix` alone takes a sign.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let well_formed = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    well_formed.then(|| u128::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_example_of_the_specification_survives_a_round_trip() {
        let context = TraceContext::parse(TEXT).expect("valid");
        assert_eq!(context.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(context.parent_id, 0x00f0_67aa_0ba9_02b7);
        assert_eq!(context.flags, 1);
        assert_eq!(context.to_string(), TEXT);
        assert_eq!(TraceContext::parse(&TEXT.to_uppercase()), Some(context));
    }

    #[test]
    fn a_new_context_is_written_in_full_width() {
        let text = TraceContext::new(1, 2).to_string();
        assert_eq!(text, "00-00000000000000000000000000000001-0000000000000002-00");
        assert_eq!(text.len(), TEXT_BYTES);
    }

    #[test]
    fn other_texts_are_no_context() {
        for text in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-011",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7x01",
            "00x4bf92f3577b34da6a3ce929d0e0e4736x00f067aa0ba902b7x01",
            "00-4bf92f3577b34da6a3ce929d0e0e47360-0f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473\u{e9}-00f067aa0ba902b-01",
            "-------------------------------------------------------",
        ] {
            assert_eq!(TraceContext::parse(text), None, "{text:?}");
        }
    }
}
