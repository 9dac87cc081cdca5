//! `slicer vm exec`.

use crate::connection::Connection;
use crate::error::{CliError, FAILURE};
use crate::{output, stdin};
use clap::Args;
use slicer_api::{AUTO_ID, ExecFrame, ExecRequest, Stdio};
use slicer_client::{ExecStream, output_bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

/// Run a command in a VM and exit with its exit code
///
/// Flags stand before the VM or between the VM and the command; from the command's first word on
/// everything belongs to the command. There is no terminal: stdin is passed on when it is a pipe
/// or a file.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  slicer vm exec sbox-1 uname -a
  slicer vm exec sbox-1 --uid 0 -- apt-get update
  slicer vm exec sbox-1 'cd /tmp && ls | wc -l'
  slicer vm exec --shell \"\" sbox-1 echo 'no shell: $HOME'
  tar c src | slicer vm exec sbox-1 --cwd '~/work' tar x")]
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
    /// Shell that runs the command; "" runs it without one
    #[arg(long, value_name = "SHELL", default_value = "/bin/bash")]
    shell: String,
    /// Hostname or friendly name
    vm: String,
    /// Command and its arguments
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

pub(super) fn directory(text: &str) -> Result<String, String> {
    if text.split('/').any(|part| part == "..") {
        return Err("it must not contain ..".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn assignment(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.is_empty() => Ok(text.to_owned()),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

impl Exec {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let vm = self.vm.clone();
        let request = self.into_request();
        let stream = match stdin::source() {
            // What was read from stdin can't be sent twice, so the name is settled before.
            Some(stdin) => {
                let hostname = client
                    .with_vm(&vm, async |h| Ok(client.node(h).await?.node.hostname))
                    .await?;
                client.exec(&hostname, &request, Some(stdin)).await?
            }
            None => {
                client
                    .with_vm(&vm, async |h| client.exec(h, &request, None).await)
                    .await?
            }
        };
        relay(stream).await
    }

    fn into_request(self) -> ExecRequest {
        let mut words = self.command;
        let (cmd, args, shell) = if self.shell.is_empty() {
            let args = words.split_off(words.len().min(1));
            (words.concat(), args, None)
        } else {
            (words.join(" "), Vec::new(), Some(self.shell))
        };
        ExecRequest {
            cmd,
            args,
            env: self.env,
            uid: self.uid.unwrap_or(AUTO_ID),
            gid: self.gid.unwrap_or(AUTO_ID),
            cwd: self.cwd,
            shell,
            stdio: Stdio::Base64,
            ..ExecRequest::default()
        }
    }
}

async fn relay(mut stream: ExecStream) -> Result<u8, CliError> {
    let mut stdout = tokio::io::stdout();
    let mut stderr = tokio::io::stderr();
    let mut last = None;
    while let Some(frame) = stream.next_frame().await {
        let mut frame = frame?;
        let (out, err) = (frame.stdout.take(), frame.stderr.take());
        copy(&mut stdout, out, frame.encoding).await?;
        copy(&mut stderr, err, frame.encoding).await?;
        last = Some(frame);
    }
    // A stream never ends without a last frame or an error.
    Ok(last.map_or(FAILURE, |frame| conclude(&frame)))
}

pub(super) async fn copy(
    to: &mut (impl AsyncWrite + Unpin),
    text: Option<String>,
    encoding: Option<Stdio>,
) -> Result<(), CliError> {
    let Some(text) = text else { return Ok(()) };
    let bytes = output_bytes(text, encoding)?;
    to.write_all(&bytes).await.map_err(CliError::Output)?;
    to.flush().await.map_err(CliError::Output)
}

pub(super) fn conclude(last: &ExecFrame) -> u8 {
    if let Some(error) = &last.error {
        output::error(error);
    }
    match u8::try_from(last.exit_code) {
        Ok(0) if last.error.is_some() => FAILURE,
        Ok(code) => code,
        Err(_) => u8::MAX,
    }
}

#[cfg(test)]
mod tests {
    use crate::args::{Cli, Command};
    use crate::commands::vm::Vm;
    use clap::Parser as _;
    use slicer_api::{AUTO_ID, ExecRequest};

    fn parse(words: &[&str]) -> Result<(String, ExecRequest), clap::error::ErrorKind> {
        let line = ["slicer", "vm", "exec"].iter().chain(words);
        let cli = Cli::try_parse_from(line).map_err(|e| e.kind())?;
        match cli.command {
            Command::Vm(Vm::Exec(exec)) => Ok((exec.vm.clone(), exec.into_request())),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn words_go_where_they_belong() {
        // Words, the script bash gets, the uid.
        let auto = AUTO_ID;
        for (words, cmd, uid) in [
            (&["vm", "uname", "-a"][..], "uname -a", auto),
            (&["vm", "--", "uname", "-a"], "uname -a", auto),
            (&["--uid", "1000", "vm", "--", "x"], "x", 1000),
            (&["vm", "--uid", "1000", "whoami"], "whoami", 1000),
            (&["vm", "--uid=7", "--", "whoami"], "whoami", 7),
            (&["--uid", "1", "vm", "id", "--uid", "2"], "id --uid 2", 1),
            (
                &["vm", "curl", "--url", "http://x"],
                "curl --url http://x",
                auto,
            ),
            (&["vm", "ls", "--help"], "ls --help", auto),
            (&["vm", "sh", "--", "-c"], "sh -- -c", auto),
            (&["vm", "--", "--", "x"], "-- x", auto),
            (&["vm", "--", "-v"], "-v", auto),
            (&["--", "vm", "ls", "-l"], "ls -l", auto),
            (&["vm", "cd /tmp && ls"], "cd /tmp && ls", auto),
            (&["vm", "echo", ""], "echo ", auto),
        ] {
            let (vm, request) = parse(words).unwrap();
            assert_eq!(
                (&*vm, &*request.cmd, request.uid),
                ("vm", cmd, uid),
                "{words:?}"
            );
            assert_eq!(request.shell.as_deref(), Some("/bin/bash"), "{words:?}");
            assert!(request.args.is_empty(), "{words:?}");
        }
    }

    #[test]
    fn without_a_shell_words_stay_apart() {
        for words in [
            &["vm", "--shell", "", "echo", "a b", "-n"][..],
            &["--shell=", "vm", "--", "echo", "a b", "-n"],
        ] {
            let (_, request) = parse(words).unwrap();
            assert_eq!(request.cmd, "echo");
            assert_eq!(request.args, ["a b", "-n"]);
            assert_eq!(request.shell, None);
        }
    }

    #[test]
    fn all_flags_are_passed_on() {
        let words = "--gid 5 --cwd ~/x --env A=b=c vm --env D= --shell /bin/sh true";
        let (_, request) = parse(&words.split(' ').collect::<Vec<_>>()).unwrap();
        assert_eq!(request.gid, 5);
        assert_eq!(request.cwd.as_deref(), Some("~/x"));
        assert_eq!(request.env, ["A=b=c", "D="]);
        assert_eq!(request.shell.as_deref(), Some("/bin/sh"));
    }

    #[test]
    fn nonsense_is_refused() {
        use clap::error::ErrorKind::{MissingRequiredArgument, UnknownArgument, ValueValidation};
        for (words, kind) in [
            (&["vm"][..], MissingRequiredArgument),
            (&["vm", "--"], MissingRequiredArgument),
            (&["vm", "--nonsense", "ls"], UnknownArgument),
            (&["vm", "--env", "NOVALUE", "ls"], ValueValidation),
            (&["vm", "--env", "=x", "ls"], ValueValidation),
            (&["vm", "--cwd", "/a/../b", "ls"], ValueValidation),
            (&["vm", "--uid", "root", "ls"], ValueValidation),
        ] {
            assert_eq!(parse(words).unwrap_err(), kind, "{words:?}");
        }
    }
}
