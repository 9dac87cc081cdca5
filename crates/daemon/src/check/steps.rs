//! The steps.

use super::guest::{answers, flood, greet, run};
use super::{Files, Outcome, make_dir};
use crate::guest;
use crate::{DaemonError, attend};
use futures_util::future::join_all;
use slicer_api::{Identity, NetworkIdentity, ShareMount};
use slicer_machine::{
    Arch, Boot, Hypervisor, MacAddress, Machine, MachineError, MachineSpec, MachineState, Network,
    Share, StopReason, UserNetwork,
};
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "check-1";
const MAC: MacAddress = MacAddress([0x06, 0, 192, 168, 64, 250]);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 250);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 1);
const DNS: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 254);
const PREFIX: u8 = 24;
/// The shares' tags, and where the guest mounts them.
const SHARE: (&str, &str) = ("check", "/mnt/check");
const READ_ONLY: (&str, &str) = ("check-ro", "/mnt/check-ro");
/// A state the hypervisor tells of itself.
const STATE_TIME: Duration = Duration::from_mins(1);
/// Long enough for a guest that runs to answer, if it could.
const SILENCE: Duration = Duration::from_millis(500);
/// How long a VM that was dropped may take to be gone.
const GONE_TIME: Duration = Duration::from_secs(10);
const GONE_PAUSE: Duration = Duration::from_millis(20);
/// Between two presses of the button.
const BUTTON_PAUSE: Duration = Duration::from_secs(3);
/// How many streams are open at once.
const STREAMS: usize = 32;
/// What a saved guest remembers in its memory alone.
const MEMORY: &str = "/run/slicer-check";

/// Why a step failed.
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

type Done<'b> = Pin<Box<dyn Future<Output = Result<Outcome, String>> + Send + 'b>>;
type StepFn = for<'b> fn(&'b mut Bench) -> Done<'b>;

/// All steps, in order: each needs those before it.
pub(super) const STEPS: &[(&str, StepFn)] = &[
    ("refuse what can't boot", |b| step(b.refuse())),
    ("launch a VM", |b| step(b.launch())),
    ("reach its agent, and be ready", |b| step(b.ready())),
    ("run a command of its architecture", |b| {
        step(b.architecture())
    }),
    ("have its disks, one of them read-only", |b| step(b.disks())),
    ("have its network card and address", |b| step(b.network())),
    ("keep a console", |b| step(b.console())),
    ("carry many streams at once", |b| step(b.many_streams())),
    ("let no stream hold up others", |b| step(b.stuck_stream())),
    ("share host folders", |b| step(b.share())),
    ("run programs for x86-64 by Rosetta", |b| step(b.rosetta())),
    ("pause and resume", |b| step(b.pause())),
    ("save, and restore", |b| step(b.save())),
    ("share host folders after it", |b| step(b.share())),
    ("press the power button", |b| step(b.power_button())),
    ("keep a disk over the VM's end", |b| step(b.again())),
    ("switch a VM off", |b| step(b.kill())),
    ("launch at once after that", |b| step(b.launch())),
    ("leave nothing when dropped", |b| step(b.drop_it())),
];

/// Boxes a step, and its error as text.
fn step<'b>(work: impl Future<Output = Result<Outcome, Failure>> + Send + 'b) -> Done<'b> {
    Box::pin(async { work.await.map_err(|e| e.to_string()) })
}

/// A host with one VM.
pub(super) struct Bench {
    hypervisor: Arc<dyn Hypervisor>,
    dir: PathBuf,
    arch: Arch,
    files: Files,
    shared: PathBuf,
    machine: Option<Box<dyn Machine>>,
}

impl Bench {
    pub(super) fn new(
        hypervisor: Arc<dyn Hypervisor>,
        dir: &Path,
        arch: Arch,
        files: Files,
    ) -> Result<Self, DaemonError> {
        make_dir(dir.join("run"))?;
        Ok(Self {
            hypervisor,
            arch,
            files,
            shared: make_dir(dir.join("shared"))?,
            dir: dir.to_owned(),
            machine: None,
        })
    }

    fn spec(&self) -> MachineSpec {
        let capabilities = self.hypervisor.capabilities();
        let share = |(tag, _): (&str, &str), read_only| Share {
            tag: tag.to_owned(),
            path: self.shared.clone(),
            read_only,
        };
        let console = self.hypervisor.kernel_args(self.arch);
        MachineSpec {
            name: NAME.to_owned(),
            arch: self.arch,
            cpus: 1,
            memory_bytes: 512 << 20,
            boot: Boot {
                kernel: self.files.boot.kernel.clone(),
                initramfs: self.files.boot.initramfs.clone(),
                cmdline: format!("{console} quiet loglevel=6 panic=-1"),
            },
            disks: self.files.disks(),
            network: Some(Network::User(UserNetwork {
                mac: MAC,
                address: ADDRESS,
                gateway: GATEWAY,
                dns: DNS,
                prefix: PREFIX,
            })),
            shares: match capabilities.shares {
                Ok(()) => vec![share(SHARE, false), share(READ_ONLY, true)],
                Err(_) => Vec::new(),
            },
            rosetta: capabilities.rosetta.is_ok(),
            clonable: false,
            console: self.console_file(),
            state_dir: self.dir.join("run"),
        }
    }

    fn identity(&self) -> Identity {
        let capabilities = self.hypervisor.capabilities();
        let mount = |(tag, at): (&str, &str), read_only| ShareMount {
            tag: tag.to_owned(),
            mount: at.to_owned(),
            link: None,
            read_only,
        };
        Identity {
            hostname: NAME.to_owned(),
            clock_unix_nanos: attend::clock(),
            network: Some(NetworkIdentity {
                mac: MAC.to_string(),
                address: ADDRESS,
                prefix: PREFIX,
                gateway: GATEWAY,
                dns: vec![DNS],
            }),
            shares: match capabilities.shares {
                Ok(()) => vec![mount(SHARE, false), mount(READ_ONLY, true)],
                Err(_) => Vec::new(),
            },
            rosetta: capabilities.rosetta.is_ok(),
            ..Identity::default()
        }
    }

    fn console_file(&self) -> PathBuf {
        self.dir.join("console.txt")
    }

    /// The machine, which the steps before have launched.
    fn machine(&self) -> Result<&dyn Machine, Failure> {
        self.machine
            .as_deref()
            .ok_or_else(|| "there is no VM".into())
    }

    /// A failure, with the last lines of the console.
    pub(super) fn with_console(&self, failure: &str) -> String {
        let console = fs::read(self.console_file()).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = console.lines().filter(|l| !l.trim().is_empty()).collect();
        let last = lines[lines.len().saturating_sub(8)..].join("\n    | ");
        if last.is_empty() {
            failure.to_owned()
        } else {
            format!("{failure}\n  the last lines of its console:\n    | {last}")
        }
    }

    /// Ends the VM, if one is left.
    pub(super) async fn end(&mut self) {
        if let Some(machine) = self.machine.take() {
            // It ends with the machine in any case.
            let _ = machine.kill().await;
        }
    }

    async fn state(
        &self,
        expected: impl Fn(&MachineState) -> bool,
    ) -> Result<MachineState, Failure> {
        let mut state = self.machine()?.state();
        let there = tokio::time::timeout(STATE_TIME, state.wait_for(|s| expected(s))).await;
        match there {
            Ok(Ok(state)) => Ok(state.clone()),
            Ok(Err(_)) => Err("its state is no longer told".into()),
            Err(_) => Err(format!(
                "it is {:?} after {STATE_TIME:?}",
                self.machine()?.state().borrow().clone()
            )
            .into()),
        }
    }

    async fn stopped(&self) -> Result<StopReason, Failure> {
        match self
            .state(|s| matches!(s, MachineState::Stopped(_)))
            .await?
        {
            MachineState::Stopped(reason) => Ok(reason),
            other => Err(format!("it is {other:?}").into()),
        }
    }

    async fn refuse(&mut self) -> Result<Outcome, Failure> {
        let mut spec = self.spec();
        spec.boot.kernel = self.dir.join("no-such-kernel");
        match self.hypervisor.launch(spec).await {
            Err(_) => Ok(Outcome::Passed),
            // One that learns of it later has a VM that ends.
            Ok(machine) => {
                self.machine = Some(machine);
                let reason = self.stopped().await;
                self.end().await;
                match reason? {
                    StopReason::Crashed(_) => Ok(Outcome::Passed),
                    other => Err(format!("it ended as {other:?}").into()),
                }
            }
        }
    }

    async fn launch(&mut self) -> Result<Outcome, Failure> {
        self.machine = Some(self.hypervisor.launch(self.spec()).await?);
        let state = self.machine()?.state().borrow().clone();
        check(state == MachineState::Running, || {
            format!("it is {state:?}")
        })
    }

    async fn ready(&mut self) -> Result<Outcome, Failure> {
        greet(self.machine()?, &self.identity()).await?;
        let name = run(self.machine()?, "hostname").await?;
        check(name == NAME, || format!("it calls itself {name}"))
    }

    async fn architecture(&mut self) -> Result<Outcome, Failure> {
        let arch = run(self.machine()?, "uname -m").await?;
        let expected = self.arch.kernel_name();
        check(arch == expected, || format!("it is {arch}, not {expected}"))
    }

    async fn disks(&mut self) -> Result<Outcome, Failure> {
        let machine = self.machine()?;
        run(machine, "touch /kept && sync").await?;
        let script =
            "for d in /sys/block/vd*; do echo $(cat $d/serial) $(cat $d/ro); done | sort | xargs";
        let disks = run(machine, script).await?;
        check(disks == "modules 1 root 0", || format!("they are {disks}"))
    }

    async fn network(&mut self) -> Result<Outcome, Failure> {
        let script = format!(
            "grep -l {MAC} /sys/class/net/*/address && grep -q {ADDRESS} /proc/net/fib_trie && \
             cat /proc/net/route"
        );
        let told = run(self.machine()?, &script).await?;
        // The gateway of the default route, in network order as the kernel prints it.
        let gateway = format!("{:08X}", u32::from_le_bytes(GATEWAY.octets()));
        check(told.contains(&gateway), || {
            format!("it has no route over {GATEWAY}: {told}")
        })
    }

    async fn console(&mut self) -> Result<Outcome, Failure> {
        run(
            self.machine()?,
            "echo '<1>slicer-check was here' > /dev/kmsg",
        )
        .await?;
        let deadline = tokio::time::Instant::now() + STATE_TIME;
        loop {
            let text = fs::read(self.console_file()).unwrap_or_default();
            if String::from_utf8_lossy(&text).contains("slicer-check was here") {
                return Ok(Outcome::Passed);
            }
            if tokio::time::Instant::now() > deadline {
                return Err("what the kernel says is not in its file".into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn many_streams(&mut self) -> Result<Outcome, Failure> {
        let machine = self.machine()?;
        // Each has a stream of its own, and all are asked before the first is answered.
        let asked = (0..STREAMS).map(|_| guest::health(machine));
        for health in join_all(asked).await {
            health?;
        }
        Ok(Outcome::Passed)
    }

    async fn stuck_stream(&mut self) -> Result<Outcome, Failure> {
        let machine = self.machine()?;
        let unread = flood(machine).await?;
        // By then it has filled all there is to fill.
        tokio::time::sleep(SILENCE).await;
        let said = run(machine, "echo through").await?;
        drop(unread);
        check(said == "through", || format!("it said {said:?}"))
    }

    async fn share(&mut self) -> Result<Outcome, Failure> {
        if let Err(why) = &self.hypervisor.capabilities().shares {
            return Ok(Outcome::Skipped(why.clone()));
        }
        let ours = self.shared.join("from-the-host");
        fs::write(&ours, "hello guest")?;
        let (share, read_only) = (SHARE.1, READ_ONLY.1);
        let script = format!(
            "cat {share}/from-the-host {read_only}/from-the-host && \
             echo hello host > {share}/from-the-guest && ! touch {read_only}/x 2>/dev/null"
        );
        let read = run(self.machine()?, &script).await?;
        let theirs = fs::read_to_string(self.shared.join("from-the-guest"))?;
        fs::remove_file(&ours)?;
        fs::remove_file(self.shared.join("from-the-guest"))?;
        check(
            read == "hello guesthello guest" && theirs == "hello host\n",
            || format!("the guest read {read:?}, the host {theirs:?}"),
        )
    }

    async fn rosetta(&mut self) -> Result<Outcome, Failure> {
        if let Err(why) = &self.hypervisor.capabilities().rosetta {
            return Ok(Outcome::Skipped(why.clone()));
        }
        let rule = run(self.machine()?, "cat /proc/sys/fs/binfmt_misc/rosetta").await?;
        check(rule.starts_with("enabled"), || {
            format!("its rule is: {rule}")
        })
    }

    async fn pause(&mut self) -> Result<Outcome, Failure> {
        let machine = self.machine()?;
        machine.pause().await?;
        self.state(|s| *s == MachineState::Paused).await?;
        machine.pause().await?;
        if answers(machine, SILENCE).await {
            return Err("the guest answers while it is paused".into());
        }
        machine.resume().await?;
        self.state(|s| *s == MachineState::Running).await?;
        machine.resume().await?;
        let said = run(machine, "echo back").await?;
        check(said == "back", || format!("it said {said:?}"))
    }

    async fn save(&mut self) -> Result<Outcome, Failure> {
        if !self.hypervisor.capabilities().save_restore {
            let why = "this hypervisor can't save VMs here".to_owned();
            return Ok(Outcome::Skipped(why));
        }
        let file = self.dir.join("memory");
        let machine = self.machine()?;
        run(machine, &format!("echo remembered > {MEMORY}")).await?;
        guest::quiesce(machine).await?;
        machine.detach_shares().await?;
        machine.pause().await?;
        let note = match machine.save(&file).await {
            Ok(note) => note,
            Err(MachineError::Unsupported { why, .. }) => {
                machine.attach_shares().await?;
                machine.resume().await?;
                greet(machine, &self.identity()).await?;
                return Ok(Outcome::Skipped(why));
            }
            Err(e) => return Err(e.into()),
        };
        machine.kill().await?;
        self.end().await;
        // Another machine does not fit it.
        let mut other = self.spec();
        other.memory_bytes *= 2;
        match self.hypervisor.restore(other, &file, &note).await {
            Err(MachineError::Incompatible { .. }) => {}
            Err(e) => return Err(format!("another machine was refused as: {e}").into()),
            Ok(_) => return Err("the state was taken up by a machine with twice the memory".into()),
        }
        self.machine = Some(self.hypervisor.restore(self.spec(), &file, &note).await?);
        self.state(|s| *s == MachineState::Running).await?;
        greet(self.machine()?, &self.identity()).await?;
        let said = run(self.machine()?, &format!("cat {MEMORY}")).await?;
        check(said == "remembered", || format!("it said {said:?}"))
    }

    async fn power_button(&mut self) -> Result<Outcome, Failure> {
        run(self.machine()?, "sync").await?;
        // Ready, a guest may not listen to its button yet.
        let press = async {
            loop {
                let pressed = match self.machine() {
                    Ok(machine) => machine.request_stop().await.map_err(Failure::from),
                    Err(e) => Err(e),
                };
                if let Err(e) = pressed {
                    return e;
                }
                tokio::time::sleep(BUTTON_PAUSE).await;
            }
        };
        let reason = tokio::select! {
            reason = self.stopped() => reason?,
            // It can't be pressed of a VM that is gone, which is told next.
            e = press => self.stopped().await.map_err(|_| e)?,
        };
        let gone = self.machine()?.connect().await;
        if !matches!(gone, Err(MachineError::Gone { .. })) {
            return Err("a VM that is gone still has a channel".into());
        }
        self.end().await;
        check(reason == StopReason::Guest, || {
            format!("it ended as {reason:?}")
        })
    }

    async fn again(&mut self) -> Result<Outcome, Failure> {
        self.launch().await?;
        greet(self.machine()?, &self.identity()).await?;
        run(
            self.machine()?,
            "test -e /kept && test ! -e /run/slicer-check",
        )
        .await?;
        Ok(Outcome::Passed)
    }

    async fn kill(&mut self) -> Result<Outcome, Failure> {
        self.machine()?.kill().await?;
        let reason = self.stopped().await?;
        self.machine()?.kill().await?;
        self.end().await;
        check(reason == StopReason::Killed, || {
            format!("it ended as {reason:?}")
        })
    }

    /// The disk is free soon: a VM that went on would write to it beside the next one.
    async fn drop_it(&mut self) -> Result<Outcome, Failure> {
        self.machine = None;
        let deadline = tokio::time::Instant::now() + GONE_TIME;
        while let Err(e) = self.launch().await {
            if tokio::time::Instant::now() > deadline {
                return Err(e);
            }
            tokio::time::sleep(GONE_PAUSE).await;
        }
        greet(self.machine()?, &self.identity()).await?;
        self.kill().await
    }
}

fn check(well: bool, otherwise: impl FnOnce() -> String) -> Result<Outcome, Failure> {
    if well {
        Ok(Outcome::Passed)
    } else {
        Err(otherwise().into())
    }
}
