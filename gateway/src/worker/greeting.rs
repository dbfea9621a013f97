//! A socket before its upgrade: PROXY header, TLS handshake, request head. It has a deadline and a bounded buffer, and
//! ends as a WebSocket connection, as a connection for the HTTP runtime, or with a refusal.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use banyan_gateway_core::forwarded::{IpNet, client_addr};
use banyan_gateway_core::head::{self, Origins, Refusal, Request, Subprotocol};
use banyan_gateway_core::proxy;
use banyan_proto::frame::Format;
use rustls::ServerConnection;

use super::socket::Socket;

/// What decides about a new connection.
#[derive(Debug, Clone)]
pub struct Door {
    /// Every connection begins with a PROXY protocol v2 header.
    pub proxy_protocol: bool,
    /// Who may say that somebody else is the client (`X-Forwarded-For`, PROXY header).
    pub trusted_proxies: Vec<IpNet>,
    pub origins: Origins,
    pub head: head::Limits,
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

#[derive(Debug)]
pub(crate) struct Greeting {
    pub(crate) socket: Socket,
    pub(crate) peer: SocketAddr,
    /// In the worker's milliseconds.
    pub(crate) deadline: u64,
    proxied: bool,
    secured: bool,
    buffer: Vec<u8>,
}

/// How a greeting goes on.
#[derive(Debug)]
pub(crate) enum Next {
    Wait,
    /// It ended or broke.
    Gone,
    Refuse(Refusal),
    Upgrade {
        format: Format,
        response: Vec<u8>,
        client: IpAddr,
        /// Frames that came with the head.
        rest: Vec<u8>,
    },
    /// For the HTTP runtime, with everything read so far.
    Http {
        client: IpAddr,
        prefix: Vec<u8>,
    },
}

impl Greeting {
    pub(crate) fn new(socket: Socket, peer: SocketAddr, deadline: u64, door: &Door) -> Self {
        let (proxied, secured) = (!door.proxy_protocol, door.tls.is_none());
        Self { socket, peer, deadline, proxied, secured, buffer: Vec::new() }
    }

    /// The socket has something to read. `scratch` is the worker's read buffer.
    pub(crate) fn readable(&mut self, door: &Door, scratch: &mut [u8]) -> Next {
        loop {
            let most = door.head.bytes + proxy::HEADER_MAX;
            let room = if self.proxied && self.secured {
                scratch.len()
            } else {
                proxy::HEADER_MAX.min(scratch.len())
            };
            // A PROXY header stands before TLS: not one byte of what follows may be read with it.
            let read = if self.proxied || self.secured {
                self.socket.read(&mut scratch[..room])
            } else {
                self.peek_proxy(scratch)
            };
            match read {
                Ok(0) => return Next::Gone,
                Ok(read) => self.buffer.extend_from_slice(&scratch[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Next::Wait,
                // Of TLS: much came and nothing of it is a request.
                Err(error) if error.kind() == io::ErrorKind::Interrupted && self.socket.tls.is_none() => {
                    continue;
                }
                Err(_) => return Next::Gone,
            }
            match self.judge(door) {
                Next::Wait if self.buffer.len() >= most => return Next::Refuse(Refusal::HEAD_TOO_LARGE),
                Next::Wait => {}
                next => return next,
            }
        }
    }

    /// Reads exactly a PROXY header (or what is left of one that came in pieces), which TLS bytes may follow.
    fn peek_proxy(&mut self, scratch: &mut [u8]) -> io::Result<usize> {
        let had = self.buffer.len();
        scratch[..had].copy_from_slice(&self.buffer);
        let seen = self.socket.stream.peek(&mut scratch[had..had + proxy::HEADER_MAX])?;
        let taken = match proxy::parse(&scratch[..had + seen]) {
            proxy::Parsed::Complete { len, .. } => len - had,
            // What is wrong or too short shows in the same way when it is read.
            proxy::Parsed::Partial | proxy::Parsed::Bad(_) => seen,
        };
        self.socket.read(&mut scratch[..taken])
    }

    fn judge(&mut self, door: &Door) -> Next {
        if !self.proxied {
            match proxy::parse(&self.buffer) {
                proxy::Parsed::Partial => return Next::Wait,
                proxy::Parsed::Bad(error) => {
                    tracing::debug!(peer = %self.peer, %error, "no PROXY header");
                    return Next::Gone;
                }
                proxy::Parsed::Complete { len, source } => {
                    self.buffer.drain(..len);
                    self.proxied = true;
                    if let Some(source) = source
                        && is_trusted(self.peer.ip(), door)
                    {
                        self.peer = source;
                    }
                    if let Some(config) = door.tls.as_ref().filter(|_| !self.secured) {
                        return self.secure(config);
                    }
                }
            }
        }
        if !self.secured {
            return Next::Wait;
        }
        let (head_len, request) = match head::parse(&self.buffer, &door.head) {
            head::Parsed::Partial => return Next::Wait,
            head::Parsed::Bad(refusal) => return Next::Refuse(refusal),
            head::Parsed::Complete { head_len, request } => (head_len, request),
        };
        match request {
            Request::Upgrade(upgrade) => {
                if !door.origins.allow(upgrade.origin, upgrade.host) {
                    return Next::Refuse(Refusal::ORIGIN_NOT_ALLOWED);
                }
                let client = client_addr(self.peer.ip(), &upgrade.forwarded_for, &door.trusted_proxies);
                let format = match upgrade.subprotocol {
                    Some(Subprotocol::Proto) => Format::Proto,
                    Some(Subprotocol::Json) | None => Format::Json,
                };
                let response = upgrade.response();
                Next::Upgrade { format, response, client, rest: self.buffer[head_len..].to_vec() }
            }
            // Its X-Forwarded-For is read by the HTTP runtime, per request.
            Request::Other { .. } => Next::Http { client: self.peer.ip(), prefix: self.buffer.clone() },
        }
    }

    /// Begins TLS.
    pub(crate) fn secure(&mut self, config: &Arc<rustls::ServerConfig>) -> Next {
        match ServerConnection::new(Arc::clone(config)) {
            Ok(mut tls) => {
                tls.set_buffer_limit(Some(super::socket::TLS_BUFFER));
                self.socket.tls = Some(Box::new(tls));
                self.secured = true;
                Next::Wait
            }
            Err(error) => {
                tracing::warn!(%error, "cannot begin TLS");
                Next::Gone
            }
        }
    }
}

fn is_trusted(peer: IpAddr, door: &Door) -> bool {
    peer.to_canonical().is_loopback() || door.trusted_proxies.iter().any(|net| net.contains(peer))
}
