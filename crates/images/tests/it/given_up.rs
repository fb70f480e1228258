//! Work that is dropped at each of its awaits: what it had begun goes.

use std::future::Future;
use std::task::Poll;
use std::time::{Duration, Instant};

use gantry_core::Labels;
use gantry_core::platforms::Matcher;
use gantry_images::{DiffRequest, ImportOptions, LayerDiffer, import};

use crate::archives::{docker_archive, layout};
use crate::support::{Fixture, Image, layer};

/// Polls `work` at most `polls` times and drops it; None if it had not ended by then.
async fn dropped_after<T>(polls: usize, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    let mut left = polls;
    std::future::poll_fn(move |cx| {
        left -= 1;
        match work.as_mut().poll(cx) {
            Poll::Pending if left == 0 => Poll::Ready(None),
            polled => polled.map(Some),
        }
    })
    .await
}

/// Waits for what runs in the background to come to its end.
async fn no_ingest_is_left(fixture: &Fixture, polls: usize) {
    let content = fixture.db.content();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let left = content.statuses(&fixture.ctx, &[]).await.unwrap();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "after {polls} polls: {left:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn layers() -> Vec<Vec<u8>> {
    vec![layer(&[("bin/sh", "#!")]), layer(&[("app", "1")])]
}

#[tokio::test]
async fn root_an_import_that_is_given_up_anywhere_leaves_no_ingest() {
    let image = Image::new(&layers());
    let compressed = ImportOptions { compress: true, ..ImportOptions::default() };
    for (archive, options) in [
        (layout(&image, &|_, bytes| Some(bytes)), ImportOptions::default()),
        (docker_archive(&image, &layers(), &["app:1.0"]), compressed),
    ] {
        for polls in 1.. {
            let fixture = Fixture::new();
            let read = std::io::Cursor::new(archive.clone());
            let import = import(&fixture.db, &fixture.ctx, read, &options);
            let ended = dropped_after(polls, import).await;
            no_ingest_is_left(&fixture, polls).await;
            if let Some(ended) = ended {
                ended.unwrap();
                break;
            }
        }
    }
}

#[tokio::test]
async fn root_a_difference_that_is_given_up_anywhere_leaves_no_ingest() {
    let fixture = Fixture::new();
    let image = fixture.image(&layers()[..1]).await;
    let host = Matcher::host();
    fixture.unpacker.unpack(&fixture.ctx, &image.manifest, "overlayfs", &host).await.unwrap();
    let snapshots = fixture.db.snapshotter("overlayfs").unwrap();
    let (ctx, base) = (&fixture.ctx, Some(image.chain[0].as_str()));
    let right = snapshots.prepare(ctx, "right", base, Labels::new()).await.unwrap();
    let left = snapshots.view(ctx, "left", base, Labels::new()).await.unwrap();
    let mounted = fixture.temp.mount(&right).unwrap();
    std::fs::write(mounted.path().join("new"), "new").unwrap();
    mounted.unmount().unwrap();
    let differ = fixture.unpacker.differ();
    for polls in 1.. {
        let diff = differ.diff(ctx, &left, &right, DiffRequest::default());
        let ended = dropped_after(polls, diff).await;
        no_ingest_is_left(&fixture, polls).await;
        if let Some(ended) = ended {
            ended.unwrap();
            break;
        }
    }
}
