//! Derived rows: rooms, members, rooms of a user.
//!
//! Always holds: a row's timestamp is the seq that changed it, so arrival in any order ends alike. A row of `members` without a name is
//! only marks, and nobody's. A room names the shards that have members before they have: most rooms have members in a few of the 64,
//! and who opens thousands of rooms must not look for nobody in all the others. A row in a shard that the room does not name would be
//! seen by nobody, whatever quorum he reads, until somebody else comes into that shard.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use banyan_proto::id::{LogId, RoomId, Seq, UnixMs, UserId};
use banyan_storage::{
    BoxFuture, Derived, Error, Marks, MemberPage, MemberRow, Outcome, PAGE_MAX, RoomPage, RoomRow,
};
use futures_util::future::try_join_all;
use futures_util::{StreamExt, stream};
use scylla::errors::ExecutionError;
use scylla::statement::batch::{Batch, BatchType};

use crate::convert::{SHARDS, bits, id, number, optional, ordered, shard, shard_of};
use crate::failure::repeated_outcome;
use crate::metrics::Kind;
use crate::store::{Inner, corrupt, corrupt_row};

/// Requests of one write of derived rows at once.
const WRITES_AT_ONCE: usize = 32;
/// Rows of one partition in one batch: far below what servers warn of.
const BATCH_MEMBERS: usize = 64;
/// Partitions asked for by one request.
const SHARDS_A_REQUEST: usize = 16;

/// Rooms whose named shards are known here. All are forgotten when there are more: it costs a write to name a shard again.
const NAMED_MAX: usize = 65_536;

type Pairs = Vec<(i64, i64)>;

/// The shards that rooms name at a quorum, as this process has stored them: a bit for each.
#[derive(Debug, Default)]
pub(crate) struct Named(Mutex<HashMap<RoomId, u64>>);

impl Named {
    fn all(&self) -> MutexGuard<'_, HashMap<RoomId, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of these, those that the room does not name yet as far as is known.
    fn missing(&self, room: &RoomId, shards: impl Iterator<Item = i32>) -> Vec<i32> {
        let named = self.all().get(room).copied().unwrap_or(0);
        shards.filter(|shard| (named >> shard) & 1 == 0).collect()
    }

    fn add(&self, room: &RoomId, shards: &[i32]) {
        let mut all = self.all();
        if all.len() >= NAMED_MAX && !all.contains_key(room) {
            all.clear();
        }
        *all.entry(room.clone()).or_default() |= shards.iter().fold(0, |bits, shard| bits | 1 << shard);
    }
}

/// As it is read; only marks may be there.
#[derive(scylla::DeserializeRow)]
struct Stored {
    user_id: String,
    name: Option<String>,
    role: Option<i32>,
    joined_seq: Option<i64>,
    left_seq: Option<i64>,
    out: Option<Pairs>,
    changed: Option<i64>,
    delivered: Option<i64>,
    seen: Option<i64>,
    seen_n: Option<i64>,
}

const MEMBERS: &str = "members";

fn malformed(what: &'static str) -> Error {
    Error::Corrupt(what.to_owned())
}

fn role_of(stored: i32) -> Result<u8, Error> {
    u8::try_from(stored).map_err(|_| malformed("members: role"))
}

impl Stored {
    /// None: nobody was ever a member by that name.
    fn member(self) -> Result<Option<(MemberRow, Marks)>, Error> {
        let mark = |stored: Option<i64>| number(stored.unwrap_or(0), MEMBERS);
        let marks = Marks {
            delivered: Seq(mark(self.delivered)?),
            seen: Seq(mark(self.seen)?),
            seen_n: mark(self.seen_n)?,
        };
        let (Some(name), Some(role), Some(joined), Some(left), Some(changed)) =
            (self.name, self.role, self.joined_seq, self.left_seq, self.changed)
        else {
            return Ok(None);
        };
        let seq = |stored| number(stored, MEMBERS).map(Seq);
        let pair = |(from, to)| Ok::<_, Error>((seq(from)?, seq(to)?));
        let row = MemberRow {
            user: UserId::parse(&self.user_id).map_err(|_| malformed("members: user_id"))?,
            name,
            role: role_of(role)?,
            joined_seq: seq(joined)?,
            left_seq: if left < 0 { None } else { Some(seq(left)?) },
            out: self.out.unwrap_or_default().into_iter().map(pair).collect::<Result<_, _>>()?,
            changed: seq(changed)?,
        };
        Ok(Some((row, marks)))
    }
}

/// One partition's rows on their way into a page.
struct Source {
    shard: i32,
    /// Sorted, not yet given.
    rows: VecDeque<(MemberRow, Marks)>,
    /// The last user that was read.
    at: String,
    /// The servers had as many rows as were asked for.
    more: bool,
}

impl Inner {
    pub(crate) async fn put_derived(&self, room: &RoomId, derived: &Derived) -> Outcome {
        let mut by_shard: BTreeMap<i32, Vec<&MemberRow>> = BTreeMap::new();
        for member in &derived.members {
            by_shard.entry(shard(&member.user)).or_default().push(member);
        }
        let missing = self.named.missing(room, by_shard.keys().copied());
        if !missing.is_empty() {
            let outcome = self.put_one(room, Request::Shards(missing.clone())).await;
            if outcome != Outcome::Done {
                return outcome;
            }
            self.named.add(room, &missing);
        }
        let mut requests: Vec<Request<'_>> = derived.room.iter().map(Request::Room).collect();
        for (shard, members) in &by_shard {
            requests
                .extend(members.chunks(BATCH_MEMBERS).map(|chunk| Request::Members(*shard, chunk.to_vec())));
        }
        requests.extend(derived.members.iter().map(Request::UserRoom));
        let requests: Vec<_> = requests.into_iter().map(|request| self.put_one(room, request)).collect();
        let mut outcomes = stream::iter(requests).buffer_unordered(WRITES_AT_ONCE);
        let mut worst = Outcome::Done;
        while let Some(outcome) = outcomes.next().await {
            worst = if outcome == Outcome::Done { worst } else { outcome };
        }
        worst
    }

    fn put_one<'a>(&'a self, room: &'a RoomId, request: Request<'a>) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            // Others of the same write may be there, so nothing is definite.
            let Ok(_turn) = self.write_gate.turn().await else { return Outcome::Unknown };
            repeated_outcome(self.try_one(room, request).await, "derived rows")
        })
    }

    async fn try_one(&self, room: &RoomId, request: Request<'_>) -> Result<(), ExecutionError> {
        let statements = &self.statements;
        match request {
            Request::Room(row) => {
                let values = (
                    ordered(row.changed.0),
                    bits(row.log.0),
                    i32::from(row.kind),
                    row.public,
                    row.lazy,
                    row.name.as_str(),
                    ordered(row.created_at.0),
                    ordered(row.floor.0),
                    ordered(row.changed.0),
                    room.as_str(),
                );
                self.execute(Kind::Derived, &statements.put_room, values).await.map(drop)
            }
            Request::Shards(shards) => {
                let values = (shards, room.as_str());
                self.execute(Kind::Derived, &statements.put_shards, values).await.map(drop)
            }
            Request::UserRoom(row) => {
                let values = (ordered(row.changed.0), i32::from(row.role), row.user.as_str(), room.as_str());
                self.execute(Kind::Derived, &statements.put_user_room, values).await.map(drop)
            }
            Request::Members(shard, members) => {
                let values: Vec<_> = members.iter().map(|row| member_values(room, shard, row)).collect();
                if let [only] = &values[..] {
                    self.execute(Kind::Derived, &statements.put_member, only).await.map(drop)
                } else {
                    let mut batch = Batch::new(BatchType::Unlogged);
                    batch.set_execution_profile_handle(
                        statements.put_member.get_execution_profile_handle().cloned(),
                    );
                    batch.set_is_idempotent(true);
                    for _ in &values {
                        batch.append_statement(statements.put_member.clone());
                    }
                    self.batch(Kind::Derived, &batch, values).await
                }
            }
        }
    }

    pub(crate) async fn room_row(&self, room: RoomId) -> Result<Option<RoomRow>, Error> {
        const WHAT: &str = "rooms";
        type Stored = (
            Option<i64>,
            Option<i32>,
            Option<bool>,
            Option<bool>,
            Option<String>,
            Option<i64>,
            Option<i64>,
            Option<i64>,
        );
        let found = self.read(WHAT, &self.statements.room, (room.as_str(),)).await?;
        let row =
            found.maybe_first_row::<Stored>().map_err(|error| Error::Corrupt(format!("{WHAT}: {error}")))?;
        // `said` alone makes no room.
        let Some((
            Some(log),
            Some(kind),
            Some(public),
            Some(lazy),
            Some(name),
            Some(created),
            Some(floor),
            Some(changed),
        )) = row
        else {
            return Ok(None);
        };
        Ok(Some(RoomRow {
            room,
            log: LogId(id(log)),
            kind: u8::try_from(kind).map_err(|_| malformed("rooms: kind"))?,
            public,
            lazy,
            name,
            created_at: UnixMs(number(created, WHAT)?),
            floor: Seq(number(floor, WHAT)?),
            changed: Seq(number(changed, WHAT)?),
        }))
    }

    pub(crate) async fn member(
        &self,
        room: &RoomId,
        user: &UserId,
    ) -> Result<Option<(MemberRow, Marks)>, Error> {
        let found =
            self.read(MEMBERS, &self.statements.member, (room.as_str(), shard(user), user.as_str())).await?;
        let row = found
            .maybe_first_row::<Stored>()
            .map_err(|error| Error::Corrupt(format!("{MEMBERS}: {error}")))?;
        row.map_or(Ok(None), Stored::member)
    }

    /// The lowest users of all partitions that have any. Each gives some at first, and more when it has run out.
    pub(crate) async fn members(
        &self,
        room: &RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<MemberPage, Error> {
        let limit = limit.min(PAGE_MAX);
        let after = after.as_ref().map_or("", UserId::as_str);
        // One more than the page: whether there is more. Twice the even share: most partitions are asked once.
        let step = (2 * (limit + 1)).div_ceil(SHARDS.unsigned_abs() as usize) + 4;
        let shards = self.shards(room).await?;
        let groups =
            shards.chunks(SHARDS_A_REQUEST).map(|shards| self.members_of_shards(room, shards, after, step));
        let mut sources: Vec<_> = try_join_all(groups).await?.into_iter().flatten().collect();
        let mut page = Vec::new();
        loop {
            for source in &mut sources {
                while source.rows.is_empty() && source.more {
                    self.refill(room, source, step).await?;
                }
            }
            let lowest = sources.iter_mut().filter(|source| !source.rows.is_empty());
            let Some(lowest) = lowest.min_by(|a, b| a.rows[0].0.user.cmp(&b.rows[0].0.user)) else {
                return Ok((page, false));
            };
            if page.len() == limit {
                return Ok((page, true));
            }
            page.extend(lowest.rows.pop_front());
        }
    }

    async fn shards(&self, room: &RoomId) -> Result<Vec<i32>, Error> {
        let found = self.read(MEMBERS, &self.statements.shards, (room.as_str(),)).await?;
        let shards = found
            .maybe_first_row::<(Option<Vec<i32>>,)>()
            .map_err(|error| Error::Corrupt(format!("rooms: {error}")))?;
        let shards = shards.and_then(|(shards,)| shards).unwrap_or_default();
        match shards.iter().all(|shard| (0..SHARDS).contains(shard)) {
            true => Ok(shards),
            false => Err(malformed("rooms: shards")),
        }
    }

    async fn members_of_shards(
        &self,
        room: &RoomId,
        shards: &[i32],
        after: &str,
        step: usize,
    ) -> Result<Vec<Source>, Error> {
        let limit = i32::try_from(step).unwrap_or(i32::MAX);
        let statement = &self.statements.members_of_shards;
        let found = self.read(MEMBERS, statement, (room.as_str(), shards, after, limit)).await?;
        let of = |shard| Source { shard, rows: VecDeque::new(), at: after.to_owned(), more: false };
        let mut sources: Vec<_> = shards.iter().copied().map(of).collect();
        let mut counts = vec![0; sources.len()];
        for row in found.rows::<Stored>().map_err(corrupt(MEMBERS))? {
            let row = row.map_err(corrupt_row(MEMBERS))?;
            let shard = shard_of(&row.user_id);
            let at = sources
                .iter()
                .position(|source| source.shard == shard)
                .ok_or_else(|| malformed("members: shard"))?;
            counts[at] += 1;
            sources[at].at.clone_from(&row.user_id);
            sources[at].rows.extend(row.member()?);
        }
        for (source, count) in sources.iter_mut().zip(counts) {
            source.more = count >= step;
        }
        Ok(sources)
    }

    async fn refill(&self, room: &RoomId, source: &mut Source, step: usize) -> Result<(), Error> {
        let limit = i32::try_from(step).unwrap_or(i32::MAX);
        let values = (room.as_str(), source.shard, source.at.as_str(), limit);
        let found = self.read(MEMBERS, &self.statements.members_of_shard, values).await?;
        source.more = found.rows_num() >= step;
        for row in found.rows::<Stored>().map_err(corrupt(MEMBERS))? {
            let row = row.map_err(corrupt_row(MEMBERS))?;
            source.at.clone_from(&row.user_id);
            source.rows.extend(row.member()?);
        }
        Ok(())
    }

    pub(crate) async fn user_rooms(
        &self,
        user: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> Result<RoomPage, Error> {
        const WHAT: &str = "user_rooms";
        let limit = limit.min(PAGE_MAX);
        let mut at = after.map(|room| room.as_str().to_owned()).unwrap_or_default();
        let mut page = Vec::new();
        loop {
            // Rooms that were left are skipped, so there may be several rounds.
            let step = i32::try_from(limit + 1 - page.len() + 16).unwrap_or(i32::MAX);
            let found =
                self.read(WHAT, &self.statements.user_rooms, (user.as_str(), at.as_str(), step)).await?;
            let (count, mut last) = (found.rows_num(), String::new());
            for row in found.rows::<(String, Option<i32>)>().map_err(corrupt(WHAT))? {
                let (room, role) = row.map_err(corrupt_row(WHAT))?;
                last.clone_from(&room);
                if role.unwrap_or(0) == 0 {
                    continue;
                }
                if page.len() == limit {
                    return Ok((page, true));
                }
                page.push(RoomId::parse(&room).map_err(|_| malformed("user_rooms: chat_id"))?);
            }
            if count < step.unsigned_abs() as usize {
                return Ok((page, false));
            }
            at = last;
        }
    }
}

enum Request<'a> {
    Room(&'a RoomRow),
    Members(i32, Vec<&'a MemberRow>),
    Shards(Vec<i32>),
    UserRoom(&'a MemberRow),
}

type MemberValues<'a> = (i64, &'a str, i32, i64, i64, Pairs, i64, &'a str, i32, &'a str);

fn member_values<'a>(room: &'a RoomId, shard: i32, row: &'a MemberRow) -> MemberValues<'a> {
    let out = row.out.iter().map(|(from, to)| (ordered(from.0), ordered(to.0))).collect();
    let changed = ordered(row.changed.0);
    (
        changed,
        &row.name,
        i32::from(row.role),
        ordered(row.joined_seq.0),
        optional(row.left_seq),
        out,
        changed,
        room.as_str(),
        shard,
        row.user.as_str(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> Stored {
        Stored {
            user_id: "u".to_owned(),
            name: Some("U".to_owned()),
            role: Some(1),
            joined_seq: Some(4),
            left_seq: Some(-1),
            out: Some(vec![(1, 3)]),
            changed: Some(4),
            delivered: None,
            seen: Some(2),
            seen_n: Some(1),
        }
    }

    #[test]
    fn shards_are_named_once_as_far_as_memory_goes() {
        let named = Named::default();
        let room = |n: usize| RoomId::parse(&format!("r{n}")).unwrap();
        assert_eq!(named.missing(&room(0), [0, 5, 63].into_iter()), [0, 5, 63]);
        named.add(&room(0), &[0, 63]);
        named.add(&room(0), &[7]);
        assert_eq!(named.missing(&room(0), 0..SHARDS), (1..63).filter(|n| *n != 7).collect::<Vec<_>>());
        assert_eq!(named.missing(&room(1), [63].into_iter()), [63]);
        for n in 1..NAMED_MAX {
            named.add(&room(n), &[1]);
        }
        assert!(named.missing(&room(0), [0].into_iter()).is_empty());
        named.add(&room(NAMED_MAX), &[1]);
        assert_eq!(named.missing(&room(0), [0].into_iter()), [0]);
        assert!(named.all().len() < NAMED_MAX && named.missing(&room(NAMED_MAX), [1].into_iter()).is_empty());
    }

    #[test]
    fn marks_alone_are_nobody() {
        let (row, marks) = stored().member().unwrap().unwrap();
        assert_eq!((row.left_seq, row.out, row.changed), (None, vec![(Seq(1), Seq(3))], Seq(4)));
        assert_eq!(marks, Marks { delivered: Seq(0), seen: Seq(2), seen_n: 1 });
        assert_eq!(Stored { name: None, ..stored() }.member(), Ok(None));
        assert!(Stored { role: Some(256), ..stored() }.member().is_err());
        assert!(Stored { out: Some(vec![(-4, 3)]), ..stored() }.member().is_err());
        let left = Stored { left_seq: Some(0), ..stored() }.member().unwrap().unwrap().0;
        assert_eq!(left.left_seq, Some(Seq(0)));
    }
}
