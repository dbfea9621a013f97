//! One client socket, plain or TLS, as the worker reads and writes it; and all of them as the core's [`Wire`].
//!
//! Sends go straight to the kernel. Of a TLS connection they go through rustls, which holds at most
//! [`TLS_BUFFER`] bytes that the kernel has not taken.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown};

use banyan_gateway_core::worker::{Sent, Wire};
use banyan_proto::id::UserId;
use mio::net::TcpStream;
use rustls::ServerConnection;

/// Ciphertext that may wait in front of a full socket.
pub(crate) const TLS_BUFFER: usize = 64 << 10;

/// Reads in which TLS may say nothing, before others get their turn: a client that sends empty records, faster than they
/// are taken, would keep the worker for itself. A record needs four or five.
const TLS_READS: usize = 64;
/// Reads of a socket that ends, to throw away what it still has.
const UNREAD_READS: usize = 4;

#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) stream: TcpStream,
    pub(crate) tls: Option<Box<ServerConnection>>,
    /// The client's true address, as it is counted.
    pub(crate) address: IpAddr,
    /// It has shown no token yet.
    pub(crate) unauthenticated: bool,
    /// Whose it is, as it is counted.
    pub(crate) user: Option<UserId>,
    /// The kernel has told that the client sends no more; what it has sent may not all be read.
    pub(crate) ending: bool,
}

impl Socket {
    /// Reads what is there. `Ok(0)`: the peer has ended. Interrupted: there is more, and nothing of it was data yet.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return (&self.stream).read(buffer) };
        // Before the upgrade nothing else goes on with a handshake that the kernel had no room for.
        flush_tls(tls, &mut self.stream)?;
        for _ in 0..TLS_READS {
            match tls.reader().read(buffer) {
                Ok(0) => return Ok(0),
                Ok(read) => return Ok(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let ended = tls.read_tls(&mut self.stream)? == 0;
            let state = tls.process_new_packets();
            // Alerts and handshake answers go out whatever came of it.
            flush_tls(tls, &mut self.stream)?;
            let state = state.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if ended && state.plaintext_bytes_to_read() == 0 {
                return Ok(0);
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return (&self.stream).write(bytes) };
        let mut taken = 0;
        // Fewer than offered must mean that the kernel is full: only then does it tell when it takes bytes again.
        while taken < bytes.len() && !tls.wants_write() {
            taken += tls.writer().write(&bytes[taken..])?;
            flush_tls(tls, &mut self.stream)?;
        }
        if taken == 0 && !bytes.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    /// The kernel takes bytes again: what TLS holds goes first. True when the core may go on.
    pub(crate) fn writable(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else { return Ok(true) };
        flush_tls(tls, &mut self.stream)?;
        Ok(!tls.wants_write())
    }

    /// Ends the connection; what the kernel has is still sent, what has come is thrown away. True when the other side
    /// has ended too.
    pub(crate) fn end(&mut self, scratch: &mut [u8]) -> bool {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            drop(flush_tls(tls, &mut self.stream));
        }
        drop(self.stream.shutdown(Shutdown::Write));
        for _ in 0..UNREAD_READS {
            match (&self.stream).read(scratch) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
        false
    }
}

fn flush_tls(tls: &mut ServerConnection, stream: &mut TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        match tls.write_tls(stream) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Every upgraded socket of the worker, by the index of its connection in the core.
#[derive(Debug, Default)]
pub(crate) struct Sockets(Vec<Option<Socket>>);

impl Sockets {
    pub(crate) fn put(&mut self, index: u32, socket: Socket) {
        let index = index as usize;
        if index >= self.0.len() {
            self.0.resize_with(index + 1, || None);
        }
        self.0[index] = Some(socket);
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut Socket> {
        self.0.get_mut(index as usize)?.as_mut()
    }

    pub(crate) fn take(&mut self, index: u32) -> Option<Socket> {
        self.0.get_mut(index as usize)?.take()
    }
}

impl Wire for Sockets {
    fn send(&mut self, connection: u32, bytes: &[u8]) -> Sent {
        let Some(socket) = self.get_mut(connection) else { return Sent::Broken };
        loop {
            match socket.write(bytes) {
                Ok(sent) => return Sent::Bytes(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Sent::Full,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Sent::Broken,
            }
        }
    }
}
