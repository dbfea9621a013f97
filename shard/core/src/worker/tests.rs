//! A worker on a store of a few maps, spoken to as its shell does.

use banyan_proto::id::{Origin, SegmentId, UnixMs};
use banyan_proto::link::{Person, RoomCall, RoomCommand};
use banyan_storage::log_store::SEGMENTS_MAX;
use banyan_storage::{MemberRow, RoomRow, Row};

use super::*;

const ME: Incarnation = Incarnation(0xA);
const OTHER: Incarnation = Incarnation(0xB);
const SLOT: SlotId = SlotId(0);
const LINK: LinkId = LinkId(0);

#[derive(Debug, Default, Clone)]
struct Store {
    segments: BTreeMap<RoomId, BTreeMap<SegmentId, SegmentRecord>>,
    rows: BTreeMap<(RoomId, SegmentId), BTreeMap<Seq, Row>>,
    said: BTreeMap<RoomId, Said>,
    rooms: BTreeMap<RoomId, RoomRow>,
    members: BTreeMap<(RoomId, UserId), MemberRow>,
    fenced: bool,
}

impl Store {
    fn write(&mut self, write: RoomWrite) {
        let RoomWrite { room, write, .. } = write;
        match write {
            Write::Record(record) => {
                let records = self.segments.entry(room).or_default();
                let known = records.entry(record.id).or_insert_with(|| (*record).clone());
                assert_eq!(*known, *record, "a record with two contents");
            }
            Write::Rows { segment, rows, .. } => {
                let stored = self.rows.entry((room, segment)).or_default();
                for row in rows.iter() {
                    let known = stored.entry(row.seq).or_insert_with(|| row.clone());
                    assert_eq!(known, row, "a row with two contents");
                }
            }
            Write::Derived(derived) => {
                if let Some(row) = derived.room {
                    self.rooms.insert(room.clone(), row);
                }
                for member in derived.members {
                    self.members.insert((room.clone(), member.user.clone()), member);
                }
            }
            Write::Said(said) => {
                self.said.insert(room, said);
            }
        }
    }

    fn read(&self, room: &RoomId, read: Read) -> ReadAnswer {
        match read {
            Read::Segments => {
                let records =
                    self.segments.get(room).into_iter().flat_map(|records| records.values().cloned());
                ReadAnswer::Segments(Ok(records.collect()))
            }
            Read::Said => ReadAnswer::Said(Ok(self.said.get(room).copied())),
            Read::Rows { spans, range, limit } => {
                let wanted = |seq: Seq| match range {
                    Range::After { after, through } => seq > after && seq <= through,
                    Range::Before { before, above } => seq < before && seq > above,
                };
                let mut rows: Vec<Row> = spans
                    .iter()
                    .filter_map(|span| Some((span, self.rows.get(&(room.clone(), span.segment))?)))
                    .flat_map(|(span, rows)| {
                        rows.values().filter(|row| row.seq >= span.first && row.seq <= span.last)
                    })
                    .filter(|row| wanted(row.seq))
                    .cloned()
                    .collect();
                let more = rows.len() > limit.events;
                match range {
                    Range::After { .. } => rows.truncate(limit.events),
                    Range::Before { .. } => drop(rows.drain(..rows.len().saturating_sub(limit.events))),
                }
                ReadAnswer::Rows(Ok(Page { rows, more }))
            }
            Read::Room => {
                let row = self.rooms.get(room).cloned();
                let members = self.members.iter().filter(|((of, _), _)| of == room);
                let members = members.map(|(_, member)| (member.clone(), Marks::default())).collect();
                ReadAnswer::Room(Ok(Box::new(RoomRead { row, members })))
            }
        }
    }

    fn seqs(&self, id: &str) -> Vec<u64> {
        let mut seqs: Vec<u64> = self
            .rows
            .iter()
            .filter(|((of, _), _)| *of == room(id))
            .flat_map(|(_, rows)| rows.keys().map(|seq| seq.0))
            .collect();
        seqs.sort_unstable();
        seqs
    }
}

struct World {
    worker: Worker,
    store: Store,
    ms: u64,
    /// Writes, reads of rooms and fence reads are kept until they are let go.
    hold_writes: bool,
    hold_fences: bool,
    held: Vec<Output>,
    /// What each link got.
    said: Vec<(LinkId, FromShard)>,
    /// Marks that were given to the store.
    marks: Vec<(UserId, Marks)>,
    /// What concerns the node.
    told: Vec<Output>,
    full: bool,
    next: u64,
}

fn room(id: &str) -> RoomId {
    RoomId::parse(id).unwrap()
}

fn tenure(epoch: u64) -> Tenure {
    Tenure { epoch: Epoch(epoch), incarnation: ME }
}

fn text(id: &str) -> RoomCommand {
    let send = v1::Send { client_msg_id: id.to_owned(), text: Some("x".to_owned()), ..v1::Send::default() };
    RoomCommand::Send(send)
}

fn create() -> RoomCommand {
    let kind = v1::RoomKind::Group;
    RoomCommand::Create { kind, name: "general".to_owned(), public: true, members: Vec::new() }
}

impl World {
    /// Serves the one slot that there is.
    fn new() -> Self {
        let mut world = Self::elsewhere();
        world.input(Input::Serve { slot: SLOT, tenure: tenure(1), opening: SlotOpening::Full });
        world
    }

    fn elsewhere() -> Self {
        let options = Options {
            index: 0,
            workers: 1,
            slots: SlotCount::new(1).unwrap(),
            incarnation: ME,
            seed: 1,
            open_rooms: 100,
            idle_ms: 60_000,
            room: Arc::new(Config { hash_seed: 3, ..Config::default() }),
        };
        Self {
            worker: Worker::new(options, Now { mono_ms: 1, unix: UnixMs(1_700_000_000_000) }),
            store: Store::default(),
            ms: 1,
            hold_writes: false,
            hold_fences: false,
            held: Vec::new(),
            said: Vec::new(),
            marks: Vec::new(),
            told: Vec::new(),
            full: false,
            next: 0,
        }
    }

    /// One input, and what follows from it at once.
    fn input(&mut self, input: Input) {
        let now = Now { mono_ms: self.ms, unix: UnixMs(1_700_000_000_000 + self.ms) };
        let mut inputs = vec![input];
        loop {
            let mut out = Vec::new();
            for input in inputs.drain(..) {
                self.worker.handle(now, input, &mut out);
            }
            self.worker.handle(now, Input::EndTurn, &mut out);
            if out.is_empty() {
                return;
            }
            for output in out {
                let holds = match output {
                    Output::Write(_) => self.hold_writes,
                    Output::FenceRead { .. } => self.hold_fences,
                    _ => false,
                };
                if holds {
                    self.held.push(output);
                } else {
                    inputs.extend(self.perform(output));
                }
            }
        }
    }

    fn perform(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Write(write) => {
                let ticket = write.ticket;
                self.store.write(write);
                Some(Input::Wrote { ticket, outcome: Outcome::Done })
            }
            Output::Read { ticket, room, read } => {
                Some(Input::Read { ticket, answer: self.store.read(&room, read) })
            }
            Output::UserRooms { ticket, .. } => {
                Some(Input::Read { ticket, answer: ReadAnswer::UserRooms(Ok((Vec::new(), false))) })
            }
            Output::FenceRead { read } => Some(Input::FenceRead { read, result: Ok(self.store.fenced) }),
            Output::ToLink { link, messages } if self.full => Some(Input::LinkFull { link, messages }),
            Output::ToLink { link, messages } => {
                self.said.extend(messages.into_iter().map(|message| (link, message)));
                None
            }
            Output::PutMarks { marks, .. } => {
                self.marks.extend(marks);
                None
            }
            Output::Notify { .. } => None,
            Output::Drained { .. }
            | Output::Fenced
            | Output::Stuck
            | Output::Damaged { .. }
            | Output::TooManySegments { .. } => {
                self.told.push(output);
                None
            }
        }
    }

    fn let_go(&mut self) {
        (self.hold_writes, self.hold_fences) = (false, false);
        while !self.held.is_empty() {
            for output in std::mem::take(&mut self.held) {
                if let Some(input) = self.perform(output) {
                    self.input(input);
                }
            }
        }
    }

    fn call(&mut self, link: LinkId, user: &str, id: &str, command: RoomCommand) -> Ticket {
        self.next += 1;
        let (ticket, origin) = (Ticket(self.next), Origin(1));
        let caller = Person { user: UserId::parse(user).unwrap(), name: user.into() };
        let call = Box::new(RoomCall { ticket, caller, origin, command });
        self.input(Input::Link { link, message: ToShard::Room { room: room(id), call } });
        ticket
    }

    #[track_caller]
    fn ask(&mut self, id: &str, command: RoomCommand) -> FromShard {
        let ticket = self.call(LINK, "alice", id, command);
        self.answer(ticket).unwrap_or_else(|| panic!("no answer: {:?}", self.held))
    }

    fn answer(&self, wanted: Ticket) -> Option<FromShard> {
        let answers = |message: &&FromShard| match message {
            FromShard::Answer { ticket, .. } => *ticket == wanted,
            FromShard::Moved { ticket, .. } => *ticket == Some(wanted),
            _ => false,
        };
        self.said.iter().map(|(_, message)| message).find(answers).cloned()
    }

    /// Where a question was sent to, if it was.
    fn moved(&self, asked: Ticket) -> Option<(u64, Option<Incarnation>)> {
        match self.answer(asked) {
            Some(FromShard::Moved { slot: SLOT, epoch, owner, .. }) => Some((epoch.0, owner)),
            _ => None,
        }
    }

    fn passes_time(&mut self, ms: u64) {
        let until = self.ms + ms;
        while let Some(at) = self.worker.next_deadline().filter(|at| *at <= until) {
            self.ms = self.ms.max(at);
            self.input(Input::Tick);
            assert!(
                self.worker.next_deadline().is_none_or(|next| next > self.ms),
                "the deadline has not moved"
            );
        }
        self.ms = until;
    }
}

#[track_caller]
fn sent(message: &FromShard) -> (u64, u64) {
    match message {
        FromShard::Answer { epoch, answer: Answer::Sent { seq, .. }, .. } => (seq.0, epoch.0),
        other => panic!("not sent: {other:?}"),
    }
}

#[test]
fn what_is_not_served_is_sent_to_whom_the_worker_knows() {
    let mut world = World::elsewhere();
    let ticket = world.call(LINK, "alice", "r", create());
    assert_eq!(world.moved(ticket), Some((0, None)));
    world.input(Input::Owner { slot: SLOT, epoch: Epoch(4), owner: Some(OTHER) });
    let ticket = world.call(LINK, "alice", "r", create());
    assert_eq!(world.moved(ticket), Some((4, Some(OTHER))));
    world.said.clear();
    let alice = UserId::parse("alice").unwrap();
    for message in [ToShard::UserOnline { user: alice }, ToShard::Interest { room: room("r"), after: Seq(0) }]
    {
        world.input(Input::Link { link: LINK, message });
        let (_, message) = world.said.pop().unwrap();
        assert!(matches!(message, FromShard::Moved { ticket: None, epoch: Epoch(4), .. }), "{message:?}");
    }
    assert!(world.store.segments.is_empty() && world.worker.counters().fence_reads == 0);

    world.input(Input::Serve { slot: SLOT, tenure: tenure(5), opening: SlotOpening::Full });
    world.ask("r", create());
    assert_eq!(sent(&world.ask("r", text("a"))).1, 5);
}

#[test]
fn a_room_of_too_many_segments_is_an_error_in_words_and_somebody_is_told() {
    let mut world = World::new();
    world.ask("r", create());
    world.input(Input::Serve { slot: SLOT, tenure: tenure(1 << 20), opening: SlotOpening::Full });
    let records = world.store.segments.get_mut(&room("r")).unwrap();
    let first = records.values().next().unwrap().clone();
    for epoch in 2.. {
        if records.len() > SEGMENTS_MAX {
            break;
        }
        let id = SegmentId { epoch: Epoch(epoch), ..first.id };
        records.insert(id, SegmentRecord { id, ..first.clone() });
    }
    world.store.said.clear();
    let FromShard::Answer { answer: Answer::Error(error), .. } = world.ask("r", text("a")) else {
        panic!("opened")
    };
    assert_eq!(error.code, Code::Internal.number());
    assert_eq!(error.message, "the room's log has too many parts to be read");
    assert_eq!(world.told, [Output::TooManySegments { room: room("r") }]);
}

/// Two that cross: the drain is done, and is called off. A room was opening, so nobody knows what of that is stored.
#[test]
fn an_opening_that_was_cut_short_is_not_gone_on_with() {
    let mut world = World::new();
    world.ask("r", create());
    world.input(Input::Serve { slot: SLOT, tenure: tenure(2), opening: SlotOpening::Full });
    world.hold_writes = true;
    let send = world.call(LINK, "alice", "r", text("a"));
    let record = loop {
        let Some(Output::Write(write)) = world.held.pop() else { panic!("no record of its own") };
        match &write.write {
            Write::Record(record) if record.id.epoch == Epoch(2) => break write,
            _ => {
                let input = world.perform(Output::Write(write)).unwrap();
                world.input(input);
            }
        }
    };
    // Stored, at one replica perhaps, and never answered.
    world.store.write(record);
    world.input(Input::Drain { slot: SLOT, drain: 1 });
    assert!(matches!(world.told.pop(), Some(Output::Drained { drain: 1, .. })));
    assert_eq!(world.moved(send), Some((2, None)));
    world.input(Input::Resume { slot: SLOT, tenure: tenure(2) });
    world.hold_writes = false;
    assert_eq!(sent(&world.ask("r", text("a"))), (2, 2));
    let of = |world: &World, epoch: u64| {
        world.store.segments[&room("r")].keys().filter(|id| id.epoch == Epoch(epoch)).count()
    };
    assert_eq!(of(&world, 2), 2, "opened as if somebody else had been there");
    // In a tenure of its own nothing was cut short: the room comes to rest, and goes on in its segment.
    world.input(Input::Serve { slot: SLOT, tenure: tenure(3), opening: SlotOpening::Full });
    assert_eq!(sent(&world.ask("r", text("b"))), (3, 3));
    world.passes_time(130_000);
    assert_eq!(world.worker.sizes().0, 0);
    assert_eq!((sent(&world.ask("r", text("c"))), of(&world, 3)), ((4, 3), 1));
}

#[test]
fn rooms_make_no_batches_that_nobody_can_be_told_of() {
    let mut world = World::new();
    world.ask("r", create());
    world.hold_fences = true;
    for number in 0..GATE_MAX as u64 {
        let pull = ToShard::Pull {
            room: room("r"),
            ticket: Ticket(1 << 40 | number),
            after: Seq(0),
            through: None,
            max_events: 1,
            max_bytes: 1,
        };
        world.input(Input::Link { link: LINK, message: pull });
    }
    let before = world.store.seqs("r");
    let send = world.call(LINK, "alice", "r", text("a"));
    assert!(world.worker.unsaid() >= GATE_MAX);
    assert_eq!(world.store.seqs("r"), before, "it waits in its room");
    world.let_go();
    assert_eq!(world.store.seqs("r").len(), before.len() + 1);
    assert_eq!((sent(&world.answer(send).unwrap()).1, world.worker.unsaid()), (1, 0));
}

#[test]
fn nothing_is_said_before_a_fence_read_that_began_after_it() {
    let mut world = World::new();
    world.ask("r", create());
    world.ask("r", RoomCommand::Subscribe);
    let before = world.said.len();
    world.hold_fences = true;
    let send = world.call(LINK, "alice", "r", text("a"));
    let asked = world.call(LINK, "alice", "r", RoomCommand::Summary);
    assert_eq!(world.store.seqs("r").last(), Some(&2), "stored");
    assert_eq!(world.said.len(), before, "but not said");
    world.let_go();
    let said: Vec<_> = world.said[before..].iter().map(|(_, message)| message).collect();
    assert!(matches!(said[0], FromShard::Events { .. }), "{said:?}");
    assert!(world.answer(send).is_some() && world.answer(asked).is_some());
}

#[test]
fn once_fenced_the_worker_is_silent_for_ever() {
    let mut world = World::new();
    world.ask("r", create());
    world.hold_fences = true;
    world.call(LINK, "alice", "r", text("a"));
    world.store.fenced = true;
    let said = world.said.len();
    world.let_go();
    world.call(LINK, "alice", "r", text("b"));
    world.input(Input::Serve { slot: SLOT, tenure: tenure(9), opening: SlotOpening::Full });
    world.call(LINK, "alice", "r", text("c"));
    assert_eq!((world.said.len(), &*world.told), (said, &[Output::Fenced][..]));
    assert!(world.worker.is_fenced() && world.worker.next_deadline().is_none());
}

#[test]
fn without_a_readable_fence_the_worker_is_stuck_after_two_seconds() {
    let mut world = World::new();
    world.ask("r", create());
    world.hold_fences = true;
    world.call(LINK, "alice", "r", text("a"));
    for _ in 0..400 {
        world.passes_time(10);
        for output in std::mem::take(&mut world.held) {
            let Output::FenceRead { read } = output else { panic!("{output:?}") };
            world.input(Input::FenceRead { read, result: Err(Failed) });
        }
        if !world.told.is_empty() {
            break;
        }
    }
    assert_eq!(world.told, [Output::Stuck]);
    assert!((1_900..2_200).contains(&world.ms), "{}", world.ms);
}

#[test]
fn a_drained_slot_has_nothing_in_flight_and_says_nothing_more() {
    let mut world = World::new();
    world.ask("r", create());
    world.ask("r", RoomCommand::Subscribe);
    world.hold_writes = true;
    let in_flight = world.call(LINK, "alice", "r", text("a"));
    let queued = world.call(LINK, "alice", "r", text("b"));
    world.input(Input::Drain { slot: SLOT, drain: 1 });
    let late = world.call(LINK, "alice", "r", text("c"));
    assert_eq!(world.moved(queued), Some((1, None)));
    assert_eq!(world.moved(late), Some((1, None)));
    assert!(world.told.is_empty() && world.answer(in_flight).is_none());
    world.let_go();
    assert_eq!(sent(&world.answer(in_flight).unwrap()), (2, 1));
    let [Output::Drained { slot: SLOT, drain: 1, tenure: by, rooms }] = &*world.told else {
        panic!("{:?}", world.told)
    };
    assert_eq!((*by, rooms.len(), &rooms[0].room), (tenure(1), 1, &room("r")));
    assert_eq!(world.store.said[&room("r")].head, Seq(2));

    let said = world.said.len();
    world.passes_time(120_000);
    assert_eq!(world.said.len(), said);
    let late = world.call(LINK, "alice", "r", text("c"));
    assert_eq!(world.moved(late), Some((1, None)));
    world.input(Input::Release { slot: SLOT, to: Some(Tenure { epoch: Epoch(2), incarnation: OTHER }) });
    let late = world.call(LINK, "alice", "r", text("c"));
    assert_eq!(world.moved(late), Some((2, Some(OTHER))));
}

#[test]
fn marks_that_rose_during_a_drain_are_written_by_the_next_owner_too() {
    let mut world = World::new();
    world.ask("r", create());
    world.hold_writes = true;
    world.call(LINK, "alice", "r", text("a"));
    world.input(Input::Drain { slot: SLOT, drain: 1 });
    world.let_go();
    let Some(Output::Drained { rooms, .. }) = world.told.pop() else { panic!("not drained") };
    let mut next = World::elsewhere();
    next.store = world.store.clone();
    next.input(Input::Handed { slot: SLOT, epoch: Epoch(2), rooms });
    let opening = SlotOpening::HandedOver { state: Epoch(2) };
    next.input(Input::Serve { slot: SLOT, tenure: tenure(2), opening });
    // It opens the room, and tells nobody of a mark.
    next.ask("r", RoomCommand::History { before: None, after: None, limit: 1 });
    next.passes_time(2_000);
    let lifted = Marks { delivered: Seq(2), seen: Seq(2), seen_n: 1 };
    assert_eq!(next.marks, [(UserId::parse("alice").unwrap(), lifted)]);
    // And are its own then: a store that does not show them yet does not lower them.
    next.worker.options.open_rooms = 1;
    next.call(LINK, "alice", "other", RoomCommand::Summary);
    assert_eq!(seen(&mut next), (2, 2));
}

/// How far alice has got, as she is told when she states less.
#[track_caller]
fn seen(world: &mut World) -> (u64, u64) {
    match world.ask("r", RoomCommand::Mark { delivered: None, seen: Some(Seq(1)) }) {
        FromShard::Answer { answer: Answer::Body(body), .. } => match *body {
            v1::server_frame::Body::Mark(marks) => (marks.delivered, marks.seen),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// The store of these tests never shows a mark: as one that has not got round to writing them.
#[test]
fn a_room_that_opens_again_soon_tells_no_lower_marks_than_it_has_told() {
    let mut world = World::new();
    world.worker.options.open_rooms = 1;
    world.ask("r", create());
    assert_eq!(sent(&world.ask("r", text("a"))), (2, 1));
    assert_eq!(seen(&mut world), (2, 2));
    // Closed for the sake of another, with the mark at the gate.
    world.hold_fences = true;
    world.call(LINK, "alice", "other", RoomCommand::Summary);
    world.let_go();
    assert_eq!(seen(&mut world), (2, 2));
    assert_eq!(world.worker.counters().late_marks_used, 1);
    // And once more, though it was read and lifted alone.
    world.ask("other", create());
    assert_eq!(seen(&mut world), (2, 2));
    // In a tenure of its own as well, which reads.
    world.input(Input::Release { slot: SLOT, to: Some(Tenure { epoch: Epoch(2), incarnation: OTHER }) });
    world.input(Input::Serve { slot: SLOT, tenure: tenure(3), opening: SlotOpening::Full });
    assert_eq!(seen(&mut world), (2, 2));
    // When the store can be trusted to have them, what it has counts.
    world.passes_time(300_000);
    assert_eq!(world.worker.sizes().0, 0);
    assert_eq!(seen(&mut world), (1, 1));
    assert_eq!(world.worker.counters().late_marks_forgotten, 0);
}

#[test]
fn a_slot_that_stays_goes_on_in_its_tenure_or_after_the_drain_in_a_new_one() {
    let mut world = World::new();
    world.ask("r", create());
    world.hold_writes = true;
    let in_flight = world.call(LINK, "alice", "r", text("a"));
    world.input(Input::Drain { slot: SLOT, drain: 1 });
    world.input(Input::Resume { slot: SLOT, tenure: tenure(1) });
    world.let_go();
    assert_eq!(sent(&world.answer(in_flight).unwrap()), (2, 1));
    assert_eq!((sent(&world.ask("r", text("b"))), world.told.len()), ((3, 1), 0));

    world.input(Input::Drain { slot: SLOT, drain: 2 });
    assert!(matches!(world.told[..], [Output::Drained { drain: 2, .. }]), "{:?}", world.told);
    // Called off too late to be seen; nobody else can have had it.
    world.input(Input::Resume { slot: SLOT, tenure: tenure(1) });
    assert_eq!(sent(&world.ask("r", text("b2"))), (4, 1));
    world.input(Input::Drain { slot: SLOT, drain: 3 });
    world.input(Input::Resume { slot: SLOT, tenure: tenure(2) });
    assert_eq!(sent(&world.ask("r", text("c"))), (5, 2));
    assert_eq!(sent(&world.ask("r", text("b"))), (3, 2), "known after the log was opened again");
}

#[test]
fn a_room_that_was_just_opening_at_the_drain_does_not_go_on_in_what_it_may_have_begun() {
    let mut before = World::new();
    before.ask("r", create());
    let mut world = World::elsewhere();
    world.store = before.store;
    world.input(Input::Serve { slot: SLOT, tenure: tenure(2), opening: SlotOpening::Full });
    world.hold_writes = true;
    let asked = world.call(LINK, "alice", "r", text("a"));
    // The newest part is written again; then comes the own record, which lands somewhere and is not answered.
    for output in std::mem::take(&mut world.held) {
        let input = world.perform(output).unwrap();
        world.input(input);
    }
    let [Output::Write(record)] = &*world.held else { panic!("{:?}", world.held) };
    let own = record.clone();
    assert!(matches!(&own.write, Write::Record(record) if record.id.epoch == Epoch(2)), "{own:?}");
    world.store.write(own);
    world.input(Input::Drain { slot: SLOT, drain: 1 });
    assert_eq!(world.moved(asked), Some((2, None)));
    assert!(matches!(world.told[..], [Output::Drained { .. }]), "{:?}", world.told);

    // It is called off: the room begins a segment of its own all the same.
    world.hold_writes = false;
    world.input(Input::Resume { slot: SLOT, tenure: tenure(2) });
    assert_eq!(sent(&world.ask("r", text("a"))), (2, 2));
    assert_eq!(world.store.segments[&room("r")].len(), 3);
    world.let_go();
    assert_eq!(sent(&world.ask("r", text("a"))), (2, 2));
}

#[test]
fn state_is_used_for_the_epoch_that_it_was_made_for_and_no_other() {
    let mut world = World::new();
    world.ask("r", create());
    world.ask("r", text("a"));
    world.input(Input::Drain { slot: SLOT, drain: 1 });
    let Some(Output::Drained { rooms, .. }) = world.told.pop() else { panic!("not drained") };
    let handed_over = SlotOpening::HandedOver { state: Epoch(2) };
    let mut passed = Vec::new();
    for (made_for, opening) in [(2, handed_over), (3, handed_over), (2, SlotOpening::Full)] {
        let mut next = World::elsewhere();
        next.store = world.store.clone();
        next.input(Input::Handed { slot: SLOT, epoch: Epoch(made_for), rooms: rooms.clone() });
        next.input(Input::Serve { slot: SLOT, tenure: tenure(2), opening });
        assert_eq!(sent(&next.ask("r", text("b"))), (3, 2));
        assert_eq!(sent(&next.ask("r", text("a"))), (2, 2));
        assert_eq!(next.store.seqs("r"), [1, 2, 3]);
        passed.push(next.worker.counters().opened_passed);
    }
    assert_eq!(passed, [1, 0, 0]);
}

#[test]
fn after_the_last_word_of_a_slot_no_room_of_it_speaks() {
    let mut world = World::new();
    world.ask("r", create());
    world.ask("r", text("a"));
    world.call(LinkId(1), "bob", "r", RoomCommand::Join);
    world.call(LinkId(1), "bob", "r", RoomCommand::Subscribe);
    let marks = |seen| RoomCommand::Mark { delivered: None, seen: Some(Seq(seen)) };
    // The second one within a second is told later.
    world.call(LinkId(1), "bob", "r", marks(1));
    world.call(LinkId(1), "bob", "r", marks(2));
    let told = |world: &World| {
        world.said.iter().filter(|(_, message)| matches!(message, FromShard::Marks { .. })).count()
    };
    assert_eq!(told(&world), 1);
    let mut undisturbed = World { said: Vec::new(), worker: world.worker.clone(), ..World::elsewhere() };
    undisturbed.passes_time(1_500);
    assert_eq!(told(&undisturbed), 1, "it would be told");

    world.hold_fences = true;
    world.input(Input::Drain { slot: SLOT, drain: 1 });
    world.passes_time(1_500);
    world.let_go();
    assert!(matches!(world.told[..], [Output::Drained { .. }]), "{:?}", world.told);
    assert_eq!(told(&world), 1);
}

#[test]
fn a_drain_that_was_called_off_does_not_count_for_the_next() {
    for in_flight in [false, true] {
        let mut world = World::new();
        world.ask("r", create());
        world.hold_fences = true;
        world.input(Input::Drain { slot: SLOT, drain: 1 });
        world.input(Input::Resume { slot: SLOT, tenure: tenure(1) });
        world.hold_writes = in_flight;
        let send = world.call(LINK, "alice", "r", text("a"));
        world.input(Input::Drain { slot: SLOT, drain: 2 });
        // The fence read under way covers the last word of the first drain alone.
        let fence = world.held.remove(0);
        assert!(matches!(fence, Output::FenceRead { .. }), "{fence:?}");
        let passed = world.perform(fence).unwrap();
        world.input(passed);
        assert!(world.told.is_empty() && world.answer(send).is_none(), "{:?}", world.told);
        world.let_go();
        assert_eq!(sent(&world.answer(send).unwrap()), (2, 1));
        assert!(matches!(world.told[..], [Output::Drained { drain: 2, .. }]), "{:?}", world.told);
    }
}

#[test]
fn a_lost_slot_drops_its_rooms_and_gives_back_what_waits() {
    let mut world = World::new();
    world.ask("r", create());
    world.hold_writes = true;
    let in_flight = world.call(LINK, "alice", "r", text("a"));
    let queued = world.call(LINK, "alice", "r", text("b"));
    world.input(Input::Release { slot: SLOT, to: Some(Tenure { epoch: Epoch(2), incarnation: OTHER }) });
    assert_eq!(world.moved(queued), Some((2, Some(OTHER))));
    world.let_go();
    assert_eq!((world.answer(in_flight), world.worker.sizes().0), (None, 0));
    assert!(world.told.is_empty());
}

#[test]
fn a_full_link_is_told_by_a_beacon_what_it_has_missed() {
    let mut world = World::new();
    world.ask("r", create());
    world.call(LinkId(1), "alice", "r", RoomCommand::Subscribe);
    world.full = true;
    let send = world.call(LINK, "alice", "r", text("a"));
    world.full = false;
    world.said.clear();
    world.hold_fences = true;
    world.input(Input::LinkTook(LINK));
    assert!(world.answer(send).is_some(), "answers are kept");
    world.input(Input::LinkTook(LinkId(1)));
    assert_eq!(world.said.len(), 1, "a head is an utterance");
    world.let_go();
    let (link, FromShard::Head { head, epoch, .. }) = &world.said[1] else { panic!("{:?}", world.said) };
    assert_eq!((*link, *head, *epoch), (LinkId(1), Seq(2), Epoch(1)));
}

/// A link that has lost an absence: too many of them came while it was full.
fn without_an_absence() -> World {
    let mut world = World::new();
    world.ask("r", create());
    world.call(LINK, "bob", "r", RoomCommand::Join);
    world.call(LINK, "bob", "r", RoomCommand::Leave);
    world.full = true;
    for _ in 0..4_100 {
        let message = ToShard::Interest { room: room("r"), after: Seq(0) };
        world.input(Input::Link { link: LinkId(1), message });
    }
    assert!(world.worker.counters().link_dropped > 4_096);
    world.said.clear();
    world.full = false;
    world
}

#[test]
fn absences_that_a_full_link_lost_are_told_again() {
    let mut world = without_an_absence();
    world.input(Input::LinkTook(LinkId(1)));
    assert!(
        matches!(
            &world.said[..],
            [(LinkId(1), FromShard::Left { user, .. }), (LinkId(1), FromShard::Head { .. })]
                if user.as_str() == "bob"
        ),
        "{:?}",
        world.said
    );
}

#[test]
fn absences_that_a_full_link_lost_are_for_the_next_owner_to_tell() {
    let mut world = without_an_absence();
    let to = Tenure { epoch: Epoch(2), incarnation: OTHER };
    world.input(Input::Release { slot: SLOT, to: Some(to) });
    world.call(LinkId(1), "alice", "r", text("a"));
    world.input(Input::LinkTook(LinkId(1)));
    let moved: Vec<bool> = world
        .said
        .iter()
        .map(|(link, message)| {
            let FromShard::Moved { ticket, epoch: Epoch(2), .. } = message else { panic!("{message:?}") };
            assert_eq!(*link, LinkId(1));
            ticket.is_some()
        })
        .collect();
    assert_eq!(moved, [false, true], "its interests before what it has asked");
}

#[test]
fn interest_is_answered_by_a_head_and_goes_with_the_link() {
    let mut world = World::new();
    world.ask("r", create());
    world.said.clear();
    world.input(Input::Link {
        link: LinkId(1),
        message: ToShard::Interest { room: room("r"), after: Seq(0) },
    });
    assert!(
        matches!(world.said[..], [(LinkId(1), FromShard::Head { head: Seq(1), .. })]),
        "{:?}",
        world.said
    );
    world.ask("r", text("a"));
    assert!(
        world
            .said
            .iter()
            .any(|(link, message)| *link == LinkId(1) && matches!(message, FromShard::Events { .. }))
    );
    world.input(Input::LinkGone(LinkId(1)));
    world.said.clear();
    world.ask("r", text("b"));
    assert!(world.said.iter().all(|(link, _)| *link == LINK), "{:?}", world.said);
    // Nobody listens any more: it is closed, and where it ended is written.
    world.passes_time(200_000);
    assert_eq!((world.worker.sizes().0, world.store.said[&room("r")].head), (0, Seq(3)));
    let segments = world.store.segments[&room("r")].len();
    assert!(matches!(
        world.ask("r", RoomCommand::Summary),
        FromShard::Answer { answer: Answer::Summary(_), .. }
    ));
    assert_eq!(world.store.segments[&room("r")].len(), segments, "read without opening in full");
    assert_eq!(sent(&world.ask("r", text("c"))), (4, 1));
    assert_eq!(world.store.segments[&room("r")].len(), segments, "in full, and on in its own segment");
}

#[test]
fn user_channels_go_with_their_slot_and_are_stated_again() {
    let mut world = World::new();
    let bob = UserId::parse("bob").unwrap();
    let online = || ToShard::UserOnline { user: bob.clone() };
    let push = Arc::new(v1::server_frame::Body::RoomGone(v1::RoomGone::default()));
    let pushes = |world: &mut World| {
        world.said.clear();
        let notify = ToShard::Notify { user: bob.clone(), push: Arc::clone(&push) };
        world.input(Input::Link { link: LinkId(u32::MAX), message: notify });
        world.said.len()
    };
    world.input(Input::Link { link: LINK, message: online() });
    assert_eq!(pushes(&mut world), 1);
    world.input(Input::Release { slot: SLOT, to: None });
    world.input(Input::Serve { slot: SLOT, tenure: tenure(3), opening: SlotOpening::Full });
    assert_eq!(pushes(&mut world), 0, "whoever is online now says so");
    for _ in 0..2 {
        world.input(Input::Link { link: LINK, message: online() });
    }
    assert_eq!(pushes(&mut world), 1);
}

#[test]
fn the_end_of_logins_reaches_every_link_that_the_user_is_on_and_no_other() {
    let mut world = World::new();
    let user = |name: &str| UserId::parse(name).unwrap();
    for (link, name) in [(LINK, "bob"), (LinkId(77), "bob"), (LinkId(78), "carol")] {
        world.input(Input::Link { link, message: ToShard::UserOnline { user: user(name) } });
    }
    world.said.clear();
    // From a gateway that has no connection of theirs.
    world.input(Input::Link { link: LinkId(79), message: ToShard::LoginsEnded { user: user("bob") } });
    let mut told: Vec<_> = world.said.iter().map(|(link, said)| (*link, said.clone())).collect();
    told.sort_by_key(|(link, _)| *link);
    let ended = FromShard::LoginsEnded { user: user("bob") };
    assert_eq!(told, [(LINK, ended.clone()), (LinkId(77), ended)]);
}

#[test]
fn a_worker_that_stops_completes_what_is_in_flight_and_closes_its_rooms() {
    let mut world = World::new();
    world.ask("r", create());
    world.hold_writes = true;
    let in_flight = world.call(LINK, "alice", "r", text("a"));
    world.input(Input::Stop);
    let late = world.call(LINK, "alice", "r", text("b"));
    assert!(matches!(
        world.answer(late),
        Some(FromShard::Answer { answer: Answer::Error(error), .. }) if error.code == Code::Unavailable.number()
    ));
    assert!(!world.worker.is_done());
    world.let_go();
    assert_eq!(sent(&world.answer(in_flight).unwrap()), (2, 1));
    assert!(world.worker.is_done());
    assert_eq!(world.store.said[&room("r")].head, Seq(2));
}

#[test]
fn the_same_inputs_lead_to_the_same_outputs() {
    let run = || {
        let mut world = World::new();
        for id in ["r", "s", "t"] {
            world.ask(id, create());
            world.call(LinkId(1), "alice", id, RoomCommand::Subscribe);
            world.ask(id, text("a"));
        }
        world.input(Input::Drain { slot: SLOT, drain: 1 });
        (world.said, world.told, world.store.segments)
    };
    assert_eq!(run(), run());
}

#[test]
fn tick_at_the_deadline_moves_the_deadline() {
    let mut world = World::new();
    world.ask("r", create());
    world.ask("r", text("a"));
    // Asserted at every step on the way.
    world.passes_time(600_000);
    assert_eq!(world.worker.sizes().0, 0);
}
