//! Looks at the servers' own settings, and says what is wrong with them in sentences.
//!
//! Does not: change anything, or stop a start. The caller decides what a level means to it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use scylla::client::execution_profile::ExecutionProfile;
use scylla::cluster::Node;
use scylla::errors::ExecutionError;
use scylla::policies::load_balancing::{NodeIdentifier, SingleTargetLoadBalancingPolicy};
use scylla::statement::{Consistency, Statement};

use crate::schema;
use crate::server::{LWT_ON_TABLETS, Product, Server};

/// Of one question to one node.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How bad it is. Ordered: the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// It cannot work.
    Error,
    /// It works until something happens.
    Warning,
    /// For the record.
    Note,
}

/// One sentence about the servers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub level: Level,
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Note => "note",
        };
        write!(f, "{level}: {}", self.text)
    }
}

fn finding(level: Level, text: impl Into<String>) -> Finding {
    Finding { level, text: text.into() }
}

pub(crate) async fn run(server: &Server) -> Vec<Finding> {
    let mut findings = settings(server).await;
    let usable = match server.schema_version().await {
        Ok(stored) => schema::usable(&server.options.keyspace, stored),
        Err(error) => Err(error),
    };
    findings.extend(usable.err().map(|error| finding(Level::Error, error.to_string())));
    findings.sort();
    findings
}

/// Of the keyspace and of each server: all but the schema.
pub(crate) async fn settings(server: &Server) -> Vec<Finding> {
    let mut findings = Vec::new();
    let state = server.session.get_cluster_state();
    let ours = |node: &&Arc<Node>| node.datacenter.as_deref() == Some(server.data_centre.as_str());
    let nodes: Vec<_> = state.get_nodes_info().iter().filter(ours).cloned().collect();
    match keyspace(server).await {
        Ok(Some((replication, durable))) => {
            findings.extend(judge_replication(server, &replication, durable, nodes.len()));
        }
        Ok(None) => {
            let text =
                format!("keyspace {} is not there: run `banyan schema apply`", server.options.keyspace);
            findings.push(finding(Level::Error, text));
        }
        Err(error) => findings
            .push(finding(Level::Warning, format!("the keyspace's replication cannot be read: {error}"))),
    }
    if let Product::Scylla { release } = server.product {
        findings.extend(tablets(server, release).await);
    }
    for node in &nodes {
        match settings_of(server, node).await {
            Ok(settings) => findings.extend(judge_settings(&node.address.to_string(), &settings)),
            Err(error) => {
                let text =
                    format!("node {} does not answer, or does not show its settings: {error}", node.address);
                findings.push(finding(Level::Warning, text));
            }
        }
    }
    findings.sort();
    findings.dedup();
    findings
}

type Replication = HashMap<String, String>;

async fn keyspace(server: &Server) -> Result<Option<(Replication, bool)>, ExecutionError> {
    let text = "SELECT replication, durable_writes FROM system_schema.keyspaces WHERE keyspace_name = ?";
    let answer = server.ask(text, Consistency::LocalOne, (&server.options.keyspace,)).await?;
    let rows = answer.into_rows_result().ok();
    Ok(rows.and_then(|rows| rows.maybe_first_row::<(Replication, bool)>().ok().flatten()))
}

fn judge_replication(
    server: &Server,
    replication: &Replication,
    durable: bool,
    nodes: usize,
) -> Vec<Finding> {
    judge(&server.options.keyspace, &server.data_centre, replication, durable, nodes)
}

fn judge(
    keyspace: &str,
    data_centre: &str,
    replication: &Replication,
    durable: bool,
    nodes: usize,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |level, text: String| findings.push(finding(level, text));
    if !durable {
        add(
            Level::Error,
            format!(
                "keyspace {keyspace} has durable_writes = false: what is acknowledged is in no commit log"
            ),
        );
    }
    let class = replication.get("class").map(String::as_str).unwrap_or_default();
    let copies = if class.ends_with("NetworkTopologyStrategy") {
        replication.get(data_centre)
    } else {
        add(
            Level::Warning,
            format!(
                "keyspace {keyspace} uses {class}, which knows no data centres: use NetworkTopologyStrategy"
            ),
        );
        replication.get("replication_factor")
    };
    // "3", or "3/1" with transient copies.
    let copies = copies.and_then(|copies| copies.split('/').next()?.parse::<usize>().ok()).unwrap_or(0);
    match copies {
        0 => add(
            Level::Error,
            format!(
                "keyspace {keyspace} has no copies in data centre {data_centre}, so no quorum can be had there"
            ),
        ),
        1 => add(
            Level::Warning,
            format!(
                "keyspace {keyspace} has ONE copy of each message (replication factor 1): a node that is lost takes its messages with it, and while it is down its rooms stand still; use 3"
            ),
        ),
        2 => add(
            Level::Warning,
            format!(
                "keyspace {keyspace} has two copies (replication factor 2): a quorum is both, so one node down stops its rooms; use 3"
            ),
        ),
        3.. => {}
    }
    if copies > nodes {
        add(
            Level::Error,
            format!(
                "keyspace {keyspace} wants {copies} copies in data centre {data_centre}, which has {nodes} nodes"
            ),
        );
    }
    findings
}

async fn tablets(server: &Server, release: (u32, u32)) -> Option<Finding> {
    let text = "SELECT initial_tablets FROM system_schema.scylla_keyspaces WHERE keyspace_name = ?";
    let answer = server.ask(text, Consistency::LocalOne, (&server.options.keyspace,)).await.ok()?;
    let (initial,) = answer.into_rows_result().ok()?.maybe_first_row::<(Option<i32>,)>().ok().flatten()?;
    initial?;
    judge_tablets(&server.options.keyspace, release)
}

fn judge_tablets(keyspace: &str, release: (u32, u32)) -> Option<Finding> {
    (release < LWT_ON_TABLETS).then(|| {
        let text = format!(
            "keyspace {keyspace} uses tablets, and ScyllaDB {}.{} takes no lightweight transactions there: nobody can sign up; \
             make the keyspace with tablets = {{'enabled': false}}, or use ScyllaDB {}.{} or later",
            release.0, release.1, LWT_ON_TABLETS.0, LWT_ON_TABLETS.1
        );
        finding(Level::Error, text)
    })
}

/// Of one node, by itself.
async fn settings_of(server: &Server, node: &Arc<Node>) -> Result<BTreeMap<String, String>, String> {
    let text = match server.product {
        Product::Cassandra => "SELECT name, value FROM system_views.settings",
        Product::Scylla { .. } => "SELECT name, value FROM system.config",
    };
    let profile = ExecutionProfile::builder()
        .load_balancing_policy(SingleTargetLoadBalancingPolicy::new(
            NodeIdentifier::Node(Arc::clone(node)),
            None,
        ))
        .consistency(Consistency::One)
        .request_timeout(Some(TIMEOUT))
        .build();
    let mut statement = Statement::new(text);
    statement.set_execution_profile_handle(Some(profile.into_handle()));
    let answer =
        Box::pin(server.session.query_unpaged(statement, ())).await.map_err(|error| error.to_string())?;
    let rows = answer.into_rows_result().map_err(|error| error.to_string())?;
    let rows = rows.rows::<(String, Option<String>)>().map_err(|error| error.to_string())?;
    let set = |row: (String, Option<String>)| Some((row.0, row.1?.trim_matches('"').to_owned()));
    Ok(rows.filter_map(|row| set(row.ok()?)).collect())
}

fn judge_settings(node: &str, settings: &BTreeMap<String, String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |level, text: String| findings.push(finding(level, text));
    let get = |name: &str| {
        settings.get(name).map(String::as_str).filter(|value| !value.is_empty() && *value != "null")
    };
    match get("commitlog_sync") {
        Some("batch" | "group") => {}
        Some(other) => {
            let period = get("commitlog_sync_period")
                .or_else(|| get("commitlog_sync_period_in_ms"))
                .map(|period| format!(" (every {})", with_unit(period)))
                .unwrap_or_default();
            add(
                Level::Warning,
                format!(
                    "node {node} has commitlog_sync: {other}{period}: a power cut of a quorum loses what was acknowledged since; set commitlog_sync: group or batch"
                ),
            );
        }
        None => add(
            Level::Note,
            format!("node {node} does not show its commitlog_sync: it should be group or batch"),
        ),
    }
    // Guardrails of Apache Cassandra that would refuse what rule 10 needs.
    if get("user_timestamps_enabled") == Some("false") {
        add(
            Level::Error,
            format!(
                "node {node} has user_timestamps_enabled: false: every write with a timestamp is refused"
            ),
        );
    }
    for name in ["minimum_timestamp_fail_threshold", "minimum_timestamp_warn_threshold"] {
        if let Some(value) = get(name) {
            let level = if name.contains("fail") { Level::Error } else { Level::Note };
            add(
                level,
                format!("node {node} has {name}: {value}: Banyan's timestamps are seqs, far below any clock"),
            );
        }
    }
    findings
}

fn with_unit(period: &str) -> String {
    if period.bytes().all(|byte| byte.is_ascii_digit()) { format!("{period}ms") } else { period.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replication(pairs: &[(&str, &str)]) -> Replication {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    const NETWORK: (&str, &str) = ("class", "org.apache.cassandra.locator.NetworkTopologyStrategy");

    #[track_caller]
    fn check(pairs: &[(&str, &str)], nodes: usize, want: &[(Level, &str)]) {
        let got = judge("ks", "dc1", &replication(pairs), true, nodes);
        assert_eq!(got.len(), want.len(), "{got:?}");
        for (got, (level, part)) in got.iter().zip(want) {
            assert!(got.level == *level && got.text.contains(part), "{got}");
        }
    }

    #[test]
    fn replication_is_judged() {
        check(&[NETWORK, ("dc1", "3")], 3, &[]);
        check(&[NETWORK, ("dc1", "5")], 9, &[]);
        check(&[NETWORK, ("dc1", "1")], 3, &[(Level::Warning, "ONE copy")]);
        check(&[NETWORK, ("dc1", "2")], 3, &[(Level::Warning, "both")]);
        check(&[NETWORK, ("dc1", "3")], 1, &[(Level::Error, "which has 1 nodes")]);
        check(&[NETWORK, ("dc2", "3")], 3, &[(Level::Error, "no copies in data centre dc1")]);
        let simple = ("class", "org.apache.cassandra.locator.SimpleStrategy");
        check(&[simple, ("replication_factor", "3")], 3, &[(Level::Warning, "SimpleStrategy")]);
        let fleeting = judge("ks", "dc1", &replication(&[NETWORK, ("dc1", "3")]), false, 3);
        assert!(fleeting[0].to_string().starts_with("error: keyspace ks has durable_writes"));
    }

    #[test]
    fn settings_are_judged() {
        let of = |pairs: &[(&str, &str)]| judge_settings("n1", &replication(pairs).into_iter().collect());
        for sync in ["group", "batch"] {
            assert_eq!(of(&[("commitlog_sync", sync), ("user_timestamps_enabled", "true")]), []);
        }
        let periodic = of(&[("commitlog_sync", "periodic"), ("commitlog_sync_period", "10000ms")]);
        assert!(
            periodic[0].level == Level::Warning && periodic[0].text.contains("(every 10000ms)"),
            "{periodic:?}"
        );
        let scylla = of(&[("commitlog_sync", "periodic"), ("commitlog_sync_period_in_ms", "10000")]);
        assert!(scylla[0].text.contains("(every 10000ms)"));
        assert_eq!(of(&[])[0].level, Level::Note);
        let off = of(&[("commitlog_sync", "batch"), ("user_timestamps_enabled", "false")]);
        assert_eq!((off.len(), off[0].level), (1, Level::Error));
        let floor = of(&[
            ("commitlog_sync", "batch"),
            ("minimum_timestamp_fail_threshold", "1d"),
            ("minimum_timestamp_warn_threshold", "null"),
        ]);
        assert_eq!((floor.len(), floor[0].level), (1, Level::Error));
    }

    #[test]
    fn tablets_need_a_release_that_has_transactions_on_them() {
        assert_eq!(judge_tablets("ks", (2025, 4)), None);
        assert!(judge_tablets("ks", (6, 2)).unwrap().text.contains("nobody can sign up"));
        assert!(Level::Error < Level::Warning && Level::Warning < Level::Note);
    }
}
