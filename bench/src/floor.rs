//! The floor: what the kernel alone takes for the same sends. A process of its own, bound like the server, that does one
//! `send()` per socket of the same bytes over the same number of loopback sockets to the same receivers, and nothing else.
//!
//! Always holds: like the server's measure, the next event begins when the last receiver has the one before; so
//! receivers are woken by the sends. Not measured: a real network card, where the split between sender and receiver differs.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command as Process, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SendFlags, send};
use serde::{Deserialize, Serialize};

use crate::clock::{now_ns, own_cpu_ns};
use crate::codec;
use crate::control::{Command, Reply};
use crate::cpus::Cpus;
use crate::pool::Pool;

/// Receivers that say nothing for so long do not get what was sent.
const STALL: Duration = Duration::from_secs(20);

/// In which order the sockets are visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// As they were accepted: the order of the kernel's memory.
    Memory,
    /// As rooms of five that were filled in turn would have it: every (n/5)th.
    Strided,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) order: Order,
    pub(crate) frames_per_send: u64,
}

/// One event per send in memory order is the floor of one in flight; eight per send that of eight.
pub(crate) const CASES: [Case; 4] = [
    Case { order: Order::Memory, frames_per_send: 1 },
    Case { order: Order::Strided, frames_per_send: 1 },
    Case { order: Order::Memory, frames_per_send: 8 },
    Case { order: Order::Strided, frames_per_send: 8 },
];

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Instruction {
    /// Accept so many sockets.
    Accept {
        sockets: usize,
    },
    /// Then so many that report what is complete.
    Peers {
        peers: usize,
    },
    Run {
        case: Case,
        payload: String,
        seconds: f64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Listening { address: SocketAddr, reports: SocketAddr },
    Done,
    Ran(Ran),
    Failed(String),
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Ran {
    pub(crate) events: u64,
    pub(crate) sends: u64,
    pub(crate) cpu_ns: u64,
    pub(crate) wall_ns: u64,
    /// Sends that found the socket full: should be none.
    pub(crate) blocked: u64,
}

// ------------------------------------------------------------ the sender's process

/// Runs until standard input ends.
pub(crate) fn run() -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    let mut sender = Sender {
        listener: TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?,
        reports: TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?,
        sockets: Vec::new(),
        peers: Vec::new(),
    };
    answer(&Answer::Listening {
        address: sender.listener.local_addr()?,
        reports: sender.reports.local_addr()?,
    })?;
    for line in io::stdin().lock().lines() {
        let done = match serde_json::from_str(&line?)? {
            Instruction::Accept { sockets } => sender.accept(sockets).map(|()| Answer::Done),
            Instruction::Peers { peers } => sender.meet(peers).map(|()| Answer::Done),
            Instruction::Run { case, payload, seconds } => {
                sender.run(case, payload.as_bytes(), seconds).map(Answer::Ran)
            }
        };
        answer(&done.unwrap_or_else(|error| Answer::Failed(format!("the floor: {error:#}"))))?;
    }
    Ok(())
}

fn answer(answer: &Answer) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    Ok(out.flush()?)
}

struct Sender {
    listener: TcpListener,
    reports: TcpListener,
    /// In the order of accept, so that neighbours here are neighbours in the kernel's memory.
    sockets: Vec<TcpStream>,
    /// Generators that say how many events all of theirs have, and what they said last.
    peers: Vec<(TcpStream, u64)>,
}

impl Sender {
    fn accept(&mut self, sockets: usize) -> anyhow::Result<()> {
        for _ in 0..sockets {
            let (socket, _) = self.listener.accept()?;
            // As the server has it: else the sending moves to the receiver's acknowledgements.
            socket.set_nodelay(true)?;
            socket.set_nonblocking(true)?;
            self.sockets.push(socket);
        }
        Ok(())
    }

    fn meet(&mut self, peers: usize) -> anyhow::Result<()> {
        while self.peers.len() < peers {
            let (peer, _) = self.reports.accept()?;
            peer.set_read_timeout(Some(STALL))?;
            self.peers.push((peer, 0));
        }
        for (_, completed) in &mut self.peers {
            *completed = 0;
        }
        Ok(())
    }

    fn run(&mut self, case: Case, payload: &[u8], seconds: f64) -> anyhow::Result<Ran> {
        ensure!(!self.sockets.is_empty() && !self.peers.is_empty(), "nobody is connected");
        let order = visiting_order(self.sockets.len(), case.order);
        let frames = codec::server_text(payload).repeat(usize::try_from(case.frames_per_send)?);
        let mut ran = Ran { events: 0, sends: 0, cpu_ns: 0, wall_ns: 0, blocked: 0 };
        let (started_ns, started_cpu_ns) = (now_ns(), own_cpu_ns());
        let ends_ns = started_ns + (seconds * 1e9) as u64;
        while now_ns() < ends_ns {
            for &socket in &order {
                ran.blocked += send_all(&self.sockets[socket], &frames)?;
            }
            ran.sends += order.len() as u64;
            ran.events += case.frames_per_send;
            for (peer, completed) in &mut self.peers {
                let mut number = [0; 8];
                while *completed < ran.events {
                    peer.read_exact(&mut number).context("the receivers do not get everything")?;
                    *completed = u64::from_le_bytes(number);
                }
            }
        }
        (ran.cpu_ns, ran.wall_ns) = (own_cpu_ns() - started_cpu_ns, now_ns() - started_ns);
        Ok(ran)
    }
}

/// How often the socket was full.
fn send_all(socket: &TcpStream, mut bytes: &[u8]) -> io::Result<u64> {
    let mut blocked = 0;
    while !bytes.is_empty() {
        match send(socket, bytes, SendFlags::NOSIGNAL) {
            Ok(length) => bytes = &bytes[length..],
            Err(rustix::io::Errno::AGAIN) => {
                blocked += 1;
                poll(&mut [PollFd::new(socket, PollFlags::OUT)], None)?;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(blocked)
}

fn visiting_order(sockets: usize, order: Order) -> Vec<usize> {
    let stride = match order {
        Order::Memory => 1,
        Order::Strided => sockets.div_ceil(5).max(1),
    };
    (0..stride).flat_map(|first| (first..sockets).step_by(stride)).collect()
}

// ------------------------------------------------------------ the controller's side

/// The floor's sender, with the generators' plain sockets connected to it.
#[derive(Debug)]
pub(crate) struct Floor {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    reports: SocketAddr,
    sockets: usize,
}

impl Floor {
    pub(crate) fn start(cpus: &Cpus, pool: &mut Pool, sockets: usize) -> anyhow::Result<Self> {
        let mut command = Process::new(std::env::current_exe()?);
        command.arg("floor-sender").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = cpus.on_them(|| command.spawn()).context("cannot start the floor")?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the floor has no pipes")
        };
        let unknown = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut floor = Self { child, input, output: BufReader::new(output), reports: unknown, sockets };
        let Answer::Listening { address, reports } = floor.read()? else {
            bail!("the floor does not listen")
        };
        floor.reports = reports;
        floor.give(&Instruction::Accept { sockets })?;
        pool.connect_raw(address, sockets)?;
        floor.read()?;
        Ok(floor)
    }

    /// One run of one case, every frame counted at every receiver.
    pub(crate) fn run(
        &mut self,
        pool: &mut Pool,
        case: Case,
        payload: &str,
        seconds: f64,
    ) -> anyhow::Result<Ran> {
        let reports = self.reports;
        pool.all(|_| Command::Watch { room: None, sender: None, coordinator: Some(reports) })?;
        self.give(&Instruction::Peers { peers: pool.generators.len().min(self.sockets) })?;
        self.read()?;
        self.give(&Instruction::Run { case, payload: payload.to_owned(), seconds })?;
        let Answer::Ran(ran) = self.read()? else { bail!("the floor did not run") };
        let mut receivers = 0;
        for reply in pool.all(|_| Command::Finish { events: ran.events })? {
            let Reply::Finished(finished) = reply else { bail!("a generator did not finish") };
            receivers += finished.receivers;
        }
        ensure!(receivers == self.sockets as u64, "{receivers} receivers on {} sockets", self.sockets);
        Ok(ran)
    }

    fn give(&mut self, order: &Instruction) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.input.write_all(&line).context("the floor ended")?;
        Ok(self.input.flush()?)
    }

    fn read(&mut self) -> anyhow::Result<Answer> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        match serde_json::from_str(&line).context("the floor ended")? {
            Answer::Failed(why) => bail!("{why}"),
            answer => Ok(answer),
        }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_socket_is_visited_once_in_either_order() {
        assert_eq!(visiting_order(6, Order::Memory), [0, 1, 2, 3, 4, 5]);
        assert_eq!(visiting_order(10, Order::Strided), [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]);
        for sockets in [1, 4, 7, 1000, 5000] {
            let mut order = visiting_order(sockets, Order::Strided);
            order.sort_unstable();
            assert_eq!(order, visiting_order(sockets, Order::Memory));
        }
    }

    #[test]
    fn a_full_socket_is_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut reader = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (writer, _) = listener.accept().unwrap();
        writer.set_nonblocking(true).unwrap();
        let total = 32 << 20;
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            let mut rest = total;
            let mut buffer = vec![0; 1 << 16];
            while rest > 0 {
                rest -= reader.read(&mut buffer).unwrap();
            }
        });
        let blocked = send_all(&writer, &vec![7; total]).unwrap();
        thread.join().unwrap();
        assert!(blocked > 0);
    }
}
