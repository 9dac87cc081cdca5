//! A daemon under test: the real `slicer-mac` in a directory of its own.

use crate::cli::{self, CliOutput};
use crate::process::{self, processes_of, send_signal};
use crate::raw::RawClient;
use crate::setup::Setup;
use crate::template::{self, Via};
use crate::{BOOT, LIMIT, soon, spawn};
use rustix::process::Signal;
use slicer_api::Endpoint;
use slicer_client::Client;
use std::fs::{self, File, OpenOptions};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Where the programs under test are: `SLICER_BIN_DIR`, or `target/release` of this workspace.
pub fn bin_dir() -> PathBuf {
    match std::env::var_os("SLICER_BIN_DIR").filter(|d| !d.is_empty()) {
        Some(dir) => dir.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/release"),
    }
}

/// A program that ended by itself.
#[derive(Debug)]
pub struct Exited {
    /// How it ended.
    pub code: Option<i32>,
    /// What it printed to stderr.
    pub stderr: String,
}

fn command(dir: &Path, program: Command) -> Command {
    let mut command = program;
    command
        .current_dir(dir)
        .env("NO_COLOR", "1")
        // What the configuration puts below it stays in the directory, too.
        .env("HOME", dir)
        .env_remove("SLICER_URL")
        // The sleep of the host that tests run on is none of their business.
        .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
        .stdin(Stdio::null());
    command
}

/// Runs `slicer-mac` with these arguments in `dir`, expecting that it ends by itself.
///
/// # Panics
/// When it is still there after [`LIMIT`].
pub fn run_daemon(dir: &Path, args: &[&str]) -> Exited {
    let mut start = command(dir, spawn::mortal(&bin_dir().join("slicer-mac")));
    let log = dir.join("ended.log");
    start
        .args(args)
        .stdout(Stdio::null())
        .stderr(File::create(&log).unwrap());
    let mut child = spawn::spawn(start).unwrap();
    let status = wait(&mut child, LIMIT);
    let stderr = fs::read_to_string(log).unwrap();
    let Some(status) = status else {
        kill(&mut child);
        panic!("`slicer-mac {}` goes on running: {stderr}", args.join(" "));
    };
    Exited {
        code: status.code(),
        stderr,
    }
}

/// The configuration `slicer-mac new` prints.
fn printed_config() -> String {
    let output = Command::new(bin_dir().join("slicer-mac"))
        .arg("new")
        .output()
        .unwrap_or_else(|e| panic!("{e}: no slicer-mac in {}", bin_dir().display()));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn default_image() -> String {
    let config = printed_config();
    let image = config.lines().find_map(|l| l.strip_prefix("  image: "));
    image.unwrap().trim().trim_matches('"').to_owned()
}

/// The reference of the image with Docker.
///
/// # Panics
/// When it has not been built.
pub fn docker_image() -> String {
    format!("oci:{}:latest", built_layout("docker").display())
}

/// The layout of the Debian without an init.
///
/// # Panics
/// When it has not been built.
pub fn minimal_layout() -> PathBuf {
    built_layout("minimal")
}

/// A layout that make has built beside the default image's.
fn built_layout(name: &str) -> PathBuf {
    let default = default_image();
    let path = default
        .trim_start_matches("oci:")
        .trim_end_matches(":latest");
    let layout = Path::new(path).with_file_name(name);
    assert!(
        layout.exists(),
        "no {}: run `make {name}-image`",
        layout.display()
    );
    layout
}

fn wait(child: &mut Child, bound: Duration) -> Option<ExitStatus> {
    let mut status = None;
    soon(bound, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status
}

fn kill(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// A running daemon. Dropped, it is killed with all it runs, and its directory is removed; when
/// that is because a test failed, its log is shown.
#[derive(Debug)]
pub struct TestDaemon {
    dir: PathBuf,
    program: PathBuf,
    /// Absent for directories somebody else owns.
    _temp: Option<tempfile::TempDir>,
    child: Option<Child>,
    env: Vec<(&'static str, String)>,
    wrap: Vec<String>,
}

impl TestDaemon {
    /// Starts a daemon in a fresh directory. It answers when this returns.
    pub fn start(setup: &Setup) -> Self {
        let temp = temp_dir();
        let dir = temp.path().to_owned();
        template::install(&setup.groups, &dir, Via::HardLink);
        fs::write(dir.join("slicer-mac.yaml"), setup.yaml(&default_image())).unwrap();
        let mut this = Self {
            dir,
            program: bin_dir().join("slicer-mac"),
            _temp: Some(temp),
            child: None,
            env: setup.env.clone(),
            wrap: setup.wrap.clone(),
        };
        this.launch();
        this
    }

    /// Starts a daemon with the configuration that `slicer-mac new` prints, in a fresh directory.
    pub fn start_printed() -> Self {
        let temp = temp_dir();
        let dir = temp.path().to_owned();
        template::install(&Setup::full().groups, &dir, Via::HardLink);
        fs::write(dir.join("slicer-mac.yaml"), printed_config()).unwrap();
        let mut this = Self {
            dir,
            program: bin_dir().join("slicer-mac"),
            _temp: Some(temp),
            child: None,
            env: Vec::new(),
            wrap: Vec::new(),
        };
        this.launch();
        this
    }

    /// Starts a daemon in this directory, which is left as it is in the end. What takes room is
    /// not copied to it.
    pub fn start_at(dir: &Path, setup: &Setup) -> Self {
        template::install(&setup.groups, dir, Via::Symlink);
        Self::start_in(dir.to_owned(), setup)
    }

    /// Starts the daemon that is installed in this directory, as it is there. The directory is left
    /// as it is in the end.
    pub fn start_installed(dir: &Path) -> Self {
        let mut this = Self {
            dir: dir.to_owned(),
            program: dir.join("slicer-mac"),
            _temp: None,
            child: None,
            env: Vec::new(),
            wrap: Vec::new(),
        };
        this.launch();
        this
    }

    pub(crate) fn start_in(dir: PathBuf, setup: &Setup) -> Self {
        fs::write(dir.join("slicer-mac.yaml"), setup.yaml(&default_image())).unwrap();
        let mut this = Self {
            dir,
            program: bin_dir().join("slicer-mac"),
            _temp: None,
            child: None,
            env: setup.env.clone(),
            wrap: setup.wrap.clone(),
        };
        this.launch();
        this
    }

    /// Starts the daemon, which must not be running, in the directory as it is.
    pub fn launch(&mut self) {
        self.launch_with(&[]);
    }

    /// Starts it so that it is killed when it comes to this point, see `slicer-fault`.
    pub fn launch_to_die_at(&mut self, point: &str) {
        let env = self.env.len();
        self.env.push(("SLICER_FAULT", point.to_owned()));
        self.launch();
        self.env.truncate(env);
    }

    /// Starts it with more arguments of `up`.
    pub fn launch_with(&mut self, args: &[&str]) {
        assert!(self.child.is_none(), "the daemon runs already");
        let log = self.log_file();
        let begun = fs::metadata(&log).map_or(0, |m| m.len());
        let stderr = OpenOptions::new().create(true).append(true).open(&log);
        let program = spawn::wrapped(&self.wrap, &self.program);
        let mut start = command(&self.dir, program);
        start
            .arg("up")
            .args(args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::null())
            .stderr(stderr.unwrap());
        let child = self.child.insert(spawn::spawn(start).unwrap());
        let socket = self.dir.join("slicer.sock");
        let mut ended = None;
        let up = soon(LIMIT, || {
            ended = child.try_wait().unwrap();
            ended.is_some() || UnixStream::connect(&socket).is_ok()
        });
        if !up || ended.is_some() {
            let begun = usize::try_from(begun).unwrap();
            let text = self.log().split_off(begun);
            panic!("the daemon did not come up ({ended:?}):\n{text}");
        }
    }

    /// Its working directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its socket.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.dir.join("slicer.sock"))
    }

    /// A client of it; one for each runtime.
    pub fn client(&self) -> Client {
        Client::new(self.endpoint(), None, "slicer-testkit").unwrap()
    }

    /// HTTP by hand.
    pub fn raw(&self) -> RawClient {
        RawClient::new(self.endpoint())
    }

    /// Runs `slicer` with these arguments, without input.
    pub async fn cli(&self, args: &[&str]) -> CliOutput {
        self.cli_with(args, None).await
    }

    /// Runs `slicer` with these arguments and this input.
    pub async fn cli_with(&self, args: &[&str], stdin: Option<Vec<u8>>) -> CliOutput {
        let url = self.dir.join("slicer.sock");
        cli::run(url.to_str().unwrap(), &self.dir, args, stdin).await
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// The QEMU processes of its VMs.
    pub fn processes(&self) -> Vec<u32> {
        processes_of(&self.dir)
    }

    /// The QEMU process of this VM.
    pub fn process_of(&self, vm: &str) -> Option<u32> {
        process::with_argument(&self.processes(), &format!("guest={vm},"))
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it goes on running for longer than `bound`.
    pub fn wait_exit(&mut self, bound: Duration) -> ExitStatus {
        let child = self.child.as_mut().unwrap();
        let Some(status) = wait(child, bound) else {
            panic!("the daemon did not end within {bound:?}");
        };
        self.child = None;
        status
    }

    /// Ends it as a user would, and waits for that. The directory stays for as long as this does.
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait_exit(BOOT);
        assert!(status.success(), "the daemon ended with {status}");
    }

    /// Ends it as a crash would.
    pub fn crash(&mut self) {
        self.signal(Signal::KILL);
        self.wait_exit(LIMIT);
    }

    /// Ends it for good, and checks that it took everything along, and that no program it ran had crashed
    /// by a fault of its own, which a VM that was to end anyhow doesn't show.
    pub fn stop(mut self) {
        self.terminate();
        assert!(self.processes().is_empty(), "processes survived the daemon");
        let log = self.log();
        let crash = log
            .lines()
            .find(|l| ["SIGSEGV", "SIGABRT"].iter().any(|s| l.contains(s)));
        assert_eq!(crash, None);
    }

    /// The names of files in its directory, sorted, without logs and configuration.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).unwrap();
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| Path::new(n).extension().is_none_or(|e| e != "log"))
            .collect();
        names.sort();
        names
    }

    /// Whether anything with this VM's name in it is left on disk.
    pub fn has_files_of(&self, vm: &str) -> bool {
        let begins = |dir: &Path| {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.into_iter().any(|e| {
                let name = e.file_name().to_string_lossy().into_owned();
                let rest = name.strip_prefix(vm);
                rest.is_some_and(|r| !r.starts_with(|c: char| c.is_ascii_digit() || c == '-'))
            })
        };
        [
            "",
            "logs",
            ".slicer/vms",
            ".slicer/run",
            ".slicer/suspended",
        ]
        .iter()
        .any(|dir| begins(&self.dir.join(dir)))
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        let started = Instant::now();
        if std::thread::panicking() {
            show(&self.log_file(), 60);
            for console in fs::read_dir(self.dir.join("logs"))
                .into_iter()
                .flatten()
                .flatten()
            {
                show(&console.path(), 15);
            }
        }
        if let Some(mut child) = self.child.take() {
            kill(&mut child);
        }
        // They end with their daemon; those that didn't must not disturb other tests.
        let gone = soon(LIMIT, || {
            let left = processes_of(&self.dir);
            if started.elapsed() > Duration::from_secs(5) {
                for pid in &left {
                    send_signal(*pid, Signal::KILL);
                }
            }
            left.is_empty()
        });
        if !gone {
            eprintln!("processes of {} don't end", self.dir.display());
        }
    }
}

fn temp_dir() -> tempfile::TempDir {
    // Short, for the socket's name.
    let base = std::env::temp_dir().canonicalize().unwrap();
    tempfile::Builder::new()
        .prefix("sl")
        .tempdir_in(base)
        .unwrap()
}

fn show(file: &Path, lines: usize) {
    let text = String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    eprintln!("--- the end of {}", file.display());
    for line in &all[all.len().saturating_sub(lines)..] {
        eprintln!("{line}");
    }
}
