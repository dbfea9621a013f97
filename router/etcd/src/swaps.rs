//! Compare-and-swaps of slots' keys that go together: a node that died leaves hundreds of them at once, and etcd writes to
//! its disk for each transaction.
//!
//! Always holds: of those taken together no two are of one slot (etcd refuses that); at most [`TOGETHER`] go together, and
//! at most [`UNDER_WAY`] such transactions are with etcd (or, after one that was lost, those that it was made of); what
//! nobody waits for any more is not sent.
//! Bounds: none of its own on what waits. The callers are the slots' machines, with one request each.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use banyan_proto::id::SlotId;
use banyan_router::slot_key::SlotKey;
use banyan_router::slot_owner::CasOutcome;
use tokio::sync::oneshot;

/// Operations of a transaction: etcd allows 128 comparisons, and as many writes.
const TOGETHER: usize = 32;
/// More would only be smaller: what comes meanwhile goes together.
const UNDER_WAY: usize = 4;

/// If the slot's key is exactly `expect`, it becomes `new`.
#[derive(Debug)]
pub(crate) struct Swap {
    pub(crate) slot: SlotId,
    pub(crate) expect: Option<SlotKey>,
    pub(crate) new: SlotKey,
    pub(crate) answer: oneshot::Sender<CasOutcome>,
}

#[derive(Debug, Default)]
pub(crate) struct Swaps(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Swap>,
    under_way: usize,
}

impl Swaps {
    /// True: who asks carries out what waits, until [`Self::next`] gives nothing.
    pub(crate) fn put(&self, swap: Swap) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.waiting.push_back(swap);
        let begins = state.under_way < UNDER_WAY;
        state.under_way += usize::from(begins);
        begins
    }

    /// What goes together next, as it came. Nothing: whoever carried it out is no more under way.
    pub(crate) fn next(&self) -> Vec<Swap> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut taken, mut later): (Vec<Swap>, Vec<Swap>) = (Vec::new(), Vec::new());
        while taken.len() < TOGETHER
            && let Some(swap) = state.waiting.pop_front()
        {
            if taken.iter().any(|other| other.slot == swap.slot) {
                later.push(swap);
            } else if !swap.answer.is_closed() {
                taken.push(swap);
            }
        }
        later.into_iter().rev().for_each(|swap| state.waiting.push_front(swap));
        if taken.is_empty() {
            state.under_way -= 1;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use banyan_proto::id::{Epoch, Incarnation};
    use banyan_router::slot_key::NodeId;

    use super::*;

    fn swap(slot: u16) -> (Swap, oneshot::Receiver<CasOutcome>) {
        let (answer, answered) = oneshot::channel();
        let owner = NodeId::parse("a").unwrap();
        let new = SlotKey { owner, incarnation: Incarnation(1), epoch: Epoch(1), prev: None };
        (Swap { slot: SlotId(slot), expect: None, new, answer }, answered)
    }

    #[test]
    fn what_comes_meanwhile_goes_together_each_slot_once() {
        let swaps = Swaps::default();
        let mut callers = Vec::new();
        let mut put = |slot| {
            let (swap, answered) = swap(slot);
            callers.push(answered);
            swaps.put(swap)
        };
        let next = || swaps.next().iter().map(|swap| swap.slot.0).collect::<Vec<_>>();
        for slot in 0..UNDER_WAY as u16 {
            assert!(put(slot), "it is carried out at once");
            assert_eq!(next(), [slot]);
        }
        assert!(!put(7) && !put(8) && !put(7) && !put(9) && !put(7));
        assert_eq!(next(), [7, 8, 9]);
        assert_eq!(next(), [7], "one after the other");
        for slot in 100..200 {
            assert!(!put(slot));
        }
        assert_eq!(next().len(), TOGETHER, "the last seven is first");
        assert_eq!(next().first(), Some(&(100 + TOGETHER as u16 - 1)));
        drop(callers);
        assert!(next().is_empty(), "nobody waits for the others");
        let (one, _caller) = swap(1);
        assert!(swaps.put(one), "and the next one begins anew");
    }
}
