//! Connections that workers accepted and that are not WebSockets, on their way to the HTTP server.
//!
//! Always holds: what was admitted stays counted until the HTTP server is done with the connection.

use std::io::{self, Read as _, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::http::{Connection, Handle, Io, Stream};
use crate::worker::{Guard, Handover, TOO_MUCH_HTTP};

/// For the answer to a connection that there is no room for.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(1);

/// Carries connections over until the drain. Runs on the HTTP server's runtime.
pub async fn run(mut from: mpsc::Receiver<Handover>, to: Handle, drain: CancellationToken) {
    loop {
        let handover = tokio::select! {
            biased;
            () = drain.cancelled() => return,
            handover = from.recv() => handover,
        };
        let Some(Handover { stream, tls, prefix, client, guard }) = handover else { return };
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be handed over");
                continue;
            }
        };
        let stream: Box<dyn Io> = match tls {
            None => Box::new(Guarded { io: stream, _guard: guard }),
            Some(tls) => Box::new(Guarded { io: Tls { stream, tls }, _guard: guard }),
        };
        let stream = Stream::Other(stream);
        if let Err(connection) = to.give(Connection { stream, prefix: prefix.into(), peer: client }) {
            metrics::counter!("banyan_gateway_refused_total", "status" => "503").increment(1);
            if let Stream::Other(stream) = connection.stream {
                // As many at once as connections are admitted, each for a second at most.
                tokio::spawn(refuse(stream));
            }
        }
    }
}

/// Answers 503; what the client sends meanwhile is read, so that no reset overtakes the answer.
async fn refuse(mut stream: Box<dyn Io>) {
    let answer = async {
        stream.write_all(&TOO_MUCH_HTTP.response()).await?;
        stream.shutdown().await?;
        let mut scratch = [0; 1_024];
        while stream.read(&mut scratch).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    // Clients that are gone or slow have had their chance.
    drop(timeout(REFUSAL_DEADLINE, answer).await);
}

/// A stream that gives its place back when it is dropped.
#[derive(Debug)]
struct Guarded<T> {
    io: T,
    _guard: Guard,
}

impl<T: AsyncRead + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// A TLS session that a worker began, as a stream. The session's own buffers are bounded (see the worker's socket).
#[derive(Debug)]
struct Tls {
    stream: TcpStream,
    tls: Box<ServerConnection>,
}

impl Tls {
    /// Sends what the session has; pending while the socket is full.
    fn poll_out(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            ready!(self.stream.poll_write_ready(context))?;
            let Self { stream, tls } = self;
            match tls.write_tls(&mut Raw(stream)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The socket for rustls, which wants blocking traits: it is told WouldBlock, and tokio's readiness stays true.
struct Raw<'a>(&'a TcpStream);

impl io::Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl io::Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Tls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match self.tls.reader().read(buffer.initialize_unfilled()) {
                Ok(read) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            ready!(self.stream.poll_read_ready(context))?;
            let Self { stream, tls } = &mut *self;
            match tls.read_tls(&mut Raw(stream)) {
                // Without a close_notify the end may be a cut: hyper sees it as an end either way.
                Ok(0) => return Poll::Ready(Ok(())),
                Ok(_) => {
                    let state = tls.process_new_packets();
                    state.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Tls {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let taken = self.tls.writer().write(bytes)?;
            let out = self.poll_out(context)?;
            if taken > 0 || bytes.is_empty() {
                return Poll::Ready(Ok(taken));
            }
            ready!(out);
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_out(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tls.send_close_notify();
        ready!(self.poll_out(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_refused_connection_is_told_and_let_go() {
        let (mut client, server) = tokio::io::duplex(4_096);
        let refusing = tokio::spawn(refuse(Box::new(server)));
        client.write_all(b"POST / HTTP/1.1\r\n\r\nand a body").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("Retry-After"), "{answer}");
        // It does not end, and is not waited for.
        refusing.await.unwrap();
        assert!(client.write_all(b"more").await.is_err());
    }
}
