//! `slicer vm bg logs`.

use super::Target;
use crate::commands::exec::{conclude, copy};
use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;
use slicer_api::{FrameType, LogsRequest};
use slicer_client::LogStream;

/// Show what a background command wrote, as far as it is kept
#[derive(Debug, Args)]
pub(crate) struct Logs {
    #[command(flatten)]
    target: Target,
    /// Go on until the command ends
    #[arg(long, short)]
    follow: bool,
    /// Begin with this frame; the first is 1
    #[arg(long, value_name = "N", default_value_t = 0)]
    from_id: u64,
}

impl Logs {
    pub(super) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let request = LogsRequest {
            follow: self.follow,
            from_id: self.from_id,
        };
        let stream = client
            .with_vm(&self.target.vm, async |vm| {
                client.background_logs(vm, &self.target.id, request).await
            })
            .await?;
        // Looking at a log that could be read is a success, however the command ended.
        follow(stream).await.map(|_| 0)
    }
}

/// Passes on what the command writes, and gives back its exit code if it was seen to end.
pub(super) async fn follow(mut stream: LogStream) -> Result<u8, CliError> {
    let mut stdout = tokio::io::stdout();
    let mut stderr = tokio::io::stderr();
    let mut code = 0;
    while let Some(frame) = stream.next_frame().await {
        let told = frame?;
        let mut frame = told.frame;
        match frame.kind {
            Some(FrameType::Gap) => {
                let text = told.message.unwrap_or_default();
                let bytes = told.dropped_bytes.unwrap_or_default();
                output::note(&format!("{bytes} bytes are missing here: {text}"));
            }
            Some(FrameType::Exit) => code = conclude(&frame),
            _ => {
                // Some agents send no field of the stream's name.
                let either = frame.stdout.take().or(told.data);
                let (out, err) = match frame.kind {
                    Some(FrameType::Stderr) => (None, frame.stderr.take().or(either)),
                    _ => (either, None),
                };
                copy(&mut stdout, out, frame.encoding).await?;
                copy(&mut stderr, err, frame.encoding).await?;
            }
        }
    }
    Ok(code)
}
