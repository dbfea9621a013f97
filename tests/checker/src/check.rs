//! The check: the log by itself, one pass over the records, then what only shows at the end.

use crate::facts::How;
use crate::found::Found;
use crate::history::{History, Kind};
use crate::pass::Pass;
use crate::report::Report;
use crate::world::{Map, World};
use crate::{live, log, members, sends};

/// Numbers of docs/protocol.md that the promises depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Events within which a retry without `since` is recognised.
    pub window_events: u64,
    /// And the time, in microseconds; a minute less than promised, since servers count by clocks of their own.
    pub window_us: u64,
    /// A cursor that is further behind may be given a gap; it then begins this far below head.
    pub behind: u64,
    /// Marks that were told so shortly before an owner was lost, in microseconds, may be lost with it: a second until
    /// they are written, and a slow store.
    pub marks_lost_us: u64,
}

impl Default for Rules {
    fn default() -> Self {
        Self { window_events: 4_096, window_us: 540_000_000, behind: 1_000, marks_lost_us: 5_000_000 }
    }
}

/// Judges a history.
pub fn check(history: &History, rules: &Rules) -> Report {
    let world = World::new(history);
    let mut found = Found::new(history);
    found.coverage.unsettled = world.unsettled_count();
    count_facts(history, &mut found);
    log::judge(&world, &mut found);
    let pass = Pass::run(&world, rules, &mut found);
    sends::judge(&world, rules, &pass, &mut found);
    members::judge(&world, &pass, &mut found);
    live::judge(&world, &pass, &mut found);
    found.finish()
}

fn count_facts(history: &History, found: &mut Found<'_>) {
    let coverage = &mut found.coverage;
    let mut owned = Map::default();
    for change in &history.slots {
        // The first owner of a slot changes nothing for anybody; the same one again changes the epoch.
        let first = owned.insert(change.slot, ()).is_none();
        coverage.owner_changes += u64::from(!first);
        coverage.takeovers += u64::from(change.how == How::Takeover);
        coverage.handoffs += u64::from(change.how == How::Handoff);
    }
    coverage.fences = history.fences.len() as u64;
    coverage.kills = history.faults.iter().filter(|fault| fault.kind.takes_memory()).count() as u64;
    coverage.fenced_utterances = history.counted.fenced_utterances;
    coverage.unknown_outcomes = history.counted.unknown_outcomes;
    coverage.gap_repairs = history.counted.gap_repairs;
    coverage.records = history.records.len() as u64;
    for row in history.store.iter().flat_map(|store| &store.rooms).flat_map(|room| &room.rows) {
        coverage.removals += u64::from(matches!(row.event.kind, Kind::Removed(_) | Kind::Left(_)));
    }
}
