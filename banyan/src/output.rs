//! What a command prints for whoever called it.

use std::io::{self, ErrorKind, Write};

use crate::failure::{Exit, Failure, words};

/// Prints to standard output. A reader that went away (`banyan genconfig | head -1`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Io, format!("cannot write to standard output: {}", words(&error))))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Prints to standard error, where nothing can be done if that fails.
pub(crate) fn print_error(text: &str) {
    let mut out = io::stderr().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}
