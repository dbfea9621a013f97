//! The balancers' configurations of deploy/, run for real before three gateways.
//!
//! Owns: HAProxy and nginx with those files, three `banyan` behind them. Each is a node of its own here: what is tested
//! is which connections reach which gateway, not what is said on them.
//! Does not: test what the nodes of a cluster say to each other.

use anyhow::{Context, bail, ensure};
use banyan_test_servers::balancer::{self, Balancer};
use banyan_test_servers::process::{Recipe, START_LIMIT};
use banyan_test_servers::{Ports, Process};
use rustix::process::Signal;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// An answer through a balancer, retries on a dead gateway included.
const SOON: Duration = Duration::from_secs(20);

/// The built server: `BANYAN_BIN` when set, else beside the test binaries of this build.
fn banyan() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("BANYAN_BIN") {
        return Ok(path.into());
    }
    let me = std::env::current_exe()?;
    let found = me.ancestors().skip(1).take(2).map(|dir| dir.join("banyan")).find(|path| path.is_file());
    found.context(
        "there is no `banyan` beside the tests: run `cargo build -p banyan`, or set BANYAN_BIN to one",
    )
}

fn file_of_deploy(name: &str) -> anyhow::Result<String> {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").context("run it with cargo")?);
    let path = root.join("../../deploy").join(name);
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Replaces what stands exactly `times` in a configuration.
fn replaced(text: &str, times: usize, from: &str, to: &str) -> anyhow::Result<String> {
    let found = text.matches(from).count();
    ensure!(found == times, "{from:?} stands {found} times in the configuration, not {times}");
    Ok(text.replace(from, to))
}

/// Three gateways on 127.0.0.1 to .3 with the same ports, as three machines would have them.
struct Gateways {
    gateways: Vec<Gateway>,
    ports: Ports,
    _directory: TempDir,
}

struct Gateway {
    process: Process,
    clients: SocketAddr,
    ops: SocketAddr,
}

impl Gateways {
    async fn start(proxy_protocol: &str) -> anyhow::Result<Self> {
        let program = banyan()?;
        let addresses: Vec<IpAddr> = (1..=3).map(|n| Ipv4Addr::new(127, 0, 0, n).into()).collect();
        let ports = Ports::free_on(&addresses, 3)?;
        let directory = tempfile::Builder::new().prefix("banyan-gateways-").tempdir()?;
        let mut gateways = Vec::new();
        for (index, ip) in addresses.iter().enumerate() {
            let (clients, ops) = (SocketAddr::from((*ip, ports.at(0))), SocketAddr::from((*ip, ports.at(1))));
            let home = directory.path().join(format!("gateway-{}", index + 1));
            std::fs::create_dir(&home)?;
            let arguments = [
                "serve",
                "--listen",
                &clients.to_string(),
                "--ops-listen",
                &ops.to_string(),
                "--data-dir",
                "data",
            ];
            let settings = [
                // Its clients never say who they are.
                ("BANYAN_GATEWAY__AUTH_TIMEOUT", "60s"),
                ("BANYAN_GATEWAY__TRUSTED_PROXIES", "127.0.0.0/8"),
                ("BANYAN_GATEWAY__PROXY_PROTOCOL", proxy_protocol),
            ];
            let process = Process::start(Recipe {
                name: format!("gateway-{}", index + 1),
                program: program.clone(),
                arguments: arguments.iter().map(Into::into).collect(),
                environment: settings.iter().map(|(name, value)| (name.into(), value.into())).collect(),
                directory: home,
            })?;
            gateways.push(Gateway { process, clients, ops });
        }
        let mut all = Self { gateways, ports, _directory: directory };
        for gateway in &mut all.gateways {
            gateway.wait_ready().await?;
        }
        Ok(all)
    }

    /// Where the balancer listens.
    fn door(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.at(2)))
    }

    /// The configuration with our addresses in the place of the cluster's.
    fn put_into(&self, text: &str) -> anyhow::Result<String> {
        let mut text = text.to_owned();
        for (index, gateway) in self.gateways.iter().enumerate() {
            text = replaced(&text, 1, &format!("gateway-{}:8000", index + 1), &gateway.clients.to_string())?;
        }
        Ok(text)
    }
}

impl Gateway {
    async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let ops = self.ops;
        let ready = async || {
            let answer = get(ops, "/readyz").await?;
            ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            Ok(())
        };
        self.process.wait_until(START_LIMIT, ready).await
    }

    /// WebSockets that are open, over all workers.
    async fn connections(&self) -> anyhow::Result<u64> {
        let metrics = get(self.ops, "/metrics").await?;
        let gauges = metrics.lines().filter(|line| line.starts_with("banyan_gateway_connections{"));
        // None yet in a gateway that has just started.
        let counts = gauges.map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<u64>());
        Ok(counts.sum::<Result<_, _>>()?)
    }
}

async fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    timeout(SOON, asked).await.with_context(|| format!("{address}{path}: no answer"))?
}

/// Asks for a WebSocket; the open connection, or what came instead.
async fn upgrade(mut stream: TcpStream) -> anyhow::Result<TcpStream> {
    let host = stream.peer_addr()?;
    let request = format!(
        "GET /v1/ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let head = timeout(SOON, head(&mut stream)).await.context("no answer to the upgrade")??;
    ensure!(head.starts_with("HTTP/1.1 101"), "{head}");
    ensure!(head.to_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    Ok(stream)
}

/// An answer's head, byte by byte: nothing behind it is read.
async fn head(stream: &mut TcpStream) -> anyhow::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < 16 * 1024, "the head does not end");
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

async fn connect(door: SocketAddr) -> anyhow::Result<TcpStream> {
    upgrade(TcpStream::connect(door).await?).await
}

/// Whether the other side ended the connection within `limit`; what it says before is let go.
async fn ends(stream: &mut TcpStream, limit: Duration) -> bool {
    let all = async { while matches!(stream.read(&mut [0; 1024]).await, Ok(1..)) {} };
    timeout(limit, all).await.is_ok()
}

/// Those who are connected still.
async fn living(clients: Vec<TcpStream>) -> Vec<TcpStream> {
    let mut alive = Vec::new();
    for mut client in clients {
        if !ends(&mut client, Duration::from_millis(100)).await {
            alive.push(client);
        }
    }
    alive
}

/// What every balancer must do.
async fn behaves(balancer: &mut Balancer, cluster: &mut Gateways) -> anyhow::Result<()> {
    let door = cluster.door();
    // The page, whole.
    let page = get(door, "/").await?;
    ensure!(page.starts_with("HTTP/1.1 200") && page.contains("</html>"), "{}", &page[..page.len().min(500)]);

    // A dozen clients are spread over all gateways.
    let mut clients = Vec::new();
    for _ in 0..12 {
        clients.push(connect(door).await?);
    }
    // The gauge follows within a second.
    let until = Instant::now() + SOON;
    loop {
        let mut counts = Vec::new();
        for gateway in &cluster.gateways {
            counts.push(gateway.connections().await?);
        }
        if counts == [4, 4, 4] {
            break;
        }
        ensure!(Instant::now() < until, "12 clients are spread as {counts:?}");
        sleep(Duration::from_millis(50)).await;
    }

    // An upgrade behind another request of the same client still comes first on its connection to the gateway.
    let mut stream = TcpStream::connect(door).await?;
    stream.write_all(format!("GET /v1/ws HTTP/1.1\r\nHost: {door}\r\n\r\n").as_bytes()).await?;
    let refused = timeout(SOON, head(&mut stream)).await??;
    ensure!(refused.starts_with("HTTP/1.1 426"), "{refused}");
    let length =
        refused.to_lowercase().lines().find_map(|l| l.strip_prefix("content-length: ").map(str::to_owned));
    let mut body = vec![0; length.context("no content-length")?.parse()?];
    stream.read_exact(&mut body).await?;
    clients.push(upgrade(stream).await?);

    // One stops in good order: its clients are sent away, others stay, and whoever connects meanwhile is served.
    cluster.gateways[0].process.signal(Signal::TERM)?;
    let until = Instant::now() + SOON;
    let mut during = 0;
    while cluster.gateways[0].process.is_running() {
        ensure!(
            Instant::now() < until,
            "the gateway does not end: {}",
            cluster.gateways[0].process.log_tail()
        );
        connect(door).await.context("while a gateway drains")?;
        during += 1;
        sleep(Duration::from_millis(20)).await;
    }
    ensure!(during > 0, "nobody connected during the drain");
    // A balancer may pass the end on a moment later.
    let (until, mut alive) = (Instant::now() + SOON, clients);
    while alive.len() > 9 {
        ensure!(Instant::now() < until, "{} of 13 clients are left, 4 or 5 were on the gateway", alive.len());
        alive = living(alive).await;
    }
    alive = living(alive).await;
    ensure!(alive.len() >= 8, "{} of 13 clients are left, 4 or 5 were on the gateway", alive.len());

    // One is killed: nobody is told, and the next client is served all the same.
    cluster.gateways[1].process.kill().await?;
    for _ in 0..6 {
        connect(door).await.context("after a gateway was killed")?;
    }
    ensure!(balancer.is_running(), "the balancer ended: {}", balancer.log_tail());

    // One comes back and gets clients again.
    let back = &mut cluster.gateways[0];
    back.process.launch()?;
    back.wait_ready().await?;
    let until = Instant::now() + Duration::from_secs(60);
    let mut clients = Vec::new();
    while back.connections().await? == 0 {
        if Instant::now() > until {
            bail!("a gateway that is back gets no clients; {}", balancer.log_tail());
        }
        clients.push(connect(door).await?);
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

#[tokio::test]
async fn haproxy_spreads_drains_and_survives() -> anyhow::Result<()> {
    let mut cluster = Gateways::start("on").await?;
    let text = cluster.put_into(&file_of_deploy("haproxy/haproxy.cfg")?)?;
    let text = replaced(&text, 1, "bind :8000", &format!("bind {}", cluster.door()))?;
    let text = replaced(&text, 1, "port 9000", &format!("port {}", cluster.ports.at(1)))?;
    // Files that it may open are counted at the start; a test's machine may allow few.
    let text = replaced(&text, 1, "maxconn 100000", "maxconn 1000")?;
    let mut balancer = balancer::haproxy(text).listens(cluster.door()).start().await?;
    // The header is what opens the door: without it nobody is served, so HAProxy sends it.
    let direct = connect(cluster.gateways[0].clients).await;
    ensure!(direct.is_err(), "a gateway that expects PROXY headers serves who sends none");
    behaves(&mut balancer, &mut cluster).await
}

#[tokio::test]
async fn nginx_spreads_drains_and_survives() -> anyhow::Result<()> {
    let mut cluster = Gateways::start("off").await?;
    let text = cluster.put_into(&file_of_deploy("nginx/banyan.conf")?)?;
    let text = replaced(&text, 1, "listen 8000", &format!("listen {}", cluster.door()))?;
    let mut balancer = balancer::nginx(text).listens(cluster.door()).start().await?;
    behaves(&mut balancer, &mut cluster).await
}
