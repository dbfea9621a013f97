//! Commands that are no worker's business, carried out by asking the shards: everything that HTTP asks for, and what
//! WebSocket connections ask rarely (`rooms`, `find_user`, `create_room`, `add_members`).
//!
//! Owns: one link to the shards; which ticket belongs to which question. Always holds: every question is answered once,
//! by its answer, or by 108 at its deadline, when the server stops, or when its owner is lost and it may have changed
//! something; one that was not taken, or that changes nothing, is asked again; at most `in_flight` are open, the next is 112.
//! Does not: know HTTP or WebSocket, count sends against a rate, or subscribe to anything (what a shard pushes to this
//! link is dropped).

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banyan_gateway_core::command::{Checked, Create, NewRoom, resolve};
use banyan_proto::codes::Code;
use banyan_proto::direct;
use banyan_proto::id::{Origin, RoomId, UnixMs, UserId};
use banyan_proto::link::{
    Answer, FromShard, LinkId, Person, RoomCall, RoomCommand, Ticket, ToShard, ToShardBatch,
};
use banyan_proto::v1;
use banyan_proto::v1::server_frame::Body;
use metrics::{Counter, Gauge};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::accounts::Service;

/// When to come back to a full queue.
const RETRY_MS: u64 = 500;
/// When a question that its slot's owner did not take is asked again: less often the longer it has waited, a tenth of that
/// time.
const AGAIN: Duration = Duration::from_millis(10);
const AGAIN_MAX: Duration = Duration::from_millis(250);
/// Pages of a user's rooms that one `rooms` reads at most where all of a page have just been left.
const EMPTY_PAGES_MAX: usize = 8;

/// The way to the owners.
pub trait Shards: Send + Sync + fmt::Debug + 'static {
    /// To the owner of this room. Says over which link it went: [`Backend::link_lost`] names it.
    fn to_room(&self, room: &RoomId, batch: ToShardBatch) -> Result<u16, NotSent>;
    /// To the owner of this user's channel.
    fn to_user(&self, user: &UserId, batch: ToShardBatch) -> Result<u16, NotSent>;
}

/// Nobody has got it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotSent {
    /// The queue of the owner, or the way to it, is full.
    Full,
    /// The slot has no owner now, or there is no way to it.
    NoOwner,
}

#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The link that answers come back on; nobody else may use it.
    pub link: LinkId,
    /// Questions that may be open at once. A hundred bytes each.
    pub in_flight: usize,
    /// How long a question may take: what a send may take by the protocol.
    pub deadline: Duration,
}

impl Options {
    pub const fn new(link: LinkId) -> Self {
        Self { link, in_flight: 4_096, deadline: Duration::from_secs(10) }
    }
}

/// Asks the shards; clones share one link.
#[derive(Debug, Clone)]
pub struct Backend(Arc<Inner>);

struct Inner {
    options: Options,
    shards: Arc<dyn Shards>,
    accounts: Service,
    next_ticket: AtomicU64,
    /// None: the link is gone.
    open: Mutex<Option<HashMap<Ticket, Open>>>,
    in_flight: Gauge,
    overloaded: Counter,
    late: Counter,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("options", &self.options).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Open {
    said: oneshot::Sender<Said>,
    /// Over which it was sent.
    link: u16,
}

/// What came of a question.
#[derive(Debug)]
enum Said {
    Answer(Answer),
    /// Whoever was asked does not own the slot (yet), and has done nothing.
    Moved,
    /// Whoever was asked is out of reach. What it has done nobody can say.
    Lost,
}

#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "the rare one is the small one")]
enum Question {
    Room { room: RoomId, person: Person, origin: Origin, command: RoomCommand },
    UserRooms { user: UserId, after: Option<RoomId>, limit: u32 },
}

impl Question {
    /// Asking it twice is asking it once.
    fn may_repeat(&self) -> bool {
        match self {
            Self::UserRooms { .. } => true,
            Self::Room { command, .. } => command.may_repeat(),
        }
    }
}

/// A question on its way. Dropping it forgets it: its answer will be thrown away.
#[derive(Debug)]
struct Asked {
    backend: Backend,
    question: Question,
    ticket: Ticket,
    said: oneshot::Receiver<Said>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        let mut open = self.backend.open();
        if let Some(open) = open.as_mut() {
            open.remove(&self.ticket);
            self.backend.0.in_flight.set(open.len() as f64);
        }
    }
}

impl Asked {
    async fn answer(mut self, deadline: Instant) -> Result<Answer, v1::Error> {
        let mut refused_since = None;
        loop {
            match timeout_at(deadline, &mut self.said).await {
                Ok(Ok(Said::Answer(Answer::Error(error)))) => return Err(*error),
                Ok(Ok(Said::Answer(answer))) => return Ok(answer),
                Ok(Ok(Said::Lost)) if !self.question.may_repeat() => {
                    let words = "the room's owner is lost; it may have done what was asked";
                    return Err(Code::Unavailable.error_retry_after(words, RETRY_MS));
                }
                Ok(Ok(Said::Moved | Said::Lost)) => {
                    let since: &mut Instant = refused_since.get_or_insert_with(Instant::now);
                    let pause = (since.elapsed() / 10).clamp(AGAIN, AGAIN_MAX);
                    tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
                    self = self.backend.ask(self.question.clone())?;
                }
                Ok(Err(_)) => return Err(link_gone()),
                Err(_) => {
                    self.backend.0.late.increment(1);
                    let words = "the room's owner does not answer; it may still do what was asked";
                    return Err(Code::Unavailable.error_retry_after(words, RETRY_MS));
                }
            }
        }
    }
}

impl Backend {
    pub fn new(options: Options, shards: Arc<dyn Shards>, accounts: Service) -> Self {
        Self(Arc::new(Inner {
            options,
            shards,
            accounts,
            next_ticket: AtomicU64::new(1),
            open: Mutex::new(Some(HashMap::new())),
            in_flight: metrics::gauge!("banyan_gateway_backend_in_flight"),
            overloaded: metrics::counter!("banyan_gateway_backend_overloaded_total"),
            late: metrics::counter!("banyan_gateway_backend_late_total"),
        }))
    }

    /// Hands out answers until the link is gone or it is told to stop; then everything still open is 108. Tell it to
    /// stop when those who ask have stopped, not before.
    pub async fn run(self, mut inbox: mpsc::Receiver<Vec<FromShard>>, stop: CancellationToken) {
        loop {
            let batch = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                batch = inbox.recv() => batch,
            };
            let Some(batch) = batch else { break };
            let mut open = self.open();
            let Some(open) = open.as_mut() else { return };
            for message in batch {
                match message {
                    FromShard::Moved { ticket, .. } => {
                        if let Some(asked) = ticket.and_then(|ticket| open.remove(&ticket)) {
                            asked.said.send(Said::Moved).ok();
                        }
                    }
                    // Whatever its epoch: a question is asked again only where nobody has taken it.
                    FromShard::Answer { ticket, answer, .. } => {
                        if let Some(asked) = open.remove(&ticket) {
                            // Whoever asked may have gone.
                            asked.said.send(Said::Answer(answer)).ok();
                        }
                    }
                    // Nothing was subscribed to here.
                    FromShard::Events { .. }
                    | FromShard::Head { .. }
                    | FromShard::Marks { .. }
                    | FromShard::Left { .. }
                    | FromShard::Page { .. }
                    | FromShard::User { .. }
                    | FromShard::LoginsEnded { .. } => {}
                }
            }
            self.0.in_flight.set(open.len() as f64);
        }
        // Dropping the senders is the answer.
        drop(self.open().take());
        self.0.in_flight.set(0.0);
    }

    /// Tells every gateway that has connections of this user that logins of theirs have ended. Lost where their channel has
    /// no owner now, or the way is full.
    pub(crate) fn say_logins_ended(&self, user: &UserId) {
        let batch = self.batch(ToShard::LoginsEnded { user: user.clone() });
        if self.0.shards.to_user(user, batch).is_err() {
            tracing::debug!(%user, "the end of a login could not be said to other gateways now");
        }
    }

    pub fn accounts(&self) -> &Service {
        &self.0.accounts
    }

    /// Carries out any command but those of a connection (`auth`, `refresh`, `subscribe`, `unsubscribe`). `origin` goes
    /// to the log with a send.
    pub async fn run_command(
        &self,
        person: &Person,
        origin: Origin,
        command: Checked,
    ) -> Result<Body, v1::Error> {
        match command {
            Checked::Room { room, command } => self.call(person, origin, &room, command).await,
            Checked::Create(create) => self.create(person, origin, create).await,
            Checked::Add { room, users } => {
                let users = resolve(&users, self.0.accounts.persons(&users).await?)?;
                self.call(person, origin, &room, RoomCommand::Add { users }).await
            }
            Checked::Rooms { after, limit } => self.rooms(person, after, limit).await.map(Body::Rooms),
            Checked::FindUser { username } => {
                let found = self.0.accounts.find_user(&username).await?;
                let reply = v1::FindUserReply { user: found.user.to_string(), name: found.name.to_string() };
                Ok(Body::FindUser(reply))
            }
            Checked::Ping => Ok(Body::Ping(v1::PingReply { server_time: self.0.accounts.now().0 })),
            Checked::Auth { .. }
            | Checked::Refresh { .. }
            | Checked::Subscribe(_)
            | Checked::Unsubscribe(_) => Err(Code::BadRequest.error("this command belongs to a connection")),
        }
    }

    /// One command to the owner of a room.
    pub async fn call(
        &self,
        person: &Person,
        origin: Origin,
        room: &RoomId,
        command: RoomCommand,
    ) -> Result<Body, v1::Error> {
        let deadline = self.deadline();
        match self.ask_room(person, origin, room, command)?.answer(deadline).await? {
            Answer::Body(body) => Ok(*body),
            Answer::Sent { seq, at, duplicate } => {
                let room = room.as_str().to_owned();
                Ok(Body::Send(v1::SendReply { room, seq: seq.0, at: at.0, duplicate }))
            }
            Answer::Summary(room) => Ok(Body::Room(*room)),
            other @ (Answer::Admitted(_) | Answer::UserRooms { .. } | Answer::Error(_)) => {
                Err(unexpected(&other))
            }
        }
    }

    async fn create(&self, person: &Person, origin: Origin, create: Create) -> Result<Body, v1::Error> {
        let Create { room, kind, name, public, members } = create;
        let members = resolve(&members, self.0.accounts.persons(&members).await?)?;
        let room = match (room, members.first()) {
            (NewRoom::Own(room), _) => room,
            (NewRoom::Direct, Some(other)) => direct::room_id(&person.user, &other.user),
            (NewRoom::Fresh | NewRoom::Direct, _) => fresh_room_id(self.0.accounts.now())?,
        };
        self.call(person, origin, &room, RoomCommand::Create { kind, name, public, members }).await
    }

    /// The caller's rooms, each as its owner says that it stands. Rooms that were left meanwhile are not among them.
    pub async fn rooms(
        &self,
        person: &Person,
        after: Option<RoomId>,
        limit: u32,
    ) -> Result<v1::RoomsReply, v1::Error> {
        let deadline = self.deadline();
        let mut after = after;
        for _ in 0..EMPTY_PAGES_MAX {
            let (page, more) = self.user_rooms(&person.user, after.take(), limit, deadline).await?;
            let last = page.last().cloned();
            // All are asked before the first answer is waited for.
            let asked: Vec<_> = page
                .iter()
                .map(|room| self.ask_room(person, Origin(0), room, RoomCommand::Summary))
                .collect::<Result<_, _>>()?;
            let mut rooms = Vec::with_capacity(asked.len());
            for one in asked {
                match one.answer(deadline).await {
                    Ok(Answer::Summary(room)) => rooms.push(*room),
                    Ok(other) => return Err(unexpected(&other)),
                    Err(error)
                        if [Code::UnknownRoom.number(), Code::NotAMember.number()].contains(&error.code) => {}
                    Err(error) => return Err(error),
                }
            }
            // An empty page that says `more` would leave the client without a place to go on from.
            if !(rooms.is_empty() && more) {
                return Ok(v1::RoomsReply { rooms, more });
            }
            after = last;
        }
        Err(Code::Unavailable.error_retry_after("the list of rooms is being changed", RETRY_MS))
    }

    async fn user_rooms(
        &self,
        user: &UserId,
        after: Option<RoomId>,
        limit: u32,
        deadline: Instant,
    ) -> Result<(Vec<RoomId>, bool), v1::Error> {
        let asked = self.ask(Question::UserRooms { user: user.clone(), after, limit })?;
        match asked.answer(deadline).await? {
            Answer::UserRooms { rooms, more } => Ok((rooms, more)),
            other @ (Answer::Body(_)
            | Answer::Sent { .. }
            | Answer::Admitted(_)
            | Answer::Summary(_)
            | Answer::Error(_)) => Err(unexpected(&other)),
        }
    }

    fn ask_room(
        &self,
        person: &Person,
        origin: Origin,
        room: &RoomId,
        command: RoomCommand,
    ) -> Result<Asked, v1::Error> {
        self.ask(Question::Room { room: room.clone(), person: person.clone(), origin, command })
    }

    fn ask(&self, question: Question) -> Result<Asked, v1::Error> {
        let ticket = Ticket(self.0.next_ticket.fetch_add(1, Ordering::Relaxed));
        let (sender, said) = oneshot::channel();
        {
            // Held while it is sent: an answer, or the loss of the link, comes after it was noted.
            let mut open = self.open();
            let open = open.as_mut().ok_or_else(link_gone)?;
            let sent = if open.len() < self.0.options.in_flight {
                self.send(ticket, question.clone())
            } else {
                Err(NotSent::Full)
            };
            match sent {
                Ok(link) => {
                    open.insert(ticket, Open { said: sender, link });
                }
                // Tried again until there is one.
                Err(NotSent::NoOwner) => drop(sender.send(Said::Moved)),
                Err(NotSent::Full) => {
                    self.0.overloaded.increment(1);
                    return Err(overloaded());
                }
            }
            self.0.in_flight.set(open.len() as f64);
        }
        Ok(Asked { backend: self.clone(), question, ticket, said })
    }

    /// Nothing comes over this link any more; what has come was handed to [`Backend::run`]'s inbox before. Questions that
    /// wait for an answer over it are asked again where that changes nothing, and are 108 otherwise.
    pub fn link_lost(&self, link: u16) {
        let mut open = self.open();
        let Some(open) = open.as_mut() else { return };
        let lost: Vec<Ticket> =
            open.iter().filter(|(_, open)| open.link == link).map(|(ticket, _)| *ticket).collect();
        for ticket in lost {
            if let Some(asked) = open.remove(&ticket) {
                asked.said.send(Said::Lost).ok();
            }
        }
    }

    fn send(&self, ticket: Ticket, question: Question) -> Result<u16, NotSent> {
        match question {
            Question::Room { room, person: caller, origin, command } => {
                let call = Box::new(RoomCall { ticket, caller, origin, command });
                let batch = self.batch(ToShard::Room { room: room.clone(), call });
                self.0.shards.to_room(&room, batch)
            }
            Question::UserRooms { user, after, limit } => {
                let batch = self.batch(ToShard::UserRooms { ticket, user: user.clone(), after, limit });
                self.0.shards.to_user(&user, batch)
            }
        }
    }

    fn batch(&self, message: ToShard) -> ToShardBatch {
        ToShardBatch { link: self.0.options.link, messages: vec![message] }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.0.options.deadline
    }

    fn open(&self) -> MutexGuard<'_, Option<HashMap<Ticket, Open>>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// UUIDv7: neighbours in time are neighbours in the store.
fn fresh_room_id(now: UnixMs) -> Result<RoomId, v1::Error> {
    let nanos = u32::try_from(now.0 % 1_000 * 1_000_000).unwrap_or_default();
    let timestamp = uuid::Timestamp::from_unix(uuid::NoContext, now.0 / 1_000, nanos);
    RoomId::parse(&uuid::Uuid::new_v7(timestamp).to_string())
        .map_err(|error| Code::Internal.error(error.to_string()))
}

fn overloaded() -> v1::Error {
    Code::Overloaded.error_retry_after("too many commands wait: come back a little later", RETRY_MS)
}

fn link_gone() -> v1::Error {
    Code::Unavailable.error_retry_after("the server is stopping", RETRY_MS)
}

fn unexpected(answer: &Answer) -> v1::Error {
    let kind = match answer {
        Answer::Body(_) => "body",
        Answer::Sent { .. } => "sent",
        Answer::Admitted(_) => "admitted",
        Answer::Summary(_) => "summary",
        Answer::UserRooms { .. } => "user_rooms",
        Answer::Error(_) => "error",
    };
    tracing::error!(kind, "an owner answered what was not asked");
    Code::Internal.error("the room's owner answered what was not asked")
}

#[cfg(test)]
pub(crate) mod tests;
