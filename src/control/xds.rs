//! The xDS client: keeps one stream to the control plane and makes its resources the state of the mesh.
//!
//! Control thread. This file moves messages and time; what they mean is `protocol`'s, what resources become is
//! `decode`'s, how they reach the workers is `state`'s. Invariant: a stream that is lost takes nothing with it; what
//! is known stays in force until the control plane takes it back. Specification: section 1 of the control-plane
//! contract.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use hyper::body::Incoming;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{self, Instant};
use tonic::Status;

use crate::bridge::lookups::Question;
use crate::clock;
use crate::control::demands::Asked;
use crate::control::grpc::{Answers, GrpcError, Pauses, Piece, Server};
use crate::control::metrics::{Metrics, Termination};
use crate::control::readiness::{Readiness, Task};
use crate::limits;
use crate::mesh::GatewayTarget;
use crate::sys::allocator;

pub mod decode;
pub mod envelope;
pub mod fields;
pub mod messages;
pub mod node;
pub mod on_demand;
pub mod protocol;
pub mod response;
pub mod state;
pub mod version;

use envelope::Malformed;
use messages::discovery::{DeltaDiscoveryRequest, Node};
use on_demand::{OnDemand, Reply};
use protocol::{Ended, Kind, Protocol, Verdict};
use response::{Arriving, Response};
use state::State;

const PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// The client. One for the process.
pub struct Client {
    server: Arc<Server>,
    protocol: Protocol,
    state: State,
    readiness: Readiness,
    metrics: Metrics,
    synced: Option<oneshot::Sender<()>>,
    warned: Option<(String, clock::Instant)>,
    /// When the memory that a large response took is given back.
    give_back_at: Option<clock::Instant>,
    /// What workers ask for by name, if the mesh is told on demand only.
    lookups: Option<Lookups>,
}

/// A stream to the control plane, both ways.
struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Answers<Incoming>,
    pauses: Pauses,
    /// A response of which more is to come.
    arriving: Option<Arriving>,
}

struct Lookups {
    asked: mpsc::UnboundedReceiver<Asked<GatewayTarget>>,
    names: OnDemand,
}

impl Client {
    /// Also gives what resolves when the mesh is known for the first time.
    pub fn new(
        server: Server,
        node: Node,
        state: State,
        readiness: Readiness,
        metrics: Metrics,
    ) -> (Self, oneshot::Receiver<()>) {
        readiness.pending(Task::StateManager);
        let (synced, waiter) = oneshot::channel();
        let client = Self {
            server: Arc::new(server),
            protocol: Protocol::new(node),
            state,
            readiness,
            metrics,
            synced: Some(synced),
            warned: None,
            give_back_at: None,
            lookups: None,
        };
        (client, waiter)
    }

    /// Asks for no workload and no service but those that workers ask for, and what comes with them.
    pub fn on_demand(self, asked: mpsc::UnboundedReceiver<Asked<GatewayTarget>>) -> Self {
        Self {
            protocol: self.protocol.on_demand(),
            state: self.state.telling_aliases(),
            lookups: Some(Lookups {
                asked,
                names: OnDemand::default(),
            }),
            ..self
        }
    }

    /// Follows the control plane, for ever.
    pub async fn run(mut self) {
        loop {
            let begun = clock::now();
            let ended = self.converse().await;
            // What came last must not wait for the next stream.
            self.state.publish().await;
            if let Some(lookups) = &mut self.lookups {
                lookups.names.closed();
            }
            let lived = clock::now().duration_since(begun);
            let delay = self.protocol.ended(&ended, lived, fastrand::f64());
            self.report(&ended, delay);
            self.meanwhile(time::sleep(delay)).await;
        }
    }

    /// Waits for `work`, and does what falls due until it is done: without a stream, too, there are snapshots that
    /// workers let go of and memory to be given back.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            let (chore, at) = self.next_chore();
            tokio::select! {
                biased;
                () = until(at) => self.perform(chore).await,
                done = &mut work => return done,
                asked = next_lookup(&mut self.lookups) => self.look_up(asked),
            }
        }
    }

    /// Answers responses. A server that does not read leaves no room, which holds up nothing else.
    async fn answer(
        &mut self,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
        answers: impl IntoIterator<Item = DeltaDiscoveryRequest>,
    ) {
        for answer in answers {
            let is_sent = match requests.try_send(answer) {
                Err(TrySendError::Full(answer)) => self.meanwhile(requests.send(answer)).await.is_ok(),
                sent => sent.is_ok(),
            };
            if !is_sent {
                // The stream is over; the reason is the next thing to be received.
                tracing::debug!("a response was not answered: the stream is over");
            }
        }
    }

    /// What is due next, and when; never, if nothing is.
    fn next_chore(&self) -> (Chore, Option<clock::Instant>) {
        let chores = [
            (Chore::Publish, self.state.publish_at()),
            (Chore::Sweep, self.protocol.sweep_at()),
            (Chore::Retire, self.state.retire_at()),
            (Chore::Tell, self.state.tell_at()),
            (Chore::GiveBack, self.give_back_at),
            (
                Chore::Lookups,
                self.lookups.as_ref().and_then(|lookups| lookups.names.next_due()),
            ),
        ];
        let due = chores.into_iter().filter(|(_, at)| at.is_some());
        due.min_by_key(|(_, at)| *at).unwrap_or((Chore::Publish, None))
    }

    async fn perform(&mut self, chore: Chore) {
        match chore {
            Chore::Publish => self.state.publish().await,
            Chore::Sweep => self.sweep().await,
            Chore::Retire => self.state.retire(),
            Chore::Tell => self.state.tell(clock::now()),
            Chore::GiveBack => {
                self.give_back_at = None;
                allocator::give_back();
            }
            Chore::Lookups => {
                if let Some(lookups) = &mut self.lookups {
                    let replies = lookups.names.expire(clock::now());
                    self.state.reply(replies);
                }
            }
        }
    }

    /// A worker asks.
    fn look_up(&mut self, asked: Asked<GatewayTarget>) {
        let Asked { worker, pod, what } = asked;
        let Some(lookups) = &mut self.lookups else {
            return;
        };
        if let Some(answer) = lookups.names.ask(worker, &pod, &what, clock::now()) {
            self.state.reply(vec![Reply {
                worker,
                question: Question::Mesh(what),
                answer,
            }]);
        }
    }

    /// One stream, from its opening to its end.
    async fn converse(&mut self) -> Ended {
        match self.open().await {
            Ok(stream) => {
                tracing::info!("connected to the control plane");
                self.warned = None;
                let ended = self.follow(stream).await;
                self.metrics.stream_ended(match &ended {
                    Ended::Complete => Termination::Complete,
                    Ended::Status { .. } if ended.is_reconnect() => Termination::Reconnect,
                    Ended::Status { .. }
                    | Ended::Unreachable(_)
                    | Ended::NotTried(_)
                    | Ended::NotOpened(_)
                    | Ended::Malformed(_) => Termination::Error,
                });
                ended
            }
            Err(ended) => {
                self.metrics.stream_ended(match &ended {
                    Ended::NotTried(_) => Termination::Error,
                    Ended::Unreachable(_)
                    | Ended::NotOpened(_)
                    | Ended::Status { .. }
                    | Ended::Complete
                    | Ended::Malformed(_) => Termination::ConnectionError,
                });
                ended
            }
        }
    }

    async fn open(&mut self) -> Result<Stream, Ended> {
        let server = Arc::clone(&self.server);
        let mut channel = self.meanwhile(server.connect()).await.map_err(not_opened)?;
        let (requests, outgoing) = mpsc::channel(limits::XDS_REQUESTS_QUEUED_MAX);
        let (first, warnings) = self.protocol.opened();
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        for request in first {
            // Within the bound of the queue, and its other end is held here.
            let _ = requests.try_send(request);
        }
        let outgoing = self.server.request(outgoing).map_err(not_opened)?;
        // A server may keep its headers back until it has something to say.
        let waiting = "connected to the control plane, which has not sent the state of the mesh yet";
        self.readiness.explain(Task::StateManager, waiting.to_owned());
        let opening = channel.stream(PATH, outgoing, limits::XDS_RESPONSE_BYTES_MAX);
        let opened = self.meanwhile(opening).await;
        Ok(Stream {
            requests,
            responses: opened.map_err(|status| Ended::of_status(&status))?,
            pauses: channel.pauses().clone(),
            arriving: None,
        })
    }

    async fn follow(&mut self, mut stream: Stream) -> Ended {
        if let Some(lookups) = &mut self.lookups {
            lookups.names.opened();
        }
        let requests = stream.requests.clone();
        loop {
            let wants = self
                .lookups
                .as_ref()
                .is_some_and(|lookups| lookups.names.has_request());
            let (chore, at) = self.next_chore();
            tokio::select! {
                biased;
                () = until(at) => {
                    if let Err(ended) = self.perform_amid(&mut stream, chore).await {
                        return ended;
                    }
                }
                asked = next_lookup(&mut self.lookups) => {
                    stream.pauses.end();
                    self.look_up(asked);
                }
                // Without room the server is slow; without a receiver the stream is over, which is heard below.
                Ok(room) = requests.reserve(), if wants => {
                    if let Some(lookups) = &mut self.lookups {
                        room.send(lookups.names.next_request());
                    }
                }
                received = stream.responses.next() => {
                    match self.received(&mut stream.arriving, received).await {
                        Ok(answer) => self.answer(&requests, answer).await,
                        Err(ended) => return ended,
                    }
                }
            }
        }
    }

    /// What is due. Changes that are there already are published with those that wait, and under a stream of them no
    /// more are read before the next time.
    async fn perform_amid(&mut self, stream: &mut Stream, chore: Chore) -> Result<(), Ended> {
        if !matches!(chore, Chore::Publish) {
            self.perform(chore).await;
            return Ok(());
        }
        let mut answers = Vec::new();
        let gathered = self.gather(stream, &mut answers).await;
        // Together: to send one is a system call that wakes the server.
        self.answer(&stream.requests, answers).await;
        gathered?;
        self.perform(chore).await;
        let is_waited_for = |lookups: &Lookups| lookups.names.is_waiting();
        if self.synced.is_none()
            && stream.arriving.is_none()
            && !self.lookups.as_ref().is_some_and(is_waited_for)
            && let Some(at) = self.state.next_publication()
        {
            stream.pauses.pause(Instant::from_std(at));
        }
        Ok(())
    }

    /// Responses that are there already.
    async fn gather(
        &mut self,
        stream: &mut Stream,
        answers: &mut Vec<DeltaDiscoveryRequest>,
    ) -> Result<(), Ended> {
        // Most likely it is what the thread woke for.
        self.state.begin_slice();
        let until = clock::now() + limits::XDS_GATHERING_MAX;
        while clock::now() < until {
            let received = tokio::select! {
                biased;
                received = stream.responses.next() => received,
                () = std::future::ready(()) => break,
            };
            answers.extend(self.received(&mut stream.arriving, received).await?);
            self.state.give_way().await;
        }
        Ok(())
    }

    /// Something came, or the stream is over. Gives the answer to a response that is complete.
    async fn received(
        &mut self,
        arriving: &mut Option<Arriving>,
        received: Result<Option<Piece>, Status>,
    ) -> Result<Option<DeltaDiscoveryRequest>, Ended> {
        let piece = match received {
            Ok(Some(piece)) => piece,
            Ok(None) => return Err(Ended::Complete),
            Err(status) => return Err(Ended::of_status(&status)),
        };
        self.piece(arriving, piece).await.map_err(Ended::Malformed)
    }

    /// The next piece of a response; the answer when it was the last.
    async fn piece(
        &mut self,
        arriving: &mut Option<Arriving>,
        piece: Piece,
    ) -> Result<Option<DeltaDiscoveryRequest>, Malformed> {
        let Piece { bytes, rest_bytes } = piece;
        let response = arriving.get_or_insert_with(|| self.state.arriving(bytes.len() + rest_bytes));
        response.feed(bytes);
        while !self.state.make(response)? {
            self.state.give_way().await;
        }
        if rest_bytes > 0 {
            // Pieces that are there already would be taken without a pause.
            self.state.give_way().await;
            return Ok(None);
        }
        match arriving.take() {
            Some(response) => Ok(Some(self.complete(response.finish()?).await)),
            None => Ok(None),
        }
    }

    /// Applies a response, and makes the answer.
    async fn complete(&mut self, mut response: Response) -> DeltaDiscoveryRequest {
        let (type_url, nonce) = (
            response.envelope.type_url.clone(),
            response.envelope.nonce.clone(),
        );
        let (updates, removals) = (response.resources, response.envelope.removed.len());
        let kind = Kind::of(&type_url);
        self.metrics.response_received(kind, response.payload_bytes);
        if updates + removals > limits::XDS_LARGE_RESPONSE {
            self.give_back_at = Some(clock::now() + limits::XDS_GIVE_BACK_DELAY);
        }
        let asked: Vec<String> = match (kind, &self.lookups) {
            (Some(Kind::Address), Some(lookups)) => {
                let removed = &mut response.envelope.removed;
                removed
                    .extract_if(.., |name| lookups.names.has_asked(name))
                    .collect()
            }
            _ => Vec::new(),
        };
        let mut verdict = match kind {
            Some(kind) => self.state.apply(kind, response).await,
            None => {
                tracing::error!("unknown type {type_url:?} in a response of the control plane");
                Verdict::default()
            }
        };
        self.state.forget(&asked).await;
        verdict.removed.extend(asked);
        tracing::debug!(
            type_url,
            nonce,
            updates,
            removals,
            "received from the control plane"
        );
        for (name, reason) in verdict.rejected.iter().take(limits::XDS_WARNINGS_MAX) {
            tracing::warn!("refused {name:?}: {reason}; what was known of it before stays in force");
        }
        if let Some(more @ 1..) = verdict.rejected.len().checked_sub(limits::XDS_WARNINGS_MAX) {
            tracing::warn!("and {more} more resources of this response were refused");
        }
        if let (Some(Kind::Address), Some(lookups)) = (kind, &mut self.lookups) {
            let replies = lookups.names.heard(&verdict, clock::now());
            self.state.reply(replies);
        }
        if let Some(kind) = kind {
            let mut accepted = std::mem::take(&mut verdict.accepted).into_iter();
            while accepted.len() > limits::XDS_SLICE {
                self.protocol
                    .hold(kind, accepted.by_ref().take(limits::XDS_SLICE));
                self.state.give_way().await;
            }
            self.protocol.hold(kind, accepted);
        }
        let answer = self.protocol.answer(&type_url, &nonce, verdict, clock::now());
        if self.protocol.is_synced() {
            self.synced().await;
        }
        answer
    }

    /// Whoever waits for the first sync finds the state published.
    async fn synced(&mut self) {
        let Some(synced) = self.synced.take() else {
            return;
        };
        self.state.publish().await;
        let (addresses, policies) = Kind::ALL.map(|kind| self.protocol.held(kind)).into();
        tracing::info!(addresses, policies, "the state of the mesh is complete");
        self.readiness.done(Task::StateManager);
        // Nobody may be waiting any more: the process is on its way out.
        let _ = synced.send(());
    }

    async fn sweep(&mut self) {
        let gone = self.protocol.sweep(clock::now());
        if !gone.is_empty() {
            tracing::info!(
                resources = gone.len(),
                "removed what the control plane did not send again"
            );
        }
        for (at, (kind, name)) in gone.into_iter().enumerate() {
            if at % limits::XDS_SLICE == limits::XDS_SLICE - 1 {
                self.state.give_way().await;
            }
            self.state.remove(kind, &name);
        }
    }

    /// A failure that repeats itself is a line now and then.
    fn report(&mut self, ended: &Ended, delay: clock::Duration) {
        let text = ended.to_string();
        let reason = format!("no stream to the control plane: {text}");
        self.readiness.explain(Task::StateManager, reason);
        let now = clock::now();
        let repeated = self.warned.as_ref().is_some_and(|(last, at)| {
            *last == text && now.duration_since(*at) < limits::XDS_WARNING_INTERVAL
        });
        if repeated {
            tracing::debug!(?delay, "no stream to the control plane: {text}");
            return;
        }
        let unready = if self.protocol.is_synced() {
            "what is known stays in force"
        } else {
            "not ready before it has sent the state of the mesh"
        };
        tracing::warn!(?delay, "no stream to the control plane: {text}; {unready}");
        self.warned = Some((text, now));
    }
}

/// What falls due by itself.
#[derive(Debug, Clone, Copy)]
enum Chore {
    Publish,
    /// Of what a server was not told of and did not send.
    Sweep,
    /// Of snapshots that were replaced.
    Retire,
    /// To workers, of addresses that changed hands.
    Tell,
    /// Of the memory that a large response took.
    GiveBack,
    /// Whose time is over.
    Lookups,
}

fn not_opened(error: GrpcError) -> Ended {
    if error.is_unreachable() {
        Ended::Unreachable(error.to_string())
    } else if error.is_local() {
        Ended::NotTried(error.to_string())
    } else {
        Ended::NotOpened(error.to_string())
    }
}

/// The next question; never, where nobody asks.
async fn next_lookup(lookups: &mut Option<Lookups>) -> Asked<GatewayTarget> {
    match lookups {
        Some(lookups) => match lookups.asked.recv().await {
            Some(asked) => asked,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn until(at: Option<clock::Instant>) {
    match at {
        // A timer that is begun wakes the thread's own poll, by a system call.
        Some(at) if at <= clock::now() => {}
        Some(at) => time::sleep_until(Instant::from_std(at)).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
