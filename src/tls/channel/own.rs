//! Our own record layer: what records mean, and when keys change.
//!
//! Runs on the worker that owns the session. Invariants: no key seals more than `records_max` records, the
//! KeyUpdate that ends its life included; a received key is replaced exactly at the KeyUpdate that says so,
//! and no handshake message stands across that point. Specification: RFC 8446 sections 4.6.1, 4.6.3, 5.1,
//! 5.4, 5.5, 6.

use rustls::{AlertDescription, ConnectionTrafficSecrets, ExtractedSecrets};

use crate::limits;
use crate::planted::{Bug, is_planted};
use crate::tls::channel::{Kernel, Opened};
use crate::tls::error::{RecordError, TlsError};
use crate::tls::output::Output;
use crate::tls::record::{ALERT, APPLICATION_DATA, Framed, HANDSHAKE, Opener, Sealer, frame};

/// Handshake message types (RFC 8446 section 4).
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
/// Alert levels (RFC 8446 section 6).
const WARNING: u8 = 1;
const FATAL: u8 = 2;
/// A KeyUpdate that asks for nothing in return (RFC 8446 section 4.6.3).
const KEY_UPDATE_MESSAGE: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 0];

pub(super) struct Own {
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
    kernel: Kernel,
    records_max: u64,
    reading: Reading,
    /// The peer asked for a KeyUpdate that it has not got yet. Asking again does not make it two.
    answer_due: bool,
    alert_due: Option<AlertDescription>,
    close_sent: bool,
    budget: ControlBudget,
    empty_records: u32,
}

enum Reading {
    Open,
    Closed,
    Failed(TlsError),
}

/// What the peer may make us do without sending data. Counted in records, not in time, because this layer
/// does not look at the clock.
struct ControlBudget {
    credit: u32,
    /// Data records since the last credit was earned.
    records: u32,
}

impl Own {
    pub(super) fn new(secrets: ExtractedSecrets, kernel: Kernel, records_max: u64) -> Option<Self> {
        let (send_sequence, send) = secrets.tx;
        let (receive_sequence, receive) = secrets.rx;
        Some(Self {
            sealer: Sealer::new(send_sequence, &send)?,
            opener: Opener::new(receive_sequence, &receive)?,
            kernel,
            records_max,
            reading: Reading::Open,
            answer_due: false,
            alert_due: None,
            close_sent: false,
            budget: ControlBudget::new(),
            empty_records: 0,
        })
    }

    /// Updates the key when it may seal only one more record, or when the peer waits for it.
    pub(super) fn before_record(&mut self, out: &mut Output) {
        if self.close_sent {
            return;
        }
        if self.answer_due || self.sealer.sealed() + 1 >= self.records_max {
            self.send_key_update(out, KEY_UPDATE_MESSAGE);
        }
    }

    pub(super) fn seal(&mut self, out: &mut Output, content: &[u8]) {
        if !self.close_sent {
            self.before_record(out);
            self.sealer.seal(out, APPLICATION_DATA, content);
        }
    }

    /// The record was begun by `before_record`.
    pub(super) fn seal_in_place(&mut self, out: &mut Output, start: usize) {
        if self.close_sent {
            out.truncate(start);
        } else {
            self.sealer.seal_in_place(out, start);
        }
    }

    pub(super) fn open(&mut self, input: &[u8], plain: &mut [u8]) -> Result<Opened, TlsError> {
        match &self.reading {
            Reading::Open => {}
            Reading::Closed => {
                return Ok(Opened::Closed {
                    consumed: input.len(),
                });
            }
            Reading::Failed(error) => return Err(error.clone()),
        }
        let result = self.open_record(input, plain);
        match &result {
            Ok(_) | Err(TlsError::Record(RecordError::NoRoom { .. })) => {}
            Err(error) => {
                self.alert_due = error.alert().filter(|_| !self.close_sent);
                self.answer_due = false;
                self.reading = Reading::Failed(error.clone());
            }
        }
        result
    }

    /// The next record is sealed under a new key.
    #[cfg(feature = "sim")]
    pub(super) fn update_key_soon(&mut self) {
        self.answer_due |= !self.close_sent && matches!(self.reading, Reading::Open);
    }

    pub(super) fn wants_control(&self) -> bool {
        self.alert_due.is_some() || self.answer_due
    }

    pub(super) fn flush_control(&mut self, out: &mut Output) {
        if let Some(alert) = self.alert_due.take() {
            self.send_alert(out, FATAL, alert);
        } else if self.answer_due {
            self.send_key_update(out, KEY_UPDATE_MESSAGE);
        }
    }

    pub(super) fn close_notify(&mut self, out: &mut Output) {
        if !self.close_sent {
            self.alert_due = None;
            self.answer_due = false;
            self.send_alert(out, WARNING, AlertDescription::CloseNotify);
        }
    }

    fn send_alert(&mut self, out: &mut Output, level: u8, alert: AlertDescription) {
        self.before_record(out);
        self.sealer.seal(out, ALERT, &[level, u8::from(alert)]);
        self.close_sent = true;
    }

    /// The KeyUpdate itself is the last record under the old key (RFC 8446 section 4.6.3).
    pub(super) fn send_key_update(&mut self, out: &mut Output, message: [u8; 5]) {
        self.sealer.seal(out, HANDSHAKE, &message);
        let (sequence, secrets) = self.kernel.next_sending();
        let sequence = sequence + u64::from(is_planted(Bug::SequenceAfterKeyUpdate));
        self.sealer = Sealer::new(sequence, &secrets).expect("invariant: the suite does not change");
        self.answer_due = false;
    }

    fn open_record(&mut self, input: &[u8], plain: &mut [u8]) -> Result<Opened, TlsError> {
        let consumed = match frame(input)? {
            Framed::Incomplete { need } => return Ok(Opened::Incomplete { need }),
            Framed::Whole { total } => total,
        };
        let (content_type, written) = self.opener.open(&input[..consumed], plain)?;
        match (content_type, written) {
            (APPLICATION_DATA, 0) => {
                // Legal as traffic padding (RFC 8446 section 5.1), but nothing to spend CPU on for ever.
                self.empty_records += 1;
                if self.empty_records > limits::EMPTY_RECORDS_MAX {
                    return Err(RecordError::EmptyFlood.into());
                }
                Ok(Opened::Control { consumed })
            }
            (APPLICATION_DATA, _) => {
                self.empty_records = 0;
                self.budget.earn();
                Ok(Opened::Data { consumed, written })
            }
            (HANDSHAKE, _) => {
                self.receive_handshake(&plain[..written])?;
                Ok(Opened::Control { consumed })
            }
            (ALERT, _) => self.receive_alert(&plain[..written], consumed),
            (content_type, _) => Err(RecordError::UnexpectedContent { content_type }.into()),
        }
    }

    /// All messages of one record. A message must end in it: a ticket always fits, and a key change must not
    /// happen in the middle of one (RFC 8446 section 5.1).
    fn receive_handshake(&mut self, messages: &[u8]) -> Result<(), RecordError> {
        let mut rest = messages;
        loop {
            let (message_type, body, after) = split_message(rest).ok_or(RecordError::SplitHandshake)?;
            self.budget.spend()?;
            match (message_type, &self.kernel) {
                (KEY_UPDATE, _) => {
                    if !after.is_empty() {
                        return Err(RecordError::KeyUpdateNotLast);
                    }
                    return self.receive_key_update(body);
                }
                // Resumption is off: accepted and forgotten.
                (NEW_SESSION_TICKET, Kernel::Client(_)) => {}
                (message_type, _) => return Err(RecordError::UnexpectedHandshake { message_type }),
            }
            if after.is_empty() {
                return Ok(());
            }
            rest = after;
        }
    }

    fn receive_key_update(&mut self, body: &[u8]) -> Result<(), RecordError> {
        let update_requested = match body {
            [0] => false,
            [1] => true,
            _ => return Err(RecordError::MalformedKeyUpdate),
        };
        let (sequence, secrets) = self.kernel.next_receiving();
        self.opener = Opener::new(sequence, &secrets).expect("invariant: the suite does not change");
        if update_requested && !self.close_sent {
            self.answer_due = true;
        }
        Ok(())
    }

    /// RFC 8446 section 6: the level means nothing, and every alert but two ends the session.
    fn receive_alert(&mut self, alert: &[u8], consumed: usize) -> Result<Opened, TlsError> {
        let &[_level, description] = alert else {
            return Err(RecordError::MalformedAlert.into());
        };
        match AlertDescription::from(description) {
            AlertDescription::CloseNotify => {
                self.reading = Reading::Closed;
                Ok(Opened::Closed { consumed })
            }
            // Followed by close_notify (section 6.1).
            AlertDescription::UserCanceled => {
                self.budget.spend()?;
                Ok(Opened::Control { consumed })
            }
            alert => Err(TlsError::Alert(alert)),
        }
    }
}

impl Kernel {
    /// Sequence number and secrets that follow the present ones.
    fn next_sending(&mut self) -> (u64, ConnectionTrafficSecrets) {
        match self {
            Self::Client(client) => client.update_tx_secret(),
            Self::Server(server) => server.update_tx_secret(),
        }
        .expect("invariant: the keys of this TLS 1.3 suite were extracted before")
    }

    fn next_receiving(&mut self) -> (u64, ConnectionTrafficSecrets) {
        match self {
            Self::Client(client) => client.update_rx_secret(),
            Self::Server(server) => server.update_rx_secret(),
        }
        .expect("invariant: the keys of this TLS 1.3 suite were extracted before")
    }
}

impl ControlBudget {
    fn new() -> Self {
        Self {
            credit: limits::CONTROL_BURST_MAX,
            records: 0,
        }
    }

    fn earn(&mut self) {
        if is_planted(Bug::ControlBudgetNeverRefilled) {
            return;
        }
        self.records += 1;
        if self.records >= limits::CONTROL_EARN_RECORDS {
            self.records = 0;
            self.credit = (self.credit + 1).min(limits::CONTROL_BURST_MAX);
        }
    }

    fn spend(&mut self) -> Result<(), RecordError> {
        self.credit = self.credit.checked_sub(1).ok_or(RecordError::ControlFlood)?;
        Ok(())
    }
}

/// Type, body and what follows of the first handshake message (RFC 8446 section 4).
fn split_message(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[message_type, high, middle, low], rest) = bytes.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_be_bytes([0, high, middle, low])).ok()?;
    let (body, after) = rest.split_at_checked(len)?;
    Some((message_type, body, after))
}
