//! `slicer vm add`.

use super::policy::PolicyFlags;
use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;
use indicatif::ProgressBar;
use slicer_api::{CreateNode, CreatedNode, HostGroup, Wait, parse_duration};
use slicer_client::Client;
use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SPINNER_TICK: Duration = Duration::from_millis(100);

/// Create and start a VM
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  slicer vm add sbox --wait
  slicer vm add sbox --name builder --cpus 4 --ram-gb 8 --tag team=web --persistent
  slicer vm add sbox --userdata-file setup.sh --wait-userdata --timeout 10m
  slicer vm exec \"$(slicer vm add sbox --wait --json | jq -r .hostname)\" uname -a")]
pub(crate) struct Add {
    /// Host group; may be left out when the daemon has only one
    group: Option<String>,
    /// Number of CPUs; the group's number is default and limit
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    cpus: Option<u32>,
    /// Memory in GiB; the group's size is default and limit
    #[arg(long, value_name = "N", group = "ram", value_parser = scaled::<30>)]
    ram_gb: Option<u64>,
    /// Memory in MiB
    #[arg(long, value_name = "N", group = "ram", value_parser = scaled::<20>)]
    ram_mb: Option<u64>,
    /// Memory in bytes
    #[arg(long, value_name = "N", group = "ram", value_parser = scaled::<0>)]
    ram_bytes: Option<u64>,
    /// Number of GPUs
    #[arg(long, value_name = "N", default_value_t = 0)]
    gpus: u32,
    /// Script to run as root at the end of the first boot; the path of one does as well
    #[arg(long, value_name = "TEXT", conflicts_with = "userdata_file")]
    userdata: Option<String>,
    /// File with the script to run
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    userdata_file: Option<PathBuf>,
    /// Run what the image's ENTRYPOINT and CMD say, at every boot
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    entrypoint: Option<bool>,
    /// SSH public key to let in; may be repeated
    #[arg(long, value_name = "KEY")]
    ssh_key: Vec<String>,
    /// GitHub user whose SSH keys are let in
    #[arg(long, value_name = "USER")]
    import_user: Option<String>,
    /// Friendly name, usable wherever a hostname is
    #[arg(long, short = 'n', value_name = "NAME")]
    name: Option<String>,
    /// Tag, by convention KEY=VALUE; may be repeated
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Let the VM see only these secrets; may be repeated or a list with commas, "" is none
    #[arg(
        long,
        visible_alias = "secrets",
        value_name = "NAME",
        value_delimiter = ','
    )]
    secret: Option<Vec<String>>,
    #[command(flatten)]
    policy: PolicyFlags,
    /// Keep the VM and its disk when it stops
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = false,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    persistent: bool,
    /// Wait until the VM's agent answers
    #[arg(long)]
    wait: bool,
    /// Wait until userdata has run
    #[arg(long)]
    wait_userdata: bool,
    /// How long to wait, such as 90s or 5m (the default); the VM is removed when it runs out
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

/// Reads a number of units of 2^`SHIFT` bytes.
pub(super) fn scaled<const SHIFT: u32>(text: &str) -> Result<u64, String> {
    let number: u64 = text.parse().map_err(|_| "expected a number")?;
    if number == 0 {
        return Err("it must be more than 0".to_owned());
    }
    number
        .checked_mul(1 << SHIFT)
        .ok_or_else(|| "that is too much".to_owned())
}

impl Add {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let (request, wait) = (self.request()?, self.wait());
        let client = connection.client()?;
        let group = self.group(&client).await?;
        let created = {
            let _spinner = wait.map(|wait| Spinner::start(waiting(&group.name, wait)));
            client
                .create_node(&group.name, &request, wait, self.timeout)
                .await?
        };
        let text = if self.json {
            output::json(&created)?
        } else {
            render(&created, &request, &group)
        };
        output::print(&text).await?;
        Ok(0)
    }

    fn wait(&self) -> Option<Wait> {
        if self.wait_userdata {
            Some(Wait::Userdata)
        } else {
            self.wait.then_some(Wait::Agent)
        }
    }

    /// The group to create in. What isn't printed isn't asked for.
    async fn group(&self, client: &Client) -> Result<HostGroup, CliError> {
        let named = |name: &str| HostGroup {
            name: name.to_owned(),
            count: 0,
            ram_bytes: 0,
            cpus: 0,
            gpu_count: 0,
            arch: String::new(),
        };
        if let (Some(name), true) = (&self.group, self.json) {
            return Ok(named(name));
        }
        let mut groups = client.host_groups().await?;
        match &self.group {
            // If it isn't one, that is for the daemon to say.
            Some(name) => Ok(groups
                .into_iter()
                .find(|g| g.name == *name)
                .unwrap_or_else(|| named(name))),
            None if groups.len() > 1 => Err(CliError::ManyGroups(
                groups.into_iter().map(|g| g.name).collect(),
            )),
            None => groups.pop().ok_or(CliError::NoGroup),
        }
    }

    fn request(&self) -> Result<CreateNode, CliError> {
        if self.name.is_some() && self.tag.iter().any(|t| t.starts_with("name=")) {
            return Err(CliError::Usage(
                "--name and --tag name=… say the same: give one of them".to_owned(),
            ));
        }
        let name = self.name.iter().map(|name| format!("name={name}"));
        let secrets = self.secret.as_deref().map(given_names);
        Ok(CreateNode {
            cpus: self.cpus.unwrap_or_default(),
            ram_bytes: (self.ram_gb.or(self.ram_mb).or(self.ram_bytes)).unwrap_or_default(),
            gpu_count: self.gpus,
            persistent: self.persistent,
            entrypoint: self.entrypoint,
            import_user: self.import_user.clone().unwrap_or_default(),
            ssh_keys: self.ssh_key.clone(),
            userdata: self.script()?,
            tags: name.chain(self.tag.iter().cloned()).collect(),
            secrets,
            network: self.policy.lists(),
            ..CreateNode::default()
        })
    }

    fn script(&self) -> Result<String, CliError> {
        match (&self.userdata_file, &self.userdata) {
            (Some(path), _) => read(path),
            (None, Some(text)) if is_path(text) => read(Path::new(text)),
            (None, Some(text)) => Ok(text.clone()),
            (None, None) => Ok(String::new()),
        }
    }
}

/// Whether the text of `--userdata` names a file rather than being the script.
fn is_path(text: &str) -> bool {
    !text.contains('\n') && !text.starts_with("#!") && Path::new(text).is_file()
}

fn read(path: &Path) -> Result<String, CliError> {
    fs::read_to_string(path).map_err(|source| CliError::Read {
        path: path.to_owned(),
        source,
    })
}

fn render(created: &CreatedNode, request: &CreateNode, group: &HostGroup) -> String {
    let or = |asked: u64, default: u64| if asked == 0 { default } else { asked };
    let at = created.created_at.strftime("%Y-%m-%dT%H:%M:%SZ");
    // Some servers put the length of the prefix behind the address.
    let ip = created.ip.split('/').next().unwrap_or_default();
    format!(
        "VM created\n  \
         Hostname: {}\n  \
         Group:    {}\n  \
         IP:       {ip}\n  \
         Specs:    {} vCPU, {} RAM, GPUs: {}\n  \
         Persistent: {}\n  \
         Created:  {at}\n",
        output::one_line(&created.hostname),
        group.name,
        or(request.cpus.into(), group.cpus.into()),
        ram(or(request.ram_bytes, group.ram_bytes)),
        request.gpu_count,
        created.persistent,
    )
}

/// A size as the original shows it here: `4GB` for 4 GiB.
fn ram(bytes: u64) -> String {
    super::list::ram(bytes).replace("iB", "B")
}

/// What is waited for.
fn waiting(group: &str, wait: Wait) -> String {
    let until = match wait {
        Wait::Agent => "to answer",
        Wait::Userdata => "to run its userdata",
    };
    format!("Waiting for a new VM of {group} {until}")
}

/// The names in a flag of which an empty one is none.
pub(super) fn given_names(names: &[String]) -> Vec<String> {
    let names = names.iter().map(|n| n.trim());
    names.filter(|n| !n.is_empty()).map(str::to_owned).collect()
}

/// Turns on stderr, when that is a terminal, until dropped.
pub(super) struct Spinner(ProgressBar);

impl Spinner {
    pub(super) fn start(message: String) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new_spinner();
        bar.set_message(message);
        bar.enable_steady_tick(SPINNER_TICK);
        Self(bar)
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use crate::commands::vm::Vm;
    use clap::Parser as _;
    use slicer_api::NetworkPolicy;

    fn parse(words: &[&str]) -> Result<Add, clap::Error> {
        let line = ["slicer", "vm", "add"].iter().chain(words);
        match Cli::try_parse_from(line)?.command {
            Command::Vm(Vm::Add(add)) => Ok(add),
            other => panic!("{other:?}"),
        }
    }

    fn request(words: &[&str]) -> CreateNode {
        parse(words).unwrap().request().unwrap()
    }

    #[test]
    fn flags_become_the_request() {
        assert_eq!(request(&["sbox"]), CreateNode::default());
        let words = "sbox --cpus 2 --ram-gb 4 -n web --tag a=b --tag c --ssh-key k --import-user me \
                     --secret x,y --secrets=z --persistent --no-allow --drop 10.0.0.0/8";
        let got = request(&words.split_whitespace().collect::<Vec<_>>());
        assert_eq!(
            got,
            CreateNode {
                cpus: 2,
                ram_bytes: 4 << 30,
                persistent: true,
                import_user: "me".into(),
                ssh_keys: vec!["k".into()],
                tags: vec!["name=web".into(), "a=b".into(), "c".into()],
                secrets: Some(vec!["x".into(), "y".into(), "z".into()]),
                network: Some(NetworkPolicy {
                    allow: Some(vec![]),
                    drop: Some(vec!["10.0.0.0/8".into()]),
                }),
                ..CreateNode::default()
            }
        );
        assert_eq!(request(&["--ram-mb", "512"]).ram_bytes, 512 << 20);
        assert_eq!(request(&["--ram-bytes", "9"]).ram_bytes, 9);
        assert_eq!(request(&["--secret", ""]).secrets, Some(vec![]));
        assert!(!request(&["--persistent=false", "sbox"]).persistent);
        assert!(request(&["--persistent", "sbox"]).persistent);
    }

    #[test]
    fn waits_are_told_apart() {
        let wait = |words: &[&str]| parse(words).unwrap().wait();
        assert_eq!(wait(&[]), None);
        assert_eq!(wait(&["--wait"]), Some(Wait::Agent));
        assert_eq!(wait(&["--wait", "--wait-userdata"]), Some(Wait::Userdata));
        let add = parse(&["--wait", "--timeout", "1m30s"]).unwrap();
        assert_eq!(add.timeout, Some(Duration::from_secs(90)));
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [
            &["--cpus", "0"][..],
            &["--ram-gb", "1", "--ram-mb", "1"],
            &["--ram-gb", "99999999999999999999"],
            &["--ram-gb", "99999999999"],
            &["--ram-gb", "0"],
            &["--userdata", "x", "--userdata-file", "y"],
            &["--persistent=maybe"],
            &["--allow", "10.0.0.1", "--no-allow"],
            &["--timeout", "60"],
        ] {
            assert_eq!(parse(words).unwrap_err().exit_code(), 2, "{words:?}");
        }
        let twice = parse(&["--name", "a", "--tag", "name=b"]).unwrap();
        assert!(matches!(twice.request(), Err(CliError::Usage(_))));
    }

    #[test]
    fn userdata_is_text_or_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("setup.sh");
        fs::write(&path, "#!/bin/sh\ntrue\n").unwrap();
        let path = path.to_str().unwrap();
        let script = "#!/bin/sh\ntrue\n";
        assert_eq!(request(&["--userdata", path]).userdata, script);
        assert_eq!(request(&["--userdata-file", path]).userdata, script);
        assert_eq!(
            request(&["--userdata", "apt update"]).userdata,
            "apt update"
        );
        let missing = parse(&["--userdata-file", "/no/such"]).unwrap();
        assert!(matches!(missing.request(), Err(CliError::Read { .. })));
    }

    #[test]
    fn the_block_is_what_scripts_read() {
        let created = CreatedNode {
            hostname: "sbox-1".into(),
            hostgroup: "sbox".into(),
            ip: "192.168.64.3/24".into(),
            created_at: "2026-01-02T03:04:05.6Z".parse().unwrap(),
            arch: "arm64".into(),
            persistent: false,
        };
        let group = HostGroup {
            name: "sbox".into(),
            count: 0,
            ram_bytes: 4 << 30,
            cpus: 2,
            gpu_count: 0,
            arch: "arm64".into(),
        };
        assert_eq!(
            render(&created, &CreateNode::default(), &group),
            "\
VM created
  Hostname: sbox-1
  Group:    sbox
  IP:       192.168.64.3
  Specs:    2 vCPU, 4GB RAM, GPUs: 0
  Persistent: false
  Created:  2026-01-02T03:04:05Z
"
        );
        let asked = CreateNode {
            cpus: 1,
            ram_bytes: 512 << 20,
            ..CreateNode::default()
        };
        let text = render(&created, &asked, &group);
        assert!(text.contains("1 vCPU, 512MB RAM"), "{text}");
    }
}
