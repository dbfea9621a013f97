//! etcd as the cluster sees it: keys with revisions, transactions, leases, what watches are told.
//!
//! Always holds: it is linearizable; what is asked of it happens in one step, at the moment at which the world lets the
//! request arrive. Lost answers, late requests and lagging watches are the world's doing.
//! A restore from a snapshot is the one thing that breaks the order of revisions: [`Etcd::generation`] tells.

use std::collections::BTreeMap;

use crate::schedule::Time;

/// Names a lease for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lease(pub u64);

#[derive(Debug, Clone)]
struct Held<V> {
    value: V,
    lease: Option<Lease>,
}

#[derive(Debug, Clone, Copy)]
struct Term {
    ttl: Time,
    ends: Time,
}

#[derive(Debug, Clone)]
struct State<K, V> {
    keys: BTreeMap<K, Held<V>>,
    leases: BTreeMap<Lease, Term>,
}

/// One change of one key: what a watch is told.
#[derive(Debug, Clone)]
pub struct Change<K, V> {
    pub key: K,
    /// `None`: deleted.
    pub value: Option<V>,
}

#[derive(Debug)]
pub struct Etcd<K, V> {
    state: State<K, V>,
    snapshot: Option<State<K, V>>,
    /// Every change of this generation, oldest first: the revision of a change is its place.
    changes: Vec<Change<K, V>>,
    generation: u32,
    next_lease: u64,
}

impl<K: Ord + Clone, V: Clone + PartialEq> Default for Etcd<K, V> {
    fn default() -> Self {
        Self {
            state: State { keys: BTreeMap::new(), leases: BTreeMap::new() },
            snapshot: None,
            changes: Vec::new(),
            generation: 0,
            next_lease: 1,
        }
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> Etcd<K, V> {
    /// How often it was restored.
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// Number of changes so far in this generation.
    pub const fn revision(&self) -> usize {
        self.changes.len()
    }

    /// What a watch that has seen `revision` of this generation is owed.
    pub fn changes_since(&self, revision: usize) -> &[Change<K, V>] {
        self.changes.get(revision..).unwrap_or_default()
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        self.state.keys.get(key).map(|held| &held.value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.state.keys.iter().map(|(key, held)| (key, &held.value))
    }

    fn set(&mut self, key: K, value: Option<V>, lease: Option<Lease>) {
        match value.clone() {
            Some(value) => {
                self.state.keys.insert(key.clone(), Held { value, lease });
            }
            None if self.state.keys.remove(&key).is_none() => return,
            None => {}
        }
        self.changes.push(Change { key, value });
    }

    /// Writes (or, with `None`, deletes) all if every key compared holds what is expected; else nothing. A key on a lease
    /// that has ended is refused like a failed compare.
    pub fn transact(
        &mut self,
        compare: &[(K, Option<V>)],
        put: Vec<(K, Option<V>)>,
        lease: Option<Lease>,
    ) -> bool {
        let holds = compare.iter().all(|(key, expected)| self.get(key) == expected.as_ref());
        if !holds || lease.is_some_and(|lease| !self.state.leases.contains_key(&lease)) {
            return false;
        }
        for (key, value) in put {
            self.set(key, value, lease);
        }
        true
    }

    pub fn grant(&mut self, now: Time, ttl: Time) -> Lease {
        let lease = Lease(self.next_lease);
        self.next_lease += 1;
        self.state.leases.insert(lease, Term { ttl, ends: now + ttl });
        lease
    }

    /// False: there is no such lease (any longer).
    pub fn keep_alive(&mut self, now: Time, lease: Lease) -> bool {
        match self.state.leases.get_mut(&lease) {
            Some(term) => {
                term.ends = now + term.ttl;
                true
            }
            None => false,
        }
    }

    pub fn revoke(&mut self, lease: Lease) {
        if self.state.leases.remove(&lease).is_none() {
            return;
        }
        let on_it = |held: &Held<V>| held.lease == Some(lease);
        let keys: Vec<K> =
            self.state.keys.iter().filter(|(_, held)| on_it(held)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.set(key, None, None);
        }
    }

    /// Ends what is overdue; returns how many leases ended.
    pub fn expire(&mut self, now: Time) -> usize {
        let overdue: Vec<Lease> =
            self.state.leases.iter().filter(|(_, term)| term.ends <= now).map(|(lease, _)| *lease).collect();
        for lease in &overdue {
            self.revoke(*lease);
        }
        overdue.len()
    }

    /// When the next lease ends, if nobody keeps it alive.
    pub fn next_expiry(&self) -> Option<Time> {
        self.state.leases.values().map(|term| term.ends).min()
    }

    /// A new leader knows no times of renewal: every lease lives its whole term again. Returns how many were nearly over.
    pub fn leader_changed(&mut self, now: Time) -> usize {
        let mut extended = 0;
        for term in self.state.leases.values_mut() {
            extended += usize::from(term.ends < now + term.ttl / 2);
            term.ends = now + term.ttl;
        }
        extended
    }

    pub fn take_snapshot(&mut self) {
        self.snapshot = Some(self.state.clone());
    }

    /// Everything is as it was at the snapshot; leases live their whole term again. False: there is none.
    pub fn restore(&mut self, now: Time) -> bool {
        let Some(snapshot) = self.snapshot.clone() else { return false };
        self.state = snapshot;
        self.generation += 1;
        self.changes.clear();
        self.leader_changed(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etcd() -> Etcd<&'static str, u32> {
        Etcd::default()
    }

    #[test]
    fn a_transaction_compares_what_was_read() {
        let mut etcd = etcd();
        assert!(etcd.transact(&[("a", None)], vec![("a", Some(1))], None));
        assert!(!etcd.transact(&[("a", None)], vec![("a", Some(2))], None));
        assert!(etcd.transact(&[("a", Some(1))], vec![("a", Some(2)), ("b", Some(3))], None));
        assert_eq!((etcd.get(&"a"), etcd.get(&"b"), etcd.revision()), (Some(&2), Some(&3), 3));
        assert_eq!(etcd.changes_since(2).len(), 1);
    }

    #[test]
    fn keys_end_with_their_lease_and_a_new_leader_extends_it() {
        let mut etcd = etcd();
        let lease = etcd.grant(0, 100);
        assert!(etcd.transact(&[], vec![("n", Some(1))], Some(lease)));
        assert_eq!(etcd.expire(99), 0);
        assert_eq!(etcd.leader_changed(99), 1);
        assert_eq!(etcd.expire(198), 0);
        assert!(etcd.keep_alive(198, lease));
        assert_eq!(etcd.expire(298), 1);
        assert_eq!(etcd.get(&"n"), None);
        assert!(!etcd.keep_alive(298, lease));
        assert!(!etcd.transact(&[], vec![("n", Some(1))], Some(lease)));
    }

    #[test]
    fn a_restore_brings_back_what_was() {
        let mut etcd = etcd();
        assert!(!etcd.restore(0));
        etcd.transact(&[], vec![("a", Some(1))], None);
        etcd.take_snapshot();
        etcd.transact(&[], vec![("a", Some(2))], None);
        assert!(etcd.restore(5));
        assert_eq!((etcd.get(&"a"), etcd.generation(), etcd.revision()), (Some(&1), 1, 0));
    }
}
