//! `slicer ssh-config`.

use super::include::Include;
use super::{SUFFIX, SshError};
use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;
use slicer_api::Endpoint;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Who `ssh VM` logs in as: the default user of the images that come with slicer.
const USER: &str = "ubuntu";

/// Print what has ssh, scp, rsync and editors reach VMs by their names
///
/// With it, `ssh sbox-1` works, and `ssh NAME.slicer` for a friendly name. The connection goes
/// through the daemon to the SSH server in the VM, whatever network the VM has. The VM must know
/// your public key: `ssh_keys` in the configuration, or `slicer vm launch --ssh-key`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  slicer ssh-config --install && ssh sbox-1
  slicer ssh-config > vms && ssh -F vms sbox-1
  slicer ssh-config --uninstall")]
pub(crate) struct SshConfig {
    /// Write it to ~/.slicer/ssh_config and have ~/.ssh/config include that; again after a change
    /// of the daemon's host groups
    #[arg(long)]
    install: bool,
    /// Undo that
    #[arg(long, conflicts_with = "install")]
    uninstall: bool,
}

impl SshConfig {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        if self.uninstall {
            let include = Include::find()?;
            let text = if include.uninstall()? {
                format!("{} no longer leads to VMs\n", include.config.display())
            } else {
                "There is nothing to undo\n".to_owned()
            };
            output::print(&text).await?;
            return Ok(0);
        }
        let client = connection.client()?;
        let groups = client.host_groups().await?;
        let names: Vec<&str> = groups.iter().map(|g| g.name.as_str()).collect();
        let text = render(&proxy(connection, client.endpoint())?, &names)?;
        if self.install {
            let include = Include::find()?;
            include.install(&text)?;
            let patterns: Vec<String> = names.iter().map(|n| format!("{n}-N")).collect();
            let text = format!(
                "{} leads to {} and NAME{SUFFIX}\n",
                include.config.display(),
                patterns.join(", ")
            );
            output::print(&text).await?;
        } else {
            output::print(&text).await?;
        }
        Ok(0)
    }
}

/// The command that leads to a VM of this daemon from wherever ssh is called, but for the VM.
fn proxy(connection: &Connection, endpoint: &Endpoint) -> Result<Vec<String>, CliError> {
    let own = std::env::current_exe().map_err(|source| CliError::Read {
        path: PathBuf::from("slicer"),
        source,
    })?;
    let endpoint = match endpoint {
        Endpoint::Unix(path) => absolute(path)?,
        http @ Endpoint::Http { .. } => http.to_string(),
    };
    let mut words = vec![text(own)?, "--url".to_owned(), endpoint];
    let env = |name: &str| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
    let by_value = connection.token.clone().or_else(|| env("SLICER_TOKEN"));
    let file = connection
        .token_file
        .clone()
        .or_else(|| env("SLICER_TOKEN_FILE"));
    match (by_value, file) {
        (Some(_), _) => output::note(
            "the token is not written down: ssh will need SLICER_TOKEN, or give --token-file here",
        ),
        (None, Some(file)) => {
            words.extend(["--token-file".to_owned(), absolute(Path::new(&file))?]);
        }
        (None, None) => {}
    }
    words.push("ssh-proxy".to_owned());
    Ok(words)
}

fn absolute(path: &Path) -> Result<String, CliError> {
    if path.starts_with("~") {
        // Which slicer knows to read.
        return text(path.to_owned());
    }
    let absolute = std::path::absolute(path).map_err(|source| CliError::Read {
        path: path.to_owned(),
        source,
    })?;
    text(absolute)
}

fn text(path: PathBuf) -> Result<String, CliError> {
    let text = path.into_os_string().into_string();
    text.map_err(|path| SshError::Unwritable(path.into()).into())
}

/// The text for ssh_config(5). `proxy` is the command that leads to a VM, but for the VM.
fn render(proxy: &[String], groups: &[&str]) -> Result<String, SshError> {
    let mut command = String::new();
    for word in proxy {
        command.push_str(&quoted(word)?);
        command.push(' ');
    }
    let mut patterns = String::new();
    for name in groups {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(SshError::GroupName((*name).to_owned()));
        }
        let _ = write!(patterns, "{name}-* ");
    }
    let mut out = String::from("# How ssh reaches VMs. Made by `slicer ssh-config`.\n");
    // A name with a dot in it is some other host's.
    let hosts = [format!("*{SUFFIX}"), format!("{patterns}!*.*")];
    let hosts = &hosts[..if groups.is_empty() { 1 } else { 2 }];
    for host in hosts {
        // Host keys tell nothing: the connection can't be led elsewhere, and a VM's name soon is
        // another's.
        let _ = write!(
            out,
            "\nHost {host}\n  User {USER}\n  ProxyCommand {command}'%h' %p\n  \
             StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
        );
    }
    Ok(out)
}

/// A word as ssh hands it to the shell: ssh replaces what begins with a per cent sign, before that.
fn quoted(word: &str) -> Result<String, SshError> {
    if word.chars().any(char::is_control) {
        return Err(SshError::Unwritable(PathBuf::from(word)));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:[]".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return Ok(word.to_owned());
    }
    let word = word.replace('\'', r"'\''").replace('%', "%%");
    Ok(format!("'{word}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn names_lead_to_the_daemon() {
        let text = render(&words(&["/bin/slicer", "--url", "/a b/s.sock"]), &["sbox"]).unwrap();
        let hosts: Vec<&str> = text.lines().filter(|l| l.starts_with("Host")).collect();
        assert_eq!(hosts, ["Host *.slicer", "Host sbox-* !*.*"]);
        let command = "  ProxyCommand /bin/slicer --url '/a b/s.sock' '%h' %p\n";
        assert_eq!(text.matches(command).count(), 2, "{text}");
        let none = render(&words(&["s"]), &[]).unwrap();
        assert_eq!(none.matches("Host ").count(), 1);
    }

    #[test]
    fn odd_words_stay_words() {
        for (word, want) in [
            ("", "''"),
            ("a'b", r"'a'\''b'"),
            ("50%", "'50%%'"),
            ("$(x)", "'$(x)'"),
        ] {
            assert_eq!(quoted(word).unwrap(), want);
        }
        quoted("a\nb").unwrap_err();
        render(&words(&["s"]), &["a b"]).unwrap_err();
    }
}
