//! The keys of the ring over whatever keeps them: names, values, and the few kinds of transaction.
//!
//! Always holds: a compare-and-swap compares the bytes that are there. They are first taken to be what this release would
//! have written; if they are not (a newer release may have added fields) and still mean what was expected, those very bytes
//! are compared in a second transaction: the first is known not to have been applied.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banyan_proto::id::{Incarnation, SlotId};
use banyan_router::encoding::{self, Frozen, Key};
use banyan_router::meta::Meta;
use banyan_router::node::{KeptAlive, Listing, TargetOutcome};
use banyan_router::node_key::NodeEntry;
use banyan_router::slot_key::{NodeId, Peer, SlotKey};
use banyan_router::slot_owner::{CasOutcome, Failed, Why};
use banyan_router::target::Target;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use tokio::sync::{mpsc, oneshot};

use crate::coordination::{Coordination, Error, Event, Everything, Joined, LeaseId, Past, PastValue};
use crate::kv::{self, Done, If, KeyValue, Kv, Range, Then, Txn};
use crate::metrics;
use crate::swaps::{Swap, Swaps};
use crate::watch;

/// The name of a slot's compare-and-swap in logs and metrics.
const CAS_SLOT: &str = "cas_slot";
/// Longest name of a cluster, in bytes.
const CLUSTER_NAME_MAX: usize = 64;
/// Keys of one read: with values of a few hundred bytes far below what one answer may hold (4 MiB).
const PAGE: i64 = 1_000;
/// A listing that is compacted away while its pages are read is begun again so often.
const LISTINGS: usize = 3;

/// The keys of one cluster.
#[derive(Clone)]
pub struct Keys<K> {
    kv: K,
    prefix: Arc<str>,
    swaps: Arc<Swaps>,
    /// The last refusal.
    refused: Arc<Mutex<Option<kv::Error>>>,
}

impl<K: Kv> fmt::Debug for Keys<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("at", &self.kv.describe()).field("prefix", &self.prefix).finish()
    }
}

/// Everything under the prefix at one revision, as bytes.
pub(crate) struct Raw {
    pub(crate) revision: i64,
    pub(crate) found: Vec<KeyValue>,
}

/// What came of a compare-and-swap of a value.
enum Swapped {
    Won,
    /// What is there.
    Lost(Option<Vec<u8>>),
    Unknown,
}

impl<K: Kv> Keys<K> {
    /// The cluster's name is that of 1–64 bytes of `[A-Za-z0-9._-]`; its keys are under `/banyan/{cluster}/`.
    pub fn new(kv: K, cluster: &str) -> Result<Self, Error> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if cluster.is_empty() || cluster.len() > CLUSTER_NAME_MAX || !cluster.bytes().all(allowed) {
            return Err(Error::ClusterName(cluster.chars().take(CLUSTER_NAME_MAX).collect()));
        }
        Ok(Self {
            kv,
            prefix: format!("/banyan/{cluster}/").into(),
            swaps: Arc::default(),
            refused: Arc::default(),
        })
    }

    pub fn kv(&self) -> &K {
        &self.kv
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    fn path(&self, key: &Key) -> Vec<u8> {
        format!("{}{}", self.prefix, key.name()).into_bytes()
    }

    /// `None`: not a key of the ring.
    pub(crate) fn parse(&self, path: &[u8]) -> Option<Key> {
        Key::parse(std::str::from_utf8(path).ok()?.strip_prefix(&*self.prefix)?)
    }

    pub(crate) fn error(&self, source: kv::Error) -> Error {
        let at = self.kv.describe();
        match source {
            kv::Error::Refused(what, why) => Error::Refused { at, what, why },
            source => Error::Etcd { at, source },
        }
    }

    // ---------------------------------------------------------------- reads

    async fn read(&self, key: &Key) -> Result<Option<KeyValue>, kv::Error> {
        let range = Range { key: self.path(key), end: None, revision: None, limit: 1 };
        Ok(self.kv.range(range).await?.found.pop())
    }

    /// All keys that begin so, at one revision, in pages.
    async fn read_under(&self, prefix: Vec<u8>) -> Result<Raw, kv::Error> {
        let end = kv::end_of(&prefix);
        'listing: for _ in 0..LISTINGS {
            let mut all = Raw { revision: 0, found: Vec::new() };
            let mut key = prefix.clone();
            loop {
                let revision = (all.revision > 0).then_some(all.revision);
                let range = Range { key, end: Some(end.clone()), revision, limit: PAGE };
                let page = match self.kv.range(range).await {
                    Err(kv::Error::NoRevision) => continue 'listing,
                    page => page?,
                };
                if all.revision == 0 {
                    all.revision = page.revision;
                }
                all.found.extend(page.found);
                match all.found.last().filter(|_| page.more) {
                    // The next key in the order of bytes.
                    Some(last) => key = [&last.key[..], &[0]].concat(),
                    None => return Ok(all),
                }
            }
        }
        Err(kv::Error::NoRevision)
    }

    pub(crate) async fn list(&self) -> Result<Raw, kv::Error> {
        self.read_under(self.prefix.as_bytes().to_vec()).await
    }

    /// What is listed, as the ring knows it. What cannot be read is left out and said so.
    pub(crate) fn decode(&self, raw: &[KeyValue]) -> Listing {
        let mut listing = Listing { slots: Vec::new(), nodes: Vec::new(), target: None, frozen: false };
        for KeyValue { key, value, .. } in raw {
            let Some(key) = self.parse(key) else { continue };
            match &key {
                Key::Slot(slot) => {
                    let value = self.understood(&key, encoding::decode_slot(value));
                    listing.slots.extend(value.map(|value| (*slot, value)));
                }
                Key::Node(node) => {
                    let value = self.understood(&key, encoding::decode_node(value));
                    listing.nodes.extend(value.map(|value| (node.clone(), value)));
                }
                Key::Target => {
                    listing.target = self.understood(&key, encoding::decode_target(value)).map(Arc::new);
                }
                Key::Frozen => listing.frozen = true,
                Key::Meta => {}
            }
        }
        listing
    }

    pub(crate) fn understood<T>(&self, key: &Key, value: Result<T, encoding::Error>) -> Option<T> {
        let error = match value {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        tracing::error!(key = key.name(), %error, "a key of the ring is not understood and left out");
        None
    }

    /// What the machine asked for and did not get.
    fn failed(&self, what: &'static str, error: &kv::Error) -> Failed {
        match error {
            // A person must give this node the permission.
            kv::Error::Refused(..) => {
                tracing::error!(what, %error, "etcd refuses");
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
            }
            _ => tracing::debug!(what, %error, "etcd did not answer"),
        }
        Failed
    }

    fn answer<T>(&self, what: &'static str, result: Result<T, kv::Error>) -> Result<T, Failed> {
        metrics::request(what, if result.is_ok() { "ok" } else { "failed" });
        result.map_err(|error| self.failed(what, &error))
    }

    // ---------------------------------------------------------------- transactions

    /// If the key holds what was expected, `then` is done. `is_expected` says of bytes that are not `expect`'s own whether they mean the same.
    async fn swap(
        &self,
        what: &'static str,
        key: &Key,
        expect: Option<Vec<u8>>,
        then: Then,
        unless_frozen: bool,
        is_expected: impl Fn(&[u8]) -> bool + Send,
    ) -> Swapped {
        let path = self.path(key);
        let frozen = self.path(&Key::Frozen);
        let mut expect = expect;
        // Twice at most: the bytes of the second are those that are there.
        for _ in 0..2 {
            let mut when = vec![match &expect {
                Some(value) => If::Value(path.clone(), value.clone()),
                None => If::Absent(path.clone()),
            }];
            when.extend(unless_frozen.then(|| If::Absent(frozen.clone())));
            let read = vec![path.clone(), frozen.clone()];
            let txn = Txn { when, then: vec![then.clone()], read };
            let read = match self.kv.txn(txn).await {
                Ok(Done::Applied) => {
                    metrics::request(what, "won");
                    return Swapped::Won;
                }
                Ok(Done::Not(read)) => read,
                Err(error) => {
                    self.failed(what, &error);
                    metrics::request(what, "unknown");
                    return Swapped::Unknown;
                }
            };
            let mut read = read.into_iter().map(|found| found.map(|found| found.value));
            let (current, is_frozen) = (read.next().flatten(), read.next().flatten().is_some());
            match current {
                Some(current)
                    if !(unless_frozen && is_frozen)
                        && expect.as_ref().is_some_and(|expect| *expect != current)
                        && is_expected(&current) =>
                {
                    expect = Some(current);
                }
                current => {
                    metrics::request(what, "lost");
                    return Swapped::Lost(current);
                }
            }
        }
        // It was changed between the two to bytes that again mean the same: somebody else decides.
        metrics::request(what, "unknown");
        Swapped::Unknown
    }

    fn put(&self, key: &Key, value: Vec<u8>) -> Then {
        Then::Put { key: self.path(key), value, lease: None }
    }

    /// If the slot's key is exactly `expect`, `then` is done.
    async fn if_slot(
        &self,
        what: &'static str,
        slot: SlotId,
        expect: Option<SlotKey>,
        then: Then,
        unless_frozen: bool,
    ) -> CasOutcome {
        let key = Key::Slot(slot);
        let bytes = expect.as_ref().map(encoding::encode_slot);
        let means_the_same = |value: &[u8]| encoding::decode_slot(value).ok() == expect;
        match self.swap(what, &key, bytes, then, unless_frozen, means_the_same).await {
            Swapped::Won => CasOutcome::Won,
            Swapped::Lost(None) => CasOutcome::Lost(None),
            Swapped::Lost(Some(value)) => match self.understood(&key, encoding::decode_slot(&value)) {
                Some(value) => CasOutcome::Lost(Some(value)),
                None => CasOutcome::Unknown,
            },
            Swapped::Unknown => CasOutcome::Unknown,
        }
    }

    /// Swaps slots' keys, in as few transactions as there are, until nothing waits.
    async fn carry_out_swaps(&self) {
        loop {
            let swaps = self.swaps.next();
            if swaps.is_empty() {
                return;
            }
            self.swap_together(swaps).await;
        }
    }

    async fn swap_each(&self, swaps: Vec<Swap>) {
        // Some may have been given up while they were tried together.
        let wanted = swaps.into_iter().filter(|swap| !swap.answer.is_closed());
        let each = wanted.map(|Swap { slot, expect, new, answer }| async move {
            let then = self.put(&Key::Slot(slot), encoding::encode_slot(&new));
            answer.send(self.if_slot(CAS_SLOT, slot, expect, then, true).await).ok();
        });
        join_all(each).await;
    }

    /// All or none. None: one of them was lost, or has other bytes that mean the same; then each is tried alone.
    async fn swap_together(&self, swaps: Vec<Swap>) {
        if swaps.len() == 1 {
            return self.swap_each(swaps).await;
        }
        let mut txn =
            Txn { when: vec![If::Absent(self.path(&Key::Frozen))], then: Vec::new(), read: Vec::new() };
        for Swap { slot, expect, new, .. } in &swaps {
            let key = Key::Slot(*slot);
            let path = self.path(&key);
            txn.when.push(match expect {
                Some(expect) => If::Value(path, encoding::encode_slot(expect)),
                None => If::Absent(path),
            });
            txn.then.push(self.put(&key, encoding::encode_slot(new)));
        }
        let (outcome, word) = match self.kv.txn(txn).await {
            Ok(Done::Applied) => (CasOutcome::Won, "won"),
            Ok(Done::Not(_)) => return self.swap_each(swaps).await,
            Err(error) => {
                self.failed(CAS_SLOT, &error);
                (CasOutcome::Unknown, "unknown")
            }
        };
        for swap in swaps {
            metrics::request(CAS_SLOT, word);
            swap.answer.send(outcome.clone()).ok();
        }
    }

    /// A transaction about a node's key: whether it was applied.
    async fn guarded(&self, what: &'static str, when: If, then: Then) -> Result<bool, Failed> {
        let done = self.kv.txn(Txn { when: vec![when], then: vec![then], read: Vec::new() }).await;
        self.answer(what, done).map(|done| matches!(done, Done::Applied))
    }

    async fn create_node(&self, lease: LeaseId, node: NodeId, entry: NodeEntry) -> Joined {
        let key = Key::Node(node);
        let path = self.path(&key);
        let then = Then::Put { key: path.clone(), value: encoding::encode_node(&entry), lease: Some(lease) };
        let txn = Txn { when: vec![If::Absent(path.clone())], then: vec![then], read: vec![path] };
        let done = self.kv.txn(txn).await;
        match self.answer("join", done) {
            Ok(Done::Applied) => Joined::Done,
            Ok(Done::Not(mut read)) => {
                let value = read.pop().flatten().map(|found| encoding::decode_node(&found.value));
                match value.and_then(|value| self.understood(&key, value)) {
                    Some(other) => Joined::Taken(other),
                    None => Joined::Unknown,
                }
            }
            Err(Failed) => Joined::Unknown,
        }
    }

    async fn remove_node(&self, peer: Peer) -> Result<(), Failed> {
        let key = Key::Node(peer.node);
        let Some(found) = self.answer("delete_node", self.read(&key).await)? else { return Ok(()) };
        let names_it =
            encoding::decode_node(&found.value).is_ok_and(|entry| entry.incarnation == peer.incarnation);
        if names_it {
            let path = self.path(&key);
            let when = If::Modified(path.clone(), found.modified);
            self.guarded("delete_node", when, Then::Delete(path)).await?;
        }
        Ok(())
    }

    async fn is_gone(&self, incarnation: Incarnation) -> Result<bool, Failed> {
        let nodes = format!("{}nodes/", self.prefix).into_bytes();
        let raw = self.answer("read_node", self.read_under(nodes).await)?;
        for KeyValue { key, value, .. } in raw.found {
            let Some(key) = self.parse(&key) else { continue };
            match self.understood(&key, encoding::decode_node(&value)) {
                Some(entry) if entry.incarnation == incarnation => return Ok(false),
                Some(_) => {}
                // It may be the one.
                None => return Err(Failed),
            }
        }
        Ok(true)
    }

    async fn found_or_check(&self, mine: Meta) -> Result<Meta, Error> {
        let key = Key::Meta;
        let path = self.path(&key);
        // Not read first: etcd refuses the transaction, done or not, to a user that may not write.
        let then = Then::Put { key: path.clone(), value: encoding::encode_meta(&mine), lease: None };
        let txn = Txn { when: vec![If::Absent(path.clone())], then: vec![then], read: vec![path] };
        let there = match self.kv.txn(txn).await.map_err(|error| self.error(error))? {
            Done::Applied => None,
            // Another node was first.
            Done::Not(mut read) => read.pop().flatten().map(|found| found.value),
        };
        let Some(there) = there else { return Ok(mine) };
        let there =
            encoding::decode_meta(&there).map_err(|source| Error::Value { key: key.name(), source })?;
        mine.founding.check(&there.founding)?;
        Ok(there)
    }

    async fn everything(&self) -> Result<Everything, Error> {
        let raw = self.list().await.map_err(|error| self.error(error))?;
        let value = |key: Key| {
            let path = self.path(&key);
            raw.found.iter().find(|found| found.key == path).map(|found| found.value.as_slice())
        };
        let meta = value(Key::Meta).map(encoding::decode_meta).transpose();
        Ok(Everything {
            revision: raw.revision,
            listing: self.decode(&raw.found),
            frozen: value(Key::Frozen).map(encoding::frozen_reason),
            meta: meta.map_err(|source| Error::Value { key: Key::Meta.name(), source })?,
        })
    }

    /// Each value names the revision that made it; the one before it is what was there just before.
    async fn past_of(&self, key: Key, limit: usize) -> Result<Vec<Past>, Error> {
        let mut past = Vec::new();
        let mut revision = None;
        while past.len() < limit {
            let range = Range { key: self.path(&key), end: None, revision, limit: 1 };
            let found = match self.kv.range(range).await {
                Err(kv::Error::NoRevision) => None,
                ranged => ranged.map_err(|error| self.error(error))?.found.pop(),
            };
            let Some(found) = found else { break };
            let broken = |source| Error::Value { key: key.name(), source };
            let value = match &key {
                Key::Slot(_) => PastValue::Slot(encoding::decode_slot(&found.value).map_err(broken)?),
                Key::Target => {
                    PastValue::Target(Arc::new(encoding::decode_target(&found.value).map_err(broken)?))
                }
                Key::Node(_) | Key::Frozen | Key::Meta => {
                    PastValue::Text(String::from_utf8_lossy(&found.value).into_owned())
                }
            };
            past.push(Past { revision: found.modified, value });
            revision = Some(found.modified - 1).filter(|revision| *revision > 0);
            if revision.is_none() {
                break;
            }
        }
        Ok(past)
    }
}

impl<K: Kv> Coordination for Keys<K> {
    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, Failed>> {
        async move { self.answer("grant", self.kv.grant(ttl).await) }.boxed()
    }

    fn join(&self, lease: LeaseId, node: NodeId, entry: NodeEntry) -> BoxFuture<'_, Joined> {
        self.create_node(lease, node, entry).boxed()
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, KeptAlive> {
        async move {
            let kept = self.kv.keep_alive(lease).await;
            let outcome = match kept {
                KeptAlive::Done => "ok",
                KeptAlive::Failed => "failed",
                KeptAlive::LeaseGone => "gone",
            };
            metrics::request("keep_alive", outcome);
            kept
        }
        .boxed()
    }

    fn put_node(
        &self,
        lease: LeaseId,
        node: NodeId,
        entry: NodeEntry,
    ) -> BoxFuture<'_, Result<bool, Failed>> {
        async move {
            let path = self.path(&Key::Node(node));
            // A lease is of one run: a key that is on it names that run.
            let when = If::Lease(path.clone(), lease);
            let value = encoding::encode_node(&entry);
            self.guarded("put_node", when, Then::Put { key: path, value, lease: Some(lease) }).await
        }
        .boxed()
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), Failed>> {
        async move { self.answer("revoke", self.kv.revoke(lease).await) }.boxed()
    }

    fn delete_node(&self, peer: Peer) -> BoxFuture<'_, Result<(), Failed>> {
        self.remove_node(peer).boxed()
    }

    fn read_node(&self, incarnation: Incarnation) -> BoxFuture<'_, Result<bool, Failed>> {
        self.is_gone(incarnation).boxed()
    }

    fn refused(&self) -> Option<Error> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        refused.map(|refused| self.error(refused))
    }

    fn cas_target(&self, expect: Option<Arc<Target>>, new: Arc<Target>) -> BoxFuture<'_, TargetOutcome> {
        async move {
            let key = Key::Target;
            let bytes = expect.as_deref().map(encoding::encode_target);
            let means_the_same =
                |value: &[u8]| encoding::decode_target(value).ok().as_ref() == expect.as_deref();
            let then = self.put(&key, encoding::encode_target(&new));
            match self.swap("cas_target", &key, bytes, then, false, means_the_same).await {
                Swapped::Won => TargetOutcome::Won,
                Swapped::Lost(None) => TargetOutcome::Lost(None),
                Swapped::Lost(Some(value)) => match self.understood(&key, encoding::decode_target(&value)) {
                    Some(target) => TargetOutcome::Lost(Some(Arc::new(target))),
                    None => TargetOutcome::Unknown,
                },
                Swapped::Unknown => TargetOutcome::Unknown,
            }
        }
        .boxed()
    }

    fn cas_slot(&self, slot: SlotId, expect: Option<SlotKey>, new: SlotKey) -> BoxFuture<'_, CasOutcome> {
        async move {
            let (answer, answered) = oneshot::channel();
            if self.swaps.put(Swap { slot, expect, new, answer }) {
                let keys = self.clone();
                // Others wait for it, too: it goes on without the first who asked.
                tokio::spawn(async move { keys.carry_out_swaps().await });
            }
            answered.await.unwrap_or(CasOutcome::Unknown)
        }
        .boxed()
    }

    fn recover_slot(&self, slot: SlotId, expect: Option<SlotKey>, new: SlotKey) -> BoxFuture<'_, CasOutcome> {
        let then = self.put(&Key::Slot(slot), encoding::encode_slot(&new));
        self.if_slot("recover_slot", slot, expect, then, false).boxed()
    }

    fn read_slot(&self, slot: SlotId) -> BoxFuture<'_, Result<Option<SlotKey>, Failed>> {
        async move {
            let key = Key::Slot(slot);
            match self.answer("read_slot", self.read(&key).await)? {
                None => Ok(None),
                Some(found) => {
                    let value = self.understood(&key, encoding::decode_slot(&found.value));
                    value.map(Some).ok_or(Failed)
                }
            }
        }
        .boxed()
    }

    fn freeze(
        &self,
        slot: SlotId,
        expect: Option<SlotKey>,
        by: NodeId,
        why: Why,
    ) -> BoxFuture<'_, CasOutcome> {
        let frozen = Frozen::SetBack { slot, by, why };
        let then = self.put(&Key::Frozen, encoding::encode_frozen(&frozen));
        self.if_slot("freeze", slot, expect, then, false).boxed()
    }

    fn freeze_to_recover(&self) -> BoxFuture<'_, Result<(), Failed>> {
        async move {
            let then = self.put(&Key::Frozen, encoding::encode_frozen(&Frozen::Recover));
            let when = If::Absent(self.path(&Key::Frozen));
            self.guarded("freeze", when, then).await.map(|_| ())
        }
        .boxed()
    }

    fn lift_frozen(&self) -> BoxFuture<'_, Result<(), Failed>> {
        async move {
            let path = self.path(&Key::Frozen);
            let then = Then::Delete(path);
            let done = self.kv.txn(Txn { when: Vec::new(), then: vec![then], read: Vec::new() }).await;
            self.answer("lift_frozen", done).map(|_| ())
        }
        .boxed()
    }

    fn meta(&self, mine: Meta) -> BoxFuture<'_, Result<Meta, Error>> {
        self.found_or_check(mine).boxed()
    }

    fn read_all(&self) -> BoxFuture<'_, Result<Everything, Error>> {
        self.everything().boxed()
    }

    fn history(&self, key: Key, limit: usize) -> BoxFuture<'_, Result<Vec<Past>, Error>> {
        self.past_of(key, limit).boxed()
    }

    fn watch(&self, buffer: usize) -> mpsc::Receiver<Event> {
        watch::begin(self.clone(), buffer)
    }
}
