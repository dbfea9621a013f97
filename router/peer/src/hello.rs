//! Who speaks: what each side of a link says of itself first, and what it accepts of the other.
//!
//! Always holds: a link exists only between processes of one cluster, to the very run of the node that was meant, at most
//! one release apart, each in roles that its certificate (where there is one) names.

use banyan_proto::id::Incarnation;
use banyan_proto::node::v1 as wire_types;
use banyan_proto::wire::{self, incarnation_bytes};
use banyan_router::node_key::Role;
use banyan_router::slot_key::{NodeId, Peer};

use crate::tls::Identity;
use crate::why::Why;

/// Releases apart that are served.
const SKEW_MAX: u32 = 1;
/// Of texts that are only shown.
const TEXT_MAX: usize = 64;

/// This process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Me {
    pub cluster: String,
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// Ascending.
    pub roles: Vec<Role>,
    /// Ends of its links: gateway workers and the HTTP part. They are numbered from 0.
    pub links: u16,
    /// For people.
    pub release: String,
    /// [`wire::VERSION`], but in tests.
    pub wire: u32,
}

impl Me {
    pub fn peer(&self) -> Peer {
        Peer { node: self.node.clone(), incarnation: self.incarnation }
    }
}

/// The process at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub peer: Peer,
    pub roles: Vec<Role>,
    pub links: u16,
    pub release: String,
    pub wire: u32,
}

impl Hello {
    pub fn is_shard(&self) -> bool {
        self.roles.contains(&Role::Shard)
    }
}

pub(crate) const fn role_word(role: Role) -> &'static str {
    match role {
        Role::Gateway => "gateway",
        Role::Shard => "shard",
        Role::Worker => "worker",
    }
}

pub(crate) fn words_of(roles: &[Role]) -> String {
    roles.iter().map(|role| role_word(*role)).collect::<Vec<_>>().join(", ")
}

/// What `me` says of itself. `expects`: whom it means to talk to, where it dials.
pub(crate) fn hello(me: &Me, expects: Option<&Peer>) -> wire_types::Hello {
    wire_types::Hello {
        wire: me.wire,
        release: me.release.clone(),
        cluster: me.cluster.clone(),
        node: me.node.as_str().to_owned(),
        incarnation: incarnation_bytes(me.incarnation),
        roles: me.roles.iter().map(|role| role_number(*role).into()).collect(),
        links: me.links.into(),
        expects_node: expects.map(|peer| peer.node.as_str().to_owned()).unwrap_or_default(),
        expects_incarnation: expects.map(|peer| incarnation_bytes(peer.incarnation)).unwrap_or_default(),
    }
}

fn role_number(role: Role) -> wire_types::NodeRole {
    match role {
        Role::Gateway => wire_types::NodeRole::Gateway,
        Role::Shard => wire_types::NodeRole::Shard,
        Role::Worker => wire_types::NodeRole::Worker,
    }
}

fn protocol(error: &wire::Error) -> Why {
    Why::Protocol(format!("its hello: {error}"))
}

/// A text of the other side, for people.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect()
}

/// What of the other side's hello both ends check.
fn read(me: &Me, hello: &wire_types::Hello, identity: Option<&Identity>) -> Result<Hello, Why> {
    if hello.wire.abs_diff(me.wire) > SKEW_MAX {
        return Err(Why::Skew(format!(
            "node {} (release {}) speaks version {} between nodes, {} (release {}) version {}: only neighbours understand \
             each other",
            shown(&hello.node),
            shown(&hello.release),
            hello.wire,
            me.node,
            me.release,
            me.wire
        )));
    }
    if hello.cluster != me.cluster {
        return Err(Why::WrongPeer(format!(
            "node {} is of the cluster {:?}, {} of {:?}",
            shown(&hello.node),
            shown(&hello.cluster),
            me.node,
            me.cluster
        )));
    }
    let node = NodeId::parse(&hello.node).map_err(|error| Why::Protocol(format!("its hello: {error}")))?;
    let incarnation = wire::incarnation(&hello.incarnation).map_err(|error| protocol(&error))?;
    // Roles of a newer release are left out.
    let mut roles: Vec<_> = hello
        .roles
        .iter()
        .take(TEXT_MAX)
        .filter_map(|role| match wire_types::NodeRole::try_from(*role) {
            Ok(wire_types::NodeRole::Gateway) => Some(Role::Gateway),
            Ok(wire_types::NodeRole::Shard) => Some(Role::Shard),
            Ok(wire_types::NodeRole::Worker) => Some(Role::Worker),
            Ok(wire_types::NodeRole::Unspecified) | Err(_) => None,
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if let Some(identity) = identity {
        identity.allows(&node, &me.cluster, &roles)?;
    }
    let links = u16::try_from(hello.links)
        .map_err(|_| Why::Protocol(format!("its hello: {} links are too many", hello.links)))?;
    let peer = Peer { node, incarnation };
    Ok(Hello { peer, roles, links, release: shown(&hello.release), wire: hello.wire })
}

/// The hello of who dials `me`.
pub(crate) fn read_dialler(
    me: &Me,
    hello: &wire_types::Hello,
    identity: Option<&Identity>,
    links_max: u16,
) -> Result<Hello, Why> {
    let read = read(me, hello, identity)?;
    let meant = wire::incarnation(&hello.expects_incarnation).map_err(|error| protocol(&error))?;
    if hello.expects_node != me.node.as_str() || meant != me.incarnation {
        return Err(Why::WrongPeer(format!(
            "node {} run {meant} was meant, this is {} run {}",
            shown(&hello.expects_node),
            me.node,
            me.incarnation
        )));
    }
    if !read.roles.iter().any(|role| matches!(role, Role::Gateway | Role::Shard)) {
        return Err(Why::WrongPeer(format!("node {} is neither gateway nor shard", read.peer.node)));
    }
    if read.links > links_max {
        return Err(Why::Goodbye(format!("{} links are too many: {links_max} at most", read.links)));
    }
    Ok(read)
}

/// The hello of whom `me` has dialled.
pub(crate) fn read_dialled(
    me: &Me,
    hello: &wire_types::Hello,
    identity: Option<&Identity>,
    expected: &Peer,
) -> Result<Hello, Why> {
    let read = read(me, hello, identity)?;
    if read.peer != *expected {
        return Err(Why::WrongPeer(format!(
            "node {} run {} was meant, there is {} run {}",
            expected.node, expected.incarnation, read.peer.node, read.peer.incarnation
        )));
    }
    if !read.is_shard() {
        return Err(Why::WrongPeer(format!("node {} is no shard", read.peer.node)));
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me(node: &str, role: Role) -> Me {
        Me {
            cluster: "c".into(),
            node: NodeId::parse(node).unwrap(),
            incarnation: Incarnation(node.len() as u128),
            roles: vec![role],
            links: 3,
            release: "1.0".into(),
            wire: 4,
        }
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut Me), words: &str) {
        let server = me("shard", Role::Shard);
        let mut client = me("gw", Role::Gateway);
        change(&mut client);
        let hello = hello(&client, Some(&server.peer()));
        let why = read_dialler(&server, &hello, None, 8).unwrap_err();
        assert!(why.words().contains(words), "{why:?}");
    }

    #[test]
    fn a_stranger_is_told_why() {
        refused(|me| me.cluster = "d".into(), "of the cluster \"d\"");
        refused(|me| me.wire = 6, "speaks version 6");
        refused(|me| me.wire = 2, "speaks version 2");
        refused(|me| me.roles = vec![Role::Worker], "neither gateway nor shard");
        refused(|me| me.links = 9, "9 links are too many");
    }

    #[test]
    fn a_neighbour_release_is_served_and_runs_are_told_apart() {
        let server = me("shard", Role::Shard);
        for wire in 3..=5 {
            let client = Me { wire, ..me("gw", Role::Gateway) };
            let read = read_dialler(&server, &hello(&client, Some(&server.peer())), None, 8).unwrap();
            assert_eq!((read.peer, read.links, read.wire), (client.peer(), 3, wire));
        }
        let client = me("gw", Role::Gateway);
        let earlier = Peer { incarnation: Incarnation(99), ..server.peer() };
        let why = read_dialler(&server, &hello(&client, Some(&earlier)), None, 8).unwrap_err();
        assert!(matches!(&why, Why::WrongPeer(words) if words.contains("was meant")), "{why:?}");
        let why = read_dialled(&client, &hello(&server, None), None, &earlier).unwrap_err();
        assert!(matches!(&why, Why::WrongPeer(words) if words.contains("was meant")), "{why:?}");
        let why = read_dialled(&client, &hello(&client, None), None, &client.peer()).unwrap_err();
        assert!(matches!(&why, Why::WrongPeer(words) if words.contains("is no shard")), "{why:?}");
    }
}
