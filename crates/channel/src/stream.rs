//! A stream on the channel, as tokio sees it.

use crate::wire::FRAME_PAYLOAD;
use futures_util::Stream as _;
use futures_util::io::AsyncWrite as _;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A reliable, ordered, flow-controlled stream. Shutting down the writing side leaves the reading
/// side open. Dropping the stream resets it, unless its writing side was shut down: then the peer
/// learns nothing, and is blocked once it has used up its credit.
pub struct ChannelStream {
    inner: yamux::Stream,
    /// What came in a frame, and how much of it has been read.
    packet: Option<(yamux::Packet, usize)>,
}

impl ChannelStream {
    pub(crate) fn new(stream: yamux::Stream) -> Self {
        Self {
            inner: stream,
            packet: None,
        }
    }
}

impl std::fmt::Debug for ChannelStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChannelStream({})", self.inner.id())
    }
}

impl AsyncRead for ChannelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        // Packet by packet: what yamux would read into has to be cleared first.
        while buf.remaining() > 0 {
            let Some((packet, read)) = &mut self.packet else {
                match Pin::new(&mut self.inner).poll_next(cx) {
                    Poll::Ready(Some(packet)) => self.packet = Some((packet?, 0)),
                    Poll::Pending if buf.filled().len() == before => return Poll::Pending,
                    Poll::Ready(None) | Poll::Pending => break,
                }
                continue;
            };
            let rest = &packet.as_ref()[*read..];
            let n = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..n]);
            *read += n;
            if n == rest.len() {
                self.packet = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ChannelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let filled = || bufs.iter().map(|b| &**b).filter(|b| !b.is_empty());
        let first = filled().next().unwrap_or_default();
        let total: usize = filled().map(<[u8]>::len).sum();
        if first.len() >= total.min(FRAME_PAYLOAD) {
            return self.poll_write(cx, first);
        }
        // A frame costs more than a copy of the little that goes into it.
        let mut frame = Vec::with_capacity(total.min(FRAME_PAYLOAD));
        for buf in filled() {
            let room = FRAME_PAYLOAD - frame.len();
            frame.extend_from_slice(&buf[..buf.len().min(room)]);
        }
        self.poll_write(cx, &frame)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}
