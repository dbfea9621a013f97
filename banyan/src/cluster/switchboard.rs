//! The way to the owner of every slot, for gateways and for pushes to user channels.
//!
//! Owns: the links to other nodes, the table from slots to links, and what the gateway workers were told of it. Follows the
//! ring by a watch of its own, so that it goes on between the runs of this node and while it leaves.
//! Always holds: a link leads to one run of one node, or to one worker of this process; workers hear of its loss after all
//! that came over it, and of its next use after that; what they are told of a slot is the newest epoch that was seen.
//! Does not: decide who owns what, nor hold what waits for an owner (`banyan-gateway-core` does).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use banyan_gateway::backend::{Backend, NotSent, Shards};
use banyan_gateway::local::ToWorker;
use banyan_gateway::worker::{Control, Route, UnknownOwner, Way};
use banyan_proto::id::{Epoch, Incarnation, RoomId, SlotId, UserId};
use banyan_proto::link::{FromShard, LinkId, ToShard, ToShardBatch};
use banyan_router::node::Watched;
use banyan_router::node_key::NodeEntry;
use banyan_router::slot_key::{NodeId, Peer, SlotKey};
use banyan_router::{SlotCount, slot_of, user_slot};
use banyan_router_etcd::coordination::Event as RingEvent;
use banyan_router_peer::{Down, Me, NodeMessage, Outgoing, Receive, Security};
use banyan_shard::{Elsewhere, Handle, SlotOrder};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Other nodes that own slots. Beyond them a node's rooms are out of reach for this one, and it says so.
const PEERS_MAX: usize = 1_024;
/// What waits for the switchboard; above that, who has news waits.
const NEWS: usize = 1_024;
/// A link that was lost by a reset and is refused within this time is a node that died.
const DIED_WITHIN: Duration = Duration::from_secs(2);

/// Where everything leads now. Replaced as a whole.
#[derive(Debug)]
struct Table {
    slots: SlotCount,
    /// By slot.
    links: Vec<Option<u16>>,
    /// By link.
    ways: Vec<Option<Arc<dyn Way>>>,
    peers: BTreeMap<Incarnation, Outgoing>,
}

/// What those have in common who use the table.
#[derive(Debug, Clone)]
pub(crate) struct Switchboard(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: ArcSwap<Table>,
    news: mpsc::Sender<News>,
    /// Links that lead to workers of this process come first.
    local: u16,
    /// On which pushes to user channels travel: nothing is answered to it.
    push_end: LinkId,
    lost_pushes: metrics::Counter,
}

/// What changes the table beside the ring.
#[derive(Debug)]
enum News {
    /// A run of this node begins, with or without owners of rooms.
    Begun { me: Me, handle: Option<Handle> },
    /// It is over, and so is all that its workers say.
    Over,
    Backend(Backend),
    Up { link: u16, session: u64 },
    Down { link: u16, session: u64, why: Down },
}

/// A node of which a peer was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Died(pub(crate) Incarnation);

/// What the switchboard is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) slots: SlotCount,
    /// Workers of this process.
    pub(crate) workers: usize,
    pub(crate) security: Security,
    /// The inboxes of this process's link ends.
    pub(crate) inboxes: Vec<mpsc::Sender<Vec<FromShard>>>,
    pub(crate) controls: Vec<mpsc::Sender<Control>>,
    pub(crate) unknown_owners: mpsc::Receiver<UnknownOwner>,
    /// Who is told of deaths.
    pub(crate) died: mpsc::Sender<Died>,
}

impl Switchboard {
    /// With the task that keeps it true; `ring` is a watch over everything.
    pub(crate) fn new(parts: Parts, ring: mpsc::Receiver<RingEvent>) -> (Self, Upkeep) {
        let (news, inbox) = mpsc::channel(NEWS);
        let table = Table {
            slots: parts.slots,
            links: vec![None; parts.slots.get() as usize],
            ways: Vec::new(),
            peers: BTreeMap::new(),
        };
        let end = parts.inboxes.len().saturating_sub(1);
        let shared = Arc::new(Shared {
            table: ArcSwap::from_pointee(table),
            news,
            // Workers are at most 256.
            local: parts.workers as u16,
            push_end: LinkId(u16::try_from(end).unwrap_or(u16::MAX)),
            lost_pushes: metrics::counter!("banyan_cluster_pushes_lost_total"),
        });
        let board = Self(shared);
        let known = vec![Known::default(); parts.slots.get() as usize];
        let told = vec![None; parts.slots.get() as usize];
        let upkeep = Upkeep {
            board: board.clone(),
            parts,
            ring,
            inbox,
            nodes: BTreeMap::new(),
            known,
            told,
            run: None,
            peers: BTreeMap::new(),
            sessions: 0,
            backend: None,
        };
        (board, upkeep)
    }

    /// How many links there can be.
    pub(crate) fn links(&self) -> usize {
        usize::from(self.0.local) + PEERS_MAX
    }

    pub(crate) async fn begun(&self, me: Me, handle: Option<Handle>) {
        self.news(News::Begun { me, handle }).await;
    }

    /// To be called when the workers of the run have ended.
    pub(crate) async fn over(&self) {
        self.news(News::Over).await;
    }

    /// Whose open questions are to be told of lost links.
    pub(crate) fn serves(&self, backend: Backend) {
        let board = self.clone();
        tokio::spawn(async move { board.news(News::Backend(backend)).await });
    }

    async fn news(&self, news: News) {
        // Nobody keeps the table any more when the node stops.
        self.0.news.send(news).await.ok();
    }

    /// To a run of another node, if there is a link to it. What does not arrive is asked for again.
    pub(crate) fn tell(&self, peer: &Peer, message: NodeMessage) -> bool {
        let table = self.0.table.load();
        table.peers.get(&peer.incarnation).is_some_and(|outgoing| outgoing.try_tell(message).is_ok())
    }

    /// To all runs that there are links to.
    pub(crate) fn tell_all(&self, message: &NodeMessage) {
        for outgoing in self.0.table.load().peers.values() {
            outgoing.try_tell(message.clone()).ok();
        }
    }

    fn send(&self, slot: SlotId, batch: ToShardBatch) -> Result<u16, NotSent> {
        let table = self.0.table.load();
        let link = table.links.get(usize::from(slot.0)).copied().flatten().ok_or(NotSent::NoOwner)?;
        let way = table.ways.get(usize::from(link)).and_then(Option::as_ref).ok_or(NotSent::NoOwner)?;
        way.offer(batch).map_err(|_| NotSent::Full)?;
        Ok(link)
    }
}

impl Shards for Switchboard {
    fn to_room(&self, room: &RoomId, batch: ToShardBatch) -> Result<u16, NotSent> {
        let slots = self.0.table.load().slots;
        self.send(slot_of(room.as_str(), slots), batch)
    }

    fn to_user(&self, user: &UserId, batch: ToShardBatch) -> Result<u16, NotSent> {
        let slots = self.0.table.load().slots;
        self.send(user_slot(user.as_str(), slots), batch)
    }
}

impl Elsewhere for Switchboard {
    fn notify(&self, slot: SlotId, message: ToShard) -> Option<ToShard> {
        let table = self.0.table.load();
        let link = table.links.get(usize::from(slot.0)).copied().flatten();
        if link.is_some_and(|link| link < self.0.local) {
            return Some(message);
        }
        let way = link.and_then(|link| table.ways.get(usize::from(link))?.as_ref());
        let batch = ToShardBatch { link: self.0.push_end, messages: vec![message] };
        if way.is_none_or(|way| way.offer(batch).is_err()) {
            self.0.lost_pushes.increment(1);
        }
        None
    }
}

/// The newest ownership of a slot that was seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Known {
    epoch: Epoch,
    owner: Option<Incarnation>,
}

#[derive(Debug)]
struct Run {
    me: Me,
    handle: Option<Handle>,
}

/// A run of another node, and the link to it.
#[derive(Debug)]
struct Link {
    number: u16,
    /// Of the tries to reach it; news of earlier ones is none.
    session: u64,
    node: NodeId,
    outgoing: Outgoing,
    is_up: bool,
    /// When a link that stood was reset.
    reset_at: Option<tokio::time::Instant>,
    /// Its death was told.
    died: bool,
}

/// Keeps the table true.
#[derive(Debug)]
pub(crate) struct Upkeep {
    board: Switchboard,
    parts: Parts,
    ring: mpsc::Receiver<RingEvent>,
    inbox: mpsc::Receiver<News>,
    nodes: BTreeMap<NodeId, NodeEntry>,
    known: Vec<Known>,
    told: Vec<Option<(Epoch, Option<u16>)>>,
    run: Option<Run>,
    peers: BTreeMap<Incarnation, Link>,
    sessions: u64,
    backend: Option<Backend>,
}

impl Upkeep {
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(news) = self.inbox.recv() => self.news(news).await,
                Some(unknown) = self.parts.unknown_owners.recv() => {
                    self.learn(unknown.slot, unknown.epoch, Some(unknown.owner));
                }
                Some(event) = self.ring.recv() => self.ring(event),
            }
            // Whatever else there is, then one table.
            for _ in 0..NEWS {
                if let Ok(event) = self.ring.try_recv() {
                    self.ring(event);
                } else if let Ok(unknown) = self.parts.unknown_owners.try_recv() {
                    self.learn(unknown.slot, unknown.epoch, Some(unknown.owner));
                } else {
                    break;
                }
            }
            self.follow_nodes().await;
            self.publish().await;
        }
        for link in self.peers.values() {
            link.outgoing.close();
        }
    }

    // ---------------------------------------------------------------- the ring

    fn ring(&mut self, event: RingEvent) {
        match event {
            RingEvent::Listed(listing) => {
                self.nodes = listing.nodes.into_iter().collect();
                for (slot, key) in listing.slots {
                    self.slot(slot, &key);
                }
            }
            RingEvent::Watched(Watched::Slot { slot, key: Some(key) }) => self.slot(slot, &key),
            RingEvent::Watched(Watched::Node { node, entry: Some(entry) }) => {
                self.nodes.insert(node, entry);
            }
            RingEvent::Watched(Watched::Node { node, entry: None }) => {
                self.nodes.remove(&node);
            }
            // A slot's key is never deleted; what the rest says is for runs.
            RingEvent::Watched(Watched::Slot { key: None, .. } | Watched::Target(_) | Watched::Frozen(_))
            | RingEvent::Gone => {}
        }
    }

    fn slot(&mut self, slot: SlotId, key: &SlotKey) {
        self.learn(slot, key.epoch, Some(key.incarnation));
    }

    fn learn(&mut self, slot: SlotId, epoch: Epoch, owner: Option<Incarnation>) {
        let Some(known) = self.known.get_mut(usize::from(slot.0)) else { return };
        if epoch < known.epoch || (epoch == known.epoch && known.owner.is_some()) {
            return;
        }
        *known = Known { epoch, owner };
        if let Some(Run { me, handle: Some(handle) }) = &self.run
            && owner != Some(me.incarnation)
        {
            handle.slot(slot, SlotOrder::Owner { epoch, owner });
        }
    }

    // ---------------------------------------------------------------- links

    async fn news(&mut self, news: News) {
        match news {
            News::Begun { me, handle } => self.begun(me, handle).await,
            News::Over => self.local_lost().await,
            News::Backend(backend) => self.backend = Some(backend),
            News::Up { link, session } => {
                let Some(peer) = self.peers.values_mut().find(|peer| peer.number == link) else { return };
                if peer.session != session {
                    return;
                }
                (peer.is_up, peer.reset_at, peer.died) = (true, None, false);
                let way: Arc<dyn Way> = Arc::new(ToPeer(peer.outgoing.clone()));
                tracing::debug!(node = %peer.node, link, "link is up");
                self.way(link, way).await;
            }
            News::Down { link, session, why } => self.down(link, session, &why).await,
        }
    }

    async fn begun(&mut self, me: Me, handle: Option<Handle>) {
        // Peers know a run by its name: none of them is spoken to under an old one.
        self.local_lost().await;
        for incarnation in self.peers.keys().copied().collect::<Vec<_>>() {
            self.forget(incarnation).await;
        }
        if let Some(handle) = &handle {
            for (slot, known) in (0..=u16::MAX).map(SlotId).zip(&self.known) {
                if known.owner.is_some() {
                    handle.slot(slot, SlotOrder::Owner { epoch: known.epoch, owner: known.owner });
                }
            }
            for worker in 0..self.board.0.local {
                let way = ToWorker { handle: handle.clone(), worker: usize::from(worker) };
                self.way(worker, Arc::new(way)).await;
            }
        }
        self.run = Some(Run { me, handle });
    }

    async fn local_lost(&mut self) {
        let Some(Run { handle: handle @ Some(_), .. }) = &mut self.run else { return };
        *handle = None;
        for link in 0..self.board.0.local {
            self.lost(link).await;
        }
    }

    async fn down(&mut self, link: u16, session: u64, why: &Down) {
        let Some((incarnation, peer)) = self.peers.iter_mut().find(|(_, peer)| peer.number == link) else { return };
        if peer.session != session {
            return;
        }
        let stood = std::mem::replace(&mut peer.is_up, false);
        let now = tokio::time::Instant::now();
        if stood {
            tracing::warn!(node = %peer.node, ?why, "link is lost");
            peer.reset_at = matches!(why, Down::Reset | Down::Closed).then_some(now);
        } else {
            tracing::debug!(node = %peer.node, ?why, "no link");
        }
        let reset = peer.reset_at.is_some_and(|at| now < at + DIED_WITHIN);
        if matches!(why, Down::Refused) && reset && !std::mem::replace(&mut peer.died, true) {
            tracing::warn!(node = %peer.node, "nobody listens there any more");
            // Full: it is a short cut; without it the lease runs out.
            self.parts.died.try_send(Died(*incarnation)).ok();
        }
        if stood {
            self.lost(link).await;
        }
    }

    /// There are links to all runs that own or may own slots, and to no others.
    async fn follow_nodes(&mut self) {
        let Some(run) = &self.run else { return };
        let me = run.me.clone();
        let mut wanted: BTreeMap<Incarnation, (NodeId, String)> = BTreeMap::new();
        for (node, entry) in &self.nodes {
            if entry.owns_slots() && *node != me.node {
                wanted.insert(entry.incarnation, (node.clone(), entry.peer_address.clone()));
            }
        }
        let gone: Vec<Incarnation> = self
            .peers
            .keys()
            .filter(|incarnation| {
                !wanted.contains_key(incarnation)
                    // It may serve on while etcd does not see it.
                    && !self.known.iter().any(|known| known.owner == Some(**incarnation))
            })
            .copied()
            .collect();
        for incarnation in gone {
            self.forget(incarnation).await;
        }
        for (incarnation, (node, address)) in wanted {
            if self.peers.contains_key(&incarnation) {
                continue;
            }
            let taken = |number: u16| self.peers.values().any(|peer| peer.number == number);
            let first = self.board.0.local;
            let free = (first..first + PEERS_MAX as u16).find(|number| !taken(*number));
            let Some(number) = free else {
                tracing::error!(%node, most = PEERS_MAX, "too many nodes: its rooms cannot be reached from here");
                continue;
            };
            self.sessions += 1;
            let session = self.sessions;
            let receiver = Receiver {
                link: number,
                session,
                inboxes: self.parts.inboxes.clone(),
                news: self.board.0.news.clone(),
            };
            let to = Peer { node: node.clone(), incarnation };
            let outgoing =
                Outgoing::open(address, to, self.parts.security.clone(), me.clone(), Arc::new(receiver));
            let link = Link { number, session, node, outgoing, is_up: false, reset_at: None, died: false };
            self.peers.insert(incarnation, link);
        }
    }

    async fn forget(&mut self, incarnation: Incarnation) {
        let Some(link) = self.peers.remove(&incarnation) else { return };
        link.outgoing.close();
        if link.is_up {
            self.lost(link.number).await;
        }
    }

    /// A link leads somewhere.
    async fn way(&mut self, link: u16, way: Arc<dyn Way>) {
        self.change_way(link, Some(Arc::clone(&way)));
        for control in &self.parts.controls {
            control.send(Control::Way { link, way: Arc::clone(&way) }).await.ok();
        }
    }

    /// It leads nowhere any more: nothing is offered to it from now on, and what was is lost.
    async fn lost(&mut self, link: u16) {
        self.change_way(link, None);
        for told in self.told.iter_mut().flatten() {
            if told.1 == Some(link) {
                told.1 = None;
            }
        }
        for control in &self.parts.controls {
            control.send(Control::LinkLost { link }).await.ok();
        }
        if let Some(backend) = &self.backend {
            backend.link_lost(link);
        }
    }

    fn change_way(&self, link: u16, way: Option<Arc<dyn Way>>) {
        let table = self.board.0.table.load();
        let mut ways = table.ways.clone();
        let at = usize::from(link);
        if ways.len() <= at {
            ways.resize(at + 1, None);
        }
        ways[at] = way;
        let (links, peers) = (table.links.clone(), table.peers.clone());
        self.board.0.table.store(Arc::new(Table { slots: table.slots, links, ways, peers }));
    }

    // ---------------------------------------------------------------- telling

    fn link_to(&self, slot: SlotId, known: Known) -> Option<u16> {
        let owner = known.owner?;
        if let Some(Run { me, handle: Some(handle) }) = &self.run
            && me.incarnation == owner
        {
            return u16::try_from(handle.worker_of_slot(slot)).ok();
        }
        self.peers.get(&owner).filter(|peer| peer.is_up).map(|peer| peer.number)
    }

    async fn publish(&mut self) {
        let mut routes = Vec::new();
        let links: Vec<Option<u16>> = (0..=u16::MAX)
            .map(SlotId)
            .zip(&self.known)
            .map(|(slot, known)| {
                let link = self.link_to(slot, *known);
                if self.told[usize::from(slot.0)] != Some((known.epoch, link)) && known.owner.is_some() {
                    routes.push(Route { slot, epoch: known.epoch, link });
                }
                link
            })
            .collect();
        let table = self.board.0.table.load();
        let peers: BTreeMap<Incarnation, Outgoing> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.is_up)
            .map(|(incarnation, peer)| (*incarnation, peer.outgoing.clone()))
            .collect();
        if routes.is_empty() && peers.len() == table.peers.len() && peers.keys().eq(table.peers.keys()) {
            return;
        }
        let ways = table.ways.clone();
        self.board.0.table.store(Arc::new(Table { slots: table.slots, links, ways, peers }));
        for route in &routes {
            self.told[usize::from(route.slot.0)] = Some((route.epoch, route.link));
        }
        if routes.is_empty() {
            return;
        }
        let routes: Arc<[Route]> = routes.into();
        for control in &self.parts.controls {
            control.send(Control::Routes(Arc::clone(&routes))).await.ok();
        }
    }
}

/// The way to another node.
#[derive(Debug)]
struct ToPeer(Outgoing);

impl Way for ToPeer {
    fn offer(&self, batch: ToShardBatch) -> Result<(), ToShardBatch> {
        self.0.try_send(batch)
    }
}

/// Takes what comes over one link.
#[derive(Debug)]
struct Receiver {
    link: u16,
    session: u64,
    inboxes: Vec<mpsc::Sender<Vec<FromShard>>>,
    news: mpsc::Sender<News>,
}

impl Receive for Receiver {
    fn up(&self) -> BoxFuture<'static, ()> {
        let (news, link, session) = (self.news.clone(), self.link, self.session);
        async move { drop(news.send(News::Up { link, session }).await) }.boxed()
    }

    fn down(&self, why: Down) -> BoxFuture<'static, ()> {
        let (news, link, session) = (self.news.clone(), self.link, self.session);
        async move { drop(news.send(News::Down { link, session, why }).await) }.boxed()
    }

    fn messages(&self, end: u16, batch: Vec<FromShard>) -> BoxFuture<'static, ()> {
        let inbox = self.inboxes.get(usize::from(end)).cloned();
        async move {
            // An end that is not ours, or no longer there: nobody waits for it.
            if let Some(inbox) = inbox {
                inbox.send(batch).await.ok();
            }
        }
        .boxed()
    }
}
