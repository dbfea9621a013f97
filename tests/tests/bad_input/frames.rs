//! Frames and commands: PROTOCOL.md's "Transport", "Frames", "Commands" and "Delivery", line by line.

use crate::bench::{Bench, Want};
use crate::wire::{Wire, frame, text};
use Want::{Close, Error, ErrorClose, Inside, Ok};
use serde_json::json;

/// A frame that is no frame, or has no usable id, ends the connection.
const NO_FRAMES: &[(&str, &str)] = &[
    ("an empty message", ""),
    ("no JSON", "hello"),
    ("half an object", r#"{"id":1"#),
    ("an array", "[]"),
    ("a number", "7"),
    ("null", "null"),
    ("two objects", r#"{"id":1,"ping":{}}{"id":2,"ping":{}}"#),
    ("no id", r#"{"ping":{}}"#),
    ("id 0", r#"{"id":0,"ping":{}}"#),
    ("id -1", r#"{"id":-1,"ping":{}}"#),
    ("id 2^53", r#"{"id":9007199254740992,"ping":{}}"#),
    ("id 2^64", r#"{"id":18446744073709551616,"ping":{}}"#),
    ("a fraction as id", r#"{"id":1.5,"ping":{}}"#),
    ("an id in text", r#"{"id":"1","ping":{}}"#),
    ("id null", r#"{"id":null,"ping":{}}"#),
    ("two ids", r#"{"id":1,"id":1,"ping":{}}"#),
    ("a lone surrogate in a key", r#"{"id":1,"\ud800":{}}"#),
];

/// What one command is answered with. `u1` owns the room `lobby`, of which `u2` is a member; the message `m1` of `u1`
/// is its seq 3, which is its head.
const COMMANDS: &[(&str, Want, &str)] = &[
    // The frame around it.
    ("the largest id", Ok, r#"{"id":1,"ping":{},"trace":9007199254740991}"#),
    ("unknown fields", Ok, r#"{"id":1,"ping":{"a":[{}]},"b":null}"#),
    ("null is absent", Ok, r#"{"id":1,"history":{"room":"lobby","before":null,"limit":null}}"#),
    ("no command", Error(107), r#"{"id":1}"#),
    ("a null command", Error(107), r#"{"id":1,"ping":null}"#),
    ("two commands", Error(107), r#"{"id":1,"ping":{},"rooms":{}}"#),
    ("a command twice", Error(107), r#"{"id":1,"ping":{},"ping":{}}"#),
    ("a number as command", Error(107), r#"{"id":1,"ping":7}"#),
    ("text as command", Error(107), r#"{"id":1,"rooms":"all"}"#),
    ("an array as command", Error(107), r#"{"id":1,"join":["lobby"]}"#),
    ("an array as room", Error(107), r#"{"id":1,"subscribe":{"rooms":[["lobby",null,null,null,null]]}}"#),
    ("text as a list", Error(107), r#"{"id":1,"unsubscribe":{"rooms":"lobby"}}"#),
    ("an unknown command", Error(104), r#"{"id":1,"dance":{}}"#),
    ("a command of another case", Error(104), r#"{"id":1,"Ping":{}}"#),
    ("a command of the server API", Error(104), r#"{"id":1,"disable_user":{"user":"u2","disabled":true}}"#),
    ("a missing field", Error(107), r#"{"id":1,"join":{}}"#),
    ("a null in a field that must be", Error(107), r#"{"id":1,"join":{"room":null}}"#),
    ("a field twice", Error(107), r#"{"id":1,"join":{"room":"lobby","room":"x"}}"#),
    ("a wrong type", Error(107), r#"{"id":1,"join":{"room":7}}"#),
    ("a number in text", Error(107), r#"{"id":1,"history":{"room":"lobby","after":"1"}}"#),
    ("a negative number", Error(107), r#"{"id":1,"history":{"room":"lobby","after":-1}}"#),
    ("a number above 2^53", Error(107), r#"{"id":1,"history":{"room":"lobby","after":9007199254740992}}"#),
    ("a word that is none", Error(107), r#"{"id":1,"subscribe":{"rooms":[{"room":"lobby","mode":"loud"}]}}"#),
    // Ids.
    ("a room that is none", Error(107), r#"{"id":1,"join":{"room":"a b"}}"#),
    ("an empty room", Error(107), r#"{"id":1,"join":{"room":""}}"#),
    ("a room of 129 bytes", Error(107), r#"{"id":1,"join":{"room":"R129"}}"#),
    ("a room of 128 bytes", Error(102), r#"{"id":1,"join":{"room":"R128"}}"#),
    ("a room of ours", Error(107), r#"{"id":1,"join":{"room":"~u1"}}"#),
    ("a user that is none", Error(107), r#"{"id":1,"add_members":{"room":"lobby","users":["a b"]}}"#),
    ("a user of 129 bytes", Error(107), r#"{"id":1,"remove_member":{"room":"lobby","user":"R129"}}"#),
    ("a user of ours", Error(107), r#"{"id":1,"add_members":{"room":"lobby","users":["~system"]}}"#),
    // auth, refresh.
    ("a second auth", Error(107), r#"{"id":1,"auth":{"token":"x"}}"#),
    ("refresh without a token", Error(101), r#"{"id":1,"refresh":{"token":""}}"#),
    ("refresh by what is no token", Error(101), r#"{"id":1,"refresh":{"token":"x"}}"#),
    ("refresh by somebody else's", Error(103), r#"{"id":1,"refresh":{"token":"TOKEN2"}}"#),
    ("refresh by an expired one", Error(109), r#"{"id":1,"refresh":{"token":"EXPIRED"}}"#),
    ("refresh", Ok, r#"{"id":1,"refresh":{"token":"TOKEN1"}}"#),
    // subscribe, unsubscribe.
    ("subscribe to nothing", Ok, r#"{"id":1,"subscribe":{"rooms":[]}}"#),
    ("201 rooms", Error(107), r#"{"id":1,"subscribe":{"rooms":[ROOMS201]}}"#),
    ("after and last", Error(107), r#"{"id":1,"subscribe":{"rooms":[{"room":"lobby","after":1,"last":1}]}}"#),
    ("last 101", Error(107), r#"{"id":1,"subscribe":{"rooms":[{"room":"lobby","last":101}]}}"#),
    ("a room that is not there", Inside(102), r#"{"id":1,"subscribe":{"rooms":[{"room":"nowhere"}]}}"#),
    ("a room that one may not see", Inside(102), r#"{"id":1,"subscribe":{"rooms":[{"room":"private"}]}}"#),
    ("a public room before joining", Inside(123), r#"{"id":1,"subscribe":{"rooms":[{"room":"public"}]}}"#),
    ("no longer subscribed to what never was", Ok, r#"{"id":1,"unsubscribe":{"rooms":["nowhere"]}}"#),
    ("unsubscribe from what is no room", Error(107), r#"{"id":1,"unsubscribe":{"rooms":["a b"]}}"#),
    ("unsubscribe from 201 rooms", Error(107), r#"{"id":1,"unsubscribe":{"rooms":[NAMES201]}}"#),
    // send.
    ("neither text nor data", Error(107), r#"{"id":1,"send":{"room":"lobby","client_msg_id":"a"}}"#),
    ("empty text", Error(107), r#"{"id":1,"send":{"room":"lobby","client_msg_id":"a","text":""}}"#),
    (
        "text above 8 KiB",
        Error(121),
        r#"{"id":1,"send":{"room":"lobby","client_msg_id":"a","text":"T8193"}}"#,
    ),
    (
        "data above 8 KiB",
        Error(121),
        r#"{"id":1,"send":{"room":"lobby","client_msg_id":"a","data":"T8193"}}"#,
    ),
    ("no client_msg_id", Error(107), r#"{"id":1,"send":{"room":"lobby","text":"x"}}"#),
    (
        "an empty client_msg_id",
        Error(107),
        r#"{"id":1,"send":{"room":"lobby","client_msg_id":"","text":"x"}}"#,
    ),
    (
        "a client_msg_id of 65",
        Error(107),
        r#"{"id":1,"send":{"room":"lobby","client_msg_id":"M65","text":"x"}}"#,
    ),
    (
        "reply_to above head",
        Error(107),
        r#"{"id":1,"send":{"room":"lobby","client_msg_id":"a","text":"x","reply_to":1000}}"#,
    ),
    (
        "51 mentions",
        Error(107),
        r#"{"id":1,"send":{"room":"lobby","client_msg_id":"a","text":"x","mentions":[MENTIONS51]}}"#,
    ),
    (
        "a content type that is none",
        Error(107),
        r#"{"id":1,"send":{"room":"lobby","client_msg_id":"a","text":"x","content_type":"x"}}"#,
    ),
    (
        "data of a hundred brackets",
        Error(107),
        r#"{"id":1,"send":{"room":"lobby","client_msg_id":"a","data":DEEP100}}"#,
    ),
    (
        "an id with another body",
        Error(120),
        r#"{"id":1,"send":{"room":"lobby","client_msg_id":"m1","text":"other"}}"#,
    ),
    ("an id again", Ok, r#"{"id":1,"send":{"room":"lobby","client_msg_id":"m1","text":"hello"}}"#),
    (
        "to a room that is not there",
        Error(102),
        r#"{"id":1,"send":{"room":"nowhere","client_msg_id":"a","text":"x"}}"#,
    ),
    (
        "to a room that one may not see",
        Error(102),
        r#"{"id":1,"send":{"room":"private","client_msg_id":"a","text":"x"}}"#,
    ),
    (
        "to a public room before joining",
        Error(123),
        r#"{"id":1,"send":{"room":"public","client_msg_id":"a","text":"x"}}"#,
    ),
    // history, mark, members, rooms.
    ("both bounds", Error(107), r#"{"id":1,"history":{"room":"lobby","before":3,"after":1}}"#),
    ("limit 0", Error(107), r#"{"id":1,"history":{"room":"lobby","limit":0}}"#),
    ("limit 101", Error(107), r#"{"id":1,"history":{"room":"lobby","limit":101}}"#),
    ("history above head", Ok, r#"{"id":1,"history":{"room":"lobby","after":1000}}"#),
    ("history of a room that one may not see", Error(102), r#"{"id":1,"history":{"room":"private"}}"#),
    ("seen above head", Error(107), r#"{"id":1,"mark":{"room":"lobby","seen":1000}}"#),
    ("delivered above head", Error(107), r#"{"id":1,"mark":{"room":"lobby","delivered":1000}}"#),
    ("a mark in a room that one may not see", Error(102), r#"{"id":1,"mark":{"room":"private","seen":1}}"#),
    ("members limit 101", Error(107), r#"{"id":1,"members":{"room":"lobby","limit":101}}"#),
    ("members after nobody", Error(107), r#"{"id":1,"members":{"room":"lobby","after":"a b"}}"#),
    ("members of a room that one may not see", Error(102), r#"{"id":1,"members":{"room":"private"}}"#),
    ("rooms limit 0", Error(107), r#"{"id":1,"rooms":{"limit":0}}"#),
    ("rooms after what is no room", Error(107), r#"{"id":1,"rooms":{"after":"a b"}}"#),
    // create_room, update_room.
    ("no kind", Error(107), r#"{"id":1,"create_room":{}}"#),
    ("a kind that is none", Error(107), r#"{"id":1,"create_room":{"kind":"party"}}"#),
    ("101 members", Error(107), r#"{"id":1,"create_room":{"kind":"group","members":[MEMBERS101]}}"#),
    (
        "a member who is not there",
        Error(122),
        r#"{"id":1,"create_room":{"kind":"group","members":["nobody"]}}"#,
    ),
    (
        "more members than a room may have",
        Error(106),
        r#"{"id":1,"create_room":{"kind":"group","members":[USERS20]}}"#,
    ),
    ("an id of direct rooms", Error(107), r#"{"id":1,"create_room":{"kind":"group","room":"dm.abc"}}"#),
    ("an id of the server's", Error(107), r#"{"id":1,"create_room":{"kind":"group","room":"~abc"}}"#),
    ("an id that others have", Error(105), r#"{"id":1,"create_room":{"kind":"group","room":"private"}}"#),
    ("an id that one has", Ok, r#"{"id":1,"create_room":{"kind":"group","room":"lobby"}}"#),
    (
        "a name of control characters",
        Error(107),
        r#"{"id":1,"create_room":{"kind":"group","name":"\u0000"}}"#,
    ),
    (
        "a direct room with oneself",
        Error(107),
        r#"{"id":1,"create_room":{"kind":"direct","members":["u1"]}}"#,
    ),
    ("a direct room with nobody", Error(107), r#"{"id":1,"create_room":{"kind":"direct"}}"#),
    (
        "a direct room with two",
        Error(107),
        r#"{"id":1,"create_room":{"kind":"direct","members":["u2","u3"]}}"#,
    ),
    (
        "a direct room with an id",
        Error(107),
        r#"{"id":1,"create_room":{"kind":"direct","room":"r","members":["u2"]}}"#,
    ),
    (
        "a direct room with a name",
        Error(107),
        r#"{"id":1,"create_room":{"kind":"direct","name":"n","members":["u2"]}}"#,
    ),
    (
        "a public direct room",
        Error(107),
        r#"{"id":1,"create_room":{"kind":"direct","public":true,"members":["u2"]}}"#,
    ),
    ("nothing to change", Error(107), r#"{"id":1,"update_room":{"room":"lobby"}}"#),
    (
        "an update of a room that one may not see",
        Error(102),
        r#"{"id":1,"update_room":{"room":"private","name":"x"}}"#,
    ),
    // Members. (Who may do what has a table of its own.)
    ("nobody to add", Error(107), r#"{"id":1,"add_members":{"room":"lobby","users":[]}}"#),
    ("101 to add", Error(107), r#"{"id":1,"add_members":{"room":"lobby","users":[MEMBERS101]}}"#),
    ("who is not there", Error(122), r#"{"id":1,"add_members":{"room":"lobby","users":["nobody"]}}"#),
    ("too many for a room", Error(106), r#"{"id":1,"add_members":{"room":"lobby","users":[USERS20]}}"#),
    ("to remove who is no member", Error(122), r#"{"id":1,"remove_member":{"room":"lobby","user":"u3"}}"#),
    (
        "a role for who is no member",
        Error(122),
        r#"{"id":1,"set_role":{"room":"lobby","user":"u3","role":"admin"}}"#,
    ),
    ("role none", Error(107), r#"{"id":1,"set_role":{"room":"lobby","user":"u2","role":"none"}}"#),
    ("a role that is none", Error(107), r#"{"id":1,"set_role":{"room":"lobby","user":"u2","role":"boss"}}"#),
    ("to join what is not there", Error(102), r#"{"id":1,"join":{"room":"nowhere"}}"#),
    ("to leave what is not there", Error(102), r#"{"id":1,"leave":{"room":"nowhere"}}"#),
    // find_user.
    ("a username that nobody has", Error(122), r#"{"id":1,"find_user":{"username":"nobody"}}"#),
    ("a username that cannot be", Error(122), r#"{"id":1,"find_user":{"username":"\u0000"}}"#),
    ("an empty username", Error(107), r#"{"id":1,"find_user":{"username":""}}"#),
    ("a username of 300 bytes", Error(107), r#"{"id":1,"find_user":{"username":"T300"}}"#),
];

/// Long parts of the frames above, by the word that stands for them.
fn long_parts(bench: &Bench, expired: &str) -> Vec<(&'static str, String)> {
    let many =
        |count: usize, one: &dyn Fn(usize) -> String| (1..=count).map(one).collect::<Vec<_>>().join(",");
    vec![
        ("ROOMS201", many(201, &|n| format!(r#"{{"room":"r{n}"}}"#))),
        ("NAMES201", many(201, &|n| format!(r#""r{n}""#))),
        ("MEMBERS101", many(101, &|n| format!(r#""nobody{n}""#))),
        ("MENTIONS51", many(51, &|n| format!(r#""nobody{n}""#))),
        ("USERS20", many(20, &|n| format!(r#""u{n}""#))),
        ("R129", "r".repeat(129)),
        ("R128", "r".repeat(128)),
        ("M65", "m".repeat(65)),
        ("T8193", "t".repeat(8193)),
        ("T300", "t".repeat(300)),
        ("DEEP100", format!("{}{}", "[".repeat(100), "]".repeat(100))),
        ("TOKEN1", bench.token(1).to_owned()),
        ("TOKEN2", bench.token(2).to_owned()),
        ("EXPIRED", expired.to_owned()),
    ]
}

/// The rooms that the rows speak of.
pub(crate) async fn furnish(bench: &Bench) -> Wire {
    let mut alice = bench.login(1).await;
    let mut bob = bench.login(2).await;
    let lobby = json!({ "room": "lobby", "kind": "group", "members": ["u2"] });
    assert_eq!(alice.call("create_room", &lobby).await["create_room"]["head"], 2);
    for (room, public) in [("private", false), ("public", true)] {
        let room = json!({ "room": room, "kind": "group", "public": public });
        assert_eq!(bob.call("create_room", &room).await["create_room"]["created"], true);
    }
    let sent = alice.call("send", &json!({ "room": "lobby", "client_msg_id": "m1", "text": "hello" })).await;
    assert_eq!(sent["send"]["seq"], 3, "{sent}");
    alice
}

pub(crate) async fn rows(bench: &mut Bench, alice: &mut Wire, expired: &str) {
    for (name, payload) in NO_FRAMES {
        let mut wire = bench.login(5).await;
        bench.ask(&mut wire, name, payload, Close(3501)).await;
    }
    let mut wire = bench.login(5).await;
    bench.ask(&mut wire, "30,000 brackets", &"[".repeat(30_000), Close(3501)).await;

    let parts = long_parts(bench, expired);
    for (name, want, payload) in COMMANDS {
        let mut payload = (*payload).to_owned();
        for (word, part) in &parts {
            payload = payload.replace(word, part);
        }
        bench.ask(alice, name, &payload, *want).await;
    }
    before_auth(bench, expired).await;
    in_flight(bench, alice).await;
    cursors(bench, alice).await;
    subscriptions(bench).await;
    protobuf(bench, alice).await;
}

/// Before `auth` everything else is 101; a token that does not hold ends the connection.
async fn before_auth(bench: &mut Bench, expired: &str) {
    let mut wire = Wire::open(bench.address).await;
    // (After a refusal the connection must still be one that can authenticate: no ping asks whether it lives.)
    for payload in [
        r#"{"id":1,"ping":{}}"#,
        r#"{"id":1,"send":{"room":"lobby","client_msg_id":"a","text":"x"}}"#,
        r#"{"id":1,"dance":{}}"#,
        r#"{"id":1}"#,
        r#"{"id":1,"refresh":{"token":"x"}}"#,
    ] {
        wire.send(&text(payload)).await;
        let got = wire.reply(1).await.map_or_else(|end| end, crate::wire::Got::Json);
        bench.row(&format!("{payload} before auth"), Error(101), &[got]).await;
    }
    let auth = json!({ "id": 1, "auth": { "token": bench.token(5) } }).to_string();
    bench.ask(&mut wire, "auth after refusals", &auth, Ok).await;

    let forged = {
        let token = bench.token(5);
        let (signed, signature) = token.rsplit_once('.').unwrap();
        format!("{signed}.{}", signature.chars().rev().collect::<String>())
    };
    let (header, claims) = ("eyJhbGciOiJub25lIn0", bench.token(5).split('.').nth(1).unwrap().to_owned());
    for (name, want, token) in [
        ("what is no token", ErrorClose(101, 3500), "x".to_owned()),
        ("an empty token", ErrorClose(101, 3500), String::new()),
        ("a token above 8 KiB", ErrorClose(101, 3500), "x".repeat(9_000)),
        ("a forged token", ErrorClose(101, 3500), forged),
        ("a token of algorithm none", ErrorClose(101, 3500), format!("{header}.{claims}.")),
        ("an expired token", ErrorClose(109, 3002), expired.to_owned()),
    ] {
        let mut wire = Wire::open(bench.address).await;
        let frame = json!({ "id": 1, "auth": { "token": token } }).to_string();
        bench.ask(&mut wire, &format!("auth by {name}"), &frame, want).await;
    }
    let mut wire = Wire::open(bench.address).await;
    bench.ask(&mut wire, "no frame before auth", "x", Close(3501)).await;
}

/// Several commands in one write: the replies to the first cannot have gone out yet.
async fn in_flight(bench: &mut Bench, alice: &mut Wire) {
    let send = |id: u64| {
        text(
            &json!({ "id": id, "send": { "room": "lobby", "client_msg_id": format!("f{id}"), "text": "x" } })
                .to_string(),
        )
    };
    let mut two = send(1);
    two.extend(text(r#"{"id":1,"ping":{}}"#));
    alice.send(&two).await;
    let got = bench.outcome(alice, 1, Error(107)).await;
    bench.row("an id that is in flight", Error(107), &got).await;

    let many: Vec<u8> = (100..165).flat_map(send).collect();
    alice.send(&many).await;
    let got = bench.outcome(alice, 164, Error(106)).await;
    bench.row("the 65th command", Error(106), &got).await;
}

/// Where a cursor begins when its numbers are wrong.
async fn cursors(bench: &mut Bench, alice: &mut Wire) {
    for (name, cursor) in [
        ("after above head", json!({ "room": "lobby", "after": 1_000_000 })),
        ("after of another log", json!({ "room": "lobby", "after": 1, "log": "00000000000000ff" })),
        ("after of what is no log", json!({ "room": "lobby", "after": 1, "log": "x" })),
    ] {
        let reply = alice.call("subscribe", &json!({ "rooms": [cursor] })).await;
        let room = &reply["subscribe"]["rooms"][0];
        if room["reset"] != true {
            bench.failures.push(format!("{name}: wanted a reset, got {reply}"));
        }
        bench.rows += 1;
        bench.undisturbed(name).await;
    }
    alice.call("unsubscribe", &json!({ "rooms": ["lobby"] })).await;
}

/// More sends than one may: 111 with the time to wait.
pub(crate) async fn rates(bench: &mut Bench) {
    let mut wire = bench.login(1).await;
    wire.call("create_room", &json!({ "room": "fast", "kind": "group" })).await;
    let mut refused = None;
    for id in 0..100u64 {
        let send = json!({ "room": "fast", "client_msg_id": format!("{id}"), "text": "x" });
        let reply = wire.call("send", &send).await;
        if reply["error"]["code"] == 111 {
            refused = Some(reply);
            break;
        }
    }
    let refused = refused.unwrap_or_default();
    if !refused["error"]["retry_after_ms"].is_u64() {
        bench.failures.push(format!("too many sends: wanted the time to wait, got {refused}"));
    }
    bench.row("too many sends", Error(111), &[crate::wire::Got::Json(refused)]).await;
}

/// One more room than one connection may be subscribed to.
async fn subscriptions(bench: &mut Bench) {
    let mut wire = bench.login(6).await;
    for number in 0..=crate::SUBSCRIPTIONS {
        let room = format!("many{number}");
        wire.call("create_room", &json!({ "room": room, "kind": "group" })).await;
        let want = if number < crate::SUBSCRIPTIONS { Ok } else { Inside(106) };
        let frame = json!({ "id": 1, "subscribe": { "rooms": [{ "room": room }] } }).to_string();
        bench.ask(&mut wire, &format!("subscription {number}"), &frame, want).await;
    }
}

/// The same rules in protobuf, its bytes by hand.
async fn protobuf(bench: &mut Bench, _: &mut Wire) {
    let auth = {
        let token = bench.token(5);
        let length = |length: usize| [(length & 0x7f | 0x80) as u8, (length >> 7) as u8];
        // ClientFrame { id: 1, auth: Auth { token } }
        let mut auth = vec![0x0a];
        auth.extend(length(token.len()));
        auth.extend(token.as_bytes());
        let mut bytes = vec![0x08, 1, 0x12];
        bytes.extend(length(auth.len()));
        bytes.extend(auth);
        bytes
    };
    let rows: &[(&str, &[u8], Want)] = &[
        ("ping", &[0x08, 1, 0x9a, 1, 0], Ok),
        ("an unknown field beside a command", &[0x08, 1, 0x9a, 1, 0, 0xf8, 7, 1], Ok),
        ("an unknown command", &[0x08, 1, 0xfa, 7, 0], Error(104)),
        ("no command", &[0x08, 1], Error(107)),
        ("two commands", &[0x08, 1, 0x9a, 1, 0, 0x9a, 1, 0], Error(107)),
        ("a missing field", &[0x08, 1, 0x72, 0], Error(107)),
        ("a role that is none", &[0x08, 1, 0x6a, 5, 0x0a, 1, b'r', 0x18, 9], Error(107)),
        ("no bytes at all", &[], Close(3501)),
        ("no protobuf", &[0xff, 0xff], Close(3501)),
        ("a field that is cut off", &[0x08, 1, 0x72, 9, 0x0a], Close(3501)),
        ("a room that is not UTF-8", &[0x08, 1, 0x72, 3, 0x0a, 1, 0xff], Close(3501)),
        ("id 0", &[0x08, 0, 0x9a, 1, 0], Close(3501)),
        ("no id", &[0x9a, 1, 0], Close(3501)),
        ("id 2^64-1", &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0x9a, 1, 0], Close(3501)),
        ("a group without an end", &[0x08, 1, 0xfb, 7], Close(3501)),
    ];
    for (name, payload, want) in rows {
        let name = format!("protobuf: {name}");
        let mut wire = Wire::open_as(bench.address, "banyan.v1.proto").await;
        wire.send(&frame(0x82, &auth)).await;
        let authenticated = wire.next().await;
        assert!(
            matches!(&authenticated, crate::wire::Got::Binary(bytes) if bytes.starts_with(&[0x08, 1, 0x1a])),
            "{authenticated:?}"
        );
        wire.send(&frame(0x82, payload)).await;
        let got = match wire.next().await {
            // ServerFrame { id: 1, error: Error { code, … } }
            crate::wire::Got::Binary(bytes) if bytes.starts_with(&[0x08, 1, 0x12]) => {
                crate::wire::Got::Json(json!({ "error": { "code": bytes[5] } }))
            }
            crate::wire::Got::Binary(bytes) if bytes.starts_with(&[0x08, 1]) => {
                crate::wire::Got::Json(json!({}))
            }
            other => other,
        };
        bench.row(&name, *want, &[got]).await;
    }
}
