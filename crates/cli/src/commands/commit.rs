//! `slicer vm commit`.

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use crate::table::Table;
use clap::{Args, Subcommand};
use slicer_api::{Commit as Shown, CommitRequest};
use slicer_client::CommitFilter;
use std::collections::BTreeMap;

/// Keep a stopped VM's disk as it is now, to fork others from it
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Commit {
    #[command(subcommand)]
    command: Option<Command>,
    /// Hostname or friendly name of a stopped, persistent VM
    #[arg(required = true)]
    vm: Option<String>,
    /// A key that no other commit may have, to find it by
    #[arg(long, value_name = "KEY")]
    cache_key: Option<String>,
    /// Tag of the commit, by convention KEY=VALUE; may be repeated
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Label of the commit; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List commits
    #[command(visible_alias = "ls")]
    List(List),
    /// Remove a commit that no VM and no other commit needs
    #[command(visible_alias = "rm")]
    Delete(Delete),
}

#[derive(Debug, Args)]
struct List {
    /// Only the commit with this cache key
    #[arg(long, value_name = "KEY")]
    cache_key: Option<String>,
    /// Only commits with this tag; repeated, with all of them
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Only commits of this VM
    #[arg(long, value_name = "VM")]
    source: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Delete {
    /// Id of the commit
    id: String,
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Commit {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let text = match self.command {
            None => {
                let request = CommitRequest {
                    tags: self.tag,
                    labels: BTreeMap::from_iter(self.label),
                    cache_key: self.cache_key.unwrap_or_default(),
                };
                let vm = self.vm.unwrap_or_default();
                let made = client
                    .with_vm(&vm, async |h| client.commit(h, &request).await)
                    .await?;
                if self.json {
                    output::json(&made)?
                } else {
                    let id = output::one_line(&made.commit_id);
                    format!("VM committed: {vm}\nCommit: {id}\n")
                }
            }
            Some(Command::List(c)) => {
                let filter = CommitFilter {
                    tags: c.tag,
                    cache_key: c.cache_key,
                    source: c.source,
                    mode: None,
                };
                let all = client.commits(&filter).await?;
                if c.json {
                    output::json(&all)?
                } else {
                    table(&all)
                }
            }
            Some(Command::Delete(c)) => {
                let deleted = client.delete_commit(&c.id).await?;
                if c.json {
                    output::json(&deleted)?
                } else {
                    format!("Commit deleted: {}\n", output::one_line(&deleted.commit_id))
                }
            }
        };
        output::print(&text).await?;
        Ok(0)
    }
}

fn table(all: &[Shown]) -> String {
    let columns = [
        ("COMMIT", 16),
        ("SOURCE", 12),
        ("GROUP", 8),
        ("CREATED", 19),
        ("CACHE KEY", 9),
        ("TAGS", 0),
    ];
    let mut table = Table::new(columns, 2);
    for commit in all {
        table.row([
            commit.commit_id.clone(),
            commit.source_hostname.clone(),
            commit.source_host_group.clone(),
            commit.created_at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
            commit.cache_key.clone().unwrap_or_default(),
            commit.tags.join(","),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command as Top};
    use crate::commands::vm::Vm;
    use clap::Parser as _;

    fn parse(words: &[&str]) -> Result<Commit, clap::Error> {
        let line = ["slicer", "vm", "commit"].iter().chain(words);
        match Cli::try_parse_from(line)?.command {
            Top::Vm(Vm::Commit(commit)) => Ok(commit),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_vm_or_a_subcommand() {
        let commit = parse(&["sbox-1", "--label", "a=b=c", "--tag", "x", "--json"]).unwrap();
        assert_eq!(commit.vm.as_deref(), Some("sbox-1"));
        assert_eq!(commit.label, [("a".to_owned(), "b=c".to_owned())]);
        let list = parse(&["list", "--tag", "a", "--tag", "b", "--source", "sbox-1"]).unwrap();
        assert!(matches!(list.command, Some(Command::List(l)) if l.tag == ["a", "b"]));
        let delete = parse(&["rm", "cmt-1"]).unwrap();
        assert!(matches!(delete.command, Some(Command::Delete(d)) if d.id == "cmt-1"));
        for bad in [
            &[][..],
            &["sbox-1", "--label", "a"],
            &["delete"],
            &["--tag", "x"],
        ] {
            assert_eq!(parse(bad).unwrap_err().exit_code(), 2, "{bad:?}");
        }
    }

    #[test]
    fn the_table() {
        let commit = Shown {
            commit_id: "cmt-0123456789ab".into(),
            source_hostname: "sbox-1".into(),
            source_host_group: "sbox".into(),
            created_at: "2026-01-02T03:04:05.6Z".parse().unwrap(),
            mode: "disk".into(),
            tags: vec!["a=b".into(), "c".into()],
            labels: BTreeMap::new(),
            cache_key: None,
        };
        assert_eq!(
            table(&[commit]),
            "\
COMMIT            SOURCE        GROUP     CREATED              CACHE KEY  TAGS
------            ------        -----     -------              ---------  ----
cmt-0123456789ab  sbox-1        sbox      2026-01-02 03:04:05  -          a=b,c
"
        );
    }
}
