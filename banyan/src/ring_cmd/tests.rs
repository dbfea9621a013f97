//! What the commands print of fixed rings, what they decide, and what they do to a ring of runners in this process.

use std::sync::Arc;
use std::time::Duration;

use banyan_proto::id::{Epoch, Incarnation, SlotId};
use banyan_router::meta::{ClusterId, Founding, Meta};
use banyan_router::node::{Listing, TargetOutcome};
use banyan_router::node_key::{self, NodeEntry, Role};
use banyan_router::slot::SlotCount;
use banyan_router::slot_key::{NodeId, SlotKey};
use banyan_router::target::{Member, Target, solve};
use banyan_router_etcd::contract::cluster::{Ground, Running, place, start, until, until_serving};
use banyan_router_etcd::contract::{entry, peer};
use banyan_router_etcd::coordination::{Coordination, Everything};
use banyan_router_etcd::memory::Reach;
use banyan_router_etcd::surroundings::Records;
use banyan_router_etcd::{Keys, Memory};
use futures_util::FutureExt as _;
use serde_json::{Value, json};

use super::change::{Wish, decide};
use super::*;
use crate::cli::Joiner;

pub(crate) fn id(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn member(name: &str, weight: u32) -> Member {
    Member { node: id(name), weight }
}

fn meta(slots: u32) -> Meta {
    let founding = Founding {
        slots: SlotCount::new(slots).unwrap(),
        data_center: "datacenter1".to_owned(),
        keyspace: "banyan".to_owned(),
        replication: 3,
    };
    Meta { cluster: ClusterId(0xc1), founding }
}

/// Told apart by its first digits, as random ones are.
fn run(number: u128) -> Incarnation {
    Incarnation(number << 120 | number)
}

fn node(incarnation: u128, roles: &[Role]) -> NodeEntry {
    NodeEntry {
        incarnation: run(incarnation),
        peer_address: format!("10.0.0.{incarnation}:7000"),
        roles: roles.to_vec(),
        weight: 100,
        state: node_key::State::Up,
        release: "0.1.0".to_owned(),
    }
}

const BOTH: &[Role] = &[Role::Gateway, Role::Shard];

/// Sixteen slots of a and b, c has just come, slot 5's owner is gone; and a gateway that has none.
pub(crate) fn state() -> State {
    let before = solve(&Target::empty(SlotCount::new(16).unwrap()), [member("a", 100), member("b", 100)]);
    let mut target = before.clone();
    target.pin(SlotId(0), Some(id("c")));
    let target = solve(&target, ["a", "b", "c"].map(|name| member(name, 100)));
    let slots = (0..16).map(SlotId).map(|slot| {
        let owner = before.owner(slot).unwrap().clone();
        let incarnation = run(if slot.0 == 5 {
            99
        } else if owner == id("a") {
            1
        } else {
            2
        });
        (slot, SlotKey { owner, incarnation, epoch: Epoch(u64::from(slot.0) + 1), prev: None })
    });
    let nodes = [("a", 1, BOTH), ("b", 2, BOTH), ("c", 3, BOTH), ("edge", 4, &[Role::Gateway][..])];
    let listing = Listing {
        slots: slots.collect(),
        nodes: nodes.map(|(name, incarnation, roles)| (id(name), node(incarnation, roles))).to_vec(),
        target: Some(Arc::new(target)),
        frozen: false,
    };
    let everything = Everything { revision: 40, listing, frozen: None, meta: Some(meta(16)) };
    State::new("banyan", everything).unwrap()
}

// ---------------------------------------------------------------- what is printed

#[test]
fn a_ring_is_shown_as_a_table_and_a_map() {
    let mut state = state();
    assert_eq!(show::text(&state, Some(false)), SHOWN);
    let coloured = show::text(&state, Some(true));
    assert!(coloured.contains("\x1b[38;5;16;48;5;114mA\x1b[0m a"), "{coloured:?}");
    state.frozen = Some("slot 7, found by node a: etcd was restored".to_owned());
    let text = show::text(&state, None);
    let line = text.lines().nth(1).unwrap();
    assert_eq!(line, "FROZEN, no slot changes its owner: slot 7, found by node a: etcd was restored");
    assert!(!text.contains("\n 0 "), "no map: {text}");
}

const SHOWN: &str = "\
cluster banyan: 16 slots, target version 3, etcd revision 40

NODE  STATE  WEIGHT  WANTED  OWNED  COMING  GOING
a     up        100       5      7       0      3
b     up        100       6      8       0      2
c     up        100       5      0       5      0

moving 5, without owner 1, pinned 1, max - min 1

A a   B b   C c   > moving   . without owner
 0 >BA>B.>BA>BA>BBA
";

#[test]
fn a_ring_as_json_never_loses_a_field() {
    let shown: Value = serde_json::from_str(&json_line(&show::Shown::new(&state()))).unwrap();
    let slots = shown["slots"].as_array().unwrap();
    assert_eq!(slots.len(), 16);
    assert_eq!(
        slots[5],
        json!({"slot": 5, "owner": null, "wanted": slots[5]["wanted"], "epoch": 6, "pinned": false})
    );
    assert_eq!(slots[0], json!({"slot": 0, "owner": "a", "wanted": "c", "epoch": 1, "pinned": true}));
    let mut rest = shown.clone();
    rest.as_object_mut().unwrap().remove("slots");
    let node = |node: &str, wanted: u32, owned: u32, coming: u32, going: u32| {
        json!({
            "node": node, "state": "up", "weight": 100,
            "wanted": wanted, "owned": owned, "coming": coming, "going": going,
        })
    };
    let want = json!({
        "cluster": "banyan", "id": "000000000000000000000000000000c1", "revision": 40, "frozen": null,
        "target_version": 3,
        "nodes": [node("a", 5, 7, 0, 3), node("b", 6, 8, 0, 2), node("c", 5, 0, 5, 0)],
        "moving": 5, "without_owner": 1, "pinned": 1, "spread": 1,
    });
    assert_eq!(rest, want);
}

#[test]
fn many_slots_share_marks() {
    let target = solve(&Target::empty(SlotCount::MAX), [member("a", 1)]);
    let listing =
        Listing { slots: Vec::new(), nodes: Vec::new(), target: Some(Arc::new(target)), frozen: false };
    let everything = Everything { revision: 1, listing, frozen: None, meta: Some(meta(1 << 16)) };
    let text = show::text(&State::new("x", everything).unwrap(), Some(false));
    assert!(text.contains("one mark for 16 slots"), "{text}");
    assert_eq!(text.lines().filter(|line| line.ends_with("......")).count(), 32);
    assert!(text.contains("a     away"), "{text}");
}

#[test]
fn a_room_is_found() {
    let state = state();
    let rooms = ["general", "~alice", "room-21"].map(str::to_owned);
    let found = whereabouts::find(&state, &rooms).unwrap();
    let want = "\
ROOM     SLOT  OWNER         EPOCH  ADDRESS        WANTED
general     3  b                 4  10.0.0.2:7000  c
~alice     14  b                15  10.0.0.2:7000  b
room-21     5  none (was a)      6  -              a
";
    assert_eq!(whereabouts::text(&found), want);
    let want = json!([
        {
            "room": "general", "slot": 3,
            "owner": {
                "node": "b", "incarnation": "02000000000000000000000000000002", "epoch": 4,
                "address": "10.0.0.2:7000",
            },
            "last_owner": null, "wanted": "c", "pinned": false,
        },
        {
            "room": "room-21", "slot": 5, "owner": null,
            "last_owner": {
                "node": "a", "incarnation": "63000000000000000000000000000063", "epoch": 6, "address": null,
            },
            "wanted": "a", "pinned": false,
        },
    ]);
    assert_eq!(json!([found[0], found[2]]), want);
    for bad in ["", "a b", "~", &"r".repeat(200)] {
        let failure = whereabouts::find(&state, &[bad.to_owned()]).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage, "{bad}: {failure}");
    }
}

#[test]
fn a_plan_says_what_would_move() {
    let state = state();
    let d = Joiner { node: id("d"), weight: None };
    let plan = plan::solve_with(&state, std::slice::from_ref(&d), &[id("a")]).unwrap();
    let want = "\
NODE  WEIGHT  BEFORE  AFTER  CHANGE
a          -       5      0      -5
b        100       6      6       0
c        100       5      5       0
d        100       0      5      +5

FROM  TO  SLOTS
a     d       5

SLOT  FROM  TO
   2  a     d
   5  a     d
   8  a     d
  11  a     d
  15  a     d

5 of 16 slots move, max - min 1 before, 1 after
";
    assert_eq!(plan.text(true), want);
    let moves = [2, 5, 8, 11, 15].map(|slot| json!({"slot": slot, "from": "a", "to": "d"}));
    let want = json!({
        "slots": 16, "moved": 5, "spread_before": 1, "spread_after": 1,
        "nodes": [
            {"node": "a", "weight": null, "before": 5, "after": 0},
            {"node": "b", "weight": 100, "before": 6, "after": 6},
            {"node": "c", "weight": 100, "before": 5, "after": 5},
            {"node": "d", "weight": 100, "before": 0, "after": 5},
        ],
        "by_pair": [{"from": "a", "to": "d", "slots": 5}],
        "moves": moves,
    });
    assert_eq!(serde_json::to_value(&plan).unwrap(), want);
    // Another weight.
    let heavier = Joiner { node: id("b"), weight: Some(200) };
    let plan = plan::solve_with(&state, &[heavier], &[]).unwrap();
    assert!(plan.text(false).ends_with("max - min 1 before, by weight after\n"), "{}", plan.text(false));
    for (join, leave, want) in [
        (vec![Joiner { node: id("b"), weight: None }], vec![], "node b has slots already"),
        (vec![], vec![id("z")], "there is no node z in this cluster"),
    ] {
        let failure = plan::solve_with(&state, &join, &leave).unwrap_err();
        assert_eq!((failure.exit, failure.lines[0].as_str()), (Exit::Usage, want));
    }
}

#[test]
fn nodes_are_listed() {
    let list = crate::node_cmd::list(&state());
    let want = "\
NODE  STATE  ROLES          WEIGHT  SLOTS  ADDRESS        INCARNATION  RELEASE
a     up     gateway,shard     100      7  10.0.0.1:7000  01000000     0.1.0
b     up     gateway,shard     100      8  10.0.0.2:7000  02000000     0.1.0
c     up     gateway,shard     100      0  10.0.0.3:7000  03000000     0.1.0
edge  up     gateway             -      0  10.0.0.4:7000  04000000     0.1.0
";
    assert_eq!(crate::node_cmd::text(&list), want);
    let want = json!({
        "node": "b", "state": "up", "roles": ["gateway", "shard"], "weight": 100, "slots": 8, "wanted": 6,
        "address": "10.0.0.2:7000", "incarnation": "02000000000000000000000000000002", "release": "0.1.0",
    });
    assert_eq!(serde_json::to_value(&list[1]).unwrap(), want);
}

#[test]
fn a_recovery_is_explained_before_it_is_begun() {
    let mut state = state();
    assert!(recover::explained(&state).contains("NOT frozen"));
    state.frozen = Some("slot 7: etcd was restored".to_owned());
    let text = recover::explained(&state);
    assert!(
        text.starts_with("cluster banyan, 16 slots, 4 nodes there\nownership is frozen: slot 7"),
        "{text}"
    );
}

// ---------------------------------------------------------------- what is decided

/// A ring at rest: every slot is where it should be.
fn at_rest(names: &[&str]) -> State {
    let target =
        solve(&Target::empty(SlotCount::new(16).unwrap()), names.iter().map(|name| member(name, 100)));
    with_target(names, target)
}

fn with_target(names: &[&str], target: Target) -> State {
    let nodes = names.iter().zip(1..).map(|(name, incarnation)| (id(name), node(incarnation, BOTH)));
    let listing =
        Listing { slots: Vec::new(), nodes: nodes.collect(), target: Some(Arc::new(target)), frozen: false };
    let everything = Everything { revision: 1, listing, frozen: None, meta: Some(meta(16)) };
    State::new("banyan", everything).unwrap()
}

fn slots_of(target: &Target, name: &str) -> Vec<SlotId> {
    (0..16).map(SlotId).filter(|slot| target.owner(*slot) == Some(&id(name))).collect()
}

#[test]
fn a_moved_slot_stays_where_it_was_moved() {
    let names = ["a", "b", "c", "d"];
    let state = at_rest(&names);
    let target = state.placed().unwrap();
    let slot = slots_of(target, "a")[0];
    let moved = decide(&state, &[slot], Wish::Move(&id("b"))).unwrap().unwrap();
    assert_eq!(moved.owner(slot), Some(&id("b")));
    assert!(moved.pins().is_empty() && moved.version() > target.version());
    assert_eq!(plan::spread(&moved).map(|spread| spread <= 1), Some(true));
    // What any node does next changes nothing.
    assert_eq!(solve(&moved, moved.members().to_vec()), moved);
    // Said twice it is done once.
    assert_eq!(decide(&with_target(&names, moved), &[slot], Wish::Move(&id("b"))), Ok(None));
}

#[test]
fn what_would_not_last_is_refused() {
    let names = ["a", "b", "c", "d"];
    let state = at_rest(&names);
    let target = Target::clone(state.placed().unwrap());
    let all: Vec<SlotId> = (0..16).map(SlotId).collect();
    let refused = |state: &State, slots: &[SlotId], wish: Wish<'_>| {
        let failure = decide(state, slots, wish).unwrap_err();
        (failure.exit, failure.lines[0].clone())
    };
    let (exit, line) = refused(&state, &all, Wish::Move(&id("b")));
    assert_eq!(exit, Exit::No);
    assert!(line.ends_with("would not stay at node b: it would have more than its share"), "{line}");
    let elsewhere = refused(&state, &all, Wish::Move(&id("z")));
    assert_eq!(elsewhere, (Exit::Usage, "there is no node z in this cluster".to_owned()));
    let elsewhere = refused(&state, &all, Wish::Pin(&id("z")));
    assert_eq!(elsewhere, (Exit::Usage, "there is no node z in this cluster".to_owned()));

    let pinned = decide(&state, &all[..8], Wish::Pin(&id("b"))).unwrap().unwrap();
    assert!(all[..8].iter().all(|slot| pinned.owner(*slot) == Some(&id("b"))));
    let state = with_target(&names, pinned);
    assert_eq!(decide(&state, &all[..8], Wish::Pin(&id("b"))), Ok(None));
    let bound = refused(&state, &all[..1], Wish::Move(&id("a")));
    assert_eq!(bound, (Exit::No, "slot 0 is pinned to node b".to_owned()));
    let free = decide(&state, &all, Wish::Unpin).unwrap().unwrap();
    assert!(free.pins().is_empty() && plan::spread(&free) == Some(0));

    let mut drained = target;
    drained.drain(&id("b"), true);
    let state = with_target(&names, solve(&drained, drained.members().to_vec()));
    // To who has just come, or is away, it may be pinned; never to who takes none.
    let living = self::state();
    let first = [SlotId(1)];
    assert_eq!(
        refused(&living, &first, Wish::Pin(&id("edge"))),
        (Exit::No, "node edge owns no rooms".to_owned())
    );
    assert!(decide(&living, &first, Wish::Pin(&id("c"))).unwrap().is_some());
    for wish in [Wish::Move(&id("b")), Wish::Pin(&id("b"))] {
        let gone = refused(&state, &all[..1], wish);
        assert_eq!(gone, (Exit::No, "node b is drained".to_owned()));
    }
}

#[test]
fn the_last_node_is_not_drained() {
    let state = at_rest(&["a", "b"]);
    let one = drained(&state, &id("a"), true).unwrap().unwrap();
    assert_eq!(one.loads(), [0, 16]);
    let state = with_target(&["a", "b"], one);
    assert_eq!(state.node(&id("a")).unwrap().state(), "drained");
    assert_eq!(drained(&state, &id("a"), true), Ok(None), "it is already");
    let failure = drained(&state, &id("b"), true).unwrap_err();
    assert_eq!(failure.lines, ["nobody would be left to take the slots of node b"]);
    let failure = drained(&state, &id("z"), true).unwrap_err();
    assert_eq!((failure.exit, failure.hint.as_deref()), (Exit::Usage, Some("there are a, b")));
    let back = drained(&state, &id("a"), false).unwrap().unwrap();
    assert_eq!(back.loads(), [8, 8]);
}

#[test]
fn slots_are_named_by_numbers_and_ranges() {
    assert_eq!(slots_named(&[3..=4, 4..=5], 16), Ok([3, 4, 5].map(SlotId).to_vec()));
    let failure = slots_named(&[0..=16], 16).unwrap_err();
    assert_eq!(failure.lines, ["there is no slot 16: this cluster has 0 to 15"]);
    assert_eq!(slots_named(&[0..=u16::MAX], 1 << 16).map(|slots| slots.len()), Ok(1 << 16));
}

// ---------------------------------------------------------------- what is done

/// Two runs on the stand-in for etcd, who own all 64 slots.
async fn two() -> (Arc<dyn Coordination>, Arc<Ground>, [Running; 2]) {
    let ring: Arc<dyn Coordination> = Arc::new(Memory::memory("banyan").unwrap());
    ring.meta(meta(64)).await.unwrap();
    let ground = Arc::new(Ground::default());
    let runs =
        [("a", 1), ("b", 2)].map(|(name, number)| start(&ring, &ground, &peer(name, number), entry(number)));
    until_serving(&ground, &[&runs[0], &runs[1]], "both own half").await;
    (ring, ground, runs)
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_drained_node_gives_its_slots_away_and_gets_them_back() {
    let (ring, ground, [a, b]) = two().await;
    let done = apply(&*ring, "banyan", |state| drained(state, &id("a"), true)).await.unwrap();
    assert!(done.changed && done.plan.moved() == 32);
    let left = |state: &State| state.node(&id("a")).unwrap().owned;
    wait_until(&*ring, "banyan", LONG, left).await.unwrap();
    until(&b, "it has all", |view| view.serving == 64).await;
    assert_eq!(ground.serving(&a.me), 0);
    assert_eq!(ground.dead(), [], "it lives");
    let again = apply(&*ring, "banyan", |state| drained(state, &id("a"), true)).await.unwrap();
    assert!(!again.changed);
    apply(&*ring, "banyan", |state| drained(state, &id("a"), false)).await.unwrap();
    until(&a, "it has its half again", |view| view.serving == 32).await;
}

#[tokio::test]
async fn a_slot_moves_by_hand_and_its_history_tells() {
    let (ring, ground, [a, b]) = two().await;
    let state = read_state(&*ring, "banyan").await.unwrap();
    let slot =
        (0..64).map(SlotId).find(|slot| state.placed().unwrap().owner(*slot) == Some(&a.me.node)).unwrap();
    let before = ring.read_slot(slot).await.unwrap().unwrap();
    let to = b.me.node.clone();
    let done = apply(&*ring, "banyan", |state| decide(state, &[slot], Wish::Move(&to))).await.unwrap();
    // In exchange for another one.
    assert_eq!(done.plan.moved(), 2);
    let moved: Vec<SlotId> = done.plan.slots_moved().collect();
    wait_until(&*ring, "banyan", LONG, |state| {
        moved.iter().filter(|slot| state.slots[usize::from(slot.0)].is_moving()).count()
    })
    .await
    .unwrap();
    let records = place(&ground, &a.me);
    let records: &dyn Records = &*records;
    let history = history::read(&*ring, Some(records), slot, 20).await.unwrap();
    let text = history::shown(&history);
    let json: Value = serde_json::from_str(&json_line(&history)).unwrap();
    assert_eq!(json["etcd"][0]["owner"], "b");
    assert_eq!(json["etcd"][0]["replaced"], before.epoch.0);
    assert_eq!(json["etcd"][1]["owner"], "a");
    assert_eq!(json["etcd"][1]["epoch"], before.epoch.0);
    assert_eq!(json["store"][0]["owner"], "b");
    assert!(text.contains("in the store"), "{text}");
    let short = history::read(&*ring, None, slot, 1).await.unwrap();
    assert!(history::shown(&short).ends_with("the store was not asked: name it with --scylla HOST:PORT,…\n"));
}

#[tokio::test]
async fn a_change_waits_neither_for_a_frozen_ring_nor_for_ever() {
    let (ring, ground, [a, b]) = two().await;
    let failure = wait_until(&*ring, "banyan", Duration::from_millis(300), |_| 1).await.unwrap_err();
    assert_eq!(failure.lines, ["the change is noted, but 1 slot has not moved yet"]);
    ring.freeze_to_recover().await.unwrap();
    let failure = wait_until(&*ring, "banyan", LONG, |_| 2).await.unwrap_err();
    assert_eq!(
        failure.lines,
        ["the change is noted, but ownership is frozen: banyan ring recover is under way"]
    );
    // Whoever began it is gone: the same command ends it.
    let records = place(&ground, &a.me);
    let mut said = String::new();
    let slots = SlotCount::new(64).unwrap();
    recover::recover(Arc::clone(&ring), records, slots, |line| said.push_str(line)).await.unwrap();
    assert_eq!(
        said,
        "freezes ownership\nreads every run of a node that the store knows\nfences 2 runs\nreads the owners of 64 slots\n\
         gives 64 slots new epochs\nlets ownership change again\n"
    );
    assert_eq!(a.end().await.why, banyan_router_etcd::runner::Why::Dead(banyan_router::node::End::Fenced));
    drop(b);
    let state = read_state(&*ring, "banyan").await.unwrap();
    assert_eq!(state.frozen, None);
    assert!(state.slots.iter().all(|slot| slot.key.as_ref().unwrap().epoch.0 >> 32 == 1));
}

/// A ring by a way that faults are on, beside two runs whose way is sound.
async fn two_and_a_bad_way() -> (Memory, [Running; 2]) {
    let ring = Memory::memory("banyan").unwrap();
    let sound: Arc<dyn Coordination> = Arc::new(Keys::new(ring.kv().direct(), "banyan").unwrap());
    sound.meta(meta(64)).await.unwrap();
    let ground = Arc::new(Ground::default());
    let runs =
        [("a", 1), ("b", 2)].map(|(name, number)| start(&sound, &ground, &peer(name, number), entry(number)));
    until_serving(&ground, &[&runs[0], &runs[1]], "both own half").await;
    (ring, runs)
}

#[tokio::test]
async fn a_change_whose_answer_is_lost_is_found_to_be_made() {
    let (ring, _runs) = two_and_a_bad_way().await;
    ring.kv().lose_answers(1);
    let done = apply(&ring, "banyan", |state| drained(state, &id("a"), true)).await.unwrap();
    assert!(done.changed && done.plan.moved() == 32, "{done:?}");
    assert_eq!(ring.kv().answer_again(), 0, "an answer was lost");
}

#[tokio::test]
async fn a_change_of_which_nobody_knows_is_told_so() {
    let (ring, _runs) = two_and_a_bad_way().await;
    ring.kv().lose_answers(1);
    let store = ring.kv().clone();
    let cut = async {
        while store.direct().answers_to_lose() > 0 {
            tokio::task::yield_now().await;
        }
        store.set_reach(Reach::Refuses);
    };
    let (failure, ()) = tokio::join!(apply(&ring, "banyan", |state| drained(state, &id("a"), true)), cut);
    let failure = failure.unwrap_err();
    assert_eq!(failure.exit, Exit::Unavailable);
    assert!(failure.lines[0].starts_with("it is not known whether the change was made"), "{failure}");
    store.set_reach(Reach::Up);
    let again = apply(&ring, "banyan", |state| drained(state, &id("a"), true)).await.unwrap();
    assert!(!again.changed, "it was");
    // Others who are always faster are something else.
    let failure = apply(&ring, "banyan", |state| {
        let target = state.placed()?;
        let turn = |node: &str| {
            let mut other = Target::clone(target);
            other.drain(&id(node), !target.drained().contains(&id(node)));
            solve(&other, target.members().to_vec())
        };
        let faster = ring.cas_target(Some(Arc::clone(target)), Arc::new(turn("a")));
        assert_eq!(faster.now_or_never(), Some(TargetOutcome::Won));
        Ok(Some(turn("b")))
    });
    let failure = failure.await.unwrap_err();
    assert_eq!(
        failure.lines,
        ["others changed the ring at the same time, 10 times over: nothing was changed"]
    );
}

#[tokio::test]
async fn an_etcd_that_is_away_while_slots_move_is_waited_for() {
    let (ring, _runs) = two_and_a_bad_way().await;
    let store = ring.kv().clone();
    store.set_reach(Reach::Refuses);
    let back = async {
        sleep(Duration::from_millis(700)).await;
        store.set_reach(Reach::Up);
    };
    let (waited, ()) = tokio::join!(wait_until(&ring, "banyan", LONG, |_| 0), back);
    waited.unwrap();
    store.set_reach(Reach::Refuses);
    let failure = wait_until(&ring, "banyan", Duration::from_millis(300), |_| 0).await.unwrap_err();
    assert_eq!(failure.exit, Exit::Unavailable);
    assert!(failure.lines[0].starts_with("the change is noted, but etcd at "), "{failure}");
}

#[tokio::test]
async fn no_cluster_and_no_target_are_said_so() {
    let ring = Memory::memory("banyan").unwrap();
    let failure = read_state(&ring, "banyan").await.unwrap_err();
    assert_eq!(failure.exit, Exit::Unavailable);
    assert_eq!(failure.lines, ["etcd has no cluster \"banyan\": no node was ever started in it"]);
    ring.meta(meta(16)).await.unwrap();
    let state = read_state(&ring, "banyan").await.unwrap();
    assert_eq!(show::text(&state, None).lines().next(), Some("cluster banyan: 16 slots, etcd revision 2"));
    let failure = apply(&ring, "banyan", |state| drained(state, &id("a"), true)).await.unwrap_err();
    assert_eq!(failure.exit, Exit::No);
    let d = Joiner { node: id("d"), weight: None };
    let plan = plan::solve_with(&state, &[d], &[]).unwrap();
    assert_eq!(plan.moved(), 16, "the first node of a cluster gets all");
}
