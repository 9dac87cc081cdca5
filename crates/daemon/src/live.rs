//! Forks of VMs that run, as the API asks for them.

use crate::DaemonError;
use crate::fork::inherited_tags;
use crate::record::{VmRecord, draw_mac};
use crate::supervisor::Supervisor;
use crate::tags;
use crate::vm::live::Snapshot;
use crate::vm::{Start, VmHandle};
use slicer_api::{ApiError, LiveForkRequest, MAX_FORKS, Timestamp};
use std::sync::Arc;
use std::time::Duration;

impl Supervisor {
    /// Makes VMs that go on from where one is now, which runs on: their records are durable and their
    /// launch has begun when this returns. It says for how long the VM was paused.
    pub(crate) async fn fork_live(
        &self,
        vm: &VmHandle,
        request: &LiveForkRequest,
    ) -> Result<(Vec<VmHandle>, Duration), ApiError> {
        let count = request.count.max(1);
        if count > MAX_FORKS {
            return Err(ApiError::bad_request(format!(
                "count {count} is more than {MAX_FORKS}: fork again for more"
            )));
        }
        tags::check(&request.tags)?;
        if count > 1 && request.tags.iter().any(|t| t.starts_with(tags::NAME)) {
            return Err(ApiError::bad_request(
                "a name is one VM's alone: fork with a count of 1, or tag them later",
            ));
        }
        self.check_secrets(request.secrets.as_deref()).await?;
        let source = vm.record.group.clone();
        let group = self.group(&source).ok_or_else(|| {
            ApiError::conflict(format!(
                "VM {} is of host group {source:?}, which the configuration no longer has",
                vm.record.hostname
            ))
        })?;
        let mode = request.tag_mode.unwrap_or_default();
        let all = inherited_tags(&vm.tags(), mode, &request.tags);
        tags::check(&all)?;
        let snapshot = Arc::new(vm.snapshot().await?);
        let mut forks = Vec::new();
        for _ in 0..count {
            let begin = Some(Start::Fork(snapshot.clone()));
            let admitted = self
                .admit(group, None, begin, &all, |hostname, ip| {
                    let record = child(&snapshot, request).map_err(|e| e.to_api())?;
                    Ok(VmRecord {
                        hostname,
                        ip,
                        tags: all.clone(),
                        ..record
                    })
                })
                .await;
            match admitted {
                Ok(fork) => forks.push(fork),
                Err(e) => {
                    remove_all(&forks).await;
                    return Err(e);
                }
            }
        }
        Ok((forks, snapshot.paused))
    }
}

/// Removes forks of which not all could be had.
pub(crate) async fn remove_all(forks: &[VmHandle]) {
    for fork in forks {
        // One that is gone by itself is no loss.
        let _ = fork.delete().await;
    }
}

/// The record of a fork, but for what is given to it: name, address and tags. What the source was to do at
/// its first boot it has done.
fn child(snapshot: &Snapshot, request: &LiveForkRequest) -> Result<VmRecord, DaemonError> {
    Ok(VmRecord {
        mac: draw_mac()?,
        created_at: Timestamp::now(),
        persistent: false,
        configured: false,
        userdata: String::new(),
        secrets: Some(request.secrets.clone().unwrap_or_default()),
        wants_entrypoint: false,
        entrypoint: None,
        disk: None,
        commit_id: None,
        parent_commit_id: None,
        fixups: None,
        guest_hostname: None,
        template: Some(snapshot.origin()),
        ..snapshot.record.clone()
    })
}
