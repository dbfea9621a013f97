//! Errors as RFC 9457 problems.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use banyan_proto::codes::Code;
use banyan_proto::v1;
use serde::Serialize;

/// An error on its way to a client.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    pub status: StatusCode,
    pub error: v1::Error,
    /// Methods that would have been taken, of a 405.
    pub allow: Option<&'static str>,
}

impl Problem {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        code.error(message).into()
    }

    /// What HTTP has a better word for than the code's own status.
    pub fn with_status(status: StatusCode, code: Code, message: impl Into<String>) -> Self {
        Self { status, ..Self::new(code, message) }
    }
}

impl From<v1::Error> for Problem {
    fn from(error: v1::Error) -> Self {
        let status = Code::try_from(error.code).map_or(500, Code::http_status);
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, error, allow: None }
    }
}

#[derive(Serialize)]
struct Members<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: u32,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let members = Members {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            detail: &self.error.message,
            code: self.error.code,
            name: &self.error.name,
            retry_after_ms: self.error.retry_after_ms,
        };
        // Texts and numbers: this cannot fail.
        let body = serde_json::to_vec(&members).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(retry_after_ms) = self.error.retry_after_ms {
            headers.insert(header::RETRY_AFTER, retry_after_ms.div_ceil(1_000).into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}
