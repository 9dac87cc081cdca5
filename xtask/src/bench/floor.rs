//! What a launch costs without slicer: QEMU started by hand, its agent greeted by hand.
//!
//! The command line is written out here rather than taken from the backend, so that what the
//! backend adds shows in the ratio.

mod kept;
mod template;

pub(crate) use kept::Kept;
pub(crate) use template::{Clone as HandClone, Template};

use super::{DISK_SIZE, GROUP, RAM_MB, VCPUS};
use anyhow::{Context, Result, bail, ensure};
use command_fds::{CommandFdExt, FdMapping};
use slicer_api::{ExecBuffered, ExecRequest, Identity, NetworkIdentity};
use slicer_channel::{Mux, Trigger, connect, wire};
use std::ffi::OsString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

/// Longest wait for a guest.
const BOOT_TIME: Duration = Duration::from_mins(5);
/// What the initramfs prints when all it is asked for is to show that it runs.
const PROBE_OK: &str = "slicer-probe-ok";
/// Quiet as the daemon's own VMs: each byte on an emulated console costs.
const CMDLINE: &str = "quiet loglevel=6 panic=-1 cryptomgr.notests random.trust_cpu=on";
/// What a kernel is told besides where it is emulated.
const EMULATED: &str = "mitigations=off norandmaps";
/// The descriptor of the guest channel in QEMU.
const AGENT_FD: i32 = 4;
const MAC: &str = "02:00:00:00:00:09";

/// The boot files that a daemon has prepared in its directory, and how it runs guests.
#[derive(Clone)]
pub(crate) struct Floor {
    dir: PathBuf,
    /// `kvm` or `tcg`.
    pub(crate) accelerator: String,
}

/// The times of one boot by hand, seconds from the start of QEMU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Boot {
    /// Until the agent's first byte.
    pub(crate) first_byte: f64,
    /// Until the agent says that the guest is ready.
    pub(crate) ready: f64,
}

impl Floor {
    /// Takes what the daemon that works in `dir` has prepared; it has launched a VM before.
    pub(crate) fn of(dir: &Path) -> Result<Self> {
        let file = dir.join(".slicer/accelerator.json");
        let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let verdict: serde_json::Value = serde_json::from_slice(&text)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let accelerator = verdict["accelerator"].as_str();
        Ok(Self {
            dir: dir.to_owned(),
            accelerator: accelerator
                .context("the daemon chose no accelerator")?
                .to_owned(),
        })
    }

    /// The guests' kernel, by what is in its file.
    pub(crate) fn kernel_release(&self) -> String {
        const BEFORE: &[u8] = b"Linux version ";
        let file = self.dir.join("kernel").join(GROUP).join("Image");
        let bytes = fs::read(file).unwrap_or_default();
        let at = bytes.windows(BEFORE.len()).position(|w| w == BEFORE);
        let release = at.and_then(|at| bytes.get(at + BEFORE.len()..));
        let release = release.and_then(|r| r.split(|b| *b == b' ').next());
        // A format string is there, too, in some.
        String::from_utf8_lossy(release.unwrap_or_default()).into_owned()
    }

    /// QEMU's program and the part of its command line that every boot here has.
    fn machine(&self, append: &str) -> Command {
        let mut command = self.open_machine(append);
        command
            .arg("-sandbox")
            .arg("on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        command
    }

    /// The same, of a QEMU that may start programs.
    fn open_machine(&self, append: &str) -> Command {
        let kvm = self.accelerator == "kvm";
        let (program, machine, console) = if cfg!(target_arch = "aarch64") {
            let machine = if kvm {
                "-machine virt,gic-version=host -accel kvm -cpu host"
            } else {
                "-machine virt -accel tcg,thread=multi -cpu cortex-a72"
            };
            ("qemu-system-aarch64", machine, "ttyAMA0")
        } else {
            let machine = if kvm {
                "-machine q35 -bios qboot.rom -accel kvm -cpu host"
            } else {
                "-machine q35 -bios qboot.rom -accel tcg,thread=multi -cpu max,erms=off,fsrm=off"
            };
            ("qemu-system-x86_64", machine, "ttyS0")
        };
        let more = if kvm {
            String::new()
        } else {
            format!(" {EMULATED}")
        };
        let kernel = self.dir.join("kernel").join(GROUP);
        let mut std = std::process::Command::new(program);
        std.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(machine.split(' '))
        .args(["-smp", &VCPUS.to_string(), "-m", &format!("{RAM_MB}M")])
        .arg("-kernel")
        .arg(kernel.join("Image"))
        .arg("-initrd")
        .arg(kernel.join("initramfs.cpio"))
        .args(["-append", &format!("console={console} {append}{more}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
        let mut command = Command::from(std);
        command.kill_on_drop(true);
        command
    }

    /// Seconds until kernel and initramfs run a program, with no device but the console.
    pub(crate) async fn bare(&self) -> Result<f64> {
        let mut command = self.machine(&format!("{CMDLINE} slicer.probe"));
        command
            .args(["-chardev", "stdio,id=console", "-serial", "chardev:console"])
            .stdout(Stdio::piped());
        let start = Instant::now();
        let mut child = command.spawn().context("cannot start QEMU")?;
        let stdout = child.stdout.take().context("QEMU has no stdout")?;
        let mut lines = BufReader::new(stdout).lines();
        let seen = async {
            while let Some(line) = lines.next_line().await? {
                if line.contains(PROBE_OK) {
                    return Ok(start.elapsed().as_secs_f64());
                }
            }
            bail!("the guest ended without {PROBE_OK:?} on its console")
        };
        let seen = tokio::time::timeout(BOOT_TIME, seen).await;
        let seconds = seen.context("the bare kernel does not boot")??;
        end(child).await?;
        Ok(seconds)
    }

    /// Boots a guest as the daemon would, and waits until it is ready. Its disk is made before the
    /// clock starts.
    pub(crate) async fn boot(&self) -> Result<Boot> {
        let overlay = self.dir.join("floor.img");
        self.clone_disk(&overlay).await?;
        let (near, far) = StdUnixStream::pair()?;
        near.set_nonblocking(true)?;
        let mut command = self.full(&overlay);
        command.as_std_mut().fd_mappings(vec![FdMapping {
            parent_fd: OwnedFd::from(far),
            child_fd: AGENT_FD,
        }])?;
        let start = Instant::now();
        let child = command.spawn().context("cannot start QEMU")?;
        // Its copy of the guest's end goes with it, so that the pipe ends with QEMU.
        drop(command);
        let greeted = tokio::time::timeout(BOOT_TIME, greet(near, start)).await;
        let boot = greeted.context("the guest does not get ready")??;
        end(child).await?;
        fs::remove_file(&overlay)?;
        Ok(boot)
    }

    /// A guest that is ready, to be suspended and restored by hand.
    pub(crate) async fn sleeper(&self) -> Result<Sleeper> {
        let overlay = self.dir.join("sleeper.img");
        self.clone_disk(&overlay).await?;
        let mut command = self.open_machine(CMDLINE);
        command = self.with_devices(command, &overlay);
        let (child, near, qmp) = self.start(command).await?;
        let channel = near.try_clone()?;
        let boot = async {
            let (mux, driver) = connect(UnixStream::from_std(near)?, wire::HELLO).await?;
            let resume = mux.resume_trigger();
            tokio::select! {
                ready = introduce(&mux) => ready?,
                ended = driver => bail!("the guest channel ended: {ended}"),
            }
            Ok(resume)
        };
        let resume = tokio::time::timeout(BOOT_TIME, boot).await;
        let resume = resume.context("the guest does not get ready")??;
        Ok(Sleeper {
            floor: self.clone(),
            overlay,
            running: Some((child, qmp, channel)),
            resume,
        })
    }

    /// Starts QEMU with a guest channel and a monitor.
    async fn start(&self, mut command: Command) -> Result<(Child, StdUnixStream, Monitor)> {
        let (near, far) = StdUnixStream::pair()?;
        near.set_nonblocking(true)?;
        let socket = self.dir.join("floor.qmp");
        let _ = fs::remove_file(&socket);
        command
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()));
        command.as_std_mut().fd_mappings(vec![FdMapping {
            parent_fd: OwnedFd::from(far),
            child_fd: AGENT_FD,
        }])?;
        let child = command.spawn().context("cannot start QEMU")?;
        drop(command);
        Ok((child, near, Monitor::connect(&socket).await?))
    }

    async fn clone_disk(&self, overlay: &Path) -> Result<()> {
        let output = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(self.dir.join(format!("{GROUP}-base.img")))
            .arg(overlay)
            .arg(DISK_SIZE)
            .output()
            .await
            .context("cannot run qemu-img")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "qemu-img: {}", said.trim());
        Ok(())
    }

    fn full(&self, overlay: &Path) -> Command {
        self.with_devices(self.machine(CMDLINE), overlay)
    }

    fn with_devices(&self, mut command: Command, overlay: &Path) -> Command {
        let (root, modules) = (
            overlay.display(),
            self.dir.join("kernel").join(GROUP).join("modules.ext4"),
        );
        let console = self.dir.join("floor.txt");
        let channel = if self.accelerator == "kvm" {
            "virtio-serial-pci,max_ports=2,vectors=7"
        } else {
            "virtio-serial-pci,max_ports=2,vectors=7,ioeventfd=off"
        };
        command
            .args(["-device", "virtio-rng-pci"])
            .args(["-device", channel])
            .args(["-device", "virtserialport,chardev=agent,name=slicer.agent"])
            .args(["-chardev", &format!("socket,id=agent,fd={AGENT_FD}")])
            .arg("-chardev")
            .arg(format!("file,id=console,path={}", console.display()))
            .args(["-serial", "chardev:console"])
            .arg("-blockdev")
            .arg(format!(
                "driver=qcow2,node-name=root,discard=unmap,cache.no-flush=on,file.driver=file,\
                 file.filename={root},file.discard=unmap,file.cache.no-flush=on"
            ))
            .args(["-device", "virtio-blk-pci,drive=root,serial=root"])
            .arg("-blockdev")
            .arg(format!(
                "driver=raw,node-name=modules,read-only=on,file.driver=file,file.filename={}",
                modules.display()
            ))
            .args(["-device", "virtio-blk-pci,drive=modules,serial=modules"])
            .arg("-netdev")
            .arg("user,id=net,ipv6=off,net=192.168.64.0/24,host=192.168.64.1,dns=192.168.64.254")
            .args(["-device", &format!("virtio-net-pci,netdev=net,mac={MAC}")])
            .args(["-device", "virtio-balloon-pci,free-page-reporting=on"]);
        command
    }
}

/// A guest that is suspended and restored by hand.
pub(crate) struct Sleeper {
    floor: Floor,
    overlay: PathBuf,
    /// QEMU, its monitor and the host's end of the channel, without which the guest would hang up.
    running: Option<(Child, Monitor, StdUnixStream)>,
    resume: Trigger,
}

impl Sleeper {
    fn memory(&self) -> PathBuf {
        self.floor.dir.join("sleeper.memory")
    }

    /// Seconds from `stop` until the state is on the disk and QEMU has ended.
    pub(crate) async fn suspend(&mut self) -> Result<f64> {
        let (mut child, mut qmp, _channel) = self.running.take().context("it is suspended")?;
        let file = self.memory();
        let start = Instant::now();
        qmp.execute(r#"{"execute":"stop"}"#).await?;
        // The default is made for networks.
        qmp.execute(
            r#"{"execute":"migrate-set-parameters","arguments":{"max-bandwidth":1099511627776}}"#,
        )
        .await?;
        qmp.execute(&format!(
            r#"{{"execute":"migrate","arguments":{{"uri":"exec:cat>{}"}}}}"#,
            file.display()
        ))
        .await?;
        qmp.migrated().await?;
        let sync = tokio::task::spawn_blocking(move || fs::File::open(file)?.sync_all());
        sync.await??;
        qmp.send(r#"{"execute":"quit"}"#).await?;
        child.wait().await?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Seconds from the start of QEMU until the agent answers.
    pub(crate) async fn restore(&mut self) -> Result<f64> {
        let mut command = self.floor.open_machine(CMDLINE);
        command = self.floor.with_devices(command, &self.overlay);
        command
            .arg("-incoming")
            .arg(format!("exec:cat {}", self.memory().display()));
        let start = Instant::now();
        let (child, near, mut qmp) = self.floor.start(command).await?;
        qmp.migrated().await?;
        qmp.execute(r#"{"execute":"cont"}"#).await?;
        let channel = near.try_clone()?;
        let greet = connect(UnixStream::from_std(near)?, self.resume);
        let greeted = tokio::time::timeout(BOOT_TIME, greet).await;
        let (mux, _driver) = greeted.context("the guest does not answer")??;
        let seconds = start.elapsed().as_secs_f64();
        self.resume = mux.resume_trigger();
        self.running = Some((child, qmp, channel));
        Ok(seconds)
    }

    pub(crate) async fn end(self) -> Result<()> {
        if let Some((child, ..)) = self.running {
            end(child).await?;
        }
        Ok(())
    }
}

impl Floor {
    /// A guest that is ready, in whose `/mnt` is a folder that a virtiofsd serves by hand.
    pub(crate) async fn sharer(&self, virtiofsd: &[OsString], socket: &Path) -> Result<Sharer> {
        let overlay = self.dir.join("sharer.img");
        self.clone_disk(&overlay).await?;
        let mut server = Command::new(virtiofsd.first().context("no virtiofsd")?);
        server
            .args(virtiofsd.get(1..).unwrap_or_default())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let server = server.spawn().context("cannot start virtiofsd")?;
        let listening = async {
            while !socket.exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let listening = tokio::time::timeout(BOOT_TIME, listening).await;
        listening.context("virtiofsd does not listen")?;
        let mut command = self.full(&overlay);
        command
            .arg("-object")
            .arg(format!(
                "memory-backend-memfd,id=mem,size={RAM_MB}M,share=on"
            ))
            .args(["-machine", "memory-backend=mem"])
            .args(["-device", "pcie-root-port,id=share-port,chassis=1"])
            .arg("-chardev")
            .arg(format!("socket,id=fs,path={}", socket.display()))
            .args([
                "-device",
                "vhost-user-fs-pci,chardev=fs,tag=home,bus=share-port",
            ]);
        let (child, near, _) = self.start(command).await?;
        let channel = near.try_clone()?;
        let boot = connect(UnixStream::from_std(near)?, wire::HELLO);
        let boot = tokio::time::timeout(BOOT_TIME, boot).await;
        let (mux, driver) = boot.context("the guest does not answer")??;
        let driver = tokio::spawn(async move { drop(driver.await) });
        let this = Sharer {
            mux,
            driver,
            overlay,
            _channel: channel,
            running: (child, server),
        };
        let ready = async {
            introduce(&this.mux).await?;
            this.says("modprobe virtiofs; mount -t virtiofs home /mnt")
                .await
        };
        let ready = tokio::time::timeout(BOOT_TIME, ready).await;
        ready.context("the guest does not get ready")??;
        Ok(this)
    }
}

/// A guest with a shared folder, all by hand.
pub(crate) struct Sharer {
    mux: Mux,
    driver: tokio::task::JoinHandle<()>,
    overlay: PathBuf,
    /// The host's end of the channel.
    _channel: StdUnixStream,
    running: (Child, Child),
}

impl Sharer {
    /// What a script of root's prints, when it succeeds.
    pub(crate) async fn says(&self, script: &str) -> Result<String> {
        let request = ExecRequest {
            cmd: script.to_owned(),
            shell: Some("/bin/bash".to_owned()),
            uid: 0,
            gid: 0,
            buffered: true,
            ..ExecRequest::default()
        };
        let path = format!("/exec?{}", request.to_query());
        let answer = ask(&self.mux, "POST", &path, "").await?;
        // It comes in one chunk, between what says how long that is.
        let (from, to) = (answer.find('{'), answer.rfind('}'));
        let json = from.zip(to).and_then(|(from, to)| answer.get(from..=to));
        let done: ExecBuffered = serde_json::from_str(json.unwrap_or_default())?;
        ensure!(done.exit_code == 0, "{script}: {done:?}");
        Ok(done.stdout)
    }

    pub(crate) async fn end(self) -> Result<()> {
        let (child, mut server) = self.running;
        end(child).await?;
        self.driver.abort();
        // It ends by itself when its QEMU has.
        server.wait().await?;
        Ok(fs::remove_file(&self.overlay)?)
    }
}

/// QEMU's monitor, spoken to by hand.
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    async fn connect(socket: &Path) -> Result<Self> {
        let connected = async {
            loop {
                match UnixStream::connect(socket).await {
                    Ok(stream) => break stream,
                    Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        };
        Self::on(tokio::time::timeout(BOOT_TIME, connected).await?).await
    }

    /// The monitor at the other end.
    async fn on(stream: UnixStream) -> Result<Self> {
        let mut this = Self(BufReader::new(stream));
        this.line().await?;
        this.execute(r#"{"execute":"qmp_capabilities"}"#).await?;
        Ok(this)
    }

    async fn line(&mut self) -> Result<serde_json::Value> {
        let mut line = String::new();
        ensure!(
            self.0.read_line(&mut line).await? > 0,
            "QEMU's monitor ended"
        );
        Ok(serde_json::from_str(&line)?)
    }

    async fn send(&mut self, command: &str) -> Result<()> {
        Ok(self.0.get_mut().write_all(command.as_bytes()).await?)
    }

    async fn execute(&mut self, command: &str) -> Result<serde_json::Value> {
        self.send(command).await?;
        loop {
            let line = self.line().await?;
            ensure!(line.get("error").is_none(), "{command}: {line}");
            if let Some(value) = line.get("return") {
                return Ok(value.clone());
            }
        }
    }

    /// Waits until a state is written or read.
    async fn migrated(&mut self) -> Result<()> {
        let over = async {
            loop {
                let query = self.execute(r#"{"execute":"query-migrate"}"#).await?;
                match query["status"].as_str() {
                    Some("completed") => return Ok(()),
                    Some("failed") => bail!("the migration failed: {query}"),
                    _ => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        };
        tokio::time::timeout(BOOT_TIME, over).await?
    }
}

async fn end(mut child: Child) -> Result<()> {
    child.kill().await.context("cannot end QEMU")
}

/// Says hello to the agent, tells it who it is, and waits until it is ready.
async fn greet(near: StdUnixStream, start: Instant) -> Result<Boot> {
    // QEMU leaves what the guest has no port for yet in the socket.
    let (mux, driver) = connect(UnixStream::from_std(near)?, wire::HELLO).await?;
    let first_byte = start.elapsed().as_secs_f64();
    let talk = async {
        introduce(&mux).await?;
        Ok::<_, anyhow::Error>(start.elapsed().as_secs_f64())
    };
    let ready = tokio::select! {
        ready = talk => ready,
        ended = driver => bail!("the guest channel ended: {ended}"),
    }?;
    Ok(Boot { first_byte, ready })
}

/// Tells the agent who it is, and waits until it is ready.
async fn introduce(mux: &Mux) -> Result<()> {
    let identity = serde_json::to_string(&identity())?;
    ask(mux, "POST", "/identity", &identity).await?;
    ask(mux, "GET", "/health?wait=ready", "").await.map(drop)
}

fn identity() -> Identity {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Identity {
        hostname: "floor-1".to_owned(),
        clock_unix_nanos: u64::try_from(now.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX),
        network: Some(NetworkIdentity {
            mac: MAC.to_owned(),
            address: [192, 168, 64, 9].into(),
            prefix: 24,
            gateway: [192, 168, 64, 1].into(),
            dns: vec![[192, 168, 64, 254].into()],
        }),
        ..Identity::default()
    }
}

/// One HTTP request on a stream of its own, by hand; gives the answer's body.
async fn ask(mux: &Mux, method: &str, path: &str, body: &str) -> Result<String> {
    let mut stream = mux.open().await?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    stream.take(1 << 16).read_to_end(&mut answer).await?;
    let status = answer.get(9..12).unwrap_or_default();
    ensure!(
        answer.starts_with(b"HTTP/1.1 2"),
        "{method} {path} was answered with {:?}",
        String::from_utf8_lossy(status)
    );
    let answer = String::from_utf8_lossy(&answer);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
    Ok(body.unwrap_or_default().to_owned())
}
