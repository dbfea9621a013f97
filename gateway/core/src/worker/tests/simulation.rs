//! Everything at once, at random, from a seed: sockets that stall, links that drop and break, owners that follow each
//! other, members that come and go, clients that retry. Each client checks what it reads against the owners' logs as it reads it; in the end, when all has
//! healed, everybody must have all that is theirs.

use std::collections::{HashMap, HashSet, VecDeque};

use banyan_proto::codes::{Code, Verdict};
use banyan_proto::frame::Format;
use banyan_proto::id::{Origin, SlotId};
use banyan_proto::v1;
use banyan_proto::v1::client_frame::Command;
use banyan_proto::v1::event::Kind;
use banyan_proto::v1::server_frame::Body;

use super::super::Options;
use super::world::{Got, LINKS, Random, SLOTS, World, options, send_of, slot_of, subscribe_of, words};

/// What every test run tries; `BANYAN_SEEDS` tries more.
const SEEDS: u64 = 250;

const USERS: [&str; 4] = ["ann", "bob", "cyd", "dan"];
const ROOMS: [&str; 4] = ["one", "two", "three", "four"];

/// What a client knows of one room.
#[derive(Debug, Clone)]
struct View {
    live: bool,
    /// Live: the next seq to come. Passive: the last head.
    next: u64,
}

/// One client, judging what it reads.
#[derive(Debug, Default)]
struct Judge {
    user: usize,
    authenticated: bool,
    views: HashMap<String, View>,
    /// What is asked for and not answered: the command by its id.
    open: HashMap<u64, Command>,
    /// Subscribes that are pending, oldest first; whether they are passive.
    pending: HashMap<String, VecDeque<bool>>,
    /// Subscribes that an unsubscribe behind them has taken back: the id, and the room.
    cancelled: HashSet<(u64, String)>,
    /// Tries of each send on this connection.
    tries: HashMap<(String, String), usize>,
    closed: bool,
    /// Sends that were refused for good.
    refused: HashSet<(String, String)>,
}

impl Judge {
    fn read(&mut self, w: &World, got: Got, origin: Option<Origin>) -> Result<(), String> {
        if self.closed {
            return Err("something behind a close".to_owned());
        }
        let frame = match got {
            Got::Ping | Got::Pong => return Ok(()),
            Got::Close(_) => {
                self.closed = true;
                return Ok(());
            }
            Got::Frame(frame) => frame,
        };
        let command = match frame.id {
            Some(id) => {
                Some(self.open.remove(&id).ok_or_else(|| format!("a reply to {id}, which was not owed"))?)
            }
            None => None,
        };
        let user = USERS[self.user];
        match (command, frame.body.ok_or("no body")?) {
            (Some(Command::Auth(_)), Body::Auth(_)) => self.authenticated = true,
            (Some(Command::Send(send)), Body::Send(sent)) => {
                let event = &w.owner.rooms[&sent.room].log[sent.seq as usize - 1].event;
                if event.client_msg_id.as_ref() != Some(&send.client_msg_id) || event.sender != user {
                    return Err(format!("told {} of {}, which is another's", sent.seq, sent.room));
                }
                if let Some(view) = self.views.get_mut(&sent.room).filter(|view| view.live) {
                    // Who gives a cursor up, or sets another, may be told at once.
                    let moves = self.pending.get(&sent.room).is_some_and(|pending| !pending.is_empty())
                        || self.open.values().any(|open| match open {
                            Command::Subscribe(asked) => {
                                asked.rooms.iter().any(|asked| asked.room == sent.room)
                            }
                            Command::Unsubscribe(rooms) => rooms.rooms.contains(&sent.room),
                            _ => false,
                        });
                    if sent.seq == view.next {
                        view.next += 1;
                    } else if sent.seq > view.next && !moves {
                        return Err(format!("a reply at {} before {}", sent.seq, view.next));
                    }
                }
            }
            (Some(Command::Subscribe(asked)), Body::Subscribe(reply)) => {
                for (asked, room) in asked.rooms.into_iter().zip(reply.rooms) {
                    if room.pending == Some(true)
                        && self.cancelled.contains(&(frame.id.unwrap_or(0), room.room.clone()))
                    {
                        continue;
                    }
                    if room.pending == Some(true) {
                        self.pending
                            .entry(room.room.clone())
                            .or_default()
                            .push_back(asked.mode() == v1::Mode::Passive);
                    } else if !self.cancelled.contains(&(frame.id.unwrap_or(0), room.room.clone())) {
                        self.subscribed(&room, asked.mode() == v1::Mode::Passive, asked.after)?;
                    }
                }
            }
            (Some(Command::Unsubscribe(rooms)), Body::Unsubscribe(_)) => {
                for (id, open) in self.open.iter().filter(|(id, _)| Some(**id) < frame.id) {
                    let Command::Subscribe(asked) = open else { continue };
                    let back = asked.rooms.iter().filter(|asked| rooms.rooms.contains(&asked.room));
                    self.cancelled.extend(back.map(|asked| (*id, asked.room.clone())));
                }
                for room in rooms.rooms {
                    self.views.remove(&room);
                    self.pending.remove(&room);
                }
            }
            (Some(Command::Send(send)), Body::Error(error)) => {
                if Code::try_from(error.code).is_ok_and(|code| code.verdict() == Verdict::Definite) {
                    self.refused.insert((send.room, send.client_msg_id));
                }
            }
            (Some(Command::Leave(_)), Body::Leave(_)) | (Some(_), Body::Error(_)) => {}
            (None, Body::Subscribed(room)) => {
                let passive = self.pending.get_mut(&room.room).and_then(VecDeque::pop_front);
                let passive = passive.ok_or_else(|| format!("{} was not pending", room.room))?;
                self.subscribed(&room, passive, None)?;
            }
            (None, Body::Event(event)) => {
                let view = self.views.get_mut(&event.room).ok_or("an event of a room not subscribed")?;
                let room = &w.owner.rooms[&event.room];
                if !view.live || event.seq != view.next {
                    return Err(format!("event {} of {}, expected {}", event.seq, event.room, view.next));
                }
                if room.log[event.seq as usize - 1].event != event {
                    return Err(format!("event {} of {} is another", event.seq, event.room));
                }
                if !room.may_see(user, event.seq) {
                    return Err(format!("event {} of {} is not for {user}", event.seq, event.room));
                }
                let mine = origin == Some(room.log[event.seq as usize - 1].origin);
                if mine
                    && let Some(msg) = &event.client_msg_id
                    && self.tries.get(&(event.room.clone(), msg.clone())) == Some(&1)
                    && self.open.values().any(|open| matches!(open, Command::Send(send) if send.client_msg_id == *msg && send.room == event.room))
                {
                    return Err(format!("event {} of {} is pushed and owed as a reply", event.seq, event.room));
                }
                view.next += 1;
            }
            (None, Body::Gap(gap)) => {
                let view = self.views.get_mut(&gap.room).ok_or("a gap of a room not subscribed")?;
                if !view.live || gap.from != view.next || gap.to < gap.from {
                    return Err(format!("gap {gap:?}, expected {}", view.next));
                }
                let room = &w.owner.rooms[&gap.room];
                let far = room.head() > gap.to + 900;
                if !far && (gap.from..=gap.to).any(|seq| seq > room.floor && room.may_see(user, seq)) {
                    return Err(format!("gap {gap:?} leaves out what {user} may see"));
                }
                view.next = gap.to + 1;
            }
            (None, Body::Head(head)) => {
                let view = self.views.get_mut(&head.room).ok_or("a head of a room not subscribed")?;
                if view.live || head.head <= view.next {
                    return Err(format!("head {head:?} after {}", view.next));
                }
                view.next = head.head;
            }
            (None, Body::Unsubscribed(gone)) => {
                let view = self.views.remove(&gone.room).ok_or("unsubscribed from what it was not")?;
                let stays = &w.owner.rooms[&gone.room].members[user];
                let ended = |stay: &super::world::Stay| stay.to == Some(view.next - 1);
                if view.live && !stays.iter().any(ended) {
                    return Err(format!("unsubscribed from {} at {}, stays {stays:?}", gone.room, view.next));
                }
            }
            (command, body) => return Err(format!("{body:?} to {command:?}")),
        }
        Ok(())
    }

    /// How it will read the room by a subscribe that is not answered yet.
    fn awaits(&self, room: &str) -> Option<v1::Mode> {
        let mut open = self.open.values().filter_map(|open| match open {
            Command::Subscribe(asked) => asked.rooms.iter().find(|asked| asked.room == room),
            _ => None,
        });
        let pending = self.pending.get(room).and_then(|pending| pending.front());
        let pending = pending.map(|passive| if *passive { v1::Mode::Passive } else { v1::Mode::Live });
        pending.or_else(|| open.next().map(|asked| asked.mode()))
    }

    fn subscribed(
        &mut self,
        room: &v1::SubscribedRoom,
        passive: bool,
        after: Option<u64>,
    ) -> Result<(), String> {
        if room.error.is_some() {
            return Ok(());
        }
        if let (false, Some(after), None) = (passive, after, room.reset) {
            let first = room.gap.as_ref().map_or(room.from, |gap| gap.from);
            if first != after + 1 {
                return Err(format!("asked above {after}, got {room:?}"));
            }
        }
        let next = if passive { room.head } else { room.from };
        self.views.insert(room.room.clone(), View { live: !passive, next });
        Ok(())
    }
}

struct Simulation {
    w: World,
    random: Random,
    judges: Vec<Judge>,
    /// How many different ones were sent.
    messages: u64,
    /// What each first try knew of its room, and how often it was tried by anybody.
    firsts: HashMap<(String, String), (Option<u64>, u64)>,
    log: Vec<String>,
}

impl Simulation {
    fn new(seed: u64, hash_seed: u64) -> Self {
        let mut random = Random::new(seed);
        for _ in 0..10 {
            random.below(2);
        }
        let ring_bytes = [300, 1_500, 1 << 20][random.below(3)];
        let rings_bytes = [4_000, 64 << 20][random.below(2)];
        let mut w = World::with(Options { ring_bytes, rings_bytes, seed: Some(hash_seed), ..options() });
        w.owner.page_events = [1, 3, 20, 500][random.below(4)];
        w.owner.answers_before_events = random.one_in(2);
        for room in ROOMS {
            w.room(room, &USERS, random.below(40) as u64);
            w.owner.room(room).counts_leaves = random.one_in(8);
        }
        w.follows = random.one_in(2);
        Self { w, random, judges: Vec::new(), messages: 0, firsts: HashMap::new(), log: Vec::new() }
    }

    fn connect(&mut self) {
        let format = Format::ALL[self.random.below(2)];
        let user = self.random.below(USERS.len());
        let c = self.w.connect(format);
        self.judges.push(Judge { user, ..Judge::default() });
        self.post(c, Command::Auth(v1::Auth { token: USERS[user].to_owned(), client: None }));
    }

    fn post(&mut self, c: usize, command: Command) {
        if !self.w.clients[c].alive || self.judges[c].open.len() > 50 {
            return;
        }
        let id = self.w.clients[c].next_id;
        // Noted before it is sent: the reply may come at once.
        self.judges[c].open.insert(id, command.clone());
        assert_eq!(self.w.post(c, command), id);
    }

    fn read(&mut self, c: usize, seed: u64) {
        let origin = self.w.clients[c].alive.then(|| {
            let key = self.w.worker.connections.key_of(self.w.clients[c].index)?;
            Some(self.w.worker.origin_of(key))
        });
        for got in self.w.take(c) {
            let text = words(&got);
            self.log.push(format!("  {c} ({}) reads {text}", USERS[self.judges[c].user]));
            if let Err(wrong) = self.judges[c].read(&self.w, got, origin.flatten()) {
                panic!("seed {seed}: client {c} reads {text}: {wrong}\n{}", self.story(c));
            }
        }
    }

    /// The last of what concerns this client.
    fn story(&self, c: usize) -> String {
        let (reads, does) = (format!("  {c} ("), format!("{c} ("));
        let of =
            |line: &&String| line.starts_with(&reads) || line.starts_with(&does) || line.contains(") - ");
        let mut lines: Vec<_> = self.log.iter().filter(of).rev().take(60).cloned().collect();
        lines.reverse();
        lines.join("\n")
    }

    fn step(&mut self) {
        let c = self.random.below(self.judges.len());
        let room = ROOMS[self.random.below(ROOMS.len())];
        let user = USERS[self.judges[c].user];
        let note = match self.random.below(22) {
            0 if self.judges.len() < 24 => {
                self.connect();
                "connects".to_owned()
            }
            1 if self.random.one_in(3) => {
                self.w.lose(c);
                "is lost".to_owned()
            }
            2..=4 => {
                let mode = if self.random.one_in(4) { v1::Mode::Passive } else { v1::Mode::Live };
                // Which of two pending ones a push has finished shows in nothing but its order; one may be given up.
                let mode = self.judges[c].awaits(room).unwrap_or(mode);
                let head = self.w.owner.room(room).head();
                let resume =
                    self.judges[c].views.get(room).filter(|view| view.live).map(|view| view.next - 1);
                let after = if self.random.one_in(2) { resume } else { None };
                let after = after.unwrap_or_else(|| self.random.below(head as usize + 1) as u64);
                // A member that is out has an older head: `after` may lie above it.
                self.post(c, subscribe_of(&[(room, Some(after), mode)]));
                format!("subscribes {room} above {after} {mode:?}")
            }
            5 => {
                self.post(c, Command::Unsubscribe(v1::Unsubscribe { rooms: vec![room.to_owned()] }));
                format!("unsubscribes {room}")
            }
            6..=9 => {
                // Every third one is another try of an earlier send.
                self.messages += u64::from(!self.random.one_in(3));
                let msg = format!("{user}-{}", self.messages);
                *self.judges[c].tries.entry((room.to_owned(), msg.clone())).or_default() += 1;
                let known = self.judges[c].views.get(room).map(|view| view.next - u64::from(view.live));
                let first = self.firsts.entry((room.to_owned(), msg.clone())).or_insert((known, 0));
                first.1 += 1;
                let since = first.0;
                let Command::Send(send) = send_of(room, &msg) else { unreachable!("a send") };
                self.post(c, Command::Send(v1::Send { since, ..send }));
                format!("sends {msg} to {room} since {since:?}")
            }
            10..=11 => {
                let count = self.random.below(12) as u64;
                self.w.say(room, count);
                format!("- {count} events in {room}")
            }
            12 => {
                let member = USERS[self.random.below(USERS.len())];
                let stays = self.w.owner.room(room).members[member].clone();
                if stays.last().is_some_and(|stay| stay.to.is_some()) {
                    self.w.owner.bring_in(room, member);
                    format!("- {member} comes back to {room}")
                } else if self.random.one_in(3) {
                    self.w.owner.take_out(room, member, None);
                    format!("- {member} leaves {room}")
                } else {
                    self.w.owner.take_out(room, member, Some("admin"));
                    format!("- {member} is removed from {room}")
                }
            }
            13 => {
                self.w.owner.drops_events = self.random.one_in(2);
                for room in ROOMS {
                    self.w.owner.beacon(room);
                }
                "- beacons".to_owned()
            }
            14 if self.random.one_in(2) => {
                // What is late keeps its order.
                self.w.owner.stalled = !self.w.owner.stalled;
                "- the link stalls or flows".to_owned()
            }
            14 => {
                self.w.owner.fails_pulls = self.random.one_in(3);
                "- pulls fail or not".to_owned()
            }
            15..=17 if self.w.clients[c].alive => {
                let space = self.random.below(300);
                if self.random.one_in(2) {
                    self.w.clog(c, space);
                } else {
                    self.w.unclog(c, if self.random.one_in(2) { usize::MAX } else { space });
                }
                "stalls or reads".to_owned()
            }
            18 => {
                let ms = self.random.below(1_500) as u64;
                self.w.pass(ms);
                format!("- {ms} ms pass")
            }
            19 => {
                let kind = Kind::RoomChanged(v1::RoomChanged::default());
                self.w.owner.append(room, "admin", None, Origin(0), kind);
                "- a room changes".to_owned()
            }
            20 => self.owners(slot_of(room)),
            21 if self.random.one_in(4) => {
                let head = self.w.owner.room(room).head() as usize;
                let floor = self.random.below(head / 2 + 1) as u64;
                // Retention counts in days: what it takes has come over the link long since, removals too.
                let here = self.w.worker.room_ids.get(room).and_then(|room| self.w.worker.rooms.get(*room));
                let floor = here.map_or(floor, |room| floor.min(room.applied.0));
                let entry = self.w.owner.room(room);
                entry.floor = entry.floor.max(floor);
                format!("- {room} expires up to {floor}")
            }
            _ => "-".to_owned(),
        };
        self.log.push(format!("{c} ({user}) {note}"));
    }
}

impl Simulation {
    /// Something happens to the owner of a slot, or to the way to it.
    fn owners(&mut self, slot: u16) -> String {
        let link = self.random.below(LINKS);
        match self.random.below(8) {
            0 => {
                self.w.owner.slots[usize::from(slot)].epoch += 1;
                format!("- slot {slot}: the owner has gone on under a new epoch")
            }
            1 | 2 => {
                // One that gives the slot away and has it back before it is heard of both may take the second of two
                // commands and not the first: that is not promised.
                let known = self.w.worker.routes.link(slot).map(usize::from);
                let link = if known == Some(link) { (link + 1) % LINKS } else { link };
                let (late, told) = (self.random.one_in(2), self.random.one_in(2));
                self.w.owner.hand_over(slot, link, late);
                self.w.owner.slots[usize::from(slot)].serves = self.random.one_in(2);
                if told {
                    self.w.tell_slot(slot);
                }
                format!("- slot {slot}: a new owner, late {late}, told {told}")
            }
            3 => {
                let epoch = self.w.worker.routes.epoch(slot);
                self.w.worker.route_changed(self.w.now, SlotId(slot), epoch, None);
                format!("- slot {slot}: no owner")
            }
            4 => {
                self.w.lose_link(link);
                format!("- link {link} is lost")
            }
            5 => {
                let count = self.random.below(self.w.owner.late.len() + 1);
                for message in self.w.owner.late.drain(..count).collect::<Vec<_>>() {
                    self.w.worker.shard_said(self.w.now, message);
                }
                format!("- {count} late words")
            }
            _ => {
                for slot in 0..SLOTS {
                    self.w.owner.slots[usize::from(slot)].serves = true;
                    self.w.tell_slot(slot);
                }
                "- every slot has an owner".to_owned()
            }
        }
    }

    /// Each message once, and what a connection has tried once only in the order in which it was sent.
    fn check_logs(&self, seed: u64) {
        for (name, room) in &self.w.owner.rooms {
            let mut seen = HashSet::new();
            let mut last: HashMap<Origin, u64> = HashMap::new();
            for event in &room.log {
                let Some(msg) = &event.event.client_msg_id else { continue };
                let sender = &event.event.sender;
                let once = seen.insert((sender.clone(), msg.clone()));
                assert!(
                    once,
                    "seed {seed}: {msg} of {sender} stands twice in {name}\n{}",
                    self.log.join("\n")
                );
                if self.firsts.get(&(name.clone(), msg.clone())).is_none_or(|first| first.1 != 1) {
                    continue;
                }
                let refused =
                    self.judges.iter().any(|judge| judge.refused.contains(&(name.clone(), msg.clone())));
                assert!(
                    !refused,
                    "seed {seed}: {msg} was refused and stands in {name}\n{}",
                    self.log.join("\n")
                );
                // Who was out for a while may have been refused once, and not the next time.
                if room.members[sender].len() > 1 || room.members[sender][0].to.is_some() {
                    continue;
                }
                let number =
                    msg.rsplit('-').next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) + 1;
                let before = last.insert(event.origin, number).unwrap_or(0);
                assert!(
                    before < number,
                    "seed {seed}: {msg} stands behind {before} in {name}\n{}",
                    self.log.join("\n")
                );
            }
        }
    }
}

fn simulate(seed: u64, steps: usize, hash_seed: u64) -> Vec<String> {
    let mut sim = Simulation::new(seed, hash_seed);
    for _ in 0..6 {
        sim.connect();
    }
    for _ in 0..steps {
        sim.step();
        // Sometimes much happens between two turns of the worker, sometimes only half a turn.
        match sim.random.below(4) {
            0 => {}
            1 => {
                sim.w.effects();
                sim.w.exchange();
                sim.w.worker.sweep(sim.w.now, &mut sim.w.sockets);
                sim.w.effects();
                sim.w.check();
            }
            _ => sim.w.run(),
        }
        for c in 0..sim.judges.len() {
            sim.read(c, seed);
        }
    }
    // All heals.
    sim.w.owner.drops_events = false;
    sim.w.owner.fails_pulls = false;
    sim.w.owner.stalled = false;
    for slot in 0..SLOTS {
        sim.w.owner.slots[usize::from(slot)].serves = true;
        sim.w.tell_slot(slot);
    }
    sim.w.hear_late();
    for room in ROOMS {
        sim.w.say(room, 1);
    }
    for c in 0..sim.judges.len() {
        if sim.w.clients[c].alive {
            sim.w.unclog(c, usize::MAX);
        }
    }
    sim.w.pass(8_000);
    for c in 0..sim.judges.len() {
        sim.read(c, seed);
        let (judge, client) = (&sim.judges[c], &sim.w.clients[c]);
        if !client.alive || judge.closed {
            continue;
        }
        let index = client.index;
        assert!(judge.open.is_empty(), "seed {seed}: client {c} waits for {:?}", judge.open);
        let pending = judge.pending.values().any(|pending| !pending.is_empty());
        assert!(!pending, "seed {seed}: client {c} waits for {:?}", judge.pending);
        for (room, view) in &judge.views {
            let head = sim.w.owner.rooms[room].head();
            let want = if view.live { head + 1 } else { head };
            assert_eq!(view.next, want, "seed {seed}: client {c} in {room}\n{}", sim.story(c));
        }
        let cursors = sim.w.worker.connections.get(index).unwrap().rooms.len();
        assert_eq!(cursors, judge.views.len(), "seed {seed}: client {c}");
    }
    sim.check_logs(seed);
    sim.w.end();
    sim.log
}

#[test]
fn everybody_gets_what_is_theirs() {
    let seeds = std::env::var("BANYAN_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    for seed in 0..seeds {
        simulate(seed, 200, 1);
    }
}

#[test]
fn no_order_of_a_hash_map_shows() {
    for seed in 0..10 {
        assert_eq!(simulate(seed, 200, 1), simulate(seed, 200, 2), "seed {seed}");
    }
}
