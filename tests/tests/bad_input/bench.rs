//! What the rows share: the server, its users, the witnesses, and what has been seen so far.
//!
//! Owns: the list of failures and of codes seen. Always holds: after each row two well-behaved clients exchange a
//! message within [`UNDISTURBED`].

use crate::wire::{Got, Wire, http, text};
use banyan_tests::server::{Server, binary};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How soon the witnesses must have their message, whatever anybody else sends.
const UNDISTURBED: Duration = Duration::from_secs(2);

/// What a row must get. Numbers are codes of proto/codes.json.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// A reply that is no error.
    Ok,
    /// An error reply; the connection lives on.
    Error(u16),
    /// A good reply, with this error in its only room.
    Inside(u16),
    /// The connection closes.
    Close(u16),
    /// An error reply, then the connection closes.
    ErrorClose(u16, u16),
    /// An HTTP status and the code of the problem; 0: none.
    Http(u16, u16),
}

/// One server, its users and the witnesses.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) server: Server,
    pub(crate) address: SocketAddr,
    /// Tokens of `u1`, `u2`, ….
    tokens: Vec<String>,
    witness: Option<(Wire, Wire)>,
    sent: u64,
    pub(crate) failures: Vec<String>,
    pub(crate) seen: BTreeSet<u16>,
    pub(crate) rows: usize,
    slowest: Duration,
}

/// A server with these lines of configuration and `users` known users.
pub(crate) async fn start(directory: &Path, config: &str, users: usize) -> (Server, Vec<String>) {
    let file = directory.join("banyan.toml");
    fs::write(&file, config).unwrap();
    let binary = binary().unwrap();
    let data = directory.join("data");
    let prepare = |command: &mut Command| {
        command.arg("--config").arg(&file);
    };
    let server = Server::start(&binary, &data, &directory.join("log"), prepare).await.unwrap();
    (server, tokens(directory, "u", users, "1h"))
}

/// Tokens that the server's own keys sign.
pub(crate) fn tokens(directory: &Path, user: &str, count: usize, lifetime: &str) -> Vec<String> {
    let mut command = Command::new(binary().unwrap());
    command.args(["gentoken", user, "--lifetime", lifetime, "--data-dir"]).arg(directory.join("data"));
    command.args(["--count", &count.to_string()]).env_clear();
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

impl Bench {
    pub(crate) fn new(server: Server, tokens: Vec<String>) -> Self {
        let address = server.addresses.clients;
        Self {
            server,
            address,
            tokens,
            witness: None,
            sent: 0,
            failures: Vec::new(),
            seen: BTreeSet::new(),
            rows: 0,
            slowest: Duration::ZERO,
        }
    }

    pub(crate) fn token(&self, user: usize) -> &str {
        &self.tokens[user - 1]
    }

    pub(crate) async fn login(&self, user: usize) -> Wire {
        Wire::login(self.address, self.token(user)).await
    }

    /// Users `u3` and `u4` begin to talk.
    pub(crate) async fn place_witnesses(&mut self) {
        let (mut one, mut other) = (self.login(3).await, self.login(4).await);
        let room = json!({ "room": "witness", "kind": "group", "members": ["u4"] });
        assert_eq!(one.call("create_room", &room).await["create_room"]["created"], true);
        let subscribed = other.call("subscribe", &json!({ "rooms": [{ "room": "witness" }] })).await;
        assert_eq!(subscribed["subscribe"]["rooms"][0]["head"], 2, "{subscribed}");
        self.witness = Some((one, other));
    }

    /// The same in a room that its first use makes.
    pub(crate) async fn place_witnesses_lazily(&mut self) {
        let (mut one, mut other) = (self.login(3).await, self.login(4).await);
        let rooms = json!({ "rooms": [{ "room": "witness" }] });
        for wire in [&mut one, &mut other] {
            let subscribed = wire.call("subscribe", &rooms).await;
            assert_eq!(subscribed["subscribe"]["rooms"][0]["role"], "member", "{subscribed}");
        }
        one.call("unsubscribe", &json!({ "rooms": ["witness"] })).await;
        self.witness = Some((one, other));
    }

    /// The end of a row: what came is compared, and the witnesses talk.
    pub(crate) async fn row(&mut self, name: &str, want: Want, got: &[Got]) {
        println!("{name}");
        self.rows += 1;
        if let Some(seen) = met(want, got) {
            self.seen.extend(seen);
        } else {
            self.failures.push(format!("{name}: wanted {want:?}, got {got:?}"));
        }
        self.undisturbed(name).await;
    }

    pub(crate) async fn http_row(&mut self, name: &str, want: Want, (status, body): (u16, Value)) {
        let code = body["code"].as_u64().unwrap_or_default();
        println!("{name}");
        self.rows += 1;
        match want {
            Want::Http(wanted, wanted_code) if (wanted, u64::from(wanted_code)) == (status, code) => {
                self.seen.insert(wanted_code);
            }
            _ => self.failures.push(format!("{name}: wanted {want:?}, got {status} {body}")),
        }
        self.undisturbed(name).await;
    }

    /// The witnesses exchange a message.
    pub(crate) async fn undisturbed(&mut self, name: &str) {
        let Some((one, other)) = &mut self.witness else { return };
        self.sent += 1;
        let said = format!("m{}", self.sent);
        let begun = Instant::now();
        let talk = async {
            let body = json!({ "room": "witness", "client_msg_id": said, "text": said });
            let reply = one.call("send", &body).await;
            assert!(reply["send"]["seq"].is_u64(), "the witness was refused: {reply}");
            loop {
                match other.next().await {
                    Got::Json(push) if push["event"]["message"]["text"] == said => return,
                    Got::Json(_) => {}
                    end => panic!("the witness was cut off: {end:?}"),
                }
            }
        };
        if timeout(UNDISTURBED, talk).await.is_err() {
            self.failures.push(format!("{name}: the witnesses did not get through in {UNDISTURBED:?}"));
        }
        self.slowest = self.slowest.max(begun.elapsed());
    }

    pub(crate) fn slowest_witness(&self) -> Duration {
        self.slowest
    }

    /// Sends one frame on this connection and looks at what comes back for id 1.
    pub(crate) async fn ask(&mut self, wire: &mut Wire, name: &str, frame: &str, want: Want) {
        wire.send(&text(frame)).await;
        let got = self.outcome(wire, 1, want).await;
        self.row(name, want, &got).await;
    }

    /// What comes back until it is known whether it is what is wanted.
    pub(crate) async fn outcome(&mut self, wire: &mut Wire, id: u64, want: Want) -> Vec<Got> {
        match want {
            Want::Ok | Want::Error(_) | Want::Inside(_) => match wire.reply(id).await {
                Ok(reply) => {
                    // It lives on: the next command is answered.
                    let ping = r#"{"id":9007199254740991,"ping":{}}"#;
                    wire.send(&text(ping)).await;
                    match wire.reply(9_007_199_254_740_991).await {
                        Ok(_) => vec![Got::Json(reply)],
                        Err(end) => vec![Got::Json(reply), end],
                    }
                }
                Err(end) => vec![end],
            },
            Want::Close(_) => vec![wire.closed().await],
            Want::ErrorClose(..) => match wire.reply(id).await {
                Ok(reply) => vec![Got::Json(reply), wire.closed().await],
                Err(end) => vec![end],
            },
            Want::Http(..) => vec![wire.next().await],
        }
    }

    pub(crate) async fn http(
        &mut self,
        name: &str,
        (method, path): (&str, &str),
        token: Option<&str>,
        body: Option<&str>,
        want: Want,
    ) -> Value {
        let answer = http(self.address, method, path, token, body).await;
        let value = answer.1.clone();
        self.http_row(&format!("{method} {path}: {name}"), want, answer).await;
        value
    }

    /// Resident memory of the server, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.server.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

/// The codes that were seen, if this is what was wanted.
fn met(want: Want, got: &[Got]) -> Option<Vec<u16>> {
    let error = |value: &Value| value["error"]["code"].as_u64().and_then(|code| u16::try_from(code).ok());
    match (want, got) {
        (Want::Ok, [Got::Json(reply)]) if error(reply).is_none() => {
            error(&reply["subscribe"]["rooms"][0]).is_none().then(Vec::new)
        }
        (Want::Error(code), [Got::Json(reply)]) => (error(reply) == Some(code)).then(|| vec![code]),
        (Want::Inside(code), [Got::Json(reply)]) => {
            (error(&reply["subscribe"]["rooms"][0]) == Some(code)).then(|| vec![code])
        }
        (Want::Close(code), [Got::Close(closed)]) => (code == *closed).then(|| vec![code]),
        (Want::ErrorClose(code, close), [Got::Json(reply), Got::Close(closed)]) => {
            (error(reply) == Some(code) && close == *closed).then(|| vec![code, close])
        }
        _ => None,
    }
}
