//! What a connection is told about itself: authentication, ids and limits, deadlines, ends.

use banyan_proto::codes::Close;
use banyan_proto::frame::Format;
use banyan_proto::id::UserId;
use banyan_proto::link::FromShard;
use banyan_proto::v1;
use banyan_proto::v1::client_frame::Command;
use banyan_proto::v1::server_frame::Body;

use super::world::{World, options, send_of, stray_answer, subscribe_of};
use crate::connection::Connection;

fn ping() -> Command {
    Command::Ping(v1::Ping {})
}

fn refresh(token: &str) -> Command {
    Command::Refresh(v1::Refresh { token: token.to_owned() })
}

fn history(room: &str) -> Command {
    Command::History(v1::History { room: room.to_owned(), ..v1::History::default() })
}

#[test]
fn a_connection_costs_at_most_256_bytes() {
    assert!(size_of::<Connection>() <= 256, "{} bytes", size_of::<Connection>());
    assert!(size_of::<crate::room::Cursor>() <= 40);
    assert!(size_of::<crate::room::Passive>() <= 24);
}

#[test]
fn auth_comes_first() {
    for format in Format::ALL {
        let mut w = World::new();
        let c = w.connect(format);
        w.ask(c, ping());
        w.ask(c, send_of("r", "m"));
        w.auth(c, "ann");
        w.auth(c, "ann");
        assert_eq!(w.read(c), ["#1 error 101", "#2 error 101", "#3 auth ann", "#4 error 107"]);
        assert_eq!(w.owner.user_channel, ["+ann"]);
        w.end();
    }
}

#[test]
fn commands_behind_auth_wait_for_it() {
    let mut w = World::new();
    w.room("r", &["ann"], 3);
    w.tokens = Some(Vec::new());
    let c = w.connect(Format::Json);
    w.auth(c, "ann");
    w.subscribe(c, "r", 1);
    w.send(c, "r", "m");
    assert_eq!(w.read(c), [] as [&str; 0]);
    let (key, token) = w.tokens.take().unwrap().remove(0);
    w.authenticate(key, &token);
    w.run();
    assert_eq!(
        w.read(c),
        ["#1 auth ann", "#2 subscribe [r head 3 from 2]", "event r 2", "event r 3", "#3 sent r 4"]
    );
    w.end();
}

#[test]
fn bad_tokens_end_a_connection() {
    for (token, want) in [
        ("bad", ["#1 error 101", "close 3500"]),
        ("", ["#1 error 101", "close 3500"]),
        ("expired", ["#1 error 109", "close 3002"]),
        ("down", ["#1 error 108", "close 3004"]),
    ] {
        let mut w = World::new();
        let c = w.connect(Format::Json);
        w.auth(c, token);
        assert_eq!(w.read(c), want, "{token}");
        assert!(w.clients[c].alive, "its close is waited for");
        w.put(c, 0x88, &3500u16.to_be_bytes());
        w.run();
        assert!(!w.clients[c].alive);
        w.end();
    }
}

#[test]
fn who_does_not_authenticate_in_time_is_closed() {
    let mut w = World::new();
    let c = w.connect(Format::Json);
    w.pass(9_900);
    assert_eq!(w.read(c), [] as [&str; 0]);
    w.pass(600);
    assert_eq!(w.read(c), ["close 3502"]);
    assert!(w.clients[c].alive);
    w.pass(2_300);
    assert!(!w.clients[c].alive, "and does not hold its socket by silence");
    w.end();
}

#[test]
fn a_token_that_is_checked_too_long_is_no_auth_and_its_answer_reaches_nobody() {
    let mut w = World::new();
    w.tokens = Some(Vec::new());
    let c = w.connect(Format::Json);
    w.auth(c, "ann");
    w.pass(13_000);
    assert_eq!(w.read(c), ["close 3502"]);
    let d = w.connect(Format::Json);
    assert_eq!(w.clients[c].index, w.clients[d].index, "the slot is used again");
    let (key, token) = w.tokens.take().unwrap().remove(0);
    w.authenticate(key, &token);
    w.run();
    assert_eq!(w.read(d), [] as [&str; 0]);
    w.end();
}

#[test]
fn a_token_expires_with_notice_and_is_refreshed() {
    let mut w = World::new();
    let c = w.json("ann@70000");
    w.pass(9_000);
    assert_eq!(w.read(c), [] as [&str; 0]);
    w.pass(1_500);
    assert_eq!(w.read(c), ["token_expiring"]);
    w.ask(c, refresh("bob"));
    w.ask(c, refresh("bad"));
    w.ask(c, refresh("expired"));
    w.ask(c, refresh("ann@100000"));
    assert_eq!(w.read(c), ["#2 error 103", "#3 error 101", "#4 error 109", "#5 refresh"]);
    for _ in 0..6 {
        w.pass(10_000);
        w.ask(c, ping());
    }
    let got = w.read(c);
    assert_eq!(got.iter().filter(|words| *words == "token_expiring").count(), 1, "{got:?}");
    w.pass(20_000);
    w.ask(c, ping());
    w.pass(20_000);
    assert_eq!(w.read(c).last().unwrap(), "close 3002");
    w.end();
}

#[test]
fn ids_are_free_again_after_their_reply() {
    let mut w = World::new();
    w.backend = Some(Vec::new());
    let c = w.json("ann");
    let find = Command::FindUser(v1::FindUser { username: "x".into() });
    w.post_as(c, 7, find);
    w.post_as(c, 7, ping());
    w.run();
    assert_eq!(w.read(c), ["#7 error 107"]);
    let (key, id) = w.backend.take().unwrap().remove(0);
    w.worker.backend_replied(w.now, key, id, Ok(Body::FindUser(v1::FindUserReply::default())));
    w.worker.backend_replied(w.now, key, id, Ok(Body::FindUser(v1::FindUserReply::default())));
    w.post_as(c, 7, ping());
    w.run();
    assert_eq!(w.read(c), ["#7 find_user", "#7 pong"]);
    w.end();
}

/// A `subscribe` whose rooms are pending has been replied to: its id may name another command, whose answer is its own.
#[test]
fn the_id_of_a_pending_subscribe_is_free() {
    let mut w = World::new();
    w.room("r", &["ann"], 2);
    w.owner.held = Some([].into());
    let c = w.json("ann");
    w.post_as(c, 5, subscribe_of(&[("r", Some(2), v1::Mode::Live)]));
    w.pass(800);
    assert_eq!(w.read(c), ["#5 subscribe [r pending]"]);
    w.backend = Some(Vec::new());
    w.post_as(c, 5, Command::FindUser(v1::FindUser { username: "x".into() }));
    w.run();
    let (key, id) = w.backend.take().unwrap().remove(0);
    w.worker.backend_replied(w.now, key, id, Ok(Body::FindUser(v1::FindUserReply::default())));
    w.let_go();
    assert_eq!(w.read(c), ["#5 find_user", "subscribed r head 2 from 3"]);
    w.end();
}

#[test]
fn the_65th_command_is_refused_and_who_goes_on_is_not_read() {
    let mut w = World::new();
    w.room("r", &["ann"], 0);
    w.owner.held = Some([].into());
    let c = w.json("ann");
    for n in 0..64 {
        w.post(c, send_of("r", &format!("m{n}")));
    }
    w.run();
    assert_eq!(w.read(c), [] as [&str; 0]);
    w.ask(c, ping());
    assert_eq!(w.read(c), ["#66 error 106"]);
    let index = w.clients[c].index;
    for _ in 0..63 {
        assert!(w.worker.wants_read(index));
        w.ask(c, ping());
    }
    assert!(!w.worker.wants_read(index), "paused");
    w.ask(c, ping());
    assert_eq!(w.read(c).len(), 63);
    w.pass(1_300);
    assert!(w.worker.wants_read(index), "for a second");
    assert_eq!(w.read(c), ["#130 error 106"], "what it sent meanwhile is read");
    w.let_go();
    w.ask(c, ping());
    assert_eq!(w.read(c).len(), 65);
    w.end();
}

#[test]
fn frames_that_are_none_end_the_connection() {
    for (format, first, payload, want) in [
        (Format::Json, 0x81, &b"[]"[..], "close 3501"),
        (Format::Json, 0x81, b"{\"ping\":{}}", "close 3501"),
        (Format::Json, 0x82, b"{}", "close 1003"),
        (Format::Json, 0x81, b"\xff", "close 1007"),
        (Format::Json, 0x83, b"", "close 1002"),
        (Format::Proto, 0x82, b"\xff\xff", "close 3501"),
        (Format::Proto, 0x81, b"{}", "close 1003"),
    ] {
        let mut w = World::new();
        let c = w.login("ann", format);
        w.put(c, first, payload);
        w.ask(c, ping());
        assert_eq!(w.read(c), [want], "{payload:?}");
        w.pass(2_500);
        assert!(!w.clients[c].alive);
        w.end();
    }
}

#[test]
fn a_close_of_the_client_is_answered_and_nothing_follows() {
    let mut w = World::new();
    w.room("r", &["ann"], 0);
    let c = w.json("ann");
    w.passive(c, "r");
    w.read(c);
    w.clog(c, 0);
    w.put(c, 0x89, b"x");
    w.run();
    w.put(c, 0x88, &1000u16.to_be_bytes());
    w.say("r", 1);
    w.pass(1_500);
    w.unclog(c, usize::MAX);
    w.run();
    assert_eq!(w.read(c), ["pong", "close 1000"]);
    assert!(!w.clients[c].alive);
    w.end();
}

#[test]
fn who_is_silent_is_pinged_and_who_does_not_answer_closed() {
    let mut w = World::new();
    let (a, b) = (w.json("ann"), w.json("bob"));
    w.pass(25_500);
    assert_eq!((w.read(a), w.read(b)), (vec!["ping".to_owned()], vec!["ping".to_owned()]));
    w.pass(9_000);
    w.put(a, 0x8a, b"");
    w.pass(1_500);
    assert_eq!((w.read(a), w.read(b)), (vec![], vec!["close 3012".to_owned()]));
    w.pass(3_000);
    assert!(w.clients[a].alive && !w.clients[b].alive);
    w.end();
}

/// Both clocks stand still while the socket takes no bytes, and while it is not read.
#[test]
fn the_clock_of_the_pong_stands_still_while_the_socket_is_full() {
    let mut w = World::new();
    w.room("r", &["ann"], 0);
    let c = w.json("ann");
    w.subscribe(c, "r", 0);
    w.pass(25_500);
    w.clog(c, 3);
    w.say("r", 1);
    w.pass(15_000);
    w.unclog(c, usize::MAX);
    w.pass(9_000);
    w.put(c, 0x8a, b"");
    w.pass(5_000);
    assert!(!w.read(c).iter().any(|words| words.starts_with("close")));
    w.end();
}

#[test]
fn a_pong_behind_a_read_pause_counts() {
    let quick = super::super::Options { ping_interval_ms: 500, pong_deadline_ms: 300, ..options() };
    let mut w = World::with(quick);
    let c = w.json("ann");
    let mut flood = Vec::new();
    for _ in 0..101 {
        crate::ws::client::put_frame(&mut flood, 0x89, *b"mask", b"");
    }
    w.raw(c, &flood);
    assert!(!w.worker.wants_read(w.clients[c].index), "a flood of pings pauses the reading");
    w.pass(900);
    assert_eq!(w.read(c).last().unwrap(), "ping");
    w.put(c, 0x8a, b"");
    w.pass(500);
    assert_eq!(w.read(c), [] as [&str; 0]);
    w.pass(2_000);
    assert_eq!(w.read(c), ["ping", "close 3012"], "then silence");
    w.end();
}

#[test]
fn who_takes_no_byte_for_20_s_is_closed_and_who_takes_one_is_not() {
    let mut w = World::new();
    w.room("r", &["ann", "bob"], 0);
    let (a, b) = (w.json("ann"), w.json("bob"));
    w.subscribe(a, "r", 0);
    w.subscribe(b, "r", 0);
    w.pass(24_000);
    w.clog(a, 10);
    w.clog(b, 10);
    w.say("r", 5);
    for _ in 0..3 {
        w.pass(15_000);
        w.unclog(a, 1);
        // A socket that calls itself writable and takes nothing has made no progress.
        if w.clients[b].alive {
            w.unclog(b, 0);
        }
    }
    assert!(!w.clients[b].alive && w.clients[a].alive);
    assert_eq!(w.worker.counters().closed_slow, 1);
    w.end();
}

#[test]
fn an_idle_socket_that_is_full_at_once_has_its_20_s() {
    let mut w = World::new();
    w.room("r", &["ann"], 0);
    let c = w.json("ann");
    w.subscribe(c, "r", 0);
    for _ in 0..5 {
        w.pass(20_000);
        w.ask(c, ping());
        w.clog(c, 0);
        w.say("r", 1);
        w.pass(19_000);
        w.unclog(c, usize::MAX);
        w.run();
        w.put(c, 0x8a, b"");
    }
    assert!(w.clients[c].alive);
    assert_eq!(w.read(c).iter().filter(|words| words.starts_with("event")).count(), 5);
    w.end();
}

#[test]
fn who_asks_and_does_not_read_is_not_read() {
    let mut w = World::new();
    let c = w.json("ann");
    w.clog(c, 0);
    let index = w.clients[c].index;
    for _ in 0..100_000 {
        w.post(c, ping());
        if !w.worker.wants_read(index) {
            break;
        }
    }
    assert!(!w.worker.wants_read(index));
    let queued = w.worker.connections.get(index).unwrap().queued();
    assert!(queued < 128 << 10, "{queued}");
    w.run();
    w.ask(c, ping());
    w.unclog(c, usize::MAX);
    w.run();
    assert!(w.worker.wants_read(index));
    let id = w.clients[c].next_id - 1;
    assert_eq!(w.read(c).last().unwrap(), &format!("#{id} pong"), "and then everything is answered");
    w.end();
}

#[test]
fn large_replies_are_asked_for_a_few_at_a_time() {
    let mut w = World::new();
    w.owner.held = Some([].into());
    let c = w.json("ann");
    for _ in 0..20 {
        w.post(c, history("r"));
    }
    w.run();
    assert_eq!(w.owner.held.as_ref().unwrap().len(), 8);
    w.ask(c, send_of("r", "m"));
    assert_eq!(w.owner.held.as_ref().unwrap().len(), 9, "others do not wait for them");
    w.let_go();
    let got = w.read(c);
    assert_eq!(got.iter().filter(|words| words.ends_with("history")).count(), 20, "{got:?}");
    w.end();
}

/// The ring has settled a send; the owner's own answer comes later and must not answer another command.
#[test]
fn a_late_answer_settles_nothing_else() {
    let mut w = World::new();
    w.room("r", &["ann"], 0);
    let c = w.json("ann");
    w.subscribe(c, "r", 0);
    w.owner.held = Some([].into());
    w.send(c, "r", "one");
    w.read(c);
    w.owner.drops_events = true;
    w.send(c, "r", "two");
    let first = w.owner.held.as_mut().unwrap().pop_front().unwrap();
    w.owner.link.push_back(first);
    w.run();
    assert_eq!(w.read(c), [] as [&str; 0]);
    w.owner.beacon("r");
    w.let_go();
    assert_eq!(w.read(c), ["#4 sent r 2"]);
    w.end();
}

#[test]
fn an_answer_for_a_dead_connection_never_reaches_the_next_one() {
    let mut w = World::new();
    w.room("r", &["ann", "bob"], 0);
    w.owner.held = Some([].into());
    let a = w.json("ann");
    w.subscribe(a, "r", 0);
    w.send(a, "r", "m");
    w.lose(a);
    let b = w.json("bob");
    assert_eq!(w.clients[a].index, w.clients[b].index);
    w.send(b, "r", "m");
    w.post(b, subscribe_of(&[("r", Some(0), v1::Mode::Live)]));
    w.let_go();
    assert_eq!(w.read(b), ["#2 sent r 2", "#3 subscribe [r head 2 from 1]", "event r 1", "event r 2"]);
    w.worker.shard_said(w.now, stray_answer(u64::MAX));
    w.worker.shard_said(w.now, stray_answer(0));
    w.run();
    assert_eq!(w.read(b), [] as [&str; 0]);
    w.end();
}

/// The shell learns of an end by an effect: until it has, the number names the old socket.
#[test]
fn a_number_is_not_given_away_before_its_end_is_known() {
    let mut w = World::new();
    let a = w.json("ann");
    w.worker.lost(w.clients[a].index);
    let b = w.connect(Format::Json);
    assert_ne!(w.clients[a].index, w.clients[b].index);
    w.run();
    let c = w.connect(Format::Json);
    assert_eq!(w.clients[a].index, w.clients[c].index);
    w.end();
}

#[test]
fn a_broken_socket_is_lost() {
    let mut w = World::new();
    w.room("r", &["ann", "bob"], 0);
    let (a, b) = (w.json("ann"), w.json("bob"));
    w.subscribe(a, "r", 0);
    w.subscribe(b, "r", 0);
    w.read(b);
    w.socket(a).broken = true;
    w.say("r", 1);
    w.run();
    assert!(!w.clients[a].alive);
    assert_eq!(w.read(b), ["event r 1"]);
    assert_eq!(w.owner.user_channel, ["+ann", "+bob", "-ann"]);
    w.end();
}

#[test]
fn draining_sends_clients_away_and_takes_no_new_ones() {
    let mut w = World::new();
    w.tokens = Some(Vec::new());
    let late = w.connect(Format::Json);
    w.auth(late, "late");
    let (key, token) = w.tokens.take().unwrap().remove(0);
    let clients: Vec<_> = (0..4).map(|n| w.json(&format!("u{n}"))).collect();
    w.worker.drain(w.now, 1_000, "stopping");
    w.authenticate(key, &token);
    w.run();
    assert_eq!(w.read(late), ["#1 auth late", "reconnect 0"]);
    let mut after: Vec<_> = clients.iter().map(|c| w.read(*c).remove(0)).collect();
    after.sort();
    assert_eq!(after, ["reconnect 1000", "reconnect 400", "reconnect 600", "reconnect 800"]);
    assert_eq!(w.worker.accept(w.now, Format::Json, b"x"), None);
    assert!(w.worker.is_settled());
    w.worker.close_all(w.now, Close::Draining, "bye");
    w.run();
    for c in clients {
        assert_eq!(w.read(c), ["close 3001"]);
        w.put(c, 0x88, b"");
        w.run();
        assert!(!w.clients[c].alive);
    }
    w.end();
}

#[test]
fn who_has_not_gone_by_the_end_of_a_drain_stays_and_others_come_again() {
    let mut w = World::new();
    let c = w.json("ann");
    w.worker.drain(w.now, 1_000, "drained");
    w.run();
    assert_eq!(w.read(c), ["reconnect 1000"]);
    assert!(w.worker.is_draining());
    w.worker.undrain();
    assert!(!w.worker.is_draining());
    let other = w.json("bob");
    assert!(w.read(other).is_empty(), "nobody is told to go");
    w.pass(5_000);
    assert!(w.clients[c].alive);
    w.end();
}

#[test]
fn a_worker_that_owes_a_reply_is_not_settled() {
    let mut w = World::new();
    w.owner.held = Some([].into());
    let c = w.json("ann");
    w.send(c, "r", "m");
    assert!(!w.worker.is_settled());
    w.let_go();
    assert!(w.worker.is_settled());
    w.end();
}

#[test]
fn a_login_is_ended_and_not_the_others() {
    let mut w = World::new();
    let clients = ["ann!one", "ann!two", "ann", "bob!one"].map(|token| {
        let c = w.connect(Format::Json);
        w.auth(c, token);
        w.read(c);
        c
    });
    let ann = UserId::parse("ann").unwrap();
    w.worker.disconnect(w.now, &ann, Some("one"), 1);
    w.run();
    let told = clients.map(|c| w.read(c).len());
    assert_eq!(told, [1, 0, 0, 0]);
    w.worker.disconnect(w.now, &ann, None, 0);
    w.run();
    assert_eq!(clients.map(|c| w.read(c).len()), [0; 4], "who came after the revocation stays");
    w.worker.disconnect(w.now, &ann, None, 1);
    w.run();
    assert_eq!(clients.map(|c| w.read(c)).map(|got| got.join(",")), ["", "close 3503", "close 3503", ""]);
    w.end();
}

#[test]
fn connections_of_one_user_are_limited() {
    let mut w = World::with(super::super::Options { connections_per_user: 2, ..options() });
    w.json("ann");
    w.json("ann");
    let c = w.connect(Format::Json);
    w.auth(c, "ann");
    assert_eq!(w.read(c), ["#1 error 106", "close 3013"]);
    w.json("bob");
    w.end();
}

#[test]
fn user_pushes_reach_every_connection_of_the_user() {
    let mut w = World::new();
    let (a, b, other) = (w.json("ann"), w.login("ann", Format::Proto), w.json("bob"));
    let push = Body::RoomGone(v1::RoomGone { room: "r".into(), code: 123 });
    let user = UserId::parse("ann").unwrap();
    w.worker.shard_said(w.now, FromShard::User { user, push: std::sync::Arc::new(push) });
    w.run();
    assert_eq!((w.read(a).len(), w.read(b).len(), w.read(other).len()), (1, 1, 0));
    w.end();
}
