//! What waits for the writer. Callers put in and go on; the writer takes as much as one commit should hold.
//!
//! Bounds and their policies: writes to rooms beyond [`WRITES_MAX`] or [`BYTES_MAX`] and other writes beyond [`OPS_MAX`] are refused as
//! overloaded; marks beyond [`MARKS_MAX`] members are dropped and counted (callers state marks again).

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use banyan_proto::id::{Epoch, Incarnation, RoomId, SlotId, UnixMs, UserId};
use tokio::sync::{mpsc, oneshot};

use crate::accounts::{Creation, LoginRow, UserRow};
use crate::log_store::{RoomWrite, SlotOwner, Write};
use crate::metrics::Metrics;
use crate::outcome::{Completion, NotDone, Outcome};
use crate::row::Marks;
use crate::{BoxFuture, Error};

/// Hardly more than one in flight a room, so: open rooms that write at the same moment.
const WRITES_MAX: usize = 65_536;
const BYTES_MAX: usize = 64 << 20;
const OPS_MAX: usize = 4_096;
const MARKS_MAX: usize = 65_536;
/// A commit ends above either: it should take milliseconds, and its rows are in memory twice.
const COMMIT_WRITES: usize = 4_096;
const COMMIT_BYTES: usize = 4 << 20;
const COMMIT_OPS: usize = 512;
/// Each mark costs a read. So many ride along with a commit that somebody waits for, so many go when nobody does.
const COMMIT_MARKS: usize = 256;
const COMMIT_MARKS_ALONE: usize = 4_096;
/// Marks are written at the latest after it.
const MARKS_WAIT: Duration = Duration::from_millis(900);

/// What owners write about themselves goes on down to so much free space. Any number far above what they take and above
/// what the file system needs for itself.
const OWNERS_MIN_FREE: u64 = 1 << 20;

/// A room and the [`name`] of a write to it.
pub(super) type Name = (RoomId, u64);

pub(super) type Sink = mpsc::Sender<Vec<Completion>>;

/// Takes little, and belongs to what is already there, so it goes on for a while when the disk is full: leaving, what the
/// last batch changed beside the log, and the record without which a room that was not closed cannot even be read.
pub(super) fn is_small(write: &RoomWrite) -> bool {
    matches!(write.write, Write::Record(_) | Write::Derived(_) | Write::Said(_))
}

/// The same for the same write again, by which one that was cut off is settled.
fn name(write: &RoomWrite) -> u64 {
    let mut hasher = DefaultHasher::new();
    write.write.hash(&mut hasher);
    hasher.finish()
}

/// A write to the accounts, or of an owner about itself.
#[derive(Debug)]
pub(super) enum Op {
    CreateUser(UserRow),
    PutUser(UserRow),
    PutLogin(LoginRow),
    EndLogin(String),
    EndAllLogins(UserId),
    SweepLogins(UnixMs),
    Fence(Incarnation),
    Register(Incarnation, String),
    PutSlotOwner { slot: SlotId, owner: SlotOwner, closes: Option<(Epoch, Incarnation)> },
}

impl Op {
    /// It is refused while less is free. What frees more than it takes goes on when the disk is full; without what owners
    /// say of themselves, which is a few hundred bytes a start, a server could not even read.
    pub(super) fn least_free(&self, min_free_bytes: u64) -> u64 {
        match self {
            Self::CreateUser(_) | Self::PutUser(_) | Self::PutLogin(_) => min_free_bytes,
            Self::EndLogin(_) | Self::EndAllLogins(_) | Self::SweepLogins(_) => min_free_bytes / 2,
            Self::Fence(_) | Self::Register(..) | Self::PutSlotOwner { .. } => {
                OWNERS_MIN_FREE.min(min_free_bytes / 2)
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Reply {
    Created(Creation),
    Done,
    Swept(usize),
}

pub(super) struct WaitingOp {
    pub(super) op: Op,
    pub(super) answer: oneshot::Sender<Result<Reply, Error>>,
}

#[derive(Default)]
struct State {
    writes: VecDeque<(RoomWrite, Sink)>,
    write_bytes: usize,
    ops: VecDeque<WaitingOp>,
    marks: HashMap<(RoomId, UserId), Marks>,
    /// Keys of `marks`, oldest first.
    marks_order: VecDeque<(RoomId, UserId)>,
    marks_since: Option<Instant>,
    /// Refusals that did not fit into their sinks.
    refused: Vec<(Sink, Completion)>,
    /// Writes that were cut off and may be there, by room and [`name`]. A later refusal must not say that they are not.
    unsettled: HashMap<RoomId, HashSet<u64>>,
    closed: bool,
}

/// What the writer works on next.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) writes: Vec<(RoomWrite, Sink)>,
    pub(super) ops: Vec<WaitingOp>,
    pub(super) marks: Vec<((RoomId, UserId), Marks)>,
    pub(super) refused: Vec<(Sink, Completion)>,
    /// Nothing will come any more, and nothing is left.
    pub(super) finished: bool,
}

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    metrics: std::sync::Arc<Metrics>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("writes", &self.writes.len())
            .field("ops", &self.ops.len())
            .field("marks", &self.marks.len())
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

impl State {
    fn settle(&mut self, room: &RoomId, name: u64) {
        if let Some(names) = self.unsettled.get_mut(room) {
            names.remove(&name);
            if names.is_empty() {
                self.unsettled.remove(room);
            }
        }
    }

    fn has_work(&self) -> bool {
        !self.writes.is_empty() || !self.ops.is_empty() || !self.refused.is_empty()
    }

    fn refusal(&self, write: &RoomWrite, why: NotDone) -> Outcome {
        let cut_off = self.unsettled.get(&write.room).is_some_and(|names| names.contains(&name(write)));
        if cut_off { Outcome::Unknown } else { Outcome::NotDone(why) }
    }
}

impl Queue {
    pub(super) fn new(metrics: std::sync::Arc<Metrics>) -> Self {
        Self { state: Mutex::default(), wake: Condvar::new(), metrics }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self, group: Vec<RoomWrite>, done: &Sink) {
        let mut refused = Vec::new();
        let mut state = self.lock();
        for write in group {
            write.assert_sound();
            let bytes = write.bytes();
            let why = if state.closed {
                Some(NotDone::Closed)
            } else if write.is_too_large() {
                Some(NotDone::TooLarge)
            } else if state.writes.len() >= WRITES_MAX || state.write_bytes + bytes > BYTES_MAX {
                self.metrics.refused_overloaded.increment(1);
                Some(NotDone::Overloaded)
            } else {
                None
            };
            match why {
                Some(why) => {
                    let outcome = state.refusal(&write, why);
                    refused.push(Completion { ticket: write.ticket, outcome });
                }
                None => {
                    state.write_bytes += bytes;
                    state.writes.push_back((write, done.clone()));
                }
            }
        }
        #[allow(clippy::cast_precision_loss, reason = "a gauge")]
        self.metrics.queue_depth.set(state.writes.len() as f64);
        if !refused.is_empty() {
            match done.try_send(refused) {
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
                // The writer tries again; what waits is bounded by what the caller has in flight.
                Err(mpsc::error::TrySendError::Full(refused)) => {
                    state.refused.extend(refused.into_iter().map(|completion| (done.clone(), completion)));
                }
            }
        }
        drop(state);
        self.wake.notify_one();
    }

    pub(super) fn put_marks(&self, group: Vec<(RoomId, UserId, Marks)>, now: Instant) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        for (room, user, marks) in group {
            let key = (room, user);
            if let Some(waiting) = state.marks.get_mut(&key) {
                *waiting = waiting.max(marks);
            } else if state.marks.len() < MARKS_MAX {
                state.marks_order.push_back(key.clone());
                state.marks.insert(key, marks);
            } else {
                self.metrics.marks_dropped.increment(1);
            }
        }
        let first = state.marks_since.is_none() && !state.marks.is_empty();
        if first {
            state.marks_since = Some(now);
        }
        drop(state);
        if first {
            self.wake.notify_one(); // it may sleep longer than the marks may wait
        }
    }

    pub(super) fn op(&self, op: Op) -> BoxFuture<'static, Result<Reply, Error>> {
        let (answer, waiting) = oneshot::channel();
        let mut state = self.lock();
        let failed = if state.closed {
            Some(Error::Closed)
        } else if state.ops.len() >= OPS_MAX {
            Some(Error::Overloaded)
        } else {
            state.ops.push_back(WaitingOp { op, answer });
            None
        };
        drop(state);
        self.wake.notify_one();
        Box::pin(async move {
            match failed {
                Some(error) => Err(error),
                // The writer answers everything that it takes; it is gone only if it panicked.
                None => waiting.await.unwrap_or(Err(Error::Unknown)),
            }
        })
    }

    /// Waits for work, at most `wait`; without work it returns nothing.
    pub(super) fn take(&self, wait: Duration, take_marks: bool, now: impl Fn() -> Instant) -> Taken {
        let until = now() + wait;
        let mut state = self.lock();
        let alone = loop {
            if state.has_work() {
                break false;
            }
            if state.closed {
                break true;
            }
            let at = now();
            let due = state.marks_since.filter(|_| take_marks).map(|since| since + MARKS_WAIT);
            if due.is_some_and(|due| due <= at) {
                break true;
            }
            let next = due.map_or(until, |due| due.min(until));
            if until <= at {
                return Taken::default();
            }
            let left = next.saturating_duration_since(at);
            state = self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        let writes = Vec::with_capacity(state.writes.len().min(COMMIT_WRITES));
        let mut taken = Taken { writes, refused: std::mem::take(&mut state.refused), ..Taken::default() };
        let mut bytes = 0;
        while taken.writes.len() < COMMIT_WRITES && bytes < COMMIT_BYTES {
            let Some(next) = state.writes.pop_front() else { break };
            bytes += next.0.bytes();
            taken.writes.push(next);
        }
        state.write_bytes -= bytes;
        let ops = state.ops.len().min(COMMIT_OPS);
        taken.ops.extend(state.ops.drain(..ops));
        if take_marks {
            let marks = if alone { COMMIT_MARKS_ALONE } else { COMMIT_MARKS }.min(state.marks_order.len());
            for _ in 0..marks {
                let Some(key) = state.marks_order.pop_front() else { break };
                if let Some(marks) = state.marks.remove(&key) {
                    taken.marks.push((key, marks));
                }
            }
            if state.marks_order.is_empty() {
                state.marks_since = None;
            }
        }
        let marks_left = take_marks && !state.marks.is_empty();
        taken.finished = state.closed && !state.has_work() && !marks_left;
        #[allow(clippy::cast_precision_loss, reason = "a gauge")]
        self.metrics.queue_depth.set(state.writes.len() as f64);
        taken
    }

    /// What to answer a write that is refused.
    pub(super) fn refusal(&self, write: &RoomWrite, why: NotDone) -> Outcome {
        self.lock().refusal(write, why)
    }

    /// Notes writes that were cut off; returns those that were not noted before.
    pub(super) fn unsettle<'a>(&self, writes: impl Iterator<Item = &'a RoomWrite>) -> Vec<Name> {
        let mut state = self.lock();
        let names = writes.map(|write| (write.room.clone(), name(write)));
        names.filter(|(room, name)| state.unsettled.entry(room.clone()).or_default().insert(*name)).collect()
    }

    /// These writes are there. Returns whether any others are left that may be.
    pub(super) fn settle_written<'a>(&self, writes: impl Iterator<Item = &'a RoomWrite>) -> bool {
        let mut state = self.lock();
        for write in writes {
            // Names cost a look at the content: only where there is a question.
            if state.unsettled.contains_key(&write.room) {
                state.settle(&write.room, name(write));
            }
        }
        !state.unsettled.is_empty()
    }

    /// These writes are not there, and will not be. Returns whether any others are left that may be.
    pub(super) fn settle_lost(&self, names: &[Name]) -> bool {
        let mut state = self.lock();
        for (room, name) in names {
            state.settle(room, *name);
        }
        !state.unsettled.is_empty()
    }

    /// The writer is gone: nothing that waits will be written, and nothing is taken in any more.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.closed = true;
        for (write, sink) in std::mem::take(&mut state.writes) {
            let outcome = state.refusal(&write, NotDone::Closed);
            // A sink that is full now has nobody left to offer it again.
            drop(sink.try_send(vec![Completion { ticket: write.ticket, outcome }]));
        }
        state.ops.clear(); // a dropped answer says that it is not known
    }

    /// Takes nothing in any more.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::log::{rows, segment};
    use crate::contract::{room, user, wait};
    use crate::log_store::Said;
    use banyan_proto::id::Seq;

    #[allow(clippy::disallowed_methods, reason = "a test without a runtime")]
    fn now() -> Instant {
        Instant::now()
    }

    fn queue() -> Queue {
        Queue::new(std::sync::Arc::new(Metrics::new()))
    }

    fn batch(room: &RoomId, ticket: u64) -> RoomWrite {
        RoomWrite { ticket, room: room.clone(), write: rows(room, segment(1, 0), 0, 1, 1) }
    }

    #[test]
    fn too_many_writes_are_refused_at_once() {
        let queue = queue();
        let (done, mut completions) = mpsc::channel(2);
        let ours = room("r");
        let group = |n: u64| (0..n).map(|ticket| batch(&ours, ticket)).collect::<Vec<_>>();
        queue.write(group(WRITES_MAX as u64), &done);
        assert!(completions.try_recv().is_err(), "all of them wait");
        queue.write(group(2), &done);
        let refused = completions.try_recv().unwrap();
        let outcome = Outcome::NotDone(NotDone::Overloaded);
        assert_eq!(refused, [Completion { ticket: 0, outcome }, Completion { ticket: 1, outcome }]);
        // A commit takes some; then there is room again.
        assert_eq!(queue.take(Duration::ZERO, true, now).writes.len(), COMMIT_WRITES);
        queue.write(group(2), &done);
        assert!(completions.try_recv().is_err());
    }

    #[test]
    fn a_refusal_of_a_write_that_is_not_settled_is_unknown() {
        let queue = queue();
        let (done, mut completions) = mpsc::channel(4);
        let (a, b) = (room("a"), room("b"));
        let said = |ticket, head| RoomWrite {
            ticket,
            room: a.clone(),
            write: Write::Said(Said { segment: segment(1, 0), head: Seq(head), n: 0 }),
        };
        let cut_off = [batch(&a, 1), said(2, 1), batch(&b, 3)];
        assert_eq!(queue.unsettle(cut_off.iter()).len(), 3);
        assert_eq!(queue.unsettle(cut_off[..1].iter()), [], "it was noted before");
        // Another write of the room settles nothing, whoever asks; the very same one does, whatever its ticket.
        assert!(queue.settle_written([(said(9, 2))].iter()));
        assert!(queue.settle_written([(batch(&b, 8))].iter()), "two are left");
        assert!(queue.settle_lost(&[(a.clone(), name(&cut_off[1]))]), "one is left");
        queue.close();
        queue.write(vec![batch(&a, 4), said(5, 1), said(6, 2), batch(&b, 7)], &done);
        let outcomes: Vec<_> = completions.try_recv().unwrap().iter().map(|done| done.outcome).collect();
        let closed = Outcome::NotDone(NotDone::Closed);
        assert_eq!(outcomes, [Outcome::Unknown, closed, closed, closed]);
        assert!(!queue.settle_written(cut_off.iter()), "none is left");
    }

    #[test]
    fn marks_merge_and_have_a_bound() {
        let queue = queue();
        let marks = |seen| Marks { delivered: Default::default(), seen: Seq(seen), seen_n: 0 };
        let of = |i: usize, seen| (room("r"), user(&format!("u{i}")), marks(seen));
        queue.put_marks((0..MARKS_MAX + 10).map(|i| of(i, 1)).collect(), now());
        queue.put_marks(vec![of(0, 5), of(0, 3), of(MARKS_MAX + 20, 9)], now());
        let (mut taken, mut rounds) = (Vec::new(), 0);
        queue.close(); // so that nothing waits for its time
        loop {
            let next = queue.take(Duration::ZERO, true, now);
            taken.extend(next.marks);
            rounds += 1;
            if next.finished {
                break;
            }
        }
        assert_eq!((taken.len(), rounds), (MARKS_MAX, MARKS_MAX / COMMIT_MARKS_ALONE));
        assert_eq!(taken[0], ((room("r"), user("u0")), marks(5)));
    }

    #[test]
    fn an_abandoned_queue_leaves_nobody_waiting() {
        let queue = queue();
        let (done, mut completions) = mpsc::channel(4);
        queue.write(vec![batch(&room("r"), 1)], &done);
        let waiting = queue.op(Op::EndLogin("x".to_owned()));
        queue.abandon();
        assert_eq!(completions.try_recv().unwrap()[0].outcome, Outcome::NotDone(NotDone::Closed));
        assert!(matches!(wait(waiting), Err(Error::Unknown)));
        assert!(matches!(wait(queue.op(Op::EndLogin("x".to_owned()))), Err(Error::Closed)));
    }
}
