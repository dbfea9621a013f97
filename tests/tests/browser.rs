//! The page in a real browser against the real server: `web/e2e/*.mjs`, each with a server of its own.
//!
//! Owns: starting servers, killing and restarting one for the script that asks for it.
//! Does not: know the page; the scripts say on their output what failed.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and its output is kept on failure"
)]

use banyan_test_servers::Ports;
use banyan_tests::pages;
use banyan_tests::server::{Server, binary};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

/// How long one script may take; a healthy one takes a quarter of a minute.
const LIMIT: Duration = Duration::from_secs(180);

const ADMIN_TOKEN: &str = "a-ring-for-the-eyes-of-operators";

/// A directory for one script: data, log, and pictures of the pages when it fails.
struct Stage {
    work: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        Self { work: tempfile::Builder::new().prefix("banyan-browser-").tempdir().unwrap() }
    }

    async fn server(&self, listen: &str) -> Server {
        let data = self.work.path().join("data");
        let log = self.work.path().join("server.log");
        let with_admin = |command: &mut std::process::Command| {
            command.env("BANYAN_SERVER__ADMIN_TOKEN", ADMIN_TOKEN);
        };
        Server::start_at(listen, &binary().unwrap(), &data, &log, with_admin).await.unwrap()
    }

    fn script(&self, name: &str, address: SocketAddr) -> Command {
        pages::script(name, &format!("http://{address}"), &self.work)
    }

    /// Judges how a script ended; on failure everything is kept.
    fn judge(self, name: &str, succeeded: bool) {
        if !succeeded {
            pages::fail(name, self.work);
        }
    }
}

async fn end(child: &mut Child) -> bool {
    tokio::time::timeout(LIMIT, child.wait()).await.is_ok_and(|status| status.unwrap().success())
}

/// Where the picture for the README is left, beside the test binaries' directory.
fn screenshot() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("two-pages.png")
}

#[tokio::test]
async fn two_pages_talk() {
    let stage = Stage::new();
    let server = stage.server("127.0.0.1:0").await;
    let mut command = stage.script("two-pages", server.addresses.clients);
    let mut child = command.arg(screenshot()).stdin(Stdio::null()).spawn().unwrap();
    let succeeded = end(&mut child).await;
    println!("the picture is {}", screenshot().display());
    stage.judge("two-pages", succeeded && screenshot().is_file());
}

#[tokio::test]
async fn history_comes_on_scroll() {
    let stage = Stage::new();
    let server = stage.server("127.0.0.1:0").await;
    let mut child = stage.script("scroll", server.addresses.clients).stdin(Stdio::null()).spawn().unwrap();
    let succeeded = end(&mut child).await;
    stage.judge("scroll", succeeded);
}

#[tokio::test]
async fn operators_see_the_ring() {
    let stage = Stage::new();
    let server = stage.server("127.0.0.1:0").await;
    let mut command = stage.script("admin", server.addresses.ops);
    let mut child = command.env("ADMIN_TOKEN", ADMIN_TOKEN).stdin(Stdio::null()).spawn().unwrap();
    let succeeded = end(&mut child).await;
    stage.judge("admin", succeeded);
}

#[tokio::test]
async fn a_page_outlives_its_server() {
    let stage = Stage::new();
    // It must get the same port again.
    let ports = Ports::free(1).unwrap();
    let mut server = Some(stage.server(&format!("127.0.0.1:{}", ports.at(0))).await);
    let address = server.as_ref().unwrap().addresses.clients;
    let mut command = stage.script("restart", address);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut answers = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let obey = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            println!("{line}");
            match line.trim() {
                "KILL-NOW" => {
                    server.take().unwrap().kill().unwrap();
                }
                "START-NOW" => server = Some(stage.server(&address.to_string()).await),
                _ => continue,
            }
            answers.write_all(b"done\n").await.unwrap();
        }
    };
    let in_time = tokio::time::timeout(LIMIT, obey).await.is_ok();
    let succeeded = in_time && end(&mut child).await;
    stage.judge("restart", succeeded);
}
