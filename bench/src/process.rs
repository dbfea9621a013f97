//! What the system says of a process: CPU time and memory, from `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use crate::cpus::Cpus;

/// USER_HZ: the unit of `/proc/PID/stat`, the same on every Linux that Rust runs on.
const TICK_NS: u64 = 10_000_000;

/// CPU time of a process at one moment.
#[derive(Debug, Clone)]
pub(crate) struct CpuTime {
    /// utime + stime of the whole process, in steps of 10 ms.
    ticks_ns: u64,
    /// Nanoseconds on a processor by thread, from `schedstat`; empty where the kernel does not count them.
    threads_ns: BTreeMap<u32, u64>,
}

impl CpuTime {
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let ticks_ns = parse_stat(&stat).ok_or_else(|| io::Error::other("unknown form of /proc/PID/stat"))?;
        let mut threads_ns = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let entry = entry?;
            let Some(thread) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // A thread may end between the listing and the reading.
            let Ok(schedstat) = fs::read_to_string(entry.path().join("schedstat")) else { continue };
            if let Some(ns) = schedstat.split_whitespace().next().and_then(|ns| ns.parse().ok()) {
                threads_ns.insert(thread, ns);
            }
        }
        Ok(Self { ticks_ns, threads_ns })
    }

    /// CPU time between an earlier moment and this one. To the nanosecond where no thread ended in between,
    /// else in steps of 10 ms.
    pub(crate) fn since(&self, before: &Self) -> u64 {
        let by_ticks = self.ticks_ns.saturating_sub(before.ticks_ns);
        let counted = self.threads_ns.values().any(|&ns| ns > 0);
        let all_live = before.threads_ns.keys().all(|thread| self.threads_ns.contains_key(thread));
        if !counted || !all_live {
            return by_ticks;
        }
        let sum = |times: &BTreeMap<u32, u64>| times.values().sum::<u64>();
        sum(&self.threads_ns).saturating_sub(sum(&before.threads_ns))
    }
}

/// utime + stime. The second field is the program's name in parentheses and may hold anything.
fn parse_stat(stat: &str) -> Option<u64> {
    let fields: Vec<_> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
    let (utime, stime): (u64, u64) = (fields.get(11)?.parse().ok()?, fields.get(12)?.parse().ok()?);
    Some((utime + stime) * TICK_NS)
}

/// Time that these processors were not idle, interrupts included, in nanoseconds (steps of 10 ms): the check on what
/// is charged to no process.
pub(crate) fn busy_ns(cpus: &Cpus) -> io::Result<u64> {
    Ok(parse_busy(&fs::read_to_string("/proc/stat")?, cpus))
}

fn parse_busy(stat: &str, cpus: &Cpus) -> u64 {
    let mut ticks = 0;
    for line in stat.lines() {
        let mut words = line.split_whitespace();
        let cpu =
            words.next().and_then(|word| word.strip_prefix("cpu")).and_then(|number| number.parse().ok());
        if cpu.is_some_and(|cpu| cpus.contains(cpu)) {
            let fields: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
            // user nice system idle iowait irq softirq steal guest guest_nice; guest is inside user.
            ticks += fields.iter().take(7).sum::<u64>().saturating_sub(fields.iter().skip(3).take(2).sum());
        }
    }
    ticks * TICK_NS
}

/// Anonymous memory of a process that is in RAM, in bytes: heap and stacks, without what it maps from files.
pub(crate) fn rss_anon(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    parse_rss_anon(&status).ok_or_else(|| io::Error::other("no RssAnon in /proc/PID/status"))
}

fn parse_rss_anon(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stat_around_a_name_with_parentheses() {
        let stat = "7 (a) b (c) S 1 1 1 0 -1 4194560 10 0 0 0 31 11 0 0 20 0 4 0 100 1 1";
        assert_eq!(parse_stat(stat), Some(42 * TICK_NS));
        assert_eq!(parse_stat("7 no name"), None);
    }

    #[test]
    fn busy_is_everything_but_idle_and_waiting() {
        let stat =
            "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 1000 1000 4 5 99 0 0\ncpu1 7 7 7 7 7 7 7 7 0 0\nintr 5\n";
        assert_eq!(parse_busy(stat, &"0".parse().unwrap()), 15 * TICK_NS);
    }

    #[test]
    fn rss() {
        assert_eq!(parse_rss_anon("VmRSS:\t  10 kB\nRssAnon:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(parse_rss_anon("VmRSS:\t  10 kB\n"), None);
        assert!(rss_anon(std::process::id()).unwrap() > 0);
    }

    #[test]
    fn own_time_is_counted() {
        let before = CpuTime::of(std::process::id()).unwrap();
        let end = crate::clock::own_cpu_ns() + 30_000_000;
        while crate::clock::own_cpu_ns() < end {}
        let spent = CpuTime::of(std::process::id()).unwrap().since(&before);
        assert!(spent >= 20_000_000, "{spent}");
    }

    #[test]
    fn a_thread_that_ended_falls_back_to_ticks() {
        let before = CpuTime { ticks_ns: 100, threads_ns: [(1, 50), (2, 60)].into() };
        let after = CpuTime { ticks_ns: 400, threads_ns: [(1, 70)].into() };
        assert_eq!(after.since(&before), 300);
        let after = CpuTime { ticks_ns: 400, threads_ns: [(1, 70), (2, 60), (3, 5)].into() };
        assert_eq!(after.since(&before), 25);
    }
}
