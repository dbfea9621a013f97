//! The shard of the same process: its workers are the first links.

use banyan_proto::id::{RoomId, UserId};
use banyan_proto::link::ToShardBatch;
use banyan_shard::Handle;

use crate::backend::{NotSent, Shards};
use crate::worker::Way;

/// The link of each shard worker is its number.
impl Shards for Handle {
    fn to_room(&self, room: &RoomId, batch: ToShardBatch) -> Result<u16, NotSent> {
        to(self, self.worker_of(room.as_str()), batch)
    }

    fn to_user(&self, user: &UserId, batch: ToShardBatch) -> Result<u16, NotSent> {
        to(self, self.worker_of_user(user.as_str()), batch)
    }
}

fn to(handle: &Handle, worker: usize, batch: ToShardBatch) -> Result<u16, NotSent> {
    handle.try_send(worker, batch).map_err(|_| NotSent::Full)?;
    u16::try_from(worker).map_err(|_| NotSent::NoOwner)
}

/// The way to one worker.
#[derive(Debug)]
pub struct ToWorker {
    pub handle: Handle,
    pub worker: usize,
}

impl Way for ToWorker {
    fn offer(&self, batch: ToShardBatch) -> Result<(), ToShardBatch> {
        self.handle.try_send(self.worker, batch)
    }
}
