//! A framework whose answers a test gives, one by one.

use crate::framework::{Done, Event, Framework, Host, Operation, Rosetta, Vm, VzError};
use crate::plan::Plan;
use slicer_machine::{
    Arch, Boot, Disk, DiskFormat, MacAddress, MachineSpec, Network, Share, UserNetwork,
};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;
use tokio::sync::mpsc;

/// A Mac with ten cores and 16 GiB for VMs.
pub(crate) fn host() -> Host {
    Host {
        cpus: 1..=10,
        memory_bytes: 4 << 20..=16 << 30,
        rosetta: Rosetta::Installed,
        save_restore: true,
        version: "macOS 15.5".into(),
    }
}

/// What the daemon asks for.
pub(crate) fn spec(name: &str) -> MachineSpec {
    let disk = |id, path: &str, read_only| Disk {
        id,
        path: path.into(),
        format: DiskFormat::Raw,
        read_only,
        flush: true,
    };
    MachineSpec {
        name: name.to_owned(),
        arch: Arch::Aarch64,
        cpus: 2,
        memory_bytes: 1 << 30,
        boot: Boot {
            kernel: "/w/kernel/slicer/Image".into(),
            initramfs: "/w/kernel/slicer/initramfs".into(),
            cmdline: "console=hvc0".into(),
        },
        disks: vec![
            disk("root", "/w/slicer-1.img", false),
            disk("modules", "/w/modules.img", true),
        ],
        network: Some(Network::User(UserNetwork {
            mac: MacAddress([6, 0, 192, 168, 64, 2]),
            address: Ipv4Addr::new(192, 168, 64, 2),
            gateway: Ipv4Addr::new(192, 168, 64, 1),
            dns: Ipv4Addr::new(192, 168, 64, 1),
            prefix: 24,
        })),
        shares: vec![Share {
            tag: "home".into(),
            path: "/Users/me".into(),
            read_only: false,
        }],
        rosetta: false,
        clonable: false,
        console: "/w/logs/slicer-1.txt".into(),
        state_dir: "/w/.slicer/run/slicer-1".into(),
    }
}

/// What a machine was asked.
pub(crate) enum Asked {
    Operation(Operation, Done<()>),
    Connect(u32, Done<OwnedFd>),
    /// It was dropped, and with it the last way to end it.
    Dropped,
}

/// The framework of one test, for one machine.
pub(crate) struct Scripted {
    host: Host,
    refused: Option<VzError>,
    can_save: Result<(), VzError>,
    tell: mpsc::UnboundedSender<Made>,
}

/// A machine that was made, from the framework's side.
pub(crate) struct Made {
    pub(crate) plan: Plan,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) asked: mpsc::UnboundedReceiver<Asked>,
}

impl Scripted {
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Made>) {
        let (tell, made) = mpsc::unbounded_channel();
        let scripted = Self {
            host: host(),
            refused: None,
            can_save: Ok(()),
            tell,
        };
        (scripted, made)
    }

    /// Of an older system.
    pub(crate) fn without_save(mut self) -> Self {
        self.host.save_restore = false;
        self.host.version = "macOS 13.6".into();
        self
    }

    /// Whose machines can't be saved, for this reason.
    pub(crate) fn refusing_save(mut self, why: &str) -> Self {
        self.can_save = Err(VzError::other(why));
        self
    }

    /// Which finds every configuration invalid, for this reason.
    pub(crate) fn refusing(mut self, why: &str) -> Self {
        self.refused = Some(VzError::other(why));
        self
    }
}

impl Framework for Scripted {
    type Vm = ScriptedVm;

    fn host(&self) -> Host {
        self.host.clone()
    }

    fn new_identifier(&self) -> Vec<u8> {
        b"a new one".to_vec()
    }

    fn build(&self, plan: &Plan, events: mpsc::Sender<Event>) -> Result<ScriptedVm, VzError> {
        if let Some(e) = &self.refused {
            return Err(e.clone());
        }
        let (ask, asked) = mpsc::unbounded_channel();
        let plan = plan.clone();
        let made = Made {
            plan,
            events,
            asked,
        };
        self.tell
            .send(made)
            .unwrap_or_else(|_| panic!("the test has ended"));
        Ok(ScriptedVm {
            ask,
            can_save: self.can_save.clone(),
        })
    }
}

pub(crate) struct ScriptedVm {
    ask: mpsc::UnboundedSender<Asked>,
    can_save: Result<(), VzError>,
}

impl Vm for ScriptedVm {
    fn can_save(&self) -> Result<(), VzError> {
        self.can_save.clone()
    }

    fn begin(&self, operation: Operation, done: Done<()>) {
        let _ = self.ask.send(Asked::Operation(operation, done));
    }

    fn connect(&self, port: u32, done: Done<OwnedFd>) {
        let _ = self.ask.send(Asked::Connect(port, done));
    }
}

impl Drop for ScriptedVm {
    fn drop(&mut self) {
        let _ = self.ask.send(Asked::Dropped);
    }
}

impl Made {
    /// The next operation; connections before it are refused.
    pub(crate) async fn next(&mut self) -> (Operation, Done<()>) {
        loop {
            match self.asked.recv().await.expect("the machine is there") {
                Asked::Operation(operation, done) => return (operation, done),
                Asked::Connect(_, done) => drop(done.send(Err(VzError::other("refused")))),
                Asked::Dropped => panic!("the machine was dropped"),
            }
        }
    }

    /// Expects an operation, which succeeds.
    pub(crate) async fn obey(&mut self, expected: Operation) {
        let (operation, done) = self.next().await;
        assert_eq!(operation, expected);
        let _ = done.send(Ok(()));
    }

    /// Expects a save, which is written.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> std::path::PathBuf {
        let (operation, done) = self.next().await;
        let Operation::Save(path) = operation else {
            panic!("{operation:?} is no save")
        };
        std::fs::write(&path, bytes).unwrap();
        let _ = done.send(Ok(()));
        path
    }

    /// Waits until the machine was dropped; what it is asked before that fails.
    pub(crate) async fn dropped(&mut self) {
        loop {
            match self.asked.recv().await {
                Some(Asked::Dropped) | None => return,
                Some(Asked::Operation(_, done)) => drop(done.send(Err(VzError::other("no")))),
                Some(Asked::Connect(_, done)) => drop(done.send(Err(VzError::other("no")))),
            }
        }
    }
}

/// The files a save may leave in a directory.
pub(crate) fn files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect()
}
