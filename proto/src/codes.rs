//! The one table of error and close codes that clients see, with what each tells them to do.
//!
//! Always holds: `proto/codes.json`, which SDKs and the documentation's test read, is what [`json`] prints
//! (`cargo test -p banyan-proto codes` compares them; `BANYAN_UPDATE=1` writes the file anew).

use crate::v1;

/// What a code says about the command that it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: it may have been done or not. Send it again with the same id.
    Unknown,
    /// This try was refused; nothing is said of an earlier try with the same id.
    Refused,
    /// No try of this command was or will be done.
    Definite,
}

impl Verdict {
    const fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Refused => "refused",
            Self::Definite => "definite",
        }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, retry $retry:literal, $verdict:ident, http $http:literal;)+) => {
        /// Codes of `error` replies and of HTTP problems.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])* $variant = $number,)+
        }

        impl Code {
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// True where the same command may succeed later, unchanged.
            pub const fn may_retry(self) -> bool {
                match self { $(Self::$variant => $retry,)+ }
            }

            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$variant => Verdict::$verdict,)+ }
            }

            pub const fn http_status(self) -> u16 {
                match self { $(Self::$variant => $http,)+ }
            }
        }

        impl TryFrom<u32> for Code {
            type Error = u32;
            fn try_from(number: u32) -> Result<Self, u32> {
                match number { $($number => Ok(Self::$variant),)+ other => Err(other) }
            }
        }
    };
}

codes! {
    /// A fault of the server.
    Internal = 100, "internal", retry true, Unknown, http 500;
    /// Before `auth`, or with a token that does not hold.
    Unauthenticated = 101, "unauthenticated", retry false, Refused, http 401;
    /// There is no such room for the caller, whatever the truth.
    UnknownRoom = 102, "unknown_room", retry false, Definite, http 404;
    PermissionDenied = 103, "permission_denied", retry false, Definite, http 403;
    UnknownCommand = 104, "unknown_command", retry false, Definite, http 404;
    AlreadyExists = 105, "already_exists", retry false, Definite, http 409;
    /// Too many commands in flight, members, rooms.
    LimitExceeded = 106, "limit_exceeded", retry false, Refused, http 422;
    BadRequest = 107, "bad_request", retry false, Definite, http 400;
    /// The room's owner or its store cannot be reached now.
    Unavailable = 108, "unavailable", retry true, Unknown, http 503;
    TokenExpired = 109, "token_expired", retry false, Refused, http 401;
    /// Above the rate of sends.
    TooManyRequests = 111, "too_many_requests", retry true, Refused, http 429;
    Overloaded = 112, "overloaded", retry true, Refused, http 503;
    /// The log since the first try is too long to look for a twin.
    RetryTooOld = 113, "retry_too_old", retry false, Unknown, http 410;
    /// The same `client_msg_id` with another body.
    ClientMsgIdReused = 120, "client_msg_id_reused", retry false, Definite, http 409;
    MessageTooLarge = 121, "message_too_large", retry false, Definite, http 413;
    UnknownUser = 122, "unknown_user", retry false, Definite, http 404;
    NotAMember = 123, "not_a_member", retry false, Definite, http 403;
}

impl Code {
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The error of a reply. `message` is for people and says what to do.
    pub fn error(self, message: impl Into<String>) -> v1::Error {
        v1::Error {
            code: self.number(),
            name: self.name().to_owned(),
            message: message.into(),
            retry_after_ms: None,
        }
    }

    pub fn error_retry_after(self, message: impl Into<String>, retry_after_ms: u64) -> v1::Error {
        v1::Error { retry_after_ms: Some(retry_after_ms), ..self.error(message) }
    }
}

macro_rules! closes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, retry $retry:literal;)+) => {
        /// WebSocket close codes that the server sends.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Close {
            $($(#[$doc])* $variant = $number,)+
        }

        impl Close {
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// True where the client should come back by itself, without a change.
            pub const fn may_retry(self) -> bool {
                match self { $(Self::$variant => $retry,)+ }
            }

            pub const fn number(self) -> u16 {
                self as u16
            }
        }
    };
}

closes! {
    Normal = 1000, "normal", retry false;
    /// The client broke RFC 6455.
    ProtocolError = 1002, "protocol_error", retry false;
    /// Binary on a JSON connection or text on a protobuf one.
    WrongKind = 1003, "wrong_kind_of_message", retry false;
    BadUtf8 = 1007, "bad_utf8", retry false;
    TooBig = 1009, "message_too_big", retry false;
    /// The drain deadline passed.
    Stopped = 3000, "stopped", retry true;
    Draining = 3001, "draining", retry true;
    /// Come back with a new token.
    TokenExpired = 3002, "token_expired", retry true;
    ServerError = 3004, "server_error", retry true;
    /// TCP made no progress.
    TooSlow = 3008, "too_slow", retry true;
    NoPong = 3012, "no_pong", retry true;
    TooManyConnections = 3013, "too_many_connections", retry true;
    BadToken = 3500, "bad_token", retry false;
    BadFrame = 3501, "bad_frame", retry false;
    NoAuth = 3502, "no_auth_in_time", retry false;
    /// Disabled, logged out or disconnected by an operator or an application.
    Ended = 3503, "ended_by_the_server", retry false;
}

/// The table for machines: `proto/codes.json`.
pub fn json() -> String {
    let errors: Vec<_> = Code::ALL
        .iter()
        .map(|code| {
            serde_json::json!({
                "code": code.number(),
                "name": code.name(),
                "retry": code.may_retry(),
                "verdict": code.verdict().word(),
                "http": code.http_status(),
            })
        })
        .collect();
    let closes: Vec<_> = Close::ALL
        .iter()
        .map(|close| serde_json::json!({"code": close.number(), "name": close.name(), "retry": close.may_retry()}))
        .collect();
    let table = serde_json::json!({"errors": errors, "close_codes": closes});
    serde_json::to_string_pretty(&table).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_json_is_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/codes.json");
        if std::env::var_os("BANYAN_UPDATE").is_some() {
            std::fs::write(path, json()).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(path).unwrap(),
            json(),
            "BANYAN_UPDATE=1 cargo test -p banyan-proto"
        );
    }

    #[test]
    fn numbers_lead_back_to_codes() {
        for code in Code::ALL {
            assert_eq!(Code::try_from(code.number()), Ok(*code));
        }
        assert_eq!(Code::try_from(110), Err(110));
    }
}
