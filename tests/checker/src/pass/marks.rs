//! Receipt marks: they rise, but for the last moment before an owner was lost.
//!
//! A mark that was asked for after the last change of owner is known to that owner, or to nobody: if less is told after it,
//! that is no loss but words of an owner of the past.

use super::{At, Open, Pass};
use crate::check::Rules;
use crate::found::{Found, NONE};
use crate::history::{Marks, What};
use crate::id::{Connection, Room, Seq, Time, User};
use crate::report::Promise;
use crate::world::{Map, World};

/// What was told of somebody's marks, and by which records.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    pub(crate) delivered: Seq,
    pub(crate) delivered_by: u32,
    pub(crate) seen: Seq,
    pub(crate) seen_by: u32,
}

impl Default for Mark {
    fn default() -> Self {
        Self { delivered: Seq(0), delivered_by: NONE, seen: Seq(0), seen_by: NONE }
    }
}

impl Mark {
    fn raise(&mut self, delivered: Seq, seen: Seq, by: u32) {
        if delivered > self.delivered {
            (self.delivered, self.delivered_by) = (delivered, by);
        }
        if seen > self.seen {
            (self.seen, self.seen_by) = (seen, by);
        }
    }

    /// It was forgotten with its owner: what is told now counts.
    fn set(&mut self, delivered: Seq, seen: Seq, by: u32) {
        if delivered < self.delivered {
            (self.delivered, self.delivered_by) = (delivered, by);
        }
        if seen < self.seen {
            (self.seen, self.seen_by) = (seen, by);
        }
        self.raise(delivered, seen, by);
    }

    /// The mark that was more than this, if one was, and the record that told it.
    fn above(&self, delivered: Seq, seen: Seq) -> Option<(Seq, u32)> {
        if self.delivered > delivered {
            Some((self.delivered, self.delivered_by))
        } else if self.seen > seen {
            Some((self.seen, self.seen_by))
        } else {
            None
        }
    }
}

impl Pass<'_> {
    /// The reply to `mark`.
    pub(super) fn marked(&mut self, found: &mut Found<'_>, at: At, open: Open, marks: Marks) {
        let world = self.world;
        let At { index, on } = at;
        let What::Mark { delivered, seen, .. } = world.history.records[open.record as usize].what else {
            return;
        };
        let least = delivered.max(seen).unwrap_or_default();
        if marks.delivered < least || marks.seen < seen.unwrap_or_default() {
            found.broken(Promise::I11, index, |slice| {
                slice.say(format!("{}: the marks are below what was asked for", slice.room(open.room)));
                slice.record(open.record);
            });
        }
        self.marks_read(found, index, (on, open.room), open.record, marks);
    }

    /// A user reads its own marks: no less than what it was told before it asked.
    pub(super) fn marks_read(
        &mut self,
        found: &mut Found<'_>,
        index: u32,
        (on, room): (Connection, Room),
        asked: u32,
        marks: Marks,
    ) {
        let world = self.world;
        let user = self.user(on);
        judge_shape(world, found, index, room, marks.delivered, marks.seen);
        let stored = world.room(room).and_then(|room| room.row(marks.seen));
        if let Some(row) = stored
            && row.event.n != marks.seen_n
        {
            found.broken(Promise::I11, index, |slice| {
                slice.say(format!(
                    "{}: {} messages up to the mark {} are told, {} are there",
                    slice.room(room),
                    marks.seen_n,
                    marks.seen,
                    row.event.n
                ));
                slice.row(room, row);
            });
        }
        let mark = self.marks.entry((room, user)).or_default();
        // What was told while this was being asked may be newer.
        let fallen = mark.above(marks.delivered, marks.seen).filter(|(_, by)| *by < asked);
        if judge_fall(world, self.rules, found, &self.marks_asked, index, (room, user), fallen) {
            mark.set(marks.delivered, marks.seen, index);
        } else {
            mark.raise(marks.delivered, marks.seen, index);
        }
    }

    /// The push `marks`: never less than this connection was pushed before. One's own come by two ways that do not wait
    /// for each other, from the room and through the user's channel: clients take the larger, and replies are judged.
    pub(super) fn marks_pushed(
        &mut self,
        found: &mut Found<'_>,
        index: u32,
        (on, room, user): (Connection, Room, User),
        delivered: Seq,
        seen: Seq,
    ) {
        let world = self.world;
        judge_shape(world, found, index, room, delivered, seen);
        let own = self.user(on) == user;
        let mark = self.marks_pushed.entry((on, room, user)).or_default();
        let fallen = mark.above(delivered, seen).filter(|_| !own);
        if judge_fall(world, self.rules, found, &self.marks_asked, index, (room, user), fallen) {
            mark.set(delivered, seen, index);
        } else {
            mark.raise(delivered, seen, index);
        }
        self.marks.entry((room, user)).or_default().raise(delivered, seen, index);
    }

    /// 107 for a mark: only above the head.
    pub(super) fn mark_refused(&mut self, found: &mut Found<'_>, at: At, open: Open) {
        let world = self.world;
        let At { index, on } = at;
        let What::Mark { delivered, seen, .. } = world.history.records[open.record as usize].what else {
            return;
        };
        let Some(mark) = delivered.max(seen) else { return };
        found.checked(Promise::I10);
        if mark > Seq(0) && mark <= world.view(open.room, self.user(on)).cap(open.floor) {
            found.broken(Promise::I10, index, |slice| {
                slice.say(format!(
                    "{}: the mark {mark} is refused as above the head, and seq {} had been told",
                    slice.room(open.room),
                    open.floor
                ));
                slice.record(open.floor_by);
                slice.record(open.record);
                slice.with_owners(world.slot(open.room));
            });
        }
    }
}

fn judge_shape(world: &World<'_>, found: &mut Found<'_>, index: u32, room: Room, delivered: Seq, seen: Seq) {
    found.checked(Promise::I11);
    found.coverage.marks += 1;
    let head = world.room(room).map_or(Seq(u64::MAX), |room| room.last);
    if seen > delivered || delivered > head {
        found.broken(Promise::I11, index, |slice| {
            slice.say(format!(
                "{}: seen {seen}, delivered {delivered}, the head is {head} at the end",
                slice.room(room)
            ));
        });
    }
}

/// True if the fall is forgiven: the owner was lost meanwhile, or just before the client read what is gone.
fn judge_fall(
    world: &World<'_>,
    rules: &Rules,
    found: &mut Found<'_>,
    asked: &Map<(Room, User, Seq), Time>,
    index: u32,
    (room, user): (Room, User),
    fallen: Option<(Seq, u32)>,
) -> bool {
    let Some((mark, by)) = fallen else { return false };
    let at = |record: u32| world.history.records[record as usize].at;
    let told: Time = at(by);
    // Who sends has seen what it sent, and who joins what was there: these marks nobody asks for.
    let own = world.room(room).and_then(|room| room.row(mark)).is_none_or(|row| {
        row.event.sender == user || row.event.kind.concerns(row.event.sender) == Some(user)
    });
    let asked = asked.get(&(room, user, mark)).filter(|_| !own).copied().unwrap_or_default();
    let from = Time(told.0.saturating_sub(rules.marks_lost_us)).max(asked);
    if world.may_have_forgotten(room, from, at(index)) {
        return true;
    }
    found.broken(Promise::I11, index, |slice| {
        slice.say(format!("{}: a mark of {} goes back", slice.room(room), slice.user(user)));
        slice.record(by);
    });
    false
}
