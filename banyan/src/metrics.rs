//! The metrics of the process: the recorder, its buckets, and what the system says of us.
//!
//! Always holds: somebody calls [`Metrics::upkeep`] every [`UPKEEP_INTERVAL`]; without it the samples of histograms
//! pile up until the next scrape.

use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::failure::{Exit, Failure};
use crate::process::Process;

/// How often samples are folded into their buckets.
pub(crate) const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// For `…_seconds`: 50 µs (a fan-out) to 10 s (a deadline), about 2.2 times apart.
const SECONDS: [f64; 16] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    10.0,
];
/// For `…_bytes`: 64 B to 1 MiB, 4 times apart.
const BYTES: [f64; 8] = [64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0];
/// For counts (events in a batch, rooms in a frame): powers of two.
const COUNTS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// The process-wide recorder, and what is read only when somebody asks.
#[derive(Clone)]
pub(crate) struct Metrics {
    recorder: PrometheusHandle,
    process: Process,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

fn builder() -> Result<PrometheusBuilder, metrics_exporter_prometheus::BuildError> {
    PrometheusBuilder::new()
        .set_buckets(&COUNTS)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &BYTES)
}

impl Metrics {
    /// Makes this the recorder of all crates.
    pub(crate) fn install() -> Result<Self, Failure> {
        let recorder = builder().and_then(PrometheusBuilder::install_recorder);
        let recorder = recorder
            .map_err(|error| Failure::new(Exit::Internal, format!("cannot start metrics: {error}")))?;
        metrics::describe_counter!(
            "banyan_log_dropped_lines_total",
            "Log lines dropped because their reader was too slow"
        );
        metrics::gauge!("banyan_build_info", "version" => crate::version::VERSION).set(1.0);
        Ok(Self { recorder, process: Process::describe() })
    }

    /// A recorder that nobody records to.
    #[cfg(test)]
    pub(crate) fn not_installed() -> Self {
        Self { recorder: PrometheusBuilder::new().build_recorder().handle(), process: Process::describe() }
    }

    /// Everything, in Prometheus' text format.
    pub(crate) fn render(&self) -> String {
        self.process.record();
        self.recorder.render()
    }

    pub(crate) fn upkeep(&self) {
        self.recorder.run_upkeep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_have_buckets_that_fit_their_unit() {
        let recorder = builder().unwrap().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            metrics::histogram!("banyan_test_wait_seconds").record(0.003);
            metrics::histogram!("banyan_test_frame_bytes").record(300.0);
            metrics::histogram!("banyan_test_batch_events").record(3.0);
        });
        let text = recorder.handle().render();
        for line in [
            "banyan_test_wait_seconds_bucket{le=\"0.0025\"} 0",
            "banyan_test_wait_seconds_bucket{le=\"0.005\"} 1",
            "banyan_test_frame_bytes_bucket{le=\"1024\"} 1",
            "banyan_test_batch_events_bucket{le=\"4\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
