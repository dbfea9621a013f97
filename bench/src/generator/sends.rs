//! Many connections that send, each with one in flight: the store, end to end.

use anyhow::{bail, ensure};
use banyan_proto::v1::server_frame::Body;

use super::{Generator, Reply, put_send};
use crate::clock::now_ns;
use crate::control::Sends;
use crate::stats::Latencies;

#[derive(Debug)]
struct Sender {
    /// What it is waiting for: place of the room among its cursors, and when it was sent.
    flying: Option<(usize, u64)>,
    next: usize,
}

#[derive(Debug)]
pub(super) struct Sending {
    /// By connection; those that do not send have none.
    senders: Vec<Option<Sender>>,
    payload: usize,
    started_ns: u64,
    ends_ns: u64,
    acked: u64,
    flying: u64,
    latencies: Latencies,
    frame: Vec<u8>,
}

impl Sending {
    pub(super) fn new(generator: &mut Generator, sends: &Sends) -> anyhow::Result<Self> {
        let started_ns = now_ns();
        let mut sending = Self {
            senders: generator.connections.iter().map(|_| None).collect(),
            payload: sends.payload,
            started_ns,
            ends_ns: started_ns + (sends.seconds * 1e9) as u64,
            acked: 0,
            flying: 0,
            latencies: Latencies::new(),
            frame: Vec::new(),
        };
        for &connection in &sends.connections {
            let cursors = &generator.connection(connection)?.subscriptions;
            ensure!(
                !cursors.is_empty() && cursors.iter().all(|cursor| cursor.live),
                "connection {connection} has no live room"
            );
            match &mut sending.senders[connection as usize] {
                Some(_) => bail!("connection {connection} is named twice"),
                sender => *sender = Some(Sender { flying: None, next: 0 }),
            }
        }
        for &connection in &sends.connections {
            sending.send(generator, connection as usize);
        }
        Ok(sending)
    }

    pub(super) fn describe(&self) -> String {
        format!("{} acked, {} in flight", self.acked, self.flying)
    }

    fn send(&mut self, generator: &mut Generator, index: usize) {
        let Some(Some(sender)) = self.senders.get_mut(index) else { return };
        let connection = &mut generator.connections[index];
        let place = sender.next % connection.subscriptions.len();
        let (room, since) =
            (connection.subscriptions[place].room, connection.subscriptions[place].expected - 1);
        let id = connection.take_id();
        let sent_ns = now_ns();
        sender.next = place + 1;
        sender.flying = Some((place, sent_ns));
        self.flying += 1;
        put_send(&mut self.frame, id, &generator.rooms[room as usize].name, since, self.payload, sent_ns);
        generator.send(index, &self.frame);
    }

    pub(super) fn reply(&mut self, generator: &mut Generator, index: usize, body: &Body) {
        let flying =
            self.senders.get_mut(index).and_then(Option::as_mut).and_then(|sender| sender.flying.take());
        let (Some((place, sent_ns)), Body::Send(ack)) = (flying, body) else {
            return generator.violation(format!("connection {index}: a send was answered {body:?}"));
        };
        self.flying -= 1;
        self.acked += 1;
        self.latencies.record_ns(generator.now_ns.saturating_sub(sent_ns));
        let room = generator.connections[index].subscriptions[place].room;
        if ack.duplicate {
            return generator.violation(format!(
                "connection {index}: a first send was called a duplicate of {}",
                ack.seq
            ));
        }
        generator.ack_in_place(index, room, ack.seq);
        if generator.now_ns < self.ends_ns {
            self.send(generator, index);
        }
    }

    pub(super) fn advance(&self, generator: &Generator) -> anyhow::Result<Option<Reply>> {
        if self.flying > 0 || generator.now_ns < self.ends_ns {
            return Ok(None);
        }
        let seconds = generator.now_ns.saturating_sub(self.started_ns) as f64 / 1e9;
        Ok(Some(Reply::Sent { acked: self.acked, seconds, latencies: self.latencies.pack() }))
    }
}
