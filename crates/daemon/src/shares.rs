//! Host folders in VMs: what the configuration says, for the hypervisor and for the guest.

use crate::DaemonError;
use crate::config::ShareConfig;
use crate::workdir::WorkDir;
use slicer_api::ShareMount;
use slicer_machine::{Capabilities, Share};
use std::io;
use tracing::warn;

/// Beside where `share_home` is mounted, a link that leads there.
const HOME_LINK: &str = "host";

/// The shares a VM gets here. Where folders can't be shared, that is those whose lack is an error,
/// which the hypervisor will tell.
fn given<'c>(
    shares: &'c [ShareConfig],
    capabilities: &Capabilities,
) -> impl Iterator<Item = &'c ShareConfig> {
    let able = capabilities.shares.is_ok();
    shares.iter().filter(move |s| able || !s.home)
}

/// What the hypervisor is to share with a VM. Warns of what it can't.
///
/// # Errors
/// When a folder isn't there.
pub(crate) fn for_machine(
    vm: &str,
    shares: &[ShareConfig],
    capabilities: &Capabilities,
    work: &WorkDir,
) -> Result<Vec<Share>, DaemonError> {
    if let Err(why) = &capabilities.shares
        && shares.iter().any(|s| s.home)
    {
        warn!("{vm}: goes without share_home: {why}");
    }
    let share = |config: &ShareConfig| {
        let path = work.root().join(&config.path);
        let found = path.canonicalize().and_then(|real| {
            if real.is_dir() {
                Ok(real)
            } else {
                Err(io::ErrorKind::NotADirectory.into())
            }
        });
        Ok(Share {
            tag: config.tag.clone(),
            path: found.map_err(|source| DaemonError::Share { path, source })?,
            read_only: config.read_only,
        })
    };
    given(shares, capabilities).map(share).collect()
}

/// What a guest is to mount.
pub(crate) fn for_guest(shares: &[ShareConfig], capabilities: &Capabilities) -> Vec<ShareMount> {
    let mount = |config: &ShareConfig| ShareMount {
        tag: config.tag.clone(),
        mount: config.mount.clone(),
        link: config.home.then(|| HOME_LINK.to_owned()),
        read_only: config.read_only,
    };
    given(shares, capabilities).map(mount).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(tag: &str, path: &str) -> ShareConfig {
        ShareConfig {
            tag: tag.into(),
            path: path.into(),
            mount: format!("~/{tag}"),
            read_only: tag != "home",
            home: tag == "home",
        }
    }

    fn able(shares: Result<(), String>) -> Capabilities {
        Capabilities {
            archs: Vec::new(),
            save_restore: false,
            templates: false,
            rosetta: Err(String::new()),
            shares,
            disk_formats: Vec::new(),
        }
    }

    #[test]
    fn only_share_home_is_done_without() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::open(dir.path()).unwrap();
        let shares = [share("home", "."), share("share1", "logs")];
        let tags = |able| {
            let shares = for_machine("sbox-1", &shares, able, &work).unwrap();
            shares.into_iter().map(|s| s.tag).collect::<Vec<_>>()
        };
        let (yes, no) = (able(Ok(())), able(Err("no virtiofsd".into())));
        assert_eq!(tags(&yes), ["home", "share1"]);
        assert_eq!(tags(&no), ["share1"]);
        let mounts = for_guest(&shares, &yes);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].link.as_deref(), Some("host"));
        assert!(!mounts[0].read_only && mounts[1].read_only);
        assert_eq!(mounts[1].link, None);
        assert_eq!(for_guest(&shares, &no), mounts[1..]);
    }

    #[test]
    fn a_folder_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        for path in ["missing", "file"] {
            let shares = [share("share1", path)];
            let refused = for_machine("sbox-1", &shares, &able(Ok(())), &work);
            let text = refused.unwrap_err().to_string();
            assert!(text.contains(path) && text.contains("share"), "{text}");
        }
    }
}
