//! The store, the slots and the intervals of membership, indexed for the pass over the records.

use hashbrown::HashMap;

use crate::history::{Ask, History, Kind, Refusal, What};
use crate::id::{Call, Connection, Room, Seq, Slot, Time, User};
use crate::store::{MemberRow, Row, StoredRoom};

pub(crate) type Map<K, V> = HashMap<K, V, foldhash::fast::FixedState>;

/// Past intervals that a member row keeps; with that many the oldest ones have been merged into one.
const OUT_MAX: usize = 32;

#[derive(Debug)]
pub(crate) struct World<'a> {
    pub(crate) history: &'a History,
    /// Indexed by [`Room`].
    rooms: Vec<Option<RoomIndex<'a>>>,
    /// When each slot changed its owner, and when a process lost its memory; ascending.
    changes: Map<Slot, Vec<Time>>,
    memory_lost: Vec<Time>,
    /// Of whom [`View::unsettled`] holds.
    unsettled: Map<(Room, User), ()>,
}

#[derive(Debug)]
pub(crate) struct RoomIndex<'a> {
    pub(crate) stored: &'a StoredRoom,
    places: Places,
    pub(crate) last: Seq,
    views: Map<User, View>,
    /// Nobody else was ever in the room.
    members_known: bool,
}

/// Where each seq stands among the rows.
#[derive(Debug)]
enum Places {
    /// The usual case: dense above this seq.
    Dense(Seq),
    Sparse(Map<Seq, u32>),
}

/// What of a room one user may see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// Intervals out of the room, both ends inside them, ascending.
    pub(crate) out: Vec<(Seq, Seq)>,
    /// The last seq before each time out, ascending.
    pub(crate) ends: Vec<Seq>,
    /// Seqs at which something of this user's membership changed, ascending.
    pub(crate) changes: Vec<Seq>,
    /// The first join was no event, and the member's row has been written again since for a later return: it lies
    /// somewhere at or below this seq, where the first absence began.
    pub(crate) joined_by: Option<Seq>,
    /// Never in the room.
    pub(crate) stranger: bool,
    /// A join or leave without an event may have come to something and nobody was told: one owner may know it, the
    /// next not, and a later one again (docs/verification.md, "What is not covered").
    pub(crate) unsettled: bool,
}

static EVERYTHING: View = View::without_changes(false, false);
static NOTHING: View = View::without_changes(true, false);
static UNSETTLED: View = View::without_changes(false, true);

impl View {
    const fn without_changes(stranger: bool, unsettled: bool) -> Self {
        Self { out: Vec::new(), ends: Vec::new(), changes: Vec::new(), joined_by: None, stranger, unsettled }
    }

    pub(crate) fn sees(&self, seq: Seq) -> bool {
        !self.stranger && (self.out.is_empty() || self.out_at(seq).is_none())
    }

    /// Whether a subscription may end after this seq.
    pub(crate) fn ends_at(&self, seq: Seq) -> bool {
        self.unsettled || self.ends.contains(&seq)
    }

    pub(crate) fn out_at(&self, seq: Seq) -> Option<(Seq, Seq)> {
        let at = self.out.partition_point(|(_, last)| *last < seq);
        self.out.get(at).copied().filter(|(first, _)| *first <= seq)
    }

    /// The lowest visible seq within, if any.
    pub(crate) fn first_visible(&self, from: Seq, to: Seq) -> Option<Seq> {
        let mut seq = from;
        while seq <= to && !self.unsettled {
            match self.out_at(seq) {
                Some((_, last)) => seq = last.next(),
                None => return Some(seq),
            }
            if seq.0 == u64::MAX {
                return None;
            }
        }
        None
    }

    /// What a read must reach, if the room had come to `seq`: less for who may have been out then. The return to a
    /// room is taken as not seen yet, since without an event it bears the head that was there before.
    pub(crate) fn cap(&self, seq: Seq) -> Seq {
        if self.stranger || self.unsettled {
            return Seq(0);
        }
        let mut cap = seq;
        for (first, last) in self.out.iter().rev() {
            if *first <= cap && cap <= last.next() {
                cap = first.before();
            }
        }
        cap
    }

    pub(crate) fn changed_within(&self, above: Seq, through: Seq) -> bool {
        let at = self.changes.partition_point(|seq| *seq <= above);
        self.unsettled
            || self.changes.get(at).is_some_and(|seq| *seq <= through)
            || self.joined_by.is_some_and(|by| above < by)
    }
}

impl<'a> World<'a> {
    pub(crate) fn new(history: &'a History) -> Self {
        let mut rooms: Vec<Option<RoomIndex<'a>>> = Vec::new();
        for stored in history.store.iter().flat_map(|store| &store.rooms) {
            let at = stored.room.0 as usize;
            if rooms.len() <= at {
                rooms.resize_with(at + 1, || None);
            }
            rooms[at] = Some(RoomIndex::new(stored));
        }
        let mut changes: Map<Slot, Vec<Time>> = Map::default();
        for change in &history.slots {
            changes.entry(change.slot).or_default().push(change.at);
        }
        let memory_lost = history.faults.iter().filter(|f| f.kind.takes_memory()).map(|f| f.at).collect();
        let unsettled = unsettled(history);
        Self { history, rooms, changes, memory_lost, unsettled }
    }

    pub(crate) fn room(&self, room: Room) -> Option<&RoomIndex<'a>> {
        self.rooms.get(room.0 as usize)?.as_ref()
    }

    pub(crate) fn rooms(&self) -> impl Iterator<Item = &RoomIndex<'a>> {
        self.rooms.iter().flatten()
    }

    pub(crate) fn slot(&self, room: Room) -> Option<Slot> {
        self.room(room).map(|room| room.stored.slot)
    }

    pub(crate) fn view(&self, room: Room, user: User) -> &View {
        if !self.unsettled.is_empty() && self.unsettled.contains_key(&(room, user)) {
            return &UNSETTLED;
        }
        let Some(room) = self.room(room) else { return &EVERYTHING };
        match room.views.get(&user) {
            Some(view) => view,
            None if room.members_known => &NOTHING,
            None => &EVERYTHING,
        }
    }

    /// How many memberships [`View::unsettled`] is said of.
    pub(crate) fn unsettled_count(&self) -> u64 {
        self.unsettled.len() as u64
    }

    /// When a process last lost its memory.
    pub(crate) fn last_loss(&self) -> Option<Time> {
        self.memory_lost.last().copied()
    }

    /// Whether the room may have got another owner, or its owner lost its memory, within.
    pub(crate) fn may_have_forgotten(&self, room: Room, from: Time, to: Time) -> bool {
        let any = |times: &[Time]| {
            let at = times.partition_point(|time| *time < from);
            times.get(at).is_some_and(|time| *time <= to)
        };
        any(&self.memory_lost)
            || match self.slot(room) {
                Some(slot) => self.changes.get(&slot).is_some_and(|times| any(times)),
                None => self.changes.values().any(|times| any(times)),
            }
    }
}

impl<'a> RoomIndex<'a> {
    fn new(stored: &'a StoredRoom) -> Self {
        let first = stored.rows.first().map_or(Seq(0), |row| row.event.seq);
        let dense = stored.rows.iter().zip(first.0..).all(|(row, seq)| row.event.seq.0 == seq);
        let places = if dense {
            Places::Dense(first)
        } else {
            // Of two rows with one seq the first counts; I3 tells of the other.
            let mut places = Map::default();
            for (at, row) in (0..).zip(&stored.rows) {
                places.entry(row.event.seq).or_insert(at);
            }
            Places::Sparse(places)
        };
        let last = stored.rows.iter().map(|row| row.event.seq).max().unwrap_or(stored.floor);
        Self { stored, places, last, views: views(stored), members_known: stored.members.is_some() }
    }

    pub(crate) fn row(&self, seq: Seq) -> Option<&'a Row> {
        let at = match &self.places {
            Places::Dense(first) => usize::try_from(seq.0.checked_sub(first.0)?).ok()?,
            Places::Sparse(places) => *places.get(&seq)? as usize,
        };
        self.stored.rows.get(at)
    }
}

/// Who asked to join or to leave (or was to be added), was never told what came of it, and no event tells either.
fn unsettled(history: &History) -> Map<(Room, User), ()> {
    let mut users: Map<Connection, User> = Map::default();
    // Whose membership, whether it joins, and who asked for it.
    let mut open: Map<(Connection, Call), (Room, User, bool, User)> = Map::default();
    // Asked, and not refused.
    let mut asked: Map<(Room, User, bool, User), usize> = Map::default();
    for record in &history.records {
        match &record.what {
            What::Begin { session } => {
                let user = history.sessions.get(session.0 as usize).copied();
                users.insert(record.on, user.unwrap_or(User(u32::MAX)));
            }
            What::Ask { call, room, about } => {
                let user = users.get(&record.on).copied().unwrap_or(User(u32::MAX));
                let change = match about {
                    Ask::Join => (*room, user, true, user),
                    Ask::Leave => (*room, user, false, user),
                    Ask::Add(other) => (*room, *other, true, user),
                    _ => continue,
                };
                *asked.entry(change).or_default() += 1;
                open.insert((record.on, *call), change);
            }
            What::Answered { call, .. } => {
                open.remove(&(record.on, *call));
            }
            What::Refused { call, code, .. } if Refusal::of(*code) != Refusal::Unknown => {
                if let Some(change) = open.remove(&(record.on, *call))
                    && let Some(asked) = asked.get_mut(&change)
                {
                    *asked -= 1;
                }
            }
            _ => {}
        }
    }
    let mut unsettled = Map::default();
    if open.is_empty() {
        return unsettled;
    }
    for stored in history.store.iter().flat_map(|store| &store.rooms) {
        // Those with whom the room was made had not asked.
        let first = |row: &&Row| matches!(row.event.kind, Kind::Created | Kind::Joined(_));
        for row in stored.rows.iter().skip_while(first) {
            let change = match row.event.kind {
                Kind::Joined(user) => (stored.room, user, true, row.event.sender),
                Kind::Left(user) => (stored.room, user, false, row.event.sender),
                _ => continue,
            };
            if let Some(asked) = asked.get_mut(&change) {
                *asked = asked.saturating_sub(1);
            }
        }
    }
    for change in open.into_values() {
        if asked.get(&change).is_some_and(|asked| *asked > 0) {
            unsettled.insert((change.0, change.1), ());
        }
    }
    unsettled
}

/// The intervals of every user whose membership ever changed.
fn views(stored: &StoredRoom) -> Map<User, View> {
    let mut views: Map<User, View> = Map::default();
    for row in &stored.rows {
        let event = &row.event;
        let Some(user) = event.kind.concerns(event.sender) else { continue };
        let view = views.entry(user).or_default();
        if view.changes.is_empty() && !matches!(event.kind, Kind::Created | Kind::Joined(_)) {
            view.joined_by = Some(event.seq);
        }
        view.changes.push(event.seq);
        match event.kind {
            Kind::Left(_) | Kind::Removed(_) if !view.is_out() => {
                view.ends.push(event.seq);
                view.out.push((event.seq.next(), Seq(u64::MAX)));
            }
            Kind::Created | Kind::Joined(_) if view.is_out() => {
                if let Some((_, last)) = view.out.last_mut() {
                    *last = event.seq.before();
                }
            }
            _ => {}
        }
    }
    for row in stored.members.iter().flatten() {
        views.entry(row.user).or_default().take(row);
    }
    for view in views.values_mut() {
        view.out.retain(|(first, last)| first <= last);
    }
    views
}

impl View {
    fn is_out(&self) -> bool {
        self.out.last().is_some_and(|(_, last)| last.0 == u64::MAX)
    }

    /// The member's own row knows changes without an event too; the log knows what the row has not been told yet, and
    /// what merged there.
    fn take(&mut self, row: &MemberRow) {
        let merged = row.out.len() >= OUT_MAX;
        let known = &row.out[usize::from(merged)..];
        let mut out: Vec<(Seq, Seq)> = Vec::with_capacity(known.len() + 1);
        if merged && let Some((begin, _)) = known.first() {
            out.extend(self.out.iter().filter(|(_, last)| last < begin));
        }
        out.extend(known.iter().map(|(left, joined)| (left.next(), joined.before())));
        if row.role == 0 {
            let left = row.left.unwrap_or_default();
            out.push((left.next(), Seq(u64::MAX)));
        }
        // A removal that the row has not taken in yet.
        let later = self
            .out
            .last()
            .copied()
            .filter(|(first, last)| last.0 == u64::MAX && row.changed < first.before());
        if let Some(later) = later
            && out.last().is_none_or(|(_, last)| *last < later.0)
        {
            out.push(later);
        }
        self.ends.extend(known.iter().map(|(left, _)| *left).chain(row.left));
        self.ends.sort_unstable();
        self.ends.dedup();
        if self.changes.is_empty() {
            // No event tells of this user at all.
            self.joined_by = known.first().map(|(left, _)| *left);
        }
        let bounds = known.iter().flat_map(|(left, joined)| [*left, *joined]);
        self.changes.extend(bounds.chain(row.left).chain([row.joined, row.changed]));
        self.changes.sort_unstable();
        self.changes.dedup();
        self.out = out;
        self.stranger = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(out: &[(u64, u64)]) -> View {
        View { out: out.iter().map(|(a, b)| (Seq(*a), Seq(*b))).collect(), ..View::default() }
    }

    #[test]
    fn intervals_are_out_at_both_ends() {
        let view = view(&[(5, 9), (20, u64::MAX)]);
        for (seq, seen) in
            [(4, true), (5, false), (9, false), (10, true), (19, true), (20, false), (99, false)]
        {
            assert_eq!(view.sees(Seq(seq)), seen, "{seq}");
        }
        assert_eq!(view.first_visible(Seq(5), Seq(9)), None);
        assert_eq!(view.first_visible(Seq(5), Seq(10)), Some(Seq(10)));
        assert_eq!(view.first_visible(Seq(21), Seq(30)), None);
    }

    /// Its row is written anew by a later return, and then tells of the first join no longer (found by the simulator).
    #[test]
    fn a_first_join_without_an_event_lies_anywhere_before_the_first_absence() {
        let mut quiet = View::default();
        let row = MemberRow {
            user: User(1),
            role: 1,
            joined: Seq(116),
            left: None,
            out: vec![(Seq(97), Seq(116))],
            changed: Seq(116),
            marks: Default::default(),
        };
        quiet.take(&row);
        assert!(quiet.changed_within(Seq(38), Seq(45)), "it may have joined then");
        assert!(!quiet.changed_within(Seq(97), Seq(115)));
        let mut told = View { changes: vec![Seq(2)], ..View::default() };
        told.take(&row);
        assert!(!told.changed_within(Seq(38), Seq(45)), "an event told of its join");
    }

    /// Found by the simulator (seeds 900394, 901214, 901985): an owner that was fenced before it could answer a leave.
    #[test]
    fn what_nobody_was_told_of_may_hold_or_not() {
        use crate::history::{Event, Record};
        use crate::id::{Content, Session, UnixMs};

        let (on, call, room) = (Connection(0), Call(1), Room(0));
        let record = |what| Record { at: Time(0), on, what };
        let with = |reply: Option<What>, rows: Vec<Kind>| {
            let mut history = History { sessions: vec![User(3)], ..History::default() };
            history.records.push(record(What::Begin { session: Session(0) }));
            history.records.push(record(What::Ask { call, room, about: Ask::Leave }));
            history.records.extend(reply.map(record));
            let mut stored = StoredRoom::new(room, Slot(0));
            stored.members = Some(Vec::new());
            let row = |(kind, seq)| {
                let (n, at, sender) = (0, UnixMs(0), User(3));
                let event = Event { seq: Seq(seq), n, at, sender, message: None, content: Content(0), kind };
                Row { event, written: None }
            };
            stored.rows = rows.into_iter().zip(1..).map(row).collect();
            history.store = Some(crate::store::Store { rooms: vec![stored] });
            let world = World::new(&history);
            let view = world.view(room, User(3));
            assert!(
                !view.unsettled || view.sees(Seq(9)) && view.cap(Seq(9)) == Seq(0) && view.ends_at(Seq(9))
            );
            view.unsettled
        };
        assert!(with(None, Vec::new()));
        assert!(with(Some(What::Refused { call, room: None, code: 108 }), Vec::new()));
        assert!(!with(Some(What::Refused { call, room: None, code: 123 }), Vec::new()));
        assert!(!with(Some(What::Answered { call, head: None }), Vec::new()));
        assert!(!with(None, vec![Kind::Left(User(3))]), "an event tells of it");
        assert!(with(None, vec![Kind::Left(User(4)), Kind::Joined(User(3))]));
    }

    #[test]
    fn a_read_need_not_reach_what_its_reader_may_not_have_seen() {
        let view = view(&[(5, 9), (10, 12), (20, u64::MAX)]);
        for (seq, cap) in [(3, 3), (4, 4), (7, 4), (10, 4), (13, 4), (14, 14), (19, 19), (50, 19)] {
            assert_eq!(view.cap(Seq(seq)), Seq(cap), "{seq}");
        }
    }
}
