//! I15: after the last fault heals every room takes a send, and every subscriber reaches the head.

use crate::found::{Found, NONE, STORE};
use crate::id::{Room, Seq, Session, User};
use crate::pass::{Pass, Position};
use crate::report::Promise;
use crate::world::{Map, World};

pub(crate) fn judge(world: &World<'_>, pass: &Pass<'_>, found: &mut Found<'_>) {
    let Some(liveness) = &world.history.liveness else { return };
    for room in &liveness.rooms {
        found.checked(Promise::I15);
        let acked = pass.room(*room).and_then(|state| state.acked_since_heal);
        let in_time =
            acked.is_some_and(|record| world.history.records[record as usize].at <= liveness.deadline);
        if !in_time {
            found.broken(Promise::I15, STORE, |slice| {
                slice.say(format!(
                    "{} has acked no send from {:.3} s, when all was healed, to {:.3} s",
                    slice.room(*room),
                    liveness.healed.0 as f64 / 1e6,
                    liveness.deadline.0 as f64 / 1e6
                ));
                slice.record(acked.unwrap_or(NONE));
            });
        }
    }
    let positions: Map<(Session, Room), &Position> =
        pass.positions.iter().map(|position| ((position.session, position.room), position)).collect();
    for (session, room) in &liveness.subscribers {
        found.checked(Promise::I15);
        let user = world.history.sessions.get(session.0 as usize).copied().unwrap_or(User(u32::MAX));
        let view = world.view(*room, user);
        if view.unsettled {
            continue;
        }
        let visible = |seq: Seq| view.out_at(seq).map_or(seq, |(first, _)| first.before());
        let state = pass.room(*room);
        let half = visible(state.and_then(|state| state.told_at_half).unwrap_or_default());
        let end = match world.room(*room) {
            Some(stored) => stored.last,
            None => state.map_or(Seq(0), |state| state.told),
        };
        let end = if liveness.settled { visible(end) } else { Seq(0) };
        let position = positions.get(&(*session, *room));
        let (seq, in_time, by) = position.map_or((Seq(0), Seq(0), NONE), |p| (p.seq, p.in_time, p.by));
        if in_time < half || seq < end {
            found.broken(Promise::I15, STORE, |slice| {
                let who = format!("{session} of {}", slice.user(user));
                slice.say(if seq < end {
                    format!("{}: {who} ended at seq {seq}, the log at {end}", slice.room(*room))
                } else {
                    format!(
                        "{}: {who} stood at seq {in_time} at {:.3} s; {half} had been told long before",
                        slice.room(*room),
                        liveness.deadline.0 as f64 / 1e6
                    )
                });
                slice.record(by);
            });
        }
    }
}
