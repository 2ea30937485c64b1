//! Byte streams that can be checked at any position: lost, doubled, swapped or foreign bytes all show.
//!
//! A pattern is a block of pseudo-random bytes, repeated. The block length is prime, so a displacement by any
//! buffer size shows, and each connection has its own seed, so bytes of another connection show too.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const BLOCK_BYTES: usize = 65_521;
const CHUNK_BYTES: usize = 128 * 1024;

#[derive(Clone)]
pub struct Pattern {
    /// The block twice, so that any run of up to one block is one slice.
    bytes: std::sync::Arc<[u8]>,
}

impl Pattern {
    pub fn new(seed: u64) -> Self {
        // xorshift64*: any seed but zero.
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut block = Vec::with_capacity(2 * BLOCK_BYTES + 8);
        while block.len() < BLOCK_BYTES {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            block.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
        }
        block.truncate(BLOCK_BYTES);
        block.extend_from_within(..);
        Self { bytes: block.into() }
    }

    /// The bytes of the stream from `offset`: at least one, at most a block, no more than `wanted`.
    pub fn slice(&self, offset: u64, wanted: usize) -> &[u8] {
        let start = (offset % BLOCK_BYTES as u64) as usize;
        &self.bytes[start..start + wanted.min(BLOCK_BYTES)]
    }

    /// Compares `got` with the stream from `offset`; the error is the position of the first wrong byte.
    pub fn check(&self, offset: u64, got: &[u8]) -> Result<(), u64> {
        let mut at = 0;
        while at < got.len() {
            let expected = self.slice(offset + at as u64, got.len() - at);
            let part = &got[at..at + expected.len()];
            if part != expected {
                let wrong = part
                    .iter()
                    .zip(expected)
                    .position(|(got, expected)| got != expected);
                let wrong = wrong.expect("invariant: unequal slices of one length differ somewhere");
                return Err(offset + (at + wrong) as u64);
            }
            at += expected.len();
        }
        Ok(())
    }

    /// Sends the first `bytes` of the stream.
    pub async fn send(&self, writer: &mut (impl AsyncWrite + Unpin), bytes: u64) -> io::Result<()> {
        let mut sent = 0;
        while sent < bytes {
            let wanted = (bytes - sent).min(CHUNK_BYTES as u64) as usize;
            let chunk = self.slice(sent, wanted);
            writer.write_all(chunk).await?;
            sent += chunk.len() as u64;
        }
        writer.flush().await
    }

    /// Receives until the end of the stream, checks every byte, and returns their number.
    pub async fn receive(&self, reader: &mut (impl AsyncRead + Unpin)) -> io::Result<u64> {
        self.receive_up_to(reader, u64::MAX).await
    }

    /// Receives `bytes`, or until the end of the stream.
    pub async fn receive_up_to(&self, reader: &mut (impl AsyncRead + Unpin), bytes: u64) -> io::Result<u64> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut received = 0;
        while received < bytes {
            let room = (bytes - received).min(CHUNK_BYTES as u64) as usize;
            let got = reader.read(&mut buffer[..room]).await?;
            if got == 0 {
                break;
            }
            self.check(received, &buffer[..got]).map_err(|position| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("byte {position} of the stream is wrong"),
                )
            })?;
            received += got as u64;
        }
        Ok(received)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_displaced_a_changed_and_a_foreign_byte_show() {
        let pattern = Pattern::new(7);
        let mut stream = Vec::new();
        while stream.len() < 300_000 {
            let at = stream.len();
            stream.extend_from_slice(pattern.slice(at as u64, 300_000 - at));
        }
        assert_eq!(pattern.check(0, &stream), Ok(()));
        assert_eq!(pattern.check(1_000, &stream[1_000..200_000]), Ok(()));
        assert!(pattern.check(65_536, &stream[..10]).is_err());
        stream[131_072] ^= 1;
        assert_eq!(pattern.check(0, &stream), Err(131_072));
        assert!(Pattern::new(8).check(0, &stream[..64]).is_err());
    }
}
