//! What other nodes say to one run of this one: links of their gateways to our owners of rooms, and what nodes say to
//! each other.
//!
//! Owns: the numbers of links that others opened. Always holds: a number is given again only when every worker has
//! forgotten whose it was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use banyan_proto::id::{Incarnation, SlotId};
use banyan_proto::link::{FromShard, LinkId, ToShard, ToShardBatch};
use banyan_router::node::Input;
use banyan_router::slot_key::Peer;
use banyan_router::slot_owner;
use banyan_router_etcd::RunnerHandle;
use banyan_router_peer::{Accept, Hello, NodeMessage, SessionId};
use banyan_shard::{Handle, SlotOrder};
use banyan_shard_core::room::HandedRoom;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use crate::node::QUEUE;

#[derive(Debug, Clone)]
pub(crate) struct Inbound(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    handle: Handle,
    /// The run, once it has begun; before that nobody knows where it listens.
    run: OnceLock<RunnerHandle>,
    links: Mutex<Links>,
}

#[derive(Debug)]
struct Links {
    sessions: BTreeMap<SessionId, Vec<LinkId>>,
    taken: BTreeSet<u16>,
    /// Below are those of this process.
    first: u16,
}

impl Links {
    /// As many numbers as an other process has ends; fewer if there are none left.
    fn take(&mut self, count: u16) -> Vec<LinkId> {
        let free = (self.first..u16::MAX).filter(|number| !self.taken.contains(number));
        let found: Vec<u16> = free.take(usize::from(count)).collect();
        self.taken.extend(&found);
        found.into_iter().map(LinkId).collect()
    }
}

impl Inbound {
    /// `local`: links of this process.
    pub(crate) fn new(handle: Handle, local: usize) -> Self {
        let first = u16::try_from(local).unwrap_or(u16::MAX);
        let links = Links { sessions: BTreeMap::new(), taken: BTreeSet::new(), first };
        Self(Arc::new(Shared { handle, run: OnceLock::new(), links: Mutex::new(links) }))
    }

    pub(crate) fn begun(&self, run: RunnerHandle) {
        self.0.run.set(run).ok();
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.0.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn input(&self, input: Input) {
        if let Some(run) = self.0.run.get() {
            // Full or over: everything here is said again, or is not needed.
            run.try_input(input).ok();
        }
    }

    async fn open(self, session: SessionId, ends: u16) -> Vec<mpsc::Receiver<Vec<FromShard>>> {
        let links = self.links().take(ends);
        let mut outs = Vec::new();
        for link in &links {
            let (sender, out) = mpsc::channel(QUEUE);
            self.0.handle.open_link(*link, &sender).await;
            outs.push(out);
        }
        self.links().sessions.insert(session, links);
        outs
    }

    /// Each message to the worker of its slot. Waits while a worker's inbox is full.
    async fn pass(self, session: SessionId, batch: ToShardBatch) {
        let link = self.links().sessions.get(&session).and_then(|ends| ends.get(usize::from(batch.link.0)).copied());
        let Some(link) = link else { return };
        let handle = &self.0.handle;
        let mut parts: Vec<Vec<ToShard>> = (0..handle.workers()).map(|_| Vec::new()).collect();
        for message in batch.messages {
            let worker = match &message {
                ToShard::Room { room, .. }
                | ToShard::Pull { room, .. }
                | ToShard::Interest { room, .. }
                | ToShard::Uninterest { room } => handle.worker_of(room.as_str()),
                ToShard::UserOnline { user }
                | ToShard::UserOffline { user }
                | ToShard::UserRooms { user, .. }
                | ToShard::Notify { user, .. } => handle.worker_of_user(user.as_str()),
            };
            parts[worker].push(message);
        }
        for (worker, messages) in parts.into_iter().enumerate() {
            if !messages.is_empty() {
                handle.send(worker, ToShardBatch { link, messages }).await;
            }
        }
    }

    async fn close(self, session: SessionId) {
        let links = self.links().sessions.remove(&session).unwrap_or_default();
        for link in &links {
            self.0.handle.link_gone(*link).await;
        }
        let mut held = self.links();
        for link in links {
            held.taken.remove(&link.0);
        }
    }

    fn handed(&self, slot: SlotId, epoch: banyan_proto::id::Epoch, complete: bool, rooms: &[bytes::Bytes]) {
        let decoded: Result<Vec<HandedRoom>, _> = rooms.iter().map(|room| HandedRoom::decode(room)).collect();
        match decoded {
            Ok(rooms) => {
                self.0.handle.slot(slot, SlotOrder::Handed { epoch, rooms });
                let input = slot_owner::Input::StatePassed { epoch, complete };
                self.input(Input::Slot { slot, input });
            }
            // They are opened from the store then.
            Err(error) => tracing::warn!(%slot, %error, "what an old owner passed on cannot be read"),
        }
    }
}

impl Accept for Inbound {
    fn opened(
        &self,
        session: SessionId,
        peer: &Hello,
    ) -> BoxFuture<'static, Vec<mpsc::Receiver<Vec<FromShard>>>> {
        self.clone().open(session, peer.links).boxed()
    }

    fn to_shard(&self, session: SessionId, batch: ToShardBatch) -> BoxFuture<'static, ()> {
        self.clone().pass(session, batch).boxed()
    }

    fn told(&self, from: &Peer, message: NodeMessage) {
        match message {
            NodeMessage::AskReady => self.input(Input::ReadyAsked { by: from.clone() }),
            NodeMessage::Ready => self.input(Input::Ready { incarnation: from.incarnation }),
            NodeMessage::Refused { incarnation } => self.refused(incarnation, from),
            NodeMessage::Handed { slot, epoch, complete, rooms } => self.handed(slot, epoch, complete, &rooms),
        }
    }

    fn closed(&self, session: SessionId) -> BoxFuture<'static, ()> {
        self.clone().close(session).boxed()
    }
}

impl Inbound {
    fn refused(&self, incarnation: Incarnation, by: &Peer) {
        self.input(Input::Refused { incarnation, witness: by.node.clone() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_links_are_given_once() {
        let mut links = Links { sessions: BTreeMap::new(), taken: BTreeSet::new(), first: 3 };
        assert_eq!(links.take(2), [LinkId(3), LinkId(4)]);
        assert_eq!(links.take(2), [LinkId(5), LinkId(6)]);
        links.taken.remove(&4);
        assert_eq!(links.take(2), [LinkId(4), LinkId(7)]);
        assert!(links.take(u16::MAX).len() < usize::from(u16::MAX), "the last one is what workers call each other by");
        assert!(links.take(1).is_empty());
    }
}
