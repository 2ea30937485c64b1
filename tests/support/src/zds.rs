//! Messages of the CNI socket, written and read by hand: the rig must not share code with what it tests.
//!
//! Package `istio.workload.zds`. All fields are strings or messages (wire type 2) except the version of the
//! hello.

/// What is announced about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadInfo {
    pub name: String,
    pub namespace: String,
    pub service_account: String,
}

/// The proxy's greeting: version V1.
pub const HELLO: &[u8] = &[0x08, 0x01];
/// All pods of the snapshot were sent.
pub const SNAPSHOT_SENT: &[u8] = &[0x1a, 0x00];

pub fn add(uid: &str, info: Option<&WorkloadInfo>) -> Vec<u8> {
    let mut body = Vec::new();
    put_bytes(&mut body, 1, uid.as_bytes());
    if let Some(info) = info {
        let mut inner = Vec::new();
        put_bytes(&mut inner, 1, info.name.as_bytes());
        put_bytes(&mut inner, 2, info.namespace.as_bytes());
        put_bytes(&mut inner, 3, info.service_account.as_bytes());
        put_bytes(&mut body, 2, &inner);
    }
    request(1, &body)
}

/// The uid of a deletion has the field number 2.
pub fn delete(uid: &str) -> Vec<u8> {
    let mut body = Vec::new();
    put_bytes(&mut body, 2, uid.as_bytes());
    request(2, &body)
}

pub fn keep(uid: &str) -> Vec<u8> {
    let mut body = Vec::new();
    put_bytes(&mut body, 1, uid.as_bytes());
    request(5, &body)
}

/// `Ok` for an acknowledgement, `Err` with the proxy's words for a refusal; `None` when `bytes` is neither.
pub fn read_response(bytes: &[u8]) -> Option<Result<(), String>> {
    let ack = field(bytes, 1)?;
    if ack.is_empty() {
        return Some(Ok(()));
    }
    let error = String::from_utf8(field(ack, 1)?.to_vec()).ok()?;
    Some(if error.is_empty() { Ok(()) } else { Err(error) })
}

fn request(number: u8, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    put_bytes(&mut message, number, body);
    message
}

fn put_bytes(out: &mut Vec<u8>, number: u8, value: &[u8]) {
    out.push(number << 3 | 2);
    let mut length = value.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(value);
}

/// The value of the only field of `message`, when it has that number and wire type 2.
fn field(message: &[u8], number: u8) -> Option<&[u8]> {
    let (&tag, mut rest) = message.split_first()?;
    if tag != number << 3 | 2 {
        return None;
    }
    let mut length = 0usize;
    for shift in (0..28).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return (rest.len() == length).then_some(rest);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex"))
            .collect()
    }

    #[test]
    fn messages_equal_those_of_the_real_agent() {
        let info = WorkloadInfo {
            name: "cart-7f-a".to_owned(),
            namespace: "shop".to_owned(),
            service_account: "cart".to_owned(),
        };
        let expected = hex(
            "0a3f0a2438663163326433652d303030302d343030302d383030302d30303030303030303030303112170a09636172742d37662d\
             61120473686f701a0463617274",
        );
        assert_eq!(add("8f1c2d3e-0000-4000-8000-000000000001", Some(&info)), expected);
        let expected =
            hex("1226122438663163326433652d303030302d343030302d383030302d303030303030303030303032");
        assert_eq!(delete("8f1c2d3e-0000-4000-8000-000000000002"), expected);
    }

    #[test]
    fn responses_are_told_apart() {
        assert_eq!(read_response(&[0x0a, 0x00]), Some(Ok(())));
        assert_eq!(
            read_response(&hex("0a130a116e6f2073756368206e616d657370616365")),
            Some(Err("no such namespace".to_owned()))
        );
        assert_eq!(read_response(&[0x08, 0x01]), None);
        assert_eq!(read_response(&[0x0a, 0x05, 0x00]), None);
    }
}
