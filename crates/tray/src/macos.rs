//! The main thread on a Mac: AppKit's event loop, without an icon in the Dock.

use crate::app::Config;
use crate::event::{Event, Main};
use tao::event_loop::{ControlFlow, EventLoopBuilder};
use tao::platform::macos::{ActivationPolicy, EventLoopExtMacOS as _};

/// Shows the icon until somebody quits.
pub(crate) fn run(config: Config) -> anyhow::Result<()> {
    let mut events = EventLoopBuilder::<Event>::with_user_event().build();
    events.set_activation_policy(ActivationPolicy::Accessory);
    let proxy = events.create_proxy();
    // The first view comes from the app, so that the icon is made while the loop runs, as AppKit
    // wants it.
    let mut main = Main::start(config, move |event| {
        // It fails only when the program ends.
        let _ = proxy.send_event(event);
    })?;
    events.run(move |event, _, flow| {
        if matches!(*flow, ControlFlow::ExitWithCode(_)) {
            return;
        }
        *flow = ControlFlow::Wait;
        if let tao::event::Event::UserEvent(event) = event {
            match main.handle(event) {
                Ok(handled) if handled.is_break() => *flow = ControlFlow::Exit,
                Ok(_) => {}
                Err(e) => *flow = ControlFlow::ExitWithCode(i32::from(crate::report(&e.into()))),
            }
        }
    })
}
