//! What the handles promise, on real etcd of both releases.
//!
//! Owns: starting, breaking, snapshots. Does not: test etcd, or what we do with it.

use banyan_test_servers::etcd::{Builder, Etcd, Release};
use banyan_test_servers::tools;
use std::process::Command;

/// Through the release's own client.
fn ctl(etcd: &Etcd, arguments: &[&str]) -> anyhow::Result<String> {
    let program = tools::installed("etcd/etcdctl")?;
    let mut command = Command::new(program);
    command.arg(format!("--endpoints={}", etcd.endpoints().join(","))).args(["--command-timeout=3s"]);
    let output = command.args(arguments).output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn get(etcd: &Etcd) -> anyhow::Result<String> {
    ctl(etcd, &["get", "--print-value-only", "key"]).map(|value| value.trim().to_owned())
}

#[tokio::test]
async fn one_member_of_each_release_keeps_its_data_and_goes_back_to_a_snapshot() -> anyhow::Result<()> {
    for (release, version) in [(Release::V3_6, "3.6."), (Release::V3_4, "3.4.")] {
        let mut etcd = Builder::new().release(release).start().await?;
        let status = ctl(&etcd, &["endpoint", "status"])?;
        assert!(status.contains(&format!(", {version}")), "{status}");
        ctl(&etcd, &["put", "key", "old"])?;
        let snapshots = tempfile::tempdir()?;
        let file = snapshots.path().join("snapshot");
        etcd.snapshot_save(&file).await?;
        ctl(&etcd, &["put", "key", "new"])?;

        etcd.member(0).kill().await?;
        assert!(get(&etcd).is_err());
        etcd.member(0).restart().await?;
        assert_eq!(get(&etcd)?, "new");

        etcd.member(0).freeze()?;
        assert!(get(&etcd).is_err());
        etcd.member(0).thaw()?;
        etcd.wait_ready().await?;
        assert_eq!(get(&etcd)?, "new");

        etcd.snapshot_restore(&file).await?;
        assert_eq!(get(&etcd)?, "old");
        let log = etcd.member(0).log_path();
        let directory = log.parent().map(std::path::Path::to_owned).unwrap_or_default();
        assert!(directory.is_dir());
        drop(etcd);
        assert!(!directory.exists(), "data is left behind");
    }
    Ok(())
}

#[tokio::test]
async fn three_members_elect_another_leader_and_a_snapshot_makes_three_again() -> anyhow::Result<()> {
    let elsewhere = std::net::Ipv4Addr::new(127, 0, 0, 2);
    let mut etcd = Builder::new().members(3).client_address(elsewhere).start().await?;
    assert!(
        etcd.endpoints().iter().all(|url| url.starts_with("http://127.0.0.2:")),
        "{:?}",
        etcd.endpoints()
    );
    ctl(&etcd, &["put", "key", "old"])?;
    let snapshots = tempfile::tempdir()?;
    let file = snapshots.path().join("snapshot");
    etcd.snapshot_save(&file).await?;
    let leader = etcd.leader().await?;
    etcd.member(leader).kill().await?;
    // Readiness of a survivor takes a leader.
    etcd.member((leader + 1) % 3).wait_ready().await?;
    assert_ne!(etcd.leader().await?, leader);
    ctl(&etcd, &["put", "key", "new"])?;
    etcd.start_all().await?;
    etcd.snapshot_restore(&file).await?;
    assert_eq!(get(&etcd)?, "old");
    Ok(())
}

#[tokio::test]
async fn a_bad_argument_is_an_error_that_shows_the_log() {
    let error = Builder::new().arg("--no-such-flag").start().await.unwrap_err().to_string();
    assert!(error.contains("ended with") && error.contains("no-such-flag"), "{error}");
}
