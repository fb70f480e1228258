//! The daemon harness, with Debian's containerd.

use gantry_testkit::{Compression, Daemon, Image, Layer, Registry, eventually};

#[test]
fn root_debian_containerd_runs_our_images_and_is_cleaned_up() {
    let registry = Registry::start();
    let layer = Layer::new().whiteout("etc/group").file("hello", 0o644, "hello\n");
    let image = Image::builder().layer(layer).compression(Compression::Zstd).hardlinked().build();
    let reference = image.push(&registry, "busybox:1");
    let daemon = Daemon::containerd().start();
    let ctr = daemon.ctr();
    ctr.ok(["images", "pull", "--plain-http", &reference]);
    let output = ctr.run(["run", "--rm", &reference, "c1", "sh", "-c", "cat /hello; exit 7"]);
    assert_eq!((output.stdout.as_str(), output.code), ("hello\n", 7), "{}", output.stderr);
    assert_eq!(ctr.ok(["run", "--rm", &reference, "c2", "sh", "-c", "ls /etc"]), "passwd\n");
    daemon.assert_clean();
}

#[test]
fn root_leaks_are_seen_and_torn_down() {
    let registry = Registry::start();
    let reference = Image::busybox().push(&registry, "busybox:1");
    let daemon = Daemon::containerd().start();
    let ctr = daemon.ctr();
    ctr.ok(["images", "pull", "--plain-http", &reference]);
    ctr.ok(["run", "-d", &reference, "c1", "sleep", "1000"]);
    let leaks = daemon.leaks().to_string();
    for word in ["mount ", "process ", "cgroup ", "bundle "] {
        assert!(leaks.contains(word), "no {word}in:\n{leaks}");
    }
    let dir = daemon.dir().to_owned();
    drop(daemon);
    assert!(!dir.exists());
}

#[test]
fn root_a_terminal_reaches_the_container() {
    let registry = Registry::start();
    let reference = Image::busybox().push(&registry, "busybox:1");
    let mut daemon = Daemon::containerd().start();
    let ctr = daemon.ctr();
    ctr.ok(["images", "pull", "--plain-http", &reference]);
    let mut terminal = ctr.spawn_on_terminal(["run", "--rm", "-t", &reference, "c1", "sh"]);
    terminal.wait_for("# ");
    terminal.send("stty size; tty\n");
    terminal.wait_for("24 80");
    terminal.resize(100, 30);
    eventually("the size arrives", || {
        terminal.send("stty size\n");
        if terminal.seen().contains("30 100") { Ok(()) } else { Err(terminal.seen()) }
    });
    terminal.send("exit 3\n");
    assert_eq!(terminal.wait(), 3);
    daemon.assert_clean();
    daemon.restart();
    ctr.ok(["images", "check"]);
}
