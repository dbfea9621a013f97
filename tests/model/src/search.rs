//! Breadth-first search of everything that can be reached.
//!
//! Owns: the visited states (by 128-bit hash), the parent of each, the frontier.

use std::hash::Hasher;
use std::time::Duration;

use hashbrown::HashSet;

/// What is searched.
pub trait Space {
    type State: Copy;

    fn initial(&mut self) -> Self::State;

    fn hash(state: &Self::State) -> u128;

    /// Whether the state itself breaks a rule.
    fn check(&mut self, state: &Self::State) -> Result<(), Violation>;

    /// Every state that one step leads to, in an order that does not change.
    fn successors(&mut self, state: &Self::State, steps: &mut Steps<Self::State>) -> Result<(), Violation>;

    /// While it is `Some`, each step (and one that breaks a rule) adds its label.
    fn labels(&mut self) -> &mut Option<Vec<String>>;

    /// The longest log that anybody told of, and what occurred how often.
    fn found(&self) -> (usize, Vec<(&'static str, u64)>);
}

#[derive(Debug, Default)]
pub struct Steps<S> {
    pub out: Vec<S>,
}

/// A rule of the protocol was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub states: usize,
    pub time: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Frontier empty: no further state is reachable.
    Safe,
    Violated {
        why: String,
        trace: Vec<String>,
    },
    /// A bound was reached; complete to this depth.
    Bounded {
        depth: usize,
    },
}

#[derive(Debug, Clone)]
pub struct Report {
    pub verdict: Verdict,
    pub states: usize,
    pub transitions: u64,
    pub depth: usize,
    pub took: Duration,
    /// Longest log that anybody told of; how many nodes told of something.
    pub longest_said: usize,
    /// Situations that occurred, with the number of states in which each could come next.
    pub coverage: Vec<(&'static str, u64)>,
}

#[derive(Debug, Clone, Copy)]
pub struct Progress {
    pub states: usize,
    pub frontier: usize,
    pub depth: usize,
    pub took: Duration,
}

pub fn hash128(words: &[u64]) -> u128 {
    let mut low = xxhash_rust::xxh3::Xxh3Default::new();
    for word in words {
        low.write_u64(*word);
    }
    low.digest128()
}

#[derive(Debug)]
pub struct Search<S: Space> {
    pub space: S,
    visited: HashSet<u128, foldhash::fast::FixedState>,
    /// Of each state: the one before it, and the how-manieth step from there.
    parents: Vec<(u32, u32)>,
    transitions: u64,
}

impl<S: Space> Search<S> {
    pub fn new(space: S) -> Self {
        Self { space, visited: HashSet::default(), parents: Vec::new(), transitions: 0 }
    }

    /// `clock`: time since some start; asked once in a while.
    pub fn run(
        &mut self,
        bounds: Bounds,
        mut clock: impl FnMut() -> Duration,
        mut progress: impl FnMut(Progress),
    ) -> Report {
        let start = clock();
        let first = self.space.initial();
        self.visited.insert(S::hash(&first));
        self.parents.push((0, 0));
        let mut frontier = vec![(first, 0_u32)];
        let mut depth = 0;
        let mut verdict = Verdict::Safe;
        'levels: while !frontier.is_empty() {
            let mut next = Vec::new();
            for (done, (state, number)) in frontier.iter().enumerate() {
                let mut steps = Steps { out: Vec::new() };
                let broken = self.space.check(state).and_then(|()| self.space.successors(state, &mut steps));
                if let Err(Violation(why)) = broken {
                    verdict = Verdict::Violated { why, trace: self.trace(*number) };
                    depth += 1;
                    break 'levels;
                }
                for (ordinal, to) in (0_u32..).zip(&steps.out) {
                    self.transitions += 1;
                    if self.visited.insert(S::hash(to)) {
                        let at = u32::try_from(self.parents.len()).expect("fewer than 2^32 states");
                        self.parents.push((*number, ordinal));
                        next.push((*to, at));
                    }
                }
                if done % 1_024 == 0 {
                    let took = clock() - start;
                    let frontier = frontier.len() - done + next.len();
                    progress(Progress { states: self.parents.len(), frontier, depth, took });
                    if self.parents.len() > bounds.states || took > bounds.time {
                        verdict = Verdict::Bounded { depth };
                        break 'levels;
                    }
                }
            }
            frontier = next;
            depth += 1;
        }
        let (longest_said, mut coverage) = self.space.found();
        coverage.sort_unstable();
        Report {
            verdict,
            states: self.parents.len(),
            transitions: self.transitions,
            depth,
            took: clock() - start,
            longest_said,
            coverage,
        }
    }

    /// The steps that lead to a state, and what the last one was about to do.
    fn trace(&mut self, mut number: u32) -> Vec<String> {
        let mut ordinals = Vec::new();
        while number != 0 {
            let (parent, ordinal) = self.parents[number as usize];
            ordinals.push(ordinal as usize);
            number = parent;
        }
        ordinals.reverse();
        let mut lines = Vec::new();
        let mut state = self.space.initial();
        for ordinal in ordinals {
            let (steps, labels) = self.labelled(&state);
            lines.push(labels.get(ordinal).cloned().unwrap_or_default());
            state = steps.out[ordinal];
        }
        // The step that broke the rule, if it was a step and not what a further owner sees.
        let before = self.space.check(&state);
        if before.is_ok() {
            let (_, labels) = self.labelled(&state);
            lines.extend(labels.last().cloned());
        }
        lines
    }

    fn labelled(&mut self, state: &S::State) -> (Steps<S::State>, Vec<String>) {
        let mut steps = Steps { out: Vec::new() };
        *self.space.labels() = Some(Vec::new());
        let _violation = self.space.successors(state, &mut steps);
        (steps, self.space.labels().take().unwrap_or_default())
    }
}
