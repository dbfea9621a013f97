//! What handlers take from a request; whatever is wrong with it becomes a problem that says what.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use banyan_gateway_core::forwarded::client_addr;
use banyan_proto::codes::Code;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{BODY_MAX, Peer, Problem, State};
use crate::accounts::Identity;

/// The token of the request, unchecked.
pub(super) struct Bearer(pub(super) String);

impl FromRequestParts<Arc<State>> for Bearer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<State>) -> Result<Self, Problem> {
        let unauthenticated = |words| Problem::new(Code::Unauthenticated, words);
        let mut values = parts.headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Err(unauthenticated("send one header `Authorization: Bearer TOKEN`"));
        };
        let token = value.to_str().ok().and_then(|value| value.split_once(' '));
        match token {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                Ok(Self(token.trim().to_owned()))
            }
            Some(_) | None => Err(unauthenticated("`Authorization` must be `Bearer TOKEN`")),
        }
    }
}

/// Who asks.
pub(super) struct Caller(pub(super) Identity);

impl FromRequestParts<Arc<State>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Result<Self, Problem> {
        let Bearer(token) = Bearer::from_request_parts(parts, state).await?;
        let identity = state.accounts.authenticate(&token).await;
        identity.map(Self).map_err(|refusal| refusal.error().into())
    }
}

/// The client's true address.
pub(super) struct ClientIp(pub(super) IpAddr);

impl FromRequestParts<Arc<State>> for ClientIp {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Result<Self, Problem> {
        let Some(Peer(peer)) = parts.extensions.get().copied() else {
            return Err(Problem::new(Code::Internal, "a request from nowhere"));
        };
        let forwarded: Vec<_> =
            parts.headers.get_all("x-forwarded-for").iter().map(|v| v.as_bytes()).collect();
        Ok(Self(client_addr(peer, &forwarded, &state.trusted_proxies)))
    }
}

/// The parts of the path, percent-decoded.
pub(super) struct At<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<State>> for At<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Result<Self, Problem> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        let path = path.map_err(|rejection| bad(format!("path: {}", rejection.body_text())))?;
        Ok(Self(path.0))
    }
}

/// The query.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Arc<State>> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Result<Self, Problem> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        let query = query.map_err(|rejection| bad(format!("query: {}", rejection.body_text())))?;
        Ok(Self(query.0))
    }
}

/// A JSON body.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<State>> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &Arc<State>) -> Result<Self, Problem> {
        let is_json = says_json(request.headers());
        let body = read(request).await?;
        if body.is_empty() {
            return Err(bad("the body is empty: send one JSON object"));
        }
        is_json?;
        parse(&body).map(Self)
    }
}

/// A JSON body that may be left out.
pub(super) struct MaybeJson<T>(pub(super) T);

impl<T: DeserializeOwned + Default> FromRequest<Arc<State>> for MaybeJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &Arc<State>) -> Result<Self, Problem> {
        let is_json = says_json(request.headers());
        let body = read(request).await?;
        if body.is_empty() {
            return Ok(Self(T::default()));
        }
        is_json?;
        parse(&body).map(Self)
    }
}

/// A body of nothing that matters.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Nothing {}

fn bad(message: impl Into<String>) -> Problem {
    Problem::new(Code::BadRequest, message)
}

/// A form cannot say so without asking first (CORS), so no other site's page can log anybody in by one.
fn says_json(headers: &HeaderMap) -> Result<(), Problem> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Problem::with_status(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Code::BadRequest,
        "send JSON with `Content-Type: application/json`",
    ))
}

async fn read(request: Request) -> Result<Bytes, Problem> {
    let too_large =
        || Problem::new(Code::MessageTooLarge, format!("the body has more than {BODY_MAX} bytes"));
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if length.and_then(|length| length.parse::<u64>().ok()).is_some_and(|length| length > BODY_MAX as u64) {
        return Err(too_large());
    }
    match Limited::new(request.into_body(), BODY_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(_) => Err(bad("the body did not arrive whole")),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    // A struct is read from an array too, by position; that is not an offer.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(bad("the body is not one JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| bad(format!("body: {error}")))
}
