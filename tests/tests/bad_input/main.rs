//! Bad input gets what docs/protocol.md says, from the real server: a row for every line of that page and for every
//! code of proto/codes.json that input can cause.
//!
//! Owns: the servers, the order of the rows, the list of codes that no input causes ([`ELSEWHERE`]).
//! Always holds: after each row two well-behaved clients exchange a message within two seconds; in the end the server
//! has not grown by more than [`GROWTH_KIB`]; every code of codes.json was seen here or is in the list.
//! Does not: judge what good input gets (the other tests of this folder do).
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and its output is kept on failure"
)]

mod bench;
mod clocks;
mod frames;
mod permissions;
mod requests;
mod sockets;
mod wire;

use bench::{Bench, Want, start, tokens};
use clocks::Came;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use wire::{Got, Wire, http, text};

/// What the server may use more after all rows than before them: its caches and rings, none of which these rows fill.
/// (Measured: 5 to 10 MiB in a debug build. A leak of one frame of 64 KiB a row would be 53 MiB.)
const GROWTH_KIB: u64 = 32 << 10;

pub(crate) const CONNECTIONS_PER_USER: usize = 4;
pub(crate) const SUBSCRIPTIONS: usize = 10;

/// Codes that no input causes, each with the file and the test that shows it.
const ELSEWHERE: &[(u16, &str, &str)] =
    &[(100, "gateway/src/backend/tests.rs", "an_answer_to_another_question_is_100")];

/// Short clocks and small limits; the rest is as everybody has it.
fn config() -> String {
    format!(
        "[gateway]\nauth_timeout = \"2s\"\nhandshake_timeout = \"1s\"\nping_interval = \"1s\"\npong_deadline = \"1s\"\nprogress_deadline = \"1s\"\n\
         [accounts]\nhashing_memory = \"8MiB\"\nhashing_passes = 1\n\
         [rooms]\nmax_members = 12\n\
         [limits]\nconnections_per_user = {CONNECTIONS_PER_USER}\nsubscriptions = {SUBSCRIPTIONS}\nsends_per_s = 1000\n"
    )
}

#[tokio::test]
async fn bad_input_gets_its_answer() {
    let work = tempfile::Builder::new().prefix("banyan-bad-input-").tempdir().unwrap();
    let directory = work.path().join("main");
    fs::create_dir(&directory).unwrap();
    let (server, users) = start(&directory, &config(), 20).await;
    let expired = tokens(&directory, "u", 1, "1s").remove(0);
    let mut bench = Bench::new(server, users);
    // A user exists from its first auth.
    for user in 1..=20 {
        bench.login(user).await;
    }
    bench.place_witnesses().await;
    let mut alice = frames::furnish(&bench).await;
    let before = bench.resident_kib();

    // As late as can be: it is to be good still when it is shown.
    let short = tokens(&directory, "short", 1, "4s").remove(0);
    let users = [16, 17, 18, 19, 20].map(|user| bench.token(user).to_owned());
    let mut slow = clocks::start(bench.address, users, short);
    sockets::rows(&mut bench).await;
    frames::rows(&mut bench, &mut alice, &expired).await;
    permissions::rows(&mut bench).await;
    requests::rows(&mut bench, &expired).await;
    while let Some(row) = slow.join_next().await {
        let (name, want, came) = row.unwrap();
        match came {
            Came::Frames(got) => bench.row(name, want, &got).await,
            Came::Http(status, body) => bench.http_row(name, want, (status, body)).await,
        }
    }

    let grown = bench.resident_kib().saturating_sub(before);
    let (rows, slowest) = (bench.rows, bench.slowest_witness());
    println!("{rows} rows; the witnesses took {slowest:?} at most; the server grew by {grown} KiB");
    if grown > GROWTH_KIB {
        bench.failures.push(format!("the server grew by {grown} KiB over {rows} rows"));
    }
    bench.failures.extend(drained(&mut alice, &mut bench.seen, bench.server.id()).await);
    let (mut seen, mut failures) = (bench.seen.clone(), std::mem::take(&mut bench.failures));

    for other in [narrow(work.path()).await, strict(work.path()).await, full(work.path()).await] {
        seen.extend(&other.seen);
        failures.extend(other.failures);
    }
    failures.extend(missing(&seen));
    if !failures.is_empty() {
        println!("data and logs are kept in {}", work.keep().display());
        panic!("{} failures:\n{}", failures.len(), failures.join("\n"));
    }
}

/// SIGTERM: clients are told to come back, then closed.
async fn drained(wire: &mut Wire, seen: &mut BTreeSet<u16>, server: u32) -> Option<String> {
    let pid = rustix::process::Pid::from_raw(server.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let mut told = false;
    loop {
        match wire.next().await {
            Got::Json(push) => told |= push["reconnect"]["after_ms"].is_u64(),
            Got::Close(code) if told => {
                seen.insert(code);
                return None;
            }
            other => return Some(format!("a drain: wanted `reconnect`, then a close; got {other:?}")),
        }
    }
}

/// A server of few connections and no signup, with rooms that their first use makes.
async fn narrow(work: &Path) -> Bench {
    let directory = work.join("narrow");
    fs::create_dir(&directory).unwrap();
    let config = "[accounts]\nsignup = false\n[rooms]\nlazy = \"public\"\n\
                  [limits]\nunauthenticated = 6\nsends_per_s = 1000000\nsends_burst = 1000000\n";
    let (server, users) = start(&directory, config, 4).await;
    let mut bench = Bench::new(server, users);
    bench.place_witnesses_lazily().await;
    let body = r#"{"username":"somebody","password":"correct horse 1"}"#;
    bench.http("switched off", ("POST", "/v1/signup"), None, Some(body), Want::Http(403, 103)).await;
    too_old(&mut bench).await;

    // Six that say nothing fill the hall; who has a token stays undisturbed.
    let mut hall = Vec::new();
    for _ in 0..6 {
        hall.push(Wire::open(bench.address).await);
    }
    let answer = wire::exchange(bench.address, wire::upgrade(bench.address, "").as_bytes()).await;
    bench.http_row("too many without a token", Want::Http(503, 112), answer).await;
    bench
}

/// A server that takes a send a second, after five at once.
async fn strict(work: &Path) -> Bench {
    let directory = work.join("strict");
    fs::create_dir(&directory).unwrap();
    let (server, users) = start(&directory, "[limits]\nsends_per_s = 1\nsends_burst = 5\n", 1).await;
    let mut bench = Bench::new(server, users);
    frames::rates(&mut bench).await;
    bench
}

/// A retry so late that its twin cannot be looked for.
async fn too_old(bench: &mut Bench) {
    /// One more than are looked through.
    const EVENTS: u64 = 10_001;
    let mut wire = bench.login(1).await;
    let made = wire.call("join", &json!({ "room": "long" })).await;
    bench.row("a room that its first use makes", Want::Ok, &[Got::Json(made)]).await;
    let (mut sent, mut answered) = (0, 0);
    while answered < EVENTS {
        let until = EVENTS.min(answered + 60);
        let batch = sent..until;
        let send = |id: u64| {
            let send = json!({ "room": "long", "client_msg_id": format!("{id}"), "text": "x" });
            text(&json!({ "id": id + 1_000, "send": send }).to_string())
        };
        wire.send(&batch.flat_map(send).collect::<Vec<_>>()).await;
        for reply in wire.replies(sent + 1_000..until + 1_000).await {
            assert!(reply["send"]["seq"].is_u64(), "{reply}");
        }
        (sent, answered) = (until, until);
    }
    let late = json!({ "room": "long", "client_msg_id": "late", "since": 1, "text": "x" });
    let reply = wire.call("send", &late).await;
    bench.row("a retry that is too old", Want::Error(113), &[Got::Json(reply)]).await;
    let token = bench.token(1).to_owned();
    bench
        .http(
            "too old",
            ("POST", "/v1/messages"),
            Some(&token),
            Some(&late.to_string()),
            Want::Http(410, 113),
        )
        .await;
    // More than 1,000 behind: what is left out is named.
    let reply = wire.call("subscribe", &json!({ "rooms": [{ "room": "long", "after": 1 }] })).await;
    let room = &reply["subscribe"]["rooms"][0];
    let head = room["head"].as_u64().unwrap_or_default();
    if room["gap"] != json!({ "from": 2, "to": head - 1_000 }) || room["from"] != head - 999 {
        bench.failures.push(format!("10,000 behind: {room}"));
    }
}

/// A server whose disk is full: what it cannot write it refuses, and reads go on.
async fn full(work: &Path) -> Bench {
    let directory = work.join("full");
    fs::create_dir(&directory).unwrap();
    let (server, users) = start(&directory, "", 2).await;
    let room = json!({ "room": "r", "kind": "group" });
    for token in &users {
        Wire::login(server.addresses.clients, token).await.call("create_room", &room).await;
    }
    drop(server);
    // More than there is: to the server the disk is full. Half of it is there, so what opens rooms goes on.
    let space = rustix::fs::statvfs(&directory).unwrap();
    let min_free = space.f_bavail * space.f_frsize / 2 * 3 + (1 << 30);
    // Clients that stay are closed when half of it is over, before the least time of a drain (200 ms) sends them away.
    let config =
        format!("[server]\ndrain_deadline = \"390ms\"\n[storage]\nmin_free = \"{}GiB\"\n", min_free >> 30);
    let (server, _) = start(&directory, &config, 1).await;
    let mut bench = Bench::new(server, users);
    let mut wire = bench.login(1).await;
    let send = json!({ "room": "r", "client_msg_id": "a", "text": "x" });
    let reply = wire.call("send", &send).await;
    bench.row("a send to a full disk", Want::Error(108), &[Got::Json(reply)]).await;
    let token = bench.token(1).to_owned();
    let route = ("POST", "/v1/messages");
    bench.http("a full disk", route, Some(&token), Some(&send.to_string()), Want::Http(503, 108)).await;
    let reply = wire.call("history", &json!({ "room": "r" })).await;
    bench.row("reading goes on", Want::Ok, &[Got::Json(reply)]).await;
    // Somebody new cannot be written down: nothing is said of the token.
    let stranger = tokens(&directory, "new", 1, "1h").remove(0);
    let mut other = Wire::open(bench.address).await;
    let auth = json!({ "id": 1, "auth": { "token": stranger } }).to_string();
    bench.ask(&mut other, "somebody new and a full disk", &auth, Want::ErrorClose(108, 3004)).await;
    let (status, health) = http(bench.server.addresses.ops, "GET", "/readyz", None, None).await;
    if status != 200 || health["status"] != "degraded" {
        bench.failures.push(format!("a full disk and readiness: {status} {health}"));
    }
    let id = bench.server.id();
    let failure = drained(&mut wire, &mut bench.seen, id).await;
    bench.failures.extend(failure);
    bench
}

/// Codes of codes.json that were neither seen nor are shown elsewhere; and what is wrong with [`ELSEWHERE`].
fn missing(seen: &BTreeSet<u16>) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let table: Value = serde_json::from_slice(&fs::read(root.join("proto/codes.json")).unwrap()).unwrap();
    let codes = [&table["errors"], &table["close_codes"]]
        .into_iter()
        .flat_map(|codes| codes.as_array().unwrap())
        .map(|code| u16::try_from(code["code"].as_u64().unwrap()).unwrap());
    let mut wrong: Vec<_> = codes
        .filter(|code| !seen.contains(code) && !ELSEWHERE.iter().any(|(other, ..)| other == code))
        .map(|code| format!("no row shows code {code}, and no other test is named for it"))
        .collect();
    for (code, file, test) in ELSEWHERE {
        let text = fs::read_to_string(root.join(file)).unwrap_or_default();
        if !text.contains(&format!("fn {test}(")) {
            wrong.push(format!("{code}: there is no test {test} in {file}"));
        }
        if seen.contains(code) {
            wrong.push(format!("{code} was seen here: it needs no other test"));
        }
    }
    wrong
}
