//! One server: a child process, its log file, its life and death.
//!
//! Owns: the child, and the command that starts it again in the same place.
//! Always holds: dropping it kills the child; a signal goes only to a child that was not waited for yet, so never to
//! somebody else's process; waiting has a deadline.
//! Does not: know what the server is.

use crate::spawner;
use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long a start may take on a busy machine: three Java servers on two cores take half a minute.
pub const START_LIMIT: Duration = Duration::from_secs(180);

/// How long a server may take to end when it is asked to.
pub const STOP_LIMIT: Duration = Duration::from_secs(60);

/// How often we look whether something is so.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// No single look takes longer: a server that does not answer is asked anew.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// Lines of the log that an error carries, and the bytes that are looked at for them.
const TAIL_LINES: usize = 30;
const TAIL_BYTES: u64 = 16 * 1024;

/// What of our environment a server gets: settings of ours (`ETCD_…`, `BANYAN_…`) would change it.
const ENVIRONMENT: &[&str] = &["PATH", "HOME", "LANG", "TMPDIR", "JAVA_HOME"];

/// How a server is started, every time alike.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// For error messages and the name of the log file.
    pub name: String,
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    pub environment: Vec<(OsString, OsString)>,
    /// Current directory, and where the log is.
    pub directory: PathBuf,
}

/// A server that runs, or could run again.
#[derive(Debug)]
pub struct Process {
    recipe: Recipe,
    child: Option<Child>,
}

impl Process {
    /// Starts it. Whether it is ready is for [`Process::wait_until`].
    pub fn start(recipe: Recipe) -> anyhow::Result<Self> {
        let mut process = Self { recipe, child: None };
        process.launch()?;
        Ok(process)
    }

    /// Starts it again, with the same arguments and directory; its log is continued. Fails when it runs.
    pub fn launch(&mut self) -> anyhow::Result<()> {
        ensure!(!self.is_running(), "{} runs already", self.recipe.name);
        let path = self.log_path();
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = spawner::command(&self.recipe.program);
        command.args(&self.recipe.arguments).current_dir(&self.recipe.directory);
        command.env_clear();
        command.envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.envs(self.recipe.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(spawner::spawn(command)?);
        Ok(())
    }

    pub fn name(&self) -> &str {
        &self.recipe.name
    }

    /// The process id while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Frozen ones run, too.
    pub fn is_running(&mut self) -> bool {
        let Some(child) = &mut self.child else { return false };
        let running = matches!(child.try_wait(), Ok(None));
        if !running {
            self.child = None;
        }
        running
    }

    pub fn log_path(&self) -> PathBuf {
        self.recipe.directory.join(format!("{}.log", self.recipe.name))
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        tail(&self.log_path()).unwrap_or_default()
    }

    /// SIGSTOP: it keeps its connections and says nothing more.
    pub fn freeze(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT: it goes on as if no time had passed.
    pub fn thaw(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Any signal. Fails when it does not run.
    pub fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        ensure!(
            self.is_running(),
            "{} does not run; its log ends with:\n{}",
            self.recipe.name,
            self.log_tail()
        );
        let pid = self.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)).context("no process id")?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.recipe.name))
    }

    /// kill -9, and waits for the end. One that does not run is left so.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(child) = &mut self.child {
            child.kill().ok(); // dead already is what we want
            self.ended(STOP_LIMIT).await?;
        }
        Ok(())
    }

    /// SIGTERM, and waits for the end; killed when it takes longer than [`STOP_LIMIT`], which is an error. A frozen
    /// one is thawed for it.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        self.signal(Signal::TERM)?;
        // It may have ended in between.
        self.signal(Signal::CONT).ok();
        if self.ended(STOP_LIMIT).await.is_err() {
            self.kill().await?;
            bail!(
                "{} did not end within {STOP_LIMIT:?}; its log ends with:\n{}",
                self.recipe.name,
                self.log_tail()
            );
        }
        Ok(())
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let until = Instant::now() + limit;
        while let Some(child) = &mut self.child {
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(Some(status));
            }
            ensure!(Instant::now() < until, "{} still runs after {limit:?}", self.recipe.name);
            sleep(LOOK_EVERY).await;
        }
        Ok(None)
    }

    /// Waits until `holds` says so. Its last "not yet" and the end of the log are in the error when the server ends
    /// or `limit` passes.
    pub async fn wait_until(
        &mut self,
        limit: Duration,
        mut holds: impl AsyncFnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let until = Instant::now() + limit;
        let failure = loop {
            let why = match timeout(LOOK_LIMIT, holds()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(e)) => format!("{e:#}"),
                Err(_) => "no answer".to_owned(),
            };
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                self.child = None;
                break format!("ended with {status}");
            }
            if self.child.is_none() {
                break "does not run".to_owned();
            }
            if Instant::now() > until {
                break format!("is not ready after {limit:?} ({why})");
            }
            sleep(LOOK_EVERY).await;
        };
        bail!("{} {failure}; its log ends with:\n{}", self.recipe.name, self.log_tail())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Dead already is fine.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// The last lines of a file that may be large.
fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    let text = String::from_utf8_lossy(&end);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(directory: &Path, line: &str) -> Process {
        let recipe = Recipe {
            name: "shell".to_owned(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), line.into()],
            environment: Vec::new(),
            directory: directory.to_owned(),
        };
        Process::start(recipe).unwrap()
    }

    #[tokio::test]
    async fn an_early_end_is_an_error_with_the_end_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell(dir.path(), "echo cannot do it; exit 3");
        let never = async || bail!("not yet");
        let error = process.wait_until(START_LIMIT, never).await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("cannot do it"), "{error}");
    }

    #[tokio::test]
    async fn a_late_one_is_an_error_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell(dir.path(), "echo waiting; sleep 100");
        let log = process.log_path();
        let begun = async || {
            ensure!(std::fs::read_to_string(&log)?.contains("waiting"), "nothing is said");
            Ok(())
        };
        process.wait_until(START_LIMIT, begun).await.unwrap();
        let never = async || bail!("not yet");
        let error = process.wait_until(Duration::from_millis(200), never).await.unwrap_err().to_string();
        assert!(error.contains("not ready after 200ms (not yet)") && error.ends_with("waiting"), "{error}");
        assert!(process.is_running());
    }

    #[tokio::test]
    async fn stopping_is_asking_and_frozen_ones_are_asked_too() {
        let dir = tempfile::tempdir().unwrap();
        let mut process =
            shell(dir.path(), "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done");
        let log = process.log_path();
        let up = async || {
            ensure!(std::fs::read_to_string(&log)?.contains("up"), "not up");
            Ok(())
        };
        process.wait_until(START_LIMIT, up).await.unwrap();
        process.freeze().unwrap();
        process.stop().await.unwrap();
        assert!(!process.is_running());
        assert!(process.log_tail().contains("bye"), "{}", process.log_tail());
        process.launch().unwrap();
        assert!(process.launch().is_err(), "started twice");
        process.kill().await.unwrap();
        assert!(process.freeze().is_err(), "signalled the dead");
    }

    #[tokio::test]
    async fn dropping_kills() {
        let dir = tempfile::tempdir().unwrap();
        let process = shell(dir.path(), "exec sleep 100");
        let pid = Pid::from_raw(i32::try_from(process.id().unwrap()).unwrap()).unwrap();
        drop(process);
        assert!(rustix::process::test_kill_process(pid).is_err());
    }
}
