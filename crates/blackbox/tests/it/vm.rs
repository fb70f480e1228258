//! What needs cgroup v2 and full capabilities, in the small machine: run, stats, update, out of
//! memory, pause, kill.

use std::path::PathBuf;
use std::time::Duration;

use gantry_testkit::{Image, Vm, built_program, system_program};

/// Runs as the machine's test; `$CTR`, the client, and `$GANTRY`, ours, are set before it.
const LIFE: &str = r#"
fail() { echo "FAILED: $1"; tail -40 /tmp/daemon.log; dmesg | tail -5; exit 1; }
check() { case "$2" in *"$3"*) ;; *) fail "$1: no '$3' in: $2" ;; esac; }
i=0; until $CTR version >/dev/null 2>&1; do i=$((i+1)); [ $i -gt 100 ] && fail "start"; sleep 0.2; done
$CTR images import /image.tar || fail import
image=docker.io/library/busybox:1

out=$($CTR run --rm $image c1 sh -c 'echo hi; exit 5'); code=$?
check "run prints" "$out" hi
[ $code = 5 ] || fail "run ends with $code"

$CTR run -d --memory-limit 67108864 $image c2 sleep 1000 || fail "detached"
check "state" "$($CTR tasks ls)" RUNNING
check "exec" "$($CTR tasks exec --exec-id e1 c2 cat /proc/1/comm)" sleep
metrics=$($CTR tasks metrics c2)
check "metrics" "$metrics" memory.usage
check "metrics" "$metrics" pids.current
check "memory limit" "$(cat /sys/fs/cgroup/vm/c2/memory.max)" 67108864
# Debian's ctr has no update.
$GANTRY tasks update --memory-limit 33554432 --pids-limit 20 --cpu-quota 50000 \
  --cpu-period 100000 --cpu-shares 512 c2 || fail update
check "new memory limit" "$(cat /sys/fs/cgroup/vm/c2/memory.max)" 33554432
check "pids limit" "$(cat /sys/fs/cgroup/vm/c2/pids.max)" 20
check "cpu quota" "$(cat /sys/fs/cgroup/vm/c2/cpu.max)" "50000 100000"
weight=$(cat /sys/fs/cgroup/vm/c2/cpu.weight)
[ "$weight" -gt 1 ] && [ "$weight" -lt 100 ] || fail "half of 1024 shares is weight $weight"
check "limit in metrics" "$($CTR tasks metrics c2)" 33554432
$CTR tasks exec --exec-id e2 c2 true || fail "exec after update"
$CTR tasks pause c2 || fail pause
check "paused" "$($CTR tasks ls)" PAUSED
check "frozen" "$(cat /sys/fs/cgroup/vm/c2/cgroup.events)" "frozen 1"
$CTR tasks resume c2 || fail resume
check "resumed" "$($CTR tasks ls)" RUNNING
$CTR tasks kill --signal SIGKILL c2 || fail kill
i=0; until $CTR tasks ls | grep -q STOPPED; do i=$((i+1)); [ $i -gt 100 ] && fail "stop"; sleep 0.1; done
$CTR tasks delete c2 2>&1
$CTR containers delete c2 || fail "container delete"

$CTR events >/tmp/events 2>&1 &
sleep 1
$CTR run --rm --memory-limit 16777216 $image c3 sh -c 'x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done'
code=$?
[ $code = 137 ] || fail "out of memory ends with $code"
i=0; until grep -q /tasks/delete /tmp/events; do i=$((i+1)); [ $i -gt 50 ] && fail "events"; sleep 0.1; done
grep -q /tasks/oom /tmp/events || fail "no oom event in $(cat /tmp/events)"
[ "$(grep -n /tasks/oom /tmp/events | head -1 | cut -d: -f1)" -lt \
  "$(grep -n /tasks/exit /tmp/events | head -1 | cut -d: -f1)" ] || fail "oom after exit"

[ -z "$(find /sys/fs/cgroup/vm -mindepth 1 -type d)" ] || fail "a cgroup is left"
[ -z "$($CTR tasks ls -q)$($CTR containers ls -q)" ] || fail "something is left"
echo all checks passed
"#;

/// As many containers as `$ROUNDS` says run out of memory at once, in their first read; each is told
/// of once, before its exit.
const OUT_OF_MEMORY: &str = r#"
fail() { echo "FAILED: $1"; tail -40 /tmp/daemon.log; exit 1; }
i=0; until $CTR version >/dev/null 2>&1; do i=$((i+1)); [ $i -gt 100 ] && fail "start"; sleep 0.2; done
$CTR images import /image.tar || fail import
$CTR events >/tmp/events 2>&1 &
sleep 1
n=0
while [ $n -lt $ROUNDS ]; do
  n=$((n+1))
  $CTR run --rm --memory-limit 16777216 docker.io/library/busybox:1 c$n \
    dd if=/dev/zero of=/dev/null bs=64M
  code=$?
  [ $code = 137 ] || fail "out of memory ends with $code"
done
i=0; until grep -q "/tasks/delete.*\"c$n\"" /tmp/events; do
  i=$((i+1)); [ $i -gt 100 ] && fail "events"; sleep 0.1
done
told=$(awk '
  { id = $0; sub(/.*"container_id": *"/, "", id); sub(/".*/, "", id) }
  /\/tasks\/oom/ { if (!(id in exited)) kills[id]++; else late++ }
  /\/tasks\/exit/ { exited[id] = 1 }
  END { for (id in exited) if (kills[id] == 1) good++; print good + 0, late + 0 }
' /tmp/events)
echo "told of once before the exit, and too late: $told of $ROUNDS"
[ "$told" = "$ROUNDS 0" ] || fail "$told"
echo all checks passed
"#;

fn machine(programs: &[(PathBuf, &str)]) -> Vm {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("image.tar");
    Image::busybox().write_oci_tar(&archive, "docker.io/library/busybox:1");
    let image = std::fs::read(&archive).unwrap();
    let vm = Vm::new().program(&system_program("runc"), "/bin/runc").file("/image.tar", &image);
    programs.iter().fold(vm, |vm, (from, to)| vm.program(from, to))
}

#[test]
fn root_vm_cgroup_v2_on_containerd() {
    let vm = machine(&[
        (system_program("containerd"), "/bin/containerd"),
        (system_program("containerd-shim-runc-v2"), "/bin/containerd-shim-runc-v2"),
        (system_program("ctr"), "/bin/ctr"),
        (built_program("gantry"), "/bin/gantry"),
    ]);
    let start = "export CTR='ctr -n vm'\n\
                 export GANTRY='gantry -a /run/containerd/containerd.sock -n vm'\n\
                 /bin/containerd >/tmp/daemon.log 2>&1 &\n";
    vm.run(&format!("{start}{LIFE}")).assert_ok();
}

#[test]
fn root_vm_cgroup_v2_on_gantryd() {
    let vm = machine(&[
        (built_program("gantryd"), "/bin/gantryd"),
        (built_program("containerd-shim-runc-v2"), "/bin/containerd-shim-runc-v2"),
        (built_program("gantry"), "/bin/gantry"),
    ]);
    let start = "export CTR='gantry -n vm' GANTRY='gantry -n vm'\n\
                 /bin/gantryd >/tmp/daemon.log 2>&1 &\n";
    vm.run(&format!("{start}{LIFE}")).assert_ok();
}

/// `GANTRY_OOM_ROUNDS` sets another number of containers.
#[test]
fn root_vm_cgroup_v2_every_kill_for_memory_is_told() {
    let rounds = std::env::var("GANTRY_OOM_ROUNDS").ok().and_then(|n| n.parse().ok());
    let rounds: u32 = rounds.unwrap_or(5);
    let vm = machine(&[
        (built_program("gantryd"), "/bin/gantryd"),
        (built_program("containerd-shim-runc-v2"), "/bin/containerd-shim-runc-v2"),
        (built_program("gantry"), "/bin/gantry"),
    ]);
    let start = "export CTR='gantry -n vm'\n/bin/gantryd >/tmp/daemon.log 2>&1 &\n";
    let vm = vm.with_timeout(Duration::from_secs(180) + Duration::from_secs(20) * rounds);
    let run = vm.run(&format!("ROUNDS={rounds}\n{start}{OUT_OF_MEMORY}"));
    let told = |line: &&str| line.contains("told of once");
    run.console.lines().filter(told).for_each(|line| println!("{line}"));
    run.assert_ok();
}
