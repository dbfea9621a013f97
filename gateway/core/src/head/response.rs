//! The responses that a worker writes itself: the 101, and refusals as `application/problem+json` (RFC 9457).

use banyan_proto::codes::Code;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use super::Subprotocol;

/// RFC 6455 section 1.3.
const ACCEPT_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The bytes that complete a handshake. `subprotocol` must have been offered, `None` when none was.
pub fn response_101(key: &str, subprotocol: Option<Subprotocol>) -> Vec<u8> {
    let accept = STANDARD.encode(Sha1::new().chain_update(key).chain_update(ACCEPT_GUID).finalize());
    let mut response = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n"
    );
    if let Some(subprotocol) = subprotocol {
        response.push_str("Sec-WebSocket-Protocol: ");
        response.push_str(subprotocol.name());
        response.push_str("\r\n");
    }
    response.push_str("\r\n");
    response.into_bytes()
}

/// An answer that ends the connection before it became a WebSocket. All of it is our own text, nothing of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    pub code: Code,
    /// For the person who reads it. Plain text without `"` and `\`.
    pub detail: &'static str,
    pub retry_after_ms: Option<u32>,
    header: &'static str,
}

impl Refusal {
    pub const HEAD_TOO_LARGE: Self =
        Self::new(431, Code::LimitExceeded, "request head above 8 KiB or 64 headers");
    pub const VERSION_NOT_SUPPORTED: Self = Self::new(505, Code::BadRequest, "only HTTP/1.1 and HTTP/1.0");
    pub const METHOD_NOT_ALLOWED: Self =
        Self::new(405, Code::BadRequest, "an upgrade is a GET").with_header("Allow: GET\r\n");
    pub const UPGRADE_REQUIRED: Self = Self::new(426, Code::BadRequest, "only WebSocket version 13")
        .with_header("Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n");
    pub const ORIGIN_NOT_ALLOWED: Self =
        Self::new(403, Code::PermissionDenied, "this Origin is not in allowed_origins");
    /// The head did not come in time.
    pub const HEAD_TIMEOUT: Self = Self::new(408, Code::BadRequest, "the request head took too long");

    pub const fn new(status: u16, code: Code, detail: &'static str) -> Self {
        Self { status, code, detail, retry_after_ms: None, header: "" }
    }

    pub const fn bad_request(detail: &'static str) -> Self {
        Self::new(400, Code::BadRequest, detail)
    }

    /// 503: this server takes no more connections now.
    pub const fn overloaded(detail: &'static str, retry_after_ms: u32) -> Self {
        Self { retry_after_ms: Some(retry_after_ms), ..Self::new(503, Code::Overloaded, detail) }
    }

    /// 429: this client has too many connections, or opens them too fast.
    pub const fn too_many_requests(detail: &'static str, retry_after_ms: u32) -> Self {
        Self { retry_after_ms: Some(retry_after_ms), ..Self::new(429, Code::TooManyRequests, detail) }
    }

    const fn with_header(self, header: &'static str) -> Self {
        Self { header, ..self }
    }

    /// The bytes of the whole response. The connection ends behind them.
    pub fn response(&self) -> Vec<u8> {
        let Self { status, code, detail, retry_after_ms, header } = self;
        let (code, name) = (code.number(), code.name());
        let title = title(*status);
        // Retry-After has whole seconds: rounded up, so that nobody comes too early.
        let (retry_field, retry_header) = match retry_after_ms {
            Some(ms) => {
                (format!(",\"retry_after_ms\":{ms}"), format!("Retry-After: {}\r\n", ms.div_ceil(1000)))
            }
            None => (String::new(), String::new()),
        };
        let body = format!(
            "{{\"type\":\"about:blank\",\"title\":\"{title}\",\"status\":{status},\"detail\":\"{detail}\",\"code\":{code},\"name\":\"{name}\"{retry_field}}}"
        );
        format!(
            "HTTP/1.1 {status} {title}\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\nConnection: close\r\n{header}{retry_header}\r\n{body}",
            body.len()
        )
        .into_bytes()
    }
}

const fn title(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key and answer of RFC 6455 section 1.3.
    #[test]
    fn rfc_example_of_the_accept_value() {
        let response = String::from_utf8(response_101("dGhlIHNhbXBsZSBub25jZQ==", None)).unwrap();
        assert_eq!(
            response,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        );
        let response = response_101("dGhlIHNhbXBsZSBub25jZQ==", Some(Subprotocol::Proto));
        assert!(response.ends_with(b"\r\nSec-WebSocket-Protocol: banyan.v1.proto\r\n\r\n"));
    }

    /// Status, headers and body, parsed back.
    #[track_caller]
    fn check(refusal: Refusal, want_header: Option<(&str, &str)>, want_body: &str) {
        let bytes = refusal.response();
        let mut headers = [httparse::EMPTY_HEADER; 8];
        let mut response = httparse::Response::new(&mut headers);
        let head_len = response.parse(&bytes).unwrap().unwrap();
        assert_eq!(response.code, Some(refusal.status));
        assert_ne!(response.reason, Some("Refused"));
        let header = |name: &str| {
            let found = response.headers.iter().find(|header| header.name == name)?;
            Some(str::from_utf8(found.value).unwrap())
        };
        assert_eq!(header("Connection"), Some("close"));
        assert_eq!(header("Content-Type"), Some("application/problem+json"));
        let body = str::from_utf8(&bytes[head_len..]).unwrap();
        assert_eq!(header("Content-Length"), Some(body.len().to_string().as_str()));
        assert_eq!(body, want_body);
        assert_eq!(body.matches(['"', '\\']).count() % 2, 0);
        if let Some((name, value)) = want_header {
            assert_eq!(header(name), Some(value));
        }
    }

    #[test]
    fn refusals() {
        check(
            Refusal::UPGRADE_REQUIRED,
            Some(("Sec-WebSocket-Version", "13")),
            r#"{"type":"about:blank","title":"Upgrade Required","status":426,"detail":"only WebSocket version 13","code":107,"name":"bad_request"}"#,
        );
        check(
            Refusal::METHOD_NOT_ALLOWED,
            Some(("Allow", "GET")),
            r#"{"type":"about:blank","title":"Method Not Allowed","status":405,"detail":"an upgrade is a GET","code":107,"name":"bad_request"}"#,
        );
        check(
            Refusal::overloaded("no room", 1500),
            Some(("Retry-After", "2")),
            r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"no room","code":112,"name":"overloaded","retry_after_ms":1500}"#,
        );
        check(
            Refusal::ORIGIN_NOT_ALLOWED,
            None,
            r#"{"type":"about:blank","title":"Forbidden","status":403,"detail":"this Origin is not in allowed_origins","code":103,"name":"permission_denied"}"#,
        );
    }
}
