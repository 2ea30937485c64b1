//! An open socket on its way: from a listener to the worker that serves the connection, from control to the
//! worker that accepts. Nobody but a driver does I/O on it.
//!
//! Any thread; exactly one owner, whose drop closes it. With the cargo feature `sim` it may also be a socket of
//! the simulated network, which only the simulated driver takes.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

#[cfg(feature = "sim")]
use super::sim::Endpoint;
use super::socket::{self, Options};

#[derive(Debug)]
pub struct Descriptor(Kind);

#[derive(Debug)]
enum Kind {
    Kernel(OwnedFd),
    #[cfg(feature = "sim")]
    Simulated(Endpoint),
}

impl Descriptor {
    /// # Errors
    /// `InvalidInput` for a socket that the kernel does not know.
    pub fn into_fd(self) -> io::Result<OwnedFd> {
        match self.0 {
            Kind::Kernel(fd) => Ok(fd),
            #[cfg(feature = "sim")]
            Kind::Simulated(_) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            Kind::Kernel(fd) => socket::local_address(fd.as_fd()),
            #[cfg(feature = "sim")]
            Kind::Simulated(endpoint) => endpoint.local_address(),
        }
    }

    /// Best effort, as `socket::set_options`.
    pub fn set_options(&self, options: &Options) {
        match &self.0 {
            Kind::Kernel(fd) => socket::set_options(fd.as_fd(), options),
            #[cfg(feature = "sim")]
            Kind::Simulated(_) => {}
        }
    }

    /// # Errors
    /// `InvalidInput` for a socket of the kernel.
    #[cfg(feature = "sim")]
    pub fn into_endpoint(self) -> io::Result<Endpoint> {
        match self.0 {
            Kind::Kernel(_) => Err(io::ErrorKind::InvalidInput.into()),
            Kind::Simulated(endpoint) => Ok(endpoint),
        }
    }

    /// What a test looks at; `None` for a socket that the kernel does not know.
    pub fn as_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        match &self.0 {
            Kind::Kernel(fd) => Some(fd.as_fd()),
            #[cfg(feature = "sim")]
            Kind::Simulated(_) => None,
        }
    }
}

impl From<OwnedFd> for Descriptor {
    fn from(fd: OwnedFd) -> Self {
        Self(Kind::Kernel(fd))
    }
}

impl From<TcpStream> for Descriptor {
    fn from(stream: TcpStream) -> Self {
        OwnedFd::from(stream).into()
    }
}

impl From<TcpListener> for Descriptor {
    fn from(listener: TcpListener) -> Self {
        OwnedFd::from(listener).into()
    }
}

#[cfg(feature = "sim")]
impl From<Endpoint> for Descriptor {
    fn from(endpoint: Endpoint) -> Self {
        Self(Kind::Simulated(endpoint))
    }
}
