//! A response of the control plane as it came: resources stay bytes until their turn.
//!
//! Control thread, pure. A first response may have a hundred thousand resources, and to decode them in one go would
//! keep everything else on this thread waiting: `Scan` walks over the fields, a bounded number at a time, and
//! `Envelope` gives one resource after the other. Invariant: an envelope's fields have the types of the schema, and
//! its texts are UTF-8; what is inside its resources is not yet known.

use bytes::{Buf, Bytes};
use prost::encoding::{WireType, decode_key, decode_varint};

use super::messages::discovery::{DeltaDiscoveryResponse, Resource};

// Numbers of the fields, in proto/discovery.proto.
const RESOURCES: u32 = 2;
const TYPE_URL: u32 = 4;
const NONCE: u32 = 5;
const REMOVED: u32 = 6;
const RESOURCE_PAYLOAD: u32 = 2;
const RESOURCE_NAME: u32 = 3;
const PAYLOAD_VALUE: u32 = 2;

/// The bytes are no response at all: nothing of it can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed response of the control plane: {0}")]
pub struct Malformed(String);

/// A response that was walked over once.
#[derive(Debug, Clone, Default)]
pub struct Envelope {
    bytes: Bytes,
    pub type_url: String,
    pub nonce: String,
    pub resources: usize,
    /// Of all resources together, without their envelopes.
    pub payload_bytes: usize,
    pub removed: usize,
}

/// The walk.
#[derive(Debug)]
pub struct Scan {
    fields: Fields,
    found: Envelope,
}

impl Scan {
    pub fn new(bytes: Bytes) -> Self {
        let found = Envelope {
            bytes: bytes.clone(),
            ..Envelope::default()
        };
        Self {
            fields: Fields { bytes, at: 0 },
            found,
        }
    }

    /// Looks at `fields_max` more fields; true when that was all.
    pub fn step(&mut self, fields_max: usize) -> Result<bool, Malformed> {
        for _ in 0..fields_max {
            let Some((number, value)) = self.fields.next()? else {
                return Ok(true);
            };
            match (number, value) {
                (RESOURCES, Some(value)) => {
                    self.found.resources += 1;
                    self.found.payload_bytes += payload_bytes(value);
                }
                (REMOVED, Some(value)) => {
                    text(&value, "removed_resources")?;
                    self.found.removed += 1;
                }
                (TYPE_URL, Some(value)) => self.found.type_url = text(&value, "type_url")?.to_owned(),
                (NONCE, Some(value)) => self.found.nonce = text(&value, "nonce")?.to_owned(),
                (RESOURCES | REMOVED | TYPE_URL | NONCE, None) => {
                    return Err(Malformed(format!("field {number} has another type")));
                }
                (_, _) => {}
            }
        }
        Ok(false)
    }

    /// After the last step.
    pub fn finish(self) -> Envelope {
        self.found
    }
}

impl Envelope {
    /// In one go, for small ones.
    pub fn read(bytes: Bytes) -> Result<Self, Malformed> {
        let mut scan = Scan::new(bytes);
        while !scan.step(usize::MAX)? {}
        Ok(scan.finish())
    }

    /// As a whole, as tests make them.
    pub fn of(response: &DeltaDiscoveryResponse) -> Self {
        let bytes = prost::Message::encode_to_vec(response);
        Self::read(bytes.into()).expect("invariant: what was encoded can be read")
    }

    /// Each still encoded.
    pub fn resources(&self) -> impl Iterator<Item = Bytes> {
        self.values(RESOURCES)
    }

    pub fn removed(&self) -> impl Iterator<Item = String> {
        self.values(REMOVED)
            .map(|value| String::from_utf8_lossy(&value).into_owned())
    }

    fn values(&self, wanted: u32) -> impl Iterator<Item = Bytes> {
        let mut fields = Fields {
            bytes: self.bytes.clone(),
            at: 0,
        };
        std::iter::from_fn(move || {
            loop {
                // Nothing is wrong with them, or there would be no envelope.
                match fields.next().ok()?? {
                    (number, Some(value)) if number == wanted => return Some(value),
                    (_, _) => {}
                }
            }
        })
    }
}

/// Decodes one of `Envelope::resources`. What cannot be decoded still has a name, if there is one to be found, or is
/// called by its place.
pub fn resource(bytes: &Bytes, place: usize) -> Result<Resource, (String, prost::DecodeError)> {
    prost::Message::decode(bytes.clone()).map_err(|error| {
        let mut fields = Fields {
            bytes: bytes.clone(),
            at: 0,
        };
        let mut name = None;
        while let Ok(Some((number, value))) = fields.next() {
            if let (RESOURCE_NAME, Some(value)) = (number, value) {
                name = std::str::from_utf8(&value).ok().map(str::to_owned);
            }
        }
        (
            name.unwrap_or_else(|| format!("resource {place} of the response")),
            error,
        )
    })
}

/// The fields of a message one after the other.
#[derive(Debug)]
struct Fields {
    bytes: Bytes,
    at: usize,
}

impl Fields {
    /// Number of the field, and its bytes if it has any.
    fn next(&mut self) -> Result<Option<(u32, Option<Bytes>)>, Malformed> {
        let malformed = |error: prost::DecodeError| Malformed(error.to_string());
        let mut rest = &self.bytes[self.at..];
        if rest.is_empty() {
            return Ok(None);
        }
        let (number, wire_type) = decode_key(&mut rest).map_err(malformed)?;
        let skipped = match wire_type {
            WireType::LengthDelimited => {
                let length = decode_varint(&mut rest).map_err(malformed)?;
                let start = self.bytes.len() - rest.len();
                if length > rest.len() as u64 {
                    return Err(Malformed(format!(
                        "field {number} has {length} bytes, of which only {} came",
                        rest.len()
                    )));
                }
                self.at = start + length as usize;
                return Ok(Some((number, Some(self.bytes.slice(start..self.at)))));
            }
            WireType::Varint => {
                decode_varint(&mut rest).map_err(malformed)?;
                0
            }
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::StartGroup | WireType::EndGroup => {
                return Err(Malformed(format!(
                    "field {number} is a group, which no schema has"
                )));
            }
        };
        if rest.len() < skipped {
            return Err(Malformed(format!("field {number} is cut off")));
        }
        rest.advance(skipped);
        self.at = self.bytes.len() - rest.len();
        Ok(Some((number, None)))
    }
}

/// As far as it can be read: what is malformed is refused when its turn comes.
fn payload_bytes(resource: Bytes) -> usize {
    let last = |bytes: Bytes, wanted: u32| {
        let (mut fields, mut found) = (Fields { bytes, at: 0 }, None);
        while let Ok(Some((number, value))) = fields.next() {
            if number == wanted {
                found = value;
            }
        }
        found
    };
    last(resource, RESOURCE_PAYLOAD)
        .and_then(|payload| last(payload, PAYLOAD_VALUE))
        .map_or(0, |value| value.len())
}

fn text<'a>(value: &'a Bytes, field: &str) -> Result<&'a str, Malformed> {
    std::str::from_utf8(value).map_err(|_| Malformed(format!("{field} is not UTF-8")))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::super::messages::discovery::Any;
    use super::*;

    fn response() -> DeltaDiscoveryResponse {
        let named = |name: &str| Resource {
            name: name.to_owned(),
            version: "7".to_owned(),
            resource: Some(Any {
                value: vec![1, 2, 3].into(),
            }),
            ..Resource::default()
        };
        DeltaDiscoveryResponse {
            type_url: "a type".to_owned(),
            nonce: "n".to_owned(),
            resources: vec![named("a"), named("b")],
            removed_resources: vec!["c".to_owned(), "d".to_owned()],
            ..DeltaDiscoveryResponse::default()
        }
    }

    #[test]
    fn an_envelope_has_what_the_whole_message_has() {
        let response = response();
        let mut scan = Scan::new(response.encode_to_vec().into());
        let mut steps = 0;
        while !scan.step(1).expect("well formed") {
            steps += 1;
        }
        assert_eq!(steps, 6, "one for each field");
        let envelope = scan.finish();
        assert_eq!((&*envelope.type_url, &*envelope.nonce), ("a type", "n"));
        assert_eq!((envelope.resources, envelope.removed), (2, 2));
        assert_eq!(envelope.payload_bytes, 6, "three each");
        let resources: Vec<Resource> = envelope
            .resources()
            .map(|it| resource(&it, 0).expect("decodable"))
            .collect();
        assert_eq!(resources, response.resources);
        assert_eq!(envelope.removed().collect::<Vec<_>>(), ["c", "d"]);
    }

    #[test]
    fn a_truncated_response_is_refused_unless_it_ends_between_fields() {
        let bytes = Bytes::from(response().encode_to_vec());
        for length in 0..bytes.len() {
            let cut = bytes.slice(..length);
            let whole = DeltaDiscoveryResponse::decode(cut.clone());
            // A resource that is cut is refused with the response here, since its length says more than came.
            assert_eq!(Envelope::read(cut).is_ok(), whole.is_ok(), "{length} bytes");
        }
    }

    #[test]
    fn fields_of_other_types_and_groups_are_refused_and_unknown_ones_skipped() {
        for (bytes, expected) in [
            (&[0x10, 1][..], "field 2 has another type"),
            (&[0x22, 1, 0xff], "type_url is not UTF-8"),
            (&[0x32, 1, 0xff], "removed_resources is not UTF-8"),
            (&[0x13], "field 2 is a group, which no schema has"),
            (&[0x7d, 0], "field 15 is cut off"),
        ] {
            let error = Envelope::read(Bytes::copy_from_slice(bytes)).expect_err(expected);
            assert_eq!(error, Malformed(expected.to_owned()));
        }
        let unknown = [
            0x78, 5, 0x7d, 0, 0, 0, 0, 0x79, 0, 0, 0, 0, 0, 0, 0, 0, 0x2a, 1, b'n',
        ];
        assert_eq!(
            Envelope::read(Bytes::copy_from_slice(&unknown))
                .expect("skipped")
                .nonce,
            "n"
        );
    }

    #[test]
    fn a_resource_that_cannot_be_decoded_keeps_its_name_if_it_has_one() {
        let mut bytes = Resource {
            name: "ns/a".to_owned(),
            ..Resource::default()
        }
        .encode_to_vec();
        // The version, which is not UTF-8.
        bytes.extend([0x0a, 1, 0xff]);
        let (name, _) = resource(&bytes.into(), 3).expect_err("no UTF-8");
        assert_eq!(name, "ns/a");
        let (name, _) = resource(&Bytes::from_static(&[0x1a, 1, 0xff]), 3).expect_err("no UTF-8");
        assert_eq!(name, "resource 3 of the response");
    }
}
