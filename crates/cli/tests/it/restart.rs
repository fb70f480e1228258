//! The daemon goes while a client waits.

use crate::run::{remove, wait_for_status};
use crate::support::{World, with_each_client};

#[test]
fn root_a_foreground_client_sees_the_daemon_go() {
    with_each_client(|world: &mut World| {
        let image = world.busybox();
        let running = world.ctl.spawn(["run", &image, "c1", "sh", "-c", "echo up; sleep 1000"]);
        running.wait_for_output("up");
        world.daemon.kill9();
        let output = running.wait();
        assert_ne!(output.code, 0, "{output:?}");
        world.daemon.start_again();
        wait_for_status(world, "c1", "RUNNING");
        remove(world, "c1");
    });
}
