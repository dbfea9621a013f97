//! Runs a program with its output in a log file, a moving line on a terminal, and the end of the log on failure.
//!
//! Owns: log files and the progress line. Always holds: a failure shows its last lines, so nobody has to look for them.

use crate::terminal;
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// How often the progress line is drawn anew.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// How often a sign of life is printed where there is no terminal.
const SIGN_OF_LIFE: Duration = Duration::from_secs(60);

/// No single program of ours takes this long: the whole of the tests has 38 minutes on two cores.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// Lines of a failed program that are shown.
const SHOWN_ON_FAILURE: usize = 80;

/// One log file, which several programs may write in turn.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    title: String,
}

impl Log {
    /// Begins `<logs>/<name>.log` anew.
    pub(crate) fn begin(logs: &Path, name: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let path = logs.join(format!("{name}.log"));
        File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, title: name.to_owned() })
    }

    /// Runs `command` to its end. Its output goes to the log. Fails with the end of the log when the command does.
    pub(crate) fn run(&self, command: &mut Command) -> anyhow::Result<()> {
        self.run_within(LIMIT, command)
    }

    /// The same; what takes longer than `limit` is stopped, and has failed.
    pub(crate) fn run_within(&self, limit: Duration, command: &mut Command) -> anyhow::Result<()> {
        let shown = shown(command);
        let mut log = OpenOptions::new().append(true).open(&self.path)?;
        writeln!(log, "$ {shown}")?;
        let from = log.metadata()?.len();
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn().with_context(|| format!("cannot run {shown}"))?;
        let bar = self.bar();
        let began = terminal::now();
        let mut next_sign = SIGN_OF_LIFE;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            let took = began.elapsed();
            if took > limit {
                child.kill()?;
                child.wait()?;
                bar.finish_and_clear();
                let end = self.end(from);
                anyhow::bail!(
                    "`{shown}` was stopped after {limit:?}; the end of {}:\n{end}",
                    self.path.display()
                );
            }
            let line = last_line(&self.path).unwrap_or_default();
            if bar.is_hidden() && took > next_sign {
                println!("  {} so far: {line}", terminal::duration(took));
                next_sign += SIGN_OF_LIFE;
            }
            bar.set_message(line);
            bar.tick();
            std::thread::sleep(DRAW_EVERY);
        };
        bar.finish_and_clear();
        if status.success() {
            return Ok(());
        }
        anyhow::bail!("`{shown}` failed ({status}); the end of {}:\n{}", self.path.display(), self.end(from))
    }

    /// Adds a line of our own.
    pub(crate) fn say(&self, line: &str) -> anyhow::Result<()> {
        let mut log = OpenOptions::new().append(true).open(&self.path)?;
        Ok(writeln!(log, "{line}")?)
    }

    /// All that was written so far.
    pub(crate) fn text(&self) -> String {
        fs::read(&self.path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The last lines that were written after `from`, but for [`without_frames_of_others`].
    fn end(&self, from: u64) -> String {
        let bytes = fs::read(&self.path).unwrap_or_default();
        let from = usize::try_from(from).unwrap_or(0).min(bytes.len());
        let text = String::from_utf8_lossy(&bytes[from..]);
        let lines = without_frames_of_others(&text);
        let lines = &lines[lines.len().saturating_sub(SHOWN_ON_FAILURE)..];
        lines.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    }

    fn bar(&self) -> ProgressBar {
        if !terminal::is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(self.title.clone());
        bar
    }
}

/// The command as one would type it.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// What is left when of every backtrace only the frames are kept whose source is in the workspace: the dozens of the runtime
/// and the standard library would push the reason out of what is shown.
fn without_frames_of_others(text: &str) -> Vec<&str> {
    // `./` is what lies in the package of the test.
    let workspace = env!("CARGO_MANIFEST_DIR").trim_end_matches("xtask");
    let is_ours = |source: &str| source.starts_with("./") || source.starts_with(workspace);
    let mut kept: Vec<&str> = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let number = line.trim_start().split_once(": ").map_or("", |(number, _)| number);
        let is_frame = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        match lines.peek().and_then(|next| next.trim_start().strip_prefix("at ")) {
            Some(source) if is_frame && !is_ours(source) => {
                lines.next();
            }
            _ => kept.push(line),
        }
    }
    kept
}

/// The last line of a file that may be large, without what terminals would obey.
fn last_line(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(400))).ok()?;
    let mut end = Vec::new();
    file.read_to_end(&mut end).ok()?;
    let text = String::from_utf8_lossy(&end);
    let line = text.lines().rfind(|line| !line.trim().is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_end_of_its_own_output() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::begin(dir.path(), "try").unwrap();
        log.run(Command::new("sh").args(["-c", "echo before"])).unwrap();
        let error =
            log.run(Command::new("sh").args(["-c", "echo why it failed; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("  why it failed") && error.contains("exit status: 3"), "{error}");
        assert!(!error.contains("before"), "{error}");
        assert!(log.text().contains("before"));
    }

    #[test]
    fn frames_of_others_are_left_out() {
        let text = "\
thread 'a' panicked at tests/a.rs:1:1:
1: why
stack backtrace:
   0: core::panicking::panic_fmt
             at /rustc/59/library/core/src/panicking.rs:80:14
   1: a::judge
             at ./tests/a.rs:58:13
  12: tokio::run
             at /home/x/.cargo/registry/src/tokio/lib.rs:9:70
note: Some details are omitted.
  at last";
        let want = "\
thread 'a' panicked at tests/a.rs:1:1:
1: why
stack backtrace:
   1: a::judge
             at ./tests/a.rs:58:13
note: Some details are omitted.
  at last";
        assert_eq!(without_frames_of_others(text).join("\n"), want);
    }
}
