//! What the store alone must look like: dense seqs and counts, epochs that never fall, times that never fall.

use crate::facts::SlotChange;
use crate::found::{Found, STORE};
use crate::history::Kind;
use crate::id::{Epoch, Incarnation, Seq, Slot, Time};
use crate::report::Promise;
use crate::store::{Row, StoredRoom, Written};
use crate::world::{Map, World};

/// I3, I4, and the part of I5 that rows show.
pub(crate) fn judge(world: &World<'_>, found: &mut Found<'_>) {
    let mut owners = slots(world, found);
    for room in world.rooms() {
        found.coverage.stored += room.stored.rows.len() as u64;
        found.coverage.void += room.stored.void.len() as u64;
        dense(room.stored, found);
        epochs(room.stored, &mut owners, found);
    }
}

/// Who owned a slot under an epoch, as somebody has said.
type Owners = Map<(Slot, Epoch), Incarnation>;

/// The slots' own history: epochs rise, each has one owner.
///
/// They fall where somebody becomes owner under a lower epoch after the owner of a higher one has served. Before that one serves
/// it has not registered: an etcd that is set back meanwhile may give the slot away under lower epochs, and whoever registers
/// under the higher one then ends those owners first: whoever serves under the lower one all the same has been fenced before, or
/// that, too, is a fall.
fn slots(world: &World<'_>, found: &mut Found<'_>) -> Owners {
    let mut owners = Owners::default();
    let mut of_slots: Map<Slot, Vec<&SlotChange>> = Map::default();
    let mut fenced: Map<Incarnation, Time> = Map::default();
    for fence in &world.history.fences {
        let at = fenced.entry(fence.incarnation).or_insert(fence.at);
        *at = fence.at.min(*at);
    }
    for change in &world.history.slots {
        found.checked(Promise::I4);
        let told = |slice: &mut crate::found::Slice<'_>, what: String| {
            slice.say(what);
            for other in
                world.history.slots.iter().filter(|o| o.slot == change.slot && o.epoch >= change.epoch)
            {
                let seconds = |at: Time| at.0 as f64 / 1e6;
                let served =
                    other.served.map(|at| format!(", served from {:.6} s", seconds(at))).unwrap_or_default();
                slice.fact(format!(
                    "{:.6} s: {} is owned by {} under epoch {} ({:?}){served}",
                    seconds(other.at),
                    other.slot,
                    other.owner,
                    other.epoch,
                    other.how
                ));
            }
        };
        let of_slot = of_slots.entry(change.slot).or_default();
        let served = |change: &SlotChange| change.served.unwrap_or(change.at);
        // Both have served, the one of the lower epoch last, and nobody had ended that one.
        let serves_last = |lower: &SlotChange, higher: &SlotChange| {
            let fenced_first = fenced.get(&lower.owner).is_some_and(|fence| *fence <= served(higher));
            lower.owner != higher.owner && served(higher) < served(lower) && !fenced_first
        };
        let before = of_slot
            .iter()
            .filter(|other| served(other) <= change.at || serves_last(change, other))
            .map(|other| (other.epoch, change.epoch));
        let after = of_slot
            .iter()
            .filter(|other| other.epoch < change.epoch && serves_last(other, change))
            .map(|other| (change.epoch, other.epoch));
        let fall = before.max().into_iter().chain(after.max()).find(|(from, to)| from >= to);
        of_slot.push(change);
        if let Some((from, to)) = fall {
            let what = format!("{} goes from epoch {from} to {to}", change.slot);
            found.broken(Promise::I4, STORE, |slice| told(slice, what));
        }
        let owner = *owners.entry((change.slot, change.epoch)).or_insert(change.owner);
        if owner != change.owner {
            let what = format!("epoch {} of {} has two owners", change.epoch, change.slot);
            found.broken(Promise::I4, STORE, |slice| told(slice, what));
        }
    }
    owners
}

fn dense(stored: &StoredRoom, found: &mut Found<'_>) {
    let room = stored.room;
    let mut before: Option<&Row> = None;
    for row in &stored.rows {
        let want = before.map_or(stored.floor, |row| row.event.seq).next();
        found.checked(Promise::I3);
        if row.event.seq != want {
            found.broken(Promise::I3, STORE, |slice| {
                slice.say(format!("{}: seq {} stands where {want} must", slice.room(room), row.event.seq));
                before.into_iter().chain([row]).for_each(|row| slice.row(room, row));
            });
        } else if let Some(of) = before {
            let n = of.event.n + u64::from(row.event.kind == Kind::Message);
            if row.event.n != n {
                found.broken(Promise::I3, STORE, |slice| {
                    slice.say(format!(
                        "{}: {n} messages up to seq {want}, the row says {}",
                        slice.room(room),
                        row.event.n
                    ));
                    slice.row(room, of);
                    slice.row(room, row);
                });
            }
            found.checked(Promise::I5);
            if row.event.at < of.event.at {
                found.broken(Promise::I5, STORE, |slice| {
                    slice.say(format!(
                        "{}: `at` falls from {} to {} at seq {want}",
                        slice.room(room),
                        of.event.at,
                        row.event.at
                    ));
                    slice.row(room, of);
                    slice.row(room, row);
                });
            }
        }
        before = Some(row);
    }
    let last = before.map_or(stored.floor, |row| row.event.seq);
    if let Some(head) = stored.head
        && head != last
    {
        found.broken(Promise::I3, STORE, |slice| {
            slice.say(format!("{}: the head is {head}, the last event is {last}", slice.room(room)));
            before.into_iter().for_each(|row| slice.row(room, row));
        });
    }
}

fn epochs(stored: &StoredRoom, owners: &mut Owners, found: &mut Found<'_>) {
    let room = stored.room;
    let mut before: Option<(&Row, &Written)> = None;
    for row in &stored.rows {
        let Some(written) = &row.written else { continue };
        found.checked(Promise::I4);
        let owner = *owners.entry((stored.slot, written.epoch)).or_insert(written.incarnation);
        if owner != written.incarnation {
            found.broken(Promise::I4, STORE, |slice| {
                slice.say(format!(
                    "{}: epoch {} of {} belongs to {owner}, but seq {} was written under it by {}",
                    slice.room(room),
                    written.epoch,
                    stored.slot,
                    row.event.seq,
                    written.incarnation
                ));
                before.into_iter().for_each(|(row, _)| slice.row(room, row));
                slice.row(room, row);
            });
        }
        if let Some((of, was)) = before
            && (written.epoch, written.part) < (was.epoch, was.part)
        {
            found.broken(Promise::I4, STORE, |slice| {
                slice.say(format!(
                    "{}: from seq {} to {} the epoch falls from {} part {} to {} part {}",
                    slice.room(room),
                    of.event.seq,
                    row.event.seq,
                    was.epoch,
                    was.part,
                    written.epoch,
                    written.part
                ));
                slice.row(room, of);
                slice.row(room, row);
            });
        }
        let begins = written.batch_first == row.event.seq;
        let goes_on = before.is_some_and(|(of, was)| {
            was.batch_first == written.batch_first
                && of.event.seq.next() == row.event.seq
                && same_segment(was, written)
        });
        // The batch of the first row that is left may have begun below the floor.
        let cut = before.is_none() && stored.floor > Seq(0) && written.batch_first <= row.event.seq;
        if !begins && !goes_on && !cut {
            found.broken(Promise::I4, STORE, |slice| {
                slice.say(format!(
                    "{}: seq {} says that its batch begins at {}, which the rows before it do not bear out",
                    slice.room(room),
                    row.event.seq,
                    written.batch_first
                ));
                before.into_iter().for_each(|(row, _)| slice.row(room, row));
                slice.row(room, row);
            });
        }
        before = Some((row, written));
    }
}

fn same_segment(a: &Written, b: &Written) -> bool {
    (a.epoch, a.part, a.incarnation) == (b.epoch, b.part, b.incarnation)
}
