//! Templates: list, remove.

use super::answer::Failure;
use crate::DaemonError;
use crate::supervisor::Supervisor;
use crate::templates::Listed;
use axum::Json;
use axum::extract::{Path, State};
use slicer_api::{ApiError, RemovedTemplate, Template};
use std::sync::Arc;
use tokio::task::spawn_blocking;

type State_ = State<Arc<Supervisor>>;

pub(super) async fn list(State(supervisor): State_) -> Result<Json<Vec<Template>>, Failure> {
    let templates = supervisor.shared.templates.clone();
    let listed = spawn_blocking(move || templates.list()).await;
    let listed = listed.map_err(|_| DaemonError::Internal("listing templates").to_api())?;
    Ok(Json(listed.iter().map(shown).collect()))
}

fn shown(listed: &Listed) -> Template {
    let (template, shape) = (&listed.template, &listed.template.shape);
    Template {
        id: template.id.clone(),
        hostgroup: shape.group.clone(),
        image: template.image.clone(),
        image_digest: shape.image_digest.clone(),
        arch: shape.arch.clone(),
        cpus: shape.cpus,
        ram_bytes: shape.ram_bytes,
        disk_bytes: listed.size,
        clones: listed.clones,
        created_at: template.created_at,
        used_at: listed.used,
    }
}

pub(super) async fn remove(
    State(supervisor): State_,
    Path(id): Path<String>,
) -> Result<Json<RemovedTemplate>, Failure> {
    let (templates, wanted) = (supervisor.shared.templates.clone(), id.clone());
    let removed = spawn_blocking(move || templates.remove(&wanted)).await;
    let removed = removed.unwrap_or(Err(DaemonError::Internal("removing a template")));
    if !removed.map_err(|e| e.to_api())? {
        return Err(ApiError::not_found(format!("template {id:.80?} not found")).into());
    }
    Ok(Json(RemovedTemplate {
        id,
        status: "removed".to_owned(),
    }))
}
