//! Random commands, retries, faults, crashes, handoffs and closes against a store in memory; the promises of DESIGN.md, section 10,
//! are checked after every step: I1, I2, I3, I5, I7, I8, I9, I10, I11.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::disk::Disk;
use super::tests::{TENURE, now, person};
use super::*;
use crate::log::Limits;
use banyan_proto::id::Origin;
use banyan_proto::link::Person;
use banyan_proto::v1::event::Kind;
use banyan_proto::v1::server_frame::Body;

const USERS: [&str; 4] = ["alice", "bob", "carl", "dora"];
/// The subscriber's link; senders use link 2.
const WATCHER: LinkId = LinkId(1);
/// More than can be stored between a try and the moment it is judged.
const IN_BETWEEN: u64 = 30;

#[derive(Debug, Clone)]
enum Step {
    Send {
        user: usize,
        since: bool,
    },
    /// The same message again, on another connection.
    Retry {
        which: usize,
    },
    /// The same id with another body.
    Reuse {
        which: usize,
    },
    Join {
        user: usize,
    },
    Leave {
        user: usize,
    },
    Remove {
        user: usize,
    },
    Mark {
        user: usize,
        seen: u64,
    },
    History {
        user: usize,
        before: u64,
    },
    Watch,
    Flush,
    Outcome(u8),
    /// A write of unknown outcome arrives after all: of this owner or of an earlier one.
    Late,
    Read {
        ok: bool,
    },
    Pass,
    Wait {
        ms: u64,
    },
    Crash {
        fate: u8,
    },
    /// To a new owner in good order, with what the old one knew or without.
    Handoff {
        state: bool,
    },
    /// The owner sleeps and is fenced; it does not know yet.
    Freeze,
    /// It wakes up for a moment: what it asked is answered, and clients that have not heard of the new owner ask it.
    Thaw {
        user: usize,
        which: usize,
    },
    /// The room goes idle and is opened again by the same owner.
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    let user = 0..USERS.len();
    prop_oneof![
        24 => (user.clone(), any::<bool>()).prop_map(|(user, since)| Step::Send { user, since }),
        15 => (0_usize..64).prop_map(|which| Step::Retry { which }),
        3 => (0_usize..64).prop_map(|which| Step::Reuse { which }),
        3 => user.clone().prop_map(|user| Step::Join { user }),
        3 => user.clone().prop_map(|user| Step::Leave { user }),
        3 => (1..USERS.len()).prop_map(|user| Step::Remove { user }),
        6 => (user.clone(), 0_u64..20).prop_map(|(user, seen)| Step::Mark { user, seen }),
        3 => (user, 1_u64..60).prop_map(|(user, before)| Step::History { user, before }),
        3 => Just(Step::Watch),
        30 => Just(Step::Flush),
        36 => (0_u8..10).prop_map(Step::Outcome),
        3 => Just(Step::Late),
        27 => prop::bool::weighted(0.9).prop_map(|ok| Step::Read { ok }),
        12 => Just(Step::Pass),
        9 => (0_u64..4_000).prop_map(|ms| Step::Wait { ms }),
        1 => (0_u8..3).prop_map(|fate| Step::Crash { fate }),
        1 => any::<bool>().prop_map(|state| Step::Handoff { state }),
        2 => Just(Step::Close),
        1 => Just(Step::Freeze),
        6 => (0..USERS.len(), 0_usize..64).prop_map(|(user, which)| Step::Thaw { user, which }),
    ]
}

/// What has happened at all, so that a run that shows nothing is noticed.
#[derive(Debug, Default)]
struct Coverage {
    stored: Cell<u64>,
    duplicate: Cell<u64>,
    reused: Cell<u64>,
    refused: Cell<u64>,
    unknown: Cell<u64>,
    settled_late: Cell<u64>,
    not_done: Cell<u64>,
    crashed_in_flight: Cell<u64>,
    too_old: Cell<u64>,
    looked: Cell<u64>,
    waited_too_long: Cell<u64>,
    counted_joins: Cell<u64>,
    read_open: Cell<u64>,
    handed_with_state: Cell<u64>,
    handed_without: Cell<u64>,
    returned: Cell<u64>,
    late_of_another: Cell<u64>,
    reapplied: Cell<u64>,
    rolled: Cell<u64>,
    void_rows: Cell<u64>,
}

/// A fenced owner that has not noticed.
#[derive(Debug)]
struct Zombie {
    room: Room,
    asked: Vec<Action>,
}

fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

#[derive(Debug, Clone)]
struct Message {
    user: usize,
    id: String,
    since: Option<u64>,
    /// Head of the store at the first try.
    head: u64,
    /// A refusal said that no try is in the log.
    refused: Option<Code>,
}

#[derive(Debug, Clone)]
enum Question {
    Send { message: usize, body: String },
    Other { user: usize },
}

#[derive(Debug)]
struct World<'a> {
    config: Arc<Config>,
    room: Room,
    now: u64,
    tenure: Tenure,
    openings: u32,
    // The store.
    disk: Disk,
    /// Under way.
    writes: Vec<(u32, Write)>,
    reads: Vec<Action>,
    barrier: Option<u32>,
    /// Their outcome was unknown: they may yet arrive. Those of this owner; those of owners before it.
    limbo: Vec<Write>,
    limbo_of_others: Vec<Write>,
    zombie: Option<Box<Zombie>>,
    // The clients.
    messages: Vec<Message>,
    /// Their places by sender and id.
    named: BTreeMap<(usize, String), usize>,
    questions: BTreeMap<u64, Question>,
    tickets: u64,
    said_marks: BTreeMap<usize, (u64, u64)>,
    /// The last seq that the watcher was told.
    watched: Option<u64>,
    /// The highest head that was said.
    said_head: u64,
    cover: &'a Coverage,
}

impl<'a> World<'a> {
    fn new(cover: &'a Coverage) -> Self {
        let config = Arc::new(Config {
            batch_events: 3,
            queue_commands: 12,
            tail_events: 5,
            window_events: 48,
            since_events: 8,
            join_events_members: 3,
            log: Arc::new(Limits {
                bucket_bytes: 800,
                tail: ReadLimit { events: 4, bytes: 1 << 20 },
                ..Limits::default()
            }),
            ..Config::default()
        });
        let mut world = Self {
            room: Self::room(&config, TENURE, 1, Start::Cold),
            config,
            now: 0,
            tenure: TENURE,
            openings: 1,
            disk: Disk::default(),
            writes: Vec::new(),
            reads: Vec::new(),
            barrier: None,
            limbo: Vec::new(),
            limbo_of_others: Vec::new(),
            zombie: None,
            messages: Vec::new(),
            named: BTreeMap::new(),
            questions: BTreeMap::new(),
            tickets: 0,
            said_marks: BTreeMap::new(),
            watched: None,
            said_head: 0,
            cover,
        };
        let others: Vec<Person> = USERS[1..3].iter().map(|user| person(user)).collect();
        let kind = v1::RoomKind::Group;
        world.ask(0, RoomCommand::Create { kind, name: "r".to_owned(), public: true, members: others });
        world.settle();
        world
    }

    fn room(config: &Arc<Config>, tenure: Tenure, opening: u32, start: Start) -> Room {
        Room::new(RoomId::parse("r").unwrap(), tenure, opening, LogId(1), start, Arc::clone(config))
    }

    fn input(&mut self, input: Input) {
        let mut out = Vec::new();
        // Owners' clocks differ.
        let skew_ms = 400_000 * (self.tenure.epoch.0 % 2);
        let at = Now { unix: UnixMs(now(self.now).unix.0 - skew_ms), ..now(self.now) };
        self.room.handle(at, input, &mut out);
        for action in out {
            self.perform(action);
        }
    }

    fn ask(&mut self, user: usize, command: RoomCommand) {
        self.pose(user, command, Question::Other { user }, LinkId(2));
    }

    fn pose(&mut self, user: usize, command: RoomCommand, question: Question, link: LinkId) {
        self.tickets += 1;
        self.questions.insert(self.tickets, question);
        let call = RoomCall {
            ticket: Ticket(self.tickets),
            caller: person(USERS[user]),
            origin: Origin(1),
            command,
        };
        self.input(Input::Call { link, call: Box::new(call) });
    }

    fn try_send(&mut self, message: usize, body: String) {
        let Message { user, id, since, .. } = self.messages[message].clone();
        let send = v1::Send { client_msg_id: id, since, text: Some(body.clone()), ..v1::Send::default() };
        // Some of them on the link of the subscriber.
        let link = LinkId(1 + u32::from(!message.is_multiple_of(4)));
        self.pose(user, RoomCommand::Send(send), Question::Send { message, body }, link);
    }

    fn head(&self) -> u64 {
        self.disk.chain().len() as u64
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Send { user, since } => {
                let head = self.said_head;
                let mut id = format!("{}", self.messages.len());
                // An id means nothing without its sender.
                if let Some(last) = self.messages.last().filter(|last| last.user != user) {
                    id.clone_from(&last.id);
                }
                if self.named.contains_key(&(user, id.clone())) {
                    id = format!("{}", self.messages.len());
                }
                self.named.insert((user, id.clone()), self.messages.len());
                let since = since.then_some(head);
                self.messages.push(Message { user, id, since, head, refused: None });
                let message = self.messages.len() - 1;
                self.try_send(message, format!("body {message}"));
            }
            Step::Retry { which } => {
                if let Some(which) = which.checked_rem(self.messages.len()) {
                    let message = &self.messages[which];
                    // Without `since` only while it must be recognised.
                    let recent = self.head() + IN_BETWEEN <= message.head + self.config.window_events;
                    // A definite refusal ends it.
                    if message.refused.is_none() && (message.since.is_some() || recent) {
                        self.try_send(which, format!("body {which}"));
                    }
                }
            }
            Step::Reuse { which } => {
                if let Some(which) = which.checked_rem(self.messages.len()) {
                    let message = &self.messages[which];
                    if message.refused.is_none() && message.since.is_some() {
                        self.try_send(which, "another body".to_owned());
                    }
                }
            }
            Step::Join { user } => self.ask(user, RoomCommand::Join),
            Step::Leave { user } => self.ask(user, RoomCommand::Leave),
            Step::Remove { user } => {
                self.ask(0, RoomCommand::Remove { user: person(USERS[user]).user });
            }
            Step::Mark { user, seen } => {
                self.ask(user, RoomCommand::Mark { delivered: None, seen: Some(Seq(seen)) });
            }
            Step::History { user, before } => {
                self.ask(user, RoomCommand::History { before: Some(Seq(before)), after: None, limit: 10 });
            }
            Step::Watch => self.pose(0, RoomCommand::Subscribe, Question::Other { user: 0 }, WATCHER),
            Step::Flush => self.input(Input::Flush),
            Step::Outcome(outcome) => self.outcome(outcome),
            Step::Late => {
                if let Some(late) = self.limbo_of_others.pop() {
                    count(&self.cover.late_of_another);
                    self.disk.write(&late);
                } else if let Some(late) = self.limbo.pop() {
                    self.disk.write(&late);
                }
            }
            Step::Read { ok } => self.answer_read(ok),
            Step::Pass => self.pass(),
            Step::Wait { ms } => {
                self.now += ms;
                while let Some(deadline) = self.room.next_deadline().filter(|deadline| *deadline <= self.now)
                {
                    self.input(Input::Tick);
                    let next = self.room.next_deadline();
                    assert!(next.is_none_or(|next| next > deadline), "the deadline {deadline} stays");
                }
            }
            Step::Crash { fate } => self.crash(fate),
            Step::Handoff { state } => self.hand_off(state),
            Step::Close => self.close(),
            Step::Freeze => self.freeze(),
            Step::Thaw { user, which } => self.thaw(user, which),
        }
        self.check();
    }

    /// Of the oldest write under way.
    fn outcome(&mut self, outcome: u8) {
        if self.writes.is_empty() {
            return;
        }
        let (ticket, write) = self.writes.remove(0);
        let outcome = match outcome {
            0 => Outcome::NotDone(NotDone::Full),
            1 | 2 => {
                count(&self.cover.unknown);
                match outcome {
                    1 => self.disk.write(&write),
                    _ => self.limbo.push(write),
                }
                Outcome::Unknown
            }
            _ => {
                self.disk.write(&write);
                // It was the same write: coming again it changes nothing.
                let before = self.limbo.len();
                self.limbo.retain(|late| *late != write);
                if self.limbo.len() < before {
                    count(&self.cover.settled_late);
                }
                Outcome::Done
            }
        };
        if let Outcome::NotDone(_) = outcome {
            count(&self.cover.not_done);
        }
        self.input(Input::Wrote { ticket, outcome });
    }

    fn pass(&mut self) {
        if let Some(ticket) = self.barrier.take() {
            self.input(Input::Passed { ticket });
        }
    }

    fn answer_read(&mut self, ok: bool) {
        if self.reads.is_empty() {
            return;
        }
        let input = match self.reads.remove(0) {
            Action::ReadSegments { ticket } => {
                Input::Segments { ticket, records: ok.then(|| self.disk.segments()).ok_or(Failed) }
            }
            Action::ReadSaid { ticket } => {
                Input::Said { ticket, said: ok.then_some(self.disk.said).ok_or(Failed) }
            }
            Action::ReadRoom { ticket } => {
                Input::RoomRead { ticket, read: ok.then(|| Box::new(self.disk.room())).ok_or(Failed) }
            }
            Action::ReadRows { ticket, spans, range, limit } => {
                count(&self.cover.looked);
                // Small pages, so that looks need several.
                let limit = ReadLimit { events: limit.events.min(7), ..limit };
                Input::Rows { ticket, page: ok.then(|| self.disk.page(&spans, range, limit)).ok_or(Failed) }
            }
            other => panic!("{other:?}"),
        };
        self.input(input);
    }

    /// kill -9: what is in flight is there, or never, or comes later; nobody is told.
    fn crash(&mut self, fate: u8) {
        let writes = std::mem::take(&mut self.writes).into_iter().map(|(_, write)| write);
        let limbo: Vec<Write> = std::mem::take(&mut self.limbo).into_iter().chain(writes).collect();
        if !limbo.is_empty() {
            count(&self.cover.crashed_in_flight);
        }
        for write in limbo {
            match (fate, &write) {
                (0, _) => self.disk.write(&write),
                // Memberships that no event tells: whether they were changed or not is settled by the time of an open.
                (1, Write::Record(_) | Write::Rows { .. }) => self.limbo_of_others.push(write),
                _ => {}
            }
        }
        self.tenure.epoch.0 += 1;
        self.tenure.incarnation.0 += 1;
        self.begin(Start::Cold);
        // A crash may take back the last second of marks.
        self.said_marks.clear();
        self.questions.clear();
    }

    fn freeze(&mut self) {
        let writes = std::mem::take(&mut self.writes).into_iter();
        let mut asked: Vec<Action> = writes.map(|(ticket, write)| Action::Write { ticket, write }).collect();
        asked.append(&mut self.reads);
        // A membership that no event tells of and that was never answered may turn up when the next owner has read its
        // members: then that one learns of it only by what it reads at its next open. Not looked at here.
        let sent = asked.iter().filter_map(|action| match action {
            Action::Write { write, .. } => Some(write),
            _ => None,
        });
        for write in sent.chain(&self.limbo).filter(|write| matches!(write, Write::Derived(_))) {
            self.disk.write(write);
        }
        let old = self.room.clone();
        self.crash(1);
        self.zombie = Some(Box::new(Zombie { room: old, asked }));
    }

    /// Its writes arrive, its reads are answered; no barrier passes, and so it says nothing.
    fn thaw(&mut self, user: usize, which: usize) {
        let Some(mut zombie) = self.zombie.take() else { return };
        let message =
            which.checked_rem(self.messages.len()).map(|which| (which, self.messages[which].clone()));
        let (user, command) = match message {
            Some((which, Message { user, id, since, refused: None, .. })) if which % 2 == 0 => {
                let text = Some(format!("body {which}"));
                let send = v1::Send { client_msg_id: id, since, text, ..v1::Send::default() };
                (user, RoomCommand::Send(send))
            }
            _ if which % 4 == 1 => (user, RoomCommand::Leave),
            _ => (user, RoomCommand::Join),
        };
        let ticket = Ticket(u64::MAX);
        let call = RoomCall { ticket, caller: person(USERS[user]), origin: Origin(3), command };
        let mut inputs = VecDeque::from([
            Input::Call { link: LinkId(2), call: Box::new(call) },
            Input::Flush,
            Input::Tick,
        ]);
        for _ in 0..50 {
            let mut out = std::mem::take(&mut zombie.asked);
            if let Some(input) = inputs.pop_front() {
                zombie.room.handle(now(self.now), input, &mut out);
            }
            for action in out {
                inputs.extend(match action {
                    Action::Write { ticket, write } => {
                        if let Write::Rows { .. } = write {
                            count(&self.cover.void_rows);
                        }
                        self.disk.write(&write);
                        Some(Input::Wrote { ticket, outcome: Outcome::Done })
                    }
                    Action::ReadSegments { ticket } => {
                        Some(Input::Segments { ticket, records: Ok(self.disk.segments()) })
                    }
                    Action::ReadSaid { ticket } => Some(Input::Said { ticket, said: Ok(self.disk.said) }),
                    Action::ReadRoom { ticket } => {
                        Some(Input::RoomRead { ticket, read: Ok(Box::new(self.disk.room())) })
                    }
                    Action::ReadRows { ticket, spans, range, limit } => {
                        Some(Input::Rows { ticket, page: Ok(self.disk.page(&spans, range, limit)) })
                    }
                    // Waits for a barrier for ever.
                    _ => None,
                });
            }
            if inputs.is_empty() {
                break;
            }
        }
        self.zombie = Some(zombie);
    }

    fn begin(&mut self, start: Start) {
        self.openings += 1;
        self.room = Self::room(&self.config, self.tenure, self.openings, start);
        self.watched = None;
        (self.barrier, self.reads) = (None, Vec::new());
    }

    fn hand_off(&mut self, state: bool) {
        self.input(Input::Drain);
        while !self.room.is_settled() {
            match (self.barrier, self.writes.is_empty()) {
                (Some(_), _) => self.pass(),
                (None, false) => self.outcome(9),
                (None, true) => {
                    self.now += 100;
                    self.input(Input::Tick);
                }
            }
        }
        assert!(self.questions.is_empty(), "neither answered nor given back: {:?}", self.questions);
        let start = match self.room.hand_over() {
            Some(handed) if state => {
                count(&self.cover.handed_with_state);
                // Between nodes it travels as bytes.
                let arrived = HandedRoom::decode(&handed.encode()).unwrap();
                assert_eq!(arrived, handed);
                Start::Passed(Box::new(arrived))
            }
            Some(_) => {
                count(&self.cover.handed_without);
                Start::HandedOver
            }
            None => Start::Cold,
        };
        if let Some(said) = self.room.said() {
            self.disk.write(&Write::Said(said));
        }
        // Whoever was just opening it may still write.
        self.limbo_of_others.append(&mut self.limbo);
        self.limbo_of_others.extend(std::mem::take(&mut self.writes).into_iter().map(|(_, write)| write));
        self.tenure.epoch.0 += 1;
        self.begin(start);
        self.input(Input::Interest { link: WATCHER, after: Seq(self.said_head) });
    }

    fn close(&mut self) {
        self.input(Input::Uninterest { link: WATCHER });
        self.watched = None;
        if !self.room.is_quiet() {
            return;
        }
        if let Some(said) = self.room.said() {
            self.disk.write(&Write::Said(said));
        }
        self.input(Input::Close);
        self.begin(Start::Cold);
        self.ask(0, RoomCommand::History { before: None, after: None, limit: 10 });
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Write { ticket, write } => {
                match &write {
                    Write::Derived(_) if self.room.grade == Some(Grade::Full) => {
                        count(&self.cover.counted_joins);
                    }
                    Write::Derived(_) => count(&self.cover.reapplied),
                    Write::Record(record) if record.id.part.0 & 0xffff_ffff > 0 => count(&self.cover.rolled),
                    _ => {}
                }
                self.writes.push((ticket, write));
            }
            Action::ReadSegments { .. }
            | Action::ReadSaid { .. }
            | Action::ReadRoom { .. }
            | Action::ReadRows { .. } => self.reads.push(action),
            Action::Barrier { ticket } => {
                assert_eq!(self.barrier.replace(ticket), None, "two barriers");
            }
            Action::Return { ticket, .. } => {
                count(&self.cover.returned);
                self.questions.remove(&ticket.0).expect("one answer a question");
            }
            Action::Head { link, beacon } => {
                // I10
                assert!(beacon.head.0 >= self.said_head && beacon.head.0 <= self.head(), "a head went back");
                assert!(link == WATCHER && self.watched.is_none_or(|seq| seq <= beacon.head.0));
                self.said_head = beacon.head.0;
                self.watched = Some(beacon.head.0);
            }
            Action::PutMarks(marks) => {
                self.disk.put_marks(marks);
            }
            Action::Events { link, events } => {
                let rows = self.disk.chain();
                for event in &*events {
                    // I9: what is told is in the store, and I5: in order.
                    assert_eq!(rows[event.event.seq as usize - 1].event, event.encoded);
                    self.said_head = self.said_head.max(event.event.seq);
                    if link == WATCHER {
                        assert_eq!(
                            self.watched.map(|seq| seq + 1),
                            Some(event.event.seq),
                            "not the next event"
                        );
                        self.watched = Some(event.event.seq);
                    }
                }
            }
            Action::Answer { link, ticket, answer } => {
                let question = self.questions.remove(&ticket.0).expect("one answer a question");
                if let Answer::Sent { seq, .. } = &answer
                    && link == WATCHER
                {
                    // I5: what lies below was told before.
                    assert!(
                        self.watched.is_none_or(|watched| watched >= seq.0),
                        "the reply precedes its event"
                    );
                }
                self.answered(question, answer);
            }
            Action::Marks { .. } | Action::Left { .. } | Action::NotifyUser { .. } => {}
            Action::Page { .. } => panic!("nobody pulls"),
            Action::Damaged { after } => panic!("damaged after {after}"),
            Action::TooManySegments => panic!("too many segments"),
        }
    }

    fn answered(&mut self, question: Question, answer: Answer) {
        if self.room.grade == Some(Grade::ReadOpen) && !matches!(answer, Answer::Error(_)) {
            count(&self.cover.read_open);
        }
        match (question, answer) {
            (Question::Send { message, body }, Answer::Sent { seq, at, duplicate }) => {
                let message = &self.messages[message];
                let event = self.event(seq.0);
                // I1, I9: it is in the store, with this content; I7: whichever try it was.
                let Some(Kind::Message(stored)) = event.kind else { panic!("{event:?}") };
                assert_eq!(
                    (&*event.sender, event.client_msg_id),
                    (USERS[message.user], Some(message.id.clone()))
                );
                assert_eq!((stored.text, event.at), (body, at.0));
                self.said_head = self.said_head.max(seq.0);
                count(if duplicate { &self.cover.duplicate } else { &self.cover.stored });
            }
            (Question::Send { message, .. }, Answer::Error(error)) => {
                let code = Code::try_from(error.code).unwrap();
                match code {
                    Code::ClientMsgIdReused => count(&self.cover.reused),
                    Code::RetryTooOld => count(&self.cover.too_old),
                    Code::Unavailable => count(&self.cover.waited_too_long),
                    code if code.verdict() == banyan_proto::codes::Verdict::Definite => {
                        // I8
                        count(&self.cover.refused);
                        self.messages[message].refused = Some(code);
                    }
                    _ => {}
                }
            }
            (Question::Other { .. }, Answer::Admitted(admission)) => {
                // I10: heads never go back; and nothing is said that is not there.
                let head = self.room.state.as_deref().expect("a room").head.0;
                assert!(head >= self.said_head && head <= self.head());
                if admission.end.is_none() {
                    assert_eq!(admission.head.0, head);
                    self.said_head = head;
                }
                assert!(*self.watched.get_or_insert(head) <= head);
            }
            (Question::Other { user }, Answer::Body(body)) => match *body {
                Body::Mark(mark) => {
                    // I11
                    let before =
                        self.said_marks.insert(user, (mark.delivered, mark.seen)).unwrap_or_default();
                    assert!(mark.delivered >= before.0 && mark.seen >= before.1, "marks went back");
                    assert!(mark.seen <= mark.delivered && mark.delivered <= self.head());
                    if mark.seen > 0 {
                        assert_eq!(mark.seen_n, self.disk.chain()[mark.seen as usize - 1].n);
                    }
                }
                Body::History(page) => {
                    for event in page.events {
                        assert_eq!(event, self.event(event.seq));
                        assert!(event.seq <= page.head);
                    }
                }
                _ => {}
            },
            (_, Answer::Error(_)) => {}
            (question, answer) => panic!("{question:?}: {answer:?}"),
        }
    }

    fn event(&self, seq: u64) -> v1::Event {
        let rows = self.disk.chain();
        let row = rows.get(seq as usize - 1).expect("said and not stored");
        LoggedEvent::decode(row.event.clone(), row.origin).unwrap().event
    }

    /// The whole log: I3, I7, I8, and `n` and `at`.
    fn check(&self) {
        let (mut seen, mut n, mut at) = (BTreeSet::new(), 0, 0);
        let mut changed = BTreeMap::new();
        for (index, row) in self.disk.chain().iter().enumerate() {
            let event = LoggedEvent::decode(row.event.clone(), row.origin).unwrap().event;
            assert_eq!((event.seq, row.seq.0), (index as u64 + 1, index as u64 + 1));
            n += u64::from(matches!(event.kind, Some(Kind::Message(_))));
            assert_eq!((event.n, row.n), (n, n));
            assert!(event.at >= at, "time went back");
            at = event.at;
            let user = match event.kind {
                Some(Kind::Joined(v1::Joined { user, .. }) | Kind::Left(v1::Left { user })) => Some(user),
                Some(Kind::Removed(removed)) => Some(removed.user),
                _ => None,
            };
            changed.extend(user.map(|user| (user, row.seq)));
            let Some(id) = event.client_msg_id else { continue };
            let sender = USERS.iter().position(|user| *user == event.sender).expect("nobody else sends");
            let message = &self.messages[self.named[&(sender, id.clone())]];
            assert_eq!(message.refused, None, "message {id} was refused for good and is in the log");
            assert!(seen.insert((sender, id.clone())), "message {id} is in the log twice");
        }
        // What is counted in memory is what the next owner will count.
        if let Some(state) = self.room.state.as_deref()
            && self.room.grade == Some(Grade::Full)
            && self.room.in_flight.is_none()
        {
            let present = self.disk.members.values().filter(|member| member.role != 0).count();
            assert_eq!(state.members.count(), present as u64);
            // I12: who is in the room is what the log says.
            for (user, seq) in changed {
                let row = &state.members.get(&user).expect("a member").row;
                assert!(row.changed >= seq || seq > state.head, "{user} changed at {seq}: {row:?}");
            }
        }
    }

    /// The faults end: every question is answered.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.input(Input::Flush);
            if !self.writes.is_empty() {
                self.outcome(9);
            } else if self.barrier.is_some() {
                self.pass();
            } else if !self.reads.is_empty() {
                self.answer_read(true);
            } else if self.room.is_settled() {
                break;
            } else {
                self.now += 100;
                self.input(Input::Tick);
            }
            self.check();
        }
        assert!(self.room.is_settled(), "the room does not come to rest");
        assert!(self.questions.is_empty(), "not answered: {:?}", self.questions);
        if self.room.wants(WATCHER) {
            assert!(
                self.watched.is_some() || self.room.is_absent(),
                "a link that wants the room was told nothing"
            );
        }
    }
}

/// One run; panics where a promise does not hold.
fn run(cover: &Coverage, steps: &[Step]) {
    let mut world = World::new(cover);
    for step in steps {
        world.step(step);
    }
    world.settle();
}

#[test]
fn promises_hold_under_retries_faults_and_crashes() {
    let cover = Coverage::default();
    let config = ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() };
    let result = TestRunner::new(config).run(&proptest::collection::vec(step(), 20..400), |steps| {
        run(&cover, &steps);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let Coverage { stored, duplicate, reused, refused, unknown, settled_late, not_done, .. } = &cover;
    let Coverage { crashed_in_flight, too_old, looked, waited_too_long, counted_joins, .. } = &cover;
    let Coverage { read_open, handed_with_state, handed_without, returned, late_of_another, .. } = &cover;
    let Coverage { reapplied, rolled, void_rows, .. } = &cover;
    for counter in [
        stored,
        duplicate,
        reused,
        refused,
        unknown,
        settled_late,
        not_done,
        crashed_in_flight,
        too_old,
        looked,
        waited_too_long,
        counted_joins,
        read_open,
        handed_with_state,
        handed_without,
        returned,
        late_of_another,
        reapplied,
        rolled,
        void_rows,
    ] {
        assert!(counter.get() > 10, "too little has happened to show anything: {cover:?}");
    }
}

#[test]
fn a_planted_bug_is_caught() {
    let strategy = proptest::collection::vec(step(), 20..400);
    for bug in [
        Bug::AckBeforeAppend,
        Bug::DedupeNotRebuilt,
        Bug::DedupeWithoutSender,
        Bug::DedupeWithoutSince,
        Bug::PermissionBeforeKnownId,
        Bug::DefiniteErrorAfterUnknown,
        Bug::DerivedByWallClock,
        Bug::DerivedNotReapplied,
        Bug::DerivedBeforeBarrier,
        Bug::MarkFalls,
        Bug::HeadNeverAdvertised,
        Bug::ReplyBeforeLowerEvent,
        Bug::RetryUnderNewSeq,
    ] {
        let mut runner = TestRunner::deterministic();
        let caught = (1..=500).find(|_| {
            let steps = strategy.new_tree(&mut runner).unwrap().current();
            let cover = Coverage::default();
            let run = || plant::with(Some(bug), || run(&cover, &steps));
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err()
        });
        println!("{bug:?}: {caught:?}");
        assert!(caught.is_some(), "{bug:?} is not caught");
    }
}
