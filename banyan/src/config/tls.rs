//! `[tls]`: encryption by the node itself.

use std::path::PathBuf;

use super::kind::OptionalLocation;
use super::section::section;

section! {
    /// Encryption by the node itself. Leave both empty behind a balancer that terminates TLS (or on one machine).
    "tls" struct Tls {
        /// PEM file with the certificate and its chain.
        cert: Option<PathBuf> = None, OptionalLocation;
        /// PEM file with the certificate's private key.
        key: Option<PathBuf> = None, OptionalLocation;
    }
}
