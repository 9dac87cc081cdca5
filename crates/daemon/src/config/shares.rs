//! What of the host a group's VMs see: `share_home` and `shares`.

use super::reader::Table;
use super::report::Report;
use slicer_api::check_mount;
use std::path::{Path, PathBuf};

/// Each takes a port of the VM's bus.
const MAX_SHARES: usize = 16;
/// The tag of `share_home`, and the name of where it is mounted.
const HOME_TAG: &str = "home";
const HOME_MOUNT: &str = "~/home";

/// A host folder that VMs see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareConfig {
    /// The name by which the guest mounts it.
    pub tag: String,
    /// The folder, relative to the working directory.
    pub path: PathBuf,
    /// Where it is in the guest: an absolute path, or `~/…`, below its default user's home.
    pub mount: String,
    /// Whether VMs can't change what is in it.
    pub read_only: bool,
    /// Whether this is `share_home`, without which VMs do where folders can't be shared.
    pub home: bool,
}

/// Reads both keys.
pub(super) fn read(
    table: &mut Table<'_>,
    home: Option<&Path>,
    report: &mut Report,
) -> Option<Vec<ShareConfig>> {
    let mut shares: Vec<ShareConfig> = Vec::new();
    if let Some(field) = table.take("share_home")
        && !field.text(report)?.is_empty()
    {
        shares.push(ShareConfig {
            tag: HOME_TAG.to_owned(),
            path: field.file(home, report)?,
            mount: HOME_MOUNT.to_owned(),
            read_only: false,
            home: true,
        });
    }
    let Some(field) = table.take("shares") else {
        return Some(shares);
    };
    let items = field.list(report)?;
    if items.len() > MAX_SHARES {
        field.error(
            report,
            format!("more than the {MAX_SHARES} a VM has room for"),
        );
        return None;
    }
    for (index, item) in items.iter().enumerate() {
        let mut inner = item.table(report)?;
        let mut needed = |key| {
            let field = inner.take(key);
            if field.is_none() {
                let text = format!("{}: a share needs {key}, found nothing", inner.path_of(key));
                report.error(inner.place(), text);
            }
            field
        };
        let (path, mount) = (needed("path"), needed("mount"));
        let read_only = match inner.take("read_only") {
            Some(field) => field.truth(report),
            None => Some(false),
        };
        inner.finish(report);
        let path = path.and_then(|field| field.file(home, report));
        let mount = mount.and_then(|field| {
            let text = field.text(report)?;
            let end = text.trim_end_matches('/');
            if let Err(why) = check_mount(text) {
                field.error(report, why);
            } else if shares.iter().any(|s| s.mount == end) {
                field.error(report, format!("something else is mounted at {end}"));
            } else {
                return Some(end.to_owned());
            }
            None
        });
        shares.push(ShareConfig {
            tag: format!("share{}", index + 1),
            path: path?,
            mount: mount?,
            read_only: read_only?,
            home: false,
        });
    }
    Some(shares)
}
