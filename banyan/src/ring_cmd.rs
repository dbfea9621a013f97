//! `banyan ring`: who owns which slot, what would change, and changes by hand.
//!
//! Owns: how a command reaches etcd and the store. Always holds: what changes placement does so by compare-and-swap of the one
//! key `target`, as nodes do; ownership follows by itself. `recover` alone writes slots, and asks first.
//! Does not: decide where slots go (`banyan_router::target`) or what a recovery does (`banyan_router::recover`).

mod change;
mod history;
mod plan;
mod recover;
mod show;
mod state;
mod whereabouts;

use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::time::Duration;

use banyan_proto::id::SlotId;
use banyan_router::slot_key::NodeId;
use banyan_router_etcd::coordination::{Coordination, Error};
use banyan_router_etcd::{Etcd, Refusal};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::cli::{Reach, Ring};
use crate::cluster::etcd_options;
use crate::config::Config;
use crate::failure::{Exit, Failure, words};
use crate::output;

pub(crate) use change::{apply, drained, say_if_frozen, wait_until};
pub(crate) use plan::Plan;
pub(crate) use state::State;
pub(crate) use whereabouts::{Found, find_one};

/// How long a command tries to reach etcd; a node that starts waits for ever.
const PATIENCE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(200);
/// A person has read at most so far of what was named wrongly.
const NAMED_MAX: usize = 8;

pub(crate) fn run(asked: &Ring) -> Result<(), Failure> {
    block(async {
        match asked {
            Ring::Show(asked) => {
                let ring = Opened::new(&asked.reach, None).await?;
                let state = ring.state().await?;
                let on_terminal = io::stdout().is_terminal();
                let map = (asked.map || on_terminal).then(|| colours(on_terminal));
                print(&show::Shown::new(&state), asked.json, |_| show::text(&state, map))
            }
            Ring::Where(asked) => {
                let ring = Opened::new(&asked.reach, None).await?;
                let found = whereabouts::find(&ring.state().await?, &asked.rooms)?;
                print(&found, asked.json, |found| whereabouts::text(found))
            }
            Ring::Plan(asked) => {
                let ring = Opened::new(&asked.reach, None).await?;
                let state = ring.state().await?;
                let planned = plan::solve_with(&state, &asked.join, &asked.leave)?;
                print(&planned, asked.json, |planned| planned.text(asked.slots))
            }
            Ring::Move(asked) => change::run(&asked.change, change::Wish::Move(&asked.to)).await,
            Ring::Pin(asked) => change::run(&asked.change, change::Wish::Pin(&asked.to)).await,
            Ring::Unpin(asked) => change::run(&asked.change, change::Wish::Unpin).await,
            Ring::History(asked) => history::run(asked).await,
            Ring::Recover(asked) => recover::run(asked).await,
        }
    })
}

pub(crate) fn block<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime
        .map_err(|error| Failure::new(Exit::Unavailable, format!("cannot start: {}", words(&error))))?;
    runtime.block_on(command)
}

/// A value as one line of JSON, or as text.
pub(crate) fn print<T: Serialize>(
    value: &T,
    as_json: bool,
    text: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    output::print(&if as_json { json_line(value) } else { text(value) })
}

pub(crate) fn json_line<T: Serialize>(value: &T) -> String {
    // Plain structs with text keys: writing them cannot fail.
    let mut line = serde_json::to_string(value).unwrap_or_default();
    line.push('\n');
    line
}

/// Only on a terminal, and only if nobody objects (https://no-color.org).
fn colours(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The ring of the configured cluster.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) config: Config,
    pub(crate) etcd: Arc<dyn Coordination>,
}

impl Opened {
    pub(crate) async fn new(reach: &Reach, scylla: Option<&std::ffi::OsString>) -> Result<Self, Failure> {
        let config = reach.load(scylla)?.config;
        if config.cluster.etcd.is_empty() {
            let failure = Failure::new(Exit::Usage, "no server of etcd is named");
            let hint = "name some with --etcd URL,… or --config FILE (cluster.etcd); a node without them is alone and owns every room";
            return Err(failure.with_hint(hint));
        }
        let options = etcd_options(&config)?;
        let began = Instant::now();
        loop {
            match Etcd::connect(options.clone()).await {
                Ok(etcd) => return Ok(Self { config, etcd: Arc::new(etcd) }),
                Err(Error::Etcd { .. }) if began.elapsed() < PATIENCE => sleep(AGAIN).await,
                Err(error) => return Err(told(&error)),
            }
        }
    }

    pub(crate) async fn state(&self) -> Result<State, Failure> {
        read_state(&*self.etcd, &self.config.cluster.name).await
    }
}

pub(crate) async fn read_state(etcd: &dyn Coordination, cluster: &str) -> Result<State, Failure> {
    let everything = etcd.read_all().await.map_err(|error| told(&error))?;
    State::new(cluster, everything)
}

/// What etcd said, for people.
pub(crate) fn told(error: &Error) -> Failure {
    let (exit, hint) = match error {
        Error::Etcd { .. } => (
            Exit::Unavailable,
            "is etcd up, and does --etcd (cluster.etcd) name its client addresses? Rooms are served without it meanwhile",
        ),
        Error::Refused { what, .. } => (
            Exit::Usage,
            match what {
                Refusal::Login => {
                    "cluster.etcd_user and cluster.etcd_password (BANYAN_CLUSTER__ETCD_PASSWORD) must be those of a user of etcd"
                }
                Refusal::Permission => {
                    "cluster.etcd_user needs a role with read and write permission on all keys under /banyan/NAME/: etcdctl role grant-permission ROLE readwrite --prefix /banyan/NAME/"
                }
                Refusal::Certificate => {
                    "cluster.etcd_ca must be the authority of etcd's certificates, which must name the hosts of cluster.etcd; cluster.etcd_cert and cluster.etcd_key must be of the authority that etcd trusts (--trusted-ca-file)"
                }
                Refusal::Options => "with cluster.etcd_ca, the addresses in cluster.etcd begin with https://",
            },
        ),
        Error::Value { .. } => (Exit::Io, "use the release of banyan that runs on the nodes"),
        Error::Address(_) | Error::NoServers | Error::ClusterName(_) | Error::Mismatch(_) => {
            (Exit::Usage, "`banyan checkconfig` says what holds and where it comes from")
        }
    };
    Failure::new(exit, error.to_string()).with_hint(hint)
}

/// Slots as they were named on the command line, each once, ascending.
pub(crate) fn slots_named(
    named: &[std::ops::RangeInclusive<u16>],
    slots: u32,
) -> Result<Vec<SlotId>, Failure> {
    if let Some(beyond) = named.iter().map(|range| *range.end()).find(|last| u32::from(*last) >= slots) {
        let words = format!("there is no slot {beyond}: this cluster has 0 to {}", slots - 1);
        return Err(Failure::new(Exit::Usage, words));
    }
    let all: std::collections::BTreeSet<u16> = named.iter().cloned().flatten().collect();
    Ok(all.into_iter().map(SlotId).collect())
}

/// A node that is not there, and those that are.
pub(crate) fn no_such_node<'a>(node: &NodeId, there: impl IntoIterator<Item = &'a NodeId>) -> Failure {
    let mut names: Vec<&str> = there.into_iter().map(NodeId::as_str).collect();
    let more = names.len().saturating_sub(NAMED_MAX);
    names.truncate(NAMED_MAX);
    let hint = match (names.is_empty(), more) {
        (true, _) => "there is none: has a node been started with this --etcd and --cluster?".to_owned(),
        (false, 0) => format!("there are {}", names.join(", ")),
        (false, more) => format!("there are {} and {more} more: `banyan node list`", names.join(", ")),
    };
    Failure::new(Exit::Usage, format!("there is no node {node} in this cluster")).with_hint(hint)
}

/// `1 slot`, `2 slots`.
pub(crate) fn count_of(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}

#[cfg(test)]
pub(crate) mod tests;
