//! The HTTP API over real owners of rooms and the in-memory store: what a person does in a day.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use banyan_gateway::accounts::keys::{Algorithm, Keys};
use banyan_gateway::accounts::{self, Service, password};
use banyan_gateway::backend::{self, Backend};
use banyan_gateway::clock;
use banyan_gateway::http::page::Page;
use banyan_gateway::http::{self, Connection, Server, Stream};
use banyan_gateway_core::bucket::{Buckets, Rate};
use banyan_gateway_core::command::Limits;
use banyan_gateway_core::head::Origins;
use banyan_proto::link::LinkId;
use banyan_storage::Memory;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

struct Node {
    handle: http::Handle,
    /// In the order in which they end.
    tasks: Vec<(CancellationToken, JoinHandle<()>)>,
}

fn node() -> Node {
    let store = Memory::new();
    let (to_link, inbox) = mpsc::channel(256);
    let options = banyan_shard::Options { workers: 2, ..banyan_shard::Options::default() };
    let (shards, workers) = banyan_shard::build(options, Arc::new(store.clone()), vec![to_link]);
    let keys = Keys::generate(Algorithm::HS256, clock::unix_ms()).unwrap();
    let hashing = password::Cost { memory_kib: 64, passes: 1, concurrency: 1, queue: 8 };
    let options = accounts::Options { hashing, ..accounts::Options::default() };
    let accounts = Service::new(options, Arc::new(store), keys, None).unwrap();
    let backend = Backend::new(backend::Options::new(LinkId(0)), Arc::new(shards), accounts.clone());
    let state = http::State {
        accounts,
        backend: backend.clone(),
        sends: Arc::new(Buckets::new(64, Rate::per_second(50, 200))),
        started: Instant::now(),
        limits: Limits::default(),
        allowed_origins: Origins::parse([]).unwrap(),
        trusted_proxies: Vec::new(),
        page: Page::default(),
    };
    let (handle, server) = Server::new(http::Options::default(), http::router(state));
    let mut tasks = Vec::new();
    let stop = CancellationToken::new();
    tasks.push((stop.clone(), tokio::spawn(server.run(stop))));
    let stop = CancellationToken::new();
    tasks.extend(workers.into_iter().map(|worker| {
        let drain = stop.clone();
        let run = async move {
            worker.run(drain).await;
        };
        (stop.clone(), tokio::spawn(run))
    }));
    let stop = CancellationToken::new();
    tasks.push((stop.clone(), tokio::spawn(backend.run(inbox, stop))));
    Node { handle, tasks }
}

struct Person {
    user: String,
    token: String,
}

impl Node {
    /// One request on a connection of its own, as a worker would hand it over.
    async fn ask(&self, token: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let head = format!(
            "{} {} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            request.method(),
            request.uri(),
            body.len()
        );
        let (mut client, stream) = tokio::io::duplex(1 << 20);
        let connection = Connection {
            stream: Stream::Other(Box::new(stream)),
            prefix: Bytes::from(head),
            peer: IpAddr::from([127, 0, 0, 1]),
        };
        self.handle.give(connection).unwrap();
        client.write_all(body.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(Duration::from_secs(10), client.read_to_string(&mut answer)).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() };
        (status, body)
    }

    #[track_caller]
    fn want(&self, (status, body): (u16, Value), want: u16, code: u32) -> Value {
        assert_eq!((status, body["code"].as_u64().unwrap_or_default()), (want, u64::from(code)), "{body}");
        body
    }

    async fn person(&self, username: &str) -> Person {
        let body = json!({"username": username, "password": "correct horse"});
        let (status, body) = self.ask("", "POST", "/v1/signup", Some(&body)).await;
        assert_eq!(status, 201, "{body}");
        let text = |field: &str| body[field].as_str().unwrap().to_owned();
        Person { user: text("user"), token: text("token") }
    }

    async fn end(self) {
        for (stop, task) in self.tasks {
            stop.cancel();
            timeout(Duration::from_secs(20), task).await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn a_room_and_its_people() {
    let node = node();
    let (ann, bob, eve) = (node.person("ann").await, node.person("bob").await, node.person("eve").await);

    let make = json!({"kind": "group", "room": "garden", "name": "Garden", "members": [bob.user]});
    let room = node.want(node.ask(&ann.token, "POST", "/v1/rooms", Some(&make)).await, 201, 0);
    assert_eq!((&room["role"], &room["created"]), (&json!("owner"), &json!(true)), "{room}");
    let again = node.want(node.ask(&ann.token, "POST", "/v1/rooms", Some(&make)).await, 200, 0);
    assert_eq!(again["created"], json!(false));
    node.want(node.ask(&eve.token, "POST", "/v1/rooms", Some(&make)).await, 409, 105);

    let say = json!({"room": "garden", "client_msg_id": "1", "text": "hello", "data": {"k": [1]}});
    let sent = node.want(node.ask(&ann.token, "POST", "/v1/messages", Some(&say)).await, 201, 0);
    let twice = node.want(node.ask(&ann.token, "POST", "/v1/messages", Some(&say)).await, 200, 0);
    assert_eq!((&twice["seq"], &twice["duplicate"]), (&sent["seq"], &json!(true)));
    let other = json!({"room": "garden", "client_msg_id": "1", "text": "other"});
    node.want(node.ask(&ann.token, "POST", "/v1/messages", Some(&other)).await, 409, 120);

    let page = node.want(node.ask(&bob.token, "GET", "/v1/rooms/garden/messages", None).await, 200, 0);
    let last = page["events"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["message"]["text"], &last["message"]["data"]), (&json!("hello"), &json!({"k": [1]})));
    assert_eq!(last["sender_name"], json!("ann"));

    // Who may not see it is told that there is nothing.
    for (method, path, body) in [
        ("GET", "/v1/rooms/garden/messages", None),
        ("GET", "/v1/rooms/garden/members", None),
        ("POST", "/v1/rooms/garden/join", None),
        ("POST", "/v1/rooms/garden/leave", None),
        ("PATCH", "/v1/rooms/garden", Some(json!({"public": true}))),
        ("POST", "/v1/messages", Some(json!({"room": "garden", "client_msg_id": "e", "text": "x"}))),
        ("GET", "/v1/rooms/nowhere/messages", None),
    ] {
        node.want(node.ask(&eve.token, method, path, body.as_ref()).await, 404, 102);
    }
    node.want(
        node.ask(&bob.token, "PATCH", "/v1/rooms/garden", Some(&json!({"public": true}))).await,
        403,
        103,
    );
    node.want(
        node.ask(&ann.token, "PATCH", "/v1/rooms/garden", Some(&json!({"public": true}))).await,
        200,
        0,
    );
    node.want(node.ask(&eve.token, "GET", "/v1/rooms/garden/messages", None).await, 403, 123);
    let joined = node.want(node.ask(&eve.token, "POST", "/v1/rooms/garden/join", None).await, 200, 0);
    assert_eq!(joined["role"], json!("member"));

    let role = format!("/v1/rooms/garden/members/{}/role", bob.user);
    node.want(node.ask(&ann.token, "PUT", &role, Some(&json!({"role": "admin"}))).await, 200, 0);
    let remove = format!("/v1/rooms/garden/members/{}", eve.user);
    node.want(node.ask(&bob.token, "DELETE", &remove, None).await, 200, 0);
    let members = node.want(node.ask(&ann.token, "GET", "/v1/rooms/garden/members", None).await, 200, 0);
    assert_eq!(members["count"], json!(2), "{members}");
    let say = json!({"room": "garden", "client_msg_id": "e2", "text": "x"});
    node.want(node.ask(&eve.token, "POST", "/v1/messages", Some(&say)).await, 403, 123);
    let add = json!({"users": [eve.user]});
    node.want(node.ask(&bob.token, "POST", "/v1/rooms/garden/members", Some(&add)).await, 200, 0);
    let add = json!({"users": [eve.user, "nobody"]});
    node.want(node.ask(&bob.token, "POST", "/v1/rooms/garden/members", Some(&add)).await, 404, 122);

    node.want(node.ask(&eve.token, "POST", "/v1/rooms/garden/leave", None).await, 200, 0);
    node.want(node.ask(&ann.token, "POST", "/v1/rooms/garden/leave", None).await, 403, 103);
    node.end().await;
}

#[tokio::test]
async fn the_list_of_rooms_is_read_page_by_page() {
    let node = node();
    let (ann, bob) = (node.person("ann").await, node.person("bob").await);
    for name in ["a", "b", "c", "d"] {
        let make = json!({"kind": "group", "room": name, "name": name});
        node.want(node.ask(&ann.token, "POST", "/v1/rooms", Some(&make)).await, 201, 0);
    }
    let direct = json!({"kind": "direct", "members": [bob.user]});
    let made = node.want(node.ask(&ann.token, "POST", "/v1/rooms", Some(&direct)).await, 201, 0);
    assert_eq!((&made["peer"], &made["name"]), (&json!(bob.user), &json!("bob")), "{made}");
    let same = json!({"kind": "direct", "members": [ann.user]});
    let same = node.want(node.ask(&bob.token, "POST", "/v1/rooms", Some(&same)).await, 200, 0);
    assert_eq!((&same["room"], &same["peer"]), (&made["room"], &json!(ann.user)));

    let (mut after, mut seen) = (String::new(), Vec::new());
    for _ in 0..5 {
        let path = format!("/v1/rooms?limit=2{after}");
        let page = node.want(node.ask(&ann.token, "GET", &path, None).await, 200, 0);
        seen.extend(
            page["rooms"].as_array().unwrap().iter().map(|room| room["room"].as_str().unwrap().to_owned()),
        );
        if page["more"] == json!(false) {
            break;
        }
        after = format!("&after={}", seen.last().unwrap());
    }
    assert_eq!(seen, ["a", "b", "c", "d", made["room"].as_str().unwrap()]);
    let bobs = node.want(node.ask(&bob.token, "GET", "/v1/rooms", None).await, 200, 0);
    assert_eq!((bobs["rooms"].as_array().unwrap().len(), &bobs["rooms"][0]["kind"]), (1, &json!("direct")));
    node.end().await;
}
