//! PROTOCOL.md's "Who may do what", every row of it: who may do what in groups, broadcasts and direct rooms.

use crate::bench::{Bench, Want};
use crate::wire::{Got, Wire};
use serde_json::{Value, json};

/// Who asks, with the number of its user. Those who may least ask first, so that nobody sees another's change.
const CAST: [(&str, usize); 7] = [
    ("stranger", 11),
    ("removed", 10),
    ("left", 9),
    ("reader", 8),
    ("member", 7),
    ("admin", 6),
    ("owner", 5),
];

/// Not refused.
const YES: u16 = 0;
/// What strangers get: 123 where the room is public, else 102.
const STRANGER: u16 = 1;
/// Joining: yes where the room is public, else 102.
const IF_PUBLIC: u16 = 2;

/// A command (ROOM, and TARGET, which is another member for everybody who may), and what stranger, removed, left,
/// reader, member, admin and owner get: in a group, and in a broadcast where that differs.
type Act = (&'static str, &'static str, &'static str, [u16; 7], Option<[u16; 7]>);

const ACTS: &[Act] = &[
    ("read", "history", r#"{"room":"ROOM"}"#, [STRANGER, YES, YES, YES, YES, YES, YES], None),
    (
        "subscribe",
        "subscribe",
        r#"{"rooms":[{"room":"ROOM"}]}"#,
        [STRANGER, YES, YES, YES, YES, YES, YES],
        None,
    ),
    ("mark", "mark", r#"{"room":"ROOM","seen":1}"#, [STRANGER, YES, YES, YES, YES, YES, YES], None),
    ("list members", "members", r#"{"room":"ROOM"}"#, [STRANGER, YES, YES, YES, YES, YES, YES], None),
    (
        "send",
        "send",
        r#"{"room":"ROOM","client_msg_id":"a","text":"x"}"#,
        [STRANGER, 123, 123, 103, YES, YES, YES],
        Some([STRANGER, 123, 123, 103, 103, YES, YES]),
    ),
    ("join", "join", r#"{"room":"ROOM"}"#, [IF_PUBLIC, IF_PUBLIC, IF_PUBLIC, YES, YES, YES, YES], None),
    (
        "add",
        "add_members",
        r#"{"room":"ROOM","users":["u14"]}"#,
        [STRANGER, 123, 123, 103, 103, YES, YES],
        None,
    ),
    (
        "remove",
        "remove_member",
        r#"{"room":"ROOM","user":"TARGET"}"#,
        [STRANGER, 123, 123, 103, 103, YES, YES],
        None,
    ),
    (
        "remove the owner",
        "remove_member",
        r#"{"room":"ROOM","user":"u5"}"#,
        [STRANGER, 123, 123, 103, 103, 103, 103],
        None,
    ),
    (
        "rename",
        "update_room",
        r#"{"room":"ROOM","name":"new"}"#,
        [STRANGER, 123, 123, 103, 103, YES, YES],
        None,
    ),
    (
        "make public",
        "update_room",
        r#"{"room":"ROOM","public":true}"#,
        [STRANGER, 123, 123, 103, 103, YES, YES],
        None,
    ),
    (
        "make a reader",
        "set_role",
        r#"{"room":"ROOM","user":"TARGET","role":"reader"}"#,
        [STRANGER, 123, 123, 103, 103, YES, YES],
        None,
    ),
    (
        "make an admin",
        "set_role",
        r#"{"room":"ROOM","user":"TARGET","role":"admin"}"#,
        [STRANGER, 123, 123, 103, 103, 103, YES],
        None,
    ),
    (
        "make the admin a member",
        "set_role",
        r#"{"room":"ROOM","user":"u6","role":"member"}"#,
        [STRANGER, 123, 123, 103, 103, 103, YES],
        None,
    ),
    (
        "hand over",
        "set_role",
        r#"{"room":"ROOM","user":"TARGET","role":"owner"}"#,
        [STRANGER, 123, 123, 103, 103, 103, YES],
        None,
    ),
    ("leave", "leave", r#"{"room":"ROOM"}"#, [STRANGER, 123, 123, YES, YES, YES, 103], None),
];

fn want(column: u16, public: bool, command: &str) -> Want {
    let code = match (column, public) {
        (YES, _) | (IF_PUBLIC, true) => return Want::Ok,
        (STRANGER, true) => 123,
        (STRANGER | IF_PUBLIC, false) => 102,
        (code, _) => code,
    };
    if command == "subscribe" { Want::Inside(code) } else { Want::Error(code) }
}

async fn made(wire: &mut Wire, command: &str, body: &Value) {
    let reply = wire.call(command, body).await;
    assert!(reply.get("error").is_none(), "{command} {body}: {reply}");
}

/// A room with everybody in their places.
async fn room(cast: &mut [Wire; 7], room: &str, kind: &str, public: bool) {
    let [_, _, left, .., owner] = cast;
    let members = ["u6", "u7", "u8", "u9", "u10", "u12", "u13"];
    made(owner, "create_room", &json!({ "room": room, "kind": kind, "public": public, "members": members }))
        .await;
    for (user, role) in [("u6", "admin"), ("u7", "member"), ("u8", "reader")] {
        made(owner, "set_role", &json!({ "room": room, "user": user, "role": role })).await;
    }
    made(left, "leave", &json!({ "room": room })).await;
    made(owner, "remove_member", &json!({ "room": room, "user": "u10" })).await;
}

pub(crate) async fn rows(bench: &mut Bench) {
    let mut cast = Vec::new();
    for (_, user) in CAST {
        cast.push(bench.login(user).await);
    }
    let mut cast: [Wire; 7] = cast.try_into().unwrap();
    for (kind, public) in [("group", false), ("group", true), ("broadcast", false), ("broadcast", true)] {
        for (name, command, body, group, broadcast) in ACTS {
            let id = format!("{kind}-{public}-{}", name.replace(' ', "-"));
            room(&mut cast, &id, kind, public).await;
            let columns = broadcast.filter(|_| kind == "broadcast").unwrap_or(*group);
            for (place, (who, user)) in CAST.iter().enumerate() {
                let target = if *user == 5 { "u12" } else { "u13" };
                let body = body.replace("ROOM", &id).replace("TARGET", target);
                let want = want(columns[place], public, command);
                let reply = cast[place].call(command, &serde_json::from_str(&body).unwrap()).await;
                if *command == "history" && matches!(*who, "left" | "removed") {
                    up_to_its_end(bench, who, user, &reply);
                }
                bench
                    .row(&format!("{who}: {name} in a {kind}, public {public}"), want, &[Got::Json(reply)])
                    .await;
            }
            let unsubscribe = json!({ "rooms": [id] });
            for wire in &mut cast {
                wire.call("unsubscribe", &unsubscribe).await;
            }
        }
    }
    owners(bench, &mut cast[6]).await;
    direct(bench, &mut cast).await;
}

/// Who left or was removed reads up to that event and not beyond.
fn up_to_its_end(bench: &mut Bench, who: &str, user: &usize, reply: &Value) {
    let last = reply["history"]["events"].as_array().and_then(|events| events.last()).cloned();
    let last = last.unwrap_or_default();
    let end = if who == "left" { &last["left"] } else { &last["removed"] };
    let counted = last.get("role_changed").is_some() && who == "left";
    // Leaving a broadcast is only counted: nothing says so in its log.
    if !counted && end["user"] != format!("u{user}") {
        bench.failures.push(format!("{who}: its history ends with {last}"));
    }
}

/// An owner leaves as the last member only; who hands over is an admin afterwards.
async fn owners(bench: &mut Bench, owner: &mut Wire) {
    made(owner, "create_room", &json!({ "room": "alone", "kind": "group" })).await;
    let reply = owner.call("leave", &json!({ "room": "alone" })).await;
    bench.row("an owner leaves as the last member", Want::Ok, &[Got::Json(reply)]).await;
    let handed = json!({ "room": "group-true-hand-over" });
    let reply = owner.call("members", &handed).await;
    let role = |user: &str| {
        let members = reply["members"]["members"].as_array().unwrap();
        members.iter().find(|member| member["user"] == user).unwrap()["role"].clone()
    };
    if (role("u5"), role("u12")) != (json!("admin"), json!("owner")) {
        bench.failures.push(format!("a room that was handed over: {reply}"));
    }
    bench.row("a room that was handed over", Want::Ok, &[Got::Json(reply.clone())]).await;
}

/// A direct room has two members for good, and nothing to change.
async fn direct(bench: &mut Bench, cast: &mut [Wire; 7]) {
    let [stranger, .., admin, owner] = cast;
    let made = owner.call("create_room", &json!({ "kind": "direct", "members": ["u6"] })).await;
    let room = made["create_room"]["room"].as_str().unwrap().to_owned();
    let again = admin.call("create_room", &json!({ "kind": "direct", "members": ["u5"] })).await;
    assert_eq!(
        (&again["create_room"]["room"], &again["create_room"]["created"]),
        (&json!(room), &json!(false))
    );
    for (name, command, body, code) in [
        ("read", "history", json!({ "room": room }), YES),
        ("send", "send", json!({ "room": room, "client_msg_id": "a", "text": "x" }), YES),
        ("mark", "mark", json!({ "room": room, "seen": 1 }), YES),
        ("join", "join", json!({ "room": room }), 103),
        ("add", "add_members", json!({ "room": room, "users": ["u7"] }), 103),
        ("remove", "remove_member", json!({ "room": room, "user": "u6" }), 103),
        ("rename", "update_room", json!({ "room": room, "name": "x" }), 103),
        ("set_role", "set_role", json!({ "room": room, "user": "u6", "role": "admin" }), 103),
        ("leave", "leave", json!({ "room": room }), 103),
    ] {
        let reply = owner.call(command, &body).await;
        bench.row(&format!("{name} in a direct room"), want(code, false, command), &[Got::Json(reply)]).await;
        let reply = stranger.call(command, &body).await;
        let name = format!("stranger: {name} in a direct room");
        bench.row(&name, want(STRANGER, false, command), &[Got::Json(reply)]).await;
    }
}
