//! A gateway process around `gateway_core::Worker`: sockets, links, its watch of the slots, and the few commands that its
//! backend carries out.
//!
//! Does what `banyan-gateway`'s shell does, without threads and sockets. Does not: decide anything about routes beyond which link
//! leads to which incarnation.

use std::collections::BTreeMap;
use std::sync::Arc;

use banyan_gateway_core::bucket::{Buckets, Rate};
use banyan_gateway_core::command::{self, Checked, NewRoom};
use banyan_gateway_core::slab::Key;
use banyan_gateway_core::worker::{Effect, Identity, Now, Options, Sent, Wire, Worker};
use banyan_proto::codes::Code;
use banyan_proto::frame::Format;
use banyan_proto::id::{Epoch, Incarnation, Origin, RoomId, SlotId, UnixMs, UserId};
use banyan_proto::link::{Answer, FromShard, Person, RoomCall, RoomCommand, Ticket, ToShard};
use banyan_router::{SlotCount, slot_of};

use crate::client::GREETING;
use crate::network::{Batch, Tcp, Way};
use crate::plan::{Plan, Who};
use crate::random::Random;
use crate::schedule::{MS, SECOND, Time};
use crate::sometimes;
use crate::world::{Event, Process, World};

/// A question of the backend is answered 108 after this.
const BACKEND_DEADLINE: Time = 10 * SECOND;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub epoch: Epoch,
    pub owner: Incarnation,
}

#[derive(Debug)]
struct Asked {
    connection: Key,
    id: u64,
    room: RoomId,
    call: Box<RoomCall>,
    deadline: Time,
    /// Not before this it is asked again; `None`: an answer is awaited.
    again: Option<Time>,
}

/// Commands that look people up first. Here everybody exists.
#[derive(Debug, Default)]
struct Backend {
    asked: BTreeMap<Ticket, Asked>,
    tickets: u64,
}

#[derive(Debug)]
pub struct Gateway {
    pub process: Process,
    worker: Option<Box<Worker>>,
    /// The socket of each connection of the worker; `u32::MAX`: none.
    sockets: Vec<u32>,
    backend: Backend,
    /// Owner of each slot, as the watch or a `Moved` told.
    routes: Vec<Option<Route>>,
    /// What the watch has seen.
    pub generation: u32,
    pub revision: usize,
    options: Options,
    touched: Vec<u32>,
}

/// The sockets of one gateway, as its core sees them.
struct Sockets<'a> {
    tcps: &'a mut [Option<Tcp>],
    sockets: &'a [u32],
    touched: &'a mut Vec<u32>,
}

impl Wire for Sockets<'_> {
    fn send(&mut self, connection: u32, bytes: &[u8]) -> Sent {
        let number = self.sockets[connection as usize];
        let Some(tcp) =
            self.tcps.get_mut(number as usize).and_then(Option::as_mut).filter(|tcp| tcp.gateway_open)
        else {
            return Sent::Broken;
        };
        let taken = tcp.put_down(bytes);
        if !self.touched.contains(&number) {
            self.touched.push(number);
        }
        if taken == 0 { Sent::Full } else { Sent::Bytes(taken) }
    }
}

impl Gateway {
    pub fn new(process: Process, plan: &Plan) -> Self {
        let rate = Rate::per_second(1_000_000, 1_000_000);
        let sends = Arc::new(Buckets::seeded(1 << 10, rate, plan.seed));
        let options = Options {
            worker: 0,
            nonce: 0,
            node: "g".into(),
            ring_bytes: plan.ring_bytes,
            rings_bytes: 4 * plan.ring_bytes,
            ping_interval_ms: 2_000,
            pong_deadline_ms: 2_000,
            auth_deadline_ms: 5_000,
            slow_deadline_ms: 4_000,
            subscriptions: 1_000,
            sends,
            sends_per_s: 1_000_000,
            frame_bytes: 64 << 10,
            fragments: 16,
            in_flight: 64,
            connections_per_user: 100,
            login_check_ms: None,
            command: command::Limits::default(),
            hold_ms: plan.ttl / MS + 2_000,
            hold_bytes: 4 << 20,
            seed: Some(plan.seed),
        };
        Self {
            process,
            worker: None,
            sockets: Vec::new(),
            backend: Backend::default(),
            routes: vec![None; plan.slots as usize],
            generation: 0,
            revision: 0,
            options,
            touched: Vec::new(),
        }
    }
}

impl World {
    pub fn gateway_now(&self, gateway: u8) -> Now {
        let clock = self.gateways[usize::from(gateway)].process.clock;
        Now { ms: clock.mono(self.now()), unix: clock.unix(self.now()) }
    }

    /// The worker of a gateway that runs.
    fn worker(&mut self, gateway: u8, what: u64) -> Option<(&mut Worker, Now)> {
        let now = self.gateway_now(gateway);
        self.input(what << 4 | u64::from(gateway));
        let worker = self.gateways[usize::from(gateway)].worker.as_deref_mut()?;
        Some((worker, now))
    }

    pub fn start_gateway(&mut self, number: u8) {
        let now = self.gateway_now(number);
        let seed = self.plan.seed ^ u64::from(number) << 32;
        let gateway = &mut self.gateways[usize::from(number)];
        gateway.process.up = true;
        gateway.process.tick_at = Time::MAX;
        let run = gateway.process.run;
        let nonce = Random::new(seed, 10_000 + u64::from(run)).next() as u32;
        let options = Options { nonce, seed: Some(seed ^ u64::from(run)), ..gateway.options.clone() };
        let links = usize::from(self.plan.nodes);
        gateway.worker = Some(Box::new(Worker::new(
            options,
            links,
            self.plan.slots,
            |room| slot_of(room, SlotCount::DEFAULT).0,
            now,
        )));
        gateway.sockets.clear();
        gateway.backend = Backend::default();
        gateway.routes = vec![None; self.plan.slots as usize];
        (gateway.generation, gateway.revision) = (u32::MAX, 0);
        self.recorder.note(|| format!("g{number} starts"));
        for node in 0..self.plan.nodes {
            self.connect_link(self.link_of(number, node), 2 * MS);
        }
        self.watch_soon(Who::Gateway(number));
        self.turn(Who::Gateway(number));
    }

    /// What it counted is kept; the process may be gone.
    pub fn retire_gateway(&mut self, number: u8) {
        if let Some(worker) = self.gateways[usize::from(number)].worker.take() {
            let counters = worker.counters();
            self.recorder.history.counted.gap_repairs += counters.gaps_repaired;
            sometimes!(self.coverage, Held, counters.held > 0);
            sometimes!(self.coverage, FellToLog, counters.fell_to_log > 0);
            sometimes!(self.coverage, StaleWords, counters.stale > 0);
            sometimes!(self.coverage, RemovedUnheard, counters.absences_ahead > 0);
        }
    }

    pub fn gateway_died(&mut self, number: u8) {
        self.retire_gateway(number);
        for node in 0..self.plan.nodes {
            let at = self.link_of(number, node);
            let link = &mut self.links[usize::from(at)];
            link.gateway_end = false;
            // A connect that waited for it to thaw is over with it.
            link.connecting = false;
            let life = link.life;
            if !link.cut[0] {
                let delay = self.link_delay();
                self.schedule.after(delay, Event::LinkEnds { link: at, life, gateway: false });
            } else {
                self.schedule.after(4 * SECOND, Event::LinkEnds { link: at, life, gateway: false });
            }
        }
        for tcp in 0..self.tcps.len() {
            if self.tcps[tcp].as_ref().is_some_and(|tcp| tcp.gateway == number && tcp.gateway_open) {
                self.gateway_drops(tcp as u32);
            }
        }
    }

    // ------------------------------------------------------------ turns

    pub fn gateway_tick(&mut self, number: u8) {
        if let Some((worker, now)) = self.worker(number, 1) {
            worker.tick(now);
        }
    }

    pub fn gateway_turn(&mut self, number: u8) {
        if !self.gateways[usize::from(number)].process.up {
            return;
        }
        self.backend_due(number);
        self.gateway_effects(number);
        self.flush_to_shards(number);
        let now = self.gateway_now(number);
        let gateway = &mut self.gateways[usize::from(number)];
        let Some(worker) = gateway.worker.as_deref_mut() else { return };
        let mut more = false;
        if worker.has_work() {
            let mut wire =
                Sockets { tcps: &mut self.tcps, sockets: &gateway.sockets, touched: &mut gateway.touched };
            worker.sweep(now, &mut wire);
            more = worker.has_work();
        }
        let mut touched = std::mem::take(&mut self.gateways[usize::from(number)].touched);
        for tcp in touched.drain(..) {
            let at = self.now() + self.tcp_delay();
            if let Some(at) = self.tcps[tcp as usize].as_mut().and_then(|tcp| tcp.ship(at)) {
                self.schedule.at(at, Event::TcpDown { tcp });
            }
        }
        self.gateways[usize::from(number)].touched = touched;
        self.gateway_effects(number);
        self.flush_to_shards(number);
        if more {
            self.turn(Who::Gateway(number));
        }
        let gateway = &self.gateways[usize::from(number)];
        let Some(worker) = gateway.worker.as_deref() else { return };
        let deadline = worker.next_deadline();
        if deadline != u64::MAX {
            let at = gateway.process.clock.when(deadline);
            self.wake(Who::Gateway(number), at);
        }
        let backend = self.gateways[usize::from(number)].backend.asked.values();
        if let Some(at) = backend.map(|asked| asked.again.unwrap_or(asked.deadline)).min() {
            self.wake(Who::Gateway(number), at);
        }
    }

    fn flush_to_shards(&mut self, number: u8) {
        for node in 0..self.plan.nodes {
            let at = self.link_of(number, node);
            let link = &self.links[usize::from(at)];
            if !link.gateway_end || link.waiting(Way::Up) >= 1_000 {
                continue;
            }
            let Some(worker) = self.gateways[usize::from(number)].worker.as_deref_mut() else { return };
            let queue = &mut worker.shard_queues()[usize::from(node)];
            if queue.is_empty() {
                continue;
            }
            let messages = std::mem::take(queue);
            self.send_node(at, Batch::ToShard { lane: 0, messages });
        }
    }

    fn send_node(&mut self, at: u16, batch: Batch) {
        let time = self.now() + self.link_delay();
        self.put_on_link(at, Way::Up, batch, time);
        if self.network_random.chance(self.plan.link_resets) {
            self.reset_link(at);
        }
    }

    // ------------------------------------------------------------ effects

    fn gateway_effects(&mut self, number: u8) {
        loop {
            let Some(worker) = self.gateways[usize::from(number)].worker.as_deref_mut() else { return };
            if !worker.has_effects() {
                return;
            }
            for effect in worker.take_effects() {
                match effect {
                    Effect::Authenticate { connection, token, .. } => {
                        let user = self.cast.users.iter().position(|user| *user == token).unwrap_or_default();
                        let run = self.gateways[usize::from(number)].process.run;
                        let event =
                            Event::Authenticated { gateway: number, run, connection, user: user as u16 };
                        self.schedule.after(200, event);
                    }
                    Effect::Backend { connection, id, person, command } => {
                        self.backend(number, connection, id, person, command);
                    }
                    Effect::Resume { connection } => {
                        let tcp = self.gateways[usize::from(number)].sockets[connection as usize];
                        if let Some(of) = &mut self.tcps[tcp as usize] {
                            for _ in 0..std::mem::take(&mut of.paused) {
                                self.schedule.after(0, Event::TcpUp { tcp });
                            }
                        }
                    }
                    Effect::Drop { connection } => {
                        let tcp = std::mem::replace(
                            &mut self.gateways[usize::from(number)].sockets[connection as usize],
                            u32::MAX,
                        );
                        if tcp != u32::MAX {
                            self.gateway_drops(tcp);
                        }
                    }
                    Effect::Moved { slot, epoch, owner } => self.gateway_moved(number, slot, epoch, owner),
                    Effect::Wanted { slot } => self.want(slot),
                    // No login ends in these worlds, and none is looked up by turns.
                    Effect::CheckLogin { .. } => {}
                }
            }
        }
    }

    /// The gateway's end is closed; what it has put still arrives.
    fn gateway_drops(&mut self, number: u32) {
        let Some(tcp) = &mut self.tcps[number as usize] else { return };
        tcp.gateway_open = false;
        tcp.index = None;
        if !tcp.client_open {
            self.tcps[number as usize] = None;
        } else if tcp.cut[1] {
            tcp.owed[1] += 1;
        } else {
            let at = tcp.last_at[1].max(self.schedule.now()) + self.plan.tcp_delay;
            self.schedule.at(at, Event::TcpEnds { tcp: number, gateway: false });
        }
    }

    pub fn authenticated(&mut self, gateway: u8, connection: Key, user: usize) {
        let name = self.cast.users[user].as_str();
        let identity = Identity {
            person: Person { user: UserId::parse(name).expect("a user's name"), name: name.into() },
            expires_at: UnixMs(u64::MAX >> 12),
            login: None,
            issued_at: UnixMs(0),
            as_of: 0,
        };
        if let Some((worker, now)) = self.worker(gateway, 2) {
            worker.authenticated(now, connection, Ok(identity));
        }
        self.turn(Who::Gateway(gateway));
    }

    // ------------------------------------------------------------ routes

    /// Ownership of a slot, by watch, by a look-up, or named by a node.
    pub fn gateway_learns(&mut self, number: u8, slot: u16, route: Route) {
        let known = &mut self.gateways[usize::from(number)].routes[usize::from(slot)];
        // A restored etcd shows older epochs again: what was seen stays.
        if known.is_none_or(|known| known.epoch <= route.epoch) {
            *known = Some(route);
        }
        self.route(number, slot);
    }

    fn route(&mut self, number: u8, slot: u16) {
        let Some(route) = self.gateways[usize::from(number)].routes[usize::from(slot)] else { return };
        let link = self.way_to(number, route.owner);
        if let Some((worker, now)) = self.worker(number, 3) {
            worker.route_changed(now, SlotId(slot), route.epoch, link);
        }
        self.turn(Who::Gateway(number));
    }

    /// The link that leads to this incarnation now.
    fn way_to(&self, number: u8, owner: Incarnation) -> Option<u16> {
        let (node, run) = *self.incarnations.get(&owner)?;
        let link = &self.links[usize::from(self.link_of(number, node))];
        (link.gateway_end && link.node_run == run).then_some(u16::from(node))
    }

    fn gateway_moved(&mut self, number: u8, slot: SlotId, epoch: Epoch, owner: Option<Incarnation>) {
        match owner {
            Some(owner) => self.gateway_learns(number, slot.0, Route { epoch, owner }),
            None => self.etcd_looks_up(number, slot.0),
        }
    }

    pub fn gateway_link_up(&mut self, at: u16) {
        let (gateway, node) = self.ends_of(at);
        let run = self.links[usize::from(at)].node_run;
        self.recorder.note(|| format!("link g{gateway} n{node} is up"));
        for slot in 0..self.plan.slots as u16 {
            let route = self.gateways[usize::from(gateway)].routes[usize::from(slot)];
            if route.is_some_and(|route| self.incarnations.get(&route.owner) == Some(&(node, run))) {
                self.route(gateway, slot);
            }
        }
        self.turn(Who::Gateway(gateway));
    }

    pub fn gateway_link_lost(&mut self, at: u16) {
        let (gateway, node) = self.ends_of(at);
        self.recorder.note(|| format!("g{gateway} has lost its link to n{node}"));
        if let Some((worker, now)) = self.worker(gateway, 4) {
            worker.link_lost(now, u16::from(node));
        }
        let later = self.now() + 20 * MS;
        for asked in self.gateways[usize::from(gateway)].backend.asked.values_mut() {
            asked.again = Some(later);
        }
        self.connect_link(at, 50 * MS);
        self.turn(Who::Gateway(gateway));
    }

    // ------------------------------------------------------------ what comes by links

    pub fn gateway_hears(&mut self, gateway: u8, lane: u8, messages: Vec<FromShard>) {
        for message in messages {
            self.recorder.note(|| format!("  g{gateway} hears {}", words_of(&message)));
            if let FromShard::Marks { room, epoch, .. } = &message {
                let known = self.gateways[usize::from(gateway)].routes[usize::from(self.slot_of(room))];
                sometimes!(self.coverage, StaleMarks, known.is_some_and(|known| *epoch < known.epoch));
            }
            if lane == 1 {
                self.backend_hears(gateway, message);
            } else if let Some((worker, now)) = self.worker(gateway, 5) {
                worker.shard_said(now, message);
            }
        }
        self.turn(Who::Gateway(gateway));
    }

    pub fn link_arrives(&mut self, at: u16, life: u32, way: Way) {
        let up = way.is_up();
        let (gateway, node) = self.ends_of(at);
        let link = &mut self.links[usize::from(at)];
        let there = if up { link.node_end } else { link.gateway_end };
        if link.life != life {
            return;
        }
        if !there {
            // Who sends to an end that is gone is told so.
            if !link.cut[usize::from(up)] {
                let delay = self.link_delay();
                self.schedule.after(delay, Event::LinkEnds { link: at, life, gateway: up });
            }
            return;
        }
        if link.is_cut(way) {
            return link.owe(way);
        }
        if way == Way::Pages && link.is_before(Way::Down, way) {
            // A cut has held up what must come first.
            self.schedule.after(1, Event::LinkArrives { link: at, life, way });
            return;
        }
        sometimes!(self.coverage, PageOvertaken, way == Way::Down && link.is_before(Way::Pages, way));
        match link.take(way) {
            Some(Batch::ToShard { lane, messages }) => self.node_hears(node, gateway, lane, messages),
            Some(Batch::FromShard { lane, messages }) => {
                if way == Way::Down {
                    self.node_link_took(at);
                }
                self.gateway_hears(gateway, lane, messages);
            }
            None => {}
        }
    }

    fn slot_of(&self, room: &RoomId) -> u16 {
        slot_of(room.as_str(), SlotCount::DEFAULT).0 & (self.plan.slots as u16 - 1)
    }

    // ------------------------------------------------------------ sockets

    pub fn tcp_connects(&mut self, number: u32) {
        let Some(tcp) = &self.tcps[number as usize] else { return };
        let gateway = tcp.gateway;
        let process = &self.gateways[usize::from(gateway)].process;
        let (up, run) = (process.up, process.run);
        if !up || !tcp.client_open {
            if tcp.client_open {
                self.gateway_drops(number);
            } else {
                self.tcps[number as usize] = None;
            }
            return;
        }
        let Some((worker, now)) = self.worker(gateway, 6) else { return };
        let index = worker.accept(now, Format::Proto, GREETING);
        let Some(index) = index else { return self.gateway_drops(number) };
        let sockets = &mut self.gateways[usize::from(gateway)].sockets;
        if sockets.len() <= index as usize {
            sockets.resize(index as usize + 1, u32::MAX);
        }
        sockets[index as usize] = number;
        if let Some(tcp) = &mut self.tcps[number as usize] {
            tcp.index = Some(index);
            tcp.gateway_run = run;
        }
        let delay = self.tcp_delay();
        self.schedule.after(delay, Event::TcpOpen { tcp: number });
        self.turn(Who::Gateway(gateway));
    }

    pub fn tcp_open(&mut self, number: u32) {
        let now = self.now();
        let Some(tcp) = &mut self.tcps[number as usize] else { return };
        if tcp.client_open {
            tcp.number = number;
            let (client, gateway) = (usize::from(tcp.client), usize::from(tcp.gateway));
            self.clients[client].connected(now, number, gateway, &self.cast, &mut self.recorder);
            self.client_sends(client);
        }
    }

    pub fn tcp_up(&mut self, number: u32) {
        let Some(tcp) = &mut self.tcps[number as usize] else { return };
        let Some(index) = tcp.index else { return };
        if tcp.cut[0] {
            tcp.owed[0] += 1;
            return;
        }
        let gateway = tcp.gateway;
        let reads = self.gateways[usize::from(gateway)]
            .worker
            .as_ref()
            .is_some_and(|worker| worker.wants_read(index));
        if !reads {
            tcp.paused += 1;
            return;
        }
        let Some(mut bytes) = tcp.take_up() else { return };
        self.recorder.trace.bytes(&bytes);
        if let Some((worker, now)) = self.worker(gateway, 7) {
            worker.received(now, index, &mut bytes);
        }
        self.turn(Who::Gateway(gateway));
    }

    pub fn tcp_down(&mut self, number: u32) {
        let Some(tcp) = &mut self.tcps[number as usize] else { return };
        if tcp.cut[1] {
            tcp.owed[1] += 1;
            return;
        }
        tcp.arrive_down();
        if !tcp.slow && tcp.number != u32::MAX {
            self.client_reads(number, usize::MAX);
        }
    }

    pub fn tcp_writable(&mut self, number: u32) {
        let Some(tcp) = &mut self.tcps[number as usize] else { return };
        let (Some(index), gateway) = (tcp.index, tcp.gateway) else { return };
        if !std::mem::replace(&mut tcp.full, false) {
            return;
        }
        if let Some((worker, now)) = self.worker(gateway, 8) {
            worker.writable(now, index);
        }
        self.turn(Who::Gateway(gateway));
    }

    /// One end learns that the connection is gone.
    pub fn tcp_ends(&mut self, number: u32, gateway_end: bool) {
        let Some(tcp) = &mut self.tcps[number as usize] else { return };
        if !gateway_end {
            if tcp.client_open && tcp.number == u32::MAX {
                tcp.number = number;
            }
            // What came before is read first.
            tcp.slow = false;
            self.client_reads(number, usize::MAX);
            self.client_gone(number);
            return;
        }
        let gateway = tcp.gateway;
        match tcp.index {
            Some(index) => {
                if let Some((worker, now)) = self.worker(gateway, 9) {
                    let _ = now;
                    worker.lost(index);
                }
                self.turn(Who::Gateway(gateway));
            }
            None => self.gateway_drops(number),
        }
    }

    pub fn cut_client(&mut self, client: usize, how: u8) {
        let Some(number) = self.client_tcp[client] else { return };
        let Some(tcp) = &mut self.tcps[number as usize] else { return };
        match how {
            0 => {
                self.client_gone(number);
            }
            1 => tcp.cut[0] = true,
            2 => tcp.cut[1] = true,
            _ => tcp.cut = [true; 2],
        }
    }

    /// All connections that this client ever had work again, as far as they are still there.
    pub fn mend_client(&mut self, client: usize) {
        for number in 0..self.tcps.len() {
            let Some(tcp) = self.tcps[number].as_mut().filter(|tcp| usize::from(tcp.client) == client) else {
                continue;
            };
            tcp.cut = [false; 2];
            let owed = std::mem::take(&mut tcp.owed);
            let number = number as u32;
            let (client_open, gateway_open) = (tcp.client_open, tcp.gateway_open);
            for _ in 0..owed[0] {
                self.schedule.after(0, Event::TcpUp { tcp: number });
            }
            for _ in 0..owed[1] {
                self.schedule.after(0, Event::TcpDown { tcp: number });
            }
            if !client_open {
                self.schedule.after(MS, Event::TcpEnds { tcp: number, gateway: true });
            }
            if !gateway_open {
                self.schedule.after(MS, Event::TcpEnds { tcp: number, gateway: false });
            }
        }
    }

    // ------------------------------------------------------------ the backend

    fn backend(&mut self, number: u8, connection: Key, id: u64, person: Person, command: Checked) {
        let named = |users: Vec<UserId>| {
            users.into_iter().map(|user| Person { name: user.as_str().into(), user }).collect::<Vec<_>>()
        };
        let (room, command) = match command {
            Checked::Create(create) => {
                let NewRoom::Own(room) = create.room else { return };
                let command = RoomCommand::Create {
                    kind: create.kind,
                    name: create.name,
                    public: create.public,
                    members: named(create.members),
                };
                (room, command)
            }
            Checked::Add { room, users } => (room, RoomCommand::Add { users: named(users) }),
            _ => return,
        };
        let deadline = self.now() + BACKEND_DEADLINE;
        let backend = &mut self.gateways[usize::from(number)].backend;
        backend.tickets += 1;
        let ticket = Ticket(backend.tickets);
        let call = Box::new(RoomCall { ticket, caller: person, origin: Origin(0), command });
        backend.asked.insert(ticket, Asked { connection, id, room, call, deadline, again: Some(0) });
    }

    fn backend_due(&mut self, number: u8) {
        let now = self.now();
        let due: Vec<Ticket> = self.gateways[usize::from(number)]
            .backend
            .asked
            .iter()
            .filter(|(_, asked)| asked.deadline <= now || asked.again.is_some_and(|again| again <= now))
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in due {
            let asked = &self.gateways[usize::from(number)].backend.asked[&ticket];
            if asked.deadline <= now {
                let error = Code::Unavailable.error("the room's owner does not answer");
                self.backend_answered(number, ticket, Answer::Error(Box::new(error)));
                continue;
            }
            let slot = self.slot_of(&asked.room);
            let route = self.gateways[usize::from(number)].routes[usize::from(slot)];
            let way = route.and_then(|route| self.way_to(number, route.owner));
            let Some(asked) = self.gateways[usize::from(number)].backend.asked.get_mut(&ticket) else {
                continue;
            };
            match way {
                Some(node) => {
                    asked.again = None;
                    let message = ToShard::Room { room: asked.room.clone(), call: asked.call.clone() };
                    let at = self.link_of(number, node as u8);
                    self.send_node(at, Batch::ToShard { lane: 1, messages: vec![message] });
                }
                None => asked.again = Some(now + 50 * MS),
            }
        }
    }

    fn backend_hears(&mut self, number: u8, message: FromShard) {
        match message {
            FromShard::Answer { ticket, answer, .. } => self.backend_answered(number, ticket, answer),
            FromShard::Moved { slot, ticket, epoch, owner } => {
                if let Some(owner) = owner {
                    self.gateway_learns(number, slot.0, Route { epoch, owner });
                } else {
                    self.etcd_looks_up(number, slot.0);
                }
                let again = self.now() + 20 * MS;
                if let Some(ticket) = ticket
                    && let Some(asked) = self.gateways[usize::from(number)].backend.asked.get_mut(&ticket)
                {
                    asked.again = Some(again);
                }
            }
            _ => {}
        }
    }

    fn backend_answered(&mut self, number: u8, ticket: Ticket, answer: Answer) {
        let Some(asked) = self.gateways[usize::from(number)].backend.asked.remove(&ticket) else { return };
        let result = match answer {
            Answer::Body(body) => Ok(*body),
            Answer::Error(error) => Err(*error),
            other => {
                self.wrong(|| format!("{other:?} answers a create or an add"));
                return;
            }
        };
        if let Some((worker, now)) = self.worker(number, 10) {
            worker.backend_replied(now, asked.connection, asked.id, result);
        }
        self.turn(Who::Gateway(number));
    }
}

/// What an owner says, in short.
fn words_of(message: &FromShard) -> String {
    match message {
        FromShard::Answer { ticket, epoch, answer } => {
            let words = match answer {
                Answer::Body(_) => "body".to_owned(),
                Answer::Sent { seq, duplicate, .. } => format!("sent at seq {seq}, duplicate {duplicate}"),
                Answer::Admitted(admission) => {
                    let (delivered, seen) = (admission.delivered, admission.seen);
                    format!(
                        "admitted at head {}, role {:?}, marks {delivered}/{seen}",
                        admission.head, admission.role
                    )
                }
                Answer::Summary(room) => format!("summary of {}", room.room),
                Answer::UserRooms { .. } => "rooms of a user".to_owned(),
                Answer::Error(error) => format!("error {}", error.code),
            };
            format!("answer {:x} at epoch {epoch}: {words}", ticket.0)
        }
        FromShard::Moved { slot, ticket, epoch, owner } => {
            let ticket = ticket.map(|ticket| ticket.0).unwrap_or_default();
            format!("slot {slot} moved to {owner:?} at epoch {epoch} (ticket {ticket:x})")
        }
        FromShard::Events { room, epoch, events } => {
            let seqs: Vec<String> = events.iter().map(|event| event.seq().to_string()).collect();
            format!("events of {room} at epoch {epoch}: {}", seqs.join(" "))
        }
        FromShard::Head { room, epoch, head, last_membership, .. } => {
            format!("head of {room} at epoch {epoch}: {head}, last membership {last_membership}")
        }
        FromShard::Marks { room, epoch, .. } => format!("marks of {room} at epoch {epoch}"),
        FromShard::Left { room, epoch, user, at } => format!("{user} left {room} at {at}, epoch {epoch}"),
        FromShard::Page { room, epoch, page, .. } => match page {
            Ok(page) => {
                let first = page.events.first().map(|event| event.seq().0).unwrap_or_default();
                format!(
                    "page of {room} at epoch {epoch}: {} from {first}, head {}",
                    page.events.len(),
                    page.head
                )
            }
            Err(error) => format!("no page of {room} at epoch {epoch}: {}", error.code),
        },
        FromShard::User { user, .. } => format!("a push to {user}"),
        FromShard::LoginsEnded { user } => format!("logins of {user} have ended"),
    }
}

fn question_of(message: &ToShard) -> String {
    match message {
        ToShard::Room { room, call } => {
            let words = match &call.command {
                RoomCommand::Send(send) => format!("send {} since {:?}", send.client_msg_id, send.since),
                RoomCommand::Subscribe => "subscribe".to_owned(),
                RoomCommand::History { .. } => "history".to_owned(),
                RoomCommand::Mark { .. } => "mark".to_owned(),
                RoomCommand::Remove { user } => format!("remove {user}"),
                other => format!("{other:?}"),
            };
            format!("{room}: {} of {} (ticket {:x})", words, call.caller.user, call.ticket.0)
        }
        ToShard::Pull { room, after, .. } => format!("{room}: pull after {after}"),
        ToShard::Interest { room, after } => format!("{room}: interest after {after}"),
        ToShard::Uninterest { room } => format!("{room}: no interest"),
        ToShard::UserOnline { user } => format!("{user} online"),
        ToShard::UserOffline { user } => format!("{user} offline"),
        ToShard::UserRooms { user, .. } => format!("rooms of {user}"),
        ToShard::Notify { user, .. } => format!("notify {user}"),
        ToShard::LoginsEnded { user } => format!("logins of {user} have ended"),
    }
}

impl World {
    /// What a node hears, for people.
    pub fn note_question(&mut self, node: u8, gateway: u8, message: &ToShard) {
        self.recorder.note(|| format!("  n{node} hears g{gateway}: {}", question_of(message)));
    }
}
