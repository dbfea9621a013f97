//! What a cluster keeps in etcd, in the terms of the ring.
//!
//! Always holds: answers are honest. `Won` and `Lost` were said by a server; everything else (a time-out, a broken
//! connection) is unknown, because it may be applied at any time from then on. No transaction is sent twice.
//! Does not: decide anything. That is done in `banyan-router`.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use banyan_proto::id::{Incarnation, SlotId};
use banyan_router::encoding::{self, Key};
use banyan_router::meta::{Meta, Mismatch};
use banyan_router::node::{KeptAlive, Listing, TargetOutcome, Watched};
use banyan_router::node_key::NodeEntry;
use banyan_router::slot_key::{NodeId, Peer, SlotKey};
use banyan_router::slot_owner::{CasOutcome, Failed, Why};
use banyan_router::target::Target;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use crate::kv::{self, Refusal};

/// Of a lease; given by etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(pub i64);

/// What people are told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("etcd at {at} does not answer: {source}")]
    Etcd { at: String, source: kv::Error },
    /// Trying again does not help.
    #[error("{}", refused(at, *what, why))]
    Refused { at: String, what: Refusal, why: String },
    #[error("the address of an etcd server must be http://HOST:PORT or https://HOST:PORT, not {0:?}")]
    Address(String),
    #[error("no etcd server is named")]
    NoServers,
    #[error("the name of a cluster has 1 to 64 bytes of A-Z a-z 0-9 . _ -, not {0:?}")]
    ClusterName(String),
    #[error("{0}; a cluster keeps what it was founded with: correct this node's configuration")]
    Mismatch(#[from] Mismatch),
    #[error("the key {key} holds what this release does not understand: {source}")]
    Value { key: String, source: encoding::Error },
}

fn refused(at: &str, what: Refusal, why: &str) -> String {
    match what {
        Refusal::Login => format!("etcd at {at} refuses the login: {why}"),
        Refusal::Permission => format!("etcd at {at} refuses: {why}"),
        Refusal::Certificate => format!("no TLS with etcd at {at}: {why}"),
        Refusal::Options => format!("etcd at {at} cannot be asked so: {why}"),
    }
}

/// What came of showing a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Joined {
    Done,
    /// The key is there: another run of this node lives, or its lease has not run out yet.
    Taken(NodeEntry),
    /// The key may be there now, or later, until the lease ends.
    Unknown,
}

/// What the watch says, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// All that there is; what was known before is void.
    Listed(Box<Listing>),
    Watched(Watched),
    /// Nothing is known to be new until [`Event::Listed`].
    Gone,
}

/// Everything under the prefix at one revision, for people.
#[derive(Debug, Clone)]
pub struct Everything {
    pub revision: i64,
    pub listing: Listing,
    /// Why ownership is frozen.
    pub frozen: Option<String>,
    pub meta: Option<Meta>,
}

/// What a key was at some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    /// The revision that made it so.
    pub revision: i64,
    pub value: PastValue,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PastValue {
    Slot(SlotKey),
    Target(Arc<Target>),
    /// Of the other keys: as it is written.
    Text(String),
}

pub trait Coordination: Send + Sync + Debug + 'static {
    /// A lease that ends by itself after `ttl` (in whole seconds, rounded up).
    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, Failed>>;

    /// Shows a run that was never shown: creates its node's key on the lease.
    fn join(&self, lease: LeaseId, node: NodeId, entry: NodeEntry) -> BoxFuture<'_, Joined>;

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, KeptAlive>;

    /// Puts the node's key again if it is still the one on this lease. `false`: it is not.
    fn put_node(&self, lease: LeaseId, node: NodeId, entry: NodeEntry)
    -> BoxFuture<'_, Result<bool, Failed>>;

    /// Ends a lease and what is on it.
    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), Failed>>;

    /// Deletes the node's key if it names this very run.
    fn delete_node(&self, peer: Peer) -> BoxFuture<'_, Result<(), Failed>>;

    /// Whether no node key names the run: linearizable.
    fn read_node(&self, incarnation: Incarnation) -> BoxFuture<'_, Result<bool, Failed>>;

    fn cas_target(&self, expect: Option<Arc<Target>>, new: Arc<Target>) -> BoxFuture<'_, TargetOutcome>;

    /// Not while ownership is frozen: then lost, though the key is what was expected.
    fn cas_slot(&self, slot: SlotId, expect: Option<SlotKey>, new: SlotKey) -> BoxFuture<'_, CasOutcome>;

    /// The same though ownership is frozen: for `ring recover` alone.
    fn recover_slot(&self, slot: SlotId, expect: Option<SlotKey>, new: SlotKey) -> BoxFuture<'_, CasOutcome>;

    /// What etcd has refused this process at last, where asking again does not help: a person must change something. To nodes an
    /// outcome is unknown then as with any other failure; people are told.
    fn refused(&self) -> Option<Error> {
        None
    }

    /// Linearizable.
    fn read_slot(&self, slot: SlotId) -> BoxFuture<'_, Result<Option<SlotKey>, Failed>>;

    /// If the slot's key is exactly `expect`, freezes ownership.
    fn freeze(
        &self,
        slot: SlotId,
        expect: Option<SlotKey>,
        by: NodeId,
        why: Why,
    ) -> BoxFuture<'_, CasOutcome>;

    /// Freezes ownership whatever the slots are: for `ring recover` alone. A reason that is there stays.
    fn freeze_to_recover(&self) -> BoxFuture<'_, Result<(), Failed>>;

    fn lift_frozen(&self) -> BoxFuture<'_, Result<(), Failed>>;

    /// What the cluster was founded with: `mine`, if this is its first node. Refused if this node was told otherwise.
    fn meta(&self, mine: Meta) -> BoxFuture<'_, Result<Meta, Error>>;

    fn read_all(&self) -> BoxFuture<'_, Result<Everything, Error>>;

    /// What a key was, newest first, as far back as etcd remembers, at most `limit` entries.
    fn history(&self, key: Key, limit: usize) -> BoxFuture<'_, Result<Vec<Past>, Error>>;

    /// One watch over everything: begins with a listing, and goes on by itself whatever happens to etcd. It ends when the
    /// receiver is dropped. The channel holds `buffer` events; when it is full, what comes waits in etcd.
    fn watch(&self, buffer: usize) -> mpsc::Receiver<Event>;
}
