//! `banyan ring where`: in which slot a room or a user's channel lives, and who owns it.

use banyan_proto::id::{RESERVED_PREFIX, RoomId, SlotId, UserId};
use banyan_router::{SlotCount, slot_of, user_slot};
use serde::Serialize;

use super::state::State;
use crate::failure::{Exit, Failure};
use crate::shares::{NodeRow, SlotRow};
use crate::table::{Column, table};

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Found {
    room: String,
    slot: u16,
    owner: Option<Owner>,
    /// Who owned it last, where nobody who lives does.
    last_owner: Option<Owner>,
    /// Who should own it.
    wanted: Option<String>,
    pinned: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Owner {
    node: String,
    incarnation: String,
    epoch: u64,
    /// Where other nodes reach it.
    address: Option<String>,
}

pub(crate) fn find(state: &State, rooms: &[String]) -> Result<Vec<Found>, Failure> {
    let find = |room: &String| {
        find_one(&state.nodes, &state.slots, room).map_err(|error| {
            Failure::new(Exit::Usage, error).with_hint("name a room by its id, or a user's channel as ~USER")
        })
    };
    rooms.iter().map(find).collect()
}

/// A room, or the channel of `~USER`; what is wrong with its name, if it is none.
pub(crate) fn find_one(nodes: &[NodeRow], slots: &[SlotRow], room: &str) -> Result<Found, String> {
    // As many slots as a cluster has: a power of two.
    let count = SlotCount::new(slots.len() as u32).map_err(|error| error.to_string())?;
    let slot = match room.strip_prefix(RESERVED_PREFIX) {
        Some(user) => UserId::parse(user).map(|_| user_slot(user, count)),
        None => RoomId::parse(room).map(|_| slot_of(room, count)),
    };
    let SlotId(slot) = slot.map_err(|error| format!("{room:?}: {error}"))?;
    let row = &slots[usize::from(slot)];
    let known = row.key.as_ref().map(|key| Owner {
        node: key.owner.to_string(),
        incarnation: key.incarnation.to_string(),
        epoch: key.epoch.0,
        address: row
            .owner
            .and_then(|place| nodes[place].entry.as_ref().map(|entry| entry.peer_address.clone())),
    });
    let (owner, last_owner) = if row.owner.is_some() { (known, None) } else { (None, known) };
    let wanted = row.wanted.map(|place| nodes[place].node.to_string());
    Ok(Found { room: room.to_owned(), slot, owner, last_owner, wanted, pinned: row.pinned })
}

pub(crate) fn text(found: &[Found]) -> String {
    let columns = [
        Column::Left("ROOM"),
        Column::Right("SLOT"),
        Column::Left("OWNER"),
        Column::Right("EPOCH"),
        Column::Left("ADDRESS"),
        Column::Left("WANTED"),
    ];
    let none = || "-".to_owned();
    let rows: Vec<_> = (found.iter())
        .map(|found| {
            let known = found.owner.as_ref().or(found.last_owner.as_ref());
            let owner = match (&found.owner, &found.last_owner) {
                (Some(owner), _) => owner.node.clone(),
                (None, Some(last)) => format!("none (was {})", last.node),
                (None, None) => "none".to_owned(),
            };
            let wanted = found.wanted.clone().unwrap_or_else(none);
            [
                found.room.clone(),
                found.slot.to_string(),
                owner,
                known.map_or_else(none, |known| known.epoch.to_string()),
                known.and_then(|known| known.address.clone()).unwrap_or_else(none),
                if found.pinned { format!("{wanted} (pinned)") } else { wanted },
            ]
        })
        .collect();
    table(columns, &rows)
}
