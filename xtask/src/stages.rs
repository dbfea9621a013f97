//! The stages of `cargo xtask test`: one table, run in its order, each timed, counted and logged.
//!
//! Owns: what is checked and in which order, the summary. A new kind of check is a new row of [`STAGES`].
//! Always holds: a failure does not keep later stages from running; the last line is `N passed, N failed, N skipped`.
//! Does not: know what a stage tests.

use crate::licences;
use crate::run::Log;
use crate::terminal;
use crate::test_binaries::{self, Built, Counts, TestBinary};
use crate::tools::{self, Missing, Tool, Tools};
use crate::workspace::Workspace;
use anyhow::{Context as _, bail};
use std::process::Command;
use std::time::Duration;

/// One row of the table.
struct Stage {
    name: &'static str,
    /// What it is for, in a few words.
    about: &'static str,
    /// Without these it fails, or is skipped with `--allow-missing`.
    needs: &'static [Tool],
    run: fn(&mut Context<'_>, &Log) -> (Counts, anyhow::Result<()>),
}

/// Cheap and telling first, long last. A stage of test executables is `tests("NAME")` of the package banyan-tests;
/// those that no other stage names are run by `e2e`.
const STAGES: &[Stage] = &[
    Stage { name: "fmt", about: "formatting", needs: &[], run: |c, log| one(fmt(c, log)) },
    Stage {
        name: "licences",
        about: "licences, bans, sources",
        needs: &[],
        run: |c, log| one(licences(c, log)),
    },
    Stage { name: "clippy", about: "lints, all targets", needs: &[], run: |c, log| one(clippy(c, log)) },
    Stage { name: "build", about: "all tests", needs: &[], run: |c, log| one(c.built(log).map(|_| ())) },
    Stage {
        name: "tidy",
        about: "rules of the house",
        needs: &[],
        run: |c, log| packages(c, log, |p| p == "xtask"),
    },
    Stage {
        name: "web",
        about: "the page: types, units, rebuilt bundle",
        needs: &[Tool::Node, Tool::Web],
        run: |c, log| one(web(c, log)),
    },
    Stage {
        name: "unit",
        about: "unit and contract tests",
        needs: &[],
        run: |c, log| {
            chosen(c, log, |test| test.package != "xtask" && test.package != E2E && own(test).is_none())
        },
    },
    Stage {
        name: "sim",
        about: "the simulated cluster: fixed seeds, a few random ones",
        needs: &[],
        run: |c, log| one(sim(c, log)),
    },
    Stage {
        name: "etcd",
        about: "the ring's contract on etcd 3.6 and 3.4",
        needs: &[Tool::Etcd, Tool::EtcdOldest],
        run: |c, log| chosen(c, log, |test| own(test) == Some("etcd")),
    },
    Stage {
        name: "cql",
        about: "Cassandra: the store's contract on one node and three; nodes on it, their operators, their bad input",
        needs: &[Tool::Cassandra, Tool::Etcd, Tool::Compiler],
        run: |c, log| chosen(c, log, |test| own(test) == Some("cql")),
    },
    Stage {
        name: "deploy",
        about: "Compose, chart, HAProxy, nginx, alerts, dashboard",
        needs: &[Tool::Python, Tool::Haproxy, Tool::Nginx, Tool::Redis, Tool::Prometheus, Tool::Helm],
        run: deploy,
    },
    Stage {
        name: "autobahn",
        about: "WebSocket conformance",
        needs: &[Tool::Python],
        run: |c, log| one(autobahn(c, log)),
    },
    Stage {
        name: "clients",
        about: "clients of others",
        needs: &[Tool::Python, Tool::Node, Tool::NodeClients],
        run: |c, log| tests(c, log, "clients"),
    },
    Stage { name: "e2e", about: "the binary, from outside", needs: &[Tool::Compiler], run: e2e },
    Stage {
        name: "browser",
        about: "the pages in Chromium",
        needs: &[Tool::Node, Tool::Web, Tool::Chromium],
        run: |c, log| tests(c, log, "browser"),
    },
    Stage {
        name: "admin",
        about: "the admin page in Chromium, while a real cluster's slots move",
        needs: &[Tool::Node, Tool::Web, Tool::Chromium, Tool::Etcd, Tool::Cassandra],
        run: |c, log| tests(c, log, "admin"),
    },
    Stage {
        name: "crash",
        about: "kill -9 and power cuts",
        needs: &[Tool::Compiler],
        run: |c, log| tests(c, log, "crash"),
    },
    Stage {
        name: "chaos",
        about: "a cluster of real processes under attack: a short subset",
        needs: &[Tool::Etcd, Tool::Cassandra, Tool::Haproxy],
        run: |c, log| tests(c, log, "chaos"),
    },
];

/// The package of end-to-end tests, and those of its targets that have a stage of their own.
const E2E: &str = "banyan-tests";
const OWN_STAGE: &[&str] = &["admin", "browser", "chaos", "clients", "cluster", "cluster_bad_input", "crash"];

/// Test executables of other packages that need servers, and the stage that runs them instead of `unit`.
const ON_SERVERS: &[(&str, &str, &str)] = &[
    ("banyan-router-etcd", "etcd", "etcd"),
    ("banyan-test-servers", "etcd", "etcd"),
    ("banyan", "ring", "etcd"),
    ("banyan-storage-scylla", "cql", "cql"),
    ("banyan-test-servers", "cassandra", "cql"),
    ("banyan-tests", "cluster", "cql"),
    ("banyan-tests", "cluster_bad_input", "cql"),
    ("banyan-test-servers", "balancers", "deploy"),
    ("banyan-test-servers", "others", "deploy"),
];

/// The stage that such an executable has.
fn own(test: &TestBinary) -> Option<&'static str> {
    let mine =
        |(package, target, _): &&(&str, &str, &str)| test.package == *package && test.target == *target;
    ON_SERVERS.iter().find(mine).map(|(_, _, stage)| *stage)
}

/// What stages share.
struct Context<'a> {
    workspace: &'a Workspace,
    tools: &'a Tools,
    built: Option<Result<Built, String>>,
}

impl Context<'_> {
    /// All tests, built when the first stage asks.
    fn built(&mut self, log: &Log) -> anyhow::Result<&Built> {
        let (workspace, built) = (self.workspace, &mut self.built);
        let built =
            built.get_or_insert_with(|| test_binaries::build(workspace, log).map_err(|e| format!("{e:#}")));
        match built {
            Ok(built) => Ok(built),
            Err(why) => bail!("the build failed: {why}"),
        }
    }

    fn command(&self, program: &str, dir: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.workspace.root.join(dir));
        self.tools.lend(&mut command);
        command
    }
}

fn one(outcome: anyhow::Result<()>) -> (Counts, anyhow::Result<()>) {
    let failed = u64::from(outcome.is_err());
    (Counts { passed: 1 - failed, failed, skipped: 0 }, outcome)
}

fn fmt(c: &mut Context<'_>, log: &Log) -> anyhow::Result<()> {
    log.run(c.workspace.cargo().args(["fmt", "--all", "--check"]))
}

fn licences(c: &mut Context<'_>, log: &Log) -> anyhow::Result<()> {
    let counted = licences::check(c.workspace)?;
    log.say(&format!("{counted} packages are as deny.toml allows"))
}

fn clippy(c: &mut Context<'_>, log: &Log) -> anyhow::Result<()> {
    let arguments = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    log.run(c.workspace.cargo().args(arguments))
}

/// With the build of all tests: a faster one would take longer to build than it saves.
fn sim(c: &mut Context<'_>, log: &Log) -> anyhow::Result<()> {
    let program = c.built(log)?.programs.get("sim").context("the build gave no sim")?.clone();
    log.run(Command::new(program).current_dir(&c.workspace.root).arg("--ci"))
}

fn web(c: &mut Context<'_>, log: &Log) -> anyhow::Result<()> {
    log.run(c.command("npm", "web").args(["run", "check"]))?;
    log.run(c.command("npm", "web").args(["run", "dist"]))
}

fn autobahn(c: &mut Context<'_>, log: &Log) -> anyhow::Result<()> {
    let server =
        c.built(log)?.programs.get("autobahn-echo").context("the build gave no autobahn-echo")?.clone();
    let (python, out) = (c.tools.python(), c.workspace.target.join("autobahn"));
    let mut command = Command::new(python.join("bin/python"));
    command.current_dir(&c.workspace.root).arg("tests/autobahn/run.py");
    command.arg("--venv").arg(&python).arg("--server").arg(server).arg("--out").arg(out);
    log.run(&mut command)
}

/// The files of deploy/ by their schemas and by those who read them, then the balancers before real servers.
fn deploy(c: &mut Context<'_>, log: &Log) -> (Counts, anyhow::Result<()>) {
    let (mut counts, checked) = one(deploy_files(c, log));
    let (more, ran) = chosen(c, log, |test| own(test) == Some("deploy"));
    counts += more;
    (counts, checked.and(ran))
}

fn deploy_files(c: &mut Context<'_>, log: &Log) -> anyhow::Result<()> {
    let banyan = c.built(log)?.programs.get("banyan").context("the build gave no banyan")?.clone();
    let python = c.tools.python();
    let mut command = Command::new(python.join("bin/python"));
    command.current_dir(&c.workspace.root).arg("deploy/checks/check.py");
    c.tools.lend(&mut command);
    command.arg("--helm").arg(c.tools.helm()).arg("--banyan").arg(banyan);
    log.run(&mut command)
}

fn packages(c: &mut Context<'_>, log: &Log, which: fn(&str) -> bool) -> (Counts, anyhow::Result<()>) {
    chosen(c, log, |test| which(&test.package))
}

fn tests(c: &mut Context<'_>, log: &Log, target: &str) -> (Counts, anyhow::Result<()>) {
    chosen(c, log, |test| test.package == E2E && test.target == target)
}

fn e2e(c: &mut Context<'_>, log: &Log) -> (Counts, anyhow::Result<()>) {
    chosen(c, log, |test| test.package == E2E && !OWN_STAGE.contains(&test.target.as_str()))
}

/// Runs the test executables that `which` picks.
fn chosen(
    c: &mut Context<'_>,
    log: &Log,
    which: impl Fn(&TestBinary) -> bool,
) -> (Counts, anyhow::Result<()>) {
    let tools = c.tools;
    match c.built(log) {
        Err(e) => one(Err(e)),
        Ok(built) => {
            let chosen = built.tests.iter().filter(|test| which(test));
            test_binaries::run_all(chosen, log, tools, &built.programs)
        }
    }
}

/// How a stage ended.
struct Ended {
    name: &'static str,
    about: &'static str,
    counts: Counts,
    took: Duration,
    failure: Option<String>,
    skipped: Vec<Missing>,
}

/// Setup, then the stages. True when nothing failed.
pub(crate) fn test(workspace: &Workspace, only: &[String], allow_missing: bool) -> anyhow::Result<bool> {
    if only.iter().any(|name| name == "list") {
        let rows: Vec<_> = STAGES.iter().map(|s| vec![s.name.to_owned(), s.about.to_owned()]).collect();
        print!("{}", terminal::table(&rows, &[]));
        return Ok(true);
    }
    if let Some(unknown) = only.iter().find(|name| !STAGES.iter().any(|stage| stage.name == **name)) {
        bail!("there is no stage {unknown:?}; `--stage list` names them");
    }
    let chosen: Vec<&Stage> =
        STAGES.iter().filter(|s| only.is_empty() || only.iter().any(|name| name == s.name)).collect();
    let began = terminal::now();
    let wanted: Vec<Tool> =
        tools::ALL.iter().copied().filter(|t| chosen.iter().any(|s| s.needs.contains(t))).collect();
    println!("{}", terminal::bold("setup"));
    let tools = tools::setup(workspace, &wanted)?;
    tools.print();
    let setup_took = began.elapsed();

    let mut context = Context { workspace, tools: &tools, built: None };
    let mut ended = Vec::new();
    for stage in chosen {
        let done = run_stage(stage, &mut context, allow_missing)?;
        announce(&done);
        ended.push(done);
    }
    Ok(summarise(&ended, setup_took, began.elapsed(), workspace))
}

fn run_stage(stage: &Stage, context: &mut Context<'_>, allow_missing: bool) -> anyhow::Result<Ended> {
    println!("{} ({})", terminal::bold(stage.name), stage.about);
    let began = terminal::now();
    let lacks = context.tools.lacks(stage.needs);
    let (counts, failure, skipped) = if lacks.is_empty() {
        let log = Log::begin(&context.workspace.logs(), stage.name)?;
        let (counts, outcome) = (stage.run)(context, &log);
        (counts, outcome.err().map(|e| format!("{e:#}")), Vec::new())
    } else if allow_missing && lacks.iter().all(|missing| !missing.ours) {
        (Counts { skipped: 1, ..Counts::default() }, None, lacks)
    } else {
        let why: Vec<String> = lacks.iter().map(|missing| missing.explain(&[stage.name])).collect();
        (Counts { failed: 1, ..Counts::default() }, Some(why.join("\n")), Vec::new())
    };
    Ok(Ended { name: stage.name, about: stage.about, counts, took: began.elapsed(), failure, skipped })
}

fn announce(ended: &Ended) {
    let took = terminal::duration(ended.took);
    match &ended.failure {
        Some(why) => println!("{why}\n{} in {took}", terminal::red(&format!("{} failed", ended.name))),
        None if !ended.skipped.is_empty() => println!("{}", terminal::yellow("skipped")),
        None => println!("{} in {took}", terminal::green("ok")),
    }
}

/// Prints the table and, last, the line that a reader of test results looks for.
fn summarise(ended: &[Ended], setup_took: Duration, all: Duration, workspace: &Workspace) -> bool {
    let mut sum = Counts::default();
    let heads = ["stage", "", "passed", "failed", "skipped", "time", ""].map(str::to_owned).to_vec();
    let mut rows = vec![heads];
    rows.push(vec![
        "setup".to_owned(),
        "tools".to_owned(),
        String::new(),
        String::new(),
        String::new(),
        terminal::duration(setup_took),
    ]);
    for stage in ended {
        sum += stage.counts;
        let state = match (&stage.failure, stage.skipped.is_empty()) {
            (Some(_), _) => terminal::red("failed"),
            (None, false) => terminal::yellow("skipped"),
            (None, true) => terminal::green("ok"),
        };
        let Counts { passed, failed, skipped } = stage.counts;
        let numbers = [passed, failed, skipped].map(|n| n.to_string());
        let mut row = vec![stage.name.to_owned(), stage.about.to_owned()];
        row.extend(numbers);
        row.extend([terminal::duration(stage.took), state]);
        rows.push(row);
    }
    rows.push(vec![
        "all".to_owned(),
        String::new(),
        String::new(),
        String::new(),
        String::new(),
        terminal::duration(all),
    ]);
    println!("\n{}", terminal::table(&rows, &[false, false, true, true, true, true, false]));
    println!("logs: {}", workspace.logs().display());
    for stage in ended {
        for missing in &stage.skipped {
            println!("{}: {}", terminal::yellow("skipped"), missing.explain(&[stage.name]));
        }
    }
    println!("{}", summary_line(sum));
    sum.failed == 0 && ended.iter().all(|stage| stage.failure.is_none())
}

/// The last line; plain on purpose.
fn summary_line(sum: Counts) -> String {
    format!("{} passed, {} failed, {} skipped", sum.passed, sum.failed, sum.skipped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_have_names_of_their_own() {
        let mut names: Vec<&str> = STAGES.iter().map(|stage| stage.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), STAGES.len());
        for name in OWN_STAGE {
            let on_servers = ON_SERVERS.iter().any(|(_, target, _)| target == name);
            assert!(on_servers || names.contains(name), "{name} is left out of e2e and has no stage");
        }
        for (package, target, stage) in ON_SERVERS {
            assert!(names.contains(stage), "{package} {target} is left out of unit and has no stage");
        }
    }

    #[test]
    fn the_summary_is_one_plain_line() {
        let line = summary_line(Counts { passed: 12, failed: 0, skipped: 1 });
        assert_eq!(line, "12 passed, 0 failed, 1 skipped");
    }
}
