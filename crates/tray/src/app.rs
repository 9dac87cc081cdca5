//! What keeps the menu true and does what is clicked: one loop, on a thread of its own, that waits
//! for nothing but events.

use crate::action::Action;
use crate::dialog::Question;
use crate::jobs::{self, JobError};
use crate::look::{Finder, Look, look};
use crate::menu::View;
use crate::scripts::{self, Slicer};
use crate::state::{Daemon, Docker, GUEST_DOCKER, HOST_DOCKER, State};
use crate::terminal::{System, Terminal};
use slicer_api::{Forward, ForwardListen, ForwardTarget, StatsSnapshot};
use slicer_client::Client;
use slicer_forward::Forwarder;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// Between two looks at the daemon.
const REFRESH: Duration = Duration::from_secs(2);
/// Things that are done at a time.
const MAX_JOBS: usize = 8;
/// Failed connections that wait to be told of.
const MAX_COMPLAINTS: usize = 4;

/// What the app is set up with.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) finder: Finder,
    pub(crate) terminal: Terminal,
    /// The command `slicer`.
    pub(crate) slicer: Option<PathBuf>,
}

/// Something that was done, or not.
struct Done {
    what: &'static str,
    /// Whether it was done, or why not.
    result: Result<bool, JobError>,
    kind: Kind,
}

/// What follows from something that was done.
#[derive(Clone, Copy)]
enum Kind {
    /// Nothing.
    Free,
    /// It was done to the VM, of which one thing at a time is.
    Exclusive,
    /// Somebody was asked whether the VM's disk shall be reset.
    ResetAsked,
}

/// The app. `show` hands what the menu shall show to the main thread.
pub(crate) struct App<F> {
    config: Config,
    show: F,
    state: State,
    shown: Option<View>,
    client: watch::Sender<Option<Client>>,
    before: Option<(String, StatsSnapshot)>,
    looks: JoinSet<Result<Look, String>>,
    jobs: JoinSet<Done>,
    /// What forwards Docker. It is the only one in there.
    forwarding: JoinSet<()>,
    complaints: (mpsc::Sender<String>, mpsc::Receiver<String>),
}

impl<F: Fn(View)> App<F> {
    pub(crate) fn new(config: Config, show: F) -> Self {
        Self {
            config,
            show,
            state: State::default(),
            shown: None,
            client: watch::Sender::default(),
            before: None,
            looks: JoinSet::new(),
            jobs: JoinSet::new(),
            forwarding: JoinSet::new(),
            complaints: mpsc::channel(MAX_COMPLAINTS),
        }
    }

    /// Runs until somebody quits.
    pub(crate) async fn run(mut self, mut actions: mpsc::Receiver<Action>) {
        let mut signals = [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::hangup(),
        ]
        .map(|kind| signal(kind).ok());
        let [term, int, hup] = &mut signals;
        let mut ticks = tokio::time::interval(REFRESH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                action = actions.recv() => match action {
                    Some(Action::Quit) | None => return,
                    Some(action) => self.act(action).await,
                },
                () = arrived(term) => return,
                () = arrived(int) => return,
                () = arrived(hup) => return,
                _ = ticks.tick() => self.look(),
                Some(seen) = self.looks.join_next() => {
                    self.saw(seen.unwrap_or_else(|e| Err(e.to_string())));
                }
                Some(done) = self.jobs.join_next() => if let Ok(done) = done {
                    self.did(done);
                },
                Some(why) = self.complaints.1.recv() => self.state.trouble = Some(why),
            }
            self.publish();
        }
    }

    fn publish(&mut self) {
        let view = View::of(&self.state);
        if self.shown.as_ref() != Some(&view) {
            (self.show)(view.clone());
            self.shown = Some(view);
        }
    }

    /// Starts to look, unless somebody does.
    fn look(&mut self) {
        if self.looks.is_empty() {
            let finder = self.config.finder.clone();
            self.looks.spawn(look(finder, self.before.clone()));
        }
    }

    fn saw(&mut self, seen: Result<Look, String>) {
        let fleet = match seen {
            Ok(look) => {
                self.client.send_replace(Some(look.client));
                self.before = look.snapshot;
                look.fleet
            }
            Err(why) => Err(why),
        };
        self.state.daemon = match fleet {
            Ok(fleet) => Daemon::Up(fleet),
            Err(why) => Daemon::Down(why),
        };
    }

    fn did(&mut self, done: Done) {
        match done.kind {
            Kind::Free => {}
            Kind::Exclusive => self.state.busy = None,
            Kind::ResetAsked => self.state.asking = false,
        }
        match (done.kind, done.result) {
            (Kind::ResetAsked, Ok(true)) => self.reset(),
            (_, Ok(_)) => {}
            (_, Err(e)) => self.state.trouble = Some(format!("{}: {}", done.what, e.line())),
        }
        // A look that is under way may have seen what was before.
        self.looks = JoinSet::new();
        self.look();
    }

    /// Does what was clicked. An item whose time has passed does nothing.
    async fn act(&mut self, action: Action) {
        let vm = self.state.vm().map(|vm| vm.hostname.clone());
        let Some(client) = self.client.borrow().clone() else {
            return;
        };
        match (action, vm) {
            (Action::Shell(vm), _) => {
                let script = self.slicer(&client).map(|s| s.shell(&vm));
                self.open("Launch shell", script);
            }
            (Action::Log, Some(vm)) => {
                let script = self.slicer(&client).map(|s| s.log(&vm));
                self.open("View Serial Log", script);
            }
            (Action::DockerShell, Some(vm)) => {
                if let Some(socket) = self.state.docker_socket() {
                    let script = scripts::docker_shell(socket, &vm, System::HERE);
                    self.open("Launch Docker shell", Ok(script));
                }
            }
            (Action::Docker, Some(vm)) => self.toggle_docker(vm).await,
            (Action::Delete(name), _) => self.delete(client, &name),
            (Action::Restart, Some(vm)) => {
                self.exclusively("Restart VM", "restarting", async move {
                    jobs::restart(&client, &vm).await
                });
            }
            (Action::Start, Some(vm)) => {
                self.exclusively("Start VM", "starting", async move {
                    client.relaunch(&vm).await?;
                    Ok(())
                });
            }
            (Action::Resume, Some(vm)) => {
                self.exclusively("Resume VM", "resuming", async move {
                    Ok(client.resume(&vm).await?)
                });
            }
            (Action::Restore, Some(vm)) => {
                self.exclusively("Restore VM", "being restored", async move {
                    jobs::restore(&client, &vm).await
                });
            }
            (Action::ShutDown, Some(vm)) => {
                self.exclusively("Shut Down VM", "shutting down", async move {
                    jobs::shut_down(&client, &vm).await
                });
            }
            (Action::Reset, Some(vm)) => self.ask_to_reset(&vm),
            _ => {}
        }
    }

    fn ask_to_reset(&mut self, vm: &str) {
        let question = Question {
            title: format!("Reset the disk of {vm}?"),
            text: format!(
                "{vm} is shut down and starts again from its image. All that is on its disk is \
                 lost."
            ),
            yes: "Reset",
        };
        if !self.state.asking {
            self.state.asking = self.start("Reset VM Disk", Kind::ResetAsked, jobs::ask(question));
        }
    }

    fn reset(&mut self) {
        let vm = self.state.vm().map(|vm| vm.hostname.clone());
        let client = self.client.borrow().clone();
        if let (Some(vm), Some(client)) = (vm, client) {
            self.exclusively("Reset VM Disk", "being reset", async move {
                jobs::reset(&client, &vm).await
            });
        }
    }

    fn slicer(&self, client: &Client) -> Result<Slicer, JobError> {
        Ok(Slicer {
            program: self.config.slicer.clone().ok_or(JobError::NoSlicer)?,
            endpoint: client.endpoint().clone(),
        })
    }

    fn open(&mut self, what: &'static str, script: Result<String, JobError>) {
        let argv = script.map(|script| self.config.terminal.run(&script));
        self.start(what, Kind::Free, async move {
            jobs::open(&argv?).await?;
            Ok(true)
        });
    }

    fn delete(&mut self, client: Client, name: &str) {
        let Some(sandbox) = self.state.sandbox(name).cloned() else {
            return;
        };
        self.start("Delete", Kind::Free, async move {
            let name = &sandbox.hostname;
            let question = Question {
                title: format!("Delete {name}?"),
                text: format!("{name} is switched off. All that is on its disk is lost."),
                yes: "Delete",
            };
            let sure = !sandbox.persistent || jobs::ask(question).await?;
            if sure {
                client.delete_node(&sandbox.group, name).await?;
            }
            Ok(sure)
        });
    }

    /// Starts something with the VM, unless something is being done with it.
    fn exclusively(
        &mut self,
        what: &'static str,
        busy: &'static str,
        job: impl Future<Output = Result<(), JobError>> + Send + 'static,
    ) {
        let job = async move {
            job.await?;
            Ok(true)
        };
        if self.state.busy.is_none() && self.start(what, Kind::Exclusive, job) {
            self.state.busy = Some(busy);
        }
    }

    /// Starts something, unless there is too much under way; whether it was started.
    fn start(
        &mut self,
        what: &'static str,
        kind: Kind,
        job: impl Future<Output = Result<bool, JobError>> + Send + 'static,
    ) -> bool {
        let room = self.jobs.len() < MAX_JOBS;
        if room {
            self.state.trouble = None;
            self.jobs.spawn(async move {
                Done {
                    what,
                    result: job.await,
                    kind,
                }
            });
        }
        room
    }

    /// Forwards Docker, or no longer. What connects while the VM is off, or the daemon not there, is
    /// turned away, and let through again later.
    async fn toggle_docker(&mut self, vm: String) {
        self.state.trouble = None;
        if !self.forwarding.is_empty() {
            self.forwarding.shutdown().await;
            self.state.docker = Docker::Off;
            return;
        }
        match self.forward_docker(vm).await {
            Ok(socket) => self.state.docker = Docker::On(socket),
            Err(e) => self.state.trouble = Some(format!("Docker forward: {}", e.line())),
        }
    }

    async fn forward_docker(&mut self, vm: String) -> Result<PathBuf, JobError> {
        let home = self.config.finder.home.as_ref().ok_or(JobError::NoHome)?;
        let socket = home.join(HOST_DOCKER);
        let forward = Forward {
            listen: ForwardListen::Unix(socket.clone()),
            target: ForwardTarget::Unix(GUEST_DOCKER.into()),
        };
        let forwarder = Forwarder::bind(&[forward])
            .await
            .map_err(|e| JobError::Forward {
                listen: e.listen.to_string(),
                source: e.source,
            })?;
        let client = self.client.subscribe();
        let dial = move |target| {
            let (client, vm) = (client.borrow().clone(), vm.clone());
            async move {
                match client {
                    Some(client) => {
                        let connected = client.forward(&vm, &target).await;
                        connected.map_err(|e| match e.status() {
                            Some(502) => format!("Docker doesn't run in {vm}"),
                            _ => crate::look::chain(&e),
                        })
                    }
                    None => Err("there is no daemon".to_owned()),
                }
            }
        };
        let complaints = self.complaints.0.clone();
        let failed = move |_: &ForwardTarget, why: String| {
            // Of those that come faster than they can be shown, some are enough.
            let _ = complaints.try_send(format!("Docker forward: {why}"));
        };
        self.forwarding.spawn(forwarder.serve(dial, failed));
        Ok(socket)
    }
}

/// Completes when a signal comes; never, where it can't be had.
async fn arrived(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}
