//! The rules of the upgrade, over the headers that were parsed.

use base64::Engine;
use base64::alphabet;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use smallvec::SmallVec;

use super::{Refusal, Request, UPGRADE_PATHS, response_101};

/// What one connection speaks, once agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subprotocol {
    Json,
    Proto,
}

impl Subprotocol {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Json => "banyan.v1.json",
            Self::Proto => "banyan.v1.proto",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Json, Self::Proto].into_iter().find(|known| known.name() == name)
    }
}

/// An `Authorization` value; it never shows in logs.
#[derive(Clone, Copy)]
pub struct Credentials<'a>(pub &'a str);

impl std::fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// A valid upgrade request.
#[derive(Debug)]
pub struct Upgrade<'a> {
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub host: &'a str,
    pub origin: Option<&'a str>,
    pub key: &'a str,
    /// The first one offered that we know; `None` when the client offered none, which means JSON, unsaid in the 101.
    pub subprotocol: Option<Subprotocol>,
    /// Values of the `X-Forwarded-For` lines, in order; for [`crate::forwarded::client_addr`].
    pub forwarded_for: SmallVec<[&'a [u8]; 2]>,
    pub authorization: Option<Credentials<'a>>,
}

impl Upgrade<'_> {
    /// The bytes that complete the handshake.
    pub fn response(&self) -> Vec<u8> {
        response_101(self.key, self.subprotocol)
    }
}

/// The lines that matter here.
#[derive(Default)]
struct Lines<'a> {
    host: Once<'a>,
    origin: Once<'a>,
    key: Once<'a>,
    version: Once<'a>,
    authorization: Once<'a>,
    content_length: Once<'a>,
    transfer_encoding: bool,
    asks_websocket: bool,
    connection_upgrade: bool,
    subprotocol: Option<Subprotocol>,
    unknown_subprotocol: bool,
    forwarded_for: SmallVec<[&'a [u8]; 2]>,
}

/// A header that may stand once.
#[derive(Default, Clone, Copy)]
enum Once<'a> {
    #[default]
    Absent,
    Value(&'a [u8]),
    Repeated,
}

impl<'a> Once<'a> {
    fn add(&mut self, value: &'a [u8]) {
        *self = if matches!(self, Self::Absent) { Self::Value(value) } else { Self::Repeated };
    }

    fn get(self, refusal: &'static str) -> Result<Option<&'a str>, Refusal> {
        match self {
            Self::Absent => Ok(None),
            Self::Value(value) => str::from_utf8(value).map(Some).map_err(|_| Refusal::bad_request(refusal)),
            Self::Repeated => Err(Refusal::bad_request(refusal)),
        }
    }
}

/// Elements of a comma list (RFC 9110 section 5.6.1): empty ones do not count.
fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

fn has_token(value: &[u8], token: &str) -> bool {
    elements(value).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
}

impl<'a> Lines<'a> {
    fn read(headers: &[httparse::Header<'a>]) -> Self {
        let mut lines = Self::default();
        for header in headers {
            let value = header.value.trim_ascii();
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            if is("host") {
                lines.host.add(value);
            } else if is("upgrade") {
                lines.asks_websocket |= has_token(value, "websocket");
            } else if is("connection") {
                lines.connection_upgrade |= has_token(value, "upgrade");
            } else if is("origin") {
                lines.origin.add(value);
            } else if is("sec-websocket-key") {
                lines.key.add(value);
            } else if is("sec-websocket-version") {
                lines.version.add(value);
            } else if is("sec-websocket-protocol") {
                for name in elements(value) {
                    match str::from_utf8(name).ok().and_then(Subprotocol::from_name) {
                        Some(known) => _ = lines.subprotocol.get_or_insert(known),
                        None => lines.unknown_subprotocol = true,
                    }
                }
            } else if is("x-forwarded-for") {
                lines.forwarded_for.push(value);
            } else if is("authorization") {
                lines.authorization.add(value);
            } else if is("content-length") {
                lines.content_length.add(value);
            } else if is("transfer-encoding") {
                lines.transfer_encoding = true;
            }
        }
        lines
    }
}

/// Sorts a complete head.
pub(super) fn judge<'a>(request: &httparse::Request<'_, 'a>) -> Result<Request<'a>, Refusal> {
    // Both are there when httparse says complete.
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let lines = Lines::read(request.headers);
    // RFC 9112 section 3.2: a proxy before us may have believed the other one. So for every request.
    let host = lines.host.get("more than one Host, or not text")?;

    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    if !(lines.asks_websocket && UPGRADE_PATHS.contains(&path)) {
        return Ok(Request::Other { method, target });
    }
    if method != "GET" {
        return Err(Refusal::METHOD_NOT_ALLOWED);
    }
    if request.version != Some(1) {
        return Err(Refusal::bad_request("an upgrade needs HTTP/1.1"));
    }
    let host = host.ok_or_else(|| Refusal::bad_request("no Host"))?;
    if !lines.connection_upgrade {
        return Err(Refusal::bad_request("Connection does not name upgrade"));
    }
    let has_body = match lines.content_length.get("more than one Content-Length, or not text")? {
        None => false,
        Some(value) => value != "0",
    };
    if has_body || lines.transfer_encoding {
        return Err(Refusal::bad_request("an upgrade has no body"));
    }
    if !matches!(lines.version, Once::Value(b"13")) {
        return Err(Refusal::UPGRADE_REQUIRED);
    }
    let key = lines.key.get("more than one Sec-WebSocket-Key, or not text")?;
    let key = key.filter(|key| is_key(key));
    let key = key.ok_or_else(|| Refusal::bad_request("Sec-WebSocket-Key is not 16 bytes of base64"))?;
    if lines.subprotocol.is_none() && lines.unknown_subprotocol {
        return Err(Refusal::bad_request(
            "none of these subprotocols: offer banyan.v1.json or banyan.v1.proto",
        ));
    }
    Ok(Request::Upgrade(Upgrade {
        path,
        query,
        host,
        origin: lines.origin.get("more than one Origin, or not text")?,
        key,
        subprotocol: lines.subprotocol,
        forwarded_for: lines.forwarded_for,
        authorization: lines.authorization.get("more than one Authorization, or not text")?.map(Credentials),
    }))
}

/// 16 bytes in base64. The four bits that pad the last character may be anything: some clients fill them.
fn is_key(key: &str) -> bool {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
    );
    // The decoder's estimate for 24 characters is 18 bytes; a key of another length is wrong before it is decoded.
    let mut bytes = [0; 18];
    key.len() == 24 && LENIENT.decode_slice(key, &mut bytes) == Ok(16)
}
