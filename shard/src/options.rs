//! What a process may set about its shard.

use std::time::Duration;

use banyan_proto::id::{Epoch, Incarnation, Tenure};
use banyan_router::SlotCount;
use banyan_shard_core::Config;

#[derive(Debug, Clone)]
pub struct Options {
    /// Workers; slots are dealt to them in turn. One per core.
    pub workers: usize,
    pub slots: SlotCount,
    /// In whose name every slot is served: an epoch above that of every earlier run, and the incarnation of this one,
    /// registered in the store. The default is for stores that no other run has seen.
    pub tenure: Tenure,
    /// Bounds of a room. The seed of its hashes is set when the workers are made.
    pub room: Config,
    /// Rooms held open in the process. Above it the longest unused one that nobody listens to is closed; if there is
    /// none, a further room is answered 112. Rooms that a gateway is interested in stay open: this is also the bound
    /// on rooms that people look at.
    pub open_rooms: usize,
    /// A room that nobody listens to and that nothing happens in is closed after this time.
    pub idle: Duration,
    /// Batches that wait in a worker's inbox; full: the sender gets its batch back and answers 112 itself.
    pub inbox_batches: usize,
    /// Reads that one worker has under way in the store; further ones wait their turn.
    pub reads: usize,
    /// Appends under way when the drain begins are waited for so long.
    pub drain_deadline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: 1,
            slots: SlotCount::DEFAULT,
            tenure: Tenure { epoch: Epoch(1), incarnation: Incarnation(1) },
            room: Config::default(),
            open_rooms: 200_000,
            idle: Duration::from_secs(600),
            inbox_batches: 1_024,
            reads: 256,
            drain_deadline: Duration::from_secs(10),
        }
    }
}
