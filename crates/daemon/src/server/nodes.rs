//! Host groups and their VMs: list, create, delete.

use super::answer::Failure;
use crate::supervisor::Supervisor;
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::StatusCode;
use slicer_api::{
    ApiError, CreateNode, CreatedNode, DeletedNode, HostGroup, Node, Wait, parse_duration,
};
use std::sync::Arc;
use std::time::Duration;

/// Longest body of a request that isn't a stream.
const MAX_BODY: usize = 4 << 20;
/// How long a create waits when it doesn't say.
const DEFAULT_WAIT: Duration = Duration::from_mins(5);

type State_ = State<Arc<Supervisor>>;

pub(super) async fn groups(State(supervisor): State_) -> Json<Vec<HostGroup>> {
    Json(supervisor.host_groups())
}

/// The last value of a query's parameter.
pub(super) fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs
        .filter(|(key, _)| key == name)
        .last()
        .map(|(_, value)| value.into_owned())
}

fn list(
    supervisor: &Supervisor,
    group: Option<&str>,
    query: Option<&str>,
) -> Result<Vec<Node>, ApiError> {
    let given = |name| parameter(query, name).filter(|v| !v.is_empty());
    let (tag, prefix) = (given("tag"), given("tag_prefix"));
    if tag.is_some() && prefix.is_some() {
        return Err(ApiError::bad_request(
            "tag and tag_prefix cannot be combined",
        ));
    }
    let nodes = supervisor.list().into_iter().filter(|vm| {
        let tags = vm.tags();
        group.is_none_or(|g| vm.record.group == g)
            && tag.as_ref().is_none_or(|t| tags.contains(t))
            && prefix
                .as_ref()
                .is_none_or(|p| tags.iter().any(|t| t.starts_with(p.as_str())))
    });
    Ok(nodes.map(|vm| vm.node()).collect())
}

pub(super) async fn all(
    State(supervisor): State_,
    RawQuery(query): RawQuery,
) -> Result<Json<Vec<Node>>, Failure> {
    Ok(Json(list(&supervisor, None, query.as_deref())?))
}

pub(super) async fn of_group(
    State(supervisor): State_,
    Path(group): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Vec<Node>>, Failure> {
    supervisor.group_config(&group)?;
    Ok(Json(list(&supervisor, Some(&group), query.as_deref())?))
}

/// Reads a JSON body, whatever its content type; an empty one is the default.
pub(super) async fn json<T>(body: Body) -> Result<T, ApiError>
where
    T: serde::de::DeserializeOwned + Default,
{
    let bytes = match Limited::new(body, MAX_BODY).collect().await {
        Ok(read) => read.to_bytes(),
        Err(e) if e.is::<LengthLimitError>() => {
            return Err(ApiError::bad_request(format!(
                "request body over {MAX_BODY} bytes"
            )));
        }
        Err(e) => {
            return Err(ApiError::bad_request(format!(
                "cannot read request body: {e}"
            )));
        }
    };
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(T::default());
    }
    // Read as an object first, because a list would be taken for the fields in their order.
    serde_json::from_slice::<serde_json::Map<_, _>>(&bytes)
        .and_then(|object| serde_json::from_value(object.into()))
        .map_err(|e| ApiError::bad_request(format!("invalid JSON: {e}")))
}

pub(super) async fn create(
    State(supervisor): State_,
    Path(group): Path<String>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<(StatusCode, Json<CreatedNode>), Failure> {
    let created = create_vm(&supervisor, &group, query.as_deref(), body).await;
    let code = created.as_ref().map_or_else(|e| e.status, |_| 201);
    if supervisor.group_config(&group).is_ok() {
        supervisor.metrics.launched(&group, code);
    }
    Ok((StatusCode::CREATED, Json(created?)))
}

/// What a client waits for, by its query.
pub(super) fn wait(query: Option<&str>) -> Result<Option<Wait>, ApiError> {
    match parameter(query, "wait").as_deref() {
        None | Some("" | "none") => Ok(None),
        Some(text) => Ok(Some(text.parse::<Wait>().map_err(ApiError::bad_request)?)),
    }
}

/// How long it waits.
pub(super) fn wait_time(query: Option<&str>) -> Result<Duration, ApiError> {
    match parameter(query, "timeout").as_deref() {
        None | Some("") => Ok(DEFAULT_WAIT),
        Some(text) => {
            parse_duration(text).map_err(|e| ApiError::bad_request(format!("invalid timeout: {e}")))
        }
    }
}

async fn create_vm(
    supervisor: &Supervisor,
    group: &str,
    query: Option<&str>,
    body: Body,
) -> Result<CreatedNode, ApiError> {
    let (wait, timeout) = (wait(query)?, wait_time(query)?);
    let request: CreateNode = json(body).await?;
    let vm = supervisor.create(group, &request).await?;
    let name = &vm.record.hostname;
    let launched = async {
        vm.launched().await?;
        vm.reached(wait).await
    };
    if wait.is_none() {
        launched.await?;
        return Ok(vm.record.created());
    }
    match tokio::time::timeout(timeout, launched).await {
        Ok(outcome) => outcome?,
        Err(_) => {
            vm.delete().await?;
            return Err(ApiError::timeout(format!(
                "VM {name} was not ready within {timeout:?} and has been deleted; give it more \
                 time with timeout"
            )));
        }
    }
    Ok(vm.record.created())
}

pub(super) async fn delete(
    State(supervisor): State_,
    Path((group, name)): Path<(String, String)>,
) -> Result<Json<DeletedNode>, Failure> {
    supervisor.group_config(&group)?;
    let vm = supervisor.get(&name)?;
    if vm.record.group != group {
        return Err(ApiError::not_found(format!("VM {name:?} not found in {group:?}")).into());
    }
    if vm.record.configured {
        return Err(ApiError::forbidden(format!(
            "VM {name} is declared by the configuration and protected: lower the count of host \
             group {group} instead"
        ))
        .into());
    }
    vm.delete().await?;
    Ok(Json(DeletedNode {
        message: "VM deleted successfully".to_owned(),
        disk_removed: "true".to_owned(),
    }))
}
