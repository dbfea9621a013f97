//! The ordered tables under the embedded store: fjall, opened our way, and every read that the store answers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use banyan_proto::id::{Epoch, RoomId, Seq, UnixMs, UserId};
use fjall::compaction::Leveled;
use fjall::{
    AbstractTree, CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot,
};

use super::codec::{self, Malformed, Table};
use super::{OpenError, Options};
use crate::Error;
use crate::accounts::{LoginRow, UserRow};
use crate::room_log::{
    LoadedRoom, MEMBERS_LOADED_MAX, Marks, MemberPage, MemberRow, PAGE_MAX, Page, READ_MAX, Range, ReadLimit,
    RoomPage, Row, TAIL,
};

/// `state` holds small rows; its share of memory is small.
const STATE_MEMTABLE_BYTES: u64 = 8 << 20;
/// Tables on disk. Smaller than the engine's 64 MiB, so that a compaction needs less free space for a while.
const TABLE_BYTES: u64 = 32 << 20;
/// Journals kept at most, before the engine moves old rows to tables: what a start reads again, one or two seconds' work.
const JOURNALS_BYTES: u64 = 128 << 20;
/// Open table files.
const FILES: usize = 256;
/// The engine blocks a commit at 4 waiting memtables or 30 level-0 runs until its worker has caught up, and for ever if that
/// worker is dead. [`Engine::is_behind`] stops short of it, so the writer waits where it can see a failure.
const MEMTABLES_WAITING: usize = 2;
const LEVEL_0_RUNS: usize = 24;

const EPOCH: &str = "epoch";

/// Kept as long as the store works; dropped and opened again after a failed write.
pub(super) struct Engine {
    db: Database,
    log: Keyspace,
    state: Keyspace,
}

impl Engine {
    /// Opens, or makes, the engine's files. Reads everything that is not in tables yet.
    pub(super) fn open(store: &Path, options: &Options) -> Result<Self, OpenError> {
        // It asserts what it believes about its files; damaged ones are an error of ours, not the end of the process.
        catch_unwind(AssertUnwindSafe(|| Self::open_inner(store, options))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(OpenError::Damaged(text.unwrap_or("the engine does not say why").to_owned()))
        })
    }

    fn open_inner(store: &Path, options: &Options) -> Result<Self, OpenError> {
        let failed = |error: fjall::Error| match error {
            fjall::Error::Io(source) => OpenError::Directory { path: store.to_owned(), source },
            fjall::Error::Storage(fjall::LsmError::Io(source)) => {
                OpenError::Directory { path: store.to_owned(), source }
            }
            other => OpenError::Damaged(other.to_string()),
        };
        let db = Database::builder(store)
            .cache_size(options.cache_bytes)
            // One: with two, the first spins while the second compacts.
            .worker_threads(1)
            .max_journaling_size(JOURNALS_BYTES)
            .max_cached_files(Some(FILES))
            // Its checksum is over what the compressor gives, which another version of it may give differently.
            .journal_compression(CompressionType::None)
            .manual_journal_persist(true)
            .open()
            .map_err(failed)?;
        let keyspace = |name: &str, memtable: u64| {
            db.keyspace(name, || {
                KeyspaceCreateOptions::default()
                    .max_memtable_size(memtable)
                    .manual_journal_persist(true)
                    .compaction_strategy(std::sync::Arc::new(
                        Leveled::default().with_table_target_size(TABLE_BYTES),
                    ))
            })
            .map_err(failed)
        };
        let log = keyspace("log", options.memtable_bytes)?;
        let state = keyspace("state", STATE_MEMTABLE_BYTES)?;
        Ok(Self { db, log, state })
    }

    /// One group commit to be.
    pub(super) fn batch(&self) -> Batch<'_> {
        Batch { engine: self, batch: self.db.batch(), overlay: std::collections::HashMap::new(), bytes: 0 }
    }

    /// The engine has failed before and takes no writes until it is opened again.
    pub(super) fn is_dead(&self) -> bool {
        // Nothing is buffered between commits, so this only asks for its flag.
        matches!(self.db.persist(PersistMode::Buffer), Err(fjall::Error::Poisoned))
    }

    /// Background work is behind: wait before the next commit.
    pub(super) fn is_behind(&self) -> bool {
        [&self.log, &self.state].into_iter().any(|keyspace| {
            keyspace.sealed_memtable_count() > MEMTABLES_WAITING
                || keyspace.tree.l0_run_count() >= LEVEL_0_RUNS
        })
    }

    /// No commit up to now has this number or a higher one; the next ones have.
    pub(super) fn next_seqno(&self) -> u64 {
        self.db.seqno()
    }

    /// Raises the count of openings and says it. Durable.
    pub(super) fn raise_epoch(&self) -> Result<Epoch, OpenError> {
        let key = codec::key(Table::Meta, EPOCH);
        let failed = |error: fjall::Error| OpenError::Damaged(error.to_string());
        let stored = self.state.get(&key).map_err(failed)?;
        let epoch = match &stored {
            None => 0,
            Some(bytes) => bytes.as_ref().try_into().map(u64::from_be_bytes).map_err(|_| {
                OpenError::Damaged("the epoch in the store's state is not a number".to_owned())
            })?,
        };
        let epoch = epoch + 1;
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncAll));
        batch.insert(&self.state, key, epoch.to_be_bytes().to_vec());
        batch.commit().map_err(|error| match error {
            fjall::Error::Io(source) => OpenError::Directory { path: self.state.path().to_owned(), source },
            other => failed(other),
        })?;
        Ok(Epoch(epoch))
    }

    pub(super) fn load_room(&self, room: &RoomId) -> Result<Option<LoadedRoom>, Error> {
        let snapshot = self.db.snapshot();
        let row = self.get(&snapshot, &codec::key(Table::Rooms, room.as_str()))?;
        let tail = self.page(&snapshot, room, Range::before(Seq(u64::MAX)), TAIL)?.rows;
        let (row, last) = match (row, tail.last()) {
            (Some(row), Some(last)) => (row, last),
            (None, None) => return Ok(None),
            (None, Some(_)) => {
                return Err(Error::Corrupt(format!("room {room} has events but no row of its own")));
            }
            (Some(_), None) => return Err(Error::Corrupt(format!("room {room} has no events"))),
        };
        let row = codec::decode_room(room.clone(), &row).map_err(damaged)?;
        let (head, n) = (last.seq, last.n);
        let (members, more) = self.members_at(&snapshot, room, None, MEMBERS_LOADED_MAX)?;
        Ok(Some(LoadedRoom { row, head, n, members, members_complete: !more, tail }))
    }

    pub(super) fn read(&self, room: &RoomId, range: Range, limit: ReadLimit) -> Result<Page, Error> {
        self.page(&self.db.snapshot(), room, range, limit)
    }

    fn page(
        &self,
        snapshot: &Snapshot,
        room: &RoomId,
        range: Range,
        limit: ReadLimit,
    ) -> Result<Page, Error> {
        let events = limit.events.min(READ_MAX.events);
        let bytes = limit.bytes.min(READ_MAX.bytes);
        // Both ends included, from here on.
        let (first, last) = match range {
            Range::After { after, through } => (after.0.saturating_add(1), through.0),
            Range::Before { before, above } => (above.0.saturating_add(1), before.0.saturating_sub(1)),
        };
        let mut page = Page { rows: Vec::new(), more: false };
        if first > last || events == 0 {
            return Ok(page);
        }
        let iter =
            snapshot.range(&self.log, codec::log_key(room, Seq(first))..=codec::log_key(room, Seq(last)));
        let mut taken = 0;
        let mut take = |guard: fjall::Guard| -> Result<bool, Error> {
            if page.rows.len() == events {
                page.more = true;
                return Ok(false);
            }
            let (key, value) = guard.into_inner().map_err(engine_error)?;
            let row = codec::decode_row(&key, &value).map_err(damaged)?;
            if !page.rows.is_empty() && taken + row.event.len() > bytes {
                page.more = true;
                return Ok(false);
            }
            taken += row.event.len();
            page.rows.push(row);
            Ok(true)
        };
        match range {
            Range::After { .. } => {
                for guard in iter {
                    if !take(guard)? {
                        break;
                    }
                }
            }
            Range::Before { .. } => {
                for guard in iter.rev() {
                    if !take(guard)? {
                        break;
                    }
                }
                page.rows.reverse();
            }
        }
        Ok(page)
    }

    pub(super) fn member(&self, room: &RoomId, user: UserId) -> Result<Option<(MemberRow, Marks)>, Error> {
        let snapshot = self.db.snapshot();
        let Some(row) = self.get(&snapshot, &codec::key2(Table::Members, room.as_str(), user.as_str()))?
        else {
            return Ok(None);
        };
        let marks = self.get(&snapshot, &codec::key2(Table::Marks, room.as_str(), user.as_str()))?;
        let marks = marks
            .map_or_else(|| Ok(Marks::default()), |marks| codec::decode_marks(&marks))
            .map_err(damaged)?;
        Ok(Some((codec::decode_member(user, &row).map_err(damaged)?, marks)))
    }

    pub(super) fn members(
        &self,
        room: &RoomId,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<MemberPage, Error> {
        self.members_at(&self.db.snapshot(), room, after, limit.min(PAGE_MAX))
    }

    /// Walks members and marks side by side: both are in the order of users.
    fn members_at(
        &self,
        snapshot: &Snapshot,
        room: &RoomId,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<MemberPage, Error> {
        let prefix = codec::prefix(Table::Members, room.as_str());
        let marks_prefix = codec::prefix(Table::Marks, room.as_str());
        let mut marks = self.behind(snapshot, &marks_prefix, after.map(UserId::as_str));
        let mut mark = next_pair(&mut marks)?;
        let mut found = Vec::new();
        for guard in self.behind(snapshot, &prefix, after.map(UserId::as_str)) {
            if found.len() == limit {
                return Ok((found, true));
            }
            let (key, value) = guard.into_inner().map_err(engine_error)?;
            let name = codec::last_part(&key, &prefix, "members").map_err(damaged)?;
            let user = UserId::parse(name).map_err(|_| damaged(Malformed("members")))?;
            let row = codec::decode_member(user, &value).map_err(damaged)?;
            // Both keys end with the user.
            let order =
                |pair: &(fjall::UserKey, fjall::UserValue)| pair.0[marks_prefix.len()..].cmp(name.as_bytes());
            while mark.as_ref().is_some_and(|pair| order(pair).is_lt()) {
                mark = next_pair(&mut marks)?;
            }
            let own = match &mark {
                Some(pair) if order(pair).is_eq() => codec::decode_marks(&pair.1).map_err(damaged)?,
                _ => Marks::default(),
            };
            found.push((row, own));
        }
        Ok((found, false))
    }

    pub(super) fn user_rooms(
        &self,
        user: &UserId,
        after: Option<&RoomId>,
        limit: usize,
    ) -> Result<RoomPage, Error> {
        let limit = limit.min(PAGE_MAX);
        let snapshot = self.db.snapshot();
        let prefix = codec::prefix(Table::UserRooms, user.as_str());
        let mut rooms = Vec::new();
        for guard in self.behind(&snapshot, &prefix, after.map(RoomId::as_str)) {
            if rooms.len() == limit {
                return Ok((rooms, true));
            }
            let key = guard.key().map_err(engine_error)?;
            let name = codec::last_part(&key, &prefix, "user_rooms").map_err(damaged)?;
            rooms.push(RoomId::parse(name).map_err(|_| damaged(Malformed("user_rooms")))?);
        }
        Ok((rooms, false))
    }

    pub(super) fn user(&self, user: UserId) -> Result<Option<UserRow>, Error> {
        let value = self.get(&self.db.snapshot(), &codec::key(Table::Users, user.as_str()))?;
        value.map(|value| codec::decode_user(user, &value).map_err(damaged)).transpose()
    }

    pub(super) fn user_by_username(&self, username: &str) -> Result<Option<UserRow>, Error> {
        let snapshot = self.db.snapshot();
        let Some(id) = self.get(&snapshot, &codec::key(Table::Usernames, username))? else { return Ok(None) };
        let user = parse_user(&id, "usernames")?;
        let Some(value) = self.get(&snapshot, &codec::key(Table::Users, user.as_str()))? else {
            return Err(damaged(Malformed("usernames")));
        };
        codec::decode_user(user, &value).map(Some).map_err(damaged)
    }

    pub(super) fn login(&self, login: &str) -> Result<Option<LoginRow>, Error> {
        let value = self.get(&self.db.snapshot(), &codec::key(Table::Logins, login))?;
        value.map(|value| codec::decode_login(login, &value).map_err(damaged)).transpose()
    }

    fn get(&self, snapshot: &Snapshot, key: &[u8]) -> Result<Option<fjall::UserValue>, Error> {
        snapshot.get(&self.state, key).map_err(engine_error)
    }

    /// Everything in `state` under a prefix, behind one last part.
    fn behind(&self, snapshot: &Snapshot, prefix: &[u8], after: Option<&str>) -> fjall::Iter {
        let mut from = prefix.to_vec();
        if let Some(after) = after {
            from.extend_from_slice(after.as_bytes());
            from.push(0); // ids hold no zero byte: the first key behind it
        }
        snapshot.range(&self.state, from..prefix_end(prefix))
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}

/// The first key that does not begin so. Prefixes begin with a table byte or a length, both far below 255.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    end
}

fn next_pair(iter: &mut fjall::Iter) -> Result<Option<(fjall::UserKey, fjall::UserValue)>, Error> {
    iter.next().map(|guard| guard.into_inner().map_err(engine_error)).transpose()
}

fn parse_user(bytes: &[u8], what: &'static str) -> Result<UserId, Error> {
    std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| UserId::parse(text).ok())
        .ok_or_else(|| damaged(Malformed(what)))
}

fn damaged(malformed: Malformed) -> Error {
    Error::Corrupt(format!("a row of {}", malformed.0))
}

pub(super) fn engine_error(error: fjall::Error) -> Error {
    match error {
        fjall::Error::Poisoned | fjall::Error::Locked => Error::Unavailable(error.to_string()),
        fjall::Error::Io(error) => Error::Unavailable(error.to_string()),
        other => Error::Corrupt(other.to_string()),
    }
}

/// How a commit ended.
#[derive(Debug)]
pub(super) enum Committed {
    Done,
    /// The engine had failed before; it wrote nothing.
    Refused,
    /// Cut off half-way.
    Unknown(String),
}

/// A group commit in the making. Reads of it see what it will write.
pub(super) struct Batch<'a> {
    engine: &'a Engine,
    batch: fjall::OwnedWriteBatch,
    /// What is going to be in `state`; only of tables that are read again in the same commit.
    overlay: std::collections::HashMap<Vec<u8>, Option<Vec<u8>>>,
    bytes: usize,
}

impl Batch<'_> {
    /// Of keys and values so far.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    pub(super) fn row(&mut self, room: &RoomId, row: &Row) {
        let (key, value) = (codec::log_key(room, row.seq), codec::log_value(row));
        self.bytes += key.len() + value.len();
        self.batch.insert(&self.engine.log, key, value);
    }

    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += key.len() + value.len();
        self.batch.insert(&self.engine.state, key, value);
    }

    fn remove(&mut self, key: Vec<u8>) {
        self.bytes += key.len();
        self.batch.remove(&self.engine.state, key);
    }

    /// For tables that are read within a commit.
    fn put_seen(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.overlay.insert(key.clone(), Some(value.clone()));
        self.put(key, value);
    }

    fn remove_seen(&mut self, key: Vec<u8>) {
        self.overlay.insert(key.clone(), None);
        self.remove(key);
    }

    fn seen(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        if let Some(value) = self.overlay.get(key) {
            return Ok(value.clone());
        }
        Ok(self.engine.state.get(key).map_err(engine_error)?.map(|value| value.to_vec()))
    }

    /// Keys under a prefix as they will be, at most `limit` of those stored and all of those in the making.
    fn seen_keys(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Vec<u8>>, Error> {
        let mut keys = Vec::new();
        for guard in self.engine.state.range(from.to_vec()..to.to_vec()) {
            if keys.len() == limit {
                break;
            }
            let key = guard.key().map_err(engine_error)?.to_vec();
            if !matches!(self.overlay.get(&key), Some(None)) {
                keys.push(key);
            }
        }
        let made = self
            .overlay
            .iter()
            .filter(|(key, value)| value.is_some() && key.as_slice() >= from && key.as_slice() < to);
        keys.extend(made.map(|(key, _)| key.clone()));
        keys.sort();
        keys.dedup();
        Ok(keys)
    }

    pub(super) fn room(&mut self, row: &crate::room_log::RoomRow) {
        self.put(codec::key(Table::Rooms, row.room.as_str()), codec::encode_room(row));
    }

    pub(super) fn member(&mut self, room: &RoomId, row: &MemberRow) {
        self.put(codec::key2(Table::Members, room.as_str(), row.user.as_str()), codec::encode_member(row));
        let entry = codec::key2(Table::UserRooms, row.user.as_str(), room.as_str());
        if row.role == 0 {
            self.remove(entry);
        } else {
            self.put(entry, Vec::new());
        }
    }

    pub(super) fn marks(&mut self, room: &RoomId, user: &UserId, marks: Marks) -> Result<(), Error> {
        let key = codec::key2(Table::Marks, room.as_str(), user.as_str());
        let stored = self.engine.state.get(&key).map_err(engine_error)?;
        let stored = stored
            .map_or_else(|| Ok(Marks::default()), |value| codec::decode_marks(&value))
            .map_err(damaged)?;
        let raised = stored.max(marks);
        if raised != stored {
            self.put(key, codec::encode_marks(raised));
        }
        Ok(())
    }

    pub(super) fn create_user(&mut self, row: &UserRow) -> Result<crate::accounts::Creation, Error> {
        use crate::accounts::Creation;
        let id = codec::key(Table::Users, row.user.as_str());
        let value = codec::encode_user(row);
        if let Some(stored) = self.seen(&id)? {
            return Ok(if stored == value { Creation::Created } else { Creation::IdTaken });
        }
        let names = [(Table::Usernames, &row.username), (Table::Skeletons, &row.skeleton)];
        let names = names.into_iter().filter_map(|(table, name)| Some(codec::key(table, name.as_deref()?)));
        let names: Vec<_> = names.collect();
        for name in &names {
            if self.seen(name)?.is_some() {
                return Ok(Creation::UsernameTaken);
            }
        }
        for name in names {
            self.put_seen(name, row.user.as_str().as_bytes().to_vec());
        }
        self.put_seen(id, value);
        Ok(Creation::Created)
    }

    pub(super) fn put_user(&mut self, mut row: UserRow) -> Result<(), Error> {
        let key = codec::key(Table::Users, row.user.as_str());
        match self.seen(&key)? {
            Some(stored) => {
                let stored = codec::decode_user(row.user.clone(), &stored).map_err(damaged)?;
                row.username = stored.username;
                row.skeleton = stored.skeleton;
                row.created_at = stored.created_at;
            }
            None if row.username.is_some() || row.skeleton.is_some() => {
                return Err(Error::Refused("a new user with a username is made by create_user"));
            }
            None => {}
        }
        self.put_seen(key, codec::encode_user(&row));
        Ok(())
    }

    pub(super) fn put_login(&mut self, row: &LoginRow) -> Result<(), Error> {
        self.end_login(&row.login)?; // its entries under another expiry or user
        self.put_seen(codec::key(Table::Logins, &row.login), codec::encode_login(row));
        self.put_seen(codec::key2(Table::UserLogins, row.user.as_str(), &row.login), Vec::new());
        self.put_seen(codec::expiry_key(row.expires_at, &row.login), Vec::new());
        Ok(())
    }

    pub(super) fn end_login(&mut self, login: &str) -> Result<(), Error> {
        let key = codec::key(Table::Logins, login);
        let Some(stored) = self.seen(&key)? else { return Ok(()) };
        let row = codec::decode_login(login, &stored).map_err(damaged)?;
        self.remove_seen(codec::key2(Table::UserLogins, row.user.as_str(), login));
        self.remove_seen(codec::expiry_key(row.expires_at, login));
        self.remove_seen(key);
        Ok(())
    }

    pub(super) fn end_all_logins(&mut self, user: &UserId) -> Result<(), Error> {
        let prefix = codec::prefix(Table::UserLogins, user.as_str());
        for key in self.seen_keys(&prefix, &prefix_end(&prefix), usize::MAX)? {
            let login = codec::last_part(&key, &prefix, "user_logins").map_err(damaged)?;
            self.end_login(login)?;
        }
        Ok(())
    }

    pub(super) fn sweep_logins(&mut self, now: UnixMs, limit: usize) -> Result<usize, Error> {
        let from = [Table::LoginExpiry as u8];
        let to = codec::expiry_key(UnixMs(now.0.saturating_add(1)), "");
        let mut keys = self.seen_keys(&from, &to, limit)?;
        keys.truncate(limit);
        for key in &keys {
            let (_, login) = codec::decode_expiry(key).map_err(damaged)?;
            self.end_login(login)?;
        }
        Ok(keys.len())
    }

    /// Writes and syncs. Afterwards it is on disk, or the engine is dead.
    pub(super) fn commit(self) -> Committed {
        let batch = self.batch.durability(Some(PersistMode::SyncData));
        match catch_unwind(AssertUnwindSafe(|| batch.commit())) {
            Ok(Ok(())) => Committed::Done,
            // It looks at its flag before it writes.
            Ok(Err(fjall::Error::Poisoned)) => Committed::Refused,
            Ok(Err(error)) => Committed::Unknown(error.to_string()),
            Err(_) => Committed::Unknown("the engine panicked".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        assert_eq!(prefix_end(&[3, 1, b'a']), [3, 1, b'b']);
        assert_eq!(prefix_end(&[3, 255]), [4]);
    }
}
