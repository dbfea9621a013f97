//! `banyan gencerts`: certificates with which the nodes of a cluster know each other.

use std::os::unix::fs::DirBuilderExt as _;

use banyan_gateway::clock;
use banyan_router::node_key::Role;
use banyan_router::slot_key::NodeId;
use banyan_router_peer::{Error, Holder, make_ca, make_node};

use crate::cli::Gencerts;
use crate::failure::{Exit, Failure, words};
use crate::output;

pub(crate) fn run(asked: &Gencerts) -> Result<(), Failure> {
    let directory = &asked.directory;
    let usage = |error: &dyn std::fmt::Display| Failure::new(Exit::Usage, format!("NODE: {error}"));
    let name = |node: &String| NodeId::parse(node).map_err(|error| usage(&error));
    let nodes = asked.nodes.iter().map(|node| name(node).map(Holder::Node));
    let holders: Vec<Holder> =
        nodes.chain(asked.any.iter().map(|file| name(file).map(Holder::Any))).collect::<Result<_, _>>()?;
    let mut roles: Vec<Role> = asked.roles.iter().map(|role| role.role()).collect();
    roles.sort_unstable();
    roles.dedup();
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| {
        Failure::new(Exit::Io, format!("cannot make {}: {}", directory.display(), words(&error)))
    })?;
    let now = clock::unix_ms();
    let failed = |error: Error| {
        let exit = match &error {
            Error::Certificate(_) => Exit::Usage,
            _ => Exit::Io,
        };
        Failure::new(exit, error.to_string())
    };
    let mut lines = Vec::new();
    if !directory.join("ca.pem").exists() {
        let made = make_ca(directory, &asked.cluster, now).map_err(failed)?;
        lines.push(format!("{}  the cluster's authority: every node needs it\n", made.cert.display()));
        lines.push(format!("{}  its key: keep it where no node runs\n", made.key.display()));
    }
    for holder in &holders {
        let made = make_node(directory, &asked.cluster, holder, &roles, asked.valid, now).map_err(failed)?;
        let of = match holder {
            Holder::Node(node) => format!("of node {node}"),
            Holder::Any(_) => "of any node with these roles".to_owned(),
        };
        lines.push(format!("{}  {of}\n", made.cert.display()));
        lines.push(format!("{}  its key\n", made.key.display()));
    }
    output::print_all(lines.into_iter().map(Ok))
}
