//! The guest channel without an agent: a runtime and a port as the agent has them, and streams that
//! lead to nothing but memory.

use crate::{DONE, PIECE, find_port};
use slicer_channel::ChannelStream;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// `O_NONBLOCK` of all our architectures.
const NONBLOCK: i32 = 0o4000;
const PAGE: usize = 4096;
/// Pages read at once.
const PAGES: usize = 16;

/// Serves the port of this name until the host leaves.
pub(crate) fn serve(name: &str) -> io::Result<()> {
    let port = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(NONBLOCK)
        .open(find_port(name)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let serving = slicer_channel::serve(Port::new(port)?, |stream| {
            // How a stream ends is its client's business.
            tokio::spawn(async { drop(answer(stream).await) });
        });
        serving.await.map_err(io::Error::other)
    })
}

/// Answers a stream's requests until there are no more.
async fn answer(mut stream: ChannelStream) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut request = [0; 9];
    while stream.read_exact(&mut request).await.is_ok() {
        let [operation, count @ ..] = request;
        let mut left = u64::from_be_bytes(count);
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let piece = &mut buffer[..most];
            let n = match operation {
                b'o' => {
                    stream.write_all(piece).await?;
                    most
                }
                b'i' | b'e' => stream.read(piece).await?,
                _ => return Err(io::Error::other("an operation that does not exist")),
            };
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if operation == b'e' {
                stream.write_all(&piece[..n]).await?;
                stream.flush().await?;
            }
            left -= n as u64;
        }
        if operation == b'i' {
            stream.write_all(DONE).await?;
        }
        stream.flush().await?;
    }
    Ok(())
}

/// A port whose host end is open.
struct Port(AsyncFd<File>);

impl Port {
    #[expect(unsafe_code, reason = "registering a descriptor is")]
    fn new(port: File) -> io::Result<Self> {
        // SAFETY: the file is owned by what it is registered with, and never replaced.
        Ok(Self(unsafe { AsyncFd::register(port) }?))
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
            // The driver gives one page at a time at the most.
            let read = guard.try_io(|port| {
                let pages = buf.initialize_unfilled().chunks_mut(PAGE).take(PAGES);
                let mut pages: Vec<_> = pages.map(IoSliceMut::new).collect();
                port.get_ref().read_vectored(&mut pages)
            });
            if let Ok(read) = read {
                buf.advance(read?);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(written) = guard.try_io(|port| port.get_ref().write(bytes)) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
