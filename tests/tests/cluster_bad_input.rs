//! What a node of a cluster says of bad input, and how it ends: real `banyan serve` beside a node that is right.
//!
//! Owns: one etcd, one CQL server and one good node, started once; every case is a process of its own.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and its output is kept on failure"
)]

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use banyan_storage_scylla::schema::Replication;
use banyan_storage_scylla::{Options, Server};
use banyan_test_servers::Ports;
use banyan_tests::clock::{Clock, Setting, Shim};
use banyan_tests::cluster::{Cluster, NodePlan, Plan, get};
use banyan_tests::crash::client::{Connection, sign_up};
use banyan_tests::server;
use rustix::process::{Pid, Signal, kill_process};
use scylla::client::session_builder::SessionBuilder;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

const LIMIT: Duration = Duration::from_secs(60);

/// A `banyan serve` of the cluster that may go wrong.
struct Node<'a> {
    cluster: &'a Cluster,
    name: &'static str,
    arguments: Vec<String>,
    environment: Vec<(OsString, OsString)>,
}

/// Of one that runs. Ends with it.
struct Running {
    child: Child,
    log: PathBuf,
    ops: SocketAddr,
    clients: SocketAddr,
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl<'a> Node<'a> {
    fn new(cluster: &'a Cluster, name: &'static str) -> Self {
        Self { cluster, name, arguments: Vec::new(), environment: Vec::new() }
    }

    fn arg(mut self, flag: &str, value: impl Into<String>) -> Self {
        self.arguments.extend([flag.to_owned(), value.into()]);
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    fn start(self) -> Running {
        let ports = Ports::free(3).unwrap();
        let at = |n: usize| SocketAddr::from(([127, 0, 0, 1], ports.at(n)));
        let directory = self.cluster.plan.directory.join(format!("case-{}", ports.at(0)));
        std::fs::create_dir_all(&directory).unwrap();
        let log = directory.join("log");
        let file = std::fs::File::create(&log).unwrap();
        let mut command: Command = self.cluster.banyan(&["serve"]);
        let given = |flag: &str| self.arguments.iter().any(|argument| argument == flag);
        command.args(["--node-id", self.name, "--data-dir"]).arg(directory.join("data"));
        for (flag, n) in [("--listen", 0), ("--ops-listen", 1), ("--peer-listen", 2)] {
            command.args([flag, &at(n).to_string()]);
        }
        if !given("--etcd") {
            command.args(["--etcd", &self.cluster.etcd.endpoints().join(",")]);
        }
        if !given("--scylla") {
            command.args(["--scylla", &self.cluster.cql.contact_points().join(",")]);
        }
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Running { child: command.spawn().unwrap(), log, ops: at(1), clients: at(0) }
    }

    /// It ends by itself, with this code and these words on standard error, and a hint or none.
    async fn refused(self, code: i32, words: &[&str]) {
        let name = self.name;
        let running = self.start();
        let text = running.ended(code).await;
        let error = text.lines().filter(|line| line.starts_with("error: ") || line.starts_with("hint: "));
        let error: Vec<&str> = error.collect();
        println!("{name}: exit {code}\n{}", error.join("\n"));
        let error = error.join("\n");
        for word in words {
            assert!(error.contains(word), "{name}: no {word:?} in:\n{text}");
        }
    }
}

impl Running {
    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    async fn ended(mut self, code: i32) -> String {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let text = self.said();
                assert_eq!(status.code(), Some(code), "{text}");
                return text;
            }
            assert!(begun.elapsed() < LIMIT, "it goes on:\n{}", self.said());
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn says(&self, words: &str) {
        let begun = Instant::now();
        while !self.said().contains(words) {
            assert!(begun.elapsed() < LIMIT, "no {words:?} in:\n{}", self.said());
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn is(&self, status: &str) -> Value {
        let begun = Instant::now();
        loop {
            let body = get(self.ops, "/readyz").await.unwrap_or_default();
            let body: Value = serde_json::from_str(&body).unwrap_or_default();
            if body["status"] == status {
                return body;
            }
            assert!(begun.elapsed() < LIMIT, "it is {body}, not {status}:\n{}", self.said());
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn terminate(&self) {
        let process = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(process, Signal::TERM).unwrap();
    }
}

#[tokio::test]
async fn bad_input_gets_clear_words_and_the_right_exit_code() {
    let work = tempfile::Builder::new().prefix("banyan-bad-input-").tempdir().unwrap();
    let nodes = vec![NodePlan::new("a", "gateway,shard")];
    let plan = Plan::small(server::binary().unwrap(), work.path().to_owned(), nodes);
    let mut cluster = Cluster::start(plan, |step| println!("{step}")).await.unwrap();
    one_copy_of_each_row_is_said_loudly(&mut cluster);
    other_foundations(&cluster).await;
    a_newer_schema_or_none(&cluster).await;
    certificates(&cluster, work.path()).await;
    addresses(&cluster).await;
    a_clock_an_hour_ahead(&cluster, work.path()).await;
    // None of this did anything to the node that is right.
    let good = cluster.node("a").unwrap();
    assert!(good.process.is_running());
    assert_eq!(good.readiness().await.unwrap()["status"], "ready");
}

fn one_copy_of_each_row_is_said_loudly(cluster: &mut Cluster) {
    let log = std::fs::read_to_string(cluster.node("a").unwrap().process.log_path()).unwrap();
    let warned = log.lines().any(|line| line.contains("WARN") && line.contains("replication"));
    assert!(warned, "replication 1 is warned of:\n{log}");
}

async fn other_foundations(cluster: &Cluster) {
    Node::new(cluster, "a").refused(64, &["another node a of this cluster lives", "--node-id"]).await;
    let slots = Node::new(cluster, "slots").env("BANYAN_CLUSTER__SLOTS", "128");
    slots.refused(64, &["slot count 128", "founded with 64"]).await;
    let centre = Node::new(cluster, "centre").env("BANYAN_SCYLLA__DATACENTER", "elsewhere");
    centre.refused(64, &["elsewhere", "datacenter1"]).await;
    let copies = Node::new(cluster, "copies").env("BANYAN_SCYLLA__REPLICATION", "3");
    copies.refused(64, &["replication"]).await;
}

async fn a_newer_schema_or_none(cluster: &Cluster) {
    let none = Node::new(cluster, "none").env("BANYAN_SCYLLA__KEYSPACE", "nothing_here");
    none.refused(64, &["nothing_here", "banyan schema apply"]).await;
    let points = cluster.cql.contact_points();
    let options = Options::new(points.clone(), "newer");
    let server = Server::connect(options, |_| {}).await.unwrap();
    let replication = Replication { data_centre: cluster.cql.datacenter().to_owned(), factor: 1 };
    server.apply_schema(&replication).await.unwrap();
    let session = SessionBuilder::new().known_nodes(&points).build().await.unwrap();
    let row = "INSERT INTO newer.schema_versions (k, version, what, applied_at) VALUES (0, 9999, 'later', toTimestamp(now()))";
    session.query_unpaged(row, ()).await.unwrap();
    let newer = Node::new(cluster, "newer").env("BANYAN_SCYLLA__KEYSPACE", "newer");
    newer.refused(74, &["9999", "newer"]).await;
}

async fn certificates(cluster: &Cluster, work: &Path) {
    let certs = work.join("certs");
    let make = |name: &str, cluster_name: &str, directory: &Path, roles: &str| {
        let mut command = cluster.banyan(&["gencerts", "--roles", roles, "--cluster", cluster_name, "--dir"]);
        let output = command.arg(directory).arg(name).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    make("edge", "banyan", &certs, "gateway");
    make("owner", "banyan", &certs, "shard");
    let others = work.join("certs-of-others");
    make("edge", "others", &others, "gateway");
    let with = |name: &'static str, directory: &Path, file: &str, roles: &str| {
        let path = |file: String| directory.join(file).display().to_string();
        Node::new(cluster, name)
            .arg("--roles", roles)
            .arg("--peer-ca", path("ca.pem".to_owned()))
            .arg("--peer-cert", path(format!("{file}.pem")))
            .arg("--peer-key", path(format!("{file}.key")))
    };
    with("edge", &certs, "edge", "shard").refused(64, &["shard", "gateway"]).await;
    with("owner", &certs, "owner", "gateway").refused(64, &["shard", "gateway"]).await;
    with("edge", &certs, "owner", "gateway").refused(64, &["owner", "edge"]).await;
    with("edge", &others, "edge", "gateway").refused(64, &["others", "banyan"]).await;
    with("edge", &certs, "nobody", "gateway").refused(74, &["nobody.pem"]).await;
}

async fn addresses(cluster: &Cluster) {
    let nowhere = format!("127.0.0.1:{}", Ports::free(1).unwrap().at(0));
    Node::new(cluster, "ftp").arg("--etcd", "ftp://127.0.0.1:1").refused(64, &["http://"]).await;
    // What may come yet is waited for, aloud; and a signal ends it in good order.
    for (flag, address, words) in [
        ("--etcd", format!("http://{nowhere}"), "waits for etcd"),
        ("--scylla", nowhere.clone(), nowhere.as_str()),
    ] {
        let waiting = Node::new(cluster, "waits").arg(flag, address).start();
        waiting.says(words).await;
        assert_eq!(waiting.is("starting").await["status"], "starting");
        waiting.terminate();
        waiting.ended(0).await;
    }
}

/// A node of another time owns half of the rooms; nobody notices.
async fn a_clock_an_hour_ahead(cluster: &Cluster, work: &Path) {
    let shim = Shim::build(work).unwrap();
    let mut clock = Clock::make(work.join("ahead.clock")).unwrap();
    clock.set(Setting { ahead_ms: 3_600_000, drift_ppm: 0 }).unwrap();
    let mut ahead = Node::new(cluster, "ahead").arg("--roles", "gateway,shard");
    ahead.environment.extend(shim.environment(&clock));
    let ahead = ahead.start();
    ahead.is("ready").await;
    let mut show = cluster.banyan(&["ring", "show", "--json"]);
    show.args(["--etcd", &cluster.etcd.endpoints().join(",")]);
    let begun = Instant::now();
    loop {
        let output = show.output().unwrap();
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let nodes = shown["nodes"].as_array().cloned().unwrap_or_default();
        if nodes.len() == 2 && nodes.iter().all(|node| node["owned"] == 32) && shown["moving"] == 0 {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "{shown}");
        sleep(Duration::from_millis(200)).await;
    }
    let right = cluster.nodes["a"].clients().unwrap();
    let user = sign_up(right, "carol").await.unwrap();
    let mut carol = Connection::open(right, &user.token).await.unwrap();
    for n in 0..16 {
        let room = format!("hour-{n}");
        let made = carol.call("create_room", &json!({ "room": room, "kind": "group", "name": room })).await;
        let made = made.unwrap();
        assert!(made.get("error").is_none(), "{made}");
        let send = json!({ "room": room, "client_msg_id": format!("m{n}"), "text": "when?" });
        let sent = carol.call("send", &send).await.unwrap();
        assert!(sent["send"]["seq"].as_u64().is_some(), "{sent}");
    }
    // A token of a time before it is good there.
    let there = Connection::open(ahead.clients, &user.token).await;
    assert!(there.is_ok(), "{:?}", there.err());
    ahead.terminate();
    ahead.ended(0).await;
    carol.call("ping", &json!({})).await.unwrap();
}
