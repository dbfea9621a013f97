//! What operators see of the ring (docs/operations.md). Labels are names of requests and their outcomes: a few dozen.

/// One request to etcd and what came of it.
pub(crate) fn request(what: &'static str, outcome: &'static str) {
    metrics::counter!("banyan_router_etcd_requests_total", "request" => what, "outcome" => outcome)
        .increment(1);
}

/// The watch has begun: listed anew, or resumed where it broke.
pub(crate) fn watch_begun(how: &'static str) {
    metrics::counter!("banyan_router_watch_begun_total", "how" => how).increment(1);
}

/// All slots of the cluster, and those that this node serves.
pub(crate) fn slots(all: u32, served: usize) {
    metrics::gauge!("banyan_router_slots").set(f64::from(all));
    metrics::gauge!("banyan_router_slots_served").set(served as f64);
}

/// This node serves a slot from now on. `opening`: `handed_over` from the old owner's memory, `full` from the store.
pub(crate) fn slot_begun(opening: &'static str) {
    metrics::counter!("banyan_router_slots_begun_total", "opening" => opening).increment(1);
}

/// A request of the ring that was given up after its time.
pub(crate) fn timed_out(what: &'static str) {
    metrics::counter!("banyan_router_timeouts_total", "request" => what).increment(1);
}
