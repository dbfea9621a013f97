//! Logins that ended elsewhere: who is looked up, when, and who goes.

use banyan_proto::frame::Format;
use banyan_proto::id::{UnixMs, UserId};
use banyan_proto::link::FromShard;

use super::super::Options;
use super::world::{World, options};

fn client(w: &mut World, token: &str) -> usize {
    let c = w.connect(Format::Json);
    w.auth(c, token);
    w.read(c);
    c
}

#[test]
fn what_others_say_makes_the_store_be_asked_and_only_the_ended_go() {
    let mut w = World::new();
    let clients = ["ann!one", "ann!two", "bob!three"].map(|token| client(&mut w, token));
    w.ended = ["one".to_owned(), "three".to_owned()].into();
    let user = UserId::parse("ann").unwrap();
    w.worker.shard_said(w.now, FromShard::LoginsEnded { user });
    w.run();
    assert_eq!(w.checked.len(), 2, "those of the user");
    assert_eq!(clients.map(|c| w.read(c).join(",")), ["close 3503", "", ""]);
    w.worker.shard_said(w.now, FromShard::LoginsEnded { user: UserId::parse("nobody").unwrap() });
    w.run();
    assert_eq!(w.checked.len(), 2);
    w.end();
}

#[test]
fn an_answer_about_an_earlier_token_ends_nothing() {
    let mut w = World::new();
    let c = client(&mut w, "ann!one");
    let key = w.worker.connections.key_of(w.clients[c].index).unwrap();
    for (login, issued_at) in [(Some("two"), 1), (None, 1), (Some("one"), 0)] {
        w.worker.login_ended(w.now, key, login, UnixMs(issued_at));
    }
    w.run();
    assert!(w.read(c).is_empty());
    w.worker.login_ended(w.now, key, Some("one"), UnixMs(1));
    w.run();
    assert_eq!(w.read(c), ["close 3503"]);
    w.end();
}

#[test]
fn by_turns_everybody_is_looked_up_once_a_round() {
    let mut w = World::with(Options { login_check_ms: Some(10_000), ..options() });
    let clients: Vec<usize> = (0..25).map(|n| client(&mut w, &format!("u{n}!l{n}"))).collect();
    w.ended = ["l7".to_owned()].into();
    w.pass(11_000);
    let mut checked = w.checked.clone();
    checked.sort_unstable();
    checked.dedup();
    assert_eq!(checked.len(), 25, "everybody in a round");
    assert!(w.checked.len() <= 34, "and hardly anybody twice: {}", w.checked.len());
    let gone: Vec<usize> =
        clients.into_iter().filter(|c| w.read(*c).iter().any(|got| got == "close 3503")).collect();
    assert_eq!(gone.len(), 1);
    w.end();
}

#[test]
fn very_many_are_looked_up_no_faster_than_the_store_bears() {
    let mut w = World::with(Options { login_check_ms: Some(1_000), ..options() });
    for n in 0..250 {
        client(&mut w, &format!("u{n}!l{n}"));
    }
    w.checked.clear();
    w.pass(2_000);
    assert!((100..=300).contains(&w.checked.len()), "{}", w.checked.len());
    w.pass(2_000);
    w.checked.sort_unstable();
    w.checked.dedup();
    assert_eq!(w.checked.len(), 250, "in time everybody");
    w.end();
}
