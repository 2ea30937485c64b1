//! Lines of a `baggage` header, one per line of the input.

use uztunnel::limits::BAGGAGE_VALUE_BYTES_MAX;
use uztunnel::wire::baggage::Baggage;

pub fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let Ok(baggage) = Baggage::parse(text.split('\n')) else {
        return;
    };
    for value in [
        &baggage.cluster,
        &baggage.workload_name,
        &baggage.service_name,
        &baggage.zone,
    ] {
        assert!(
            value
                .as_ref()
                .is_none_or(|value| !value.is_empty() && value.len() <= BAGGAGE_VALUE_BYTES_MAX)
        );
    }
    let written = baggage.encode();
    assert!(written.bytes().all(|b| b.is_ascii_graphic()));
    let read = Baggage::parse([written.as_str()]).expect("what we write is ASCII");
    assert_eq!(read.encode(), written, "nothing that was written is lost");
}
