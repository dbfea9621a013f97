//! The command as people and machines call it: the built binary, its exit codes, what it prints.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// The binary in an empty directory, without the variables of whoever runs the tests.
fn banyan(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_banyan"));
    command.args(arguments).current_dir(directory).env_clear().stdin(Stdio::null());
    command
}

fn run(directory: &Path, arguments: &[&str]) -> Output {
    banyan(directory, arguments).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("prints UTF-8")
}

/// Runs and expects this exit code and exactly these lines on standard error, `D` standing for the directory.
#[track_caller]
fn check(command: &mut Command, directory: &Path, code: i32, want: &[&str]) -> String {
    let output = command.output().expect("the binary runs");
    let err = text(&output.stderr).replace(&directory.display().to_string(), "D");
    assert_eq!((output.status.code(), err.lines().collect::<Vec<_>>()), (Some(code), want.to_vec()));
    text(&output.stdout)
}

/// A running server, killed at the end of the test if the test has not ended it.
struct Server {
    child: Child,
    out: BufReader<ChildStdout>,
    /// The line that says that it is ready.
    ready: Value,
}

impl Server {
    /// Starts on ports that the system chooses.
    fn start(directory: &Path, more: &[&str]) -> Self {
        let mut arguments = vec!["serve", "--listen=127.0.0.1:0", "--ops-listen=127.0.0.1:0"];
        arguments.extend(more);
        let mut child =
            banyan(directory, &arguments).stdout(Stdio::piped()).spawn().expect("the binary runs");
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        let ready = loop {
            let mut line = String::new();
            assert_ne!(out.read_line(&mut line).expect("readable"), 0, "ended before it was ready");
            let line: Value =
                serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?} is no JSON: {error}"));
            if line["message"] == "ready" {
                break line;
            }
        };
        Self { child, out, ready }
    }

    fn ops_address(&self) -> String {
        let url = self.ready["ops"].as_str().expect("text");
        url.trim_start_matches("http://").trim_end_matches('/').to_owned()
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([format!("-{name}"), self.child.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(sent.success());
    }

    /// Waits for the end; its exit code and the rest of its log.
    fn ended(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).expect("readable");
        (self.child.wait().expect("waits").code(), rest)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

#[test]
fn serves_and_stops_on_each_signal() {
    for signal in ["INT", "TERM"] {
        let directory = directory();
        let server = Server::start(directory.path(), &["--node-id=n7"]);
        assert_eq!(server.ready["node"], "n7");
        assert!(
            server.ready["url"].as_str().is_some_and(|url| url.starts_with("http://127.0.0.1:")),
            "{}",
            server.ready
        );
        let healthy = run(directory.path(), &["healthcheck", "--ops-listen", &server.ops_address()]);
        assert_eq!(
            (healthy.status.code(), text(&healthy.stdout).as_str()),
            (Some(0), "{\"status\":\"ready\"}\n")
        );
        server.signal(signal);
        let (code, log) = server.ended();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains(&format!("\"signal\":\"SIG{signal}\"")) && log.contains("\"stopped\""), "{log}");
    }
}

#[test]
fn makes_its_data_directory() {
    let directory = directory();
    let server = Server::start(directory.path(), &[]);
    assert!(directory.path().join("banyan-data").is_dir());
    server.signal("TERM");
    assert_eq!(server.ended().0, Some(0));
}

#[test]
fn metrics_of_the_process() {
    let directory = directory();
    let server = Server::start(directory.path(), &[]);
    let mut stream = TcpStream::connect(server.ops_address()).expect("connects");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").expect("takes the request");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("answers");
    let rss = page.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
    let rss: f64 = rss.and_then(|value| value.parse().ok()).unwrap_or_default();
    assert!((1e6..1e9).contains(&rss), "{page}");
    server.signal("TERM");
    assert_eq!(server.ended().0, Some(0));
}

#[test]
fn a_busy_port_is_69() {
    let directory = directory();
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let busy = other.local_addr().expect("an address").to_string();
    for (flag, free) in [("--listen", "--ops-listen"), ("--ops-listen", "--listen")] {
        let error = format!("error: cannot listen on {busy}: address already in use");
        let hint =
            format!("hint: another process has this port: stop it, or choose another with {flag} ADDRESS");
        let mut command = banyan(directory.path(), &["serve", flag, &busy, free, "127.0.0.1:0"]);
        let log = check(&mut command, directory.path(), 69, &[&error, &hint]);
        let last: Value =
            serde_json::from_str(log.lines().last().unwrap_or_default()).expect("the log says why, too");
        assert_eq!((&last["level"], &last["exit_code"]), (&Value::from("ERROR"), &Value::from(69)), "{log}");
    }
    let mut command =
        banyan(directory.path(), &["serve", "--listen", "192.0.2.1:1", "--ops-listen", "127.0.0.1:0"]);
    let error = "error: cannot listen on 192.0.2.1:1: cannot assign requested address";
    check(
        &mut command,
        directory.path(),
        69,
        &[error, "hint: this machine has no such address: choose one of its own with --listen ADDRESS"],
    );
}

#[test]
fn a_data_directory_that_is_none_is_74() {
    let directory = directory();
    fs::write(directory.path().join("file"), "").expect("writes");
    let hint =
        "hint: choose one that this user may read and write with --data-dir DIRECTORY (server.data_dir)";
    let serve = |path: &str| {
        banyan(
            directory.path(),
            &["serve", "--listen=127.0.0.1:0", "--ops-listen=127.0.0.1:0", "--data-dir", path],
        )
    };
    let error = "error: cannot make the data directory file: file exists";
    check(&mut serve("file"), directory.path(), 74, &[error, hint]);
    check(
        &mut serve("file/x"),
        directory.path(),
        74,
        &["error: cannot make the data directory file/x: not a directory", hint],
    );
    let error = "error: cannot make the data directory /proc/self/x: no such file or directory";
    check(&mut serve("/proc/self/x"), directory.path(), 74, &[error, hint]);
}

/// `banyan serve` on free ports with its data in `data`.
fn serve(directory: &Path) -> Command {
    banyan(directory, &["serve", "--listen=127.0.0.1:0", "--ops-listen=127.0.0.1:0", "--data-dir=data"])
}

#[test]
fn what_a_newer_release_wrote_is_74() {
    let directory = directory();
    let server = Server::start(directory.path(), &["--data-dir=data"]);
    server.signal("TERM");
    assert_eq!(server.ended().0, Some(0));
    let newer = [
        (
            "data/store/FORMAT",
            "banyan embedded store, format 7\nand more\n",
            "error: data directory: data/store has format 7 and was written by a newer release; this one reads formats up to 2",
            "hint: run the release that wrote it or a newer one, or choose another directory with --data-dir DIR",
        ),
        (
            "data/token-keys.json",
            "{\"format\": 2, \"sealed\": \"x\"}",
            "error: token keys: data/token-keys.json was written by a newer release (format 2)",
            "hint: run the release that wrote it or a newer one",
        ),
    ];
    for (path, text, error, hint) in newer {
        let path = directory.path().join(path);
        let before = fs::read(&path).expect("the server made it");
        fs::write(&path, text).expect("writes");
        check(&mut serve(directory.path()), directory.path(), 74, &[error, hint]);
        assert_eq!(fs::read_to_string(&path).expect("readable"), text, "it is left as it is");
        fs::write(&path, before).expect("writes");
    }
    let server = Server::start(directory.path(), &["--data-dir=data"]);
    server.signal("TERM");
    assert_eq!(server.ended().0, Some(0), "nothing was changed by those that did not start");
}

#[test]
fn a_second_server_is_69() {
    let directory = directory();
    let server = Server::start(directory.path(), &["--data-dir=data"]);
    // The same data directory on another port.
    let error = format!(
        "error: data directory: data/store is in use by another process (pid {}); stop that one or choose another directory",
        server.child.id()
    );
    let hint = "hint: only one server may use a data directory: stop the other one, or choose another with --data-dir DIR";
    check(&mut serve(directory.path()), directory.path(), 69, &[&error, hint]);
    // Another data directory on the same port, whose sockets would share it.
    let url = server.ready["url"].as_str().expect("text");
    let busy = url.trim_start_matches("http://").trim_end_matches('/');
    let error = format!("error: cannot listen on {busy}: address already in use");
    let hint = "hint: another process has this port: stop it, or choose another with --listen ADDRESS";
    let mut other = banyan(
        directory.path(),
        &["serve", "--listen", busy, "--ops-listen=127.0.0.1:0", "--data-dir=other"],
    );
    check(&mut other, directory.path(), 69, &[&error, hint]);
    let healthy = run(directory.path(), &["healthcheck", "--ops-listen", &server.ops_address()]);
    assert_eq!(healthy.status.code(), Some(0), "the first is undisturbed");
}

#[test]
fn tokens_are_made_and_checked() {
    let directory = directory();
    let in_data = |arguments: &[&str]| {
        let mut command = banyan(directory.path(), arguments);
        command.arg("--data-dir=data");
        command
    };
    let checked = |token: &str| in_data(&["checktoken", "--json", token.trim()]).output().expect("runs");
    // Keys are made by whoever comes first.
    let token = check(
        &mut in_data(&["gentoken", "auth0|1", "--name=Ann A.", "--lifetime=1h"]),
        directory.path(),
        0,
        &[],
    );
    assert_eq!(token.lines().count(), 1);
    let claims: Value = serde_json::from_slice(&checked(&token).stdout).expect("JSON");
    assert_eq!((&claims["user"], &claims["name"]), (&Value::from("auth0|1"), &Value::from("Ann A.")));
    let lifetime =
        claims["expires_at"].as_u64().zip(claims["issued_at"].as_u64()).map(|(end, start)| end - start);
    assert!(lifetime.is_some_and(|lifetime| (3_599_000..=3_600_000).contains(&lifetime)), "{claims}");

    let many = check(&mut in_data(&["gentoken", "u", "--count=3", "--json"]), directory.path(), 0, &[]);
    let many: Vec<Value> = many.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let users: Vec<_> = many.iter().map(|signed| signed["user"].as_str().expect("text")).collect();
    assert_eq!(users, ["u1", "u2", "u3"]);
    for signed in &many {
        let claims: Value =
            serde_json::from_slice(&checked(signed["token"].as_str().expect("text")).stdout).expect("JSON");
        assert_eq!(claims["user"], signed["user"]);
        assert_eq!(claims["expires_at"], signed["expires_at"]);
    }

    let no = |token: &str, error: &str| {
        check(&mut in_data(&["checktoken", token]), directory.path(), 1, &[error]);
    };
    no("abc", "error: this is not a token of this server: it has no JWT header");
    let short = check(&mut in_data(&["gentoken", "u", "--lifetime=1s"]), directory.path(), 0, &[]);
    // Waits for the end of its second.
    while checked(&short).status.success() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    no(short.trim(), "error: the token has expired");
    fs::remove_file(directory.path().join("data/token-keys.json")).expect("is there");
    let error = "error: token keys: cannot read data/token-keys.json: No such file or directory (os error 2)";
    let hint = "hint: is this the server's data directory, and may this user use it (--data-dir DIRECTORY)?";
    check(&mut in_data(&["checktoken", token.trim()]), directory.path(), 74, &[error, hint]);
    check(&mut in_data(&["gentoken", "u"]), directory.path(), 0, &[]);
    no(token.trim(), "error: the token is signed by a key that this server does not have (any longer)");
    for (arguments, error) in [
        (["gentoken", "~u"], "error: USER: user ids that begin with `~` are the server's"),
        (["gentoken", "a b"], "error: USER: user may only hold printable ASCII without space, / \\ and \""),
    ] {
        check(&mut in_data(&arguments), directory.path(), 64, &[error]);
    }
    for count in ["--count=0", "--count=1000001", "--count=x"] {
        assert_eq!(in_data(&["gentoken", "u", count]).output().expect("runs").status.code(), Some(64));
    }
}

#[test]
fn a_bad_configuration_is_64() {
    let directory = directory();
    let file = directory.path().join("b.toml");
    fs::write(&file, "[server]\nlisten = \"0.0.0.0:8000\"\nnode_idd = \"x\"\n").expect("writes");
    let hint = "hint: `banyan genconfig` prints every setting with its default";
    for command in [
        &["serve", "--config=b.toml"][..],
        &["checkconfig", "--config=b.toml"],
        &["healthcheck", "--config=b.toml"],
    ] {
        let want = ["error: b.toml:3: server.node_idd is no key; did you mean server.node_id?", hint];
        check(&mut banyan(directory.path(), command), directory.path(), 64, &want);
    }
    let path = directory.path().join("none.toml").display().to_string();
    let want = ["error: D/none.toml:1: cannot read the file: no such file or directory", hint];
    check(&mut banyan(directory.path(), &["serve", "--config", &path]), directory.path(), 64, &want);
    let want = ["error: BANYAN_SERVER__LISTN: is no setting; did you mean BANYAN_SERVER__LISTEN?", hint];
    check(banyan(directory.path(), &["serve"]).env("BANYAN_SERVER__LISTN", "x"), directory.path(), 64, &want);
    let want = ["error: --signup: \"no\" is not possible: must be \"on\" or \"off\"", hint];
    check(&mut banyan(directory.path(), &["serve", "--signup=no"]), directory.path(), 64, &want);
    assert!(
        !directory.path().join("banyan-data").exists(),
        "nothing is made by a server that does not start"
    );
}

#[test]
fn keys_are_made_listed_and_rotated() {
    let directory = directory();
    let keys = |arguments: &[&str], code: i32| {
        let output = run(directory.path(), &[&["keys"], arguments, &["--data-dir", "keys"]].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
        text(if code == 0 { &output.stdout } else { &output.stderr })
    };
    let token = |code: i32, token: &str| {
        let output = run(directory.path(), &["checktoken", token, "--data-dir", "keys"]);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
    };
    assert!(keys(&["list"], 74).contains("cannot read"));
    let made = keys(&["make"], 0);
    assert_eq!(keys(&["make"], 0), made, "once");
    let first = text(&run(directory.path(), &["gentoken", "u", "--data-dir", "keys"]).stdout);
    assert!(keys(&["rotate"], 0).contains("verifies"));
    token(0, first.trim());
    let listed: Value = serde_json::from_str(&keys(&["list", "--json"], 0)).expect("JSON");
    assert_eq!((&listed[0]["signs"], &listed[1]["signs"]), (&true.into(), &false.into()));
    assert!(made.starts_with(listed[1]["key"].as_str().expect("text")), "{listed} {made}");
    assert!(listed[0].get("secret").is_none());
    // The first key would be dropped, and with it the token.
    assert!(keys(&["rotate"], 1).contains("--force"));
    token(0, first.trim());
    keys(&["rotate", "--force"], 0);
    token(1, first.trim());
}

#[test]
fn a_bad_command_line_is_64() {
    let directory = directory();
    // Flags of the cluster come with the cluster: until then they are as unknown as any.
    for arguments in [
        &["serve", "--roles=gateway"][..],
        &["serve", "--etcd=x"],
        &["serve", "--redis=x"],
        &["serve", "--peer-listen=x"],
        &["dance"],
        &["gentoken"],
        &["healthcheck", "--timeout=3"],
        &[],
    ] {
        let output = run(directory.path(), arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
    let err = text(&run(directory.path(), &["serve", "--lisen=x"]).stderr);
    assert!(err.contains("'--listen'"), "{err}");
}

#[test]
fn help_teaches() {
    let directory = directory();
    let help = |arguments: &[&str]| {
        let output = run(directory.path(), arguments);
        assert_eq!(output.status.code(), Some(0));
        text(&output.stdout)
    };
    let top = help(&["--help"]);
    for word in [
        "serve",
        "version",
        "gentoken",
        "checktoken",
        "genconfig",
        "checkconfig",
        "healthcheck",
        "Examples:",
        "Exit codes:",
        "64",
        "69",
        "70",
        "74",
        "BANYAN_SECTION__KEY",
    ] {
        assert!(top.contains(word), "{word} in\n{top}");
    }
    for (command, words) in [
        (
            "serve",
            &[
                "--config",
                "--listen",
                "--ops-listen",
                "--data-dir",
                "--node-id",
                "--signup",
                "--tls-cert",
                "--tls-key",
                "--log-format",
                "Exit codes:",
            ][..],
        ),
        ("version", &["--json"]),
        (
            "gentoken",
            &["USER", "--name", "--count", "--lifetime", "--json", "--data-dir", "--config", "Exit codes:"],
        ),
        ("keys", &["make", "list", "rotate", "token-keys.json", "Exit codes:"]),
        ("checktoken", &["TOKEN", "standard input", "--json", "--data-dir", "--config", "Exit codes:"]),
        ("genconfig", &[]),
        ("checkconfig", &["--config", "--json", "--listen", "Exit codes:"]),
        ("healthcheck", &["--config", "--ops-listen", "--timeout", "Exit codes:"]),
    ] {
        let page = help(&[command, "--help"]);
        assert!(page.contains("Examples:"), "{page}");
        for word in words {
            assert!(page.contains(word), "{word} in\n{page}");
        }
    }
}

#[test]
fn version() {
    let directory = directory();
    let plain = run(directory.path(), &["version"]);
    assert_eq!(text(&plain.stdout), format!("banyan {}\n", env!("CARGO_PKG_VERSION")));
    let about: Value =
        serde_json::from_slice(&run(directory.path(), &["version", "--json"]).stdout).expect("JSON");
    assert_eq!(about["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(about["protocol"], "banyan.v1");
}

#[test]
fn genconfig_makes_a_file_that_changes_nothing() {
    let directory = directory();
    let example = run(directory.path(), &["genconfig"]);
    assert_eq!(example.status.code(), Some(0));
    fs::write(directory.path().join("b.toml"), &example.stdout).expect("writes");
    let values = |arguments: &[&str]| {
        let printed: Value = serde_json::from_slice(&run(directory.path(), arguments).stdout).expect("JSON");
        let values = |section: &Value| -> Vec<Value> {
            section.as_object().expect("section").values().map(|key| key["value"].clone()).collect()
        };
        printed.as_object().expect("sections").values().map(values).collect::<Vec<_>>()
    };
    let with_file = values(&["checkconfig", "--json", "--config=b.toml"]);
    assert_eq!(with_file, values(&["checkconfig", "--json"]));
    assert!(with_file.iter().map(Vec::len).sum::<usize>() > 30);
}

#[test]
fn checkconfig_tells_origins() {
    let directory = directory();
    fs::write(directory.path().join("b.toml"), "[server]\nlisten = \"1.1.1.1:1\"\n").expect("writes");
    let mut command = banyan(directory.path(), &["checkconfig", "--config=b.toml", "--node-id=n7"]);
    let printed = check(command.env("BANYAN_LOG__LEVEL", "warn"), directory.path(), 0, &[]);
    let line =
        |start: &str| printed.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
    for (start, end) in [
        ("listen = \"1.1.1.1:1\"", "# b.toml:2"),
        ("node_id = \"n7\"", "# --node-id"),
        ("level = \"warn\"", "# BANYAN_LOG__LEVEL"),
        ("ops_listen = \"127.0.0.1:9000\"", "# default"),
    ] {
        assert!(line(start).ends_with(end), "{start} … {end} in\n{printed}");
    }
}

#[test]
fn healthcheck_without_a_node_is_1() {
    let directory = directory();
    let free = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port")
        .to_string();
    let error = format!("error: cannot ask http://{free}/readyz: connection refused");
    let mut command = banyan(directory.path(), &["healthcheck", "--ops-listen", &free]);
    check(
        &mut command,
        directory.path(),
        1,
        &[&error, "hint: is the node running, and is this its ops address (--ops-listen)?"],
    );
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let directory = directory();
    let mut child = banyan(directory.path(), &["genconfig"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}

/// What is printed on a terminal, by way of `script`, which gives the binary one.
fn on_a_terminal(directory: &Path, variables: &[(&str, &str)]) -> String {
    let command =
        format!("exec {} serve --listen=127.0.0.1:0 --ops-listen=127.0.0.1:0", env!("CARGO_BIN_EXE_banyan"));
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--flush", "--command", &command, "/dev/null"]);
    script
        .current_dir(directory)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("TERM", "xterm")
        .envs(variables.iter().copied());
    let mut child = script
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("`script` (util-linux, apt install bsdutils) runs");
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let mut printed = String::new();
    while !printed.contains("Ctrl-C stops it.") {
        assert_ne!(out.read_line(&mut printed).expect("readable"), 0, "ended before it was ready: {printed}");
    }
    // Ctrl-C as a terminal sends it.
    child.stdin.take().expect("piped").write_all(b"\x03").expect("takes Ctrl-C");
    out.read_to_string(&mut printed).expect("readable");
    assert!(child.wait().expect("ends").success(), "{printed}");
    printed
}

#[test]
fn a_terminal_gets_lines_for_people() {
    let directory = directory();
    let printed = on_a_terminal(directory.path(), &[]);
    assert!(
        printed.contains("Banyan is ready.") && printed.contains("Chat       http://127.0.0.1:"),
        "{printed}"
    );
    assert!(
        printed.contains("\u{1b}[") && printed.contains("stopped") && !printed.contains("{\""),
        "{printed}"
    );
}

#[test]
fn no_color_is_respected() {
    let directory = directory();
    let printed = on_a_terminal(directory.path(), &[("NO_COLOR", "1")]);
    assert!(printed.contains("stopped") && !printed.contains('\u{1b}'), "{printed:?}");
    let err =
        banyan(directory.path(), &["serve", "--nope"]).env("NO_COLOR", "1").output().expect("runs").stderr;
    assert!(!text(&err).contains('\u{1b}'));
}

#[test]
fn the_level_of_the_log_is_a_setting() {
    let directory = directory();
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let busy = other.local_addr().expect("an address").to_string();
    for (level, told) in
        [("off", false), ("error", true), ("warn,banyan=off", false), ("off,banyan::serve=error", true)]
    {
        let mut serve = banyan(directory.path(), &["serve", "--listen", &busy, "--ops-listen=127.0.0.1:0"]);
        let output = serve.env("BANYAN_LOG__LEVEL", level).output().expect("runs");
        assert_eq!(output.status.code(), Some(69));
        assert_eq!(text(&output.stdout).contains("\"level\":\"ERROR\""), told, "{level}");
    }
}

/// What is wrong is said before anything is asked of a server, and with what to do next.
#[test]
fn commands_about_a_cluster_say_what_is_missing() {
    let home = TempDir::new().expect("a directory");
    let home = home.path();
    let none = [
        "error: no server of etcd is named",
        "hint: name some with --etcd URL,… or --config FILE (cluster.etcd); a node without them is alone and owns every room",
    ];
    for arguments in
        [&["ring", "show"][..], &["node", "list"], &["ring", "recover", "--yes"], &["node", "drain", "a"]]
    {
        check(&mut banyan(home, arguments), home, 64, &none);
    }
    for (arguments, want) in [
        (&["ring", "move", "17"][..], "--to <NODE>"),
        (&["ring", "move", "17-3", "--to", "b"], "must be a slot such as 17, or a range such as 100-120"),
        (&["ring", "plan"], "required arguments were not provided"),
        (&["ring", "plan", "--join", "d:0"], "the weight must be a whole number from 1 to 10000"),
        (&["ring", "pin", "1", "--to", "a b"], "a node id has 1 to 64 bytes"),
        (&["ring", "where"], "<ROOM|~USER>"),
        (&["node", "drain"], "<NODE>"),
    ] {
        let output = run(home, arguments);
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {err}");
        assert!(err.contains(want), "{arguments:?}: {err}");
    }
}

#[test]
fn an_etcd_that_is_not_there_is_not_waited_for_for_ever() {
    let home = TempDir::new().expect("a directory");
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let output = run(home.path(), &["ring", "show", "--etcd", &format!("http://127.0.0.1:{port}")]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{err}");
    assert!(
        err.starts_with("error: etcd at ") && err.contains("does not answer") && err.contains("\nhint: "),
        "{err}"
    );
}
