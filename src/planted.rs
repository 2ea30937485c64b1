//! Bugs that can be planted, so that the simulation can show that it would find them.
//!
//! Any thread; what is planted on a thread is planted there alone. Without the cargo feature `sim` nothing can be
//! planted, `is_planted` is the constant `false`, and the compiler drops what depends on it.

/// One way to be wrong, each at the one place that names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// What a reset stream held unread does not go back to the connection's window.
    WindowKeptAfterReset,
    /// Plaintext memory is filled again while slices of it are being sent.
    ChunkReusedTooEarly,
    /// The peer's end of a stream never reaches the application.
    HalfCloseLost,
    /// A connection is handed over and the worker is not woken.
    WakeLost,
    /// The first record under a new key has the second one's number.
    SequenceAfterKeyUpdate,
    /// Two streams of a session get one number.
    StreamIdReused,
    /// Policies that changed while an application was being connected to are not asked again.
    PermitNotRechecked,
    /// Policies that change are not asked about connections that live.
    LiveNotRechecked,
    /// KeyUpdates use up a budget that data never refills.
    ControlBudgetNeverRefilled,
    /// What a pod's connections take from its budget is not given back.
    PodBudgetKept,
    /// A tenant that used its part of a turn gets no further one.
    TurnCreditNeverRefilled,
    /// A receive block counts as free as soon as its receive was cancelled.
    CancelTakenForCompletion,
    /// Timers that cross the end of a level of the wheel are dropped.
    TimerLostAtWrap,
    /// GOAWAY names the last stream but one.
    GoAwayLosesLastStream,
    /// A slot is found by an old key, and by the completion of an operation that its last socket had.
    SlotFoundByOldKey,
    /// A reset of the peer ends the application's connection in an orderly way.
    ResetTurnedIntoEnd,
}

impl Bug {
    pub const ALL: [Self; 16] = [
        Self::WindowKeptAfterReset,
        Self::ChunkReusedTooEarly,
        Self::HalfCloseLost,
        Self::WakeLost,
        Self::SequenceAfterKeyUpdate,
        Self::StreamIdReused,
        Self::PermitNotRechecked,
        Self::LiveNotRechecked,
        Self::ControlBudgetNeverRefilled,
        Self::PodBudgetKept,
        Self::TurnCreditNeverRefilled,
        Self::CancelTakenForCompletion,
        Self::TimerLostAtWrap,
        Self::GoAwayLosesLastStream,
        Self::SlotFoundByOldKey,
        Self::ResetTurnedIntoEnd,
    ];
}

#[cfg(feature = "sim")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants one bug on this thread, or takes it out again.
#[cfg(feature = "sim")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

#[cfg(feature = "sim")]
#[inline]
pub fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

#[cfg(not(feature = "sim"))]
#[inline]
pub const fn is_planted(_: Bug) -> bool {
    false
}
