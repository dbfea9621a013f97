//! A connection's bytes with the clocks that hyper does not have.
//!
//! Owns: the bytes that a worker had read before; the deadline of a request's head, which runs from its first byte
//! (hyper's own cannot tell a slow head from a connection that idles between two requests); the deadline of a write
//! that makes no progress. Always holds: past a deadline every read or write is an error, so the connection ends.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How often the connection has begun or ended to serve a request. Odd: one is being served, and what is read
/// meanwhile is no head.
#[derive(Debug, Clone)]
pub(super) struct Phase(Arc<AtomicU32>);

/// Serving until dropped.
#[derive(Debug)]
pub(super) struct Serving(Phase);

impl Phase {
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicU32::new(0)))
    }

    pub(super) fn begin(&self) -> Serving {
        self.0.fetch_add(1, Ordering::AcqRel);
        Serving(self.clone())
    }

    fn number(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::AcqRel);
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Deadlines {
    pub(super) head: Duration,
    pub(super) write: Duration,
}

/// See the module's text.
pub(super) struct Guard<S> {
    stream: S,
    prefix: Bytes,
    phase: Phase,
    deadlines: Deadlines,
    /// Set from a head's first byte, with the phase of that moment; a later phase means that the head came whole.
    head: Option<(u32, Pin<Box<Sleep>>)>,
    /// Set while the client takes nothing.
    write: Option<Pin<Box<Sleep>>>,
}

impl<S> Guard<S> {
    pub(super) fn new(stream: S, prefix: Bytes, phase: Phase, deadlines: Deadlines) -> Self {
        Self { stream, prefix, phase, deadlines, head: None, write: None }
    }

    /// An error once the head has taken too long.
    fn check_head(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some((begun_in, deadline)) = &mut self.head else { return Ok(()) };
        if *begun_in != self.phase.number() {
            self.head = None;
            return Ok(());
        }
        match deadline.as_mut().poll(cx) {
            Poll::Ready(()) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the request's head took too long"))
            }
            Poll::Pending => Ok(()),
        }
    }

    fn head_begins(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let phase = self.phase.number();
        if self.head.is_none() && phase.is_multiple_of(2) {
            self.head = Some((phase, Box::pin(sleep(self.deadlines.head))));
            return self.check_head(cx);
        }
        Ok(())
    }

    fn watch_write(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.write = None;
            return written;
        }
        let deadline = self.deadlines.write;
        let write = self.write.get_or_insert_with(|| Box::pin(sleep(deadline)));
        ready!(write.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes no bytes")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.check_head(cx)?;
        if this.prefix.has_remaining() {
            let taken = this.prefix.split_to(this.prefix.len().min(into.remaining()));
            into.put_slice(&taken);
            this.head_begins(cx)?;
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, into))?;
        if into.filled().len() > before {
            this.head_begins(cx)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch_write(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
