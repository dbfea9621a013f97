//! The configuration: defaults, a TOML file over them, variables over that, flags over all.
//!
//! Owns: every key, its default and the reason for it (in the sections' own files), and where each value came from.
//! Always holds: a [`Config`] that was loaded is in range and consistent; nothing unknown was passed over; all that is
//! wrong is told at once. Does not: open, bind or make anything that a value names.

mod accounts;
mod cluster;
mod effective;
mod environment;
mod example;
mod file;
mod gateway;
pub(crate) mod kind;
mod limits;
mod log;
mod origin;
mod peer;
mod place;
mod problem;
mod rooms;
mod scylla;
mod section;
mod server;
mod storage;
mod tls;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

pub(crate) use accounts::Accounts;
pub(crate) use cluster::Cluster;
pub(crate) use effective::{json, text};
pub(crate) use example::example;
pub(crate) use gateway::Gateway;
pub(crate) use kind::{duration_text, parse_duration};
pub(crate) use limits::Limits;
pub(crate) use log::{Format, Log};
pub(crate) use peer::Peer;
pub(crate) use place::Roles;
pub(crate) use rooms::{Lazy, Rooms};
pub(crate) use scylla::Scylla;
pub(crate) use server::Server;
pub(crate) use storage::Storage;
pub(crate) use tls::Tls;

use crate::admin::Token;
use kind::Given;
use origin::Origin;
use problem::{Problem, nearest};
use section::{Refused, Section};

/// Everything that can be set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) server: Server,
    pub(crate) tls: Tls,
    pub(crate) accounts: Accounts,
    pub(crate) rooms: Rooms,
    pub(crate) limits: Limits,
    pub(crate) gateway: Gateway,
    pub(crate) storage: Storage,
    pub(crate) cluster: Cluster,
    pub(crate) peer: Peer,
    pub(crate) scylla: Scylla,
    pub(crate) log: Log,
}

impl Config {
    /// The sections in the order of the example file.
    fn sections(&self) -> [&dyn Section; 11] {
        // Taken apart, so that a section that is forgotten here does not compile.
        let Self { server, tls, accounts, rooms, limits, gateway, storage, cluster, peer, scylla, log } =
            self;
        [server, tls, accounts, rooms, limits, gateway, storage, cluster, peer, scylla, log]
    }

    fn section_mut(&mut self, name: &str) -> Option<&mut dyn Section> {
        let Self { server, tls, accounts, rooms, limits, gateway, storage, cluster, peer, scylla, log } =
            self;
        let sections: [&mut dyn Section; 11] =
            [server, tls, accounts, rooms, limits, gateway, storage, cluster, peer, scylla, log];
        sections.into_iter().find(|section| section.name() == name)
    }

    /// What no value violates alone: the keys that do not go together, and why.
    fn conflicts(&self) -> Vec<(&'static [&'static str], &'static str)> {
        let mut found: Vec<(&'static [&'static str], &'static str)> = Vec::new();
        let (listen, ops) = (self.server.listen, self.server.ops_listen);
        let overlap = listen.ip() == ops.ip() || listen.ip().is_unspecified() || ops.ip().is_unspecified();
        if listen.port() == ops.port() && listen.port() != 0 && overlap {
            found.push((
                &["server.listen", "server.ops_listen"],
                "server.listen and server.ops_listen are the same port: choose two",
            ));
        }
        let Server { admin_token, admin_token_file, .. } = &self.server;
        if admin_token.0.is_some() && admin_token_file.is_some() {
            let words = "server.admin_token and server.admin_token_file are both set: choose one";
            found.push((&["server.admin_token", "server.admin_token_file"], words));
        }
        if admin_token.0.as_deref().is_some_and(|token| Token::parse(token).is_none()) {
            let words = "server.admin_token must have 16 to 256 visible characters of ASCII, without spaces: `openssl rand -hex 32` makes a good one";
            found.push((&["server.admin_token"], words));
        }
        if self.tls.cert.is_some() != self.tls.key.is_some() {
            found.push((&["tls.cert", "tls.key"], "tls.cert and tls.key go together: set both or neither"));
        }
        if self.limits.frame_bytes < self.limits.text_bytes + self.limits.data_bytes + kind::KIB {
            let words = "limits.frame_bytes must hold text_bytes, data_bytes and 1KiB around them: raise it or lower those";
            found.push((&["limits.frame_bytes", "limits.text_bytes", "limits.data_bytes"], words));
        }
        if self.gateway.ring_bytes_per_worker < self.gateway.ring_bytes_per_room {
            let words = "gateway.ring_bytes_per_room is above ring_bytes_per_worker: lower it or raise that";
            found.push((&["gateway.ring_bytes_per_room", "gateway.ring_bytes_per_worker"], words));
        }
        if self.gateway.proxy_protocol && self.gateway.trusted_proxies.is_empty() {
            let words = "gateway.proxy_protocol is on and gateway.trusted_proxies is empty: name the balancer's addresses there";
            found.push((&["gateway.proxy_protocol", "gateway.trusted_proxies"], words));
        }
        found
    }

    /// What stands in the way of a server of this configuration, and of no other command.
    fn serve_conflicts(&self) -> Vec<(&'static [&'static str], &'static str)> {
        let mut found = Vec::new();
        self.cluster_conflicts(&mut found);
        found
    }

    /// Where the keys of tokens are.
    pub(crate) fn keys_dir(&self) -> &Path {
        self.accounts.keys_dir.as_ref().unwrap_or(&self.server.data_dir)
    }

    /// Whether the node is one of several.
    pub(crate) fn is_cluster(&self) -> bool {
        !self.cluster.etcd.is_empty()
    }

    fn cluster_conflicts(&self, found: &mut Vec<(&'static [&'static str], &'static str)>) {
        let Self { server, cluster, peer, scylla, .. } = self;
        if cluster.etcd.is_empty() {
            if cluster.roles != Roles::ALL {
                let words = "cluster.roles without cluster.etcd: a node that is alone has every role; name etcd's servers";
                found.push((&["cluster.roles", "cluster.etcd"], words));
            }
            if !scylla.nodes.is_empty() {
                let words = "scylla.nodes without cluster.etcd: two nodes on one store must know of each other; name etcd's servers with --etcd URL,…";
                found.push((&["scylla.nodes", "cluster.etcd"], words));
            }
            return;
        }
        if scylla.nodes.is_empty() {
            let words = "cluster.etcd without scylla.nodes: the nodes of a cluster share one store; name its servers with --scylla HOST:PORT,…";
            found.push((&["cluster.etcd", "scylla.nodes"], words));
        }
        let set = [&peer.ca, &peer.cert, &peer.key].iter().filter(|file| file.is_some()).count();
        if set != 0 && set != 3 {
            let words = "peer.ca, peer.cert and peer.key go together: set all three or none";
            found.push((&["peer.ca", "peer.cert", "peer.key"], words));
        }
        if set == 0 && !peer.insecure && !peer.listen.ip().is_loopback() {
            let words = "peer.listen is not on this machine and peer.ca, peer.cert, peer.key are not set: make them with `banyan gencerts`, or set peer.insecure on a network that is closed by itself";
            found.push((&["peer.listen", "peer.ca", "peer.insecure"], words));
        }
        if peer.listen.ip().is_unspecified() && cluster.advertise.is_none() {
            let words = "peer.listen is every address and cluster.advertise is empty: say there where others reach this node";
            found.push((&["peer.listen", "cluster.advertise"], words));
        }
        for (other, names) in [
            (server.listen, &["peer.listen", "server.listen"] as &'static [&'static str]),
            (server.ops_listen, &["peer.listen", "server.ops_listen"]),
        ] {
            let overlap = peer.listen.ip() == other.ip()
                || peer.listen.ip().is_unspecified()
                || other.ip().is_unspecified();
            if peer.listen.port() == other.port() && other.port() != 0 && overlap {
                found.push((names, "peer.listen is the port of another listener: choose another"));
            }
        }
        if cluster.etcd_cert.is_some() != cluster.etcd_key.is_some() {
            let words = "cluster.etcd_cert and cluster.etcd_key go together: set both or neither";
            found.push((&["cluster.etcd_cert", "cluster.etcd_key"], words));
        }
        if cluster.etcd_cert.is_some() && cluster.etcd_ca.is_none() {
            let words = "cluster.etcd_cert without cluster.etcd_ca: name the authority that signed etcd's certificates";
            found.push((&["cluster.etcd_cert", "cluster.etcd_ca"], words));
        }
        if cluster.etcd_user.is_some() != cluster.etcd_password.0.is_some() {
            let words = "cluster.etcd_user and cluster.etcd_password go together: set both or neither";
            found.push((&["cluster.etcd_user", "cluster.etcd_password"], words));
        }
        if scylla.cert.is_some() != scylla.key.is_some() {
            let words = "scylla.cert and scylla.key go together: set both or neither";
            found.push((&["scylla.cert", "scylla.key"], words));
        }
        if (scylla.cert.is_some() || scylla.server_name.is_some()) && scylla.ca.is_none() {
            let words = "scylla.cert or scylla.server_name without scylla.ca: name the authority that signed the servers' certificates";
            found.push((&["scylla.cert", "scylla.server_name", "scylla.ca"], words));
        }
        if scylla.user.is_some() != scylla.password.0.is_some() {
            let words = "scylla.user and scylla.password go together: set both or neither";
            found.push((&["scylla.user", "scylla.password"], words));
        }
    }
}

/// A flag of the command line that sets a key.
#[derive(Debug, Clone)]
pub(crate) struct Flag {
    /// With its dashes.
    pub(crate) name: &'static str,
    pub(crate) section: &'static str,
    pub(crate) key: &'static str,
    pub(crate) value: OsString,
}

/// A configuration with the origin of each value that is not a default.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    origins: BTreeMap<(&'static str, &'static str), Origin>,
    /// Why it is none for a server, one line each.
    pub(crate) unfit: Vec<String>,
}

impl Loaded {
    fn origin(&self, section: &'static str, key: &'static str) -> Origin {
        self.origins.get(&(section, key)).cloned().unwrap_or(Origin::Default)
    }
}

/// Everything that is wrong with a configuration, one line each.
#[derive(Debug)]
pub(crate) struct Problems(pub(crate) Vec<String>);

/// Puts the layers on each other. `environment` are all variables of the process; only `BANYAN_…` are looked at.
pub(crate) fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    flags: &[Flag],
) -> Result<Loaded, Problems> {
    let mut loader = Loader::default();
    if let Some(path) = file {
        file::read(&mut loader, path);
    }
    environment::read(&mut loader, environment);
    for Flag { name, section, key, value } in flags {
        match value.to_str() {
            Some(text) => loader.set(Origin::Flag(name), section, key, &Given::Raw(text)),
            None => loader.problem(Origin::Flag(name), "is not UTF-8 text"),
        }
    }
    loader.finish()
}

/// Collects values and problems while the layers are read.
#[derive(Default)]
struct Loader {
    config: Config,
    origins: BTreeMap<(&'static str, &'static str), Origin>,
    problems: Vec<Problem>,
}

impl Loader {
    fn problem(&mut self, origin: Origin, words: impl Into<String>) {
        self.problems.push(Problem::new(origin, words));
    }

    fn set(&mut self, origin: Origin, section: &str, key: &str, given: &Given<'_>) {
        let Some(target) = self.config.section_mut(section) else {
            return self.unknown_key(origin, section, key);
        };
        match target.set(key, given) {
            Ok(()) => {
                let known = target.keys().into_iter().find(|known| known.name == key);
                if let Some(known) = known {
                    let place = (target.name(), known.name);
                    self.origins.insert(place, origin);
                }
            }
            Err(Refused::UnknownKey) => self.unknown_key(origin, section, key),
            Err(Refused::Value { allowed, secret }) => {
                self.problems.push(Problem::value(
                    origin,
                    &format!("{section}.{key}"),
                    given,
                    secret,
                    &allowed,
                ));
            }
        }
    }

    fn unknown_key(&mut self, origin: Origin, section: &str, key: &str) {
        let guess = self.guess(section, key).map(|(section, key)| format!("; did you mean {section}.{key}?"));
        let otherwise = || match self.config.sections().into_iter().find(|known| known.name() == section) {
            Some(known) => format!("; [{section}] has {}", names(known)),
            None => String::new(),
        };
        let rest = guess.unwrap_or_else(otherwise);
        self.problem(origin, format!("{} is no key{rest}", plain(&format!("{section}.{key}"))));
    }

    /// The key that was likely meant: in the named section first, then by its exact name elsewhere, then anything near.
    fn guess(&self, section: &str, key: &str) -> Option<(&'static str, &'static str)> {
        let all: Vec<(&'static str, &'static str)> = self
            .config
            .sections()
            .iter()
            .flat_map(|known| known.keys().into_iter().map(|found| (known.name(), found.name)))
            .collect();
        let within =
            |name: &str| nearest(key, all.iter().filter(|(known, _)| *known == name).map(|(_, key)| *key));
        let meant = nearest(section, self.config.sections().iter().map(|known| known.name()));
        let place = |key: &str| all.iter().find(|(_, known)| *known == key).copied();
        let near_section = meant.and_then(|name| within(name).map(|key| (name, key)));
        let found = near_section
            .or_else(|| place(key))
            .or_else(|| nearest(key, all.iter().map(|(_, key)| *key)).and_then(place));
        found.and_then(|(section, key)| all.iter().find(|known| **known == (section, key)).copied())
    }

    fn finish(mut self) -> Result<Loaded, Problems> {
        // What goes together is only worth a word once each value is right.
        let problem = |(keys, words): (&[&str], &'static str)| {
            let named = |key: &&str| key.split_once('.').and_then(|place| self.origins.get(&place)).cloned();
            // The strongest layer is the one that was likely changed last.
            let origin = keys.iter().filter_map(named).max().unwrap_or(Origin::Default);
            Problem::new(origin, words)
        };
        let lines = |mut problems: Vec<Problem>| -> Vec<String> {
            problems.sort();
            problems.iter().map(Problem::to_string).collect()
        };
        if self.problems.is_empty() {
            self.problems = self.config.conflicts().into_iter().map(problem).collect();
        }
        if self.problems.is_empty() {
            let unfit = lines(self.config.serve_conflicts().into_iter().map(problem).collect());
            return Ok(Loaded { config: self.config, origins: self.origins, unfit });
        }
        Err(Problems(lines(self.problems)))
    }
}

fn names(section: &dyn Section) -> String {
    section.keys().iter().map(|key| key.name).collect::<Vec<_>>().join(", ")
}

/// A name that somebody wrote, made fit for one line.
fn plain(name: &str) -> String {
    name.chars()
        .take(128)
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

#[cfg(test)]
mod tests;
