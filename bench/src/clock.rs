//! The clocks of a measurement. Monotonic nanoseconds are the machine's own, so two processes may compare theirs.

use rustix::time::{ClockId, clock_gettime};

/// A moment, in nanoseconds since the machine started.
pub(crate) fn now_ns() -> u64 {
    read(ClockId::Monotonic)
}

/// CPU time of this process, in nanoseconds, all its threads together.
pub(crate) fn own_cpu_ns() -> u64 {
    read(ClockId::ProcessCPUTime)
}

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    // Neither clock is ever negative.
    u64::try_from(time.tv_sec).unwrap_or_default() * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or_default()
}

/// Today in UTC, such as `2026-11-21 12:06`.
pub(crate) fn date() -> String {
    utc(clock_gettime(ClockId::Realtime).tv_sec)
}

/// Days to a civil date after Howard Hinnant, "chrono-compatible low-level date algorithms".
fn utc(unix_s: i64) -> String {
    let (days, second) = (unix_s.div_euclid(86_400), unix_s.rem_euclid(86_400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}", second / 3600, second / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (unix_s, want) in [
            (0, "1970-01-01 00:00"),
            (951_782_399, "2000-02-28 23:59"),
            (951_782_400, "2000-02-29 00:00"),
            (951_868_800, "2000-03-01 00:00"),
            (1_795_262_760, "2026-11-21 12:06"),
            (-1, "1969-12-31 23:59"),
        ] {
            assert_eq!(utc(unix_s), want);
        }
    }

    #[test]
    fn clocks_rise() {
        let before = (now_ns(), own_cpu_ns());
        let mut sum = 0_u64;
        for i in 0..1_000_000_u64 {
            sum = sum.wrapping_add(std::hint::black_box(i));
        }
        assert_ne!(sum, 0);
        assert!(now_ns() > before.0 && own_cpu_ns() > before.1);
    }
}
