//! The agent as the host sees it: an HTTP server on every stream of the guest channel.

use crate::http::{self, Answer};
use crate::init::GuestInit;
use crate::ready::Readiness;
use crate::renew::Later;
use crate::requests::Requests;
use crate::userdata::{State, Userdata};
use crate::users::Users;
use crate::{
    cp, entrypoint, exec, forward, fs, identity, log, power, requests, secrets, settle, stats,
};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustix::time::{ClockId, clock_gettime};
use serde::de::IntoDeserializer;
use serde_json::json;
use slicer_api::{
    ApiError, Entrypoint, GuestSecrets, Health, Identified, Identity, ShareMount, ShutdownAction,
    ShutdownRequest,
};
use slicer_channel::ChannelStream;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Notify, Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio_util::task::TaskTracker;

/// Bytes a request's head may have. Commands travel in it, and a URI ends at 64 KiB.
const HEAD_LIMIT: usize = 128 << 10;

/// How long after the guest is ready that is done which nobody waits for. Of many that are launched at once, the
/// last is to be ready before the first does so.
const LATER: Duration = Duration::from_secs(5);
/// Bytes an identity may have, userdata included.
const IDENTITY_LIMIT: usize = 4 << 20;

/// What the agent is the agent of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// A whole guest: identity, readiness and shutdown mean the system.
    Guest(GuestInit),
    /// Only itself: it serves on a socket and touches nothing of the system.
    Process,
}

/// All of the agent's state.
pub(crate) struct Agent {
    scope: Scope,
    started: Instant,
    /// Whether users may be let in.
    pub(crate) readiness: Readiness,
    /// Who there is to run commands as.
    pub(crate) users: Users,
    /// Held while an identity is applied, so that two can't mix.
    identity: Mutex<Option<Identity>>,
    /// What the guest shall run at its first boot.
    userdata: Userdata,
    /// Held while secrets are written.
    secrets: Mutex<()>,
    /// What the guest asks of its host.
    pub(crate) requests: Requests,
    /// Commands that go on without their client.
    pub(crate) background: exec::background::Registry,
    /// Connections made for clients.
    pub(crate) forwards: Arc<forward::Forwards>,
    /// Whether modules that are loaded in the background are, the network's among them.
    pub(crate) modules_loaded: watch::Sender<bool>,
    /// Whether the guest is to be a template, which does ahead what others do when they are ready.
    pub(crate) settling: watch::Sender<bool>,
    /// Told when an agent whose scope is a process shall end.
    pub(crate) end: Notify,
    /// Copies that may take more memory than others.
    pub(crate) large_copies: Arc<Semaphore>,
    /// Everything that runs on behalf of a client.
    pub(crate) tasks: TaskTracker,
}

impl Agent {
    /// An agent that has not served anybody yet.
    pub(crate) fn new(scope: Scope) -> Arc<Self> {
        Arc::new(Self {
            scope,
            started: Instant::now(),
            readiness: Readiness::default(),
            users: Users::new(Path::new("/etc")),
            identity: Mutex::new(None),
            userdata: Userdata::default(),
            secrets: Mutex::new(()),
            requests: Requests::default(),
            background: exec::background::Registry::default(),
            forwards: Arc::default(),
            modules_loaded: watch::Sender::new(false),
            settling: watch::Sender::new(false),
            end: Notify::new(),
            large_copies: Arc::new(Semaphore::new(cp::LARGE)),
            tasks: TaskTracker::new(),
        })
    }

    /// Serves one stream until its client leaves.
    pub(crate) fn accept(self: &Arc<Self>, stream: ChannelStream) {
        let agent = Arc::clone(self);
        self.tasks.spawn(async move {
            // Set by a request for shutdown, heeded when its answer is out.
            let shutdown = Arc::new(OnceLock::new());
            let service = service_fn(|request| {
                let agent = Arc::clone(&agent);
                let shutdown = Arc::clone(&shutdown);
                async move { Ok::<_, Infallible>(agent.route(request, &shutdown).await) }
            });
            // A client whose end of the stream is closed has left: that is how a cancelled exec
            // is known. Requests say themselves where their body ends, so none needs a half-close.
            let served = http1::Builder::new()
                .half_close(false)
                .auto_date_header(false)
                .max_buf_size(HEAD_LIMIT)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await;
            // How a stream ended is its client's business, unless it came to nothing at all.
            drop(served);
            if let Some(action) = shutdown.get() {
                agent.shut_down(*action).await;
            }
        });
    }

    async fn route(
        self: Arc<Self>,
        request: Request<Incoming>,
        shutdown: &OnceLock<ShutdownAction>,
    ) -> Answer {
        let method = request.method();
        let result = match request.uri().path() {
            "/health" if method == Method::GET || method == Method::HEAD => {
                self.health(request.uri().query()).await
            }
            "/stats" if method == Method::GET => Self::stats().await,
            "/exec" if method == Method::POST => return exec::handle(&self, request),
            "/exec" if method == Method::GET => {
                return exec::background::handle(&self, request).await;
            }
            "/fs/watch" if method == Method::GET => {
                return crate::watch::handle(&self, request).await;
            }
            path @ "/fs/watch" => return http::method_not_allowed(path, "GET"),
            path if path.starts_with("/fs/") => return fs::handle(&self, request).await,
            path if path.starts_with("/exec/") => {
                return exec::background::handle(&self, request).await;
            }
            "/cp" if method == Method::GET || method == Method::POST => {
                return cp::handle(&self, request).await;
            }
            "/shell" if method == Method::GET => return exec::shell::handle(&self, request),
            "/forward" if method == Method::GET => return forward::handle(&self, request).await,
            path if path.starts_with("/forward/") && method == Method::DELETE => {
                return forward::end(&self, path);
            }
            "/identity" if method == Method::POST => self.identify(request).await,
            "/requests" if method == Method::GET => return requests::handle(&self),
            "/secrets" if method == Method::PUT => self.take_secrets(request).await,
            "/trim" if method == Method::POST && self.scope != Scope::Process => {
                crate::trim::trim()
                    .await
                    .map(|trimmed| http::json(&trimmed))
            }
            "/quiesce" if method == Method::POST => self.quiesce().await,
            "/settle" if method == Method::POST => self.settle().await,
            "/rehearse" if method == Method::POST => self.rehearse(request).await,
            "/sync" if method == Method::POST => self.sync().await,
            "/shutdown" if method == Method::POST => Self::ask_shutdown(request, shutdown).await,
            path @ "/health" => return http::method_not_allowed(path, "GET, HEAD"),
            path @ ("/stats" | "/shell" | "/forward" | "/requests") => {
                return http::method_not_allowed(path, "GET");
            }
            path @ "/secrets" => return http::method_not_allowed(path, "PUT"),
            path @ ("/exec" | "/cp") => return http::method_not_allowed(path, "GET, POST"),
            path @ ("/identity" | "/quiesce" | "/rehearse" | "/settle" | "/shutdown" | "/sync") => {
                return http::method_not_allowed(path, "POST");
            }
            path => Err(ApiError::not_found(format!(
                "the agent has no endpoint {path:.100}"
            ))),
        };
        result.unwrap_or_else(|e| http::error(&e))
    }

    /// The error of whoever comes before the guest is ready.
    pub(crate) fn check_ready(&self) -> Result<(), ApiError> {
        if self.readiness.is_ready() {
            return Ok(());
        }
        Err(ApiError::unavailable(format!(
            "the guest is not ready: {}",
            self.readiness.missing()
        )))
    }

    async fn health(&self, query: Option<&str>) -> Result<Answer, ApiError> {
        for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            match (&*key, &*value) {
                ("wait", "ready") => self.readiness.ready().await,
                ("wait", "userdata") => {
                    self.readiness.ready().await;
                    self.userdata.done().await;
                }
                ("wait", other) => {
                    return Err(ApiError::bad_request(format!(
                        "invalid wait {other:.64?}: expected ready or userdata"
                    )));
                }
                _ => {}
            }
        }
        self.check_ready()?;
        let (hostname, ip) = match &*self.identity.lock().await {
            Some(id) => (
                id.hostname.clone(),
                id.network.as_ref().map(|n| n.address.to_string()),
            ),
            None => Default::default(),
        };
        let userdata = self.userdata.state();
        Ok(http::json(&Health {
            hostname,
            // Zero would mean that there is no agent.
            agent_uptime: nanos(self.started.elapsed()).max(1),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            system_uptime: nanos(system_uptime()),
            userdata_ran: matches!(userdata, State::Done(_)),
            userdata_exit_code: match userdata {
                State::Done(code) => code,
                State::Unknown | State::Running => None,
            },
            ip: ip.unwrap_or_default(),
            entrypoint: match self.scope {
                Scope::Guest(_) => entrypoint::state(),
                Scope::Process => None,
            },
        }))
    }

    async fn stats() -> Result<Answer, ApiError> {
        let read = spawn_blocking(|| stats::snapshot(system_uptime())).await;
        let snapshot = read.map_err(|_| ApiError::internal("reading the statistics failed"))?;
        Ok(http::json(&snapshot))
    }

    async fn identify(self: &Arc<Self>, request: Request<Incoming>) -> Result<Answer, ApiError> {
        let identity: Identity = http::read_json_up_to(request.into_body(), IDENTITY_LIMIT)
            .await?
            .ok_or_else(|| ApiError::bad_request("an identity is expected in the body"))?;
        identity::check(&identity)?;
        let mut held = self.identity.lock().await;
        let known = held.as_ref().is_some_and(|h| identity.differs_by_clock(h));
        if known && self.scope != Scope::Process {
            // As after a restore, when every program the guest runs first costs a lot.
            identity::set_clock(identity.clock_unix_nanos)
                .map_err(|e| ApiError::internal(e.to_string()))?;
        } else if let Scope::Guest(_) = self.scope {
            let applied =
                identity::apply(&identity, self.users.get(), self.modules_loaded.subscribe()).await;
            self.do_later(applied.map_err(|e| ApiError::internal(e.to_string()))?);
        }
        match self.scope {
            Scope::Guest(init) => {
                self.start_userdata(identity.userdata.as_deref(), init);
                self.start_entrypoint(identity.entrypoint.clone());
            }
            Scope::Process => drop(self.userdata.set(None, false)),
        }
        let shares = match self.scope {
            Scope::Guest(_) => identity.shares.clone(),
            Scope::Process => Vec::new(),
        };
        let rosetta = identity.rosetta && self.scope != Scope::Process;
        *held = Some(identity);
        if shares.is_empty() && !rosetta {
            self.readiness.set_identified();
        } else if self.readiness.is_sane() {
            self.mount_shares(shares, rosetta).await;
        } else {
            // Early boot may yet mount something over them.
            let agent = Arc::clone(self);
            self.tasks.spawn(async move {
                agent.readiness.sane().await;
                agent.mount_shares(shares, rosetta).await;
            });
        }
        Ok(http::json(&Identified {
            ready: self.readiness.is_ready(),
        }))
    }

    /// Does what was left of an identity once the guest is ready, and whoever waited for it had their turn.
    fn do_later(self: &Arc<Self>, later: Later) {
        if later.is_nothing() {
            return;
        }
        let agent = Arc::clone(self);
        self.tasks.spawn(async move {
            agent.readiness.ready().await;
            tokio::time::sleep(LATER).await;
            let _ = spawn_blocking(move || later.run()).await;
        });
    }

    /// Mounts host folders, which users are to find when they are let in, and what runs programs for
    /// x86-64.
    async fn mount_shares(self: &Arc<Self>, shares: Vec<ShareMount>, rosetta: bool) {
        let agent = Arc::clone(self);
        let mount = move || {
            if !shares.is_empty() {
                crate::shares::mount_all(&shares, &agent.users.get());
            }
            if rosetta && let Err(e) = crate::rosetta::enable() {
                log::warn(&e.to_string());
            }
        };
        // A panic in there would have ended the worker.
        let _ = spawn_blocking(mount).await;
        self.readiness.set_identified();
    }

    fn start_userdata(self: &Arc<Self>, script: Option<&str>, init: GuestInit) {
        let script = script.filter(|s| !s.trim().is_empty());
        if self.userdata.set(script, true)
            && let Some(script) = script.map(str::to_owned)
        {
            let agent = Arc::clone(self);
            self.tasks.spawn(async move {
                agent.readiness.ready().await;
                agent.userdata.run(&script, init, agent.users.get()).await;
            });
        }
    }

    fn start_entrypoint(self: &Arc<Self>, entrypoint: Option<Entrypoint>) {
        let Some(entrypoint) = entrypoint else {
            return;
        };
        let agent = Arc::clone(self);
        self.tasks.spawn(async move {
            agent.readiness.ready().await;
            // It may rely on what userdata sets up.
            agent.userdata.done().await;
            if let Err(e) = entrypoint::begin(&entrypoint) {
                log::warn(&format!("entrypoint: {e}"));
            }
        });
    }

    async fn take_secrets(&self, request: Request<Incoming>) -> Result<Answer, ApiError> {
        let given: GuestSecrets = http::read_json_up_to(request.into_body(), secrets::BODY_LIMIT)
            .await?
            .ok_or_else(|| ApiError::bad_request("secrets are expected in the body"))?;
        // One after the other, or an older set could win.
        let _lock = self.secrets.lock().await;
        let answers = given.answers;
        if let Scope::Guest(_) = self.scope {
            let write = move || secrets::apply(Path::new(secrets::DIR), given);
            let written = spawn_blocking(write).await;
            written.unwrap_or_else(|_| Err(ApiError::internal("writing secrets failed")))?;
        }
        if let Some(id) = answers {
            self.requests.secrets_given(id);
        }
        Ok(http::json(&json!({})))
    }

    /// Sets the hostname again: systemd sets the image's own as it starts, which may be after the
    /// identity came.
    pub(crate) async fn assert_hostname(&self) {
        if let Some(identity) = &*self.identity.lock().await
            && let Err(e) = identity::set_hostname(&identity.hostname)
        {
            log::warn(&e.to_string());
        }
    }

    /// Writes out what file systems hold, and lets go of those whose devices can't be saved with the
    /// guest: the next identity brings them back. The answer is not theirs: one that can't must not
    /// keep a VM from being suspended.
    async fn quiesce(&self) -> Result<Answer, ApiError> {
        if self.scope == Scope::Process {
            return Ok(http::json(&json!({})));
        }
        let held = self.identity.lock().await;
        let shares = match (self.scope, &*held) {
            (Scope::Guest(_), Some(identity)) => identity.shares.clone(),
            _ => Vec::new(),
        };
        let synced = spawn_blocking(move || {
            // First, for one that hangs would have all wait.
            crate::shares::unmount_all(&shares);
            rustix::fs::sync();
        });
        let synced = synced.await;
        synced.map_err(|_| ApiError::internal("writing out the file systems failed"))?;
        Ok(http::json(&json!({})))
    }

    /// Readies the guest to be a template, of which it is told once nothing goes on in it any more.
    async fn settle(&self) -> Result<Answer, ApiError> {
        if self.scope != Scope::Process {
            if self.identity.lock().await.is_some() {
                return Err(ApiError::conflict(
                    "this guest has an identity, which its clones would have",
                ));
            }
            self.readiness.sane().await;
            self.settling.send_replace(true);
            // Who there is to run commands as, which is read once.
            drop(self.users.get());
            let settled = settle::settle().await;
            settled.map_err(|e| ApiError::internal(e.to_string()))?;
        }
        Ok(http::json(&json!({})))
    }

    /// Applies an identity that nobody will have, so that the one that comes takes less time: what runs for
    /// the first time in a guest takes by far the longest, where it is emulated. Nobody is let in for it.
    async fn rehearse(&self, request: Request<Incoming>) -> Result<Answer, ApiError> {
        let identity: Identity = http::read_json_up_to(request.into_body(), IDENTITY_LIMIT)
            .await?
            .ok_or_else(|| ApiError::bad_request("an identity is expected in the body"))?;
        identity::check(&identity)?;
        if self.scope != Scope::Process {
            // Not while the identity is held, which early boot's end asks for.
            self.readiness.sane().await;
            let held = self.identity.lock().await;
            if held.is_some() {
                return Err(ApiError::conflict("this guest has an identity"));
            }
            let applied =
                identity::apply(&identity, self.users.get(), self.modules_loaded.subscribe()).await;
            let later = applied.map_err(|e| ApiError::internal(e.to_string()))?;
            let _ = spawn_blocking(move || later.run()).await;
            settle::run_a_program().await;
            exec::rehearse(self).await;
        }
        Ok(http::json(&json!({})))
    }

    /// Writes out what file systems hold.
    async fn sync(&self) -> Result<Answer, ApiError> {
        if self.scope != Scope::Process {
            let synced = spawn_blocking(rustix::fs::sync).await;
            synced.map_err(|_| ApiError::internal("writing out the file systems failed"))?;
        }
        Ok(http::json(&json!({})))
    }

    /// The action a shutdown asks for: that of the query, else that of the body, else to stop.
    async fn ask_shutdown(
        request: Request<Incoming>,
        shutdown: &OnceLock<ShutdownAction>,
    ) -> Result<Answer, ApiError> {
        let query = request.uri().query().unwrap_or_default();
        let named = form_urlencoded::parse(query.as_bytes())
            .find(|(key, value)| key == "action" && !value.is_empty())
            .map(|(_, value)| action(&value))
            .transpose()?;
        let body: Option<ShutdownRequest> = http::read_json(request.into_body()).await?;
        let asked = named
            .or(body.unwrap_or_default().action)
            .unwrap_or_default();
        let _ = shutdown.set(asked);
        let mut answer = http::json(&json!({}));
        // Ends the connection after this answer, which is what starts the shutdown.
        answer
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
        Ok(answer)
    }

    async fn shut_down(&self, action: ShutdownAction) {
        match self.scope {
            Scope::Guest(init) => {
                log::info("shutting down, as the host asked");
                power::shutdown(init, action).await;
            }
            Scope::Process => self.end.notify_one(),
        }
    }
}

fn action(text: &str) -> Result<ShutdownAction, ApiError> {
    let deserializer: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
        text.into_deserializer();
    serde::Deserialize::deserialize(deserializer).map_err(|_| {
        ApiError::bad_request(format!(
            "invalid action {text:.64?}: expected shutdown or reboot"
        ))
    })
}

/// Time since the guest's boot.
fn system_uptime() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
