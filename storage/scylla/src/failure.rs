//! What an error of the driver means for what was asked.
//!
//! Always holds: a write is called not done only where no server can have begun to carry it out.

use banyan_storage::{Error, NotDone, Outcome};
use scylla::errors::{DbError, ExecutionError, RequestAttemptError};

/// Whether a write that failed can be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    /// It was not sent, or refused before anything was done with it.
    NotBegun,
    Unknown,
}

/// Of a write that is a single attempt on a single partition.
pub(crate) fn of_write(error: &ExecutionError) -> Failed {
    match error {
        // Nobody to send it to; values that do not fit a statement.
        ExecutionError::EmptyPlan | ExecutionError::ConnectionPoolError(_) | ExecutionError::BadQuery(_) => {
            Failed::NotBegun
        }
        ExecutionError::LastAttemptError(attempt) => of_attempt(attempt),
        // A timeout first of all.
        _ => Failed::Unknown,
    }
}

fn of_attempt(error: &RequestAttemptError) -> Failed {
    match error {
        RequestAttemptError::SerializationError(_)
        | RequestAttemptError::CqlRequestSerialization(_)
        | RequestAttemptError::UnableToAllocStreamId => Failed::NotBegun,
        // The coordinator counts living replicas before it sends to any, and parses, checks and authorises before that. `Overloaded` is
        // not among these: a coordinator can find out half-way that too many hints wait.
        RequestAttemptError::DbError(
            DbError::Unavailable { .. }
            | DbError::IsBootstrapping
            | DbError::SyntaxError
            | DbError::Invalid
            | DbError::Unauthorized
            | DbError::ConfigError,
            _,
        ) => Failed::NotBegun,
        _ => Failed::Unknown,
    }
}

/// A person must look: it will not get better by waiting.
fn is_hopeless(error: &ExecutionError) -> bool {
    match error {
        ExecutionError::BadQuery(_) => true,
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, _)) => matches!(
            error,
            DbError::SyntaxError | DbError::Invalid | DbError::Unauthorized | DbError::ConfigError
        ),
        _ => false,
    }
}

fn report(what: &'static str, error: &ExecutionError) {
    if is_hopeless(error) {
        tracing::error!(what, %error, "a CQL server refuses");
    } else {
        tracing::debug!(what, %error, "a CQL request failed");
    }
}

/// Of a write to a room that was tried once.
pub(crate) fn outcome(result: Result<(), ExecutionError>, what: &'static str) -> Outcome {
    let Err(error) = result else { return Outcome::Done };
    report(what, &error);
    match of_write(&error) {
        Failed::NotBegun => Outcome::NotDone(NotDone::Unavailable),
        Failed::Unknown => Outcome::Unknown,
    }
}

/// Of a part of a write to a room that the driver may have tried more than once.
pub(crate) fn repeated_outcome(result: Result<(), ExecutionError>, what: &'static str) -> Outcome {
    let Err(error) = result else { return Outcome::Done };
    report(what, &error);
    Outcome::Unknown
}

/// Of a write that the driver may have tried more than once: the last try's error says nothing about those before it.
pub(crate) fn repeated_write_error(error: &ExecutionError, what: &'static str) -> Error {
    report(what, error);
    match error {
        ExecutionError::BadQuery(_) => Error::Unavailable(error.to_string()), // it never left this process
        _ => Error::Unknown,
    }
}

/// Of a read: whatever happened, nothing was written.
pub(crate) fn read_error(error: &ExecutionError, what: &'static str) -> Error {
    report(what, error);
    match error {
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(DbError::Overloaded, _)) => {
            Error::Overloaded
        }
        _ => Error::Unavailable(error.to_string()),
    }
}

/// Whether asking again later can help.
pub(crate) fn is_passing(error: &ExecutionError) -> bool {
    !is_hopeless(error)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use scylla::errors::WriteType;
    use scylla::statement::Consistency;

    use super::*;

    fn db(error: DbError) -> ExecutionError {
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, String::new()))
    }

    fn unavailable() -> ExecutionError {
        db(DbError::Unavailable { consistency: Consistency::LocalQuorum, required: 2, alive: 1 })
    }

    fn timeout() -> ExecutionError {
        db(DbError::WriteTimeout {
            consistency: Consistency::LocalQuorum,
            received: 1,
            required: 2,
            write_type: WriteType::UnloggedBatch,
        })
    }

    #[test]
    fn only_what_cannot_have_begun_is_definite() {
        for error in
            [ExecutionError::EmptyPlan, unavailable(), db(DbError::Invalid), db(DbError::IsBootstrapping)]
        {
            assert_eq!(of_write(&error), Failed::NotBegun, "{error}");
        }
        let failure = DbError::WriteFailure {
            consistency: Consistency::LocalQuorum,
            received: 1,
            required: 2,
            numfailures: 1,
            write_type: WriteType::Simple,
        };
        for error in [
            ExecutionError::RequestTimeout(Duration::from_secs(1)),
            timeout(),
            db(failure),
            db(DbError::Overloaded),
            db(DbError::ServerError),
            db(DbError::Other(7)),
        ] {
            assert_eq!(of_write(&error), Failed::Unknown, "{error}");
        }
    }

    #[test]
    fn what_may_have_been_tried_before_is_unknown() {
        assert_eq!(outcome(Ok(()), "test"), Outcome::Done);
        assert_eq!(outcome(Err(unavailable()), "test"), Outcome::NotDone(NotDone::Unavailable));
        assert_eq!(outcome(Err(timeout()), "test"), Outcome::Unknown);
        assert_eq!(repeated_outcome(Ok(()), "test"), Outcome::Done);
        assert_eq!(repeated_outcome(Err(unavailable()), "test"), Outcome::Unknown);
        assert_eq!(repeated_write_error(&unavailable(), "test"), Error::Unknown);
        assert_eq!(repeated_write_error(&db(DbError::Unauthorized), "test"), Error::Unknown);
    }
}
