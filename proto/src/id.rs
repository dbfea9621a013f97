//! The ids and numbers that every crate speaks of, each a type of its own.
//!
//! Always holds: a [`RoomId`] or [`UserId`] obeys the rules of docs/protocol.md ("Transport"), whoever made it;
//! cloning one costs a reference count, never a copy.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// Longest room id, in bytes.
pub const ROOM_ID_MAX: usize = 128;
/// Longest user id, in bytes.
pub const USER_ID_MAX: usize = 128;
/// Longest client message id, in bytes.
pub const CLIENT_MSG_ID_MAX: usize = 64;
/// Largest id or sequence number on the wire: what a JSON number holds exactly (2^53 - 1).
pub const NUMBER_MAX: u64 = (1 << 53) - 1;
/// Ids that begin so belong to direct rooms.
pub const DIRECT_PREFIX: &str = "dm.";
/// Ids that begin so belong to the server: user channels, the system as a sender.
pub const RESERVED_PREFIX: &str = "~";

/// Why a text is not an id. Its words are shown to clients.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("{what} is empty")]
    Empty { what: &'static str },
    #[error("{what} is longer than {max} bytes")]
    TooLong { what: &'static str, max: usize },
    #[error("{what} may only hold {allowed}")]
    Character { what: &'static str, allowed: &'static str },
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr, $allowed:literal, $ok:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks length and characters.
            pub fn parse(text: &str) -> Result<Self, Invalid> {
                if text.is_empty() {
                    return Err(Invalid::Empty { what: $what });
                }
                if text.len() > $max {
                    return Err(Invalid::TooLong { what: $what, max: $max });
                }
                let ok: fn(u8) -> bool = $ok;
                if !text.bytes().all(ok) {
                    return Err(Invalid::Character { what: $what, allowed: $allowed });
                }
                Ok(Self(Arc::from(text)))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id!(
    /// A room: 1–128 bytes of `[A-Za-z0-9._:-]`; `~` begins ids of our own (user channels).
    RoomId, "room", ROOM_ID_MAX, "A-Z a-z 0-9 . _ : -",
    |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-')
);

text_id!(
    /// A user: 1–128 bytes of printable ASCII without space, `/`, `\` and `"`.
    UserId, "user", USER_ID_MAX, "printable ASCII without space, / \\ and \"",
    |b| b.is_ascii_graphic() && !matches!(b, b'/' | b'\\' | b'"')
);

impl RoomId {
    /// True for ids that only the server makes: direct rooms.
    pub fn is_direct(&self) -> bool {
        self.0.starts_with(DIRECT_PREFIX)
    }
}

impl UserId {
    /// The sender of what an application does as itself.
    pub const SYSTEM: &'static str = "~system";

    pub fn system() -> Self {
        Self(Arc::from(Self::SYSTEM))
    }

    /// True for ids that no client may claim.
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with(RESERVED_PREFIX)
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number!(
    /// Place of an event in its room: dense, 1..head. `Seq(0)` stands before the first.
    Seq(u64)
);
number!(
    /// Of a slot's ownership; rises with every change of owner.
    Epoch(u64)
);
number!(
    /// One of the slots that rooms are hashed to.
    SlotId(u16)
);
number!(
    /// The connection that a send came in by, unique over nodes and runs in practice (random base, counted up).
    /// Stored with the event, so that a page read from the log finds the send that waits for it.
    Origin(u64)
);
number!(
    /// Unix time in milliseconds, for display only.
    UnixMs(u64)
);

number!(
    /// Which partition of a room's log; stored in the segment's record, never recomputed from a clock.
    Bucket(u32)
);
number!(
    /// Counts the segments that one owner begins within an epoch: openings of rooms in the upper half (counted by the
    /// worker over all its rooms, so that a room that was closed and opened again never meets its earlier name), rolls of
    /// one opening in the lower half.
    Part(u64)
);

impl Part {
    pub const fn of_opening(number: u32) -> Self {
        Self((number as u64) << 32)
    }

    /// The next segment of the same opening.
    #[must_use]
    pub const fn rolled(self) -> Self {
        Self(self.0 + 1)
    }
}

/// One run of one node: 128 random bits, never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u128);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// In whose name something is written or said: who owns the slot, and since which change of owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenure {
    pub epoch: Epoch,
    pub incarnation: Incarnation,
}

/// A part of a room's log that one owner wrote. Ordered as its owners followed each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId {
    pub epoch: Epoch,
    pub part: Part,
}

impl Seq {
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The life of a room's log, made at random with its first event: a recreated room or a wiped store has another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LogId(pub u64);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_take_their_alphabet_and_nothing_else() {
        assert!(RoomId::parse("general.chat:eu-1_x").is_ok());
        assert!(RoomId::parse(&"a".repeat(ROOM_ID_MAX)).is_ok());
        for bad in ["", "a b", "~alice", "ä", "a/b", "a\0"] {
            assert!(RoomId::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(
            RoomId::parse(&"a".repeat(ROOM_ID_MAX + 1)),
            Err(Invalid::TooLong { what: "room", max: ROOM_ID_MAX })
        );
    }

    #[test]
    fn users_may_be_mail_addresses_and_foreign_subjects() {
        for good in ["auth0|1", "a@b.example", "~system", "u"] {
            assert!(UserId::parse(good).is_ok(), "{good:?}");
        }
        for bad in ["", "a b", "a/b", "a\\b", "a\"b", "é", "\u{7f}"] {
            assert!(UserId::parse(bad).is_err(), "{bad:?}");
        }
    }
}
