//! Etcd's stand-in within this process: several nodes of one process, and faults that a real server has once a year.
//!
//! Always holds: revisions, transactions, leases, watches and compaction mean what they mean on a real server (one contract
//! suite runs on both). Memory is bounded: above [`REMEMBERED_MAX`] changes the older half is compacted.
//! Does not: last. Leases end by tokio's clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banyan_router::node::KeptAlive;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::coordination::{Error as Told, LeaseId};
use crate::keys::Keys;
use crate::kv::{Broken, Changed, Done, Error, If, KeyValue, Kv, Range, Ranged, Then, Txn, Watch};

/// Changes that are remembered.
const REMEMBERED_MAX: usize = 50_000;
/// What a request waits for a server that does not answer.
const TIMEOUT: Duration = Duration::from_secs(1);

impl Keys<Store> {
    /// A cluster of its own.
    pub fn memory(cluster: &str) -> Result<Self, Told> {
        Self::new(Store::default(), cluster)
    }
}

/// Shared by its clones.
#[derive(Clone, Default)]
pub struct Store {
    shared: Arc<Shared>,
    /// No fault reaches it.
    direct: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Counts changes of any kind: watches look again.
    changed: watch::Sender<u64>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Store").field("revision", &state.data.revision).field("reach", &state.reach).finish()
    }
}

/// How the stand-in is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reach {
    #[default]
    Up,
    /// Nobody listens.
    Refuses,
    /// Nobody answers.
    Hangs,
}

/// What a server keeps on its disk.
#[derive(Debug, Clone)]
pub struct Snapshot(Data);

#[derive(Debug, Default)]
struct State {
    data: Data,
    reach: Reach,
    /// How often it was restarted: watches of before are broken.
    run: u64,
    /// Of the next transactions.
    faults: VecDeque<Fault>,
    delay: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    AnswerLost,
    AppliedLate(Duration),
}

#[derive(Debug, Clone)]
struct Data {
    revision: i64,
    compacted: i64,
    /// Of each key, oldest first, what it became.
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
    /// Every change since the compaction.
    log: VecDeque<(i64, Vec<u8>)>,
    leases: BTreeMap<i64, Lease>,
    next_lease: i64,
}

#[derive(Debug, Clone)]
struct Version {
    modified: i64,
    /// `None`: deleted.
    value: Option<Vec<u8>>,
    lease: Option<i64>,
}

#[derive(Debug, Clone)]
struct Lease {
    ttl: Duration,
    ends_at: Instant,
}

impl Default for Data {
    fn default() -> Self {
        // A real server begins at 1.
        Self {
            revision: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            log: VecDeque::new(),
            leases: BTreeMap::new(),
            next_lease: 1,
        }
    }
}

impl Data {
    fn at(&self, key: &[u8], revision: i64) -> Option<KeyValue> {
        let versions = self.keys.get(key)?;
        let version = versions.iter().rev().find(|version| version.modified <= revision)?;
        let value = version.value.clone()?;
        Some(KeyValue { key: key.to_vec(), value, modified: version.modified })
    }

    fn now(&self, key: &[u8]) -> Option<KeyValue> {
        self.at(key, self.revision)
    }

    fn lease_of(&self, key: &[u8]) -> Option<i64> {
        self.keys.get(key)?.last().filter(|version| version.value.is_some())?.lease
    }

    fn set(&mut self, key: &[u8], value: Option<Vec<u8>>, lease: Option<i64>) {
        let version = Version { modified: self.revision, value, lease };
        self.keys.entry(key.to_vec()).or_default().push(version);
        self.log.push_back((self.revision, key.to_vec()));
    }

    fn is_true(&self, when: &If) -> bool {
        match when {
            If::Absent(key) => self.now(key).is_none(),
            If::Value(key, value) => self.now(key).is_some_and(|found| found.value == *value),
            If::Modified(key, revision) => self.now(key).map_or(0, |found| found.modified) == *revision,
            If::Lease(key, lease) => self.now(key).is_some() && self.lease_of(key).unwrap_or(0) == lease.0,
        }
    }

    fn apply(&mut self, txn: &Txn) -> Result<Done, Error> {
        if !txn.when.iter().all(|when| self.is_true(when)) {
            return Ok(Done::Not(txn.read.iter().map(|key| self.now(key)).collect()));
        }
        let key_of = |then: &Then| match then {
            Then::Put { key, .. } | Then::Delete(key) => key.clone(),
        };
        if txn.then.iter().map(key_of).collect::<BTreeSet<_>>().len() < txn.then.len() {
            return Err(Error::Unknown("duplicate key given in txn request".to_owned()));
        }
        let is_lost = |then: &Then| matches!(then, Then::Put { lease: Some(lease), .. } if !self.leases.contains_key(&lease.0));
        if txn.then.iter().any(is_lost) {
            return Err(Error::Unknown("requested lease not found".to_owned()));
        }
        // One revision for all.
        let mut changes = Vec::new();
        for then in &txn.then {
            match then {
                Then::Put { key, value, lease } => {
                    changes.push((key, Some(value.clone()), lease.map(|lease| lease.0)));
                }
                Then::Delete(key) => changes.extend(self.now(key).map(|_| (key, None, None))),
            }
        }
        self.revision += i64::from(!changes.is_empty());
        for (key, value, lease) in changes {
            self.set(key, value, lease);
        }
        if self.log.len() > REMEMBERED_MAX {
            let (middle, _) = self.log[REMEMBERED_MAX / 2];
            self.compact(middle);
        }
        Ok(Done::Applied)
    }

    fn end_lease(&mut self, lease: i64) {
        self.leases.remove(&lease);
        let on_it: Vec<Vec<u8>> =
            self.keys.keys().filter(|key| self.lease_of(key) == Some(lease)).cloned().collect();
        if !on_it.is_empty() {
            self.revision += 1;
        }
        for key in on_it {
            self.set(&key, None, None);
        }
    }

    fn expire(&mut self, now: Instant) -> bool {
        let over: BTreeSet<i64> =
            self.leases.iter().filter(|(_, lease)| lease.ends_at <= now).map(|(id, _)| *id).collect();
        for lease in &over {
            self.end_lease(*lease);
        }
        !over.is_empty()
    }

    /// What was before the revision is forgotten.
    fn compact(&mut self, revision: i64) {
        self.compacted = self.compacted.max(revision);
        while self.log.front().is_some_and(|(at, _)| *at <= revision) {
            self.log.pop_front();
        }
        self.keys.retain(|_, versions| {
            let kept = versions.iter().rposition(|version| version.modified <= revision).unwrap_or(0);
            versions.drain(..kept);
            versions.len() > 1 || versions.first().is_some_and(|version| version.value.is_some())
        });
    }
}

impl Store {
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let changed = change(&mut state);
        drop(state);
        self.shared.changed.send_modify(|count| *count += 1);
        changed
    }

    /// The same keys, by a way that no fault of reach is on.
    #[must_use]
    pub fn direct(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), direct: true }
    }

    // ---------------------------------------------------------------- faults

    /// The next transactions are carried out, and nobody hears of it.
    pub fn lose_answers(&self, of: usize) {
        self.change(|state| state.faults.extend(std::iter::repeat_n(Fault::AnswerLost, of)));
    }

    /// The next transactions are carried out after a while, and nobody hears of it.
    pub fn apply_late(&self, of: usize, after: Duration) {
        self.change(|state| state.faults.extend(std::iter::repeat_n(Fault::AppliedLate(after), of)));
    }

    /// Transactions are answered again. Gives how many more would not have been.
    pub fn answer_again(&self) -> usize {
        let mut left = 0;
        self.change(|state| left = std::mem::take(&mut state.faults).len());
        left
    }

    /// How many transactions are still to be answered by nobody.
    pub fn answers_to_lose(&self) -> usize {
        self.state().faults.len()
    }

    /// Every request takes so long.
    pub fn slow_down(&self, delay: Duration) {
        self.change(|state| state.delay = delay);
    }

    /// Nobody listens, or nobody answers. Leases do not end meanwhile, and begin anew afterwards: a new leader does that.
    pub fn set_reach(&self, reach: Reach) {
        self.change(|state| {
            state.reach = reach;
            state.run += 1;
            if reach == Reach::Up {
                begin_leases_anew(&mut state.data);
            }
        });
    }

    /// What was before now is forgotten.
    pub fn compact(&self) {
        self.change(|state| state.data.compact(state.data.revision));
    }

    pub fn break_watches(&self) {
        self.change(|state| state.run += 1);
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.state().data.clone())
    }

    /// Everything since the snapshot has never been.
    pub fn restore(&self, snapshot: &Snapshot) {
        self.change(|state| {
            state.data = snapshot.0.clone();
            state.run += 1;
            begin_leases_anew(&mut state.data);
        });
    }

    /// Waits as long as a request takes, and finds out whether it is heard.
    async fn reach(&self) -> Result<(), Error> {
        let (reach, delay) = {
            let state = self.state();
            if self.direct { (Reach::Up, Duration::ZERO) } else { (state.reach, state.delay) }
        };
        match reach {
            Reach::Up if delay >= TIMEOUT => {
                tokio::time::sleep(TIMEOUT).await;
                Err(Error::Unknown("no answer in time".to_owned()))
            }
            Reach::Up if delay.is_zero() => Ok(()),
            Reach::Up => {
                tokio::time::sleep(delay).await;
                Ok(())
            }
            Reach::Refuses => Err(Error::NotSent("connection refused".to_owned())),
            Reach::Hangs => {
                tokio::time::sleep(TIMEOUT).await;
                Err(Error::Unknown("no answer in time".to_owned()))
            }
        }
    }

    /// The state at this time.
    fn with<T>(&self, act: impl FnOnce(&mut Data) -> T) -> T {
        let (done, changed) = {
            let mut state = self.state();
            let before = state.data.revision;
            state.data.expire(Instant::now());
            let done = act(&mut state.data);
            (done, before != state.data.revision)
        };
        if changed {
            self.shared.changed.send_modify(|count| *count += 1);
        }
        done
    }
}

fn begin_leases_anew(data: &mut Data) {
    let now = Instant::now();
    data.leases.values_mut().for_each(|lease| lease.ends_at = now + lease.ttl);
}

impl Kv for Store {
    type Watch = StoreWatch;

    fn describe(&self) -> String {
        "memory".to_owned()
    }

    async fn range(&self, range: Range) -> Result<Ranged, Error> {
        self.reach().await?;
        self.with(|data| {
            let revision = range.revision.unwrap_or(data.revision);
            if revision > data.revision || revision < data.compacted {
                return Err(Error::NoRevision);
            }
            let keys: Vec<&Vec<u8>> = match &range.end {
                None => data.keys.get_key_value(&range.key).map(|(key, _)| key).into_iter().collect(),
                Some(end) => data.keys.range(range.key.clone()..end.clone()).map(|(key, _)| key).collect(),
            };
            let mut found: Vec<KeyValue> =
                keys.into_iter().filter_map(|key| data.at(key, revision)).collect();
            let limit = if range.limit == 0 { usize::MAX } else { range.limit as usize };
            let more = found.len() > limit;
            found.truncate(limit);
            Ok(Ranged { revision: data.revision, found, more })
        })
    }

    async fn txn(&self, txn: Txn) -> Result<Done, Error> {
        self.reach().await?;
        let fault = if self.direct { None } else { self.state().faults.pop_front() };
        let unheard = || Error::Unknown("the answer is lost".to_owned());
        match fault {
            None => self.with(|data| data.apply(&txn)),
            Some(Fault::AnswerLost) => {
                self.with(|data| data.apply(&txn)).ok();
                Err(unheard())
            }
            Some(Fault::AppliedLate(after)) => {
                let store = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    store.with(|data| data.apply(&txn)).ok();
                });
                Err(unheard())
            }
        }
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.reach().await?;
        let granted = self.with(|data| {
            let lease = data.next_lease;
            data.next_lease += 1;
            let ttl = Duration::from_secs(ttl.as_secs_f64().ceil().max(1.0) as u64);
            data.leases.insert(lease, Lease { ttl, ends_at: Instant::now() + ttl });
            LeaseId(lease)
        });
        self.shared.changed.send_modify(|count| *count += 1);
        Ok(granted)
    }

    async fn keep_alive(&self, lease: LeaseId) -> KeptAlive {
        if self.reach().await.is_err() {
            return KeptAlive::Failed;
        }
        self.with(|data| match data.leases.get_mut(&lease.0) {
            Some(lease) => {
                lease.ends_at = Instant::now() + lease.ttl;
                KeptAlive::Done
            }
            None => KeptAlive::LeaseGone,
        })
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.reach().await?;
        self.with(|data| data.end_lease(lease.0));
        Ok(())
    }

    async fn watch(&self, prefix: Vec<u8>, from: i64) -> Result<StoreWatch, Broken> {
        self.reach().await.map_err(|error| Broken::Lost(error.to_string()))?;
        let changes = self.shared.changed.subscribe();
        Ok(StoreWatch { store: self.clone(), prefix, from, run: self.state().run, changes })
    }
}

/// A watch on the stand-in.
#[derive(Debug)]
pub struct StoreWatch {
    store: Store,
    prefix: Vec<u8>,
    from: i64,
    run: u64,
    changes: watch::Receiver<u64>,
}

impl StoreWatch {
    /// What there is to be shown; `None`: nothing.
    fn poll(&mut self) -> Result<Option<Vec<Changed>>, Broken> {
        let mut state = self.store.state();
        if state.run != self.run || (state.reach != Reach::Up && !self.store.direct) {
            return Err(Broken::Lost("closed by the server".to_owned()));
        }
        let data = &mut state.data;
        data.expire(Instant::now());
        if self.from <= data.compacted && self.from <= data.revision {
            return Err(Broken::Compacted);
        }
        let changed: Vec<Changed> = (data.log.iter())
            .filter(|(at, key)| *at >= self.from && key.starts_with(&self.prefix))
            .map(|(at, key)| {
                let value = data.at(key, *at).map(|found| found.value);
                Changed { key: key.clone(), value, revision: *at }
            })
            .collect();
        self.from = self.from.max(data.revision + 1);
        Ok(Some(changed).filter(|changed| !changed.is_empty()))
    }
}

impl Watch for StoreWatch {
    async fn next(&mut self) -> Result<Vec<Changed>, Broken> {
        loop {
            self.changes.borrow_and_update();
            if let Some(changed) = self.poll()? {
                return Ok(changed);
            }
            let next_end = self.store.state().data.leases.values().map(|lease| lease.ends_at).min();
            tokio::select! {
                _ = self.changes.changed() => {}
                () = tokio::time::sleep_until(next_end.unwrap_or_else(Instant::now)), if next_end.is_some() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::slot_key;
    use crate::coordination::{Coordination, Event};
    use banyan_proto::id::SlotId;
    use banyan_router::slot_owner::CasOutcome;

    const SLOT: SlotId = SlotId(0);

    fn ring() -> Keys<Store> {
        Keys::memory("test").unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_answer_is_unknown_and_was_carried_out() {
        let ring = ring();
        ring.kv().lose_answers(1);
        assert_eq!(ring.cas_slot(SLOT, None, slot_key("a", 1, 1)).await, CasOutcome::Unknown);
        let lost = CasOutcome::Lost(Some(slot_key("a", 1, 1)));
        assert_eq!(ring.cas_slot(SLOT, None, slot_key("b", 2, 1)).await, lost);
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_transaction_is_judged_when_it_arrives() {
        let ring = ring();
        let late = Duration::from_secs(1);
        ring.kv().apply_late(2, late);
        assert_eq!(ring.cas_slot(SLOT, None, slot_key("a", 1, 1)).await, CasOutcome::Unknown);
        assert_eq!(ring.cas_slot(SlotId(1), None, slot_key("a", 1, 1)).await, CasOutcome::Unknown);
        assert_eq!(ring.read_slot(SLOT).await, Ok(None));
        assert_eq!(ring.cas_slot(SlotId(1), None, slot_key("b", 2, 1)).await, CasOutcome::Won);
        tokio::time::sleep(late * 2).await;
        assert_eq!(ring.read_slot(SLOT).await, Ok(Some(slot_key("a", 1, 1))));
        assert_eq!(ring.read_slot(SlotId(1)).await, Ok(Some(slot_key("b", 2, 1))), "too late");
    }

    #[tokio::test(start_paused = true)]
    async fn a_restored_stand_in_is_listed_anew() {
        let ring = ring();
        assert_eq!(ring.cas_slot(SLOT, None, slot_key("a", 1, 1)).await, CasOutcome::Won);
        let snapshot = ring.kv().snapshot();
        let mut events = ring.watch(8);
        assert!(matches!(events.recv().await, Some(Event::Listed(_))));
        let second = slot_key("b", 2, 2);
        assert_eq!(ring.cas_slot(SLOT, Some(slot_key("a", 1, 1)), second).await, CasOutcome::Won);
        assert!(matches!(events.recv().await, Some(Event::Watched(_))));
        ring.kv().restore(&snapshot);
        // Other changes, at the same revision and above, before the watch is there again.
        for slot in 1..9 {
            assert_eq!(ring.cas_slot(SlotId(slot), None, slot_key("c", 3, 1)).await, CasOutcome::Won);
        }
        match events.recv().await {
            Some(Event::Listed(listing)) => {
                assert_eq!(listing.slots.len(), 9);
                assert!(listing.slots.contains(&(SLOT, slot_key("a", 1, 1))));
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_it_remembers_is_bounded() {
        let store = Store::default();
        let put = Then::Put { key: b"k".to_vec(), value: b"v".to_vec(), lease: None };
        let txn = Txn { when: Vec::new(), then: vec![put], read: Vec::new() };
        for _ in 0..REMEMBERED_MAX * 2 {
            store.txn(txn.clone()).await.unwrap();
        }
        let state = store.state();
        assert!(state.data.log.len() <= REMEMBERED_MAX);
        assert!(state.data.keys[&b"k"[..]].len() <= REMEMBERED_MAX + 1);
    }
}
