//! Rooms that are opened, read-open, crashed, moved and rolled: step by step against the store in memory.

use banyan_proto::id::{Incarnation, Origin};
use banyan_proto::link::Person;
use banyan_proto::v1::RoomKind;
use banyan_storage::log_store::Said;

use super::disk::Disk;
use super::tests::{Bench, TENURE, create, history, mark, person, said, send, stored, trim, user};
use super::*;
use crate::log::Limits;

/// An owner after [`TENURE`]'s.
fn later(epoch: u64) -> Tenure {
    Tenure { epoch: Epoch(epoch), incarnation: Incarnation(u128::from(epoch)) }
}

/// A bench whose store answers what the test says.
fn by_hand(disk: Disk) -> Bench {
    let mut bench = Bench::on("r", Config::default(), disk, TENURE, Start::Cold);
    bench.answers = false;
    bench
}

/// What is told while the store answers everything in order, one line a step.
fn answer_all(bench: &mut Bench) -> String {
    let mut told = String::new();
    while !bench.asked.is_empty() {
        told += &bench.answer();
        if bench.asked.is_empty() {
            told += &bench.flush();
        }
    }
    told
}

/// As [`stored`], and its owner closed the room in good order.
fn at_rest(messages: u64) -> Disk {
    let mut disk = stored(RoomKind::Group, false, messages);
    let segment = *disk.records.keys().next().unwrap();
    disk.said = Some(Said { segment, head: Seq(messages + 1), n: messages });
    disk
}

#[test]
fn a_send_opens_in_full_and_waits() {
    let mut bench = by_hand(stored(RoomKind::Group, false, 1));
    assert_eq!(bench.call(1, "bob", send("x")) + &bench.flush(), "segments\n");
    assert_eq!(bench.call(1, "bob", RoomCommand::Subscribe) + &bench.flush(), "");
    assert!(!bench.room.is_quiet());
    let told = answer_all(&mut bench);
    assert_eq!(
        told,
        trim(
            "read#2147483651 0<..<18446744073709551615 64
             append 2=alice:t2
             record 0.0 from 1
             record 1.4294967296 from 3 after 0.0
             room
             append 3=bob:x
             1: sent 3
             2: admitted member head 3 n 2 out [] end None"
        ) + "\n"
    );
}

#[test]
fn a_room_at_rest_is_read_without_a_write_and_a_send_opens_it_in_full() {
    let mut bench = by_hand(at_rest(100));
    assert_eq!(bench.call(1, "bob", history(None, None, 2)), "said\n");
    assert_eq!(bench.answer(), "segments\n");
    assert_eq!(bench.answer(), "read#2147483651 0<..<18446744073709551615 64\n");
    assert_eq!(bench.answer(), "room\n");
    assert_eq!(bench.answer() + &bench.flush(), "1: history [100, 101] gaps [] head 101 more true\n");
    assert_eq!(
        bench.call(1, "bob", RoomCommand::Subscribe),
        "2: admitted member head 101 n 100 out [] end None\n"
    );
    // A send is not judged before it is open in full: not even one that will be refused, or that is known.
    assert_eq!(bench.call(1, "rita", said("x", Some(101), "x")), "segments\n");
    assert_eq!(bench.call(1, "alice", said("m101", None, "t101")) + &bench.flush(), "");
    // Meanwhile reads are answered, from the log too.
    assert_eq!(bench.call(1, "bob", history(Some(12), None, 2)), "read#2 9<..<12 2\n");
    bench.asked.rotate_right(1);
    assert_eq!(bench.answer(), "5: history [10, 11] gaps [] head 101 more true\n");
    let told = answer_all(&mut bench);
    assert!(
        told.ends_with("link 1: head 101 n 100 members 37 epoch 1\n3: error 103\n4: sent 101 duplicate\n"),
        "{told}"
    );
    assert!(told.contains("record 1.4294967296 from 102 after 0.0\n"), "{told}");
    assert_eq!(bench.disk.records.len(), 2);
}

#[test]
fn what_is_not_as_it_was_said_is_opened_in_full() {
    // Nothing was said; a row beyond; a record above.
    let (mut beyond, mut above) = (at_rest(5), at_rest(5));
    beyond.said = beyond.said.map(|said| Said { head: Seq(5), n: 4, ..said });
    let first = above.records.values().next().unwrap().clone();
    let id = banyan_proto::id::SegmentId { epoch: Epoch(0), part: banyan_proto::id::Part(9) };
    let record = SegmentRecord { id, first_seq: Seq(7), n_before: 5, prev: Some(first.id), ..first };
    above.write(&Write::Record(record.into()));
    for disk in [stored(RoomKind::Group, false, 5), beyond, above] {
        let mut bench = Bench::on("r", Config::default(), disk, TENURE, Start::Cold);
        let told = bench.call(1, "bob", RoomCommand::Subscribe) + &bench.flush();
        assert_eq!(told, "1: admitted member head 6 n 5 out [] end None\n");
        assert_eq!(bench.room.grade, Some(Grade::Full));
        assert!(bench.disk.records.keys().any(|id| id.epoch == Epoch(1)));
    }
}

#[test]
fn marks_and_changes_open_in_full_and_reads_behind_changes_wait() {
    let mut bench = Bench::on("r", Config::default(), at_rest(5), TENURE, Start::Cold);
    bench.call(1, "bob", history(None, None, 1));
    assert_eq!(bench.flush(), "1: history [6] gaps [] head 6 more true\n");
    assert_eq!(bench.room.grade, Some(Grade::ReadOpen));
    bench.answers = false;
    assert_eq!(bench.call(1, "adam", RoomCommand::Remove { user: user("bob") }), "segments\n");
    assert_eq!(bench.call(1, "bob", RoomCommand::Subscribe) + &bench.flush(), "");
    let told = answer_all(&mut bench);
    assert!(
        told.ends_with("append 7=removed:bob<adam bob:none\nbarrier\nchange bob:none\n2: ok\nto bob: gone 123\n3: admitted none head 7 n 5 out [] end Some(7)\n"),
        "{told}"
    );
    let mut bench = Bench::on("r", Config::default(), at_rest(5), TENURE, Start::Cold);
    assert_eq!(bench.call(1, "bob", mark(3)) + &bench.flush(), "1: marks 3/3/2\nto bob: marks 3/3\n");
    assert_eq!(bench.room.grade, Some(Grade::Full));
}

#[test]
fn an_unknown_room_is_opened_without_a_trace_and_made_by_its_first_batch() {
    let mut bench = by_hand(Disk::default());
    assert_eq!(bench.call(1, "bob", send("x")), "segments\n");
    assert_eq!(bench.answer() + &bench.flush(), "1: error 102\n");
    assert_eq!(bench.call(1, "bob", RoomCommand::Subscribe), "2: error 102\n");
    assert!(bench.asked.is_empty() && bench.room.is_absent());
    assert_eq!(bench.room.said(), None);
    bench.call(1, "bob", create(RoomKind::Group, &["carl"]));
    assert_eq!(bench.flush(), "record 1.4294967296 from 1\n");
    assert_eq!(
        answer_all(&mut bench),
        trim(
            "append 1=created:group 2=joined:carl<bob [room] bob:owner carl:member
             barrier
             change [room] bob:owner carl:member
             3: created new as owner head 2 n 0
             to bob: room new owner head 2 n 0 seen 0
             to carl: room new member head 2 n 0 seen 0"
        ) + "\n"
    );
    let said = bench.room.said().unwrap();
    assert_eq!((said.head, said.n, said.segment.epoch), (Seq(2), 0, Epoch(1)));
}

#[test]
fn a_room_whose_maker_died_with_nothing_but_a_record_is_unknown_until_it_is_made() {
    let mut bench = by_hand(Disk::default());
    bench.call(1, "bob", create(RoomKind::Group, &[]));
    bench.answer();
    assert_eq!(bench.flush(), "record 1.4294967296 from 1\n");
    bench.answer();
    let mut next = Bench::on("r", Config::default(), bench.disk.clone(), later(2), Start::Cold);
    assert_eq!(next.call(1, "bob", RoomCommand::Subscribe) + &next.flush(), "1: error 102\n");
    let Said { segment, head, n } = next.room.said().unwrap();
    assert_eq!((segment.epoch, head, n), (Epoch(2), Seq(0), 0));
    next.disk.said = next.room.said();
    // Read-open, as nothing.
    let mut next = Bench::on("r", Config::default(), next.disk.clone(), later(3), Start::Cold);
    assert_eq!(next.call(1, "bob", RoomCommand::Subscribe) + &next.flush(), "1: error 102\n");
    assert_eq!(next.room.grade, Some(Grade::ReadOpen));
    let told = next.run("bob", create(RoomKind::Group, &[]));
    assert!(told.starts_with("append 1=created:group [room] bob:owner\n2: created"), "{told}");
    let records = next.disk.records.values();
    let logs: Vec<LogId> = records.map(|record| record.log).chain(next.disk.row.map(|row| row.log)).collect();
    assert!(logs.iter().all(|log| *log == logs[0]) && logs.len() == 4, "{logs:?}");
}

#[test]
fn a_crash_between_rows_and_what_stands_beside_them_is_mended_by_the_next_owner() {
    let mut bench = by_hand(stored(RoomKind::Group, true, 1));
    bench.call(1, "adam", RoomCommand::Remove { user: user("bob") });
    bench.call(1, "eve", RoomCommand::Join);
    bench.flush();
    // The rows are stored; then the owner is gone.
    while !matches!(bench.asked.front(), Some(Action::Barrier { .. })) {
        bench.answer();
        bench.flush();
    }
    let disk = bench.disk.clone();
    assert_eq!(disk.members[&user("bob")].role, 2);

    let mut next = Bench::on("r", Config::default(), disk, later(2), Start::Cold);
    next.answers = false;
    assert_eq!(next.call(1, "bob", send("x")), "segments\n");
    let told = answer_all(&mut next);
    assert_eq!(
        told,
        trim(
            "read#2147483651 0<..<18446744073709551615 64
             append 3=removed:bob<adam 4=joined:eve bob:none eve:member
             record 1.4294967296 from 3 after 0.0
             record 2.4294967296 from 5 after 1.4294967296
             barrier
             change bob:none eve:member
             room
             1: error 123"
        ) + "\n"
    );
    assert_eq!(next.disk.members[&user("bob")].left_seq, Some(Seq(3)));
    let state = next.room.state.as_deref().unwrap();
    assert_eq!((state.members.count(), state.last_membership), (4, Seq(4)));
}

/// What is asked for the same open when the `n`th answer is a failure (of reads) or unknown (of writes).
fn fail_at(n: usize) -> (Bench, String) {
    let mut bench = by_hand(stored(RoomKind::Group, false, 1));
    bench.call(1, "bob", send("x"));
    let mut told = String::new();
    for step in 0..200 {
        if !bench.asked.is_empty() {
            told += &if step == n { bench.fail() } else { bench.answer() };
        } else if bench.room.next_deadline().is_some_and(|at| at < 9_000) {
            let at = bench.room.next_deadline().unwrap();
            told += &bench.tick_at(at);
        } else {
            break;
        }
        told += &bench.flush();
    }
    (bench, told)
}

#[test]
fn an_open_survives_a_failure_at_each_of_its_steps() {
    // segments, rows, rewrite of rows and record, own record, members, the batch itself.
    let (bench, told) = fail_at(usize::MAX);
    assert!(told.contains("append 3=bob:x\n1: sent 3\n"), "{told}");
    assert_eq!(bench.disk.chain().len(), 3);
    for n in [0, 1, 5] {
        // A read that fails: nobody knows what became of it; the next try opens it.
        let (mut bench, told) = fail_at(n);
        assert!(told.ends_with("1: error 108\n"), "{n}: {told}");
        assert!(bench.room.is_quiet());
        bench.call(1, "bob", send("x"));
        let told = answer_all(&mut bench);
        assert!(told.ends_with("2: sent 3\n"), "{n}: {told}");
        let own = bench.disk.records.keys().filter(|id| id.epoch == Epoch(1)).count();
        assert_eq!((bench.disk.chain().len(), own), (3, 1));
    }
    for n in [2, 3, 4, 6] {
        // A write that may or may not have arrived: the same again.
        let (bench, told) = fail_at(n);
        assert!(told.contains("\n1: sent 3\n"), "{n}: {told}");
        let own = bench.disk.records.keys().filter(|id| id.epoch == Epoch(1)).count();
        assert_eq!((bench.disk.chain().len(), own), (3, 1));
    }
}

#[test]
fn links_that_an_earlier_owner_had_are_told_the_head() {
    let mut bench = Bench::on("r", Config::default(), at_rest(5), TENURE, Start::Cold);
    assert_eq!(
        bench.input(Input::Interest { link: LinkId(3), after: Seq(0) }),
        "link 3: head 6 n 5 members 0 epoch 1\n"
    );
    assert_eq!(
        bench.input(Input::Interest { link: LinkId(2), after: Seq(0) }),
        "link 2: head 6 n 5 members 0 epoch 1\n"
    );
    assert_eq!(bench.room.grade, Some(Grade::ReadOpen));
    // Opened in full they are told again, and get what follows.
    let told = bench.call(1, "bob", send("x")) + &bench.flush() + &bench.done();
    assert_eq!(
        told,
        trim(
            "link 2: head 6 n 5 members 0 epoch 1
             link 3: head 6 n 5 members 0 epoch 1
             append 7=bob:x
             link 2: 7=bob:x
             link 3: 7=bob:x
             1: sent 7"
        ) + "\n"
    );
    // A room that cannot be read now is tried again as long as a link wants it.
    let mut bench = by_hand(at_rest(5));
    assert_eq!(bench.input(Input::Interest { link: LinkId(3), after: Seq(0) }), "said\n");
    assert_eq!(bench.fail(), "");
    let at = bench.room.next_deadline().unwrap();
    assert_eq!(at, 2_000);
    assert_eq!(bench.tick_at(at), "said\n");
    assert_eq!(bench.room.next_deadline(), None);
    assert!(answer_all(&mut bench).ends_with("link 3: head 6 n 5 members 0 epoch 1\n"));
}

#[test]
fn links_that_an_earlier_owner_had_are_told_who_left_without_an_event() {
    let config = Config { join_events_members: 0, ..Config::default() };
    let mut bench = Bench::on("r", config.clone(), at_rest(5), TENURE, Start::Cold);
    bench.input(Input::Interest { link: LinkId(3), after: Seq(6) });
    // The owner dies as it is about to tell: the leave is stored.
    let told = bench.call(1, "bob", RoomCommand::Leave) + &bench.flush() + &bench.done();
    assert!(told.ends_with("change bob:none\n1: ok\nto bob: gone 123\n3: bob out at 6\n"), "{told}");
    let mut next = Bench::on("r", config, bench.disk.clone(), later(2), Start::Cold);
    let head = |link| format!("link {link}: head 6 n 5 members 0 epoch 2\n");
    assert_eq!(
        next.input(Input::Interest { link: LinkId(3), after: Seq(6) }),
        format!("3: bob out at 6\n{}", head(3))
    );
    next.run("alice", said("x", Some(6), "x"));
    // Whoever returned was away all the same.
    let mut back = Bench::on("r", Config::default(), next.disk.clone(), later(3), Start::Cold);
    back.run("adam", RoomCommand::Add { users: vec![person("bob")] });
    let told = back.input(Input::Interest { link: LinkId(5), after: Seq(6) });
    assert_eq!(told, "5: bob out at 6\nlink 5: head 8 n 6 members 8 epoch 3\n");
    back.run("adam", RoomCommand::Remove { user: user("rita") });
    back.run("adam", RoomCommand::Remove { user: user("bob") });
    let told = back.input(Input::Interest { link: LinkId(5), after: Seq(0) });
    assert!(
        told.starts_with("5: bob out at 6\n5: rita out at 9\n5: bob out at 10\nlink 5: head 10 "),
        "{told}"
    );
    assert!(!back.input(Input::Interest { link: LinkId(6), after: Seq(11) }).contains("out"));
    // A page that waits for the same open comes after it: it may show what came after the leave.
    let mut slow = Bench::on("r", Config::default(), next.disk.clone(), later(4), Start::Cold);
    slow.answers = false;
    slow.input(Input::Interest { link: LinkId(3), after: Seq(6) });
    slow.input(Input::Pull(PullRequest {
        link: LinkId(3),
        ticket: Ticket(9),
        after: Seq(5),
        through: None,
        max_events: 9,
        max_bytes: 1_000,
    }));
    let told = answer_all(&mut slow);
    let at = |what: &str| told.find(what).unwrap_or_else(|| panic!("{what}: {told}"));
    assert!(at("3: bob out at 6") < at("page 9: [6, 7]"), "{told}");
    // Who has come further has asked this owner, and was told.
    assert_eq!(
        next.input(Input::Interest { link: LinkId(4), after: Seq(7) }),
        "link 4: head 7 n 6 members 0 epoch 2\n"
    );
}

#[test]
fn a_drained_room_goes_on_where_it_was() {
    let mut bench = Bench::group(false, 100);
    bench.run("bob", said("x", Some(101), "x"));
    bench.run("bob", mark(50));
    bench.call(2, "bob", said("y", Some(101), "y"));
    bench.flush();
    bench.call(2, "alice", said("z", Some(101), "z"));
    bench.call(2, "adam", history(Some(9), None, 2));
    // What is in flight is completed and answered; what waits, and reads, are given back.
    assert_eq!(bench.input(Input::Drain), "4: return to 2\n5: return to 2\nput bob=102/102/101\n");
    assert_eq!(bench.call(2, "alice", said("z", Some(101), "z")), "6: return to 2\n");
    let pull = PullRequest {
        link: LinkId(1),
        ticket: Ticket(9),
        after: Seq(0),
        through: None,
        max_events: 1,
        max_bytes: 1,
    };
    assert_eq!(bench.input(Input::Pull(pull)), "9: return to 1\n");
    assert!(!bench.room.is_settled() && bench.room.hand_over().is_none());
    assert_eq!(bench.done(), "3: sent 103\n");
    assert!(bench.room.is_settled());
    let handed = bench.room.hand_over().unwrap();
    assert_eq!(bench.room.said().map(|said| said.head), Some(Seq(103)));

    let start = Start::Passed(Box::new(handed));
    // Another process has another seed.
    let config = Config { hash_seed: 5, ..Config::default() };
    let mut next = Bench::on("r", config, bench.disk.clone(), later(2), start);
    next.answers = false;
    // Nothing is read; its own record is all that it needs.
    assert_eq!(
        next.call(7, "bob", said("y", Some(101), "y")),
        "record 2.4294967296 from 104 after 1.4294967296\n"
    );
    assert_eq!(next.answer() + &next.flush(), "1: sent 103 duplicate\n");
    // The mark that the send of y lifted was not written yet.
    assert_eq!(next.tick_at(1_000), "put bob=103/103/102\n");
    next.call(7, "alice", said("z", Some(101), "z"));
    assert_eq!(next.flush(), "append 104=alice:z\n");
    assert_eq!(next.answer(), "2: sent 104\n");

    // The same without its state: read, but not rewritten.
    let mut next = Bench::on("r", Config::default(), bench.disk.clone(), later(2), Start::HandedOver);
    next.answers = false;
    assert_eq!(next.call(7, "bob", said("y", Some(101), "y")), "segments\n");
    let told = answer_all(&mut next);
    assert_eq!(
        told,
        trim(
            "read#2147483651 0<..<18446744073709551615 64
             record 2.4294967296 from 104 after 1.4294967296
             room
             1: sent 103 duplicate"
        ) + "\n"
    );
}

#[test]
fn who_tells_marks_that_it_did_not_lift_writes_them_once() {
    let bob = Marks { delivered: Seq(4), seen: Seq(3), seen_n: 2 };
    let mut disk = at_rest(5);
    disk.put_marks(vec![(user("bob"), bob)]);
    // Read from the store, where one replica alone may have them.
    for told in [RoomCommand::Subscribe, RoomCommand::Summary, RoomCommand::Members { after: None, limit: 9 }]
    {
        let mut bench = Bench::on("r", Config::default(), disk.clone(), TENURE, Start::Cold);
        bench.call(1, "bob", history(None, None, 1));
        bench.flush();
        assert_eq!(bench.tick_at(1_000), "");
        bench.call(1, "bob", told);
        bench.flush();
        assert_eq!(
            (bench.room.grade, bench.tick_at(2_000)),
            (Some(Grade::ReadOpen), "put bob=4/3/2\n".into())
        );
        bench.call(1, "bob", RoomCommand::Subscribe);
        bench.flush();
        assert_eq!(bench.tick_at(9_000), "");
    }
    let mut bench = Bench::on("r", Config::default(), disk, TENURE, Start::Cold);
    assert_eq!(bench.call(1, "bob", mark(1)) + &bench.flush(), "1: marks 4/3/2\n");
    assert_eq!(bench.tick_at(1_000), "put bob=4/3/2\n");

    // Passed on by an owner that may die with what it meant to write.
    assert_eq!(bench.input(Input::Drain), "");
    let start = Start::Passed(Box::new(bench.room.hand_over().unwrap()));
    let mut next = Bench::on("r", Config::default(), bench.disk.clone(), later(2), start);
    next.call(7, "alice", RoomCommand::Subscribe);
    next.flush();
    assert_eq!(next.tick_at(2_000), "");
    next.call(7, "bob", RoomCommand::Subscribe);
    next.flush();
    assert_eq!(next.tick_at(3_000), "put bob=4/3/2\n");
}

#[test]
fn marks_that_were_told_from_one_replica_stay_when_the_room_opens_in_full() {
    let bob = Marks { delivered: Seq(4), seen: Seq(3), seen_n: 2 };
    let full = |before: RoomCommand, waits_ms: u64| {
        let (mut disk, without) = (at_rest(5), at_rest(5));
        disk.put_marks(vec![(user("bob"), bob)]);
        let mut bench = Bench::on("r", Config::default(), disk, TENURE, Start::Cold);
        bench.call(1, "bob", before);
        let written = bench.flush() + &bench.tick_at(waits_ms);
        assert_eq!(bench.room.grade, Some(Grade::ReadOpen));
        // The other replicas answer now.
        bench.disk = without;
        bench.call(1, "alice", send("x"));
        bench.flush();
        assert_eq!(bench.room.grade, Some(Grade::Full));
        written + &bench.call(1, "bob", mark(1)) + &bench.flush() + &bench.tick_at(waits_ms + 2_000)
    };
    let once = |told: &str| (told.matches("put bob=4/3/2").count(), told.matches("marks 4/3/2").count());
    // Told, and written before or after.
    for waits_ms in [0, 1_500] {
        let told = full(RoomCommand::Subscribe, waits_ms);
        assert_eq!(once(&told), (1, 1), "{told}");
    }
    // Read, and not told before: what is known is known.
    let told = full(history(None, None, 1), 0);
    assert_eq!(once(&told), (1, 1), "{told}");
}

#[test]
fn a_room_that_was_just_opening_is_not_handed_over() {
    let mut bench = by_hand(stored(RoomKind::Group, false, 1));
    bench.call(1, "bob", send("x"));
    bench.input(Input::Interest { link: LinkId(1), after: Seq(0) });
    assert_eq!(bench.input(Input::Drain), "1: return to 1\n");
    assert!(bench.room.is_settled());
    assert_eq!((bench.room.hand_over(), bench.room.said()), (None, None));
    // It stays after all: what was under way goes on.
    bench.input(Input::Interest { link: LinkId(2), after: Seq(0) });
    assert_eq!(bench.input(Input::Resume), "");
    let told = bench.call(1, "bob", send("x")) + &answer_all(&mut bench);
    let heads = "link 1: head 2 n 1 members 0 epoch 1\nlink 2: head 2 n 1 members 0 epoch 1\n";
    assert!(
        told.ends_with(&format!("{heads}append 3=bob:x\nlink 1: 3=bob:x\nlink 2: 3=bob:x\n2: sent 3\n")),
        "{told}"
    );
    bench.input(Input::Drain);
    assert_eq!(bench.input(Input::Resume), heads.replace("head 2 n 1", "head 3 n 2"));
}

#[test]
fn a_refusal_from_a_room_that_is_only_read_open_would_show() {
    let refuse = || {
        let mut bench = Bench::on("r", Config::default(), at_rest(5), TENURE, Start::Cold);
        bench.call(1, "bob", RoomCommand::Subscribe);
        bench.answers = false;
        bench.call(1, "rita", said("x", Some(6), "x"))
    };
    assert_eq!(refuse(), "segments\n");
    assert_eq!(plant::with(Some(Bug::RefusalFromReadOpen), refuse), "2: error 103\n");
}

#[test]
fn a_full_bucket_rolls_and_history_reads_across() {
    let limits =
        Limits { bucket_bytes: 600, tail: ReadLimit { events: 2, bytes: 1 << 20 }, ..Limits::default() };
    let config = Config { log: Arc::new(limits), tail_events: 2, ..Config::default() };
    let mut bench = Bench::cold("r", config.clone());
    bench.run("alice", create(RoomKind::Group, &["bob"]));
    for id in 0..20 {
        let told = bench.run("alice", send(&format!("m{id}")));
        assert!(told.contains(&format!(": sent {}\n", id + 3)), "{told}");
    }
    let buckets: std::collections::BTreeSet<_> =
        bench.disk.records.values().map(|record| record.bucket).collect();
    assert!(buckets.len() > 3 && bench.disk.records.len() == buckets.len(), "{:?}", bench.disk.records);
    let mut next = Bench::on("r", config, bench.disk.clone(), later(2), Start::Cold);
    next.run("bob", mark(1));
    for bench in [&mut bench, &mut next] {
        bench.answers = false;
        bench.call(1, "bob", history(None, Some(0), 100));
        let seqs: Vec<u64> = (1..=22).collect();
        let told = bench.answer();
        assert!(told.ends_with(&format!("history {seqs:?} gaps [] head 22 more false\n")), "{told}");
    }
}

#[test]
fn pulls_wait_for_an_open_and_not_for_ever() {
    let mut bench = by_hand(at_rest(5));
    let pull = PullRequest {
        link: LinkId(1),
        ticket: Ticket(9),
        after: Seq(3),
        through: None,
        max_events: 9,
        max_bytes: 1_000,
    };
    assert_eq!(bench.input(Input::Pull(pull)), "said\n");
    assert_eq!(bench.room.next_deadline(), Some(10_000));
    assert_eq!(bench.tick_at(10_000), "page 9: error 108\n");
    assert_eq!(bench.input(Input::Pull(pull)), "");
    assert!(answer_all(&mut bench).ends_with("page 9: [4, 5, 6] head 6 more false\n"));
}

#[test]
fn a_hole_in_a_page_is_damage_and_not_a_shorter_page() {
    let mut bench = Bench::group(false, 100);
    let ends: [(_, &[u64]); 3] = [
        (history(Some(30), None, 3), &[27, 28]),
        (history(None, Some(9), 3), &[11, 12]),
        (history(Some(9), None, 2), &[]),
    ];
    for (turn, (command, seqs)) in ends.into_iter().enumerate() {
        bench.call(1, "bob", command);
        let ticket = bench.room.reads[0].0;
        let rows = bench.disk.chain().into_iter().filter(|row| seqs.contains(&row.seq.0)).collect();
        let told = bench.input(Input::Rows { ticket, page: Ok(banyan_storage::Page { rows, more: false }) });
        assert!(
            told.starts_with("damaged after ") && told.ends_with(&format!("{}: error 100\n", turn + 1)),
            "{told}"
        );
    }
}

#[test]
fn rooms_that_stand_alike_are_equal_and_hash_alike() {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let hash = |room: &Room| {
        let mut hasher = DefaultHasher::new();
        room.hash(&mut hasher);
        hasher.finish()
    };
    let config = Arc::new(Config::default());
    let room = || {
        let id = RoomId::parse("r").unwrap();
        let disk = stored(RoomKind::Group, false, 3);
        let mut bench = Bench::on("r", Config::default(), disk, TENURE, Start::Cold);
        bench.room = Room::new(id, TENURE, 1, LogId(1), Start::Cold, Arc::clone(&config));
        bench.open();
        for id in ["a", "b", "c"] {
            bench.run("alice", send(id));
        }
        bench.room
    };
    let (one, mut two) = (room(), room());
    assert!(one == two && hash(&one) == hash(&two));
    // Whether an event was shown as JSON makes no difference; what is under way does.
    two.state.as_ref().unwrap().tail.newest().next().unwrap().json_push();
    assert!(one == two && hash(&one) == hash(&two));
    let call = RoomCall {
        ticket: Ticket(1),
        caller: Person { user: user("bob"), name: "BOB".into() },
        origin: Origin(1),
        command: send("d"),
    };
    assert_eq!(person("bob").user, call.caller.user);
    let at = Now { mono_ms: 0, unix: UnixMs(1) };
    two.handle(at, Input::Call { link: LinkId(1), call: Box::new(call) }, &mut Vec::new());
    assert!(one != two && hash(&one) != hash(&two));
}
