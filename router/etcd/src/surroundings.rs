//! What a node run needs beside etcd: the store's rows, its peers, its workers, and people.

use std::fmt::Debug;

use banyan_proto::id::{Epoch, Incarnation, SlotId, Tenure};
use banyan_router::node::End;
use banyan_router::slot_key::{OwnerRow, Peer};
use banyan_router::slot_owner::{Failed, Opening, Why};
use futures_util::future::BoxFuture;

/// The rows of the ring in the store. A write is done when it is there at quorum; a read is one at quorum. `Failed` means
/// unknown, and the same may be said again.
pub trait Records: Send + Sync + Debug + 'static {
    /// `incarnations(me)`.
    fn register_incarnation(&self, me: Peer) -> BoxFuture<'static, Result<(), Failed>>;
    /// `fences(incarnation)`.
    fn write_fence(&self, incarnation: Incarnation) -> BoxFuture<'static, Result<(), Failed>>;
    /// Whether `fences(incarnation)` is there.
    fn read_fence(&self, incarnation: Incarnation) -> BoxFuture<'static, Result<bool, Failed>>;
    /// Writes the row of a slot's owner and, in the same batch, marks the row of `closes` closed.
    fn put_owner(
        &self,
        slot: SlotId,
        row: OwnerRow,
        closes: Option<Tenure>,
    ) -> BoxFuture<'static, Result<(), Failed>>;
    fn read_owners(&self, slot: SlotId) -> BoxFuture<'static, Result<Vec<OwnerRow>, Failed>>;
    /// Every run that was ever registered: for `ring recover`.
    fn read_incarnations(&self) -> BoxFuture<'static, Result<Vec<Peer>, Failed>>;
}

/// All of these are called on the task of the runner, in order, and must not wait: they hand on what they are told.
pub trait Surroundings: Records {
    // peers; what does not arrive is asked for again
    fn ask_ready(&self, peer: &Peer);
    fn say_ready(&self, to: &Peer);
    /// The rooms of a drained slot, made for this epoch. The worker holds them until it is told to resume or to release.
    fn send_state(&self, slot: SlotId, to: &Peer, epoch: Epoch, complete: bool);

    // workers: nothing of these may be lost or change its order within a slot
    fn serve(&self, slot: SlotId, tenure: Tenure, opening: Opening);
    /// Answered by `Drained` with this number.
    fn drain(&self, slot: SlotId, drain: u32);
    fn resume(&self, slot: SlotId, tenure: Tenure);
    fn release(&self, slot: SlotId, to: Option<Tenure>);

    // people
    /// Ownership is to be frozen. Said again with each try.
    fn frozen(&self, slot: SlotId, why: Why);
    /// The run is over: every slot is dropped at once, and nothing more is said in any room.
    fn dead(&self, why: End);
    fn left(&self);
}
