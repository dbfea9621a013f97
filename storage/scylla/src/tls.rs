//! TLS to the servers.
//!
//! Owns: whom we believe, and how we say who we are. Always holds: the cryptography is ring's, as everywhere else in the
//! process, whatever else the driver brings (docs/decisions/0012-tls-to-the-store.md); a server shows a certificate of the
//! named authority for its address or for the one name that all servers share.
//! Does not: read files. They are read once, at start.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// PEM, as read from files.
#[derive(Clone)]
pub struct Tls {
    /// Who signed the servers' certificates.
    pub ca: Vec<u8>,
    /// Certificate and key with which this client says who it is.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name in the certificates of all servers. None: each one's holds its own address, for that is how the driver finds
    /// them.
    pub server_name: Option<String>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key.
        f.debug_struct("Tls")
            .field("server_name", &self.server_name)
            .field("has_identity", &self.identity.is_some())
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// What the driver connects with. An error says what cannot be used.
    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, String> {
        let certificates = |pem: &[u8], what: &str| -> Result<Vec<CertificateDer<'static>>, String> {
            let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            let read = read.map_err(|error| format!("{what} cannot be read: {error}"))?;
            if read.is_empty() {
                return Err(format!("{what} holds no certificate in PEM"));
            }
            Ok(read)
        };
        let mut roots = RootCertStore::empty();
        for root in certificates(&self.ca, "the authority")? {
            roots.add(root).map_err(|error| format!("the authority cannot be used: {error}"))?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let verifier = verifier.build().map_err(|error| format!("the authority cannot be used: {error}"))?;
        let verifier: Arc<dyn ServerCertVerifier> = match &self.server_name {
            Some(name) => {
                let name = ServerName::try_from(name.clone())
                    .map_err(|_| format!("{name:?} is no name that a certificate can have"))?;
                Arc::new(Named { verifier, name })
            }
            None => verifier,
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match &self.identity {
            Some((certificate, key)) => {
                let chain = certificates(certificate, "the certificate")?;
                let key = PrivateKeyDer::from_pem_slice(key)
                    .map_err(|error| format!("the key cannot be read: {error}"))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| format!("certificate and key cannot be used: {error}"))?
            }
            None => builder.with_no_client_auth(),
        };
        Ok(Arc::new(config))
    }
}

/// Asks for one name whatever the address is.
#[derive(Debug)]
struct Named {
    verifier: Arc<WebPkiServerVerifier>,
    name: ServerName<'static>,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _address: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verifier.verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// What the two sides do not agree on, if that is why a connection failed and waiting does not help.
pub(crate) fn refused(error: &io::Error) -> Option<String> {
    use rustls::{AlertDescription, Error, InvalidMessage};
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::AlertReceived(AlertDescription::InternalError | AlertDescription::UserCanceled) => None,
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            Some("they answer without TLS".to_owned())
        }
        error @ (Error::AlertReceived(_)
        | Error::InvalidCertificate(_)
        | Error::NoCertificatesPresented
        | Error::UnsupportedNameType
        | Error::PeerIncompatible(_)) => Some(error.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_said() {
        let tls = |ca: &[u8]| Tls { ca: ca.to_vec(), identity: None, server_name: None };
        assert!(tls(b"").config().unwrap_err().contains("no certificate"));
        assert!(tls(b"-----BEGIN CERTIFICATE-----\n").config().unwrap_err().contains("the authority"));
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["store".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().pem().into_bytes();
        let good = tls(&certificate);
        assert!(good.config().is_ok());
        let named = |name: &str| Tls { server_name: Some(name.to_owned()), ..good.clone() };
        assert!(named("store.example").config().is_ok());
        assert!(named("not a name").config().unwrap_err().contains("not a name"));
        let with = |certificate: &[u8], key: &[u8]| Tls {
            identity: Some((certificate.to_vec(), key.to_vec())),
            ..good.clone()
        };
        let pem = key.serialize_pem().into_bytes();
        assert!(with(&certificate, &pem).config().is_ok());
        assert!(with(&certificate, b"x").config().unwrap_err().contains("the key"));
        let other = rcgen::KeyPair::generate().unwrap().serialize_pem().into_bytes();
        assert!(with(&certificate, &other).config().unwrap_err().contains("certificate and key"));
        assert!(!format!("{:?}", with(&certificate, &pem)).contains("PRIVATE"));
    }
}
