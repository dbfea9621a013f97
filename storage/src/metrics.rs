//! What the embedded store tells about itself. Handles are made once; nothing here is per room or user.

use metrics::{Counter, Gauge, Histogram};

pub(crate) struct Metrics {
    /// Group commits, an fsync each.
    pub(crate) commits: Counter,
    /// From the start of a commit to its fsync's end.
    pub(crate) commit_seconds: Histogram,
    /// Rows of a commit.
    pub(crate) batch_rows: Histogram,
    /// Writes to rooms that wait for the writer.
    pub(crate) queue_depth: Gauge,
    /// 1 while too little space is free to write.
    pub(crate) full: Gauge,
    /// Times that the files were opened again after a failed write.
    pub(crate) reopens: Counter,
    /// Writes to rooms refused, by reason.
    pub(crate) refused_full: Counter,
    pub(crate) refused_overloaded: Counter,
    pub(crate) refused_unavailable: Counter,
    /// Marks dropped because too many waited.
    pub(crate) marks_dropped: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let refused =
            |reason: &'static str| metrics::counter!("banyan_storage_refused_total", "reason" => reason);
        Self {
            commits: metrics::counter!("banyan_storage_commits_total"),
            commit_seconds: metrics::histogram!("banyan_storage_commit_seconds"),
            batch_rows: metrics::histogram!("banyan_storage_batch_rows"),
            queue_depth: metrics::gauge!("banyan_storage_queue_depth"),
            full: metrics::gauge!("banyan_storage_full"),
            reopens: metrics::counter!("banyan_storage_reopens_total"),
            refused_full: refused("full"),
            refused_overloaded: refused("overloaded"),
            refused_unavailable: refused("unavailable"),
            marks_dropped: metrics::counter!("banyan_storage_marks_dropped_total"),
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

/// Reads, by kind.
#[derive(Clone)]
pub(crate) struct ReadMetrics {
    pub(crate) room: Counter,
    pub(crate) log: Counter,
    pub(crate) members: Counter,
    pub(crate) user_rooms: Counter,
    pub(crate) accounts: Counter,
    pub(crate) owners: Counter,
    /// Refused because the readers' queue was full.
    pub(crate) refused: Counter,
}

impl ReadMetrics {
    pub(crate) fn new() -> Self {
        let reads = |kind: &'static str| metrics::counter!("banyan_storage_reads_total", "kind" => kind);
        Self {
            room: reads("room"),
            log: reads("log"),
            members: reads("members"),
            user_rooms: reads("user_rooms"),
            accounts: reads("accounts"),
            owners: reads("owners"),
            refused: metrics::counter!("banyan_storage_reads_refused_total"),
        }
    }
}

impl std::fmt::Debug for ReadMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReadMetrics")
    }
}
