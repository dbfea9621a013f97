//! Counters of accounts, their handles made once.

use banyan_proto::codes::Code;
use banyan_proto::v1;
use metrics::{Counter, counter};

use super::Refusal;

/// How a login ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LoginOutcome {
    Ok,
    Bad,
    Disabled,
    Throttled,
    Overloaded,
    Unavailable,
}

pub(super) struct Metrics {
    logins: [Counter; 6],
    /// Ok, taken, bad, throttled, overloaded, other.
    signups: [Counter; 6],
    /// Ok, bad, expired, disabled, unavailable.
    auths: [Counter; 6],
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    pub(super) fn new() -> Self {
        Self {
            logins: ["ok", "bad", "disabled", "throttled", "overloaded", "unavailable"]
                .map(|outcome| counter!("banyan_gateway_logins_total", "outcome" => outcome)),
            signups: ["ok", "taken", "bad", "throttled", "overloaded", "other"]
                .map(|outcome| counter!("banyan_gateway_signups_total", "outcome" => outcome)),
            auths: ["ok", "bad", "expired", "disabled", "unavailable", "not_yet"]
                .map(|outcome| counter!("banyan_gateway_auths_total", "outcome" => outcome)),
        }
    }

    pub(super) fn login(&self, outcome: LoginOutcome) {
        self.logins[outcome as usize].increment(1);
    }

    pub(super) fn signup(&self, error: Option<&v1::Error>) {
        let place = match error.map(|error| Code::try_from(error.code)) {
            None => 0,
            Some(Ok(Code::AlreadyExists)) => 1,
            Some(Ok(Code::BadRequest)) => 2,
            Some(Ok(Code::TooManyRequests)) => 3,
            Some(Ok(Code::Overloaded)) => 4,
            Some(Ok(_) | Err(_)) => 5,
        };
        self.signups[place].increment(1);
    }

    pub(super) fn auth(&self, refusal: Option<Refusal>) {
        let place = match refusal {
            None => 0,
            Some(Refusal::Unauthenticated) => 1,
            Some(Refusal::Expired) => 2,
            Some(Refusal::Disabled) => 3,
            Some(Refusal::Unavailable) => 4,
            Some(Refusal::NotYet) => 5,
        };
        self.auths[place].increment(1);
    }
}
