//! One response of the control plane: the first byte says how long the pieces are in which the rest arrives. Whatever
//! it is, it is judged as it is when it comes in one piece.

use bytes::Bytes;
use uztunnel::control::xds::envelope::Malformed;
use uztunnel::control::xds::response::{Arriving, Response};
use uztunnel::mesh::Interner;

pub fn run(input: &[u8]) {
    let Some((piece_bytes, message)) = input.split_first() else {
        return;
    };
    let text = |outcome: Result<Response, Malformed>| format!("{outcome:?}");
    let cut = read(message, usize::from(*piece_bytes).max(1));
    let whole = read(message, message.len().max(1));
    assert_eq!(text(cut), text(whole));
}

fn read(message: &[u8], piece_bytes: usize) -> Result<Response, Malformed> {
    let mut interner = Interner::default();
    let mut arriving = Arriving::new(message.len(), true);
    for piece in message.chunks(piece_bytes) {
        arriving.feed(Bytes::copy_from_slice(piece));
        arriving.step(usize::MAX, &mut interner)?;
    }
    arriving.finish()
}
