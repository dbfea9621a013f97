//! What the barrier costs: the same sends with it, without it, and with a lightweight transaction for each append instead.
//!
//! Owns: three owners of rooms in this process, each with rooms of its own, over one store of real CQL servers. They differ
//! in what their store answers: `barrier` is the store as it is; `without` answers each fence read at once and asks nobody;
//! `lwt` does that too, and makes each append a conditional batch, as a log that needs no fence would.
//! Always holds: one owner is under load at a time, in rounds of another order each, so that all meet the same machine; a
//! send counts from the moment it was due until the owner says that it is stored.
//! Does not: run gateways and sockets, which are the same for all three; serve anybody: an owner without a barrier may say
//! what is not so, and exists here alone.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use banyan_proto::id::{Bucket, Epoch, Incarnation, Origin, RoomId, SegmentId, SlotId, UserId};
use banyan_proto::link::{
    Answer, FromShard, LinkId, Person, RoomCall, RoomCommand, Ticket, ToShard, ToShardBatch,
};
use banyan_proto::v1;
use banyan_shard::{End, Handle};
use banyan_storage::log_store::{Answered, RoomWrite, Said, SegmentRecord, SlotOwner, Span, Write};
use banyan_storage::outcome::Completion;
use banyan_storage::{
    BoxFuture, Derived, Error, LogStore, Marks, MemberPage, MemberRow, Outcome, Page, Range, ReadLimit,
    RoomPage, RoomRow, Row,
};
use banyan_storage_scylla::schema::Replication;
use banyan_storage_scylla::{Scylla, Server};
use banyan_test_servers::cassandra::{self, Cassandra, CommitLog};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::{Consistency, SerialConsistency, Statement};
use scylla::value::MaybeUnset;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::gauges::processor_seconds;
use super::meter::percentile;
use super::{KEYSPACE, Say};
use crate::random::Random;

/// An answer that does not come within it ends the measurement.
const PATIENCE: Duration = Duration::from_secs(20);
/// As the store's own transactions have it.
const LWT_TIMEOUT: Duration = Duration::from_secs(5);
/// A message, about what people write.
const TEXT_BYTES: usize = 160;
/// Batches that an owner may have said and we have not read.
const LINK_BATCHES: usize = 1_024;

/// How it is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// Servers of the store, and copies of each row.
    pub cql: u8,
    pub rounds: usize,
    /// Of each of the two loads, for each owner in each round.
    pub length: Duration,
    /// Not counted, before each.
    pub warm_up: Duration,
    /// Sends under way at once in the closed loop, each in a room of its own.
    pub senders: usize,
    /// The other load, over all rooms.
    pub rate: f64,
    pub rooms: usize,
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    Barrier,
    Without,
    Lwt,
}

impl Variant {
    const ALL: [Self; 3] = [Self::Barrier, Self::Without, Self::Lwt];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Barrier => "barrier",
            Self::Without => "without",
            Self::Lwt => "lwt",
        }
    }
}

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Cost {
    pub cql: u8,
    pub replication: u8,
    pub commit_log: &'static str,
    pub rounds: usize,
    pub senders: usize,
    pub rooms: usize,
    pub text_bytes: usize,
    pub rate: f64,
    pub variants: BTreeMap<Variant, Figures>,
}

/// Of one owner.
#[derive(Debug, Default, Serialize)]
pub struct Figures {
    /// As fast as so many senders go.
    pub closed: Load,
    /// At the fixed rate.
    pub paced: Load,
}

/// Under one load, over all rounds.
#[derive(Debug, Default, Serialize)]
pub struct Load {
    pub acked: u64,
    pub seconds: f64,
    pub sends_per_s: f64,
    /// Of each round.
    pub sends_per_s_of: Vec<f64>,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// Batches that the store was given.
    pub appends: u64,
    /// Fence reads that the owner began, whoever answered them.
    pub fence_reads: u64,
    /// Of one processor, in percent.
    pub processor_percent: BTreeMap<String, f64>,
    #[serde(skip)]
    took_ms: Vec<f64>,
    #[serde(skip)]
    processor_s: BTreeMap<String, f64>,
}

impl Load {
    fn add(&mut self, mut other: Self) {
        self.acked += other.acked;
        self.seconds += other.seconds;
        self.sends_per_s_of.push(other.acked as f64 / other.seconds);
        self.appends += other.appends;
        self.fence_reads += other.fence_reads;
        self.took_ms.append(&mut other.took_ms);
        for (name, used) in other.processor_s {
            *self.processor_s.entry(name).or_default() += used;
        }
    }

    fn sum_up(&mut self) {
        self.took_ms.sort_by(f64::total_cmp);
        self.sends_per_s = self.acked as f64 / self.seconds;
        [self.p50_ms, self.p99_ms, self.max_ms] =
            [50.0, 99.0, 100.0].map(|percent| percentile(&self.took_ms, percent));
        let share = |(name, used): (&String, &f64)| (name.clone(), used / self.seconds * 100.0);
        self.processor_percent = self.processor_s.iter().map(share).collect();
    }
}

/// Starts the servers and measures.
pub async fn measure(options: &Options, say: &Say) -> anyhow::Result<Cost> {
    ensure!(options.senders > 0 && options.senders <= options.rooms, "each sender needs a room of its own");
    ensure!(options.rounds > 0, "at least one round");
    say("starting: CQL store");
    let mut servers =
        cassandra::Builder::new().nodes(options.cql).commit_log(CommitLog::Group).start().await?;
    say("starting: schema");
    let store = open(&servers, options.cql).await?;
    let mut random = Random::new(options.seed);
    let mut owners = Vec::new();
    for variant in Variant::ALL {
        say(&format!("starting: the owner of the rooms of `{}`", variant.name()));
        owners.push(Owner::start(variant, &store, &servers, options, &mut random).await?);
    }
    let mut processes: Vec<(String, u32)> = vec![("owner and clients".to_owned(), std::process::id())];
    for number in 0..servers.nodes() {
        let id = servers.node(number).id().context("a server of the store has ended")?;
        processes.push((format!("cql-{number}"), id));
    }
    let mut variants = BTreeMap::<Variant, Figures>::new();
    for round in 0..options.rounds {
        for turn in 0..owners.len() {
            let at = (round + turn) % owners.len();
            let owner = &mut owners[at];
            let name = owner.store.variant.name();
            let closed = owner.load(options, None, &processes).await.with_context(|| name)?;
            let paced = owner.load(options, Some(options.rate), &processes).await.with_context(|| name)?;
            let rate = closed.acked as f64 / closed.seconds;
            say(&format!("round {}: {name:<8} {rate:>6.0} sends/s in the closed loop", round + 1));
            let figures = variants.entry(owner.store.variant).or_default();
            figures.closed.add(closed);
            figures.paced.add(paced);
        }
    }
    for owner in owners {
        owner.end().await?;
    }
    store.close().await;
    for figures in variants.values_mut() {
        figures.closed.sum_up();
        figures.paced.sum_up();
    }
    Ok(Cost {
        cql: options.cql,
        replication: options.cql,
        commit_log: "group",
        rounds: options.rounds,
        senders: options.senders,
        rooms: options.rooms,
        text_bytes: TEXT_BYTES,
        rate: options.rate,
        variants,
    })
}

/// A table for people.
pub fn table(cost: &Cost) -> String {
    let mut text = format!(
        "{} CQL servers, RF {}, commit log {}, {} rounds; closed loop: {} senders, each in its own room; paced: {} sends/s over {} \
         rooms\n\n{:<8} {:<7} {:>8} {:>13} {:>9} {:>9} {:>9} {:>10}  {}\n",
        cost.cql,
        cost.replication,
        cost.commit_log,
        cost.rounds,
        cost.senders,
        cost.rate,
        cost.rooms,
        "VARIANT",
        "LOAD",
        "SENDS/S",
        "ROUNDS",
        "ACK p50",
        "p99",
        "max",
        "FENCE/ACK",
        "CPU OF A CORE"
    );
    for (load, of) in [("closed", true), ("paced", false)] {
        for (variant, figures) in &cost.variants {
            let row = if of { &figures.closed } else { &figures.paced };
            let slowest = row.sends_per_s_of.iter().copied().fold(f64::MAX, f64::min);
            let fastest = row.sends_per_s_of.iter().copied().fold(0.0, f64::max);
            let shares: Vec<String> =
                row.processor_percent.iter().map(|(name, share)| format!("{name} {share:.0} %")).collect();
            // A string takes all.
            let _ok = writeln!(
                text,
                "{:<8} {load:<7} {:>8.0} {:>13} {:>6.1} ms {:>6.1} ms {:>6.1} ms {:>10.2}  {}",
                variant.name(),
                row.sends_per_s,
                format!("{slowest:.0}–{fastest:.0}"),
                row.p50_ms,
                row.p99_ms,
                row.max_ms,
                row.fence_reads as f64 / row.acked.max(1) as f64,
                shares.join(", ")
            );
        }
    }
    text
}

async fn open(servers: &Cassandra, factor: u8) -> anyhow::Result<Arc<Scylla>> {
    let options = banyan_storage_scylla::Options {
        start_deadline: Some(PATIENCE),
        ..banyan_storage_scylla::Options::new(servers.contact_points(), KEYSPACE)
    };
    let server = Server::connect(options, |_| {}).await?;
    let replication = Replication { data_centre: servers.datacenter().to_owned(), factor: u32::from(factor) };
    server.apply_schema(&replication).await?;
    Ok(Arc::new(server.open(|_| {}).await?))
}

// ---------------------------------------------------------------- an owner and its clients

/// One worker of a shard, spoken to as a gateway does.
struct Owner {
    store: Arc<Measured>,
    handle: Handle,
    said: mpsc::Receiver<Vec<FromShard>>,
    drain: CancellationToken,
    worker: JoinHandle<End>,
    rooms: Vec<RoomId>,
    caller: Person,
    next: u64,
    text: String,
}

/// A send that is not answered yet.
struct Open {
    due: Instant,
    sender: usize,
}

impl Owner {
    async fn start(
        variant: Variant,
        store: &Arc<Scylla>,
        servers: &Cassandra,
        options: &Options,
        random: &mut Random,
    ) -> anyhow::Result<Self> {
        let lwt = match variant {
            Variant::Lwt => Some(Arc::new(Transactions::open(servers).await?)),
            Variant::Barrier | Variant::Without => None,
        };
        let store = Arc::new(Measured {
            inner: Arc::clone(store),
            variant,
            lwt,
            appends: AtomicU64::new(0),
            fence_reads: AtomicU64::new(0),
        });
        let incarnation = Incarnation(u128::from(random.next_u64()) << 64 | u128::from(random.next_u64()));
        store.register_incarnation(incarnation, format!("cost-{}", variant.name())).await?;
        let of_shard = banyan_shard::Options {
            incarnation,
            all_slots: Some(Epoch(1)),
            ..banyan_shard::Options::default()
        };
        let (sender, said) = mpsc::channel(LINK_BATCHES);
        let log: Arc<dyn LogStore> = Arc::<Measured>::clone(&store);
        let (handle, mut workers) = banyan_shard::build(of_shard, log, vec![sender]);
        let drain = CancellationToken::new();
        let worker = workers.pop().context("a shard without a worker")?;
        let worker = tokio::spawn(worker.run(drain.clone()));
        let caller = Person { user: UserId::parse("cost")?, name: "Cost".into() };
        let rooms = (0..options.rooms).map(|number| RoomId::parse(&format!("{}-{number}", variant.name())));
        let rooms = rooms.collect::<Result<Vec<_>, _>>()?;
        let text = "x".repeat(TEXT_BYTES);
        let mut owner = Self { store, handle, said, drain, worker, rooms, caller, next: 0, text };
        for number in 0..owner.rooms.len() {
            let create = RoomCommand::Create {
                kind: v1::RoomKind::Group,
                name: "cost".to_owned(),
                public: false,
                members: Vec::new(),
            };
            let asked = owner.ask(number, create)?;
            loop {
                let answers = owner.answers().await?;
                if let Some((_, answer)) = answers.into_iter().find(|(ticket, _)| *ticket == asked) {
                    if let Answer::Error(error) = answer {
                        bail!("a room cannot be made: {error:?}");
                    }
                    break;
                }
            }
        }
        Ok(owner)
    }

    fn ask(&mut self, room: usize, command: RoomCommand) -> anyhow::Result<Ticket> {
        self.next += 1;
        let ticket = Ticket(self.next);
        let (room, caller) = (self.rooms[room].clone(), self.caller.clone());
        let worker = self.handle.worker_of(room.as_str());
        let call = Box::new(RoomCall { ticket, caller, origin: Origin(1), command });
        let batch = ToShardBatch { link: LinkId(0), messages: vec![ToShard::Room { room, call }] };
        ensure!(self.handle.try_send(worker, batch).is_ok(), "the owner takes nothing more");
        Ok(ticket)
    }

    async fn answers(&mut self) -> anyhow::Result<Vec<(Ticket, Answer)>> {
        let batch = timeout(PATIENCE, self.said.recv()).await.context("the owner says nothing")?;
        let answer = |said| match said {
            FromShard::Answer { ticket, answer, .. } => Some((ticket, answer)),
            _ => None,
        };
        Ok(batch.context("the owner has ended")?.into_iter().filter_map(answer).collect())
    }

    fn send(&mut self, room: usize) -> anyhow::Result<Ticket> {
        let send = v1::Send {
            client_msg_id: format!("m{}", self.next),
            text: Some(self.text.clone()),
            ..v1::Send::default()
        };
        self.ask(room, RoomCommand::Send(send))
    }

    /// `rate`: so many sends a second, whatever becomes of them; `None`: the closed loop.
    async fn load(
        &mut self,
        options: &Options,
        rate: Option<f64>,
        processes: &[(String, u32)],
    ) -> anyhow::Result<Load> {
        let begin = Instant::now() + options.warm_up;
        let end = begin + options.length;
        let used = |processes: &[(String, u32)]| -> Vec<f64> {
            processes.iter().map(|(_, id)| processor_seconds(*id).unwrap_or_default()).collect()
        };
        let mut open = HashMap::<Ticket, Open>::new();
        let (mut result, mut counted_from) = (Load::default(), None);
        let mut due = Instant::now();
        let mut turn = 0;
        if rate.is_none() {
            for sender in 0..options.senders {
                let due = Instant::now();
                open.insert(self.send(sender)?, Open { due, sender });
            }
        }
        loop {
            let now = Instant::now();
            if now >= begin && counted_from.is_none() {
                counted_from = Some((now, used(processes), self.store.counts()));
            }
            if now >= end {
                break;
            }
            if let Some(rate) = rate {
                while due <= now {
                    turn = (turn + 1) % self.rooms.len();
                    open.insert(self.send(turn)?, Open { due, sender: turn });
                    due += Duration::from_secs_f64(1.0 / rate);
                }
            }
            let wake = if rate.is_some() { due.min(end) } else { end };
            let answers = tokio::select! {
                biased;
                answers = self.answers() => answers?,
                () = sleep_until(wake) => continue,
            };
            for (ticket, answer) in answers {
                let Some(Open { due, sender }) = open.remove(&ticket) else { continue };
                ensure!(matches!(answer, Answer::Sent { .. }), "a send was answered with {answer:?}");
                if due >= begin {
                    result.acked += 1;
                    result.took_ms.push(due.elapsed().as_secs_f64() * 1e3);
                }
                if rate.is_none() {
                    let due = Instant::now();
                    open.insert(self.send(sender)?, Open { due, sender });
                }
            }
        }
        let (from, before, counts) = counted_from.context("the load ended before it began")?;
        result.seconds = from.elapsed().as_secs_f64();
        for ((name, _), (before, after)) in processes.iter().zip(before.iter().zip(used(processes))) {
            result.processor_s.insert(name.clone(), after - before);
        }
        let now = self.store.counts();
        (result.appends, result.fence_reads) = (now.0 - counts.0, now.1 - counts.1);
        while !open.is_empty() {
            for (ticket, answer) in self.answers().await? {
                ensure!(matches!(answer, Answer::Sent { .. }), "a send was answered with {answer:?}");
                // At a fixed rate the last ones count as well: the slow ones would be left out.
                if let Some(Open { due, .. }) = open.remove(&ticket)
                    && rate.is_some()
                    && due >= begin
                {
                    result.acked += 1;
                    result.took_ms.push(due.elapsed().as_secs_f64() * 1e3);
                }
            }
        }
        Ok(result)
    }

    async fn end(self) -> anyhow::Result<()> {
        self.drain.cancel();
        let end = timeout(PATIENCE, self.worker).await.context("the owner does not end")??;
        ensure!(matches!(end, End::Drained), "the owner ended by itself: {end:?}");
        Ok(())
    }
}

// ---------------------------------------------------------------- what differs

/// The store as one variant has it.
#[derive(Debug)]
struct Measured {
    inner: Arc<Scylla>,
    variant: Variant,
    lwt: Option<Arc<Transactions>>,
    appends: AtomicU64,
    fence_reads: AtomicU64,
}

impl Measured {
    /// Appends and fence reads so far.
    fn counts(&self) -> (u64, u64) {
        (self.appends.load(Ordering::Relaxed), self.fence_reads.load(Ordering::Relaxed))
    }
}

impl LogStore for Measured {
    fn write(&self, group: Vec<RoomWrite>, done: &mpsc::Sender<Vec<Completion>>) {
        let (rows, others): (Vec<_>, Vec<_>) =
            group.into_iter().partition(|write| matches!(write.write, Write::Rows { .. }));
        self.appends.fetch_add(rows.len() as u64, Ordering::Relaxed);
        let Some(lwt) = &self.lwt else {
            return self.inner.write(others.into_iter().chain(rows).collect(), done);
        };
        if !others.is_empty() {
            self.inner.write(others, done);
        }
        for RoomWrite { ticket, room, write } in rows {
            let Write::Rows { segment, bucket, rows } = write else { continue };
            let (lwt, done) = (Arc::clone(lwt), done.clone());
            tokio::spawn(async move {
                let outcome = match lwt.append(&room, segment, bucket, &rows).await {
                    // One that was not applied has been stored by an earlier try: nobody else has this segment.
                    Ok(()) => Outcome::Done,
                    Err(_) => Outcome::Unknown,
                };
                done.send(vec![Completion { ticket, outcome }]).await.ok();
            });
        }
    }

    fn is_fenced(&self, incarnation: Incarnation) -> Answered<Result<bool, Error>> {
        self.fence_reads.fetch_add(1, Ordering::Relaxed);
        match self.variant {
            Variant::Barrier => self.inner.is_fenced(incarnation),
            Variant::Without | Variant::Lwt => Answered::Now(Ok(false)),
        }
    }

    fn segments(&self, room: RoomId) -> BoxFuture<'static, Result<Vec<SegmentRecord>, Error>> {
        self.inner.segments(room)
    }

    fn said(&self, room: RoomId) -> BoxFuture<'static, Result<Option<Said>, Error>> {
        self.inner.said(room)
    }

    fn rows(
        &self,
        room: RoomId,
        spans: Vec<Span>,
        range: Range,
        limit: ReadLimit,
    ) -> BoxFuture<'static, Result<Page, Error>> {
        self.inner.rows(room, spans, range, limit)
    }

    fn room_row(&self, room: RoomId) -> BoxFuture<'static, Result<Option<RoomRow>, Error>> {
        self.inner.room_row(room)
    }

    fn member(
        &self,
        room: RoomId,
        user: UserId,
    ) -> BoxFuture<'static, Result<Option<(MemberRow, Marks)>, Error>> {
        self.inner.member(room, user)
    }

    fn members(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<MemberPage, Error>> {
        self.inner.members(room, after, limit)
    }

    fn user_rooms(
        &self,
        user: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<RoomPage, Error>> {
        self.inner.user_rooms(user, after, limit)
    }

    fn put_marks(&self, group: Vec<(RoomId, UserId, Marks)>) {
        self.inner.put_marks(group);
    }

    fn write_fence(&self, incarnation: Incarnation) -> BoxFuture<'static, Result<(), Error>> {
        self.inner.write_fence(incarnation)
    }

    fn register_incarnation(
        &self,
        incarnation: Incarnation,
        node: String,
    ) -> BoxFuture<'static, Result<(), Error>> {
        self.inner.register_incarnation(incarnation, node)
    }

    fn incarnations(&self) -> BoxFuture<'static, Result<Vec<(Incarnation, String)>, Error>> {
        self.inner.incarnations()
    }

    fn put_slot_owner(
        &self,
        slot: SlotId,
        owner: SlotOwner,
        closes: Option<(Epoch, Incarnation)>,
    ) -> BoxFuture<'static, Result<(), Error>> {
        self.inner.put_slot_owner(slot, owner, closes)
    }

    fn slot_owners(&self, slot: SlotId) -> BoxFuture<'static, Result<Vec<SlotOwner>, Error>> {
        self.inner.slot_owners(slot)
    }
}

/// Appends as transactions: one conditional batch of one partition, on the same table with the same columns.
struct Transactions {
    session: Session,
    /// The condition is on the first row: one is enough to order two owners.
    first: PreparedStatement,
    further: PreparedStatement,
}

impl fmt::Debug for Transactions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transactions").finish_non_exhaustive()
    }
}

impl Transactions {
    async fn open(servers: &Cassandra) -> anyhow::Result<Self> {
        let session = SessionBuilder::new().known_nodes(servers.contact_points()).build().await?;
        let text = |condition: &str| {
            format!(
                "INSERT INTO {KEYSPACE}.messages (chat_id, bucket, epoch, part, seq, batch_first, n, origin, event, derived) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?){condition}"
            )
        };
        let prepare = async |condition: &str| {
            let mut statement = Statement::new(text(condition));
            statement.set_consistency(Consistency::LocalQuorum);
            statement.set_serial_consistency(Some(SerialConsistency::LocalSerial));
            statement.set_request_timeout(Some(LWT_TIMEOUT));
            Box::pin(session.prepare(statement)).await
        };
        let (first, further) = (prepare(" IF NOT EXISTS").await?, prepare("").await?);
        Ok(Self { session, first, further })
    }

    async fn append(
        &self,
        room: &RoomId,
        segment: SegmentId,
        bucket: Bucket,
        rows: &[Row],
    ) -> anyhow::Result<()> {
        let derived: Vec<_> = rows.iter().map(|row| row.derived.as_deref().map(Derived::encode)).collect();
        let values = rows.iter().zip(&derived).map(|(row, derived)| {
            let derived = derived.as_deref().map_or(MaybeUnset::Unset, MaybeUnset::Set);
            let event: &[u8] = &row.event;
            anyhow::Ok((
                room.as_str(),
                i64::from(bucket.0),
                i64::try_from(segment.epoch.0)?,
                i64::try_from(segment.part.0)?,
                i64::try_from(row.seq.0)?,
                i64::try_from(row.batch_first.0)?,
                i64::try_from(row.n)?,
                row.origin.0.cast_signed(),
                event,
                derived,
            ))
        });
        let values = values.collect::<anyhow::Result<Vec<_>>>()?;
        if let [only] = &values[..] {
            Box::pin(self.session.execute_unpaged(&self.first, only)).await?;
            return Ok(());
        }
        let mut batch = Batch::new(BatchType::Unlogged);
        batch.set_consistency(Consistency::LocalQuorum);
        batch.set_serial_consistency(Some(SerialConsistency::LocalSerial));
        batch.set_request_timeout(Some(LWT_TIMEOUT));
        batch.append_statement(self.first.clone());
        for _ in 1..values.len() {
            batch.append_statement(self.further.clone());
        }
        Box::pin(self.session.batch(&batch, values)).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_add_up() {
        let round = |acked, took_ms: &[f64], used| Load {
            acked,
            seconds: 2.0,
            fence_reads: 3,
            took_ms: took_ms.to_vec(),
            processor_s: [("cql-0".to_owned(), used)].into(),
            ..Load::default()
        };
        let mut load = Load::default();
        load.add(round(10, &[5.0, 1.0], 1.0));
        load.add(round(30, &[9.0], 2.0));
        load.sum_up();
        assert_eq!((load.acked, load.sends_per_s, load.fence_reads), (40, 10.0, 6));
        assert_eq!((load.p50_ms, load.max_ms), (5.0, 9.0));
        assert_eq!(load.sends_per_s_of, [5.0, 15.0]);
        assert_eq!(load.processor_percent["cql-0"], 75.0);
    }
}
