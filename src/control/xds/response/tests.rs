//! What becomes of resources by what they say of themselves.

use prost::Message;

use super::super::messages::discovery::{Any, DeltaDiscoveryResponse, Resource as Sent};
use super::super::messages::{security, workload as wire};
use super::*;

fn workload(uid: &str) -> Vec<u8> {
    let workload = wire::Workload {
        uid: uid.to_owned(),
        ..wire::Workload::default()
    };
    let r#type = Some(wire::address::Type::Workload(workload));
    wire::Address { r#type }.encode_to_vec()
}

fn sent(name: &str, type_url: &str, value: Vec<u8>) -> Sent {
    Sent {
        name: name.to_owned(),
        version: "c7ae5efe1698a7f".to_owned(),
        resource: Some(Any {
            type_url: type_url.to_owned(),
            value: value.into(),
        }),
        aliases: vec![format!("/{name}")],
    }
}

/// Arrived in pieces of so many bytes.
fn received(resources: Vec<Sent>, piece_bytes: usize, interner: &mut Interner) -> Response {
    let message = DeltaDiscoveryResponse {
        resources,
        ..DeltaDiscoveryResponse::default()
    };
    let message = Bytes::from(message.encode_to_vec());
    let mut arriving = Arriving::new(message.len(), true);
    for piece in message.chunks(piece_bytes) {
        arriving.feed(message.slice_ref(piece));
        while arriving.step(1, interner).expect("well formed") > 0 {}
    }
    arriving.finish().expect("complete")
}

fn refusal(resource: Resource) -> Option<String> {
    match resource.content {
        Content::Refused(error) => Some(error.to_string()),
        Content::Workload(_) | Content::Service(_) | Content::Policy(_) => None,
        Content::Undecoded(_) => panic!("{} is not decoded", resource.name),
    }
}

#[test]
fn a_resource_is_made_on_arrival_or_when_the_type_is_known_with_the_same_outcome() {
    let address = Kind::Address.type_url();
    for piece_bytes in [1, 7, 1000] {
        let interner = &mut Interner::default();
        let resources = vec![
            sent("a", address, workload("a")),
            sent("b", "", workload("b")),
            sent("c", "of a later version", workload("c")),
            sent("d", address, Vec::new()),
            sent("e", "", Vec::new()),
        ];
        let mut response = received(resources, piece_bytes, interner);
        let decoded = |resource: &Resource| !matches!(resource.content, Content::Undecoded(_));
        let decoded: Vec<bool> = response.slices.iter().flatten().map(decoded).collect();
        assert_eq!(decoded, [true, false, false, true, false]);
        assert_eq!(response.payload_bytes, 3 * workload("a").len());
        let aliases = response.aliases.iter().map(|(at, name)| (*at, name.as_str()));
        assert!(aliases.eq([(0, "/a"), (1, "/b"), (2, "/c"), (3, "/d"), (4, "/e")]));
        let resources = response.take_slices().flatten();
        for (resource, expected) in resources.zip([None, None, None, Some(()), Some(())]) {
            assert_eq!(resource.version.to_string(), "c7ae5efe1698a7f");
            let resource = resource.of_kind(Kind::Address, interner);
            if let Content::Workload(workload) = &resource.content {
                assert!(Arc::ptr_eq(&workload.uid, &resource.name) || *resource.name != *"a");
                assert_eq!(workload.uid, resource.name);
            }
            assert_eq!(
                refusal(resource),
                expected.map(|()| "unknown address type".to_owned())
            );
        }
    }
}

#[test]
fn a_resource_that_says_it_is_of_the_other_type_is_refused() {
    let interner = &mut Interner::default();
    let policy = security::Authorization {
        name: "p".to_owned(),
        ..security::Authorization::default()
    };
    let resources = vec![
        sent("a", Kind::Address.type_url(), workload("a")),
        sent("ns/p", Kind::Authorization.type_url(), policy.encode_to_vec()),
    ];
    for (kind, refused) in [(Kind::Address, 1), (Kind::Authorization, 0)] {
        let mut response = received(resources.clone(), 1000, interner);
        for (at, resource) in response.take_slices().flatten().enumerate() {
            let refusal = refusal(resource.of_kind(kind, interner));
            let expected = format!(
                "is of another type than the response, which is of {}",
                kind.type_url()
            );
            assert_eq!(refusal, (at == refused).then_some(expected));
        }
    }
}

#[test]
fn a_resource_that_cannot_be_decoded_keeps_its_name_if_it_has_one() {
    let interner = &mut Interner::default();
    let mut response = Response::default();
    let named = Sent {
        name: "ns/a".to_owned(),
        ..Sent::default()
    };
    // The version, which is not UTF-8, before and after the name; a name that is not.
    let version = [0x0a, 1, 0xff];
    for bytes in [
        [&named.encode_to_vec()[..], &version].concat(),
        [&version, &named.encode_to_vec()[..]].concat(),
        vec![0x1a, 1, 0xff],
        named.encode_to_vec(),
    ] {
        response.add(&bytes.into(), false, interner);
    }
    let refused: Vec<_> = response
        .take_slices()
        .flatten()
        .map(|it| (it.name.to_string(), refusal(it).expect("a refusal")))
        .collect();
    let expected = [
        ("ns/a", "cannot be decoded: version is not UTF-8"),
        ("ns/a", "cannot be decoded: version is not UTF-8"),
        (
            "resource 2 of the response",
            "cannot be decoded: name is not UTF-8",
        ),
        ("ns/a", "XDS payload without resource"),
    ];
    let expected = expected.map(|(name, why)| (name.to_owned(), why.to_owned()));
    assert_eq!(refused, expected);
}
