//! A failing run made smaller: the shortest prefix with the fewest faults that still fails in the same way.
//!
//! Bounded: so many runs and no more; what is printed is the smallest that was found.

use crate::plan::Plan;
use crate::run::{Failure, run};
use crate::schedule::{MS, Time};

/// Runs that a search may take.
const TRIES: usize = 120;

#[derive(Debug)]
pub struct Small {
    pub plan: Plan,
    pub until: Time,
    pub failure: Failure,
    pub tries: usize,
    /// Rates of the weather that it does not need.
    pub calm: Vec<&'static str>,
}

struct Search {
    best: Small,
    /// The kind of failure looked for.
    what: String,
}

impl Search {
    /// Takes the smaller plan if it fails in the same way.
    fn offer(&mut self, plan: Plan, until: Time) -> bool {
        if self.best.tries >= TRIES {
            return false;
        }
        self.best.tries += 1;
        match run(plan.clone(), false, until).failure {
            Some(failure) if failure.what == self.what => {
                self.best.until = until.min(failure.at.saturating_add(MS));
                self.best.plan = plan;
                self.best.failure = failure;
                true
            }
            _ => false,
        }
    }
}

/// Makes a plan that fails smaller.
pub fn shrink(plan: Plan, failure: Failure) -> Small {
    let what = failure.what.clone();
    let at = failure.at;
    let best = Small { plan, until: Time::MAX, failure, tries: 0, calm: Vec::new() };
    let mut search = Search { best, what };
    // What happens after the violation has no part in it, unless only the end shows it.
    let plan = search.best.plan.clone();
    search.offer(plan, at.saturating_add(MS));
    drop_after(&mut search);
    let mut kinds: Vec<&str> = search.best.plan.faults.iter().map(|planned| planned.fault.kind()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for kind in kinds {
        let mut plan = search.best.plan.clone();
        plan.faults.retain(|planned| planned.fault.kind() != kind);
        let until = search.best.until;
        search.offer(plan, until);
    }
    for rate in Plan::RATES {
        let mut plan = search.best.plan.clone();
        plan.without_rate(rate);
        let until = search.best.until;
        if search.offer(plan, until) {
            search.best.calm.push(rate);
        }
    }
    let mut place = 0;
    while place < search.best.plan.faults.len() && search.best.tries < TRIES {
        let mut plan = search.best.plan.clone();
        plan.faults.remove(place);
        let until = search.best.until;
        if !search.offer(plan, until) {
            place += 1;
        }
    }
    drop_after(&mut search);
    search.best
}

/// Faults behind the end of the prefix never begin.
fn drop_after(search: &mut Search) {
    let until = search.best.until;
    search.best.plan.faults.retain(|planned| planned.at <= until);
}
