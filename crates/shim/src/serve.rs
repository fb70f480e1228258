//! The serving process.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_api::containerd::runtime::sandbox::v1::sandbox_ttrpc::SandboxServer;
use gantry_api::gantry::shim::v1::shim_ttrpc::ShimServer;
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_ttrpc::{Carried, Handover, Server};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Args;
use crate::events::{Events, Route};
use crate::fd;
use crate::log::warning;
use crate::reaper::Reaper;
use crate::sandbox::SandboxService;
use crate::state::{ShimRecord, VERSION};
use crate::stdio::Slots;
use crate::task::{Named, Shim};
use crate::upgrade::fds::Incoming;
use crate::upgrade::state::State;
use crate::upgrade::{self, UpgradeService};

/// Serves until the last container is gone and the shim is told to end. Standard input is the
/// listening socket; the working directory is the bundle.
///
/// # Errors
/// Standard input is not a listening socket, or the process cannot be set up.
pub(crate) fn serve(args: &Args, slots: Slots) -> Result<()> {
    gantry_sys::memory::be_frugal();
    crate::log::open(Path::new("."), args.debug);
    // Started through a descriptor, it would be listed under the number of that.
    if let Err(err) = rustix::thread::set_name(c"containerd-shim") {
        warning!("name of the process: {err}");
    }
    // Out of the daemon's session: when it dies, the kernel would hang up and wake what is stopped
    // there. One that `start` made leads a group already, and has been left by its parent.
    let _ = rustix::process::setsid();
    let listener = take_listener()?;
    run(args, slots, listener, None)
}

/// As [`serve`], from where the program before this one in this process was.
///
/// # Errors
/// Its state cannot be read, or the process cannot be set up.
pub(crate) fn take_over(args: &Args, slots: Slots) -> Result<()> {
    gantry_sys::memory::be_frugal();
    crate::log::open(Path::new("."), args.debug);
    let state = upgrade::receive(args)?;
    let listener = UnixListener::from(Incoming::owned(state.listener)?);
    run(args, slots, listener, Some(state))
}

fn run(args: &Args, slots: Slots, listener: UnixListener, state: Option<State>) -> Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(std::io::Error::from)
        .context(|| "child subreaper")?;
    let ttrpc_address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    record(args, &ttrpc_address);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context(|| "runtime")?;
    let route = route(args, ttrpc_address);
    runtime.block_on(serve_on(args, route, slots, listener, state))
}

async fn serve_on(
    args: &Args,
    route: Route,
    slots: Slots,
    listener: UnixListener,
    state: Option<State>,
) -> Result<()> {
    let path = bound_path(&listener);
    let reaper = Reaper::new();
    let events = Events::new(&args.namespace);
    let namespace = args.namespace.clone();
    let shim = Shim::new(namespace, reaper.clone(), events.clone(), slots, path.clone());
    let pod = SandboxService::new(shim.clone());
    let (carried, came_from) = match state {
        Some(state) => resume(state, &shim, &pod),
        None => (Vec::new(), None),
    };
    let reaping = tokio::spawn(reaper.clone().run());
    tokio::spawn(events.run(route, reaper));
    heed_signals(&shim);
    let small = shim.clone();
    tokio::spawn(async move { small.keep_small().await });
    gantry_sys::exec::unblock_signals();
    let handover = Handover::new(upgrade::repeats);
    let parts = upgrade::Parts {
        args: args.clone(),
        shim: shim.clone(),
        pod: pod.clone(),
        handover: handover.clone(),
        listener: fd::duplicate(&listener)?,
    };
    let upgrades = ShimServer::new(UpgradeService::new(parts, came_from));
    let [version_2, version_3] = Named::both(&shim);
    let server = Server::builder().service(version_2).service(version_3);
    let server = server.service(SandboxServer::new(pod)).service(upgrades);
    let server = server.handover(handover).build();
    listener.set_nonblocking(true).context(|| "listener")?;
    let listener = tokio::net::UnixListener::from_std(listener).context(|| "listener")?;
    let stop = async {
        tokio::select! {
            () = shim.stop.notified() => {}
            () = shim.forgotten() => warning!("no container and no daemon: this shim ends"),
            ended = reaping => warning!("the reaper ended: {ended:?}"),
        }
        // From here on nobody new finds this shim. One that was told to end has seen to that, and
        // by now the name may be another's.
        if let Some(path) = path.filter(|_| !shim.was_told()) {
            let _ = std::fs::remove_file(path);
        }
    };
    server.serve_on(listener, carried, stop).await;
    shim.finish().await;
    Ok(())
}

/// Goes on where the program before this one was. Returns its connections, and the request that
/// led here with the version of that program.
fn resume(
    state: State,
    shim: &Arc<Shim>,
    pod: &SandboxService,
) -> (Vec<Carried>, Option<(String, String)>) {
    shim.events.resume(&state.events);
    shim.resume(state.containers);
    pod.resume(state.pod);
    let mut carried = Vec::new();
    for connection in state.connections {
        match Incoming::owned(connection.socket) {
            Ok(socket) => carried.push(Carried { socket, input: connection.input }),
            Err(err) => warning!("a connection: {err}"),
        }
    }
    warning!("took over from version {}", state.binary_version);
    (carried, Some((state.token, state.binary_version)))
}

/// Takes the listening socket from standard input, and leaves nothing there.
fn take_listener() -> Result<UnixListener> {
    let stdin = rustix::stdio::stdin();
    if !rustix::net::sockopt::socket_acceptconn(stdin).unwrap_or(false) {
        return Err(Error::invalid_argument(
            "nothing to do: give an action (start, delete), or a listening socket as stdin",
        ));
    }
    let failed = |err: rustix::io::Errno| Error::io("take the listening socket", err.into());
    let listener: OwnedFd = rustix::io::fcntl_dupfd_cloexec(stdin, 3).map_err(failed)?;
    rustix::stdio::dup2_stdin(crate::fd::null()?).map_err(failed)?;
    Ok(UnixListener::from(listener))
}

/// Where the socket is found; its name was made by linking, so it is not the name it was bound to.
fn bound_path(listener: &UnixListener) -> Option<PathBuf> {
    let text = std::fs::read_to_string("address").ok();
    let named = text.as_deref().and_then(|t| t.trim().strip_prefix("unix://")).map(PathBuf::from);
    named.or_else(|| listener.local_addr().ok()?.as_pathname().map(Path::to_path_buf))
}

fn route(args: &Args, ttrpc_address: String) -> Route {
    if !ttrpc_address.is_empty() {
        return Route::Ttrpc(ttrpc_address);
    }
    if args.publish_binary.is_empty() {
        return Route::None;
    }
    Route::Binary { binary: args.publish_binary.clone(), address: args.address.clone() }
}

fn record(args: &Args, ttrpc_address: &str) {
    let record = ShimRecord {
        version: VERSION,
        pid: std::process::id(),
        namespace: args.namespace.clone(),
        id: args.id.clone(),
        address: args.address.clone(),
        ttrpc_address: ttrpc_address.to_owned(),
        binary_version: crate::VERSION.to_owned(),
    };
    if let Err(err) = record.save(Path::new(".")) {
        warning!("shim.json: {err}");
    }
}

/// A shim with containers does not go away because someone asks by signal; one without may.
fn heed_signals(shim: &Arc<Shim>) {
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()];
    for kind in kinds.into_iter().chain([SignalKind::hangup()]) {
        let Ok(mut asked) = signal(kind) else { continue };
        let shim = shim.clone();
        tokio::spawn(async move {
            while asked.recv().await.is_some() {
                if shim.is_empty() {
                    shim.stop.notify_one();
                } else {
                    warning!("a signal to end was ignored: there are containers");
                }
            }
        });
    }
}
