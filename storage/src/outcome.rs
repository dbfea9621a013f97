//! What became of a write: done, not done, or unknown, which is neither.

/// What became of a write to a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Stored whole; a power cut cannot take it back.
    Done,
    /// Definite: nothing of it is there, and nothing will be.
    NotDone(NotDone),
    /// It may be there whole, now or later, or not at all. The same write again settles it.
    Unknown,
}

/// Why nothing of it was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NotDone {
    #[error("the disk is full")]
    Full,
    #[error("the store has more to do than it can take")]
    Overloaded,
    /// The store reopens its files.
    #[error("the store is not available")]
    Unavailable,
    #[error("the batch is larger than the store takes")]
    TooLarge,
    #[error("the store is closed")]
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    pub ticket: u64,
    pub outcome: Outcome,
}
