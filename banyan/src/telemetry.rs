//! Log lines, for people on a terminal and as JSON otherwise, and what happens when a thread panics.

use std::io::{self, IsTerminal};
use std::panic::PanicHookInfo;
use std::str::FromStr;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::{Format, Log};
use crate::failure::{Exit, Failure, words};
use crate::log_queue::LogQueue;
use crate::output::print_error;

/// Longest panic message that is told, in characters: Rust puts the text that it failed on into some.
const PANIC_CHARS: usize = 200;

/// The running telemetry; lines that still wait are written when it is dropped.
#[derive(Debug)]
pub(crate) struct Telemetry {
    queue: LogQueue,
    /// Whether lines are for people.
    pub(crate) text: bool,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.queue.flush();
    }
}

/// Starts logging to standard output and lets any panic end the process.
pub(crate) fn start(config: &Log) -> Result<Telemetry, Failure> {
    let terminal = io::stdout().is_terminal();
    let text = match config.format {
        Format::Auto => terminal,
        Format::Text => true,
        Format::Json => false,
    };
    let cannot = |error: io::Error| {
        Failure::new(Exit::Unavailable, format!("cannot start the log's thread: {}", words(&error)))
    };
    let queue = LogQueue::start(io::stdout()).map_err(cannot)?;
    let levels = Targets::from_str(&config.level);
    let levels =
        levels.map_err(|error| Failure::new(Exit::Usage, format!("log.level is not possible: {error}")))?;
    let lines = if text {
        fmt::layer().with_ansi(colours(terminal)).with_writer(queue.clone()).boxed()
    } else {
        fmt::layer().json().flatten_event(true).with_span_list(false).with_writer(queue.clone()).boxed()
    };
    let started = tracing_subscriber::registry().with(lines.with_filter(levels)).try_init();
    started.map_err(|error| Failure::new(Exit::Internal, format!("cannot start logging: {error}")))?;
    let of_panics = queue.clone();
    std::panic::set_hook(Box::new(move |info| end_by_panic(info, &of_panics)));
    Ok(Telemetry { queue, text })
}

/// Colours only on a terminal that has some, and only if nobody objects (https://no-color.org).
fn colours(terminal: bool) -> bool {
    let objects = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let plain = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    terminal && !objects && !plain
}

/// A panic is a broken invariant: whatever thread or task it was in, what the others would go on with is not to be
/// trusted, so the whole process ends. Clients resume and nothing acked is lost, as after a kill.
fn end_by_panic(info: &PanicHookInfo<'_>, queue: &LogQueue) {
    let location = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let message =
        text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    let message: String =
        message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(PANIC_CHARS).collect();
    tracing::error!(location, message, "panicked, the process ends");
    crate::last_words::say();
    queue.flush();
    let failure = Failure::new(Exit::Internal, format!("bug at {location}: {message}"));
    print_error(
        &failure.with_hint("please report this line; nothing that was acknowledged is lost").to_string(),
    );
    std::process::exit(Exit::Internal as i32);
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const CHILD: &str = "PANIC_TEST_CHILD";

    /// As the words of a node: what is still done before the process ends, and for how long.
    fn set_last_words(which: &str) {
        match which {
            "said" => crate::last_words::set(|| print_error("last words\n")),
            "hangs" => crate::last_words::set(|| std::thread::sleep(std::time::Duration::from_secs(60))),
            "panics" => crate::last_words::set(|| panic!("in them")),
            _ => {}
        }
    }

    #[test]
    fn last_words_are_said_once_and_end_in_time_whatever_they_do() {
        if let Some(which) = std::env::var_os(CHILD) {
            let log = Log { format: Format::Json, ..Log::default() };
            let _telemetry = start(&log).unwrap();
            set_last_words(which.to_str().unwrap());
            // Two at once: the second one ends nothing early.
            let other = std::thread::spawn(|| panic!("one"));
            let _never = std::thread::spawn(|| panic!("one")).join();
            let _never = other.join();
            unreachable!("the panic of the other thread ended the process");
        }
        let test = "telemetry::tests::last_words_are_said_once_and_end_in_time_whatever_they_do";
        let program = std::env::current_exe().unwrap();
        for which in ["none", "said", "hangs", "panics"] {
            let begun = tokio::time::Instant::now();
            let mut child = Command::new(&program);
            child.args(["--exact", test, "--nocapture"]).env(CHILD, which);
            let child = child.output().unwrap();
            let err = String::from_utf8_lossy(&child.stderr);
            assert_eq!(child.status.code(), Some(70), "{which}: {err}");
            assert_eq!(err.matches("last words\n").count(), usize::from(which == "said"), "{which}: {err}");
            assert!(begun.elapsed().as_secs() < 10, "{which}");
        }
    }

    /// Runs itself again as a child whose second thread panics: the hook ends a process, which no thread survives to see.
    #[test]
    fn a_panic_in_any_thread_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            let log = Log { format: Format::Json, ..Log::default() };
            let _telemetry = start(&log).unwrap();
            let _never = std::thread::spawn(|| panic!("two\nlines")).join();
            unreachable!("the panic of the other thread ended the process");
        }
        let test = "telemetry::tests::a_panic_in_any_thread_ends_the_process";
        let program = std::env::current_exe().unwrap();
        let child =
            Command::new(program).args(["--exact", test, "--nocapture"]).env(CHILD, "1").output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
        assert_eq!(child.status.code(), Some(70), "{out}{err}");
        let errors: Vec<_> = out.lines().filter(|line| line.contains("\"level\":\"ERROR\"")).collect();
        assert_eq!(errors.len(), 1, "{out}");
        assert!(errors[0].contains("two lines") && errors[0].contains("telemetry.rs:"), "{out}");
        let lines: Vec<_> = err.lines().collect();
        assert_eq!(lines.len(), 2, "{err}");
        assert!(lines[0].starts_with("error: bug at ") && lines[0].ends_with(": two lines"), "{err}");
    }
}
