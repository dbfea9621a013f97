//! Why a store could not answer. (Writes to rooms have their own word, [`crate::Outcome`].)

/// Everything but [`Error::Unknown`] is definite: nothing was written and nothing will be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A queue of the store is full. Try again later; the store does not wait for room in a queue.
    #[error("the store has more to do than it can take")]
    Overloaded,
    /// The store cannot work right now (it reopens its files after a failed write) and is trying to.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// Too little free space to write. Reads go on.
    #[error("the disk is full")]
    Full,
    /// The write was cut off half-way: it may be there, or not. Ask, or write the same again.
    #[error("it is not known whether the write is stored")]
    Unknown,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// What was read cannot have been written by us. The text says where.
    #[error("stored data is damaged: {0}")]
    Corrupt(String),
    /// The caller asked for what this call does not do.
    #[error("{0}")]
    Refused(&'static str),
}
