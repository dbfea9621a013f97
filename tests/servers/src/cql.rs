//! As much of the CQL binary protocol as it takes to see that a node serves.
//!
//! Owns: three requests on a connection of their own. Does not: know values, paging, errors in detail.

use anyhow::{Context, bail, ensure};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Protocol version 4, which every server that we know speaks.
const VERSION: u8 = 4;

const STARTUP: u8 = 0x01;
const READY: u8 = 0x02;
const AUTHENTICATE: u8 = 0x03;
const QUERY: u8 = 0x07;
const RESULT: u8 = 0x08;
const ERROR: u8 = 0x00;

/// Consistency ALL: every replica must answer.
const ALL: u16 = 0x0005;

/// No answer to our requests is longer.
const LONGEST: u32 = 1 << 20;

/// Whether the node at `address` accepts clients and, when `statement` is given, answers it with all replicas.
pub(crate) async fn serves(address: SocketAddr, statement: Option<&str>) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    let mut options = Vec::from(1_u16.to_be_bytes()); // a map of one
    for word in ["CQL_VERSION", "3.0.0"] {
        options.extend(u16::try_from(word.len())?.to_be_bytes());
        options.extend(word.as_bytes());
    }
    match request(&mut stream, STARTUP, &options).await? {
        READY => {}
        AUTHENTICATE => bail!("it wants a user's name and password"),
        other => bail!("it answered STARTUP with opcode {other}"),
    }
    let Some(statement) = statement else { return Ok(()) };
    let mut body = Vec::from(u32::try_from(statement.len())?.to_be_bytes());
    body.extend(statement.as_bytes());
    body.extend(ALL.to_be_bytes());
    body.push(0); // no flags
    let opcode = request(&mut stream, QUERY, &body).await?;
    ensure!(opcode == RESULT, "it answered QUERY with opcode {opcode}");
    Ok(())
}

/// Sends one request and reads its answer; gives the opcode.
async fn request(stream: &mut TcpStream, opcode: u8, body: &[u8]) -> anyhow::Result<u8> {
    let mut frame = vec![VERSION, 0, 0, 0, opcode];
    frame.extend(u32::try_from(body.len())?.to_be_bytes());
    frame.extend(body);
    stream.write_all(&frame).await?;
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    let [_, _, _, _, opcode, length @ ..] = head;
    let length = u32::from_be_bytes(length);
    ensure!(length <= LONGEST, "an answer of {length} bytes");
    let mut answer = vec![0; length as usize];
    stream.read_exact(&mut answer).await?;
    if opcode == ERROR {
        // A code of four bytes, then a text with its length in two.
        bail!("{}", String::from_utf8_lossy(answer.get(6..).unwrap_or_default()));
    }
    Ok(opcode)
}
