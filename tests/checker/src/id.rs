//! Names of what a history speaks of: small numbers, given by whoever records it.
//!
//! Always holds: equal numbers of one type mean the same thing within one [`crate::History`]; what stands behind a number
//! is in its [`crate::Names`], if anywhere.
//! Does not: share types with the server, so that both cannot be wrong in the same way.

use serde::{Deserialize, Serialize};
use std::fmt;
use xxhash_rust::xxh3::Xxh3;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $show:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $show, self.0)
            }
        }
    };
}

number!(
    /// Microseconds on the one monotonic clock of the run, from any beginning.
    Time(u64), "{}"
);
number!(
    /// A room. Small and dense: tables are indexed by it.
    Room(u32), "room {}"
);
number!(
    /// A user. Small and dense.
    User(u32), "user {}"
);
number!(
    /// A `client_msg_id`; one number for one text, whoever uses it.
    Message(u32), "m{}"
);
number!(
    /// One logical client (a device): lives over any number of connections, resumes what it knew.
    Session(u32), "session {}"
);
number!(
    /// One connection of a session. Small and dense.
    Connection(u32), "connection {}"
);
number!(
    /// A command on its connection; not used twice while the first is open (the `id` of the frame will do).
    Call(u64), "#{}"
);
number!(
    /// Place in a room's log, 1 is the first.
    Seq(u64), "{}"
);
number!(
    /// Unix milliseconds as the server says them.
    UnixMs(u64), "{}"
);
number!(
    /// Hash of all that a client means by an event ([`Content::of`]): equal for a send and for its event. Leave mentions
    /// out: the server drops those who are no members.
    Content(u64), "{:016x}"
);
number!(
    /// The life of a room's log.
    Log(u64), "{:016x}"
);
number!(Slot(u16), "slot {}");
number!(
    /// Of a slot's ownership.
    Epoch(u64), "{}"
);
number!(
    /// Segments of one owner within an epoch.
    Part(u64), "{:x}"
);
number!(
    /// The sending connection as the log keeps it.
    Origin(u64), "{:x}"
);

/// One run of one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Incarnation(pub u128);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl From<Incarnation> for String {
    fn from(of: Incarnation) -> Self {
        of.to_string()
    }
}

impl TryFrom<String> for Incarnation {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u128::from_str_radix(&text, 16).map(Self)
    }
}

impl Content {
    /// The hash of some parts in order; the same in every process and build.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Xxh3::new();
        for part in parts {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.digest())
    }
}

impl Seq {
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    #[must_use]
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl Time {
    #[must_use]
    pub const fn plus(self, us: u64) -> Self {
        Self(self.0.saturating_add(us))
    }

    pub const fn from_secs(s: u64) -> Self {
        Self(s * 1_000_000)
    }
}
