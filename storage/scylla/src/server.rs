//! A connection to the servers before there is a store: waiting for them, the schema, the checks.
//!
//! Owns: the session, the data centre that quorums are of, which product answers.
//! Does not: apply a schema unasked, or serve anything. [`Server::open`] makes it a store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use scylla::client::execution_profile::{ExecutionProfile, ExecutionProfileHandle};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::errors::{
    ConnectionError, ConnectionPoolError, ConnectionSetupRequestErrorKind, DbError, ExecutionError,
    MetadataError, NewSessionError,
};
use scylla::policies::load_balancing::DefaultPolicy;
use scylla::response::query_result::QueryResult;
use scylla::serialize::row::SerializeRow;
use scylla::statement::{Consistency, SerialConsistency, Statement};
use scylla::value::{CqlValue, Row};
use tokio::time::Instant;
use tracing::instrument::WithSubscriber;

use crate::check::{self, Finding};
use crate::failure;
use crate::options::Options;
use crate::overheard::Overheard;
use crate::schema::{self, Applied, Replication};
use crate::statements::{Profiles, Statements};
use crate::store::Scylla;
use crate::tls::{self, Tls};

/// Between two tries at start: as long as a server takes to open its port, and no busier.
const TRY_EVERY: Duration = Duration::from_millis(500);
/// A reason to wait is said again so often; a new one is said at once.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Schema changes wait for all nodes to agree.
const DDL_TIMEOUT: Duration = Duration::from_secs(60);
/// Of one question about the lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than a step may take, its renewal included. Who died in the middle is waited for so long.
const LOCK_LASTS: Duration = Duration::from_secs(180);
/// A renewal is tried again for so long: with a change of the schema and the wait for all nodes to agree, less than the lock lasts.
const LOCK_RENEWAL: Duration = Duration::from_secs(30);
/// Somebody who died in the middle, and another apply after that.
const LOCK_WAIT: Duration = Duration::from_secs(300);
/// How rustls begins what the other side had to say.
const ALERT: &str = "received fatal alert";
/// Below it ScyllaDB refuses lightweight transactions in keyspaces with tablets.
pub(crate) const LWT_ON_TABLETS: (u32, u32) = (2025, 4);

/// The servers do not answer yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub nodes: Vec<String>,
    pub waited: Duration,
    pub why: String,
}

impl std::fmt::Display for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (nodes, waited) = (self.nodes.join(", "), self.waited.as_secs());
        write!(f, "waiting for CQL servers at {nodes} for {waited} s: {}", self.why)
    }
}

/// Why there is no store. Waiting would not help, or has lasted long enough.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    #[error("{0}")]
    Options(String),
    #[error("no CQL server at {nodes} answered within {waited_s} s: {why}")]
    NotThere { nodes: String, waited_s: u64, why: String },
    #[error("the CQL servers refuse the login: {0}")]
    Login(String),
    #[error("the CQL servers do not let us read the keyspace: {0}")]
    Refused(String),
    #[error("there is no TLS with the CQL servers: {0}")]
    Tls(String),
    #[error("the CQL servers have no data centre {wanted:?}; they have: {there}")]
    DataCentre { wanted: String, there: String },
    #[error("the CQL servers have several data centres ({there}): name the local one")]
    WhichDataCentre { there: String },
    #[error(transparent)]
    Schema(#[from] schema::Error),
}

/// Which server speaks CQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Product {
    Cassandra,
    /// Year and number of the release; ScyllaDB before 2025 counted otherwise, and sorts before it.
    Scylla {
        release: (u32, u32),
    },
}

/// Connected; see the module's text.
pub struct Server {
    pub(crate) session: Arc<Session>,
    pub(crate) options: Options,
    pub(crate) data_centre: String,
    pub(crate) product: Product,
    /// For questions that are asked now and then: nodes of our data centre alone.
    local: ExecutionProfileHandle,
}

impl Server {
    /// Waits until one of the nodes answers, and tells `waiting` about it: at once, for each new reason, and every ten seconds.
    /// Dropping the future ends it.
    pub async fn connect(
        options: Options,
        mut waiting: impl FnMut(&Waiting) + Send,
    ) -> Result<Self, ConnectError> {
        if let Some(why) = options.refusal() {
            return Err(ConnectError::Options(why));
        }
        let mut patience = Patience::new(&options);
        let tls = options.tls.as_ref().map(Tls::config).transpose().map_err(ConnectError::Tls)?;
        let session = loop {
            // What the driver would log of a try that fails is what `waiting` is told.
            let heard = Overheard::default();
            match Box::pin(builder(&options, tls.clone()).build()).with_subscriber(heard.clone()).await {
                Ok(session) if data_centres(&session).is_empty() => {
                    // The driver goes on with the names that it was given if the tables of the servers cannot be read.
                    let mut why = "a server answered, and did not say which servers there are".to_owned();
                    if let Some(last) = heard.take().pop() {
                        why = format!("{why}: {last}");
                    }
                    patience.wait(why, &mut waiting).await?;
                }
                Ok(session) => {
                    // Of one of the addresses, say, where another one answered.
                    for line in heard.take() {
                        tracing::warn!("while connecting to CQL: {line}");
                    }
                    break Arc::new(session);
                }
                Err(error) => {
                    if let Some(why) = login_refused(&error) {
                        return Err(ConnectError::Login(why));
                    }
                    if let Some(why) = tls_refused(&error) {
                        return Err(ConnectError::Tls(why));
                    }
                    patience.wait(error.to_string(), &mut waiting).await?;
                }
            }
        };
        let data_centre = data_centre(&session, options.data_centre.as_deref())?;
        let product = loop {
            match product(&session).await {
                Ok(product) => break product,
                Err(error) => patience.wait(error.to_string(), &mut waiting).await?,
            }
        };
        tracing::info!(nodes = ?options.nodes, data_centre, ?product, "connected to CQL");
        let balancing =
            DefaultPolicy::builder().prefer_datacenter(data_centre.clone()).permit_dc_failover(false).build();
        let local = ExecutionProfile::builder().load_balancing_policy(balancing).build().into_handle();
        Ok(Self { session, options, data_centre, product, local })
    }

    /// The data centre that every quorum is of.
    pub fn data_centre(&self) -> &str {
        &self.data_centre
    }

    /// The newest version that the keyspace has; None: no schema, or no keyspace.
    pub async fn schema_version(&self) -> Result<Option<u32>, schema::Error> {
        let doing = || format!("reading the schema version of {}", self.options.keyspace);
        self.read_version()
            .await
            .map_err(|error| schema::Error::Cql { doing: doing(), why: error.to_string() })
    }

    async fn read_version(&self) -> Result<Option<u32>, ExecutionError> {
        let keyspace = &self.options.keyspace;
        let there = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = 'schema_versions'";
        let there = self.ask(there, Consistency::LocalOne, (keyspace,)).await?;
        let found = there.into_rows_result().is_ok_and(|rows| rows.rows_num() > 0);
        if !found {
            return Ok(None);
        }
        // The whole partition: `max` of nothing is null.
        let text = format!("SELECT max(version) FROM {keyspace}.schema_versions WHERE k = 0");
        let answer = self.ask(&text, Consistency::LocalQuorum, ()).await?;
        let version =
            answer.into_rows_result().ok().and_then(|rows| rows.single_row::<(Option<i32>,)>().ok());
        Ok(version.and_then(|(version,)| u32::try_from(version?).ok()))
    }

    /// Brings the keyspace to the newest version, and makes it first if it is not there. Repeat it after an error. Of several at the
    /// same time one does it, and the others wait for it.
    pub async fn apply_schema(&self, replication: &Replication) -> Result<Applied, schema::Error> {
        let from = self.version_to_apply().await?;
        if from == Some(schema::NEWEST) {
            return Ok(Applied { from, to: schema::NEWEST });
        }
        let keyspace = &self.options.keyspace;
        if from.is_none() {
            let tablets = match self.product {
                Product::Scylla { release } if release < LWT_ON_TABLETS && release.0 >= 2024 => Some(false),
                Product::Scylla { .. } | Product::Cassandra => None,
            };
            self.change(&schema::create_keyspace(keyspace, replication, tablets)).await?;
        }
        self.change(&schema::lock_table(keyspace)).await?;
        let lock = Lock::take(self).await?;
        let applied = self.apply_under(&lock).await;
        lock.release().await;
        applied
    }

    /// Unless it is newer than this release.
    async fn version_to_apply(&self) -> Result<Option<u32>, schema::Error> {
        match self.schema_version().await? {
            Some(stored) if stored > schema::NEWEST => {
                Err(schema::Error::Newer { keyspace: self.options.keyspace.clone(), stored })
            }
            from => Ok(from),
        }
    }

    async fn apply_under(&self, lock: &Lock<'_>) -> Result<Applied, schema::Error> {
        let keyspace = &self.options.keyspace;
        // Who held the lock before may have done it all.
        let from = self.version_to_apply().await?;
        if from.is_none() {
            self.change(&schema::with_keyspace(schema::VERSIONS_TABLE, keyspace)).await?;
        }
        for (number, what, statements) in schema::steps(keyspace, from) {
            for statement in statements {
                lock.renew().await?;
                self.change(&statement).await?;
            }
            lock.renew().await?;
            let noted =
                self.ask(&schema::note_version(keyspace, number, what), Consistency::LocalQuorum, ()).await;
            noted.map_err(|error| schema::Error::Cql {
                doing: format!("noting schema version {number}"),
                why: error.to_string(),
            })?;
            tracing::info!(keyspace, version = number, what, "schema applied");
        }
        Ok(Applied { from, to: schema::NEWEST })
    }

    /// Forgets the keyspace and all that is in it. For tests and for a cluster that is taken down for good.
    pub async fn drop_keyspace(&self) -> Result<(), schema::Error> {
        self.change(&format!("DROP KEYSPACE IF EXISTS {}", self.options.keyspace)).await
    }

    /// What an operator should know about schema, keyspace and the servers' settings, the worst first.
    pub async fn check(&self) -> Vec<Finding> {
        check::run(self).await
    }

    /// [`Server::check`] without the schema. Needs no quorum: it names settings with which none could be had.
    pub async fn check_settings(&self) -> Vec<Finding> {
        check::settings(self).await
    }

    /// The store. Waits while a quorum of the servers is not there, and tells `waiting` as [`Server::connect`] does; refuses a
    /// schema that is not the newest. Dropping the future ends it.
    pub async fn open(self, mut waiting: impl FnMut(&Waiting) + Send) -> Result<Scylla, ConnectError> {
        let mut patience = Patience::new(&self.options);
        let keyspace = &self.options.keyspace;
        loop {
            match self.read_version().await {
                Ok(stored) => break schema::usable(keyspace, stored)?,
                Err(error) if failure::is_passing(&error) => {
                    patience.wait(error.to_string(), &mut waiting).await?
                }
                Err(error) => return Err(ConnectError::Refused(error.to_string())),
            }
        }
        let profiles = Profiles::new(&self.options, &self.data_centre);
        let statements = loop {
            match Box::pin(Statements::prepare(&self.session, keyspace, &profiles)).await {
                Ok(statements) => break statements,
                Err(error) => patience.wait(error.to_string(), &mut waiting).await?,
            }
        };
        Ok(Scylla::new(self, statements, &profiles))
    }

    async fn change(&self, text: &str) -> Result<(), schema::Error> {
        let mut statement = Statement::new(text);
        statement.set_request_timeout(Some(DDL_TIMEOUT));
        let failed = |why: String| schema::Error::Cql {
            doing: text.lines().next().unwrap_or_default().to_owned(),
            why,
        };
        Box::pin(self.session.query_unpaged(statement, ()))
            .await
            .map_err(|error| failed(error.to_string()))?;
        // The driver waits after a change alone; what was there already may be so new that some nodes have not heard of it.
        self.session.await_schema_agreement().await.map(drop).map_err(|error| failed(error.to_string()))
    }

    /// A question that is asked now and then.
    pub(crate) async fn ask(
        &self,
        text: &str,
        consistency: Consistency,
        values: impl SerializeRow,
    ) -> Result<QueryResult, ExecutionError> {
        let mut statement = Statement::new(text);
        statement.set_execution_profile_handle(Some(self.local.clone()));
        ask(&self.session, statement, consistency, values).await
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("options", &self.options)
            .field("data_centre", &self.data_centre)
            .finish_non_exhaustive()
    }
}

async fn ask(
    session: &Session,
    statement: impl Into<Statement>,
    consistency: Consistency,
    values: impl SerializeRow,
) -> Result<QueryResult, ExecutionError> {
    let mut statement = statement.into();
    statement.set_consistency(consistency);
    statement.set_is_idempotent(true);
    Box::pin(session.query_unpaged(statement, values)).await
}

/// The one row that says who applies a schema.
struct Lock<'a> {
    server: &'a Server,
    /// Random.
    holder: String,
}

impl<'a> Lock<'a> {
    /// Waits until nobody else holds it.
    async fn take(server: &'a Server) -> Result<Self, schema::Error> {
        let keyspace = &server.options.keyspace;
        let lock = Self { server, holder: uuid::Uuid::new_v4().to_string() };
        let seconds = LOCK_LASTS.as_secs();
        let text = format!(
            "INSERT INTO {keyspace}.schema_lock (k, holder) VALUES (0, ?) IF NOT EXISTS USING TTL {seconds}"
        );
        let began = Instant::now();
        let mut said = false;
        loop {
            // Looked at first: of many who would write at once none gets through.
            match lock.held_by().await {
                // An answer that was lost.
                Ok(Some(holder)) if holder == lock.holder => {
                    lock.renew().await?;
                    return Ok(lock);
                }
                Ok(Some(_)) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::info!(keyspace, "another schema apply is under way: waits for it");
                    }
                }
                Ok(None) => match lock.won(&text, (&lock.holder,)).await {
                    Ok(true) => return Ok(lock),
                    Ok(false) => {}
                    // The next look tells.
                    Err(error) if failure::is_passing(&error) => {}
                    Err(error) => return Err(lock.failed(&error)),
                },
                Err(error) if failure::is_passing(&error) => {}
                Err(error) => return Err(lock.failed(&error)),
            }
            if began.elapsed() > LOCK_WAIT {
                let waited_s = began.elapsed().as_secs();
                return Err(schema::Error::Busy { keyspace: keyspace.clone(), waited_s });
            }
            tokio::time::sleep(TRY_EVERY).await;
        }
    }

    async fn held_by(&self) -> Result<Option<String>, ExecutionError> {
        let text = format!("SELECT holder FROM {}.schema_lock WHERE k = 0", self.server.options.keyspace);
        let answer = self.server.ask(&text, Consistency::LocalQuorum, ()).await?;
        let row = answer.into_rows_result().ok().and_then(|rows| rows.first_row::<(Option<String>,)>().ok());
        Ok(row.and_then(|(holder,)| holder))
    }

    /// Before each step: it lasts longer than the longest.
    async fn renew(&self) -> Result<(), schema::Error> {
        let seconds = LOCK_LASTS.as_secs();
        let keyspace = &self.server.options.keyspace;
        let text = format!(
            "UPDATE {keyspace}.schema_lock USING TTL {seconds} SET holder = ? WHERE k = 0 IF holder = ?"
        );
        let began = Instant::now();
        loop {
            match self.won(&text, (&self.holder, &self.holder)).await {
                Ok(true) => return Ok(()),
                Ok(false) => return Err(schema::Error::Overtaken),
                // Those who wait look at the row, and may be in the way. Said twice, it does no harm.
                Err(error) if failure::is_passing(&error) && began.elapsed() < LOCK_RENEWAL => {
                    tokio::time::sleep(TRY_EVERY).await;
                }
                Err(error) => return Err(self.failed(&error)),
            }
        }
    }

    /// Else it runs out by itself.
    async fn release(self) {
        let text =
            format!("DELETE FROM {}.schema_lock WHERE k = 0 IF holder = ?", self.server.options.keyspace);
        if let Err(error) = self.won(&text, (&self.holder,)).await {
            tracing::debug!(%error, "the schema lock was not released");
        }
    }

    async fn won(&self, text: &str, values: impl SerializeRow) -> Result<bool, ExecutionError> {
        let mut statement = Statement::new(text);
        statement.set_execution_profile_handle(Some(self.server.local.clone()));
        statement.set_serial_consistency(Some(SerialConsistency::LocalSerial));
        statement.set_consistency(Consistency::LocalQuorum);
        statement.set_request_timeout(Some(LOCK_TIMEOUT));
        let answer = Box::pin(self.server.session.query_unpaged(statement, values)).await?;
        // `[applied]` is the first column; what is there follows if it is not so.
        let rows = answer.into_rows_result().ok();
        let first = rows.and_then(|rows| rows.first_row::<Row>().ok());
        Ok(matches!(
            first.and_then(|row| row.columns.into_iter().next()),
            Some(Some(CqlValue::Boolean(true)))
        ))
    }

    fn failed(&self, error: &ExecutionError) -> schema::Error {
        let doing = format!("taking the schema lock of {}", self.server.options.keyspace);
        schema::Error::Cql { doing, why: error.to_string() }
    }
}

fn builder(options: &Options, tls: Option<Arc<ClientConfig>>) -> SessionBuilder {
    // Half for the question that keeps a connection alive, half for its answer.
    let half = options.silence_max / 2;
    let builder = SessionBuilder::new()
        .known_nodes(&options.nodes)
        .keyspaces_to_fetch([&options.keyspace])
        .fetch_schema_metadata(true)
        .keepalive_interval(half)
        .keepalive_timeout(half)
        .connection_timeout(options.silence_max.max(Duration::from_secs(1)))
        .schema_agreement_timeout(DDL_TIMEOUT)
        .tls_context(tls);
    match &options.login {
        Some((user, password)) => builder.user(user, password),
        None => builder,
    }
}

/// Waiting that says so, until the deadline.
struct Patience {
    nodes: Vec<String>,
    since: Instant,
    deadline: Option<Duration>,
    /// Reasons that were told, and when. Several servers may have several, by turns.
    told: Vec<(String, Duration)>,
}

impl Patience {
    fn new(options: &Options) -> Self {
        let (nodes, deadline) = (options.nodes.clone(), options.start_deadline);
        Self { nodes, since: Instant::now(), deadline, told: Vec::new() }
    }

    async fn wait(
        &mut self,
        why: String,
        waiting: &mut (impl FnMut(&Waiting) + Send),
    ) -> Result<(), ConnectError> {
        let waited = self.since.elapsed();
        if self.deadline.is_some_and(|deadline| waited >= deadline) {
            return Err(ConnectError::NotThere {
                nodes: self.nodes.join(", "),
                waited_s: waited.as_secs(),
                why,
            });
        }
        self.told.retain(|(_, at)| waited < *at + SAY_EVERY);
        if self.told.iter().all(|(reason, _)| *reason != why) {
            waiting(&Waiting { nodes: self.nodes.clone(), waited, why: why.clone() });
            self.told.push((why, waited));
        }
        let left = self.deadline.map_or(TRY_EVERY, |deadline| deadline.saturating_sub(waited));
        tokio::time::sleep(TRY_EVERY.min(left)).await;
        Ok(())
    }
}

/// Why the login is refused for good, if that is what happened.
fn login_refused(error: &NewSessionError) -> Option<String> {
    let NewSessionError::MetadataError(MetadataError::ConnectionPoolError(ConnectionPoolError::Broken {
        last_connection_error: ConnectionError::ConnectionSetupRequestError(setup),
    })) = error
    else {
        return None;
    };
    match setup.get_error() {
        ConnectionSetupRequestErrorKind::DbError(
            DbError::AuthenticationError | DbError::Unauthorized,
            why,
        ) => Some(why.clone()),
        ConnectionSetupRequestErrorKind::MissingAuthentication => {
            Some("they want a name and a password".to_owned())
        }
        _ => None,
    }
}

/// Why there will be no TLS, if that is what happened.
fn tls_refused(error: &NewSessionError) -> Option<String> {
    let NewSessionError::MetadataError(MetadataError::ConnectionPoolError(ConnectionPoolError::Broken {
        last_connection_error,
    })) = error
    else {
        return None;
    };
    if let ConnectionError::IoError(error) = last_connection_error {
        return tls::refused(error);
    }
    // What a server says of our certificate comes when the connection is made already, wrapped in the driver's own errors.
    let text = last_connection_error.to_string();
    text.find(ALERT).map(|at| text[at..].to_owned())
}

fn data_centres(session: &Session) -> BTreeSet<String> {
    let state = session.get_cluster_state();
    state.get_nodes_info().iter().filter_map(|node| node.datacenter.clone()).collect()
}

fn data_centre(session: &Session, wanted: Option<&str>) -> Result<String, ConnectError> {
    let there = data_centres(session);
    let names = || there.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    match (wanted, there.first()) {
        (Some(wanted), _) if there.contains(wanted) => Ok(wanted.to_owned()),
        (Some(wanted), _) => Err(ConnectError::DataCentre { wanted: wanted.to_owned(), there: names() }),
        (None, Some(only)) if there.len() == 1 => Ok(only.clone()),
        (None, _) => Err(ConnectError::WhichDataCentre { there: names() }),
    }
}

async fn product(session: &Session) -> Result<Product, ExecutionError> {
    let there = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = 'system' AND table_name = 'versions'";
    let there = ask(session, there, Consistency::One, ()).await?;
    if there.into_rows_result().is_ok_and(|rows| rows.rows_num() == 0) {
        return Ok(Product::Cassandra);
    }
    let answer =
        ask(session, "SELECT version FROM system.versions WHERE key = 'local'", Consistency::One, ()).await?;
    let version = answer.into_rows_result().ok().and_then(|rows| rows.single_row::<(String,)>().ok());
    Ok(Product::Scylla { release: version.map(|(version,)| release(&version)).unwrap_or_default() })
}

/// The first two numbers of a version.
fn release(version: &str) -> (u32, u32) {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_scylla_sort() {
        assert_eq!(release("2025.4.1-0.20251203.abc"), (2025, 4));
        assert_eq!(release("6.2.0~rc1"), (6, 2));
        assert_eq!(release("what"), (0, 0));
        assert!(release("5.4.0") < LWT_ON_TABLETS && release("2025.3.9") < LWT_ON_TABLETS);
        assert!(release("2026.1") >= LWT_ON_TABLETS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reason_is_said_at_once_and_again_after_a_while() {
        let mut patience = Patience::new(&Options::new(vec!["one:9042".to_owned()], "banyan"));
        let mut told = Vec::new();
        for attempt in 0..60 {
            let why = if attempt % 8 == 4 { "busy" } else { "refused" };
            let note = &mut |waiting: &Waiting| told.push((waiting.waited.as_millis(), waiting.why.clone()));
            patience.wait(why.to_owned(), note).await.unwrap();
        }
        let told: Vec<_> = told.iter().map(|(at, why)| (*at, why.as_str())).collect();
        let want = [
            (0, "refused"),
            (2_000, "busy"),
            (10_500, "refused"),
            (14_000, "busy"),
            (20_500, "refused"),
            (26_000, "busy"),
        ];
        assert_eq!(told, want);
    }

    #[tokio::test]
    async fn nobody_there_is_said_until_the_deadline() {
        let mut options = Options::new(vec!["127.0.0.1:1".to_owned()], "banyan");
        options.start_deadline = Some(Duration::from_millis(1_200));
        let mut heard = Vec::new();
        let error = Server::connect(options, |waiting| heard.push(waiting.to_string())).await.unwrap_err();
        assert!(matches!(error, ConnectError::NotThere { .. }), "{error}");
        assert!(!heard.is_empty() && heard[0].contains("127.0.0.1:1"), "{heard:?}");
        let options = Options::new(Vec::new(), "banyan");
        assert!(matches!(Server::connect(options, |_| ()).await.unwrap_err(), ConnectError::Options(_)));
    }
}
