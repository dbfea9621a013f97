//! `banyan schema`: the tables of a cluster's store, looked at and brought up to date by people.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use banyan_storage_scylla::schema::{self, Applied, Replication};
use banyan_storage_scylla::{ConnectError, Level, Options, Server, Tls};
use serde_json::json;

use crate::cli::{Schema, Settings};
use crate::config::Config;
use crate::failure::{Exit, Failure, words};
use crate::output;

/// How long a command waits for servers; a node that starts waits for ever.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn run(asked: &Schema) -> Result<(), Failure> {
    match asked {
        Schema::Print(settings) => {
            let config = settings.load_for_command()?.config;
            output::print(&schema::print(&config.scylla.keyspace, &replication(&config)))
        }
        Schema::Apply(settings) => block(apply(settings)),
        Schema::Check { settings, json } => block(check(settings, *json)),
    }
}

fn block<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime
        .map_err(|error| Failure::new(Exit::Unavailable, format!("cannot start: {}", words(&error))))?;
    runtime.block_on(command)
}

async fn apply(settings: &Settings) -> Result<(), Failure> {
    let config = settings.load_for_command()?.config;
    let server = connect(&config, Some(PATIENCE)).await?;
    let keyspace = &config.scylla.keyspace;
    let Applied { from, to } =
        server.apply_schema(&replication(&config)).await.map_err(|error| refused(&error.into()))?;
    output::print(&match from {
        None => format!("keyspace {keyspace} is made, with schema version {to}\n"),
        Some(from) if from == to => format!("keyspace {keyspace} has schema version {to} already\n"),
        Some(from) => format!("keyspace {keyspace} went from schema version {from} to {to}\n"),
    })
}

async fn check(settings: &Settings, as_json: bool) -> Result<(), Failure> {
    let config = settings.load_for_command()?.config;
    let server = connect(&config, Some(PATIENCE)).await?;
    let findings = server.check().await;
    if as_json {
        let all: Vec<_> = findings
            .iter()
            .map(|finding| {
                let level = match finding.level {
                    Level::Error => "error",
                    Level::Warning => "warning",
                    Level::Note => "note",
                };
                json!({ "level": level, "text": finding.text })
            })
            .collect();
        output::print(&format!("{:#}\n", json!({ "data_centre": server.data_centre(), "findings": all })))?;
    } else {
        let lines = findings.iter().map(|finding| Ok(format!("{finding}\n")));
        output::print_all(lines)?;
        if findings.is_empty() {
            output::print("nothing to complain about\n")?;
        }
    }
    match findings.iter().any(|finding| finding.level == Level::Error) {
        true => Err(Failure::new(Exit::No, "the store cannot be used as it is")),
        false => Ok(()),
    }
}

fn replication(config: &Config) -> Replication {
    Replication { data_centre: config.scylla.datacenter.clone(), factor: config.scylla.replication }
}

/// Connects to the configured servers. Waits for them, and says so.
pub(crate) async fn connect(config: &Config, patience: Option<Duration>) -> Result<Server, Failure> {
    let scylla = &config.scylla;
    if scylla.nodes.is_empty() {
        let failure = Failure::new(Exit::Usage, "no server of the store is named");
        return Err(failure.with_hint("name some with --scylla HOST:PORT,… (scylla.nodes)"));
    }
    let read = |path: &PathBuf| {
        fs::read(path).map_err(|error| {
            Failure::new(Exit::Io, format!("cannot read {}: {}", path.display(), words(&error)))
        })
    };
    let identity = match (&scylla.cert, &scylla.key) {
        (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
        (_, _) => None,
    };
    let ca = scylla.ca.as_ref().map(read).transpose()?;
    let options = Options {
        data_centre: Some(scylla.datacenter.clone()),
        login: scylla.user.clone().zip(scylla.password.0.clone()),
        tls: ca.map(|ca| Tls { ca, identity, server_name: scylla.server_name.clone() }),
        start_deadline: patience,
        ..Options::new(scylla.nodes.clone(), &scylla.keyspace)
    };
    Server::connect(options, |waiting| tracing::warn!("{waiting}")).await.map_err(|error| refused(&error))
}

pub(crate) fn refused(error: &ConnectError) -> Failure {
    let exit = match error {
        ConnectError::NotThere { .. } => Exit::Unavailable,
        ConnectError::Schema(schema::Error::Newer { .. }) => Exit::Io,
        ConnectError::Schema(
            schema::Error::Cql { .. } | schema::Error::Busy { .. } | schema::Error::Overtaken,
        ) => Exit::Unavailable,
        _ => Exit::Usage,
    };
    let failure = Failure::new(exit, format!("the store: {error}"));
    match error {
        ConnectError::Tls(_) => failure.with_hint(
            "scylla.ca must be the authority of the servers' certificates, which must hold their addresses or scylla.server_name; scylla.cert and scylla.key must be of the authority that the servers trust",
        ),
        ConnectError::Refused(_) => failure
            .with_hint("the role of scylla.user needs SELECT and MODIFY on the keyspace (scylla.keyspace)"),
        ConnectError::Login(_) => {
            failure.with_hint("scylla.user and scylla.password (BANYAN_SCYLLA__PASSWORD) must be those of a role that may log in")
        }
        _ => failure,
    }
}
