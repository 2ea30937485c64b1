//! Which client of a server gives its place to a new one: whoever has let the server wait for longest.
//!
//! Control thread. Invariant: nobody whose answer is being made gives way, nor whose answer is read, nor one whose request
//! may have come without having been looked at. What a client has
//! sent of a request is no merit: only a whole one is, so that no place is kept by a byte now and then.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::Body;
use crate::clock::{self, Duration, Instant};
use crate::limits;

/// One connection, as far as it concerns its place.
pub struct Client {
    /// The server waits for a request; `None` from when it is whole until its answer is made.
    request_awaited_since: Cell<Option<Instant>>,
    /// The socket takes no more of the answer.
    unread_since: Cell<Option<Instant>>,
    unread_time_max: Duration,
    gives_way: Notify,
}

impl Client {
    pub fn new(unread_time_max: Duration) -> Rc<Self> {
        Rc::new(Self {
            unread_time_max,
            request_awaited_since: Cell::new(Some(clock::now())),
            unread_since: Cell::default(),
            gives_way: Notify::new(),
        })
    }

    /// From when on it may be ended for another, if ever as it stands.
    pub fn gives_way_at(&self) -> Option<Instant> {
        match self.unread_since.get() {
            Some(since) => Some(since + self.unread_time_max),
            None => Some(self.request_awaited_since.get()? + limits::HTTP_SILENT_TIME_MAX),
        }
    }

    pub fn give_way(&self) {
        self.gives_way.notify_one();
    }

    pub async fn has_to_give_way(&self) {
        self.gives_way.notified().await;
    }

    pub fn request_came(&self) {
        self.request_awaited_since.set(None);
    }
}

/// A body that tells when all of it is made.
pub struct Answered {
    body: Body,
    client: Rc<Client>,
}

impl Answered {
    pub fn new(body: Body, client: Rc<Client>) -> Self {
        Self { body, client }
    }
}

impl HttpBody for Answered {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        self.client.request_awaited_since.set(Some(clock::now()));
    }
}

/// A connection that notices whether its client reads.
pub struct Watched {
    stream: TokioIo<TcpStream>,
    client: Rc<Client>,
}

impl Watched {
    pub fn new(stream: TcpStream, client: Rc<Client>) -> Self {
        let stream = TokioIo::new(stream);
        Self { stream, client }
    }

    fn noticed<T>(&self, sent: Poll<T>) -> Poll<T> {
        let unread_since = &self.client.unread_since;
        unread_since.set(match sent {
            Poll::Ready(_) => None,
            Poll::Pending => unread_since.get().or_else(|| Some(clock::now())),
        });
        sent
    }
}

impl Read for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.noticed(sent)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.noticed(sent)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
