//! Below the commands: request heads, the upgrade, WebSocket frames. PROTOCOL.md's "Transport" and RFC 6455.

use crate::bench::{Bench, Want};
use crate::wire::{Got, Wire, exchange, frame, header, text, upgrade};
use Want::{Close, Http, Ok};
use serde_json::json;

pub(crate) async fn rows(bench: &mut Bench) {
    heads(bench).await;
    frames(bench).await;
    pipelined(bench).await;
    crowd(bench).await;
}

/// Heads that are refused before anything becomes a WebSocket.
async fn heads(bench: &mut Bench) {
    let good = upgrade(bench.address, "");
    let address = bench.address;
    let with = |line: &str| upgrade(address, line);
    let offer = |name: &str| with(&format!("Sec-WebSocket-Protocol: {name}\r\n"));
    let many: String = (0..100).map(|number| format!("X-{number}: y\r\n")).collect();
    for (name, head, want) in [
        ("only unknown subprotocols", offer("chat, banyan.v2.json"), Http(400, 107)),
        ("a subprotocol of another case", offer("BANYAN.V1.JSON"), Http(400, 107)),
        ("the origin of another site", with("Origin: https://evil.example\r\n"), Http(403, 103)),
        ("origin null", with("Origin: null\r\n"), Http(403, 103)),
        ("two origins", with("Origin: http://a\r\nOrigin: http://b\r\n"), Http(400, 107)),
        ("an upgrade by POST", good.replace("GET", "POST"), Http(405, 107)),
        ("an upgrade by HTTP/1.0", good.replace("HTTP/1.1", "HTTP/1.0"), Http(400, 107)),
        ("version 8", good.replace("Version: 13", "Version: 8"), Http(426, 107)),
        ("no key", good.replace("Sec-WebSocket-Key", "X-Key"), Http(400, 107)),
        ("a key that is none", good.replace("dGhlIHNhbXBsZSBub25jZQ==", "abc"), Http(400, 107)),
        ("no host", good.replace("Host:", "X-Host:"), Http(400, 107)),
        ("an upgrade with a body", with("Content-Length: 1\r\n"), Http(400, 107)),
        ("no upgrade at all", good.replace("Upgrade: websocket\r\n", ""), Http(426, 107)),
        ("a huge header", with(&format!("X: {}\r\n", "x".repeat(100_000))), Http(431, 106)),
        ("a hundred headers", with(&many), Http(431, 106)),
        ("a huge path", good.replace("/v1/ws", &format!("/{}", "x".repeat(100_000))), Http(431, 106)),
        ("no HTTP", "\u{16}\u{3}\u{1}\r\n\r\n".to_owned(), Http(400, 107)),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), Http(505, 107)),
        ("a folded header", good.replace("Upgrade: websocket", "Upgrade:\r\n websocket"), Http(400, 107)),
    ] {
        let answer = exchange(bench.address, head.as_bytes()).await;
        bench.http_row(name, want, answer).await;
    }
    // Our own page may connect, and who is no browser names no origin.
    let own = with(&format!("Origin: http://{}\r\n", bench.address));
    bench.http_row("the own origin", Http(101, 0), exchange(bench.address, own.as_bytes()).await).await;
    let alias = good.replace("/v1/ws", "/chat");
    bench.http_row("the alias", Http(101, 0), exchange(bench.address, alias.as_bytes()).await).await;
    // An upgrade that follows a request on its connection is told to come by itself.
    let second = format!("GET /v1/nowhere HTTP/1.1\r\nHost: {0}\r\n\r\n{good}", bench.address);
    let mut stream = tokio::net::TcpStream::connect(bench.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, second.as_bytes()).await.unwrap();
    let mut answers = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answers);
    tokio::time::timeout(crate::wire::PATIENCE, read).await.unwrap().unwrap();
    let answers = String::from_utf8(answers).unwrap();
    let told = |status: &str| answers.contains(&format!("HTTP/1.1 {status} "));
    if !(told("404") && told("426")) {
        bench.failures.push(format!("an upgrade behind another request: {answers}"));
    }
    bench.undisturbed("an upgrade behind another request").await;
}

/// Frames that break RFC 6455 or a limit.
async fn frames(bench: &mut Bench) {
    let ping = r#"{"id":1,"ping":{}}"#;
    let fragments = |count: usize, payload: &[u8]| -> Vec<u8> {
        let mut bytes = frame(0x01, payload);
        for _ in 2..count {
            bytes.extend(frame(0x00, b""));
        }
        bytes.extend(frame(0x80, b""));
        bytes
    };
    let joined = |parts: &[&[u8]]| parts.concat();
    let unmasked = joined(&[&header(0x81, 0, ping.len() as u64), ping.as_bytes()]);
    let close = |code: u16, reason: &[u8]| frame(0x88, &[&code.to_be_bytes(), reason].concat());
    let long_ping = text(&format!(r#"{{"id":1,"ping":{{"x":"{}"}}}}"#, "x".repeat(65_536 - 27)));
    let longer_ping = text(&format!(r#"{{"id":1,"ping":{{"x":"{}"}}}}"#, "x".repeat(65_536)));
    let rows: Vec<(&str, Vec<u8>, Want)> = vec![
        ("a frame without a mask", unmasked, Close(1002)),
        ("reserved bit 1", frame(0xc1, b"x"), Close(1002)),
        ("reserved bit 2", frame(0xa1, b"x"), Close(1002)),
        ("reserved bit 3", frame(0x91, b"x"), Close(1002)),
        ("opcode 3", frame(0x83, b"x"), Close(1002)),
        ("opcode 11", frame(0x8b, b"x"), Close(1002)),
        ("a ping in fragments", frame(0x09, b"x"), Close(1002)),
        ("a ping of 126 bytes", frame(0x89, &[0; 126]), Close(1002)),
        ("a continuation of nothing", frame(0x80, b"x"), Close(1002)),
        ("a message within a message", joined(&[&frame(0x01, b"{"), &text("x")]), Close(1002)),
        ("a close of one byte", frame(0x88, b"x"), Close(1002)),
        ("close code 1005", close(1005, b""), Close(1002)),
        ("close code 999", close(999, b""), Close(1002)),
        ("a length above 2^63", joined(&[&[0x81, 0xff], &[0xff; 8], &[0; 4]]), Close(1002)),
        ("binary on JSON", frame(0x82, ping.as_bytes()), Close(1003)),
        ("bad UTF-8", frame(0x81, b"{\"id\":1,\"\xff\":1}"), Close(1007)),
        (
            "bad UTF-8 over two fragments",
            joined(&[&frame(0x01, b"\xc3"), &frame(0x80, b"\x28")]),
            Close(1007),
        ),
        ("UTF-8 that ends too early", frame(0x81, b"\xe2\x82"), Close(1007)),
        ("bad UTF-8 in a close reason", close(1000, b"\xff"), Close(1007)),
        ("64 KiB", long_ping, Ok),
        ("above 64 KiB", longer_ping, Close(1009)),
        ("16 fragments", fragments(16, ping.as_bytes()), Ok),
        ("17 fragments", fragments(17, ping.as_bytes()), Close(1009)),
        ("10,000 fragments", fragments(10_000, ping.as_bytes()), Close(1009)),
        ("a length of 1 GiB", header(0x81, 0x80, 1 << 30), Close(1009)),
        ("a binary length of 1 GiB", header(0x82, 0x80, 1 << 30), Close(1003)),
        ("a goodbye", close(1000, b"bye"), Close(1000)),
        ("a goodbye with a code of its own", close(4999, b""), Close(4999)),
        ("a goodbye without a code", frame(0x88, b""), Close(0)),
    ];
    for (name, bytes, want) in rows {
        let mut wire = bench.login(5).await;
        wire.send(&bytes).await;
        let got = bench.outcome(&mut wire, 1, want).await;
        bench.row(name, want, &got).await;
    }
    let mut wire = Wire::open_as(bench.address, "banyan.v1.proto").await;
    wire.send(&text(ping)).await;
    let got = bench.outcome(&mut wire, 1, Close(1003)).await;
    bench.row("text on protobuf", Close(1003), &got).await;

    // Byte by byte, and with a ping between two fragments.
    let mut wire = bench.login(5).await;
    for byte in text(ping) {
        wire.send(&[byte]).await;
    }
    let got = bench.outcome(&mut wire, 1, Ok).await;
    bench.row("byte by byte", Ok, &got).await;
    let between = [frame(0x01, b"{\"id\":1,"), frame(0x89, b"p"), frame(0x80, b"\"ping\":{}}")].concat();
    wire.send(&between).await;
    let got = bench.outcome(&mut wire, 1, Ok).await;
    bench.row("a ping between two fragments", Ok, &got).await;
    // A flood that must be answered is read slowly, not for free.
    wire.send(&frame(0x89, b"flood").repeat(1_000)).await;
    wire.send(&text(ping)).await;
    let got = bench.outcome(&mut wire, 1, Ok).await;
    bench.row("a thousand pings", Ok, &got).await;
}

/// Bytes behind the head of an upgrade are frames.
async fn pipelined(bench: &mut Bench) {
    let auth = text(&json!({ "id": 1, "auth": { "token": bench.token(5) } }).to_string());
    let head = upgrade(bench.address, "");
    for (name, behind, want) in [
        ("auth behind the head", auth.as_slice(), Ok),
        ("an upgrade behind an upgrade", head.as_bytes(), Close(1002)),
    ] {
        let mut stream = tokio::net::TcpStream::connect(bench.address).await.unwrap();
        let bytes = [head.as_bytes(), behind].concat();
        tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes).await.unwrap();
        let mut wire = Wire::adopt(stream).await;
        let got = bench.outcome(&mut wire, 1, want).await;
        bench.row(name, want, &got).await;
    }
}

/// One connection more than a user may have.
async fn crowd(bench: &mut Bench) {
    let mut open = Vec::new();
    for _ in 0..crate::CONNECTIONS_PER_USER {
        open.push(bench.login(15).await);
    }
    let mut wire = Wire::open(bench.address).await;
    wire.send(&text(&json!({ "id": 1, "auth": { "token": bench.token(15) } }).to_string())).await;
    let got = wire.closed().await;
    bench.row("too many connections of a user", Close(3013), std::slice::from_ref(&got)).await;
    for mut wire in open {
        let reply = wire.call("ping", &json!({})).await;
        bench.row("those that were there", Ok, &[Got::Json(reply)]).await;
    }
}
