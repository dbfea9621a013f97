//! The admin page on the ops port: the ring drawn, its nodes, where a room lives.
//!
//! Owns: who may look, and the answers under `/admin`. Always holds: without a token that was set there is no page; what it
//! shows is read with that token only, which stands in a header and never in an address or in the log. Nothing is asked of
//! etcd for it: it shows what this node's own watch knows.
//! Does not: change anything.

mod attempts;
mod load;
mod picture;
mod query;
mod source;
mod token;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, RETRY_AFTER,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Bytes;
use serde_json::json;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::page;
use attempts::Attempts;
use load::Gauge;
use picture::Picture;

pub(crate) use source::Source;
pub(crate) use token::Token;

/// Longest query that is read: a room's id has at most 128 bytes, each of which may be written as three.
const QUERY_BYTES_MAX: usize = 512;
/// The chat page's own, but that nothing is ever sent as a form.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
);
const OFF: &str = "the admin page is off: it needs a token. Set server.admin_token_file to a file that holds one \
                   (`openssl rand -hex 32` makes it), or the variable BANYAN_SERVER__ADMIN_TOKEN, and start the node again\n";

/// The page of one node. Clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Admin(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// None: there is no page.
    token: Option<Token>,
    began: Instant,
    attempts: Mutex<Attempts>,
    /// Set once the node is up.
    source: OnceLock<Source>,
    seen: Mutex<Seen>,
    metrics: Metrics,
}

/// What was made for the last who asked, for the next one.
#[derive(Debug)]
struct Seen {
    picture: Picture,
    gauge: Gauge,
}

/// What `/admin/…` can be asked for with the token.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Question {
    Ring { since: Option<String> },
    Where { room: String },
}

impl Admin {
    pub(crate) fn new(token: Option<Token>, metrics: Metrics) -> Self {
        // Versions of one run mean nothing to the next.
        let run = uuid::Uuid::new_v4().simple().to_string();
        Self(Arc::new(Shared {
            token,
            began: Instant::now(),
            attempts: Mutex::default(),
            source: OnceLock::new(),
            seen: Mutex::new(Seen { picture: Picture::new(&run[..8]), gauge: Gauge::default() }),
            metrics,
        }))
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.token.is_some()
    }

    /// The node is up: from now on there is something to show.
    pub(crate) fn show(&self, source: Source) {
        // A node comes up once.
        self.0.source.set(source).ok();
    }

    /// Whether a path is the admin page's.
    pub(crate) fn has(path: &str) -> bool {
        path == "/admin" || path.starts_with("/admin/")
    }

    /// Answers a GET of such a path.
    pub(crate) async fn answer(&self, uri: &Uri, headers: &HeaderMap, from: IpAddr) -> Response<Full<Bytes>> {
        let Some(token) = &self.0.token else { return plain(StatusCode::FORBIDDEN, OFF) };
        let path = uri.path();
        if let Some((_, content_type, bytes)) = page::ADMIN_FILES.iter().find(|(file, _, _)| *file == path) {
            return answer(StatusCode::OK, content_type, Bytes::from_static(bytes));
        }
        if !matches!(path, "/admin/ring.json" | "/admin/where") {
            return plain(
                StatusCode::NOT_FOUND,
                "there are /admin, /admin/ring.json, /admin/where?room=ID\n",
            );
        }
        if let Some(refused) = self.refusal(token, headers, from) {
            return refused;
        }
        let question = match question(path, uri.query().unwrap_or_default()) {
            Ok(question) => question,
            Err(error) => return wrong(StatusCode::BAD_REQUEST, &error),
        };
        let shared = Arc::clone(&self.0);
        // A ring of 65,536 slots takes milliseconds to draw up, and this thread keeps the node's lease.
        let answered = tokio::task::spawn_blocking(move || shared.about(&question)).await;
        answered.unwrap_or_else(|error| {
            tracing::error!(%error, "the admin page's question was not answered");
            wrong(StatusCode::INTERNAL_SERVER_ERROR, "this question was not answered; the log says why")
        })
    }

    /// What is answered to who may not look.
    fn refusal(&self, token: &Token, headers: &HeaderMap, from: IpAddr) -> Option<Response<Full<Bytes>>> {
        let now_ms = u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut attempts = self.0.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(wait_ms) = attempts.may_try(now_ms, from) {
            let seconds = wait_ms.div_ceil(1_000).max(1);
            let words = format!("too many wrong tokens from this address: try again in {seconds} s");
            let mut refused = wrong(StatusCode::TOO_MANY_REQUESTS, &words);
            refused.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
            return Some(refused);
        }
        let offered = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let offered = offered.and_then(|value| value.strip_prefix(b"Bearer "));
        let words = match offered {
            Some(offered) if token.is(offered) => return None,
            Some(offered) => {
                let new = attempts.was_wrong(now_ms, from, offered);
                drop(attempts);
                // Of one that comes again and again, one line.
                if new {
                    tracing::warn!(%from, "a wrong token for the admin page");
                }
                "this is not the token of this node's admin page (server.admin_token)"
            }
            // Whoever brings none has guessed nothing.
            None => "this needs the header `Authorization: Bearer TOKEN` with the node's server.admin_token",
        };
        let mut refused = wrong(StatusCode::UNAUTHORIZED, words);
        refused.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        Some(refused)
    }
}

impl Shared {
    fn about(&self, question: &Question) -> Response<Full<Bytes>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Seen { picture, gauge } = &mut *seen;
        let now = self.source.get().is_some_and(|source| source.look(picture));
        if !now {
            let words = "the node starts: it waits for etcd or for the store, as its log says";
            return wrong(StatusCode::SERVICE_UNAVAILABLE, words);
        }
        match question {
            Question::Ring { since } => {
                let load = gauge.look(self.began.elapsed(), || self.metrics.render());
                json_of(&picture.told(since.as_deref(), load))
            }
            Question::Where { room } => match picture.find(room) {
                Ok(found) => json_of(&found),
                Err(error) => wrong(StatusCode::BAD_REQUEST, &error),
            },
        }
    }
}

fn question(path: &str, text: &str) -> Result<Question, String> {
    if text.len() > QUERY_BYTES_MAX {
        return Err(format!("the query has {} bytes: at most {QUERY_BYTES_MAX} are read", text.len()));
    }
    let is_ring = path == "/admin/ring.json";
    let allowed = if is_ring { "since" } else { "room" };
    let mut given = None;
    for (name, value) in query::pairs(text)? {
        if name != allowed || given.is_some() {
            return Err(format!("{path} takes {allowed}=…, once, and nothing else"));
        }
        given = Some(value);
    }
    match given {
        given if is_ring => Ok(Question::Ring { since: given }),
        Some(room) if !room.is_empty() => Ok(Question::Where { room }),
        _ => Err("which room? /admin/where?room=ID, or room=~USER for a user's channel".to_owned()),
    }
}

fn json_of<T: serde::Serialize>(value: &T) -> Response<Full<Bytes>> {
    // Plain structs with text keys: writing them cannot fail.
    let body = serde_json::to_vec(value).unwrap_or_default();
    answer(StatusCode::OK, "application/json", Bytes::from(body))
}

fn wrong(status: StatusCode, words: &str) -> Response<Full<Bytes>> {
    answer(status, "application/json", Bytes::from(format!("{}\n", json!({ "error": words }))))
}

fn plain(status: StatusCode, words: &'static str) -> Response<Full<Bytes>> {
    answer(status, "text/plain; charset=utf-8", Bytes::from_static(words.as_bytes()))
}

fn answer(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    response
}

#[cfg(test)]
mod tests;
