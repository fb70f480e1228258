//! Archives written and read, whole, cut short and at odds with themselves.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Mutex;

use bytes::Bytes;
use gantry_archive::{Compression, tar};
use gantry_core::image::{ArchivedImage, Index, NAME_ANNOTATION, REF_ANNOTATION, blob_path};
use gantry_core::{Descriptor, Digest, media_types};
use gantry_errdefs::{Error, Result};
use gantry_layout::{ArchiveWriter, Archived, Blobs, Contents, named, read};

/// Blobs in memory. It takes no part of a blob for the blob.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<Digest, Vec<u8>>>);

struct Writer {
    promised: Option<Digest>,
    size: u64,
    bytes: Vec<u8>,
}

impl Blobs for Memory {
    type Writer = Writer;

    async fn begin(&self, _name: &str, digest: Option<&Digest>, size: u64) -> Result<Writer> {
        if digest.is_some_and(|digest| self.0.lock().unwrap().contains_key(digest)) {
            return Err(Error::already_exists("blob"));
        }
        Ok(Writer { promised: digest.cloned(), size, bytes: Vec::new() })
    }

    async fn write(&self, writer: &mut Writer, piece: Bytes) -> Result<()> {
        writer.bytes.extend_from_slice(&piece);
        Ok(())
    }

    async fn end(&self, writer: Writer) -> Result<Digest> {
        assert_eq!(writer.bytes.len() as u64, writer.size, "a part of a blob");
        let digest = Digest::of(&writer.bytes);
        if writer.promised.is_some_and(|promised| promised != digest) {
            return Err(Error::invalid_argument("another digest"));
        }
        self.0.lock().unwrap().insert(digest.clone(), writer.bytes);
        Ok(digest)
    }

    async fn head(&self, digest: &Digest, len: usize) -> Result<(u64, Bytes)> {
        let blobs = self.0.lock().unwrap();
        let blob = &blobs[digest];
        Ok((blob.len() as u64, Bytes::copy_from_slice(&blob[..len.min(blob.len())])))
    }
}

impl Memory {
    async fn read(&self, archive: &[u8]) -> Result<Archived> {
        read(self, Cursor::new(archive.to_vec())).await
    }
}

fn target(bytes: &[u8]) -> Descriptor {
    let size = i64::try_from(bytes.len()).unwrap();
    Descriptor::new(media_types::OCI_MANIFEST, Digest::of(bytes), size)
}

/// An archive of these blobs, the first of which is the image.
async fn written(blobs: &[Vec<u8>], docker: &[ArchivedImage]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut archive = ArchiveWriter::new(&mut out).await.unwrap();
    for blob in blobs {
        archive.blob(&Digest::of(blob), blob.len() as u64).await.unwrap();
        for piece in blob.chunks(1000) {
            archive.piece(Bytes::copy_from_slice(piece)).await.unwrap();
        }
    }
    let image = named(target(&blobs[0]), "example.com/a:7");
    let size = archive.finish(vec![image], docker).await.unwrap();
    assert_eq!(out.len() as u64, size);
    out
}

fn blobs() -> Vec<Vec<u8>> {
    vec![b"manifest".to_vec(), Vec::new(), vec![7; 5000], vec![8; 1024]]
}

#[tokio::test]
async fn what_is_written_is_read() {
    let archive = written(&blobs(), &[]).await;
    let store = Memory::default();
    let archived = store.read(&archive).await.unwrap();
    let Contents::Layout(index) = archived.contents().unwrap() else { panic!("a layout") };
    let manifests = Index::parse(&Digest::of(index), index).unwrap().manifests;
    assert_eq!(manifests[0].digest, Digest::of(b"manifest"));
    assert_eq!(manifests[0].annotations[NAME_ANNOTATION], "example.com/a:7");
    assert_eq!(manifests[0].annotations[REF_ANNOTATION], "7");
    let stored: Vec<Vec<u8>> = store.0.lock().unwrap().values().cloned().collect();
    assert_eq!(stored.len(), 4);
    assert!(blobs().iter().all(|blob| stored.contains(blob)));
    // Again: all of it is there.
    store.read(&archive).await.unwrap().contents().unwrap();
}

/// Wherever it is cut: no part of a blob is taken for the blob, and nothing that is not whole for an
/// image.
#[tokio::test]
async fn what_is_cut_short_is_refused() {
    let archive = written(&blobs(), &[]).await;
    // The last member has one block of content.
    let whole = archive.len() - tar::END.len() - 512;
    for len in (0..whole).step_by(100) {
        let store = Memory::default();
        let read = store.read(&archive[..len]).await;
        let err = read.and_then(|archived| archived.contents().map(drop)).unwrap_err();
        assert!(err.is_invalid_argument(), "at {len}: {err}");
        assert!(!err.message().contains("another digest"), "at {len}: {err}");
    }
}

/// As docker saves: parts beside `manifest.json`, one a link to another's.
#[tokio::test]
async fn docker_images_are_found_through_links() {
    let mut archive = Vec::new();
    let mut file = |name: &str, bytes: &[u8]| {
        archive.extend_from_slice(&tar::file_header(name, bytes.len() as u64));
        archive.extend_from_slice(bytes);
        archive.extend_from_slice(tar::padding(bytes.len() as u64));
    };
    let diff_id = Digest::of(b"layer");
    file("c.json", format!(r#"{{"rootfs":{{"diff_ids":["{diff_id}"]}}}}"#).as_bytes());
    file("one/layer.tar", b"layer");
    file(
        "manifest.json",
        br#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["two/layer.tar"]}]"#,
    );
    let unlinked = Memory::default().read(&archive).await.unwrap();
    let err = unlinked.contents().unwrap_err();
    assert!(err.message().contains("layer \"two/layer.tar\" is not in the archive"), "{err}");

    let mut link = [0; 512];
    link[..13].copy_from_slice(b"two/layer.tar");
    link[100..107].copy_from_slice(b"0000777");
    link[156] = b'2';
    link[157..173].copy_from_slice(b"../one/layer.tar");
    link[257..265].copy_from_slice(b"ustar\x0000");
    link[148..156].fill(b' ');
    let sum: u32 = link.iter().map(|b| u32::from(*b)).sum();
    link[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    archive.extend_from_slice(&link);
    archive.extend_from_slice(&tar::END);
    let archived = Memory::default().read(&archive).await.unwrap();
    let Contents::Docker(images) = archived.contents().unwrap() else { panic!("docker's") };
    assert_eq!(images[0].config.media_type, media_types::DOCKER_CONFIG);
    assert_eq!(images[0].layers[0].digest, diff_id);
    assert_eq!(images[0].layers[0].compression, Compression::None);
}

/// docker loads it by `manifest.json`; others by the index.
#[tokio::test]
async fn docker_finds_what_it_looks_for() {
    let config = br#"{"rootfs":{"diff_ids":[]}}"#.to_vec();
    let path = blob_path(&Digest::of(&config));
    let image = ArchivedImage { config: path, names: vec!["a:7".into()], layers: Vec::new() };
    let archive = written(&[config], &[image]).await;
    let mut manifest = Vec::new();
    let mut inside = false;
    tar::walk(archive.as_slice(), |found| {
        match found {
            tar::Found::File { name, .. } => inside = name == "manifest.json",
            tar::Found::Piece(piece) if inside => manifest.extend_from_slice(piece),
            _ => {}
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(ArchivedImage::parse_all(&manifest).unwrap()[0].names, ["a:7"]);
}

#[tokio::test]
async fn a_blob_has_the_length_that_was_said() {
    let digest = Digest::of(b"blob");
    let mut archive = ArchiveWriter::new(Vec::new()).await.unwrap();
    archive.blob(&digest, 4).await.unwrap();
    archive.piece(Bytes::from_static(b"bl")).await.unwrap();
    assert!(archive.blob(&digest, 4).await.unwrap_err().is_data_loss());
    let longer = archive.piece(Bytes::from_static(b"obs")).await.unwrap_err();
    assert!(longer.is_data_loss() && longer.message().contains("longer"), "{longer}");
    assert!(archive.finish(Vec::new(), &[]).await.unwrap_err().is_data_loss());
}
