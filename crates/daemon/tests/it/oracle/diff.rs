//! `containerd.services.diff.v1`: layers onto mounts, and mounts into layers.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;

use gantry_api::containerd::services::content::v1 as content;
use gantry_api::containerd::services::content::v1::content_client::ContentClient;
use gantry_api::containerd::services::diff::v1 as wire;
use gantry_api::containerd::services::diff::v1::diff_client::DiffClient;
use gantry_api::containerd::services::leases::v1 as leases;
use gantry_api::containerd::services::leases::v1::leases_client::LeasesClient;
use gantry_api::containerd::types::Descriptor;
use gantry_core::{Digest, media_types};
use gantry_testkit::{Compression, DaemonKind, Layer};
use prost_types::Any;
use tonic::Code::{AlreadyExists, InvalidArgument, NotFound, Unimplemented, Unknown};
use tonic::{Request, Status};

use super::{World, bind, fails};
use crate::harness::leased;

const UNCOMPRESSED: &str = "containerd.io/uncompressed";

impl World {
    /// A request under the lease that keeps what these tests make.
    fn held<T>(&self, message: T) -> Request<T> {
        leased(self.ask(message), "l")
    }

    async fn lease(&self) {
        let create = leases::CreateRequest { id: "l".into(), ..Default::default() };
        LeasesClient::new(self.channel.clone()).create(self.ask(create)).await.unwrap();
    }

    async fn store(&self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        let digest = Digest::of(&bytes).to_string();
        let size = i64::try_from(bytes.len()).unwrap();
        let write = content::WriteContentRequest {
            action: content::WriteAction::Commit.into(),
            r#ref: digest.clone(),
            total: size,
            expected: digest.clone(),
            data: bytes.into(),
            ..Default::default()
        };
        let mut blobs = ContentClient::new(self.channel.clone());
        let request = self.held(tokio_stream::iter([write]));
        let written = async {
            let mut answers = blobs.write(request).await?.into_inner();
            while answers.message().await?.is_some() {}
            Ok::<_, Status>(())
        };
        match written.await {
            // The same bytes may be there under another type.
            Err(status) if status.code() != AlreadyExists => panic!("{status:?}"),
            _ => {}
        }
        Descriptor { media_type: media_type.into(), digest, size, ..Default::default() }
    }

    async fn read(&self, digest: &str) -> Vec<u8> {
        let read = content::ReadContentRequest { digest: digest.into(), ..Default::default() };
        let mut blobs = ContentClient::new(self.channel.clone());
        let mut pieces = blobs.read(self.ask(read)).await.unwrap().into_inner();
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.message().await.unwrap() {
            bytes.extend_from_slice(&piece.data);
        }
        bytes
    }

    async fn labels(&self, digest: &str) -> HashMap<String, String> {
        let info = content::InfoRequest { digest: digest.into() };
        let info = ContentClient::new(self.channel.clone()).info(self.ask(info)).await.unwrap();
        info.into_inner().info.unwrap().labels
    }

    async fn apply(&self, layer: Descriptor, onto: &Path) -> Result<Descriptor, Status> {
        let apply = wire::ApplyRequest {
            diff: Some(layer),
            mounts: vec![bind(onto)],
            sync_fs: true,
            ..Default::default()
        };
        let applied = DiffClient::new(self.channel.clone()).apply(self.held(apply)).await?;
        Ok(applied.into_inner().applied.expect("a descriptor"))
    }

    /// Applies with a payload for each of the stream processors named.
    async fn apply_told(&self, layer: Descriptor, onto: &Path, names: &[&str]) -> Descriptor {
        let any = Any { type_url: "a.Key".into(), value: b"secret".to_vec() };
        let apply = wire::ApplyRequest {
            diff: Some(layer),
            mounts: vec![bind(onto)],
            payloads: names.iter().map(|name| ((*name).to_owned(), any.clone())).collect(),
            ..Default::default()
        };
        let applied = DiffClient::new(self.channel.clone()).apply(self.held(apply)).await;
        applied.unwrap().into_inner().applied.expect("a descriptor")
    }

    async fn diff(
        &self,
        media_type: &str,
        left: &Path,
        right: &Path,
    ) -> Result<Descriptor, Status> {
        let diff = wire::DiffRequest {
            left: vec![bind(left)],
            right: vec![bind(right)],
            media_type: media_type.into(),
            r#ref: format!("diff of {media_type}"),
            labels: [("made".to_owned(), "by the test".to_owned())].into(),
            source_date_epoch: None,
        };
        let made = DiffClient::new(self.channel.clone()).diff(self.held(diff)).await?;
        Ok(made.into_inner().diff.expect("a descriptor"))
    }
}

fn dir(world: &World, name: &str, files: &[(&str, &str)]) -> std::path::PathBuf {
    let dir = world.daemon.dir().join(name);
    std::fs::create_dir(&dir).unwrap();
    for (file, text) in files {
        std::fs::write(dir.join(file), text).unwrap();
    }
    dir
}

/// The names in a directory, and what is in them.
fn files(dir: &Path) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let mut found: Vec<_> = entries
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read_to_string(e.path()).unwrap()))
        .collect();
    found.sort();
    found
}

fn owned(files: &[(&str, &str)]) -> Vec<(String, String)> {
    files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

async fn layers_are_applied(kind: DaemonKind) {
    let world = World::start(kind).await;
    world.lease().await;
    let layer = Layer::new().file("new", 0o644, "n").file("kept", 0o600, "k2").whiteout("gone");
    let tar = layer.tar();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        for docker in [false, true] {
            let media_type = compression.media_type(docker);
            // Docker has no type for zstd of its own.
            if docker && compression == Compression::Zstd {
                continue;
            }
            let onto = dir(&world, &media_type.replace('/', "-"), &[("kept", "k"), ("gone", "g")]);
            let blob = world.store(media_type, compression.compress(&tar)).await;
            let applied = world.apply(blob, &onto).await.unwrap();
            assert_eq!(applied.digest, layer.diff_id().to_string(), "{media_type}");
            assert_eq!(applied.media_type, media_types::OCI_LAYER);
            assert_eq!(applied.size, i64::try_from(tar.len()).unwrap());
            assert_eq!(files(&onto), owned(&[("kept", "k2"), ("new", "n")]), "{media_type}");
        }
    }
    let onto = dir(&world, "refused", &[]);
    let absent = Descriptor {
        media_type: media_types::OCI_LAYER_GZIP.into(),
        digest: Digest::of(b"nobody has this").to_string(),
        size: 15,
        ..Default::default()
    };
    fails("a blob that is not there", world.apply(absent, &onto).await, NotFound, "not found");
    let text = world.store("text/plain", b"no layer".to_vec()).await;
    // Daemons before 2.0 do not say that no differ is left.
    let code = if world.is_gantryd() { Unimplemented } else { Unknown };
    fails("no layer", world.apply(text, &onto).await, code, "text/plain");
    let short = &Compression::Gzip.compress(&tar)[..20];
    let short = world.store(media_types::OCI_LAYER_GZIP, short.to_vec()).await;
    assert!(world.apply(short, &onto).await.is_err(), "half a layer");
    // containerd does not survive this one.
    if world.is_gantryd() {
        let nothing = DiffClient::new(world.channel.clone())
            .apply(world.ask(wire::ApplyRequest::default()))
            .await;
        fails("nothing", nothing, InvalidArgument, "diff");
    }
    assert_eq!(files(&onto), []);
    world.daemon.assert_clean();
}

async fn layers_are_made(kind: DaemonKind) {
    let world = World::start(kind).await;
    world.lease().await;
    let left = [("changed", "1"), ("gone", "g"), ("same", "s")];
    let right = [("changed", "22"), ("new", "n")];
    let (before, after) = (dir(&world, "before", &left), dir(&world, "after", &right));
    // The same file, not one like it.
    std::fs::hard_link(before.join("same"), after.join("same")).unwrap();
    let mut types = vec![media_types::OCI_LAYER, media_types::OCI_LAYER_GZIP, ""];
    if world.is_gantryd() {
        types.push(media_types::OCI_LAYER_ZSTD);
    }
    for media_type in types {
        let made = world.diff(media_type, &before, &after).await.unwrap();
        let is_default = media_type.is_empty();
        let want = if is_default { media_types::OCI_LAYER_GZIP } else { media_type };
        assert_eq!(made.media_type, want);
        let bytes = world.read(&made.digest).await;
        assert_eq!(made.digest, Digest::of(&bytes).to_string());
        assert_eq!(made.size, i64::try_from(bytes.len()).unwrap());
        let tar = match want {
            media_types::OCI_LAYER_ZSTD => zstd::decode_all(bytes.as_slice()).unwrap(),
            media_types::OCI_LAYER_GZIP => {
                let mut tar = Vec::new();
                flate2::read::GzDecoder::new(bytes.as_slice()).read_to_end(&mut tar).unwrap();
                tar
            }
            _ => bytes,
        };
        let mut archive = tar::Archive::new(tar.as_slice());
        let mut names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .filter(|name| name != "/" && name != "./")
            .collect();
        names.sort();
        assert_eq!(names, [".wh.gone", "changed", "new"], "{media_type}");
        let labels = world.labels(&made.digest).await;
        let packed = want != media_types::OCI_LAYER;
        let diff_id = packed.then(|| Digest::of(&tar).to_string());
        assert_eq!(labels.get(UNCOMPRESSED), diff_id.as_ref(), "{media_type}");
        // The default is the same blob as gzip, whose labels it has already.
        assert!(is_default || labels.get("made").is_some_and(|by| by == "by the test"));

        let name = format!("again-{}", want.replace('/', "-"));
        let onto = world.daemon.dir().join(name);
        let _ = std::fs::remove_dir_all(&onto);
        std::fs::create_dir(&onto).unwrap();
        left.iter().for_each(|(file, text)| std::fs::write(onto.join(file), text).unwrap());
        world.apply(made, &onto).await.unwrap();
        assert_eq!(files(&onto), files(&after), "{media_type}");
    }
    let other = world.diff("text/plain", &before, &after).await;
    fails("no layer", other, Unimplemented, "text/plain");
    world.daemon.assert_clean();
}

/// A program that passes the layer on and leaves what it was given beside, in `file`.
fn teller(dir: &Path, id: &str, media_type: &str) -> (String, std::path::PathBuf) {
    let (program, file) = (dir.join(format!("{id}.sh")), dir.join(format!("{id}.out")));
    let text = format!(
        "#!/bin/sh\n(echo $STREAM_PROCESSOR_MEDIATYPE; [ -e /dev/fd/3 ] && cat <&3) >{}\n\
         exec cat\n",
        file.display()
    );
    std::fs::write(&program, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    let config = format!(
        "[stream_processors.\"{id}\"]\n  accepts = [\"{media_type}\"]\n  \
         returns = \"{}\"\n  path = \"{}\"\n",
        media_types::OCI_LAYER,
        program.display()
    );
    (config, file)
}

async fn payloads_reach_stream_processors(kind: DaemonKind) {
    let dir = tempfile::tempdir().unwrap();
    let (told, told_file) = teller(dir.path(), "told", "x/told");
    let (other, other_file) = teller(dir.path(), "other", "x/other");
    let world = World::start_with(kind, &(told + &other)).await;
    world.lease().await;
    let tar = Layer::new().file("new", 0o644, "n").tar();
    for (media_type, name) in [("x/told", "by-told"), ("x/other", "by-other")] {
        let layer = world.store(media_type, tar.clone()).await;
        let onto = self::dir(&world, name, &[]);
        let applied = world.apply_told(layer, &onto, &["told", "nobody"]).await;
        assert_eq!(applied.digest, Digest::of(&tar).to_string());
        assert_eq!(files(&onto), owned(&[("new", "n")]));
    }
    // The type of the layer, then protobuf's Any: field 1 is the type, field 2 the value.
    let told = std::fs::read(told_file).unwrap();
    assert_eq!(told, b"x/told\n\x0a\x05a.Key\x12\x06secret");
    assert_eq!(std::fs::read(other_file).unwrap(), b"x/other\n");
    world.daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn root_payloads_reach_stream_processors_on_gantryd() {
    payloads_reach_stream_processors(DaemonKind::Gantryd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_payloads_reach_stream_processors_on_containerd() {
    payloads_reach_stream_processors(DaemonKind::Containerd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_layers_are_applied_on_gantryd() {
    layers_are_applied(DaemonKind::Gantryd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_layers_are_applied_on_containerd() {
    layers_are_applied(DaemonKind::Containerd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_layers_are_made_on_gantryd() {
    layers_are_made(DaemonKind::Gantryd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_layers_are_made_on_containerd() {
    layers_are_made(DaemonKind::Containerd).await;
}
