//! `slicer docker`.

mod store;

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::{Args, Subcommand};
use slicer_api::{NodeDetail, NodeForward};
use std::path::Path;
pub(crate) use store::StoreError;
use store::{Context as Entry, Store};

/// The name of Docker's socket in a VM, wherever it is.
const SOCKET: &str = "docker.sock";
/// How a target that is a socket begins.
const UNIX: &str = "unix:";
/// How the descriptions of contexts begin that this command made.
const OURS: &str = "slicer VM ";

/// Use the Docker of a VM from this host
#[derive(Debug, Subcommand)]
pub(crate) enum Docker {
    Context(Context),
}

impl Docker {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        match self {
            Self::Context(c) => c.run(connection).await,
        }
    }
}

/// Make and select the Docker context that leads to a VM's Docker
///
/// After that, `docker` on this host works with the VM's Docker. The socket is the one that the
/// daemon forwards: it needs a line under `forwards:` in the VM's host group, as the generated
/// configuration has for slicer-1.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  slicer docker context && docker ps
  slicer docker context --no-use && docker --context slicer ps
  slicer docker context --remove")]
pub(crate) struct Context {
    /// Hostname or friendly name
    #[arg(default_value = "slicer-1")]
    vm: String,
    /// The context's name
    #[arg(long, default_value = "slicer")]
    name: String,
    /// Don't select it
    #[arg(long)]
    no_use: bool,
    /// Replace, or remove, a context of this name that leads elsewhere
    #[arg(long)]
    force: bool,
    /// Remove the context, and select Docker's own if it was selected
    #[arg(long, conflicts_with_all = ["vm", "no_use"])]
    remove: bool,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// What keeps a context from being made or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DockerError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the daemon forwards no {SOCKET} of VM {0:?}")]
    NotForwarded(String),
    #[error("{socket} of VM {vm:?} is not on this host, but on that of the daemon at {daemon}")]
    Elsewhere {
        vm: String,
        socket: String,
        daemon: String,
    },
    #[error("the Docker context {name:?} exists and leads to {host}")]
    Taken { name: String, host: String },
    #[error("the Docker context {0:?} was not made by slicer")]
    NotOurs(String),
    #[error("there is no Docker context {0:?}")]
    Missing(String),
}

impl DockerError {
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotForwarded(_) => Some(
                "put `forwards: [\"~/.slicer/docker.sock:/var/run/docker.sock\"]` into its host \
                 group in slicer-mac.yaml, and restart the daemon",
            ),
            Self::Elsewhere { .. } => Some(
                "`slicer vm forward VM -L ./docker.sock:/var/run/docker.sock` makes one on this \
                 host, for DOCKER_HOST",
            ),
            Self::Taken { .. } => Some("choose another with --name, or replace it with --force"),
            Self::NotOurs(_) => Some("remove it all the same with --force"),
            Self::Store(_) | Self::Missing(_) => None,
        }
    }
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

impl Context {
    async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let store = Store::find(env).map_err(DockerError::Store)?;
        let text = if self.remove {
            self.remove_from(&store)?
        } else {
            let client = connection.client()?;
            let vm = client
                .with_vm(&self.vm, async |h| client.node(h).await)
                .await?;
            let daemon = client.endpoint().to_string();
            self.make_in(&store, &vm, &daemon)?
        };
        output::print(&text).await?;
        Ok(0)
    }

    fn make_in(&self, store: &Store, vm: &NodeDetail, daemon: &str) -> Result<String, CliError> {
        let vm_name = &vm.node.hostname;
        let forward = docker_socket(&vm.forwards)
            .ok_or_else(|| DockerError::NotForwarded(vm_name.clone()))?;
        let is_path = forward.listen.starts_with('/');
        if forward.listening && is_path && !Path::new(&forward.listen).exists() {
            return Err(CliError::from(DockerError::Elsewhere {
                vm: vm_name.clone(),
                socket: forward.listen.clone(),
                daemon: daemon.to_owned(),
            }));
        }
        let host = url(&forward.listen);
        let found = store.get(&self.name).map_err(DockerError::Store);
        match found {
            Ok(Some(there)) if there.host() == host => {}
            Ok(Some(there)) if !self.force => {
                return Err(CliError::from(DockerError::Taken {
                    name: self.name.clone(),
                    host: there.host().to_owned(),
                }));
            }
            Err(e) if !self.force => return Err(e.into()),
            _ => {
                let entry = Entry::new(&self.name, &format!("{OURS}{vm_name}"), &host);
                store.put(&entry).map_err(DockerError::Store)?;
            }
        }
        if !self.no_use {
            store.select(Some(&self.name)).map_err(DockerError::Store)?;
        }
        if !forward.listening {
            output::note(&format!(
                "the daemon doesn't listen at {} yet, because somebody else does",
                forward.listen
            ));
        }
        self.overridden();
        let selected = store.selected().map_err(DockerError::Store)?;
        let selected = selected.as_ref() == Some(&self.name);
        self.told(
            &serde_json::json!({
                "name": self.name, "vm": vm_name, "host": host, "selected": selected,
            }),
            &format!(
                "Docker context {:?} leads to {vm_name} by {host}{}\n",
                self.name,
                if selected { " and is selected" } else { "" },
            ),
        )
    }

    fn remove_from(&self, store: &Store) -> Result<String, CliError> {
        let name = &self.name;
        let ours = match store.get(name) {
            Ok(Some(there)) => there.description().starts_with(OURS),
            Ok(None) => true,
            Err(e @ StoreError::Json { .. }) if !self.force => {
                return Err(DockerError::Store(e).into());
            }
            Err(StoreError::Json { .. }) => false,
            Err(e) => return Err(DockerError::Store(e).into()),
        };
        if !ours && !self.force {
            return Err(CliError::from(DockerError::NotOurs(name.clone())));
        }
        let selected = store.selected().map_err(DockerError::Store)?;
        let selected = selected.as_ref() == Some(name);
        if selected {
            // First: a name that leads nowhere keeps all of Docker's commands from working.
            store.select(None).map_err(DockerError::Store)?;
        }
        let removed = store.remove(name).map_err(DockerError::Store)?;
        if !removed && !selected {
            return Err(CliError::from(DockerError::Missing(name.clone())));
        }
        self.told(
            &serde_json::json!({ "name": name, "removed": true }),
            &format!("Docker context removed: {name}\n"),
        )
    }

    fn told(&self, json: &serde_json::Value, text: &str) -> Result<String, CliError> {
        if self.json {
            output::json(json)
        } else {
            Ok(text.to_owned())
        }
    }

    /// Says what of the environment has Docker use another context.
    fn overridden(&self) {
        if self.no_use {
            return;
        }
        if env("DOCKER_HOST").is_some() {
            output::note("DOCKER_HOST is set, and Docker uses that rather than any context");
        } else if env("DOCKER_CONTEXT").is_some_and(|name| name != self.name) {
            output::note("DOCKER_CONTEXT is set, and Docker uses that rather than this context");
        }
    }
}

/// The mapping that leads to Docker's socket; one that is a socket on the host, too, if there is.
fn docker_socket(forwards: &[NodeForward]) -> Option<&NodeForward> {
    let leads = |f: &&NodeForward| {
        let path = f.target.strip_prefix(UNIX).map(Path::new);
        path.and_then(Path::file_name)
            .is_some_and(|name| name == SOCKET)
    };
    let all = || forwards.iter().filter(leads);
    let socket = all().find(|f| f.listen.starts_with('/'));
    socket.or_else(|| all().next())
}

/// The URL by which Docker finds what listens there.
fn url(listen: &str) -> String {
    if listen.starts_with('/') {
        return format!("unix://{listen}");
    }
    // Who listens everywhere is reached here.
    match listen.strip_prefix("0.0.0.0:") {
        Some(port) => format!("tcp://127.0.0.1:{port}"),
        None => format!("tcp://{listen}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(listen: &str, target: &str) -> NodeForward {
        NodeForward {
            listen: listen.to_owned(),
            target: target.to_owned(),
            listening: true,
        }
    }

    #[test]
    fn dockers_socket_is_found_among_others() {
        let others = [
            forward("127.0.0.1:6443", "127.0.0.1:6443"),
            forward("/run/a.sock", "unix:/run/my-docker.sock"),
            forward("/run/docker.sock", "unix:/run/a.sock"),
        ];
        assert_eq!(docker_socket(&others), None);
        let tcp = forward("0.0.0.0:2375", "unix:/var/run/docker.sock");
        let unix = forward("/h/d.sock", "unix:/run/user/1000/docker.sock");
        let mut all = others.to_vec();
        all.push(tcp.clone());
        assert_eq!(docker_socket(&all), Some(&tcp));
        all.push(unix.clone());
        assert_eq!(docker_socket(&all), Some(&unix));
    }

    #[test]
    fn urls_are_dockers() {
        for (listen, host) in [
            ("/h/a b/d.sock", "unix:///h/a b/d.sock"),
            ("127.0.0.1:2375", "tcp://127.0.0.1:2375"),
            ("0.0.0.0:2375", "tcp://127.0.0.1:2375"),
        ] {
            assert_eq!(url(listen), host);
        }
    }
}
