//! Bytes that say where they belong: connection, direction and offset decide each of them.

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    ToServer,
    ToClient,
}

fn word(connection: usize, way: Way, at: u64) -> [u8; 8] {
    let key = (connection as u64) << 1 | u64::from(way == Way::ToClient);
    // The finaliser of splitmix64, over a position that is unique.
    let mut mixed = (key << 40 ^ at).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (mixed ^ (mixed >> 27)).to_le_bytes()
}

/// The bytes from `offset` on.
pub fn fill(connection: usize, way: Way, offset: u64, into: &mut [u8]) {
    let mut at = offset;
    let mut rest = into;
    while !rest.is_empty() {
        let word = word(connection, way, at / 8);
        let from = (at % 8) as usize;
        let n = (8 - from).min(rest.len());
        let (now, later) = rest.split_at_mut(n);
        now.copy_from_slice(&word[from..from + n]);
        rest = later;
        at += n as u64;
    }
}

/// Where the first wrong byte stands.
pub fn first_wrong(
    connection: usize,
    way: Way,
    offset: u64,
    got: &[u8],
    scratch: &mut Vec<u8>,
) -> Option<u64> {
    scratch.resize(got.len(), 0);
    fill(connection, way, offset, scratch);
    if scratch == got {
        return None;
    }
    let at = scratch.iter().zip(got).position(|(want, got)| want != got)?;
    Some(offset + at as u64)
}
