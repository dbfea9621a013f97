//! What the driver logs while it connects: kept, so that it is told once and in our words, or not at all.
//!
//! Does not: keep more than [`LINES_MAX`] lines of a try, or anything below a warning.

use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

const LINES_MAX: usize = 16;

/// A subscriber; its clones hear the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overheard {
    lines: Arc<Mutex<Vec<String>>>,
}

impl Overheard {
    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The warnings so far, the oldest first.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.lines())
    }
}

impl Subscriber for Overheard {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::WARN
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::WARN)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let mut lines = self.lines();
        if lines.len() < LINES_MAX {
            lines.push(line.0);
        }
    }

    // Spans are not enabled.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// `message, name=value, …`
#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let comma = if self.0.is_empty() { "" } else { ", " };
        let written = match field.name() {
            "message" => write!(self.0, "{comma}{value:?}"),
            name => write!(self.0, "{comma}{name}={value:?}"),
        };
        debug_assert!(written.is_ok(), "writing to a String cannot fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_kept_and_nothing_below_them() {
        let heard = Overheard::default();
        tracing::subscriber::with_default(heard.clone(), || {
            tracing::info!("not this");
            let _span = tracing::warn_span!("nor this").entered();
            tracing::warn!(host = "one", tries = 3, "a name is not known");
            for _ in 0..100 {
                tracing::error!("much");
            }
        });
        let lines = heard.take();
        assert_eq!(
            (lines[0].as_str(), lines.len()),
            ("a name is not known, host=\"one\", tries=3", LINES_MAX)
        );
        assert!(heard.take().is_empty());
    }
}
