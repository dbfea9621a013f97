//! The way to the owner of every slot, for gateways and for pushes to user channels.
//!
//! Owns: the links to other nodes, the table from slots to links, and what the gateway workers were told of it. Follows the
//! ring by a watch of its own, so that it goes on between the runs of this node and while it leaves.
//! Always holds: a link leads to one run of one node, or to one worker of this process; workers hear of its loss after all
//! that came over it, and of its next use after that; what they are told of a slot is the newest epoch that was seen.
//! Does not: decide who owns what, nor hold what waits for an owner (`banyan-gateway-core` does).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use banyan_gateway::backend::{Backend, NotSent, Shards};
use banyan_gateway::local::ToWorker;
use banyan_gateway::worker::{Control, Noticed, Route, Way};
use banyan_proto::id::{Epoch, Incarnation, RoomId, SlotId, UserId};
use banyan_proto::link::{FromShard, LinkId, ToShard, ToShardBatch};
use banyan_proto::wire::{Handed, NodeMessage};
use banyan_router::node::Watched;
use banyan_router::node_key::NodeEntry;
use banyan_router::slot_key::{NodeId, Peer, SlotKey};
use banyan_router::{SlotCount, slot_of, user_slot};
use banyan_router_etcd::coordination::Event as RingEvent;
use banyan_router_peer::{Events, Link, Me, Options, Outgoing, Security, Why};
use banyan_shard::{Elsewhere, Handle, SlotOrder};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Other nodes that own slots. Beyond them a node's rooms are out of reach for this one, and it says so.
const PEERS_MAX: usize = 1_024;
/// Changes that are gathered before the table is made anew.
const GATHER: usize = 1_024;
/// What waits for the switchboard beside the ring; above that, who has news waits.
const NEWS: usize = 8;
/// How long an answer to a question is worth having: as long as a command may take.
const WORTH: Duration = Duration::from_secs(10);
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
    peers: BTreeMap<Incarnation, Link>,
}

/// What those have in common who use the table.
#[derive(Debug, Clone)]
pub(crate) struct Switchboard(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: ArcSwap<Table>,
    news: mpsc::Sender<News>,
    /// Something has become of a link.
    links_changed: Arc<Notify>,
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
    Begun {
        me: Me,
        handle: Option<Handle>,
    },
    /// It is over, and so is all that its workers say.
    Over,
    Backend(Backend),
}

/// What other nodes are to be told, and this one's own run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OfOthers {
    /// Nobody listens any more where this run was.
    Died(Incarnation),
    /// Commands wait here for these slots, and the way to their owner is lost.
    Wanted(Vec<SlotId>),
}

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
    pub(crate) noticed: mpsc::Receiver<Noticed>,
    /// Who tells others. Full: all of it can be done without.
    pub(crate) tell: mpsc::Sender<OfOthers>,
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
            links_changed: Arc::new(Notify::new()),
            // Workers are at most 256.
            local: parts.workers as u16,
            push_end: LinkId(end as u32),
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
            backend: None,
            wanted: BTreeSet::new(),
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
    pub(crate) async fn serves(&self, backend: Backend) {
        self.news(News::Backend(backend)).await;
    }

    async fn news(&self, news: News) {
        // Nobody keeps the table any more when the node stops.
        self.0.news.send(news).await.ok();
    }

    /// Whether any slot has an owner and a way to it.
    pub(crate) fn has_way(&self) -> bool {
        self.0.table.load().links.iter().any(Option::is_some)
    }

    /// To a run of another node, if there is a link to it. What does not arrive is asked for again.
    pub(crate) fn tell(&self, peer: &Peer, message: NodeMessage) {
        if let Some(link) = self.0.table.load().peers.get(&peer.incarnation) {
            link.try_tell(message).ok();
        }
    }

    /// To all runs that there are links to.
    pub(crate) fn tell_all(&self, message: &NodeMessage) {
        for link in self.0.table.load().peers.values() {
            link.try_tell(message.clone()).ok();
        }
    }

    /// The state of a slot to its next owner. `false`: it will not get there.
    pub(crate) fn hand(&self, peer: &Peer, handed: Handed) -> bool {
        let table = self.0.table.load();
        table.peers.get(&peer.incarnation).is_some_and(|link| link.try_hand(handed).is_ok())
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

/// A run of another node, and the tries to reach it.
#[derive(Debug)]
struct Dialled {
    number: u16,
    node: NodeId,
    outgoing: Outgoing,
    wire: Arc<Wire>,
    /// Which the workers were told of.
    link: Option<Link>,
}

/// What has become of the link to one run, as its task says.
#[derive(Debug)]
struct Wire {
    now: Mutex<Now>,
    changed: Arc<Notify>,
    inboxes: Vec<mpsc::Sender<Vec<FromShard>>>,
}

#[derive(Debug, Default)]
struct Now {
    link: Option<Link>,
    /// When a link that stood was reset.
    reset_at: Option<Instant>,
    /// Then nobody listened there any more; not told yet.
    died: bool,
}

impl Wire {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Events for Wire {
    fn up(&self, link: &Link) {
        *self.now() = Now { link: Some(link.clone()), reset_at: None, died: false };
        self.changed.notify_one();
    }

    fn down(&self, why: &Why) {
        let reset_at = matches!(why, Why::Reset).then(Instant::now);
        *self.now() = Now { link: None, reset_at, died: false };
        self.changed.notify_one();
    }

    fn failed(&self, why: &Why) {
        let mut now = self.now();
        let reset = now.reset_at.is_some_and(|at| at.elapsed() < DIED_WITHIN);
        if matches!(why, Why::Refused) && reset {
            // Once: a further refusal says nothing more.
            (now.reset_at, now.died) = (None, true);
            self.changed.notify_one();
        }
    }

    fn messages(&self, end: LinkId, messages: Vec<FromShard>) -> BoxFuture<'_, ()> {
        async move {
            // An end that is not ours, or no longer there: nobody waits for it.
            if let Some(inbox) = self.inboxes.get(end.0 as usize) {
                inbox.send(messages).await.ok();
            }
        }
        .boxed()
    }
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
    peers: BTreeMap<Incarnation, Dialled>,
    backend: Option<Backend>,
    /// Slots that workers wait for, not told yet.
    wanted: BTreeSet<SlotId>,
}

impl Upkeep {
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let changed = Arc::clone(&self.board.0.links_changed);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(news) = self.inbox.recv() => self.news(news).await,
                Some(noticed) = self.parts.noticed.recv() => self.noticed(noticed),
                Some(event) = self.ring.recv() => self.ring(event),
                () = changed.notified() => self.look_at_links().await,
            }
            // Whatever else there is, then one table.
            for _ in 0..GATHER {
                if let Ok(event) = self.ring.try_recv() {
                    self.ring(event);
                } else if let Ok(noticed) = self.parts.noticed.try_recv() {
                    self.noticed(noticed);
                } else {
                    break;
                }
            }
            self.tell_wanted();
            self.follow_nodes().await;
            self.publish().await;
        }
        for (_, peer) in std::mem::take(&mut self.peers) {
            peer.outgoing.close().await;
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

    fn noticed(&mut self, noticed: Noticed) {
        match noticed {
            Noticed::Owner { slot, epoch, owner } => self.learn(slot, epoch, Some(owner)),
            Noticed::Wanted { slot } => {
                self.wanted.insert(slot);
            }
        }
    }

    fn tell_wanted(&mut self) {
        if !self.wanted.is_empty() {
            let wanted = std::mem::take(&mut self.wanted).into_iter().collect();
            self.parts.tell.try_send(OfOthers::Wanted(wanted)).ok();
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
        }
    }

    /// Tells the workers what has become of the links.
    async fn look_at_links(&mut self) {
        for incarnation in self.peers.keys().copied().collect::<Vec<_>>() {
            let Some(peer) = self.peers.get_mut(&incarnation) else { continue };
            let (link, died) = {
                let mut now = peer.wire.now();
                (now.link.clone(), std::mem::take(&mut now.died))
            };
            let same = match (&peer.link, &link) {
                (Some(told), Some(link)) => told.is(link),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            let (number, told) = (peer.number, peer.link.is_some());
            if died {
                tracing::warn!(node = %peer.node, "nobody listens there any more");
                // Full: it is a short cut; without it the lease runs out.
                self.parts.tell.try_send(OfOthers::Died(incarnation)).ok();
            }
            if same {
                continue;
            }
            peer.link.clone_from(&link);
            if told {
                self.lost(number).await;
            }
            if let Some(link) = link {
                self.way(number, Arc::new(ToPeer(link))).await;
            }
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
            let wire = Arc::new(Wire {
                now: Mutex::default(),
                changed: Arc::clone(&self.board.0.links_changed),
                inboxes: self.parts.inboxes.clone(),
            });
            let to = Peer { node: node.clone(), incarnation };
            let events = Arc::<Wire>::clone(&wire);
            let security = self.parts.security.clone();
            let outgoing = Outgoing::open(address, to, security, me.clone(), Options::default(), events);
            self.peers.insert(incarnation, Dialled { number, node, outgoing, wire, link: None });
        }
    }

    async fn forget(&mut self, incarnation: Incarnation) {
        let Some(peer) = self.peers.remove(&incarnation) else { return };
        peer.outgoing.close().await;
        if peer.link.is_some() {
            self.lost(peer.number).await;
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
        self.peers.get(&owner).filter(|peer| peer.link.is_some()).map(|peer| peer.number)
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
        let peers: BTreeMap<Incarnation, Link> = self
            .peers
            .iter()
            .filter_map(|(incarnation, peer)| Some((*incarnation, peer.link.clone()?)))
            .collect();
        // A peer that is the same may have come back over another link.
        let same = |(one, other): (&Link, &Link)| one.is(other);
        let same = peers.keys().eq(table.peers.keys()) && peers.values().zip(table.peers.values()).all(same);
        if routes.is_empty() && same {
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
struct ToPeer(Link);

impl Way for ToPeer {
    fn offer(&self, batch: ToShardBatch) -> Result<(), ToShardBatch> {
        self.0.try_send(batch, WORTH)
    }
}
