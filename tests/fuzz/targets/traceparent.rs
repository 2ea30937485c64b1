//! A `traceparent` header.

use uztunnel::wire::traceparent::TraceContext;

pub fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Some(context) = TraceContext::parse(&text) {
        assert_eq!(TraceContext::parse(&context.to_string()), Some(context));
    }
}
