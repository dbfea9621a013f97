//! Who has owned each slot: the rows of `slot_owners`, and requests about them that go together.
//!
//! When a node dies its slots, hundreds of them, are registered at once. 512 slots share a partition, and what is asked of one partition
//! while a request to it is under way goes into the next: a takeover is then so many requests as there are round trips, not as there
//! are slots. With fewer slots in a partition there are more requests at once, and a request costs the servers far more than a row.
//!
//! Registration looks for open rows, and for rows at its epoch or above. So closed rows below one that this process had put at a quorum
//! before it read them are of no more use to it: it reads none of them again ([`Known::floor`]), and all but the newest [`KEPT`] of them
//! are deleted, that others need not read all that ever happened.
//!
//! Always holds: each caller is answered once, by a request that began after it asked; of each partition one read, one write and one
//! deletion are with the servers at most. What is left out or deleted is closed, or is put later by somebody who then finds the higher
//! row and stops. A row that nobody closes (its owner died, and so did the next before it registered) stays, and all above it.
//! Bounds: none of its own. The callers are the slots' machines, with one question each that they wait for; questions that they have given
//! up are carried out all the same. Deletions: one for each read that finds enough.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banyan_proto::id::{Epoch, Incarnation, SlotId};
use banyan_storage::Error;
use banyan_storage::log_store::SlotOwner;
use scylla::statement::batch::{Batch, BatchType};
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::convert::{incarnation, incarnation_of, number, ordered};
use crate::failure::repeated_write_error;
use crate::metrics::Kind;
use crate::store::{Inner, corrupt, corrupt_row};

/// Of one partition.
const SLOTS: u16 = 512;

/// In one request: fewer keys than ScyllaDB takes in one read (100). As a batch it is one mutation of one partition: servers warn of
/// the size of those over several.
const TOGETHER: usize = 48;

/// A slot's row, and the one that it closes.
pub(crate) type Put = (SlotId, SlotOwner, Option<(Epoch, Incarnation)>);

/// Closed rows of a slot that stay, for `ring history`; when there are twice as many, the older ones go.
const KEPT: usize = 8;

/// Rows that are not needed are found when many slots are registered: the servers have other things to do then.
const DELETE_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(crate) struct Owners {
    puts: Lanes<Put, ()>,
    reads: Lanes<SlotId, Vec<SlotOwner>>,
    deletes: Lanes<(SlotId, Epoch), ()>,
    known: Mutex<HashMap<SlotId, Known>>,
}

/// What this process knows of a slot's rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Known {
    /// The highest epoch that it has put, and that is at a quorum.
    put: Epoch,
    /// Below this there are closed rows only, and those that nobody acts on.
    floor: Epoch,
    /// Rows below this are deleted, or will be.
    deleted: Epoch,
}

impl Known {
    /// Takes in rows, all from `floor` on and in order, that were read after `put` was at a quorum. Gives the epoch below
    /// which there are enough needless ones to delete them.
    fn learn(&mut self, rows: &[SlotOwner], put: Epoch) -> Option<Epoch> {
        let closed = rows.iter().take_while(|row| row.closed && row.epoch < put).count();
        let end = rows.get(closed).map_or(put, |row| row.epoch.min(put));
        self.floor = self.floor.max(end);
        let kept = rows.get(closed.checked_sub(KEPT).filter(|needless| *needless > KEPT)?)?;
        (kept.epoch > self.deleted).then(|| {
            self.deleted = kept.epoch;
            kept.epoch
        })
    }
}

impl Owners {
    fn known(&self) -> MutexGuard<'_, HashMap<SlotId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

impl<Q: Copy, A> Lanes<Q, A> {
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

    /// Makes one request after the other until nothing waits. `request` gives an answer for each question, in their order.
    async fn carry_out<F>(&self, partition: i32, request: impl Fn(Vec<Q>) -> F)
    where
        F: Future<Output = Result<Vec<A>, Error>>,
    {
        loop {
            let asked = self.next(partition);
            if asked.is_empty() {
                return;
            }
            let questions = asked.iter().map(|asked| asked.question).collect();
            match request(questions).await {
                Ok(answers) => {
                    for (asked, answer) in asked.into_iter().zip(answers) {
                        asked.answer.send(Ok(answer)).ok();
                    }
                }
                Err(error) => {
                    for asked in asked {
                        asked.answer.send(Err(error.clone())).ok();
                    }
                }
            }
        }
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
            self.spawn(async move {
                let request = |puts| inner.put_owners(partition, puts);
                inner.owners.puts.carry_out(partition, request).await;
            });
        }
        answered.await.unwrap_or(Err(Error::Closed))
    }

    pub(crate) async fn slot_owners(self: Arc<Self>, slot: SlotId) -> Result<Vec<SlotOwner>, Error> {
        let partition = partition_of(slot);
        let (answer, answered) = oneshot::channel();
        if self.owners.reads.put(partition, Asked { question: slot, answer }) {
            let inner = Arc::clone(&self);
            self.spawn(async move {
                let request = |slots| inner.read_owners(partition, slots);
                inner.owners.reads.carry_out(partition, request).await;
            });
        }
        answered.await.unwrap_or(Err(Error::Closed))
    }

    /// One mutation of one partition.
    async fn put_owners(&self, partition: i32, puts: Vec<Put>) -> Result<Vec<()>, Error> {
        let statements = &self.statements;
        let mut batch = Batch::new(BatchType::Unlogged);
        batch.set_execution_profile_handle(statements.put_owner.get_execution_profile_handle().cloned());
        batch.set_is_idempotent(true);
        let mut values = Vec::with_capacity(puts.len() * 2);
        for &(slot, owner, closes) in &puts {
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
        result.map_err(|error| repeated_write_error(&error, "slot owner"))?;
        let mut known = self.owners.known();
        for (slot, owner, _) in &puts {
            let known = known.entry(*slot).or_default();
            known.put = known.put.max(owner.epoch);
        }
        Ok(vec![(); puts.len()])
    }

    async fn delete_owners(&self, partition: i32, deletes: Vec<(SlotId, Epoch)>) -> Result<Vec<()>, Error> {
        let statement = &self.statements.delete_owners;
        let mut batch = Batch::new(BatchType::Unlogged);
        batch.set_execution_profile_handle(statement.get_execution_profile_handle().cloned());
        batch.set_is_idempotent(true);
        let mut values = Vec::with_capacity(deletes.len());
        for &(slot, below) in &deletes {
            batch.append_statement(statement.clone());
            values.push((partition, i32::from(slot.0), ordered(below.0)));
        }
        let result = self.batch(Kind::Owner, &batch, values).await;
        if let Err(error) = &result {
            tracing::debug!(%error, partition, "old owners of slots were not deleted");
        }
        Ok(vec![(); deletes.len()])
    }

    async fn read_owners(
        self: &Arc<Self>,
        partition: i32,
        slots: Vec<SlotId>,
    ) -> Result<Vec<Vec<SlotOwner>>, Error> {
        const WHAT: &str = "slot_owners";
        let asked: Vec<i32> = slots.iter().map(|slot| i32::from(slot.0)).collect();
        // What was at a quorum before the read.
        let before: Vec<Known> = {
            let known = self.owners.known();
            slots.iter().map(|slot| known.get(slot).copied().unwrap_or_default()).collect()
        };
        let floor = before.iter().map(|known| known.floor).min().unwrap_or_default();
        let answer = self.read(WHAT, &self.statements.owners, (partition, asked, ordered(floor.0))).await?;
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
        // One slot may have been asked about twice.
        let found: Vec<Vec<SlotOwner>> =
            slots.iter().map(|slot| found.get(slot).cloned().unwrap_or_default()).collect();
        for ((slot, rows), before) in slots.iter().zip(&found).zip(before) {
            if before.put > Epoch(0) {
                let below = self.owners.known().entry(*slot).or_default().learn(rows, before.put);
                if let Some(below) = below {
                    self.delete_later(partition, *slot, below);
                }
            }
        }
        Ok(found)
    }

    fn delete_later(self: &Arc<Self>, partition: i32, slot: SlotId, below: Epoch) {
        let (answer, _) = oneshot::channel();
        if self.owners.deletes.put(partition, Asked { question: (slot, below), answer }) {
            let inner = Arc::clone(self);
            self.spawn(async move {
                sleep(DELETE_AFTER).await;
                let request = |deletes| inner.delete_owners(partition, deletes);
                inner.owners.deletes.carry_out(partition, request).await;
            });
        }
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
        for question in 0..60 {
            assert!(!ask(question));
        }
        assert_eq!(next().len(), TOGETHER);
        assert_eq!(next().last(), Some(&59));
        assert!(next().is_empty(), "that ends it");
        assert!(ask(5), "and the next one begins anew");
    }

    #[test]
    fn only_closed_rows_below_a_known_one_are_needless() {
        let mut rows: Vec<SlotOwner> = (1..=40)
            .map(|epoch| SlotOwner { epoch: Epoch(epoch), incarnation: Incarnation(7), closed: epoch < 40 })
            .collect();
        let learn = |rows: &[SlotOwner], put| {
            let mut known = Known::default();
            let below = known.learn(rows, Epoch(put)).map(|below| below.0);
            assert!(known.learn(rows, Epoch(put)).is_none(), "once");
            (known.floor.0, below)
        };
        assert_eq!(learn(&rows, 40), (40, Some(32)), "eight closed ones stay");
        assert_eq!(learn(&rows, 20), (20, Some(12)), "of what is above nobody has told us");
        assert_eq!(learn(&rows, 41), (40, Some(32)), "what is open stays");
        assert_eq!(learn(&rows[..17], 18), (18, Some(10)));
        assert_eq!(learn(&rows[..16], 18), (18, None), "not worth a request");
        assert_eq!(learn(&[], 5), (5, None));
        rows[20].closed = false;
        assert_eq!(learn(&rows, 40), (21, Some(13)), "and all above it");
        rows[3].closed = false;
        assert_eq!(learn(&rows, 40), (4, None));
        let mut known = Known { floor: Epoch(9), ..Known::default() };
        known.learn(&rows, Epoch(40));
        assert_eq!(known.floor, Epoch(9), "it never falls");
    }
}
