//! A stand-in for istio-cni's node agent: the listening end of the CNI socket (`SOCK_SEQPACKET`, ZDS).
//!
//! One thread accepts; each new connection is greeted and given a snapshot of the enrolled pods, as the real agent
//! does. Later messages go to the newest connection, one at a time, each answered before the next. Every packet of
//! both directions is recorded.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::lock;
use crate::zds::{self, WorkloadInfo};
use crate::{PATIENCE, Result, RigError, sys};

/// The real agent waits this long for a response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Both sides read into buffers of this size.
pub const PACKET_BYTES_MAX: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sender {
    Agent,
    Proxy,
}

/// One packet as it crossed the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Counts from 0 with every connection of the proxy.
    pub connection: usize,
    pub sender: Sender,
    pub bytes: Vec<u8>,
    pub fds: usize,
}

/// What came back for one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Ack,
    /// The proxy's words.
    Refused(String),
    /// The proxy closed the connection instead.
    Closed,
    /// Bytes that are no response.
    Strange(Vec<u8>),
}

struct Enrolled {
    uid: String,
    info: WorkloadInfo,
    namespace: OwnedFd,
}

#[derive(Default)]
struct State {
    pods: Vec<Enrolled>,
    packets: Vec<Packet>,
    /// The newest connection; `None` before the first and after it was seen closed.
    current: Option<Arc<Socket>>,
    connections: usize,
    closing: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// The agent of one node.
pub struct Agent {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Agent {
    pub fn listen(path: &Path) -> Result<Self> {
        let failed = |error| RigError::new(format!("listening on {}", path.display()), error);
        let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None).map_err(failed)?;
        listener
            .bind(&SockAddr::unix(path).map_err(failed)?)
            .map_err(failed)?;
        listener.listen(16).map_err(failed)?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let serving = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("cni-agent".to_owned())
            .spawn(move || accept_all(&listener, &serving))
            .map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            shared,
            thread: Some(thread),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the pod part of every later snapshot without telling the current connection.
    pub fn enrol(&self, uid: &str, info: WorkloadInfo, namespace: BorrowedFd<'_>) {
        let namespace = namespace
            .try_clone_to_owned()
            .expect("invariant: a descriptor of ours can be duplicated");
        let mut state = self.shared.lock();
        state.pods.retain(|pod| pod.uid != uid);
        state.pods.push(Enrolled {
            uid: uid.to_owned(),
            info,
            namespace,
        });
    }

    /// Enrols the pod and announces it on the newest connection.
    pub fn add(&self, uid: &str, info: WorkloadInfo, namespace: BorrowedFd<'_>) -> Result<Answer> {
        let message = zds::add(uid, Some(&info));
        self.enrol(uid, info, namespace);
        self.send(&message, &[namespace])
    }

    /// Removes the pod from the snapshot and announces its deletion.
    pub fn delete(&self, uid: &str) -> Result<Answer> {
        self.forget(uid);
        self.send(&zds::delete(uid), &[])
    }

    /// Removes the pod from later snapshots only.
    pub fn forget(&self, uid: &str) {
        self.shared.lock().pods.retain(|pod| pod.uid != uid);
    }

    /// Sends any bytes with any descriptors to the newest connection and waits for what comes back.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Answer> {
        self.wait_for_connection(1)?;
        let mut state = self.shared.lock();
        let Some(socket) = state.current.clone() else {
            return Ok(Answer::Closed);
        };
        let connection = state.connections - 1;
        let answer = exchange(&mut state, connection, &socket, bytes, fds)?;
        if answer == Answer::Closed {
            state.current = None;
        }
        Ok(answer)
    }

    /// Closes the newest connection from the agent's side: the proxy has to come back.
    pub fn disconnect(&self) {
        let mut state = self.shared.lock();
        if let Some(socket) = state.current.take() {
            // Fails only when the proxy closed first, which is what is wanted.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Waits until the proxy connected `count` times in all and its latest connection has its snapshot.
    pub fn wait_for_connection(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.shared.lock();
        while state.connections < count || state.current.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let seen = state.connections;
                return Err(RigError::new(
                    "waiting for the proxy on the CNI socket",
                    format!("{seen} of {count} connections after {PATIENCE:?}"),
                ));
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(())
    }

    /// Connections that greeted and took their snapshot so far.
    pub fn connections(&self) -> usize {
        self.shared.lock().connections
    }

    pub fn packets(&self) -> Vec<Packet> {
        self.shared.lock().packets.clone()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        // Wakes the accepting thread; it sees `closing` and ends. When this fails the listener is gone already.
        if let Ok(socket) = Socket::new(Domain::UNIX, Type::SEQPACKET, None) {
            let _ = SockAddr::unix(&self.path).and_then(|address| socket.connect(&address));
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn accept_all(listener: &Socket, shared: &Shared) {
    loop {
        let Ok((socket, _)) = sys::uninterrupted(|| listener.accept()) else {
            return;
        };
        if shared.lock().closing {
            return;
        }
        if let Err(error) = greet(&socket, shared) {
            eprintln!("rig: CNI agent: {error}");
        }
    }
}

/// Hello, snapshot, and from then on the connection is the newest.
fn greet(socket: &Socket, shared: &Shared) -> Result<()> {
    let socket = Arc::new(
        socket
            .try_clone()
            .map_err(|error| RigError::new("duplicating a socket", error))?,
    );
    socket
        .set_read_timeout(Some(RESPONSE_TIMEOUT))
        .map_err(|error| RigError::new("setting the response timeout", error))?;
    let hello = receive(&socket).map_err(|error| RigError::new("waiting for the hello", error))?;
    let mut state = shared.lock();
    let connection = state.connections;
    state.packets.push(Packet {
        connection,
        sender: Sender::Proxy,
        bytes: hello.clone(),
        fds: 0,
    });
    if hello != zds::HELLO {
        return Err(RigError::new(
            "greeting the proxy",
            format!("expected a hello (0801), got {hello:02x?}"),
        ));
    }
    let pods = std::mem::take(&mut state.pods);
    for pod in &pods {
        let message = zds::add(&pod.uid, Some(&pod.info));
        let answer = exchange(
            &mut state,
            connection,
            &socket,
            &message,
            &[pod.namespace.as_fd()],
        );
        if !matches!(answer, Ok(Answer::Ack)) {
            eprintln!(
                "rig: CNI agent: pod {} of the snapshot: {answer:?}",
                pod.info.name
            );
        }
    }
    state.pods = pods;
    let answer = exchange(&mut state, connection, &socket, zds::SNAPSHOT_SENT, &[])?;
    if answer != Answer::Ack {
        return Err(RigError::new("ending the snapshot", format!("{answer:?}")));
    }
    state.connections += 1;
    state.current = Some(socket);
    shared.changed.notify_all();
    Ok(())
}

fn exchange(
    state: &mut State,
    connection: usize,
    socket: &Socket,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<Answer> {
    state.packets.push(Packet {
        connection,
        sender: Sender::Agent,
        bytes: bytes.to_vec(),
        fds: fds.len(),
    });
    match sys::send_with_fds(socket.as_fd(), bytes, fds) {
        Ok(_) => {}
        Err(error) if is_gone(&error) => return Ok(Answer::Closed),
        Err(error) => return Err(RigError::new("sending on the CNI socket", error)),
    }
    let answer = match receive(socket) {
        Ok(answer) => answer,
        Err(error) if is_gone(&error) => return Ok(Answer::Closed),
        Err(error) => return Err(RigError::new("waiting for the proxy's response", error)),
    };
    if answer.is_empty() {
        return Ok(Answer::Closed);
    }
    state.packets.push(Packet {
        connection,
        sender: Sender::Proxy,
        bytes: answer.clone(),
        fds: 0,
    });
    Ok(match zds::read_response(&answer) {
        Some(Ok(())) => Answer::Ack,
        Some(Err(words)) => Answer::Refused(words),
        None => Answer::Strange(answer),
    })
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

fn receive(mut socket: &Socket) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    let got = sys::uninterrupted(|| socket.read(&mut buffer))?;
    buffer.truncate(got);
    Ok(buffer)
}
