//! Is a byte stream made of TLS records and nothing else? (RFC 8446 5.1: type, version, length, fragment.)

/// Longest fragment: 2^14 plaintext and up to 256 bytes of protection (RFC 8446 5.2).
const FRAGMENT_BYTES_MAX: u16 = (1 << 14) + 256;
const HANDSHAKE: u8 = 22;

/// Follows one direction of a connection through its records.
#[derive(Debug, Default)]
pub struct RecordChecker {
    header: [u8; 5],
    header_filled: usize,
    fragment_left: usize,
    position: u64,
    /// Records by content type 20 (change cipher spec), 21 (alert), 22 (handshake), 23 (application data).
    pub records: [u64; 4],
    violation: Option<String>,
}

impl RecordChecker {
    /// Takes the next bytes of the stream.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.violation.is_none() {
            if self.fragment_left > 0 {
                let taken = self.fragment_left.min(bytes.len());
                self.fragment_left -= taken;
                self.position += taken as u64;
                bytes = &bytes[taken..];
                continue;
            }
            self.header[self.header_filled] = bytes[0];
            self.header_filled += 1;
            self.position += 1;
            bytes = &bytes[1..];
            if self.header_filled == self.header.len() {
                self.header_filled = 0;
                self.begin_record();
            }
        }
    }

    /// What is wrong with the stream, if anything.
    pub fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// True when the stream stopped between two records.
    pub fn at_boundary(&self) -> bool {
        self.header_filled == 0 && self.fragment_left == 0
    }

    pub fn records_total(&self) -> u64 {
        self.records.iter().sum()
    }

    fn begin_record(&mut self) {
        let [kind, major, minor, high, low] = self.header;
        let length = u16::from_be_bytes([high, low]);
        let first = self.records_total() == 0;
        let problem = if !(20..=23).contains(&kind) {
            Some("content type is not 20 to 23")
        } else if major != 3 || !(minor == 1 || minor == 3) {
            Some("version is neither 3.1 nor 3.3")
        } else if length > FRAGMENT_BYTES_MAX {
            Some("fragment is longer than 16,640 bytes")
        } else if first && kind != HANDSHAKE {
            Some("the first record is no handshake")
        } else {
            None
        };
        if let Some(problem) = problem {
            let at = self.position - 5;
            self.violation = Some(format!("{problem}: header {:02x?} at byte {at}", self.header));
            return;
        }
        self.records[usize::from(kind - 20)] += 1;
        self.fragment_left = usize::from(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Vec<u8> {
        let mut bytes = vec![22, 3, 1, 0, 3, 1, 2, 3, 20, 3, 3, 0, 1, 1];
        bytes.extend([23, 3, 3, 0x40, 0x11]);
        bytes.resize(bytes.len() + 0x4011, 0xaa);
        bytes
    }

    #[test]
    fn records_are_followed_whatever_the_chunks() {
        for chunk in [1, 2, 5, 7, 1000, 100_000] {
            let mut checker = RecordChecker::default();
            stream().chunks(chunk).for_each(|chunk| checker.push(chunk));
            assert_eq!(checker.violation(), None);
            assert_eq!(checker.records, [1, 0, 1, 1]);
            assert!(checker.at_boundary());
        }
    }

    #[test]
    fn anything_else_is_a_violation() {
        let cases: [(&[u8], &str); 5] = [
            (b"GET / HTTP/1.1\r\n", "content type"),
            (&[22, 2, 0, 0, 1, 0], "version"),
            (&[22, 3, 3, 0x41, 0x01, 0], "longer"),
            (&[23, 3, 3, 0, 1, 0], "no handshake"),
            (&[22, 3, 1, 0, 1, 9, b'P', b'R', b'I', b' ', b'*'], "content type"),
        ];
        for (bytes, expected) in cases {
            let mut checker = RecordChecker::default();
            checker.push(bytes);
            assert!(
                checker.violation().is_some_and(|text| text.contains(expected)),
                "{bytes:02x?}: {checker:?}"
            );
        }
    }

    #[test]
    fn a_stream_cut_inside_a_record_is_not_at_a_boundary() {
        let mut checker = RecordChecker::default();
        checker.push(&stream()[..10]);
        assert!(!checker.at_boundary());
    }
}
