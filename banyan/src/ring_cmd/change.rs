//! Changes of the target by hand: `banyan ring move|pin|unpin`, `banyan node drain|undrain`.
//!
//! Always holds: a change is made by compare-and-swap on the target that it was decided on, and decided again on a newer one;
//! said twice it is done once, so an answer that was lost does no harm. Nothing is changed that would not last: what the next
//! placement would undo is refused.

use std::sync::Arc;
use std::time::Duration;

use banyan_proto::id::SlotId;
use banyan_router::node::TargetOutcome;
use banyan_router::slot_key::NodeId;
use banyan_router::target::{Target, solve};
use banyan_router_etcd::coordination::Coordination;
use tokio::time::{Instant, sleep};

use super::state::State;
use super::{AGAIN, Opened, Plan, count_of, no_such_node, read_state, slots_named, told};
use crate::cli::RingChange;
use crate::failure::{Exit, Failure};
use crate::output;

/// Others who change the target at the same time are done after one or two.
const TRIES: usize = 10;
/// How often a command that waits looks.
const LOOK: Duration = Duration::from_millis(200);

/// What is to become of the slots that were named.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wish<'a> {
    /// There once, and where the ring puts them from then on.
    Move(&'a NodeId),
    /// There for as long as the node is.
    Pin(&'a NodeId),
    Unpin,
}

pub(super) async fn run(asked: &RingChange, wish: Wish<'_>) -> Result<(), Failure> {
    let ring = Opened::new(&asked.reach, None).await?;
    let cluster = &ring.config.cluster.name;
    let decide = |state: &State| {
        let slots = slots_named(&asked.slots, state.meta.founding.slots.get())?;
        decide(state, &slots, wish)
    };
    if asked.dry_run {
        let state = ring.state().await?;
        let after = decide(&state)?;
        let plan = Plan::new(state.placed()?, after.as_ref().unwrap_or(state.placed()?));
        return super::print(&plan, asked.json, |plan| plan.text(true));
    }
    let done = apply(&*ring.etcd, cluster, decide).await?;
    super::print(&done.plan, asked.json, |plan| match done.changed {
        false => "nothing to change: the ring wants it so already\n".to_owned(),
        true => plan.text(true),
    })?;
    if asked.no_wait {
        say_if_frozen(&done.state);
        return Ok(());
    }
    // Those that were named, too: the same command may have been given before, and they are on their way still.
    let mut slots = slots_named(&asked.slots, done.state.meta.founding.slots.get())?;
    slots.extend(done.plan.slots_moved());
    slots.sort_unstable();
    slots.dedup();
    wait_until(&*ring.etcd, cluster, asked.wait, |state| not_there(state, &slots)).await
}

/// For commands that do not wait to see it.
pub(crate) fn say_if_frozen(state: &State) {
    if let Some(why) = &state.frozen {
        output::print_error(&format!("nothing moves yet, ownership is frozen: {why}\n"));
    }
}

/// Slots that are not yet where they should be, though the node that should have them could.
fn not_there(state: &State, slots: &[SlotId]) -> usize {
    let rows = slots.iter().filter_map(|slot| state.slots.get(usize::from(slot.0)));
    let is_left = |wanted: usize, owner| owner != Some(wanted) && state.nodes[wanted].takes_slots();
    rows.filter(|row| row.wanted.is_some_and(|wanted| is_left(wanted, row.owner))).count()
}

/// The target as wished for. `None`: it is so already.
pub(super) fn decide(state: &State, slots: &[SlotId], wish: Wish<'_>) -> Result<Option<Target>, Failure> {
    let target = &**state.placed()?;
    let members = || target.members().to_vec();
    let mut wished = target.clone();
    let done = match wish {
        Wish::Pin(node) => {
            // It may be away for the moment, or have only just come; what gets no slots for other reasons would never have these.
            let row = state.node(node);
            let row = row.ok_or_else(|| no_such_node(node, state.nodes.iter().map(|row| &row.node)))?;
            match row.weight {
                _ if row.drained => return Err(takes_none(node, "is drained")),
                Some(0) => return Err(takes_none(node, "has weight 0")),
                None if row.entry.is_some() => return Err(takes_none(node, "owns no rooms")),
                Some(_) | None => {}
            }
            slots.iter().for_each(|&slot| wished.pin(slot, Some(node.clone())));
            solve(&wished, members())
        }
        Wish::Unpin => {
            slots.iter().for_each(|&slot| wished.pin(slot, None));
            solve(&wished, members())
        }
        Wish::Move(node) => {
            check_taker(state, target, node)?;
            if let Some((slot, other)) =
                slots.iter().find_map(|slot| target.pins().get(slot).map(|node| (slot, node)))
            {
                let words = format!("slot {slot} is pinned to node {other}");
                let hint = format!("`banyan ring pin {slot} --to {node}` binds it there instead");
                return Err(Failure::new(Exit::No, words).with_hint(hint));
            }
            if slots.iter().all(|&slot| target.owner(slot) == Some(node)) {
                return Ok(None);
            }
            // Bound for one placement, which levels the rest; what lives stays in the next.
            slots.iter().for_each(|&slot| wished.pin(slot, Some(node.clone())));
            let mut there = solve(&wished, members());
            slots.iter().for_each(|&slot| there.pin(slot, None));
            let there = solve(&there, members());
            if let Some(slot) = slots.iter().find(|&&slot| there.owner(slot) != Some(node)) {
                let words =
                    format!("slot {slot} would not stay at node {node}: it would have more than its share");
                let hint = format!("move fewer slots, or bind them: banyan ring pin {slot} --to {node}");
                return Err(Failure::new(Exit::No, words).with_hint(hint));
            }
            there
        }
    };
    Ok((done != *target).then_some(done))
}

/// Whether a node can be given slots.
fn check_taker(state: &State, target: &Target, node: &NodeId) -> Result<(), Failure> {
    let member = target.members().iter().find(|member| member.node == *node);
    let why = match (member, state.node(node)) {
        (None, None) => return Err(no_such_node(node, target.members().iter().map(|member| &member.node))),
        (None, Some(_)) => "owns no rooms, or has only just come",
        (Some(_), Some(row)) if row.drained => "is drained",
        (Some(member), _) if member.weight == 0 => "has weight 0",
        (Some(_), _) => return Ok(()),
    };
    Err(takes_none(node, why))
}

fn takes_none(node: &NodeId, why: &str) -> Failure {
    Failure::new(Exit::No, format!("node {node} {why}")).with_hint("`banyan node list` shows who takes slots")
}

/// The target with a node drained, or not any more. `None`: it is so already.
pub(crate) fn drained(state: &State, node: &NodeId, drained: bool) -> Result<Option<Target>, Failure> {
    let target = &**state.placed()?;
    if state.node(node).is_none() {
        return Err(no_such_node(node, state.nodes.iter().map(|row| &row.node)));
    }
    let mut wished = target.clone();
    wished.drain(node, drained);
    let done = solve(&wished, target.members().to_vec());
    let has_slots = |target: &Target| target.loads().iter().any(|load| *load > 0);
    if drained && has_slots(target) && !has_slots(&done) {
        let words = format!("nobody would be left to take the slots of node {node}");
        let hint = "start another node, or undrain one: `banyan node list`";
        return Err(Failure::new(Exit::No, words).with_hint(hint));
    }
    Ok((done != *target).then_some(done))
}

/// What came of a change.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) changed: bool,
    pub(crate) plan: Plan,
    /// On which it was decided.
    pub(crate) state: State,
}

/// Changes the target. `decide` is asked again when somebody else was faster; it says `None` when all is as wished. An answer of
/// etcd that never came is told in the end if it was not found out what it was.
pub(crate) async fn apply(
    etcd: &dyn Coordination,
    cluster: &str,
    decide: impl Fn(&State) -> Result<Option<Target>, Failure>,
) -> Result<Applied, Failure> {
    let mut unknown = None;
    for _ in 0..TRIES {
        let state = match read_state(etcd, cluster).await {
            Err(error) if unknown.is_some() => return Err(not_known(&error.lines.join(", "))),
            state => state?,
        };
        let before = Arc::clone(state.placed()?);
        let Some(after) = decide(&state)? else {
            // A try whose answer was lost has made it so, or somebody else meanwhile.
            let changed = unknown.is_some();
            return Ok(Applied {
                changed,
                plan: unknown.unwrap_or_else(|| Plan::new(&before, &before)),
                state,
            });
        };
        let plan = Plan::new(&before, &after);
        match etcd.cas_target(Some(before), Arc::new(after)).await {
            TargetOutcome::Won => return Ok(Applied { changed: true, plan, state }),
            TargetOutcome::Lost(_) => {}
            TargetOutcome::Unknown => {
                if let Some(refused) = etcd.refused() {
                    let before = unknown.is_some();
                    return Err(if before { not_known(&refused.to_string()) } else { told(&refused) });
                }
                unknown = Some(plan);
                sleep(AGAIN).await;
            }
        }
    }
    Err(match unknown {
        Some(_) => not_known("etcd did not answer in time"),
        None => {
            let words =
                format!("others changed the ring at the same time, {TRIES} times over: nothing was changed");
            Failure::new(Exit::Unavailable, words).with_hint("give the same command again")
        }
    })
}

fn not_known(why: &str) -> Failure {
    let words = format!("it is not known whether the change was made, or will be: {why}");
    Failure::new(Exit::Unavailable, words)
        .with_hint("give the same command again once etcd answers: what is made already is not made twice")
}

/// Waits until nothing is left to move. `left` counts it. An etcd that is away for a while is waited for.
pub(crate) async fn wait_until(
    etcd: &dyn Coordination,
    cluster: &str,
    at_most: Duration,
    left: impl Fn(&State) -> usize,
) -> Result<(), Failure> {
    let began = Instant::now();
    let mut said = false;
    loop {
        let state = match read_state(etcd, cluster).await {
            Ok(state) => state,
            Err(error) if error.exit != Exit::Unavailable => return Err(error),
            Err(_) if began.elapsed() < at_most => {
                sleep(AGAIN).await;
                continue;
            }
            Err(error) => {
                let words = format!("the change is noted, but {}", error.lines.join(", "));
                return Err(Failure::new(Exit::Unavailable, words)
                    .with_hint("slots move once etcd answers; `banyan ring show` follows it"));
            }
        };
        let count = left(&state);
        if count == 0 {
            if said {
                output::print_error(&format!("done after {:.1} s\n", began.elapsed().as_secs_f32()));
            }
            return Ok(());
        }
        if let Some(why) = &state.frozen {
            let words = format!("the change is noted, but ownership is frozen: {why}");
            return Err(
                Failure::new(Exit::No, words).with_hint("`banyan ring recover` explains what it would do")
            );
        }
        if began.elapsed() >= at_most {
            let words = format!("the change is noted, but {} not moved yet", has_have(count));
            let hint = "`banyan ring show` follows it; the nodes' logs say what keeps them";
            return Err(Failure::new(Exit::No, words).with_hint(hint));
        }
        if !std::mem::replace(&mut said, true) {
            output::print_error(&format!("waits for {} to move\n", count_of(count, "slot")));
        }
        sleep(LOOK).await;
    }
}

fn has_have(count: usize) -> String {
    format!("{} {}", count_of(count, "slot"), if count == 1 { "has" } else { "have" })
}
