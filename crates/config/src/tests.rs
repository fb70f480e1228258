use std::time::Duration;

use super::load::{load, merge, parse};
use super::*;

fn parsed(text: &str) -> Loaded {
    parse(text, Flavour::Gantry).unwrap()
}

#[test]
fn defaults_follow_the_program_name() {
    assert_eq!(Flavour::of_program(OsStr::new("/usr/bin/containerd")), Flavour::Containerd);
    assert_eq!(Flavour::of_program(OsStr::new("gantryd")), Flavour::Gantry);
    let ours = Config::defaults(Flavour::Gantry);
    assert_eq!(ours.address(), "/run/gantry/gantry.sock");
    assert_eq!(ours.ttrpc_address(), "/run/gantry/gantry.sock.ttrpc");
    let theirs = Config::defaults(Flavour::Containerd);
    assert_eq!(theirs.root, Path::new("/var/lib/containerd"));
    assert_eq!(theirs.address(), "/run/containerd/containerd.sock");
}

#[test]
fn what_is_printed_reads_back() {
    let config = Config::private("/a", "/b");
    let loaded = parsed(&config.to_toml().unwrap());
    assert_eq!(loaded.config, config);
    assert_eq!(loaded.warnings, Vec::<String>::new());
}

/// What dockerd 20.10 writes for its own containerd: no version, old sections and short names.
#[test]
fn version_less_file_of_dockerd() {
    let loaded = parsed(
        r#"
        root = "/var/lib/docker/containerd/daemon"
        state = "/var/run/docker/containerd/daemon"
        plugin_dir = ""
        disabled_plugins = ["cri"]
        oom_score = 0

        [grpc]
          address = "/var/run/docker/containerd/containerd.sock"
          uid = 0
          gid = 7
          max_recv_message_size = 16777216
          max_send_message_size = 0

        [debug]
          address = "/var/run/docker/containerd/containerd-debug.sock"
          uid = 0
          gid = 0
          level = "warn"

        [metrics]
          address = ""
          grpc_histogram = false

        [cgroup]
          path = ""

        [plugins]
          [plugins.linux]
            shim = "containerd-shim"
            runtime = "runc"
            shim_debug = true
        "#,
    );
    let config = &loaded.config;
    assert_eq!(config.address(), "/var/run/docker/containerd/containerd.sock");
    assert_eq!(config.plugins.grpc.gid, 7);
    assert_eq!(config.plugins.grpc.max_send_message_size, MESSAGE_LEN_MAX);
    assert_eq!(config.plugins.debug.address, "/var/run/docker/containerd/containerd-debug.sock");
    assert_eq!(config.debug.level, "warn");
    assert!(config.is_disabled("io.containerd.grpc.v1", "cri"));
    assert!(config.plugins.other.contains_key("io.containerd.runtime.v1.linux"));
    config.validate().unwrap();
    let unknown: Vec<_> = loaded.warnings.iter().filter(|w| w.contains("unknown key")).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn plugins_move_with_their_versions() {
    let loaded = parsed(
        r#"
        version = 2
        disabled_plugins = ["io.containerd.internal.v1.restart"]
        [plugins."io.containerd.runtime.v2.task"]
          platforms = ["linux/amd64"]
          sched_core = true
        [plugins."io.containerd.internal.v1.restart"]
          interval = "3s"
        "#,
    );
    let config = &loaded.config;
    assert_eq!(config.version, VERSION_MAX);
    assert_eq!(config.plugins.task.platforms, ["linux/amd64"]);
    assert_eq!(config.plugins.shim.env, ["SCHED_CORE=1"]);
    assert_eq!(config.plugins.restart.interval.to_string(), "3s");
    assert!(config.is_disabled("io.containerd.monitor.container.v1", "restart"));
}

#[test]
fn unknown_keys_warn_with_their_path() {
    let loaded = parsed(
        r#"
        version = 3
        colour = "red"
        [debug]
          level = "debug"
          shape = 1
        [plugins."io.containerd.gc.v1.scheduler"]
          pause_threshold = 0.05
          mood = "good"
        [plugins."io.containerd.nri.v1.nri"]
          disable = true
        "#,
    );
    assert_eq!(loaded.config.plugins.gc.pause_threshold, 0.05);
    assert_eq!(loaded.config.plugins.gc.mutation_threshold, 100);
    let text = loaded.warnings.join("\n");
    for path in ["colour", "debug.shape", "plugins.\"io.containerd.gc.v1.scheduler\".mood"] {
        assert!(text.contains(&format!("{path}: unknown key")), "{path} in {text}");
    }
    assert!(text.contains("io.containerd.nri.v1.nri"), "{text}");
    assert_eq!(loaded.warnings.len(), 4, "{text}");
}

#[test]
fn bad_files_are_refused_by_what_is_wrong() {
    for (text, words) in [
        ("version = 5", "expect 1 to 4"),
        ("version = \"x\"", "expect 1 to 4"),
        ("version = 2\nroot = 3", "config"),
        ("root = ", "line 1"),
        ("version = 2\n[debug]\nlevel = []", "config"),
    ] {
        let err = parse(text, Flavour::Gantry).unwrap_err();
        assert!(err.is_invalid_argument(), "{text}: {err}");
        assert!(err.message().contains(words), "{text}: {err}");
    }
    let same = Config { state: "/x".into(), root: "/x".into(), ..Config::private("/a", "/b") };
    assert!(same.validate().unwrap_err().is_invalid_argument());
    let level = parsed("version = 2\n[debug]\nlevel = \"loud\"");
    assert!(level.config.validate().unwrap_err().message().contains("loud"));
    let uri = parsed("version = 2\ndisabled_plugins = [\"cri\"]");
    assert!(uri.config.validate().unwrap_err().message().contains("cri"));
}

#[test]
fn drop_ins_merge_as_documented() {
    let mut base: toml::Table = r#"
        root = "/a"
        oom_score = 5
        required_plugins = ["x.a"]
        [timeouts]
          "t.one" = "1s"
        [plugins."p.a"]
          kept = false
          other = 1
        [debug]
          level = "info"
          format = "json"
    "#
    .parse()
    .unwrap();
    let drop_in: toml::Table = r#"
        root = ""
        oom_score = 7
        required_plugins = ["x.a", "x.b"]
        [timeouts]
          "t.two" = "2s"
        [plugins."p.a"]
          other = 2
        [debug]
          level = "warn"
    "#
    .parse()
    .unwrap();
    merge(&mut base, drop_in);
    assert_eq!(base["root"].as_str(), Some("/a"), "an empty scalar does not override");
    assert_eq!(base["oom_score"].as_integer(), Some(7));
    assert_eq!(base["required_plugins"].as_array().unwrap().len(), 2);
    assert_eq!(base["timeouts"].as_table().unwrap().len(), 2);
    let section = base["plugins"]["p.a"].as_table().unwrap();
    assert_eq!(section.len(), 1, "a section is replaced whole: {section:?}");
    assert_eq!(base["debug"]["level"].as_str(), Some("warn"));
    assert_eq!(base["debug"]["format"].as_str(), Some("json"));
}

#[test]
fn imports_are_followed_once_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    std::fs::create_dir(dir.path().join("conf.d")).unwrap();
    write("main.toml", "version = 3\nimports = [\"conf.d/*.toml\", \"extra.toml\"]\nroot = \"/a\"");
    write("conf.d/10.toml", "version = 2\noom_score = 1\nimports = [\"../main.toml\"]");
    write("conf.d/20.toml", "version = 2\noom_score = 2");
    write("extra.toml", "version = 3\n[debug]\nlevel = \"debug\"");
    let main = dir.path().join("main.toml");
    let loaded = load(&main, Flavour::Gantry).unwrap();
    assert_eq!(loaded.config.oom_score, 2);
    assert_eq!(loaded.config.debug.level, "debug");

    write("extra.toml", "version = 4");
    let err = load(&main, Flavour::Gantry).unwrap_err();
    assert!(err.is_invalid_argument() && err.message().contains("extra.toml"), "{err}");
    std::fs::remove_file(dir.path().join("extra.toml")).unwrap();
    assert!(load(&main, Flavour::Gantry).unwrap_err().is_not_found());
}

#[test]
fn a_missing_file_is_fine_unless_it_was_named() {
    let missing = Path::new("/nonexistent/gantry/config.toml");
    assert!(Config::load(Some(missing), Flavour::Gantry).unwrap_err().is_not_found());
}

#[test]
fn durations_read_as_in_go() {
    for (text, value) in [
        ("0", Duration::ZERO),
        ("0s", Duration::ZERO),
        ("1m30s", Duration::from_secs(90)),
        ("1.5h", Duration::from_secs(5400)),
        ("100ms", Duration::from_millis(100)),
        ("2us", Duration::from_micros(2)),
    ] {
        let parsed: GoDuration = text.parse().unwrap();
        assert_eq!(parsed.duration(), value, "{text}");
        assert_eq!(parsed.to_string(), text);
    }
    for bad in ["", "5", "s", "1x", "-1s", "1.2.3s", "+"] {
        assert!(bad.parse::<GoDuration>().is_err(), "{bad}");
    }
    let loaded = parsed("version = 2\n[timeouts]\n\"io.containerd.timeout.task.state\" = \"3s\"");
    let timeout = |name| loaded.config.timeout(name, Duration::ZERO);
    assert_eq!(timeout("task.state"), Duration::from_secs(3));
    assert_eq!(timeout("shim.load"), Duration::from_secs(5), "defaults stay beside it");
}

/// What `config migrate` and a start do with any text: an error or a configuration that prints
/// and reads back the same, never a panic.
fn survives(text: &str) {
    if let Ok(loaded) = parse(text, Flavour::Containerd) {
        let printed = loaded.config.to_toml().unwrap();
        let again = parsed(&printed);
        assert_eq!(again.config, loaded.config, "{text}");
        let _ = loaded.config.validate();
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_survived(text in "\\PC{0,200}") {
        survives(&text);
    }

    #[test]
    fn any_keys_are_survived(
        version in 0..6_i64,
        section in "(grpc|debug|plugins|timeouts|imports|ttrpc|metrics|plugins\\.cri|plugins\\.\"a.b\")",
        key in "(address|uid|level|tcp_address|version|sched_core|\"io.containerd.timeout.x\")",
        value in "(1|-1|true|\"\"|\"x\"|\"5s\"|\\[\\]|\\[1\\]|\\{\\}|1979-05-27)",
    ) {
        survives(&format!("version = {version}\n[{section}]\n{key} = {value}\n"));
        survives(&format!("version = {version}\n{section} = {value}\n"));
    }
}
