//! `slicer vm fork`.

use super::add::{Spinner, given_names, scaled};
use super::policy::PolicyFlags;
use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;
use slicer_api::{
    Fixup, ForkRequest, ForkWait, Forked, LiveForkRequest, LiveForked, MAX_FORKS, TagMode,
    parse_duration,
};
use slicer_client::Client;
use std::fmt::Write as _;
use std::time::Duration;

/// Launch a VM whose disk begins as a commit's, or, with --live, VMs that go on from where one is now
///
/// With --live the VM is paused for a moment and runs on. The forks have its memory, its processes and
/// its disk, a name, address and keys of their own, and of its secrets none but those that --secret
/// names. What a process holds in its memory, such as a secret it has read, a fork's holds, too. Its open
/// connections are dead. They are sandboxes: they end with their disk.
#[derive(Debug, Args)]
pub(crate) struct Fork {
    /// Id of the commit, or hostname or friendly name of the VM
    #[arg(value_name = "COMMIT|VM")]
    id: String,
    /// Fork a VM that runs
    #[arg(long, conflicts_with_all = ["cpus", "ram_gb", "ram_mb", "fixup", "persistent", "allow", "no_allow", "drop"])]
    live: bool,
    /// How many forks
    #[arg(long, value_name = "N", requires = "live", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_FORKS)))]
    count: u32,
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
        if self.live {
            return self.run_live(&client, request).await;
        }
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

    async fn run_live(self, client: &Client, request: ForkRequest) -> Result<u8, CliError> {
        let request = LiveForkRequest {
            count: self.count,
            tags: request.tags,
            tag_mode: request.tag_mode,
            secrets: request.secrets,
        };
        let wait = if self.wait {
            ForkWait::Agent
        } else {
            ForkWait::None
        };
        let forked = {
            let message = || format!("Waiting for forks of {} to answer", self.id);
            let _spinner = self.wait.then(|| Spinner::start(message()));
            let fork = async |vm: &str| client.fork_live(vm, &request, wait, self.timeout).await;
            client.with_vm(&self.id, fork).await?
        };
        let text = if self.json {
            output::json(&forked)?
        } else {
            render_live(&forked)
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

fn render_live(forked: &LiveForked) -> String {
    let paused = Duration::from_nanos(forked.paused);
    let mut text = format!(
        "VM forked, paused for {} ms\n  Source: {}\n",
        paused.as_millis(),
        output::one_line(&forked.source_hostname)
    );
    for vm in &forked.vms {
        let (name, ip) = (output::one_line(&vm.hostname), output::one_line(&vm.ip));
        let _ = writeln!(text, "  {name} {ip}");
    }
    text
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

    #[test]
    fn a_vm_that_runs_is_forked_with_what_can_be_said_of_it() {
        let fork = parse("--live --count 3 --secret x").unwrap();
        assert_eq!((fork.live, fork.count), (true, 3));
        for bad in [
            "--count 2",
            "--live --count 0",
            "--live --count 65",
            "--live --cpus 1",
            "--live --persistent",
            "--live --fixup hostname",
            "--live --no-allow",
        ] {
            assert_eq!(parse(bad).unwrap_err().exit_code(), 2, "{bad}");
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
