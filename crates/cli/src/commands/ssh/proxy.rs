//! `slicer ssh-proxy`.

use super::{SUFFIX, SshError};
use crate::connection::Connection;
use crate::error::CliError;
use clap::Args;
use slicer_api::ForwardTarget;
use slicer_client::{Client, ClientError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader, copy_buf, split};
use tokio::time::{Instant, sleep};

/// A VM is ready before all of its services are: so long after its kernel's start its SSH server
/// may still be about to listen.
const BOOT_TIME: Duration = Duration::from_mins(1);
/// How long a VM that is starting is waited for.
const START_TIME: Duration = Duration::from_mins(2);
/// Time between two attempts.
const PAUSE: Duration = Duration::from_millis(250);
/// What is read ahead in each direction, bytes.
const AHEAD: usize = 64 << 10;

/// Connect stdin and stdout to a VM's SSH server, for ssh's ProxyCommand
///
/// The connection is made in the VM, through the daemon: it needs no network.
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct SshProxy {
    /// Hostname or friendly name, with or without .slicer behind it
    vm: String,
    /// The server's port
    #[arg(default_value_t = 22)]
    port: u16,
}

impl SshProxy {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let vm = self.vm.strip_suffix(SUFFIX).unwrap_or(&self.vm);
        let guest = self.connect(&client, vm).await?;
        relay(guest).await.map_err(CliError::Output)?;
        Ok(0)
    }

    async fn connect(
        &self,
        client: &Client,
        vm: &str,
    ) -> Result<impl AsyncRead + AsyncWrite + use<>, CliError> {
        let target = ForwardTarget::Tcp {
            host: "127.0.0.1".to_owned(),
            port: self.port,
        };
        let until = Instant::now() + START_TIME;
        loop {
            let connected = client
                .with_vm(vm, async |h| client.forward(h, &target).await)
                .await;
            let source = match connected {
                Ok(stream) => return Ok(stream),
                Err(e) => e,
            };
            let starting = match source.status() {
                // Its agent is not there yet.
                Some(503) => true,
                Some(502) => is_booting(client, vm).await?,
                _ => false,
            };
            if starting && Instant::now() < until {
                sleep(PAUSE).await;
                continue;
            }
            return Err(match source.status() {
                Some(502) => CliError::Ssh(SshError::NoServer {
                    vm: vm.to_owned(),
                    port: self.port,
                    source,
                }),
                _ => source.into(),
            });
        }
    }
}

async fn is_booting(client: &Client, vm: &str) -> Result<bool, ClientError> {
    let health = client.with_vm(vm, async |h| client.health(h).await).await?;
    Ok(Duration::from_nanos(health.system_uptime) < BOOT_TIME)
}

/// Passes bytes both ways until the server has ended what it sends: after that ssh has nothing to
/// wait for.
async fn relay(guest: impl AsyncRead + AsyncWrite) -> std::io::Result<()> {
    let (from_guest, mut to_guest) = split(guest);
    let up = async {
        let mut stdin = BufReader::with_capacity(AHEAD, tokio::io::stdin());
        copy_buf(&mut stdin, &mut to_guest).await?;
        to_guest.shutdown().await
    };
    let down = async {
        let mut stdout = tokio::io::stdout();
        let mut from_guest = BufReader::with_capacity(AHEAD, from_guest);
        copy_buf(&mut from_guest, &mut stdout).await?;
        stdout.flush().await
    };
    tokio::pin!(down);
    tokio::select! {
        done = &mut down => done,
        done = up => {
            done?;
            down.await
        }
    }
}
