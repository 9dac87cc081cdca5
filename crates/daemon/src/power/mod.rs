//! What becomes of VMs when the host goes to sleep, and when it has woken up.
//!
//! The host is seen through [`PowerEvents`] and [`SleepInhibitor`], the VMs through `Guests`; what is
//! in between decides and knows of neither, so that another kind of host brings no more than its
//! events.

#[cfg(target_os = "macos")]
mod iokit;
#[cfg(target_os = "linux")]
pub mod logind;
mod prevent;
mod sleeper;
mod vms;

use crate::config::SleepAction;
use crate::supervisor::Supervisor;
use async_trait::async_trait;
use sleeper::Sleeper;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, warn};

/// How long a host may take to say how its sleep is followed.
const CONNECT_TIME: Duration = Duration::from_secs(30);

/// Something that lasts until it is dropped: a delay of sleep, or a lock against it.
pub type Hold = Box<dyn Send + Sync>;

/// What a host tells of its sleep.
pub enum PowerEvent {
    /// It goes to sleep as soon as `delay` is dropped, and some time after `deadline` in any case.
    AboutToSleep {
        /// Keeps the host awake.
        delay: Hold,
        /// What has not begun by then should not.
        deadline: Instant,
    },
    /// It is awake again.
    WokeUp,
}

/// A host's sleep, as it comes.
#[async_trait]
pub trait PowerEvents: Send {
    /// The next event; `None` when there will be no more. Dropping the future loses none.
    async fn next(&mut self) -> Option<PowerEvent>;
}

/// Keeps a host awake.
#[async_trait]
pub trait SleepInhibitor: Send + Sync {
    /// Takes a lock against sleep.
    ///
    /// # Errors
    /// When the host gives none.
    async fn inhibit(&self) -> Result<Hold, PowerError>;
}

/// How a host's sleep is followed.
pub struct PowerSource {
    /// What it tells.
    pub events: Box<dyn PowerEvents>,
    /// What keeps it awake.
    pub inhibitor: Arc<dyn SleepInhibitor>,
}

/// Why a host's sleep can't be followed, or it can't be kept awake.
#[derive(Debug, thiserror::Error)]
pub enum PowerError {
    /// Whatever manages the host's sleep can't be reached.
    #[error("nobody tells of this host's sleep: {0}")]
    Unreachable(String),
    /// The host refused.
    #[error("this host refuses to be kept awake: {0}")]
    Refused(String),
}

/// A VM as sleep sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Guest {
    name: String,
    action: SleepAction,
    paused: bool,
}

/// The VMs. What is asked for goes on when nobody waits for it any more.
#[async_trait]
trait Guests: Send + Sync {
    /// Those that run, are paused, or are on their way there or from there.
    fn list(&self) -> Vec<Guest>;
    /// Waits until a guest is ready.
    async fn ready(&self, name: &str) -> Result<(), String>;
    /// Suspends a VM; the next daemon would restore it.
    async fn suspend(&self, name: &str) -> Result<(), String>;
    /// Asks a guest to power off, and waits until it has.
    async fn shut_down(&self, name: &str) -> Result<(), String>;
    /// Has a guest write out what it holds for its disks.
    async fn sync(&self, name: &str) -> Result<(), String>;
    /// Has a suspended VM run on, or be paused again.
    async fn restore(&self, name: &str, paused: bool) -> Result<(), String>;
    /// Has all guests' clocks set to the host's.
    fn set_clocks(&self);
}

/// How the sleep of the host this runs on is followed.
///
/// # Errors
/// When it can't be: many a host never sleeps.
#[cfg_attr(
    not(target_os = "linux"),
    expect(clippy::unused_async, reason = "as where it is asked over a bus")
)]
pub async fn this_host() -> Result<PowerSource, PowerError> {
    #[cfg(target_os = "linux")]
    return logind::connect(None).await;
    #[cfg(target_os = "macos")]
    return iokit::connect();
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    return Err(PowerError::Unreachable(
        "not on this kind of host".to_owned(),
    ));
}

/// Has VMs get what their groups ask for, for as long as it is polled.
pub(crate) async fn heed(
    supervisor: Arc<Supervisor>,
    source: impl Future<Output = Result<PowerSource, PowerError>>,
) {
    let none = |text: String| Err(PowerError::Unreachable(text));
    let source = tokio::time::timeout(CONNECT_TIME, source).await;
    let source = source.unwrap_or_else(|_| none(format!("no answer within {CONNECT_TIME:?}")));
    let source = match source {
        Ok(source) => source,
        Err(e) => {
            let asks = |action| action != SleepAction::None;
            if supervisor.group_configs().any(|g| asks(g.sleep_action)) {
                warn!("sleep_action has no effect: {e}");
            } else {
                debug!("{e}");
            }
            return;
        }
    };
    let changes = supervisor.shared.phases.subscribe();
    let vms = Arc::new(vms::Vms::new(supervisor));
    tokio::select! {
        () = Sleeper::new(vms.clone()).run(source.events) => {}
        () = prevent::prevent(&*vms, &*source.inhibitor, changes) => {}
    }
}
