//! Where a cursor begins: what a `subscribe` asks for against what the owner admits.

use banyan_proto::id::Seq;
use banyan_proto::link::Admission;
use banyan_proto::plant::{self, Bug};
use banyan_proto::v1;

use crate::command::Start;

/// Most events below head that a cursor begins with; what lies further back is announced as a gap.
pub(crate) const BEHIND_MAX: u64 = 1_000;
/// Without a wish of the client: the unread ones, at most this many.
pub(crate) const UNREAD_MAX: u64 = 50;

/// Where a cursor begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Beginning {
    /// First seq that will be pushed; head + 1 if none is there yet.
    pub(crate) from: Seq,
    /// What was asked for and is left out.
    pub(crate) gap: Option<v1::Gap>,
    /// The client's numbers belong to another log.
    pub(crate) reset: bool,
}

impl Beginning {
    pub(crate) fn new(asked: Start, admission: &Admission) -> Self {
        let head = admission.head.0;
        let reset = match asked {
            Start::After { seq, log } => seq.0 > head || log.is_some_and(|log| log != admission.log),
            Start::Last(_) | Start::Unread => false,
        };
        let asked = if reset { Start::Unread } else { asked };
        let wanted = match asked {
            Start::After { seq, .. } if plant::is(Bug::ResumeOffByOne) => seq.0 + 2,
            Start::After { seq, .. } => seq.0 + 1,
            Start::Last(last) => (head + 1).saturating_sub(u64::from(last)),
            Start::Unread => (admission.seen.0 + 1).max((head + 1).saturating_sub(UNREAD_MAX)),
        }
        .clamp(1, head + 1);
        let mut from =
            wanted.max((head + 1).saturating_sub(BEHIND_MAX)).max(admission.floor.0 + 1).min(head + 1);
        // An absence that begins the stretch is part of the gap, not the first thing pushed.
        for (first, last) in &admission.out {
            if (first.0..=last.0).contains(&from) {
                from = last.0 + 1;
            }
        }
        from = from.min(head + 1);
        let gap = (from > wanted).then(|| v1::Gap {
            from: wanted,
            to: from - 1,
            expired: (from - 1 <= admission.floor.0).then_some(true),
        });
        Self { from: Seq(from), gap, reset }
    }
}

#[cfg(test)]
mod tests {
    use banyan_proto::id::{Epoch, LogId};

    use super::*;

    fn admission(head: u64, seen: u64) -> Admission {
        Admission {
            epoch: Epoch(1),
            log: LogId(7),
            kind: v1::RoomKind::Group,
            head: Seq(head),
            n: head,
            role: v1::Role::Member,
            delivered: Seq(seen),
            seen: Seq(seen),
            seen_n: seen,
            floor: Seq(0),
            out: Vec::new(),
            end: None,
            members: 2,
        }
    }

    #[track_caller]
    fn check(asked: Start, admission: &Admission, from: u64, gap: Option<(u64, u64)>, reset: bool) {
        let start = Beginning::new(asked, admission);
        assert_eq!((start.from.0, start.gap.map(|gap| (gap.from, gap.to)), start.reset), (from, gap, reset));
    }

    #[test]
    fn starts_where_the_page_says() {
        let ours = |seq| Start::After { seq: Seq(seq), log: Some(LogId(7)) };
        let any = |seq| Start::After { seq: Seq(seq), log: None };
        let other = |seq| Start::After { seq: Seq(seq), log: Some(LogId(8)) };
        check(ours(5), &admission(9, 0), 6, None, false);
        check(ours(9), &admission(9, 0), 10, None, false);
        check(any(0), &admission(9, 0), 1, None, false);
        check(any(0), &admission(5000, 0), 4001, Some((1, 4000)), false);
        check(ours(10), &admission(9, 0), 1, None, true);
        check(other(5), &admission(9, 7), 8, None, true);
        check(Start::Last(3), &admission(9, 0), 7, None, false);
        check(Start::Last(0), &admission(9, 0), 10, None, false);
        check(Start::Last(30), &admission(9, 0), 1, None, false);
        check(Start::Unread, &admission(90, 85), 86, None, false);
        check(Start::Unread, &admission(90, 3), 41, None, false);
        check(Start::Unread, &admission(90, 90), 91, None, false);
        check(Start::Unread, &admission(0, 0), 1, None, false);
    }

    #[test]
    fn absences_and_expired_seqs_at_the_beginning_are_the_gap() {
        let any = |seq| Start::After { seq: Seq(seq), log: None };
        let mut out = admission(100, 0);
        out.out = vec![(Seq(6), Seq(20))];
        check(any(5), &out, 21, Some((6, 20)), false);
        check(any(3), &out, 4, None, false);
        let mut floor = admission(100, 0);
        floor.floor = Seq(30);
        check(any(5), &floor, 31, Some((6, 30)), false);
        assert_eq!(Beginning::new(any(5), &floor).gap.unwrap().expired, Some(true));
    }
}
