//! What the shard counts. Handles are made once a worker; what its core counts is published once a turn.

use banyan_proto::codes::Code;
use banyan_shard_core::worker::Counters;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

pub(crate) struct Metrics {
    /// Rooms held open by the worker.
    pub(crate) rooms_open: Gauge,
    /// Users with a channel on the worker.
    pub(crate) users_online: Gauge,
    /// Batches found in the inbox at the last turn.
    pub(crate) inbox_depth: Gauge,
    /// Answers and events that wait for a fence read.
    pub(crate) unsaid: Gauge,
    pub(crate) appends: Counter,
    /// Events of one append.
    pub(crate) append_events: Histogram,
    /// From handing an append to the store until its outcome is known.
    pub(crate) append_seconds: Histogram,
    /// Appends whose outcome was unknown and that were repeated.
    pub(crate) append_unknown: Counter,
    /// Appends that the store refused.
    pub(crate) append_refused: Counter,
    sends_stored: Counter,
    sends_duplicate: Counter,
    /// Messages that a full link did not take (head beacons and pulls repair events, absences are told again).
    link_dropped: Counter,
    /// Pushes to user channels that were lost because a queue was full.
    pub(crate) notify_dropped: Counter,
    opened: Counter,
    closed: Counter,
    reads: Counter,
    /// Reads of the own fence: one for all that waits.
    fence_reads: Counter,
    /// What a run that was fenced would have said and never did.
    silenced: Counter,
    /// Questions that were sent to another owner, or to wait for one.
    moved: Counter,
    marks_forgotten: Counter,
    /// Reads that the store could not answer.
    pub(crate) read_failed: Counter,
    errors: Vec<(u32, Counter)>,
    published: Counters,
}

impl Metrics {
    pub(crate) fn new(worker: usize) -> Self {
        let worker = worker.to_string();
        Self {
            rooms_open: gauge!("banyan_shard_rooms_open", "worker" => worker.clone()),
            users_online: gauge!("banyan_shard_users_online", "worker" => worker.clone()),
            inbox_depth: gauge!("banyan_shard_inbox_depth", "worker" => worker.clone()),
            unsaid: gauge!("banyan_shard_unsaid", "worker" => worker),
            appends: counter!("banyan_shard_appends_total"),
            append_events: histogram!("banyan_shard_append_events"),
            append_seconds: histogram!("banyan_shard_append_seconds"),
            append_unknown: counter!("banyan_shard_append_unknown_total"),
            append_refused: counter!("banyan_shard_append_refused_total"),
            sends_stored: counter!("banyan_shard_sends_total", "outcome" => "stored"),
            sends_duplicate: counter!("banyan_shard_sends_total", "outcome" => "duplicate"),
            link_dropped: counter!("banyan_shard_link_dropped_total"),
            notify_dropped: counter!("banyan_shard_notify_dropped_total"),
            opened: counter!("banyan_shard_rooms_opened_total"),
            closed: counter!("banyan_shard_rooms_closed_total"),
            reads: counter!("banyan_shard_reads_total"),
            fence_reads: counter!("banyan_shard_fence_reads_total"),
            silenced: counter!("banyan_shard_silenced_total"),
            moved: counter!("banyan_shard_moved_total"),
            marks_forgotten: counter!("banyan_shard_marks_forgotten_total"),
            read_failed: counter!("banyan_shard_read_failed_total"),
            errors: Code::ALL
                .iter()
                .map(|code| (code.number(), counter!("banyan_shard_errors_total", "code" => code.name())))
                .collect(),
            published: Counters::default(),
        }
    }

    /// Publishes what the core has counted since the last time.
    pub(crate) fn publish(&mut self, now: &Counters) {
        let Self { published: old, .. } = self;
        let counts = [
            (&self.sends_stored, now.sends_stored, &mut old.sends_stored),
            (&self.sends_duplicate, now.sends_duplicate, &mut old.sends_duplicate),
            (&self.link_dropped, now.link_dropped, &mut old.link_dropped),
            (&self.opened, now.rooms_opened, &mut old.rooms_opened),
            (&self.closed, now.rooms_closed, &mut old.rooms_closed),
            (&self.reads, now.reads, &mut old.reads),
            (&self.fence_reads, now.fence_reads, &mut old.fence_reads),
            (&self.silenced, now.silenced, &mut old.silenced),
            (&self.moved, now.moved, &mut old.moved),
            (&self.marks_forgotten, now.late_marks_forgotten, &mut old.late_marks_forgotten),
        ];
        for (counter, now, old) in counts {
            if now != *old {
                counter.increment(now - *old);
                *old = now;
            }
        }
        if old.errors == now.errors {
            return;
        }
        for (code, counter) in &self.errors {
            let count = |counters: &Counters| counters.errors.get(code).copied().unwrap_or_default();
            counter.increment(count(now) - count(old));
        }
        old.errors.clone_from(&now.errors);
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
