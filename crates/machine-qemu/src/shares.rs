//! Host folders in a guest: a virtiofsd for each, and the device it is behind.
//!
//! The devices are plugged in while the VM is up, also at its launch, before its CPUs run: that way
//! they can be taken out before its memory is saved, which QEMU refuses with them, and put in again
//! after it was restored, each on the port that is its own.
//!
//! A virtiofsd gets a socket that listens, and QEMU one that is connected to it, so neither is told
//! a path. It is root of a user namespace in which the host's ids are few, see [`userns`].

use crate::console;
use crate::process::{ShareStart, Spawner, Start, write_note};
use crate::qmp::{Qmp, QmpError};
use crate::userns::{self, Mapping};
use crate::virtiofsd::{Kind, Sandbox, Virtiofsd};
use serde_json::{Value, json};
use slicer_machine::{MachineError, MachineSpec, MachineState, Share};
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Child;
use tokio::sync::{Mutex, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

/// How long QEMU may take to make a device, which includes the first words with its virtiofsd.
const PLUG_TIME: Duration = Duration::from_secs(10);
/// How long a guest may take to let go of a device. One with native hot-plug blinks for 5 s first.
const UNPLUG_TIME: Duration = Duration::from_secs(15);
/// How long a virtiofsd may take to end once its device is gone.
const END_TIME: Duration = Duration::from_secs(2);
/// Between the end of a virtiofsd and the start of the next.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// How often one is started anew in the life of a VM: a guest that can bring it down is not to keep
/// the host busy.
const RESTARTS: u32 = 5;
/// Last words of a virtiofsd that are kept, bytes.
const LAST_WORDS: usize = 4 << 10;

/// The device, character device and note of a VM's share.
fn id(index: usize) -> String {
    format!("share{index}")
}

/// The port its device is behind.
pub(crate) fn port(index: usize) -> String {
    format!("share{index}-port")
}

/// The notes that name processes of shares.
pub(crate) fn notes(state_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(state_dir).into_iter().flatten().flatten();
    let paths = entries.map(|e| e.path());
    paths
        .filter(|p| {
            let name = p.file_name().unwrap_or_default().as_bytes();
            name.starts_with(b"share") && name.ends_with(b".json")
        })
        .collect()
}

/// What one VM shares.
pub(crate) struct Shares {
    inner: Arc<Inner>,
    /// One for each folder, where it is plugged in.
    served: Mutex<Vec<Option<Served>>>,
}

/// A share that is plugged in. Dropped, its virtiofsd is ended.
struct Served {
    /// Whether its virtiofsd is about to end.
    retire: watch::Sender<bool>,
    /// The one task that follows it.
    keeper: JoinSet<()>,
}

struct Inner {
    vm: String,
    shares: Vec<Share>,
    state_dir: PathBuf,
    console: PathBuf,
    spawner: Spawner,
    virtiofsd: Virtiofsd,
    root: bool,
    qmp: Arc<Qmp>,
    /// Names devices that are gone.
    unplugged: broadcast::Sender<String>,
    state: watch::Receiver<MachineState>,
    /// Counts the times a share came anew by itself.
    renewed: watch::Sender<u64>,
}

/// A virtiofsd that runs.
struct Server {
    child: Child,
    /// The end of QEMU's, until it has it.
    socket: OwnedFd,
}

impl Shares {
    pub(crate) fn new(
        spec: &MachineSpec,
        spawner: &Spawner,
        virtiofsd: Virtiofsd,
        qmp: Arc<Qmp>,
        unplugged: broadcast::Sender<String>,
        state: watch::Receiver<MachineState>,
    ) -> Self {
        let inner = Inner {
            vm: spec.name.clone(),
            shares: spec.shares.clone(),
            state_dir: spec.state_dir.clone(),
            console: spec.console.clone(),
            spawner: spawner.clone(),
            virtiofsd,
            root: rustix::process::geteuid().is_root(),
            qmp,
            unplugged,
            state,
            renewed: watch::Sender::new(0),
        };
        Self {
            inner: Arc::new(inner),
            served: Mutex::new(spec.shares.iter().map(|_| None).collect()),
        }
    }

    /// Starts a virtiofsd for each folder that hasn't got one, and plugs its device in.
    pub(crate) async fn attach(&self) -> Result<(), MachineError> {
        let mut served = self.served.lock().await;
        for index in 0..self.inner.shares.len() {
            if served[index].is_some() {
                continue;
            }
            let child = self.inner.plug(index).await?;
            let (retire, retired) = watch::channel(false);
            let mut keeper = JoinSet::new();
            keeper.spawn(self.inner.clone().keep(index, child, retired));
            served[index] = Some(Served { retire, keeper });
        }
        Ok(())
    }

    /// Takes all devices out and ends what served them. The guest, which must run, is to have
    /// unmounted them: what still uses them fails.
    pub(crate) async fn detach(&self) -> Result<(), MachineError> {
        let mut served = self.served.lock().await;
        for (index, slot) in served.iter_mut().enumerate() {
            let Some(one) = slot else { continue };
            // Its virtiofsd ends by itself when its device is gone.
            one.retire.send_replace(true);
            if let Err(e) = self.inner.unplug(index).await {
                one.retire.send_replace(false);
                return Err(e);
            }
            if let Some(mut one) = slot.take() {
                let _ = timeout(END_TIME, one.keeper.join_next()).await;
            }
        }
        Ok(())
    }

    /// Counts the times a share came anew by itself, and must be mounted again.
    pub(crate) fn renewed(&self) -> watch::Receiver<u64> {
        self.inner.renewed.subscribe()
    }
}

impl Inner {
    /// Starts the virtiofsd of a share and plugs its device in.
    async fn plug(&self, index: usize) -> Result<Child, MachineError> {
        let mut why = None;
        for sandbox in self.sandboxes() {
            let Server { mut child, socket } = match self.start(index, *sandbox).await {
                Ok(server) => server,
                // Not every host lets everybody make a user namespace.
                Err(e) => {
                    why.get_or_insert(e);
                    continue;
                }
            };
            let plugged = timeout(PLUG_TIME, self.add_device(index, socket)).await;
            let failed = match plugged {
                Ok(Ok(())) => return Ok(child),
                Ok(Err(e)) => e,
                Err(_) => self.failed("device_add", format!("no answer within {PLUG_TIME:?}")),
            };
            // Which QEMU, should it still wait for it, notices.
            let _ = child.start_kill();
            let text = last_words(&mut child).await;
            let _ = self
                .execute("chardev-remove", json!({ "id": id(index) }), None)
                .await;
            why.get_or_insert(if text.is_empty() {
                failed
            } else {
                self.failed("device_add", format!("virtiofsd: {text}"))
            });
        }
        Err(why.unwrap_or_else(|| self.failed("device_add", "no way to start virtiofsd".into())))
    }

    /// The ways to start it, best first: hosts allow users more or less.
    fn sandboxes(&self) -> &'static [Sandbox] {
        if self.root {
            &[Sandbox::Namespace, Sandbox::Chroot]
        } else {
            &[Sandbox::Namespace, Sandbox::Chroot, Sandbox::None]
        }
    }

    async fn start(&self, index: usize, sandbox: Sandbox) -> Result<Server, MachineError> {
        let share = &self.shares[index];
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| MachineError::Io {
                action,
                path,
                source,
            }
        };
        let meta = fs::metadata(&share.path).map_err(failed("share", &share.path))?;
        if !meta.is_dir() {
            let not = io::Error::from(io::ErrorKind::NotADirectory);
            return Err(failed("share", &share.path)(not));
        }
        let ids = if self.root {
            (meta.uid(), meta.gid())
        } else {
            let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
            (uid.as_raw(), gid.as_raw())
        };
        let (listener, near) =
            sockets(&self.state_dir, index).map_err(failed("make sockets in", &self.state_dir))?;
        let namespace = if sandbox == Sandbox::None {
            None
        } else {
            let (mapping, root) = (self.mapping(), self.root);
            let make = move || userns::make(mapping, ids, root);
            let made = tokio::task::spawn_blocking(make).await;
            let made = made.unwrap_or_else(|e| Err(e.into()));
            Some(made.map_err(failed("make a user namespace for", &share.path))?)
        };
        let read_only = (share.read_only && self.virtiofsd.writes_always())
            .then(|| CString::new(share.path.as_os_str().as_bytes()))
            .transpose()
            .map_err(|e| failed("share", &share.path)(e.into()))?;
        let start = Start {
            program: self.virtiofsd.program.clone(),
            args: self.virtiofsd.args(share, sandbox, ids),
            sockets: None,
            tap: None,
            dir: None,
            nice: false,
            share: Some(ShareStart {
                socket: listener.into(),
                namespace,
                read_only,
            }),
        };
        let child = self.spawner.spawn(start).await?;
        write_note(&self.state_dir.join(format!("{}.json", id(index))), &child)?;
        Ok(Server {
            child,
            socket: near.into(),
        })
    }

    fn mapping(&self) -> Mapping {
        match self.virtiofsd.kind {
            Kind::Translating => Mapping::OwnerIsRoot,
            Kind::Plain | Kind::C => Mapping::OwnerIsGuest,
        }
    }

    async fn add_device(&self, index: usize, socket: OwnedFd) -> Result<(), MachineError> {
        let id = id(index);
        let name = json!({ "fdname": id });
        self.execute("getfd", name, Some(socket.as_fd())).await?;
        let backend = json!({
            "type": "socket",
            "data": { "addr": { "type": "fd", "data": { "str": id } }, "server": false },
        });
        let chardev = json!({ "id": id, "backend": backend });
        self.execute("chardev-add", chardev, None).await?;
        let device = json!({
            "driver": "vhost-user-fs-pci",
            "id": id,
            "chardev": id,
            "tag": self.shares[index].tag,
            "bus": port(index),
        });
        self.execute("device_add", device, None).await
    }

    /// Takes a device out, for which the guest must let go of it.
    async fn unplug(&self, index: usize) -> Result<(), MachineError> {
        let id = id(index);
        let mut gone = self.unplugged.subscribe();
        self.execute("device_del", json!({ "id": id }), None)
            .await?;
        let wait = async {
            loop {
                match gone.recv().await {
                    Ok(device) if device == id => return true,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return false,
                }
            }
        };
        match timeout(UNPLUG_TIME, wait).await {
            Ok(true) => {}
            Ok(false) => {
                return Err(MachineError::Gone {
                    vm: self.vm.clone(),
                });
            }
            Err(_) => {
                let why = format!("the guest did not let go of it within {UNPLUG_TIME:?}");
                return Err(self.failed("device_del", why));
            }
        }
        // The character device goes a moment after what used it.
        self.execute("chardev-remove", json!({ "id": id }), None)
            .await
    }

    /// Follows a virtiofsd, and starts another one when it ends before its VM does.
    async fn keep(self: Arc<Self>, index: usize, mut child: Child, retired: watch::Receiver<bool>) {
        for restarts in 0.. {
            let status = child.wait().await;
            if *retired.borrow() {
                return;
            }
            let text = last_words(&mut child).await;
            // It ends by itself when its VM does, perhaps a moment sooner.
            let mut state = self.state.clone();
            let ended = state.wait_for(|s| matches!(s, MachineState::Stopped(_)));
            if timeout(END_TIME, ended).await.is_ok() {
                return;
            }
            let status = status.map_or_else(|e| e.to_string(), |s| s.to_string());
            let path = self.shares[index].path.display();
            self.tell(&format!(
                "virtiofsd of {path} ended unexpectedly ({status}) {text}"
            ));
            if restarts >= RESTARTS {
                self.tell(&format!(
                    "{path} is not shared any more: it failed too often"
                ));
                return;
            }
            sleep(RESTART_PAUSE).await;
            let renewed = match self.unplug(index).await {
                Ok(()) => self.plug(index).await,
                Err(e) => Err(e),
            };
            match renewed {
                Ok(new) => child = new,
                Err(e) => {
                    self.tell(&format!(
                        "{path} is not shared any more, and what uses it in the VM may hang until \
                         that is started anew: {e}"
                    ));
                    return;
                }
            }
            info!("{}: {path} is shared again", self.vm);
            self.renewed.send_modify(|n| *n += 1);
        }
    }

    /// Warns whoever looks at the daemon's log or the VM's.
    fn tell(&self, text: &str) {
        let text = text.trim();
        warn!("{}: {text}", self.vm);
        console::note(&self.console, text);
    }

    async fn execute(
        &self,
        command: &'static str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), MachineError> {
        let done = timeout(PLUG_TIME, self.qmp.execute(command, arguments, fd)).await;
        match done {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(self.qmp_failed(command, e)),
            Err(_) => Err(self.failed(command, format!("no answer within {PLUG_TIME:?}"))),
        }
    }

    fn qmp_failed(&self, command: &'static str, e: QmpError) -> MachineError {
        match e {
            QmpError::Gone => MachineError::Gone {
                vm: self.vm.clone(),
            },
            QmpError::Refused(why) => self.failed(command, why),
        }
    }

    fn failed(&self, command: &'static str, why: String) -> MachineError {
        MachineError::Command {
            vm: self.vm.clone(),
            command,
            why,
        }
    }
}

/// A listening socket, and one that is connected to it. Nobody else can connect: its name is in a
/// directory of the daemon's own, and only until this returns.
fn sockets(state_dir: &Path, index: usize) -> io::Result<(UnixListener, UnixStream)> {
    let dir = File::open(state_dir)?;
    // However long the directory's name is, this isn't.
    let path = format!("/proc/self/fd/{}/{}.sock", dir.as_raw_fd(), id(index));
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    let near = UnixStream::connect(&path);
    fs::remove_file(&path)?;
    Ok((listener, near?))
}

/// The last line a virtiofsd wrote before it ended.
async fn last_words(child: &mut Child) -> String {
    let mut text = String::new();
    if let Some(err) = child.stderr.take() {
        // It says little, and what it says beyond a pipe's room isn't waited for.
        let mut err = err.take(LAST_WORDS as u64);
        let _ = timeout(Duration::from_secs(1), err.read_to_string(&mut text)).await;
    }
    let last = text.lines().rev().find(|l| !l.trim().is_empty());
    last.unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn sockets_are_connected_and_have_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        let (listener, mut near) = sockets(&deep, 0).unwrap();
        assert_eq!(fs::read_dir(&deep).unwrap().count(), 0);
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(b"hi").unwrap();
        let mut text = [0; 2];
        far.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hi");
    }

    #[test]
    fn notes_are_those_of_shares() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["qemu.json", "share0.json", "share12.json", "share0.sock"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let mut found = notes(dir.path());
        found.sort();
        let want = ["share0.json", "share12.json"].map(|n| dir.path().join(n));
        assert_eq!(found, want);
    }
}
