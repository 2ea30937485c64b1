//! The mesh state that the configuration names, as a file or in itself.
//!
//! Control thread at the start, and the thread of each dump, which shows what is there now.

use std::io;
use std::path::PathBuf;

use crate::config::LocalSource;
use crate::mesh::{LocalError, LocalState};

/// Why there is no such state.
#[derive(Debug, thiserror::Error)]
pub enum LocalStateError {
    #[error("cannot read LOCAL_XDS_PATH={}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{origin}: {source}")]
    Content { origin: String, source: LocalError },
}

/// Reads all of it. May block.
pub fn read(source: &LocalSource) -> Result<LocalState, LocalStateError> {
    let parse = |origin: String, text: &str| {
        LocalState::parse(text).map_err(|source| LocalStateError::Content { origin, source })
    };
    match source {
        LocalSource::Text(text) => parse("LOCAL_XDS".to_owned(), text),
        LocalSource::Path(path) => {
            let text = std::fs::read_to_string(path).map_err(|source| LocalStateError::File {
                path: path.clone(),
                source,
            })?;
            parse(format!("LOCAL_XDS_PATH={}", path.display()), &text)
        }
    }
}
