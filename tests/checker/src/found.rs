//! Collects violations: of each promise the first, told with the records that show it.
//!
//! Always holds: a violation that is not kept costs a comparison, so that a run with a million of them is checked as
//! fast as a good one.

use crate::history::{Event, History, Kind, Range, Start, What};
use crate::id::{Room, Seq, User};
use crate::report::{Coverage, Line, Outcome, Promise, Report, State, Violation};
use crate::store::Row;

/// When a violation shows: the index of the record that shows it.
pub(crate) type At = u32;
/// Only the store shows it.
pub(crate) const STORE: At = u32::MAX;
/// No record.
pub(crate) const NONE: u32 = u32::MAX;

#[derive(Debug, Default)]
struct Tally {
    checked: u64,
    broken: u64,
    first: Option<(At, Violation)>,
}

#[derive(Debug)]
pub(crate) struct Found<'a> {
    history: &'a History,
    tallies: [Tally; 16],
    pub(crate) coverage: Coverage,
}

impl<'a> Found<'a> {
    pub(crate) fn new(history: &'a History) -> Self {
        Self { history, tallies: Default::default(), coverage: Coverage::default() }
    }

    /// The promise could have been broken here.
    pub(crate) fn checked(&mut self, promise: Promise) {
        self.tallies[promise as usize].checked += 1;
    }

    pub(crate) fn broken(&mut self, promise: Promise, at: At, tell: impl FnOnce(&mut Slice<'a>)) {
        let tally = &mut self.tallies[promise as usize];
        tally.broken += 1;
        if tally.first.as_ref().is_some_and(|(first, _)| *first <= at) {
            return;
        }
        let mut slice = Slice {
            history: self.history,
            what: String::new(),
            records: Vec::new(),
            rows: Vec::new(),
            spans: None,
        };
        if at != STORE {
            slice.record(at);
        }
        tell(&mut slice);
        tally.first = Some((at, slice.finish(promise, at)));
    }

    pub(crate) fn finish(self) -> Report {
        let outcomes = self
            .tallies
            .into_iter()
            .zip(Promise::ALL)
            .map(|(tally, promise)| Outcome {
                promise,
                state: match (tally.checked, tally.broken) {
                    (0, 0) => State::NotExercised,
                    (_, 0) => State::Held,
                    _ => State::Violated,
                },
                checked: tally.checked,
                broken: tally.broken,
                first: tally.first.map(|(_, violation)| violation),
            })
            .collect();
        Report { outcomes, coverage: self.coverage }
    }
}

/// What is told of one violation.
#[derive(Debug)]
pub(crate) struct Slice<'a> {
    history: &'a History,
    what: String,
    records: Vec<u32>,
    rows: Vec<String>,
    /// Whose changes of owner and kills between the first and the last record belong to the story.
    spans: Option<crate::id::Slot>,
}

impl Slice<'_> {
    pub(crate) fn say(&mut self, what: impl Into<String>) {
        self.what = what.into();
    }

    /// A record of the story; `NONE` is left out.
    pub(crate) fn record(&mut self, index: u32) {
        if index != NONE {
            self.records.push(index);
        }
    }

    pub(crate) fn row(&mut self, room: Room, row: &Row) {
        let mut text =
            format!("{}: {}", self.history.names.room_text(room), event_text(self.history, &row.event));
        if let Some(written) = &row.written {
            text += &format!(
                ", written under epoch {} part {} by {}",
                written.epoch, written.part, written.incarnation
            );
        }
        self.rows.push(text);
    }

    /// Something else that is known from the store or from the run.
    pub(crate) fn fact(&mut self, text: impl Into<String>) {
        self.rows.push(text.into());
    }

    /// Changes of this slot's owner, and kills, between the records are told too.
    pub(crate) fn with_owners(&mut self, slot: Option<crate::id::Slot>) {
        self.spans = slot;
    }

    pub(crate) fn room(&self, room: Room) -> String {
        self.history.names.room_text(room)
    }

    pub(crate) fn user(&self, user: User) -> String {
        self.history.names.user_text(user)
    }

    fn finish(mut self, promise: Promise, at: At) -> Violation {
        self.records.sort_unstable();
        self.records.dedup();
        let records: Vec<usize> = self.records.iter().map(|index| *index as usize).collect();
        let mut lines: Vec<Line> = records
            .iter()
            .map(|index| Line {
                at: Some(self.history.records[*index].at),
                text: record_text(self.history, *index),
            })
            .collect();
        if let (Some(slot), Some(first), Some(last)) =
            (self.spans, lines.first().and_then(|line| line.at), lines.last().and_then(|line| line.at))
        {
            let within = |at| first <= at && at <= last;
            for change in self.history.slots.iter().filter(|c| c.slot == slot && within(c.at)) {
                let text = format!(
                    "{slot} is owned by {} under epoch {} ({:?})",
                    change.owner, change.epoch, change.how
                );
                lines.push(Line { at: Some(change.at), text });
            }
            for fault in self.history.faults.iter().filter(|f| f.kind.takes_memory() && within(f.at)) {
                lines.push(Line { at: Some(fault.at), text: format!("{:?}", fault.kind) });
            }
            lines.sort_by_key(|line| line.at);
        }
        lines.extend(self.rows.into_iter().map(|text| Line { at: None, text }));
        let at = self.history.records.get(at as usize).map(|record| record.at);
        Violation { promise, at, what: self.what, slice: lines, records }
    }
}

fn event_text(history: &History, event: &Event) -> String {
    let names = &history.names;
    let what = match event.kind {
        Kind::Message => "message".to_owned(),
        Kind::Joined(user) => format!("joined {}", names.user_text(user)),
        Kind::Left(user) => format!("left {}", names.user_text(user)),
        Kind::Removed(user) => format!("removed {}", names.user_text(user)),
        Kind::RoleChanged(user) => format!("role of {}", names.user_text(user)),
        Kind::Created => "created".to_owned(),
        Kind::RoomChanged => "room changed".to_owned(),
        Kind::Other => "event".to_owned(),
    };
    let id = event.message.map(|message| format!(" {}", names.message_text(message))).unwrap_or_default();
    format!(
        "seq {} (n {}) {what}{id} of {}, content {}",
        event.seq,
        event.n,
        names.user_text(event.sender),
        event.content
    )
}

fn record_text(history: &History, index: usize) -> String {
    let record = &history.records[index];
    let names = &history.names;
    let room = |room: &Room| names.room_text(*room);
    let or = |seq: &Option<Seq>| seq.map_or_else(|| "none".to_owned(), |seq| seq.to_string());
    let text = match &record.what {
        What::Begin { session } => match history.sessions.get(session.0 as usize) {
            Some(user) => format!("begins, for {session} of {}", names.user_text(*user)),
            None => format!("begins, for {session}"),
        },
        What::End => "ends".to_owned(),
        What::Send { call, room: to, message, since, content } => {
            let id = names.message_text(*message);
            format!("{call} sends {id} to {}, since {}, content {content}", room(to), or(since))
        }
        What::Subscribe { call, room: to, start, mode } => {
            let start = match start {
                Start::After { seq, log } => {
                    let log = log.map(|log| format!(" of log {log}")).unwrap_or_default();
                    format!("after {seq}{log}")
                }
                Start::Last(n) => format!("the last {n}"),
                Start::Unread => "the unread".to_owned(),
            };
            format!("{call} subscribes to {} ({mode:?}), {start}", room(to))
        }
        What::Unsubscribe { call, room: to } => format!("{call} unsubscribes from {}", room(to)),
        What::History { call, room: to, range, limit } => {
            let range = match range {
                Range::After(seq) => format!("after {seq}"),
                Range::Before(seq) => format!("before {seq}"),
                Range::Newest => "the newest".to_owned(),
            };
            format!("{call} asks {} for history {range}, at most {limit}", room(to))
        }
        What::Mark { call, room: to, delivered, seen } => {
            format!("{call} marks {}: delivered {}, seen {}", room(to), or(delivered), or(seen))
        }
        What::Ask { call, room: to, about } => format!("{call} asks {}: {about:?}", room(to)),
        What::Sent { call, seq, duplicate, .. } => {
            format!("{call} is acked as seq {seq}{}", if *duplicate { ", a duplicate" } else { "" })
        }
        What::Subscribed { call, room: to, reply } => {
            let gap = reply.gap.map(|gap| format!(", gap {} to {}", gap.from, gap.to)).unwrap_or_default();
            format!(
                "{call} is subscribed to {}: from {}, head {} (n {}), log {}{gap}{}, delivered {}, seen {}",
                room(to),
                reply.from,
                reply.head,
                reply.n,
                reply.log,
                if reply.reset { ", reset" } else { "" },
                reply.marks.delivered,
                reply.marks.seen,
            )
        }
        What::UnsubscribeDone { call, room: to } => format!("{call} is unsubscribed from {}", room(to)),
        What::PageEvent { call, event } => format!("{call} is given {}", event_text(history, event)),
        What::PageGap { call, from, to, expired } => {
            format!("{call} is told of a gap {from} to {to}{}", if *expired { ", expired" } else { "" })
        }
        What::Page { call, head, more, .. } => {
            format!("{call} has its page: head {head}, {}", if *more { "more" } else { "no more" })
        }
        What::Marked { call, marks } => {
            format!(
                "{call} is answered: delivered {}, seen {} (n {})",
                marks.delivered, marks.seen, marks.seen_n
            )
        }
        What::Answered { call, head } => format!("{call} is answered, head {}", or(head)),
        What::Refused { call, room: of, code } => {
            let of = of.as_ref().map(|of| format!(" for {}", room(of))).unwrap_or_default();
            format!("{call} is refused{of} with {code}")
        }
        What::Event { room: of, event } => format!("is pushed {}: {}", room(of), event_text(history, event)),
        What::Gap { room: of, from, to, expired } => {
            format!("is pushed {}: gap {from} to {to}{}", room(of), if *expired { ", expired" } else { "" })
        }
        What::Unsubscribed { room: of, code } => format!("is pushed {}: unsubscribed, {code}", room(of)),
        What::Head { room: of, head, n } => format!("is pushed {}: head {head} (n {n})", room(of)),
        What::Marks { room: of, user, delivered, seen } => {
            format!(
                "is pushed {}: marks of {}: delivered {delivered}, seen {seen}",
                room(of),
                names.user_text(*user)
            )
        }
    };
    format!("{} {text}", record.on)
}
