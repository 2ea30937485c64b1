//! A named network namespace: owned by the `World`, deleted when dropped.
//!
//! Only threads made for the purpose ever enter it (`run`, `spawn`): the calling thread stays where it is, so a
//! panic cannot strand a test in the wrong network.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Command, Stdio};
use std::thread;

use crate::{Result, RigError, guardian, sys};

#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// Creates the namespace; the name shows in `ip netns`.
    pub fn create(name: &str) -> Result<Self> {
        let _open = guardian::hold_open()?;
        run_ip(&["netns", "add", name])?;
        let path = format!("/run/netns/{name}");
        let file = File::open(&path).map_err(|error| RigError::new(format!("opening {path}"), error))?;
        Ok(Self {
            name: name.to_owned(),
            file,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is passed to the proxy over the CNI socket.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Runs `action` on a new thread inside the namespace and returns what it returned.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter();
                action()
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a thread inside the namespace; it may outlive this value.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        action: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let file = self
            .file
            .try_clone()
            .expect("invariant: a descriptor of ours can be duplicated");
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                sys::enter_network_namespace(file.as_fd())
                    .expect("invariant: root may enter its own namespace");
                action()
            })
            .expect("invariant: the machine can start one more thread")
    }

    fn enter(&self) {
        sys::enter_network_namespace(self.fd()).expect("invariant: root may enter its own namespace");
    }

    /// Writes sysctls (`net/...` paths) inside the namespace.
    pub fn write_sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (path, value) in settings {
                std::fs::write(format!("/proc/sys/{path}"), value).map_err(|error| {
                    RigError::new(format!("setting {path} to {value} in {}", self.name), error)
                })?;
            }
            Ok(())
        })
    }

    /// Feeds `input` to a program running inside the namespace; an exit status other than 0 is an error.
    pub fn run_program(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        self.run(|| run_with_input(program, arguments, input))
            .map_err(|error| RigError::new(format!("in namespace {}", self.name), error))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Otherwise the guardian takes it away, or has.
        let Ok(_open) = guardian::hold_open() else { return };
        if let Err(error) = run_ip(&["netns", "del", &self.name]) {
            eprintln!("rig: {error}");
        }
    }
}

/// Runs `ip` with these arguments in the caller's namespace.
pub fn run_ip(arguments: &[&str]) -> Result<()> {
    run_with_input("ip", arguments, "").map(drop)
}

/// Runs a program with `input` on its standard input; its standard output is returned.
pub fn run_with_input(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let describe = || format!("running `{program} {}`", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| RigError::new(describe(), error))?;
    let mut stdin = child.stdin.take().expect("invariant: stdin was piped");
    // A program that fails early closes its input; its own message below says more than the write error.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child
        .wait_with_output()
        .map_err(|error| RigError::new(describe(), error))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(RigError::new(
            describe(),
            format!("{}: {}", output.status, stderr.trim()),
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
