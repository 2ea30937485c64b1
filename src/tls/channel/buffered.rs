//! Records by stock rustls, behind the same face as our own: the reference.
//!
//! Runs on the worker that owns the session. rustls copies every byte into its own buffers and out again;
//! that is the price of this mode. Invariant: rustls is given one whole record at a time and asked for its
//! plaintext at once, so that it never holds more than one. Limits on floods are the library's own.

use std::io::{Read, Write};

use rustls::{Connection, Error as Library};

use crate::tls::channel::Opened;
use crate::tls::error::{RecordError, TlsError};
use crate::tls::output::Output;
use crate::tls::record::{Framed, frame};

pub(super) struct Buffered {
    connection: Box<Connection>,
    records_max: u64,
    /// Records sealed since the key was updated last.
    sealed: u64,
    reading: Reading,
    close_sent: bool,
}

enum Reading {
    Open,
    /// `kept` bytes of plaintext wait in the library for more room.
    Kept {
        bytes: usize,
    },
    Closed,
    Failed(TlsError),
}

impl Buffered {
    pub(super) fn new(mut connection: Box<Connection>, records_max: u64) -> Self {
        connection.set_buffer_limit(None);
        Self {
            connection,
            records_max,
            sealed: 0,
            reading: Reading::Open,
            close_sent: false,
        }
    }

    pub(super) fn seal(&mut self, out: &mut Output, content: &[u8]) {
        debug_assert!(
            !self.close_sent,
            "nothing is sealed after close_notify or an alert"
        );
        if self.sealed + 1 >= self.records_max {
            // rustls asks the peer to update as well; its key is as old as ours.
            self.connection
                .refresh_traffic_keys()
                .expect("invariant: the handshake is over and agreed on TLS 1.3");
            self.sealed = 0;
        }
        self.connection
            .writer()
            .write_all(content)
            .expect("invariant: rustls buffers without a limit");
        self.sealed += 1;
        self.flush_control(out);
    }

    pub(super) fn open(&mut self, input: &[u8], plain: &mut [u8]) -> Result<Opened, TlsError> {
        match &self.reading {
            Reading::Open => {}
            Reading::Kept { bytes } => {
                let bytes = *bytes;
                return Ok(self.take_plaintext(bytes, 0, plain));
            }
            Reading::Closed => {
                return Ok(Opened::Closed {
                    consumed: input.len(),
                });
            }
            Reading::Failed(error) => return Err(error.clone()),
        }
        let result = self.open_record(input, plain);
        if let Err(error) = &result {
            self.reading = Reading::Failed(error.clone());
        }
        result
    }

    pub(super) fn wants_control(&self) -> bool {
        self.connection.wants_write()
    }

    pub(super) fn flush_control(&mut self, out: &mut Output) {
        while self.connection.wants_write() {
            self.connection
                .write_tls(out)
                .expect("invariant: writing to memory does not fail");
        }
    }

    pub(super) fn close_notify(&mut self, out: &mut Output) {
        if !self.close_sent {
            self.connection.send_close_notify();
            self.close_sent = true;
            self.flush_control(out);
        }
    }

    fn open_record(&mut self, input: &[u8], plain: &mut [u8]) -> Result<Opened, TlsError> {
        // A header that must not come is shown to the library for the sake of its alert. That it reads on in
        // case of a record a little too long (TLS 1.2 allowed 2 KiB more) does not save the record.
        let (consumed, refused) = match frame(input) {
            Ok(Framed::Incomplete { need }) => return Ok(Opened::Incomplete { need }),
            Ok(Framed::Whole { total }) => (total, None),
            Err(error) => (input.len(), Some(error)),
        };
        let mut record = &input[..consumed];
        let mut plaintext_bytes = 0;
        while !record.is_empty() {
            self.connection
                .read_tls(&mut record)
                .map_err(|error| RecordError::Library(Library::General(error.to_string())))?;
            let state = self.connection.process_new_packets().map_err(received)?;
            plaintext_bytes = state.plaintext_bytes_to_read();
            if state.peer_has_closed() {
                self.reading = Reading::Closed;
                return Ok(Opened::Closed { consumed });
            }
        }
        if let Some(error) = refused {
            return Err(error.into());
        }
        if plaintext_bytes == 0 {
            return Ok(Opened::Control { consumed });
        }
        Ok(self.take_plaintext(plaintext_bytes, consumed, plain))
    }

    fn take_plaintext(&mut self, available: usize, consumed: usize, plain: &mut [u8]) -> Opened {
        let written = available.min(plain.len());
        self.connection
            .reader()
            .read_exact(&mut plain[..written])
            .expect("invariant: rustls holds the plaintext that it announced");
        self.reading = if written < available {
            Reading::Kept {
                bytes: available - written,
            }
        } else {
            Reading::Open
        };
        Opened::Data { consumed, written }
    }
}

fn received(error: Library) -> TlsError {
    match error {
        Library::AlertReceived(alert) => TlsError::Alert(alert),
        other => RecordError::from_library(other).into(),
    }
}
