//! What the keys in etcd look like: names under the cluster's prefix, and values as JSON that a person can read.
//!
//! Always holds: every value says its version `v`; fields may be added within a version and unknown ones are ignored, so two
//! releases understand each other; a version that is not known is refused. Golden tests hold names and values.

use std::collections::{BTreeMap, BTreeSet};

use banyan_proto::id::{Epoch, Incarnation, SlotId, Tenure};
use serde::{Deserialize, Serialize};

use crate::meta::{ClusterId, Founding, Meta};
use crate::node_key::{NodeEntry, Role, State};
use crate::slot::SlotCount;
use crate::slot_key::{NodeId, SlotKey};
use crate::slot_owner::Why;
use crate::target::{Member, Target};

/// The version of every value that this release writes.
const VERSION: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("not what a key of the ring holds: {0}")]
    Json(#[from] serde_json::Error),
    #[error("written by a newer release (version {0}, this one knows {VERSION})")]
    Version(u32),
    #[error("{0}")]
    Invalid(String),
}

/// A key under the cluster's prefix.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    Slot(SlotId),
    Node(NodeId),
    Target,
    /// There: no ownership may change.
    Frozen,
    /// What the cluster was founded with: written once.
    Meta,
}

impl Key {
    /// What follows the prefix.
    pub fn name(&self) -> String {
        match self {
            Self::Slot(slot) => format!("slots/{slot}"),
            Self::Node(node) => format!("nodes/{node}"),
            Self::Target => "target".to_owned(),
            Self::Frozen => "frozen".to_owned(),
            Self::Meta => "meta".to_owned(),
        }
    }

    /// `None`: a key of a newer release, or of somebody else.
    pub fn parse(name: &str) -> Option<Self> {
        let key = match name.split_once('/') {
            Some(("slots", slot)) => Self::Slot(SlotId(slot.parse().ok()?)),
            Some(("nodes", node)) => Self::Node(NodeId::parse(node).ok()?),
            Some(_) => return None,
            None if name == "target" => Self::Target,
            None if name == "frozen" => Self::Frozen,
            None if name == "meta" => Self::Meta,
            None => return None,
        };
        // One name per key: `slots/07` is not ours.
        (key.name() == name).then_some(key)
    }
}

fn write<T: Serialize>(value: &T) -> Vec<u8> {
    // Plain structs with text keys: writing them cannot fail.
    serde_json::to_vec(value).unwrap_or_default()
}

fn read<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Result<T, Error> {
    #[derive(Deserialize)]
    struct Versioned {
        v: u32,
    }
    // First: a newer version may lack what this one needs.
    let Versioned { v } = serde_json::from_slice(value)?;
    if v != VERSION {
        return Err(Error::Version(v));
    }
    Ok(serde_json::from_slice(value)?)
}

fn node_id(text: &str) -> Result<NodeId, Error> {
    NodeId::parse(text).map_err(|error| Error::Invalid(error.to_string()))
}

/// 32 hexadecimal digits.
fn hex_128(text: &str) -> Option<u128> {
    let plain = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    u128::from_str_radix(text, 16).ok().filter(|_| plain)
}

fn incarnation(text: &str) -> Result<Incarnation, Error> {
    let number = hex_128(text).ok_or_else(|| Error::Invalid(format!("not an incarnation: {text:?}")))?;
    Ok(Incarnation(number))
}

// ---------------------------------------------------------------- slots/{n}

#[derive(Serialize, Deserialize)]
struct SlotJson {
    v: u32,
    owner: String,
    incarnation: String,
    epoch: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prev: Option<TenureJson>,
}

#[derive(Serialize, Deserialize)]
struct TenureJson {
    incarnation: String,
    epoch: u64,
}

pub fn encode_slot(key: &SlotKey) -> Vec<u8> {
    write(&SlotJson {
        v: VERSION,
        owner: key.owner.to_string(),
        incarnation: key.incarnation.to_string(),
        epoch: key.epoch.0,
        prev: key
            .prev
            .map(|prev| TenureJson { incarnation: prev.incarnation.to_string(), epoch: prev.epoch.0 }),
    })
}

pub fn decode_slot(value: &[u8]) -> Result<SlotKey, Error> {
    let json: SlotJson = read(value)?;
    let prev = json.prev.map(|prev| -> Result<Tenure, Error> {
        Ok(Tenure { epoch: Epoch(prev.epoch), incarnation: incarnation(&prev.incarnation)? })
    });
    Ok(SlotKey {
        owner: node_id(&json.owner)?,
        incarnation: incarnation(&json.incarnation)?,
        epoch: Epoch(json.epoch),
        prev: prev.transpose()?,
    })
}

// ---------------------------------------------------------------- nodes/{id}

#[derive(Serialize, Deserialize)]
struct NodeJson {
    v: u32,
    incarnation: String,
    peer_address: String,
    roles: Vec<String>,
    weight: u32,
    state: String,
    release: String,
}

const ROLES: [(Role, &str); 3] =
    [(Role::Gateway, "gateway"), (Role::Shard, "shard"), (Role::Worker, "worker")];
const STATES: [(State, &str); 2] = [(State::Up, "up"), (State::Draining, "draining")];

pub fn encode_node(entry: &NodeEntry) -> Vec<u8> {
    let roles = ROLES.iter().filter(|(role, _)| entry.roles.contains(role));
    let state = STATES.iter().find(|(state, _)| *state == entry.state);
    write(&NodeJson {
        v: VERSION,
        incarnation: entry.incarnation.to_string(),
        peer_address: entry.peer_address.clone(),
        roles: roles.map(|(_, name)| (*name).to_owned()).collect(),
        weight: entry.weight,
        state: state.map_or("", |(_, name)| name).to_owned(),
        release: entry.release.clone(),
    })
}

pub fn decode_node(value: &[u8]) -> Result<NodeEntry, Error> {
    let json: NodeJson = read(value)?;
    let state = STATES.iter().find(|(_, name)| *name == json.state);
    let (state, _) = state.ok_or_else(|| Error::Invalid(format!("no state of a node: {:?}", json.state)))?;
    // A role of a newer release is none that this one could use.
    let roles = ROLES.iter().filter(|(_, name)| json.roles.iter().any(|role| role == name));
    Ok(NodeEntry {
        incarnation: incarnation(&json.incarnation)?,
        peer_address: json.peer_address,
        roles: roles.map(|(role, _)| *role).collect(),
        weight: json.weight,
        state: *state,
        release: json.release,
    })
}

// ---------------------------------------------------------------- target

#[derive(Serialize, Deserialize)]
struct TargetJson {
    v: u32,
    version: u64,
    members: Vec<MemberJson>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pins: BTreeMap<u16, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    drained: Vec<String>,
    /// Of each slot, its owner's place among the members.
    owners: Vec<Option<u16>>,
}

#[derive(Serialize, Deserialize)]
struct MemberJson {
    node: String,
    weight: u32,
}

pub fn encode_target(target: &Target) -> Vec<u8> {
    let place = |owner: u16| (usize::from(owner) < target.members.len()).then_some(owner);
    write(&TargetJson {
        v: VERSION,
        version: target.version,
        members: (target.members.iter())
            .map(|member| MemberJson { node: member.node.to_string(), weight: member.weight })
            .collect(),
        pins: target.pins.iter().map(|(slot, node)| (slot.0, node.to_string())).collect(),
        drained: target.drained.iter().map(ToString::to_string).collect(),
        owners: target.owners.iter().map(|&owner| place(owner)).collect(),
    })
}

pub fn decode_target(value: &[u8]) -> Result<Target, Error> {
    let json: TargetJson = read(value)?;
    let members: Result<Vec<Member>, Error> = (json.members.iter())
        .map(|member| Ok(Member { node: node_id(&member.node)?, weight: member.weight }))
        .collect();
    let pins: Result<BTreeMap<SlotId, NodeId>, Error> =
        json.pins.iter().map(|(slot, node)| Ok((SlotId(*slot), node_id(node)?))).collect();
    let drained: Result<BTreeSet<NodeId>, Error> = json.drained.iter().map(|node| node_id(node)).collect();
    Target::from_parts(json.version, members?, pins?, drained?, &json.owners)
        .ok_or_else(|| Error::Invalid("members out of order, or owners that are none of them".to_owned()))
}

// ---------------------------------------------------------------- frozen

/// Who has frozen ownership, and why.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Frozen {
    /// A node found that etcd was set back.
    SetBack { slot: SlotId, by: NodeId, why: Why },
    /// `banyan ring recover` is under way.
    Recover,
}

#[derive(Serialize, Deserialize)]
struct FrozenJson {
    v: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    slot: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    why: String,
}

/// For people: that the key is there is all that matters.
pub fn encode_frozen(frozen: &Frozen) -> Vec<u8> {
    let (slot, by, why) = match frozen {
        Frozen::SetBack { slot, by, why } => (Some(slot.0), Some(by.to_string()), text_of(*why)),
        Frozen::Recover => (None, None, "banyan ring recover is under way".to_owned()),
    };
    write(&FrozenJson { v: VERSION, slot, by, why })
}

fn text_of(why: Why) -> String {
    match why {
        Why::OtherOwner(row) => format!(
            "the store knows {} as owner of this slot at epoch {}: etcd was restored; run: banyan ring recover",
            row.tenure.incarnation, row.tenure.epoch
        ),
        Why::SetBack { served } => format!(
            "this slot was at epoch {served} before and is below it now: etcd was restored; run: banyan ring recover"
        ),
    }
}

/// The reason as a sentence for people, whoever wrote it.
pub fn frozen_reason(value: &[u8]) -> String {
    let Ok(json) = serde_json::from_slice::<FrozenJson>(value) else {
        return String::from_utf8_lossy(value).into_owned();
    };
    match (json.slot, json.by) {
        (Some(slot), Some(by)) => format!("slot {slot}, found by node {by}: {}", json.why),
        _ => json.why,
    }
}

// ---------------------------------------------------------------- meta

#[derive(Serialize, Deserialize)]
struct MetaJson {
    v: u32,
    cluster: String,
    slots: u32,
    data_center: String,
    keyspace: String,
    replication: u16,
}

pub fn encode_meta(meta: &Meta) -> Vec<u8> {
    write(&MetaJson {
        v: VERSION,
        cluster: meta.cluster.to_string(),
        slots: meta.founding.slots.get(),
        data_center: meta.founding.data_center.clone(),
        keyspace: meta.founding.keyspace.clone(),
        replication: meta.founding.replication,
    })
}

pub fn decode_meta(value: &[u8]) -> Result<Meta, Error> {
    let json: MetaJson = read(value)?;
    let cluster = hex_128(&json.cluster)
        .ok_or_else(|| Error::Invalid(format!("not the id of a cluster: {:?}", json.cluster)))?;
    let slots = SlotCount::new(json.slots).map_err(|error| Error::Invalid(error.to_string()))?;
    let MetaJson { data_center, keyspace, replication, .. } = json;
    Ok(Meta { cluster: ClusterId(cluster), founding: Founding { slots, data_center, keyspace, replication } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot_key::OwnerRow;
    use crate::target::solve;

    fn id(name: &str) -> NodeId {
        NodeId::parse(name).unwrap()
    }

    fn text(value: Vec<u8>) -> String {
        String::from_utf8(value).unwrap()
    }

    #[test]
    fn names_of_keys_never_change() {
        for (key, name) in [
            (Key::Slot(SlotId(0)), "slots/0"),
            (Key::Slot(SlotId(4_095)), "slots/4095"),
            (Key::Node(id("eu-1")), "nodes/eu-1"),
            (Key::Target, "target"),
            (Key::Frozen, "frozen"),
            (Key::Meta, "meta"),
        ] {
            assert_eq!(key.name(), name);
            assert_eq!(Key::parse(name), Some(key));
        }
        for other in
            ["", "slots/", "slots/07", "slots/-1", "slots/65536", "nodes/", "nodes/a b", "target/x", "metas"]
        {
            assert_eq!(Key::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_slot_key_is_readable() {
        let prev = Tenure { epoch: Epoch(6), incarnation: Incarnation(0xa) };
        let key = SlotKey {
            owner: id("eu-1"),
            incarnation: Incarnation(u128::MAX),
            epoch: Epoch((3 << 32) | 7),
            prev: Some(prev),
        };
        let want = r#"{"v":1,"owner":"eu-1","incarnation":"ffffffffffffffffffffffffffffffff","epoch":12884901895,"prev":{"incarnation":"0000000000000000000000000000000a","epoch":6}}"#;
        assert_eq!(text(encode_slot(&key)), want);
        assert_eq!(decode_slot(want.as_bytes()).unwrap(), key);
        let first = SlotKey { epoch: Epoch(1), prev: None, ..key };
        assert_eq!(decode_slot(&encode_slot(&first)).unwrap(), first);
    }

    #[test]
    fn a_node_key_is_readable() {
        let entry = NodeEntry {
            incarnation: Incarnation(0xb),
            peer_address: "10.0.0.7:7000".to_owned(),
            roles: vec![Role::Gateway, Role::Shard],
            weight: 2,
            state: State::Draining,
            release: "0.1.0".to_owned(),
        };
        let want = r#"{"v":1,"incarnation":"0000000000000000000000000000000b","peer_address":"10.0.0.7:7000","roles":["gateway","shard"],"weight":2,"state":"draining","release":"0.1.0"}"#;
        assert_eq!(text(encode_node(&entry)), want);
        assert_eq!(decode_node(want.as_bytes()).unwrap(), entry);
        // Of a newer release: a role and a field that this one does not know.
        let newer =
            want.replace(r#""shard""#, r#""shard","oracle""#).replace(r#""v":1"#, r#""v":1,"zone":"x""#);
        assert_eq!(decode_node(newer.as_bytes()).unwrap(), entry);
    }

    #[test]
    fn a_target_is_readable() {
        let members = ["a", "b"].map(|name| Member { node: id(name), weight: 1 });
        let mut target = solve(&Target::empty(SlotCount::new(4).unwrap()), members);
        target.pin(SlotId(2), Some(id("b")));
        let want = r#"{"v":1,"version":2,"members":[{"node":"a","weight":1},{"node":"b","weight":1}],"pins":{"2":"b"},"owners":[0,1,0,1]}"#;
        assert_eq!(text(encode_target(&target)), want);
        assert_eq!(decode_target(want.as_bytes()).unwrap(), target);
        target.pin(SlotId(2), None);
        target.drain(&id("a"), true);
        let want = r#"{"v":1,"version":4,"members":[{"node":"a","weight":1},{"node":"b","weight":1}],"drained":["a"],"owners":[0,1,0,1]}"#;
        assert_eq!(text(encode_target(&target)), want);
        assert_eq!(decode_target(want.as_bytes()).unwrap(), target);
        let empty = Target::empty(SlotCount::new(2).unwrap());
        let want = r#"{"v":1,"version":0,"members":[],"owners":[null,null]}"#;
        assert_eq!(text(encode_target(&empty)), want);
        assert_eq!(decode_target(want.as_bytes()).unwrap(), empty);
    }

    #[test]
    fn a_frozen_ring_says_why() {
        let row = OwnerRow { tenure: Tenure { epoch: Epoch(9), incarnation: Incarnation(2) }, closed: false };
        let frozen = Frozen::SetBack { slot: SlotId(7), by: id("a"), why: Why::OtherOwner(row) };
        let why = "the store knows 00000000000000000000000000000002 as owner of this slot at epoch 9: etcd was restored; run: banyan ring recover";
        assert_eq!(text(encode_frozen(&frozen)), format!(r#"{{"v":1,"slot":7,"by":"a","why":"{why}"}}"#));
        assert_eq!(frozen_reason(&encode_frozen(&frozen)), format!("slot 7, found by node a: {why}"));
        let recover = r#"{"v":1,"why":"banyan ring recover is under way"}"#;
        assert_eq!(text(encode_frozen(&Frozen::Recover)), recover);
        assert_eq!(frozen_reason(recover.as_bytes()), "banyan ring recover is under way");
        // Of a person who knew only the key's name.
        assert_eq!(frozen_reason(b"maintenance"), "maintenance");
    }

    #[test]
    fn what_a_cluster_was_founded_with_is_readable() {
        let meta = Meta {
            cluster: ClusterId(0xc1),
            founding: Founding {
                slots: SlotCount::DEFAULT,
                data_center: "eu-west".to_owned(),
                keyspace: "banyan".to_owned(),
                replication: 3,
            },
        };
        let want = r#"{"v":1,"cluster":"000000000000000000000000000000c1","slots":4096,"data_center":"eu-west","keyspace":"banyan","replication":3}"#;
        assert_eq!(text(encode_meta(&meta)), want);
        assert_eq!(decode_meta(want.as_bytes()).unwrap(), meta);
        let newer = want.replace(r#""v":1"#, r#""v":1,"zone":"x""#);
        assert_eq!(decode_meta(newer.as_bytes()).unwrap(), meta);
        for bad in
            [want.replace("4096", "4095"), want.replace("c1\"", "c\""), want.replace(r#""v":1"#, r#""v":2"#)]
        {
            assert!(decode_meta(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_not_a_value_is_refused() {
        assert!(matches!(decode_slot(br#"{"v":2}"#), Err(Error::Version(2))));
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"v":1}"#,
            r#"{"v":1,"owner":"a b","incarnation":"0000000000000000000000000000000a","epoch":1}"#,
            r#"{"v":1,"owner":"a","incarnation":"a","epoch":1}"#,
            r#"{"v":1,"owner":"a","incarnation":"+000000000000000000000000000000a","epoch":1}"#,
        ] {
            assert!(decode_slot(bad.as_bytes()).is_err(), "{bad}");
        }
        for bad in [
            r#"{"v":1,"version":1,"members":[{"node":"a","weight":1}],"owners":[1,0]}"#,
            r#"{"v":1,"version":1,"members":[{"node":"a","weight":1}],"owners":[0,0,0]}"#,
            r#"{"v":1,"version":1,"members":[{"node":"b","weight":1},{"node":"a","weight":1}],"owners":[0,0]}"#,
        ] {
            assert!(decode_target(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
