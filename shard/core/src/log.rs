//! One room's log at its owner: opens it after somebody else, appends to it, begins new segments.
//!
//! Owns: the chain of segments, the head, and every write of the room's log and derived rows that is under way.
//! Always holds (DESIGN.md, section 5): nothing is appended or [`Action::Opened`] said before the last batch and the record
//! of its segment are rewritten and the own record is stored (rule 3); one batch is in flight, and is said again with the
//! same content until its outcome is known (4); a key never gets a second content (7); derived rows of a batch are written
//! when its rows are stored and a barrier begun after that has passed, at open again (10).
//! Does not: know members, ids of sends or links; say anything. What it reports may be said once the gate lets it pass.

mod append;
mod attempt;
mod chain;
mod open;
mod segment;
mod tail;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use banyan_proto::id::{Bucket, LogId, Part, SegmentId, Seq, Tenure};
use banyan_proto::plant::{self, Bug};
use banyan_storage::log_store::{Said, SegmentRecord, Span, Write};
use banyan_storage::{Derived, Page, Range, ReadLimit, Row, TAIL};
use banyan_storage::{NotDone, Outcome};
use smallvec::SmallVec;

use crate::room::{Now, earliest};

use attempt::{Attempt, Settled};

/// Reads of one open that found something missing before it counts as damage.
const REREADS_MAX: u8 = 8;
/// What a row takes in the store beside its event, about.
const ROW_OVERHEAD_BYTES: u64 = 64;

/// The bounds of a log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Limits {
    /// A new partition begins at least so often.
    pub window_ms: u64,
    /// A partition of the store takes about so much; ScyllaDB likes them below 100 MB.
    pub bucket_bytes: u64,
    /// First wait before a write of unknown outcome is repeated; doubled up to `settle_max_ms`.
    pub settle_first_ms: u32,
    pub settle_max_ms: u32,
    /// Newest rows that an open reads; more, if the last batch is larger.
    pub tail: ReadLimit,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            window_ms: 10 * 24 * 3_600 * 1_000,
            bucket_bytes: 50 << 20,
            settle_first_ms: 100,
            settle_max_ms: 2_000,
            tail: TAIL,
        }
    }
}

/// How a room is opened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Opening {
    Full,
    /// In full, and every earlier life of the room in this tenure ended when it was idle. If its newest segment is of this
    /// tenure, nobody has written since: it is gone on with, and nothing is written. So records grow in number with changes
    /// of owner, not with rooms that come to rest.
    Again,
    /// The room was open in full at an owner that drained and handed its slot over: nothing is rewritten (3c).
    HandedOver,
    /// The same, and this is what it knew (3a–c).
    Passed(Box<Handed>),
    /// To answer reads only, if the room was closed in good order; else in full (`again`: as in [`Opening::Again`]), from what
    /// has been read by then.
    ReadOnly {
        again: bool,
    },
}

/// What an owner that hands a slot over knows of the log of a room that it had open in full.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Handed {
    pub chain: Arc<[SegmentRecord]>,
    pub head: Seq,
    /// Messages up to `head`.
    pub n: u64,
    /// In the newest partition, about.
    pub bytes: u64,
}

/// A read that failed: nothing is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Failed;

/// Which of the writes under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Which {
    Record,
    Rows,
    Derived,
}

/// What can happen to a log. Each read and write is answered exactly once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Answers [`Action::ReadSegments`].
    Segments(Result<Vec<SegmentRecord>, Failed>),
    /// Answers [`Action::ReadSaid`].
    Said(Result<Option<Said>, Failed>),
    /// Answers [`Action::ReadRows`].
    Rows(Result<Page, Failed>),
    /// Answers [`Action::Write`].
    Wrote { which: Which, outcome: Outcome },
    /// Answers [`Action::Barrier`].
    Passed,
    /// A deadline has passed.
    Tick,
}

/// What one call asks for: mostly one thing, on the caller's stack.
pub type Actions = SmallVec<[Action; 2]>;

/// What must be done, or has come to pass. At most one read, one barrier and one write of each [`Which`] are under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    ReadSegments,
    ReadSaid,
    ReadRows {
        spans: Vec<Span>,
        range: Range,
        limit: ReadLimit,
    },
    Write {
        which: Which,
        write: Write,
    },
    /// [`Input::Passed`], when a barrier begun after now has passed.
    Barrier,
    /// In full. The newest rows up to the head, ascending, the last batch wholly among them; none after
    /// [`Opening::Passed`].
    Opened {
        rows: Vec<Row>,
    },
    ReadOpened {
        rows: Vec<Row>,
    },
    /// Opened in full: there is no record of such a room, and nothing was written.
    Absent,
    /// Definite, and nothing is under way: it may be opened again.
    OpenFailed(NotOpened),
    /// The rows are stored and, behind a barrier, the derived rows of the batch.
    Appended,
    /// Definite: nothing of the batch is stored, or ever will be.
    NotAppended(NotDone),
    Changed,
    NotChanged(NotDone),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotOpened {
    /// A read failed.
    Read,
    /// Somebody has opened the room in a later epoch: this owner is fenced, or about to be.
    Superseded,
    /// A room may have no more than [`banyan_storage::log_store::SEGMENTS_MAX`].
    TooManySegments,
    /// What must be there is not: a person must look.
    Damaged { after: Seq },
}

/// One room's log at one owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Log {
    tenure: Tenure,
    /// The log's id if the room is made in this life of the value.
    fresh_log: LogId,
    limits: Arc<Limits>,
    /// Of the next segment that is begun. A record that was once sent is never computed anew under its name.
    part: Part,
    phase: Phase,
    /// Oldest first; empty: unknown room, or not open.
    chain: Arc<[SegmentRecord]>,
    /// The newest segment of the chain was begun here.
    own: bool,
    head: Seq,
    /// Messages up to `head`.
    n: u64,
    /// In the newest partition, about.
    bytes: u64,
    /// While opening: the newest rows read so far, ascending.
    tail: Vec<Row>,
    record: Option<Box<(SegmentRecord, Attempt)>>,
    rows: Option<RowsWrite>,
    derived: Option<Box<(Derived, Attempt)>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct RowsWrite {
    segment: SegmentId,
    bucket: Bucket,
    /// With the store, too, while it has them.
    rows: Arc<[Row]>,
    /// `None`: not yet; the segment's record comes first.
    attempt: Option<Attempt>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Closed,
    ReadsSaid {
        again: bool,
    },
    ReadsSegments(Reading),
    ReadsTail(Reading),
    /// Something was missing: from 3a again.
    ReadsAgain {
        reading: Reading,
        at_ms: u64,
    },
    /// 3c.
    Rewrites,
    /// 3d. `reapplies`: the derived rows of the last batch follow.
    Records {
        reapplies: bool,
    },
    /// The barrier before the derived rows of an open.
    OpenAwaitsBarrier,
    OpenDerives,
    ReadOpen,
    /// In full. Also of a room without a record.
    Open,
    /// The record of a new segment, before its first rows.
    AppendsRecord,
    AppendsRows,
    AppendAwaitsBarrier,
    AppendDerives,
    ChangeAwaitsBarrier,
    Changes,
}

/// What an open that is under way reads for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Reading {
    how: How,
    /// Reads that found something missing.
    tries: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum How {
    Full,
    Again,
    HandedOver,
    ReadOnly { said: Said, again: bool },
}

impl How {
    const fn in_full(again: bool) -> Self {
        if again { Self::Again } else { Self::Full }
    }
}

impl Log {
    /// `opening`: counted by the worker over all openings of its rooms, so that no two lives of a room meet in a name.
    /// `fresh_log`: random.
    pub fn new(tenure: Tenure, opening: u32, fresh_log: LogId, limits: Arc<Limits>) -> Self {
        let opening = if plant::is(Bug::OpenRetriedUnderSameKey) { 0 } else { opening };
        Self {
            tenure,
            fresh_log,
            limits,
            part: Part::of_opening(opening),
            phase: Phase::Closed,
            chain: Arc::default(),
            own: false,
            head: Seq(0),
            n: 0,
            bytes: 0,
            tail: Vec::new(),
            record: None,
            rows: None,
            derived: None,
        }
    }

    /// Applies one input and pushes what must be done onto `out`.
    pub fn handle(&mut self, now: Now, input: Input, out: &mut Actions) {
        match (input, self.phase) {
            (Input::Said(said), Phase::ReadsSaid { again }) => {
                let how = match said {
                    Ok(Some(said)) => How::ReadOnly { said, again },
                    Ok(None) => How::in_full(again),
                    Err(Failed) => return self.open_failed(NotOpened::Read, out),
                };
                self.read_segments(Reading { how, tries: 0 }, out);
            }
            (Input::Segments(records), Phase::ReadsSegments(reading)) => match records {
                Ok(records) => self.segments_read(now, reading, records, out),
                Err(Failed) => self.open_failed(NotOpened::Read, out),
            },
            (Input::Rows(page), Phase::ReadsTail(reading)) => match page {
                Ok(page) => self.tail_read(now, reading, page, out),
                Err(Failed) => self.open_failed(NotOpened::Read, out),
            },
            (Input::Wrote { which, outcome }, _) => self.wrote(now, which, outcome, out),
            (Input::Passed, Phase::OpenAwaitsBarrier) => {
                self.derive_again(out);
                self.phase = Phase::OpenDerives;
            }
            (Input::Passed, Phase::AppendAwaitsBarrier) => self.derive_batch(out),
            (Input::Passed, Phase::ChangeAwaitsBarrier) => {
                out.extend(self.derived.as_deref().map(|(derived, _)| derived_action(derived)));
                self.phase = Phase::Changes;
            }
            (Input::Tick, _) => self.tick(now, out),
            // What is asked is waited for, so nothing else can be answered.
            (input, phase) => debug_assert!(false, "{input:?} while it {phase:?}"),
        }
    }

    /// When the caller must send [`Input::Tick`] if nothing else happens first.
    pub fn next_deadline(&self) -> Option<u64> {
        let again = match self.phase {
            Phase::ReadsAgain { at_ms, .. } => Some(at_ms),
            _ => None,
        };
        let record = self.record.as_deref().and_then(|(_, attempt)| attempt.again_at_ms());
        let rows = self.rows.as_ref().and_then(|write| write.attempt.as_ref()?.again_at_ms());
        let derived = self.derived.as_deref().and_then(|(_, attempt)| attempt.again_at_ms());
        earliest([again, record, rows, derived])
    }

    /// Appends may come, or one is under way. Also of a room that is [`Self::is_absent`].
    pub const fn is_open_in_full(&self) -> bool {
        matches!(
            self.phase,
            Phase::Open
                | Phase::AppendsRecord
                | Phase::AppendsRows
                | Phase::AppendAwaitsBarrier
                | Phase::AppendDerives
                | Phase::ChangeAwaitsBarrier
                | Phase::Changes
        )
    }

    pub fn is_read_open(&self) -> bool {
        self.phase == Phase::ReadOpen
    }

    /// Opened in full, and there is no record of such a room.
    pub fn is_absent(&self) -> bool {
        self.is_open_in_full() && self.chain.is_empty()
    }

    /// Open in either way, and nothing is under way.
    pub const fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::ReadOpen)
    }

    /// The newest seq that is stored for good.
    pub const fn head(&self) -> Seq {
        self.head
    }

    /// Messages up to the head.
    pub const fn n(&self) -> u64 {
        self.n
    }

    pub fn log_id(&self) -> Option<LogId> {
        self.chain.last().map(|record| record.log)
    }

    /// Oldest first.
    pub fn chain(&self) -> &[SegmentRecord] {
        &self.chain
    }

    /// Where seqs up to the head lie.
    pub fn spans(&self, first: Seq, last: Seq) -> Vec<Span> {
        chain::spans(&self.chain, first, last, self.head)
    }

    /// What to write, behind a barrier, when the room goes idle or is drained.
    pub fn said(&self) -> Option<Said> {
        let newest = self.chain.last().filter(|_| self.phase == Phase::Open)?;
        Some(Said { segment: newest.id, head: self.head, n: self.n })
    }

    /// What the next owner may go on from, if nothing more is appended or said here.
    pub fn hand_over(&self) -> Option<Handed> {
        let in_flight = plant::is(Bug::HandoffWithAppendInFlight) && self.is_open_in_full();
        if self.chain.is_empty() || !(self.phase == Phase::Open || in_flight) {
            return None;
        }
        Some(Handed { chain: Arc::clone(&self.chain), head: self.head, n: self.n, bytes: self.bytes })
    }

    // ---------------------------------------------------------------- writes

    fn send_record(&mut self, record: SegmentRecord, out: &mut Actions) {
        out.push(record_action(&record));
        self.record = Some(Box::new((record, Attempt::sent(&self.limits))));
    }

    fn send_rows(&self, write: &mut RowsWrite, out: &mut Actions) {
        write.attempt = Some(Attempt::sent(&self.limits));
        out.push(write.action());
    }

    fn send_derived(&mut self, derived: Derived, out: &mut Actions) {
        out.push(derived_action(&derived));
        self.derived = Some(Box::new((derived, Attempt::sent(&self.limits))));
    }

    fn tick(&mut self, now: Now, out: &mut Actions) {
        if let Phase::ReadsAgain { reading, at_ms } = self.phase
            && at_ms <= now.mono_ms
        {
            self.read_segments(reading, out);
        }
        if let Some((record, attempt)) = self.record.as_deref_mut()
            && attempt.is_due(now.mono_ms)
        {
            out.push(record_action(record));
        }
        if let Some(write) = &mut self.rows
            && write.attempt.as_mut().is_some_and(|attempt| attempt.is_due(now.mono_ms))
        {
            if plant::is(Bug::RetryUnderNewSeq) && self.phase == Phase::AppendsRows {
                write.renumber();
            }
            out.push(write.action());
        }
        if let Some((derived, attempt)) = self.derived.as_deref_mut()
            && attempt.is_due(now.mono_ms)
        {
            out.push(derived_action(derived));
        }
    }

    fn wrote(&mut self, now: Now, which: Which, outcome: Outcome, out: &mut Actions) {
        let may_end = matches!(self.phase, Phase::AppendsRecord | Phase::AppendsRows | Phase::Changes);
        let attempt = match which {
            Which::Record => self.record.as_deref_mut().map(|(_, attempt)| attempt),
            Which::Rows => self.rows.as_mut().and_then(|write| write.attempt.as_mut()),
            Which::Derived => self.derived.as_deref_mut().map(|(_, attempt)| attempt),
        };
        let Some(attempt) = attempt else {
            // Asked for nothing: can only be where a planted bug did not wait.
            return;
        };
        match attempt.answered(now.mono_ms, outcome, may_end, &self.limits) {
            Settled::Not => {}
            Settled::NotDone(why) => {
                // The name of a record that was not stored is not used again all the same.
                (self.record, self.rows, self.derived) = (None, None, None);
                let changes = self.phase == Phase::Changes;
                self.phase = Phase::Open;
                out.push(if changes { Action::NotChanged(why) } else { Action::NotAppended(why) });
            }
            Settled::Done => match which {
                Which::Record => {
                    if let Some(write) = self.record.take() {
                        self.record_stored(now, write.0, out);
                    }
                }
                Which::Rows => {
                    if let Some(write) = self.rows.take() {
                        self.rows_stored(now, &write.rows, out);
                    }
                }
                Which::Derived => {
                    self.derived = None;
                    self.derived_stored(now, out);
                }
            },
        }
    }

    fn record_stored(&mut self, now: Now, record: SegmentRecord, out: &mut Actions) {
        match self.phase {
            Phase::Rewrites => self.go_on_if_rewritten(now, out),
            Phase::Records { .. } if plant::is(Bug::RecordBeforeRewrite) => {
                let adopted = self.chain.last().cloned();
                self.begin_segment(record);
                if let Some(adopted) = adopted {
                    self.rewrite(now, adopted, out);
                }
            }
            Phase::Records { reapplies } => {
                self.begin_segment(record);
                self.recorded(reapplies, out);
            }
            Phase::AppendsRecord => {
                self.begin_segment(record);
                if let Some(mut write) = self.rows.take() {
                    self.send_rows(&mut write, out);
                    self.rows = Some(write);
                }
                self.phase = Phase::AppendsRows;
            }
            // Only where a planted bug did not wait for it.
            _ => {}
        }
    }

    fn derived_stored(&mut self, now: Now, out: &mut Actions) {
        match self.phase {
            Phase::OpenDerives if reapplies_early() => {
                self.write_own_record(now, true, out);
            }
            Phase::OpenDerives => self.opened(out),
            Phase::AppendDerives => {
                self.phase = Phase::Open;
                out.push(Action::Appended);
            }
            Phase::Changes => {
                self.phase = Phase::Open;
                out.push(Action::Changed);
            }
            Phase::Rewrites => self.go_on_if_rewritten(now, out),
            // Only where a planted bug did not wait for it.
            _ => {}
        }
    }
}

impl RowsWrite {
    fn action(&self) -> Action {
        let Self { segment, bucket, rows, .. } = self;
        let write = Write::Rows { segment: *segment, bucket: *bucket, rows: Arc::clone(rows) };
        Action::Write { which: Which::Rows, write }
    }

    /// The bug: what may be stored already is appended once more, behind itself.
    fn renumber(&mut self) {
        let by = self.rows.len() as u64;
        for row in Arc::make_mut(&mut self.rows) {
            row.seq.0 += by;
            row.batch_first.0 += by;
        }
    }
}

/// Only for planted bugs: before the own record.
fn reapplies_early() -> bool {
    plant::is(Bug::DerivedReappliedBeforeRecord) || plant::is(Bug::DerivedReappliedAfterRewrite)
}

fn record_action(record: &SegmentRecord) -> Action {
    Action::Write { which: Which::Record, write: Write::Record(Box::new(record.clone())) }
}

fn derived_action(derived: &Derived) -> Action {
    Action::Write { which: Which::Derived, write: Write::Derived(Box::new(derived.clone())) }
}

fn row_bytes(row: &Row) -> u64 {
    row.event.len() as u64 + ROW_OVERHEAD_BYTES
}
