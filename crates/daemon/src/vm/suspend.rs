//! A VM whose memory is on disk: how it gets there, and back.

use super::handle::Reply;
use super::launch::{launch, prepare, shares, spec};
use super::{DiskGate, Launched, Phase, Progress, Vm};
use crate::DaemonError;
use crate::attend::UntilReady;
use crate::config::NetworkConfig;
use crate::guest;
use crate::images::GroupImage;
use crate::record::VmRecord;
use crate::saved::{self, Saved};
use crate::shares::for_guest;
use crate::supervisor::Shared;
use slicer_api::ApiError;
use slicer_machine::{Machine, MachineError, MachineSpec};
use std::sync::Arc;
use std::time::Instant;
use tokio::task::{JoinSet, spawn_blocking};
use tracing::{info, warn};

impl Vm {
    /// Writes the VM's state to disk and ends its machine. Whatever fails, the VM runs on as before.
    /// `restore_at_start` has the next daemon take it up unasked.
    pub(super) async fn suspend(
        &mut self,
        restore_at_start: bool,
        tasks: &mut JoinSet<Progress>,
    ) -> Result<(), ApiError> {
        let name = self.record.hostname.clone();
        let machine = match (self.phase(), self.machine()) {
            (Phase::Suspended(_), _) => return Ok(()),
            (Phase::Running | Phase::Paused, Some(machine)) => machine,
            (Phase::Launching, _) => {
                return Err(ApiError::unavailable(format!(
                    "VM {name} is still being launched"
                )));
            }
            (Phase::Stopping, _) => {
                return Err(ApiError::conflict(format!("VM {name} is shutting down")));
            }
            _ => return Err(ApiError::conflict(format!("VM {name} is not running"))),
        };
        if !self.shared.hypervisor.capabilities().save_restore {
            return Err(ApiError::unsupported(format!(
                "{} can't save a VM's memory on this host: pause the VM, or shut it down",
                self.shared.hypervisor.name()
            )));
        }
        if let Some(why) = self.view.borrow().stalled.clone() {
            return Err(ApiError::conflict(format!(
                "VM {name} is paused, for {why}: free some first"
            )));
        }
        if !self.view.borrow().ready {
            return Err(ApiError::unavailable(format!(
                "VM {name} is not ready: it is booting, or its agent is starting anew; try again \
                 shortly"
            )));
        }
        let started = Instant::now();
        let was = self.phase();
        let shares = !for_guest(
            &self.image.group().shares,
            self.shared.hypervisor.capabilities(),
        )
        .is_empty();
        if was == Phase::Paused && shares {
            // A guest lets go of host folders itself.
            self.freeze(false).await?;
        }
        if self.phase() == Phase::Running {
            // So that little is missing from the disk, should the state never be taken up.
            if let Err(e) = guest::quiesce(&*machine).await {
                warn!("{name}: its agent could not prepare for it: {e}");
            }
            let held = match machine.detach_shares().await {
                Ok(()) => self.freeze(true).await,
                Err(e) => Err(ApiError::internal(format!("cannot suspend VM {name}: {e}"))),
            };
            if let Err(e) = held {
                self.go_on(machine, &was, shares, tasks).await;
                return Err(e);
            }
        }
        tasks.shutdown().await;
        if let Err(e) = self.save_state(&machine, restore_at_start).await {
            if let Err(e) = self.forget_state().await {
                warn!("{name}: {}", e.message);
            }
            self.go_on(machine, &was, shares, tasks).await;
            let text = format!("cannot suspend VM {name}: {e}");
            return Err(if e.is_disk_full() {
                ApiError::insufficient_storage(format!("{text}: {}", crate::error::FREE_SPACE))
            } else {
                ApiError::internal(text)
            });
        }
        if let Err(e) = machine.kill().await {
            warn!("{name}: {e}");
        }
        slicer_fault::point("suspend.ended");
        self.set(Phase::Suspended(None));
        info!("{name}: suspended in {:.0?}", started.elapsed());
        Ok(())
    }

    /// Has a VM that was made ready to be saved be again as it `was`: it gets its host folders back, if
    /// it has any, and somebody who attends to it, for those who did are gone.
    async fn go_on(
        &mut self,
        machine: Arc<dyn Machine>,
        was: &Phase,
        shares: bool,
        tasks: &mut JoinSet<Progress>,
    ) {
        tasks.shutdown().await;
        let run = *was == Phase::Running || shares;
        if run && let Err(e) = self.freeze(false).await {
            warn!("{}: {}", self.record.hostname, e.message);
        }
        if shares && let Err(e) = machine.attach_shares().await {
            warn!("{}: {e}", self.record.hostname);
        }
        if *was == Phase::Paused
            && shares
            && let Err(e) = self.freeze(true).await
        {
            warn!("{}: {}", self.record.hostname, e.message);
        }
        self.view.send_modify(|v| v.ready = false);
        self.attend(machine, UntilReady::default(), tasks);
    }

    async fn save_state(
        &self,
        machine: &Arc<dyn Machine>,
        restore_at_start: bool,
    ) -> Result<(), DaemonError> {
        let internal = || DaemonError::Internal("saving a VM");
        let work = self.shared.work.clone();
        let name = self.record.hostname.clone();
        let begun = spawn_blocking(move || saved::begin(&work, &name)).await;
        let memory = begun.map_err(|_| internal())??;
        let note = machine.save(&memory).await?;
        let spec = self.spec().await?;
        let work = self.shared.work.clone();
        let completed =
            spawn_blocking(move || Saved::complete(&work, &spec, note, restore_at_start));
        completed.await.map_err(|_| internal())??;
        Ok(())
    }

    async fn spec(&self) -> Result<MachineSpec, DaemonError> {
        let prepared = self.image.prepare().await?;
        let Some(disk) = self.record.disk else {
            return Err(DaemonError::Internal("saving a VM that has no disk"));
        };
        Ok(spec(&self.shared, &self.record, &prepared, disk))
    }

    /// Begins to take up the saved state of a VM that is suspended.
    pub(super) fn restore(&mut self, reply: Reply, tasks: &mut JoinSet<Progress>) {
        let name = &self.record.hostname;
        let done = match self.phase() {
            Phase::Suspended(_) if self.is_leased() => self.check_unleased(),
            Phase::Suspended(_) => {
                self.set(Phase::Launching);
                self.take_up(tasks);
                Ok(())
            }
            _ => Err(ApiError::conflict(format!("VM {name} is not suspended"))),
        };
        let _ = reply.send(done);
    }

    /// Starts a machine from the saved state.
    pub(super) fn take_up(&mut self, tasks: &mut JoinSet<Progress>) {
        self.was_ready = false;
        self.unready = None;
        let (shared, image) = (self.shared.clone(), self.image.clone());
        let (record, network, gate) =
            (self.record.clone(), self.network.clone(), self.gate.clone());
        tasks.spawn(async move {
            Progress::Launched(restore_or_launch(&shared, &image, &record, &network, gate).await)
        });
    }

    /// Whether there is a state of this VM on disk that was saved to its end.
    pub(super) async fn has_state(&self) -> bool {
        let (work, name) = (self.shared.work.clone(), self.record.hostname.clone());
        let loaded = spawn_blocking(move || Saved::load(&work, &name).is_some());
        // Nothing is given up for want of an answer.
        loaded.await.unwrap_or(true)
    }

    /// Gives up the saved state of this VM, whole or begun: without it, it is as after a power cut.
    pub(super) async fn forget_state(&self) -> Result<(), ApiError> {
        let forgotten = forget_state(&self.shared, &self.record.hostname).await;
        forgotten.map_err(|e| e.to_api())
    }
}

async fn forget_state(shared: &Shared, vm: &str) -> Result<(), DaemonError> {
    let (work, vm) = (shared.work.clone(), vm.to_owned());
    let discarded = spawn_blocking(move || saved::discard(&work, &vm)).await;
    discarded.unwrap_or(Err(DaemonError::Internal("removing a saved state")))
}

/// Why a restore came to nothing.
enum Failure {
    /// The state is worth nothing.
    Worthless(String),
    /// Something is missing now that may be there later.
    Passing(DaemonError),
}

/// Takes up a VM's saved state, or boots it where that is worth nothing.
async fn restore_or_launch(
    shared: &Arc<Shared>,
    image: &Arc<GroupImage>,
    record: &VmRecord,
    network: &NetworkConfig,
    gate: DiskGate,
) -> Result<Launched, DaemonError> {
    let why = match restore(shared, image, record, network).await {
        Ok(launched) => return Ok(launched),
        Err(Failure::Passing(e)) => return Err(e),
        Err(Failure::Worthless(why)) => why,
    };
    let name = &record.hostname;
    warn!("{name}: its saved state is given up, it boots from its disk: {why}");
    forget_state(shared, name).await?;
    let launched = launch(shared, image, record, network, gate).await?;
    Ok(Launched {
        state_lost: Some(why),
        ..launched
    })
}

async fn restore(
    shared: &Shared,
    image: &GroupImage,
    record: &VmRecord,
    network: &NetworkConfig,
) -> Result<Launched, Failure> {
    let started = Instant::now();
    let name = &record.hostname;
    let prepared = prepare(shared, image, record)
        .await
        .map_err(Failure::Passing)?;
    let Some(disk) = record.disk else {
        return Err(Failure::Worthless("its disk is gone".to_owned()));
    };
    let mut spec = MachineSpec {
        shares: shares(shared, image, record).map_err(Failure::Passing)?,
        rosetta: image.group().rosetta,
        ..spec(shared, record, &prepared, disk)
    };
    let (work, vm, checked) = (shared.work.clone(), name.clone(), spec.clone());
    let found = spawn_blocking(move || {
        let saved = Saved::load(&work, &vm).ok_or("there is none that can be read".to_owned())?;
        match saved.stale(&checked) {
            Some(why) => Err(why),
            None => Ok(saved),
        }
    });
    let saved = match found.await {
        Ok(found) => found.map_err(Failure::Worthless)?,
        Err(_) => {
            return Err(Failure::Passing(DaemonError::Internal(
                "reading a saved state",
            )));
        }
    };
    slicer_fault::point("restore.checked");
    let state_dir = spec.state_dir.clone();
    let made = std::fs::create_dir_all(&state_dir).map_err(DaemonError::io("create", state_dir));
    made.map_err(Failure::Passing)?;
    let card = shared.networking.card(network, record).await;
    let card = card.map_err(Failure::Passing)?;
    spec.network = Some(card.network);
    let memory = saved::memory(&shared.work, name);
    let machine = match shared.hypervisor.restore(spec, &memory, &saved.note).await {
        Ok(machine) => machine,
        Err(e @ MachineError::Incompatible { .. }) => {
            return Err(Failure::Worthless(e.to_string()));
        }
        Err(e) => return Err(Failure::Passing(e.into())),
    };
    shared.networking.keep(card.link, &*machine);
    info!("{name}: restored in {:.0?}", started.elapsed());
    Ok(Launched {
        entrypoint: record.entrypoint.clone(),
        template: record.template.clone(),
        restored: true,
        ..Launched::new(disk, Arc::from(machine))
    })
}
