//! `slicer vm tag`.

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::{Args, Subcommand};
use slicer_api::{Tags, TagsChange};

/// Show and change a VM's tags
#[derive(Debug, Subcommand)]
pub(crate) enum Tag {
    /// Show a VM's tags
    #[command(visible_alias = "ls")]
    List(List),
    /// Add tags
    Add(Given),
    /// Remove tags; those a VM doesn't have are no error
    #[command(visible_alias = "rm")]
    Remove(Given),
    /// Replace all tags but the name; without --tag, remove them
    Replace(Replace),
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Hostname or friendly name
    vm: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Given {
    #[command(flatten)]
    list: List,
    /// A tag, such as role=web; repeatable
    #[arg(long = "tag", value_name = "TAG", required = true)]
    tags: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Replace {
    #[command(flatten)]
    list: List,
    /// A tag, such as role=web; repeatable
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
}

impl Tag {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let (list, change) = match self {
            Self::List(list) => (list, None),
            Self::Add(c) => (
                c.list,
                Some(TagsChange {
                    add: Some(c.tags),
                    ..TagsChange::default()
                }),
            ),
            Self::Remove(c) => (
                c.list,
                Some(TagsChange {
                    remove: Some(c.tags),
                    ..TagsChange::default()
                }),
            ),
            Self::Replace(c) => (
                c.list,
                Some(TagsChange {
                    replace: Some(c.tags),
                    ..TagsChange::default()
                }),
            ),
        };
        let tags: Tags = client
            .with_vm(&list.vm, async |vm| match &change {
                None => client.tags(vm).await,
                Some(change) => client.change_tags(vm, change).await,
            })
            .await?;
        let text = if list.json {
            output::json(&tags)?
        } else {
            tags.tags.iter().flat_map(|t| [t, "\n"]).collect()
        };
        output::print(&text).await?;
        Ok(0)
    }
}
