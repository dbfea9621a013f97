//! History pages: a read of the log, whole as far as it goes.

use super::{At, Open, Pass, judge_told};
use crate::found::Found;
use crate::history::{Event, Range, What};
use crate::id::{Call, Room, Seq};
use crate::report::Promise;

impl Pass<'_> {
    pub(super) fn page_event(
        &mut self,
        found: &mut Found<'_>,
        at: At,
        room: Room,
        call: Call,
        event: &Event,
    ) {
        let At { index, on } = at;
        judge_told(self, found, index, room, event);
        self.told(room, event.seq, index);
        self.judge_visible(found, at, room, event.seq);
        if let Some(state) = self.connections.get_mut(on.0 as usize) {
            state.page.push((call, event.seq, event.seq, false));
        }
    }

    /// A page is complete: it is whole from its bound on, and its head is no older than the question.
    pub(super) fn page(&mut self, found: &mut Found<'_>, at: At, open: Open, head: Seq, more: bool) {
        let world = self.world;
        let At { index, on } = at;
        found.coverage.pages += 1;
        self.read(found, at, open, head);
        self.told(open.room, head, index);
        let What::History { range, .. } = world.history.records[open.record as usize].what else { return };
        let Some(state) = self.connections.get_mut(on.0 as usize) else { return };
        let call = open.call;
        let mut parts: Vec<(Seq, Seq, bool)> = state
            .page
            .extract_if(.., |(of, ..)| *of == call)
            .map(|(_, from, to, gap)| (from, to, gap))
            .collect();
        let view = world.view(open.room, self.user(on));
        let mut broken = |what: String| {
            found.broken(Promise::I10, index, |slice| {
                slice.say(format!("{}: {what}", slice.room(open.room)));
                slice.record(open.record);
                slice.with_owners(world.slot(open.room));
            });
        };
        let rising = parts.iter().filter(|part| part.0 == part.1 && !part.2).is_sorted_by(|a, b| a.0 < b.0);
        if !rising {
            broken("the events of the page do not rise".to_owned());
            return;
        }
        parts.sort_unstable();
        let floor = world.room(open.room).map_or(Seq(0), |room| room.stored.floor);
        for pair in parts.windows(2) {
            if pair[0].1.next() != pair[1].0 {
                broken(format!("the page has a hole between {} and {}", pair[0].1, pair[1].0));
                return;
            }
        }
        for (from, to, _) in parts.iter().filter(|part| part.2) {
            if world.room(open.room).is_some()
                && let Some(seq) = view.first_visible((*from).max(floor.next()), *to)
            {
                broken(format!("the page leaves {seq} out, though it is there and visible"));
                return;
            }
        }
        let (first, last) = match (parts.first(), parts.last()) {
            (Some(first), Some(last)) => (first.0, last.1),
            _ => {
                let empty = match range {
                    Range::After(seq) => seq >= head,
                    Range::Before(seq) => seq <= floor.next() || head <= floor,
                    Range::Newest => head <= floor,
                };
                if !empty {
                    broken(format!("the page is empty, and the head is {head}"));
                }
                return;
            }
        };
        match range {
            Range::After(seq) => {
                if first != seq.next() {
                    broken(format!("the page begins at {first}, asked was after {seq}"));
                } else if !more && last < head {
                    broken(format!("the page ends at {last} without more, and the head is {head}"));
                }
            }
            Range::Before(_) | Range::Newest => {
                let top = match range {
                    Range::Before(seq) => seq.before().min(head),
                    _ => head,
                };
                if last != top {
                    broken(format!("the page ends at {last} and should at {top}"));
                } else if !more && first > floor.next() {
                    broken(format!("the page begins at {first} without more"));
                }
            }
        }
    }
}
