//! Connections that workers accepted and that are not WebSockets, on their way to the HTTP server.
//!
//! Always holds: what was admitted stays counted until the HTTP server is done with the connection.

use std::io::{self, Read as _, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::http::{Connection, Handle, Io, Stream};
use crate::worker::{Guard, Handover};

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
        if to.give(Connection { stream, prefix: prefix.into(), peer: client }).is_err() {
            metrics::counter!("banyan_gateway_refused_total", "status" => "503").increment(1);
        }
    }
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
