//! `banyan healthcheck`: asks a node's ops port whether it is ready. One HTTP/1.1 request over a plain socket, no runtime.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::failure::{Exit, Failure, words};
use crate::output::print;

/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

pub(crate) fn run(address: SocketAddr, deadline: Duration) -> Result<(), Failure> {
    let address = reachable(address);
    let answer = ask(address, deadline).map_err(|error| {
        let why = match error.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock => {
                format!("no answer within {}", crate::config::duration_text(deadline))
            }
            _ => words(&error),
        };
        let failure = Failure::new(Exit::No, format!("cannot ask http://{address}/readyz: {why}"));
        failure.with_hint("is the node running, and is this its ops address (--ops-listen)?")
    })?;
    let (status, body) = read_answer(&answer).ok_or_else(|| {
        let failure = Failure::new(Exit::No, format!("http://{address}/readyz is not answered by HTTP"));
        failure.with_hint("something else listens there: is this the node's ops address (--ops-listen)?")
    })?;
    if status != 200 {
        let body: String = body.trim().chars().filter(|c| !c.is_control()).take(200).collect();
        return Err(Failure::new(
            Exit::No,
            format!("not ready: http://{address}/readyz says {status} {body}"),
        ));
    }
    print(&format!("{}\n", body.trim()))
}

/// A node that listens on all addresses is asked on this machine's own.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn ask(address: SocketAddr, deadline: Duration) -> io::Result<Vec<u8>> {
    #[expect(clippy::disallowed_methods, reason = "a command of its own: nobody above has a clock to pass")]
    let begun = Instant::now();
    let left =
        || deadline.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()).ok_or(ErrorKind::TimedOut);
    let mut stream = TcpStream::connect_timeout(&address, deadline)?;
    stream.set_write_timeout(Some(left()?))?;
    stream.write_all(
        format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while answer.len() < ANSWER_BYTES_MAX {
        // Anew before each read: an answer that trickles must not outlast the deadline.
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut buffer)? {
            0 => break,
            read => answer.extend_from_slice(&buffer[..read]),
        }
    }
    Ok(answer)
}

/// The status and the body of an answer.
fn read_answer(answer: &[u8]) -> Option<(u16, String)> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut words = head.lines().next()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    Some((words.next()?.parse().ok()?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[track_caller]
    fn check(answer: &'static [u8], want: Result<(), &str>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _request = stream.read(&mut [0; 1024]).unwrap();
            stream.write_all(answer).unwrap();
        });
        let got = run(address, Duration::from_secs(5));
        server.join().unwrap();
        match want {
            Ok(()) => assert_eq!(got, Ok(())),
            Err(words) => {
                let failure = got.unwrap_err();
                assert_eq!(failure.exit, Exit::No);
                assert!(failure.lines[0].contains(words), "{failure}");
            }
        }
    }

    #[test]
    fn understands_answers() {
        check(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", Ok(()));
        check(
            b"HTTP/1.1 503 Service Unavailable\r\n\r\n{\"status\":\"draining\"}\n",
            Err("says 503 {\"status\":\"draining\"}"),
        );
        check(b"SSH-2.0-OpenSSH\r\n\r\n", Err("is not answered by HTTP"));
        check(b"", Err("is not answered by HTTP"));
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let failure = run(listener.local_addr().unwrap(), Duration::from_millis(100)).unwrap_err();
        assert!(failure.lines[0].ends_with("no answer within 100ms"), "{failure}");
    }

    #[test]
    fn asks_this_machine_for_a_node_on_all_addresses() {
        for (given, want) in
            [("0.0.0.0:9", "127.0.0.1:9"), ("[::]:9", "[::1]:9"), ("10.0.0.1:9", "10.0.0.1:9")]
        {
            assert_eq!(reachable(given.parse().unwrap()), want.parse().unwrap());
        }
    }
}
