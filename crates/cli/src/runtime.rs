//! Runs a command's future to its end, or to the user's interrupt.

use crate::error::{CliError, INTERRUPTED};
use std::future::Future;

/// Runs on this thread. On SIGINT the future is dropped, which closes its connections and so
/// cancels whatever the daemon does for it.
pub(crate) fn block_on(
    command: impl Future<Output = Result<u8, CliError>>,
) -> Result<u8, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    let code = runtime.block_on(async {
        tokio::select! {
            code = command => code,
            Ok(()) = tokio::signal::ctrl_c() => Ok(INTERRUPTED),
        }
    });
    // A read of stdin may hang for ever; the process ends all the same.
    runtime.shutdown_background();
    code
}
