use proptest::prelude::*;

use super::*;

fn hosts_of(text: &str, registry: &str) -> Vec<Host> {
    parse_hosts_toml(text, Path::new("/etc/certs.d/x"), registry, None).unwrap()
}

#[test]
fn defaults_follow_the_registry() {
    let of = |registry: &str| Host::default_for(registry, None).origin();
    assert_eq!(of("docker.io"), "https://registry-1.docker.io");
    assert_eq!(of("quay.io"), "https://quay.io");
    assert_eq!(of("localhost:5000"), "http://localhost:5000");
    assert_eq!(of("127.0.0.1:5000"), "http://127.0.0.1:5000");
    assert_eq!(of("[::1]:5000"), "http://[::1]:5000");
    assert_eq!(of("127.0.0.1:443"), "https://127.0.0.1:443");
    assert_eq!(of("localhost"), "https://localhost");
    assert_eq!(Host::default_for("quay.io", Some(true)).origin(), "http://quay.io");
}

#[test]
fn reads_every_key_in_order() {
    let text = r#"
        server = "https://registry-1.docker.io"
        [host."http://zeta.example:5000"]
          capabilities = ["pull", "resolve"]
          ca = "ca.pem"
          client = [["c.cert", "c.key"], "both.pem"]
          skip_verify = true
          dial_timeout = "1m1.5s"
          [host."http://zeta.example:5000".header]
            x-one = "a"
            x-two = ["b", "c"]
        [host."alpha.example/mirror"]
          ca = ["/abs/ca.pem", "sub/ca.pem"]
          client = "both.pem"
        [host."https://beta.example/own/path"]
          override_path = true
    "#;
    let hosts = hosts_of(text, "docker.io");
    let origins: Vec<String> = hosts.iter().map(|h| h.origin() + &h.path).collect();
    assert_eq!(
        origins,
        [
            "http://zeta.example:5000/v2",
            "https://alpha.example/mirror/v2",
            "https://beta.example/own/path",
            "https://registry-1.docker.io/v2",
        ]
    );
    let zeta = &hosts[0];
    assert!(zeta.capabilities.pull && zeta.capabilities.resolve && !zeta.capabilities.push);
    assert_eq!(zeta.tls.ca, [PathBuf::from("/etc/certs.d/x/ca.pem")]);
    assert_eq!(zeta.tls.client[0].1, Some(PathBuf::from("/etc/certs.d/x/c.key")));
    assert_eq!(zeta.tls.client[1], (PathBuf::from("/etc/certs.d/x/both.pem"), None));
    assert!(zeta.tls.skip_verify);
    assert_eq!(zeta.dial_timeout, Some(Duration::from_millis(61_500)));
    let pairs = [("x-one", "a"), ("x-two", "b"), ("x-two", "c")];
    assert_eq!(zeta.header, pairs.map(|(n, v)| (n.to_owned(), v.to_owned())));
    assert_eq!(zeta.namespace.as_deref(), Some("docker.io"));
    assert_eq!(hosts[1].tls.ca[0], PathBuf::from("/abs/ca.pem"));
    assert_eq!(hosts[3].namespace, None);
    assert_eq!(hosts[3].capabilities, Capabilities::ALL);
}

#[test]
fn without_server_the_registry_itself_is_last() {
    let hosts = hosts_of("[host.\"https://m.example\"]\n", "localhost:5000");
    assert_eq!(hosts[1].origin(), "http://localhost:5000");
    let only = hosts_of("skip_verify = true\ncapabilities = [\"pull\"]\n", "quay.io");
    assert_eq!(only.len(), 1);
    assert!(only[0].tls.skip_verify && !only[0].capabilities.push);
}

#[test]
fn errors_name_the_key() {
    for (text, part) in [
        ("server = 1", "server"),
        ("server = \"ftp://x\"", "scheme"),
        ("server = \"https://u:p@x\"", "credentials"),
        ("host = 1", "host"),
        ("[host]\nx = 1", "host.\"x\""),
        ("[host.\"https://x\"]\ncapabilities = [\"fly\"]", "fly"),
        ("[host.\"https://x\"]\ncapabilities = 1", "capabilities"),
        ("[host.\"https://x\"]\nca = 1", "ca"),
        ("[host.\"https://x\"]\nclient = [[\"a\"]]", "client"),
        ("[host.\"https://x\"]\nskip_verify = \"yes\"", "skip_verify"),
        ("[host.\"https://x\"]\nheader = {x = 1}", "header"),
        ("[host.\"https://x\"]\nheader = {\"x y\" = \"1\"}", "header"),
        ("[host.\"https://x\"]\ndial_timeout = \"1\"", "dial_timeout"),
        ("[host.\"https://x\"]\ndial_timeout = \"\"", "dial_timeout"),
        ("server = \"https://x\"\nbroken", "line 2"),
    ] {
        let err = parse_hosts_toml(text, Path::new("/"), "r", None).unwrap_err();
        assert!(err.is_invalid_argument(), "{text}");
        assert!(err.message().contains(part), "{text}: {err}");
    }
}

#[test]
fn finds_the_directory_in_order() {
    let root = tempfile::tempdir().unwrap();
    let hosts = Hosts::new(HostsOptions {
        config_dirs: vec![root.path().join("absent"), root.path().to_owned()],
        ..HostsOptions::default()
    });
    let first = || hosts.lookup("reg.example:5000").unwrap()[0].origin();
    assert_eq!(first(), "https://reg.example:5000");
    for (dir, url) in [
        ("_default", "https://fallback.example"),
        ("reg.example:5000", "https://colon.example"),
        ("reg.example_5000_", "https://underscore.example"),
    ] {
        std::fs::create_dir(root.path().join(dir)).unwrap();
        let text = format!("[host.\"{url}\"]\n");
        std::fs::write(root.path().join(dir).join("hosts.toml"), text).unwrap();
        assert_eq!(first(), url);
    }
    assert!(hosts.lookup("../etc").unwrap_err().is_invalid_argument());
}

#[test]
fn falls_back_to_certificate_files() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("reg.example");
    std::fs::create_dir(&dir).unwrap();
    for name in ["b.crt", "a.crt", "client.cert", "client.key", "note.txt"] {
        std::fs::write(dir.join(name), "x").unwrap();
    }
    let config_dirs = vec![root.path().to_owned()];
    let hosts = Hosts::new(HostsOptions { config_dirs, ..HostsOptions::default() });
    for toml in [None, Some("not = [toml")] {
        if let Some(text) = toml {
            std::fs::write(dir.join("hosts.toml"), text).unwrap();
        }
        let found = hosts.lookup("reg.example").unwrap();
        assert_eq!(found[0].origin(), "https://reg.example");
        assert_eq!(found[0].tls.ca, [dir.join("a.crt"), dir.join("b.crt")]);
        assert_eq!(found[0].tls.client, [(dir.join("client.cert"), Some(dir.join("client.key")))]);
    }
    std::fs::remove_file(dir.join("client.key")).unwrap();
    assert!(hosts.lookup("reg.example").unwrap_err().message().contains("client.key"));
}

proptest! {
    #[test]
    fn any_text_parses_or_is_refused(text in "\\PC*") {
        let _ = parse_hosts_toml(&text, Path::new("/"), "r.example", None);
    }

    #[test]
    fn any_host_table_parses_or_is_refused(url in "[a-z:/.@%\\[\\]0-9]{0,20}", value in "[a-z0-9\"\\[\\],. ]{0,12}") {
        for key in ["capabilities", "ca", "client", "skip_verify", "header", "dial_timeout"] {
            let text = format!("[host.\"{url}\"]\n{key} = {value}\n");
            let parsed = parse_hosts_toml(&text, Path::new("/"), "r.example", None);
            if let Err(e) = parsed {
                prop_assert!(e.is_invalid_argument(), "{}", e);
            }
        }
    }
}
