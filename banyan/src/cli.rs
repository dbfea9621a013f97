//! The command line: sub-commands, flags, and help that teaches.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use banyan_router::slot_key::NodeId;
use clap::{Args, Parser, Subcommand};

use crate::config::{self, Flag};
use crate::failure::{Exit, Failure};

const HELP: &str = "\
Examples:
  banyan serve                              chat on http://127.0.0.1:8000, data in ./banyan-data
  banyan serve --listen 0.0.0.0:8000        for everybody who can reach this machine
  banyan genconfig > banyan.toml            every setting, explained
  banyan checkconfig --config banyan.toml   what holds, and where it comes from

Settings come from defaults, then --config FILE, then variables BANYAN_SECTION__KEY, then flags; the later wins.

Exit codes:
  0   done; for serve: stopped by a signal, drained
  1   no: not ready (healthcheck), not valid (checktoken), would not last (ring)
  64  the command line or the configuration is wrong
  69  something needed is not to be had, such as the port
  70  a bug in banyan; please report what it printed
  74  a file or the data directory cannot be used";

/// Banyan: a chat server that is one binary.
#[derive(Debug, Parser)]
#[command(name = "banyan", version, after_long_help = HELP, disable_help_subcommand = true, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the server until Ctrl-C or SIGTERM
    ///
    /// Runs the server. Nothing else is needed: without flags it serves on this machine and keeps its data in
    /// ./banyan-data. Ctrl-C or SIGTERM drains it: clients are told to reconnect, what was accepted is finished.
    #[command(after_long_help = SERVE_HELP)]
    Serve(Settings),
    /// Print the version
    #[command(after_long_help = "Examples:\n  banyan version\n  banyan version --json | jq -r .version")]
    Version {
        /// As JSON: name, version, protocol, target, profile
        #[arg(long)]
        json: bool,
    },
    /// Make a token for a user, signed with this node's key
    #[command(after_long_help = GENTOKEN_HELP)]
    Gentoken(Gentoken),
    /// Say whose a token is, until when, and whether this node's keys signed it
    #[command(after_long_help = CHECKTOKEN_HELP)]
    Checktoken(Checktoken),
    /// The keys that sign tokens: make them, see them, let a new one sign
    #[command(subcommand, after_long_help = KEYS_HELP)]
    Keys(KeysCommand),
    /// Print the documented configuration: every setting with its default
    #[command(
        after_long_help = "Examples:\n  banyan genconfig > banyan.toml\n  banyan genconfig | grep -A4 '\\[tls\\]'"
    )]
    Genconfig,
    /// Check a configuration and print what holds, with the origin of each value
    ///
    /// Checks a configuration exactly as serve would read it (file, variables, flags) and prints each value with its
    /// origin. Opens nothing: not the port, not the data directory.
    #[command(after_long_help = CHECKCONFIG_HELP)]
    Checkconfig {
        #[command(flatten)]
        settings: Settings,
        /// As JSON: {section: {key: {value, origin}}}
        #[arg(long)]
        json: bool,
    },
    /// The tables of a cluster's store: print, apply, check
    #[command(subcommand, after_long_help = SCHEMA_HELP)]
    Schema(Schema),
    /// Make certificates with which the nodes of a cluster know each other
    ///
    /// Makes the cluster's own authority, if the directory has none, and a certificate for each node. Nothing is overwritten.
    #[command(after_long_help = GENCERTS_HELP)]
    Gencerts(Gencerts),
    /// The ring of a cluster: who owns which slot, what would move, changes by hand, recovery
    #[command(subcommand, after_long_help = RING_HELP)]
    Ring(Ring),
    /// The nodes of a cluster: who is there, and taking slots away from one
    #[command(subcommand, after_long_help = NODE_HELP)]
    Node(NodeCommand),
    /// Ask a running node on this machine whether it is ready
    #[command(after_long_help = HEALTHCHECK_HELP)]
    Healthcheck(Healthcheck),
}

const SERVE_HELP: &str = "\
Examples:
  banyan serve
  banyan serve --listen 0.0.0.0:8000 --data-dir /var/lib/banyan --log-format json
  banyan serve --config /etc/banyan.toml
  banyan serve --node-id a --etcd http://127.0.0.1:2379 --scylla 127.0.0.1:9042 --peer-listen 127.0.0.1:7001
  BANYAN_LOG__LEVEL=debug banyan serve

Every other setting: banyan genconfig

Exit codes:
  0   stopped by a signal, drained
  64  the command line or the configuration is wrong
  69  the port is taken or the address is not this machine's
  70  a bug in banyan
  74  the data directory cannot be used, or a newer release wrote it";

const GENTOKEN_HELP: &str = "\
The keys are those in the data directory; where there are none yet they are made.

Examples:
  banyan gentoken alice
  banyan gentoken alice --name 'Alice A.' --lifetime 1h
  banyan gentoken alice --json | jq -r .token
  banyan gentoken load --count 1000 --json > tokens.jsonl

Exit codes:
  0   the token is on standard output
  64  the command line or the configuration is wrong
  74  the keys cannot be read";

const KEYS_HELP: &str = "\
They are in token-keys.json, in accounts.keys_dir or else in the data directory. The gateways of a cluster need the same file.

Examples:
  banyan keys make --data-dir keys
  kubectl create secret generic banyan-token-keys --from-file=keys/token-keys.json
  banyan keys rotate --config /etc/banyan.toml
  banyan keys list --json

Exit codes:
  0   done
  1   not rotated: tokens of the key that would be dropped may still be in use
  64  the command line or the configuration is wrong
  74  the keys cannot be read or written";

const CHECKTOKEN_HELP: &str = "\
The token is read from standard input unless given; on the command line, others on this machine can see it.

Examples:
  banyan gentoken alice | banyan checktoken
  banyan checktoken --json < token.txt

Exit codes:
  0   valid
  1   not valid: the reason is on standard error
  64  the command line or the configuration is wrong
  74  the keys cannot be read";

const CHECKCONFIG_HELP: &str = "\
Examples:
  banyan checkconfig
  banyan checkconfig --config banyan.toml --listen 0.0.0.0:8000
  banyan checkconfig --json | jq '.server.listen'

Exit codes:
  0   the configuration is good
  64  it is not: each line on standard error is one thing to mend";

const SCHEMA_HELP: &str = "\
Examples:
  banyan schema print                                     the CQL, to read or to run by hand
  banyan schema apply --scylla 10.0.0.1:9042,10.0.0.2:9042
  banyan schema check --scylla 10.0.0.1:9042 --json       replication, data centre, commit log

Exit codes:
  0   done; for check: nothing stands in the way
  1   for check: the store cannot be used as it is
  64  the command line or the configuration is wrong
  69  no server answers
  74  a newer release wrote the schema";

const GENCERTS_HELP: &str = "\
Each node gets ca.pem, its own NODE.pem and NODE.key: --peer-ca, --peer-cert, --peer-key. ca.key signs further nodes and
stays with you. A certificate says what its node may do; a gateway's is refused where a shard is expected.

Examples:
  banyan gencerts --dir certs a b c
  banyan gencerts --dir certs --roles gateway edge-1 edge-2
  banyan gencerts --dir certs --roles gateway --any gateway    for all gateways of a deployment

Exit codes:
  0   the files are made
  64  the command line is wrong
  74  a file is there already, or cannot be written";

const RING_HELP: &str = "\
Rooms hash to slots, slots belong to nodes. The target says who should own a slot; ownership follows it within
milliseconds, while people talk. Needs etcd (--etcd, or cluster.etcd in --config FILE); can be run from any machine.

Examples:
  banyan ring show --etcd http://10.0.0.1:2379         shares, what is moving, a map of all slots
  banyan ring where general ~alice                     who owns a room, who a user's channel
  banyan ring plan --join d --join e:200               what would move if d and e came; changes nothing
  banyan ring plan --leave a                           what would move if a left
  banyan ring move 17 100-120 --to b                   now, and wherever the ring puts them later
  banyan ring pin 17 --to b                            there for as long as b is there
  banyan ring history 17 --scylla 10.0.0.1:9042        its owners, newest first
  banyan ring recover --scylla 10.0.0.1:9042           after etcd was restored from an old snapshot
  banyan ring show --json | jq '.slots[] | select(.owner != .wanted)'

Exit codes:
  0   done
  1   no: it would not last, or has not moved in time; the line says which
  64  the command line or the configuration is wrong; no such node, slot or room
  69  etcd or the store does not answer; there is no such cluster
  74  a newer release wrote what is there";

const NODE_HELP: &str = "\
A drained node owns no slots and gets none, across its restarts, until it is undrained; its clients stay, and its
/readyz says 503. To stop a node SIGTERM is enough: it gives its slots away by itself, then sends its clients to others.

Examples:
  banyan node list --etcd http://10.0.0.1:2379
  banyan node list --json | jq -r '.[] | select(.state != \"up\") | .node'
  banyan node drain b                  returns once its slots are elsewhere
  banyan node drain b --no-wait
  banyan node undrain b

Exit codes:
  0   done
  1   no: nobody is left to take the slots, or they have not moved in time
  64  the command line or the configuration is wrong; no such node
  69  etcd does not answer; there is no such cluster
  74  a newer release wrote what is there";

const HEALTHCHECK_HELP: &str = "\
Asks GET /readyz on the ops port and prints the answer. For container health checks, which have no curl.

Examples:
  banyan healthcheck
  banyan healthcheck --ops-listen 127.0.0.1:9001 --timeout 1s

Exit codes:
  0   ready, or degraded but serving
  1   not ready, or no answer
  64  the command line or the configuration is wrong";

/// Where the configuration comes from, and the flags over it.
#[derive(Debug, Args, Default)]
pub(crate) struct Settings {
    /// Read settings from this TOML file; without it none is read
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where clients connect [default: 127.0.0.1:8000] (server.listen)
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<OsString>,
    /// Where operators look: health, metrics [default: 127.0.0.1:9000] (server.ops_listen)
    #[arg(long, value_name = "ADDRESS")]
    ops_listen: Option<OsString>,
    /// Where everything that lasts is kept [default: ./banyan-data] (server.data_dir)
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<OsString>,
    /// This node's name in logs and replies [default: node-1] (server.node_id)
    #[arg(long, value_name = "NAME")]
    node_id: Option<OsString>,
    /// Whether anybody may make an account: on, off [default: on] (accounts.signup)
    #[arg(long, value_name = "ON|OFF")]
    signup: Option<OsString>,
    /// PEM file with the certificate, to serve TLS (tls.cert)
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<OsString>,
    /// PEM file with its private key (tls.key)
    #[arg(long, value_name = "FILE")]
    tls_key: Option<OsString>,
    /// Servers of etcd, with commas: this node is one of several (cluster.etcd)
    #[arg(long, value_name = "URL,…")]
    etcd: Option<OsString>,
    /// Servers of ScyllaDB, with commas (scylla.nodes)
    #[arg(long, value_name = "HOST:PORT,…")]
    scylla: Option<OsString>,
    /// What this node of a cluster does: gateway, shard [default: gateway,shard] (cluster.roles)
    #[arg(long, value_name = "ROLES")]
    roles: Option<OsString>,
    /// The cluster's name [default: banyan] (cluster.name)
    #[arg(long, value_name = "NAME")]
    cluster: Option<OsString>,
    /// Where other nodes connect [default: 127.0.0.1:7000] (peer.listen)
    #[arg(long, value_name = "ADDRESS")]
    peer_listen: Option<OsString>,
    /// Where other nodes reach this one, if not at --peer-listen (cluster.advertise)
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<OsString>,
    /// PEM file with the cluster's own authority (peer.ca)
    #[arg(long, value_name = "FILE")]
    peer_ca: Option<OsString>,
    /// PEM file with this node's certificate for other nodes (peer.cert)
    #[arg(long, value_name = "FILE")]
    peer_cert: Option<OsString>,
    /// PEM file with its private key (peer.key)
    #[arg(long, value_name = "FILE")]
    peer_key: Option<OsString>,
    /// How log lines look: auto, text, json [default: auto] (log.format)
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<OsString>,
}

impl Settings {
    /// The flags that were given, as settings: the one table from flags to keys.
    pub(crate) fn flags(&self) -> Vec<Flag> {
        [
            ("--listen", "server", "listen", &self.listen),
            ("--ops-listen", "server", "ops_listen", &self.ops_listen),
            ("--data-dir", "server", "data_dir", &self.data_dir),
            ("--node-id", "server", "node_id", &self.node_id),
            ("--signup", "accounts", "signup", &self.signup),
            ("--tls-cert", "tls", "cert", &self.tls_cert),
            ("--tls-key", "tls", "key", &self.tls_key),
            ("--etcd", "cluster", "etcd", &self.etcd),
            ("--scylla", "scylla", "nodes", &self.scylla),
            ("--roles", "cluster", "roles", &self.roles),
            ("--cluster", "cluster", "name", &self.cluster),
            ("--peer-listen", "peer", "listen", &self.peer_listen),
            ("--advertise", "cluster", "advertise", &self.advertise),
            ("--peer-ca", "peer", "ca", &self.peer_ca),
            ("--peer-cert", "peer", "cert", &self.peer_cert),
            ("--peer-key", "peer", "key", &self.peer_key),
            ("--log-format", "log", "format", &self.log_format),
        ]
        .into_iter()
        .filter_map(|(name, section, key, value)| Some(Flag { name, section, key, value: value.clone()? }))
        .collect()
    }

    /// The configuration of a server, or everything that is wrong with it.
    pub(crate) fn load(&self) -> Result<config::Loaded, Failure> {
        let loaded = self.load_for_command()?;
        if loaded.unfit.is_empty() { Ok(loaded) } else { Err(wrong(loaded.unfit)) }
    }

    /// The configuration of a command that needs only a part of it.
    pub(crate) fn load_for_command(&self) -> Result<config::Loaded, Failure> {
        config::load(self.config.as_deref(), std::env::vars_os(), &self.flags())
            .map_err(|config::Problems(lines)| wrong(lines))
    }
}

fn wrong(lines: Vec<String>) -> Failure {
    let hint = Some("`banyan genconfig` prints every setting with its default".to_owned());
    Failure { exit: Exit::Usage, lines, hint }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Schema {
    /// Print the CQL of this release's schema
    Print(Settings),
    /// Make the keyspace, or bring it to this release's version. One at a time
    Apply(Settings),
    /// Look at the servers' settings, and say what is wrong with them
    Check {
        #[command(flatten)]
        settings: Settings,
        /// As JSON: data_centre, findings [{level, text}]
        #[arg(long)]
        json: bool,
    },
}

/// Where a cluster's etcd is.
#[derive(Debug, Args)]
pub(crate) struct Reach {
    /// Read settings from this TOML file, as serve does
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Servers of etcd, with commas (cluster.etcd)
    #[arg(long, value_name = "URL,…")]
    etcd: Option<OsString>,
    /// The cluster's name [default: banyan] (cluster.name)
    #[arg(long, value_name = "NAME")]
    cluster: Option<OsString>,
}

impl Reach {
    /// With servers of the store, if the command takes some.
    pub(crate) fn load(&self, scylla: Option<&OsString>) -> Result<config::Loaded, Failure> {
        let settings = Settings {
            config: self.config.clone(),
            etcd: self.etcd.clone(),
            cluster: self.cluster.clone(),
            scylla: scylla.cloned(),
            ..Settings::default()
        };
        settings.load_for_command()
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ring {
    /// Nodes with their slots, what is moving, whether ownership is frozen and why; on a terminal a map of all slots
    #[command(
        after_long_help = "Examples:\n  banyan ring show\n  banyan ring show --json | jq '.nodes[] | {node, owned}'"
    )]
    Show(RingShow),
    /// In which slot a room or a user's channel lives, and who owns it
    #[command(
        after_long_help = "Examples:\n  banyan ring where general\n  banyan ring where general dm.x ~alice --json"
    )]
    Where(RingWhere),
    /// What would move if nodes came or went. Changes nothing
    #[command(
        after_long_help = "Examples:\n  banyan ring plan --join d\n  banyan ring plan --join d:200 --leave a --slots\n  banyan ring plan --join b:50        another weight for b, which is there"
    )]
    Plan(RingPlan),
    /// Move slots to a node; later joins and leaves may move them on
    #[command(
        after_long_help = "Examples:\n  banyan ring move 17 --to b\n  banyan ring move 17 100-120 --to b --dry-run"
    )]
    Move(RingTo),
    /// Bind slots to a node for as long as it is there
    #[command(after_long_help = "Examples:\n  banyan ring pin 17 --to b\n  banyan ring unpin 17")]
    Pin(RingTo),
    /// Let the ring place slots again that were bound to a node
    #[command(after_long_help = "Examples:\n  banyan ring unpin 17\n  banyan ring unpin 0-4095")]
    Unpin(RingUnpin),
    /// The owners of a slot, newest first: from etcd's history, and from the store
    #[command(
        after_long_help = "Examples:\n  banyan ring history 17 --scylla 10.0.0.1:9042\n  banyan ring history 17 --limit 100 --json"
    )]
    History(RingHistory),
    /// Make ownership right again after etcd was restored from an old snapshot. Asks first
    #[command(
        after_long_help = "Examples:\n  banyan ring recover --scylla 10.0.0.1:9042         explains what it will do, and asks\n  banyan ring recover --scylla 10.0.0.1:9042 --yes"
    )]
    Recover(RingRecover),
}

#[derive(Debug, Args)]
pub(crate) struct RingShow {
    /// The map also where standard output is no terminal
    #[arg(long)]
    pub(crate) map: bool,
    /// As JSON: cluster, revision, frozen, nodes, slots [{slot, owner, wanted, epoch, pinned}]
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, Args)]
pub(crate) struct RingWhere {
    /// Ids of rooms, or ~USER for users' channels
    #[arg(value_name = "ROOM|~USER", required = true)]
    pub(crate) rooms: Vec<String>,
    /// As JSON: [{room, slot, owner {node, incarnation, epoch, address}, last_owner, wanted, pinned}]
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

/// Of a node that names none; as cluster.weight.
pub(crate) const DEFAULT_WEIGHT: u32 = 100;

/// A node that would come.
#[derive(Debug, Clone)]
pub(crate) struct Joiner {
    pub(crate) node: NodeId,
    pub(crate) weight: Option<u32>,
}

#[derive(Debug, Args)]
#[group(id = "who", required = true, multiple = true, args = ["join", "leave"])]
pub(crate) struct RingPlan {
    /// A node that would come [default weight: 100]; may be repeated
    #[arg(long, value_name = "NAME[:WEIGHT]", value_parser = joiner)]
    pub(crate) join: Vec<Joiner>,
    /// A node that would go; may be repeated
    #[arg(long, value_name = "NAME", value_parser = node_id)]
    pub(crate) leave: Vec<NodeId>,
    /// Name each slot that would move
    #[arg(long)]
    pub(crate) slots: bool,
    /// As JSON: moved, nodes, by_pair, moves [{slot, from, to}]
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, Args)]
pub(crate) struct RingChange {
    /// Slots: numbers, or ranges as 100-120
    #[arg(value_name = "SLOT", required = true, value_parser = slot_range)]
    pub(crate) slots: Vec<RangeInclusive<u16>>,
    /// Say what would move, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How long to wait until the slots are there
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub(crate) wait: Duration,
    /// Do not wait
    #[arg(long, conflicts_with = "wait")]
    pub(crate) no_wait: bool,
    /// As JSON: moved, nodes, by_pair, moves [{slot, from, to}]
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, Args)]
pub(crate) struct RingTo {
    /// The node that is to own them
    #[arg(long, value_name = "NODE", value_parser = node_id)]
    pub(crate) to: NodeId,
    #[command(flatten)]
    pub(crate) change: RingChange,
}

#[derive(Debug, Args)]
pub(crate) struct RingUnpin {
    #[command(flatten)]
    pub(crate) change: RingChange,
}

#[derive(Debug, Args)]
pub(crate) struct RingHistory {
    /// The slot; `banyan ring where` names that of a room
    #[arg(value_name = "SLOT")]
    pub(crate) slot: u16,
    /// At most so many owners
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) limit: u32,
    /// As JSON: slot, etcd [{revision, epoch, generation, owner, incarnation, replaced}], store
    #[arg(long)]
    pub(crate) json: bool,
    /// Servers of ScyllaDB, with commas: asked too, if named (scylla.nodes)
    #[arg(long, value_name = "HOST:PORT,…")]
    pub(crate) scylla: Option<OsString>,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, Args)]
pub(crate) struct RingRecover {
    /// Go on without being asked
    #[arg(long)]
    pub(crate) yes: bool,
    /// Servers of ScyllaDB, with commas (scylla.nodes)
    #[arg(long, value_name = "HOST:PORT,…")]
    pub(crate) scylla: Option<OsString>,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Who is there: roles, state, weight, slots, address, release
    List {
        /// As JSON: [{node, state, roles, weight, slots, wanted, address, incarnation, release}]
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        reach: Reach,
    },
    /// Take a node's slots away, and give it none until it is undrained
    Drain(NodeDrain),
    /// Give a drained node slots again
    Undrain {
        /// Its server.node_id
        #[arg(value_name = "NODE", value_parser = node_id)]
        node: NodeId,
        #[command(flatten)]
        reach: Reach,
    },
}

#[derive(Debug, Args)]
pub(crate) struct NodeDrain {
    /// Its server.node_id
    #[arg(value_name = "NODE", value_parser = node_id)]
    pub(crate) node: NodeId,
    /// How long to wait until its slots are elsewhere
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub(crate) wait: Duration,
    /// Do not wait
    #[arg(long, conflicts_with = "wait")]
    pub(crate) no_wait: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, Args)]
pub(crate) struct Gencerts {
    /// Names of nodes, as their server.node_id
    #[arg(value_name = "NODE")]
    pub(crate) nodes: Vec<String>,
    /// Makes a certificate FILE.pem that any node with the roles may show: where nodes come and go by themselves
    #[arg(long, value_name = "FILE")]
    pub(crate) any: Option<String>,
    /// Where the files are made
    #[arg(long = "dir", value_name = "DIRECTORY", default_value = "certs")]
    pub(crate) directory: PathBuf,
    /// The cluster's name, as its cluster.name
    #[arg(long, value_name = "NAME", default_value = "banyan")]
    pub(crate) cluster: String,
    /// What the nodes may do
    #[arg(long, value_name = "ROLES", value_delimiter = ',', default_value = "gateway,shard")]
    pub(crate) roles: Vec<RoleName>,
    /// How long the nodes' certificates are good
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "365d")]
    pub(crate) valid: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RoleName {
    Gateway,
    Shard,
}

impl RoleName {
    pub(crate) fn role(self) -> banyan_router::node_key::Role {
        match self {
            Self::Gateway => banyan_router::node_key::Role::Gateway,
            Self::Shard => banyan_router::node_key::Role::Shard,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Gentoken {
    /// The user's id: 1 to 128 printable ASCII characters without space, / \ or "
    #[arg(value_name = "USER")]
    pub(crate) user: String,
    /// The name that others see [default: the one that the user has, else the id]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// For load tests: tokens for N users, USER1 to USERN, one a line (at most 1000000)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) count: Option<u32>,
    /// How long the token is good, such as 1h [default: accounts.token_lifetime]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) lifetime: Option<Duration>,
    /// As JSON, one object a line: user, name, token, expires_at
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) keys: Keys,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Make the first key, where there is none yet
    Make {
        #[command(flatten)]
        keys: Keys,
    },
    /// Print the keys without their secrets: which one signs, which one still verifies
    List {
        /// As JSON: a list of key, algorithm, made_at, signs
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        keys: Keys,
    },
    /// Let a new key sign from now on
    ///
    /// Tokens of the key before stay good until they expire; those of the one before that do not. So it is refused while the
    /// newest key is younger than accounts.token_lifetime. Running servers that see the file take it up within seconds.
    Rotate {
        /// Rotate though tokens may end by it: everybody who has one logs in again
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        keys: Keys,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Checktoken {
    /// The token; without it or with "-" it is read from standard input
    #[arg(value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// As JSON: user, name, issued_at, expires_at, key
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) keys: Keys,
}

/// Where the keys are.
#[derive(Debug, Args)]
pub(crate) struct Keys {
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The server's data directory [default: ./banyan-data] (server.data_dir)
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<OsString>,
}

impl Keys {
    pub(crate) fn load(&self) -> Result<config::Loaded, Failure> {
        // What a flag of `serve` makes whole is not known here.
        Settings { config: self.config.clone(), data_dir: self.data_dir.clone(), ..Settings::default() }
            .load_for_command()
    }
}

#[derive(Debug, Args)]
pub(crate) struct Healthcheck {
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The node's ops address [default: 127.0.0.1:9000] (server.ops_listen)
    #[arg(long, value_name = "ADDRESS")]
    ops_listen: Option<OsString>,
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = duration)]
    pub(crate) timeout: Duration,
}

impl Healthcheck {
    pub(crate) fn address(&self) -> Result<SocketAddr, Failure> {
        let settings = Settings {
            config: self.config.clone(),
            ops_listen: self.ops_listen.clone(),
            ..Settings::default()
        };
        // What a flag of `serve` makes whole is not known here.
        Ok(settings.load_for_command()?.config.server.ops_listen)
    }
}

fn node_id(text: &str) -> Result<NodeId, String> {
    NodeId::parse(text).map_err(|error| error.to_string())
}

fn joiner(text: &str) -> Result<Joiner, String> {
    let (name, weight) = match text.split_once(':') {
        Some((name, weight)) => (name, Some(weight)),
        None => (text, None),
    };
    let weight = weight.map(|weight| {
        let number = weight.parse::<u32>().ok().filter(|number| (1..=10_000).contains(number));
        number.ok_or_else(|| "the weight must be a whole number from 1 to 10000".to_owned())
    });
    Ok(Joiner { node: node_id(name)?, weight: weight.transpose()? })
}

fn slot_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = first.parse().ok().zip(last.parse().ok()).filter(|(first, last)| first <= last);
    range
        .map(|(first, last)| first..=last)
        .ok_or_else(|| "must be a slot such as 17, or a range such as 100-120".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    let positive = config::parse_duration(text).filter(|duration| !duration.is_zero());
    positive.ok_or_else(|| "must be a duration such as \"30s\" or \"1h30m\"".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    /// The defaults in the help text are written by hand: this keeps them true.
    #[test]
    fn help_names_the_true_defaults() {
        let loaded = config::load(None, [], &[]).expect("defaults are good");
        let values = config::json(&loaded);
        let command = Cli::command();
        let serve = command.find_subcommand("serve").expect("serve is a command");
        let mut seen = 0;
        for argument in serve.get_arguments() {
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            let Some((_, key)) = help.trim_end_matches(')').rsplit_once('(') else { continue };
            let Some((section, key)) = key.split_once('.') else { continue };
            let value = &values[section][key]["value"];
            let value = match value {
                serde_json::Value::Array(items) => {
                    items.iter().filter_map(serde_json::Value::as_str).collect::<Vec<_>>().join(",")
                }
                value => value.as_str().expect("names a key with a text").to_owned(),
            };
            if !value.is_empty() {
                let default = format!("[default: {value}]");
                assert!(help.contains(&default), "{help} should say {default}");
            }
            seen += 1;
        }
        assert_eq!(seen, 17, "every flag but --config names its key");
    }

    #[test]
    fn every_flag_sets_its_key() {
        let cli = Cli::try_parse_from([
            "banyan",
            "serve",
            "--listen=1.2.3.4:1",
            "--ops-listen=1.2.3.4:2",
            "--data-dir=d",
            "--node-id=n",
            "--signup=off",
            "--tls-cert=c",
            "--tls-key=k",
            "--log-format=text",
        ]);
        let Ok(Cli { command: Command::Serve(settings) }) = cli else { panic!("parses") };
        let config = config::load(None, [], &settings.flags()).expect("good").config;
        assert_eq!(config.server.listen.to_string(), "1.2.3.4:1");
        assert_eq!(config.server.ops_listen.to_string(), "1.2.3.4:2");
        assert_eq!(config.server.data_dir, PathBuf::from("d"));
        assert_eq!(config.server.node_id, "n");
        assert!(!config.accounts.signup);
        assert_eq!((config.tls.cert, config.tls.key), (Some(PathBuf::from("c")), Some(PathBuf::from("k"))));
        assert_eq!(config.log.format, config::Format::Text);
    }
}
