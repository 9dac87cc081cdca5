//! What of a VM the configuration makes reachable on the host.

use crate::forwarded::{self, Forwarded};
use crate::server::reachable;
use crate::vm::{Phase, VmHandle};
use slicer_api::{ApiError, Forward, ForwardListen, ForwardTarget};
use slicer_forward::Forwarder;
use std::path::Path;
use std::time::Duration;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

/// Time between two attempts to listen where somebody else does.
const RETRY: Duration = Duration::from_secs(5);

/// The mappings as seen from the daemon's directory.
pub(crate) fn rooted(forwards: &[Forward], root: &Path) -> Vec<Forward> {
    let mut forwards = forwards.to_vec();
    for forward in &mut forwards {
        if let ForwardListen::Unix(path) = &mut forward.listen {
            *path = root.join(&*path);
        }
    }
    forwards
}

/// Keeps a VM's mappings up until the VM is no more, whether it runs or not: a connection while
/// there is nothing to connect to is closed. Where somebody else listens, it waits for its turn.
/// `tasks` are the daemon's.
pub(crate) async fn keep_up(vm: VmHandle, forwards: Vec<Forward>, tasks: TaskTracker) {
    let mut view = vm.view.clone();
    let gone = async move {
        // An error means that its actor has ended.
        let _ = view.wait_for(|v| matches!(v.phase, Phase::Gone(_))).await;
    };
    let mut listening = tokio::task::JoinSet::new();
    for forward in forwards {
        listening.spawn(keep_one(vm.clone(), forward, tasks.clone()));
    }
    tokio::select! {
        () = gone => {}
        _ = listening.join_next() => {}
    }
    listening.shutdown().await;
}

async fn keep_one(vm: VmHandle, forward: Forward, tasks: TaskTracker) {
    let name = &vm.record.hostname;
    let mut told = false;
    loop {
        match Forwarder::bind(std::slice::from_ref(&forward)).await {
            Ok(forwarder) => {
                for forward in forwarder.forwards() {
                    info!(
                        "{name}: forwarding {} to {}",
                        forward.listen, forward.target
                    );
                }
                let (served, tasks) = (vm.clone(), tasks.clone());
                let dial = move |target: ForwardTarget| dial(served.clone(), target, tasks.clone());
                let name = name.clone();
                let failed = move |target: &ForwardTarget, e: ApiError| {
                    debug!("{name}: nothing to forward to at {target}: {e}");
                };
                forwarder.serve(dial, failed).await;
            }
            Err(e) if !told => {
                let why = &e.source;
                warn!("{name}: {e}: {why}; trying again until it is free");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn dial(
    vm: VmHandle,
    target: ForwardTarget,
    tasks: TaskTracker,
) -> Result<Forwarded, ApiError> {
    let machine = reachable(&vm)?;
    let forwarded = forwarded::forward(machine, &target, tasks).await;
    forwarded.map_err(|e| e.to_api(&vm.record.hostname))
}
