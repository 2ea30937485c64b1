//! The kernel's sockets over loopback TCP, with blocking peers of the standard library.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};
use uztunnel::sys::descriptor::Descriptor;
use uztunnel::sys::driver::Driver;
use uztunnel::sys::rlimit;

use crate::bench::{Bench, Caller, PATIENCE, Peer, Port};

pub struct KernelBench<F> {
    make: F,
    start: Instant,
}

impl<F> KernelBench<F> {
    pub fn new(make: F) -> Self {
        Self {
            make,
            start: Instant::now(),
        }
    }
}

impl<D: Driver, F: Fn() -> D> Bench for KernelBench<F> {
    type Driver = D;
    type Peer = TcpStream;
    type Port = TcpListener;
    type Caller = Socket;
    type Crowd = (Socket, Vec<Socket>);
    type Hoard = Vec<File>;

    fn driver(&self) -> D {
        (self.make)()
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn pair(&self) -> (Descriptor, TcpStream) {
        let (ours, theirs) = stream_pair(&self.port());
        (ours.into(), theirs)
    }

    fn narrow_pair(&self) -> (Descriptor, TcpStream) {
        let (ours, theirs) = stream_pair(&self.port());
        SockRef::from(&ours)
            .set_send_buffer_size(4096)
            .expect("buffer size");
        SockRef::from(&theirs)
            .set_recv_buffer_size(32 * 1024)
            .expect("buffer size");
        (ours.into(), theirs)
    }

    fn inner_pairs(&self, count: usize) -> Vec<(Descriptor, Descriptor)> {
        let limit = rlimit::raise_open_files().expect("own limit");
        assert!(
            limit.soft > 3 * count as u64,
            "{} descriptors are too few",
            limit.soft
        );
        let port = self.port();
        (0..count)
            .map(|_| {
                let (one, other) = stream_pair(&port);
                (one.into(), other.into())
            })
            .collect()
    }

    fn listener(&self) -> (Descriptor, SocketAddr) {
        let listener = self.port();
        let address = listener.address();
        (listener.into(), address)
    }

    fn port(&self) -> TcpListener {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound")
    }

    /// The kernel drops every further SYN.
    fn full_port(&self) -> (Self::Crowd, SocketAddr) {
        let listener = self.caller();
        let any_port: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        listener.bind(&any_port.into()).expect("bound");
        listener.listen(0).expect("listening");
        let address = listener.local_addr().expect("address");
        let address = address.as_socket().expect("inet");
        let mut clients = Vec::new();
        loop {
            let client = self.caller();
            let outcome = client.connect_timeout(&address.into(), Duration::from_millis(100));
            clients.push(client);
            match outcome {
                Ok(()) => assert!(clients.len() < 100, "the queue never fills"),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                    return ((listener, clients), address);
                }
            }
        }
    }

    fn caller(&self) -> Socket {
        Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket")
    }

    fn hoard_descriptors(&self) -> Vec<File> {
        let mut taken = Vec::new();
        let error = loop {
            match File::open("/dev/null") {
                Ok(file) => taken.push(file),
                Err(error) => break error,
            }
        };
        assert_eq!(error.raw_os_error(), Some(24), "EMFILE");
        taken
    }

    /// In a process of its own: this test binary again.
    fn alone(&self, scenario: &str, part: impl FnOnce()) {
        const ALONE: &str = "CONTRACT_ALONE";
        if std::env::var_os(ALONE).is_some() {
            return part();
        }
        // The test's thread has the test's name, unless all tests run on the main thread.
        let thread = std::thread::current();
        let name = match thread.name() {
            Some("main") | None => format!("{}::{scenario}", self.driver().name()),
            Some(name) => name.to_owned(),
        };
        let output = std::process::Command::new(std::env::current_exe().expect("own path"))
            .args(["--exact", &name, "--nocapture"])
            .env(ALONE, "1")
            .output()
            .expect("started");
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}{errors}");
        assert!(text.contains("1 passed"), "{text}");
    }

    /// Non-blocking, close-on-exec.
    fn assert_is_as_accepted(&self, fd: &Descriptor) {
        let info = std::fs::read_to_string(format!(
            "/proc/self/fdinfo/{}",
            fd.as_fd().expect("a socket of the kernel").as_raw_fd()
        ))
        .expect("fdinfo");
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .expect("flags");
        let flags = u32::from_str_radix(flags.trim(), 8).expect("octal");
        assert_ne!(flags & 0o4000, 0, "not non-blocking");
        assert_ne!(flags & 0o2_000_000, 0, "not close-on-exec");
    }

    fn assert_sound(&self) {}

    fn unread_max(&self) -> usize {
        100_000
    }

    fn bulk(&self, bytes: usize) -> usize {
        bytes
    }

    fn cuts_messages(&self) -> bool {
        false
    }

    fn delivers_after_stop(&self) -> bool {
        false
    }

    fn is_roomy(&self) -> bool {
        true
    }
}

impl Peer for TcpStream {
    fn local_address(&self) -> SocketAddr {
        self.local_addr().expect("address")
    }

    fn shutdown_send(&mut self) {
        self.shutdown(Shutdown::Write).expect("shut down");
    }

    fn reset(self) {
        SockRef::from(&self)
            .set_linger(Some(Duration::ZERO))
            .expect("linger");
    }

    fn send_urgent(&mut self) {
        let sent = SockRef::from(&*self).send_out_of_band(b"!").expect("sent");
        assert_eq!(sent, 1);
    }

    fn never_wait(&mut self) {
        self.set_nonblocking(true).expect("non-blocking");
    }
}

impl Port for TcpListener {
    type Peer = TcpStream;

    fn address(&self) -> SocketAddr {
        self.local_addr().expect("address")
    }

    fn accept(&self) -> (TcpStream, SocketAddr) {
        let (peer, from) = TcpListener::accept(self).expect("accepted");
        as_peer(&peer);
        (peer, from)
    }
}

impl Caller for Socket {
    type Peer = TcpStream;

    fn connect(self, to: SocketAddr) -> io::Result<TcpStream> {
        Socket::connect(&self, &to.into())?;
        let peer = TcpStream::from(self);
        as_peer(&peer);
        Ok(peer)
    }
}

fn as_peer(stream: &TcpStream) {
    stream.set_nodelay(true).expect("nodelay");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
}

/// Two connected ends over loopback, both blocking, without Nagle's delay.
fn stream_pair(port: &TcpListener) -> (TcpStream, TcpStream) {
    let ours = TcpStream::connect(port.address()).expect("connected");
    ours.set_nodelay(true).expect("nodelay");
    let (theirs, _) = Port::accept(port);
    (ours, theirs)
}
