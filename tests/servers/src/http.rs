//! One GET, to ask a server on loopback how it is.
//!
//! Owns: as much of HTTP/1.0 as that takes. Does not: follow, reuse or encrypt anything.

use anyhow::{Context, ensure};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Metrics of a server are the longest answer.
const LONGEST: u64 = 8 * 1024 * 1024;

/// The body of a 200; anything else is an error.
pub(crate) async fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("no whole HTTP answer")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(status == "200", "{path} answered {status}: {}", body.trim());
    Ok(body.to_owned())
}
