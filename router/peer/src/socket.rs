//! A connection that remembers how it ended: what HTTP/2 says of it does not tell a cut from a silence.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::why::Why;

/// How a connection ended, if it did: [`Why::Reset`] for the end of the stream too.
pub(crate) type Ended = Arc<OnceLock<Why>>;

/// TCP, or TLS over it.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

pub(crate) struct Watched {
    inner: Box<dyn Socket>,
    ended: Ended,
}

/// Unsent bytes that the kernel takes before it says that the socket is full: what is live waits behind no more of what
/// is bulk.
const UNSENT: u32 = 256 << 10;

pub(crate) fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    socket2::SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT)
}

impl Watched {
    pub(crate) fn new(inner: impl Socket + 'static) -> (Self, Ended) {
        let ended = Ended::default();
        (Self { inner: Box::new(inner), ended: Arc::clone(&ended) }, ended)
    }

    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| {
            self.ended.get_or_init(|| Why::of_io(error));
        })
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let result = ready!(Pin::new(&mut self.inner).poll_read(cx, into));
        if result.is_ok() && into.filled().len() == before && into.remaining() > 0 {
            self.ended.get_or_init(|| Why::Reset);
        }
        Poll::Ready(self.note(result))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.inner).poll_write(cx, bytes));
        Poll::Ready(self.note(result))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, bytes));
        Poll::Ready(self.note(result))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Dials each address of a name in turn.
pub(crate) async fn dial(address: &str) -> Result<TcpStream, Why> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(address)
        .await
        .map_err(|error| Why::Unreachable(format!("{address}: {error}")))?
        .collect();
    let mut last = Why::Unreachable(format!("{address}: the name has no address"));
    let mut all_refused = true;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => {
                last = match Why::of_io(&error) {
                    Why::Unreachable(words) => Why::Unreachable(format!("{address}: {words}")),
                    why => why,
                };
                all_refused &= last == Why::Refused;
            }
        }
    }
    // One address that does not answer may be the one that lives.
    if last == Why::Refused && !all_refused {
        last = Why::Unreachable(format!("{address}: not every address refuses"));
    }
    Err(last)
}
