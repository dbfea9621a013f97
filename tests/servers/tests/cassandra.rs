//! What the handles promise, on real Cassandra.
//!
//! Owns: starting, breaking, proxies. Does not: test Cassandra, or what we do with it.

use banyan_test_servers::cassandra::{Builder, CommitLog};
use banyan_test_servers::proxy::Fault;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Nodes are heavy: one test after the other.
static ALONE: Mutex<()> = Mutex::const_new(());

#[tokio::test]
async fn three_nodes_see_each_other_again_after_a_kill_and_a_freeze() -> anyhow::Result<()> {
    let _alone = ALONE.lock().await;
    let began = Instant::now();
    let mut cluster = Builder::new().nodes(3).proxied(true).start().await?;
    println!("three nodes are ready after {:?}", began.elapsed());
    assert_eq!(cluster.contact_points().len(), 3);
    assert!(cluster.contact_points()[2].starts_with("127.0.1.3:"), "{:?}", cluster.contact_points());

    let began = Instant::now();
    cluster.node(1).kill().await?;
    assert!(!cluster.node(1).is_running() && cluster.node(0).is_running());
    cluster.node(1).restart().await?;
    cluster.node(2).freeze()?;
    cluster.node(2).thaw()?;
    cluster.wait_ready().await?;
    println!("a killed one is back after {:?}", began.elapsed());

    cluster.proxy(0).set(Fault::Refuse);
    let shown = cluster.node(0).address();
    assert!(tokio::net::TcpStream::connect(shown).await.is_err());
    Ok(())
}

#[tokio::test]
async fn a_node_starts_with_the_other_kinds_of_commit_log() -> anyhow::Result<()> {
    let _alone = ALONE.lock().await;
    for commit_log in [CommitLog::Batch, CommitLog::Periodic] {
        let began = Instant::now();
        let address = std::net::Ipv4Addr::new(127, 0, 0, 5);
        let mut cluster = Builder::new().first_address(address).commit_log(commit_log).start().await?;
        assert!(cluster.contact_points()[0].starts_with("127.0.0.5:"), "{:?}", cluster.contact_points());
        println!("{commit_log:?}: ready after {:?}", began.elapsed());
        assert!(cluster.node(0).is_running());
    }
    Ok(())
}
