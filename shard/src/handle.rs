//! The way to the workers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use banyan_proto::id::{Epoch, Incarnation, SlotId, Tenure};
use banyan_proto::link::{FromShard, LinkId, ToShardBatch};
use banyan_router::{SlotCount, slot_of, user_slot, worker_of};
use banyan_shard_core::room::HandedRoom;
use banyan_shard_core::worker::{Input, SlotOpening};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// What comes to a worker over the links, in order.
#[derive(Debug)]
pub(crate) enum Message {
    Batch(ToShardBatch),
    /// Nothing of the link follows.
    Gone(LinkId),
}

/// What a worker is told beside the links. It takes all that is there before it takes a [`Message`]: so who was told first
/// and sends then is known.
#[derive(Debug)]
pub(crate) enum Order {
    Slot(SlotId, SlotOrder),
    Opened { link: LinkId, sender: mpsc::Sender<Vec<FromShard>> },
}

/// What a slot's worker is told of its ownership (`banyan_router::slot_owner::Action`).
#[derive(Debug)]
pub enum SlotOrder {
    Serve {
        tenure: Tenure,
        opening: SlotOpening,
    },
    /// What the old owner passes on, made for this epoch. Before the `Serve` that uses it.
    Handed {
        epoch: Epoch,
        rooms: Vec<HandedRoom>,
    },
    /// Answered by a [`Drained`] with the same number.
    Drain {
        drain: u32,
    },
    Resume {
        tenure: Tenure,
    },
    Release {
        to: Option<Tenure>,
    },
    /// Whose it is, where it is not ours.
    Owner {
        epoch: Epoch,
        owner: Option<Incarnation>,
    },
}

impl SlotOrder {
    pub(crate) fn into_input(self, slot: SlotId) -> Input {
        match self {
            Self::Serve { tenure, opening } => Input::Serve { slot, tenure, opening },
            Self::Handed { epoch, rooms } => Input::Handed { slot, epoch, rooms },
            Self::Drain { drain } => Input::Drain { slot, drain },
            Self::Resume { tenure } => Input::Resume { slot, tenure },
            Self::Release { to } => Input::Release { slot, to },
            Self::Owner { epoch, owner } => Input::Owner { slot, epoch, owner },
        }
    }
}

/// Nothing is in flight for a slot and nothing more is said of it; the rooms are what its next owner may be handed.
#[derive(Debug)]
pub struct Drained {
    pub slot: SlotId,
    pub drain: u32,
    pub tenure: Tenure,
    pub rooms: Vec<HandedRoom>,
}

/// Sends batches to the owners of rooms and user channels. Cheap to clone.
#[derive(Clone)]
pub struct Handle(Arc<Workers>);

struct Workers {
    inboxes: Vec<mpsc::Sender<Message>>,
    orders: Vec<mpsc::Sender<Order>>,
    /// Set when a worker lets too many orders wait: it does not live, and its node must not go on as if it did.
    stalled: AtomicBool,
    /// When each worker had its last turn, in milliseconds since the workers were made.
    ticks: Vec<AtomicU64>,
    slots: SlotCount,
}

/// What one worker is given of its handle.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// Bound: `inbox_batches`; full: the sender keeps its batch.
    pub(crate) messages: mpsc::Receiver<Message>,
    /// Bound: [`ORDERS`] for each slot; full: the worker counts as stalled.
    pub(crate) orders: mpsc::Receiver<Order>,
}

/// Orders that may wait for each slot of a worker: two changes of owner and what was learned meanwhile. A worker takes all
/// of them in each turn.
const ORDERS: usize = 16;

impl Handle {
    pub(crate) fn new(workers: usize, inbox_batches: usize, slots: SlotCount) -> (Self, Vec<Inbox>) {
        let (mut inboxes, mut orders, mut received) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..workers {
            let (sender, messages) = mpsc::channel(inbox_batches);
            let of_worker = (slots.get() as usize).div_ceil(workers.max(1));
            let (order, ordered) = mpsc::channel(of_worker * ORDERS);
            inboxes.push(sender);
            orders.push(order);
            received.push(Inbox { messages, orders: ordered });
        }
        let ticks = (0..workers).map(|_| AtomicU64::new(0)).collect();
        (Self(Arc::new(Workers { inboxes, orders, stalled: AtomicBool::new(false), ticks, slots })), received)
    }

    pub fn workers(&self) -> usize {
        self.0.inboxes.len()
    }

    /// The worker that a slot falls to.
    pub fn worker_of_slot(&self, slot: SlotId) -> usize {
        worker_of(slot, self.workers())
    }

    /// The worker that owns a room.
    pub fn worker_of(&self, room: &str) -> usize {
        self.worker_of_slot(slot_of(room, self.0.slots))
    }

    /// The worker that owns a user's channel, and answers for the list of a user's rooms.
    pub fn worker_of_user(&self, user: &str) -> usize {
        self.worker_of_slot(self.user_slot(user))
    }

    pub(crate) fn user_slot(&self, user: &str) -> SlotId {
        user_slot(user, self.0.slots)
    }

    /// The slots that fall to a worker.
    pub(crate) fn slots_of(&self, worker: usize) -> impl Iterator<Item = SlotId> + use<> {
        // At most `SLOTS_MAX`, so each is a number that a slot can have.
        (worker..self.0.slots.get() as usize).step_by(self.workers().max(1)).map(|slot| SlotId(slot as u16))
    }

    /// Puts a batch into a worker's inbox. Comes back when the inbox is full, the worker has ended, or there is none
    /// with this number.
    pub fn try_send(&self, worker: usize, batch: ToShardBatch) -> Result<(), ToShardBatch> {
        let Some(inbox) = self.0.inboxes.get(worker) else { return Err(batch) };
        // Reserved first: a batch that finds no room is not moved.
        match inbox.try_reserve() {
            Ok(permit) => {
                permit.send(Message::Batch(batch));
                Ok(())
            }
            Err(_) => Err(batch),
        }
    }

    /// Tells every worker where what it says to a link goes: before anything of that link. The number must never have
    /// been used.
    pub fn open_link(&self, link: LinkId, sender: &mpsc::Sender<Vec<FromShard>>) {
        for worker in 0..self.workers() {
            self.order(worker, Order::Opened { link, sender: sender.clone() });
        }
    }

    fn order(&self, worker: usize, order: Order) {
        let Some(orders) = self.0.orders.get(worker) else { return };
        // A worker that has ended needs to know nothing.
        if let Err(TrySendError::Full(_)) = orders.try_send(order)
            && !self.0.stalled.swap(true, Ordering::Relaxed)
        {
            tracing::error!(worker, "a worker does not take what it is told: the run must end");
        }
    }

    /// A worker has not taken what it was told: what it serves is not what it should serve.
    pub fn is_stalled(&self) -> bool {
        self.0.stalled.load(Ordering::Relaxed)
    }

    /// Nobody is at the other end of a link any more.
    pub async fn link_gone(&self, link: LinkId) {
        for inbox in &self.0.inboxes {
            // A worker that has ended has forgotten everything.
            inbox.send(Message::Gone(link)).await.ok();
        }
    }

    /// Tells the worker of a slot what is to be done with it. In the order of the calls.
    pub fn slot(&self, slot: SlotId, order: SlotOrder) {
        self.order(self.worker_of_slot(slot), Order::Slot(slot, order));
    }

    pub(crate) fn ticked(&self, worker: usize, ms: u64) {
        if let Some(tick) = self.0.ticks.get(worker) {
            tick.store(ms, Ordering::Relaxed);
        }
    }

    /// When each worker had its last turn, in milliseconds since it began. One that stands still does not rise: its node
    /// must not be taken for alive.
    pub fn ticks(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.ticks.iter().map(|tick| tick.load(Ordering::Relaxed))
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("workers", &self.workers()).finish_non_exhaustive()
    }
}
