//! What we send is what we accept; every malformed message has its reason.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::limits::{AUTHORITY_BYTES_MAX, BAGGAGE_BYTES_MAX, FORWARDED_BYTES_MAX, NETWORK_BYTES_MAX};
use crate::wire::http2::hpack::Decoder;

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

type Field<'a> = (&'a str, &'a str);

const CONNECT: Field<'static> = (":method", "CONNECT");
const AUTHORITY: Field<'static> = (":authority", "10.1.2.3:8080");

fn request(fields: &[Field<'_>]) -> Result<IncomingRequest, MalformedMessage> {
    let mut incoming = RequestFields::new();
    fields
        .iter()
        .for_each(|(name, value)| incoming.push(name.as_bytes(), value.as_bytes()));
    incoming.finish()
}

fn response(fields: &[Field<'_>]) -> Result<IncomingResponse, MalformedMessage> {
    let mut incoming = ResponseFields::new();
    fields
        .iter()
        .for_each(|(name, value)| incoming.push(name.as_bytes(), value.as_bytes()));
    incoming.finish()
}

/// A CONNECT that is right but for `field`.
fn connect_with(field: Field<'_>) -> Result<IncomingRequest, MalformedMessage> {
    request(&[CONNECT, AUTHORITY, field])
}

fn fault(name: &str, variant: fn(String) -> MalformedMessage) -> Result<IncomingRequest, MalformedMessage> {
    Err(variant(name.to_owned()))
}

#[test]
fn a_request_we_send_is_one_we_accept() {
    let sent = ConnectRequest {
        authority: "[2001:db8::1]:8080",
        baggage: Some("k8s.cluster.name=c,service.name=s"),
        forwarded: Some("for=\"10.0.0.1:5000\";host=s.ns.svc.cluster.local"),
        traceparent: Some(TRACEPARENT),
        forwarded_network: Some("net-1"),
    };
    let mut block = Vec::new();
    sent.encode(&mut block);
    let mut incoming = RequestFields::new();
    Decoder::new(4096)
        .decode(&block, 16384, &mut |name, value| incoming.push(name, value))
        .expect("our own block");
    let received = incoming.finish().expect("well formed");
    assert_eq!(received.method, Method::Connect);
    assert_eq!(received.authority, sent.authority);
    assert_eq!(received.baggage, [sent.baggage.expect("set")]);
    assert_eq!(received.forwarded.as_deref(), sent.forwarded);
    assert_eq!(received.traceparent.as_deref(), sent.traceparent);
    assert_eq!(received.forwarded_network.as_deref(), sent.forwarded_network);
}

#[test]
fn a_response_we_send_is_one_we_accept() {
    for (status, baggage) in [
        (200, Some("service.name=s")),
        (200, None),
        (400, None),
        (401, None),
        (503, None),
    ] {
        let mut block = Vec::new();
        ConnectResponse { status, baggage }.encode(&mut block);
        let mut incoming = ResponseFields::new();
        Decoder::new(4096)
            .decode(&block, 16384, &mut |name, value| incoming.push(name, value))
            .expect("our own block");
        let baggage = baggage.map(str::to_owned);
        assert_eq!(incoming.finish(), Ok(IncomingResponse { status, baggage }));
    }
}

#[test]
fn a_bare_connect_has_no_metadata() {
    let received = request(&[CONNECT, AUTHORITY]).expect("well formed");
    let expected = IncomingRequest {
        method: Method::Connect,
        authority: "10.1.2.3:8080".to_owned(),
        baggage: Vec::new(),
        traceparent: None,
        forwarded: None,
        forwarded_network: None,
    };
    assert_eq!(received, expected);
}

#[test]
fn a_connect_without_authority_is_left_to_the_journey_to_answer() {
    let received = request(&[CONNECT]).expect("answered with 400 instead of a reset");
    assert_eq!(
        received.authority.parse::<Authority>(),
        Err(InvalidAuthority::Empty)
    );
}

#[test]
fn other_methods_are_reported_when_their_form_is_right() {
    let get = [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/"),
        (":authority", "a"),
    ];
    assert_eq!(
        request(&get).map(|request| request.method),
        Ok(Method::Other("GET".to_owned()))
    );
    // Methods are case-sensitive.
    let lower = [(":method", "connect"), (":scheme", "https"), (":path", "/")];
    assert_eq!(
        request(&lower).map(|request| request.method),
        Ok(Method::Other("connect".to_owned()))
    );
    assert_eq!(
        request(&get[..1]),
        Err(MalformedMessage::PseudoMissing(":scheme"))
    );
    assert_eq!(request(&get[..2]), Err(MalformedMessage::PseudoMissing(":path")));
}

#[test]
fn pseudo_headers_come_once_first_and_known() {
    assert_eq!(
        request(&[AUTHORITY]),
        Err(MalformedMessage::PseudoMissing(":method"))
    );
    assert_eq!(request(&[]), Err(MalformedMessage::PseudoMissing(":method")));
    assert_eq!(
        connect_with(CONNECT),
        Err(MalformedMessage::PseudoRepeated(":method"))
    );
    assert_eq!(
        connect_with(AUTHORITY),
        Err(MalformedMessage::PseudoRepeated(":authority"))
    );
    assert_eq!(
        connect_with((":scheme", "https")),
        Err(MalformedMessage::PseudoForbidden(":scheme"))
    );
    assert_eq!(
        connect_with((":path", "/")),
        Err(MalformedMessage::PseudoForbidden(":path"))
    );
    for unknown in [":status", ":protocol", ":", ":Method"] {
        assert_eq!(
            connect_with((unknown, "x")),
            fault(unknown, MalformedMessage::PseudoUnknown)
        );
    }
    assert_eq!(
        request(&[CONNECT, ("baggage", "a=b"), AUTHORITY]),
        fault(":authority", MalformedMessage::PseudoMisplaced)
    );
}

#[test]
fn names_and_values_with_forbidden_characters_are_refused() {
    for name in ["", "Baggage", "a b", "a:b", "a\u{7f}", "a\u{e9}", "a\0", "a\n"] {
        assert_eq!(
            connect_with((name, "x")),
            fault(name, MalformedMessage::FieldName),
            "{name:?}"
        );
    }
    for value in ["a\0b", "a\rb", "a\nb", " a", "a ", "\ta", "a\t", " "] {
        assert_eq!(
            connect_with(("a", value)),
            fault("a", MalformedMessage::FieldValue),
            "{value:?}"
        );
    }
    assert!(connect_with(("a!#$%&'*+-.^_`|~9", "")).is_ok());
    assert!(connect_with(("a", "b \t\u{e9} c")).is_ok());
}

#[test]
fn headers_of_a_http_1_connection_are_refused() {
    for name in [
        "connection",
        "proxy-connection",
        "keep-alive",
        "transfer-encoding",
        "upgrade",
    ] {
        assert_eq!(
            connect_with((name, "x")),
            fault(name, MalformedMessage::ConnectionSpecific)
        );
    }
    assert_eq!(
        connect_with(("te", "gzip")),
        fault("te", MalformedMessage::FieldValue)
    );
    assert!(connect_with(("te", "trailers")).is_ok());
    // RFC 9110 9.3.6: without meaning here.
    assert!(connect_with(("content-length", "5")).is_ok());
}

#[test]
fn the_first_fault_is_the_one_reported_and_its_name_is_cut() {
    let name = "X".repeat(10_000);
    let shown = "X".repeat(64);
    assert_eq!(
        request(&[CONNECT, (&name, "x"), ("upgrade", "x")]),
        fault(&shown, MalformedMessage::FieldName)
    );
}

#[test]
fn what_a_request_is_routed_by_must_fit() {
    let too_long = |name, max| {
        Err(MalformedMessage::TooLong {
            name,
            bytes: max + 1,
            max,
        })
    };
    let authority = "x".repeat(AUTHORITY_BYTES_MAX + 1);
    assert_eq!(
        request(&[CONNECT, (":authority", &authority)]),
        too_long(":authority", AUTHORITY_BYTES_MAX)
    );
    assert!(request(&[CONNECT, (":authority", &authority[1..])]).is_ok());
    let network = "x".repeat(NETWORK_BYTES_MAX + 1);
    assert_eq!(
        connect_with(("x-forwarded-network", &network)),
        too_long("x-forwarded-network", NETWORK_BYTES_MAX)
    );
    assert!(connect_with(("x-forwarded-network", &network[1..])).is_ok());
    let method = "M".repeat(33);
    assert_eq!(request(&[(":method", &method)]), too_long(":method", 32));
    assert_eq!(
        request(&[(":method", &method)])
            .expect_err("too long")
            .to_string(),
        ":method of 33 bytes (at most 32)"
    );
}

#[test]
fn labels_that_do_not_fit_are_left_out() {
    let half = "x".repeat(BAGGAGE_BYTES_MAX / 2);
    let fits = request(&[CONNECT, AUTHORITY, ("baggage", &half), ("baggage", &half)]).expect("well formed");
    assert_eq!(fits.baggage.len(), 2);
    let lines = [
        CONNECT,
        AUTHORITY,
        ("baggage", &half),
        ("baggage", &half),
        ("baggage", "y"),
    ];
    assert_eq!(
        request(&lines).expect("well formed").baggage,
        Vec::<String>::new()
    );
    let forwarded = "x".repeat(FORWARDED_BYTES_MAX + 1);
    assert_eq!(
        connect_with(("forwarded", &forwarded))
            .expect("well formed")
            .forwarded,
        None
    );
    assert!(
        connect_with(("forwarded", &forwarded[1..]))
            .expect("well formed")
            .forwarded
            .is_some()
    );
    let longer = format!("{TRACEPARENT}0");
    assert_eq!(
        connect_with(("traceparent", &longer))
            .expect("well formed")
            .traceparent,
        None
    );
}

#[test]
fn a_header_that_may_come_once_counts_the_first_time() {
    let received = request(&[
        CONNECT,
        AUTHORITY,
        ("forwarded", "host=a"),
        ("forwarded", "host=b"),
        ("x-forwarded-network", "n1"),
        ("x-forwarded-network", "n2"),
        ("traceparent", TRACEPARENT),
        ("traceparent", &TRACEPARENT.replace('4', "5")),
    ])
    .expect("well formed");
    assert_eq!(received.forwarded.as_deref(), Some("host=a"));
    assert_eq!(received.forwarded_network.as_deref(), Some("n1"));
    assert_eq!(received.traceparent.as_deref(), Some(TRACEPARENT));
}

#[test]
fn a_response_has_one_valid_status() {
    assert_eq!(
        response(&[("baggage", "a=b")]),
        Err(MalformedMessage::PseudoMissing(":status"))
    );
    assert_eq!(
        response(&[(":status", "200"), (":status", "200")]),
        Err(MalformedMessage::PseudoRepeated(":status"))
    );
    assert_eq!(
        response(&[("baggage", "a=b"), (":status", "200")]),
        Err(MalformedMessage::PseudoMisplaced(":status".to_owned()))
    );
    assert_eq!(
        response(&[(":status", "200"), AUTHORITY]),
        Err(MalformedMessage::PseudoUnknown(":authority".to_owned()))
    );
    for status in ["", "20", "2000", "2x0", "+20", "099", "101", "\u{ff12}00"] {
        let expected = Err(MalformedMessage::Status(status.to_owned()));
        assert_eq!(response(&[(":status", status)]), expected, "{status:?}");
    }
    let interim = response(&[(":status", "103")]).expect("well formed");
    assert!(interim.is_interim());
    assert!(!response(&[(":status", "200")]).expect("well formed").is_interim());
}

#[test]
fn lines_of_baggage_in_a_response_are_joined_or_left_out_together() {
    let joined =
        response(&[(":status", "200"), ("baggage", "a=b"), ("baggage", "c=d")]).expect("well formed");
    assert_eq!(joined.baggage.as_deref(), Some("a=b,c=d"));
    let long = "x".repeat(BAGGAGE_BYTES_MAX - 3);
    let dropped =
        response(&[(":status", "200"), ("baggage", "a=b"), ("baggage", &long)]).expect("well formed");
    assert_eq!(dropped.baggage, None);
}

#[test]
fn trailers_have_no_pseudo_headers() {
    assert_eq!(check_trailer(b"grpc-status", b"0"), Ok(()));
    assert_eq!(
        check_trailer(b":status", b"200"),
        Err(MalformedMessage::PseudoMisplaced(":status".to_owned()))
    );
    assert_eq!(
        check_trailer(b"A", b""),
        Err(MalformedMessage::FieldName("A".to_owned()))
    );
}

#[test]
fn authorities_of_the_three_forms_are_understood() {
    for text in ["10.1.2.3:8080", "[2001:db8::1]:1", "[::]:65535"] {
        assert_eq!(
            text.parse(),
            Ok(Authority::Ip(text.parse().expect("socket address")))
        );
    }
    for (text, host, port) in [
        (
            "reviews.shop.svc.cluster.local:9080",
            "reviews.shop.svc.cluster.local",
            9080,
        ),
        ("Reviews.Shop:80", "Reviews.Shop", 80),
        ("a_b-c:00443", "a_b-c", 443),
        ("1.example:1", "1.example", 1),
        ("absolute.example.:1", "absolute.example.", 1),
    ] {
        let authority: Authority = text.parse().expect("valid");
        assert_eq!(
            authority,
            Authority::Host {
                host: host.to_owned(),
                port
            }
        );
        assert_eq!(authority.to_string(), format!("{host}:{port}"));
        assert_eq!(authority.port(), port);
    }
}

#[test]
fn other_authorities_are_refused_with_their_reason() {
    use InvalidAuthority as Bad;
    type Reason = fn(String) -> Bad;
    let cases: [(&str, Reason); 31] = [
        ("10.1.2.3", Bad::NoPort),
        ("host", Bad::NoPort),
        ("[2001:db8::1]", Bad::NoPort),
        ("10.1.2.3:", Bad::BadPort),
        ("10.1.2.3:0", Bad::BadPort),
        ("10.1.2.3:65536", Bad::BadPort),
        ("10.1.2.3:+80", Bad::BadPort),
        ("10.1.2.3: 80", Bad::BadPort),
        ("host:http", Bad::BadPort),
        ("host:80/", Bad::BadPort),
        ("host:4294967376", Bad::BadPort),
        ("[::1]:0", Bad::BadPort),
        ("2001:db8::1:80", Bad::BadIpv6),
        ("::1", Bad::BadIpv6),
        ("a:b:1", Bad::BadIpv6),
        ("[::1:80", Bad::BadIpv6),
        ("[::1]x:80", Bad::BadIpv6),
        ("[fe80::1%eth0]:80", Bad::BadIpv6),
        ("[10.0.0.1]:80", Bad::BadIpv6),
        ("[]:80", Bad::BadIpv6),
        ("10.1.2:80", Bad::BadIpv4),
        ("10.1.2.256:80", Bad::BadIpv4),
        ("010.1.2.3:80", Bad::BadIpv4),
        ("1:80", Bad::BadIpv4),
        ("10.1.2.3.:80", Bad::BadIpv4),
        (":80", Bad::BadHost),
        ("user@host:80", Bad::BadHost),
        ("a..b:80", Bad::BadHost),
        (".a:80", Bad::BadHost),
        ("h\u{f6}st:80", Bad::BadHost),
        ("a%20b:80", Bad::BadHost),
    ];
    for (text, expected) in cases {
        assert_eq!(
            text.parse::<Authority>(),
            Err(expected(text.to_owned())),
            "{text}"
        );
    }
    assert_eq!("".parse::<Authority>(), Err(Bad::Empty));
    let long = format!("{}:80", "a".repeat(AUTHORITY_BYTES_MAX));
    assert_eq!(long.parse::<Authority>(), Err(Bad::TooLong { bytes: long.len() }));
    assert_eq!(
        "10.1.2.3".parse::<Authority>().expect_err("no port").to_string(),
        "authority \"10.1.2.3\" names no port (expected ip:port, [ipv6]:port or host:port)"
    );
}

#[test]
fn forwarded_names_the_client_and_the_service() {
    let v4 = "10.0.0.1:5000".parse().expect("address");
    let v6 = "[2001:db8::1]:5000".parse().expect("address");
    assert_eq!(forwarded_value(v4, None), "for=\"10.0.0.1:5000\"");
    let value = forwarded_value(v6, Some("s.ns.svc"));
    assert_eq!(value, "for=\"[2001:db8::1]:5000\";host=s.ns.svc");
    assert_eq!(forwarded_host(&value).as_deref(), Some("s.ns.svc"));
}

#[test]
fn the_first_host_of_forwarded_counts() {
    for (value, host) in [
        ("host=a", Some("a")),
        ("for=x;host=\"a.b\";host=c", Some("a.b")),
        ("for=x; HOST=a ;proto=http", Some("a")),
        ("for=x, host=a, host=b", Some("a")),
        ("host=a:80", Some("a:80")),
        ("", None),
        ("for=x", None),
        ("host", None),
        ("host=", None),
        ("host=\"\"", None),
        ("host=\u{e9}", None),
        ("host=a b", None),
        ("xhost=a", None),
    ] {
        assert_eq!(forwarded_host(value).as_deref(), host, "{value:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_authority_written_is_the_one_read(ip: std::net::IpAddr, port in 1..=u16::MAX, host in "[A-Za-z][A-Za-z0-9.-]{0,40}[A-Za-z]") {
        let address = Authority::Ip(std::net::SocketAddr::new(ip, port));
        prop_assert_eq!(address.to_string().parse(), Ok(address));
        if !host.contains("..") {
            let named = Authority::Host { host, port };
            prop_assert_eq!(named.to_string().parse(), Ok(named));
        }
    }

    #[test]
    fn arbitrary_fields_never_panic_and_what_is_kept_is_bounded(
        fields in vec((
            prop_oneof![
                prop::sample::select(vec![
                    ":method", ":authority", "baggage", "forwarded", "traceparent", "x-forwarded-network",
                ]).prop_map(|name| name.as_bytes().to_vec()),
                vec(any::<u8>(), 0..20),
            ],
            prop_oneof!["CONNECT".prop_map(String::into_bytes), vec(any::<u8>(), 0..6000)],
        ), 0..12)
    ) {
        let mut incoming = RequestFields::new();
        let mut answer = ResponseFields::new();
        for (name, value) in &fields {
            incoming.push(name, value);
            answer.push(name, value);
        }
        // Bytes that are no UTF-8 take three instead of one.
        if let Ok(request) = incoming.finish() {
            prop_assert!(request.authority.len() <= 3 * AUTHORITY_BYTES_MAX);
            prop_assert!(request.baggage.iter().map(String::len).sum::<usize>() <= 3 * BAGGAGE_BYTES_MAX);
            prop_assert!(request.forwarded.map_or(0, |text| text.len()) <= 3 * FORWARDED_BYTES_MAX);
        }
        if let Err(error) = answer.finish() {
            prop_assert!(error.to_string().len() < 1000);
        }
    }
}
