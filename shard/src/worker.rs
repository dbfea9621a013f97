//! One worker: the only writer of the rooms in its slots, and the home of user channels.
//!
//! Owns: its open rooms, its part of the user channels, the outboxes to all links. A turn takes what is there (commands,
//! completions, reads, timers), lets the rooms decide, hands all appends of the turn to the store as one group and all
//! messages to each link as one batch.
//! Always holds: nothing waits for a slow party; every question is answered once.
//! Does not: decide anything about a room: that is `banyan-shard-core`.

mod outbox;
mod rooms;
mod users;

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use banyan_proto::codes::Code;
use banyan_proto::id::{LogId, RoomId, UserId};
use banyan_proto::link::{Answer, FromShard, LinkId, Ticket, ToShard, ToShardBatch};
use banyan_proto::v1;
use banyan_shard_core::room::PullRequest;
use banyan_shard_core::{Action, Input, Now, Room};
use banyan_storage::room_log::{Append, LoadedRoom, Marks, PAGE_MAX, Row};
use banyan_storage::{BoxFuture, Completion, Error, Outcome, RoomLog};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::handle::Handle;
use crate::metrics::{Metrics, Turn};
use crate::options::Options;
use outbox::{Flushed, Outbox};
use rooms::{Place, Rooms};
use users::Users;

/// Batches taken from the inbox in one turn: keeps turns short, so that completions are not kept waiting.
const INBOX_TURN: usize = 256;
/// Completion messages that may wait; the store keeps further ones itself.
const DONE_QUEUE: usize = 64;
/// A full link is tried again after this time if nothing else happens.
const LINK_RETRY_MS: u64 = 5;
/// How often idle rooms are looked for.
const SWEEP_MS: u64 = 60_000;
/// The link of what workers say to each other; nothing is ever answered to it.
const PEER: LinkId = LinkId(u16::MAX);

/// Runs the rooms of its slots.
pub struct Worker {
    index: usize,
    options: Arc<Options>,
    room_config: Arc<banyan_shard_core::Config>,
    handle: Handle,
    /// Bound: `inbox_batches`; full: the sender keeps its batch.
    inbox: mpsc::Receiver<ToShardBatch>,
    store: Arc<dyn RoomLog>,
    done_sender: mpsc::Sender<Vec<Completion>>,
    done: mpsc::Receiver<Vec<Completion>>,
    /// Loads and reads under way. Bound: `reads`; further ones wait in `waiting`.
    tasks: JoinSet<Finished>,
    /// Bound: a load per room, a room's own bound of reads, and one for each list of rooms that was asked for (which
    /// gateways bound).
    waiting: VecDeque<BoxFuture<'static, Finished>>,
    rooms: Rooms,
    users: Users,
    outboxes: Vec<Outbox>,
    metrics: Metrics,
    started: Instant,
    /// Of the turn.
    now_at: Instant,
    now: Now,
    sweep_ms: u64,
    draining: bool,

    // What a turn collects; kept for their memory.
    actions: Vec<Action>,
    touched: Vec<Place>,
    appends: Vec<Append>,
    marks: Vec<(RoomId, UserId, Marks)>,
    to_peers: Vec<Vec<ToShard>>,
    turn: Turn,
}

/// What the store has answered.
#[derive(Debug)]
enum Finished {
    Loaded { place: Place, loaded: Result<Option<Box<LoadedRoom>>, Error> },
    Read { place: Place, ticket: u32, rows: Result<(Vec<Row>, bool), Error> },
    UserRooms { link: LinkId, ticket: Ticket, rooms: Result<(Vec<RoomId>, bool), Error> },
}

/// Why a turn begins.
#[derive(Debug)]
enum Event {
    Drain,
    Time,
    Done(Vec<Completion>),
    Finished(Finished),
    Batch(ToShardBatch),
}

impl Worker {
    pub(crate) fn new(
        index: usize,
        options: Arc<Options>,
        handle: Handle,
        inbox: mpsc::Receiver<ToShardBatch>,
        store: Arc<dyn RoomLog>,
        links: Vec<mpsc::Sender<Vec<FromShard>>>,
    ) -> Self {
        let (done_sender, done) = mpsc::channel(DONE_QUEUE);
        let peers = handle.workers();
        Self {
            index,
            room_config: Arc::new(options.room.clone()),
            options,
            handle,
            inbox,
            store,
            done_sender,
            done,
            tasks: JoinSet::new(),
            waiting: VecDeque::new(),
            rooms: Rooms::default(),
            users: Users::default(),
            outboxes: links.into_iter().map(Outbox::new).collect(),
            metrics: Metrics::new(index),
            started: Instant::now(),
            now_at: Instant::now(),
            now: Now { mono_ms: 0, unix: clock::unix_ms() },
            sweep_ms: SWEEP_MS,
            draining: false,
            actions: Vec::new(),
            touched: Vec::new(),
            appends: Vec::new(),
            marks: Vec::new(),
            to_peers: (0..peers).map(|_| Vec::new()).collect(),
            turn: Turn::default(),
        }
    }

    /// Serves until `drain`; then admits nothing, completes the appends in flight (within `drain_deadline`), writes
    /// marks, and returns.
    pub async fn run(mut self, drain: CancellationToken) {
        self.started = Instant::now();
        let mut drain_ends: Option<Instant> = None;
        loop {
            let event = self.next(&drain).await;
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
            if let Some(ends) = drain_ends {
                let late = self.now_at >= ends;
                let open = self.outboxes.iter().any(Outbox::holds_answers) || !self.tasks.is_empty();
                if late || (self.rooms.all_settled() && self.inbox.is_empty() && !open) {
                    self.end(late);
                    return;
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
            Some(batch) = self.inbox.recv() => Event::Batch(batch),
        }
    }

    fn next_wake_ms(&self) -> Option<u64> {
        let link = self.outboxes.iter().any(Outbox::is_blocked).then_some(self.now.mono_ms + LINK_RETRY_MS);
        // While draining, look at the deadline now and then.
        let drain = self.draining.then_some(self.now.mono_ms + 100);
        [self.rooms.next_wake(), link, drain, Some(self.sweep_ms)].into_iter().flatten().min()
    }

    fn turn(&mut self, event: Event) {
        match event {
            Event::Drain | Event::Time => {}
            Event::Done(done) => self.completed(&done),
            Event::Finished(finished) => self.finished(finished),
            Event::Batch(batch) => self.batch(batch),
        }
        // Everything else that is there.
        while let Ok(done) = self.done.try_recv() {
            self.completed(&done);
        }
        while let Some(finished) = self.tasks.try_join_next() {
            self.finished(join(finished));
        }
        self.metrics.inbox_depth.set(self.inbox.len() as f64);
        for _ in 0..INBOX_TURN {
            let Ok(batch) = self.inbox.try_recv() else { break };
            self.batch(batch);
        }
        while let Some(place) = self.rooms.pop_due(self.now.mono_ms) {
            self.input(place, Input::Tick);
        }
        if self.now.mono_ms >= self.sweep_ms {
            self.sweep();
        }
        self.end_turn();
    }

    /// Lets the rooms make their batches, and hands over what the turn has collected.
    fn end_turn(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        for place in touched.drain(..) {
            self.input(place, Input::Flush);
            let Some(entry) = self.rooms.entry(place) else { continue };
            entry.touched = false;
            if entry.room.is_absent() && entry.room.is_quiet() {
                // Asked for, and not there: nothing to keep.
                self.rooms.close(place);
            } else {
                self.rooms.schedule(place);
            }
        }
        // Flushing has touched them again.
        self.touched.clear();
        touched.clear();
        self.touched = touched;
        if !self.appends.is_empty() {
            self.store.append(std::mem::take(&mut self.appends), &self.done_sender);
        }
        if !self.marks.is_empty() {
            self.store.put_marks(std::mem::take(&mut self.marks));
        }
        self.flush_peers();
        self.flush_links();
        self.metrics.rooms_open.set(self.rooms.len() as f64);
        self.metrics.users_online.set(self.users.len() as f64);
        self.metrics.end_turn(&mut self.turn);
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

    fn flush_links(&mut self) {
        let mut gone = Vec::new();
        for (index, outbox) in self.outboxes.iter_mut().enumerate() {
            // As many links as the process has.
            let link = LinkId(index as u16);
            let rooms = &self.rooms;
            let flushed = outbox.flush(|id| {
                let room = rooms.get(id).filter(|room| room.wants(link))?;
                let beacon = room.beacon()?;
                Some(FromShard::Head {
                    room: id.clone(),
                    epoch: beacon.epoch,
                    head: beacon.head,
                    n: beacon.n,
                    last_membership: beacon.last_membership,
                })
            });
            match flushed {
                Flushed::All | Flushed::Full { dropped: 0 } => {}
                Flushed::Full { dropped } => self.metrics.link_dropped.increment(dropped),
                Flushed::Closed => gone.push(link),
            }
        }
        for link in gone {
            tracing::debug!(worker = self.index, link = link.0, "link is gone");
            self.users.link_gone(link);
            for place in self.rooms.places() {
                if let Some(entry) = self.rooms.entry(place) {
                    entry.room.handle(self.now, Input::Uninterest { link }, &mut self.actions);
                }
            }
        }
    }

    fn batch(&mut self, batch: ToShardBatch) {
        let link = batch.link;
        for message in batch.messages {
            self.message(link, message);
        }
    }

    fn message(&mut self, link: LinkId, message: ToShard) {
        match message {
            ToShard::Room { room, call } => {
                let ticket = call.ticket;
                if self.draining {
                    let error = Code::Unavailable.error("the server is stopping: come back");
                    return self.answer(link, ticket, Answer::Error(Box::new(error)));
                }
                match self.open(&room) {
                    Some(place) => self.input(place, Input::Call { link, call }),
                    None => {
                        let error = self.too_many_rooms();
                        self.answer(link, ticket, Answer::Error(Box::new(error)));
                    }
                }
            }
            ToShard::Pull { room, ticket, after, through, max_events, max_bytes } => match self.open(&room) {
                Some(place) => {
                    let pull = PullRequest { link, ticket, after, through, max_events, max_bytes };
                    self.input(place, Input::Pull(pull));
                }
                None => {
                    let page = Err(self.too_many_rooms());
                    self.send(link, FromShard::Page { ticket, room, epoch: self.options.epoch, page });
                }
            },
            ToShard::Interest { room } => {
                // One process owns all slots, always: there is no other owner that could have admitted anybody.
                let _ = room;
            }
            ToShard::Uninterest { room } => {
                if let Some(place) = self.rooms.find(&room) {
                    self.input(place, Input::Uninterest { link });
                }
            }
            ToShard::UserOnline { user } => self.users.online(user, link),
            ToShard::UserOffline { user } => self.users.offline(&user, link),
            ToShard::UserRooms { ticket, user, after, limit } => {
                let question = self.store.user_rooms(user, after, limit as usize);
                self.ask(Box::pin(
                    async move { Finished::UserRooms { link, ticket, rooms: question.await } },
                ));
            }
            ToShard::Notify { user, push } => self.notify(&user, &push),
        }
    }

    fn too_many_rooms(&self) -> v1::Error {
        let retry_after_ms = self.options.room.retry_after_ms;
        Code::Overloaded.error_retry_after("too many rooms are open", retry_after_ms)
    }

    /// Finds a room or opens it; `None`: too many are open.
    fn open(&mut self, room: &RoomId) -> Option<Place> {
        if let Some(place) = self.rooms.find(room) {
            return Some(place);
        }
        let bound = (self.options.open_rooms / self.handle.workers()).max(1);
        if self.rooms.len() >= bound {
            let place = self.rooms.closable()?;
            self.close(place);
        }
        let fresh_log = LogId(clock::random());
        let room = Room::new(room.clone(), self.options.epoch, fresh_log, Arc::clone(&self.room_config));
        Some(self.rooms.open(room, self.now.mono_ms, self.now_at))
    }

    fn close(&mut self, place: Place) {
        self.input(place, Input::Close);
        self.rooms.close(place);
        self.metrics.closed.increment(1);
    }

    fn sweep(&mut self) {
        self.sweep_ms = self.now.mono_ms + SWEEP_MS;
        let idle_ms = u64::try_from(self.options.idle.as_millis()).unwrap_or(u64::MAX);
        let Some(before) = self.now.mono_ms.checked_sub(idle_ms) else { return };
        for place in self.rooms.idle_since(before) {
            self.close(place);
        }
    }

    fn completed(&mut self, done: &[Completion]) {
        for Completion { ticket, outcome } in done {
            // The upper half names the room, the lower one its own ticket.
            let Some(place) = self.rooms.place_at((ticket >> 32) as u32) else { continue };
            match outcome {
                Outcome::Done => {}
                Outcome::Unknown => {
                    self.metrics.append_unknown.increment(1);
                    tracing::warn!(
                        worker = self.index,
                        "outcome of an append is unknown: it will be repeated"
                    );
                }
                Outcome::NotDone(_) => self.metrics.append_refused.increment(1),
            }
            if let Some(entry) = self.rooms.entry(place) {
                let took = self.now_at.duration_since(entry.append_at);
                self.metrics.append_seconds.record(took.as_secs_f64());
            }
            self.input(place, Input::Stored { ticket: *ticket as u32, outcome: *outcome });
        }
    }

    fn finished(&mut self, finished: Finished) {
        if let Some(next) = self.waiting.pop_front() {
            self.tasks.spawn(next);
        }
        match finished {
            Finished::Loaded { place, loaded } => {
                let input = match loaded {
                    Ok(loaded) => Input::Loaded(loaded),
                    Err(error) => {
                        self.read_failed(&error);
                        Input::LoadFailed
                    }
                };
                self.input(place, input);
            }
            Finished::Read { place, ticket, rows } => {
                let rows = rows.map_err(|error| self.read_failed(&error)).ok();
                self.input(place, Input::ReadDone { ticket, rows });
            }
            Finished::UserRooms { link, ticket, rooms } => {
                let answer = match rooms {
                    Ok((rooms, more)) => Answer::UserRooms { rooms, more },
                    Err(error) => {
                        self.read_failed(&error);
                        Answer::Error(Box::new(Code::Unavailable.error("the rooms cannot be read now")))
                    }
                };
                self.answer(link, ticket, answer);
            }
        }
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

    /// Gives an input to a room and carries out what it decides.
    fn input(&mut self, place: Place, input: Input) {
        let Some(entry) = self.rooms.entry(place) else { return };
        if !entry.touched {
            entry.touched = true;
            self.touched.push(place);
        }
        if matches!(input, Input::Call { .. } | Input::Pull(_)) {
            entry.used_ms = self.now.mono_ms;
        }
        let mut actions = std::mem::take(&mut self.actions);
        entry.room.handle(self.now, input, &mut actions);
        for action in actions.drain(..) {
            self.perform(place, action);
        }
        self.actions = actions;
    }

    fn perform(&mut self, place: Place, action: Action) {
        let Some(entry) = self.rooms.entry(place) else { return };
        match action {
            Action::Append { ticket, rows, derived } => {
                entry.append_at = self.now_at;
                self.metrics.appends.increment(1);
                self.metrics.append_events.record(rows.len() as f64);
                let ticket = u64::from(place.index) << 32 | u64::from(ticket);
                self.appends.push(Append { ticket, room: entry.room.id().clone(), rows, derived });
            }
            Action::Answer { link, ticket, answer } => self.answer(link, ticket, answer),
            Action::Events { link, events } => {
                let room = entry.room.id().clone();
                self.send(link, FromShard::Events { room, epoch: self.options.epoch, events });
            }
            Action::Marks { link, marks } => {
                let room = entry.room.id().clone();
                self.send(link, FromShard::Marks { room, epoch: self.options.epoch, marks });
            }
            Action::Left { link, user, at } => {
                let room = entry.room.id().clone();
                self.send(link, FromShard::Left { room, epoch: self.options.epoch, user, at });
            }
            Action::Page { link, ticket, page } => {
                let room = entry.room.id().clone();
                self.send(link, FromShard::Page { ticket, room, epoch: self.options.epoch, page });
            }
            Action::PutMarks(group) => {
                let room = entry.room.id();
                self.marks.extend(group.into_iter().map(|(user, marks)| (room.clone(), user, marks)));
            }
            Action::NotifyUser { user, push } => {
                let worker = self.handle.worker_of_user(user.as_str());
                if worker == self.index {
                    self.notify(&user, &push);
                } else {
                    self.to_peers[worker].push(ToShard::Notify { user, push });
                }
            }
            Action::Load => {
                self.metrics.loads.increment(1);
                let load = load(Arc::clone(&self.store), entry.room.id().clone());
                self.ask(Box::pin(async move { Finished::Loaded { place, loaded: load.await } }));
            }
            Action::Read { ticket, range, limit } => {
                self.metrics.reads.increment(1);
                let read = self.store.read(entry.room.id().clone(), range, limit);
                self.ask(Box::pin(async move {
                    let rows = read.await.map(|page| (page.rows, page.more));
                    Finished::Read { place, ticket, rows }
                }));
            }
            Action::Damaged { after } => {
                let room = entry.room.id();
                tracing::error!(worker = self.index, %room, after = after.0, "the log of a room is damaged");
            }
        }
    }

    fn answer(&mut self, link: LinkId, ticket: Ticket, answer: Answer) {
        match &answer {
            Answer::Sent(sent) if sent.duplicate => self.turn.duplicate += 1,
            Answer::Sent(_) => self.turn.stored += 1,
            Answer::Error(error) => self.metrics.error(error.code),
            _ => {}
        }
        self.send(link, FromShard::Answer { ticket, epoch: self.options.epoch, answer });
    }

    fn notify(&mut self, user: &UserId, push: &Arc<v1::server_frame::Body>) {
        for link in self.users.links(user) {
            if let Some(outbox) = self.outboxes.get_mut(usize::from(link.0)) {
                outbox.push(FromShard::User { user: user.clone(), push: Arc::clone(push) });
            }
        }
    }

    /// A link that does not exist cannot be told anything.
    fn send(&mut self, link: LinkId, message: FromShard) {
        if let Some(outbox) = self.outboxes.get_mut(usize::from(link.0)) {
            outbox.push(message);
        }
    }

    fn end(&mut self, late: bool) {
        if late {
            tracing::warn!(worker = self.index, "the drain deadline passed with appends in flight");
        }
        for place in self.rooms.places() {
            self.input(place, Input::Close);
        }
        self.end_turn();
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("index", &self.index)
            .field("rooms", &self.rooms.len())
            .finish_non_exhaustive()
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

/// A room with all who are or were in it.
async fn load(store: Arc<dyn RoomLog>, room: RoomId) -> Result<Option<Box<LoadedRoom>>, Error> {
    let Some(mut loaded) = store.load_room(room.clone()).await? else { return Ok(None) };
    while !loaded.members_complete {
        let after = loaded.members.last().map(|(row, _)| row.user.clone());
        let (mut members, more) = store.members(room.clone(), after, PAGE_MAX).await?;
        loaded.members_complete = !more || members.is_empty();
        loaded.members.append(&mut members);
    }
    Ok(Some(Box::new(loaded)))
}
