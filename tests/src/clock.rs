//! Wall clocks of processes, set by a test: they jump, and run too fast or too slow.
//!
//! Owns: the library that is loaded into the process (`tests/shim/clock_shim.c`) and one small file for each clock.
//! Always holds: a change counts at once, for all threads, and outlives the process: the next one in its place has that clock
//! too. Monotonic clocks are true.
//! Does not: change this process' own clock, nor that of the machine.

use anyhow::Context;
use rustix::time::{ClockId, clock_gettime};
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::shim;

/// The library, compiled.
#[derive(Debug)]
pub struct Shim {
    library: PathBuf,
}

/// How a clock goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Setting {
    /// Milliseconds ahead of the true clock when it is set.
    pub ahead_ms: i64,
    /// What it gains from then on, in millionths.
    pub drift_ppm: i64,
}

/// The wall clock of one process.
#[derive(Debug)]
pub struct Clock {
    path: PathBuf,
    file: File,
    version: u64,
}

/// Places in `struct setting` of the library.
const VERSION_AT: u64 = 0;
const SETTING_AT: u64 = 8;

impl Shim {
    /// Compiles it into a directory.
    pub fn build(directory: &Path) -> anyhow::Result<Self> {
        Ok(Self { library: shim::build("clock_shim", directory)? })
    }

    /// What a process needs in its environment to have that clock.
    pub fn environment(&self, clock: &Clock) -> [(OsString, OsString); 2] {
        [
            ("LD_PRELOAD".into(), self.library.clone().into()),
            ("CLOCK_SHIM_FILE".into(), clock.path.clone().into()),
        ]
    }
}

impl Clock {
    /// A true one. `path`: absolute.
    pub fn make(path: PathBuf) -> anyhow::Result<Self> {
        let file = File::options().create(true).truncate(true).write(true).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        let mut clock = Self { path, file, version: 0 };
        clock.set(Setting::default())?;
        Ok(clock)
    }

    pub fn set(&mut self, setting: Setting) -> anyhow::Result<()> {
        let now = clock_gettime(ClockId::Monotonic);
        let since_ns = now.tv_sec * 1_000_000_000 + now.tv_nsec;
        let words = [setting.ahead_ms * 1_000_000, setting.drift_ppm, since_ns];
        let bytes: Vec<u8> = words.into_iter().flat_map(i64::to_ne_bytes).collect();
        // Odd while it is written: readers wait.
        self.version += 1;
        self.file.write_all_at(&self.version.to_ne_bytes(), VERSION_AT)?;
        self.file.write_all_at(&bytes, SETTING_AT)?;
        self.version += 1;
        self.file.write_all_at(&self.version.to_ne_bytes(), VERSION_AT)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::process::{Command, Stdio};

    /// Says all its clocks, in nanoseconds, each time it is asked.
    const TELLER: &str = r#"
#include <stdio.h>
#include <sys/time.h>
#include <time.h>
static long long ns(clockid_t clock) { struct timespec t; clock_gettime(clock, &t); return t.tv_sec * 1000000000ll + t.tv_nsec; }
int main(void) {
    while (getchar() != EOF) {
        struct timeval day; gettimeofday(&day, NULL);
        long long seconds = time(NULL);
        printf("%lld %lld %lld %lld\n", ns(CLOCK_MONOTONIC), ns(CLOCK_REALTIME), day.tv_sec * 1000000000ll + day.tv_usec * 1000ll, seconds * 1000000000ll);
        fflush(stdout);
    }
}
"#;

    #[test]
    fn wall_clocks_jump_and_drift_and_the_monotonic_one_is_true() {
        const SECOND: i64 = 1_000_000_000;
        let directory = tempfile::tempdir().unwrap();
        let (source, teller) = (directory.path().join("teller.c"), directory.path().join("teller"));
        std::fs::write(&source, TELLER).unwrap();
        shim::compile(&source, &teller, &[]).unwrap();
        let shim = Shim::build(directory.path()).unwrap();
        let mut clock = Clock::make(directory.path().join("clock")).unwrap();
        let mut child = Command::new(&teller)
            .envs(shim.environment(&clock))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ask = child.stdin.take().unwrap();
        let mut told = BufReader::new(child.stdout.take().unwrap());
        // How far each wall clock is from the monotonic one of the same moment, and that from ours.
        let mut tell = || -> [i64; 4] {
            ask.write_all(b"\n").unwrap();
            let mut line = String::new();
            told.read_line(&mut line).unwrap();
            let ours = clock_gettime(ClockId::Monotonic);
            let all: Vec<i64> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
            let mono = all[0];
            [ours.tv_sec * SECOND + ours.tv_nsec - mono, all[1] - mono, all[2] - mono, all[3] - mono]
        };
        let mono = || {
            let now = clock_gettime(ClockId::Monotonic);
            now.tv_sec * SECOND + now.tv_nsec
        };
        let before = tell();
        for (ahead_ms, drift_ppm) in
            [(3_600_000, 0), (-3_600_000, 0), (30_000, 0), (-30_000, 0), (0, 1_000_000), (0, 0)]
        {
            let since = mono();
            clock.set(Setting { ahead_ms, drift_ppm }).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(if drift_ppm == 0 { 5 } else { 3_000 }));
            let now = tell();
            assert!((0..SECOND).contains(&now[0]), "the monotonic clock is {} ns behind", now[0]);
            let gained = (mono() - now[0] - since) * drift_ppm / 1_000_000;
            for (kind, (before, now)) in before.iter().zip(now).enumerate().skip(1) {
                let off = now - before - ahead_ms * 1_000_000 - gained;
                // `time` counts whole seconds, and a busy machine may be late.
                assert!(off.abs() < 3 * SECOND / 2, "clock {kind} is {off} ns off at {ahead_ms} ms ahead");
            }
        }
        drop(ask);
        child.wait().unwrap();
    }
}
