//! How a pull would go, told without pulling; and credentials that docker keeps.

use std::fs;
use std::path::Path;

use gantry_testkit::{
    Certificates, Daemon, DaemonKind, Image, Registry, Reply, StubRegistry, TlsRegistry,
};

use crate::rig::{Client, Rig};

/// A hosts directory in which `mirror` is asked before `registry`.
fn hosts_dir(dir: &Path, registry: &str, mirror: &str) -> String {
    let of = dir.join("hosts").join(registry);
    fs::create_dir_all(&of).unwrap();
    let text = format!("server = \"http://{registry}\"\n[host.\"http://{mirror}\"]\n");
    fs::write(of.join("hosts.toml"), text).unwrap();
    dir.join("hosts").to_str().unwrap().to_owned()
}

#[test]
fn root_mirrors_and_credentials_are_told_without_secrets() {
    let rig = Rig::new(DaemonKind::Gantryd, Client::Gantry);
    let dir = tempfile::tempdir().unwrap();
    let (registry, mirror) = (Registry::with_password(), StubRegistry::start());
    let image = Image::builder().layers(2).build();
    let reference = image.push(&registry, "private:1");
    let hosts = hosts_dir(dir.path(), registry.host(), mirror.host());
    let user = format!("{}:{}", Registry::USER, Registry::PASSWORD);
    let explain = ["images", "explain", "--hosts-dir", &hosts];
    let said = rig.client.ok(explain.into_iter().chain(["--user", &user, &reference]));
    let digest = image.top().digest.to_string();
    for text in [
        "credentials  --user",
        &format!("1. http://{}  mirror: pull, resolve, push", mirror.host()),
        &format!("2. http://{}  the registry", registry.host()),
        "404 HTTP/1.1",
        &format!("http://{} passed over: 404 Not Found", mirror.host()),
        "wants to know who we are: Basic realm=",
        &format!("told http://{}: password", registry.host()),
        &format!("stands for   {digest}"),
        "layers ",
    ] {
        assert!(said.contains(text), "no {text:?} in:\n{said}");
    }
    assert!(!said.contains(Registry::PASSWORD), "{said}");
    assert_eq!(rig.client.ok(["content", "ls", "-q"]), "", "nothing is stored");

    // Each step is a line of JSON as well, and a way that leads nowhere is told to its end.
    let json = rig.client.with_global("--format=json");
    let output = json.run(explain.into_iter().chain([reference.as_str()]));
    assert_ne!(output.code, 0);
    let steps: Vec<serde_json::Value> =
        output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let has = |step: &str| steps.iter().any(|s| s["step"] == step);
    assert!(has("hosts") && has("challenged") && has("skipped"), "{}", output.stdout);
    assert!(output.stderr.contains("401"), "{}", output.stderr);
}

/// The daemon that would pull knows hosts of its own: they are the ones that are told.
#[test]
fn root_the_hosts_of_the_daemon_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, mirror) = (Registry::start(), StubRegistry::start());
    let hosts = hosts_dir(dir.path(), registry.host(), mirror.host());
    let config = format!("[plugins.'io.containerd.transfer.v1.local']\nconfig_path = {hosts:?}\n");
    let rig = Rig::with(Daemon::gantryd().config(&config).start(), Client::Gantry);
    let reference = Image::busybox().push(&registry, "told:1");
    let said = rig.client.ok(["images", "explain", &reference]);
    for text in [
        &format!("hosts dir    {hosts} (the daemon's)"),
        &format!("1. http://{}  mirror", mirror.host()),
    ] {
        assert!(said.contains(text), "no {text:?} in:\n{said}");
    }
}

/// What goes to a registry is shown on request, by the daemon's transfers as by this program's.
#[test]
fn root_requests_are_shown_without_secrets() {
    let rig = Rig::new(DaemonKind::Gantryd, Client::Gantry);
    let registry = Registry::with_password();
    let reference = Image::busybox().push(&registry, "shown:1");
    let user = format!("{}:{}", Registry::USER, Registry::PASSWORD);
    let host = registry.host();
    let run = |command: &str, flags: &[&str]| {
        let fixed = ["images", command, "--plain-http", "--user", &user];
        let output = rig.client.run(fixed.iter().chain(flags).chain([&reference.as_str()]));
        assert_eq!(output.code, 0, "{command} {flags:?}: {}", output.stderr);
        assert!(!output.stderr.contains(Registry::PASSWORD), "{}", output.stderr);
        assert!(!output.stderr.contains("Z2FudHJ5"), "{}", output.stderr);
        output.stderr
    };
    let (heads, steps) = ("authorization: Basic <hidden>", format!("told http://{host}: password"));
    for command in ["pull", "push"] {
        for way in [&[][..], &["--local"]] {
            let shown = run(command, &[&["--http-dump"][..], way].concat());
            let address = format!("http://{host}/v2/shown/manifests/1");
            for text in [heads, "< 401 Unauthorized HTTP/1.1", &address] {
                assert!(shown.contains(text), "{command} {way:?}: no {text:?} in:\n{shown}");
            }
            assert!(!shown.contains(&steps), "{shown}");
            let shown = run(command, &[&["--http-trace"][..], way].concat());
            assert!(shown.contains(&steps) && !shown.contains(heads), "{command} {way:?}: {shown}");
            let quiet = run(command, way);
            assert!(!quiet.contains("http://"), "{quiet}");
        }
    }
}

/// Certificates of the client are for its own requests.
#[test]
fn root_tls_files_on_the_command_line() {
    let rig = Rig::new(DaemonKind::Gantryd, Client::Gantry);
    let dir = tempfile::tempdir().unwrap();
    let files = Certificates::make();
    let registry = TlsRegistry::start(&files, true);
    let reference = format!("{}/tls:1", registry.host());
    let archive = dir.path().join("image.tar");
    Image::busybox().write_oci_tar(&archive, &reference);
    let archive = archive.to_str().unwrap().to_owned();
    rig.client.ok(["images", "import", "--local", "--no-unpack", &archive]);
    let path = |name: &str| files.path(name).to_str().unwrap().to_owned();
    let (ca, cert, key) = (path("ca.crt"), path("client.crt"), path("client.key"));
    let flags = ["--tlscacert", &ca, "--tlscert", &cert, "--tlskey", &key];
    let images = |command: &'static str, flags: &[&str]| {
        rig.client.run(["images", command].iter().chain(flags).chain([&reference.as_str()]))
    };
    let refused = images("push", &["--tlscacert", &ca]);
    assert_ne!(refused.code, 0, "the registry wants a certificate of the client");
    let pushed = images("push", &flags);
    assert_eq!(pushed.code, 0, "{}", pushed.stderr);
    let exported = dir.path().join("exported.tar");
    rig.client.ok(["images", "export", "--local", exported.to_str().unwrap(), &reference]);
    rig.client.ok(["images", "rm", "--sync", &reference]);
    assert_ne!(images("pull", &[]).code, 0);
    let pulled = images("pull", &flags);
    assert_eq!(pulled.code, 0, "{}", pulled.stderr);
    assert_eq!(rig.client.ok(["run", "--rm", &reference, "c1", "echo", "hi"]), "hi\n");
    rig.client.ok(["images", "rm", "--sync", &reference]);
    rig.client.ok(["images", "import", "--local", exported.to_str().unwrap()]);
    assert_eq!(rig.client.ok(["run", "--rm", &reference, "c2", "echo", "hi"]), "hi\n");
}

/// What docker keeps for a registry is for that registry: a mirror that asks is told nothing.
#[test]
fn root_docker_credentials_go_to_their_host_alone() {
    let mut rig = Rig::new(DaemonKind::Gantryd, Client::Gantry);
    let dir = tempfile::tempdir().unwrap();
    let (registry, mirror) = (Registry::with_password(), StubRegistry::start());
    let reference = Image::busybox().push(&registry, "private:1");
    mirror.reply("/v2/private/manifests/1", Reply::challenge("Basic realm=\"mirror\""));
    let hosts = hosts_dir(dir.path(), registry.host(), mirror.host());
    // "gantry:s3cret:x"
    let auth = format!(
        "{{\"auths\": {{\"{}\": {{\"auth\": \"Z2FudHJ5OnMzY3JldDp4\"}}}}}}",
        registry.host()
    );
    fs::write(dir.path().join("config.json"), auth).unwrap();
    let home = dir.path().to_str().unwrap();
    // Long before it runs: a program that is being written cannot.
    let helper = dir.path().join("docker-credential-test");
    let text = "#!/bin/sh\nread server; echo \"{\\\"ServerURL\\\":\\\"$server\\\",\
                \\\"Username\\\":\\\"gantry\\\",\\\"Secret\\\":\\\"s3cret:x\\\"}\"\n";
    fs::write(&helper, text).unwrap();
    fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    rig.client = rig.client.with_env("DOCKER_CONFIG", home);
    let said = rig.client.ok(["images", "explain", "--hosts-dir", &hosts, &reference]);
    for text in [
        format!("credentials  {home}/config.json"),
        format!("told http://{}: anonymous", mirror.host()),
        format!("told http://{}: password", registry.host()),
    ] {
        assert!(said.contains(&text), "no {text:?} in:\n{said}");
    }
    rig.client.ok(["images", "pull", "--hosts-dir", &hosts, &reference]);
    assert!(rig.client.ok(["images", "check"]).contains("complete (2/2)"));
    assert!(mirror.requests().len() > 1, "the mirror was asked");

    // A helper takes the place of the file.
    fs::write(dir.path().join("config.json"), "{\"credsStore\": \"test\"}").unwrap();
    let path = format!("{home}:{}", std::env::var("PATH").unwrap_or_default());
    let client = rig.client.with_env("PATH", &path);
    let said = client.ok(["images", "explain", "--hosts-dir", &hosts, &reference]);
    assert!(said.contains("credentials  docker-credential-test"), "{said}");
    assert!(said.contains("stands for") && !said.contains("s3cret"), "{said}");
}
