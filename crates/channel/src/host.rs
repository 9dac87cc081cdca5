//! The host's half.

use crate::scan::Scanner;
use crate::wire::{self, Trigger};
use crate::{ChannelError, ChannelStream, MAX_STREAMS, yamux_config};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

/// Bytes of a former session that may precede the guest's reply.
const STALE_LIMIT: usize = 64 << 20;

type Opened = Result<ChannelStream, ChannelError>;

/// Opens streams to the guest. Cheap to clone; works for as long as its [`Driver`] is polled.
#[derive(Debug, Clone)]
pub struct Mux {
    requests: mpsc::Sender<oneshot::Sender<Opened>>,
    resume: Trigger,
}

/// The task that moves the channel's bytes. Whoever made the channel polls it; it ends, and all
/// streams with it, when the pipe does or when it is dropped.
pub struct Driver<T> {
    session: yamux::Connection<Compat<Scanner<T>>>,
    requests: mpsc::Receiver<oneshot::Sender<Opened>>,
    waiting: Option<oneshot::Sender<Opened>>,
}

/// Says hello on `io` and waits for the guest's reply, as long as it takes. `trigger` is
/// [`wire::HELLO`] for a guest that just started, [`Mux::resume_trigger`] of the former session
/// for one that was saved with it.
///
/// # Errors
/// When the pipe fails or ends, or the guest answers in another version.
pub async fn connect<T>(io: T, trigger: Trigger) -> Result<(Mux, Driver<T>), ChannelError>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let next = Trigger::random()?;
    let mut pipe = Scanner::new(io);
    pipe.write_all(&wire::encode(trigger, next)).await?;
    pipe.flush().await?;
    loop {
        let rest = pipe.take_hello(&[wire::REPLY], Some(STALE_LIMIT)).await?;
        let (version, echo) = wire::decode_rest(rest);
        if echo != next {
            continue; // the reply to an earlier hello
        }
        if version != wire::VERSION {
            return Err(ChannelError::Version {
                ours: wire::VERSION,
                theirs: version,
            });
        }
        break;
    }
    let (tx, rx) = mpsc::channel(16);
    let session = yamux::Connection::new(pipe.compat(), yamux_config(), yamux::Mode::Client);
    Ok((
        Mux {
            requests: tx,
            resume: next,
        },
        Driver {
            session,
            requests: rx,
            waiting: None,
        },
    ))
}

impl Mux {
    /// Opens a stream. The guest learns of it with the first byte written to it.
    ///
    /// # Errors
    /// [`ChannelError::Closed`] when the channel is gone, [`ChannelError::TooManyStreams`].
    pub async fn open(&self) -> Result<ChannelStream, ChannelError> {
        let (tx, rx) = oneshot::channel();
        self.requests
            .send(tx)
            .await
            .map_err(|_| ChannelError::Closed)?;
        rx.await.map_err(|_| ChannelError::Closed)?
    }

    /// The trigger with which this guest, saved now, starts its next session.
    #[must_use]
    pub fn resume_trigger(&self) -> Trigger {
        self.resume
    }

    /// Completes when the channel is gone.
    pub async fn closed(&self) {
        self.requests.closed().await;
    }
}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Driver<T> {
    /// Moves bytes until the channel ends.
    pub async fn run(mut self) -> ChannelError {
        poll_fn(|cx| self.poll_run(cx)).await
    }

    fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<ChannelError> {
        // The session is polled last, so that it moves what the requests before it produced.
        loop {
            if self.waiting.is_none() {
                match self.requests.poll_recv(cx) {
                    Poll::Ready(Some(tx)) => self.waiting = Some(tx),
                    Poll::Ready(None) | Poll::Pending => break,
                }
            }
            let opened = match self.session.poll_new_outbound(cx) {
                Poll::Ready(Ok(stream)) => Ok(ChannelStream::new(stream)),
                Poll::Ready(Err(yamux::ConnectionError::TooManyStreams)) => {
                    Err(ChannelError::TooManyStreams(MAX_STREAMS))
                }
                Poll::Ready(Err(e)) => return Poll::Ready(e.into()),
                Poll::Pending => break,
            };
            if let Some(tx) = self.waiting.take() {
                // A caller that has given up drops the stream, which resets it.
                drop(tx.send(opened));
            }
        }
        loop {
            match self.session.poll_next_inbound(cx) {
                // A guest has no business opening streams.
                Poll::Ready(Some(Ok(stream))) => drop(stream),
                Poll::Ready(Some(Err(e))) => return Poll::Ready(e.into()),
                Poll::Ready(None) => return Poll::Ready(ChannelError::Closed),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Future for Driver<T> {
    type Output = ChannelError;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<ChannelError> {
        self.get_mut().poll_run(cx)
    }
}

impl From<yamux::ConnectionError> for ChannelError {
    fn from(e: yamux::ConnectionError) -> Self {
        match e {
            yamux::ConnectionError::Io(e)
            | yamux::ConnectionError::Decode(yamux::FrameDecodeError::Io(e)) => Self::Io(e),
            yamux::ConnectionError::Closed => Self::Closed,
            e => Self::Protocol(e.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve;
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};
    use tokio::sync::Mutex;

    /// A guest that echoes every stream.
    fn echo_guest(io: DuplexStream) -> tokio::task::JoinHandle<Result<(), ChannelError>> {
        tokio::spawn(serve(io, |stream| {
            tokio::spawn(async move {
                let (mut r, mut w) = tokio::io::split(stream);
                drop(tokio::io::copy(&mut r, &mut w).await);
                drop(w.shutdown().await);
            });
        }))
    }

    async fn echoes(mux: &Mux, data: &[u8]) {
        let mut s = mux.open().await.unwrap();
        s.write_all(data).await.unwrap();
        s.shutdown().await.unwrap();
        let mut back = vec![];
        s.read_to_end(&mut back).await.unwrap();
        assert_eq!(back, data);
    }

    #[tokio::test]
    async fn streams_carry_bytes_both_ways_and_half_close() {
        let (host, guest) = duplex(4096);
        let guest = echo_guest(guest);
        let (mux, driver) = connect(host, wire::HELLO).await.unwrap();
        let driver = tokio::spawn(driver);
        for n in [1, 100, 300_000] {
            echoes(&mux, &vec![42; n]).await;
        }
        driver.abort();
        assert!(matches!(
            guest.await.unwrap(),
            Err(ChannelError::Closed | ChannelError::Io(_))
        ));
        assert!(mux.open().await.is_err());
    }

    #[tokio::test]
    async fn a_stream_nobody_reads_does_not_stall_the_others() {
        let (host, guest) = duplex(4096);
        echo_guest(guest);
        let (mux, driver) = connect(host, wire::HELLO).await.unwrap();
        tokio::spawn(driver);
        let mut stuck = mux.open().await.unwrap();
        // Writes until flow control stops it: the echo fills both directions' windows.
        let full = tokio::time::timeout(Duration::from_millis(300), async {
            loop {
                stuck.write_all(&vec![0; 65536]).await.unwrap();
            }
        });
        full.await.unwrap_err();
        tokio::time::timeout(Duration::from_secs(20), echoes(&mux, &vec![1; 100_000]))
            .await
            .unwrap();
    }

    /// Connects a host to a guest's pipe until it is aborted; the pipe outlives it.
    fn attach(pipe: &Arc<Mutex<DuplexStream>>) -> (DuplexStream, tokio::task::JoinHandle<()>) {
        let (near, mut far) = duplex(1000);
        let pipe = pipe.clone();
        let relay = tokio::spawn(async move {
            let mut pipe = pipe.lock().await;
            drop(tokio::io::copy_bidirectional(&mut far, &mut *pipe).await);
        });
        (near, relay)
    }

    #[tokio::test]
    async fn a_guest_is_found_again_after_bytes_were_lost() {
        let (pipe, guest) = duplex(1000);
        let guest = echo_guest(guest);
        let pipe = Arc::new(Mutex::new(pipe));

        let (near, relay) = attach(&pipe);
        let (mux, driver) = connect(near, wire::HELLO).await.unwrap();
        let driver = tokio::spawn(driver);
        let resume = mux.resume_trigger();
        // Cut off in the middle of a large echo: frames are torn in both directions.
        let mut torn = mux.open().await.unwrap();
        torn.write_all(&vec![9; 20_000]).await.unwrap();
        relay.abort();
        assert!(relay.await.unwrap_err().is_cancelled());
        driver.abort();

        let (near, _relay) = attach(&pipe);
        let (mux, driver) = connect(near, resume).await.unwrap();
        tokio::spawn(driver);
        echoes(&mux, &vec![3; 50_000]).await;
        assert_ne!(mux.resume_trigger(), resume);
        guest.abort();
    }
}
