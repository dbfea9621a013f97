//! Why a link ended or did not come about, as the one who dialled sees it; and the words for a peer that is sent away.

use std::io;

use tonic::{Code, Status};

/// The metadata key that carries the kind of a refusal, since gRPC's own codes are too coarse.
const KEY: &str = "banyan-why";

/// Why a link ended or did not come about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Nobody listens there: the peer's machine answered that itself. Never a time-out.
    Refused,
    /// The connection was cut by the peer's machine, without a goodbye.
    Reset,
    /// No answer in time, or no sign of life.
    Timeout,
    /// The network does not lead there, or the name is not known.
    Unreachable(String),
    /// Another node, another run of it, or a process of another cluster.
    WrongPeer(String),
    /// More than one release apart.
    Skew(String),
    /// A certificate does not hold, or is for somebody or something else.
    Certificate(String),
    /// The peer said that it takes no (more) messages by this link.
    Goodbye(String),
    /// What came could not be understood.
    Protocol(String),
    /// By this process.
    Closed,
}

impl Why {
    /// Every [`Self::word`].
    pub(crate) const WORDS: [&str; 10] = [
        "refused",
        "reset",
        "timeout",
        "unreachable",
        "wrong_peer",
        "skew",
        "certificate",
        "goodbye",
        "protocol",
        "closed",
    ];

    /// For metrics: one of a few words.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Unreachable(_) => "unreachable",
            Self::WrongPeer(_) => "wrong_peer",
            Self::Skew(_) => "skew",
            Self::Certificate(_) => "certificate",
            Self::Goodbye(_) => "goodbye",
            Self::Protocol(_) => "protocol",
            Self::Closed => "closed",
        }
    }

    /// The words of what can be said to the other side.
    pub fn words(&self) -> &str {
        match self {
            Self::Refused => "nobody listens there",
            Self::Reset => "the connection was cut",
            Self::Timeout => "no sign of life in time",
            Self::Closed => "closed by this process",
            Self::Unreachable(words)
            | Self::WrongPeer(words)
            | Self::Skew(words)
            | Self::Certificate(words)
            | Self::Goodbye(words)
            | Self::Protocol(words) => words,
        }
    }

    pub(crate) fn of_io(error: &io::Error) -> Self {
        use io::ErrorKind::{
            BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, NotConnected, TimedOut,
            UnexpectedEof,
        };
        if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Self::Certificate(tls.to_string());
        }
        match error.kind() {
            ConnectionRefused => Self::Refused,
            ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof | NotConnected => Self::Reset,
            TimedOut => Self::Timeout,
            _ => Self::Unreachable(error.to_string()),
        }
    }

    /// What a peer that sent us away said. `None`: it said nothing of the kind.
    pub(crate) fn of_status(status: &Status) -> Option<Self> {
        let kind = status.metadata().get(KEY)?.to_str().ok()?;
        // Bounded by the header list's size.
        let words = status.message().to_owned();
        Some(match kind {
            "wrong_peer" => Self::WrongPeer(words),
            "skew" => Self::Skew(words),
            "certificate" => Self::Certificate(words),
            "protocol" => Self::Protocol(format!("the peer does not understand us: {words}")),
            // Kinds of a newer release among them.
            _ => Self::Goodbye(words),
        })
    }

    /// For the peer that is sent away.
    pub(crate) fn status(&self) -> Status {
        let mut status = Status::new(Code::FailedPrecondition, self.words());
        status.metadata_mut().insert(KEY, tonic::metadata::MetadataValue::from_static(self.word()));
        status
    }
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.words())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_is_called_one() {
        use io::ErrorKind;
        for (kind, word) in [
            (ErrorKind::ConnectionRefused, "refused"),
            (ErrorKind::ConnectionReset, "reset"),
            (ErrorKind::UnexpectedEof, "reset"),
            (ErrorKind::TimedOut, "timeout"),
            (ErrorKind::HostUnreachable, "unreachable"),
            (ErrorKind::PermissionDenied, "unreachable"),
        ] {
            assert_eq!(Why::of_io(&kind.into()).word(), word, "{kind:?}");
        }
        let tls = io::Error::new(ErrorKind::InvalidData, rustls::Error::DecryptError);
        assert_eq!(Why::of_io(&tls).word(), "certificate");
    }

    #[test]
    fn what_a_peer_is_sent_away_with_arrives() {
        for why in [
            Why::WrongPeer("a".into()),
            Why::Skew("b".into()),
            Why::Certificate("c".into()),
            Why::Goodbye("d".into()),
        ] {
            assert_eq!(Why::of_status(&why.status()), Some(why));
        }
        assert_eq!(Why::of_status(&Status::unavailable("x")), None);
    }
}
