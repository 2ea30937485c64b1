//! The wire of the rig's control plane: TLS, HTTP/2, who may ask what, gRPC framing, and the delta protocol of one
//! stream.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::messages::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use super::on_demand::{self, OnDemand};
use super::{ADDRESS, Answered, Asked, Command, MESSAGE_BYTES_MAX, Sent, Shared, TOKEN, Treatment, response};
use crate::ca::{self, Service};

const PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// Status codes of gRPC.
const OK: u32 = 0;
const RESOURCE_EXHAUSTED: u32 = 8;
const UNIMPLEMENTED: u32 = 12;
const INTERNAL: u32 = 13;
const UNAUTHENTICATED: u32 = 16;

/// A length, and one byte that says whether it is compressed.
const PREFIX_BYTES: usize = 5;

pub(super) async fn accept(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>, ca: Service) {
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            continue;
        };
        let connection = tokio::spawn(serve_connection(socket, tls.clone(), shared.clone(), ca.clone()));
        shared.with(|inner| {
            inner.connections_made += 1;
            inner.connections.push(connection.abort_handle());
        });
    }
}

async fn serve_connection(socket: TcpStream, tls: TlsAcceptor, shared: Arc<Shared>, ca: Service) {
    // A client that leaves, or does not trust the server, is its own affair.
    let Ok(socket) = tls.accept(socket).await else {
        return;
    };
    let Ok(mut connection) = h2::server::handshake(socket).await else {
        return;
    };
    // Streams end with their connection.
    let mut streams = tokio::task::JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        let (shared, ca) = (shared.clone(), ca.clone());
        streams.spawn(async move { serve_request(request, respond, shared, ca).await });
    }
}

async fn serve_request(
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    shared: Arc<Shared>,
    ca: Service,
) {
    let bearer = request.headers().get("authorization").map(HeaderValue::as_bytes);
    if bearer != Some(format!("Bearer {TOKEN}").as_bytes()) {
        return Outgoing::Unanswered(respond).end(UNAUTHENTICATED, "authentication failure");
    }
    match request.uri().path() {
        PATH => serve_stream(request, respond, shared).await,
        // A client that leaves does not want its answer.
        ca::METHOD => drop(ca.answer(request, respond).await),
        _ => Outgoing::Unanswered(respond).end(UNIMPLEMENTED, "unknown method"),
    }
}

async fn serve_stream(request: Request<RecvStream>, respond: SendResponse<Bytes>, shared: Arc<Shared>) {
    let (head, body) = request.into_parts();
    let outgoing = Outgoing::Unanswered(respond);
    let treatment = shared.with(|inner| inner.treatment());
    if let Treatment::Refuse { code, message } = &treatment {
        return outgoing.end(*code, message);
    }
    let (sender, commands) = mpsc::unbounded_channel();
    let number = shared.with(|inner| {
        inner.streams.push(sender);
        inner.streams_made += 1;
        inner.streams_made - 1
    });
    let stream = Stream {
        number,
        headers: head.headers,
        shared,
        treatment,
        types: BTreeSet::new(),
        held_back: None,
        on_demand: None,
    };
    stream.converse(body, outgoing, commands).await;
}

struct Stream {
    number: usize,
    headers: HeaderMap,
    shared: Arc<Shared>,
    treatment: Treatment,
    /// Of which there was a first request.
    types: BTreeSet<String>,
    /// The first question of all, while another one must be answered before it.
    held_back: Option<DeltaDiscoveryRequest>,
    /// Of a client that asks for addresses by name.
    on_demand: Option<OnDemand>,
}

impl Stream {
    async fn converse(
        mut self,
        mut body: RecvStream,
        mut outgoing: Outgoing,
        mut commands: mpsc::UnboundedReceiver<Command>,
    ) {
        let mut received = BytesMut::new();
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Push(response)) => self.push(&mut outgoing, response),
                    Some(Command::End { code, message }) => return outgoing.end(code, &message),
                    Some(Command::Reset(reason)) => return outgoing.reset(reason),
                    None => return,
                },
                data = body.data() => match data {
                    Some(Ok(data)) => {
                        // The client's windows are as wide as it likes.
                        let _ = body.flow_control().release_capacity(data.len());
                        received.extend_from_slice(&data);
                    }
                    Some(Err(_)) => return,
                    None => return outgoing.end(OK, ""),
                },
            }
            loop {
                match take_message(&mut received) {
                    Ok(Some(request)) => {
                        if self.asked(&mut outgoing, request).await {
                            return outgoing.end(OK, "");
                        }
                    }
                    Ok(None) => break,
                    Err((code, message)) => return outgoing.end(code, message),
                }
            }
        }
    }

    /// True when the stream is over.
    async fn asked(&mut self, outgoing: &mut Outgoing, request: DeltaDiscoveryRequest) -> bool {
        self.shared.with(|inner| {
            inner.asked.push(Asked {
                stream: self.number,
                headers: self.headers.clone(),
                request: request.clone(),
            });
            if !request.response_nonce.is_empty() {
                inner.answered.push(Answered {
                    type_url: request.type_url.clone(),
                    nonce: request.response_nonce.clone(),
                    error: request.error_detail.as_ref().map(|detail| detail.message.clone()),
                });
            }
        });
        if !request.response_nonce.is_empty() {
            return false;
        }
        if self.types.contains(&request.type_url) {
            self.asked_again(outgoing, &request);
            return false;
        }
        if !self.types.insert(request.type_url.clone()) {
            return false;
        }
        match &self.treatment {
            Treatment::Silence => return false,
            Treatment::Delay(time) => tokio::time::sleep(*time).await,
            Treatment::Reversed if self.types.len() == 1 => {
                self.held_back = Some(request);
                return false;
            }
            Treatment::Serve
            | Treatment::Reversed
            | Treatment::Refuse { .. }
            | Treatment::EndAtOnce
            | Treatment::CutShort => {}
        }
        for request in [Some(request), self.held_back.take()].into_iter().flatten() {
            let mut response = self.first_response(&request);
            if self.treatment == Treatment::Reversed {
                response.resources.reverse();
            }
            self.send(outgoing, &response);
        }
        matches!(self.treatment, Treatment::EndAtOnce | Treatment::CutShort)
    }

    fn asked_again(&mut self, outgoing: &mut Outgoing, request: &DeltaDiscoveryRequest) {
        let Some(on_demand) = self.on_demand.as_mut().filter(|_| request.type_url == ADDRESS) else {
            return;
        };
        let response = self.shared.with(|inner| {
            let held = inner.resources.get(ADDRESS).cloned().unwrap_or_default();
            let found = on_demand.asked(&held, request)?;
            Some(on_demand::response(&inner.nonce(), found))
        });
        if let Some(response) = response {
            self.send(outgoing, &response);
        }
    }

    /// A change, as far as it is this client's affair.
    fn push(&mut self, outgoing: &mut Outgoing, mut response: DeltaDiscoveryResponse) {
        if let Some(on_demand) = self.on_demand.as_mut().filter(|_| response.type_url == ADDRESS) {
            on_demand.reduce(&mut response);
            if response.resources.is_empty() && response.removed_resources.is_empty() {
                return;
            }
        }
        self.send(outgoing, &response);
    }

    fn first_response(&mut self, request: &DeltaDiscoveryRequest) -> DeltaDiscoveryResponse {
        let type_url = &request.type_url;
        let known = &request.initial_resource_versions;
        self.shared.with(|inner| {
            if let Some(bytes) = inner.replays.get(type_url) {
                return DeltaDiscoveryResponse::decode(&bytes[..]).expect("a response to replay");
            }
            let nonce = inner.nonce();
            let held = inner.resources.get(type_url).cloned().unwrap_or_default();
            if type_url == ADDRESS
                && let Some(mut on_demand) = OnDemand::of(request)
            {
                let response = on_demand::response(&nonce, on_demand.first(&held, known));
                self.on_demand = Some(on_demand);
                return response;
            }
            let missing = held
                .values()
                .filter(|it| known.get(&it.name) != Some(&it.version) || it.version.is_empty());
            let removed = known.keys().filter(|name| !held.contains_key(*name)).cloned();
            response(type_url, &nonce, missing, removed.collect())
        })
    }

    fn send(&self, outgoing: &mut Outgoing, response: &DeltaDiscoveryResponse) {
        let sent = Sent {
            stream: self.number,
            type_url: response.type_url.clone(),
            nonce: response.nonce.clone(),
            names: response.resources.iter().map(|it| it.name.clone()).collect(),
            removed: response.removed_resources.clone(),
        };
        self.shared.with(|inner| inner.sent.push(sent));
        outgoing.message(response, self.treatment == Treatment::CutShort);
    }
}

/// The way back: as in Go's gRPC, the head is sent with the first message.
enum Outgoing {
    Unanswered(SendResponse<Bytes>),
    Open(SendStream<Bytes>),
    Gone,
}

impl Outgoing {
    fn message(&mut self, response: &DeltaDiscoveryResponse, is_cut_short: bool) {
        if let Self::Unanswered(respond) = self {
            let opened = respond.send_response(head(None), false);
            *self = opened.map_or(Self::Gone, Self::Open);
        }
        let Self::Open(stream) = self else { return };
        let mut frame = BytesMut::with_capacity(PREFIX_BYTES + response.encoded_len());
        frame.put_u8(0);
        frame.put_u32(response.encoded_len() as u32);
        frame.put_slice(&response.encode_to_vec());
        frame.truncate(frame.len() - usize::from(is_cut_short));
        // A client that is gone needs nothing more.
        let _ = stream.send_data(frame.freeze(), false);
    }

    fn end(self, code: u32, message: &str) {
        let status = (code, message);
        // As above.
        match self {
            Self::Unanswered(mut respond) => drop(respond.send_response(head(Some(status)), true)),
            Self::Open(mut stream) => drop(stream.send_trailers(trailers(status))),
            Self::Gone => {}
        }
    }

    fn reset(self, reason: h2::Reason) {
        match self {
            Self::Unanswered(mut respond) => respond.send_reset(reason),
            Self::Open(mut stream) => stream.send_reset(reason),
            Self::Gone => {}
        }
    }
}

fn head(status: Option<(u32, &str)>) -> Response<()> {
    let mut response = Response::new(());
    *response.headers_mut() = status.map(trailers).unwrap_or_default();
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", kind);
    response
}

fn trailers((code, message): (u32, &str)) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(code));
    if let Ok(message) = HeaderValue::from_str(message) {
        trailers.insert("grpc-message", message);
    }
    trailers
}

fn take_message(
    received: &mut BytesMut,
) -> std::result::Result<Option<DeltaDiscoveryRequest>, (u32, &'static str)> {
    if received.len() < PREFIX_BYTES {
        return Ok(None);
    }
    let length = u32::from_be_bytes([received[1], received[2], received[3], received[4]]) as usize;
    if length > MESSAGE_BYTES_MAX {
        return Err((RESOURCE_EXHAUSTED, "grpc: received message larger than max"));
    }
    if received.len() < PREFIX_BYTES + length {
        return Ok(None);
    }
    received.advance(PREFIX_BYTES);
    let message = received.split_to(length);
    DeltaDiscoveryRequest::decode(&message[..])
        .map(Some)
        .map_err(|_| (INTERNAL, "grpc: failed to unmarshal"))
}
