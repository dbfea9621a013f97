//! The page: files that the binary carries.
//!
//! Always holds: a browser asks each time and gets 304 while nothing has changed, so a new release is seen at once; no
//! script, style, font or picture of anybody else runs in it.

use std::collections::HashMap;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use banyan_proto::codes::Code;
use sha2::{Digest as _, Sha256};

use super::Problem;

/// A file: its path, its content type, its bytes.
pub type File = (&'static str, &'static str, &'static [u8]);

/// `'self'` in connect-src covers `ws:` and `wss:` of the same host since CSP 3 (Chromium 2016, Firefox 2016,
/// Safari 15.4); older browsers do not run the page anyway.
const CONTENT_SECURITY_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
     base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'",
);

/// The files by path.
#[derive(Debug, Default)]
pub struct Page(HashMap<&'static str, Served>);

#[derive(Debug)]
struct Served {
    content_type: HeaderValue,
    etag: HeaderValue,
    bytes: &'static [u8],
}

impl Page {
    pub fn new(files: &[File]) -> Self {
        Self(
            files
                .iter()
                .map(|(path, content_type, bytes)| (*path, Served::new(content_type, bytes)))
                .collect(),
        )
    }

    /// Answers a request that no route of the API took.
    pub(super) fn answer(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response {
        let Some(served) = self.0.get(path) else {
            let words = "there is nothing here; docs/protocol.md lists the routes";
            return Problem::with_status(StatusCode::NOT_FOUND, Code::UnknownCommand, words).into_response();
        };
        if method != Method::GET && method != Method::HEAD {
            return Problem { allow: Some("GET,HEAD"), ..super::middleware::wrong_method() }.into_response();
        }
        let unchanged = headers.get_all(header::IF_NONE_MATCH).iter().any(|value| served.is_named_by(value));
        let mut response = if unchanged {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            let mut response = Response::new(Body::from(served.bytes));
            response.headers_mut().insert(header::CONTENT_TYPE, served.content_type.clone());
            response
        };
        let headers = response.headers_mut();
        headers.insert(header::ETAG, served.etag.clone());
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY);
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
        response
    }
}

impl Served {
    fn new(content_type: &'static str, bytes: &'static [u8]) -> Self {
        let hash = Sha256::digest(bytes);
        let hex: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        // Hex in quotes is a header value.
        let etag = HeaderValue::from_str(&format!("\"{hex}\""));
        let etag = etag.unwrap_or_else(|_| HeaderValue::from_static("\"\""));
        Self { content_type: HeaderValue::from_static(content_type), etag, bytes }
    }

    fn is_named_by(&self, if_none_match: &HeaderValue) -> bool {
        let Ok(list) = if_none_match.to_str() else { return false };
        list.split(',')
            .map(str::trim)
            .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == self.etag.as_bytes())
    }
}
