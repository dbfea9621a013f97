//! Around every request: its deadline, its metrics, CORS, and headers that every answer has.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State as AxumState};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use banyan_proto::codes::Code;
use tokio::time::{Instant, timeout};

use super::{Problem, State};

/// From a request's head to its answer's, the body's arrival included. Above the ten seconds that a send may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) async fn around(
    AxumState(state): AxumState<Arc<State>>,
    request: Request,
    next: Next,
) -> Response {
    let begun = Instant::now();
    let route = route(&request);
    let origin = allowed_origin(&state, request.headers());
    let preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if preflight {
        answer_preflight(origin.is_some())
    } else {
        match timeout(REQUEST_TIMEOUT, next.run(request)).await {
            Ok(response) => response,
            Err(_) => Problem::new(Code::Unavailable, "the request took too long").into_response(),
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Retry-After"));
    }
    let status = response.status().as_u16().to_string();
    let seconds = begun.elapsed().as_secs_f64();
    metrics::counter!("banyan_gateway_http_requests_total", "route" => route.clone(), "status" => status)
        .increment(1);
    metrics::histogram!("banyan_gateway_http_request_seconds", "route" => route).record(seconds);
    response
}

/// The route as a label: as many as there are in the table, and two.
fn route(request: &Request) -> String {
    let Some(path) = request.extensions().get::<MatchedPath>() else {
        return "page".to_owned();
    };
    let method = match *request.method() {
        Method::GET | Method::HEAD => "GET",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    };
    format!("{method} {}", path.as_str())
}

/// The origin to name in the answer, if its pages may read it.
fn allowed_origin(state: &State, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let allowed = origin.to_str().is_ok_and(|text| state.allowed_origins.allow(Some(text), host));
    allowed.then(|| origin.clone())
}

fn answer_preflight(allowed: bool) -> Response {
    if !allowed {
        let words = "pages of this origin may not use this server (allowed_origins)";
        return Problem::new(Code::PermissionDenied, words).into_response();
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    let methods = HeaderValue::from_static("GET, HEAD, POST, PATCH, PUT, DELETE");
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    let allowed = HeaderValue::from_static("authorization, content-type");
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

/// 405; the router names the methods that it would have taken.
pub(super) fn wrong_method() -> Problem {
    let words = "this path does not take this method; the header `Allow` names those that it takes";
    Problem::with_status(StatusCode::METHOD_NOT_ALLOWED, Code::UnknownCommand, words)
}
