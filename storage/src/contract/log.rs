//! What every [`LogStore`] must do: segments and their rows, derived rows in any order of arrival, what owners leave about themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use banyan_proto::id::{Bucket, Epoch, Incarnation, LogId, Part, RoomId, SegmentId, Seq, SlotId};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::{ANY, Check, Subject, eventually, member, ok, room, room_row, row, user, wait};
use crate::Error;
use crate::accounts::TEXT_MAX;
use crate::log_store::{
    BATCH_BYTES_MAX, BATCH_ROWS_MAX, LogStore, RoomWrite, SEGMENTS_MAX, Said, SegmentRecord, SlotOwner, Span,
    Write,
};
use crate::outcome::{Completion, NotDone, Outcome};
use crate::page::{PAGE_MAX, Page, READ_MAX, Range, ReadLimit};
use crate::row::{Derived, Marks, MemberRow, OUT_MAX, RoomRow, Row};

/// Every check. They may run in any order.
pub const ALL: &[Check<dyn LogStore>] = &[
    ("unknown_rooms_are_empty", unknown_rooms_are_empty),
    ("records_come_back_in_order", records_come_back_in_order),
    ("more_segments_than_can_be_read_are_seen", more_segments_than_can_be_read_are_seen),
    ("ranges_both_ways_over_segments_and_buckets", ranges_both_ways_over_segments_and_buckets),
    ("rooms_and_segments_do_not_see_their_neighbours", rooms_and_segments_do_not_see_their_neighbours),
    ("void_segments_and_holes_are_left_alone", void_segments_and_holes_are_left_alone),
    ("limits_of_reads", limits_of_reads),
    ("what_a_batch_derives_is_stored_with_its_row", what_a_batch_derives_is_stored_with_its_row),
    ("the_same_write_again_changes_nothing", the_same_write_again_changes_nothing),
    ("too_large_is_definite", too_large_is_definite),
    ("what_is_done_is_read", what_is_done_is_read),
    ("a_full_sink_loses_nothing", a_full_sink_loses_nothing),
    ("a_gone_sink_disturbs_nobody", a_gone_sink_disturbs_nobody),
    ("the_last_change_wins_in_any_order", the_last_change_wins_in_any_order),
    ("members_and_user_rooms", members_and_user_rooms),
    ("pages_of_members_and_rooms", pages_of_members_and_rooms),
    ("marks_only_rise", marks_only_rise),
    ("said_is_what_was_said_last", said_is_what_was_said_last),
    ("fences_stay", fences_stay),
    ("incarnations_are_registered", incarnations_are_registered),
    ("slot_owners_close_and_stay_closed", slot_owners_close_and_stay_closed),
    ("everything_is_there_after_a_reopen", everything_is_there_after_a_reopen),
    ("concurrent_owners_leave_whole_logs", concurrent_owners_leave_whole_logs),
];

/// What a store with one writer must do beside: one commit for what is put in at once.
pub const GROUP_COMMIT: &[Check<dyn LogStore>] =
    &[("groups_come_back_in_few_messages", groups_come_back_in_few_messages)];

type Log = Subject<dyn LogStore>;

/// Writes and waits for the outcomes, in the order of the group.
pub fn write_all(store: &(impl LogStore + ?Sized), group: Vec<RoomWrite>) -> Vec<Outcome> {
    let (done, mut completions) = mpsc::channel(4);
    let tickets: Vec<_> = group.iter().map(|write| write.ticket).collect();
    store.write(group, &done);
    let mut outcomes = BTreeMap::new();
    while outcomes.len() < tickets.len() {
        for Completion { ticket, outcome } in completions.blocking_recv().unwrap() {
            assert!(tickets.contains(&ticket), "a ticket that nobody has: {ticket}");
            assert!(outcomes.insert(ticket, outcome).is_none(), "ticket {ticket} was answered twice");
        }
    }
    tickets.iter().map(|ticket| outcomes[ticket]).collect()
}

/// Writes to one room, all at once, and expects them to be done.
#[track_caller]
pub fn write(store: &(impl LogStore + ?Sized), room: &RoomId, writes: Vec<Write>) {
    let count = writes.len();
    assert_eq!(write_all(store, group(room, writes)), vec![Outcome::Done; count]);
}

fn group(room: &RoomId, writes: Vec<Write>) -> Vec<RoomWrite> {
    (0..).zip(writes).map(|(ticket, write)| RoomWrite { ticket, room: room.clone(), write }).collect()
}

pub fn segment(epoch: u64, part: u64) -> SegmentId {
    SegmentId { epoch: Epoch(epoch), part: Part(part) }
}

/// A segment's record; everything but the names follows from them.
pub fn record(id: SegmentId, bucket: u32, first_seq: u64, prev: Option<SegmentId>) -> Box<SegmentRecord> {
    Box::new(SegmentRecord {
        id,
        bucket: Bucket(bucket),
        first_seq: Seq(first_seq),
        n_before: (first_seq - 1).div_ceil(2),
        prev,
        incarnation: Incarnation(u128::from(id.epoch.0) << 100 | 7),
        log: LogId(0xfeed_0000_0000_0001),
    })
}

/// The batch of rows `from..=to` (as [`row`] makes them) in a segment.
pub fn rows(room: &RoomId, segment: SegmentId, bucket: u32, from: u64, to: u64) -> Write {
    let rows = (from..=to).map(|seq| row(room, seq, from)).collect();
    Write::Rows { segment, bucket: Bucket(bucket), rows }
}

pub fn derived(room: Option<RoomRow>, members: Vec<MemberRow>) -> Write {
    Write::Derived(Box::new(Derived { room, members }))
}

pub fn span(segment: SegmentId, bucket: u32, first: u64, last: u64) -> Span {
    Span { segment, bucket: Bucket(bucket), first: Seq(first), last: Seq(last) }
}

/// Everything of one segment.
fn all_of(segment: SegmentId, bucket: u32) -> Vec<Span> {
    vec![span(segment, bucket, 1, u64::MAX)]
}

fn changed(name: &str, role: u8, changed: u64) -> MemberRow {
    MemberRow { changed: Seq(changed), ..member(name, role, changed) }
}

#[track_caller]
fn check_rows(
    store: &dyn LogStore,
    room: &RoomId,
    spans: &[Span],
    range: Range,
    limit: ReadLimit,
    (want, more): (std::ops::Range<u64>, bool),
) {
    let page = ok(store.rows(room.clone(), spans.to_vec(), range, limit));
    let seqs: Vec<_> = page.rows.iter().map(|row| row.seq.0).collect();
    assert_eq!(seqs, want.collect::<Vec<_>>(), "{range:?} {limit:?}");
    assert_eq!(page.more, more, "more of {range:?} {limit:?}");
    for got in &page.rows {
        assert_eq!(got.event, row(room, got.seq.0, 0).event);
    }
}

fn unknown_rooms_are_empty(subject: &mut Log) {
    let store = subject.store();
    let nowhere = room("log.unknown");
    let empty = Page { rows: Vec::new(), more: false };
    assert_eq!(ok(store.segments(nowhere.clone())), []);
    assert_eq!(ok(store.said(nowhere.clone())), None);
    for range in [Range::after(Seq(0)), Range::before(Seq(u64::MAX))] {
        assert_eq!(ok(store.rows(nowhere.clone(), all_of(segment(1, 0), 0), range, ANY)), empty);
        assert_eq!(ok(store.rows(nowhere.clone(), Vec::new(), range, ANY)), empty);
    }
    assert_eq!(ok(store.room_row(nowhere.clone())), None);
    assert_eq!(ok(store.member(nowhere.clone(), user("log.unknown"))), None);
    assert_eq!(ok(store.members(nowhere.clone(), None, 10)), (vec![], false));
    assert_eq!(ok(store.user_rooms(user("log.unknown"), None, 10)), (vec![], false));
    // Marks make neither a member nor a room.
    let marks = Marks { delivered: Seq(1), ..Marks::default() };
    store.put_marks(vec![(nowhere.clone(), user("log.unknown"), marks)]);
    assert_eq!(ok(store.member(nowhere.clone(), user("log.unknown"))), None);
    assert_eq!(ok(store.segments(nowhere)), []);
    let nobody = Incarnation(0xdead);
    assert!(!wait(store.is_fenced(nobody).get()).unwrap());
    assert!(ok(store.incarnations()).iter().all(|(id, _)| *id != nobody));
    assert_eq!(ok(store.slot_owners(SlotId(u16::MAX))), []);
}

fn records_come_back_in_order(subject: &mut Log) {
    let store = subject.store();
    let (before, ours, after) = (room("log.records"), room("log.records1"), room("log.records2"));
    for room in [&before, &after] {
        write(store, room, vec![Write::Record(record(segment(1, 0), 3, 1, None))]);
    }
    // Numbers of more than one byte, so that a wrong order of bytes shows.
    let ids = [
        segment(1, 0),
        segment(1, 1),
        segment(1, 1 << 32),
        segment(255, 7),
        segment(256, 0),
        segment(1 << 32 | 1, 0),
    ];
    let mut prev = None;
    let mut records = Vec::new();
    for (i, id) in (0..).zip(ids) {
        records.push(*record(id, 100 + i, 1 + 1_000 * u64::from(i), prev));
        prev = Some(id);
    }
    for record in records.iter().rev() {
        write(store, &ours, vec![Write::Record(record.clone().into())]);
    }
    assert_eq!(ok(store.segments(ours)), records, "every column comes back");
}

fn more_segments_than_can_be_read_are_seen(subject: &mut Log) {
    let store = subject.store();
    let ours = room("log.many");
    let records = |from: u64, to: u64| {
        (from..=to).map(|epoch| Write::Record(record(segment(epoch, 0), 0, 1, None))).collect()
    };
    write(store, &ours, records(1, SEGMENTS_MAX as u64));
    assert_eq!(ok(store.segments(ours.clone())).len(), SEGMENTS_MAX);
    for more in 1..=2 {
        write(store, &ours, records(SEGMENTS_MAX as u64 + more, SEGMENTS_MAX as u64 + more));
        let read = ok(store.segments(ours.clone()));
        assert_eq!(read.len(), SEGMENTS_MAX + 1);
        assert!(read.iter().map(|record| record.id.epoch.0).eq(1..=SEGMENTS_MAX as u64 + 1));
    }
}

fn ranges_both_ways_over_segments_and_buckets(subject: &mut Log) {
    let store = subject.store();
    let ours = room("log.ranges");
    // 1..=4 and 5..=9 in one bucket, a segment that stayed empty, 10..=300 in a later bucket.
    let (a, b, empty, c) = (segment(1, 0), segment(1, 1), segment(2, 0), segment(300, 1 << 32));
    write(store, &ours, vec![rows(&ours, c, 700, 10, 300)]);
    write(store, &ours, vec![rows(&ours, b, 256, 5, 9), rows(&ours, a, 256, 1, 2)]);
    write(store, &ours, vec![rows(&ours, a, 256, 3, 4)]);
    let spans = [
        span(a, 256, 1, 4),
        span(b, 256, 5, 9),
        span(empty, 300, 10, 9), // ends before it begins
        span(c, 700, 10, u64::MAX),
    ];
    let check = |range, limit, want| check_rows(store, &ours, &spans, range, limit, want);
    let events = |events| ReadLimit { events, ..ANY };
    let (last, any) = (Seq(u64::MAX), Seq(0));
    let after = |after, through| Range::After { after: Seq(after), through: Seq(through) };
    let before = |before, above| Range::Before { before: Seq(before), above: Seq(above) };
    check(Range::after(any), ANY, (1..301, false));
    check(Range::after(Seq(298)), ANY, (299..301, false));
    check(Range::after(Seq(300)), ANY, (0..0, false));
    check(Range::after(last), ANY, (0..0, false));
    check(Range::after(any), events(4), (1..5, true));
    check(Range::after(any), events(5), (1..6, true));
    check(Range::after(Seq(3)), events(8), (4..12, true));
    check(Range::after(Seq(254)), events(3), (255..258, true));
    check(Range::after(Seq(297)), events(3), (298..301, false));
    check(after(2, 5), ANY, (3..6, false));
    check(after(2, 5), events(2), (3..5, true));
    check(after(2, 4), events(2), (3..5, false));
    check(after(2, 2), ANY, (0..0, false));
    check(Range::before(last), events(2), (299..301, true));
    check(Range::before(Seq(4)), ANY, (1..4, false));
    check(Range::before(Seq(12)), events(3), (9..12, true));
    check(Range::before(Seq(12)), events(7), (5..12, true));
    check(Range::before(Seq(6)), events(5), (1..6, false));
    check(Range::before(Seq(1)), ANY, (0..0, false));
    check(Range::before(any), ANY, (0..0, false));
    check(before(12, 3), ANY, (4..12, false));
    check(before(12, 3), events(8), (4..12, false));
    check(before(12, 3), events(7), (5..12, true));
    check(before(10, 9), ANY, (0..0, false));
    // A span is what is asked for, whatever more the segment holds.
    let part = [span(a, 256, 2, 3), span(c, 700, 11, 12)];
    let page = ok(store.rows(ours.clone(), part.to_vec(), Range::after(any), ANY));
    assert_eq!(
        page.rows,
        [row(&ours, 2, 1), row(&ours, 3, 3), row(&ours, 11, 10), row(&ours, 12, 10)],
        "every column comes back"
    );
    let page = ok(store.rows(ours.clone(), part.to_vec(), Range::before(last), events(2)));
    assert_eq!(page, Page { rows: vec![row(&ours, 11, 10), row(&ours, 12, 10)], more: true });
}

fn rooms_and_segments_do_not_see_their_neighbours(subject: &mut Log) {
    let store = subject.store();
    let (shorter, ours, longer) = (room("log.next"), room("log.next1"), room("log.next2"));
    for room in [&shorter, &ours, &longer] {
        for (id, bucket) in [(segment(4, 9), 7), (segment(5, 9), 7), (segment(5, 10), 7), (segment(5, 9), 8)]
        {
            let mut batch = rows(room, id, bucket, 1, 2);
            let Write::Rows { rows, .. } = &mut batch else { unreachable!() };
            for row in Arc::make_mut(rows) {
                row.event = Bytes::from(format!("{room} {id:?} {bucket} {}", row.seq));
            }
            write(store, room, vec![batch]);
        }
    }
    for range in [Range::after(Seq(0)), Range::before(Seq(u64::MAX))] {
        let page = ok(store.rows(ours.clone(), all_of(segment(5, 9), 7), range, ANY));
        let events: Vec<_> = page.rows.iter().map(|row| row.event.clone()).collect();
        let id = segment(5, 9);
        assert_eq!(events, [format!("{ours} {id:?} 7 1"), format!("{ours} {id:?} 7 2")]);
    }
}

fn void_segments_and_holes_are_left_alone(subject: &mut Log) {
    let store = subject.store();
    let ours = room("log.void");
    let (a, void, b) = (segment(1, 0), segment(2, 0), segment(3, 0));
    let other = |from: u64, to: u64| {
        let rows = (from..=to)
            .map(|seq| Row { event: Bytes::from_static(b"void"), ..row(&ours, seq, from) })
            .collect();
        Write::Rows { segment: void, bucket: Bucket(1), rows }
    };
    // Two owners that both continue `a` behind 3; the later one did not see the earlier one's rows.
    write(store, &ours, vec![Write::Record(record(a, 1, 1, None)), rows(&ours, a, 1, 1, 3)]);
    write(store, &ours, vec![Write::Record(record(void, 1, 4, Some(a))), other(4, 6)]);
    write(store, &ours, vec![Write::Record(record(b, 1, 4, Some(a))), rows(&ours, b, 1, 4, 5)]);
    // A zombie's later batch, which `a` cannot hold by the chain, and one that leaves a hole in `b`.
    write(store, &ours, vec![rows(&ours, a, 1, 4, 4), rows(&ours, b, 1, 8, 9)]);
    assert_eq!(ok(store.segments(ours.clone())).len(), 3, "what is void is for the reader to say");
    let chain = [span(a, 1, 1, 3), span(b, 1, 4, u64::MAX)];
    let page = ok(store.rows(ours.clone(), chain.to_vec(), Range::after(Seq(0)), ANY));
    let want = [(1, 1), (2, 1), (3, 1), (4, 4), (5, 4), (8, 8), (9, 8)];
    assert_eq!(page.rows, want.map(|(seq, first)| row(&ours, seq, first)));
    let newest = ReadLimit { events: 3, ..ANY };
    let page = ok(store.rows(ours.clone(), chain.to_vec(), Range::before(Seq(u64::MAX)), newest));
    assert_eq!(
        page,
        Page { rows: [(5, 4), (8, 8), (9, 8)].map(|(s, f)| row(&ours, s, f)).into(), more: true }
    );
    let page = ok(store.rows(ours.clone(), all_of(void, 1), Range::after(Seq(0)), ANY));
    assert_eq!(page.rows.len(), 3);
    assert!(page.rows.iter().all(|row| row.event == "void"));
}

fn limits_of_reads(subject: &mut Log) {
    let store = subject.store();
    let ours = room("log.limits");
    let (a, b) = (segment(1, 0), segment(1, 1));
    for (id, seqs) in [(a, 1..=6_u64), (b, 7..=10)] {
        let rows =
            seqs.map(|seq| Row { event: Bytes::from(vec![b'x'; 100]), ..row(&ours, seq, 1) }).collect();
        write(store, &ours, vec![Write::Rows { segment: id, bucket: Bucket(0), rows }]);
    }
    let spans = vec![span(a, 0, 1, 6), span(b, 0, 7, u64::MAX)];
    let read = |range, events, bytes| {
        let page = ok(store.rows(ours.clone(), spans.clone(), range, ReadLimit { events, bytes }));
        (page.rows.first().map(|row| row.seq.0), page.rows.len(), page.more)
    };
    let (all, back) = (Range::after(Seq(0)), Range::before(Seq(11)));
    assert_eq!(read(all, 10, 300), (Some(1), 3, true));
    assert_eq!(read(all, 10, 399), (Some(1), 3, true));
    assert_eq!(read(all, 10, 600), (Some(1), 6, true), "more is in the next segment");
    assert_eq!(read(all, 10, 799), (Some(1), 7, true));
    assert_eq!(read(all, 10, 1), (Some(1), 1, true), "the first row comes whatever its size");
    assert_eq!(read(Range::after(Seq(9)), 10, 1), (Some(10), 1, false));
    assert_eq!(read(back, 10, 200), (Some(9), 2, true), "the newest stay");
    assert_eq!(read(back, 10, 400), (Some(7), 4, true));
    assert_eq!(read(back, 10, 500), (Some(6), 5, true));
    assert_eq!(read(back, 10, 1_000), (Some(1), 10, false));
    assert_eq!(read(all, 0, 1_000), (None, 0, false));
    // Whatever is asked for.
    let long = room("log.limits.long");
    let count = READ_MAX.events as u64 + 10;
    let mut next = 1;
    while next <= count {
        let to = count.min(next + BATCH_ROWS_MAX as u64 - 1);
        write(store, &long, vec![rows(&long, a, 0, next, to)]);
        next = to + 1;
    }
    check_rows(store, &long, &all_of(a, 0), all, ANY, (1..READ_MAX.events as u64 + 1, true));
    check_rows(store, &long, &all_of(a, 0), Range::before(Seq(u64::MAX)), ANY, (11..count + 1, true));
}

fn what_a_batch_derives_is_stored_with_its_row(subject: &mut Log) {
    let store = subject.store();
    let ours = room("log.derives");
    let mut absent = changed("log.derives.b", 0, 2);
    (absent.left_seq, absent.out) = (Some(Seq(2)), vec![(Seq(1), Seq(2))]);
    let what = Derived {
        room: Some(RoomRow { changed: Seq(2), floor: Seq(1), ..room_row(&ours) }),
        members: vec![changed("log.derives.a", 4, 2), absent],
    };
    let mut batch = rows(&ours, segment(1, 0), 0, 1, 2);
    let Write::Rows { rows: batch_rows, .. } = &mut batch else { unreachable!() };
    Arc::make_mut(batch_rows)[1].derived = Some(Arc::new(what));
    let want = batch_rows.clone();
    write(store, &ours, vec![batch, rows(&ours, segment(1, 0), 0, 3, 3)]);
    // Nothing, but there.
    let mut last = rows(&ours, segment(1, 0), 0, 4, 4);
    let Write::Rows { rows: last_rows, .. } = &mut last else { unreachable!() };
    let only = &mut Arc::make_mut(last_rows)[0];
    (only.derived, only.event) = (Some(Arc::default()), Bytes::new());
    let want = [&want[..], &[row(&ours, 3, 3)], last_rows].concat();
    write(store, &ours, vec![last]);
    for range in [Range::after(Seq(0)), Range::before(Seq(u64::MAX))] {
        let page = ok(store.rows(ours.clone(), all_of(segment(1, 0), 0), range, ANY));
        assert_eq!(page.rows, want);
    }
    assert_eq!(ok(store.room_row(ours.clone())), None, "that is another write");
    assert_eq!(ok(store.members(ours, None, 10)), (vec![], false));
}

/// All that can be read of a room with these spans.
fn dump(store: &dyn LogStore, room: &RoomId, spans: &[Span]) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        ok(store.segments(room.clone())),
        ok(store.rows(room.clone(), spans.to_vec(), Range::after(Seq(0)), ANY)),
        ok(store.said(room.clone())),
        ok(store.room_row(room.clone())),
        ok(store.members(room.clone(), None, PAGE_MAX)),
    )
}

fn the_same_write_again_changes_nothing(subject: &mut Log) {
    let store = subject.store();
    let ours = room("log.again");
    let id = segment(1, 0);
    let mut first = rows(&ours, id, 4, 1, 3);
    let Write::Rows { rows: first_rows, .. } = &mut first else { unreachable!() };
    Arc::make_mut(first_rows)[2].derived =
        Some(Arc::new(Derived { room: None, members: vec![changed("log.again.a", 1, 3)] }));
    let writes = vec![
        Write::Record(record(id, 4, 1, None)),
        first,
        rows(&ours, id, 4, 4, 9),
        derived(Some(room_row(&ours)), vec![changed("log.again.a", 1, 3)]),
        Write::Said(Said { segment: id, head: Seq(9), n: 5 }),
    ];
    write(store, &ours, writes.clone());
    let spans = all_of(id, 4);
    let before = dump(store, &ours, &spans);
    for one in writes.iter().rev() {
        write(store, &ours, vec![one.clone()]);
        assert!(dump(store, &ours, &spans) == before, "{one:?}");
    }
    // Twice in one go.
    write(store, &ours, [&writes[..], &writes[..]].concat());
    assert!(dump(store, &ours, &spans) == before);
}

fn too_large_is_definite(subject: &mut Log) {
    let store = subject.store();
    let ours = room("log.large");
    let id = segment(1, 0);
    let mut heavy = rows(&ours, id, 0, 1, 5);
    let Write::Rows { rows: heavy_rows, .. } = &mut heavy else { unreachable!() };
    for row in Arc::make_mut(heavy_rows) {
        row.event = Bytes::from(vec![1; BATCH_BYTES_MAX / 5 + 1]);
    }
    let outcomes = write_all(
        store,
        group(
            &ours,
            vec![
                rows(&ours, id, 0, 1, BATCH_ROWS_MAX as u64 + 1),
                heavy,
                Write::Record(record(id, 0, 1, None)),
            ],
        ),
    );
    let too_large = Outcome::NotDone(NotDone::TooLarge);
    assert_eq!(outcomes, [too_large, too_large, Outcome::Done]);
    check_rows(store, &ours, &all_of(id, 0), Range::after(Seq(0)), ANY, (0..0, false));
    write(store, &ours, vec![rows(&ours, id, 0, 1, BATCH_ROWS_MAX as u64)]);
}

fn what_is_done_is_read(subject: &mut Log) {
    let store = subject.store();
    let ours = room("log.order");
    let mut prev = None;
    for epoch in 1..=20 {
        let (id, first) = (segment(epoch, 0), 3 * epoch - 2);
        write(store, &ours, vec![Write::Record(record(id, 0, first, prev))]);
        assert_eq!(ok(store.segments(ours.clone())).last().unwrap().id, id);
        write(store, &ours, vec![rows(&ours, id, 0, first, first + 2)]);
        check_rows(store, &ours, &all_of(id, 0), Range::after(Seq(0)), ANY, (first..first + 3, false));
        write(store, &ours, vec![derived(None, vec![changed("log.order.a", 1, first + 2)])]);
        assert_eq!(ok(store.member(ours.clone(), user("log.order.a"))).unwrap().0.changed, Seq(first + 2));
        let said = Said { segment: id, head: Seq(first + 2), n: 1 };
        write(store, &ours, vec![Write::Said(said)]);
        assert_eq!(ok(store.said(ours.clone())), Some(said));
        prev = Some(id);
    }
}

fn groups_come_back_in_few_messages(subject: &mut Log) {
    let store = subject.store();
    let (done, mut completions) = mpsc::channel(400);
    let mut group = Vec::new();
    for i in 1..=50 {
        let room = room(&format!("log.few.{i}"));
        let id = segment(1, 0);
        let writes = [
            Write::Record(record(id, 0, 1, None)),
            rows(&room, id, 0, 1, 2),
            derived(Some(room_row(&room)), vec![changed("log.few", 1, 1)]),
            Write::Said(Said { segment: id, head: Seq(2), n: 1 }),
        ];
        group.extend((0..).zip(writes).map(|(kind, write)| RoomWrite {
            ticket: i * 10 + kind,
            room: room.clone(),
            write,
        }));
    }
    let mut tickets: BTreeSet<_> = group.iter().map(|write| write.ticket).collect();
    store.write(group, &done);
    let mut messages = 0;
    while !tickets.is_empty() {
        messages += 1;
        for completion in completions.blocking_recv().unwrap() {
            assert_eq!(completion.outcome, Outcome::Done);
            assert!(tickets.remove(&completion.ticket));
        }
    }
    assert!(messages <= 2, "a group that is put in at once is one commit, or two: {messages} messages");
    assert_eq!(ok(store.user_rooms(user("log.few"), None, 100)).0.len(), 50);
}

fn a_full_sink_loses_nothing(subject: &mut Log) {
    let store = subject.store();
    let (done, mut completions) = mpsc::channel(1);
    for i in 1..=50 {
        let ours = room(&format!("log.sink.{i}"));
        let write_one = rows(&ours, segment(1, 0), 0, 1, 1);
        store.write(vec![RoomWrite { ticket: i, room: ours, write: write_one }], &done);
        if i % 10 == 0 {
            // Others are served meanwhile.
            let other = room(&format!("log.sink.other.{i}"));
            write(store, &other, vec![rows(&other, segment(1, 0), 0, 1, 1)]);
        }
    }
    let mut tickets = BTreeSet::new();
    while tickets.len() < 50 {
        for completion in completions.blocking_recv().unwrap() {
            assert!(tickets.insert(completion.ticket));
        }
    }
}

fn a_gone_sink_disturbs_nobody(subject: &mut Log) {
    let store = subject.store();
    let (done, completions) = mpsc::channel(1);
    drop(completions);
    let (ours, other) = (room("log.gone"), room("log.gone.other"));
    store.write(group(&ours, vec![rows(&ours, segment(1, 0), 0, 1, 1)]), &done);
    write(store, &other, vec![rows(&other, segment(1, 0), 0, 1, 1)]);
    // It is stored all the same; before or after the other room's, as no order is promised between rooms.
    let stored = || {
        let page = store.rows(ours.clone(), all_of(segment(1, 0), 0), Range::after(Seq(0)), ANY);
        ok(page).rows.len()
    };
    eventually(stored, &1);
    check_rows(store, &ours, &all_of(segment(1, 0), 0), Range::after(Seq(0)), ANY, (1..2, false));
}

fn the_last_change_wins_in_any_order(subject: &mut Log) {
    let store = subject.store();
    const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for (number, order) in (0..).zip(ORDERS) {
        for (kind, at_once) in [("one", false), ("all", true)] {
            let ours = room(&format!("log.last.{kind}.{number}"));
            let (stays, goes) =
                (format!("log.last.{kind}.{number}.s"), format!("log.last.{kind}.{number}.g"));
            let version = |at: u64, stays_role, goes_role| {
                let row = RoomRow { name: format!("at {at}"), changed: Seq(at), ..room_row(&ours) };
                derived(Some(row), vec![changed(&stays, stays_role, at), changed(&goes, goes_role, at)])
            };
            let versions = [version(3, 1, 2), version(255, 0, 3), version(256, 2, 0)];
            let writes: Vec<_> = order.iter().map(|i| versions[*i].clone()).collect();
            if at_once {
                write(store, &ours, writes);
            } else {
                writes.into_iter().for_each(|one| write(store, &ours, vec![one]));
            }
            assert_eq!(ok(store.room_row(ours.clone())).unwrap().name, "at 256", "{order:?} {kind}");
            let members = ok(store.members(ours.clone(), None, 10)).0;
            let rows: Vec<_> = members.into_iter().map(|(row, _)| row).collect();
            assert_eq!(rows, [changed(&goes, 0, 256), changed(&stays, 2, 256)], "{order:?} {kind}");
            assert_eq!(ok(store.user_rooms(user(&stays), None, 9)).0, std::slice::from_ref(&ours));
            assert_eq!(ok(store.user_rooms(user(&goes), None, 9)).0, []);
            // One that is not below replaces; each row for itself.
            let again = changed(&goes, 1, 256);
            write(store, &ours, vec![derived(None, vec![again.clone(), changed(&stays, 0, 255)])]);
            assert_eq!(ok(store.member(ours.clone(), user(&goes))).unwrap().0, again);
            assert_eq!(ok(store.member(ours.clone(), user(&stays))).unwrap().0, changed(&stays, 2, 256));
            assert_eq!(ok(store.user_rooms(user(&goes), None, 9)).0, [ours]);
        }
    }
}

fn members_and_user_rooms(subject: &mut Log) {
    let store = subject.store();
    let (a, b) = (room("log.members.a"), room("log.members.b"));
    let name = "log.members.user";
    let rooms = || ok(store.user_rooms(user(name), None, 10)).0;
    for room in [&a, &b] {
        write(store, room, vec![derived(Some(room_row(room)), vec![changed(name, 2, 1)])]);
    }
    assert_eq!(ok(store.room_row(a.clone())), Some(room_row(&a)));
    assert_eq!(rooms(), [a.clone(), b.clone()]);
    // Leaves and comes back, thirty-nine times: the row keeps what it is given.
    let mut row = changed(name, 2, 1);
    for i in 0..39 {
        let seq = 2 + 2 * i;
        let gone = MemberRow { role: 0, left_seq: Some(Seq(seq)), changed: Seq(seq), ..row.clone() };
        write(store, &a, vec![derived(None, vec![gone.clone()])]);
        assert_eq!(rooms(), std::slice::from_ref(&b));
        assert_eq!(ok(store.member(a.clone(), user(name))).unwrap().0, gone);
        row.push_out(Seq(seq), Seq(seq + 1));
        (row.joined_seq, row.changed) = (Seq(seq + 1), Seq(seq + 1));
        write(store, &a, vec![derived(None, vec![row.clone()])]);
        assert_eq!(rooms(), [a.clone(), b.clone()]);
    }
    let (stored, _) = ok(store.member(a.clone(), user(name))).unwrap();
    assert_eq!(stored, row);
    assert_eq!(stored.out.len(), OUT_MAX);
    assert_eq!(ok(store.members(a, None, 10)), (vec![(row, Marks::default())], false));
}

fn pages_of_members_and_rooms(subject: &mut Log) {
    let store = subject.store();
    let ours = room("log.pages");
    // Neither in order of length nor of insertion.
    let names: Vec<_> = (0..25).map(|i| format!("log.pages.{}", 997 * (i + 1) % 1_009)).collect();
    write(store, &ours, vec![derived(None, names.iter().map(|name| changed(name, 1, 1)).collect())]);
    let sorted: Vec<_> = names.iter().collect::<BTreeSet<_>>().into_iter().map(|name| user(name)).collect();
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let (page, more) = ok(store.members(ours.clone(), after, 10));
        seen.extend(page.iter().map(|(row, _)| row.user.clone()));
        after = seen.last().cloned();
        assert_eq!(more, seen.len() < 25);
        if !more {
            break;
        }
    }
    assert_eq!(seen, sorted);
    assert_eq!(ok(store.members(ours, after, PAGE_MAX)), (vec![], false));

    let everywhere = "log.pages.everywhere";
    let rooms: Vec<_> = (0..12).map(|i| room(&format!("log.pages.{i}"))).collect();
    for room in &rooms {
        write(store, room, vec![derived(None, vec![changed(everywhere, 1, 1)])]);
    }
    let sorted: Vec<_> = rooms.iter().collect::<BTreeSet<_>>().into_iter().cloned().collect();
    let (page, more) = ok(store.user_rooms(user(everywhere), None, 5));
    assert_eq!((page.as_slice(), more), (&sorted[..5], true));
    let (page, more) = ok(store.user_rooms(user(everywhere), Some(sorted[4].clone()), 7));
    assert_eq!((page.as_slice(), more), (&sorted[5..], false));
}

fn marks_only_rise(subject: &mut Log) {
    let store = subject.store();
    let ours = room("log.marks");
    let names = ["log.marks.a", "log.marks.b", "log.marks.c"];
    write(store, &ours, vec![derived(None, names.map(|name| changed(name, 1, 1)).to_vec())]);
    let marks = |delivered, seen, seen_n| Marks { delivered: Seq(delivered), seen: Seq(seen), seen_n };
    let get = |name: &str| ok(store.member(ours.clone(), user(name))).unwrap().1;
    assert_eq!(get("log.marks.a"), Marks::default());
    store.put_marks(vec![
        (ours.clone(), user("log.marks.a"), marks(5, 3, 2)),
        (ours.clone(), user("log.marks.c"), marks(9, 9, 5)),
        (ours.clone(), user("log.marks.stranger"), marks(9, 9, 5)),
    ]);
    store.put_marks(vec![(ours.clone(), user("log.marks.a"), marks(4, 4, 3))]);
    eventually(|| get("log.marks.a"), &marks(5, 4, 3));
    store.put_marks(vec![
        (ours.clone(), user("log.marks.a"), marks(1, 1, 1)),
        (ours.clone(), user("log.marks.b"), marks(1, 0, 0)),
    ]);
    eventually(|| get("log.marks.b"), &marks(1, 0, 0));
    assert_eq!(get("log.marks.a"), marks(5, 4, 3), "older marks change nothing");
    let all = ok(store.members(ours.clone(), None, 10)).0;
    let all: Vec<_> = all.into_iter().map(|(row, marks)| (row.user, marks)).collect();
    let want = [
        (user("log.marks.a"), marks(5, 4, 3)),
        (user("log.marks.b"), marks(1, 0, 0)),
        (user("log.marks.c"), marks(9, 9, 5)),
    ];
    assert_eq!(all, want, "each member has its own, strangers none");
    // A change of membership leaves them alone.
    write(store, &ours, vec![derived(None, vec![changed("log.marks.c", 2, 5)])]);
    assert_eq!(get("log.marks.c"), marks(9, 9, 5));
}

fn said_is_what_was_said_last(subject: &mut Log) {
    let store = subject.store();
    let (ours, other) = (room("log.said"), room("log.said1"));
    let said = |epoch, head| Said { segment: segment(epoch, 3 << 32 | 1), head: Seq(head), n: head / 2 };
    for one in [said(1, 10), said(1 << 32 | 5, 4_000), said(2, 20)] {
        write(store, &ours, vec![Write::Said(one)]);
        assert_eq!(ok(store.said(ours.clone())), Some(one));
    }
    assert_eq!(ok(store.said(other)), None);
    assert_eq!(ok(store.segments(ours.clone())), [], "it makes no room");
    assert_eq!(ok(store.room_row(ours)), None);
}

fn fences_stay(subject: &mut Log) {
    let (ours, other) = (Incarnation(u128::MAX - 77), Incarnation(77));
    {
        let store = subject.store();
        let fenced = |incarnation| wait(store.is_fenced(incarnation).get()).unwrap();
        assert!(!fenced(ours));
        ok(store.write_fence(ours));
        assert!(fenced(ours) && !fenced(other));
        ok(store.write_fence(ours));
        assert!(fenced(ours) && !fenced(other));
    }
    subject.reopen();
    let store = subject.store();
    let fenced = |incarnation| wait(store.is_fenced(incarnation).get()).unwrap();
    assert!(fenced(ours) && !fenced(other));
    ok(store.write_fence(other));
    assert!(fenced(ours) && fenced(other));
}

fn incarnations_are_registered(subject: &mut Log) {
    let store = subject.store();
    let (a, b) = (Incarnation(0xabc << 64), Incarnation(0xabd << 64 | 1));
    ok(store.register_incarnation(b, "node b".to_owned()));
    ok(store.register_incarnation(a, String::new()));
    ok(store.register_incarnation(b, "node b".to_owned()));
    let ours: Vec<_> = ok(store.incarnations()).into_iter().filter(|(id, _)| [a, b].contains(id)).collect();
    assert_eq!(ours, [(a, String::new()), (b, "node b".to_owned())]);
    assert!(!wait(store.is_fenced(a).get()).unwrap(), "to be known is not to be fenced");
    let long = "x".repeat(TEXT_MAX + 1);
    assert!(matches!(wait(store.register_incarnation(Incarnation(5), long)), Err(Error::Refused(_))));
}

fn slot_owners_close_and_stay_closed(subject: &mut Log) {
    let store = subject.store();
    let slot = SlotId(4_000);
    let owner = |epoch, incarnation, closed| SlotOwner {
        epoch: Epoch(epoch),
        incarnation: Incarnation(incarnation),
        closed,
    };
    let name = |owner: SlotOwner| (owner.epoch, owner.incarnation);
    let put = |owner, closes| ok(store.put_slot_owner(slot, owner, closes));
    // From the first open one on.
    let check = |want: &[SlotOwner]| {
        let found = ok(store.slot_owners(slot));
        let needed = want.iter().position(|owner| !owner.closed).unwrap_or(want.len());
        assert!(want.ends_with(&found) && found.len() >= want.len() - needed, "{found:?} of {want:?}");
    };
    let (first, second, rival) = (owner(1, 9, false), owner(2, 3, false), owner(2, 5, false));
    // Neighbours in key order.
    for slot in [SlotId(3_999), SlotId(4_001)] {
        ok(store.put_slot_owner(slot, owner(7, 7, false), None));
    }
    put(first, None);
    check(&[first]);
    put(second, Some(name(first)));
    let first = SlotOwner { closed: true, ..first };
    check(&[first, second]);
    // A late plain write of the replaced one opens nothing.
    put(SlotOwner { closed: false, ..first }, None);
    check(&[first, second]);
    // Another run at the same epoch is a row of its own.
    put(rival, Some(name(first)));
    check(&[first, second, rival]);
    // Closing what is not there yet; it comes later.
    let unseen = owner(1 << 32 | 3, 8, false);
    let last = owner(1 << 32 | 4, 1, false);
    put(last, Some(name(unseen)));
    let closed = SlotOwner { closed: true, ..unseen };
    check(&[first, second, rival, closed, last]);
    put(unseen, None);
    check(&[first, second, rival, closed, last]);
    // Drained: it closes its own.
    let last = SlotOwner { closed: true, ..last };
    put(last, None);
    check(&[first, second, rival, closed, last]);
    assert_eq!(ok(store.slot_owners(SlotId(3_999))), [owner(7, 7, false)]);
    assert_eq!(ok(store.slot_owners(SlotId(4_001))), [owner(7, 7, false)]);
}

fn everything_is_there_after_a_reopen(subject: &mut Log) {
    let ours = room("log.reopen");
    let (a, b) = (segment(1, 0), segment(2, 0));
    let spans = vec![span(a, 9, 1, 40), span(b, 10, 41, u64::MAX)];
    let (slot, incarnation) = (SlotId(4_090), Incarnation(1 << 90));
    let marks = Marks { delivered: Seq(7), seen: Seq(7), seen_n: 4 };
    {
        let store = subject.store();
        let mut batch = rows(&ours, b, 10, 41, 42);
        let Write::Rows { rows: batch_rows, .. } = &mut batch else { unreachable!() };
        let members = vec![changed("log.reopen.b", 0, 42)];
        let carried = Derived { room: None, members: members.clone() };
        Arc::make_mut(batch_rows)[1].derived = Some(Arc::new(carried));
        write(
            store,
            &ours,
            vec![
                Write::Record(record(a, 9, 1, None)),
                Write::Record(record(b, 10, 41, Some(a))),
                rows(&ours, a, 9, 1, 40),
                batch,
                derived(
                    Some(room_row(&ours)),
                    vec![changed("log.reopen.a", 1, 1), changed("log.reopen.b", 2, 1)],
                ),
                derived(None, members),
                Write::Said(Said { segment: b, head: Seq(42), n: 21 }),
            ],
        );
        store.put_marks(vec![(ours.clone(), user("log.reopen.a"), marks)]);
        ok(store.write_fence(incarnation));
        ok(store.register_incarnation(incarnation, "gone".to_owned()));
        let owner = SlotOwner { epoch: Epoch(3), incarnation, closed: false };
        ok(store.put_slot_owner(slot, owner, Some((Epoch(2), Incarnation(1)))));
    }
    let get = |store: &dyn LogStore| ok(store.member(ours.clone(), user("log.reopen.a"))).unwrap().1;
    eventually(|| get(subject.store()), &marks);
    let state = |store: &dyn LogStore| {
        (
            dump(store, &ours, &spans),
            ok(store.user_rooms(user("log.reopen.a"), None, 9)),
            ok(store.user_rooms(user("log.reopen.b"), None, 9)),
            ok(store.slot_owners(slot)),
            ok(store.incarnations()).into_iter().find(|(id, _)| *id == incarnation),
            wait(store.is_fenced(incarnation).get()).unwrap(),
        )
    };
    let before = state(subject.store());
    assert!(before.5 && before.3.len() == 2 && before.4.is_some());
    for _ in 0..3 {
        subject.reopen();
        assert!(state(subject.store()) == before);
    }
    write(subject.store(), &ours, vec![rows(&ours, b, 10, 43, 50)]);
    subject.reopen();
    check_rows(subject.store(), &ours, &spans, Range::after(Seq(0)), ANY, (1..51, false));
}

/// 8 workers, 496 rooms, each worker with all of its rooms in flight at once, a new segment every third batch; then every
/// log is dense and whole along its chain.
fn concurrent_owners_leave_whole_logs(subject: &mut Log) {
    const WORKERS: u64 = 8;
    const ROOMS: u64 = 62;
    const BATCHES: u64 = 9;
    let store = subject.shared();
    let name = |worker: u64, room: u64| self::room(&format!("log.dense.{worker}.{room}"));
    // Record and rows of a segment's first batch go one after the other, as an owner does it.
    let next = move |worker: u64, number: u64, step: u64, head: u64| {
        let room = name(worker, number);
        let (batch, is_record) = (step / 2, step.is_multiple_of(2));
        let id = segment(1 + batch / 3, number);
        let write = if is_record {
            let prev = (batch >= 3).then(|| segment(batch / 3, number));
            let first = if batch % 3 == 0 { head + 1 } else { return None };
            Write::Record(record(id, 0, first, prev))
        } else {
            rows(&room, id, 0, head + 1, head + 1 + (head + number) % 5)
        };
        Some(RoomWrite { ticket: number, room, write })
    };
    let workers: Vec<_> = (0..WORKERS)
        .map(|worker| {
            let store = Arc::clone(&store);
            std::thread::spawn(move || {
                let (done, mut completions) = mpsc::channel(16);
                let mut rooms: BTreeMap<u64, (u64, u64)> = (0..ROOMS).map(|room| (room, (0, 0))).collect();
                let mut group: Vec<_> = (0..ROOMS).filter_map(|room| next(worker, room, 0, 0)).collect();
                let mut in_flight = group.len();
                store.write(std::mem::take(&mut group), &done);
                while in_flight > 0 {
                    for Completion { ticket, outcome } in completions.blocking_recv().unwrap() {
                        assert_eq!(outcome, Outcome::Done);
                        in_flight -= 1;
                        let (step, head) = rooms.get_mut(&ticket).unwrap();
                        if *step % 2 == 1 {
                            *head += 1 + (*head + ticket) % 5;
                        }
                        *step += 1;
                        if *step == 2 * BATCHES {
                            continue;
                        }
                        let write = next(worker, ticket, *step, *head).or_else(|| {
                            *step += 1;
                            next(worker, ticket, *step, *head)
                        });
                        group.extend(write);
                        in_flight += 1;
                    }
                    store.write(std::mem::take(&mut group), &done);
                }
                rooms
            })
        })
        .collect();
    for (worker, thread) in (0..).zip(workers) {
        for (number, (_, head)) in thread.join().unwrap() {
            let ours = name(worker, number);
            let records = ok(store.segments(ours.clone()));
            assert_eq!(records.len() as u64, BATCHES / 3);
            let ends = records.iter().skip(1).map(|next| next.first_seq.0 - 1).chain([u64::MAX]);
            let spans: Vec<_> =
                records.iter().zip(ends).map(|(r, end)| span(r.id, r.bucket.0, r.first_seq.0, end)).collect();
            let page = ok(store.rows(ours.clone(), spans, Range::after(Seq(0)), ANY));
            assert_eq!(page.rows.len() as u64, head);
            for (want, got) in (1..).zip(&page.rows) {
                assert_eq!(*got, row(&ours, want, got.batch_first.0));
            }
        }
    }
}
