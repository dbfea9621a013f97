//! The generator processes of a run, as the controller has them: commands out, replies in, their CPU time.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, Command as Process, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::control::{Command, Connect, Reply, User};
use crate::cpus::Cpus;
use crate::process::CpuTime;

/// Connections of one process: two sockets for each member (the server's and the floor's) stay below 20,000 files.
pub(crate) const CONNECTIONS_EACH: usize = 9_000;
/// Longest a command may take. Generators notice a stall themselves after 20 s.
const LONGEST: Duration = Duration::from_secs(600);
/// Connections from one source address: below the 28,000 ports that Linux gives out by default.
const CONNECTIONS_PER_SOURCE: usize = 10_000;

#[derive(Debug)]
pub(crate) struct Generator {
    child: Child,
    input: ChildStdin,
    replies: Receiver<std::io::Result<String>>,
}

impl Generator {
    fn start(cpus: &Cpus) -> anyhow::Result<Self> {
        let mut command = Process::new(std::env::current_exe()?);
        command.arg("generator").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = cpus.on_them(|| command.spawn()).context("cannot start a generator")?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("a generator without pipes")
        };
        // One reply to each command, so one place is enough.
        let (sender, replies) = sync_channel(1);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, input, replies })
    }

    /// Gives a command without waiting for its reply.
    pub(crate) fn begin(&mut self, command: &Command) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        self.input.write_all(&line).context("a generator ended")?;
        Ok(self.input.flush()?)
    }

    /// The reply to the command that was begun.
    pub(crate) fn end(&self) -> anyhow::Result<Reply> {
        self.end_within(LONGEST)?.with_context(|| format!("a generator did not answer within {LONGEST:?}"))
    }

    /// The same; `None` if it has not come by then.
    pub(crate) fn end_within(&self, within: Duration) -> anyhow::Result<Option<Reply>> {
        let line = match self.replies.recv_timeout(within) {
            Ok(line) => line?,
            Err(RecvTimeoutError::Timeout) => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("a generator ended"),
        };
        match serde_json::from_str(&line).context("a generator's reply")? {
            Reply::Failed { why } => bail!("{why}"),
            reply => Ok(Some(reply)),
        }
    }

    pub(crate) fn call(&mut self, command: &Command) -> anyhow::Result<Reply> {
        self.begin(command)?;
        self.end()
    }

    pub(crate) fn cpu(&self) -> anyhow::Result<CpuTime> {
        CpuTime::of(self.child.id()).context("a generator's CPU time")
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// All generators of a run, and which connection is where.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) generators: Vec<Generator>,
}

/// A connection: which generator, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) generator: usize,
    pub(crate) connection: u32,
}

impl Pool {
    /// As many processes as there are processors for them or as the connections need, whichever is more.
    pub(crate) fn start(cpus: &Cpus, connections: usize) -> anyhow::Result<Self> {
        let count =
            cpus.count().min(connections.div_ceil(16)).max(connections.div_ceil(CONNECTIONS_EACH)).max(1);
        let generators = (0..count).map(|_| Generator::start(cpus)).collect::<anyhow::Result<_>>()?;
        Ok(Self { generators })
    }

    /// Gives each generator its command and waits for all.
    pub(crate) fn all(&mut self, command: impl Fn(usize) -> Command) -> anyhow::Result<Vec<Reply>> {
        for (index, generator) in self.generators.iter_mut().enumerate() {
            generator.begin(&command(index))?;
        }
        // All are awaited before the first failure is told, so that the next command meets no old reply.
        let replies: Vec<_> = self.generators.iter().map(Generator::end).collect();
        replies.into_iter().collect()
    }

    /// The places that so many connections will have: in turn, one on each generator.
    pub(crate) fn places(&self, connections: usize) -> Vec<Place> {
        let count = self.generators.len();
        (0..connections)
            .map(|index| Place {
                generator: index % count,
                connection: u32::try_from(index / count).unwrap_or(u32::MAX),
            })
            .collect()
    }

    /// Connects and authenticates these users; the first connections of every generator must be theirs.
    pub(crate) fn connect(&mut self, server: SocketAddr, users: &[User]) -> anyhow::Result<Vec<Place>> {
        self.open(server, users, false)?;
        Ok(self.places(users.len()))
    }

    /// Connects so many plain sockets.
    pub(crate) fn connect_raw(&mut self, server: SocketAddr, count: usize) -> anyhow::Result<()> {
        self.open(server, &vec![User::default(); count], true)
    }

    fn open(&mut self, server: SocketAddr, users: &[User], raw: bool) -> anyhow::Result<()> {
        let count = self.generators.len();
        let each = users.len().div_ceil(count);
        let sources_each = each.div_ceil(CONNECTIONS_PER_SOURCE).max(1);
        self.all(|index| {
            let sources =
                (0..sources_each).map(|source| source_address(index * sources_each + source)).collect();
            let users = users.iter().skip(index).step_by(count).cloned().collect();
            Command::Connect(Connect { server, sources, users, raw, receive_buffer: None })
        })?;
        Ok(())
    }

    pub(crate) fn cpu(&self) -> anyhow::Result<Vec<CpuTime>> {
        self.generators.iter().map(Generator::cpu).collect()
    }

    /// CPU time that all generators used since then, in nanoseconds.
    pub(crate) fn cpu_since(&self, before: &[CpuTime]) -> anyhow::Result<u64> {
        Ok(self.cpu()?.iter().zip(before).map(|(now, before)| now.since(before)).sum())
    }

    /// Gives each generator its part of a plan that is made by connection.
    pub(crate) fn plan(
        &mut self,
        plan: &[(Place, Vec<u32>)],
        command: impl Fn(crate::control::Plan) -> Command,
    ) -> anyhow::Result<Vec<Reply>> {
        for (place, _) in plan {
            ensure!(place.generator < self.generators.len(), "there is no generator {}", place.generator);
        }
        self.all(|index| {
            let of_generator = plan.iter().filter(|(place, _)| place.generator == index);
            command(of_generator.map(|(place, rooms)| (place.connection, rooms.clone())).collect())
        })
    }
}

/// 127.0.0.2 and on: 127.0.0.1 is left to the server.
fn source_address(index: usize) -> Ipv4Addr {
    let number = u32::try_from(index).unwrap_or_default() % 0x00ff_fffc;
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 0, 2)) + number)
}

/// The highest head that any generator was told, by room.
pub(crate) fn heads(replies: &[Reply]) -> Vec<u64> {
    let mut highest: Vec<u64> = Vec::new();
    for reply in replies {
        let Reply::Subscribed { heads } = reply else { continue };
        highest.resize(highest.len().max(heads.len()), 0);
        for (highest, head) in highest.iter_mut().zip(heads) {
            *highest = (*highest).max(*head);
        }
    }
    highest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_loopback() {
        assert_eq!(source_address(0), Ipv4Addr::new(127, 0, 0, 2));
        assert_eq!(source_address(255), Ipv4Addr::new(127, 0, 1, 1));
        assert!(source_address(usize::MAX).is_loopback());
    }

    #[test]
    fn heads_are_the_highest() {
        let replies =
            [Reply::Subscribed { heads: vec![1, 5] }, Reply::Done, Reply::Subscribed { heads: vec![2, 4] }];
        assert_eq!(heads(&replies), [2, 5]);
    }
}
