//! `slicer vm list`.

use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use crate::table::Table;
use clap::Args;
use jiff::tz::TimeZone;
use slicer_api::Node;
use slicer_client::NodeFilter;

/// List VMs
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only VMs of this host group
    group: Option<String>,
    /// Only VMs with exactly this tag
    #[arg(long, value_name = "TAG", conflicts_with = "tag_prefix")]
    tag: Option<String>,
    /// Only VMs with a tag that begins like this
    #[arg(long, value_name = "PREFIX")]
    tag_prefix: Option<String>,
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

impl List {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let filter = NodeFilter {
            tag: self.tag,
            tag_prefix: self.tag_prefix,
        };
        let nodes = match &self.group {
            Some(group) => client.group_nodes(group, &filter).await?,
            None => client.nodes(&filter).await?,
        };
        let text = if self.json {
            output::json(&nodes)?
        } else {
            render(&nodes, &TimeZone::system())
        };
        output::print(&text).await?;
        Ok(0)
    }
}

fn render(nodes: &[Node], zone: &TimeZone) -> String {
    let mut table = Table::new(
        [
            ("HOSTNAME", 25),
            ("NAME", 15),
            ("IP", 15),
            ("RAM", 12),
            ("CPUS", 8),
            ("STATUS", 10),
            ("CREATED", 20),
            ("TAGS", 0),
        ],
        1,
    );
    for node in nodes {
        let created = node.created_at.map(|t| {
            let local = zone.to_datetime(t);
            local.strftime("%Y-%m-%d %H:%M:%S").to_string()
        });
        let tags: Vec<_> = node
            .tags
            .iter()
            .filter(|t| !t.starts_with("name="))
            .map(String::as_str)
            .collect();
        table.row([
            node.hostname.clone(),
            node.friendly_name().unwrap_or_default().to_owned(),
            node.ip.clone(),
            ram(node.ram_bytes),
            node.cpus.to_string(),
            node.status.to_string(),
            created.unwrap_or_default(),
            tags.join(","),
        ]);
    }
    table.render()
}

/// A size in the largest binary unit that divides it: `4GiB`, `512MiB`, `1000B`.
pub(crate) fn ram(bytes: u64) -> String {
    match bytes {
        b if b > 0 && b.is_multiple_of(1 << 30) => format!("{}GiB", b >> 30),
        b if b > 0 && b.is_multiple_of(1 << 20) => format!("{}MiB", b >> 20),
        b => format!("{b}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slicer_api::NodeStatus;

    #[test]
    fn the_table_is_what_scripts_read() {
        let node = Node {
            hostname: "sbox-1".into(),
            hostgroup: "sbox".into(),
            ip: "192.168.64.3".into(),
            ram_bytes: 4 << 30,
            cpus: 2,
            created_at: Some("2026-01-02T03:04:05.6Z".parse().unwrap()),
            arch: "arm64".into(),
            tags: vec!["a=b".into(), "name=builder".into(), "c".into()],
            status: NodeStatus::Running,
            persistent: false,
        };
        let bare = Node {
            hostname: "sbox-2".into(),
            created_at: None,
            tags: vec![],
            status: NodeStatus::Stopped,
            ram_bytes: 512 << 20,
            ..node.clone()
        };
        assert_eq!(
            render(&[node, bare], &TimeZone::fixed(jiff::tz::offset(1))),
            "\
HOSTNAME                  NAME            IP              RAM          CPUS     STATUS     CREATED              TAGS
--------                  ----            --              ---          ----     ------     -------              ----
sbox-1                    builder         192.168.64.3    4GiB         2        Running    2026-01-02 04:04:05  a=b,c
sbox-2                    -               192.168.64.3    512MiB       2        Stopped    -                    -
"
        );
    }

    #[test]
    fn sizes_are_exact() {
        assert_eq!(ram(0), "0B");
        assert_eq!(ram(3 << 29), "1536MiB");
        assert_eq!(ram(1000), "1000B");
    }
}
