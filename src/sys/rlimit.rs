//! Limits that the operating system sets on this process.
//!
//! Raised once at start, by the main thread; read by whoever shows them.

use std::io;

/// `RLIM_INFINITY` reads as `u64::MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    pub soft: u64,
    pub hard: u64,
}

/// Raises the number of descriptors that may be open to what is allowed at most, and returns it.
pub fn raise_open_files() -> io::Result<Limit> {
    let limit = read(libc::RLIMIT_NOFILE)?;
    let raised = libc::rlimit {
        rlim_cur: limit.hard,
        rlim_max: limit.hard,
    };
    // SAFETY: the kernel reads `raised` during the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == -1 {
        return Err(io::Error::last_os_error());
    }
    read(libc::RLIMIT_NOFILE)
}

/// How many descriptors may be open.
pub fn open_files() -> io::Result<Limit> {
    read(libc::RLIMIT_NOFILE)
}

/// Bytes of locked memory: rings count against it on kernels before 5.12.
pub fn locked_memory() -> io::Result<Limit> {
    read(libc::RLIMIT_MEMLOCK)
}

fn read(resource: libc::__rlimit_resource_t) -> io::Result<Limit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes to `limit` during the call.
    if unsafe { libc::getrlimit(resource, &raw mut limit) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(Limit {
        soft: limit.rlim_cur,
        hard: limit.rlim_max,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_of_descriptors_is_raised_to_the_hard_one() {
        let limit = raise_open_files().expect("own limit");
        assert_eq!(limit.soft, limit.hard);
        assert!(limit.hard > 0);
    }
}
