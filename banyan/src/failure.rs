//! Why `banyan` ends with something other than success: an exit code, a line for people, a hint.
//!
//! Always holds: what is printed is one line per thing that is wrong, without a backtrace, and says what to do.

use std::fmt;
use std::io;

/// Exit codes, after BSD's sysexits.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// The answer is no: not healthy, not a valid token.
    No = 1,
    /// The command line or the configuration is wrong (EX_USAGE).
    Usage = 64,
    /// Something that is needed is not to be had, such as a port (EX_UNAVAILABLE).
    Unavailable = 69,
    /// A bug of ours (EX_SOFTWARE).
    Internal = 70,
    /// A file or directory could not be read or written, or is of a newer release (EX_IOERR).
    Io = 74,
}

/// The end of a command that did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// What is wrong, one line each; mostly one.
    pub(crate) lines: Vec<String>,
    /// What to do, where the lines do not say it.
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, line: impl Into<String>) -> Self {
        Self { exit, lines: vec![line.into()], hint: None }
    }

    pub(crate) fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "error: {line}")?;
        }
        match &self.hint {
            Some(hint) => writeln!(f, "hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// What the system said, in lower case and without the "(os error 13)" that says nothing to most.
pub(crate) fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    letters
        .next()
        .map_or_else(|| "unknown error".to_owned(), |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_well() {
        let failure = Failure::new(Exit::Io, "cannot open x").with_hint("make it");
        assert_eq!(failure.to_string(), "error: cannot open x\nhint: make it\n");
        assert_eq!(words(&io::Error::from_raw_os_error(13)), "permission denied");
        assert_eq!(words(&io::Error::other("")), "unknown error");
    }
}
