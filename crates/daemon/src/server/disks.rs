//! Disks: list, export, sparsify, reset.

use super::answer::Failure;
use super::nodes::parameter;
use super::vm::reachable;
use crate::supervisor::Supervisor;
use crate::vm::DiskLease;
use crate::{DaemonError, disks, guest};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE};
use slicer_api::{ApiError, DiskFormat, Disks, SparsifiedDisk};
use slicer_image::{Export, FileFormat};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

/// How long a client may take nothing of an export, which keeps its VM from running.
const SILENCE: Duration = Duration::from_mins(2);
/// Pieces that are read ahead of the client.
const AHEAD: usize = 2;

type State_ = State<Arc<Supervisor>>;

pub(super) async fn list(State(supervisor): State_) -> Result<Json<Disks>, Failure> {
    let shared = supervisor.shared.clone();
    let listed = spawn_blocking(move || disks::list(&shared)).await;
    let listed = listed.unwrap_or(Err(DaemonError::Internal("listing disks")));
    let mut all = listed.map_err(|e| e.to_api())?;
    for disk in &mut all.disks {
        if disk.kind == slicer_api::DiskOwner::Vm
            && let Ok(vm) = supervisor.get(&disk.name)
        {
            disk.status = Some(vm.view.borrow().status());
        }
    }
    Ok(Json(all))
}

pub(super) async fn export(
    State(supervisor): State_,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    let vm = supervisor.get(&name)?;
    let format = match parameter(query.as_deref(), "format").as_deref() {
        None | Some("") => DiskFormat::default(),
        Some(text) => text.parse().map_err(ApiError::bad_request)?,
    };
    let format = match format {
        DiskFormat::Raw => FileFormat::Raw,
        DiskFormat::Qcow2 => FileFormat::Qcow2,
    };
    let (export, lease) = vm.export(format).await?;
    let length = export.length();
    let (sender, receiver) = mpsc::channel(AHEAD);
    supervisor.spawn(send(export, lease, sender));
    let pieces = stream::unfold(receiver, async |mut receiver| {
        let piece = receiver.recv().await?;
        Some((piece, receiver))
    });
    let head = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (CONTENT_LENGTH, length.to_string()),
    ];
    Ok((head, Body::from_stream(pieces)).into_response())
}

/// Reads a disk as fast as the client takes it. A client that has gone, or takes nothing any more,
/// sees no end.
async fn send(
    mut export: Export,
    lease: DiskLease,
    sender: mpsc::Sender<Result<Bytes, io::Error>>,
) {
    loop {
        let read = spawn_blocking(move || {
            let piece = export.next_piece();
            (export, piece)
        });
        let Ok((rest, piece)) = read.await else {
            return;
        };
        export = rest;
        let piece = match piece {
            Ok(piece) if piece.is_empty() => break,
            piece => piece.map(Bytes::from).map_err(io::Error::other),
        };
        let failed = piece.is_err();
        let sent = tokio::time::timeout(SILENCE, sender.send(piece)).await;
        if failed || !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
    // The VM may run again.
    drop(lease);
}

pub(super) async fn sparsify(
    State(supervisor): State_,
    Path(name): Path<String>,
) -> Result<Json<SparsifiedDisk>, Failure> {
    let vm = supervisor.get(&name)?;
    let hostname = vm.record.hostname.clone();
    let machine = reachable(&vm)?;
    let taken = || {
        let (shared, name) = (supervisor.shared.clone(), hostname.clone());
        async move {
            let taken = spawn_blocking(move || disks::taken(&shared.work, &name)).await;
            let taken = taken.unwrap_or(Err(DaemonError::Internal("inspecting a disk")));
            taken.map_err(|e| e.to_api())
        }
    };
    let before = taken().await?;
    let trimmed = guest::trim(&*machine).await;
    let trimmed = trimmed.map_err(|e| e.to_api(&hostname))?;
    Ok(Json(SparsifiedDisk {
        trimmed_bytes: trimmed.bytes,
        disk_bytes: taken().await?,
        disk_bytes_before: before,
        hostname,
    }))
}

pub(super) async fn reset(
    State(supervisor): State_,
    Path(name): Path<String>,
) -> Result<&'static str, Failure> {
    supervisor.get(&name)?.reset_disk().await?;
    Ok("disk removed\n")
}
