//! Makes the cluster's authority and the certificates of its nodes (`banyan gencerts`).
//!
//! Always holds: no file is overwritten; keys can be read by their owner alone; what was made is what [`crate::Tls`] accepts.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banyan_proto::id::UnixMs;
use banyan_router::node_key::Role;
use banyan_router::slot_key::NodeId;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

use crate::tls::{ANY_NODE, Identity, read_certificates};
use crate::{Error, Tls, TlsFiles};

const DAY: Duration = Duration::from_secs(24 * 3_600);
/// The authority is replaced by adding the next one to `ca.pem` everywhere first.
const CA_VALID: Duration = Duration::from_secs(3_650 * 24 * 3_600);
/// Clocks of nodes differ.
const BEFORE: Duration = DAY;

/// Files that were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Makes `ca.pem` and `ca.key` in the directory, which must be there. Keep `ca.key` where no node runs.
pub fn make_ca(directory: &Path, cluster: &str, now: UnixMs) -> Result<Made, Error> {
    let made = Made { cert: directory.join("ca.pem"), key: directory.join("ca.key") };
    absent(&made)?;
    let key = KeyPair::generate().map_err(wrong)?;
    let certificate = ca(cluster, now)?.self_signed(&key).map_err(wrong)?;
    write(&made, &certificate.pem(), &key)?;
    Ok(made)
}

/// Who may show a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// This node; its name is that of the files too.
    Node(NodeId),
    /// Any node with the roles; the files have this name.
    Any(NodeId),
}

impl Holder {
    fn file(&self) -> &NodeId {
        match self {
            Self::Node(name) | Self::Any(name) => name,
        }
    }

    fn node(&self) -> &str {
        match self {
            Self::Node(node) => node.as_str(),
            Self::Any(_) => ANY_NODE,
        }
    }
}

/// Makes a `.pem` and a `.key` in the directory, signed by its `ca.pem` and `ca.key`.
pub fn make_node(
    directory: &Path,
    cluster: &str,
    holder: &Holder,
    roles: &[Role],
    valid: Duration,
    now: UnixMs,
) -> Result<Made, Error> {
    let file = holder.file();
    let made =
        Made { cert: directory.join(format!("{file}.pem")), key: directory.join(format!("{file}.key")) };
    absent(&made)?;
    let (ca_cert, ca_key) = (directory.join("ca.pem"), directory.join("ca.key"));
    read_certificates(&ca_cert)?;
    let text = std::fs::read_to_string(&ca_key)
        .map_err(|error| Error::File { path: ca_key.clone(), why: error.to_string() })?;
    let signer = KeyPair::from_pem(&text)
        .map_err(|error| Error::File { path: ca_key.clone(), why: error.to_string() })?;
    // Only its name and key matter for what it signs: both are known.
    let issuer = Issuer::new(ca(cluster, now)?, signer);

    let mut params = CertificateParams::default();
    hold(&mut params, now, valid);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, holder.node());
    for uri in Identity::uris(cluster, holder.node(), roles) {
        params.subject_alt_names.push(SanType::URI(Ia5String::try_from(uri).map_err(wrong)?));
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().map_err(wrong)?;
    let certificate = params.signed_by(&key, &issuer).map_err(wrong)?;
    write(&made, &certificate.pem(), &key)?;

    // An authority of another cluster, or a key that is not its own: seen now, not when nodes refuse each other.
    let files = TlsFiles { ca: ca_cert.clone(), cert: made.cert.clone(), key: made.key.clone() };
    if let Err(error) = Tls::load(files) {
        for path in [&made.cert, &made.key] {
            std::fs::remove_file(path)
                .map_err(|error| Error::File { path: path.clone(), why: error.to_string() })?;
        }
        let why = format!(
            "with {} it does not make certificates of the cluster {cluster:?}: {error}",
            ca_cert.display()
        );
        return Err(Error::File { path: ca_key, why });
    }
    Ok(made)
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function that maps errors")]
fn wrong(error: rcgen::Error) -> Error {
    Error::Certificate(error.to_string())
}

/// Names of clusters stand in URIs.
fn check_cluster(cluster: &str) -> Result<(), Error> {
    NodeId::parse(cluster).map(drop).map_err(|_| {
        Error::Certificate(format!(
            "a cluster's name has 1 to 64 bytes of A-Z a-z 0-9 . _ -, not {cluster:?}"
        ))
    })
}

fn ca(cluster: &str, now: UnixMs) -> Result<CertificateParams, Error> {
    check_cluster(cluster)?;
    let mut params = CertificateParams::default();
    hold(&mut params, now, CA_VALID);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("banyan cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn hold(params: &mut CertificateParams, now: UnixMs, valid: Duration) {
    let now = date_time_ymd(1970, 1, 1) + Duration::from_millis(now.0);
    params.not_before = now - BEFORE;
    params.not_after = now + valid;
}

fn absent(made: &Made) -> Result<(), Error> {
    for path in [&made.cert, &made.key] {
        if path.exists() {
            return Err(Error::File {
                path: path.clone(),
                why: "is there already, and is not overwritten".to_owned(),
            });
        }
    }
    Ok(())
}

fn write(made: &Made, certificate: &str, key: &KeyPair) -> Result<(), Error> {
    for (path, text) in [(&made.key, key.serialize_pem()), (&made.cert, certificate.to_owned())] {
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        write()
            .map_err(|error: std::io::Error| Error::File { path: path.clone(), why: error.to_string() })?;
    }
    Ok(())
}
