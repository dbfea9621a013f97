//! The server under test: the release binary as a child process, on a data directory of its own.
//!
//! Always holds: its configuration is the default but for [`CONFIG`], which is printed with every figure; it is bound
//! to its processors before it starts; it is stopped by SIGTERM, or killed if that takes longer than its own deadline.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tempfile::TempDir;

use crate::clock::now_ns;
use crate::control::User;
use crate::cpus::Cpus;
use crate::guard::Guard;
use crate::http::{self, Metrics};
use crate::process::{CpuTime, rss_anon};

/// All that differs from the defaults: one bench user sends as fast as thousands of people.
pub(crate) const CONFIG: &str = "[limits]\nsends_per_s = 1000000\nsends_burst = 1000000\n";

/// A server that is not ready, or not gone, after so long is not coming.
const START: Duration = Duration::from_secs(60);
/// Above the server's own drain deadline of 20 s.
const STOP: Duration = Duration::from_secs(30);
/// The user ids that tokens are made for begin so.
const USER_PREFIX: &str = "bench-";

#[derive(Debug)]
pub(crate) struct Server {
    binary: PathBuf,
    cpus: Cpus,
    folder: TempDir,
    child: Child,
    guard: Guard,
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    pub(crate) ops: SocketAddr,
    starts: u32,
}

impl Server {
    /// Starts it on an empty data directory below `parent`.
    pub(crate) fn start(binary: &Path, cpus: &Cpus, parent: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let folder = tempfile::Builder::new().prefix("run-").tempdir_in(parent)?;
        fs::write(folder.path().join("banyan.toml"), CONFIG)?;
        let (child, guard, address, ops) = launch(binary, cpus, folder.path(), 1)?;
        Ok(Self {
            binary: binary.to_owned(),
            cpus: cpus.clone(),
            folder,
            child,
            guard,
            address,
            ops,
            starts: 1,
        })
    }

    /// Stops it and starts it again on the same data.
    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        self.stop()?;
        self.starts += 1;
        (self.child, self.guard, self.address, self.ops) =
            launch(&self.binary, &self.cpus, self.folder.path(), self.starts)?;
        Ok(())
    }

    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        let pid =
            i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("the server has no pid")?;
        kill_process(pid, Signal::TERM).context("stopping the server")?;
        let deadline = now_ns() + ns(STOP);
        while now_ns() < deadline {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "the server stopped with {status}; its log:\n{}", self.log_end());
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child.kill()?;
        self.child.wait()?;
        bail!("the server did not stop within {STOP:?}; its log:\n{}", self.log_end())
    }

    /// Fails if the server has ended by itself.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("the server ended with {status}; its log:\n{}", self.log_end()),
            None => Ok(()),
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn cpu(&self) -> anyhow::Result<CpuTime> {
        CpuTime::of(self.child.id()).context("the server's CPU time")
    }

    pub(crate) fn rss_anon(&self) -> anyhow::Result<u64> {
        rss_anon(self.child.id()).context("the server's memory")
    }

    pub(crate) fn metrics(&self) -> anyhow::Result<Metrics> {
        Metrics::of(self.ops).context("the server's metrics")
    }

    /// Tokens for so many users, who begin to exist when they first authenticate. Needs the keys of a server that has
    /// been started once on this data directory.
    pub(crate) fn tokens(&self, count: usize) -> anyhow::Result<Vec<User>> {
        tokens(&self.binary, &self.folder.path().join("data"), count)
    }

    fn log_end(&self) -> String {
        let log = fs::read_to_string(log_path(self.folder.path(), self.starts)).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// Waits until memory and CPU stand still: less than 64 KiB or 0.2 % and 2 % of a processor over two seconds.
    /// Says whether they did within the time.
    pub(crate) fn settle(&mut self, within: Duration) -> anyhow::Result<bool> {
        const LOOK: Duration = Duration::from_millis(500);
        const LOOKS: u32 = 4;
        let deadline = now_ns() + ns(within);
        let (mut quiet, mut memory, mut cpu) = (0, self.rss_anon()?, self.cpu()?);
        while now_ns() < deadline {
            std::thread::sleep(LOOK);
            self.check()?;
            let (next_memory, next_cpu) = (self.rss_anon()?, self.cpu()?);
            let still = next_memory.abs_diff(memory) <= (memory / 500).max(64 << 10)
                && next_cpu.since(&cpu) < ns(LOOK) / 50;
            quiet = if still { quiet + 1 } else { 0 };
            if quiet == LOOKS {
                return Ok(true);
            }
            (memory, cpu) = (next_memory, next_cpu);
        }
        Ok(false)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Only when a run failed: after a good one it is stopped already.
        if let Ok(None) = self.child.try_wait() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn log_path(folder: &Path, start: u32) -> PathBuf {
    folder.join(format!("server-{start}.log"))
}

fn launch(
    binary: &Path,
    cpus: &Cpus,
    folder: &Path,
    start: u32,
) -> anyhow::Result<(Child, Guard, SocketAddr, SocketAddr)> {
    let log = log_path(folder, start);
    let (out, errors) = (File::create(&log)?, File::options().append(true).open(&log)?);
    let mut command = Command::new(binary);
    command
        .arg("serve")
        .arg("--config")
        .arg(folder.join("banyan.toml"))
        .arg("--data-dir")
        .arg(folder.join("data"));
    command.args(["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--log-format", "json"]);
    command.stdin(Stdio::null()).stdout(out).stderr(errors);
    let child = cpus.on_them(|| command.spawn());
    let mut child = child.with_context(|| {
        format!(
            "cannot start {}; build it (cargo build --release) or name it with --server",
            binary.display()
        )
    })?;
    let guarded = Guard::over(child.id())
        .and_then(|guard| wait_until_ready(&mut child, &log).map(|(address, ops)| (guard, address, ops)));
    match guarded {
        Ok((guard, address, ops)) => Ok((child, guard, address, ops)),
        Err(error) => {
            drop(child.kill());
            drop(child.wait());
            Err(error)
        }
    }
}

fn wait_until_ready(child: &mut Child, log: &Path) -> anyhow::Result<(SocketAddr, SocketAddr)> {
    let deadline = now_ns() + ns(START);
    loop {
        let found =
            BufReader::new(File::open(log)?).lines().map_while(Result::ok).find_map(|line| addresses(&line));
        if let Some((address, ops)) = found
            && http::get(ops, "/readyz").is_ok_and(|(status, _)| status == 200)
        {
            return Ok((address, ops));
        }
        if let Some(status) = child.try_wait()? {
            bail!("the server ended with {status}:\n{}", fs::read_to_string(log)?);
        }
        if now_ns() > deadline {
            bail!("the server was not ready within {START:?}:\n{}", fs::read_to_string(log)?);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The addresses in the line that says that the server is ready: its fields `url` and `ops`, wherever they stand.
fn addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    fn field<'a>(value: &'a serde_json::Value, name: &str) -> Option<&'a str> {
        let object = value.as_object()?;
        object
            .get(name)
            .and_then(|text| text.as_str())
            .or_else(|| object.values().find_map(|inner| field(inner, name)))
    }
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let address = |name| field(&line, name)?.trim_start_matches("http://").trim_end_matches('/').parse().ok();
    Some((address("url")?, address("ops")?))
}

#[derive(Deserialize)]
struct Generated {
    user: String,
    token: String,
}

/// Tokens by `banyan gentoken`: all at once, or one process each from a binary that cannot do that.
fn tokens(binary: &Path, data_dir: &Path, count: usize) -> anyhow::Result<Vec<User>> {
    let made = Command::new(binary)
        .args(["gentoken", USER_PREFIX, "--count", &count.to_string(), "--json", "--data-dir"])
        .arg(data_dir)
        .stdin(Stdio::null())
        .output()
        .context("running banyan gentoken")?;
    ensure!(made.status.success(), "banyan gentoken: {}", String::from_utf8_lossy(&made.stderr).trim());
    let lines = String::from_utf8_lossy(&made.stdout).into_owned();
    let users: Vec<Generated> = serde_json::Deserializer::from_str(&lines)
        .into_iter()
        .collect::<Result<_, _>>()
        .context("what gentoken printed")?;
    ensure!(users.len() == count, "gentoken made {} tokens instead of {count}", users.len());
    Ok(users.into_iter().map(|Generated { user, token }| User { user, token }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_in_both_forms_of_the_formatter() {
        let want = Some(("127.0.0.1:8000".parse().unwrap(), "127.0.0.1:9000".parse().unwrap()));
        let nested = r#"{"level":"INFO","fields":{"message":"ready","url":"http://127.0.0.1:8000/","ops":"http://127.0.0.1:9000/"}}"#;
        let flat =
            r#"{"message":"ready","url":"http://127.0.0.1:8000/","ops":"http://127.0.0.1:9000/","node":"n"}"#;
        assert_eq!(addresses(nested), want);
        assert_eq!(addresses(flat), want);
        for other in [
            "",
            "text",
            r#"{"message":"starting"}"#,
            r#"{"url":"http://127.0.0.1:8000/"}"#,
            r#"{"url":"x","ops":"y"}"#,
        ] {
            assert_eq!(addresses(other), None, "{other}");
        }
    }
}
