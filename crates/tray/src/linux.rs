//! The main thread on Linux: a queue. The icon's D-Bus service has threads of its own.

use crate::app::Config;
use crate::event::Main;
use anyhow::Context as _;
use std::sync::mpsc;

/// Events that wait for the main thread.
const MAX_EVENTS: usize = 64;

/// Shows the icon until somebody quits.
pub(crate) fn run(config: Config) -> anyhow::Result<()> {
    let (sender, events) = mpsc::sync_channel(MAX_EVENTS);
    let mut main = Main::start(config, move |event| {
        // It fails only when the program ends.
        let _ = sender.send(event);
    })?;
    for event in events {
        let flow = main.handle(event);
        let flow = flow.context("is there a session bus? DBUS_SESSION_BUS_ADDRESS leads to it")?;
        if flow.is_break() {
            break;
        }
    }
    Ok(())
}
