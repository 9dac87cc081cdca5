//! A system bus of a test's own, with a logind on it whose host sleeps when it is told to.

use crate::spawn;
use crate::{LIMIT, soon};
use std::fs::{self, File};
use std::io::{ErrorKind, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::sync::mpsc;

const NAME: &str = "org.freedesktop.login1";
const OBJECT: &str = "/org/freedesktop/login1";
const INTERFACE: &str = "org.freedesktop.login1.Manager";

/// Who holds up the host's sleep, as logind knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// What is held up.
    pub what: String,
    /// By whom.
    pub who: String,
    /// `block` or `delay`.
    pub mode: String,
}

/// A lock, and the end of a pipe that is at its end once the lock is given back.
#[derive(Debug)]
struct Held {
    lock: Lock,
    pipe: PipeReader,
}

impl Held {
    fn is_held(&mut self) -> bool {
        let read = self.pipe.read(&mut [0]);
        read.is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
    }
}

/// A bus on which there is nobody. It ends when it is dropped.
#[derive(Debug)]
pub struct Bus {
    dir: tempfile::TempDir,
    daemon: Child,
}

impl Bus {
    /// Starts it.
    ///
    /// # Panics
    /// When there is no `dbus-daemon`.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("bus");
        let config = dir.path().join("bus.conf");
        let log = dir.path().join("log");
        let text = format!(
            "<busconfig><type>custom</type><listen>{}</listen><auth>EXTERNAL</auth>\
             <policy context=\"default\"><allow user=\"*\"/><allow own=\"{NAME}\"/>\
             <allow send_destination=\"*\"/><allow receive_sender=\"*\"/></policy></busconfig>",
            address(dir.path())
        );
        fs::write(&config, text).unwrap();
        let mut start = spawn::mortal(Path::new("dbus-daemon"));
        start
            .args(["--nofork", "--nopidfile", "--nosyslog", "--config-file"])
            .arg(config)
            .stdin(Stdio::null())
            // It complains of limits it can't raise.
            .stderr(File::create(&log).unwrap());
        let daemon = spawn::spawn(start).unwrap();
        let this = Self { dir, daemon };
        let up = soon(LIMIT, || UnixStream::connect(&socket).is_ok());
        let said = || fs::read_to_string(&log).unwrap_or_default();
        assert!(up, "the bus does not come up: {}", said());
        this
    }

    /// Where it is, as `DBUS_SYSTEM_BUS_ADDRESS` says it.
    pub fn address(&self) -> String {
        address(self.dir.path())
    }

    fn end(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.end();
    }
}

fn address(dir: &Path) -> String {
    format!("unix:path={}", dir.join("bus").display())
}

/// A logind on a bus. Both end when it is dropped.
#[derive(Debug)]
pub struct Logind {
    bus: Bus,
    held: Arc<Mutex<Vec<Held>>>,
    signals: Option<mpsc::UnboundedSender<bool>>,
    serving: Option<JoinHandle<()>>,
}

impl Logind {
    /// Starts them. `delay` is how long a sleep may be held up.
    ///
    /// # Panics
    /// When there is no `dbus-daemon`.
    pub fn start(delay: Duration) -> Self {
        let bus = Bus::start();
        let held = Arc::<Mutex<Vec<Held>>>::default();
        let manager = Manager {
            held: held.clone(),
            delay,
        };
        let (signals, asked) = mpsc::unbounded_channel();
        let (tell, up) = std::sync::mpsc::channel();
        let address = bus.address();
        // A thread of its own answers whatever the test is waiting for.
        let serving = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime
                .unwrap()
                .block_on(serve(&address, manager, asked, || tell.send(()).unwrap()));
        });
        up.recv_timeout(LIMIT).unwrap();
        Self {
            bus,
            held,
            signals: Some(signals),
            serving: Some(serving),
        }
    }

    /// Where the bus is, as `DBUS_SYSTEM_BUS_ADDRESS` says it.
    pub fn address(&self) -> String {
        self.bus.address()
    }

    /// The locks that are held now.
    pub fn locks(&self) -> Vec<Lock> {
        let mut held = self.held.lock().unwrap();
        held.retain_mut(Held::is_held);
        held.iter().map(|h| h.lock.clone()).collect()
    }

    /// How many locks of this mode are held now.
    pub fn count(&self, mode: &str) -> usize {
        self.locks().iter().filter(|l| l.mode == mode).count()
    }

    /// Says that the host is about to sleep.
    pub fn sleep(&self) {
        self.signal(true);
    }

    /// Says that it has woken up.
    pub fn wake(&self) {
        self.signal(false);
    }

    fn signal(&self, start: bool) {
        self.signals.as_ref().unwrap().send(start).unwrap();
    }

    /// Ends the bus, as a crash of it would.
    pub fn end_bus(&mut self) {
        self.bus.end();
    }
}

impl Drop for Logind {
    fn drop(&mut self) {
        self.signals = None;
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

async fn serve(
    address: &str,
    manager: Manager,
    mut asked: mpsc::UnboundedReceiver<bool>,
    up: impl FnOnce(),
) {
    let logind = zbus::connection::Builder::address(address)
        .serve_at(OBJECT, manager)
        .name(NAME)
        .build()
        .await
        .unwrap();
    up();
    while let Some(start) = asked.recv().await {
        let nobody = None::<zbus::names::BusName<'_>>;
        let signal = "PrepareForSleep";
        let body = &(start,);
        let said = logind.emit_signal(nobody, OBJECT, INTERFACE, signal, body);
        said.await.unwrap();
    }
}

struct Manager {
    held: Arc<Mutex<Vec<Held>>>,
    delay: Duration,
}

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    fn inhibit(&self, what: String, who: String, why: &str, mode: String) -> zbus::OwnedFd {
        assert!(!why.is_empty());
        let (pipe, theirs) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&pipe, true).unwrap();
        let lock = Lock { what, who, mode };
        self.held.lock().unwrap().push(Held { lock, pipe });
        OwnedFd::from(theirs).into()
    }

    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max_usec(&self) -> u64 {
        u64::try_from(self.delay.as_micros()).unwrap()
    }
}
