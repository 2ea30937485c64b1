//! The file of revoked certificates (`CRL_PATH`): read at start, and again when it changes.
//!
//! Control thread; a file is read and parsed on a thread of tokio's for blocking work, since a large one takes longer
//! than others can wait. Invariant: what is in force is the content of the last file that could be read whole, and
//! every file that could not is named in the log with the reason, once, and counted. Specification: control-plane
//! contract 3.4.
//!
//! The file is looked at, not watched: what its path leads to is compared, through symbolic links, so that files
//! which Kubernetes swaps, an editor renames or a disk hides for a while are all seen alike.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::UnixTime;

use crate::bridge::{Order, Orders, Revocations};
use crate::clock::{self, SystemTime};
use crate::limits;
use crate::tls::{RevocationError, RevocationLists};

/// Why a file could not be used.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("cannot read it: {0}")]
    Read(#[source] io::Error),
    #[error("it is no file (expected one, or a symbolic link to one)")]
    NoFile,
    #[error("it is larger than {} bytes", limits::REVOCATION_FILE_BYTES_MAX)]
    TooLarge,
    #[error(transparent)]
    Content(#[from] RevocationError),
}

/// What a path led to at one moment. Files that differ differ in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Nothing,
    Something {
        device: u64,
        inode: u64,
        bytes: u64,
        modified: (i64, i64),
        changed: (i64, i64),
    },
    Unreadable(io::ErrorKind),
}

pub struct Watch {
    path: PathBuf,
    revocations: Revocations,
    /// What was tried to be read last.
    read: Seen,
    last: Seen,
    /// Why that could not be read, which has to be tried again: what keeps a file from being opened may pass without a
    /// trace at the file.
    unread: Option<String>,
    /// `read_lists`, but for tests.
    reader: fn(&Path) -> Result<RevocationLists, FileError>,
}

impl Watch {
    /// Reads the file for the first time. Without one that can be used no certificate counts as revoked, until there
    /// is one.
    pub fn start(path: PathBuf, revocations: Revocations) -> Self {
        // From now on what is needed to look peers up later is kept of each.
        revocations.publish(Arc::default());
        let read = look(&path);
        let mut watch = Self {
            path,
            revocations,
            read,
            last: read,
            unread: None,
            reader: read_lists,
        };
        match read {
            Seen::Nothing => tracing::warn!(
                target: "crl",
                "CRL_PATH={} does not exist: no certificate counts as revoked until it does",
                watch.path.display()
            ),
            Seen::Something { .. } | Seen::Unreadable(_) => {
                watch.take(read_lists(&watch.path));
            }
        }
        watch
    }

    /// Looks at the file for ever.
    pub async fn run(mut self, orders: Orders) {
        loop {
            tokio::time::sleep(limits::REVOCATION_CHECK_INTERVAL).await;
            if self.check().await {
                orders.send_all(|| Order::Revocations);
            }
        }
    }

    /// Whether other lists are in force than before.
    async fn check(&mut self) -> bool {
        let seen = look(&self.path);
        // One that is still being written is left alone.
        let is_settled = std::mem::replace(&mut self.last, seen) == seen;
        let is_owed = self.unread.is_some() && matches!(seen, Seen::Something { .. });
        if !is_settled || seen == self.read && !is_owed {
            return false;
        }
        self.read = seen;
        let (path, reader) = (self.path.clone(), self.reader);
        let reading = tokio::task::spawn_blocking(move || reader(&path));
        let lists = reading.await.expect("invariant: reading lists does not panic");
        self.take(lists)
    }

    fn take(&mut self, lists: Result<RevocationLists, FileError>) -> bool {
        match lists {
            Ok(lists) => {
                self.unread = None;
                self.tell(&lists);
                self.revocations.publish(Arc::new(lists));
                true
            }
            Err(error) => {
                let unread = matches!(error, FileError::Read(_)).then(|| error.to_string());
                if unread.is_some() && unread == self.unread {
                    return false;
                }
                self.unread = unread;
                self.revocations.count_failed_load();
                let in_force = match self.revocations.load().map_or(0, |lists| lists.len()) {
                    0 => "no certificate counts as revoked".to_owned(),
                    lists => format!("what was read before stays in force ({lists} lists)"),
                };
                tracing::error!(target: "crl", "CRL_PATH={}: {error}; {in_force}", self.path.display());
                false
            }
        }
    }

    fn tell(&self, lists: &RevocationLists) {
        let path = self.path.display();
        tracing::info!(
            target: "crl",
            %path,
            lists = lists.len(),
            certificates = lists.certificates(),
            "lists of revoked certificates are in force"
        );
        if lists.is_empty() {
            tracing::warn!(target: "crl", "CRL_PATH={path} holds no list: no certificate counts as revoked");
        }
        let since = clock::wall().duration_since(SystemTime::UNIX_EPOCH);
        let now = UnixTime::since_unix_epoch(since.unwrap_or_default());
        for (issuer, due) in lists.overdue(now) {
            tracing::warn!(
                target: "crl",
                "CRL_PATH={path}: the list of {issuer} should have been replaced by {due}; what it names stays \
                 revoked, what its CA revoked since is not known"
            );
        }
    }
}

fn look(path: &Path) -> Seen {
    match path.metadata() {
        Ok(metadata) => Seen::of(&metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Seen::Nothing,
        Err(error) => Seen::Unreadable(error.kind()),
    }
}

impl Seen {
    fn of(metadata: &Metadata) -> Self {
        Self::Something {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

fn read_lists(path: &Path) -> Result<RevocationLists, FileError> {
    // Looked at before it is opened: opening a FIFO would wait for a writer.
    if !path.metadata().map_err(FileError::Read)?.is_file() {
        return Err(FileError::NoFile);
    }
    let file = File::open(path).map_err(FileError::Read)?;
    let mut text = Vec::new();
    file.take(limits::REVOCATION_FILE_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .map_err(FileError::Read)?;
    if text.len() as u64 > limits::REVOCATION_FILE_BYTES_MAX {
        return Err(FileError::TooLarge);
    }
    Ok(RevocationLists::parse(&text)?)
}

#[cfg(test)]
mod tests;
