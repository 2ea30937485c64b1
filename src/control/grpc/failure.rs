//! What it means to a call that the transport failed: a gRPC status that names the cause.
//!
//! Control thread, pure. What hyper says of an error leaves out what that came of, which is all that tells a
//! connection that was closed from a server that found fault. Specification: "gRPC over HTTP/2", errors.

use std::error::Error;
use std::iter::successors;

use h2::Reason;
use tonic::{Code, Status};

/// The status of a call that ended with such an error of the transport, which is its source, and with none of the
/// server's.
pub fn status(error: Box<dyn Error + Send + Sync>) -> Status {
    let reset = causes(&*error).find_map(|cause| cause.downcast_ref::<h2::Error>());
    let mut status = Status::new(reset.map_or(Code::Unknown, code), text(&*error));
    status.set_source(error.into());
    status
}

/// An error and what it came of, outermost first.
pub fn text(error: &(dyn Error + 'static)) -> String {
    let texts: Vec<String> = causes(error).map(ToString::to_string).collect();
    texts.join(": ")
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |&error| error.source())
}

fn code(error: &h2::Error) -> Code {
    match error.reason() {
        // The server goes away, and did not begin with the call. As a reset it is a fault: no status came before.
        Some(Reason::NO_ERROR) if error.is_go_away() => Code::Unavailable,
        Some(
            Reason::NO_ERROR
            | Reason::PROTOCOL_ERROR
            | Reason::INTERNAL_ERROR
            | Reason::FLOW_CONTROL_ERROR
            | Reason::SETTINGS_TIMEOUT
            | Reason::FRAME_SIZE_ERROR
            | Reason::COMPRESSION_ERROR
            | Reason::CONNECT_ERROR,
        ) => Code::Internal,
        Some(Reason::REFUSED_STREAM) => Code::Unavailable,
        Some(Reason::CANCEL) => Code::Cancelled,
        Some(Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
        Some(Reason::INADEQUATE_SECURITY) => Code::PermissionDenied,
        // Without a reason the connection was closed, as it is when the server's process ends.
        Some(_) | None => Code::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("error of the body")]
    struct OfTheBody(#[source] h2::Error);

    #[test]
    fn a_reset_has_the_code_of_its_reason_and_a_closed_connection_none() {
        for (reason, code) in [
            (Reason::NO_ERROR, Code::Internal),
            (Reason::PROTOCOL_ERROR, Code::Internal),
            (Reason::INTERNAL_ERROR, Code::Internal),
            (Reason::FLOW_CONTROL_ERROR, Code::Internal),
            (Reason::SETTINGS_TIMEOUT, Code::Internal),
            (Reason::STREAM_CLOSED, Code::Unknown),
            (Reason::FRAME_SIZE_ERROR, Code::Internal),
            (Reason::REFUSED_STREAM, Code::Unavailable),
            (Reason::CANCEL, Code::Cancelled),
            (Reason::COMPRESSION_ERROR, Code::Internal),
            (Reason::CONNECT_ERROR, Code::Internal),
            (Reason::ENHANCE_YOUR_CALM, Code::ResourceExhausted),
            (Reason::INADEQUATE_SECURITY, Code::PermissionDenied),
            (Reason::HTTP_1_1_REQUIRED, Code::Unknown),
        ] {
            let status = status(Box::new(OfTheBody(reason.into())));
            assert!(status.source().is_some_and(<dyn Error>::is::<OfTheBody>));
            assert_eq!(status.code(), code, "{reason:?}");
            let expected = format!("error of the body: protocol error: {}", reason.description());
            assert_eq!(status.message(), expected);
        }
        let closed = status(Box::new(std::io::Error::from(
            std::io::ErrorKind::ConnectionReset,
        )));
        assert_eq!(
            (closed.code(), closed.message()),
            (Code::Unknown, "connection reset")
        );
    }
}
