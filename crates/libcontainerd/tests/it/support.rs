//! A daemon, an engine that writes down what it is told, and an image.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gantry_client::{Client as Daemon, Image, ImportOptions};
use gantry_libcontainerd::{Backend, DirectIo, EventInfo, EventType, Options, Result, Spec};
use gantry_testkit::DaemonKind;
use tokio::io::AsyncReadExt;

/// Longest wait for an event.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The name of the image.
pub(crate) const BUSYBOX: &str = "example.com/b:1";

/// An engine that writes down what it is told.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<Vec<(EventType, EventInfo)>>>);

#[async_trait::async_trait]
impl Backend for Recorder {
    async fn process_event(&self, id: &str, event: EventType, info: EventInfo) -> Result<()> {
        assert_eq!(id, info.container_id);
        self.0.lock().unwrap().push((event, info));
        Ok(())
    }
}

impl Recorder {
    /// What was told of a container so far: the event, and the process unless it is its own.
    pub(crate) fn told(&self, container: &str) -> Vec<String> {
        let all = self.0.lock().unwrap();
        all.iter()
            .filter(|(_, info)| info.container_id == container)
            .map(|(event, info)| {
                if info.process_id == container {
                    event.to_string()
                } else {
                    format!("{event} {}", info.process_id)
                }
            })
            .collect()
    }

    /// Waits for an event of a process.
    pub(crate) async fn wait(&self, event: EventType, process: &str) -> EventInfo {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = {
                let all = self.0.lock().unwrap();
                all.iter().find(|(e, i)| *e == event && i.process_id == process).cloned()
            };
            if let Some((_, info)) = found {
                return info;
            }
            assert!(Instant::now() < deadline, "no {event} of {process}: {:?}", self.0);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// How often an event of a process was told.
    pub(crate) fn count(&self, event: EventType, process: &str) -> usize {
        let all = self.0.lock().unwrap();
        all.iter().filter(|(e, i)| *e == event && i.process_id == process).count()
    }
}

/// What a story gets.
pub(crate) struct Setting {
    pub(crate) daemon: gantry_testkit::Daemon,
    pub(crate) client: Daemon,
    pub(crate) image: Image,
    pub(crate) dir: PathBuf,
}

impl Setting {
    pub(crate) fn options(&self) -> Options {
        Options::new(&self.dir)
    }

    /// A spec for `script`.
    pub(crate) async fn spec(&self, id: &str, script: &str) -> Spec {
        self.builder(id, script).await.build().unwrap()
    }

    pub(crate) async fn builder(&self, id: &str, script: &str) -> gantry_client::oci::SpecBuilder {
        let config = self.image.config().await.unwrap();
        gantry_client::oci::SpecBuilder::new(self.client.namespace(), id)
            .image_config(&config.config)
            .args(["sh", "-c", script])
    }
}

/// Runs `story` against a fresh daemon, which must be clean after.
pub(crate) fn with_daemon(kind: DaemonKind, story: impl AsyncFnOnce(&mut Setting)) {
    run_on(
        match kind {
            DaemonKind::Gantryd => gantry_testkit::Daemon::gantryd().start(),
            DaemonKind::Containerd => gantry_testkit::Daemon::containerd().start(),
        },
        story,
    );
}

/// As [`with_daemon`], against a daemon that runs already.
pub(crate) fn run_on(daemon: gantry_testkit::Daemon, story: impl AsyncFnOnce(&mut Setting)) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let setting = runtime.block_on(async {
        let client =
            Daemon::builder(daemon.address()).namespace(daemon.namespace()).build().unwrap();
        let archive = dir.path().join("busybox.tar");
        gantry_testkit::Image::busybox().write_oci_tar(&archive, BUSYBOX);
        let archive = tokio::fs::File::open(&archive).await.unwrap();
        let options = ImportOptions {
            unpack: Some("overlayfs".to_owned()),
            all_platforms: true,
            ..ImportOptions::default()
        };
        let mut images = client.import(archive, options).await.unwrap();
        let image = images.pop().unwrap();
        let mut setting = Setting { daemon, client, image, dir: dir.path().join("engine") };
        story(&mut setting).await;
        setting.client.images().delete(setting.image.name(), true).await.unwrap();
        setting
    });
    drop(runtime);
    let left: Vec<_> = std::fs::read_dir(&setting.dir).into_iter().flatten().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    setting.daemon.assert_clean();
}

pub(crate) use gantry_testkit::on_both;

/// No streams.
pub(crate) fn ignore(_: DirectIo) -> Result<()> {
    Ok(())
}

/// The names of what is in a directory.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// All that a process writes.
pub(crate) async fn output(io: DirectIo) -> String {
    let mut text = String::new();
    io.stdout.unwrap().read_to_string(&mut text).await.unwrap();
    text
}
