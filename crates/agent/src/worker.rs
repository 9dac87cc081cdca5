//! The worker: serves the guest channel, over the virtio port or, for tests, a socket.

use crate::error::{AgentError, io_error};
use crate::init::{GuestInit, mount_modules};
use crate::modules::{self, ModuleList};
use crate::server::{Agent, Scope};
use crate::{log, port, ready, reclaim, requests, sys, units, vsock};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::task::spawn_blocking;
use tokio_util::task::AbortOnDropHandle;

/// How long the agent of a process waits for what it started, once its host is gone. Longer than
/// an abandoned command is given.
const LAST_TASKS: Duration = Duration::from_secs(12);
/// How long the answer to a shutdown may take to get through the channel.
const LINGER: Duration = Duration::from_millis(200);
/// Between two attempts to serve the port.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

fn runtime() -> Result<Runtime, AgentError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(io_error("start the runtime of", "slicer-agent"))
}

/// Runs a future as one of the runtime's tasks. Were it what the runtime is blocked on, each time a task
/// wakes it the runtime would first ask the kernel for events: a system call more for each answer.
fn run_as_task<T: Send + 'static>(
    runtime: &Runtime,
    future: impl Future<Output = T> + Send + 'static,
) -> T {
    let task = AbortOnDropHandle::new(runtime.spawn(future));
    runtime
        .block_on(task)
        .unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
}

/// The worker of a guest. Ends only when it can't work at all.
pub(crate) fn run(init: GuestInit) -> ExitCode {
    sys::keep_freed_memory();
    if let Err(e) = sys::take_precedence() {
        log::warn(&format!("cannot take precedence: {e}"));
    }
    let result = runtime().and_then(|runtime| {
        let agent = Agent::new(Scope::Guest(init));
        run_as_task(&runtime, async move { serve_guest(&agent, init).await })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log::warn(&e.to_string());
            ExitCode::FAILURE
        }
    }
}

/// The late modules that boot waits for: an identity needs the network card, and systemd does no
/// automounts for good when it once found no autofs.
const WANTED_SOON: [&str; 2] = ["virtio_net", "autofs4"];

/// Loads the late modules up to the last that boot waits for, and the others once the guest is
/// ready: until then they would only take the processor from what users wait for. The initramfs
/// they are in is our standard input, see `init`.
async fn load_late_modules(agent: Arc<Agent>) {
    let read = || ModuleList::read(std::io::stdin().as_fd());
    let list = match spawn_blocking(read).await {
        Ok(Ok(list)) => list,
        Ok(Err(e)) => {
            log::warn(&e.to_string());
            ModuleList::default()
        }
        Err(_) => ModuleList::default(),
    };
    let soon = list
        .late
        .iter()
        .rposition(|name| WANTED_SOON.contains(&name.as_str()))
        .map_or(0, |last| last + 1);
    let (soon, later) = list.late.split_at(soon);
    let (soon, later) = (soon.to_vec(), later.to_vec());
    // A panic in there would have ended the worker.
    let _ = spawn_blocking(move || load_modules(&soon)).await;
    agent.modules_loaded.send_replace(true);
    let mut settling = agent.settling.subscribe();
    tokio::select! {
        () = agent.readiness.ready() => {}
        _ = settling.wait_for(|s| *s) => {}
    }
    let _ = spawn_blocking(move || {
        load_modules(&later);
        modules::discard_all(std::io::stdin().as_fd(), &list);
    })
    .await;
}

fn load_modules(names: &[String]) {
    let stdin = std::io::stdin();
    for name in names {
        if let Err(e) = modules::load(stdin.as_fd(), name) {
            log::warn(&e.to_string());
        }
    }
}

async fn serve_guest(agent: &Arc<Agent>, init: GuestInit) -> Result<(), AgentError> {
    agent.tasks.spawn(load_late_modules(Arc::clone(agent)));
    let watcher = Arc::clone(agent);
    agent.tasks.spawn(async move {
        if init == GuestInit::Systemd {
            ready::early_boot_over().await;
            watcher.assert_hostname().await;
            if units::is_short_way() {
                let mounted = spawn_blocking(mount_modules).await;
                if let Ok(Err(e)) = mounted {
                    log::warn(&e.to_string());
                }
            }
        }
        watcher.readiness.set_sane();
        let mut settling = watcher.settling.subscribe();
        tokio::select! {
            () = watcher.readiness.ready() => log::notice("the guest is ready"),
            // The template's clones have this thread, and need not begin one each.
            _ = settling.wait_for(|s| *s) => {}
        }
        reclaim::watch();
    });
    let server = Arc::clone(agent);
    agent.tasks.spawn(async move {
        if let Err(e) = requests::serve(server, requests::socket()).await {
            log::warn(&e.to_string());
        }
    });
    let command_line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if let Some(port) = vsock::wanted(&command_line) {
        return vsock::serve(agent, port).await;
    }
    let path = find_port().await;
    let port = Arc::new(port::open(&path)?);
    log::info(&format!("serving on {}", path.display()));
    loop {
        port::wait_for_host(&port)
            .await
            .map_err(io_error("wait for the host on", &path))?;
        let io = port::Port::new(Arc::clone(&port)).map_err(io_error("watch", &path))?;
        let served = slicer_channel::serve(io, |stream| agent.accept(stream)).await;
        if let Err(source) = served {
            let path = path.clone();
            log::info(&AgentError::Channel { path, source }.to_string());
            // A port that keeps failing must not take the guest's processor.
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

/// The channel's port, as soon as the kernel knows its name, which it learns from the host some
/// time after the driver is loaded. Without one there is nothing to do but go on looking.
async fn find_port() -> PathBuf {
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(path) = port::find() {
            return path;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// Serves the channel on the unix socket at `path`, to which it connects. Ends when the host's
/// side does, or on a shutdown.
pub(crate) fn serve_socket(path: &Path) -> ExitCode {
    let path = path.to_owned();
    let serve = async move { serve_connected(&path).await };
    let result = runtime().and_then(|runtime| run_as_task(&runtime, serve));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log::warn(&e.to_string());
            ExitCode::FAILURE
        }
    }
}

async fn serve_connected(path: &Path) -> Result<(), AgentError> {
    let socket = tokio::net::UnixStream::connect(path)
        .await
        .map_err(io_error("connect to", path))?;
    let agent = Agent::new(Scope::Process);
    agent.readiness.set_sane();
    let mut serve = Box::pin(slicer_channel::serve(socket, |stream| agent.accept(stream)));
    let result = tokio::select! {
        result = &mut serve => result,
        () = agent.end.notified() => {
            // The host hangs up when it has its answer; one that doesn't gets no more of us.
            let _ = tokio::time::timeout(LINGER, &mut serve).await;
            Ok(())
        }
    };
    // Ends the streams that are left, and what serves them.
    drop(serve);
    agent.background.close();
    agent.tasks.close();
    let _ = tokio::time::timeout(LAST_TASKS, agent.tasks.wait()).await;
    match result {
        // Its end is how a host ends us.
        Ok(()) | Err(slicer_channel::ChannelError::Closed) => Ok(()),
        Err(source) => Err(AgentError::Channel {
            path: path.to_owned(),
            source,
        }),
    }
}
