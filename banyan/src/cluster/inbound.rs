//! What other nodes say to this one: links of their gateways to our owners of rooms, and what nodes say to each other.
//!
//! Owns: the numbers of links that others opened. Always holds: a link belongs to the run under which it was opened; no
//! number is given twice, since what was meant for the link before could still be on its way.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use banyan_proto::link::{FromShard, LinkId, ToShard, ToShardBatch};
use banyan_proto::wire::{Handed, NodeMessage};
use banyan_router::node::Input;
use banyan_router::slot_key::Peer;
use banyan_router::slot_owner;
use banyan_router_etcd::RunnerHandle;
use banyan_router_peer::{Accept, Asked, Hello, Inbound};
use banyan_shard::{Handle, SlotOrder};
use banyan_shard_core::room::HandedRoom;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Lets other nodes in, to the run that there is.
#[derive(Debug, Clone)]
pub(crate) struct Doors(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    run: Option<Run>,
    /// Of the next link.
    next: u32,
}

/// Whom other nodes find here now.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) handle: Handle,
    pub(crate) ring: RunnerHandle,
}

impl Doors {
    /// `local`: links of this process.
    pub(crate) fn new(local: usize) -> Self {
        // At most a few hundred.
        Self(Arc::new(Mutex::new(State { run: None, next: local as u32 })))
    }

    /// From now on others are let in to this run; those who spoke to the one before are sent away by its port.
    pub(crate) fn lead_to(&self, run: Option<Run>) {
        self.state().run = run;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Accept for Doors {
    fn opened(
        &self,
        peer: &Hello,
        outs: Vec<mpsc::Sender<Vec<FromShard>>>,
    ) -> Result<Arc<dyn Inbound>, String> {
        let mut state = self.state();
        let Some(run) = state.run.clone() else {
            return Err("this node is between two runs".to_owned());
        };
        let first = state.next;
        // The last number is what workers call each other by. A process that was reached so often starts anew.
        let Some(next) = first.checked_add(outs.len() as u32).filter(|next| *next < u32::MAX) else {
            return Err("this node has no numbers left for links: restart it".to_owned());
        };
        state.next = next;
        let links: Vec<LinkId> = (first..next).map(LinkId).collect();
        for (link, out) in links.iter().zip(&outs) {
            run.handle.open_link(*link, out);
        }
        Ok(Arc::new(Guest { run, from: peer.peer.clone(), links }))
    }
}

/// One process that has opened its links to us.
#[derive(Debug)]
struct Guest {
    run: Run,
    from: Peer,
    /// By its own number of an end.
    links: Vec<LinkId>,
}

impl Guest {
    fn input(&self, input: Input) {
        // Full or over: everything here is said again, or can be done without.
        self.run.ring.try_input(input).ok();
    }
}

impl Inbound for Guest {
    fn to_shard(&self, end: LinkId, messages: Vec<Asked>) -> Vec<Asked> {
        let Some(link) = self.links.get(end.0 as usize).copied() else { return Vec::new() };
        let handle = &self.run.handle;
        let now = Instant::now();
        let mut parts: Vec<Vec<Asked>> = (0..handle.workers()).map(|_| Vec::new()).collect();
        // Whoever asked has given up.
        for asked in messages.into_iter().filter(|asked| asked.until.is_none_or(|until| now < until)) {
            parts[worker_of(handle, &asked.message)].push(asked);
        }
        let mut back = Vec::new();
        for (worker, part) in parts.into_iter().enumerate() {
            if part.is_empty() {
                continue;
            }
            let until: Vec<Option<Instant>> = part.iter().map(|asked| asked.until).collect();
            let messages = part.into_iter().map(|asked| asked.message).collect();
            if let Err(batch) = handle.try_send(worker, ToShardBatch { link, messages }) {
                let again = batch.messages.into_iter().zip(until);
                back.extend(again.map(|(message, until)| Asked { until, message }));
            }
        }
        back
    }

    fn told(&self, message: NodeMessage) {
        self.input(match message {
            NodeMessage::AskReady => Input::ReadyAsked { by: self.from.clone() },
            NodeMessage::Ready => Input::Ready { incarnation: self.from.incarnation },
            NodeMessage::Refused { incarnation } => {
                Input::Refused { incarnation, witness: self.from.node.clone() }
            }
            NodeMessage::Wanted { slots } => Input::Wanted { slots },
        });
    }

    fn handed(&self, handed: Handed) {
        let Handed { slot, epoch, complete, rooms } = handed;
        let decoded: Result<Vec<HandedRoom>, _> = rooms.iter().map(|room| HandedRoom::decode(room)).collect();
        match decoded {
            Ok(rooms) => {
                self.run.handle.slot(slot, SlotOrder::Handed { epoch, rooms });
                let input = slot_owner::Input::StatePassed { epoch, complete };
                self.input(Input::Slot { slot, input });
            }
            // They are opened from the store then.
            Err(error) => {
                tracing::warn!(%slot, from = %self.from.node, %error, "what an old owner passed on cannot be read");
            }
        }
    }

    fn closed(&self) {
        let (handle, links) = (self.run.handle.clone(), self.links.clone());
        // Until there is room in a worker's inbox what it says to the link goes nowhere.
        tokio::spawn(async move {
            for link in links {
                handle.link_gone(link).await;
            }
        });
    }
}

fn worker_of(handle: &Handle, message: &ToShard) -> usize {
    match message {
        ToShard::Room { room, .. }
        | ToShard::Pull { room, .. }
        | ToShard::Interest { room, .. }
        | ToShard::Uninterest { room } => handle.worker_of(room.as_str()),
        ToShard::UserOnline { user }
        | ToShard::UserOffline { user }
        | ToShard::UserRooms { user, .. }
        | ToShard::Notify { user, .. }
        | ToShard::LoginsEnded { user } => handle.worker_of_user(user.as_str()),
    }
}
