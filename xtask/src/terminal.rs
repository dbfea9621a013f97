//! What people see: colours where there is a terminal, aligned tables, durations.
//!
//! Owns: formatting. Always holds: no escape code is written to a pipe or file, or when NO_COLOR is set.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Whether a person looks at our output.
pub(crate) fn is_terminal() -> bool {
    std::io::stdout().is_terminal() && std::io::stderr().is_terminal()
}

fn colour(code: &str, text: &str) -> String {
    let plain = !is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    if plain { text.to_owned() } else { format!("\x1b[{code}m{text}\x1b[0m") }
}

pub(crate) fn red(text: &str) -> String {
    colour("1;31", text)
}

pub(crate) fn green(text: &str) -> String {
    colour("32", text)
}

pub(crate) fn yellow(text: &str) -> String {
    colour("33", text)
}

pub(crate) fn bold(text: &str) -> String {
    colour("1", text)
}

/// The clock for wall times of stages.
#[expect(clippy::disallowed_methods, reason = "xtask measures real time and has no runtime")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// `0.4 s`, `12 s`, `3 min 05 s`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        _ => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

/// Columns aligned by their widest cell; all but the first to the right where `right` says so.
pub(crate) fn table(rows: &[Vec<String>], right: &[bool]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| rows.iter().filter_map(|r| r.get(i)).map(|c| visible(c)).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[i] - visible(cell));
            let to_right = right.get(i).copied().unwrap_or(false);
            line.push_str(&if to_right { format!("{pad}{cell}  ") } else { format!("{cell}{pad}  ") });
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// The width of a cell without its escape codes.
fn visible(text: &str) -> usize {
    let mut width = 0;
    let mut in_code = false;
    for c in text.chars() {
        match c {
            '\x1b' => in_code = true,
            'm' if in_code => in_code = false,
            _ if !in_code => width += 1,
            _ => {}
        }
    }
    width
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_with_and_without_colours() {
        let rows = [
            vec!["a".to_owned(), "10 s".to_owned()],
            vec!["\x1b[32mlong\x1b[0m".to_owned(), "1 s".to_owned()],
        ];
        assert_eq!(table(&rows, &[false, true]), "a     10 s\n\x1b[32mlong\x1b[0m   1 s\n");
    }

    #[test]
    fn durations_are_short() {
        assert_eq!(duration(Duration::from_millis(420)), "0.4 s");
        assert_eq!(duration(Duration::from_secs(12)), "12 s");
        assert_eq!(duration(Duration::from_secs(185)), "3 min 05 s");
    }
}
