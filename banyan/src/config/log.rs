//! `[log]`: what the node tells of itself.

use super::kind::{Choice, Levels};
use super::section::section;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// [`Format::Text`] on a terminal, else [`Format::Json`].
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

section! {
    /// What the node tells of itself, on standard output. Bodies of messages, tokens and passwords are never logged.
    "log" struct Log {
        /// Lines for people ("text"), one JSON object a line ("json"), or what fits: text on a terminal, JSON otherwise ("auto").
        format: Format = Format::Auto, Choice(&[("auto", Format::Auto), ("text", Format::Text), ("json", Format::Json)]);
        /// From which level on, for all or per part: "info,banyan_gateway=debug".
        level: String = "info".to_owned(), Levels;
    }
}
