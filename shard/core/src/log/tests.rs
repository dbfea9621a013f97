//! The log as tables of inputs and outputs, and against an in-memory store whose writes get lost, come late or answer nothing.

use std::collections::BTreeMap;

use banyan_proto::id::{Epoch, Incarnation, Origin, UnixMs};
use banyan_storage::log_store::SEGMENTS_MAX;
use bytes::Bytes;
use proptest::prelude::*;

use super::chain::Chain;
use super::tail::Look;
use super::*;

const LOG: LogId = LogId(7);

fn now(mono_ms: u64) -> Now {
    Now { mono_ms, unix: UnixMs(1_000) }
}

fn tenure(epoch: u64) -> Tenure {
    Tenure { epoch: Epoch(epoch), incarnation: Incarnation(u128::from(epoch)) }
}

fn id(epoch: u64, part: u64) -> SegmentId {
    SegmentId { epoch: Epoch(epoch), part: Part(part) }
}

fn record(epoch: u64, part: u64, first: u64, prev: Option<SegmentId>) -> SegmentRecord {
    SegmentRecord {
        id: id(epoch, part),
        bucket: Bucket(0),
        first_seq: Seq(first),
        n_before: first - 1,
        prev,
        incarnation: Incarnation(u128::from(epoch)),
        log: LOG,
    }
}

/// Every row a message.
fn row(seq: u64, batch_first: u64) -> Row {
    Row {
        seq: Seq(seq),
        batch_first: Seq(batch_first),
        n: seq,
        origin: Origin(0),
        event: Bytes::from(format!("event {seq}")),
        derived: None,
    }
}

fn rows(batches: &[&[u64]]) -> Vec<Row> {
    batches.iter().flat_map(|batch| batch.iter().map(|seq| row(*seq, batch[0]))).collect()
}

fn derived() -> Derived {
    Derived { room: None, members: Vec::new() }
}

fn with_derived(mut rows: Vec<Row>) -> Vec<Row> {
    rows.last_mut().unwrap().derived = Some(Arc::new(derived()));
    rows
}

fn write_record(record: SegmentRecord) -> Action {
    Action::Write { which: Which::Record, write: Write::Record(record.into()) }
}

fn write_rows(segment: SegmentId, rows: Vec<Row>) -> Action {
    Action::Write { which: Which::Rows, write: Write::Rows { segment, bucket: Bucket(0), rows: rows.into() } }
}

fn write_derived() -> Action {
    Action::Write { which: Which::Derived, write: Write::Derived(Box::new(derived())) }
}

fn span(record: &SegmentRecord, first: u64, last: u64) -> Span {
    Span { segment: record.id, bucket: record.bucket, first: Seq(first), last: Seq(last) }
}

fn wrote(which: Which) -> Input {
    Input::Wrote { which, outcome: Outcome::Done }
}

fn unknown(which: Which) -> Input {
    Input::Wrote { which, outcome: Outcome::Unknown }
}

fn not_done(which: Which) -> Input {
    Input::Wrote { which, outcome: Outcome::NotDone(NotDone::Full) }
}

fn page(rows: Vec<Row>, more: bool) -> Input {
    Input::Rows(Ok(Page { rows, more }))
}

struct Bench {
    log: Log,
    now_ms: u64,
}

impl Bench {
    fn new(epoch: u64) -> Self {
        Self::with(epoch, Limits::default())
    }

    fn with(epoch: u64, limits: Limits) -> Self {
        Self { log: Log::new(tenure(epoch), 0, LOG, Arc::new(limits)), now_ms: 0 }
    }

    fn open(&mut self, how: Opening) -> Vec<Action> {
        let mut out = Actions::new();
        self.log.open(now(self.now_ms), how, &mut out);
        out.into_vec()
    }

    fn append(&mut self, rows: Vec<Row>) -> Vec<Action> {
        self.append_at(1_000, rows)
    }

    fn append_at(&mut self, unix: u64, rows: Vec<Row>) -> Vec<Action> {
        let mut out = Actions::new();
        self.log.append(Now { mono_ms: self.now_ms, unix: UnixMs(unix) }, rows.into(), &mut out);
        out.into_vec()
    }

    fn give(&mut self, input: Input) -> Vec<Action> {
        let mut out = Actions::new();
        self.log.handle(now(self.now_ms), input, &mut out);
        out.into_vec()
    }

    /// Ticks at the deadline, which must then lie later, or nowhere.
    fn tick(&mut self) -> Vec<Action> {
        let deadline = self.log.next_deadline().expect("a deadline");
        assert!(deadline > self.now_ms || deadline == 0);
        self.now_ms = deadline;
        let out = self.give(Input::Tick);
        assert!(self.log.next_deadline().is_none_or(|next| next > deadline), "the deadline moves");
        out
    }

    /// An unknown room at its first owner, with one batch of two rows.
    fn made(epoch: u64) -> Self {
        let mut bench = Self::new(epoch);
        bench.open(Opening::Full);
        bench.give(Input::Segments(Ok(Vec::new())));
        bench.append(rows(&[&[1, 2]]));
        bench.give(wrote(Which::Record));
        assert_eq!(bench.give(wrote(Which::Rows)), [Action::Appended]);
        bench
    }

    /// Up to where the newest rows are asked for.
    fn reads(&mut self, how: Opening, records: Vec<SegmentRecord>) {
        assert_eq!(self.open(how), [Action::ReadSegments]);
        let out = self.give(Input::Segments(Ok(records)));
        assert!(matches!(out[..], [Action::ReadRows { .. }]), "{out:?}");
    }
}

#[test]
fn an_unknown_room_is_written_with_its_first_append() {
    let mut bench = Bench::new(1);
    assert_eq!(bench.open(Opening::Full), [Action::ReadSegments]);
    assert_eq!(bench.give(Input::Segments(Ok(Vec::new()))), [Action::Absent]);
    assert!(bench.log.is_absent() && bench.log.is_open_in_full() && bench.log.is_idle());
    assert_eq!((bench.log.said(), bench.log.hand_over(), bench.log.log_id()), (None, None, None));
    assert_eq!(bench.append(rows(&[&[1, 2]])), [write_record(record(1, 0, 1, None))]);
    assert!(!bench.log.is_idle());
    assert_eq!(bench.give(wrote(Which::Record)), [write_rows(id(1, 0), rows(&[&[1, 2]]))]);
    assert_eq!((bench.log.said(), bench.log.hand_over()), (None, None), "an append is in flight");
    assert_eq!(bench.give(wrote(Which::Rows)), [Action::Appended]);
    assert_eq!((bench.log.head(), bench.log.n(), bench.log.log_id()), (Seq(2), 2, Some(LOG)));
    assert_eq!(bench.append(rows(&[&[3]])), [write_rows(id(1, 0), rows(&[&[3]]))]);
    assert_eq!(bench.give(wrote(Which::Rows)), [Action::Appended]);
    assert_eq!(bench.log.said(), Some(Said { segment: id(1, 0), head: Seq(3), n: 3 }));
}

#[test]
fn a_first_record_that_was_not_stored_leaves_its_name_unused() {
    let mut bench = Bench::new(1);
    bench.open(Opening::Full);
    bench.give(Input::Segments(Ok(Vec::new())));
    bench.append(rows(&[&[1]]));
    assert_eq!(bench.give(not_done(Which::Record)), [Action::NotAppended(NotDone::Full)]);
    assert!(bench.log.is_absent());
    assert_eq!(bench.append(rows(&[&[1]])), [write_record(record(1, 1, 1, None))]);
    bench.give(wrote(Which::Record));
    assert_eq!(bench.give(not_done(Which::Rows)), [Action::NotAppended(NotDone::Full)]);
    // The record stays.
    assert!(!bench.log.is_absent());
    assert_eq!(bench.log.said(), Some(Said { segment: id(1, 1), head: Seq(0), n: 0 }));
    assert_eq!(bench.append(rows(&[&[1]])), [write_rows(id(1, 1), rows(&[&[1]]))]);
}

#[test]
fn an_open_rewrites_what_it_adopts_then_records_itself() {
    let old = record(1, 0, 1, None);
    let mut bench = Bench::new(2);
    assert_eq!(bench.open(Opening::Full), [Action::ReadSegments]);
    assert_eq!(
        bench.give(Input::Segments(Ok(vec![old.clone()]))),
        [Action::ReadRows {
            spans: vec![span(&old, 1, u64::MAX - 1)],
            range: Range::before(Seq(u64::MAX)),
            limit: TAIL
        }]
    );
    // The batch 3..=6 is torn: what lies behind the hole is void.
    let read = rows(&[&[1, 2], &[3, 4, 6]]);
    assert_eq!(
        bench.give(page(read, false)),
        [write_rows(id(1, 0), rows(&[&[3, 4]])), write_record(old.clone())]
    );
    assert_eq!(bench.give(wrote(Which::Record)), [], "both are awaited");
    let own = record(2, 0, 5, Some(id(1, 0)));
    assert_eq!(bench.give(wrote(Which::Rows)), [write_record(own.clone())]);
    assert!(!bench.log.is_open_in_full());
    assert_eq!(bench.give(wrote(Which::Record)), [Action::Opened { rows: rows(&[&[1, 2], &[3, 4]]) }]);
    assert_eq!(bench.log.chain(), [old.clone(), own.clone()]);
    assert_eq!((bench.log.head(), bench.log.n()), (Seq(4), 4));
    assert_eq!(bench.log.spans(Seq(1), Seq(99)), [span(&old, 1, 4)], "the own segment is empty so far");
    assert_eq!(bench.append(rows(&[&[5]])), [write_rows(id(2, 0), rows(&[&[5]]))]);
    bench.give(wrote(Which::Rows));
    assert_eq!(bench.log.spans(Seq(4), Seq(99)), [span(&old, 4, 4), span(&own, 5, 5)]);
}

#[test]
fn nothing_of_an_open_is_given_up_while_it_is_unknown() {
    let mut bench = Bench::new(2);
    let old = record(1, 0, 1, None);
    bench.reads(Opening::Full, vec![old.clone()]);
    bench.give(page(rows(&[&[1]]), false));
    assert_eq!(bench.give(unknown(Which::Record)), []);
    assert_eq!(bench.give(not_done(Which::Rows)), []);
    let again = bench.tick();
    assert_eq!(again, [write_record(old), write_rows(id(1, 0), rows(&[&[1]]))]);
    bench.give(wrote(Which::Rows));
    let own = record(2, 0, 2, Some(id(1, 0)));
    assert_eq!(bench.give(wrote(Which::Record)), [write_record(own.clone())]);
    for wait in [100, 200, 400, 800, 1_600, 2_000, 2_000] {
        bench.give(not_done(Which::Record));
        let before = bench.now_ms;
        assert_eq!(bench.tick(), [write_record(own.clone())]);
        assert_eq!(bench.now_ms - before, wait);
    }
    assert_eq!(bench.give(wrote(Which::Record)), [Action::Opened { rows: rows(&[&[1]]) }]);
}

#[test]
fn an_empty_segment_drops_off_the_chain_but_is_made_complete_first() {
    let (first, empty) = (record(1, 0, 1, None), record(2, 0, 3, Some(id(1, 0))));
    let mut bench = Bench::new(3);
    bench.reads(Opening::Full, vec![first.clone(), empty.clone()]);
    // Nothing of the last batch is in the newest segment: only the record is written again.
    assert_eq!(bench.give(page(rows(&[&[1, 2]]), false)), [write_record(empty)]);
    let own = record(3, 0, 3, Some(id(1, 0)));
    assert_eq!(bench.give(wrote(Which::Record)), [write_record(own.clone())]);
    bench.give(wrote(Which::Record));
    assert_eq!(bench.log.chain(), [first, own]);
}

#[test]
fn the_first_segment_stays_on_the_chain() {
    let mut bench = Bench::new(2);
    let first = record(1, 0, 1, None);
    bench.reads(Opening::Full, vec![first.clone()]);
    assert_eq!(bench.give(page(Vec::new(), false)), [write_record(first)]);
    let own = record(2, 0, 1, Some(id(1, 0)));
    assert_eq!(bench.give(wrote(Which::Record)), [write_record(own)]);
    assert_eq!(bench.give(wrote(Which::Record)), [Action::Opened { rows: Vec::new() }]);
    assert_eq!((bench.log.head(), bench.log.is_absent()), (Seq(0), false));
}

#[test]
fn a_link_that_is_missing_is_read_again() {
    let mut bench = Bench::new(4);
    bench.open(Opening::Full);
    let newest = record(3, 0, 5, Some(id(1, 0)));
    for _ in 0..REREADS_MAX {
        assert_eq!(bench.give(Input::Segments(Ok(vec![newest.clone()]))), []);
        assert_eq!(bench.tick(), [Action::ReadSegments]);
    }
    assert_eq!(
        bench.give(Input::Segments(Ok(vec![newest.clone()]))),
        [Action::OpenFailed(NotOpened::Damaged { after: Seq(0) })]
    );
    assert_eq!(bench.log.next_deadline(), None);
    // It may be tried anew.
    bench.reads(Opening::Full, vec![record(1, 0, 1, None), newest]);
}

#[test]
fn opens_that_fail_say_why() {
    let mut bench = Bench::new(2);
    for (records, why) in [
        (Err(Failed), NotOpened::Read),
        (Ok(vec![record(2, 0, 1, None)]), NotOpened::Superseded),
        (Ok(vec![record(1, 0, 1, None), record(3, 0, 1, Some(id(1, 0)))]), NotOpened::Superseded),
        (Ok(vec![record(1, 0, 1, None); SEGMENTS_MAX + 1]), NotOpened::TooManySegments),
        (
            Ok(vec![record(1, 0, 9, None), record(1, 1, 4, Some(id(1, 0)))]),
            NotOpened::Damaged { after: Seq(9) },
        ),
    ] {
        bench.open(Opening::Full);
        assert_eq!(bench.give(Input::Segments(records)), [Action::OpenFailed(why)]);
        assert!(!bench.log.is_open_in_full() && !bench.log.is_idle());
    }
    bench.reads(Opening::Full, vec![record(1, 0, 1, None)]);
    assert_eq!(bench.give(Input::Rows(Err(Failed))), [Action::OpenFailed(NotOpened::Read)]);
}

#[test]
fn the_last_batch_is_read_however_large_it_is() {
    let limits = Limits { tail: ReadLimit { events: 2, bytes: 1 << 20 }, ..Limits::default() };
    let mut bench = Bench::with(2, limits);
    let old = record(1, 0, 1, None);
    bench.reads(Opening::Full, vec![old.clone()]);
    let out = bench.give(page(rows(&[&[3, 4, 5, 6, 7]])[3..].to_vec(), true));
    assert!(matches!(&out[..], [Action::ReadRows { range, .. }] if *range == Range::before(Seq(6))));
    let out = bench.give(page(rows(&[&[3, 4, 5]])[1..].to_vec(), true));
    assert!(matches!(&out[..], [Action::ReadRows { range, .. }] if *range == Range::before(Seq(4))));
    let out = bench.give(page(rows(&[&[1, 2], &[3]])[1..].to_vec(), true));
    assert_eq!(out, [write_rows(id(1, 0), rows(&[&[3, 4, 5, 6, 7]])), write_record(old)]);
}

#[test]
fn a_handed_over_room_is_not_rewritten() {
    let old = record(1, 0, 1, None);
    let mut bench = Bench::new(2);
    bench.reads(Opening::HandedOver, vec![old]);
    let own = record(2, 0, 3, Some(id(1, 0)));
    assert_eq!(bench.give(page(rows(&[&[1, 2]]), false)), [write_record(own)]);
    assert_eq!(bench.give(wrote(Which::Record)), [Action::Opened { rows: rows(&[&[1, 2]]) }]);
}

#[test]
fn a_room_that_came_to_rest_goes_on_in_its_own_segment() {
    let records = vec![record(1, 0, 1, None), record(3, 0, 4, Some(id(1, 0)))];
    // Its newest segment is of this tenure: nothing is written, and the next batch is of the same segment.
    let mut bench = Bench { log: Log::new(tenure(3), 1, LOG, Arc::default()), now_ms: 0 };
    bench.reads(Opening::Again, records.clone());
    let kept = rows(&[&[3], &[4, 5]]);
    assert_eq!(bench.give(page(kept.clone(), false)), [Action::Opened { rows: kept.clone() }]);
    assert_eq!(bench.append(vec![row(6, 6)]), [write_rows(id(3, 0), vec![row(6, 6)])]);
    assert_eq!(bench.give(wrote(Which::Rows)), [Action::Appended]);
    // A later segment of its own has a name that no earlier life can have used.
    let rolled = bench.append_at(20 * 24 * 3_600 * 1_000, vec![row(7, 7)]);
    let part = Part::of_opening(1);
    assert!(
        matches!(&rolled[..], [Action::Write { write: Write::Record(record), .. }] if record.id.part == part),
        "{rolled:?}"
    );
    // Of another tenure, or of the same epoch by another run (which cannot be): as ever.
    for other in [tenure(4), Tenure { incarnation: Incarnation(99), ..tenure(3) }] {
        let mut bench = Bench { log: Log::new(other, 1, LOG, Arc::default()), now_ms: 0 };
        bench.reads(Opening::Again, records.clone());
        assert_eq!(
            bench.give(page(kept.clone(), false)),
            [write_rows(id(3, 0), rows(&[&[4, 5]])), write_record(records[1].clone())]
        );
    }
}

#[test]
fn passed_state_needs_no_read() {
    let mut old = Bench::made(1);
    let handed = old.log.hand_over().unwrap();
    assert_eq!((handed.head, handed.n, handed.chain.len()), (Seq(2), 2, 1));
    let mut bench = Bench::new(2);
    let own = record(2, 0, 3, Some(id(1, 0)));
    assert_eq!(bench.open(Opening::Passed(Box::new(handed))), [write_record(own)]);
    assert_eq!(bench.give(wrote(Which::Record)), [Action::Opened { rows: Vec::new() }]);
    assert_eq!((bench.log.head(), bench.log.n()), (Seq(2), 2));
    assert_eq!(bench.append(rows(&[&[3]])), [write_rows(id(2, 0), rows(&[&[3]]))]);
    old.append(rows(&[&[3]]));
    assert_eq!(old.log.hand_over(), None, "an append is in flight");
}

const READS: Opening = Opening::ReadOnly { again: false };

#[test]
fn read_open_wants_a_room_that_was_closed_in_good_order() {
    let (first, second) = (record(1, 0, 1, None), record(2, 0, 3, Some(id(1, 0))));
    let said = |segment, head| Ok(Some(Said { segment, head: Seq(head), n: head }));
    let both = || vec![first.clone(), second.clone()];
    // (said, records, rows, opens)
    let cases = [
        (said(id(2, 0), 4), both(), rows(&[&[1, 2], &[3, 4]]), true),
        (said(id(2, 0), 2), both(), rows(&[&[1, 2]]), true),
        (said(id(2, 0), 4), both(), rows(&[&[1, 2], &[3, 4], &[5]]), false),
        (said(id(2, 0), 4), both(), rows(&[&[1, 2], &[3, 4, 6]]), false),
        (said(id(2, 0), 4), both(), rows(&[&[1, 2]]), false),
        (said(id(2, 0), 4), both(), rows(&[&[1], &[3, 4]]), false),
        (said(id(1, 0), 2), both(), Vec::new(), false),
        (said(id(3, 0), 2), both(), Vec::new(), false),
        (Ok(None), both(), rows(&[&[1, 2], &[3, 4]]), false),
    ];
    for (said, records, read, opens) in cases {
        let mut bench = Bench::new(3);
        assert_eq!(bench.open(READS), [Action::ReadSaid]);
        assert_eq!(bench.give(Input::Said(said)), [Action::ReadSegments]);
        assert!(matches!(bench.give(Input::Segments(Ok(records.clone())))[..], [Action::ReadRows { .. }]));
        let out = bench.give(page(read.clone(), false));
        assert_eq!(bench.log.is_read_open(), opens, "{said:?} {records:?} {read:?}");
        assert_eq!((bench.log.said(), bench.log.hand_over()), (None, None));
        if opens {
            assert_eq!(out, [Action::ReadOpened { rows: read }]);
            // A send comes.
            assert_eq!(bench.open(Opening::Full), [Action::ReadSegments]);
            continue;
        }
        // As if it had been opened in full from the start, and nothing is read twice.
        let mut full = Bench::new(3);
        full.open(Opening::Full);
        full.give(Input::Segments(Ok(records.clone())));
        assert_eq!(out, full.give(page(read.clone(), false)), "{said:?} {records:?} {read:?}");
        assert_eq!(bench.log, full.log);
    }
}

#[test]
fn who_cannot_open_for_reads_opens_in_full_from_what_was_read() {
    let (first, second) = (record(1, 0, 1, None), record(2, 0, 3, Some(id(1, 0))));
    let said = |segment, head| Input::Said(Ok(Some(Said { segment, head: Seq(head), n: head })));
    let segments =
        |records: &[&SegmentRecord]| Input::Segments(Ok(records.iter().copied().cloned().collect()));
    let mut bench = Bench::new(3);
    bench.open(READS);
    assert_eq!(bench.give(Input::Said(Err(Failed))), [Action::OpenFailed(NotOpened::Read)]);
    // Nothing was said, and there is no such room.
    bench.open(READS);
    assert_eq!(bench.give(Input::Said(Ok(None))), [Action::ReadSegments]);
    assert_eq!(bench.give(segments(&[])), [Action::Absent]);
    // A record is missing: it is read again, and what was said does not count any more.
    let mut bench = Bench::new(3);
    bench.open(READS);
    bench.give(said(id(2, 0), 4));
    assert_eq!(bench.give(segments(&[&second])), [Action::ReadSegments]);
    bench.give(segments(&[&first, &second]));
    let out = bench.give(page(rows(&[&[1, 2], &[3, 4]]), false));
    assert!(out.iter().all(|action| matches!(action, Action::Write { .. })), "{out:?}");
    // A later owner has been there.
    let mut bench = Bench::new(2);
    bench.open(READS);
    bench.give(said(id(1, 0), 2));
    let superseded = [Action::OpenFailed(NotOpened::Superseded)];
    assert_eq!(bench.give(segments(&[&first, &record(3, 0, 3, Some(id(1, 0)))])), superseded);
    // It has closed the room, and opened it again in its own segment.
    let mut bench = Bench::new(2);
    bench.open(READS);
    bench.give(said(id(3, 0), 4));
    bench.give(segments(&[&first, &record(3, 0, 3, Some(id(1, 0)))]));
    assert_eq!(bench.give(page(rows(&[&[1, 2], &[3, 4], &[5]]), false)), superseded);
    // Every earlier life of the room in this tenure was quiet: its own segment is gone on with, and nothing is written.
    for again in [true, false] {
        let mut bench = Bench::new(2);
        bench.open(Opening::ReadOnly { again });
        bench.give(said(id(1, 0), 2));
        bench.log.part = Part::of_opening(1);
        bench.give(segments(&[&first, &second]));
        let out = bench.give(page(rows(&[&[1, 2], &[3, 4]]), false));
        assert_eq!(matches!(out[..], [Action::Opened { .. }]), again, "{out:?}");
    }
}

#[test]
fn an_unknown_append_is_said_again_and_a_later_no_is_not_definite() {
    let mut bench = Bench::made(1);
    let batch = rows(&[&[3, 4]]);
    bench.append(batch.clone());
    assert_eq!(bench.give(unknown(Which::Rows)), []);
    assert_eq!(bench.tick(), [write_rows(id(1, 0), batch.clone())]);
    assert_eq!(bench.give(not_done(Which::Rows)), []);
    assert_eq!(bench.log.head(), Seq(2));
    assert_eq!(bench.tick(), [write_rows(id(1, 0), batch)]);
    assert_eq!(bench.give(wrote(Which::Rows)), [Action::Appended]);
    bench.append(rows(&[&[5]]));
    assert_eq!(bench.give(not_done(Which::Rows)), [Action::NotAppended(NotDone::Full)]);
    assert_eq!(bench.append(rows(&[&[5]])), [write_rows(id(1, 0), rows(&[&[5]]))]);
}

#[test]
fn a_new_window_begins_a_new_segment() {
    let mut bench = Bench::made(1);
    let day = 24 * 3_600 * 1_000;
    let out = bench.append_at(25 * day, rows(&[&[3]]));
    let rolled = SegmentRecord { bucket: Bucket(2 << 8), ..record(1, 1, 3, Some(id(1, 0))) };
    assert_eq!(out, [write_record(rolled)]);
    let out = bench.give(wrote(Which::Record));
    assert!(matches!(&out[..], [Action::Write { write: Write::Rows { segment, bucket, .. }, .. }]
        if *segment == id(1, 1) && *bucket == Bucket(2 << 8)));
    bench.give(wrote(Which::Rows));
    // A clock that goes back changes nothing.
    let out = bench.append_at(5 * day, rows(&[&[4]]));
    assert!(
        matches!(&out[..], [Action::Write { write: Write::Rows { segment, .. }, .. }] if *segment == id(1, 1))
    );
    bench.give(wrote(Which::Rows));
    // What is handed over goes on in the same partition, or a later one.
    let mut next = Bench::new(2);
    let out = next.open(Opening::Passed(Box::new(bench.log.hand_over().unwrap())));
    assert_eq!(
        out,
        [write_record(SegmentRecord { bucket: Bucket(2 << 8), ..record(2, 0, 5, Some(id(1, 1))) })]
    );
}

#[test]
fn a_full_partition_is_followed_by_the_next_one() {
    let limits = Limits { bucket_bytes: 160, ..Limits::default() };
    let mut bench = Bench::with(1, limits.clone());
    bench.open(Opening::Full);
    bench.give(Input::Segments(Ok(Vec::new())));
    bench.append(rows(&[&[1, 2]]));
    bench.give(wrote(Which::Record));
    bench.give(wrote(Which::Rows));
    let rolled = SegmentRecord { bucket: Bucket(1), ..record(1, 1, 3, Some(id(1, 0))) };
    assert_eq!(bench.append(rows(&[&[3]])), [write_record(rolled.clone())]);
    bench.give(unknown(Which::Record));
    assert_eq!(bench.tick(), [write_record(rolled)]);
    bench.give(wrote(Which::Record));
    bench.give(wrote(Which::Rows));
    assert!(matches!(bench.append(rows(&[&[4]]))[..], [Action::Write { which: Which::Rows, .. }]));
    // Somebody who only reads the rows estimates the same.
    let mut next = Bench::with(2, limits);
    next.reads(Opening::HandedOver, vec![record(1, 0, 1, None)]);
    next.give(page(rows(&[&[1, 2]]), false));
    next.give(wrote(Which::Record));
    let out = next.append(rows(&[&[3]]));
    // An empty segment drops off the chain again.
    let rolled = SegmentRecord { bucket: Bucket(1), ..record(2, 1, 3, Some(id(1, 0))) };
    assert_eq!(out, [write_record(rolled)]);
}

#[test]
fn derived_rows_follow_a_barrier_and_the_batch_waits_for_them() {
    let mut bench = Bench::made(1);
    bench.append(with_derived(rows(&[&[3, 4]])));
    assert_eq!(bench.give(wrote(Which::Rows)), [Action::Barrier]);
    assert!(!bench.log.is_idle() && bench.log.hand_over().is_none() && bench.log.said().is_none());
    assert_eq!(bench.give(Input::Passed), [write_derived()]);
    assert_eq!(bench.give(not_done(Which::Derived)), [], "the rows are stored: there is no way back");
    assert_eq!(bench.tick(), [write_derived()]);
    assert_eq!(bench.give(wrote(Which::Derived)), [Action::Appended]);
    assert!(bench.log.is_idle());
}

#[test]
fn an_open_derives_again_what_the_last_batch_changed() {
    // Of the newest segment, and of the one before an empty one.
    let (first, empty) = (record(1, 0, 1, None), record(2, 0, 3, Some(id(1, 0))));
    for (records, rewrites) in [(vec![first.clone()], 2), (vec![first, empty], 1)] {
        let mut bench = Bench::new(3);
        bench.reads(Opening::Full, records);
        let tail = with_derived(rows(&[&[1, 2]]));
        assert_eq!(bench.give(page(tail.clone(), false)).len(), rewrites);
        if rewrites == 2 {
            bench.give(wrote(Which::Rows));
        }
        bench.give(wrote(Which::Record));
        assert_eq!(bench.give(wrote(Which::Record)), [Action::Barrier], "the own record is complete");
        assert!(!bench.log.is_open_in_full());
        assert_eq!(bench.give(Input::Passed), [write_derived()]);
        assert_eq!(bench.give(wrote(Which::Derived)), [Action::Opened { rows: tail }]);
    }
}

#[test]
fn members_change_without_an_event() {
    let mut bench = Bench::made(1);
    let change = |bench: &mut Bench| {
        let mut out = Actions::new();
        bench.log.change(derived(), &mut out);
        assert_eq!(out[..], [Action::Barrier]);
        assert!(!bench.log.is_idle() && bench.log.is_open_in_full() && bench.log.next_deadline().is_none());
        bench.give(Input::Passed)
    };
    assert_eq!(change(&mut bench), [write_derived()]);
    assert!(!bench.log.is_idle());
    assert_eq!(bench.give(wrote(Which::Derived)), [Action::Changed]);
    change(&mut bench);
    assert_eq!(bench.give(not_done(Which::Derived)), [Action::NotChanged(NotDone::Full)]);
    change(&mut bench);
    assert_eq!(bench.give(unknown(Which::Derived)), []);
    assert_eq!(bench.tick(), [write_derived()]);
    assert_eq!(bench.give(wrote(Which::Derived)), [Action::Changed]);
    assert!(bench.log.is_idle());
}

#[test]
fn each_opening_has_names_of_its_own() {
    let log = Log::new(tenure(4), 9, LOG, Arc::default());
    assert_eq!(log.own_id(), SegmentId { epoch: Epoch(4), part: Part(9 << 32) });
}

#[test]
fn where_a_log_ends() {
    let ends = |head| Look::Ends { head: Seq(head) };
    let gap = |after| Look::Gap { after: Seq(after) };
    let below = |before| Look::Below { before: Seq(before) };
    // (rows, more below, first seq of the newest segment, what is made of it)
    type Batches<'a> = &'a [&'a [u64]];
    let cases: &[(Batches<'_>, bool, u64, Look)] = &[
        (&[], false, 1, ends(0)),
        (&[&[1]], false, 1, ends(1)),
        (&[&[1, 2], &[3, 4]], false, 1, ends(4)),
        (&[&[1, 2], &[3, 5]], false, 1, ends(3)),
        (&[&[3, 4]], true, 1, ends(4)),
        // The newest segment is empty.
        (&[&[1, 2]], false, 3, ends(2)),
        (&[], false, 3, gap(0)),
        (&[&[1]], false, 3, gap(1)),
        (&[], true, 3, below(3)),
        // A hole below the newest batch: it was seen too late.
        (&[&[1], &[3, 4]], false, 1, gap(1)),
        (&[&[1, 2], &[5, 6]], true, 3, gap(2)),
    ];
    for (batches, more, newest_first, want) in cases {
        assert_eq!(tail::look(&rows(batches), *more, Seq(*newest_first)), *want, "{batches:?} {more}");
    }
    // Batches of which the first rows were not seen.
    type Pairs<'a> = &'a [(u64, u64)];
    let cases: &[(Pairs<'_>, bool, u64, Look)] = &[
        (&[(4, 3)], true, 1, below(4)),
        (&[(4, 3)], false, 3, gap(0)),
        (&[(4, 3)], false, 1, gap(0)),
        (&[(2, 1), (4, 3)], true, 1, below(2)),
        (&[(1, 1), (2, 1), (4, 3)], false, 1, ends(2)),
        (&[(2, 2), (4, 3)], true, 1, ends(2)),
        (&[(5, 3), (6, 6)], true, 1, ends(6)),
    ];
    for (read, more, newest_first, want) in cases {
        let read: Vec<Row> = read.iter().map(|(seq, first)| row(*seq, *first)).collect();
        assert_eq!(tail::look(&read, *more, Seq(*newest_first)), *want, "{read:?} {more}");
    }
}

#[test]
fn what_is_off_the_chain_is_void() {
    let (a, b, c) = (record(1, 0, 1, None), record(2, 0, 4, Some(id(1, 0))), record(3, 0, 6, Some(id(1, 0))));
    let follow =
        |records: &[&SegmentRecord], top| chain::follow(records.iter().copied().cloned().collect(), top);
    assert_eq!(follow(&[&c, &a, &b], None), Chain::Whole(vec![a.clone(), c.clone()]));
    assert_eq!(follow(&[&c, &a, &b], Some(b.id)), Chain::Whole(vec![a.clone(), b.clone()]));
    assert_eq!(follow(&[&b, &c], None), Chain::Missing);
    let loops = record(1, 0, 1, Some(id(1, 0)));
    assert_eq!(follow(&[&loops], None), Chain::Damaged { after: Seq(1) });
    let chain = [a.clone(), c.clone()];
    let spans = |first, last| chain::spans(&chain, Seq(first), Seq(last), Seq(9));
    assert_eq!(spans(1, 99), [span(&a, 1, 5), span(&c, 6, 9)]);
    assert_eq!(spans(3, 5), [span(&a, 3, 5)]);
    assert_eq!(spans(6, 7), [span(&c, 6, 7)]);
    assert_eq!(spans(10, 12), []);
    assert_eq!(spans(4, 3), []);
    assert_eq!(chain::spans(&[], Seq(1), Seq(5), Seq(9)), []);
}

// ---------------------------------------------------------------- against a store

/// One replica that never forgets; a key has one content.
#[derive(Debug, Default)]
struct Store {
    records: BTreeMap<SegmentId, SegmentRecord>,
    rows: BTreeMap<(SegmentId, Seq), Row>,
    derived: usize,
}

impl Store {
    fn apply(&mut self, write: Write) {
        match write {
            Write::Record(record) => {
                let stored = self.records.entry(record.id).or_insert_with(|| (*record).clone());
                assert_eq!(*stored, *record, "a second content");
            }
            Write::Rows { segment, bucket, rows } => {
                let record = &self.records[&segment];
                assert_eq!(record.bucket, bucket);
                for row in rows.iter() {
                    assert!(row.seq >= record.first_seq);
                    let stored = self.rows.entry((segment, row.seq)).or_insert_with(|| row.clone());
                    assert_eq!(stored, row, "a second content");
                }
            }
            Write::Derived(_) => self.derived += 1,
            Write::Said(_) => unreachable!("the log only names it"),
        }
    }

    fn page(&self, spans: &[Span], range: Range, limit: ReadLimit) -> Page {
        assert!(spans.windows(2).all(|pair| pair[0].last < pair[1].first), "{spans:?}");
        let Range::Before { before, above: Seq(0) } = range else { panic!("{range:?}") };
        let mut found: Vec<Row> = spans
            .iter()
            .flat_map(|span| self.rows.range((span.segment, span.first)..=(span.segment, span.last)))
            .map(|(_, row)| row.clone())
            .filter(|row| row.seq < before)
            .collect();
        let more = found.len() > limit.events;
        if more {
            found.drain(..found.len() - limit.events);
        }
        Page { rows: found, more }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Owners follow each other at any moment; writes get lost, come late, or are not answered. What was reported as
    /// appended is there for each later owner, in its place.
    #[test]
    fn what_was_appended_is_there_for_ever(
        faults in prop::collection::vec(0_u8..12, 1..200),
        owners in prop::collection::vec((prop::collection::vec((1_usize..4, any::<bool>(), 0_u64..3), 0..6), 0_usize..30, 0_u8..4), 1..8),
        tail_events in 1_usize..6,
    ) {
        let day = 24 * 3_600 * 1_000;
        let limits = Arc::new(Limits { bucket_bytes: 600, tail: ReadLimit { events: tail_events, bytes: 1 << 20 }, ..Limits::default() });
        // They end: a write that is said again for ever proves nothing.
        let (mut store, mut faults) = (Store::default(), faults.into_iter().chain(std::iter::repeat(11)));
        let mut acked: Vec<Row> = Vec::new();
        let mut late: Vec<Write> = Vec::new();
        let mut handed: Option<Handed> = None;
        let mut contents = 0_u64;
        for (epoch, (batches, stop_after, start)) in owners.into_iter().enumerate() {
            let mut log = Log::new(tenure(epoch as u64 + 1), 0, LogId(epoch as u64), Arc::clone(&limits));
            let how = match handed.take() {
                Some(state) if start == 0 => Opening::Passed(Box::new(state)),
                Some(_) if start == 1 => Opening::HandedOver,
                _ => Opening::Full,
            };
            let by_takeover = matches!(how, Opening::Full);
            if !by_takeover {
                // Who hands over has nothing in flight.
                late.clear();
            }
            let mut now = Now { mono_ms: 0, unix: UnixMs(0) };
            let (mut out, mut steps) = (Actions::new(), 0);
            log.open(now, how, &mut out);
            let mut todo = batches.into_iter();
            let mut in_flight: Vec<Row> = Vec::new();
            'owner: loop {
                let actions = std::mem::take(&mut out);
                let idle = actions.is_empty();
                for action in actions {
                    steps += 1;
                    if steps > stop_after && by_takeover {
                        break 'owner;
                    }
                    match action {
                        Action::ReadSegments => log.handle(now, Input::Segments(Ok(store.records.values().cloned().collect())), &mut out),
                        Action::ReadRows { spans, range, limit } => {
                            let page = store.page(&spans, range, limit);
                            log.handle(now, Input::Rows(Ok(page)), &mut out);
                        }
                        Action::Write { which, write } => {
                            let outcome = match faults.next().unwrap_or(0) {
                                0 => Outcome::NotDone(NotDone::Overloaded),
                                1 => Outcome::Unknown,
                                2 => { late.push(write); Outcome::Unknown }
                                3 => { store.apply(write); Outcome::Unknown }
                                _ => { store.apply(write); Outcome::Done }
                            };
                            log.handle(now, Input::Wrote { which, outcome }, &mut out);
                        }
                        Action::Barrier => log.handle(now, Input::Passed, &mut out),
                        Action::Opened { rows } => {
                            // Nothing that was reported is missing.
                            prop_assert!(log.head().0 >= acked.len() as u64);
                            for row in &rows {
                                if let Some(known) = acked.get(row.seq.0 as usize - 1) {
                                    prop_assert_eq!(known, row);
                                }
                            }
                            let known = acked.len() as u64;
                            let spans = log.spans(Seq(1), log.head());
                            let all = store.page(&spans, Range::before(Seq(u64::MAX)), ReadLimit { events: 1_000, bytes: 0 }).rows;
                            prop_assert_eq!(all.len() as u64, log.head().0, "dense");
                            prop_assert_eq!(&all[..known as usize], &acked[..]);
                            acked = all;
                        }
                        Action::Absent => prop_assert!(acked.is_empty()),
                        Action::Appended => acked.append(&mut in_flight),
                        Action::NotAppended(_) => in_flight.clear(),
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
                if !idle || !out.is_empty() {
                    continue;
                }
                if let Some(deadline) = log.next_deadline() {
                    now.mono_ms = deadline;
                    // What was late may come before it is said again, or after.
                    if faults.next().unwrap_or(0) % 2 == 0 {
                        late.drain(..).for_each(|write| store.apply(write));
                    }
                    log.handle(now, Input::Tick, &mut out);
                    continue;
                }
                prop_assert!(log.is_idle());
                let Some((len, derives, window)) = todo.next() else { break };
                now.unix = UnixMs(window * 10 * day);
                let first = log.head().next();
                in_flight = (first.0..first.0 + len as u64)
                    .map(|seq| {
                        contents += 1;
                        Row { event: Bytes::from(contents.to_string()), ..row(seq, first.0) }
                    })
                    .collect();
                if derives {
                    in_flight = with_derived(in_flight);
                }
                log.append(now, in_flight.clone().into(), &mut out);
            }
            handed = log.hand_over().filter(|_| !by_takeover || steps <= stop_after);
            if handed.is_none() {
                // The fence stops what this owner says, not what it has sent.
                let some = late.len() / 2;
                late.drain(..some).for_each(|write| store.apply(write));
            }
        }
    }
}
