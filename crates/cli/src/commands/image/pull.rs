//! `slicer image pull`.

use super::arch::Arch;
use super::list::{short, size};
use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;
use indicatif::ProgressBar;
use slicer_api::{PullFrame, PullImage};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

/// Between two lines on how far it is, where there is no bar.
const LINE_PAUSE: Duration = Duration::from_secs(5);

/// Fetch an image from its registry, or what its tag leads to now
///
/// VMs that are there keep what they have; those that are launched from then on get the new one.
/// Interrupted, it goes on where it was when it is called again.
#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// The image's name, as in the configuration
    #[arg(value_name = "REF")]
    reference: String,
    /// Architecture of the guests [default: that of the host groups which have the image]
    #[arg(long)]
    arch: Option<Arch>,
    /// Speak plain HTTP to the registry
    #[arg(long)]
    insecure: bool,
    /// Print the daemon's last answer as JSON
    #[arg(long)]
    json: bool,
}

impl Pull {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let request = PullImage {
            reference: self.reference.clone(),
            arch: self.arch.map(|arch| arch.go_name().to_owned()),
            insecure: self.insecure.then_some(true),
        };
        let mut frames = client.pull_image(&request).await?;
        let mut shown = Shown::new(&self.reference);
        while let Some(frame) = frames.next_frame().await? {
            match frame {
                PullFrame::Progress {
                    received_bytes,
                    total_bytes,
                } => shown.progress(received_bytes, total_bytes),
                PullFrame::Retrying { message } => shown.retrying(&message),
                PullFrame::Error { error, .. } => {
                    shown.bar.finish_and_clear();
                    return Err(CliError::Pull(error));
                }
                PullFrame::Done {
                    ref name,
                    ref digest,
                    changed,
                    ..
                } => {
                    shown.bar.finish_and_clear();
                    let text = if self.json {
                        output::json(&frame)?
                    } else {
                        let name = output::one_line(name);
                        let digest = output::one_line(short(digest));
                        if changed {
                            format!("Image pulled: {name} ({digest})\n")
                        } else {
                            format!("Image is up to date: {name} ({digest})\n")
                        }
                    };
                    output::print(&text).await?;
                    return Ok(0);
                }
            }
        }
        let text = "the daemon ended before the pull did: call it again to go on";
        Err(CliError::Pull(text.to_owned()))
    }
}

/// What is seen of a pull: a bar on a terminal, else a line now and then.
struct Shown {
    name: String,
    bar: ProgressBar,
    is_terminal: bool,
    last: Instant,
}

impl Shown {
    fn new(name: &str) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self {
            name: name.to_owned(),
            bar: output::byte_bar(),
            is_terminal,
            last: Instant::now(),
        }
    }

    fn progress(&mut self, received: u64, total: u64) {
        if self.is_terminal && total > 0 {
            self.bar.set_length(total);
            self.bar.set_position(received);
        }
        if !self.is_terminal && self.last.elapsed() >= LINE_PAUSE {
            self.last = Instant::now();
            let (received, total) = (size(received), size(total));
            output::note(&format!("pulling {}: {received} of {total}", self.name));
        }
    }

    fn retrying(&self, why: &str) {
        let text = format!("pulling {}: {why}; trying again", self.name);
        self.bar.suspend(|| output::note(&text));
    }
}
