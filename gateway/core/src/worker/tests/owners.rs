//! Owners that come and go: what waits, what is asked again, what is not believed any more, and each planted bug caught.

use std::panic::{AssertUnwindSafe, catch_unwind};

use banyan_proto::id::{Epoch, Origin, RoomId, Seq, SlotId, UserId};
use banyan_proto::link::{FromShard, ToShard};
use banyan_proto::plant::{self, Bug};
use banyan_proto::v1;
use banyan_proto::v1::Mode::{Live, Passive};
use banyan_proto::v1::client_frame::Command;
use banyan_proto::v1::event::Kind;

use super::super::{Effect, Options};
use super::world::{LINKS, World, options, send_of, slot_of, subscribe_of};

const NOTHING: [&str; 0] = [];

fn leave(room: &str) -> Command {
    Command::Leave(v1::Leave { room: room.to_owned() })
}

fn mark(room: &str) -> Command {
    Command::Mark(v1::Mark { room: room.to_owned(), seen: Some(1), ..v1::Mark::default() })
}

fn history(room: &str) -> Command {
    Command::History(v1::History { room: room.to_owned(), ..v1::History::default() })
}

fn send_since(room: &str, msg: &str, since: u64) -> Command {
    let Command::Send(send) = send_of(room, msg) else { unreachable!() };
    Command::Send(v1::Send { since: Some(since), ..send })
}

/// Ids of the messages of a room, in order.
fn messages(w: &mut World, room: &str) -> Vec<String> {
    w.owner.room(room).log.iter().filter_map(|event| event.event.client_msg_id.clone()).collect()
}

/// What owners have taken since the last time.
fn taken(w: &mut World) -> Vec<String> {
    std::mem::take(&mut w.owner.taken).into_iter().map(|(_, what)| what).collect()
}

/// The worker's questions reach their owner; nothing is said yet.
fn asked(w: &mut World) {
    w.owner.stalled = true;
    w.run();
}

// ---------------------------------------------------------------- no owner

#[test]
fn without_an_owner_commands_wait_and_then_go_in_order() {
    let mut w = World::new();
    w.room("r", &["ann", "bob"], 1);
    let (a, b) = (w.json("ann"), w.json("bob"));
    w.no_route("r");
    w.send(a, "r", "m1");
    w.ask(a, mark("r"));
    w.send(b, "r", "m2");
    w.send(a, "r", "m3");
    w.ask(a, leave("r"));
    w.subscribe(b, "r", 0);
    assert_eq!((taken(&mut w), w.read(a)), (vec![], vec![]));
    assert_eq!((w.worker.routes.held(), w.worker.counters().held), (6, 6));
    assert!(w.worker.held_bytes() > 6 * 256);
    w.hand_over("r");
    w.run();
    w.pass(100);
    let all = taken(&mut w);
    let anns: Vec<&String> =
        all.iter().filter(|what| **what != "send m2 r" && **what != "subscribe r").collect();
    assert_eq!(anns, ["send m1 r", "mark r", "send m3 r", "leave r"]);
    assert_eq!(all.len(), 6);
    assert_eq!(w.read(a), ["#2 sent r 2", "#3 mark", "#4 sent r 4", "#5 leave"]);
    assert_eq!(w.read(b)[0], "#2 sent r 3");
    assert_eq!(w.worker.held_bytes(), 0);
    w.end();
}

#[test]
fn what_waits_too_long_is_108_and_never_done() {
    let mut w = World::new();
    w.room("r", &["ann"], 1);
    let c = w.json("ann");
    w.no_route("r");
    w.send(c, "r", "m1");
    w.pass(4_900);
    assert_eq!(w.read(c), NOTHING);
    w.send(c, "r", "m2");
    w.pass(200);
    assert_eq!(w.read(c), ["#2 error 108"]);
    w.tell_route("r");
    w.run();
    assert_eq!(w.read(c), ["#3 sent r 2"]);
    assert_eq!(messages(&mut w, "r"), ["m2"]);
    assert_eq!(w.worker.counters().hold_expired, 1);
    w.end();
}

#[test]
fn owners_that_come_and_go_do_not_put_off_the_end_of_waiting() {
    let mut w = World::new();
    w.room("r", &["ann"], 1);
    let c = w.json("ann");
    w.send(c, "r", "m0");
    w.run();
    w.read(c);
    w.post(c, send_of("r", "m1"));
    asked(&mut w);
    // Asked for long, and answered by none of them.
    w.pass(6_000);
    for round in 1..=6 {
        assert_eq!(w.read(c), NOTHING, "round {round}");
        w.hand_over("r");
        asked(&mut w);
        w.pass(900);
    }
    w.hand_over("r");
    asked(&mut w);
    assert_eq!(w.read(c), ["#3 error 108"]);
    assert_eq!(w.worker.counters().hold_expired, 1);
    w.owner.stalled = false;
    w.run();
    w.end();
}

#[test]
fn what_finds_no_room_to_wait_is_108_at_once() {
    let mut w = World::with(Options { hold_bytes: 600, ..options() });
    w.room("r", &["ann"], 1);
    let c = w.json("ann");
    w.no_route("r");
    for msg in ["m1", "m2", "m3"] {
        w.send(c, "r", msg);
    }
    assert_eq!(w.read(c), ["#4 error 108"]);
    assert_eq!(w.worker.counters().hold_refused, 1);
    // Who gives up makes room.
    w.lose(c);
    w.pass(6_000);
    assert_eq!(w.worker.held_bytes(), 0);
    w.end();
}

#[test]
fn a_subscribe_without_an_owner_is_pending_and_finished_by_a_push() {
    let mut w = World::new();
    w.room("r", &["ann"], 2);
    let c = w.json("ann");
    w.no_route("r");
    w.post(c, subscribe_of(&[("r", Some(0), Live)]));
    w.pass(400);
    assert_eq!(w.read(c), NOTHING);
    w.pass(200);
    assert_eq!(w.read(c), ["#2 subscribe [r pending]"]);
    w.tell_route("r");
    w.run();
    assert_eq!(w.read(c), ["subscribed r head 2 from 1", "event r 1", "event r 2"]);
    w.no_route("r");
    w.post(c, subscribe_of(&[("r", Some(0), Passive)]));
    w.pass(5_100);
    assert_eq!(w.read(c), ["#3 subscribe [r pending]", "subscribed r error 108"], "the wait has an end");
    w.tell_route("r");
    w.end();
}

// ---------------------------------------------------------------- an owner that is gone

#[test]
fn what_is_in_flight_is_asked_again_where_twice_is_once() {
    let mut w = World::new();
    w.room("r", &["ann", "bob"], 1);
    let c = w.json("ann");
    for command in [send_of("r", "m1"), mark("r"), history("r"), leave("r"), send_of("r", "m2")] {
        w.post(c, command);
    }
    asked(&mut w);
    assert_eq!(taken(&mut w), ["send m1 r", "mark r", "history r", "leave r", "send m2 r"]);
    w.hand_over("r");
    // Nobody can say whether the first owner has done it.
    w.run();
    assert_eq!(w.read(c), ["#5 error 108"]);
    w.owner.stalled = false;
    w.pass(100);
    assert_eq!(taken(&mut w), ["send m1 r", "mark r", "history r", "send m2 r"]);
    // The leave was done: the second try of m2 is refused (and the first?), the first of m1 is known.
    assert_eq!(w.read(c), ["#2 sent r 2 again", "#3 mark", "#4 history", "#6 error 108"]);
    assert_eq!((messages(&mut w, "r"), w.worker.counters().handed_again), (vec!["m1".to_owned()], 4));
    w.end();
}

#[test]
fn a_send_of_a_live_reader_gets_its_place_from_whichever_owner_it_is() {
    for late in [false, true] {
        let mut w = World::new();
        w.room("r", &["ann"], 3);
        let c = w.json("ann");
        w.subscribe(c, "r", 3);
        w.post(c, send_of("r", "m1"));
        asked(&mut w);
        w.say("r", 1);
        w.owner.hand_over(slot_of("r"), 0, late);
        w.tell_route("r");
        w.owner.stalled = false;
        w.run();
        if late {
            w.hear_late();
        }
        w.pass(100);
        assert_eq!(
            w.read(c),
            ["#2 subscribe [r head 3 from 4]", "#3 sent r 4 again", "event r 5"],
            "late: {late}"
        );
        assert_eq!(messages(&mut w, "r"), ["m1"]);
        w.end();
    }
}

/// Refused by an owner that is none any more, stored by the next.
fn old_refusal(w: &mut World) -> Vec<String> {
    w.room("r", &["bob"], 1);
    let c = w.json("ann");
    w.post(c, send_of("r", "m1"));
    asked(w);
    w.owner.hand_over(slot_of("r"), 0, true);
    w.tell_route("r");
    w.owner.bring_in("r", "ann");
    w.owner.held = Some([].into());
    w.owner.stalled = false;
    w.run();
    w.hear_late();
    let mut read = w.read(c);
    w.let_go();
    read.extend(w.read(c));
    read
}

#[test]
fn a_refusal_of_an_earlier_owner_is_not_believed() {
    let mut w = World::new();
    assert_eq!(old_refusal(&mut w), ["#2 sent r 3"]);
    assert_eq!(w.worker.counters().stale, 1);
    w.end();
}

#[test]
fn since_stays_what_the_client_said() {
    let mut w = World::new();
    assert_eq!(retried_since(&mut w), ["m1"]);
    w.end();
}

/// An owner stores a send that it never acks; the next one looks for it above `since`.
fn retried_since(w: &mut World) -> Vec<String> {
    w.room("r", &["ann"], 2);
    let c = w.json("ann");
    w.passive(c, "r");
    w.post(c, send_since("r", "m1", 2));
    // The event comes (to a reader of heads: nothing is settled by it), the answer does not.
    w.owner.held = Some([].into());
    w.run();
    w.owner.held = None;
    w.hand_over("r");
    w.run();
    w.pass(2_000);
    assert!(w.read(c).iter().any(|got| got.starts_with("#3 sent r ")));
    messages(w, "r")
}

#[test]
fn commands_that_were_not_handed_over_are_not_in_doubt() {
    let mut w = World::new();
    w.room("r", &["ann"], 1);
    let c = w.json("ann");
    w.post(c, send_of("r", "m1"));
    w.post(c, leave("r"));
    // They stand in the queue of the link.
    let link = w.owner.slot("r").link;
    assert_eq!(w.worker.shard_queues()[link].len(), 2);
    w.lose_link(link);
    assert_eq!(w.worker.shard_queues()[link].len(), 0);
    w.run();
    assert_eq!(w.read(c), NOTHING);
    w.hand_over("r");
    w.pass(50);
    assert_eq!(taken(&mut w), ["send m1 r", "leave r"]);
    assert_eq!(w.read(c), ["#2 sent r 2", "#3 leave"]);
    for slot in 0..super::world::SLOTS {
        w.tell_slot(slot);
    }
    w.end();
}

#[test]
fn a_slot_is_wanted_once_for_each_loss_of_its_owner_and_only_by_commands() {
    let mut w = World::new();
    let slot = SlotId(slot_of("r"));
    w.room("r", &["ann"], 3);
    let c = w.json("ann");
    // In the queue of the link, handed over, and after the loss: any of them is enough, all of them are one.
    for at in 0..3 {
        let when = |at_now: usize, w: &mut World| {
            if at == at_now {
                w.post(c, send_of("r", &format!("m{at}")));
            }
        };
        when(0, &mut w);
        asked(&mut w);
        when(1, &mut w);
        let link = w.owner.slot("r").link;
        w.lose_link(link);
        w.run();
        when(2, &mut w);
        w.run();
        assert_eq!(std::mem::take(&mut w.wanted), [slot], "{at}");
        w.post(c, mark("r"));
        w.run();
        assert_eq!(w.wanted, [], "{at}: said already");
        w.owner.stalled = false;
        w.hand_over("r");
        w.pass(50);
        assert_eq!((w.wanted.as_slice(), w.worker.routes.held()), ([].as_slice(), 0), "{at}");
        for slot in 0..super::world::SLOTS {
            w.tell_slot(slot);
        }
    }
    // An owner is named, and when the table knows it, there is no way to it.
    w.follows = false;
    w.owner.hand_over(slot.0, 0, false);
    w.post(c, send_of("r", "named"));
    w.run();
    assert_eq!((w.wanted.as_slice(), w.worker.routes.held()), ([].as_slice(), 1));
    for _ in 0..2 {
        w.no_route("r");
        w.run();
    }
    assert_eq!(std::mem::take(&mut w.wanted), [slot]);
    w.follows = true;
    w.tell_route("r");
    w.pass(50);
    assert_eq!(w.worker.routes.held(), 0);
    // Whoever moves has an owner.
    w.no_route("r");
    assert_eq!(w.wanted, []);
    w.subscribe(c, "r", 0);
    assert_eq!(std::mem::take(&mut w.wanted), [slot]);
    w.hand_over("r");
    w.pass(50);
    w.owner.hand_over(slot.0, 0, false);
    w.post(c, leave("r"));
    w.run();
    assert_eq!(w.wanted, [], "the owner has named the next one");
    w.tell_route("r");
    w.pass(50);
    w.end();
}

#[test]
fn a_link_that_comes_back_is_told_everything_again() {
    let mut w = World::new();
    w.room("r", &["ann"], 3);
    let c = w.json("ann");
    w.subscribe(c, "r", 3);
    w.post(c, send_of("r", "m1"));
    asked(&mut w);
    let link = w.owner.slot("r").link;
    w.lose_link(link);
    w.owner.stalled = false;
    w.say("r", 2);
    w.run();
    assert_eq!(w.read(c), ["#2 subscribe [r head 3 from 4]"], "nothing reaches it");
    w.tell_route("r");
    w.run();
    assert_eq!(w.owner.interests, ["r"]);
    assert_eq!(w.read(c), ["#3 sent r 4 again", "event r 5", "event r 6"]);
    for slot in 0..super::world::SLOTS {
        w.tell_slot(slot);
    }
    w.end();
}

#[test]
fn a_page_in_flight_is_asked_again() {
    let mut w = World::with(Options { ring_bytes: 300, ..options() });
    w.room("r", &["ann"], 40);
    let c = w.json("ann");
    w.owner.held = None;
    w.post(c, subscribe_of(&[("r", Some(0), Live)]));
    // The answer comes, the page does not.
    w.effects();
    w.exchange();
    w.worker.sweep(w.now, &mut w.sockets);
    asked(&mut w);
    assert_eq!(w.owner.pulls.len(), 1);
    w.hand_over("r");
    w.owner.stalled = false;
    w.run();
    assert_eq!(w.owner.pulls.len(), 2);
    let got = w.read(c);
    assert_eq!((got.len(), got[40].as_str()), (41, "event r 40"));
    // And without an owner it goes back to the reader, which asks again.
    w.say("r", 1);
    w.no_route("r");
    w.run();
    w.pass(3_000);
    assert_eq!(w.read(c), ["event r 41"]);
    w.tell_route("r");
    w.end();
}

// ---------------------------------------------------------------- Moved

#[test]
fn moved_is_asked_again_of_the_owner_that_it_names() {
    let mut w = World::new();
    w.room("r", &["ann"], 1);
    let c = w.json("ann");
    w.follows = false;
    w.owner.hand_over(slot_of("r"), 0, false);
    w.post(c, leave("r"));
    w.run();
    assert_eq!((taken(&mut w), w.read(c)), (vec![], vec![]), "not taken, and not in doubt");
    assert_eq!(w.worker.routes.epoch(slot_of("r")), Epoch(2));
    w.tell_route("r");
    w.pass(20);
    assert_eq!((taken(&mut w), w.read(c)), (vec!["leave r".to_owned()], vec!["#2 leave".to_owned()]));
    w.end();
}

#[test]
fn moved_is_an_effect_that_names_what_the_table_does_not_know() {
    let mut w = World::new();
    let slot = SlotId(3);
    let moved = |epoch, owner| FromShard::Moved { slot, ticket: None, epoch: Epoch(epoch), owner };
    let owner = Some(banyan_proto::id::Incarnation(7));
    w.worker.shard_said(w.now, moved(1, owner));
    assert_eq!(w.worker.take_effects(), [], "known, and there is a way");
    w.worker.shard_said(w.now, moved(3, owner));
    assert_eq!(w.worker.take_effects(), [Effect::Moved { slot, epoch: Epoch(3), owner }]);
    w.worker.shard_said(w.now, moved(2, owner));
    w.worker.shard_said(w.now, moved(3, None));
    assert_eq!(w.worker.take_effects(), [], "older, or without a name");
    w.worker.shard_said(w.now, FromShard::Moved { slot: SlotId(999), ticket: None, epoch: Epoch(9), owner });
    assert_eq!(w.worker.take_effects(), [], "no such slot");
    w.worker.route_changed(w.now, slot, Epoch(2), Some(1));
    assert_eq!(w.worker.routes.epoch(slot.0), Epoch(3), "news below the highest epoch are none");
    w.end();
}

#[test]
fn an_owner_that_does_not_serve_yet_is_asked_until_it_does_and_order_is_kept() {
    let mut w = World::new();
    w.room("r", &["ann", "bob"], 1);
    let (c, other) = (w.json("ann"), w.json("bob"));
    w.owner.hand_over(slot_of("r"), 0, false);
    w.owner.slot("r").serves = false;
    w.tell_route("r");
    for msg in ["m1", "m2"] {
        w.post(c, send_of("r", msg));
    }
    // That the first is not taken is on its way while the owner begins to serve.
    asked(&mut w);
    w.owner.slot("r").serves = true;
    w.post(c, send_of("r", "m3"));
    w.run();
    w.owner.stalled = false;
    w.send(other, "r", "b1");
    w.pass(50);
    let all = messages(&mut w, "r");
    let anns: Vec<_> = all.iter().filter(|msg| msg.starts_with('m')).collect();
    assert_eq!(anns, ["m1", "m2", "m3"], "{all:?}");
    assert!(w.worker.counters().moved >= 1);
    assert_eq!(all.len(), 4);
    // One that never serves: 108 after the time that a hold may take, counted from when it came.
    w.hand_over("r");
    w.owner.slot("r").serves = false;
    w.read(c);
    w.send(c, "r", "m4");
    w.pass(4_900);
    assert_eq!(w.read(c), NOTHING);
    w.pass(200);
    assert_eq!(w.read(c), ["#5 error 108"]);
    w.owner.slot("r").serves = true;
    w.pass(1_000);
    w.end();
}

#[test]
fn an_owner_that_refuses_is_asked_less_and_less_often_and_the_next_one_at_once() {
    let mut w = World::new();
    w.room("r", &["ann"], 1);
    let c = w.json("ann");
    let refused_within = |w: &mut World, ms: u64| {
        let before = w.worker.counters().moved;
        w.pass(ms);
        w.worker.counters().moved - before
    };
    for _ in 0..2 {
        w.owner.slot("r").serves = false;
        w.send(c, "r", "m");
        // Where a planned change of owner ends; the fields of an earlier refusal mean nothing.
        let at_first = refused_within(&mut w, 100);
        assert!((8..=11).contains(&at_first), "{at_first}");
        let later = refused_within(&mut w, 3_000);
        assert!((20..=40).contains(&later), "{later}");
        let last = refused_within(&mut w, 1_000);
        assert!((3..=5).contains(&last), "{last}");
        // It does serve after all: within the pause.
        w.owner.slot("r").serves = true;
        w.pass(250);
        assert_eq!(w.read(c).len(), 1);
        w.pass(1_000);
    }
    w.owner.slot("r").serves = false;
    w.send(c, "r", "m");
    w.pass(3_000);
    w.hand_over("r");
    w.run();
    assert_eq!(w.read(c).len(), 1, "another owner is asked at once");
    w.end();
}

// ---------------------------------------------------------------- epochs

#[test]
fn a_higher_epoch_that_is_merely_seen_counts_at_once() {
    let mut w = World::new();
    w.room("r", &["ann"], 3);
    let c = w.json("ann");
    w.subscribe(c, "r", 3);
    w.follows = false;
    w.owner.slot("r").epoch = 4;
    w.say("r", 1);
    w.run();
    assert_eq!(w.read(c)[1..], ["event r 4"]);
    w.send(c, "r", "m1");
    assert_eq!((taken(&mut w).len(), w.worker.routes.held()), (1, 1), "the table knows no owner at 4");
    w.tell_route("r");
    w.run();
    assert_eq!(w.read(c), ["#3 sent r 5"]);
    w.end();
}

/// Everything that an owner of the past can still say.
fn old_words(w: &mut World) -> Vec<String> {
    w.room("r", &["ann", "bob"], 4);
    let c = w.json("ann");
    w.subscribe(c, "r", 4);
    w.hand_over("r");
    w.run();
    w.read(c);
    let room = RoomId::parse("r").unwrap();
    let epoch = Epoch(1);
    let event = v1::Event { seq: 5, ..w.owner.room("r").log[0].event.clone() };
    let event = std::sync::Arc::new(banyan_proto::event::LoggedEvent::new(event, Origin(0)));
    let user = UserId::parse("ann").unwrap();
    for message in [
        FromShard::Events { room: room.clone(), epoch, events: [event].into() },
        FromShard::Head { room: room.clone(), epoch, head: Seq(9), n: 9, last_membership: Seq(9) },
        FromShard::Marks { room: room.clone(), epoch, marks: [v1::UserMarks::default()].into() },
        FromShard::Left { room, epoch, user, at: Seq(4) },
    ] {
        w.worker.shard_said(w.now, message);
    }
    w.owner.fails_pulls = true;
    w.run();
    w.read(c)
}

#[test]
fn nothing_of_an_earlier_epoch_counts() {
    let mut w = World::new();
    assert_eq!(old_words(&mut w), NOTHING);
    assert_eq!(w.worker.counters().stale, 4);
    w.end();
}

#[test]
fn a_page_of_an_earlier_owner_is_not_applied() {
    let mut w = World::new();
    w.room("r", &["ann"], 3);
    let c = w.json("ann");
    w.subscribe(c, "r", 3);
    w.owner.drops_events = true;
    w.say("r", 2);
    w.owner.drops_events = false;
    w.owner.beacon("r");
    w.owner.held = Some([].into());
    w.run();
    assert_eq!(w.owner.pulls.len(), 1);
    w.owner.hand_over(slot_of("r"), 0, true);
    w.tell_route("r");
    w.owner.held = Some([].into());
    w.run();
    w.hear_late();
    assert_eq!((w.read(c).len(), w.owner.pulls.len()), (1, 2), "dropped, and asked again");
    w.let_go();
    assert_eq!(w.read(c), ["event r 4", "event r 5"]);
    w.end();
}

#[test]
fn a_definite_refusal_that_no_owner_stands_for_is_108() {
    let mut w = World::new();
    w.room("r", &["ann"], 1);
    let c = w.json("ann");
    w.owner.held = Some([].into());
    w.send(c, "r", "m1");
    let Some(FromShard::Answer { ticket, .. }) = w.owner.held.take().unwrap().pop_front() else {
        panic!("an answer")
    };
    let error = banyan_proto::codes::Code::UnknownRoom.error("?");
    let answer = banyan_proto::link::Answer::Error(Box::new(error));
    w.worker.shard_said(w.now, FromShard::Answer { ticket, epoch: Epoch(0), answer });
    w.run();
    assert_eq!(w.read(c), ["#2 error 108"]);
    w.end();
}

// ---------------------------------------------------------------- interests

/// A new owner, and what happens in the room before and after it is told of us.
fn new_owner(w: &mut World) -> Vec<String> {
    w.room("r", &["ann"], 2);
    let c = w.json("ann");
    w.subscribe(c, "r", 2);
    w.owner.hand_over(slot_of("r"), 0, false);
    w.say("r", 2);
    w.tell_route("r");
    w.run();
    w.say("r", 1);
    w.run();
    w.read(c)[1..].to_vec()
}

#[test]
fn interests_are_stated_to_every_new_owner() {
    let mut w = World::new();
    assert_eq!(new_owner(&mut w), ["event r 3", "event r 4", "event r 5"]);
    // Of the same slot: a room that nobody reads, one where only a `subscribe` was refused.
    w.room("z", &["ann"], 2);
    assert_eq!(slot_of("z"), slot_of("r"));
    w.subscribe(0, "z", 0);
    w.unsubscribe(0, "z");
    w.owner.interests.clear();
    w.owner.user_channel.clear();
    w.hand_over("r");
    w.hand_over("~ann");
    w.run();
    assert_eq!(
        (w.owner.interests.clone(), w.owner.user_channel.clone()),
        (vec!["r".to_owned()], vec!["+ann".to_owned()])
    );
    w.end();
}

#[test]
fn interests_that_were_not_taken_are_stated_again() {
    let mut w = World::new();
    w.room("r", &["ann"], 2);
    let c = w.json("ann");
    w.subscribe(c, "r", 2);
    w.owner.hand_over(slot_of("r"), 0, false);
    w.owner.slot("r").serves = false;
    w.tell_route("r");
    w.run();
    w.say("r", 1);
    w.pass(100);
    assert_eq!((w.owner.interests.len(), w.read(c).len()), (0, 1));
    w.owner.slot("r").serves = true;
    w.pass(20);
    assert_eq!((w.owner.interests.len(), w.read(c)), (1, vec!["event r 3".to_owned()]));
    // One that says nothing at all is asked again every second.
    w.hand_over("r");
    let link = w.owner.slot("r").link;
    let lost = |w: &mut World| {
        let queue = std::mem::take(&mut w.worker.shard_queues()[link]);
        queue.into_iter().filter(|message| matches!(message, ToShard::Interest { .. })).count()
    };
    assert_eq!(lost(&mut w), 1);
    w.now.ms += 1_001;
    w.worker.tick(w.now);
    assert_eq!(lost(&mut w), 1);
    w.now.ms += 1_001;
    w.worker.tick(w.now);
    w.run();
    assert_eq!(w.owner.interests.len(), 2);
    w.now.ms += 1_001;
    w.worker.tick(w.now);
    assert_eq!(lost(&mut w), 0, "it has said a head");
    w.end();
}

#[test]
fn a_beacon_before_the_admission_is_not_forgotten() {
    let mut w = World::new();
    w.room("r", &["ann"], 2);
    let c = w.json("ann");
    w.post(c, subscribe_of(&[("r", Some(2), Live)]));
    w.owner.held = Some([].into());
    w.run();
    // The link was full: events were dropped, the answer was kept, the beacon goes first.
    w.owner.drops_events = true;
    w.say("r", 2);
    w.owner.beacon("r");
    w.run();
    w.let_go();
    assert_eq!(w.read(c), ["#2 subscribe [r head 2 from 3]", "event r 3", "event r 4"]);
    w.end();
}

// ---------------------------------------------------------------- removals

/// Two readers are removed while nothing reaches the gateway.
fn removed_meanwhile(w: &mut World) -> (Vec<String>, Vec<String>) {
    w.room("r", &["ann", "bob"], 2);
    let (live, passive) = (w.json("ann"), w.json("bob"));
    w.subscribe(live, "r", 2);
    w.unsubscribe(live, "r");
    w.passive(passive, "r");
    w.owner.hand_over(slot_of("r"), 0, false);
    w.say("r", 1);
    w.owner.take_out("r", "bob", Some("admin"));
    w.say("r", 2);
    w.tell_route("r");
    w.pass(3_000);
    (w.read(live), w.read(passive))
}

#[test]
fn readers_of_heads_learn_of_removals() {
    let mut w = World::new();
    let (_, passive) = removed_meanwhile(&mut w);
    assert_eq!(passive.last().unwrap(), "unsubscribed r 123");
    assert_eq!(w.owner.pulls.len(), 1);
    w.end();
}

#[test]
fn readers_of_heads_are_told_of_absences_before_their_events() {
    let mut w = World::new();
    w.room("r", &["ann", "bob"], 2);
    let c = w.json("bob");
    w.passive(c, "r");
    assert_eq!(w.read(c).len(), 1, "only that it is subscribed");
    // The event was dropped by a full link, what is said of it beside was not.
    let (room, epoch) = (RoomId::parse("r").unwrap(), w.owner.epoch("r"));
    let user = UserId::parse("bob").unwrap();
    w.worker.shard_said(w.now, FromShard::Left { room, epoch, user, at: Seq(3) });
    w.run();
    assert_eq!(w.read(c), ["unsubscribed r 123"]);
    assert_eq!(w.worker.counters().absences_ahead, 1);
    w.end();
}

#[test]
fn heads_alone_need_no_page() {
    let mut w = World::new();
    w.room("r", &["ann"], 2);
    let c = w.json("ann");
    w.passive(c, "r");
    w.hand_over("r");
    w.owner.drops_events = true;
    w.say("r", 50);
    w.run();
    w.pass(1_100);
    assert_eq!(w.read(c)[1..], ["head r 52"]);
    w.owner.drops_events = false;
    // A live reader who comes now reads from there on, and what lies below from the log.
    w.subscribe(c, "r", 50);
    w.say("r", 1);
    w.run();
    assert_eq!(w.read(c), ["#3 subscribe [r head 52 from 51]", "event r 51", "event r 52", "event r 53"]);
    assert!(w.owner.pulls.iter().all(|(_, after)| *after == 50), "{:?}", w.owner.pulls);
    w.end();
}

/// A removal, and messages before it, come in one go.
fn removal_behind_messages(w: &mut World) -> Vec<String> {
    w.room("r", &["ann", "bob"], 2);
    let c = w.json("ann");
    w.subscribe(c, "r", 2);
    w.say("r", 2);
    w.owner.take_out("r", "ann", Some("admin"));
    w.say("r", 1);
    w.run();
    w.read(c)[1..].to_vec()
}

#[test]
fn a_removal_ends_a_cursor_in_its_place() {
    let mut w = World::new();
    assert_eq!(
        removal_behind_messages(&mut w),
        ["event r 3", "event r 4", "event r 5", "unsubscribed r 123"]
    );
    w.end();
}

/// The link drops an event in the middle.
fn dropped(w: &mut World) -> Vec<String> {
    w.room("r", &["ann"], 2);
    let c = w.json("ann");
    w.subscribe(c, "r", 2);
    w.run();
    w.owner.drops_events = true;
    w.say("r", 1);
    w.owner.drops_events = false;
    w.owner.append("r", "bob", None, Origin(0), Kind::RoomChanged(v1::RoomChanged::default()));
    w.run();
    w.pass(1_000);
    w.read(c)[1..].to_vec()
}

fn resumed(w: &mut World) -> Vec<String> {
    w.room("r", &["ann"], 5);
    let c = w.json("ann");
    w.subscribe(c, "r", 2);
    w.read(c)[1..].to_vec()
}

// ---------------------------------------------------------------- planted bugs

#[test]
fn each_planted_bug_is_caught() {
    type Play = fn(&mut World) -> Vec<String>;
    let plays: [(Bug, Play); 8] = [
        (Bug::GatewayDeliversOnGap, dropped),
        (Bug::GatewayIgnoresEpoch, old_words),
        (Bug::GatewayTakesOldRefusal, old_refusal),
        (Bug::SinceRefreshed, retried_since),
        (Bug::RemovalAppliedAtReceipt, removal_behind_messages),
        (Bug::PassiveMissesRemoval, |w| removed_meanwhile(w).1),
        (Bug::ResumeOffByOne, resumed),
        (Bug::InterestLostAfterOwnerChange, new_owner),
    ];
    for (bug, play) in plays {
        let right = play(&mut World::new());
        let wrong =
            plant::with(Some(bug), || catch_unwind(AssertUnwindSafe(|| play(&mut World::new()))).ok());
        assert_ne!(wrong.as_ref(), Some(&right), "{bug:?} makes no difference: {right:?}");
    }
}

#[test]
fn links_and_slots_that_are_not_there_do_no_harm() {
    let mut w = World::new();
    w.room("r", &["ann"], 1);
    let c = w.json("ann");
    w.worker.route_changed(w.now, SlotId(slot_of("r")), Epoch(2), Some(LINKS as u16));
    w.worker.route_changed(w.now, SlotId(999), Epoch(2), Some(0));
    w.worker.link_lost(w.now, 77);
    w.send(c, "r", "m1");
    assert_eq!(w.worker.routes.held(), 1, "a link that is not there is no way");
    w.owner.slot("r").epoch = 2;
    w.tell_route("r");
    w.run();
    assert_eq!(w.read(c), ["#2 sent r 2"]);
    w.end();
}

#[test]
fn leaves_without_an_event_are_heard_of_again() {
    let mut w = World::new();
    w.room("r", &["ann", "bob", "cyd"], 2);
    w.owner.room("r").counts_leaves = true;
    let (ann, bob, cyd) = (w.json("ann"), w.json("bob"), w.json("cyd"));
    for c in [ann, bob, cyd] {
        w.subscribe(c, "r", 2);
    }
    // Both leave, one comes back, and the words of it die with the owner.
    w.owner.take_out("r", "ann", None);
    w.owner.take_out("r", "bob", None);
    w.owner.bring_in("r", "bob");
    w.hand_over("r");
    w.say("r", 1);
    w.run();
    assert_eq!(w.read(ann)[1..], ["unsubscribed r 123"]);
    assert_eq!(w.read(bob)[1..], ["unsubscribed r 123"], "its cursor is of before");
    assert_eq!(w.read(cyd)[1..], ["event r 3", "event r 4"]);
    // What is said again does not end whoever has been admitted since.
    w.subscribe(bob, "r", 2);
    w.hand_over("r");
    w.say("r", 1);
    w.run();
    assert_eq!(w.read(bob).last().unwrap(), "event r 5");
    w.end();
}

#[test]
fn how_far_a_room_was_heard_of_is_where_its_owner_went() {
    let mut w = World::new();
    w.room("r", &["ann"], 3);
    let c = w.json("ann");
    w.subscribe(c, "r", 3);
    w.run();
    // The next owner's events come before the table knows it.
    w.follows = false;
    w.owner.slot("r").epoch = 2;
    w.say("r", 4);
    w.run();
    assert_eq!(w.read(c).last().unwrap(), "event r 7");
    let of = w.owner.slots[usize::from(slot_of("r"))];
    w.worker.route_changed(w.now, SlotId(slot_of("r")), Epoch(of.epoch), Some(of.link as u16));
    let interest = ToShard::Interest { room: RoomId::parse("r").unwrap(), after: Seq(3) };
    assert!(w.worker.shard_queues()[of.link].contains(&interest));
    w.run();
    w.end();
}

#[test]
fn how_far_a_room_was_heard_of_is_where_interests_were_lost() {
    let mut w = World::new();
    w.room("r", &["ann"], 3);
    let c = w.json("ann");
    w.subscribe(c, "r", 3);
    w.run();
    let slot = slot_of("r");
    let moved = FromShard::Moved { slot: SlotId(slot), ticket: None, epoch: w.owner.epoch("r"), owner: None };
    w.worker.shard_said(w.now, moved);
    // Before its interests are stated again the link brings more, and where the room stands.
    w.say("r", 4);
    w.owner.beacon("r");
    w.run();
    assert_eq!(w.read(c).last().unwrap(), "event r 7");
    let entry = w.worker.room_ids.get("r").copied().and_then(|index| w.worker.rooms.get(index)).unwrap();
    assert_eq!(entry.heard_to, Some(Seq(3)));
    w.pass(100);
    let entry = w.worker.room_ids.get("r").copied().and_then(|index| w.worker.rooms.get(index)).unwrap();
    assert_eq!(entry.heard_to, None, "the owner has answered");
    w.end();
}

#[test]
fn a_refusal_of_one_of_two_tries_is_108() {
    let mut w = World::new();
    w.room("r", &["bob"], 1);
    let c = w.json("ann");
    w.post(c, send_of("r", "m1"));
    asked(&mut w);
    // The way is lost, the owner is not: both tries are refused, but who can tell?
    let link = w.owner.slot("r").link;
    w.lose_link(link);
    w.owner.stalled = false;
    w.tell_route("r");
    w.run();
    assert_eq!(w.read(c), ["#2 error 108"]);
    w.send(c, "r", "m1");
    assert_eq!(w.read(c), ["#3 error 123"], "of the one try of this command");
    for slot in 0..super::world::SLOTS {
        w.tell_slot(slot);
    }
    w.end();
}
