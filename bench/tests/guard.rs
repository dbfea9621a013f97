//! A guarded process ends with the one that guards it, and not before.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn stops_the_process_when_the_pipe_ends() {
    let mut guarded = Command::new("sleep").arg("60").spawn().unwrap();
    let mut guard = Command::new(env!("CARGO_BIN_EXE_banyan-bench"))
        .args(["guard", &guarded.id().to_string()])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(guarded.try_wait().unwrap().is_none() && guard.try_wait().unwrap().is_none());
    drop(guard.stdin.take());
    assert!(guard.wait().unwrap().success());
    assert!(!guarded.wait().unwrap().success(), "ended by a signal");
}
