//! A stream on the channel, as tokio sees it.

use crate::wire::FRAME_PAYLOAD;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};

/// A reliable, ordered, flow-controlled stream. Shutting down the writing side leaves the reading
/// side open; dropping the stream resets it.
pub struct ChannelStream(Compat<yamux::Stream>);

impl ChannelStream {
    pub(crate) fn new(stream: yamux::Stream) -> Self {
        Self(stream.compat())
    }
}

impl std::fmt::Debug for ChannelStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChannelStream({})", self.0.get_ref().id())
    }
}

impl AsyncRead for ChannelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for ChannelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
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
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
