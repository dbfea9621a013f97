//! What the shard counts. Handles are made once a worker; per-message counts are added up once a turn.

use banyan_proto::codes::Code;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Turn {
    pub(crate) stored: u64,
    pub(crate) duplicate: u64,
}

pub(crate) struct Metrics {
    /// Rooms held open by the worker.
    pub(crate) rooms_open: Gauge,
    /// Users with a channel on the worker.
    pub(crate) users_online: Gauge,
    /// Batches found in the inbox at the last turn.
    pub(crate) inbox_depth: Gauge,
    pub(crate) appends: Counter,
    /// Events of one append.
    pub(crate) append_events: Histogram,
    /// From handing an append to the store until its outcome is known.
    pub(crate) append_seconds: Histogram,
    /// Appends whose outcome was unknown and that were repeated.
    pub(crate) append_unknown: Counter,
    /// Appends that the store refused.
    pub(crate) append_refused: Counter,
    pub(crate) sends_stored: Counter,
    pub(crate) sends_duplicate: Counter,
    /// Messages that a full link did not take (they are repaired by head beacons and pulls).
    pub(crate) link_dropped: Counter,
    /// Pushes to user channels that were lost because a queue was full.
    pub(crate) notify_dropped: Counter,
    pub(crate) loads: Counter,
    pub(crate) reads: Counter,
    pub(crate) closed: Counter,
    /// Loads and reads that the store could not answer.
    pub(crate) read_failed: Counter,
    errors: Vec<(u32, Counter)>,
}

impl Metrics {
    pub(crate) fn new(worker: usize) -> Self {
        let worker = worker.to_string();
        Self {
            rooms_open: gauge!("banyan_shard_rooms_open", "worker" => worker.clone()),
            users_online: gauge!("banyan_shard_users_online", "worker" => worker.clone()),
            inbox_depth: gauge!("banyan_shard_inbox_depth", "worker" => worker),
            appends: counter!("banyan_shard_appends_total"),
            append_events: histogram!("banyan_shard_append_events"),
            append_seconds: histogram!("banyan_shard_append_seconds"),
            append_unknown: counter!("banyan_shard_append_unknown_total"),
            append_refused: counter!("banyan_shard_append_refused_total"),
            sends_stored: counter!("banyan_shard_sends_total", "outcome" => "stored"),
            sends_duplicate: counter!("banyan_shard_sends_total", "outcome" => "duplicate"),
            link_dropped: counter!("banyan_shard_link_dropped_total"),
            notify_dropped: counter!("banyan_shard_notify_dropped_total"),
            loads: counter!("banyan_shard_loads_total"),
            reads: counter!("banyan_shard_reads_total"),
            closed: counter!("banyan_shard_rooms_closed_total"),
            read_failed: counter!("banyan_shard_read_failed_total"),
            errors: Code::ALL
                .iter()
                .map(|code| (code.number(), counter!("banyan_shard_errors_total", "code" => code.name())))
                .collect(),
        }
    }

    /// An error answer, by its code.
    pub(crate) fn error(&self, code: u32) {
        if let Some((_, counter)) = self.errors.iter().find(|(number, _)| *number == code) {
            counter.increment(1);
        }
    }

    pub(crate) fn end_turn(&self, turn: &mut Turn) {
        if turn.stored > 0 {
            self.sends_stored.increment(turn.stored);
        }
        if turn.duplicate > 0 {
            self.sends_duplicate.increment(turn.duplicate);
        }
        *turn = Turn::default();
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
