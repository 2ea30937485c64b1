//! The walk over responses that are whole, cut in pieces of every size, and hostile.

use proptest::prelude::*;
use prost::Message;

use super::super::messages::discovery::{Any, DeltaDiscoveryResponse, Resource};
use super::*;

fn response() -> DeltaDiscoveryResponse {
    let named = |name: &str| Resource {
        name: name.to_owned(),
        version: "7".to_owned(),
        resource: Some(Any {
            type_url: "a type".to_owned(),
            value: vec![1, 2, 3].into(),
        }),
        ..Resource::default()
    };
    DeltaDiscoveryResponse {
        system_version_info: "of nobody's interest".to_owned(),
        type_url: "a type".to_owned(),
        nonce: "n".to_owned(),
        resources: vec![named("a"), named("b"), Resource::default()],
        removed_resources: vec!["c".to_owned(), String::new()],
    }
}

type Outcome = Result<(Envelope, Vec<Bytes>), Malformed>;

/// In pieces of these lengths, over and over.
fn read(message: &[u8], lengths: &[usize]) -> Outcome {
    let mut scan = Scan::new(message.len());
    let mut resources = Vec::new();
    let (mut rest, mut lengths) = (message, lengths.iter().cycle());
    loop {
        let (piece, later) = rest.split_at(rest.len().min(*lengths.next().expect("a length")));
        rest = later;
        scan.feed(Bytes::copy_from_slice(piece));
        while let Some(resource) = scan.next_resource()? {
            resources.push(resource);
        }
        if rest.is_empty() {
            return Ok((scan.finish()?, resources));
        }
    }
}

fn whole(message: &[u8]) -> Outcome {
    read(message, &[usize::MAX])
}

fn text(outcome: Outcome) -> String {
    outcome.expect_err("malformed").0
}

#[test]
fn a_walk_finds_what_the_message_has_however_it_is_cut() {
    let response = response();
    let message = response.encode_to_vec();
    let expected = Envelope {
        type_url: response.type_url.clone(),
        nonce: response.nonce.clone(),
        removed: response.removed_resources.clone(),
    };
    for length in 1..=message.len() {
        let (envelope, resources) = read(&message, &[length]).expect("well formed");
        assert_eq!(envelope, expected, "in pieces of {length} bytes");
        let resources = resources
            .into_iter()
            .map(|bytes| Resource::decode(bytes).expect("decodable"));
        assert_eq!(resources.collect::<Vec<_>>(), response.resources);
    }
}

#[test]
fn a_resource_is_given_out_as_soon_as_it_is_whole_and_without_a_copy() {
    let message = Bytes::from(response().encode_to_vec());
    let mut scan = Scan::new(message.len());
    let first = whole(&message).expect("well formed").1.remove(0);
    let end = message
        .windows(first.len())
        .position(|it| it == first)
        .expect("there")
        + first.len();
    scan.feed(message.slice(..end - 1));
    assert_eq!(scan.next_resource(), Ok(None));
    scan.feed(message.slice(end - 1..));
    assert_eq!(scan.next_resource(), Ok(Some(first)), "put together");
    let second = scan.next_resource().expect("well formed").expect("a resource");
    assert!(message.as_ptr_range().contains(&second.as_ptr()), "where it lies");
}

#[test]
fn a_message_that_ends_early_is_refused_unless_it_ends_between_fields() {
    let message = response().encode_to_vec();
    for length in 0..message.len() {
        let cut = &message[..length];
        let is_whole = DeltaDiscoveryResponse::decode(cut).is_ok();
        // A resource that is cut is refused with the response here, since its length says more than came.
        assert_eq!(whole(cut).is_ok(), is_whole, "{length} bytes");
        assert_eq!(read(cut, &[1]), whole(cut), "{length} bytes, one by one");
        // Announced as a whole, and the stream ends.
        let mut scan = Scan::new(message.len());
        scan.feed(Bytes::copy_from_slice(cut));
        while scan.next_resource().expect("well formed so far").is_some() {}
        let missing = message.len() - length;
        assert!(scan.finish().is_err(), "{missing} bytes are missing");
    }
}

#[test]
fn fields_of_other_types_groups_and_nonsense_are_refused_and_unknown_ones_skipped() {
    for (bytes, expected) in [
        (&[0x10, 1][..], "field 2 has another type"),
        (&[0x22, 1, 0xff], "type_url is not UTF-8"),
        (&[0x32, 1, 0xff], "removed_resources is not UTF-8"),
        (&[0x13], "field 2 is a group, which no schema has"),
        (&[0x7d, 0], "field 15 is cut off"),
        (&[0x12, 5, 0], "field 2 has 5 bytes, of which only 1 came"),
        (&[0x12, 0x80], "its last field is cut off"),
        (&[0x80], "its last field is cut off"),
        (&[0x02, 0], "2 is no key of a field"),
        (&[0x16], "field 2 has the unknown type 6"),
    ] {
        assert_eq!(text(whole(bytes)), expected);
        assert_eq!(text(read(bytes, &[1])), expected);
    }
    let unknown = [
        0x78, 5, 0x7d, 0, 0, 0, 0, 0x79, 0, 0, 0, 0, 0, 0, 0, 0, 0x7a, 2, 0, 0, 0x2a, 1, b'n',
    ];
    for length in 1..=unknown.len() {
        assert_eq!(read(&unknown, &[length]).expect("skipped").0.nonce, "n");
    }
}

#[test]
fn lengths_that_no_message_can_have_are_refused_before_anything_is_kept() {
    // 2^63 bytes, and a length of eleven bytes.
    let huge = [0x12, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01];
    assert_eq!(
        text(whole(&huge)),
        "field 2 has 9223372036854775808 bytes, of which only 0 came"
    );
    let endless = [&[0x12][..], &[0xff; 30]].concat();
    assert!(text(whole(&endless)).contains("varint"));
    assert!(text(read(&endless, &[3])).contains("varint"));
}

#[test]
fn more_fields_than_a_response_can_have_are_refused() {
    let limit = limits::XDS_RESPONSE_FIELDS_MAX;
    let message = [0x38, 0].repeat(limit);
    assert!(whole(&message).is_ok());
    let message = [0x38, 0].repeat(limit + 1);
    assert_eq!(text(whole(&message)), format!("it has more than {limit} fields"));
}

proptest! {
    #[test]
    fn nonsense_is_judged_alike_however_it_is_cut(
        message in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0x12), Just(2), Just(0x32)], 0..60),
        lengths in proptest::collection::vec(1usize..9, 1..5),
    ) {
        prop_assert_eq!(read(&message, &lengths), whole(&message));
    }
}
