//! What the store tells about itself. Handles are made once; nothing here is per room or user.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

/// What a request to the servers was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One batch of a room's rows.
    Append,
    /// A segment's record.
    Record,
    /// Derived rows.
    Derived,
    Said,
    Marks,
    /// Fences, incarnations, slot owners: writes.
    Owner,
    /// Is somebody fenced?
    FenceRead,
    Read,
    Account,
}

const KINDS: [(Kind, &str); 9] = [
    (Kind::Append, "append"),
    (Kind::Record, "record"),
    (Kind::Derived, "derived"),
    (Kind::Said, "said"),
    (Kind::Marks, "marks"),
    (Kind::Owner, "owner"),
    (Kind::FenceRead, "fence_read"),
    (Kind::Read, "read"),
    (Kind::Account, "account"),
];

pub(crate) struct Metrics {
    /// By [`Kind`], as in [`KINDS`].
    seconds: [Histogram; KINDS.len()],
    failed: [Counter; KINDS.len()],
    /// Outcomes of writes to rooms.
    pub(crate) done: Counter,
    pub(crate) unknown: Counter,
    pub(crate) not_done: Counter,
    /// Writes to rooms accepted and not yet answered.
    pub(crate) writes: Gauge,
    pub(crate) write_bytes: Gauge,
    /// Statements with the servers.
    pub(crate) writes_in_flight: Gauge,
    pub(crate) reads_in_flight: Gauge,
    pub(crate) refused_writes: Counter,
    pub(crate) refused_reads: Counter,
    /// Members whose marks wait.
    pub(crate) marks_waiting: Gauge,
    pub(crate) marks_dropped: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let outcome = |name: &'static str| metrics::counter!("banyan_scylla_writes_total", "outcome" => name);
        let in_flight = |name: &'static str| metrics::gauge!("banyan_scylla_in_flight", "kind" => name);
        let refused = |name: &'static str| metrics::counter!("banyan_scylla_refused_total", "kind" => name);
        Self {
            seconds: KINDS
                .map(|(_, name)| metrics::histogram!("banyan_scylla_request_seconds", "kind" => name)),
            failed: KINDS.map(|(_, name)| metrics::counter!("banyan_scylla_failed_total", "kind" => name)),
            done: outcome("done"),
            unknown: outcome("unknown"),
            not_done: outcome("not_done"),
            writes: metrics::gauge!("banyan_scylla_writes_waiting"),
            write_bytes: metrics::gauge!("banyan_scylla_writes_waiting_bytes"),
            writes_in_flight: in_flight("write"),
            reads_in_flight: in_flight("read"),
            refused_writes: refused("write"),
            refused_reads: refused("read"),
            marks_waiting: metrics::gauge!("banyan_scylla_marks_waiting"),
            marks_dropped: metrics::counter!("banyan_scylla_marks_dropped_total"),
        }
    }

    pub(crate) fn note(&self, kind: Kind, took: Duration, failed: bool) {
        let at = kind as usize;
        self.seconds[at].record(took);
        if failed {
            self.failed[at].increment(1);
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_stand_at_their_places() {
        for (at, (kind, _)) in KINDS.iter().enumerate() {
            assert_eq!(*kind as usize, at);
        }
    }
}
