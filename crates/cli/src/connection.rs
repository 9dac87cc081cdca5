//! From flags and environment to a client.

use crate::error::CliError;
use clap::Args;
use slicer_client::{Client, LOCAL_TOKEN_FILE, TokenFlags, discover, find_token};
use std::path::{Path, PathBuf};

/// Which daemon to talk to; valid before and after every subcommand.
#[derive(Debug, Args)]
pub(crate) struct Connection {
    /// Daemon to talk to: a socket path or http://HOST:PORT
    ///
    /// Otherwise SLICER_URL, ~/slicer-mac/slicer.sock, ./slicer.sock and http://127.0.0.1:8080
    /// are tried in this order.
    #[arg(
        long,
        global = true,
        alias = "api",
        value_name = "URL",
        help_heading = "Connection"
    )]
    pub(crate) url: Option<String>,
    /// Bearer token; otherwise SLICER_TOKEN
    #[arg(long, global = true, value_name = "TOKEN", help_heading = "Connection")]
    pub(crate) token: Option<String>,
    /// File with the bearer token; otherwise SLICER_TOKEN_FILE
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        value_hint = clap::ValueHint::FilePath,
        help_heading = "Connection"
    )]
    pub(crate) token_file: Option<String>,
}

impl Connection {
    /// A client of the daemon that flags and environment name. Connects to nothing yet.
    pub(crate) fn client(&self) -> Result<Client, CliError> {
        let env = |name: &str| std::env::var(name).ok();
        let home = env("HOME").filter(|h| !h.is_empty()).map(PathBuf::from);
        // Relative, so that messages name the socket as the user would.
        let cwd = Path::new(".");
        let endpoint = discover(self.url.as_deref(), env, home.as_deref(), cwd)?;
        let flags = TokenFlags {
            token: self.token.as_deref(),
            token_file: self.token_file.as_deref(),
        };
        let local = Path::new(LOCAL_TOKEN_FILE);
        let token = find_token(flags, env, home.as_deref(), &endpoint, local)?;
        let user_agent = env("SLICER_USER_AGENT").filter(|v| !v.is_empty());
        let user_agent = user_agent
            .as_deref()
            .unwrap_or(concat!("slicer-cli/", env!("CARGO_PKG_VERSION")));
        Ok(Client::new(endpoint, token.as_ref(), user_agent)?)
    }
}
