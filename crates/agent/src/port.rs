//! The virtio-serial port to the host.
//!
//! The kernel's driver (drivers/char/virtio_console.c) reports a port whose host end nobody has
//! open as hung up: polling returns at once, reading gives an end of file. So waiting for the host
//! and talking to it are two things here: [`wait_for_host`] watches for the edge, and [`Port`] is
//! only made once the host is there, ending when it leaves.

use crate::error::{AgentError, io_error};
use crate::sys;
use rustix::event::{PollFd, PollFlags, epoll, poll};
use rustix::fs::{Mode, OFlags};
use rustix::time::Timespec;
use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// The name the host gives to the agent's port.
const NAME: &str = "slicer.agent";

/// The driver takes what the host sends page by page and reads at most one of them at a time, so
/// several are asked for at once.
const PAGE: usize = 4096;
const PARTS: usize = 16;

/// The port's device, if the kernel knows it by name already.
pub(crate) fn find() -> Option<PathBuf> {
    fs::read_dir("/sys/class/virtio-ports")
        .ok()?
        .flatten()
        .find(|entry| fs::read_to_string(entry.path().join("name")).is_ok_and(|n| n.trim() == NAME))
        .map(|entry| Path::new("/dev").join(entry.file_name()))
}

/// Opens the port's device. Only one process can have it open at a time.
pub(crate) fn open(path: &Path) -> Result<OwnedFd, AgentError> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(io_error("open", path))
}

/// Returns once somebody has the host's end of the port open. There is no bound to this wait: a
/// guest without a host has nothing else to do, and it costs nothing.
pub(crate) async fn wait_for_host(port: &OwnedFd) -> io::Result<()> {
    // The port, level-triggered, would be ready all the time. An epoll instance that watches it
    // edge-triggered becomes readable when its state changes, and is what the runtime watches.
    let edges = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(
        &edges,
        port,
        epoll::EventData::new_u64(0),
        epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET,
    )?;
    let edges = sys::watch(Arc::new(edges), Interest::READABLE)?;
    loop {
        let mut guard = edges.readable().await?;
        let mut events = [const { std::mem::MaybeUninit::<epoll::Event>::uninit() }; 4];
        epoll::wait(guard.get_inner(), &mut events, Some(&Timespec::default()))?;
        guard.clear_ready();
        let mut state = [PollFd::new(port, PollFlags::OUT)];
        poll(&mut state, Some(&Timespec::default()))?;
        if !state[0].revents().contains(PollFlags::HUP) {
            return Ok(());
        }
    }
}

/// An open port whose host end is open, too. It ends when the host leaves, even if it is back by
/// then: what was under way is lost.
///
/// The descriptor is shared because it outlives the host's visits: closing it would throw away
/// what the next one has already sent.
pub(crate) struct Port(AsyncFd<Arc<OwnedFd>>);

impl Port {
    /// Uses a port that [`wait_for_host`] has returned for.
    pub(crate) fn new(port: Arc<OwnedFd>) -> io::Result<Self> {
        sys::watch(port, Interest::READABLE | Interest::WRITABLE).map(Self)
    }
}

impl AsyncRead for Port {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let read = guard.try_io(|port| {
                let mut parts: [_; PARTS] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
                let pages = buf.initialize_unfilled().chunks_mut(PAGE);
                for (part, page) in parts.iter_mut().zip(pages) {
                    *part = IoSliceMut::new(page);
                }
                Ok(rustix::io::readv(port.as_fd(), &mut parts)?)
            });
            match read {
                Ok(Ok(n)) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                // A hang-up stays in the readiness for good, so without this a host that left and
                // came back would have us spin.
                Err(_would_block) if guard.ready().is_read_closed() => return Poll::Ready(Ok(())),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|port| Ok(rustix::io::write(port.as_fd(), buf)?)) {
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) if guard.ready().is_write_closed() => {
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                }
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A port has no half-close; it ends when it is closed.
        Poll::Ready(Ok(()))
    }
}
