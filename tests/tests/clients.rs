//! WebSocket clients that we did not write talk with each other through the real server: Python `websockets`,
//! Node `ws` and tokio-tungstenite. (Chromium does in the page's own tests.)
//!
//! Owns: that each of them sees every event once, in order, its own sends in their place.
//! Does not: test limits and errors (that needs no foreign client).
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use banyan_checker::{Call, Demand, Marks, Mode, Rules, Seq, Start, Store, Subscribed, Verdict, What, check};
use banyan_test_servers::tools;
use banyan_tests::crash::Reader;
use banyan_tests::crash::client::{self, Connection, User};
use banyan_tests::crash::recorder::{Recorder, content_of_text};
use banyan_tests::server::{Server, binary};
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
            let text = |value: &Value| value.as_str().map(str::to_owned);
            last = event["seq"].as_u64().unwrap_or_else(|| panic!("an event without seq: {event}"));
            seen.push((last, text(&event["client_msg_id"]), text(&event["message"]["text"])));
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

    // The scripts print no times: what they have sent is taken as sent before anything was told.
    let recorder = Recorder::default();
    let seen = [("python", &users[0], python), ("node", &users[1], node), ("rust", &users[2], rust)];
    let talkers: Vec<_> =
        seen.iter().map(|(_, user, _)| recorder.begin(recorder.session(&user.id))).collect();
    for ((name, ..), on) in seen.iter().zip(&talkers) {
        for n in 0..COUNT {
            let id = format!("{name}-{n}");
            recorder.record(*on, |names| What::Send {
                call: Call(n),
                room: names.room(ROOM),
                message: names.message(&id),
                since: Some(Seq(start)),
                content: content_of_text(&text_of(&id)),
            });
        }
    }
    let session = recorder.session(&users[2].id);
    let reader = Reader { session, user: users[2].clone(), recorder: recorder.clone() };
    let stored = reader.read(server.addresses.clients, &[ROOM.to_owned()]).await.unwrap();
    for ((name, _, seen), on) in seen.into_iter().zip(talkers) {
        assert_eq!(seen.len() as u64, until, "{name} saw another number of events");
        let (call, room) = (Call(COUNT), stored[0].room);
        let begin = Start::After { seq: Seq(0), log: None };
        recorder.record(on, |_| What::Subscribe { call, room, start: begin, mode: Mode::Live });
        let reply = Subscribed {
            log: stored[0].log.unwrap(),
            head: stored[0].head.unwrap(),
            n: stored[0].rows.last().unwrap().event.n,
            from: Seq(1),
            role: 1,
            marks: Marks::default(),
            gap: None,
            reset: false,
        };
        recorder.record(on, |_| What::Subscribed { call, room, reply: Box::new(reply) });
        for (seq, id, text) in seen {
            let Some(stored) = stored[0].rows.get(seq as usize - 1) else {
                panic!("{name} was told seq {seq}, which is not in the log")
            };
            let own = id.as_ref().and_then(|id| id.strip_prefix(name)?.strip_prefix('-')?.parse().ok());
            recorder.record(on, |names| match (own, &text) {
                (Some(n), None) => {
                    What::Sent { call: Call(n), seq: Seq(seq), at: stored.event.at, duplicate: false }
                }
                // What the scripts do not print is as in the log; what they do print must agree with it.
                _ => {
                    let mut event = stored.event;
                    event.message = id.as_ref().map(|id| names.message(id));
                    event.content = text.as_deref().map_or(event.content, content_of_text);
                    What::Event { room, event }
                }
            });
        }
    }
    let mut history = recorder.finish();
    history.store = Some(Store { rooms: stored });
    let report = check(&history, &Rules::default());
    let mut demand = Demand::nothing();
    (demand.least.acked, demand.least.in_place) = (3 * COUNT + 1, 3 * COUNT);
    assert_eq!(report.verdict(&demand), Verdict::Green, "{report}");
}
