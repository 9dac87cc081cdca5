//! Requests that the client has no method for.

use anyhow::{Context, Result};
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The most that is read of an answer.
const MOST: u64 = 1 << 20;

/// Asks the daemon; gives the answer's status and what comes after its head.
pub(crate) async fn ask(
    socket: &Path,
    method: &str,
    path: &str,
    body: &str,
) -> Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket)
        .await
        .with_context(|| format!("cannot connect to {}", socket.display()))?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(MOST).read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.with_context(|| format!("{method} {path} was not answered by HTTP"))?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
    Ok((status, body.unwrap_or_default().to_owned()))
}
