//! The messages between the CNI node agent and the proxy (ZDS): bytes to requests, replies to bytes.
//!
//! Pure. One message is one packet of a `SOCK_SEQPACKET` socket, without a length prefix; the descriptors that
//! travel beside a packet are the caller's. Specification: proto/zds.proto.
//!
//! Invariant: whatever the peer sends becomes a `Request` with a usable uid or a `RequestError`, and no encoded
//! reply is longer than `limits::ZDS_PACKET_BYTES_MAX`.

use prost::Message;

use crate::limits;

/// Generated from proto/zds.proto.
pub mod proto {
    #![allow(clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/istio.workload.zds.rs"));
}

/// What the node agent asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A pod joined; its network namespace travels beside the packet.
    Add { uid: String, info: Info },
    /// In a snapshot: the pod is known, its namespace comes later or not at all.
    Keep { uid: String },
    /// A pod left.
    Del { uid: String },
    /// The snapshot is complete.
    SnapshotSent,
}

/// Which pod, in Kubernetes' words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    pub name: String,
    pub namespace: String,
    pub service_account: String,
}

/// A packet that is no request. The texts are the ones the agent's users know from upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("no payload: {0}")]
    Undecodable(String),
    #[error("no payload: the message has none of add, keep, del, snapshot_sent")]
    Empty,
    #[error("workload_info is required but not present, in the add of pod {uid:?}")]
    NoInfo { uid: String },
    #[error("uid is required but empty, in {message:?}")]
    NoUid { message: &'static str },
}

impl Request {
    pub fn decode(packet: &[u8]) -> Result<Self, RequestError> {
        use proto::workload_request::Payload;

        let message = proto::WorkloadRequest::decode(packet)
            .map_err(|error| RequestError::Undecodable(error.to_string()))?;
        match message.payload {
            None => Err(RequestError::Empty),
            Some(Payload::Add(add)) => {
                let uid = required_uid("add", add.uid)?;
                match add.workload_info {
                    None => Err(RequestError::NoInfo { uid }),
                    Some(info) => Ok(Self::Add {
                        uid,
                        info: info.into(),
                    }),
                }
            }
            Some(Payload::Keep(keep)) => Ok(Self::Keep {
                uid: required_uid("keep", keep.uid)?,
            }),
            Some(Payload::Del(del)) => Ok(Self::Del {
                uid: required_uid("del", del.uid)?,
            }),
            Some(Payload::SnapshotSent(proto::SnapshotSent {})) => Ok(Self::SnapshotSent),
        }
    }
}

impl From<proto::WorkloadInfo> for Info {
    fn from(info: proto::WorkloadInfo) -> Self {
        Self {
            name: info.name,
            namespace: info.namespace,
            service_account: info.service_account,
        }
    }
}

/// The first packet of a connection, sent by the proxy.
pub fn encode_hello() -> Vec<u8> {
    proto::ZdsHello {
        version: proto::Version::V1.into(),
    }
    .encode_to_vec()
}

/// The answer to a request that was carried out.
pub fn encode_ack() -> Vec<u8> {
    encode_response(String::new())
}

/// The answer to a request that was not. The text is cut to what fits the agent's buffer.
pub fn encode_nack(reason: &str) -> Vec<u8> {
    let mut end = reason.len().min(limits::ZDS_NACK_TEXT_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let text = &reason[..end];
    // An empty text would mean success.
    encode_response(if text.is_empty() {
        "unspecified failure".to_owned()
    } else {
        text.to_owned()
    })
}

fn encode_response(error: String) -> Vec<u8> {
    let ack = proto::workload_response::Payload::Ack(proto::Ack { error });
    proto::WorkloadResponse { payload: Some(ack) }.encode_to_vec()
}

fn required_uid(message: &'static str, uid: String) -> Result<String, RequestError> {
    if uid.is_empty() {
        Err(RequestError::NoUid { message })
    } else {
        Ok(uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(uid: &str, info: Option<proto::WorkloadInfo>) -> Vec<u8> {
        let add = proto::AddWorkload {
            uid: uid.to_owned(),
            workload_info: info,
        };
        request(proto::workload_request::Payload::Add(add))
    }

    fn request(payload: proto::workload_request::Payload) -> Vec<u8> {
        proto::WorkloadRequest {
            payload: Some(payload),
        }
        .encode_to_vec()
    }

    #[test]
    fn the_golden_bytes_of_the_specification_are_produced_and_understood() {
        assert_eq!(encode_hello(), [0x08, 0x01]);
        assert_eq!(encode_ack(), [0x0a, 0x00]);
        assert_eq!(Request::decode(&[0x1a, 0x00]), Ok(Request::SnapshotSent));
    }

    #[test]
    fn every_request_is_decoded() {
        let info = proto::WorkloadInfo {
            name: "cart-7f-a".to_owned(),
            namespace: "shop".to_owned(),
            service_account: "cart".to_owned(),
        };
        assert_eq!(
            Request::decode(&add("u1", Some(info))),
            Ok(Request::Add {
                uid: "u1".to_owned(),
                info: Info {
                    name: "cart-7f-a".to_owned(),
                    namespace: "shop".to_owned(),
                    service_account: "cart".to_owned(),
                },
            })
        );
        let keep = proto::workload_request::Payload::Keep(proto::KeepWorkload { uid: "u1".to_owned() });
        assert_eq!(
            Request::decode(&request(keep)),
            Ok(Request::Keep { uid: "u1".to_owned() })
        );
        // Field 2, not 1, carries the uid of a del.
        assert_eq!(
            Request::decode(&[0x12, 0x04, 0x12, 0x02, b'u', b'1']),
            Ok(Request::Del { uid: "u1".to_owned() })
        );
    }

    #[test]
    fn what_is_no_request_is_refused_by_name() {
        assert_eq!(Request::decode(&[]), Err(RequestError::Empty));
        assert_eq!(
            Request::decode(&[0x3a, 0x00]),
            Err(RequestError::Empty),
            "unknown member of the payload"
        );
        assert!(matches!(
            Request::decode(&[0x0a, 0x7f]),
            Err(RequestError::Undecodable(_))
        ));
        assert!(matches!(
            Request::decode(&[0xff; 64]),
            Err(RequestError::Undecodable(_))
        ));
        assert_eq!(
            Request::decode(&add("u1", None)),
            Err(RequestError::NoInfo { uid: "u1".to_owned() })
        );
        assert_eq!(
            Request::decode(&add("", None)),
            Err(RequestError::NoUid { message: "add" })
        );
        assert_eq!(
            Request::decode(&[0x12, 0x00]),
            Err(RequestError::NoUid { message: "del" })
        );
    }

    #[test]
    fn a_long_refusal_is_cut_between_characters_and_fits_the_agents_buffer() {
        let packet = encode_nack(&"\u{00e9}".repeat(2000));
        assert!(packet.len() <= limits::ZDS_PACKET_BYTES_MAX);
        let response = proto::WorkloadResponse::decode(&packet[..]).expect("well formed");
        let Some(proto::workload_response::Payload::Ack(ack)) = response.payload else {
            panic!("an ack was encoded");
        };
        assert!(ack.error.chars().all(|character| character == '\u{00e9}'));
    }

    #[test]
    fn a_refusal_without_a_reason_is_not_taken_for_success() {
        assert_ne!(encode_nack(""), encode_ack());
    }
}
