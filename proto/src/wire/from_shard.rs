//! What owners say to gateways, as bytes: answers and live events in one kind of frame, pages in another.

use std::sync::Arc;

use prost::Message as _;

use super::{
    Error, FRAME_MAX, bound_list, bound_server_frame, incarnation, incarnation_bytes, kind, messages, number,
    put, role, room, server_frame, user,
};
use crate::codes::Code;
use crate::event::LoggedEvent;
use crate::id::{Epoch, LogId, Origin, RoomId, Seq, SlotId, UnixMs};
use crate::link::{self, Admission, Answer, FromShard, LinkId, Ticket};
use crate::node::v1 as wire;
use crate::node::v1::answer::Answer as WireAnswer;
use crate::node::v1::from_shard::Message;
use crate::v1;

const FROM_SHARD: u32 = 2;
const PAGE: u32 = 1;
/// Events of one message: a larger batch travels as several, so that no frame is much larger than this.
const EVENTS_BYTES: usize = 256 << 10;
/// What an event takes beside its bytes, at most.
const EVENT_OVERHEAD: usize = 24;

/// The answer to a pull: it travels by itself, beside live events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub ticket: Ticket,
    pub room: RoomId,
    pub epoch: Epoch,
    pub page: Result<link::Page, v1::Error>,
}

/// By which of the two streams a message travels.
#[derive(Debug, PartialEq, Eq)]
pub enum Outgoing {
    Live(FromShard),
    Bulk(Page),
}

impl From<FromShard> for Outgoing {
    fn from(message: FromShard) -> Self {
        match message {
            FromShard::Page { ticket, room, epoch, page } => Self::Bulk(Page { ticket, room, epoch, page }),
            FromShard::Answer { .. }
            | FromShard::Moved { .. }
            | FromShard::Events { .. }
            | FromShard::Head { .. }
            | FromShard::Marks { .. }
            | FromShard::Left { .. }
            | FromShard::User { .. }
            | FromShard::LoginsEnded { .. } => Self::Live(message),
        }
    }
}

impl From<Page> for FromShard {
    fn from(page: Page) -> Self {
        let Page { ticket, room, epoch, page } = page;
        Self::Page { ticket, room, epoch, page }
    }
}

/// A page on its way.
#[derive(Debug, PartialEq, Eq)]
pub struct Bulk {
    pub end: LinkId,
    /// Frames of the live stream that come before it.
    pub after_live: u64,
    pub page: Page,
}

/// What a page takes in memory and on the wire, about.
pub fn page_bytes(page: &Page) -> usize {
    let events = page.page.as_ref().map_or(&[][..], |page| &page.events[..]);
    events.iter().map(|event| event.encoded.len() + EVENT_OVERHEAD).sum::<usize>() + 256
}

/// Appends a message for these ends to a frame of [`read_down`]. What is too large to travel is replaced by what tells
/// the gateway that it missed something; large batches are split. Pages go by [`Bulk::frame`].
pub fn put_from_shard(ends: &[LinkId], message: FromShard, frame: &mut Vec<u8>) {
    let mut put_one = |message: Message| {
        let ends = ends.iter().map(|end| end.0).collect();
        put(FROM_SHARD, &wire::FromShard { ends, required: false, message: Some(message) }, frame);
    };
    match message {
        FromShard::Answer { ticket, epoch, answer } => {
            let mut answer = answer_to_wire(answer);
            let bytes = match &answer {
                WireAnswer::Body(body) => body.encoded_len(),
                // All others are small.
                _ => 0,
            };
            if bytes > FRAME_MAX / 2 {
                answer = WireAnswer::Error(Code::Internal.error("the answer is too large to travel"));
            }
            put_one(Message::Answer(wire::Answer { ticket: ticket.0, epoch: epoch.0, answer: Some(answer) }));
        }
        FromShard::Moved { slot, ticket, epoch, owner } => put_one(Message::Moved(wire::Moved {
            slot: slot.0.into(),
            ticket: ticket.map(|ticket| ticket.0),
            epoch: epoch.0,
            owner: owner.map(incarnation_bytes).unwrap_or_default(),
        })),
        FromShard::Events { room, epoch, events } => {
            let mut rest = &events[..];
            while !rest.is_empty() {
                let mut bytes = 0;
                let many = rest
                    .iter()
                    .take_while(|event| {
                        let before = bytes;
                        bytes += event.encoded.len() + EVENT_OVERHEAD;
                        before == 0 || bytes <= EVENTS_BYTES
                    })
                    .count();
                let (now, later) = rest.split_at(many);
                rest = later;
                put_one(Message::Events(wire::Events {
                    room: room.as_str().to_owned(),
                    epoch: epoch.0,
                    events: now.iter().map(|event| logged(event)).collect(),
                }));
            }
        }
        FromShard::Head { room, epoch, head, n, last_membership } => put_one(Message::Head(wire::Head {
            room: room.as_str().to_owned(),
            epoch: epoch.0,
            head: head.0,
            n,
            last_membership: last_membership.0,
        })),
        FromShard::Marks { room, epoch, marks } => put_one(Message::Marks(wire::Marks {
            room: room.as_str().to_owned(),
            epoch: epoch.0,
            marks: marks.to_vec(),
        })),
        FromShard::Left { room, epoch, user, at } => put_one(Message::Left(wire::Left {
            room: room.as_str().to_owned(),
            epoch: epoch.0,
            user: user.as_str().to_owned(),
            at: at.0,
        })),
        FromShard::User { user, push } => put_one(Message::User(wire::User {
            user: user.as_str().to_owned(),
            push: Some(server_frame(Arc::unwrap_or_clone(push))),
        })),
        FromShard::LoginsEnded { user } => {
            put_one(Message::LoginsEnded(wire::LoginsEnded { user: user.as_str().to_owned() }));
        }
        // Goes by the other stream.
        FromShard::Page { .. } => debug_assert!(false, "a page on the live stream"),
    }
}

impl Bulk {
    /// A frame of [`read_bulk_down`].
    pub fn frame(self) -> Vec<u8> {
        let Self { end, after_live, page: Page { ticket, room, epoch, page } } = self;
        let mut message = wire::Page {
            end: end.0,
            after_live,
            ticket: ticket.0,
            room: room.as_str().to_owned(),
            epoch: epoch.0,
            ..wire::Page::default()
        };
        match page {
            Ok(link::Page { events, head, n, floor, more }) => {
                message.events = events.iter().map(|event| logged(event)).collect();
                (message.head, message.n, message.floor, message.more) = (head.0, n, floor.0, more);
            }
            Err(error) => message.error = Some(error),
        }
        if message.encoded_len() > FRAME_MAX - 64 {
            message.events = Vec::new();
            message.error = Some(Code::Internal.error("the page is too large to travel"));
        }
        let mut frame = Vec::with_capacity(message.encoded_len() + 8);
        put(PAGE, &message, &mut frame);
        frame
    }
}

fn logged(event: &LoggedEvent) -> wire::Logged {
    wire::Logged { event: event.encoded.clone(), origin: event.origin.0 }
}

fn answer_to_wire(answer: Answer) -> WireAnswer {
    match answer {
        Answer::Body(body) => WireAnswer::Body(server_frame(*body)),
        // Who has asked knows the room.
        Answer::Sent { seq, at, duplicate } => {
            WireAnswer::Sent(v1::SendReply { room: String::new(), seq: seq.0, at: at.0, duplicate })
        }
        Answer::Admitted(admission) => {
            let Admission {
                epoch,
                log,
                kind,
                head,
                n,
                role,
                delivered,
                seen,
                seen_n,
                floor,
                out,
                end,
                members,
            } = *admission;
            WireAnswer::Admitted(wire::Admission {
                epoch: epoch.0,
                log: log.0,
                kind: kind.into(),
                head: head.0,
                n,
                role: role.into(),
                delivered: delivered.0,
                seen: seen.0,
                seen_n,
                floor: floor.0,
                out: out
                    .into_iter()
                    .map(|(first, last)| wire::Interval { first: first.0, last: last.0 })
                    .collect(),
                end: end.map(|seq| seq.0),
                members,
            })
        }
        Answer::Summary(room) => WireAnswer::Summary(*room),
        Answer::UserRooms { rooms, more } => WireAnswer::UserRooms(wire::RoomList {
            rooms: rooms.iter().map(|room| room.as_str().to_owned()).collect(),
            more,
        }),
        Answer::Error(error) => WireAnswer::Error(*error),
    }
}

/// A frame of the live stream towards a gateway.
#[derive(Debug, Default, PartialEq)]
pub struct Down {
    /// In the order in which they were sent, each with the ends that it is for.
    pub from_shard: Vec<(Vec<LinkId>, FromShard)>,
    /// Messages of a newer release that may be skipped.
    pub skipped: usize,
}

/// Reads a frame after the first.
pub fn read_down(frame: &[u8]) -> Result<Down, Error> {
    let (mut read, mut skipped) = (Vec::new(), 0);
    for message in messages(frame) {
        let (FROM_SHARD, bytes) = message? else {
            skipped += 1;
            continue;
        };
        bound(bytes)?;
        let message = wire::FromShard::decode(bytes)?;
        let ends: Result<Vec<_>, Error> = message
            .ends
            .into_iter()
            .map(|end| Ok(LinkId(number::<u16>("the end of a link", end)?.into())))
            .collect();
        let known = match message.message {
            Some(kind) => from_wire(kind)?,
            None if message.required => return Err(Error::Newer { what: "message of a shard" }),
            None => None,
        };
        match known {
            Some(known) => read.push((ends?, known)),
            None => skipped += 1,
        }
    }
    Ok(Down { from_shard: read, skipped })
}

/// Pages of a frame, in order.
pub fn read_bulk_down(frame: &[u8]) -> Result<Vec<Bulk>, Error> {
    let mut read = Vec::new();
    for message in messages(frame) {
        let (PAGE, bytes) = message? else { continue };
        bound_list(bytes)?;
        let page = wire::Page::decode(bytes)?;
        let content = match page.error {
            Some(error) => Err(error),
            None => Ok(link::Page {
                events: page.events.into_iter().map(event).collect::<Result<_, _>>()?,
                head: Seq(page.head),
                n: page.n,
                floor: Seq(page.floor),
                more: page.more,
            }),
        };
        read.push(Bulk {
            end: LinkId(number::<u16>("the end of a link", page.end)?.into()),
            after_live: page.after_live,
            page: Page {
                ticket: Ticket(page.ticket),
                room: room(&page.room)?,
                epoch: Epoch(page.epoch),
                page: content,
            },
        });
    }
    Ok(read)
}

/// Counts every list in it.
fn bound(message: &[u8]) -> Result<(), Error> {
    for field in messages(message) {
        let (tag, kind) = field?;
        // The kinds of messages begin at 10.
        if tag < 10 {
            continue;
        }
        bound_list(kind)?;
        match tag {
            10 => {
                for field in messages(kind) {
                    let (tag, answer) = field?;
                    bound_list(answer)?;
                    if tag == 10 {
                        bound_server_frame(answer)?;
                    }
                }
            }
            16 => {
                for field in messages(kind) {
                    if let (2, push) = field? {
                        bound_server_frame(push)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn event(logged: wire::Logged) -> Result<Arc<LoggedEvent>, Error> {
    Ok(Arc::new(LoggedEvent::decode(logged.event, Origin(logged.origin))?))
}

/// `None`: of a newer release, and nobody is the worse for missing it.
fn from_wire(message: Message) -> Result<Option<FromShard>, Error> {
    Ok(Some(match message {
        Message::Answer(answer) => FromShard::Answer {
            ticket: Ticket(answer.ticket),
            epoch: Epoch(answer.epoch),
            answer: answer_from_wire(answer.answer)?,
        },
        Message::Moved(moved) => FromShard::Moved {
            slot: SlotId(number("a slot", moved.slot)?),
            ticket: moved.ticket.map(Ticket),
            epoch: Epoch(moved.epoch),
            owner: if moved.owner.is_empty() { None } else { Some(incarnation(&moved.owner)?) },
        },
        Message::Events(events) => FromShard::Events {
            room: room(&events.room)?,
            epoch: Epoch(events.epoch),
            events: events.events.into_iter().map(event).collect::<Result<_, _>>()?,
        },
        Message::Head(head) => FromShard::Head {
            room: room(&head.room)?,
            epoch: Epoch(head.epoch),
            head: Seq(head.head),
            n: head.n,
            last_membership: Seq(head.last_membership),
        },
        Message::Marks(marks) => FromShard::Marks {
            room: room(&marks.room)?,
            epoch: Epoch(marks.epoch),
            marks: marks.marks.into(),
        },
        Message::Left(left) => FromShard::Left {
            room: room(&left.room)?,
            epoch: Epoch(left.epoch),
            user: user(&left.user)?,
            at: Seq(left.at),
        },
        Message::User(of) => match of.push.and_then(|push| push.body) {
            Some(push) => FromShard::User { user: user(&of.user)?, push: Arc::new(push) },
            None => return Ok(None),
        },
        Message::LoginsEnded(of) => FromShard::LoginsEnded { user: user(&of.user)? },
    }))
}

fn answer_from_wire(answer: Option<WireAnswer>) -> Result<Answer, Error> {
    // The command was carried out, or was not: who asked cannot be told in words that this release has.
    let newer =
        || Answer::Error(Box::new(Code::Unavailable.error("the room's owner answered in newer words")));
    Ok(match answer {
        None => newer(),
        Some(WireAnswer::Body(frame)) => frame.body.map_or_else(newer, |body| Answer::Body(Box::new(body))),
        Some(WireAnswer::Sent(v1::SendReply { room: _, seq, at, duplicate })) => {
            Answer::Sent { seq: Seq(seq), at: UnixMs(at), duplicate }
        }
        Some(WireAnswer::Admitted(admission)) => Answer::Admitted(Box::new(Admission {
            epoch: Epoch(admission.epoch),
            log: LogId(admission.log),
            kind: kind(admission.kind)?,
            head: Seq(admission.head),
            n: admission.n,
            role: role(admission.role)?,
            delivered: Seq(admission.delivered),
            seen: Seq(admission.seen),
            seen_n: admission.seen_n,
            floor: Seq(admission.floor),
            out: admission.out.iter().map(|out| (Seq(out.first), Seq(out.last))).collect(),
            end: admission.end.map(Seq),
            members: admission.members,
        })),
        Some(WireAnswer::Summary(room)) => Answer::Summary(Box::new(room)),
        Some(WireAnswer::UserRooms(list)) => Answer::UserRooms {
            rooms: list.rooms.iter().map(|id| room(id)).collect::<Result<_, _>>()?,
            more: list.more,
        },
        Some(WireAnswer::Error(error)) => Answer::Error(Box::new(error)),
    })
}
