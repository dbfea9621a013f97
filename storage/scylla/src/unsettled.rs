//! Writes to rooms that were left unknown. A later refusal of the very same write must not say that it is not there.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use banyan_storage::Outcome;
use banyan_storage::log_store::RoomWrite;

/// Names kept. Beyond it nothing is said to be not done any more until some are settled: the answer is unknown, which is always true.
const MAX: usize = 65_536;

#[derive(Debug, Default)]
struct Names {
    names: HashSet<u64>,
    /// Some were left out: any write may be one of them. Stays: owners that are gone never settle theirs.
    overflowed: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Unsettled {
    names: Mutex<Names>,
    /// So that nobody hashes a write while all goes well.
    count: AtomicUsize,
}

impl Unsettled {
    /// What may be said of a write, given what became of this try.
    pub(crate) fn settle(&self, write: &RoomWrite, outcome: Outcome) -> Outcome {
        if outcome != Outcome::Unknown && self.count.load(Ordering::Acquire) == 0 {
            return outcome;
        }
        let name = name(write);
        let mut state = self.lock();
        let said = match outcome {
            Outcome::Done => {
                state.names.remove(&name);
                outcome
            }
            Outcome::Unknown => {
                if state.names.len() < MAX {
                    state.names.insert(name);
                } else {
                    state.overflowed = true;
                }
                outcome
            }
            Outcome::NotDone(_) if state.overflowed || state.names.contains(&name) => Outcome::Unknown,
            Outcome::NotDone(_) => outcome,
        };
        let count = state.names.len() + usize::from(state.overflowed);
        self.count.store(count, Ordering::Release);
        said
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same for the same write again.
fn name(write: &RoomWrite) -> u64 {
    let mut hasher = DefaultHasher::new();
    write.room.hash(&mut hasher);
    write.write.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use banyan_proto::id::{RoomId, Seq};
    use banyan_storage::NotDone;
    use banyan_storage::contract::log::segment;
    use banyan_storage::log_store::{Said, Write};

    use super::*;

    fn said(head: u64) -> RoomWrite {
        let said = Said { segment: segment(1, 0), head: Seq(head), n: 1 };
        RoomWrite { ticket: head, room: RoomId::parse("r").unwrap(), write: Write::Said(said) }
    }

    const REFUSED: Outcome = Outcome::NotDone(NotDone::Overloaded);

    #[test]
    fn a_refusal_of_an_unknown_one_is_unknown_until_it_is_done() {
        let unsettled = Unsettled::default();
        assert_eq!(unsettled.settle(&said(1), REFUSED), REFUSED);
        assert_eq!(unsettled.settle(&said(1), Outcome::Unknown), Outcome::Unknown);
        let again = RoomWrite { ticket: 99, ..said(1) };
        assert_eq!(unsettled.settle(&again, REFUSED), Outcome::Unknown);
        assert_eq!(unsettled.settle(&said(2), REFUSED), REFUSED);
        assert_eq!(unsettled.settle(&again, Outcome::Done), Outcome::Done);
        assert_eq!(unsettled.settle(&said(1), REFUSED), REFUSED);
        assert_eq!(unsettled.count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn too_many_make_every_refusal_unknown() {
        let unsettled = Unsettled::default();
        for head in 0..=MAX as u64 {
            unsettled.settle(&said(head), Outcome::Unknown);
        }
        assert_eq!(unsettled.settle(&said(u64::MAX), REFUSED), Outcome::Unknown);
        assert_eq!(unsettled.settle(&said(u64::MAX), Outcome::Done), Outcome::Done);
    }
}
