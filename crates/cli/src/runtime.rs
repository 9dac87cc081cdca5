//! Runs a command's future to its end, or to the user's interrupt.

use crate::error::{CliError, INTERRUPTED, TERMINATED};
use std::future::Future;
use std::time::Duration;

/// How long a step on a file that has begun may take to end.
const LAST_STEP: Duration = Duration::from_millis(300);

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
    match code {
        // What was interrupted may be about to make or to remove a file.
        Ok(INTERRUPTED | TERMINATED) => runtime.shutdown_timeout(LAST_STEP),
        // A read of stdin may hang for ever; the process ends all the same.
        _ => runtime.shutdown_background(),
    }
    code
}
