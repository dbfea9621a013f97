//! Which processors a process may use: the server on some, the generators on the others.

use std::fmt;
use std::io;
use std::str::FromStr;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// A list of processors, such as `0` or `0-3,6`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cpus(Vec<usize>);

impl Cpus {
    /// Those that this process may use.
    pub(crate) fn allowed() -> io::Result<Self> {
        let set = sched_getaffinity(None)?;
        Ok(Self((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()))
    }

    /// These without the others; all of them where nothing would be left.
    pub(crate) fn without(&self, others: &Self) -> Self {
        let rest: Vec<_> = self.0.iter().copied().filter(|cpu| !others.0.contains(cpu)).collect();
        if rest.is_empty() { self.clone() } else { Self(rest) }
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn contains(&self, cpu: usize) -> bool {
        self.0.contains(&cpu)
    }

    /// Binds the calling thread, and with it every thread and process that it starts from here on.
    pub(crate) fn bind_thread(&self) -> io::Result<()> {
        let mut set = CpuSet::new();
        for &cpu in &self.0 {
            set.set(cpu);
        }
        Ok(sched_setaffinity(None, &set)?)
    }

    /// Runs this on a thread bound to these processors: what it starts inherits the binding, without code of ours
    /// between fork and exec.
    pub(crate) fn on_them<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.bind_thread()?;
                work()
            });
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread that starts a process panicked")))
        })
    }
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is not a list of processors such as 0 or 0-3,6");
        let mut list = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: usize = first.trim().parse().map_err(|_| bad())?;
            let last: usize = last.trim().parse().map_err(|_| bad())?;
            if first > last || last >= CpuSet::MAX_CPU {
                return Err(bad());
            }
            list.extend(first..=last);
        }
        list.sort_unstable();
        list.dedup();
        Ok(Self(list))
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&words.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        for (text, want) in [("0", "0"), ("0-3,6", "0,1,2,3,6"), ("2,1,1", "1,2")] {
            assert_eq!(text.parse::<Cpus>().unwrap().to_string(), want);
        }
        for text in ["", "a", "3-1", "0-", "99999", "-1"] {
            assert!(text.parse::<Cpus>().is_err(), "{text}");
        }
    }

    #[test]
    fn generators_get_the_others() {
        let all: Cpus = "0-1".parse().unwrap();
        assert_eq!(all.without(&"0".parse().unwrap()).to_string(), "1");
        assert_eq!(all.without(&all).to_string(), "0,1", "with one processor they share it");
    }

    #[test]
    fn binds_only_the_thread_that_asks() {
        let before = Cpus::allowed().unwrap();
        let first = Cpus(vec![before.0[0]]);
        let inside = first.on_them(Cpus::allowed).unwrap();
        assert_eq!(inside, first);
        assert_eq!(Cpus::allowed().unwrap(), before);
    }
}
