//! The small machine boots, has what tests rely on, and reports the script's exit code.

use gantry_testkit::{Vm, system_program};

#[test]
fn vm_has_cgroup_v2_and_runs_programs() {
    let script = "set -e
        grep -qw memory /sys/fs/cgroup/cgroup.controllers
        grep -qw overlay /proc/filesystems
        runc --version | grep -q runc
        exit 7";
    let output = Vm::new().program(&system_program("runc"), "/bin/runc").run(script);
    assert_eq!(output.code, Some(7), "{}", output.console);
}
