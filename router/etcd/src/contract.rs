//! What every backend of [`Coordination`] must do, as code: run on the stand-in and on every release of etcd that we support.
//!
//! Functions panic where the backend is wrong. Each uses a cluster name of its own, so they may share servers.

#![allow(
    clippy::unwrap_used,
    reason = "these are tests; they live here so that every backend's tests can run them"
)]

pub mod cluster;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use banyan_proto::id::{Epoch, Incarnation, SlotId, Tenure};
use banyan_router::encoding::{self, Key};
use banyan_router::meta::{ClusterId, Founding, Meta};
use banyan_router::node::{KeptAlive, Listing, TargetOutcome, Watched};
use banyan_router::node_key::{NodeEntry, Role, State};
use banyan_router::slot::SlotCount;
use banyan_router::slot_key::{NodeId, Peer, SlotKey};
use banyan_router::slot_owner::{CasOutcome, Failed, Why};
use banyan_router::target::{Member, Target, solve};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::coordination::{Coordination, Error, Event, Joined, PastValue};

/// A backend, and what may befall it.
pub trait World: Debug + Send + Sync {
    /// By a way that can be cut.
    fn ring(&self, cluster: &str) -> BoxFuture<'_, Arc<dyn Coordination>>;
    /// By a way that cannot.
    fn direct(&self, cluster: &str) -> BoxFuture<'_, Arc<dyn Coordination>>;
    /// Nothing is answered on the first way, or (`false`) all is again.
    fn cut(&self, cut: bool) -> BoxFuture<'_, ()>;
    /// Connections of the first way are broken, and may be made again.
    fn break_connections(&self) -> BoxFuture<'_, ()>;
    /// What was before now is forgotten.
    fn compact(&self) -> BoxFuture<'_, ()>;
    /// Sets a key by its full name.
    fn put(&self, key: String, value: Vec<u8>) -> BoxFuture<'_, ()>;
}

/// What takes longer will never come.
const LIMIT: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(2);

/// All of it, one after the other. Each says its name before it begins: the last one named is the one that failed.
pub async fn run(world: &dyn World, say: impl Fn(&str)) {
    say("what a cluster was founded with is written once");
    founded_once(world).await;
    say("a node is shown while its lease lives");
    shown_while_the_lease_lives(world).await;
    say("a node key is deleted only if it names that run");
    deleted_if_it_names_that_run(world).await;
    say("a slot changes by compare-and-swap on what was read");
    slots_are_swapped(world).await;
    slots_are_swapped_together(world).await;
    say("a frozen ring changes no slot");
    frozen_slots_stay(world).await;
    say("the first target wins");
    targets_are_swapped(world).await;
    say("what a newer release has written can be swapped");
    newer_values_are_swapped(world).await;
    say("what a newer release alone understands is left alone");
    unknown_values_are_left_alone(world).await;
    say("everything is listed, page by page, and its past is known");
    listed_in_pages(world).await;
    say("a watch lists, then shows every change in order");
    watched_in_order(world).await;
    say("a watch that broke goes on where it was");
    watch_resumes(world).await;
    say("a watch that is behind a compaction lists again");
    watch_survives_compaction(world).await;
    say("who is cut off hears so, and lists when it is over; transactions are unknown, never lost");
    cut_off(world).await;
    say("a cluster of runners: joins, hands over, takes over, recovers");
    cluster::run(world).await;
}

// ---------------------------------------------------------------- values

pub fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

pub fn peer(name: &str, incarnation: u128) -> Peer {
    Peer { node: node(name), incarnation: Incarnation(incarnation) }
}

pub fn entry(incarnation: u128) -> NodeEntry {
    NodeEntry {
        incarnation: Incarnation(incarnation),
        peer_address: "127.0.0.1:7000".to_owned(),
        roles: vec![Role::Shard],
        weight: 1,
        state: State::Up,
        release: "0.1.0".to_owned(),
    }
}

pub fn slot_key(name: &str, incarnation: u128, epoch: u64) -> SlotKey {
    let prev = (epoch > 1).then(|| Tenure { epoch: Epoch(epoch - 1), incarnation: Incarnation(9) });
    SlotKey { owner: node(name), incarnation: Incarnation(incarnation), epoch: Epoch(epoch), prev }
}

fn target(version: u64, names: &[&str]) -> Target {
    let members = names.iter().map(|name| Member { node: node(name), weight: 1 });
    let mut target = Target::empty(SlotCount::new(16).unwrap());
    for _ in 0..version {
        target.pin(SlotId(0), None);
    }
    solve(&target, members)
}

fn prefix(cluster: &str, key: &Key) -> String {
    format!("/banyan/{cluster}/{}", key.name())
}

// ---------------------------------------------------------------- keys

async fn founded_once(world: &dyn World) {
    let ring = world.ring("founded").await;
    let founding = |slots| Founding {
        slots: SlotCount::new(slots).unwrap(),
        data_center: "eu".to_owned(),
        keyspace: "banyan".to_owned(),
        replication: 3,
    };
    let first = Meta { cluster: ClusterId(1), founding: founding(64) };
    // Several at once: one wins, and all are of its cluster.
    let tries = (1..=4).map(|id| ring.meta(Meta { cluster: ClusterId(id), ..first.clone() }));
    let got: Vec<Meta> =
        futures_util::future::join_all(tries).await.into_iter().map(Result::unwrap).collect();
    assert!(got.iter().all(|meta| *meta == got[0]), "{got:?}");
    assert_eq!(ring.read_all().await.unwrap().meta, Some(got[0].clone()));
    let other = Meta { cluster: ClusterId(9), founding: founding(128) };
    let error = ring.meta(other).await.unwrap_err();
    assert!(matches!(error, Error::Mismatch(_)), "{error}");
    assert!(error.to_string().contains("128") && error.to_string().contains("64"), "{error}");
}

async fn shown_while_the_lease_lives(world: &dyn World) {
    let ring = world.ring("shown").await;
    let lease = ring.grant(TTL).await.unwrap();
    assert_eq!(ring.join(lease, node("a"), entry(1)).await, Joined::Done);
    assert_eq!(ring.read_node(Incarnation(1)).await, Ok(false));
    assert_eq!(ring.read_node(Incarnation(2)).await, Ok(true));
    // A second run of the name is refused and told by whom.
    let second = ring.grant(TTL).await.unwrap();
    assert_eq!(ring.join(second, node("a"), entry(2)).await, Joined::Taken(entry(1)));
    let draining = NodeEntry { state: State::Draining, ..entry(1) };
    assert_eq!(ring.put_node(lease, node("a"), draining.clone()).await, Ok(true));
    assert_eq!(ring.put_node(second, node("a"), entry(2)).await, Ok(false), "it is on another lease");
    assert_eq!(ring.read_all().await.unwrap().listing.nodes, [(node("a"), draining)]);
    // Beyond its time to live, while it is kept alive.
    let began = Instant::now();
    let mut kept = began;
    while began.elapsed() < TTL * 2 {
        kept = Instant::now();
        assert_eq!(ring.keep_alive(lease).await, KeptAlive::Done);
        sleep(TTL / 4).await;
    }
    assert_eq!(ring.read_node(Incarnation(1)).await, Ok(false));
    assert_eq!(ring.keep_alive(second).await, KeptAlive::LeaseGone, "nobody kept it alive");
    // And not when nobody does.
    while ring.read_node(Incarnation(1)).await != Ok(true) {
        assert!(kept.elapsed() < LIMIT, "its lease has run out");
        sleep(Duration::from_millis(50)).await;
    }
    assert!(kept.elapsed() >= TTL, "not before its time");
    assert_eq!(ring.keep_alive(lease).await, KeptAlive::LeaseGone);
    assert_eq!(ring.put_node(lease, node("a"), entry(1)).await, Ok(false), "it is never shown again");
    assert_eq!(ring.revoke(lease).await, Ok(()), "what is gone is revoked");
    // Whoever leaves in good order need not be waited for.
    let third = ring.grant(LIMIT).await.unwrap();
    assert_eq!(ring.join(third, node("a"), entry(3)).await, Joined::Done);
    assert_eq!(ring.revoke(third).await, Ok(()));
    assert_eq!(ring.read_node(Incarnation(3)).await, Ok(true));
}

async fn deleted_if_it_names_that_run(world: &dyn World) {
    let ring = world.ring("deleted").await;
    let lease = ring.grant(LIMIT).await.unwrap();
    assert_eq!(ring.join(lease, node("a"), entry(2)).await, Joined::Done);
    assert_eq!(ring.delete_node(peer("a", 1)).await, Ok(()));
    assert_eq!(ring.read_node(Incarnation(2)).await, Ok(false));
    assert_eq!(ring.delete_node(peer("a", 2)).await, Ok(()));
    assert_eq!(ring.read_node(Incarnation(2)).await, Ok(true));
    assert_eq!(ring.put_node(lease, node("a"), entry(2)).await, Ok(false), "it is never shown again");
}

async fn slots_are_swapped(world: &dyn World) {
    let ring = world.ring("slots").await;
    let slot = SlotId(7);
    let (first, second, third) = (slot_key("a", 1, 1), slot_key("b", 2, 2), slot_key("c", 3, 3));
    assert_eq!(ring.read_slot(slot).await, Ok(None));
    let lost = ring.cas_slot(slot, Some(first.clone()), second.clone()).await;
    assert_eq!(lost, CasOutcome::Lost(None));
    assert_eq!(ring.cas_slot(slot, None, first.clone()).await, CasOutcome::Won);
    assert_eq!(ring.cas_slot(slot, None, second.clone()).await, CasOutcome::Lost(Some(first.clone())));
    assert_eq!(ring.cas_slot(slot, Some(first.clone()), second.clone()).await, CasOutcome::Won);
    let lost = ring.cas_slot(slot, Some(first), third.clone()).await;
    assert_eq!(lost, CasOutcome::Lost(Some(second.clone())));
    assert_eq!(ring.read_slot(slot).await, Ok(Some(second.clone())));
    // Of many at once one wins.
    let tries = (10..30).map(|epoch| ring.cas_slot(slot, Some(second.clone()), slot_key("d", 4, epoch)));
    let outcomes = futures_util::future::join_all(tries).await;
    let won = outcomes.iter().filter(|outcome| **outcome == CasOutcome::Won).count();
    assert_eq!(won, 1, "{outcomes:?}");
    assert!(!outcomes.contains(&CasOutcome::Unknown), "{outcomes:?}");
}

/// Many slots at once, of which one in nine is not what was expected: that keeps none of the others.
async fn slots_are_swapped_together(world: &dyn World) {
    const SLOTS: u16 = 300;
    let ring = world.ring("together").await;
    let odd = |slot: u16| slot.is_multiple_of(9);
    let (first, other, second) = (slot_key("a", 1, 1), slot_key("b", 2, 1), slot_key("c", 3, 2));
    let founded = (0..SLOTS)
        .map(|slot| ring.cas_slot(SlotId(slot), None, if odd(slot) { &other } else { &first }.clone()));
    let founded = futures_util::future::join_all(founded).await;
    assert!(founded.iter().all(|outcome| *outcome == CasOutcome::Won), "{founded:?}");
    let swap = |slot| ring.cas_slot(SlotId(slot), Some(first.clone()), second.clone());
    let outcomes = futures_util::future::join_all((0..SLOTS).map(swap)).await;
    for (slot, outcome) in (0..SLOTS).zip(outcomes) {
        let want = if odd(slot) { CasOutcome::Lost(Some(other.clone())) } else { CasOutcome::Won };
        assert_eq!(outcome, want, "slot {slot}");
    }
    for (slot, found) in ring.read_all().await.unwrap().listing.slots {
        assert_eq!(found, if odd(slot.0) { other.clone() } else { second.clone() }, "{slot}");
    }
    let why = Why::SetBack { served: Epoch(5) };
    assert_eq!(ring.freeze(SlotId(1), Some(second.clone()), node("a"), why).await, CasOutcome::Won);
    let third = slot_key("d", 4, 3);
    let swaps = (1..9).map(|slot| ring.cas_slot(SlotId(slot), Some(second.clone()), third.clone()));
    for outcome in futures_util::future::join_all(swaps).await {
        assert_eq!(outcome, CasOutcome::Lost(Some(second.clone())), "frozen");
    }
}

async fn frozen_slots_stay(world: &dyn World) {
    let ring = world.ring("frozen").await;
    let slot = SlotId(3);
    let (first, second, third) = (slot_key("a", 1, 1), slot_key("b", 2, 2), slot_key("c", 3, 3));
    assert_eq!(ring.cas_slot(slot, None, first.clone()).await, CasOutcome::Won);
    let why = Why::SetBack { served: Epoch(5) };
    // Said too late: the slot is not what it was said of.
    let late = ring.freeze(slot, Some(second.clone()), node("a"), why).await;
    assert_eq!(late, CasOutcome::Lost(Some(first.clone())));
    assert_eq!(ring.read_all().await.unwrap().frozen, None);
    assert_eq!(ring.freeze(slot, Some(first.clone()), node("a"), why).await, CasOutcome::Won);
    let frozen = ring.read_all().await.unwrap();
    assert!(frozen.listing.frozen);
    assert!(frozen.frozen.as_ref().is_some_and(|why| why.contains("epoch 5")), "{frozen:?}");
    assert_eq!(ring.freeze_to_recover().await, Ok(()));
    assert_eq!(ring.read_all().await.unwrap().frozen, frozen.frozen, "the first reason stays");
    let lost = ring.cas_slot(slot, Some(first.clone()), second.clone()).await;
    assert_eq!(lost, CasOutcome::Lost(Some(first.clone())), "the key is as expected, and stays");
    assert_eq!(ring.cas_slot(SlotId(4), None, first.clone()).await, CasOutcome::Lost(None));
    assert_eq!(ring.recover_slot(slot, Some(first), second.clone()).await, CasOutcome::Won);
    assert_eq!(ring.lift_frozen().await, Ok(()));
    assert_eq!(ring.lift_frozen().await, Ok(()), "lifted already");
    assert_eq!(ring.cas_slot(slot, Some(second), third).await, CasOutcome::Won);
}

async fn targets_are_swapped(world: &dyn World) {
    let ring = world.ring("targets").await;
    let (one, two) = (Arc::new(target(0, &["a"])), Arc::new(target(0, &["a", "b"])));
    assert_eq!(ring.cas_target(None, Arc::clone(&one)).await, TargetOutcome::Won);
    assert_eq!(ring.cas_target(None, Arc::clone(&two)).await, TargetOutcome::Lost(Some(Arc::clone(&one))));
    assert_eq!(ring.cas_target(Some(Arc::clone(&one)), Arc::clone(&two)).await, TargetOutcome::Won);
    let lost = ring.cas_target(Some(one), Arc::new(target(0, &["c"]))).await;
    assert_eq!(lost, TargetOutcome::Lost(Some(Arc::clone(&two))));
    assert_eq!(ring.read_all().await.unwrap().listing.target, Some(two));
}

async fn newer_values_are_swapped(world: &dyn World) {
    let ring = world.ring("newer").await;
    let slot = SlotId(1);
    let (first, second) = (slot_key("a", 1, 1), slot_key("b", 2, 2));
    let newer = |value: Vec<u8>| {
        String::from_utf8(value).unwrap().replacen("\"v\":1", "\"v\":1,\"colour\":\"red\"", 1).into_bytes()
    };
    world.put(prefix("newer", &Key::Slot(slot)), newer(encoding::encode_slot(&first))).await;
    assert_eq!(ring.cas_slot(slot, Some(first.clone()), second.clone()).await, CasOutcome::Won);
    world.put(prefix("newer", &Key::Slot(slot)), newer(encoding::encode_slot(&second))).await;
    assert_eq!(
        ring.cas_slot(slot, Some(first), slot_key("c", 3, 3)).await,
        CasOutcome::Lost(Some(second.clone()))
    );
    assert_eq!(ring.freeze_to_recover().await, Ok(()));
    let frozen = ring.cas_slot(slot, Some(second.clone()), slot_key("c", 3, 3)).await;
    assert_eq!(frozen, CasOutcome::Lost(Some(second)), "frozen, whoever wrote it");
    let (one, two) = (target(0, &["a"]), target(0, &["a", "b"]));
    world.put(prefix("newer", &Key::Target), newer(encoding::encode_target(&one))).await;
    assert_eq!(ring.cas_target(Some(Arc::new(one)), Arc::new(two)).await, TargetOutcome::Won);
}

async fn unknown_values_are_left_alone(world: &dyn World) {
    let ring = world.ring("unknown").await;
    let (slot, v2) = (SlotId(1), br#"{"v":2,"who":"knows"}"#.to_vec());
    world.put(prefix("unknown", &Key::Slot(slot)), v2.clone()).await;
    world.put(prefix("unknown", &Key::Node(node("z"))), v2).await;
    world.put("/banyan/unknown/else/where".to_owned(), b"1".to_vec()).await;
    assert_eq!(ring.read_slot(slot).await, Err(Failed));
    assert_eq!(ring.cas_slot(slot, None, slot_key("a", 1, 1)).await, CasOutcome::Unknown);
    assert_eq!(ring.read_node(Incarnation(1)).await, Err(Failed), "it may be that one");
    let listing = ring.read_all().await.unwrap().listing;
    assert_eq!((listing.slots.len(), listing.nodes.len()), (0, 0));
}

async fn listed_in_pages(world: &dyn World) {
    const SLOTS: u16 = 2_100;
    let ring = world.ring("pages").await;
    let before = ring.read_all().await.unwrap().revision;
    let puts = stream::iter(0..SLOTS).map(|slot| ring.cas_slot(SlotId(slot), None, slot_key("a", 1, 1)));
    let outcomes: Vec<CasOutcome> = puts.buffer_unordered(64).collect().await;
    assert!(outcomes.iter().all(|outcome| *outcome == CasOutcome::Won));
    for epoch in 2..=5 {
        let (old, new) = (slot_key("a", 1, epoch - 1), slot_key("a", 1, epoch));
        assert_eq!(ring.cas_slot(SlotId(0), Some(old), new).await, CasOutcome::Won);
    }
    let all = ring.read_all().await.unwrap();
    let mut slots: Vec<SlotId> = all.listing.slots.iter().map(|(slot, _)| *slot).collect();
    slots.sort_unstable();
    assert_eq!(slots, (0..SLOTS).map(SlotId).collect::<Vec<_>>());
    assert!(
        all.revision - before < i64::from(SLOTS) / 4,
        "swaps share transactions: {before}, {}",
        all.revision
    );
    let past = ring.history(Key::Slot(SlotId(0)), 3).await.unwrap();
    let epochs = past.iter().map(|past| match &past.value {
        PastValue::Slot(key) => key.epoch.0,
        other => panic!("{other:?}"),
    });
    assert_eq!(epochs.collect::<Vec<_>>(), [5, 4, 3]);
    assert!(past.is_sorted_by(|a, b| a.revision > b.revision), "{past:?}");
    assert_eq!(ring.history(Key::Slot(SlotId(0)), 99).await.unwrap().len(), 5);
    assert_eq!(ring.history(Key::Target, 9).await.unwrap().len(), 0);
}

// ---------------------------------------------------------------- watch

async fn next(events: &mut mpsc::Receiver<Event>) -> Event {
    timeout(LIMIT, events.recv()).await.expect("the watch shows it").expect("the watch goes on")
}

async fn next_listing(events: &mut mpsc::Receiver<Event>) -> Listing {
    match next(events).await {
        Event::Listed(listing) => *listing,
        other => panic!("not a listing: {other:?}"),
    }
}

fn slot_event(slot: SlotId, key: SlotKey) -> Event {
    Event::Watched(Watched::Slot { slot, key: Some(key) })
}

async fn watched_in_order(world: &dyn World) {
    let ring = world.ring("watched").await;
    let lease = ring.grant(LIMIT).await.unwrap();
    assert_eq!(ring.join(lease, node("a"), entry(1)).await, Joined::Done);
    assert_eq!(ring.cas_slot(SlotId(0), None, slot_key("a", 1, 1)).await, CasOutcome::Won);
    let mut events = ring.watch(4);
    let listing = next_listing(&mut events).await;
    assert_eq!(listing.slots, [(SlotId(0), slot_key("a", 1, 1))]);
    assert_eq!(listing.nodes, [(node("a"), entry(1))]);
    assert_eq!((listing.target, listing.frozen), (None, false));
    // More than the buffer holds, before anybody looks.
    for epoch in 2..40 {
        let (old, new) = (slot_key("a", 1, epoch - 1), slot_key("a", 1, epoch));
        assert_eq!(ring.cas_slot(SlotId(0), Some(old), new).await, CasOutcome::Won);
    }
    let one = Arc::new(target(0, &["a"]));
    assert_eq!(ring.cas_target(None, Arc::clone(&one)).await, TargetOutcome::Won);
    assert_eq!(ring.freeze_to_recover().await, Ok(()));
    assert_eq!(ring.lift_frozen().await, Ok(()));
    assert_eq!(ring.revoke(lease).await, Ok(()));
    for epoch in 2..40 {
        assert_eq!(next(&mut events).await, slot_event(SlotId(0), slot_key("a", 1, epoch)));
    }
    assert_eq!(next(&mut events).await, Event::Watched(Watched::Target(Some(one))));
    assert_eq!(next(&mut events).await, Event::Watched(Watched::Frozen(true)));
    assert_eq!(next(&mut events).await, Event::Watched(Watched::Frozen(false)));
    assert_eq!(next(&mut events).await, Event::Watched(Watched::Node { node: node("a"), entry: None }));
}

async fn watch_resumes(world: &dyn World) {
    let (ring, direct) = (world.ring("resumes").await, world.direct("resumes").await);
    assert_eq!(ring.cas_slot(SlotId(0), None, slot_key("a", 1, 1)).await, CasOutcome::Won);
    let mut events = ring.watch(64);
    next_listing(&mut events).await;
    for epoch in 2..12 {
        if epoch % 3 == 0 {
            world.break_connections().await;
        }
        let (old, new) = (slot_key("a", 1, epoch - 1), slot_key("a", 1, epoch));
        assert_eq!(direct.cas_slot(SlotId(0), Some(old), new.clone()).await, CasOutcome::Won);
        // Nothing twice, nothing left out, and no listing unless it says that it was away for long: a busy machine may be.
        let mut gone = false;
        loop {
            match next(&mut events).await {
                Event::Gone => gone = true,
                Event::Listed(listing) if gone => {
                    gone = false;
                    if listing.slots == [(SlotId(0), new.clone())] {
                        break;
                    }
                }
                event => {
                    assert_eq!(event, slot_event(SlotId(0), new));
                    break;
                }
            }
        }
    }
}

async fn watch_survives_compaction(world: &dyn World) {
    let (ring, direct) = (world.ring("compacted").await, world.direct("compacted").await);
    assert_eq!(ring.cas_slot(SlotId(0), None, slot_key("a", 1, 1)).await, CasOutcome::Won);
    let mut events = ring.watch(64);
    next_listing(&mut events).await;
    world.cut(true).await;
    for epoch in 2..6 {
        let (old, new) = (slot_key("a", 1, epoch - 1), slot_key("a", 1, epoch));
        assert_eq!(direct.cas_slot(SlotId(0), Some(old), new).await, CasOutcome::Won);
    }
    world.compact().await;
    world.break_connections().await;
    world.cut(false).await;
    // It may have seen some of it before it was cut, and may have been told that it is cut off; never a change after a gap.
    let mut seen = 1;
    loop {
        match next(&mut events).await {
            Event::Gone => {}
            Event::Listed(listing) => {
                assert_eq!(listing.slots, [(SlotId(0), slot_key("a", 1, 5))]);
                break;
            }
            Event::Watched(Watched::Slot { key: Some(key), .. }) => {
                assert_eq!(key.epoch.0, seen + 1, "a change is left out");
                seen += 1;
                if seen == 5 {
                    break;
                }
            }
            other @ Event::Watched(_) => panic!("{other:?}"),
        }
    }
    assert_eq!(direct.cas_slot(SlotId(1), None, slot_key("a", 1, 1)).await, CasOutcome::Won);
    assert_eq!(next(&mut events).await, slot_event(SlotId(1), slot_key("a", 1, 1)));
}

async fn cut_off(world: &dyn World) {
    let (ring, direct) = (world.ring("cut").await, world.direct("cut").await);
    let first = slot_key("a", 1, 1);
    assert_eq!(ring.cas_slot(SlotId(0), None, first.clone()).await, CasOutcome::Won);
    let lease = ring.grant(LIMIT).await.unwrap();
    let mut events = ring.watch(64);
    next_listing(&mut events).await;
    world.cut(true).await;
    // Somebody asks now and then, as a node does.
    let began = Instant::now();
    let gone = loop {
        assert_eq!(ring.keep_alive(lease).await, KeptAlive::Failed);
        match timeout(Duration::from_millis(200), events.recv()).await {
            Ok(event) => break event,
            Err(_) => assert!(began.elapsed() < LIMIT, "who is cut off must hear of it"),
        }
    };
    assert_eq!(gone, Some(Event::Gone));
    assert_eq!(ring.read_slot(SlotId(0)).await, Err(Failed));
    assert_eq!(ring.read_node(Incarnation(1)).await, Err(Failed));
    let unknown = ring.cas_slot(SlotId(0), None, slot_key("b", 2, 1)).await;
    assert_eq!(unknown, CasOutcome::Unknown, "nobody said that it is lost");
    let one = Arc::new(target(0, &["a"]));
    assert_eq!(ring.cas_target(None, Arc::clone(&one)).await, TargetOutcome::Unknown);
    let second = slot_key("b", 2, 2);
    assert_eq!(direct.cas_slot(SlotId(0), Some(first), second.clone()).await, CasOutcome::Won);
    world.break_connections().await;
    world.cut(false).await;
    let listing = next_listing(&mut events).await;
    assert_eq!(listing.slots, [(SlotId(0), second.clone())]);
    let third = slot_key("c", 3, 3);
    let began = Instant::now();
    while ring.cas_slot(SlotId(0), Some(second.clone()), third.clone()).await == CasOutcome::Unknown {
        assert!(began.elapsed() < LIMIT, "it answers again");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(next_slot(&mut events).await, slot_event(SlotId(0), third));
}

/// Beside the target, which may have been written unheard.
async fn next_slot(events: &mut mpsc::Receiver<Event>) -> Event {
    loop {
        match next(events).await {
            Event::Watched(Watched::Target(_)) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Keys;
    use crate::kv::{Kv as _, Then, Txn};
    use crate::memory::{Reach, Store};
    use futures_util::FutureExt as _;

    #[derive(Debug, Default)]
    struct InMemory(Store);

    impl World for InMemory {
        fn ring(&self, cluster: &str) -> BoxFuture<'_, Arc<dyn Coordination>> {
            let keys: Arc<dyn Coordination> = Arc::new(Keys::new(self.0.clone(), cluster).unwrap());
            std::future::ready(keys).boxed()
        }

        fn direct(&self, cluster: &str) -> BoxFuture<'_, Arc<dyn Coordination>> {
            let keys: Arc<dyn Coordination> = Arc::new(Keys::new(self.0.direct(), cluster).unwrap());
            std::future::ready(keys).boxed()
        }

        fn cut(&self, cut: bool) -> BoxFuture<'_, ()> {
            self.0.set_reach(if cut { Reach::Hangs } else { Reach::Up });
            std::future::ready(()).boxed()
        }

        fn break_connections(&self) -> BoxFuture<'_, ()> {
            self.0.break_watches();
            std::future::ready(()).boxed()
        }

        fn compact(&self) -> BoxFuture<'_, ()> {
            self.0.compact();
            std::future::ready(()).boxed()
        }

        fn put(&self, key: String, value: Vec<u8>) -> BoxFuture<'_, ()> {
            async move {
                let then = Then::Put { key: key.into_bytes(), value, lease: None };
                self.0.txn(Txn { when: Vec::new(), then: vec![then], read: Vec::new() }).await.unwrap();
            }
            .boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_stand_in_keeps_the_contract() {
        run(&InMemory::default(), |check| println!("{check}")).await;
    }
}
