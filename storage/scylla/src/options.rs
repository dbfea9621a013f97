//! How the servers are found and how long anything may take.

use std::time::Duration;

use crate::tls::Tls;

/// Where and how. The defaults suit a cluster in one data centre; each says where its number comes from.
#[derive(Clone)]
pub struct Options {
    /// `host:port` of some nodes; the others are found by asking these.
    pub nodes: Vec<String>,
    /// Letters, digits and `_`, small ones only, at most 48.
    pub keyspace: String,
    /// Every quorum is one of its nodes. None: the only one that there is.
    pub data_centre: Option<String>,
    /// Name and password.
    pub login: Option<(String, String)>,
    /// None: nothing is encrypted.
    pub tls: Option<Tls>,
    /// How long to wait at start for servers that do not answer. None: for ever.
    pub start_deadline: Option<Duration>,
    /// Of an append, a record, and each statement of another write. After it the outcome is unknown, and the owner writes the same
    /// again, to another node as a rule; so it is short against the two seconds that a server gives its replicas.
    pub write_timeout: Duration,
    /// Of one read, hedge included.
    pub read_timeout: Duration,
    /// Of a question whether somebody is fenced, hedges included. Nothing is said in the meantime, and a node that gets no answer for two
    /// seconds leaves: so there are some tries until then.
    pub fence_read_timeout: Duration,
    /// A fence is asked for again, of another node, when there is no answer for so long, and for some times as long as it takes of late.
    /// Some times a usual quorum read.
    pub fence_hedge_after: Duration,
    /// The same for other reads and for writes that may be made twice (never for appends and records).
    pub hedge_after: Duration,
    /// Statements of writes that are with the servers at once; further ones wait. More would wait there, and run into their timeouts.
    pub writes_in_flight: usize,
    /// Statements of reads that are with the servers at once; further ones wait.
    pub reads_in_flight: usize,
    /// Writes to rooms that are accepted and not yet answered: beyond it, [`banyan_storage::NotDone::Overloaded`].
    pub writes_max: usize,
    /// The same, in bytes.
    pub write_bytes_max: usize,
    /// Reads that wait for their turn: beyond it, [`banyan_storage::Error::Overloaded`].
    pub reads_waiting_max: usize,
    /// Members whose marks wait for their second: beyond it marks are dropped and counted.
    pub marks_max: usize,
    /// A connection on which nothing came back for so long, keep-alives included, is given up: a frozen node costs no more than that.
    pub silence_max: Duration,
}

/// What [`is_keyspace`] takes, in words.
pub const KEYSPACE: &str = "a small letter, then small letters, digits and _, at most 48 in all";

/// Whether this names a keyspace without quotes.
pub fn is_keyspace(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    first && name.len() <= 48 && name.bytes().all(plain)
}

impl Options {
    pub fn new(nodes: Vec<String>, keyspace: impl Into<String>) -> Self {
        Self {
            nodes,
            keyspace: keyspace.into(),
            data_centre: None,
            login: None,
            tls: None,
            start_deadline: None,
            write_timeout: Duration::from_secs(1),
            read_timeout: Duration::from_secs(2),
            fence_read_timeout: Duration::from_millis(500),
            fence_hedge_after: Duration::from_millis(15),
            hedge_after: Duration::from_millis(100),
            writes_in_flight: 256,
            reads_in_flight: 256,
            writes_max: 65_536,
            write_bytes_max: 64 << 20,
            reads_waiting_max: 16_384,
            marks_max: 65_536,
            silence_max: Duration::from_secs(3),
        }
    }

    /// Why it cannot be used, if so.
    pub(crate) fn refusal(&self) -> Option<String> {
        if self.nodes.is_empty() {
            return Some("no CQL node is named".to_owned());
        }
        let name = &self.keyspace;
        (!is_keyspace(name)).then(|| format!("{name:?} is no keyspace: {KEYSPACE}"))
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the password.
        f.debug_struct("Options")
            .field("nodes", &self.nodes)
            .field("keyspace", &self.keyspace)
            .field("data_centre", &self.data_centre)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyspaces_that_need_no_quotes() {
        let refused = |keyspace: &str| Options::new(vec!["h:1".to_owned()], keyspace).refusal().is_some();
        for name in ["banyan", "b_2", "a"] {
            assert!(!refused(name), "{name}");
        }
        let long = "a".repeat(49);
        for name in ["", "2b", "_b", "Banyan", "a-b", "a;b", "ä", &long] {
            assert!(refused(name), "{name}");
        }
        assert!(Options::new(Vec::new(), "banyan").refusal().is_some());
        let login = Some(("me".to_owned(), "secret".to_owned()));
        assert!(!format!("{:?}", Options { login, ..Options::new(Vec::new(), "b") }).contains("secret"));
    }
}
