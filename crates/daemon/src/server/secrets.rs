//! Secrets: list, create, change, remove. Values go in and never come out.

use super::answer::Failure;
use super::nodes::json;
use crate::secrets::Secrets;
use crate::supervisor::Supervisor;
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use hyper::StatusCode;
use slicer_api::{ApiError, CreateSecret, Secret, UpdateSecret};
use std::sync::Arc;

type State_ = State<Arc<Supervisor>>;

async fn blocking<T: Send + 'static>(
    supervisor: &Supervisor,
    work: impl FnOnce(&Secrets) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let store = supervisor.secrets();
    let done = tokio::task::spawn_blocking(move || work(&store)).await;
    done.unwrap_or_else(|_| Err(ApiError::internal("cannot work on secrets")))
}

pub(super) async fn list(State(supervisor): State_) -> Result<Json<Vec<Secret>>, Failure> {
    let all = blocking(&supervisor, |store| store.list().map_err(|e| e.to_api())).await?;
    Ok(Json(all))
}

pub(super) async fn create(
    State(supervisor): State_,
    body: Body,
) -> Result<(StatusCode, Json<Secret>), Failure> {
    let new = json::<CreateSecret>(body).await?;
    let made = blocking(&supervisor, move |store| store.create(&new)).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

pub(super) async fn update(
    State(supervisor): State_,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<Secret>, Failure> {
    let change = json::<UpdateSecret>(body).await?;
    let changed = blocking(&supervisor, move |store| store.update(&name, &change)).await?;
    Ok(Json(changed))
}

pub(super) async fn remove(
    State(supervisor): State_,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    blocking(&supervisor, move |store| store.remove(&name)).await?;
    Ok(StatusCode::OK)
}
