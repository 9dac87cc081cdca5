//! The daemon about itself.

use crate::host;
use crate::metrics::CountedVm;
use crate::supervisor::Supervisor;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::{HeaderMap, StatusCode};
use slicer_api::{Info, NodeStatus, go_arch, go_os};
use std::sync::Arc;
use tracing::info;

pub(super) async fn info() -> Json<Info> {
    Json(Info {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        git_commit: env!("SLICER_GIT_COMMIT").to_owned(),
        platform: go_os(std::env::consts::OS).to_owned(),
        arch: go_arch(std::env::consts::ARCH).to_owned(),
    })
}

pub(super) async fn healthz(headers: HeaderMap) -> Response {
    let accept = headers
        .get(ACCEPT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    if accept.contains("application/json") {
        ([(CONTENT_TYPE, "application/json")], r#"{"status":"ok"}"#).into_response()
    } else {
        ([(CONTENT_TYPE, "text/plain; charset=utf-8")], "OK").into_response()
    }
}

pub(super) async fn metrics(State(supervisor): State<Arc<Supervisor>>) -> Response {
    let vms = supervisor.list().into_iter().map(|vm| {
        let state = match vm.view.borrow().status() {
            NodeStatus::Running => "running",
            NodeStatus::Paused => "paused",
            NodeStatus::Stopped => "stopped",
            NodeStatus::Suspended => "suspended",
        };
        CountedVm {
            host_group: vm.record.group.clone(),
            api: !vm.record.configured,
            state,
        }
    });
    let host = tokio::task::spawn_blocking(host::read).await;
    let groups = supervisor.host_groups().into_iter().map(|g| g.name);
    let host = host.unwrap_or_default();
    supervisor.metrics.pooled(supervisor.pools());
    let text = supervisor.metrics.text(groups, vms, &host);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], text).into_response()
}

/// Answers before the VMs are off, for the answer could not come after. Asking again hurries
/// nothing: clients repeat requests.
pub(super) async fn shutdown(State(supervisor): State<Arc<Supervisor>>) -> StatusCode {
    info!("asked over the API to end");
    supervisor.ending.notify_one();
    StatusCode::ACCEPTED
}
