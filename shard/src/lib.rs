//! Owners of rooms: one worker per core, each the only writer of the rooms in its slots.
//!
//! Owns: the shells around the pure workers of `banyan-shard-core`. Gateways talk to it in the messages of
//! `banyan_proto::link` alone. Does not: know connections, tokens or wires, nor who owns a slot.

mod handle;
mod options;
mod worker;

mod clock;
mod metrics;

pub use handle::{Drained, Handle, SlotOrder};
pub use options::{Cluster, Elsewhere, Options};
pub use worker::{End, Worker};

use std::sync::Arc;

use banyan_proto::link::FromShard;
use banyan_storage::LogStore;
use tokio::sync::mpsc;

/// Makes the workers of one process and the way to them. `links[n]` leads to the link with number `n`; further ones are
/// opened while they run ([`Handle::open_link`]); each worker is to be run once ([`Worker::run`]), on a runtime of its own or any other.
#[expect(clippy::needless_pass_by_value, reason = "the store and the links are handed over to the workers")]
pub fn build(
    mut options: Options,
    store: Arc<dyn LogStore>,
    links: Vec<mpsc::Sender<Vec<FromShard>>>,
) -> (Handle, Vec<Worker>) {
    options.room.hash_seed = clock::random();
    let options = Arc::new(options);
    let (handle, inboxes) = Handle::new(options.workers.max(1), options.inbox_batches.max(1), options.slots);
    let workers = inboxes
        .into_iter()
        .enumerate()
        .map(|(index, inbox)| {
            Worker::new(index, Arc::clone(&options), handle.clone(), inbox, Arc::clone(&store), links.clone())
        })
        .collect();
    (handle, workers)
}
