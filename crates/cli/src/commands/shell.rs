//! `slicer vm shell`.

use crate::connection::Connection;
use crate::error::{CliError, TERMINATED};
use crate::output;
use crate::terminal::{self, RawMode};
use clap::Args;
use slicer_api::{AUTO_ID, ShellFrame, ShellRequest};
use slicer_client::{ShellReceiver, ShellSender};
use std::io::IsTerminal as _;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

/// The key that leaves: Ctrl+].
const LEAVE: u8 = 0x1d;
/// The key that ends input: Ctrl+D.
const END: u8 = 0x04;
/// Time between two signs of life.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Bytes of input sent at once.
const READ_SIZE: usize = 16 << 10;

/// Open an interactive shell in a VM and exit with its exit code
///
/// Ctrl+] leaves at once. When stdin is no terminal, its text is typed, and the shell ends when
/// it has read all of it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  slicer vm shell sbox-1
  slicer vm shell --uid 0 --cwd /etc sbox-1
  slicer vm shell --bootstrap 'cd ~/work && git status' sbox-1")]
pub(crate) struct Shell {
    /// Hostname or friendly name
    vm: String,
    /// Run as this user id; the image's default user unless given
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,
    /// Run as this group id; the user's own unless given
    #[arg(long, value_name = "GID")]
    gid: Option<u32>,
    /// Working directory in the VM; ~ and ~/DIR are the user's home
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Shell to run; the user's login shell unless given
    #[arg(long = "shell", value_name = "SHELL")]
    program: Option<String>,
    /// Command to type once connected
    #[arg(long, value_name = "COMMAND")]
    bootstrap: Option<String>,
}

impl Shell {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let request = ShellRequest {
            uid: self.uid.unwrap_or(AUTO_ID),
            gid: self.gid.unwrap_or(AUTO_ID),
            shell: self.program,
            cwd: self.cwd,
        };
        let (mut sender, mut receiver) = client
            .with_vm(&self.vm, async |h| client.shell(h, &request).await)
            .await?;
        let interactive = std::io::stdin().is_terminal();
        if interactive {
            output::note(&format!("connected to {}, press Ctrl+] to leave", self.vm));
        }
        send_size(&mut sender).await?;
        if let Some(command) = self.bootstrap {
            type_text(&mut sender, format!("{command}\r").as_bytes()).await?;
        }
        let mut terminated = signal(SignalKind::terminate()).map_err(CliError::Terminal)?;
        let mut hung_up = signal(SignalKind::hangup()).map_err(CliError::Terminal)?;
        // Restored when this function is left, in whatever way.
        let _raw = RawMode::enter().map_err(CliError::Terminal)?;
        let left = {
            let typing = type_in(&mut sender, interactive);
            let showing = show(&mut receiver);
            tokio::pin!(typing, showing);
            tokio::select! {
                code = &mut showing => return code,
                left = &mut typing => left,
                _ = terminated.recv() => Ok(TERMINATED),
                _ = hung_up.recv() => Ok(TERMINATED),
            }
        };
        // A shell that has ended takes no more; how it ended is still to be read.
        if left.is_err() {
            return show(&mut receiver).await;
        }
        let _ =
            tokio::time::timeout(Duration::from_secs(1), sender.send(&ShellFrame::Shutdown)).await;
        left
    }
}

async fn send_size(sender: &mut ShellSender) -> Result<(), CliError> {
    if let Some((columns, rows)) = terminal::size() {
        let frame = ShellFrame::WindowSize {
            columns: columns.into(),
            rows: rows.into(),
        };
        sender.send(&frame).await?;
    }
    Ok(())
}

async fn type_text(sender: &mut ShellSender, text: &[u8]) -> Result<(), CliError> {
    for piece in text.chunks(READ_SIZE) {
        sender.send(&ShellFrame::Data(piece)).await?;
    }
    Ok(())
}

/// Sends what is typed until the user leaves.
async fn type_in(sender: &mut ShellSender, interactive: bool) -> Result<u8, CliError> {
    let mut resized = signal(SignalKind::window_change()).map_err(CliError::Terminal)?;
    let mut beat = tokio::time::interval(HEARTBEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; READ_SIZE];
    let mut open = true;
    let mut last = b'\n';
    loop {
        tokio::select! {
            read = stdin.read(&mut buffer), if open => {
                let typed = &buffer[..read.map_err(CliError::Terminal)?];
                let leave = typed.iter().position(|b| *b == LEAVE).filter(|_| interactive);
                let typed = &typed[..leave.unwrap_or(typed.len())];
                type_text(sender, typed).await?;
                if leave.is_some() {
                    return Ok(0);
                }
                if let Some(byte) = typed.last() {
                    last = *byte;
                } else {
                    open = false;
                    // It ends input at the beginning of a line only.
                    let end: &[u8] = if last == b'\n' { &[END] } else { &[b'\n', END] };
                    type_text(sender, end).await?;
                }
            }
            _ = resized.recv() => send_size(sender).await?,
            _ = beat.tick() => sender.send(&ShellFrame::Heartbeat).await?,
        }
    }
}

/// Shows what the shell says until it ends; gives back its exit code.
async fn show(receiver: &mut ShellReceiver) -> Result<u8, CliError> {
    let mut stdout = tokio::io::stdout();
    while let Some(message) = receiver.next().await? {
        match ShellFrame::decode(&message) {
            Some(ShellFrame::Data(bytes)) => {
                stdout.write_all(bytes).await.map_err(CliError::Output)?;
                stdout.flush().await.map_err(CliError::Output)?;
            }
            Some(ShellFrame::SessionClose(code)) => {
                return Ok(code.map_or(0, |c| u8::try_from(c).unwrap_or(u8::MAX)));
            }
            Some(ShellFrame::Shutdown) => return Ok(0),
            _ => {}
        }
    }
    Err(CliError::ShellLost)
}
