//! Every store passes the one suite.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests, their helpers included"
)]

use std::sync::Arc;

use banyan_proto::id::{Epoch, Incarnation, Seq, SlotId};
use banyan_storage::accounts::Accounts;
use banyan_storage::contract::log::{derived, record, rows, segment, span, write};
use banyan_storage::contract::{Check, Subject, accounts, log, member, room, room_row, user, wait};
use banyan_storage::embedded::{Embedded, Options};
use banyan_storage::log_store::{LogStore, Said, SlotOwner, Write};
use banyan_storage::memory::Memory;
use banyan_storage::{MemberRow, Range, ReadLimit, RoomRow};
use proptest::prelude::*;

fn run_all<S: ?Sized>(checks: &[Check<S>], mut subject: Subject<S>) {
    for (name, check) in checks {
        println!("{name}");
        check(&mut subject);
    }
}

#[test]
fn memory_accounts() {
    let memory = Memory::new();
    run_all(accounts::ALL, Subject::new(move |_| Arc::new(memory.clone()) as Arc<dyn Accounts>));
}

#[test]
fn memory_log() {
    let memory = Memory::new();
    let subject = || {
        let memory = memory.clone();
        Subject::new(move |_| Arc::new(memory.clone()) as Arc<dyn LogStore>)
    };
    run_all(log::ALL, subject());
    run_all(log::GROUP_COMMIT, subject());
}

#[test]
fn embedded_accounts() {
    let directory = tempfile::tempdir().unwrap();
    run_all(
        accounts::ALL,
        Subject::new(move |old: Option<Arc<dyn Accounts>>| {
            drop(old); // the only one: this closes it
            Arc::new(Embedded::open(Options::new(directory.path().join("store"))).unwrap())
        }),
    );
}

#[test]
fn embedded_log() {
    for checks in [log::ALL, log::GROUP_COMMIT] {
        let directory = tempfile::tempdir().unwrap();
        run_all(
            checks,
            Subject::new(move |old: Option<Arc<dyn LogStore>>| {
                drop(old);
                Arc::new(Embedded::open(Options::new(directory.path().join("store"))).unwrap())
            }),
        );
    }
}

/// A write, by small numbers: they meet often.
fn any_write() -> impl Strategy<Value = Write> {
    let ours = || room("alike");
    prop_oneof![
        // A batch is made of where it begins, so the same name always has the same content.
        4 => (1..4_u64, 0..3_u64, 1..12_u64).prop_map(move |(epoch, part, batch)| {
            let from = 3 * batch - 2;
            rows(&ours(), segment(epoch, part), bucket_of(epoch, part), from, from + 2)
        }),
        2 => (1..4_u64, 0..3_u64).prop_map(|(epoch, part)| {
            Write::Record(record(segment(epoch, part), bucket_of(epoch, part), 1 + 7 * part, None))
        }),
        3 => (0..9_u64, 0..4_u8, 0..3_u8, any::<bool>()).prop_map(move |(at, role, name, with_room)| {
            // Two contents at one seq too: the later one stays.
            let row = RoomRow { changed: Seq(at), name: format!("at {at}"), ..room_row(&ours()) };
            let one = MemberRow { changed: Seq(at), ..member(&format!("alike.{name}"), role, at) };
            derived(with_room.then_some(row), vec![one])
        }),
        1 => (1..4_u64, 1..30_u64).prop_map(|(epoch, head)| {
            Write::Said(Said { segment: segment(epoch, 0), head: Seq(head), n: head / 2 })
        }),
    ]
}

fn bucket_of(epoch: u64, part: u64) -> u32 {
    u32::try_from(epoch * 300 + part).unwrap()
}

fn any_range() -> impl Strategy<Value = Range> {
    let seq = || prop_oneof![9 => 0..40_u64, 1 => Just(u64::MAX), 1 => Just(u64::MAX - 1)].prop_map(Seq);
    prop_oneof![
        (seq(), seq()).prop_map(|(after, through)| Range::After { after, through }),
        (seq(), seq()).prop_map(|(before, above)| Range::Before { before, above }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever is written, in whatever groups, memory and the embedded store answer alike, before and after a reopen.
    #[test]
    fn stores_answer_alike(
        groups in prop::collection::vec(prop::collection::vec(any_write(), 1..6), 1..12),
        cuts in prop::collection::vec((any::<bool>(), 0..12_u64), 9),
        reads in prop::collection::vec((any_range(), 0..8_usize, 0..400_usize), 12),
        owners in prop::collection::vec((1..4_u64, 1..4_u128, any::<bool>(), any::<bool>(), 1..4_u64, 1..4_u128), 0..6),
    ) {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let open = || Embedded::open(Options { cache_bytes: 1 << 20, ..Options::new(directory.path()) }).unwrap();
        let (memory, embedded, ours) = (Memory::new(), open(), room("alike"));
        for group in groups {
            // In memory one after the other: in one group the order is anybody's, and only `said` depends on it.
            let said = group.iter().filter(|one| matches!(one, Write::Said(_))).count();
            for one in &group {
                write(&memory, &ours, vec![one.clone()]);
            }
            if said > 1 {
                for one in group {
                    write(&embedded, &ours, vec![one]);
                }
            } else {
                write(&embedded, &ours, group);
            }
        }
        for (epoch, incarnation, closed, closes, other, other_incarnation) in owners {
            let owner = SlotOwner { epoch: Epoch(epoch), incarnation: Incarnation(incarnation), closed };
            let closes = closes.then_some((Epoch(other), Incarnation(other_incarnation)));
            for store in [&memory as &dyn LogStore, &embedded] {
                wait(store.put_slot_owner(SlotId(7), owner, closes)).unwrap();
                if closed {
                    wait(store.write_fence(owner.incarnation)).unwrap();
                }
            }
        }
        // Spans ascend, and leave out what they like.
        let (mut spans, mut next) = (Vec::new(), 1);
        for (i, (taken, len)) in (0..).zip(cuts) {
            let (epoch, part) = (1 + i / 3, i % 3);
            if taken {
                let last = if i == 8 { u64::MAX } else { next + len - 1 };
                spans.push(span(segment(epoch, part), bucket_of(epoch, part), next, last));
            }
            next += len;
        }
        let check = |embedded: &Embedded| -> Result<(), TestCaseError> {
            let both = [&memory as &dyn LogStore, embedded];
            for (range, events, bytes) in &reads {
                let limit = ReadLimit { events: *events, bytes: *bytes };
                let [a, b] = both.map(|s| wait(s.rows(ours.clone(), spans.clone(), *range, limit)).unwrap());
                prop_assert_eq!(a, b, "{:?} {:?} {:?}", range, limit, spans);
            }
            let [a, b] = both.map(|s| (
                wait(s.segments(ours.clone())).unwrap(),
                wait(s.said(ours.clone())).unwrap(),
                wait(s.room_row(ours.clone())).unwrap(),
                wait(s.members(ours.clone(), None, 10)).unwrap(),
                wait(s.slot_owners(SlotId(7))).unwrap(),
                (0..3).map(|i| wait(s.user_rooms(user(&format!("alike.{i}")), None, 9)).unwrap()).collect::<Vec<_>>(),
                (1..4).map(|i| wait(s.is_fenced(Incarnation(i)).get()).unwrap()).collect::<Vec<_>>(),
            ));
            prop_assert_eq!(a, b);
            Ok(())
        };
        check(&embedded)?;
        drop(embedded);
        check(&open())?;
    }
}
