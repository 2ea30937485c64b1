//! Messages in frames of every size, and streams that end in every way.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::*;

/// Frames that are there already.
struct Frames(VecDeque<Frame<Bytes>>);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}

/// A body that breaks at once.
struct Broken(Option<Reset>);

#[derive(Debug, thiserror::Error)]
#[error("error of the body")]
struct Reset(#[source] h2::Error);

impl Body for Broken {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        Poll::Ready(self.0.take().map(Err))
    }
}

const BYTES_MAX: usize = 1000;

fn message(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u32).to_be_bytes();
    [&[0], &length[..], bytes].concat()
}

fn trailers(status: &'static str) -> Frame<Bytes> {
    let mut headers = HeaderMap::new();
    headers.insert("grpc-status", status.parse().expect("a value"));
    headers.insert("grpc-message", "why".parse().expect("a value"));
    Frame::trailers(headers)
}

type End = Result<(), (Code, String)>;

/// The messages, and how the stream ended.
fn read(bytes: &[u8], frame_bytes: usize, end: Option<Frame<Bytes>>) -> (Vec<Vec<u8>>, End) {
    let frames = bytes
        .chunks(frame_bytes)
        .map(|it| Frame::data(Bytes::copy_from_slice(it)));
    let body = Frames(frames.chain(end).collect());
    let mut answers = Answers::new(Response::new(body), BYTES_MAX).expect("200");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let (mut messages, mut open) = (Vec::new(), None);
    loop {
        match runtime.block_on(answers.next()) {
            Ok(Some(Piece { bytes, rest_bytes })) => {
                let mut so_far: Vec<u8> = match open.take() {
                    None => Vec::new(),
                    Some((so_far, announced)) => {
                        assert_eq!(bytes.len() + rest_bytes, announced);
                        so_far
                    }
                };
                so_far.extend_from_slice(&bytes);
                match rest_bytes {
                    0 => messages.push(so_far),
                    _ => open = Some((so_far, rest_bytes)),
                }
            }
            Ok(None) => return (messages, Ok(())),
            Err(status) => return (messages, Err((status.code(), status.message().to_owned()))),
        }
    }
}

#[test]
fn messages_come_out_whole_and_in_order_however_frames_cut_them() {
    let messages = [b"first".to_vec(), Vec::new(), b"x".to_vec(), Vec::new()];
    let bytes = messages.iter().flat_map(|it| message(it)).collect::<Vec<_>>();
    for frame_bytes in 1..=bytes.len() {
        let (read, end) = read(&bytes, frame_bytes, Some(trailers("0")));
        assert_eq!(
            (read.as_slice(), end),
            (&messages[..], Ok(())),
            "frames of {frame_bytes}"
        );
    }
}

#[test]
fn a_stream_ends_with_the_servers_words_or_with_what_is_wrong_about_its_end() {
    let all = message(b"one");
    let internal = |text: &str| Err((Code::Internal, text.to_owned()));
    assert_eq!(read(&all, 9, Some(trailers("0"))).1, Ok(()));
    assert_eq!(
        read(&all, 9, Some(trailers("14"))).1,
        Err((Code::Unavailable, "why".to_owned()))
    );
    let no_status = (Code::Unknown, "the stream ended without a grpc-status".to_owned());
    assert_eq!(read(&all, 9, None).1, Err(no_status));
    for length in 1..all.len() {
        let (messages, end) = read(&all[..length], 9, Some(trailers("0")));
        assert_eq!(
            (messages.len(), end),
            (0, internal("the stream ended within a message"))
        );
    }
}

#[tokio::test]
async fn a_stream_that_breaks_ends_with_the_cause() {
    let body = Broken(Some(Reset(h2::Reason::INTERNAL_ERROR.into())));
    let mut answers = Answers::new(Response::new(body), BYTES_MAX).expect("200");
    let status = answers.next().await.expect_err("broken");
    assert_eq!(status.code(), Code::Internal);
    assert_eq!(
        status.message(),
        "error of the body: protocol error: unexpected internal error encountered"
    );
}

#[test]
fn a_message_too_long_or_compressed_ends_the_stream_before_it_is_read() {
    let head = |flag: u8, length: u32| [&[flag][..], &length.to_be_bytes()].concat();
    let limit = BYTES_MAX as u32;
    for frame_bytes in [1, 5] {
        assert_eq!(
            read(&head(0, limit + 1), frame_bytes, None).1,
            Err((
                Code::OutOfRange,
                "a message of 1001 bytes is announced, at most 1000 are taken".to_owned()
            ))
        );
        let (code, text) = read(&head(1, 3), frame_bytes, None).1.expect_err("compressed");
        assert_eq!(code, Code::Internal);
        assert!(text.contains("compressed (flag 1)"), "{text}");
    }
    let full = message(&[7; BYTES_MAX]);
    assert_eq!(read(&full, 16, Some(trailers("0"))).0, [[7; BYTES_MAX]]);
}

#[test]
fn what_is_no_stream_is_told_by_the_first_headers() {
    let opened = |status: u16, grpc: Option<&str>| {
        let mut response = Response::new(Frames(VecDeque::new()));
        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
        if let Some(grpc) = grpc {
            response
                .headers_mut()
                .insert("grpc-status", grpc.parse().expect("a value"));
        }
        Answers::new(response, BYTES_MAX).map_err(|status| status.code())
    };
    for (status, grpc, expected) in [
        (200, Some("16"), Code::Unauthenticated),
        (503, None, Code::Unavailable),
        (404, None, Code::Unimplemented),
        (403, None, Code::PermissionDenied),
        (418, None, Code::Unknown),
        (503, Some("8"), Code::ResourceExhausted),
    ] {
        assert_eq!(opened(status, grpc).err(), Some(expected), "{status} {grpc:?}");
    }
    // All said by the headers, and nothing follows.
    let mut empty = opened(200, Some("0")).expect("no error");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    assert!(runtime.block_on(empty.next()).expect("no error").is_none());
}
