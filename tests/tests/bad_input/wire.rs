//! A client that can do everything wrong: bytes and frames as the test wants them.
//!
//! Owns: one socket, a task that reads it and answers pings. Shares no code with the server.
//! Always holds: no wait without an end ([`PATIENCE`]).

use serde_json::{Value, json};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// How long any answer may take; a busy machine included.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Frames that may wait to be looked at.
const QUEUE: usize = 1 << 16;

/// What the server said.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Got {
    Json(Value),
    Binary(Vec<u8>),
    /// 0: without a code.
    Close(u16),
    /// The connection ended, or said nothing for [`PATIENCE`].
    End(&'static str),
}

#[derive(Debug)]
pub(crate) struct Wire {
    write: Arc<Mutex<OwnedWriteHalf>>,
    /// Until [`Wire::listen`].
    deaf: Option<(OwnedReadHalf, Vec<u8>)>,
    said: mpsc::Receiver<Got>,
    /// Ends with the wire, and the socket with it.
    listener: Option<AbortHandle>,
    pub(crate) next_id: u64,
}

/// A frame of a client, masked; `first` is its first byte.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [7, 130, 0, 255];
    let mut bytes = header(first, 0x80, payload.len() as u64);
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// First bytes of a frame, up to its mask.
pub(crate) fn header(first: u8, masked: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        0..126 => bytes.push(masked | length as u8),
        126..65_536 => {
            bytes.push(masked | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(masked | 127);
            bytes.extend(length.to_be_bytes());
        }
    }
    bytes
}

pub(crate) fn text(payload: &str) -> Vec<u8> {
    frame(0x81, payload.as_bytes())
}

/// An upgrade; `more` are header lines, each with its end.
pub(crate) fn upgrade(address: SocketAddr, more: &str) -> String {
    format!(
        "GET /v1/ws HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
    )
}

impl Wire {
    /// Upgraded, reading and answering pings, not authenticated.
    pub(crate) async fn open(address: SocketAddr) -> Self {
        Self::open_as(address, "banyan.v1.json").await
    }

    pub(crate) async fn open_as(address: SocketAddr, subprotocol: &str) -> Self {
        let mut wire = Self::open_deaf(address, subprotocol, None).await;
        wire.listen(true);
        wire
    }

    /// Upgraded; nothing is read until [`Wire::listen`]. `window`: bytes that the kernel takes for it meanwhile.
    pub(crate) async fn open_deaf(address: SocketAddr, subprotocol: &str, window: Option<u32>) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        if let Some(window) = window {
            socket.set_recv_buffer_size(window).unwrap();
        }
        let mut stream = timeout(PATIENCE, socket.connect(address)).await.unwrap().unwrap();
        stream.set_nodelay(true).unwrap();
        let head = upgrade(address, &format!("Sec-WebSocket-Protocol: {subprotocol}\r\n"));
        stream.write_all(head.as_bytes()).await.unwrap();
        Self::upgraded(stream).await
    }

    /// A socket on which an upgrade has been asked for; reads and answers pings.
    pub(crate) async fn adopt(stream: TcpStream) -> Self {
        let mut wire = Self::upgraded(stream).await;
        wire.listen(true);
        wire
    }

    async fn upgraded(mut stream: TcpStream) -> Self {
        let mut answer = Vec::new();
        let end = loop {
            if let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            let read = timeout(PATIENCE, stream.read_buf(&mut answer)).await.unwrap().unwrap();
            assert_ne!(read, 0, "the upgrade was refused: {}", String::from_utf8_lossy(&answer));
        };
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let rest = answer.split_off(end);
        let (read, write) = stream.into_split();
        let (_, said) = mpsc::channel(1);
        Self {
            write: Arc::new(Mutex::new(write)),
            deaf: Some((read, rest)),
            said,
            listener: None,
            next_id: 1,
        }
    }

    /// Begins to read; `pongs`: answers pings.
    pub(crate) fn listen(&mut self, pongs: bool) {
        let Some((read, rest)) = self.deaf.take() else { return };
        let (say, said) = mpsc::channel(QUEUE);
        self.said = said;
        let listener = tokio::spawn(listen(read, rest, pongs.then(|| Arc::clone(&self.write)), say));
        self.listener = Some(listener.abort_handle());
    }

    /// Authenticated as the user of this token.
    pub(crate) async fn login(address: SocketAddr, token: &str) -> Self {
        let mut wire = Self::open(address).await;
        let reply = wire.call("auth", &json!({ "token": token })).await;
        assert!(reply["auth"]["user"].is_string(), "{reply}");
        wire
    }

    /// As they are. A server that has hung up is no failure here: what it said before is what counts.
    pub(crate) async fn send(&self, bytes: &[u8]) {
        let mut write = self.write.lock().await;
        drop(timeout(PATIENCE, write.write_all(bytes)).await);
    }

    /// Sends a command and waits for its reply; pushes before it are dropped.
    pub(crate) async fn call(&mut self, command: &str, body: &Value) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        self.send(&text(&json!({ "id": id, command: body }).to_string())).await;
        self.reply(id).await.unwrap_or_else(|got| panic!("{command} {body}: {got:?}"))
    }

    /// The reply to this id. Err: the connection ended instead.
    pub(crate) async fn reply(&mut self, id: u64) -> Result<Value, Got> {
        loop {
            match self.next().await {
                Got::Json(value) if value["id"].as_u64() == Some(id) => return Ok(value),
                Got::Json(_) | Got::Binary(_) => {}
                end @ (Got::Close(_) | Got::End(_)) => return Err(end),
            }
        }
    }

    /// The replies to these ids, in whatever order they come.
    pub(crate) async fn replies(&mut self, ids: Range<u64>) -> Vec<Value> {
        let mut replies = Vec::new();
        while replies.len() < (ids.end - ids.start) as usize {
            match self.next().await {
                Got::Json(value) if value["id"].as_u64().is_some_and(|id| ids.contains(&id)) => {
                    replies.push(value);
                }
                Got::Json(_) | Got::Binary(_) => {}
                end => panic!("{} replies to {ids:?}, then {end:?}", replies.len()),
            }
        }
        replies
    }

    pub(crate) async fn next(&mut self) -> Got {
        match timeout(PATIENCE, self.said.recv()).await {
            Ok(Some(got)) => got,
            Ok(None) => Got::End("ended"),
            Err(_) => Got::End("silent"),
        }
    }

    /// Waits for the close frame.
    pub(crate) async fn closed(&mut self) -> Got {
        loop {
            match self.next().await {
                Got::Json(_) | Got::Binary(_) => {}
                end @ (Got::Close(_) | Got::End(_)) => return end,
            }
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
    }
}

async fn listen(
    mut read: OwnedReadHalf,
    rest: Vec<u8>,
    pongs: Option<Arc<Mutex<OwnedWriteHalf>>>,
    say: mpsc::Sender<Got>,
) {
    let mut buffer = rest;
    loop {
        while let Some((first, payload, length)) = whole_frame(&buffer) {
            let got = match first {
                0x81 => Got::Json(serde_json::from_slice(&payload).expect("the server speaks JSON")),
                0x82 => Got::Binary(payload),
                0x88 => Got::Close(payload.first_chunk().map_or(0, |code| u16::from_be_bytes(*code))),
                0x89 => {
                    if let Some(pongs) = &pongs {
                        drop(pongs.lock().await.write_all(&frame(0x8a, &payload)).await);
                    }
                    buffer.drain(..length);
                    continue;
                }
                0x8a => Got::Json(json!({ "pong": payload.len() })),
                _ => Got::End("a frame that no server sends"),
            };
            buffer.drain(..length);
            if say.send(got).await.is_err() {
                return;
            }
        }
        match read.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// First byte, payload and length of the first frame, once it is whole.
fn whole_frame(bytes: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    assert!(second < 128, "the server masks a frame");
    let (from, length) = match second {
        126 => (4, usize::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?))),
        127 => (10, u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?) as usize),
        length => (2, usize::from(length)),
    };
    Some((first, bytes.get(from..from + length)?.to_vec(), from + length))
}

/// Sends bytes on a fresh connection and reads until its end: status and body of the first answer.
/// Status 0: it ended without one.
pub(crate) async fn exchange(address: SocketAddr, bytes: &[u8]) -> (u16, Value) {
    let mut stream = timeout(PATIENCE, TcpStream::connect(address)).await.unwrap().unwrap();
    stream.set_nodelay(true).unwrap();
    // Who refuses early may not read the rest.
    drop(timeout(PATIENCE, stream.write_all(bytes)).await);
    answer(stream).await
}

/// Reads the answer, to the end of its body or of the connection.
pub(crate) async fn answer(mut stream: TcpStream) -> (u16, Value) {
    let mut answer = Vec::new();
    loop {
        if let Some(whole) = whole_answer(&answer) {
            return whole;
        }
        match timeout(PATIENCE, stream.read_buf(&mut answer)).await {
            Ok(Ok(1..)) => {}
            Ok(Ok(0) | Err(_)) | Err(_) => return (0, Value::Null),
        }
    }
}

fn whole_answer(answer: &[u8]) -> Option<(u16, Value)> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.get(9..12)?.parse().ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let body = body.get(..length.unwrap_or_default())?;
    Some((status, serde_json::from_str(body).unwrap_or_default()))
}

/// One HTTP request with a JSON body, if any.
pub(crate) async fn http(
    address: SocketAddr,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: Option<&str>,
) -> (u16, Value) {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    if let Some(token) = token {
        head += &format!("Authorization: Bearer {token}\r\n");
    }
    if let Some(body) = body {
        head += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    }
    exchange(address, format!("{head}\r\n{}", body.unwrap_or_default()).as_bytes()).await
}
