//! `slicer vm fork`.

use super::add::{Spinner, given_names, scaled};
use super::policy::PolicyFlags;
use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;
use slicer_api::{Fixup, ForkRequest, ForkWait, Forked, TagMode, parse_duration};
use std::time::Duration;

/// Launch a VM whose disk begins as a commit's
#[derive(Debug, Args)]
pub(crate) struct Fork {
    /// Id of the commit
    id: String,
    /// CPUs, at most the host group's; as many as the source had unless given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    cpus: Option<u32>,
    /// Memory in GiB, at most the host group's; as much as the source had unless given
    #[arg(long, value_name = "N", value_parser = scaled::<30>, conflicts_with = "ram_mb")]
    ram_gb: Option<u64>,
    /// Memory in MiB
    #[arg(long, value_name = "N", value_parser = scaled::<20>)]
    ram_mb: Option<u64>,
    /// Friendly name, usable wherever a hostname is
    #[arg(long, short = 'n', value_name = "NAME")]
    name: Option<String>,
    /// Tag besides those of the source, by convention KEY=VALUE; may be repeated
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Have only the tags that are given, none of the source's
    #[arg(long)]
    replace_tags: bool,
    /// Let the VM see only these secrets, in place of those its source could; may be repeated or a
    /// list with commas, "" is none
    #[arg(
        long,
        visible_alias = "secrets",
        value_name = "NAME",
        value_delimiter = ','
    )]
    secret: Option<Vec<String>>,
    /// Make only these differ from the source: hostname, machine-id, ssh-host-keys; may be repeated
    /// or a list with commas, "" is none [default: all]
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    fixup: Option<Vec<String>>,
    /// Keep the VM and its disk when it stops [default: true]
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    persistent: Option<bool>,
    #[command(flatten)]
    policy: PolicyFlags,
    /// Wait until the VM's agent answers
    #[arg(long)]
    wait: bool,
    /// How long to wait, such as 90s or 5m (the default); the VM is removed when it runs out
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

impl Fork {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let request = self.request()?;
        let client = connection.client()?;
        let wait = if self.wait {
            ForkWait::Agent
        } else {
            ForkWait::None
        };
        let forked = {
            let message = || format!("Waiting for a fork of {} to answer", self.id);
            let _spinner = self.wait.then(|| Spinner::start(message()));
            client.fork(&self.id, &request, wait, self.timeout).await?
        };
        let text = if self.json {
            output::json(&forked)?
        } else {
            render(&forked)
        };
        output::print(&text).await?;
        Ok(0)
    }

    fn request(&self) -> Result<ForkRequest, CliError> {
        if self.name.is_some() && self.tag.iter().any(|t| t.starts_with("name=")) {
            return Err(CliError::Usage(
                "--name and --tag name=… say the same: give one of them".to_owned(),
            ));
        }
        let name = self.name.iter().map(|name| format!("name={name}"));
        let fixups = self.fixup.as_deref().map(|words| {
            let words = given_names(words);
            words.iter().map(|w| w.parse::<Fixup>()).collect()
        });
        Ok(ForkRequest {
            network: self.policy.lists(),
            tags: name.chain(self.tag.iter().cloned()).collect(),
            tag_mode: self.replace_tags.then_some(TagMode::Replace),
            secrets: self.secret.as_deref().map(given_names),
            persistent: self.persistent,
            fixups: fixups.transpose().map_err(CliError::Usage)?,
            vcpu: self.cpus.unwrap_or_default(),
            ram_bytes: self.ram_gb.or(self.ram_mb).unwrap_or_default(),
        })
    }
}

fn render(forked: &Forked) -> String {
    format!(
        "VM forked\n  \
         Hostname: {}\n  \
         Commit:   {}\n  \
         Source:   {}\n  \
         Persistent: {}\n  \
         Status:   {}\n",
        output::one_line(&forked.hostname),
        output::one_line(&forked.commit_id),
        output::one_line(&forked.source_hostname),
        forked.persistent,
        output::one_line(&forked.child_status),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use crate::commands::vm::Vm;
    use clap::Parser as _;
    use slicer_api::NetworkPolicy;

    fn parse(words: &str) -> Result<Fork, clap::Error> {
        let line = ["slicer", "vm", "fork", "cmt-1"].into_iter();
        match Cli::try_parse_from(line.chain(words.split_whitespace()))?.command {
            Command::Vm(Vm::Fork(fork)) => Ok(fork),
            other => panic!("{other:?}"),
        }
    }

    fn request(words: &str) -> ForkRequest {
        parse(words).unwrap().request().unwrap()
    }

    #[test]
    fn flags_become_the_request() {
        assert_eq!(request("--wait"), ForkRequest::default());
        let words = "--cpus 2 --ram-gb 1 -n web --tag a=b --replace-tags --secret x,y \
                     --persistent=false --fixup hostname,machine-id --allow 10.0.0.0/8 --drop 1.1.1.1";
        assert_eq!(
            request(words),
            ForkRequest {
                network: Some(NetworkPolicy {
                    allow: Some(vec!["10.0.0.0/8".into()]),
                    drop: Some(vec!["1.1.1.1".into()]),
                }),
                tags: vec!["name=web".into(), "a=b".into()],
                tag_mode: Some(TagMode::Replace),
                secrets: Some(vec!["x".into(), "y".into()]),
                persistent: Some(false),
                fixups: Some(vec![Fixup::Hostname, Fixup::MachineId]),
                vcpu: 2,
                ram_bytes: 1 << 30,
            }
        );
        let nothing = request("--no-allow --secret= --fixup=");
        assert_eq!(nothing.network.unwrap().allow, Some(vec![]));
        assert_eq!(nothing.secrets, Some(vec![]));
        assert_eq!(nothing.fixups, Some(vec![]));
        assert_eq!(request("--persistent").persistent, Some(true));
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [
            "--cpus 0",
            "--ram-gb 1 --ram-mb 1",
            "--allow x --no-allow",
            "--timeout x",
        ] {
            assert_eq!(parse(words).unwrap_err().exit_code(), 2, "{words}");
        }
        for words in ["--fixup name", "--name a --tag name=b"] {
            let refused = parse(words).unwrap().request();
            assert!(matches!(refused, Err(CliError::Usage(_))), "{words}");
        }
    }
}
