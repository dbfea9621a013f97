//! The servers of etcd: one connection to each, one of them preferred.
//!
//! Owns: which server is asked first.
//! Always holds: a transaction is sent to one server, once; it goes to another one only if the connection could not even be
//! made. Reads, keep-alives and the ends of leases may be said twice: when the preferred server has not answered within
//! [`HEDGE`], or has failed, the next one is asked as well, and who answers first is preferred from then on. A watch breaks
//! when another server comes to be preferred, or when none answers: it is resumed, or said to be gone.
//! Does not: balance load. A node asks a few times a second; watches of many nodes spread by [`Options::first`].

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banyan_router::node::KeptAlive;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, Identity, PutOptions,
    TlsOptions, TxnOp, TxnOpResponse, WatchOptions, WatchStream,
};
use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{OnceCell, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::coordination::{Error as Told, LeaseId};
use crate::keys::Keys;
use crate::kv::{
    Broken, Changed, Done, Error, If, KeyValue, Kv, Range, Ranged, Refusal, Then, Txn, Watch, end_of,
};

/// A server that takes so long is not waited for alone: far above a healthy answer, far below a lease.
const HEDGE: Duration = Duration::from_millis(250);
/// After all servers failed at once.
const PAUSE: Duration = Duration::from_millis(50);
/// A server that has not accepted us after so long will not.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// A watch that was far behind gets up to 1,000 revisions in one answer; each may hold a target of some 100 KB.
const WATCH_ANSWER_MAX: usize = 128 << 20;
/// One page of a listing with the longest values.
const READ_ANSWER_MAX: usize = 16 << 20;

/// Where etcd is, and how it is spoken to.
#[derive(Debug, Clone)]
pub struct Options {
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub endpoints: Vec<String>,
    /// Which of them is preferred at first (modulo their number): not the same one on every node.
    pub first: usize,
    pub user: Option<User>,
    pub tls: Option<Tls>,
    /// Keys are under `/banyan/{cluster}/`.
    pub cluster: String,
    /// A request that takes longer has failed, or its outcome is unknown.
    pub request_timeout: Duration,
    pub connect_timeout: Duration,
    /// HTTP/2 pings. Etcd closes connections that ping more often than every 5 s.
    pub keep_alive: Duration,
    pub keep_alive_timeout: Duration,
}

impl Options {
    pub fn new(endpoints: Vec<String>, cluster: impl Into<String>) -> Self {
        Self {
            endpoints,
            first: 0,
            user: None,
            tls: None,
            cluster: cluster.into(),
            // A third of a lease's time to live: a lost answer leaves time for two more.
            request_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            keep_alive: Duration::from_secs(6),
            keep_alive_timeout: Duration::from_secs(2),
        }
    }
}

#[derive(Clone)]
pub struct User {
    pub name: String,
    pub password: String,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("name", &self.name).finish_non_exhaustive()
    }
}

/// PEM, as read from files.
#[derive(Clone)]
pub struct Tls {
    /// Who signed the servers' certificates.
    pub ca: Vec<u8>,
    /// Certificate and key with which this client says who it is.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name in the servers' certificates, if it is not the host of the endpoint.
    pub domain: Option<String>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("domain", &self.domain)
            .field("has_identity", &self.identity.is_some())
            .finish_non_exhaustive()
    }
}

impl Keys<Servers> {
    /// Waits until one server answers and lets us read the cluster's keys. An error says what each would not do; trying again
    /// later is up to the caller, and helps with [`Told::Etcd`] alone: nobody has answered.
    pub async fn connect(options: Options) -> Result<Self, Told> {
        let cluster = options.cluster.clone();
        let has_user = options.user.is_some();
        let keys = Self::new(Servers::new(options)?, &cluster)?;
        let began = Instant::now();
        loop {
            // All keys, since a user may have been given some of them.
            let key = keys.prefix().as_bytes().to_vec();
            let range = Range { end: Some(end_of(&key)), key, revision: None, limit: 1 };
            match keys.kv().range(range).await {
                Ok(_) => return Ok(keys),
                // It is connected to, and may still be at our password.
                Err(Error::Unknown(_)) if has_user && began.elapsed() < CONNECT_MAX => {}
                Err(error) => return Err(keys.error(error)),
            }
        }
    }
}

/// Shared by its clones.
#[derive(Clone)]
pub struct Servers {
    shared: Arc<Shared>,
}

struct Shared {
    servers: Vec<Server>,
    connect: ConnectOptions,
    request_timeout: Duration,
    preferred: watch::Sender<Preferred>,
}

struct Server {
    url: String,
    /// Made by the first request: who is to say who he is must have been answered once.
    client: OnceCell<Client>,
    /// Why the last try to make it was refused: whoever asked may not wait any more when that is known.
    refused: Mutex<Option<(Refusal, String)>>,
}

impl Server {
    fn new(url: String) -> Self {
        Self { url, client: OnceCell::new(), refused: Mutex::new(None) }
    }

    fn refused(&self) -> MutexGuard<'_, Option<(Refusal, String)>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// With the server's name.
    fn named(&self, error: Error) -> Error {
        let named = |why: String| format!("{}: {why}", self.url);
        match error {
            Error::NotSent(why) => Error::NotSent(named(why)),
            Error::Unknown(why) => Error::Unknown(named(why)),
            Error::Refused(what, why) => Error::Refused(what, named(why)),
            Error::NoRevision => Error::NoRevision,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Preferred {
    server: usize,
    /// Counts how often watches must begin again.
    turn: u64,
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Servers").field(&self.describe()).finish()
    }
}

impl Servers {
    fn new(options: Options) -> Result<Self, Told> {
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(options.connect_timeout)
            .with_keep_alive(options.keep_alive, options.keep_alive_timeout)
            .with_keep_alive_while_idle(true)
            // A server that has lost its leader says so and does not show old things.
            .with_require_leader(true);
        if let Some(User { name, password }) = options.user {
            connect = connect.with_user(name, password).with_auto_token_refresh(true);
        }
        if let Some(Tls { ca, identity, domain }) = options.tls {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
            if let Some((certificate, key)) = identity {
                tls = tls.identity(Identity::from_pem(certificate, key));
            }
            if let Some(domain) = domain {
                tls = tls.domain_name(domain);
            }
            connect = connect.with_tls(tls);
        }
        let is_address = |url: &&String| {
            let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
            !rest.is_some_and(|rest| !rest.is_empty() && !rest.contains('/'))
        };
        if let Some(url) = options.endpoints.iter().find(is_address) {
            return Err(Told::Address(url.clone()));
        }
        if options.endpoints.is_empty() {
            return Err(Told::NoServers);
        }
        let preferred = Preferred { server: options.first % options.endpoints.len(), turn: 0 };
        let servers = options.endpoints.into_iter().map(Server::new);
        Ok(Self {
            shared: Arc::new(Shared {
                servers: servers.collect(),
                connect,
                request_timeout: options.request_timeout,
                preferred: watch::Sender::new(preferred),
            }),
        })
    }

    fn preferred(&self) -> usize {
        self.shared.preferred.borrow().server
    }

    fn prefer(&self, server: usize) {
        self.shared.preferred.send_if_modified(|preferred| {
            let changed = preferred.server != server;
            if changed {
                tracing::info!(server = self.shared.servers[server].url, "another etcd server is preferred");
                *preferred = Preferred { server, turn: preferred.turn + 1 };
            }
            changed
        });
    }

    /// Nobody answers: what a watch still shows may be old.
    fn doubt_watches(&self) {
        self.shared.preferred.send_modify(|preferred| preferred.turn += 1);
    }

    /// Whoever gives up waiting leaves the connecting to go on: a server takes its time to check a password, and more of it
    /// when it is busy.
    async fn client(&self, server: usize) -> Result<Client, Error> {
        if let Some(client) = self.shared.servers[server].client.get() {
            return Ok(client.clone());
        }
        let shared = Arc::clone(&self.shared);
        let connecting = tokio::spawn(async move {
            let server = &shared.servers[server];
            let connect = || async {
                match timeout(CONNECT_MAX, Client::connect([&server.url], Some(shared.connect.clone()))).await
                {
                    Ok(client) => client.map_err(error_of),
                    Err(_) => Err(Error::NotSent("no answer in time".to_owned())),
                }
            };
            // Nothing but who we are was said yet.
            let made = server.client.get_or_try_init(connect).await.cloned().map_err(|error| match error {
                Error::Refused(what, why) => Error::Refused(what, why),
                error => Error::NotSent(error.to_string()),
            });
            *server.refused() = match &made {
                Err(Error::Refused(what, why)) => Some((*what, why.clone())),
                _ => None,
            };
            made.map_err(|error| server.named(error))
        });
        connecting.await.unwrap_or_else(|error| Err(Error::NotSent(error.to_string())))
    }

    /// What a server has said to a try to connect that nobody waited for any more.
    fn refused_meanwhile(&self) -> Option<Error> {
        self.shared.servers.iter().find_map(|server| {
            let (what, why) = server.refused().clone()?;
            Some(server.named(Error::Refused(what, why)))
        })
    }

    async fn on<T, F>(&self, server: usize, request: &impl Fn(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let client = self.client(server).await?;
        request(client).await.map_err(|error| self.shared.servers[server].named(error_of(error)))
    }

    /// Asks until one server answers, for as long as a request may take. Only for what may be said twice.
    async fn repeatable<T, F>(&self, request: impl Fn(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let deadline = Instant::now() + self.shared.request_timeout;
        let servers = self.shared.servers.len();
        let first = self.preferred();
        let mut last = None;
        let mut refused = None;
        let result = timeout_at(deadline, async {
            loop {
                let mut asked = 1;
                let mut answers = FuturesUnordered::new();
                let ask = |offset: usize| {
                    let server = (first + offset) % servers;
                    self.on(server, &request).map(move |answer| (server, answer))
                };
                answers.push(ask(0));
                while !answers.is_empty() {
                    let (server, error) = tokio::select! {
                        Some((server, answer)) = answers.next() => match answer {
                            Ok(answer) => {
                                self.prefer(server);
                                return Ok(answer);
                            }
                            Err(error @ Error::NoRevision) => return Err(error),
                            Err(error) => (Some(server), Some(error)),
                        },
                        () = sleep(HEDGE), if asked < servers => (None, None),
                    };
                    if let (Some(server), Some(error)) = (server, error) {
                        tracing::debug!(server = self.shared.servers[server].url, %error, "etcd request failed");
                        match error {
                            Error::Refused(..) => refused = Some(error),
                            error => last = Some(error),
                        }
                    }
                    if asked < servers {
                        answers.push(ask(asked));
                        asked += 1;
                    }
                }
                // Waiting does not give us a permission; those that are away would not give it either.
                if let Some(refused) = refused.take() {
                    return Err(refused);
                }
                sleep(PAUSE).await;
            }
        })
        .await;
        result.unwrap_or_else(|_| {
            self.doubt_watches();
            if let Some(refused) = refused.or_else(|| self.refused_meanwhile()) {
                return Err(refused);
            }
            Err(last.unwrap_or_else(|| Error::Unknown("no answer in time".to_owned())))
        })
    }

    /// Sends a request to one server, once: the preferred one, or the next to which a connection can be made.
    async fn once<T, F>(&self, request: impl Fn(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let deadline = Instant::now() + self.shared.request_timeout;
        let servers = self.shared.servers.len();
        let first = self.preferred();
        let mut not_sent = Error::NotSent(String::new());
        for offset in 0..servers {
            let server = (first + offset) % servers;
            let error = match timeout_at(deadline, self.on(server, &request)).await {
                Ok(Ok(answer)) => {
                    self.prefer(server);
                    return Ok(answer);
                }
                Ok(Err(error @ Error::NotSent(_))) => {
                    not_sent = error;
                    continue;
                }
                Ok(Err(error)) => error,
                Err(_) => Error::Unknown(format!("{}: no answer in time", self.shared.servers[server].url)),
            };
            if let Error::Unknown(_) = error {
                self.prefer((server + 1) % servers);
            }
            return Err(error);
        }
        Err(not_sent)
    }
}

/// What an error says about the request.
fn error_of(error: etcd_client::Error) -> Error {
    use etcd_client::Error as Etcd;
    match error {
        Etcd::GRpcStatus(status) => match status.code() {
            // Of a read: compacted, or of a revision that has not been.
            tonic::Code::OutOfRange => Error::NoRevision,
            tonic::Code::PermissionDenied => Error::Refused(Refusal::Permission, status.message().to_owned()),
            tonic::Code::Unauthenticated => Error::Refused(Refusal::Login, status.message().to_owned()),
            // How etcd says that name and password do not fit, or that it wants them.
            tonic::Code::InvalidArgument
                if ["authentication failed", "user name is empty"]
                    .iter()
                    .any(|why| status.message().contains(why)) =>
            {
                Error::Refused(Refusal::Login, status.message().to_owned())
            }
            _ if is_of_tls(&status) => Error::Refused(Refusal::Certificate, text_of(&status)),
            _ if is_connect_error(&status) => Error::NotSent(text_of(&status)),
            _ => Error::Unknown(text_of(&status)),
        },
        Etcd::InvalidArgs(_) | Etcd::InvalidUri(_) => Error::Refused(Refusal::Options, error.to_string()),
        // The channel connects later: all that can be wrong before that is PEM that is none.
        Etcd::TransportError(error) => Error::Refused(Refusal::Certificate, text_of(&error)),
        // Found before anything was sent.
        Etcd::InvalidMetadataValue(_) => Error::NotSent(error.to_string()),
        error => Error::Unknown(error.to_string()),
    }
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |error| error.source())
}

/// Whether the two sides do not come to speak TLS with each other, and will not.
fn is_of_tls(status: &tonic::Status) -> bool {
    causes(status).any(|cause| {
        let inner = cause.downcast_ref::<io::Error>().and_then(|error| error.get_ref());
        match inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => is_hopeless(error),
            // What is said once the connection is made, such as of our certificate, comes through HTTP/2 as words alone.
            None => cause.to_string().contains("received fatal alert"),
        }
    })
}

fn is_hopeless(error: &rustls::Error) -> bool {
    use rustls::{AlertDescription, InvalidMessage};
    match error {
        rustls::Error::AlertReceived(alert) => {
            !matches!(alert, AlertDescription::InternalError | AlertDescription::UserCanceled)
        }
        // Not TLS at all.
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)
        | rustls::Error::InvalidCertificate(_)
        | rustls::Error::InvalidCertRevocationList(_)
        | rustls::Error::NoCertificatesPresented
        | rustls::Error::UnsupportedNameType
        | rustls::Error::PeerIncompatible(_) => true,
        _ => false,
    }
}

fn is_connect_error(status: &tonic::Status) -> bool {
    causes(status).any(|error| error.is::<tonic::ConnectError>())
}

/// With the deepest cause: `tcp connect error` alone helps nobody.
fn text_of(error: &(dyn std::error::Error + 'static)) -> String {
    let said = match error.downcast_ref::<tonic::Status>() {
        Some(status) => status.message().to_owned(),
        None => error.to_string(),
    };
    let cause = causes(error).last().map(ToString::to_string);
    match cause.filter(|cause| !said.contains(cause)) {
        Some(cause) => format!("{said}: {cause}"),
        None => said,
    }
}

fn key_value(found: &etcd_client::KeyValue) -> KeyValue {
    KeyValue { key: found.key().to_vec(), value: found.value().to_vec(), modified: found.mod_revision() }
}

fn compare(when: &If) -> Compare {
    match when {
        If::Absent(key) => Compare::create_revision(key.clone(), CompareOp::Equal, 0),
        If::Value(key, value) => Compare::value(key.clone(), CompareOp::Equal, value.clone()),
        If::Modified(key, revision) => Compare::mod_revision(key.clone(), CompareOp::Equal, *revision),
        If::Lease(key, lease) => Compare::lease(key.clone(), CompareOp::Equal, lease.0),
    }
}

fn operation(then: &Then) -> TxnOp {
    match then {
        Then::Put { key, value, lease } => {
            let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
            TxnOp::put(key.clone(), value.clone(), options)
        }
        Then::Delete(key) => TxnOp::delete(key.clone(), None),
    }
}

impl Kv for Servers {
    type Watch = ServerWatch;

    fn describe(&self) -> String {
        let urls: Vec<&str> = self.shared.servers.iter().map(|server| server.url.as_str()).collect();
        urls.join(",")
    }

    async fn range(&self, range: Range) -> Result<Ranged, Error> {
        let mut options = GetOptions::new().with_limit(range.limit);
        if let Some(end) = range.end {
            options = options.with_range(end);
        }
        if let Some(revision) = range.revision {
            options = options.with_revision(revision);
        }
        let key = range.key;
        let got = self.repeatable(|client| {
            let (key, options) = (key.clone(), options.clone());
            async move {
                let mut kv = client.kv_client().max_decoding_message_size(READ_ANSWER_MAX);
                kv.get(key, Some(options)).await
            }
        });
        let got = got.await?;
        Ok(Ranged {
            revision: got.header().map_or(0, etcd_client::ResponseHeader::revision),
            found: got.kvs().iter().map(key_value).collect(),
            more: got.more(),
        })
    }

    async fn txn(&self, txn: Txn) -> Result<Done, Error> {
        let request = etcd_client::Txn::new()
            .when(txn.when.iter().map(compare).collect::<Vec<_>>())
            .and_then(txn.then.iter().map(operation).collect::<Vec<_>>())
            .or_else(txn.read.iter().map(|key| TxnOp::get(key.clone(), None)).collect::<Vec<_>>());
        let done = self.once(|client| {
            let request = request.clone();
            async move { client.kv_client().txn(request).await }
        });
        let done = done.await?;
        if done.succeeded() {
            return Ok(Done::Applied);
        }
        let read = done.op_responses().into_iter().map(|response| match response {
            TxnOpResponse::Get(got) => got.kvs().first().map(key_value),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
        });
        Ok(Done::Not(read.collect()))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        let seconds = ttl.as_secs_f64().ceil().max(1.0) as i64;
        // A lease that was granted unheard ends by itself.
        let granted =
            self.repeatable(|client| async move { client.lease_client().grant(seconds, None).await });
        Ok(LeaseId(granted.await?.id()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> KeptAlive {
        let kept = self.repeatable(|client| async move {
            match client.lease_client().keep_alive(lease.0).await {
                Ok(_) => Ok(KeptAlive::Done),
                // Said by the client of an answer without time to live: there is no such lease.
                Err(etcd_client::Error::LeaseKeepAliveError(why)) if why == "lease not found" => {
                    Ok(KeptAlive::LeaseGone)
                }
                Err(error) => Err(error),
            }
        });
        kept.await.unwrap_or_else(|error| {
            tracing::debug!(%error, "the lease could not be kept alive");
            KeptAlive::Failed
        })
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.repeatable(|client| async move {
            match client.lease_client().revoke(lease.0).await {
                Err(etcd_client::Error::GRpcStatus(status)) if status.code() == tonic::Code::NotFound => {
                    Ok(())
                }
                revoked => revoked.map(|_| ()),
            }
        })
        .await
    }

    async fn watch(&self, prefix: Vec<u8>, from: i64) -> Result<ServerWatch, Broken> {
        let mut turns = self.shared.preferred.subscribe();
        let Preferred { server, turn } = *turns.borrow_and_update();
        let options = WatchOptions::new().with_prefix().with_start_revision(from);
        let begin = |client: Client| {
            let (prefix, options) = (prefix.clone(), options.clone());
            let mut client = client.watch_client().max_decoding_message_size(WATCH_ANSWER_MAX);
            async move { client.watch(prefix, Some(options)).await }
        };
        match timeout(self.shared.request_timeout, self.on(server, &begin)).await {
            Ok(Ok(stream)) => Ok(ServerWatch { stream, turns, turn }),
            failed => {
                self.prefer((server + 1) % self.shared.servers.len());
                Err(Broken::Lost(match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => format!("{}: no answer in time", self.shared.servers[server].url),
                }))
            }
        }
    }
}

/// A watch on one server.
#[derive(Debug)]
pub struct ServerWatch {
    stream: WatchStream,
    turns: watch::Receiver<Preferred>,
    turn: u64,
}

impl Watch for ServerWatch {
    async fn next(&mut self) -> Result<Vec<Changed>, Broken> {
        let turn = self.turn;
        let answer = tokio::select! {
            answer = self.stream.message() => answer,
            _ = self.turns.wait_for(|preferred| preferred.turn != turn) => {
                return Err(Broken::Lost("another server is asked".to_owned()));
            }
        };
        let answer = match answer {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(Broken::Lost("closed by the server".to_owned())),
            Err(error) => return Err(Broken::Lost(error_of(error).to_string())),
        };
        if answer.compact_revision() > 0 {
            return Err(Broken::Compacted);
        }
        if answer.canceled() {
            return Err(Broken::Lost(answer.cancel_reason().to_owned()));
        }
        let changed = answer.events().iter().filter_map(|event| {
            let found = event.kv()?;
            let value = (event.event_type() == EventType::Put).then(|| found.value().to_vec());
            Some(Changed { key: found.key().to_vec(), value, revision: found.mod_revision() })
        });
        Ok(changed.collect())
    }
}
