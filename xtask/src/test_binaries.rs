//! Builds every test of the workspace once and runs the executables stage by stage, counting what they report.
//!
//! Owns: the list of test executables, the sums of their "test result" lines.
//! Always holds: built with one set of features, as `cargo test --workspace` would, so nothing is compiled twice.
//! Does not: run documentation tests (we have none that are more than text; `cargo test --doc` runs them).

use crate::run::Log;
use crate::tools::Tools;
use crate::workspace::Workspace;
use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The longest takes six minutes on two cores. One that hangs leaves the others the time to run.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// One test executable.
#[derive(Debug, Clone)]
pub(crate) struct TestBinary {
    pub(crate) package: String,
    pub(crate) target: String,
    executable: PathBuf,
    package_dir: PathBuf,
}

/// What a build gave.
#[derive(Debug, Default)]
pub(crate) struct Built {
    pub(crate) tests: Vec<TestBinary>,
    /// Programs that tests start, by name.
    pub(crate) programs: BTreeMap<String, PathBuf>,
}

/// The sums of "test result" lines.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// A line of cargo's `--message-format=json`; other lines have none of these fields.
#[derive(Debug, Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
    package_id: Option<String>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Profile {
    test: bool,
}

/// Builds all tests and the programs that they start.
pub(crate) fn build(workspace: &Workspace, log: &Log) -> anyhow::Result<Built> {
    let metadata = workspace.metadata(&["--no-deps"])?;
    let members = metadata.members();
    let mut built = Built::default();
    // All at once: apart, tests and programs would be built with other features of the same crates, each of them twice.
    let messages = messages(workspace, log, &["build", "--all-targets"])?;
    for message in messages.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok()) {
        let (Some(executable), Some(target), Some(id)) =
            (message.executable, message.target, message.package_id)
        else {
            continue;
        };
        let Some(package) = members.get(id.as_str()) else { continue };
        let manifest = message.manifest_path.unwrap_or_else(|| package.manifest_path.clone());
        if message.profile.is_some_and(|profile| profile.test) {
            built.tests.push(TestBinary {
                package: package.name.clone(),
                target: target.name,
                executable,
                package_dir: manifest.parent().map(Path::to_owned).unwrap_or_default(),
            });
        } else if target.kind.iter().any(|kind| kind == "bin") {
            built.programs.insert(target.name, executable);
        }
    }
    ensure!(!built.tests.is_empty(), "cargo built no tests");
    built.tests.sort_by(|a, b| (&a.package, &a.target).cmp(&(&b.package, &b.target)));
    Ok(built)
}

/// Runs cargo; its messages for machines are returned, those for people go to the log.
fn messages(workspace: &Workspace, log: &Log, arguments: &[&str]) -> anyhow::Result<String> {
    let out = tempfile::NamedTempFile::new()?;
    // Through a shell, so that the log takes standard error alone; the words are ours, nothing is quoted.
    let mut command = Command::new("sh");
    let line = format!("exec \"$0\" \"$@\" >'{}'", out.path().display());
    command.current_dir(&workspace.root).args(["-c", &line]);
    let cargo = workspace.cargo();
    command.arg(cargo.get_program()).args(arguments);
    command.args(["--workspace", "--locked", "--message-format=json-render-diagnostics"]);
    for (name, value) in cargo.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    log.run(&mut command)?;
    Ok(std::fs::read_to_string(out.path())?)
}

impl TestBinary {
    /// Runs it; what it printed is in the log.
    pub(crate) fn run(
        &self,
        log: &Log,
        tools: &Tools,
        programs: &BTreeMap<String, PathBuf>,
    ) -> (Counts, anyhow::Result<()>) {
        let before = log.text().len();
        let mut command = Command::new(&self.executable);
        command
            .current_dir(&self.package_dir)
            .env("CARGO_MANIFEST_DIR", &self.package_dir)
            .stdin(Stdio::null());
        tools.lend(&mut command);
        if let Some(server) = programs.get("banyan") {
            command.env("BANYAN_BIN", server);
        }
        let outcome = log.run_within(LIMIT, &mut command);
        let printed = log.text();
        let mut counts = count(printed.get(before..).unwrap_or_default());
        if outcome.is_err() && counts.failed == 0 {
            counts.failed = 1; // it died before it could count
        }
        (counts, outcome.with_context(|| format!("{} {}", self.package, self.target)))
    }
}

/// Adds up lines such as `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn count(text: &str) -> Counts {
    let mut counts = Counts::default();
    for line in text.lines().filter_map(|line| line.trim().strip_prefix("test result: ")) {
        let number = |word: &str| {
            let before = line.split(word).next().filter(|rest| rest.len() < line.len());
            before.and_then(|rest| rest.split_whitespace().last()?.parse::<u64>().ok()).unwrap_or(0)
        };
        counts +=
            Counts { passed: number(" passed"), failed: number(" failed"), skipped: number(" ignored") };
    }
    counts
}

/// Runs several; all of them, also after a failure.
pub(crate) fn run_all<'a>(
    tests: impl Iterator<Item = &'a TestBinary>,
    log: &Log,
    tools: &Tools,
    programs: &BTreeMap<String, PathBuf>,
) -> (Counts, anyhow::Result<()>) {
    let mut counts = Counts::default();
    let mut failures = Vec::new();
    let mut any = false;
    for test in tests {
        any = true;
        let (counted, outcome) = test.run(log, tools, programs);
        counts += counted;
        failures.extend(outcome.err().map(|e| format!("{e:#}")));
    }
    let outcome = || {
        ensure!(any, "there is no such test: it was renamed, or the stage's list is out of date");
        if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("\n")) }
    };
    (counts, outcome())
}

#[test]
fn test_results_are_added_up() {
    let text = "running 2 tests\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
                test result: FAILED. 3 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out\n";
    assert_eq!(count(text), Counts { passed: 5, failed: 4, skipped: 1 });
    assert_eq!(count("nothing of the kind"), Counts::default());
}
