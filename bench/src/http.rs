//! The little HTTP that a bench needs: one GET of the server's ops port.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest answer that is read: `/metrics` of one node is a few hundred KiB.
const ANSWER_MAX: u64 = 16 << 20;

/// The status and body of `GET path`.
pub(crate) fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    // 1.0, so that the body ends with the connection and is never chunked.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nAccept: text/plain\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    parse(&String::from_utf8_lossy(&answer))
        .ok_or_else(|| io::Error::other(format!("{address}{path} did not answer HTTP")))
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// `/metrics` at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics(Vec<(String, f64)>);

impl Metrics {
    pub(crate) fn of(ops: SocketAddr) -> io::Result<Self> {
        match get(ops, "/metrics")? {
            (200, text) => Ok(Self::parse(&text)),
            (status, _) => Err(io::Error::other(format!("/metrics answered {status}"))),
        }
    }

    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let samples = lines.filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        });
        Self(samples.collect())
    }

    /// The sum over all series whose name (labels left out) is this; `None` when there is none.
    pub(crate) fn sum(&self, name: &str) -> Option<f64> {
        self.sum_where(|series| series.split('{').next() == Some(name))
    }

    /// The sum over all series that hold every one of these words, in name or labels.
    pub(crate) fn sum_of_words(&self, words: &[&str]) -> Option<f64> {
        self.sum_where(|series| words.iter().all(|word| series.contains(word)))
    }

    fn sum_where(&self, holds: impl Fn(&str) -> bool) -> Option<f64> {
        let mut values = self.0.iter().filter(|(series, _)| holds(series)).map(|(_, value)| value).peekable();
        values.peek()?;
        Some(values.sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        assert_eq!(
            parse("HTTP/1.0 200 OK\r\na: b\r\n\r\nbody\r\n\r\nmore"),
            Some((200, "body\r\n\r\nmore".to_owned()))
        );
        assert_eq!(parse("SSH-2.0"), None);
    }

    #[test]
    fn metrics() {
        let metrics = Metrics::parse(
            "# HELP x y\nx_total{code=\"3008\"} 2\nx_total{code=\"3000\"} 1\nx_total_more 9\nrows_sum 12.5\nempty\n",
        );
        assert_eq!(metrics.sum("x_total"), Some(3.0));
        assert_eq!(metrics.sum_of_words(&["x_total", "\"3008\""]), Some(2.0));
        assert_eq!((metrics.sum("rows_sum"), metrics.sum("nothing")), (Some(12.5), None));
    }
}
