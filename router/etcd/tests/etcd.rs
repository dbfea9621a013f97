//! The ring on real etcd: the contract on each release that we support, and what only real servers do.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use banyan_proto::id::{Incarnation, SlotId};
use banyan_router::SlotCount;
use banyan_router::meta::{ClusterId, Founding, Meta};
use banyan_router::node::{KeptAlive, Standing};
use banyan_router::slot_owner::CasOutcome;
use banyan_router_etcd::contract::cluster::{Ground, start, until, until_serving};
use banyan_router_etcd::contract::{self, World, entry, node, peer, slot_key};
use banyan_router_etcd::coordination::{Error, Event, Joined};
use banyan_router_etcd::servers::{Options, Tls, User};
use banyan_router_etcd::{Coordination, Etcd, Refusal};
use banyan_test_servers::etcd::{self, Builder, Release};
use banyan_test_servers::proxy::{Fault, FaultProxy};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

const LIMIT: Duration = Duration::from_secs(30);

fn proxied(proxies: &[FaultProxy]) -> Vec<String> {
    proxies.iter().map(|proxy| format!("http://{}", proxy.address())).collect()
}

/// With more patience than a node has: the suites expect to be done, however busy the machine's disk is.
async fn connect(endpoints: &[String], cluster: &str) -> Arc<dyn Coordination> {
    let options = Options::new(endpoints.to_vec(), cluster);
    Arc::new(Etcd::connect(Options { request_timeout: Duration::from_secs(5), ..options }).await.unwrap())
}

async fn raw(endpoints: &[String]) -> etcd_client::Client {
    etcd_client::Client::connect(endpoints, None).await.unwrap()
}

async fn next(events: &mut mpsc::Receiver<Event>) -> Event {
    timeout(LIMIT, events.recv()).await.expect("the watch shows it").expect("the watch goes on")
}

// ---------------------------------------------------------------- the contract

#[derive(Debug)]
struct Real {
    server: etcd::Etcd,
    proxy: FaultProxy,
}

impl Real {
    async fn start(release: Release) -> Self {
        let server = Builder::new().release(release).start().await.unwrap();
        let address = server.endpoints()[0].strip_prefix("http://").unwrap().parse().unwrap();
        Self { proxy: FaultProxy::start(address).await.unwrap(), server }
    }
}

impl World for Real {
    fn ring(&self, cluster: &str) -> BoxFuture<'_, Arc<dyn Coordination>> {
        let cluster = cluster.to_owned();
        async move { connect(&[format!("http://{}", self.proxy.address())], &cluster).await }.boxed()
    }

    fn direct(&self, cluster: &str) -> BoxFuture<'_, Arc<dyn Coordination>> {
        let cluster = cluster.to_owned();
        async move { connect(&self.server.endpoints(), &cluster).await }.boxed()
    }

    fn cut(&self, cut: bool) -> BoxFuture<'_, ()> {
        self.proxy.set(if cut { Fault::Cut } else { Fault::Pass });
        std::future::ready(()).boxed()
    }

    fn break_connections(&self) -> BoxFuture<'_, ()> {
        self.proxy.reset_all();
        std::future::ready(()).boxed()
    }

    fn compact(&self) -> BoxFuture<'_, ()> {
        async move {
            let mut client = raw(&self.server.endpoints()).await;
            let revision = client.get("x", None).await.unwrap().header().unwrap().revision();
            client.compact(revision, None).await.unwrap();
        }
        .boxed()
    }

    fn put(&self, key: String, value: Vec<u8>) -> BoxFuture<'_, ()> {
        async move {
            raw(&self.server.endpoints()).await.put(key, value, None).await.unwrap();
        }
        .boxed()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_3_6_keeps_the_contract() {
    contract::run(&Real::start(Release::V3_6).await, |check| println!("{check}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_3_4_keeps_the_contract() {
    contract::run(&Real::start(Release::V3_4).await, |check| println!("{check}")).await;
}

// ---------------------------------------------------------------- several servers

/// Swaps a slot until it is won: how long that took.
async fn swap_until_won(ring: &Arc<dyn Coordination>, slot: SlotId, from: u64) -> Duration {
    let began = Instant::now();
    let mut expect = slot_key("a", 1, from);
    let new = slot_key("a", 1, from + 1);
    loop {
        match ring.cas_slot(slot, Some(expect.clone()), new.clone()).await {
            CasOutcome::Won => return began.elapsed(),
            // An earlier try of unknown outcome.
            CasOutcome::Lost(Some(current)) if current == new => return began.elapsed(),
            CasOutcome::Lost(Some(current)) => expect = current,
            CasOutcome::Lost(None) => panic!("the slot is gone"),
            CasOutcome::Unknown => sleep(Duration::from_millis(50)).await,
        }
        assert!(began.elapsed() < LIMIT, "a quorum answers");
    }
}

/// A lost server, one after the other: dead, then frozen. Watch, lease and transactions go on with the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_server_is_one_of_three() {
    let mut servers = Builder::new().members(3).start().await.unwrap();
    let endpoints = servers.endpoints();
    let ring = connect(&endpoints, "three").await;
    let other = connect(&endpoints[1..], "three").await;
    let slot = SlotId(0);
    assert_eq!(ring.cas_slot(slot, None, slot_key("a", 1, 1)).await, CasOutcome::Won);
    let lease = ring.grant(Duration::from_secs(3)).await.unwrap();
    assert_eq!(ring.join(lease, node("a"), entry(1)).await, Joined::Done);
    let keeper = Arc::clone(&ring);
    let kept = tokio::spawn(async move {
        loop {
            assert_ne!(keeper.keep_alive(lease).await, KeptAlive::LeaseGone, "the lease ran out");
            sleep(Duration::from_millis(500)).await;
        }
    });
    let mut events = ring.watch(64);
    assert!(matches!(next(&mut events).await, Event::Listed(_)));
    let mut epoch = 1;
    for (member, frozen) in [(0, false), (1, true), (2, false)] {
        match frozen {
            true => servers.member(member).freeze().unwrap(),
            false => servers.member(member).kill().await.unwrap(),
        }
        let took = swap_until_won(&ring, slot, epoch).await;
        println!("member {member} {}: the next swap after {took:?}", if frozen { "frozen" } else { "dead" });
        epoch += 1;
        let began = Instant::now();
        loop {
            match next(&mut events).await {
                Event::Watched(banyan_router::node::Watched::Slot { key: Some(key), .. }) => {
                    assert_eq!(key.epoch.0, epoch, "nothing twice, nothing left out");
                    break;
                }
                // An election may take longer than a watch has patience for: then all is listed.
                Event::Gone => {}
                Event::Listed(listing) => {
                    if listing.slots[0].1.epoch.0 == epoch {
                        break;
                    }
                }
                other @ Event::Watched(_) => panic!("{other:?}"),
            }
        }
        println!("  the watch shows it {:?} later", began.elapsed());
        match frozen {
            true => servers.member(member).thaw().unwrap(),
            false => servers.member(member).launch().unwrap(),
        }
        servers.wait_ready().await.unwrap();
    }
    assert_eq!(other.read_node(Incarnation(1)).await, Ok(false), "its key was there all the time");
    assert!(!kept.is_finished(), "the lease was kept alive");
    kept.abort();
}

/// Nobody listens at some addresses: those that do are enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_where_nobody_listens_are_passed_over() {
    let server = Builder::new().start().await.unwrap();
    let nobody = "http://127.0.0.1:9".to_owned();
    let endpoints = vec![nobody.clone(), nobody.clone(), server.endpoints()[0].clone()];
    let ring = connect(&endpoints, "addresses").await;
    assert_eq!(ring.cas_slot(SlotId(0), None, slot_key("a", 1, 1)).await, CasOutcome::Won);
    let error = Etcd::connect(Options::new(vec![nobody], "addresses")).await.unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
    for (bad, says) in [("127.0.0.1:2379", "http://HOST:PORT"), ("http://a/b", "http://HOST:PORT")] {
        let error = Etcd::connect(Options::new(vec![bad.to_owned()], "addresses")).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    let error = Etcd::connect(Options::new(Vec::new(), "addresses")).await.unwrap_err();
    assert!(matches!(error, Error::NoServers), "{error}");
    let error = Etcd::connect(Options::new(server.endpoints(), "a/b")).await.unwrap_err();
    assert!(matches!(error, Error::ClusterName(_)), "{error}");
}

// ---------------------------------------------------------------- restored

/// The same revisions with another history: a watch that resumed by number alone would be wrong for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_etcd_is_listed_anew() {
    let mut server = Builder::new().start().await.unwrap();
    let address: SocketAddr = server.endpoints()[0].strip_prefix("http://").unwrap().parse().unwrap();
    let proxies = [FaultProxy::start(address).await.unwrap()];
    let ring = connect(&proxied(&proxies), "restored").await;
    let slot = SlotId(0);
    assert_eq!(ring.cas_slot(slot, None, slot_key("a", 1, 1)).await, CasOutcome::Won);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("snapshot");
    server.snapshot_save(&file).await.unwrap();
    let mut events = ring.watch(64);
    assert!(matches!(next(&mut events).await, Event::Listed(_)));
    for epoch in 1..5 {
        swap_until_won(&ring, slot, epoch).await;
        next(&mut events).await;
    }
    proxies[0].set(Fault::Refuse);
    proxies[0].reset_all();
    server.snapshot_restore(&file).await.unwrap();
    // Well above the revision that was watched last.
    let direct = connect(&server.endpoints(), "restored").await;
    for other in 1..30 {
        let won = direct.cas_slot(SlotId(other), None, slot_key("b", 2, 1)).await;
        assert_eq!(won, CasOutcome::Won);
    }
    proxies[0].set(Fault::Pass);
    loop {
        match next(&mut events).await {
            Event::Gone => {}
            Event::Listed(listing) => {
                assert_eq!(listing.slots.len(), 30);
                let (_, key) = listing.slots.iter().find(|(at, _)| *at == slot).unwrap();
                assert_eq!(*key, slot_key("a", 1, 1), "what it was set back to");
                break;
            }
            other @ Event::Watched(_) => panic!("another history's change: {other:?}"),
        }
    }
}

/// Runs on real etcd: it goes away under them, and comes back; then it is set back, which they notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_serve_on_without_etcd_and_freeze_when_it_was_set_back() {
    let mut server = Builder::new().start().await.unwrap();
    let ring = connect(&server.endpoints(), "away").await;
    let ground = Arc::new(Ground::default());
    let a = start(&ring, &ground, &peer("a", 1), entry(1));
    until_serving(&ground, &[&a], "the first owns all").await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("snapshot");
    server.snapshot_save(&file).await.unwrap();

    let b = start(&ring, &ground, &peer("b", 2), entry(2));
    until_serving(&ground, &[&a, &b], "the second gets its half").await;
    server.kill_all().await.unwrap();
    until(&a, "it says that etcd is away", |view| view.standing == Standing::Degraded && !view.fresh).await;
    until(&b, "so does the other", |view| view.standing == Standing::Degraded).await;
    sleep(Duration::from_secs(5)).await;
    until_serving(&ground, &[&a, &b], "both serve on, for longer than a lease").await;
    server.start_all().await.unwrap();
    until(&a, "it is up again", |view| view.standing == Standing::Up && view.fresh).await;
    until(&b, "so is the other", |view| view.standing == Standing::Up).await;
    until_serving(&ground, &[&a, &b], "nothing has moved").await;

    server.snapshot_restore(&file).await.unwrap();
    until(&a, "it notices that etcd was set back", |view| view.standing == Standing::Frozen).await;
    assert!(!ground.frozen().is_empty());
    until(&a, "the key is there for all to see", |view| view.frozen).await;
    let all = ring.read_all().await.unwrap();
    assert!(all.frozen.is_some_and(|why| why.contains("banyan ring recover")));
}

// ---------------------------------------------------------------- who may

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_their_rights() {
    // Passwords are checked at the least cost: on a busy machine the usual one takes seconds.
    let mut server = Builder::new().arg("--bcrypt-cost=4").start().await.unwrap();
    let mut client = raw(&server.endpoints()).await;
    for (name, permission) in [
        ("ring", etcd_client::Permission::read_write("/banyan/mine/").with_prefix()),
        ("other", etcd_client::Permission::read_write("/banyan/other/").with_prefix()),
        ("one", etcd_client::Permission::read_write("/banyan/mine/")),
        ("reader", etcd_client::Permission::read("/banyan/mine/").with_prefix()),
    ] {
        client.user_add(name, "pass", None).await.unwrap();
        client.role_add(name).await.unwrap();
        client.role_grant_permission(name, permission).await.unwrap();
        client.user_grant_role(name, name).await.unwrap();
    }
    client.user_add("root", "root", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
    let as_user = |name: &str, password: &str| Options {
        user: Some(User { name: name.to_owned(), password: password.to_owned() }),
        ..Options::new(server.endpoints(), "mine")
    };
    let ring: Arc<dyn Coordination> = Arc::new(Etcd::connect(as_user("ring", "pass")).await.unwrap());
    assert_eq!(ring.cas_slot(SlotId(0), None, slot_key("a", 1, 1)).await, CasOutcome::Won);
    let lease = ring.grant(LIMIT).await.unwrap();
    assert_eq!(ring.join(lease, node("a"), entry(1)).await, Joined::Done);
    assert_eq!(ring.keep_alive(lease).await, KeptAlive::Done);
    let mut events = ring.watch(8);
    assert!(matches!(next(&mut events).await, Event::Listed(_)));
    let beside_one_that_is_away = |options: Options| {
        let endpoints = [vec!["http://127.0.0.1:9".to_owned()], options.endpoints].concat();
        Options { endpoints, ..options }
    };
    for (options, wants, says) in [
        (as_user("ring", "word"), Refusal::Login, "authentication failed"),
        (as_user("nobody", "pass"), Refusal::Login, "authentication failed"),
        (as_user("other", "pass"), Refusal::Permission, "permission denied"),
        (as_user("one", "pass"), Refusal::Permission, "permission denied"),
        (Options::new(server.endpoints(), "mine"), Refusal::Login, "user name is empty"),
        (beside_one_that_is_away(as_user("ring", "word")), Refusal::Login, "authentication failed"),
    ] {
        assert!(!format!("{options:?}").contains("pass\""), "passwords are not shown");
        refused(options, wants, says).await;
    }
    // Who may look but not write cannot be a node, though the cluster is there already.
    let founding = || Founding {
        slots: SlotCount::new(64).unwrap(),
        data_center: "d".to_owned(),
        keyspace: "k".to_owned(),
        replication: 1,
    };
    ring.meta(Meta { cluster: ClusterId(1), founding: founding() }).await.unwrap();
    let reader = Etcd::connect(as_user("reader", "pass")).await.unwrap();
    assert!(reader.read_all().await.unwrap().meta.is_some());
    let error = reader.meta(Meta { cluster: ClusterId(1), founding: founding() }).await.unwrap_err();
    assert!(matches!(error, Error::Refused { what: Refusal::Permission, .. }), "{error}");
    // A restarted server has forgotten who we are: it is told again, and the watch goes on.
    server.kill_all().await.unwrap();
    server.start_all().await.unwrap();
    swap_until_won(&ring, SlotId(0), 1).await;
    while next(&mut events).await == Event::Gone {}
}

/// Nobody waits for what will not come.
async fn refused(options: Options, wants: Refusal, says: &str) {
    let error = Etcd::connect(options).await.expect_err(says);
    assert!(matches!(&error, Error::Refused { what, .. } if *what == wants), "{error:?}");
    let words = error.to_string();
    assert!(words.contains(says) && words.contains("127.0.0.1"), "{words}");
}

/// A server that takes longer to check a password than a request may take says no all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_check_of_a_password_is_heard() {
    let server = Builder::new().arg("--bcrypt-cost=12").start().await.unwrap();
    let mut client = raw(&server.endpoints()).await;
    client.user_add("root", "root", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
    let options = |password: &str| Options {
        user: Some(User { name: "root".to_owned(), password: password.to_owned() }),
        request_timeout: Duration::from_millis(20),
        ..Options::new(server.endpoints(), "slow")
    };
    refused(options("wrong"), Refusal::Login, "authentication failed").await;
    Etcd::connect(options("root")).await.unwrap();
}

/// A CA, and what it has signed, as files.
struct Certificates {
    dir: tempfile::TempDir,
}

impl Certificates {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| fs::write(dir.path().join(name), text).unwrap();
        for ca_name in ["ca", "other-ca"] {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.distinguished_name.push(rcgen::DnType::CommonName, ca_name);
            let certificate = params.self_signed(&key).unwrap();
            write(&format!("{ca_name}.pem"), certificate.pem());
            let issuer = rcgen::Issuer::new(params, key);
            let leaf_key = rcgen::KeyPair::generate().unwrap();
            let mut leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
            leaf.distinguished_name.push(rcgen::DnType::CommonName, "banyan");
            leaf.extended_key_usages =
                vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
            let signed = leaf.signed_by(&leaf_key, &issuer).unwrap();
            write(&format!("{ca_name}-leaf.pem"), signed.pem());
            write(&format!("{ca_name}-leaf.key"), leaf_key.serialize_pem());
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        Path::new(self.dir.path()).join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_both_ways() {
    let files = Certificates::new();
    let tls = etcd::Tls {
        ca: files.path("ca.pem"),
        cert: files.path("ca-leaf.pem"),
        key: files.path("ca-leaf.key"),
        client_certificates: true,
    };
    let server = Builder::new().tls(tls).start().await.unwrap();
    let with = |ca: &str, leaf: Option<&str>| Options {
        tls: Some(Tls {
            ca: files.read(ca),
            identity: leaf
                .map(|leaf| (files.read(&format!("{leaf}.pem")), files.read(&format!("{leaf}.key")))),
            domain: None,
        }),
        ..Options::new(server.endpoints(), "tls")
    };
    let ring = Etcd::connect(with("ca.pem", Some("ca-leaf"))).await.unwrap();
    assert_eq!(ring.cas_slot(SlotId(0), None, slot_key("a", 1, 1)).await, CasOutcome::Won);
    let plain: Vec<String> = server.endpoints().iter().map(|url| url.replacen("https", "http", 1)).collect();
    let named = |domain: &str| {
        let options = with("ca.pem", Some("ca-leaf"));
        Options { tls: options.tls.map(|tls| Tls { domain: Some(domain.to_owned()), ..tls }), ..options }
    };
    let garbage = |options: Options| Options {
        tls: options.tls.map(|tls| Tls { identity: Some((b"no PEM".to_vec(), b"neither".to_vec())), ..tls }),
        ..options
    };
    for (options, wants, says) in [
        (with("other-ca.pem", Some("ca-leaf")), Refusal::Certificate, "UnknownIssuer"),
        (Options::new(server.endpoints(), "tls"), Refusal::Certificate, "UnknownIssuer"),
        (named("elsewhere"), Refusal::Certificate, "not valid for name"),
        (with("ca.pem", Some("other-ca-leaf")), Refusal::Certificate, "received fatal alert"),
        (with("ca.pem", None), Refusal::Certificate, "received fatal alert"),
        (garbage(with("ca.pem", None)), Refusal::Certificate, "127.0.0.1"),
        (Options { endpoints: plain, ..with("ca.pem", Some("ca-leaf")) }, Refusal::Options, "HTTPS"),
    ] {
        refused(options, wants, says).await;
    }
}
