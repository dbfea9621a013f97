//! `banyan ring recover`: after etcd was restored from an old snapshot.
//!
//! Always holds: nothing is touched before a person has said yes. What is done is decided in `banyan_router::recover`; it may
//! be broken off and begun again at any point.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::sync::Arc;
use std::time::Duration;

use banyan_router::recover::{Progress, Step};
use banyan_router::slot::SlotCount;
use banyan_router_etcd::coordination::{Coordination, Error};
use banyan_router_etcd::surroundings::Records;
use banyan_storage::LogStore;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::state::State;
use super::{Opened, count_of, told};
use crate::cli::RingRecover;
use crate::cluster::Rows;
use crate::config::Config;
use crate::failure::{Exit, Failure, words};
use crate::output;
use crate::schema_cmd;

/// The store may be starting too.
const STORE_PATIENCE: Duration = Duration::from_secs(30);
/// Nothing has gone on for so long: the command gives up, and may be given again.
const STALLED: Duration = Duration::from_secs(60);

pub(super) async fn run(asked: &RingRecover) -> Result<(), Failure> {
    let ring = Opened::new(&asked.reach, asked.scylla.as_ref()).await?;
    let state = ring.state().await?;
    if ring.config.scylla.nodes.is_empty() {
        return Err(Failure::new(Exit::Usage, "no server of the store is named: it knows who owned what")
            .with_hint("name some with --scylla HOST:PORT,… (scylla.nodes)"));
    }
    let records = open_store(&ring.config).await?;
    output::print_error(&explain(&state));
    confirm(&state.name, asked.yes)?;
    recover(ring.etcd, records, state.meta.founding.slots, output::print_error).await?;
    output::print(&format!(
        "recovered: {} of cluster {} have new epochs, ownership may change again\n",
        count_of(state.slots.len(), "slot"),
        state.name
    ))
}

/// The rows of the ring in the configured store.
pub(super) async fn open_store(config: &Config) -> Result<Arc<dyn Records>, Failure> {
    let server = schema_cmd::connect(config, Some(STORE_PATIENCE)).await?;
    let opened = timeout(STORE_PATIENCE, server.open(|_| {})).await;
    let opened = opened.map_err(|_| Failure::new(Exit::Unavailable, "the store does not answer in time"))?;
    let store: Arc<dyn LogStore> = Arc::new(opened.map_err(|error| schema_cmd::refused(&error))?);
    Ok(Arc::new(Rows(store)))
}

fn explain(state: &State) -> String {
    let frozen = match &state.frozen {
        Some(why) => format!("ownership is frozen: {why}"),
        None => {
            "ownership is NOT frozen: nothing says that etcd was restored. Only go on if you know that it was"
                .to_owned()
        }
    };
    let alive = state.nodes.iter().filter(|row| row.entry.is_some()).count();
    format!(
        "\
cluster {}, {}, {} there
{frozen}

What will be done, in this order:
  1. ownership is frozen: no slot changes its owner meanwhile
  2. every run of every node that the store knows is fenced, and that is awaited: whatever a run still has in flight
     can be stored no more, nor be acknowledged. Each living node drops its rooms and comes back as a new run
     within seconds. Clients stay connected; what they send is held or answered with \"try again\"
  3. the owners of all slots are read, in etcd and in the store
  4. each slot gets the first epoch of a new generation, above all that was ever given out
  5. ownership may change again, and living nodes take the slots over
Nothing that was acknowledged is lost. It may be broken off, and begun again, at any point.
",
        state.name,
        count_of(state.slots.len(), "slot"),
        count_of(alive, "node"),
    )
}

fn confirm(name: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::new(Exit::Usage, "nobody is there to be asked, and nothing was changed")
            .with_hint("say --yes to go on without being asked"));
    }
    output::print_error(&format!("\nType the cluster's name ({name}) to go on: "));
    let mut line = String::new();
    io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|error| Failure::new(Exit::Io, format!("cannot read the answer: {}", words(&error))))?;
    if line.trim() == name {
        return Ok(());
    }
    Err(Failure::new(Exit::No, "that is not its name: nothing was changed"))
}

/// Carries it out, and says each step.
pub(super) async fn recover(
    etcd: Arc<dyn Coordination>,
    records: Arc<dyn Records>,
    slots: SlotCount,
    mut say: impl FnMut(&str),
) -> Result<(), Failure> {
    let (progress, mut seen) = watch::channel(Progress { step: Step::Freezing, done: 0, of: 1 });
    let recovery = banyan_router_etcd::recover(Arc::clone(&etcd), records, slots, None, &progress);
    tokio::pin!(recovery);
    let mut said = None;
    let mut went_on = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = &mut recovery => break,
            changed = timeout(STALLED, seen.changed()) => match changed {
                Ok(Ok(())) => {}
                Ok(Err(_)) => break,
                Err(_) => return Err(stalled(seen.borrow().step)),
            },
        }
        let now = *seen.borrow_and_update();
        if let Some(refused) = etcd.refused() {
            return Err(refused_at(&refused, now.step));
        }
        // Requests that fail and are made again are no progress.
        if said != Some(now) {
            went_on = Instant::now();
        }
        if said.map(|said: Progress| said.step) != Some(now.step)
            && let Some(line) = step(now)
        {
            say(&line);
        }
        said = Some(now);
        if went_on.elapsed() >= STALLED {
            return Err(stalled(now.step));
        }
    }
    let frozen = match etcd.read_all().await {
        Ok(everything) => everything.frozen,
        Err(error) => {
            let words = format!("recovered; whether it is frozen again since could not be read: {error}");
            return Err(Failure::new(Exit::Unavailable, words)
                .with_hint("nothing needs to be done again: `banyan ring show` says how it is"));
        }
    };
    match frozen {
        None => Ok(()),
        Some(why) => Err(Failure::new(Exit::No, format!("recovered, but frozen again since: {why}"))
            .with_hint("a node has found something else in doubt: give the same command again")),
    }
}

fn stalled(at: Step) -> Failure {
    let words = format!("nothing has gone on for {} s: etcd or the store does not answer", STALLED.as_secs());
    Failure::new(Exit::Unavailable, words).with_hint(match at {
        Step::Freezing => {
            "it is not known whether ownership is frozen: `banyan ring show` says it. Give the same command again"
        }
        Step::Lifting | Step::Done => {
            "all slots have their new epochs; it is not known whether ownership may change again: `banyan ring show` says it. If it is frozen, give the same command again"
        }
        Step::ListingRuns | Step::Fencing | Step::ReadingSlots | Step::SettingSlots => FROZEN,
    })
}

const FROZEN: &str = "ownership is frozen until the same command, given again, is through";

/// What etcd refused is not done.
fn refused_at(refused: &Error, at: Step) -> Failure {
    let mut failure = told(refused);
    if at != Step::Freezing {
        failure.lines.push(FROZEN.to_owned());
    }
    failure
}

/// `None`: that it is done is said where it was begun.
fn step(now: Progress) -> Option<String> {
    Some(match now.step {
        Step::Freezing => "freezes ownership\n".to_owned(),
        Step::ListingRuns => "reads every run of a node that the store knows\n".to_owned(),
        Step::Fencing => format!("fences {}\n", count_of(now.of, "run")),
        Step::ReadingSlots => format!("reads the owners of {}\n", count_of(now.of, "slot")),
        Step::SettingSlots => format!("gives {} new epochs\n", count_of(now.of, "slot")),
        Step::Lifting => "lets ownership change again\n".to_owned(),
        Step::Done => return None,
    })
}

#[cfg(test)]
pub(super) fn explained(state: &State) -> String {
    explain(state)
}
