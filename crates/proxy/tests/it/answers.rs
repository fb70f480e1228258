//! Plugins that are not there, come back, or accept and never answer.

use std::time::Duration;

use gantry_proxy::{CALLS_MAX, Plugin, ProxySnapshotter};
use gantry_snapshots::Snapshotter;
use gantry_testkit::Daemon;
use tonic::{Response, Status};

use crate::{plugin, without_gc};

#[tokio::test(flavor = "multi_thread")]
async fn root_a_plugin_that_went_away_is_found_again() {
    let mut remote = without_gc(Daemon::gantryd());
    let sn = ProxySnapshotter::new(plugin("native", &remote));
    assert!(sn.stat("nothing").await.unwrap_err().is_not_found());
    remote.kill9();
    for _ in 0..3 {
        let err = sn.stat("nothing").await.unwrap_err();
        assert!(err.is_unavailable(), "{err:?}");
        assert!(err.message().contains("proxy plugin \"native\""), "{err}");
    }
    remote.start_again();
    assert!(sn.stat("nothing").await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn an_address_that_nobody_has_is_unavailable_and_named() {
    let plugin = Plugin::new("remote", "unix:///no/such/plugin.sock").unwrap();
    let err = ProxySnapshotter::new(plugin).stat("x").await.unwrap_err();
    assert!(err.is_unavailable(), "{err:?}");
    assert!(err.message().contains("proxy plugin \"remote\""), "{err}");
    assert!(err.message().contains("No such file"), "{err}");
    assert!(Plugin::new("remote", "10.0.0.1:80").unwrap_err().is_invalid_argument());
}

/// Takes connections and never says a word.
fn black_hole() -> (tempfile::TempDir, tokio::net::UnixListener, Plugin) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hole.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let plugin = Plugin::new("hole", path.to_str().unwrap()).unwrap();
    (dir, listener, plugin)
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    let (_dir, _listener, plugin) = black_hole();
    let never = std::future::pending::<Result<Response<()>, Status>>();
    let err = plugin.call("nothing", Duration::from_millis(20), never).await.unwrap_err();
    assert!(err.is_deadline_exceeded(), "{err:?}");
    assert!(err.message().contains("proxy plugin \"hole\""), "{err}");
}

#[tokio::test]
async fn calls_wait_for_their_turn_within_their_deadline() {
    let (_dir, _listener, plugin) = black_hole();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..CALLS_MAX + 10 {
        let plugin = plugin.clone();
        calls.spawn(async move {
            let never = std::future::pending::<Result<Response<()>, Status>>();
            plugin.call("nothing", Duration::from_millis(50), never).await
        });
    }
    for done in calls.join_all().await {
        assert!(done.unwrap_err().is_deadline_exceeded());
    }
    // All turns are free again.
    let answer = async { Ok(Response::new(7)) };
    assert_eq!(plugin.call("seven", Duration::from_secs(60), answer).await.unwrap(), 7);
}
