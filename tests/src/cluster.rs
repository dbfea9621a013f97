//! A whole cluster on this machine: etcd, a CQL store, nodes of Banyan, HAProxy before those that clients may reach.
//!
//! Owns: the processes, their directories, ports and names. Always holds: all of it ends with the value; only processes
//! that it started are signalled.
//! Does not: talk to nodes as a client, nor judge what they do.

pub mod network;

use anyhow::{Context, bail, ensure};
use banyan_test_servers::balancer::{self, Balancer};
use banyan_test_servers::cassandra::{self, Cassandra, CommitLog};
use banyan_test_servers::etcd::{self, Etcd};
use banyan_test_servers::process::Recipe;
use banyan_test_servers::proxy::{Fault, FaultProxy};
use banyan_test_servers::{Ports, Process};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::clock::{Clock, Setting, Shim};
use network::{Network, Place};

/// How long a node may take until it is ready.
const NODE_LIMIT: Duration = Duration::from_secs(60);
/// Where clients of one machine come in: HAProxy before every gateway.
const LONG: &str = "1h";

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The `banyan` binary.
    pub binary: PathBuf,
    /// An empty directory for data and logs.
    pub directory: PathBuf,
    pub nodes: Vec<NodePlan>,
    pub etcd: usize,
    /// One, or three.
    pub cql: u8,
    pub commit_log: CommitLog,
    pub slots: u32,
    pub haproxy: bool,
    /// A proxy before each node's port for other nodes, which the node names as its address, and one between it and each
    /// server of etcd.
    pub proxies: bool,
    /// A wall clock of its own for each node, which tests may set.
    pub clocks: bool,
    /// Settings of every node beside the cluster's own.
    pub environment: Vec<(String, String)>,
}

impl Plan {
    /// One server of each kind and few slots, nothing between the nodes.
    pub fn small(binary: PathBuf, directory: PathBuf, nodes: Vec<NodePlan>) -> Self {
        Self {
            binary,
            directory,
            nodes,
            etcd: 1,
            cql: 1,
            commit_log: CommitLog::Group,
            slots: 64,
            haproxy: false,
            proxies: false,
            clocks: false,
            environment: Vec::new(),
        }
    }
}

/// One node.
#[derive(Debug, Clone)]
pub struct NodePlan {
    pub name: String,
    /// As `--roles` takes them.
    pub roles: &'static str,
}

impl NodePlan {
    pub fn new(name: impl Into<String>, roles: &'static str) -> Self {
        Self { name: name.into(), roles }
    }

    fn is_gateway(&self) -> bool {
        self.roles.contains("gateway")
    }
}

/// A node that runs, or could run again.
#[derive(Debug)]
pub struct Node {
    pub plan: NodePlan,
    pub process: Process,
    /// What other nodes reach this one through; as the plan says.
    pub proxy: Option<FaultProxy>,
    /// What this one reaches etcd through; as the plan says.
    pub to_etcd: Vec<FaultProxy>,
    /// As the plan says.
    pub clock: Option<Clock>,
    /// Where the cluster has a network of its own.
    pub place: Option<Place>,
    ports: Ports,
}

impl Node {
    fn at(&self, index: usize) -> SocketAddr {
        (address(self.place.as_ref()), self.ports.at(index)).into()
    }

    /// Where clients connect, if they may.
    pub fn clients(&self) -> Option<SocketAddr> {
        self.plan.is_gateway().then(|| self.at(0))
    }

    pub fn ops(&self) -> SocketAddr {
        self.at(1)
    }

    pub fn peers(&self) -> SocketAddr {
        self.at(2)
    }

    /// Makes this of what lies between the node and others, a proxy or the kernel: how other nodes find it.
    pub async fn before(&mut self, fault: Fault) -> anyhow::Result<()> {
        if let Some(proxy) = &self.proxy {
            proxy.set(fault);
        }
        match &mut self.place {
            Some(place) => place.before(fault).await,
            None => Ok(()),
        }
    }

    /// Makes this of what lies between the node and etcd, proxies or the kernel.
    pub async fn towards_etcd(&mut self, fault: Fault) -> anyhow::Result<()> {
        for proxy in &self.to_etcd {
            proxy.set(fault);
        }
        match &mut self.place {
            Some(place) => place.towards_etcd(fault).await,
            None => Ok(()),
        }
    }

    /// Its place in the cluster's own network.
    pub fn placed(&self) -> anyhow::Result<&Place> {
        self.place.as_ref().with_context(|| format!("{} has no network namespace of its own", self.plan.name))
    }

    /// Sets its wall clock, where the plan has clocks.
    pub fn set_clock(&mut self, setting: Setting) -> anyhow::Result<()> {
        let clock =
            self.clock.as_mut().with_context(|| format!("{} has no clock of its own", self.plan.name))?;
        clock.set(setting)
    }

    /// What `/readyz` says; an error if it does not answer.
    pub async fn readiness(&self) -> anyhow::Result<Value> {
        let body = get(self.ops(), "/readyz").await?;
        serde_json::from_str(&body).with_context(|| format!("/readyz says {body:?}"))
    }

    pub async fn wait_ready(&mut self) -> anyhow::Result<()> {
        self.wait_ready_within(NODE_LIMIT).await
    }

    pub async fn wait_ready_within(&mut self, limit: Duration) -> anyhow::Result<()> {
        let ops = self.ops();
        self.process
            .wait_until(limit, async || {
                let body = get(ops, "/readyz").await?;
                let value: Value = serde_json::from_str(&body)?;
                let status = value["status"].as_str().unwrap_or_default().to_owned();
                ensure!(status == "ready", "it is {status}: {value}");
                Ok(())
            })
            .await
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    pub plan: Plan,
    pub etcd: Etcd,
    pub cql: Cassandra,
    pub nodes: BTreeMap<String, Node>,
    pub haproxy: Option<(SocketAddr, Balancer)>,
    clocks: Option<Shim>,
    network: Option<Network>,
}

impl Cluster {
    /// Starts everything. `say` gets a line for each step.
    pub async fn start(plan: Plan, say: impl FnMut(&str)) -> anyhow::Result<Self> {
        Self::start_in(None, plan, say).await
    }

    /// The same in a network of this program's own, each node in a namespace with certificates for the others.
    pub async fn start_in(
        network: Option<Network>,
        plan: Plan,
        mut say: impl FnMut(&str),
    ) -> anyhow::Result<Self> {
        let [for_etcd, for_store] = match &network {
            Some(_) => [network::ETCD, network::STORE],
            None => [Ipv4Addr::LOCALHOST; 2],
        };
        say("etcd");
        let etcd = etcd::Builder::new().members(plan.etcd).client_address(for_etcd).start().await?;
        say("CQL store");
        let store = cassandra::Builder::new().nodes(plan.cql).first_address(for_store);
        let cql = store.commit_log(plan.commit_log).start().await?;
        let nodes = plan.nodes.clone();
        let clocks = plan.clocks.then(|| Shim::build(&plan.directory)).transpose()?;
        let mut cluster = Self { plan, etcd, cql, nodes: BTreeMap::new(), haproxy: None, clocks, network };
        say("schema");
        cluster.apply_schema()?;
        for node in nodes {
            say(&format!("node {}", node.name));
            cluster.add(node).await?;
        }
        if cluster.plan.haproxy {
            say("HAProxy");
            cluster.balance().await?;
        }
        Ok(cluster)
    }

    fn store_arguments(&self) -> Vec<OsString> {
        ["--scylla".into(), self.cql.contact_points().join(",").into()].into()
    }

    /// What commands about the ring are told: where etcd and the store are.
    pub fn ring_arguments(&self) -> Vec<OsString> {
        let mut arguments = self.store_arguments();
        arguments.extend(["--etcd".into(), self.etcd.endpoints().join(",").into()]);
        arguments
    }

    fn environment(&self) -> Vec<(OsString, OsString)> {
        let replication = self.plan.cql.to_string();
        [
            ("BANYAN_SCYLLA__DATACENTER", self.cql.datacenter().to_owned()),
            ("BANYAN_SCYLLA__REPLICATION", replication),
            ("BANYAN_CLUSTER__SLOTS", self.plan.slots.to_string()),
            ("BANYAN_ACCOUNTS__KEYS_DIR", self.plan.directory.join("keys").display().to_string()),
            // The tests' own machines are noisy; nobody guesses passwords here.
            ("BANYAN_ACCOUNTS__HASHING_MEMORY", "8MiB".to_owned()),
            ("BANYAN_LOG__FORMAT", "json".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()))
        .chain(self.plan.environment.iter().map(|(name, value)| (name.into(), value.into())))
        .collect()
    }

    fn apply_schema(&self) -> anyhow::Result<()> {
        let output = self.banyan(&["schema", "apply"]).args(self.store_arguments()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "banyan schema apply: {}", said.trim());
        Ok(())
    }

    /// A command of the binary, with the cluster's settings.
    pub fn banyan(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.plan.binary);
        command.args(arguments).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BANYAN_") {
                command.env_remove(name);
            }
        }
        command.envs(self.environment());
        command
    }

    fn recipe(
        &self,
        plan: &NodePlan,
        ports: &Ports,
        proxy: Option<&FaultProxy>,
        to_etcd: &[FaultProxy],
        clock: Option<&Clock>,
        place: Option<&Place>,
    ) -> anyhow::Result<Recipe> {
        let directory = self.plan.directory.join(&plan.name);
        std::fs::create_dir_all(&directory)?;
        let at = |index: usize| OsString::from(format!("{}:{}", address(place), ports.at(index)));
        let proxied: Vec<String> =
            to_etcd.iter().map(|proxy| format!("http://{}", proxy.address())).collect();
        let etcd = if proxied.is_empty() { self.etcd.endpoints() } else { proxied };
        let (program, mut arguments) = place
            .map_or_else(|| (self.plan.binary.clone(), Vec::new()), |place| place.run_in(&self.plan.binary));
        arguments.push("serve".into());
        for (flag, value) in [
            ("--node-id", plan.name.clone().into()),
            ("--roles", plan.roles.into()),
            ("--listen", at(0)),
            ("--ops-listen", at(1)),
            ("--peer-listen", at(2)),
            ("--etcd", etcd.join(",").into()),
            ("--data-dir", directory.join("data").into()),
        ] {
            arguments.extend([flag.into(), value]);
        }
        if let Some(proxy) = proxy {
            arguments.extend(["--advertise".into(), proxy.address().to_string().into()]);
        }
        if place.is_some() {
            let certs = self.certificates();
            let file = |name: String| certs.join(name).into();
            for (flag, file) in [
                ("--peer-ca", file("ca.pem".to_owned())),
                ("--peer-cert", file(format!("{}.pem", plan.name))),
                ("--peer-key", file(format!("{}.key", plan.name))),
            ] {
                arguments.extend([flag.into(), file]);
            }
        }
        arguments.extend(self.store_arguments());
        let mut environment = self.environment();
        if let (Some(shim), Some(clock)) = (&self.clocks, clock) {
            environment.extend(shim.environment(clock));
        }
        Ok(Recipe { name: plan.name.clone(), program, arguments, environment, directory })
    }

    fn certificates(&self) -> PathBuf {
        self.plan.directory.join("certs")
    }

    /// Beyond loopback nodes want to know who is there.
    fn certify(&self, plan: &NodePlan) -> anyhow::Result<()> {
        let mut command = self.banyan(&["gencerts", "--roles", plan.roles, "--dir"]);
        let output = command.arg(self.certificates()).arg(&plan.name).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "banyan gencerts: {}", said.trim());
        Ok(())
    }

    /// Starts one more node, and waits until it is ready.
    pub async fn add(&mut self, plan: NodePlan) -> anyhow::Result<()> {
        let mut node = self.begin(plan).await?;
        node.wait_ready().await?;
        self.nodes.insert(node.plan.name.clone(), node);
        Ok(())
    }

    /// Starts one more node, which may take its time to be ready, or never be.
    pub async fn place(&mut self, plan: NodePlan) -> anyhow::Result<()> {
        let node = self.begin(plan).await?;
        self.nodes.insert(node.plan.name.clone(), node);
        Ok(())
    }

    async fn begin(&mut self, plan: NodePlan) -> anyhow::Result<Node> {
        ensure!(!self.nodes.contains_key(&plan.name), "there is a node {} already", plan.name);
        let ports = Ports::free(3)?;
        let place = match &self.network {
            Some(network) => {
                self.certify(&plan)?;
                Some(network.place(&plan.name).await?)
            }
            None => None,
        };
        let peers: SocketAddr = (address(place.as_ref()), ports.at(2)).into();
        let (mut proxy, mut to_etcd) = (None, Vec::new());
        if self.plan.proxies {
            proxy = Some(FaultProxy::start(peers).await?);
            for member in 0..self.etcd.members() {
                to_etcd.push(FaultProxy::start(self.etcd.member(member).address()).await?);
            }
        }
        let clock = match &self.clocks {
            Some(_) => Some(Clock::make(self.plan.directory.join(format!("{}.clock", plan.name)))?),
            None => None,
        };
        let recipe = self.recipe(&plan, &ports, proxy.as_ref(), &to_etcd, clock.as_ref(), place.as_ref())?;
        let process = Process::start(recipe)?;
        Ok(Node { plan, process, proxy, to_etcd, clock, place, ports })
    }

    pub fn node(&mut self, name: &str) -> anyhow::Result<&mut Node> {
        self.nodes.get_mut(name).with_context(|| format!("there is no node {name}"))
    }

    /// Starts a node again on its old ports and directory. Does not wait until it is ready.
    pub fn launch(&mut self, name: &str) -> anyhow::Result<()> {
        self.node(name)?.process.launch()
    }

    /// Where clients may connect, of nodes that run.
    pub fn gateways(&self) -> Vec<SocketAddr> {
        self.nodes.values().filter_map(Node::clients).collect()
    }

    /// Where clients come in: through HAProxy where there is one, else at each gateway.
    pub fn doors(&self) -> Vec<SocketAddr> {
        self.haproxy.as_ref().map_or_else(|| self.gateways(), |(address, _)| vec![*address])
    }

    async fn balance(&mut self) -> anyhow::Result<()> {
        let ports = Ports::free(1)?;
        let address: SocketAddr = (Ipv4Addr::LOCALHOST, ports.at(0)).into();
        let mut servers = String::new();
        for node in self.nodes.values() {
            if let Some(clients) = node.clients() {
                let ops = node.ops().port();
                servers += &format!("    server {} {clients} check port {ops}\n", node.plan.name);
            }
        }
        if servers.is_empty() {
            bail!("no node of the plan is a gateway: HAProxy has nothing to lead to");
        }
        let configuration = format!(
            "global\n    maxconn 8000\ndefaults\n    mode http\n    timeout connect 2s\n    timeout client {LONG}\n    \
             timeout server {LONG}\n    timeout tunnel {LONG}\n    option httpchk GET /readyz\n\
             frontend clients\n    bind {address}\n    default_backend gateways\n\
             backend gateways\n    balance leastconn\n    default-server inter 500ms fall 2 rise 1\n{servers}"
        );
        let running = balancer::haproxy(configuration).listens(address).start().await?;
        self.haproxy = Some((address, running));
        Ok(())
    }
}

/// Where a node listens.
fn address(place: Option<&Place>) -> Ipv4Addr {
    place.map_or(Ipv4Addr::LOCALHOST, Place::address)
}

/// The body of a small answer of HTTP/1.
pub async fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(1 << 20).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (_, body) = answer.split_once("\r\n\r\n").context("no whole answer")?;
    Ok(body.to_owned())
}

/// As many nodes with both roles, named a, b, c, …
pub fn nodes(count: usize) -> Vec<NodePlan> {
    let name = |number: usize| match u8::try_from(number) {
        Ok(number @ 0..26) => char::from(b'a' + number).to_string(),
        _ => format!("n{number}"),
    };
    (0..count).map(|number| NodePlan::new(name(number), "gateway,shard")).collect()
}

/// Where a cluster's files go by default.
pub fn directory(root: &Path) -> PathBuf {
    root.join("cluster")
}
