//! The daemon of slicer: reads `slicer-mac.yaml`, keeps the VMs it declares, and serves the REST
//! API through which more come and go. Its binary is `slicer-mac`.
#![forbid(unsafe_code)]

mod admission;
mod agents;
mod attend;
mod bases;
pub mod check;
mod commits;
pub mod config;
mod console;
mod disks;
mod error;
mod files;
mod fork;
mod forwarded;
mod forwards;
mod github;
mod guest;
mod host;
mod images;
mod live;
mod metrics;
mod network;
mod pool;
pub mod power;
mod record;
mod saved;
mod secrets;
mod server;
pub mod service;
mod shares;
mod store;
mod supervisor;
mod tags;
mod templates;
mod turns;
mod vm;
mod vmnet;
mod workdir;

pub use error::DaemonError;

use config::{ApiToken, Config};
use power::{PowerError, PowerSource};
use server::Server;
use slicer_machine::{Arch, Hypervisor};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use supervisor::Supervisor;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;
use tracing::info;
use workdir::WorkDir;

/// A running daemon.
pub struct Daemon {
    supervisor: Arc<Supervisor>,
    stop_serving: watch::Sender<bool>,
    serving: JoinHandle<()>,
    /// Follows the host's sleep.
    sleep: Option<AbortOnDropHandle<()>>,
}

impl Daemon {
    /// Takes the working directory, recovers what an earlier daemon left, starts the configured
    /// VMs and serves the API. The API answers when this returns; images may still be in the
    /// making.
    ///
    /// # Errors
    /// When another daemon works there, an address is taken, or what is on disk can't be read.
    pub async fn start(
        config: &Config,
        work_dir: &Path,
        hypervisor: impl FnOnce(&Path) -> Result<Arc<dyn Hypervisor>, DaemonError>,
    ) -> Result<Self, DaemonError> {
        let work = Arc::new(WorkDir::open(work_dir)?);
        let arch = Arch::host().ok_or_else(|| {
            DaemonError::Unsupported(format!("no guests run on {} hosts", std::env::consts::ARCH))
        })?;
        let hypervisor = hypervisor(&work.state())?;
        #[cfg(target_os = "macos")]
        for complaint in vmnet::complaints(&config.host_groups) {
            tracing::warn!("{complaint}");
        }
        // Before the listeners: who has seen one of them may read the token's file.
        let token = if config.api.listeners.iter().any(|l| l.auth) {
            Some(token(config, &work)?)
        } else {
            None
        };
        let listeners = server::bind(&config.api.listeners, &work).await?;
        let supervisor = Supervisor::start(config, work, hypervisor, arch).await?;
        let server = Server::new(supervisor.clone(), token);
        let (stop_serving, stop) = watch::channel(false);
        let serving = tokio::spawn(listeners.serve(server, stop));
        for listener in &config.api.listeners {
            info!("serving the API at {}", listener.address);
        }
        Ok(Self {
            supervisor,
            stop_serving,
            serving,
            sleep: None,
        })
    }

    /// Has VMs get what their groups ask for when the host goes to sleep, of which `source` tells. A
    /// host that tells nobody is no error: there are those that never sleep.
    pub fn heed_sleep(
        &mut self,
        source: impl Future<Output = Result<PowerSource, PowerError>> + Send + 'static,
    ) {
        let heeded = power::heed(self.supervisor.clone(), source);
        self.sleep = Some(AbortOnDropHandle::new(tokio::spawn(heeded)));
    }

    /// Completes when a client of the API asks for the daemon's end. Whoever started the daemon is
    /// to stop it then.
    pub async fn asked_to_end(&self) {
        self.supervisor.ending.notified().await;
    }

    /// Shuts down what is kept, deletes the rest, and stops serving. With `suspend`, VMs that run are
    /// suspended instead, and the next daemon restores them. `hurry` completes when there is no more
    /// time: what still runs then is switched off.
    pub async fn stop(self, suspend: bool, hurry: impl Future<Output = ()>) {
        let patient = self.supervisor.stop(false, suspend);
        tokio::select! {
            () = patient => {}
            () = hurry => {
                info!("switching off what still runs");
                self.supervisor.stop(true, false).await;
            }
        }
        // Until here the host is kept awake, and delayed.
        drop(self.sleep);
        self.stop_serving.send_replace(true);
        // Ended by its own limits.
        let _ = self.serving.await;
    }
}

/// The bearer token: the configuration's, else one that is made once and kept.
fn token(config: &Config, work: &WorkDir) -> Result<ApiToken, DaemonError> {
    let path = work.token();
    if let Some(token) = &config.api.token {
        return Ok(token.clone());
    }
    if let Ok(text) = fs::read_to_string(&path)
        && let Some(token) = ApiToken::new(text.trim())
    {
        return Ok(token);
    }
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|_| DaemonError::Internal("drawing a token"))?;
    let mut text = String::with_capacity(64);
    for byte in bytes {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    files::write_atomically(&path, text.as_bytes()).map_err(DaemonError::io("write", &path))?;
    info!("API token written to {}", path.display());
    ApiToken::new(&text).ok_or(DaemonError::Internal("drawing a token"))
}
