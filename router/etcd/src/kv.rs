//! The few things that the ring asks of etcd: reads of ranges, transactions, leases, a watch.
//!
//! Always holds: an error says whether the request can have been carried out ([`Error::NotSent`]) or may have been, now or at
//! any time ([`Error::Unknown`]). A transaction holds a handful of operations (etcd's bound is 128).

use std::future::Future;
use std::time::Duration;

use banyan_router::node::KeptAlive;

use crate::coordination::LeaseId;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It did not reach a server, and will not.
    #[error("{0}")]
    NotSent(String),
    /// It may have been carried out.
    #[error("{0}")]
    Unknown(String),
    /// The revision asked for is compacted, or has not been yet.
    #[error("no such revision any more, or not yet")]
    NoRevision,
    /// Not done, and asking again does not help: a person must change something.
    #[error("{1}")]
    Refused(Refusal, String),
}

/// What a person must change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Name and password: wrong, or not given.
    Login,
    /// What the user may do.
    Permission,
    /// A certificate, its key or the authority, of this side or the other.
    Certificate,
    /// Options that do not fit each other.
    Options,
}

/// A key as it was set last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    /// The revision that set it.
    pub modified: i64,
}

/// A read of one key, or of all from `key` up to but not `end`; linearizable.
#[derive(Debug, Clone)]
pub struct Range {
    pub key: Vec<u8>,
    pub end: Option<Vec<u8>>,
    /// As of this revision; `None`: as it is.
    pub revision: Option<i64>,
    /// At most so many keys; 0: all.
    pub limit: i64,
}

#[derive(Debug, Clone)]
pub struct Ranged {
    /// The newest revision, whatever was asked for.
    pub revision: i64,
    pub found: Vec<KeyValue>,
    /// The limit has cut it.
    pub more: bool,
}

/// What must be true of one key.
#[derive(Debug, Clone)]
pub enum If {
    Absent(Vec<u8>),
    Value(Vec<u8>, Vec<u8>),
    Modified(Vec<u8>, i64),
    /// It is on this lease.
    Lease(Vec<u8>, LeaseId),
}

#[derive(Debug, Clone)]
pub enum Then {
    Put { key: Vec<u8>, value: Vec<u8>, lease: Option<LeaseId> },
    Delete(Vec<u8>),
}

/// If all of `when` is true, all of `then` is done, no key twice; else `read` is read. At most 128 of each.
#[derive(Debug, Clone)]
pub struct Txn {
    pub when: Vec<If>,
    pub then: Vec<Then>,
    pub read: Vec<Vec<u8>>,
}

#[derive(Debug, Clone)]
pub enum Done {
    Applied,
    /// Not applied, and never will be. What was read instead, in the order asked for.
    Not(Vec<Option<KeyValue>>),
}

/// One change that a watch shows.
#[derive(Debug, Clone)]
pub struct Changed {
    pub key: Vec<u8>,
    /// `None`: deleted.
    pub value: Option<Vec<u8>>,
    pub revision: i64,
}

/// Why a watch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// What it waits for is compacted: what there is must be listed.
    Compacted,
    /// It may be resumed.
    Lost(String),
}

pub trait Kv: Clone + Send + Sync + 'static {
    type Watch: Watch;

    /// For people.
    fn describe(&self) -> String;

    fn range(&self, range: Range) -> impl Future<Output = Result<Ranged, Error>> + Send;

    /// Sent once, to one server.
    fn txn(&self, txn: Txn) -> impl Future<Output = Result<Done, Error>> + Send;

    fn grant(&self, ttl: Duration) -> impl Future<Output = Result<LeaseId, Error>> + Send;

    fn keep_alive(&self, lease: LeaseId) -> impl Future<Output = KeptAlive> + Send;

    /// A lease that is not there is revoked.
    fn revoke(&self, lease: LeaseId) -> impl Future<Output = Result<(), Error>> + Send;

    /// Everything under the prefix that changes at `from` or later.
    fn watch(&self, prefix: Vec<u8>, from: i64) -> impl Future<Output = Result<Self::Watch, Broken>> + Send;
}

pub trait Watch: Send + 'static {
    /// What has changed next, whole revisions in order. May be dropped while it waits.
    fn next(&mut self) -> impl Future<Output = Result<Vec<Changed>, Broken>> + Send;
}

/// The end of the range of all keys that begin so.
pub(crate) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // Etcd's way to say: to the last key.
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        for (prefix, end) in [(&b"/banyan/a/"[..], &b"/banyan/a0"[..]), (b"a\xff", b"b"), (b"\xff", b"\0")] {
            assert_eq!(end_of(prefix), end);
        }
    }
}
