//! Commands that many connections give before a run: create, join, subscribe. A bounded number in flight, refusals
//! that may be retried are, anything else voids the run.

use std::collections::{HashMap, VecDeque};

use anyhow::bail;
use banyan_proto::codes::Code;
use banyan_proto::v1;
use banyan_proto::v1::client_frame::Command;
use banyan_proto::v1::server_frame::Body;

use super::connection::Subscription;
use super::{Generator, Reply};
use crate::control::{Modes, Plan};

/// In flight over all connections.
const IN_FLIGHT: usize = 256;
/// In flight on one connection; the server takes 64.
const IN_FLIGHT_EACH: u32 = 32;
/// Tries of one call before the server is taken to mean it.
const TRIES: u32 = 50;
/// Rooms in one `subscribe`; the server takes 200.
const ROOMS_PER_FRAME: usize = 100;
/// Where a refusal does not say how long to wait.
const RETRY_MS: u64 = 50;

#[derive(Debug)]
struct Call {
    connection: usize,
    command: Command,
    tries: u32,
    not_before_ns: u64,
}

#[derive(Debug)]
pub(super) struct Calls {
    waiting: VecDeque<Call>,
    flying: HashMap<(usize, u64), Call>,
    total: usize,
    done: usize,
    /// The command's rooms, by our number.
    rooms: Vec<u32>,
    /// The highest head that a `subscribe` was told, by our number.
    heads: HashMap<u32, u64>,
    /// Rooms of subscribes whose answer is still to come.
    unanswered: u64,
    subscribes: bool,
}

impl Calls {
    pub(super) fn create(generator: &mut Generator, rooms: Vec<String>, plan: Plan) -> anyhow::Result<Self> {
        Self::each_room(generator, rooms, plan, |room| {
            Command::CreateRoom(v1::CreateRoom {
                room: Some(room.to_owned()),
                kind: v1::RoomKind::Group as i32,
                name: Some(room.to_owned()),
                public: Some(true),
                members: Vec::new(),
            })
        })
    }

    pub(super) fn join(generator: &mut Generator, rooms: Vec<String>, plan: Plan) -> anyhow::Result<Self> {
        Self::each_room(generator, rooms, plan, |room| Command::Join(v1::Join { room: room.to_owned() }))
    }

    #[expect(clippy::needless_pass_by_value, reason = "they come out of a command that is used up here")]
    fn each_room(
        generator: &mut Generator,
        rooms: Vec<String>,
        plan: Plan,
        command: impl Fn(&str) -> Command,
    ) -> anyhow::Result<Self> {
        let mut waiting = VecDeque::new();
        // One room of every connection, then the next of every connection: so that no connection is the limit.
        let longest = plan.iter().map(|(_, rooms)| rooms.len()).max().unwrap_or_default();
        for turn in 0..longest {
            for (connection, of_connection) in &plan {
                let Some(&room) = of_connection.get(turn) else { continue };
                let Some(name) = rooms.get(room as usize) else { bail!("there is no room {room}") };
                generator.connection(*connection)?;
                waiting.push_back(Call {
                    connection: *connection as usize,
                    command: command(name),
                    tries: 0,
                    not_before_ns: 0,
                });
            }
        }
        Ok(Self::new(waiting, Vec::new(), 0, false))
    }

    #[expect(clippy::needless_pass_by_value, reason = "they come out of a command that is used up here")]
    pub(super) fn subscribe(
        generator: &mut Generator,
        rooms: Vec<String>,
        plan: Plan,
        modes: Modes,
        after: Option<&[u64]>,
    ) -> anyhow::Result<Self> {
        let numbers: Vec<u32> = rooms.iter().map(|room| generator.room(room)).collect();
        let mut waiting = VecDeque::new();
        let mut unanswered = 0;
        for (connection, of_connection) in &plan {
            let mut wanted = Vec::new();
            for (place, &room) in of_connection.iter().enumerate() {
                let (Some(name), Some(&number)) = (rooms.get(room as usize), numbers.get(room as usize))
                else {
                    bail!("there is no room {room}")
                };
                let live = match modes {
                    Modes::Live => true,
                    Modes::Passive => false,
                    Modes::FirstLive => place == 0,
                };
                let mode = if live { v1::Mode::Live } else { v1::Mode::Passive };
                let after = after.and_then(|after| after.get(room as usize)).copied();
                wanted.push(v1::SubscribeRoom {
                    room: name.clone(),
                    after,
                    log: None,
                    last: None,
                    mode: Some(mode as i32),
                });
                let cursors = &mut generator.connection(*connection)?.subscriptions;
                cursors.retain(|cursor| cursor.room != number);
                // The answer sets what is expected; before it nothing may come.
                cursors.push(Subscription { room: number, live, expected: u64::MAX });
                unanswered += 1;
            }
            for rooms in wanted.chunks(ROOMS_PER_FRAME) {
                let command = Command::Subscribe(v1::Subscribe { rooms: rooms.to_vec() });
                waiting.push_back(Call {
                    connection: *connection as usize,
                    command,
                    tries: 0,
                    not_before_ns: 0,
                });
            }
        }
        Ok(Self::new(waiting, numbers, unanswered, true))
    }

    fn new(waiting: VecDeque<Call>, rooms: Vec<u32>, unanswered: u64, subscribes: bool) -> Self {
        let total = waiting.len();
        Self {
            waiting,
            flying: HashMap::new(),
            total,
            done: 0,
            rooms,
            heads: HashMap::new(),
            unanswered,
            subscribes,
        }
    }

    pub(super) fn describe(&self) -> String {
        format!("{} of {} commands done, {} rooms unanswered", self.done, self.total, self.unanswered)
    }

    pub(super) fn advance(&mut self, generator: &mut Generator) -> anyhow::Result<Option<Reply>> {
        let mut passed = 0;
        while self.flying.len() < IN_FLIGHT && passed < IN_FLIGHT.min(self.waiting.len()) {
            let Some(mut call) = self.waiting.pop_front() else { break };
            let connection = &mut generator.connections[call.connection];
            if connection.in_flight >= IN_FLIGHT_EACH || call.not_before_ns > generator.now_ns {
                self.waiting.push_back(call);
                passed += 1;
                continue;
            }
            let id = connection.take_id();
            call.tries += 1;
            let index = call.connection;
            let frame = v1::ClientFrame { id, command: Some(call.command.clone()) };
            let frame = serde_json::to_vec(&frame)?;
            self.flying.insert((index, id), call);
            generator.send(index, &frame);
        }
        if self.done < self.total || self.unanswered > 0 {
            return Ok(None);
        }
        if !self.subscribes {
            return Ok(Some(Reply::Done));
        }
        let heads = self.rooms.iter().map(|room| self.heads.get(room).copied().unwrap_or_default()).collect();
        Ok(Some(Reply::Subscribed { heads }))
    }

    pub(super) fn reply(&mut self, generator: &mut Generator, index: usize, id: u64, body: Body) {
        let Some(mut call) = self.flying.remove(&(index, id)) else {
            return generator.violation(format!("connection {index}: a reply to {id}, which was not asked"));
        };
        match body {
            Body::Error(error) => {
                let may_retry = Code::try_from(error.code).is_ok_and(Code::may_retry);
                if !may_retry || call.tries >= TRIES {
                    let words =
                        format!("connection {index}: {} {} ({:?})", error.code, error.message, call.command);
                    return generator.violation(words);
                }
                call.not_before_ns = generator.now_ns + error.retry_after_ms.unwrap_or(RETRY_MS) * 1_000_000;
                self.waiting.push_back(call);
            }
            Body::Subscribe(reply) => {
                self.done += 1;
                for room in reply.rooms {
                    if room.pending != Some(true) && room.error.is_none() {
                        let number = generator.room(&room.room);
                        self.subscribed(number, room.head);
                    }
                    generator.subscribed(index, &room);
                }
            }
            _ => self.done += 1,
        }
    }

    /// A room of a `subscribe` was answered.
    pub(super) fn subscribed(&mut self, room: u32, head: u64) {
        self.unanswered = self.unanswered.saturating_sub(1);
        let known = self.heads.entry(room).or_default();
        *known = (*known).max(head);
    }
}
