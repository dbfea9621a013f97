//! An echo server around the gateway's own head parser and WebSocket codec, for Autobahn's cases (tests/autobahn/run.py).
//!
//! Blocking, a thread per connection: what is under test is the codec, not the worker. Only its limits are raised, for
//! the cases with messages of 16 MiB and with 65,536 fragments. It prints its address and serves until it is killed.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use banyan_gateway_core::head::{self, Parsed, Request};
use banyan_gateway_core::ws::{Accept, Decoder, Item, Limits, Opcode, encode};

const LIMITS: Limits = Limits { message_bytes: 64 << 20, fragments: 1 << 20, accept: Accept::Both };

/// The size of a worker's shared read buffer, so that messages are cut where the gateway would cut them.
const BUFFER_BYTES: usize = 64 * 1024;

fn main() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on {}", listener.local_addr()?)?;
    stdout.flush()?;
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || {
            if let Err(error) = serve(stream) {
                _ = writeln!(io::stderr(), "connection ended: {error}");
            }
        });
    }
    Ok(())
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let Some(early) = shake_hands(&mut stream)? else { return Ok(()) };
    let (mut decoder, mut buffer, mut out) = (Decoder::default(), vec![0; BUFFER_BYTES], Vec::new());
    buffer[..early.len()].copy_from_slice(&early);
    let mut filled = early.len();
    loop {
        let mut pos = 0;
        while let Some(item) = decoder.next(&mut buffer[..filled], &mut pos, &LIMITS) {
            match item {
                Item::Text(text) => encode::put_frame(&mut out, Opcode::Text, text.as_bytes()),
                Item::Binary(bytes) => encode::put_frame(&mut out, Opcode::Binary, &bytes),
                Item::Ping(bytes) => encode::put_frame(&mut out, Opcode::Pong, &bytes),
                Item::Pong => {}
                Item::Close { code, .. } => encode::put_close_reply(&mut out, code),
                Item::Error { close, reason } => encode::put_close(&mut out, close.number(), reason),
            }
        }
        stream.write_all(&out)?;
        out.clear();
        if decoder.has_ended() {
            return end(&mut stream, &mut buffer);
        }
        filled = stream.read(&mut buffer)?;
        if filled == 0 {
            return Ok(());
        }
    }
}

/// Reads until the client has closed too: to drop a socket with unread bytes would reset it, and could take the close
/// frame with it.
fn end(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
    while stream.read(buffer)? > 0 {}
    Ok(())
}

/// Answers the upgrade; the bytes that came behind it. `None`: refused.
fn shake_hands(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let limits = head::Limits::default();
    let (mut bytes, mut piece) = (Vec::new(), [0; 1024]);
    loop {
        let read = stream.read(&mut piece)?;
        if read == 0 {
            return Ok(None);
        }
        bytes.extend_from_slice(&piece[..read]);
        match head::parse(&bytes, &limits) {
            Parsed::Partial => {}
            Parsed::Complete { head_len, request: Request::Upgrade(upgrade) } => {
                stream.write_all(&upgrade.response())?;
                return Ok(Some(bytes[head_len..].to_vec()));
            }
            Parsed::Complete { request: Request::Other { .. }, .. } => {
                stream.write_all(&head::Refusal::UPGRADE_REQUIRED.response())?;
                return Ok(None);
            }
            Parsed::Bad(refusal) => {
                stream.write_all(&refusal.response())?;
                return Ok(None);
            }
        }
    }
}
