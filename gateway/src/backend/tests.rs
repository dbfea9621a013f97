//! The backend against shards that answer by a script.

use std::time::Duration;

use std::sync::atomic::AtomicU32;

use banyan_proto::id::{Epoch, SlotId};
use banyan_proto::link::RoomCommand;
use banyan_storage::Memory;

use super::*;
use crate::accounts::keys::{Algorithm, Keys};
use crate::accounts::password;
use crate::accounts::{Options as AccountOptions, Service};

/// Answers every question at once, or takes no more.
pub(crate) struct Script {
    answers: mpsc::Sender<Vec<FromShard>>,
    rule: Box<dyn Fn(&ToShard) -> Verdict + Send + Sync>,
    pub(crate) seen: Arc<Mutex<Vec<ToShard>>>,
}

pub(crate) enum Verdict {
    Answer(Answer),
    Silent,
    Full,
    NoOwner,
    Moved,
}

/// Over which everything is asked.
const LINK: u16 = 3;

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Script")
    }
}

impl Script {
    #[expect(clippy::needless_pass_by_value, reason = "as the trait that it stands for")]
    fn take(&self, batch: ToShardBatch) -> Result<u16, NotSent> {
        assert_eq!(batch.link, LinkId(9));
        let [message] = &batch.messages[..] else { panic!("one message a batch") };
        let ticket = match message {
            ToShard::Room { call, .. } => call.ticket,
            ToShard::UserRooms { ticket, .. } => *ticket,
            other => panic!("not asked by a backend: {other:?}"),
        };
        let verdict = (self.rule)(message);
        match verdict {
            Verdict::Full => return Err(NotSent::Full),
            Verdict::NoOwner => return Err(NotSent::NoOwner),
            Verdict::Answer(_) | Verdict::Silent | Verdict::Moved => {}
        }
        self.seen.lock().unwrap().push(message.clone());
        let epoch = Epoch(1);
        let said = match verdict {
            Verdict::Answer(answer) => FromShard::Answer { ticket, epoch, answer },
            Verdict::Moved => FromShard::Moved { slot: SlotId(1), ticket: Some(ticket), epoch, owner: None },
            Verdict::Silent | Verdict::Full | Verdict::NoOwner => return Ok(LINK),
        };
        self.answers.try_send(vec![said]).unwrap();
        Ok(LINK)
    }
}

impl Shards for Script {
    fn to_room(&self, room: &RoomId, batch: ToShardBatch) -> Result<u16, NotSent> {
        assert!(matches!(&batch.messages[..], [ToShard::Room { room: named, .. }] if named == room));
        self.take(batch)
    }

    fn to_user(&self, user: &UserId, batch: ToShardBatch) -> Result<u16, NotSent> {
        assert!(matches!(&batch.messages[..], [ToShard::UserRooms { user: named, .. }] if named == user));
        self.take(batch)
    }
}

pub(crate) struct World {
    pub(crate) backend: Backend,
    pub(crate) seen: Arc<Mutex<Vec<ToShard>>>,
    pub(crate) stop: CancellationToken,
}

pub(crate) fn world(in_flight: usize, rule: impl Fn(&ToShard) -> Verdict + Send + Sync + 'static) -> World {
    let (answers, inbox) = mpsc::channel(256);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let script = Script { answers, rule: Box::new(rule), seen: Arc::clone(&seen) };
    let keys = Keys::generate(Algorithm::HS256, UnixMs(1)).unwrap();
    let hashing = password::Cost { memory_kib: 64, passes: 1, concurrency: 1, queue: 8 };
    let options = AccountOptions { hashing, ..AccountOptions::default() };
    let accounts = Service::new(options, Arc::new(Memory::new()), keys, None).unwrap();
    let options = Options { in_flight, ..Options::new(LinkId(9)) };
    let backend = Backend::new(options, Arc::new(script), accounts);
    let stop = CancellationToken::new();
    tokio::spawn(backend.clone().run(inbox, stop.clone()));
    World { backend, seen, stop }
}

pub(crate) fn summary(room: &RoomId) -> v1::Room {
    v1::Room { room: room.to_string(), kind: v1::RoomKind::Group as i32, ..v1::Room::default() }
}

fn me() -> Person {
    Person { user: UserId::parse("me").unwrap(), name: "Me".into() }
}

fn room(id: &str) -> RoomId {
    RoomId::parse(id).unwrap()
}

/// A user with rooms a to e; `gone` has been left meanwhile.
fn rooms_of_five(gone: &'static [&'static str]) -> impl Fn(&ToShard) -> Verdict {
    move |message| match message {
        ToShard::UserRooms { after, limit, .. } => {
            let all = ["a", "b", "c", "d", "e"].map(room);
            let rest = all.iter().filter(|id| after.as_ref().is_none_or(|after| *id > after));
            let rooms: Vec<_> = rest.clone().take(*limit as usize).cloned().collect();
            let more = rest.count() > rooms.len();
            Verdict::Answer(Answer::UserRooms { rooms, more })
        }
        ToShard::Room { room, call } => {
            assert_eq!(call.command, RoomCommand::Summary);
            if gone.contains(&room.as_str()) {
                let code = if room.as_str() == "a" { Code::UnknownRoom } else { Code::NotAMember };
                return Verdict::Answer(Answer::Error(Box::new(code.error("gone"))));
            }
            Verdict::Answer(Answer::Summary(Box::new(summary(room))))
        }
        _ => Verdict::Full,
    }
}

async fn names(world: &World, after: Option<&str>, limit: u32) -> (Vec<String>, bool) {
    let reply = world.backend.rooms(&me(), after.map(room), limit).await.unwrap();
    (reply.rooms.into_iter().map(|room| room.room).collect(), reply.more)
}

#[tokio::test]
async fn rooms_are_gathered_in_order() {
    let world = world(100, rooms_of_five(&["b", "a"]));
    assert_eq!(names(&world, None, 100).await, (vec!["c".into(), "d".into(), "e".into()], false));
    // A page of which everything is gone is followed by the next.
    assert_eq!(names(&world, None, 2).await, (vec!["c".into(), "d".into()], true));
    assert_eq!(names(&world, Some("d"), 2).await, (vec!["e".into()], false));
    assert_eq!(names(&world, Some("e"), 2).await, (vec![], false));
}

#[tokio::test]
async fn an_owner_that_fails_fails_the_list() {
    let world = world(100, |message| match message {
        ToShard::Room { room, .. } if room.as_str() == "d" => {
            Verdict::Answer(Answer::Error(Box::new(Code::Unavailable.error("away"))))
        }
        other => rooms_of_five(&[])(other),
    });
    assert_eq!(world.backend.rooms(&me(), None, 100).await.unwrap_err().code, 108);
    assert_eq!(world.backend.open().as_ref().unwrap().len(), 0, "nothing stays open");
}

#[tokio::test]
async fn an_answer_to_another_question_is_100() {
    let world = world(100, |_| Verdict::Answer(Answer::UserRooms { rooms: Vec::new(), more: false }));
    let error = world.backend.call(&me(), Origin(0), &room("r"), RoomCommand::Join).await.unwrap_err();
    assert_eq!(error.code, 100);
}

#[tokio::test(start_paused = true)]
async fn silence_is_108_at_the_deadline() {
    let world = world(100, |_| Verdict::Silent);
    let begun = Instant::now();
    let error = world.backend.call(&me(), Origin(0), &room("r"), RoomCommand::Join).await.unwrap_err();
    assert_eq!((error.code, begun.elapsed()), (108, Duration::from_secs(10)));
    assert_eq!(world.backend.open().as_ref().unwrap().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_question_that_was_not_taken_is_asked_again() {
    let left = AtomicU32::new(3);
    let world = world(100, move |message| match left.load(Ordering::Relaxed) {
        1.. => {
            left.fetch_sub(1, Ordering::Relaxed);
            Verdict::Moved
        }
        0 => match message {
            ToShard::Room { room, .. } => Verdict::Answer(Answer::Summary(Box::new(summary(room)))),
            _ => Verdict::Answer(Answer::UserRooms { rooms: Vec::new(), more: false }),
        },
    });
    let begun = Instant::now();
    let reply = world.backend.call(&me(), Origin(0), &room("r"), RoomCommand::Summary).await;
    assert_eq!(reply, Ok(Body::Room(summary(&room("r")))));
    assert_eq!((world.seen.lock().unwrap().len(), begun.elapsed()), (4, Duration::from_millis(30)));
    assert_eq!(world.backend.open().as_ref().unwrap().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_asks_waits_for_an_owner() {
    let tries = AtomicU32::new(0);
    let world = world(100, move |message| {
        if tries.fetch_add(1, Ordering::Relaxed) < 3 {
            return Verdict::NoOwner;
        }
        match message {
            ToShard::Room { room, .. } => Verdict::Answer(Answer::Summary(Box::new(summary(room)))),
            other => panic!("{other:?}"),
        }
    });
    let body = world.backend.call(&me(), Origin(0), &room("a"), RoomCommand::Summary).await.unwrap();
    assert!(matches!(body, Body::Room(_)));
    assert_eq!(world.seen.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn with_its_owner_a_question_is_lost_or_asked_again() {
    let tries = AtomicU32::new(0);
    let world = world(100, move |message| match message {
        ToShard::Room { room, call } if call.command == RoomCommand::Summary => {
            match tries.fetch_add(1, Ordering::Relaxed) {
                0 => Verdict::Silent,
                _ => Verdict::Answer(Answer::Summary(Box::new(summary(room)))),
            }
        }
        _ => Verdict::Silent,
    });
    let ask = |command| {
        let backend = world.backend.clone();
        tokio::spawn(async move { backend.call(&me(), Origin(0), &room("a"), command).await })
    };
    let (summary, join) = (ask(RoomCommand::Summary), ask(RoomCommand::Join));
    while world.seen.lock().unwrap().len() < 2 {
        tokio::task::yield_now().await;
    }
    let begun = Instant::now();
    world.backend.link_lost(LINK + 1);
    world.backend.link_lost(LINK);
    assert!(matches!(summary.await.unwrap(), Ok(Body::Room(_))));
    // It may have joined: nobody may say that it has not, and nobody may try again unasked.
    assert_eq!(join.await.unwrap().unwrap_err().code, 108);
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(world.seen.lock().unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn nobody_who_takes_it_is_108_at_the_deadline() {
    let world = world(100, |_| Verdict::Moved);
    let begun = Instant::now();
    let error = world.backend.call(&me(), Origin(0), &room("r"), RoomCommand::Join).await.unwrap_err();
    assert_eq!((error.code, begun.elapsed()), (108, Duration::from_secs(10)));
}

#[tokio::test(start_paused = true)]
async fn beyond_the_bound_and_a_full_owner_are_112() {
    let world = world(2, |message| match message {
        ToShard::Room { room, .. } if room.as_str() == "full" => Verdict::Full,
        _ => Verdict::Silent,
    });
    let full = world.backend.call(&me(), Origin(0), &room("full"), RoomCommand::Join).await.unwrap_err();
    assert_eq!((full.code, full.retry_after_ms), (112, Some(RETRY_MS)));
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let backend = world.backend.clone();
            tokio::spawn(async move { backend.call(&me(), Origin(0), &room("r"), RoomCommand::Join).await })
        })
        .collect();
    while world.seen.lock().unwrap().len() < 2 {
        tokio::task::yield_now().await;
    }
    let third = world.backend.call(&me(), Origin(0), &room("r"), RoomCommand::Join).await.unwrap_err();
    assert_eq!(third.code, 112);
    // Who gives up makes room.
    waiting[0].abort();
    while world.backend.open().as_ref().unwrap().len() > 1 {
        tokio::task::yield_now().await;
    }
    // And with the link everything ends.
    world.stop.cancel();
    let [_, second] = <[_; 2]>::try_from(waiting).unwrap();
    assert_eq!(second.await.unwrap().unwrap_err().code, 108);
    assert_eq!(world.backend.rooms(&me(), None, 1).await.unwrap_err().code, 108);
}

#[tokio::test]
async fn new_rooms_get_their_id_and_known_members() {
    let world = world(100, |_| {
        Verdict::Answer(Answer::Body(Box::new(Body::CreateRoom(v1::CreateRoomReply::default()))))
    });
    let accounts = world.backend.accounts();
    let local = std::net::IpAddr::from([127, 0, 0, 1]);
    let ann = accounts.signup("ann", "correct horse", None, local).await.unwrap();
    let create = |room, kind, members: &[&UserId]| {
        let members = members.iter().map(|user| (*user).clone()).collect();
        let create = Create { room, kind, name: String::new(), public: false, members };
        let backend = world.backend.clone();
        async move { backend.run_command(&me(), Origin(0), Checked::Create(create)).await }
    };
    let nobody = UserId::parse("nobody").unwrap();
    create(NewRoom::Fresh, v1::RoomKind::Group, &[&ann.user]).await.unwrap();
    create(NewRoom::Direct, v1::RoomKind::Direct, &[&ann.user]).await.unwrap();
    create(NewRoom::Own(room("own")), v1::RoomKind::Group, &[]).await.unwrap();
    let unknown = create(NewRoom::Fresh, v1::RoomKind::Group, &[&ann.user, &nobody]).await.unwrap_err();
    assert_eq!(unknown.code, 122);
    let add = Checked::Add { room: room("own"), users: vec![nobody] };
    assert_eq!(world.backend.run_command(&me(), Origin(0), add).await.unwrap_err().code, 122);

    let seen = world.seen.lock().unwrap();
    let rooms: Vec<_> = seen
        .iter()
        .map(|message| match message {
            ToShard::Room { room, call } => (room.to_string(), &call.command),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(rooms.len(), 3, "who does not exist stops it before any owner is asked");
    assert_eq!(uuid::Uuid::parse_str(&rooms[0].0).unwrap().get_version_num(), 7);
    assert_eq!(rooms[1].0, direct::room_id(&me().user, &ann.user).to_string());
    assert_eq!(rooms[2].0, "own");
    let person = Person { user: ann.user.clone(), name: "ann".into() };
    for (_, command) in &rooms[..2] {
        assert!(matches!(command, RoomCommand::Create { members, .. } if members[..] == [person.clone()]));
    }
}
