//! The request head of a new connection: is it our WebSocket upgrade, something for the HTTP runtime, or nothing that we take?
//!
//! Owns: the bounds on a head, the rules of the upgrade (RFC 6455 section 4.2, RFC 9112), the choice of subprotocol,
//! and the few responses that a worker writes itself.
//! Always holds: nothing is allocated per header; a head is judged by the same rules however it was cut into reads.
//! Does not: buffer (the caller parses again from the start when more came: a head is at most 8 KiB and has a deadline),
//! serve HTTP, decide about origins ([`Origins`] does, when the caller asks), or trust `X-Forwarded-For` ([`crate::forwarded`] does).

mod origin;
mod response;
mod upgrade;

pub use origin::{Origins, ParseOriginError};
pub use response::{Refusal, response_101};
pub use upgrade::{Credentials, Subprotocol, Upgrade};

/// Header lines of one head. Above: 431. Browsers send about 20, balancers add a few.
pub const HEADERS_MAX: usize = 64;

/// Paths of the WebSocket endpoint (PROTOCOL.md, "Transport").
pub const UPGRADE_PATHS: [&str; 2] = ["/v1/ws", "/chat"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a head with its empty line. Above: 431.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 8 * 1024 }
    }
}

#[derive(Debug)]
pub enum Parsed<'a> {
    /// The head is incomplete, nothing is wrong yet.
    Partial,
    /// The head is `bytes[..head_len]`. What lies behind it was sent before our answer: of an upgrade, frames that the
    /// caller may hand to the decoder after its 101 (RFC 6455 lets a client wait, it does not forbid the hurry).
    Complete { head_len: usize, request: Request<'a> },
    /// Answer with this and close.
    Bad(Refusal),
}

#[derive(Debug)]
pub enum Request<'a> {
    /// A valid upgrade on one of [`UPGRADE_PATHS`]. Whether its origin and its address are welcome is the caller's word.
    Upgrade(Upgrade<'a>),
    /// Anything else, to be handed with all bytes read to the HTTP runtime, which parses it by its own rules.
    Other { method: &'a str, target: &'a str },
}

/// Judges the beginning of a connection, `bytes` being all that was read of it so far.
pub fn parse<'a>(bytes: &'a [u8], limits: &Limits) -> Parsed<'a> {
    let bounded = &bytes[..bytes.len().min(limits.bytes)];
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let head_len = match request.parse(bounded) {
        Ok(httparse::Status::Complete(head_len)) => head_len,
        Ok(httparse::Status::Partial) if bytes.len() >= limits.bytes => {
            return Parsed::Bad(Refusal::HEAD_TOO_LARGE);
        }
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(httparse::Error::TooManyHeaders) => return Parsed::Bad(Refusal::HEAD_TOO_LARGE),
        Err(httparse::Error::Version) => return Parsed::Bad(Refusal::VERSION_NOT_SUPPORTED),
        Err(_) => return Parsed::Bad(Refusal::bad_request("not an HTTP/1.1 request head")),
    };
    match upgrade::judge(&request) {
        Ok(request) => Parsed::Complete { head_len, request },
        Err(refusal) => Parsed::Bad(refusal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    /// What came out, in a word or two.
    fn verdict(head: &str, limits: Limits) -> String {
        match parse(head.as_bytes(), &limits) {
            Parsed::Partial => "partial".to_owned(),
            Parsed::Complete { head_len, request: Request::Upgrade(upgrade) } => {
                format!("upgrade {:?} +{}", upgrade.subprotocol, head.len() - head_len)
            }
            Parsed::Complete { head_len, request: Request::Other { method, target } } => {
                format!("other {method} {target} +{}", head.len() - head_len)
            }
            Parsed::Bad(refusal) => refusal.status.to_string(),
        }
    }

    fn upgrade_with(change: &[(&str, &str)]) -> String {
        let mut lines = vec![
            ("Host", "chat.example"),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", KEY),
            ("Sec-WebSocket-Version", "13"),
        ];
        for (name, value) in change {
            // "-Name" takes the line away, "+Name" adds one, "Name" sets it.
            let bare = name.trim_start_matches(['-', '+']);
            if !name.starts_with('+') {
                lines.retain(|(line, _)| *line != bare);
            }
            if !name.starts_with('-') {
                lines.push((bare, value));
            }
        }
        let lines: String = lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("GET /v1/ws HTTP/1.1\r\n{lines}\r\n")
    }

    #[track_caller]
    fn check(change: &[(&str, &str)], want: &str) {
        let head = upgrade_with(change);
        assert_eq!(verdict(&head, Limits::default()), want, "{head}");
        for cut in 0..head.len() {
            let early = verdict(&head[..cut], Limits::default());
            assert!(early == "partial" || early == want, "cut at {cut}: {early}");
        }
    }

    #[track_caller]
    fn check_raw(head: &str, want: &str) {
        assert_eq!(verdict(head, Limits::default()), want, "{head}");
    }

    #[test]
    fn an_upgrade() {
        check(&[], "upgrade None +0");
        check(&[("Upgrade", "h2c, WebSocket"), ("Connection", "keep-alive, UPGRADE")], "upgrade None +0");
        check(&[("Connection", "keep-alive"), ("+Connection", "upgrade")], "upgrade None +0");
        check(&[("+Content-Length", "0")], "upgrade None +0");
        check(&[("+Sec-WebSocket-Extensions", "permessage-deflate")], "upgrade None +0");
        check_raw(&upgrade_with(&[]).replace("/v1/ws", "/chat?x=1"), "upgrade None +0");
        check_raw(&upgrade_with(&[]).replace("\r\n", "\n"), "upgrade None +0");
        check_raw(&format!("{}\u{1}early", upgrade_with(&[])), "upgrade None +6");
    }

    #[test]
    fn its_fields() {
        let head = upgrade_with(&[
            ("+Origin", "https://chat.example"),
            ("+X-Forwarded-For", "1.2.3.4, 10.0.0.1"),
            ("+x-forwarded-for", "10.0.0.2"),
            ("+Authorization", "Bearer secret"),
        ])
        .replace("/v1/ws", "/v1/ws?debug=1");
        let parsed = parse(head.as_bytes(), &Limits::default());
        let Parsed::Complete { request: Request::Upgrade(upgrade), .. } = &parsed else {
            panic!("{parsed:?}")
        };
        assert_eq!((upgrade.path, upgrade.query), ("/v1/ws", Some("debug=1")));
        assert_eq!((upgrade.host, upgrade.origin), ("chat.example", Some("https://chat.example")));
        assert_eq!(upgrade.key, KEY);
        assert_eq!(upgrade.forwarded_for[..], [&b"1.2.3.4, 10.0.0.1"[..], b"10.0.0.2"]);
        assert_eq!(upgrade.authorization.map(|credentials| credentials.0), Some("Bearer secret"));
        assert!(!format!("{parsed:?}").contains("secret"), "credentials stay out of logs");
    }

    #[test]
    fn subprotocols() {
        let offer = |value| [("+Sec-WebSocket-Protocol", value)];
        check(&offer("banyan.v1.json"), "upgrade Some(Json) +0");
        check(&offer("banyan.v1.proto"), "upgrade Some(Proto) +0");
        check(&offer("chat, banyan.v1.proto, banyan.v1.json"), "upgrade Some(Proto) +0");
        check(
            &[("+Sec-WebSocket-Protocol", "chat"), ("+Sec-WebSocket-Protocol", "banyan.v1.json")],
            "upgrade Some(Json) +0",
        );
        check(&offer(""), "upgrade None +0");
        check(&offer("chat"), "400");
        check(&offer("BANYAN.V1.JSON"), "400"); // subprotocol names are case-sensitive
        check(&offer("banyan.v2.json, chat"), "400");
    }

    #[test]
    fn upgrades_that_we_refuse() {
        check(&[("-Host", "")], "400");
        check(&[("+Host", "other.example")], "400");
        check(&[("Connection", "close")], "400");
        check(&[("-Connection", "")], "400");
        check(&[("-Sec-WebSocket-Key", "")], "400");
        check(&[("+Sec-WebSocket-Key", KEY)], "400");
        check(&[("Sec-WebSocket-Key", "dG9vIHNob3J0")], "400");
        check(&[("Sec-WebSocket-Key", "!GhlIHNhbXBsZSBub25jZQ==")], "400");
        check(&[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZXh4eHg=")], "400");
        check(&[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZXh4")], "400"); // 18 bytes
        check(&[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZXg=")], "400"); // 17 bytes
        check(&[("Sec-WebSocket-Version", "8")], "426");
        check(&[("-Sec-WebSocket-Version", "")], "426");
        check(&[("+Sec-WebSocket-Version", "8")], "426");
        check(&[("+Content-Length", "1")], "400");
        check(&[("+Content-Length", "x")], "400");
        check(&[("+Transfer-Encoding", "chunked")], "400");
        check(&[("+Origin", "a"), ("+Origin", "b")], "400");
        check(&[("+Authorization", "a"), ("+Authorization", "b")], "400");
        check_raw(&upgrade_with(&[]).replace("HTTP/1.1", "HTTP/1.0"), "400");
        check_raw(&upgrade_with(&[]).replace("GET", "POST"), "405");
    }

    #[test]
    fn everything_else_goes_to_the_http_runtime() {
        check_raw("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "other GET / +0");
        check_raw("GET /v1/ws HTTP/1.1\r\nHost: a\r\n\r\n", "other GET /v1/ws +0");
        check_raw("GET / HTTP/1.0\r\n\r\n", "other GET / +0");
        check_raw(
            "POST /v1/login HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}",
            "other POST /v1/login +2",
        );
        check_raw(&upgrade_with(&[]).replace("/v1/ws", "/v1/wsx"), "other GET /v1/wsx +0");
        check_raw(&upgrade_with(&[("Upgrade", "h2c")]), "other GET /v1/ws +0");
        check_raw("GET /v1/ws HTTP/1.1\r\nHost: a\r\n\r\nGET /v1/ws HTTP/1.1\r\n", "other GET /v1/ws +21");
    }

    #[test]
    fn what_is_not_http() {
        check_raw("\u{16}\u{3}\u{1}", "400"); // a TLS hello on the plain port
        check_raw("GET /v1/ws\r\n", "400");
        check_raw("GET / HTTP/2.0\r\n\r\n", "505");
        check_raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505");
        check_raw("GET / HTTP/1.1\r\nHost : a\r\n\r\n", "400");
        check_raw("GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", "400");
        check_raw("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400");
    }

    #[test]
    fn bounds() {
        let exactly = |len: usize| {
            let shell = upgrade_with(&[("+X-Pad", "")]);
            shell.replace("X-Pad: ", &format!("X-Pad: {}", "p".repeat(len - shell.len())))
        };
        check_raw(&exactly(8192), "upgrade None +0");
        check_raw(&exactly(8193), "431");
        check_raw(&exactly(8193)[..8192], "431");
        check_raw(&exactly(8193)[..8191], "partial");
        check_raw(&"G".repeat(8191), "partial");
        check_raw(&"\r\n".repeat(4096), "431");
        check_raw(&format!("GET /{} HTTP/1.1\r\n", "a".repeat(9000)), "431");
        let many = |n| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(n));
        check_raw(&many(64), "other GET / +0");
        check_raw(&many(65), "431");
        assert_eq!(verdict("GET / HTTP/1.1\r\n\r\n", Limits { bytes: 18 }), "other GET / +0");
        assert_eq!(verdict("GET / HTTP/1.1\r\n\r\n", Limits { bytes: 17 }), "431");
        assert_eq!(verdict("", Limits { bytes: 17 }), "partial");
    }

    mod laws {
        use proptest::prelude::*;

        use super::super::*;

        proptest! {
            #[test]
            fn garbage_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
                parse(&bytes, &Limits::default());
            }

            /// Near misses: an upgrade with a few bytes changed. No panic, and a prefix never says more than the whole.
            #[test]
            fn a_prefix_is_partial_or_says_the_same(
                at in proptest::collection::vec((0_usize..190, any::<u8>()), 0..4),
                cut in 0_usize..190,
            ) {
                let mut head = super::upgrade_with(&[]).into_bytes();
                for (at, byte) in at {
                    let len = head.len();
                    head[at % len] = byte;
                }
                let whole = format!("{:?}", parse(&head, &Limits::default()));
                let early = format!("{:?}", parse(&head[..cut.min(head.len())], &Limits::default()));
                prop_assert!(early == "Partial" || early == whole, "{} then {}", early, whole);
            }
        }
    }
}
