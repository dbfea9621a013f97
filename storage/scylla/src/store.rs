//! The store itself: what every call shares, and the two traits.
//!
//! Owns: the session, the prepared statements, the bounds. Every question runs as a task of the runtime that it was opened on, so
//! callers need none, and one that goes away leaves nothing half-said.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use banyan_proto::id::{Epoch, Incarnation, RoomId, SlotId, UnixMs, UserId};
use banyan_storage::accounts::{Creation, LoginRow, TEXT_MAX, UserRow};
use banyan_storage::log_store::{Answered, RoomWrite, Said, SegmentRecord, SlotOwner, Span};
use banyan_storage::outcome::Completion;
use banyan_storage::{
    Accounts, BoxFuture, Error, LogStore, Marks, MemberPage, MemberRow, Page, Range, ReadLimit, RoomPage,
    RoomRow,
};
use scylla::client::execution_profile::ExecutionProfileHandle;
use scylla::client::session::Session;
use scylla::errors::ExecutionError;
use scylla::response::query_result::{QueryResult, QueryRowsResult};
use scylla::serialize::batch::BatchValues;
use scylla::serialize::row::SerializeRow;
use scylla::statement::batch::Batch;
use scylla::statement::prepared::PreparedStatement;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::admission::{Gate, Writes};
use crate::failure;
use crate::hedge::Hedges;
use crate::marks::{self, Pending};
use crate::members::Named;
use crate::metrics::{Kind, Metrics};
use crate::options::Options;
use crate::owners::Owners;
use crate::server::Server;
use crate::statements::{Profiles, Statements};
use crate::unsettled::Unsettled;

/// See the module's text.
#[derive(Debug)]
pub struct Scylla {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) session: Arc<Session>,
    pub(crate) statements: Statements,
    /// For appends.
    pub(crate) once: ExecutionProfileHandle,
    pub(crate) metrics: Metrics,
    hedges: Hedges,
    pub(crate) writes: Arc<Writes>,
    pub(crate) write_gate: Gate,
    pub(crate) read_gate: Gate,
    pub(crate) unsettled: Unsettled,
    pub(crate) marks: Pending,
    pub(crate) owners: Owners,
    pub(crate) named: Named,
    pub(crate) closed: AtomicBool,
    pub(crate) options: Options,
    runtime: Handle,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Scylla {
    pub(crate) fn new(server: Server, statements: Statements, profiles: &Profiles) -> Self {
        let Server { session, options, .. } = server;
        let metrics = Metrics::new();
        // Writes wait as long as they are accepted, so this gate turns nobody away.
        let write_gate = Gate::new(
            options.writes_in_flight,
            usize::MAX,
            metrics.writes_in_flight.clone(),
            metrics.refused_writes.clone(),
        );
        let read_gate = Gate::new(
            options.reads_in_flight,
            options.reads_waiting_max,
            metrics.reads_in_flight.clone(),
            metrics.refused_reads.clone(),
        );
        let inner = Arc::new(Inner {
            session,
            statements,
            once: profiles.once.clone(),
            writes: Arc::new(Writes::new(options.writes_max, options.write_bytes_max)),
            write_gate,
            read_gate,
            unsettled: Unsettled::default(),
            marks: Pending::new(options.marks_max),
            owners: Owners::default(),
            named: Named::default(),
            hedges: profiles.hedges.clone(),
            closed: AtomicBool::new(false),
            metrics,
            options,
            runtime: Handle::current(),
        });
        inner.runtime.spawn(marks::run(Arc::downgrade(&inner)));
        Self { inner }
    }

    /// Refuses what comes from now on, and writes the marks that wait; what is under way goes on to its answer.
    pub async fn close(&self) {
        self.inner.closed.store(true, Ordering::Release);
        marks::flush(&self.inner).await;
    }

    /// Asks on the store's own runtime.
    fn ask<T, F>(&self, question: impl FnOnce(Arc<Inner>) -> F) -> BoxFuture<'static, Result<T, Error>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        if self.inner.closed.load(Ordering::Acquire) {
            return Box::pin(std::future::ready(Err(Error::Closed)));
        }
        let task = self.inner.runtime.spawn(question(Arc::clone(&self.inner)));
        Box::pin(async move {
            task.await.unwrap_or_else(|error| {
                if error.is_panic() {
                    std::panic::resume_unwind(error.into_panic());
                }
                Err(Error::Closed) // the runtime is going down
            })
        })
    }

    fn ask_with_texts<T, F>(
        &self,
        texts: &[Option<&String>],
        question: impl FnOnce(Arc<Inner>) -> F,
    ) -> BoxFuture<'static, Result<T, Error>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        if texts.iter().flatten().any(|text| text.len() > TEXT_MAX) {
            return Box::pin(std::future::ready(Err(Error::Refused("a text is too long"))));
        }
        self.ask(question)
    }
}

impl Inner {
    /// One statement, measured.
    pub(crate) async fn execute(
        &self,
        kind: Kind,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<QueryResult, ExecutionError> {
        let begun = Instant::now();
        let result = Box::pin(self.session.execute_unpaged(statement, values)).await;
        self.note(kind, begun, result.is_err());
        result
    }

    /// A request of this kind is over.
    pub(crate) fn note(&self, kind: Kind, begun: Instant, failed: bool) {
        let took = begun.elapsed();
        self.metrics.note(kind, took, failed);
        self.hedges.note(kind, took);
    }

    /// One batch, measured.
    pub(crate) async fn batch(
        &self,
        kind: Kind,
        batch: &Batch,
        values: impl BatchValues,
    ) -> Result<(), ExecutionError> {
        let begun = Instant::now();
        let result = Box::pin(self.session.batch(batch, values)).await;
        self.note(kind, begun, result.is_err());
        result.map(drop)
    }

    /// A write outside rooms.
    pub(crate) async fn put(
        &self,
        kind: Kind,
        what: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<(), Error> {
        let result = self.execute(kind, statement, values).await;
        result.map(drop).map_err(|error| failure::repeated_write_error(&error, what))
    }

    /// A read that waits its turn.
    pub(crate) async fn read(
        &self,
        what: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<QueryRowsResult, Error> {
        let _turn = self.read_gate.turn().await?;
        self.read_now(Kind::Read, what, statement, values).await
    }

    pub(crate) async fn read_now(
        &self,
        kind: Kind,
        what: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<QueryRowsResult, Error> {
        let answer =
            self.execute(kind, statement, values).await.map_err(|error| failure::read_error(&error, what))?;
        answer.into_rows_result().map_err(|error| Error::Corrupt(format!("{what}: {error}")))
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }
}

/// What cannot be read as what we wrote.
pub(crate) fn corrupt(what: &'static str) -> impl Fn(scylla::errors::RowsError) -> Error {
    move |error| Error::Corrupt(format!("{what}: {error}"))
}

pub(crate) fn corrupt_row(what: &'static str) -> impl Fn(scylla::deserialize::DeserializationError) -> Error {
    move |error| Error::Corrupt(format!("{what}: {error}"))
}

impl LogStore for Scylla {
    fn write(&self, group: Vec<RoomWrite>, done: &mpsc::Sender<Vec<Completion>>) {
        self.inner.write(group, done);
    }

    fn segments(&self, room: RoomId) -> BoxFuture<'static, Result<Vec<SegmentRecord>, Error>> {
        self.ask(move |inner| async move { inner.segments(&room).await })
    }

    fn said(&self, room: RoomId) -> BoxFuture<'static, Result<Option<Said>, Error>> {
        self.ask(move |inner| async move { inner.said(&room).await })
    }

    fn rows(
        &self,
        room: RoomId,
        spans: Vec<Span>,
        range: Range,
        limit: ReadLimit,
    ) -> BoxFuture<'static, Result<Page, Error>> {
        crate::rows::assert_ascending(&room, &spans);
        self.ask(move |inner| async move { inner.rows(&room, &spans, range, limit).await })
    }

    fn room_row(&self, room: RoomId) -> BoxFuture<'static, Result<Option<RoomRow>, Error>> {
        self.ask(move |inner| async move { inner.room_row(room).await })
    }

    fn member(
        &self,
        room: RoomId,
        user: UserId,
    ) -> BoxFuture<'static, Result<Option<(MemberRow, Marks)>, Error>> {
        self.ask(move |inner| async move { inner.member(&room, &user).await })
    }

    fn members(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<MemberPage, Error>> {
        self.ask(move |inner| async move { inner.members(&room, after, limit).await })
    }

    fn user_rooms(
        &self,
        user: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<RoomPage, Error>> {
        self.ask(move |inner| async move { inner.user_rooms(user, after, limit).await })
    }

    fn put_marks(&self, group: Vec<(RoomId, UserId, Marks)>) {
        self.inner.put_marks(group);
    }

    fn write_fence(&self, incarnation: Incarnation) -> BoxFuture<'static, Result<(), Error>> {
        self.ask(move |inner| async move { inner.write_fence(incarnation).await })
    }

    /// Begun when this returns, and never made to wait for anything else.
    fn is_fenced(&self, incarnation: Incarnation) -> Answered<Result<bool, Error>> {
        Answered::Later(self.ask(move |inner| async move { inner.is_fenced(incarnation).await }))
    }

    fn register_incarnation(
        &self,
        incarnation: Incarnation,
        node: String,
    ) -> BoxFuture<'static, Result<(), Error>> {
        let ask =
            |node: String| move |inner: Arc<Inner>| async move { inner.register(incarnation, &node).await };
        self.ask_with_texts(&[Some(&node)], ask(node.clone()))
    }

    fn incarnations(&self) -> BoxFuture<'static, Result<Vec<(Incarnation, String)>, Error>> {
        self.ask(|inner| async move { inner.incarnations().await })
    }

    fn put_slot_owner(
        &self,
        slot: SlotId,
        owner: SlotOwner,
        closes: Option<(Epoch, Incarnation)>,
    ) -> BoxFuture<'static, Result<(), Error>> {
        self.ask(move |inner| inner.put_slot_owner((slot, owner, closes)))
    }

    fn slot_owners(&self, slot: SlotId) -> BoxFuture<'static, Result<Vec<SlotOwner>, Error>> {
        self.ask(move |inner| inner.slot_owners(slot))
    }
}

impl Accounts for Scylla {
    fn create_user(&self, row: UserRow) -> BoxFuture<'static, Result<Creation, Error>> {
        let ask = |row: UserRow| move |inner: Arc<Inner>| async move { inner.create_user(&row).await };
        self.ask_with_texts(&row.texts(), ask(row.clone()))
    }

    fn user_by_username(&self, username: &str) -> BoxFuture<'static, Result<Option<UserRow>, Error>> {
        let username = username.to_owned();
        self.ask(move |inner| async move { inner.user_by_username(&username).await })
    }

    fn user(&self, user: &UserId) -> BoxFuture<'static, Result<Option<UserRow>, Error>> {
        let user = user.clone();
        self.ask(move |inner| async move { inner.user(&user).await })
    }

    fn put_user(&self, row: UserRow) -> BoxFuture<'static, Result<(), Error>> {
        let ask = |row: UserRow| move |inner: Arc<Inner>| async move { inner.put_user(&row).await };
        self.ask_with_texts(&row.texts(), ask(row.clone()))
    }

    fn put_login(&self, row: LoginRow) -> BoxFuture<'static, Result<(), Error>> {
        let ask = |row: LoginRow| move |inner: Arc<Inner>| async move { inner.put_login(&row).await };
        self.ask_with_texts(&[Some(&row.login)], ask(row.clone()))
    }

    fn login(&self, login: &str) -> BoxFuture<'static, Result<Option<LoginRow>, Error>> {
        let login = login.to_owned();
        self.ask(move |inner| async move { inner.login(&login).await })
    }

    fn end_login(&self, login: &str) -> BoxFuture<'static, Result<(), Error>> {
        let login = login.to_owned();
        self.ask(move |inner| async move { inner.end_login(&login).await })
    }

    fn end_all_logins(&self, user: &UserId) -> BoxFuture<'static, Result<(), Error>> {
        let user = user.clone();
        self.ask(move |inner| async move { inner.end_all_logins(&user).await })
    }

    fn sweep_logins(&self, now: UnixMs) -> BoxFuture<'static, Result<usize, Error>> {
        self.ask(move |inner| async move { inner.sweep_logins(now).await })
    }
}
