//! A store without a disk, for tests: the same traits over ordered maps, and faults on request.
//!
//! Stricter than the others: an append that leaves a hole in a room's log, or gives a seq a second content, is a bug of
//! the room's owner and panics with the room's name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use banyan_proto::id::{RoomId, Seq, UnixMs, UserId};
use tokio::sync::mpsc;

use crate::accounts::{Accounts, Creation, LoginRow, SWEEP_MAX, TEXT_MAX, UserRow};
use crate::room_log::{
    APPEND_BYTES_MAX, APPEND_ROWS_MAX, Append, Completion, LoadedRoom, MEMBERS_LOADED_MAX, Marks, MemberPage,
    MemberRow, NotDone, Outcome, PAGE_MAX, Page, READ_MAX, Range, ReadLimit, RoomLog, RoomPage, RoomRow, Row,
    TAIL, assert_dense,
};
use crate::{BoxFuture, Error};

/// What goes wrong with an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    NotDone(NotDone),
    /// Answered as unknown; it is there.
    UnknownApplied,
    /// Answered as unknown; it is not there and never will be.
    UnknownLost,
    /// Answered as unknown; it comes at [`Faults::apply_late`], unless the room has gone on by then.
    UnknownLate,
}

#[derive(Debug, Default)]
struct Room {
    row: Option<RoomRow>,
    rows: BTreeMap<Seq, Row>,
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
    faults: VecDeque<Fault>,
    /// Appends wait for [`Faults::step`].
    holding: bool,
    held: VecDeque<(Append, mpsc::Sender<Vec<Completion>>)>,
    late: Vec<Append>,
    read_error: Option<Error>,
    write_error: Option<Error>,
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

    /// Every row of a room, for checkers.
    pub fn rows(&self, room: &RoomId) -> Vec<Row> {
        lock(&self.0).rooms.get(room).map(|room| room.rows.values().cloned().collect()).unwrap_or_default()
    }

    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&State) -> T,
    ) -> BoxFuture<'static, Result<T, Error>> {
        let state = lock(&self.0);
        let result = state.read_error.clone().map_or_else(|| Ok(question(&state)), Err);
        Box::pin(std::future::ready(result))
    }

    fn write<T: Send + 'static>(
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
}

impl Faults {
    /// The next append that is carried out meets this; several queue up.
    pub fn fail_next(&self, fault: Fault) {
        lock(&self.0).faults.push_back(fault);
    }

    /// From now on appends wait: nothing of them is stored or answered before [`Faults::step`].
    pub fn hold(&self) {
        lock(&self.0).holding = true;
    }

    /// How many appends wait.
    pub fn held(&self) -> usize {
        lock(&self.0).held.len()
    }

    /// Carries out the append that has waited longest. False: none waits.
    pub fn step(&self) -> bool {
        let mut state = lock(&self.0);
        let Some((append, done)) = state.held.pop_front() else { return false };
        let completion = carry_out(&mut state, append);
        drop(state);
        send(&done, vec![completion]);
        true
    }

    /// Carries out all that waits and holds no longer.
    pub fn release(&self) {
        lock(&self.0).holding = false;
        while self.step() {}
    }

    /// Stores what [`Fault::UnknownLate`] held back, as far as it still fits behind its room's head. Returns how many did.
    pub fn apply_late(&self) -> usize {
        let mut state = lock(&self.0);
        let late = std::mem::take(&mut state.late);
        let mut applied = 0;
        for append in late {
            let head = state.rooms.get(&append.room).and_then(|room| room.rows.keys().next_back().copied());
            if append.rows.first().is_some_and(|row| row.seq == head.unwrap_or_default().next()) {
                apply(&mut state, &append);
                applied += 1;
            }
        }
        applied
    }

    /// Every read answers so, until `None`.
    pub fn fail_reads(&self, error: Option<Error>) {
        lock(&self.0).read_error = error;
    }

    /// Every account write answers so, and does nothing, until `None`.
    pub fn fail_account_writes(&self, error: Option<Error>) {
        lock(&self.0).write_error = error;
    }
}

fn carry_out(state: &mut State, append: Append) -> Completion {
    let bytes: usize = append.rows.iter().map(|row| row.event.len()).sum();
    let outcome = if append.rows.len() > APPEND_ROWS_MAX || bytes > APPEND_BYTES_MAX {
        Outcome::NotDone(NotDone::TooLarge)
    } else {
        match state.faults.pop_front() {
            Some(Fault::NotDone(why)) => Outcome::NotDone(why),
            Some(Fault::UnknownLost) => Outcome::Unknown,
            Some(Fault::UnknownLate) => {
                let ticket = append.ticket;
                state.late.push(append);
                return Completion { ticket, outcome: Outcome::Unknown };
            }
            fault @ (Some(Fault::UnknownApplied) | None) => {
                apply(state, &append);
                if fault.is_some() { Outcome::Unknown } else { Outcome::Done }
            }
        }
    };
    Completion { ticket: append.ticket, outcome }
}

fn apply(state: &mut State, append: &Append) {
    let room = state.rooms.entry(append.room.clone()).or_default();
    for row in &append.rows {
        match room.rows.get(&row.seq) {
            Some(stored) => assert!(stored == row, "{}: a second content for seq {}", append.room, row.seq),
            None => {
                let head = room.rows.keys().next_back().copied().unwrap_or_default();
                assert!(row.seq == head.next(), "{}: seq {} behind head {head}", append.room, row.seq);
                room.rows.insert(row.seq, row.clone());
            }
        }
    }
    let Some(derived) = &append.derived else { return };
    if let Some(row) = &derived.room {
        room.row = Some(row.clone());
    }
    for member in &derived.members {
        room.members.insert(member.user.clone(), member.clone());
        let rooms = state.user_rooms.entry(member.user.clone()).or_default();
        if member.role == 0 {
            rooms.remove(&append.room);
        } else {
            rooms.insert(append.room.clone());
        }
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

    fn page(&self, range: Range, limit: ReadLimit) -> Page {
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
                    let _all =
                        self.rows.values().filter(|r| r.seq > after && r.seq <= through).all(&mut take);
                }
                Range::Before { before, above } => {
                    let _all =
                        self.rows.values().rev().filter(|r| r.seq < before && r.seq > above).all(&mut take);
                    rows.reverse();
                }
            }
        }
        Page { rows, more }
    }
}

impl RoomLog for Memory {
    fn append(&self, group: Vec<Append>, done: &mpsc::Sender<Vec<Completion>>) {
        group.iter().for_each(assert_dense);
        let mut state = lock(&self.0);
        if state.holding {
            state.held.extend(group.into_iter().map(|append| (append, done.clone())));
            return;
        }
        let completions = group.into_iter().map(|append| carry_out(&mut state, append)).collect::<Vec<_>>();
        drop(state);
        if !completions.is_empty() {
            send(done, completions);
        }
    }

    fn put_marks(&self, group: Vec<(RoomId, UserId, Marks)>) {
        let mut state = lock(&self.0);
        for (room, user, marks) in group {
            let stored = state.rooms.entry(room).or_default().marks.entry(user).or_default();
            *stored = stored.max(marks);
        }
    }

    fn load_room(&self, room: RoomId) -> BoxFuture<'static, Result<Option<LoadedRoom>, Error>> {
        let loaded = self.ask(|state| {
            let Some(stored) = state.rooms.get(&room) else { return Ok(None) };
            let tail = stored.page(Range::before(Seq(u64::MAX)), TAIL).rows;
            let (row, last) = match (&stored.row, tail.last()) {
                (Some(row), Some(last)) => (row.clone(), last),
                (None, None) => return Ok(None),
                _ => {
                    return Err(Error::Corrupt(format!(
                        "room {room} has events or a row of its own, not both"
                    )));
                }
            };
            let (head, n) = (last.seq, last.n);
            let (members, more) = stored.members(None, MEMBERS_LOADED_MAX);
            Ok(Some(LoadedRoom { row, head, n, members, members_complete: !more, tail }))
        });
        Box::pin(async move { loaded.await? })
    }

    fn read(&self, room: RoomId, range: Range, limit: ReadLimit) -> BoxFuture<'static, Result<Page, Error>> {
        self.ask(|state| match state.rooms.get(&room) {
            Some(room) => room.page(range, limit),
            None => Page { rows: Vec::new(), more: false },
        })
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
}

fn check_texts(texts: &[Option<&String>]) -> Result<(), Error> {
    let long = texts.iter().flatten().any(|text| text.len() > TEXT_MAX);
    if long { Err(Error::Refused("a text is too long")) } else { Ok(()) }
}

impl Accounts for Memory {
    fn create_user(&self, row: UserRow) -> BoxFuture<'static, Result<Creation, Error>> {
        self.write(|state| {
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
        self.write(|state| {
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
        self.write(|state| {
            check_texts(&[Some(&row.login)])?;
            state.logins.insert(row.login.clone(), row);
            Ok(())
        })
    }

    fn login(&self, login: &str) -> BoxFuture<'static, Result<Option<LoginRow>, Error>> {
        self.ask(|state| state.logins.get(login).cloned())
    }

    fn end_login(&self, login: &str) -> BoxFuture<'static, Result<(), Error>> {
        self.write(|state| {
            state.logins.remove(login);
            Ok(())
        })
    }

    fn end_all_logins(&self, user: &UserId) -> BoxFuture<'static, Result<(), Error>> {
        self.write(|state| {
            state.logins.retain(|_, login| login.user != *user);
            Ok(())
        })
    }

    fn sweep_logins(&self, now: UnixMs) -> BoxFuture<'static, Result<usize, Error>> {
        self.write(|state| {
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
    use banyan_proto::id::{LogId, Origin};
    use bytes::Bytes;

    use super::*;
    use crate::room_log::Derived;

    fn append(ticket: u64, seq: u64, event: &'static str) -> Append {
        let room = RoomId::parse("r").unwrap();
        let row = RoomRow {
            room: room.clone(),
            log: LogId(1),
            kind: 1,
            public: true,
            lazy: false,
            name: String::new(),
            created_at: UnixMs(1),
            counted_members: 0,
            floor: Seq(0),
            changed: Seq(0),
        };
        let event = Bytes::from_static(event.as_bytes());
        let rows = vec![Row {
            seq: Seq(seq),
            batch_first: Seq(seq),
            n: seq,
            origin: Origin(1),
            event,
            derived: None,
        }];
        Append {
            ticket,
            room,
            rows,
            derived: Some(Box::new(Derived { room: Some(row), members: Vec::new() })),
        }
    }

    #[test]
    fn faults_happen_as_asked() {
        let memory = Memory::new();
        let (done, mut completions) = mpsc::channel(1);
        let mut outcome = |memory: &Memory, append: Append| {
            memory.append(vec![append], &done);
            completions.blocking_recv().unwrap()[0].outcome
        };
        let head = |memory: &Memory| memory.rows(&RoomId::parse("r").unwrap()).len();
        let faults = memory.faults();
        faults.fail_next(Fault::NotDone(NotDone::Full));
        assert_eq!(outcome(&memory, append(1, 1, "a")), Outcome::NotDone(NotDone::Full));
        assert_eq!(head(&memory), 0);
        faults.fail_next(Fault::UnknownLost);
        assert_eq!(outcome(&memory, append(2, 1, "a")), Outcome::Unknown);
        assert_eq!(head(&memory), 0);
        faults.fail_next(Fault::UnknownApplied);
        assert_eq!(outcome(&memory, append(3, 1, "a")), Outcome::Unknown);
        assert_eq!(head(&memory), 1);
        assert_eq!(outcome(&memory, append(4, 1, "a")), Outcome::Done);
        faults.fail_next(Fault::UnknownLate);
        assert_eq!(outcome(&memory, append(5, 2, "b")), Outcome::Unknown);
        assert_eq!(head(&memory), 1);
        assert_eq!(faults.apply_late(), 1);
        assert_eq!(head(&memory), 2);
    }

    #[test]
    fn held_appends_wait_for_a_step() {
        let memory = Memory::new();
        let (done, mut completions) = mpsc::channel(4);
        memory.faults().hold();
        memory.append(vec![append(1, 1, "a"), append(2, 2, "b")], &done);
        assert_eq!((memory.faults().held(), completions.try_recv().is_err()), (2, true));
        assert!(memory.faults().step());
        assert_eq!(completions.try_recv().unwrap()[0].ticket, 1);
        memory.faults().release();
        assert_eq!(completions.try_recv().unwrap()[0].ticket, 2);
        assert!(!memory.faults().step());
    }

    #[test]
    #[should_panic(expected = "a second content for seq 1")]
    fn a_second_content_is_a_bug_of_the_owner() {
        let memory = Memory::new();
        let (done, _completions) = mpsc::channel(4);
        memory.append(vec![append(1, 1, "a")], &done);
        memory.append(vec![append(2, 1, "b")], &done);
    }

    #[test]
    #[should_panic(expected = "seq 3 behind head 1")]
    fn a_hole_is_a_bug_of_the_owner() {
        let memory = Memory::new();
        let (done, _completions) = mpsc::channel(4);
        memory.append(vec![append(1, 1, "a")], &done);
        memory.append(vec![append(2, 3, "b")], &done);
    }
}
