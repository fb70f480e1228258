//! The engine: what is done with containers, and what is done when they end.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};

use async_trait::async_trait;
use gantry_client::oci::SpecBuilder;
use gantry_client::{Error, Image, PullOptions, Result};
use gantry_libcontainerd::{Backend, Client, Container, EventInfo, EventType, Options, Task};
use tokio::sync::{Mutex, broadcast, oneshot};

use crate::logs;
use crate::restart::Policy;
use crate::store::{Record, Store};

/// Events that a listener may be behind.
const EVENTS_BEHIND_MAX: usize = 256;

/// How long a container may take to end after SIGTERM.
const STOP_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

const SIGTERM: u32 = 15;
const SIGKILL: u32 = 9;

/// The engine.
pub(crate) struct Engine {
    dir: PathBuf,
    client: OnceLock<Client>,
    /// Held while a container's record is read and written.
    store: Mutex<Store>,
    /// Held while an ended task is deleted: a stop and the event of the exit come to that together,
    /// and of two deletions at once containerd answers one with whatever its shim's end looks like.
    deletion: Mutex<()>,
    events: broadcast::Sender<String>,
    own: Weak<Engine>,
}

impl Engine {
    /// Connects, and takes up the containers of an engine before this one.
    pub(crate) async fn start(dir: &Path, address: &str, namespace: &str) -> Result<Arc<Self>> {
        let store = Store::open(dir)?;
        let logs = dir.join("logs");
        std::fs::create_dir_all(&logs).map_err(|e| Error::io(logs.display(), e))?;
        let engine = Arc::new_cyclic(|own| Self {
            dir: dir.to_owned(),
            client: OnceLock::new(),
            store: Mutex::new(store),
            deletion: Mutex::default(),
            events: broadcast::channel(EVENTS_BEHIND_MAX).0,
            own: own.clone(),
        });
        let daemon = gantry_client::Client::builder(address).namespace(namespace).build()?;
        let options = Options::new(dir.join("bundles"));
        let client = Client::new(daemon, options, engine.clone()).await?;
        engine.client.set(client).expect("set here only");
        engine.restore().await?;
        Ok(engine)
    }

    fn client(&self) -> Result<&Client> {
        self.client.get().ok_or_else(|| Error::unavailable("engine: it is starting"))
    }

    /// Live restore: what runs is taken up, what ended meanwhile is dealt with.
    async fn restore(&self) -> Result<()> {
        let records = self.store.lock().await.all()?;
        for record in records {
            let Ok(container) = self.client()?.load_container(&record.name).await else {
                continue;
            };
            let path = logs::path(&self.dir, &record.name);
            let (restored, task) = container
                .restore(|io| {
                    logs::keep(path, io);
                    Ok(())
                })
                .await?;
            if restored.alive {
                let _ = self.events.send(format!("{} restored", record.name));
            } else if let Some(task) = task {
                self.finish(&record.name, &task).await?;
            } else if record.wanted {
                self.run(&container).await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn create(
        &self,
        name: &str,
        image: &str,
        args: Vec<String>,
        restart: Policy,
    ) -> Result<()> {
        let daemon = self.client()?.daemon();
        let found = match daemon.image(image).await {
            Err(e) if e.is_not_found() => daemon.pull(PullOptions::new(image)).await?,
            other => other?,
        };
        let store = self.store.lock().await;
        if store.get(name).is_ok() {
            return Err(Error::already_exists(format!("container {name:?}")));
        }
        self.make(name, &found, &args).await?;
        let (name, image) = (name.to_owned(), image.to_owned());
        let (wanted, restarts, exit_code) = (false, 0, None);
        store.save(&Record { name, image, args, restart, wanted, restarts, exit_code })
    }

    async fn make(&self, name: &str, image: &Image, args: &[String]) -> Result<Container> {
        let client = self.client()?;
        let config = image.config().await?;
        let spec = SpecBuilder::new(client.daemon().namespace(), name)
            .image_config(&config.config)
            .args(args.iter().cloned())
            .build()?;
        // One that an engine before this one left half made is in nobody's way.
        client
            .replace_container(name, &spec, "runc", |builder| {
                builder.from_image(image).new_snapshot(name)
            })
            .await
    }

    pub(crate) async fn start_container(&self, name: &str) -> Result<()> {
        let container = self.client()?.load_container(name).await?;
        {
            let store = self.store.lock().await;
            let record = store.get(name)?;
            store.save(&Record { wanted: true, restarts: 0, exit_code: None, ..record })?;
        }
        self.run(&container).await
    }

    async fn run(&self, container: &Container) -> Result<()> {
        let path = logs::path(&self.dir, container.id());
        let attach = |io| {
            logs::keep(path, io);
            Ok(())
        };
        let task = container.new_task(false, None, attach).await?;
        if let Err(e) = task.start().await {
            let _ = task.force_delete().await;
            return Err(e);
        }
        Ok(())
    }

    pub(crate) async fn stop(&self, name: &str) -> Result<()> {
        let task = self.task(name).await?;
        {
            let store = self.store.lock().await;
            let record = store.get(name)?;
            store.save(&Record { wanted: false, ..record })?;
        }
        gone_is_fine(task.kill(SIGTERM).await)?;
        if tokio::time::timeout(STOP_PATIENCE, task.wait()).await.is_err() {
            gone_is_fine(task.kill(SIGKILL).await)?;
        }
        gone_is_fine(task.wait().await.map(drop))?;
        self.finish(name, &task).await
    }

    pub(crate) async fn remove(&self, name: &str) -> Result<()> {
        let store = self.store.lock().await;
        store.get(name)?;
        match self.client()?.load_container(name).await {
            Ok(container) => container.delete().await?,
            Err(e) => gone_is_fine(Err(e))?,
        }
        let _ = std::fs::remove_file(logs::path(&self.dir, name));
        store.remove(name)
    }

    /// Runs a command in a container; returns its output and exit code.
    pub(crate) async fn exec(&self, name: &str, args: Vec<String>) -> Result<(Vec<u8>, u32)> {
        let task = self.task(name).await?;
        let spec = self.client()?.load_container(name).await?.record().spec()?;
        let mut process = spec.process().clone().unwrap_or_default();
        process.set_args(Some(args));
        let (give, take) = oneshot::channel();
        let attach = |io| give.send(io).map_err(|_| Error::canceled("exec"));
        let id = format!("exec-{:x}", std::process::id() as u128 + nanos());
        let exec = task.exec(&id, &process, false, attach).await?;
        let io = take.await.map_err(|_| Error::internal("exec without streams"))?;
        let output = both(io).await?;
        let code = exec.wait().await?.code;
        exec.delete().await?;
        Ok((output, code))
    }

    pub(crate) async fn list(&self) -> Result<String> {
        let mut text = String::new();
        for record in self.store.lock().await.all()? {
            let state = match self.state(&record.name).await {
                Ok(state) => state,
                Err(e) if e.is_not_found() => match record.exit_code {
                    Some(code) => format!("exited {code}"),
                    None => "created".to_owned(),
                },
                Err(e) => return Err(e),
            };
            text.push_str(&format!(
                "{} {} restarts={} {state}\n",
                record.name, record.image, record.restarts
            ));
        }
        Ok(text)
    }

    pub(crate) fn logs(&self, name: &str) -> Result<String> {
        let path = logs::path(&self.dir, name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(e) => Err(Error::io(path.display(), e)),
        }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<String> {
        self.events.subscribe()
    }

    async fn state(&self, name: &str) -> Result<String> {
        let state = self.task(name).await?.state().await?;
        Ok(format!("{} {}", state.status.as_str().to_lowercase(), state.pid))
    }

    async fn task(&self, name: &str) -> Result<Task> {
        self.client()?.load_container(name).await?.task().await
    }

    /// Removes a task that is over. Whoever does it, the event or a restore, deals with the end.
    async fn finish(&self, name: &str, task: &Task) -> Result<()> {
        let deletion = self.deletion.lock().await;
        let deleted = task.delete().await;
        drop(deletion);
        match deleted {
            Ok(exit) => self.ended(name, exit.code).await,
            Err(e) => gone_is_fine(Err(e)),
        }
    }

    /// Notes an end whose task is deleted, and starts the container again if it is to be.
    async fn ended(&self, name: &str, code: u32) -> Result<()> {
        let store = self.store.lock().await;
        let record = match store.get(name) {
            // Removed as soon as it had ended.
            Err(e) if e.is_not_found() => return Ok(()),
            other => other?,
        };
        let pause = record.restart.next(code, record.restarts).filter(|_| record.wanted);
        let restarts = record.restarts + u32::from(pause.is_some());
        let wanted = pause.is_some();
        store.save(&Record { wanted, restarts, exit_code: Some(code), ..record })?;
        let _ = self.events.send(format!("{name} stopped {code}"));
        if let (Some(pause), Some(engine)) = (pause, self.own.upgrade()) {
            let name = name.to_owned();
            tokio::spawn(async move {
                tokio::time::sleep(pause).await;
                if let Err(e) = engine.start_again(&name).await {
                    eprintln!("engine: restart of {name}: {e}");
                }
            });
        }
        Ok(())
    }

    async fn start_again(&self, name: &str) -> Result<()> {
        // Stopped or removed during the pause.
        if !self.store.lock().await.get(name).is_ok_and(|record| record.wanted) {
            return Ok(());
        }
        self.run(&self.client()?.load_container(name).await?).await
    }
}

#[async_trait]
impl Backend for Engine {
    async fn process_event(&self, id: &str, event: EventType, info: EventInfo) -> Result<()> {
        let _ = self.events.send(format!("{id} {event} {}", info.process_id));
        if event != EventType::Exit || info.process_id != id {
            return Ok(());
        }
        match self.task(id).await {
            Ok(task) => self.finish(id, &task).await,
            Err(e) => gone_is_fine(Err(e)),
        }
    }
}

fn gone_is_fine(done: Result<()>) -> Result<()> {
    match done {
        Err(e) if e.is_not_found() => Ok(()),
        other => other,
    }
}

async fn both(io: gantry_libcontainerd::DirectIo) -> Result<Vec<u8>> {
    let streams = gantry_client::Streams { stdin: None, stdout: io.stdout, stderr: io.stderr };
    let output = streams.output().await?;
    Ok([output.stdout, output.stderr].concat())
}

fn nanos() -> u128 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| d.as_nanos())
}
