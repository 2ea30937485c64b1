//! Debian packages that the commands need; installed only when a program is missing.

use std::path::Path;
use std::process::Command;

use crate::process::{Outcome, run};

/// A program and the package that brings it.
pub type Need = (&'static str, &'static str);

/// To build: aws-lc needs a C compiler and cmake, and tidy asks git.
pub const BUILD: &[Need] = &[("cc", "gcc"), ("cmake", "cmake"), ("git", "git")];

/// To make namespaces, links and rules.
pub const NETWORK: &[Need] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables-restore", "iptables"),
    ("bash", "bash"),
];

/// To test against other implementations.
pub const INTEROP: &[Need] = &[("openssl", "openssl"), ("curl", "curl")];

const FOLDERS: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// Installs the packages of all programs that are not there.
pub fn ensure(needs: &[&[Need]]) -> Outcome {
    let missing: Vec<&str> = needs
        .iter()
        .flat_map(|needs| needs.iter())
        .filter(|(program, _)| !is_installed(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(" "));
    let explain = |error| {
        format!(
            "{error}\nthese Debian packages are needed: {} (install them, or run as root)",
            missing.join(" ")
        )
    };
    run(Command::new("apt-get").args(["update", "-qq"])).map_err(explain)?;
    let mut install = Command::new("apt-get");
    install
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(&missing);
    run(install.env("DEBIAN_FRONTEND", "noninteractive")).map_err(explain)
}

/// Network tools live in `sbin`, which is not on everybody's path.
fn is_installed(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(FOLDERS)
        .any(|folder| Path::new(folder).join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_is_found_and_a_made_up_program_is_not() {
        assert!(is_installed("sh"));
        assert!(!is_installed("uztunnel-no-such-program"));
    }
}
