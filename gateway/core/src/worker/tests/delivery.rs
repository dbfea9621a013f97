//! What a cursor is told: events, replies in their places, gaps, ends, heads.

use std::sync::Arc;

use banyan_proto::frame::Format;
use banyan_proto::id::{Epoch, Origin, RoomId, Seq};
use banyan_proto::link::FromShard;
use banyan_proto::v1;
use banyan_proto::v1::Mode::{Live, Passive};
use banyan_proto::v1::client_frame::Command;
use banyan_proto::v1::event::Kind;

use super::super::Options;
use super::world::{Got, World, options, send_of, subscribe_of};
use crate::connection::Place;
use crate::room::side_of;

const ALL: usize = usize::MAX;

fn subscribe_last(room: &str, last: u32) -> Command {
    let room = v1::SubscribeRoom { room: room.to_owned(), last: Some(last), ..v1::SubscribeRoom::default() };
    Command::Subscribe(v1::Subscribe { rooms: vec![room] })
}

fn events(room: &str, seqs: impl IntoIterator<Item = u64>) -> Vec<String> {
    seqs.into_iter().map(|seq| format!("event {room} {seq}")).collect()
}

/// Events of an owner that nobody waits for: late, twice, or of another epoch.
fn say_again(w: &mut World, room: &str, epoch: u64, seqs: std::ops::RangeInclusive<usize>) {
    let events = w.owner.room(room).log[*seqs.start() - 1..*seqs.end()].to_vec();
    let message =
        FromShard::Events { room: RoomId::parse(room).unwrap(), epoch: Epoch(epoch), events: events.into() };
    w.worker.shard_said(w.now, message);
    w.run();
}

// ---------------------------------------------------------------- subscribe

#[test]
fn a_subscribe_says_where_it_begins() {
    for format in Format::ALL {
        let mut w = World::new();
        w.room("r", &["ann"], 60);
        let c = w.login("ann", format);
        w.subscribe(c, "r", 58);
        assert_eq!(w.read(c), ["#2 subscribe [r head 60 from 59]", "event r 59", "event r 60"]);
        w.ask(c, subscribe_last("r", 1));
        assert_eq!(w.read(c), ["#3 subscribe [r head 60 from 60]", "event r 60"]);
        w.ask(c, subscribe_of(&[("r", None, Live)]));
        assert_eq!(w.read(c).first().unwrap(), "#4 subscribe [r head 60 from 11]");
        w.subscribe(c, "r", 61);
        assert_eq!(w.read(c)[0], "#5 subscribe [r head 60 from 11 reset]");
        w.passive(c, "r");
        assert_eq!(w.read(c), ["#6 subscribe [r head 60 from 61]"]);
        w.subscribe(c, "other", 0);
        assert_eq!(w.read(c), ["#7 subscribe [other error 102]"]);
        w.end();
    }
}

#[test]
fn more_than_a_thousand_behind_begins_with_a_gap() {
    let mut w = World::new();
    w.room("r", &["ann"], 1_500);
    let c = w.json("ann");
    w.subscribe(c, "r", 100);
    let got = w.read(c);
    assert_eq!(got[0], "#2 subscribe [r head 1500 from 501 gap 101-500]");
    assert_eq!(got[1..], events("r", 501..=1_500));
    w.say("r", 1);
    w.run();
    assert_eq!(w.read(c), ["event r 1501"]);
    w.end();
}

#[test]
fn a_late_owner_is_pending_and_finished_by_a_push() {
    let mut w = World::new();
    w.room("late", &["ann"], 2);
    w.room("fast", &["ann"], 2);
    let c = w.json("ann");
    w.owner.held = Some([].into());
    w.post(c, subscribe_of(&[("late", Some(0), Live), ("fast", Some(1), Live), ("late", None, Passive)]));
    w.run();
    let mut held = w.owner.held.take().unwrap();
    // The second of the three tickets.
    let second = |message: &FromShard| matches!(message, FromShard::Answer { epoch: Epoch(1), ticket, .. } if ticket.0 as u32 == 2);
    let fast = held.iter().position(second).unwrap();
    w.owner.link.push_back(held.remove(fast).unwrap());
    w.run();
    w.say("fast", 1);
    w.pass(400);
    assert_eq!(w.read(c), [] as [&str; 0], "its reply comes before its pushes");
    w.pass(400);
    assert_eq!(
        w.read(c),
        ["#2 subscribe [late pending; fast head 2 from 2; late pending]", "event fast 2", "event fast 3"]
    );
    let live = held.remove(0).unwrap();
    w.owner.link.push_back(live);
    w.run();
    assert_eq!(w.read(c), ["subscribed late head 2 from 1", "event late 1", "event late 2"]);
    w.pass(20_000);
    assert_eq!(w.read(c), ["subscribed late error 108"], "given up");
    w.say("late", 1);
    w.run();
    assert_eq!(w.read(c), ["event late 3"], "the cursor that it had stays");
    w.end();
}

#[test]
fn subscriptions_are_limited_also_while_they_are_pending() {
    let mut w = World::with(Options { subscriptions: 3, ..options() });
    for room in ["a", "b", "c", "d", "e"] {
        w.room(room, &["ann"], 0);
    }
    let c = w.json("ann");
    w.owner.held = Some([].into());
    w.post(c, subscribe_of(&[("a", None, Live), ("b", None, Live)]));
    w.post(c, subscribe_of(&[("c", None, Live), ("d", None, Live)]));
    w.post(c, subscribe_of(&[("a", None, Live), ("e", None, Live)]));
    w.let_go();
    let got = w.read(c).join(" ");
    assert!(got.contains("d error 106") && got.contains("e error 106"), "{got}");
    w.subscribe(c, "a", 0);
    w.unsubscribe(c, "b");
    w.subscribe(c, "d", 0);
    w.subscribe(c, "e", 0);
    let got = w.read(c);
    assert_eq!(
        got,
        [
            "#5 subscribe [a head 0 from 1]",
            "#6 unsubscribe",
            "#7 subscribe [d head 0 from 1]",
            "#8 subscribe [e error 106]"
        ]
    );
    w.end();
}

/// A room that is refused to one for a limit is still awaited by the other.
#[test]
fn a_refusal_here_does_not_spoil_what_another_waits_for() {
    let mut w = World::with(Options { subscriptions: 1, ..options() });
    w.room("r", &["ann", "bob"], 1);
    w.room("s", &["bob"], 1);
    let (a, b) = (w.json("ann"), w.json("bob"));
    w.subscribe(b, "s", 1);
    w.read(b);
    w.owner.held = Some([].into());
    w.subscribe(a, "r", 0);
    w.subscribe(b, "r", 0);
    assert_eq!(w.read(b), ["#3 subscribe [r error 106]"]);
    w.pass(8_000);
    w.let_go();
    assert_eq!(w.read(a), ["#2 subscribe [r pending]", "subscribed r head 1 from 1", "event r 1"]);
    w.end();
}

#[test]
fn an_unsubscribe_takes_back_a_subscribe_under_way() {
    let mut w = World::new();
    w.room("r", &["ann"], 1);
    let c = w.json("ann");
    w.owner.held = Some([].into());
    w.subscribe(c, "r", 0);
    w.unsubscribe(c, "r");
    w.let_go();
    w.say("r", 1);
    w.run();
    assert_eq!(w.read(c), ["#3 unsubscribe", "#2 subscribe [r head 1 from 1]"]);
    w.owner.held = Some([].into());
    w.subscribe(c, "r", 0);
    w.pass(800);
    w.unsubscribe(c, "r");
    w.let_go();
    assert_eq!(w.read(c), ["#4 subscribe [r pending]", "#5 unsubscribe"]);
    w.end();
}

#[test]
fn rooms_that_nobody_reads_are_given_up_after_5_s_and_refused_ones_at_once() {
    let mut w = World::new();
    w.room("r", &["ann"], 1);
    let c = w.json("ann");
    w.subscribe(c, "r", 0);
    w.subscribe(c, "no", 0);
    assert_eq!(w.worker.sizes().1, 1);
    w.unsubscribe(c, "r");
    w.pass(4_000);
    w.subscribe(c, "r", 0);
    w.pass(3_000);
    w.unsubscribe(c, "r");
    w.pass(4_500);
    assert_eq!(w.owner.uninterests, ["no"]);
    w.pass(3_000);
    assert_eq!(w.owner.uninterests, ["no", "r"]);
    assert_eq!(w.worker.sizes().1, 0);
    w.say("r", 1);
    w.subscribe(c, "r", 1);
    assert_eq!(w.read(c).last().unwrap(), "event r 2");
    w.end();
}

// ---------------------------------------------------------------- replies in their places

#[test]
fn a_reply_stands_in_the_place_of_its_event() {
    for answers_before_events in [false, true] {
        for format in Format::ALL {
            let mut w = World::new();
            w.owner.answers_before_events = answers_before_events;
            w.room("r", &["ann"], 1);
            let (c, other) = (w.login("ann", format), w.json("ann"));
            w.subscribe(c, "r", 1);
            w.subscribe(other, "r", 1);
            w.send(c, "r", "alone");
            w.say("r", 2);
            w.post(c, send_of("r", "among"));
            w.exchange();
            w.say("r", 1);
            w.run();
            let got = w.read(c);
            assert_eq!(got[1..], ["#3 sent r 2", "event r 3", "event r 4", "#4 sent r 5", "event r 6"]);
            assert_eq!(w.read(other)[1..], events("r", 2..=6));
            w.end();
        }
    }
}

#[test]
fn a_reply_before_its_event_waits_for_what_lies_below() {
    let mut w = World::new();
    w.room("r", &["ann"], 0);
    let c = w.json("ann");
    w.subscribe(c, "r", 0);
    w.read(c);
    w.owner.drops_events = true;
    w.say("r", 2);
    w.send(c, "r", "m");
    w.say("r", 1);
    w.run();
    assert_eq!(w.read(c), [] as [&str; 0], "seq 3 waits for 1 and 2");
    w.owner.drops_events = false;
    w.owner.beacon("r");
    w.run();
    assert_eq!(w.read(c), ["event r 1", "event r 2", "#3 sent r 3", "event r 4"]);
    w.end();
}

#[test]
fn a_retry_at_or_below_the_cursor_is_answered_at_once_and_one_above_in_its_place() {
    let mut w = World::new();
    w.room("r", &["ann"], 0);
    let a = w.json("ann");
    w.subscribe(a, "r", 0);
    w.send(a, "r", "m");
    w.say("r", 1);
    w.run();
    w.send(a, "r", "m");
    assert_eq!(w.read(a)[1..], ["#3 sent r 1", "event r 2", "#4 sent r 1 again"]);
    // Another connection retries and catches up from below.
    let b = w.json("ann");
    w.clog(b, 60);
    w.subscribe(b, "r", 0);
    w.send(b, "r", "m");
    w.unclog(b, ALL);
    w.run();
    let got = w.read(b);
    assert!(
        got.contains(&"#3 sent r 1 again".to_owned()) && got.contains(&"event r 2".to_owned()),
        "{got:?}"
    );
    w.end();
}

/// Replies of this connection that wait beside its cursor for their places.
fn waiting_replies(w: &World, c: usize, room: &str) -> usize {
    let connection = w.worker.connections.get(w.clients[c].index).unwrap();
    let room = w.worker.room_ids[room];
    let Some(Place::Live(place)) = connection.place_in(room) else { panic!("no live cursor") };
    let side = &w.worker.rooms.get(room).unwrap().sides[side_of(connection.format)];
    side.cursors[place as usize].extra.as_ref().map_or(0, |extra| extra.replies.len())
}

/// Where all below it is said or queued it does not wait beside the cursor; where something is not, it does.
#[test]
fn a_reply_whose_place_is_next_is_queued_at_once_and_any_other_waits() {
    for format in Format::ALL {
        let mut w = World::new();
        w.room("r", &["ann"], 1);
        w.room("other", &["ann"], 0);
        let c = w.login("ann", format);
        w.subscribe(c, "r", 1);
        w.subscribe(c, "other", 0);
        w.read(c);
        // A part of event 2 is in the socket, the rest of it queued.
        w.clog(c, 10);
        w.say("r", 1);
        w.run();
        for msg in ["a", "b"] {
            w.send(c, "r", msg);
        }
        assert_eq!(waiting_replies(&w, c, "r"), 0);
        w.say("r", 1);
        w.send(c, "r", "c");
        w.send(c, "r", "d");
        assert_eq!(waiting_replies(&w, c, "r"), 2, "event 5 is still to be said");
        w.send(c, "other", "e");
        assert_eq!(waiting_replies(&w, c, "other"), 0, "each room has its own order");
        w.say("r", 1);
        w.say("other", 1);
        w.run();
        assert_eq!(w.read(c), [] as [&str; 0]);
        w.unclog(c, ALL);
        w.run();
        let (other, r): (Vec<_>, Vec<_>) = w.read(c).into_iter().partition(|words| words.contains("other"));
        assert_eq!(
            r,
            [
                "event r 2",
                "#4 sent r 3",
                "#5 sent r 4",
                "event r 5",
                "#6 sent r 6",
                "#7 sent r 7",
                "event r 8"
            ]
        );
        assert_eq!(other, ["#8 sent other 1", "event other 2"]);
        w.end();
    }
}

/// One batch may hold what lies below a send, the send, and what lies above.
#[test]
fn a_reply_in_the_middle_of_a_batch_stays_there() {
    for (below, above) in [(0, 0), (0, 2), (2, 0), (2, 2)] {
        let mut w = World::new();
        w.room("r", &["ann"], 0);
        let c = w.json("ann");
        w.subscribe(c, "r", 0);
        w.read(c);
        w.owner.drops_events = true;
        w.say("r", below);
        w.owner.held = Some([].into());
        w.post(c, send_of("r", "m"));
        w.exchange();
        w.say("r", above);
        w.owner.drops_events = false;
        let head = w.owner.room("r").head() as usize;
        let log = w.owner.room("r").log[..head].to_vec();
        let message =
            FromShard::Events { room: RoomId::parse("r").unwrap(), epoch: Epoch(1), events: log.into() };
        w.worker.shard_said(w.now, message);
        assert_eq!(waiting_replies(&w, c, "r"), usize::from(below > 0));
        w.let_go();
        let mut want = events("r", 1..=below);
        want.push(format!("#3 sent r {}", below + 1));
        want.extend(events("r", below + 2..=below + 1 + above));
        assert_eq!(w.read(c), want);
        w.end();
    }
}

/// An answer that comes alone (the link has dropped the event) does not carry its cursor past what is applied.
#[test]
fn a_reply_without_its_event_waits_though_nothing_lies_below() {
    let mut w = World::new();
    w.room("r", &["ann"], 1);
    let c = w.json("ann");
    w.subscribe(c, "r", 1);
    w.read(c);
    w.owner.drops_events = true;
    w.send(c, "r", "m");
    assert_eq!((waiting_replies(&w, c, "r"), w.read(c).len()), (1, 0));
    w.owner.drops_events = false;
    w.say("r", 1);
    w.run();
    assert_eq!(w.read(c), ["#3 sent r 2", "event r 3"]);
    w.end();
}

/// In a room that is swept by room, not by connection, too.
#[test]
fn a_reply_in_a_big_room_goes_out_before_what_follows() {
    let members: Vec<String> = (0..70).map(|i| format!("u{i}")).collect();
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    let mut w = World::new();
    w.room("big", &members, 0);
    let clients: Vec<usize> = members.iter().map(|user| w.json(user)).collect();
    for c in &clients {
        w.subscribe(*c, "big", 0);
        w.read(*c);
    }
    for (i, c) in clients.iter().enumerate() {
        w.post(*c, send_of("big", "m"));
        w.exchange();
        assert_eq!(waiting_replies(&w, *c, "big"), usize::from(i > 0), "nobody has been sent anything yet");
    }
    w.run();
    w.send(clients[9], "big", "n");
    w.say("big", 1);
    w.run();
    for (i, c) in clients.iter().enumerate() {
        let mut want = events("big", 1..=72);
        want[i] = format!("#3 sent big {}", i + 1);
        if i == 9 {
            want[70] = "#4 sent big 71".to_owned();
        }
        assert_eq!(w.read(*c), want);
    }
    w.end();
}

/// What a busy connection had is there for the next one, however it came to rest.
#[test]
fn what_a_command_takes_is_given_back() {
    let mut w = World::new();
    w.room("r", &["ann"], 0);
    let clients: Vec<usize> = (0..4).map(|_| w.json("ann")).collect();
    for c in &clients {
        w.subscribe(*c, "r", 0);
    }
    w.run();
    let spare = |w: &World| (w.worker.outs.len(), w.worker.flights.len());
    let before = spare(&w);
    w.send(clients[0], "r", "m");
    assert_eq!(spare(&w), before, "one is enough for one after the other");
    // Four at once: one that is answered, one that goes, one whose socket breaks, one that is closed.
    w.owner.held = Some([].into());
    for c in &clients {
        w.post(*c, Command::History(v1::History { room: "r".into(), ..v1::History::default() }));
        w.post(*c, Command::Ping(v1::Ping {}));
    }
    w.clog(clients[1], 3);
    w.socket(clients[2]).broken = true;
    assert_eq!(w.worker.flights.len(), 0);
    w.run();
    w.lose(clients[1]);
    w.raw(clients[3], &[0x80]);
    w.let_go();
    w.pass(3_000);
    assert_eq!((w.clients[1].alive, w.clients[2].alive, w.clients[3].alive), (false, false, false));
    assert_eq!(spare(&w), (4, 4));
    w.end();
}

/// Two tries under two ids: both are answered, at one place.
#[test]
fn two_tries_of_one_send_are_both_answered() {
    for answers_before_events in [false, true] {
        let mut w = World::new();
        w.owner.answers_before_events = answers_before_events;
        w.room("r", &["ann"], 0);
        let c = w.json("ann");
        w.subscribe(c, "r", 0);
        w.read(c);
        w.owner.drops_events = true;
        w.say("r", 1);
        w.post(c, send_of("r", "m"));
        w.post(c, send_of("r", "m"));
        w.run();
        w.owner.drops_events = false;
        w.say("r", 1);
        w.run();
        let mut got = w.read(c);
        assert_eq!((got.remove(0), got.pop().unwrap()), ("event r 1".to_owned(), "event r 3".to_owned()));
        got.sort();
        assert_eq!(got, ["#3 sent r 2", "#4 sent r 2 again"]);
        w.end();
    }
}

#[test]
fn without_a_live_cursor_a_reply_comes_at_once() {
    let mut w = World::new();
    w.room("r", &["ann"], 0);
    w.owner.drops_events = true;
    let (a, b) = (w.json("ann"), w.json("ann"));
    w.passive(b, "r");
    w.say("r", 3);
    w.send(a, "r", "m");
    w.send(b, "r", "n");
    assert_eq!(
        (w.read(a), w.read(b)[1..].to_vec()),
        (vec!["#2 sent r 4".into()], vec!["#3 sent r 5".into()])
    );
    w.end();
}

#[test]
fn refusals_do_not_wait() {
    let mut w = World::new();
    w.room("r", &["ann", "bob"], 1);
    let c = w.json("bob");
    w.send(c, "nowhere", "m");
    w.owner.take_out("r", "bob", None);
    w.send(c, "r", "m");
    assert_eq!(w.read(c), ["#2 error 123", "#3 error 123"]);
    w.end();
}

#[test]
fn a_reply_finds_its_place_while_catching_up_from_the_log() {
    for answers_before_events in [false, true] {
        let mut w = World::new();
        w.owner.answers_before_events = answers_before_events;
        w.owner.page_events = 3;
        w.room("r", &["ann"], 20);
        let c = w.json("ann");
        w.clog(c, 200);
        w.post(c, subscribe_of(&[("r", Some(0), Live)]));
        w.run();
        w.send(c, "r", "m");
        w.say("r", 2);
        w.run();
        w.unclog(c, ALL);
        w.run();
        let got = w.read(c);
        assert_eq!(got[1..21], events("r", 1..=20));
        assert_eq!(got[21..], ["#3 sent r 21", "event r 22", "event r 23"]);
        w.end();
    }
}

/// An event of an earlier connection's send, and of an earlier send of this one, is an event like any other.
#[test]
fn an_own_event_that_nothing_claims_is_pushed() {
    let mut w = World::new();
    w.room("r", &["ann"], 0);
    let c = w.json("ann");
    w.send(c, "r", "m");
    w.subscribe(c, "r", 0);
    w.post(c, send_of("r", "m"));
    w.post(c, subscribe_of(&[("r", Some(0), Live)]));
    w.run();
    let got = w.read(c);
    assert_eq!(got.iter().filter(|words| *words == "#4 sent r 1 again").count(), 1, "{got:?}");
    assert_eq!(got.iter().filter(|words| *words == "event r 1").count(), 2, "{got:?}");
    w.end();
}

#[test]
fn an_unsubscribe_lets_go_of_waiting_replies_and_a_new_subscribe_keeps_them() {
    let mut w = World::new();
    w.room("r", &["ann"], 0);
    let c = w.json("ann");
    w.subscribe(c, "r", 0);
    w.owner.drops_events = true;
    w.say("r", 1);
    w.send(c, "r", "m");
    assert_eq!(w.read(c).len(), 1);
    w.subscribe(c, "r", 0);
    let got = w.read(c);
    assert_eq!(got, ["#4 subscribe [r head 2 from 1]", "event r 1", "#3 sent r 2"]);
    w.send(c, "r", "n");
    w.unsubscribe(c, "r");
    assert_eq!(w.read(c), ["#5 sent r 3", "#6 unsubscribe"]);
    w.end();
}

// ---------------------------------------------------------------- ends and absences

#[test]
fn a_removal_ends_all_cursors_of_its_user_exactly_there() {
    let mut w = World::new();
    w.owner.page_events = 2;
    w.room("r", &["ann", "bob"], 6);
    let live = w.json("bob");
    let (reading, stuck) = (w.json("bob"), w.login("bob", Format::Proto));
    let (passive, ann) = (w.json("bob"), w.json("ann"));
    w.subscribe(live, "r", 6);
    w.subscribe(ann, "r", 6);
    w.passive(passive, "r");
    w.subscribe(stuck, "r", 6);
    w.clog(stuck, 30);
    w.clog(reading, 150);
    w.post(reading, subscribe_of(&[("r", Some(0), Live)]));
    w.run();
    w.say("r", 1);
    w.owner.take_out("r", "bob", Some("ann"));
    w.say("r", 5);
    w.run();
    w.unclog(reading, ALL);
    w.unclog(stuck, ALL);
    w.run();
    assert_eq!(w.read(live)[1..], ["event r 7", "event r 8", "unsubscribed r 123"]);
    assert_eq!(w.read(stuck)[1..], ["event r 7", "event r 8", "unsubscribed r 123"]);
    let mut want = events("r", 1..=8);
    want.push("unsubscribed r 123".to_owned());
    assert_eq!(w.read(reading)[1..], want);
    assert_eq!(w.read(passive)[1..], ["unsubscribed r 123"]);
    assert_eq!(w.read(ann)[1..], events("r", 7..=13));
    w.pass(3_000);
    assert_eq!(w.read(passive), [] as [&str; 0]);
    w.subscribe(live, "r", 8);
    w.subscribe(reading, "r", 5);
    w.passive(passive, "r");
    assert_eq!(w.read(live), ["#3 subscribe [r head 8 from 9]", "unsubscribed r 123"]);
    let late =
        ["#3 subscribe [r head 8 from 6]", "event r 6", "event r 7", "event r 8", "unsubscribed r 123"];
    assert_eq!(w.read(reading), late, "however late");
    assert_eq!(w.read(passive), ["#3 subscribe [r head 8 from 9]", "unsubscribed r 123"]);
    w.end();
}

/// The log may show a removal before the link does.
#[test]
fn a_page_that_is_ahead_of_the_link_ends_with_the_removal() {
    let mut w = World::new();
    w.room("r", &["ann", "bob"], 6);
    let (a, b) = (w.json("ann"), w.json("bob"));
    w.subscribe(a, "r", 6);
    w.owner.held = Some([].into());
    w.post(b, subscribe_of(&[("r", Some(3), Live)]));
    w.let_go();
    let got = w.read(b);
    assert_eq!(got.len(), 4);
    w.subscribe(b, "r", 6);
    w.read(b);
    w.owner.room("r").interested = false;
    w.owner.take_out("r", "bob", Some("ann"));
    w.say("r", 3);
    w.owner.room("r").interested = true;
    w.run();
    // It reads from the log only because it begins below what is here.
    let room = w.worker.rooms.get_mut(0).unwrap();
    let place =
        room.sides[0].cursors.iter().position(|cursor| cursor.connection == w.clients[b].index).unwrap();
    room.sides[0].cursors[place].next = Seq(5);
    w.worker.begin_reading(w.now, w.clients[b].index, 0);
    w.run();
    assert_eq!(w.read(b), ["event r 5", "event r 6", "event r 7", "unsubscribed r 123"]);
    w.owner.beacon("r");
    w.run();
    assert_eq!(w.read(b), [] as [&str; 0]);
    w.end();
}

#[test]
fn who_has_left_reads_up_to_there_from_a_room_that_nobody_else_reads_here() {
    let mut w = World::new();
    w.owner.page_events = 2;
    w.room("r", &["ann", "bob"], 4);
    w.owner.take_out("r", "bob", None);
    w.say("r", 5_000);
    let b = w.json("bob");
    w.subscribe(b, "r", 2);
    let got = w.read(b);
    assert_eq!(
        got,
        ["#2 subscribe [r head 5 from 3]", "event r 3", "event r 4", "event r 5", "unsubscribed r 123"]
    );
    assert!(w.owner.pulls.len() < 5, "nothing is read for nobody: {:?}", w.owner.pulls);
    w.end();
}

#[test]
fn absences_are_gaps_for_live_and_reading_cursors() {
    let mut w = World::new();
    w.room("r", &["ann", "bob"], 3);
    w.owner.take_out("r", "bob", None);
    w.say("r", 5);
    w.owner.bring_in("r", "bob");
    w.say("r", 2);
    w.owner.take_out("r", "bob", Some("ann"));
    w.owner.bring_in("r", "bob");
    w.say("r", 1);
    let (a, b) = (w.json("ann"), w.json("bob"));
    w.subscribe(a, "r", 0);
    w.subscribe(b, "r", 2);
    let want = [
        "#2 subscribe [r head 15 from 3]",
        "event r 3",
        "event r 4",
        "gap r 5-9",
        "event r 10",
        "event r 11",
        "event r 12",
        "event r 13",
        "event r 14",
        "event r 15",
    ];
    assert_eq!(w.read(b), want);
    w.subscribe(b, "r", 4);
    assert_eq!(w.read(b)[0], "#3 subscribe [r head 15 from 10 gap 5-9]");
    assert_eq!(w.read(a)[1..], events("r", 1..=15));
    w.end();
}

/// The link lags behind the admission: what it brings of an earlier removal is history.
#[test]
fn an_old_removal_does_not_end_a_cursor_of_who_has_come_back() {
    for mode in [Live, Passive] {
        let mut w = World::new();
        w.room("r", &["ann", "bob"], 2);
        let (a, b) = (w.json("ann"), w.json("bob"));
        w.subscribe(a, "r", 2);
        w.owner.drops_events = true;
        w.owner.take_out("r", "bob", Some("ann"));
        w.owner.bring_in("r", "bob");
        w.owner.held = Some([].into());
        w.post(b, subscribe_of(&[("r", Some(4).filter(|_| mode == Live), mode)]));
        w.owner.drops_events = false;
        w.let_go();
        w.say("r", 1);
        w.run();
        let got = w.read(b);
        assert_eq!(got[0], "#2 subscribe [r head 4 from 5]");
        assert_eq!(got[1..], [if mode == Live { "event r 5" } else { "head r 5" }][..got.len() - 1]);
        w.pass(2_000);
        assert!(!w.read(b).iter().any(|words| words.starts_with("unsub")));
        assert_eq!(w.read(a)[1..], events("r", 3..=5));
        w.end();
    }
}

#[test]
fn a_leave_that_is_only_counted_ends_the_cursors_too() {
    for behind in [false, true] {
        let mut w = World::new();
        w.room("r", &["ann", "bob"], 2);
        w.owner.room("r").counts_leaves = true;
        let (a, b, other) = (w.json("ann"), w.json("bob"), w.login("bob", Format::Proto));
        w.subscribe(a, "r", 2);
        w.subscribe(b, "r", 2);
        w.subscribe(other, "r", 2);
        if behind {
            w.owner.drops_events = true;
            w.say("r", 2);
            w.owner.beacon("r");
            w.owner.fails_pulls = true;
            w.run();
            w.owner.drops_events = false;
        }
        w.ask(b, Command::Leave(v1::Leave { room: "r".into() }));
        w.say("r", 3);
        w.owner.fails_pulls = false;
        w.pass(2_000);
        let mut want = vec!["#3 leave".to_owned()];
        want.extend(events("r", 3..=if behind { 4 } else { 2 }));
        want.push("unsubscribed r 123".to_owned());
        assert_eq!(w.read(b)[1..], want);
        assert_eq!(w.read(other)[1..], want[1..]);
        assert_eq!(w.read(a).len(), 1 + 3 + if behind { 2 } else { 0 });
        w.end();
    }
}

#[test]
fn expired_events_are_a_gap_that_says_so() {
    let mut w = World::new();
    w.room("r", &["ann"], 20);
    let c = w.json("ann");
    w.subscribe(c, "r", 20);
    w.say("r", 1);
    w.run();
    w.owner.drops_events = true;
    w.say("r", 20);
    w.send(c, "r", "m");
    w.say("r", 4);
    w.owner.room("r").floor = 42;
    w.owner.drops_events = false;
    w.owner.beacon("r");
    w.run();
    assert_eq!(
        w.read(c)[2..],
        ["gap r 22-42 expired", "#3 sent r 42", "event r 43", "event r 44", "event r 45", "event r 46"]
    );
    w.say("r", 1);
    w.run();
    assert_eq!(w.read(c), ["event r 47"], "the ring is dense again");
    w.end();
}

// ---------------------------------------------------------------- slow readers, the log, the link

#[test]
fn a_slow_reader_falls_to_the_log_and_gets_everything_once() {
    for format in Format::ALL {
        let mut w = World::with(Options { ring_bytes: 2_000, ..options() });
        w.room("r", &["ann", "bob"], 0);
        let (slow, fast) = (w.login("ann", format), w.json("bob"));
        w.subscribe(slow, "r", 0);
        w.subscribe(fast, "r", 0);
        w.clog(slow, 17);
        for n in 0..300 {
            w.say("r", 1);
            w.run();
            if n % 50 == 49 {
                w.unclog(slow, 13);
                w.run();
            }
        }
        assert_eq!(w.read(fast)[1..], events("r", 1..=300));
        while w.read(slow).last().is_none_or(|words| words != "event r 300") {
            w.unclog(slow, 1_000);
            w.run();
            w.say("r", 0);
            let behind = w.worker.connections.get(w.clients[slow].index).unwrap().queued();
            assert!(behind <= 128 << 10);
        }
        assert!(w.worker.counters().fell_to_log >= 1);
        w.unclog(slow, ALL);
        w.say("r", 1);
        w.run();
        assert_eq!(w.read(slow), ["event r 301"]);
        w.end();
    }
}

#[test]
fn more_than_ten_thousand_behind_gets_a_gap_and_its_reply_behind_it() {
    let mut w = World::with(Options { ring_bytes: 4_000, ..options() });
    w.room("r", &["ann"], 0);
    let c = w.json("ann");
    w.subscribe(c, "r", 0);
    w.read(c);
    w.clog(c, 0);
    w.say("r", 500);
    w.send(c, "r", "m");
    w.say("r", 12_000);
    w.run();
    w.unclog(c, ALL);
    w.run();
    let got = w.read(c);
    let gap = got.iter().position(|words| words.starts_with("gap")).expect("a gap");
    assert_eq!(got[gap], "gap r 401-11501");
    assert_eq!(got[gap + 1], "#3 sent r 501");
    assert_eq!(got[gap + 2..], events("r", 11_502..=12_501));
    w.end();
}

/// 32 MiB count from where the reader is, not from when it fell.
#[test]
fn a_reader_that_keeps_up_from_the_log_gets_no_gap() {
    let mut w = World::with(Options { ring_bytes: 60_000, ..options() });
    w.room("r", &["ann"], 0);
    let c = w.json("ann");
    w.subscribe(c, "r", 0);
    w.read(c);
    w.owner.text = "x".repeat(8_000);
    w.clog(c, 1_000);
    let mut next = 1;
    for _ in 0..25 {
        w.say("r", 250);
        w.run();
        w.unclog(c, 2_100_000);
        w.run();
        for words in w.read(c) {
            assert_eq!(words, format!("event r {next}"));
            next += 1;
        }
    }
    assert!(w.worker.counters().bytes_sent > 40 << 20);
    w.end();
}

#[test]
fn cursors_that_want_the_same_page_share_a_pull() {
    let mut w = World::new();
    w.owner.page_events = 50;
    w.room("r", &["ann"], 200);
    w.owner.held = Some([].into());
    let clients: Vec<_> = (0..20).map(|n| w.login("ann", Format::ALL[n % 2])).collect();
    for c in &clients {
        w.post(*c, subscribe_of(&[("r", Some(0), Live)]));
    }
    w.run();
    let admissions = w.owner.held.replace([].into()).unwrap();
    w.owner.link.extend(admissions);
    w.run();
    assert_eq!(w.owner.pulls.len(), 1);
    w.let_go();
    for c in clients {
        assert_eq!(w.read(c)[1..], events("r", 1..=200));
    }
    assert_eq!(w.owner.pulls.len(), 4);
    w.end();
}

/// A client that resumes many rooms and does not read holds few pages.
#[test]
fn what_one_connection_has_pulled_is_bounded() {
    let mut w = World::new();
    w.owner.text = "x".repeat(4_000);
    let rooms: Vec<String> = (0..200).map(|n| format!("room{n}")).collect();
    for room in &rooms {
        w.room(room, &["ann"], 15);
    }
    let c = w.json("ann");
    w.clog(c, 100);
    let asked: Vec<_> = rooms.iter().map(|room| (&**room, Some(0), Live)).collect();
    w.ask(c, subscribe_of(&asked));
    let index = w.clients[c].index;
    w.unclog(c, 40_000);
    w.run();
    let queued = w.worker.connections.get(index).unwrap().queued();
    assert!(queued < 1 << 20, "{queued} bytes");
    w.unclog(c, ALL);
    w.run();
    assert_eq!(w.read(c).len(), 1 + 200 * 15);
    w.end();
}

#[test]
fn a_page_for_a_cursor_that_is_no_more_is_not_given_to_its_successor() {
    let mut w = World::new();
    w.room("r", &["ann"], 100);
    let c = w.json("ann");
    w.owner.held = Some([].into());
    w.post(c, subscribe_of(&[("r", Some(90), Live)]));
    w.run();
    let admission = w.owner.held.replace([].into()).unwrap();
    w.owner.link.extend(admission);
    w.run();
    // The page above 90 is on its way; now everything above 20 is wanted.
    w.post(c, subscribe_of(&[("r", Some(20), Live)]));
    w.run();
    let mut held = w.owner.held.replace([].into()).unwrap();
    w.owner.link.push_back(held.pop_back().unwrap());
    w.run();
    w.owner.link.extend(held);
    w.run();
    w.let_go();
    let got = w.read(c);
    assert_eq!(got[2..], events("r", 21..=100), "{:?}", &got[..4]);
    w.end();
}

#[test]
fn dropped_events_are_repaired_by_the_beacon() {
    let mut w = World::new();
    w.room("r", &["ann", "bob"], 0);
    let (a, b) = (w.json("ann"), w.login("bob", Format::Proto));
    w.subscribe(a, "r", 0);
    w.subscribe(b, "r", 0);
    w.owner.drops_events = true;
    w.say("r", 5);
    w.run();
    w.owner.drops_events = false;
    w.owner.beacon("r");
    w.run();
    assert_eq!((w.read(a).len(), w.read(b).len()), (6, 6));
    w.owner.drops_events = true;
    w.say("r", 3);
    w.owner.drops_events = false;
    w.say("r", 1);
    w.run();
    assert_eq!(w.read(a), events("r", 6..=9), "or by the next event");
    assert_eq!(w.owner.pulls.len(), 2);
    w.end();
}

#[test]
fn failing_repairs_are_tried_again_twice_a_second_and_do_not_pile_up() {
    let mut w = World::new();
    w.room("r", &["ann"], 0);
    let c = w.json("ann");
    w.subscribe(c, "r", 0);
    w.owner.drops_events = true;
    w.say("r", 1);
    w.owner.drops_events = false;
    w.owner.fails_pulls = true;
    for _ in 0..50 {
        w.say("r", 1);
        w.pass(100);
        assert!(w.worker.pull_retries.len() <= 1);
    }
    assert!(w.owner.pulls.len() <= 11, "{}", w.owner.pulls.len());
    w.owner.fails_pulls = false;
    w.pass(1_000);
    assert_eq!(w.read(c)[1..], events("r", 1..=51));
    w.end();
}

#[test]
fn a_failing_page_is_asked_for_again() {
    let mut w = World::new();
    w.room("r", &["ann"], 5);
    w.owner.fails_pulls = true;
    let c = w.json("ann");
    w.subscribe(c, "r", 0);
    w.pass(3_000);
    assert!((5..8).contains(&w.owner.pulls.len()));
    w.owner.fails_pulls = false;
    w.pass(1_000);
    assert_eq!(w.read(c)[1..], events("r", 1..=5));
    w.end();
}

#[test]
fn what_comes_twice_or_of_an_old_epoch_is_ignored() {
    let mut w = World::new();
    w.room("r", &["ann"], 2);
    let c = w.json("ann");
    w.subscribe(c, "r", 2);
    w.say("r", 2);
    w.run();
    say_again(&mut w, "r", 1, 1..=4);
    assert_eq!(w.read(c)[1..], events("r", 3..=4));
    w.owner.slot("r").epoch = 2;
    w.say("r", 1);
    w.run();
    let log = w.owner.room("r").log.clone();
    let event = v1::Event { seq: 6, ..log[0].event.clone() };
    let event = Arc::new(banyan_proto::event::LoggedEvent::new(event, Origin(0)));
    w.owner.room("r").log.push(event);
    say_again(&mut w, "r", 1, 6..=6);
    let room = RoomId::parse("r").unwrap();
    let beacon = FromShard::Head { room, epoch: Epoch(1), head: Seq(6), n: 6, last_membership: Seq(0) };
    w.worker.shard_said(w.now, beacon);
    w.run();
    assert_eq!(w.read(c), ["event r 5"], "an owner of the past has no say");
    say_again(&mut w, "r", 2, 6..=6);
    assert_eq!(w.read(c), ["event r 6"]);
    w.owner.slot("r").epoch = 1;
    w.subscribe(c, "r", 6);
    w.pass(600);
    assert_eq!(w.read(c), ["#3 subscribe [r pending]"], "nor does it admit anybody");
    w.pass(15_000);
    assert_eq!(w.read(c), ["subscribed r error 108"]);
    w.end();
}

// ---------------------------------------------------------------- heads, marks

#[test]
fn heads_come_at_most_once_a_second_and_the_last_one_always() {
    let mut w = World::new();
    w.room("r", &["ann"], 3);
    let (c, blocked) = (w.json("ann"), w.json("ann"));
    w.passive(c, "r");
    w.passive(blocked, "r");
    assert_eq!((w.read(c).len(), w.read(blocked).len()), (1, 1));
    w.clog(blocked, 5);
    let mut heads = Vec::new();
    for _ in 0..35 {
        w.say("r", 1);
        w.pass(100);
        heads.extend(w.read(c));
    }
    assert!((3..=4).contains(&heads.len()), "{heads:?}");
    w.pass(1_500);
    heads.extend(w.read(c));
    assert_eq!(heads.last().unwrap(), "head r 38");
    w.unclog(blocked, ALL);
    w.pass(1_500);
    assert_eq!(w.read(blocked).last().unwrap(), "head r 38");
    w.pass(3_000);
    assert_eq!((w.read(c).len(), w.read(blocked).len()), (0, 0), "and nothing twice");
    w.end();
}

#[test]
fn a_subscribe_reply_precedes_heads_marks_and_ends() {
    let mut w = World::new();
    w.room("r", &["ann", "bob"], 3);
    w.room("late", &["ann", "bob"], 0);
    let (reader, live, passive, gone) = (w.json("ann"), w.json("ann"), w.json("ann"), w.json("bob"));
    w.subscribe(reader, "r", 3);
    w.owner.held = Some([].into());
    for (c, mode) in [(live, Live), (passive, Passive), (gone, Passive)] {
        w.post(c, subscribe_of(&[("r", None, mode), ("late", None, mode)]));
    }
    w.run();
    let held = w.owner.held.take().unwrap();
    // Of the two rooms of each only this one is answered in time.
    let is_r = |message: &FromShard| format!("{message:?}").contains("head: Seq(3)");
    let (now, later): (Vec<_>, Vec<_>) = held.into_iter().partition(is_r);
    w.owner.link.extend(now);
    w.run();
    w.say("r", 1);
    w.owner.take_out("r", "bob", Some("ann"));
    let room = RoomId::parse("r").unwrap();
    w.owner.link.push_back(FromShard::Marks {
        epoch: Epoch(1),
        room,
        marks: [v1::UserMarks::default()].into(),
    });
    w.pass(100);
    assert_eq!([live, passive, gone].map(|c| w.read(c).len()), [0, 0, 0]);
    assert_eq!(w.read(reader)[1..], ["marks r", "event r 4", "event r 5"]);
    w.owner.link.extend(later);
    w.pass(1_500);
    let replies = [live, passive, gone].map(|c| w.read(c));
    assert!(replies.iter().all(|got| got[0].starts_with("#2 subscribe [r head 3")), "{replies:?}");
    assert_eq!(replies[0][1..], ["event r 1", "event r 2", "event r 3", "event r 4", "event r 5"]);
    assert_eq!(replies[1][1..], ["head r 5"]);
    assert_eq!(replies[2][1..], ["unsubscribed r 123"]);
    w.end();
}

#[test]
fn marks_are_left_out_for_who_does_not_read() {
    let mut w = World::new();
    w.room("r", &["ann"], 0);
    let c = w.json("ann");
    w.subscribe(c, "r", 0);
    w.clog(c, 0);
    let room = RoomId::parse("r").unwrap();
    let marks: Arc<[v1::UserMarks]> =
        vec![v1::UserMarks { user: "u".repeat(100), ..v1::UserMarks::default() }; 50].into();
    for _ in 0..100 {
        w.worker.shard_said(
            w.now,
            FromShard::Marks { epoch: Epoch(1), room: room.clone(), marks: Arc::clone(&marks) },
        );
        w.run();
    }
    assert!(w.worker.counters().pushes_skipped > 50);
    w.end();
}

// ---------------------------------------------------------------- rings, big rooms

#[test]
fn rings_are_freed_when_quiet_and_bounded_together() {
    let mut w = World::with(Options { rings_bytes: 100_000, ..options() });
    w.owner.text = "x".repeat(2_000);
    let c = w.json("ann");
    for n in 0..20 {
        let room = format!("r{n}");
        w.room(&room, &["ann"], 0);
        w.subscribe(c, &room, 0);
    }
    for n in 0..20 {
        w.say(&format!("r{n}"), 10);
        w.run();
        assert!(w.worker.sizes().2 <= 100_000, "{}", w.worker.sizes().2);
    }
    assert_eq!(w.read(c).len(), 20 + 200);
    assert!(w.worker.sizes().2 > 0);
    w.pass(8_000);
    assert_eq!(w.worker.sizes().2, 0);
    w.say("r3", 1);
    w.run();
    assert_eq!(w.read(c), ["event r3 11"]);
    w.end();
}

#[test]
fn big_rooms_are_swept_in_slices_and_do_not_delay_small_ones() {
    let mut w = World::new();
    let mut members: Vec<String> = (0..300).map(|n| format!("u{n}")).collect();
    members.push("small".to_owned());
    let members: Vec<&str> = members.iter().map(|member| &**member).collect();
    w.room("big", &members, 0);
    w.room("pair", &["u7", "small"], 0);
    let clients: Vec<_> = (0..300).map(|n| w.login(&format!("u{n}"), Format::ALL[n % 2])).collect();
    for c in &clients {
        w.subscribe(*c, "big", 0);
        w.read(*c);
    }
    let small = w.json("small");
    w.subscribe(small, "pair", 0);
    w.subscribe(clients[7], "pair", 0);
    for _ in 0..3 {
        w.say("big", 1);
        w.exchange();
        w.worker.sweep(w.now, &mut w.sockets);
        w.say("pair", 1);
        w.exchange();
        w.sockets.order.clear();
        w.worker.sweep(w.now, &mut w.sockets);
        let first = &w.sockets.order[..2];
        assert!([clients[7], small].iter().all(|c| first.contains(&w.clients[*c].index)), "{first:?}");
        assert!(w.sockets.order.len() <= 2 + 64, "{}", w.sockets.order.len());
    }
    // Some leave and some are blocked while a pass is under way: who takes their places is not passed over.
    w.run();
    w.say("big", 1);
    w.exchange();
    w.worker.sweep(w.now, &mut w.sockets);
    w.lose(clients[2]);
    w.lose(clients[250]);
    w.clog(clients[280], 5);
    w.run();
    w.say("big", 1);
    w.run();
    w.unclog(clients[280], ALL);
    w.run();
    for (n, c) in clients.iter().enumerate() {
        if ![2, 250].contains(&n) {
            let got = w.take(*c);
            let seqs: Vec<u64> = got.iter().filter_map(big_seq).collect();
            assert_eq!(seqs, [1, 2, 3, 4, 5], "client {n}");
        }
    }
    w.end();
}

fn big_seq(got: &Got) -> Option<u64> {
    let Got::Frame(frame) = got else { return None };
    let Some(v1::server_frame::Body::Event(event)) = &frame.body else { return None };
    (event.room == "big").then_some(event.seq)
}

#[test]
fn what_arrives_together_goes_out_in_one_call() {
    let mut w = World::new();
    w.room("r", &["ann"], 0);
    let c = w.json("ann");
    w.subscribe(c, "r", 0);
    let before = w.socket(c).sends;
    w.say("r", 40);
    w.run();
    assert_eq!(w.socket(c).sends, before + 1);
    assert_eq!(w.read(c).len(), 41);
    w.end();
}

#[test]
fn an_event_of_membership_is_still_an_event() {
    let mut w = World::new();
    w.room("r", &["ann"], 1);
    let c = w.json("ann");
    w.subscribe(c, "r", 1);
    w.owner.bring_in("r", "bob");
    w.owner.append("r", "ann", None, Origin(0), Kind::RoomChanged(v1::RoomChanged::default()));
    w.owner.take_out("r", "bob", None);
    w.run();
    assert_eq!(w.read(c)[1..], events("r", 2..=4));
    w.end();
}
