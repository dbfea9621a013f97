//! Wrong tokens, counted by the address that they came from.
//!
//! Always holds: an address has [`BURST`] wrong tokens at once and one more each [`EACH_MS`]; whoever has none left is not
//! even compared with the token. At most [`ADDRESSES_MAX`] are remembered; then the one that has most left is forgotten. The
//! same wrong token again is no guess and is not counted (of the last [`WRONG_MAX`]): a job with an old token does not keep
//! out the people who come by the same tunnel.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv6Addr};

/// A person who pastes the wrong thing a few times.
const BURST: u64 = 10;
/// 17,000 a day of a token of 16 characters or more.
const EACH_MS: u64 = 5_000;
const ADDRESSES_MAX: usize = 256;
const WRONG_MAX: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Attempts {
    /// Under this process's own key, the newest last.
    wrong: VecDeque<u64>,
    key: RandomState,
    /// When an address has all of its tries again, of those that have not.
    whole_at_ms: BTreeMap<IpAddr, u64>,
}

impl Attempts {
    /// Or how long to wait, in milliseconds.
    pub(super) fn may_try(&self, now_ms: u64, from: IpAddr) -> Result<(), u64> {
        let whole_at_ms = self.whole_at_ms.get(&network(from)).copied().unwrap_or(0);
        let open_at_ms = whole_at_ms.saturating_sub((BURST - 1) * EACH_MS);
        if open_at_ms <= now_ms { Ok(()) } else { Err(open_at_ms - now_ms) }
    }

    /// `offered` was not the token. False: it was known not to be.
    pub(super) fn was_wrong(&mut self, now_ms: u64, from: IpAddr, offered: &[u8]) -> bool {
        let hash = self.key.hash_one(offered);
        if self.wrong.contains(&hash) {
            return false;
        }
        if self.wrong.len() >= WRONG_MAX {
            self.wrong.pop_front();
        }
        self.wrong.push_back(hash);
        self.whole_at_ms.retain(|_, whole_at_ms| *whole_at_ms > now_ms);
        let from = network(from);
        if self.whole_at_ms.len() >= ADDRESSES_MAX && !self.whole_at_ms.contains_key(&from) {
            let least = self.whole_at_ms.iter().min_by_key(|(_, whole_at_ms)| **whole_at_ms);
            if let Some(least) = least.map(|(address, _)| *address) {
                self.whole_at_ms.remove(&least);
            }
        }
        let whole_at_ms = self.whole_at_ms.entry(from).or_insert(now_ms);
        *whole_at_ms = (*whole_at_ms).max(now_ms) + EACH_MS;
        true
    }
}

/// Whoever has one IPv6 address has its /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn ten_at_once_then_one_in_five_seconds() {
        let mut attempts = Attempts::default();
        let ada = address("10.0.0.1");
        for guess in 0..BURST {
            assert_eq!(attempts.may_try(1_000, ada), Ok(()));
            attempts.was_wrong(1_000, ada, &guess.to_le_bytes());
        }
        assert_eq!(attempts.may_try(1_000, ada), Err(EACH_MS));
        assert_eq!(attempts.may_try(1_000, address("10.0.0.2")), Ok(()), "others are not concerned");
        assert_eq!(attempts.may_try(1_000 + EACH_MS, ada), Ok(()));
        attempts.was_wrong(1_000 + EACH_MS, ada, b"another");
        assert_eq!(attempts.may_try(1_000 + EACH_MS, ada), Err(EACH_MS));
        assert_eq!(attempts.may_try(1_000 + BURST * EACH_MS, ada), Ok(()));
    }

    #[test]
    fn an_old_token_that_comes_again_and_again_counts_once() {
        let mut attempts = Attempts::default();
        let tunnel = address("127.0.0.1");
        assert!(attempts.was_wrong(0, tunnel, b"the token of last year"));
        for _ in 0..1_000 {
            assert!(!attempts.was_wrong(0, tunnel, b"the token of last year"));
        }
        assert_eq!(attempts.may_try(0, tunnel), Ok(()), "who has the right one gets in");
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let mut attempts = Attempts::default();
        for last in 0..BURST {
            attempts.was_wrong(0, address(&format!("2001:db8::{last}")), &last.to_le_bytes());
        }
        assert_eq!(attempts.may_try(0, address("2001:db8::ffff")), Err(EACH_MS));
        assert_eq!(attempts.may_try(0, address("2001:db8:0:1::1")), Ok(()));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut attempts = Attempts::default();
        let worst = address("192.0.2.1");
        for guess in 0..BURST {
            attempts.was_wrong(0, worst, &guess.to_le_bytes());
        }
        for number in 0..2_000_u32 {
            attempts.was_wrong(0, IpAddr::V4((number + (10 << 24)).into()), &number.to_le_bytes());
        }
        assert_eq!((attempts.whole_at_ms.len(), attempts.wrong.len()), (ADDRESSES_MAX, WRONG_MAX));
        assert_eq!(attempts.may_try(0, worst), Err(EACH_MS), "the worst is not the one that is forgotten");
        attempts.was_wrong(1_000_000, worst, b"another");
        assert_eq!(attempts.whole_at_ms.len(), 1, "those that have all again are");
    }
}
