//! Links between gateways and nodes, and the connections of clients: bytes and messages in order, until they break.
//!
//! Owns: what is on the way. Always holds: what arrives on one life of a link or connection arrives in the order in which it
//! was sent and without holes, but that pages, in order among themselves, may come later; a life that is over never comes
//! back.
//! Does not: know what is in a message, nor who must be told: the world asks and tells.

use std::collections::VecDeque;

use banyan_proto::link::{FromShard, LinkId, ToShard};

use crate::schedule::Time;

/// Towards the node, or towards the gateway: what is live, or pages of pulls on their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    Up = 0,
    Down = 1,
    /// Towards the gateway. What was sent later on [`Way::Down`] may overtake it; it overtakes nothing.
    Pages = 2,
}

impl Way {
    const ALL: [Self; 3] = [Self::Up, Self::Down, Self::Pages];

    pub const fn is_up(self) -> bool {
        matches!(self, Self::Up)
    }
}

/// A batch on a link. The lane tells the gateway's worker (0) from its backend (1): each is a link of its own to the node.
#[derive(Debug)]
pub enum Batch {
    ToShard { lane: u8, messages: Vec<ToShard> },
    FromShard { lane: u8, messages: Vec<FromShard> },
}

/// One connection between a gateway and a node, life after life.
#[derive(Debug, Default)]
pub struct Link {
    /// Number of its life; what belongs to an earlier one is void.
    pub life: u32,
    /// Whether each end believes that it is there: the gateway's, the node's.
    pub gateway_end: bool,
    pub node_end: bool,
    pub gateway_run: u32,
    pub node_run: u32,
    /// A connect is under way.
    pub connecting: bool,
    pub cut: [bool; 2],
    /// With the number of each batch, as sent.
    queues: [VecDeque<(u64, Batch)>; 3],
    sent: u64,
    /// Arrivals that a cut holds back.
    owed: [u32; 3],
    last_at: [Time; 3],
    /// The node was told that the link is full, by lane.
    pub full: [bool; 2],
}

impl Link {
    pub fn begin(&mut self, gateway_run: u32, node_run: u32) -> u32 {
        self.end();
        self.gateway_end = true;
        self.node_end = true;
        (self.gateway_run, self.node_run) = (gateway_run, node_run);
        self.life
    }

    /// What was on it is gone.
    pub fn end(&mut self) {
        self.life += 1;
        self.gateway_end = false;
        self.node_end = false;
        for way in Way::ALL {
            self.queues[way as usize].clear();
            self.owed[way as usize] = 0;
        }
        self.full = [false; 2];
    }

    /// How the node's worker knows an end of this life: never used again in a run.
    pub const fn id(&self, gateway: u8, lane: u8) -> LinkId {
        LinkId(self.life << 4 | (gateway as u32) << 1 | lane as u32)
    }

    /// Which gateway's end that is, and which of its lanes.
    pub const fn end_of(link: LinkId) -> (u8, u8) {
        ((link.0 >> 1 & 7) as u8, (link.0 & 1) as u8)
    }

    /// Puts a batch on its way; when it will arrive.
    pub fn put(&mut self, way: Way, batch: Batch, at: Time) -> Time {
        let before = if way == Way::Pages { self.last_at[Way::Down as usize] } else { 0 };
        let way = way as usize;
        self.sent += 1;
        self.queues[way].push_back((self.sent, batch));
        self.last_at[way] = self.last_at[way].max(at).max(before);
        self.last_at[way]
    }

    /// Nothing goes through this way.
    pub const fn is_cut(&self, way: Way) -> bool {
        self.cut[!way.is_up() as usize]
    }

    /// Something has got as far as the cut.
    pub const fn owe(&mut self, way: Way) {
        self.owed[way as usize] += 1;
    }

    /// What arrives now that the cut is mended, and how often.
    pub fn take_owed(&mut self) -> [(Way, u32); 3] {
        Way::ALL.map(|way| (way, std::mem::take(&mut self.owed[way as usize])))
    }

    /// Whether the first of these was sent before the first of those.
    pub fn is_before(&self, way: Way, other: Way) -> bool {
        let first = |way: Way| self.queues[way as usize].front().map(|(number, _)| *number);
        first(way).zip(first(other)).is_some_and(|(one, other)| one < other)
    }

    /// Everything on the way.
    pub fn on_the_way(&self) -> usize {
        Way::ALL.into_iter().map(|way| self.waiting(way)).sum()
    }

    pub fn take(&mut self, way: Way) -> Option<Batch> {
        self.queues[way as usize].pop_front().map(|(_, batch)| batch)
    }

    pub fn waiting(&self, way: Way) -> usize {
        self.queues[way as usize].len()
    }

    /// Batches on [`Way::Pages`] that hold a page: that there is none takes next to no space. The bound between processes is
    /// in bytes, so refusals must not keep out the page that is asked for next.
    pub fn pages_waiting(&self) -> usize {
        let is_page = |message: &FromShard| matches!(message, FromShard::Page { page: Ok(_), .. });
        let holds_page = |batch: &Batch| match batch {
            Batch::FromShard { messages, .. } => messages.iter().any(is_page),
            Batch::ToShard { .. } => false,
        };
        self.queues[Way::Pages as usize].iter().filter(|(_, batch)| holds_page(batch)).count()
    }
}

/// A client's connection.
#[derive(Debug)]
pub struct Tcp {
    pub client: u16,
    pub gateway: u8,
    pub gateway_run: u32,
    /// Its number in the gateway's core, once accepted.
    pub index: Option<u32>,
    /// Number in the history.
    pub number: u32,
    pub client_open: bool,
    pub gateway_open: bool,
    /// Nothing goes through towards the gateway, towards the client.
    pub cut: [bool; 2],
    up: VecDeque<Vec<u8>>,
    down: VecDeque<u8>,
    /// Bytes that have arrived at the client's socket and are not read.
    pub arrived: usize,
    /// Bytes that the gateway may put into the socket before it is full.
    pub capacity: usize,
    /// The gateway was told that it is full.
    pub full: bool,
    pub slow: bool,
    /// Arrivals at the gateway that it does not read for now.
    pub paused: u32,
    pub owed: [u32; 2],
    pub last_at: [Time; 2],
    /// Bytes put since the last arrival was planned.
    fresh: usize,
    arrivals: VecDeque<usize>,
}

impl Tcp {
    pub fn new(client: u16, gateway: u8, gateway_run: u32, number: u32, capacity: usize) -> Self {
        Self {
            client,
            gateway,
            gateway_run,
            index: None,
            number,
            client_open: true,
            gateway_open: true,
            cut: [false; 2],
            up: VecDeque::new(),
            down: VecDeque::new(),
            arrived: 0,
            capacity,
            full: false,
            slow: false,
            paused: 0,
            owed: [0; 2],
            last_at: [0; 2],
            fresh: 0,
            arrivals: VecDeque::new(),
        }
    }

    /// From the client; when it arrives, not before what was sent earlier.
    pub fn put_up(&mut self, bytes: Vec<u8>, at: Time) -> Time {
        self.up.push_back(bytes);
        self.last_at[0] = self.last_at[0].max(at);
        self.last_at[0]
    }

    pub fn take_up(&mut self) -> Option<Vec<u8>> {
        self.up.pop_front()
    }

    /// From the gateway: as much as the socket takes.
    pub fn put_down(&mut self, bytes: &[u8]) -> usize {
        let space = self.capacity.saturating_sub(self.down.len());
        let taken = space.min(bytes.len());
        self.down.extend(&bytes[..taken]);
        self.fresh += taken;
        self.full = taken < bytes.len();
        taken
    }

    /// Plans the arrival of what was put since the last time.
    pub fn ship(&mut self, at: Time) -> Option<Time> {
        if self.fresh == 0 {
            return None;
        }
        self.arrivals.push_back(std::mem::take(&mut self.fresh));
        self.last_at[1] = self.last_at[1].max(at);
        Some(self.last_at[1])
    }

    pub fn arrive_down(&mut self) {
        self.arrived += self.arrivals.pop_front().unwrap_or_default();
    }

    /// The client reads at most so many bytes.
    pub fn read_down(&mut self, most: usize, into: &mut Vec<u8>) {
        let count = self.arrived.min(most);
        into.extend(self.down.drain(..count));
        self.arrived -= count;
    }
}

#[cfg(test)]
mod tests {
    use banyan_proto::codes::Code;
    use banyan_proto::id::{Epoch, RoomId, Seq};
    use banyan_proto::link::{Page, Ticket};

    use super::*;

    #[test]
    fn a_socket_takes_what_it_has_space_for() {
        let mut tcp = Tcp::new(0, 0, 0, 0, 10);
        assert_eq!(tcp.put_down(&[1; 8]), 8);
        assert!(!tcp.full);
        assert_eq!(tcp.put_down(&[2; 8]), 2);
        assert!(tcp.full);
        assert_eq!(tcp.ship(5), Some(5));
        assert_eq!(tcp.ship(6), None);
        let mut read = Vec::new();
        tcp.read_down(100, &mut read);
        assert!(read.is_empty());
        tcp.arrive_down();
        tcp.read_down(4, &mut read);
        tcp.read_down(100, &mut read);
        assert_eq!(read, [1, 1, 1, 1, 1, 1, 1, 1, 2, 2]);
        assert_eq!(tcp.put_down(&[3; 10]), 10);
    }

    #[test]
    fn a_link_keeps_its_order_and_forgets_with_its_life() {
        let mut link = Link::default();
        let life = link.begin(1, 1);
        assert_eq!(link.put(Way::Up, Batch::ToShard { lane: 0, messages: Vec::new() }, 9), 9);
        assert_eq!(link.put(Way::Up, Batch::ToShard { lane: 1, messages: Vec::new() }, 5), 9);
        assert!(matches!(link.take(Way::Up), Some(Batch::ToShard { lane: 0, .. })));
        assert_eq!(link.put(Way::Down, Batch::FromShard { lane: 0, messages: Vec::new() }, 20), 20);
        assert_eq!(link.put(Way::Pages, Batch::FromShard { lane: 0, messages: Vec::new() }, 12), 20);
        assert_eq!(link.put(Way::Pages, Batch::FromShard { lane: 0, messages: Vec::new() }, 30), 30);
        assert_eq!(link.put(Way::Down, Batch::FromShard { lane: 0, messages: Vec::new() }, 22), 22);
        assert!(link.is_before(Way::Down, Way::Pages));
        assert!(link.take(Way::Down).is_some() && link.is_before(Way::Pages, Way::Down));
        assert_eq!(link.on_the_way(), 4);
        link.end();
        assert!(link.take(Way::Up).is_none() && link.on_the_way() == 0 && link.life > life);
    }

    #[test]
    fn a_refused_page_takes_no_space() {
        let batch = |is_taken: bool| {
            let page = if is_taken {
                Ok(Page { events: Vec::new(), head: Seq(9), n: 9, floor: Seq(0), more: false })
            } else {
                Err(Code::Overloaded.error("too many pages wait"))
            };
            let room = RoomId::parse("room").unwrap();
            Batch::FromShard {
                lane: 0,
                messages: vec![FromShard::Page { ticket: Ticket(1), room, epoch: Epoch(1), page }],
            }
        };
        let mut link = Link::default();
        link.begin(1, 1);
        for is_taken in [true, false, true, false] {
            link.put(Way::Pages, batch(is_taken), 1);
        }
        assert_eq!((link.pages_waiting(), link.waiting(Way::Pages)), (2, 4));
        link.take(Way::Pages);
        link.take(Way::Pages);
        link.take(Way::Pages);
        assert_eq!((link.pages_waiting(), link.waiting(Way::Pages)), (0, 1));
    }
}
