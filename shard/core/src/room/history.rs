//! Pages of the log, for clients (as far as the caller may see) and for gateways.
//!
//! A page for a client is at most one gap and one contiguous run after it, in the direction asked: seqs are dense, so
//! which seqs it holds is known before anything is read.

use std::sync::Arc;

use banyan_proto::codes::Code;
use banyan_proto::event::LoggedEvent;
use banyan_proto::id::{Seq, UserId};
use banyan_proto::link::{Answer, LinkId, Page, Ticket};
use banyan_proto::v1;
use banyan_proto::v1::event::Kind;
use banyan_proto::v1::server_frame::Body;
use banyan_storage::{Range, ReadLimit, Row};

use super::{Action, Grade, Now, PullRequest, ReadFor, Room, decode, refusal, refuse};
use crate::members::View;
use crate::permission::Act;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Direction {
    /// Towards head, lowest first.
    Up,
    /// Towards the beginning; still told ascending.
    Down,
}

/// What a page will hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Run {
    direction: Direction,
    gaps: Vec<v1::Gap>,
    /// First and last seq.
    seqs: Option<(Seq, Seq)>,
    /// Further visible events in the direction asked.
    more: bool,
}

impl Run {
    /// Events above `after`.
    fn up(view: &View, after: Seq, limit: u64) -> Self {
        let mut run = Self { direction: Direction::Up, gaps: Vec::new(), seqs: None, more: false };
        let mut low = after.next();
        if low <= view.floor {
            run.gap(low, view.floor, true);
            low = view.floor.next();
        }
        if let Some((_, last)) = view.hides(low) {
            let last = last.min(view.upper);
            run.gap(low, last, false);
            low = last.next();
        }
        if low > view.upper {
            return run;
        }
        let wall = view.out.iter().find(|(first, _)| *first > low);
        let free = wall.map_or(view.upper, |(first, _)| Seq(first.0 - 1).min(view.upper));
        let high = free.min(Seq(low.0 + limit - 1));
        run.seqs = Some((low, high));
        // Above an interval out of the room lies the return; if that left no event, the next page announces the interval alone.
        run.more = high < free || wall.is_some_and(|(first, _)| *first <= view.upper);
        run
    }

    /// Events below `before`.
    fn down(view: &View, before: Seq, limit: u64) -> Self {
        let mut run = Self { direction: Direction::Down, gaps: Vec::new(), seqs: None, more: false };
        let mut high = Seq(before.0.saturating_sub(1)).min(view.upper);
        if let Some((first, _)) = view.hides(high) {
            run.gap(first, high, false);
            high = Seq(first.0 - 1);
        }
        if high <= view.floor {
            if high > Seq(0) {
                run.gap(Seq(1), high, true);
            }
            return run;
        }
        let wall = view.out.iter().rev().find(|(_, last)| *last < high);
        let free = wall.map_or_else(|| view.floor.next(), |(_, last)| last.next().max(view.floor.next()));
        let low = free.max(Seq((high.0 + 1).saturating_sub(limit)));
        run.seqs = Some((low, high));
        run.more = low > free || wall.is_some_and(|(_, last)| *last > view.floor);
        run
    }

    fn gap(&mut self, from: Seq, to: Seq, expired: bool) {
        self.gaps.push(v1::Gap { from: from.0, to: to.0, expired: expired.then_some(true) });
    }
}

impl View {
    fn hides(&self, seq: Seq) -> Option<(Seq, Seq)> {
        self.out.iter().copied().find(|(first, last)| (*first..=*last).contains(&seq))
    }
}

impl Room {
    #[expect(clippy::too_many_arguments, reason = "who asks, and the fields of the command")]
    pub(super) fn history(
        &mut self,
        link: LinkId,
        ticket: Ticket,
        user: &UserId,
        before: Option<Seq>,
        after: Option<Seq>,
        limit: u32,
        out: &mut Vec<Action>,
    ) {
        if let Err(error) = self.may(user, Act::Read) {
            return refuse(link, ticket, error, out);
        }
        let Some((state, member)) = self.seen_by(user) else {
            return refuse(link, ticket, refusal(Code::UnknownRoom), out);
        };
        let view = View::new(&member.row, state.head, state.row.floor);
        let limit = u64::from(limit.clamp(1, 100));
        let run = match (before, after) {
            (None, Some(after)) => Run::up(&view, after, limit),
            (before, None) => Run::down(&view, before.unwrap_or(Seq(u64::MAX)), limit),
            (Some(_), Some(_)) => {
                return refuse(
                    link,
                    ticket,
                    Code::BadRequest.error("`before` and `after` exclude each other"),
                    out,
                );
            }
        };
        let Some((low, high)) = run.seqs else {
            return self.history_page(link, ticket, view.upper, &run, &[], out);
        };
        if let Some(events) = state.tail.range(low, high) {
            let events: Vec<Arc<LoggedEvent>> = events.cloned().collect();
            return self.history_page(link, ticket, view.upper, &run, &events, out);
        }
        let range = match run.direction {
            Direction::Up => Range::After { after: Seq(low.0 - 1), through: high },
            Direction::Down => Range::Before { before: high.next(), above: Seq(low.0 - 1) },
        };
        // The size as stored is below that in JSON: more would be cut off again.
        let limit = ReadLimit { events: (high.0 - low.0 + 1) as usize, bytes: self.config.page_bytes };
        self.read(ReadFor::History { link, ticket, upper: view.upper, run }, range, limit, out);
    }

    pub(super) fn history_read(
        &mut self,
        link: LinkId,
        ticket: Ticket,
        upper: Seq,
        run: &Run,
        rows: Option<(Vec<Row>, bool)>,
        out: &mut Vec<Action>,
    ) {
        let Some((rows, _)) = rows else {
            return refuse(link, ticket, Code::Unavailable.error("the log cannot be read now"), out);
        };
        let edge = run.seqs.map(|(low, high)| match run.direction {
            Direction::Up => Edge::First(low),
            Direction::Down => Edge::Last(high),
        });
        match decode_all(&rows, edge) {
            Ok(events) => self.history_page(link, ticket, upper, run, &events, out),
            Err(after) => {
                out.push(Action::Damaged { after });
                refuse(link, ticket, Code::Internal.error("the room's log is damaged"), out);
            }
        }
    }

    /// Answers with as many of the events as fit into a frame, from the side that was asked for.
    fn history_page(
        &self,
        link: LinkId,
        ticket: Ticket,
        upper: Seq,
        run: &Run,
        events: &[Arc<LoggedEvent>],
        out: &mut Vec<Action>,
    ) {
        let Some(state) = self.state.as_deref() else { return };
        let fitting = |events: &mut dyn Iterator<Item = &Arc<LoggedEvent>>| {
            let mut bytes = 0;
            let mut count = 0;
            for event in events {
                bytes += json_bytes(&event.event);
                if count > 0 && bytes > self.config.page_bytes {
                    break;
                }
                count += 1;
            }
            count
        };
        let page = match run.direction {
            Direction::Up => &events[..fitting(&mut events.iter())],
            Direction::Down => &events[events.len() - fitting(&mut events.iter().rev())..],
        };
        let wanted = run.seqs.map_or(0, |(low, high)| high.0 - low.0 + 1);
        let reply = v1::HistoryReply {
            events: page.iter().map(|event| event.event.clone()).collect(),
            gaps: run.gaps.clone(),
            log: state.row.log.to_string(),
            head: upper.0,
            more: run.more || (page.len() as u64) < wanted,
        };
        out.push(Action::Answer { link, ticket, answer: Answer::Body(Box::new(Body::History(reply))) });
    }

    /// A gateway's cursors are below its ring, or it missed something.
    pub(super) fn pull(&mut self, now: Now, pull: PullRequest, out: &mut Vec<Action>) {
        let refuse = |error: v1::Error, out: &mut Vec<Action>| {
            out.push(Action::Page { link: pull.link, ticket: pull.ticket, page: Err(error) });
        };
        if self.leaving {
            return out.push(Action::Return { link: pull.link, ticket: pull.ticket });
        }
        if self.grade.is_none() {
            if self.pulls.len() >= self.config.reads {
                let error = Code::Overloaded
                    .error_retry_after("the room is being opened", self.config.retry_after_ms);
                return refuse(error, out);
            }
            self.pulls.push((now.mono_ms, pull));
            return self.open(now, Grade::ReadOpen, out);
        }
        let Some(state) = self.state.as_deref() else {
            return refuse(refusal(Code::UnknownRoom), out);
        };
        let through = pull.through.unwrap_or(state.head).min(state.head);
        let low = pull.after.max(state.row.floor).next();
        if low > through {
            let page = self.page(Vec::new(), through);
            return out.push(Action::Page { link: pull.link, ticket: pull.ticket, page: Ok(page) });
        }
        let limit = self.pull_limit(&pull);
        if let Some(events) = state.tail.range(low, through) {
            let mut bytes = 0;
            let events: Vec<_> = events
                .take(limit.events)
                .take_while(|event| {
                    let first = bytes == 0;
                    bytes += event.encoded.len();
                    first || bytes <= limit.bytes
                })
                .cloned()
                .collect();
            let page = self.page(events, through);
            return out.push(Action::Page { link: pull.link, ticket: pull.ticket, page: Ok(page) });
        }
        let range = Range::After { after: Seq(low.0 - 1), through };
        self.read(ReadFor::Pull { pull, through }, range, limit, out);
    }

    pub(super) fn pull_read(
        &mut self,
        pull: PullRequest,
        through: Seq,
        rows: Option<(Vec<Row>, bool)>,
        out: &mut Vec<Action>,
    ) {
        let low = self.state.as_deref().map(|state| pull.after.max(state.row.floor).next());
        let page = match rows.map(|(rows, _)| decode_all(&rows, low.map(Edge::First))) {
            Some(Ok(events)) => Ok(self.page(events, through)),
            Some(Err(after)) => {
                out.push(Action::Damaged { after });
                Err(Code::Internal.error("the room's log is damaged"))
            }
            None => Err(Code::Unavailable.error("the log cannot be read now")),
        };
        out.push(Action::Page { link: pull.link, ticket: pull.ticket, page });
    }

    fn pull_limit(&self, pull: &PullRequest) -> ReadLimit {
        ReadLimit {
            events: (pull.max_events as usize).clamp(1, self.config.pull_events),
            bytes: (pull.max_bytes as usize).clamp(1, self.config.pull_bytes),
        }
    }

    fn page(&self, events: Vec<Arc<LoggedEvent>>, through: Seq) -> Page {
        let (head, n, floor) = self
            .state
            .as_deref()
            .map_or_else(Default::default, |state| (state.head, state.n, state.row.floor));
        let more = events.last().is_some_and(|last| last.seq() < through);
        Page { events, head, n, floor, more }
    }
}

/// A seq that must be among the rows, at the side from which the page fills.
#[derive(Debug, Clone, Copy)]
enum Edge {
    First(Seq),
    Last(Seq),
}

/// Rows without a hole, from the edge on. Err: the seq above which they cannot be read.
fn decode_all(rows: &[Row], edge: Option<Edge>) -> Result<Vec<Arc<LoggedEvent>>, Seq> {
    let mut before = Seq(rows.first().map_or(0, |row| row.seq.0.saturating_sub(1)));
    match edge {
        Some(Edge::First(first)) if rows.first().is_none_or(|row| row.seq != first) => {
            return Err(Seq(first.0.saturating_sub(1)));
        }
        Some(Edge::Last(last)) if rows.last().is_none_or(|row| row.seq != last) => {
            return Err(rows.last().map_or(before, |row| row.seq));
        }
        _ => {}
    }
    rows.iter()
        .map(|row| {
            let event = decode(row, before)?;
            before = row.seq;
            Ok(Arc::new(event))
        })
        .collect()
}

/// At least as many bytes as the event's JSON has: without encoding it.
fn json_bytes(event: &v1::Event) -> usize {
    // Keys, numbers and punctuation of the largest kind.
    const AROUND: usize = 360;
    let escaped = |text: &str| {
        text.bytes()
            .map(|byte| if byte < 0x20 || byte == b'"' || byte == b'\\' { 6 } else { 1 })
            .sum::<usize>()
            + 2
    };
    let kind = match &event.kind {
        Some(Kind::Message(message)) => {
            escaped(&message.text)
                + escaped(&message.content_type)
                + message.mentions.iter().map(|user| escaped(user) + 1).sum::<usize>()
                + message.data.as_ref().map_or(0, |data| data.len())
        }
        Some(Kind::Created(created)) => escaped(&created.name),
        Some(Kind::Joined(joined)) => escaped(&joined.user) + escaped(&joined.name) + 140,
        Some(Kind::RoomChanged(changed)) => changed.name.as_deref().map_or(0, escaped),
        // User ids need no escape.
        Some(Kind::Left(_) | Kind::Removed(_) | Kind::RoleChanged(_)) => 280,
        None => 0,
    };
    AROUND
        + kind
        + event.room.len()
        + escaped(&event.sender)
        + escaped(&event.sender_name)
        + event.client_msg_id.as_deref().map_or(0, escaped)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn view(upper: u64, floor: u64, out: &[(u64, u64)]) -> View {
        View {
            floor: Seq(floor),
            upper: Seq(upper),
            out: out.iter().map(|(first, last)| (Seq(*first), Seq(*last))).collect(),
            end: None,
        }
    }

    fn check(run: &Run, gaps: &[(u64, u64)], seqs: Option<(u64, u64)>, more: bool) {
        let got: Vec<_> = run.gaps.iter().map(|gap| (gap.from, gap.to)).collect();
        assert_eq!(
            (got.as_slice(), run.seqs.map(|(low, high)| (low.0, high.0)), run.more),
            (gaps, seqs, more)
        );
    }

    #[test]
    fn pages_stop_at_intervals_and_the_next_one_announces_them() {
        let view = view(20, 0, &[(5, 8)]);
        check(&Run::up(&view, Seq(0), 50), &[], Some((1, 4)), true);
        check(&Run::up(&view, Seq(4), 50), &[(5, 8)], Some((9, 20)), false);
        check(&Run::up(&view, Seq(6), 2), &[(7, 8)], Some((9, 10)), true);
        check(&Run::down(&view, Seq(u64::MAX), 50), &[], Some((9, 20)), true);
        check(&Run::down(&view, Seq(9), 50), &[(5, 8)], Some((1, 4)), false);
        check(&Run::down(&view, Seq(7), 1), &[(5, 6)], Some((4, 4)), true);
        check(&Run::up(&view, Seq(20), 50), &[], None, false);
        check(&Run::down(&view, Seq(1), 50), &[], None, false);
    }

    #[test]
    fn what_is_gone_for_good_is_a_gap() {
        let view = view(20, 10, &[]);
        check(&Run::up(&view, Seq(3), 5), &[(4, 10)], Some((11, 15)), true);
        check(&Run::down(&view, Seq(14), 5), &[], Some((11, 13)), false);
        check(&Run::down(&view, Seq(8), 5), &[(1, 7)], None, false);
        assert_eq!(Run::down(&view, Seq(8), 5).gaps[0].expired, Some(true));
    }

    #[test]
    fn json_is_never_larger_than_it_was_thought() {
        let names = ["plain", "\"\\\u{1}\u{1f}", "ü😀"];
        for name in names {
            for kind in [
                Kind::Message(v1::Message {
                    text: name.repeat(100),
                    content_type: "text/plain".to_owned(),
                    reply_to: Some(u64::MAX >> 11),
                    mentions: vec!["u".repeat(128); 50],
                    data: Some("{\"a\":[1]}".into()),
                }),
                Kind::Joined(v1::Joined {
                    user: "u".repeat(128),
                    name: name.repeat(20),
                    role: 4,
                    by: Some("b".repeat(128)),
                }),
                Kind::Removed(v1::Removed { user: "u".repeat(128), by: "b".repeat(128) }),
                Kind::RoleChanged(v1::RoleChanged { user: "u".repeat(128), role: 3, by: "b".repeat(128) }),
                Kind::Left(v1::Left { user: "u".repeat(128) }),
                Kind::Created(v1::Created { kind: 3, name: name.repeat(30), public: false }),
                Kind::RoomChanged(v1::RoomChanged { name: Some(name.repeat(30)), public: Some(false) }),
            ] {
                let event = v1::Event {
                    room: "r".repeat(128),
                    seq: u64::MAX >> 11,
                    at: u64::MAX >> 11,
                    n: u64::MAX >> 11,
                    sender: "s".repeat(128),
                    sender_name: name.repeat(10),
                    client_msg_id: Some(name.to_owned()),
                    kind: Some(kind),
                };
                let thought = json_bytes(&event);
                let logged = LoggedEvent::new(event, banyan_proto::id::Origin(0));
                assert!(
                    logged.json_push().len() <= thought,
                    "{}",
                    String::from_utf8_lossy(logged.json_push())
                );
            }
        }
    }

    proptest! {
        /// Walking through all pages, either way, meets every visible event once, in order, and announces the rest.
        #[test]
        fn a_walk_meets_every_visible_event_once(
            upper in 0_u64..60,
            floor in 0_u64..10,
            cuts in proptest::collection::btree_set(1_u64..60, 0..8),
            limit in 1_u64..7,
        ) {
            let floor = floor.min(upper);
            let cuts: Vec<u64> = cuts.into_iter().collect();
            // Between two intervals lies at least one visible event: the return. Who came back without an event has none yet.
            let out: Vec<(u64, u64)> =
                cuts.chunks_exact(2).map(|pair| (pair[0], pair[1] - 1)).filter(|(a, b)| a <= b && *b <= upper).collect();
            let view = view(upper, floor, &out);
            let visible: Vec<u64> = (1..=upper).filter(|seq| view.sees(Seq(*seq))).collect();

            let (mut met, mut told, mut after) = (Vec::new(), Vec::new(), Seq(0));
            loop {
                let run = Run::up(&view, after, limit);
                told.extend(run.gaps.iter().flat_map(|gap| gap.from..=gap.to));
                if let Some((low, high)) = run.seqs {
                    prop_assert!(high.0 - low.0 < limit);
                    met.extend(low.0..=high.0);
                    after = high;
                }
                if !run.more { break }
                prop_assert!(run.seqs.is_some());
            }
            prop_assert_eq!(&met, &visible);
            let mut all: Vec<u64> = met.iter().chain(&told).copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (1..=upper).collect::<Vec<_>>());

            let (mut met, mut before) = (Vec::new(), Seq(u64::MAX));
            loop {
                let run = Run::down(&view, before, limit);
                if let Some((low, high)) = run.seqs {
                    prop_assert!(high.0 - low.0 < limit);
                    met.extend((low.0..=high.0).rev());
                    before = low;
                }
                if !run.more { break }
                prop_assert!(run.seqs.is_some());
            }
            met.reverse();
            prop_assert_eq!(&met, &visible);
        }
    }
}
