//! Ports for servers that have to be told theirs before they start.
//!
//! Owns: the choice, and a lock per port for as long as the value lives.
//! Always holds: two holders on one machine never have the same port, in whichever process they are; a port outlives
//! restarts of its server. The range lies below those that kernels give to port 0 and to outgoing connections, so
//! nothing else takes one by chance while its server is down.
//! Does not: keep a program away that insists on a port of the range.

use anyhow::{Context, bail};
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};

/// Linux gives out 32768 and up by default, other systems 49152 and up.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// Ports that are ours until this is dropped.
#[derive(Debug)]
pub struct Ports {
    ports: Vec<u16>,
    _locks: Vec<File>,
}

impl Ports {
    /// `count` ports that are free on 127.0.0.1.
    pub fn free(count: usize) -> anyhow::Result<Self> {
        Self::free_on(&[Ipv4Addr::LOCALHOST.into()], count)
    }

    /// `count` ports, each free on all of `addresses`.
    pub fn free_on(addresses: &[IpAddr], count: usize) -> anyhow::Result<Self> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        // Processes begin in different places, so they seldom try the same one.
        let process = u16::try_from(std::process::id() % u32::from(COUNT)).unwrap_or_default();
        let directory = lock_directory()?;
        let mut found = Self { ports: Vec::new(), _locks: Vec::new() };
        for _ in 0..COUNT {
            if found.ports.len() == count {
                return Ok(found);
            }
            let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
            let offset = (u32::from(process) * 61 + u32::from(step)) % u32::from(COUNT);
            let port = FIRST + u16::try_from(offset).unwrap_or_default();
            let path = directory.join(port.to_string());
            let lock = File::options().create(true).append(true).open(&path);
            let lock = lock.with_context(|| format!("cannot write {}", path.display()))?;
            let free = |address: &IpAddr| TcpListener::bind((*address, port)).is_ok();
            if lock.try_lock().is_ok() && addresses.iter().all(free) {
                found.ports.push(port);
                found._locks.push(lock);
            }
        }
        bail!("no {count} ports of {FIRST} to {} are free on {addresses:?}", FIRST + COUNT - 1)
    }

    /// The one at `index`, in the order of their reservation.
    pub fn at(&self, index: usize) -> u16 {
        self.ports[index]
    }
}

/// One for each user: another one's files could not be locked. The files stay: removing one would let two lock it.
fn lock_directory() -> anyhow::Result<PathBuf> {
    let user = rustix::process::getuid().as_raw();
    let path = std::env::temp_dir().join(format!("banyan-test-ports-{user}"));
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn ports_are_not_given_out_twice_and_not_while_something_listens() {
        let a = Ports::free(3).unwrap();
        let b = Ports::free(3).unwrap();
        assert!(a.ports.iter().all(|port| !b.ports.contains(port)), "{a:?} {b:?}");
        // A lock of another open file is refused as another process's would be.
        let path = lock_directory().unwrap().join(a.at(0).to_string());
        assert!(File::options().append(true).open(&path).unwrap().try_lock().is_err());
        drop(a);
        // A program that another test is starting has our open files until its exec.
        let is_free = || File::options().append(true).open(&path).unwrap().try_lock().is_ok();
        let freed = (0..2_000).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            is_free()
        });
        assert!(freed, "{} is still locked", path.display());
    }
}
