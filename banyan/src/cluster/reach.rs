//! Whether a gateway has anybody to ask.
//!
//! Always holds: it has, once a slot had an owner and a way to it, until no slot has had one for [`LOST_FOR`]: a change of
//! owners, a takeover, and etcd's absence change nothing as long as one owner can be reached.
//! Does not: look at a clock.

use std::time::Duration;

use tokio::time::Instant;

/// How long commands are held for an owner; from then on they are refused, and clients are better off elsewhere.
pub(crate) const LOST_FOR: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(crate) struct Reach {
    ever: bool,
    /// Since when there has been no way to any owner.
    lost_at: Option<Instant>,
}

impl Reach {
    /// Why no client should come here now, if so. `has_way`: some slot has an owner and a way to it.
    pub(crate) fn look(&mut self, has_way: bool, now: Instant) -> Option<&'static str> {
        if has_way {
            (self.ever, self.lost_at) = (true, None);
            return None;
        }
        if !self.ever {
            return Some("no node that owns rooms has been found yet");
        }
        let lost_at = *self.lost_at.get_or_insert(now);
        (now - lost_at >= LOST_FOR).then_some("no node that owns rooms can be reached")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_unready_until_it_has_found_an_owner_and_when_it_has_lost_all_of_them_for_long() {
        let (mut reach, start) = (Reach::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert!(reach.look(false, at(0)).is_some());
        assert!(reach.look(false, at(60_000)).is_some_and(|why| why.contains("found yet")));
        assert_eq!(reach.look(true, at(60_100)), None);
        // A takeover of the only shard.
        assert_eq!(reach.look(false, at(60_200)), None);
        assert_eq!(reach.look(false, at(65_199)), None);
        assert!(reach.look(false, at(65_200)).is_some_and(|why| why.contains("reached")));
        assert_eq!(reach.look(true, at(70_000)), None);
        // The time counts from the newest loss.
        assert_eq!(reach.look(false, at(80_000)), None);
        assert_eq!(reach.look(false, at(84_999)), None);
        assert!(reach.look(false, at(85_000)).is_some());
    }
}
