//! The messages of the certificate service. Pure. Specification: proto/ca.proto, and section 2.2 of the
//! control-plane contract.

use std::time::Duration;

use prost_types::value::Kind;
use prost_types::{Struct, Value};

use crate::identity::Identity;

/// Generated from proto/ca.proto.
mod proto {
    #![allow(clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/istio.v1.auth.rs"));
}

pub use proto::{IstioCertificateRequest as Request, IstioCertificateResponse as Answer};

/// The service's only method.
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// A request on behalf of a pod: the token that travels beside it is the proxy's own, and the CA looks up whether a
/// pod of this identity runs on the proxy's node.
pub fn request(csr: &str, lifetime: Duration, identity: &Identity) -> Request {
    let impersonated = Value {
        kind: Some(Kind::StringValue(identity.to_string())),
    };
    Request {
        csr: csr.to_owned(),
        validity_duration: i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX),
        metadata: Some(Struct {
            fields: [("ImpersonatedIdentity".to_owned(), impersonated)].into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn a_request_has_the_bytes_of_the_wire() {
        let identity = Identity::new("td", "n", "a");
        let bytes = request("PEM", Duration::from_millis(86_400_900), &identity).encode_to_vec();
        let expected = [
            &b"\x0a\x03PEM\x18\x80\xa3\x05"[..],
            b"\x22\x31\x0a\x2f\x0a\x14ImpersonatedIdentity",
            b"\x12\x17\x1a\x15spiffe://td/ns/n/sa/a",
        ];
        assert_eq!(bytes, expected.concat());
    }
}
