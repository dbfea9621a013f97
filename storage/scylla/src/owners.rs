//! Who has owned each slot: the rows of `slot_owners`, and requests about them that go together.
//!
//! When a node dies its slots, hundreds of them, are registered at once. 64 slots share a partition, and what is asked of one partition
//! while a request to it is under way goes into the next: a takeover is then so many requests as there are round trips, not as there
//! are slots.
//!
//! Of each slot the rows above [`KEPT`] that nothing needs any more are deleted: else registration would read all that ever happened.
//!
//! Always holds: each caller is answered once, by a request that began after it asked; of each partition one write and one read are with
//! the servers at most. Only closed rows are deleted, and only below a row that this process has put at a quorum: who looks for a row of
//! its epoch or above finds that one; who looks for open ones below finds none either way.
//! Bounds: none of its own. The callers are the slots' machines, which have one question each, and few at once.

use std::collections::{BTreeMap, HashMap};
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

/// Closed rows of a slot that stay, for `ring history`; when there are twice as many, the older ones go.
const KEPT: usize = 8;

#[derive(Debug, Default)]
pub(crate) struct Owners {
    puts: Lanes<Put, ()>,
    reads: Lanes<SlotId, Vec<SlotOwner>>,
    deletes: Lanes<(SlotId, Epoch), ()>,
    /// Of each slot, the highest epoch that this process knows to be at a quorum.
    put: Mutex<BTreeMap<SlotId, Epoch>>,
}

/// The epoch below which rows (in order) are deleted, with one at `put` known to be at a quorum.
fn needless_below(rows: &[SlotOwner], put: Epoch) -> Option<Epoch> {
    let closed = rows.iter().take_while(|row| row.closed && row.epoch < put).count();
    let kept = rows.get(closed.checked_sub(KEPT).filter(|needless| *needless > KEPT)?)?;
    Some(kept.epoch)
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
                let inner = &inner;
                let request = |slots: Vec<SlotId>| async move {
                    let found = inner.read_owners(partition, &slots).await?;
                    inner.delete_needless(partition, &slots, &found);
                    Ok(found)
                };
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
        let mut known = self.owners.put.lock().unwrap_or_else(PoisonError::into_inner);
        for (slot, owner, _) in &puts {
            let known = known.entry(*slot).or_default();
            *known = owner.epoch.max(*known);
        }
        Ok(vec![(); puts.len()])
    }

    /// What cannot be deleted now is found again by the next who reads the slot.
    fn delete_needless(self: &Arc<Self>, partition: i32, slots: &[SlotId], found: &[Vec<SlotOwner>]) {
        let needless: Vec<(SlotId, Epoch)> = {
            let put = self.owners.put.lock().unwrap_or_else(PoisonError::into_inner);
            let rows = slots.iter().zip(found);
            rows.filter_map(|(slot, rows)| Some((*slot, needless_below(rows, *put.get(slot)?)?))).collect()
        };
        for question in needless {
            let (answer, _) = oneshot::channel();
            if self.owners.deletes.put(partition, Asked { question, answer }) {
                let inner = Arc::clone(self);
                self.spawn(async move {
                    let request = |deletes| inner.delete_owners(partition, deletes);
                    inner.owners.deletes.carry_out(partition, request).await;
                });
            }
        }
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

    async fn read_owners(&self, partition: i32, slots: &[SlotId]) -> Result<Vec<Vec<SlotOwner>>, Error> {
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
        // One slot may have been asked about twice.
        Ok(slots.iter().map(|slot| found.get(slot).cloned().unwrap_or_default()).collect())
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

    #[test]
    fn only_closed_rows_below_a_known_one_are_needless() {
        let mut rows: Vec<SlotOwner> = (1..=40)
            .map(|epoch| SlotOwner { epoch: Epoch(epoch), incarnation: Incarnation(7), closed: epoch < 40 })
            .collect();
        assert_eq!(needless_below(&rows, Epoch(40)), Some(Epoch(32)), "eight closed ones stay");
        assert_eq!(needless_below(&rows, Epoch(20)), Some(Epoch(12)), "of what is above nobody has told us");
        assert_eq!(needless_below(&rows, Epoch(0)), None);
        assert_eq!(needless_below(&rows[..17], Epoch(18)), Some(Epoch(10)));
        assert_eq!(needless_below(&rows[..16], Epoch(18)), None, "not worth a request");
        rows[20].closed = false;
        assert_eq!(needless_below(&rows, Epoch(40)), Some(Epoch(13)), "what is open stays, and all above it");
        rows[3].closed = false;
        assert_eq!(needless_below(&rows, Epoch(40)), None);
    }
}
