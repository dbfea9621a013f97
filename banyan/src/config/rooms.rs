//! `[rooms]`: how many rooms, how large, how long open.

use std::time::Duration;

use super::kind::{Choice, Count, Time};
use super::section::section;

/// Whether rooms are made by their first use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lazy {
    Off,
    /// As public groups.
    Public,
}

section! {
    /// Rooms: how large, how many, how long they stay open in memory.
    "rooms" struct Rooms {
        /// Most members of one room; who would be one more gets "limit exceeded" (106).
        max_members: u32 = 100_000, Count(2, 10_000_000);
        /// Rooms held open in memory at once; beyond it the one that was idle longest is closed. Nothing is lost by that:
        /// a closed room opens again at its next use.
        open_rooms: u32 = 200_000, Count(16, 10_000_000);
        /// A room that nobody used for so long is closed in memory.
        idle_close: Duration = Duration::from_secs(600), Time(Duration::from_secs(1), Duration::from_secs(86_400));
        /// "public": who subscribes to, joins or sends to a room that does not exist makes it, as a public group without an
        /// owner, and becomes a member. For applications that use room ids of their own.
        lazy: Lazy = Lazy::Off, Choice(&[("off", Lazy::Off), ("public", Lazy::Public)]);
    }
}
