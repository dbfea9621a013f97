//! Who may speak: certificates of the cluster's own authority, with node and roles in them.
//!
//! A node's certificate carries as URIs (subject alternative names) `banyan://{cluster}/node/{node}` and, for each of its
//! roles, `banyan://{cluster}/role/{role}`. Host names and addresses in it do not matter: a node is who its certificate
//! says, wherever it runs. Both sides show one, TLS 1.3 only.
//! Always holds: what is loaded is whole (authority, certificate, key fit each other); files that are wrong change nothing.
//! A reload is for connections that begin after it.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use banyan_router::node_key::Role;
use banyan_router::slot_key::NodeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
};
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::hello::{Me, role_word, words_of};
use crate::metrics;
use crate::why::Why;

const SCHEME: &str = "banyan://";
/// HTTP/2, as TLS names it.
const ALPN: &[u8] = b"h2";

/// How links are kept from strangers.
#[derive(Debug, Clone)]
pub enum Security {
    Tls(Arc<Tls>),
    /// On loopback addresses only.
    Plain,
    /// Wherever it is asked for. Whoever reaches the port is one of the cluster.
    PlainEverywhere,
}

impl Security {
    pub(crate) fn allows(&self, address: IpAddr) -> bool {
        match self {
            Self::Tls(_) | Self::PlainEverywhere => true,
            Self::Plain => address.to_canonical().is_loopback(),
        }
    }

    /// The own certificate is that of this node, with all of its roles.
    pub fn check(&self, me: &Me) -> Result<(), Error> {
        let Self::Tls(tls) = self else { return Ok(()) };
        let allowed = tls.identity().allows(&me.node, &me.cluster, &me.roles);
        allowed.map_err(|why| Error::Certificate(why.words().to_owned()))
    }
}

/// The node of a certificate that any node may show: for deployments that make and drop nodes by themselves. Its roles hold
/// all the same.
pub(crate) const ANY_NODE: &str = "*";

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub cluster: String,
    /// A node's name, or `*`.
    pub node: String,
    pub roles: Vec<Role>,
}

impl Identity {
    pub(crate) fn uris(cluster: &str, node: &str, roles: &[Role]) -> Vec<String> {
        let node = format!("{SCHEME}{cluster}/node/{node}");
        let roles = roles.iter().map(|role| format!("{SCHEME}{cluster}/role/{}", role_word(*role)));
        std::iter::once(node).chain(roles).collect()
    }

    fn read(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|error| error.to_string())?;
        let mut names = parsed.valid_uri_names().filter_map(|uri| {
            let (cluster, rest) = uri.strip_prefix(SCHEME)?.split_once('/')?;
            let (kind, name) = rest.split_once('/')?;
            Some((cluster, kind, name))
        });
        let Some((cluster, "node", node)) = names.next() else {
            return Err(
                "it does not begin its names with that of a node (banyan://CLUSTER/node/NODE)".to_owned()
            );
        };
        let mut roles = Vec::new();
        for (of, kind, name) in names {
            if of != cluster || kind == "node" {
                return Err("it is for several nodes or clusters".to_owned());
            }
            match (kind, name) {
                ("role", "gateway") => roles.push(Role::Gateway),
                ("role", "shard") => roles.push(Role::Shard),
                ("role", "worker") => roles.push(Role::Worker),
                // Of a newer release.
                _ => {}
            }
        }
        roles.sort_unstable();
        Ok(Self { cluster: cluster.to_owned(), node: node.to_owned(), roles })
    }

    /// Whether who says to be this may.
    pub(crate) fn allows(&self, node: &NodeId, cluster: &str, roles: &[Role]) -> Result<(), Why> {
        if self.cluster != cluster {
            return Err(Why::Certificate(format!(
                "the certificate of node {} is of the cluster {:?}, not {cluster:?}",
                self.node, self.cluster
            )));
        }
        if self.node != node.as_str() && self.node != ANY_NODE {
            return Err(Why::Certificate(format!(
                "the certificate is for node {}, shown by node {node}",
                self.node
            )));
        }
        if let Some(role) = roles.iter().find(|role| !self.roles.contains(role)) {
            return Err(Why::Certificate(format!(
                "the certificate of node {node} does not allow the role {}, only: {}",
                role_word(*role),
                words_of(&self.roles)
            )));
        }
        Ok(())
    }
}

/// Whom the other side's certificate is for.
pub(crate) fn identity(certificates: Option<&[CertificateDer<'_>]>) -> Result<Identity, Why> {
    let first = certificates.and_then(<[_]>::first);
    let first = first.ok_or_else(|| Why::Certificate("it shows no certificate".to_owned()))?;
    Identity::read(first).map_err(|why| Why::Certificate(format!("its certificate: {why}")))
}

/// PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The cluster's authority; several while it is replaced.
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

struct Loaded {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    identity: Identity,
    /// When the certificate ends, if it does.
    expires: Option<UnixTime>,
}

/// Certificates in use.
pub struct Tls {
    files: TlsFiles,
    current: RwLock<Arc<Loaded>>,
    stamps: Mutex<Stamps>,
}

type Stamps = [Option<SystemTime>; 3];

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    pub fn load(files: TlsFiles) -> Result<Arc<Self>, Error> {
        let stamps = stamps(&files);
        let loaded = Loaded::new(&files)?;
        loaded.publish();
        let current = RwLock::new(Arc::new(loaded));
        Ok(Arc::new(Self { files, current, stamps: Mutex::new(stamps) }))
    }

    /// Reads the files again. An error changes nothing.
    pub fn reload(&self) -> Result<(), Error> {
        let stamps = stamps(&self.files);
        let loaded = Arc::new(Loaded::new(&self.files)?);
        loaded.publish();
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        *self.stamps.lock().unwrap_or_else(PoisonError::into_inner) = stamps;
        Ok(())
    }

    /// Reads the files again when one of them has changed, until the token is cancelled.
    pub async fn watch(&self, every: Duration, stop: CancellationToken) {
        let mut told = None;
        while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
            let now = stamps(&self.files);
            if now == *self.stamps.lock().unwrap_or_else(PoisonError::into_inner) {
                continue;
            }
            match self.reload() {
                Ok(()) => tracing::info!(files = ?self.files, "certificates between nodes were read again"),
                // Files that are being replaced may not fit each other yet: said once per state of the files.
                Err(error) if told != Some(now) => {
                    told = Some(now);
                    tracing::error!(%error, "certificates between nodes cannot be read; the earlier ones stay");
                }
                Err(_) => {}
            }
        }
    }

    /// When the own certificate ends, if it does.
    pub fn expires(&self) -> Option<UnixTime> {
        self.loaded().expires
    }

    /// Of the own certificate.
    pub fn identity(&self) -> Identity {
        self.loaded().identity.clone()
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.loaded().server)
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.loaded().client)
    }

    fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn stamps(files: &TlsFiles) -> Stamps {
    [&files.ca, &files.cert, &files.key]
        .map(|path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok())
}

pub(crate) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let wrong = |why: String| Error::File { path: path.to_owned(), why };
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(error.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong("no certificate in it".to_owned()));
    }
    Ok(certificates)
}

impl Loaded {
    fn new(files: &TlsFiles) -> Result<Self, Error> {
        let wrong = |path: &Path, why: String| Error::File { path: path.to_owned(), why };
        let mut roots = RootCertStore::empty();
        for ca in read_certificates(&files.ca)? {
            roots.add(ca).map_err(|error| wrong(&files.ca, error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let chain = read_certificates(&files.cert)?;
        let key =
            PrivateKeyDer::from_pem_file(&files.key).map_err(|error| wrong(&files.key, error.to_string()))?;
        let identity = Identity::read(&chain[0]).map_err(|why| wrong(&files.cert, why))?;

        let provider = Arc::new(ring::default_provider());
        let tls = |error: rustls::Error| Error::Certificate(error.to_string());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|error| Error::Certificate(error.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|error| wrong(&files.cert, error.to_string()))?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        let verifier = Arc::new(OfTheCluster::new(roots, &provider));
        // What others would refuse is refused here, at once.
        verifier
            .verify_server_cert(&chain[0], &chain[1..], &name(), &[], UnixTime::now())
            .map_err(|error| wrong(&files.cert, error.to_string()))?;
        // The verifier is who reads dates: at the end of time it says since when this is over.
        let end_of_time = UnixTime::since_unix_epoch(Duration::from_secs(u64::from(u32::MAX) * 64));
        let over = verifier.verify_server_cert(&chain[0], &chain[1..], &name(), &[], end_of_time);
        let expires = match over {
            Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
                not_after, ..
            })) => Some(not_after),
            _ => None,
        };
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(chain, key)
            .map_err(|error| wrong(&files.cert, error.to_string()))?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { server: Arc::new(server), client: Arc::new(client), identity, expires })
    }

    fn publish(&self) {
        if let Some(at) = self.expires {
            metrics::certificate_expires(at);
        }
    }
}

/// TLS wants a name to ask for; who is meant is told by [`Identity`] instead.
pub(crate) fn name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
}

/// Verifies that the cluster's authority signed a certificate, and leaves its name to [`Identity::allows`], which is asked
/// before anything is sent.
#[derive(Debug)]
struct OfTheCluster {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl OfTheCluster {
    fn new(roots: Arc<RootCertStore>, provider: &CryptoProvider) -> Self {
        Self { roots, algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for OfTheCluster {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
