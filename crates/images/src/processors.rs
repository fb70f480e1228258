//! Programs that turn a layer of one media type into another before it is applied:
//! containerd's `[stream_processors]`.

use std::collections::BTreeMap;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd as _, RawFd};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use gantry_archive::Compression;
use gantry_core::Any;
use gantry_errdefs::{Error, Result, ResultExt};
use prost::Message as _;

/// Programs that one layer may go through: decryption, decompression and a few more.
const STEPS_MAX: usize = 8;

/// The descriptor on which a program finds its payload, if it has one.
const PAYLOAD_FD: RawFd = 3;

/// How much of what a program writes to standard error is kept for its error.
const LOG_BYTES_MAX: usize = 4096;

/// How long the rest of what a program wrote to standard error is waited for after its end.
const LOG_WAIT_MAX: Duration = Duration::from_secs(1);

/// One program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processor {
    /// Its name in the configuration.
    pub id: String,
    /// Media types it takes.
    pub accepts: Vec<String>,
    /// The media type it makes of them.
    pub returns: String,
    /// The program: a path, or a name on PATH.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment besides the daemon's, `NAME=value` each.
    pub env: Vec<String>,
}

/// All that are configured. The default has none. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Processors(Arc<[Processor]>);

impl Processors {
    /// These programs; where two take a media type, the last does.
    pub fn new(processors: impl Into<Arc<[Processor]>>) -> Self {
        Self(processors.into())
    }

    /// Whether a layer of this type goes through a program.
    pub(crate) fn take(&self, media_type: &str) -> bool {
        self.find(media_type).is_some()
    }

    fn find(&self, media_type: &str) -> Option<&Processor> {
        self.0.iter().rev().find(|p| p.accepts.iter().any(|a| a == media_type))
    }

    /// The programs that a layer goes through, in their order, until it is of a type that we read.
    ///
    /// # Errors
    /// Unimplemented when they do not lead to one.
    pub(crate) fn chain(&self, media_type: &str) -> Result<Vec<Processor>> {
        let mut chain = Vec::new();
        let mut at = media_type;
        while let Some(next) = self.find(at) {
            // One that keeps the type, as a faster inflater may say it does, is asked once.
            if chain.len() == STEPS_MAX || chain.iter().any(|p: &Processor| p.id == next.id) {
                break;
            }
            chain.push(next.clone());
            at = &next.returns;
        }
        if Compression::of_media_type(at).is_none() {
            return Err(Error::unimplemented(format!(
                "unsupported diff media type {media_type:?}"
            )));
        }
        Ok(chain)
    }
}

/// Sends `layer`, of `media_type`, through the programs of `chain`, each with the payload of its
/// name. What is read is the output of the last one; it ends with an error when one of them fails. Programs end with the reader.
///
/// # Errors
/// The I/O error of a program that cannot be started.
pub(crate) fn through(
    layer: Box<dyn Read + Send>,
    media_type: &str,
    chain: &[Processor],
    payloads: &BTreeMap<String, Any>,
) -> Result<Box<dyn Read + Send>> {
    let (mut layer, mut media_type) = (layer, media_type);
    for processor in chain {
        let output = Output::start(processor, media_type, layer, payloads.get(&processor.id));
        layer = Box::new(output.context(|| {
            format!("stream processor {:?} ({})", processor.id, processor.path.display())
        })?);
        media_type = &processor.returns;
    }
    Ok(layer)
}

/// Starts a program that can read the encoded `payload` from [`PAYLOAD_FD`].
fn start_with(command: &mut Command, payload: &Any) -> io::Result<Child> {
    let (read, mut write) = io::pipe()?;
    let child = gantry_sys::exec::spawn_with(command, read.as_fd(), PAYLOAD_FD)?;
    let Any { type_url, value } = payload.clone();
    let bytes = prost_types::Any { type_url, value }.encode_to_vec();
    // A pipe holds 64 KiB, a payload may be more; and a program need not read it.
    std::thread::spawn(move || {
        drop(read);
        let _ = write.write_all(&bytes);
    });
    Ok(child)
}

/// What a program makes of a layer.
struct Output {
    id: String,
    child: Child,
    stdout: ChildStdout,
    /// Hands the layer to the program; the error is that of reading the layer.
    feeder: Option<JoinHandle<io::Result<()>>>,
    log: Arc<Mutex<Vec<u8>>>,
    /// Tells that the log is complete.
    logged: Receiver<()>,
    ended: bool,
}

impl Output {
    fn start(
        processor: &Processor,
        media_type: &str,
        mut layer: Box<dyn Read + Send>,
        payload: Option<&Any>,
    ) -> io::Result<Self> {
        let env = processor.env.iter().filter_map(|e| e.split_once('='));
        let mut command = Command::new(&processor.path);
        command
            .args(&processor.args)
            .envs(env)
            .env("STREAM_PROCESSOR_MEDIATYPE", media_type)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = match payload {
            Some(payload) => start_with(&mut command, payload)?,
            None => command.spawn()?,
        };
        let gone = || io::Error::other("a pipe of the program is gone");
        let mut stdin = child.stdin.take().ok_or_else(gone)?;
        let mut stderr = child.stderr.take().ok_or_else(gone)?;
        let stdout = child.stdout.take().ok_or_else(gone)?;
        let feeder = std::thread::spawn(move || match io::copy(&mut layer, &mut stdin) {
            // The program has all it wants; whether that was enough its exit code tells.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            copied => copied.map(drop),
        });
        let log = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&log);
        let (complete, logged) = sync_channel(1);
        std::thread::spawn(move || {
            let mut buf = [0; 1024];
            while let Ok(len @ 1..) = stderr.read(&mut buf) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                let room = LOG_BYTES_MAX.saturating_sub(kept.len()).min(len);
                kept.extend_from_slice(&buf[..room]);
            }
            let _ = complete.send(());
        });
        let id = processor.id.clone();
        Ok(Self { id, child, stdout, feeder: Some(feeder), log, logged, ended: false })
    }

    /// After the last byte: whether it was the last because all went well.
    fn end(&mut self) -> io::Result<()> {
        self.ended = true;
        let status = self.child.wait()?;
        if let Some(feeder) = self.feeder.take() {
            feeder.join().map_err(|_| io::Error::other("reading the layer panicked"))??;
        }
        if status.success() {
            return Ok(());
        }
        // A child of the program may keep the log open for as long as it likes.
        let _ = self.logged.recv_timeout(LOG_WAIT_MAX);
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let said = String::from_utf8_lossy(&log);
        let text = format!("stream processor {:?}: {status}: {}", self.id, said.trim());
        Err(io::Error::other(text))
    }
}

impl Read for Output {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.stdout.read(buf)?;
        if len == 0 && !buf.is_empty() && !self.ended {
            self.end()?;
        }
        Ok(len)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.ended {
            // Its feeder ends by the broken pipe.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use gantry_core::media_types;

    use super::*;

    fn processor(id: &str, accepts: &str, returns: &str, script: &str) -> Processor {
        Processor {
            id: id.to_owned(),
            accepts: vec![accepts.to_owned()],
            returns: returns.to_owned(),
            path: "/bin/sh".into(),
            args: vec!["-c".to_owned(), script.to_owned()],
            env: vec!["WORD=two".to_owned()],
        }
    }

    fn run(processors: &Processors, media_type: &str, input: &[u8]) -> io::Result<Vec<u8>> {
        let chain = processors.chain(media_type).unwrap();
        let input = Box::new(io::Cursor::new(input.to_vec()));
        let mut out = Vec::new();
        through(input, media_type, &chain, &BTreeMap::new())
            .unwrap()
            .read_to_end(&mut out)
            .map(|_| out)
    }

    #[test]
    fn layers_go_from_program_to_program() {
        let both = Processors::new(vec![
            processor("b", "x/mid", media_types::OCI_LAYER, "cat; echo $WORD"),
            processor("a", "x/top", "x/mid", "echo $STREAM_PROCESSOR_MEDIATYPE; cat"),
        ]);
        assert!(both.take("x/top") && !both.take(media_types::OCI_LAYER));
        assert_eq!(run(&both, "x/top", b"layer\n").unwrap(), b"x/top\nlayer\ntwo\n");
        // Much more than pipes hold, through one that reads it all first.
        let slow =
            processor("c", "x/c", media_types::OCI_LAYER, "f=$(mktemp); cat >$f; cat $f; rm $f");
        let big = vec![7; 1 << 20];
        assert!(run(&Processors::new(vec![slow]), "x/c", &big).unwrap() == big);
    }

    #[test]
    fn a_program_reads_the_payload_of_its_name() {
        let read = "cat <&3; cat";
        let processors = Processors::new(vec![
            processor("told", "x/told", media_types::OCI_LAYER, read),
            processor("other", "x/other", media_types::OCI_LAYER, "cat <&3 2>/dev/null; cat"),
            processor("deaf", "x/deaf", media_types::OCI_LAYER, "cat"),
        ]);
        let payload = Any { type_url: "a.Key".to_owned(), value: b"secret".to_vec() };
        let big = Any { value: vec![7; 1 << 20], ..payload.clone() };
        let payloads: BTreeMap<_, _> =
            [("told".to_owned(), payload), ("deaf".to_owned(), big)].into();
        let run = |media_type: &str| {
            let chain = processors.chain(media_type).unwrap();
            let mut out = Vec::new();
            let layer = Box::new(io::Cursor::new(b"layer"));
            let mut made = through(layer, media_type, &chain, &payloads).unwrap();
            made.read_to_end(&mut out).unwrap();
            out
        };
        // Field 1 is the type, field 2 the value: protobuf's Any.
        assert_eq!(run("x/told"), b"\x0a\x05a.Key\x12\x06secretlayer");
        assert_eq!(run("x/other"), b"layer");
        assert_eq!(run("x/deaf"), b"layer");
    }

    #[test]
    fn failures_are_told() {
        let bad = processor("bad", "x/y", media_types::OCI_LAYER, "cat; echo no key >&2; exit 3");
        let err = run(&Processors::new(vec![bad]), "x/y", b"layer").unwrap_err();
        let text = err.to_string();
        assert!(
            text.contains("\"bad\"") && text.contains("3") && text.contains("no key"),
            "{text}"
        );
        let nowhere = Processors::new(vec![processor("n", "x/y", "x/z", "cat")]);
        assert!(nowhere.chain("x/y").unwrap_err().is_unimplemented());
        let round = Processors::new(vec![processor("r", "x/y", "x/y", "cat")]);
        assert!(round.chain("x/y").unwrap_err().is_unimplemented());
    }

    #[test]
    fn a_reader_that_goes_ends_the_program() {
        let endless = processor("e", "x/y", media_types::OCI_LAYER, "exec yes");
        let chain = Processors::new(vec![endless]).chain("x/y").unwrap();
        let mut output = Output::start(&chain[0], "x/y", Box::new(io::empty()), None).unwrap();
        output.read_exact(&mut [0; 16]).unwrap();
        let pid = output.child.id();
        drop(output);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}
