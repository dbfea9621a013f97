//! Puts what waits for several ends of one link into one order, so that what is for several of them travels once.
//!
//! Always holds: each end gets its messages in the order in which they waited for it. Pure.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use banyan_proto::link::{FromShard, LinkId};

/// What two messages of different ends share: a kind and where its content lies.
type Shared = (u8, usize);

fn shared(message: &FromShard) -> Option<Shared> {
    match message {
        // Two empty slices may lie at one place.
        FromShard::Events { events, .. } if !events.is_empty() => Some((0, Arc::as_ptr(events).addr())),
        FromShard::Marks { marks, .. } if !marks.is_empty() => Some((1, Arc::as_ptr(marks).addr())),
        FromShard::User { push, .. } => Some((2, Arc::as_ptr(push).addr())),
        FromShard::Events { .. }
        | FromShard::Marks { .. }
        | FromShard::Answer { .. }
        | FromShard::Moved { .. }
        | FromShard::Head { .. }
        | FromShard::Left { .. }
        | FromShard::Page { .. }
        | FromShard::LoginsEnded { .. } => None,
    }
}

/// A message that more than one end waits for.
struct Waiting {
    /// Ends that have it in their queue and have not come to it.
    missing: usize,
    /// Ends that have come to it.
    here: Vec<LinkId>,
}

/// Takes everything out of `queues` (by end) and says it.
pub(crate) fn merge(queues: &mut [VecDeque<FromShard>], mut say: impl FnMut(&[LinkId], FromShard)) {
    // Ends are numbered by u16.
    let id = |end: usize| LinkId(end as u32);
    let busy: Vec<usize> = (0..queues.len()).filter(|end| !queues[*end].is_empty()).collect();
    if let [end] = busy[..] {
        queues[end].drain(..).for_each(|message| say(&[id(end)], message));
        return;
    }
    let mut waiting: HashMap<Shared, Waiting> = HashMap::new();
    for end in &busy {
        let mut before = None;
        for key in queues[*end].iter().filter_map(shared) {
            // The same content twice in a row for one end: rooms with the same users. They are not merged further.
            if before.replace(key) == Some(key) {
                continue;
            }
            waiting.entry(key).or_insert(Waiting { missing: 0, here: Vec::new() }).missing += 1;
        }
    }
    waiting.retain(|_, waiting| waiting.missing > 1);
    let mut ready = busy.clone();
    ready.reverse();
    loop {
        while let Some(end) = ready.pop() {
            while let Some(message) = queues[end].front() {
                let Some((key, wait)) = shared(message).and_then(|key| Some((key, waiting.get_mut(&key)?)))
                else {
                    if let Some(message) = queues[end].pop_front() {
                        say(&[id(end)], message);
                    }
                    continue;
                };
                wait.here.push(id(end));
                wait.missing -= 1;
                if wait.missing > 0 {
                    break;
                }
                let ends = waiting.remove(&key).map(|wait| wait.here).unwrap_or_default();
                release(queues, &ends, &mut say);
                // This end goes on; the others after it.
                ready.extend(ends.iter().map(|end| end.0 as usize).filter(|other| *other != end).rev());
            }
        }
        // Ends wait for each other in a circle (two workers said two things to two ends in different order): the first of
        // them gets its message alone.
        let Some(end) = busy.iter().copied().find(|end| !queues[*end].is_empty()) else { return };
        let key = queues[end].front().and_then(shared);
        let ends = key.and_then(|key| waiting.remove(&key)).map_or_else(|| vec![id(end)], |wait| wait.here);
        release(queues, &ends, &mut say);
        ready.extend(ends.iter().rev().map(|end| end.0 as usize));
    }
}

/// Says what stands first in the queues of all these ends.
fn release(queues: &mut [VecDeque<FromShard>], ends: &[LinkId], say: &mut impl FnMut(&[LinkId], FromShard)) {
    let mut last = None;
    for end in ends {
        last = queues[end.0 as usize].pop_front();
    }
    if let Some(message) = last {
        say(ends, message);
    }
}

#[cfg(test)]
mod tests {
    use banyan_proto::id::{Epoch, RoomId, Seq};
    use banyan_proto::v1;

    use super::*;

    fn marks() -> Arc<[v1::UserMarks]> {
        vec![v1::UserMarks::default()].into()
    }

    fn shared_by(marks: &Arc<[v1::UserMarks]>) -> FromShard {
        let room = RoomId::parse("r").unwrap();
        FromShard::Marks { room, epoch: Epoch(1), marks: Arc::clone(marks) }
    }

    fn own(n: u64) -> FromShard {
        let room = RoomId::parse("r").unwrap();
        FromShard::Head { room, epoch: Epoch(1), head: Seq(n), n, last_membership: Seq(0) }
    }

    /// Says it all; checks each end's order. Gives how many messages travel.
    fn merged(queues: &[Vec<FromShard>]) -> usize {
        let mut waiting: Vec<VecDeque<_>> =
            queues.iter().map(|queue| queue.iter().cloned().collect()).collect();
        let mut got = vec![Vec::new(); queues.len()];
        let mut count = 0;
        merge(&mut waiting, |ends, message| {
            count += 1;
            ends.iter().for_each(|end| got[end.0 as usize].push(message.clone()));
        });
        // Equal content is not enough: the same place.
        for (got, want) in got.iter().zip(queues) {
            assert_eq!(got.len(), want.len());
            assert!(got.iter().zip(want).all(|(a, b)| a == b && shared(a) == shared(b)), "{got:?} {want:?}");
        }
        count
    }

    #[test]
    fn what_is_for_several_ends_travels_once_and_order_stays() {
        let [a, b, c] = [marks(), marks(), marks()];
        let s = shared_by;
        assert_eq!(merged(&[vec![own(1), s(&a), s(&b)], vec![s(&a), own(2), s(&b)], vec![s(&b), own(3)]]), 5);
        assert_eq!(merged(&[vec![s(&a)], vec![], vec![own(1)]]), 2);
        assert_eq!(merged(&[vec![own(1), s(&c), own(2)]]), 3);
        assert_eq!(merged(&[]), 0);
        // A circle: each of two ends waits for the other.
        assert_eq!(merged(&[vec![s(&a), s(&b)], vec![s(&b), s(&a)]]), 3);
        assert_eq!(merged(&[vec![s(&a), s(&b)], vec![s(&b), s(&c)], vec![s(&c), s(&a)]]), 4);
        // Twice the same.
        assert_eq!(merged(&[vec![s(&a), s(&a)], vec![s(&a), s(&a)]]), 3);
    }

    #[test]
    fn any_order_of_any_queues_is_kept() {
        let mut seed = 7_u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let pool: Vec<_> = (0..6).map(|_| marks()).collect();
        let (mut travelled, mut said) = (0, 0);
        for _ in 0..2_000 {
            let queues: Vec<Vec<_>> = (0..1 + next(4))
                .map(|_| {
                    (0..next(8))
                        .map(|n| if next(2) == 0 { own(n) } else { shared_by(&pool[next(6) as usize]) })
                        .collect()
                })
                .collect();
            travelled += merged(&queues);
            said += queues.iter().map(Vec::len).sum::<usize>();
        }
        assert!(travelled < said, "{travelled} of {said}");
    }
}
