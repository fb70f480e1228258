//! Programs that decide which images may be used: containerd's `bindir` verifiers.
//!
//! Every program of a directory is asked about an image, by name and digest, before anything of it
//! is unpacked and before a record names it. All have to agree.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use gantry_core::Descriptor;
use gantry_errdefs::{Class, Error, Result, ResultExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// How much of what a verifier says is read; more would be no reason but a flood.
const OUTPUT_BYTES_MAX: u64 = 16 << 10;

/// Pause before a program is tried again that is still being written.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// What a verifier gets on its standard input.
const INPUT_TYPE: &str = "application/vnd.oci.descriptor.v1+json";

/// Which programs are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierOptions {
    /// Where they are. Without it nothing is asked.
    pub bin_dir: PathBuf,
    /// How many are asked, in the order of their names; None asks all.
    pub verifiers_max: Option<usize>,
    /// How long each may take.
    pub timeout: Duration,
}

/// The verifiers of a daemon. The default has none. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Verifiers(Option<Arc<VerifierOptions>>);

impl Verifiers {
    /// The programs that these options name; the directory is read for each image.
    pub fn new(options: VerifierOptions) -> Self {
        Self(Some(Arc::new(options)))
    }

    /// Asks every verifier about the image `name`.
    ///
    /// # Errors
    /// PermissionDenied with the reason when one refuses; DeadlineExceeded, or the I/O error, for
    /// one that does not answer or cannot be run: it is not known to agree.
    pub async fn check(&self, name: &str, target: &Descriptor) -> Result<()> {
        let Some(options) = &self.0 else { return Ok(()) };
        let (dir, max) = (options.bin_dir.clone(), options.verifiers_max);
        let programs = tokio::task::spawn_blocking(move || programs(&dir, max))
            .await
            .map_err(|e| Error::internal(format!("listing image verifiers: {e}")))??;
        for program in programs {
            let verifier = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let answer = ask(&program, options.timeout, name, target).await;
            let (agrees, reason) = answer.context(|| format!("image verifier {verifier}"))?;
            let digest = &target.digest;
            if !agrees {
                let text = format!(
                    "image verifier {verifier} blocked {name} with digest {digest} for reason: \
                     {reason}"
                );
                return Err(Error::new(Class::PermissionDenied, text));
            }
            tracing::debug!(verifier, name, %digest, reason, "image verified");
        }
        Ok(())
    }
}

/// The programs of the directory, by name. No directory is no program.
fn programs(dir: &Path, max: Option<usize>) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(|| format!("image verifiers in {}", dir.display()))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.context(|| format!("image verifiers in {}", dir.display()))?.path();
        // Through links: packages install verifiers as such.
        if !path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    found.truncate(max.unwrap_or(usize::MAX));
    Ok(found)
}

/// Whether one verifier agrees, and what it says.
async fn ask(
    program: &Path,
    timeout: Duration,
    name: &str,
    target: &Descriptor,
) -> Result<(bool, String)> {
    let input = serde_json::to_vec(target)
        .map_err(|e| Error::internal(format!("encoding a descriptor: {e}")))?;
    let work = async {
        let mut child = start(program, name, target).await?;
        converse(&mut child, &input).await
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(answer) => answer.context(|| program.display().to_string()),
        Err(_) => Err(Error::deadline_exceeded(format!("no answer in {timeout:?}"))),
    }
}

/// Starts a verifier. One that is just being installed is waited for.
async fn start(program: &Path, name: &str, target: &Descriptor) -> std::io::Result<Child> {
    loop {
        let started = Command::new(program)
            .args(["-name", name, "-digest", target.digest.as_str()])
            .args(["-stdin-media-type", INPUT_TYPE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        match started {
            Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            started => return started,
        }
    }
}

async fn converse(child: &mut Child, input: &[u8]) -> std::io::Result<(bool, String)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let give = async {
        if let Some(mut stdin) = stdin {
            // One that decides by its arguments may end without reading.
            let _ = stdin.write_all(input).await;
        }
    };
    let ((), reason, log) = tokio::join!(give, read_some(stdout), read_some(stderr));
    let (reason, log) = (reason?, log?);
    if !log.is_empty() {
        tracing::debug!(text = log, "image verifier's log");
    }
    let status = child.wait().await?;
    match status.code() {
        Some(0) => Ok((true, reason)),
        Some(code) => Ok((false, format!("{reason} (exit code {code})").trim().to_owned())),
        None => Ok((false, format!("{reason} ({status})").trim().to_owned())),
    }
}

/// Reads to the end, keeps the beginning.
async fn read_some(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<String> {
    let Some(mut stream) = stream else { return Ok(String::new()) };
    let mut text = Vec::new();
    (&mut stream).take(OUTPUT_BYTES_MAX).read_to_end(&mut text).await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use gantry_core::{Digest, media_types};

    use super::*;

    fn target() -> Descriptor {
        Descriptor::new(media_types::OCI_MANIFEST, Digest::of(b"x"), 1)
    }

    fn verifiers(dir: &Path, max: Option<usize>) -> Verifiers {
        let (bin_dir, timeout) = (dir.to_owned(), Duration::from_secs(20));
        Verifiers::new(VerifierOptions { bin_dir, verifiers_max: max, timeout })
    }

    fn script(dir: &Path, name: &str, text: &str) {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    #[tokio::test]
    async fn all_have_to_agree() {
        let dir = tempfile::tempdir().unwrap();
        let all = verifiers(dir.path(), None);
        all.check("a:b", &target()).await.unwrap();
        let yes = "case \"$*\" in \"-name a:b -digest sha256:\"*\" -stdin-media-type \
                   application/vnd.oci.descriptor.v1+json\") \
                   exec grep -q vnd.oci.image.manifest.v1 ;; esac; exit 9";
        script(dir.path(), "a-yes", yes);
        all.check("a:b", &target()).await.unwrap();
        script(dir.path(), "b-no", "echo not signed; echo noise >&2; exit 7");
        let err = all.check("a:b", &target()).await.unwrap_err();
        assert_eq!(err.class(), Class::PermissionDenied);
        for text in ["b-no", "a:b", target().digest.as_str(), "not signed (exit code 7)"] {
            assert!(err.message().contains(text), "{text}: {err}");
        }
        verifiers(dir.path(), Some(1)).check("a:b", &target()).await.unwrap();
    }

    #[tokio::test]
    async fn silence_is_no_consent() {
        let dir = tempfile::tempdir().unwrap();
        script(dir.path(), "slow", "exec sleep 1000");
        let (bin_dir, timeout) = (dir.path().to_owned(), Duration::from_millis(50));
        let slow = Verifiers::new(VerifierOptions { bin_dir, verifiers_max: None, timeout });
        let err = slow.check("a:b", &target()).await.unwrap_err();
        assert_eq!(err.class(), Class::DeadlineExceeded);
        std::fs::write(dir.path().join("slow"), "no program").unwrap();
        verifiers(dir.path(), None).check("a:b", &target()).await.unwrap_err();
        verifiers(&dir.path().join("none"), None).check("a:b", &target()).await.unwrap();
    }
}
