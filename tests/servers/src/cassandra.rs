//! Apache Cassandra: one node or several, the CQL server of the tests where no ScyllaDB can be had.
//!
//! Owns: nodes on 127.0.0.1, .2, … or other addresses in a row, their configuration and data; proxies before them when asked for.
//! Always holds: all nodes of a cluster have the same port, as drivers expect; nobody else's cluster joins (the
//! storage port is the cluster's own).
//! Does not: make keyspaces. A real server takes its place where [`external`] names one.

use crate::directory::Directory;
use crate::process::{Recipe, START_LIMIT};
use crate::proxy::FaultProxy;
use crate::{Ports, Process, cql, tools};
use anyhow::{Context, ensure};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

/// When a write is on disk, relative to its acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitLog {
    /// Before it, with others of the same few milliseconds.
    Group,
    /// Before it, each as soon as the disk is free.
    Batch,
    /// Up to ten seconds after it: the server's default, and not durable.
    Periodic,
}

/// What is to be started. All of it has a default: one node, [`CommitLog::Group`].
#[derive(Debug, Clone)]
pub struct Builder {
    nodes: u8,
    first_address: Ipv4Addr,
    commit_log: CommitLog,
    heap_mib: u32,
    proxied: bool,
    settings: Vec<String>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            nodes: 1,
            first_address: Ipv4Addr::LOCALHOST,
            commit_log: CommitLog::Group,
            heap_mib: DEFAULT_HEAP_MIB,
            proxied: false,
            settings: Vec::new(),
        }
    }
}

/// Enough for the tests' data; three nodes share a machine with everything else.
const DEFAULT_HEAP_MIB: u32 = 384;

/// The commit log's window: a few writes share a sync, and none waits long.
const GROUP_WINDOW_MS: u32 = 2;

/// A server that exists already (`BANYAN_TEST_CQL=HOST:PORT`), such as a real ScyllaDB: tests that need no control
/// over its life may use it instead.
pub fn external() -> Option<String> {
    std::env::var("BANYAN_TEST_CQL").ok().filter(|address| !address.is_empty())
}

impl Builder {
    pub fn new() -> Self {
        Self::default()
    }

    /// One, or three to nine: two nodes have no quorum to lose.
    #[must_use]
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// Where the first node listens, if not on 127.0.0.1; the others do on the addresses after it.
    #[must_use]
    pub fn first_address(mut self, address: Ipv4Addr) -> Self {
        self.first_address = address;
        self
    }

    #[must_use]
    pub fn commit_log(mut self, commit_log: CommitLog) -> Self {
        self.commit_log = commit_log;
        self
    }

    #[must_use]
    pub fn heap_mib(mut self, heap_mib: u32) -> Self {
        self.heap_mib = heap_mib;
        self
    }

    /// Puts a [`FaultProxy`] on 127.0.1.N before each node and has the nodes tell drivers those addresses, so that
    /// every connection of a driver can be broken.
    #[must_use]
    pub fn proxied(mut self, proxied: bool) -> Self {
        self.proxied = proxied;
        self
    }

    /// Another line of cassandra.yaml, such as `phi_convict_threshold: 5`.
    #[must_use]
    pub fn setting(mut self, line: impl Into<String>) -> Self {
        self.settings.push(line.into());
        self
    }

    /// Starts all nodes and waits until each serves clients and sees all others.
    pub async fn start(self) -> anyhow::Result<Cassandra> {
        ensure!(matches!(self.nodes, 1 | 3..=9), "{} nodes: one or three to nine are possible", self.nodes);
        let java = tools::system("java", "default-jre-headless")?;
        let jars = jars(&tools::installed("cassandra/lib")?)?;
        let directory = Directory::make("cassandra")?;
        let first = self.first_address.to_bits();
        let own: Vec<IpAddr> =
            (0..u32::from(self.nodes)).map(|n| Ipv4Addr::from_bits(first + n).into()).collect();
        let shown: Vec<IpAddr> = (1..=self.nodes).map(|n| Ipv4Addr::new(127, 0, 1, n).into()).collect();
        let all: Vec<IpAddr> = own.iter().chain(&shown).copied().collect();
        let ports = Ports::free_on(&all, 2)?;
        let (native, storage) = (ports.at(0), ports.at(1));
        let seeds: Vec<String> = own.iter().map(|ip| format!("{ip}:{storage}")).collect();
        let mut cluster = Cassandra { nodes: Vec::new(), proxies: Vec::new(), directory, _ports: ports };
        for (index, ip) in own.iter().enumerate() {
            let place = Place {
                home: cluster.directory.path().join(format!("node{}", index + 1)),
                ip: *ip,
                native,
                storage,
                shown: if self.proxied { shown[index] } else { *ip },
                token: token(index, own.len()),
                seeds: seeds.join(","),
            };
            fs::create_dir_all(&place.home)?;
            fs::write(place.home.join("cassandra.yaml"), self.yaml(&place)?)?;
            fs::write(place.home.join("logback.xml"), LOGBACK)?;
            if self.proxied {
                let listen = SocketAddr::from((shown[index], native));
                cluster.proxies.push(FaultProxy::start_at(listen, SocketAddr::from((*ip, native))).await?);
            }
            let process = Process::start(self.recipe(&place, &java, &jars)?)?;
            let direct = SocketAddr::from((*ip, native));
            let shown = SocketAddr::from((place.shown, native));
            cluster.nodes.push(Node { process, direct, shown });
        }
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    fn yaml(&self, place: &Place) -> anyhow::Result<String> {
        let data = place.home.join("data");
        let data = data.to_str().context("the temporary directory's name is no UTF-8")?;
        let mut yaml = format!(
            "cluster_name: banyan-test\n\
             num_tokens: 1\n\
             initial_token: {token}\n\
             partitioner: org.apache.cassandra.dht.Murmur3Partitioner\n\
             endpoint_snitch: SimpleSnitch\n\
             commitlog_directory: {data}/commitlog\n\
             data_file_directories: [ {data}/data ]\n\
             hints_directory: {data}/hints\n\
             saved_caches_directory: {data}/saved_caches\n\
             cdc_raw_directory: {data}/cdc\n\
             listen_address: {ip}\n\
             storage_port: {storage}\n\
             rpc_address: {ip}\n\
             broadcast_rpc_address: {shown}\n\
             start_native_transport: true\n\
             native_transport_port: {native}\n\
             auto_snapshot: false\n\
             auto_bootstrap: false\n\
             commitlog_segment_size: 8MiB\n\
             commitlog_total_space: 128MiB\n\
             memtable_heap_space: 64MiB\n\
             memtable_offheap_space: 64MiB\n\
             concurrent_reads: 16\n\
             concurrent_writes: 128\n\
             seed_provider:\n\
             \x20 - class_name: org.apache.cassandra.locator.SimpleSeedProvider\n\
             \x20   parameters: [ {{ seeds: \"{seeds}\" }} ]\n",
            token = place.token,
            ip = place.ip,
            storage = place.storage,
            native = place.native,
            shown = place.shown,
            seeds = place.seeds,
        );
        match self.commit_log {
            CommitLog::Group => {
                write!(yaml, "commitlog_sync: group\ncommitlog_sync_group_window: {GROUP_WINDOW_MS}ms\n")?;
            }
            CommitLog::Batch => yaml.push_str("commitlog_sync: batch\n"),
            CommitLog::Periodic => {
                yaml.push_str("commitlog_sync: periodic\ncommitlog_sync_period: 10000ms\n");
            }
        }
        for line in &self.settings {
            writeln!(yaml, "{line}")?;
        }
        Ok(yaml)
    }

    fn recipe(&self, place: &Place, java: &Path, jars: &str) -> anyhow::Result<Recipe> {
        let home = place.home.to_str().context("the temporary directory's name is no UTF-8")?;
        let mut arguments = vec![
            format!("-Xms{}m", self.heap_mib),
            format!("-Xmx{}m", self.heap_mib),
            // Two cores for everything: a collector with threads of its own would take them from the server.
            "-XX:+UseSerialGC".to_owned(),
            // So would the optimising compiler, which is at work for the first minutes of what are short lives.
            "-XX:TieredStopAtLevel=1".to_owned(),
            "-Xss512k".to_owned(),
            "-XX:+ExitOnOutOfMemoryError".to_owned(),
            "-XX:-UsePerfData".to_owned(),
            format!("-Dcassandra.config=file://{home}/cassandra.yaml"),
            format!("-Dlogback.configurationFile=file://{home}/logback.xml"),
            format!("-Dcassandra.storagedir={home}/data"),
            format!("-Djava.io.tmpdir={home}"),
            // Known nodes, no data to move: nothing to wait for.
            "-Dcassandra.ring_delay_ms=100".to_owned(),
            "-Dcassandra.skip_wait_for_gossip_to_settle=0".to_owned(),
        ];
        arguments.extend(JAVA_17.iter().map(|&argument| argument.to_owned()));
        for (option, packages) in [("--add-exports", EXPORTS), ("--add-opens", OPENS)] {
            for package in packages {
                arguments.extend([option.to_owned(), format!("{package}=ALL-UNNAMED")]);
            }
        }
        arguments.extend(["-cp".to_owned(), jars.to_owned()]);
        arguments.push("org.apache.cassandra.service.CassandraDaemon".to_owned());
        Ok(Recipe {
            name: format!("cassandra-{}", place.ip),
            program: java.to_owned(),
            arguments: arguments.into_iter().map(OsString::from).collect(),
            environment: Vec::new(),
            directory: place.home.clone(),
        })
    }
}

/// Where a node lives.
struct Place {
    home: PathBuf,
    ip: IpAddr,
    native: u16,
    storage: u16,
    /// What drivers are told.
    shown: IpAddr,
    token: i64,
    seeds: String,
}

/// Even parts of the ring. Nodes that choose for themselves at the same moment may choose the same.
fn token(index: usize, nodes: usize) -> i64 {
    let part = (u128::from(u64::MAX) + 1) * index as u128 / nodes as u128;
    i64::try_from(part.cast_signed() + i128::from(i64::MIN)).unwrap_or(i64::MAX) + 1
}

fn jars(lib: &Path) -> anyhow::Result<String> {
    let mut jars = Vec::new();
    for entry in fs::read_dir(lib).with_context(|| format!("cannot read {}", lib.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "jar") {
            jars.push(path.into_os_string().into_string().ok().context("a file name is no UTF-8")?);
        }
    }
    ensure!(!jars.is_empty(), "{} holds no jars: run `cargo xtask setup`", lib.display());
    jars.sort();
    Ok(jars.join(":"))
}

/// The default level would be DEBUG.
const LOGBACK: &str = r#"<configuration>
  <appender name="OUT" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%-5level %d{HH:mm:ss.SSS} [%thread] %logger{0}: %msg%n</pattern></encoder>
  </appender>
  <root level="WARN"><appender-ref ref="OUT"/></root>
</configuration>
"#;

/// What Cassandra 5.0 needs of Java 17: it reaches into the runtime.
const JAVA_17: &[&str] = &[
    "-Djdk.attach.allowAttachSelf=true",
    "-Djava.security.manager=allow",
    "-Dio.netty.tryReflectionSetAccessible=true",
];

const EXPORTS: &[&str] = &[
    "java.base/java.lang.ref",
    "java.base/jdk.internal.misc",
    "java.base/jdk.internal.ref",
    "java.base/sun.nio.ch",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi",
    "java.rmi/sun.rmi.registry",
    "java.rmi/sun.rmi.server",
    "java.sql/java.sql",
    "jdk.attach/sun.tools.attach",
    "jdk.compiler/com.sun.tools.javac.file",
    "jdk.unsupported/sun.misc",
];

const OPENS: &[&str] = &[
    "java.base/java.io",
    "java.base/java.lang",
    "java.base/java.lang.module",
    "java.base/java.lang.reflect",
    "java.base/java.nio",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/jdk.internal.loader",
    "java.base/jdk.internal.math",
    "java.base/jdk.internal.module",
    "java.base/jdk.internal.ref",
    "java.base/jdk.internal.reflect",
    "java.base/jdk.internal.util.jar",
    "java.base/sun.nio.ch",
    "java.rmi/sun.rmi.transport.tcp",
    "jdk.management/com.sun.management.internal",
];

/// A cluster. It ends with this value.
#[derive(Debug)]
pub struct Cassandra {
    nodes: Vec<Node>,
    /// One before each node, or none.
    proxies: Vec<FaultProxy>,
    directory: Directory,
    _ports: Ports,
}

/// One node; also all that a [`Process`] can do.
#[derive(Debug)]
pub struct Node {
    process: Process,
    /// The node's own, without a proxy.
    direct: SocketAddr,
    /// What drivers are told.
    shown: SocketAddr,
}

impl Deref for Node {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Node {
    /// Where drivers connect: the node itself, or the proxy before it.
    pub fn address(&self) -> SocketAddr {
        self.shown
    }

    /// Stops it when it runs, starts it on the same data and waits until it serves clients. That the others see it
    /// again takes a little longer: [`Cassandra::wait_ready`].
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.process.stop().await?;
        self.process.launch()?;
        self.wait_ready().await
    }

    /// Waits until it serves clients.
    pub async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let direct = self.direct;
        self.process.wait_until(START_LIMIT, async || cql::serves(direct, None).await).await
    }
}

impl Cassandra {
    /// `HOST:PORT` of each node.
    pub fn contact_points(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address().to_string()).collect()
    }

    /// The only one that there is.
    pub fn datacenter(&self) -> &'static str {
        "datacenter1"
    }

    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    pub fn node(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    /// The proxy before a node. Panics where the cluster was not started with [`Builder::proxied`].
    pub fn proxy(&self, index: usize) -> &FaultProxy {
        &self.proxies[index]
    }

    /// Waits until each node serves clients and reaches all others.
    pub async fn wait_ready(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            node.wait_ready().await?;
        }
        // A keyspace of the server's own with three replicas, read from all of them, tells what gossip thinks.
        let all = "SELECT parent_id FROM system_distributed.parent_repair_history LIMIT 1";
        let statement = (self.nodes.len() > 1).then_some(all);
        for node in &mut self.nodes {
            let direct = node.direct;
            node.wait_until(START_LIMIT, async || cql::serves(direct, statement).await).await?;
        }
        Ok(())
    }

    /// kill -9 of all.
    pub async fn kill_all(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            node.kill().await?;
        }
        Ok(())
    }

    /// Starts those that do not run, on their data, and waits as [`Cassandra::wait_ready`] does.
    pub async fn start_all(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            if !node.is_running() {
                node.launch()?;
            }
        }
        self.wait_ready().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_even_parts_of_the_ring() {
        assert_eq!(token(0, 1), i64::MIN + 1);
        let [a, b, c] = [0, 1, 2].map(|index| token(index, 3));
        assert!(a < b && b < c, "{a} {b} {c}");
        assert!(((i128::from(c) - i128::from(b)) - (i128::from(b) - i128::from(a))).abs() <= 1);
    }
}
