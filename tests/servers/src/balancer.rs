//! HAProxy and nginx before servers of the tests, with the caller's configuration.
//!
//! Owns: the configuration's file, one process without a master or workers of its own (they would outlive a kill).
//! Always holds: a configuration is checked by its program before it runs; the error is the program's.
//! Does not: write configurations. Callers put in the ports of [`crate::Ports`].

use crate::directory::Directory;
use crate::process::{Recipe, START_LIMIT};
use crate::{Process, tools};
use anyhow::{Context, ensure};
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tokio::net::TcpStream;

/// What is to be started.
#[derive(Debug)]
pub struct Builder {
    kind: Kind,
    configuration: String,
    listens: Vec<SocketAddr>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Haproxy,
    Nginx,
}

/// HAProxy with a whole configuration.
pub fn haproxy(configuration: impl Into<String>) -> Builder {
    Builder { kind: Kind::Haproxy, configuration: configuration.into(), listens: Vec::new() }
}

/// nginx with what stands in its `http` block.
pub fn nginx(http: impl Into<String>) -> Builder {
    Builder { kind: Kind::Nginx, configuration: http.into(), listens: Vec::new() }
}

impl Builder {
    /// It is ready when it accepts connections there.
    #[must_use]
    pub fn listens(mut self, address: SocketAddr) -> Self {
        self.listens.push(address);
        self
    }

    pub async fn start(self) -> anyhow::Result<Balancer> {
        ensure!(!self.listens.is_empty(), "nobody could tell when it is ready: say where it listens");
        let directory = Directory::make("balancer")?;
        let (program, arguments, check) = match self.kind {
            Kind::Haproxy => haproxy_command(&self.configuration, directory.path())?,
            Kind::Nginx => nginx_command(&self.configuration, directory.path())?,
        };
        let output = Command::new(&program).args(&check).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("cannot run {}", program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} refuses the configuration: {}", program.display(), said.trim());
        let name = if matches!(self.kind, Kind::Haproxy) { "haproxy" } else { "nginx" };
        let process = Process::start(Recipe {
            name: name.to_owned(),
            program,
            arguments,
            environment: Vec::new(),
            directory: directory.path().to_owned(),
        })?;
        let mut balancer = Balancer { process, listens: self.listens, _directory: directory };
        balancer.wait_ready().await?;
        Ok(balancer)
    }
}

type Commands = (PathBuf, Vec<OsString>, Vec<OsString>);

fn haproxy_command(configuration: &str, directory: &Path) -> anyhow::Result<Commands> {
    let file = directory.join("haproxy.cfg");
    fs::write(&file, configuration)?;
    // In the foreground, whatever the configuration says.
    let run = vec!["-db".into(), "-f".into(), file.clone().into()];
    let check = vec!["-c".into(), "-f".into(), file.into()];
    Ok((tools::system("haproxy", "haproxy")?, run, check))
}

fn nginx_command(http: &str, directory: &Path) -> anyhow::Result<Commands> {
    let place = directory.to_str().context("the temporary directory's name is no UTF-8")?;
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("    {kind}_temp_path {place}/{kind};\n"))
        .collect();
    let configuration = format!(
        "daemon off;\nmaster_process off;\npid {place}/nginx.pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n    access_log off;\n{temporary}{http}\n}}\n"
    );
    let file = directory.join("nginx.conf");
    fs::write(&file, configuration)?;
    let run: Vec<OsString> =
        vec!["-e".into(), "stderr".into(), "-p".into(), place.into(), "-c".into(), file.into()];
    let check = [OsString::from("-t")].into_iter().chain(run.clone()).collect();
    Ok((tools::system("nginx", "nginx-light")?, run, check))
}

/// A running balancer; also all that a [`Process`] can do. It ends with this value.
#[derive(Debug)]
pub struct Balancer {
    process: Process,
    listens: Vec<SocketAddr>,
    _directory: Directory,
}

impl Deref for Balancer {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Balancer {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Balancer {
    /// Stops it when it runs, starts it with the same configuration.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.process.stop().await?;
        self.process.launch()?;
        self.wait_ready().await
    }

    async fn wait_ready(&mut self) -> anyhow::Result<()> {
        for address in self.listens.clone() {
            let accepts = async || {
                TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
                Ok(())
            };
            self.process.wait_until(START_LIMIT, accepts).await?;
        }
        Ok(())
    }
}
