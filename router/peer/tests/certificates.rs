//! Certificates between nodes, on real connections: who is let in, who is sent away with which words, and what a reload
//! changes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod world;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use banyan_proto::id::UnixMs;
use banyan_proto::link::{LinkId, ToShard, ToShardBatch};
use banyan_router::node_key::Role;
use banyan_router::slot_key::NodeId;
use banyan_router_peer::{Error, Holder, Made, Me, Security, Server, Tls, TlsFiles, Why, make_ca, make_node};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use world::{Gateway, Heard, Owner, gateway_me, options, shard_me};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);

#[expect(clippy::disallowed_methods, reason = "certificates hold for a time of the wall clock")]
fn now() -> UnixMs {
    UnixMs(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64)
}

fn authority(cluster: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    make_ca(directory.path(), cluster, now()).unwrap();
    directory
}

fn files(directory: &Path, made: &Made) -> TlsFiles {
    TlsFiles { ca: directory.join("ca.pem"), cert: made.cert.clone(), key: made.key.clone() }
}

fn node(directory: &Path, cluster: &str, name: &str, roles: &[Role]) -> Arc<Tls> {
    let holder = Holder::Node(NodeId::parse(name).unwrap());
    let made = make_node(directory, cluster, &holder, roles, YEAR, now()).unwrap();
    Tls::load(files(directory, &made)).unwrap()
}

fn tls(directory: &TempDir, name: &str, role: Role) -> Security {
    Security::Tls(node(directory.path(), "test", name, &[role]))
}

fn dials(owner: &Owner, me: Me, security: Security) -> Gateway {
    Gateway::secured(owner.address, shard_me("shard", 7).peer(), me, options(), security)
}

#[tokio::test]
async fn nodes_of_one_cluster_let_each_other_in() {
    let ca = authority("test");
    let owner = Owner::secured(options(), tls(&ca, "shard", Role::Shard)).await;
    let mut gateway = dials(&owner, gateway_me(), tls(&ca, "gw", Role::Gateway));
    let link = gateway.comes_up().await;
    let message = ToShard::UserOnline { user: banyan_proto::id::UserId::parse("u").unwrap() };
    link.try_send(ToShardBatch { link: LinkId(0), messages: vec![message.clone()] }, YEAR).unwrap();
    assert_eq!(owner.takes(1).await[0].1.message, message);
    drop(owner);
    assert_eq!(gateway.next().await, Heard::Down(Why::Reset));
    assert_eq!(gateway.next().await, Heard::Failed(Why::Refused));
}

#[track_caller]
fn certificate(heard: Heard, words: &str) {
    let Heard::Failed(Why::Certificate(said)) = heard else { panic!("{heard:?}") };
    assert!(said.contains(words), "{said}");
}

#[tokio::test]
async fn a_certificate_of_the_wrong_role_node_or_cluster_is_refused_with_words() {
    let (ca, other) = (authority("test"), authority("other"));
    // Both authorities are trusted, so that only the names in the certificates tell.
    let path = |directory: &TempDir| directory.path().join("ca.pem");
    let both = fs::read_to_string(path(&ca)).unwrap() + &fs::read_to_string(path(&other)).unwrap();
    for directory in [&ca, &other] {
        fs::write(path(directory), &both).unwrap();
    }
    let owner = Owner::secured(options(), tls(&ca, "shard", Role::Shard)).await;
    // By the one who is dialled.
    let me = Me { roles: vec![Role::Shard], ..gateway_me() };
    let mut gateway = dials(&owner, me, tls(&ca, "gw", Role::Gateway));
    certificate(gateway.next().await, "does not allow the role shard, only: gateway");
    let mut gateway = dials(&owner, gateway_me(), tls(&ca, "gw2", Role::Gateway));
    certificate(gateway.next().await, "the certificate is for node gw2, shown by node gw");
    let other = node(other.path(), "other", "gw3", &[Role::Gateway]);
    let mut gateway = dials(&owner, gateway_me(), Security::Tls(other));
    certificate(gateway.next().await, "is of the cluster \"other\", not \"test\"");
    // An authority that is not the cluster's: seen by the one who dials first.
    let elsewhere = authority("test");
    let mut gateway = dials(&owner, gateway_me(), tls(&elsewhere, "gw", Role::Gateway));
    certificate(gateway.next().await, "invalid peer certificate");
    // By the one who dials.
    for (name, role, words) in [
        ("gateway", Role::Gateway, "the certificate is for node gateway, shown by node shard"),
        ("shard", Role::Gateway, "does not allow the role shard"),
    ] {
        let ca = authority("test");
        let me = Me { roles: vec![role], ..shard_me(name, 7) };
        let owner = Owner::on("127.0.0.1:0".parse().unwrap(), me, options(), tls(&ca, name, role)).await;
        let mut gateway = dials(&owner, gateway_me(), tls(&ca, "gw", Role::Gateway));
        certificate(gateway.next().await, words);
        assert_eq!(owner.opened.load(Ordering::Relaxed), 0);
    }
    assert_eq!(owner.opened.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn without_a_certificate_nobody_gets_in() {
    let ca = authority("test");
    let owner = Owner::secured(options(), tls(&ca, "shard", Role::Shard)).await;
    // Plain text towards TLS, and TLS towards plain text.
    let mut gateway = dials(&owner, gateway_me(), Security::Plain);
    let heard = gateway.next().await;
    assert!(matches!(heard, Heard::Failed(Why::Protocol(_) | Why::Reset)), "{heard:?}");
    let plain = Owner::new(options()).await;
    let mut gateway = dials(&plain, gateway_me(), tls(&ca, "gw", Role::Gateway));
    let heard = gateway.next().await;
    assert!(matches!(heard, Heard::Failed(Why::Certificate(_) | Why::Reset)), "{heard:?}");
    assert_eq!(owner.opened.load(Ordering::Relaxed) + plain.opened.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_server_with_a_certificate_of_another_does_not_start() {
    let ca = authority("test");
    let security = tls(&ca, "shard", Role::Gateway);
    let accept = Arc::new(world::Nobody);
    let listen = "127.0.0.1:0".parse().unwrap();
    let bound = Server::bind(listen, security, shard_me("shard", 7), options(), accept).await;
    let error = bound.unwrap_err().to_string();
    assert!(error.contains("does not allow the role shard"), "{error}");
}

#[tokio::test]
async fn certificates_are_read_again_without_a_restart() {
    let (old, new) = (authority("test"), authority("test"));
    let shard = |ca: &TempDir| {
        let name = Holder::Node(NodeId::parse("shard").unwrap());
        make_node(ca.path(), "test", &name, &[Role::Shard], YEAR, now()).unwrap()
    };
    let in_use = tempfile::tempdir().unwrap();
    let files = TlsFiles {
        ca: in_use.path().join("ca.pem"),
        cert: in_use.path().join("node.pem"),
        key: in_use.path().join("node.key"),
    };
    let put = |ca: &TempDir, made: &Made| {
        fs::copy(ca.path().join("ca.pem"), &files.ca).unwrap();
        fs::copy(&made.cert, &files.cert).unwrap();
        fs::copy(&made.key, &files.key).unwrap();
    };
    put(&old, &shard(&old));
    let tls_of_shard = Tls::load(files.clone()).unwrap();
    let stop = CancellationToken::new();
    let watching = {
        let (tls, stop) = (Arc::clone(&tls_of_shard), stop.clone());
        tokio::spawn(async move { tls.watch(Duration::from_millis(20), stop).await })
    };
    let owner = Owner::secured(options(), Security::Tls(Arc::clone(&tls_of_shard))).await;
    let mut before = dials(&owner, gateway_me(), tls(&old, "gw", Role::Gateway));
    before.comes_up().await;
    // Half of it is there: nothing changes.
    fs::write(&files.cert, "not a certificate").unwrap();
    assert!(matches!(tls_of_shard.reload(), Err(Error::File { .. })));
    put(&new, &shard(&new));
    let me = Me { incarnation: banyan_proto::id::Incarnation(6), ..gateway_me() };
    let mut after = dials(&owner, me, tls(&new, "gw", Role::Gateway));
    after.comes_up().await;
    assert!(before.heard_nothing().await, "links that are up stay");
    stop.cancel();
    watching.await.unwrap();
}

#[test]
fn what_is_made_is_private_and_never_overwritten() {
    let ca = authority("test");
    let name = Holder::Node(NodeId::parse("n").unwrap());
    let roles = [Role::Gateway, Role::Shard];
    let made = make_node(ca.path(), "test", &name, &roles, YEAR, now()).unwrap();
    let paths: Vec<PathBuf> = [&made.cert, &made.key]
        .map(Clone::clone)
        .into_iter()
        .chain(["ca.pem", "ca.key"].map(|file| ca.path().join(file)))
        .collect();
    let contents: Vec<_> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    for path in &paths {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
    }
    for again in [make_ca(ca.path(), "test", now()), make_node(ca.path(), "test", &name, &roles, YEAR, now())]
    {
        let error = again.unwrap_err().to_string();
        assert!(error.contains("not overwritten"), "{error}");
    }
    assert_eq!(paths.iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>(), contents);
    let loaded = Tls::load(files(ca.path(), &made)).unwrap();
    let left = loaded.expires().unwrap().as_secs() - now().0 / 1_000;
    let year = YEAR.as_secs();
    assert!((year - 60..=year).contains(&left), "it ends in {left} s, not in {year}");
    let identity = loaded.identity();
    assert_eq!(
        (identity.cluster.as_str(), identity.node.as_str(), &identity.roles[..]),
        ("test", "n", &roles[..])
    );

    // The authority of another cluster, a key that is not the authority's, an outdated certificate.
    let other = Holder::Node(NodeId::parse("m").unwrap());
    let error = make_node(ca.path(), "other cluster", &other, &roles, YEAR, now()).unwrap_err().to_string();
    assert!(error.contains("a cluster's name has"), "{error}");
    let elsewhere = authority("test");
    fs::copy(elsewhere.path().join("ca.key"), ca.path().join("ca.key")).unwrap();
    let error = make_node(ca.path(), "test", &other, &roles, YEAR, now()).unwrap_err().to_string();
    assert!(error.contains("does not make certificates of the cluster"), "{error}");
    assert!(!ca.path().join("m.pem").exists() && !ca.path().join("m.key").exists());
    let long_ago = UnixMs(now().0 - 3 * 365 * 24 * 3_600_000);
    let error = make_node(elsewhere.path(), "test", &other, &roles, YEAR, long_ago).unwrap_err().to_string();
    assert!(error.contains("xpired"), "{error}");
}

#[tokio::test]
async fn a_certificate_for_any_node_is_of_its_roles_alone() {
    let ca = authority("test");
    let holder = Holder::Any(NodeId::parse("gateway").unwrap());
    let made = make_node(ca.path(), "test", &holder, &[Role::Gateway], YEAR, now()).unwrap();
    assert_eq!(made.cert, ca.path().join("gateway.pem"));
    let any = Security::Tls(Tls::load(files(ca.path(), &made)).unwrap());
    let owner = Owner::secured(options(), tls(&ca, "shard", Role::Shard)).await;
    let mut gateway = dials(&owner, gateway_me(), any.clone());
    gateway.comes_up().await;
    // A node that says it owns slots may not show it.
    let mut pretender = dials(&owner, shard_me("other", 9), any);
    certificate(pretender.next().await, "does not allow the role shard");
}
