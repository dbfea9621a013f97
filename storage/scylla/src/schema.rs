//! The tables and their versions.
//!
//! Owns: the statements of every version, which one a keyspace has, and how it gets to the newest.
//! Always holds: versions only go forward; a keyspace that is newer than this release is refused by every call; a version is noted only
//! after all of its statements; each statement does nothing when it was carried out before, so that an interrupted apply is repeated.
//! Two applies at once are kept apart by the one row of `schema_lock`, which runs out by itself; that table alone may be made by
//! several at once, since its id follows from its name. (With an id of their own each, Apache Cassandra takes a table that two
//! make at once twice, and disagrees with itself.)
//! Does not: change a keyspace's replication, or the tables of an operator.
//!
//! Timestamps (DESIGN.md, section 5, rule 10): what is written once under one name has the fixed timestamp 1, so writing it again makes
//! the very same cell; derived rows have that of the seq that changed them, marks their own value; `said` needs no order and has the
//! server's. Logins and users count their own versions. So nothing that must last depends on a clock, and the only deletions are of what
//! has expired.

use std::fmt::Write as _;

/// The version that this release makes and needs.
pub const NEWEST: u32 = 1;

/// Where the copies of a keyspace that is yet to be made shall be. One that exists is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replication {
    pub data_centre: String,
    /// Three, to serve on with one node down.
    pub factor: u32,
}

/// What an apply did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// None: there was no schema.
    pub from: Option<u32>,
    pub to: u32,
}

/// Why the schema cannot be used or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "keyspace {keyspace} has schema version {stored}, this release knows {NEWEST} at most: start a newer release, or name another keyspace"
    )]
    Newer { keyspace: String, stored: u32 },
    #[error("keyspace {keyspace} has no schema: run `banyan schema apply`")]
    Missing { keyspace: String },
    #[error(
        "keyspace {keyspace} has schema version {stored}, this release needs {NEWEST}: run `banyan schema apply`"
    )]
    Older { keyspace: String, stored: u32 },
    #[error("{doing}: {why}")]
    Cql { doing: String, why: String },
    #[error(
        "another `schema apply` on keyspace {keyspace} is under way, since {waited_s} s at least: wait for it to end, and repeat this"
    )]
    Busy { keyspace: String, waited_s: u64 },
    #[error(
        "another `schema apply` has gone on in the place of this one, which took too long: repeat it, it then says what there is"
    )]
    Overtaken,
}

struct Version {
    number: u32,
    what: &'static str,
    /// `{ks}` stands for the keyspace.
    statements: &'static [&'static str],
}

/// What the versions themselves are written in; made before any of them.
pub(crate) const VERSIONS_TABLE: &str = "CREATE TABLE IF NOT EXISTS {ks}.schema_versions (
    k int, version int, what text, applied_at timestamp,
    PRIMARY KEY ((k), version))";

/// Who applies a schema. Its row has a time to live.
pub(crate) fn lock_table(keyspace: &str) -> String {
    // As of a name, by RFC 9562: version 8 is for rules of one's own. Another keyspace's table must have another id.
    let hash = xxhash_rust::xxh3::xxh3_128(format!("banyan schema_lock {keyspace}").as_bytes());
    let id = hash & !(0xf << 76 | 0b11 << 62) | 8 << 76 | 0b10 << 62;
    let digits = format!("{id:032x}");
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    let id = parts.join("-");
    format!(
        "CREATE TABLE IF NOT EXISTS {keyspace}.schema_lock (
    k int PRIMARY KEY, holder text)
    WITH id = {id}"
    )
}

const VERSIONS: &[Version] = &[Version {
    number: 1,
    what: "log, derived tables, owners, accounts",
    statements: &[
        // The log. `derived` is on the last row of a batch that changes more than the log.
        "CREATE TABLE IF NOT EXISTS {ks}.messages (
    chat_id text, bucket bigint, epoch bigint, part bigint, seq bigint,
    batch_first bigint, n bigint, origin bigint, event blob, derived blob,
    PRIMARY KEY ((chat_id, bucket), epoch, part, seq))",
        // `prev` is -1, -1 for a room's first.
        "CREATE TABLE IF NOT EXISTS {ks}.segments (
    chat_id text, epoch bigint, part bigint,
    bucket bigint, first_seq bigint, n_before bigint, prev_epoch bigint, prev_part bigint, incarnation blob, log bigint,
    PRIMARY KEY ((chat_id), epoch, part))",
        // A replica that has not answered for 5 ms is not waited for. 'ALWAYS' would seem to be sooner, but where the extra replica is
        // the last one Cassandra asks one of the three for the row and the others for digests: if that one is silent the read ends in
        // its timeout, however often it is tried (docs/decisions/0017).
        "CREATE TABLE IF NOT EXISTS {ks}.fences (
    incarnation blob PRIMARY KEY)
    WITH speculative_retry = '5ms'",
        "CREATE TABLE IF NOT EXISTS {ks}.incarnations (
    k int, incarnation blob, node text,
    PRIMARY KEY ((k), incarnation))",
        // 512 slots in a partition (`slots` is slot / 512): a node's death has hundreds of them registered at once.
        "CREATE TABLE IF NOT EXISTS {ks}.slot_owners (
    slots int, slot int, epoch bigint, incarnation blob, closed boolean,
    PRIMARY KEY ((slots), slot, epoch, incarnation))",
        // `said` is epoch, part, head, n: one cell, never a mixture of two. `shards`: of `members`, those where there may be any; it
        // only grows.
        "CREATE TABLE IF NOT EXISTS {ks}.rooms (
    chat_id text PRIMARY KEY,
    log bigint, kind int, public boolean, lazy boolean, name text, created_at bigint, floor bigint, changed bigint,
    said frozen<tuple<bigint, bigint, bigint, bigint>>, shards set<int>)",
        // `left_seq` is -1 for a member.
        "CREATE TABLE IF NOT EXISTS {ks}.members (
    chat_id text, shard int, user_id text,
    name text, role int, joined_seq bigint, left_seq bigint, out frozen<list<frozen<tuple<bigint, bigint>>>>, changed bigint,
    delivered bigint, seen bigint, seen_n bigint,
    PRIMARY KEY ((chat_id, shard), user_id))",
        // Role 0: not a member now.
        "CREATE TABLE IF NOT EXISTS {ks}.user_rooms (
    user_id text, chat_id text, role int,
    PRIMARY KEY ((user_id), chat_id))",
        // `pending` until the username is taken.
        "CREATE TABLE IF NOT EXISTS {ks}.users (
    user_id text PRIMARY KEY,
    name text, username text, skeleton text, password_hash text, disabled boolean, created_at bigint, tokens_not_before bigint,
    pending boolean, version bigint)",
        // Kind 0: a username; 1: what one looks like. Written by lightweight transactions alone.
        "CREATE TABLE IF NOT EXISTS {ks}.usernames (
    kind int, name text, user_id text,
    PRIMARY KEY ((kind, name)))",
        "CREATE TABLE IF NOT EXISTS {ks}.logins (
    login text PRIMARY KEY,
    user_id text, created_at bigint, expires_at bigint, ended boolean, version bigint)",
        "CREATE TABLE IF NOT EXISTS {ks}.user_logins (
    user_id text, login text,
    PRIMARY KEY ((user_id), login))",
        "CREATE TABLE IF NOT EXISTS {ks}.login_expiry (
    day bigint, expires_at bigint, login text, version bigint,
    PRIMARY KEY ((day), expires_at, login))",
        "CREATE TABLE IF NOT EXISTS {ks}.login_days (
    k int, day bigint,
    PRIMARY KEY ((k), day))",
    ],
}];

/// What makes a keyspace. `tablets`: said where it is ScyllaDB and must be settled.
pub(crate) fn create_keyspace(keyspace: &str, replication: &Replication, tablets: Option<bool>) -> String {
    let data_centre = replication.data_centre.replace('\'', "''");
    let mut text = format!(
        "CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {{'class': 'NetworkTopologyStrategy', '{data_centre}': {}}} \
         AND durable_writes = true",
        replication.factor
    );
    if let Some(tablets) = tablets {
        let _ok = write!(text, " AND tablets = {{'enabled': {tablets}}}"); // a string takes all
    }
    text
}

/// The statements that lead from a version to the newest one, each version with its number.
pub(crate) fn steps(
    keyspace: &str,
    from: Option<u32>,
) -> impl Iterator<Item = (u32, &'static str, Vec<String>)> {
    let later = VERSIONS.iter().filter(move |version| from.is_none_or(|from| version.number > from));
    later.map(move |version| {
        let statements = version.statements.iter().map(|text| with_keyspace(text, keyspace)).collect();
        (version.number, version.what, statements)
    })
}

pub(crate) fn with_keyspace(text: &str, keyspace: &str) -> String {
    text.replace("{ks}", keyspace)
}

/// The whole schema as an operator could type it.
pub fn print(keyspace: &str, replication: &Replication) -> String {
    let mut text = format!("-- Banyan, schema version {NEWEST}\n");
    let mut add = |statement: &str| {
        text.push_str(statement);
        text.push_str(";\n\n");
    };
    add(&create_keyspace(keyspace, replication, None));
    add(&with_keyspace(VERSIONS_TABLE, keyspace));
    for (number, what, statements) in steps(keyspace, None) {
        for statement in statements {
            add(&statement);
        }
        add(&note_version(keyspace, number, what));
    }
    text
}

pub(crate) fn note_version(keyspace: &str, number: u32, what: &str) -> String {
    format!(
        "INSERT INTO {keyspace}.schema_versions (k, version, what, applied_at) VALUES (0, {number}, '{what}', toTimestamp(now()))"
    )
}

/// What a keyspace with this version may be used for: nothing but an apply unless it is the newest.
pub(crate) fn usable(keyspace: &str, stored: Option<u32>) -> Result<(), Error> {
    let keyspace = keyspace.to_owned();
    match stored {
        None => Err(Error::Missing { keyspace }),
        Some(stored) if stored > NEWEST => Err(Error::Newer { keyspace, stored }),
        Some(stored) if stored < NEWEST => Err(Error::Older { keyspace, stored }),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replication() -> Replication {
        Replication { data_centre: "o'hare".to_owned(), factor: 3 }
    }

    #[test]
    fn versions_count_up_to_the_newest() {
        let numbers: Vec<_> = VERSIONS.iter().map(|version| version.number).collect();
        assert_eq!(numbers, (1..=NEWEST).collect::<Vec<_>>());
        assert!(VERSIONS.iter().all(|version| !version.what.contains('\'')));
        assert_eq!(steps("ks", None).count(), numbers.len());
        assert_eq!(steps("ks", Some(NEWEST)).count(), 0);
    }

    #[test]
    fn what_is_printed_can_be_typed() {
        let text = print("ks", &replication());
        assert!(text.contains("'o''hare': 3}") && !text.contains("{ks}"));
        let tables = [
            "messages",
            "segments",
            "fences",
            "incarnations",
            "slot_owners",
            "rooms",
            "members",
            "user_rooms",
            "users",
            "usernames",
        ];
        for table in tables {
            assert!(text.contains(&format!("CREATE TABLE IF NOT EXISTS ks.{table} (")), "{table}");
        }
        assert!(!text.contains("tablets"));
        let off = create_keyspace("ks", &replication(), Some(false));
        assert!(off.ends_with("AND tablets = {'enabled': false}"));
    }

    #[test]
    fn a_lock_table_has_the_id_of_its_keyspace() {
        let id = |keyspace: &str| lock_table(keyspace).split_once("id = ").unwrap().1.to_owned();
        assert_eq!(id("banyan"), id("banyan"));
        assert_ne!(id("banyan"), id("banyan_2"));
        let id = id("banyan");
        assert_eq!((id.len(), &id[14..15]), (36, "8"), "{id}");
        assert!("89ab".contains(&id[19..20]), "{id}");
    }

    #[test]
    fn only_the_newest_is_used() {
        assert_eq!(usable("ks", Some(NEWEST)), Ok(()));
        assert!(usable("ks", None).unwrap_err().to_string().contains("schema apply"));
        let newer = usable("ks", Some(NEWEST + 1)).unwrap_err().to_string();
        assert!(newer.contains("version 2") && newer.contains("newer release"), "{newer}");
    }
}
