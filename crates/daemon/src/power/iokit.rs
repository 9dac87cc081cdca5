//! Sleep as macOS tells of it.

use super::{Hold, PowerError, PowerEvent, PowerEvents, PowerSource, SleepInhibitor};
use async_trait::async_trait;
use slicer_machine_apple::iokit::{PowerWatch, keep_awake, watch};
use slicer_machine_apple::power::HostPower;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Follows this Mac's sleep.
///
/// # Errors
/// When the system doesn't tell of it.
pub(super) fn connect() -> Result<PowerSource, PowerError> {
    let (watch, events) = watch().map_err(|e| PowerError::Unreachable(e.to_string()))?;
    Ok(PowerSource {
        events: Box::new(Events {
            events,
            _watch: watch,
        }),
        inhibitor: Arc::new(Mac),
    })
}

struct Events {
    events: mpsc::Receiver<HostPower>,
    _watch: PowerWatch,
}

#[async_trait]
impl PowerEvents for Events {
    async fn next(&mut self) -> Option<PowerEvent> {
        Some(match self.events.recv().await? {
            HostPower::AboutToSleep(delay) => PowerEvent::AboutToSleep {
                deadline: delay.deadline.into(),
                delay: Box::new(delay),
            },
            HostPower::WokeUp => PowerEvent::WokeUp,
        })
    }
}

struct Mac;

#[async_trait]
impl SleepInhibitor for Mac {
    async fn inhibit(&self) -> Result<Hold, PowerError> {
        let assertion =
            keep_awake("slicer runs VMs").map_err(|e| PowerError::Refused(e.to_string()))?;
        Ok(Box::new(assertion))
    }
}
