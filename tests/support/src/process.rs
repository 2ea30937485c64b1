//! A program that runs for a while: its lines are kept, and it is killed when dropped.

use std::fmt::Display;
use std::io;
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use crate::logs::Logs;
use crate::{Result, RigError, guardian};

/// How often it is asked whether it does what is waited for.
const INTERVAL: Duration = Duration::from_millis(10);

pub struct Process {
    /// In errors.
    name: String,
    child: Child,
    pub logs: Logs,
    readers: Vec<thread::JoinHandle<()>>,
}

impl Process {
    /// What is piped of its output is collected.
    pub fn start(name: &str, spawn: impl FnOnce() -> io::Result<Child>) -> Result<Self> {
        let _open = guardian::hold_open()?;
        let mut child = spawn().map_err(|error| RigError::new(format!("starting {name}"), error))?;
        let logs = Logs::default();
        let mut readers = Vec::new();
        readers.extend(child.stdout.take().map(|stdout| logs.collect(stdout)));
        readers.extend(child.stderr.take().map(|stderr| logs.collect(stderr)));
        Ok(Self {
            name: name.to_owned(),
            child,
            logs,
            readers,
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `None` while it runs.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.try_wait();
        status.map_err(|error| RigError::new(format!("asking for the exit status of {}", self.name), error))
    }

    /// Asks until there is an answer, the program has ended, or `patience` has. `what` it is to do.
    pub fn wait_for<T, E: Display>(
        &mut self,
        what: &str,
        patience: Duration,
        mut ask: impl FnMut() -> std::result::Result<T, E>,
    ) -> Result<T> {
        let deadline = Instant::now() + patience;
        loop {
            let refused = match ask() {
                Ok(answer) => return Ok(answer),
                Err(refused) => refused,
            };
            let ended = self.exit_status()?;
            if ended.is_some() || Instant::now() > deadline {
                let state = ended.map_or_else(
                    || format!("not within {patience:?} ({refused})"),
                    |status| format!("it ended with {status}"),
                );
                return Err(RigError::new(
                    format!("waiting for {} to {what}", self.name),
                    format!("{state}; the last lines:\n{}", self.logs.tail()),
                ));
            }
            thread::sleep(INTERVAL);
        }
    }

    /// Waits until everything that it printed is collected; it has ended.
    pub fn collect_rest(&mut self) {
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when the process is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.collect_rest();
    }
}
