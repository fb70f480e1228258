//! The story of a checkpoint, end to end: a container with state in its memory is frozen into an
//! image, the image is pushed, pulled through a second daemon, and the process goes on there.

use gantry_client::{Client, PullOptions, PushOptions, Stdio};
use gantry_testkit::{Daemon, Image, Registry, criu_dir, eventually};

use crate::guide::{freeze, thaw};

/// Counts in its memory, and says how far it is in a file: with a word that a process begun anew
/// would not know.
const SCRIPT: &str = "word=$(cat /proc/sys/kernel/random/uuid); i=0; \
    while :; do i=$((i+1)); echo $word $i >/new; mv /new /at; sleep 0.05; done";

/// What the container of `task` says once it has counted past `number`.
async fn past(task: &gantry_client::Task, number: u64) -> (String, u64) {
    let path = format!("/proc/{}/root/at", task.state().await.unwrap().pid);
    eventually(&format!("it counts past {number}"), || {
        let text = std::fs::read_to_string(&path).map_err(|e| e.to_string())?;
        let (word, count) = text.trim().split_once(' ').ok_or(text.clone())?;
        let count = count.parse().map_err(|e| format!("{text:?}: {e}"))?;
        if count > number { Ok((word.to_owned(), count)) } else { Err(text) }
    })
}

async fn story(first: &Daemon, second: &Daemon) {
    let registry = Registry::start();
    let reference = Image::busybox().push(&registry, "counter:1");
    // The spec names its namespace's cgroup, so both daemons have the same.
    let client = |daemon: &Daemon| {
        Client::builder(daemon.address()).namespace(first.namespace()).build().unwrap()
    };
    let (here, there) = (client(first), client(second));
    let image = here.pull(PullOptions::new(&reference).plain_http()).await.unwrap();
    let container = here
        .container_builder("counter")
        .from_image(&image)
        .new_snapshot("counter")
        .spec_option(|spec| spec.args(["sh", "-c", SCRIPT]))
        .create()
        .await
        .unwrap();
    let task = container.new_task(&Stdio::null()).create().await.unwrap();
    task.start().await.unwrap();
    let (word, before) = past(&task, 5).await;
    let saved = format!("{}/checkpoints/counter:1", registry.host());
    let checkpoint = freeze(&task, &saved).await.unwrap();
    assert_eq!(task.wait().await.unwrap().code, 137);
    task.delete().await.unwrap();
    container.delete(true).await.unwrap();
    here.push(PushOptions::new(checkpoint.name(), &saved).plain_http()).await.unwrap();
    here.images().delete(&saved, true).await.unwrap();
    here.images().delete(&reference, true).await.unwrap();
    assert!(here.content().list(&[]).await.unwrap().is_empty());

    // The image itself was never pulled there.
    let checkpoint = there.pull(PullOptions::new(&saved).plain_http()).await.unwrap();
    assert!(there.image(&reference).await.unwrap_err().is_not_found());
    let (container, task) = thaw(&there, &checkpoint, "counter").await.unwrap();
    assert_eq!(container.record().image, reference);
    let (same, after) = past(&task, before).await;
    assert_eq!(same, word, "its memory is what it was");
    assert!(past(&task, after).await.1 > after, "and it goes on");
    assert_eq!(task.delete_with_kill().await.unwrap().code, 137);
    container.delete(true).await.unwrap();
    there.images().delete(&saved, true).await.unwrap();
    assert!(there.content().list(&[]).await.unwrap().is_empty());
}

#[test]
fn root_a_checkpoint_goes_on_elsewhere() {
    let daemon = || Daemon::gantryd().path_first(&criu_dir()).start();
    let (first, second) = (daemon(), daemon());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(story(&first, &second));
    drop(runtime);
    first.assert_clean();
    second.assert_clean();
}
