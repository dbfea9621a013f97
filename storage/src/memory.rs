//! A store without a disk, for tests: the same traits over ordered maps, and faults on request.
//!
//! Stricter than the others: a second content for one name (a segment; a segment's seq) is a bug of the room's owner and panics
//! with the room's name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use banyan_proto::id::{Bucket, Epoch, Incarnation, RoomId, SegmentId, Seq, SlotId, UnixMs, UserId};
use tokio::sync::mpsc;

use crate::accounts::{Accounts, Creation, LoginRow, SWEEP_MAX, TEXT_MAX, UserRow};
use crate::log_store::{
    Answered, LogStore, RoomWrite, SEGMENTS_MAX, Said, SegmentRecord, SlotOwner, Span, Write,
};
use crate::outcome::{Completion, NotDone, Outcome};
use crate::page::{MemberPage, PAGE_MAX, Page, READ_MAX, Range, ReadLimit, RoomPage};
use crate::row::{Derived, Marks, MemberRow, RoomRow, Row};
use crate::{BoxFuture, Error};

/// What goes wrong with a write to a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    NotDone(NotDone),
    /// Answered as unknown; it is there.
    UnknownApplied,
    /// Answered as unknown; it is not there and never will be.
    UnknownLost,
    /// Answered as unknown; it comes at [`Faults::apply_late`].
    UnknownLate,
}

#[derive(Debug, Default)]
struct Room {
    row: Option<RoomRow>,
    segments: BTreeMap<SegmentId, SegmentRecord>,
    rows: BTreeMap<(Bucket, SegmentId, Seq), Row>,
    said: Option<Said>,
    members: BTreeMap<UserId, MemberRow>,
    marks: BTreeMap<UserId, Marks>,
}

#[derive(Debug, Default)]
struct State {
    rooms: BTreeMap<RoomId, Room>,
    user_rooms: BTreeMap<UserId, BTreeSet<RoomId>>,
    users: BTreeMap<UserId, UserRow>,
    usernames: BTreeMap<String, UserId>,
    skeletons: BTreeMap<String, UserId>,
    logins: BTreeMap<String, LoginRow>,
    fences: BTreeSet<Incarnation>,
    incarnations: BTreeMap<Incarnation, String>,
    /// The value: closed.
    slot_owners: BTreeMap<SlotId, BTreeMap<(Epoch, Incarnation), bool>>,
    faults: VecDeque<Fault>,
    /// Writes to rooms wait for [`Faults::step`].
    holding: bool,
    held: VecDeque<(RoomWrite, mpsc::Sender<Vec<Completion>>)>,
    late: Vec<RoomWrite>,
    read_error: Option<Error>,
    write_error: Option<Error>,
    fence_read_error: Option<Error>,
    fence_reads_later: bool,
    owner_write_error: Option<OwnerWriteError>,
}

/// Of fences, incarnations and slot owners.
#[derive(Debug, Clone)]
struct OwnerWriteError {
    error: Error,
    /// It is written all the same.
    applied: bool,
}

/// See the module's text. Clones are the same store.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<State>>);

/// Makes the store fail or wait. Clones steer the same store.
#[derive(Debug, Clone)]
pub struct Faults(Arc<Mutex<State>>);

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn faults(&self) -> Faults {
        Faults(Arc::clone(&self.0))
    }

    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&State) -> T,
    ) -> BoxFuture<'static, Result<T, Error>> {
        let state = lock(&self.0);
        let result = state.read_error.clone().map_or_else(|| Ok(question(&state)), Err);
        Box::pin(std::future::ready(result))
    }

    fn write_account<T: Send + 'static>(
        &self,
        write: impl FnOnce(&mut State) -> Result<T, Error>,
    ) -> BoxFuture<'static, Result<T, Error>> {
        let mut state = lock(&self.0);
        let result = match state.write_error.clone() {
            Some(error) => Err(error),
            None => write(&mut state),
        };
        Box::pin(std::future::ready(result))
    }

    fn write_owners(&self, write: impl FnOnce(&mut State)) -> BoxFuture<'static, Result<(), Error>> {
        let mut state = lock(&self.0);
        let fault = state.owner_write_error.clone();
        if fault.as_ref().is_none_or(|fault| fault.applied) {
            write(&mut state);
        }
        Box::pin(std::future::ready(fault.map_or(Ok(()), |fault| Err(fault.error))))
    }
}

impl Faults {
    /// The next write to a room that is carried out meets this; several queue up.
    pub fn fail_next(&self, fault: Fault) {
        lock(&self.0).faults.push_back(fault);
    }

    /// From now on writes to rooms wait: nothing of them is stored or answered before [`Faults::step`].
    pub fn hold(&self) {
        lock(&self.0).holding = true;
    }

    /// How many of them wait.
    pub fn held(&self) -> usize {
        lock(&self.0).held.len()
    }

    /// Carries out the one that has waited longest. False: none waits.
    pub fn step(&self) -> bool {
        self.step_at(0)
    }

    /// Carries out the one before which `waiting` others came: writes of one room may overtake each other. False: there is none.
    pub fn step_at(&self, waiting: usize) -> bool {
        let mut state = lock(&self.0);
        let Some((write, done)) = state.held.remove(waiting) else { return false };
        let completion = carry_out(&mut state, write);
        drop(state);
        send(&done, vec![completion]);
        true
    }

    /// Carries out all that waits and holds no longer.
    pub fn release(&self) {
        lock(&self.0).holding = false;
        while self.step() {}
    }

    /// Stores what [`Fault::UnknownLate`] held back. Returns how many that were.
    pub fn apply_late(&self) -> usize {
        let mut state = lock(&self.0);
        let late = std::mem::take(&mut state.late);
        late.iter().for_each(|write| apply(&mut state, write));
        late.len()
    }

    /// Every read answers so, until `None`.
    pub fn fail_reads(&self, error: Option<Error>) {
        lock(&self.0).read_error = error;
    }

    /// Every question whether somebody is fenced answers so, until `None`. (Others: [`Self::fail_reads`].)
    pub fn fail_fence_reads(&self, error: Option<Error>) {
        lock(&self.0).fence_read_error = error;
    }

    /// Such questions are answered by a future, as a store across a network would.
    pub fn answer_fence_reads_later(&self, later: bool) {
        lock(&self.0).fence_reads_later = later;
    }

    /// Every write of a fence, an incarnation or a slot's owner answers so, until `None`; `applied`: it is written all the same.
    pub fn fail_owner_writes(&self, error: Option<Error>, applied: bool) {
        lock(&self.0).owner_write_error = error.map(|error| OwnerWriteError { error, applied });
    }

    /// Every account write answers so, and does nothing, until `None`.
    pub fn fail_account_writes(&self, error: Option<Error>) {
        lock(&self.0).write_error = error;
    }
}

fn carry_out(state: &mut State, write: RoomWrite) -> Completion {
    let ticket = write.ticket;
    let outcome = if write.is_too_large() {
        Outcome::NotDone(NotDone::TooLarge)
    } else {
        match state.faults.pop_front() {
            Some(Fault::NotDone(why)) => Outcome::NotDone(why),
            Some(Fault::UnknownLost) => Outcome::Unknown,
            Some(Fault::UnknownLate) => {
                state.late.push(write);
                Outcome::Unknown
            }
            fault @ (Some(Fault::UnknownApplied) | None) => {
                apply(state, &write);
                if fault.is_some() { Outcome::Unknown } else { Outcome::Done }
            }
        }
    };
    Completion { ticket, outcome }
}

fn apply(state: &mut State, RoomWrite { room: name, write, .. }: &RoomWrite) {
    let room = state.rooms.entry(name.clone()).or_default();
    match write {
        Write::Record(record) => {
            let stored = room.segments.entry(record.id).or_insert_with(|| (**record).clone());
            assert!(*stored == **record, "{name}: a second content for the record of {:?}", record.id);
        }
        Write::Rows { segment, bucket, rows } => {
            let known = room.segments.get(segment).is_none_or(|record| record.bucket == *bucket);
            assert!(known, "{name}: rows of {segment:?} in a bucket that its record does not name");
            for row in rows.iter() {
                let stored = room.rows.entry((*bucket, *segment, row.seq)).or_insert_with(|| row.clone());
                assert!(stored == row, "{name}: a second content for seq {} of {segment:?}", row.seq);
            }
        }
        Write::Derived(derived) => {
            let Derived { room: row, members } = &**derived;
            if let Some(row) = row
                && room.row.as_ref().is_none_or(|stored| stored.changed <= row.changed)
            {
                room.row = Some(row.clone());
            }
            for member in members {
                if room.members.get(&member.user).is_none_or(|stored| stored.changed <= member.changed) {
                    room.members.insert(member.user.clone(), member.clone());
                    note_user_room(&mut state.user_rooms, name, member);
                }
            }
        }
        Write::Said(said) => room.said = Some(*said),
    }
}

fn note_user_room(user_rooms: &mut BTreeMap<UserId, BTreeSet<RoomId>>, room: &RoomId, member: &MemberRow) {
    let rooms = user_rooms.entry(member.user.clone()).or_default();
    if member.role == 0 {
        rooms.remove(room);
    } else {
        rooms.insert(room.clone());
    }
}

/// Never blocks the caller, never loses a completion: a full sink is served by a thread.
fn send(done: &mpsc::Sender<Vec<Completion>>, completions: Vec<Completion>) {
    match done.try_send(completions) {
        Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
        Err(mpsc::error::TrySendError::Full(completions)) => {
            let done = done.clone();
            // A closed sink needs no completions.
            std::thread::spawn(move || drop(done.blocking_send(completions)));
        }
    }
}

impl Room {
    fn member(&self, user: &UserId) -> Option<(MemberRow, Marks)> {
        let row = self.members.get(user)?.clone();
        Some((row, self.marks.get(user).copied().unwrap_or_default()))
    }

    fn members(&self, after: Option<&UserId>, limit: usize) -> (Vec<(MemberRow, Marks)>, bool) {
        let mut users = self.members.keys().filter(|user| after.is_none_or(|after| *user > after));
        let page = users.by_ref().take(limit).filter_map(|user| self.member(user)).collect();
        (page, users.next().is_some())
    }

    fn rows(&self, spans: &[Span], range: Range, limit: ReadLimit) -> Page {
        let of = |span: &Span| {
            let key = |seq| (span.bucket, span.segment, seq);
            let whole = (span.first <= span.last).then(|| self.rows.range(key(span.first)..=key(span.last)));
            whole.into_iter().flatten().map(|(_, row)| row)
        };
        page(spans.iter().flat_map(of), range, limit)
    }
}

/// Of rows that ascend, the part that is asked for.
fn page<'a>(all: impl DoubleEndedIterator<Item = &'a Row>, range: Range, limit: ReadLimit) -> Page {
    let (events, bytes) = (limit.events.min(READ_MAX.events), limit.bytes.min(READ_MAX.bytes));
    let (mut rows, mut more, mut taken) = (Vec::new(), false, 0);
    let mut take = |row: &Row| {
        if rows.len() == events || (!rows.is_empty() && taken + row.event.len() > bytes) {
            more = true;
            return false;
        }
        taken += row.event.len();
        rows.push(row.clone());
        true
    };
    if events > 0 {
        match range {
            Range::After { after, through } => {
                let _all = all.filter(|r| r.seq > after && r.seq <= through).all(&mut take);
            }
            Range::Before { before, above } => {
                let _all = all.rev().filter(|r| r.seq < before && r.seq > above).all(&mut take);
                rows.reverse();
            }
        }
    }
    Page { rows, more }
}

/// Callers make spans from a chain of segments; wrong ones are a bug of ours.
fn assert_ascending(room: &RoomId, spans: &[Span]) {
    for pair in spans.windows(2) {
        assert!(
            pair[0].last < pair[1].first && pair[0].segment < pair[1].segment,
            "{room}: spans overlap or do not ascend: {pair:?}"
        );
    }
}

impl LogStore for Memory {
    fn write(&self, group: Vec<RoomWrite>, done: &mpsc::Sender<Vec<Completion>>) {
        group.iter().for_each(RoomWrite::assert_sound);
        let mut state = lock(&self.0);
        if state.holding {
            state.held.extend(group.into_iter().map(|write| (write, done.clone())));
            return;
        }
        let completions = group.into_iter().map(|write| carry_out(&mut state, write)).collect::<Vec<_>>();
        drop(state);
        if !completions.is_empty() {
            send(done, completions);
        }
    }

    fn segments(&self, room: RoomId) -> BoxFuture<'static, Result<Vec<SegmentRecord>, Error>> {
        self.ask(|state| match state.rooms.get(&room) {
            Some(room) => room.segments.values().take(SEGMENTS_MAX + 1).cloned().collect(),
            None => Vec::new(),
        })
    }

    fn said(&self, room: RoomId) -> BoxFuture<'static, Result<Option<Said>, Error>> {
        self.ask(|state| state.rooms.get(&room)?.said)
    }

    fn rows(
        &self,
        room: RoomId,
        spans: Vec<Span>,
        range: Range,
        limit: ReadLimit,
    ) -> BoxFuture<'static, Result<Page, Error>> {
        assert_ascending(&room, &spans);
        self.ask(|state| match state.rooms.get(&room) {
            Some(room) => room.rows(&spans, range, limit),
            None => Page { rows: Vec::new(), more: false },
        })
    }

    fn room_row(&self, room: RoomId) -> BoxFuture<'static, Result<Option<RoomRow>, Error>> {
        self.ask(|state| state.rooms.get(&room)?.row.clone())
    }

    fn member(
        &self,
        room: RoomId,
        user: UserId,
    ) -> BoxFuture<'static, Result<Option<(MemberRow, Marks)>, Error>> {
        self.ask(|state| state.rooms.get(&room)?.member(&user))
    }

    fn members(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<MemberPage, Error>> {
        self.ask(|state| {
            let limit = limit.min(PAGE_MAX);
            state.rooms.get(&room).map(|room| room.members(after.as_ref(), limit)).unwrap_or_default()
        })
    }

    fn user_rooms(
        &self,
        user: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<RoomPage, Error>> {
        self.ask(|state| {
            let Some(rooms) = state.user_rooms.get(&user) else { return (Vec::new(), false) };
            let mut rooms = rooms.iter().filter(|room| after.as_ref().is_none_or(|after| *room > after));
            let page = rooms.by_ref().take(limit.min(PAGE_MAX)).cloned().collect();
            (page, rooms.next().is_some())
        })
    }

    fn put_marks(&self, group: Vec<(RoomId, UserId, Marks)>) {
        let mut state = lock(&self.0);
        for (room, user, marks) in group {
            let stored = state.rooms.entry(room).or_default().marks.entry(user).or_default();
            *stored = stored.max(marks);
        }
    }

    fn write_fence(&self, incarnation: Incarnation) -> BoxFuture<'static, Result<(), Error>> {
        self.write_owners(|state| {
            state.fences.insert(incarnation);
        })
    }

    fn is_fenced(&self, incarnation: Incarnation) -> Answered<Result<bool, Error>> {
        let state = lock(&self.0);
        let result =
            state.fence_read_error.clone().map_or_else(|| Ok(state.fences.contains(&incarnation)), Err);
        if state.fence_reads_later {
            Answered::Later(Box::pin(std::future::ready(result)))
        } else {
            Answered::Now(result)
        }
    }

    fn register_incarnation(
        &self,
        incarnation: Incarnation,
        node: String,
    ) -> BoxFuture<'static, Result<(), Error>> {
        if let Err(error) = check_texts(&[Some(&node)]) {
            return Box::pin(std::future::ready(Err(error)));
        }
        self.write_owners(|state| {
            state.incarnations.insert(incarnation, node);
        })
    }

    fn incarnations(&self) -> BoxFuture<'static, Result<Vec<(Incarnation, String)>, Error>> {
        self.ask(|state| state.incarnations.iter().map(|(id, node)| (*id, node.clone())).collect())
    }

    fn put_slot_owner(
        &self,
        slot: SlotId,
        owner: SlotOwner,
        closes: Option<(Epoch, Incarnation)>,
    ) -> BoxFuture<'static, Result<(), Error>> {
        self.write_owners(|state| {
            let owners = state.slot_owners.entry(slot).or_default();
            *owners.entry((owner.epoch, owner.incarnation)).or_default() |= owner.closed;
            if let Some(replaced) = closes {
                owners.insert(replaced, true);
            }
        })
    }

    fn slot_owners(&self, slot: SlotId) -> BoxFuture<'static, Result<Vec<SlotOwner>, Error>> {
        self.ask(|state| {
            let owners = state.slot_owners.get(&slot).into_iter().flatten();
            owners.map(|(&(epoch, incarnation), &closed)| SlotOwner { epoch, incarnation, closed }).collect()
        })
    }
}

fn check_texts(texts: &[Option<&String>]) -> Result<(), Error> {
    let long = texts.iter().flatten().any(|text| text.len() > TEXT_MAX);
    if long { Err(Error::Refused("a text is too long")) } else { Ok(()) }
}

impl Accounts for Memory {
    fn create_user(&self, row: UserRow) -> BoxFuture<'static, Result<Creation, Error>> {
        self.write_account(|state| {
            check_texts(&row.texts())?;
            if let Some(stored) = state.users.get(&row.user) {
                return Ok(if *stored == row { Creation::Created } else { Creation::IdTaken });
            }
            let taken = |name: &Option<String>, names: &BTreeMap<String, UserId>| {
                name.as_ref().is_some_and(|name| names.contains_key(name))
            };
            if taken(&row.username, &state.usernames) || taken(&row.skeleton, &state.skeletons) {
                return Ok(Creation::UsernameTaken);
            }
            state.usernames.extend(row.username.clone().map(|name| (name, row.user.clone())));
            state.skeletons.extend(row.skeleton.clone().map(|name| (name, row.user.clone())));
            state.users.insert(row.user.clone(), row);
            Ok(Creation::Created)
        })
    }

    fn user_by_username(&self, username: &str) -> BoxFuture<'static, Result<Option<UserRow>, Error>> {
        self.ask(|state| state.users.get(state.usernames.get(username)?).cloned())
    }

    fn user(&self, user: &UserId) -> BoxFuture<'static, Result<Option<UserRow>, Error>> {
        self.ask(|state| state.users.get(user).cloned())
    }

    fn put_user(&self, mut row: UserRow) -> BoxFuture<'static, Result<(), Error>> {
        self.write_account(|state| {
            check_texts(&row.texts())?;
            match state.users.get(&row.user) {
                Some(stored) => {
                    row.username.clone_from(&stored.username);
                    row.skeleton.clone_from(&stored.skeleton);
                    row.created_at = stored.created_at;
                }
                None if row.username.is_some() || row.skeleton.is_some() => {
                    return Err(Error::Refused("a new user with a username is made by create_user"));
                }
                None => {}
            }
            state.users.insert(row.user.clone(), row);
            Ok(())
        })
    }

    fn put_login(&self, row: LoginRow) -> BoxFuture<'static, Result<(), Error>> {
        self.write_account(|state| {
            check_texts(&[Some(&row.login)])?;
            state.logins.insert(row.login.clone(), row);
            Ok(())
        })
    }

    fn login(&self, login: &str) -> BoxFuture<'static, Result<Option<LoginRow>, Error>> {
        self.ask(|state| state.logins.get(login).cloned())
    }

    fn end_login(&self, login: &str) -> BoxFuture<'static, Result<(), Error>> {
        self.write_account(|state| {
            state.logins.remove(login);
            Ok(())
        })
    }

    fn end_all_logins(&self, user: &UserId) -> BoxFuture<'static, Result<(), Error>> {
        self.write_account(|state| {
            state.logins.retain(|_, login| login.user != *user);
            Ok(())
        })
    }

    fn sweep_logins(&self, now: UnixMs) -> BoxFuture<'static, Result<usize, Error>> {
        self.write_account(|state| {
            let expired = state.logins.values().filter(|login| login.expires_at <= now).take(SWEEP_MAX);
            let expired: Vec<_> = expired.map(|login| login.login.clone()).collect();
            for login in &expired {
                state.logins.remove(login);
            }
            Ok(expired.len())
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::contract::log::{derived, record, rows, segment, span, write, write_all};
    use crate::contract::{member, room, user, wait};

    fn one(memory: &Memory, write: Write) -> Outcome {
        write_all(memory, vec![RoomWrite { ticket: 1, room: room("r"), write }])[0]
    }

    fn count(memory: &Memory) -> usize {
        let spans = vec![span(segment(1, 0), 0, 1, u64::MAX)];
        let all = ReadLimit { events: 100, bytes: 1 << 20 };
        wait(LogStore::rows(memory, room("r"), spans, Range::after(Seq(0)), all)).unwrap().rows.len()
    }

    #[test]
    fn faults_meet_every_kind_of_write() {
        let memory = Memory::new();
        let faults = memory.faults();
        let batch = |from, to| rows(&room("r"), segment(1, 0), 0, from, to);
        faults.fail_next(Fault::NotDone(NotDone::Full));
        assert_eq!(one(&memory, batch(1, 2)), Outcome::NotDone(NotDone::Full));
        faults.fail_next(Fault::UnknownLost);
        assert_eq!((one(&memory, batch(1, 2)), count(&memory)), (Outcome::Unknown, 0));
        faults.fail_next(Fault::UnknownApplied);
        assert_eq!((one(&memory, batch(1, 2)), count(&memory)), (Outcome::Unknown, 2));
        assert_eq!((one(&memory, batch(1, 2)), count(&memory)), (Outcome::Done, 2));
        // Late ones come whatever happened meanwhile: their names are theirs alone.
        let said = Said { segment: segment(1, 0), head: Seq(2), n: 1 };
        let late = [
            Write::Record(record(segment(1, 0), 0, 1, None)),
            batch(3, 4),
            derived(None, vec![member("u", 1, 1)]),
            Write::Said(said),
        ];
        for write in late.clone() {
            faults.fail_next(Fault::UnknownLate);
            assert_eq!(one(&memory, write), Outcome::Unknown);
        }
        assert_eq!(one(&memory, batch(5, 6)), Outcome::Done);
        assert_eq!(count(&memory), 4);
        assert_eq!(wait(memory.segments(room("r"))).unwrap(), []);
        assert_eq!(
            one(&memory, late[1].clone()),
            Outcome::Done,
            "and again after it was written by another try"
        );
        assert_eq!(faults.apply_late(), 4);
        assert_eq!(count(&memory), 6);
        assert_eq!(wait(memory.segments(room("r"))).unwrap().len(), 1);
        assert!(wait(LogStore::member(&memory, room("r"), user("u"))).unwrap().is_some());
        assert_eq!(wait(memory.said(room("r"))), Ok(Some(said)));
        assert_eq!(faults.apply_late(), 0);
    }

    #[test]
    fn held_writes_may_overtake_each_other() {
        let memory = Memory::new();
        let (done, mut completions) = mpsc::channel(4);
        memory.faults().hold();
        let group = [(1, 1), (2, 2), (3, 3)].map(|(ticket, seq)| RoomWrite {
            ticket,
            room: room("r"),
            write: rows(&room("r"), segment(1, 0), 0, seq, seq),
        });
        memory.write(group.into(), &done);
        assert_eq!((memory.faults().held(), count(&memory)), (3, 0));
        assert!(memory.faults().step_at(1));
        assert_eq!((completions.try_recv().unwrap()[0].ticket, count(&memory)), (2, 1));
        assert!(!memory.faults().step_at(2));
        memory.faults().release();
        assert_eq!(completions.try_recv().unwrap()[0].ticket, 1);
        assert_eq!((completions.try_recv().unwrap()[0].ticket, count(&memory)), (3, 3));
    }

    #[test]
    fn fences_and_owners_fail_as_asked() {
        let memory = Memory::new();
        let (faults, incarnation) = (memory.faults(), Incarnation(1));
        let fenced = || wait(memory.is_fenced(incarnation).get());
        faults.fail_owner_writes(Some(Error::Unknown), false);
        assert_eq!((wait(memory.write_fence(incarnation)), fenced()), (Err(Error::Unknown), Ok(false)));
        faults.fail_owner_writes(Some(Error::Unknown), true);
        assert_eq!((wait(memory.write_fence(incarnation)), fenced()), (Err(Error::Unknown), Ok(true)));
        faults.fail_owner_writes(None, false);
        assert!(matches!(memory.is_fenced(incarnation), Answered::Now(Ok(true))));
        faults.answer_fence_reads_later(true);
        assert!(matches!(memory.is_fenced(incarnation), Answered::Later(_)));
        faults.fail_fence_reads(Some(Error::Closed));
        assert_eq!(fenced(), Err(Error::Closed));
        faults.fail_fence_reads(None);
        assert_eq!(fenced(), Ok(true));
    }

    #[test]
    #[should_panic(expected = "a second content for seq 2 of")]
    fn a_second_content_of_a_row_is_a_bug() {
        let memory = Memory::new();
        write(&memory, &room("r"), vec![rows(&room("r"), segment(1, 0), 0, 1, 2)]);
        let mut other = rows(&room("r"), segment(1, 0), 0, 1, 2);
        if let Write::Rows { rows, .. } = &mut other {
            Arc::make_mut(rows)[1].event = Bytes::from_static(b"other");
        }
        write(&memory, &room("r"), vec![other]);
    }

    #[test]
    #[should_panic(expected = "a second content for the record of")]
    fn a_second_content_of_a_record_is_a_bug() {
        let memory = Memory::new();
        write(&memory, &room("r"), vec![Write::Record(record(segment(1, 0), 0, 1, None))]);
        write(&memory, &room("r"), vec![Write::Record(record(segment(1, 0), 0, 2, None))]);
    }

    #[test]
    #[should_panic(expected = "in a bucket that its record does not name")]
    fn rows_in_a_foreign_bucket_are_a_bug() {
        let memory = Memory::new();
        write(&memory, &room("r"), vec![Write::Record(record(segment(1, 0), 1, 1, None))]);
        write(&memory, &room("r"), vec![rows(&room("r"), segment(1, 0), 2, 1, 1)]);
    }

    #[test]
    #[should_panic(expected = "are not dense")]
    fn a_batch_with_a_hole_is_a_bug() {
        let memory = Memory::new();
        let mut batch = rows(&room("r"), segment(1, 0), 0, 1, 3);
        if let Write::Rows { rows, .. } = &mut batch {
            *rows = [rows[0].clone(), rows[2].clone()].into();
        }
        write(&memory, &room("r"), vec![batch]);
    }

    #[test]
    #[should_panic(expected = "spans overlap")]
    fn overlapping_spans_are_a_bug() {
        let spans = vec![span(segment(1, 0), 0, 1, 5), span(segment(1, 1), 0, 5, 9)];
        let limit = ReadLimit { events: 1, bytes: 1 };
        drop(LogStore::rows(&Memory::new(), room("r"), spans, Range::after(Seq(0)), limit));
    }
}
