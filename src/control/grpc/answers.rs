//! The answers of a stream in the pieces in which they arrive: nothing is put together, nothing is copied.
//!
//! Control thread. A response of discovery may have 40 MB; whoever reads it piece by piece never holds all of it, and
//! what comes slowly is looked at while the rest is on its way. Invariants: pieces of one message follow each other,
//! their lengths add up to what the message's head says, and the last one says that it is the last; an announced
//! length above the bound ends the stream before anything is read. Specification: "gRPC over HTTP/2", responses.

use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use hyper::{HeaderMap, Response, StatusCode};
use tonic::{Code, Status};

use super::failure;

/// The head of a message: whether it is compressed, and its length.
const HEAD_BYTES: usize = 5;

/// The answers of one stream, from a body of HTTP/2.
#[derive(Debug)]
pub struct Answers<B> {
    body: B,
    message_bytes_max: usize,
    /// The first headers held the status already.
    has_status: bool,
    /// What came of a frame and was not given out yet.
    frame: Bytes,
    head: [u8; HEAD_BYTES],
    head_bytes: usize,
    /// Of the message whose head was read: what is still to come.
    rest_bytes: Option<usize>,
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub bytes: Bytes,
    /// Of the same message, still to come; after the last piece none.
    pub rest_bytes: usize,
}

impl<B> Answers<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Of a response: an error, if that is what its headers say.
    pub fn new(response: Response<B>, message_bytes_max: usize) -> Result<Self, Status> {
        let has_status = match Status::from_header_map(response.headers()) {
            Some(status) if status.code() != Code::Ok => return Err(status),
            status => status.is_some(),
        };
        if response.status() != StatusCode::OK {
            return Err(no_grpc(response.status()));
        }
        Ok(Self {
            body: response.into_body(),
            message_bytes_max,
            has_status,
            frame: Bytes::new(),
            head: [0; HEAD_BYTES],
            head_bytes: 0,
            rest_bytes: None,
        })
    }

    /// The next piece, or none when the server ended the stream without complaint. May be given up at any time: what
    /// came is kept for the next call.
    pub async fn next(&mut self) -> Result<Option<Piece>, Status> {
        loop {
            if let Some(piece) = self.cut()? {
                return Ok(Some(piece));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => match Frame::into_data(frame) {
                    Ok(data) => self.frame = data,
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            return self.ended(&trailers).map(|()| None);
                        }
                    }
                },
                Some(Err(error)) => return Err(failure::status(error.into())),
                None => return self.ended(&HeaderMap::new()).map(|()| None),
            }
        }
    }

    /// What of the frame belongs to one message.
    fn cut(&mut self) -> Result<Option<Piece>, Status> {
        let rest = match self.rest_bytes {
            Some(rest) => rest,
            None => {
                let more = self.frame.len().min(HEAD_BYTES - self.head_bytes);
                let (from, to) = (self.head_bytes, self.head_bytes + more);
                self.frame.copy_to_slice(&mut self.head[from..to]);
                self.head_bytes = to;
                if to < HEAD_BYTES {
                    return Ok(None);
                }
                self.head_bytes = 0;
                let length = message_bytes(self.head, self.message_bytes_max)?;
                if length > 0 && self.frame.is_empty() {
                    self.rest_bytes = Some(length);
                    return Ok(None);
                }
                length
            }
        };
        if rest > 0 && self.frame.is_empty() {
            return Ok(None);
        }
        let bytes = self.frame.split_to(rest.min(self.frame.len()));
        let rest_bytes = rest - bytes.len();
        self.rest_bytes = Some(rest_bytes).filter(|rest| *rest > 0);
        Ok(Some(Piece { bytes, rest_bytes }))
    }

    fn ended(&self, trailers: &HeaderMap) -> Result<(), Status> {
        match Status::from_header_map(trailers) {
            Some(status) if status.code() != Code::Ok => return Err(status),
            Some(_) => {}
            None if self.has_status => {}
            // A proxy in between that gives up looks like this, too.
            None => return Err(Status::unknown("the stream ended without a grpc-status")),
        }
        if self.head_bytes > 0 || self.rest_bytes.is_some() {
            return Err(Status::internal("the stream ended within a message"));
        }
        Ok(())
    }
}

fn no_grpc(status: StatusCode) -> Status {
    // "HTTP to gRPC status code mapping" of the gRPC project.
    let code = match status {
        StatusCode::BAD_REQUEST => Code::Internal,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::Unimplemented,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Code::Unavailable,
        _ => Code::Unknown,
    };
    Status::new(code, format!("the answer is HTTP {status}, expected 200"))
}

fn message_bytes(head: [u8; HEAD_BYTES], message_bytes_max: usize) -> Result<usize, Status> {
    let [compression, a, b, c, d] = head;
    if compression != 0 {
        return Err(Status::internal(format!(
            "a message is compressed (flag {compression}), and no compression was agreed upon"
        )));
    }
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > message_bytes_max {
        return Err(Status::out_of_range(format!(
            "a message of {length} bytes is announced, at most {message_bytes_max} are taken"
        )));
    }
    Ok(length)
}

#[cfg(test)]
mod tests;
