//! Who may connect at all: counts of connections, shared by all workers of a process.
//!
//! Always holds: what was admitted is released exactly once. Asked only when a connection comes or goes, never while
//! it talks. Loopback addresses have no cap of their own: there stands a balancer, or a developer.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use banyan_gateway_core::head::Refusal;
use banyan_proto::id::UserId;
use hashbrown::HashMap;

/// How many of each.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// All connections of the process, HTTP ones included.
    pub connections: usize,
    /// Those that have not shown a token yet.
    pub unauthenticated: usize,
    /// Of one address (IPv6: of one /64).
    pub per_address: u32,
    /// Of one user.
    pub per_user: u32,
}

#[derive(Debug)]
pub struct Admission {
    caps: Caps,
    open: AtomicUsize,
    unauthenticated: AtomicUsize,
    addresses: Mutex<HashMap<IpAddr, u32, foldhash::fast::RandomState>>,
    users: Mutex<HashMap<UserId, u32, foldhash::fast::RandomState>>,
    /// Connections of each worker, for those that hand sockets on.
    workers: Box<[AtomicUsize]>,
}

impl Admission {
    pub fn new(caps: Caps, workers: usize) -> Self {
        Self {
            caps,
            open: AtomicUsize::new(0),
            unauthenticated: AtomicUsize::new(0),
            addresses: Mutex::new(HashMap::default()),
            users: Mutex::new(HashMap::default()),
            workers: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
        }
    }

    /// One more socket, before anything is read from it. Released by [`Self::closed`].
    pub fn open(&self) -> Result<(), Refusal> {
        if self.unauthenticated.load(Ordering::Relaxed) >= self.caps.unauthenticated {
            return Err(Refusal::overloaded("too many connections without a token", 1_000));
        }
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.caps.connections {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::overloaded("this server is full", 5_000));
        }
        self.unauthenticated.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// It has shown a token, or is gone without one.
    pub fn no_longer_unauthenticated(&self) {
        self.unauthenticated.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Its true address is known. Released by [`Self::leave_address`].
    pub fn enter_address(&self, address: IpAddr) -> Result<(), Refusal> {
        let Some(key) = counted(address) else { return Ok(()) };
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let count = addresses.entry(key).or_insert(0);
        if *count >= self.caps.per_address {
            return Err(Refusal::too_many_requests("too many connections from this address", 5_000));
        }
        *count += 1;
        Ok(())
    }

    pub fn leave_address(&self, address: IpAddr) {
        let Some(key) = counted(address) else { return };
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = addresses.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&key);
            }
        }
    }

    /// It has shown a token of this user. False: the user has as many connections as one may have. Released by
    /// [`Self::leave_user`].
    pub fn enter_user(&self, user: &UserId) -> bool {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let count = users.entry(user.clone()).or_insert(0);
        let free = *count < self.caps.per_user;
        *count += u32::from(free);
        free
    }

    pub fn leave_user(&self, user: &UserId) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = users.get_mut(user) {
            *count -= 1;
            if *count == 0 {
                users.remove(user);
            }
        }
    }

    /// The worker that a new socket should go to, if `worker` has well over the mean.
    pub fn better_worker(&self, worker: usize) -> Option<usize> {
        let counts = || self.workers.iter().map(|count| count.load(Ordering::Relaxed));
        let mean = counts().sum::<usize>() / self.workers.len().max(1);
        let mine = self.workers.get(worker)?.load(Ordering::Relaxed);
        if mine <= mean + mean / 8 + 8 {
            return None;
        }
        counts()
            .enumerate()
            .min_by_key(|(_, count)| *count)
            .map(|(best, _)| best)
            .filter(|best| *best != worker)
    }

    pub fn set_worker(&self, worker: usize, connections: usize) {
        if let Some(count) = self.workers.get(worker) {
            count.store(connections, Ordering::Relaxed);
        }
    }

    pub fn count(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

/// The address that is counted; none for loopback.
fn counted(address: IpAddr) -> Option<IpAddr> {
    match address.to_canonical() {
        IpAddr::V4(v4) if v4.is_loopback() => None,
        IpAddr::V4(v4) => Some(IpAddr::V4(v4)),
        IpAddr::V6(v6) if v6.is_loopback() => None,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Some(IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(connections: usize, per_address: u32) -> Admission {
        Admission::new(Caps { connections, unauthenticated: 3, per_address, per_user: 1 }, 2)
    }

    #[test]
    fn caps_hold_and_are_given_back() {
        let admission = admission(2, 1);
        assert!(admission.open().is_ok() && admission.open().is_ok());
        assert_eq!(admission.open().unwrap_err().status, 503);
        admission.no_longer_unauthenticated();
        admission.closed();
        assert!(admission.open().is_ok());
        let net: [IpAddr; 3] =
            ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(|text| text.parse().unwrap());
        assert!(admission.enter_address(net[0]).is_ok());
        assert_eq!(admission.enter_address(net[1]).unwrap_err().status, 429);
        assert!(admission.enter_address(net[2]).is_ok());
        admission.leave_address(net[0]);
        assert!(admission.enter_address(net[1]).is_ok());
        for _ in 0..9 {
            assert!(admission.enter_address("127.0.0.1".parse().unwrap()).is_ok());
        }
    }

    #[test]
    fn those_without_a_token_have_a_cap_of_their_own() {
        let admission = admission(9, 9);
        for _ in 0..3 {
            admission.open().unwrap();
        }
        assert!(admission.open().is_err());
        admission.no_longer_unauthenticated();
        assert!(admission.open().is_ok());
    }

    #[test]
    fn a_user_has_so_many_connections() {
        let admission = admission(9, 9);
        let user = UserId::parse("u").unwrap();
        assert_eq!([admission.enter_user(&user), admission.enter_user(&user)], [true, false]);
        admission.leave_user(&user);
        assert!(admission.enter_user(&user));
    }

    #[test]
    fn a_worker_well_over_the_mean_hands_on() {
        let admission = admission(9, 9);
        admission.set_worker(0, 100);
        admission.set_worker(1, 90);
        assert_eq!(admission.better_worker(0), None);
        admission.set_worker(1, 10);
        assert_eq!(admission.better_worker(0), Some(1));
        assert_eq!(admission.better_worker(1), None);
    }
}
