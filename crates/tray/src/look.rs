//! Looking at what the daemon and its VMs do.

use crate::state::{DaemonDocker, Fleet, Stats, Vm};
use slicer_api::{Endpoint, NodeStatus, StatsSnapshot};
use slicer_client::{
    Client, ClientError, DEFAULT_AUTHORITY, LOCAL_TOKEN_FILE, NodeFilter, TokenFlags, discover,
    find_token,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a daemon may take to answer; longer is as good as not.
const LIMIT: Duration = Duration::from_secs(5);
/// How long a guest may take to be measured.
const GUEST_LIMIT: Duration = Duration::from_secs(3);

/// How the daemon is found, each time anew: it may be started, or moved, later than the tray.
#[derive(Debug, Clone)]
pub(crate) struct Finder {
    /// `--url`.
    pub(crate) url: Option<String>,
    pub(crate) home: Option<PathBuf>,
}

impl Finder {
    /// A client of the daemon there is now, or should be.
    pub(crate) fn client(&self) -> Result<Client, String> {
        let env = |name: &str| std::env::var(name).ok();
        let home = self.home.as_deref();
        let endpoint = discover(self.url.as_deref(), env, home, Path::new("."));
        let endpoint = match endpoint.map_err(|e| e.to_string())? {
            // Terminals start elsewhere.
            Endpoint::Unix(path) => {
                Endpoint::Unix(std::path::absolute(&path).map_err(|e| e.to_string())?)
            }
            http @ Endpoint::Http { .. } => http,
        };
        let local = Path::new(LOCAL_TOKEN_FILE);
        let flags = TokenFlags::default();
        let token = find_token(flags, env, home, &endpoint, local).map_err(|e| e.to_string())?;
        let agent = concat!("slicer-tray/", env!("CARGO_PKG_VERSION"));
        Client::new(endpoint, token.as_ref(), agent).map_err(|e| e.to_string())
    }

    /// What to say of a daemon that can't be asked.
    fn said(&self, e: &ClientError) -> String {
        let ClientError::NoDaemon { endpoint } = e else {
            return chain(e);
        };
        let nowhere = Endpoint::Http {
            authority: DEFAULT_AUTHORITY.to_owned(),
        };
        if *endpoint == nowhere && self.url.is_none() {
            return "No daemon runs".to_owned();
        }
        let place = endpoint.to_string();
        let home = self.home.as_deref().and_then(Path::to_str);
        let below = home.and_then(|home| place.strip_prefix(home)?.strip_prefix('/'));
        match below {
            Some(below) => format!("No daemon at ~/{below}"),
            None => format!("No daemon at {place}"),
        }
    }
}

/// An error and its causes, in one line.
pub(crate) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = e.source();
    }
    text
}

/// What was seen.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) client: Client,
    pub(crate) fleet: Result<Fleet, String>,
    /// What the VM measured, from which the next look tells rates.
    pub(crate) snapshot: Option<(String, StatsSnapshot)>,
}

/// Looks once. `before` is what the VM measured last.
pub(crate) async fn look(
    finder: Finder,
    before: Option<(String, StatsSnapshot)>,
) -> Result<Look, String> {
    let client = finder.client()?;
    let mut look = Look {
        fleet: Err(String::new()),
        snapshot: None,
        client,
    };
    let filter = NodeFilter::default();
    let asked = async {
        let (groups, nodes) =
            tokio::try_join!(look.client.host_groups(), look.client.nodes(&filter))?;
        Ok(Fleet::of(&groups, nodes))
    };
    look.fleet = match tokio::time::timeout(LIMIT, asked).await {
        Ok(Ok(fleet)) => Ok(fleet),
        Ok(Err(e)) => Err(finder.said(&e)),
        Err(_) => Err(format!(
            "The daemon has not answered for {} s",
            LIMIT.as_secs()
        )),
    };
    if let Ok(Fleet { vm: Some(vm), .. }) = &mut look.fleet {
        look.snapshot = inspect(&look.client, vm, before).await;
    }
    Ok(look)
}

/// Adds to a VM what a list doesn't tell. What can't be had is left out.
async fn inspect(
    client: &Client,
    vm: &mut Vm,
    before: Option<(String, StatsSnapshot)>,
) -> Option<(String, StatsSnapshot)> {
    let measured = async {
        if vm.status != NodeStatus::Running {
            return None;
        }
        let stats = client.node_stats(&vm.hostname);
        let stats = tokio::time::timeout(GUEST_LIMIT, stats).await.ok()?.ok()?;
        stats.into_iter().next()?.snapshot
    };
    let detail = tokio::time::timeout(LIMIT, client.node(&vm.hostname));
    let (snapshot, detail) = tokio::join!(measured, detail);
    if let Ok(Ok(detail)) = detail {
        vm.docker = DaemonDocker::among(&detail.forwards);
    }
    let snapshot = snapshot?;
    let before = before.filter(|(name, _)| *name == vm.hostname);
    vm.stats = Some(Stats::between(before.as_ref().map(|(_, s)| s), &snapshot));
    Some((vm.hostname.clone(), snapshot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_is_not_there_is_named_as_users_name_it() {
        let finder = |url: Option<&str>| Finder {
            url: url.map(str::to_owned),
            home: Some("/home/u".into()),
        };
        let said = |finder: &Finder, endpoint: &str| {
            let endpoint = Endpoint::parse(endpoint, None).unwrap();
            finder.said(&ClientError::NoDaemon { endpoint })
        };
        let none = finder(None);
        assert_eq!(said(&none, "http://127.0.0.1:8080"), "No daemon runs");
        assert_eq!(
            said(&none, "/home/u/slicer-mac/slicer.sock"),
            "No daemon at ~/slicer-mac/slicer.sock"
        );
        assert_eq!(
            said(&none, "/home/u2/s.sock"),
            "No daemon at /home/u2/s.sock"
        );
        let named = finder(Some("http://127.0.0.1:8080"));
        let said = said(&named, "http://127.0.0.1:8080");
        assert_eq!(said, "No daemon at http://127.0.0.1:8080");
    }

    #[tokio::test]
    async fn a_daemon_is_looked_for_each_time() {
        let home = tempfile::tempdir().unwrap();
        let finder = Finder {
            url: Some("~/slicer.sock".into()),
            home: Some(home.path().to_owned()),
        };
        let seen = look(finder.clone(), None).await.unwrap();
        assert_eq!(seen.fleet, Err("No daemon at ~/slicer.sock".into()));
        // Somebody listens, and says nothing.
        let socket = home.path().join("slicer.sock");
        let _silent = tokio::net::UnixListener::bind(&socket).unwrap();
        tokio::time::pause();
        let seen = look(finder, None).await.unwrap();
        assert_eq!(
            seen.fleet,
            Err("The daemon has not answered for 5 s".into())
        );
    }
}
