//! Writes to rooms, segment records, and what owners leave about themselves.
//!
//! Always holds: a batch of rows is one unlogged batch of one partition, tried once; each ticket is answered once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use banyan_proto::id::{Bucket, Epoch, Incarnation, LogId, Part, RoomId, SegmentId, Seq};
use banyan_storage::log_store::{RoomWrite, SEGMENTS_MAX, Said, SegmentRecord, Write};
use banyan_storage::outcome::Completion;
use banyan_storage::{Error, NotDone, Outcome, Row};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use scylla::statement::batch::{Batch, BatchType};
use scylla::value::MaybeUnset;
use tokio::sync::mpsc;

use crate::admission::Accepted;
use crate::convert::{NONE, bits, epoch_part, id, incarnation, incarnation_of, number, ordered};
use crate::failure::{outcome, read_error};
use crate::metrics::Kind;
use crate::store::{Inner, corrupt, corrupt_row};

/// Completions in one message at most.
const MESSAGE_MAX: usize = 1_024;

/// Incarnations in one answer of the servers.
const INCARNATIONS_PAGE: i32 = 5_000;

type Sink = mpsc::Sender<Vec<Completion>>;

/// A bucket is a number without a sign in our tables.
fn bucket_of(bucket: Bucket) -> i64 {
    i64::from(bucket.0)
}

impl Inner {
    pub(crate) fn write(self: &Arc<Self>, group: Vec<RoomWrite>, done: &Sink) {
        if group.is_empty() {
            return;
        }
        let (mut taken, mut refused) = (Vec::with_capacity(group.len()), Vec::new());
        for write in group {
            write.assert_sound();
            match self.accept(&write) {
                Ok(accepted) => taken.push((write, accepted)),
                Err(why) => {
                    let outcome = self.said_of(&write, Outcome::NotDone(why));
                    refused.push(Completion { ticket: write.ticket, outcome });
                }
            }
        }
        self.note_writes();
        self.spawn(Arc::clone(self).carry_out_all(taken, refused, done.clone()));
    }

    fn accept(&self, write: &RoomWrite) -> Result<Accepted, NotDone> {
        if self.closed.load(Ordering::Acquire) {
            return Err(NotDone::Closed);
        }
        if write.is_too_large() {
            return Err(NotDone::TooLarge);
        }
        self.writes.accept(write.bytes()).ok_or_else(|| {
            self.metrics.refused_writes.increment(1);
            NotDone::Overloaded
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges")]
    fn note_writes(&self) {
        self.metrics.writes.set(self.writes.count() as f64);
        self.metrics.write_bytes.set(self.writes.bytes() as f64);
    }

    fn said_of(&self, write: &RoomWrite, outcome: Outcome) -> Outcome {
        let said = self.unsettled.settle(write, outcome);
        match said {
            Outcome::Done => self.metrics.done.increment(1),
            Outcome::NotDone(_) => self.metrics.not_done.increment(1),
            Outcome::Unknown => self.metrics.unknown.increment(1),
        }
        said
    }

    /// One message for all that is there when the first is, so that a busy worker is woken seldom and an idle one soon. A full sink is
    /// waited for; a gone one is not.
    async fn carry_out_all(
        self: Arc<Self>,
        taken: Vec<(RoomWrite, Accepted)>,
        refused: Vec<Completion>,
        done: Sink,
    ) {
        let mut receiver_gone = !refused.is_empty() && done.send(refused).await.is_err();
        let one = |(write, accepted): (RoomWrite, Accepted)| {
            let this = &self;
            async move {
                let outcome = this.carry_out(&write).await;
                let outcome = this.said_of(&write, outcome);
                drop(accepted);
                Completion { ticket: write.ticket, outcome }
            }
        };
        let mut ready = taken.into_iter().map(one).collect::<FuturesUnordered<_>>().ready_chunks(MESSAGE_MAX);
        while let Some(completions) = ready.next().await {
            self.note_writes();
            if !receiver_gone {
                receiver_gone = done.send(completions).await.is_err();
            }
        }
    }

    async fn carry_out(&self, write: &RoomWrite) -> Outcome {
        match &write.write {
            Write::Rows { segment, bucket, rows } => self.append(&write.room, *segment, *bucket, rows).await,
            Write::Record(record) => self.put_record(&write.room, record).await,
            Write::Derived(derived) => self.put_derived(&write.room, derived).await,
            Write::Said(said) => self.put_said(&write.room, *said).await,
        }
    }

    async fn append(&self, room: &RoomId, segment: SegmentId, bucket: Bucket, rows: &[Row]) -> Outcome {
        let (room, bucket, (epoch, part)) = (room.as_str(), bucket_of(bucket), epoch_part(segment));
        let derived: Vec<_> =
            rows.iter().map(|row| row.derived.as_deref().map(banyan_storage::Derived::encode)).collect();
        let values: Vec<_> = rows
            .iter()
            .zip(&derived)
            .map(|(row, derived)| {
                let derived = derived.as_deref().map_or(MaybeUnset::Unset, MaybeUnset::Set);
                let (seq, batch_first) = (ordered(row.seq.0), ordered(row.batch_first.0));
                let event: &[u8] = &row.event;
                (
                    room,
                    bucket,
                    epoch,
                    part,
                    seq,
                    batch_first,
                    ordered(row.n),
                    bits(row.origin.0),
                    event,
                    derived,
                )
            })
            .collect();
        let Ok(_turn) = self.write_gate.turn().await else { return Outcome::NotDone(NotDone::Overloaded) };
        let put = &self.statements.put_row;
        let result = if let [only] = &values[..] {
            self.execute(Kind::Append, put, only).await.map(drop)
        } else {
            let mut batch = Batch::new(BatchType::Unlogged);
            batch.set_execution_profile_handle(Some(self.once.clone()));
            for _ in &values {
                batch.append_statement(put.clone());
            }
            self.batch(Kind::Append, &batch, values).await
        };
        outcome(result, "append")
    }

    async fn put_record(&self, room: &RoomId, record: &SegmentRecord) -> Outcome {
        let (epoch, part) = epoch_part(record.id);
        let prev = record.prev.map_or((NONE, NONE), epoch_part);
        let incarnation = incarnation(record.incarnation);
        let values = (
            room.as_str(),
            epoch,
            part,
            bucket_of(record.bucket),
            ordered(record.first_seq.0),
            ordered(record.n_before),
            prev.0,
            prev.1,
            &incarnation[..],
            bits(record.log.0),
        );
        let Ok(_turn) = self.write_gate.turn().await else { return Outcome::NotDone(NotDone::Overloaded) };
        let result = self.execute(Kind::Record, &self.statements.put_record, values).await;
        outcome(result.map(drop), "segment record")
    }

    async fn put_said(&self, room: &RoomId, said: Said) -> Outcome {
        let (epoch, part) = epoch_part(said.segment);
        let values = ((epoch, part, ordered(said.head.0), ordered(said.n)), room.as_str());
        let Ok(_turn) = self.write_gate.turn().await else { return Outcome::NotDone(NotDone::Overloaded) };
        let result = self.execute(Kind::Said, &self.statements.put_said, values).await;
        outcome(result.map(drop), "said")
    }

    pub(crate) async fn segments(&self, room: &RoomId) -> Result<Vec<SegmentRecord>, Error> {
        const WHAT: &str = "segments";
        // More than fit are few bytes each: one answer.
        let limit = i32::try_from(SEGMENTS_MAX + 1).unwrap_or(i32::MAX);
        let found = self.read(WHAT, &self.statements.records, (room.as_str(), limit)).await?;
        let rows = found.rows::<(i64, i64, i64, i64, i64, i64, i64, &[u8], i64)>().map_err(corrupt(WHAT))?;
        rows.map(|row| {
            let (epoch, part, bucket, first_seq, n_before, prev_epoch, prev_part, by, log) =
                row.map_err(corrupt_row(WHAT))?;
            let segment = |epoch, part| {
                Ok::<_, Error>(SegmentId {
                    epoch: Epoch(number(epoch, WHAT)?),
                    part: Part(number(part, WHAT)?),
                })
            };
            Ok(SegmentRecord {
                id: segment(epoch, part)?,
                bucket: Bucket(
                    u32::try_from(bucket).map_err(|_| Error::Corrupt(format!("{WHAT}: bucket {bucket}")))?,
                ),
                first_seq: Seq(number(first_seq, WHAT)?),
                n_before: number(n_before, WHAT)?,
                prev: if (prev_epoch, prev_part) == (NONE, NONE) {
                    None
                } else {
                    Some(segment(prev_epoch, prev_part)?)
                },
                incarnation: incarnation_of(by, WHAT)?,
                log: LogId(id(log)),
            })
        })
        .collect()
    }

    pub(crate) async fn said(&self, room: &RoomId) -> Result<Option<Said>, Error> {
        const WHAT: &str = "said";
        type Stored = Option<(i64, i64, i64, i64)>;
        let found = self.read(WHAT, &self.statements.said, (room.as_str(),)).await?;
        let row = found
            .maybe_first_row::<(Stored,)>()
            .map_err(|error| Error::Corrupt(format!("{WHAT}: {error}")))?;
        let Some((Some((epoch, part, head, n)),)) = row else { return Ok(None) };
        let segment = SegmentId { epoch: Epoch(number(epoch, WHAT)?), part: Part(number(part, WHAT)?) };
        Ok(Some(Said { segment, head: Seq(number(head, WHAT)?), n: number(n, WHAT)? }))
    }

    // ---------------------------------------------------------------- owners

    pub(crate) async fn write_fence(&self, fenced: Incarnation) -> Result<(), Error> {
        self.put(Kind::Owner, "fence", &self.statements.put_fence, (&incarnation(fenced)[..],)).await
    }

    /// No gate: whoever speaks waits for this, and there are at most a few at once.
    pub(crate) async fn is_fenced(&self, asked: Incarnation) -> Result<bool, Error> {
        let begun = tokio::time::Instant::now();
        let fence = &self.statements.fence;
        let answer = Box::pin(self.session.execute_unpaged(fence, (&incarnation(asked)[..],))).await;
        self.note(Kind::FenceRead, begun, answer.is_err());
        let answer = answer.map_err(|error| read_error(&error, "fence"))?;
        let rows = answer.into_rows_result().map_err(|error| Error::Corrupt(format!("fences: {error}")))?;
        Ok(rows.rows_num() > 0)
    }

    pub(crate) async fn register(&self, ours: Incarnation, node: &str) -> Result<(), Error> {
        self.put(Kind::Owner, "incarnation", &self.statements.put_incarnation, (&incarnation(ours)[..], node))
            .await
    }

    pub(crate) async fn incarnations(&self) -> Result<Vec<(Incarnation, String)>, Error> {
        const WHAT: &str = "incarnations";
        let mut all: Vec<(Incarnation, String)> = Vec::new();
        loop {
            let after = all.last().map(|(last, _)| incarnation(*last));
            let after: &[u8] = after.as_ref().map_or(&[], |after| after);
            let page = self.read(WHAT, &self.statements.incarnations, (after, INCARNATIONS_PAGE)).await?;
            for row in page.rows::<(&[u8], String)>().map_err(corrupt(WHAT))? {
                let (stored, node) = row.map_err(corrupt_row(WHAT))?;
                all.push((incarnation_of(stored, WHAT)?, node));
            }
            if page.rows_num() < INCARNATIONS_PAGE.unsigned_abs() as usize {
                return Ok(all);
            }
        }
    }
}
