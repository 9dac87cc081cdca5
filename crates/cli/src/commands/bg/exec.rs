//! `slicer vm bg exec`.

use super::logs::follow;
use crate::commands::exec::{assignment, directory};
use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;
use slicer_api::{AUTO_ID, ExecRequest, LogsRequest, Stdio};

/// Start a command in the background of a VM
///
/// Prints the id it is known by. There is no shell unless --shell names one.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  slicer vm bg exec sbox-1 -- make -j4
  slicer vm bg exec sbox-1 -s /bin/bash -- 'cd src && make | tee log'
  slicer vm bg exec sbox-1 -c python3 -a server.py -a --port=8000
  slicer vm bg exec sbox-1 --follow -- npm test")]
pub(crate) struct Exec {
    /// Run as this user id; the image's default user unless given
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,
    /// Run as this group id; the user's own unless given
    #[arg(long, value_name = "GID")]
    gid: Option<u32>,
    /// Working directory in the VM; ~ and ~/DIR are the user's home
    #[arg(long, value_name = "DIR", value_parser = directory)]
    cwd: Option<String>,
    /// Environment variable; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment)]
    env: Vec<String>,
    /// Shell that runs the words as one script
    #[arg(long, short, value_name = "SHELL", default_value = "")]
    shell: String,
    /// The program, in place of words
    #[arg(long, short, value_name = "PROGRAM", conflicts_with_all = ["command", "shell"])]
    cmd: Option<String>,
    /// An argument of --cmd; may be repeated
    #[arg(
        long = "arg",
        short = 'a',
        value_name = "ARG",
        requires = "cmd",
        conflicts_with = "command",
        allow_hyphen_values = true
    )]
    args: Vec<String>,
    /// How much of its output is kept, such as 512K or 4M; 1M unless given
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    ring_bytes: Option<u64>,
    /// Show its output until it ends, and exit with its exit code
    #[arg(long)]
    follow: bool,
    /// Print the daemon's answer as JSON
    #[arg(long, conflicts_with = "follow")]
    json: bool,
    /// Hostname or friendly name
    vm: String,
    /// Command and its arguments
    #[arg(required_unless_present = "cmd", trailing_var_arg = true)]
    command: Vec<String>,
}

/// A number of bytes, or of KiB, MiB or GiB.
fn bytes(text: &str) -> Result<u64, String> {
    let (number, shift) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .filter(|n| *n > 0)
        .ok_or_else(|| "expected a size such as 512K or 4M".to_owned())
}

impl Exec {
    pub(super) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let (vm, show, json) = (self.vm.clone(), self.follow, self.json);
        let request = self.into_request()?;
        let started = client
            .with_vm(&vm, async |vm| client.start_background(vm, &request).await)
            .await?;
        if json {
            output::print(&output::json(&started)?).await?;
            return Ok(0);
        }
        let line = format!(
            "exec_id={} pid={} ring_bytes={}",
            started.exec_id, started.pid, started.ring_bytes
        );
        if !show {
            output::print(&format!("{line}\n")).await?;
            return Ok(0);
        }
        // What the command writes is all that stdout is for then.
        output::note(&line);
        let request = LogsRequest {
            follow: true,
            from_id: 0,
        };
        let stream = client
            .with_vm(&vm, async |vm| {
                client.background_logs(vm, &started.exec_id, request).await
            })
            .await?;
        follow(stream).await
    }

    fn into_request(self) -> Result<ExecRequest, CliError> {
        let mut words = self.command;
        let (cmd, args, shell) = match self.cmd {
            Some(cmd) => (cmd, self.args, None),
            None if !self.shell.is_empty() => (words.join(" "), Vec::new(), Some(self.shell)),
            None => {
                if let [word] = &*words
                    && word.contains(' ')
                {
                    return Err(CliError::Usage(format!(
                        "{word:?} is one word, so it would be the name of a program: use \
                         --shell /bin/bash for a script, or separate words"
                    )));
                }
                let args = words.split_off(words.len().min(1));
                (words.concat(), args, None)
            }
        };
        Ok(ExecRequest {
            cmd,
            args,
            env: self.env,
            uid: self.uid.unwrap_or(AUTO_ID),
            gid: self.gid.unwrap_or(AUTO_ID),
            cwd: self.cwd,
            shell,
            stdio: Stdio::Base64,
            ring_bytes: self.ring_bytes.unwrap_or(0),
            ..ExecRequest::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::args::{Cli, Command};
    use crate::commands::bg::Bg;
    use clap::Parser as _;
    use slicer_api::ExecRequest;

    fn parse(words: &[&str]) -> Option<ExecRequest> {
        let line = ["slicer", "bg", "exec"].iter().chain(words);
        match Cli::try_parse_from(line).ok()?.command {
            Command::Bg(Bg::Exec(exec)) => exec.into_request().ok(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_three_forms() {
        for (words, cmd, args, shell) in [
            (&["vm", "--", "sleep", "9"][..], "sleep", &["9"][..], None),
            (&["vm", "ls", "-l", "a b"], "ls", &["-l", "a b"], None),
            (
                &["vm", "-c", "x y", "-a", "-z", "-a", "1"],
                "x y",
                &["-z", "1"],
                None,
            ),
            (
                &["vm", "-s", "/bin/bash", "--", "a | b", "c"],
                "a | b c",
                &[],
                Some("/bin/bash"),
            ),
        ] {
            let request = parse(words).unwrap();
            assert_eq!(
                (&*request.cmd, request.shell.as_deref()),
                (cmd, shell),
                "{words:?}"
            );
            assert_eq!(request.args, args, "{words:?}");
        }
        let request = parse(&["--ring-bytes", "4M", "vm", "x"]).unwrap();
        assert_eq!(request.ring_bytes, 4 << 20);
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [
            &["vm"][..],
            &["vm", "one word"],
            &["vm", "-c", "x", "--", "y"],
            &["vm", "-c", "x", "-s", "/bin/sh"],
            &["vm", "-a", "x", "--", "y"],
            &["vm", "--ring-bytes", "0", "x"],
            &["vm", "--ring-bytes", "99999999999G", "x"],
            &["vm", "--ring-bytes", "4é", "x"],
            &["vm", "--json", "--follow", "x"],
        ] {
            assert_eq!(parse(words), None, "{words:?}");
        }
    }
}
