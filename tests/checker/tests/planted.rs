//! Small histories, each with one promise broken: the check finds that promise, and tells no more than shows it.
//!
//! Always holds: the history without the plant is good, so what is found is the plant.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use banyan_checker::{
    Ask, Call, Connection, Content, Counted, Demand, Epoch, Event, Fault, FaultKind, Fence, Gap, History,
    How, Incarnation, Kind, Liveness, Log, Marks, MemberRow, Message, Mode, Origin, Part, Promise, Range,
    Record, Room, Row, Rules, Seq, Session, Slot, SlotChange, Start, State, Store, StoredRoom, Subscribed,
    Time, UnixMs, User, Verdict, What, Written, check,
};

const ROOM: Room = Room(0);
const ALICE: User = User(0);
const BOB: User = User(1);
const CLEO: User = User(2);
/// Alice's connection, Bob's, Bob's next one, Cleo's.
const A: Connection = Connection(0);
const B: Connection = Connection(1);
const B2: Connection = Connection(2);
const C: Connection = Connection(3);
const LOG: Log = Log(7);

fn content(message: u32) -> Content {
    Content(100 + u64::from(message))
}

fn event(seq: u64, n: u64, sender: User, message: Option<u32>, kind: Kind) -> Event {
    Event {
        seq: Seq(seq),
        n,
        at: UnixMs(1_000 + seq),
        sender,
        message: message.map(Message),
        content: message.map_or(Content(seq), content),
        kind,
    }
}

fn said(seq: u64, n: u64, sender: User, message: u32) -> Event {
    event(seq, n, sender, Some(message), Kind::Message)
}

fn row(event: Event, epoch: u64, batch_first: u64) -> Row {
    let written = Written {
        epoch: Epoch(epoch),
        part: Part(1),
        incarnation: Incarnation(u128::from(epoch) + 70),
        batch_first: Seq(batch_first),
        origin: Origin(1),
    };
    Row { event, written: Some(written) }
}

fn send(call: u64, message: u32, since: u64) -> What {
    What::Send {
        call: Call(call),
        room: ROOM,
        message: Message(message),
        since: Some(Seq(since)),
        content: content(message),
    }
}

fn sent(call: u64, seq: u64) -> What {
    What::Sent { call: Call(call), seq: Seq(seq), at: UnixMs(1_000 + seq), duplicate: false }
}

fn refused(call: u64, code: u16) -> What {
    What::Refused { call: Call(call), room: None, code }
}

fn subscribe(call: u64, after: u64, mode: Mode) -> What {
    let start = Start::After { seq: Seq(after), log: Some(LOG) };
    What::Subscribe { call: Call(call), room: ROOM, start, mode }
}

fn subscribed(call: u64, head: u64, n: u64, from: u64) -> What {
    let reply = Subscribed {
        log: LOG,
        head: Seq(head),
        n,
        from: Seq(from),
        role: 1,
        marks: Marks::default(),
        gap: None,
        reset: false,
    };
    What::Subscribed { call: Call(call), room: ROOM, reply: Box::new(reply) }
}

fn push(event: Event) -> What {
    What::Event { room: ROOM, event }
}

fn mark(call: u64, seen: u64) -> What {
    What::Mark { call: Call(call), room: ROOM, delivered: None, seen: Some(Seq(seen)) }
}

fn marked(call: u64, seen: u64, seen_n: u64) -> What {
    let marks = Marks { delivered: Seq(seen), seen: Seq(seen), seen_n };
    What::Marked { call: Call(call), marks }
}

fn member(user: User, joined: u64) -> MemberRow {
    MemberRow {
        user,
        role: 1,
        joined: Seq(joined),
        left: None,
        out: Vec::new(),
        changed: Seq(joined),
        marks: Marks::default(),
    }
}

/// A history whose records have names, so that plants and slices can speak of them.
struct Script {
    records: Vec<(&'static str, Connection, What)>,
    history: History,
}

impl Script {
    /// Alice makes the room and adds Bob and Cleo (1 to 3). Alice sends m1 (4). Bob sends m2 (5): the connection is
    /// lost, on the next one the retry is known. Another owner. Alice sends m3 (6); Bob reads a page and marks; Cleo,
    /// who is passive, is removed (7); Alice sends m4 (8).
    fn good() -> Self {
        let events = [
            event(1, 0, ALICE, None, Kind::Created),
            event(2, 0, ALICE, None, Kind::Joined(BOB)),
            event(3, 0, ALICE, None, Kind::Joined(CLEO)),
            said(4, 1, ALICE, 1),
            said(5, 2, BOB, 2),
            said(6, 3, ALICE, 3),
            event(7, 3, ALICE, None, Kind::Removed(CLEO)),
            said(8, 4, ALICE, 4),
        ];
        let [created, bob, cleo, m1, m2, m3, removed, m4] = events;
        let page = |event| What::PageEvent { call: Call(4), event };
        let after =
            |call| What::History { call: Call(call), room: ROOM, range: Range::After(Seq(3)), limit: 50 };
        let records = vec![
            ("alice begins", A, What::Begin { session: Session(0) }),
            ("bob begins", B, What::Begin { session: Session(1) }),
            ("cleo begins", C, What::Begin { session: Session(2) }),
            ("alice subscribes", A, subscribe(1, 0, Mode::Live)),
            ("alice is subscribed", A, subscribed(1, 3, 0, 1)),
            ("alice has 1", A, push(created)),
            ("alice has 2", A, push(bob)),
            ("alice has 3", A, push(cleo)),
            ("bob subscribes", B, subscribe(1, 3, Mode::Live)),
            ("bob is subscribed", B, subscribed(1, 3, 0, 4)),
            ("cleo subscribes", C, subscribe(1, 3, Mode::Passive)),
            ("cleo is subscribed", C, subscribed(1, 3, 0, 4)),
            ("send m1", A, send(2, 1, 3)),
            ("ack m1", A, sent(2, 4)),
            ("bob has m1", B, push(m1)),
            ("send m2", B, send(2, 2, 4)),
            ("bob ends", B, What::End),
            ("alice has m2", A, push(m2)),
            ("bob begins again", B2, What::Begin { session: Session(1) }),
            ("bob resumes", B2, subscribe(1, 4, Mode::Live)),
            ("bob is resumed", B2, subscribed(1, 5, 2, 5)),
            ("bob has m2", B2, push(m2)),
            ("send m2 again", B2, send(2, 2, 4)),
            ("ack m2", B2, What::Sent { call: Call(2), seq: Seq(5), at: UnixMs(1_005), duplicate: true }),
            ("send m3", A, send(3, 3, 5)),
            ("ack m3", A, sent(3, 6)),
            ("bob has m3", B2, push(m3)),
            ("cleo's head", C, What::Head { room: ROOM, head: Seq(6), n: 3 }),
            ("bob marks", B2, mark(3, 6)),
            ("bob has marked", B2, marked(3, 6, 3)),
            ("alice has marks", A, What::Marks { room: ROOM, user: BOB, delivered: Seq(6), seen: Seq(6) }),
            ("bob asks for a page", B2, after(4)),
            ("page 4", B2, page(m1)),
            ("page 5", B2, page(m2)),
            ("page 6", B2, page(m3)),
            ("page", B2, What::Page { call: Call(4), head: Seq(6), log: LOG, more: false }),
            ("remove cleo", A, What::Ask { call: Call(4), room: ROOM, about: Ask::Remove(CLEO) }),
            ("cleo is removed", A, What::Answered { call: Call(4), head: None }),
            ("alice has 7", A, push(removed)),
            ("cleo is unsubscribed", C, What::Unsubscribed { room: ROOM, code: 123 }),
            ("bob has 7", B2, push(removed)),
            ("send m4", A, send(5, 4, 7)),
            ("ack m4", A, sent(5, 8)),
            ("bob has m4", B2, push(m4)),
        ];
        let mut stored = StoredRoom::new(ROOM, Slot(9));
        stored.log = Some(LOG);
        stored.head = Some(Seq(8));
        stored.rows = vec![
            row(created, 1, 1),
            row(bob, 1, 2),
            row(cleo, 1, 2),
            row(m1, 1, 4),
            row(m2, 1, 5),
            row(m3, 2, 6),
            row(removed, 2, 7),
            row(m4, 2, 8),
        ];
        let mut gone = member(CLEO, 3);
        (gone.role, gone.left, gone.changed) = (0, Some(Seq(7)), Seq(7));
        let mut marks = member(BOB, 2);
        marks.marks = Marks { delivered: Seq(6), seen: Seq(6), seen_n: 3 };
        stored.members = Some(vec![member(ALICE, 1), marks, gone]);
        let change = |at, epoch, how| SlotChange {
            at,
            served: None,
            slot: Slot(9),
            epoch: Epoch(epoch),
            owner: Incarnation(u128::from(epoch) + 70),
            how,
        };
        // Records are a second apart from 1 s on; the other owner comes between "ack m2" and "send m3".
        let history = History {
            sessions: vec![ALICE, BOB, CLEO],
            store: Some(Store { rooms: vec![stored] }),
            slots: vec![change(Time(0), 1, How::Claim), change(Time(24_500_000), 2, How::Takeover)],
            faults: vec![Fault { at: Time(24_200_000), kind: FaultKind::Kill }],
            counted: Counted { fenced_utterances: 1, unknown_outcomes: 1, gap_repairs: 1 },
            liveness: Some(Liveness {
                healed: Time(24_500_000),
                deadline: Time(100_000_000),
                rooms: vec![ROOM],
                subscribers: vec![(Session(0), ROOM), (Session(1), ROOM), (Session(2), ROOM)],
                settled: true,
            }),
            ..History::default()
        };
        Self { records, history }
    }

    #[track_caller]
    fn at(&self, name: &str) -> usize {
        self.records.iter().position(|(of, ..)| *of == name).unwrap_or_else(|| panic!("no record {name:?}"))
    }

    fn replace(&mut self, name: &'static str, what: What) {
        let at = self.at(name);
        self.records[at].2 = what;
    }

    fn remove(&mut self, name: &str) {
        let at = self.at(name);
        self.records.remove(at);
    }

    fn insert_after(&mut self, name: &str, new: (&'static str, Connection, What)) {
        let at = self.at(name);
        self.records.insert(at + 1, new);
    }

    fn move_after(&mut self, name: &str, to: &str) {
        let record = self.records.remove(self.at(name));
        let at = self.at(to);
        self.records.insert(at + 1, record);
    }

    fn stored(&mut self) -> &mut StoredRoom {
        &mut self.history.store.as_mut().unwrap().rooms[0]
    }

    fn finish(mut self) -> (History, Vec<&'static str>) {
        let names = self.records.iter().map(|(name, ..)| *name).collect();
        let times = (1..).map(|s| Time(s * 1_000_000));
        self.history.records =
            self.records.into_iter().zip(times).map(|((_, on, what), at)| Record { at, on, what }).collect();
        (self.history, names)
    }
}

/// The promise is the one that is found broken first, in these words, shown by exactly these records.
#[track_caller]
fn planted(promise: Promise, words: &str, slice: &[&str], plant: impl FnOnce(&mut Script)) {
    let mut script = Script::good();
    plant(&mut script);
    let (history, names) = script.finish();
    let report = check(&history, &Rules::default());
    assert_eq!(report.outcome(promise).state, State::Violated, "{report}");
    let violation = report.outcome(promise).first.as_ref().unwrap();
    assert!(violation.what.contains(words), "{violation}");
    let told: Vec<&str> = violation.records.iter().map(|index| names[*index]).collect();
    assert_eq!(told, slice, "{violation}");
    assert_eq!(report.verdict(&Demand::cluster()), Verdict::Violated);
}

#[test]
fn the_history_without_a_plant_is_good() {
    let (history, _) = Script::good().finish();
    let report = check(&history, &Rules::default());
    assert_eq!(report.verdict(&Demand::cluster()), Verdict::Green, "{report}");
    for outcome in &report.outcomes {
        let want = match outcome.promise {
            Promise::I13 | Promise::I16 => State::NotExercised,
            _ => State::Held,
        };
        assert_eq!(outcome.state, want, "{report}");
    }
    let coverage = report.coverage;
    assert_eq!((coverage.sends, coverage.tries, coverage.acked, coverage.tried_again), (4, 5, 4, 1));
    assert_eq!((coverage.indefinite, coverage.duplicates, coverage.resumes), (1, 1, 1));
    assert_eq!((coverage.owner_changes, coverage.takeovers, coverage.kills, coverage.removals), (1, 1, 1, 1));
}

#[test]
fn a_good_run_in_which_nothing_happened_proves_nothing() {
    let mut script = Script::good();
    script.history.slots.truncate(1);
    script.history.counted.gap_repairs = 0;
    for row in &mut script.stored().rows {
        if let Some(written) = &mut row.written {
            (written.epoch, written.incarnation) = (Epoch(1), Incarnation(71));
        }
    }
    let (history, _) = script.finish();
    let report = check(&history, &Rules::default());
    let Verdict::ProvedNothing(why) = report.verdict(&Demand::cluster()) else { panic!("{report}") };
    assert_eq!(why.len(), 2, "{why:?}");
    assert!(why[0].contains("changes of owner") && why[1].contains("gaps repaired"), "{why:?}");
    assert_eq!(report.verdict(&Demand::nothing()), Verdict::Green);
}

#[test]
fn without_store_and_slots_less_is_exercised() {
    let mut script = Script::good();
    script.history = History { sessions: script.history.sessions, ..History::default() };
    let (history, _) = script.finish();
    let report = check(&history, &Rules::default());
    assert!(!report.is_violated(), "{report}");
    for promise in [Promise::I1, Promise::I3, Promise::I4, Promise::I9, Promise::I15] {
        assert_eq!(report.outcome(promise).state, State::NotExercised, "{report}");
    }
}

// ---------------------------------------------------------------- I1, I9

#[test]
fn i1_an_acked_send_is_gone() {
    planted(Promise::I1, "was acked as seq 8 and is not in the log", &["send m4", "ack m4"], |s| {
        s.stored().rows.pop();
        s.stored().head = Some(Seq(7));
    });
}

#[test]
fn i1_something_else_stands_at_the_acked_seq() {
    planted(Promise::I1, "where something else stands", &["send m3", "ack m3"], |s| {
        s.stored().rows[5].event.message = Some(Message(4));
    });
}

#[test]
fn i1_a_told_event_is_gone() {
    planted(Promise::I1, "seq 5 was told and is not in the store", &["alice has m2"], |s| {
        s.stored().rows.remove(4);
    });
}

#[test]
fn i1_a_told_head_lies_beyond_the_log() {
    planted(Promise::I1, "seq 9 was told, and the log ends at 8", &["cleo's late head"], |s| {
        s.insert_after("bob has m4", ("cleo's late head", C, What::Head { room: ROOM, head: Seq(9), n: 4 }));
    });
}

#[test]
fn i1_the_log_has_another_life() {
    let page = What::Page { call: Call(4), head: Seq(6), log: Log(8), more: false };
    planted(Promise::I1, "another life", &["alice is subscribed", "page"], |s| s.replace("page", page));
}

#[test]
fn i9_a_kill_takes_an_acked_send() {
    planted(Promise::I9, "acked as seq 4 and is not in the log", &["send m1", "ack m1"], |s| {
        s.stored().rows.remove(3);
    });
}

// ---------------------------------------------------------------- I2

#[test]
fn i2_a_push_differs_from_the_store() {
    planted(Promise::I2, "seq 6 has two contents", &["bob has m3"], |s| {
        s.replace("bob has m3", push(said(6, 3, ALICE, 4)));
    });
}

#[test]
fn i2_two_pushes_differ() {
    planted(Promise::I2, "seq 5 has two contents", &["alice has m2", "bob has m2"], |s| {
        s.history.store = None;
        s.replace("bob has m2", push(said(5, 2, BOB, 9)));
    });
}

#[test]
fn i2_two_acks_share_a_seq() {
    let slice = ["send m1", "ack m1", "send m3", "ack m3"];
    planted(Promise::I2, "m3 of user 0 is acked as seq 4, and so is m1", &slice, |s| {
        s.replace("ack m3", sent(3, 4));
    });
}

#[test]
fn i2_an_ack_has_another_time() {
    planted(Promise::I2, "acked with another time", &["send m3", "ack m3"], |s| {
        let late = What::Sent { call: Call(3), seq: Seq(6), at: UnixMs(9), duplicate: false };
        s.replace("ack m3", late);
    });
}

#[test]
fn i2_a_count_differs() {
    planted(Promise::I2, "1 messages up to seq 5", &["bob is resumed"], |s| {
        s.replace("bob is resumed", subscribed(1, 5, 1, 5));
    });
}

// ---------------------------------------------------------------- I3, I4

#[test]
fn i3_a_seq_is_missing() {
    planted(Promise::I3, "seq 7 stands where 6 must", &[], |s| {
        s.stored().rows.remove(5);
    });
}

#[test]
fn i3_a_count_is_wrong() {
    planted(Promise::I3, "3 messages up to seq 7, the row says 4", &[], |s| s.stored().rows[6].event.n = 4);
}

#[test]
fn i3_the_head_is_not_the_end() {
    planted(Promise::I3, "the head is 9", &[], |s| s.stored().head = Some(Seq(9)));
}

#[test]
fn i4_an_epoch_falls() {
    planted(Promise::I4, "from seq 6 to 7 the epoch falls from 2 part 1 to 1", &[], |s| {
        let rows = &mut s.stored().rows;
        rows[6] = row(rows[6].event, 1, 7);
    });
}

#[test]
fn i4_an_epoch_has_two_owners() {
    planted(Promise::I4, "epoch 2 of slot 9 belongs to", &[], |s| {
        s.stored().rows[6].written.as_mut().unwrap().incarnation = Incarnation(5);
    });
}

#[test]
fn i4_a_slot_goes_back() {
    planted(Promise::I4, "slot 9 goes from epoch 2 to 2", &[], |s| {
        let mut change = s.history.slots[1];
        change.owner = Incarnation(4);
        s.history.slots.push(change);
    });
}

/// An owner under epoch 3 that became so at 25 s and served at 27 s; one under epoch 2 that became so between the two, or after.
fn set_back(script: &mut Script, lower: Time) {
    let higher = SlotChange {
        at: Time(25_000_000),
        served: Some(Time(27_000_000)),
        epoch: Epoch(3),
        owner: Incarnation(73),
        ..script.history.slots[1]
    };
    let lower = SlotChange { at: lower, epoch: Epoch(2), ..higher };
    // The one under epoch 2 is the owner that the rows name.
    script.history.slots.pop();
    script.history.slots.extend([higher, SlotChange { owner: Incarnation(72), served: None, ..lower }]);
}

#[test]
fn i4_a_lower_epoch_after_a_higher_one_has_served() {
    planted(Promise::I4, "slot 9 goes from epoch 3 to 2", &[], |s| set_back(s, Time(27_000_000)));
}

#[test]
fn i4_a_lower_epoch_before_a_higher_one_serves() {
    let mut script = Script::good();
    set_back(&mut script, Time(26_999_999));
    let (history, _) = script.finish();
    let report = check(&history, &Rules::default());
    assert!(!report.is_violated(), "{report}");
}

/// Both serve, the one under the lower epoch last.
fn both_serve(script: &mut Script, fence: Option<Time>) {
    set_back(script, Time(26_000_000));
    let lower = script.history.slots.last_mut().unwrap();
    lower.served = Some(Time(28_000_000));
    let incarnation = lower.owner;
    script.history.fences.extend(fence.map(|at| Fence { at, incarnation }));
}

#[test]
fn i4_an_owner_of_a_lower_epoch_serves_unfenced_after_one_of_a_higher() {
    planted(Promise::I4, "slot 9 goes from epoch 3 to 2", &[], |s| both_serve(s, None));
    planted(Promise::I4, "slot 9 goes from epoch 3 to 2", &[], |s| both_serve(s, Some(Time(27_000_001))));
}

#[test]
fn i4_an_owner_of_a_lower_epoch_from_before_serves_unfenced_after_one_of_a_higher() {
    planted(Promise::I4, "slot 9 goes from epoch 3 to 2", &[], |s| {
        both_serve(s, None);
        let lower = s.history.slots.len() - 1;
        s.history.slots[lower].at = Time(24_000_000);
        s.history.slots.swap(lower - 1, lower);
    });
}

#[test]
fn i4_an_owner_of_a_lower_epoch_that_was_fenced_is_told_late_to_serve() {
    let mut script = Script::good();
    both_serve(&mut script, Some(Time(27_000_000)));
    let (history, _) = script.finish();
    let report = check(&history, &Rules::default());
    assert!(!report.is_violated(), "{report}");
}

#[test]
fn i4_a_batch_begins_where_it_does_not() {
    planted(Promise::I4, "says that its batch begins at 5", &[], |s| {
        s.stored().rows[5].written.as_mut().unwrap().batch_first = Seq(5);
    });
}

// ---------------------------------------------------------------- I5

#[test]
fn i5_a_silent_gap() {
    let slice = ["bob is resumed", "bob has m3", "bob has m4"];
    planted(Promise::I5, "seq 8 is pushed after 6, no gap was announced", &slice, |s| s.remove("bob has 7"));
}

#[test]
fn i5_an_event_comes_twice() {
    let slice = ["bob is resumed", "bob has m3", "bob has m3 again"];
    planted(Promise::I5, "seq 6 is pushed after 6", &slice, |s| {
        s.insert_after("bob has m3", ("bob has m3 again", B2, push(said(6, 3, ALICE, 3))));
    });
}

#[test]
fn i5_a_reply_stands_before_a_lower_event() {
    let slice = ["alice is subscribed", "ack m1", "send m3", "ack m3"];
    planted(Promise::I5, "the reply stands at seq 6, and 5 has not been pushed", &slice, |s| {
        s.remove("alice has m2");
    });
}

#[test]
fn i5_an_event_after_the_end() {
    planted(Promise::I5, "not subscribed live", &["cleo has 7"], |s| {
        let removed = event(7, 3, ALICE, None, Kind::Removed(CLEO));
        s.insert_after("cleo is unsubscribed", ("cleo has 7", C, push(removed)));
    });
}

#[test]
fn i5_times_fall() {
    planted(Promise::I5, "`at` falls from 1006 to 1000 at seq 7", &[], |s| {
        s.stored().rows[6].event.at = UnixMs(1_000);
    });
}

// ---------------------------------------------------------------- I6

#[test]
fn i6_a_later_send_stands_earlier() {
    let slice = ["ack m1", "send m5", "ack m5"];
    planted(Promise::I6, "m5 of user 1 stands at seq 3, and 4 had been told before", &slice, |s| {
        s.insert_after("bob has m1", ("send m5", B, send(7, 5, 4)));
        s.insert_after("send m5", ("ack m5", B, sent(7, 3)));
    });
}

// ---------------------------------------------------------------- I7

#[test]
fn i7_a_retry_is_stored_twice() {
    let slice = ["send m2", "send m2 again", "ack m2", "alice has 9"];
    planted(Promise::I7, "is stored twice, at seq 5 and 9", &slice, |s| {
        let again = said(9, 5, BOB, 2);
        s.stored().rows.push(row(again, 2, 9));
        s.stored().head = Some(Seq(9));
        s.insert_after("bob has m4", ("bob has 9", B2, push(again)));
        s.insert_after("ack m4", ("alice has 9", A, push(again)));
    });
}

#[test]
fn i7_a_retry_without_since_is_stored_twice_within_the_window() {
    let slice = ["send m2", "send m2 again", "ack m2"];
    planted(Promise::I7, "is stored twice, at seq 5 and 9", &slice, |s| {
        for name in ["send m2", "send m2 again"] {
            let what = What::Send {
                call: Call(2),
                room: ROOM,
                message: Message(2),
                since: None,
                content: content(2),
            };
            s.replace(name, what);
        }
        s.stored().rows.push(row(said(9, 5, BOB, 2), 2, 9));
        s.stored().head = Some(Seq(9));
    });
}

#[test]
fn i7_two_acks_disagree() {
    let slice = ["send m2", "send m2 again", "ack m2", "send m2 anew", "ack m2 anew"];
    planted(Promise::I7, "is acked as seq 5 and as seq 8", &slice, |s| {
        s.insert_after("bob has m4", ("send m2 anew", B2, send(9, 2, 4)));
        s.insert_after("send m2 anew", ("ack m2 anew", B2, sent(9, 8)));
    });
}

#[test]
fn i7_reused_says_120_and_it_is_not_there() {
    planted(Promise::I7, "refused as used before", &["send m9", "refuse m9"], |s| {
        s.insert_after("bob has m4", ("send m9", B2, send(9, 9, 4)));
        s.insert_after("send m9", ("refuse m9", B2, refused(9, 120)));
    });
}

#[test]
fn i7_a_first_try_is_called_a_duplicate_where_nobody_else_tries_again() {
    let duplicate = What::Sent { call: Call(3), seq: Seq(6), at: UnixMs(1_006), duplicate: true };
    planted(Promise::I7, "called a duplicate at its first try", &["send m3", "ack m3"], |s| {
        s.history.slots.clear();
        s.replace("ack m3", duplicate);
    });
}

#[test]
fn i7_lets_a_client_use_an_id_anew() {
    // `since` above the first event: the client itself says that there is no twin.
    let mut script = Script::good();
    let again = said(9, 5, BOB, 2);
    script.stored().rows.push(row(again, 2, 9));
    script.stored().head = Some(Seq(9));
    script.insert_after("bob has m4", ("send m2 anew", B2, send(9, 2, 8)));
    script.insert_after("send m2 anew", ("ack m2 anew", B2, sent(9, 9)));
    script.insert_after("ack m4", ("alice has 9", A, push(again)));
    script.move_after("alice has 9", "ack m2 anew");
    let (history, _) = script.finish();
    let report = check(&history, &Rules::default());
    assert!(!report.is_violated(), "{report}");
}

// ---------------------------------------------------------------- I8

#[test]
fn i8_nobody_sent_it() {
    planted(Promise::I8, "seq 4 is told, and user 0 has not sent it", &["bob has m1"], |s| {
        s.remove("send m1");
        s.remove("ack m1");
    });
}

#[test]
fn i8_only_the_store_has_it() {
    planted(Promise::I8, "seq 9 was never sent by user 2", &[], |s| {
        s.stored().rows.push(row(said(9, 5, CLEO, 9), 2, 9));
        s.stored().head = Some(Seq(9));
        s.history.liveness = None;
    });
}

#[test]
fn i8_every_try_was_refused() {
    planted(
        Promise::I8,
        "m3 of user 0 was refused at every try",
        &["send m3", "ack m3", "bob has m3"],
        |s| {
            s.replace("ack m3", refused(3, 112));
        },
    );
}

#[test]
fn i8_a_definite_refusal_after_an_unknown_try() {
    let slice = ["send m2", "alice has m2", "send m2 again", "ack m2"];
    planted(Promise::I8, "was refused for good with 103, and seq 5 holds it", &slice, |s| {
        s.replace("ack m2", refused(2, 103));
    });
}

#[test]
fn i8_a_refusal_may_be_overtaken_by_a_change_of_membership() {
    // Cleo is refused before she joins, the very same send is taken afterwards.
    let mut script = Script::good();
    let m9 = said(10, 5, CLEO, 9);
    script.stored().rows.push(row(event(9, 4, ALICE, None, Kind::Joined(CLEO)), 2, 9));
    script.stored().rows.push(row(m9, 2, 10));
    script.stored().head = Some(Seq(10));
    let cleo = &mut script.stored().members.as_mut().unwrap()[2];
    (cleo.role, cleo.left, cleo.out) = (1, None, vec![(Seq(7), Seq(9))]);
    (cleo.joined, cleo.changed) = (Seq(9), Seq(9));
    script.history.liveness = None;
    script.insert_after("bob has m4", ("send m9", C, send(9, 9, 7)));
    script.insert_after("send m9", ("refuse m9", C, refused(9, 123)));
    script.insert_after("refuse m9", ("send m9 again", C, send(9, 9, 7)));
    script.insert_after("send m9 again", ("ack m9", C, sent(9, 10)));
    let (history, _) = script.finish();
    let report = check(&history, &Rules::default());
    assert!(!report.is_violated(), "{report}");
}

// ---------------------------------------------------------------- I10

#[test]
fn i10_a_read_does_not_know_an_acked_send() {
    let slice = ["ack m3", "bob asks for a page", "page"];
    planted(Promise::I10, "a read begun when seq 6 had been told names the head 5", &slice, |s| {
        s.remove("page 6");
        s.replace("page", What::Page { call: Call(4), head: Seq(5), log: LOG, more: false });
    });
}

#[test]
fn i10_a_page_has_a_hole() {
    planted(Promise::I10, "the page has a hole between 4 and 6", &["bob asks for a page", "page"], |s| {
        s.remove("page 5");
    });
}

#[test]
fn i10_a_page_ends_early() {
    planted(Promise::I10, "the page ends at 5 without more", &["bob asks for a page", "page"], |s| {
        s.remove("page 6");
    });
}

#[test]
fn i10_a_head_goes_back() {
    let slice = ["cleo is subscribed", "cleo's head", "cleo's next head"];
    planted(Promise::I10, "the head goes back from 6 to 5", &slice, |s| {
        s.insert_after("cleo's head", ("cleo's next head", C, What::Head { room: ROOM, head: Seq(5), n: 2 }));
    });
}

// ---------------------------------------------------------------- I11

#[test]
fn i11_a_mark_goes_back() {
    let slice = ["alice has marks", "alice has lower marks"];
    planted(Promise::I11, "a mark of user 1 goes back", &slice, |s| {
        let lower = What::Marks { room: ROOM, user: BOB, delivered: Seq(5), seen: Seq(5) };
        s.history.slots.truncate(1);
        s.history.faults.clear();
        s.insert_after("alice has marks", ("alice has lower marks", A, lower));
    });
}

#[test]
fn i11_an_owner_of_the_past_tells_a_mark() {
    // The change of owner lies within the time that forgives; the higher mark was asked for after it.
    let slice = ["alice has marks", "alice has lower marks"];
    planted(Promise::I11, "a mark of user 1 goes back", &slice, |s| {
        let lower = What::Marks { room: ROOM, user: BOB, delivered: Seq(5), seen: Seq(5) };
        s.history.faults.clear();
        s.insert_after("alice has marks", ("alice has lower marks", A, lower));
        s.history.slots[1].at = Time(s.at("bob marks") as u64 * 1_000_000 + 500_000);
    });
}

#[test]
fn i11_a_reply_is_below_what_was_asked() {
    planted(Promise::I11, "below what was asked for", &["bob marks", "bob has marked"], |s| {
        s.replace("bob has marked", marked(3, 5, 2));
    });
}

#[test]
fn i11_seen_without_delivered() {
    planted(Promise::I11, "seen 6, delivered 5", &["alice has marks"], |s| {
        let marks = What::Marks { room: ROOM, user: BOB, delivered: Seq(5), seen: Seq(6) };
        s.replace("alice has marks", marks);
    });
}

#[test]
fn i11_the_store_forgets_a_mark() {
    planted(Promise::I11, "the mark 6 of user 1 was told", &["bob has marked"], |s| {
        s.history.slots.truncate(1);
        s.history.faults.clear();
        s.stored().members.as_mut().unwrap()[1].marks = Marks::default();
    });
}

#[test]
fn i11_a_mark_may_fall_with_its_owner() {
    let mut script = Script::good();
    // The owner is lost right after the mark was told (which is at 31 s).
    script.history.slots[1].at = Time(31_500_000);
    let lower = What::Marks { room: ROOM, user: BOB, delivered: Seq(5), seen: Seq(5) };
    script.insert_after("alice has marks", ("alice has lower marks", A, lower));
    let (history, _) = script.finish();
    let report = check(&history, &Rules::default());
    assert!(!report.is_violated(), "{report}");
}

// ---------------------------------------------------------------- I12

#[test]
fn i12_an_event_after_the_removal() {
    planted(Promise::I12, "seq 8 reaches user 2, who may not see it", &["cleo has m4"], |s| {
        s.insert_after("ack m4", ("cleo has m4", C, push(said(8, 4, ALICE, 4))));
    });
}

#[test]
fn i12_a_passive_reader_is_told_of_a_head_after_its_removal() {
    planted(Promise::I12, "seq 8 reaches user 2", &["cleo's late head"], |s| {
        s.remove("cleo is unsubscribed");
        s.insert_after("ack m4", ("cleo's late head", C, What::Head { room: ROOM, head: Seq(8), n: 4 }));
    });
}

#[test]
fn i12_a_subscription_ends_before_the_removal_has_come() {
    let slice = ["cleo is subscribed", "cleo is unsubscribed"];
    planted(Promise::I12, "ends after seq 3, where it was not removed", &slice, |s| {
        s.replace("cleo subscribes", subscribe(1, 3, Mode::Live));
        s.remove("cleo's head");
    });
}

#[test]
fn i12_a_removal_that_was_told_is_not_in_the_members() {
    planted(Promise::I12, "the member row of user 2 does not know seq 7", &[], |s| {
        s.stored().members.as_mut().unwrap()[2] = member(CLEO, 3);
    });
}

#[test]
fn i12_a_stranger_is_told() {
    planted(Promise::I12, "seq 6 reaches user 2", &["cleo's head"], |s| {
        s.stored().members.as_mut().unwrap().pop();
        s.stored().rows[2].event.kind = Kind::Joined(BOB);
        s.stored().rows[6].event.kind = Kind::Removed(BOB);
    });
}

// ---------------------------------------------------------------- I14

#[test]
fn i14_a_resume_begins_one_too_late() {
    let slice = ["bob resumes", "bob is resumed"];
    planted(Promise::I14, "it begins at 6 and not at 5, and no gap is announced", &slice, |s| {
        s.replace("bob is resumed", subscribed(1, 5, 2, 6));
        s.remove("bob has m2");
    });
}

#[test]
fn i14_a_resume_pushes_one_again() {
    let slice = ["bob is resumed", "bob has m1 again"];
    planted(Promise::I14, "seq 4 is pushed after 4", &slice, |s| {
        s.insert_after("bob is resumed", ("bob has m1 again", B2, push(said(4, 1, ALICE, 1))));
    });
}

#[test]
fn i14_a_resume_is_given_a_gap_for_nothing() {
    planted(Promise::I14, "seq 5 is left out, though it is there", &["bob resumes", "bob is resumed"], |s| {
        let What::Subscribed { call, room, mut reply } = subscribed(1, 5, 2, 6) else { panic!() };
        reply.gap = Some(Gap { from: Seq(5), to: Seq(5) });
        s.replace("bob is resumed", What::Subscribed { call, room, reply });
        s.remove("bob has m2");
    });
}

#[test]
fn i14_a_resume_is_reset_for_nothing() {
    planted(Promise::I14, "is told to begin anew", &["bob resumes", "bob is resumed"], |s| {
        let What::Subscribed { call, room, mut reply } = subscribed(1, 5, 2, 5) else { panic!() };
        reply.reset = true;
        s.replace("bob is resumed", What::Subscribed { call, room, reply });
    });
}

#[test]
fn i14_an_event_and_then_its_reply() {
    planted(Promise::I14, "came again as the reply", &["send m3", "alice has m3", "ack m3"], |s| {
        s.insert_after("send m3", ("alice has m3", A, push(said(6, 3, ALICE, 3))));
    });
}

// ---------------------------------------------------------------- I15

#[test]
fn i15_a_room_takes_no_send() {
    planted(Promise::I15, "has acked no send", &[], |s| {
        for name in ["send m3", "ack m3", "send m4", "ack m4"] {
            s.remove(name);
        }
    });
}

#[test]
fn i15_a_subscriber_never_learns_of_the_last_event() {
    planted(Promise::I15, "session 1 of user 1 ended at seq 7, the log at 8", &["bob has 7"], |s| {
        s.remove("bob has m4");
    });
}

#[test]
fn i15_a_subscriber_is_too_late() {
    planted(Promise::I15, "session 1 of user 1 stood at seq 6", &["bob has m4"], |s| {
        // Half of the time is over at 42.25 s, all of it at 40 s + what "bob has 7" takes (41 s).
        s.history.liveness.as_mut().unwrap().deadline = Time(40_500_000);
        s.move_after("alice has 7", "ack m3");
    });
}
