//! One of each message between nodes, with every field set in some and unset in another.

use std::sync::Arc;

use banyan_proto::codes::Code;
use banyan_proto::event::LoggedEvent;
use banyan_proto::id::{Epoch, Incarnation, LogId, Origin, RoomId, Seq, SlotId, UnixMs, UserId};
use banyan_proto::link::{
    Admission, Answer, FromShard, Page, Person, RoomCall, RoomCommand, Ticket, ToShard,
};
use banyan_proto::v1;
use banyan_proto::v1::server_frame::Body;

pub(crate) fn room() -> RoomId {
    RoomId::parse("eu.general:1").unwrap()
}

pub(crate) fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

fn person(name: &str) -> Person {
    Person { user: user(name), name: name.to_uppercase().into() }
}

pub(crate) fn event(seq: u64) -> Arc<LoggedEvent> {
    let message = v1::Message {
        text: format!("héllo {seq}"),
        content_type: "text/plain".into(),
        reply_to: Some(1),
        mentions: vec!["bob".into()],
        data: Some(b"{\"a\":1}".as_slice().into()),
    };
    let event = v1::Event {
        room: room().as_str().into(),
        seq,
        at: 1_700_000_000_000,
        n: seq,
        sender: "alice".into(),
        sender_name: "ALICE".into(),
        client_msg_id: Some(format!("m{seq}")),
        kind: Some(v1::event::Kind::Message(message)),
    };
    Arc::new(LoggedEvent::new(event, Origin(0xfeed_0000 + seq)))
}

fn of_room() -> v1::Room {
    v1::Room {
        room: room().as_str().into(),
        kind: v1::RoomKind::Group.into(),
        name: "General".into(),
        public: true,
        role: v1::Role::Admin.into(),
        log: "00000000000000ab".into(),
        head: 9,
        n: 7,
        ..v1::Room::default()
    }
}

pub(crate) fn error() -> v1::Error {
    Code::Overloaded.error_retry_after("too much", 250)
}

pub(crate) fn commands() -> Vec<(&'static str, RoomCommand)> {
    let name = |command: &RoomCommand| match command {
        RoomCommand::Create { .. } => "create",
        RoomCommand::Update { .. } => "update",
        RoomCommand::Join => "join",
        RoomCommand::Leave => "leave",
        RoomCommand::Add { .. } => "add",
        RoomCommand::Remove { .. } => "remove",
        RoomCommand::SetRole { .. } => "set_role",
        RoomCommand::Send(_) => "send",
        RoomCommand::Mark { .. } => "mark",
        RoomCommand::History { .. } => "history",
        RoomCommand::Members { .. } => "members",
        RoomCommand::Summary => "summary",
        RoomCommand::Subscribe => "subscribe",
    };
    let send = v1::Send {
        room: room().as_str().into(),
        client_msg_id: "m1".into(),
        since: Some(4),
        text: Some("hi".into()),
        content_type: Some("text/markdown".into()),
        reply_to: Some(2),
        mentions: vec!["bob".into()],
        data: Some(b"[1]".as_slice().into()),
    };
    let commands = vec![
        RoomCommand::Create {
            kind: v1::RoomKind::Direct,
            name: "N".into(),
            public: true,
            members: vec![person("bob"), person("eve")],
        },
        RoomCommand::Update { name: Some(String::new()), public: None },
        RoomCommand::Update { name: None, public: Some(false) },
        RoomCommand::Join,
        RoomCommand::Leave,
        RoomCommand::Add { users: vec![person("bob")] },
        RoomCommand::Remove { user: user("bob") },
        RoomCommand::SetRole { user: user("bob"), role: v1::Role::Reader },
        RoomCommand::Send(send),
        RoomCommand::Mark { delivered: Some(Seq(0)), seen: None },
        RoomCommand::Mark { delivered: None, seen: Some(Seq(7)) },
        RoomCommand::History { before: Some(Seq(9)), after: None, limit: 100 },
        RoomCommand::History { before: None, after: Some(Seq(0)), limit: 1 },
        RoomCommand::Members { after: Some(user("bob")), limit: 50 },
        RoomCommand::Members { after: None, limit: 0 },
        RoomCommand::Summary,
        RoomCommand::Subscribe,
    ];
    commands.into_iter().map(|command| (name(&command), command)).collect()
}

pub(crate) fn to_shard() -> Vec<(String, ToShard)> {
    let name = |message: &ToShard| match message {
        ToShard::Room { .. } => "room",
        ToShard::Pull { .. } => "pull",
        ToShard::Interest { .. } => "interest",
        ToShard::Uninterest { .. } => "uninterest",
        ToShard::UserOnline { .. } => "user_online",
        ToShard::UserOffline { .. } => "user_offline",
        ToShard::UserRooms { .. } => "user_rooms",
        ToShard::Notify { .. } => "notify",
        ToShard::LoginsEnded { .. } => "logins_ended",
    };
    let mut all: Vec<_> = commands()
        .into_iter()
        .zip(1..)
        .map(|((name, command), n)| {
            let call = RoomCall {
                ticket: Ticket(n << 33),
                caller: person("alice"),
                origin: Origin(u64::MAX - n),
                command,
            };
            (format!("room_{name}_{n}"), ToShard::Room { room: room(), call: Box::new(call) })
        })
        .collect();
    let others = vec![
        ToShard::Pull {
            room: room(),
            ticket: Ticket(5),
            after: Seq(3),
            through: Some(Seq(9)),
            max_events: 100,
            max_bytes: 1 << 20,
        },
        ToShard::Pull {
            room: room(),
            ticket: Ticket(0),
            after: Seq(0),
            through: None,
            max_events: 0,
            max_bytes: 0,
        },
        ToShard::Interest { room: room(), after: Seq(12) },
        ToShard::Uninterest { room: room() },
        ToShard::UserOnline { user: user("auth0|1") },
        ToShard::UserOffline { user: user("auth0|1") },
        ToShard::UserRooms { ticket: Ticket(6), user: user("bob"), after: Some(room()), limit: 100 },
        ToShard::UserRooms { ticket: Ticket(6), user: user("bob"), after: None, limit: 1 },
        ToShard::Notify { user: user("bob"), push: Arc::new(Body::Room(of_room())) },
        ToShard::LoginsEnded { user: user("auth0|1") },
    ];
    all.extend(others.into_iter().zip(1..).map(|(message, n)| (format!("{}_{n}", name(&message)), message)));
    all
}

pub(crate) fn from_shard() -> Vec<(String, FromShard)> {
    let name = |message: &FromShard| match message {
        FromShard::Answer { answer, .. } => match answer {
            Answer::Body(_) => "answer_body",
            Answer::Sent { .. } => "answer_sent",
            Answer::Admitted(_) => "answer_admitted",
            Answer::Summary(_) => "answer_summary",
            Answer::UserRooms { .. } => "answer_user_rooms",
            Answer::Error(_) => "answer_error",
        },
        FromShard::Moved { .. } => "moved",
        FromShard::Events { .. } => "events",
        FromShard::Head { .. } => "head",
        FromShard::Marks { .. } => "marks",
        FromShard::Left { .. } => "left",
        FromShard::Page { .. } => "page",
        FromShard::User { .. } => "user",
        FromShard::LoginsEnded { .. } => "logins_ended",
    };
    let (room, epoch, ticket) = (room(), Epoch(3 << 32 | 7), Ticket(42));
    let answer = |answer| FromShard::Answer { ticket, epoch, answer };
    let admission = Admission {
        epoch,
        log: LogId(0xabcd),
        kind: v1::RoomKind::Broadcast,
        head: Seq(90),
        n: 80,
        role: v1::Role::Owner,
        delivered: Seq(70),
        seen: Seq(60),
        seen_n: 50,
        floor: Seq(10),
        out: vec![(Seq(20), Seq(30)), (Seq(40), Seq(45))],
        end: Some(Seq(88)),
        members: 12,
    };
    let bare = Admission { out: Vec::new(), end: None, role: v1::Role::None, ..admission };
    let history = v1::HistoryReply {
        events: vec![event(1).event.clone(), event(2).event.clone()],
        gaps: vec![v1::Gap { from: 3, to: 4, expired: Some(true) }],
        log: "l".into(),
        head: 9,
        more: true,
    };
    let page = Page { events: vec![event(4), event(5)], head: Seq(9), n: 8, floor: Seq(1), more: true };
    let messages = vec![
        answer(Answer::Body(Box::new(Body::History(history)))),
        answer(Answer::Body(Box::new(Body::Leave(v1::Empty {})))),
        answer(Answer::Sent { seq: Seq(9), at: UnixMs(1), duplicate: true }),
        answer(Answer::Admitted(Box::new(admission))),
        answer(Answer::Admitted(Box::new(bare))),
        answer(Answer::Summary(Box::new(of_room()))),
        answer(Answer::UserRooms { rooms: vec![room.clone(), room.clone()], more: true }),
        answer(Answer::UserRooms { rooms: Vec::new(), more: false }),
        answer(Answer::Error(Box::new(error()))),
        FromShard::Moved {
            slot: SlotId(4095),
            ticket: Some(ticket),
            epoch,
            owner: Some(Incarnation(u128::MAX - 1)),
        },
        FromShard::Moved { slot: SlotId(0), ticket: None, epoch: Epoch(0), owner: None },
        FromShard::Events { room: room.clone(), epoch, events: vec![event(6), event(7)].into() },
        FromShard::Head { room: room.clone(), epoch, head: Seq(9), n: 8, last_membership: Seq(2) },
        FromShard::Marks {
            room: room.clone(),
            epoch,
            marks: vec![v1::UserMarks { user: "bob".into(), delivered: 3, seen: 2 }].into(),
        },
        FromShard::Left { room: room.clone(), epoch, user: user("bob"), at: Seq(5) },
        FromShard::Page { ticket, room: room.clone(), epoch, page: Ok(page) },
        FromShard::Page { ticket, room, epoch, page: Err(error()) },
        FromShard::User {
            user: user("bob"),
            push: Arc::new(Body::RoomGone(v1::RoomGone { room: "r".into(), code: 4 })),
        },
        FromShard::LoginsEnded { user: user("auth0|1") },
    ];
    messages.into_iter().zip(1..).map(|(message, n)| (format!("{}_{n}", name(&message)), message)).collect()
}
