//! `[scylla]`: the store of a cluster.

use std::path::PathBuf;

use super::kind::{Count, Keyspace, Name, OptionalLocation};
use super::place::{OptionalText, Password, Places, Secret};
use super::section::section;

section! {
    /// The store of a cluster: ScyllaDB, or Apache Cassandra 5. With `nodes` empty the node keeps its data in
    /// server.data_dir.
    "scylla" struct Scylla {
        /// Some of its servers; the others are found through them.
        nodes: Vec<String> = Vec::new(), Places;
        /// The keyspace with Banyan's tables: `banyan schema apply` makes it.
        keyspace: String = "banyan".to_owned(), Keyspace;
        /// The one data centre whose replicas answer; others hold copies.
        datacenter: String = "datacenter1".to_owned(), Name;
        /// Copies of every row in that data centre. With 3 the store goes on while one server is away.
        replication: u32 = 3, Count(1, 7);
        /// User, where the store asks for one.
        user: Option<String> = None, OptionalText;
        /// The user's password. Better as the variable BANYAN_SCYLLA__PASSWORD than in a file.
        password: Password = Password::default(), Secret;
        /// PEM file with the authority that signed the servers' certificates. With it, all connections to them are encrypted.
        ca: Option<PathBuf> = None, OptionalLocation;
        /// PEM file with this node's certificate for the store, where the store asks for one.
        cert: Option<PathBuf> = None, OptionalLocation;
        /// PEM file with its private key.
        key: Option<PathBuf> = None, OptionalLocation;
        /// The name in the certificates of all servers. Empty: each server's certificate holds its own IP address.
        server_name: Option<String> = None, OptionalText;
    }
}
