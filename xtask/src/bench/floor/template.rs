//! Clones of a VM that has booted, by QEMU alone: its memory in a file that each maps for itself, the
//! state of its devices in another, and an overlay on its disk.

use super::{AGENT_FD, BOOT_TIME, CMDLINE, DISK_SIZE, Floor, Monitor, RAM_MB, ask, end, introduce};
use anyhow::{Context, Result, bail, ensure};
use command_fds::{CommandFdExt, FdMapping};
use slicer_api::ExecRequest;
use slicer_channel::{Trigger, connect, wire};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::time::Instant;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

/// QEMU's monitor in a clone.
const QMP_FD: i32 = 3;
/// Without it all memory is read from the state, and not from its own file.
const IGNORE_SHARED: &str = r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"x-ignore-shared","state":true}]}}"#;

/// What clones are made of.
#[derive(Clone)]
pub(crate) struct Template {
    floor: Floor,
    resume: Trigger,
}

/// A running clone.
pub(crate) struct Clone {
    child: Child,
    overlay: PathBuf,
    /// Without them the guest would hang up.
    _channel: StdUnixStream,
    _monitor: Monitor,
    /// From the start of QEMU until the agent's first byte, seconds.
    pub(crate) first_byte: f64,
}

impl Floor {
    /// Boots a guest, lets it come to rest, and makes a template of it.
    pub(crate) async fn template(&self) -> Result<Template> {
        let template = |resume| Template {
            floor: self.clone(),
            resume,
        };
        let files = template(wire::HELLO);
        self.clone_disk(&files.disk()).await?;
        let command = files.with_memory(self.open_machine(CMDLINE), true);
        let command = self.with_devices(command, &files.disk());
        let (mut child, near, mut qmp) = self.start(command).await?;
        // Held until the end, so that the guest sees no hang-up.
        let _channel = near.try_clone()?;
        let rest = async {
            let (mux, driver) = connect(UnixStream::from_std(near)?, wire::HELLO).await?;
            let resume = mux.resume_trigger();
            let settle = async {
                introduce(&mux).await?;
                let settled = ExecRequest {
                    // It fails when a unit did, which is nothing to us.
                    cmd: "systemctl is-system-running --wait; /bin/true; sync; sleep 1".to_owned(),
                    shell: Some("/bin/sh".to_owned()),
                    buffered: true,
                    ..ExecRequest::default()
                };
                ask(&mux, "POST", &format!("/exec?{}", settled.to_query()), "").await
            };
            tokio::select! {
                settled = settle => settled?,
                ended = driver => bail!("the guest channel ended: {ended}"),
            };
            Ok(resume)
        };
        let resume = tokio::time::timeout(BOOT_TIME, rest).await;
        let resume = resume.context("the guest does not come to rest")??;
        qmp.execute(IGNORE_SHARED).await?;
        let state = files.state();
        qmp.execute(&format!(
            r#"{{"execute":"migrate","arguments":{{"uri":"exec:cat>{}"}}}}"#,
            state.display()
        ))
        .await?;
        qmp.migrated().await?;
        qmp.send(r#"{"execute":"quit"}"#).await?;
        child.wait().await?;
        Ok(template(resume))
    }
}

impl Template {
    fn file(&self, name: &str) -> PathBuf {
        self.floor.dir.join(format!("by-hand-{name}"))
    }

    fn disk(&self) -> PathBuf {
        self.file("template.img")
    }

    fn state(&self) -> PathBuf {
        self.file("template.state")
    }

    fn memory(&self) -> PathBuf {
        self.file("template.memory")
    }

    fn with_memory(&self, mut command: Command, share: bool) -> Command {
        let share = if share { "on" } else { "off" };
        command
            .arg("-object")
            .arg(format!(
                "memory-backend-file,id=mem,size={RAM_MB}M,share={share},mem-path={}",
                self.memory().display()
            ))
            .args(["-machine", "memory-backend=mem"]);
        command
    }

    /// Makes the disk of the `n`th clone.
    pub(crate) async fn clone_disk(&self, n: u32) -> Result<PathBuf> {
        let overlay = self.file(&format!("{n}.img"));
        let output = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
            .arg(self.disk())
            .arg(&overlay)
            .arg(DISK_SIZE)
            .output()
            .await
            .context("cannot run qemu-img")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "qemu-img: {}", said.trim());
        Ok(overlay)
    }

    /// Starts a clone with such a disk.
    pub(crate) async fn start(&self, overlay: PathBuf) -> Result<Clone> {
        let command = self.with_memory(self.floor.open_machine(CMDLINE), false);
        let mut command = self.floor.with_devices(command, &overlay);
        command
            .args(["-chardev", &format!("socket,id=qmp,fd={QMP_FD}")])
            .args(["-mon", "chardev=qmp,mode=control", "-incoming", "defer"]);
        let (agent, agent_far) = StdUnixStream::pair()?;
        let (monitor, monitor_far) = StdUnixStream::pair()?;
        for near in [&agent, &monitor] {
            near.set_nonblocking(true)?;
        }
        let inherit = |far, child_fd| FdMapping {
            parent_fd: OwnedFd::from(far),
            child_fd,
        };
        command.as_std_mut().fd_mappings(vec![
            inherit(agent_far, AGENT_FD),
            inherit(monitor_far, QMP_FD),
        ])?;
        let start = Instant::now();
        let child = command.spawn().context("cannot start QEMU")?;
        drop(command);
        let restored = async {
            let mut monitor = Monitor::on(UnixStream::from_std(monitor)?).await?;
            monitor.execute(IGNORE_SHARED).await?;
            let incoming = format!(
                r#"{{"execute":"migrate-incoming","arguments":{{"uri":"exec:cat {}"}}}}"#,
                self.state().display()
            );
            monitor.execute(&incoming).await?;
            let channel = agent.try_clone()?;
            let (_mux, _driver) = connect(UnixStream::from_std(agent)?, self.resume).await?;
            Ok::<_, anyhow::Error>((monitor, channel, start.elapsed().as_secs_f64()))
        };
        let restored = tokio::time::timeout(BOOT_TIME, restored).await;
        let (monitor, channel, first_byte) = restored.context("a clone does not answer")??;
        Ok(Clone {
            child,
            overlay,
            _channel: channel,
            _monitor: monitor,
            first_byte,
        })
    }

    /// Removes its files.
    pub(crate) fn remove(self) -> Result<()> {
        for file in [self.disk(), self.state(), self.memory()] {
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
        Ok(())
    }
}

impl Clone {
    /// QEMU's process id.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.child.id().and_then(|id| i32::try_from(id).ok())
    }

    pub(crate) async fn end(self) -> Result<()> {
        end(self.child).await?;
        Ok(fs::remove_file(&self.overlay)?)
    }
}
