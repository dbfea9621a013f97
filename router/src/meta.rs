//! What a cluster was founded with: `meta`, written once.
//!
//! Always holds: slot count, data centre, keyspace and replication are those of the cluster's first node for ever; a node that
//! was told others may not join, because it would look for rooms where they are not.

use std::fmt;

use crate::slot::SlotCount;

/// The name of a cluster among all others: 128 random bits of its foundation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What every node of a cluster must have been told alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Founding {
    pub slots: SlotCount,
    /// The data centre whose quorum counts.
    pub data_center: String,
    pub keyspace: String,
    /// Copies of each row in that data centre.
    pub replication: u16,
}

/// The value of the key `meta`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Meta {
    pub cluster: ClusterId,
    pub founding: Founding,
}

/// A node was told something else than the cluster was founded with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this node has {what} {mine}, the cluster was founded with {theirs}")]
pub struct Mismatch {
    pub what: &'static str,
    pub mine: String,
    pub theirs: String,
}

impl Founding {
    /// The first thing in which this node differs from the cluster.
    pub fn check(&self, cluster: &Self) -> Result<(), Mismatch> {
        let pairs = [
            ("slot count", self.slots.get().to_string(), cluster.slots.get().to_string()),
            ("data centre", format!("{:?}", self.data_center), format!("{:?}", cluster.data_center)),
            ("keyspace", format!("{:?}", self.keyspace), format!("{:?}", cluster.keyspace)),
            ("replication", self.replication.to_string(), cluster.replication.to_string()),
        ];
        match pairs.into_iter().find(|(_, mine, theirs)| mine != theirs) {
            Some((what, mine, theirs)) => Err(Mismatch { what, mine, theirs }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_names_both_values() {
        let cluster = Founding {
            slots: SlotCount::DEFAULT,
            data_center: "eu".to_owned(),
            keyspace: "banyan".to_owned(),
            replication: 3,
        };
        assert_eq!(cluster.check(&cluster), Ok(()));
        let check = |mine: Founding| mine.check(&cluster).map_err(|error| error.to_string());
        for (mine, want) in [
            (
                Founding { slots: SlotCount::new(64).unwrap(), ..cluster.clone() },
                "this node has slot count 64, the cluster was founded with 4096",
            ),
            (
                Founding { data_center: "us".to_owned(), ..cluster.clone() },
                "this node has data centre \"us\", the cluster was founded with \"eu\"",
            ),
            (
                Founding { keyspace: "other".to_owned(), ..cluster.clone() },
                "this node has keyspace \"other\", the cluster was founded with \"banyan\"",
            ),
            (
                Founding { replication: 1, ..cluster.clone() },
                "this node has replication 1, the cluster was founded with 3",
            ),
        ] {
            assert_eq!(check(mine), Err(want.to_owned()));
        }
    }
}
