//! Commits: make, list, remove, fork.

use super::answer::Failure;
use super::nodes::{json, parameter};
use crate::commits::Filter;
use crate::live::remove_all;
use crate::supervisor::Supervisor;
use crate::vm::VmHandle;
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use slicer_api::{
    ApiError, Commit, CommitRequest, Committed, DeletedCommit, ForkRequest, ForkWait, Forked,
    LiveForkRequest, LiveForked, parse_duration,
};
use std::sync::Arc;
use std::time::Duration;

/// How long a fork waits when it doesn't say.
const DEFAULT_WAIT: Duration = Duration::from_mins(5);

type State_ = State<Arc<Supervisor>>;

pub(super) async fn commit(
    State(supervisor): State_,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<Committed>, Failure> {
    let vm = supervisor.get(&name)?;
    let request = json::<CommitRequest>(body).await?;
    let made = supervisor.commit(vm, request).await?;
    Ok(Json(made.committed()))
}

pub(super) async fn list(
    State(supervisor): State_,
    RawQuery(query): RawQuery,
) -> Result<Json<Vec<Commit>>, Failure> {
    let filter = filter(query.as_deref())?;
    let all = supervisor.shared.commits.list(&filter);
    Ok(Json(all.iter().map(|c| c.shown()).collect()))
}

/// What a list's query asks for: any number of tags, and one of each other kind.
fn filter(query: Option<&str>) -> Result<Filter, ApiError> {
    let mut filter = Filter::default();
    for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let value = Some(value.into_owned()).filter(|v| !v.is_empty());
        let place = match &*key {
            "tag" => {
                filter.tags.extend(value);
                continue;
            }
            "cache_key" => &mut filter.cache_key,
            "source" => &mut filter.source,
            "mode" => &mut filter.mode,
            _ => continue,
        };
        if place.is_some() {
            return Err(ApiError::bad_request(format!("{key} can be given once")));
        }
        *place = value;
    }
    Ok(filter)
}

pub(super) async fn remove(
    State(supervisor): State_,
    Path(id): Path<String>,
) -> Result<Json<DeletedCommit>, Failure> {
    supervisor.delete_commit(&id).await?;
    Ok(Json(DeletedCommit {
        commit_id: id,
        status: "deleted".to_owned(),
    }))
}

pub(super) async fn fork(
    State(supervisor): State_,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Json<Forked>, Failure> {
    let commit = supervisor.shared.commits.get(&id)?;
    let forked = fork_vm(&supervisor, &id, query.as_deref(), body).await;
    let code = forked.as_ref().map_or_else(|e| e.status, |_| 200);
    let group = &commit.source.group;
    if supervisor.group_config(group).is_ok() {
        supervisor.metrics.launched(group, code);
    }
    let (vm, wait) = forked?;
    let source = supervisor.get(&commit.source.hostname).ok();
    let source = source.filter(|s| s.record.mac == commit.source.mac);
    let parent_status = source.map_or_else(
        || "deleted".to_owned(),
        |s| s.view.borrow().status().to_string().to_lowercase(),
    );
    let child_status = match wait {
        ForkWait::Agent => "running",
        ForkWait::None => "starting",
    };
    Ok(Json(Forked {
        hostname: vm.record.hostname.clone(),
        source_hostname: commit.source.hostname.clone(),
        commit_id: id,
        status: "forked".to_owned(),
        parent_status,
        child_status: child_status.to_owned(),
        mode: commit.shown().mode,
        persistent: vm.record.persistent,
    }))
}

pub(super) async fn fork_live(
    State(supervisor): State_,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Json<LiveForked>, Failure> {
    let vm = supervisor.get(&name)?;
    let (wait, timeout) = waiting(query.as_deref())?;
    let request: LiveForkRequest = json(body).await?;
    let forked = supervisor.fork_live(&vm, &request).await;
    let group = &vm.record.group;
    if supervisor.group_config(group).is_ok() {
        let code = forked.as_ref().map_or_else(|e| e.status, |_| 200);
        supervisor.metrics.launched(group, code);
    }
    let (forks, paused) = forked?;
    let all_there = async {
        for fork in &forks {
            match wait {
                ForkWait::None => fork.launched().await?,
                ForkWait::Agent => fork.ready().await?,
            }
        }
        Ok::<(), ApiError>(())
    };
    let there = tokio::time::timeout(timeout, all_there).await;
    let there = there.unwrap_or_else(|_| {
        Err(ApiError::timeout(format!(
            "the forks of {name} were not ready within {timeout:?} and have been deleted; give them \
             more time with timeout"
        )))
    });
    if let Err(e) = there {
        remove_all(&forks).await;
        return Err(e.into());
    }
    Ok(Json(LiveForked {
        source_hostname: name,
        status: "forked".to_owned(),
        paused: u64::try_from(paused.as_nanos()).unwrap_or(u64::MAX),
        vms: forks.iter().map(|f| f.record.created()).collect(),
    }))
}

/// Whether, and for how long, a fork is waited for.
fn waiting(query: Option<&str>) -> Result<(ForkWait, Duration), ApiError> {
    let wait = match parameter(query, "wait").as_deref() {
        None | Some("") => ForkWait::default(),
        Some(text) => text.parse().map_err(ApiError::bad_request)?,
    };
    let timeout = match parameter(query, "timeout").as_deref() {
        None | Some("") => DEFAULT_WAIT,
        Some(text) => parse_duration(text)
            .map_err(|e| ApiError::bad_request(format!("invalid timeout: {e}")))?,
    };
    Ok((wait, timeout))
}

async fn fork_vm(
    supervisor: &Supervisor,
    id: &str,
    query: Option<&str>,
    body: Body,
) -> Result<(VmHandle, ForkWait), ApiError> {
    let (wait, timeout) = waiting(query)?;
    let request: ForkRequest = json(body).await?;
    let vm = supervisor.fork(id, &request).await?;
    if wait == ForkWait::None {
        vm.launched().await?;
        return Ok((vm, wait));
    }
    match tokio::time::timeout(timeout, vm.ready()).await {
        Ok(outcome) => outcome?,
        Err(_) => {
            vm.delete().await?;
            return Err(ApiError::timeout(format!(
                "fork {} was not ready within {timeout:?} and has been deleted; give it more time \
                 with timeout",
                vm.record.hostname
            )));
        }
    }
    Ok((vm, wait))
}
