//! What the system says of this process: memory, open files, CPU time. Prometheus' own names, so that its dashboards fit.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

/// The gauges of this process. Cheap enough for each scrape: two small files of /proc and one clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Process;

impl Process {
    pub(crate) fn describe() -> Self {
        metrics::describe_gauge!(
            "process_resident_memory_bytes",
            "Memory in RAM, shared pages and mapped files included"
        );
        metrics::describe_gauge!(
            "process_anonymous_memory_bytes",
            "Memory in RAM that is ours alone: heap and stacks"
        );
        metrics::describe_gauge!("process_open_fds", "Open files and sockets");
        metrics::describe_gauge!("process_max_fds", "Most files and sockets that may be open");
        metrics::describe_gauge!("process_cpu_seconds_total", "CPU time of all threads, user and system");
        Self
    }

    /// Reads everything anew; what the system does not tell is left out.
    pub(crate) fn record(self) {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        if let Some(bytes) = status_bytes(&status, "VmRSS:") {
            metrics::gauge!("process_resident_memory_bytes").set(bytes);
        }
        if let Some(bytes) = status_bytes(&status, "RssAnon:") {
            metrics::gauge!("process_anonymous_memory_bytes").set(bytes);
        }
        if let Some(open) = open_files() {
            metrics::gauge!("process_open_fds").set(open as f64);
        }
        if let Some(most) = getrlimit(Resource::Nofile).current {
            metrics::gauge!("process_max_fds").set(most as f64);
        }
        let used = clock_gettime(ClockId::ProcessCPUTime);
        metrics::gauge!("process_cpu_seconds_total").set(used.tv_sec as f64 + used.tv_nsec as f64 / 1e9);
    }
}

/// A line of /proc/self/status such as `VmRSS:   12345 kB`, in bytes.
fn status_bytes(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((kib * 1024) as f64)
}

/// Since Linux 6.2 the directory's size is the number of its entries; before that it is 0 and they must be counted.
fn open_files() -> Option<u64> {
    match fs::metadata("/proc/self/fd").ok()?.len() {
        0 => Some(fs::read_dir("/proc/self/fd").ok()?.count() as u64),
        known => Some(known),
    }
}

/// Raises the number of files that may be open to the most that the system allows. Returns it; none is unlimited.
pub(crate) fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_lines_of_status() {
        let status = "Name:\tbanyan\nVmRSS:\t   2048 kB\nRssAnon:\t     4 kB\nVmSwap: many\n";
        assert_eq!(status_bytes(status, "VmRSS:"), Some(2_097_152.0));
        assert_eq!(status_bytes(status, "RssAnon:"), Some(4096.0));
        assert_eq!(status_bytes(status, "VmSwap:"), None);
        assert_eq!(status_bytes(status, "VmHWM:"), None);
    }

    #[test]
    fn counts_open_files() {
        let before = open_files().unwrap();
        let held: Vec<_> = (0..100).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let after = open_files().unwrap();
        // Other tests open and close a few beside this one.
        assert!(after + 20 >= before + held.len() as u64, "{before} then {after}");
    }
}
