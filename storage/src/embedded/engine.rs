//! The ordered tables under the embedded store: fjall, opened our way, and every read that the store answers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use banyan_proto::id::{Bucket, Epoch, Incarnation, RoomId, SegmentId, Seq, SlotId, UnixMs, UserId};
use fjall::compaction::Leveled;
use fjall::{
    AbstractTree, CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot,
};

use super::codec::{self, Malformed, Table};
use super::{OpenError, Options};
use crate::Error;
use crate::accounts::{LoginRow, UserRow};
use crate::log_store::{RoomWrite, SEGMENTS_MAX, Said, SegmentRecord, SlotOwner, Span, Write};
use crate::page::{MemberPage, PAGE_MAX, Page, READ_MAX, Range, ReadLimit, RoomPage};
use crate::row::{Derived, Marks, MemberRow, RoomRow, Row};

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
        Batch {
            engine: self,
            batch: self.db.batch(),
            overlay: std::collections::HashMap::new(),
            bytes: 0,
            key: Vec::new(),
            value: Vec::new(),
        }
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

    /// Span by span, from the side that the range names.
    pub(super) fn rows(
        &self,
        room: &RoomId,
        spans: &[Span],
        range: Range,
        limit: ReadLimit,
    ) -> Result<Page, Error> {
        let snapshot = self.db.snapshot();
        let (first, last) = ends(range);
        let mut filling = Filling::new(room, limit);
        let mut take_span = |span: &Span| {
            let (first, last) = (first.max(span.first.0), last.min(span.last.0));
            if first > last {
                return Ok(true);
            }
            let key = |seq| codec::row_key(room, span.bucket, span.segment, Seq(seq));
            let keys = key(first)..=key(last);
            filling.take_all(snapshot.range(&self.log, keys), range)
        };
        match range {
            Range::After { .. } => {
                for span in spans {
                    if !take_span(span)? {
                        break;
                    }
                }
            }
            Range::Before { .. } => {
                for span in spans.iter().rev() {
                    if !take_span(span)? {
                        break;
                    }
                }
            }
        }
        Ok(filling.finish(range))
    }

    pub(super) fn segments(&self, room: &RoomId) -> Result<Vec<SegmentRecord>, Error> {
        let prefix = codec::prefix(Table::Segments, room.as_str());
        let mut records = Vec::new();
        for guard in self.behind(&self.db.snapshot(), &prefix, None).take(SEGMENTS_MAX + 1) {
            let (key, value) = guard.into_inner().map_err(engine_error)?;
            records.push(codec::decode_record(&key, &value).map_err(damaged)?);
        }
        Ok(records)
    }

    pub(super) fn said(&self, room: &RoomId) -> Result<Option<Said>, Error> {
        let value = self.get(&self.db.snapshot(), &codec::key(Table::Said, room.as_str()))?;
        value.map(|value| codec::decode_said(&value).map_err(damaged)).transpose()
    }

    pub(super) fn room_row(&self, room: RoomId) -> Result<Option<RoomRow>, Error> {
        let value = self.get(&self.db.snapshot(), &codec::key(Table::Rooms, room.as_str()))?;
        value.map(|value| codec::decode_room(room, &value).map_err(damaged)).transpose()
    }

    pub(super) fn fences(&self) -> Result<Vec<Incarnation>, Error> {
        let keys = self.behind(&self.db.snapshot(), &[Table::Fences as u8], None);
        keys.map(|guard| codec::decode_incarnation(&guard.key().map_err(engine_error)?).map_err(damaged))
            .collect()
    }

    pub(super) fn incarnations(&self) -> Result<Vec<(Incarnation, String)>, Error> {
        let rows = self.behind(&self.db.snapshot(), &[Table::Incarnations as u8], None);
        rows.map(|guard| {
            let (key, value) = guard.into_inner().map_err(engine_error)?;
            let node = String::from_utf8(value.to_vec()).map_err(|_| damaged(Malformed("incarnations")))?;
            Ok((codec::decode_incarnation(&key).map_err(damaged)?, node))
        })
        .collect()
    }

    pub(super) fn slot_owners(&self, slot: SlotId) -> Result<Vec<SlotOwner>, Error> {
        let rows = self.behind(&self.db.snapshot(), &codec::slot_prefix(slot), None);
        rows.map(|guard| {
            let (key, value) = guard.into_inner().map_err(engine_error)?;
            codec::decode_slot_owner(&key, &value).map_err(damaged)
        })
        .collect()
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

    /// Walks members and marks side by side: both are in the order of users.
    pub(super) fn members(
        &self,
        room: &RoomId,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<MemberPage, Error> {
        let limit = limit.min(PAGE_MAX);
        let snapshot = self.db.snapshot();
        let prefix = codec::prefix(Table::Members, room.as_str());
        let marks_prefix = codec::prefix(Table::Marks, room.as_str());
        let mut marks = self.behind(&snapshot, &marks_prefix, after.map(UserId::as_str));
        let mut mark = next_pair(&mut marks)?;
        let mut found = Vec::new();
        for guard in self.behind(&snapshot, &prefix, after.map(UserId::as_str)) {
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

    /// Rows that are written again, as who opens a room does: they take no space that is not taken already. Keys have one
    /// content, and a batch is there whole or not at all, so one look is enough.
    pub(super) fn holds(&self, write: &RoomWrite) -> bool {
        let Write::Rows { segment, bucket, rows } = &write.write else { return false };
        let key = rows.first().map(|row| codec::row_key(&write.room, *bucket, *segment, row.seq));
        key.is_some_and(|key| self.log.contains_key(key).unwrap_or(false))
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

/// First and last seq of a range, both included; nothing if the first is above the last.
fn ends(range: Range) -> (u64, u64) {
    match range {
        // Above all there is nothing; a first seq of `u64::MAX` would still be one.
        Range::After { after: Seq(u64::MAX), .. } => (1, 0),
        Range::After { after, through } => (after.0 + 1, through.0),
        Range::Before { before, above } => (above.0.saturating_add(1), before.0.saturating_sub(1)),
    }
}

/// A page in the making.
struct Filling<'a> {
    room: &'a RoomId,
    page: Page,
    events: usize,
    bytes: usize,
    taken_bytes: usize,
}

impl<'a> Filling<'a> {
    fn new(room: &'a RoomId, limit: ReadLimit) -> Self {
        Self {
            room,
            page: Page { rows: Vec::new(), more: false },
            events: limit.events.min(READ_MAX.events),
            bytes: limit.bytes.min(READ_MAX.bytes),
            taken_bytes: 0,
        }
    }

    /// Takes rows from the side that the range names. False: the page is full, or nothing is wanted.
    fn take_all(&mut self, mut rows: fjall::Iter, range: Range) -> Result<bool, Error> {
        if self.events == 0 {
            return Ok(false);
        }
        loop {
            let next = match range {
                Range::After { .. } => rows.next(),
                Range::Before { .. } => rows.next_back(),
            };
            let Some(guard) = next else { return Ok(true) };
            if self.page.rows.len() == self.events {
                self.page.more = true;
                return Ok(false);
            }
            let (key, value) = guard.into_inner().map_err(engine_error)?;
            let row = codec::decode_row(self.room, &key, &value).map_err(damaged)?;
            if !self.page.rows.is_empty() && self.taken_bytes + row.event.len() > self.bytes {
                self.page.more = true;
                return Ok(false);
            }
            self.taken_bytes += row.event.len();
            self.page.rows.push(row);
        }
    }

    fn finish(mut self, range: Range) -> Page {
        if matches!(range, Range::Before { .. }) {
            self.page.rows.reverse();
        }
        self.page
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
    // Of the row at hand; kept for their memory, as the engine copies what it is given.
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Batch<'_> {
    /// Of keys and values so far.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batch.is_empty()
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

    /// Written without a look at what is there: nothing, or the same.
    pub(super) fn rows(&mut self, room: &RoomId, bucket: Bucket, segment: SegmentId, rows: &[Row]) {
        let Self { engine, batch, key, value, .. } = self;
        for row in rows {
            key.clear();
            value.clear();
            codec::put_row_key(key, room, bucket, segment, row.seq);
            codec::put_log_value(value, row);
            debug_assert!(
                engine.log.get(&*key).ok().flatten().is_none_or(|stored| *stored == *value),
                "{room}: a second content for seq {} of {segment:?}",
                row.seq
            );
            self.bytes += key.len() + value.len();
            batch.insert(&engine.log, &*key, &*value);
        }
    }

    pub(super) fn record(&mut self, room: &RoomId, record: &SegmentRecord) {
        let (key, value) = (codec::record_key(room, record.id), codec::encode_record(record));
        debug_assert!(
            self.engine.state.get(&key).ok().flatten().is_none_or(|stored| *stored == value),
            "{room}: a second content for the record of {:?}",
            record.id
        );
        self.put(key, value);
    }

    pub(super) fn said(&mut self, room: &RoomId, said: Said) {
        self.put(codec::key(Table::Said, room.as_str()), codec::encode_said(said));
    }

    /// Each row unless a later change of it is there. Reads everything before it writes anything.
    pub(super) fn derived(&mut self, room: &RoomId, derived: &Derived) -> Result<(), Error> {
        let room_key = codec::key(Table::Rooms, room.as_str());
        let stored = if derived.room.is_some() { self.seen(&room_key)? } else { None };
        let stored =
            stored.map(|value| codec::decode_room(room.clone(), &value)).transpose().map_err(damaged)?;
        let mut members = Vec::with_capacity(derived.members.len());
        for row in &derived.members {
            let key = codec::key2(Table::Members, room.as_str(), row.user.as_str());
            let stored = self.seen(&key)?.map(|value| codec::decode_member(row.user.clone(), &value));
            if stored.transpose().map_err(damaged)?.is_none_or(|stored| stored.changed <= row.changed) {
                members.push((key, row));
            }
        }
        if let Some(row) = &derived.room
            && stored.is_none_or(|stored| stored.changed <= row.changed)
        {
            self.put_seen(room_key, codec::encode_room(row));
        }
        for (key, row) in members {
            self.put_seen(key, codec::encode_member(row));
            self.user_room(room, row);
        }
        Ok(())
    }

    pub(super) fn fence(&mut self, incarnation: Incarnation) {
        self.put(codec::incarnation_key(Table::Fences, incarnation), Vec::new());
    }

    pub(super) fn register(&mut self, incarnation: Incarnation, node: String) {
        self.put(codec::incarnation_key(Table::Incarnations, incarnation), node.into_bytes());
    }

    pub(super) fn slot_owner(
        &mut self,
        slot: SlotId,
        owner: SlotOwner,
        closes: Option<(Epoch, Incarnation)>,
    ) -> Result<(), Error> {
        let key = codec::slot_owner_key(slot, owner.epoch, owner.incarnation);
        let stored =
            self.seen(&key)?.map(|value| codec::decode_closed(&value)).transpose().map_err(damaged)?;
        self.put_seen(key, vec![u8::from(owner.closed || stored == Some(true))]);
        if let Some((epoch, incarnation)) = closes {
            self.put_seen(codec::slot_owner_key(slot, epoch, incarnation), vec![1]);
        }
        Ok(())
    }

    fn user_room(&mut self, room: &RoomId, row: &MemberRow) {
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
