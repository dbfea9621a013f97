//! Questions and statements of gateways, as bytes.

use std::sync::Arc;

use prost::Message as _;

use super::{
    Error, NodeMessage, TO_SHARD_MAX, bound_server_frame, kind, messages, number, put, role, room,
    server_frame, user,
};
use crate::id::{Origin, Seq};
use crate::link::{LinkId, Person, RoomCall, RoomCommand, Ticket, ToShard};
use crate::node::v1 as wire;
use crate::node::v1::room_call::Command;
use crate::node::v1::to_shard::Message;
use crate::v1;

const TO_SHARD: u32 = 2;
const NODE: u32 = 3;

/// A frame of the live stream towards an owner.
#[derive(Debug, Default, PartialEq)]
pub struct Up {
    /// In the order in which they were sent; each with its end of the link and, questions, for how many milliseconds
    /// an answer is worth having.
    pub to_shard: Vec<(LinkId, u32, ToShard)>,
    pub node: Vec<NodeMessage>,
    /// Commands of a newer release: whoever asks is told so.
    pub unknown_commands: Vec<(LinkId, Ticket)>,
    /// Messages of a newer release that may be skipped.
    pub skipped: usize,
}

/// Appends a message to a frame of [`read_up`]. False: it is too large to travel, and nothing was appended.
pub fn put_to_shard(end: LinkId, worth_ms: u32, message: ToShard, frame: &mut Vec<u8>) -> bool {
    let is_question = matches!(message, ToShard::Room { .. } | ToShard::Pull { .. });
    let message = wire::ToShard {
        end: end.0,
        worth_ms: if is_question { worth_ms.max(1) } else { 0 },
        required: false,
        message: Some(to_wire(message)),
    };
    let fits = message.encoded_len() <= TO_SHARD_MAX;
    if fits {
        put(TO_SHARD, &message, frame);
    }
    fits
}

/// Reads a frame after the first.
pub fn read_up(frame: &[u8]) -> Result<Up, Error> {
    let mut up = Up::default();
    for message in messages(frame) {
        match message? {
            (TO_SHARD, bytes) => read_to_shard(bytes, &mut up)?,
            (NODE, bytes) => match super::node::read(bytes)? {
                Some(message) => up.node.push(message),
                None => up.skipped += 1,
            },
            _ => up.skipped += 1,
        }
    }
    Ok(up)
}

fn read_to_shard(bytes: &[u8], up: &mut Up) -> Result<(), Error> {
    if bytes.len() > TO_SHARD_MAX {
        return Err(Error::TooLarge { what: "a message to a shard", max: TO_SHARD_MAX });
    }
    for field in messages(bytes) {
        // Lists of people lie one deeper, within a megabyte; replies are the ones whose elements are large.
        if let (17, notify) = field? {
            for field in messages(notify) {
                if let (2, push) = field? {
                    bound_server_frame(push)?;
                }
            }
        }
    }
    let message = wire::ToShard::decode(bytes)?;
    let end = LinkId(number::<u16>("the end of a link", message.end)?.into());
    let Some(kind) = message.message else {
        if message.required {
            return Err(Error::Newer { what: "message to a shard" });
        }
        up.skipped += 1;
        return Ok(());
    };
    match from_wire(kind)? {
        Known::Message(kind) => up.to_shard.push((end, message.worth_ms, kind)),
        Known::Skipped => up.skipped += 1,
        Known::UnknownCommand(ticket) => up.unknown_commands.push((end, ticket)),
    }
    Ok(())
}

fn to_wire(message: ToShard) -> Message {
    let text = |id: &str| id.to_owned();
    match message {
        ToShard::Room { room, call } => {
            let RoomCall { ticket, caller, origin, command } = *call;
            Message::Room(wire::RoomCall {
                room: text(room.as_str()),
                ticket: ticket.0,
                caller: Some(person_to_wire(&caller)),
                origin: origin.0,
                command: Some(command_to_wire(command)),
            })
        }
        ToShard::Pull { room, ticket, after, through, max_events, max_bytes } => Message::Pull(wire::Pull {
            room: text(room.as_str()),
            ticket: ticket.0,
            after: after.0,
            through: through.map(|seq| seq.0),
            max_events,
            max_bytes,
        }),
        ToShard::Interest { room, after } => {
            Message::Interest(wire::Interest { room: text(room.as_str()), after: after.0 })
        }
        ToShard::Uninterest { room } => Message::Uninterest(wire::Uninterest { room: text(room.as_str()) }),
        ToShard::UserOnline { user } => Message::UserOnline(text(user.as_str())),
        ToShard::UserOffline { user } => Message::UserOffline(text(user.as_str())),
        ToShard::UserRooms { ticket, user, after, limit } => Message::UserRooms(wire::UserRooms {
            ticket: ticket.0,
            user: text(user.as_str()),
            after: after.map(|room| text(room.as_str())),
            limit,
        }),
        ToShard::Notify { user, push } => Message::Notify(wire::Notify {
            user: text(user.as_str()),
            push: Some(server_frame(Arc::unwrap_or_clone(push))),
        }),
        ToShard::LoginsEnded { user } => {
            Message::LoginsEnded(wire::LoginsEnded { user: text(user.as_str()) })
        }
    }
}

fn person_to_wire(person: &Person) -> wire::Person {
    wire::Person { user: person.user.as_str().to_owned(), name: (*person.name).to_owned() }
}

fn people_to_wire(people: &[Person]) -> Vec<wire::Person> {
    people.iter().map(person_to_wire).collect()
}

fn command_to_wire(command: RoomCommand) -> Command {
    match command {
        RoomCommand::Create { kind, name, public, members } => Command::Create(wire::Create {
            kind: kind.into(),
            name,
            public,
            members: people_to_wire(&members),
        }),
        RoomCommand::Update { name, public } => Command::Update(wire::Update { name, public }),
        RoomCommand::Join => Command::Join(v1::Empty {}),
        RoomCommand::Leave => Command::Leave(v1::Empty {}),
        RoomCommand::Add { users } => Command::Add(wire::Add { users: people_to_wire(&users) }),
        RoomCommand::Remove { user } => Command::Remove(user.as_str().to_owned()),
        RoomCommand::SetRole { user, role } => {
            Command::SetRole(wire::SetRole { user: user.as_str().to_owned(), role: role.into() })
        }
        RoomCommand::Send(send) => Command::Send(send),
        RoomCommand::Mark { delivered, seen } => {
            Command::Mark(wire::Mark { delivered: delivered.map(|seq| seq.0), seen: seen.map(|seq| seq.0) })
        }
        RoomCommand::History { before, after, limit } => Command::History(wire::History {
            before: before.map(|seq| seq.0),
            after: after.map(|seq| seq.0),
            limit,
        }),
        RoomCommand::Members { after, limit } => {
            Command::Members(wire::Members { after: after.map(|user| user.as_str().to_owned()), limit })
        }
        RoomCommand::Summary => Command::Summary(v1::Empty {}),
        RoomCommand::Subscribe => Command::Subscribe(v1::Empty {}),
    }
}

enum Known {
    Message(ToShard),
    Skipped,
    UnknownCommand(Ticket),
}

fn from_wire(message: Message) -> Result<Known, Error> {
    Ok(Known::Message(match message {
        Message::Room(call) => {
            let ticket = Ticket(call.ticket);
            // A newer command, or none at all.
            let Some(command) = call.command else { return Ok(Known::UnknownCommand(ticket)) };
            let caller = call.caller.ok_or(Error::Missing { what: "the caller of a command" })?;
            ToShard::Room {
                room: room(&call.room)?,
                call: Box::new(RoomCall {
                    ticket,
                    caller: person(caller)?,
                    origin: Origin(call.origin),
                    command: command_from_wire(command)?,
                }),
            }
        }
        Message::Pull(pull) => ToShard::Pull {
            room: room(&pull.room)?,
            ticket: Ticket(pull.ticket),
            after: Seq(pull.after),
            through: pull.through.map(Seq),
            max_events: pull.max_events,
            max_bytes: pull.max_bytes,
        },
        Message::Interest(of) => ToShard::Interest { room: room(&of.room)?, after: Seq(of.after) },
        Message::Uninterest(of) => ToShard::Uninterest { room: room(&of.room)? },
        Message::UserOnline(id) => ToShard::UserOnline { user: user(&id)? },
        Message::UserOffline(id) => ToShard::UserOffline { user: user(&id)? },
        Message::UserRooms(of) => ToShard::UserRooms {
            ticket: Ticket(of.ticket),
            user: user(&of.user)?,
            after: of.after.as_deref().map(room).transpose()?,
            limit: of.limit,
        },
        Message::Notify(notify) => match notify.push.and_then(|push| push.body) {
            Some(push) => ToShard::Notify { user: user(&notify.user)?, push: Arc::new(push) },
            // A push that this release cannot hand on.
            None => return Ok(Known::Skipped),
        },
        Message::LoginsEnded(of) => ToShard::LoginsEnded { user: user(&of.user)? },
    }))
}

fn person(person: wire::Person) -> Result<Person, Error> {
    Ok(Person { user: user(&person.user)?, name: person.name.into() })
}

fn people(people: Vec<wire::Person>) -> Result<Vec<Person>, Error> {
    people.into_iter().map(person).collect()
}

fn command_from_wire(command: Command) -> Result<RoomCommand, Error> {
    Ok(match command {
        Command::Create(create) => RoomCommand::Create {
            kind: kind(create.kind)?,
            name: create.name,
            public: create.public,
            members: people(create.members)?,
        },
        Command::Update(update) => RoomCommand::Update { name: update.name, public: update.public },
        Command::Join(_) => RoomCommand::Join,
        Command::Leave(_) => RoomCommand::Leave,
        Command::Add(add) => RoomCommand::Add { users: people(add.users)? },
        Command::Remove(id) => RoomCommand::Remove { user: user(&id)? },
        Command::SetRole(set) => RoomCommand::SetRole { user: user(&set.user)?, role: role(set.role)? },
        Command::Send(send) => RoomCommand::Send(send),
        Command::Mark(mark) => {
            RoomCommand::Mark { delivered: mark.delivered.map(Seq), seen: mark.seen.map(Seq) }
        }
        Command::History(history) => RoomCommand::History {
            before: history.before.map(Seq),
            after: history.after.map(Seq),
            limit: history.limit,
        },
        Command::Members(members) => RoomCommand::Members {
            after: members.after.as_deref().map(user).transpose()?,
            limit: members.limit,
        },
        Command::Summary(_) => RoomCommand::Summary,
        Command::Subscribe(_) => RoomCommand::Subscribe,
    })
}
