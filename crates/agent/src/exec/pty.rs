//! A pseudoterminal: its master's end, and the end a shell runs on.

use crate::sys;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The master's end. What is dropped hangs up the terminal.
pub(super) struct Pty(AsyncFd<Arc<OwnedFd>>);

impl Pty {
    /// Opens a terminal of 80 columns and 24 rows, which belongs to `owner` if that isn't who the
    /// agent runs as. Gives back the end for the shell, too.
    pub(super) fn open(owner: Option<u32>) -> io::Result<(Self, OwnedFd)> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let shell_end = rustix::fs::open(name, flags, Mode::empty())?;
        if let Some(uid) = owner {
            // Programs open it by its name, too, and as themselves. The group stays: it is what
            // the mount of devpts says, as a rule that of the terminals.
            rustix::fs::fchown(&shell_end, Some(Uid::from_raw(uid)), None::<Gid>)?;
            rustix::fs::fchmod(&shell_end, Mode::from_raw_mode(0o620))?;
        }
        // Or the backspace key takes a byte and not a character.
        let mut modes = tcgetattr(&shell_end)?;
        modes.input_modes |= InputModes::IUTF8;
        tcsetattr(&shell_end, OptionalActions::Now, &modes)?;
        rustix::io::ioctl_fionbio(&master, true)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        let pty = Self(sys::watch(Arc::new(master), interest)?);
        pty.resize(80, 24)?;
        Ok((pty, shell_end))
    }

    /// Sets the size; the programs on the terminal are told.
    pub(super) fn resize(&self, columns: u32, rows: u32) -> io::Result<()> {
        let side = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let size = Winsize {
            ws_row: side(rows),
            ws_col: side(columns),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(self.0.get_ref(), size)?)
    }

    /// Reads what the terminal shows; 0 bytes when nothing is on it any more.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *buffer)?));
            match read {
                // The kernel's way to say that the other end is closed.
                Ok(Err(e)) if e.raw_os_error() == Some(Errno::IO.raw_os_error()) => return Ok(0),
                Ok(done) => return done,
                Err(_would_block) => {}
            }
        }
    }

    /// Types; waits while the programs on the terminal don't read.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            let written = ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?));
            if let Ok(written) = written {
                bytes = &bytes[written?..];
            }
        }
        Ok(())
    }
}
