//! Applications inside a pod: one thread per pod, moved into its namespace, running tokio.
//!
//! Everything spawned here opens its sockets on that thread, so it lives in the pod's network. Tests are ordinary
//! functions; they hand futures over and wait for them with a time limit.

use std::future::Future;
use std::io;
use std::net::{Ipv6Addr, Shutdown, SocketAddr};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::lock;
use crate::namespace::Namespace;
use crate::{PATIENCE, Result, RigError};

/// A future handed over by a test has to end within this time.
const TASK_LIMIT: Duration = Duration::from_secs(180);

const BACKLOG: i32 = 4096;

/// A port that is taken for longer is somebody's.
const PORT_LIMIT: Duration = Duration::from_secs(2);

/// The thread of one pod.
pub struct Applications {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Applications {
    pub fn start(pod: &Namespace) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| RigError::new("starting the applications of a pod", error))?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = pod.spawn("applications", move || {
            // Ends when `stop` is sent or dropped; either way the runtime is dropped here with all its tasks.
            let _ = runtime.block_on(stopped);
        });
        Ok(Self {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    pub fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.handle.spawn(task)
    }

    /// Runs `task` in the pod and waits for its result. Panics when the task panics or takes too long.
    #[track_caller]
    pub fn run<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> T {
        let (sender, receiver) = mpsc::sync_channel(1);
        let running = self.handle.spawn(async move {
            let value = task.await;
            // The test gave up waiting: nobody wants the value.
            let _ = sender.send(value);
        });
        match receiver.recv_timeout(TASK_LIMIT) {
            Ok(value) => value,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                running.abort();
                panic!("an application's task did not end within {TASK_LIMIT:?}");
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("an application's task panicked (see above)"),
        }
    }

    /// Starts a server on `port` of both families; `serve` gets every connection.
    pub fn serve<F>(&self, port: u16, serve: impl Fn(TcpStream, SocketAddr) -> F + Send + 'static) -> Server
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = self.run(when_free(move || listen(port)));
        let listener = listener.unwrap_or_else(|error| panic!("listening on port {port}: {error}"));
        let log = Arc::new(Mutex::new(ServerLog::default()));
        let recorded = Arc::clone(&log);
        let (closing, closed) = mpsc::sync_channel(0);
        let open = OpenListener {
            listener,
            _closing: closing,
        };
        let task = self.spawn(async move {
            // The whole of it: by itself, a block takes only the fields that it uses.
            let open = open;
            // Accepting fails only for want of descriptors; a connection lost before accept is not ours to report.
            loop {
                let Ok((stream, peer)) = open.listener.accept().await else {
                    continue;
                };
                let peer = unmapped(peer);
                lock(&recorded).peers.push(peer);
                let serving = serve(stream, peer);
                let recorded = Arc::clone(&recorded);
                tokio::spawn(async move {
                    let ended = serving.await;
                    lock(&recorded).ended.push(ended.map_err(|error| error.kind()));
                });
            }
        });
        Server { log, task, closed }
    }
}

impl Drop for Applications {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Default)]
struct ServerLog {
    peers: Vec<SocketAddr>,
    ended: Vec<std::result::Result<(), io::ErrorKind>>,
}

/// A listener that tells when it was closed: fields are dropped in this order.
struct OpenListener {
    listener: TcpListener,
    _closing: mpsc::SyncSender<()>,
}

impl Drop for OpenListener {
    /// Nobody gets through to it from here on. Closing alone is not enough: a child that this process starts, for
    /// whatever test, holds a copy of every descriptor between fork and exec.
    fn drop(&mut self) {
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
    }
}

/// A running server; its port is free again when dropped.
pub struct Server {
    log: Arc<Mutex<ServerLog>>,
    task: JoinHandle<()>,
    closed: mpsc::Receiver<()>,
}

impl Server {
    /// Source addresses of all connections so far, in the order of their arrival.
    pub fn peers(&self) -> Vec<SocketAddr> {
        lock(&self.log).peers.clone()
    }

    /// How the connections that are over ended, in the order of their ends.
    pub fn ended(&self) -> Vec<std::result::Result<(), io::ErrorKind>> {
        lock(&self.log).ended.clone()
    }

    /// Waits until `count` connections are over.
    pub fn wait_for_ends(&self, count: usize) -> Vec<std::result::Result<(), io::ErrorKind>> {
        crate::wait_until(&format!("{count} connections of a server to end"), || {
            let ended = self.ended();
            (ended.len() >= count).then_some(ended)
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        // The task ends on its own thread: until then the port is taken.
        let _ = self.closed.recv_timeout(PATIENCE);
    }
}

/// Of a server that is gone the port may be taken for another moment, as long as a child holds a copy of its listener.
pub async fn when_free(listen: impl Fn() -> io::Result<TcpListener>) -> io::Result<TcpListener> {
    let deadline = tokio::time::Instant::now() + PORT_LIMIT;
    loop {
        match listen() {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && tokio::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            other => return other,
        }
    }
}

/// A listener of both families. To be called on the pod's thread.
fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// IPv4 peers of a dual-stack socket as IPv4.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Sends back what comes, and the end when the end comes.
pub async fn echo(mut stream: TcpStream, _peer: SocketAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.split();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let got = reader.read(&mut buffer).await?;
        if got == 0 {
            return writer.shutdown().await;
        }
        writer.write_all(&buffer[..got]).await?;
    }
}

/// Closes with a reset instead of an orderly end.
pub fn reset(stream: TcpStream) -> io::Result<()> {
    let stream = stream.into_std()?;
    Socket::from(stream).set_linger(Some(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn who_calls_a_server_that_is_gone_is_refused_whoever_holds_a_copy_of_its_listener() {
        let (closing, _closed) = mpsc::sync_channel(0);
        let open = OpenListener {
            listener: listen(0).expect("a free port"),
            _closing: closing,
        };
        let port = open.listener.local_addr().expect("an address").port();
        let _copy = SockRef::from(&open.listener).try_clone().expect("a copy");
        drop(open);
        let called = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
        assert_eq!(
            called.err().map(|error| error.kind()),
            Some(io::ErrorKind::ConnectionRefused)
        );
    }
}
