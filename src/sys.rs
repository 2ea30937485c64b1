//! The operating system: drivers, sockets, namespaces, CPUs. The only layer with `unsafe`.

pub mod allocator;
pub mod buffer;
pub mod confinement;
pub mod cpu;
pub mod descriptor;
pub mod driver;
pub mod epoll;
pub mod fd_passing;
pub mod netns;
pub mod reactor;
pub mod rlimit;
pub mod select;
#[cfg(feature = "sim")]
pub mod sim;
pub mod socket;
pub mod uring;
pub mod wake;
