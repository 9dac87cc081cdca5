//! What a VM's configuration is made of, decided before the framework is asked for anything.
//!
//! A [`Plan`] is plain data: which devices a machine has, in which order, with which settings.
//! What applies it goes through it line by line and decides nothing. So all that can be wrong about
//! a configuration, other than a misspelt call, is tested on any host.

use crate::NAME;
use crate::framework::Host;
use slicer_machine::{
    Arch, Disk, DiskFormat, MachineError, MachineSpec, Network, ROSETTA_TAG, Share,
};
use std::path::{Path, PathBuf};

/// The framework counts memory in these.
const MIB: u64 = 1 << 20;
/// The longest name of a disk: `VIRTIO_BLK_ID_BYTES`.
const DISK_ID_BYTES: usize = 20;
/// The longest tag of a share: `tag` of `struct virtio_fs_config`.
const TAG_BYTES: usize = 36;

/// What reaches the host's disk when the guest flushes its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synchronisation {
    /// What was written, by `fsync`: as much as programs on a Mac ask for.
    Fsync,
    /// Nothing: for disks that go with their VM.
    None,
}

/// A virtio block device over a raw file. Its caching is always `cached`: with `automatic`, guests'
/// file systems have been damaged (<https://github.com/utmapp/UTM/issues/4840>).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlan {
    /// The name the guest finds it by.
    pub id: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// What a flush does.
    pub synchronisation: Synchronisation,
}

/// A virtiofs device with one host folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharePlan {
    /// The name the guest mounts it by.
    pub tag: String,
    /// The folder.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

/// All that a machine is configured with. Beside what is in here, each has a vsock device, a source
/// of entropy and a balloon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The number of CPUs.
    pub cpus: usize,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// The kernel, an arm64 Image.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// The kernel's command line.
    pub cmdline: String,
    /// What makes this machine itself, as the framework writes it: a saved state is of it alone.
    pub identifier: Vec<u8>,
    /// Disks, in order.
    pub disks: Vec<DiskPlan>,
    /// The hardware address of the network card, which is behind the framework's NAT.
    pub mac: Option<String>,
    /// Host folders, in order.
    pub shares: Vec<SharePlan>,
    /// The tag of the share with Rosetta's interpreter, which comes after the others.
    pub rosetta: Option<&'static str>,
    /// The file the serial console is appended to.
    pub console: PathBuf,
}

impl Plan {
    /// What a VM is to be made of on this host. `identifier` is of a machine that was saved, or new.
    ///
    /// # Errors
    /// When the framework can't make such a machine, or this host can't.
    pub fn new(spec: &MachineSpec, host: &Host, identifier: Vec<u8>) -> Result<Self, MachineError> {
        if spec.arch != Arch::Aarch64 {
            return Err(unsupported(
                "a guest for x86-64",
                "Apple silicon runs arm64 guests only; with `rosetta: true` those run programs \
                 for x86-64",
            ));
        }
        let cpus = cpus(spec, host)?;
        check_memory(spec, host)?;
        let mut paths = vec![&spec.boot.kernel, &spec.boot.initramfs, &spec.console];
        paths.extend(spec.disks.iter().map(|d| &d.path));
        paths.extend(spec.shares.iter().map(|s| &s.path));
        for path in paths {
            check_path(spec, path)?;
        }
        let rosetta = if spec.rosetta {
            let offered = host.rosetta.check();
            offered.map_err(|why| unsupported("Rosetta", &why))?;
            Some(ROSETTA_TAG)
        } else {
            None
        };
        Ok(Self {
            cpus,
            memory_bytes: spec.memory_bytes,
            kernel: spec.boot.kernel.clone(),
            initramfs: spec.boot.initramfs.clone(),
            cmdline: spec.boot.cmdline.clone(),
            identifier,
            disks: disks(spec)?,
            mac: mac(spec.network.as_ref())?,
            shares: shares(spec)?,
            rosetta,
            console: spec.console.clone(),
        })
    }

    /// What must be the same for a saved state to fit, in words, one thing a line. What can change
    /// without the guest noticing, such as where the files are, is not in it.
    pub fn hardware(&self) -> Vec<String> {
        let mut lines = vec![
            format!("{} CPUs", self.cpus),
            format!("{} bytes of memory", self.memory_bytes),
        ];
        for disk in &self.disks {
            let kind = if disk.read_only { " to read" } else { "" };
            lines.push(format!("a disk {}{kind}", disk.id));
        }
        lines.extend(self.mac.iter().map(|mac| format!("the card {mac}")));
        for share in &self.shares {
            let kind = if share.read_only { " to read" } else { "" };
            lines.push(format!("a share {}{kind}", share.tag));
        }
        lines.extend(self.rosetta.map(|_| "Rosetta".to_owned()));
        lines
    }
}

fn unsupported(what: &'static str, why: &str) -> MachineError {
    MachineError::Unsupported {
        what,
        backend: NAME,
        why: why.to_owned(),
    }
}

fn refused(spec: &MachineSpec, why: String) -> MachineError {
    MachineError::Launch {
        vm: spec.name.clone(),
        why,
    }
}

fn cpus(spec: &MachineSpec, host: &Host) -> Result<usize, MachineError> {
    let allowed = &host.cpus;
    match usize::try_from(spec.cpus) {
        Ok(cpus) if allowed.contains(&cpus) => Ok(cpus),
        _ => Err(refused(
            spec,
            format!(
                "it is to have {} CPUs, and this Mac gives a VM {} to {}",
                spec.cpus,
                allowed.start(),
                allowed.end()
            ),
        )),
    }
}

fn check_memory(spec: &MachineSpec, host: &Host) -> Result<(), MachineError> {
    let bytes = spec.memory_bytes;
    let allowed = &host.memory_bytes;
    if !allowed.contains(&bytes) {
        return Err(refused(
            spec,
            format!(
                "it is to have {} MiB of memory, and this Mac gives a VM {} to {}",
                bytes / MIB,
                allowed.start().div_ceil(MIB),
                allowed.end() / MIB
            ),
        ));
    }
    if !bytes.is_multiple_of(MIB) {
        let why = format!("its memory of {bytes} bytes is no whole number of MiB");
        return Err(refused(spec, why));
    }
    Ok(())
}

/// A file's name reaches the framework as text.
fn check_path(spec: &MachineSpec, path: &Path) -> Result<(), MachineError> {
    if !path.is_absolute() || path.to_str().is_none_or(|p| p.contains('\0')) {
        let why = format!(
            "{} is no absolute path in UTF-8, which the Virtualization framework needs",
            path.display()
        );
        return Err(refused(spec, why));
    }
    Ok(())
}

fn disks(spec: &MachineSpec) -> Result<Vec<DiskPlan>, MachineError> {
    let mut ids: Vec<&str> = Vec::new();
    let plan = |disk: &Disk| {
        if disk.format != DiskFormat::Raw {
            return Err(unsupported(
                "a disk in qcow2",
                "the Virtualization framework attaches raw disks only: export it in the format \
                 raw, or start this VM on a Linux host",
            ));
        }
        let fits = (1..=DISK_ID_BYTES).contains(&disk.id.len()) && disk.id.is_ascii();
        if !fits || ids.contains(&disk.id) {
            return Err(refused(spec, format!("no disk can be named {:?}", disk.id)));
        }
        ids.push(disk.id);
        Ok(DiskPlan {
            id: disk.id,
            path: disk.path.clone(),
            read_only: disk.read_only,
            synchronisation: if disk.flush {
                Synchronisation::Fsync
            } else {
                Synchronisation::None
            },
        })
    };
    spec.disks.iter().map(plan).collect()
}

/// The address is ours to choose, so that it is the same after a restore: it must be one of a single
/// card, for the framework refuses others.
fn mac(network: Option<&Network>) -> Result<Option<String>, MachineError> {
    match network {
        None => Ok(None),
        Some(Network::User(user)) if user.mac.0[0] & 1 == 0 => Ok(Some(user.mac.to_string())),
        Some(Network::User(_)) => Err(unsupported(
            "a multicast hardware address",
            "a network card needs one of its own",
        )),
        Some(Network::Tap(_)) => Err(unsupported(
            "a network of taps",
            "macOS has none: use `network: {mode: nat}`",
        )),
    }
}

fn shares(spec: &MachineSpec) -> Result<Vec<SharePlan>, MachineError> {
    let mut tags: Vec<&str> = Vec::new();
    let mut plans = Vec::with_capacity(spec.shares.len());
    for Share {
        tag,
        path,
        read_only,
    } in &spec.shares
    {
        let fits = (1..=TAG_BYTES).contains(&tag.len()) && !tag.contains('\0');
        let taken = tags.contains(&tag.as_str()) || (spec.rosetta && tag == ROSETTA_TAG);
        if !fits || taken {
            return Err(refused(spec, format!("no share can have the tag {tag:?}")));
        }
        tags.push(tag);
        plans.push(SharePlan {
            tag: tag.clone(),
            path: path.clone(),
            read_only: *read_only,
        });
    }
    Ok(plans)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::Rosetta;
    use crate::scripted::{host, spec};
    use slicer_machine::{MacAddress, UserNetwork};
    use std::os::unix::ffi::OsStringExt as _;

    fn plan(spec: &MachineSpec) -> Result<Plan, MachineError> {
        Plan::new(spec, &host(), vec![1, 2, 3])
    }

    fn refusal(change: impl FnOnce(&mut MachineSpec)) -> String {
        let mut spec = spec("sbox-1");
        change(&mut spec);
        plan(&spec).unwrap_err().to_string()
    }

    #[test]
    fn a_machine_is_what_its_specification_says() {
        let spec = spec("sbox-1");
        let plan = plan(&spec).unwrap();
        assert_eq!((plan.cpus, plan.memory_bytes), (2, 1 << 30));
        assert_eq!(plan.kernel, spec.boot.kernel);
        assert_eq!(plan.initramfs, spec.boot.initramfs);
        assert_eq!(plan.cmdline, spec.boot.cmdline);
        assert_eq!(plan.identifier, [1, 2, 3]);
        assert_eq!(plan.mac.as_deref(), Some("06:00:c0:a8:40:02"));
        assert_eq!(plan.console, spec.console);
        assert_eq!(plan.rosetta, None);
        let share = SharePlan {
            tag: "home".into(),
            path: "/Users/me".into(),
            read_only: false,
        };
        assert_eq!(plan.shares, [share]);
    }

    #[test]
    fn flushes_of_a_disk_that_is_kept_reach_the_host() {
        let mut spec = spec("slicer-1");
        let of = |spec: &MachineSpec| -> Vec<_> {
            let disks = plan(spec).unwrap().disks;
            disks.iter().map(|d| (d.id, d.synchronisation)).collect()
        };
        let fsync = Synchronisation::Fsync;
        assert_eq!(of(&spec), [("root", fsync), ("modules", fsync)]);
        spec.disks[0].flush = false;
        let none = Synchronisation::None;
        assert_eq!(of(&spec), [("root", none), ("modules", fsync)]);
    }

    #[test]
    fn disks_the_framework_does_not_know_are_refused() {
        let text = refusal(|s| s.disks[0].format = DiskFormat::Qcow2);
        assert!(text.contains("raw"), "{text}");
        let text = refusal(|s| s.disks[0].id = "a-name-of-21-bytes-xx");
        assert!(text.contains("a-name-of-21"), "{text}");
        let text = refusal(|s| s.disks[1].id = "root");
        assert!(text.contains("\"root\""), "{text}");
    }

    #[test]
    fn what_this_host_does_not_have_is_refused_by_its_numbers() {
        let text = refusal(|s| s.cpus = 11);
        assert!(
            text.contains("11 CPUs") && text.contains("1 to 10"),
            "{text}"
        );
        let text = refusal(|s| s.memory_bytes = 64 << 30);
        assert!(
            text.contains("65536 MiB") && text.contains("4 to 16384"),
            "{text}"
        );
        let text = refusal(|s| s.memory_bytes += 1);
        assert!(text.contains("whole number of MiB"), "{text}");
        let text = refusal(|s| s.arch = Arch::X86_64);
        assert!(text.contains("rosetta: true"), "{text}");
    }

    #[test]
    fn paths_are_absolute_and_text() {
        let text = refusal(|s| s.boot.kernel = "Image".into());
        assert!(text.contains("Image is no absolute path"), "{text}");
        let latin = std::ffi::OsString::from_vec(b"/caf\xe9".to_vec());
        let text = refusal(|s| s.shares[0].path = latin.into());
        assert!(text.contains("UTF-8"), "{text}");
    }

    #[test]
    fn a_card_has_the_address_of_one() {
        let text = refusal(|s| {
            if let Some(Network::User(UserNetwork { mac, .. })) = &mut s.network {
                *mac = MacAddress([1, 0, 0, 0, 0, 0]);
            }
        });
        assert!(text.contains("multicast"), "{text}");
        let mut spec = spec("sbox-1");
        spec.network = None;
        assert_eq!(plan(&spec).unwrap().mac, None);
    }

    #[test]
    fn tags_are_short_and_of_one_share_each() {
        let text = refusal(|s| s.shares[0].tag = "x".repeat(37));
        assert!(text.contains("xxx"), "{text}");
        let text = refusal(|s| s.shares.push(s.shares[0].clone()));
        assert!(text.contains("\"home\""), "{text}");
        let text = refusal(|s| {
            s.rosetta = true;
            s.shares[0].tag = "rosetta".into();
        });
        assert!(text.contains("\"rosetta\""), "{text}");
    }

    #[test]
    fn rosetta_is_there_or_it_is_said_how_to_get_it() {
        let mut spec = spec("sbox-1");
        spec.rosetta = true;
        assert_eq!(plan(&spec).unwrap().rosetta, Some("rosetta"));
        let bare = Host {
            rosetta: Rosetta::NotInstalled,
            ..host()
        };
        let text = Plan::new(&spec, &bare, vec![]).unwrap_err().to_string();
        assert!(text.contains("--install-rosetta"), "{text}");
    }

    #[test]
    fn hardware_is_what_the_guest_sees() {
        let mut spec = spec("sbox-1");
        let of = |spec: &MachineSpec| plan(spec).unwrap().hardware();
        let before = of(&spec);
        spec.console = "/elsewhere/console".into();
        spec.disks[0].path = "/elsewhere/disk".into();
        spec.boot.cmdline = "other".into();
        assert_eq!(of(&spec), before);
        let changes: [fn(&mut MachineSpec); 6] = [
            |s| s.cpus = 1,
            |s| s.memory_bytes *= 2,
            |s| s.disks[0].read_only = true,
            |s| s.network = None,
            |s| s.shares[0].tag = "work".into(),
            |s| s.rosetta = true,
        ];
        for change in changes {
            let mut other = spec.clone();
            change(&mut other);
            assert_ne!(of(&other), before);
        }
    }
}
