//! One process that owns every slot, always.

use std::sync::Arc;

use banyan_gateway::local::ToWorker;
use banyan_gateway::worker::{self, Route, Way};
use banyan_proto::id::{Epoch, Incarnation, SlotId, Tenure};
use banyan_router::SlotCount;
use banyan_router::local::{self, Local, Step};
use banyan_shard::{End, Handle};
use banyan_storage::LogStore;
use banyan_storage::log_store::SlotOwner;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{Ends, Hands, slot};
use crate::config::Config;
use crate::failure::{Exit, Failure};

/// The rows of the first slot speak for all of them.
const ALL_SLOTS: SlotId = SlotId(0);

/// The owners of all rooms, running.
#[derive(Debug)]
pub(super) struct Alone {
    pub(super) handle: Handle,
    pub(super) tenure: Tenure,
    ended: Vec<oneshot::Receiver<End>>,
    drain: CancellationToken,
}

impl Alone {
    pub(super) async fn start(
        config: &Config,
        store: Arc<dyn LogStore>,
        ends: &Ends,
        hands: &Hands,
    ) -> Result<(Self, worker::Routes), Failure> {
        let tenure = begin_run(&*store, &config.server.node_id).await?;
        let mut options = shard_options(config, ends.controls.len());
        options.incarnation = tenure.incarnation;
        options.all_slots = Some(tenure.epoch);
        let (handle, workers) = banyan_shard::build(options, store, ends.senders.clone());
        let drain = CancellationToken::new();
        let ended = hands.shards(workers, &drain);
        let routes = routes(&handle, tenure.epoch);
        Ok((Self { handle, tenure, ended, drain }, routes))
    }

    /// Why a worker has ended by itself, if one has.
    pub(super) fn failed(&mut self) -> Option<Failure> {
        let why = match self.ended.iter_mut().find_map(|end| end.try_recv().ok())? {
            End::Fenced => "this run has been fenced: another one has taken over",
            End::Stuck => "the store does not say whether this run may go on",
            End::Drained | End::Over => "an owner of rooms ended by itself",
        };
        Some(Failure::new(Exit::Unavailable, why.to_owned()))
    }

    /// Finishes appends in flight, closes rooms.
    pub(super) async fn drain(self) {
        self.drain.cancel();
        for end in self.ended {
            if end.await.is_err() {
                tracing::error!("an owner of rooms is gone");
            }
        }
    }
}

/// What every shard of this configuration has.
pub(crate) fn shard_options(config: &Config, workers: usize) -> banyan_shard::Options {
    let mut options = banyan_shard::Options {
        workers,
        open_rooms: config.rooms.open_rooms as usize,
        idle: config.rooms.idle_close,
        drain_deadline: config.server.drain_deadline / 2,
        ..banyan_shard::Options::default()
    };
    options.room.members = u64::from(config.rooms.max_members);
    options.room.lazy_public = config.rooms.lazy == crate::config::Lazy::Public;
    options
}

/// A link to each worker, said once and for ever.
fn routes(owners: &Handle, epoch: Epoch) -> worker::Routes {
    let ways = (0..owners.workers())
        .map(|worker| Arc::new(ToWorker { handle: owners.clone(), worker }) as Arc<dyn Way>)
        .collect();
    let slots = SlotCount::DEFAULT.get();
    let known = (0..slots)
        // At most 65,536.
        .map(|slot| SlotId(slot as u16))
        .map(|slot| Route { slot, epoch, link: u16::try_from(owners.worker_of_slot(slot)).ok() })
        .collect();
    worker::Routes { slots, slot_of: slot, links: owners.workers(), ways, known, noticed: None }
}

/// Ends the run before, gives this one its name and an epoch above all earlier ones.
async fn begin_run(store: &dyn LogStore, node: &str) -> Result<Tenure, Failure> {
    let mut local = Local::new(Incarnation(uuid::Uuid::new_v4().as_u128()));
    let mut before = None;
    loop {
        let done = match local.step() {
            Step::Serve(tenure) => {
                let Tenure { epoch, incarnation } = tenure;
                tracing::info!(epoch = epoch.0, %incarnation, "this run owns all slots");
                return Ok(tenure);
            }
            Step::Load => store.slot_owners(ALL_SLOTS).await.map(|owners| {
                let newest = owners.into_iter().max();
                before = newest.map(|SlotOwner { epoch, incarnation, .. }| Tenure { epoch, incarnation });
                local::Answer::Loaded(before)
            }),
            Step::Fence(incarnation) => store.write_fence(incarnation).await.map(|()| local::Answer::Done),
            Step::Register(incarnation) => {
                let registered = store.register_incarnation(incarnation, node.to_owned()).await;
                registered.map(|()| local::Answer::Done)
            }
            Step::Keep(Tenure { epoch, incarnation }) => {
                let owner = SlotOwner { epoch, incarnation, closed: false };
                let closes = before.map(|before| (before.epoch, before.incarnation));
                store.put_slot_owner(ALL_SLOTS, owner, closes).await.map(|()| local::Answer::Done)
            }
        };
        match done {
            Ok(answer) => local.next(answer),
            Err(error) => {
                let why = format!("cannot begin a run on the data directory: {error}");
                return Err(Failure::new(Exit::Unavailable, why));
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use banyan_storage::Memory;

    use super::*;

    #[tokio::test]
    async fn a_run_ends_the_one_before_and_has_an_epoch_of_its_own() {
        let store = Memory::new();
        let first = begin_run(&store, "node-1").await.unwrap();
        assert_eq!(first.epoch, Epoch(1));
        let second = begin_run(&store, "node-1").await.unwrap();
        assert!(second.epoch == Epoch(2) && second.incarnation != first.incarnation);
        for (run, fenced) in [(first, true), (second, false)] {
            assert_eq!(store.is_fenced(run.incarnation).get().await, Ok(fenced));
        }
        let owners = store.slot_owners(ALL_SLOTS).await.unwrap();
        assert_eq!(owners.iter().map(|owner| owner.closed).collect::<Vec<_>>(), [true, false]);
        assert_eq!(store.incarnations().await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_run_that_cannot_be_begun_serves_nothing() {
        let store = Memory::new();
        store.faults().fail_owner_writes(Some(banyan_storage::Error::Closed), true);
        let failure = begin_run(&store, "node-1").await.unwrap_err();
        assert_eq!(failure.exit as u8, Exit::Unavailable as u8);
        store.faults().fail_owner_writes(None, false);
        // Whatever came of the first try, its names are not used again.
        let run = begin_run(&store, "node-1").await.unwrap();
        assert_eq!(store.is_fenced(run.incarnation).get().await, Ok(false));
    }
}
