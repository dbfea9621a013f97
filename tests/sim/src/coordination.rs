//! The way to etcd and between nodes: requests that are lost, late or of unknown outcome, and watches that lag.
//!
//! Owns: etcd, every request under way. Always holds: each request is answered once, by etcd's answer or by its sender's
//! patience; what its sender has given up may still be applied, once, at any later time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use banyan_checker as checker;
use banyan_proto::id::Epoch;
use banyan_router::node_key::NodeEntry;
use banyan_router::slot_key::SlotKey;
use banyan_router::target::Target;

use crate::etcd::{Etcd, Lease};
use crate::gateways::Route;
use crate::nodes::RingTag;
use crate::plan::Who;
use crate::random::Random;
use crate::schedule::{MS, SECOND, Time};
use crate::sometimes;
use crate::world::{Event, World};

/// How long a request waits for its answer.
const PATIENCE: Time = SECOND;
/// A watch event that lags comes up to so much later.
const LAG: Time = 3 * SECOND;

/// Keys of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Slot(u16),
    Node(u8),
    Target,
    Frozen,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Slot(SlotKey),
    Node(NodeEntry),
    Target(Arc<Target>),
    Frozen,
}

#[derive(Debug, Clone)]
pub enum Ask {
    Get(Key),
    Transact { compare: Vec<(Key, Option<Value>)>, put: Vec<(Key, Option<Value>)>, lease: Option<Lease> },
    Grant(Time),
    KeepAlive(Lease),
    Revoke(Lease),
}

#[derive(Debug, Clone)]
pub enum Told {
    Value(Option<Value>),
    Won,
    /// What the first key compared holds.
    Lost(Option<Value>),
    Granted(Lease),
    Alive(bool),
    Revoked,
    /// No answer in time.
    Nothing,
}

/// What an answer is for.
#[derive(Debug, Clone)]
pub enum Tag {
    GatewayLooksUp(u16),
    Ring(RingTag),
    Nobody,
}

#[derive(Debug)]
struct Request {
    who: Who,
    run: u32,
    tag: Option<Tag>,
    ask: Ask,
    mute: bool,
}

/// What happens on the way to etcd and back.
#[derive(Debug)]
pub enum EtcdEvent {
    Arrives {
        request: u32,
    },
    Answers {
        request: u32,
        who: Who,
        run: u32,
        told: Told,
    },
    TimesOut {
        request: u32,
        who: Who,
        run: u32,
    },
    /// A watch may have something to tell.
    Watch {
        who: Who,
        run: u32,
    },
    Expires,
}

impl EtcdEvent {
    pub const fn addressee(&self) -> Option<(Who, Option<u32>)> {
        match self {
            Self::Answers { who, run, .. } | Self::TimesOut { who, run, .. } | Self::Watch { who, run } => {
                Some((*who, Some(*run)))
            }
            Self::Arrives { .. } | Self::Expires => None,
        }
    }
}

#[derive(Debug)]
pub struct Coordination {
    pub etcd: Etcd<Key, Value>,
    pub random: Random,
    pub down: bool,
    requests: Vec<Option<Request>>,
    /// Requests that wait for etcd to come back.
    parked: Vec<u32>,
    /// Pairs of nodes that do not reach each other.
    cut: BTreeSet<(u8, u8)>,
    expires_at: Time,
    /// Ownerships that nobody has begun to serve yet.
    owners: BTreeMap<(u16, Epoch, u128), checker::SlotChange>,
    /// Who serves each slot, and since when nobody does.
    served: Vec<Option<u128>>,
    orphaned: Vec<Option<Time>>,
    /// Slots whose state was sent and whose transaction is under way: from whom to whom.
    pub handoffs: BTreeMap<u16, (u128, u128)>,
}

impl Coordination {
    pub fn new(random: Random, slots: usize) -> Self {
        Self {
            etcd: Etcd::default(),
            random,
            down: false,
            requests: Vec::new(),
            parked: Vec::new(),
            cut: BTreeSet::new(),
            expires_at: Time::MAX,
            owners: BTreeMap::new(),
            served: vec![None; slots],
            orphaned: vec![None; slots],
            handoffs: BTreeMap::new(),
        }
    }

    pub fn set_cut(&mut self, one: u8, other: u8, cut: bool) {
        for pair in [(one, other), (other, one)] {
            if cut {
                self.cut.insert(pair);
            } else {
                self.cut.remove(&pair);
            }
        }
    }

    pub fn is_cut(&self, one: u8, other: u8) -> bool {
        self.cut.contains(&(one, other))
    }
}

impl World {
    fn etcd_delay(&mut self) -> Time {
        self.plan.etcd_delay / 2 + self.coordination.random.below(self.plan.etcd_delay)
    }

    pub fn etcd_ask(&mut self, who: Who, ask: Ask, tag: Tag) {
        let process = self.process(who);
        let (run, cut) = (process.run, process.cut_etcd);
        let unknown = self.coordination.random.chance(self.plan.etcd_unknown);
        let how = if unknown { self.coordination.random.below(3) } else { 3 };
        let request = self.coordination.requests.len() as u32;
        let entry = Request { who, run, tag: Some(tag), ask, mute: how == 0 };
        self.coordination.requests.push(Some(entry));
        let delay = self.etcd_delay();
        if !cut && how != 1 {
            // Late: its sender will have given it up.
            let delay = if how == 2 { PATIENCE + self.coordination.random.below(5 * SECOND) } else { delay };
            self.schedule.after(delay, Event::Etcd(EtcdEvent::Arrives { request }));
        }
        self.schedule.after(PATIENCE, Event::Etcd(EtcdEvent::TimesOut { request, who, run }));
    }

    pub fn etcd_event(&mut self, event: EtcdEvent) {
        match event {
            EtcdEvent::Arrives { request } => {
                if self.coordination.down {
                    if self.coordination.random.one_in(2) {
                        self.coordination.parked.push(request);
                    }
                    return;
                }
                self.etcd_applies(request);
            }
            EtcdEvent::Answers { request, who, told, .. } => {
                let entry = self.coordination.requests[request as usize].as_mut();
                let Some(tag) = entry.and_then(|entry| entry.tag.take()) else { return };
                self.coordination.requests[request as usize] = None;
                self.etcd_told(who, tag, told);
            }
            EtcdEvent::TimesOut { request, who, .. } => {
                let entry = self.coordination.requests[request as usize].as_mut();
                let Some(entry) = entry else { return };
                let transaction = matches!(entry.ask, Ask::Transact { .. });
                let Some(tag) = entry.tag.take() else { return };
                if transaction {
                    sometimes!(self.coverage, TransactionUnknown);
                    self.recorder.history.counted.unknown_outcomes += 1;
                }
                self.etcd_told(who, tag, Told::Nothing);
            }
            EtcdEvent::Watch { who, .. } => self.watch_tells(who),
            EtcdEvent::Expires => {
                self.coordination.expires_at = Time::MAX;
                if !self.coordination.down {
                    let now = self.now();
                    let before = self.coordination.etcd.revision();
                    if self.coordination.etcd.expire(now) > 0 {
                        self.recorder.note(|| "leases end".to_owned());
                    }
                    self.etcd_changed(before);
                }
                self.expire_soon();
            }
        }
    }

    fn expire_soon(&mut self) {
        if let Some(at) = self.coordination.etcd.next_expiry() {
            let at = at.max(self.now() + 10 * MS);
            if at < self.coordination.expires_at {
                self.coordination.expires_at = at;
                self.schedule.at(at, Event::Etcd(EtcdEvent::Expires));
            }
        }
    }

    /// One request, in one step.
    fn etcd_applies(&mut self, number: u32) {
        let now = self.now();
        let Some(request) = &self.coordination.requests[number as usize] else { return };
        let (who, run, ask, mute) = (request.who, request.run, request.ask.clone(), request.mute);
        let given_up = request.tag.is_none();
        let etcd = &mut self.coordination.etcd;
        let before = etcd.revision();
        etcd.expire(now);
        let told = match &ask {
            Ask::Get(key) => Told::Value(etcd.get(key).cloned()),
            Ask::Transact { compare, put, lease } => {
                let old = compare.first().and_then(|(key, _)| etcd.get(key).cloned());
                if etcd.transact(compare, put.clone(), *lease) {
                    sometimes!(self.coverage, TransactionLate, given_up);
                    if let Some((Key::Slot(slot), Some(Value::Slot(new)))) = put.first() {
                        self.slot_changed(who, *slot, old.as_ref(), new);
                    }
                    Told::Won
                } else {
                    sometimes!(self.coverage, TransactionLost);
                    Told::Lost(old)
                }
            }
            Ask::Grant(ttl) => Told::Granted(etcd.grant(now, *ttl)),
            Ask::KeepAlive(lease) => Told::Alive(etcd.keep_alive(now, *lease)),
            Ask::Revoke(lease) => {
                etcd.revoke(*lease);
                Told::Revoked
            }
        };
        self.etcd_changed(before);
        self.expire_soon();
        if mute || given_up || self.process(who).cut_etcd {
            return;
        }
        let delay = self.etcd_delay();
        self.schedule.after(delay, Event::Etcd(EtcdEvent::Answers { request: number, who, run, told }));
    }

    /// Every watch will hear of it.
    fn etcd_changed(&mut self, before: usize) {
        if self.coordination.etcd.revision() == before {
            return;
        }
        self.tell_watches();
    }

    pub fn tell_watches(&mut self) {
        for gateway in 0..self.plan.gateways {
            self.watch_soon(Who::Gateway(gateway));
        }
        for node in 0..self.plan.nodes {
            self.watch_soon(Who::Node(node));
        }
    }

    pub fn watch_soon(&mut self, who: Who) {
        let run = self.process(who).run;
        let lag = if self.coordination.random.chance(self.plan.watch_lag) {
            let lag = self.coordination.random.below(LAG);
            sometimes!(self.coverage, WatchLagged, lag > SECOND);
            lag
        } else {
            0
        };
        let delay = self.etcd_delay() + lag;
        self.schedule.after(delay, Event::Etcd(EtcdEvent::Watch { who, run }));
    }

    /// What a watch has missed, in order; all that there is, if etcd is not the one that it was.
    fn watch_tells(&mut self, who: Who) {
        let process = self.process(who);
        if !process.up || process.cut_etcd || process.lag_watch || self.coordination.down {
            return;
        }
        let (generation, revision) = match who {
            Who::Gateway(gateway) => {
                let gateway = &self.gateways[usize::from(gateway)];
                (gateway.generation, gateway.revision)
            }
            Who::Node(node) => {
                (self.nodes[usize::from(node)].generation, self.nodes[usize::from(node)].revision)
            }
        };
        let etcd = &self.coordination.etcd;
        let fresh = generation != etcd.generation();
        let changes: Vec<(Key, Option<Value>)> = if fresh {
            etcd.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect()
        } else {
            etcd.changes_since(revision)
                .iter()
                .map(|change| (change.key.clone(), change.value.clone()))
                .collect()
        };
        let (generation, revision) = (etcd.generation(), etcd.revision());
        match who {
            Who::Gateway(number) => {
                let gateway = &mut self.gateways[usize::from(number)];
                (gateway.generation, gateway.revision) = (generation, revision);
                for (key, value) in changes {
                    if let (Key::Slot(slot), Some(Value::Slot(key))) = (key, value) {
                        self.gateway_learns(number, slot, Route { epoch: key.epoch, owner: key.incarnation });
                    }
                }
            }
            Who::Node(number) => {
                let node = &mut self.nodes[usize::from(number)];
                (node.generation, node.revision) = (generation, revision);
                self.ring_watched(number, fresh, changes);
            }
        }
    }

    fn etcd_told(&mut self, who: Who, tag: Tag, told: Told) {
        match (who, tag) {
            (Who::Gateway(gateway), Tag::GatewayLooksUp(slot)) => match told {
                Told::Value(Some(Value::Slot(key))) => {
                    self.gateway_learns(gateway, slot, Route { epoch: key.epoch, owner: key.incarnation });
                }
                Told::Nothing => self.etcd_looks_up(gateway, slot),
                _ => {}
            },
            (Who::Node(node), Tag::Ring(tag)) => self.ring_told(node, tag, told),
            _ => {}
        }
    }

    pub fn etcd_looks_up(&mut self, gateway: u8, slot: u16) {
        self.etcd_ask(Who::Gateway(gateway), Ask::Get(Key::Slot(slot)), Tag::GatewayLooksUp(slot));
    }

    /// For the checker: whose the slot is from here on.
    fn slot_changed(&mut self, by: Who, slot: u16, old: Option<&Value>, new: &SlotKey) {
        self.coordination.handoffs.remove(&slot);
        let before = match old {
            Some(Value::Slot(key)) => Some(key),
            _ => None,
        };
        let by = match by {
            Who::Node(node) => Some(node),
            Who::Gateway(_) => None,
        };
        let owner = self.incarnations.get(&new.incarnation).map(|(node, _)| *node);
        let how = match before {
            None => checker::How::Claim,
            Some(before) if before.incarnation == new.incarnation => checker::How::Again,
            Some(_) if by.is_some() && by == owner => checker::How::Takeover,
            Some(_) => checker::How::Handoff,
        };
        match how {
            checker::How::Takeover => {
                sometimes!(self.coverage, TakenOver);
                let alive = before.and_then(|before| self.incarnations.get(&before.incarnation));
                let alive = alive.is_some_and(|(node, run)| {
                    let process = &self.nodes[usize::from(*node)].process;
                    process.up && process.run == *run
                });
                sometimes!(self.coverage, TakenOverAlive, alive);
            }
            checker::How::Handoff => sometimes!(self.coverage, HandedOver),
            checker::How::Again => sometimes!(self.coverage, DrainedAndBack),
            checker::How::Claim | checker::How::Recover => {}
        }
        self.recorder.note(|| format!("slot {slot}: {how:?}, now {} at epoch {}", new.owner, new.epoch));
        self.record_slot(slot, new.epoch, new.incarnation.0, how);
    }

    /// Noted when etcd has it, told when its owner has registered and serves: a restored etcd may name an epoch twice.
    pub fn record_slot(&mut self, slot: u16, epoch: Epoch, incarnation: u128, how: checker::How) {
        let change = checker::SlotChange {
            at: checker::Time(self.schedule.now()),
            served: None,
            slot: checker::Slot(slot),
            epoch: checker::Epoch(epoch.0),
            owner: checker::Incarnation(incarnation),
            how,
        };
        self.coordination.owners.insert((slot, epoch, incarnation), change);
    }

    pub fn slot_served(&mut self, slot: u16, epoch: Epoch, incarnation: u128) {
        let place = usize::from(slot);
        let since = self.coordination.orphaned[place].take();
        sometimes!(self.coverage, Orphaned, since.is_some_and(|since| since + SECOND < self.schedule.now()));
        self.coordination.served[place] = Some(incarnation);
        let Some(mut change) = self.coordination.owners.remove(&(slot, epoch, incarnation)) else { return };
        change.served = Some(checker::Time(self.schedule.now()));
        self.owner_changes += u64::from(!matches!(change.how, checker::How::Claim | checker::How::Again));
        self.recorder.history.slots.push(change);
    }

    /// A run is over: what it served is nobody's, what it gave or was given is not given.
    pub fn run_ended(&mut self, incarnation: u128) {
        let now = self.now();
        let coordination = &mut self.coordination;
        for (served, orphaned) in coordination.served.iter().zip(&mut coordination.orphaned) {
            if *served == Some(incarnation) {
                *orphaned = Some(now);
            }
        }
        for (from, to) in self.coordination.handoffs.values() {
            sometimes!(self.coverage, HandoffSourceDied, *from == incarnation);
            sometimes!(self.coverage, HandoffTargetDied, *to == incarnation);
        }
    }

    // ------------------------------------------------------------ faults

    /// Nobody's watch is of use while etcd is away.
    pub fn etcd_away(&mut self) {
        self.coordination.down = true;
        for node in 0..self.plan.nodes {
            let process = &self.nodes[usize::from(node)].process;
            if process.up && !process.frozen {
                self.etcd_gone(node);
            }
        }
    }

    pub fn etcd_leader(&mut self) {
        let now = self.now();
        let extended = self.coordination.etcd.leader_changed(now);
        sometimes!(self.coverage, LeaseExtended, extended > 0);
        self.etcd_away();
    }

    pub fn etcd_back(&mut self) {
        self.coordination.down = false;
        for request in std::mem::take(&mut self.coordination.parked) {
            let delay = self.etcd_delay();
            self.schedule.after(delay, Event::Etcd(EtcdEvent::Arrives { request }));
        }
        self.expire_soon();
        self.tell_watches();
    }

    pub fn etcd_restore(&mut self) {
        let now = self.now();
        if self.coordination.etcd.restore(now) {
            self.recorder.note(|| "etcd is what it was at the snapshot".to_owned());
            self.expire_soon();
            self.tell_watches();
        }
    }
}
