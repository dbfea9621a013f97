//! CPU of the server and of the generators over a stretch of time.

use serde::Serialize;

use crate::clock::now_ns;
use crate::cpus::Cpus;
use crate::pool::Pool;
use crate::process::{CpuTime, busy_ns};
use crate::server::Server;

/// Above this share of its processors the generator, not the server, is what was measured.
const GENERATOR_LIMIT: f64 = 0.9;

#[derive(Debug)]
pub(crate) struct Meter {
    server: CpuTime,
    generators: Vec<CpuTime>,
    server_busy_ns: u64,
    started_ns: u64,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Usage {
    pub(crate) seconds: f64,
    pub(crate) server_cpu_ns: u64,
    /// All that the server's processors did, interrupts and other processes included.
    pub(crate) server_processors_busy_ns: u64,
    /// Share of the server's processors that the server used.
    pub(crate) server_share: f64,
    /// Share of the generators' processors that the generators used.
    pub(crate) generator_share: f64,
}

impl Meter {
    pub(crate) fn start(server: &Server, pool: &Pool, server_cpus: &Cpus) -> anyhow::Result<Self> {
        let generators = pool.cpu()?;
        Ok(Self {
            generators,
            server_busy_ns: busy_ns(server_cpus)?,
            started_ns: now_ns(),
            server: server.cpu()?,
        })
    }

    pub(crate) fn stop(
        &self,
        server: &Server,
        pool: &Pool,
        server_cpus: &Cpus,
        generator_cpus: &Cpus,
    ) -> anyhow::Result<Usage> {
        let server_cpu_ns = server.cpu()?.since(&self.server);
        let wall_ns = now_ns().saturating_sub(self.started_ns).max(1) as f64;
        let generators_ns = pool.cpu_since(&self.generators)?;
        Ok(Usage {
            seconds: wall_ns / 1e9,
            server_cpu_ns,
            server_processors_busy_ns: busy_ns(server_cpus)?.saturating_sub(self.server_busy_ns),
            server_share: server_cpu_ns as f64 / (wall_ns * server_cpus.count() as f64),
            generator_share: generators_ns as f64 / (wall_ns * generator_cpus.count() as f64),
        })
    }
}

impl Usage {
    pub(crate) fn generator_is_the_limit(&self) -> bool {
        self.generator_share > GENERATOR_LIMIT
    }
}

/// A word when the generator was the limit in any of these.
pub(crate) fn limit_note<'a>(what: &str, usages: impl IntoIterator<Item = &'a Usage>) -> Option<String> {
    let usages: Vec<_> = usages.into_iter().collect();
    let limited = usages.iter().filter(|usage| usage.generator_is_the_limit()).count();
    (limited > 0).then(|| {
        format!(
            "{what}: the load generator was the limit in {limited} of {} runs (more than 90 % of its processors): \
             rates and latencies are its own, CPU per delivery holds",
            usages.len()
        )
    })
}
