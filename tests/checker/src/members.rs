//! The members as the store has them, against the log and against what was told: the parts of I11 and I12 that show
//! only at the end.

use crate::found::{Found, STORE};
use crate::history::Kind;
use crate::id::{Seq, Time, User};
use crate::pass::Pass;
use crate::report::Promise;
use crate::store::{MemberRow, Row};
use crate::world::{Map, RoomIndex, World};

pub(crate) fn judge(world: &World<'_>, pass: &Pass<'_>, found: &mut Found<'_>) {
    for room in world.rooms() {
        let Some(members) = &room.stored.members else { continue };
        let rows: Map<User, &MemberRow> = members.iter().map(|row| (row.user, row)).collect();
        judge_rows(room, &rows, pass, found);
        judge_marks(world, room, members, pass, found);
    }
}

/// A member's row knows every change that was ever told: it is written before.
fn judge_rows(room: &RoomIndex<'_>, rows: &Map<User, &MemberRow>, pass: &Pass<'_>, found: &mut Found<'_>) {
    let id = room.stored.room;
    let told = pass.room(id).map_or(Seq(0), |state| state.told);
    let mut newest: Map<User, &Row> = Map::default();
    for row in &room.stored.rows {
        // Who made the room may be an application, which is no member.
        if row.event.seq <= told
            && row.event.kind != Kind::Created
            && let Some(user) = row.event.kind.concerns(row.event.sender)
        {
            newest.insert(user, row);
        }
    }
    let mut users: Vec<_> = newest.into_iter().collect();
    users.sort_unstable_by_key(|(user, row)| (row.event.seq, *user));
    for (user, event) in users {
        found.checked(Promise::I12);
        let seq = event.event.seq;
        let right = rows.get(&user).is_some_and(|row| {
            row.changed > seq
                || row.changed == seq
                    && match event.event.kind {
                        Kind::Left(_) | Kind::Removed(_) => row.role == 0 && row.left == Some(seq),
                        Kind::Joined(_) => row.role != 0 && row.left.is_none() && row.joined == seq,
                        _ => row.role != 0,
                    }
        });
        if !right {
            found.broken(Promise::I12, STORE, |slice| {
                slice.say(format!(
                    "{}: the member row of {} does not know seq {seq}, which was told",
                    slice.room(id),
                    slice.user(user)
                ));
                slice.row(id, event);
                slice.fact(match rows.get(&user) {
                    Some(row) => format!("the row: {row:?}"),
                    None => "there is no row".to_owned(),
                });
            });
        }
    }
}

fn judge_marks(
    world: &World<'_>,
    room: &RoomIndex<'_>,
    members: &[MemberRow],
    pass: &Pass<'_>,
    found: &mut Found<'_>,
) {
    let id = room.stored.room;
    for row in members {
        found.checked(Promise::I11);
        let marks = row.marks;
        if marks.seen > marks.delivered || marks.delivered > room.last {
            found.broken(Promise::I11, STORE, |slice| {
                slice.say(format!(
                    "{}: the marks of {} in the store: seen {}, delivered {}, the log ends at {}",
                    slice.room(id),
                    slice.user(row.user),
                    marks.seen,
                    marks.delivered,
                    room.last
                ));
            });
        }
        let Some(told) = pass.marks.get(&(id, row.user)) else { continue };
        let (least, by) = if told.delivered > marks.delivered {
            (told.delivered, told.delivered_by)
        } else if told.seen > marks.seen {
            (told.seen, told.seen_by)
        } else {
            continue;
        };
        // The last moment of a run is as good as a crash; and a fault may have kept the store from taking it.
        let at = world.history.records[by as usize].at;
        let from = Time(at.0.saturating_sub(MARGIN_US));
        let disturbed = world.history.faults.iter().any(|fault| fault.at >= from);
        if disturbed || at.plus(MARGIN_US) >= pass.end || world.may_have_forgotten(id, from, pass.end) {
            continue;
        }
        found.broken(Promise::I11, by, |slice| {
            slice.say(format!(
                "{}: the mark {least} of {} was told; the store has delivered {}, seen {}",
                slice.room(id),
                slice.user(row.user),
                marks.delivered,
                marks.seen
            ));
        });
    }
}

/// Marks are written within a second; this is plenty.
const MARGIN_US: u64 = 5_000_000;
