//! Bytes to and from what answers in the guest, see `xtask/guest`.

use anyhow::{Context, Result, ensure};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes read or written at once.
const PIECE: usize = 256 << 10;

/// A stream to it: the bare port, one of the guest channel, or a forwarded connection.
pub(super) struct Pipe<S>(pub(super) S);

impl<S: AsyncRead + AsyncWrite + Unpin> Pipe<S> {
    /// Seconds until the guest has taken `bytes` and said so.
    pub(super) async fn give(&mut self, bytes: u64) -> Result<f64> {
        self.give_to(b'i', bytes).await
    }

    /// The same, for a guest that writes them into a file.
    pub(super) async fn give_file(&mut self, bytes: u64) -> Result<f64> {
        self.give_to(b'w', bytes).await
    }

    async fn give_to(&mut self, operation: u8, bytes: u64) -> Result<f64> {
        let piece = vec![0x5a; PIECE];
        let start = Instant::now();
        self.ask(operation, bytes).await?;
        let mut left = bytes;
        while left > 0 {
            let n = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            self.0.write_all(&piece[..n]).await?;
            left -= n as u64;
        }
        let mut done = [0];
        self.0
            .read_exact(&mut done)
            .await
            .context("the guest went away")?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Seconds until `bytes` have come from the guest.
    pub(super) async fn take(&mut self, bytes: u64) -> Result<f64> {
        let mut piece = vec![0; PIECE];
        let start = Instant::now();
        self.ask(b'o', bytes).await?;
        let mut left = bytes;
        while left > 0 {
            let n = self.0.read(&mut piece).await?;
            ensure!(n > 0, "the guest went away");
            left = left.saturating_sub(n as u64);
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// Seconds a byte takes to the guest and back, each of so many.
    pub(super) async fn echo(&mut self, rounds: u32) -> Result<Vec<f64>> {
        self.ask(b'e', u64::from(rounds)).await?;
        let mut times = Vec::new();
        for _ in 0..rounds {
            let start = Instant::now();
            let mut byte = [7];
            self.0.write_all(&byte).await?;
            self.0.flush().await?;
            self.0
                .read_exact(&mut byte)
                .await
                .context("the guest went away")?;
            times.push(start.elapsed().as_secs_f64());
        }
        Ok(times)
    }

    async fn ask(&mut self, operation: u8, count: u64) -> Result<()> {
        let mut request = [operation; 9];
        request[1..].copy_from_slice(&count.to_be_bytes());
        self.0.write_all(&request).await?;
        Ok(self.0.flush().await?)
    }
}
