//! The one thread that writes: takes all that waits, makes it one commit, syncs once, answers.
//!
//! There is no artificial delay: while a commit syncs the next one gathers, so batches grow with load by themselves.
//! A commit that fails half-way leaves the engine dead (it cannot know what is on disk). Then: its writes are answered
//! [`Outcome::Unknown`], reads go on from the dead engine, and the files are opened again as soon as there is space; the journal
//! tells whether the commit is there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use banyan_proto::id::Incarnation;
use tokio::sync::mpsc;

use super::directory::Directory;
use super::engine::{Batch, Committed, Engine};
use super::fences::Fences;
use super::journal::{self, Tail};
use super::queue::{self, Name, Op, Queue, Reply, Sink, Taken, WaitingOp};
use super::readers::Shared;
use super::space::Space;
use super::{OpenError, Options, now};
use crate::Error;
use crate::accounts::SWEEP_MAX;
use crate::log_store::{RoomWrite, Write};
use crate::metrics::Metrics;
use crate::outcome::{Completion, NotDone, Outcome};

/// How often an idle writer looks whether the engine's background work has failed.
const IDLE: Duration = Duration::from_secs(1);
/// Completions that did not fit are offered again after it.
const SINK_FULL: Duration = Duration::from_millis(1);
/// While the engine is behind, or the disk full with a dead engine.
const BEHIND: Duration = Duration::from_millis(5);
const FULL: Duration = Duration::from_millis(100);
/// Between two tries to open the files again.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// A failure so soon after the last one waits longer than that did.
const STEADY: Duration = Duration::from_secs(30);

/// What [`super::Embedded::status`] tells, as far as only the writer knows it.
#[derive(Debug, Default)]
pub(super) struct Health {
    degraded: Mutex<Option<String>>,
}

impl Health {
    pub(super) fn degraded(&self) -> Option<String> {
        self.degraded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, reason: Option<String>) {
        *self.degraded.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

/// The engine has failed and is to be opened again.
struct Trouble {
    reason: String,
    next_try: Instant,
    wait: Duration,
    cut_off: Option<CutOff>,
}

/// The commit that failed.
struct CutOff {
    /// Its number is this or a higher one; those before are lower.
    seqno: u64,
    /// Writes that it has made unsettled.
    writes: Vec<Name>,
}

pub(super) struct Writer {
    pub(super) queue: Arc<Queue>,
    pub(super) engine: Shared,
    pub(super) directory: Directory,
    pub(super) options: Options,
    pub(super) space: Space,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    pub(super) fences: Arc<Fences>,
    trouble: Option<Trouble>,
    /// The last wait before a reopen, and when that came.
    last_trouble: Option<(Duration, Instant)>,
    /// Some writes may be in the queue's unsettled set.
    any_unsettled: bool,
    backlog: Vec<(Sink, Vec<Completion>)>,
}

impl Writer {
    pub(super) fn new(
        queue: Arc<Queue>,
        engine: Shared,
        directory: Directory,
        options: Options,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
        fences: Arc<Fences>,
    ) -> Self {
        let space = Space::new(directory.path());
        Self {
            queue,
            engine,
            directory,
            options,
            space,
            metrics,
            health,
            fences,
            trouble: None,
            last_trouble: None,
            any_unsettled: false,
            backlog: Vec::new(),
        }
    }

    /// Until the queue is closed and empty. Gives up the directory's lock at its end.
    pub(super) fn run(mut self) {
        loop {
            self.offer_backlog();
            self.recover();
            self.wait_for_engine();
            let taken = self.queue.take(self.patience(), self.trouble.is_none(), now);
            let finished = taken.finished;
            self.work(taken);
            if finished {
                break;
            }
        }
        self.offer_backlog();
        // Closes the files.
        drop(self.engine.write().unwrap_or_else(PoisonError::into_inner).take());
        tracing::debug!("store closed");
    }

    fn patience(&self) -> Duration {
        let until_retry =
            self.trouble.as_ref().map(|trouble| trouble.next_try.saturating_duration_since(now()));
        let backlog = (!self.backlog.is_empty()).then_some(SINK_FULL);
        [until_retry, backlog].into_iter().flatten().fold(IDLE, Duration::min)
    }

    /// Lets the engine's background work catch up, where we see it fail. Notices when it has.
    fn wait_for_engine(&mut self) {
        while self.trouble.is_none() {
            let shared = Arc::clone(&self.engine);
            let guard = shared.read().unwrap_or_else(PoisonError::into_inner);
            let Some(engine) = guard.as_ref() else { return };
            let (dead, behind) = (engine.is_dead(), engine.is_behind());
            drop(guard);
            if dead {
                self.fail("the engine's background work failed".to_owned(), None);
            } else if behind {
                self.offer_backlog();
                std::thread::sleep(BEHIND);
            } else {
                return;
            }
        }
    }

    fn work(&mut self, taken: Taken) {
        self.say(taken.refused);
        if taken.writes.is_empty() && taken.ops.is_empty() && taken.marks.is_empty() {
            return;
        }
        let started = now();
        let free = self.space.free(started);
        let full = free < self.options.min_free_bytes;
        let very_full = free < self.options.min_free_bytes / 2;
        self.metrics.full.set(if full { 1.0 } else { 0.0 });
        if self.trouble.is_some() {
            let why = if full { NotDone::Full } else { NotDone::Unavailable };
            self.refuse(taken.writes, why);
            for waiting in taken.ops {
                let reason = self.trouble.as_ref().map_or_else(String::new, |trouble| trouble.reason.clone());
                answer(waiting, Err(if full { Error::Full } else { Error::Unavailable(reason) }));
            }
            return;
        }
        let mut writes = taken.writes;
        let shared = Arc::clone(&self.engine);
        let guard = shared.read().unwrap_or_else(PoisonError::into_inner);
        let Some(engine) = guard.as_ref() else {
            // Only `recover` leaves none, and then there is trouble.
            unreachable!("a store without trouble has an engine");
        };
        if full {
            let goes_on = |write: &RoomWrite| !very_full && (queue::is_small(write) || engine.holds(write));
            let refused = writes.extract_if(.., |(write, _)| !goes_on(write)).collect();
            self.refuse(refused, NotDone::Full);
        }
        let mut batch = engine.batch();
        let rows: usize = writes.iter().map(|(write, _)| write.rows().len()).sum();
        let unread = writes.extract_if(.., |(write, _)| match build(&mut batch, write) {
            Ok(()) => false,
            Err(error) => {
                tracing::error!(%error, "a write was refused because what it builds on cannot be read");
                true
            }
        });
        let unread: Vec<_> = unread.collect();
        let mut replies = Vec::new();
        let mut fenced = Vec::new();
        for waiting in taken.ops {
            if free < waiting.op.least_free(self.options.min_free_bytes) {
                answer(waiting, Err(Error::Full));
                continue;
            }
            if let Op::Fence(incarnation) = waiting.op {
                fenced.push(incarnation);
            }
            let reply = perform(&mut batch, waiting.op);
            replies.push((waiting.answer, reply));
        }
        if very_full {
            // Their senders state them again.
            self.metrics.marks_dropped.increment(taken.marks.len() as u64);
        } else {
            for ((room, user), marks) in taken.marks {
                if let Err(error) = batch.marks(&room, &user, marks) {
                    tracing::error!(%error, "marks were not written");
                }
            }
        }
        let seqno = engine.next_seqno();
        let bytes = batch.bytes() as u64;
        let empty = batch.is_empty();
        let committed = if empty { Committed::Done } else { batch.commit() };
        drop(guard);
        self.refuse(unread, NotDone::Unavailable);
        if !empty && matches!(committed, Committed::Done) {
            self.space.wrote(bytes);
            self.metrics.commits.increment(1);
            self.metrics.commit_seconds.record(now().saturating_duration_since(started).as_secs_f64());
            #[allow(clippy::cast_precision_loss, reason = "a histogram")]
            self.metrics.batch_rows.record(rows as f64);
        }
        match committed {
            Committed::Done => {
                if self.any_unsettled {
                    self.any_unsettled = self.queue.settle_written(writes.iter().map(|(write, _)| write));
                }
                // Before it is said that they are written.
                self.fences.extend(fenced);
                self.say(writes.into_iter().map(|(write, sink)| {
                    (sink, Completion { ticket: write.ticket, outcome: Outcome::Done })
                }));
                for (answer, reply) in replies {
                    drop(answer.send(reply));
                }
            }
            Committed::Refused => {
                self.refuse(writes, NotDone::Unavailable);
                let reason = "the engine's background work failed";
                for (answer, reply) in replies {
                    drop(answer.send(reply.and_then(|_| Err(Error::Unavailable(reason.to_owned())))));
                }
                self.fail(reason.to_owned(), None);
            }
            Committed::Unknown(reason) => {
                let cut_off = self.queue.unsettle(writes.iter().map(|(write, _)| write));
                self.any_unsettled = true;
                self.fail(format!("a write failed: {reason}"), Some(CutOff { seqno, writes: cut_off }));
                self.say(writes.into_iter().map(|(write, sink)| {
                    (sink, Completion { ticket: write.ticket, outcome: Outcome::Unknown })
                }));
                for (answer, reply) in replies {
                    drop(answer.send(reply.and(Err(Error::Unknown))));
                }
            }
        }
    }

    fn fail(&mut self, reason: String, cut_off: Option<CutOff>) {
        self.space.forget();
        let at = now();
        let wait = match self.last_trouble {
            Some((wait, when)) if at.saturating_duration_since(when) < STEADY => (wait * 2).min(RETRY_MAX),
            _ => RETRY_FIRST,
        };
        tracing::error!(
            reason,
            retry_in_ms = wait.as_millis(),
            "the store's engine failed and will be opened again"
        );
        self.health.set(Some(reason.clone()));
        self.trouble = Some(Trouble { reason, next_try: at + wait, wait, cut_off });
    }

    /// Opens the files again when it is time to.
    fn recover(&mut self) {
        let Some(trouble) = &mut self.trouble else { return };
        let at = now();
        if at < trouble.next_try {
            return;
        }
        let mut guard = self.engine.write().unwrap_or_else(PoisonError::into_inner);
        if guard.is_some() && self.space.free(at) < self.options.min_free_bytes {
            // A dead engine still reads, and an engine without space would only die again.
            trouble.next_try = at + FULL;
            return;
        }
        drop(guard.take());
        match reopen(&self.directory, &self.options) {
            Ok((engine, last_seqno, fenced)) => {
                self.fences.extend(fenced);
                *guard = Some(engine);
                drop(guard);
                let cut_off = trouble.cut_off.take();
                self.last_trouble = Some((trouble.wait, now()));
                self.trouble = None;
                if let Some(cut_off) = cut_off {
                    let stored = last_seqno.is_some_and(|last| last >= cut_off.seqno);
                    tracing::info!(stored, "the commit that was cut off has been settled");
                    if !stored {
                        self.any_unsettled = self.queue.settle_lost(&cut_off.writes);
                    }
                }
                self.health.set(None);
                self.metrics.reopens.increment(1);
                tracing::info!("the store works again");
            }
            Err(error) => {
                drop(guard);
                trouble.wait = (trouble.wait * 2).min(RETRY_MAX);
                trouble.next_try = now() + trouble.wait;
                trouble.reason = error.to_string();
                tracing::error!(%error, retry_in_ms = trouble.wait.as_millis(), "the store could not be opened again");
                self.health.set(Some(trouble.reason.clone()));
            }
        }
    }

    fn refuse(&mut self, writes: Vec<(RoomWrite, Sink)>, why: NotDone) {
        if writes.is_empty() {
            return;
        }
        let counter =
            if why == NotDone::Full { &self.metrics.refused_full } else { &self.metrics.refused_unavailable };
        counter.increment(writes.len() as u64);
        let queue = Arc::clone(&self.queue);
        self.say(writes.into_iter().map(|(write, sink)| {
            (sink, Completion { ticket: write.ticket, outcome: queue.refusal(&write, why) })
        }));
    }

    /// One message for each sink.
    fn say(&mut self, completions: impl IntoIterator<Item = (Sink, Completion)>) {
        // A sink a worker: few, and mostly the same one in a row.
        let mut messages: Vec<(Sink, Vec<Completion>)> = Vec::new();
        for (sink, completion) in completions {
            match messages.iter_mut().rev().find(|(known, _)| known.same_channel(&sink)) {
                Some((_, message)) => message.push(completion),
                None => messages.push((sink, vec![completion])),
            }
        }
        for (sink, message) in messages {
            self.send(sink, message);
        }
    }

    fn send(&mut self, sink: Sink, message: Vec<Completion>) {
        // What waits from before goes first, in one message with it.
        if let Some((_, waiting)) = self.backlog.iter_mut().find(|(known, _)| known.same_channel(&sink)) {
            waiting.extend(message);
            return;
        }
        match sink.try_send(message) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(message)) => self.backlog.push((sink, message)),
        }
    }

    fn offer_backlog(&mut self) {
        for (sink, message) in std::mem::take(&mut self.backlog) {
            self.send(sink, message);
        }
    }
}

/// The engine, the number of the newest commit in its journals, and who is fenced.
fn reopen(
    directory: &Directory,
    options: &Options,
) -> Result<(Engine, Option<u64>, Vec<Incarnation>), OpenError> {
    let checked = journal::check(&directory.store(), Tail::WriteAgain)?;
    let engine = Engine::open(&directory.store(), options)?;
    let fenced = engine.fences().map_err(|error| OpenError::Damaged(error.to_string()))?;
    Ok((engine, checked.last_seqno, fenced))
}

/// Puts a write into the commit. An error: nothing of it is in it.
fn build(batch: &mut Batch<'_>, RoomWrite { room, write, .. }: &RoomWrite) -> Result<(), Error> {
    match write {
        Write::Rows { segment, bucket, rows } => batch.rows(room, *bucket, *segment, rows),
        Write::Record(record) => batch.record(room, record),
        Write::Derived(derived) => return batch.derived(room, derived),
        Write::Said(said) => batch.said(room, *said),
    }
    Ok(())
}

fn perform(batch: &mut Batch<'_>, op: Op) -> Result<Reply, Error> {
    match op {
        Op::CreateUser(row) => batch.create_user(&row).map(Reply::Created),
        Op::PutUser(row) => batch.put_user(row).map(|()| Reply::Done),
        Op::PutLogin(row) => batch.put_login(&row).map(|()| Reply::Done),
        Op::EndLogin(login) => batch.end_login(&login).map(|()| Reply::Done),
        Op::EndAllLogins(user) => batch.end_all_logins(&user).map(|()| Reply::Done),
        Op::SweepLogins(at) => batch.sweep_logins(at, SWEEP_MAX).map(Reply::Swept),
        Op::Fence(incarnation) => {
            batch.fence(incarnation);
            Ok(Reply::Done)
        }
        Op::Register(incarnation, node) => {
            batch.register(incarnation, node);
            Ok(Reply::Done)
        }
        Op::PutSlotOwner { slot, owner, closes } => {
            batch.slot_owner(slot, owner, closes).map(|()| Reply::Done)
        }
    }
}

fn answer(waiting: WaitingOp, reply: Result<Reply, Error>) {
    // Nobody waits any more: the caller has gone.
    drop(waiting.answer.send(reply));
}
