//! What of a VM the configuration makes reachable on the host.

use crate::forwarded::{self, Forwarded};
use crate::server::reachable;
use crate::vm::{Phase, VmHandle};
use slicer_api::{ApiError, Forward, ForwardListen, ForwardTarget, NodeForward};
use slicer_forward::Forwarder;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

/// Time between two attempts to listen where somebody else does.
const RETRY: Duration = Duration::from_secs(5);

/// The mappings of one VM.
pub(crate) type Mappings = Arc<[Arc<Mapping>]>;

/// A mapping that is kept up.
#[derive(Debug)]
pub(crate) struct Mapping {
    forward: Forward,
    /// Where it listens, while it does.
    listens: watch::Sender<Option<ForwardListen>>,
}

impl Mapping {
    pub(crate) fn shown(&self) -> NodeForward {
        let listens = self.listens.borrow();
        let at = listens.as_ref().unwrap_or(&self.forward.listen);
        NodeForward {
            listen: at.to_string(),
            target: self.forward.target.to_string(),
            listening: listens.is_some(),
        }
    }
}

/// Mappings, as seen from the daemon's directory, that are not up yet.
pub(crate) fn mappings(forwards: &[Forward], root: &Path) -> Mappings {
    let rooted = |forward: &Forward| {
        let mut forward = forward.clone();
        if let ForwardListen::Unix(path) = &mut forward.listen {
            let rooted = root.join(&*path);
            // Without the `./` it may begin with.
            *path = std::path::absolute(&rooted).unwrap_or(rooted);
        }
        Arc::new(Mapping {
            forward,
            listens: watch::Sender::new(None),
        })
    };
    forwards.iter().map(rooted).collect()
}

/// Keeps a VM's mappings up until the VM is no more, whether it runs or not: a connection while
/// there is nothing to connect to is closed. Where somebody else listens, it waits for its turn.
/// `tasks` are the daemon's.
pub(crate) async fn keep_up(vm: VmHandle, tasks: TaskTracker) {
    let mut view = vm.view.clone();
    let gone = async move {
        // An error means that its actor has ended.
        let _ = view.wait_for(|v| matches!(v.phase, Phase::Gone(_))).await;
    };
    let mut listening = tokio::task::JoinSet::new();
    for mapping in vm.forwards.iter() {
        listening.spawn(keep_one(vm.clone(), mapping.clone(), tasks.clone()));
    }
    tokio::select! {
        () = gone => {}
        _ = listening.join_next() => {}
    }
    listening.shutdown().await;
}

async fn keep_one(vm: VmHandle, mapping: Arc<Mapping>, tasks: TaskTracker) {
    let name = &vm.record.hostname;
    let mut told = false;
    loop {
        match Forwarder::bind(std::slice::from_ref(&mapping.forward)).await {
            Ok(forwarder) => {
                for forward in forwarder.forwards() {
                    info!(
                        "{name}: forwarding {} to {}",
                        forward.listen, forward.target
                    );
                    mapping.listens.send_replace(Some(forward.listen.clone()));
                }
                let (served, tasks) = (vm.clone(), tasks.clone());
                let dial = move |target: ForwardTarget| dial(served.clone(), target, tasks.clone());
                let name = name.clone();
                let failed = move |target: &ForwardTarget, e: ApiError| {
                    debug!("{name}: nothing to forward to at {target}: {e}");
                };
                forwarder.serve(dial, failed).await;
                mapping.listens.send_replace(None);
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
