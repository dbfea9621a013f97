//! Prometheus with the caller's configuration.
//!
//! Owns: one server and what it scraped. Does not: read its answers; they are JSON for the caller.

use crate::directory::Directory;
use crate::process::{Recipe, START_LIMIT};
use crate::{Ports, Process, http, tools};
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::path::Path;

/// A running server; also all that a [`Process`] can do. It ends with this value.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    address: SocketAddr,
    _ports: Ports,
    directory: Directory,
}

impl Deref for Prometheus {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Prometheus {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Prometheus {
    /// `configuration` is prometheus.yml; files that it names are given as `(name, text)` and lie beside it.
    pub async fn start(configuration: &str, files: &[(&str, &str)]) -> anyhow::Result<Self> {
        let program = tools::system("prometheus", "prometheus")?;
        let directory = Directory::make("prometheus")?;
        let ports = Ports::free(1)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.at(0)));
        for (name, text) in files.iter().chain(&[("prometheus.yml", configuration)]) {
            fs::write(directory.path().join(name), text)?;
        }
        let at = |name: &str| directory.path().join(name).display().to_string();
        let process = Process::start(Recipe {
            name: "prometheus".to_owned(),
            program,
            arguments: vec![
                format!("--config.file={}", at("prometheus.yml")).into(),
                format!("--storage.tsdb.path={}", at("data")).into(),
                format!("--web.listen-address={address}").into(),
                "--log.level=warn".into(),
            ],
            environment: Vec::new(),
            directory: directory.path().to_owned(),
        })?;
        let mut prometheus = Self { process, address, _ports: ports, directory };
        prometheus.wait_ready().await?;
        Ok(prometheus)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where its configuration lies.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Stops it when it runs and starts it with what it had.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.process.stop().await?;
        self.process.launch()?;
        self.wait_ready().await
    }

    /// Waits until it answers queries.
    pub async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let address = self.address;
        let answers = async || http::get(address, "/-/ready").await.map(|_| ());
        self.process.wait_until(START_LIMIT, answers).await
    }

    /// The answer to an instant query, as JSON.
    pub async fn query(&self, expression: &str) -> anyhow::Result<String> {
        let mut path = "/api/v1/query?query=".to_owned();
        for byte in expression.bytes() {
            if byte.is_ascii_alphanumeric() {
                path.push(char::from(byte));
            } else {
                write!(path, "%{byte:02X}")?;
            }
        }
        http::get(self.address, &path).await
    }
}
