//! Both commands of the README on a machine that has nothing: a Debian made by debootstrap, with an empty home.
//!
//! Owns: the chroot, what is lent to it (the Rust toolchain, name resolution, certificates, how package registries
//! are reached), running the commands in it, its removal.
//! Always holds: every mount lives in a mount namespace of its own, so it is gone when the last process is; the
//! directory is removed only after that.
//! Does not: isolate the network or protect the host. It is a test, not a sandbox.

use crate::run::Log;
use crate::terminal;
use crate::tools::is_root;
use crate::workspace::Workspace;
use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The Debian that the README promises to work on.
const SUITE: &str = "bookworm";

/// A compiler and certificates: all that command 1 may ask for beside Rust.
const INCLUDE: &str = "gcc,libc6-dev,ca-certificates";

/// Where the ops port answers by default.
const READY: &str = "127.0.0.1:9000";

/// How long a cold release build and start may take.
const SERVE_LIMIT: Duration = Duration::from_secs(20 * 60);

/// How long the server may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Mounts what is lent and runs the rest of its arguments in the chroot. Runs under `unshare --mount`.
const ENTER: &str = r#"
set -eu
root=$1 rust=$2 home=$3
shift 3
mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/opt/rust" "$root$home"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount --bind "$rust" "$root/opt/rust"
mount -o remount,bind,ro "$root/opt/rust"
exec chroot "$root" "$@"
"#;

/// The commands. `probe`: only shows that a program of the toolchain runs in the chroot.
pub(crate) fn run(workspace: &Workspace, dir: Option<&Path>, probe: bool, keep: bool) -> anyhow::Result<()> {
    ensure!(
        is_root(),
        "a chroot needs root: run `cargo xtask fresh` as root (everything it makes is removed again)"
    );
    let log = Log::begin(&workspace.logs(), "fresh")?;
    need(&log, "debootstrap")?;
    let chroot = Chroot::make(workspace, &log, dir, keep)?;
    println!("rustc in the chroot: {}", chroot.output("exec rustc --version")?);
    if probe {
        println!("cargo reaches its registry: {}", chroot.output(PROBE)?);
        return Ok(());
    }

    println!("{} cargo run --release -- serve", terminal::bold("command 1:"));
    let took = serve(&chroot, workspace)?;
    println!("  ready after {}", terminal::duration(took));

    println!("{} cargo xtask test", terminal::bold("command 2:"));
    let began = terminal::now();
    let status = chroot.shell("exec cargo xtask test").status().context("cannot enter the chroot")?;
    let tests = began.elapsed();
    let rows = [
        vec!["cargo run --release -- serve, to ready".to_owned(), terminal::duration(took)],
        vec!["cargo xtask test".to_owned(), terminal::duration(tests)],
    ];
    print!("{}", terminal::table(&rows, &[false, true]));
    ensure!(status.success(), "cargo xtask test ended with {status} in the chroot");
    Ok(())
}

/// A crate with one small dependency, fetched with an empty home.
const PROBE: &str = "rm -rf /tmp/probe && mkdir -p /tmp/probe/src && cd /tmp/probe && touch src/lib.rs && \
    printf '[package]\\nname=\"probe\"\\n[dependencies]\\nitoa=\"1\"\\n[workspace]\\n' > Cargo.toml && \
    cargo fetch && cargo tree --depth 1 --prefix none | tail -1";

/// A Debian directory, removed when dropped.
struct Chroot {
    root: PathBuf,
    rust: PathBuf,
    /// Variables for the programs inside.
    environment: Vec<(OsString, OsString)>,
    keep: bool,
    _temporary: Option<tempfile::TempDir>,
}

/// The home directory inside; it is empty at the start.
const HOME: &str = "/home/stranger";

/// The clone of the repository inside.
const SOURCE: &str = "/src/banyan";

impl Chroot {
    fn make(workspace: &Workspace, log: &Log, dir: Option<&Path>, keep: bool) -> anyhow::Result<Self> {
        let temporary = if dir.is_none() {
            let dir = tempfile::Builder::new().prefix("banyan-fresh-").tempdir()?;
            Some(dir)
        } else {
            None
        };
        let root = match (dir, &temporary) {
            (Some(dir), _) => {
                ensure!(!dir.exists(), "{} exists; name a new directory", dir.display());
                std::path::absolute(dir)?
            }
            (None, Some(temporary)) => temporary.path().join("debian"),
            (None, None) => bail!("no directory for the chroot"),
        };
        let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
        let chroot =
            Self { root, rust: sysroot.into(), environment: environment(), keep, _temporary: temporary };

        let began = terminal::now();
        println!("debootstrap {SUITE} into {} (interrupted, remove it by hand)", chroot.root.display());
        let mut bootstrap = Command::new("debootstrap");
        bootstrap.args(["--variant=minbase", &format!("--include={INCLUDE}"), SUITE]).arg(&chroot.root);
        bootstrap.args(mirror());
        log.run(&mut bootstrap)?;
        chroot.lend_client_configuration()?;
        fs::create_dir_all(chroot.inside(HOME))?;
        let mut clone = Command::new("git");
        clone.args(["clone", "--quiet", "--no-hardlinks"]).arg(&workspace.root).arg(chroot.inside(SOURCE));
        log.run(&mut clone)?;
        println!("  done in {}", terminal::duration(began.elapsed()));
        Ok(chroot)
    }

    fn inside(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// How this host reaches package registries, whatever they are: name resolution, certificates, and the system
    /// and user configuration of cargo, pip, npm, Maven and apt. The home inside stays empty: user configuration goes
    /// where the same client looks besides.
    fn lend_client_configuration(&self) -> anyhow::Result<()> {
        for file in ["/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/npmrc"] {
            copy(Path::new(file), &self.inside(file))?;
        }
        let mut directories =
            vec!["/etc/ssl/certs", "/usr/local/share/ca-certificates", "/usr/share/ca-certificates"];
        if fs::read_to_string("/etc/os-release")
            .is_ok_and(|text| text.contains(&format!("VERSION_CODENAME={SUITE}")))
        {
            directories.extend(["/etc/apt/apt.conf.d", "/etc/apt/sources.list.d", "/usr/share/keyrings"]);
            // The host's sources replace debootstrap's single line.
            fs::write(
                self.inside("/etc/apt/sources.list"),
                fs::read("/etc/apt/sources.list").unwrap_or_default(),
            )?;
        }
        for directory in directories {
            copy(Path::new(directory), &self.inside(directory))?;
        }
        let Some(home) = std::env::home_dir() else { return Ok(()) };
        for (from, to) in [
            (".cargo/config.toml", "/.cargo/config.toml"),
            (".npmrc", "/etc/npmrc"),
            (".config/pip/pip.conf", "/etc/pip.conf"),
            (".m2/settings.xml", "/etc/maven/settings.xml"),
        ] {
            copy(&home.join(from), &self.inside(to))?;
        }
        Ok(())
    }

    /// A shell command in the clone. Every step on the way replaces itself by the next, so the child's id is in the end
    /// that of the program which the line `exec`s (cargo, and with `cargo run` the program that it runs).
    fn shell(&self, line: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", ENTER, "enter"]);
        command.arg(&self.root).arg(&self.rust).arg(HOME);
        command.args(["/bin/sh", "-c", &format!("cd {SOURCE} && {line}")]);
        command.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
            .env("HOME", HOME)
            .env("PATH", "/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null());
        command
    }

    fn output(&self, line: &str) -> anyhow::Result<String> {
        output(&mut self.shell(line))
    }
}

impl Drop for Chroot {
    fn drop(&mut self) {
        if self.keep {
            println!("the chroot is left in {}", self.root.display());
        } else if let Err(e) = self.remove() {
            eprintln!("cannot remove {}: {e:#}", self.root.display());
        }
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        drop(self.0.wait());
    }
}

impl Chroot {
    fn remove(&self) -> anyhow::Result<()> {
        // Nothing is mounted here in our namespace; if something is all the same, removing would go through it.
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let prefix = format!("{}/", self.root.display());
        if let Some(line) =
            mounts.lines().find(|l| l.split(' ').nth(1).is_some_and(|at| at.starts_with(&prefix)))
        {
            bail!(
                "something is still mounted below it ({line}); unmount it and remove the directory by hand"
            );
        }
        match fs::remove_dir_all(&self.root) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// A child that ends with this value.
struct Stop(Child);

impl Stop {
    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            // Gone already is what we want.
            kill_process(pid, signal).ok();
        }
    }
}

/// Command 1 until it is ready, then stops it. Gives the time to ready.
fn serve(chroot: &Chroot, workspace: &Workspace) -> anyhow::Result<Duration> {
    let ready: SocketAddr = READY.parse()?;
    ensure!(TcpStream::connect(ready).is_err(), "something answers at {READY} already: stop it first");
    let path = workspace.logs().join("fresh-serve.log");
    let file = fs::File::create(&path)?;
    let mut command = chroot.shell("exec cargo run --release -- serve");
    let began = terminal::now();
    let mut child =
        Stop(command.stdout(file.try_clone()?).stderr(file).spawn().context("cannot enter the chroot")?);
    let took = loop {
        if is_ready(ready) {
            break began.elapsed();
        }
        if let Some(status) = child.0.try_wait()? {
            bail!("it ended with {status}; see {}", path.display());
        }
        ensure!(began.elapsed() < SERVE_LIMIT, "not ready after {SERVE_LIMIT:?}; see {}", path.display());
        std::thread::sleep(Duration::from_millis(200));
    };
    child.signal(Signal::TERM);
    let asked = terminal::now();
    while child.0.try_wait()?.is_none() {
        ensure!(asked.elapsed() < STOP_LIMIT, "it did not end within {STOP_LIMIT:?} of SIGTERM");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(took)
}

fn is_ready(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(4096).read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// Variables that say how registries are reached and certificates are found; nothing about this user or machine.
fn environment() -> Vec<(OsString, OsString)> {
    let wanted = |name: &str| {
        let upper = name.to_uppercase();
        let beginnings = [
            "CARGO_HTTP_",
            "CARGO_NET_",
            "CARGO_REGISTR",
            "CARGO_SOURCE_",
            "GOINSECURE",
            "GONOSUMDB",
            "GOPROXY",
            "GOSUMDB",
            "MAVEN_",
            "PIP_",
            "NPM_CONFIG_",
            "SSL_CERT_",
        ];
        let ends = ["_PROXY", "_CA_BUNDLE", "_CA_CERTS", "_CAINFO"];
        beginnings.iter().any(|b| upper.starts_with(b)) || ends.iter().any(|e| upper.ends_with(e))
    };
    let carried = std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(wanted));
    carried.chain([("LANG".into(), "C.UTF-8".into()), ("CARGO_TERM_COLOR".into(), "never".into())]).collect()
}

/// The mirror that the host uses, when it is a Debian; debootstrap's own default otherwise.
fn mirror() -> Option<String> {
    let mut texts = vec![fs::read_to_string("/etc/apt/sources.list").unwrap_or_default()];
    for entry in fs::read_dir("/etc/apt/sources.list.d").ok()?.flatten() {
        if entry.path().extension().is_some_and(|e| e == "sources" || e == "list") {
            texts.push(fs::read_to_string(entry.path()).unwrap_or_default());
        }
    }
    let words = texts.iter().flat_map(|text| text.lines()).filter(|line| !line.trim_start().starts_with('#'));
    let mut addresses = words.flat_map(str::split_whitespace).filter(|word| word.starts_with("http"));
    addresses.find(|address| address.trim_end_matches('/').ends_with("debian")).map(str::to_owned)
}

/// A program that only this command needs; installed through apt when it is not there.
fn need(log: &Log, program: &str) -> anyhow::Result<()> {
    if Command::new(program).arg("--version").output().is_ok() {
        return Ok(());
    }
    log.run(Command::new("apt-get").args(["update", "-q"]))?;
    log.run(
        Command::new("apt-get")
            .args(["install", "-y", "-q", "--no-install-recommends", program])
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
    .with_context(|| format!("{program} is missing; to get it: apt-get install {program}"))
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?} failed: {error}", command.get_program());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Copies a file or a tree; links are followed, what is not there or leads nowhere is left out.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let Ok(kind) = fs::metadata(from) else { return Ok(()) };
    if kind.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let name = entry?.file_name();
            copy(&from.join(&name), &to.join(&name))?;
        }
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    // A link inside may lead out of the chroot once it is copied onto: replace it, never write through it.
    fs::remove_file(to).ok();
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_copied_and_links_are_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::create_dir_all(&to).unwrap();
        fs::write(from.join("sub/a"), "new").unwrap();
        fs::write(from.join("b"), "new").unwrap();
        let outside = dir.path().join("outside");
        fs::write(&outside, "kept").unwrap();
        std::os::unix::fs::symlink(&outside, to.join("b")).unwrap();
        std::os::unix::fs::symlink("/nowhere", from.join("broken")).unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("sub/a")).unwrap(), "new");
        assert_eq!(fs::read_to_string(to.join("b")).unwrap(), "new");
        assert_eq!(fs::read_to_string(&outside).unwrap(), "kept");
        assert!(!to.join("broken").exists());
    }
}
