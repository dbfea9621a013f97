//! How the server treats sockets themselves: whom it counts, how it lets go of them, and when it stops to listen.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use banyan_tests::server::{Server, binary};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

const UPGRADE: &[u8] =
    b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

async fn serve(dir: &Path, prepare: impl FnOnce(&mut Command)) -> Server {
    Server::start(&binary().unwrap(), &dir.join("data"), &dir.join("log"), prepare).await.unwrap()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A WebSocket, upgraded.
fn upgraded(address: SocketAddr) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(UPGRADE).unwrap();
    let head = read_until(&mut stream, b"\r\n\r\n");
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream
}

fn read_until(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut read = Vec::new();
    let mut byte = [0];
    while !read.ends_with(end) && stream.read(&mut byte).unwrap() > 0 {
        read.push(byte[0]);
    }
    read
}

/// A PROXY header (version 2) that says that the client is this IPv4 address.
fn proxy_header(client: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    header.extend_from_slice(&client);
    header.extend_from_slice(&[192, 0, 2, 1, 0x13, 0x88, 0x01, 0xbb]);
    header
}

#[tokio::test]
async fn http_of_a_trusted_proxy_does_not_count_as_one_client() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), |command| {
        command.env("BANYAN_GATEWAY__PROXY_PROTOCOL", "on");
        command.env("BANYAN_GATEWAY__TRUSTED_PROXIES", "10.0.0.0/8");
        command.env("BANYAN_LIMITS__CONNECTIONS_PER_IP", "1");
    });
    let server = server.await;
    let address = server.addresses.clients;
    // Kept alive, so that each stays counted where it is counted.
    let status = |client| {
        let mut stream = connect(address);
        stream.write_all(&proxy_header(client)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let line = read_until(&mut stream, b"\r\n");
        (stream, String::from_utf8(line).unwrap())
    };
    for (client, want) in [([192, 0, 2, 7], ["200", "429"]), ([10, 0, 0, 1], ["200", "200"])] {
        let (_first, first) = status(client);
        let (_second, second) = status(client);
        assert!(first.contains(want[0]) && second.contains(want[1]), "{client:?}: {first}{second}");
    }
}

#[tokio::test]
async fn the_last_words_are_not_overtaken_by_a_reset() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), |_| {}).await;
    let mut stream = upgraded(server.addresses.clients);
    // A message far above the limit, most of which the server never looks at.
    stream.write_all(b"\x81\xff\0\0\0\0\x01\0\0\0mask").unwrap();
    for _ in 0..8 {
        stream.write_all(&[b'x'; 32 << 10]).unwrap();
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer.first(), Some(&0x88), "a close frame: {answer:?}");
    // Still sending after that disturbs nobody.
    stream.write_all(&[b'x'; 1 << 10]).unwrap();
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
}

#[tokio::test]
async fn a_draining_server_does_not_listen() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = serve(dir.path(), |_| {}).await;
    let address = server.addresses.clients;
    // It does not answer the close frame: the server waits for two seconds.
    let _held = upgraded(address);
    kill_process(Pid::from_raw(server.id() as i32).unwrap(), Signal::TERM).unwrap();
    let begun = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => break,
            Ok(_) | Err(_) => assert!(begun.elapsed() < Duration::from_secs(20), "it still listens"),
        }
    }
    assert!(server.is_alive(), "it listened to the end");
}
