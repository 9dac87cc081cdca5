//! Looking for triggers below yamux.

use crate::ChannelError;
use crate::find::Finder;
use crate::wire::{HELLO_LEN, TRIGGER_LEN, Trigger, WRITE_LIMIT};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, BufWriter, ReadBuf};

const READ_CHUNK: usize = 64 * 1024;

/// A pipe that watches what it reads for a trigger. Once one is seen, reading fails until
/// [`Scanner::take_hello`] has taken what follows it.
pub(crate) struct Scanner<T> {
    io: BufWriter<T>,
    buf: Box<[u8]>,
    start: usize,
    end: usize,
    watch: Option<Finder>,
    /// The last bytes handed on, for a trigger that spans two reads.
    tail: Vec<u8>,
    triggered: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Scanner<T> {
    pub(crate) fn new(io: T) -> Self {
        Self {
            // One frame, header and payload, leaves in one write.
            io: BufWriter::with_capacity(WRITE_LIMIT, io),
            buf: vec![0; READ_CHUNK].into(),
            start: 0,
            end: 0,
            watch: None,
            tail: Vec::with_capacity(TRIGGER_LEN * 2),
            triggered: false,
        }
    }

    /// From now on, reading fails where this trigger is found.
    pub(crate) fn watch_for(&mut self, trigger: Trigger) {
        self.watch = Some(Finder::new(trigger));
        self.tail.clear();
    }

    /// Whether reading failed because the trigger was found.
    pub(crate) fn triggered(&self) -> bool {
        self.triggered
    }

    /// Discards everything up to one of `triggers`, unless one was found already, and returns what
    /// follows it. At most `limit` bytes are discarded.
    pub(crate) async fn take_hello(
        &mut self,
        triggers: &[Trigger],
        limit: Option<usize>,
    ) -> Result<[u8; HELLO_LEN - TRIGGER_LEN], ChannelError> {
        if !self.triggered {
            // The window that a trigger could fill, moved on byte by byte.
            let mut window: Vec<u8> = std::mem::take(&mut self.tail);
            let mut seen = 0usize;
            'found: loop {
                while self.start < self.end {
                    if window.len() == TRIGGER_LEN {
                        window.remove(0);
                    }
                    window.push(self.buf[self.start]);
                    self.start += 1;
                    seen += 1;
                    if triggers.iter().any(|t| window == t.0) {
                        break 'found;
                    }
                }
                if limit.is_some_and(|l| seen > l) {
                    return Err(ChannelError::Protocol(format!(
                        "no handshake in {seen} bytes"
                    )));
                }
                self.start = 0;
                self.end = self.io.read(&mut self.buf).await?;
                if self.end == 0 {
                    return Err(ChannelError::Closed);
                }
            }
        }
        self.triggered = false;
        self.watch = None;
        self.tail.clear();
        let mut rest = [0; HELLO_LEN - TRIGGER_LEN];
        self.read_exact(&mut rest)
            .await
            .map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => ChannelError::Closed,
                _ => ChannelError::Io(e),
            })?;
        Ok(rest)
    }

    /// Looks for the trigger in the bytes just read, `buf[start..end]`. When it is there, nothing
    /// up to its end is handed on.
    fn scan(&mut self) -> bool {
        let Some(trigger) = &self.watch else {
            return false;
        };
        let fresh = &self.buf[self.start..self.end];
        // A trigger that began in an earlier read ends within the first bytes of this one.
        let kept = self.tail.len();
        self.tail
            .extend_from_slice(&fresh[..fresh.len().min(TRIGGER_LEN - 1)]);
        if let Some(at) = trigger.find(&self.tail)
            && at + TRIGGER_LEN > kept
        {
            self.start += at + TRIGGER_LEN - kept;
            return true;
        }
        if let Some(at) = trigger.find(fresh) {
            self.start += at + TRIGGER_LEN;
            return true;
        }
        if fresh.len() >= TRIGGER_LEN {
            self.tail.clear();
            self.tail
                .extend_from_slice(&fresh[fresh.len() - (TRIGGER_LEN - 1)..]);
        } else {
            let excess = self.tail.len().saturating_sub(TRIGGER_LEN - 1);
            self.tail.drain(..excess);
        }
        false
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Scanner<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.triggered {
            return Poll::Ready(Err(io::Error::other("the host started a new session")));
        }
        if this.start == this.end {
            let mut buf = ReadBuf::new(&mut this.buf);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut buf))?;
            this.start = 0;
            this.end = buf.filled().len();
            if this.scan() {
                this.triggered = true;
                return Poll::Ready(Err(io::Error::other("the host started a new session")));
            }
        }
        let n = out.remaining().min(this.end - this.start);
        out.put_slice(&this.buf[this.start..this.start + n]);
        this.start += n;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Scanner<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    const SECRET: Trigger = Trigger([7, 7, 7, 1, 7, 7, 7, 2, 7, 7, 7, 3, 7, 7, 7, 4]);

    fn run<F: Future>(f: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(f)
    }

    /// Feeds `pieces` one read at a time; returns what was handed on and what followed a trigger.
    async fn feed(pieces: Vec<Vec<u8>>) -> (Vec<u8>, Option<Vec<u8>>) {
        let (near, mut far) = tokio::io::duplex(1);
        let mut s = Scanner::new(near);
        s.watch_for(SECRET);
        let writer = tokio::spawn(async move {
            for p in pieces {
                far.write_all(&p).await.unwrap();
            }
        });
        let mut out = vec![];
        let mut chunk = [0; 5];
        let result = loop {
            match s.read(&mut chunk).await {
                Ok(0) => break None,
                Ok(n) => out.extend_from_slice(&chunk[..n]),
                Err(_) => {
                    assert!(s.triggered());
                    break Some(s.take_hello(&[SECRET], None).await.unwrap().to_vec());
                }
            }
        };
        writer.await.unwrap();
        (out, result)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_trigger_is_found_at_any_offset(
            before in proptest::collection::vec(prop_oneof![Just(7u8), 0u8..9], 0..70),
            cut in 1usize..40,
        ) {
            let rest: Vec<u8> = (100..120).collect();
            let mut all = before.clone();
            all.extend_from_slice(&SECRET.0);
            all.extend_from_slice(&rest);
            let pieces = all.chunks(cut).map(<[u8]>::to_vec).collect();
            let (out, found) = run(feed(pieces));
            prop_assert_eq!(found, Some(rest));
            prop_assert!(out.len() < before.len() + TRIGGER_LEN);
            prop_assert!(out.starts_with(&before[..out.len().min(before.len())]));
        }

        #[test]
        fn other_bytes_pass_untouched(
            data in proptest::collection::vec(prop_oneof![Just(7u8), 0u8..3], 0..200),
            cut in 1usize..40,
        ) {
            prop_assume!(!data.windows(TRIGGER_LEN).any(|w| w == SECRET.0));
            let pieces = data.chunks(cut).map(<[u8]>::to_vec).collect();
            prop_assert_eq!(run(feed(pieces)), (data, None));
        }
    }

    #[test]
    fn garbage_before_a_hello_is_bounded() {
        run(async {
            let (near, mut far) = tokio::io::duplex(1 << 20);
            far.write_all(&vec![1; 200_000]).await.unwrap();
            let e = Scanner::new(near)
                .take_hello(&[SECRET], Some(100_000))
                .await
                .unwrap_err();
            assert!(matches!(e, ChannelError::Protocol(_)), "{e}");
        });
    }
}
