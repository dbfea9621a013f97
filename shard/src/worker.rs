//! The shell of one worker: channels, the store and the clock around the pure `banyan_shard_core::worker`.
//!
//! Owns: the inbox, the links, what is under way in the store. A turn takes what is there (commands, completions, reads,
//! timers), lets the core decide, hands all writes of the turn to the store as one group and all messages to each link as
//! one batch. A fence read that the store answers at once passes in the same turn.
//! Does not: decide anything.

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use banyan_proto::id::{RoomId, Tenure, UserId};
use banyan_proto::link::{FromShard, LinkId, ToShard, ToShardBatch};
use banyan_shard_core::Now;
use banyan_shard_core::gate::ReadId;
use banyan_shard_core::log::Failed;
use banyan_shard_core::room::RoomRead;
use banyan_shard_core::worker::{self, Input, Output, Read, ReadAnswer};
use banyan_storage::log_store::{Answered, RoomWrite, SEGMENTS_MAX, Write};
use banyan_storage::{BoxFuture, Completion, Error, LogStore, Marks, Outcome, PAGE_MAX};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::handle::{Drained, Handle, Inbox, Message, Order};
use crate::metrics::Metrics;
use crate::options::Options;

/// Batches taken from the inbox in one turn: keeps turns short, so that completions are not kept waiting.
const INBOX_TURN: usize = 256;
/// Completion messages that may wait; the store keeps further ones itself.
const DONE_QUEUE: usize = 64;
/// A full link is tried again after this time if nothing else happens.
const LINK_RETRY_MS: u64 = 5;
/// A worker of a node among others has a turn at least so often: half of what the node looks for.
const TICK_MS: u64 = 100;
/// The link of what workers say to each other; nothing is ever answered to it.
const PEER: LinkId = LinkId(u32::MAX);

/// Runs the rooms of its slots.
pub struct Worker {
    index: usize,
    core: worker::Worker,
    options: Arc<Options>,
    handle: Handle,
    inbox: Inbox,
    store: Arc<dyn LogStore>,
    done_sender: mpsc::Sender<Vec<Completion>>,
    done: mpsc::Receiver<Vec<Completion>>,
    /// Reads under way. Bound: `reads`; further ones wait in `waiting`.
    tasks: JoinSet<Finished>,
    /// Bound: what rooms may have under way, and one for each list of rooms that was asked for (which gateways bound).
    waiting: VecDeque<BoxFuture<'static, Finished>>,
    links: BTreeMap<LinkId, mpsc::Sender<Vec<FromShard>>>,
    /// Links that have not taken their last batch.
    full: Vec<LinkId>,
    metrics: Metrics,
    started: Instant,
    /// Of the turn.
    now_at: Instant,
    now: Now,
    draining: bool,
    /// Why the worker ends by itself.
    broken: Option<End>,

    // What a turn collects; kept for their memory.
    outputs: Vec<Output>,
    back: Vec<Input>,
    writes: Vec<RoomWrite>,
    marks: Vec<(RoomId, UserId, Marks)>,
    to_peers: Vec<Vec<ToShard>>,
    /// When the write with a ticket of this lower half was handed over.
    written_at: Vec<Option<Instant>>,
}

/// Why a worker has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was told to.
    Drained,
    /// This run of the node has been fenced: somebody else has taken over. The node must leave.
    Fenced,
    /// The fence could not be read for too long. The node must leave and come back as another run.
    Stuck,
    /// The run is over, its node has said ([`crate::Cluster::over`]).
    Over,
}

/// What the store has answered.
#[derive(Debug)]
enum Finished {
    Read { ticket: u64, answer: ReadAnswer, error: Option<Error> },
    Fence { read: ReadId, fenced: Result<bool, Error> },
}

/// Why a turn begins.
#[derive(Debug)]
enum Event {
    Drain,
    Time,
    Done(Vec<Completion>),
    Finished(Finished),
    Message(Message),
    Order(Order),
}

impl Worker {
    pub(crate) fn new(
        index: usize,
        options: Arc<Options>,
        handle: Handle,
        inbox: Inbox,
        store: Arc<dyn LogStore>,
        links: Vec<mpsc::Sender<Vec<FromShard>>>,
    ) -> Self {
        let (done_sender, done) = mpsc::channel(DONE_QUEUE);
        let workers = handle.workers();
        let now = Now { mono_ms: 0, unix: clock::unix_ms() };
        let core = worker::Options {
            index,
            workers,
            slots: options.slots,
            incarnation: options.incarnation,
            seed: clock::random(),
            open_rooms: (options.open_rooms / workers).max(1),
            idle_ms: u64::try_from(options.idle.as_millis()).unwrap_or(u64::MAX),
            room: Arc::new(options.room.clone()),
        };
        Self {
            index,
            core: worker::Worker::new(core, now),
            options,
            handle,
            inbox,
            store,
            done_sender,
            done,
            tasks: JoinSet::new(),
            waiting: VecDeque::new(),
            links: (0..).map(LinkId).zip(links).collect(),
            full: Vec::new(),
            metrics: Metrics::new(index),
            started: Instant::now(),
            now_at: Instant::now(),
            now,
            draining: false,
            broken: None,
            outputs: Vec::new(),
            back: Vec::new(),
            writes: Vec::new(),
            marks: Vec::new(),
            to_peers: (0..workers).map(|_| Vec::new()).collect(),
            written_at: Vec::new(),
        }
    }

    /// Serves until `drain`; then admits nothing, completes the appends in flight (within `drain_deadline`), closes its
    /// rooms, and returns. Before that it returns only when the node must not go on.
    pub async fn run(mut self, drain: CancellationToken) -> End {
        self.started = Instant::now();
        if let Some(epoch) = self.options.all_slots {
            let tenure = Tenure { epoch, incarnation: self.options.incarnation };
            for slot in self.handle.slots_of(self.index) {
                let serve = Input::Serve { slot, tenure, opening: worker::SlotOpening::Full };
                self.core.handle(self.now, serve, &mut self.outputs);
            }
        }
        let over = self.options.cluster.as_ref().map(|cluster| cluster.over.clone()).unwrap_or_default();
        let mut drain_ends: Option<Instant> = None;
        loop {
            let event = tokio::select! {
                biased;
                () = over.cancelled() => return End::Over,
                event = self.next(&drain) => event,
            };
            self.now_at = Instant::now();
            self.now = Now {
                // Far from overflowing.
                mono_ms: self.now_at.duration_since(self.started).as_millis() as u64,
                unix: clock::unix_ms(),
            };
            if matches!(event, Event::Drain) {
                self.draining = true;
                drain_ends = Some(self.now_at + self.options.drain_deadline);
                tracing::debug!(worker = self.index, "shard worker drains");
            }
            self.turn(event);
            self.handle.ticked(self.index, self.now.mono_ms);
            if let Some(end) = self.broken {
                return end;
            }
            if let Some(ends) = drain_ends {
                if self.core.is_done() && self.inbox.messages.is_empty() {
                    return End::Drained;
                }
                if self.now_at >= ends {
                    tracing::warn!(worker = self.index, "the drain deadline passed with work in flight");
                    return End::Drained;
                }
            }
        }
    }

    async fn next(&mut self, drain: &CancellationToken) -> Event {
        let wake_ms = self.next_wake_ms();
        let wake = async {
            match wake_ms {
                Some(at) => sleep_until(self.started + Duration::from_millis(at)).await,
                None => pending().await,
            }
        };
        let (draining, tasks) = (self.draining, !self.tasks.is_empty());
        tokio::select! {
            biased; // stop first, then timers, then what frees rooms to go on, then work
            () = drain.cancelled(), if !draining => Event::Drain,
            () = wake => Event::Time,
            Some(done) = self.done.recv() => Event::Done(done),
            Some(finished) = self.tasks.join_next(), if tasks => Event::Finished(join(finished)),
            Some(order) = self.inbox.orders.recv() => Event::Order(order),
            Some(message) = self.inbox.messages.recv() => Event::Message(message),
        }
    }

    fn next_wake_ms(&self) -> Option<u64> {
        let link = (!self.full.is_empty()).then_some(self.now.mono_ms + LINK_RETRY_MS);
        // While draining, look at the deadline now and then.
        let drain = self.draining.then_some(self.now.mono_ms + 100);
        // A node among others must see that its workers live.
        let tick = self.options.cluster.is_some().then_some(self.now.mono_ms + TICK_MS);
        [self.core.next_deadline(), link, drain, tick].into_iter().flatten().min()
    }

    fn turn(&mut self, event: Event) {
        match event {
            Event::Drain => self.input(Input::Stop),
            Event::Time => {}
            Event::Done(done) => self.completed(&done),
            Event::Finished(finished) => self.finished(finished),
            Event::Message(message) => {
                self.orders();
                self.message(message);
            }
            Event::Order(order) => self.order(order),
        }
        // Everything else that is there.
        while let Ok(done) = self.done.try_recv() {
            self.completed(&done);
        }
        while let Some(finished) = self.tasks.try_join_next() {
            self.finished(join(finished));
        }
        self.orders();
        self.metrics.inbox_depth.set(self.inbox.messages.len() as f64);
        for _ in 0..INBOX_TURN {
            let Ok(message) = self.inbox.messages.try_recv() else { break };
            self.orders();
            self.message(message);
        }
        self.try_full_links();
        if self.core.next_deadline().is_some_and(|at| at <= self.now.mono_ms) {
            self.input(Input::Tick);
        }
        self.end_turn();
    }

    fn input(&mut self, input: Input) {
        self.core.handle(self.now, input, &mut self.outputs);
    }

    /// Lets the core finish its turn, as often as it takes: what passes the gate at once may have more to do.
    fn end_turn(&mut self) {
        loop {
            self.input(Input::EndTurn);
            let mut outputs = std::mem::take(&mut self.outputs);
            for output in outputs.drain(..) {
                self.perform(output);
            }
            self.outputs = outputs;
            if self.back.is_empty() {
                break;
            }
            let mut back = std::mem::take(&mut self.back);
            for input in back.drain(..) {
                self.input(input);
            }
            self.back = back;
        }
        if !self.writes.is_empty() {
            // The next turn's group will be about as large: it is not grown step by step.
            let next = Vec::with_capacity(self.writes.len());
            self.store.write(std::mem::replace(&mut self.writes, next), &self.done_sender);
        }
        if !self.marks.is_empty() {
            self.store.put_marks(std::mem::take(&mut self.marks));
        }
        self.flush_peers();
        let (rooms, users, _) = self.core.sizes();
        self.metrics.rooms_open.set(rooms as f64);
        self.metrics.users_online.set(users as f64);
        self.metrics.unsaid.set(self.core.unsaid() as f64);
        self.metrics.publish(self.core.counters());
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Write(write) => self.write(write),
            Output::Read { ticket, room, read } => {
                let read = read_of(Arc::clone(&self.store), room, read);
                self.ask(Box::pin(async move {
                    let (answer, error) = read.await;
                    Finished::Read { ticket, answer, error }
                }));
            }
            Output::UserRooms { ticket, user, after, limit } => {
                let question = self.store.user_rooms(user, after, limit as usize);
                self.ask(Box::pin(async move {
                    let (rooms, error) = split(question.await);
                    Finished::Read { ticket, answer: ReadAnswer::UserRooms(rooms), error }
                }));
            }
            Output::PutMarks { room, marks } => {
                self.marks.extend(marks.into_iter().map(|(user, marks)| (room.clone(), user, marks)));
            }
            Output::FenceRead { read } => match self.store.is_fenced(self.options.incarnation) {
                Answered::Now(fenced) => {
                    let result = self.fence_result(fenced);
                    self.back.push(Input::FenceRead { read, result });
                }
                // Never behind other reads: everything waits for it.
                Answered::Later(fenced) => {
                    self.tasks.spawn(async move { Finished::Fence { read, fenced: fenced.await } });
                }
            },
            Output::ToLink { link, messages } => self.hand_to_link(link, messages),
            Output::Notify { user, push } => {
                let slot = self.handle.user_slot(user.as_str());
                let message = ToShard::Notify { user, push };
                let message = match &self.options.cluster {
                    None => Some(message),
                    Some(cluster) => cluster.elsewhere.notify(slot, message),
                };
                let Some(message) = message else { return };
                let worker = self.handle.worker_of_slot(slot);
                if worker == self.index {
                    self.back.push(Input::Link { link: PEER, message });
                } else {
                    self.to_peers[worker].push(message);
                }
            }
            Output::Drained { slot, drain, tenure, rooms } => match &self.options.cluster {
                Some(cluster) => {
                    let drained = Drained { slot, drain, tenure, rooms };
                    if let Err(TrySendError::Full(_)) = cluster.drained.try_send(drained) {
                        tracing::error!(worker = self.index, %slot, "nobody takes a drained slot");
                    }
                }
                None => {
                    tracing::error!(worker = self.index, %slot, "a slot was drained that nobody asked for")
                }
            },
            Output::Fenced => {
                tracing::error!(worker = self.index, "this run of the node has been fenced: it stops");
                self.broken = Some(End::Fenced);
            }
            Output::Stuck => {
                tracing::error!(worker = self.index, "the own fence cannot be read: the node stops");
                self.broken = Some(End::Stuck);
            }
            Output::Damaged { room, after } => {
                tracing::error!(worker = self.index, %room, after = after.0, "the log of a room is damaged");
            }
            Output::TooManySegments { room } => {
                tracing::error!(
                    worker = self.index,
                    %room,
                    most = SEGMENTS_MAX,
                    "a room has more segments than can be read: it cannot be opened"
                );
            }
        }
    }

    fn write(&mut self, write: RoomWrite) {
        if let Write::Rows { rows, .. } = &write.write {
            self.metrics.appends.increment(1);
            self.metrics.append_events.record(rows.len() as f64);
            // The lower half counts what is under way at once.
            let index = write.ticket as u32 as usize;
            if self.written_at.len() <= index {
                self.written_at.resize(index + 1, None);
            }
            self.written_at[index] = Some(self.now_at);
        }
        self.writes.push(write);
    }

    fn hand_to_link(&mut self, link: LinkId, messages: Vec<FromShard>) {
        let Some(sender) = self.link(link) else {
            return self.back.push(Input::LinkGone(link));
        };
        match sender.try_send(messages) {
            Ok(()) => {}
            Err(TrySendError::Full(messages)) => {
                self.full.push(link);
                self.back.push(Input::LinkFull { link, messages });
            }
            Err(TrySendError::Closed(_)) => {
                tracing::debug!(worker = self.index, link = link.0, "link is gone");
                self.back.push(Input::LinkGone(link));
            }
        }
    }

    fn link(&self, link: LinkId) -> Option<&mpsc::Sender<Vec<FromShard>>> {
        self.links.get(&link)
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Batch(batch) => self.batch(batch),
            Message::Gone(link) => {
                self.links.remove(&link);
                self.full.retain(|full| *full != link);
                self.input(Input::LinkGone(link));
            }
        }
    }

    fn orders(&mut self) {
        while let Ok(order) = self.inbox.orders.try_recv() {
            self.order(order);
        }
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Slot(slot, order) => self.input(order.into_input(slot)),
            Order::Opened { link, sender } => {
                self.links.insert(link, sender);
            }
        }
    }

    fn try_full_links(&mut self) {
        let mut full = std::mem::take(&mut self.full);
        full.retain(|link| {
            let sender = self.link(*link);
            // Of one that is closed the core learns by its next batch.
            let took = sender.is_none_or(|sender| sender.capacity() > 0 || sender.is_closed());
            if took {
                self.core.handle(self.now, Input::LinkTook(*link), &mut self.outputs);
            }
            !took
        });
        self.full = full;
    }

    fn flush_peers(&mut self) {
        for (worker, messages) in self.to_peers.iter_mut().enumerate() {
            if messages.is_empty() {
                continue;
            }
            let batch = ToShardBatch { link: PEER, messages: std::mem::take(messages) };
            if let Err(batch) = self.handle.try_send(worker, batch) {
                // At most once: clients ask for the truth after `auth`.
                self.metrics.notify_dropped.increment(batch.messages.len() as u64);
            }
        }
    }

    fn batch(&mut self, batch: ToShardBatch) {
        let link = batch.link;
        for message in batch.messages {
            self.input(Input::Link { link, message });
        }
    }

    fn completed(&mut self, done: &[Completion]) {
        for Completion { ticket, outcome } in done {
            match outcome {
                Outcome::Done => {}
                Outcome::Unknown => {
                    self.metrics.append_unknown.increment(1);
                    tracing::warn!(worker = self.index, "outcome of a write is unknown: it will be repeated");
                }
                Outcome::NotDone(_) => self.metrics.append_refused.increment(1),
            }
            // The lower half, as in `write`.
            let written = self.written_at.get_mut(*ticket as u32 as usize);
            if let Some(at) = written.and_then(Option::take) {
                self.metrics.append_seconds.record(self.now_at.duration_since(at).as_secs_f64());
            }
            self.input(Input::Wrote { ticket: *ticket, outcome: *outcome });
        }
    }

    fn finished(&mut self, finished: Finished) {
        while self.tasks.len() < self.options.reads
            && let Some(next) = self.waiting.pop_front()
        {
            self.tasks.spawn(next);
        }
        match finished {
            Finished::Read { ticket, answer, error } => {
                if let Some(error) = error {
                    self.read_failed(&error);
                }
                self.input(Input::Read { ticket, answer });
            }
            Finished::Fence { read, fenced } => {
                let result = self.fence_result(fenced);
                self.input(Input::FenceRead { read, result });
            }
        }
    }

    fn fence_result(&self, fenced: Result<bool, Error>) -> Result<bool, Failed> {
        fenced.map_err(|error| {
            self.read_failed(&error);
            Failed
        })
    }

    fn read_failed(&self, error: &Error) {
        self.metrics.read_failed.increment(1);
        match error {
            Error::Corrupt(_) => tracing::error!(worker = self.index, %error, "the store gave damaged data"),
            _ => tracing::warn!(worker = self.index, %error, "the store could not be read"),
        }
    }

    fn ask(&mut self, question: BoxFuture<'static, Finished>) {
        if self.tasks.len() < self.options.reads {
            self.tasks.spawn(question);
        } else {
            self.waiting.push_back(question);
        }
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("index", &self.index).finish_non_exhaustive()
    }
}

/// A task that panicked has broken an invariant of the store: so does the worker.
fn join(finished: Result<Finished, tokio::task::JoinError>) -> Finished {
    match finished {
        Ok(finished) => finished,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => unreachable!("no task of a worker is aborted while it runs: {error}"),
        },
    }
}

/// The core needs to know that it failed, the shell why.
fn split<T>(result: Result<T, Error>) -> (Result<T, Failed>, Option<Error>) {
    match result {
        Ok(value) => (Ok(value), None),
        Err(error) => (Err(Failed), Some(error)),
    }
}

async fn read_of(store: Arc<dyn LogStore>, room: RoomId, read: Read) -> (ReadAnswer, Option<Error>) {
    match read {
        Read::Segments => {
            let (records, error) = split(store.segments(room).await);
            (ReadAnswer::Segments(records), error)
        }
        Read::Said => {
            let (said, error) = split(store.said(room).await);
            (ReadAnswer::Said(said), error)
        }
        Read::Rows { spans, range, limit } => {
            let (page, error) = split(store.rows(room, spans, range, limit).await);
            (ReadAnswer::Rows(page), error)
        }
        Read::Room => {
            let (read, error) = split(read_room(&*store, room).await);
            (ReadAnswer::Room(read), error)
        }
    }
}

/// A room's own row and all who are or were in it.
async fn read_room(store: &dyn LogStore, room: RoomId) -> Result<Box<RoomRead>, Error> {
    let first = store.members(room.clone(), None, PAGE_MAX);
    let (row, (mut members, mut more)) = tokio::try_join!(store.room_row(room.clone()), first)?;
    while let Some((last, _)) = members.last().filter(|_| more) {
        let after = last.user.clone();
        let (mut page, then) = store.members(room.clone(), Some(after), PAGE_MAX).await?;
        more = then && !page.is_empty();
        members.append(&mut page);
    }
    Ok(Box::new(RoomRead { row, members }))
}
