//! Rows that take seconds: silence, half a frame, slow heads, tokens that end. They run beside all others.

use crate::bench::Want;
use crate::wire::{Got, Wire, answer, frame, header, text, upgrade};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// What came of a row.
#[derive(Debug)]
pub(crate) enum Came {
    Frames(Vec<Got>),
    Http(u16, Value),
}

pub(crate) type Row = (&'static str, Want, Came);

/// Starts them. `user`: a token for each that needs one; `short`: one that ends in a moment.
pub(crate) fn start(address: SocketAddr, users: [String; 5], short: String) -> JoinSet<Row> {
    let [half, bytewise, silent, deaf, writer] = users;
    let mut rows = JoinSet::new();
    rows.spawn(async move {
        let mut wire = Wire::open(address).await;
        ("no auth in time", Want::Close(3502), Came::Frames(vec![wire.closed().await]))
    });
    rows.spawn(async move {
        let mut wire = Wire::open(address).await;
        // Traffic is life, but no auth.
        let came = loop {
            wire.send(&frame(0x89, b"")).await;
            match wire.next().await {
                Got::Json(_) => sleep(Duration::from_millis(100)).await,
                end => break end,
            }
        };
        ("pings instead of auth", Want::Close(3502), Came::Frames(vec![came]))
    });
    rows.spawn(async move {
        let mut wire = Wire::open(address).await;
        wire.send(&text(r#"{"id":1,"auth":{"token":"x"#)[..10]).await;
        ("half an auth and silence", Want::Close(3502), Came::Frames(vec![wire.closed().await]))
    });
    rows.spawn(quiet(address, half, "half a frame and silence", header(0x81, 0x80, 1_000)));
    rows.spawn(quiet(address, bytewise, "half a header and silence", vec![0x81]));
    rows.spawn(quiet(address, silent, "no pong", Vec::new()));
    rows.spawn(never_reads(address, deaf, writer));
    rows.spawn(async move {
        let mut wire = Wire::login(address, &short).await;
        let told = wire.next().await;
        assert!(matches!(&told, Got::Json(push) if push["token_expiring"].is_object()), "{told:?}");
        ("a token ends", Want::Close(3002), Came::Frames(vec![wire.closed().await]))
    });
    let head = upgrade(address, "");
    rows.spawn(slow(address, "a head that never ends", head[..head.len() - 2].to_owned(), None));
    rows.spawn(slow(address, "a head byte by byte", head, Some(Duration::from_millis(20))));
    rows.spawn(slow(address, "a connection and silence", String::new(), None));
    rows
}

/// Authenticates, sends these bytes, and never answers a ping.
async fn quiet(address: SocketAddr, token: String, name: &'static str, bytes: Vec<u8>) -> Row {
    let mut wire = Wire::open_deaf(address, "banyan.v1.json", None).await;
    wire.listen(false);
    wire.send(&text(&json!({ "id": 1, "auth": { "token": token } }).to_string())).await;
    let reply = wire.reply(1).await.unwrap();
    assert!(reply["auth"].is_object(), "{reply}");
    wire.send(&bytes).await;
    (name, Want::Close(3012), Came::Frames(vec![wire.closed().await]))
}

/// Asks for much and reads nothing until its time is over.
async fn never_reads(address: SocketAddr, token: String, writer: String) -> Row {
    let name = "who never reads";
    let mut writer = Wire::login(address, &writer).await;
    let mut me = Wire::login(address, &token).await;
    let user = me.call("rooms", &json!({})).await;
    assert!(user.get("error").is_none(), "{user}");
    writer.call("create_room", &json!({ "room": "flood", "kind": "group", "public": true })).await;
    me.call("join", &json!({ "room": "flood" })).await;
    for number in 0..60 {
        let send = json!({ "room": "flood", "client_msg_id": number.to_string(), "text": "x".repeat(8_000) });
        let sent = writer.call("send", &send).await;
        assert!(sent["send"]["seq"].is_u64(), "{sent}");
    }
    let mut wire = Wire::open_deaf(address, "banyan.v1.json", Some(4_096)).await;
    wire.send(&text(&json!({ "id": 1, "auth": { "token": token } }).to_string())).await;
    for id in 2..20 {
        wire.send(&text(&json!({ "id": id, "history": { "room": "flood", "limit": 100 } }).to_string()))
            .await;
    }
    // Its time is a second, then two more until the close frame is given up.
    sleep(Duration::from_millis(2_200)).await;
    wire.listen(true);
    (name, Want::Close(3008), Came::Frames(vec![wire.closed().await]))
}

/// Sends a head, whole or byte by byte, and waits.
async fn slow(address: SocketAddr, name: &'static str, head: String, pause: Option<Duration>) -> Row {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    match pause {
        None => stream.write_all(head.as_bytes()).await.unwrap(),
        Some(pause) => {
            for byte in head.bytes() {
                if stream.write_all(&[byte]).await.is_err() {
                    break;
                }
                // Looked at before more is sent: what is sent after the end would take the answer away.
                if tokio::time::timeout(pause, stream.readable()).await.is_ok() {
                    break;
                }
            }
        }
    }
    let (status, body) = answer(stream).await;
    (name, Want::Http(408, 107), Came::Http(status, body))
}
