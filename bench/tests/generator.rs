//! The generator against a server of this test's own that does its work well, or badly in exactly one way: every way
//! must void the run.

#![allow(
    clippy::disallowed_methods,
    clippy::needless_pass_by_value,
    clippy::unwrap_used,
    reason = "a test: deadlines by the clock, commands written in place, and what fails fails"
)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::Message;
use tungstenite::handshake::server::{Request, Response};
use tungstenite::http::HeaderValue;

/// What the server does wrong, once, with the event of seq [`AT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Loses,
    Doubles,
    Swaps,
    ChangesContent,
    AnnouncesGap,
    Closes,
    Vanishes,
    MasksFrame,
    AcksAbove,
    AcksAsDuplicate,
    RefusesSend,
    InventsEvent,
}

/// The room is made at seq 1; the load's events are 2 and on.
const AT: u64 = 7;
const EVENTS: u64 = 20;

#[derive(Default)]
struct State {
    /// By room.
    heads: HashMap<String, u64>,
    /// Live subscribers, by connection.
    readers: Vec<(usize, String, TcpStream)>,
    held: Option<Vec<u8>>,
    pongs: usize,
    members: usize,
}

struct Fake {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Fake {
    fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for (index, stream) in listener.incoming().enumerate() {
                let (stream, state) = (stream.unwrap(), Arc::clone(&shared));
                std::thread::spawn(move || serve(index, stream, &state, fault));
            }
        });
        Self { address, state }
    }
}

#[expect(clippy::result_large_err, reason = "tungstenite's signature")]
fn choose_protocol(
    request: &Request,
    mut response: Response,
) -> Result<Response, tungstenite::handshake::server::ErrorResponse> {
    assert_eq!(request.uri().path(), "/v1/ws");
    response.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("banyan.v1.json"));
    Ok(response)
}

fn serve(index: usize, stream: TcpStream, state: &Mutex<State>, fault: Fault) {
    stream.set_nodelay(true).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let mut socket = tungstenite::accept_hdr(stream, choose_protocol).unwrap();
    loop {
        let message = match socket.read() {
            Ok(Message::Text(text)) => text,
            Ok(Message::Pong(_)) => {
                state.lock().unwrap().pongs += 1;
                continue;
            }
            Ok(_) => continue,
            Err(_) => return,
        };
        let frame: Value = serde_json::from_str(&message).unwrap();
        let mut state = state.lock().unwrap();
        let (id, id_name) = (frame["id"].as_u64().unwrap(), "id");
        let mut reply = |body: Value| {
            let mut reply = body;
            reply[id_name] = json!(id);
            write(&mut writer, &text_frame(reply.to_string().as_bytes()));
        };
        if let Some(auth) = frame.get("auth") {
            reply(json!({"auth": {
                "user": auth["token"], "name": "n", "connection": "c", "node": "n", "expires_at": 1, "server_time": 1, "ping_interval_ms": 1,
                "limits": {"frame_bytes": 1, "text_bytes": 1, "data_bytes": 1, "in_flight": 64, "rooms_per_subscribe": 1, "subscriptions": 1, "sends_per_s": 1},
            }}));
        } else if let Some(create) = frame.get("create_room") {
            let room = create["room"].as_str().unwrap().to_owned();
            state.heads.insert(room.clone(), 1);
            reply(json!({"create_room": {
                "room": room, "kind": "group", "name": room, "public": true, "role": "owner", "log": "l", "head": 1, "n": 0,
                "delivered": 0, "seen": 0, "seen_n": 0, "created": true,
            }}));
        } else if frame.get("join").is_some() {
            state.members += 1;
            // Each is refused once, in a way that asks to come again.
            if state.members % 2 == 1 {
                reply(
                    json!({"error": {"code": 112, "name": "overloaded", "message": "later", "retry_after_ms": 1}}),
                );
            } else {
                reply(json!({"join": {"head": 1, "role": "member"}}));
            }
        } else if let Some(subscribe) = frame.get("subscribe") {
            let mut rooms = Vec::new();
            for wanted in subscribe["rooms"].as_array().unwrap() {
                let room = wanted["room"].as_str().unwrap().to_owned();
                let head = state.heads[&room];
                rooms.push(json!({"room": room, "log": "l", "head": head, "n": 0, "from": head + 1, "role": "member", "delivered": 0, "seen": 0, "seen_n": 0}));
                if wanted["mode"] == "live" {
                    state.readers.push((index, room, writer.try_clone().unwrap()));
                }
            }
            write(&mut writer, &[0x89, 2, b'h', b'i']);
            let id = json!(id);
            // One in three rooms is told later.
            if index % 3 == 2 {
                let mut pending = rooms.clone();
                for room in &mut pending {
                    room["pending"] = json!(true);
                }
                write(
                    &mut writer,
                    &text_frame(json!({"id": id, "subscribe": {"rooms": pending}}).to_string().as_bytes()),
                );
                for room in rooms {
                    write(&mut writer, &text_frame(json!({"subscribed": room}).to_string().as_bytes()));
                }
            } else {
                write(
                    &mut writer,
                    &text_frame(json!({"id": id, "subscribe": {"rooms": rooms}}).to_string().as_bytes()),
                );
            }
        } else if let Some(send) = frame.get("send") {
            let room = send["room"].as_str().unwrap().to_owned();
            let head = state.heads.get_mut(&room).unwrap();
            *head += 1;
            let seq = *head;
            assert!(send["since"].as_u64().unwrap() < seq, "a client states what it knew");
            fan_out(&mut state, index, &room, seq, send, fault);
            let (told, duplicate) = match fault {
                Fault::AcksAbove if seq == AT => (seq + 1, false),
                Fault::AcksAsDuplicate if seq == AT => (seq, true),
                _ => (seq, false),
            };
            if fault == Fault::RefusesSend && seq == AT {
                reply(json!({"error": {"code": 103, "name": "permission_denied", "message": "no"}}));
            } else {
                reply(json!({"send": {"room": room, "seq": told, "at": 1, "duplicate": duplicate}}));
            }
        } else {
            panic!("unexpected {frame}");
        }
    }
}

fn fan_out(state: &mut State, sender: usize, room: &str, seq: u64, send: &Value, fault: Fault) {
    let event = |seq: u64, text: &Value| {
        let event = json!({"event": {
            "room": room, "seq": seq, "at": 1, "n": seq - 1, "sender": "s", "sender_name": "s", "client_msg_id": send["client_msg_id"],
            "message": {"text": text, "content_type": "text/plain", "mentions": []},
        }});
        event.to_string().into_bytes()
    };
    let State { readers, held, .. } = state;
    let victim = readers.iter().map(|(index, ..)| *index).filter(|&index| index != sender).max();
    for (index, of, stream) in readers.iter_mut().filter(|(index, of, _)| *index != sender && of == room) {
        assert_eq!(of, room);
        let payload = event(seq, &send["text"]);
        let frame = text_frame(&payload);
        if Some(*index) == victim {
            match fault {
                Fault::Loses if seq == AT => continue,
                Fault::Doubles if seq == AT => write(stream, &frame),
                Fault::Swaps if seq == AT => {
                    *held = Some(frame);
                    // With one in flight the next comes only with this one: so the swap is with an event of the future.
                    write(stream, &text_frame(&event(seq + 1, &send["text"])));
                    continue;
                }
                Fault::ChangesContent if seq == AT => {
                    write(stream, &text_frame(&event(seq, &json!("something else"))));
                    continue;
                }
                Fault::AnnouncesGap if seq == AT => {
                    write(
                        stream,
                        &text_frame(
                            json!({"gap": {"room": room, "from": seq, "to": seq}}).to_string().as_bytes(),
                        ),
                    );
                    continue;
                }
                Fault::Closes if seq == AT => {
                    write(stream, &[0x88, 6, 0x0b, 0xc0, b's', b'l', b'o', b'w']);
                    continue;
                }
                Fault::Vanishes if seq == AT => {
                    stream.shutdown(std::net::Shutdown::Both).unwrap();
                    continue;
                }
                Fault::MasksFrame if seq == AT => {
                    write(stream, &[0x81, 0x81, 0, 0, 0, 0, b'x']);
                    continue;
                }
                Fault::InventsEvent if seq == EVENTS + 1 => {
                    write(stream, &frame);
                    write(stream, &text_frame(&event(seq + 1, &send["text"])));
                    continue;
                }
                _ => {}
            }
        }
        match *index % 3 {
            // In fragments, the first of them in single bytes.
            1 => {
                let (first, second) = payload.split_at(50);
                let mut bytes = vec![0x01, 50];
                bytes.extend_from_slice(first);
                for byte in bytes {
                    write(stream, &[byte]);
                }
                let mut last = text_frame(second);
                last[0] = 0x80;
                write(stream, &last);
            }
            _ => write(stream, &frame),
        }
    }
}

fn text_frame(payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0x81];
    match u8::try_from(payload.len()) {
        Ok(length @ ..=125) => out.push(length),
        _ => {
            out.push(126);
            out.extend_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
    out
}

/// A reader that has gone is none of the server's business.
fn write(stream: &mut TcpStream, bytes: &[u8]) {
    drop(stream.write_all(bytes));
}

struct Generator {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Generator {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_banyan-bench"))
            .arg("generator")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    fn call(&mut self, command: Value) -> Value {
        writeln!(self.input, "{command}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{command}: {error}: {line}"))
    }

    /// Connects so many users, lets them join a room and be live in it; the first is its owner and the sender.
    fn fill(&mut self, address: SocketAddr, connections: u32) {
        let users: Vec<_> = (0..connections)
            .map(|index| json!({"user": format!("u{index}"), "token": format!("u{index}")}))
            .collect();
        let connect = json!({"do": "connect", "server": address, "sources": ["127.0.0.2", "127.0.0.3"], "users": users, "raw": false, "receive_buffer": null});
        let connected = self.call(connect);
        assert_eq!(
            (&connected["is"], connected["addresses"].as_array().map(Vec::len)),
            (&json!("connected"), Some(connections as usize))
        );
        let rooms = json!(["r"]);
        assert_eq!(
            self.call(json!({"do": "create", "rooms": rooms, "plan": [[0, [0]]]})),
            json!({"is": "done"})
        );
        let others: Vec<_> = (1..connections).map(|index| json!([index, [0]])).collect();
        assert_eq!(self.call(json!({"do": "join", "rooms": rooms, "plan": others})), json!({"is": "done"}));
        let all: Vec<_> = (0..connections).map(|index| json!([index, [0]])).collect();
        let subscribe =
            json!({"do": "subscribe", "rooms": rooms, "plan": all, "modes": "live", "after": [1]});
        assert_eq!(self.call(subscribe), json!({"is": "subscribed", "heads": [1]}));
    }

    fn watch(&mut self) -> Value {
        self.call(json!({"do": "watch", "room": "r", "sender": 0, "coordinator": null}))
    }

    fn load(&mut self, pace: Value) -> Value {
        self.call(json!({"do": "load", "sender": 0, "rooms": ["r"], "pace": pace, "events": EVENTS, "seconds": 60.0, "payload": 200}))
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_good_run_counts_every_delivery() {
    let fake = Fake::start(Fault::None);
    let mut generator = Generator::start();
    generator.fill(fake.address, 7);
    for pace in [
        json!({"last_receiver": {"in_flight": 1}}),
        json!({"last_receiver": {"in_flight": 8}}),
        json!({"acked": {"in_flight": 4}}),
        json!({"rate": {"per_s": 500.0}}),
    ] {
        assert_eq!(generator.watch(), json!({"is": "done"}));
        let loaded = generator.load(pace.clone());
        assert_eq!((&loaded["is"], &loaded["sent"]), (&json!("loaded"), &json!(EVENTS)), "{pace}: {loaded}");
        let finished = generator.call(json!({"do": "finish", "events": EVENTS}));
        assert_eq!(
            (&finished["receivers"], &finished["deliveries"]),
            (&json!(6), &json!(6 * EVENTS)),
            "{pace}: {finished}"
        );
        let times = |name: &str| {
            finished[name].as_array().unwrap().iter().map(|ns| ns.as_u64().unwrap()).collect::<Vec<_>>()
        };
        let (sent, completed) = (times("sent_ns"), times("completed_ns"));
        assert_eq!((sent.len() as u64, completed.len() as u64), (EVENTS, EVENTS));
        assert!(sent.iter().zip(&completed).all(|(sent, completed)| sent < completed));
        if pace == json!({"last_receiver": {"in_flight": 1}}) {
            let strict = completed.iter().zip(&sent[1..]).all(|(completed, next)| completed <= next);
            assert!(strict, "the next is sent when the last receiver has the one before");
        }
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while fake.state.lock().unwrap().pongs < 7 {
        assert!(Instant::now() < deadline, "pings are answered");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// With receivers in two processes, the last of both decides when the next event is sent.
#[test]
fn two_generators_wait_for_each_other() {
    let fake = Fake::start(Fault::None);
    let (mut first, mut second) = (Generator::start(), Generator::start());
    first.fill(fake.address, 3);
    let users: Vec<_> =
        (0..4).map(|index| json!({"user": format!("v{index}"), "token": format!("v{index}")})).collect();
    let connect = json!({"do": "connect", "server": fake.address, "sources": ["127.0.0.4"], "users": users, "raw": false, "receive_buffer": null});
    assert_eq!(second.call(connect)["is"], "connected");
    let all: Vec<_> = (0..4).map(|index| json!([index, [0]])).collect();
    let subscribe = json!({"do": "subscribe", "rooms": ["r"], "plan": all, "modes": "live", "after": [1]});
    assert_eq!(second.call(subscribe)["heads"], json!([1]));
    let coordinator = first.call(json!({"do": "coordinate", "peers": 1}))["address"].clone();
    for _ in 0..2 {
        assert_eq!(first.watch(), json!({"is": "done"}));
        let watch = json!({"do": "watch", "room": "r", "sender": null, "coordinator": coordinator});
        assert_eq!(second.call(watch), json!({"is": "done"}));
        assert_eq!(first.load(json!({"last_receiver": {"in_flight": 1}}))["sent"], EVENTS);
        let finish = json!({"do": "finish", "events": EVENTS});
        let (mine, theirs) = (first.call(finish.clone()), second.call(finish));
        assert_eq!((&mine["deliveries"], &theirs["deliveries"]), (&json!(2 * EVENTS), &json!(4 * EVENTS)));
        let times =
            |reply: &Value, name: &str| -> Vec<u64> { serde_json::from_value(reply[name].clone()).unwrap() };
        let sent = times(&mine, "sent_ns");
        for completed in [times(&mine, "completed_ns"), times(&theirs, "completed_ns")] {
            assert!(completed.iter().zip(&sent[1..]).all(|(completed, next)| completed <= next));
        }
    }
}

#[test]
fn every_fault_voids_the_run() {
    for (fault, words) in [
        (Fault::Loses, "event 8 of r, expected 7"),
        (Fault::Doubles, "event 7 of r, expected 8"),
        (Fault::Swaps, "event 8 of r, expected 7"),
        (Fault::ChangesContent, "another content"),
        (Fault::AnnouncesGap, "a gap 7–7"),
        (Fault::Closes, "3008 slow"),
        (Fault::Vanishes, "ended the TCP connection"),
        (Fault::MasksFrame, "masked"),
        (Fault::AcksAbove, "seq 8 in the place of 7"),
        (Fault::AcksAsDuplicate, "duplicate"),
        (Fault::RefusesSend, "permission_denied"),
        (Fault::InventsEvent, "21 events came, 20 were sent"),
    ] {
        let fake = Fake::start(fault);
        let mut generator = Generator::start();
        generator.fill(fake.address, 5);
        assert_eq!(generator.watch(), json!({"is": "done"}));
        // Several in flight, so that a loss shows as what it is and not as silence.
        let loaded = generator.load(json!({"last_receiver": {"in_flight": 4}}));
        let failed = match loaded["is"].as_str() {
            Some("failed") => loaded,
            _ => generator.call(json!({"do": "finish", "events": EVENTS})),
        };
        assert_eq!(failed["is"], "failed", "{fault:?}: {failed}");
        assert!(failed["why"].as_str().unwrap().contains(words), "{fault:?}: {failed}");
    }
}

#[test]
fn a_paused_reader_gets_everything_later() {
    let fake = Fake::start(Fault::None);
    let mut generator = Generator::start();
    generator.fill(fake.address, 3);
    assert_eq!(generator.call(json!({"do": "pause", "connection": 2})), json!({"is": "done"}));
    let loaded = generator.load(json!({"acked": {"in_flight": 1}}));
    assert_eq!(loaded["heads"], json!([EVENTS + 1]));
    let resumed =
        generator.call(json!({"do": "resume", "connection": 2, "room": "r", "through": EVENTS + 1}));
    assert_eq!(resumed, json!({"is": "resumed", "events": EVENTS}));
    assert_eq!(generator.call(json!({"do": "await", "heads": [["r", EVENTS + 1]]})), json!({"is": "done"}));
}

#[test]
fn many_senders_check_their_acks() {
    let fake = Fake::start(Fault::None);
    let mut generator = Generator::start();
    generator.fill(fake.address, 1);
    let sent = generator.call(json!({"do": "sends", "seconds": 0.2, "payload": 200, "connections": [0]}));
    assert_eq!(sent["is"], "sent", "{sent}");
    let acked = sent["acked"].as_u64().unwrap();
    assert_eq!(fake.state.lock().unwrap().heads["r"], acked + 1);

    let fake = Fake::start(Fault::AcksAbove);
    let mut generator = Generator::start();
    generator.fill(fake.address, 1);
    let sent = generator.call(json!({"do": "sends", "seconds": 0.2, "payload": 200, "connections": [0]}));
    assert!(sent["why"].as_str().unwrap().contains("in the place of"), "{sent}");
}

#[test]
fn a_server_that_refuses_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        write(&mut stream, b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nfull");
        std::thread::sleep(Duration::from_millis(500));
    });
    let mut generator = Generator::start();
    let users = json!([{"user": "u", "token": "t"}]);
    let connect = json!({"do": "connect", "server": address, "sources": ["127.0.0.2"], "users": users, "raw": false, "receive_buffer": null});
    let failed = generator.call(connect);
    assert!(failed["why"].as_str().unwrap().contains("503"), "{failed}");
}
