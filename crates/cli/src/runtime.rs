//! Runs a command's future to its end, or until the process is asked to end.

use crate::error::{CliError, INTERRUPTED, TERMINATED};
use std::future::Future;
use tokio::signal::unix::{SignalKind, signal};

/// Runs on this thread. On SIGINT and SIGTERM the future is dropped, which closes its connections and
/// so cancels whatever the daemon does for it, and removes what is unfinished.
pub(crate) fn block_on(
    command: impl Future<Output = Result<u8, CliError>>,
) -> Result<u8, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    let code = runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate()).map_err(CliError::Terminal)?;
        tokio::select! {
            code = command => code,
            Ok(()) = tokio::signal::ctrl_c() => Ok(INTERRUPTED),
            _ = terminated.recv() => Ok(TERMINATED),
        }
    });
    // A read of stdin may hang for ever; the process ends all the same.
    runtime.shutdown_background();
    code
}
