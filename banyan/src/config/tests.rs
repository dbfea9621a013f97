//! What a configuration file, variables and flags make, and what is said of bad ones.

use std::fs;

use proptest::prelude::*;
use toml::Table;

use super::*;

fn flag(name: &'static str, section: &'static str, key: &'static str, value: &str) -> Flag {
    Flag { name, section, key, value: value.into() }
}

/// Loads a file's text, variables (`NAME=value`) and flags.
fn load_all(text: Option<&str>, variables: &[&str], flags: &[Flag]) -> Result<Loaded, Vec<String>> {
    let mut loader = Loader::default();
    if let Some(text) = text {
        file::parse(&mut loader, "b.toml", text);
    }
    let pairs = variables.iter().filter_map(|pair| pair.split_once('='));
    environment::read(&mut loader, pairs.map(|(name, value)| (name.into(), value.into())));
    for Flag { name, section, key, value } in flags {
        loader.set(Origin::Flag(name), section, key, &Given::Raw(value.to_str().unwrap()));
    }
    loader.finish().map_err(|Problems(lines)| lines)
}

#[track_caller]
fn check_file(text: &str, want: &[&str]) {
    assert_eq!(load_all(Some(text), &[], &[]).map(|_| ()).unwrap_err(), want);
}

#[track_caller]
fn check_variable(pair: &str, want: &[&str]) {
    assert_eq!(load_all(None, &[pair], &[]).map(|_| ()).unwrap_err(), want);
}

#[test]
fn nothing_is_needed() {
    let loaded = load_all(None, &[], &[]).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.origin("server", "listen"), Origin::Default);
    assert_eq!(load_all(Some(""), &["HOME=/", "BANYANS=1"], &[]).unwrap().config, Config::default());
}

#[test]
fn the_committed_example_is_the_one_that_genconfig_prints() {
    let committed = include_str!("../../../deploy/banyan.toml");
    assert!(
        committed == example(),
        "deploy/banyan.toml is not what `banyan genconfig` prints: run `banyan genconfig > deploy/banyan.toml`"
    );
}

/// By its name alone, in the code that wires the node: enough to catch a key that nothing reads.
#[test]
fn every_key_is_read_by_somebody() {
    let readers = [
        include_str!("../node.rs"),
        include_str!("../node/alone.rs"),
        include_str!("../node/gateways.rs"),
        include_str!("../node/store.rs"),
        include_str!("../cluster.rs"),
        include_str!("mod.rs"),
        include_str!("../schema_cmd.rs"),
        include_str!("../serve.rs"),
        include_str!("../telemetry.rs"),
    ];
    for section in Config::default().sections() {
        for key in section.keys() {
            let field = format!(".{}", key.name);
            let is_read = readers.iter().any(|text| {
                text.match_indices(&field).any(|(at, _)| {
                    !text[at + field.len()..].starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                })
            });
            assert!(is_read, "{}.{} is a key that nothing reads", section.name(), key.name);
        }
    }
}

#[test]
fn the_example_loads_and_is_the_defaults() {
    let loaded = load_all(Some(&example()), &[], &[]).unwrap();
    assert_eq!(loaded.config, Config::default());
    // Parsed by TOML's own rules, so that a key that was only mentioned in a comment does not count.
    let table: Table = example().parse().unwrap();
    let mut keys = 0;
    for section in Config::default().sections() {
        for key in section.keys() {
            assert!(
                table[section.name()].get(key.name).is_some(),
                "{}.{} is not in the example",
                section.name(),
                key.name
            );
            assert!(
                !key.doc.is_empty() && key.doc.iter().any(|line| line.len() > 20),
                "{}.{} is not explained",
                section.name(),
                key.name
            );
            assert!(matches!(loaded.origin(section.name(), key.name), Origin::File { .. }));
            keys += 1;
        }
    }
    assert_eq!(keys, table.values().map(|section| section.as_table().map_or(0, Table::len)).sum::<usize>());
}

#[test]
fn what_checkconfig_prints_can_be_loaded_again() {
    let variables =
        ["BANYAN_GATEWAY__TRUSTED_PROXIES=10.0.0.0/8,fd00::1", "BANYAN_SERVER__DATA_DIR=/a \"b\"\\c"];
    let loaded = load_all(Some("[limits]\nconnections = 5000\n"), &variables, &[]).unwrap();
    let again = load_all(Some(&text(&loaded)), &[], &[]).unwrap();
    assert_eq!(again.config, loaded.config);
    assert!(
        text(&loaded).contains("connections = 5000                           # b.toml:2\n"),
        "{}",
        text(&loaded)
    );
}

#[test]
fn checkconfig_names_each_origin() {
    let text_of_file = "[server]\nlisten = \"1.1.1.1:1\"\nnode_id = \"file\"\n\n[log]\nlevel = \"warn\"\n";
    let variables = ["BANYAN_SERVER__NODE_ID=variable", "BANYAN_LOG__FORMAT=json"];
    let flags = [flag("--log-format", "log", "format", "text")];
    let loaded = load_all(Some(text_of_file), &variables, &flags).unwrap();
    let values = json(&loaded);
    for (section, key, value, origin) in [
        ("server", "listen", "1.1.1.1:1", "b.toml:2"),
        ("server", "node_id", "variable", "BANYAN_SERVER__NODE_ID"),
        ("log", "level", "warn", "b.toml:6"),
        ("log", "format", "text", "--log-format"),
        ("server", "ops_listen", "127.0.0.1:9000", "default"),
    ] {
        assert_eq!(values[section][key], serde_json::json!({ "value": value, "origin": origin }));
    }
    assert_eq!(values["limits"]["connections"]["value"], 100_000);
    assert_eq!(values["gateway"]["allowed_origins"]["value"], serde_json::json!([]));
}

#[test]
fn every_key_can_be_set_by_its_variable() {
    let defaults = Config::default();
    let mut pairs = Vec::new();
    for section in defaults.sections() {
        for key in section.keys() {
            let value = match section.show(key.name).unwrap() {
                kind::Shown::Text(text) => text,
                kind::Shown::Number(number) => number.to_string(),
                kind::Shown::List(items) => items.join(","),
            };
            pairs.push(format!("{}={value}", environment::variable(section.name(), key.name)));
        }
    }
    let pairs: Vec<&str> = pairs.iter().map(String::as_str).collect();
    let loaded = load_all(None, &pairs, &[]).unwrap();
    assert_eq!(loaded.config, defaults);
    assert_eq!(loaded.origins.len(), pairs.len());
    assert!(loaded.origins.values().all(|origin| matches!(origin, Origin::Variable(_))));
}

#[test]
fn unknown_names_in_the_file() {
    check_file(
        "[server]\nlisen = \"1.1.1.1:1\"",
        &["b.toml:2: server.lisen is no key; did you mean server.listen?"],
    );
    check_file(
        "[sever]\nlisten = \"1.1.1.1:1\"",
        &["b.toml:1: [sever] is no section; did you mean [server]?"],
    );
    check_file(
        "[server]\n\nping_interval = \"5s\"",
        &["b.toml:3: server.ping_interval is no key; did you mean gateway.ping_interval?"],
    );
    check_file(
        "[server]\nping_intervall = \"5s\"",
        &["b.toml:2: server.ping_intervall is no key; did you mean gateway.ping_interval?"],
    );
    check_file("[tls]\nciphers = \"x\"", &["b.toml:2: tls.ciphers is no key; [tls] has cert, key"]);
    check_file("listen = \"1.1.1.1:1\"", &["b.toml:1: listen is no key; did you mean listen in [server]?"]);
    check_file("zzzzzzzz = 1", &["b.toml:1: zzzzzzzz is no key; keys stand in sections such as [server]"]);
    check_file(
        "[etc]\nurl = 1",
        &[
            "b.toml:1: [etc] is no section; there are server, tls, accounts, rooms, limits, gateway, storage, cluster, peer, scylla, log",
        ],
    );
    check_file(
        "server.lisen = \"1.1.1.1:1\"",
        &["b.toml:1: server.lisen is no key; did you mean server.listen?"],
    );
    check_file(
        "[server]\n\"a\\nb\" = 1",
        &[
            "b.toml:2: server.a\\nb is no key; [server] has listen, ops_listen, admin_token, admin_token_file, data_dir, node_id, drain_deadline",
        ],
    );
}

#[test]
fn wrong_values_in_the_file() {
    check_file(
        "[limits]\nconnections = \"many\"",
        &[
            "b.toml:2: limits.connections = \"many\" is not possible: must be a whole number from 1 to 10000000",
        ],
    );
    check_file(
        "[limits]\nconnections = 0",
        &["b.toml:2: limits.connections = 0 is not possible: must be a whole number from 1 to 10000000"],
    );
    check_file(
        "[limits]\nconnections = 1.5",
        &[
            "b.toml:2: limits.connections = a number with a point is not possible: must be a whole number from 1 to 10000000",
        ],
    );
    check_file(
        "[limits]\nconnections = 0xffffffffffffffffff",
        &[
            "b.toml:2: limits.connections = a number beyond 64 bits is not possible: must be a whole number from 1 to 10000000",
        ],
    );
    check_file(
        "[limits]\nframe_bytes = \"1MiB\"",
        &[
            "b.toml:2: limits.frame_bytes = \"1MiB\" is not possible: must be a size from 4KiB to 64KiB, such as \"64KiB\"",
        ],
    );
    check_file(
        "[gateway]\nping_interval = 25",
        &[
            "b.toml:2: gateway.ping_interval = 25 is not possible: must be a duration from 1s to 1h, such as \"30s\"",
        ],
    );
    check_file(
        "[gateway]\nworkers = []",
        &["b.toml:2: gateway.workers = [] is not possible: must be \"auto\" or a whole number from 1 to 256"],
    );
    check_file(
        "[accounts]\nsignup = \"maybe\"",
        &["b.toml:2: accounts.signup = \"maybe\" is not possible: must be \"on\" or \"off\""],
    );
    check_file(
        "[log]\nformat = \"xml\"",
        &["b.toml:2: log.format = \"xml\" is not possible: must be one of \"auto\", \"text\", \"json\""],
    );
    check_file(
        "[server]\nlisten = \"localhost\"",
        &[
            "b.toml:2: server.listen = \"localhost\" is not possible: must be an IP address with a port, such as \"127.0.0.1:8000\" or \"[::]:8000\"",
        ],
    );
    check_file(
        "[server.listen]\nx = 1",
        &[
            "b.toml:1: server.listen = a table is not possible: must be an IP address with a port, such as \"127.0.0.1:8000\" or \"[::]:8000\"",
        ],
    );
    check_file("server = 5", &["b.toml:1: server is a section: write [server] and its keys below"]);
}

#[test]
fn what_is_not_toml() {
    for (text, line) in [
        ("[server\n", "b.toml:1: is not TOML: "),
        ("[server]\nlisten = \n", "b.toml:2: is not TOML: "),
        ("[log]\nlevel = \"info\"\nlevel = \"warn\"\n", "b.toml:3: is not TOML: duplicate key"),
    ] {
        let lines = load_all(Some(text), &[], &[]).map(|_| ()).unwrap_err();
        assert!(lines.iter().all(|line| !line.contains('\n')));
        assert!(lines[0].starts_with(line), "{lines:?}");
    }
}

#[test]
fn several_problems_are_told_at_once_in_order() {
    let text = "[server]\nport = 80\n[log]\nlevel = \"loud\"\n";
    let lines =
        load_all(Some(text), &["BANYAN_LOG__LEVL=debug"], &[flag("--listen", "server", "listen", "here")])
            .map(|_| ())
            .unwrap_err();
    let want = [
        "b.toml:2: server.port is no key; [server] has listen, ops_listen, admin_token, admin_token_file, data_dir, node_id, drain_deadline",
        "b.toml:4: log.level = \"loud\" is not possible: must be off, error, warn, info, debug or trace, also per part as in \"info,banyan_gateway=debug\"",
        "BANYAN_LOG__LEVL: is no setting; did you mean BANYAN_LOG__LEVEL?",
        "--listen: \"here\" is not possible: must be an IP address with a port, such as \"127.0.0.1:8000\" or \"[::]:8000\"",
    ];
    assert_eq!(lines, want);
}

#[test]
fn variables() {
    let unknown = "is no setting; they are named BANYAN_SECTION__KEY, as in BANYAN_SERVER__LISTEN";
    check_variable(
        "BANYAN_SERVER_LISTEN=1.1.1.1:1",
        &["BANYAN_SERVER_LISTEN: is no setting; did you mean BANYAN_SERVER__LISTEN?"],
    );
    check_variable(
        "BANYAN_SERVER__LISTN=1.1.1.1:1",
        &["BANYAN_SERVER__LISTN: is no setting; did you mean BANYAN_SERVER__LISTEN?"],
    );
    check_variable(
        "BANYAN_server__listen=1.1.1.1:1",
        &["BANYAN_server__listen: is no setting; did you mean BANYAN_SERVER__LISTEN?"],
    );
    check_variable("BANYAN_REDIS__URL=redis://user:secret@x", &[&format!("BANYAN_REDIS__URL: {unknown}")]);
    check_variable("BANYAN_=", &[&format!("BANYAN_: {unknown}")]);
    check_variable(
        "BANYAN_LIMITS__CONNECTIONS=many",
        &["BANYAN_LIMITS__CONNECTIONS: \"many\" is not possible: must be a whole number from 1 to 10000000"],
    );
    let service =
        ["BANYAN_SERVICE_HOST=10.0.0.1", "BANYAN_PORT=tcp://10.0.0.1:80", "BANYAN_PORT_80_TCP_ADDR=10.0.0.1"];
    assert_eq!(load_all(None, &service, &[]).unwrap().config, Config::default());
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_text() {
    use std::os::unix::ffi::OsStringExt;
    let pair = ("BANYAN_SERVER__NODE_ID".into(), OsString::from_vec(vec![0xff]));
    let Problems(lines) = load(None, [pair], &[]).unwrap_err();
    assert_eq!(lines, ["BANYAN_SERVER__NODE_ID: is not UTF-8 text"]);
}

#[test]
fn later_layers_win() {
    let text = "[server]\nnode_id = \"file\"\n";
    let variable = ["BANYAN_SERVER__NODE_ID=variable"];
    let flags = [flag("--node-id", "server", "node_id", "flag")];
    for (variables, flags, want) in [
        (&[][..], &[][..], "file"),
        (&variable, &[], "variable"),
        (&variable, &flags, "flag"),
        (&[], &flags, "flag"),
    ] {
        assert_eq!(load_all(Some(text), variables, flags).unwrap().config.server.node_id, want);
    }
}

#[test]
fn an_empty_variable_takes_a_value_of_the_file_back() {
    let text = "[tls]\ncert = \"c\"\nkey = \"k\"\n";
    let loaded = load_all(Some(text), &["BANYAN_TLS__CERT=", "BANYAN_TLS__KEY="], &[]).unwrap();
    assert_eq!(loaded.config, Config::default());
}

#[test]
fn keys_that_do_not_go_together() {
    check_file(
        "[server]\nlisten = \"0.0.0.0:9000\"",
        &["b.toml:2: server.listen and server.ops_listen are the same port: choose two"],
    );
    check_file(
        "[server]\nadmin_token = \"0123456789abcdef\"\nadmin_token_file = \"t\"",
        &["b.toml:3: server.admin_token and server.admin_token_file are both set: choose one"],
    );
    check_file(
        "[server]\nadmin_token = \"hunter2\"",
        &[
            "b.toml:2: server.admin_token must have 16 to 256 visible characters of ASCII, without spaces: `openssl rand -hex 32` makes a good one",
        ],
    );
    check_file(
        "[tls]\ncert = \"c.pem\"",
        &["b.toml:2: tls.cert and tls.key go together: set both or neither"],
    );
    check_file(
        "[limits]\nframe_bytes = \"8KiB\"",
        &[
            "b.toml:2: limits.frame_bytes must hold text_bytes, data_bytes and 1KiB around them: raise it or lower those",
        ],
    );
    check_file(
        "[gateway]\nring_bytes_per_room = \"1GiB\"",
        &["b.toml:2: gateway.ring_bytes_per_room is above ring_bytes_per_worker: lower it or raise that"],
    );
    check_file(
        "[gateway]\nproxy_protocol = true",
        &[
            "b.toml:2: gateway.proxy_protocol is on and gateway.trusted_proxies is empty: name the balancer's addresses there",
        ],
    );
    let same =
        load_all(Some("[server]\nlisten = \"1.1.1.1:1\""), &["BANYAN_SERVER__OPS_LISTEN=1.1.1.1:1"], &[])
            .map(|_| ())
            .unwrap_err();
    assert_eq!(
        same,
        ["BANYAN_SERVER__OPS_LISTEN: server.listen and server.ops_listen are the same port: choose two"]
    );
    let either = "[server]\nlisten = \"127.0.0.1:0\"\nops_listen = \"127.0.0.1:0\"\n";
    assert!(load_all(Some(either), &[], &[]).is_ok(), "port 0 is a port of its own each time");
}

#[test]
fn files_that_cannot_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("b.toml");
    let told = |path: &Path| {
        let Problems(lines) = load(Some(path), [], &[]).unwrap_err();
        assert_eq!(lines.len(), 1);
        lines[0].replace(&directory.path().display().to_string(), "D")
    };
    assert_eq!(told(&path), "D/b.toml:1: cannot read the file: no such file or directory");
    assert_eq!(told(directory.path()), "D:1: cannot read the file: is a directory");
    fs::write(&path, [0xff, 0xfe]).unwrap();
    assert_eq!(told(&path), "D/b.toml:1: is not UTF-8 text");
    fs::write(&path, vec![b'#'; 1024 * 1024 + 1]).unwrap();
    assert_eq!(told(&path), "D/b.toml:1: is larger than 1MiB: this is no configuration");
}

proptest! {
    /// Whatever stands in the file: no panic, and each problem is one line that says where.
    #[test]
    fn any_text_is_answered_in_lines(text in "([a-z\\[\\]=\"'.#{}\n\\\\ 0-9\u{0}é]|server|listen|\\[log\\]){0,60}") {
        if let Err(lines) = load_all(Some(&text), &[], &[]) {
            prop_assert!(!lines.is_empty());
            for line in lines {
                prop_assert!(line.starts_with("b.toml:") && !line.chars().any(char::is_control), "{line:?}");
            }
        }
    }
}
