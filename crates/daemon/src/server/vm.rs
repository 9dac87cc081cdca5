//! One VM: what the daemon itself knows and does of it.

use super::answer::Failure;
use super::nodes::{json, wait, wait_time};
use crate::guest;
use crate::network;
use crate::supervisor::Supervisor;
use crate::vm::{Phase, VmHandle};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use hyper::Method;
use slicer_api::{
    ApiError, CreatedNode, Health, Logs, NodeDetail, RESTORED, ShutdownAction, ShutdownRequest,
    Tags, TagsChange,
};
use slicer_machine::Machine;
use std::sync::Arc;

type State_ = State<Arc<Supervisor>>;

/// Lines of console that are shown when nobody says how many.
const DEFAULT_LINES: u64 = 20;

pub(super) async fn detail(
    State(supervisor): State_,
    Path(name): Path<String>,
) -> Result<Json<NodeDetail>, Failure> {
    let vm = supervisor.get(&name)?;
    let group = supervisor.group_config(&vm.record.group)?;
    let node = vm.node();
    Ok(Json(NodeDetail {
        node,
        storage: "image".to_owned(),
        image: vm.record.image.clone(),
        commit_id: vm.view.borrow().commit_id.as_deref().map(str::to_owned),
        parent_commit_id: vm.record.parent_commit_id.clone(),
        network: network::shown(&group.network, vm.record.network.as_ref()),
        forwards: vm.forwards.iter().map(|f| f.shown()).collect(),
    }))
}

/// The machine of a VM whose agent may be asked, or why not.
pub(crate) fn reachable(vm: &VmHandle) -> Result<Arc<dyn Machine>, ApiError> {
    let name = &vm.record.hostname;
    let view = vm.view.borrow();
    match (&view.phase, &view.machine) {
        (Phase::Paused, _) => Err(ApiError::conflict(match &view.stalled {
            Some(why) => format!("VM {name} is paused, for {why}: free some, and it runs on"),
            None => format!("VM {name} is paused: resume it first"),
        })),
        (Phase::Stopped(Some(why)), _) => Err(ApiError::conflict(format!(
            "VM {name} is stopped, relaunch it first: {why}"
        ))),
        (Phase::Stopped(None), _) => Err(ApiError::conflict(format!(
            "VM {name} is stopped: relaunch it first"
        ))),
        (Phase::Suspended(_), _) => Err(ApiError::conflict(format!(
            "VM {name} is suspended: restore it first"
        ))),
        (Phase::Gone(_), _) => Err(ApiError::not_found(format!("VM {name:?} not found"))),
        (_, Some(machine)) if view.ready => Ok(machine.clone()),
        _ => Err(ApiError::unavailable(format!(
            "VM {name} is not ready: it is booting, or its agent is starting anew; try again \
             shortly"
        ))),
    }
}

pub(super) async fn health(
    State(supervisor): State_,
    Path(name): Path<String>,
    method: Method,
) -> Result<Response, Failure> {
    let vm = supervisor.get(&name)?;
    let machine = reachable(&vm)?;
    let health = guest::health(&*machine)
        .await
        .map_err(|e| e.to_api(&name))?;
    if method == Method::HEAD {
        return Ok(().into_response());
    }
    Ok(Json(Health {
        hostname: name,
        ip: vm.record.ip.to_string(),
        ..health
    })
    .into_response())
}

pub(super) async fn logs(
    State(supervisor): State_,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Logs>, Failure> {
    supervisor.get(&name)?;
    let asked = form_urlencoded::parse(query.unwrap_or_default().as_bytes())
        .filter(|(key, _)| key == "lines")
        .last()
        .map(|(_, value)| value.into_owned());
    let lines = match asked.as_deref() {
        None | Some("") => DEFAULT_LINES,
        Some(text) => text.parse().map_err(|_| {
            ApiError::bad_request(format!("invalid lines {text:?}: expected 0 or more"))
        })?,
    };
    let path = supervisor.work().console(&name);
    let wanted = if lines == 0 {
        None
    } else {
        usize::try_from(lines).ok()
    };
    let read = tokio::task::spawn_blocking(move || crate::console::tail(&path, wanted)).await;
    let content = match read {
        Ok(Ok(content)) => content,
        Ok(Err(e)) => return Err(ApiError::internal(format!("cannot read console: {e}")).into()),
        Err(_) => return Err(ApiError::internal("cannot read console").into()),
    };
    let lines = if lines == 0 {
        content.lines().count() as u64
    } else {
        lines
    };
    Ok(Json(Logs {
        hostname: name,
        lines,
        content,
    }))
}

pub(super) async fn tags(
    State(supervisor): State_,
    Path(name): Path<String>,
) -> Result<Json<Tags>, Failure> {
    let tags = supervisor.get(&name)?.tags().to_vec();
    Ok(Json(Tags {
        hostname: name,
        tags,
    }))
}

pub(super) async fn change_tags(
    State(supervisor): State_,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<Tags>, Failure> {
    let vm = supervisor.get(&name)?;
    let change = json::<TagsChange>(body).await?;
    let tags = supervisor.change_tags(&vm, change).await?;
    Ok(Json(Tags {
        hostname: name,
        tags,
    }))
}

pub(super) async fn shutdown(
    State(supervisor): State_,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<&'static str, Failure> {
    let vm = supervisor.get(&name)?;
    let asked = form_urlencoded::parse(query.unwrap_or_default().as_bytes())
        .filter(|(key, _)| key == "action")
        .last()
        .map(|(_, value)| value.into_owned());
    // Read whether it decides or not: what is no request is none.
    let body = json::<ShutdownRequest>(body).await?;
    let action = match asked.as_deref() {
        Some("shutdown") => ShutdownAction::Shutdown,
        Some("reboot") => ShutdownAction::Reboot,
        None | Some("") => body.action.unwrap_or_default(),
        Some(text) => {
            let text = format!("invalid action {text:?}: use shutdown or reboot");
            return Err(ApiError::bad_request(text).into());
        }
    };
    vm.shutdown(action).await?;
    Ok("shutdown requested\n")
}

pub(super) async fn pause(
    State(supervisor): State_,
    Path(name): Path<String>,
) -> Result<&'static str, Failure> {
    supervisor.get(&name)?.pause().await?;
    Ok("VM paused\n")
}

pub(super) async fn resume(
    State(supervisor): State_,
    Path(name): Path<String>,
) -> Result<&'static str, Failure> {
    supervisor.get(&name)?.resume().await?;
    Ok("VM resumed\n")
}

pub(super) async fn suspend(
    State(supervisor): State_,
    Path(name): Path<String>,
) -> Result<&'static str, Failure> {
    supervisor.get(&name)?.suspend(false).await?;
    Ok("VM suspended\n")
}

pub(super) async fn restore(
    State(supervisor): State_,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<String, Failure> {
    let wait = wait(query.as_deref())?;
    let timeout = wait_time(query.as_deref())?;
    let vm = supervisor.get(&name)?;
    let restored = async {
        let lost = vm.restore().await?;
        vm.reached(wait).await?;
        Ok::<_, ApiError>(lost)
    };
    let lost = if wait.is_some() {
        let limited = tokio::time::timeout(timeout, restored).await;
        limited.map_err(|_| {
            ApiError::timeout(format!(
                "VM {name} was not ready within {timeout:?}; it goes on"
            ))
        })??
    } else {
        restored.await?
    };
    Ok(match lost {
        None => format!("{RESTORED}\n"),
        Some(why) => {
            format!("VM {name} could not be restored and was booted from its disk: {why}\n")
        }
    })
}

pub(super) async fn relaunch(
    State(supervisor): State_,
    Path(name): Path<String>,
) -> Result<Json<CreatedNode>, Failure> {
    let vm = supervisor.get(&name)?;
    vm.relaunch().await?;
    Ok(Json(vm.record.created()))
}
