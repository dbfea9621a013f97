//! User channels: which links have connections of which user. Soft state, stated again by gateways when lost.
//!
//! Always holds: stating the same twice changes nothing, so a gateway may state all it has to whoever owns the slot now.

use banyan_proto::id::{SlotId, UserId};
use banyan_proto::link::LinkId;
use foldhash::fast::FixedState;
use hashbrown::HashMap;

/// Bound: the users connected to the gateways, each link once.
#[derive(Debug, Clone)]
pub(super) struct Users(HashMap<UserId, Channel, FixedState>);

#[derive(Debug, Clone)]
struct Channel {
    slot: SlotId,
    links: Vec<LinkId>,
}

impl Users {
    pub(super) fn new(hash_seed: u64) -> Self {
        Self(HashMap::with_hasher(FixedState::with_seed(hash_seed)))
    }

    pub(super) fn online(&mut self, user: UserId, slot: SlotId, link: LinkId) {
        let channel = self.0.entry(user).or_insert_with(|| Channel { slot, links: Vec::new() });
        if !channel.links.contains(&link) {
            channel.links.push(link);
        }
    }

    pub(super) fn offline(&mut self, user: &UserId, link: LinkId) {
        let Some(channel) = self.0.get_mut(user) else { return };
        channel.links.retain(|other| *other != link);
        if channel.links.is_empty() {
            self.0.remove(user);
        }
    }

    pub(super) fn link_gone(&mut self, link: LinkId) {
        self.0.retain(|_, channel| {
            channel.links.retain(|other| *other != link);
            !channel.links.is_empty()
        });
    }

    /// The slot has another owner, who is told anew.
    pub(super) fn slot_gone(&mut self, slot: SlotId) {
        self.0.retain(|_, channel| channel.slot != slot);
    }

    pub(super) fn links(&self, user: &UserId) -> &[LinkId] {
        self.0.get(user).map_or(&[], |channel| &channel.links)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_online_on_each_link_once() {
        let (mut users, alice) = (Users::new(7), UserId::parse("alice").unwrap());
        users.online(alice.clone(), SlotId(3), LinkId(1));
        users.online(alice.clone(), SlotId(3), LinkId(1));
        users.online(alice.clone(), SlotId(3), LinkId(2));
        assert_eq!(users.links(&alice), [LinkId(1), LinkId(2)]);
        users.offline(&alice, LinkId(1));
        assert_eq!(users.links(&alice), [LinkId(2)]);
        users.link_gone(LinkId(2));
        assert_eq!(users.len(), 0);
        users.offline(&alice, LinkId(2));
    }

    #[test]
    fn a_slot_takes_its_users_with_it() {
        let (mut users, alice, bob) =
            (Users::new(7), UserId::parse("alice").unwrap(), UserId::parse("bob").unwrap());
        users.online(alice.clone(), SlotId(3), LinkId(1));
        users.online(bob.clone(), SlotId(4), LinkId(1));
        users.slot_gone(SlotId(3));
        assert_eq!((users.links(&alice).len(), users.links(&bob).len()), (0, 1));
    }
}
