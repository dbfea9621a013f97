//! Subscriptions: what each connection is pushed of a room, and where each session stands over its connections.

use super::{At, Open, Pass, judge_told, tell_view};
use crate::found::Found;
use crate::history::{Event, Mode, Start, Subscribed, What};
use crate::id::{Connection, Room, Seq, Session, Time};
use crate::report::Promise;
use crate::world::World;

/// One subscription of a connection.
#[derive(Debug)]
pub(super) struct Cursor {
    pub(super) mode: Mode,
    /// What must be pushed next.
    pub(super) next: Seq,
    /// Highest head that it was told.
    head: Seq,
    /// Records: the reply that began it, and what moved it last.
    pub(super) subscribed: u32,
    pub(super) last: u32,
    /// It resumes, and nothing was pushed yet.
    resumes: bool,
    pub(super) position: u32,
}

impl Cursor {
    pub(super) fn moved(&mut self, next: Seq, by: u32) {
        self.next = next;
        self.last = by;
        self.resumes = false;
    }
}

/// Where a session stands in a room, over all its connections.
#[derive(Debug)]
pub(crate) struct Position {
    pub(crate) session: Session,
    pub(crate) room: Room,
    /// It has been told everything up to here (a passive one: of the head).
    pub(crate) seq: Seq,
    pub(crate) by: u32,
    /// The same at the time by which all must live again.
    pub(crate) in_time: Seq,
}

impl Pass<'_> {
    /// The session has everything up to `seq`.
    pub(super) fn reached(&mut self, position: u32, seq: Seq, by: u32) {
        let world = self.world;
        let Some(position) = self.positions.get_mut(position as usize) else { return };
        (position.seq, position.by) = (seq, by);
        let at: Time = world.history.records[by as usize].at;
        if world.history.liveness.as_ref().is_some_and(|liveness| at <= liveness.deadline) {
            position.in_time = seq;
        }
    }

    fn position(&mut self, on: Connection, room: Room) -> Option<u32> {
        let session = self.connections.get(on.0 as usize)?.session?;
        let new = self.positions.len() as u32;
        let at = *self.position_of.entry((session, room)).or_insert(new);
        if at == new {
            self.positions.push(Position {
                session,
                room,
                seq: Seq(0),
                by: crate::found::NONE,
                in_time: Seq(0),
            });
        }
        Some(at)
    }

    /// A room of a `subscribe` is answered: a cursor begins.
    pub(super) fn subscribed(&mut self, found: &mut Found<'_>, at: At, open: Open, reply: &Subscribed) {
        let world = self.world;
        let At { index, on } = at;
        let room = open.room;
        let What::Subscribe { start, mode, .. } = world.history.records[open.record as usize].what else {
            return;
        };
        self.log_told(found, index, room, reply.log);
        self.read(found, at, open, reply.head);
        judge_n(world, found, index, room, reply.head, reply.n);
        self.marks_read(found, index, (on, room), open.record, reply.marks);
        if mode == Mode::Live {
            self.judge_start(found, at, open, start, reply);
        }
        found.coverage.resets += u64::from(reply.reset);
        found.coverage.gaps += u64::from(reply.gap.is_some());
        let again = self.connections.get(on.0 as usize).is_some_and(|state| state.again);
        let resumes = again && matches!(start, Start::After { .. });
        found.coverage.resumes += u64::from(resumes);
        let position = self.position(on, room).unwrap_or(u32::MAX);
        let next = if mode == Mode::Live { reply.from } else { reply.head.next() };
        self.cursor_of.insert((on, room), self.cursors.len() as u32);
        self.cursors.push(Cursor {
            mode,
            next,
            head: reply.head,
            subscribed: index,
            last: index,
            resumes,
            position,
        });
        self.reached(position, next.before(), index);
        self.told(room, reply.head, index);
    }

    /// Where a live cursor begins: right above what the client has, but for what is announced.
    fn judge_start(&mut self, found: &mut Found<'_>, at: At, open: Open, start: Start, reply: &Subscribed) {
        let world = self.world;
        let At { index, on } = at;
        let room = open.room;
        let user = self.user(on);
        let view = world.view(room, user);
        found.checked(Promise::I14);
        let mut broken = |what: String| {
            found.broken(Promise::I14, index, |slice| {
                slice.say(format!("{}: {what}", slice.room(room)));
                slice.record(open.record);
                if !view.out.is_empty() {
                    tell_view(slice, view);
                }
                slice.with_owners(world.slot(room));
            });
        };
        if let Start::After { seq, log } = start
            && reply.reset
            && log.is_none_or(|log| log == reply.log)
            && !view.unsettled
            && view.cap(seq) <= view.cap(open.floor)
            && view.sees(seq)
        {
            broken(format!(
                "a client that has everything up to {seq} of this very log is told to begin anew"
            ));
        }
        let end = reply.head.next();
        if reply.from > end || reply.from == Seq(0) {
            broken(format!("it begins at {}, and the head is {}", reply.from, reply.head));
        }
        if let Some(gap) = reply.gap
            && (gap.to.next() != reply.from || gap.from > gap.to)
        {
            broken(format!("it begins at {}, the gap before it is {} to {}", reply.from, gap.from, gap.to));
        }
        let wanted = match start {
            Start::After { seq, .. } if !reply.reset => seq.next().min(end),
            Start::Last(n) if !reply.reset => Seq(end.0.saturating_sub(u64::from(n)).max(1)),
            // The unread ones depend on marks, which may be behind.
            _ => return,
        };
        match reply.gap {
            None if reply.from != wanted => {
                broken(format!("it begins at {} and not at {wanted}, and no gap is announced", reply.from));
            }
            Some(gap) if gap.from != wanted => {
                broken(format!("the gap begins at {} and not at {wanted}", gap.from));
            }
            Some(gap) => {
                // Further behind than this may be left out; the rest only where the reader was out, or it is gone.
                let floor = world.room(room).map_or(Seq(0), |room| room.stored.floor);
                let near = Seq(end.0.saturating_sub(self.rules.behind)).max(wanted).max(floor.next());
                if let Some(seq) = view.first_visible(near, gap.to) {
                    broken(format!("seq {seq} is left out, though it is there, near and visible"));
                }
            }
            None => {}
        }
    }

    /// An event is pushed.
    pub(super) fn pushed(&mut self, found: &mut Found<'_>, at: At, room: Room, event: &Event) {
        let At { index, on } = at;
        found.coverage.pushed += 1;
        judge_told(self, found, index, room, event);
        self.told(room, event.seq, index);
        let user = self.user(on);
        self.judge_visible(found, at, room, event.seq);
        if event.sender == user
            && let Some(message) = event.message
        {
            self.own_event_pushed(at, room, message);
        }
        found.checked(Promise::I5);
        let Some(at) = self.live_cursor(on, room) else {
            found.broken(Promise::I5, index, |slice| {
                slice.say(format!(
                    "{}: an event to a connection that is not subscribed live",
                    slice.room(room)
                ));
            });
            return;
        };
        let cursor = &mut self.cursors[at as usize];
        if cursor.resumes {
            found.checked(Promise::I14);
        }
        if event.seq != cursor.next {
            // The first push of a resumed subscription tells that the resume went wrong.
            let promise = if cursor.resumes { Promise::I14 } else { Promise::I5 };
            let (next, last, subscribed) = (cursor.next, cursor.last, cursor.subscribed);
            found.broken(promise, index, |slice| {
                let room = slice.room(room);
                slice.say(if event.seq < next {
                    format!("{room}: seq {} is pushed after {}", event.seq, next.before())
                } else {
                    format!(
                        "{room}: seq {} is pushed after {}, no gap was announced",
                        event.seq,
                        next.before()
                    )
                });
                slice.record(subscribed);
                slice.record(last);
            });
        }
        let next = event.seq.next().max(cursor.next);
        cursor.moved(next, index);
        let position = cursor.position;
        self.reached(position, next.before(), index);
    }

    pub(super) fn gap(
        &mut self,
        found: &mut Found<'_>,
        at: At,
        room: Room,
        (from, to): (Seq, Seq),
        expired: bool,
    ) {
        let world = self.world;
        let At { index, on } = at;
        found.coverage.gaps += 1;
        found.checked(Promise::I5);
        let view = world.view(room, self.user(on));
        let Some(at) = self.live_cursor(on, room) else {
            found.broken(Promise::I5, index, |slice| {
                slice.say(format!("{}: a gap to a connection that is not subscribed live", slice.room(room)));
            });
            return;
        };
        let cursor = &mut self.cursors[at as usize];
        if from != cursor.next || to < from {
            let promise = if cursor.resumes { Promise::I14 } else { Promise::I5 };
            let (next, last, subscribed) = (cursor.next, cursor.last, cursor.subscribed);
            found.broken(promise, index, |slice| {
                slice.say(format!("{}: a gap {from} to {to} where {next} comes next", slice.room(room)));
                slice.record(subscribed);
                slice.record(last);
            });
        }
        // A gap is for who was out, for what is gone, and for who is far behind.
        if let Some(stored) = world.room(room)
            && !expired
        {
            found.checked(Promise::I14);
            let near = Seq(stored.last.0.saturating_sub(self.rules.behind));
            if to > near
                && let Some(seq) = view.first_visible(from.max(stored.stored.floor.next()), to)
            {
                let (last, subscribed) = (cursor.last, cursor.subscribed);
                found.broken(Promise::I14, index, |slice| {
                    slice.say(format!(
                        "{}: seq {seq} is left out, though it is there, near and visible",
                        slice.room(room)
                    ));
                    slice.record(subscribed);
                    slice.record(last);
                });
            }
        }
        let next = to.next().max(cursor.next);
        cursor.moved(next, index);
        let position = cursor.position;
        self.reached(position, next.before(), index);
    }

    /// I12: nothing of a time out of the room.
    pub(super) fn judge_visible(&mut self, found: &mut Found<'_>, at: At, room: Room, seq: Seq) {
        let world = self.world;
        let At { index, on } = at;
        let user = self.user(on);
        let view = world.view(room, user);
        if view.stranger || !view.out.is_empty() {
            found.checked(Promise::I12);
        }
        if !view.sees(seq) {
            found.broken(Promise::I12, index, |slice| {
                slice.say(format!(
                    "{}: seq {seq} reaches {}, who may not see it",
                    slice.room(room),
                    slice.user(user)
                ));
                tell_view(slice, view);
                if let Some((first, _)) = view.out_at(seq)
                    && let Some(row) = world.room(room).and_then(|room| room.row(first.before()))
                {
                    slice.row(room, row);
                }
            });
        }
    }

    /// The push `unsubscribed`: everything up to the removal has come, nothing follows.
    pub(super) fn unsubscribed(&mut self, found: &mut Found<'_>, at: At, room: Room, code: u16) {
        let world = self.world;
        let At { index, on } = at;
        let Some(at) = self.cursor_of.remove(&(on, room)) else { return };
        found.coverage.ended += 1;
        let cursor = &self.cursors[at as usize];
        if code != 123 || world.room(room).is_none() {
            return;
        }
        let user = self.user(on);
        let view = world.view(room, user);
        if cursor.mode == Mode::Passive {
            // It is not told of the head at which it ends.
            let (position, end) = (cursor.position, view.ends.iter().find(|end| **end >= cursor.head));
            if let Some(end) = end {
                self.reached(position, *end, index);
            }
            return;
        }
        found.checked(Promise::I12);
        let last = cursor.next.before();
        if !view.ends_at(last) {
            found.broken(Promise::I12, index, |slice| {
                slice.say(format!(
                    "{}: the subscription of {} ends after seq {last}, where it was not removed",
                    slice.room(room),
                    slice.user(user)
                ));
                let ends: Vec<String> = view.ends.iter().map(Seq::to_string).collect();
                slice.fact(format!("left or was removed at: {}", ends.join(", ")));
                slice.record(cursor.subscribed);
                slice.record(cursor.last);
            });
        }
    }

    /// A passive subscription is told of a head.
    pub(super) fn head(&mut self, found: &mut Found<'_>, at: At, room: Room, head: Seq, n: u64) {
        let world = self.world;
        let At { index, on } = at;
        found.coverage.heads += 1;
        self.judge_visible(found, at, room, head);
        judge_n(world, found, index, room, head, n);
        self.told(room, head, index);
        let Some(at) = self.cursor_of.get(&(on, room)).copied() else {
            found.checked(Promise::I5);
            found.broken(Promise::I5, index, |slice| {
                slice.say(format!("{}: a head to a connection that is not subscribed", slice.room(room)));
            });
            return;
        };
        found.checked(Promise::I10);
        let cursor = &mut self.cursors[at as usize];
        if head < cursor.head {
            let (was, last, subscribed) = (cursor.head, cursor.last, cursor.subscribed);
            found.broken(Promise::I10, index, |slice| {
                slice.say(format!("{}: the head goes back from {was} to {head}", slice.room(room)));
                slice.record(subscribed);
                slice.record(last);
                slice.with_owners(world.slot(room));
            });
            return;
        }
        cursor.head = head;
        if cursor.mode == Mode::Passive {
            cursor.moved(head.next(), index);
            let position = cursor.position;
            self.reached(position, head, index);
        }
    }
}

/// I2: the count of messages at a place in the log is part of what stands there.
fn judge_n(world: &World<'_>, found: &mut Found<'_>, index: u32, room: Room, head: Seq, n: u64) {
    let Some(row) = world.room(room).and_then(|room| room.row(head)) else { return };
    found.checked(Promise::I2);
    if row.event.n != n {
        found.broken(Promise::I2, index, |slice| {
            slice.say(format!(
                "{}: {n} messages up to seq {head} are told, {} are there",
                slice.room(room),
                row.event.n
            ));
            slice.row(room, row);
        });
    }
}
