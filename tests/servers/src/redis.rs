//! Redis, in memory only.
//!
//! Owns: one server. Does not: speak more of its protocol than `PING`.

use crate::directory::Directory;
use crate::process::{Recipe, START_LIMIT};
use crate::{Ports, Process, tools};
use anyhow::ensure;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::{Deref, DerefMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A running server; also all that a [`Process`] can do. It ends with this value.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    address: SocketAddr,
    _ports: Ports,
    _directory: Directory,
}

impl Deref for Redis {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Redis {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Redis {
    /// `arguments` go to the command line after ours, such as `["--maxmemory", "1mb"]`.
    pub async fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        let program = tools::system("redis-server", "redis-server")?;
        let directory = Directory::make("redis")?;
        let ports = Ports::free(1)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.at(0)));
        let port = ports.at(0).to_string();
        // No password, so loopback only; nothing is written, so a restart forgets all.
        let ours = ["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no"];
        let process = Process::start(Recipe {
            name: "redis".to_owned(),
            program,
            arguments: ours.iter().chain(arguments).map(Into::into).collect(),
            environment: Vec::new(),
            directory: directory.path().to_owned(),
        })?;
        let mut redis = Self { process, address, _ports: ports, _directory: directory };
        redis.wait_ready().await?;
        Ok(redis)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops it when it runs and starts it, empty.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.process.stop().await?;
        self.process.launch()?;
        self.wait_ready().await
    }

    /// Waits until it answers.
    pub async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let address = self.address;
        let answers = async || {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(b"PING\r\n").await?;
            let mut answer = [0; 7];
            stream.read_exact(&mut answer).await?;
            ensure!(&answer == b"+PONG\r\n", "it answers {:?}", String::from_utf8_lossy(&answer));
            Ok(())
        };
        self.process.wait_until(START_LIMIT, answers).await
    }
}
