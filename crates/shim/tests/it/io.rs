//! Standard input and output.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use gantry_api::containerd::task::v3 as api;

use crate::harness::*;

#[test]
fn root_fifos_carry_all_three_streams() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["sh", "-c", "cat; echo problem >&2"]);
        let shim = daemon.shim(&bundle).await;
        let mut request = shim.request(&bundle);
        request.stdin = bundle.fifo("in");
        request.stdout = bundle.fifo("out");
        request.stderr = bundle.fifo("err");
        let (out, err) = (read_fifo(&request.stdout), read_fifo(&request.stderr));
        let stdin = request.stdin.clone();
        shim.create_with(request).await;
        shim.start(&bundle.id, "").await;
        // A client comes, says something, and goes: the input stays open.
        writeln!(write_fifo(&stdin), "first").expect("written");
        writeln!(write_fifo(&stdin), "second").expect("written");
        let close =
            api::CloseIoRequest { id: bundle.id.clone(), exec_id: String::new(), stdin: true };
        shim.task.close_io(&context(), &close).await.expect("closed");
        assert_eq!(shim.wait(&bundle.id, "").await, 0);
        assert_eq!(out.await.expect("read"), "first\nsecond\n");
        assert_eq!(err.await.expect("read"), "problem\n");
        shim.finish(&bundle).await;
    });
}

#[test]
fn root_pipes_carry_the_same_where_fifos_cannot_be_handed_over() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["sh", "-c", "cat; echo problem >&2"]);
        let shim = daemon.shim(&bundle).await;
        let mut request = shim.request(&bundle);
        request.stdin = bundle.fifo("in");
        request.stdout = bundle.fifo("out");
        request.stderr = bundle.fifo("err");
        for path in [&request.stdin, &request.stdout, &request.stderr] {
            std::os::unix::fs::chown(path, Some(1000), Some(1000)).expect("another owner");
        }
        let (out, err) = (read_fifo(&request.stdout), read_fifo(&request.stderr));
        let stdin = request.stdin.clone();
        shim.create_with(request).await;
        shim.start(&bundle.id, "").await;
        let long = "x".repeat(1000);
        for _ in 0..200 {
            writeln!(std::fs::OpenOptions::new().write(true).open(&stdin).expect("open"), "{long}")
                .expect("written");
            tokio::task::yield_now().await;
        }
        let close =
            api::CloseIoRequest { id: bundle.id.clone(), exec_id: String::new(), stdin: true };
        shim.task.close_io(&context(), &close).await.expect("closed");
        assert_eq!(shim.wait(&bundle.id, "").await, 0);
        assert_eq!(out.await.expect("read").len(), 200 * 1001);
        assert_eq!(err.await.expect("read"), "problem\n");
        shim.finish(&bundle).await;
    });
}

#[test]
fn root_input_closed_before_the_exec_starts_is_closed() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["sleep", "1000"]);
        let shim = daemon.shim(&bundle).await;
        let id = bundle.id.clone();
        shim.create(&bundle).await;
        shim.start(&id, "").await;
        let mut request = exec_request(&id, "e", &["cat"]);
        request.stdin = bundle.fifo("in");
        request.stdout = bundle.fifo("out");
        let out = read_fifo(&request.stdout);
        shim.exec_with(request).await.expect("added");
        let close = api::CloseIoRequest { id: id.clone(), exec_id: "e".into(), stdin: true };
        shim.task.close_io(&context(), &close).await.expect("closed");
        shim.start(&id, "e").await;
        assert_eq!(shim.wait(&id, "e").await, 0);
        assert_eq!(out.await.expect("read"), "");
        shim.finish(&bundle).await;
    });
}

#[test]
fn root_a_terminal_has_a_size_and_carries_both_ways() {
    run(async {
        let daemon = Daemon::start();
        let mut bundle = daemon.bundle(&["sh", "-c", "read x; stty size; echo got $x"]);
        bundle.spec["process"]["terminal"] = true.into();
        bundle.save();
        let shim = daemon.shim(&bundle).await;
        let mut request = shim.request(&bundle);
        request.terminal = true;
        request.stdin = bundle.fifo("in");
        request.stdout = bundle.fifo("out");
        let out = read_fifo(&request.stdout);
        let stdin = request.stdin.clone();
        shim.create_with(request).await;
        let size = api::ResizePtyRequest {
            id: bundle.id.clone(),
            exec_id: String::new(),
            width: 91,
            height: 37,
        };
        shim.task.resize_pty(&context(), &size).await.expect("resized");
        shim.start(&bundle.id, "").await;
        writeln!(write_fifo(&stdin), "words").expect("written");
        assert_eq!(shim.wait(&bundle.id, "").await, 0);
        let out = out.await.expect("read");
        assert!(out.contains("37 91\r\n"), "{out:?}");
        assert!(out.contains("got words\r\n"), "{out:?}");
        shim.finish(&bundle).await;
    });
}

#[test]
fn root_an_exec_can_have_a_terminal() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["sleep", "1000"]);
        let shim = daemon.shim(&bundle).await;
        let id = bundle.id.as_str();
        shim.create(&bundle).await;
        shim.start(id, "").await;
        let mut request = exec_request(id, "e", &["sh", "-c", "test -t 1 && echo terminal"]);
        request.terminal = true;
        let spec = request.spec.as_mut().expect("a spec");
        let text = String::from_utf8(spec.value.clone()).expect("text");
        spec.value = text.replace("\"terminal\":false", "\"terminal\":true").into_bytes();
        request.stdout = bundle.fifo("out");
        let out = read_fifo(&request.stdout);
        shim.exec_with(request).await.expect("added");
        shim.start(id, "e").await;
        assert_eq!(shim.wait(id, "e").await, 0);
        assert_eq!(out.await.expect("read"), "terminal\r\n");
        shim.finish(&bundle).await;
        let left = std::fs::read_dir(&bundle.path).expect("lists").flatten();
        let left: Vec<_> = left.map(|f| f.file_name().into_string().expect("text")).collect();
        assert!(
            left.iter().all(|f| !f.contains("console") && !f.contains("process.json")),
            "{left:?}"
        );
    });
}

#[test]
fn root_unread_output_holds_up_nothing() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["yes"]);
        let shim = daemon.shim(&bundle).await;
        let mut request = shim.request(&bundle);
        request.stdout = bundle.fifo("out");
        request.stderr = bundle.fifo("err");
        shim.create_with(request).await;
        shim.start(&bundle.id, "").await;
        shim.finish(&bundle).await;
    });
}

#[test]
fn root_files_are_appended_to() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["sh", "-c", "echo one; echo two >&2"]);
        let log = daemon.dir.path().join("logs/of/box.log");
        let shim = daemon.shim(&bundle).await;
        let mut request = shim.request(&bundle);
        request.stdout = format!("file://{}", log.display());
        request.stderr = request.stdout.clone();
        shim.create_with(request).await;
        shim.start(&bundle.id, "").await;
        assert_eq!(shim.wait(&bundle.id, "").await, 0);
        shim.finish(&bundle).await;
        let text = std::fs::read_to_string(&log).expect("was made");
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["one", "two"]);
    });
}

#[test]
fn root_a_logging_program_gets_the_output() {
    logging_program("binary");
}

#[test]
fn root_a_logging_program_of_version_2_gets_the_output() {
    logging_program("binary-v2");
}

fn logging_program(scheme: &str) {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["sh", "-c", "echo one; echo two >&2"]);
        let (program, log) = (daemon.dir.path().join("logger"), daemon.dir.path().join("log"));
        let script = format!(
            "#!/bin/sh\nexec >>{log} 2>&1\necho $CONTAINER_NAMESPACE $CONTAINER_ID $*\n\
             exec 5>&-\ncat <&3 & cat <&4\nwait\n",
            log = log.display()
        );
        std::fs::write(&program, script).expect("written");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("mode");
        let shim = daemon.shim(&bundle).await;
        let mut request = shim.request(&bundle);
        request.stdout = format!("{scheme}://{}?a=b%20c", program.display());
        request.stderr = request.stdout.clone();
        shim.create_with(request).await;
        shim.start(&bundle.id, "").await;
        assert_eq!(shim.wait(&bundle.id, "").await, 0);
        shim.finish(&bundle).await;
        let text = std::fs::read_to_string(&log).expect("was made");
        assert!(text.starts_with(&format!("test {} a b c\n", bundle.id)), "{text}");
        assert!(text.contains("one\n") && text.contains("two\n"), "{text}");
    });
}

#[test]
fn root_a_bad_stream_fails_the_create_and_leaves_nothing() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["true"]);
        let shim = daemon.shim(&bundle).await;
        for (stdout, missing) in [("gopher:///x", false), ("/nonexistent/fifo", true)] {
            let mut request = shim.request(&bundle);
            request.stdout = stdout.into();
            let err = shim.task.create(&context(), &request).await.expect_err("bad stream");
            assert_eq!(err.is_not_found(), missing, "{err}");
            assert_eq!(err.is_invalid_argument(), !missing, "{err}");
        }
        shim.create(&bundle).await;
        shim.start(&bundle.id, "").await;
        shim.finish(&bundle).await;
    });
}
