//! A hypervisor without VMs: its guests are the real agent, as processes of the host, and fail as
//! they are told to. So all of the daemon above the seam is tested in milliseconds.

use async_trait::async_trait;
use slicer_channel::{ChannelError, Mux, wire};
use slicer_machine::{
    Arch, Capabilities, DiskFormat, GuestStream, Hypervisor, Machine, MachineError, MachineSpec,
    MachineState, StopReason,
};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::process::send_signal;
use rustix::process::Signal;

/// How a guest behaves.
#[derive(Debug, Clone, Default)]
pub struct FakeGuest {
    /// How long its launch takes.
    pub launch_time: Duration,
    /// What its launch fails with, after that time.
    pub launch_error: Option<String>,
    /// What its restore fails with: that the state is worthless.
    pub restore_error: Option<String>,
    /// How long it runs before its agent is there; forever, when there is none.
    pub boot_time: Option<Duration>,
    /// How long after its launch it crashes.
    pub crash_after: Option<Duration>,
}

impl FakeGuest {
    /// One that is there at once and behaves.
    pub fn good() -> Self {
        Self {
            boot_time: Some(Duration::ZERO),
            ..Self::default()
        }
    }

    /// One whose agent never answers.
    pub fn silent() -> Self {
        Self::default()
    }
}

#[derive(Debug, Default)]
struct Book {
    scripts: HashMap<String, FakeGuest>,
    running: BTreeSet<String>,
    launches: usize,
    reaped: Vec<PathBuf>,
}

/// The hypervisor. Guests without a script of their own behave.
#[derive(Debug)]
pub struct FakeHypervisor {
    agent: PathBuf,
    capabilities: Capabilities,
    book: Arc<Mutex<Book>>,
}

impl FakeHypervisor {
    /// A hypervisor whose guests run the agent that `make agent` built.
    ///
    /// # Panics
    /// When it isn't built.
    pub fn new() -> Arc<Self> {
        let host = Arch::host().unwrap();
        let agent = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!(
            "../../target/guest-programs/slicer-agent/{}",
            host.go_name()
        ));
        assert!(agent.exists(), "{} is missing: make agent", agent.display());
        Arc::new(Self {
            agent,
            capabilities: Capabilities {
                archs: vec![host],
                save_restore: true,
                templates: false,
                rosetta: Err("a hypervisor without VMs has none".into()),
                shares: Err("there is no guest".to_owned()),
                disk_formats: vec![DiskFormat::Raw, DiskFormat::Qcow2],
            },
            book: Arc::default(),
        })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    /// Says how the VM of this name behaves from its next launch on.
    pub fn script(&self, vm: &str, guest: FakeGuest) {
        self.book().scripts.insert(vm.to_owned(), guest);
    }

    /// The names of the machines there are.
    pub fn running(&self) -> Vec<String> {
        self.book().running.iter().cloned().collect()
    }

    /// How many launches were begun.
    pub fn launches(&self) -> usize {
        self.book().launches
    }

    /// The state directories whose leftovers it was asked to end.
    pub fn reaped(&self) -> Vec<PathBuf> {
        self.book().reaped.clone()
    }
}

#[async_trait]
impl Hypervisor for FakeHypervisor {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn kernel_args(&self, _: Arch) -> String {
        "console=fake".to_owned()
    }

    async fn launch(&self, spec: MachineSpec) -> Result<Box<dyn Machine>, MachineError> {
        let guest = {
            let mut book = self.book();
            book.launches += 1;
            let script = book.scripts.get(&spec.name).cloned();
            script.unwrap_or_else(FakeGuest::good)
        };
        tokio::time::sleep(guest.launch_time).await;
        let failed = |why| MachineError::Launch {
            vm: spec.name.clone(),
            why,
        };
        if let Some(why) = guest.launch_error {
            return Err(failed(why));
        }
        let files = spec.disks.iter().map(|d| &d.path);
        for file in files.chain([&spec.boot.kernel, &spec.boot.initramfs, &spec.state_dir]) {
            if !file.exists() {
                return Err(failed(format!("{} is missing", file.display())));
            }
        }
        let (state_tx, state) = watch::channel(MachineState::Running);
        let (mux_tx, mux) = watch::channel(None);
        let (kill, kill_rx) = mpsc::channel(1);
        let pid = Arc::new(Mutex::new(None));
        let run = Run {
            agent: self.agent.clone(),
            socket: spec.state_dir.join("agent.sock"),
            boot_time: guest.boot_time,
            crash_after: guest.crash_after,
            kill: kill_rx,
            mux: mux_tx,
            pid: pid.clone(),
            entry: Entry::new(&spec.name, &self.book),
            state: state_tx.clone(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(run.run());
        Ok(Box::new(FakeMachine {
            name: spec.name,
            mux,
            state,
            state_tx,
            kill,
            pid,
            _tasks: tasks,
        }))
    }

    async fn restore(
        &self,
        spec: MachineSpec,
        memory: &Path,
        note: &str,
    ) -> Result<Box<dyn Machine>, MachineError> {
        let script = self.book().scripts.get(&spec.name).cloned();
        let incompatible = |why: String| MachineError::Incompatible {
            vm: spec.name.clone(),
            why,
        };
        if let Some(why) = script.and_then(|guest| guest.restore_error) {
            return Err(incompatible(why));
        }
        let text = std::fs::read_to_string(memory).unwrap_or_default();
        if text != note {
            return Err(incompatible(format!(
                "{text:?} is not what {note:?} is about"
            )));
        }
        self.launch(spec).await
    }

    async fn reap(&self, state_dir: &Path) -> Result<(), MachineError> {
        self.book().reaped.push(state_dir.to_owned());
        Ok(())
    }
}

/// A machine's place among those that run.
struct Entry {
    name: String,
    book: Arc<Mutex<Book>>,
}

impl Entry {
    fn new(name: &str, book: &Arc<Mutex<Book>>) -> Self {
        let new = book.lock().unwrap().running.insert(name.to_owned());
        assert!(new, "{name} was launched while it was running");
        Self {
            name: name.to_owned(),
            book: book.clone(),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Ok(mut book) = self.book.lock() {
            book.running.remove(&self.name);
        }
    }
}

struct Run {
    agent: PathBuf,
    socket: PathBuf,
    boot_time: Option<Duration>,
    crash_after: Option<Duration>,
    kill: mpsc::Receiver<()>,
    mux: watch::Sender<Option<Mux>>,
    pid: Arc<Mutex<Option<u32>>>,
    // Before the state, so that a machine that is seen to have stopped is not among the running.
    entry: Entry,
    state: watch::Sender<MachineState>,
}

impl Run {
    async fn run(mut self) {
        let reason = self.live().await;
        self.mux.send_replace(None);
        drop(self.entry);
        self.state.send_replace(MachineState::Stopped(reason));
    }

    async fn live(&mut self) -> StopReason {
        let crash = async {
            match self.crash_after {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        let serve = serve(
            &self.agent,
            &self.socket,
            self.boot_time,
            &self.mux,
            &self.pid,
        );
        tokio::select! {
            () = serve => StopReason::Guest,
            Some(()) = self.kill.recv() => StopReason::Killed,
            () = crash => StopReason::Crashed("it was told to crash".to_owned()),
        }
    }
}

/// Runs the agent until it ends. Dropped, it ends the agent.
async fn serve(
    agent: &Path,
    socket: &Path,
    boot_time: Option<Duration>,
    mux: &watch::Sender<Option<Mux>>,
    pid: &Mutex<Option<u32>>,
) {
    let Some(boot_time) = boot_time else {
        return std::future::pending().await;
    };
    tokio::time::sleep(boot_time).await;
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).unwrap();
    let mut child: Child = Command::new(agent)
        .args(["serve", "--unix"])
        .arg(socket)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    *pid.lock().unwrap() = child.id();
    let channel = async {
        let (stream, _) = listener.accept().await.unwrap();
        let (new, driver) = slicer_channel::connect(stream, wire::HELLO).await.unwrap();
        mux.send_replace(Some(new));
        driver.run().await;
        // What the agent does after that is over soon.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = child.wait() => {}
        () = channel => {}
    }
    *pid.lock().unwrap() = None;
}

struct FakeMachine {
    name: String,
    mux: watch::Receiver<Option<Mux>>,
    state: watch::Receiver<MachineState>,
    state_tx: watch::Sender<MachineState>,
    kill: mpsc::Sender<()>,
    pid: Arc<Mutex<Option<u32>>>,
    _tasks: JoinSet<()>,
}

impl FakeMachine {
    fn gone(&self) -> MachineError {
        MachineError::Gone {
            vm: self.name.clone(),
        }
    }

    fn freeze(&self, signal: Signal, new: MachineState) -> Result<(), MachineError> {
        if matches!(&*self.state.borrow(), MachineState::Stopped(_)) {
            return Err(self.gone());
        }
        if let Some(pid) = *self.pid.lock().unwrap() {
            send_signal(pid, signal);
        }
        self.state_tx.send_if_modified(|state| {
            let lives = !matches!(state, MachineState::Stopped(_));
            if lives {
                *state = new;
            }
            lives
        });
        Ok(())
    }
}

#[async_trait]
impl Machine for FakeMachine {
    async fn connect(&self) -> Result<Box<dyn GuestStream>, MachineError> {
        let mut mux = self.mux.clone();
        loop {
            let now = match mux.wait_for(Option::is_some).await {
                Ok(mux) => mux.clone(),
                Err(_) => return Err(self.gone()),
            };
            let Some(now) = now else { continue };
            match now.open().await {
                Ok(stream) => return Ok(Box::new(stream)),
                Err(ChannelError::Closed) => mux.changed().await.map_err(|_| self.gone())?,
                Err(e) => {
                    return Err(MachineError::Channel {
                        vm: self.name.clone(),
                        why: e.to_string(),
                    });
                }
            }
        }
    }

    async fn pause(&self) -> Result<(), MachineError> {
        self.freeze(Signal::STOP, MachineState::Paused)
    }

    async fn resume(&self) -> Result<(), MachineError> {
        self.freeze(Signal::CONT, MachineState::Running)
    }

    async fn save(&self, memory: &Path) -> Result<String, MachineError> {
        assert_eq!(*self.state.borrow(), MachineState::Paused);
        let note = format!("memory of {}", self.name);
        std::fs::write(memory, &note).map_err(|source| MachineError::Io {
            action: "write",
            path: memory.to_owned(),
            source,
        })?;
        Ok(note)
    }

    async fn request_stop(&self) -> Result<(), MachineError> {
        self.kill().await
    }

    async fn kill(&self) -> Result<(), MachineError> {
        let _ = self.kill.try_send(());
        let mut state = self.state.clone();
        let gone = state.wait_for(|s| matches!(s, MachineState::Stopped(_)));
        let _ = gone.await.is_ok();
        Ok(())
    }

    fn state(&self) -> watch::Receiver<MachineState> {
        self.state.clone()
    }
}
