//! `content edit`.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use gantry_client::WriterOptions;
use gantry_core::{Algorithm, Digest, Digester, Labels};
use gantry_errdefs::{Error, Result};
use serde::de::IgnoredAny;
use tokio::io::AsyncWriteExt;

use crate::output;
use crate::session::Session;

/// Bytes of the edited file that are read at a time.
const READ_SIZE: usize = 64 << 10;

/// What the result of an edit can be checked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Validation {
    /// One JSON value.
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Refuse a result that is not in this form
    #[arg(
        long,
        value_enum,
        value_name = "FORM",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "json"
    )]
    validate: Option<Validation>,
    /// Editor, a command of the shell
    #[arg(long, value_name = "COMMAND", env = "EDITOR", default_value = "")]
    editor: String,
    /// Digest of the blob, or name of an image for its manifest or index
    #[arg(value_name = "REF-OR-DIGEST")]
    object: String,
}

impl Flags {
    pub(crate) async fn execute(self, session: &Session) -> Result<()> {
        if self.editor.is_empty() {
            let why = "editor is required: give --editor or set EDITOR";
            return Err(Error::invalid_argument(why));
        }
        let digest = match self.object.parse::<Digest>() {
            Ok(digest) => digest,
            Err(_) => session.client.images().get(&self.object).await?.target.digest,
        };
        // A directory, so that what an editor leaves beside the file goes with it.
        let parent =
            std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let dir = tempfile::Builder::new()
            .prefix("edit-")
            .tempdir_in(&parent)
            .map_err(|e| Error::io(format!("directory in {}", parent.display()), e))?;
        let path = dir.path().join("blob");
        write_out(session, &digest, &path).await?;
        run_editor(&self.editor, &path).await?;
        let (edited, size) = {
            let (path, validate) = (path.clone(), self.validate);
            tokio::task::spawn_blocking(move || check(&path, validate))
                .await
                .map_err(|e| Error::internal(format!("reading the edited blob: {e}")))??
        };
        ingest(session, &edited, size, &path).await?;
        output::line(edited.as_str());
        Ok(())
    }
}

async fn write_out(session: &Session, digest: &Digest, path: &Path) -> Result<()> {
    let io = |e| Error::io(path.display(), e);
    let mut file = tokio::fs::File::create(path).await.map_err(io)?;
    let sink = async |bytes: bytes::Bytes| file.write_all(&bytes).await.map_err(io);
    session.client.content().read_to(digest, 0, sink).await?;
    file.flush().await.map_err(io)
}

/// Runs the editor on our terminal until it ends.
async fn run_editor(editor: &str, path: &Path) -> Result<()> {
    let script = format!("{editor} \"$1\"");
    let status = tokio::task::spawn_blocking({
        let path = path.to_owned();
        move || std::process::Command::new("sh").args(["-c", &script, "sh"]).arg(path).status()
    })
    .await
    .map_err(|e| Error::internal(format!("editor {editor:?}: {e}")))?
    .map_err(|e| Error::io(format!("editor {editor:?}"), e))?;
    if !status.success() {
        return Err(Error::failed_precondition(format!("editor {editor:?}: {status}")));
    }
    Ok(())
}

/// Digest and size of what the editor left, if it is in the form asked for.
fn check(path: &Path, validate: Option<Validation>) -> Result<(Digest, i64)> {
    let io = |e| Error::io(path.display(), e);
    if validate == Some(Validation::Json) {
        let reader = BufReader::new(File::open(path).map_err(io)?);
        serde_json::from_reader::<_, IgnoredAny>(reader)
            .map_err(|e| Error::invalid_argument(format!("edited blob: no JSON: {e}")))?;
    }
    let mut file = File::open(path).map_err(io)?;
    let mut digester = Digester::new(Algorithm::Sha256);
    let mut size = 0;
    let mut buffer = vec![0; READ_SIZE];
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => return Ok((digester.finish(), size)),
            count => {
                digester.update(&buffer[..count]);
                size += count as i64;
            }
        }
    }
}

/// Stores the file; a blob that is there already is fine.
async fn ingest(session: &Session, digest: &Digest, size: i64, path: &Path) -> Result<()> {
    let options = WriterOptions {
        reference: format!("edit-{digest}"),
        total: size,
        expected: Some(digest.clone()),
    };
    let written = async {
        let mut writer = session.client.content().writer(options).await?;
        writer.restart().await?;
        let file = tokio::fs::File::open(path).await;
        writer.write_from(&mut file.map_err(|e| Error::io(path.display(), e))?).await?;
        writer.commit(&Labels::new()).await
    };
    match written.await {
        Err(e) if !e.is_already_exists() => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(bytes: &[u8], validate: Option<Validation>) -> Result<(Digest, i64)> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("blob");
        std::fs::write(&path, bytes).expect("writing to it");
        check(&path, validate)
    }

    #[test]
    fn json_is_one_value_and_nothing_else() {
        for good in ["{\"a\": [1, 2]}\n", "7", "\"x\""] {
            let (digest, size) = checked(good.as_bytes(), Some(Validation::Json)).expect(good);
            assert_eq!((digest, size), (Digest::of(good.as_bytes()), good.len() as i64));
        }
        for bad in ["", "{", "{} {}", "hello"] {
            let e = checked(bad.as_bytes(), Some(Validation::Json)).expect_err(bad);
            assert!(e.is_invalid_argument(), "{bad}: {e}");
            checked(bad.as_bytes(), None).expect(bad);
        }
    }

    #[test]
    fn large_blobs_are_read_whole() {
        let bytes = vec![7; 3 * READ_SIZE + 1];
        let (digest, size) = checked(&bytes, None).expect("any bytes will do");
        assert_eq!((digest, size), (Digest::of(&bytes), bytes.len() as i64));
    }

    #[tokio::test]
    async fn a_failed_editor_is_an_error() {
        let path = Path::new("/nonexistent/it's a blob");
        run_editor("test ! -e", path).await.expect("the path arrives as one word");
        let e = run_editor("false", path).await.expect_err("it fails");
        assert!(e.text().contains("\"false\""), "{e}");
    }
}
