//! Network namespaces.
/// An open network namespace.
#[derive(Debug)]
pub struct Namespace {
    fd: std::os::fd::OwnedFd,
}
