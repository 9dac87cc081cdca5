//! `slicer info`.

use super::version::VERSION;
use crate::connection::Connection;
use crate::error::CliError;
use crate::output;
use clap::Args;

/// Show the versions of this command and of the daemon
#[derive(Debug, Args)]
pub(crate) struct Info {
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

impl Info {
    pub(crate) async fn run(self, connection: &Connection) -> Result<u8, CliError> {
        let client = connection.client()?;
        let server = client.info().await?;
        let endpoint = client.endpoint().to_string();
        let text = if self.json {
            output::json(&serde_json::json!({
                "client": { "version": VERSION },
                "server": server,
                "url": endpoint,
            }))?
        } else {
            format!(
                "Client version: {VERSION}\n\
                 Server version: {}\n\
                 Server commit: {}\n\
                 Server platform: {}/{}\n\
                 URL: {endpoint}\n",
                server.version, server.git_commit, server.platform, server.arch
            )
        };
        output::print(&text).await?;
        Ok(0)
    }
}
