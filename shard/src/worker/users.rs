//! User channels: which links have connections of which user. Soft state, stated again by gateways when lost.

use banyan_proto::id::UserId;
use banyan_proto::link::LinkId;
use foldhash::fast::RandomState;
use hashbrown::HashMap;

/// Bound: the users connected to the gateways, each link once.
#[derive(Debug, Default)]
pub(super) struct Users(HashMap<UserId, Vec<(LinkId, u32)>, RandomState>);

impl Users {
    pub(super) fn online(&mut self, user: UserId, link: LinkId) {
        let links = self.0.entry(user).or_default();
        match links.iter_mut().find(|(other, _)| *other == link) {
            Some((_, count)) => *count = count.saturating_add(1),
            None => links.push((link, 1)),
        }
    }

    pub(super) fn offline(&mut self, user: &UserId, link: LinkId) {
        let Some(links) = self.0.get_mut(user) else { return };
        links.retain_mut(|(other, count)| {
            if *other == link {
                *count -= 1;
            }
            *count > 0
        });
        if links.is_empty() {
            self.0.remove(user);
        }
    }

    pub(super) fn link_gone(&mut self, link: LinkId) {
        self.0.retain(|_, links| {
            links.retain(|(other, _)| *other != link);
            !links.is_empty()
        });
    }

    pub(super) fn links(&self, user: &UserId) -> impl Iterator<Item = LinkId> {
        self.0.get(user).into_iter().flatten().map(|(link, _)| *link)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_online_while_one_connection_is_left() {
        let (mut users, alice) = (Users::default(), UserId::parse("alice").unwrap());
        users.online(alice.clone(), LinkId(1));
        users.online(alice.clone(), LinkId(1));
        users.online(alice.clone(), LinkId(2));
        users.offline(&alice, LinkId(1));
        assert_eq!(users.links(&alice).collect::<Vec<_>>(), [LinkId(1), LinkId(2)]);
        users.offline(&alice, LinkId(1));
        assert_eq!(users.links(&alice).collect::<Vec<_>>(), [LinkId(2)]);
        users.link_gone(LinkId(2));
        assert_eq!(users.len(), 0);
        users.offline(&alice, LinkId(2));
    }
}
