//! Servers end with the process that started them, also when it is killed.
//!
//! Owns: a parent that is this very test in another process. Does not: need a real server; a shell will do.
#![cfg(target_os = "linux")] // other systems have no parent-death signal: children end with their handles

use anyhow::Context;
use banyan_test_servers::process::{Process, Recipe};
use rustix::process::{Pid, test_kill_process};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Set for the parent.
const PARENT: &str = "TEST_OF_A_PARENT";

#[tokio::test]
async fn a_child_dies_with_a_killed_parent() -> anyhow::Result<()> {
    if std::env::var_os(PARENT).is_some() {
        return parent().await;
    }
    let mut me = Command::new(std::env::current_exe()?);
    me.args(["--exact", "a_child_dies_with_a_killed_parent", "--nocapture"]).env(PARENT, "1");
    let mut parent = me.stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(parent.stdout.take().context("no output")?).lines();
    let ids = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("child ").map(str::to_owned));
    let child = Pid::from_raw(ids.context("the parent named no child")?.trim().parse()?).context("pid 0")?;
    assert!(test_kill_process(child).is_ok(), "the child does not live");
    parent.kill()?;
    parent.wait()?;
    for _ in 0..500 {
        if test_kill_process(child).is_err() || is_zombie(child) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("the child outlives its parent")
}

/// Where nobody waits for orphans they stay as zombies.
fn is_zombie(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}

async fn parent() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    // Asked for by a thread that ends: the child must not end with it.
    let place = directory.path().to_owned();
    let process = std::thread::spawn(move || {
        let process = Process::start(Recipe {
            name: "sleep".to_owned(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), "exec sleep 1000".into()],
            environment: Vec::new(),
            directory: place,
        });
        // By now the child has asked to be told of its parent's end.
        std::thread::sleep(Duration::from_millis(500));
        process
    });
    let mut process = process.join().ok().context("the thread panicked")??;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(process.is_running(), "the child ended with the thread that asked for it");
    writeln!(std::io::stdout(), "child {}", process.id().context("no id")?)?;
    tokio::time::sleep(Duration::from_secs(60)).await;
    Ok(())
}
