//! The way to the workers.

use std::sync::Arc;

use banyan_proto::id::SlotId;
use banyan_proto::link::ToShardBatch;
use banyan_router::{SlotCount, slot_of, user_slot, worker_of};
use tokio::sync::mpsc;

/// Sends batches to the owners of rooms and user channels. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    inboxes: Arc<[mpsc::Sender<ToShardBatch>]>,
    slots: SlotCount,
}

impl Handle {
    pub(crate) fn new(inboxes: Vec<mpsc::Sender<ToShardBatch>>, slots: SlotCount) -> Self {
        Self { inboxes: inboxes.into(), slots }
    }

    /// The workers' inboxes, by number.
    pub fn senders(&self) -> &[mpsc::Sender<ToShardBatch>] {
        &self.inboxes
    }

    pub fn workers(&self) -> usize {
        self.inboxes.len()
    }

    /// The worker that owns a room.
    pub fn worker_of(&self, room: &str) -> usize {
        worker_of(slot_of(room, self.slots), self.inboxes.len())
    }

    /// The worker that owns a user's channel, and answers for the list of a user's rooms.
    pub fn worker_of_user(&self, user: &str) -> usize {
        worker_of(user_slot(user, self.slots), self.inboxes.len())
    }

    /// The slots that fall to a worker.
    pub(crate) fn slots_of(&self, worker: usize) -> impl Iterator<Item = SlotId> + use<> {
        // At most `SLOTS_MAX`, so each is a number that a slot can have.
        (worker..self.slots.get() as usize).step_by(self.workers().max(1)).map(|slot| SlotId(slot as u16))
    }

    /// Puts a batch into a worker's inbox. Comes back when the inbox is full, the worker has ended, or there is none
    /// with this number.
    pub fn try_send(&self, worker: usize, batch: ToShardBatch) -> Result<(), ToShardBatch> {
        let Some(inbox) = self.inboxes.get(worker) else { return Err(batch) };
        inbox.try_send(batch).map_err(|error| error.into_inner())
    }
}
