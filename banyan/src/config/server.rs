//! `[server]`: what this node is called, where it listens and where it keeps its data.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::kind::{Address, Location, Name, OptionalLocation, Time};
use super::place::{Password, Secret};
use super::section::section;

section! {
    /// This node: its name, where it listens, where it keeps its data.
    "server" struct Server {
        /// Where clients connect: the page, the HTTP calls and the WebSocket.
        /// This machine only, until you choose otherwise: "0.0.0.0:8000" is everybody who can reach it.
        listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)), Address;
        /// Where operators look: /livez, /readyz, /metrics, /admin. All but the last have no log-in, so keep it off public networks.
        ops_listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 9000)), Address;
        /// Opens the admin page on the ops port: the ring, its nodes, where a room is. 16 to 256 visible characters of ASCII;
        /// `openssl rand -hex 32` makes a good one. Empty: there is no page. Better as admin_token_file, or as the variable BANYAN_SERVER__ADMIN_TOKEN.
        admin_token: Password = Password::default(), Secret;
        /// File that holds that token and nothing else; read at the start.
        admin_token_file: Option<PathBuf> = None, OptionalLocation;
        /// Everything that lasts (messages, accounts, keys) lives in this directory; made on first start.
        /// Relative paths start in the directory in which banyan is started.
        data_dir: PathBuf = PathBuf::from("./banyan-data"), Location;
        /// The node's name in logs and in replies to clients.
        node_id: String = "node-1".to_owned(), Name;
        /// How long a stopping node may take to finish appends and to send its clients away; then it closes what is left.
        /// Below the 30 s after which Kubernetes kills, above twice the longest append.
        drain_deadline: Duration = Duration::from_secs(20), Time(Duration::from_millis(100), Duration::from_secs(3600));
    }
}
