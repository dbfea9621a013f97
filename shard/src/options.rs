//! What a process may set about its shard.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use banyan_proto::id::{Epoch, Incarnation, SlotId};
use banyan_proto::link::ToShard;
use banyan_router::SlotCount;
use banyan_shard_core::Config;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::handle::Drained;

#[derive(Debug, Clone)]
pub struct Options {
    /// Workers; slots are dealt to them in turn. One per core.
    pub workers: usize,
    pub slots: SlotCount,
    /// This run of the node, registered in the store. The default is for stores that no other run has seen.
    pub incarnation: Incarnation,
    /// One process that owns every slot, always: under this epoch, above that of every earlier run. `None`: the workers
    /// serve what they are told to ([`crate::Handle::slot`]).
    pub all_slots: Option<Epoch>,
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
    /// What the workers of a node among others need beside that. `None`: there are no others.
    pub cluster: Option<Cluster>,
}

/// The node around the workers.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Slots that are drained: room for all that can be ordered to drain at once. What finds none is not told, and its
    /// drain is given up by who ordered it.
    pub drained: mpsc::Sender<Drained>,
    pub elsewhere: Arc<dyn Elsewhere>,
    /// The run is over: everything is dropped where it stands.
    pub over: CancellationToken,
}

/// The way to user channels on other nodes.
pub trait Elsewhere: Send + Sync + Debug + 'static {
    /// Passes a push on to the node that owns the slot. Gives it back if that is this one; what there is no way for is
    /// lost, as pushes may be.
    fn notify(&self, slot: SlotId, message: ToShard) -> Option<ToShard>;
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: 1,
            slots: SlotCount::DEFAULT,
            incarnation: Incarnation(1),
            all_slots: Some(Epoch(1)),
            room: Config::default(),
            open_rooms: 200_000,
            idle: Duration::from_secs(600),
            inbox_batches: 1_024,
            reads: 256,
            drain_deadline: Duration::from_secs(10),
            cluster: None,
        }
    }
}
