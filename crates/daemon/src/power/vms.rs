//! The daemon's VMs, as sleep sees them.

use super::{Guest, Guests};
use crate::guest;
use crate::supervisor::Supervisor;
use crate::vm::{Phase, VmHandle};
use async_trait::async_trait;
use slicer_api::{ApiError, ShutdownAction};
use std::sync::Arc;

/// All of them.
pub(super) struct Vms(Arc<Supervisor>);

impl Vms {
    pub(super) fn new(supervisor: Arc<Supervisor>) -> Self {
        Self(supervisor)
    }

    fn get(&self, name: &str) -> Result<VmHandle, String> {
        self.0.get(name).map_err(text)
    }

    fn guest(&self, vm: &VmHandle) -> Option<Guest> {
        let phase = vm.view.borrow().phase.clone();
        // A VM is only there with its group.
        let group = self.0.group_config(&vm.record.group).ok()?;
        (!phase.is_off()).then(|| Guest {
            name: vm.record.hostname.clone(),
            action: group.sleep_action,
            paused: phase == Phase::Paused,
        })
    }
}

fn text(e: ApiError) -> String {
    e.message
}

#[async_trait]
impl Guests for Vms {
    fn list(&self) -> Vec<Guest> {
        let vms = self.0.list();
        vms.iter().filter_map(|vm| self.guest(vm)).collect()
    }

    async fn ready(&self, name: &str) -> Result<(), String> {
        self.get(name)?.ready().await.map_err(text)
    }

    async fn suspend(&self, name: &str) -> Result<(), String> {
        self.get(name)?.suspend(true).await.map_err(text)
    }

    async fn shut_down(&self, name: &str) -> Result<(), String> {
        let vm = self.get(name)?;
        if let Some(why) = vm.view.borrow().stalled.clone() {
            // It would take its time, and be switched off with its writes undone.
            return Err(format!("it is paused, for {why}"));
        }
        vm.shutdown(ShutdownAction::Shutdown).await.map_err(text)?;
        let mut view = vm.view.clone();
        // An actor that has ended has done so with its VM.
        let _ = view.wait_for(|v| v.phase.is_off()).await;
        Ok(())
    }

    async fn sync(&self, name: &str) -> Result<(), String> {
        let vm = self.get(name)?;
        let machine = {
            let view = vm.view.borrow();
            view.machine.clone().filter(|_| view.ready)
        };
        match machine {
            Some(machine) => guest::sync(&*machine).await.map_err(|e| e.to_string()),
            // It has nothing that somebody was told is safe.
            None => Ok(()),
        }
    }

    async fn restore(&self, name: &str, paused: bool) -> Result<(), String> {
        // Somebody else may have restored or deleted it.
        let Ok(vm) = self.get(name) else {
            return Ok(());
        };
        if !matches!(vm.view.borrow().phase, Phase::Suspended(_)) {
            return Ok(());
        }
        vm.restore().await.map_err(text)?;
        if paused {
            vm.pause().await.map_err(text)?;
        }
        Ok(())
    }

    fn set_clocks(&self) {
        self.0.shared.wakes.send_replace(());
    }
}
