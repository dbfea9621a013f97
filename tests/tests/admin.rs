//! The admin page of a real cluster in a real browser, while a node joins and leaves: `web/e2e/admin-cluster.mjs`.
//!
//! Owns: a cluster of two nodes and a third one on call. Does not: know the page; the script says on its output what failed.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and its output is kept on failure"
)]

use banyan_tests::cluster::{Cluster, NodePlan, Plan, nodes};
use banyan_tests::pages;
use banyan_tests::server::binary;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

const TOKEN: &str = "a-ring-for-the-eyes-of-operators";
/// A healthy run takes half a minute.
const LIMIT: Duration = Duration::from_secs(240);

/// Where the picture for the documentation is left, beside the test binaries' directory.
fn screenshot() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("admin.png")
}

fn ring(cluster: &Cluster, arguments: &[&str]) {
    let etcd = cluster.etcd.endpoints().join(",");
    let output = cluster.banyan(arguments).args(["--etcd", &etcd]).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn slots_move_on_the_page_while_nodes_come_and_go() {
    let work = tempfile::Builder::new().prefix("banyan-admin-").tempdir().unwrap();
    let mut plan = Plan::small(binary().unwrap(), work.path().to_owned(), nodes(2));
    plan.slots = 4_096;
    plan.environment.push(("BANYAN_SERVER__ADMIN_TOKEN".to_owned(), TOKEN.to_owned()));
    let mut cluster = Cluster::start(plan, |line| println!("{line}")).await.unwrap();
    // Some that stay where they are.
    ring(&cluster, &["ring", "pin", "40-43", "1200", "--to", "b"]);

    let base = format!("http://{}", cluster.node("a").unwrap().ops());
    let mut command = pages::script("admin-cluster", &base, &work);
    command.arg(screenshot()).env("ADMIN_TOKEN", TOKEN);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut answers = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let obey = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            println!("{line}");
            match line.trim() {
                // It waits until the node is ready, and the page is to see it come.
                "ADD-NODE" => {
                    answers.write_all(b"done\n").await.unwrap();
                    cluster.add(NodePlan::new("c", "gateway,shard")).await.unwrap();
                }
                "END-NODE" => {
                    answers.write_all(b"done\n").await.unwrap();
                    cluster.node("c").unwrap().process.stop().await.unwrap();
                }
                _ => {}
            }
        }
        child.wait().await.unwrap()
    };
    let ended = tokio::time::timeout(LIMIT, obey).await;
    if !ended.is_ok_and(|status| status.success()) {
        pages::fail("admin-cluster", work);
    }
    println!("the picture is {}", screenshot().display());
    assert!(screenshot().is_file());
}
