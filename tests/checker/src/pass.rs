//! One pass over the records, in order: what each client had been told when it was told the next thing.
//!
//! Owns: the state of connections, subscriptions, sends and rooms as the clients have learned it.
//! Always holds: each record costs a few look-ups; nothing is kept of a push beyond its place.
//! Does not: judge what only shows at the end (`sends`, `live`, `members`).

mod cursor;
mod marks;
mod pages;
mod tries;

pub(crate) use cursor::Position;
pub(crate) use marks::Mark;
pub(crate) use tries::{Fate, Intent, Try};

use crate::check::Rules;
use crate::found::{Found, NONE};
use crate::history::{Ask, History, Kind, Mode, Record, What};
use crate::id::{Call, Connection, Log, Message, Room, Seq, Session, Time, User};
use crate::report::Promise;
use crate::world::{Map, World};
use cursor::Cursor;

#[derive(Debug)]
pub(crate) struct Pass<'w> {
    world: &'w World<'w>,
    rules: &'w Rules,
    pub(crate) rooms: Vec<RoomState>,
    connections: Vec<ConnectionState>,
    /// Sessions that have had a connection.
    begun: Map<Session, ()>,
    cursors: Vec<Cursor>,
    cursor_of: Map<(Connection, Room), u32>,
    pub(crate) positions: Vec<Position>,
    position_of: Map<(Session, Room), u32>,
    pub(crate) intents: Vec<Intent>,
    intent_of: Map<(Room, User, Message), u32>,
    pub(crate) tries: Vec<Try>,
    /// What each user was last told of its own marks, or asked for and got.
    pub(crate) marks: Map<(Room, User), Mark>,
    /// What each connection was pushed of a user's marks.
    marks_pushed: Map<(Connection, Room, User), Mark>,
    /// When each user first asked for a mark of just this seq.
    marks_asked: Map<(Room, User, Seq), Time>,
    /// When the half of the time for coming back to life is over.
    half: Option<Time>,
    pub(crate) end: Time,
}

/// What all clients together know of a room.
#[derive(Debug, Default)]
pub(crate) struct RoomState {
    /// The record that told each seq first; index + 1, 0 for none.
    firsts: Firsts,
    /// The highest seq that anybody was told, and by which record.
    pub(crate) told: Seq,
    pub(crate) told_by: u32,
    log: Option<(Log, u32)>,
    /// `told` when half of the time for coming back to life was over.
    pub(crate) told_at_half: Option<Seq>,
    /// Since the last fault healed, as records.
    pub(crate) acked_since_heal: Option<u32>,
}

#[derive(Debug, Default)]
struct Firsts {
    dense: Vec<u32>,
    sparse: Map<Seq, u32>,
}

impl Firsts {
    /// The record that told the seq first, after this one has told it.
    fn note(&mut self, seq: Seq, record: u32) -> u32 {
        // Seqs come nearly in order; a wild one must not cost memory.
        if seq.0 > self.dense.len() as u64 + 65_536 {
            return *self.sparse.entry(seq).or_insert(record);
        }
        let at = seq.0 as usize;
        if self.dense.len() <= at {
            self.dense.resize(at + 1, 0);
        }
        if self.dense[at] == 0 {
            self.dense[at] = record + 1;
        }
        self.dense[at] - 1
    }

    fn get(&self, seq: Seq) -> Option<u32> {
        match usize::try_from(seq.0).ok().and_then(|at| self.dense.get(at)) {
            Some(0) | None => self.sparse.get(&seq).copied(),
            Some(record) => Some(record - 1),
        }
    }
}

impl RoomState {
    pub(crate) fn first_told(&self, seq: Seq) -> Option<u32> {
        self.firsts.get(seq)
    }
}

#[derive(Debug)]
struct ConnectionState {
    session: Option<Session>,
    user: User,
    /// The session had another one before.
    again: bool,
    open: Vec<Open>,
    /// Seqs of the page that is being read: events, then what its gaps cover.
    page: Vec<(Call, Seq, Seq, bool)>,
}

/// The record that is being judged, and the connection that it happened on.
#[derive(Debug, Clone, Copy)]
struct At {
    index: u32,
    on: Connection,
}

/// A command without its reply.
#[derive(Debug, Clone, Copy)]
struct Open {
    call: Call,
    room: Room,
    /// Its record.
    record: u32,
    /// The highest seq of the room that anybody had been told before, and by which record.
    floor: Seq,
    floor_by: u32,
    /// Of a send; else [`NONE`].
    of_try: u32,
}

impl<'w> Pass<'w> {
    fn new(world: &'w World<'w>, rules: &'w Rules) -> Self {
        let history = world.history;
        Self {
            world,
            rules,
            rooms: Vec::new(),
            connections: Vec::new(),
            begun: Map::default(),
            cursors: Vec::new(),
            cursor_of: Map::default(),
            positions: Vec::new(),
            position_of: Map::default(),
            intents: Vec::new(),
            intent_of: Map::default(),
            tries: Vec::new(),
            marks: Map::default(),
            marks_pushed: Map::default(),
            marks_asked: Map::default(),
            half: history.liveness.as_ref().map(|l| Time(l.healed.0.midpoint(l.deadline.0.max(l.healed.0)))),
            end: history.records.last().map_or(Time(0), |record| record.at),
        }
    }

    pub(crate) fn run(world: &'w World<'w>, rules: &'w Rules, found: &mut Found<'_>) -> Self {
        let mut pass = Self::new(world, rules);
        for (index, record) in world.history.records.iter().enumerate() {
            pass.step(found, At { index: index as u32, on: record.on }, record);
        }
        if pass.half.is_some() {
            pass.note_half();
        }
        pass
    }

    fn step(&mut self, found: &mut Found<'_>, at: At, record: &Record) {
        let history = self.world.history;
        let At { index, on } = at;
        if self.half.is_some_and(|half| record.at > half) {
            self.note_half();
        }
        match &record.what {
            What::Begin { session } => self.begin(history, on, *session, found),
            What::End => self.end(on),
            What::Send { call, room, message, since, content } => {
                let of_try = self.invoked(at, *room, *message, *since, *content);
                self.open(at, *call, *room, of_try);
            }
            What::Mark { call, room, delivered, seen } => {
                let user = self.user(on);
                for seq in delivered.iter().chain(seen) {
                    self.marks_asked.entry((*room, user, *seq)).or_insert(record.at);
                }
                self.open(at, *call, *room, NONE);
            }
            What::Subscribe { call, room, .. }
            | What::Unsubscribe { call, room }
            | What::History { call, room, .. }
            | What::Ask { call, room, .. } => self.open(at, *call, *room, NONE),
            What::Sent { call, seq, duplicate, .. } => {
                if let Some(open) = self.close(on, *call, None) {
                    self.acked(found, at, open, *seq, *duplicate);
                }
            }
            What::Refused { call, room, code } => {
                if let Some(open) = self.close(on, *call, *room) {
                    if open.of_try == NONE && *code == 107 {
                        self.mark_refused(found, at, open);
                    }
                    self.refused(found, index, open, *code);
                    if room.is_none()
                        && let Some(state) = self.connections.get_mut(on.0 as usize)
                    {
                        // All rooms of a `subscribe` at once.
                        state.open.retain(|open| open.call != *call);
                    }
                }
            }
            What::Subscribed { call, room, reply } => {
                if let Some(open) = self.close(on, *call, Some(*room)) {
                    self.subscribed(found, at, open, reply);
                }
            }
            What::UnsubscribeDone { call, room } => {
                if self.close(on, *call, Some(*room)).is_some() {
                    self.cursor_of.remove(&(on, *room));
                }
            }
            What::PageEvent { call, event } => {
                let Some(open) = self.find(on, *call) else { return };
                self.page_event(found, at, open.room, *call, event);
            }
            What::PageGap { call, from, to, expired } => {
                if let Some(state) = self.connections.get_mut(on.0 as usize) {
                    state.page.push((*call, *from, *to, !*expired));
                }
            }
            What::Page { call, head, log, more } => {
                if let Some(open) = self.close(on, *call, None) {
                    self.log_told(found, index, open.room, *log);
                    self.page(found, at, open, *head, *more);
                }
            }
            What::Marked { call, marks } => {
                if let Some(open) = self.close(on, *call, None) {
                    self.marked(found, at, open, *marks);
                }
            }
            What::Answered { call, head } => {
                let Some(open) = self.close(on, *call, None) else { return };
                let Some(head) = *head else { return };
                let asked = &history.records[open.record as usize].what;
                if matches!(asked, What::Ask { about: Ask::Summary, .. }) {
                    self.read(found, at, open, head);
                }
                self.told(open.room, head, index);
            }
            What::Event { room, event } => self.pushed(found, at, *room, event),
            What::Gap { room, from, to, expired } => {
                self.gap(found, at, *room, (*from, *to), *expired);
            }
            What::Unsubscribed { room, code } => self.unsubscribed(found, at, *room, *code),
            What::Head { room, head, n } => self.head(found, at, *room, *head, *n),
            What::Marks { room, user, delivered, seen } => {
                self.marks_pushed(found, index, (on, *room, *user), *delivered, *seen);
            }
        }
    }

    fn begin(&mut self, history: &History, on: Connection, session: Session, found: &mut Found<'_>) {
        found.coverage.connections += 1;
        let again = self.begun.insert(session, ()).is_some();
        let at = on.0 as usize;
        if self.connections.len() <= at {
            self.connections.resize_with(at + 1, ConnectionState::nobody);
        }
        let user = history.sessions.get(session.0 as usize).copied().unwrap_or(User(u32::MAX));
        self.connections[at] =
            ConnectionState { session: Some(session), user, again, open: Vec::new(), page: Vec::new() };
    }

    fn end(&mut self, on: Connection) {
        if let Some(state) = self.connections.get_mut(on.0 as usize) {
            // Tries without a reply stay open for ever: their outcome is unknown.
            state.open = Vec::new();
            state.page = Vec::new();
        }
    }

    fn open(&mut self, At { index, on }: At, call: Call, room: Room, of_try: u32) {
        let state = self.room_mut(room);
        let (floor, floor_by) = (state.told, state.told_by);
        let place = on.0 as usize;
        if self.connections.len() <= place {
            self.connections.resize_with(place + 1, ConnectionState::nobody);
        }
        self.connections[place].open.push(Open { call, room, record: index, floor, floor_by, of_try });
    }

    fn find(&self, on: Connection, call: Call) -> Option<Open> {
        self.connections.get(on.0 as usize)?.open.iter().find(|open| open.call == call).copied()
    }

    /// Takes the command that is answered. Without a room any of that call.
    fn close(&mut self, on: Connection, call: Call, room: Option<Room>) -> Option<Open> {
        let open = &mut self.connections.get_mut(on.0 as usize)?.open;
        let at =
            open.iter().position(|open| open.call == call && room.is_none_or(|room| open.room == room))?;
        Some(open.swap_remove(at))
    }

    fn user(&self, on: Connection) -> User {
        self.connections.get(on.0 as usize).map_or(User(u32::MAX), |state| state.user)
    }

    pub(crate) fn room(&self, room: Room) -> Option<&RoomState> {
        self.rooms.get(room.0 as usize)
    }

    fn room_mut(&mut self, room: Room) -> &mut RoomState {
        let at = room.0 as usize;
        if self.rooms.len() <= at {
            self.rooms.resize_with(at + 1, || RoomState { told_by: NONE, ..RoomState::default() });
        }
        &mut self.rooms[at]
    }

    /// The room has come at least this far, as somebody knows now.
    fn told(&mut self, room: Room, seq: Seq, by: u32) {
        let state = self.room_mut(room);
        if seq > state.told {
            (state.told, state.told_by) = (seq, by);
        }
    }

    fn note_half(&mut self) {
        self.half = None;
        for room in &mut self.rooms {
            room.told_at_half = Some(room.told);
        }
    }

    /// I10: a read that was begun after something was told includes it.
    fn read(&mut self, found: &mut Found<'_>, at: At, open: Open, head: Seq) {
        let world = self.world;
        let At { index, on } = at;
        found.checked(Promise::I10);
        let view = world.view(open.room, self.user(on));
        let least = view.cap(open.floor);
        if head < least {
            found.broken(Promise::I10, index, |slice| {
                let room = slice.room(open.room);
                slice.say(format!(
                    "{room}: a read begun when seq {} had been told names the head {head}",
                    open.floor
                ));
                slice.record(open.floor_by);
                slice.record(open.record);
                slice.with_owners(world.slot(open.room));
            });
        }
        found.checked(Promise::I12);
        // Who comes back without an event is told the head that was there before: the last one of its absence.
        let away = view.out_at(head).is_some_and(|(_, last)| last != head);
        if head > Seq(0) && away && !view.stranger {
            let user = self.user(on);
            found.broken(Promise::I12, index, |slice| {
                slice.say(format!(
                    "{}: the head {head} is told to {}, who was out of the room there",
                    slice.room(open.room),
                    slice.user(user)
                ));
                tell_view(slice, view);
                slice.record(open.record);
            });
        }
    }

    /// I1: a room's log lives on.
    fn log_told(&mut self, found: &mut Found<'_>, index: u32, room: Room, log: Log) {
        let world = self.world;
        let stored = world.room(room).and_then(|room| room.stored.log);
        let first = *self.room_mut(room).log.get_or_insert((log, index));
        if stored.is_some_and(|stored| stored != log) || first.0 != log {
            found.broken(Promise::I1, index, |slice| {
                let name = slice.room(room);
                slice.say(format!("{name}: the log has another life than before: {log}"));
                slice.record(first.1);
                if let Some(stored) = stored {
                    slice.fact(format!("{name}: log {stored}"));
                }
                slice.with_owners(world.slot(room));
            });
        }
    }

    fn live_cursor(&self, on: Connection, room: Room) -> Option<u32> {
        let at = *self.cursor_of.get(&(on, room))?;
        (self.cursors[at as usize].mode == Mode::Live).then_some(at)
    }
}

impl ConnectionState {
    const fn nobody() -> Self {
        Self { session: None, user: User(u32::MAX), again: false, open: Vec::new(), page: Vec::new() }
    }
}

/// I2 and I8 for an event that somebody was told: it is the one in the store, and it was sent before.
fn judge_told(
    pass: &mut Pass<'_>,
    found: &mut Found<'_>,
    index: u32,
    room: Room,
    event: &crate::history::Event,
) {
    let world = pass.world;
    let first = pass.room_mut(room).firsts.note(event.seq, index);
    if let Some(stored) = world.room(room)
        && event.seq > stored.stored.floor
    {
        found.checked(Promise::I2);
        match stored.row(event.seq) {
            Some(row) if row.event == *event => {}
            Some(row) => found.broken(Promise::I2, index, |slice| {
                slice.say(format!("{}: seq {} has two contents", slice.room(room), event.seq));
                slice.row(room, row);
            }),
            None => {
                found.checked(Promise::I1);
                found.broken(Promise::I1, index, |slice| {
                    slice.say(format!(
                        "{}: seq {} was told and is not in the store",
                        slice.room(room),
                        event.seq
                    ));
                    let void = stored.stored.void.iter().find(|row| row.event == *event);
                    void.into_iter().for_each(|row| slice.row(room, row));
                    slice.fact(format!("{}: the log ends at {}", slice.room(room), stored.last));
                    slice.with_owners(world.slot(room));
                });
            }
        }
    } else if first != index {
        found.checked(Promise::I2);
        let other = match &world.history.records[first as usize].what {
            What::Event { event, .. } | What::PageEvent { event, .. } => Some(event),
            _ => None,
        };
        if other.is_some_and(|other| other != event) {
            found.broken(Promise::I2, index, |slice| {
                slice.say(format!("{}: seq {} has two contents", slice.room(room), event.seq));
                slice.record(first);
            });
        }
    }
    if first == index && event.kind == Kind::Message {
        found.checked(Promise::I8);
        let sent = event.message.and_then(|message| pass.intent_of.get(&(room, event.sender, message)));
        if sent.is_none() {
            found.broken(Promise::I8, index, |slice| {
                let sender = slice.user(event.sender);
                slice.say(format!(
                    "{}: seq {} is told, and {sender} has not sent it so far",
                    slice.room(room),
                    event.seq
                ));
            });
        }
    }
}

fn tell_view(slice: &mut crate::found::Slice<'_>, view: &crate::world::View) {
    let out: Vec<String> = view
        .out
        .iter()
        .map(|(first, last)| match last.0 {
            u64::MAX => format!("from {first} on"),
            last => format!("{first} to {last}"),
        })
        .collect();
    slice.fact(if view.stranger {
        "never in the room".to_owned()
    } else {
        format!("out of the room {}", out.join(", "))
    });
}
