//! The authority of a CONNECT, and the same text as a `forwarded` header.

use uztunnel::wire::hbone::{Authority, forwarded_host, forwarded_value};

pub fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match text.parse::<Authority>() {
        Ok(authority) => {
            assert_ne!(authority.port(), 0);
            assert_eq!(authority.to_string().parse(), Ok(authority));
        }
        Err(error) => assert!(
            error.to_string().len() < 2048,
            "an error repeats a bounded part of the input"
        ),
    }
    if let Some(host) = forwarded_host(&text) {
        assert!(!host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic()));
        let written = forwarded_value(([10, 0, 0, 1], 80).into(), Some(&host));
        assert_eq!(forwarded_host(&written), Some(host));
    }
}
