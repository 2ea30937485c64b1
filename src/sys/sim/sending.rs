//! Sending: the bytes are read from the payload at the moment at which they go, as the kernel does, and the payload is
//! compared with a copy when it is given back.

use std::io;

use super::{SimDriver, not_connected};
use crate::sys::buffer::Payload;
use crate::sys::driver::{Event, SocketId};

pub(super) struct Sending {
    pub(super) payload: Payload,
    pub(super) taken: usize,
    /// What the payload was when it was given.
    pub(super) copy: Vec<u8>,
}

impl SimDriver {
    pub(super) fn start_send(&mut self, id: SocketId, payload: Payload) -> Sending {
        let mut copy = self
            .get_mut(id)
            .map(|socket| std::mem::take(&mut socket.copy))
            .unwrap_or_default();
        pieces(&payload, |piece| copy.extend_from_slice(piece));
        Sending {
            payload,
            taken: 0,
            copy,
        }
    }

    /// The payload is the caller's again: it must still be what it was.
    pub(super) fn end_send(&mut self, id: Option<SocketId>, sending: Sending) -> Payload {
        let mut rest = &sending.copy[..];
        let mut same = true;
        pieces(&sending.payload, |piece| {
            same &= rest.len() >= piece.len() && &rest[..piece.len()] == piece;
            rest = &rest[piece.len().min(rest.len())..];
        });
        if !same || !rest.is_empty() {
            self.network
                .report("a payload changed while it was being sent".to_owned());
        }
        let mut copy = sending.copy;
        copy.clear();
        match id.and_then(|id| self.get_mut(id)) {
            Some(socket) => socket.copy = copy,
            None => self.copies.push(copy),
        }
        sending.payload
    }

    /// Sends as far as it goes, or less. The bytes are read from the payload at this moment, as the kernel does.
    pub(super) fn go_on_sending(&mut self, id: SocketId, sending: &mut Sending) -> io::Result<()> {
        let short = self.network.lock().shape.short;
        loop {
            let left = sending.payload.len() - sending.taken;
            if left == 0 {
                return Ok(());
            }
            let mut most = left;
            if short && left > 1 && self.random.u8(..4) == 0 {
                most = self.random.usize(1..=left);
            }
            let socket = self.get(id).ok_or_else(not_connected)?;
            let (mut skip, mut sent, mut outcome) = (sending.taken, 0, Ok(()));
            pieces(&sending.payload, |piece| {
                let from = skip.min(piece.len());
                skip -= from;
                let piece = &piece[from..piece.len().min(from + most - sent)];
                let mut at = 0;
                while at < piece.len() && outcome.is_ok() {
                    match socket.endpoint.write(&piece[at..]) {
                        Ok(n) => at += n,
                        Err(error) => outcome = Err(error),
                    }
                }
                sent += at;
            });
            sending.taken += sent;
            match outcome {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
                // A short send: the rest goes later.
                Ok(()) if sent < left => return Ok(()),
                Ok(()) => {}
            }
        }
    }

    pub(super) fn serve_send(&mut self, id: SocketId, events: &mut Vec<Event>) {
        let Some(mut sending) = self.get_mut(id).and_then(|socket| socket.send.take()) else {
            return;
        };
        let error = self.go_on_sending(id, &mut sending).err();
        if error.is_none() && sending.taken < sending.payload.len() {
            if let Some(socket) = self.get_mut(id) {
                socket.send = Some(sending);
            }
            return;
        }
        let taken = sending.taken;
        let payload = self.end_send(Some(id), sending);
        if let Some(socket) = self.get(id) {
            let owner = socket.owner;
            self.push(
                events,
                Event::Sent {
                    owner,
                    socket: id,
                    taken,
                    error,
                    payload,
                },
            );
        }
    }
}

/// The bytes of a payload, piece by piece.
fn pieces(payload: &Payload, mut with: impl FnMut(&[u8])) {
    match payload {
        Payload::Bytes { bytes, from, end } => with(&bytes[*from..*end]),
        Payload::Slices(slices) => slices.iter().for_each(|slice| with(slice.bytes())),
        Payload::Received(buffer) => with(buffer.bytes()),
    }
}
