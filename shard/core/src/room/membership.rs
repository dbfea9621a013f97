//! Commands that change the room or who is in it: create, update, join, leave, add, remove, roles.
//!
//! Always holds: a command that is refused has changed nothing in the batch; no user changes twice at one seq; a group or broadcast that was created has one owner until its last member leaves;
//! who is told that a membership is so already is told what the next owner will find.

use std::sync::Arc;

use banyan_proto::codes::Code;
use banyan_proto::direct;
use banyan_proto::id::{LogId, Origin, RoomId, Seq, UserId};
use banyan_proto::link::{Person, RoomCall, RoomCommand};
use banyan_proto::v1::event::Kind;
use banyan_proto::v1::server_frame::Body;
use banyan_proto::v1::{self, Role, RoomKind};
use banyan_storage::{MemberRow, RoomRow};

use super::draft::{Draft, Notice};
use super::{Action, Now, Op, Room, Say, State, kind, refusal};
use crate::config::Config;
use crate::members::{Members, role, role_number, standing};
use crate::permission::{Act, Grant, Standing, judge};

/// Durable state and the means to judge a command; what it changes goes into the draft.
#[derive(Debug, Clone, Copy)]
pub(super) struct Desk<'a> {
    id: &'a RoomId,
    fresh_log: LogId,
    config: &'a Config,
    state: Option<&'a State>,
    now: Now,
}

impl Room {
    pub(super) fn desk(&self, now: Now) -> Desk<'_> {
        Desk {
            id: &self.id,
            // A log that was begun and holds nothing yet keeps its name.
            fresh_log: self.log.log_id().unwrap_or(self.fresh_log),
            config: &self.config,
            state: self.state.as_deref(),
            now,
        }
    }

    pub(super) fn judge_change(&mut self, now: Now, op: &Op, draft: &mut Draft, out: &mut Vec<Action>) {
        let said = self.desk(now).change(draft, &op.call).unwrap_or_else(|error| Say::Error(Box::new(error)));
        self.settle(draft, op, said, out);
    }

    /// The caller would become a member of a lazily made room by this subscribe (joins and sends see to it
    /// themselves).
    pub(super) fn enters_lazily(&self, user: &UserId, op: &Op) -> bool {
        self.config.lazy_public
            && matches!(op.call.command, RoomCommand::Subscribe)
            && match self.state.as_deref() {
                None => !self.id.is_direct(),
                Some(state) => {
                    state.row.lazy
                        && state.members.get(user.as_str()).is_none_or(|member| member.row.role == 0)
                }
            }
    }

    /// Tells the users' channels what a batch changed for them.
    pub(super) fn notify(&self, notices: &[Notice], changed: bool, out: &mut Vec<Action>) {
        let Some(state) = self.state.as_deref() else { return };
        let mut left = Vec::new();
        let mut tell = |user: &UserId, body: Body| {
            out.push(Action::NotifyUser { user: user.clone(), push: Arc::new(body) });
        };
        for notice in notices {
            match notice {
                Notice::Room(user) => {
                    // It may have left again within the batch.
                    if let Ok(room) = self.summary(user) {
                        tell(user, Body::Room(room));
                    }
                }
                Notice::Gone(user, at) => {
                    // Who is back needs a new cursor all the same: what stands between is not theirs.
                    left.extend(self.interest.iter().map(|link| Action::Left {
                        link: *link,
                        user: user.clone(),
                        at: *at,
                    }));
                    if self.role_of(user) == Role::None {
                        let room = self.id.as_str().to_owned();
                        tell(user, Body::RoomGone(v1::RoomGone { room, code: Code::NotAMember.number() }));
                    }
                }
            }
        }
        if changed && state.members.count() <= self.config.change_members {
            for member in state.members.present(None) {
                if let Ok(room) = self.summary(&member.row.user) {
                    tell(&member.row.user, Body::Room(room));
                }
            }
        }
        out.append(&mut left);
    }
}

impl<'a> Desk<'a> {
    /// The room as the batch leaves it so far.
    pub(super) fn row<'d>(&self, draft: &'d Draft) -> Option<&'d RoomRow>
    where
        'a: 'd,
    {
        draft.row.as_deref().or_else(|| self.state.map(|state| &state.row))
    }

    fn member<'d>(&self, draft: &'d Draft, user: &str) -> Option<&'d MemberRow>
    where
        'a: 'd,
    {
        let drafted = draft.members.iter().find(|row| row.user.as_str() == user);
        drafted.or_else(|| self.state?.members.get(user).map(|member| &member.row))
    }

    pub(super) fn is_member(&self, draft: &Draft, user: &str) -> bool {
        self.member(draft, user).is_some_and(|row| row.role != 0)
    }

    fn role(&self, draft: &Draft, user: &UserId) -> Role {
        self.member(draft, user.as_str()).map_or(Role::None, role)
    }

    pub(super) fn judge(&self, draft: &Draft, user: &UserId, act: Act) -> Result<Grant, Code> {
        let row = self.row(draft).ok_or(Code::UnknownRoom)?;
        judge(kind(row), row.public, standing(self.member(draft, user.as_str())), act)
    }

    /// Lazily made rooms take in whoever subscribes, sends or joins.
    pub(super) fn enters_lazily(&self, draft: &Draft, user: &UserId) -> bool {
        self.config.lazy_public
            && match self.row(draft) {
                None => !self.id.is_direct(),
                Some(row) => row.lazy && !self.is_member(draft, user.as_str()),
            }
    }

    fn change(&self, draft: &mut Draft, call: &RoomCall) -> Result<Say, v1::Error> {
        match &call.command {
            RoomCommand::Create { kind, name, public, members } => {
                self.create(draft, call, *kind, name, *public, members)
            }
            RoomCommand::Update { name, public } => self.update(draft, call, name.as_deref(), *public),
            RoomCommand::Join => self.join(draft, call),
            RoomCommand::Leave => self.leave(draft, call),
            RoomCommand::Add { users } => self.add_all(draft, call, users),
            RoomCommand::Remove { user } => self.remove(draft, call, user),
            RoomCommand::SetRole { user, role } => self.set_role(draft, call, user, *role),
            RoomCommand::Subscribe => {
                if self.enters_lazily(draft, &call.caller.user) {
                    self.enter(draft, &call.caller, call)?;
                }
                Ok(Say::Admit)
            }
            RoomCommand::Send(_)
            | RoomCommand::Mark { .. }
            | RoomCommand::History { .. }
            | RoomCommand::Members { .. }
            | RoomCommand::Summary => Err(Code::Internal.error("not a command that changes the room")),
        }
    }

    fn create(
        &self,
        draft: &mut Draft,
        call: &RoomCall,
        kind: RoomKind,
        name: &str,
        public: bool,
        members: &[Person],
    ) -> Result<Say, v1::Error> {
        let creator = &call.caller;
        if self.row(draft).is_some() {
            if self.is_member(draft, creator.user.as_str()) {
                return Ok(Say::Created { created: false });
            }
            return Err(Code::AlreadyExists.error("there is a room with this id"));
        }
        let direct = kind == RoomKind::Direct;
        match (kind, members) {
            (RoomKind::Unspecified, _) => return Err(Code::BadRequest.error("`kind` is missing")),
            (RoomKind::Direct, [other]) if other.user != creator.user => {
                if !name.is_empty() || public {
                    return Err(Code::BadRequest.error("a direct room has no name and is never public"));
                }
                if *self.id != direct::room_id(&creator.user, &other.user) {
                    return Err(Code::BadRequest.error("a direct room has no id of one's own"));
                }
            }
            (RoomKind::Direct, _) => {
                return Err(Code::BadRequest.error("a direct room has exactly one other member"));
            }
            (RoomKind::Group | RoomKind::Broadcast, _) if self.id.is_direct() => {
                return Err(Code::BadRequest.error("ids that begin with `dm.` belong to direct rooms"));
            }
            (RoomKind::Group | RoomKind::Broadcast, _) => {}
        }
        if members.len() as u64 + 1 > self.config.members {
            return Err(self.too_many());
        }
        self.found(draft, creator, call.origin, kind, name, public, false);
        let (founder, others) =
            if direct { (Role::Member, Role::Member) } else { (Role::Owner, entry_role(kind)) };
        let founded = draft.head;
        self.put(draft, creator, founder, founded);
        for person in members {
            if self.is_member(draft, person.user.as_str()) {
                continue;
            }
            // In a direct room `created` says it all; broadcasts only count.
            let joined = if kind == RoomKind::Group {
                let event = joined_event(person, others, Some(&creator.user));
                draft.push(self.id, self.now, creator, call.origin, None, event)
            } else {
                founded
            };
            self.put(draft, person, others, joined);
        }
        Ok(Say::Created { created: true })
    }

    /// A room made by its first use: public, without an owner, its joins only counted.
    pub(super) fn make_lazily(&self, draft: &mut Draft, who: &Person, origin: Origin) {
        self.found(draft, who, origin, RoomKind::Group, "", true, true);
        self.put(draft, who, Role::Member, draft.head);
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a new room")]
    fn found(
        &self,
        draft: &mut Draft,
        who: &Person,
        origin: Origin,
        kind: RoomKind,
        name: &str,
        public: bool,
        lazy: bool,
    ) {
        let created = v1::Created { kind: kind as i32, name: name.to_owned(), public };
        draft.push(self.id, self.now, who, origin, None, Kind::Created(created));
        draft.row = Some(Box::new(RoomRow {
            room: self.id.clone(),
            log: self.fresh_log,
            // Kinds are numbered 1 to 3.
            kind: kind as u8,
            public,
            lazy,
            name: name.to_owned(),
            created_at: draft.at,
            floor: Seq(0),
            changed: draft.head,
        }));
    }

    fn update(
        &self,
        draft: &mut Draft,
        call: &RoomCall,
        name: Option<&str>,
        public: Option<bool>,
    ) -> Result<Say, v1::Error> {
        self.judge(draft, &call.caller.user, Act::Manage).map_err(refusal)?;
        let said = done(Body::UpdateRoom);
        let Some(row) = self.row(draft) else { return Err(refusal(Code::UnknownRoom)) };
        let name = name.filter(|name| *name != row.name).map(str::to_owned);
        let public = public.filter(|public| *public != row.public);
        if name.is_none() && public.is_none() {
            return Ok(said);
        }
        let event = Kind::RoomChanged(v1::RoomChanged { name: name.clone(), public });
        let changed = draft.push(self.id, self.now, &call.caller, call.origin, None, event);
        if draft.row.is_none() {
            draft.row = self.state.map(|state| Box::new(state.row.clone()));
        }
        if let Some(row) = draft.row.as_deref_mut() {
            if let Some(name) = name {
                row.name = name;
            }
            row.public = public.unwrap_or(row.public);
            row.changed = changed;
        }
        draft.changed = true;
        Ok(said)
    }

    fn join(&self, draft: &mut Draft, call: &RoomCall) -> Result<Say, v1::Error> {
        if self.enters_lazily(draft, &call.caller.user) {
            self.enter(draft, &call.caller, call)?;
            return Ok(Say::Joined);
        }
        match self.judge(draft, &call.caller.user, Act::Join).map_err(refusal)? {
            Grant::Already => self.keep(draft, call.caller.user.as_str()),
            Grant::Yes | Grant::UpToLeft => self.add(draft, &call.caller, call.origin, &call.caller, None)?,
        }
        Ok(Say::Joined)
    }

    fn leave(&self, draft: &mut Draft, call: &RoomCall) -> Result<Say, v1::Error> {
        let user = &call.caller.user;
        let count = draft.members_now;
        if let Err(code) = self.judge(draft, user, Act::Leave { last: count <= 1 }) {
            return Err(match code {
                Code::PermissionDenied if self.role(draft, user) == Role::Owner => {
                    code.error("the owner leaves last: hand the room over first (`set_role` owner)")
                }
                Code::NotAMember => {
                    // It may be a retry of what took it out.
                    self.keep(draft, user.as_str());
                    refusal(code)
                }
                code => refusal(code),
            });
        }
        if self.joins_are_events(draft, count) || self.changed_at_head(draft, user.as_str()) {
            let event = Kind::Left(v1::Left { user: user.as_str().to_owned() });
            draft.push(self.id, self.now, &call.caller, call.origin, None, event);
        }
        self.take_out(draft, user);
        Ok(done(Body::Leave))
    }

    fn add_all(&self, draft: &mut Draft, call: &RoomCall, users: &[Person]) -> Result<Say, v1::Error> {
        self.judge(draft, &call.caller.user, Act::Manage).map_err(refusal)?;
        let mut new: Vec<&Person> = Vec::with_capacity(users.len());
        for person in users {
            let known = self.is_member(draft, person.user.as_str());
            if !known && !new.iter().any(|other| other.user == person.user) {
                new.push(person);
            }
        }
        self.check_room_for(draft, new.iter().map(|person| person.user.as_str()))?;
        for person in users {
            if self.is_member(draft, person.user.as_str()) {
                self.keep(draft, person.user.as_str());
            } else {
                self.add(draft, &call.caller, call.origin, person, Some(&call.caller.user))?;
            }
        }
        Ok(done(Body::AddMembers))
    }

    fn remove(&self, draft: &mut Draft, call: &RoomCall, user: &UserId) -> Result<Say, v1::Error> {
        let said = done(Body::RemoveMember);
        let target = self.role(draft, user);
        self.judge(draft, &call.caller.user, Act::Remove { target }).map_err(refusal)?;
        if target == Role::None {
            return match self.member(draft, user.as_str()) {
                // Gone already: a retry.
                Some(_) => {
                    self.keep(draft, user.as_str());
                    Ok(said)
                }
                None => Err(not_there(user)),
            };
        }
        let removed =
            v1::Removed { user: user.as_str().to_owned(), by: call.caller.user.as_str().to_owned() };
        draft.push(self.id, self.now, &call.caller, call.origin, None, Kind::Removed(removed));
        self.take_out(draft, user);
        Ok(said)
    }

    fn set_role(
        &self,
        draft: &mut Draft,
        call: &RoomCall,
        user: &UserId,
        to: Role,
    ) -> Result<Say, v1::Error> {
        let said = done(Body::SetRole);
        if to == Role::None {
            return Err(Code::BadRequest.error("`role` must be reader, member, admin or owner"));
        }
        let caller = &call.caller.user;
        let target = self.role(draft, user);
        // What is so already needs no permission beyond that of managing: a retry of a hand-over comes from an admin.
        self.judge(draft, caller, Act::Manage).map_err(refusal)?;
        if target == to {
            self.keep(draft, user.as_str());
            return Ok(said);
        }
        self.judge(draft, caller, Act::SetRole { target, to }).map_err(refusal)?;
        if target == Role::None {
            return Err(not_there(user));
        }
        self.put_role(draft, call, user, to);
        if to == Role::Owner {
            self.put_role(draft, call, caller, Role::Admin);
        }
        Ok(said)
    }

    fn put_role(&self, draft: &mut Draft, call: &RoomCall, user: &UserId, to: Role) {
        let Some(mut row) = self.member(draft, user.as_str()).cloned() else { return };
        row.role = role_number(to);
        let event = Kind::RoleChanged(v1::RoleChanged {
            user: user.as_str().to_owned(),
            role: to as i32,
            by: call.caller.user.as_str().to_owned(),
        });
        draft.push(self.id, self.now, &call.caller, call.origin, None, event);
        draft.put_member(row);
        draft.notices.push(Notice::Room(user.clone()));
    }

    /// Makes `person` a member: by an event while the room is small, else only counted.
    pub(super) fn add(
        &self,
        draft: &mut Draft,
        actor: &Person,
        origin: Origin,
        person: &Person,
        by: Option<&UserId>,
    ) -> Result<(), v1::Error> {
        self.check_room_for(draft, std::iter::once(person.user.as_str()))?;
        let Some(row) = self.row(draft) else { return Err(refusal(Code::UnknownRoom)) };
        let role = entry_role(kind(row));
        let as_event = self.joins_are_events(draft, draft.members_now + 1)
            || self.changed_at_head(draft, person.user.as_str());
        let joined = if as_event {
            draft.push(self.id, self.now, actor, origin, None, joined_event(person, role, by))
        } else {
            // The first event that it is a member for.
            draft.head.next()
        };
        self.put(draft, person, role, joined);
        Ok(())
    }

    /// What is so already is said when a quorum has it: a row that was only read is written once more, as it is. That
    /// may come late or twice, for its timestamp stays.
    fn keep(&self, draft: &mut Draft, user: &str) {
        let member = self.state.and_then(|state| state.members.get(user));
        if let Some(member) = member.filter(|member| member.may_be_lost()) {
            draft.keep_member(&member.row);
        }
    }

    /// Two changes of one user at one head would have no order in the store: the second one is made an event.
    fn changed_at_head(&self, draft: &Draft, user: &str) -> bool {
        self.member(draft, user).is_some_and(|row| row.changed == draft.head)
    }

    /// Whether joins and leaves of a room with so many members are events.
    fn joins_are_events(&self, draft: &Draft, members: u64) -> bool {
        self.row(draft).is_some_and(|row| {
            !row.lazy && kind(row) != RoomKind::Broadcast && members <= self.config.join_events_members
        })
    }

    fn check_room_for<'u>(
        &self,
        draft: &Draft,
        users: impl Iterator<Item = &'u str>,
    ) -> Result<(), v1::Error> {
        let (mut members, mut rows) = (0, 0);
        for user in users {
            members += 1;
            rows += usize::from(self.member(draft, user).is_none());
        }
        let count = draft.members_now;
        let stored = self.state.map(|state| &state.members);
        let is_new = |row: &&MemberRow| stored.is_none_or(|members| members.get(row.user.as_str()).is_none());
        let known = stored.map_or(0, Members::rows) + draft.members.iter().filter(is_new).count();
        if count + members > self.config.members || (rows > 0 && known + rows > self.config.member_rows) {
            return Err(self.too_many());
        }
        Ok(())
    }

    fn too_many(&self) -> v1::Error {
        Code::LimitExceeded.error(format!("a room has at most {} members", self.config.members))
    }

    /// Puts a new or returning member in place and counts it.
    fn put(&self, draft: &mut Draft, person: &Person, role: Role, joined: Seq) {
        let mut row = self.member(draft, person.user.as_str()).cloned().unwrap_or_else(|| MemberRow {
            user: person.user.clone(),
            name: String::new(),
            role: 0,
            joined_seq: joined,
            left_seq: None,
            out: Vec::new(),
            changed: draft.head,
        });
        person.name.as_ref().clone_into(&mut row.name);
        row.role = role_number(role);
        row.joined_seq = joined;
        if let Some(left) = row.left_seq.take() {
            row.push_out(left, joined);
        }
        draft.put_member(row);
        draft.members_now += 1;
        draft.notices.push(Notice::Room(person.user.clone()));
    }

    /// Ends a membership at the batch's head.
    fn take_out(&self, draft: &mut Draft, user: &UserId) {
        let Some(mut row) = self.member(draft, user.as_str()).cloned() else { return };
        row.role = 0;
        row.left_seq = Some(draft.head);
        draft.put_member(row);
        draft.members_now = draft.members_now.saturating_sub(1);
        draft.notices.push(Notice::Gone(user.clone(), draft.head));
    }
}

/// The role of who joins or is added.
fn entry_role(kind: RoomKind) -> Role {
    if kind == RoomKind::Broadcast { Role::Reader } else { Role::Member }
}

fn joined_event(person: &Person, role: Role, by: Option<&UserId>) -> Kind {
    Kind::Joined(v1::Joined {
        user: person.user.as_str().to_owned(),
        name: person.name.as_ref().to_owned(),
        role: role as i32,
        by: by.map(|user| user.as_str().to_owned()),
    })
}

/// The reply to a command that has nothing to tell.
fn done(body: fn(v1::Empty) -> Body) -> Say {
    Say::Body(Box::new(body(v1::Empty {})))
}

fn not_there(user: &UserId) -> v1::Error {
    Code::UnknownUser.error(format!("{user} is not a member of this room"))
}

/// How a user stands to the room, from durable state.
impl Room {
    pub(super) fn role_of(&self, user: &UserId) -> Role {
        let member = self.state.as_deref().and_then(|state| state.members.get(user.as_str()));
        member.map_or(Role::None, |member| role(&member.row))
    }

    pub(super) fn may(&self, user: &UserId, act: Act) -> Result<Grant, v1::Error> {
        let state = self.state.as_deref().ok_or_else(|| refusal(Code::UnknownRoom))?;
        let standing: Standing = standing(state.members.get(user.as_str()).map(|member| &member.row));
        judge(state.kind(), state.row.public, standing, act).map_err(refusal)
    }
}
