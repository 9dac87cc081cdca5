//! The guest's half.

use crate::scan::Scanner;
use crate::wire::{self, Trigger};
use crate::{ChannelError, ChannelStream, yamux_config};
use std::future::poll_fn;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::compat::TokioAsyncReadCompatExt;
use tracing::debug;

/// Keeps a channel on `io` for as long as it lives: waits for the host's hello, then hands every
/// stream the host opens to `on_stream`. When the host says hello anew, all streams of before are
/// dropped and it starts over.
///
/// # Errors
/// Returns when `io` fails or ends, or when the host speaks another version; never otherwise.
pub async fn serve<T>(io: T, mut on_stream: impl FnMut(ChannelStream)) -> Result<(), ChannelError>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut pipe = Scanner::new(io);
    let mut known: Option<Trigger> = None;
    loop {
        // A guest that lost its session to garbage may be greeted by the well-known hello, too:
        // there is nothing left that it could disturb.
        let mut triggers = vec![wire::HELLO];
        triggers.extend(known);
        let (version, next) = wire::decode_rest(pipe.take_hello(&triggers, None).await?);
        pipe.write_all(&wire::encode(wire::REPLY, next)).await?;
        pipe.flush().await?;
        if version != wire::VERSION {
            return Err(ChannelError::Version {
                ours: wire::VERSION,
                theirs: version,
            });
        }
        pipe.watch_for(next);
        known = Some(next);
        let mut session =
            yamux::Connection::new((&mut pipe).compat(), yamux_config(), yamux::Mode::Server);
        let end = loop {
            match poll_fn(|cx| session.poll_next_inbound(cx)).await {
                Some(Ok(stream)) => on_stream(ChannelStream::new(stream)),
                Some(Err(e)) => break Some(e),
                None => break None,
            }
        };
        drop(session);
        match end {
            _ if pipe.triggered() => debug!("the host started a new session"),
            Some(yamux::ConnectionError::Io(e)) => return Err(ChannelError::Io(e)),
            Some(yamux::ConnectionError::Closed) | None => return Err(ChannelError::Closed),
            Some(e) => debug!("session lost, waiting for the host: {e}"),
        }
    }
}
