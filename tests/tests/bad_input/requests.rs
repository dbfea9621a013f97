//! PROTOCOL.md's "HTTP": every route, malformed in every way that its status codes name.

use crate::bench::{Bench, Want};
use crate::wire::{Wire, exchange, http};
use Want::Http;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Routes that need a token: method, path, a body that is good as far as it goes.
const ROUTES: &[(&str, &str, Option<&str>)] = &[
    ("POST", "/v1/logout", Some("{}")),
    ("POST", "/v1/token", None),
    ("POST", "/v1/rooms", Some(r#"{"kind":"group"}"#)),
    ("GET", "/v1/rooms", None),
    ("PATCH", "/v1/rooms/private", Some(r#"{"name":"x"}"#)),
    ("POST", "/v1/rooms/private/join", None),
    ("POST", "/v1/rooms/private/leave", None),
    ("GET", "/v1/rooms/private/members", None),
    ("POST", "/v1/rooms/private/members", Some(r#"{"users":["u3"]}"#)),
    ("DELETE", "/v1/rooms/private/members/u2", None),
    ("PUT", "/v1/rooms/private/members/u2/role", Some(r#"{"role":"member"}"#)),
    ("GET", "/v1/rooms/private/messages", None),
    ("POST", "/v1/messages", Some(r#"{"room":"private","client_msg_id":"a","text":"x"}"#)),
];

/// Name, method, path, body, status, code.
type Request = (&'static str, &'static str, &'static str, Option<&'static str>, u16, u16);

/// What `u1` asks, and what it gets.
const REQUESTS: &[Request] = &[
    // 400: not what the route takes.
    ("no JSON", "POST", "/v1/signup", Some("x"), 400, 107),
    ("an array", "POST", "/v1/signup", Some("[]"), 400, 107),
    ("no body", "POST", "/v1/signup", Some(""), 400, 107),
    ("a missing field", "POST", "/v1/signup", Some(r#"{"username":"somebody"}"#), 400, 107),
    ("a wrong type", "POST", "/v1/signup", Some(r#"{"username":7,"password":"x"}"#), 400, 107),
    ("a short name", "POST", "/v1/signup", Some(r#"{"username":"ab","password":"long enough 1"}"#), 400, 107),
    (
        "a reserved name",
        "POST",
        "/v1/signup",
        Some(r#"{"username":"admin","password":"long enough 1"}"#),
        400,
        107,
    ),
    (
        "a short password",
        "POST",
        "/v1/signup",
        Some(r#"{"username":"somebody","password":"short"}"#),
        400,
        107,
    ),
    (
        "the name as password",
        "POST",
        "/v1/signup",
        Some(r#"{"username":"somebody","password":"somebody"}"#),
        400,
        107,
    ),
    ("a wrong type", "POST", "/v1/login", Some(r#"{"username":"somebody","password":[]}"#), 400, 107),
    ("a wrong type", "POST", "/v1/logout", Some(r#"{"all":"yes"}"#), 400, 107),
    ("no JSON", "POST", "/v1/token", Some("x"), 400, 107),
    ("no kind", "POST", "/v1/rooms", Some("{}"), 400, 107),
    ("limit 0", "GET", "/v1/rooms?limit=0", None, 400, 107),
    ("limit x", "GET", "/v1/rooms?limit=x", None, 400, 107),
    ("nothing to change", "PATCH", "/v1/rooms/lobby", Some("{}"), 400, 107),
    ("a wrong type", "PATCH", "/v1/rooms/lobby", Some(r#"{"public":"yes"}"#), 400, 107),
    ("a room that is none", "POST", "/v1/rooms/a%20b/join", None, 400, 107),
    ("a path that is not UTF-8", "POST", "/v1/rooms/%ff/join", None, 400, 107),
    ("a room that is none", "POST", "/v1/rooms/~u/leave", None, 400, 107),
    ("limit 101", "GET", "/v1/rooms/lobby/members?limit=101", None, 400, 107),
    ("nobody", "POST", "/v1/rooms/lobby/members", Some(r#"{"users":[]}"#), 400, 107),
    ("a user of ours", "DELETE", "/v1/rooms/lobby/members/~system", None, 400, 107),
    ("a role that is none", "PUT", "/v1/rooms/lobby/members/u2/role", Some(r#"{"role":"boss"}"#), 400, 107),
    ("role none", "PUT", "/v1/rooms/lobby/members/u2/role", Some(r#"{"role":"none"}"#), 400, 107),
    ("both bounds", "GET", "/v1/rooms/lobby/messages?before=3&after=1", None, 400, 107),
    ("a bound twice", "GET", "/v1/rooms/lobby/messages?after=1&after=2", None, 400, 107),
    ("a negative bound", "GET", "/v1/rooms/lobby/messages?after=-1", None, 400, 107),
    ("nothing to send", "POST", "/v1/messages", Some(r#"{"room":"lobby","client_msg_id":"h"}"#), 400, 107),
    // 401: not with this name and password.
    ("a wrong password", "POST", "/v1/login", Some(r#"{"username":"nobody","password":"wrong"}"#), 401, 101),
    // 403: not by u1.
    ("a public room before joining", "GET", "/v1/rooms/public/messages", None, 403, 123),
    ("a role of one's own", "PUT", "/v1/rooms/lobby/members/u1/role", Some(r#"{"role":"admin"}"#), 403, 103),
    ("the owner's leave", "POST", "/v1/rooms/lobby/leave", None, 403, 103),
    // 404: not there, or not for u1.
    ("a path that is none", "GET", "/v1/nothing", None, 404, 104),
    ("the API of servers", "POST", "/api/send", Some("{}"), 404, 104),
    ("who is not there", "POST", "/v1/rooms/lobby/members", Some(r#"{"users":["nobody"]}"#), 404, 122),
    ("who is no member", "DELETE", "/v1/rooms/lobby/members/u3", None, 404, 122),
    // 405: another method.
    ("by GET", "GET", "/v1/signup", None, 405, 104),
    ("by GET", "GET", "/v1/login", None, 405, 104),
    ("by GET", "GET", "/v1/logout", None, 405, 104),
    ("by GET", "GET", "/v1/token", None, 405, 104),
    ("by PUT", "PUT", "/v1/rooms", Some("{}"), 405, 104),
    ("by GET", "GET", "/v1/rooms/lobby", None, 405, 104),
    ("by GET", "GET", "/v1/rooms/lobby/join", None, 405, 104),
    ("by GET", "GET", "/v1/rooms/lobby/leave", None, 405, 104),
    ("by PUT", "PUT", "/v1/rooms/lobby/members", Some("{}"), 405, 104),
    ("by POST", "POST", "/v1/rooms/lobby/members/u2", Some("{}"), 405, 104),
    ("by POST", "POST", "/v1/rooms/lobby/members/u2/role", Some("{}"), 405, 104),
    ("by POST", "POST", "/v1/rooms/lobby/messages", Some("{}"), 405, 104),
    ("by GET", "GET", "/v1/messages", None, 405, 104),
    ("by DELETE", "DELETE", "/", None, 405, 104),
    // 409: there is another.
    ("an id that others have", "POST", "/v1/rooms", Some(r#"{"kind":"group","room":"private"}"#), 409, 105),
    (
        "an id with another body",
        "POST",
        "/v1/messages",
        Some(r#"{"room":"lobby","client_msg_id":"m1","text":"y"}"#),
        409,
        120,
    ),
    // 413: too large. (A body above 64 KiB has a row of its own.)
    (
        "a long text",
        "POST",
        "/v1/messages",
        Some(r#"{"room":"lobby","client_msg_id":"h","text":"T8193"}"#),
        413,
        121,
    ),
    // 422: one too many.
    ("too many members", "POST", "/v1/rooms", Some(r#"{"kind":"group","members":[USERS20]}"#), 422, 106),
    ("too many members", "POST", "/v1/rooms/lobby/members", Some(r#"{"users":[USERS20]}"#), 422, 106),
    // 426: a WebSocket is asked for in another way.
    ("by plain GET", "GET", "/v1/ws", None, 426, 107),
    // What is good.
    (
        "a retry",
        "POST",
        "/v1/messages",
        Some(r#"{"room":"lobby","client_msg_id":"m1","text":"hello"}"#),
        200,
        0,
    ),
    (
        "a message",
        "POST",
        "/v1/messages",
        Some(r#"{"room":"lobby","client_msg_id":"h1","text":"hello"}"#),
        201,
        0,
    ),
    ("a room", "POST", "/v1/rooms", Some(r#"{"kind":"group","room":"by-http"}"#), 201, 0),
    ("a room again", "POST", "/v1/rooms", Some(r#"{"kind":"group","room":"by-http"}"#), 200, 0),
];

pub(crate) async fn rows(bench: &mut Bench, expired: &str) {
    let address = bench.address;
    let token = bench.token(1).to_owned();
    let users: Vec<_> = (1..=20).map(|number| format!("\"u{number}\"")).collect();
    for (name, method, path, body, status, code) in REQUESTS {
        let body =
            body.map(|body| body.replace("T8193", &"t".repeat(8193)).replace("USERS20", &users.join(",")));
        let want = Http(*status, *code);
        bench.http(name, (method, path), Some(&token), body.as_deref(), want).await;
    }
    for (method, path, body) in ROUTES {
        let route = (*method, *path);
        bench.http("without a token", route, None, *body, Http(401, 101)).await;
        bench.http("by what is no token", route, Some("x"), *body, Http(401, 101)).await;
        bench.http("by an expired token", route, Some(expired), *body, Http(401, 109)).await;
        // `private` is u2's, and u1 may not see it; what names no room has no such answer.
        if path.contains("private") || body.is_some_and(|body| body.contains("private")) {
            bench.http("a room that one may not see", route, Some(&token), *body, Http(404, 102)).await;
        }
        if body.is_some_and(|body| body != "{}") {
            bench.http("no JSON", route, Some(&token), Some("{"), Http(400, 107)).await;
        }
        let Some(body) = body else { continue };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n"
        );
        let form = format!("{head}Content-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let answer = exchange(address, form.as_bytes()).await;
        bench.http_row(&format!("{method} {path}: no JSON by its own words"), Http(415, 107), answer).await;
        let large = format!("{head}Content-Type: application/json\r\nContent-Length: 65537\r\n\r\n");
        let answer = exchange(address, large.as_bytes()).await;
        bench.http_row(&format!("{method} {path}: above 64 KiB"), Http(413, 121), answer).await;
    }
    chunks(bench).await;
    preflights(bench).await;
    guesses(bench).await;
    logouts(bench).await;
}

/// A body that does not say how long it is: it is cut off all the same.
async fn chunks(bench: &mut Bench) {
    let mut request = format!(
        "POST /v1/signup HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        bench.address
    )
    .into_bytes();
    for _ in 0..80 {
        request.extend(b"400\r\n");
        request.extend([b' '; 1_024]);
        request.extend(b"\r\n");
    }
    let answer = exchange(bench.address, &request).await;
    bench.http_row("POST /v1/signup: 80 KiB in chunks", Http(413, 121), answer).await;
    let both = format!(
        "POST /v1/signup HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nContent-Length: x\r\n\r\n0\r\n\r\n",
        bench.address
    );
    let (status, _) = exchange(bench.address, both.as_bytes()).await;
    bench.http_row("POST /v1/signup: a length that is none", Http(400, 0), (status, Value::Null)).await;
}

/// Pages of other sites may not ask.
async fn preflights(bench: &mut Bench) {
    let preflight = format!(
        "OPTIONS /v1/rooms HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nOrigin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n\r\n",
        bench.address
    );
    let answer = exchange(bench.address, preflight.as_bytes()).await;
    bench.http_row("a preflight of another site", Http(403, 103), answer).await;
}

/// A name that is taken, and who guesses its password.
async fn guesses(bench: &mut Bench) {
    let body = r#"{"username":"guessed","password":"correct horse 1"}"#;
    bench.http("an account", ("POST", "/v1/signup"), None, Some(body), Http(201, 0)).await;
    for taken in ["guessed", "GUESSED", "guesseԁ"] {
        let body = json!({ "username": taken, "password": "correct horse 1" }).to_string();
        let (status, answer) = http(bench.address, "POST", "/v1/signup", None, Some(&body)).await;
        // What looks like it is refused as taken or as no name at all.
        let want = if status == 400 && !taken.is_ascii() { Http(400, 107) } else { Http(409, 105) };
        bench.http_row(&format!("POST /v1/signup: {taken} is taken"), want, (status, answer)).await;
    }
    let guess = r#"{"username":"guessed","password":"wrong"}"#;
    let mut last = (0, Value::Null);
    for _ in 0..60 {
        last = http(bench.address, "POST", "/v1/login", None, Some(guess)).await;
        if last.0 != 401 {
            break;
        }
    }
    if !last.1["retry_after_ms"].is_u64() {
        bench.failures.push(format!("too many guesses: wanted the time to wait, got {}", last.1));
    }
    bench.http_row("POST /v1/login: too many guesses", Http(429, 111), last).await;
}

/// What ends with a logout closes within five seconds; what does not stays.
async fn logouts(bench: &mut Bench) {
    let body = r#"{"username":"leaving","password":"correct horse 1"}"#;
    let route = |path| ("POST", path);
    let token = |answer: &Value| answer["token"].as_str().unwrap_or_default().to_owned();
    let first = token(&bench.http("an account", route("/v1/signup"), None, Some(body), Http(201, 0)).await);
    let second = token(&bench.http("a login", route("/v1/login"), None, Some(body), Http(200, 0)).await);
    let (mut one, mut other) =
        (Wire::login(bench.address, &first).await, Wire::login(bench.address, &second).await);

    let begun = Instant::now();
    bench.http("this login", route("/v1/logout"), Some(&first), None, Http(204, 0)).await;
    let closed = timeout(Duration::from_secs(5), one.closed()).await;
    let got = closed.unwrap_or(crate::wire::Got::End("open after 5 s"));
    bench.row("a logout closes its connection", Want::Close(3503), &[got]).await;
    bench.http("again", route("/v1/logout"), Some(&first), None, Http(401, 101)).await;
    let reply = other.call("ping", &json!({})).await;
    bench.row("a logout leaves other logins", Want::Ok, &[crate::wire::Got::Json(reply)]).await;

    bench.http("all logins", route("/v1/logout"), Some(&second), Some(r#"{"all":true}"#), Http(204, 0)).await;
    let closed = timeout(Duration::from_secs(5), other.closed()).await;
    let got = closed.unwrap_or(crate::wire::Got::End("open after 5 s"));
    bench.row("a logout of all closes the rest", Want::Close(3503), &[got]).await;
    let mut wire = Wire::open(bench.address).await;
    let auth = json!({ "id": 1, "auth": { "token": second } }).to_string();
    bench.ask(&mut wire, "auth after logout", &auth, Want::ErrorClose(101, 3500)).await;
    assert!(begun.elapsed() < Duration::from_secs(20), "logouts took {:?}", begun.elapsed());
}
