//! The contract suites and the faults, on real servers.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::large_futures,
    reason = "tests, their helpers included"
)]

use std::io::Write as _;
use std::sync::mpsc::{self, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banyan_proto::id::{Epoch, Incarnation, RoomId, SegmentId, SlotId};
use banyan_storage::accounts::{Creation, UserRow};
use banyan_storage::contract::log::{derived, record, rows, segment, span, write_all};
use banyan_storage::contract::{Check, Subject, accounts, log, member, room, user, wait};
use banyan_storage::log_store::{LogStore, RoomWrite, SlotOwner, Write};
use banyan_storage::{Accounts, Error, NotDone, Outcome, Range, ReadLimit};
use banyan_storage_scylla::schema::{self, Applied, Replication};
use banyan_storage_scylla::{ConnectError, Level, Options, Scylla, Server, Tls};
use banyan_test_servers::cassandra::{self, Cassandra, CommitLog};
use futures_util::future::join_all;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep};

/// One cluster at a time: four nodes are too many for a small machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Servers that have their time: on a machine with slow disks hundreds of writes at once take longer than the two seconds after which
/// a server gives up. Reads have the time that they have by default: what hangs for want of a replica shall not end by itself.
fn servers(nodes: u8) -> cassandra::Builder {
    let builder = cassandra::Builder::new().nodes(nodes).commit_log(CommitLog::Group);
    builder.setting("write_request_timeout: 20s")
}

fn options(nodes: &[String], keyspace: &str) -> Options {
    Options { start_deadline: Some(Duration::from_secs(30)), ..Options::new(nodes.to_vec(), keyspace) }
}

/// For what expects to be done, however busy the machine is.
fn patient(nodes: &[String], keyspace: &str) -> Options {
    let patience = Duration::from_secs(20);
    Options {
        write_timeout: patience,
        read_timeout: patience,
        fence_read_timeout: patience,
        ..options(nodes, keyspace)
    }
}

async fn connect(options: Options) -> Server {
    Server::connect(options, |waiting| println!("{waiting}")).await.unwrap()
}

async fn open(options: Options) -> Scylla {
    connect(options).await.open(|waiting| println!("{waiting}")).await.unwrap()
}

/// Makes the keyspace anew.
async fn make(nodes: &[String], keyspace: &str, factor: u32) {
    let server = connect(options(nodes, keyspace)).await;
    server.drop_keyspace().await.unwrap();
    let replication = Replication { data_centre: server.data_centre().to_owned(), factor };
    assert_eq!(server.apply_schema(&replication).await, Ok(Applied { from: None, to: schema::NEWEST }));
}

/// Past the test harness, which keeps what a test prints until it ends: of a test that hangs, too, it is seen how far it came.
fn note(text: std::fmt::Arguments<'_>) {
    writeln!(std::io::stderr(), "{text}").ok();
}

fn run_all<S: ?Sized>(checks: &[Check<S>], mut subject: Subject<S>) {
    for (name, check) in checks {
        let begun = Instant::now();
        check(&mut subject);
        note(format_args!("{name}: {} ms", begun.elapsed().as_millis()));
    }
}

/// Both suites, on a keyspace that nobody has used.
fn contract(runtime: &Arc<Runtime>, nodes: &[String], keyspace: &str) {
    contract_of(runtime, nodes, keyspace, log::ALL);
}

/// Without what takes longest and shows nothing about faults.
fn contract_under_faults(runtime: &Arc<Runtime>, nodes: &[String], keyspace: &str) {
    const LONG: [&str; 2] = ["more_segments_than_can_be_read_are_seen", "limits_of_reads"];
    let checks: Vec<_> = log::ALL.iter().copied().filter(|(name, _)| !LONG.contains(name)).collect();
    assert_eq!(checks.len(), log::ALL.len() - LONG.len());
    contract_of(runtime, nodes, keyspace, &checks);
}

fn contract_of(runtime: &Arc<Runtime>, nodes: &[String], keyspace: &str, checks: &[Check<dyn LogStore>]) {
    note(format_args!("--- contract on {keyspace}"));
    let reopen = |runtime: Arc<Runtime>, nodes: Vec<String>, keyspace: String| {
        move || Arc::new(runtime.block_on(open(patient(&nodes, &keyspace))))
    };
    let open = reopen(Arc::clone(runtime), nodes.to_vec(), keyspace.to_owned());
    run_all(checks, Subject::new(move |_| open() as Arc<dyn LogStore>));
    let open = reopen(Arc::clone(runtime), nodes.to_vec(), keyspace.to_owned());
    run_all(accounts::ALL, Subject::new(move |_| open() as Arc<dyn Accounts>));
}

fn one(room: &RoomId, write: Write) -> RoomWrite {
    RoomWrite { ticket: 1, room: room.clone(), write }
}

fn put(store: &Scylla, room: &RoomId, write: Write) -> Outcome {
    write_all(store, vec![one(room, write)])[0]
}

/// As an owner does it: the same rows again until they are there.
fn put_until_done(store: &Scylla, room: &RoomId, write: &Write, tries: usize) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for _ in 0..tries {
        outcomes.push(put(store, room, write.clone()));
        if outcomes.last() == Some(&Outcome::Done) {
            return outcomes;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{room}: not done after {tries} tries: {outcomes:?}");
}

const ALL: ReadLimit = ReadLimit { events: 10_000, bytes: 8 << 20 };

fn seqs(store: &Scylla, room: &RoomId, segment: SegmentId) -> Vec<u64> {
    let spans = vec![span(segment, 1, 1, u64::MAX)];
    let page = wait(store.rows(room.clone(), spans, Range::after(banyan_proto::id::Seq(0)), ALL)).unwrap();
    page.rows.iter().map(|row| row.seq.0).collect()
}

/// p50, p99 and max, in milliseconds.
fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
    format!("p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms", at(50), at(99), at(100))
}

/// What one append (a batch of four rows of about 60 bytes) and one fence read cost when nothing else goes on.
fn cost(runtime: &Runtime, store: &Scylla, what: &str) {
    const COUNT: u64 = 300;
    let ours = room("cost");
    let id = segment(1, 0);
    let (mut appends, mut fences, mut singles) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..COUNT {
        let begun = Instant::now();
        assert_eq!(put(store, &ours, rows(&ours, id, 1, 5 * i + 1, 5 * i + 4)), Outcome::Done);
        appends.push(begun.elapsed());
        let begun = Instant::now();
        assert_eq!(put(store, &ours, rows(&ours, id, 1, 5 * i + 5, 5 * i + 5)), Outcome::Done);
        singles.push(begun.elapsed());
        let begun = Instant::now();
        assert_eq!(runtime.block_on(store.is_fenced(Incarnation(1 << 77)).get()), Ok(false));
        fences.push(begun.elapsed());
    }
    println!("COST {what}: append of 4 rows {}", quantiles(appends));
    println!("COST {what}: append of 1 row {}", quantiles(singles));
    println!("COST {what}: fence read {}", quantiles(fences));
    // Many rooms at once: what the servers can carry.
    let names: Vec<_> = (0..64).map(|i| room(&format!("cost.{i}"))).collect();
    let begun = Instant::now();
    for round in 0..20 {
        let group = (0..).zip(&names).map(|(ticket, name)| RoomWrite {
            ticket,
            room: name.clone(),
            write: rows(name, id, 1, 4 * round + 1, 4 * round + 4),
        });
        assert!(write_all(store, group.collect()).iter().all(|outcome| *outcome == Outcome::Done));
    }
    println!("COST {what}: {:.0} appends/s with 64 rooms in flight", 1_280.0 / begun.elapsed().as_secs_f64());
}

#[test]
fn one_node() {
    let _only = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = Arc::new(runtime());
    let mut cluster: Option<Cassandra> = None;
    let nodes = match cassandra::external() {
        Some(address) => vec![address],
        None => {
            let started = runtime.block_on(servers(1).start()).unwrap();
            let nodes = started.contact_points();
            cluster = Some(started);
            nodes
        }
    };
    runtime.block_on(schema_versions(&nodes));
    runtime.block_on(make(&nodes, "banyan_contract", 1));
    contract(&runtime, &nodes, "banyan_contract");
    let store = runtime.block_on(open(patient(&nodes, "banyan_contract")));
    cost(&runtime, &store, "one node");
    runtime.block_on(what_is_wrong_is_said(&nodes, cluster.is_some()));
    full_is_definite(&runtime, &nodes);
    creations_that_were_cut_off(&runtime, &nodes, &store);
    marks_of_many(&store);
    old_owners_are_forgotten(&runtime, &nodes, &store);
    if let Some(cluster) = &mut cluster {
        a_store_that_goes_away(&runtime, cluster, &nodes);
    }
    runtime.block_on(async {
        store.close().await;
        assert_eq!(store.write_fence(Incarnation(1)).await, Err(Error::Closed));
        for keyspace in ["banyan_contract", "banyan_schema"] {
            connect(options(&nodes, keyspace)).await.drop_keyspace().await.unwrap();
        }
    });
    assert_eq!(
        put(&store, &room("closed"), rows(&room("closed"), segment(1, 0), 1, 1, 1)),
        Outcome::NotDone(NotDone::Closed)
    );
}

async fn raw(nodes: &[String]) -> Session {
    SessionBuilder::new().known_nodes(nodes).build().await.unwrap()
}

async fn schema_versions(nodes: &[String]) {
    const KEYSPACE: &str = "banyan_schema";
    let ours = || options(nodes, KEYSPACE);
    connect(ours()).await.drop_keyspace().await.unwrap();
    let missing = connect(ours()).await.open(|_| ()).await.unwrap_err();
    assert!(matches!(missing, ConnectError::Schema(schema::Error::Missing { .. })), "{missing}");
    make(nodes, KEYSPACE, 1).await;
    let server = connect(ours()).await;
    assert_eq!(server.schema_version().await, Ok(Some(schema::NEWEST)));
    let replication = Replication { data_centre: server.data_centre().to_owned(), factor: 1 };
    let again = Applied { from: Some(schema::NEWEST), to: schema::NEWEST };
    assert_eq!(server.apply_schema(&replication).await, Ok(again), "nothing to do");
    // An apply that was cut off before it noted its version.
    let raw = raw(nodes).await;
    raw.query_unpaged(format!("TRUNCATE {KEYSPACE}.schema_versions"), ()).await.unwrap();
    let repeated = Applied { from: None, to: schema::NEWEST };
    assert_eq!(server.apply_schema(&replication).await, Ok(repeated));
    // What is printed is what is applied.
    for statement in schema::print(KEYSPACE, &replication).split(";\n").filter(|text| !text.trim().is_empty())
    {
        raw.query_unpaged(statement, ()).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    let newer =
        format!("INSERT INTO {KEYSPACE}.schema_versions (k, version) VALUES (0, {})", schema::NEWEST + 1);
    raw.query_unpaged(newer, ()).await.unwrap();
    assert!(matches!(server.apply_schema(&replication).await, Err(schema::Error::Newer { .. })));
    let error = server.open(|_| ()).await.unwrap_err().to_string();
    assert!(error.contains("newer release"), "{error}");
}

async fn what_is_wrong_is_said(nodes: &[String], ours: bool) {
    let far = Options { data_centre: Some("mars".to_owned()), ..options(nodes, "banyan_contract") };
    let error = Server::connect(far, |_| ()).await.unwrap_err();
    assert!(
        matches!(error, ConnectError::DataCentre { .. }) && error.to_string().contains("mars"),
        "{error}"
    );
    let server = connect(options(nodes, "banyan_contract")).await;
    let findings = server.check().await;
    println!("{findings:#?}");
    assert!(
        findings.iter().any(|one| one.level == Level::Warning && one.text.contains("ONE copy")),
        "{findings:?}"
    );
    assert!(findings.iter().all(|one| one.level != Level::Error), "{findings:?}");
    if ours {
        assert_eq!(findings.len(), 1, "{findings:?}");
    }
    let nothing = connect(options(nodes, "banyan_nothing")).await.check().await;
    assert!(nothing[0].level == Level::Error && nothing[0].text.contains("banyan_nothing"), "{nothing:?}");
}

fn full_is_definite(runtime: &Runtime, nodes: &[String]) {
    let narrow = Options { writes_max: 5, writes_in_flight: 1, ..options(nodes, "banyan_contract") };
    let store = runtime.block_on(open(narrow));
    let names: Vec<_> = (0..12).map(|i| room(&format!("full.{i}"))).collect();
    let write = |name: &RoomId| rows(name, segment(1, 0), 1, 1, 3);
    let group =
        (0..).zip(&names).map(|(ticket, name)| RoomWrite { ticket, room: name.clone(), write: write(name) });
    let outcomes = write_all(&store, group.collect());
    let overloaded = Outcome::NotDone(NotDone::Overloaded);
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Outcome::Done).count(), 5);
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == overloaded).count(), 7);
    for (name, outcome) in names.iter().zip(&outcomes) {
        let there = if *outcome == Outcome::Done { vec![1, 2, 3] } else { vec![] };
        assert_eq!(seqs(&store, name, segment(1, 0)), there);
    }
}

fn new_user(id: &str, username: &str, skeleton: &str) -> UserRow {
    UserRow {
        user: user(id),
        name: id.to_owned(),
        username: Some(username.to_owned()),
        skeleton: Some(skeleton.to_owned()),
        password_hash: Some("$argon2id$x".to_owned()),
        disabled: false,
        created_at: banyan_proto::id::UnixMs(1),
        tokens_not_before: banyan_proto::id::UnixMs(0),
    }
}

/// What a server leaves behind that dies while it makes a user.
fn creations_that_were_cut_off(runtime: &Runtime, nodes: &[String], store: &Scylla) {
    let raw = runtime.block_on(raw(nodes));
    let leave = |id: &str, username: &str, skeleton: &str, taken: &[(i32, &str)]| {
        let row = format!(
            "INSERT INTO banyan_contract.users (user_id, name, username, skeleton, password_hash, disabled, created_at, tokens_not_before, pending, version) \
             VALUES ('{id}', '{id}', '{username}', '{skeleton}', '$argon2id$x', false, 1, 0, true, 1) USING TIMESTAMP 1"
        );
        runtime.block_on(raw.query_unpaged(row, ())).unwrap();
        for (kind, name) in taken {
            let take = format!(
                "INSERT INTO banyan_contract.usernames (kind, name, user_id) VALUES ({kind}, '{name}', '{id}') IF NOT EXISTS"
            );
            runtime.block_on(raw.query_unpaged(take, ())).unwrap();
        }
    };
    let create = |row: &UserRow| wait(store.create_user(row.clone())).unwrap();
    let by_name =
        |name: &str| wait(store.user_by_username(name)).unwrap().map(|row| row.user.as_str().to_owned());
    // Before any name was taken: nobody, and the name is free.
    leave("cut.1", "cut-one", "cut-one", &[]);
    assert_eq!(wait(store.user(&user("cut.1"))), Ok(None));
    assert_eq!(create(&new_user("cut.2", "cut-one", "cut-one")), Creation::Created);
    assert_eq!(create(&new_user("cut.1", "cut-one", "cut-one")), Creation::UsernameTaken);
    assert_eq!(wait(store.user(&user("cut.1"))), Ok(None));
    // After the skeleton: who meets it finishes it.
    leave("cut.3", "cut-three", "cut-3", &[(1, "cut-3")]);
    assert_eq!(wait(store.user(&user("cut.3"))), Ok(None));
    assert_eq!(create(&new_user("cut.4", "cut-tree", "cut-3")), Creation::UsernameTaken);
    assert_eq!((by_name("cut-three"), by_name("cut-tree")), (Some("cut.3".to_owned()), None));
    assert!(wait(store.user(&user("cut.3"))).unwrap().is_some());
    // The same, called again by whom it happened to.
    leave("cut.5", "cut-five", "cut-5", &[(1, "cut-5")]);
    assert_eq!(create(&new_user("cut.5", "cut-five", "cut-5")), Creation::Created);
    // After both: only the last mark is missing.
    leave("cut.6", "cut-six", "cut-6", &[(1, "cut-6"), (0, "cut-six")]);
    assert!(wait(store.user(&user("cut.6"))).unwrap().is_some());
    assert_eq!(create(&new_user("cut.6", "cut-six", "cut-6")), Creation::Created);
    // The skeleton of one whose username went to somebody else: it is freed.
    leave("cut.7", "cut-six", "cut-7", &[(1, "cut-7")]);
    assert_eq!(create(&new_user("cut.8", "cut-eight", "cut-7")), Creation::Created);
    assert_eq!(wait(store.user(&user("cut.7"))), Ok(None));
    assert_eq!(by_name("cut-eight"), Some("cut.8".to_owned()));
}

/// More members than one batch or one page of marks.
fn marks_of_many(store: &Scylla) {
    let ours = room("marks.many");
    let names: Vec<_> = (0..500).map(|i| format!("marks.many.{i:03}")).collect();
    let members = names.iter().map(|name| member(name, 1, 1)).collect();
    assert_eq!(put(store, &ours, derived(None, members)), Outcome::Done);
    for step in 1..=3 {
        let mark = banyan_storage::Marks { delivered: banyan_proto::id::Seq(step), ..Default::default() };
        store.put_marks(names.iter().map(|name| (ours.clone(), user(name), mark)).collect());
    }
    let begun = Instant::now();
    loop {
        let (page, more) = wait(store.members(ours.clone(), None, 1_000)).unwrap();
        assert!(page.len() == 500 && !more);
        if page.iter().all(|(_, marks)| marks.delivered.0 == 3) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "marks are not there");
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let (page, more) = wait(store.members(ours.clone(), after, 37)).unwrap();
        seen.extend(page.into_iter().map(|(row, _)| row.user.as_str().to_owned()));
        after = seen.last().map(|last| user(last));
        if !more {
            break;
        }
    }
    assert_eq!(seen, names, "every member once, in order, over pages");
}

/// The only server dies under a write and comes back: unknown stays unknown until the same write is done, and others are told at once.
fn a_store_that_goes_away(runtime: &Arc<Runtime>, cluster: &mut Cassandra, nodes: &[String]) {
    let store = runtime.block_on(open(options(nodes, "banyan_contract")));
    let (ours, id) = (room("away"), segment(1, 0));
    assert_eq!(put(&store, &ours, rows(&ours, id, 1, 1, 3)), Outcome::Done);
    // Frozen: the write is sent, and nobody answers.
    freeze(cluster.node(0));
    let second = rows(&ours, id, 1, 4, 6);
    let begun = Instant::now();
    assert_eq!(put(&store, &ours, second.clone()), Outcome::Unknown);
    // Its time is a second; the driver's own would be thirty.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    runtime.block_on(cluster.node(0).kill()).unwrap();
    let (begun, other) = (Instant::now(), room("away.other"));
    // Nobody there: definite for a write that was never sent, and not for the one that was.
    while put(&store, &other, rows(&other, id, 1, 1, 1)) != Outcome::NotDone(NotDone::Unavailable) {
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    let third = room("away.third");
    assert_eq!(put(&store, &third, rows(&third, id, 1, 1, 1)), Outcome::NotDone(NotDone::Unavailable));
    assert_eq!(put(&store, &ours, second.clone()), Outcome::Unknown);
    assert!(matches!(wait(store.is_fenced(Incarnation(5)).get()), Err(Error::Unavailable(_))));
    assert_eq!(wait(store.write_fence(Incarnation(5 << 80))), Err(Error::Unknown));
    // A start meanwhile waits, says so, and goes on by itself.
    let starting = runtime.spawn({
        let options = options(nodes, "banyan_contract");
        async move {
            let mut heard = 0;
            let server = Server::connect(Options { start_deadline: None, ..options }, |waiting| {
                assert!(waiting.to_string().starts_with("waiting for CQL servers at"), "{waiting}");
                heard += 1;
            });
            let store = server.await.unwrap().open(|_| ()).await.unwrap();
            (store, heard)
        }
    });
    runtime.block_on(async {
        sleep(Duration::from_secs(2)).await;
        assert!(!starting.is_finished());
        cluster.start_all().await.unwrap();
    });
    let (later, heard) = runtime.block_on(starting).unwrap();
    assert!(heard > 0, "it was not said that the servers are waited for");
    assert_eq!(seqs(&later, &ours, id)[..3], [1, 2, 3], "what was done is there");
    put_until_done(&store, &ours, &second, 100);
    assert_eq!(seqs(&store, &ours, id), [1, 2, 3, 4, 5, 6]);
    assert_eq!(seqs(&store, &third, id), [0; 0], "not done is not there");
}

#[test]
fn three_nodes() {
    let _only = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = Arc::new(runtime());
    let mut cluster = runtime.block_on(servers(3).start()).unwrap();
    let nodes = cluster.contact_points();
    // Schemas change while all nodes are there.
    let keyspaces = ["banyan_all", "banyan_frozen", "banyan_down", "banyan_slow"];
    runtime.block_on(async {
        for keyspace in keyspaces {
            make(&nodes, keyspace, 3).await;
        }
        let findings = connect(options(&nodes, "banyan_all")).await.check().await;
        assert_eq!(
            findings,
            [],
            "nothing is wrong with three nodes, three copies and a commit log that syncs"
        );
    });
    contract(&runtime, &nodes, "banyan_all");
    cost(&runtime, &runtime.block_on(open(patient(&nodes, "banyan_all"))), "three nodes");
    let store = runtime.block_on(open(options(&nodes, "banyan_all")));
    a_frozen_node(&runtime, &mut cluster, &nodes, &store);
    a_node_down(&runtime, &mut cluster, &nodes);
    a_slow_node(&runtime, &mut cluster, &nodes);
}

/// On a keyspace that is not there: one makes it, the others wait for that one, and nothing is made twice.
#[test]
fn a_schema_is_applied_by_several_at_once() {
    const KEYSPACE: &str = "banyan_at_once";
    let _only = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = runtime();
    let mut cluster = runtime.block_on(servers(3).start()).unwrap();
    let nodes = cluster.contact_points();
    let replication = Replication { data_centre: cluster.datacenter().to_owned(), factor: 3 };
    let all = Applied { from: None, to: schema::NEWEST };
    let nothing = Applied { from: Some(schema::NEWEST), to: schema::NEWEST };
    for round in 0..3 {
        let applied = runtime.block_on(async {
            let servers =
                nodes.iter().chain(&nodes).map(|node| connect(options(std::slice::from_ref(node), KEYSPACE)));
            let servers = join_all(servers).await;
            servers[0].drop_keyspace().await.unwrap();
            join_all(servers.iter().map(|server| server.apply_schema(&replication))).await
        });
        println!("round {round}: {applied:?}");
        assert_eq!(applied.iter().filter(|applied| **applied == Ok(all)).count(), 1, "{applied:?}");
        assert_eq!(applied.iter().filter(|applied| **applied == Ok(nothing)).count(), 5, "{applied:?}");
        let store = runtime.block_on(open(options(&nodes, KEYSPACE)));
        let ours = room("at.once");
        put_until_done(&store, &ours, &rows(&ours, segment(1, 0), 1, 1, 4), 10);
        assert_eq!(seqs(&store, &ours, segment(1, 0)), [1, 2, 3, 4]);
    }
    runtime.block_on(async {
        // Of every node its own view: the same tables under the same ids.
        let mut seen = Vec::new();
        for node in &nodes {
            let raw = raw(std::slice::from_ref(node)).await;
            let version = raw.await_schema_agreement().await.unwrap();
            let text = "SELECT table_name, id FROM system_schema.tables WHERE keyspace_name = ?";
            let tables = raw.query_unpaged(text, (KEYSPACE,)).await.unwrap().into_rows_result().unwrap();
            seen.push((version, tables.rows_num()));
        }
        assert!(seen.iter().all(|one| *one == seen[0]), "{seen:?}");
        // Somebody died in the middle: what he held runs out.
        let raw = raw(&nodes).await;
        raw.query_unpaged(format!("TRUNCATE {KEYSPACE}.schema_versions"), ()).await.unwrap();
        let gone = "(k, holder) VALUES (0, 'gone') IF NOT EXISTS USING TTL 4";
        raw.query_unpaged(format!("INSERT INTO {KEYSPACE}.schema_lock {gone}"), ()).await.unwrap();
        let begun = Instant::now();
        let server = connect(options(&nodes, KEYSPACE)).await;
        assert_eq!(server.apply_schema(&replication).await, Ok(all));
        assert!(begun.elapsed() > Duration::from_secs(2), "it waited: {:?}", begun.elapsed());
        cluster.kill_all().await.unwrap();
    });
}

/// A CA, and what it has signed: PEM by name.
fn signed(ca: &str, leaf: &[&str]) -> (String, String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, ca);
    let certificate = params.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, key);
    let leaf_key = rcgen::KeyPair::generate().unwrap();
    let names: Vec<String> = leaf.iter().map(|&name| name.to_owned()).collect();
    let mut leaf = rcgen::CertificateParams::new(names).unwrap();
    leaf.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap();
    (certificate, leaf.pem(), leaf_key.serialize_pem())
}

/// Both sides show certificates. Whoever shows a wrong one, or wants another, is told at once.
#[test]
fn connections_are_encrypted() {
    const KEYSPACE: &str = "banyan_tls";
    let _only = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = runtime();
    let (ca, certificate, key) = signed("ca", &["127.0.0.1", "store.example"]);
    let (other_ca, other_certificate, other_key) = signed("other", &["127.0.0.1"]);
    let files = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = files.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    // Optional: the harness looks without TLS whether it serves. Who speaks TLS must show a certificate all the same.
    let settings = format!(
        "client_encryption_options:\n  enabled: true\n  optional: true\n  require_client_auth: true\n  \
         ssl_context_factory:\n    class_name: org.apache.cassandra.security.PEMBasedSslContextFactory\n  \
         keystore: {}\n  truststore: {}",
        write("server.pem", format!("{key}{certificate}")),
        write("ca.pem", ca.clone()),
    );
    let mut cluster = runtime.block_on(cassandra::Builder::new().setting(settings).start()).unwrap();
    let nodes = cluster.contact_points();
    let with = |ca: &str, identity: Option<(&str, &str)>, name: Option<&str>| Options {
        tls: Some(Tls {
            ca: ca.as_bytes().to_vec(),
            identity: identity.map(|(cert, key)| (cert.as_bytes().to_vec(), key.as_bytes().to_vec())),
            server_name: name.map(str::to_owned),
        }),
        ..options(&nodes, KEYSPACE)
    };
    let ours = Some((&*certificate, &*key));
    runtime.block_on(async {
        for name in [None, Some("store.example")] {
            let server = connect(with(&ca, ours, name)).await;
            let replication = Replication { data_centre: server.data_centre().to_owned(), factor: 1 };
            server.apply_schema(&replication).await.unwrap();
            let clients = "SELECT ssl_enabled, ssl_protocol FROM system_views.clients";
            let raw = raw(&nodes).await;
            let seen = raw.query_unpaged(clients, ()).await.unwrap().into_rows_result().unwrap();
            let seen: Vec<(bool, Option<String>)> = seen.rows().unwrap().map(Result::unwrap).collect();
            assert!(seen.iter().any(|(encrypted, _)| *encrypted), "{seen:?}");
        }
        let store = open(with(&ca, ours, None)).await;
        let room = room("encrypted");
        let done = tokio::task::spawn_blocking(move || {
            put_until_done(&store, &room, &rows(&room, segment(1, 0), 1, 1, 4), 10);
            seqs(&store, &room, segment(1, 0))
        });
        assert_eq!(done.await.unwrap(), [1, 2, 3, 4]);
        for (options, says) in [
            (with(&other_ca, ours, None), "UnknownIssuer"),
            (with(&ca, ours, Some("elsewhere")), "not valid for name"),
            (with(&ca, None, None), "received fatal alert"),
            (with(&ca, Some((&*other_certificate, &*other_key)), None), "received fatal alert"),
        ] {
            let begun = Instant::now();
            let error = Server::connect(options, |waiting| println!("{waiting}")).await.unwrap_err();
            println!("{error} ({:?})", begun.elapsed());
            assert!(matches!(error, ConnectError::Tls(_)) && error.to_string().contains(says), "{error:?}");
        }
        cluster.kill_all().await.unwrap();
    });
}

/// The signal takes its time where the processors are busy.
fn freeze(node: &mut cassandra::Node) {
    node.freeze().unwrap();
    let tasks = format!("/proc/{}/task", node.id().unwrap());
    let stopped = || {
        let mut tasks = std::fs::read_dir(&tasks)
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
        tasks.all(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')))
    };
    while !stopped() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Longest that a fence may be out of reach when a server freezes, on a machine that is busy: below the five seconds after which a
/// server gives a read up that waits for the frozen one. A node that has no answer for two seconds leaves and comes back, which costs
/// its rooms a moment and nothing else.
const FENCE_LIMIT: Duration = Duration::from_secs(4);

/// As a barrier does it: asks until there is an answer.
fn not_fenced(store: &Scylla, incarnation: Incarnation, failed: &mut usize) -> Duration {
    let begun = Instant::now();
    loop {
        match wait(store.is_fenced(incarnation).get()) {
            Ok(fenced) => {
                assert!(!fenced);
                return begun.elapsed();
            }
            Err(error) => {
                *failed += 1;
                note(format_args!(
                    "fence read {incarnation:?}: no answer after {:?}: {error}",
                    begun.elapsed()
                ));
                assert!(begun.elapsed() < FENCE_LIMIT, "no answer about a fence: {error}");
            }
        }
    }
}

/// From the very moment of the freeze: fence reads go on, appends end in time and are done when they are said again.
fn a_frozen_node(runtime: &Arc<Runtime>, cluster: &mut Cassandra, nodes: &[String], store: &Scylla) {
    freeze(cluster.node(1));
    let (ours, id) = (room("frozen"), segment(1, 0));
    let (mut fences, mut unknown, mut failed) = (Vec::new(), 0, 0);
    for i in 0..200 {
        // Names that the contract, on the same keyspace, has not fenced.
        fences.push(not_fenced(store, Incarnation((5 << 90) + i), &mut failed));
        let seq = u64::try_from(i).unwrap() + 1;
        let outcomes = put_until_done(store, &ours, &rows(&ours, id, 1, seq, seq), 8);
        unknown += outcomes.iter().filter(|outcome| **outcome == Outcome::Unknown).count();
    }
    println!(
        "COST one of three frozen: fence read {} ({failed} tries failed); {unknown} of 200 appends unknown at first",
        quantiles(fences)
    );
    assert_eq!(seqs(store, &ours, id), (1..=200).collect::<Vec<_>>());
    assert!(wait(store.write_fence(Incarnation(7 << 90))).is_ok());
    assert_eq!(wait(store.is_fenced(Incarnation(7 << 90)).get()), Ok(true));
    contract_under_faults(runtime, nodes, "banyan_frozen");
    cluster.node(1).thaw().unwrap();
    runtime.block_on(cluster.wait_ready()).unwrap();
    assert_eq!(seqs(store, &ours, id), (1..=200).collect::<Vec<_>>());
}

fn a_node_down(runtime: &Arc<Runtime>, cluster: &mut Cassandra, nodes: &[String]) {
    let store = runtime.block_on(open(options(nodes, "banyan_down")));
    let (ours, id) = (room("down"), segment(1, 0));
    runtime.block_on(cluster.node(2).kill()).unwrap();
    for seq in 1..=100 {
        put_until_done(&store, &ours, &rows(&ours, id, 1, seq, seq), 8);
        not_fenced(&store, Incarnation(seq.into()), &mut 0);
    }
    contract_under_faults(runtime, nodes, "banyan_down");
    // A second one: no quorum, and that is said for certain.
    runtime.block_on(cluster.node(1).kill()).unwrap();
    let begun = Instant::now();
    let mut last = Outcome::Done;
    let mut tried = 0;
    while last != Outcome::NotDone(NotDone::Unavailable) {
        tried += 1;
        let fresh = room(&format!("down.{tried}"));
        last = put(&store, &fresh, Write::Record(record(id, 1, 1, None)));
        assert_ne!(last, Outcome::Done, "done without a quorum");
        assert!(begun.elapsed() < Duration::from_secs(60), "{last:?}");
    }
    let findings = runtime.block_on(async { connect(options(nodes, "banyan_down")).await.check().await });
    assert!(findings.iter().any(|one| one.text.contains("does not answer")), "{findings:?}");
    // Who starts now is not refused: it waits, says for what, and goes on when there is a quorum.
    let patient = Options { start_deadline: None, ..options(nodes, "banyan_down") };
    let server = runtime.block_on(connect(patient));
    let settings = runtime.block_on(server.check_settings());
    assert!(settings.iter().all(|one| one.level != Level::Error), "{settings:?}");
    let (said, heard) = mpsc::channel();
    let starting = runtime.spawn(async move {
        let opened = server.open(|waiting| said.send(waiting.why.clone()).unwrap()).await;
        opened.map(drop)
    });
    let why = heard.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(why.contains("consistency") || why.contains("refused"), "{why}");
    assert!(!starting.is_finished());
    runtime.block_on(cluster.start_all()).unwrap();
    runtime.block_on(starting).unwrap().unwrap();
    let owner = SlotOwner { epoch: Epoch(1), incarnation: Incarnation(1), closed: false };
    wait(store.put_slot_owner(SlotId(1), owner, None)).unwrap();
    let fresh = room(&format!("down.{tried}"));
    assert_eq!(wait(store.segments(fresh)), Ok(vec![]), "not done is not there");
    assert_eq!(seqs(&store, &ours, id), (1..=100).collect::<Vec<_>>());
}

/// What ever happened to a slot is neither read nor kept for ever.
fn old_owners_are_forgotten(runtime: &Runtime, nodes: &[String], store: &Scylla) {
    let owner = |epoch, closed| SlotOwner {
        epoch: Epoch(epoch),
        incarnation: Incarnation(u128::from(epoch)),
        closed,
    };
    let put = |store: &Scylla, slot, owner: SlotOwner| {
        let before = owner.epoch.0 - 1;
        let closes = (!before.is_multiple_of(100)).then(|| (Epoch(before), Incarnation(u128::from(before))));
        wait(store.put_slot_owner(slot, owner, closes)).unwrap();
    };
    let epochs = |store: &Scylla, slot| -> Vec<u64> {
        wait(store.slot_owners(slot)).unwrap().iter().map(|row| row.epoch.0).collect()
    };
    let fresh = || runtime.block_on(open(options(nodes, "banyan_contract")));
    let (ours, rival) = (SlotId(4_070), SlotId(4_071));
    // Of the rival's row nobody knows what became of it: it stays, and so do those after it.
    wait(store.put_slot_owner(rival, owner(200, false), None)).unwrap();
    for epoch in 1..=60 {
        put(store, ours, owner(epoch, false));
        put(store, rival, owner(200 + epoch, false));
        assert_eq!(epochs(store, rival), (200..=200 + epoch).collect::<Vec<_>>());
        let read = epochs(store, ours);
        assert!(read == [epoch] || read == [epoch - 1, epoch], "{read:?} at {epoch}");
    }
    // Who knows nothing yet reads all, and deletes when it has put a row of its own.
    let other = fresh();
    assert_eq!(epochs(&other, ours), (1..=60).collect::<Vec<_>>());
    for (slot, epoch) in [(ours, 61), (rival, 261)] {
        put(&other, slot, owner(epoch, false));
        epochs(&other, slot);
    }
    let begun = Instant::now();
    let third = fresh();
    while epochs(&third, ours) != (53..=61).collect::<Vec<_>>() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", epochs(&third, ours));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(epochs(&third, rival), (200..=261).collect::<Vec<_>>());
    // A late write of one that was deleted brings nothing back.
    put(&third, ours, owner(1, false));
    put(&third, ours, owner(2, true));
    assert_eq!(epochs(&fresh(), ours), (53..=61).collect::<Vec<_>>());
}

/// It runs a fifth of the time.
fn a_slow_node(runtime: &Arc<Runtime>, cluster: &mut Cassandra, nodes: &[String]) {
    let store = runtime.block_on(open(options(nodes, "banyan_slow")));
    let (going_on, ends) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let node = cluster.node(0);
        scope.spawn(move || {
            // Until the other end is gone, be it by a check that failed.
            while ends.try_recv() != Err(TryRecvError::Disconnected) {
                node.freeze().unwrap();
                std::thread::sleep(Duration::from_millis(80));
                node.thaw().unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let _going_on = going_on;
        let (mut appends, mut fences) = (Vec::new(), Vec::new());
        let (ours, id) = (room("slow"), segment(1, 0));
        for seq in 1..=200 {
            let begun = Instant::now();
            put_until_done(&store, &ours, &rows(&ours, id, 1, seq, seq), 8);
            appends.push(begun.elapsed());
            fences.push(not_fenced(&store, Incarnation(seq.into()), &mut 0));
        }
        println!("COST one of three slow: append {}; fence read {}", quantiles(appends), quantiles(fences));
        contract_under_faults(runtime, nodes, "banyan_slow");
    });
}
