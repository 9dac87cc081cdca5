//! Running the `slicer` command, and others, as a user would.

use crate::{BOOT, bin_dir};
use std::path::Path;
use std::process::Stdio;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// What a command left.
#[derive(Debug, Clone)]
pub struct CliOutput {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it complained of.
    pub stderr: String,
}

impl CliOutput {
    /// Its output as text, when it succeeded.
    ///
    /// # Panics
    /// When it failed.
    pub fn text(&self) -> &str {
        assert_eq!(self.code, 0, "{self:?}");
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// Its output as JSON, when it succeeded.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.text()).unwrap()
    }
}

/// Runs `slicer` against the daemon at `url` with this input, or none.
pub(crate) async fn run(url: &str, dir: &Path, args: &[&str], stdin: Option<Vec<u8>>) -> CliOutput {
    let mut command = Command::new(bin_dir().join("slicer"));
    command
        .args(args)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", dir)
        .env("SLICER_URL", url)
        .current_dir(dir);
    run_command(command, stdin).await
}

/// Runs a command with this input, or none, to its end.
///
/// # Panics
/// When it is still there after [`BOOT`], or was killed.
pub async fn run_command(mut command: Command, stdin: Option<Vec<u8>>) -> CliOutput {
    command
        .stdin(if stdin.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let line = format!("{:?}", command.as_std());
    let mut child = command.spawn().unwrap();
    let pipe = child.stdin.take();
    let feed = async move {
        if let (Some(mut pipe), Some(bytes)) = (pipe, stdin) {
            // A command that has read enough hangs up.
            let _ = pipe.write_all(&bytes).await;
        }
    };
    let done = async { tokio::join!(feed, child.wait_with_output()).1.unwrap() };
    let Ok(output) = tokio::time::timeout(BOOT, done).await else {
        panic!("{line} hangs");
    };
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let Some(code) = output.status.code() else {
        panic!("{line}: {}: {stderr}", output.status);
    };
    CliOutput {
        code,
        stdout: output.stdout,
        stderr,
    }
}
