//! Where the page's picture comes from: a run's view of the ring, or a node that is alone.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use banyan_proto::id::Tenure;
use banyan_router::SlotCount;
use banyan_router::node::Standing;
use banyan_router::node_key::{NodeEntry, Role, State};
use banyan_router::slot_key::{NodeId, SlotKey};
use banyan_router_etcd::View;

use super::picture::{Head, Picture};
use crate::cluster::CurrentRun;
use crate::shares::Shares;
use crate::version::VERSION;

/// What a node knows.
#[derive(Debug)]
pub(crate) enum Source {
    /// It owns every slot.
    Alone { node: String, address: String, tenure: Tenure },
    /// What its newest run has seen.
    Cluster { name: String, run: CurrentRun },
}

impl Source {
    /// Makes the picture that of now. `false`: there is nothing to see yet.
    pub(super) fn look(&self, picture: &mut Picture) -> bool {
        match self {
            Self::Alone { node, address, tenure } => {
                picture.is_new() && alone(picture, node, address, *tenure) || !picture.is_new()
            }
            Self::Cluster { name, run } => {
                let run = run.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let Some(run) = run else { return false };
                let view = run.view().borrow().clone();
                in_cluster(picture, name, view);
                true
            }
        }
    }
}

fn alone(picture: &mut Picture, node: &str, address: &str, tenure: Tenure) -> bool {
    // The configuration takes the same names.
    let Ok(node) = NodeId::parse(node) else { return false };
    let entry = NodeEntry {
        incarnation: tenure.incarnation,
        peer_address: address.to_owned(),
        roles: vec![Role::Gateway, Role::Shard],
        weight: 100,
        state: State::Up,
        release: VERSION.to_owned(),
    };
    let key =
        SlotKey { owner: node.clone(), incarnation: tenure.incarnation, epoch: tenure.epoch, prev: None };
    let key = Arc::new(key);
    let entries = BTreeMap::from([(node.clone(), entry)]);
    let shares = Shares::new(SlotCount::DEFAULT, &entries, None, |_| Some(Arc::clone(&key)));
    let head = Head {
        cluster: None,
        node: node.to_string(),
        standing: "up",
        fresh: true,
        frozen: false,
        target_version: None,
    };
    picture.become_that(head, shares, None);
    true
}

fn in_cluster(picture: &mut Picture, name: &str, view: View) {
    if picture.view().is_some_and(|before| is_same(before, &view)) {
        return;
    }
    let key_of = |slot| view.slots.get(slot).map(Arc::clone);
    let shares = Shares::new(view.slots.count(), &view.nodes, view.target.as_deref(), key_of);
    let head = Head {
        cluster: Some(name.to_owned()),
        node: view.me.node.to_string(),
        standing: word(view.standing),
        // A run that is over sees nothing any more.
        fresh: view.fresh && !matches!(view.standing, Standing::Dead | Standing::Left),
        frozen: view.frozen,
        target_version: view.target.as_ref().map(|target| target.version()),
    };
    picture.become_that(head, shares, Some(view));
}

fn is_same(before: &View, now: &View) -> bool {
    let target = match (&before.target, &now.target) {
        (Some(before), Some(now)) => Arc::ptr_eq(before, now),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    target
        && before.me == now.me
        && (before.standing, before.fresh, before.frozen) == (now.standing, now.fresh, now.frozen)
        && Arc::ptr_eq(&before.nodes, &now.nodes)
        && now.slots.changed_since(&before.slots).next().is_none()
}

fn word(standing: Standing) -> &'static str {
    match standing {
        Standing::Starting => "starting",
        Standing::Up => "up",
        Standing::Degraded => "degraded",
        Standing::Frozen => "frozen",
        Standing::Draining => "draining",
        Standing::Left => "left",
        Standing::Dead => "dead",
    }
}
