//! Workers on the in-memory store, spoken to as a gateway does.
#![allow(clippy::unwrap_used, reason = "a test file; its helpers are not test functions")]

use std::sync::Arc;
use std::time::Duration;

use banyan_proto::codes::Code;
use banyan_proto::id::{Epoch, Incarnation, Origin, RoomId, Seq, UserId};
use banyan_proto::link::{
    Answer, FromShard, LinkId, Person, RoomCall, RoomCommand, Ticket, ToShard, ToShardBatch,
};
use banyan_proto::v1;
use banyan_proto::v1::server_frame::Body;
use banyan_shard::{End, Handle, Options, build};
use banyan_storage::log_store::Span;
use banyan_storage::memory::Fault;
use banyan_storage::{Embedded, LogStore, Memory, NotDone, embedded};
use banyan_storage::{Range, ReadLimit, Row};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

struct World {
    handle: Handle,
    links: Vec<mpsc::Receiver<Vec<FromShard>>>,
    waiting: Vec<Vec<FromShard>>,
    workers: Vec<JoinHandle<End>>,
    drain: CancellationToken,
    store: Memory,
    next: u64,
}

fn room(id: &str) -> RoomId {
    RoomId::parse(id).unwrap()
}

fn person(user: &str) -> Person {
    Person { user: UserId::parse(user).unwrap(), name: user.to_uppercase().into() }
}

fn text(id: &str, text: &str) -> RoomCommand {
    RoomCommand::Send(v1::Send {
        client_msg_id: id.to_owned(),
        text: Some(text.to_owned()),
        ..v1::Send::default()
    })
}

fn create(public: bool, members: &[&str]) -> RoomCommand {
    let members = members.iter().map(|user| person(user)).collect();
    RoomCommand::Create { kind: v1::RoomKind::Group, name: "general".to_owned(), public, members }
}

impl World {
    fn new(options: Options, links: usize, link_batches: usize) -> Self {
        let store = Memory::new();
        Self::on(Arc::new(store.clone()), store, options, links, link_batches)
    }

    /// With a memory store that is not used: for tests of another one.
    fn on(
        log: Arc<dyn LogStore>,
        store: Memory,
        options: Options,
        links: usize,
        link_batches: usize,
    ) -> Self {
        let (senders, links): (Vec<_>, Vec<_>) = (0..links).map(|_| mpsc::channel(link_batches)).unzip();
        let (handle, workers) = build(options, log, senders);
        let drain = CancellationToken::new();
        let workers = workers.into_iter().map(|worker| tokio::spawn(worker.run(drain.clone()))).collect();
        let waiting = links.iter().map(|_| Vec::new()).collect();
        Self { handle, links, waiting, workers, drain, store, next: 0 }
    }

    fn post(&self, worker: usize, link: u16, message: ToShard) {
        self.handle
            .try_send(worker, ToShardBatch { link: LinkId(link.into()), messages: vec![message] })
            .unwrap();
    }

    fn call(&mut self, link: u16, user: &str, room_id: &str, command: RoomCommand) -> Ticket {
        self.next += 1;
        let ticket = Ticket(self.next);
        let call =
            Box::new(RoomCall { ticket, caller: person(user), origin: Origin(u64::from(link)), command });
        self.post(self.handle.worker_of(room_id), link, ToShard::Room { room: room(room_id), call });
        ticket
    }

    /// The next message on a link.
    async fn next(&mut self, link: u16) -> FromShard {
        let at = usize::from(link);
        while self.waiting[at].is_empty() {
            let batch = timeout(Duration::from_secs(60), self.links[at].recv()).await.unwrap().unwrap();
            self.waiting[at].extend(batch);
        }
        self.waiting[at].remove(0)
    }

    async fn answer(&mut self, link: u16, ticket: Ticket) -> Answer {
        loop {
            match self.next(link).await {
                FromShard::Answer { ticket: got, answer, .. } if got == ticket => return answer,
                _ => {}
            }
        }
    }

    async fn ask(&mut self, link: u16, user: &str, room_id: &str, command: RoomCommand) -> Answer {
        let ticket = self.call(link, user, room_id, command);
        self.answer(link, ticket).await
    }
}

/// The log of a room, whatever segments it lies in.
async fn stored(store: &dyn LogStore, id: &str) -> Vec<Row> {
    let records = store.segments(room(id)).await.unwrap();
    let next = records.iter().skip(1).map(|record| Seq(record.first_seq.0 - 1)).chain([Seq(u64::MAX)]);
    let spans = records
        .iter()
        .zip(next)
        .map(|(record, last)| Span {
            segment: record.id,
            bucket: record.bucket,
            first: record.first_seq,
            last,
        })
        .filter(|span| span.first <= span.last)
        .collect();
    let limit = ReadLimit { events: 1_000, bytes: 1 << 20 };
    store.rows(room(id), spans, Range::after(Seq(0)), limit).await.unwrap().rows
}

#[track_caller]
fn sent(answer: &Answer) -> (u64, bool) {
    match answer {
        Answer::Sent { seq, duplicate, .. } => (seq.0, *duplicate),
        other => panic!("not sent: {other:?}"),
    }
}

#[track_caller]
fn refused(answer: &Answer) -> Code {
    match answer {
        Answer::Error(error) => Code::try_from(error.code).unwrap(),
        other => panic!("not refused: {other:?}"),
    }
}

fn texts(message: &FromShard) -> Vec<(u64, String)> {
    let FromShard::Events { events, .. } = message else { panic!("no events: {message:?}") };
    let text = |event: &v1::Event| match &event.kind {
        Some(v1::event::Kind::Message(message)) => message.text.clone(),
        other => format!("{other:?}"),
    };
    events.iter().map(|event| (event.event.seq, text(&event.event))).collect()
}

#[tokio::test(start_paused = true)]
async fn a_send_reaches_both_links_in_order_and_its_answer_comes_last() {
    let mut world = World::new(Options::default(), 2, 64);
    let made = world.ask(0, "alice", "r", create(true, &["bob"])).await;
    let Answer::Body(body) = made else { panic!("{made:?}") };
    let Body::CreateRoom(made) = *body else { panic!("{body:?}") };
    assert_eq!((made.created, made.head, made.n), (true, 2, 0));

    for (link, user) in [(0, "alice"), (1, "bob")] {
        let Answer::Admitted(admission) = world.ask(link, user, "r", RoomCommand::Subscribe).await else {
            panic!("not admitted");
        };
        assert_eq!(admission.head, Seq(2));
    }
    let first = world.call(0, "alice", "r", text("a", "one"));
    let second = world.call(1, "bob", "r", text("b", "two"));
    let mut got = Vec::new();
    while got.len() < 2 {
        got.extend(texts(&world.next(0).await));
        if got.len() == 1 {
            // In a batch of its own: its answer comes before the next event.
            let FromShard::Answer { ticket, answer, .. } = world.next(0).await else { panic!("no answer") };
            assert_eq!((ticket, sent(&answer)), (first, (3, false)));
        }
    }
    assert_eq!(got, [(3, "one".to_owned()), (4, "two".to_owned())]);
    assert_eq!(sent(&world.answer(1, second).await), (4, false));
    assert_eq!(stored(&world.store, "r").await.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn an_append_of_unknown_outcome_is_settled_by_the_same_rows() {
    let mut world = World::new(Options::default(), 1, 64);
    world.ask(0, "alice", "r", create(true, &[])).await;
    for fault in [Fault::UnknownApplied, Fault::UnknownLost, Fault::UnknownLate] {
        world.store.faults().fail_next(fault);
        let seq = stored(&world.store, "r").await.len() as u64 + 1;
        let id = format!("{fault:?}");
        assert_eq!(sent(&world.ask(0, "alice", "r", text(&id, "x")).await), (seq, false));
        assert_eq!(sent(&world.ask(0, "alice", "r", text(&id, "x")).await), (seq, true));
        assert_eq!(refused(&world.ask(0, "alice", "r", text(&id, "y")).await), Code::ClientMsgIdReused);
    }
    world.store.faults().fail_next(Fault::NotDone(NotDone::Full));
    assert_eq!(refused(&world.ask(0, "alice", "r", text("full", "x")).await), Code::Unavailable);
    assert_eq!(sent(&world.ask(0, "alice", "r", text("full", "x")).await), (5, false));
}

#[tokio::test(start_paused = true)]
async fn a_full_link_loses_events_never_answers_and_is_repaired_by_a_beacon() {
    let mut world = World::new(Options::default(), 2, 1);
    world.ask(0, "alice", "r", create(true, &["bob"])).await;
    world.ask(1, "bob", "r", RoomCommand::Subscribe).await;
    // Link 1 takes one batch more and then nothing; its own question is answered all the same.
    for number in 0..20 {
        world.ask(0, "alice", "r", text(&number.to_string(), "x")).await;
    }
    let asked = world.call(1, "bob", "r", RoomCommand::Summary);
    tokio::time::sleep(Duration::from_millis(50)).await;

    let (mut seen, mut beacon, mut answered) = (2, None, false);
    while beacon != Some(22) || !answered {
        match world.next(1).await {
            FromShard::Events { events, .. } => {
                for event in &*events {
                    if event.event.seq == seen + 1 {
                        seen += 1;
                    }
                }
            }
            FromShard::Head { head, n, .. } => {
                assert_eq!(n, 20);
                beacon = Some(head.0);
            }
            FromShard::Answer { ticket, .. } => answered |= ticket == asked,
            other => panic!("{other:?}"),
        }
    }
    assert!(seen < 22, "nothing was dropped: the test shows nothing");
    let pull = ToShard::Pull {
        room: room("r"),
        ticket: Ticket(900),
        after: Seq(seen),
        through: None,
        max_events: 100,
        max_bytes: 1 << 20,
    };
    world.post(world.handle.worker_of("r"), 1, pull);
    loop {
        if let FromShard::Page { ticket: Ticket(900), page, .. } = world.next(1).await {
            let page = page.unwrap();
            let seqs: Vec<u64> = page.events.iter().map(|event| event.event.seq).collect();
            assert_eq!((seqs, page.more), ((seen + 1..=22).collect(), false));
            break;
        }
    }
    // After that everything flows again.
    world.ask(0, "alice", "r", text("last", "x")).await;
    assert!(matches!(world.next(1).await, FromShard::Events { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_drain_completes_what_is_in_flight_writes_marks_and_ends() {
    let mut world = World::new(Options { workers: 2, ..Options::default() }, 1, 64);
    world.ask(0, "alice", "r", create(true, &[])).await;
    world.store.faults().hold();
    let slow = world.call(0, "alice", "r", text("slow", "x"));
    tokio::time::sleep(Duration::from_millis(10)).await;
    world.drain.cancel();
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(refused(&world.ask(0, "alice", "r", text("late", "x")).await), Code::Unavailable);
    world.store.faults().release();
    assert_eq!(sent(&world.answer(0, slow).await), (2, false));
    for worker in std::mem::take(&mut world.workers) {
        assert_eq!(timeout(Duration::from_secs(1), worker).await.unwrap().unwrap(), End::Drained);
    }
    let (members, _) = world.store.members(room("r"), None, 10).await.unwrap();
    assert_eq!((stored(&world.store, "r").await.len(), members[0].1.seen), (2, Seq(2)));
    // Closed, and its end written: the next owner may read it as it stands.
    assert_eq!(world.store.said(room("r")).await.unwrap().unwrap().head, Seq(2));
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_at_its_deadline_when_the_store_never_answers() {
    let mut world = World::new(Options::default(), 1, 64);
    world.ask(0, "alice", "r", create(true, &[])).await;
    world.store.faults().hold();
    world.call(0, "alice", "r", text("slow", "x"));
    tokio::time::sleep(Duration::from_millis(10)).await;
    world.drain.cancel();
    for worker in std::mem::take(&mut world.workers) {
        timeout(Duration::from_secs(11), worker).await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_users_channel_is_told_of_rooms_on_whichever_worker_they_are() {
    let mut world = World::new(Options { workers: 3, ..Options::default() }, 2, 64);
    let bob = UserId::parse("bob").unwrap();
    world.post(world.handle.worker_of_user("bob"), 1, ToShard::UserOnline { user: bob.clone() });
    for id in ["r1", "r2", "r3", "r4"] {
        world.ask(0, "alice", id, create(false, &["bob"])).await;
        let FromShard::User { user, push } = world.next(1).await else { panic!("no push") };
        let Body::Room(told) = &*push else { panic!("{push:?}") };
        assert_eq!((user, told.room.as_str(), told.role()), (bob.clone(), id, v1::Role::Member));
    }
    world.ask(0, "alice", "r3", RoomCommand::Remove { user: bob.clone() }).await;
    let FromShard::User { push, .. } = world.next(1).await else { panic!("no push") };
    assert_eq!(*push, Body::RoomGone(v1::RoomGone { room: "r3".to_owned(), code: 123 }));

    let list =
        ToShard::UserRooms { ticket: Ticket(77), user: bob.clone(), after: Some(room("r1")), limit: 1 };
    world.post(world.handle.worker_of_user("bob"), 1, list);
    assert_eq!(world.answer(1, Ticket(77)).await, Answer::UserRooms { rooms: vec![room("r2")], more: true });

    world.post(world.handle.worker_of_user("bob"), 1, ToShard::UserOffline { user: bob.clone() });
    world.ask(0, "alice", "r3", RoomCommand::Add { users: vec![person("bob")] }).await;
    world.call(1, "bob", "r3", RoomCommand::Summary);
    assert!(matches!(world.next(1).await, FromShard::Answer { .. }), "offline users are told nothing");
}

#[tokio::test(start_paused = true)]
async fn a_room_that_was_closed_still_knows_its_sends() {
    let mut world = World::new(Options::default(), 1, 1_024);
    world.ask(0, "alice", "r", create(true, &[])).await;
    for number in 0..200 {
        world.ask(0, "alice", "r", text(&number.to_string(), "x")).await;
    }
    // Closed when idle: the next command loads it (a read that fails shows that it is not in memory).
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    world.store.faults().fail_reads(Some(banyan_storage::Error::Closed));
    assert_eq!(refused(&world.ask(0, "alice", "r", RoomCommand::Summary).await), Code::Unavailable);
    world.store.faults().fail_reads(None);
    // Far below what a load brings: found in the log.
    assert_eq!(sent(&world.ask(0, "alice", "r", text("3", "x")).await), (5, true));
    assert_eq!(sent(&world.ask(0, "alice", "r", text("200", "x")).await), (202, false));
}

#[tokio::test(start_paused = true)]
async fn above_the_bound_rooms_nobody_listens_to_are_closed_and_others_are_not() {
    let mut world = World::new(Options { open_rooms: 2, ..Options::default() }, 1, 64);
    for id in ["r1", "r2", "r3"] {
        assert!(matches!(world.ask(0, "alice", id, create(true, &[])).await, Answer::Body(_)));
    }
    for id in ["r1", "r2"] {
        assert!(matches!(world.ask(0, "alice", id, RoomCommand::Subscribe).await, Answer::Admitted(_)));
    }
    assert_eq!(refused(&world.ask(0, "alice", "r3", RoomCommand::Summary).await), Code::Overloaded);
    world.post(0, 0, ToShard::Uninterest { room: room("r1") });
    assert!(matches!(world.ask(0, "alice", "r3", RoomCommand::Summary).await, Answer::Summary(_)));
}

#[tokio::test(start_paused = true)]
async fn a_full_inbox_gives_the_batch_back() {
    let (handle, workers) =
        build(Options { inbox_batches: 1, ..Options::default() }, Arc::new(Memory::new()), vec![]);
    let batch = || ToShardBatch { link: LinkId(0), messages: Vec::new() };
    assert!(handle.try_send(0, batch()).is_ok());
    assert!(handle.try_send(0, batch()).is_err());
    assert!(handle.try_send(1, batch()).is_err(), "there is no such worker");
    drop(workers);
    assert!(handle.try_send(0, batch()).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_link_that_is_gone_holds_no_room_open() {
    let mut world = World::new(Options { open_rooms: 1, ..Options::default() }, 2, 64);
    let bob = UserId::parse("bob").unwrap();
    world.post(0, 1, ToShard::UserOnline { user: bob });
    world.ask(0, "alice", "r1", create(true, &["bob"])).await;
    world.ask(1, "bob", "r1", RoomCommand::Subscribe).await;
    assert_eq!(refused(&world.ask(0, "alice", "r2", RoomCommand::Summary).await), Code::Overloaded);
    world.links.pop();
    // Found out when there is something to say on it.
    world.ask(0, "alice", "r1", text("a", "x")).await;
    assert_eq!(refused(&world.ask(0, "alice", "r2", RoomCommand::Summary).await), Code::UnknownRoom);
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_node_was_fenced_says_nothing_more_and_ends() {
    for later in [false, true] {
        let mut world = World::new(Options::default(), 1, 64);
        world.store.faults().answer_fence_reads_later(later);
        world.ask(0, "alice", "r", create(true, &[])).await;
        world.store.write_fence(Options::default().incarnation).await.unwrap();
        world.call(0, "alice", "r", text("a", "x"));
        let worker = world.workers.pop().unwrap();
        assert_eq!(timeout(Duration::from_secs(1), worker).await.unwrap().unwrap(), End::Fenced);
        assert!(world.links[0].try_recv().is_err(), "stored, and not said");
        assert_eq!(stored(&world.store, "r").await.len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_cannot_read_its_fence_waits_and_then_ends() {
    let mut world = World::new(Options::default(), 1, 64);
    world.ask(0, "alice", "r", create(true, &[])).await;
    let faults = world.store.faults();
    faults.fail_fence_reads(Some(banyan_storage::Error::Closed));
    let send = world.call(0, "alice", "r", text("a", "x"));
    tokio::time::sleep(Duration::from_millis(1_900)).await;
    faults.fail_fence_reads(None);
    assert_eq!(sent(&world.answer(0, send).await), (2, false));

    faults.fail_fence_reads(Some(banyan_storage::Error::Closed));
    world.call(0, "alice", "r", text("b", "x"));
    let worker = world.workers.pop().unwrap();
    assert_eq!(timeout(Duration::from_secs(3), worker).await.unwrap().unwrap(), End::Stuck);
    assert!(world.links[0].try_recv().is_err());
}

#[tokio::test]
async fn what_was_acked_is_there_after_a_restart_of_the_embedded_store() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..3_u64 {
        let mut at = embedded::Options::new(directory.path().join("log"));
        // The test is not about the machine's free space.
        at.min_free_bytes = 0;
        let store = Arc::new(Embedded::open(at).unwrap());
        let log: Arc<dyn LogStore> = Arc::<Embedded>::clone(&store);
        // Another run: no name of an earlier one is used again.
        let options = Options {
            workers: 2,
            incarnation: Incarnation(1 + u128::from(round)),
            all_slots: Some(Epoch(1 + round)),
            ..Options::default()
        };
        let mut world = World::on(log, Memory::new(), options, 1, 64);
        for room_id in ["r1", "r2"] {
            let Answer::Body(made) = world.ask(0, "alice", room_id, create(true, &["bob"])).await else {
                panic!("not made");
            };
            let Body::CreateRoom(made) = *made else { panic!("{made:?}") };
            assert_eq!((made.created, made.head), (round == 0, 2 + 2 * round));
            for (number, user) in ["alice", "bob"].into_iter().enumerate() {
                let (seq, id) = (made.head + 1 + number as u64, format!("{round}"));
                assert_eq!(sent(&world.ask(0, user, room_id, text(&id, "x")).await), (seq, false));
                assert!(sent(&world.ask(0, user, room_id, text("0", "x")).await).1);
            }
        }
        world.drain.cancel();
        for worker in std::mem::take(&mut world.workers) {
            timeout(Duration::from_secs(30), worker).await.unwrap().unwrap();
        }
        store.close();
    }
}
