//! Guests by hand that go on when they are ready, to be looked at.

use super::{AGENT_FD, BOOT_TIME, Floor, Monitor, end, introduce};
use anyhow::{Context, Result, bail};
use command_fds::{CommandFdExt, FdMapping};
use slicer_channel::{connect, wire};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::time::Instant;
use tokio::net::UnixStream;
use tokio::process::Child;

/// A guest that is ready.
pub(crate) struct Kept {
    child: Child,
    overlay: PathBuf,
    /// Without it the guest would hang up.
    _channel: StdUnixStream,
}

impl Floor {
    /// Makes the disk of the `n`th guest by hand.
    pub(crate) async fn kept_disk(&self, n: u32) -> Result<PathBuf> {
        let overlay = self.dir.join(format!("kept-{n}.img"));
        self.clone_disk(&overlay).await?;
        Ok(overlay)
    }

    /// Boots a guest from such a disk until it is ready.
    pub(crate) async fn kept(&self, overlay: PathBuf) -> Result<Kept> {
        let (near, far) = StdUnixStream::pair()?;
        near.set_nonblocking(true)?;
        let mut command = self.full(&overlay);
        command.as_std_mut().fd_mappings(vec![FdMapping {
            parent_fd: OwnedFd::from(far),
            child_fd: AGENT_FD,
        }])?;
        let child = command.spawn().context("cannot start QEMU")?;
        drop(command);
        let channel = near.try_clone()?;
        let boot = async {
            let (mux, driver) = connect(UnixStream::from_std(near)?, wire::HELLO).await?;
            tokio::select! {
                ready = introduce(&mux) => ready,
                ended = driver => bail!("the guest channel ended: {ended}"),
            }
        };
        let ready = tokio::time::timeout(BOOT_TIME, boot).await;
        ready.context("the guest does not get ready")??;
        Ok(Kept {
            child,
            overlay,
            _channel: channel,
        })
    }

    /// Seconds from the start of QEMU until it answers on its monitor, without a guest; and for an
    /// overlay by qemu-img: what nobody who starts QEMU for a VM can do without.
    pub(crate) async fn least(&self) -> Result<f64> {
        let overlay = self.dir.join("least.img");
        let start = Instant::now();
        self.clone_disk(&overlay).await?;
        let mut command = self.full(&overlay);
        let (near, far) = StdUnixStream::pair()?;
        let (monitor, monitor_far) = StdUnixStream::pair()?;
        monitor.set_nonblocking(true)?;
        command
            .arg("-S")
            .args(["-chardev", "socket,id=qmp,fd=3"])
            .args(["-mon", "chardev=qmp,mode=control"]);
        let inherit = |far, child_fd| FdMapping {
            parent_fd: OwnedFd::from(far),
            child_fd,
        };
        command
            .as_std_mut()
            .fd_mappings(vec![inherit(far, AGENT_FD), inherit(monitor_far, 3)])?;
        let child = command.spawn().context("cannot start QEMU")?;
        drop(command);
        let greeted = Monitor::on(UnixStream::from_std(monitor)?);
        let greeted = tokio::time::timeout(BOOT_TIME, greeted).await;
        drop(greeted.context("QEMU does not answer")??);
        let seconds = start.elapsed().as_secs_f64();
        drop(near);
        end(child).await?;
        fs::remove_file(&overlay)?;
        Ok(seconds)
    }
}

impl Kept {
    /// QEMU's process id.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.child.id().and_then(|id| i32::try_from(id).ok())
    }

    pub(crate) async fn end(self) -> Result<()> {
        end(self.child).await?;
        Ok(fs::remove_file(&self.overlay)?)
    }
}
