//! What all benches begin with: which binary, which processors, where; and rooms full of members.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};

use crate::cli::Common;
use crate::control::{Command, Modes, Reply};
use crate::cpus::Cpus;
use crate::host;
use crate::pool::{self, Place, Pool};
use crate::report::Report;
use crate::server::{self, Server};

#[derive(Debug)]
pub(crate) struct Setup {
    binary: PathBuf,
    dir: PathBuf,
    pub(crate) server_cpus: Cpus,
    pub(crate) generator_cpus: Cpus,
    pub(crate) runs: u32,
}

impl Setup {
    pub(crate) fn of(common: &Common) -> anyhow::Result<Self> {
        let allowed = Cpus::allowed()?;
        let own = std::env::current_exe()?;
        let beside = own.parent().context("this program has no folder")?;
        let binary = match &common.server {
            Some(binary) => binary.clone(),
            None => default_server(beside),
        };
        let generator_cpus =
            common.generator_cpus.clone().unwrap_or_else(|| allowed.without(&common.server_cpus));
        Ok(Self {
            binary,
            dir: common.dir.clone().unwrap_or_else(|| beside.join("bench-data")),
            server_cpus: common.server_cpus.clone(),
            generator_cpus,
            runs: if common.quick { 1 } else { common.runs },
        })
    }

    pub(crate) fn server(&self) -> anyhow::Result<Server> {
        Server::start(&self.binary, &self.server_cpus, &self.dir)
    }

    pub(crate) fn pool(&self, connections: usize) -> anyhow::Result<Pool> {
        Pool::start(&self.generator_cpus, connections)
    }

    /// The lines that say how a figure was made.
    pub(crate) fn describe(&self, report: &mut Report, quick: bool) -> anyhow::Result<()> {
        report.set("server", self.binary.display().to_string());
        if let Ok(output) = std::process::Command::new(&self.binary).arg("version").output()
            && output.status.success()
        {
            report.set("version", String::from_utf8_lossy(&output.stdout).trim());
        }
        report.set(
            "config",
            format!("default (fsync, auth and metrics on) but for\n{}", server::CONFIG.trim_end()),
        );
        std::fs::create_dir_all(&self.dir)?;
        report.set("data on", host::file_system(&self.dir));
        self.describe_processors(report, quick);
        if host::file_system(&self.dir) == "tmpfs" {
            report.notes.push(
                "the data directory is in memory, where fsync costs nothing: choose a disk with --dir"
                    .to_owned(),
            );
        }
        Ok(())
    }

    pub(crate) fn describe_processors(&self, report: &mut Report, quick: bool) {
        let shared = if self.generator_cpus == self.server_cpus {
            " (shared: no figure is worth anything)"
        } else {
            ""
        };
        report.set(
            "processors",
            format!("server {}, generators {}{shared}", self.server_cpus, self.generator_cpus),
        );
        report.set("runs", format!("{} (median, min–max)", self.runs));
        if quick {
            report.notes.push("a quick run, to see that it works: its figures mean nothing".to_owned());
        } else if self.runs < 5 {
            report.notes.push("fewer than 5 runs: not a figure to publish".to_owned());
        }
    }
}

/// Beside this program, else in the release folder of the same target.
fn default_server(beside: &std::path::Path) -> PathBuf {
    let release = beside.parent().map(|target| target.join("release/banyan"));
    let here = beside.join("banyan");
    match release {
        // A debug build of this program must not measure a debug build of the server by accident.
        Some(release) if !beside.ends_with("release") => release,
        _ => here,
    }
}

/// Makes rooms, owned by one connection, and lets connections join them.
pub(crate) fn fill_rooms(
    pool: &mut Pool,
    rooms: &[String],
    owner: Place,
    members: &[(Place, Vec<u32>)],
) -> anyhow::Result<()> {
    let all: Vec<u32> = (0..u32::try_from(rooms.len())?).collect();
    pool.plan(&[(owner, all)], |plan| Command::Create { rooms: rooms.to_vec(), plan })?;
    pool.plan(members, |plan| Command::Join { rooms: rooms.to_vec(), plan })?;
    Ok(())
}

/// The heads of rooms at rest.
pub(crate) fn look_at_heads(pool: &mut Pool, rooms: &[String], observer: Place) -> anyhow::Result<Vec<u64>> {
    let all: Vec<u32> = (0..u32::try_from(rooms.len())?).collect();
    let replies = pool.plan(&[(observer, all)], |plan| Command::Subscribe {
        rooms: rooms.to_vec(),
        plan,
        modes: Modes::Passive,
        after: None,
    })?;
    let heads = pool::heads(&replies);
    ensure!(
        heads.len() == rooms.len() && heads.iter().all(|&head| head > 0),
        "a room without a head: {heads:?}"
    );
    Ok(heads)
}

/// The head of one room in which the observer is a live subscriber at rest: its cursor is set where it stands.
pub(crate) fn head_from_a_live_place(
    pool: &mut Pool,
    rooms: &[String],
    observer: Place,
) -> anyhow::Result<u64> {
    let heads = look_at_heads(pool, rooms, observer)?;
    subscribe(pool, rooms, &[(observer, vec![0])], Modes::Live, &heads)?;
    heads.first().copied().context("no room")
}

/// Sets cursors at these heads.
pub(crate) fn subscribe(
    pool: &mut Pool,
    rooms: &[String],
    plan: &[(Place, Vec<u32>)],
    modes: Modes,
    heads: &[u64],
) -> anyhow::Result<()> {
    pool.plan(plan, |plan| Command::Subscribe {
        rooms: rooms.to_vec(),
        plan,
        modes,
        after: Some(heads.to_vec()),
    })?;
    Ok(())
}

/// How many events were sent, the heads, and the seconds it took.
pub(crate) fn loaded(reply: Reply) -> anyhow::Result<(u64, Vec<u64>, f64)> {
    match reply {
        Reply::Loaded { sent, heads, seconds } => Ok((sent, heads, seconds)),
        other => bail!("a generator answered {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debug_build_measures_the_release_server() {
        for (beside, want) in [("/t/release", "/t/release/banyan"), ("/t/debug", "/t/release/banyan")] {
            assert_eq!(default_server(beside.as_ref()), PathBuf::from(want));
        }
    }
}
