//! One run of a plan, and what the checker says of it.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use banyan_checker::{Report, Rules, check};

use crate::coverage::Coverage;
use crate::plan::Plan;
use crate::record::Recorder;
use crate::schedule::Time;
use crate::world::World;

/// What a run came to.
#[derive(Debug)]
pub struct Finished {
    pub inputs: u64,
    pub trace: u64,
    pub owner_changes: u64,
    pub coverage: Coverage,
    pub report: Report,
    pub failure: Option<Failure>,
    /// Simulated.
    pub ended: Time,
    /// If asked for.
    pub timeline: Vec<(Time, String)>,
}

/// What was found, in which words, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Of the promise or the kind of failure: what a smaller plan must fail with too.
    pub what: String,
    pub words: String,
    pub at: Time,
}

thread_local! {
    /// Words and place of the last panic on this thread.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics of cores are findings: they are kept for the report and not printed where they happen.
fn catch_quietly(work: impl FnOnce()) -> Option<String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        std::panic::set_hook(Box::new(|info| PANIC.set(Some(info.to_string()))));
    });
    let result = catch_unwind(AssertUnwindSafe(work));
    result.err().map(|_| PANIC.take().unwrap_or_else(|| "a panic without words".to_owned()))
}

/// Runs a plan to its end (or to `until`) and judges it.
pub fn run(plan: Plan, with_timeline: bool, until: Time) -> Finished {
    let mut world = World::new(plan);
    if with_timeline {
        world.recorder.timeline = Some(Vec::new());
    }
    // A panic of a core is a finding like any other; what it left behind is only looked at.
    let mut is_whole = false;
    let panicked = catch_quietly(|| {
        while world.now() <= until && !is_whole {
            is_whole = !world.step();
        }
    });
    let panicked = panicked.map(|words| Failure { what: "panic".to_owned(), words, at: world.now() });
    let outcome = world.finish();
    let rules = Rules::default();
    let Recorder { mut history, timeline, .. } = outcome.recorder;
    if !is_whole {
        // What must come in time may still come: a run that was broken off owes nothing yet.
        history.liveness = None;
    }
    let report = check(&history, &rules);
    let failure = panicked.or_else(|| {
        let seen = outcome.wrong.map(|(at, words)| Failure {
            what: words.split(':').next().unwrap_or_default().to_owned(),
            words,
            at,
        });
        seen.or_else(|| {
            report.first().map(|violation| Failure {
                what: violation.promise.to_string(),
                words: violation.to_string(),
                at: violation.at.map_or(outcome.ended, |at| at.0),
            })
        })
    });
    Finished {
        inputs: outcome.inputs,
        trace: outcome.trace,
        owner_changes: outcome.owner_changes,
        coverage: outcome.coverage,
        report,
        failure,
        ended: outcome.ended,
        timeline: timeline.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Mode;
    use crate::schedule::MS;

    /// Seeds that failed once, and what was wrong.
    const ONCE: &[(u64, &str)] = &[
        (500_379, "a pin did not count the target's version up: placement stood still"),
        (500_653, "the same"),
        (500_717, "a run froze ownership after `ring recover` was through"),
        (502_187, "a lost claim's answer made its run forget the newer key that a watch had shown"),
        (504_015, "the same"),
        (504_933, "the same"),
        (500_445, "clients settled while a room was still to be made"),
        (557, "clients settled while one that is out was still reading what is its own"),
        (4_811, "a gateway's new run got an answer to a question of its former one"),
        (1_103, "an unanswered join without an event after a removal"),
        (900_394, "an unanswered leave without an event, seen by the owner after the next"),
        (901_214, "an unanswered join without an event, stored and not seen by the next owner"),
        (901_985, "the same, seen by the next owner and on one replica alone"),
        (503_821, "a send that was owed and refused for good counted as paid"),
        (
            44_182,
            "etcd was set back under an owner that had not served yet, and so it seemed that epochs fell",
        ),
        (76_793, "a room that was closed and opened again read marks that were still at the gate"),
        (84_108, "a clock that had jumped cut the window of retries without `since` short"),
        (93_915, "the same"),
        (20_690, "a page that waited for an open came before the leaves that the link had missed"),
        (61_959, "refusals of pages filled the stream of pages: readers kept each other from reading"),
        (68_671, "an add was answered as done already by an owner that had read so on one replica alone"),
        (77_373, "the same"),
        (30_627, "a node gave marks to the store once, whatever became of the write"),
        (63_107, "the same"),
        (55_223, "a mark on one replica alone was told and not written again by who told it"),
        (57_601, "a drained room passed its marks on as written, and they died in its owner's gate"),
        (75_377, "the same"),
        (7_000_881, "a stream took one page at a time when all was healed: too slow for eight readers"),
    ];

    #[test]
    fn seeds_that_failed_once_pass() {
        for (seed, was) in ONCE {
            for mode in [Mode::Liveness, Mode::Safety] {
                let finished = run(Plan::new(*seed, mode), false, Time::MAX);
                assert_eq!(finished.failure, None, "seed {seed}, {mode:?} ({was})");
            }
        }
    }

    #[test]
    fn a_run_that_is_broken_off_owes_nothing() {
        let plan = Plan::new(500_379, Mode::Liveness);
        let until = plan.ends + 100 * MS;
        assert_eq!(run(plan, false, until).failure, None);
    }
}
