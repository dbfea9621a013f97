//! A worker between sockets, owners and a clock that the test moves: every party but the worker is a model.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use banyan_proto::codes::Code;
use banyan_proto::event::LoggedEvent;
use banyan_proto::frame::Format;
use banyan_proto::id::{Epoch, LogId, Origin, RoomId, Seq, SlotId, UnixMs, UserId};
use banyan_proto::link::{
    Admission, Answer, FromShard, Page, Person, RoomCall, RoomCommand, Ticket, ToShard,
};
use banyan_proto::v1;
use banyan_proto::v1::client_frame::Command;
use banyan_proto::v1::event::Kind;
use banyan_proto::v1::server_frame::Body;
use prost::Message as _;

use super::super::{Effect, Identity, Now, Options, Sent, Wire, Worker};
use crate::bucket::{Buckets, Rate};
use crate::command;
use crate::connection::{Phase, Place};
use crate::room::{CursorState, PullState, side_of};
use crate::slab::Key;
use crate::ws::{client, encode};

/// Marsaglia's xorshift: repeatable from a seed that a failure prints.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % end as u64) as usize
    }

    /// True once in `n`.
    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

// ---------------------------------------------------------------- sockets

#[derive(Debug)]
pub(super) struct Socket {
    /// Bytes that it takes before it is full.
    pub(super) space: usize,
    /// It has said that it is full, and has not become writable since.
    pub(super) full: bool,
    pub(super) broken: bool,
    pub(super) bytes: Vec<u8>,
    pub(super) sends: usize,
}

#[derive(Debug, Default)]
pub(super) struct Sockets {
    pub(super) open: HashMap<u32, Socket>,
    /// Order of the sends, by connection.
    pub(super) order: Vec<u32>,
}

impl Wire for Sockets {
    fn send(&mut self, connection: u32, bytes: &[u8]) -> Sent {
        let socket = self.open.get_mut(&connection).expect("a send to a socket that is gone");
        assert!(!socket.full, "a send to a full socket");
        assert!(!bytes.is_empty(), "a send of nothing");
        socket.sends += 1;
        self.order.push(connection);
        if socket.broken {
            return Sent::Broken;
        }
        let taken = socket.space.min(bytes.len());
        socket.bytes.extend_from_slice(&bytes[..taken]);
        socket.space -= if socket.space == usize::MAX { 0 } else { taken };
        socket.full = taken < bytes.len();
        if taken == 0 { Sent::Full } else { Sent::Bytes(taken) }
    }
}

// ---------------------------------------------------------------- the owners of all rooms

pub(super) const SLOTS: u16 = 8;
pub(super) const LINKS: usize = 3;

/// Rooms of other lengths live in other slots; `~ann` in that of `rrrr`.
pub(super) fn slot_of(room: &str) -> u16 {
    room.bytes().map(u16::from).sum::<u16>() % SLOTS
}

#[derive(Debug, Clone, Copy)]
pub(super) struct ModelSlot {
    pub(super) epoch: u64,
    pub(super) link: usize,
    /// Its owner takes questions.
    pub(super) serves: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stay {
    pub(super) from: u64,
    /// The seq at which it ended.
    pub(super) to: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct ModelRoom {
    pub(super) log: Vec<Arc<LoggedEvent>>,
    pub(super) floor: u64,
    pub(super) members: HashMap<String, Vec<Stay>>,
    pub(super) interested: bool,
    /// Leaves are counted, not events.
    pub(super) counts_leaves: bool,
    sent: HashMap<(String, String), u64>,
}

impl ModelRoom {
    pub(super) fn head(&self) -> u64 {
        self.log.len() as u64
    }

    /// Whether this user may ever see this seq.
    pub(super) fn may_see(&self, user: &str, seq: u64) -> bool {
        let Some(stays) = self.members.get(user) else { return false };
        // Members read from seq 1, but for the times when they were out.
        let first = stays[0].to.is_none_or(|to| seq <= to);
        first || stays[1..].iter().any(|stay| seq >= stay.from && stay.to.is_none_or(|to| seq <= to))
    }

    fn is_member(&self, user: &str) -> bool {
        self.members.get(user).is_some_and(|stays| stays[stays.len() - 1].to.is_none())
    }

    fn admission(&self, user: &str, epoch: Epoch) -> Option<Admission> {
        let stays = self.members.get(user)?;
        let end = stays[stays.len() - 1].to;
        let head = end.unwrap_or_else(|| self.head());
        Some(Admission {
            epoch,
            log: LogId(7),
            kind: v1::RoomKind::Group,
            head: Seq(head),
            n: head,
            role: if end.is_some() { v1::Role::None } else { v1::Role::Member },
            delivered: Seq(0),
            seen: Seq(0),
            seen_n: 0,
            floor: Seq(self.floor),
            out: stays
                .windows(2)
                .filter_map(|pair| Some((Seq(pair[0].to? + 1), Seq(pair[1].from - 1))))
                .collect(),
            end: end.map(Seq),
            members: self.members.len() as u64,
        })
    }
}

#[derive(Debug)]
pub(super) struct Owner {
    pub(super) rooms: BTreeMap<String, ModelRoom>,
    /// What is on its way to the worker, in order.
    pub(super) link: VecDeque<FromShard>,
    pub(super) slots: Vec<ModelSlot>,
    /// `Moved` of those who own nothing of what they were asked, by their links.
    moves: VecDeque<(usize, FromShard)>,
    /// What earlier owners have said and nobody has heard yet, in order.
    pub(super) late: VecDeque<FromShard>,
    /// The slots of questions.
    tickets: HashMap<Ticket, u16>,
    pub(super) interests: Vec<String>,
    /// Every question that an owner has taken: link, and what it is.
    pub(super) taken: Vec<(usize, String)>,
    /// The link drops events instead of taking them.
    pub(super) drops_events: bool,
    /// Answers (and pages) wait here until the test lets them go.
    pub(super) held: Option<VecDeque<FromShard>>,
    pub(super) answers_before_events: bool,
    pub(super) fails_pulls: bool,
    /// What it says does not arrive for now.
    pub(super) stalled: bool,
    pub(super) page_events: u32,
    pub(super) pulls: Vec<(String, u64)>,
    pub(super) sends_seen: usize,
    pub(super) user_channel: Vec<String>,
    pub(super) uninterests: Vec<String>,
    pub(super) text: String,
}

impl Owner {
    pub(super) fn room(&mut self, room: &str) -> &mut ModelRoom {
        self.rooms.entry(room.to_owned()).or_default()
    }

    pub(super) fn slot(&mut self, room: &str) -> &mut ModelSlot {
        &mut self.slots[usize::from(slot_of(room))]
    }

    pub(super) fn epoch(&self, room: &str) -> Epoch {
        Epoch(self.slots[usize::from(slot_of(room))].epoch)
    }

    fn slot_of_message(&self, message: &FromShard) -> Option<u16> {
        match message {
            FromShard::Answer { ticket, .. } => self.tickets.get(ticket).copied(),
            FromShard::Moved { slot, .. } => Some(slot.0),
            FromShard::Events { room, .. }
            | FromShard::Head { room, .. }
            | FromShard::Marks { room, .. }
            | FromShard::Left { room, .. }
            | FromShard::Page { room, .. } => Some(slot_of(room.as_str())),
            FromShard::User { user, .. } | FromShard::LoginsEnded { user } => {
                Some(slot_of(&format!("~{user}")))
            }
        }
    }

    /// Another owner. What the old one has said and nobody has heard comes late, or never.
    pub(super) fn hand_over(&mut self, slot: u16, link: usize, late: bool) {
        let entry = &mut self.slots[usize::from(slot)];
        *entry = ModelSlot { epoch: entry.epoch + 1, link, serves: true };
        for (_, room) in self.rooms.iter_mut().filter(|(name, _)| slot_of(name) == slot) {
            room.interested = false;
        }
        self.unsaid(slot, late);
    }

    /// What is on its way from this slot comes late, or never.
    pub(super) fn unsaid(&mut self, slot: u16, late: bool) {
        let mut on_its_way = std::mem::take(&mut self.link);
        on_its_way.extend(self.held.as_mut().map(std::mem::take).unwrap_or_default());
        for message in on_its_way {
            if self.slot_of_message(&message) != Some(slot) {
                self.link.push_back(message);
            } else if late {
                self.late.push_back(message);
            }
        }
    }

    pub(super) fn append(
        &mut self,
        room: &str,
        sender: &str,
        msg: Option<&str>,
        origin: Origin,
        kind: Kind,
    ) -> u64 {
        let text = self.text.clone();
        let drops = self.drops_events;
        let epoch = self.epoch(room);
        let entry = self.room(room);
        let seq = entry.head() + 1;
        let kind = match kind {
            Kind::Message(message) if message.text.is_empty() => {
                Kind::Message(v1::Message { text, ..message })
            }
            kind => kind,
        };
        let event = v1::Event {
            room: room.to_owned(),
            seq,
            at: seq,
            n: seq,
            sender: sender.to_owned(),
            sender_name: sender.to_owned(),
            client_msg_id: msg.map(str::to_owned),
            kind: Some(kind),
        };
        let event = Arc::new(LoggedEvent::new(event, origin));
        entry.log.push(Arc::clone(&event));
        if let Some(msg) = msg {
            entry.sent.insert((sender.to_owned(), msg.to_owned()), seq);
        }
        if entry.interested && !drops {
            let room = RoomId::parse(room).unwrap();
            self.link.push_back(FromShard::Events { room, epoch, events: Arc::from([event]) });
        }
        seq
    }

    pub(super) fn beacon(&mut self, room: &str) {
        let epoch = self.epoch(room);
        let entry = self.room(room);
        if entry.interested {
            let head = Seq(entry.head());
            let changes = |event: &&Arc<LoggedEvent>| {
                matches!(event.event.kind, Some(Kind::Removed(_) | Kind::Left(_) | Kind::Joined(_)))
            };
            let last = entry.log.iter().rev().find(changes).map_or(Seq(0), |event| event.seq());
            let beacon = FromShard::Head {
                room: RoomId::parse(room).unwrap(),
                epoch,
                head,
                n: head.0,
                last_membership: last,
            };
            self.link.push_back(beacon);
        }
    }

    fn answer(&mut self, message: FromShard) {
        match &mut self.held {
            Some(held) => held.push_back(message),
            None => self.link.push_back(message),
        }
    }

    fn hear(&mut self, link: usize, message: ToShard) {
        let (name, ticket) = match &message {
            ToShard::Room { room, call } => {
                let kind = match &call.command {
                    RoomCommand::Send(send) => format!("send {}", send.client_msg_id),
                    command => {
                        format!("{command:?}").split([' ', '{']).next().unwrap_or_default().to_lowercase()
                    }
                };
                self.tickets.insert(call.ticket, slot_of(room.as_str()));
                self.taken.push((link, format!("{kind} {room}")));
                (room.as_str().to_owned(), Some(call.ticket))
            }
            ToShard::Pull { room, ticket, .. } => (room.as_str().to_owned(), Some(*ticket)),
            ToShard::Interest { room, .. } | ToShard::Uninterest { room } => (room.as_str().to_owned(), None),
            ToShard::UserOnline { user } | ToShard::UserOffline { user } => (format!("~{user}"), None),
            ToShard::UserRooms { .. } | ToShard::Notify { .. } | ToShard::LoginsEnded { .. } => {
                panic!("not a worker's: {message:?}")
            }
        };
        let slot = *self.slot(&name);
        if slot.link != link || !slot.serves {
            if matches!(message, ToShard::Room { .. }) {
                self.taken.pop();
            }
            if !matches!(message, ToShard::Uninterest { .. } | ToShard::UserOffline { .. }) {
                let moved = FromShard::Moved {
                    slot: SlotId(slot_of(&name)),
                    ticket,
                    epoch: Epoch(slot.epoch),
                    owner: None,
                };
                self.moves.push_back((link, moved));
            }
            return;
        }
        match message {
            ToShard::Room { room, call } => self.call(room.as_str(), *call),
            ToShard::Pull { room, ticket, after, max_events, .. } => {
                self.pulls.push((room.as_str().to_owned(), after.0));
                let max = max_events.min(self.page_events) as usize;
                let epoch = self.epoch(room.as_str());
                let entry = self.room(room.as_str());
                let begin = after.0.max(entry.floor) as usize;
                let events: Vec<_> = entry.log.iter().skip(begin).take(max).cloned().collect();
                let head = Seq(entry.head());
                let more = begin + events.len() < entry.log.len();
                let page = Page { events, head, n: head.0, floor: Seq(entry.floor), more };
                let page = if self.fails_pulls { Err(Code::Unavailable.error("not now")) } else { Ok(page) };
                self.answer(FromShard::Page { epoch, ticket, room, page });
            }
            ToShard::Interest { room, after } => {
                self.interests.push(room.as_str().to_owned());
                let epoch = self.epoch(room.as_str());
                let entry = self.room(room.as_str());
                entry.interested = true;
                // Leaves that are no events are said again.
                let stays =
                    entry.members.iter().flat_map(|(user, stays)| stays.iter().map(move |stay| (user, stay)));
                let gone: BTreeSet<(u64, String)> = stays
                    .filter_map(|(user, stay)| Some((stay.to?, user.clone())))
                    .filter(|(to, _)| *to >= after.0)
                    .collect();
                let counts = entry.counts_leaves;
                for (at, user) in gone.into_iter().filter(|_| counts) {
                    let user = UserId::parse(&user).unwrap();
                    self.link.push_back(FromShard::Left { room: room.clone(), epoch, user, at: Seq(at) });
                }
                self.beacon(room.as_str());
            }
            ToShard::Uninterest { room } => {
                self.room(room.as_str()).interested = false;
                self.uninterests.push(room.as_str().to_owned());
            }
            ToShard::UserOnline { user } => self.user_channel.push(format!("+{user}")),
            ToShard::UserOffline { user } => self.user_channel.push(format!("-{user}")),
            ToShard::UserRooms { .. } | ToShard::Notify { .. } | ToShard::LoginsEnded { .. } => {
                panic!("not a worker's: {message:?}")
            }
        }
    }

    fn call(&mut self, room: &str, call: RoomCall) {
        let RoomCall { ticket, caller, origin, command } = call;
        let user = caller.user.as_str();
        let refused = |code: Code| Answer::Error(Box::new(code.error("refused")));
        let stay = self.rooms.get(room).map(|entry| entry.is_member(user));
        let member = stay == Some(true);
        let before = self.link.len();
        let epoch = self.epoch(room);
        let answer = match command {
            RoomCommand::Subscribe => {
                match self.rooms.get_mut(room).map(|entry| (entry.admission(user, epoch), entry)) {
                    Some((Some(admission), entry)) => {
                        entry.interested = true;
                        Answer::Admitted(Box::new(admission))
                    }
                    _ => refused(Code::UnknownRoom),
                }
            }
            RoomCommand::Send(send) => {
                self.sends_seen += 1;
                let known = self.rooms.get(room);
                let known =
                    known.and_then(|entry| entry.sent.get(&(user.to_owned(), send.client_msg_id.clone())));
                // Nothing at or below `since` is looked at.
                let known = known.copied().filter(|seq| *seq > send.since.unwrap_or(0));
                let (seq, duplicate) = match known {
                    Some(seq) => (seq, true),
                    None if !member => {
                        return self.answer(FromShard::Answer {
                            epoch,
                            ticket,
                            answer: refused(Code::NotAMember),
                        });
                    }
                    None => {
                        let message =
                            v1::Message { text: send.text.unwrap_or_default(), ..v1::Message::default() };
                        let kind = Kind::Message(message);
                        (self.append(room, user, Some(&send.client_msg_id), origin, kind), false)
                    }
                };
                Answer::Sent { seq: Seq(seq), at: UnixMs(seq), duplicate }
            }
            RoomCommand::Leave if member => {
                self.take_out(room, user, None);
                Answer::Body(Box::new(Body::Leave(v1::Empty {})))
            }
            RoomCommand::History { .. } => Answer::Body(Box::new(Body::History(v1::HistoryReply::default()))),
            RoomCommand::Mark { .. } => Answer::Body(Box::new(Body::Mark(v1::MarkReply::default()))),
            _ => refused(Code::NotAMember),
        };
        let events = if self.answers_before_events { self.link.split_off(before) } else { VecDeque::new() };
        self.answer(FromShard::Answer { epoch, ticket, answer });
        self.link.extend(events);
    }

    /// Ends a membership: an event, or a count.
    pub(super) fn take_out(&mut self, room: &str, user: &str, by: Option<&str>) -> u64 {
        let counted = self.room(room).counts_leaves && by.is_none();
        let name = user.to_owned();
        let end = match by {
            _ if counted => self.room(room).head(),
            None => self.append(room, user, None, Origin(0), Kind::Left(v1::Left { user: name })),
            Some(by) => {
                let kind = Kind::Removed(v1::Removed { user: name, by: by.to_owned() });
                self.append(room, by, None, Origin(0), kind)
            }
        };
        let stays = self.room(room).members.get_mut(user).expect("was a member");
        stays.last_mut().expect("was a member").to = Some(end);
        if self.room(room).interested {
            let epoch = self.epoch(room);
            let (room, user) = (RoomId::parse(room).unwrap(), UserId::parse(user).unwrap());
            self.link.push_back(FromShard::Left { epoch, room, user, at: Seq(end) });
        }
        end
    }

    pub(super) fn bring_in(&mut self, room: &str, user: &str) {
        let joined = v1::Joined { user: user.to_owned(), name: user.to_owned(), ..v1::Joined::default() };
        let from = self.append(room, user, None, Origin(0), Kind::Joined(joined));
        self.room(room).members.entry(user.to_owned()).or_default().push(Stay { from, to: None });
    }
}

// ---------------------------------------------------------------- clients

/// What a client has read.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Got {
    Frame(Box<v1::ServerFrame>),
    Ping,
    Pong,
    Close(u16),
}

/// In few words, so that a test can list what it expects.
pub(super) fn words(got: &Got) -> String {
    let frame = match got {
        Got::Frame(frame) => frame,
        Got::Ping => return "ping".to_owned(),
        Got::Pong => return "pong".to_owned(),
        Got::Close(code) => return format!("close {code}"),
    };
    let id = frame.id.map_or_else(String::new, |id| format!("#{id} "));
    let room = |room: &v1::SubscribedRoom| {
        let mut text = room.room.clone();
        if let Some(error) = &room.error {
            return format!("{text} error {}", error.code);
        }
        if room.pending == Some(true) {
            return format!("{text} pending");
        }
        text += &format!(" head {} from {}", room.head, room.from);
        if let Some(gap) = &room.gap {
            text += &format!(" gap {}-{}", gap.from, gap.to);
        }
        if room.reset == Some(true) {
            text += " reset";
        }
        text
    };
    let body = match frame.body.as_ref().expect("a body") {
        Body::Error(error) => format!("error {}", error.code),
        Body::Auth(auth) => format!("auth {}", auth.user),
        Body::Refresh(_) => "refresh".to_owned(),
        Body::Subscribe(reply) => {
            format!("subscribe [{}]", reply.rooms.iter().map(room).collect::<Vec<_>>().join("; "))
        }
        Body::Unsubscribe(_) => "unsubscribe".to_owned(),
        Body::Send(sent) => {
            format!("sent {} {}{}", sent.room, sent.seq, if sent.duplicate { " again" } else { "" })
        }
        Body::Leave(_) => "leave".to_owned(),
        Body::History(_) => "history".to_owned(),
        Body::Mark(_) => "mark".to_owned(),
        Body::FindUser(_) => "find_user".to_owned(),
        Body::Ping(_) => "pong".to_owned(),
        Body::Event(event) => format!("event {} {}", event.room, event.seq),
        Body::Head(head) => format!("head {} {}", head.room, head.head),
        Body::Marks(marks) => format!("marks {}", marks.room),
        Body::Gap(gap) => {
            format!(
                "gap {} {}-{}{}",
                gap.room,
                gap.from,
                gap.to,
                if gap.expired == Some(true) { " expired" } else { "" }
            )
        }
        Body::Subscribed(subscribed) => format!("subscribed {}", room(subscribed)),
        Body::Unsubscribed(unsubscribed) => {
            format!("unsubscribed {} {}", unsubscribed.room, unsubscribed.code)
        }
        Body::RoomGone(gone) => format!("room_gone {}", gone.room),
        Body::TokenExpiring(_) => "token_expiring".to_owned(),
        Body::Reconnect(reconnect) => format!("reconnect {}", reconnect.after_ms),
        other => format!("{other:?}"),
    };
    format!("{id}{body}")
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) index: u32,
    pub(super) format: Format,
    pub(super) alive: bool,
    pub(super) next_id: u64,
    /// Bytes that the worker does not read now.
    unread: Vec<u8>,
    /// What it has received and not parsed.
    partial: Vec<u8>,
    greeted: bool,
}

pub(super) const GREETING: &[u8] = b"HTTP/1.1 101 \r\n\r\n";

#[derive(Debug)]
pub(super) struct World {
    pub(super) worker: Worker,
    pub(super) now: Now,
    pub(super) sockets: Sockets,
    pub(super) owner: Owner,
    pub(super) clients: Vec<Client>,
    pub(super) tokens: Option<Vec<(Key, String)>>,
    pub(super) backend: Option<Vec<(Key, u64)>>,
    /// Logins that the store does not have (any more), and whose were looked up.
    pub(super) ended: BTreeSet<String>,
    pub(super) checked: Vec<u32>,
    /// The table is told of an owner as soon as somebody has named it.
    pub(super) follows: bool,
    /// Slots that it has said commands wait for.
    pub(super) wanted: Vec<SlotId>,
}

pub(super) fn options() -> Options {
    Options {
        worker: 3,
        nonce: 0xabcdef,
        node: "n1".into(),
        ring_bytes: 1 << 20,
        rings_bytes: 64 << 20,
        ping_interval_ms: 25_000,
        pong_deadline_ms: 10_000,
        auth_deadline_ms: 10_000,
        slow_deadline_ms: 20_000,
        subscriptions: 1_000,
        sends: Arc::new(Buckets::new(1 << 10, Rate::per_second(50, 1_000_000))),
        sends_per_s: 50,
        frame_bytes: 64 << 10,
        fragments: 16,
        in_flight: 64,
        connections_per_user: 100,
        login_check_ms: None,
        command: command::Limits::default(),
        hold_ms: 5_000,
        hold_bytes: 4 << 20,
        seed: Some(1),
    }
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(options())
    }

    pub(super) fn with(options: Options) -> Self {
        let now = Now { ms: 1_000, unix: UnixMs(1_700_000_000_000) };
        let owner = Owner {
            rooms: BTreeMap::new(),
            link: VecDeque::new(),
            slots: (0..SLOTS)
                .map(|slot| ModelSlot { epoch: 1, link: usize::from(slot) % LINKS, serves: true })
                .collect(),
            moves: VecDeque::new(),
            late: VecDeque::new(),
            tickets: HashMap::new(),
            interests: Vec::new(),
            taken: Vec::new(),
            drops_events: false,
            held: None,
            answers_before_events: false,
            fails_pulls: false,
            stalled: false,
            page_events: u32::MAX,
            pulls: Vec::new(),
            sends_seen: 0,
            user_channel: Vec::new(),
            uninterests: Vec::new(),
            text: "hello".to_owned(),
        };
        let mut worker = Worker::new(options, LINKS, SLOTS.into(), slot_of, now);
        for slot in 0..SLOTS {
            let link = u16::try_from(usize::from(slot) % LINKS).ok();
            worker.route_changed(now, SlotId(slot), Epoch(1), link);
            worker.confirmed(now, slot);
        }
        Self {
            worker,
            now,
            sockets: Sockets::default(),
            owner,
            clients: Vec::new(),
            tokens: None,
            backend: None,
            ended: BTreeSet::new(),
            checked: Vec::new(),
            follows: true,
            wanted: Vec::new(),
        }
    }

    // ------------------------------------------------------------ owners

    /// The table learns who owns the slot of this room now.
    pub(super) fn tell_route(&mut self, room: &str) {
        self.tell_slot(slot_of(room));
    }

    pub(super) fn tell_slot(&mut self, slot: u16) {
        let of = self.owner.slots[usize::from(slot)];
        self.worker.route_changed(self.now, SlotId(slot), Epoch(of.epoch), u16::try_from(of.link).ok());
    }

    /// The slot of this room has no owner that the table knows.
    pub(super) fn no_route(&mut self, room: &str) {
        let slot = slot_of(room);
        let epoch = self.worker.routes.epoch(slot);
        self.worker.route_changed(self.now, SlotId(slot), epoch, None);
    }

    /// Another owner for the slot of this room; the table learns of it at once.
    pub(super) fn hand_over(&mut self, room: &str) {
        let link = (self.owner.slot(room).link + 1) % LINKS;
        self.owner.hand_over(slot_of(room), link, false);
        self.tell_route(room);
    }

    /// What earlier owners have said comes now.
    pub(super) fn hear_late(&mut self) {
        for message in std::mem::take(&mut self.owner.late) {
            self.worker.shard_said(self.now, message);
        }
        self.run();
    }

    /// A link breaks: what was on its way in either direction is gone.
    pub(super) fn lose_link(&mut self, link: usize) {
        self.worker.link_lost(self.now, u16::try_from(link).unwrap());
        self.owner.moves.retain(|(of, _)| *of != link);
        for slot in 0..SLOTS {
            if self.owner.slots[usize::from(slot)].link == link {
                for (_, room) in self.owner.rooms.iter_mut().filter(|(name, _)| slot_of(name) == slot) {
                    room.interested = false;
                }
                self.owner.unsaid(slot, false);
            }
        }
    }

    /// A room with these members (from seq 1 on) and so many events.
    pub(super) fn room(&mut self, room: &str, members: &[&str], events: u64) {
        let entry = self.owner.room(room);
        for member in members {
            entry.members.insert((*member).to_owned(), vec![Stay { from: 1, to: None }]);
        }
        self.say(room, events);
    }

    /// So many messages of somebody elsewhere.
    pub(super) fn say(&mut self, room: &str, count: u64) {
        for _ in 0..count {
            self.owner.append(room, "elsewhere", None, Origin(0), Kind::Message(v1::Message::default()));
        }
    }

    // ------------------------------------------------------------ clients

    pub(super) fn connect(&mut self, format: Format) -> usize {
        let index = self.worker.accept(self.now, format, GREETING).expect("a slot");
        let socket = Socket { space: usize::MAX, full: false, broken: false, bytes: Vec::new(), sends: 0 };
        assert!(self.sockets.open.insert(index, socket).is_none(), "number {index} is taken");
        self.clients.push(Client {
            index,
            format,
            alive: true,
            next_id: 1,
            unread: Vec::new(),
            partial: Vec::new(),
            greeted: false,
        });
        self.clients.len() - 1
    }

    /// Connected, authenticated, and nothing left to read.
    pub(super) fn login(&mut self, user: &str, format: Format) -> usize {
        let c = self.connect(format);
        self.auth(c, user);
        assert_eq!(self.read(c), [format!("#1 auth {}", user.split('@').next().unwrap_or(user))]);
        c
    }

    pub(super) fn json(&mut self, user: &str) -> usize {
        self.login(user, Format::Json)
    }

    pub(super) fn socket(&mut self, c: usize) -> &mut Socket {
        self.sockets.open.get_mut(&self.clients[c].index).expect("open")
    }

    /// Bytes of a client arrive.
    pub(super) fn raw(&mut self, c: usize, bytes: &[u8]) {
        let client = &mut self.clients[c];
        if !client.alive {
            return;
        }
        client.unread.extend_from_slice(bytes);
        if self.worker.wants_read(client.index) {
            let mut bytes = std::mem::take(&mut client.unread);
            self.worker.received(self.now, client.index, &mut bytes);
        }
    }

    pub(super) fn put(&mut self, c: usize, first: u8, payload: &[u8]) {
        let mut bytes = Vec::new();
        client::put_frame(&mut bytes, first, *b"mask", payload);
        self.raw(c, &bytes);
    }

    /// Queues a command without letting the worker go on.
    pub(super) fn post(&mut self, c: usize, command: Command) -> u64 {
        let id = self.clients[c].next_id;
        self.clients[c].next_id += 1;
        self.post_as(c, id, command);
        id
    }

    pub(super) fn post_as(&mut self, c: usize, id: u64, command: Command) {
        let frame = v1::ClientFrame { id, command: Some(command) };
        match self.clients[c].format {
            Format::Json => self.put(c, 0x81, &serde_json::to_vec(&frame).unwrap()),
            Format::Proto => self.put(c, 0x82, &frame.encode_to_vec()),
        }
    }

    /// A command, carried through as far as it goes.
    pub(super) fn ask(&mut self, c: usize, command: Command) -> u64 {
        let id = self.post(c, command);
        self.run();
        id
    }

    pub(super) fn auth(&mut self, c: usize, token: &str) -> u64 {
        self.ask(c, Command::Auth(v1::Auth { token: token.to_owned(), client: None }))
    }

    pub(super) fn send(&mut self, c: usize, room: &str, msg: &str) -> u64 {
        self.ask(c, send_of(room, msg))
    }

    pub(super) fn subscribe(&mut self, c: usize, room: &str, after: u64) -> u64 {
        self.ask(c, subscribe_of(&[(room, Some(after), v1::Mode::Live)]))
    }

    pub(super) fn passive(&mut self, c: usize, room: &str) -> u64 {
        self.ask(c, subscribe_of(&[(room, None, v1::Mode::Passive)]))
    }

    pub(super) fn unsubscribe(&mut self, c: usize, room: &str) -> u64 {
        self.ask(c, Command::Unsubscribe(v1::Unsubscribe { rooms: vec![room.to_owned()] }))
    }

    /// Takes what the client has received since the last time.
    pub(super) fn take(&mut self, c: usize) -> Vec<Got> {
        let client = &mut self.clients[c];
        if let Some(socket) = self.sockets.open.get_mut(&client.index).filter(|_| client.alive) {
            client.partial.append(&mut socket.bytes);
        }
        if !client.greeted {
            if client.partial.len() < GREETING.len() {
                return Vec::new();
            }
            assert_eq!(client.partial.drain(..GREETING.len()).collect::<Vec<u8>>(), GREETING);
            client.greeted = true;
        }
        let mut got = Vec::new();
        while let Some(len) = encode::frame_len(&client.partial).filter(|len| *len <= client.partial.len()) {
            let frame: Vec<u8> = client.partial.drain(..len).collect();
            let header = match frame[1] {
                126 => 4,
                127 => 10,
                _ => 2,
            };
            let payload = &frame[header..];
            got.push(match (frame[0], client.format) {
                (0x81, Format::Json) => {
                    Got::Frame(Box::new(serde_json::from_slice(payload).expect("JSON of a ServerFrame")))
                }
                (0x82, Format::Proto) => {
                    Got::Frame(Box::new(v1::ServerFrame::decode(payload).expect("a ServerFrame")))
                }
                (0x88, _) if payload.is_empty() => Got::Close(1005),
                (0x88, _) => Got::Close(u16::from_be_bytes([payload[0], payload[1]])),
                (0x89, _) => Got::Ping,
                (0x8a, _) => Got::Pong,
                (first, format) => panic!("a frame {first:02x} on {format:?}"),
            });
        }
        got
    }

    pub(super) fn read(&mut self, c: usize) -> Vec<String> {
        self.take(c).iter().map(words).collect()
    }

    /// The socket takes so many bytes and is then full.
    pub(super) fn clog(&mut self, c: usize, space: usize) {
        self.socket(c).space = space;
    }

    /// The client has read: the socket takes so many more bytes.
    pub(super) fn unclog(&mut self, c: usize, space: usize) {
        let index = self.clients[c].index;
        let socket = self.socket(c);
        socket.space = space;
        if std::mem::take(&mut socket.full) {
            self.worker.writable(self.now, index);
        }
    }

    pub(super) fn lose(&mut self, c: usize) {
        if self.clients[c].alive {
            self.worker.lost(self.clients[c].index);
            self.effects();
        }
    }

    // ------------------------------------------------------------ the world goes on

    pub(super) fn effects(&mut self) -> bool {
        let mut any = false;
        while self.worker.has_effects() {
            any = true;
            for effect in self.worker.take_effects() {
                match effect {
                    Effect::Authenticate { connection, token, .. } => match &mut self.tokens {
                        Some(tokens) => tokens.push((connection, token)),
                        None => self.authenticate(connection, &token),
                    },
                    Effect::Backend { connection, id, .. } => match &mut self.backend {
                        Some(backend) => backend.push((connection, id)),
                        None => {
                            let body = Body::FindUser(v1::FindUserReply::default());
                            self.worker.backend_replied(self.now, connection, id, Ok(body));
                        }
                    },
                    Effect::CheckLogin { connection, login, issued_at, .. } => {
                        self.checked.push(connection.index);
                        let login = login.as_deref();
                        if login.is_some_and(|login| self.ended.contains(login)) {
                            self.worker.login_ended(self.now, connection, login, issued_at);
                        }
                    }
                    Effect::Resume { connection } => {
                        assert!(self.worker.wants_read(connection), "resumed, but not read");
                        let client =
                            self.clients.iter().position(|client| client.alive && client.index == connection);
                        self.raw(client.expect("a client"), &[]);
                    }
                    Effect::Moved { slot, .. } => {
                        if self.follows {
                            self.tell_slot(slot.0);
                        }
                    }
                    Effect::Wanted { slot } => self.wanted.push(slot),
                    Effect::Drop { connection } => {
                        let socket = self.sockets.open.remove(&connection).expect("dropped once");
                        let client = self.clients.iter_mut().find(|of| of.alive && of.index == connection);
                        let client = client.expect("a client");
                        client.alive = false;
                        client.partial.extend(socket.bytes);
                    }
                }
            }
        }
        any
    }

    /// `name`, `name@expires_in_ms`, `name!login`, `bad`, `expired`, `down`.
    pub(super) fn authenticate(&mut self, connection: Key, token: &str) {
        let (name, lives_ms) = token.split_once('@').unwrap_or((token, "3600000000"));
        let (name, login) =
            name.split_once('!').map_or((name, None), |(name, login)| (name, Some(login.into())));
        let result = match name {
            "bad" => Err(Code::Unauthenticated.error("no")),
            "expired" => Err(Code::TokenExpired.error("no")),
            "down" => Err(Code::Unavailable.error("no")),
            name => Ok(Identity {
                person: Person { user: UserId::parse(name).unwrap(), name: name.into() },
                expires_at: UnixMs(self.now.unix.0 + lives_ms.parse::<u64>().unwrap()),
                login,
                issued_at: UnixMs(1),
                as_of: 0,
            }),
        };
        self.worker.authenticated(self.now, connection, result);
    }

    /// Hands over what each side has for the other; true if there was anything.
    pub(super) fn exchange(&mut self) -> bool {
        let mut any = false;
        for link in 0..LINKS {
            for message in std::mem::take(&mut self.worker.shard_queues()[link]) {
                any = true;
                self.owner.hear(link, message);
            }
        }
        while !self.owner.stalled
            && let Some((_, message)) = self.owner.moves.pop_front()
        {
            any = true;
            self.worker.shard_said(self.now, message);
        }
        while !self.owner.stalled
            && let Some(message) = self.owner.link.pop_front()
        {
            any = true;
            self.worker.shard_said(self.now, message);
        }
        any
    }

    /// Until nothing moves any more.
    pub(super) fn run(&mut self) {
        for _ in 0..100_000 {
            let mut moved = self.effects();
            moved |= self.exchange();
            moved |= self.effects();
            if self.worker.has_work() {
                moved = true;
                self.worker.sweep(self.now, &mut self.sockets);
            }
            if !moved {
                self.check();
                self.check_settled();
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// Everything that was held goes its way.
    pub(super) fn let_go(&mut self) {
        let held = self.owner.held.take().expect("held");
        self.owner.link.extend(held);
        self.run();
    }

    /// Time passes, with every deadline on the way kept.
    pub(super) fn pass(&mut self, ms: u64) {
        let end = self.now.ms + ms;
        loop {
            self.run();
            let next = self.worker.next_deadline();
            if next > end {
                break;
            }
            self.set_time(next.max(self.now.ms));
            self.worker.tick(self.now);
            assert!(self.worker.next_deadline() > self.now.ms, "tick at the deadline must move the deadline");
        }
        self.set_time(end);
    }

    fn set_time(&mut self, ms: u64) {
        self.now.unix.0 += ms - self.now.ms;
        self.now.ms = ms;
    }

    // ------------------------------------------------------------ what always holds inside

    pub(super) fn check(&self) {
        let worker = &self.worker;
        let (mut places, mut rings_bytes) = (0, 0);
        for (index, connection) in worker.connections.iter() {
            let sorted = connection.rooms.windows(2).all(|pair| pair[0].room < pair[1].room);
            assert!(sorted, "rooms in order, each once");
            let (mut reading, mut pulling) = (0, 0);
            for reference in &connection.rooms {
                let room = worker.rooms.get(reference.room).expect("a cursor in a room that is");
                places += 1;
                match reference.place {
                    Place::Live(place) => {
                        let cursor = &room.sides[side_of(connection.format)].cursors[place as usize];
                        assert_eq!(cursor.connection, index);
                        reading += u32::from(cursor.state == CursorState::Reading);
                        let pull = cursor.extra.as_ref().map_or(PullState::None, |extra| extra.pull);
                        pulling += u32::from(pull != PullState::None);
                        assert!(cursor.state == CursorState::Reading || pull == PullState::None);
                    }
                    Place::Passive(place) => assert_eq!(room.passive[place as usize].connection, index),
                }
            }
            assert_eq!(
                (connection.reading, connection.pulling),
                (reading, pulling),
                "counts of connection {index}"
            );
            if connection.is_closing() {
                assert!(connection.rooms.is_empty() && connection.flight.is_none());
            } else if connection.phase == Phase::Open {
                let user = worker.users.get(connection.user).expect("a user");
                assert!(user.connections.contains(&index));
            }
            assert!(
                connection.flight.as_ref().is_none_or(|flight| !flight.is_empty()),
                "an empty flight is freed"
            );
            assert!(connection.queued() < 16 << 20, "{} bytes queued", connection.queued());
        }
        let mut cursors = 0;
        for (_, room) in worker.rooms.iter() {
            cursors += room.live() + room.passive.len();
            let rings = room.sides.iter().filter_map(|side| side.ring.as_ref());
            for ring in rings {
                rings_bytes += ring.capacity();
                assert_eq!(ring.next(), room.applied.next(), "the ring ends with what is applied");
            }
        }
        assert_eq!(places, cursors, "every cursor has its connection and the other way round");
        assert_eq!(worker.rings_bytes, rings_bytes);
        assert_eq!(worker.rooms.len(), worker.room_ids.len());
        assert_eq!(worker.users.len(), worker.user_ids.len());
        assert!(worker.pulls.values().filter(|pull| !pull.readers.is_empty()).count() <= 64);
    }

    /// Nothing is left to do, so nothing may be left undone.
    fn check_settled(&self) {
        let worker = &self.worker;
        for (index, connection) in worker.connections.iter() {
            if connection.blocked {
                continue;
            }
            assert!(connection.out.is_none(), "connection {index} has bytes that nobody sends");
            assert!(!connection.full, "connection {index} is not read though it has read all");
            for reference in &connection.rooms {
                let room = worker.rooms.get(reference.room).expect("a room");
                let Place::Live(place) = reference.place else { continue };
                let cursor = &room.sides[side_of(connection.format)].cursors[place as usize];
                match cursor.state {
                    CursorState::Held => assert!(connection.flight.is_some(), "held for nothing"),
                    CursorState::Live => {
                        assert!(cursor.next > room.applied, "{} of connection {index} sleeps", room.id);
                        assert!(cursor.end().is_none_or(|end| end >= cursor.next), "an end that nobody told");
                    }
                    CursorState::Reading => {
                        let pull = cursor.extra.as_ref().map_or(PullState::None, |extra| extra.pull);
                        let others = connection.pulling > 0;
                        assert!(
                            pull != PullState::None || others,
                            "connection {index} reads, but asks for no page"
                        );
                    }
                }
            }
        }
        for (_, room) in worker.rooms.iter() {
            let repaired = room.repair.is_some() || room.repair_waits;
            assert!(!room.admitted || room.applied >= room.known_head || repaired, "{} is behind", room.id);
        }
    }

    /// All connections go; after a while nothing is left of them.
    pub(super) fn end(mut self) {
        self.owner.stalled = false;
        for c in 0..self.clients.len() {
            self.lose(c);
        }
        self.run();
        self.owner.fails_pulls = false;
        if self.owner.held.is_some() {
            self.let_go();
        }
        self.pass(45_000);
        let worker = &self.worker;
        assert_eq!(worker.sizes(), (0, 0, 0), "connections, rooms, bytes of rings");
        assert_eq!(
            (worker.users.len(), worker.logins.len(), worker.pulls.len()),
            (0, 0, 0),
            "users, logins, pulls"
        );
        assert!(worker.dirty.is_empty() && worker.big.is_empty() && worker.heads.is_empty());
        assert!(worker.unused.is_empty() && worker.pull_queue.is_empty() && worker.pull_retries.is_empty());
        assert!(worker.ringed.is_empty() && worker.wheel.is_empty(), "rings, timers");
        assert!(worker.routes.is_empty(), "rooms, users, questions of slots: {:?}", worker.routes);
        assert_eq!(worker.next_deadline(), u64::MAX);
        // Where it could not be taken back, the next event shows it.
        let left: Vec<String> = self
            .owner
            .rooms
            .iter()
            .filter(|(_, room)| room.interested)
            .map(|(name, _)| name.clone())
            .collect();
        for room in left {
            self.owner.drops_events = false;
            self.say(&room, 1);
        }
        self.run();
        assert!(self.owner.rooms.values().all(|room| !room.interested), "interest is taken back");
    }
}

pub(super) fn send_of(room: &str, msg: &str) -> Command {
    Command::Send(v1::Send {
        room: room.to_owned(),
        client_msg_id: msg.to_owned(),
        text: Some("hi".to_owned()),
        ..v1::Send::default()
    })
}

pub(super) fn subscribe_of(rooms: &[(&str, Option<u64>, v1::Mode)]) -> Command {
    let rooms = rooms.iter().map(|(room, after, mode)| v1::SubscribeRoom {
        room: (*room).to_owned(),
        after: *after,
        mode: Some((*mode).into()),
        ..v1::SubscribeRoom::default()
    });
    Command::Subscribe(v1::Subscribe { rooms: rooms.collect() })
}

/// An answer of an owner that nobody asked for.
pub(super) fn stray_answer(ticket: u64) -> FromShard {
    let answer = Answer::Sent { seq: Seq(1), at: UnixMs(1), duplicate: false };
    FromShard::Answer { epoch: Epoch(1), ticket: Ticket(ticket), answer }
}
