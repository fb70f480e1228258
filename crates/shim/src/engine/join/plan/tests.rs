use super::*;
use serde_json::{Value, json};

fn record() -> Value {
    json!({
        "id": "c", "cgroup_paths": {"": "/x"}, "intel_rdt_path": "",
        "config": {
            "namespaces": [{"type": "NEWNS", "path": ""}, {"type": "NEWPID", "path": ""}],
            "rlimits": [{"type": 7, "hard": 5, "soft": 4}],
            "capabilities": {"Bounding": ["CAP_KILL"], "Ambient": null},
            "mounts": [{"a": 1}], "Hooks": null, "no_new_keyring": false, "no_new_privileges": true,
        },
    })
}

fn process() -> Value {
    json!({
        "user": {"uid": 1, "gid": 2, "additionalGids": [3]}, "args": ["sh", "-c", "x"],
        "env": ["PATH=/bin:/usr/bin", "A=1"], "cwd": "/", "noNewPrivileges": true,
    })
}

fn understood(record: &Value, process: &Value, console: bool) -> Result<(), Why> {
    let record = serde_json::from_value(record.clone()).map_err(|_| "an unknown record")?;
    let process = serde_json::from_value(process.clone()).map_err(|_| "an unknown process")?;
    understands(&record, &process, console)?;
    namespaces(&record.config).map(drop)
}

#[test]
fn only_what_is_understood_is_done_here() {
    assert_eq!(understood(&record(), &process(), false), Ok(()));
    let config = [
        ("apparmor_profile", json!("docker-default")),
        ("process_label", json!("system_u:system_r:container_t")),
        ("personality", json!({"domain": 8})),
        ("scheduler", json!({"policy": "SCHED_FIFO"})),
        ("io_priority", json!({"class": "x"})),
        ("exec_cpu_affinity", json!({})),
        ("intel_rdt", json!({})),
        ("rootless_euid", json!(true)),
        ("rootless_cgroups", json!(true)),
        ("namespaces", json!([{"type": "NEWNS"}, {"type": "NEWUSER"}])),
        ("namespaces", json!([{"type": "NEWNS"}, {"type": "NEWTIME"}])),
        ("namespaces", json!([{"type": "NEWPID"}])),
        ("of_a_later_runtime", json!(1)),
    ];
    for (name, value) in config {
        let mut record = record();
        record["config"][name] = value;
        assert!(understood(&record, &process(), false).is_err(), "{name}");
    }
    let fields = [
        ("apparmorProfile", json!("x")),
        ("selinuxLabel", json!("x")),
        ("scheduler", json!({"policy": "x"})),
        ("ioPriority", json!({})),
        ("terminal", json!(true)),
        ("cwd", json!("")),
        ("cwd", json!("tmp")),
        ("args", json!([])),
        ("args", json!(null)),
        ("user", json!({"uid": 0, "gid": 0, "umask": 7})),
        ("user", json!({"uid": 0, "gid": 0, "username": "www"})),
        ("later", json!(1)),
    ];
    for (name, value) in fields {
        let mut process = process();
        process[name] = value;
        assert!(understood(&record(), &process, false).is_err(), "{name}");
    }
    let mut rootless = record();
    rootless["rootless"] = json!(true);
    assert!(understood(&rootless, &process(), false).is_err());
    let mut terminal = process();
    terminal["terminal"] = json!(true);
    assert_eq!(understood(&record(), &terminal, true), Ok(()));
    assert!(understood(&record(), &process(), true).is_err());
}

#[test]
fn the_environment_is_set_as_one_variable_after_the_other() {
    let given = |list: &[&str]| environment(list.iter().map(|s| (*s).to_owned()).collect());
    let (all, home) = given(&["A=1", "B=2", "A=3", "E="]).expect("plain");
    assert_eq!(all, ["A=3", "B=2", "E=", "HOME="]);
    assert_eq!(home, Some(3));
    let (all, home) = given(&["HOME=", "X=y"]).expect("plain");
    assert_eq!((all.len(), home), (2, Some(0)));
    assert_eq!(given(&["HOME=/h"]).expect("plain").1, None);
    assert!(given(&["nothing"]).is_err());
    assert!(given(&["=x"]).is_err());
}

#[test]
fn programs_are_looked_for_on_the_containers_path() {
    let found = |name: &str, path: &str| {
        let all = candidates(name, &[format!("PATH={path}")])?;
        Ok(all.into_iter().map(|c| c.into_string().expect("text")).collect::<Vec<_>>())
    };
    let both: Result<_, Why> = Ok(vec!["/bin/sh".to_owned(), "/usr/bin/sh".to_owned()]);
    assert_eq!(found("sh", "/bin:/usr/bin"), both);
    assert_eq!(found("sh", "/"), Ok(vec!["/sh".to_owned()]));
    assert_eq!(found("/x/../sh", ""), Ok(vec!["/x/../sh".to_owned()]));
    for (name, path) in [
        ("sh", ""),
        ("sh", "/bin:"),
        ("sh", "bin"),
        ("sh", "/a/../b"),
        ("sh", "/bin/"),
        ("sh", "/a//b"),
        ("./sh", "/bin"),
        ("", "/bin"),
        ("a/b", "/bin"),
    ] {
        assert!(found(name, path).is_err(), "{name} {path}");
    }
}

#[test]
fn capabilities_and_limits_have_the_kernels_numbers() {
    let named = |name: &str| Capabilities {
        bounding: Some(vec![name.to_owned()]),
        ..Capabilities::default()
    };
    let bit = |name| capabilities(Some(&named(name))).map(|sets| sets.bounding);
    assert_eq!(bit("CAP_CHOWN"), Ok(1));
    assert_eq!(bit("CAP_SYS_ADMIN"), Ok(1 << 21));
    assert_eq!(bit("CAP_CHECKPOINT_RESTORE"), Ok(1 << 40));
    assert!(bit("CAP_NONE").is_err() && bit("KILL").is_err());
    let config: Config = serde_json::from_value(record()["config"].clone()).expect("known");
    let limit = |kind: &str| NamedLimit { kind: kind.to_owned(), hard: 9, soft: 8 };
    let container = Limit { resource: 7, soft: 4, hard: 5 };
    assert_eq!(limits(None, &config), Ok(vec![container]));
    let own = Limit { resource: 15, soft: 8, hard: 9 };
    assert_eq!(limits(Some(vec![limit("RLIMIT_RTTIME")]), &config), Ok(vec![own]));
    assert!(limits(Some(vec![limit("RLIMIT_X")]), &config).is_err());
}

#[test]
fn a_filter_is_used_only_where_it_is_all_there_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let with = |value: Value| {
        let config = serde_json::from_value(json!({"seccomp": value}));
        config.expect("known")
    };
    let plain = with(json!({"default_action": 1, "syscalls": [{"name": "x"}]}));
    assert_eq!(seccomp(&Config::default(), dir.path()), Ok(None));
    assert!(seccomp(&plain, dir.path()).is_err());
    std::fs::write(dir.path().join(FILTER_FILE), [0; 8]).expect("written");
    assert_eq!(seccomp(&plain, dir.path()), Ok(Some(vec![0; 8])));
    assert!(seccomp(&with(json!({"flags": ["LOG"]})), dir.path()).is_err());
    assert!(seccomp(&with(json!({"listener_path": "/s"})), dir.path()).is_err());
}
