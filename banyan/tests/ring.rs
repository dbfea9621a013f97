//! The operators' commands as people call them, on a ring in real etcd. Its nodes are runs of the ring's machine whose workers
//! and store are stand-ins; the binary sees no difference.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use banyan_proto::id::SlotId;
use banyan_router::meta::{ClusterId, Founding, Meta};
use banyan_router::node::TargetOutcome;
use banyan_router::slot::SlotCount;
use banyan_router::slot_owner::CasOutcome;
use banyan_router::target::{Member, Target, solve};
use banyan_router_etcd::contract::cluster::{Ground, start, until, until_serving};
use banyan_router_etcd::contract::{entry, node, peer, slot_key};
use banyan_router_etcd::servers::Options;
use banyan_router_etcd::{Coordination, Etcd};
use banyan_test_servers::etcd::{self, Builder, Release};
use etcd_client::Permission;
use serde_json::Value;
use tokio::process::Command;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(60);

fn meta() -> Meta {
    let founding = Founding {
        slots: SlotCount::new(64).unwrap(),
        data_center: "datacenter1".to_owned(),
        keyspace: "banyan".to_owned(),
        replication: 3,
    };
    Meta { cluster: ClusterId(1), founding }
}

struct Cluster {
    server: etcd::Etcd,
    ring: Arc<dyn Coordination>,
}

impl Cluster {
    async fn start() -> Self {
        let server = Builder::new().release(Release::V3_6).start().await.unwrap();
        let options = Options::new(server.endpoints(), "people");
        let ring: Arc<dyn Coordination> = Arc::new(Etcd::connect(options).await.unwrap());
        ring.meta(meta()).await.unwrap();
        Self { server, ring }
    }

    /// Exit code, standard output, standard error.
    async fn banyan(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_banyan"));
        let endpoints = self.server.endpoints().join(",");
        command.args(arguments).args(["--cluster", "people", "--etcd", &endpoints]);
        // The runs go on meanwhile.
        command.env_clear().stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(LIMIT, command.output()).await.expect("the command ends").unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let (code, out, err) = self.banyan(&[arguments, &["--json"]].concat()).await;
        assert_eq!(code, Some(0), "{arguments:?}: {err}");
        serde_json::from_str(&out).unwrap()
    }

    async fn fails(&self, arguments: &[&str], code: i32, words: &str) {
        let (ended, out, err) = self.banyan(arguments).await;
        assert_eq!(ended, Some(code), "{arguments:?}: {out}{err}");
        assert!(err.contains(words), "{arguments:?}: {err}");
    }
}

#[tokio::test]
async fn operators_see_the_ring_and_change_it() {
    let cluster = Cluster::start().await;
    let Cluster { ring, .. } = &cluster;
    cluster.fails(&["node", "drain", "a"], 1, "no node that owns rooms has joined").await;
    let ground = Arc::new(Ground::default());
    let a = start(ring, &ground, &peer("a", 1), entry(1));
    let b = start(ring, &ground, &peer("b", 2), entry(2));
    until_serving(&ground, &[&a, &b], "both own half").await;

    let shown = cluster.json(&["ring", "show"]).await;
    assert_eq!(
        (&shown["moving"], &shown["without_owner"], &shown["spread"]),
        (&0.into(), &0.into(), &0.into())
    );
    assert_eq!(shown["nodes"][0]["owned"], 32);
    let (_, text, _) = cluster.banyan(&["ring", "show", "--map"]).await;
    assert!(text.starts_with("cluster people: 64 slots, target version "), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours where nobody looks: {text}");

    let found = cluster.json(&["ring", "where", "general", "~alice"]).await;
    let slot = found[0]["slot"].as_u64().unwrap().to_string();
    assert_eq!(found[0]["owner"]["node"], found[0]["wanted"]);
    let owner = found[0]["owner"]["node"].as_str().unwrap().to_owned();
    let other = if owner == "a" { "b" } else { "a" };

    let plan = cluster.json(&["ring", "plan", "--join", "c:1"]).await;
    assert_eq!((&plan["moved"], &plan["spread_after"]), (&21.into(), &1.into()));
    let before = ring.read_all().await.unwrap();
    let dry = cluster.json(&["ring", "pin", &slot, "--to", other, "--dry-run"]).await;
    assert_eq!(dry["moved"], 2);
    assert_eq!(
        ring.read_all().await.unwrap().listing.target,
        before.listing.target,
        "nothing is changed by that"
    );

    // It is there when the command returns, also when somebody else gave it, who did not wait.
    cluster.json(&["ring", "pin", &slot, "--to", other, "--no-wait"]).await;
    let again = cluster.json(&["ring", "pin", &slot, "--to", other]).await;
    assert_eq!(again["moved"], 0);
    let found = cluster.json(&["ring", "where", "general"]).await;
    assert_eq!((&found[0]["owner"]["node"], &found[0]["pinned"]), (&other.into(), &true.into()));
    cluster.fails(&["ring", "move", &slot, "--to", &owner], 1, "is pinned to node").await;
    cluster.json(&["ring", "unpin", &slot]).await;
    cluster.json(&["ring", "move", &slot, "--to", &owner]).await;
    let history = cluster.json(&["ring", "history", &slot]).await;
    let owners: Vec<&str> =
        history["etcd"].as_array().unwrap().iter().map(|past| past["owner"].as_str().unwrap()).collect();
    assert_eq!(owners[..3], [&owner, other, &owner]);
    assert_eq!(history["store"], Value::Null);

    let (code, out, err) = cluster.banyan(&["node", "drain", "a"]).await;
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(
        out,
        "node a gives away 32 slots, and gets none\nit may be stopped; `banyan node undrain a` gives it slots again\n"
    );
    // Etcd knows it; the new owner hears of the last ones a moment later.
    until_serving(&ground, &[&b], "the other has them all").await;
    assert_eq!(ground.serving(&a.me), 0);
    let list = cluster.json(&["node", "list"]).await;
    assert_eq!(
        (&list[0]["state"], &list[0]["slots"], &list[1]["slots"]),
        (&"drained".into(), &0.into(), &64.into())
    );
    cluster.fails(&["node", "drain", "b"], 1, "nobody would be left").await;
    cluster.fails(&["node", "drain", "x"], 64, "hint: there are a, b").await;

    // Its next run is drained too.
    a.kill(&ground).await;
    let a = start(ring, &ground, &peer("a", 3), entry(3));
    until(&a, "it is seen", |view| view.nodes.len() == 2 && view.fresh).await;
    let list = cluster.json(&["node", "list"]).await;
    assert_eq!((&list[0]["state"], &list[0]["slots"]), (&"drained".into(), &0.into()));
    assert_eq!(cluster.banyan(&["node", "undrain", "a"]).await.0, Some(0));
    until_serving(&ground, &[&a, &b], "it has its half again").await;
    assert!(ground.dead().is_empty(), "{:?}", ground.dead());

    cluster.fails(&["ring", "recover", "--yes"], 64, "no server of the store is named").await;
    cluster.fails(&["ring", "move", "64", "--to", "a"], 64, "there is no slot 64").await;
    let (code, _, err) = cluster.banyan(&["ring", "show", "--cluster=others"]).await;
    assert_eq!(code, Some(64), "{err}");
}

#[tokio::test]
async fn what_stands_in_the_way_is_said() {
    let mut cluster = Cluster::start().await;
    // A slot of a run that is gone.
    let key = slot_key("gone", 7, 1);
    assert_eq!(cluster.ring.cas_slot(SlotId(5), None, key).await, CasOutcome::Won);
    cluster.ring.freeze_to_recover().await.unwrap();
    let (code, text, _) = cluster.banyan(&["ring", "show"]).await;
    assert_eq!(code, Some(0));
    assert!(text.contains("FROZEN, no slot changes its owner: banyan ring recover is under way"), "{text}");
    assert!(text.contains("gone  away"), "{text}");
    cluster.server.kill_all().await.unwrap();
    cluster.fails(&["node", "list"], 69, "does not answer").await;
}

/// An etcd that is away is waited for; one that refuses this node ends it at once, with a next step.
#[tokio::test]
async fn an_etcd_that_refuses_is_not_waited_for() {
    let server = Builder::new().arg("--bcrypt-cost=4").start().await.unwrap();
    let mut client = etcd_client::Client::connect(server.endpoints(), None).await.unwrap();
    for (name, password) in [("root", "root"), ("stranger", "pass"), ("reader", "pass")] {
        client.user_add(name, password, None).await.unwrap();
    }
    client.user_grant_role("root", "root").await.unwrap();
    client.role_add("reads").await.unwrap();
    client.role_grant_permission("reads", Permission::read("/banyan/").with_prefix()).await.unwrap();
    client.user_grant_role("reader", "reads").await.unwrap();
    // A ring of a node that is away.
    let ring = Etcd::connect(Options::new(server.endpoints(), "banyan")).await.unwrap();
    ring.meta(meta()).await.unwrap();
    let member = |name: &str| Member { node: node(name), weight: 100 };
    let target = solve(&Target::empty(SlotCount::new(64).unwrap()), vec![member("a"), member("b")]);
    assert_eq!(ring.cas_target(None, Arc::new(target)).await, TargetOutcome::Won);
    client.auth_enable().await.unwrap();
    let endpoints = server.endpoints().join(",");
    let dir = tempfile::tempdir().unwrap();
    // The store is away all the time: it is not asked first.
    let data = dir.path().join("data");
    let serve = ["serve", "--scylla=127.0.0.1:9", "--listen=127.0.0.1:0", "--peer-listen=127.0.0.1:0"];
    let serve = [&serve[..], &["--data-dir", data.to_str().unwrap()]].concat();
    let (reads, writes): (&[&str], &[&str]) = (&["ring", "show"], &["node", "drain", "a"]);
    for (user, says, hint) in [
        (Some(("reader", "pass")), "permission denied", "readwrite"),
        (Some(("root", "wrong")), "refuses the login", "cluster.etcd_password"),
        (None, "refuses the login", "cluster.etcd_user"),
        (Some(("stranger", "pass")), "permission denied", "grant-permission"),
    ] {
        // A node that may read founds nothing, and waits for its store.
        let commands = if user == Some(("reader", "pass")) { vec![writes] } else { vec![&serve[..], reads] };
        for what in commands {
            let mut command = Command::new(env!("CARGO_BIN_EXE_banyan"));
            command.args(what).args(["--etcd", &endpoints]).env_clear().stdin(Stdio::null());
            command.kill_on_drop(true);
            command.env("BANYAN_SERVER__OPS_LISTEN", "127.0.0.1:0");
            if let Some((name, password)) = user {
                command.env("BANYAN_CLUSTER__ETCD_USER", name).env("BANYAN_CLUSTER__ETCD_PASSWORD", password);
            }
            let output = timeout(LIMIT, command.output()).await.expect("it does not wait").unwrap();
            let words = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(64), "{what:?}: {words}");
            assert!(
                words.contains(says) && words.contains("hint: ") && words.contains(hint),
                "{what:?}: {words}"
            );
        }
    }
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_banyan"));
    command.args(&serve).args(["--etcd", "http://127.0.0.1:9"]).env_clear();
    command.env("BANYAN_SERVER__OPS_LISTEN", "127.0.0.1:0");
    let mut waiting = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let log = BufReader::new(waiting.stdout.take().unwrap());
    let said =
        spawn_blocking(move || log.lines().map_while(Result::ok).any(|line| line.contains("waits for etcd")));
    assert!(timeout(LIMIT, said).await.expect("it says so").unwrap(), "it says that it waits");
    assert!(waiting.try_wait().unwrap().is_none(), "and waits");
    waiting.kill().unwrap();
    waiting.wait().unwrap();
}
