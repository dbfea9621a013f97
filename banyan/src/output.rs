//! What a command prints for whoever called it.

use std::io::{self, BufWriter, ErrorKind, Write};

use crate::failure::{Exit, Failure, words};

/// Prints to standard output. A reader that went away (`banyan genconfig | head -1`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_all([Ok(text)])
}

/// Prints one piece after the other as they are made. The first that fails ends it, after what stands before it.
pub(crate) fn print_all<T: AsRef<str>>(
    pieces: impl IntoIterator<Item = Result<T, Failure>>,
) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut failed = None;
    let write = || {
        for piece in pieces {
            match piece {
                Ok(piece) => out.write_all(piece.as_ref().as_bytes())?,
                Err(failure) => {
                    failed = Some(failure);
                    break;
                }
            }
        }
        out.flush()
    };
    match write() {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Io, format!("cannot write to standard output: {}", words(&error))))
        }
        Ok(()) | Err(_) => failed.map_or(Ok(()), Err),
    }
}

/// Prints to standard error, where nothing can be done if that fails.
pub(crate) fn print_error(text: &str) {
    let mut out = io::stderr().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}
