//! What waits for the writer. Callers put in and go on; the writer takes as much as one commit should hold.
//!
//! Bounds and their policies: appends beyond [`APPENDS_MAX`] or [`BYTES_MAX`] and account writes beyond [`OPS_MAX`] are refused as
//! overloaded; marks beyond [`MARKS_MAX`] members are dropped and counted (callers state marks again).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use banyan_proto::id::{RoomId, UnixMs, UserId};
use tokio::sync::{mpsc, oneshot};

use crate::accounts::{Creation, LoginRow, UserRow};
use crate::metrics::Metrics;
use crate::room_log::{
    APPEND_BYTES_MAX, APPEND_ROWS_MAX, Append, Completion, Marks, NotDone, Outcome, assert_dense,
};
use crate::{BoxFuture, Error};

/// One append in flight a room, so: open rooms that write at the same moment.
const APPENDS_MAX: usize = 65_536;
const BYTES_MAX: usize = 64 << 20;
const OPS_MAX: usize = 4_096;
const MARKS_MAX: usize = 65_536;
/// A commit ends above either: it should take milliseconds, and its rows are in memory twice.
const COMMIT_APPENDS: usize = 4_096;
const COMMIT_BYTES: usize = 4 << 20;
const COMMIT_OPS: usize = 512;
/// Each mark costs a read. So many ride along with a commit that somebody waits for, so many go when nobody does.
const COMMIT_MARKS: usize = 256;
const COMMIT_MARKS_ALONE: usize = 4_096;
/// Marks are written at the latest after it.
const MARKS_WAIT: Duration = Duration::from_millis(900);

pub(super) type Sink = mpsc::Sender<Vec<Completion>>;

/// A write to the accounts.
#[derive(Debug)]
pub(super) enum Op {
    CreateUser(UserRow),
    PutUser(UserRow),
    PutLogin(LoginRow),
    EndLogin(String),
    EndAllLogins(UserId),
    SweepLogins(UnixMs),
}

impl Op {
    /// Frees more than it takes, so it goes on when the disk is full.
    pub(super) fn is_small(&self) -> bool {
        matches!(self, Self::EndLogin(_) | Self::EndAllLogins(_) | Self::SweepLogins(_))
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
    appends: VecDeque<(Append, Sink)>,
    append_bytes: usize,
    ops: VecDeque<WaitingOp>,
    marks: HashMap<(RoomId, UserId), Marks>,
    /// Keys of `marks`, oldest first.
    marks_order: VecDeque<(RoomId, UserId)>,
    marks_since: Option<Instant>,
    /// Refusals that did not fit into their sinks.
    refused: Vec<(Sink, Completion)>,
    /// Rooms an append of which was cut off and may be there. A later refusal must not say that it is not.
    unsettled: HashSet<RoomId>,
    closed: bool,
}

/// What the writer works on next.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) appends: Vec<(Append, Sink)>,
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
            .field("appends", &self.appends.len())
            .field("ops", &self.ops.len())
            .field("marks", &self.marks.len())
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

impl State {
    fn has_work(&self) -> bool {
        !self.appends.is_empty() || !self.ops.is_empty() || !self.refused.is_empty()
    }

    fn refusal(&self, room: &RoomId, why: NotDone) -> Outcome {
        if self.unsettled.contains(room) { Outcome::Unknown } else { Outcome::NotDone(why) }
    }
}

impl Queue {
    pub(super) fn new(metrics: std::sync::Arc<Metrics>) -> Self {
        Self { state: Mutex::default(), wake: Condvar::new(), metrics }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn append(&self, group: Vec<Append>, done: &Sink) {
        let mut refused = Vec::new();
        let mut state = self.lock();
        for append in group {
            assert_dense(&append);
            let bytes: usize = append.rows.iter().map(|row| row.event.len()).sum();
            let why = if state.closed {
                Some(NotDone::Closed)
            } else if append.rows.len() > APPEND_ROWS_MAX || bytes > APPEND_BYTES_MAX {
                Some(NotDone::TooLarge)
            } else if state.appends.len() >= APPENDS_MAX || state.append_bytes + bytes > BYTES_MAX {
                self.metrics.refused_overloaded.increment(1);
                Some(NotDone::Overloaded)
            } else {
                None
            };
            match why {
                Some(why) => {
                    refused.push(Completion {
                        ticket: append.ticket,
                        outcome: state.refusal(&append.room, why),
                    });
                }
                None => {
                    state.append_bytes += bytes;
                    state.appends.push_back((append, done.clone()));
                }
            }
        }
        #[allow(clippy::cast_precision_loss, reason = "a gauge")]
        self.metrics.queue_depth.set(state.appends.len() as f64);
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
        let mut taken = Taken { refused: std::mem::take(&mut state.refused), ..Taken::default() };
        let mut bytes = 0;
        while taken.appends.len() < COMMIT_APPENDS && bytes < COMMIT_BYTES {
            let Some(next) = state.appends.pop_front() else { break };
            bytes += next.0.rows.iter().map(|row| row.event.len()).sum::<usize>();
            taken.appends.push(next);
        }
        state.append_bytes -= bytes;
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
        self.metrics.queue_depth.set(state.appends.len() as f64);
        taken
    }

    /// What to answer an append that is refused.
    pub(super) fn refusal(&self, room: &RoomId, why: NotDone) -> Outcome {
        self.lock().refusal(room, why)
    }

    /// Notes rooms whose append was cut off; returns those that were not noted before.
    pub(super) fn unsettle(&self, rooms: impl Iterator<Item = RoomId>) -> Vec<RoomId> {
        let mut state = self.lock();
        rooms.filter(|room| state.unsettled.insert(room.clone())).collect()
    }

    /// An append of these rooms is known to be there, or not to be. Returns whether any others are left.
    pub(super) fn settle<'a>(&self, rooms: impl Iterator<Item = &'a RoomId>) -> bool {
        let mut state = self.lock();
        for room in rooms {
            state.unsettled.remove(room);
        }
        !state.unsettled.is_empty()
    }

    /// The writer is gone: nothing that waits will be written, and nothing is taken in any more.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.closed = true;
        for (append, sink) in std::mem::take(&mut state.appends) {
            let outcome = state.refusal(&append.room, NotDone::Closed);
            // A sink that is full now has nobody left to offer it again.
            drop(sink.try_send(vec![Completion { ticket: append.ticket, outcome }]));
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
    use crate::contract::{batch, room, user, wait};

    #[allow(clippy::disallowed_methods, reason = "a test without a runtime")]
    fn now() -> Instant {
        Instant::now()
    }

    fn queue() -> Queue {
        Queue::new(std::sync::Arc::new(Metrics::new()))
    }

    #[test]
    fn too_many_appends_are_refused_at_once() {
        let queue = queue();
        let (done, mut completions) = mpsc::channel(2);
        let ours = room("r");
        let group = |n: u64| (0..n).map(|ticket| Append { ticket, ..batch(&ours, 1, 1) }).collect::<Vec<_>>();
        queue.append(group(APPENDS_MAX as u64), &done);
        assert!(completions.try_recv().is_err(), "all of them wait");
        queue.append(group(2), &done);
        let refused = completions.try_recv().unwrap();
        let outcome = Outcome::NotDone(NotDone::Overloaded);
        assert_eq!(refused, [Completion { ticket: 0, outcome }, Completion { ticket: 1, outcome }]);
        // A commit takes some; then there is room again.
        assert_eq!(queue.take(Duration::ZERO, true, now).appends.len(), COMMIT_APPENDS);
        queue.append(group(2), &done);
        assert!(completions.try_recv().is_err());
    }

    #[test]
    fn a_refusal_of_a_room_that_is_not_settled_is_unknown() {
        let queue = queue();
        let (done, mut completions) = mpsc::channel(4);
        let rooms = [room("a"), room("b")];
        assert_eq!(queue.unsettle(rooms.iter().cloned()).len(), 2);
        assert_eq!(queue.unsettle(rooms[..1].iter().cloned()), [], "it was noted before");
        assert!(queue.settle(rooms[1..].iter()), "one is left");
        queue.close();
        queue.append(rooms.iter().map(|room| batch(room, 1, 1)).collect(), &done);
        let outcomes: Vec<_> = completions.try_recv().unwrap().iter().map(|done| done.outcome).collect();
        assert_eq!(outcomes, [Outcome::Unknown, Outcome::NotDone(NotDone::Closed)]);
    }

    #[test]
    fn marks_merge_and_have_a_bound() {
        let queue = queue();
        let marks =
            |seen| Marks { delivered: Default::default(), seen: banyan_proto::id::Seq(seen), seen_n: 0 };
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
        queue.append(vec![batch(&room("r"), 1, 1)], &done);
        let waiting = queue.op(Op::EndLogin("x".to_owned()));
        queue.abandon();
        assert_eq!(completions.try_recv().unwrap()[0].outcome, Outcome::NotDone(NotDone::Closed));
        assert!(matches!(wait(waiting), Err(Error::Unknown)));
        assert!(matches!(wait(queue.op(Op::EndLogin("x".to_owned()))), Err(Error::Closed)));
    }
}
