//! What operators and clients see of a small cluster of real processes: readiness, an operator's drain, logins that end on
//! another gateway.
//!
//! Owns: one etcd, one CQL server, two gateways and two shards, started once. Does not: break anything but whole nodes
//! (chaos does).
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and its output is kept on failure"
)]

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use banyan_tests::cluster::{Cluster, NodePlan, Plan};
use banyan_tests::crash::client::{Connection, sign_up};
use banyan_tests::server;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

const PASSWORD: &str = "correct horse battery staple 7";
const LIMIT: Duration = Duration::from_secs(40);

/// Status and body of an answer.
async fn ask(address: SocketAddr, head: &str, body: &str) -> (u16, String) {
    let request = format!(
        "{head} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let head_end = request.find("\r\n").unwrap();
    // A header may stand in the first line's place: METHOD PATH|Header: value
    let request = match head.split_once('|') {
        Some((line, header)) => {
            let rest = &request[head_end..];
            format!("{line} HTTP/1.1\r\n{header}{rest}")
        }
        None => request,
    };
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// The HTTP status of `/readyz`, and what it says.
async fn readyz(ops: SocketAddr) -> (u16, Value) {
    let (status, body) = ask(ops, "GET /readyz", "").await;
    (status, serde_json::from_str(&body).unwrap())
}

/// Waits until `/readyz` says this; gives how long that took, and the answer.
async fn until_it_is(ops: SocketAddr, status: &str) -> (Duration, u16, Value) {
    let begun = Instant::now();
    loop {
        let (code, body) = readyz(ops).await;
        if body["status"] == status {
            return (begun.elapsed(), code, body);
        }
        assert!(begun.elapsed() < LIMIT, "it is {body}, not {status}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn login(at: SocketAddr, name: &str) -> String {
    let body = json!({ "username": name, "password": PASSWORD }).to_string();
    let (status, body) = ask(at, "POST /v1/login", &body).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str::<Value>(&body).unwrap()["token"].as_str().unwrap().to_owned()
}

async fn logout(at: SocketAddr, token: &str, all: bool) {
    let head = format!("POST /v1/logout|Authorization: Bearer {token}");
    let (status, body) = ask(at, &head, &json!({ "all": all }).to_string()).await;
    assert_eq!(status, 204, "{body}");
}

async fn open(at: SocketAddr, token: &str) -> Connection {
    Connection::open(at, token).await.unwrap()
}

/// With which words the connection ends.
async fn end(connection: &mut Connection, within: Duration) -> String {
    let ended = async {
        loop {
            if let Err(error) = connection.next().await {
                return format!("{error:#}");
            }
        }
    };
    timeout(within, ended).await.expect("the connection ends")
}

async fn lives(connection: &mut Connection) {
    connection.call("ping", &json!({})).await.expect("the connection lives");
}

struct World {
    cluster: Cluster,
}

impl World {
    fn clients(&mut self, node: &str) -> SocketAddr {
        self.cluster.node(node).unwrap().clients().unwrap()
    }

    fn ops(&mut self, node: &str) -> SocketAddr {
        self.cluster.node(node).unwrap().ops()
    }

    async fn operator(&self, arguments: &[&str]) {
        let mut command: Command = self.cluster.banyan(arguments);
        command.args(["--etcd", &self.cluster.etcd.endpoints().join(",")]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
    }
}

#[tokio::test]
async fn operators_and_clients_see_what_the_documents_say() {
    let work = tempfile::Builder::new().prefix("banyan-cluster-").tempdir().unwrap();
    let mut plan = Plan::small(server::binary().unwrap(), work.path().to_owned(), Vec::new());
    // A third of it is the window in which clients leave.
    plan.environment.push(("BANYAN_SERVER__DRAIN_DEADLINE".to_owned(), "6s".to_owned()));
    // Each spreads its own clients over the window; of four clients two are on one.
    plan.environment.push(("BANYAN_GATEWAY__WORKERS".to_owned(), "2".to_owned()));
    let cluster = Cluster::start(plan, |step| println!("{step}")).await.unwrap();
    let mut world = World { cluster };
    a_gateway_is_ready_once_it_has_found_an_owner(&mut world).await;
    logins_end_on_every_gateway(&mut world).await;
    a_drained_gateway_sends_its_clients_away_and_takes_them_again(&mut world).await;
    without_etcd_all_stay_ready_and_without_any_shard_no_gateway_does(&mut world).await;
}

async fn a_gateway_is_ready_once_it_has_found_an_owner(world: &mut World) {
    world.cluster.place(NodePlan::new("edge", "gateway")).await.unwrap();
    let edge = world.ops("edge");
    let begun = Instant::now();
    let (_, code, body) = loop {
        // Until its port is there.
        match TcpStream::connect(edge).await {
            Ok(_) => break until_it_is(edge, "unready").await,
            Err(_) => assert!(begun.elapsed() < LIMIT),
        }
        sleep(Duration::from_millis(20)).await;
    };
    assert_eq!((code, &body["why"]), (503, &json!("no node that owns rooms has been found yet")));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(readyz(edge).await.0, 503);
    world.cluster.add(NodePlan::new("s1", "shard")).await.unwrap();
    let (_, code, _) = until_it_is(edge, "ready").await;
    assert_eq!(code, 200);
    world.cluster.add(NodePlan::new("b", "gateway,shard")).await.unwrap();
}

async fn logins_end_on_every_gateway(world: &mut World) {
    let (edge, b) = (world.clients("edge"), world.clients("b"));
    let first = sign_up(edge, "ann").await.unwrap().token;
    let second = login(b, "ann").await;
    let other = sign_up(b, "bob").await.unwrap().token;
    let (mut ann1, mut ann1_here) = (open(b, &first).await, open(edge, &first).await);
    let (mut ann2, mut bob) = (open(b, &second).await, open(b, &other).await);
    let begun = Instant::now();
    logout(edge, &first, false).await;
    for connection in [&mut ann1, &mut ann1_here] {
        let words = end(connection, Duration::from_secs(10)).await;
        assert!(words.contains("3503"), "{words}");
    }
    println!("a logout on another gateway closed its connection after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    sleep(Duration::from_secs(2)).await;
    lives(&mut ann2).await;
    lives(&mut bob).await;
    // All of a user's, at the other gateway; who comes again after it stays.
    logout(edge, &second, true).await;
    let words = end(&mut ann2, Duration::from_secs(10)).await;
    assert!(words.contains("3503"), "{words}");
    let mut again = open(b, &login(edge, "ann").await).await;
    sleep(Duration::from_secs(6)).await;
    lives(&mut again).await;
    lives(&mut bob).await;
}

async fn a_drained_gateway_sends_its_clients_away_and_takes_them_again(world: &mut World) {
    let (b, ops) = (world.clients("b"), world.ops("b"));
    let token = login(b, "ann").await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(open(b, &token).await);
    }
    let begun = Instant::now();
    world.operator(&["node", "drain", "b", "--no-wait"]).await;
    let (_, code, _) = until_it_is(ops, "drained").await;
    assert_eq!(code, 503);
    println!("drained {:?} after the command began", begun.elapsed());
    let mut after = Vec::new();
    for client in &mut clients {
        let told = timeout(LIMIT, client.next()).await.expect("it is told").unwrap();
        after.push(told["reconnect"]["after_ms"].as_u64().unwrap_or_else(|| panic!("{told}")));
        // It can talk on until it goes.
        lives(client).await;
    }
    after.sort_unstable();
    println!("told to come back after {after:?} ms, {:?} after the command began", begun.elapsed());
    assert!(
        after.windows(2).any(|two| two[0] < two[1]) && after[3] <= 2_000,
        "spread over the window: {after:?}"
    );
    let refused = Connection::open_within(Duration::from_secs(5), b, &token).await;
    assert!(refused.is_err(), "a drained node takes no connection");
    for client in &mut clients {
        let words = end(client, Duration::from_secs(10)).await;
        assert!(words.contains("3001"), "{words}");
    }
    // The process stands ready, drained.
    assert_eq!(readyz(ops).await.1["status"], "drained");
    assert!(world.cluster.node("b").unwrap().process.is_running());
    world.operator(&["node", "undrain", "b"]).await;
    let (took, code, _) = until_it_is(ops, "ready").await;
    assert_eq!(code, 200);
    println!("ready {took:?} after it was undrained");
    // Its workers hear of it a moment later.
    let until = Instant::now() + LIMIT;
    let mut back = loop {
        match Connection::open_within(Duration::from_secs(5), b, &token).await {
            Ok(back) => break back,
            Err(error) => assert!(Instant::now() < until, "{error:?}"),
        }
    };
    sleep(Duration::from_secs(3)).await;
    lives(&mut back).await;
    // Called off before anybody is told: by slots there is no telling; whoever stays can talk.
    world.operator(&["node", "drain", "edge", "--no-wait"]).await;
    let edge = world.ops("edge");
    until_it_is(edge, "drained").await;
    world.operator(&["node", "undrain", "edge"]).await;
    until_it_is(edge, "ready").await;
}

async fn without_etcd_all_stay_ready_and_without_any_shard_no_gateway_does(world: &mut World) {
    let (edge, s1) = (world.ops("edge"), world.ops("s1"));
    world.cluster.etcd.kill_all().await.unwrap();
    for _ in 0..16 {
        sleep(Duration::from_millis(500)).await;
        for ops in [edge, s1] {
            assert_eq!(readyz(ops).await.0, 200, "etcd's absence takes nobody out");
        }
    }
    assert_eq!(readyz(edge).await.1["status"], "degraded");
    world.cluster.etcd.start_all().await.unwrap();
    until_it_is(edge, "ready").await;
    // No shard at all: not at once, and then not until there is one.
    for node in ["s1", "b"] {
        world.cluster.node(node).unwrap().process.kill().await.unwrap();
    }
    sleep(Duration::from_secs(2)).await;
    assert_eq!(readyz(edge).await.0, 200, "a takeover would go by unseen");
    let (_, code, body) = until_it_is(edge, "unready").await;
    assert_eq!((code, &body["why"]), (503, &json!("no node that owns rooms can be reached")));
    world.cluster.launch("s1").unwrap();
    let (took, _, _) = until_it_is(edge, "ready").await;
    println!("ready {took:?} after a shard was started again");
}
