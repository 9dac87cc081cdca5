//! What VMs use.

use super::answer::Failure;
use super::vm::reachable;
use crate::guest;
use crate::supervisor::Supervisor;
use crate::vm::VmHandle;
use axum::Json;
use axum::extract::{Path, State};
use futures_util::StreamExt;
use slicer_api::{HostMemory, NodeStats, StatsSnapshot};
use std::sync::Arc;

/// Guests that are asked at once.
const AT_ONCE: usize = 32;

pub(super) async fn all(State(supervisor): State<Arc<Supervisor>>) -> Json<Vec<NodeStats>> {
    let asked = supervisor.list().into_iter().map(of);
    Json(
        futures_util::stream::iter(asked)
            .buffered(AT_ONCE)
            .collect()
            .await,
    )
}

/// One VM's, as an array: that is what the Go client of SlicerVM decodes.
pub(super) async fn one(
    State(supervisor): State<Arc<Supervisor>>,
    Path(name): Path<String>,
) -> Result<Json<Vec<NodeStats>>, Failure> {
    Ok(Json(vec![of(supervisor.get(&name)?).await]))
}

async fn of(vm: VmHandle) -> NodeStats {
    let name = &vm.record.hostname;
    let asked = async {
        let machine = reachable(&vm)?;
        guest::stats(&*machine).await.map_err(|e| e.to_api(name))
    };
    let (snapshot, error) = match asked.await {
        // A guest is believed about its use, not about its name.
        Ok(snapshot) => {
            let hostname = name.clone();
            (
                Some(StatsSnapshot {
                    hostname,
                    ..snapshot
                }),
                String::new(),
            )
        }
        Err(e) => (None, e.message),
    };
    NodeStats {
        hostname: name.clone(),
        ip: vm.record.ip.to_string(),
        created_at: Some(vm.record.created_at),
        snapshot,
        error,
        host_memory: host_memory(&vm),
    }
}

/// Of a VM that is paused, too.
fn host_memory(vm: &VmHandle) -> Option<HostMemory> {
    let machine = vm.view.borrow().machine.clone();
    let memory = machine?.host_memory()?;
    Some(HostMemory {
        used: memory.resident,
        returned: memory.peak.saturating_sub(memory.resident),
    })
}
