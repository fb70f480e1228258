//! `start`: finds the group's shim or starts it, and answers in the daemon's own form.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use gantry_api::Payload as _;
use gantry_api::containerd::runc::v1::Options as RuncOptions;
use gantry_api::containerd::runtime::bootstrap::v1::{BootstrapParams, BootstrapResult};
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_sys::program;
use prost::Message as _;
use prost_types::Any;

use crate::args::Args;
use crate::log::warning;
use crate::options::Options;
use crate::socket::{self, Taken};
use crate::spec::Spec;

/// Options and parameters are a few hundred bytes.
const INPUT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// The largest OOM score there is.
const OOM_SCORE_MAX: i32 = 1000;
/// Names the socket directory where the daemon cannot (before 2.3).
const SOCKET_DIR_ENV: &str = "GANTRY_SHIM_SOCKET_DIR";

/// The form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The address alone, which means version 2.
    Bare,
    /// JSON with a version.
    Json(i32),
    /// A `BootstrapResult`.
    Protobuf,
}

/// What the daemon asked for, from whichever of its forms.
#[derive(Debug)]
struct Request {
    form: Form,
    id: String,
    namespace: String,
    address: String,
    ttrpc_address: String,
    publish_binary: String,
    debug: bool,
    socket_dir: Option<String>,
    options: Options,
}

/// Runs `start`; the working directory is the bundle. Returns what to print.
///
/// # Errors
/// The bundle is unusable, or the serving process cannot be started.
pub(crate) fn start(args: &Args) -> Result<Vec<u8>> {
    let request = Request::read(args)?;
    let bundle = Path::new(".");
    let spec = match Spec::load(bundle) {
        // A sandbox has no spec of its own.
        Err(err) if err.is_not_found() => Spec::default(),
        other => other?,
    };
    let group = spec.group().unwrap_or(&request.id);
    let dir = request.socket_dir.as_deref();
    let path = socket::path(dir, &request.address, &request.namespace, group);
    let address = format!("unix://{}", path.display());
    let taken = socket::take(&path)?;
    // The serving process looks here for the name of its socket, and daemons before 1.7 after a
    // restart.
    std::fs::write("address", &address).context(|| "address")?;
    if let Taken::Ours(listener) = taken
        && let Err(err) = launch(&request, listener)
    {
        // Nobody will ever listen on it.
        let _ = std::fs::remove_file(&path);
        return Err(err);
    }
    Ok(answer(request.form, &address))
}

impl Request {
    fn read(args: &Args) -> Result<Self> {
        let mut input = Vec::new();
        let stdin = std::io::stdin().take(INPUT_BYTES_MAX);
        // No input at all is one of the forms, and a closed descriptor is no input.
        if { stdin }.read_to_end(&mut input).is_err() {
            input.clear();
        }
        let env = |name: &str| std::env::var(name).unwrap_or_default();
        let mut request = Self {
            form: form_of(&env("MAX_SHIM_VERSION")),
            id: args.id.clone(),
            namespace: args.namespace.clone(),
            address: args.address.clone(),
            ttrpc_address: env("TTRPC_ADDRESS"),
            publish_binary: args.publish_binary.clone(),
            debug: args.debug,
            socket_dir: std::env::var(SOCKET_DIR_ENV).ok(),
            options: Options::default(),
        };
        match parameters(&input, &args.id) {
            Some(params) => request.take(params)?,
            None => {
                let any = Any::decode(input.as_slice()).unwrap_or_default();
                request.options = Options::decode(Some(&any)).unwrap_or_default();
            }
        }
        if request.id.is_empty() || request.namespace.is_empty() {
            return Err(Error::invalid_argument("start: -id and -namespace are required"));
        }
        Ok(request)
    }

    fn take(&mut self, params: BootstrapParams) -> Result<()> {
        let or = |new: String, old: &mut String| {
            if !new.is_empty() {
                *old = new;
            }
        };
        self.form = Form::Protobuf;
        or(params.instance_id, &mut self.id);
        or(params.namespace, &mut self.namespace);
        or(params.containerd_grpc_address, &mut self.address);
        or(params.containerd_ttrpc_address, &mut self.ttrpc_address);
        or(params.containerd_binary, &mut self.publish_binary);
        self.debug |= params.log_level < 0;
        self.socket_dir = params.socket_dir.filter(|d| !d.is_empty()).or(self.socket_dir.take());
        for any in params.extensions.into_iter().filter_map(|extension| extension.value) {
            if any.unpack::<RuncOptions>()?.is_some() {
                self.options = Options::decode(Some(&any))?;
            }
        }
        Ok(())
    }
}

/// The input as parameters of a 2.3 daemon, if that is what it is. An options `Any` has strings
/// under the same first two numbers, so two more things must hold: it names our container, and it
/// has a field that an `Any` has not.
fn parameters(input: &[u8], id: &str) -> Option<BootstrapParams> {
    let params = BootstrapParams::decode(input).ok()?;
    let names_us = !params.instance_id.is_empty() && (id.is_empty() || params.instance_id == id);
    let more = !params.containerd_version.is_empty()
        || !params.containerd_grpc_address.is_empty()
        || !params.containerd_ttrpc_address.is_empty()
        || !params.containerd_binary.is_empty();
    (names_us && more).then_some(params)
}

/// The form that a daemon understands, from the version it says it knows. Those between 1.7 and
/// 2.2 all say 2 and not all of them take more.
fn form_of(known: &str) -> Form {
    match known.parse::<i32>() {
        Ok(version) if version >= 2 => Form::Json(version.min(3)),
        _ => Form::Bare,
    }
}

fn answer(form: Form, address: &str) -> Vec<u8> {
    match form {
        Form::Bare => address.as_bytes().to_vec(),
        Form::Json(version) => {
            let answer = serde_json::json!({
                "version": version, "address": address, "protocol": "ttrpc",
            });
            answer.to_string().into_bytes()
        }
        Form::Protobuf => BootstrapResult {
            version: 3,
            address: address.to_owned(),
            protocol: "ttrpc".to_owned(),
            ..BootstrapResult::default()
        }
        .encode_to_vec(),
    }
}

/// Starts the serving process: this program again, in its own process group, with the listening
/// socket as its standard input.
fn launch(request: &Request, listener: UnixListener) -> Result<()> {
    let name = std::env::args_os().next().unwrap_or_else(|| "containerd-shim-runc-v2".into());
    // Not to be written to by a container that sees a process of it.
    let protected = gantry_sys::program::protect(Path::new("/proc/self/exe")).ok();
    let program = protected.as_ref().map_or_else(|| "/proc/self/exe".into(), program::path_of);
    let mut command = Command::new(program);
    command.arg0(name);
    command.args(["-namespace", &request.namespace, "-id", &request.id]);
    command.args(["-address", &request.address]);
    if request.ttrpc_address.is_empty() && !request.publish_binary.is_empty() {
        command.args(["-publish-binary", &request.publish_binary]);
    }
    if request.debug {
        command.arg("-debug");
    }
    command.env("TTRPC_ADDRESS", &request.ttrpc_address);
    let (name, value) = gantry_sys::memory::FRUGAL_ENV;
    command.env(name, value);
    command.stdin(Stdio::from(OwnedFd::from(listener)));
    command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let child = command.spawn().context(|| "start the serving process")?;
    let pid = child.id();
    adjust_oom_score(pid);
    if !request.options.shim_cgroup.is_empty() {
        join_cgroup(&request.options.shim_cgroup, pid);
    }
    Ok(())
}

/// One above the daemon's: the kernel takes the shim before the daemon, and what the container's
/// spec says decides about the container.
fn adjust_oom_score(pid: u32) {
    let daemon = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get());
    let text = std::fs::read_to_string(format!("/proc/{daemon}/oom_score_adj")).unwrap_or_default();
    let Ok(score) = text.trim().parse::<i32>() else { return };
    let score = (score + 1).min(OOM_SCORE_MAX);
    if let Err(err) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()) {
        warning!("oom score {score}: {err}");
    }
}

/// Puts the serving process into the cgroup its options name; the shim works outside it as well.
fn join_cgroup(path: &str, pid: u32) {
    let root = Path::new("/sys/fs/cgroup");
    let path = path.trim_start_matches('/');
    let unified = root.join("cgroup.controllers").exists();
    let hierarchies = if unified {
        vec![root.to_path_buf()]
    } else {
        let list = std::fs::read_dir(root).into_iter().flatten().flatten();
        list.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
    };
    for hierarchy in hierarchies {
        let directory = hierarchy.join(path);
        let joined = std::fs::create_dir_all(&directory)
            .and_then(|()| std::fs::write(directory.join("cgroup.procs"), pid.to_string()));
        if let Err(err) = joined {
            warning!("shim cgroup {}: {err}", directory.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_and_options_are_told_apart() {
        let params = BootstrapParams {
            instance_id: "box".into(),
            namespace: "default".into(),
            containerd_version: "2.3.4".into(),
            ..BootstrapParams::default()
        };
        assert_eq!(parameters(&params.encode_to_vec(), "box"), Some(params.clone()));
        assert_eq!(parameters(&params.encode_to_vec(), "other"), None);
        let any = Any::pack(&RuncOptions { binary_name: "crun".into(), ..Default::default() });
        assert_eq!(parameters(&any.encode_to_vec(), "box"), None);
        // The worst case: a container named like the type, with options that are valid text.
        assert_eq!(parameters(&any.encode_to_vec(), "containerd.runc.v1.Options"), None);
        assert_eq!(parameters(b"", "box"), None);
        assert_eq!(parameters(b"garbage", "box"), None);
    }

    #[test]
    fn answers_are_in_the_form_asked_for() {
        assert_eq!(form_of(""), Form::Bare);
        assert_eq!(form_of("2"), Form::Json(2));
        assert_eq!(form_of("9"), Form::Json(3));
        assert_eq!(answer(Form::Bare, "unix:///s"), b"unix:///s");
        let json: serde_json::Value =
            serde_json::from_slice(&answer(Form::Json(2), "unix:///s")).expect("json");
        assert_eq!((json["version"].as_i64(), json["protocol"].as_str()), (Some(2), Some("ttrpc")));
        let result = answer(Form::Protobuf, "unix:///s");
        let result = BootstrapResult::decode(result.as_slice()).expect("decodes");
        assert_eq!((result.version, result.address.as_str()), (3, "unix:///s"));
    }
}
