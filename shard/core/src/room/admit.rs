//! Subscribe, summary and members: the room as one caller may see it.

use banyan_proto::codes::Code;
use banyan_proto::id::{Seq, UserId};
use banyan_proto::link::{Admission, Answer, LinkId, RoomCommand, Ticket};
use banyan_proto::v1::event::Kind;
use banyan_proto::v1::server_frame::Body;
use banyan_proto::v1::{self, RoomKind};
use banyan_storage::{Range, ReadLimit};

use super::{Action, Now, Op, ReadFor, Room, State, ThenCount, refusal, refuse};
use crate::members::{Member, View, role};
use crate::permission::Act;

/// Characters of the last message that a summary shows.
const LAST_CHARS: usize = 100;

impl Room {
    /// Answers what changes nothing, from durable state.
    pub(super) fn answer_read(&mut self, now: Now, op: &Op, out: &mut Vec<Action>) {
        let (link, ticket, user) = (op.link, op.call.ticket, &op.call.caller.user);
        match &op.call.command {
            RoomCommand::Subscribe => self.subscribe(link, ticket, user, None, out),
            RoomCommand::Mark { delivered, seen } => {
                self.mark(now, link, ticket, user, (*delivered, *seen), None, out);
            }
            RoomCommand::History { before, after, limit } => {
                self.history(link, ticket, user, *before, *after, *limit, out);
            }
            RoomCommand::Summary => {
                let answer = match self.summary(user) {
                    Ok(room) => {
                        self.vouch_for(user.as_str());
                        Answer::Summary(Box::new(room))
                    }
                    Err(error) => Answer::Error(Box::new(error)),
                };
                out.push(Action::Answer { link, ticket, answer });
            }
            RoomCommand::Members { after, limit } => {
                let answer = match self.members(user, after.as_ref(), *limit) {
                    Ok(reply) => {
                        for told in reply.members.iter().filter(|told| told.delivered.is_some()) {
                            self.vouch_for(&told.user);
                        }
                        Answer::Body(Box::new(Body::Members(reply)))
                    }
                    Err(error) => Answer::Error(Box::new(error)),
                };
                out.push(Action::Answer { link, ticket, answer });
            }
            _ => refuse(link, ticket, Code::Internal.error("not a command that reads"), out),
        }
    }

    /// Admits a cursor and states the link's interest in the same step. `known`: the count of messages at a seq, read
    /// from the log before.
    pub(super) fn subscribe(
        &mut self,
        link: LinkId,
        ticket: Ticket,
        user: &UserId,
        known: Option<(Seq, u64)>,
        out: &mut Vec<Action>,
    ) {
        if let Err(error) = self.may(user, Act::Read) {
            return refuse(link, ticket, error, out);
        }
        let Some((state, member)) = self.seen_by(user) else {
            return refuse(link, ticket, refusal(Code::UnknownRoom), out);
        };
        let view = View::new(&member.row, state.head, state.row.floor);
        let Some(n) = state.count_at(view.upper, known) else {
            let then = ThenCount::Subscribe;
            return self.count(link, ticket, user, view.upper, then, out);
        };
        let admission = Admission {
            epoch: self.tenure.epoch,
            log: state.row.log,
            kind: state.kind(),
            head: view.upper,
            n,
            role: role(&member.row),
            delivered: member.marks.delivered,
            seen: member.marks.seen,
            seen_n: member.marks.seen_n,
            floor: state.row.floor,
            out: view.out,
            end: view.end,
            members: state.members.count(),
        };
        self.interest_of(link);
        self.vouch_for(user.as_str());
        out.push(Action::Answer { link, ticket, answer: Answer::Admitted(Box::new(admission)) });
    }

    /// Reads the row at `at` for its count of messages.
    pub(super) fn count(
        &mut self,
        link: LinkId,
        ticket: Ticket,
        user: &UserId,
        at: Seq,
        then: ThenCount,
        out: &mut Vec<Action>,
    ) {
        let range = Range::After { after: Seq(at.0.saturating_sub(1)), through: at };
        let read = ReadFor::Count { link, ticket, user: user.clone(), at, then };
        self.read(read, range, ReadLimit { events: 1, bytes: 1 }, out);
    }

    pub(super) fn seen_by(&self, user: &UserId) -> Option<(&State, &Member)> {
        let state = self.state.as_deref()?;
        Some((state, state.members.get(user.as_str())?))
    }

    /// The room as it stands in a member's `rooms`.
    pub(super) fn summary(&self, user: &UserId) -> Result<v1::Room, v1::Error> {
        self.may(user, Act::Read)?;
        let (state, member) = self.seen_by(user).ok_or_else(|| refusal(Code::UnknownRoom))?;
        let role = role(&member.row);
        if role == v1::Role::None {
            return Err(refusal(Code::NotAMember));
        }
        let row = &state.row;
        let peer = match state.kind() {
            RoomKind::Direct => state.members.present(None).find(|other| other.row.user != *user),
            _ => None,
        };
        let view = View::new(&member.row, state.head, row.floor);
        let last = state.tail.newest().filter(|event| view.sees(event.seq())).find_map(|event| {
            let Some(Kind::Message(message)) = &event.event.kind else { return None };
            Some(v1::LastMessage {
                seq: event.event.seq,
                at: event.event.at,
                sender_name: event.event.sender_name.clone(),
                text: message.text.chars().take(LAST_CHARS).collect(),
            })
        });
        Ok(v1::Room {
            room: self.id.as_str().to_owned(),
            kind: state.kind() as i32,
            name: peer.map_or_else(|| row.name.clone(), |peer| peer.row.name.clone()),
            public: row.public,
            role: role as i32,
            peer: peer.map(|peer| peer.row.user.as_str().to_owned()),
            log: row.log.to_string(),
            head: state.head.0,
            n: state.n,
            delivered: member.marks.delivered.0,
            seen: member.marks.seen.0,
            seen_n: member.marks.seen_n,
            last,
        })
    }

    /// A page of the members, by user id. Who has left sees, of those who still are members, who was there before it
    /// left.
    fn members(
        &self,
        user: &UserId,
        after: Option<&UserId>,
        limit: u32,
    ) -> Result<v1::MembersReply, v1::Error> {
        self.may(user, Act::Read)?;
        let (state, caller) = self.seen_by(user).ok_or_else(|| refusal(Code::UnknownRoom))?;
        let view = View::new(&caller.row, state.head, state.row.floor);
        let seen = |member: &&Member| view.end.is_none_or(|end| member.row.joined_seq <= end);
        let with_marks = view.end.is_none() && state.members.count() <= self.config.marks_members;
        let limit = limit.clamp(1, 100) as usize;
        let mut page = state.members.present(after).filter(seen);
        let members = page
            .by_ref()
            .take(limit)
            .map(|member| v1::Member {
                user: member.row.user.as_str().to_owned(),
                name: member.row.name.clone(),
                role: role(&member.row) as i32,
                joined_seq: member.row.joined_seq.0,
                delivered: with_marks.then_some(member.marks.delivered.0),
                seen: with_marks.then_some(member.marks.seen.0),
            })
            .collect();
        let count = match view.end {
            None => state.members.count(),
            Some(_) => state.members.present(None).filter(seen).count() as u64,
        };
        Ok(v1::MembersReply { members, count, more: page.next().is_some() })
    }
}

impl State {
    /// Messages up to `seq`, from memory or from what was read before.
    pub(super) fn count_at(&self, seq: Seq, known: Option<(Seq, u64)>) -> Option<u64> {
        match seq {
            Seq(0) => Some(0),
            seq if seq == self.head => Some(self.n),
            seq => known.filter(|(at, _)| *at == seq).map(|(_, n)| n).or_else(|| self.tail.n_at(seq)),
        }
    }
}
