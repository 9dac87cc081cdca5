//! The REST API: listeners, authentication, routes.

mod answer;
mod commits;
mod disks;
mod images;
mod info;
mod listen;
mod nodes;
mod openapi;
mod proxy;
mod secrets;
mod stats;
mod templates;
mod vm;

pub(crate) use listen::bind;
pub(crate) use vm::reachable;

use crate::config::ApiToken;
use crate::supervisor::Supervisor;
use answer::Failure;
use axum::Router;
use axum::body::Body;
use axum::routing::{delete, get, patch, post};
use hyper::{Method, Request, Response, Uri, header};
use slicer_api::ApiError;
use std::sync::Arc;
use std::time::Instant;
use subtle::ConstantTimeEq;
use tower_service::Service;

/// What every request is answered from.
#[derive(Clone)]
pub(crate) struct Server {
    supervisor: Arc<Supervisor>,
    token: Option<ApiToken>,
    routes: Router,
}

impl Server {
    pub(crate) fn new(supervisor: Arc<Supervisor>, token: Option<ApiToken>) -> Self {
        let routes = Router::new()
            .route("/info", get(info::info))
            .route("/healthz", get(info::healthz))
            .route("/metrics", get(info::metrics))
            .route("/openapi.json", get(openapi::openapi))
            .route("/daemon/shutdown", post(info::shutdown))
            .route("/hostgroup", get(nodes::groups))
            .route(
                "/hostgroup/{group}/nodes",
                get(nodes::of_group).post(nodes::create),
            )
            .route("/hostgroup/{group}/nodes/{vm}", delete(nodes::delete))
            .route("/nodes", get(nodes::all))
            .route("/nodes/stats", get(stats::all))
            .route("/node/{vm}/stats", get(stats::one))
            .route("/devices", get(nodes::all))
            .route("/secrets", get(secrets::list).post(secrets::create))
            .route(
                "/secrets/{name}",
                patch(secrets::update).delete(secrets::remove),
            )
            .route("/images", get(images::list).delete(images::remove))
            .route("/images/pull", post(images::pull))
            .route("/images/import", post(images::import))
            .route("/images/wipe", post(images::wipe))
            .route("/disks", get(disks::list))
            .route("/disks/{vm}/export", get(disks::export))
            .route("/disks/{vm}/sparsify", post(disks::sparsify))
            .route("/disks/{vm}/reset", post(disks::reset))
            .route("/templates", get(templates::list))
            .route("/templates/{id}", delete(templates::remove))
            .route("/vm/commits", get(commits::list))
            .route("/vm/commits/{id}", delete(commits::remove))
            .route("/vm/commits/{id}/fork", post(commits::fork))
            .route("/vm/{vm}", get(vm::detail))
            .route("/vm/{vm}/health", get(vm::health))
            .route("/vm/{vm}/logs", get(vm::logs))
            .route("/vm/{vm}/tags", get(vm::tags).patch(vm::change_tags))
            .route("/vm/{vm}/shutdown", post(vm::shutdown))
            .route("/vm/{vm}/pause", post(vm::pause))
            .route("/vm/{vm}/resume", post(vm::resume))
            .route("/vm/{vm}/suspend", post(vm::suspend))
            .route("/vm/{vm}/restore", post(vm::restore))
            .route("/vm/{vm}/relaunch", post(vm::relaunch))
            .route("/vm/{vm}/commit", post(commits::commit))
            .route("/vm/{vm}/fork", post(commits::fork_live))
            .route("/vm/{vm}/exec", get(proxy::proxy).post(proxy::proxy))
            .route("/vm/{vm}/exec/{id}", get(proxy::proxy).delete(proxy::proxy))
            .route("/vm/{vm}/exec/{id}/logs", get(proxy::proxy))
            .route("/vm/{vm}/exec/{id}/wait-exit", get(proxy::proxy))
            .route("/vm/{vm}/exec/{id}/kill", post(proxy::proxy))
            .route("/vm/{vm}/cp", get(proxy::proxy).post(proxy::proxy))
            .route("/vm/{vm}/fs/readdir", get(proxy::proxy))
            .route("/vm/{vm}/fs/stat", get(proxy::proxy))
            .route("/vm/{vm}/fs/mkdir", post(proxy::proxy))
            .route("/vm/{vm}/fs/remove", delete(proxy::proxy))
            .route("/vm/{vm}/fs/watch", get(proxy::proxy))
            .route("/vm/{vm}/shell", get(proxy::proxy))
            .route("/vm/{vm}/forward", get(proxy::proxy))
            .fallback(unknown)
            .method_not_allowed_fallback(wrong_method)
            .with_state(supervisor.clone());
        Self {
            supervisor,
            token,
            routes,
        }
    }

    /// Answers one request. `auth` says whether this listener asks for the token.
    pub(crate) async fn answer(&self, mut request: Request<Body>, auth: bool) -> Response<Body> {
        let start = Instant::now();
        let method = request.method().clone();
        let open =
            request.uri().path() == "/healthz" && matches!(method, Method::GET | Method::HEAD);
        let response = if auth && !open && !self.may_enter(&request) {
            let text = "the API needs a bearer token: give --token or --token-file";
            Failure(ApiError::unauthorized(text))
                .into_response_with(request.into_body())
                .await
        } else {
            if let Some(uri) = split_escaped_query(request.uri()) {
                *request.uri_mut() = uri;
            }
            match self.routes.clone().call(request).await {
                Ok(response) => response,
            }
        };
        self.supervisor
            .metrics
            .answered(&method, response.status().as_u16(), start.elapsed());
        response
    }

    fn may_enter(&self, request: &Request<Body>) -> bool {
        let given = request
            .headers()
            .get(header::AUTHORIZATION)
            .map(header::HeaderValue::as_bytes);
        let given = given.and_then(|v| v.strip_prefix(b"Bearer "));
        match (given, &self.token) {
            (Some(given), Some(token)) => given.ct_eq(token.expose().as_bytes()).into(),
            _ => false,
        }
    }
}

/// The Go client of SlicerVM puts the query of a list of VMs into the path, escaped: there, what
/// follows an escaped question mark is query. Elsewhere it is part of a name.
fn split_escaped_query(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    let at = path.find("%3F").or_else(|| path.find("%3f"))?;
    let list = &path[..at];
    let of_group = list.starts_with("/hostgroup/") && list.ends_with("/nodes");
    if !of_group && list != "/nodes" {
        return None;
    }
    let query = percent_encoding::percent_decode_str(&path[at + 3..])
        .decode_utf8()
        .ok()?;
    let more = uri.query().map(|q| format!("&{q}")).unwrap_or_default();
    format!("{list}?{query}{more}").parse().ok()
}

async fn unknown(request: Request<Body>) -> Response<Body> {
    let text = format!(
        "no such endpoint: {} {}",
        request.method(),
        request.uri().path()
    );
    Failure(ApiError::not_found(text))
        .into_response_with(request.into_body())
        .await
}

async fn wrong_method(request: Request<Body>) -> Response<Body> {
    let text = format!(
        "{} is not allowed on {}",
        request.method(),
        request.uri().path()
    );
    Failure(ApiError::method_not_allowed(text))
        .into_response_with(request.into_body())
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escaped_query_is_a_query() {
        let split = |u: &str| split_escaped_query(&u.parse().unwrap()).map(|u| u.to_string());
        assert_eq!(
            split("/hostgroup/sbox/nodes%3Ftag=drive%253D1").as_deref(),
            Some("/hostgroup/sbox/nodes?tag=drive%3D1")
        );
        assert_eq!(split("/nodes%3fa=b?c=d").as_deref(), Some("/nodes?a=b&c=d"));
        assert_eq!(split("/nodes?tag=%3F"), None);
        assert_eq!(split("/vm/a%3Fb/exec?cmd=true"), None);
        // What makes no URI is left alone, and so not found.
        assert_eq!(split("/nodes%3Fa%20b"), None);
    }
}
