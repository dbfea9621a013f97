//! Random commands, retries, faults and crashes against a model of the store; the promises of DESIGN.md, section 10,
//! are checked after every step: I1, I2, I3, I5, I7, I8, I9, I10, I11.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::tests::{now, person};
use super::*;
use banyan_proto::id::Origin;
use banyan_proto::link::Person;
use banyan_proto::v1::event::Kind;
use banyan_proto::v1::server_frame::Body;
use banyan_storage::room_log::MemberRow;

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
    /// An append of unknown outcome arrives after all.
    Late,
    Read {
        ok: bool,
    },
    Load {
        ok: bool,
    },
    Wait {
        ms: u64,
    },
    Crash {
        stored: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let user = 0..USERS.len();
    prop_oneof![
        8 => (user.clone(), any::<bool>()).prop_map(|(user, since)| Step::Send { user, since }),
        5 => (0_usize..64).prop_map(|which| Step::Retry { which }),
        1 => (0_usize..64).prop_map(|which| Step::Reuse { which }),
        1 => user.clone().prop_map(|user| Step::Join { user }),
        1 => user.clone().prop_map(|user| Step::Leave { user }),
        1 => (1..USERS.len()).prop_map(|user| Step::Remove { user }),
        1 => (user.clone(), 0_u64..60).prop_map(|(user, seen)| Step::Mark { user, seen }),
        1 => (user, 1_u64..60).prop_map(|(user, before)| Step::History { user, before }),
        1 => Just(Step::Watch),
        10 => Just(Step::Flush),
        12 => (0_u8..10).prop_map(Step::Outcome),
        1 => Just(Step::Late),
        4 => prop::bool::weighted(0.9).prop_map(|ok| Step::Read { ok }),
        4 => prop::bool::weighted(0.8).prop_map(|ok| Step::Load { ok }),
        3 => (0_u64..4_000).prop_map(|ms| Step::Wait { ms }),
        1 => any::<bool>().prop_map(|stored| Step::Crash { stored }),
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

type Stored = (Vec<Row>, Option<Box<Derived>>);

#[derive(Debug)]
struct World<'a> {
    config: Arc<Config>,
    room: Room,
    now: u64,
    // The store.
    rows: Vec<Row>,
    row: Option<RoomRow>,
    members: BTreeMap<UserId, MemberRow>,
    marks: BTreeMap<UserId, Marks>,
    append: Option<(u32, Stored)>,
    limbo: Option<Stored>,
    reads: Vec<(u32, Range, ReadLimit)>,
    loading: bool,
    // The clients.
    messages: Vec<Message>,
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
            since_events: 12,
            join_events_members: 3,
            ..Config::default()
        });
        let mut world = Self {
            room: Self::opened(&config),
            config,
            now: 0,
            rows: Vec::new(),
            row: None,
            members: BTreeMap::new(),
            marks: BTreeMap::new(),
            append: None,
            limbo: None,
            reads: Vec::new(),
            loading: false,
            messages: Vec::new(),
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

    fn opened(config: &Arc<Config>) -> Room {
        Room::new(RoomId::parse("r").unwrap(), Epoch(1), LogId(1), Arc::clone(config))
    }

    fn input(&mut self, input: Input) {
        let mut out = Vec::new();
        self.room.handle(now(self.now), input, &mut out);
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
        self.pose(user, RoomCommand::Send(send), Question::Send { message, body }, LinkId(2));
    }

    fn head(&self) -> u64 {
        self.rows.len() as u64
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Send { user, since } => {
                let head = self.said_head;
                let id = format!("{}", self.messages.len());
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
                if let Some(late) = self.limbo.take() {
                    self.apply(late);
                }
            }
            Step::Read { ok } => self.answer_read(ok),
            Step::Load { ok } => self.load(ok),
            Step::Wait { ms } => {
                self.now += ms;
                while let Some(deadline) = self.room.next_deadline().filter(|deadline| *deadline <= self.now)
                {
                    self.input(Input::Tick);
                    let next = self.room.next_deadline();
                    assert!(next.is_none_or(|next| next > deadline), "the deadline {deadline} stays");
                }
            }
            Step::Crash { stored } => self.crash(stored),
        }
        self.check();
    }

    fn outcome(&mut self, outcome: u8) {
        let Some((ticket, append)) = self.append.take() else { return };
        let outcome = match outcome {
            0 => Outcome::NotDone(NotDone::Full),
            1 | 2 => {
                count(&self.cover.unknown);
                match outcome {
                    1 => self.apply(append),
                    _ => self.limbo = Some(append),
                }
                Outcome::Unknown
            }
            _ => {
                self.apply(append);
                // It was the same append: coming again it changes nothing.
                self.limbo = None;
                Outcome::Done
            }
        };
        if let Outcome::NotDone(_) = outcome {
            count(&self.cover.not_done);
        }
        self.input(Input::Stored { ticket, outcome });
    }

    /// I2, I3: a row gets one content, and follows its predecessor.
    fn apply(&mut self, (rows, derived): Stored) {
        for row in rows {
            match self.rows.get(row.seq.0 as usize - 1) {
                Some(there) => assert_eq!(*there, row, "a seq got a second content"),
                None => {
                    assert_eq!(row.seq.0, self.head() + 1, "a hole in the log");
                    self.rows.push(row);
                }
            }
        }
        let Some(derived) = derived else { return };
        if let Some(row) = derived.room {
            self.row = Some(row);
        }
        for member in derived.members {
            self.members.insert(member.user.clone(), member);
        }
    }

    fn answer_read(&mut self, ok: bool) {
        if self.reads.is_empty() {
            return;
        }
        let (ticket, range, limit) = self.reads.remove(0);
        let rows = ok.then(|| {
            let inside: Vec<Row> = self
                .rows
                .iter()
                .filter(|row| match range {
                    Range::After { after, through } => row.seq > after && row.seq <= through,
                    Range::Before { before, above } => row.seq < before && row.seq > above,
                })
                .cloned()
                .collect();
            // Small pages, so that looks need several.
            let page = limit.events.min(7);
            let more = inside.len() > page;
            let rows = match range {
                Range::After { .. } => inside.into_iter().take(page).collect(),
                Range::Before { .. } => inside[inside.len().saturating_sub(page)..].to_vec(),
            };
            (rows, more)
        });
        count(&self.cover.looked);
        self.input(Input::ReadDone { ticket, rows });
    }

    fn load(&mut self, ok: bool) {
        if !std::mem::take(&mut self.loading) {
            return;
        }
        if !ok {
            return self.input(Input::LoadFailed);
        }
        let loaded = self.row.clone().map(|row| {
            let members = self.members.values().cloned().map(|row| {
                let marks = self.marks.get(&row.user).copied().unwrap_or_default();
                (row, marks)
            });
            Box::new(LoadedRoom {
                row,
                head: Seq(self.head()),
                n: self.rows.last().map_or(0, |row| row.n),
                members: members.collect(),
                members_complete: true,
                tail: self.rows[self.rows.len().saturating_sub(4)..].to_vec(),
            })
        });
        self.input(Input::Loaded(loaded));
    }

    /// kill -9: what is in flight is there or not; nobody is told.
    fn crash(&mut self, stored: bool) {
        if let Some((_, append)) = self.append.take() {
            count(&self.cover.crashed_in_flight);
            if stored {
                self.apply(append);
            }
        }
        if let Some(late) = self.limbo.take().filter(|_| stored) {
            self.apply(late);
        }
        self.room = Self::opened(&self.config);
        (self.loading, self.watched) = (false, None);
        self.reads.clear();
        self.questions.clear();
        // A crash may take back the last second of marks.
        self.said_marks.clear();
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Load => self.loading = true,
            Action::Append { ticket, rows, derived } => {
                assert!(self.append.is_none(), "two appends in flight");
                if rows.is_empty() {
                    count(&self.cover.counted_joins);
                }
                self.append = Some((ticket, (rows, derived)));
            }
            Action::Read { ticket, range, limit } => self.reads.push((ticket, range, limit)),
            Action::PutMarks(marks) => {
                for (user, marks) in marks {
                    let there = self.marks.entry(user).or_default();
                    *there = there.max(marks);
                }
            }
            Action::Events { link, events } => {
                for event in &*events {
                    // I9: what is told is in the store, and I5: in order.
                    assert_eq!(self.rows[event.event.seq as usize - 1].event, event.encoded);
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
            Action::Answer { ticket, answer, .. } => {
                let question = self.questions.remove(&ticket.0).expect("one answer a question");
                self.answered(question, answer);
            }
            Action::Marks { .. } | Action::Left { .. } | Action::NotifyUser { .. } => {}
            Action::Page { .. } => panic!("nobody pulls"),
            Action::Damaged { after } => panic!("damaged after {after}"),
        }
    }

    fn answered(&mut self, question: Question, answer: Answer) {
        match (question, answer) {
            (Question::Send { message, body }, Answer::Sent(sent)) => {
                let message = &self.messages[message];
                let event = self.event(sent.seq);
                // I1, I9: it is in the store, with this content; I7: whichever try it was.
                let Some(Kind::Message(stored)) = event.kind else { panic!("{event:?}") };
                assert_eq!(
                    (&*event.sender, event.client_msg_id),
                    (USERS[message.user], Some(message.id.clone()))
                );
                assert_eq!((stored.text, event.at), (body, sent.at));
                self.said_head = self.said_head.max(sent.seq);
                count(if sent.duplicate { &self.cover.duplicate } else { &self.cover.stored });
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
                let head = self.room.beacon().expect("a room").head.0;
                assert!(head >= self.said_head && head <= self.head());
                if admission.end.is_none() {
                    assert_eq!(admission.head.0, head);
                    self.said_head = head;
                }
                assert_eq!(*self.watched.get_or_insert(head), head);
            }
            (Question::Other { user }, Answer::Body(body)) => match *body {
                Body::Mark(mark) => {
                    // I11
                    let before =
                        self.said_marks.insert(user, (mark.delivered, mark.seen)).unwrap_or_default();
                    assert!(mark.delivered >= before.0 && mark.seen >= before.1, "marks went back");
                    assert!(mark.seen <= mark.delivered && mark.delivered <= self.head());
                    if mark.seen > 0 {
                        assert_eq!(mark.seen_n, self.rows[mark.seen as usize - 1].n);
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
        let row = self.rows.get(seq as usize - 1).expect("said and not stored");
        LoggedEvent::decode(row.event.clone(), row.origin).unwrap().event
    }

    /// The whole log: I3, I7, I8, and `n` and `at`.
    fn check(&self) {
        let (mut seen, mut n, mut at) = (BTreeSet::new(), 0, 0);
        for (index, row) in self.rows.iter().enumerate() {
            let event = LoggedEvent::decode(row.event.clone(), row.origin).unwrap().event;
            assert_eq!((event.seq, row.seq.0), (index as u64 + 1, index as u64 + 1));
            n += u64::from(matches!(event.kind, Some(Kind::Message(_))));
            assert_eq!((event.n, row.n), (n, n));
            assert!(event.at >= at, "time went back");
            at = event.at;
            let Some(id) = event.client_msg_id else { continue };
            let message = &self.messages[id.parse::<usize>().unwrap()];
            assert_eq!(message.refused, None, "message {id} was refused for good and is in the log");
            assert!(seen.insert(id.clone()), "message {id} is in the log twice");
        }
        if let Some(row) = &self.row {
            let present = self.members.values().filter(|member| member.role != 0).count();
            assert_eq!(row.counted_members, present as u64);
        }
    }

    /// The faults end: every question is answered.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.input(Input::Flush);
            if self.append.is_some() {
                if self.limbo.is_some() {
                    count(&self.cover.settled_late);
                }
                self.outcome(9);
            } else if self.loading {
                self.load(true);
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
    }
}

#[test]
fn promises_hold_under_retries_faults_and_crashes() {
    let cover = Coverage::default();
    let config = ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() };
    let result = TestRunner::new(config).run(&proptest::collection::vec(step(), 20..300), |steps| {
        let mut world = World::new(&cover);
        for step in &steps {
            world.step(step);
        }
        world.settle();
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let Coverage { stored, duplicate, reused, refused, unknown, settled_late, .. } = &cover;
    let Coverage { not_done, crashed_in_flight, too_old, looked, waited_too_long, counted_joins, .. } =
        &cover;
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
    ] {
        assert!(counter.get() > 20, "too little has happened to show anything: {cover:?}");
    }
}
