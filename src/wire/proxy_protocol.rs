//! The PROXY protocol header, version 2, by which an application that takes tunnels itself learns who the client is
//! and what it asked for. Written, never read.
//!
//! Specification: the PROXY protocol, section 2.2; the types 0xD0 and 0xD1 are the mesh's (proto/workload.proto,
//! `ApplicationTunnel`).

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;
const TLV_IDENTITY: u8 = 0xd0;
const TLV_HOST: u8 = 0xd1;

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyHeader<'a> {
    /// The peer of the TCP connection that the tunnel came by.
    pub source: SocketAddr,
    /// What was asked for.
    pub destination: SocketAddr,
    /// The client's SPIFFE identity, as the tunnel proved it.
    pub identity: Option<&'a str>,
    /// The name that was asked for, when it was not an address.
    pub host: Option<&'a str>,
}

impl ProxyHeader<'_> {
    /// The header. A text that no header can hold (65,535 bytes are all of it) is left out.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(256);
        let family = self.encode_addresses(&mut body);
        for (kind, text) in [(TLV_IDENTITY, self.identity), (TLV_HOST, self.host)] {
            if let Some(text) = text {
                encode_text(&mut body, kind, text.as_bytes());
            }
        }
        let mut header = Vec::with_capacity(16 + body.len());
        header.extend_from_slice(&SIGNATURE);
        header.extend_from_slice(&[VERSION_AND_COMMAND, family]);
        let length = u16::try_from(body.len()).expect("invariant: texts that do not fit are left out");
        header.extend_from_slice(&length.to_be_bytes());
        header.extend_from_slice(&body);
        header
    }

    /// Appends both addresses, and gives family and transport. Addresses of two families cannot be written: then there
    /// are none, and the only byte that the specification has for that.
    fn encode_addresses(&self, out: &mut Vec<u8>) -> u8 {
        let family = match (
            self.source.ip().to_canonical(),
            self.destination.ip().to_canonical(),
        ) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                out.extend_from_slice(&source.octets());
                out.extend_from_slice(&destination.octets());
                0x11
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                out.extend_from_slice(&source.octets());
                out.extend_from_slice(&destination.octets());
                0x21
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return 0x00,
        };
        out.extend_from_slice(&self.source.port().to_be_bytes());
        out.extend_from_slice(&self.destination.port().to_be_bytes());
        family
    }
}

fn encode_text(out: &mut Vec<u8>, kind: u8, text: &[u8]) {
    let Ok(length) = u16::try_from(text.len()) else {
        return;
    };
    if out.len() + 3 + text.len() > usize::from(u16::MAX) {
        return;
    }
    out.push(kind);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(source: &str, destination: &str) -> ProxyHeader<'static> {
        ProxyHeader {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
            identity: None,
            host: None,
        }
    }

    #[test]
    fn an_ipv4_header_with_an_identity_byte_for_byte() {
        let header = ProxyHeader {
            identity: Some("spiffe://td/ns/a/sa/b"),
            ..header("10.1.2.3:40000", "10.96.0.1:80")
        };
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        expected.extend_from_slice(&[0x21, 0x11, 0, 12 + 3 + 21]);
        expected.extend_from_slice(&[10, 1, 2, 3, 10, 96, 0, 1, 0x9c, 0x40, 0, 80]);
        expected.extend_from_slice(&[0xd0, 0, 21]);
        expected.extend_from_slice(b"spiffe://td/ns/a/sa/b");
        assert_eq!(header.encode(), expected);
    }

    #[test]
    fn an_ipv6_header_with_a_host_byte_for_byte() {
        let header = ProxyHeader {
            host: Some("web.shop"),
            ..header("[fd00::5]:1", "[fd00::96]:443")
        };
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        expected.extend_from_slice(&[0x21, 0x21, 0, 36 + 3 + 8]);
        expected.extend_from_slice(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
        expected.extend_from_slice(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x96]);
        expected.extend_from_slice(&[0, 1, 1, 0xbb]);
        expected.extend_from_slice(&[0xd1, 0, 8]);
        expected.extend_from_slice(b"web.shop");
        assert_eq!(header.encode(), expected);
    }

    #[test]
    fn addresses_of_two_families_are_left_out() {
        let header = ProxyHeader {
            identity: Some("x"),
            ..header("[fd00::5]:1", "10.96.0.1:80")
        };
        assert_eq!(&header.encode()[12..], [0x21, 0x00, 0, 4, 0xd0, 0, 1, b'x']);
    }

    #[test]
    fn a_mapped_address_is_an_ipv4_address() {
        let mapped = header("[::ffff:10.1.2.3]:1", "10.96.0.1:80").encode();
        assert_eq!(mapped, header("10.1.2.3:1", "10.96.0.1:80").encode());
    }

    #[test]
    fn a_text_that_no_header_can_hold_is_left_out() {
        let bare = header("10.1.2.3:1", "10.96.0.1:80");
        let fits = "x".repeat(65_535 - 12 - 3);
        let full = ProxyHeader {
            identity: Some(&fits),
            host: Some("one more"),
            ..bare
        };
        let bytes = full.encode();
        assert_eq!(bytes.len(), 16 + 65_535);
        let beyond = "x".repeat(65_535);
        let left_out = ProxyHeader {
            identity: Some(&beyond),
            ..bare
        };
        assert_eq!(left_out.encode(), bare.encode());
    }

    /// By their types.
    type Texts = Vec<(u8, Vec<u8>)>;

    /// Both addresses, then the texts.
    fn read(bytes: &[u8]) -> (Option<(SocketAddr, SocketAddr)>, Texts) {
        assert_eq!(bytes[..12], SIGNATURE);
        assert_eq!(bytes[12], 0x21);
        assert_eq!(
            usize::from(u16::from_be_bytes([bytes[14], bytes[15]])),
            bytes.len() - 16
        );
        let mut rest = &bytes[16..];
        let mut take = |count: usize| {
            let (taken, left) = rest.split_at(count);
            rest = left;
            taken.to_vec()
        };
        let port = |bytes: Vec<u8>| u16::from_be_bytes([bytes[0], bytes[1]]);
        let address_bytes = match bytes[13] {
            0x00 => 0,
            0x11 => 4,
            0x21 => 16,
            other => panic!("family {other:#x}"),
        };
        let ip = |bytes: Vec<u8>| match <[u8; 4]>::try_from(&bytes[..]) {
            Ok(bytes) => IpAddr::from(bytes),
            Err(_) => IpAddr::from(<[u8; 16]>::try_from(&bytes[..]).expect("16 bytes")),
        };
        let addresses = (address_bytes > 0).then(|| {
            let (source, destination) = (ip(take(address_bytes)), ip(take(address_bytes)));
            let (from, to) = (port(take(2)), port(take(2)));
            (SocketAddr::new(source, from), SocketAddr::new(destination, to))
        });
        let mut texts = Vec::new();
        while !rest.is_empty() {
            let (head, left) = rest.split_at(3);
            let (text, left) = left.split_at(usize::from(u16::from_be_bytes([head[1], head[2]])));
            texts.push((head[0], text.to_vec()));
            rest = left;
        }
        (addresses, texts)
    }

    fn address() -> impl Strategy<Value = SocketAddr> {
        prop_oneof![
            any::<[u8; 4]>().prop_map(IpAddr::from),
            any::<[u8; 16]>().prop_map(IpAddr::from)
        ]
        .prop_flat_map(|ip| any::<u16>().prop_map(move |port| SocketAddr::new(ip.to_canonical(), port)))
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read(
            source in address(),
            destination in address(),
            identity in prop::option::of("\\PC{0,300}"),
            host in prop::option::of("\\PC{0,300}"),
        ) {
            let header = ProxyHeader {
                source,
                destination,
                identity: identity.as_deref(),
                host: host.as_deref(),
            };
            let (addresses, texts) = read(&header.encode());
            let same_family = source.is_ipv4() == destination.is_ipv4();
            prop_assert_eq!(addresses, same_family.then_some((source, destination)));
            let expected: Texts = [(0xd0, identity), (0xd1, host)]
                .into_iter()
                .filter_map(|(kind, text)| Some((kind, text?.into_bytes())))
                .collect();
            prop_assert_eq!(texts, expected);
        }
    }
}
