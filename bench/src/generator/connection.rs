//! One connection of a generator: its socket, what is half read or half written, and where its cursors must stand.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};

use mio::net::TcpStream;
use socket2::{Domain, Socket, Type};

use crate::codec::{self, Masks, Opcode};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// TCP is not open yet; a raw one is done with that.
    Connecting {
        raw: bool,
    },
    /// The upgrade was asked for with this key.
    Upgrading {
        key: String,
    },
    /// `auth` was sent.
    Authenticating,
    Open,
    /// Why it ended.
    Closed(String),
}

/// A cursor as the server must have it.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) room: u32,
    pub(super) live: bool,
    /// The seq that the next event (or own reply) must have.
    pub(super) expected: u64,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) phase: Phase,
    pub(super) user: String,
    pub(super) token: String,
    pub(super) subscriptions: Vec<Subscription>,
    pub(super) next_id: u64,
    pub(super) in_flight: u32,
    pub(super) events: u64,
    /// Not read on purpose.
    pub(super) paused: bool,
    /// A frame of which only a part has come. Empty most of the time.
    pub(super) partial: Vec<u8>,
    /// A message of which only some fragments have come.
    pub(super) fragments: Option<Vec<u8>>,
    /// What the socket did not take.
    out: Vec<u8>,
}

impl Connection {
    /// Begins to connect.
    pub(super) fn start(
        server: SocketAddr,
        source: Ipv4Addr,
        receive_buffer: Option<usize>,
        user: &crate::control::User,
        raw: bool,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(server), Type::STREAM.nonblocking().cloexec(), None)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(bytes) = receive_buffer {
            // Before the handshake: the window that is offered there depends on it.
            socket.set_recv_buffer_size(bytes)?;
        }
        if server.is_ipv4() && server.ip().is_loopback() {
            socket.bind(&SocketAddr::from((source, 0)).into())?;
        }
        match socket.connect(&server.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        Ok(Self {
            stream: TcpStream::from_std(socket.into()),
            phase: Phase::Connecting { raw },
            user: user.user.clone(),
            token: user.token.clone(),
            subscriptions: Vec::new(),
            next_id: 1,
            in_flight: 0,
            events: 0,
            paused: false,
            partial: Vec::new(),
            fragments: None,
            out: Vec::new(),
        })
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// One read: `None` when nothing is there.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.stream.read(buffer) {
                Ok(length) => return Ok(Some(length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a command frame.
    pub(super) fn send_text(&mut self, text: &[u8], masks: &mut Masks) -> io::Result<()> {
        self.send_frame(Opcode::Text, text, masks)
    }

    pub(super) fn send_frame(&mut self, opcode: Opcode, payload: &[u8], masks: &mut Masks) -> io::Result<()> {
        codec::put_masked(&mut self.out, opcode, payload, masks.next());
        self.flush()
    }

    pub(super) fn send_plain(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.extend_from_slice(bytes);
        self.flush()
    }

    /// Writes what waits. What the socket does not take is written when it says that it is writable.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let mut written = 0;
        while written < self.out.len() {
            match self.stream.write(&self.out[written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => written += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if written == self.out.len() {
            self.out.clear();
        } else {
            self.out.drain(..written);
        }
        Ok(())
    }

    /// The id of the next command.
    pub(super) fn take_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.in_flight += 1;
        id
    }

    pub(super) fn subscription(&mut self, room: u32) -> Option<&mut Subscription> {
        self.subscriptions.iter_mut().find(|subscription| subscription.room == room)
    }
}
