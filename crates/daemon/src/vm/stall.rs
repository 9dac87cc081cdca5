//! A VM whose disk the host can't write to: it waits, and runs on when there is room again.

use super::{Phase, Progress, Vm};
use crate::workdir::WorkDir;
use slicer_machine::MachineState;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinSet, spawn_blocking};
use tracing::{info, warn};

/// Between two looks at whether there is room.
const LOOK: Duration = Duration::from_secs(2);
/// What counts as room, bytes. With less the VM would wait again right away.
const ROOM: u64 = 64 << 20;

impl Vm {
    /// Completes when the backend has stopped the machine for want of something; never, where that
    /// is known.
    pub(super) fn machine_stalled(&self) -> impl Future<Output = String> + use<> {
        let (known, state) = {
            let view = self.view.borrow();
            let machine = view.machine.as_ref();
            (view.stalled.is_some(), machine.map(|m| m.state()))
        };
        async move {
            if let Some(mut state) = state.filter(|_| !known)
                && let Ok(state) = state
                    .wait_for(|s| matches!(s, MachineState::Stalled(_)))
                    .await
                && let MachineState::Stalled(why) = &*state
            {
                return why.clone();
            }
            std::future::pending().await
        }
    }

    /// Tells that the VM waits, and looks out for room.
    pub(super) fn stalled(&self, why: &str, tasks: &mut JoinSet<Progress>) {
        warn!(
            "{}: paused, for {why}: it runs on when there is",
            self.record.hostname
        );
        self.view.send_modify(|v| {
            v.stalled = Some(why.into());
            // One that is shutting down goes on with that.
            if v.phase == Phase::Running {
                v.phase = Phase::Paused;
            }
        });
        tasks.spawn(room(self.shared.work.clone()));
    }

    /// Has a VM that waited run on.
    pub(super) async fn try_again(&mut self, tasks: &mut JoinSet<Progress>) {
        let waiting = self.view.borrow().stalled.is_some();
        let Some(machine) = self.machine().filter(|_| waiting) else {
            return;
        };
        if self.is_leased() {
            tasks.spawn(room(self.shared.work.clone()));
            return;
        }
        let name = &self.record.hostname;
        if let Err(e) = machine.resume().await {
            warn!("{name}: {e}");
            tasks.spawn(room(self.shared.work.clone()));
            return;
        }
        info!("{name}: runs on");
        match self.phase() {
            Phase::Paused => self.set(Phase::Running),
            _ => self.view.send_modify(|v| v.stalled = None),
        }
    }
}

/// Waits until the host has room.
async fn room(work: Arc<WorkDir>) -> Progress {
    loop {
        tokio::time::sleep(LOOK).await;
        let work = work.clone();
        let found = spawn_blocking(move || rustix::fs::statvfs(work.root()));
        // What can't be told is tried.
        let free = match found.await {
            Ok(Ok(stat)) => stat.f_bavail.saturating_mul(stat.f_frsize),
            _ => u64::MAX,
        };
        if free >= ROOM {
            return Progress::Room;
        }
    }
}
