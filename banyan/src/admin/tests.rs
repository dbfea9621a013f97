//! The endpoints, without a network.

use banyan_proto::id::{Epoch, Incarnation, Tenure};
use http_body_util::BodyExt as _;
use serde_json::Value;

use super::*;

const TOKEN: &str = "0123456789abcdef";
const ADA: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

fn admin(token: Option<&str>) -> Admin {
    // The recorder of the process is another test's.
    let metrics = Metrics::not_installed();
    Admin::new(token.map(|token| Token::parse(token).unwrap()), metrics)
}

fn alone(token: Option<&str>) -> Admin {
    let admin = admin(token);
    let tenure = Tenure { epoch: Epoch(7), incarnation: Incarnation(1) };
    admin.show(Source::Alone { node: "node-1".to_owned(), address: "127.0.0.1:8000".to_owned(), tenure });
    admin
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

async fn ask(admin: &Admin, uri: &str, authorization: Option<&str>) -> Answer {
    let mut headers = HeaderMap::new();
    if let Some(authorization) = authorization {
        headers.insert(AUTHORIZATION, authorization.parse().unwrap());
    }
    let (head, body) = admin.answer(&uri.parse().unwrap(), &headers, ADA).await.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: String::from_utf8(body.to_vec()).unwrap(),
    }
}

async fn get(admin: &Admin, uri: &str) -> Answer {
    ask(admin, uri, Some(&format!("Bearer {TOKEN}"))).await
}

#[tokio::test]
async fn without_a_token_there_is_no_page_and_it_says_how_there_would_be() {
    let admin = alone(None);
    for path in ["/admin", "/admin/admin.js", "/admin/ring.json", "/admin/where?room=r", "/admin/x"] {
        let answer = get(&admin, path).await;
        assert_eq!(answer.status, 403, "{path}");
        assert!(answer.body.contains("server.admin_token_file"), "{}", answer.body);
    }
}

#[tokio::test]
async fn the_page_itself_is_no_secret_and_runs_nothing_of_others() {
    let admin = admin(Some(TOKEN));
    for (path, kind) in [
        ("/admin", "text/html; charset=utf-8"),
        ("/admin/", "text/html; charset=utf-8"),
        ("/admin/admin.js", "text/javascript; charset=utf-8"),
        ("/admin/admin.css", "text/css; charset=utf-8"),
        ("/admin/icon.svg", "image/svg+xml"),
    ] {
        let answer = ask(&admin, path, None).await;
        assert_eq!((answer.status, &answer.headers[CONTENT_TYPE]), (200, &kind.parse().unwrap()), "{path}");
        let policy = answer.headers[CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
        assert_eq!(answer.headers[X_CONTENT_TYPE_OPTIONS], "nosniff");
    }
    assert_eq!(ask(&admin, "/admin/app.js", None).await.status, 404);
}

#[tokio::test]
async fn what_it_shows_needs_the_token() {
    let admin = alone(Some(TOKEN));
    for authorization in [None, Some("Basic x"), Some(TOKEN), Some("bearer 0123456789abcdef")] {
        let answer = ask(&admin, "/admin/ring.json", authorization).await;
        assert_eq!((answer.status, &answer.headers[WWW_AUTHENTICATE]), (401, &"Bearer".parse().unwrap()));
        assert!(answer.body.contains("Authorization: Bearer TOKEN"), "{}", answer.body);
    }
    let answer = ask(&admin, "/admin/where?room=r", Some("Bearer 0123456789abcdeX")).await;
    assert_eq!(answer.status, 401);
    assert!(answer.body.contains("not the token"), "{}", answer.body);
    // Nor does it help in the address.
    assert_eq!(ask(&admin, &format!("/admin/ring.json?token={TOKEN}"), None).await.status, 401);
    assert_eq!(get(&admin, "/admin/ring.json").await.status, 200);
}

#[tokio::test]
async fn guessing_is_slow() {
    let admin = alone(Some(TOKEN));
    for _ in 0..100 {
        assert_eq!(ask(&admin, "/admin/ring.json", Some("Bearer of last year")).await.status, 401);
    }
    assert_eq!(get(&admin, "/admin/ring.json").await.status, 200, "the same again is no guess");
    for guess in 1..10 {
        assert_eq!(ask(&admin, "/admin/ring.json", Some(&format!("Bearer {guess}"))).await.status, 401);
    }
    let answer = get(&admin, "/admin/ring.json").await;
    assert_eq!(answer.status, 429, "not even the right one is looked at");
    let seconds: u64 = answer.headers[RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((1..=5).contains(&seconds), "{seconds}");
    let elsewhere = "10.0.0.2".parse().unwrap();
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, format!("Bearer {TOKEN}").parse().unwrap());
    let answer = admin.answer(&"/admin/ring.json".parse().unwrap(), &headers, elsewhere).await;
    assert_eq!(answer.status(), 200, "the operator elsewhere is not locked out");
}

#[tokio::test]
async fn a_node_that_is_alone_owns_every_slot() {
    let admin = alone(Some(TOKEN));
    let ring = get(&admin, "/admin/ring.json").await.json();
    assert_eq!(
        (&ring["cluster"], &ring["standing"], &ring["fresh"]),
        (&Value::Null, &json!("up"), &json!(true))
    );
    assert_eq!(
        (&ring["slot_count"], &ring["moving"], &ring["without_owner"]),
        (&json!(4096), &json!(0), &json!(0))
    );
    let owner = ring["slots"]["all"]["owner"].as_array().unwrap();
    assert!(owner.len() == 4096 && owner.iter().all(|owner| *owner == 0));
    let node = &ring["nodes"][0];
    assert_eq!((&node["node"], &node["owned"]), (&json!("node-1"), &json!(4096)));
    assert!(node["load"]["connections"].is_u64(), "{node}");
    let version = ring["version"].as_str().unwrap();
    let again = get(&admin, &format!("/admin/ring.json?since={version}")).await.json();
    assert_eq!(again["slots"], json!({"changed": []}));
}

#[tokio::test]
async fn a_room_is_found() {
    let admin = alone(Some(TOKEN));
    let found = get(&admin, "/admin/where?room=r%3A1").await.json();
    let slot = banyan_router::slot_of("r:1", banyan_router::SlotCount::DEFAULT).0;
    assert_eq!((&found["room"], &found["slot"]), (&json!("r:1"), &json!(slot)));
    assert_eq!((&found["owner"]["node"], &found["owner"]["epoch"]), (&json!("node-1"), &json!(7)));
    let found = get(&admin, "/admin/where?room=%7Eada").await.json();
    assert_eq!(found["slot"], json!(banyan_router::user_slot("ada", banyan_router::SlotCount::DEFAULT).0));
}

#[tokio::test]
async fn bad_questions_are_answered() {
    let admin = alone(Some(TOKEN));
    let long = format!("/admin/where?room={}", "r".repeat(200));
    let longer = format!("/admin/where?room={}", "r".repeat(600));
    for (uri, words) in [
        ("/admin/where", "which room?"),
        ("/admin/where?room=", "which room?"),
        ("/admin/where?room=a&room=b", "takes room=…, once"),
        ("/admin/where?rom=a", "takes room=…, once"),
        ("/admin/where?room=%ff", "no text of a query"),
        ("/admin/where?room=a%20b", "\"a b\": "),
        ("/admin/where?room=~", "\"~\": "),
        (&long, "128"),
        (&longer, "the query has 605 bytes: at most 512 are read"),
        ("/admin/ring.json?room=a", "takes since=…, once"),
    ] {
        let answer = get(&admin, uri).await;
        let said = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(answer.status == 400 && said.contains(words), "{uri}: {} {said}", answer.status);
    }
}

#[tokio::test]
async fn before_the_node_is_up_it_says_so() {
    let answer = get(&admin(Some(TOKEN)), "/admin/ring.json").await;
    assert_eq!(answer.status, 503);
    assert!(answer.json()["error"].as_str().unwrap().contains("the node starts"));
}
