//! WebSocket clients that we did not write talk with each other through the real server: Python `websockets`,
//! Node `ws` and tokio-tungstenite. (Chromium does in the page's own tests.)
//!
//! Owns: that each of them sees every event once, in order, its own sends in their place.
//! Does not: test limits and errors (that needs no foreign client).
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use banyan_tests::crash::checker::{self, Event, History, Sent, Stored, Told};
use banyan_tests::crash::client::{self, Connection, User};
use banyan_tests::server::{Server, binary};
use banyan_tests::tools;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::process::Stdio;

const ROOM: &str = "clients";

/// Messages of each client.
const COUNT: u64 = 60;

/// What one client saw: seq, id, text (none for its own sends), in order.
type Seen = Vec<(u64, Option<String>, Option<String>)>;

async fn program(program: tokio::process::Command) -> Seen {
    let mut program = program;
    let output = program.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program:?} ended with {}: {error}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    let seen = text.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| line[name].as_str().map(str::to_owned);
        (line["seq"].as_u64().unwrap(), text("id"), text("text"))
    });
    seen.collect()
}

async fn tungstenite(mut connection: Connection, until: u64) -> Seen {
    let rooms = json!({ "rooms": [{ "room": ROOM, "after": 0 }] });
    let subscribe = connection.ask("subscribe", &rooms).await.unwrap();
    let mut seen = Seen::new();
    let mut flying = HashMap::new();
    let (mut since, mut sent, mut last) = (None, 0, 0);
    while last < until || !flying.is_empty() {
        while let Some(since) = since
            && sent < COUNT
            && flying.len() < 8
        {
            let name = format!("rust-{sent}");
            let body = json!({ "room": ROOM, "client_msg_id": name, "since": since, "text": text_of(&name) });
            flying.insert(connection.ask("send", &body).await.unwrap(), name);
            sent += 1;
        }
        let frame = connection.next().await.unwrap();
        if frame["id"] == subscribe {
            since = frame["subscribe"]["rooms"][0]["head"].as_u64();
            assert!(since.is_some(), "{frame}");
        } else if let Some(id) = frame["id"].as_u64() {
            last =
                frame["send"]["seq"].as_u64().unwrap_or_else(|| panic!("a send was answered with {frame}"));
            seen.push((last, flying.remove(&id), None));
        } else if let Some(event) = frame.get("event") {
            let event = client::event(event).unwrap();
            last = event.seq;
            seen.push((last, event.client_msg_id, event.text));
        }
    }
    seen
}

fn text_of(id: &str) -> String {
    format!("{id} says grüß Gott 🌳")
}

#[tokio::test]
async fn clients_of_others_talk_with_each_other() {
    let work = tempfile::Builder::new().prefix("banyan-clients-").tempdir().unwrap();
    let log = work.path().join("server.log");
    let server = Server::start(&binary().unwrap(), &work.path().join("data"), &log, |command| {
        for limit in ["SENDS_PER_S", "SENDS_BURST"] {
            command.env(format!("BANYAN_LIMITS__{limit}"), "100000");
        }
    })
    .await
    .unwrap();
    let address = server.addresses.clients;
    let mut users: Vec<User> = Vec::new();
    for name in ["pythonista", "nodist", "rustacean"] {
        users.push(client::sign_up(address, name).await.unwrap());
    }
    let mut connection = Connection::open(address, &users[2].token).await.unwrap();
    let body = json!({ "room": ROOM, "kind": "group", "name": ROOM, "members": [users[0].id, users[1].id] });
    let reply = connection.call("create_room", &body).await.unwrap();
    let start = reply["create_room"]["head"].as_u64().unwrap_or_else(|| panic!("create_room: {reply}"));
    let until = start + 3 * COUNT;

    let tools = tools::directory().unwrap();
    let scripts = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
    let talk = |interpreter: std::path::PathBuf, script: &str, user: &User| {
        let mut command = tokio::process::Command::new(interpreter);
        command.arg(scripts.join(script)).arg(format!("ws://{address}/v1/ws")).arg(&user.token);
        command.args([ROOM, &COUNT.to_string(), &until.to_string()]).env("BANYAN_TOOLS", &tools);
        command
    };
    let python = talk(tools.join("python/bin/python"), "python/talk.py", &users[0]);
    let node = talk("node".into(), "node/talk.mjs", &users[1]);
    let (python, node, rust) = tokio::join!(program(python), program(node), tungstenite(connection, until));

    let stored = read_back(&server, &users[2].token).await;
    let mut history = History { stored: vec![stored], ..History::default() };
    for (name, user, seen) in
        [("python", &users[0], python), ("node", &users[1], node), ("rust", &users[2], rust)]
    {
        assert_eq!(seen.len() as u64, until, "{name} saw another number of events");
        for n in 0..COUNT {
            let id = format!("{name}-{n}");
            let acks = seen.iter().filter(|(_, i, text)| i.as_ref() == Some(&id) && text.is_none());
            let acks: Vec<u64> = acks.map(|(seq, _, _)| *seq).collect();
            assert_eq!(acks.len(), 1, "{name} had {} replies to {id}", acks.len());
            let (room, text) = (ROOM.to_owned(), text_of(&id));
            history.sent.push(Sent { room, client_msg_id: id, sender: user.id.clone(), text, acks });
        }
        history.told.push(told(seen, &history.stored[0], name));
    }
    let violations = checker::check(&history);
    assert!(violations.is_empty(), "{violations:#?}");
}

/// The connection's order as the checker wants it. The scripts do not print senders, so they are taken from the log;
/// what they do print must agree with it.
fn told(seen: Seen, stored: &Stored, name: &str) -> Vec<Told> {
    let events: HashMap<u64, &Event> = stored.events.iter().map(|event| (event.seq, event)).collect();
    let mut told = vec![Told::Start { room: ROOM.to_owned(), seq: 0 }];
    for (seq, id, text) in seen {
        let kept =
            events.get(&seq).unwrap_or_else(|| panic!("{name} was told seq {seq}, which is not in the log"));
        let mine = id.as_ref().is_some_and(|id| id.starts_with(name));
        let text = if mine && text.is_none() { id.as_deref().map(text_of) } else { text };
        let (room, sender) = (ROOM.to_owned(), kept.sender.clone());
        told.push(Told::Event(Event { room, seq, sender, client_msg_id: id, text }));
    }
    told
}

async fn read_back(server: &Server, token: &str) -> Stored {
    let mut connection = Connection::open(server.addresses.clients, token).await.unwrap();
    let mut stored = Stored { room: ROOM.to_owned(), head: 0, events: Vec::new() };
    loop {
        let after = stored.events.last().map_or(0, |event| event.seq);
        let reply =
            connection.call("history", &json!({ "room": ROOM, "after": after, "limit": 100 })).await.unwrap();
        let page = &reply["history"];
        stored.head = page["head"].as_u64().unwrap_or_else(|| panic!("history: {reply}"));
        let events = page["events"].as_array().unwrap();
        stored.events.extend(events.iter().map(|event| client::event(event).unwrap()));
        if page["more"] != true || events.is_empty() {
            return stored;
        }
    }
}
