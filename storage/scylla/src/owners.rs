//! Who has owned each slot: the rows of `slot_owners`, and requests about them that go together.
//!
//! When a node dies its slots, hundreds of them, are registered at once. 64 slots share a partition, and what is asked of one partition
//! while a request to it is under way goes into the next: a takeover is then so many requests as there are round trips, not as there
//! are slots.
//!
//! Always holds: each caller is answered once, by a request that began after it asked; of each partition one write and one read are with
//! the servers at most.
//! Bounds: none of its own. The callers are the slots' machines, which have one question each, and few at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use banyan_proto::id::{Epoch, Incarnation, SlotId};
use banyan_storage::Error;
use banyan_storage::log_store::SlotOwner;
use scylla::statement::batch::{Batch, BatchType};
use tokio::sync::oneshot;

use crate::convert::{incarnation, incarnation_of, number, ordered};
use crate::failure::repeated_write_error;
use crate::metrics::Kind;
use crate::store::{Inner, corrupt, corrupt_row};

/// Of one partition.
const SLOTS: u16 = 64;

/// In one request: two rows each, which is less than what servers call a large batch.
const TOGETHER: usize = 32;

/// A slot's row, and the one that it closes.
pub(crate) type Put = (SlotId, SlotOwner, Option<(Epoch, Incarnation)>);

#[derive(Debug, Default)]
pub(crate) struct Owners {
    puts: Lanes<Put, ()>,
    reads: Lanes<SlotId, Vec<SlotOwner>>,
}

/// What waits for each partition with a request under way.
#[derive(Debug)]
struct Lanes<Q, A>(Mutex<HashMap<i32, Vec<Asked<Q, A>>>>);

#[derive(Debug)]
struct Asked<Q, A> {
    question: Q,
    answer: oneshot::Sender<Result<A, Error>>,
}

impl<Q, A> Default for Lanes<Q, A> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<Q, A> Lanes<Q, A> {
    /// True: nothing is under way, and who asks carries out what waits.
    fn put(&self, partition: i32, asked: Asked<Q, A>) -> bool {
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = !lanes.contains_key(&partition);
        lanes.entry(partition).or_default().push(asked);
        begins
    }

    /// What goes together next. Nothing: nobody has asked meanwhile, and whoever does will carry it out.
    fn next(&self, partition: i32) -> Vec<Asked<Q, A>> {
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(waiting) = lanes.get_mut(&partition) else { return Vec::new() };
        let count = waiting.len().min(TOGETHER);
        let taken: Vec<_> = waiting.drain(..count).collect();
        if taken.is_empty() {
            lanes.remove(&partition);
        }
        taken
    }
}

fn partition_of(slot: SlotId) -> i32 {
    i32::from(slot.0 / SLOTS)
}

impl Inner {
    pub(crate) async fn put_slot_owner(self: Arc<Self>, put: Put) -> Result<(), Error> {
        let partition = partition_of(put.0);
        let (answer, answered) = oneshot::channel();
        if self.owners.puts.put(partition, Asked { question: put, answer }) {
            let inner = Arc::clone(&self);
            // Others wait for it, too: it goes on without the first who asked.
            self.spawn(async move { inner.put_all(partition).await });
        }
        answered.await.unwrap_or(Err(Error::Closed))
    }

    pub(crate) async fn slot_owners(self: Arc<Self>, slot: SlotId) -> Result<Vec<SlotOwner>, Error> {
        let partition = partition_of(slot);
        let (answer, answered) = oneshot::channel();
        if self.owners.reads.put(partition, Asked { question: slot, answer }) {
            let inner = Arc::clone(&self);
            self.spawn(async move { inner.read_all(partition).await });
        }
        answered.await.unwrap_or(Err(Error::Closed))
    }

    async fn put_all(&self, partition: i32) {
        loop {
            let asked = self.owners.puts.next(partition);
            if asked.is_empty() {
                return;
            }
            let puts: Vec<Put> = asked.iter().map(|asked| asked.question).collect();
            let result = self.put_owners(partition, &puts).await;
            for asked in asked {
                asked.answer.send(result.clone()).ok();
            }
        }
    }

    async fn read_all(&self, partition: i32) {
        loop {
            let asked = self.owners.reads.next(partition);
            if asked.is_empty() {
                return;
            }
            let slots: Vec<SlotId> = asked.iter().map(|asked| asked.question).collect();
            let result = self.read_owners(partition, &slots).await;
            for asked in asked {
                // One slot may have been asked about twice.
                let rows =
                    |found: &HashMap<_, Vec<_>>| found.get(&asked.question).cloned().unwrap_or_default();
                asked.answer.send(result.as_ref().map(rows).map_err(Error::clone)).ok();
            }
        }
    }

    /// One mutation of one partition.
    async fn put_owners(&self, partition: i32, puts: &[Put]) -> Result<(), Error> {
        let statements = &self.statements;
        let mut batch = Batch::new(BatchType::Unlogged);
        batch.set_execution_profile_handle(statements.put_owner.get_execution_profile_handle().cloned());
        batch.set_is_idempotent(true);
        let mut values = Vec::with_capacity(puts.len() * 2);
        for &(slot, owner, closes) in puts {
            let of = |epoch: Epoch, by: Incarnation| {
                (partition, i32::from(slot.0), ordered(epoch.0), incarnation(by).to_vec())
            };
            let own = if owner.closed { &statements.close_owner } else { &statements.put_owner };
            batch.append_statement(own.clone());
            values.push(of(owner.epoch, owner.incarnation));
            if let Some((epoch, replaced)) = closes {
                batch.append_statement(statements.close_owner.clone());
                values.push(of(epoch, replaced));
            }
        }
        let result = self.batch(Kind::Owner, &batch, values).await;
        result.map_err(|error| repeated_write_error(&error, "slot owner"))
    }

    async fn read_owners(
        &self,
        partition: i32,
        slots: &[SlotId],
    ) -> Result<HashMap<SlotId, Vec<SlotOwner>>, Error> {
        const WHAT: &str = "slot_owners";
        let asked: Vec<i32> = slots.iter().map(|slot| i32::from(slot.0)).collect();
        let answer = self.read(WHAT, &self.statements.owners, (partition, asked)).await?;
        let mut found: HashMap<SlotId, Vec<SlotOwner>> = HashMap::new();
        for row in answer.rows::<(i32, i64, &[u8], Option<bool>)>().map_err(corrupt(WHAT))? {
            let (slot, epoch, by, closed) = row.map_err(corrupt_row(WHAT))?;
            let slot = u16::try_from(slot).map_err(|_| Error::Corrupt(format!("{WHAT}: slot {slot}")))?;
            found.entry(SlotId(slot)).or_default().push(SlotOwner {
                epoch: Epoch(number(epoch, WHAT)?),
                incarnation: incarnation_of(by, WHAT)?,
                closed: closed.unwrap_or(false),
            });
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_meanwhile_goes_together() {
        let lanes: Lanes<u16, ()> = Lanes::default();
        let ask = |question| lanes.put(7, Asked { question, answer: oneshot::channel().0 });
        let next = || lanes.next(7).into_iter().map(|asked| asked.question).collect::<Vec<_>>();
        assert!(ask(1), "the first carries it out");
        assert_eq!(next(), [1]);
        assert!(!ask(2) && !ask(3), "one is at it");
        assert!(lanes.put(8, Asked { question: 9, answer: oneshot::channel().0 }), "another partition");
        assert_eq!(next(), [2, 3]);
        for question in 0..40 {
            assert!(!ask(question));
        }
        assert_eq!(next().len(), TOGETHER);
        assert_eq!(next().last(), Some(&39));
        assert!(next().is_empty(), "that ends it");
        assert!(ask(5), "and the next one begins anew");
    }
}
