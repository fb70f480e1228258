//! Takes the code blocks out of `docs/client.md`, so that the tests compile and run each.

use std::fmt::Write as _;
use std::path::Path;

fn main() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/client.md");
    println!("cargo::rerun-if-changed={}", guide.display());
    let text = std::fs::read_to_string(&guide).unwrap_or_else(|e| panic!("{guide:?}: {e}"));
    let mut code = String::new();
    let mut blocks = 0;
    let mut inside = false;
    for line in text.lines() {
        match (inside, line) {
            (false, "```rust") => {
                writeln!(
                    code,
                    "#[allow(unused_imports, dead_code)]\npub(crate) mod block_{blocks} {{"
                )
                .expect("a text takes it");
                blocks += 1;
                inside = true;
            }
            (true, "```") => {
                code.push_str("}\n");
                inside = false;
            }
            (true, line) => {
                // A function of the guide is the test's to call.
                let shown = ["async fn ", "fn ", "struct "].iter().any(|k| line.starts_with(k));
                code.push_str(if shown { "pub(crate) " } else { "" });
                code.push_str(line);
                code.push('\n');
            }
            (false, _) => {}
        }
    }
    writeln!(code, "pub(crate) const BLOCKS: usize = {blocks};").expect("a text takes it");
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    std::fs::write(Path::new(&out).join("guide.rs"), code).expect("the build directory takes it");
}
