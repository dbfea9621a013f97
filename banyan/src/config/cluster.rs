//! `[cluster]`: this node among others.

use std::path::PathBuf;

use super::kind::{Count, Name, OptionalLocation};
use super::place::{OptionalPlace, OptionalText, Password, PowerOfTwo, RoleList, Roles, Secret, Urls};
use super::section::section;

section! {
    /// This node among others. With `etcd` empty the node is alone, owns every room, and nothing else here counts.
    "cluster" struct Cluster {
        /// The servers of etcd, which holds who is there and who owns which slot. Name all of them: any one will do.
        etcd: Vec<String> = Vec::new(), Urls;
        /// The cluster's name: keys in etcd lie under /banyan/NAME/. Nodes of one cluster have one name.
        name: String = "banyan".to_owned(), Name;
        /// What this node does: "gateway" (clients connect), "shard" (owns rooms).
        roles: Roles = Roles::ALL, RoleList;
        /// Where other nodes reach this one, if that is not peer.listen (behind NAT, in a container, listening everywhere).
        advertise: Option<String> = None, OptionalPlace;
        /// This node's share of the rooms, relative to that of others. 0: none, while it stays.
        weight: u32 = 100, Count(0, 10_000);
        /// How many slots rooms hash to. Counts when the cluster is founded and never again.
        slots: u32 = 4_096, PowerOfTwo(16, 65_536);
        /// User of etcd, where it asks for one.
        etcd_user: Option<String> = None, OptionalText;
        /// The user's password. Better as the variable BANYAN_CLUSTER__ETCD_PASSWORD than in a file.
        etcd_password: Password = Password::default(), Secret;
        /// PEM file with the authority that signed etcd's certificates, for https.
        etcd_ca: Option<PathBuf> = None, OptionalLocation;
        /// PEM file with this node's certificate for etcd.
        etcd_cert: Option<PathBuf> = None, OptionalLocation;
        /// PEM file with its private key.
        etcd_key: Option<PathBuf> = None, OptionalLocation;
    }
}
