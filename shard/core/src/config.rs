//! The bounds of a room, and where each comes from.

use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use crate::log::Limits;

/// Shared by all rooms of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Events of one append. One commit of the store covers many rooms, so larger batches gain little.
    pub batch_events: usize,
    /// Bytes of one append, events as stored.
    pub batch_bytes: usize,
    /// Commands that may wait in a room for the append in flight, a load or a read; above: 112.
    pub queue_commands: usize,
    /// Bytes of those commands; above: 112.
    pub queue_bytes: usize,
    /// What a 112 tells to wait.
    pub retry_after_ms: u64,
    /// A command that waits longer is answered 108; its outcome is settled all the same.
    pub answer_within_ms: u64,
    /// A room that cannot be read and that links want is tried again after this time.
    pub reopen_ms: u64,
    /// Bounds of the log: its segments, and how unknown outcomes are settled.
    pub log: Arc<Limits>,
    /// Members of a room; above: 106.
    pub members: u64,
    /// Everyone who ever was in a room, all of them in memory while it is open (about 150 bytes each); above: 106.
    pub member_rows: usize,
    /// Joins and leaves are events while the room has at most so many members (docs/protocol.md, "Events").
    pub join_events_members: u64,
    /// Marks are told to everybody in rooms of at most so many members (docs/protocol.md, "Pushes").
    pub marks_members: u64,
    /// A changed room is told to every member's channel up to so many; in larger rooms they learn by the event.
    pub change_members: u64,
    /// Marks of a member are written, and pushed, at most once in this time.
    pub marks_every_ms: u64,
    /// Newest events kept in memory, by count and by bytes; pages and pulls below them read the log.
    pub tail_events: usize,
    pub tail_bytes: usize,
    /// What is left of them when nothing has been written for `rest_ms`. An event in memory takes four times its stored
    /// size (decoded, stored and JSON form); a process that holds 200,000 rooms cannot keep them all.
    pub rest_events: usize,
    pub rest_ms: u64,
    /// Events whose ids are remembered, and for how long after an open they are read again (docs/protocol.md,
    /// "Delivery").
    pub window_events: u64,
    pub window_ms: u64,
    /// A twin is looked for in at most so many events above `since`; above: 113.
    pub since_events: u64,
    /// Reads of the log that one room may have under way; above: 112.
    pub reads: usize,
    /// JSON of one reply (docs/protocol.md: 512 KiB a frame), less what stands around the events.
    pub page_bytes: usize,
    /// Events of one page to a gateway.
    pub pull_events: usize,
    pub pull_bytes: usize,
    /// `rooms.lazy = "public"`: a room that does not exist is made by its first subscribe, send or join.
    pub lazy_public: bool,
    /// Seeds the hashes of ids and bodies, so that clients cannot aim at collisions; random per process.
    pub hash_seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            batch_events: 128,
            batch_bytes: 256 << 10,
            queue_commands: 1_024,
            queue_bytes: 1 << 20,
            retry_after_ms: 500,
            answer_within_ms: 10_000,
            reopen_ms: 2_000,
            log: Arc::default(),
            members: 100_000,
            member_rows: 400_000,
            join_events_members: 500,
            marks_members: 100,
            change_members: 1_000,
            marks_every_ms: 1_000,
            tail_events: 256,
            tail_bytes: 256 << 10,
            rest_events: 8,
            rest_ms: 30_000,
            window_events: 4_096,
            window_ms: 10 * 60 * 1_000,
            since_events: 10_000,
            reads: 64,
            page_bytes: (512 << 10) - 1_024,
            pull_events: 512,
            pull_bytes: 512 << 10,
            lazy_public: false,
            hash_seed: 0,
        }
    }
}

/// The configuration as each room holds it: the same one for all, so it makes no difference between two of them.
#[derive(Debug, Clone)]
pub(crate) struct Shared(pub(crate) Arc<Config>);

impl Deref for Shared {
    type Target = Config;
    fn deref(&self) -> &Config {
        &self.0
    }
}

impl PartialEq for Shared {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Shared {}

impl Hash for Shared {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}
