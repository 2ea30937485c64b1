//! One direction of TLS 1.3 record protection: sealing and opening single records with AES-GCM.
//!
//! Sans-IO and without knowledge of what records mean; `channel` decides that and replaces keys. Runs on the
//! worker that owns the connection. Invariant: a (key, nonce) pair seals once, since the nonce is the IV
//! combined with a sequence number that only ever grows and starts again with a new key only.
//! Specification: RFC 8446 section 5.
//!
//! Rejected: `TlsRecordSealingKey` of aws-lc-rs, which makes the sequence number of the nonce its own affair
//! but has no matching key that opens out of place.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;
use zeroize::Zeroizing;

use crate::tls::error::RecordError;
use crate::tls::output::Output;

/// Content type, legacy version, length (RFC 8446 section 5.1).
pub const HEADER_BYTES: usize = 5;
/// Tag of AES-GCM.
pub const TAG_BYTES: usize = 16;
/// Content of one record (RFC 8446 section 5.1).
pub const CONTENT_BYTES_MAX: usize = 16384;
/// What follows a header at most (RFC 8446 section 5.2).
pub const CIPHERTEXT_BYTES_MAX: usize = CONTENT_BYTES_MAX + 256;
/// What a record adds to its content: header, content type, tag.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + 1 + TAG_BYTES;

/// Content types (RFC 8446 section 5.1).
pub const CHANGE_CIPHER_SPEC: u8 = 20;
pub const ALERT: u8 = 21;
pub const HANDSHAKE: u8 = 22;
pub const APPLICATION_DATA: u8 = 23;

/// The sending direction.
pub struct Sealer(TrafficKey);

/// The receiving direction.
pub struct Opener(TrafficKey);

/// What stands in the front of some input.
#[derive(Debug, PartialEq, Eq)]
pub enum Framed {
    /// This many bytes of input make the whole record, or its header when that is not complete yet.
    Incomplete { need: usize },
    /// The record is the first `total` bytes of the input.
    Whole { total: usize },
}

impl Sealer {
    /// `None` for a cipher that is not AES-GCM.
    pub fn new(sequence: u64, secrets: &ConnectionTrafficSecrets) -> Option<Self> {
        TrafficKey::new(sequence, secrets).map(Self)
    }

    /// Records sealed under this key.
    pub fn sealed(&self) -> u64 {
        self.0.sequence
    }

    /// Appends one record with a copy of `content`: the AEAD is the copy.
    pub fn seal(&mut self, out: &mut Output, content_type: u8, content: &[u8]) {
        let sealed_bytes = content.len() + 1 + TAG_BYTES;
        let header = header(sealed_bytes);
        let nonce = self.nonce();
        let record = out.room(HEADER_BYTES + sealed_bytes);
        record[..HEADER_BYTES].copy_from_slice(&header);
        let (ciphertext, tail) = record[HEADER_BYTES..].split_at_mut(content.len());
        let extra = &[content_type];
        self.0
            .aead
            .seal_out_of_place_scatter(nonce, Aad::from(header), content, ciphertext, extra, tail)
            .expect("invariant: AES-GCM seals any content of a record when the lengths agree");
        out.fill(HEADER_BYTES + sealed_bytes);
    }

    /// Seals as application data what was appended to `out` behind `start` and the room for a header.
    pub fn seal_in_place(&mut self, out: &mut Output, start: usize) {
        let content_bytes = out.len() - start - HEADER_BYTES;
        let header = header(content_bytes + 1 + TAG_BYTES);
        let nonce = self.nonce();
        out.room(1 + TAG_BYTES);
        out.fill(1 + TAG_BYTES);
        let record = &mut out.filled_mut()[start..];
        record[..HEADER_BYTES].copy_from_slice(&header);
        let (content, tail) = record[HEADER_BYTES..].split_at_mut(content_bytes);
        self.0
            .aead
            .seal_in_place_scatter(nonce, Aad::from(header), content, &[APPLICATION_DATA], tail)
            .expect("invariant: AES-GCM seals any content of a record when the lengths agree");
    }

    fn nonce(&mut self) -> Nonce {
        self.0
            .next_nonce()
            .expect("invariant: keys are replaced long before 2^64 records")
    }
}

impl Opener {
    /// `None` for a cipher that is not AES-GCM.
    pub fn new(sequence: u64, secrets: &ConnectionTrafficSecrets) -> Option<Self> {
        TrafficKey::new(sequence, secrets).map(Self)
    }

    /// Opens one whole record into the front of `plain`; returns its content type and the bytes of content.
    pub fn open(&mut self, record: &[u8], plain: &mut [u8]) -> Result<(u8, usize), RecordError> {
        let (header, body) = record
            .split_first_chunk::<HEADER_BYTES>()
            .ok_or(RecordError::Authentication)?;
        let inner_bytes = body
            .len()
            .checked_sub(TAG_BYTES)
            .ok_or(RecordError::Authentication)?;
        let no_room = RecordError::NoRoom {
            need: inner_bytes,
            room: plain.len(),
        };
        let plain = plain.get_mut(..inner_bytes).ok_or(no_room)?;
        let (ciphertext, tag) = body.split_at(inner_bytes);
        let nonce = self.0.next_nonce().ok_or(RecordError::SequenceExhausted)?;
        self.0
            .aead
            .open_separate_gather(nonce, Aad::from(*header), ciphertext, tag, plain)
            .map_err(|_| RecordError::Authentication)?;
        // RFC 8446 section 5.4: content, type and padding together are at most 2^14 + 1 bytes.
        if inner_bytes > CONTENT_BYTES_MAX + 1 {
            return Err(RecordError::OversizeContent { bytes: inner_bytes });
        }
        strip_padding(plain)
    }
}

/// A traffic key of one direction with its IV and position.
struct TrafficKey {
    aead: LessSafeKey,
    iv: Zeroizing<[u8; NONCE_LEN]>,
    sequence: u64,
}

impl TrafficKey {
    /// The caller drops `secrets`, whose key bytes are wiped then; aws-lc wipes its key schedule.
    fn new(sequence: u64, secrets: &ConnectionTrafficSecrets) -> Option<Self> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            // A foreign, non-exhaustive enum; `keys` offers the two suites above only.
            _ => return None,
        };
        let mut own_iv = Zeroizing::new([0; NONCE_LEN]);
        own_iv.copy_from_slice(iv.as_ref());
        let key = UnboundKey::new(algorithm, key.as_ref()).ok()?;
        Some(Self {
            aead: LessSafeKey::new(key),
            iv: own_iv,
            sequence,
        })
    }

    /// The nonce of the next record: the sequence number, left-padded, xor the IV (RFC 8446 section 5.3).
    /// `None` when the sequence is used up; it must not wrap.
    fn next_nonce(&mut self) -> Option<Nonce> {
        let after = self.sequence.checked_add(1)?;
        let mut nonce = *self.iv;
        for (byte, sequence) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= sequence;
        }
        self.sequence = after;
        Some(Nonce::assume_unique_for_key(nonce))
    }
}

/// Looks at the header of a record that comes after the handshake.
pub fn frame(input: &[u8]) -> Result<Framed, RecordError> {
    let Some(header) = input.first_chunk::<HEADER_BYTES>() else {
        return Ok(Framed::Incomplete { need: HEADER_BYTES });
    };
    let [content_type, _, _, high, low] = *header;
    // RFC 8446 section 5: everything is protected now, also a ChangeCipherSpec must not come any more. The
    // version (bytes 1 and 2) must be ignored (section 5.1); it is authenticated with the record.
    if content_type != APPLICATION_DATA {
        return Err(RecordError::Unprotected { content_type });
    }
    let bytes = usize::from(u16::from_be_bytes([high, low]));
    if bytes > CIPHERTEXT_BYTES_MAX {
        return Err(RecordError::OversizeRecord { bytes });
    }
    let total = HEADER_BYTES + bytes;
    Ok(if input.len() < total {
        Framed::Incomplete { need: total }
    } else {
        Framed::Whole { total }
    })
}

fn header(sealed_bytes: usize) -> [u8; HEADER_BYTES] {
    let [high, low] = u16::try_from(sealed_bytes)
        .expect("invariant: channels seal at most 16,384 bytes at a time")
        .to_be_bytes();
    [APPLICATION_DATA, 3, 3, high, low]
}

/// The content type is the last byte that is not zero; what stands before it is the content
/// (RFC 8446 section 5.4).
fn strip_padding(inner: &[u8]) -> Result<(u8, usize), RecordError> {
    let at = inner
        .iter()
        .rposition(|byte| *byte != 0)
        .ok_or(RecordError::OnlyPadding)?;
    Ok((inner[at], at))
}

#[cfg(test)]
mod tests {
    use rustls::crypto::cipher::{AeadKey, Iv};

    use super::*;

    fn secrets() -> ConnectionTrafficSecrets {
        ConnectionTrafficSecrets::Aes256Gcm {
            key: AeadKey::from([7; 32]),
            iv: Iv::from([9; NONCE_LEN]),
        }
    }

    fn sealer(sequence: u64) -> Sealer {
        Sealer::new(sequence, &secrets()).expect("AES")
    }

    fn opener(sequence: u64) -> Opener {
        Opener::new(sequence, &secrets()).expect("AES")
    }

    #[test]
    fn sealing_in_place_and_out_of_place_give_the_same_bytes() {
        for content in [&b"x"[..], &[5; 1000], &[6; CONTENT_BYTES_MAX]] {
            let mut copied = Output::default();
            sealer(3).seal(&mut copied, APPLICATION_DATA, content);
            let mut in_place = Output::default();
            in_place.append(b"before");
            in_place.append(&[0; HEADER_BYTES]);
            in_place.append(content);
            sealer(3).seal_in_place(&mut in_place, 6);
            assert_eq!(copied.filled(), &in_place.filled()[6..]);
            assert_eq!(copied.len(), content.len() + OVERHEAD_BYTES);

            let mut plain = vec![0; content.len() + 1];
            let opened = opener(3).open(copied.filled(), &mut plain).expect("authentic");
            assert_eq!(opened, (APPLICATION_DATA, content.len()));
            assert_eq!(&plain[..content.len()], content);
        }
    }

    #[test]
    fn the_last_sequence_number_is_never_used() {
        let mut out = Output::default();
        sealer(0).seal(&mut out, APPLICATION_DATA, b"x");
        let error = opener(u64::MAX)
            .open(out.filled(), &mut [0; 64])
            .expect_err("no nonce is left");
        assert_eq!(error, RecordError::SequenceExhausted);
    }

    #[test]
    fn a_record_opens_under_its_own_sequence_number_only() {
        let mut out = Output::default();
        sealer(4).seal(&mut out, APPLICATION_DATA, b"x");
        assert_eq!(
            opener(5).open(out.filled(), &mut [0; 64]),
            Err(RecordError::Authentication)
        );
    }

    #[test]
    fn headers_are_judged_before_the_record_is_complete() {
        assert_eq!(frame(&[23, 3, 3]), Ok(Framed::Incomplete { need: 5 }));
        assert_eq!(frame(&[23, 3, 3, 0, 20, 1]), Ok(Framed::Incomplete { need: 25 }));
        assert_eq!(frame(&[23, 3, 3, 0, 2, 1, 1, 1]), Ok(Framed::Whole { total: 7 }));
        assert_eq!(
            frame(&[23, 3, 3, 0x41, 0x01]),
            Err(RecordError::OversizeRecord { bytes: 16641 })
        );
        assert_eq!(
            frame(&[20, 3, 3, 0, 1]),
            Err(RecordError::Unprotected { content_type: 20 })
        );
    }

    #[test]
    fn padding_is_stripped_from_the_tail() {
        assert_eq!(strip_padding(&[1, 0, 2, 23, 0, 0]), Ok((23, 3)));
        assert_eq!(strip_padding(&[23]), Ok((23, 0)));
        assert_eq!(strip_padding(&[0, 0]), Err(RecordError::OnlyPadding));
        assert_eq!(strip_padding(&[]), Err(RecordError::OnlyPadding));
    }
}
