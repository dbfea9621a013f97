//! What one run of this node acts on beside etcd: the store's rows, other nodes, its workers.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use banyan_proto::id::{Epoch, Incarnation, SlotId, Tenure};
use banyan_proto::wire::{Handed, NodeMessage};
use banyan_router::node::End;
use banyan_router::slot_key::{OwnerRow, Peer};
use banyan_router::slot_owner::{Failed, Opening, Why};
use banyan_router_etcd::Surroundings;
use banyan_router_etcd::surroundings::Records;
use banyan_shard::{Drained, Handle, SlotOrder};
use banyan_shard_core::room::HandedRoom;
use banyan_shard_core::worker::SlotOpening;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::rows::Rows;
use super::switchboard::Switchboard;

#[derive(Debug)]
pub(crate) struct Around {
    pub(crate) rows: Rows,
    pub(crate) board: Switchboard,
    /// The owners of rooms, if this node has some.
    pub(crate) handle: Option<Handle>,
    /// Drained and not yet handed over, resumed or released. Bound: the slots in flight.
    pub(crate) drained: Mutex<BTreeMap<SlotId, Drained>>,
    /// Ends everything of the run where it stands.
    pub(crate) over: CancellationToken,
}

impl Around {
    pub(crate) fn note(&self, drained: Drained) {
        self.held().insert(drained.slot, drained);
    }

    fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<SlotId, Drained>> {
        self.drained.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, slot: SlotId, order: SlotOrder) {
        if let Some(handle) = &self.handle {
            handle.slot(slot, order);
        }
    }
}

impl Records for Around {
    fn register_incarnation(&self, me: Peer) -> BoxFuture<'static, Result<(), Failed>> {
        self.rows.register_incarnation(me)
    }

    fn write_fence(&self, incarnation: Incarnation) -> BoxFuture<'static, Result<(), Failed>> {
        self.rows.write_fence(incarnation)
    }

    fn read_fence(&self, incarnation: Incarnation) -> BoxFuture<'static, Result<bool, Failed>> {
        self.rows.read_fence(incarnation)
    }

    fn put_owner(
        &self,
        slot: SlotId,
        row: OwnerRow,
        closes: Option<Tenure>,
    ) -> BoxFuture<'static, Result<(), Failed>> {
        self.rows.put_owner(slot, row, closes)
    }

    fn read_owners(&self, slot: SlotId) -> BoxFuture<'static, Result<Vec<OwnerRow>, Failed>> {
        self.rows.read_owners(slot)
    }

    fn read_incarnations(&self) -> BoxFuture<'static, Result<Vec<Peer>, Failed>> {
        self.rows.read_incarnations()
    }
}

impl Surroundings for Around {
    fn ask_ready(&self, peer: &Peer) {
        self.board.tell(peer, NodeMessage::AskReady);
    }

    fn say_ready(&self, to: &Peer) {
        self.board.tell(to, NodeMessage::Ready);
    }

    fn send_state(&self, slot: SlotId, to: &Peer, epoch: Epoch, complete: bool) {
        let held = self.held();
        let Some(drained) = held.get(&slot) else { return };
        let rooms = drained.rooms.iter().map(HandedRoom::encode).collect();
        drop(held);
        if !self.board.hand(to, Handed { slot, epoch, complete, rooms }) {
            tracing::debug!(%slot, node = %to.node, "no way for the state of a slot: its rooms are opened from the store");
        }
    }

    fn serve(&self, slot: SlotId, tenure: Tenure, opening: Opening) {
        self.held().remove(&slot);
        let opening = match opening {
            Opening::Full => SlotOpening::Full,
            Opening::HandedOver { state } => SlotOpening::HandedOver { state },
        };
        tracing::debug!(%slot, epoch = tenure.epoch.0, "slot is served");
        self.order(slot, SlotOrder::Serve { tenure, opening });
    }

    fn drain(&self, slot: SlotId, drain: u32) {
        self.order(slot, SlotOrder::Drain { drain });
    }

    fn resume(&self, slot: SlotId, tenure: Tenure) {
        self.held().remove(&slot);
        self.order(slot, SlotOrder::Resume { tenure });
    }

    fn release(&self, slot: SlotId, to: Option<Tenure>) {
        self.held().remove(&slot);
        tracing::debug!(%slot, "slot is given up");
        self.order(slot, SlotOrder::Release { to });
    }

    fn frozen(&self, slot: SlotId, why: Why) {
        tracing::error!(%slot, ?why, "etcd is older than the store: no slot changes hands until `banyan ring recover`");
    }

    fn dead(&self, why: End) {
        tracing::error!(
            ?why,
            "this run of the node is over: it drops its rooms and comes back as another run"
        );
        self.over.cancel();
    }

    fn left(&self) {
        tracing::info!("this node has left the cluster");
    }
}
