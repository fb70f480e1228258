//! Rust from our proto files.
//!
//! Messages come from prost, gRPC services from tonic (behind the feature `grpc` of the api
//! crate) and ttrpc services from [`crate::ttrpc_gen`]. The output is committed, so an ordinary
//! build neither compiles proto files nor needs a compiler for them.

use std::path::{Path, PathBuf};

use prost_build::{Service, ServiceGenerator};
use prost_types::FileDescriptorSet;

use crate::{Result, root, ttrpc_gen};

/// Where the proto files are, from the top of the tree.
pub(crate) const PROTO_DIR: &str = "crates/api/proto";
/// Where generated code goes, from the top of the tree.
pub(crate) const OUTPUT_DIR: &str = "crates/api/src/generated";

/// Packages or services whose services are spoken over ttrpc; all others are gRPC.
const TTRPC: [&str; 6] = [
    "containerd.task.v2",
    "containerd.task.v3",
    "containerd.runtime.sandbox.v1",
    "containerd.services.events.ttrpc.v1",
    "nri.pkg.api.v1alpha1",
    "gantry.shim.v1",
];

/// Fields that carry large payloads: `bytes::Bytes`, so that they pass through without a copy.
const BYTES: [&str; 3] =
    [".containerd.services.content.v1", ".containerd.types.transfer", ".ttrpc"];

/// The streaming service, whose `Any`s carry large payloads: they are the `BytesAny` of the api
/// crate.
const STREAMING: &str = "containerd.services.streaming.v1";

/// The events service, whose answers go to many: they are `Shared` ones of the api crate.
const EVENTS: &str = "containerd.services.events.v1";

/// Generates into `dir`, which is created when missing.
pub(crate) fn run(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut config = prost_build::Config::new();
    config
        .out_dir(dir)
        .include_file("mod.rs")
        .bytes(BYTES)
        .enable_type_names()
        .service_generator(Box::new(Generator::new()));
    config.compile_fds(descriptors()?)?;
    Ok(())
}

/// The descriptors of every proto file, with the comments in them; protobuf's own are among
/// them, since ours refer to those.
pub(crate) fn descriptors() -> Result<FileDescriptorSet> {
    let proto = root().join(PROTO_DIR);
    let mut files = Vec::new();
    find_protos(&proto, &mut files)?;
    files.sort();
    let mut compiler = protox::Compiler::new([&proto])?;
    compiler.include_source_info(true).include_imports(true).open_files(files)?;
    Ok(compiler.file_descriptor_set())
}

fn find_protos(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            find_protos(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            found.push(path);
        }
    }
    Ok(())
}

/// Hands each service to the generator of its protocol.
struct Generator {
    grpc: Box<dyn ServiceGenerator>,
}

impl Generator {
    fn new() -> Self {
        let gate = "#[cfg(feature = \"grpc\")]";
        let grpc = tonic_prost_build::configure()
            .build_transport(false)
            .client_mod_attribute(".", gate)
            .server_mod_attribute(".", gate)
            .service_generator();
        Self { grpc }
    }
}

impl ServiceGenerator for Generator {
    fn generate(&mut self, mut service: Service, buf: &mut String) {
        for method in &mut service.methods {
            match service.package.as_str() {
                STREAMING => {
                    "crate::BytesAny".clone_into(&mut method.input_type);
                    "crate::BytesAny".clone_into(&mut method.output_type);
                }
                EVENTS if method.server_streaming => {
                    "crate::Shared<crate::containerd::types::Envelope>"
                        .clone_into(&mut method.output_type);
                }
                _ => {}
            }
        }
        if TTRPC.contains(&service.package.as_str()) {
            ttrpc_gen::generate(&service, buf);
        } else {
            self.grpc.generate(service, buf);
        }
    }

    fn finalize(&mut self, buf: &mut String) {
        self.grpc.finalize(buf);
    }

    fn finalize_package(&mut self, package: &str, buf: &mut String) {
        self.grpc.finalize_package(package, buf);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn contents(dir: &Path) -> BTreeMap<String, String> {
        std::fs::read_dir(dir)
            .expect("readable")
            .map(|entry| entry.expect("entry").path())
            .map(|path| {
                let name = path.file_name().expect("a name").to_string_lossy().into_owned();
                (name, std::fs::read_to_string(&path).expect("text"))
            })
            .collect()
    }

    #[test]
    fn committed_code_is_what_the_proto_files_give() {
        let fresh = tempfile::tempdir().expect("tempdir");
        run(fresh.path()).expect("generates");
        let (fresh, committed) = (contents(fresh.path()), contents(&root().join(OUTPUT_DIR)));
        let names = |m: &BTreeMap<String, String>| m.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&fresh), names(&committed), "run `cargo xtask codegen`");
        for (name, text) in &fresh {
            assert!(committed[name] == *text, "{name} is stale: run `cargo xtask codegen`");
        }
    }
}
