//! As much HTTP/1.1 as the tests and the demo need: keep-alive requests without bodies, responses with
//! `Content-Length`.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Request or response head that is longer than this is refused.
const HEAD_BYTES_MAX: usize = 16 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Value of `x-source`: the address from which the server saw the request come.
    pub source: String,
    pub body: Vec<u8>,
}

/// A keep-alive connection of a client.
pub struct Client {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Client {
    pub async fn connect(target: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(target).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            received: Vec::new(),
        })
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// One request; `path` may carry a marker that a capture looks for.
    pub async fn get(&mut self, path: &str) -> io::Result<Response> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: shop\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await?;
        let head = read_head(&mut self.stream, &mut self.received).await?;
        let head = head.ok_or_else(|| closed("before the response"))?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| malformed("no status in", &head))?;
        let length = header(&head, "content-length").and_then(|value| value.parse::<usize>().ok());
        let length = length.ok_or_else(|| malformed("no content-length in", &head))?;
        while self.received.len() < length {
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(closed("inside the body"));
            }
        }
        let body = self.received.drain(..length).collect();
        Ok(Response {
            status,
            source: header(&head, "x-source").unwrap_or_default().to_owned(),
            body,
        })
    }
}

/// One request on a connection of its own.
pub async fn get(target: SocketAddr, path: &str) -> io::Result<Response> {
    Client::connect(target).await?.get(path).await
}

/// Answers every request with `body_bytes` bytes and the address of the peer in `x-source`.
pub async fn serve(mut stream: TcpStream, peer: SocketAddr, body_bytes: usize) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut response =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {body_bytes}\r\nx-source: {peer}\r\n\r\n").into_bytes();
    response.resize(response.len() + body_bytes, b'u');
    let mut received = Vec::new();
    while let Some(head) = read_head(&mut stream, &mut received).await? {
        stream.write_all(&response).await?;
        if header(&head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            return stream.shutdown().await;
        }
    }
    Ok(())
}

/// Takes one head from the front of `received`, reading more as needed; `None` at the end of the stream.
async fn read_head(stream: &mut TcpStream, received: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = received.drain(..end + 4).collect();
            let head = String::from_utf8(head).map_err(|_| malformed("not text:", "the head"))?;
            return Ok(Some(head));
        }
        if received.len() > HEAD_BYTES_MAX {
            return Err(malformed("longer than the limit:", "the head"));
        }
        if stream.read_buf(received).await? == 0 {
            return if received.is_empty() {
                Ok(None)
            } else {
                Err(closed("inside a head"))
            };
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

fn closed(where_: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the peer closed {where_}"))
}

fn malformed(what: &str, text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} {text:?}"))
}
