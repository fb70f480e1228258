//! The fuzz targets' checks over bytes made to come close to what is valid.
//!
//! `GANTRY_FUZZ_CASES` asks for more cases than the few that every run makes; a failing case is
//! shrunk and printed with its seed.

use std::path::Path;

use gantry_fuzzing as fuzzing;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// Cases per check, unless asked for more.
const CASES: u32 = 64;

/// Words of all the languages there are, to be put together.
const WORDS: &[&str] = &[
    "name",
    "labels",
    ".",
    "\"",
    "==",
    "!=",
    "~=",
    ",",
    "/",
    "|",
    "\\",
    "\n",
    "=",
    "[",
    "]",
    "{",
    "}",
    ":",
    "@",
    "sha256:",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "docker.io",
    "library",
    "localhost:5000",
    "latest",
    "version",
    "2",
    "root",
    "plugins",
    "'io.x'",
    "server",
    "https://a.b",
    "host.\"https://m\"",
    "capabilities",
    "pull",
    "resolve",
    "skip_verify",
    "true",
    "false",
    "null",
    "0",
    "-1",
    "1e999",
    "\u{0}",
    "é",
    "schemaVersion",
    "mediaType",
    "application/vnd.oci.image.manifest.v1+json",
    "layers",
    "config",
    "digest",
    "size",
    "manifests",
    "rootfs",
    "diff_ids",
    "containerd.io/gc.ref.content.l.0=",
    "containerd.io/gc.ref.snapshot.",
    "containerd.io/gc.bref.container=",
    "containerd.io/gc.cond.snapshot.x=",
    "usedat<1h|",
    "containerd.io/gc.expire=",
    "2020-01-01T00:00:00Z",
    "containerd.io/gc.root",
    "overlayfs/x",
];

fn text() -> impl Strategy<Value = Vec<u8>> {
    let words = prop::collection::vec(prop::sample::select(WORDS), 0..24);
    let noise = prop::collection::vec(any::<u8>(), 0..200);
    prop_oneof![4 => words.prop_map(|w| w.concat().into_bytes()), 1 => noise]
}

/// Tar blocks whose headers have the right sum and otherwise anything.
fn layer() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(
        &[
            "a",
            "a/b",
            "../x",
            "/etc/passwd",
            "a/../../x",
            ".wh.a",
            ".wh..wh..opq",
            "b/.wh..wh..opq",
            "",
            ".",
            "..",
            "a/.",
            "link",
            "link/x",
            "././@LongLink",
            "GNUSparseFile.0/x",
            "outside",
        ][..],
    );
    let kind = prop::sample::select(&b"0123456715gxLKSVDX\0"[..]);
    let link = prop::sample::select(&["", "a", "/", "..", "../outside/file", "a/b", "link"][..]);
    let body = prop::collection::vec(any::<u8>(), 0..700);
    let entry = (name, kind, link, body, any::<u32>(), any::<bool>());
    prop::collection::vec(entry, 0..8).prop_map(|entries| {
        let mut out = Vec::new();
        for (name, kind, link, body, mode, lies) in entries {
            let mut header = [0_u8; 512];
            header[..name.len()].copy_from_slice(name.as_bytes());
            let put = |header: &mut [u8; 512], at: usize, text: String| {
                header[at..at + text.len()].copy_from_slice(text.as_bytes());
            };
            put(&mut header, 100, format!("{:07o}", mode & 0o7777));
            put(&mut header, 108, "0000000".to_owned());
            put(&mut header, 116, "0000000".to_owned());
            let size = if lies { body.len() * 3 + 7 } else { body.len() };
            put(&mut header, 124, format!("{size:011o}"));
            put(&mut header, 136, format!("{mode:011o}"));
            header[156] = kind;
            put(&mut header, 157, link.to_owned());
            put(&mut header, 257, "ustar\u{0}00".to_owned());
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
            put(&mut header, 148, format!("{sum:06o}\u{0} "));
            out.extend(header);
            out.extend(&body);
            out.resize(out.len().div_ceil(512) * 512, 0);
        }
        out.extend([0; 1024]);
        out
    })
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![0..64_u32, Just(4 << 20), Just((4 << 20) + 1), any::<u32>()];
    let frame = (length, any::<u32>(), any::<u16>(), prop::collection::vec(any::<u8>(), 0..64));
    prop::collection::vec(frame, 0..6).prop_map(|frames| {
        let mut out = Vec::new();
        for (length, stream, kind, payload) in frames {
            out.extend(length.to_be_bytes());
            out.extend(stream.to_be_bytes());
            out.extend(kind.to_be_bytes());
            out.extend(payload);
        }
        out
    })
}

/// Runs a check over `bytes`, and over what earlier findings left in the corpus.
fn run(name: &str, bytes: impl Strategy<Value = Vec<u8>>) {
    let (_, check) = fuzzing::ALL.into_iter().find(|(known, _)| *known == name).expect("a check");
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
    if let Ok(entries) = std::fs::read_dir(corpus) {
        entries.flatten().for_each(|e| check(&std::fs::read(e.path()).expect("a case")));
    }
    let cases = std::env::var("GANTRY_FUZZ_CASES").ok().and_then(|n| n.parse().ok());
    let config = ProptestConfig {
        cases: cases.unwrap_or(CASES),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let done = TestRunner::new(config).run(&bytes, |bytes| {
        check(&bytes);
        Ok(())
    });
    if let Err(failure) = done {
        panic!("{name}: {failure}");
    }
}

#[test]
fn filters() {
    run("filters", text());
}

#[test]
fn references() {
    run("references", text());
}

#[test]
fn manifests() {
    run("manifests", text());
}

#[test]
fn config() {
    run("config", text());
}

#[test]
fn hosts() {
    run("hosts", text());
}

#[test]
fn gc_labels() {
    run("gc_labels", text());
}

#[test]
fn ttrpc_frames() {
    run("ttrpc_frames", frames());
}

#[test]
fn database() {
    run("database", prop::collection::vec(any::<u8>(), 0..40));
}

#[test]
fn root_tar() {
    run("tar", layer());
}

#[test]
fn every_target_is_one_of_these() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/fuzz_targets");
    let mut targets: Vec<String> = std::fs::read_dir(fuzz)
        .expect("the targets")
        .map(|e| e.expect("an entry").path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    targets.sort();
    let known: Vec<&str> = fuzzing::ALL.iter().map(|(name, _)| *name).collect();
    assert_eq!(targets, known);
}
