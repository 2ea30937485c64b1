//! RFC 9113 sections 6.2, 8.1, 8.5: requests, responses, trailers.

use super::*;

fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        hpack::encode_literal(&mut block, name.as_bytes(), value.as_bytes());
    }
    block
}

#[test]
fn any_method_is_reported_and_can_be_answered() {
    let mut bench = Bench::server(Settings::server());
    let fields = [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/"),
        (":authority", "a:1"),
    ];
    let bytes = raw(
        Kind::Headers,
        FLAG_END_HEADERS | FLAG_END_STREAM,
        1,
        &block(&fields),
    );
    let mut at = 0;
    match bench.connection.receive(&bytes, &mut at, bench.now) {
        Ok(Some(Event::Connect {
            stream,
            request,
            end: true,
        })) => {
            assert_eq!(request.method, Method::Other("GET".into()));
            bench.connection.respond(
                stream,
                &ConnectResponse {
                    status: 400,
                    baggage: None,
                },
                true,
            );
        }
        other => panic!("{other:?}"),
    }
    let sent = bench.sent();
    assert_eq!(sent.len(), 1);
    assert_eq!(
        (sent[0].0, sent[0].1),
        (Kind::Headers, FLAG_END_HEADERS | FLAG_END_STREAM)
    );
    assert!(bench.connection.is_idle());
}

#[test]
fn a_request_is_answered_once() {
    let mut bench = Bench::server(Settings::server());
    let stream = bench.accept(1);
    bench.connection.respond(stream, &OK, true);
    assert_eq!(bench.sent(), []);
    assert!(bench.connection.may_send(stream));
}

#[test]
fn a_malformed_request_costs_only_its_stream() {
    let mut bench = Bench::server(Settings::server());
    bench.accept(1);
    let fields = [(":authority", "a:1"), ("x", "y")];
    assert_eq!(
        bench.feed(&raw(Kind::Headers, FLAG_END_HEADERS, 3, &block(&fields))),
        []
    );
    assert_eq!(bench.resets(), [(3, ErrorCode::ProtocolError)]);
    assert_eq!(bench.connection.streams_open(), 1);
}

#[test]
fn a_malformed_response_is_a_stream_error() {
    let mut bench = Bench::client(Settings::client());
    let stream = bench.connection.open(7, &REQUEST).expect("a stream is left");
    bench.sent();
    let fields = [(":status", "2000")];
    let bytes = raw(Kind::Headers, FLAG_END_HEADERS, stream.get(), &block(&fields));
    assert_eq!(bench.feed(&bytes), [Seen::Reset(1, ErrorCode::ProtocolError)]);
    assert_eq!(bench.resets(), [(1, ErrorCode::ProtocolError)]);
}

#[test]
fn informational_responses_are_skipped() {
    let mut bench = Bench::client(Settings::client());
    bench.connection.open(7, &REQUEST).expect("a stream is left");
    assert_eq!(bench.feed(&response(1, 103)), []);
    assert_eq!(bench.feed(&response(1, 100)), []);
    assert_eq!(bench.feed(&response(1, 503)), [Seen::Response(1, 503, false)]);

    bench.connection.open(7, &REQUEST).expect("a stream is left");
    let mut last = response(3, 100);
    last[4] |= FLAG_END_STREAM;
    assert_eq!(bench.feed(&last), [Seen::Reset(3, ErrorCode::ProtocolError)]);
}

#[test]
fn content_before_the_response_is_a_stream_error() {
    let mut bench = Bench::client(Settings::client());
    bench.connection.open(7, &REQUEST).expect("a stream is left");
    assert_eq!(
        bench.feed(&data(1, b"early")),
        [Seen::Reset(1, ErrorCode::ProtocolError)]
    );
}

#[test]
fn a_response_may_end_its_stream() {
    let mut bench = Bench::client(Settings::client());
    let stream = bench.connection.open(7, &REQUEST).expect("a stream is left");
    let mut last = response(1, 401);
    last[4] |= FLAG_END_STREAM;
    assert_eq!(bench.feed(&last), [Seen::Response(1, 401, true)]);
    assert!(bench.connection.may_send(stream));
    bench.connection.reset(stream, ErrorCode::Cancel);
    assert!(bench.connection.is_idle());
}

#[test]
fn trailers_end_the_stream_and_are_ignored() {
    let mut bench = Bench::server(Settings::server());
    bench.accept(1);
    bench.accept(3);
    let trailers = block(&[("x", "y")]);
    let bytes = raw(Kind::Headers, FLAG_END_HEADERS | FLAG_END_STREAM, 1, &trailers);
    assert_eq!(bench.feed(&bytes), [Seen::End(1)]);
    let bytes = raw(Kind::Headers, FLAG_END_HEADERS, 3, &trailers);
    assert_eq!(
        bench.feed(&bytes),
        [Seen::Reset(3, ErrorCode::ProtocolError)],
        "section 8.1: they end it"
    );
}

#[test]
fn a_header_list_too_large_costs_only_its_stream() {
    let mut bench = Bench::server(Settings {
        header_list_bytes_max: 1000,
        ..Settings::server()
    });
    // Short on the wire, long as a list: one entry of the dynamic table, many times.
    let mut bomb = request_block();
    bomb.extend_from_slice(&[0x40, 1, b'x', 100]);
    bomb.extend_from_slice(&[b'y'; 100]);
    bomb.extend_from_slice(&[0x80 | 62; 10]);
    assert_eq!(bench.feed(&raw(Kind::Headers, FLAG_END_HEADERS, 1, &bomb)), []);
    assert_eq!(bench.resets(), [(1, ErrorCode::EnhanceYourCalm)]);
    let mut block = request_block();
    block.push(0x80 | 62);
    assert_eq!(
        bench.feed(&raw(Kind::Headers, FLAG_END_HEADERS, 3, &block)).len(),
        1,
        "the table is in step"
    );
}

#[test]
fn a_broken_header_block_ends_the_connection() {
    let mut bench = Bench::server(Settings::server());
    let reason = bench.refuse(&raw(Kind::Headers, FLAG_END_HEADERS, 1, &[0x80]));
    assert_eq!(reason.code(), ErrorCode::CompressionError);
}

#[test]
fn a_large_request_is_split_for_the_peer() {
    let mut bench = Bench::client(Settings::client());
    let baggage = "b".repeat(40_000);
    bench
        .connection
        .open(
            0,
            &ConnectRequest {
                baggage: Some(&baggage),
                ..REQUEST
            },
        )
        .expect("a stream is left");
    let output = std::mem::take(bench.connection.output());
    let mut server = Bench::server(Settings::server());
    assert_eq!(
        server.feed(&output),
        [Seen::Connect(1, "10.0.0.1:80".into(), false)]
    );
}
