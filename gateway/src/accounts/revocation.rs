//! How the end of a login reaches live connections.
//!
//! Owns: the numbered list of the last revocations, and their broadcast to all workers.
//! Always holds: a revocation has its number before it is broadcast. So whoever first registers a connection and then
//! asks [`Revocations::standing`] misses none: it is in the list already, or its broadcast is still to come.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use banyan_proto::id::UserId;
use tokio::sync::broadcast;

use super::Identity;

/// Revocations that are remembered, and that a receiver may be behind. Some hundred bytes each.
const KEPT: usize = 1_024;

/// A login of a user, or all of them, has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    pub user: UserId,
    /// None: everything of this user.
    pub login: Option<Arc<str>>,
    /// Counts up from 1.
    pub number: u64,
}

impl Revocation {
    /// True if who authenticated so must go (close 3503). Who authenticated after it may stay.
    pub fn ends(&self, identity: &Identity) -> bool {
        identity.as_of < self.number
            && identity.person.user == self.user
            && (self.login.is_none() || self.login == identity.login)
    }
}

/// What is known of an identity without a look into the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Good,
    Revoked,
    /// Too much has happened since: ask [`super::Service::recheck`].
    Unknown,
}

#[derive(Debug)]
pub(super) struct Revocations {
    /// The number of the newest.
    number: AtomicU64,
    recent: Mutex<VecDeque<Revocation>>,
    sender: broadcast::Sender<Revocation>,
}

impl Revocations {
    pub(super) fn new() -> Self {
        Self {
            number: AtomicU64::new(0),
            recent: Mutex::new(VecDeque::with_capacity(KEPT)),
            sender: broadcast::Sender::new(KEPT),
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Revocation> {
        self.sender.subscribe()
    }

    pub(super) fn revoke(&self, user: UserId, login: Option<Arc<str>>) {
        // Under the lock, so that receivers see them in the order of their numbers.
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let revocation = Revocation { user, login, number: self.number() + 1 };
        if recent.len() == KEPT {
            recent.pop_front();
        }
        recent.push_back(revocation.clone());
        self.number.store(revocation.number, Ordering::Release);
        // Without a receiver there is no connection to close.
        self.sender.send(revocation).ok();
    }

    pub(super) fn standing(&self, identity: &Identity) -> Standing {
        if identity.as_of >= self.number() {
            return Standing::Good;
        }
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.iter().any(|revocation| revocation.ends(identity)) {
            return Standing::Revoked;
        }
        match recent.front() {
            Some(oldest) if oldest.number > identity.as_of + 1 => Standing::Unknown,
            Some(_) | None => Standing::Good,
        }
    }
}

#[cfg(test)]
mod tests {
    use banyan_proto::id::UnixMs;
    use banyan_proto::link::Person;

    use super::*;

    fn identity(user: &str, login: Option<&str>, as_of: u64) -> Identity {
        Identity {
            person: Person { user: UserId::parse(user).unwrap(), name: user.into() },
            login: login.map(Into::into),
            issued_at: UnixMs(1),
            expires_at: UnixMs(2),
            as_of,
        }
    }

    #[test]
    fn a_login_or_a_user_ends_and_nobody_else() {
        let revocations = Revocations::new();
        let user = UserId::parse("u").unwrap();
        let mut receiver = revocations.subscribe();
        revocations.revoke(user.clone(), Some("a".into()));
        for (identity, want) in [
            (identity("u", Some("a"), 0), Standing::Revoked),
            (identity("u", Some("a"), 1), Standing::Good),
            (identity("u", Some("b"), 0), Standing::Good),
            (identity("u", None, 0), Standing::Good),
            (identity("v", Some("a"), 0), Standing::Good),
        ] {
            assert_eq!(revocations.standing(&identity), want, "{identity:?}");
        }
        revocations.revoke(user, None);
        for (identity, want) in [
            (identity("u", Some("b"), 1), Standing::Revoked),
            (identity("u", None, 0), Standing::Revoked),
            (identity("u", None, 2), Standing::Good),
            (identity("v", None, 0), Standing::Good),
        ] {
            assert_eq!(revocations.standing(&identity), want, "{identity:?}");
        }
        assert_eq!((receiver.try_recv().unwrap().number, receiver.try_recv().unwrap().number), (1, 2));
    }

    #[test]
    fn what_is_forgotten_is_said_to_be_unknown() {
        let revocations = Revocations::new();
        let (early, later) = (identity("u", None, 0), identity("u", None, 5));
        for number in 0..KEPT as u64 + 5 {
            revocations.revoke(UserId::parse("other").unwrap(), Some(number.to_string().into()));
        }
        assert_eq!(revocations.standing(&early), Standing::Unknown);
        assert_eq!(revocations.standing(&later), Standing::Good);
    }
}
