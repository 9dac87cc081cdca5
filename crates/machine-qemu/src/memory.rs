//! What a QEMU process takes of the host's memory, by `/proc/PID/status` (proc(5)).

use slicer_machine::{HostMemory, MachineError};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use tokio::process::Child;

/// Longer than the kernel's text.
const STATUS_SIZE: usize = 8 << 10;

/// The open status of a process: it never becomes that of another one with the same number.
pub(crate) struct Status(File);

impl Status {
    pub(crate) fn open(child: &Child) -> Result<Self, MachineError> {
        let path = PathBuf::from(format!("/proc/{}/status", child.id().unwrap_or_default()));
        match File::open(&path) {
            Ok(file) => Ok(Self(file)),
            Err(source) => Err(MachineError::Io {
                action: "open",
                path,
                source,
            }),
        }
    }

    /// None once the process is gone.
    pub(crate) fn memory(&self) -> Option<HostMemory> {
        let mut text = [0; STATUS_SIZE];
        let mut length = 0;
        while let Some(rest) = text.get_mut(length..).filter(|rest| !rest.is_empty()) {
            match self.0.read_at(rest, length as u64).ok()? {
                0 => break,
                n => length += n,
            }
        }
        parse(&String::from_utf8_lossy(text.get(..length)?))
    }
}

fn parse(status: &str) -> Option<HostMemory> {
    let bytes = |label: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(label))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    Some(HostMemory {
        resident: bytes("VmRSS:")?,
        peak: bytes("VmHWM:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn a_status_without_memory_is_a_process_that_ends() {
        let text = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        let memory = parse(text).unwrap();
        assert_eq!((memory.resident, memory.peak), (1 << 20, 2 << 20));
        assert_eq!(parse("Name:\tx\nState:\tZ (zombie)\n"), None);
    }

    #[tokio::test]
    async fn a_process_that_is_gone_has_none() {
        let mut child = tokio::process::Command::new("sleep")
            .arg("600")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let status = Status::open(&child).unwrap();
        let memory = status.memory().unwrap();
        assert!(
            memory.resident > 0 && memory.peak >= memory.resident,
            "{memory:?}"
        );
        child.kill().await.unwrap();
        assert_eq!(status.memory(), None);
    }
}
