//! The VM that copies, forwards and connections are measured in: one of the daemon's, with ways into
//! it that the product knows nothing of. One virtio-serial port is used bare, one carries a guest
//! channel that leads to nothing, and a port of QEMU's leads to the guest's sshd.
//!
//! Product and floor share the VM, so both see the same guest at the same moment. All is added
//! to the command line by a script the daemon finds in place of QEMU.
//!
//! Much of what makes the channel fast is in how QEMU is told to emulate it, so a channel in that VM
//! is no floor the product has no part in. A second VM has a port as QEMU makes it when asked for no
//! more than a port.

use super::pipe::Pipe;
use super::{GROUP, create};
use crate::daemon::Daemon;
use crate::text::say;
use crate::{programs, workspace};
use anyhow::{Context, Result, bail, ensure};
use slicer_api::{CopyIn, CopyMode, ExecBuffered, ExecRequest};
use slicer_channel::{ChannelError, ChannelStream};
use slicer_client::{Client, Sending};
use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio_util::task::AbortOnDropHandle;

/// The ports' names, in the guest and of their sockets here.
const PORTS: [&str; 2] = ["slicer.bare", "slicer.mux"];
/// The name of the one port of the second VM.
const RAW_PORT: &str = "slicer.raw";
/// While a file of this name is there, a VM is made as QEMU makes it when asked for no more.
const PLAIN: &str = "plain";
/// Where the guest's end of the measurements is.
pub(super) const TOOL: &str = "/usr/local/bin/slicer-bench-guest";
/// Its listener on the guest's loopback.
pub(super) const TCP_PORT: u16 = 7007;
/// How long the guest may take to start all that it starts, and to answer by ssh.
const SETTLE_TIME: Duration = Duration::from_mins(3);
/// The image's user.
const USER: &str = "ubuntu";

/// A VM that is ready for measuring.
pub(super) struct Bed {
    daemon: Daemon,
    client: Client,
    vm: String,
    raw_vm: String,
    dir: PathBuf,
    ssh_port: u16,
    /// A port of the second VM, with nothing done for its speed: the raw guest channel.
    pub(super) raw: Pipe<UnixStream>,
    /// A bare port of the VM the product is measured in.
    pub(super) port: Pipe<UnixStream>,
    /// A stream of the guest channel on a port of its own, with no agent behind it.
    pub(super) stream: Pipe<ChannelStream>,
    /// What moves the channel's bytes.
    _driver: AbortOnDropHandle<ChannelError>,
}

impl Bed {
    /// Starts a daemon in `dir` and its VMs. The daemon is to be stopped.
    pub(super) async fn start(dir: &Path) -> Result<Self> {
        say("A VM with a bare port and a way to its sshd, and one with a port as QEMU makes it");
        let programs = programs()?;
        let ssh_port = free_port()?;
        let finding = instead_of_qemu(dir, ssh_port)?;
        let daemon = Daemon::start_finding(&programs.join("slicer-mac"), dir, &finding).await?;
        let client = daemon.client()?;
        let plain = dir.join(PLAIN);
        fs::write(&plain, "").with_context(|| format!("cannot write {}", plain.display()))?;
        let raw_vm = prepared_vm(&client).await?;
        fs::remove_file(&plain).with_context(|| format!("cannot remove {}", plain.display()))?;
        let vm = prepared_vm(&client).await?;
        // The ports are hung up for the guest until somebody is at their other ends.
        let raw = Pipe(connect(dir, RAW_PORT).await?);
        serve(&client, &raw_vm, &["port", RAW_PORT]).await?;
        let port = Pipe(connect(dir, PORTS[0]).await?);
        serve(&client, &vm, &["port", PORTS[0]]).await?;
        let channel = connect(dir, PORTS[1]).await?;
        serve(&client, &vm, &["channel", PORTS[1]]).await?;
        serve(&client, &vm, &["tcp", &TCP_PORT.to_string()]).await?;
        let connecting = slicer_channel::connect(channel, slicer_channel::wire::HELLO);
        let (mux, driver) = tokio::time::timeout(SETTLE_TIME, connecting)
            .await
            .context("nobody in the guest speaks the channel's protocol")??;
        let driver = AbortOnDropHandle::new(tokio::spawn(driver));
        let stream = Pipe(mux.open().await?);
        let bed = Self {
            daemon,
            client,
            vm,
            raw_vm,
            dir: dir.to_owned(),
            ssh_port,
            raw,
            port,
            stream,
            _driver: driver,
        };
        bed.let_ssh_in().await?;
        Ok(bed)
    }

    /// Deletes the VMs and stops the daemon.
    pub(super) async fn stop(self) -> Result<()> {
        for vm in [&self.vm, &self.raw_vm] {
            self.client.delete_node(GROUP, vm).await?;
        }
        self.daemon.stop(false).await
    }

    /// The daemon's API.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The daemon's process id.
    pub(super) fn daemon_pid(&self) -> i32 {
        self.daemon.pid()
    }

    /// The VM's hostname.
    pub(super) fn vm(&self) -> &str {
        &self.vm
    }

    /// A directory for files.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What a script says that root runs in the guest.
    pub(super) async fn says(&self, script: &str) -> Result<String> {
        let done = sh(&self.client, &self.vm, script).await?;
        ensure!(
            done.exit_code == 0,
            "{script:?} ended with {} in the guest: {}",
            done.exit_code,
            done.stderr.trim()
        );
        Ok(done.stdout)
    }

    /// The command `slicer` with these arguments, in which `{}` stands for the VM.
    pub(super) fn slicer(&self, args: &[&str]) -> Result<Command> {
        let args: Vec<String> = args.iter().map(|a| a.replace("{}", &self.vm)).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Ok(self.daemon.cli(&programs()?.join("slicer"), &args))
    }

    /// `ssh` or `scp`, with all it needs to reach the guest but the command or the files.
    pub(super) fn ssh(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .args(["-F", "none", "-q"])
            .arg(if program == "scp" { "-P" } else { "-p" })
            .arg(self.ssh_port.to_string())
            .arg("-i")
            .arg(self.key())
            .current_dir(&self.dir)
            .env_remove("SSH_AUTH_SOCK")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let known = format!("UserKnownHostsFile={}", self.dir.join("known").display());
        for option in [
            known.as_str(),
            "StrictHostKeyChecking=no",
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "ControlMaster=no",
            "ControlPath=none",
        ] {
            command.args(["-o", option]);
        }
        command
    }

    /// Where `ssh` and `scp` find the guest.
    pub(super) fn ssh_host() -> String {
        format!("{USER}@127.0.0.1")
    }

    fn key(&self) -> PathBuf {
        self.dir.join("key")
    }

    /// Makes a key, has the guest know it, and waits until it lets us in. Its sshd runs all the
    /// time, which is faster than the socket unit that starts one for each connection.
    async fn let_ssh_in(&self) -> Result<()> {
        let mut keygen = Command::new("ssh-keygen");
        keygen
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(self.key());
        seconds(keygen).await?;
        let public = fs::read_to_string(self.dir.join("key.pub"))?;
        let script = format!(
            "systemctl start ssh && install -d -m 700 -o {USER} /home/{USER}/.ssh && \
             echo '{}' > /home/{USER}/.ssh/authorized_keys",
            public.trim()
        );
        self.says(&script).await?;
        let start = Instant::now();
        loop {
            let mut ssh = self.ssh("ssh");
            ssh.arg(Self::ssh_host()).arg("true");
            match seconds(ssh).await {
                Ok(_) => return Ok(()),
                Err(e) if start.elapsed() > SETTLE_TIME => return Err(e),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }
}

/// Launches a VM, waits until it rests, and puts the tool into it.
async fn prepared_vm(client: &Client) -> Result<String> {
    let vm = create(client).await?;
    // What systemd starts behind would be measured, too.
    let settled = sh(client, &vm, "systemctl is-system-running --wait");
    // It says "degraded" and fails when a unit did, which is nothing to us.
    tokio::time::timeout(SETTLE_TIME, settled)
        .await
        .context("the guest does not come to rest")??;
    let tool = workspace()?
        .join("target/guest-programs/slicer-bench-guest")
        .join(slicer_recipe::Arch::host().to_string());
    let to = CopyIn {
        uid: 0,
        gid: 0,
        permissions: Some(0o755),
        ..CopyIn::new(CopyMode::V1Binary, TOOL.as_bytes().to_vec())
    };
    client
        .copy_in(
            &vm,
            &tool,
            &to,
            Sending::Streamed,
            Arc::new(|_, _| true),
            Arc::new(|_, _| {}),
        )
        .await
        .with_context(|| format!("cannot copy {}: run `make bench`", tool.display()))?;
    Ok(vm)
}

/// Has the tool answer in a VM.
async fn serve(client: &Client, vm: &str, args: &[&str]) -> Result<()> {
    let request = ExecRequest {
        cmd: TOOL.to_owned(),
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        uid: 0,
        gid: 0,
        ..ExecRequest::default()
    };
    client.start_background(vm, &request).await?;
    Ok(())
}

/// The host's end of a port.
async fn connect(dir: &Path, port: &str) -> Result<UnixStream> {
    let socket = dir.join(port);
    let stream = UnixStream::connect(&socket).await;
    stream.with_context(|| format!("cannot connect to {}", socket.display()))
}

/// How long a command takes, which must succeed.
pub(super) async fn seconds(mut command: Command) -> Result<f64> {
    let program = command.as_std().get_program().to_owned();
    let start = Instant::now();
    let output = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .await
        .with_context(|| format!("cannot run {}", program.display()))?;
    let took = start.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{} ended with {}: {}",
        program.display(),
        output.status,
        said.trim()
    );
    Ok(took)
}

/// Runs a script as root.
async fn sh(client: &Client, vm: &str, script: &str) -> Result<ExecBuffered> {
    let request = ExecRequest {
        cmd: script.to_owned(),
        shell: Some("/bin/sh".to_owned()),
        uid: 0,
        gid: 0,
        ..ExecRequest::default()
    };
    Ok(client.exec_buffered(vm, &request).await?)
}

/// A port that is free, and of those the kernel gives to nobody by itself: it is used a while later.
fn free_port() -> Result<u16> {
    let ports = (0..100).map(|_| fastrand::u16(20_000..32_000));
    let mut free = ports.filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
    free.next().context("no port is free")
}

/// Makes the script, and a `PATH` on which it comes first.
fn instead_of_qemu(dir: &Path, ssh_port: u16) -> Result<OsString> {
    let name = if cfg!(target_arch = "aarch64") {
        "qemu-system-aarch64"
    } else {
        "qemu-system-x86_64"
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(qemu) = std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
    else {
        bail!("there is no {name}");
    };
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
    // A trial boot has none of these devices and is left as it is. QEMU runs in a directory of its VM's.
    let text = format!(
        "#!/bin/sh
more=
if [ -e '{dir}/{PLAIN}' ]; then
	for arg; do
		shift
		case $arg in
		virtio-serial-pci,*) arg=virtio-serial-pci ;;
		virtserialport,chardev=agent,*) more=yes ;;
		max,erms=off,fsrm=off) arg=max ;;
		esac
		set -- \"$@\" \"$arg\"
	done
	if [ \"$more\" ]; then
		set -- \"$@\" -chardev \"socket,id=raw,server=on,wait=off,path={dir}/{RAW_PORT}\" \\
			-device virtserialport,chardev=raw,name={RAW_PORT}
	fi
	exec '{qemu}' \"$@\"
fi
for arg; do
	shift
	case $arg in
	virtio-serial-pci,*) arg=virtio-serial-pci,max_ports=4,vectors=11${{arg#*vectors=7}} ;;
	virtserialport,chardev=agent,*) more=yes ;;
	user,id=net,*) arg=$arg,hostfwd=tcp:127.0.0.1:{ssh_port}-:22 ;;
	esac
	set -- \"$@\" \"$arg\"
done
if [ \"$more\" ]; then
	for name in {}; do
		set -- \"$@\" -chardev \"socket,id=$name,server=on,wait=off,path={dir}/$name\" \\
			-device virtserialport,chardev=$name,name=$name
	done
fi
exec '{qemu}' \"$@\"
",
        PORTS.join(" "),
        qemu = qemu.display(),
        dir = dir.display()
    );
    let script = bin.join(name);
    fs::write(&script, text).with_context(|| format!("cannot write {}", script.display()))?;
    fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    let dirs = [bin].into_iter().chain(std::env::split_paths(&path));
    let joined = std::env::join_paths(dirs).context("PATH can't be made longer")?;
    Ok(OsStr::new(&joined).to_owned())
}
