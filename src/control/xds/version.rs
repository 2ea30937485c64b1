//! The version of a resource, which is kept for each that is held.
//!
//! A plain value of two words. istiod's versions are numbers of 64 bits in hexadecimal digits: those take no memory
//! beside it. Invariant: the text that comes out is the one that went in.

use std::fmt;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(Kept);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Kept {
    /// Lower-case digits without leading zeros.
    Number(u64),
    Text(Box<str>),
}

const _: () = assert!(size_of::<Version>() == 16);

impl Version {
    /// Of the text.
    pub fn len(&self) -> usize {
        match &self.0 {
            Kept::Number(number) => digits(*number),
            Kept::Text(text) => text.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<&str> for Version {
    fn from(text: &str) -> Self {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let number = u64::from_str_radix(text, 16).ok();
        let number = number.filter(|number| digits(*number) == text.len() && text.bytes().all(is_digit));
        Self(number.map_or_else(|| Kept::Text(text.into()), Kept::Number))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kept::Number(number) => write!(f, "{number:x}"),
            Kept::Text(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

fn digits(number: u64) -> usize {
    number.checked_ilog2().map_or(1, |last| last as usize / 4 + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_of_every_shape_come_out_as_they_went_in() {
        for text in [
            "",
            "0",
            "00",
            "f",
            "F",
            "+f",
            "10",
            "010",
            "17a838122b217ddf",
            "c7ae5efe1698a7f",
            "ffffffffffffffff",
            "10000000000000000",
            "2026-11-21T09:26:53Z/1",
            "é",
        ] {
            let version = Version::from(text);
            assert_eq!((version.to_string().as_str(), version.len()), (text, text.len()));
        }
        assert!(matches!(Version::from("17a838122b217ddf").0, Kept::Number(_)));
        assert!(matches!(Version::from("017").0, Kept::Text(_)));
    }

    proptest! {
        #[test]
        fn random_versions_come_out_as_they_went_in(text in "[0-9a-fA-F+x]{0,18}") {
            let version = Version::from(text.as_str());
            prop_assert_eq!(version.len(), text.len());
            prop_assert_eq!(version.to_string(), text);
        }
    }
}
