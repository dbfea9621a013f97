//! What a check found, what it covered, and whether that is enough.

use std::fmt;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use crate::id::Time;

/// The promises of DESIGN.md, section 10.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Promise {
    I1,
    I2,
    I3,
    I4,
    I5,
    I6,
    I7,
    I8,
    I9,
    I10,
    I11,
    I12,
    I13,
    I14,
    I15,
    I16,
}

impl Promise {
    pub const ALL: [Self; 16] = [
        Self::I1,
        Self::I2,
        Self::I3,
        Self::I4,
        Self::I5,
        Self::I6,
        Self::I7,
        Self::I8,
        Self::I9,
        Self::I10,
        Self::I11,
        Self::I12,
        Self::I13,
        Self::I14,
        Self::I15,
        Self::I16,
    ];

    pub const fn title(self) -> &'static str {
        match self {
            Self::I1 => "durable: what was acked or told is in the store",
            Self::I2 => "unique: one content for each place in a log",
            Self::I3 => "dense: seqs are 1..head",
            Self::I4 => "epochs never fall, each belongs to one incarnation",
            Self::I5 => "one order: events rise without a silent gap, replies stand in place",
            Self::I6 => "real time: who was sent after an ack comes after it",
            Self::I7 => "dedupe: one event for one client message",
            Self::I8 => "no phantom: every event was sent, and what was refused is not there",
            Self::I9 => "no ack before durable: a kill changes nothing",
            Self::I10 => "reads include what was acked or told before; heads never go back",
            Self::I11 => "marks never go back; seen <= delivered <= head",
            Self::I12 => "removal: nothing after it, everything before it",
            Self::I13 => "delete wins over edits and history",
            Self::I14 => "resume: each event exactly once",
            Self::I15 => "liveness after the last fault heals",
            Self::I16 => "notifications: at least once",
        }
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "I{}", *self as u8 + 1)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Held,
    Violated,
    /// Nothing in the history could have broken it.
    NotExercised,
}

/// What became of one promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub promise: Promise,
    pub state: State,
    /// How often it could have been broken.
    pub checked: u64,
    /// How often it was.
    pub broken: u64,
    /// The first time that it was.
    pub first: Option<Violation>,
}

/// A broken promise, with no more of the history than shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub promise: Promise,
    /// When a client could have noticed; `None`: only the store shows it.
    pub at: Option<Time>,
    pub what: String,
    /// In order of time; what has no time (rows of the store) stands last.
    pub slice: Vec<Line>,
    /// The records among the slice, as indexes into the history.
    pub records: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub at: Option<Time>,
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} broken ({}): {}", self.promise, self.promise.title(), self.what)?;
        for line in &self.slice {
            match line.at {
                Some(at) => write!(f, "\n  {:>14.6} s  {}", at.0 as f64 / 1e6, line.text)?,
                None => write!(f, "\n  {:>16}  {}", "store", line.text)?,
            }
        }
        Ok(())
    }
}

macro_rules! coverage {
    ($($(#[$doc:meta])* $name:ident: $words:literal,)+) => {
        /// What happened in a run: how much the check had to go by. Adds up over runs.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Coverage {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl Coverage {
            /// Every counter with its words, in a fixed order.
            pub fn rows(&self) -> Vec<(&'static str, u64)> {
                vec![$(($words, self.$name),)+]
            }
        }

        impl AddAssign for Coverage {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)+
            }
        }
    };
}

coverage! {
    records: "records",
    connections: "connections",
    /// Subscriptions of a session's later connections that said where it stood.
    resumes: "subscriptions resumed",
    /// Different client messages.
    sends: "messages sent",
    tries: "tries of them",
    tried_again: "messages tried more than once",
    acked: "messages acked",
    /// Ok replies that said so.
    duplicates: "dedupe hits",
    refused: "tries refused",
    /// Tries that said nothing: connection lost, 100, 108, 113.
    indefinite: "tries with unknown outcome",
    pushed: "events pushed",
    in_place: "replies in the place of their event",
    gaps: "gaps announced",
    heads: "heads pushed",
    pages: "history pages",
    marks: "marks told",
    resets: "resets told",
    removals: "removals and leaves in the log",
    ended: "subscriptions ended by a removal",
    stored: "events in the store",
    void: "void rows in the store",
    /// Of users whose join or leave had no event and no answer: their membership is not judged.
    unsettled: "memberships that may have changed untold",
    owner_changes: "changes of owner",
    takeovers: "takeovers",
    handoffs: "handoffs",
    fences: "incarnations fenced",
    kills: "processes killed",
    fenced_utterances: "fenced utterances",
    unknown_outcomes: "writes with unknown outcome",
    gap_repairs: "gaps repaired",
}

/// What a run must have seen to prove something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    pub least: Coverage,
    /// A run in which more tries than this have an unknown outcome shows little.
    pub indefinite_percent: u64,
}

impl Demand {
    /// Of a cluster under faults.
    pub fn cluster() -> Self {
        let least = Coverage {
            acked: 1,
            pushed: 1,
            owner_changes: 1,
            fenced_utterances: 1,
            unknown_outcomes: 1,
            gap_repairs: 1,
            ..Coverage::default()
        };
        Self { least, indefinite_percent: 20 }
    }

    /// Of one process that is killed again and again under load: nobody else can own or fence anything.
    pub fn killed_process(kills: u64) -> Self {
        let least = Coverage {
            kills,
            acked: kills * 10 + 1,
            tried_again: u64::from(kills >= 4),
            pushed: 1,
            ..Coverage::default()
        };
        // Each kill cuts off all that is in flight, and kills come quickly.
        Self { least, indefinite_percent: 75 }
    }

    pub fn nothing() -> Self {
        Self { least: Coverage::default(), indefinite_percent: 100 }
    }

    /// What a coverage (of one run, or the sum of many) falls short of.
    pub fn missing(&self, of: &Coverage) -> Vec<String> {
        let mut missing: Vec<String> = self
            .least
            .rows()
            .into_iter()
            .zip(of.rows())
            .filter(|((_, least), (_, found))| found < least)
            .map(|((words, least), (_, found))| format!("{words}: {found}, at least {least} wanted"))
            .collect();
        if of.indefinite * 100 > of.tries * self.indefinite_percent {
            missing.push(format!(
                "{} of {} tries have an unknown outcome, more than {} %",
                of.indefinite, of.tries, self.indefinite_percent
            ));
        }
        missing
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Green,
    Violated,
    /// No promise is broken, but too little happened.
    ProvedNothing(Vec<String>),
}

/// All that a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// One for each promise, in order.
    pub outcomes: Vec<Outcome>,
    pub coverage: Coverage,
}

impl Report {
    pub fn is_violated(&self) -> bool {
        self.outcomes.iter().any(|outcome| outcome.state == State::Violated)
    }

    pub fn outcome(&self, of: Promise) -> &Outcome {
        &self.outcomes[of as usize]
    }

    /// The first violation of each broken promise, in order of time.
    pub fn violations(&self) -> Vec<&Violation> {
        let mut all: Vec<_> = self.outcomes.iter().filter_map(|outcome| outcome.first.as_ref()).collect();
        all.sort_by_key(|violation| (violation.at.is_none(), violation.at));
        all
    }

    /// The first violation in time.
    pub fn first(&self) -> Option<&Violation> {
        self.violations().into_iter().next()
    }

    pub fn verdict(&self, demand: &Demand) -> Verdict {
        if self.is_violated() {
            return Verdict::Violated;
        }
        let missing = demand.missing(&self.coverage);
        if missing.is_empty() { Verdict::Green } else { Verdict::ProvedNothing(missing) }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for outcome in &self.outcomes {
            let state = match outcome.state {
                State::Held => "held",
                State::Violated => "VIOLATED",
                State::NotExercised => "not exercised",
            };
            let title = outcome.promise.title();
            write!(f, "{:<4} {state:<14} {:>10} checked", outcome.promise.to_string(), outcome.checked)?;
            if outcome.broken > 0 {
                write!(f, ", {} broken", outcome.broken)?;
            }
            writeln!(f, "  {title}")?;
        }
        for (words, n) in self.coverage.rows().into_iter().filter(|(_, n)| *n > 0) {
            writeln!(f, "{words:<40} {n:>12}")?;
        }
        for violation in self.violations() {
            writeln!(f, "{violation}")?;
        }
        Ok(())
    }
}
