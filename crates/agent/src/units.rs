//! Runtime units for a guest under systemd: the mark that early boot is over, a short way to it, and
//! masks for what only costs time in a VM of ours.

use crate::error::{AgentError, io_error};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// The FIFO whose appearance says that early boot is over.
pub(crate) const READY_FIFO: &str = "/run/slicer/ready";

/// What systemd is told to boot to first, where there is a short way.
pub(crate) const EARLY_TARGET: &str = "slicer-early.target";

/// The short way. systemd reads every unit that a target leads to, by its dependencies and by
/// theirs, even if only to order them, before it starts the first: some 150, which takes longer
/// than starting what users wait for. These lead nowhere else, hence also the outputs, since those
/// to the journal lead to its units.
const EARLY: &str = "[Unit]
Description=All that must be there before somebody is let in
DefaultDependencies=no
AllowIsolate=yes
Wants=slicer-ready.socket slicer-tmpfiles.service slicer-continue.service
";

/// On to the image's own default target. Part of the way itself, so that systemd says of the system
/// that it is starting until all of it has; and with the least priority, so that the agent, which
/// has a guest to report ready, goes first.
const CONTINUE: &str = "[Unit]
Description=Go on to the default target
DefaultDependencies=no
After=slicer-ready.socket

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=systemctl --no-block start default.target
CPUSchedulingPolicy=idle
StandardOutput=null
StandardError=file:/run/slicer/continue.log
";

/// A client that comes early waits for the bus rather than finding none.
const EARLY_BUS: &str = "[Unit]
DefaultDependencies=no
";

/// What systemd-tmpfiles-setup.service does.
const TMPFILES: &str = "[Unit]
Description=Create system files and directories, before somebody is let in
DefaultDependencies=no

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=-systemd-tmpfiles --create --remove --boot --exclude-prefix=/dev
StandardOutput=null
StandardError=file:/run/slicer/tmpfiles.log
";

/// It would remove what users have put into `/tmp` by then.
const NO_TMPFILES: &str = "[Unit]
ConditionPathExists=!/run/slicer/ready
";

/// The mark: its FIFO appears when temporary files are set up (what was put into `/tmp` before
/// could vanish), users are there and local file systems are mounted; units an image lacks, or that
/// are not part of this boot, are no hindrance. It is a socket unit because systemd makes a FIFO by
/// itself, where a service would cost a process, which takes 50 ms under emulation.
const READY_SOCKET: &str = "[Unit]
Description=Mark of the slicer agent: early boot is over
DefaultDependencies=no
After=@AFTER@

[Socket]
ListenFIFO=/run/slicer/ready
SocketMode=0600
";
const AFTER_SHORT_WAY: &str = "slicer-tmpfiles.service";
const AFTER_LONG_WAY: &str =
    "systemd-tmpfiles-setup.service systemd-sysusers.service local-fs.target";

/// A socket unit must name a service, which starts when somebody writes to the FIFO: nobody does.
const READY_SERVICE: &str = "[Unit]
Description=Unused counterpart of slicer-ready.socket
DefaultDependencies=no

[Service]
Type=oneshot
ExecStart=/bin/true
StandardOutput=null
StandardError=null
";

/// Keeps systemd from unmounting the modules at shutdown, before udevd, which has them open, is
/// gone: it would fail, and say so in red. They go with the last mounts.
const MODULES_MOUNT: &str = "[Unit]
DefaultDependencies=no
";

/// The supervisor that takes over should somebody kill the first one, which was there before
/// systemd and is none of its services.
const SUPERVISOR: &str = "slicer-supervisor.service";
const SUPERVISOR_TEXT: &str = "[Unit]
Description=Slicer agent, in reserve

[Service]
ExecStart=/run/slicer/slicer-agent supervise systemd
Restart=always
RestartSec=100ms
OOMScoreAdjust=-900
";

/// Units no VM of ours has a use for, in any image: there is no terminal to log in at (the console
/// is a log file on the host, and without udev a getty on it blocks for 90 s), and no first-boot
/// questions to answer on it.
const MASKED_UNITS: [&str; 5] = [
    "systemd-firstboot.service",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "serial-getty@ttyAMA0.service",
    "serial-getty@hvc0.service",
];

/// Generators, each a process before anything else may start: for gettys as above, for partitions
/// of a disk that has none, for resuming from a hibernation that can't have been, and for
/// EFI boot counting.
const MASKED_GENERATORS: [&str; 4] = [
    "systemd-getty-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-bless-boot-generator",
];
/// The one that reads `/etc/fstab`.
const FSTAB_GENERATOR: &str = "systemd-fstab-generator";

/// The way systemd goes until users are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Only what they wait for, then all the rest.
    Short,
    /// As on any machine: there are file systems to mount, which may take devices, modules and
    /// whatever else the image has units for.
    Long,
}

impl Way {
    /// The way for an image with this `/etc/fstab`.
    pub(crate) fn of(fstab: Option<&str>) -> Self {
        let entry = |line: &str| !line.trim().is_empty() && !line.trim().starts_with('#');
        if fstab.unwrap_or_default().lines().any(entry) {
            Self::Long
        } else {
            Self::Short
        }
    }
}

/// Whether systemd was sent the short way, in any earlier life of this process.
pub(crate) fn is_short_way() -> bool {
    Path::new("/run/systemd/system").join(EARLY_TARGET).exists()
}

/// Writes the units below `dir`, which is `/run/systemd`. The image's own settings in
/// `/etc/systemd` go before them.
pub(crate) fn install(dir: &Path, way: Way) -> Result<(), AgentError> {
    let system = dir.join("system");
    let generators = dir.join("system-generators");
    let wants = system.join("sysinit.target.wants");
    let drop_in = |unit: &str| system.join(format!("{unit}.d"));
    let modules = drop_in("usr-lib-modules.mount");
    let tmpfiles = drop_in("systemd-tmpfiles-setup.service");
    let bus = drop_in("dbus.socket");
    let late_wants = system.join("multi-user.target.wants");
    for dir in [&generators, &wants, &modules, &tmpfiles, &bus, &late_wants] {
        fs::create_dir_all(dir).map_err(io_error("make directory", dir))?;
    }
    let after = match way {
        Way::Short => AFTER_SHORT_WAY,
        Way::Long => AFTER_LONG_WAY,
    };
    let socket = READY_SOCKET.replace("@AFTER@", after);
    let mut units = vec![
        (system.join("slicer-ready.socket"), socket.as_str()),
        (system.join("slicer-ready.service"), READY_SERVICE),
        (modules.join("slicer.conf"), MODULES_MOUNT),
        (system.join(SUPERVISOR), SUPERVISOR_TEXT),
    ];
    let mut masked_generators = MASKED_GENERATORS.to_vec();
    let link = |target: &str, path: &Path| {
        symlink(target, path)
            .or_else(|e| match e.kind() {
                std::io::ErrorKind::AlreadyExists => Ok(()),
                _ => Err(e),
            })
            .map_err(io_error("link", path))
    };
    match way {
        Way::Short => {
            units.extend([
                (system.join(EARLY_TARGET), EARLY),
                (system.join("slicer-tmpfiles.service"), TMPFILES),
                (system.join("slicer-continue.service"), CONTINUE),
                (bus.join("slicer.conf"), EARLY_BUS),
                (tmpfiles.join("slicer.conf"), NO_TMPFILES),
            ]);
            masked_generators.push(FSTAB_GENERATOR);
        }
        Way::Long => link("../slicer-ready.socket", &wants.join("slicer-ready.socket"))?,
    }
    link(&format!("../{SUPERVISOR}"), &late_wants.join(SUPERVISOR))?;
    for (path, text) in units {
        fs::write(&path, text).map_err(io_error("write", path))?;
    }
    for unit in MASKED_UNITS {
        link("/dev/null", &system.join(unit))?;
    }
    for generator in masked_generators {
        link("/dev/null", &generators.join(generator))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_fstab_with_entries_needs_the_long_way() {
        for (text, way) in [
            (None, Way::Short),
            (Some(""), Way::Short),
            (Some("# UNCONFIGURED FSTAB\n\n  # more\n"), Way::Short),
            (Some("# x\n/dev/vdc /data ext4\n"), Way::Long),
        ] {
            assert_eq!(Way::of(text), way, "{text:?}");
        }
    }

    #[test]
    fn units_are_written_and_writing_again_is_fine() {
        for (way, after) in [(Way::Short, AFTER_SHORT_WAY), (Way::Long, AFTER_LONG_WAY)] {
            let dir = tempfile::tempdir().unwrap();
            for _ in 0..2 {
                install(dir.path(), way).unwrap();
            }
            let path = |name: &str| dir.path().join(name);
            let socket = fs::read_to_string(path("system/slicer-ready.socket")).unwrap();
            assert!(socket.contains(READY_FIFO) && socket.contains(after));
            assert_eq!(
                fs::read_link(path("system/getty@tty1.service")).unwrap(),
                Path::new("/dev/null")
            );
            let wanted = path("system/sysinit.target.wants/slicer-ready.socket");
            assert_eq!(wanted.exists(), way == Way::Long);
        }
    }
}
