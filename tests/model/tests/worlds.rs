//! The small worlds, each to its empty frontier, and the planted bugs that show within seconds. All of them:
//! `cargo run -p banyan-model`, with `--bugs` the planted ones.

#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "a test that says what it took")]

use std::time::{Duration, Instant};

use banyan_model::explore::Explorer;
use banyan_model::rooms::{RoomWorld, Rooms, room_bugs, room_worlds};
use banyan_model::search::{Bounds, Report, Search, Verdict};
use banyan_model::world::{World, bugs, worlds};
use banyan_proto::plant;

/// Far above what a small world takes, so that a machine with other things to do does not fail it.
const BOUNDS: Bounds = Bounds { states: 8_000_000, time: Duration::from_secs(600) };

fn explore(world: &World) -> Report {
    let start = Instant::now();
    Search::new(Explorer::new(world)).run(BOUNDS, || start.elapsed(), |_| {})
}

/// Safe, and it was not nothing: so much was said, and these situations occurred.
#[track_caller]
fn check(name: &str, said: usize, situations: &[&str]) {
    let world = worlds().into_iter().find(|world| world.name == name).expect("a world of that name");
    assert!(world.quick, "{name} is not a small one");
    let report = explore(&world);
    println!("{name}: {} states, depth {}, {:.1} s", report.states, report.depth, report.took.as_secs_f64());
    assert_eq!(report.verdict, Verdict::Safe);
    assert_eq!(report.longest_said, said, "how much was said");
    for situation in situations {
        let found = report.coverage.iter().any(|(what, count)| what == situation && *count > 0);
        assert!(found, "never: {situation}; only {:?}", report.coverage);
    }
}

#[test]
fn takeovers() {
    check("log", 2, &["opened in full", "finds a later owner's record"]);
}

#[test]
fn a_fourth_owner() {
    check("log-4", 1, &["opened in full"]);
}

#[test]
fn fence_reads_take_their_time() {
    check("reads", 2, &["dead by its own fence"]);
}

#[test]
fn fence_reads_overlap() {
    check("overlaps", 1, &["dead by its own fence"]);
}

#[test]
fn writes_of_unknown_outcome() {
    check("writes", 2, &["opened in full"]);
}

#[test]
fn three_replicas() {
    check("rep-1", 1, &["dead by its own fence"]);
}

#[test]
fn three_replicas_just_in_time() {
    check("jit", 2, &["dead by its own fence"]);
}

#[test]
fn rolls_and_handoffs() {
    check("rolls", 2, &["opens from passed state", "opened in full"]);
}

#[test]
fn handoffs_without_state() {
    check("names", 2, &["opens a room that was open there"]);
}

#[test]
fn handoffs_back() {
    check("again", 2, &["opens from passed state"]);
}

#[test]
fn rooms_reopened_in_the_epoch() {
    check("reopen", 2, &["finds a later owner's record"]);
}

#[test]
fn transactions_of_unknown_outcome() {
    check(
        "etcd",
        3,
        &[
            "etcd: a transaction of unknown outcome",
            "etcd: applied, nobody hears it",
            "opens from passed state",
            "goes on under an epoch of its own",
        ],
    );
}

#[test]
fn drains_called_off() {
    check("etcd-2", 2, &["opens from passed state", "etcd: applied, nobody hears it"]);
}

#[test]
fn a_restored_etcd() {
    check("restore-lean", 4, &["etcd restored", "stops: another owner is registered"]);
}

#[test]
fn a_recovered_etcd() {
    check("recover-still", 3, &["etcd restored", "ring recover is through"]);
}

#[test]
fn rooms_opened_for_reads() {
    check("read-open", 1, &["opened for reads", "cannot be opened for reads"]);
}

#[test]
fn rooms_opened_for_reads_again() {
    check("read-open-again", 2, &["opened for reads", "cannot be opened for reads"]);
}

#[test]
fn rooms_that_come_to_rest() {
    check("rest", 2, &["goes on in its own segment", "opened for reads"]);
}

#[test]
fn derived_rows() {
    check("derived", 2, &["opened in full"]);
}

#[test]
fn counted_members() {
    check("counted", 2, &["opened in full"]);
}

fn explore_rooms(world: &RoomWorld) -> Report {
    let start = Instant::now();
    Search::new(Rooms::new(world)).run(BOUNDS, || start.elapsed(), |_| {})
}

/// The same with the rooms themselves.
#[test]
fn rooms() {
    for world in room_worlds().into_iter().filter(|world| world.quick) {
        let report = explore_rooms(&world);
        println!("{}: {} states, {:?}", world.name, report.states, report.coverage);
        assert_eq!(report.verdict, Verdict::Safe, "{}", world.name);
        if world.sends {
            assert!(report.longest_said > 0, "{}: nothing was ever told", world.name);
        }
        if world.removes && world.sends {
            let refused = report.coverage.iter().any(|(what, _)| *what == "the message is refused");
            assert!(refused, "{}: nothing was ever refused", world.name);
        }
    }
}

#[test]
fn planted_bugs_of_rooms_are_caught() {
    for (bug, world) in room_bugs().into_iter().filter(|(_, world)| world.quick) {
        let report = plant::with(Some(bug), || explore_rooms(&world));
        let Verdict::Violated { why, trace } = report.verdict else {
            panic!("{bug:?} is not caught in {}: {report:?}", world.name);
        };
        println!("{bug:?} in {}: {} steps, {why}", world.name, trace.len());
    }
}

/// Those whose world is a small one; the others take `model --bugs`.
#[test]
fn planted_bugs_are_caught() {
    for planted in bugs().into_iter().filter(|planted| planted.world.quick) {
        let (name, world) = (planted.name(), planted.world.name);
        let report = plant::with(planted.bug, || explore(&planted.world));
        let Verdict::Violated { why, trace } = report.verdict else {
            panic!("{name} is not caught in {world}: {report:?}");
        };
        println!("{name} in {world}: {} steps, {why}", trace.len());
        assert!(trace.iter().all(|step| !step.is_empty()), "a step without a name");
    }
}

#[test]
fn the_same_world_twice_is_the_same() {
    let world = worlds().into_iter().find(|world| world.name == "reopen").unwrap();
    let (first, second) = (explore(&world), explore(&world));
    assert_eq!(
        (first.states, first.transitions, first.depth),
        (second.states, second.transitions, second.depth)
    );
}
