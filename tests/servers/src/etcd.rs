//! etcd: one member or several, of the release that we run and of the oldest that we support.
//!
//! Owns: members, their data directories, snapshots of the whole and its restoration.
//! Always holds: addresses stay the same for the life of the value, through restarts and restorations.
//! Does not: speak gRPC. Readiness and leadership are read from the metrics port, which is plain HTTP also where
//! clients need TLS.

use crate::directory::Directory;
use crate::process::{Recipe, START_LIMIT};
use crate::{Ports, Process, http, tools};
use anyhow::{Context, bail, ensure};
use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Which etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// The current one, built from its module by `cargo xtask setup`.
    V3_6,
    /// The oldest that we support: the system's package.
    V3_4,
}

/// TLS for clients.
#[derive(Debug, Clone)]
pub struct Tls {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Clients must show a certificate of the CA.
    pub client_certificates: bool,
}

/// What is to be started. All of it has a default: one member of the current release.
#[derive(Debug, Clone)]
pub struct Builder {
    release: Release,
    members: usize,
    client_address: Ipv4Addr,
    arguments: Vec<OsString>,
    client_arguments: Vec<OsString>,
    tls: Option<Tls>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            release: Release::V3_6,
            members: 1,
            client_address: Ipv4Addr::LOCALHOST,
            arguments: Vec::new(),
            client_arguments: Vec::new(),
            tls: None,
        }
    }
}

impl Builder {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn release(mut self, release: Release) -> Self {
        self.release = release;
        self
    }

    #[must_use]
    pub fn members(mut self, members: usize) -> Self {
        self.members = members;
        self
    }

    /// Where members listen for clients, if not on 127.0.0.1; among each other they always do there.
    #[must_use]
    pub fn client_address(mut self, address: Ipv4Addr) -> Self {
        self.client_address = address;
        self
    }

    /// Another argument for every member, such as `--auto-compaction-retention=1s`.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Another argument for `etcdctl` when it saves a snapshot, such as `--user=root:word` where authentication is on.
    #[must_use]
    pub fn client_arg(mut self, argument: impl Into<OsString>) -> Self {
        self.client_arguments.push(argument.into());
        self
    }

    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Starts all members and waits until each is healthy.
    pub async fn start(self) -> anyhow::Result<Etcd> {
        ensure!(self.members > 0, "a cluster has members");
        let programs = Programs::find(self.release)?;
        let directory = Directory::make("etcd")?;
        let ports =
            Ports::free_on(&[Ipv4Addr::LOCALHOST.into(), self.client_address.into()], 3 * self.members)?;
        let peers: Vec<String> =
            (0..self.members).map(|i| format!("m{i}=http://127.0.0.1:{}", ports.at(3 * i + 1))).collect();
        let mut etcd = Etcd {
            members: Vec::new(),
            cluster: peers.join(","),
            programs,
            client_arguments: self.client_arguments.clone(),
            tls: self.tls.clone(),
            directory,
            _ports: ports,
        };
        for i in 0..self.members {
            let (client, metrics) = (etcd._ports.at(3 * i), etcd._ports.at(3 * i + 2));
            let member = etcd.recipe(&self, i, client, metrics);
            etcd.members.push(Member {
                process: Process::start(member)?,
                client: SocketAddr::from((self.client_address, client)),
                metrics: SocketAddr::from((Ipv4Addr::LOCALHOST, metrics)),
                scheme: if self.tls.is_some() { "https" } else { "http" },
            });
        }
        etcd.wait_ready().await?;
        Ok(etcd)
    }
}

/// The programs of a release.
#[derive(Debug, Clone)]
struct Programs {
    server: PathBuf,
    /// Saves snapshots.
    client: PathBuf,
    /// Makes data directories of snapshots.
    offline: PathBuf,
}

impl Programs {
    fn find(release: Release) -> anyhow::Result<Self> {
        match release {
            Release::V3_6 => Ok(Self {
                server: tools::installed("etcd/etcd")?,
                client: tools::installed("etcd/etcdctl")?,
                offline: tools::installed("etcd/etcdutl")?,
            }),
            Release::V3_4 => {
                let client = tools::system("etcdctl", "etcd-client")?;
                Ok(Self { server: tools::system("etcd", "etcd-server")?, offline: client.clone(), client })
            }
        }
    }
}

/// A cluster of etcd. It ends with this value.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    /// `--initial-cluster`.
    cluster: String,
    programs: Programs,
    client_arguments: Vec<OsString>,
    tls: Option<Tls>,
    directory: Directory,
    _ports: Ports,
}

/// One member; also all that a [`Process`] can do.
#[derive(Debug)]
pub struct Member {
    process: Process,
    client: SocketAddr,
    metrics: SocketAddr,
    scheme: &'static str,
}

impl Deref for Member {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Member {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Member {
    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.client
    }

    /// The same as a URL.
    pub fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.client)
    }

    /// Stops it when it runs, starts it on the same data and waits until it is healthy: that takes a quorum. To start
    /// several, [`Process::launch`] each and wait for [`Etcd::wait_ready`].
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.process.stop().await?;
        self.process.launch()?;
        self.wait_ready().await
    }

    /// Waits until it says that it can read through a quorum.
    pub async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let metrics = self.metrics;
        let healthy = async || {
            let health = http::get(metrics, "/health").await?;
            ensure!(health.contains(r#""health":"true""#), "it says {}", health.trim());
            Ok(())
        };
        self.process.wait_until(START_LIMIT, healthy).await
    }

    /// Whether it thinks that it leads.
    pub async fn leads(&self) -> anyhow::Result<bool> {
        let metrics = http::get(self.metrics, "/metrics").await?;
        Ok(metrics.lines().any(|line| line == "etcd_server_is_leader 1"))
    }
}

impl Etcd {
    /// A URL for each member.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(Member::endpoint).collect()
    }

    pub fn members(&self) -> usize {
        self.members.len()
    }

    pub fn member(&mut self, index: usize) -> &mut Member {
        &mut self.members[index]
    }

    /// Waits until each member is healthy.
    pub async fn wait_ready(&mut self) -> anyhow::Result<()> {
        for member in &mut self.members {
            member.wait_ready().await?;
        }
        Ok(())
    }

    /// The index of the member that leads, among those that answer.
    pub async fn leader(&self) -> anyhow::Result<usize> {
        for (index, member) in self.members.iter().enumerate() {
            let asked = tokio::time::timeout(std::time::Duration::from_secs(1), member.leads()).await;
            if matches!(asked, Ok(Ok(true))) {
                return Ok(index);
            }
        }
        bail!("no member says that it leads")
    }

    /// kill -9 of all.
    pub async fn kill_all(&mut self) -> anyhow::Result<()> {
        for member in &mut self.members {
            member.kill().await?;
        }
        Ok(())
    }

    /// Starts those that do not run, on their data, and waits until all are healthy.
    pub async fn start_all(&mut self) -> anyhow::Result<()> {
        for member in &mut self.members {
            if !member.is_running() {
                member.launch()?;
            }
        }
        self.wait_ready().await
    }

    /// Writes a snapshot of the first member that runs to `file`, which must not exist.
    pub async fn snapshot_save(&mut self, file: &Path) -> anyhow::Result<()> {
        let member = self.members.iter_mut().find_map(|m| m.is_running().then(|| m.endpoint()));
        let mut command = Command::new(&self.programs.client);
        command.arg(format!("--endpoints={}", member.context("no member runs")?));
        if let Some(tls) = &self.tls {
            command.arg("--cacert").arg(&tls.ca);
            if tls.client_certificates {
                command.arg("--cert").arg(&tls.cert).arg("--key").arg(&tls.key);
            }
        }
        command.args(&self.client_arguments).args(["snapshot", "save"]).arg(file);
        run(command).await
    }

    /// Kills all members, makes new data for each from `file` and starts them: the cluster as it was then, with a
    /// history that is shorter than what clients have seen.
    pub async fn snapshot_restore(&mut self, file: &Path) -> anyhow::Result<()> {
        self.kill_all().await?;
        for (i, peer) in self.cluster.split(',').enumerate() {
            let (name, url) = peer.split_once('=').context("a peer is NAME=URL")?;
            let data = self.data_dir(i);
            fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))?;
            let mut command = Command::new(&self.programs.offline);
            command.args(["snapshot", "restore"]).arg(file).arg("--data-dir").arg(&data);
            command.args(["--name", name, "--initial-cluster", &self.cluster]);
            command.args(["--initial-advertise-peer-urls", url, "--initial-cluster-token", TOKEN]);
            run(command).await?;
        }
        self.start_all().await
    }

    fn data_dir(&self, member: usize) -> PathBuf {
        self.directory.path().join(format!("m{member}.data"))
    }

    fn recipe(&self, builder: &Builder, index: usize, client: u16, metrics: u16) -> Recipe {
        let name = format!("m{index}");
        let scheme = if builder.tls.is_some() { "https" } else { "http" };
        let client = format!("{scheme}://{}:{client}", builder.client_address);
        let peer =
            self.cluster.split(',').nth(index).and_then(|peer| peer.split_once('=')).map_or("", |p| p.1);
        let mut arguments: Vec<OsString> = vec!["--data-dir".into(), self.data_dir(index).into()];
        let metrics = format!("http://127.0.0.1:{metrics}");
        for (flag, value) in [
            ("--name", name.as_str()),
            ("--listen-client-urls", &client),
            ("--advertise-client-urls", &client),
            ("--listen-peer-urls", peer),
            ("--initial-advertise-peer-urls", peer),
            ("--listen-metrics-urls", &metrics),
            ("--initial-cluster", &self.cluster),
            ("--initial-cluster-token", TOKEN),
            // The older release has another logger by default, without levels.
            ("--logger", "zap"),
            ("--log-level", "warn"),
            ("--log-outputs", "stderr"),
        ] {
            arguments.extend([flag.into(), value.into()]);
        }
        if let Some(tls) = &builder.tls {
            arguments.extend(["--cert-file".into(), tls.cert.clone().into()]);
            arguments.extend(["--key-file".into(), tls.key.clone().into()]);
            arguments.extend(["--trusted-ca-file".into(), tls.ca.clone().into()]);
            if tls.client_certificates {
                arguments.push("--client-cert-auth".into());
            }
        }
        arguments.extend(builder.arguments.iter().cloned());
        Recipe {
            name: format!("etcd-{name}"),
            program: self.programs.server.clone(),
            arguments,
            environment: Vec::new(),
            directory: self.directory.path().to_owned(),
        }
    }
}

/// Keeps members of clusters apart that get each other's ports one after the other.
const TOKEN: &str = "banyan-test";

/// Runs a short command; what it printed is in the error.
async fn run(mut command: Command) -> anyhow::Result<()> {
    // Variables that configure these programs are not the tests'.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ETCD") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).env("ETCDCTL_API", "3");
    let output = tokio::task::spawn_blocking(move || {
        let shown = format!("{command:?}");
        command.output().with_context(|| format!("cannot run {shown}")).map(|output| (shown, output))
    });
    let (shown, output) = output.await??;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{shown} ended with {}: {}", output.status, error.trim());
    Ok(())
}
