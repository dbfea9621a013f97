//! The store of a single machine: one directory, one process, every commit synced.
//!
//! Owns: the directory and its lock, one writer thread, a few reader threads, the engine (fjall) under them.
//! Always holds: [`crate::Outcome::Done`] and every account write stand after a synced commit; a commit is there whole or not at all;
//! a failed write never ends the process, and never turns into a wrong answer.
//! Does not: run anything on a caller's thread beyond putting it into a queue.
//!
//! **Disk.** While less than [`Options::min_free_bytes`] is free, new rows, users and logins are refused; reads, leaving, logging
//! out and what opens a room go on, to half of it; what owners write about themselves, without which nothing can be read, to
//! 1 MiB. The engine needs space behind the scenes too (it rewrites tables), which is what the reserve is for.
//!
//! **Memory**, at most: the cache, up to four memtables of `memtable_bytes` while writing hard (one when idle, as far as it is filled),
//! queues of 64 MiB. Measured with the defaults: 1 MB when new, 30 MB after a start that reads a full journal, 155 MB while writing 200,000 rows of
//! 300 bytes a second.

pub(crate) mod codec;
#[cfg(test)]
mod crash_tests;
mod directory;
mod engine;
mod fences;
mod journal;
mod queue;
mod readers;
mod space;
mod writer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Instant;

use banyan_proto::id::{Epoch, Incarnation, RoomId, SlotId, UnixMs, UserId};
use tokio::sync::mpsc;

use crate::accounts::{Accounts, Creation, LoginRow, TEXT_MAX, UserRow};
use crate::log_store::{Answered, LogStore, RoomWrite, Said, SegmentRecord, SlotOwner, Span};
use crate::metrics::{Metrics, ReadMetrics};
use crate::outcome::Completion;
use crate::page::{MemberPage, Page, Range, ReadLimit, RoomPage};
use crate::row::{Marks, MemberRow, RoomRow};
use crate::{BoxFuture, Error};
use directory::Directory;
use engine::Engine;
use fences::Fences;
use queue::{Op, Queue, Reply};
use readers::Readers;
use writer::{Health, Writer};

/// How to run an embedded store.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its own: nothing else may be in it.
    pub directory: PathBuf,
    /// Rows are refused while less is free. 64 MiB: more than the engine has under way at any moment on a small machine.
    pub min_free_bytes: u64,
    /// Blocks of tables kept in memory. 32 MiB hold the newest pages of thousands of rooms.
    pub cache_bytes: u64,
    /// Rows are kept in memory up to this size before they become a table.
    pub memtable_bytes: u64,
    /// Threads that answer reads. Two: one slow disk read does not hold up all others.
    pub reader_threads: usize,
}

impl Options {
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            min_free_bytes: 64 << 20,
            cache_bytes: 32 << 20,
            memtable_bytes: 32 << 20,
            reader_threads: 2,
        }
    }
}

/// Why a store was not opened. Each text is for the person who started the server.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{} is in use by another process{}; stop that one or choose another directory", path.display(), pid_text(*pid))]
    Locked { path: PathBuf, pid: Option<u32> },
    #[error(
        "{} has format {found} and was written by a newer release; this one reads formats up to {supported}", path.display()
    )]
    NewerFormat { path: PathBuf, found: u32, supported: u32 },
    #[error(
        "{} has format {found}, from before the first release, and this one reads formats from {oldest} on; \
         move the directory away and start with an empty one", path.display()
    )]
    OlderFormat { path: PathBuf, found: u32, oldest: u32 },
    #[error("{} is not a store of ours (there is {entry:?} in it); choose an empty or missing directory", path.display())]
    NotOurs { path: PathBuf, entry: String },
    #[error("{}: {source}", path.display())]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("the store is damaged: {0}")]
    Damaged(String),
    #[error("a thread could not be started: {0}")]
    Thread(std::io::Error),
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

impl From<journal::Error> for OpenError {
    fn from(error: journal::Error) -> Self {
        match error {
            journal::Error::Io { file, source } => Self::Directory { path: file, source },
            damaged @ journal::Error::Damaged { .. } => Self::Damaged(damaged.to_string()),
        }
    }
}

/// How the store does, for readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub free_bytes: u64,
    /// Less than [`Options::min_free_bytes`] is free.
    pub full: bool,
    /// Writes are refused because something failed; why. The store is trying to recover.
    pub degraded: Option<String>,
}

/// See the module's text.
#[derive(Debug)]
pub struct Embedded {
    queue: Arc<Queue>,
    readers: Readers,
    health: Arc<Health>,
    fences: Arc<Fences>,
    closed: AtomicBool,
    read_metrics: ReadMetrics,
    writer: Mutex<Option<JoinHandle<()>>>,
    directory: PathBuf,
    min_free_bytes: u64,
}

impl Embedded {
    /// Opens the store, or makes it. Blocks: reads what was written last, about a second for a full journal.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let make = |store: &Path| Engine::open(store, &options).map(drop);
        let directory = Directory::open(&options.directory, make)?;
        journal::check(&directory.store(), journal::Tail::Trust)?;
        let engine = Engine::open(&directory.store(), &options)?;
        let fences = Arc::new(Fences::default());
        fences.extend(engine.fences().map_err(|error| OpenError::Damaged(error.to_string()))?);
        let shared = Arc::new(RwLock::new(Some(engine)));
        let metrics = Arc::new(Metrics::new());
        let queue = Arc::new(Queue::new(Arc::clone(&metrics)));
        let health = Arc::new(Health::default());
        let readers = Readers::start(options.reader_threads, &shared).map_err(OpenError::Thread)?;
        let path = directory.path().to_owned();
        let min_free_bytes = options.min_free_bytes;
        let writer = Writer::new(
            Arc::clone(&queue),
            shared,
            directory,
            options,
            metrics,
            Arc::clone(&health),
            Arc::clone(&fences),
        );
        let writer = std::thread::Builder::new()
            .name("store-write".to_owned())
            .spawn({
                let (queue, health) = (Arc::clone(&queue), Arc::clone(&health));
                move || {
                    if catch_unwind(AssertUnwindSafe(|| writer.run())).is_err() {
                        // A bug of ours or the engine's. Nobody may wait for ever for what nobody writes.
                        tracing::error!("the writer of the store panicked; nothing is written until the server is restarted");
                        health.set(Some("the writer of the store panicked; restart the server".to_owned()));
                        queue.abandon();
                    }
                }
            })
            .map_err(OpenError::Thread)?;
        tracing::info!(directory = %path.display(), "store open");
        Ok(Self {
            queue,
            readers,
            health,
            fences,
            closed: AtomicBool::new(false),
            read_metrics: ReadMetrics::new(),
            writer: Mutex::new(Some(writer)),
            directory: path,
            min_free_bytes,
        })
    }

    /// Asks the file system; call it a few times a second at most.
    pub fn status(&self) -> Status {
        let (free_bytes, unreadable) = match space::free_bytes(&self.directory) {
            Ok(free) => (free, None),
            Err(error) => (0, Some(format!("{}: {error}", self.directory.display()))),
        };
        Status {
            free_bytes,
            full: free_bytes < self.min_free_bytes,
            degraded: self.health.degraded().or(unreadable),
        }
    }

    /// Writes what waits, answers it, ends the threads and gives up the directory. Blocks. What comes later is refused as closed.
    /// Dropping the store does the same.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.queue.close();
        self.readers.close();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            tracing::error!("the writer of the store panicked");
        }
    }

    fn op<T>(
        &self,
        op: Op,
        reply: impl Fn(Reply) -> Option<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, Error>> {
        let waiting = self.queue.op(op);
        Box::pin(async move {
            waiting.await.map(|got| reply(got).unwrap_or_else(|| unreachable!("an op has one reply")))
        })
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.close();
    }
}

impl LogStore for Embedded {
    fn write(&self, group: Vec<RoomWrite>, done: &mpsc::Sender<Vec<Completion>>) {
        self.queue.write(group, done);
    }

    fn segments(&self, room: RoomId) -> BoxFuture<'static, Result<Vec<SegmentRecord>, Error>> {
        self.read_metrics.room.increment(1);
        self.readers.ask(&self.read_metrics.refused, move |engine| engine.segments(&room))
    }

    fn said(&self, room: RoomId) -> BoxFuture<'static, Result<Option<Said>, Error>> {
        self.read_metrics.room.increment(1);
        self.readers.ask(&self.read_metrics.refused, move |engine| engine.said(&room))
    }

    fn rows(
        &self,
        room: RoomId,
        spans: Vec<Span>,
        range: Range,
        limit: ReadLimit,
    ) -> BoxFuture<'static, Result<Page, Error>> {
        self.read_metrics.log.increment(1);
        self.readers.ask(&self.read_metrics.refused, move |engine| engine.rows(&room, &spans, range, limit))
    }

    fn room_row(&self, room: RoomId) -> BoxFuture<'static, Result<Option<RoomRow>, Error>> {
        self.read_metrics.room.increment(1);
        self.readers.ask(&self.read_metrics.refused, move |engine| engine.room_row(room))
    }

    fn member(
        &self,
        room: RoomId,
        user: UserId,
    ) -> BoxFuture<'static, Result<Option<(MemberRow, Marks)>, Error>> {
        self.read_metrics.members.increment(1);
        self.readers.ask(&self.read_metrics.refused, move |engine| engine.member(&room, user))
    }

    fn members(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<MemberPage, Error>> {
        self.read_metrics.members.increment(1);
        self.readers
            .ask(&self.read_metrics.refused, move |engine| engine.members(&room, after.as_ref(), limit))
    }

    fn user_rooms(
        &self,
        user: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<RoomPage, Error>> {
        self.read_metrics.user_rooms.increment(1);
        self.readers
            .ask(&self.read_metrics.refused, move |engine| engine.user_rooms(&user, after.as_ref(), limit))
    }

    fn put_marks(&self, group: Vec<(RoomId, UserId, Marks)>) {
        self.queue.put_marks(group, now());
    }

    fn write_fence(&self, incarnation: Incarnation) -> BoxFuture<'static, Result<(), Error>> {
        self.op(Op::Fence(incarnation), done)
    }

    /// Always [`Answered::Now`]: one process has the directory, so what it has read and written is all there is.
    fn is_fenced(&self, incarnation: Incarnation) -> Answered<Result<bool, Error>> {
        Answered::Now(if self.closed.load(Ordering::Relaxed) {
            Err(Error::Closed)
        } else {
            Ok(self.fences.contains(incarnation))
        })
    }

    fn register_incarnation(
        &self,
        incarnation: Incarnation,
        node: String,
    ) -> BoxFuture<'static, Result<(), Error>> {
        if let Some(refused) = refuse_long(&[Some(&node)]) {
            return refused;
        }
        self.op(Op::Register(incarnation, node), done)
    }

    fn incarnations(&self) -> BoxFuture<'static, Result<Vec<(Incarnation, String)>, Error>> {
        self.read_metrics.owners.increment(1);
        self.readers.ask(&self.read_metrics.refused, Engine::incarnations)
    }

    fn put_slot_owner(
        &self,
        slot: SlotId,
        owner: SlotOwner,
        closes: Option<(Epoch, Incarnation)>,
    ) -> BoxFuture<'static, Result<(), Error>> {
        self.op(Op::PutSlotOwner { slot, owner, closes }, done)
    }

    fn slot_owners(&self, slot: SlotId) -> BoxFuture<'static, Result<Vec<SlotOwner>, Error>> {
        self.read_metrics.owners.increment(1);
        self.readers.ask(&self.read_metrics.refused, move |engine| engine.slot_owners(slot))
    }
}

impl Accounts for Embedded {
    fn create_user(&self, row: UserRow) -> BoxFuture<'static, Result<Creation, Error>> {
        if let Some(refused) = refuse_long(&row.texts()) {
            return refused;
        }
        self.op(Op::CreateUser(row), |reply| match reply {
            Reply::Created(creation) => Some(creation),
            Reply::Done | Reply::Swept(_) => None,
        })
    }

    fn user_by_username(&self, username: &str) -> BoxFuture<'static, Result<Option<UserRow>, Error>> {
        self.read_metrics.accounts.increment(1);
        let username = username.to_owned();
        self.readers.ask(&self.read_metrics.refused, move |engine| engine.user_by_username(&username))
    }

    fn user(&self, user: &UserId) -> BoxFuture<'static, Result<Option<UserRow>, Error>> {
        self.read_metrics.accounts.increment(1);
        let user = user.clone();
        self.readers.ask(&self.read_metrics.refused, move |engine| engine.user(user))
    }

    fn put_user(&self, row: UserRow) -> BoxFuture<'static, Result<(), Error>> {
        if let Some(refused) = refuse_long(&row.texts()) {
            return refused;
        }
        self.op(Op::PutUser(row), done)
    }

    fn put_login(&self, row: LoginRow) -> BoxFuture<'static, Result<(), Error>> {
        if let Some(refused) = refuse_long(&[Some(&row.login)]) {
            return refused;
        }
        self.op(Op::PutLogin(row), done)
    }

    fn login(&self, login: &str) -> BoxFuture<'static, Result<Option<LoginRow>, Error>> {
        self.read_metrics.accounts.increment(1);
        let login = login.to_owned();
        self.readers.ask(&self.read_metrics.refused, move |engine| engine.login(&login))
    }

    fn end_login(&self, login: &str) -> BoxFuture<'static, Result<(), Error>> {
        self.op(Op::EndLogin(login.to_owned()), done)
    }

    fn end_all_logins(&self, user: &UserId) -> BoxFuture<'static, Result<(), Error>> {
        self.op(Op::EndAllLogins(user.clone()), done)
    }

    fn sweep_logins(&self, now: UnixMs) -> BoxFuture<'static, Result<usize, Error>> {
        self.op(Op::SweepLogins(now), |reply| match reply {
            Reply::Swept(count) => Some(count),
            Reply::Done | Reply::Created(_) => None,
        })
    }
}

fn done(reply: Reply) -> Option<()> {
    match reply {
        Reply::Done => Some(()),
        Reply::Created(_) | Reply::Swept(_) => None,
    }
}

/// Keys of the engine have a limit, and so have rows.
fn refuse_long<T: Send + 'static>(texts: &[Option<&String>]) -> Option<BoxFuture<'static, Result<T, Error>>> {
    texts.iter().flatten().any(|text| text.len() > TEXT_MAX).then(
        || -> BoxFuture<'static, Result<T, Error>> {
            Box::pin(async { Err(Error::Refused("a text is too long")) })
        },
    )
}

/// The store's own threads measure themselves by it; nothing that is stored depends on it.
#[allow(
    clippy::disallowed_methods,
    reason = "plain threads, not tasks: there is no runtime whose clock they could ask"
)]
fn now() -> Instant {
    Instant::now()
}
