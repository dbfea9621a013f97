//! Inputs and the actions that must follow, written as text: one line an action.

use super::disk::Disk;
use super::*;
use crate::members::role;
use banyan_proto::direct;
use banyan_proto::id::{Bucket, Incarnation, Origin, Part, SegmentId};
use banyan_proto::link::Person;
use banyan_proto::v1::event::Kind;
use banyan_proto::v1::server_frame::Body;
use banyan_proto::v1::{Role, RoomKind};
use banyan_storage::Derived;

pub(super) fn person(user: &str) -> Person {
    Person { user: UserId::parse(user).unwrap(), name: user.to_uppercase().into() }
}

pub(super) fn now(mono_ms: u64) -> Now {
    Now { mono_ms, unix: UnixMs(1_000_000 + mono_ms) }
}

pub(super) const TENURE: Tenure = Tenure { epoch: Epoch(1), incarnation: Incarnation(1) };

/// One room, a clock, and a store that answers at once, but for batches and for reads of the room's own, which the tests
/// answer.
pub(super) struct Bench {
    pub(super) room: Room,
    pub(super) disk: Disk,
    pub(super) now: u64,
    ticket: u64,
    /// The store answers all but batches by itself; else the test says what it answers to each of `asked`.
    pub(super) answers: bool,
    pub(super) asked: VecDeque<Action>,
    /// The write of a batch that the store has.
    pub(super) write: Option<(u32, Write)>,
    /// Its rows are stored: the barrier and the derived rows that follow pass by themselves.
    rows_stored: bool,
}

impl Bench {
    pub(super) fn cold(id: &str, config: Config) -> Self {
        Self::on(id, config, Disk::default(), TENURE, Start::Cold)
    }

    pub(super) fn on(id: &str, config: Config, disk: Disk, tenure: Tenure, start: Start) -> Self {
        let id = RoomId::parse(id).unwrap();
        let room = Room::new(id, tenure, 1, LogId(0xabc), start, Arc::new(config));
        Self {
            room,
            disk,
            now: 0,
            ticket: 0,
            answers: true,
            asked: VecDeque::new(),
            write: None,
            rows_stored: false,
        }
    }

    /// A room that is not there.
    fn absent(id: &str, config: Config) -> Self {
        let mut bench = Self::cold(id, config);
        assert_eq!(bench.open(), "");
        bench
    }

    /// A group with alice (owner), adam (admin), bob (member), rita (reader), and `messages` of alice after the
    /// event that made it.
    pub(super) fn group(public: bool, messages: u64) -> Self {
        Self::loaded(Config::default(), RoomKind::Group, public, messages)
    }

    pub(super) fn loaded(config: Config, kind: RoomKind, public: bool, messages: u64) -> Self {
        let disk = stored(kind, public, messages);
        let mut bench = Self::on("r", config, disk, TENURE, Start::Cold);
        assert_eq!(bench.open(), "");
        bench
    }

    /// Opens it in full.
    pub(super) fn open(&mut self) -> String {
        let mut out = Vec::new();
        self.room.open(now(self.now), Grade::Full, &mut out);
        let told = self.perform(out);
        assert_eq!(self.room.grade, Some(Grade::Full));
        self.room.next_ticket = 0;
        told
    }

    pub(super) fn input(&mut self, input: Input) -> String {
        let mut out = Vec::new();
        self.room.handle(now(self.now), input, &mut out);
        self.perform(out)
    }

    fn perform(&mut self, actions: Vec<Action>) -> String {
        let mut told = String::new();
        for action in actions {
            let batch = self.room.in_flight.is_some() && !self.rows_stored;
            let own = match &action {
                Action::Write { write: Write::Record(_), .. } => false,
                Action::Write { .. } => batch,
                Action::ReadRows { .. } => !self.room.phase.is_under_way(),
                _ => false,
            };
            if !self.answers && asks(&action) {
                told += &(tell(&action) + "\n");
                self.asked.push_back(action);
            } else if own || !asks(&action) {
                told += &(tell(&action) + "\n");
                if let Action::Write { ticket, write } = action {
                    self.write = Some((ticket, write));
                }
            } else {
                if matches!(&action, Action::Write { write: Write::Derived(_), .. }) {
                    self.rows_stored = false;
                }
                let input = self.truth(&action);
                told += &self.input(input);
            }
        }
        told
    }

    /// What the store answers.
    fn truth(&mut self, action: &Action) -> Input {
        match action {
            Action::ReadSegments { ticket } => {
                Input::Segments { ticket: *ticket, records: Ok(self.disk.segments()) }
            }
            Action::ReadSaid { ticket } => Input::Said { ticket: *ticket, said: Ok(self.disk.said) },
            Action::ReadRoom { ticket } => {
                Input::RoomRead { ticket: *ticket, read: Ok(Box::new(self.disk.room())) }
            }
            Action::ReadRows { ticket, spans, range, limit } => {
                Input::Rows { ticket: *ticket, page: Ok(self.disk.page(spans, *range, *limit)) }
            }
            Action::Barrier { ticket } => Input::Passed { ticket: *ticket },
            Action::Write { ticket, write } => {
                self.disk.write(write);
                Input::Wrote { ticket: *ticket, outcome: Outcome::Done }
            }
            other => panic!("nothing of the store's: {other:?}"),
        }
    }

    /// Answers the oldest that was asked, truly.
    pub(super) fn answer(&mut self) -> String {
        let action = self.asked.pop_front().expect("something asked");
        let input = self.truth(&action);
        self.input(input)
    }

    /// The oldest that was asked fails; a write ends unknown, and has not arrived.
    pub(super) fn fail(&mut self) -> String {
        let input = match self.asked.pop_front().expect("something asked") {
            Action::ReadSegments { ticket } => Input::Segments { ticket, records: Err(Failed) },
            Action::ReadSaid { ticket } => Input::Said { ticket, said: Err(Failed) },
            Action::ReadRoom { ticket } => Input::RoomRead { ticket, read: Err(Failed) },
            Action::ReadRows { ticket, .. } => Input::Rows { ticket, page: Err(Failed) },
            Action::Write { ticket, .. } => Input::Wrote { ticket, outcome: Outcome::Unknown },
            other => panic!("cannot fail: {other:?}"),
        };
        self.input(input)
    }

    pub(super) fn flush(&mut self) -> String {
        self.input(Input::Flush)
    }

    /// Gives a command, without the flush that ends the turn.
    pub(super) fn call(&mut self, link: u16, user: &str, command: RoomCommand) -> String {
        self.ticket += 1;
        let call = RoomCall {
            ticket: Ticket(self.ticket),
            caller: person(user),
            origin: Origin(u64::from(link)),
            command,
        };
        self.input(Input::Call { link: LinkId(link.into()), call: Box::new(call) })
    }

    pub(super) fn done(&mut self) -> String {
        self.stored(Outcome::Done)
    }

    /// Answers the write of the batch.
    pub(super) fn stored(&mut self, outcome: Outcome) -> String {
        let (ticket, write) = self.write.take().expect("a batch in flight");
        if outcome == Outcome::Done {
            self.disk.write(&write);
            self.rows_stored =
                matches!(&write, Write::Rows { rows, .. } if rows.last().unwrap().derived.is_some());
        }
        self.input(Input::Wrote { ticket, outcome })
    }

    /// A command that is stored at once: everything that is told.
    pub(super) fn run(&mut self, user: &str, command: RoomCommand) -> String {
        let mut told = self.call(1, user, command) + &self.flush();
        if self.write.is_some() {
            told += &self.done();
        }
        told
    }

    pub(super) fn tick_at(&mut self, ms: u64) -> String {
        self.now = ms;
        self.input(Input::Tick)
    }

    /// Answers the read that was asked for last.
    fn read(&mut self, ticket: u32, rows: Vec<Row>, more: bool) -> String {
        self.input(Input::Rows { ticket, page: Ok(banyan_storage::Page { rows, more }) }) + &self.flush()
    }

    fn read_fails(&mut self, ticket: u32) -> String {
        self.input(Input::Rows { ticket, page: Err(Failed) })
    }
}

/// Whether the store, or the gate, answers it.
fn asks(action: &Action) -> bool {
    matches!(
        action,
        Action::ReadSegments { .. }
            | Action::ReadSaid { .. }
            | Action::ReadRows { .. }
            | Action::ReadRoom { .. }
            | Action::Write { .. }
            | Action::Barrier { .. }
    )
}

/// Feeds turns of commands, each followed by its flush, and compares what comes out.
#[track_caller]
pub(super) fn check(bench: &mut Bench, user: &str, command: RoomCommand, want: &str) {
    let got = bench.run(user, command);
    assert_eq!(got.trim(), trim(want));
}

pub(super) fn trim(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

fn tell(action: &Action) -> String {
    let error = |error: &v1::Error| format!("error {}", error.code);
    match action {
        Action::ReadSegments { .. } => "segments".to_owned(),
        Action::ReadSaid { .. } => "said".to_owned(),
        Action::ReadRoom { .. } => "room".to_owned(),
        Action::Barrier { .. } => "barrier".to_owned(),
        Action::Write { write: Write::Record(record), .. } => {
            let prev = record.prev.map(|prev| format!(" after {}.{}", prev.epoch, prev.part));
            let SegmentId { epoch, part } = record.id;
            format!("record {epoch}.{part} from {}{}", record.first_seq, prev.unwrap_or_default())
        }
        Action::Write { write: Write::Said(_), .. } => unreachable!("rooms do not write this"),
        Action::Write { write: Write::Rows { rows, .. }, .. } => {
            let mut text = "append".to_owned();
            for row in rows.iter() {
                let event = LoggedEvent::decode(row.event.clone(), row.origin).unwrap();
                assert_eq!((event.seq(), event.event.n), (row.seq, row.n));
                assert!(event.event.room == "r" || event.event.room.starts_with("dm."));
                text += &format!(" {}", tell_event(&event));
            }
            let derived = rows.iter().filter_map(|row| row.derived.as_deref());
            text + &derived.map(tell_derived).collect::<String>()
        }
        Action::Write { write: Write::Derived(derived), .. } => format!("change{}", tell_derived(derived)),
        Action::ReadRows { range, limit, ticket, .. } => match range {
            Range::After { after, through } => format!("read#{ticket} {after}<..{through} {}", limit.events),
            Range::Before { before, above } => format!("read#{ticket} {above}<..<{before} {}", limit.events),
        },
        Action::PutMarks(marks) => {
            let marks: Vec<_> = marks
                .iter()
                .map(|(user, marks)| format!("{user}={}/{}/{}", marks.delivered, marks.seen, marks.seen_n))
                .collect();
            format!("put {}", marks.join(" "))
        }
        Action::Answer { ticket, answer, .. } => {
            let text = match answer {
                Answer::Sent { seq, duplicate, .. } => {
                    format!("sent {seq}{}", if *duplicate { " duplicate" } else { "" })
                }
                Answer::Error(e) => error(e),
                Answer::Admitted(admission) => format!(
                    "admitted {} head {} n {} out {:?} end {:?}",
                    admission.role.word(),
                    admission.head,
                    admission.n,
                    admission.out.iter().map(|(a, b)| (a.0, b.0)).collect::<Vec<_>>(),
                    admission.end.map(|end| end.0),
                ),
                Answer::Summary(room) => tell_room(room),
                Answer::UserRooms { .. } => unreachable!("rooms do not say this"),
                Answer::Body(body) => match &**body {
                    Body::CreateRoom(made) => format!(
                        "{} {} as {} head {} n {}",
                        if made.created { "created" } else { "there" },
                        made.name,
                        made.role().word(),
                        made.head,
                        made.n
                    ),
                    Body::Join(join) => format!("joined {} head {}", join.role().word(), join.head),
                    Body::Mark(mark) => format!("marks {}/{}/{}", mark.delivered, mark.seen, mark.seen_n),
                    Body::History(page) => {
                        let seqs: Vec<u64> = page.events.iter().map(|event| event.seq).collect();
                        let gaps: Vec<_> = page.gaps.iter().map(|gap| (gap.from, gap.to)).collect();
                        format!("history {seqs:?} gaps {gaps:?} head {} more {}", page.head, page.more)
                    }
                    Body::Members(page) => {
                        let members: Vec<_> = page
                            .members
                            .iter()
                            .map(|member| {
                                let marks = member.seen.map(|seen| format!("/{seen}")).unwrap_or_default();
                                format!(
                                    "{}:{}@{}{marks}",
                                    member.user,
                                    member.role().word(),
                                    member.joined_seq
                                )
                            })
                            .collect();
                        format!("members {} of {} more {}", members.join(" "), page.count, page.more)
                    }
                    _ => "ok".to_owned(),
                },
            };
            format!("{}: {text}", ticket.0)
        }
        Action::Events { link, events } => {
            let events: Vec<_> = events.iter().map(|event| tell_event(event)).collect();
            format!("link {}: {}", link.0, events.join(" "))
        }
        Action::Marks { link, marks } => {
            let marks: Vec<_> =
                marks.iter().map(|mark| format!("{}={}/{}", mark.user, mark.delivered, mark.seen)).collect();
            format!("link {}: marks {}", link.0, marks.join(" "))
        }
        Action::Page { ticket, page, .. } => match page {
            Ok(page) => {
                let seqs: Vec<u64> = page.events.iter().map(|event| event.event.seq).collect();
                format!("page {}: {seqs:?} head {} more {}", ticket.0, page.head, page.more)
            }
            Err(e) => format!("page {}: {}", ticket.0, error(e)),
        },
        Action::Left { link, user, at } => format!("{}: {user} out at {at}", link.0),
        Action::NotifyUser { user, push } => match &**push {
            Body::Room(room) => format!("to {user}: {}", tell_room(room)),
            Body::RoomGone(gone) => format!("to {user}: gone {}", gone.code),
            Body::Marks(push) => {
                format!("to {user}: marks {}/{}", push.marks[0].delivered, push.marks[0].seen)
            }
            other => panic!("{other:?}"),
        },
        Action::Head { link, beacon } => {
            let Beacon { epoch, head, n, last_membership } = beacon;
            format!("link {}: head {head} n {n} members {last_membership} epoch {epoch}", link.0)
        }
        Action::Return { link, ticket } => format!("{}: return to {}", ticket.0, link.0),
        Action::Damaged { after } => format!("damaged after {after}"),
        Action::TooManySegments => "too many segments".to_owned(),
    }
}

fn tell_derived(derived: &Derived) -> String {
    let mut text = String::new();
    if derived.room.is_some() {
        text += " [room]";
    }
    for row in &derived.members {
        text += &format!(" {}:{}", row.user, role(row).word());
    }
    text
}

fn tell_event(event: &LoggedEvent) -> String {
    let text = match event.event.kind.as_ref().unwrap() {
        Kind::Created(created) => format!("created:{}", created.kind().word()),
        Kind::Message(message) => format!("{}:{}", event.event.sender, message.text),
        Kind::Joined(joined) => {
            format!(
                "joined:{}{}",
                joined.user,
                joined.by.as_ref().map(|by| format!("<{by}")).unwrap_or_default()
            )
        }
        Kind::Left(left) => format!("left:{}", left.user),
        Kind::Removed(removed) => format!("removed:{}<{}", removed.user, removed.by),
        Kind::RoleChanged(changed) => format!("role:{}={}", changed.user, changed.role().word()),
        Kind::RoomChanged(changed) => format!("changed:{:?}/{:?}", changed.name, changed.public),
    };
    format!("{}={text}", event.event.seq)
}

fn tell_room(room: &v1::Room) -> String {
    let last = room.last.as_ref().map(|last| format!(" last {}", last.text)).unwrap_or_default();
    let peer = room.peer.as_ref().map(|peer| format!(" peer {peer}")).unwrap_or_default();
    format!(
        "room {} {} head {} n {} seen {}{peer}{last}",
        room.name,
        room.role().word(),
        room.head,
        room.n,
        room.seen_n
    )
}

fn member_row(user: &str, role: Role) -> MemberRow {
    MemberRow {
        user: UserId::parse(user).unwrap(),
        name: user.to_uppercase(),
        role: crate::members::role_number(role),
        joined_seq: Seq(1),
        left_seq: None,
        changed: Seq(1),
        out: Vec::new(),
    }
}

fn stored_row(seq: u64, kind: Kind, client_msg_id: Option<String>) -> Row {
    stored_row_at(seq, 900_000 + seq, kind, client_msg_id)
}

fn stored_row_at(seq: u64, at: u64, kind: Kind, client_msg_id: Option<String>) -> Row {
    let event = v1::Event {
        room: "r".to_owned(),
        seq,
        at,
        n: seq - 1,
        sender: "alice".to_owned(),
        sender_name: "ALICE".to_owned(),
        client_msg_id,
        kind: Some(kind),
    };
    let event = LoggedEvent::new(event, Origin(9));
    Row {
        seq: Seq(seq),
        batch_first: Seq(seq),
        n: seq - 1,
        origin: Origin(9),
        event: event.encoded,
        derived: None,
    }
}

/// Row `seq` of the stored group: 1 is `created`, `m<seq>` follow.
pub(super) fn stored_message(seq: u64) -> Row {
    stored_message_at(seq, 900_000 + seq)
}

fn stored_message_at(seq: u64, at: u64) -> Row {
    let message = v1::Message {
        text: format!("t{seq}"),
        content_type: "text/plain".to_owned(),
        ..v1::Message::default()
    };
    stored_row_at(seq, at, Kind::Message(message), Some(format!("m{seq}")))
}

fn stored_created(kind: RoomKind, public: bool) -> Row {
    let created = v1::Created { kind: kind as i32, name: "room".to_owned(), public };
    stored_row(1, Kind::Created(created), None)
}

/// What an earlier owner has left: one segment of epoch 0.
pub(super) fn stored(kind: RoomKind, public: bool, messages: u64) -> Disk {
    let mut disk = Disk::default();
    let id = SegmentId { epoch: Epoch(0), part: Part(0) };
    let record = SegmentRecord {
        id,
        bucket: Bucket(0),
        first_seq: Seq(1),
        n_before: 0,
        prev: None,
        incarnation: Incarnation(0),
        log: LogId(7),
    };
    disk.write(&Write::Record(record.into()));
    let rows = std::iter::once(stored_created(kind, public)).chain((2..=messages + 1).map(stored_message));
    disk.write(&Write::Rows { segment: id, bucket: Bucket(0), rows: rows.collect() });
    let row = RoomRow {
        room: RoomId::parse("r").unwrap(),
        log: LogId(7),
        kind: kind as u8,
        public,
        lazy: false,
        name: "room".to_owned(),
        created_at: UnixMs(900_000),
        floor: Seq(0),
        changed: Seq(0),
    };
    let members =
        [("adam", Role::Admin), ("alice", Role::Owner), ("bob", Role::Member), ("rita", Role::Reader)];
    let members = members.into_iter().map(|(user, role)| member_row(user, role)).collect();
    disk.write(&Write::Derived(Box::new(Derived { room: Some(row), members })));
    disk
}

pub(super) fn send(id: &str) -> RoomCommand {
    said(id, None, id)
}

pub(super) fn said(id: &str, since: Option<u64>, text: &str) -> RoomCommand {
    RoomCommand::Send(v1::Send {
        client_msg_id: id.to_owned(),
        since,
        text: Some(text.to_owned()),
        ..v1::Send::default()
    })
}

pub(super) fn create(kind: RoomKind, members: &[&str]) -> RoomCommand {
    let name = if kind == RoomKind::Direct { String::new() } else { "new".to_owned() };
    RoomCommand::Create {
        kind,
        name,
        public: false,
        members: members.iter().map(|user| person(user)).collect(),
    }
}

pub(super) fn user(user: &str) -> UserId {
    UserId::parse(user).unwrap()
}

pub(super) fn history(before: Option<u64>, after: Option<u64>, limit: u32) -> RoomCommand {
    RoomCommand::History { before: before.map(Seq), after: after.map(Seq), limit }
}

pub(super) fn mark(seen: u64) -> RoomCommand {
    RoomCommand::Mark { delivered: None, seen: Some(Seq(seen)) }
}

#[test]
fn nothing_is_said_before_it_is_durable_and_events_precede_their_answers() {
    let mut bench = Bench::group(false, 1);
    bench.call(1, "alice", RoomCommand::Subscribe);
    bench.call(2, "bob", RoomCommand::Subscribe);
    assert_eq!(bench.call(1, "alice", send("x")), "");
    assert_eq!(bench.call(2, "bob", send("y")), "");
    assert_eq!(bench.flush(), "append 3=alice:x 4=bob:y\n");
    // One append in flight: this one waits for the next batch.
    assert_eq!(bench.call(1, "adam", send("z")) + &bench.flush(), "");
    assert_eq!(bench.done(), "link 1: 3=alice:x 4=bob:y\nlink 2: 3=alice:x 4=bob:y\n3: sent 3\n4: sent 4\n");
    assert_eq!(bench.flush(), "append 5=adam:z\n");
    assert_eq!(bench.done(), "link 1: 5=adam:z\nlink 2: 5=adam:z\n5: sent 5\n");
}

#[test]
fn what_is_read_meanwhile_is_what_was_said() {
    let mut bench = Bench::group(false, 1);
    bench.call(1, "alice", send("x"));
    bench.flush();
    assert_eq!(
        bench.call(1, "bob", RoomCommand::Subscribe),
        "2: admitted member head 2 n 1 out [] end None\n"
    );
    assert_eq!(
        bench.call(1, "bob", history(None, None, 50)),
        "3: history [1, 2] gaps [] head 2 more false\n"
    );
    assert_eq!(bench.call(1, "bob", mark(3)), "4: error 107\n");
    let pull = PullRequest {
        link: LinkId(1),
        ticket: Ticket(9),
        after: Seq(0),
        through: Some(Seq(3)),
        max_events: 10,
        max_bytes: 1_000,
    };
    assert_eq!(bench.input(Input::Pull(pull)), "page 9: [1, 2] head 2 more false\n");
    assert_eq!(bench.done(), "link 1: 3=alice:x\n1: sent 3\n");
    let pull = PullRequest { max_events: 2, through: None, ..pull };
    assert_eq!(bench.input(Input::Pull(pull)), "page 9: [1, 2] head 3 more true\n");
}

#[test]
fn at_never_falls_within_a_room() {
    let mut bench = Bench::group(false, 0);
    let mut at = Vec::new();
    for unix in [2_000_000, 1_000_000, 3_000_000] {
        let mut out = Vec::new();
        let call = RoomCall {
            ticket: Ticket(1),
            caller: person("alice"),
            origin: Origin(1),
            command: send(&unix.to_string()),
        };
        let time = Now { mono_ms: 5, unix: UnixMs(unix) };
        bench.room.handle(time, Input::Call { link: LinkId(1), call: Box::new(call) }, &mut out);
        bench.room.handle(time, Input::Flush, &mut out);
        let Some(Action::Write { ticket, write: Write::Rows { rows, .. } }) = out.pop() else {
            panic!("no append")
        };
        at.push(LoggedEvent::decode(rows[0].event.clone(), Origin(1)).unwrap().event.at);
        bench.room.handle(time, Input::Wrote { ticket, outcome: Outcome::Done }, &mut out);
    }
    assert_eq!(at, [2_000_000, 2_000_000, 3_000_000]);
}

#[test]
fn a_client_message_is_stored_once_and_another_body_is_refused() {
    let mut bench = Bench::group(false, 1);
    bench.call(1, "alice", send("x"));
    bench.call(2, "alice", send("x"));
    bench.call(2, "alice", said("x", None, "other"));
    bench.call(1, "bob", send("x"));
    assert_eq!(bench.flush(), "append 3=alice:x 4=bob:x\n");
    // In flight: the retry joins the first try.
    assert_eq!(bench.call(3, "alice", send("x")) + &bench.flush(), "");
    assert_eq!(bench.done(), "1: sent 3\n2: sent 3 duplicate\n3: error 120\n4: sent 4\n");
    assert_eq!(bench.flush(), "5: sent 3 duplicate\n");
    assert_eq!(bench.call(3, "alice", send("x")), "6: sent 3 duplicate\n");
    // What was loaded counts too, mentions do not.
    let retry = RoomCommand::Send(v1::Send {
        client_msg_id: "m2".to_owned(),
        text: Some("t2".to_owned()),
        content_type: Some("text/plain".to_owned()),
        mentions: vec!["nobody".to_owned()],
        ..v1::Send::default()
    });
    assert_eq!(bench.call(3, "alice", retry), "7: sent 2 duplicate\n");
}

#[test]
fn a_known_id_comes_before_permission_and_limits() {
    let mut bench = Bench::group(false, 1);
    bench.run("bob", send("x"));
    bench.run("adam", RoomCommand::Remove { user: user("bob") });
    assert_eq!(bench.call(1, "bob", send("x")), "3: sent 3 duplicate\n");
    check(&mut bench, "bob", send("y"), "4: error 123");
}

#[test]
fn a_batch_that_was_not_stored_leaves_nothing() {
    let mut bench = Bench::group(false, 1);
    bench.call(1, "alice", RoomCommand::Subscribe);
    bench.call(1, "bob", send("x"));
    bench.call(1, "adam", RoomCommand::Remove { user: user("bob") });
    bench.call(1, "bob", send("y"));
    assert_eq!(bench.flush(), "append 3=bob:x 4=removed:bob<adam bob:none\n");
    assert_eq!(bench.stored(Outcome::NotDone(NotDone::Full)), "2: error 108\n3: error 108\n4: error 108\n");
    check(&mut bench, "bob", send("x"), "append 3=bob:x\nlink 1: 3=bob:x\n5: sent 3");
}

#[test]
fn an_unknown_outcome_is_settled_before_the_room_goes_on() {
    let mut bench = Bench::group(false, 1);
    bench.call(1, "alice", RoomCommand::Subscribe);
    bench.call(1, "alice", send("x"));
    bench.flush();
    assert_eq!(bench.stored(Outcome::Unknown), "");
    bench.now = 50;
    assert_eq!(bench.call(1, "bob", send("y")) + &bench.flush(), "");
    assert_eq!(bench.tick_at(99), "");
    assert_eq!(bench.tick_at(100), "append 3=alice:x\n");
    assert_eq!(bench.tick_at(101), "", "one try at a time");
    // This try was refused; the first one may still come.
    assert_eq!(bench.stored(Outcome::NotDone(NotDone::Full)), "");
    assert_eq!(bench.tick_at(301), "append 3=alice:x\n");
    assert_eq!(bench.stored(Outcome::Unknown), "");
    // Who has waited for 10 s is told that nobody knows; reads go on.
    assert_eq!(
        bench.tick_at(10_000),
        "append 3=alice:x\n2: error 108\n".lines().rev().map(|l| l.to_owned() + "\n").collect::<String>()
    );
    assert_eq!(bench.call(1, "bob", history(None, None, 1)), "4: history [2] gaps [] head 2 more true\n");
    assert_eq!(bench.done(), "link 1: 3=alice:x\n");
    assert_eq!(bench.flush(), "append 4=bob:y\n");
    assert_eq!(bench.call(1, "alice", send("x")), "5: sent 3 duplicate\n");
}

#[test]
fn commands_that_wait_too_long_are_answered_and_not_carried_out() {
    let mut bench = Bench::group(false, 1);
    bench.call(1, "alice", send("x"));
    bench.flush();
    bench.now = 5_000;
    bench.call(1, "bob", send("y"));
    bench.flush();
    assert_eq!(bench.tick_at(10_000), "1: error 108\n");
    assert_eq!(bench.tick_at(15_000), "2: error 108\n");
    assert_eq!(bench.done(), "");
    assert_eq!(bench.flush(), "");
    assert!(bench.room.is_settled());
}

#[test]
fn a_full_queue_answers_112_but_knows_what_is_stored() {
    let config = Config { queue_commands: 2, ..Config::default() };
    let mut bench = Bench::loaded(config, RoomKind::Group, false, 1);
    bench.call(1, "alice", send("x"));
    bench.flush();
    bench.call(1, "alice", send("y"));
    bench.call(1, "alice", send("z"));
    assert_eq!(bench.call(1, "alice", send("full")), "4: error 112\n");
    assert_eq!(bench.call(1, "alice", said("m2", None, "t2")), "5: sent 2 duplicate\n");

    let config = Config { queue_bytes: 1_500, ..Config::default() };
    let mut bench = Bench::loaded(config, RoomKind::Group, false, 1);
    assert_eq!(bench.call(1, "alice", said("a", None, &"x".repeat(500))), "");
    assert_eq!(bench.call(1, "alice", said("b", None, &"x".repeat(500))), "2: error 112\n");
}

#[test]
fn batches_are_bounded() {
    let config = Config { batch_events: 2, ..Config::default() };
    let mut bench = Bench::loaded(config, RoomKind::Group, false, 0);
    for id in ["a", "b", "c"] {
        bench.call(1, "alice", send(id));
    }
    assert_eq!(bench.flush(), "append 2=alice:a 3=alice:b\n");
    bench.done();
    assert_eq!(bench.flush(), "append 4=alice:c\n");
    let config = Config { batch_bytes: 1_000, ..Config::default() };
    let mut bench = Bench::loaded(config, RoomKind::Group, false, 0);
    for id in ["a", "b", "c"] {
        bench.call(1, "alice", said(id, None, &id.repeat(400)));
    }
    assert_eq!(bench.flush().matches('=').count(), 1, "a 500-byte send and a second one do not fit");
}

#[test]
fn a_twin_above_since_is_found_in_the_log() {
    // 101 events; the tail that is loaded begins above 37.
    let mut bench = Bench::group(false, 100);
    assert_eq!(bench.room.state.as_ref().unwrap().window.start(), Seq(37));
    check(&mut bench, "alice", said("m50", Some(5), "t50"), "1: sent 50 duplicate");
    check(&mut bench, "alice", said("m10", Some(5), "t10"), "read#1 5<..37 2500");
    // Another send that needs the log waits; one that does not goes on.
    check(&mut bench, "alice", said("m20", Some(15), "other"), "");
    check(&mut bench, "bob", said("new", Some(90), "new"), "append 102=bob:new\n4: sent 102");
    assert_eq!(
        bench.read(1, (6..=20).map(stored_message).collect(), true),
        "2: sent 10 duplicate\nread#2 15<..37 2500\n"
    );
    assert_eq!(bench.read(2, (16..=17).map(stored_message).collect(), true), "read#3 17<..37 2500\n");
    assert_eq!(bench.read(3, (18..=37).map(stored_message).collect(), false), "3: error 120\n");
    // Nothing there: it is new.
    check(&mut bench, "alice", said("n", Some(30), "n"), "read#4 30<..37 2500");
    assert_eq!(bench.read(4, (31..=37).map(stored_message).collect(), false), "append 103=alice:n\n");
    assert_eq!(bench.done(), "5: sent 103\n");
    // Who never was in the room has no twin in it.
    check(&mut bench, "eve", said("n", Some(0), "n"), "6: error 102");
}

#[test]
fn a_log_that_is_too_long_to_search_is_113_and_a_since_above_head_is_0() {
    let config = Config { since_events: 90, ..Config::default() };
    let mut bench = Bench::loaded(config, RoomKind::Group, false, 100);
    check(&mut bench, "alice", said("x", Some(10), "x"), "1: error 113");
    check(&mut bench, "alice", said("x", Some(500), "x"), "2: error 113");
    check(&mut bench, "alice", said("m50", Some(500), "t50"), "3: sent 50 duplicate");
    check(&mut bench, "alice", said("x", Some(11), "x"), "read#1 11<..37 2500");
    assert_eq!(bench.read_fails(1), "4: error 108\n");
    assert!(bench.room.is_settled());
    assert_eq!(bench.room.queue_bytes, 0);
}

#[test]
fn the_first_send_without_since_waits_for_the_window() {
    let mut bench = Bench::group(false, 100);
    check(&mut bench, "alice", said("m10", None, "t10"), "read#1 0<..<38 512");
    check(&mut bench, "bob", send("x"), "");
    assert_eq!(bench.read(1, (20..=37).map(stored_message).collect(), true), "read#2 0<..<20 512\n");
    let mut rows: Vec<Row> = vec![stored_created(RoomKind::Group, false)];
    rows.extend((2..=19).map(stored_message));
    assert_eq!(bench.read(2, rows, false), "1: sent 10 duplicate\nappend 102=bob:x\n");
    bench.done();
    check(&mut bench, "bob", send("y"), "append 103=bob:y\n3: sent 103");
}

#[test]
fn what_is_older_than_ten_minutes_need_not_be_known() {
    // A message every nine seconds.
    let mut bench = Bench::group(false, 200);
    check(&mut bench, "alice", said("m10", None, "t10"), "read#1 0<..<138 512");
    let rows: Vec<Row> = (60..=137).map(|seq| stored_message_at(seq, seq * 9_000)).collect();
    assert_eq!(bench.read(1, rows, true), "append 202=alice:t10\n");
    // And after eight minutes the look goes on.
    let mut bench = Bench::group(false, 200);
    check(&mut bench, "alice", said("m10", None, "t10"), "read#1 0<..<138 512");
    let rows: Vec<Row> = (84..=137).map(|seq| stored_message_at(seq, seq * 9_000)).collect();
    assert_eq!(bench.read(1, rows, true), "read#2 0<..<84 512\n");
}

#[test]
fn clocks_that_jump_do_not_shorten_the_window() {
    for jumps in [[0, 0, 3_600], [3_600, 0, 0], [0, 3_600, 0], [3_600, 0, 3_600]] {
        let mut bench = Bench::group(false, 200);
        // The clock of whoever opens it, too.
        bench.now = 7_200_000;
        check(&mut bench, "alice", said("m10", None, "t10"), "read#1 0<..<138 512");
        // Three owners wrote it, one after the other, a message a second.
        let at = |seq: u64| 10_000 + seq + jumps[(seq / 46) as usize];
        let rows: Vec<Row> = (20..=137).map(|seq| stored_message_at(seq, 1_000 * at(seq))).collect();
        assert_eq!(bench.read(1, rows, true), "read#2 0<..<20 512\n", "{jumps:?}");
        let mut rows = vec![stored_created(RoomKind::Group, false)];
        rows.extend((2..=19).map(|seq| stored_message_at(seq, 1_000 * at(seq))));
        assert_eq!(bench.read(2, rows, false), "1: sent 10 duplicate\n", "{jumps:?}");
    }
}

#[test]
fn the_window_forgets_what_lies_below_it() {
    let config = Config { window_events: 3, ..Config::default() };
    let mut bench = Bench::loaded(config, RoomKind::Group, false, 0);
    for id in ["a", "b", "c", "d"] {
        bench.run("alice", send(id));
    }
    check(&mut bench, "alice", send("b"), "5: sent 3 duplicate");
    check(&mut bench, "alice", said("a", Some(1), "a"), "read#1 1<..2 2500");
    assert_eq!(bench.room.state.as_ref().unwrap().window.start(), Seq(2));
}

#[test]
fn a_room_is_created_once() {
    let mut bench = Bench::absent("r", Config::default());
    bench.call(1, "alice", create(RoomKind::Group, &["bob", "bob", "carl"]));
    bench.call(1, "alice", create(RoomKind::Group, &[]));
    bench.call(1, "eve", create(RoomKind::Group, &[]));
    // Commands behind a change wait for it.
    bench.call(1, "alice", RoomCommand::Subscribe);
    assert_eq!(
        bench.flush(),
        "append 1=created:group 2=joined:bob<alice 3=joined:carl<alice [room] alice:owner bob:member carl:member\n"
    );
    assert_eq!(
        bench.done(),
        trim(
            "1: created new as owner head 3 n 0
             2: there new as owner head 3 n 0
             3: error 105
             to alice: room new owner head 3 n 0 seen 0
             to bob: room new member head 3 n 0 seen 0
             to carl: room new member head 3 n 0 seen 0"
        ) + "\n"
    );
    assert_eq!(bench.flush(), "4: admitted owner head 3 n 0 out [] end None\n");
    check(&mut bench, "alice", send("x"), "append 4=alice:x\nlink 1: 4=alice:x\n5: sent 4");
    assert_eq!(bench.room.state.as_ref().unwrap().row.log, LogId(0xabc));
}

#[test]
fn links_learn_of_a_leave_that_no_event_tells() {
    let mut bench = Bench::absent("r", Config::default());
    bench.run("alice", create(RoomKind::Broadcast, &["bob", "carl"]));
    bench.run("alice", send("a"));
    bench.run("carl", RoomCommand::Subscribe);
    let told = bench.run("bob", RoomCommand::Leave);
    assert_eq!(told, "change bob:none\n4: ok\nto bob: gone 123\n1: bob out at 2\n");
    // The same of a removal, beside its event.
    let told = bench.run("alice", RoomCommand::Remove { user: user("carl") });
    assert!(told.ends_with("to carl: gone 123\n1: carl out at 3\n"), "{told}");
}

/// Found by the simulator (seed 320): the links kept a cursor that stood over the absence.
#[test]
fn links_learn_of_a_leave_though_its_user_is_back_within_the_batch() {
    let config = Config { join_events_members: 2, ..Config::default() };
    let mut bench = Bench::loaded(config, RoomKind::Group, true, 1);
    bench.run("bob", RoomCommand::Subscribe);
    bench.call(1, "alice", send("x"));
    bench.flush();
    // All of this waits for the append, and comes into one batch.
    bench.call(1, "bob", RoomCommand::Leave);
    bench.call(1, "alice", send("not for bob"));
    bench.call(1, "alice", RoomCommand::Add { users: vec![person("bob")] });
    bench.done();
    bench.flush();
    let told = bench.done();
    assert!(told.contains("1: bob out at 3\n") && !told.contains("gone"), "{told}");
}

#[test]
fn broadcasts_only_count_their_readers() {
    let mut bench = Bench::absent("r", Config::default());
    let made = bench.run("alice", create(RoomKind::Broadcast, &["bob"]));
    assert!(made.starts_with("append 1=created:broadcast [room] alice:owner bob:reader\n"), "{made}");
    check(&mut bench, "bob", send("x"), "2: error 103");
    bench.run("alice", RoomCommand::Update { name: None, public: Some(true) });
    let told = bench.run("carl", RoomCommand::Join);
    assert!(told.starts_with("change carl:reader\n4: joined reader head 2\n"), "{told}");
    // A second change at the same head could not be ordered in the store: it is an event.
    let told = bench.run("carl", RoomCommand::Leave);
    assert!(told.starts_with("append 3=left:carl carl:none\n5: ok\n"), "{told}");
    let told = bench.run("carl", RoomCommand::Join);
    assert!(told.starts_with("append 4=joined:carl carl:reader\n"), "{told}");
    bench.run("alice", send("a"));
    let told = bench.run("carl", RoomCommand::Leave);
    assert!(told.starts_with("change carl:none\n"), "{told}");
    check(&mut bench, "carl", RoomCommand::Subscribe, "9: admitted none head 5 n 1 out [] end Some(5)");
    // Removals are always events.
    let told = bench.run("alice", RoomCommand::Remove { user: user("bob") });
    assert!(told.starts_with("append 6=removed:bob<alice bob:none\n"), "{told}");
}

#[test]
fn direct_rooms_have_two_equal_members_for_good() {
    let id = direct::room_id(&user("alice"), &user("bob"));
    let mut bench = Bench::absent(id.as_str(), Config::default());
    let refused = [
        create(RoomKind::Direct, &["carl"]),
        create(RoomKind::Direct, &["alice"]),
        create(RoomKind::Direct, &["bob", "carl"]),
        create(RoomKind::Direct, &[]),
        create(RoomKind::Group, &["bob"]),
        RoomCommand::Create {
            kind: RoomKind::Direct,
            name: "n".to_owned(),
            public: false,
            members: vec![person("bob")],
        },
        RoomCommand::Create {
            kind: RoomKind::Direct,
            name: String::new(),
            public: true,
            members: vec![person("bob")],
        },
    ];
    for command in refused {
        let told = bench.run("alice", command.clone());
        assert!(told.ends_with(": error 107\n"), "{command:?}: {told}");
    }
    bench.room.id = RoomId::parse("r").unwrap();
    let mut bench = Bench::absent(id.as_str(), Config::default());
    for (ticket, caller, other) in [(1, "alice", "bob"), (2, "bob", "alice")] {
        let call = RoomCall {
            ticket: Ticket(ticket),
            caller: person(caller),
            origin: Origin(1),
            command: create(RoomKind::Direct, &[other]),
        };
        assert_eq!(bench.input(Input::Call { link: LinkId(1), call: Box::new(call) }), "");
    }
    bench.input(Input::Flush);
    let told = bench.done();
    assert_eq!(
        told,
        trim(
            "1: created BOB as member head 1 n 0
             2: there ALICE as member head 1 n 0
             to alice: room BOB member head 1 n 0 seen 0 peer bob
             to bob: room ALICE member head 1 n 0 seen 0 peer alice"
        ) + "\n"
    );
    for command in [
        RoomCommand::Join,
        RoomCommand::Leave,
        RoomCommand::Update { name: Some("x".to_owned()), public: None },
        RoomCommand::Add { users: vec![person("carl")] },
        RoomCommand::Remove { user: user("bob") },
        RoomCommand::SetRole { user: user("bob"), role: Role::Admin },
    ] {
        let told = bench.run("alice", command.clone());
        assert!(told.ends_with(": error 103\n"), "{command:?}: {told}");
        let told = bench.run("eve", command.clone());
        assert!(told.ends_with(": error 102\n"), "{command:?}: {told}");
    }
}

#[test]
fn who_left_sees_up_to_there_and_who_returns_has_a_gap() {
    let mut bench = Bench::group(true, 1);
    let told = bench.run("bob", RoomCommand::Leave);
    assert_eq!(told, "append 3=left:bob bob:none\n1: ok\nto bob: gone 123\n");
    bench.run("alice", send("a"));
    bench.run("alice", send("b"));
    check(&mut bench, "bob", RoomCommand::Subscribe, "4: admitted none head 3 n 1 out [] end Some(3)");
    check(&mut bench, "bob", history(None, None, 50), "5: history [1, 2, 3] gaps [] head 3 more false");
    check(&mut bench, "bob", history(None, Some(3), 50), "6: history [] gaps [] head 3 more false");
    check(&mut bench, "bob", mark(4), "7: error 107");
    check(&mut bench, "bob", RoomCommand::Summary, "8: error 123");
    check(&mut bench, "bob", send("x"), "9: error 123");
    let told = bench.run("bob", RoomCommand::Join);
    assert!(
        told.starts_with("append 6=joined:bob bob:member\nlink 1: 6=joined:bob\n10: joined member head 6\n"),
        "{told}"
    );
    check(&mut bench, "bob", RoomCommand::Subscribe, "11: admitted member head 6 n 3 out [(4, 5)] end None");
    check(&mut bench, "bob", history(None, None, 50), "12: history [6] gaps [] head 6 more true");
    check(
        &mut bench,
        "bob",
        history(Some(6), None, 50),
        "13: history [1, 2, 3] gaps [(4, 5)] head 6 more false",
    );
    // The last message that it may see, not the last one.
    check(&mut bench, "bob", RoomCommand::Summary, "14: room room member head 6 n 3 seen 0 last t2");
}

#[test]
fn roles_are_changed_as_the_table_says() {
    let mut bench = Bench::group(false, 1);
    let set = |name: &str, role| RoomCommand::SetRole { user: user(name), role };
    check(&mut bench, "adam", set("alice", Role::Member), "1: error 103");
    check(&mut bench, "adam", set("bob", Role::Admin), "2: error 103");
    check(&mut bench, "alice", set("eve", Role::Member), "3: error 122");
    check(&mut bench, "alice", set("bob", Role::None), "4: error 107");
    check(&mut bench, "alice", RoomCommand::Leave, "5: error 103");
    check(
        &mut bench,
        "alice",
        set("adam", Role::Owner),
        "append 3=role:adam=owner 4=role:alice=admin adam:owner alice:admin
         6: ok
         to adam: room room owner head 4 n 1 seen 0 last t2
         to alice: room room admin head 4 n 1 seen 0 last t2",
    );
    // The retry of a hand-over whose reply was lost.
    check(&mut bench, "alice", set("adam", Role::Owner), "7: ok");
    check(&mut bench, "bob", set("adam", Role::Owner), "8: error 103");
    check(&mut bench, "alice", RoomCommand::Remove { user: user("adam") }, "9: error 103");
    check(&mut bench, "alice", RoomCommand::Remove { user: user("eve") }, "10: error 122");
    let told = bench.run("alice", RoomCommand::Remove { user: user("rita") });
    assert!(told.starts_with("append 5=removed:rita<alice rita:none\n11: ok\nto rita: gone 123\n"));
    check(&mut bench, "alice", RoomCommand::Remove { user: user("rita") }, "12: ok");
}

#[test]
fn members_are_added_once_and_listed_by_id() {
    let config = Config { members: 6, ..Config::default() };
    let mut bench = Bench::loaded(config, RoomKind::Group, false, 1);
    check(&mut bench, "bob", RoomCommand::Add { users: vec![person("carl")] }, "1: error 103");
    let add = |users: &[&str]| RoomCommand::Add { users: users.iter().map(|user| person(user)).collect() };
    check(&mut bench, "adam", add(&["bob", "carl", "dora", "eve"]), "2: error 106");
    let told = bench.run("adam", add(&["bob", "carl", "carl"]));
    assert!(told.starts_with("append 3=joined:carl<adam carl:member\n3: ok\nto carl: room"), "{told}");
    check(&mut bench, "adam", add(&["bob", "carl"]), "4: ok");
    bench.run("carl", mark(2));
    check(
        &mut bench,
        "bob",
        RoomCommand::Members { after: None, limit: 3 },
        "6: members adam:admin@1/0 alice:owner@1/0 bob:member@1/0 of 5 more true",
    );
    check(
        &mut bench,
        "bob",
        RoomCommand::Members { after: Some(user("bob")), limit: 3 },
        "7: members carl:member@3/2 rita:reader@1/0 of 5 more false",
    );
    // Who was removed sees who was there then, and nobody's marks.
    bench.run("adam", RoomCommand::Remove { user: user("bob") });
    bench.run("adam", add(&["zoe"]));
    check(
        &mut bench,
        "bob",
        RoomCommand::Members { after: Some(user("alice")), limit: 9 },
        "10: members carl:member@3 rita:reader@1 of 4 more false",
    );
}

#[test]
fn joins_of_large_rooms_are_only_counted() {
    let config = Config { join_events_members: 5, ..Config::default() };
    let mut bench = Bench::loaded(config, RoomKind::Group, true, 1);
    assert!(bench.run("carl", RoomCommand::Join).starts_with("append 3=joined:carl carl:member\n"));
    assert!(
        bench.run("dora", RoomCommand::Join).starts_with("change dora:member\n2: joined member head 3\n")
    );
    check(&mut bench, "dora", RoomCommand::Join, "3: joined member head 3");
    let count = |bench: &Bench| bench.room.state.as_ref().unwrap().members.count();
    assert_eq!(count(&bench), 6);
    bench.run("alice", send("x"));
    assert!(bench.run("dora", RoomCommand::Leave).starts_with("change dora:none\n"));
    assert_eq!(count(&bench), 5);
    bench.run("alice", send("y"));
    assert!(bench.run("dora", RoomCommand::Join).starts_with("change dora:member\n"));
    check(&mut bench, "dora", RoomCommand::Subscribe, "8: admitted member head 5 n 3 out [(5, 5)] end None");
    check(
        &mut bench,
        "dora",
        history(None, None, 9),
        "9: history [1, 2, 3, 4] gaps [(5, 5)] head 5 more false",
    );
}

/// An owner before this one wrote them and was gone before it could answer: this owner has read them, and they may lie on
/// one replica (found by the simulator, seeds 68671 and 77373).
#[test]
fn who_is_told_that_it_is_so_already_is_told_what_is_stored() {
    let mut disk = stored(RoomKind::Broadcast, true, 1);
    let counted = |name: &str, role, left| MemberRow {
        joined_seq: Seq(if left { 1 } else { 2 }),
        left_seq: left.then_some(Seq(1)),
        ..member_row(name, role)
    };
    let rows = [("carl", Role::Reader), ("dora", Role::Reader), ("eve", Role::None), ("fred", Role::None)];
    let members = rows.map(|(name, role)| counted(name, role, role == Role::None)).to_vec();
    disk.write(&Write::Derived(Box::new(Derived { room: None, members: members.clone() })));
    let add = |users: &[&str]| RoomCommand::Add { users: users.iter().map(|user| person(user)).collect() };
    let remove = |name: &str| RoomCommand::Remove { user: user(name) };
    let set = |name: &str, role| RoomCommand::SetRole { user: user(name), role };

    let config = Config { member_rows: 9, ..Config::default() };
    let mut bench = Bench::on("r", config.clone(), disk.clone(), TENURE, Start::Cold);
    bench.open();
    // Nothing is said before the row is stored, and nothing is said if it may not be.
    assert_eq!(bench.call(1, "carl", RoomCommand::Join) + &bench.flush(), "change carl:reader\n");
    assert_eq!(bench.stored(Outcome::NotDone(NotDone::Overloaded)), "1: error 108\n");
    check(&mut bench, "carl", RoomCommand::Join, "change carl:reader\n2: joined reader head 2");
    // Once is enough; and what an event tells of was written before the next one came.
    check(&mut bench, "carl", RoomCommand::Join, "3: joined reader head 2");
    check(&mut bench, "alice", add(&["adam", "carl"]), "4: ok");
    check(&mut bench, "bob", RoomCommand::Join, "5: joined member head 2");
    check(&mut bench, "eve", RoomCommand::Leave, "change eve:none\n6: error 123");
    check(&mut bench, "eve", RoomCommand::Leave, "7: error 123");
    check(&mut bench, "zoe", RoomCommand::Leave, "8: error 123");
    check(&mut bench, "alice", remove("fred"), "change fred:none\n9: ok");
    check(&mut bench, "alice", remove("fred"), "10: ok");
    check(&mut bench, "alice", set("dora", Role::Reader), "change dora:reader\n11: ok");
    // They are what they were: written late or twice, they change nothing.
    let stored = |name: &str| bench.disk.members[&user(name)].clone();
    assert_eq!(["carl", "dora", "eve", "fred"].map(stored).to_vec(), members);

    // Beside what is new; and a row that is written once more is no further row.
    let mut bench = Bench::on("r", config, disk, TENURE, Start::Cold);
    bench.open();
    let told = bench.run("alice", add(&["carl", "dora", "zoe", "carl"]));
    assert!(told.starts_with("change carl:reader dora:reader zoe:reader\n1: ok\nto zoe: room"), "{told}");
    assert_eq!(told.lines().count(), 3, "{told}");
}

#[test]
fn a_changed_room_is_told_to_its_members() {
    let mut bench = Bench::group(false, 0);
    let update = RoomCommand::Update { name: Some("new".to_owned()), public: Some(false) };
    check(
        &mut bench,
        "adam",
        update.clone(),
        "append 2=changed:Some(\"new\")/None [room]
         1: ok
         to adam: room new admin head 2 n 0 seen 0
         to alice: room new owner head 2 n 0 seen 0
         to bob: room new member head 2 n 0 seen 0
         to rita: room new reader head 2 n 0 seen 0",
    );
    check(&mut bench, "adam", update.clone(), "2: ok");
    check(&mut bench, "bob", update, "3: error 103");
}

#[test]
fn strangers_learn_nothing_of_private_rooms() {
    for (public, code) in [(false, 102), (true, 123)] {
        let mut bench = Bench::group(public, 1);
        for command in [
            RoomCommand::Subscribe,
            history(None, None, 1),
            mark(1),
            RoomCommand::Members { after: None, limit: 1 },
            RoomCommand::Summary,
            send("x"),
            RoomCommand::Leave,
            RoomCommand::Add { users: vec![person("eve")] },
        ] {
            let told = bench.run("eve", command.clone());
            assert!(told.ends_with(&format!(": error {code}\n")), "{command:?}: {told}");
        }
    }
    let mut bench = Bench::absent("r", Config::default());
    for command in [RoomCommand::Subscribe, send("x"), RoomCommand::Join, RoomCommand::Summary, mark(0)] {
        let told = bench.run("eve", command.clone());
        assert!(told.ends_with(": error 102\n"), "{command:?}: {told}");
    }
    let pull = PullRequest {
        link: LinkId(1),
        ticket: Ticket(9),
        after: Seq(0),
        through: None,
        max_events: 1,
        max_bytes: 1,
    };
    assert_eq!(bench.input(Input::Pull(pull)), "page 9: error 102\n");
}

#[test]
fn a_send_is_checked_against_the_room() {
    let mut bench = Bench::group(false, 1);
    let reply = |seq| {
        RoomCommand::Send(v1::Send {
            client_msg_id: format!("r{seq}"),
            text: Some("x".to_owned()),
            reply_to: Some(seq),
            mentions: vec!["bob".to_owned(), "eve".to_owned()],
            ..v1::Send::default()
        })
    };
    check(&mut bench, "alice", reply(3), "1: error 107");
    check(&mut bench, "alice", reply(0), "2: error 107");
    check(&mut bench, "rita", reply(1), "3: error 103");
    check(&mut bench, "alice", reply(2), "append 3=alice:x\n4: sent 3");
    let state = bench.room.state.as_ref().unwrap();
    let Some(Kind::Message(message)) = &state.tail.newest().next().unwrap().event.kind else { panic!() };
    assert_eq!(message.mentions, ["bob"]);
}

#[test]
fn marks_only_rise_and_a_send_lifts_its_senders() {
    let mut bench = Bench::group(false, 9);
    bench.call(1, "alice", RoomCommand::Subscribe);
    check(
        &mut bench,
        "bob",
        mark(5),
        "2: marks 5/5/4
         to bob: marks 5/5
         link 1: marks bob=5/5",
    );
    check(&mut bench, "bob", mark(3), "3: marks 5/5/4");
    check(&mut bench, "bob", RoomCommand::Mark { delivered: Some(Seq(8)), seen: None }, "4: marks 8/5/4");
    check(&mut bench, "bob", RoomCommand::Mark { delivered: None, seen: None }, "5: marks 8/5/4");
    // At most once a second.
    assert_eq!(bench.tick_at(999), "");
    assert_eq!(bench.tick_at(1_000), "to bob: marks 8/5\nlink 1: marks bob=8/5\nput bob=8/5/4\n");
    check(&mut bench, "bob", send("x"), "append 11=bob:x\nlink 1: 11=bob:x\n6: sent 11");
    check(&mut bench, "bob", RoomCommand::Summary, "7: room room member head 11 n 10 seen 10 last x");
    assert_eq!(bench.tick_at(2_000), "put bob=11/11/10\n");
    bench.run("bob", send("y"));
    assert_eq!(bench.input(Input::Close), "put bob=12/12/11\n");
    assert_eq!(bench.tick_at(9_000), "");
}

#[test]
fn the_count_at_a_mark_below_the_tail_is_read() {
    let mut bench = Bench::group(false, 100);
    check(&mut bench, "bob", mark(20), "read#1 19<..20 1");
    let told = bench.read(1, vec![stored_message(20)], false);
    assert_eq!(told, "1: marks 20/20/19\nto bob: marks 20/20\n");
    // Just below it the tail can tell; 0 is before everything.
    check(&mut bench, "adam", mark(37), "2: marks 37/37/36");
    check(&mut bench, "alice", mark(0), "3: marks 0/0/0");
    check(&mut bench, "alice", mark(9), "read#2 8<..9 1");
    assert_eq!(bench.read_fails(2), "4: error 108\n");
}

#[test]
fn marks_of_large_rooms_are_told_to_their_owner_alone() {
    let config = Config { marks_members: 3, ..Config::default() };
    let mut bench = Bench::loaded(config, RoomKind::Group, false, 9);
    bench.call(1, "alice", RoomCommand::Subscribe);
    check(&mut bench, "bob", mark(5), "2: marks 5/5/4\nto bob: marks 5/5");
    check(
        &mut bench,
        "bob",
        RoomCommand::Members { after: None, limit: 1 },
        "3: members adam:admin@1 of 4 more true",
    );
}

#[test]
fn history_below_the_tail_is_read_from_the_log() {
    let mut bench = Bench::group(false, 100);
    check(&mut bench, "bob", history(None, None, 3), "1: history [99, 100, 101] gaps [] head 101 more true");
    check(&mut bench, "bob", history(Some(30), None, 3), "read#1 26<..<30 3");
    assert_eq!(
        bench.read(1, (27..=29).map(stored_message).collect(), true),
        "2: history [27, 28, 29] gaps [] head 101 more true\n"
    );
    check(&mut bench, "bob", history(None, Some(35), 100), "read#2 35<..101 66");
    // The store ended the page early.
    assert_eq!(
        bench.read(2, (36..=40).map(stored_message).collect(), true),
        "3: history [36, 37, 38, 39, 40] gaps [] head 101 more true\n"
    );
    check(&mut bench, "bob", history(Some(1), None, 3), "4: history [] gaps [] head 101 more false");
    check(&mut bench, "bob", history(Some(1), Some(1), 3), "5: error 107");
    check(&mut bench, "bob", history(Some(9), None, 2), "read#3 6<..<9 2");
    let mut rows: Vec<Row> = (7..=8).map(stored_message).collect();
    rows[1].event = bytes::Bytes::from_static(b"\xff");
    assert_eq!(bench.read(3, rows, false), "damaged after 7\n6: error 100\n");
}

#[test]
fn a_page_fits_into_a_frame() {
    let mut bench =
        Bench::loaded(Config { page_bytes: 2_000, ..Config::default() }, RoomKind::Group, false, 0);
    for id in ["a", "b", "c", "d"] {
        bench.run("alice", said(id, None, &"\"".repeat(100)));
    }
    check(&mut bench, "alice", history(None, None, 9), "5: history [4, 5] gaps [] head 5 more true");
    check(&mut bench, "alice", history(None, Some(1), 9), "6: history [2, 3] gaps [] head 5 more true");
}

#[test]
fn reads_are_bounded() {
    let mut bench = Bench::loaded(Config { reads: 1, ..Config::default() }, RoomKind::Group, false, 100);
    check(&mut bench, "bob", history(Some(9), None, 2), "read#1 6<..<9 2");
    check(&mut bench, "bob", history(Some(9), None, 2), "2: error 112");
    assert!(!bench.room.is_quiet());
}

#[test]
fn lazily_made_rooms_take_in_whoever_comes() {
    let lazy = Config { lazy_public: true, ..Config::default() };
    let mut bench = Bench::absent("r", lazy.clone());
    let told = bench.run("alice", RoomCommand::Subscribe);
    assert_eq!(
        told,
        "append 1=created:group [room] alice:member\n1: admitted member head 1 n 0 out [] end None\nto alice: room  member head 1 n 0 seen 0\n"
    );
    let told = bench.run("bob", send("x"));
    assert!(told.starts_with("append 2=bob:x bob:member\nlink 1: 2=bob:x\n2: sent 2\n"), "{told}");
    let told = bench.run("carl", RoomCommand::Join);
    assert!(told.starts_with("change carl:member\n3: joined member head 2\n"), "{told}");
    check(&mut bench, "carl", RoomCommand::Subscribe, "4: admitted member head 2 n 1 out [] end None");
    check(&mut bench, "dora", RoomCommand::Summary, "5: error 123");

    let mut bench = Bench::absent("r", lazy.clone());
    let told = bench.run("alice", send("x"));
    assert!(told.starts_with("append 1=created:group 2=alice:x [room] alice:member\n1: sent 2\n"), "{told}");
    let mut bench = Bench::absent("dm.x", lazy.clone());
    check(&mut bench, "alice", RoomCommand::Subscribe, "1: error 102");
    check(&mut bench, "alice", send("x"), "2: error 102");
    // A private room of the same process is not lazily made.
    let mut bench = Bench::loaded(lazy, RoomKind::Group, false, 0);
    check(&mut bench, "eve", RoomCommand::Subscribe, "1: error 102");
}

#[test]
fn interest_ends_and_a_quiet_room_may_be_closed() {
    let mut bench = Bench::group(false, 1);
    bench.call(1, "alice", RoomCommand::Subscribe);
    bench.call(2, "bob", RoomCommand::Subscribe);
    bench.call(2, "bob", RoomCommand::Subscribe);
    assert!(!bench.room.is_quiet());
    assert!(bench.room.wants(LinkId(2)));
    bench.input(Input::Uninterest { link: LinkId(2) });
    check(&mut bench, "alice", send("x"), "append 3=alice:x\nlink 1: 3=alice:x\n4: sent 3");
    bench.input(Input::Uninterest { link: LinkId(1) });
    assert!(bench.room.is_quiet());
    let beacon = bench.room.beacon().unwrap();
    assert_eq!((beacon.head, beacon.n, beacon.last_membership), (Seq(3), 2, Seq(0)));
    bench.run("adam", RoomCommand::Remove { user: user("bob") });
    assert_eq!(bench.room.beacon().unwrap().last_membership, Seq(4));
}

#[test]
fn a_room_at_rest_keeps_only_its_newest_events_in_memory() {
    let mut bench = Bench::group(false, 100);
    let tail = |bench: &Bench| bench.room.state.as_ref().unwrap().tail.len();
    assert_eq!(tail(&bench), 64);
    bench.tick_at(20_000);
    let told = bench.run("alice", said("fresh", Some(100), "t"));
    assert!(told.contains("sent 102"), "{told}");
    // Something was written within the time of rest: it is looked at again later.
    bench.tick_at(30_001);
    assert_eq!(tail(&bench), 65);
    let deadline = bench.room.next_deadline().unwrap();
    bench.tick_at(deadline);
    assert_eq!((tail(&bench), bench.room.next_deadline()), (8, None));
    assert_eq!(bench.room.state.as_ref().unwrap().tail.first(), Some(Seq(95)));
}

#[test]
fn tick_at_the_deadline_moves_the_deadline() {
    // A room with everything under way that has a deadline.
    let mut bench = Bench::group(false, 100);
    bench.run("bob", mark(90));
    bench.run("bob", mark(91));
    bench.call(1, "alice", said("m10", Some(5), "t10"));
    bench.flush();
    bench.call(1, "alice", said("m11", Some(5), "t11"));
    bench.call(1, "alice", said("x", Some(90), "x"));
    bench.flush();
    bench.stored(Outcome::Unknown);
    bench.call(1, "alice", said("y", Some(90), "y"));
    let mut deadlines = Vec::new();
    while let Some(deadline) = bench.room.next_deadline() {
        assert!(deadlines.last().is_none_or(|last| *last < deadline), "{deadlines:?}, then {deadline}");
        deadlines.push(deadline);
        bench.tick_at(deadline);
        if deadlines.len() > 50 {
            break;
        }
        if bench.write.is_some() {
            bench.stored(Outcome::Unknown);
        }
    }
    // Marks, retries of the append, and at 10 s everything that waits.
    assert!(deadlines.starts_with(&[100, 300, 700, 1_000]), "{deadlines:?}");
    assert!(deadlines.contains(&10_000));
}
