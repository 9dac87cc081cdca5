//! `slicer secret`.

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use crate::table::Table;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use slicer_api::{CreateSecret, Secret as Shown, UpdateSecret};
use std::io::IsTerminal as _;
use std::path::PathBuf;
use tokio::io::AsyncReadExt as _;

/// Largest value that is read, bytes; the daemon takes less.
const MAX_VALUE: u64 = 16 << 20;

/// Keep secrets, which VMs see as files in /run/slicer/secrets
#[derive(Debug, Subcommand)]
pub(crate) enum Secret {
    /// Make a secret; its value is read from stdin unless it is given
    Create(Create),
    /// Change a secret's value, permissions or owner
    Update(Update),
    /// Remove a secret, in VMs too
    #[command(visible_alias = "rm")]
    Remove(Remove),
    /// List secrets; values are never shown
    #[command(visible_alias = "ls")]
    List(List),
}

#[derive(Debug, Args)]
struct Named {
    /// The secret's name
    #[arg(required_unless_present = "name_flag")]
    name: Option<String>,
    /// The secret's name
    #[arg(
        long = "name",
        value_name = "NAME",
        conflicts_with = "name",
        hide = true
    )]
    name_flag: Option<String>,
}

impl Named {
    fn name(&self) -> &str {
        let given = self.name.as_deref().or(self.name_flag.as_deref());
        given.unwrap_or_default()
    }
}

#[derive(Debug, Args)]
struct Value {
    /// The value itself, which others may see in the list of processes
    #[arg(
        long,
        visible_alias = "value",
        value_name = "VALUE",
        conflicts_with = "from_file"
    )]
    from_literal: Option<String>,
    /// A file with the value
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Form {
    /// Permissions of the file in VMs, octal
    #[arg(long, value_name = "MODE")]
    permissions: Option<String>,
    /// Owner of the file in VMs
    #[arg(long)]
    uid: Option<u32>,
    /// Group of the file in VMs
    #[arg(long)]
    gid: Option<u32>,
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    value: Value,
    #[command(flatten)]
    form: Form,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    value: Value,
    #[command(flatten)]
    form: Form,
    /// Read the new value from stdin
    #[arg(long, conflicts_with_all = ["from_literal", "from_file"])]
    from_stdin: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    #[command(flatten)]
    named: Named,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Show sizes, permissions and owners
    #[arg(long, short)]
    verbose: bool,
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

impl Value {
    /// The value as base64, if one is given.
    async fn read(self, stdin: bool) -> Result<Option<String>, CliError> {
        let bytes = match (self.from_literal, self.from_file) {
            (Some(text), _) => text.into_bytes(),
            (None, Some(path)) => match tokio::fs::read(&path).await {
                Ok(bytes) => bytes,
                Err(source) => return Err(CliError::Read { path, source }),
            },
            (None, None) if stdin => {
                if std::io::stdin().is_terminal() {
                    output::hint("type the value, and end it with Ctrl-D");
                }
                let mut bytes = Vec::new();
                let mut input = tokio::io::stdin().take(MAX_VALUE);
                let read = input.read_to_end(&mut bytes).await;
                read.map_err(|source| CliError::Read {
                    path: "stdin".into(),
                    source,
                })?;
                bytes
            }
            (None, None) => return Ok(None),
        };
        Ok(Some(STANDARD.encode(bytes)))
    }
}

impl Secret {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let text = match self {
            Self::Create(c) => {
                let data = c.value.read(true).await?.unwrap_or_default();
                let secret = CreateSecret {
                    name: c.named.name().to_owned(),
                    data,
                    permissions: c.form.permissions,
                    uid: c.form.uid,
                    gid: c.form.gid,
                };
                let made = client.create_secret(&secret).await?;
                told("created", &made, c.form.json)?
            }
            Self::Update(c) => {
                let change = UpdateSecret {
                    data: c.value.read(c.from_stdin).await?,
                    permissions: c.form.permissions,
                    uid: c.form.uid,
                    gid: c.form.gid,
                };
                if change == UpdateSecret::default() {
                    return Err(CliError::Usage(
                        "nothing to change: give --from-file, --from-literal, --from-stdin, \
                         --permissions, --uid or --gid"
                            .to_owned(),
                    ));
                }
                let changed = client.update_secret(c.named.name(), &change).await?;
                told("updated", &changed, c.form.json)?
            }
            Self::Remove(c) => {
                client.remove_secret(c.named.name()).await?;
                format!("Secret removed: {}\n", c.named.name())
            }
            Self::List(c) => {
                let all = client.secrets().await?;
                if c.json {
                    output::json(&all)?
                } else {
                    list(&all, c.verbose)
                }
            }
        };
        output::print(&text).await?;
        Ok(0)
    }
}

fn told(what: &str, secret: &Shown, json: bool) -> Result<String, CliError> {
    if json {
        output::json(secret)
    } else {
        Ok(format!("Secret {what}: {}\n", secret.name))
    }
}

fn list(all: &[Shown], verbose: bool) -> String {
    if !verbose {
        let mut table = Table::new([("NAME", 0)], 1);
        for secret in all {
            table.row([secret.name.clone()]);
        }
        return table.render();
    }
    let columns = [
        ("NAME", 25),
        ("SIZE", 10),
        ("PERMISSIONS", 12),
        ("UID", 8),
        ("GID", 0),
    ];
    let mut table = Table::new(columns, 1);
    for s in all {
        table.row([
            s.name.clone(),
            s.size.to_string(),
            s.permissions.clone(),
            s.uid.to_string(),
            s.gid.to_string(),
        ]);
    }
    table.render()
}
