//! What generators tell each other during a run: how many events all of one's receivers have. The one that sends
//! listens; the others report to it, eight bytes at a time, the newest number counting.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::bail;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

use super::{CONNECTIONS, LISTENER, PEERS};

#[derive(Debug, Default)]
pub(super) struct Peers {
    listener: Option<TcpListener>,
    wanted: usize,
    /// Those that report to us.
    reporters: Vec<Reporter>,
    /// Whom we have reported to: the sending generator, the floor.
    coordinators: Vec<(SocketAddr, std::net::TcpStream)>,
    /// Which of them wants to know of this watch, and what it was told last.
    current: Option<usize>,
    reported: u64,
}

#[derive(Debug)]
struct Reporter {
    stream: TcpStream,
    partial: Vec<u8>,
    completed: u64,
}

impl Peers {
    pub(super) fn listen(&mut self, registry: &Registry, peers: usize) -> anyhow::Result<SocketAddr> {
        if peers > CONNECTIONS - PEERS {
            bail!("{peers} generators are too many");
        }
        let mut listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        registry.register(&mut listener, LISTENER, Interest::READABLE)?;
        let address = listener.local_addr()?;
        *self = Self { listener: Some(listener), wanted: peers, ..Self::default() };
        Ok(address)
    }

    pub(super) fn accept(&mut self, registry: &Registry) -> anyhow::Result<()> {
        let Some(listener) = &self.listener else { return Ok(()) };
        loop {
            match listener.accept() {
                Ok((mut stream, _)) => {
                    let token = Token(PEERS + self.reporters.len());
                    registry.register(&mut stream, token, Interest::READABLE)?;
                    self.reporters.push(Reporter { stream, partial: Vec::new(), completed: 0 });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) fn readable(&mut self, index: usize) -> anyhow::Result<()> {
        let Some(reporter) = self.reporters.get_mut(index) else { return Ok(()) };
        let mut buffer = [0; 1024];
        loop {
            match reporter.stream.read(&mut buffer) {
                Ok(0) => bail!("another generator ended"),
                Ok(length) => {
                    reporter.partial.extend_from_slice(&buffer[..length]);
                    while let Some((number, rest)) = reporter.partial.split_first_chunk::<8>() {
                        reporter.completed = u64::from_le_bytes(*number);
                        reporter.partial = rest.to_vec();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Begins a new watch, of which this one wants to know.
    pub(super) fn restart(&mut self, coordinator: Option<SocketAddr>) -> io::Result<()> {
        for reporter in &mut self.reporters {
            reporter.completed = 0;
        }
        self.reported = 0;
        self.current = None;
        let Some(coordinator) = coordinator else { return Ok(()) };
        let known = self.coordinators.iter().position(|(address, _)| *address == coordinator);
        self.current = match known {
            Some(known) => Some(known),
            None => {
                let stream = std::net::TcpStream::connect(coordinator)?;
                stream.set_nodelay(true)?;
                self.coordinators.push((coordinator, stream));
                Some(self.coordinators.len() - 1)
            }
        };
        Ok(())
    }

    /// Tells the coordinator when the number has changed.
    pub(super) fn report(&mut self, completed: u64) -> io::Result<()> {
        if self.reported != completed
            && let Some((_, stream)) = self.current.and_then(|current| self.coordinators.get_mut(current))
        {
            stream.write_all(&completed.to_le_bytes())?;
            self.reported = completed;
        }
        Ok(())
    }

    /// What all reporters have; `None` when there are none.
    pub(super) fn completed(&self) -> Option<u64> {
        if self.reporters.len() < self.wanted {
            return Some(0);
        }
        self.reporters.iter().map(|reporter| reporter.completed).min()
    }
}
