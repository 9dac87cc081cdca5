//! Runtime units for a guest under systemd: the mark that early boot is over, and masks for what
//! only costs time in a VM of ours.

use crate::error::{AgentError, io_error};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// The FIFO whose appearance says that early boot is over.
pub(crate) const READY_FIFO: &str = "/run/slicer/ready";

/// Reached when temporary files are set up (what was put into `/tmp` before could vanish), users
/// are there and local file systems are mounted; units an image lacks are no hindrance. It is a
/// socket unit because systemd makes a FIFO by itself, where a service would cost a process, which
/// takes 50 ms under emulation.
const READY_SOCKET: &str = "[Unit]
Description=Mark of the slicer agent: early boot is over
DefaultDependencies=no
After=systemd-tmpfiles-setup.service systemd-sysusers.service local-fs.target

[Socket]
ListenFIFO=/run/slicer/ready
SocketMode=0600
";

/// A socket unit must name a service, which starts when somebody writes to the FIFO: nobody does.
const READY_SERVICE: &str = "[Unit]
Description=Unused counterpart of slicer-ready.socket
DefaultDependencies=no

[Service]
Type=oneshot
ExecStart=/bin/true
";

/// Keeps systemd from unmounting the modules at shutdown, before udevd, which has them open, is
/// gone: it would fail, and say so in red. They go with the last mounts.
const MODULES_MOUNT: &str = "[Unit]
DefaultDependencies=no
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

/// Writes the units below `dir`, which is `/run/systemd`. The image's own settings in
/// `/etc/systemd` go before them.
pub(crate) fn install(dir: &Path) -> Result<(), AgentError> {
    let system = dir.join("system");
    let generators = dir.join("system-generators");
    let wants = system.join("sysinit.target.wants");
    let modules_mount = system.join("usr-lib-modules.mount.d");
    for dir in [&wants, &generators, &modules_mount] {
        fs::create_dir_all(dir).map_err(io_error("make directory", dir))?;
    }
    for (path, text) in [
        (system.join("slicer-ready.socket"), READY_SOCKET),
        (system.join("slicer-ready.service"), READY_SERVICE),
        (modules_mount.join("slicer.conf"), MODULES_MOUNT),
    ] {
        fs::write(&path, text).map_err(io_error("write", path))?;
    }
    let link = |target: &str, path: &Path| {
        symlink(target, path)
            .or_else(|e| match e.kind() {
                std::io::ErrorKind::AlreadyExists => Ok(()),
                _ => Err(e),
            })
            .map_err(io_error("link", path))
    };
    link("../slicer-ready.socket", &wants.join("slicer-ready.socket"))?;
    for unit in MASKED_UNITS {
        link("/dev/null", &system.join(unit))?;
    }
    for generator in MASKED_GENERATORS {
        link("/dev/null", &generators.join(generator))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_written_and_writing_again_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            install(dir.path()).unwrap();
        }
        let socket = fs::read_to_string(
            dir.path()
                .join("system/sysinit.target.wants/slicer-ready.socket"),
        );
        assert!(socket.unwrap().contains(READY_FIFO));
        assert_eq!(
            fs::read_link(dir.path().join("system/getty@tty1.service")).unwrap(),
            Path::new("/dev/null")
        );
    }
}
