//! Journals, without shims.

use gantry_core::{Any, Namespace};
use gantry_events::NoFields;

use super::*;

fn envelope(topic: &str) -> Envelope {
    Envelope {
        timestamp: SystemTime::now(),
        namespace: Namespace::new("default").expect("a name"),
        topic: topic.to_owned(),
        event: Any::default(),
    }
}

async fn tell(journal: &Arc<Journal>, exchange: &Exchange, fact: &Fact) -> bool {
    let told = journal.tell(exchange, fact.clone(), envelope("/tasks/exit"), None).await;
    told.expect("told")
}

#[tokio::test]
async fn each_fact_is_told_once_also_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let exchange = Exchange::new(Arc::new(NoFields));
    let exec = |pid| Fact::ExecExit { id: "e1".into(), pid };
    let facts = [exec(1), exec(2), Fact::Oom(5), Fact::Oom(6), Fact::Exit, Fact::Delete];
    let first = Journal::new(dir.path(), true);
    for fact in &facts[..5] {
        assert!(tell(&first, &exchange, fact).await, "{fact}");
        assert!(!tell(&first, &exchange, fact).await, "{fact}");
    }
    let second = Journal::new(dir.path(), false);
    for fact in &facts[..5] {
        assert!(!tell(&second, &exchange, fact).await, "{fact}");
    }
    assert!(tell(&second, &exchange, &facts[5]).await);
    let text = fs::read_to_string(dir.path().join(FILE)).expect("written");
    assert_eq!(text, "exit e1 1\nexit e1 2\noom 5\noom 6\nexit\ndelete\n");
}

#[tokio::test]
async fn a_line_cut_short_was_not_written() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join(FILE), "oom 5\nnonsense\nexi").expect("written");
    let exchange = Exchange::new(Arc::new(NoFields));
    let journal = Journal::new(dir.path(), false);
    assert!(!tell(&journal, &exchange, &Fact::Oom(5)).await);
    assert!(tell(&journal, &exchange, &Fact::Exit).await);
}

#[tokio::test]
async fn the_file_does_not_grow_without_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let exchange = Exchange::new(Arc::new(NoFields));
    let journal = Journal::new(dir.path(), true);
    let last = u32::try_from(LINES_MAX).expect("small") * 3;
    for pid in 0..last {
        assert!(tell(&journal, &exchange, &Fact::ExecExit { id: "probe".into(), pid }).await);
    }
    let lines = fs::read_to_string(dir.path().join(FILE)).expect("written").lines().count();
    assert!(lines <= LINES_MAX + 1, "{lines}");
    let after = Journal::new(dir.path(), false);
    let fact = Fact::ExecExit { id: "probe".into(), pid: last - 1 };
    assert!(!tell(&after, &exchange, &fact).await);
}

#[tokio::test]
async fn one_told_by_two_at_once_is_told_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let exchange = Exchange::new(Arc::new(NoFields));
    let mut events = exchange.subscribe::<&str>(&[]).expect("subscribed");
    let journal = Journal::new(dir.path(), true);
    let (a, b) = tokio::join!(
        tell(&journal, &exchange, &Fact::Exit),
        tell(&journal, &exchange, &Fact::Exit)
    );
    assert!(a != b, "{a} {b}");
    events.next().await.expect("one").expect("an event");
    drop(exchange);
    assert!(events.next().await.is_none());
}

#[test]
fn events_that_are_no_facts_may_come_twice() {
    use gantry_api::containerd::events::TaskStart;
    let start = prost_types::Any::pack(&TaskStart { container_id: "c".into(), pid: 1 });
    assert_eq!(Fact::of(&start, SystemTime::now()).expect("decodes"), None);
    let exec = TaskExit { container_id: "c".into(), id: "e".into(), pid: 7, ..Default::default() };
    let fact = Fact::of(&prost_types::Any::pack(&exec), SystemTime::now()).expect("decodes");
    let fact_of_exec = Fact::ExecExit { id: "e".into(), pid: 7 };
    assert_eq!(fact, Some(OfTask { task: "c".into(), pid: 0, fact: fact_of_exec }));
}
