//! Good histories at random: what clients see of a server that keeps every promise.
//!
//! Owns: a tiny model of rooms, members and devices that writes down what the devices do and are told. Replies get lost,
//! devices come and go, owners change, members are removed and come back, some read passively.
//! Always holds: one seed, one history; no promise is broken in it. So whatever a check finds there is a false alarm, and
//! what it does not find after a change to it is a hole in the check.
//! Does not: resemble the server's code or its timing.

use crate::facts::{Fault, FaultKind, Fence, How, Liveness, SlotChange};
use crate::history::{Ask, Event, Gap, History, Kind, Marks, Mode, Range, Record, Start, Subscribed, What};
use crate::id::{
    Call, Connection, Content, Epoch, Incarnation, Log, Message, Origin, Part, Room, Seq, Session, Slot,
    Time, UnixMs, User,
};
use crate::store::{MemberRow, Row, Store, StoredRoom, Written};
use crate::world::Map;

/// Most events below head that a subscription begins with.
const BEHIND: u64 = 1_000;

/// How a specimen is made.
#[derive(Debug, Clone, Copy)]
pub struct Specimen {
    pub seed: u64,
    /// About how many records it has.
    pub records: usize,
    pub rooms: u32,
    /// User 0 owns every room; each user has one device.
    pub users: u32,
}

impl Specimen {
    pub fn make(&self) -> History {
        let mut model = Model::new(self);
        while model.history.records.len() < self.records {
            model.act();
        }
        model.finish()
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

struct Place {
    rows: Vec<Row>,
    members: Vec<MemberRow>,
    twins: Map<(User, Message), Seq>,
    epoch: Epoch,
    incarnation: Incarnation,
}

struct Device {
    user: User,
    session: Session,
    on: Option<Connection>,
    call: u64,
    /// By room: what it was told up to, what it knows of the log, its subscription.
    last: Vec<Seq>,
    knows_log: Vec<bool>,
    cursors: Vec<Option<Reader>>,
    unsettled: Vec<Unsettled>,
}

struct Reader {
    mode: Mode,
    next: Seq,
    head: Seq,
    end: Option<Seq>,
    out: Vec<(Seq, Seq)>,
    /// Replies that wait for their place.
    replies: Vec<(Seq, Call, bool)>,
}

#[derive(Clone, Copy)]
struct Unsettled {
    room: u32,
    message: Message,
    since: Option<Seq>,
    content: Content,
}

struct Model {
    random: Random,
    history: History,
    rooms: Vec<Place>,
    devices: Vec<Device>,
    now: u64,
    connections: u32,
    messages: u32,
    incarnations: u128,
}

impl Model {
    fn new(of: &Specimen) -> Self {
        let mut model = Self {
            random: Random(of.seed),
            history: History::default(),
            rooms: Vec::new(),
            devices: Vec::new(),
            now: 0,
            connections: 0,
            messages: 0,
            incarnations: 0,
        };
        for user in 0..of.users.max(2) {
            let rooms = of.rooms as usize;
            model.history.sessions.push(User(user));
            model.devices.push(Device {
                user: User(user),
                session: Session(user),
                on: None,
                call: 0,
                last: vec![Seq(0); rooms],
                knows_log: vec![false; rooms],
                cursors: (0..rooms).map(|_| None).collect(),
                unsettled: Vec::new(),
            });
        }
        for room in 0..of.rooms {
            model.rooms.push(Place {
                rows: Vec::new(),
                members: Vec::new(),
                twins: Map::default(),
                epoch: Epoch(0),
                incarnation: Incarnation(0),
            });
            model.change_owner(room, How::Claim);
            model.append(room, User(0), None, Kind::Created, Content(0));
            for user in 1..of.users.max(2) {
                model.append(room, User(0), None, Kind::Joined(User(user)), Content(u64::from(user)));
            }
        }
        for device in 0..model.devices.len() {
            model.connect(device);
        }
        model
    }

    // ------------------------------------------------------------ the server

    fn head(&self, room: u32) -> Seq {
        Seq(self.rooms[room as usize].rows.len() as u64)
    }

    fn n_at(&self, room: u32, seq: Seq) -> u64 {
        match seq.0 {
            0 => 0,
            seq => self.rooms[room as usize].rows[seq as usize - 1].event.n,
        }
    }

    fn append(
        &mut self,
        room: u32,
        sender: User,
        message: Option<Message>,
        kind: Kind,
        content: Content,
    ) -> Seq {
        let head = self.head(room);
        let n = self.n_at(room, head) + u64::from(kind == Kind::Message);
        let seq = head.next();
        let joins_batch = self.random.below(4) == 0;
        let place = &mut self.rooms[room as usize];
        let last = place.rows.last().and_then(|row| row.written);
        let goes_on = last.filter(|last| joins_batch && last.epoch == place.epoch);
        let written = Written {
            epoch: place.epoch,
            part: Part(1),
            incarnation: place.incarnation,
            batch_first: goes_on.map_or(seq, |last| last.batch_first),
            origin: Origin(u64::from(sender.0)),
        };
        let event = Event { seq, n, at: UnixMs(self.now / 1_000), sender, message, content, kind };
        place.rows.push(Row { event, written: Some(written) });
        if let Some(message) = message {
            place.twins.insert((sender, message), seq);
        }
        if let Some(user) = kind.concerns(sender) {
            let at = place.members.iter().position(|row| row.user == user);
            let at = at.unwrap_or_else(|| {
                place.members.push(MemberRow {
                    user,
                    role: 0,
                    joined: Seq(0),
                    left: None,
                    out: Vec::new(),
                    changed: Seq(0),
                    marks: Marks::default(),
                });
                place.members.len() - 1
            });
            let row = &mut place.members[at];
            row.changed = seq;
            match kind {
                Kind::Left(_) | Kind::Removed(_) => (row.role, row.left) = (0, Some(seq)),
                _ => {
                    if let Some(left) = row.left.take() {
                        row.out.push((left, seq));
                        while row.out.len() > 32 {
                            let (_, end) = row.out.remove(1);
                            row.out[0].1 = end;
                        }
                    }
                    (row.role, row.joined) = (1, seq);
                }
            }
            if matches!(kind, Kind::Left(_) | Kind::Removed(_)) {
                for device in self.devices.iter_mut().filter(|device| device.user == user) {
                    if let Some(reader) = &mut device.cursors[room as usize] {
                        reader.end.get_or_insert(seq);
                    }
                }
            }
        }
        seq
    }

    fn change_owner(&mut self, room: u32, how: How) {
        self.incarnations += 1;
        let place = &mut self.rooms[room as usize];
        let old = place.incarnation;
        place.epoch = Epoch(place.epoch.0 + 1);
        place.incarnation = Incarnation(self.incarnations);
        let (at, epoch, owner) = (Time(self.now), place.epoch, place.incarnation);
        if how == How::Takeover {
            self.history.faults.push(Fault { at, kind: FaultKind::Kill });
            self.history.fences.push(Fence { at, incarnation: old });
            self.history.counted.fenced_utterances += 1;
            self.history.counted.unknown_outcomes += 1;
            self.history.counted.gap_repairs += 1;
        }
        self.history.slots.push(SlotChange { at, served: None, slot: Slot(room as u16), epoch, owner, how });
    }

    fn member(&self, room: u32, user: User) -> &MemberRow {
        let found = self.rooms[room as usize].members.iter().find(|row| row.user == user);
        found.unwrap_or(&self.rooms[room as usize].members[0])
    }

    /// What a user may see now: times out, and the last seq.
    fn view(&self, room: u32, user: User) -> (Vec<(Seq, Seq)>, Seq, Option<Seq>) {
        let row = self.member(room, user);
        let out = row.out.iter().map(|(left, joined)| (left.next(), joined.before())).filter(|(a, b)| a <= b);
        let head = self.head(room);
        (out.collect(), row.left.map_or(head, |left| left.min(head)), row.left)
    }

    // ------------------------------------------------------------ the clients

    fn record(&mut self, on: Connection, what: What) {
        self.now += 1 + self.random.below(2_000);
        self.history.records.push(Record { at: Time(self.now), on, what });
    }

    fn call(&mut self, device: usize) -> Call {
        self.devices[device].call += 1;
        Call(self.devices[device].call)
    }

    fn act(&mut self) {
        let device = self.random.below(self.devices.len() as u64) as usize;
        let room = self.random.below(self.rooms.len() as u64) as u32;
        let Some(on) = self.devices[device].on else {
            if self.random.below(4) == 0 {
                self.connect(device);
            }
            return;
        };
        match self.random.below(1_000) {
            0..=499 => {
                for _ in 0..=self.random.below(16) {
                    self.deliver(device, on, room);
                }
            }
            500..=699 => self.send(device, on, room),
            700..=779 => self.retry(device, on),
            780..=829 => self.history_page(device, on, room),
            830..=879 => self.mark(device, on, room),
            880..=899 => {
                self.record(on, What::End);
                self.disconnect(device);
            }
            900..=919 => self.subscribe(device, on, room),
            920..=929 => self.unsubscribe(device, on, room),
            930..=939 => self.move_member(room),
            940..=942 => self.change_owner(room, How::Takeover),
            943..=945 => self.change_owner(room, How::Handoff),
            946..=959 => self.summary(device, on, room),
            _ => {}
        }
    }

    fn connect(&mut self, device: usize) {
        let on = Connection(self.connections);
        self.connections += 1;
        self.devices[device].on = Some(on);
        self.devices[device].call = 0;
        let session = self.devices[device].session;
        self.record(on, What::Begin { session });
        for room in 0..self.rooms.len() as u32 {
            self.subscribe(device, on, room);
        }
    }

    fn disconnect(&mut self, device: usize) {
        let of = &mut self.devices[device];
        of.on = None;
        of.cursors.iter_mut().for_each(|cursor| *cursor = None);
    }

    fn subscribe(&mut self, device: usize, on: Connection, room: u32) {
        let user = self.devices[device].user;
        let passive = self.random.below(5) == 0;
        let mode = if passive { Mode::Passive } else { Mode::Live };
        let last = self.devices[device].last[room as usize];
        let log = self.devices[device].knows_log[room as usize].then_some(Log(u64::from(room) + 1));
        let start = match self.random.below(12) {
            0 => Start::Last(5),
            1 => Start::Unread,
            _ => Start::After { seq: last, log },
        };
        let call = self.call(device);
        self.record(on, What::Subscribe { call, room: Room(room), start, mode });
        let (out, upper, end) = self.view(room, user);
        let marks = self.member(room, user).marks;
        let wanted = match start {
            Start::After { seq, .. } => seq.0 + 1,
            Start::Last(n) => (upper.0 + 1).saturating_sub(u64::from(n)),
            Start::Unread => (marks.seen.0 + 1).max((upper.0 + 1).saturating_sub(50)),
        }
        .clamp(1, upper.0 + 1);
        let mut from = wanted.max((upper.0 + 1).saturating_sub(BEHIND));
        for (first, last) in &out {
            if (first.0..=last.0).contains(&from) {
                from = last.0 + 1;
            }
        }
        from = from.min(upper.0 + 1);
        let gap = (from > wanted && !passive).then(|| Gap { from: Seq(wanted), to: Seq(from - 1) });
        let from = if passive { upper.next() } else { Seq(from) };
        let reply = Subscribed {
            log: Log(u64::from(room) + 1),
            head: upper,
            n: self.n_at(room, upper),
            from,
            role: u8::from(end.is_none()),
            marks,
            gap,
            reset: false,
        };
        // What waited for its place in the old subscription is said before the new one begins.
        self.say_waiting(device, on, room);
        self.record(on, What::Subscribed { call, room: Room(room), reply: Box::new(reply) });
        let of = &mut self.devices[device];
        of.knows_log[room as usize] = true;
        if !passive {
            of.last[room as usize] = from.before();
        }
        of.cursors[room as usize] =
            Some(Reader { mode, next: from, head: upper, end, out, replies: Vec::new() });
    }

    fn unsubscribe(&mut self, device: usize, on: Connection, room: u32) {
        if self.devices[device].cursors[room as usize].is_none() {
            return;
        }
        let call = self.call(device);
        self.record(on, What::Unsubscribe { call, room: Room(room) });
        self.say_waiting(device, on, room);
        self.record(on, What::UnsubscribeDone { call, room: Room(room) });
        self.devices[device].cursors[room as usize] = None;
    }

    fn say_waiting(&mut self, device: usize, on: Connection, room: u32) {
        let Some(reader) = &mut self.devices[device].cursors[room as usize] else { return };
        for (seq, call, duplicate) in std::mem::take(&mut reader.replies) {
            self.acked(on, room, call, seq, duplicate);
        }
    }

    fn acked(&mut self, on: Connection, room: u32, call: Call, seq: Seq, duplicate: bool) {
        let at = self.rooms[room as usize].rows[seq.0 as usize - 1].event.at;
        self.record(on, What::Sent { call, seq, at, duplicate });
    }

    /// The next thing that the subscription has.
    fn deliver(&mut self, device: usize, on: Connection, room: u32) {
        let at = room as usize;
        let head = self.head(room);
        let Some(reader) = &mut self.devices[device].cursors[at] else { return };
        if reader.end.is_some_and(|end| reader.next > end || reader.mode == Mode::Passive) {
            self.record(on, What::Unsubscribed { room: Room(room), code: 123 });
            self.say_waiting(device, on, room);
            self.devices[device].cursors[at] = None;
            return;
        }
        if reader.mode == Mode::Passive {
            if reader.head < head {
                reader.head = head;
                let n = self.n_at(room, head);
                self.record(on, What::Head { room: Room(room), head, n });
            }
            return;
        }
        if reader.next > head {
            return;
        }
        let next = reader.next;
        if let Some((_, last)) =
            reader.out.iter().find(|(first, last)| *first <= next && next <= *last).copied()
        {
            reader.next = last.next();
            self.devices[device].last[at] = last;
            self.record(on, What::Gap { room: Room(room), from: next, to: last, expired: false });
            return;
        }
        reader.next = next.next();
        let reply = reader.replies.iter().position(|(seq, ..)| *seq == next);
        let reply = reply.map(|reply| reader.replies.swap_remove(reply));
        self.devices[device].last[at] = next;
        match reply {
            Some((seq, call, duplicate)) => self.acked(on, room, call, seq, duplicate),
            None => {
                let event = self.rooms[at].rows[next.0 as usize - 1].event;
                self.record(on, What::Event { room: Room(room), event });
            }
        }
    }

    fn send(&mut self, device: usize, on: Connection, room: u32) {
        let message = Message(self.messages);
        self.messages += 1;
        let content = Content(self.random.next());
        let known = self.devices[device].last[room as usize];
        let since = (self.random.below(4) != 0).then_some(known);
        self.attempt(device, on, Unsettled { room, message, since, content });
    }

    fn retry(&mut self, device: usize, on: Connection) {
        let count = self.devices[device].unsettled.len() as u64;
        if count > 0 {
            let at = self.random.below(count) as usize;
            let what = self.devices[device].unsettled.swap_remove(at);
            self.attempt(device, on, what);
        }
    }

    fn attempt(&mut self, device: usize, on: Connection, what: Unsettled) {
        let Unsettled { room, message, since, content } = what;
        let user = self.devices[device].user;
        let call = self.call(device);
        self.record(on, What::Send { call, room: Room(room), message, since, content });
        let twin = self.rooms[room as usize].twins.get(&(user, message)).copied();
        let is_member = self.member(room, user).role != 0;
        let fate = self.random.below(100);
        if fate < 4 {
            // Nothing of it arrives.
            self.record(on, What::Refused { call, room: None, code: 108 });
            self.devices[device].unsettled.push(what);
            return;
        }
        if fate < 6 && twin.is_none() {
            self.record(on, What::Refused { call, room: None, code: 112 });
            self.devices[device].unsettled.push(what);
            return;
        }
        if twin.is_none() && !is_member {
            self.record(on, What::Refused { call, room: None, code: 123 });
            return;
        }
        let duplicate = twin.is_some();
        let seq = twin.unwrap_or_else(|| self.append(room, user, Some(message), Kind::Message, content));
        if fate < 12 {
            // It is stored, and the reply is lost.
            self.record(on, What::Refused { call, room: None, code: 108 });
            self.devices[device].unsettled.push(what);
        } else if fate < 14 {
            self.record(on, What::End);
            self.disconnect(device);
            self.devices[device].unsettled.push(what);
        } else {
            let place = match &mut self.devices[device].cursors[room as usize] {
                Some(reader) if reader.mode == Mode::Live && reader.next <= seq => Some(&mut reader.replies),
                _ => None,
            };
            match place {
                Some(replies) => replies.push((seq, call, duplicate)),
                None => self.acked(on, room, call, seq, duplicate),
            }
        }
    }

    fn history_page(&mut self, device: usize, on: Connection, room: u32) {
        let user = self.devices[device].user;
        let limit = 1 + self.random.below(20);
        let (out, upper, _) = self.view(room, user);
        let bound = Seq(self.random.below(upper.0 + 2));
        let range = match self.random.below(3) {
            0 => Range::After(bound),
            1 => Range::Before(bound),
            _ => Range::Newest,
        };
        let call = self.call(device);
        self.record(on, What::History { call, room: Room(room), range, limit: limit as u32 });
        let hides = |seq: Seq| out.iter().copied().find(|(first, last)| *first <= seq && seq <= *last);
        let (mut gap, mut run, mut more) = (None, None, false);
        if let Range::After(seq) = range {
            let mut low = seq.next();
            if let Some((_, last)) = hides(low) {
                gap = Some((low, last.min(upper)));
                low = last.min(upper).next();
            }
            if low <= upper {
                let wall =
                    out.iter().find(|(first, _)| *first > low).map_or(upper, |(first, _)| first.before());
                let high = wall.min(upper).min(Seq(low.0 + limit - 1));
                more = high < upper;
                run = Some((low, high));
            }
        } else {
            let mut high = match range {
                Range::Before(seq) => seq.before().min(upper),
                _ => upper,
            };
            if let Some((first, _)) = hides(high) {
                gap = Some((first, high));
                high = first.before();
            }
            if high > Seq(0) {
                let wall =
                    out.iter().rev().find(|(_, last)| *last < high).map_or(Seq(1), |(_, last)| last.next());
                let low = wall.max(Seq((high.0 + 1).saturating_sub(limit)));
                more = low > Seq(1);
                run = Some((low, high));
            }
        }
        if let Some((low, high)) = run {
            for seq in low.0..=high.0 {
                let event = self.rooms[room as usize].rows[seq as usize - 1].event;
                self.record(on, What::PageEvent { call, event });
            }
        }
        if let Some((from, to)) = gap {
            self.record(on, What::PageGap { call, from, to, expired: false });
        }
        self.record(on, What::Page { call, head: upper, log: Log(u64::from(room) + 1), more });
    }

    fn summary(&mut self, device: usize, on: Connection, room: u32) {
        let call = self.call(device);
        self.record(on, What::Ask { call, room: Room(room), about: Ask::Summary });
        let (_, upper, _) = self.view(room, self.devices[device].user);
        self.record(on, What::Answered { call, head: Some(upper) });
    }

    fn mark(&mut self, device: usize, on: Connection, room: u32) {
        let user = self.devices[device].user;
        let seen = self.devices[device].last[room as usize];
        let (_, upper, _) = self.view(room, user);
        if seen > upper || seen == Seq(0) {
            return;
        }
        let call = self.call(device);
        self.record(on, What::Mark { call, room: Room(room), delivered: None, seen: Some(seen) });
        let n = self.n_at(room, seen);
        let at = self.rooms[room as usize].members.iter().position(|row| row.user == user).unwrap_or(0);
        let row = &mut self.rooms[room as usize].members[at];
        row.marks.delivered = row.marks.delivered.max(seen);
        if seen > row.marks.seen {
            (row.marks.seen, row.marks.seen_n) = (seen, n);
        }
        let marks = row.marks;
        self.record(on, What::Marked { call, marks });
        for other in 0..self.devices.len() {
            if let Some(to) = self.devices[other].on
                && self.random.below(3) == 0
                && self.devices[other].cursors[room as usize].is_some()
            {
                let (delivered, seen) = (marks.delivered, marks.seen);
                self.record(to, What::Marks { room: Room(room), user, delivered, seen });
            }
        }
    }

    /// Somebody other than the owner goes or comes back.
    fn move_member(&mut self, room: u32) {
        let Some(on) = self.devices[0].on else { return };
        let user = User(1 + self.random.below(self.devices.len() as u64 - 1) as u32);
        let is_member = self.member(room, user).role != 0;
        let about = if is_member { Ask::Remove(user) } else { Ask::Add(user) };
        let call = self.call(0);
        self.record(on, What::Ask { call, room: Room(room), about });
        let kind = if is_member { Kind::Removed(user) } else { Kind::Joined(user) };
        self.append(room, User(0), None, kind, Content(u64::from(user.0)));
        self.record(on, What::Answered { call, head: None });
    }

    /// All heals: everybody is back, every room takes a send, everything is told.
    fn finish(mut self) -> History {
        let healed = Time(self.now);
        let rooms = self.rooms.len() as u32;
        for device in 0..self.devices.len() {
            let on = match self.devices[device].on {
                Some(on) => on,
                None => {
                    self.connect(device);
                    self.devices[device].on.unwrap_or_default()
                }
            };
            for room in 0..rooms {
                if self.devices[device].cursors[room as usize].is_none() {
                    self.subscribe(device, on, room);
                }
            }
        }
        let owner = self.devices[0].on.unwrap_or_default();
        for room in 0..rooms {
            let message = Message(self.messages);
            self.messages += 1;
            let (content, since) = (Content(self.random.next()), Some(self.devices[0].last[room as usize]));
            let call = self.call(0);
            self.record(owner, What::Send { call, room: Room(room), message, since, content });
            let seq = self.append(room, User(0), Some(message), Kind::Message, content);
            match &mut self.devices[0].cursors[room as usize] {
                Some(reader) if reader.mode == Mode::Live => reader.replies.push((seq, call, false)),
                _ => self.acked(owner, room, call, seq, false),
            }
        }
        let mut subscribers = Vec::new();
        for device in 0..self.devices.len() {
            for room in 0..rooms {
                let (session, on) =
                    (self.devices[device].session, self.devices[device].on.unwrap_or_default());
                subscribers.push((session, Room(room)));
                let mut begins_anew = 3_u32;
                for _ in 0..2 * self.head(room).0 + 8 {
                    self.deliver(device, on, room);
                    // Who was removed and has been there again since then begins anew.
                    let left = self.member(room, self.devices[device].user).left;
                    let last = self.devices[device].last[room as usize];
                    if self.devices[device].cursors[room as usize].is_none()
                        && left.is_none_or(|left| last < left && begins_anew > 0)
                    {
                        begins_anew = begins_anew.saturating_sub(1);
                        self.subscribe(device, on, room);
                    }
                }
            }
        }
        self.history.liveness = Some(Liveness {
            healed,
            deadline: Time(self.now),
            rooms: (0..rooms).map(Room).collect(),
            subscribers,
            settled: true,
        });
        let stored = (0..rooms)
            .zip(&self.rooms)
            .map(|(room, place)| StoredRoom {
                log: Some(Log(u64::from(room) + 1)),
                head: Some(Seq(place.rows.len() as u64)),
                rows: place.rows.clone(),
                members: Some(place.members.clone()),
                ..StoredRoom::new(Room(room), Slot(room as u16))
            })
            .collect();
        self.history.store = Some(Store { rooms: stored });
        self.history.counted.unknown_outcomes += 1;
        self.history
    }
}
