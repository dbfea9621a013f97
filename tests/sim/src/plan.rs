//! What goes wrong in a run, decided before it begins: rates of the weather, and faults with their time.
//!
//! Always holds: a plan is a function of its seed and mode; each kind of fault draws from a stream of its own, so that taking
//! one kind (or one fault) out leaves all others as they were. That is what makes a failing run shrink.

use std::fmt;

use banyan_router::{SlotCount, slot_of};

use crate::client::Habits;
use crate::random::Random;
use crate::schedule::{MS, SECOND, Time};
use crate::store::{REPLICAS, Weather};

/// What a run demands at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Faults to the end; what was promised must hold of what was seen.
    Safety,
    /// A core set is healed, the rest stays broken: every room must take a send and every subscriber reach head in time.
    Liveness,
}

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    Gateway(u8),
    Node(u8),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(number) => write!(f, "g{number}"),
            Self::Node(number) => write!(f, "n{number}"),
        }
    }
}

/// Something that breaks, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// kill -9; memory is gone, it starts again after the time.
    Crash(Who),
    /// SIGSTOP; SIGCONT after the time.
    Freeze(Who),
    /// A planned end: the node hands its slots over and starts again after the time.
    Stop(u8),
    /// Between a gateway and a node; direction 0 is towards the node.
    CutLink {
        gateway: u8,
        node: u8,
        directions: [bool; 2],
    },
    ResetLink {
        gateway: u8,
        node: u8,
    },
    /// Between two nodes, both ways.
    CutPeers {
        one: u8,
        other: u8,
    },
    ReplicaFrozen(u8),
    ReplicaDown(u8),
    ReplicaSlow(u8),
    /// The node does not reach the store.
    CutStore(u8),
    EtcdDown,
    EtcdLeader,
    /// The process does not reach etcd.
    CutEtcd(Who),
    /// What watches tell the process comes late.
    WatchLag(Who),
    EtcdSnapshot,
    /// Back to the snapshot. An operator runs `ring recover` after the time.
    EtcdRestore,
    ClockJump {
        who: Who,
        ms: i64,
    },
    /// An operator pins a slot to a node.
    Pin {
        slot: u16,
        node: u8,
    },
    /// A client's connection: 0 reset, 1 silent towards the gateway, 2 silent towards the client, 3 both.
    CutClient {
        client: u16,
        how: u8,
    },
    SlowReader {
        client: u16,
    },
}

impl Fault {
    /// Faults of one kind are dropped together when a failure shrinks.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Crash(_) => "crash",
            Self::Freeze(_) => "freeze",
            Self::Stop(_) => "stop",
            Self::CutLink { .. } => "cut link",
            Self::ResetLink { .. } => "reset link",
            Self::CutPeers { .. } => "cut peers",
            Self::ReplicaFrozen(_) => "replica frozen",
            Self::ReplicaDown(_) => "replica down",
            Self::ReplicaSlow(_) => "replica slow",
            Self::CutStore(_) => "cut store",
            Self::EtcdDown => "etcd down",
            Self::EtcdLeader => "etcd leader change",
            Self::CutEtcd(_) => "cut etcd",
            Self::WatchLag(_) => "watch lag",
            Self::EtcdSnapshot => "etcd snapshot",
            Self::EtcdRestore => "etcd restore",
            Self::ClockJump { .. } => "clock jump",
            Self::Pin { .. } => "pin",
            Self::CutClient { .. } => "cut client",
            Self::SlowReader { .. } => "slow reader",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        match self {
            Self::Crash(who) | Self::Freeze(who) | Self::CutEtcd(who) | Self::WatchLag(who) => {
                write!(f, " {who}")
            }
            Self::Stop(node) | Self::CutStore(node) => write!(f, " n{node}"),
            Self::CutLink { gateway, node, directions } => {
                let arrow = match directions {
                    [true, true] => "<->",
                    [true, false] => "->",
                    _ => "<-",
                };
                write!(f, " g{gateway} {arrow} n{node}")
            }
            Self::ResetLink { gateway, node } => write!(f, " g{gateway} n{node}"),
            Self::CutPeers { one, other } => write!(f, " n{one} n{other}"),
            Self::ReplicaFrozen(replica) | Self::ReplicaDown(replica) | Self::ReplicaSlow(replica) => {
                write!(f, " {replica}")
            }
            Self::ClockJump { who, ms } => write!(f, " {who} by {ms} ms"),
            Self::Pin { slot, node } => write!(f, " slot {slot} to n{node}"),
            Self::CutClient { client, how } => {
                let how = ["reset", "silent to the gateway", "silent to the client", "silent"]
                    [usize::from(*how) % 4];
                write!(f, " {client} ({how})")
            }
            Self::SlowReader { client } => write!(f, " {client}"),
            Self::EtcdDown | Self::EtcdLeader | Self::EtcdSnapshot | Self::EtcdRestore => Ok(()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    pub at: Time,
    pub lasts: Time,
    pub fault: Fault,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.3} s for {:.3} s: {}", self.at as f64 / 1e6, self.lasts as f64 / 1e6, self.fault)
    }
}

/// Everything about a run that its seed decides beforehand.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub mode: Mode,
    pub gateways: u8,
    pub nodes: u8,
    pub slots: u32,
    pub rooms: usize,
    pub users: usize,
    pub clients: usize,
    /// New business ends here.
    pub ends: Time,
    pub faults: Vec<Planned>,
    pub weather: Weather,
    pub habits: Habits,
    /// Messages between gateways and nodes: usual delay; per mille that reset their link.
    pub link_delay: Time,
    pub link_resets: u32,
    /// Batches on a link before it is full.
    pub link_capacity: usize,
    /// Pages of pulls travel on a stream of their own, up to so much later. `None`: with all else.
    pub page_lag: Option<Time>,
    pub tcp_delay: Time,
    pub tcp_buffer: usize,
    /// Etcd: usual delay; per mille of requests with unknown outcome, and of watch events that lag.
    pub etcd_delay: Time,
    pub etcd_unknown: u32,
    pub watch_lag: u32,
    pub ttl: Time,
    /// Drift of each process's clock in parts per million.
    pub drift: u32,
    /// Bytes after which a segment rolls, and its time window.
    pub bucket_bytes: u64,
    pub window_ms: u64,
    pub ring_bytes: usize,
    pub idle_ms: u64,
    pub tail_events: usize,
    pub since_events: u64,
    pub join_events_members: u64,
    pub page_events: usize,
    /// A command that waits longer at its room is answered 108.
    pub answer_within_ms: u64,
    /// Members that rooms begin with.
    pub all_members: bool,
}

/// The faults of one kind: mean time between two, how long each lasts, and which it is.
struct Kind {
    mean: Time,
    lasts: (Time, Time),
    make: fn(&mut Random, &Plan) -> Fault,
}

fn gateway(random: &mut Random, plan: &Plan) -> u8 {
    random.below(u64::from(plan.gateways)) as u8
}

fn node(random: &mut Random, plan: &Plan) -> u8 {
    random.below(u64::from(plan.nodes)) as u8
}

fn who(random: &mut Random, plan: &Plan) -> Who {
    if random.one_in(4) { Who::Gateway(gateway(random, plan)) } else { Who::Node(node(random, plan)) }
}

fn client(random: &mut Random, plan: &Plan) -> u16 {
    random.below(plan.clients as u64) as u16
}

fn replica(random: &mut Random) -> u8 {
    random.index(REPLICAS) as u8
}

const KINDS: &[Kind] = &[
    Kind { mean: 9 * SECOND, lasts: (200 * MS, 4 * SECOND), make: |r, p| Fault::Crash(who(r, p)) },
    Kind { mean: 8 * SECOND, lasts: (50 * MS, 9 * SECOND), make: |r, p| Fault::Freeze(who(r, p)) },
    Kind { mean: 10 * SECOND, lasts: (SECOND, 5 * SECOND), make: |r, p| Fault::Stop(node(r, p)) },
    Kind {
        mean: 2 * SECOND,
        lasts: (20 * MS, 3 * SECOND),
        make: |r, p| {
            let directions = [[true, true], [true, false], [false, true]][r.index(3)];
            Fault::CutLink { gateway: gateway(r, p), node: node(r, p), directions }
        },
    },
    Kind {
        mean: 2 * SECOND,
        lasts: (MS, MS),
        make: |r, p| Fault::ResetLink { gateway: gateway(r, p), node: node(r, p) },
    },
    Kind {
        mean: 6 * SECOND,
        lasts: (100 * MS, 5 * SECOND),
        make: |r, p| Fault::CutPeers { one: node(r, p), other: node(r, p) },
    },
    Kind { mean: 7 * SECOND, lasts: (50 * MS, 8 * SECOND), make: |r, _| Fault::ReplicaFrozen(replica(r)) },
    Kind { mean: 8 * SECOND, lasts: (50 * MS, 6 * SECOND), make: |r, _| Fault::ReplicaDown(replica(r)) },
    Kind { mean: 5 * SECOND, lasts: (200 * MS, 6 * SECOND), make: |r, _| Fault::ReplicaSlow(replica(r)) },
    Kind { mean: 9 * SECOND, lasts: (100 * MS, 5 * SECOND), make: |r, p| Fault::CutStore(node(r, p)) },
    Kind { mean: 12 * SECOND, lasts: (200 * MS, 6 * SECOND), make: |_, _| Fault::EtcdDown },
    Kind { mean: 7 * SECOND, lasts: (50 * MS, 2 * SECOND), make: |_, _| Fault::EtcdLeader },
    Kind { mean: 6 * SECOND, lasts: (200 * MS, 8 * SECOND), make: |r, p| Fault::CutEtcd(who(r, p)) },
    Kind { mean: 4 * SECOND, lasts: (200 * MS, 6 * SECOND), make: |r, p| Fault::WatchLag(who(r, p)) },
    Kind {
        mean: 3 * SECOND,
        lasts: (MS, MS),
        make: |r, p| {
            let span = [50, 2_000, 3_600_000][r.index(3)];
            Fault::ClockJump { who: who(r, p), ms: r.below(2 * span) as i64 - span as i64 }
        },
    },
    Kind {
        mean: SECOND,
        lasts: (MS, MS),
        make: |r, p| Fault::Pin { slot: r.below(u64::from(p.slots)) as u16, node: node(r, p) },
    },
    Kind {
        mean: SECOND,
        lasts: (100 * MS, 8 * SECOND),
        make: |r, p| Fault::CutClient { client: client(r, p), how: r.below(4) as u8 },
    },
    Kind {
        mean: 2 * SECOND,
        lasts: (200 * MS, 6 * SECOND),
        make: |r, p| Fault::SlowReader { client: client(r, p) },
    },
];

impl Plan {
    pub fn new(seed: u64, mode: Mode) -> Self {
        let mut random = Random::new(seed, 1);
        let r = &mut random;
        // Swarm: each rate is off, low or high in about a third of the seeds each.
        let mut rate = |high: u64| match r.below(3) {
            0 => 0,
            1 => 1 + r.below(high / 8 + 1) as u32,
            _ => 1 + r.below(high) as u32,
        };
        let weather = Weather {
            latency: MS,
            slow: rate(60),
            lost: rate(60),
            mute: rate(40),
            refused: rate(20),
            timeout: SECOND,
            fence_lag: 0,
        };
        let (link_resets, etcd_unknown, watch_lag) = (rate(4), rate(200), rate(200));
        let habits = Habits {
            pace: 30 * MS,
            retries_of_acked: rate(100),
            history: rate(120),
            marks: rate(120),
            members: rate(80),
            moves: rate(60),
            switches: rate(20),
            governs: 0,
            passive: 250,
            without_since: rate(200),
            patience: 6 * SECOND,
            in_flight: 8,
        };
        let weather = Weather {
            latency: [200, MS, 4 * MS][r.index(3)],
            timeout: [300 * MS, SECOND, 2 * SECOND][r.index(3)],
            ..weather
        };
        let nodes = r.between(2, 4) as u8;
        let gateways = r.between(2, 3) as u8;
        let users = r.between(3, 5) as usize;
        let clients = users + r.between(0, 2) as usize;
        let ends = r.between(9, 20) * SECOND / 2;
        let mut plan = Self {
            seed,
            mode,
            gateways,
            nodes,
            slots: [4, 8, 16][r.index(3)],
            rooms: r.between(2, 5) as usize,
            users,
            clients,
            ends,
            faults: Vec::new(),
            weather,
            habits: Habits {
                pace: [20, 40, 80][r.index(3)] * MS,
                in_flight: [1, 4, 16][r.index(3)],
                ..habits
            },
            link_delay: [100, 500, 3 * MS][r.index(3)],
            link_resets,
            link_capacity: [2, 16, 1_000][r.index(3)],
            page_lag: None,
            tcp_delay: [100, MS, 20 * MS][r.index(3)],
            tcp_buffer: [600, 4 << 10, 256 << 10][r.index(3)],
            etcd_delay: [500, 2 * MS, 10 * MS][r.index(3)],
            etcd_unknown,
            watch_lag,
            ttl: [SECOND, 2 * SECOND, 3 * SECOND][r.index(3)],
            drift: [0, 1_000, 10_000][r.index(3)],
            bucket_bytes: [400, 4_000, 50 << 20][r.index(3)],
            window_ms: [2_000, 10 * 86_400_000][r.index(2)],
            ring_bytes: [400, 4_000, 1 << 20][r.index(3)],
            idle_ms: [300, 3_000, 600_000][r.index(3)],
            tail_events: [4, 256][r.index(2)],
            since_events: [60, 10_000, 10_000][r.index(3)],
            join_events_members: [2, 500][r.index(2)],
            page_events: [16, 512][r.index(2)],
            answer_within_ms: [800, 10_000][r.index(2)],
            all_members: r.one_in(2),
        };
        plan.unheard(seed);
        plan.slow_fences(seed);
        plan.slow_pages(seed);
        // Faults heal by the end of a liveness run, or do not: the world says which.
        let from = SECOND;
        for (number, kind) in KINDS.iter().enumerate() {
            let mut random = Random::new(seed, 100 + number as u64);
            if !random.one_in(2) {
                continue;
            }
            let mean = kind.mean * random.between(2, 6) / 4;
            let mut at = from + random.exponential(mean);
            while at < plan.ends {
                let lasts = random.between(kind.lasts.0, kind.lasts.1);
                let fault = (kind.make)(&mut random, &plan);
                plan.faults.push(Planned { at, lasts, fault });
                at += random.exponential(mean);
            }
        }
        plan.restore(seed);
        plan.faults.sort_by_key(|planned| planned.at);
        plan
    }

    /// What rarely meets by chance, in a third of the seeds: an owner speaks while a gateway does not hear it.
    ///
    /// In half of these the slot leaves it meanwhile, so that it is heard after words of the next one; they are full of
    /// receipt marks, where old words show. In the others the link fills up and drops events, those of removals too, and
    /// most readers there take heads only: what they learn of a removal comes beside its event.
    fn unheard(&mut self, seed: u64) {
        let mut random = Random::new(seed, 98);
        let r = &mut random;
        if !r.one_in(3) {
            return;
        }
        let moves = r.one_in(2);
        if moves {
            self.habits.marks = 300;
        } else {
            (self.gateways, self.rooms, self.link_capacity) = (2, 2, r.between(1, 3) as usize);
            (self.habits.pace, self.habits.in_flight) = (30 * MS, 16);
            (self.habits.passive, self.habits.governs) =
                (r.between(850, 1_000) as u32, r.between(80, 250) as u32);
            (self.habits.members, self.habits.moves) = (20, 0);
        }
        let mut at = SECOND + r.below(SECOND);
        while at < self.ends {
            let (gateway, node) = (gateway(r, self), node(r, self));
            let next = (node + 1 + r.below(u64::from(self.nodes) - 1) as u8) % self.nodes;
            let room = format!("room{}", r.index(self.rooms));
            let slot = slot_of(&room, SlotCount::DEFAULT).0 & (self.slots as u16 - 1);
            let mut plan = |at, lasts, fault| self.faults.push(Planned { at, lasts, fault });
            plan(at, MS, Fault::Pin { slot, node });
            at += r.between(300 * MS, SECOND);
            // Shorter than what an end of a link takes for its end.
            let lasts = r.between(SECOND, 2_400 * MS);
            plan(at, lasts, Fault::CutLink { gateway, node, directions: [false, true] });
            if moves {
                // Late enough for something to be said into the cut.
                plan(at + r.between(20 * MS, lasts / 2), MS, Fault::Pin { slot, node: next });
            }
            at += lasts + r.exponential(SECOND / 2);
        }
    }

    /// In a fifth of the seeds, what a fence read has found is told late, and an owner is taken over that goes on serving.
    ///
    /// It has lost its lease, and a gateway that sends to it does not learn who came after it. So fence reads that began
    /// before the fence are answered when others have opened its rooms: what it has stored since is off their chains, and
    /// none of these reads may let it be said.
    fn slow_fences(&mut self, seed: u64) {
        let mut random = Random::new(seed, 97);
        let r = &mut random;
        if !r.one_in(5) {
            return;
        }
        self.weather.fence_lag = r.between(50 * MS, 400 * MS);
        (self.weather.timeout, self.answer_within_ms) = (SECOND, 10_000);
        self.ttl = SECOND;
        (self.habits.pace, self.habits.in_flight) = (20 * MS, 16);
        let mut at = SECOND + r.below(SECOND / 2);
        while at < self.ends {
            // Past the end of the lease and what others take to claim.
            let lasts = self.ttl + r.between(SECOND, 2 * SECOND);
            let (gateway, node) = (gateway(r, self), node(r, self));
            for who in [Who::Node(node), Who::Gateway(gateway)] {
                self.faults.push(Planned { at, lasts, fault: Fault::CutEtcd(who) });
            }
            at += lasts + r.exponential(SECOND / 2);
        }
    }

    /// In a third of the seeds pages come on a stream of their own, as on the links between processes.
    fn slow_pages(&mut self, seed: u64) {
        let mut random = Random::new(seed, 96);
        if random.one_in(3) {
            self.page_lag = Some([0, 2 * MS, 20 * MS, 300 * MS][random.index(4)]);
        }
    }

    /// Rare: once in sixteen seeds etcd comes back from an old snapshot.
    fn restore(&mut self, seed: u64) {
        let mut random = Random::new(seed, 99);
        if !random.one_in(16) {
            return;
        }
        let snapshot = random.between(SECOND, self.ends / 2);
        let restore = random.between(snapshot, self.ends * 3 / 4);
        self.faults.push(Planned { at: snapshot, lasts: MS, fault: Fault::EtcdSnapshot });
        let lasts = random.between(SECOND, 3 * SECOND);
        self.faults.push(Planned { at: restore, lasts, fault: Fault::EtcdRestore });
    }

    /// A run in which nothing goes wrong.
    pub fn calm(seed: u64) -> Self {
        let mut plan = Self::new(seed, Mode::Safety);
        plan.faults.clear();
        plan.weather = Weather { slow: 0, lost: 0, mute: 0, refused: 0, fence_lag: 0, ..plan.weather };
        (plan.link_resets, plan.etcd_unknown, plan.watch_lag, plan.drift) = (0, 0, 0, 0);
        plan
    }

    /// Names of the rates of the weather, each of which [`Self::without_rate`] takes out.
    pub const RATES: &[&str] = &[
        "slow replicas",
        "lost writes",
        "lost answers",
        "refused writes",
        "slow fence reads",
        "pages apart",
        "link resets",
        "unknown transactions",
        "lagging watches",
        "clock drift",
        "history",
        "marks",
        "members",
        "moves",
        "switches",
        "governs",
        "retries of acked",
    ];

    pub fn without_rate(&mut self, rate: &str) {
        match rate {
            "slow replicas" => self.weather.slow = 0,
            "lost writes" => self.weather.lost = 0,
            "lost answers" => self.weather.mute = 0,
            "refused writes" => self.weather.refused = 0,
            "slow fence reads" => self.weather.fence_lag = 0,
            "pages apart" => self.page_lag = None,
            "link resets" => self.link_resets = 0,
            "unknown transactions" => self.etcd_unknown = 0,
            "lagging watches" => self.watch_lag = 0,
            "clock drift" => self.drift = 0,
            "history" => self.habits.history = 0,
            "marks" => self.habits.marks = 0,
            "members" => self.habits.members = 0,
            "moves" => self.habits.moves = 0,
            "switches" => self.habits.switches = 0,
            "governs" => self.habits.governs = 0,
            "retries of acked" => self.habits.retries_of_acked = 0,
            other => panic!("no rate is called {other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_a_function_of_its_seed() {
        for seed in 0..50 {
            let (one, other) = (Plan::new(seed, Mode::Safety), Plan::new(seed, Mode::Safety));
            assert_eq!(one.faults, other.faults);
            assert!(one.faults.windows(2).all(|pair| pair[0].at <= pair[1].at));
        }
    }

    #[test]
    fn every_kind_and_every_rate_comes_up() {
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..300 {
            kinds.extend(Plan::new(seed, Mode::Safety).faults.iter().map(|planned| planned.fault.kind()));
        }
        assert_eq!(kinds.len(), KINDS.len() + 2, "{kinds:?}");
        let mut plan = Plan::new(1, Mode::Safety);
        for rate in Plan::RATES {
            plan.without_rate(rate);
        }
        assert_eq!((plan.weather.lost, plan.drift, plan.habits.members), (0, 0, 0));
    }
}
