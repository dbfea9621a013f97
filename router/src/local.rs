//! One process and no etcd: how it becomes the owner of all slots at each start.
//!
//! Always holds: the epoch rises with every start and is durable before anything is served under it; the run before is fenced
//! first, so that a process that still writes (a second one on the same store) finds its own end at its next barrier; an
//! incarnation is registered before anybody sees it.
//! Does not: touch the store. Each [`Step`] is carried out by the caller, whose failure ends the start.

use banyan_proto::id::{Epoch, Incarnation, Tenure};

/// What must be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Read the tenure that the start before kept.
    Load,
    /// Write the fence of that run, durable.
    Fence(Incarnation),
    /// Write this run's incarnation, durable.
    Register(Incarnation),
    /// Keep this tenure, durable: the next start loads it.
    Keep(Tenure),
    /// All slots are served under this tenure.
    Serve(Tenure),
}

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// Of [`Step::Load`]; `None`: the first start on this store.
    Loaded(Option<Tenure>),
    Done,
}

/// The start of one process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Local {
    incarnation: Incarnation,
    epoch: Epoch,
    step: Step,
}

impl Local {
    /// `incarnation`: 128 random bits, made for this start.
    pub fn new(incarnation: Incarnation) -> Self {
        Self { incarnation, epoch: Epoch(1), step: Step::Load }
    }

    /// The step to carry out now.
    pub fn step(&self) -> Step {
        self.step
    }

    /// The step was carried out; the next one.
    pub fn next(&mut self, answer: Answer) -> Step {
        let tenure = Tenure { epoch: self.epoch, incarnation: self.incarnation };
        self.step = match (self.step, answer) {
            (Step::Load, Answer::Loaded(Some(before))) => {
                self.epoch = Epoch(before.epoch.0 + 1);
                Step::Fence(before.incarnation)
            }
            (Step::Load, Answer::Loaded(None)) | (Step::Fence(_), Answer::Done) => {
                Step::Register(self.incarnation)
            }
            (Step::Register(_), Answer::Done) => Step::Keep(tenure),
            (Step::Keep(_), Answer::Done) => Step::Serve(tenure),
            (step, _) => step,
        };
        self.step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts on a store that keeps this tenure, and what it does.
    fn steps(incarnation: u128, kept: Option<Tenure>) -> Vec<Step> {
        let mut local = Local::new(Incarnation(incarnation));
        let mut steps = vec![local.step(), local.next(Answer::Loaded(kept))];
        while !matches!(steps.last(), Some(Step::Serve(_))) {
            steps.push(local.next(Answer::Done));
        }
        steps
    }

    #[test]
    fn every_start_fences_the_one_before_and_raises_the_epoch() {
        let (one, two) = (Incarnation(1), Incarnation(2));
        let first = Tenure { epoch: Epoch(1), incarnation: one };
        let second = Tenure { epoch: Epoch(2), incarnation: two };
        assert_eq!(steps(1, None), [Step::Load, Step::Register(one), Step::Keep(first), Step::Serve(first)]);
        assert_eq!(
            steps(2, Some(first)),
            [Step::Load, Step::Fence(one), Step::Register(two), Step::Keep(second), Step::Serve(second)]
        );
    }

    #[test]
    fn an_answer_that_does_not_fit_changes_nothing() {
        let mut local = Local::new(Incarnation(1));
        assert_eq!(local.next(Answer::Done), Step::Load);
        local.next(Answer::Loaded(None));
        assert_eq!(local.next(Answer::Loaded(None)), Step::Register(Incarnation(1)));
    }
}
