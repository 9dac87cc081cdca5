//! `slicer template`.

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use crate::table::Table;
use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use slicer_api::Template as Shown;
use std::fmt::Write as _;

/// See to the templates that sandboxes begin as
///
/// A template is a VM of a host group that was booted once and saved. A launch that asks for the same
/// machine begins as it, within a fraction of the time a boot takes. The daemon makes templates by
/// itself, see `warm` in its configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum Template {
    #[command(visible_alias = "ls")]
    List(List),
    #[command(visible_aliases = ["rm", "delete"])]
    Remove(Remove),
}

/// List templates
///
/// ON DISK is what one takes on this host, CLONES how many VMs began as it since the daemon started.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

/// Remove a template: the next launch boots, after which there is a new one
///
/// VMs that began as it go on.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Ids of the templates
    #[arg(required = true)]
    ids: Vec<String>,
    /// Print the daemon's answers as JSON
    #[arg(long)]
    json: bool,
}

impl Template {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let text = match self {
            Self::List(c) => {
                let all = client.templates().await?;
                if c.json {
                    output::json(&all)?
                } else {
                    table(&all)
                }
            }
            Self::Remove(c) => {
                let mut text = String::new();
                for id in &c.ids {
                    let removed = client.remove_template(id).await?;
                    if c.json {
                        text.push_str(&output::json(&removed)?);
                    } else {
                        let _ =
                            writeln!(text, "Template removed: {}", output::one_line(&removed.id));
                    }
                }
                text
            }
        };
        output::print(&text).await?;
        Ok(0)
    }
}

fn table(all: &[Shown]) -> String {
    let columns = [
        "TEMPLATE", "GROUP", "CPUS", "RAM", "ON DISK", "CLONES", "CREATED", "IMAGE",
    ];
    let mut table = Table::new(columns.map(|name| (name, 0)), 2);
    for template in all {
        table.row([
            template.id.clone(),
            template.hostgroup.clone(),
            template.cpus.to_string(),
            HumanBytes(template.ram_bytes).to_string(),
            HumanBytes(template.disk_bytes).to_string(),
            template.clones.to_string(),
            template
                .created_at
                .strftime("%Y-%m-%d %H:%M:%S")
                .to_string(),
            template.image.clone(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command as Top};
    use clap::Parser as _;

    #[test]
    fn the_command_line() {
        for (line, good) in [
            ("slicer template ls --json", true),
            ("slicer template rm tpl-1 tpl-2", true),
            ("slicer template remove", false),
            ("slicer template", false),
        ] {
            let parsed = Cli::try_parse_from(line.split(' '));
            let template = parsed.is_ok_and(|cli| matches!(cli.command, Top::Template(_)));
            assert_eq!(template, good, "{line}");
        }
    }

    #[test]
    fn the_table() {
        let template = Shown {
            id: "tpl-0123456789ab".into(),
            hostgroup: "sbox".into(),
            image: "ghcr.io/x/y:1".into(),
            image_digest: "sha256:0".into(),
            arch: "amd64".into(),
            cpus: 2,
            ram_bytes: 4 << 30,
            disk_bytes: 150 << 20,
            clones: 7,
            created_at: "2026-01-02T03:04:05.6Z".parse().unwrap(),
            used_at: None,
        };
        assert_eq!(
            table(&[template]),
            "\
TEMPLATE          GROUP  CPUS  RAM       ON DISK     CLONES  CREATED              IMAGE
--------          -----  ----  ---       -------     ------  -------              -----
tpl-0123456789ab  sbox   2     4.00 GiB  150.00 MiB  7       2026-01-02 03:04:05  ghcr.io/x/y:1
"
        );
    }
}
