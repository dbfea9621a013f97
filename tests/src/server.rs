//! The real binary as a child process on loopback, port 0.
//!
//! Owns: finding the binary, its start-up line, its log file, its death.
//! Always holds: the child dies with its [`Server`]; waiting ends after [`START_LIMIT`].
//! Does not: talk to it.

use anyhow::{Context, bail};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::time::Instant;

/// How long a start may take; recovery of a full journal on a busy machine included.
pub const START_LIMIT: Duration = Duration::from_secs(60);

/// How often the log file is looked at while starting.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The built `banyan`: `BANYAN_BIN` when set, else beside the test binaries of this build.
pub fn binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("BANYAN_BIN") {
        let path = PathBuf::from(path);
        anyhow::ensure!(path.is_file(), "BANYAN_BIN names {}, which is no file", path.display());
        return Ok(path);
    }
    let me = std::env::current_exe()?;
    // target/<profile>/deps/<test> or target/<profile>/<bin>
    let found = me.ancestors().skip(1).take(2).map(|dir| dir.join("banyan")).find(|path| path.is_file());
    found.context(
        "there is no `banyan` beside the tests: run `cargo build -p banyan`, or set BANYAN_BIN to one",
    )
}

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub struct Server {
    child: Child,
    log: PathBuf,
    /// Where it listens.
    pub addresses: Addresses,
}

impl Server {
    /// Starts `banyan serve` on a free port with `data_dir`, logging to `log` (begun anew), and waits until it says
    /// that it listens. `prepare` may add to the command line and environment.
    pub async fn start(
        binary: &Path,
        data_dir: &Path,
        log: &Path,
        prepare: impl FnOnce(&mut Command),
    ) -> anyhow::Result<Self> {
        Self::start_at("127.0.0.1:0", binary, data_dir, log, prepare).await
    }

    /// The same on an address of the caller's choice, for a server that comes back to its clients.
    pub async fn start_at(
        listen: &str,
        binary: &Path,
        data_dir: &Path,
        log: &Path,
        prepare: impl FnOnce(&mut Command),
    ) -> anyhow::Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(binary);
        command
            .args(["serve", "--listen", listen, "--ops-listen", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        // The server refuses variables that are no settings, and those of whoever runs the tests are not the tests'.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BANYAN_") {
                command.env_remove(name);
            }
        }
        prepare(&mut command);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", binary.display()))?;
        let until = Instant::now() + START_LIMIT;
        let failure = loop {
            let text = fs::read_to_string(log).unwrap_or_default();
            // A line counts once it is whole.
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            if let Some(addresses) = whole.lines().find_map(ready) {
                return Ok(Self { child, log: log.to_owned(), addresses });
            }
            if let Some(status) = child.try_wait()? {
                break format!("it ended with {status}");
            }
            if Instant::now() > until {
                child.kill()?;
                child.wait()?;
                break format!("it did not say where it listens within {START_LIMIT:?}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        bail!("{failure}; its log ends with:\n{}", tail(log))
    }

    /// The process id, for signals.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// kill -9, and waits for the end.
    pub fn kill(mut self) -> anyhow::Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already dead is fine: nothing else can go wrong with a child of ours.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The last lines of a log file, for error messages.
fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// Where the server says that it listens: for clients, and for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    pub clients: SocketAddr,
    pub ops: SocketAddr,
}

/// The start-up line: JSON, message `ready`, with the URLs of both ports.
fn ready(line: &str) -> Option<Addresses> {
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    if value.get("message")?.as_str()? != "ready" {
        return None;
    }
    let address = |name: &str| {
        let (_, host) = value.get(name)?.as_str()?.split_once("://")?;
        host.trim_end_matches('/').parse::<SocketAddr>().ok()
    };
    Some(Addresses { clients: address("url")?, ops: address("ops")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_up_line_is_understood() {
        let line = r#"{"level":"INFO","message":"ready","version":"0.1.0","url":"http://127.0.0.1:4711/","ops":"http://127.0.0.1:4712/"}"#;
        let (clients, ops) = ("127.0.0.1:4711".parse().unwrap(), "127.0.0.1:4712".parse().unwrap());
        assert_eq!(ready(line), Some(Addresses { clients, ops }));
        assert_eq!(ready(&line.replace("ready", "opening")), None);
        assert_eq!(ready("ready http://127.0.0.1:4711/"), None);
    }
}
