//! Windows: how much we may send, and how much the peer may.
//!
//! Plain values, one pair per stream and one per connection. Invariant of a receive window: what the peer may
//! still send plus what it sent and nobody has taken yet never exceeds `held_max`.
//! Specification: RFC 9113 sections 5.2, 6.9 and 6.5.2.

use super::frame::{WINDOW_BYTES_DEFAULT, WINDOW_BYTES_MAX};

/// The window would exceed 2^31-1 (RFC 9113 section 6.9.1).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overflow;

/// What the peer lets us send. Negative after the peer shrank SETTINGS_INITIAL_WINDOW_SIZE below what is in
/// flight (section 6.9.2): then nothing may be sent until updates made it positive again.
#[derive(Debug, Clone, Copy)]
pub(super) struct SendWindow(i64);

impl SendWindow {
    pub fn new(bytes: u32) -> Self {
        Self(i64::from(bytes))
    }

    pub fn available(self) -> usize {
        self.0.max(0) as usize
    }

    #[cfg(feature = "sim")]
    pub fn signed(self) -> i64 {
        self.0
    }

    pub fn take(&mut self, bytes: usize) {
        assert!(
            bytes <= self.available(),
            "invariant: callers ask for the capacity before they send"
        );
        self.0 -= bytes as i64;
    }

    /// Moves the window by a WINDOW_UPDATE or by a change of the initial window. True when the window went from
    /// closed to open.
    pub fn shift(&mut self, delta: i64) -> Result<bool, Overflow> {
        let moved = self.0 + delta;
        if moved > i64::from(WINDOW_BYTES_MAX) {
            return Err(Overflow);
        }
        let opened = self.0 <= 0 && moved > 0;
        self.0 = moved;
        Ok(opened)
    }
}

/// What we let the peer send.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReceiveWindow {
    /// What the peer may still send. Negative when our SETTINGS shrank it and the peer had used more before it
    /// learned of them.
    granted: i64,
    /// Payload announced by frames and not consumed yet.
    unread: u64,
    /// What the peer may have in flight when everything was read.
    window: u32,
    /// Bound of `granted + unread`.
    held_max: u64,
    /// An update below this size is not worth a frame.
    update_min: u32,
}

impl ReceiveWindow {
    /// A stream: unread bytes take from its window. `granted` starts higher than the window while the peer may
    /// not have seen our SETTINGS.
    pub fn stream(window: u32, granted: u32) -> Self {
        Self {
            granted: i64::from(granted),
            unread: 0,
            window,
            held_max: u64::from(window),
            update_min: (window / 2).max(1),
        }
    }

    /// The connection: unread bytes take from the window only beyond `unread_max`.
    pub fn connection(window: u32, unread_max: u32) -> Self {
        Self {
            granted: i64::from(WINDOW_BYTES_DEFAULT),
            unread: 0,
            window,
            held_max: u64::from(window) + u64::from(unread_max),
            update_min: crate::limits::HTTP2_WINDOW_UPDATE_BYTES_MIN
                .min(window / 2)
                .max(1),
        }
    }

    pub fn granted(&self) -> i64 {
        self.granted
    }

    pub fn unread(&self) -> u64 {
        self.unread
    }

    /// True when a frame of this length is within the window.
    pub fn allows(&self, frame_bytes: u32) -> bool {
        i64::from(frame_bytes) <= self.granted
    }

    /// A frame was announced: all of it uses window (padding too, section 6.1), its payload waits for a reader.
    pub fn arrive(&mut self, frame_bytes: u32, payload_bytes: u32) {
        debug_assert!(self.allows(frame_bytes) && payload_bytes <= frame_bytes);
        self.granted -= i64::from(frame_bytes);
        self.unread += u64::from(payload_bytes);
    }

    /// Payload found a reader, or its stream was given up.
    pub fn consume(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.unread, "invariant: only what arrived is consumed");
        self.unread = self.unread.saturating_sub(bytes);
    }

    /// Our SETTINGS took effect at the peer (section 6.9.2).
    pub fn shift(&mut self, delta: i64) {
        self.granted += delta;
    }

    /// The increment to send now, when there is enough to give back. A stream waits for half of its window. The
    /// connection waits for half of what it could be granted, which is less than half of its window when unread
    /// bytes have used up their allowance: a fixed threshold would then stall the streams that are read.
    pub fn update(&mut self) -> Option<u32> {
        let target = self.target();
        if target - self.granted < (target / 2).max(i64::from(self.update_min)) {
            return None;
        }
        self.raise()
    }

    /// The increment that brings the window to its full size, whatever it is: for the start of a connection.
    pub fn raise(&mut self) -> Option<u32> {
        // `granted` is above -65,535 and the target below 2^31; a peer whose window is negative can be due more
        // than one increment carries.
        let due = (self.target() - self.granted).min(i64::from(WINDOW_BYTES_MAX));
        if due <= 0 {
            return None;
        }
        self.granted += due;
        Some(due as u32)
    }

    /// What the peer may have in flight now. Negative while a stream holds more than a window that SETTINGS made
    /// smaller.
    fn target(&self) -> i64 {
        (self.held_max as i64 - self.unread as i64).min(i64::from(self.window))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_send_window_may_become_negative_and_opens_only_above_zero() {
        let mut window = SendWindow::new(100);
        window.take(80);
        assert_eq!(window.shift(-100), Ok(false));
        assert_eq!(window.available(), 0);
        assert_eq!(window.shift(80), Ok(false), "zero is still closed");
        assert_eq!(window.shift(1), Ok(true));
        assert_eq!(window.shift(1), Ok(false), "it was open before");
        assert_eq!(window.available(), 2);
    }

    #[test]
    fn a_send_window_holds_exactly_the_largest_window() {
        let mut window = SendWindow::new(WINDOW_BYTES_MAX - 1);
        assert_eq!(window.shift(1), Ok(false));
        assert_eq!(window.shift(1), Err(Overflow));
        assert_eq!(
            window.available(),
            WINDOW_BYTES_MAX as usize,
            "a refused update changes nothing"
        );
    }

    #[test]
    fn a_stream_is_credited_for_half_of_its_window_and_only_for_what_was_read() {
        let mut window = ReceiveWindow::stream(1000, 1000);
        window.arrive(700, 700);
        assert_eq!(window.update(), None, "nothing was read");
        window.consume(499);
        assert_eq!(window.update(), None);
        window.consume(1);
        assert_eq!(window.update(), Some(500));
        assert_eq!(window.granted(), 800);
        assert!(window.allows(800) && !window.allows(801));
    }

    #[test]
    fn padding_is_credited_without_a_reader() {
        let mut window = ReceiveWindow::stream(1000, 1000);
        window.arrive(200, 0);
        window.arrive(300, 0);
        assert_eq!(window.update(), Some(500));
    }

    #[test]
    fn a_window_of_one_byte_is_credited_byte_by_byte() {
        let mut window = ReceiveWindow::stream(1, 1);
        for _ in 0..3 {
            window.arrive(1, 1);
            assert_eq!(window.update(), None);
            window.consume(1);
            assert_eq!(window.update(), Some(1));
        }
    }

    #[test]
    fn unread_bytes_within_their_allowance_leave_the_connection_window_whole() {
        let mut window = ReceiveWindow::connection(1 << 20, 1 << 20);
        assert_eq!(window.update(), Some((1 << 20) - 65_535));
        window.arrive(1 << 20, 1 << 20);
        assert_eq!(window.update(), Some(1 << 20));
        assert_eq!(window.granted(), 1 << 20);
    }

    #[test]
    fn unread_bytes_beyond_their_allowance_shrink_the_connection_window_and_nothing_exceeds_the_bound() {
        let (size, allowance) = (1u32 << 20, 1u32 << 20);
        let mut window = ReceiveWindow::connection(size, allowance);
        window.update();
        let mut sent = 0u64;
        while window.granted() > 0 {
            let bytes = window.granted().min(10_000) as u32;
            window.arrive(bytes, bytes);
            sent += u64::from(bytes);
            window.update();
            assert!(window.granted() as u64 + window.unread() <= u64::from(size + allowance));
        }
        assert!(sent > u64::from(size + allowance) - 2 * 16_384, "{sent}");
        // A stream that is read goes on with what is left.
        window.consume(40_000);
        assert!(window.update().is_some_and(|bytes| bytes >= 40_000));
    }
}
