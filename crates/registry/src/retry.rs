//! What is tried again, and when.

use crate::error::{PullError, Step, chain};
use crate::{Progress, Watcher};
use oci_client::errors::OciDistributionError;
use std::time::Duration;

/// How often something is tried that may pass, and something that connects to nobody.
const TRIES: u32 = 6;
const CONNECT_TRIES: u32 = 3;
/// The first pause; each is twice the one before, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// The attempts at one thing.
pub(crate) struct Retries {
    failed: u32,
    watcher: Watcher,
}

impl Retries {
    pub(crate) fn new(watcher: Watcher) -> Self {
        Self { failed: 0, watcher }
    }

    /// There was progress: what fails now fails for the first time.
    pub(crate) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// Returns when it is time for the next attempt at `what`, or the error there won't be one for.
    pub(crate) async fn again(
        &mut self,
        step: &Step,
        what: &str,
        e: OciDistributionError,
    ) -> Result<(), PullError> {
        self.failed += 1;
        if self.failed >= tries(&e) {
            return Err(step.failed(what, &e));
        }
        self.pause(&format!("{what}: {}", chain(&e))).await;
        Ok(())
    }

    /// Likewise for a stream that broke.
    pub(crate) async fn broken(
        &mut self,
        step: &Step,
        what: &str,
        why: &str,
    ) -> Result<(), PullError> {
        self.failed += 1;
        if self.failed >= TRIES {
            return Err(step.network(what, why));
        }
        self.pause(&format!("{what}: {why}")).await;
        Ok(())
    }

    async fn pause(&self, why: &str) {
        (self.watcher)(Progress::Retrying {
            why: why.to_owned(),
        });
        let pause = FIRST_PAUSE * 2u32.saturating_pow(self.failed - 1);
        tokio::time::sleep(pause.min(LONGEST_PAUSE)).await;
    }
}

/// How often this is worth trying.
fn tries(e: &OciDistributionError) -> u32 {
    match e {
        OciDistributionError::RequestError(e) if e.is_connect() => CONNECT_TRIES,
        OciDistributionError::RequestError(e) if e.is_builder() => 1,
        OciDistributionError::RequestError(_) | OciDistributionError::IoError(_) => TRIES,
        OciDistributionError::ServerError { code, .. } if *code >= 500 || *code == 429 => TRIES,
        OciDistributionError::RegistryError { envelope, .. } => {
            let busy = oci_client::errors::OciErrorCode::Toomanyrequests;
            if envelope.errors.iter().any(|e| e.code == busy) {
                TRIES
            } else {
                1
            }
        }
        _ => 1,
    }
}
