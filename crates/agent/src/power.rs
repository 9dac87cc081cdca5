//! Powering off, alone or through the guest's init.

use crate::init::GuestInit;
use crate::{log, sys};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::system::{RebootCommand, reboot};
use slicer_api::ShutdownAction;
use std::path::Path;
use std::time::Duration;

/// How long processes get between SIGTERM and SIGKILL when the agent is the only init there is.
const TERM_GRACE: Duration = Duration::from_secs(3);
/// How long an answer may take through the channel.
const ANSWER_TIME: Duration = Duration::from_millis(100);

/// Powers off without asking anybody. What is buffered in file systems is lost unless synced
/// before.
pub(crate) fn off_now() {
    // Without firmware that can power off, the kernel halts instead, and the host would wait for
    // ever; a reboot ends a VM of ours just as well.
    let can_power_off =
        Path::new("/sys/firmware/acpi").exists() || Path::new("/sys/firmware/devicetree").exists();
    if can_power_off {
        let _ = reboot(RebootCommand::PowerOff);
    }
    let _ = reboot(RebootCommand::Restart);
}

/// Shuts the guest down the way its init does it. Returns when that is under way.
pub(crate) async fn shutdown(init: GuestInit, action: ShutdownAction) {
    match init {
        GuestInit::Systemd => {
            // systemd(1): SIGRTMIN+4 starts poweroff.target, SIGRTMIN+5 reboot.target.
            let offset = match action {
                ShutdownAction::Shutdown => 4,
                ShutdownAction::Reboot => 5,
            };
            if let Err(e) = sys::signal_init(offset) {
                log::warn(&format!("cannot tell systemd to shut down: {e}"));
            }
        }
        GuestInit::Other => {
            // Each of them has its own signals, and all of them bring this program.
            let program = match action {
                ShutdownAction::Shutdown => "poweroff",
                ShutdownAction::Reboot => "reboot",
            };
            let done = tokio::process::Command::new(program)
                .env("PATH", crate::users::DEFAULT_PATH)
                .status()
                .await;
            if !done.as_ref().is_ok_and(std::process::ExitStatus::success) {
                log::warn(&format!("{program} failed ({done:?}), powering off alone"));
                off_alone().await;
            }
        }
        GuestInit::None => off_alone().await,
    }
}

/// Ends all processes, makes the root file system clean and powers off.
async fn off_alone() {
    // Where an init would take its time, the answer to whoever asked has to get out first; it is
    // on its way through the channel, which has no other means to say when it is.
    tokio::time::sleep(ANSWER_TIME).await;
    // kill(2) takes -1, which is the "process group of init" here, for every process but PID 1
    // and the caller.
    let everyone = |signal| kill_process_group(Pid::INIT, signal);
    let _ = everyone(Signal::TERM);
    let step = Duration::from_millis(20);
    let mut waited = Duration::ZERO;
    while waited < TERM_GRACE && others_run() {
        tokio::time::sleep(step).await;
        waited += step;
    }
    let _ = everyone(Signal::KILL);
    rustix::fs::sync();
    let flags = rustix::mount::MountFlags::RDONLY;
    if let Err(e) = rustix::mount::mount_remount("/", flags, c"") {
        log::warn(&format!("cannot make the root file system read-only: {e}"));
    }
    off_now();
}

/// Whether any program but PID 1 and this one runs.
fn others_run() -> bool {
    let own = std::process::id();
    std::fs::read_dir("/proc").is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let pid = entry
                .file_name()
                .to_str()
                .and_then(|n| n.parse::<u32>().ok());
            // Kernel threads and the dead have no program.
            pid.is_some_and(|pid| pid > 1 && pid != own)
                && std::fs::read_link(entry.path().join("exe")).is_ok()
        })
    })
}
