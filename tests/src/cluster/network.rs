//! A network of this program's own: every node in a network namespace, on links that the kernel cuts.
//!
//! Owns: the bridge between all, a namespace and a cable for each node, addresses, and what is cut of them.
//! Always holds: the machine's own network is not touched: the program has left it ([`enter`]) before it makes the first
//! link. All of it is gone with the program and its nodes, however they end: only they held it. What is cut is lost on its
//! way: whoever sends it is not told, and connections stay as they are.
//! Does not: start nodes. Servers and clients stay beside the bridge, so only nodes are cut off.

use anyhow::{Context, bail, ensure};
use banyan_test_servers::proxy::Fault;
use banyan_test_servers::tools;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where clients of etcd find it. No part of any node's network, so nodes reach it through the bridge.
pub const ETCD: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
/// Where clients of the store find its first server; the others come after it.
pub const STORE: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 11);
/// The store has so many servers at most.
const STORES: u8 = 9;

const BRIDGE: &str = "br0";
/// Where packets of clients and servers come from and nodes' packets for servers go to.
const BRIDGE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The half of the bridge's network that only nodes have.
const NODES: &str = "10.77.0.128/25";
const FIRST_NODE: u8 = 129;
const LAST_NODE: u8 = 254;
/// A node's end of its cable.
const CARD: &str = "eth0";

/// Where `ip netns` keeps names; in this program's own view of the file system they are its own.
const NAMES: &str = "/run/netns";

/// The kernel asks rules in the order of these numbers. Which addresses are its own it would know first (0): then nothing
/// that comes in could be kept away from them.
const OWN_ADDRESSES: u16 = 1_000;
const FROM_NODES: u16 = 100;
const FROM_ETCD: u16 = 101;
/// Of the sender's number that many more.
const FROM_ONE: u16 = 200;

/// What a process sees the world through: it has left the machine's network where both differ from what it had there.
const VIEWS: [&str; 2] = ["net", "mnt"];

/// What to do where it is impossible.
const INSTEAD: &str = "or leave --netns away: proxies cut the links then";

/// Whether this system lets this user make such a network; if not, why, and what to do.
pub fn possible() -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "--netns makes network namespaces, and only root may: run it as root, {INSTEAD}"
    );
    tools::system("mount", "mount")?;
    let ip = tools::system("ip", "iproute2")?;
    let rules = Cut::NodesToIt.rules("", FIRST_NODE, &[]);
    let rules: String = rules.iter().map(Rule::add).collect();
    let all = format!("{}link add {} type veth peer name {CARD}\n{rules}", of_all(), plug(FIRST_NODE));
    carry_out(leaving()?.arg(ip).args(["-batch", "-"]), &all).with_context(|| {
        format!(
            "--netns makes network namespaces, bridges and rules, and this system lets not even root do that (a container \
             needs CAP_SYS_ADMIN and CAP_NET_ADMIN): allow it, {INSTEAD}"
        )
    })
}

/// Starts this program anew in a network and a view of the file system of its own, with its arguments and `flag`, whose value
/// is for [`Network::make`]. Returns only if that is impossible.
pub fn enter(flag: &str) -> anyhow::Result<Infallible> {
    possible()?;
    let me = std::env::current_exe()?;
    let mut again = leaving()?;
    again.arg(me).args(std::env::args_os().skip(1)).args([flag, &views()?]);
    Err(again.exec()).with_context(|| format!("cannot run {again:?}"))
}

/// A command that leaves the machine's network and then becomes what its arguments say.
fn leaving() -> anyhow::Result<Command> {
    let mut command = Command::new(tools::system("unshare", "util-linux")?);
    command.args(["--net", "--mount", "--"]);
    Ok(command)
}

/// This process' views, in one word.
fn views() -> anyhow::Result<String> {
    let view = |name| -> anyhow::Result<String> {
        let path = Path::new("/proc/self/ns").join(name);
        let view = std::fs::read_link(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(view.display().to_string())
    };
    Ok(VIEWS.map(view).into_iter().collect::<anyhow::Result<Vec<_>>>()?.join(","))
}

/// Which `left`, before the program was started anew, had what we have.
fn shared_with(left: &str) -> anyhow::Result<Vec<String>> {
    let now = views()?;
    ensure!(left.split(',').count() == VIEWS.len(), "{left:?} is not what was left");
    Ok(now.split(',').filter(|view| left.split(',').any(|old| old == *view)).map(str::to_owned).collect())
}

/// The network. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Network {
    ip: PathBuf,
    /// The nodes that have a place, by the last number of their address.
    places: Arc<Mutex<BTreeMap<u8, String>>>,
}

impl Network {
    /// Makes it. `left`: what [`enter`] gave; a process that is still in the machine's own network is refused.
    pub async fn make(left: &str) -> anyhow::Result<Self> {
        let shared = shared_with(left)?;
        ensure!(shared.is_empty(), "this program is still in the machine's own {}", shared.join(", "));
        let ip = tools::system("ip", "iproute2")?;
        std::fs::create_dir_all(NAMES).with_context(|| format!("cannot make {NAMES}"))?;
        run(&tools::system("mount", "mount")?, ["-t", "tmpfs", "banyan-netns", NAMES], "").await?;
        let network = Self { ip, places: Arc::default() };
        network.ip(None, &of_all()).await.context("making a network of our own")?;
        Ok(network)
    }

    /// A namespace for a node, and its cable to the bridge.
    pub async fn place(&self, node: &str) -> anyhow::Result<Place> {
        let number = free_number(&self.places()).with_context(|| format!("no address is left for {node}"))?;
        self.places().insert(number, node.to_owned());
        let place = Place { network: self.clone(), node: node.to_owned(), number, cuts: BTreeMap::new() };
        let context = || format!("making a network namespace for {node}");
        self.ip(None, &cable(node, number)).await.with_context(context)?;
        self.ip(Some(node), &of_one(number)).await.with_context(context)?;
        Ok(place)
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<u8, String>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out lines for `ip`, in a node's namespace or beside the bridge.
    async fn ip(&self, at: Option<&str>, lines: &str) -> anyhow::Result<()> {
        let mut arguments = Vec::new();
        arguments.extend(at.into_iter().flat_map(|node| ["-netns", node]));
        arguments.extend(["-batch", "-"]);
        run(&self.ip, arguments, lines).await
    }
}

/// One after the other, and those that were given back again after the last: who knew the one before may remember it for a
/// while.
fn free_number(taken: &BTreeMap<u8, String>) -> Option<u8> {
    let last = taken.last_key_value().map_or(FIRST_NODE - 1, |(number, _)| *number);
    (last + 1..=LAST_NODE).chain(FIRST_NODE..=LAST_NODE).find(|number| !taken.contains_key(number))
}

fn of_all() -> String {
    let mut lines = format!(
        "link set lo up\n\
         link add {BRIDGE} type bridge\n\
         address add {BRIDGE_ADDRESS}/24 dev {BRIDGE}\n\
         link set {BRIDGE} up\n\
         address add {ETCD}/32 dev lo\n"
    );
    let [a, b, c, first] = STORE.octets();
    for last in first..first + STORES {
        let _ok = writeln!(lines, "address add {}/32 dev lo", Ipv4Addr::new(a, b, c, last)); // a string takes all
    }
    lines + &own_addresses_later()
}

/// Added before the old one goes: without any the kernel would know no address of its own.
fn own_addresses_later() -> String {
    format!("rule add pref {OWN_ADDRESSES} lookup local\nrule delete pref 0\n")
}

fn cable(node: &str, number: u8) -> String {
    format!(
        "netns add {node}\n\
         link add {} type veth peer name {CARD} netns {node}\n\
         link set {0} master {BRIDGE} up\n",
        plug(number)
    )
}

fn of_one(number: u8) -> String {
    format!(
        "link set lo up\n\
         address add {}/24 dev {CARD}\n\
         link set {CARD} up\n\
         route add default via {BRIDGE_ADDRESS}\n{}",
        address(number),
        own_addresses_later()
    )
}

const fn address(number: u8) -> Ipv4Addr {
    let [a, b, c, _] = BRIDGE_ADDRESS.octets();
    Ipv4Addr::new(a, b, c, number)
}

/// The bridge's end of a node's cable.
fn plug(number: u8) -> String {
    format!("v{number}")
}

/// What does not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cut {
    NodesToIt,
    ItToNodes,
    EtcdToIt,
    ItToEtcd,
}

/// Where the kernel asks what, for each packet that comes in. It throws away what a rule names, and says so to nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    /// The node; else beside the bridge.
    at: Option<String>,
    pref: u16,
    what: String,
}

impl Rule {
    fn add(&self) -> String {
        format!("rule add pref {} {} blackhole\n", self.pref, self.what)
    }

    fn delete(&self) -> String {
        format!("rule delete pref {}\n", self.pref)
    }
}

impl Cut {
    /// The receiver throws the packets away: a sender whose own kernel did would be told so.
    fn rules(self, node: &str, number: u8, others: &[String]) -> Vec<Rule> {
        let from_it = format!("from {}/32", address(number));
        let sender = FROM_ONE + u16::from(number);
        let rule = |at: Option<&str>, pref, what| Rule { at: at.map(str::to_owned), pref, what };
        match self {
            Self::NodesToIt => vec![rule(Some(node), FROM_NODES, format!("from {NODES} iif {CARD}"))],
            Self::EtcdToIt => vec![rule(Some(node), FROM_ETCD, format!("from {ETCD}/32 iif {CARD}"))],
            Self::ItToEtcd => vec![rule(None, sender, format!("{from_it} to {ETCD}/32 iif {BRIDGE}"))],
            Self::ItToNodes => {
                let at = |other: &String| rule(Some(other), sender, format!("{from_it} iif {CARD}"));
                others.iter().map(at).collect()
            }
        }
    }
}

/// Which of the two directions, towards the side that was connected to and back from it, a fault stops.
fn stops(fault: Fault) -> anyhow::Result<[bool; 2]> {
    Ok(match fault {
        // Where nothing listens the kernel refuses by itself.
        Fault::Pass | Fault::Refuse => [false, false],
        Fault::Cut => [true, true],
        Fault::CutToServer => [true, false],
        Fault::CutToClient => [false, true],
        other => bail!("{other:?} is not what the kernel can do: only cuts are"),
    })
}

/// A node's place in the network. It ends with this value.
#[derive(Debug)]
pub struct Place {
    network: Network,
    node: String,
    number: u8,
    /// What is cut, and the rules that do it.
    cuts: BTreeMap<Cut, Vec<Rule>>,
}

impl Place {
    pub fn address(&self) -> Ipv4Addr {
        address(self.number)
    }

    /// A program and what stands before its arguments, so that another one runs in here. It becomes that one: its process is
    /// the node's.
    pub fn run_in(&self, program: &Path) -> (PathBuf, Vec<OsString>) {
        let before = ["netns".into(), "exec".into(), self.node.clone().into(), program.into()];
        (self.network.ip.clone(), before.into())
    }

    /// Makes this of its links with all other nodes.
    pub async fn before(&mut self, fault: Fault) -> anyhow::Result<()> {
        let [to_it, back] = stops(fault)?;
        self.cut(Cut::NodesToIt, to_it).await?;
        self.cut(Cut::ItToNodes, back).await
    }

    /// Makes this of its link with etcd.
    pub async fn towards_etcd(&mut self, fault: Fault) -> anyhow::Result<()> {
        let [to_etcd, back] = stops(fault)?;
        self.cut(Cut::ItToEtcd, to_etcd).await?;
        self.cut(Cut::EtcdToIt, back).await
    }

    /// Pulls its cable out: it reaches nobody, and nobody reaches it.
    pub async fn unplug(&self) -> anyhow::Result<()> {
        self.network.ip(None, &format!("link set {} down\n", plug(self.number))).await
    }

    /// Puts it in again.
    pub async fn plug(&self) -> anyhow::Result<()> {
        self.network.ip(None, &format!("link set {} up\n", plug(self.number))).await
    }

    async fn cut(&mut self, cut: Cut, on: bool) -> anyhow::Result<()> {
        if on == self.cuts.contains_key(&cut) {
            return Ok(());
        }
        if on {
            let others = self
                .network
                .places()
                .values()
                .filter(|other| **other != self.node)
                .cloned()
                .collect::<Vec<_>>();
            let rules = cut.rules(&self.node, self.number, &others);
            for rule in &rules {
                self.network.ip(rule.at.as_deref(), &rule.add()).await?;
            }
            self.cuts.insert(cut, rules);
        } else if let Some(rules) = self.cuts.remove(&cut) {
            for rule in &rules {
                self.network.ip(rule.at.as_deref(), &rule.delete()).await?;
            }
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.network.places().remove(&self.number);
        // What stays goes with the program.
        let lines = format!("link delete {}\nnetns delete {}\n", plug(self.number), self.node);
        drop(carry_out(Command::new(&self.network.ip).args(["-force", "-batch", "-"]), &lines));
    }
}

/// Runs a short command with lines for it to read; what it printed is in the error.
async fn run(program: &Path, arguments: impl IntoIterator<Item = &str>, lines: &str) -> anyhow::Result<()> {
    let mut command = Command::new(program);
    command.args(arguments);
    let lines = lines.to_owned();
    tokio::task::spawn_blocking(move || carry_out(&mut command, &lines)).await?
}

fn carry_out(command: &mut Command, lines: &str) -> anyhow::Result<()> {
    let shown = format!("{command:?}");
    let context = || format!("cannot run {shown}");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(context)?;
    // A few hundred bytes, which fit into the pipe; a program that is gone already says why itself.
    child.stdin.take().with_context(context)?.write_all(lines.as_bytes()).ok();
    let output = child.wait_with_output().with_context(context)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{shown} ended with {}: {}; it was told:\n{lines}",
        output.status,
        said.trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(rules: &[Rule]) -> Vec<String> {
        let shown = |rule: &Rule| format!("{} {}", rule.at.as_deref().unwrap_or("-"), rule.what);
        rules.iter().map(shown).collect()
    }

    #[test]
    fn the_receiver_loses_what_is_cut_and_nobody_else() {
        let others = ["n2".to_owned(), "n3".to_owned()];
        let rules = |cut: Cut| cut.rules("n1", 129, &others);
        assert_eq!(at(&rules(Cut::NodesToIt)), ["n1 from 10.77.0.128/25 iif eth0"]);
        assert_eq!(
            at(&rules(Cut::ItToNodes)),
            ["n2 from 10.77.0.129/32 iif eth0", "n3 from 10.77.0.129/32 iif eth0"]
        );
        assert_eq!(at(&rules(Cut::EtcdToIt)), ["n1 from 10.77.1.1/32 iif eth0"]);
        assert_eq!(at(&rules(Cut::ItToEtcd)), ["- from 10.77.0.129/32 to 10.77.1.1/32 iif br0"]);
    }

    #[test]
    fn rules_of_one_place_have_numbers_of_their_own_and_are_asked_before_addresses() {
        let nodes: Vec<String> = (FIRST_NODE..=LAST_NODE).map(|number| number.to_string()).collect();
        let mut all = BTreeMap::<_, Vec<u16>>::new();
        for (node, number) in nodes.iter().zip(FIRST_NODE..) {
            let others: Vec<String> = nodes.iter().filter(|other| *other != node).cloned().collect();
            for cut in [Cut::NodesToIt, Cut::ItToNodes, Cut::EtcdToIt, Cut::ItToEtcd] {
                for Rule { at, pref, .. } in cut.rules(node, number, &others) {
                    assert!((1..OWN_ADDRESSES).contains(&pref));
                    all.entry(at).or_default().push(pref);
                }
            }
        }
        for (at, mut prefs) in all {
            let rules = prefs.len();
            prefs.sort_unstable();
            prefs.dedup();
            assert_eq!(prefs.len(), rules, "{at:?}");
        }
    }

    #[test]
    fn only_cuts_are_asked_of_the_kernel() {
        assert_eq!(stops(Fault::Cut).unwrap(), [true, true]);
        assert_eq!(stops(Fault::CutToServer).unwrap(), [true, false]);
        assert_eq!(stops(Fault::CutToClient).unwrap(), [false, true]);
        assert_eq!(stops(Fault::Refuse).unwrap(), stops(Fault::Pass).unwrap());
        assert!(stops(Fault::Reset).is_err() && stops(Fault::HalfOpenToClient).is_err());
    }

    #[test]
    fn addresses_are_given_again_as_late_as_possible() {
        let mut taken = BTreeMap::new();
        for number in FIRST_NODE..=LAST_NODE {
            assert_eq!(free_number(&taken), Some(number));
            taken.insert(number, String::new());
        }
        assert_eq!(free_number(&taken), None);
        taken.remove(&200);
        assert_eq!(free_number(&taken), Some(200));
        taken.remove(&LAST_NODE);
        assert_eq!(free_number(&taken), Some(LAST_NODE));
    }

    #[tokio::test]
    async fn nothing_is_made_in_the_network_that_we_were_started_in() {
        let error = Network::make(&views().unwrap()).await.unwrap_err().to_string();
        assert!(error.contains("the machine's own net:[") && error.contains("mnt:["), "{error}");
        assert!(Network::make("").await.is_err());
    }
}
