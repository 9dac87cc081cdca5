//! Commits of VMs, and forks of commits, as the API asks for them.

use crate::DaemonError;
use crate::admission::check_size;
use crate::commits::{self, CommitRecord};
use crate::network::check_override;
use crate::record::{VmRecord, draw_mac};
use crate::supervisor::Supervisor;
use crate::tags;
use crate::vm::{Phase, VmHandle};
use slicer_api::{ApiError, CommitRequest, Fixup, ForkRequest, NetworkPolicy, TagMode, Timestamp};
use std::sync::Arc;
use std::time::Duration;

/// Longer than a VM takes to be off that was asked for it: it is switched off then.
const STOP_TIME: Duration = Duration::from_mins(2);

impl Supervisor {
    /// Makes a commit of a VM's disk that is off, or about to be. It is done to its end, whether or not anybody still
    /// waits for it.
    pub(crate) async fn commit(
        &self,
        vm: VmHandle,
        request: CommitRequest,
    ) -> Result<Arc<CommitRecord>, ApiError> {
        commits::check(&request)?;
        let name = &vm.record.hostname;
        if vm.record.configured {
            return Err(ApiError::bad_request(format!(
                "VM {name} is declared by the configuration and can't be committed: commit one \
                 that was launched"
            )));
        }
        if !vm.record.persistent {
            return Err(ApiError::bad_request(format!(
                "VM {name} is ephemeral and can't be committed: its disk goes when it stops; launch \
                 one with --persistent"
            )));
        }
        // Not while others wait for their turn.
        let mut view = vm.view.clone();
        let down = view.wait_for(|v| v.phase != Phase::Stopping);
        // One that takes longer, or is deleted meanwhile, is told below.
        let _ = tokio::time::timeout(STOP_TIME, down).await.is_ok();
        let shared = self.shared.clone();
        let made = self.tasks().spawn(async move {
            let _changing = shared.commits.changing.lock().await;
            let key = Some(request.cache_key.as_str()).filter(|k| !k.is_empty());
            shared.commits.check_unclaimed(key)?;
            let record = vm.commit(request).await?;
            Ok(shared.commits.add(record))
        });
        made.await
            .unwrap_or_else(|_| Err(ApiError::internal("cannot make a commit")))
    }

    /// Removes a commit that nobody needs.
    pub(crate) async fn delete_commit(&self, id: &str) -> Result<(), ApiError> {
        self.shared.commits.get(id)?;
        let (shared, id) = (self.shared.clone(), id.to_owned());
        let removed = self.tasks().spawn(async move {
            let _changing = shared.commits.changing.lock().await;
            // Somebody else may have been first.
            let commit = shared.commits.get(&id)?;
            if let Some(vm) = shared.user_of(&commit) {
                return Err(commits::still_needed(&id, &format!("VM {vm}")));
            }
            let work = shared.clone();
            let job = move || {
                work.commits.remove(&work.work, &id)?;
                work.templates.tidy();
                Ok(())
            };
            let removed = tokio::task::spawn_blocking(job).await;
            removed.unwrap_or_else(|_| Err(ApiError::internal("cannot remove a commit")))
        });
        removed
            .await
            .unwrap_or_else(|_| Err(ApiError::internal("cannot remove a commit")))
    }

    /// Makes a VM whose disk begins as a commit's: its record is durable and its launch has begun
    /// when this returns.
    pub(crate) async fn fork(&self, id: &str, request: &ForkRequest) -> Result<VmHandle, ApiError> {
        self.shared.commits.get(id)?;
        tags::check(&request.tags)?;
        self.check_secrets(request.secrets.as_deref()).await?;
        // Until the new VM's record is durable, so that its commit isn't removed from under it.
        let _changing = self.shared.commits.changing.lock().await;
        let commit = self.shared.commits.get(id)?;
        let group = self.group(&commit.source.group).ok_or_else(|| {
            ApiError::conflict(format!(
                "commit {id} is of host group {:?}, which the configuration no longer has",
                commit.source.group
            ))
        })?;
        check_size(&group.config, "vcpu", request.vcpu, request.ram_bytes)?;
        let network = request.network.as_ref();
        if let Some(policy) = network.filter(|n| n.allow.is_some() || n.drop.is_some()) {
            check_override(&group.config.network, policy)?;
        }
        let all = fork_tags(&commit.source.tags, request);
        tags::check(&all)?;
        let group_size = (group.config.vcpu, group.config.ram_bytes);
        self.admit(group, None, None, &all, |hostname, ip| {
            let mut record = child(&commit, request).map_err(|e| e.to_api())?;
            // The group may have become smaller.
            record.cpus = record.cpus.min(group_size.0);
            record.ram_bytes = record.ram_bytes.min(group_size.1);
            Ok(VmRecord {
                hostname,
                ip,
                tags: all.clone(),
                ..record
            })
        })
        .await
    }
}

/// The tags of a fork. A name is its VM's alone.
fn fork_tags(source: &[String], request: &ForkRequest) -> Vec<String> {
    inherited_tags(source, request.tag_mode.unwrap_or_default(), &request.tags)
}

/// The tags of a VM that begins as another. A name is its VM's alone.
pub(crate) fn inherited_tags(source: &[String], mode: TagMode, own: &[String]) -> Vec<String> {
    let mut tags = match mode {
        TagMode::Append => {
            let inherited = source.iter().filter(|t| !t.starts_with(tags::NAME));
            inherited.cloned().collect()
        }
        TagMode::Replace => Vec::new(),
    };
    for tag in own {
        if !tags.contains(tag) {
            tags.push(tag.clone());
        }
    }
    tags
}

/// The network lists of a fork: its own, and those of its source that it has none of.
fn policy(source: Option<&NetworkPolicy>, own: Option<&NetworkPolicy>) -> Option<NetworkPolicy> {
    let (Some(source), Some(own)) = (source, own) else {
        return own.or(source).cloned();
    };
    Some(NetworkPolicy {
        allow: own.allow.clone().or(source.allow.clone()),
        drop: own.drop.clone().or(source.drop.clone()),
    })
}

/// The record of a fork, but for what is given to it: name, address and tags. What the disk has
/// already, such as keys and what its userdata did, is as it was.
fn child(commit: &CommitRecord, request: &ForkRequest) -> Result<VmRecord, DaemonError> {
    let source = &commit.source;
    let fixups = request.fixups.clone().unwrap_or(Fixup::ALL.to_vec());
    let guest_hostname = if fixups.contains(&Fixup::Hostname) {
        None
    } else {
        Some(source.guest_hostname().to_owned())
    };
    Ok(VmRecord {
        mac: draw_mac()?,
        created_at: Timestamp::now(),
        persistent: request.persistent.unwrap_or(true),
        cpus: match request.vcpu {
            0 => source.cpus,
            asked => asked,
        },
        ram_bytes: match request.ram_bytes {
            0 => source.ram_bytes,
            asked => asked,
        },
        secrets: request.secrets.clone().or(source.secrets.clone()),
        network: policy(source.network.as_ref(), request.network.as_ref()),
        disk: None,
        commit_id: None,
        parent_commit_id: Some(commit.id.clone()),
        fixups: Some(fixups),
        guest_hostname,
        ..source.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::DiskKind;
    use crate::record::tests::sample;

    #[test]
    fn tags_are_inherited_but_for_the_name() {
        let source = ["name=web", "a=1", "b"].map(str::to_owned);
        let request = |mode, tags: &[&str]| ForkRequest {
            tag_mode: mode,
            tags: tags.iter().map(|t| (*t).to_owned()).collect(),
            ..ForkRequest::default()
        };
        let tags = |r: &ForkRequest| fork_tags(&source, r).join(" ");
        assert_eq!(tags(&request(None, &["b", "c"])), "a=1 b c");
        let replace = Some(TagMode::Replace);
        assert_eq!(tags(&request(replace, &["name=x"])), "name=x");
        assert_eq!(tags(&request(replace, &[])), "");
    }

    #[test]
    fn a_child_is_its_source_with_an_identity_of_its_own() {
        let mut source = sample("sbox-1");
        source.secrets = Some(vec!["key".into()]);
        source.commit_id = Some("cmt-0".into());
        let commit = CommitRecord::new(&source, DiskKind::Raw, CommitRequest::default()).unwrap();
        let made = child(&commit, &ForkRequest::default()).unwrap();
        assert!(made.persistent && made.disk.is_none() && made.commit_id.is_none());
        assert_ne!(made.mac, source.mac);
        assert_eq!(made.parent_commit_id.as_ref(), Some(&commit.id));
        assert_eq!(made.fixups, Some(Fixup::ALL.to_vec()));
        assert_eq!((made.secrets, made.guest_hostname), (source.secrets, None));
        assert_eq!((made.cpus, made.ram_bytes), (source.cpus, source.ram_bytes));

        let request = ForkRequest {
            secrets: Some(vec![]),
            fixups: Some(vec![]),
            persistent: Some(false),
            vcpu: 2,
            ..ForkRequest::default()
        };
        let made = child(&commit, &request).unwrap();
        assert!(!made.persistent);
        assert_eq!(made.secrets, Some(vec![]));
        assert_eq!(made.guest_hostname(), "sbox-1");
        assert_eq!(made.cpus, 2);
    }
}
