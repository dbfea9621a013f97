//! The routes over shards that answer by a script, and the server over real and made-up streams.

use std::sync::Mutex;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use banyan_gateway_core::bucket::Rate;
use banyan_proto::codes::Code;
use banyan_proto::id::{RoomId, Seq, UnixMs, UserId};
use banyan_proto::link::{Answer, RoomCommand, ToShard};
use banyan_proto::v1;
use banyan_proto::v1::server_frame::Body as Reply;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;
use crate::backend::tests::{Verdict, summary, world};

const INDEX: &[u8] = b"<!doctype html><title>Banyan</title>";
const FILES: &[File] = &[
    ("/", "text/html; charset=utf-8", INDEX),
    ("/assets/app.js", "text/javascript; charset=utf-8", b"'use strict'"),
];

struct World {
    router: Router,
    token: String,
    user: String,
    seen: Arc<Mutex<Vec<ToShard>>>,
}

/// Answers like an owner: room `r` is there, `x` is unknown, `slow` overloaded.
fn owner(message: &ToShard) -> Verdict {
    let body = |body| Verdict::Answer(Answer::Body(Box::new(body)));
    match message {
        ToShard::UserRooms { .. } => {
            Verdict::Answer(Answer::UserRooms { rooms: vec![RoomId::parse("r").unwrap()], more: true })
        }
        ToShard::Room { room, .. } if room.as_str() == "x" => {
            Verdict::Answer(Answer::Error(Box::new(Code::UnknownRoom.error("no such room"))))
        }
        ToShard::Room { room, .. } if room.as_str() == "slow" => Verdict::Full,
        ToShard::Room { room, call } => match &call.command {
            RoomCommand::Create { name, .. } => body(Reply::CreateRoom(v1::CreateRoomReply {
                room: room.to_string(),
                kind: v1::RoomKind::Group as i32,
                name: name.clone(),
                created: name != "there",
                ..v1::CreateRoomReply::default()
            })),
            RoomCommand::Update { .. } => body(Reply::UpdateRoom(v1::Empty {})),
            RoomCommand::Join => body(Reply::Join(v1::JoinReply { head: 7, role: v1::Role::Member as i32 })),
            RoomCommand::Leave => body(Reply::Leave(v1::Empty {})),
            RoomCommand::Add { .. } => body(Reply::AddMembers(v1::Empty {})),
            RoomCommand::Remove { .. } => body(Reply::RemoveMember(v1::Empty {})),
            RoomCommand::SetRole { .. } => body(Reply::SetRole(v1::Empty {})),
            RoomCommand::Send(send) => Verdict::Answer(Answer::Sent {
                seq: Seq(8),
                at: UnixMs(5),
                duplicate: send.client_msg_id == "again",
            }),
            RoomCommand::History { .. } => body(Reply::History(v1::HistoryReply::default())),
            RoomCommand::Members { .. } => body(Reply::Members(v1::MembersReply::default())),
            RoomCommand::Summary => Verdict::Answer(Answer::Summary(Box::new(summary(room)))),
            RoomCommand::Mark { .. } | RoomCommand::Subscribe => Verdict::Silent,
        },
        _ => Verdict::Silent,
    }
}

async fn routes() -> World {
    let shards = world(100, owner);
    let accounts = shards.backend.accounts().clone();
    let ann =
        accounts.signup("ann", "correct horse", Some("Ann"), IpAddr::from([127, 0, 0, 1])).await.unwrap();
    let state = State {
        accounts,
        backend: shards.backend,
        sends: Arc::new(Buckets::new(64, Rate::per_second(1, 3))),
        started: Instant::now(),
        limits: Limits::default(),
        allowed_origins: Origins::parse(["https://app.example"]).unwrap(),
        trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
        page: Page::new(FILES),
    };
    World { router: router(state), token: ann.token, user: ann.user.to_string(), seen: shards.seen }
}

struct Said {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl World {
    async fn ask(&self, request: Request<Body>) -> Said {
        self.ask_from("127.0.0.1", request).await
    }

    async fn ask_from(&self, peer: &str, mut request: Request<Body>) -> Said {
        request.extensions_mut().insert(Peer(peer.parse().unwrap()));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        Said { status: parts.status.as_u16(), headers: parts.headers, text }
    }

    /// With the token of Ann, and a JSON body if there is one.
    async fn call(&self, method: &str, path: &str, body: impl Into<Option<Value>>) -> Said {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Authorization", format!("Bearer {}", self.token));
        let request = match body.into() {
            Some(body) => request.header("Content-Type", "application/json").body(body.to_string().into()),
            None => request.body(Body::empty()),
        };
        self.ask(request.unwrap()).await
    }

    fn last_command(&self) -> RoomCommand {
        match self.seen.lock().unwrap().last().unwrap() {
            ToShard::Room { call, .. } => call.command.clone(),
            other => panic!("{other:?}"),
        }
    }
}

#[track_caller]
fn is_problem(said: &Said, status: u16, code: Code, what: &str) {
    assert_eq!(said.status, status, "{what}: {}", said.text);
    assert_eq!(said.header("content-type"), "application/problem+json", "{what}");
    let problem = said.json();
    assert_eq!(problem["status"], status, "{what}");
    assert_eq!(problem["code"], code.number(), "{what}: {problem}");
    assert_eq!(problem["name"], code.name(), "{what}");
    assert!(
        !problem["detail"].as_str().unwrap().is_empty() && !problem["title"].as_str().unwrap().is_empty()
    );
}

#[tokio::test]
async fn an_account_from_signup_to_logout() {
    let world = routes().await;
    let post = |path: &str, body: Value| {
        let request = Request::post(path).header("Content-Type", "application/json; charset=utf-8");
        request.body(Body::from(body.to_string())).unwrap()
    };
    let credentials = json!({"username": "Bob", "password": "correct horse"});
    let made = world.ask(post("/v1/signup", credentials.clone())).await;
    assert_eq!((made.status, made.json()["name"].clone()), (201, json!("Bob")));
    assert_eq!(made.header("cache-control"), "no-store");
    is_problem(&world.ask(post("/v1/signup", credentials.clone())).await, 409, Code::AlreadyExists, "taken");
    let login = world.ask(post("/v1/login", credentials)).await;
    assert_eq!((login.status, login.json()["user"].clone()), (200, made.json()["user"].clone()));
    let wrong = json!({"username": "bob", "password": "wrong horse"});
    let wrong = world.ask(post("/v1/login", wrong)).await;
    is_problem(&wrong, 401, Code::Unauthenticated, "password");
    assert_eq!(wrong.header("www-authenticate"), "Bearer");

    let with = |path: &str, token: &Value, body: &'static str| {
        let request = Request::post(path)
            .header("Authorization", format!("bearer {}", token.as_str().unwrap()))
            .header("Content-Type", "application/json");
        request.body(Body::from(body)).unwrap()
    };
    let token = login.json()["token"].clone();
    let renewed = world.ask(with("/v1/token", &token, "")).await;
    assert_eq!((renewed.status, renewed.json()["user"].clone()), (200, made.json()["user"].clone()));
    assert!(renewed.json()["expires_at"].as_u64().unwrap() > 1_700_000_000_000);
    let out = world.ask(with("/v1/logout", &token, "")).await;
    assert_eq!((out.status, out.text.as_str()), (204, ""));
    let renewed = renewed.json()["token"].clone();
    is_problem(&world.ask(with("/v1/token", &renewed, "")).await, 401, Code::Unauthenticated, "same login");
    let first = made.json()["token"].clone();
    assert_eq!(world.ask(with("/v1/logout", &first, r#"{"all":true}"#)).await.status, 204);
    is_problem(&world.ask(with("/v1/token", &first, "{}")).await, 401, Code::Unauthenticated, "all");
}

#[tokio::test]
async fn each_route_says_its_command() {
    let world = routes().await;
    let user = |id| UserId::parse(id).unwrap();
    let rows: Vec<(&str, String, Value, u16, Option<RoomCommand>)> = vec![
        ("POST", "/v1/rooms".into(), json!({"kind": "group", "name": "N"}), 201, None),
        ("POST", "/v1/rooms".into(), json!({"kind": "group", "name": "there", "room": "r"}), 200, None),
        ("GET", "/v1/rooms?limit=5".into(), Value::Null, 200, Some(RoomCommand::Summary)),
        (
            "PATCH",
            "/v1/rooms/r".into(),
            json!({"name": "M"}),
            200,
            Some(RoomCommand::Update { name: Some("M".into()), public: None }),
        ),
        ("POST", "/v1/rooms/r/join".into(), Value::Null, 200, Some(RoomCommand::Join)),
        ("POST", "/v1/rooms/r/leave".into(), json!({}), 200, Some(RoomCommand::Leave)),
        (
            "GET",
            "/v1/rooms/r/members?after=a%7C1&limit=3".into(),
            Value::Null,
            200,
            Some(RoomCommand::Members { after: Some(user("a|1")), limit: 3 }),
        ),
        ("POST", "/v1/rooms/r/members".into(), json!({"users": [world.user]}), 200, None),
        (
            "DELETE",
            "/v1/rooms/r/members/a%7C1".into(),
            Value::Null,
            200,
            Some(RoomCommand::Remove { user: user("a|1") }),
        ),
        (
            "PUT",
            "/v1/rooms/r/members/a@b.c/role".into(),
            json!({"role": "admin"}),
            200,
            Some(RoomCommand::SetRole { user: user("a@b.c"), role: v1::Role::Admin }),
        ),
        (
            "GET",
            "/v1/rooms/dm.x/messages?before=9".into(),
            Value::Null,
            200,
            Some(RoomCommand::History { before: Some(Seq(9)), after: None, limit: 50 }),
        ),
        (
            "POST",
            "/v1/messages".into(),
            json!({"room": "r", "client_msg_id": "a", "text": "x", "data": [1]}),
            201,
            None,
        ),
        (
            "POST",
            "/v1/messages".into(),
            json!({"room": "r", "client_msg_id": "again", "text": "x"}),
            200,
            None,
        ),
    ];
    for (method, path, body, status, command) in rows {
        let said = world.call(method, &path, (!body.is_null()).then_some(body)).await;
        assert_eq!(said.status, status, "{method} {path}: {}", said.text);
        assert_eq!(said.header("content-type"), "application/json", "{method} {path}");
        assert!(said.json().is_object(), "{method} {path}");
        if let Some(command) = command {
            assert_eq!(world.last_command(), command, "{method} {path}");
        }
    }
    // Bodies as the protocol's replies.
    let rooms = world.call("GET", "/v1/rooms", None).await.json();
    assert_eq!((&rooms["more"], &rooms["rooms"][0]["room"]), (&json!(true), &json!("r")));
    let sent =
        world.call("POST", "/v1/messages", json!({"room": "r", "client_msg_id": "b", "text": "x"})).await;
    assert_eq!(sent.json(), json!({"room": "r", "seq": 8, "at": 5, "duplicate": false}));
    let joined = world.call("POST", "/v1/rooms/r/join", None).await.json();
    assert_eq!(joined, json!({"head": 7, "role": "member"}));
    assert_eq!(world.call("POST", "/v1/rooms/r/leave", None).await.text, "{}");
    // The caller is who the token says.
    let seen = world.seen.lock().unwrap();
    let Some(ToShard::Room { call, .. }) = seen.last() else { panic!("a room's") };
    assert_eq!((call.caller.user.as_str(), &*call.caller.name), (world.user.as_str(), "Ann"));
}

/// Every route with a token (but the first two), and whether it needs a body.
const ROUTES: &[(&str, &str, bool)] = &[
    ("POST", "/v1/signup", true),
    ("POST", "/v1/login", true),
    ("POST", "/v1/logout", false),
    ("POST", "/v1/token", false),
    ("POST", "/v1/rooms", true),
    ("GET", "/v1/rooms", false),
    ("PATCH", "/v1/rooms/r", true),
    ("POST", "/v1/rooms/r/join", false),
    ("POST", "/v1/rooms/r/leave", false),
    ("GET", "/v1/rooms/r/members", false),
    ("POST", "/v1/rooms/r/members", true),
    ("DELETE", "/v1/rooms/r/members/u", false),
    ("PUT", "/v1/rooms/r/members/u/role", true),
    ("GET", "/v1/rooms/r/messages", false),
    ("POST", "/v1/messages", true),
];

#[tokio::test]
async fn every_route_refuses_what_is_malformed() {
    let world = routes().await;
    let bearer = format!("Bearer {}", world.token);
    let request = |method: &str, path: &str| Request::builder().method(method).uri(path);
    for (method, path, takes_body) in ROUTES {
        let open = path.ends_with("signup") || path.ends_with("login");
        if !open {
            for authorization in [None, Some("Bearer nonsense"), Some("Basic YTpi"), Some(""), Some("Bearer")]
            {
                let mut asked = request(method, path).header("Content-Type", "application/json");
                if let Some(authorization) = authorization {
                    asked = asked.header("Authorization", authorization);
                }
                let said = world.ask(asked.body(Body::from("{}")).unwrap()).await;
                is_problem(&said, 401, Code::Unauthenticated, &format!("{method} {path} {authorization:?}"));
            }
            let twice =
                request(method, path).header("Authorization", &bearer).header("Authorization", &bearer);
            is_problem(
                &world.ask(twice.body(Body::empty()).unwrap()).await,
                401,
                Code::Unauthenticated,
                path,
            );
        }
        let wrong = if *method == "GET" { "PATCH" } else { "TRACE" };
        let said = world.call(wrong, path, None).await;
        is_problem(&said, 405, Code::UnknownCommand, &format!("{wrong} {path}"));
        assert!(said.header("allow").contains(method), "{path}: {:?}", said.headers);
        if *method == "GET" {
            continue;
        }
        let with = |content_type: Option<&str>, body: Vec<u8>| {
            let mut asked = request(method, path).header("Authorization", &bearer);
            if let Some(content_type) = content_type {
                asked = asked.header("Content-Type", content_type);
            }
            asked.body(Body::from(body)).unwrap()
        };
        for (content_type, body, status, code, words) in [
            (Some("text/plain"), &b"{}"[..], 415, Code::BadRequest, "application/json"),
            (None, b"{}", 415, Code::BadRequest, "application/json"),
            (Some("application/json"), b"[]", 400, Code::BadRequest, "object"),
            (Some("application/json"), b"7", 400, Code::BadRequest, "object"),
            (Some("application/json"), b"{", 400, Code::BadRequest, "EOF"),
            (Some("application/json"), b"{}x", 400, Code::BadRequest, ""),
            (Some("application/json"), b"{\"\xff\":1}", 400, Code::BadRequest, ""),
            (Some("application/json"), &[b' '; BODY_MAX + 1], 413, Code::MessageTooLarge, "65536"),
        ] {
            // A route without a body of its own parses one all the same, but has no field to miss.
            let said = world.ask(with(content_type, body.to_vec())).await;
            is_problem(&said, status, code, &format!("{method} {path} {content_type:?}"));
            assert!(said.text.contains(words), "{method} {path}: {}", said.text);
        }
        if *takes_body {
            let said = world.ask(with(Some("application/json"), Vec::new())).await;
            is_problem(&said, 400, Code::BadRequest, path);
            assert!(said.text.contains("empty"), "{}", said.text);
            let said = world.ask(with(Some("application/json"), b"{}".to_vec())).await;
            is_problem(&said, 400, Code::BadRequest, path);
        }
    }
    assert!(world.seen.lock().unwrap().iter().all(|message| !matches!(message,
        ToShard::Room { call, .. } if matches!(call.command, RoomCommand::Send(_) | RoomCommand::Create { .. }))));
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let world = routes().await;
    let (none, bad, unknown) = (Value::Null, Code::BadRequest, Code::UnknownRoom);
    let send = |field: &str, value: Value| {
        let mut body = json!({"room": "r", "client_msg_id": "a", "text": "x"});
        body[field] = value;
        body
    };
    let rows: Vec<(&str, &str, Value, u16, Code, &str)> = vec![
        ("GET", "/v1/nothing", none.clone(), 404, Code::UnknownCommand, "docs/protocol.md"),
        ("POST", "/api/send", json!({}), 404, Code::UnknownCommand, "docs/protocol.md"),
        ("GET", "/v1/rooms?limit=x", none.clone(), 400, bad, "limit"),
        ("GET", "/v1/rooms?limit=0", none.clone(), 400, bad, "1 to 100"),
        ("GET", "/v1/rooms?limit=-1", none.clone(), 400, bad, "limit"),
        ("GET", "/v1/rooms?limit=1&limit=2", none.clone(), 400, bad, "limit"),
        ("GET", "/v1/rooms?after=a%20b", none.clone(), 400, bad, "room may only hold"),
        ("GET", "/v1/rooms/a%20b/messages", none.clone(), 400, bad, "room may only hold"),
        ("GET", "/v1/rooms/%FF/messages", none.clone(), 400, bad, "path"),
        ("GET", "/v1/rooms/r/messages?before=1&after=2", none.clone(), 400, bad, "exclude"),
        ("GET", "/v1/rooms/r/messages?before=9007199254740992", none.clone(), 400, bad, "2^53"),
        ("GET", "/v1/rooms/x/messages", none.clone(), 404, unknown, "no such room"),
        ("POST", "/v1/rooms/x/join", none.clone(), 404, unknown, "no such room"),
        ("DELETE", "/v1/rooms/r/members/~system", none.clone(), 400, bad, "begin with `~`"),
        ("DELETE", "/v1/rooms/r/members/a%2Fb", none.clone(), 400, bad, "user may only hold"),
        (
            "PUT",
            "/v1/rooms/r/members/u/role",
            json!({"role": "king"}),
            400,
            bad,
            "reader, member, admin, owner",
        ),
        ("PUT", "/v1/rooms/r/members/u/role", json!({"role": "none"}), 400, bad, "remove_member"),
        ("PUT", "/v1/rooms/r/members/u/role", json!({"role": 3}), 400, bad, "expected a string"),
        ("POST", "/v1/rooms/r/members", json!({"users": []}), 400, bad, "at least one"),
        ("POST", "/v1/rooms/r/members", json!({"users": ["nobody"]}), 404, Code::UnknownUser, "nobody"),
        ("PATCH", "/v1/rooms/r", json!({"name": null}), 400, bad, "nothing to change"),
        ("PATCH", "/v1/rooms/r", json!({"public": "yes"}), 400, bad, "boolean"),
        ("POST", "/v1/rooms", json!({"kind": "circle"}), 400, bad, "circle"),
        ("POST", "/v1/rooms", json!({"kind": "group", "room": "dm.x"}), 400, bad, "dm."),
        ("POST", "/v1/messages", send("text", json!(7)), 400, bad, "string"),
        ("POST", "/v1/messages", send("text", json!("")), 400, bad, "nothing to send"),
        ("POST", "/v1/messages", send("since", json!("7")), 400, bad, "u64"),
        ("POST", "/v1/messages", send("text", json!("x".repeat(8_193))), 413, Code::MessageTooLarge, "8192"),
        ("POST", "/v1/messages", send("room", json!("x")), 404, unknown, "no such room"),
        ("POST", "/v1/rooms/slow/join", none.clone(), 503, Code::Overloaded, "too many"),
        ("GET", "/v1/ws", none.clone(), 426, bad, "WebSocket"),
        ("POST", "/", none.clone(), 405, Code::UnknownCommand, "Allow"),
    ];
    for (method, path, body, status, code, words) in rows {
        let said = world.call(method, path, (!body.is_null()).then_some(body)).await;
        is_problem(&said, status, code, &format!("{method} {path}"));
        assert!(said.text.contains(words), "{method} {path}: {}", said.text);
    }
    let said = world.call("POST", "/v1/rooms/slow/join", None).await;
    assert_eq!((said.header("retry-after"), &said.json()["retry_after_ms"]), ("1", &json!(500)));
}

#[tokio::test(start_paused = true)]
async fn sends_share_the_users_bucket() {
    let world = routes().await;
    let body = json!({"room": "r", "client_msg_id": "a", "text": "x"});
    for _ in 0..3 {
        assert_eq!(world.call("POST", "/v1/messages", body.clone()).await.status, 201);
    }
    let said = world.call("POST", "/v1/messages", body).await;
    is_problem(&said, 429, Code::TooManyRequests, "the fourth");
    assert_eq!(said.header("retry-after"), "1");
    assert_eq!(world.call("GET", "/v1/rooms/r/messages", None).await.status, 200, "reading is not counted");
}

#[tokio::test(start_paused = true)]
async fn the_client_is_behind_trusted_proxies_only() {
    let world = routes().await;
    // Another name each time: names are slowed too.
    let mut tries = 0;
    let mut login = |forwarded: &str| {
        tries += 1;
        let body = json!({"username": format!("nobody{tries}"), "password": "correct horse"});
        Request::post("/v1/login")
            .header("X-Forwarded-For", forwarded)
            .header("Content-Type", "application/json")
            .body(Body::from(body.to_string()))
            .unwrap()
    };
    // 120 in a burst by default.
    for _ in 0..120 {
        assert_eq!(world.ask_from("10.0.0.1", login("192.0.2.1, 203.0.113.5")).await.status, 401);
    }
    for (peer, forwarded, status) in [
        ("10.0.0.1", "192.0.2.1, 203.0.113.5", 429),
        ("10.0.0.1", "192.0.2.9, 203.0.113.5", 429),
        ("10.0.0.1", "203.0.113.5, 10.9.9.9", 429),
        ("10.0.0.1", "203.0.113.6", 401),
        ("203.0.113.5", "192.0.2.9", 429),
    ] {
        assert_eq!(world.ask_from(peer, login(forwarded)).await.status, status, "{peer} {forwarded}");
    }
}

#[tokio::test]
async fn cors_is_for_the_listed_origins() {
    let world = routes().await;
    let preflight = |origin: &str| {
        Request::builder()
            .method(Method::OPTIONS)
            .uri("/v1/messages")
            .header("Host", "chat.example")
            .header("Origin", origin)
            .header("Access-Control-Request-Method", "POST")
            .body(Body::empty())
            .unwrap()
    };
    let allowed = world.ask(preflight("https://app.example")).await;
    assert_eq!((allowed.status, allowed.header("access-control-allow-origin")), (204, "https://app.example"));
    assert!(allowed.header("access-control-allow-headers").contains("authorization"));
    assert!(allowed.header("access-control-allow-methods").contains("PATCH"));
    assert_eq!(allowed.header("access-control-allow-credentials"), "");
    for stranger in ["https://evil.example", "null", "https://app.example.evil.example"] {
        let refused = world.ask(preflight(stranger)).await;
        is_problem(&refused, 403, Code::PermissionDenied, stranger);
        assert_eq!(refused.header("access-control-allow-origin"), "");
    }
    let get = |origin: &str| {
        let request = Request::get("/v1/rooms").header("Origin", origin).header("Host", "chat.example");
        request.body(Body::empty()).unwrap()
    };
    let said = world.ask(get("https://app.example")).await;
    assert_eq!((said.status, said.header("access-control-allow-origin")), (401, "https://app.example"));
    assert_eq!(said.header("vary"), "Origin");
    assert_eq!(world.ask(get("https://evil.example")).await.header("access-control-allow-origin"), "");
}

#[tokio::test]
async fn the_page_is_served_and_locked_down() {
    let world = routes().await;
    let get = |path: &str| Request::get(path).body(Body::empty()).unwrap();
    let index = world.ask(get("/")).await;
    assert_eq!((index.status, index.text.as_bytes()), (200, INDEX));
    assert_eq!(index.header("content-type"), "text/html; charset=utf-8");
    assert_eq!(index.header("cache-control"), "no-cache");
    assert_eq!(index.header("x-content-type-options"), "nosniff");
    assert_eq!(index.header("referrer-policy"), "no-referrer");
    assert_eq!(index.header("cross-origin-opener-policy"), "same-origin");
    let policy = index.header("content-security-policy");
    for part in ["default-src 'none'", "script-src 'self'", "base-uri 'none'", "frame-ancestors 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    let etag = index.header("etag").to_owned();
    for (tags, status) in [
        (etag.clone(), 304),
        (format!("\"other\", W/{etag}"), 304),
        ("*".to_owned(), 304),
        ("\"other\"".to_owned(), 200),
    ] {
        let request = Request::get("/?x=1").header("If-None-Match", &tags).body(Body::empty()).unwrap();
        let said = world.ask(request).await;
        assert_eq!((said.status, said.header("etag")), (status, etag.as_str()), "{tags}");
        assert_eq!(said.text.is_empty(), status == 304);
    }
    assert_ne!(world.ask(get("/assets/app.js")).await.header("etag"), etag);
    let head = Request::head("/").body(Body::empty()).unwrap();
    assert_eq!(world.ask(head).await.status, 200);
    for path in ["/assets/", "/assets/../index.html", "//", "/index.html.map"] {
        is_problem(&world.ask(get(path)).await, 404, Code::UnknownCommand, path);
    }
}

/// A server with one made-up stream.
struct Line {
    client: DuplexStream,
    handle: Handle,
    drain: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

async fn line(options: Options, prefix: &'static [u8], buffer: usize) -> Line {
    let (handle, server) = Server::new(options, routes().await.router);
    let drain = CancellationToken::new();
    let server = tokio::spawn(server.run(drain.clone()));
    let (client, stream) = duplex(buffer);
    let connection = Connection {
        stream: Stream::Other(Box::new(stream)),
        prefix: Bytes::from_static(prefix),
        peer: IpAddr::from([127, 0, 0, 1]),
    };
    handle.give(connection).unwrap();
    Line { client, handle, drain, server }
}

/// Reads one answer; the text of head and body.
async fn answer(client: &mut DuplexStream) -> String {
    let mut got = Vec::new();
    loop {
        let mut more = [0; 4_096];
        let read = client.read(&mut more).await.unwrap();
        assert!(read > 0, "closed after {}", String::from_utf8_lossy(&got));
        got.extend_from_slice(&more[..read]);
        let text = String::from_utf8_lossy(&got).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if body.len() >= length.parse().unwrap() {
            return text;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_already_read_come_first_and_the_connection_lives_on() {
    let mut line = line(Options::default(), b"GET / HTT", 65_536).await;
    line.client.write_all(b"P/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(answer(&mut line.client).await.starts_with("HTTP/1.1 200 OK"));
    // An idle connection is no slow head.
    tokio::time::sleep(Duration::from_secs(60)).await;
    line.client.write_all(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut head = [0; 1_024];
    let read = line.client.read(&mut head).await.unwrap();
    let head = String::from_utf8_lossy(&head[..read]).to_ascii_lowercase();
    assert!(
        head.contains(&format!("content-length: {}", INDEX.len())) && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    // After 75 s of nothing it closes.
    assert_eq!(line.client.read(&mut [0; 16]).await.unwrap(), 0);
    line.drain.cancel();
    line.server.await.unwrap();
}

#[tokio::test]
async fn an_upgrade_on_a_used_connection_closes_it() {
    let mut line = line(Options::default(), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 65_536).await;
    answer(&mut line.client).await;
    let upgrade = "GET /v1/ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    line.client.write_all(upgrade.as_bytes()).await.unwrap();
    let mut said = String::new();
    line.client.read_to_string(&mut said).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 426"), "{said}");
    assert!(said.to_ascii_lowercase().contains("\r\nupgrade: websocket\r\n"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_is_cut_off() {
    for prefix in [&b""[..], b"GET / HTTP/1.1\r\n"] {
        let mut line = line(Options::default(), prefix, 65_536).await;
        let begun = Instant::now();
        let mut closed = false;
        for byte in b"Host: a-very-long-host-name.example\r\n".iter().cycle().take(30) {
            closed = line.client.write_all(&[*byte]).await.is_err();
            if closed {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(closed, "still open after {:?}", begun.elapsed());
        assert!(begun.elapsed() <= Duration::from_secs(7), "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_after_a_request_is_cut_off_too() {
    let mut line = line(Options::default(), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 65_536).await;
    answer(&mut line.client).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    line.client.write_all(b"GET / HT").await.unwrap();
    let begun = Instant::now();
    let mut rest = Vec::new();
    line.client.read_to_end(&mut rest).await.unwrap();
    assert!((4..=6).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_and_a_client_that_does_not_read_are_cut_off() {
    let head = b"POST /v1/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    let mut slow = line(Options::default(), head, 65_536).await;
    let begun = Instant::now();
    let said = answer(&mut slow.client).await;
    assert!(
        said.starts_with("HTTP/1.1 503") && begun.elapsed().as_secs() == 15,
        "{said} {:?}",
        begun.elapsed()
    );

    // Its buffer holds eight bytes of the answer and it never reads them.
    let mut deaf = line(Options::default(), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 8).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    let begun = Instant::now();
    deaf.drain.cancel();
    deaf.server.await.unwrap();
    assert!(begun.elapsed() <= Duration::from_secs(11), "the drain deadline: {:?}", begun.elapsed());
    let mut read = Vec::new();
    deaf.client.read_to_end(&mut read).await.unwrap();
    assert_eq!(read.len(), 8);

    let options = Options { drain_deadline: Duration::from_secs(600), ..Options::default() };
    let deaf = line(options, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 8).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    let begun = Instant::now();
    deaf.drain.cancel();
    deaf.server.await.unwrap();
    assert!(begun.elapsed() <= Duration::from_secs(21), "the write timeout: {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn beyond_its_bounds_a_connection_is_given_back() {
    let options = Options { connections: 2, ..Options::default() };
    let mut first = line(options, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 65_536).await;
    answer(&mut first.client).await;
    let connection = || {
        let (client, stream) = duplex(64);
        let stream = Stream::Other(Box::new(stream));
        (client, Connection { stream, prefix: Bytes::new(), peer: IpAddr::from([127, 0, 0, 1]) })
    };
    let (second, given) = connection();
    first.handle.give(given).unwrap();
    let (_third, given) = connection();
    let back = first.handle.give(given).unwrap_err();
    assert_eq!(back.peer, IpAddr::from([127, 0, 0, 1]));
    // Who goes makes room.
    drop(second);
    tokio::time::sleep(Duration::from_millis(1)).await;
    first.handle.give(back).unwrap();
    // An idle connection does not hold up the drain, and nothing is taken after it.
    let begun = Instant::now();
    first.drain.cancel();
    first.server.await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(first.handle.give(connection().1).is_err());
}

#[tokio::test]
async fn real_sockets_and_garbage() {
    let (handle, server) = Server::new(Options::default(), routes().await.router);
    let drain = CancellationToken::new();
    let server = tokio::spawn(server.run(drain.clone()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    for (sent, want) in [
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "HTTP/1.1 200"),
        ("GET / HTTP/1.0\r\n\r\n", "HTTP/1.0 200"),
        ("\x16\x03\x01\x02\x00", ""),
        ("GET / SMTP\r\n\r\n", "HTTP/1.1 400"),
        (
            "POST /v1/login HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
            "HTTP/1.1 400",
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", "HTTP/1.1 400"),
    ] {
        let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let stream = Stream::Tcp(stream.into_std().unwrap());
        handle.give(Connection { stream, prefix: Bytes::new(), peer: peer.ip() }).unwrap();
        client.write_all(sent.as_bytes()).await.unwrap();
        if want.is_empty() {
            client.shutdown().await.unwrap();
        }
        let mut said = Vec::new();
        client.read_to_end(&mut said).await.unwrap();
        let said = String::from_utf8_lossy(&said);
        assert!(said.starts_with(want), "{sent:?}: {said}");
    }
    drain.cancel();
    server.await.unwrap();
}

#[test]
fn problems_carry_the_status_of_their_code() {
    for code in Code::ALL {
        let problem = Problem::new(*code, "words");
        assert_eq!(problem.status.as_u16(), code.http_status());
        assert_ne!(problem.status, StatusCode::OK);
    }
}
