//! What every store must do, as code: each backend's tests run all of it, and so must the tests of any other backend.
//!
//! Functions take a [`Subject`], panic where the store is wrong, and use rooms and users of their own, so they may share a store.

#![allow(clippy::unwrap_used, reason = "these are tests; they live here so that other crates can run them")]

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use banyan_proto::id::{LogId, Origin, RoomId, Seq, UnixMs, UserId};
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::accounts::{Accounts, Creation, LoginRow, SWEEP_MAX, TEXT_MAX, UserRow};
use crate::room_log::{
    APPEND_ROWS_MAX, Append, Completion, Derived, Marks, MemberRow, NotDone, OUT_MAX, Outcome, PAGE_MAX,
    READ_MAX, Range, ReadLimit, RoomLog, RoomRow, Row, TAIL,
};
use crate::{BoxFuture, Error};

/// A whole store.
pub trait Store: RoomLog + Accounts {}
impl<T: RoomLog + Accounts> Store for T {}

type Reopen = dyn Fn(Option<Arc<dyn Store>>) -> Arc<dyn Store>;

/// One thing that must hold, by name.
pub type Check = (&'static str, fn(&mut Subject));

/// A store under test, and how to get at it again after it was closed.
pub struct Subject {
    store: Option<Arc<dyn Store>>,
    reopen: Box<Reopen>,
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subject")
    }
}

impl Subject {
    /// `reopen` gets the store to close (none at first) and opens it again over the same data.
    pub fn new(reopen: impl Fn(Option<Arc<dyn Store>>) -> Arc<dyn Store> + 'static) -> Self {
        Self { store: Some(reopen(None)), reopen: Box::new(reopen) }
    }

    fn store(&self) -> &dyn Store {
        &**self.store.as_ref().unwrap()
    }

    fn shared(&self) -> Arc<dyn Store> {
        Arc::clone(self.store.as_ref().unwrap())
    }

    fn reopen(&mut self) {
        let old = self.store.take();
        self.store = Some((self.reopen)(old));
    }
}

/// Every check. They may run in any order.
pub const ALL: &[Check] = &[
    ("unknown_rooms_are_empty", unknown_rooms_are_empty),
    ("ranges_both_ways", ranges_both_ways),
    ("limits_of_reads", limits_of_reads),
    ("rooms_load", rooms_load),
    ("long_tails_are_cut", long_tails_are_cut),
    ("the_same_append_again_changes_nothing", the_same_append_again_changes_nothing),
    ("too_large_is_definite", too_large_is_definite),
    ("groups_come_back_in_few_messages", groups_come_back_in_few_messages),
    ("a_full_sink_loses_nothing", a_full_sink_loses_nothing),
    ("a_gone_sink_disturbs_nobody", a_gone_sink_disturbs_nobody),
    ("members_and_user_rooms", members_and_user_rooms),
    ("memberships_without_events", memberships_without_events),
    ("pages_of_members_and_rooms", pages_of_members_and_rooms),
    ("marks_only_rise", marks_only_rise),
    ("users_and_usernames", users_and_usernames),
    ("one_of_many_gets_the_username", one_of_many_gets_the_username),
    ("foreign_users", foreign_users),
    ("logins_end", logins_end),
    ("expired_logins_are_swept", expired_logins_are_swept),
    ("everything_is_there_after_a_reopen", everything_is_there_after_a_reopen),
    ("concurrent_appenders_leave_dense_logs", concurrent_appenders_leave_dense_logs),
];

/// Runs a future to its end on this thread.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn ok<T>(future: BoxFuture<'static, Result<T, Error>>) -> T {
    wait(future).unwrap()
}

/// Appends and waits for the outcomes, in the order of the group.
pub fn append_all(store: &(impl RoomLog + ?Sized), group: Vec<Append>) -> Vec<Outcome> {
    let (done, mut completions) = mpsc::channel(4);
    let tickets: Vec<_> = group.iter().map(|append| append.ticket).collect();
    store.append(group, &done);
    let mut outcomes = BTreeMap::new();
    while outcomes.len() < tickets.len() {
        for Completion { ticket, outcome } in completions.blocking_recv().unwrap() {
            assert!(tickets.contains(&ticket), "a ticket that nobody has: {ticket}");
            assert!(outcomes.insert(ticket, outcome).is_none(), "ticket {ticket} was answered twice");
        }
    }
    tickets.iter().map(|ticket| outcomes[ticket]).collect()
}

#[track_caller]
fn append(store: &(impl RoomLog + ?Sized), append: Append) {
    assert_eq!(append_all(store, vec![append]), [Outcome::Done]);
}

pub fn room(name: &str) -> RoomId {
    RoomId::parse(name).unwrap()
}

pub fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

/// Event `seq` of a room: content and numbers follow from both, so that checkers need no memory.
pub fn row(room: &RoomId, seq: u64, batch_first: u64) -> Row {
    let event = Bytes::from(format!("event {seq} of {room}, {}", "x".repeat((seq as usize * 7) % 50)));
    Row {
        seq: Seq(seq),
        batch_first: Seq(batch_first),
        n: seq.div_ceil(2),
        origin: Origin(!seq),
        event,
        derived: None,
    }
}

pub fn room_row(room: &RoomId) -> RoomRow {
    RoomRow {
        room: room.clone(),
        log: LogId(0xfeed_0000_0000_0001),
        kind: 2,
        public: true,
        lazy: false,
        name: "A rööm".to_owned(),
        created_at: UnixMs(1_700_000_000_000),
        counted_members: 3,
        floor: Seq(0),
        changed: Seq(0),
    }
}

pub fn member(name: &str, role: u8, joined: u64) -> MemberRow {
    MemberRow {
        user: user(name),
        name: format!("{name}'s name"),
        role,
        joined_seq: Seq(joined),
        left_seq: None,
        changed: Seq(0),
        out: Vec::new(),
    }
}

/// An append of rows `from..=to`; the one that begins with 1 brings the room's row along.
pub fn batch(room: &RoomId, from: u64, to: u64) -> Append {
    let rows = (from..=to).map(|seq| row(room, seq, from)).collect();
    let derived = (from == 1).then(|| Box::new(Derived { room: Some(room_row(room)), members: Vec::new() }));
    Append { ticket: from, room: room.clone(), rows, derived }
}

fn derived(room: &RoomId, ticket: u64, members: Vec<MemberRow>) -> Append {
    Append {
        ticket,
        room: room.clone(),
        rows: Vec::new(),
        derived: Some(Box::new(Derived { room: None, members })),
    }
}

const ANY: ReadLimit = ReadLimit { events: usize::MAX, bytes: usize::MAX };

#[track_caller]
fn check_read(
    store: &dyn Store,
    room: &RoomId,
    range: Range,
    limit: ReadLimit,
    want: std::ops::Range<u64>,
    more: bool,
) {
    let page = ok(store.read(room.clone(), range, limit));
    let seqs: Vec<_> = page.rows.iter().map(|row| row.seq.0).collect();
    assert_eq!(seqs, want.collect::<Vec<_>>(), "{range:?} {limit:?}");
    assert_eq!(page.more, more, "more of {range:?} {limit:?}");
    for got in &page.rows {
        assert_eq!(got.event, row(room, got.seq.0, 0).event);
    }
}

fn unknown_rooms_are_empty(subject: &mut Subject) {
    let store = subject.store();
    let nowhere = room("unknown.1");
    assert_eq!(ok(store.load_room(nowhere.clone())), None);
    check_read(store, &nowhere, Range::after(Seq(0)), ANY, 0..0, false);
    assert_eq!(ok(store.member(nowhere.clone(), user("unknown"))), None);
    assert_eq!(ok(store.members(nowhere, None, 10)), (vec![], false));
    assert_eq!(ok(store.user_rooms(user("unknown"), None, 10)), (vec![], false));
}

fn ranges_both_ways(subject: &mut Subject) {
    let store = subject.store();
    // Neighbours in key order, which must not be seen.
    let (before, ours, after) = (room("ranges"), room("ranges1"), room("ranges2"));
    for room in [&before, &after] {
        append(store, batch(room, 1, 3));
    }
    append(store, batch(&ours, 1, 4));
    append(store, batch(&ours, 5, 300));
    let events = |events| ReadLimit { events, ..ANY };
    let (last, any) = (Seq(u64::MAX), Seq(0));
    check_read(store, &ours, Range::after(any), ANY, 1..301, false);
    check_read(store, &ours, Range::after(Seq(298)), ANY, 299..301, false);
    check_read(store, &ours, Range::after(Seq(300)), ANY, 0..0, false);
    check_read(store, &ours, Range::after(last), ANY, 0..0, false);
    check_read(store, &ours, Range::after(Seq(254)), events(3), 255..258, true);
    check_read(store, &ours, Range::after(Seq(297)), events(3), 298..301, false);
    check_read(store, &ours, Range::After { after: Seq(2), through: Seq(5) }, ANY, 3..6, false);
    check_read(store, &ours, Range::After { after: Seq(2), through: Seq(5) }, events(2), 3..5, true);
    check_read(store, &ours, Range::After { after: Seq(2), through: Seq(2) }, ANY, 0..0, false);
    check_read(store, &ours, Range::before(last), events(2), 299..301, true);
    check_read(store, &ours, Range::before(Seq(4)), ANY, 1..4, false);
    check_read(store, &ours, Range::before(Seq(4)), events(2), 2..4, true);
    check_read(store, &ours, Range::before(Seq(1)), ANY, 0..0, false);
    check_read(store, &ours, Range::before(any), ANY, 0..0, false);
    check_read(store, &ours, Range::Before { before: Seq(10), above: Seq(6) }, ANY, 7..10, false);
    check_read(store, &ours, Range::Before { before: Seq(10), above: Seq(6) }, events(1), 9..10, true);
    check_read(store, &ours, Range::Before { before: Seq(10), above: Seq(9) }, ANY, 0..0, false);
    let page = ok(store.read(ours.clone(), Range::After { after: Seq(3), through: Seq(5) }, ANY));
    assert_eq!(page.rows, [row(&ours, 4, 1), row(&ours, 5, 5)], "every column comes back");
}

fn limits_of_reads(subject: &mut Subject) {
    let store = subject.store();
    let ours = room("limits");
    let mut rows = Vec::new();
    for seq in 1..=10 {
        let event = Bytes::from(vec![b'x'; 100]);
        rows.push(Row {
            seq: Seq(seq),
            batch_first: Seq(1),
            n: seq,
            origin: Origin(0),
            event,
            derived: None,
        });
    }
    append(store, Append { rows, ..batch(&ours, 1, 1) });
    let read = |range, events, bytes| {
        let page = ok(store.read(ours.clone(), range, ReadLimit { events, bytes }));
        (page.rows.first().map(|row| row.seq.0), page.rows.len(), page.more)
    };
    assert_eq!(read(Range::after(Seq(0)), 10, 300), (Some(1), 3, true));
    assert_eq!(read(Range::after(Seq(0)), 10, 399), (Some(1), 3, true));
    assert_eq!(
        read(Range::after(Seq(0)), 10, 1),
        (Some(1), 1, true),
        "the first row comes whatever its size"
    );
    assert_eq!(read(Range::after(Seq(9)), 10, 1), (Some(10), 1, false));
    assert_eq!(read(Range::before(Seq(11)), 10, 200), (Some(9), 2, true), "the newest stay");
    assert_eq!(read(Range::before(Seq(11)), 10, 1_000), (Some(1), 10, false));
    assert_eq!(read(Range::after(Seq(0)), 0, 1_000), (None, 0, false));
    const { assert!(READ_MAX.events >= 10_000) };
}

fn rooms_load(subject: &mut Subject) {
    let store = subject.store();
    let ours = room("load");
    let mut first = batch(&ours, 1, 3);
    first.derived.as_mut().unwrap().members = vec![member("load.b", 4, 1), member("load.a", 1, 2)];
    append(store, first);
    append(store, batch(&ours, 4, 5));
    let loaded = ok(store.load_room(ours.clone())).unwrap();
    assert_eq!(loaded.row, room_row(&ours));
    assert_eq!((loaded.head, loaded.n), (Seq(5), 3));
    assert_eq!(
        loaded.tail,
        (1..=5).map(|seq| row(&ours, seq, if seq < 4 { 1 } else { 4 })).collect::<Vec<_>>()
    );
    let members: Vec<_> = loaded.members.into_iter().map(|(member, _)| member).collect();
    assert_eq!(members, [member("load.a", 1, 2), member("load.b", 4, 1)]);
    assert!(loaded.members_complete);
    // A change of the room's row.
    let renamed = RoomRow {
        name: "other".to_owned(),
        public: false,
        counted_members: 9,
        floor: Seq(2),
        ..room_row(&ours)
    };
    let mut change = batch(&ours, 6, 6);
    change.derived = Some(Box::new(Derived { room: Some(renamed.clone()), members: Vec::new() }));
    append(store, change);
    let loaded = ok(store.load_room(ours)).unwrap();
    assert_eq!((loaded.row, loaded.head), (renamed, Seq(6)));
}

fn long_tails_are_cut(subject: &mut Subject) {
    let store = subject.store();
    let many = room("tail.many");
    append(store, batch(&many, 1, 200));
    let tail = ok(store.load_room(many)).unwrap().tail;
    assert_eq!((tail[0].seq, tail.len(), tail[tail.len() - 1].seq), (Seq(137), TAIL.events, Seq(200)));
    let large = room("tail.large");
    for seq in 1..=10 {
        let mut next = batch(&large, seq, seq);
        next.rows[0].event = Bytes::from(vec![seq as u8; 60 << 10]);
        append(store, next);
    }
    let loaded = ok(store.load_room(large)).unwrap();
    assert_eq!((loaded.tail.len(), loaded.tail[0].seq, loaded.head), (4, Seq(7), Seq(10)));
}

fn the_same_append_again_changes_nothing(subject: &mut Subject) {
    let store = subject.store();
    let ours = room("again");
    let mut first = batch(&ours, 1, 3);
    first.derived.as_mut().unwrap().members = vec![member("again.a", 1, 1)];
    append(store, first.clone());
    append(store, batch(&ours, 4, 9));
    let before = ok(store.load_room(ours.clone())).unwrap();
    append(store, batch(&ours, 4, 9));
    append(store, first);
    assert_eq!(ok(store.load_room(ours)).unwrap(), before);
}

fn too_large_is_definite(subject: &mut Subject) {
    let store = subject.store();
    let ours = room("large");
    let too_many = batch(&ours, 1, APPEND_ROWS_MAX as u64 + 1);
    let beside = Append { ticket: 77, ..batch(&room("large.beside"), 1, 1) };
    let outcomes = append_all(store, vec![too_many, beside]);
    assert_eq!(outcomes, [Outcome::NotDone(NotDone::TooLarge), Outcome::Done]);
    assert_eq!(ok(store.load_room(ours.clone())), None);
    append(store, batch(&ours, 1, APPEND_ROWS_MAX as u64));
}

fn groups_come_back_in_few_messages(subject: &mut Subject) {
    let store = subject.store();
    let (done, mut completions) = mpsc::channel(100);
    let group = (1..=100).map(|i| Append { ticket: i, ..batch(&room(&format!("few.{i}")), 1, 2) }).collect();
    store.append(group, &done);
    let (mut messages, mut tickets) = (0, BTreeSet::new());
    while tickets.len() < 100 {
        messages += 1;
        for completion in completions.blocking_recv().unwrap() {
            assert_eq!(completion.outcome, Outcome::Done);
            assert!(tickets.insert(completion.ticket));
        }
    }
    assert!(messages <= 2, "a group that is put in at once is one commit, or two: {messages} messages");
}

fn a_full_sink_loses_nothing(subject: &mut Subject) {
    let store = subject.store();
    let (done, mut completions) = mpsc::channel(1);
    for i in 1..=50 {
        store.append(vec![Append { ticket: i, ..batch(&room(&format!("sink.{i}")), 1, 1) }], &done);
        if i % 10 == 0 {
            // Others are served meanwhile.
            append(store, batch(&room(&format!("sink.other.{i}")), 1, 1));
        }
    }
    let mut tickets = BTreeSet::new();
    while tickets.len() < 50 {
        for completion in completions.blocking_recv().unwrap() {
            assert!(tickets.insert(completion.ticket));
        }
    }
}

fn a_gone_sink_disturbs_nobody(subject: &mut Subject) {
    let store = subject.store();
    let (done, completions) = mpsc::channel(1);
    drop(completions);
    store.append(vec![batch(&room("gone"), 1, 1)], &done);
    append(store, batch(&room("gone.other"), 1, 1));
    assert!(ok(store.load_room(room("gone"))).is_some(), "it was stored all the same");
}

fn members_and_user_rooms(subject: &mut Subject) {
    let store = subject.store();
    let (a, b) = (room("members.a"), room("members.b"));
    let name = "members.user";
    let rooms = || ok(store.user_rooms(user(name), None, 10)).0;
    for room in [&a, &b] {
        let mut first = batch(room, 1, 1);
        first.derived.as_mut().unwrap().members = vec![member(name, 2, 1)];
        append(store, first);
    }
    assert_eq!(rooms(), [a.clone(), b.clone()]);
    // Leaves with an event, comes back, thirty-nine times: the row keeps what it is given.
    let mut row = member(name, 2, 1);
    for i in 0..39 {
        let seq = 2 + 2 * i;
        let mut gone = row.clone();
        (gone.role, gone.left_seq) = (0, Some(Seq(seq)));
        let mut leave = batch(&a, seq, seq);
        leave.derived = Some(Box::new(Derived { room: None, members: vec![gone.clone()] }));
        append(store, leave);
        assert_eq!(rooms(), std::slice::from_ref(&b));
        assert_eq!(ok(store.member(a.clone(), user(name))).unwrap().0, gone);
        row.push_out(Seq(seq), Seq(seq + 1));
        row.joined_seq = Seq(seq + 1);
        let mut join = batch(&a, seq + 1, seq + 1);
        join.derived = Some(Box::new(Derived { room: None, members: vec![row.clone()] }));
        append(store, join);
        assert_eq!(rooms(), [a.clone(), b.clone()]);
    }
    let (stored, _) = ok(store.member(a.clone(), user(name))).unwrap();
    assert_eq!(stored, row);
    assert_eq!(stored.out.len(), OUT_MAX);
    assert_eq!(ok(store.load_room(a)).unwrap().members, [(row, Marks::default())]);
}

fn memberships_without_events(subject: &mut Subject) {
    let store = subject.store();
    let ours = room("quiet");
    append(store, batch(&ours, 1, 2));
    append(store, derived(&ours, 2, vec![member("quiet.a", 3, 2), member("quiet.b", 3, 2)]));
    let mut left = member("quiet.a", 0, 2);
    left.left_seq = Some(Seq(2));
    append(store, derived(&ours, 3, vec![left.clone()]));
    let loaded = ok(store.load_room(ours.clone())).unwrap();
    assert_eq!(loaded.head, Seq(2), "no event came of it");
    assert_eq!(
        loaded.members.iter().map(|(row, _)| row.clone()).collect::<Vec<_>>(),
        [left, member("quiet.b", 3, 2)]
    );
    assert_eq!(ok(store.user_rooms(user("quiet.a"), None, 10)).0, []);
    assert_eq!(ok(store.user_rooms(user("quiet.b"), None, 10)).0, [ours]);
}

fn pages_of_members_and_rooms(subject: &mut Subject) {
    let store = subject.store();
    let ours = room("pages");
    let mut first = batch(&ours, 1, 1);
    // Neither in order of length nor of insertion.
    let names: Vec<_> = (0..25).map(|i| format!("pages.{}", 997 * (i + 1) % 1_009)).collect();
    first.derived.as_mut().unwrap().members = names.iter().map(|name| member(name, 1, 1)).collect();
    append(store, first);
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

    let everywhere = "pages.everywhere";
    let rooms: Vec<_> = (0..12).map(|i| room(&format!("pages.{i}"))).collect();
    for room in &rooms {
        let mut first = batch(room, 1, 1);
        first.derived.as_mut().unwrap().members = vec![member(everywhere, 1, 1)];
        append(store, first);
    }
    let sorted: Vec<_> = rooms.iter().collect::<BTreeSet<_>>().into_iter().cloned().collect();
    let (page, more) = ok(store.user_rooms(user(everywhere), None, 5));
    assert_eq!((page.as_slice(), more), (&sorted[..5], true));
    let (page, more) = ok(store.user_rooms(user(everywhere), Some(sorted[4].clone()), 7));
    assert_eq!((page.as_slice(), more), (&sorted[5..], false));
}

/// Asks until the answer is right; marks are written when the store likes, within a second.
#[track_caller]
fn eventually<T: PartialEq + std::fmt::Debug>(ask: impl Fn() -> T, want: &T) {
    for _ in 0..500 {
        if ask() == *want {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(ask(), *want);
}

fn marks_only_rise(subject: &mut Subject) {
    let store = subject.store();
    let ours = room("marks");
    let names = ["marks.a", "marks.b", "marks.c"];
    let mut first = batch(&ours, 1, 9);
    first.derived.as_mut().unwrap().members = names.map(|name| member(name, 1, 1)).to_vec();
    append(store, first);
    let marks = |delivered, seen, seen_n| Marks { delivered: Seq(delivered), seen: Seq(seen), seen_n };
    let get = |name: &str| ok(store.member(ours.clone(), user(name))).unwrap().1;
    assert_eq!(get("marks.a"), Marks::default());
    store.put_marks(vec![
        (ours.clone(), user("marks.a"), marks(5, 3, 2)),
        (ours.clone(), user("marks.c"), marks(9, 9, 5)),
        (ours.clone(), user("marks.stranger"), marks(9, 9, 5)),
    ]);
    store.put_marks(vec![(ours.clone(), user("marks.a"), marks(4, 4, 3))]);
    eventually(|| get("marks.a"), &marks(5, 4, 3));
    store.put_marks(vec![
        (ours.clone(), user("marks.a"), marks(1, 1, 1)),
        (ours.clone(), user("marks.b"), marks(1, 0, 0)),
    ]);
    eventually(|| get("marks.b"), &marks(1, 0, 0));
    assert_eq!(get("marks.a"), marks(5, 4, 3), "older marks change nothing");
    let loaded = ok(store.load_room(ours.clone())).unwrap().members;
    let loaded: Vec<_> = loaded.into_iter().map(|(row, marks)| (row.user, marks)).collect();
    let want = [
        (user("marks.a"), marks(5, 4, 3)),
        (user("marks.b"), marks(1, 0, 0)),
        (user("marks.c"), marks(9, 9, 5)),
    ];
    assert_eq!(loaded, want, "each member has its own, strangers none");
    // A change of membership leaves them alone.
    append(store, derived(&ours, 5, vec![member("marks.c", 2, 1)]));
    assert_eq!(get("marks.c"), marks(9, 9, 5));
}

fn user_row(id: &str, username: &str) -> UserRow {
    UserRow {
        user: user(id),
        name: "Näme".to_owned(),
        username: Some(username.to_owned()),
        skeleton: Some(username.replace('1', "l")),
        password_hash: Some("$argon2id$secret".to_owned()),
        disabled: false,
        created_at: UnixMs(5),
        tokens_not_before: UnixMs(0),
    }
}

fn users_and_usernames(subject: &mut Subject) {
    let store = subject.store();
    let row = user_row("users.1", "paul");
    assert_eq!(ok(store.user_by_username("paul")), None);
    assert_eq!(ok(store.create_user(row.clone())), Creation::Created);
    assert_eq!(ok(store.user_by_username("paul")), Some(row.clone()));
    assert_eq!(ok(store.user(&user("users.1"))), Some(row.clone()));
    assert_eq!(
        ok(store.create_user(row.clone())),
        Creation::Created,
        "the very same again settles an unknown one"
    );
    assert_eq!(ok(store.create_user(user_row("users.2", "paul"))), Creation::UsernameTaken);
    assert_eq!(
        ok(store.create_user(user_row("users.3", "pau1"))),
        Creation::UsernameTaken,
        "it looks the same"
    );
    assert_eq!(ok(store.create_user(user_row("users.1", "other"))), Creation::IdTaken);
    assert_eq!(ok(store.user(&user("users.2"))), None);
    assert_eq!(ok(store.user_by_username("pau1")), None, "a skeleton is no name");
    assert_eq!(ok(store.user_by_username("other")), None);
    // A change keeps the name, whatever it says.
    let changed =
        UserRow { name: "New".to_owned(), disabled: true, tokens_not_before: UnixMs(9), ..row.clone() };
    ok(store.put_user(UserRow { username: None, skeleton: None, created_at: UnixMs(0), ..changed.clone() }));
    assert_eq!(ok(store.user_by_username("paul")), Some(changed));
    let long = UserRow { name: "x".repeat(TEXT_MAX + 1), ..user_row("users.4", "longname") };
    assert!(matches!(wait(store.create_user(long)), Err(Error::Refused(_))));
    assert!(!format!("{row:?}").contains("secret"), "a hash does not end up in logs");
}

fn one_of_many_gets_the_username(subject: &mut Subject) {
    let store = subject.shared();
    let start = Arc::new(std::sync::Barrier::new(16));
    let racers: Vec<_> = (0..16)
        .map(|i| {
            let (store, start) = (Arc::clone(&store), Arc::clone(&start));
            std::thread::spawn(move || {
                start.wait();
                ok(store.create_user(user_row(&format!("race.{i}"), "winner")))
            })
        })
        .collect();
    let got: Vec<_> = racers.into_iter().map(|racer| racer.join().unwrap()).collect();
    let winners: Vec<_> = (0..16).filter(|i| got[*i] == Creation::Created).collect();
    assert_eq!(winners.len(), 1, "{got:?}");
    assert_eq!(got.iter().filter(|got| **got == Creation::UsernameTaken).count(), 15);
    let row = ok(store.user_by_username("winner")).unwrap();
    assert_eq!(row.user, user(&format!("race.{}", winners[0])));
    for i in 0..16 {
        assert_eq!(ok(store.user(&user(&format!("race.{i}")))).is_some(), i == winners[0]);
    }
}

fn foreign_users(subject: &mut Subject) {
    let store = subject.store();
    let row =
        UserRow { username: None, skeleton: None, password_hash: None, ..user_row("auth0|foreign", "") };
    ok(store.put_user(row.clone()));
    assert_eq!(ok(store.user(&user("auth0|foreign"))), Some(row));
    assert!(matches!(wait(store.put_user(user_row("auth0|other", "named"))), Err(Error::Refused(_))));
    assert_eq!(ok(store.user_by_username("named")), None);
}

fn login_row(login: &str, name: &str, expires_at: u64) -> LoginRow {
    LoginRow {
        login: login.to_owned(),
        user: user(name),
        created_at: UnixMs(1),
        expires_at: UnixMs(expires_at),
    }
}

fn logins_end(subject: &mut Subject) {
    let store = subject.store();
    for i in 0..5 {
        ok(store.put_login(login_row(&format!("ends.{i}"), "ends.a", 1 << 60)));
    }
    ok(store.put_login(login_row("ends.other", "ends.ab", 1 << 60)));
    assert_eq!(ok(store.login("ends.3")), Some(login_row("ends.3", "ends.a", 1 << 60)));
    ok(store.end_login("ends.3"));
    ok(store.end_login("ends.3"));
    ok(store.end_login("ends.never"));
    assert_eq!(ok(store.login("ends.3")), None);
    assert!(ok(store.login("ends.2")).is_some());
    ok(store.end_all_logins(&user("ends.a")));
    for i in 0..5 {
        assert_eq!(ok(store.login(&format!("ends.{i}"))), None);
    }
    assert!(ok(store.login("ends.other")).is_some(), "another user's login");
    ok(store.put_login(login_row("ends.2", "ends.a", 1 << 60)));
    assert!(ok(store.login("ends.2")).is_some(), "a new one");
}

fn expired_logins_are_swept(subject: &mut Subject) {
    let store = subject.store();
    for (login, expires_at) in [("sweep.a", 10), ("sweep.b", 20), ("sweep.c", 30)] {
        ok(store.put_login(login_row(login, "sweep", expires_at)));
    }
    ok(store.put_login(login_row("sweep.a", "sweep", 40))); // prolonged
    assert_eq!(ok(store.sweep_logins(UnixMs(9))), 0);
    assert_eq!(ok(store.sweep_logins(UnixMs(20))), 1);
    assert_eq!(ok(store.login("sweep.b")), None);
    assert!(ok(store.login("sweep.a")).is_some() && ok(store.login("sweep.c")).is_some());
    assert_eq!(ok(store.sweep_logins(UnixMs(40))), 2);
    assert_eq!(ok(store.sweep_logins(UnixMs(40))), 0);
    const { assert!(SWEEP_MAX > 3) };
}

fn everything_is_there_after_a_reopen(subject: &mut Subject) {
    let ours = room("reopen");
    {
        let store = subject.store();
        let mut first = batch(&ours, 1, 40);
        first.derived.as_mut().unwrap().members = vec![member("reopen.a", 1, 1), member("reopen.b", 2, 1)];
        append(store, first);
        let mut left = member("reopen.b", 0, 1);
        left.left_seq = Some(Seq(41));
        let mut second = batch(&ours, 41, 41);
        second.derived = Some(Box::new(Derived { room: None, members: vec![left] }));
        append(store, second);
        store.put_marks(vec![(
            ours.clone(),
            user("reopen.a"),
            Marks { delivered: Seq(7), seen: Seq(7), seen_n: 4 },
        )]);
        ok(store.create_user(user_row("reopen.1", "reopened")));
        ok(store.put_login(login_row("reopen.in", "reopen.1", 1 << 60)));
        ok(store.put_login(login_row("reopen.out", "reopen.1", 1 << 60)));
        ok(store.end_login("reopen.out"));
    }
    let state = |store: &dyn Store| {
        (
            ok(store.load_room(ours.clone())),
            ok(store.read(ours.clone(), Range::after(Seq(0)), ANY)),
            ok(store.user_rooms(user("reopen.a"), None, 9)),
            ok(store.user_rooms(user("reopen.b"), None, 9)),
            ok(store.user_by_username("reopened")),
            (ok(store.login("reopen.in")), ok(store.login("reopen.out"))),
        )
    };
    let mut before = state(subject.store());
    // A close writes what waits, marks too.
    before.0.as_mut().unwrap().members[0].1 = Marks { delivered: Seq(7), seen: Seq(7), seen_n: 4 };
    for _ in 0..3 {
        subject.reopen();
        assert_eq!(state(subject.store()), before);
    }
    append(subject.store(), batch(&ours, 42, 50));
    subject.reopen();
    assert_eq!(ok(subject.store().load_room(ours)).unwrap().head, Seq(50));
}

/// 8 workers, 1,000 rooms, each worker with all of its rooms in flight at once; then every log is dense and whole.
fn concurrent_appenders_leave_dense_logs(subject: &mut Subject) {
    const WORKERS: u64 = 8;
    const ROOMS: u64 = 125;
    const BATCHES: u64 = 8;
    let store = subject.shared();
    let name = |worker: u64, room: u64| self::room(&format!("dense.{worker}.{room}"));
    let workers: Vec<_> = (0..WORKERS)
        .map(|worker| {
            let store = Arc::clone(&store);
            std::thread::spawn(move || {
                let (done, mut completions) = mpsc::channel(16);
                let mut heads = BTreeMap::new();
                let mut in_flight = 0;
                let next = |room: u64, from: u64| {
                    let to = from + (from + room) % 5;
                    (Append { ticket: room, ..batch(&name(worker, room), from, to) }, to)
                };
                let mut group = Vec::new();
                for room in 0..ROOMS {
                    let (append, to) = next(room, 1);
                    group.push(append);
                    heads.insert(room, (to, 1));
                    in_flight += 1;
                }
                store.append(group, &done);
                while in_flight > 0 {
                    let mut group = Vec::new();
                    for Completion { ticket, outcome } in completions.blocking_recv().unwrap() {
                        assert_eq!(outcome, Outcome::Done);
                        in_flight -= 1;
                        let (head, batches) = heads.get_mut(&ticket).unwrap();
                        if *batches < BATCHES {
                            let (append, to) = next(ticket, *head + 1);
                            (*head, *batches) = (to, *batches + 1);
                            group.push(append);
                            in_flight += 1;
                        }
                    }
                    store.append(group, &done);
                }
                heads
            })
        })
        .collect();
    for (worker, thread) in (0..).zip(workers) {
        for (number, (head, _)) in thread.join().unwrap() {
            let ours = name(worker, number);
            let page = ok(store.read(ours.clone(), Range::after(Seq(0)), ANY));
            assert_eq!(page.rows.len() as u64, head);
            for (want, got) in (1..).zip(&page.rows) {
                assert_eq!(*got, row(&ours, want, got.batch_first.0));
            }
        }
    }
}
