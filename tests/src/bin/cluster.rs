//! A whole cluster on this machine, until Ctrl-C: `cargo xtask cluster` runs it.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a command for people")]

use anyhow::Context;
use banyan_tests::cluster::{Cluster, Node, NodePlan, Plan, nodes};
use banyan_tests::server;
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::time::Instant;

/// Starts etcd, a CQL store, nodes of Banyan and HAProxy on this machine, and stops them all at Ctrl-C.
#[derive(Debug, Parser)]
#[command(
    after_help = "Examples:\n  cluster -n 3                         three nodes, each gateway and shard\n  \
cluster --gateways 3 --shards 3 --cql 3 --etcd 3   as a deployment would\n\nKill, stop and start nodes by their process ids, and watch the others."
)]
struct Arguments {
    /// Nodes that are gateway and shard
    #[arg(short = 'n', long, default_value_t = 0)]
    nodes: usize,
    /// Nodes that are gateways only
    #[arg(long, default_value_t = 0)]
    gateways: usize,
    /// Nodes that are shards only
    #[arg(long, default_value_t = 0)]
    shards: usize,
    /// Servers of etcd: 1 or 3
    #[arg(long, default_value_t = 1)]
    etcd: usize,
    /// Servers of the store: 1 or 3, each about 1 GiB
    #[arg(long, default_value_t = 1)]
    cql: u8,
    /// Slots that rooms hash to
    #[arg(long, default_value_t = 4096)]
    slots: u32,
    /// The server [default: the `banyan` beside this program]
    #[arg(long)]
    server: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let work =
        tempfile::Builder::new().prefix("banyan-cluster-").tempdir().context("no temporary directory")?;
    let mut plans = nodes(arguments.nodes);
    plans.extend((1..=arguments.shards).map(|number| NodePlan::new(format!("shard-{number}"), "shard")));
    plans
        .extend((1..=arguments.gateways).map(|number| NodePlan::new(format!("gateway-{number}"), "gateway")));
    if plans.is_empty() {
        plans = nodes(3);
    }
    let binary = arguments.server.map_or_else(server::binary, Ok)?;
    let plan = Plan {
        haproxy: plans.iter().any(|plan| plan.roles.contains("gateway")),
        etcd: arguments.etcd,
        cql: arguments.cql,
        slots: arguments.slots,
        ..Plan::small(binary, work.path().to_owned(), plans)
    };
    let begun = Instant::now();
    let cluster = tokio::select! {
        cluster = Cluster::start(plan, |step| eprintln!("{:>5.1} s  {step}", begun.elapsed().as_secs_f64())) => cluster?,
        _ = tokio::signal::ctrl_c() => return Ok(()),
    };
    print(&cluster);
    tokio::signal::ctrl_c().await?;
    Ok(())
}

fn print(cluster: &Cluster) {
    println!("\n  {:<12} {:<14} {:>8}  {:<22} {:<22} LOG", "NODE", "ROLES", "PID", "CLIENTS", "OPS");
    for Node { plan, process, .. } in cluster.nodes.values() {
        let node = &cluster.nodes[&plan.name];
        println!(
            "  {:<12} {:<14} {:>8}  {:<22} {:<22} {}",
            plan.name,
            plan.roles,
            process.id().map_or_else(|| "-".to_owned(), |id| id.to_string()),
            node.clients().map_or_else(|| "-".to_owned(), |address| address.to_string()),
            node.ops().to_string(),
            process.log_path().display()
        );
    }
    println!("\n  etcd   {}", cluster.etcd.endpoints().join(","));
    println!("  store  {}", cluster.cql.contact_points().join(","));
    if let Some((address, _)) = &cluster.haproxy {
        println!("\n  Chat   http://{address}/    (HAProxy before all gateways)");
    }
    println!("\n  Ctrl-C stops it all.\n");
}
