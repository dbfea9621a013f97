//! The cluster of one run: processes, store, etcd, network and clients on one schedule.
//!
//! Owns: everything that happens, in which order, and who hears of it. Always holds: one thread, one heap, no time but the
//! schedule's, no randomness but the seed's; so a plan is a run, bit for bit.
//! Does not: decide anything that the servers decide: the cores do.

use std::collections::{BTreeMap, BTreeSet};

use banyan_checker as checker;
use banyan_gateway_core::slab::Key;
use banyan_proto::id::{Incarnation, RoomId, UnixMs};
use banyan_proto::link::{FromShard, LinkId};

use crate::client::{Cast, Client, Wish};
use crate::coordination::{Coordination, EtcdEvent};
use crate::coverage::{Coverage, Situation};
use crate::gateways::Gateway;
use crate::network::{Link, Tcp, Way};
use crate::nodes::{Asked, Node, PeerMessage};
use crate::plan::{Fault, Mode, Plan, Planned, Who};
use crate::random::Random;
use crate::record::Recorder;
use crate::recovery::{OPERATOR, Recovery};
use crate::schedule::{MS, SECOND, Schedule, Time};
use crate::sometimes;
use crate::store::{CALM, REPLICAS, Step, Store, Weather};

/// When the wall clocks of a run begin.
const UNIX: u64 = 1_790_000_000_000;
/// What a process's steady clock shows at the beginning.
const MONO: u64 = 1_000;
/// A turn of a process gathers what comes within this time.
const TURN: Time = 30;
/// An end of a link that hears nothing gives it up after so long.
const LINK_PATIENCE: Time = 2_500 * MS;
/// New runs of processes take so long to start.
pub const START: Time = 50 * MS;
/// A run ends there whatever happens: nothing should take this long.
const LIMIT: Time = 300 * SECOND;

/// And a run that has given the cores so many inputs goes round in circles.
const INPUTS_MAX: u64 = 500_000;

/// What happens.
#[derive(Debug)]
pub enum Event {
    Store(Step),
    /// The store has nothing to say to a node that does not reach it.
    StoreCut {
        caller: Caller,
        write: bool,
    },
    Turn {
        who: Who,
        run: u32,
    },
    Tick {
        who: Who,
        run: u32,
        at: Time,
    },
    Start {
        who: Who,
        run: u32,
    },
    LinkConnects {
        link: u16,
    },
    LinkArrives {
        link: u16,
        life: u32,
        way: Way,
    },
    /// One end learns that the link is gone.
    LinkEnds {
        link: u16,
        life: u32,
        gateway: bool,
    },
    /// An end has heard nothing for a while.
    LinkSilent {
        link: u16,
        life: u32,
        gateway: bool,
    },
    TcpConnects {
        tcp: u32,
    },
    /// The upgrade's answer is at the client.
    TcpOpen {
        tcp: u32,
    },
    TcpUp {
        tcp: u32,
    },
    TcpDown {
        tcp: u32,
    },
    TcpWritable {
        tcp: u32,
    },
    /// One end learns that the connection is gone.
    TcpEnds {
        tcp: u32,
        gateway: bool,
    },
    TcpTimeout {
        tcp: u32,
    },
    Authenticated {
        gateway: u8,
        run: u32,
        connection: Key,
        user: u16,
    },
    Etcd(EtcdEvent),
    Peer {
        from: u8,
        to: u8,
        run: u32,
        message: Box<PeerMessage>,
    },
    LinkTook {
        node: u8,
        run: u32,
        link: LinkId,
    },
    /// A node's marks go to the store.
    Marks {
        node: u8,
        run: u32,
    },
    RecoveryTicks,
    Client(u16),
    FaultBegins(u16),
    FaultEnds(u16),
    /// The clients finish; in a liveness run the core set is healed.
    Ends,
    /// All is over.
    Over,
}

/// Who asked the store, and what for.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    pub node: u8,
    pub run: u32,
    pub asked: Asked,
}

/// A process's clocks.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Parts per million that it is fast.
    drift: i64,
    /// Of the wall clock, in milliseconds.
    offset: i64,
}

impl Clock {
    pub fn mono(self, now: Time) -> u64 {
        let now = now as i64;
        MONO + ((now + now * self.drift / 1_000_000) / 1_000) as u64
    }

    /// The moment at which the steady clock shows this, or just after.
    pub fn when(self, mono: u64) -> Time {
        let us = mono.saturating_sub(MONO).min(1 << 40) as i64 * 1_000;
        (us * 1_000_000 / (1_000_000 + self.drift)) as Time + 2
    }

    pub fn unix(self, now: Time) -> UnixMs {
        UnixMs((UNIX as i64 + (now / 1_000) as i64 + self.offset) as u64)
    }
}

/// What every process has.
#[derive(Debug)]
pub struct Process {
    /// Number of its run; what belongs to an earlier one is void.
    pub run: u32,
    pub up: bool,
    pub frozen: bool,
    /// What would have reached it while it was frozen.
    pub held: Vec<Event>,
    pub clock: Clock,
    pub turn: bool,
    pub tick_at: Time,
    pub cut_etcd: bool,
    pub lag_watch: bool,
}

impl Process {
    fn new(clock: Clock) -> Self {
        Self {
            run: 0,
            up: false,
            frozen: false,
            held: Vec::new(),
            clock,
            turn: false,
            tick_at: Time::MAX,
            cut_etcd: false,
            lag_watch: false,
        }
    }
}

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    pub inputs: u64,
    pub trace: u64,
    pub owner_changes: u64,
    pub coverage: Coverage,
    pub recorder: Recorder,
    /// Something that the world itself saw to be wrong, and when.
    pub wrong: Option<(Time, String)>,
    pub ended: Time,
}

#[derive(Debug)]
pub struct World {
    pub plan: Plan,
    pub schedule: Schedule<Event>,
    pub recorder: Recorder,
    pub coverage: Coverage,
    pub store: Store<Caller>,
    pub coordination: Coordination,
    pub gateways: Vec<Gateway>,
    pub nodes: Vec<Node>,
    pub links: Vec<Link>,
    pub tcps: Vec<Option<Tcp>>,
    pub clients: Vec<Client>,
    /// The open connection of each client.
    pub client_tcp: Vec<Option<u32>>,
    pub cast: Cast,
    pub room_ids: Vec<RoomId>,
    pub network_random: Random,
    pub process_random: Random,
    pub page_random: Random,
    pub inputs: u64,
    pub owner_changes: u64,
    /// Incarnations whose fence is at quorum.
    pub fenced: BTreeSet<Incarnation>,
    pub recovery: Option<Recovery>,
    /// Which node an incarnation is a run of.
    pub incarnations: BTreeMap<Incarnation, (u8, u32)>,
    /// Batches that a link did not take: given back to their worker when its turn is over.
    pub full: Vec<(u8, LinkId, Vec<FromShard>)>,
    /// Ends that a worker spoke to and that are gone: told to it as soon.
    pub gone: Vec<(u8, LinkId)>,
    pub wrong: Option<(Time, String)>,
    /// Gateways that clients are sent to.
    pub gateways_open: Vec<usize>,
    over: bool,
    /// Not before this the store is looked at again for whether all have all.
    heads_at: Time,
    /// No fault ends any more by itself: what was not healed at the end stays.
    pub healed: bool,
    broken: Option<Broken>,
    /// Since when no client has wanted anything that could change a room.
    still_since: Option<Time>,
    /// When the timeline shows next what the nodes know and wait for.
    pub accounts_at: Time,
}

/// What a liveness run leaves broken.
#[derive(Debug, Clone, Copy, Default)]
struct Broken {
    node: Option<u8>,
    gateway: Option<u8>,
    replica: Option<u8>,
    freeze: bool,
}

impl World {
    pub fn new(plan: Plan) -> Self {
        let rooms: Vec<String> = (0..plan.rooms).map(|room| format!("room{room}")).collect();
        let users: Vec<String> = (0..plan.users).map(|user| format!("user{user}")).collect();
        let mut recorder = Recorder::new(&rooms, &users);
        let cast = Cast {
            broadcast: (0..rooms.len()).map(|room| room == 3).collect(),
            gateways: usize::from(plan.gateways),
            rooms,
            users,
        };
        let seed = plan.seed;
        let mut clocks = Random::new(seed, 2);
        let mut clock = || {
            let span = u64::from(plan.drift);
            Clock {
                drift: clocks.below(2 * span + 1) as i64 - span as i64,
                offset: clocks.below(2_000) as i64 - 1_000,
            }
        };
        let clients: Vec<Client> = (0..plan.clients)
            .map(|number| {
                // The second devices belong to the first users.
                let user = number % plan.users;
                recorder.history.sessions.push(checker::User(user as u32));
                Client::new(number as u32, user, &cast, plan.habits, Random::new(seed, 1_000 + number as u64))
            })
            .collect();
        let room_ids = cast.rooms.iter().map(|room| RoomId::parse(room).expect("a room's name")).collect();
        let mut world = Self {
            schedule: Schedule::default(),
            recorder,
            coverage: Coverage::default(),
            store: Store::new(Random::new(seed, 3), plan.weather),
            coordination: Coordination::new(Random::new(seed, 4), plan.slots as usize),
            gateways: (0..plan.gateways).map(|_| Gateway::new(Process::new(clock()), &plan)).collect(),
            nodes: (0..plan.nodes).map(|_| Node::new(Process::new(clock()))).collect(),
            links: (0..u16::from(plan.gateways) * u16::from(plan.nodes)).map(|_| Link::default()).collect(),
            tcps: Vec::new(),
            client_tcp: vec![None; clients.len()],
            clients,
            gateways_open: (0..cast.gateways).collect(),
            cast,
            room_ids,
            network_random: Random::new(seed, 5),
            process_random: Random::new(seed, 6),
            page_random: Random::new(seed, 9),
            inputs: 0,
            owner_changes: 0,
            fenced: BTreeSet::new(),
            recovery: None,
            incarnations: BTreeMap::new(),
            full: Vec::new(),
            gone: Vec::new(),
            wrong: None,
            over: false,
            heads_at: 0,
            healed: false,
            broken: None,
            still_since: None,
            accounts_at: 0,
            plan,
        };
        // The first one makes the rooms.
        for room in 0..world.cast.rooms.len() {
            let all = world.plan.all_members;
            let members = (1..world.cast.users.len()).filter(|user| all || user % 2 == room % 2).collect();
            world.clients[0].shall_make(room, members);
        }
        for node in 0..world.plan.nodes {
            world.schedule.at(u64::from(node) * MS, Event::Start { who: Who::Node(node), run: 0 });
        }
        for gateway in 0..world.plan.gateways {
            world.schedule.at(u64::from(gateway) * MS, Event::Start { who: Who::Gateway(gateway), run: 0 });
        }
        for client in 0..world.clients.len() {
            world.schedule.at(100 * MS + client as Time, Event::Client(client as u16));
        }
        for fault in 0..world.plan.faults.len() {
            world.schedule.at(world.plan.faults[fault].at, Event::FaultBegins(fault as u16));
        }
        world.schedule.at(world.plan.ends, Event::Ends);
        world
    }

    pub const fn now(&self) -> Time {
        self.schedule.now()
    }

    pub const fn process(&self, who: Who) -> &Process {
        match who {
            Who::Gateway(gateway) => &self.gateways.as_slice()[gateway as usize].process,
            Who::Node(node) => &self.nodes.as_slice()[node as usize].process,
        }
    }

    pub const fn process_mut(&mut self, who: Who) -> &mut Process {
        match who {
            Who::Gateway(gateway) => &mut self.gateways.as_mut_slice()[gateway as usize].process,
            Who::Node(node) => &mut self.nodes.as_mut_slice()[node as usize].process,
        }
    }

    /// Something is wrong that the records will not show.
    pub fn wrong(&mut self, words: impl FnOnce() -> String) {
        if self.wrong.is_none() {
            let words = words();
            self.recorder.note(|| format!("WRONG: {words}"));
            self.wrong = Some((self.now(), words));
        }
    }

    /// Counts one input of a core.
    pub const fn input(&mut self, what: u64) {
        self.inputs += 1;
        self.recorder.trace.mix(what ^ (self.schedule.now() << 8));
    }

    /// Does what comes next. False: nothing does.
    pub fn step(&mut self) -> bool {
        if self.over || self.wrong.is_some() {
            return false;
        }
        let Some(event) = self.schedule.pop() else { return false };
        self.recorder.now = self.now();
        self.note_accounts();
        if self.now() > LIMIT || self.inputs > INPUTS_MAX {
            self.wrong(|| "the run does not end".to_owned());
            return false;
        }
        self.dispatch(event);
        true
    }

    /// What came of it; the store is looked at as it stands.
    pub fn finish(mut self) -> Outcome {
        if let Some(clash) = self.store.clash().map(str::to_owned) {
            self.wrong(|| format!("I2: {clash}"));
        }
        self.recorder.history.slots.sort_by_key(|change| change.at);
        self.dump();
        self.count();
        Outcome {
            inputs: self.inputs,
            trace: self.recorder.trace.value(),
            owner_changes: self.owner_changes,
            coverage: self.coverage,
            recorder: self.recorder,
            wrong: self.wrong,
            ended: self.schedule.now(),
        }
    }

    fn count(&mut self) {
        let counts = self.store.counts;
        let reach = [
            (Situation::WriteUnknown, counts.unknown),
            (Situation::WriteLate, counts.late),
            (Situation::WriteTorn, counts.torn),
        ];
        for (situation, count) in reach {
            if count > 0 {
                self.coverage.reach(situation);
            }
        }
        self.recorder.history.counted.unknown_outcomes += counts.unknown;
        for gateway in 0..self.gateways.len() {
            self.retire_gateway(gateway as u8);
        }
        for node in 0..self.nodes.len() {
            self.retire_node(node as u8);
        }
        sometimes!(self.coverage, GapRepaired, self.recorder.history.counted.gap_repairs > 0);
    }

    /// Who an event is for, and in which run.
    fn addressee(&self, event: &Event) -> Option<(Who, Option<u32>)> {
        let gateway_of = |link: u16| (link / u16::from(self.plan.nodes)) as u8;
        let node_of = |link: u16| (link % u16::from(self.plan.nodes)) as u8;
        let tcp = |tcp: u32| self.tcps[tcp as usize].as_ref().map(|tcp| Who::Gateway(tcp.gateway));
        Some(match *event {
            Event::Turn { who, run } | Event::Tick { who, run, .. } => (who, Some(run)),
            Event::StoreCut { caller, .. } => (Who::Node(caller.node), Some(caller.run)),
            Event::LinkArrives { link, way: Way::Up, .. } => (Who::Node(node_of(link)), None),
            Event::LinkArrives { link, way: Way::Down | Way::Pages, .. } | Event::LinkConnects { link } => {
                (Who::Gateway(gateway_of(link)), None)
            }
            Event::LinkEnds { link, gateway, .. } | Event::LinkSilent { link, gateway, .. } => {
                (if gateway { Who::Gateway(gateway_of(link)) } else { Who::Node(node_of(link)) }, None)
            }
            Event::TcpConnects { tcp: at }
            | Event::TcpUp { tcp: at }
            | Event::TcpWritable { tcp: at }
            | Event::TcpEnds { tcp: at, gateway: true } => (tcp(at)?, None),
            Event::Authenticated { gateway, run, .. } => (Who::Gateway(gateway), Some(run)),
            Event::Peer { to, run, .. } => (Who::Node(to), Some(run)),
            Event::LinkTook { node, run, .. } | Event::Marks { node, run } => (Who::Node(node), Some(run)),
            Event::Etcd(ref event) => event.addressee()?,
            _ => return None,
        })
    }

    fn dispatch(&mut self, event: Event) {
        if let Some((who, run)) = self.addressee(&event) {
            let process = self.process_mut(who);
            if run.is_some_and(|run| run != process.run) {
                return;
            }
            if process.frozen {
                process.held.push(event);
                return;
            }
        }
        match event {
            Event::Store(step) => self.store_step(step),
            Event::StoreCut { caller, write } => self.store_unreached(caller, write),
            Event::Turn { who, .. } => {
                self.process_mut(who).turn = false;
                match who {
                    Who::Gateway(gateway) => self.gateway_turn(gateway),
                    Who::Node(node) => self.node_turn(node),
                }
            }
            Event::Tick { who, at, .. } => {
                let process = self.process_mut(who);
                if !process.up || process.tick_at != at {
                    return;
                }
                process.tick_at = Time::MAX;
                match who {
                    Who::Gateway(gateway) => self.gateway_tick(gateway),
                    Who::Node(node) => self.node_tick(node),
                }
                self.turn(who);
            }
            Event::Start { who, run } => {
                if self.process(who).run == run && !self.process(who).up {
                    match who {
                        Who::Gateway(gateway) => self.start_gateway(gateway),
                        Who::Node(node) => self.start_node(node),
                    }
                }
            }
            Event::LinkConnects { link } => self.link_connects(link),
            Event::LinkArrives { link, life, way } => self.link_arrives(link, life, way),
            Event::LinkEnds { link, life, gateway } => self.link_ends(link, life, gateway),
            Event::LinkSilent { link, life, gateway } => self.link_silent(link, life, gateway),
            Event::TcpConnects { tcp } => self.tcp_connects(tcp),
            Event::TcpOpen { tcp } => self.tcp_open(tcp),
            Event::TcpUp { tcp } => self.tcp_up(tcp),
            Event::TcpDown { tcp } => self.tcp_down(tcp),
            Event::TcpWritable { tcp } => self.tcp_writable(tcp),
            Event::TcpEnds { tcp, gateway } => self.tcp_ends(tcp, gateway),
            Event::TcpTimeout { tcp } => {
                let waits =
                    self.tcps[tcp as usize].as_ref().filter(|of| of.client_open && of.number == u32::MAX);
                if waits.is_some() {
                    self.client_gone(tcp);
                }
            }
            Event::Authenticated { gateway, connection, user, .. } => {
                self.authenticated(gateway, connection, usize::from(user));
            }
            Event::Etcd(event) => self.etcd_event(event),
            Event::Peer { to, message, .. } => self.peer_message(to, *message),
            Event::RecoveryTicks => self.recovery_ticks(),
            Event::LinkTook { node, link, .. } => self.link_took(node, link),
            Event::Marks { node, .. } => self.write_marks(node),
            Event::Client(client) => self.client_acts(usize::from(client)),
            Event::FaultBegins(fault) => self.fault_begins(fault),
            Event::FaultEnds(fault) => {
                if !self.healed {
                    let planned = self.plan.faults[usize::from(fault)];
                    self.fault_ends(planned.fault);
                }
            }
            Event::Ends => self.ends(),
            Event::Over => self.over = true,
        }
    }

    /// The process looks at all it has got, soon.
    pub fn turn(&mut self, who: Who) {
        let process = self.process_mut(who);
        if !process.turn {
            process.turn = true;
            let run = process.run;
            self.schedule.after(TURN, Event::Turn { who, run });
        }
    }

    /// Wakes the process at this moment, unless it wakes earlier.
    pub fn wake(&mut self, who: Who, at: Time) {
        let at = at.max(self.now() + 1);
        let process = self.process_mut(who);
        if at < process.tick_at {
            process.tick_at = at;
            let run = process.run;
            self.schedule.at(at, Event::Tick { who, run, at });
        }
    }

    // ------------------------------------------------------------ the store

    /// Plans what the store wants to be reminded of.
    pub fn store_planned(&mut self) {
        let mut steps = std::mem::take(&mut self.store.steps);
        for (time, step) in steps.drain(..) {
            self.schedule.at(time, Event::Store(step));
        }
        self.store.steps = steps;
    }

    fn store_step(&mut self, step: Step) {
        let answer = self.store.step(self.now(), step);
        self.store_planned();
        if let Some((caller, answer)) = answer {
            if caller.node == OPERATOR {
                return self.store_answered(caller, answer);
            }
            let process = &self.nodes[usize::from(caller.node)].process;
            if process.run != caller.run {
                return;
            }
            if process.frozen {
                // Kept in the socket until it thaws.
                self.nodes[usize::from(caller.node)].answers.push((caller, answer));
                return;
            }
            self.store_answered(caller, answer);
        }
    }

    // ------------------------------------------------------------ clients

    fn client_acts(&mut self, client: usize) {
        let now = self.now();
        let pause = self.clients[client].pause();
        self.schedule.after(pause, Event::Client(client as u16));
        if let Some(tcp) = self.client_tcp[client]
            && self.tcps[tcp as usize].as_ref().is_some_and(|tcp| tcp.slow)
        {
            self.client_reads(tcp, 150);
        }
        let wish = self.clients[client].act(now, &self.cast, &mut self.recorder, &mut self.coverage);
        match wish {
            Wish::Nothing => {}
            Wish::Connect { gateway } => {
                let gateway = self.gateways_open[gateway % self.gateways_open.len()] as u8;
                let tcp = Tcp::new(client as u16, gateway, 0, u32::MAX, self.plan.tcp_buffer);
                let number = self.tcps.len() as u32;
                self.tcps.push(Some(tcp));
                self.client_tcp[client] = Some(number);
                let delay = self.tcp_delay();
                self.schedule.after(delay, Event::TcpConnects { tcp: number });
                self.schedule.after(3 * SECOND, Event::TcpTimeout { tcp: number });
            }
            Wish::Send => self.client_sends(client),
            Wish::Hang => {
                if let Some(tcp) = self.client_tcp[client] {
                    self.client_gone(tcp);
                }
            }
        }
        self.settled();
    }

    /// What the client has to say goes on its way.
    pub fn client_sends(&mut self, client: usize) {
        if self.clients[client].out.is_empty() {
            return;
        }
        let bytes = std::mem::take(&mut self.clients[client].out);
        let Some(number) = self.client_tcp[client] else { return };
        let at = self.now() + self.tcp_delay();
        if let Some(tcp) = &mut self.tcps[number as usize] {
            let at = tcp.put_up(bytes, at);
            self.schedule.at(at, Event::TcpUp { tcp: number });
        }
    }

    pub fn tcp_delay(&mut self) -> Time {
        self.plan.tcp_delay / 2 + self.network_random.below(self.plan.tcp_delay)
    }

    pub fn link_delay(&mut self) -> Time {
        let base = self.plan.link_delay / 2 + self.network_random.below(self.plan.link_delay);
        if self.network_random.one_in(50) { base * 10 } else { base }
    }

    /// The client gives its connection up, or learns that it is gone.
    pub fn client_gone(&mut self, number: u32) {
        let Some(tcp) = &mut self.tcps[number as usize] else { return };
        if !std::mem::replace(&mut tcp.client_open, false) {
            return;
        }
        let client = usize::from(tcp.client);
        if tcp.gateway_open {
            if tcp.cut[0] {
                // Its end never gets there.
                tcp.owed[0] += 1;
            } else {
                let at = tcp.last_at[0].max(self.schedule.now()) + self.plan.tcp_delay;
                self.schedule.at(at, Event::TcpEnds { tcp: number, gateway: true });
            }
        } else {
            self.tcps[number as usize] = None;
        }
        self.client_tcp[client] = None;
        let now = self.now();
        self.clients[client].lost(now, &mut self.recorder);
    }

    pub fn client_reads(&mut self, number: u32, most: usize) {
        let now = self.now();
        let Some(tcp) = &mut self.tcps[number as usize] else { return };
        // What comes before the upgrade's answer has been seen waits in the socket: a slow reader looks there too.
        if !tcp.client_open || tcp.arrived == 0 || tcp.number == u32::MAX {
            return;
        }
        let client = usize::from(tcp.client);
        let mut bytes = Vec::new();
        tcp.read_down(most, &mut bytes);
        if tcp.full {
            sometimes!(self.coverage, SlowReader, tcp.slow);
            let delay = self.tcp_delay();
            self.schedule.after(delay, Event::TcpWritable { tcp: number });
        }
        let goes_on =
            self.clients[client].read(now, &bytes, &self.cast, &mut self.recorder, &mut self.coverage);
        self.client_sends(client);
        if !goes_on {
            self.client_gone(number);
        }
    }

    // ------------------------------------------------------------ the end

    /// New business ends.
    fn ends(&mut self) {
        self.recorder.note(|| "no new business from here on".to_owned());
        for client in &mut self.clients {
            client.finishing = true;
            client.finish_at = self.schedule.now();
        }
        match self.plan.mode {
            Mode::Safety => {
                // A short while for what is under way, with all that is broken.
                self.schedule.after(2 * SECOND, Event::Over);
            }
            Mode::Liveness => self.heal(),
        }
    }

    /// Heals a core set for good and leaves the rest as it is.
    fn heal(&mut self) {
        let mut random = Random::new(self.plan.seed, 7);
        let r = &mut random;
        let broken = Broken {
            node: (self.plan.nodes > 2 && r.one_in(2)).then(|| r.below(u64::from(self.plan.nodes)) as u8),
            gateway: (self.plan.gateways > 1 && r.one_in(2))
                .then(|| r.below(u64::from(self.plan.gateways)) as u8),
            replica: r.one_in(2).then(|| r.index(REPLICAS) as u8),
            freeze: r.one_in(2),
        };
        self.recorder.note(|| format!("all heals but {broken:?}"));
        let faults: Vec<Planned> = self.plan.faults.clone();
        for planned in faults {
            if planned.at < self.now() {
                self.fault_ends(planned.fault);
            }
        }
        self.healed = true;
        self.broken = Some(broken);
        self.store.weather = Weather { latency: self.plan.weather.latency, ..CALM };
        (self.plan.link_resets, self.plan.etcd_unknown, self.plan.watch_lag) = (0, 0, 0);
        self.plan.page_lag = self.plan.page_lag.map(|lag| lag.min(20 * MS));
        if let Some(replica) = broken.replica {
            if broken.freeze {
                self.store.freeze(usize::from(replica));
            } else {
                self.store.set_down(usize::from(replica), true);
            }
        }
        let processes = [broken.node.map(Who::Node), broken.gateway.map(Who::Gateway)];
        for who in processes.into_iter().flatten() {
            if broken.freeze {
                self.freeze(who);
            } else {
                self.crash(who);
            }
        }
        if let Some(gateway) = broken.gateway {
            self.gateways_open.retain(|of| *of != usize::from(gateway));
        }
        let healed = self.now();
        let deadline = healed + 2 * self.plan.ttl + 10 * SECOND;
        // Who made the rooms is a member of all.
        self.clients[0].owes = (0..self.cast.rooms.len()).collect();
        self.recorder.history.liveness = Some(checker::Liveness {
            healed: checker::Time(healed),
            deadline: checker::Time(deadline),
            rooms: (0..self.cast.rooms.len()).map(|room| checker::Room(room as u32)).collect(),
            subscribers: Vec::new(),
            settled: true,
        });
        self.schedule.at(deadline, Event::Over);
    }

    pub fn is_broken(&self, who: Who) -> bool {
        self.broken.is_some_and(|broken| match who {
            Who::Node(node) => broken.node == Some(node),
            Who::Gateway(gateway) => broken.gateway == Some(gateway),
        })
    }

    /// A liveness run may end as soon as nobody waits for anything.
    fn settled(&mut self) {
        if self.plan.mode != Mode::Liveness || !self.healed {
            return;
        }
        if self.clients.iter().any(Client::has_business) {
            self.still_since = None;
            return;
        }
        // A command whose client has gone may be held by its gateway for as long.
        let held_until = self.clients[0].finish_at + self.plan.ttl + 2 * SECOND;
        let now = self.now();
        let still = (*self.still_since.get_or_insert(now)).max(held_until);
        if !self.clients.iter().all(Client::is_settled) {
            return;
        }
        if self.now() < self.heads_at {
            return;
        }
        self.heads_at = self.now() + 100 * MS;
        let heads = self.heads();
        let there = |client: &Client| {
            heads.iter().enumerate().all(|(room, head)| client.has_reached(room, *head, still))
        };
        if self.clients.iter().all(there) {
            self.over = true;
        }
    }

    // ------------------------------------------------------------ faults

    fn fault_begins(&mut self, number: u16) {
        if self.healed {
            return;
        }
        let Planned { fault, lasts, .. } = self.plan.faults[usize::from(number)];
        self.recorder.note(|| format!("FAULT {fault} for {} ms", lasts / MS));
        let at = checker::Time(self.now());
        let kind = if matches!(fault, Fault::Crash(_)) {
            checker::FaultKind::Kill
        } else {
            checker::FaultKind::Other
        };
        self.recorder.history.faults.push(checker::Fault { at, kind });
        match fault {
            Fault::Crash(who) => self.crash(who),
            Fault::Freeze(who) => self.freeze(who),
            Fault::Stop(node) => self.stop_node(node),
            Fault::CutLink { gateway, node, directions } => {
                self.cut_link(self.link_of(gateway, node), directions)
            }
            Fault::ResetLink { gateway, node } => self.reset_link(self.link_of(gateway, node)),
            Fault::CutPeers { one, other } => {
                self.coordination.set_cut(one, other, true);
            }
            Fault::ReplicaFrozen(replica) => self.store.freeze(usize::from(replica)),
            Fault::ReplicaDown(replica) => self.store.set_down(usize::from(replica), true),
            Fault::ReplicaSlow(replica) => self.store.set_slow(usize::from(replica), 100),
            Fault::CutStore(node) => self.nodes[usize::from(node)].cut_store = true,
            Fault::EtcdDown => self.etcd_away(),
            Fault::EtcdLeader => self.etcd_leader(),
            Fault::CutEtcd(who) => {
                self.process_mut(who).cut_etcd = true;
                if let Who::Node(node) = who
                    && !self.process(who).frozen
                {
                    self.etcd_gone(node);
                }
            }
            Fault::WatchLag(who) => self.process_mut(who).lag_watch = true,
            Fault::EtcdSnapshot => self.coordination.etcd.take_snapshot(),
            Fault::EtcdRestore => self.etcd_restore(),
            Fault::ClockJump { who, ms } => self.process_mut(who).clock.offset += ms,
            Fault::Pin { slot, node } => self.pin(slot, node),
            Fault::CutClient { client, how } => self.cut_client(usize::from(client), how),
            Fault::SlowReader { client } => {
                if let Some(number) = self.client_tcp[usize::from(client)]
                    && let Some(tcp) = &mut self.tcps[number as usize]
                {
                    tcp.slow = true;
                }
            }
        }
        self.schedule.after(lasts, Event::FaultEnds(number));
    }

    fn fault_ends(&mut self, fault: Fault) {
        match fault {
            Fault::Crash(who) => {
                let process = self.process(who);
                if !process.up && !self.is_broken(who) {
                    let run = process.run;
                    self.schedule.after(START, Event::Start { who, run });
                }
            }
            Fault::Stop(node) => self.stop_ends(node),
            Fault::Freeze(who) => self.thaw(who),
            Fault::CutLink { gateway, node, .. } => self.mend_link(self.link_of(gateway, node)),
            Fault::CutPeers { one, other } => self.coordination.set_cut(one, other, false),
            Fault::ReplicaFrozen(replica) => {
                self.store.thaw(self.schedule.now(), usize::from(replica));
                self.store_planned();
            }
            Fault::ReplicaDown(replica) => self.store.set_down(usize::from(replica), false),
            Fault::ReplicaSlow(replica) => self.store.set_slow(usize::from(replica), 1),
            Fault::CutStore(node) => self.nodes[usize::from(node)].cut_store = false,
            Fault::EtcdDown | Fault::EtcdLeader => self.etcd_back(),
            Fault::CutEtcd(who) => {
                self.process_mut(who).cut_etcd = false;
                self.watch_soon(who);
            }
            Fault::WatchLag(who) => {
                self.process_mut(who).lag_watch = false;
                self.watch_soon(who);
            }
            Fault::EtcdRestore => self.recover(),
            Fault::CutClient { client, .. } => self.mend_client(usize::from(client)),
            Fault::SlowReader { client } => {
                if let Some(number) = self.client_tcp[usize::from(client)] {
                    if let Some(tcp) = &mut self.tcps[number as usize] {
                        tcp.slow = false;
                    }
                    self.client_reads(number, usize::MAX);
                }
            }
            Fault::ResetLink { .. } | Fault::EtcdSnapshot | Fault::ClockJump { .. } | Fault::Pin { .. } => {}
        }
    }

    /// Memory is gone.
    pub fn crash(&mut self, who: Who) {
        let process = self.process_mut(who);
        if !process.up {
            return;
        }
        process.up = false;
        process.run += 1;
        process.frozen = false;
        process.held.clear();
        process.turn = false;
        process.tick_at = Time::MAX;
        self.recorder.note(|| format!("{who} is dead"));
        match who {
            Who::Gateway(gateway) => self.gateway_died(gateway),
            Who::Node(node) => self.node_died(node),
        }
    }

    fn freeze(&mut self, who: Who) {
        let process = self.process_mut(who);
        if process.up {
            process.frozen = true;
        }
    }

    fn thaw(&mut self, who: Who) {
        let process = self.process_mut(who);
        if !std::mem::replace(&mut process.frozen, false) {
            return;
        }
        let held = std::mem::take(&mut process.held);
        self.recorder.note(|| format!("{who} goes on"));
        if let Who::Node(node) = who {
            self.node_thawed(node);
        }
        for event in held {
            self.schedule.after(0, event);
        }
    }

    pub const fn link_of(&self, gateway: u8, node: u8) -> u16 {
        gateway as u16 * self.plan.nodes as u16 + node as u16
    }

    pub const fn ends_of(&self, link: u16) -> (u8, u8) {
        ((link / self.plan.nodes as u16) as u8, (link % self.plan.nodes as u16) as u8)
    }

    // ------------------------------------------------------------ links

    fn link_connects(&mut self, number: u16) {
        let (gateway, node) = self.ends_of(number);
        let (gateway, node) = (usize::from(gateway), usize::from(node));
        self.links[usize::from(number)].connecting = false;
        if !self.gateways[gateway].process.up || self.links[usize::from(number)].gateway_end {
            return;
        }
        let link = &mut self.links[usize::from(number)];
        let node_process = &self.nodes[node].process;
        if link.cut != [false; 2] || !node_process.up || node_process.frozen {
            return self.connect_link(number, 300 * MS);
        }
        if link.node_end {
            // The node takes the new one for the old one's end.
            self.node_link_gone(number);
        }
        let link = &mut self.links[usize::from(number)];
        link.begin(self.gateways[gateway].process.run, self.nodes[node].process.run);
        self.gateway_link_up(number);
    }

    /// Tries to connect, after about this time.
    pub fn connect_link(&mut self, number: u16, about: Time) {
        let link = &mut self.links[usize::from(number)];
        if !std::mem::replace(&mut link.connecting, true) {
            let wait = about / 2 + self.network_random.below(about + 1);
            self.schedule.after(wait, Event::LinkConnects { link: number });
        }
    }

    fn cut_link(&mut self, number: u16, directions: [bool; 2]) {
        let link = &mut self.links[usize::from(number)];
        for way in [0, 1] {
            link.cut[way] |= directions[way];
        }
        let life = link.life;
        // An end gives up when it hears nothing, or when what it sends is not taken.
        for gateway in [true, false] {
            let wait = LINK_PATIENCE + self.network_random.below(SECOND);
            let wait = if directions[usize::from(gateway)] { wait } else { wait + SECOND };
            self.schedule.after(wait, Event::LinkSilent { link: number, life, gateway });
        }
    }

    fn mend_link(&mut self, number: u16) {
        let link = &mut self.links[usize::from(number)];
        link.cut = [false; 2];
        let life = link.life;
        if link.gateway_end != link.node_end {
            let gateway = link.gateway_end;
            self.schedule.after(MS, Event::LinkEnds { link: number, life, gateway });
            return;
        }
        for (way, owed) in link.take_owed() {
            for _ in 0..owed {
                self.schedule.after(0, Event::LinkArrives { link: number, life, way });
            }
        }
    }

    fn link_silent(&mut self, number: u16, life: u32, gateway: bool) {
        let link = &self.links[usize::from(number)];
        if link.life == life && link.cut != [false; 2] {
            sometimes!(
                self.coverage,
                LinkHalfOpen,
                link.cut != [true; 2] && link.gateway_end && link.node_end
            );
            self.link_ends(number, life, gateway);
            // The other end is told, if the way there is open.
            let link = &self.links[usize::from(number)];
            if !link.cut[usize::from(!gateway)] {
                let delay = self.link_delay();
                self.schedule.after(delay, Event::LinkEnds { link: number, life, gateway: !gateway });
            }
        }
    }

    pub fn reset_link(&mut self, number: u16) {
        let link = &mut self.links[usize::from(number)];
        if !link.gateway_end && !link.node_end {
            return;
        }
        sometimes!(self.coverage, LinkReset, link.on_the_way() > 0);
        let life = link.life;
        for gateway in [true, false] {
            let delay = self.link_delay();
            self.schedule.after(delay, Event::LinkEnds { link: number, life, gateway });
        }
    }

    fn link_ends(&mut self, number: u16, life: u32, gateway: bool) {
        let link = &mut self.links[usize::from(number)];
        if link.life != life {
            return;
        }
        if gateway && std::mem::replace(&mut link.gateway_end, false) {
            self.gateway_link_lost(number);
        } else if !gateway && link.node_end {
            self.node_link_gone(number);
        }
    }
}
