//! Receipt marks: how far each member has got.
//!
//! Always holds (I11): marks never go back; seen <= delivered <= head. They are told and written at most once in
//! `marks_every_ms`, and not durable when they are answered. What is told of them is written by who tells it, be it read
//! from the store or passed on: else it could be gone with the next owner, long after the crash that lost it.

use std::sync::Arc;

use banyan_proto::codes::Code;
use banyan_proto::id::{Seq, UserId};
use banyan_proto::link::{Answer, LinkId, Ticket};
use banyan_proto::plant::{self, Bug};
use banyan_proto::v1;
use banyan_proto::v1::server_frame::Body;
use banyan_storage::Marks;

use super::{Action, Now, Room, ThenCount, refusal, refuse};
use crate::config::Config;
use crate::members::{MarksOf, Members, View};
use crate::permission::Act;

/// Marks that wait to be written or told. Bound: the members of the room, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct MarkTimes {
    unwritten: Vec<UserId>,
    write_at_ms: Option<u64>,
    untold: Vec<UserId>,
    tell_at_ms: Option<u64>,
    told_ms: Option<u64>,
}

impl MarkTimes {
    pub(super) fn next_deadline(&self) -> Option<u64> {
        match (self.write_at_ms, self.tell_at_ms) {
            (Some(write), Some(tell)) => Some(write.min(tell)),
            (write, tell) => write.or(tell),
        }
    }

    pub(super) fn write_is_due(&self, now: Now) -> bool {
        self.write_at_ms.is_some_and(|at| at <= now.mono_ms)
    }

    /// Raises a member's marks; true if they rose. `tell`: others want to know.
    pub(super) fn lift(
        &mut self,
        now: Now,
        member: &mut MarksOf<'_>,
        to: Marks,
        tell: bool,
        config: &Config,
    ) -> bool {
        let lifted = if plant::is(Bug::MarkFalls) { to } else { member.marks.max(to) };
        if lifted == *member.marks {
            return false;
        }
        *member.marks = lifted;
        *member.hearsay = false;
        if !std::mem::replace(member.unwritten, true) {
            self.unwritten.push(member.row.user.clone());
            self.write_at_ms.get_or_insert(now.mono_ms + config.marks_every_ms);
        }
        if tell && !std::mem::replace(member.untold, true) {
            self.untold.push(member.row.user.clone());
            let next = self.told_ms.map_or(0, |told| told + config.marks_every_ms);
            self.tell_at_ms.get_or_insert_with(|| next.max(now.mono_ms));
        }
        true
    }

    /// Its marks are told. The next [`Self::plan`] says when they are written, if they are to be.
    fn vouch(&mut self, member: &mut MarksOf<'_>) {
        if std::mem::take(member.hearsay) && !std::mem::replace(member.unwritten, true) {
            self.unwritten.push(member.row.user.clone());
        }
    }

    /// When what waits is written.
    pub(super) fn plan(&mut self, now: Now, config: &Config) {
        if !self.unwritten.is_empty() {
            self.write_at_ms.get_or_insert(now.mono_ms + config.marks_every_ms);
        }
    }

    /// Takes over what an earlier owner, or an earlier reading, has not written or told.
    pub(super) fn adopt(&mut self, now: Now, members: &Members, config: &Config) {
        self.unwritten =
            members.all().filter(|member| member.unwritten).map(|member| member.row.user.clone()).collect();
        self.untold =
            members.all().filter(|member| member.untold).map(|member| member.row.user.clone()).collect();
        let soon = now.mono_ms + config.marks_every_ms;
        self.write_at_ms = (!self.unwritten.is_empty()).then_some(soon);
        self.tell_at_ms = (!self.untold.is_empty()).then_some(soon);
    }
}

impl Room {
    #[expect(clippy::too_many_arguments, reason = "who asks, for what, and what was read for it")]
    pub(super) fn mark(
        &mut self,
        now: Now,
        link: LinkId,
        ticket: Ticket,
        user: &UserId,
        (delivered, seen): (Option<Seq>, Option<Seq>),
        known: Option<(Seq, u64)>,
        out: &mut Vec<Action>,
    ) {
        if let Err(error) = self.may(user, Act::Read) {
            return refuse(link, ticket, error, out);
        }
        let Some((state, member)) = self.seen_by(user) else {
            return refuse(link, ticket, refusal(Code::UnknownRoom), out);
        };
        let upper = View::new(&member.row, state.head, state.row.floor).upper;
        if delivered.max(seen).is_some_and(|mark| mark > upper) {
            return refuse(link, ticket, Code::BadRequest.error("the mark lies above the room's head"), out);
        }
        let old = member.marks;
        let seen_to = seen.unwrap_or_default();
        let mut to = Marks { delivered: delivered.unwrap_or_default().max(seen_to), ..Marks::default() };
        if seen_to > old.seen {
            let Some(n) = state.count_at(seen_to, known) else {
                let then = ThenCount::Mark { delivered, seen };
                return self.count(link, ticket, user, seen_to, then, out);
            };
            (to.seen, to.seen_n) = (seen_to, n);
        }
        let Some(mut member) =
            self.state.as_deref_mut().and_then(|state| state.members.marks_of(user.as_str()))
        else {
            return;
        };
        self.marks.lift(now, &mut member, to, true, &self.config);
        self.marks.vouch(&mut member);
        let Marks { delivered, seen, seen_n } = *member.marks;
        let reply = v1::MarkReply { delivered: delivered.0, seen: seen.0, seen_n };
        out.push(Action::Answer { link, ticket, answer: Answer::Body(Box::new(Body::Mark(reply))) });
    }

    /// Somebody is told the marks of this user.
    pub(super) fn vouch_for(&mut self, user: &str) {
        let member = self.state.as_deref_mut().and_then(|state| state.members.marks_of(user));
        if let Some(mut member) = member {
            self.marks.vouch(&mut member);
        }
    }

    /// Tells marks that moved: to the user's own connections, and in small rooms to everybody.
    pub(super) fn tell_marks(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.marks.tell_at_ms.is_none_or(|at| at > now.mono_ms) {
            return;
        }
        self.marks.tell_at_ms = None;
        self.marks.told_ms = Some(now.mono_ms);
        let Some(state) = self.state.as_deref_mut() else { return };
        let everybody = state.members.count() <= self.config.marks_members;
        let mut marks = Vec::with_capacity(self.marks.untold.len());
        for user in self.marks.untold.drain(..) {
            let Some(member) = state.members.marks_of(user.as_str()) else { continue };
            *member.untold = false;
            let own = v1::UserMarks {
                user: user.as_str().to_owned(),
                delivered: member.marks.delivered.0,
                seen: member.marks.seen.0,
            };
            let push = v1::MarksPush { room: self.id.as_str().to_owned(), marks: vec![own.clone()] };
            // Who has left marks for itself alone.
            if member.row.role != 0 {
                marks.push(own);
            }
            out.push(Action::NotifyUser { user, push: Arc::new(Body::Marks(push)) });
        }
        if everybody && !marks.is_empty() {
            let marks: Arc<[v1::UserMarks]> = marks.into();
            for link in &self.interest {
                out.push(Action::Marks { link: *link, marks: Arc::clone(&marks) });
            }
        }
    }

    /// Marks that this room has lifted or told, and so answers for.
    pub(crate) fn own_marks(&self) -> Vec<(UserId, Marks)> {
        let members = self.state.iter().flat_map(|state| state.members.all());
        let own = members.filter(|member| !member.hearsay && member.marks != Marks::default());
        own.map(|member| (member.row.user.clone(), member.marks)).collect()
    }

    pub(super) fn write_marks(&mut self, out: &mut Vec<Action>) {
        self.marks.write_at_ms = None;
        let Some(state) = self.state.as_deref_mut() else { return };
        let mut group = Vec::with_capacity(self.marks.unwritten.len());
        for user in self.marks.unwritten.drain(..) {
            if let Some(member) = state.members.marks_of(user.as_str()) {
                *member.unwritten = false;
                // An earlier owner's, too, are this one's own now.
                *member.hearsay = false;
                group.push((user, *member.marks));
            }
        }
        if !group.is_empty() {
            out.push(Action::PutMarks(group));
        }
    }
}
