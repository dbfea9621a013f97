//! Every statement, prepared, with how it is carried out.
//!
//! Always holds: appends and records are tried once, on one node. What may be made twice (reads, and writes whose timestamp makes the
//! second one the same) is tried again and hedged by the driver.

use std::sync::Arc;
use std::time::Duration;

use scylla::client::execution_profile::{ExecutionProfile, ExecutionProfileHandle};
use scylla::client::session::Session;
use scylla::errors::PrepareError;
use scylla::policies::load_balancing::{DefaultPolicy, LatencyAwarenessBuilder, LoadBalancingPolicy};
use scylla::policies::retry::{DefaultRetryPolicy, FallthroughRetryPolicy, RetryPolicy};
use scylla::policies::speculative_execution::SpeculativeExecutionPolicy;
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::{Consistency, SerialConsistency, Statement};

use crate::hedge::{Hedge, Hedges};
use crate::options::Options;

/// A node this many times slower than the fastest is asked last. Quorums wait for it anyway; what it must not do is coordinate.
const SLOW: f64 = 4.0;

/// How statements are carried out.
pub(crate) struct Profiles {
    /// Once, on one node.
    pub(crate) once: ExecutionProfileHandle,
    /// Writes that may be made twice.
    again: ExecutionProfileHandle,
    read: ExecutionProfileHandle,
    fence: ExecutionProfileHandle,
    /// Lightweight transactions: four round trips between replicas, and rivals.
    lwt: ExecutionProfileHandle,
    serial: ExecutionProfileHandle,
    pub(crate) hedges: Hedges,
}

/// A transaction waits for rivals longer than a plain write for anything.
const LWT_TIMEOUT: Duration = Duration::from_secs(5);

impl Profiles {
    pub(crate) fn new(options: &Options, data_centre: &str) -> Self {
        let balancing: Arc<dyn LoadBalancingPolicy> = DefaultPolicy::builder()
            .prefer_datacenter(data_centre.to_owned())
            .permit_dc_failover(false)
            .token_aware(true)
            .latency_awareness(LatencyAwarenessBuilder::new().exclusion_threshold(SLOW))
            .build();
        let make = |timeout, consistency, retry: Arc<dyn RetryPolicy>, hedge: Option<&Arc<Hedge>>| {
            let hedge = hedge.map(|hedge| Arc::clone(hedge) as Arc<dyn SpeculativeExecutionPolicy>);
            ExecutionProfile::builder()
                .request_timeout(Some(timeout))
                .consistency(consistency)
                .serial_consistency(Some(SerialConsistency::LocalSerial))
                .load_balancing_policy(Arc::clone(&balancing))
                .retry_policy(retry)
                .speculative_execution_policy(hedge)
                .build()
                .into_handle()
        };
        let once = || Arc::new(FallthroughRetryPolicy);
        let again = || Arc::new(DefaultRetryPolicy::new());
        let quorum = Consistency::LocalQuorum;
        let hedges = Hedges::new(options.hedge_after, options.fence_hedge_after);
        let Hedges { writes, reads, fences } = &hedges;
        Self {
            once: make(options.write_timeout, quorum, once(), None),
            again: make(options.write_timeout, quorum, again(), Some(writes)),
            read: make(options.read_timeout, quorum, again(), Some(reads)),
            fence: make(options.fence_read_timeout, quorum, again(), Some(fences)),
            lwt: make(LWT_TIMEOUT, quorum, once(), None),
            serial: make(LWT_TIMEOUT, Consistency::LocalSerial, again(), None),
            hedges,
        }
    }
}

macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident: $profile:ident = $text:literal;)+) => {
        /// Named after what they do.
        #[derive(Debug)]
        pub(crate) struct Statements {
            $($(#[$doc])* pub(crate) $name: PreparedStatement,)+
        }

        impl Statements {
            pub(crate) async fn prepare(session: &Session, keyspace: &str, profiles: &Profiles) -> Result<Self, PrepareError> {
                Ok(Self {
                    $($name: prepare(session, keyspace, $text, &profiles.$profile, stringify!($profile)).await?,)+
                })
            }
        }
    };
}

async fn prepare(
    session: &Session,
    keyspace: &str,
    text: &str,
    profile: &ExecutionProfileHandle,
    name: &str,
) -> Result<PreparedStatement, PrepareError> {
    let mut statement = Statement::new(text.replace("{ks}", keyspace));
    statement.set_execution_profile_handle(Some(profile.clone()));
    statement.set_is_idempotent(!matches!(name, "once" | "lwt"));
    Box::pin(session.prepare(statement)).await
}

statements! {
    put_row: once = "INSERT INTO {ks}.messages (chat_id, bucket, epoch, part, seq, batch_first, n, origin, event, derived)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP 1";
    put_record: once = "INSERT INTO {ks}.segments (chat_id, epoch, part, bucket, first_seq, n_before, prev_epoch, prev_part, incarnation, log)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP 1";
    /// Once: the second one would come with a later timestamp of the server's.
    put_said: once = "UPDATE {ks}.rooms SET said = ? WHERE chat_id = ?";
    put_room: again = "UPDATE {ks}.rooms USING TIMESTAMP ? SET log = ?, kind = ?, public = ?, lazy = ?, name = ?, created_at = ?, floor = ?, changed = ?
        WHERE chat_id = ?";
    /// Whoever adds what is there changes nothing, in whatever order.
    put_shards: again = "UPDATE {ks}.rooms USING TIMESTAMP 1 SET shards = shards + ? WHERE chat_id = ?";
    put_member: again = "UPDATE {ks}.members USING TIMESTAMP ? SET name = ?, role = ?, joined_seq = ?, left_seq = ?, out = ?, changed = ?
        WHERE chat_id = ? AND shard = ? AND user_id = ?";
    put_user_room: again = "UPDATE {ks}.user_rooms USING TIMESTAMP ? SET role = ? WHERE user_id = ? AND chat_id = ?";
    put_delivered: again = "UPDATE {ks}.members USING TIMESTAMP ? SET delivered = ? WHERE chat_id = ? AND shard = ? AND user_id = ?";
    put_seen: again = "UPDATE {ks}.members USING TIMESTAMP ? SET seen = ? WHERE chat_id = ? AND shard = ? AND user_id = ?";
    put_seen_n: again = "UPDATE {ks}.members USING TIMESTAMP ? SET seen_n = ? WHERE chat_id = ? AND shard = ? AND user_id = ?";

    rows_up: read = "SELECT seq, batch_first, n, origin, event, derived FROM {ks}.messages
        WHERE chat_id = ? AND bucket = ? AND epoch = ? AND part = ? AND seq >= ? AND seq <= ? LIMIT ?";
    rows_down: read = "SELECT seq, batch_first, n, origin, event, derived FROM {ks}.messages
        WHERE chat_id = ? AND bucket = ? AND epoch = ? AND part = ? AND seq >= ? AND seq <= ?
        ORDER BY epoch DESC, part DESC, seq DESC LIMIT ?";
    records: read = "SELECT epoch, part, bucket, first_seq, n_before, prev_epoch, prev_part, incarnation, log FROM {ks}.segments
        WHERE chat_id = ? LIMIT ?";
    said: read = "SELECT said FROM {ks}.rooms WHERE chat_id = ?";
    room: read = "SELECT log, kind, public, lazy, name, created_at, floor, changed FROM {ks}.rooms WHERE chat_id = ?";
    shards: read = "SELECT shards FROM {ks}.rooms WHERE chat_id = ?";
    member: read = "SELECT user_id, name, role, joined_seq, left_seq, out, changed, delivered, seen, seen_n FROM {ks}.members
        WHERE chat_id = ? AND shard = ? AND user_id = ?";
    members_of_shard: read = "SELECT user_id, name, role, joined_seq, left_seq, out, changed, delivered, seen, seen_n FROM {ks}.members
        WHERE chat_id = ? AND shard = ? AND user_id > ? LIMIT ?";
    members_of_shards: read = "SELECT user_id, name, role, joined_seq, left_seq, out, changed, delivered, seen, seen_n FROM {ks}.members
        WHERE chat_id = ? AND shard IN ? AND user_id > ? PER PARTITION LIMIT ?";
    user_rooms: read = "SELECT chat_id, role FROM {ks}.user_rooms WHERE user_id = ? AND chat_id > ? LIMIT ?";

    put_fence: again = "INSERT INTO {ks}.fences (incarnation) VALUES (?) USING TIMESTAMP 1";
    fence: fence = "SELECT incarnation FROM {ks}.fences WHERE incarnation = ?";
    put_incarnation: again = "INSERT INTO {ks}.incarnations (k, incarnation, node) VALUES (0, ?, ?) USING TIMESTAMP 1";
    incarnations: read = "SELECT incarnation, node FROM {ks}.incarnations WHERE k = 0 AND incarnation > ? LIMIT ?";
    put_owner: again = "INSERT INTO {ks}.slot_owners (slots, slot, epoch, incarnation) VALUES (?, ?, ?, ?) USING TIMESTAMP 1";
    /// What is closed stays closed: nothing ever writes false.
    close_owner: again = "INSERT INTO {ks}.slot_owners (slots, slot, epoch, incarnation, closed) VALUES (?, ?, ?, ?, true) USING TIMESTAMP 1";
    /// At the rows' own time, where what is deleted wins: a late write of one brings nothing back.
    delete_owners: again = "DELETE FROM {ks}.slot_owners USING TIMESTAMP 1 WHERE slots = ? AND slot = ? AND epoch < ?";
    owners: read = "SELECT slot, epoch, incarnation, closed FROM {ks}.slot_owners WHERE slots = ? AND slot IN ? AND epoch >= ?";

    user: read = "SELECT name, username, skeleton, password_hash, disabled, created_at, tokens_not_before, pending, version FROM {ks}.users
        WHERE user_id = ?";
    /// Of a version: timestamp and column.
    add_user: again = "INSERT INTO {ks}.users (user_id, name, username, skeleton, password_hash, disabled, created_at, tokens_not_before, pending, version)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
    change_user: again = "UPDATE {ks}.users USING TIMESTAMP ? SET name = ?, password_hash = ?, disabled = ?, tokens_not_before = ?, version = ?
        WHERE user_id = ?";
    /// Nothing else writes the column after it was made.
    confirm_user: again = "UPDATE {ks}.users USING TIMESTAMP 2 SET pending = false WHERE user_id = ?";
    /// The one transaction.
    take_name: lwt = "INSERT INTO {ks}.usernames (kind, name, user_id) VALUES (?, ?, ?) IF NOT EXISTS";
    release_name: lwt = "DELETE FROM {ks}.usernames WHERE kind = ? AND name = ? IF user_id = ?";
    name: read = "SELECT user_id FROM {ks}.usernames WHERE kind = ? AND name = ?";
    name_serial: serial = "SELECT user_id FROM {ks}.usernames WHERE kind = ? AND name = ?";

    login: read = "SELECT user_id, created_at, expires_at, ended, version FROM {ks}.logins WHERE login = ?";
    put_login: again = "INSERT INTO {ks}.logins (login, user_id, created_at, expires_at, ended, version) VALUES (?, ?, ?, ?, false, ?) USING TIMESTAMP ?";
    end_login: again = "UPDATE {ks}.logins USING TIMESTAMP ? SET ended = true, version = ? WHERE login = ?";
    drop_login: again = "DELETE FROM {ks}.logins USING TIMESTAMP ? WHERE login = ?";
    put_user_login: again = "INSERT INTO {ks}.user_logins (user_id, login) VALUES (?, ?) USING TIMESTAMP ?";
    drop_user_login: again = "DELETE FROM {ks}.user_logins USING TIMESTAMP ? WHERE user_id = ? AND login = ?";
    user_logins: read = "SELECT login FROM {ks}.user_logins WHERE user_id = ? AND login > ? LIMIT ?";
    put_expiry: again = "INSERT INTO {ks}.login_expiry (day, expires_at, login, version) VALUES (?, ?, ?, ?) USING TIMESTAMP ?";
    drop_expiry: again = "DELETE FROM {ks}.login_expiry USING TIMESTAMP ? WHERE day = ? AND expires_at = ? AND login = ?";
    expired: read = "SELECT expires_at, login, version FROM {ks}.login_expiry WHERE day = ? AND expires_at <= ? LIMIT ?";
    put_day: again = "INSERT INTO {ks}.login_days (k, day) VALUES (0, ?) USING TIMESTAMP 1";
    drop_day: again = "DELETE FROM {ks}.login_days USING TIMESTAMP 1 WHERE k = 0 AND day = ?";
    days: read = "SELECT day FROM {ks}.login_days WHERE k = 0 AND day <= ? LIMIT ?";
}
