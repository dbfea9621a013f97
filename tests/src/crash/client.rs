//! One client connection over JSON, and sign-up over HTTP: no more than the crash test needs.
//!
//! Owns: the socket, the `auth` at its beginning, request ids.
//! Always holds: no wait without an end ([`PATIENCE`], or the caller's own).
//! Does not: share code with the server, so that both cannot be wrong in the same way.

use anyhow::{Context, anyhow, bail, ensure};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tungstenite::Message;
use tungstenite::client::IntoClientRequest;

/// How long one step may take before the connection is given up.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A connection after a good `auth`.
#[derive(Debug)]
pub struct Connection {
    socket: WebSocketStream<TcpStream>,
    next_id: u64,
    patience: Duration,
    /// Sends per second that the server allows.
    pub sends_per_s: f64,
}

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectError {
    /// The server is away, or went away meanwhile.
    Away(anyhow::Error),
    /// It refused the token.
    Refused(String),
}

impl Connection {
    /// Connects and authenticates.
    pub async fn open(address: SocketAddr, token: &str) -> Result<Self, ConnectError> {
        Self::open_within(PATIENCE, address, token).await
    }

    /// The same, where every step may take `patience`.
    pub async fn open_within(
        patience: Duration,
        address: SocketAddr,
        token: &str,
    ) -> Result<Self, ConnectError> {
        let opened = tokio::time::timeout(patience, Self::open_socket(patience, address)).await;
        let mut connection = opened
            .map_err(|_| ConnectError::Away(anyhow!("connecting took too long")))?
            .map_err(ConnectError::Away)?;
        let reply = connection.call("auth", &json!({ "token": token, "client": "crash-test" })).await;
        let reply = reply.map_err(ConnectError::Away)?;
        if let Some(error) = reply.get("error") {
            // 100, 108 and 112 say "later"; everything else is about the token.
            return match error["code"].as_u64() {
                Some(100 | 108 | 111 | 112) => Err(ConnectError::Away(anyhow!("auth: {error}"))),
                _ => Err(ConnectError::Refused(error.to_string())),
            };
        }
        connection.sends_per_s = reply["auth"]["limits"]["sends_per_s"].as_f64().unwrap_or(10.0).max(1.0);
        Ok(connection)
    }

    async fn open_socket(patience: Duration, address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut request = format!("ws://{address}/v1/ws").into_client_request()?;
        request.headers_mut().insert("sec-websocket-protocol", "banyan.v1.json".parse()?);
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await?;
        Ok(Self { socket, next_id: 1, patience, sends_per_s: 0.0 })
    }

    /// The id of the next command.
    pub const fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Sends a command and gives its id.
    pub async fn ask(&mut self, command: &str, body: &Value) -> anyhow::Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let frame = json!({ "id": id, command: body });
        let send = futures_send(&mut self.socket, Message::text(frame.to_string()));
        tokio::time::timeout(self.patience, send).await.context("the server takes nothing")??;
        Ok(id)
    }

    /// The next frame, a reply or a push.
    pub async fn next(&mut self) -> anyhow::Result<Value> {
        loop {
            let frame = tokio::time::timeout(self.patience, futures_next(&mut self.socket)).await;
            match frame.context("the server says nothing")? {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text)?),
                Some(Ok(Message::Close(close))) => bail!("closed: {close:?}"),
                Some(Ok(Message::Binary(_))) => bail!("a binary frame on a JSON connection"),
                // tungstenite answers pings itself.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(e)) => return Err(e.into()),
                None => bail!("the connection ended"),
            }
        }
    }

    /// Sends a command and waits for its reply. Pushes meanwhile are dropped: for connections without subscriptions.
    pub async fn call(&mut self, command: &str, body: &Value) -> anyhow::Result<Value> {
        let id = self.ask(command, body).await?;
        loop {
            let frame = self.next().await?;
            if frame["id"].as_u64() == Some(id) {
                return Ok(frame);
            }
        }
    }
}

// The two halves of `Stream` and `Sink` that are needed, without a dependency on the futures crate's extension traits.
async fn futures_send(
    socket: &mut WebSocketStream<TcpStream>,
    message: Message,
) -> Result<(), tungstenite::Error> {
    use futures_util::SinkExt;
    socket.send(message).await
}

async fn futures_next(
    socket: &mut WebSocketStream<TcpStream>,
) -> Option<Result<Message, tungstenite::Error>> {
    use futures_util::StreamExt;
    socket.next().await
}

/// A user as `signup` made it.
#[derive(Debug, Clone)]
pub struct User {
    pub id: String,
    pub token: String,
}

/// The password of every user.
const PASSWORD: &str = "correct horse battery staple 7";

/// Signs a new user up.
pub async fn sign_up(address: SocketAddr, username: &str) -> anyhow::Result<User> {
    let user = come_in(address, "signup", 201, username).await?;
    let text =
        |name: &str| user[name].as_str().map(str::to_owned).with_context(|| format!("signup: no {name}"));
    Ok(User { id: text("user")?, token: text("token")? })
}

/// Logs a user in; when the token expires, in milliseconds since 1970.
pub async fn log_in(address: SocketAddr, username: &str) -> anyhow::Result<u64> {
    let user = come_in(address, "login", 200, username).await?;
    user["expires_at"].as_u64().context("login: no expires_at")
}

async fn come_in(address: SocketAddr, how: &str, good: u16, username: &str) -> anyhow::Result<Value> {
    let body = json!({ "username": username, "password": PASSWORD }).to_string();
    let request = format!(
        "POST /v1/{how} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(64 * 1024).read_to_end(&mut answer).await?;
        anyhow::Ok(String::from_utf8(answer)?)
    };
    let answer = tokio::time::timeout(PATIENCE, exchange).await;
    let answer = answer.with_context(|| format!("{how} takes too long"))??;
    ensure!(
        answer.starts_with(&format!("HTTP/1.1 {good}")),
        "{how} of {username} was answered with:\n{answer}"
    );
    let json = answer.find('{').zip(answer.rfind('}')).and_then(|(from, to)| answer.get(from..=to));
    Ok(serde_json::from_str(json.with_context(|| format!("{how} was answered without JSON"))?)?)
}
