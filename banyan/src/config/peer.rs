//! `[peer]`: how the nodes of a cluster talk to each other.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::kind::{Address, OptionalLocation, Switch};
use super::section::section;

section! {
    /// How the nodes of a cluster talk to each other. `banyan gencerts` makes the three files.
    "peer" struct Peer {
        /// Where other nodes connect.
        listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 7000)), Address;
        /// PEM file with the cluster's own authority. Read again when it changes, as the two below.
        ca: Option<PathBuf> = None, OptionalLocation;
        /// PEM file with this node's certificate, which names its cluster and its roles.
        cert: Option<PathBuf> = None, OptionalLocation;
        /// PEM file with its private key.
        key: Option<PathBuf> = None, OptionalLocation;
        /// Talk without encryption and without asking who is there, also beyond this machine. Whoever reaches the port can
        /// then read and write every room: only on a network that is encrypted and closed by itself.
        insecure: bool = false, Switch;
    }
}
