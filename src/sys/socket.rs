//! TCP sockets: making them, their options, their addresses.
//!
//! Any thread; nothing here waits. Every address given out is canonical: an IPv4-mapped IPv6 address, as a
//! dual-stack socket reports it, comes out as IPv4, so that a peer is the same peer everywhere.
//!
//! Options of a listening socket are inherited by what it accepts (nodelay, keepalive, user timeout, mark with
//! `tcp_fwmark_accept`), so they are set once per listener and cost no system call per connection.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use super::driver::SocketSpec;
use super::netns::Namespace;

/// Options of an outgoing or listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// `SO_MARK`; `None`: not set.
    pub mark: Option<u32>,
    pub keepalive: Option<Keepalive>,
    /// `TCP_USER_TIMEOUT`, milliseconds.
    pub user_timeout_ms: Option<u32>,
    /// The peer is an application of the same pod: what is sent to it never leaves the host, so congestion
    /// control that paces (BBR, where it is the host's default) only costs timers.
    pub local_peer: bool,
}

/// Congestion control towards applications of the same pod: built into every kernel, without pacing.
const LOCAL_CONGESTION_CONTROL: &[u8] = b"cubic";

/// TCP keepalive (`SO_KEEPALIVE`, `TCP_KEEPIDLE`, `TCP_KEEPINTVL`, `TCP_KEEPCNT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    pub time_s: u32,
    pub interval_s: u32,
    pub retries: u32,
}

/// A listening socket to be made. `[::]` listens on both families.
#[derive(Debug, Clone)]
pub struct ListenSpec {
    /// `None`: the process's own.
    pub namespace: Option<Arc<Namespace>>,
    pub address: SocketAddr,
    /// `SO_REUSEPORT`, so that an old and a new proxy overlap during an upgrade. Failure is only logged.
    pub reuse_port: bool,
    pub mark: Option<u32>,
    /// `IP_TRANSPARENT`: `Some(true)` must work, `Some(false)` is never tried, `None` is tried.
    pub transparent: Option<bool>,
    pub backlog: u32,
}

/// A listening socket. Non-blocking, close-on-exec, with `TCP_NODELAY` for what it accepts.
#[derive(Debug)]
pub struct Listening {
    pub fd: OwnedFd,
    /// `IP_TRANSPARENT` is set, so sources may be preserved.
    pub transparent: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot enter the network namespace in which {address} should be bound: {source}")]
    Namespace { address: SocketAddr, source: io::Error },
    #[error("cannot create a socket for {address}: {source}")]
    Create { address: SocketAddr, source: io::Error },
    #[error("cannot set {option} on the socket for {address}: {source}")]
    Option {
        option: &'static str,
        address: SocketAddr,
        source: io::Error,
    },
    #[error("cannot bind {address}: {source}")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
}

/// Makes a listening socket.
pub fn listen(spec: &ListenSpec) -> Result<Listening, ListenError> {
    let address = spec.address;
    let option = |option| {
        move |source| ListenError::Option {
            option,
            address,
            source,
        }
    };
    let socket = create(spec.namespace.as_deref(), address.ip()).map_err(|error| match error {
        CreateError::Namespace(source) => ListenError::Namespace { address, source },
        CreateError::Socket(source) => ListenError::Create { address, source },
    })?;
    if let Some(mark) = spec.mark {
        socket.set_mark(mark).map_err(option("SO_MARK"))?;
    }
    // The IPv4 option sets the one flag that both families of a dual-stack socket look at.
    let transparent = match (spec.transparent, spec.transparent.unwrap_or(true)) {
        (_, false) => false,
        (Some(_), true) => {
            socket
                .set_ip_transparent_v4(true)
                .map_err(option("IP_TRANSPARENT"))?;
            true
        }
        (None, true) => socket.set_ip_transparent_v4(true).is_ok(),
    };
    let reuse = match spec.reuse_port {
        true => socket.set_reuse_port(true),
        // Without it, connections of an earlier process in TIME_WAIT would keep the port for a minute.
        false => socket.set_reuse_address(true),
    };
    if let Err(error) = reuse {
        tracing::warn!("cannot share the port of the socket for {address}: {error}");
    }
    if address.is_ipv6() {
        let dual_stack = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        socket.set_only_v6(!dual_stack).map_err(option("IPV6_V6ONLY"))?;
    }
    let _ = socket.set_tcp_nodelay(true);
    socket
        .bind(&SockAddr::from(address))
        .map_err(|source| ListenError::Bind { address, source })?;
    socket
        .listen(i32::try_from(spec.backlog).unwrap_or(i32::MAX))
        .map_err(|source| ListenError::Listen { address, source })?;
    Ok(Listening {
        fd: socket.into(),
        transparent,
    })
}

/// Makes a socket to connect with, of the family of `spec.bind_transparent` when that is given (so that a
/// target of the other family fails to connect), else of `family_of`'s.
///
/// # Errors
/// The namespace cannot be entered, no socket (descriptors, memory), the mark cannot be set: an unmarked
/// socket would be captured by our own redirection. Other options are best effort.
pub fn open(spec: &SocketSpec, family_of: IpAddr) -> io::Result<OwnedFd> {
    let family = spec.bind_transparent.unwrap_or(family_of);
    let socket = create(spec.namespace.as_deref(), family)?;
    if let Some(mark) = spec.options.mark {
        socket.set_mark(mark)?;
    }
    set_best_effort(&socket, &spec.options);
    if let Some(local) = spec.bind_transparent
        && let Err(error) = bind_transparent(&socket, local)
    {
        tracing::warn!("cannot bind to the preserved source address {local}: {error}");
    }
    Ok(socket.into())
}

/// `TCP_NODELAY`, keepalive and user timeout of an accepted or listening socket; failures do not matter.
/// `options.mark` is for the maker of a socket and ignored here.
pub fn set_options(fd: BorrowedFd<'_>, options: &Options) {
    set_best_effort(&SockRef::from(&fd), options);
}

/// Nobody is told that there is something to read before so many bytes are there, or the stream is over
/// (`SO_RCVLOWAT`; at first 1). When it is lowered, what is there is told of at once.
pub fn tell_of_bytes_from(fd: BorrowedFd<'_>, count: usize) -> io::Result<()> {
    let count = libc::c_int::try_from(count).unwrap_or(libc::c_int::MAX);
    set_int(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT, count)
}

/// Where a redirected connection was going before the redirection; the local address when it was not
/// redirected, which is also right under TPROXY.
pub fn original_destination(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let socket = SockRef::from(&fd);
    let original = socket
        .original_dst_v4()
        .or_else(|_| socket.original_dst_v6())
        .or_else(|_| socket.local_addr())?;
    address_of(&original)
}

/// Whether nothing but the peer's FIN is left to receive. An error is taken from the socket by this, so that a receive
/// would then see an end instead: it is kept in `broken`.
pub(super) fn is_at_end(fd: BorrowedFd<'_>, broken: &mut Option<i32>) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    match SockRef::from(&fd).recv_with_flags(&mut byte, libc::MSG_PEEK | libc::MSG_DONTWAIT) {
        Ok(bytes) => bytes == 0,
        Err(error) => {
            let is_of_the_call = matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            );
            *broken = error.raw_os_error().filter(|_| !is_of_the_call);
            false
        }
    }
}

/// Whether the connection is over in both directions although our side did not end it: by a reset, or because the
/// peer fell silent. An orderly end leaves our direction open.
pub(super) fn is_broken(fd: BorrowedFd<'_>) -> bool {
    // `TCP_CLOSE` in the kernel's list of states; the first byte of `tcp_info` is the state.
    const CLOSED: u8 = 7;
    let mut state = 0u8;
    let mut len = size_of_val(&state) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `state`, and how many to `len`.
    let outcome = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &raw mut len,
        )
    };
    outcome == 0 && state == CLOSED
}

pub fn local_address(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    address_of(&SockRef::from(&fd).local_addr()?)
}

pub fn peer_address(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    address_of(&SockRef::from(&fd).peer_addr()?)
}

/// IPv4-mapped IPv6 becomes IPv4; anything else stays.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// From now on closing the socket sends RST and throws away what is queued.
pub(super) fn reset_on_close(fd: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&fd).set_linger(Some(Duration::ZERO))
}

/// `SO_ERROR`: how a non-blocking connect ended.
pub(super) fn take_error(fd: BorrowedFd<'_>) -> io::Result<()> {
    match SockRef::from(&fd).take_error()? {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

enum CreateError {
    Namespace(io::Error),
    Socket(io::Error),
}

impl From<CreateError> for io::Error {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Namespace(error) | CreateError::Socket(error) => error,
        }
    }
}

fn create(namespace: Option<&Namespace>, family_of: IpAddr) -> Result<Socket, CreateError> {
    let domain = match family_of {
        IpAddr::V4(_) => Domain::IPV4,
        IpAddr::V6(_) => Domain::IPV6,
    };
    let kind = Type::STREAM.nonblocking().cloexec();
    let make = || Socket::new_raw(domain, kind, Some(Protocol::TCP));
    match namespace {
        Some(namespace) => namespace.run(make).map_err(CreateError::Namespace)?,
        None => make(),
    }
    .map_err(CreateError::Socket)
}

fn set_best_effort(socket: &Socket, options: &Options) {
    let trace = |option: &str, outcome: io::Result<()>| {
        if let Err(error) = outcome {
            tracing::trace!("cannot set {option}: {error}");
        }
    };
    trace("TCP_NODELAY", socket.set_tcp_nodelay(true));
    if let Some(keepalive) = options.keepalive {
        let parameters = TcpKeepalive::new()
            .with_time(Duration::from_secs(keepalive.time_s.into()))
            .with_interval(Duration::from_secs(keepalive.interval_s.into()))
            .with_retries(keepalive.retries);
        trace("keepalive", socket.set_tcp_keepalive(&parameters));
    }
    if let Some(timeout_ms) = options.user_timeout_ms {
        let timeout = Duration::from_millis(timeout_ms.into());
        trace("TCP_USER_TIMEOUT", socket.set_tcp_user_timeout(Some(timeout)));
    }
    if options.local_peer {
        trace(
            "TCP_CONGESTION",
            socket.set_tcp_congestion(LOCAL_CONGESTION_CONTROL),
        );
    }
}

fn bind_transparent(socket: &Socket, local: IpAddr) -> io::Result<()> {
    match local {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    // The port is picked at connect, unique per peer, not here, unique per local address: otherwise one source
    // could have no more than one ephemeral range of connections in all. Best effort.
    let _ = set_bind_address_no_port(socket);
    socket.bind(&SockAddr::from(SocketAddr::new(local, 0)))
}

fn set_bind_address_no_port(socket: &Socket) -> io::Result<()> {
    set_int(socket.as_fd(), libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

fn set_int(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads an int from `value`, whose size is passed.
    let outcome = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if outcome == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn address_of(address: &SockAddr) -> io::Result<SocketAddr> {
    address.as_socket().map(canonical).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "the socket's address is neither IPv4 nor IPv6",
        )
    })
}

/// `0.0.0.0` or `[::]` with a port: where a listener for any address binds.
pub fn any_address(ipv6: bool, port: u16) -> SocketAddr {
    match ipv6 {
        true => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port),
        false => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
    }
}

#[cfg(test)]
mod tests;
