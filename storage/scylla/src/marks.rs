//! Marks on their way to the servers: at most one write a second for each member.
//!
//! Owns: marks that wait, the larger of each field for each member.
//! Full-queue policy: further members' marks are dropped and counted; callers state marks again.
//! Does not: make them durable at once. What cannot be written waits for the next second.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use banyan_proto::id::{RoomId, UserId};
use banyan_storage::Marks;
use futures_util::{StreamExt, stream};
use scylla::statement::batch::{Batch, BatchType};
use tokio::time::{Instant, MissedTickBehavior};

use crate::convert::{ordered, shard};
use crate::metrics::Kind;
use crate::store::Inner;

/// A member's marks are written so often at most, and so soon at the latest.
const PERIOD: Duration = Duration::from_secs(1);
/// Batches with the servers at once: marks never crowd out appends.
const AT_ONCE: usize = 16;
/// Members of one partition in a batch.
const BATCH_MEMBERS: usize = 32;

type Waiting = BTreeMap<(RoomId, UserId), Marks>;

#[derive(Debug)]
pub(crate) struct Pending {
    waiting: Mutex<Waiting>,
    max: usize,
}

impl Pending {
    pub(crate) fn new(max: usize) -> Self {
        Self { waiting: Mutex::default(), max }
    }

    /// How many are dropped.
    fn add(&self, group: impl IntoIterator<Item = ((RoomId, UserId), Marks)>) -> u64 {
        let mut waiting = self.lock();
        let mut dropped = 0;
        for (key, marks) in group {
            if waiting.len() >= self.max && !waiting.contains_key(&key) {
                dropped += 1;
                continue;
            }
            let stored = waiting.entry(key).or_default();
            *stored = stored.max(marks);
        }
        dropped
    }

    fn take(&self) -> Waiting {
        std::mem::take(&mut *self.lock())
    }

    fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    pub(crate) fn put_marks(&self, group: Vec<(RoomId, UserId, Marks)>) {
        let dropped = self.marks.add(group.into_iter().map(|(room, user, marks)| ((room, user), marks)));
        self.metrics.marks_dropped.increment(dropped);
        self.note_marks();
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge")]
    fn note_marks(&self) {
        self.metrics.marks_waiting.set(self.marks.len() as f64);
    }

    /// One batch of one partition; each field has its own value as its timestamp.
    async fn write_marks(&self, group: &Group) -> bool {
        let statements = &self.statements;
        let mut batch = Batch::new(BatchType::Unlogged);
        batch.set_execution_profile_handle(statements.put_seen.get_execution_profile_handle().cloned());
        batch.set_is_idempotent(true);
        let mut values = Vec::new();
        for (user, marks) in &group.members {
            let fields = [
                (&statements.put_delivered, marks.delivered.0),
                (&statements.put_seen, marks.seen.0),
                (&statements.put_seen_n, marks.seen_n),
            ];
            for (statement, mark) in fields {
                if mark > 0 {
                    batch.append_statement(statement.clone());
                    values.push((
                        ordered(mark),
                        ordered(mark),
                        group.room.as_str(),
                        group.shard,
                        user.as_str(),
                    ));
                }
            }
        }
        values.is_empty() || self.batch(Kind::Marks, &batch, values).await.is_ok()
    }
}

/// Members of one partition.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    room: RoomId,
    shard: i32,
    members: Vec<(UserId, Marks)>,
}

fn groups(waiting: Waiting) -> Vec<Group> {
    let mut by_partition: BTreeMap<(RoomId, i32), Vec<(UserId, Marks)>> = BTreeMap::new();
    for ((room, user), marks) in waiting {
        by_partition.entry((room, shard(&user))).or_default().push((user, marks));
    }
    let mut groups = Vec::new();
    for ((room, shard), members) in by_partition {
        for members in members.chunks(BATCH_MEMBERS) {
            groups.push(Group { room: room.clone(), shard, members: members.to_vec() });
        }
    }
    groups
}

/// Writes all that waits. What fails waits again.
pub(crate) async fn flush(inner: &Arc<Inner>) {
    let groups = groups(inner.marks.take());
    let mut writes = stream::iter(groups)
        .map(|group| async move { if inner.write_marks(&group).await { None } else { Some(group) } })
        .buffer_unordered(AT_ONCE);
    while let Some(failed) = writes.next().await {
        if let Some(Group { room, members, .. }) = failed {
            let again = members.into_iter().map(|(user, marks)| ((room.clone(), user), marks));
            inner.metrics.marks_dropped.increment(inner.marks.add(again));
        }
    }
    inner.note_marks();
}

/// Until the store is gone.
pub(crate) async fn run(store: Weak<Inner>) {
    let mut ticks = tokio::time::interval_at(Instant::now() + PERIOD, PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay); // never two writes of a member within a second
    loop {
        ticks.tick().await;
        let Some(inner) = store.upgrade() else { return };
        if inner.marks.len() > 0 {
            Box::pin(flush(&inner)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use banyan_proto::id::Seq;
    use banyan_storage::contract::{room, user};

    use super::*;

    fn marks(delivered: u64, seen: u64) -> Marks {
        Marks { delivered: Seq(delivered), seen: Seq(seen), seen_n: seen }
    }

    #[test]
    fn a_member_waits_once_with_the_highest() {
        let pending = Pending::new(2);
        let key = |name: &str| (room("r"), user(name));
        assert_eq!(
            pending.add([(key("a"), marks(5, 1)), (key("a"), marks(4, 3)), (key("b"), marks(1, 0))]),
            0
        );
        assert_eq!(
            pending.add([(key("c"), marks(9, 9)), (key("a"), marks(6, 0))]),
            1,
            "full: newcomers are dropped"
        );
        assert_eq!(pending.take(), BTreeMap::from([(key("a"), marks(6, 3)), (key("b"), marks(1, 0))]));
        assert_eq!(pending.len(), 0);
    }

    #[test]
    fn batches_are_of_one_partition() {
        let waiting: Waiting = (0..5_000)
            .map(|i| ((room(&format!("r{}", i % 2)), user(&format!("u{i}"))), marks(1, 1)))
            .collect();
        let groups = groups(waiting);
        assert_eq!(groups.iter().map(|group| group.members.len()).sum::<usize>(), 5_000);
        for group in &groups {
            assert!((1..=BATCH_MEMBERS).contains(&group.members.len()));
            assert!(group.members.iter().all(|(user, _)| shard(user) == group.shard));
        }
        assert!(groups.len() >= 128);
    }
}
