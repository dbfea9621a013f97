//! TLS by the node itself: the page and a WebSocket over one certificate, with PROXY headers in front where they are
//! asked for, and clear words about certificates that are none.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use banyan_tests::server::{Server, binary};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tungstenite::Message;
use tungstenite::client::IntoClientRequest as _;

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A certificate for localhost in `dir`, and a client that believes it.
fn certificate(dir: &Path) -> Arc<ClientConfig> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

/// A server with the certificate in `dir`.
async fn serve(dir: &Path, prepare: impl FnOnce(&mut Command)) -> Server {
    let with_certificate = |command: &mut Command| {
        command.arg("--tls-cert").arg(dir.join("cert.pem")).arg("--tls-key").arg(dir.join("key.pem"));
        prepare(command);
    };
    Server::start(&binary().unwrap(), &dir.join("data"), &dir.join("log"), with_certificate).await.unwrap()
}

fn connect(config: &Arc<ClientConfig>, address: SocketAddr, before: &[u8]) -> Tls {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(before).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), stream)
}

/// One request; the whole answer.
fn request(mut tls: Tls, head: &str, body: &str) -> String {
    write!(tls, "{head}\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n", body.len())
        .unwrap();
    write!(tls, "Content-Type: application/json\r\n\r\n{body}").unwrap();
    let mut answer = Vec::new();
    // The server ends with close_notify; without one this is an error.
    tls.read_to_end(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

/// The page, a signup, and a conversation with oneself.
fn everything_works(config: &Arc<ClientConfig>, address: SocketAddr, before: &[u8]) {
    let page = request(connect(config, address, before), "GET / HTTP/1.1", "");
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("<title>"), "{page}");
    // More than TLS holds at once for a socket.
    let script = request(connect(config, address, before), "GET /assets/app.js HTTP/1.1", "");
    assert!(script.len() > 70_000, "{} bytes", script.len());

    let account = r#"{"username":"tess","password":"correct horse battery"}"#;
    let signup = request(connect(config, address, before), "POST /v1/signup HTTP/1.1", account);
    let token = signup
        .split("\"token\":\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .unwrap_or_else(|| panic!("{signup}"));

    let upgrade = "wss://localhost/v1/ws".into_client_request().unwrap();
    let (mut socket, _) = tungstenite::client(upgrade, connect(config, address, before)).unwrap();
    let text = "x".repeat(8_000);
    for frame in [
        format!(r#"{{"id":1,"auth":{{"token":"{token}"}}}}"#),
        r#"{"id":2,"create_room":{"room":"tls","kind":"group"}}"#.to_owned(),
    ] {
        socket.send(Message::text(frame)).unwrap();
    }
    // What follows a `create_room` may overtake it.
    while !socket.read().unwrap().into_text().unwrap().contains("\"create_room\"") {}
    let subscribe = r#"{"id":3,"subscribe":{"rooms":[{"room":"tls","after":0}]}}"#;
    socket.send(Message::text(subscribe)).unwrap();
    for number in 0..60 {
        let send = format!(
            r#"{{"id":{},"send":{{"room":"tls","client_msg_id":"{number}","text":"{text}"}}}}"#,
            number + 10
        );
        socket.send(Message::text(send)).unwrap();
    }
    let mut acked = 0;
    while acked < 60 {
        let Message::Text(frame) = socket.read().unwrap() else { continue };
        let frame: serde_json::Value = serde_json::from_str(&frame).unwrap();
        assert!(frame.get("error").is_none(), "{frame}");
        if let Some(sent) = frame.get("send") {
            acked += 1;
            assert_eq!(sent["seq"], acked + 1);
        }
    }
    // What was sent comes back, larger than any buffer on the way.
    socket.send(Message::text(r#"{"id":5,"history":{"room":"tls","limit":50}}"#)).unwrap();
    loop {
        let Message::Text(frame) = socket.read().unwrap() else { continue };
        let frame: serde_json::Value = serde_json::from_str(&frame).unwrap();
        if let Some(history) = frame.get("history") {
            assert_eq!(history["events"].as_array().unwrap().len(), 50);
            assert!(
                history["events"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|event| event["message"]["text"] == text.as_str())
            );
            break;
        }
    }
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
}

#[tokio::test]
async fn page_and_socket_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let config = certificate(dir.path());
    let server = serve(dir.path(), |_| {}).await;
    let address = server.addresses.clients;
    tokio::task::spawn_blocking(move || everything_works(&config, address, b"")).await.unwrap();

    // Plain HTTP on a TLS port ends at once and disturbs nobody.
    let mut plain = TcpStream::connect(address).unwrap();
    plain.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    drop(plain.read_to_end(&mut answer));
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[tokio::test]
async fn a_proxy_header_stands_before_tls() {
    let dir = tempfile::tempdir().unwrap();
    let config = certificate(dir.path());
    let server = serve(dir.path(), |command| {
        command.env("BANYAN_GATEWAY__PROXY_PROTOCOL", "on");
        command.env("BANYAN_GATEWAY__TRUSTED_PROXIES", "127.0.0.0/8");
    });
    let server = server.await;
    let address = server.addresses.clients;
    // Version 2, PROXY, TCP over IPv4, 12 bytes: 192.0.2.7:5000 to 192.0.2.1:443.
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    header.extend_from_slice(&[192, 0, 2, 7, 192, 0, 2, 1, 0x13, 0x88, 0x01, 0xbb]);
    tokio::task::spawn_blocking(move || {
        everything_works(&config, address, &header);
        // In two pieces, the second of which comes together with the TLS hello.
        let (first, second) = header.split_at(20);
        let mut tls = connect(&config, address, first);
        tls.sock.set_nodelay(true).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let mut hello = second.to_vec();
        tls.conn.write_tls(&mut hello).unwrap();
        tls.sock.write_all(&hello).unwrap();
        let page = request(tls, "GET / HTTP/1.1", "");
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    })
    .await
    .unwrap();
}

#[test]
fn what_is_no_certificate_is_told() {
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path());
    let serve = |cert: &str, key: &str| {
        let mut command = Command::new(binary().unwrap());
        command.args(["serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--data-dir"]);
        command.arg(dir.path().join("data")).arg("--tls-cert").arg(dir.path().join(cert));
        command.arg("--tls-key").arg(dir.path().join(key));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BANYAN_"))
        {
            command.env_remove(name);
        }
        let ended = command.output().unwrap();
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    };
    for (cert, key, exit, words) in [
        ("missing.pem", "key.pem", 74, "missing.pem"),
        ("cert.pem", "missing.pem", 74, "missing.pem"),
        ("key.pem", "key.pem", 64, "no certificate"),
    ] {
        let (code, told) = serve(cert, key);
        assert_eq!(code, Some(exit), "{told}");
        assert!(told.contains(words) && told.contains("hint:") && told.lines().count() == 2, "{told}");
    }
}
