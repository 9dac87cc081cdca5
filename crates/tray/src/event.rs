//! What the main thread is told, and how it goes on.

use crate::action::Action;
use crate::app::{App, Config};
use crate::menu::View;
use crate::tray::{Tray, TrayError};
use std::ops::ControlFlow;
use std::sync::Arc;
use tokio::sync::mpsc;
use tray_icon::menu::MenuEvent;
use tray_icon::{MouseButton, MouseButtonState, TrayIconEvent};

/// Clicks that wait for the app.
const MAX_CLICKS: usize = 16;

/// Something for the main thread.
#[derive(Debug)]
pub(crate) enum Event {
    /// The menu shall show this.
    Show(View),
    /// An item with this id was clicked.
    Clicked(String),
    /// The icon itself was, where that doesn't open the menu.
    Activated,
    /// The app has ended.
    Ended,
}

/// The main thread's part: it shows views, and hands clicks on.
pub(crate) struct Main {
    tray: Option<Tray>,
    actions: mpsc::Sender<Action>,
}

impl Main {
    /// Starts the app in a thread of its own. `send` brings events to the main thread's
    /// [`handle`](Self::handle), from any thread.
    pub(crate) fn start(
        config: Config,
        send: impl Fn(Event) + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let send = Arc::new(send);
        let clicked = send.clone();
        MenuEvent::set_event_handler(Some(move |event: MenuEvent| {
            clicked(Event::Clicked(event.id.0));
        }));
        let activated = send.clone();
        TrayIconEvent::set_event_handler(Some(move |event| {
            if is_activation(&event) {
                activated(Event::Activated);
            }
        }));
        let (actions, queue) = mpsc::channel(MAX_CLICKS);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::Builder::new()
            .name("app".to_owned())
            .spawn(move || {
                // However it ends, the main thread doesn't wait for more.
                let ended = Ended(send.clone());
                let app = App::new(config, move |view| send(Event::Show(view)));
                runtime.block_on(app.run(queue));
                // All its tasks end before the program does: a socket's file goes with its listener.
                drop(runtime);
                drop(ended);
            })?;
        Ok(Self {
            tray: None,
            actions,
        })
    }

    /// Handles an event. It breaks at the last one.
    pub(crate) fn handle(&mut self, event: Event) -> Result<ControlFlow<()>, TrayError> {
        match event {
            Event::Show(view) => match &mut self.tray {
                Some(tray) => tray.show(view)?,
                None => self.tray = Some(Tray::new(view)?),
            },
            Event::Clicked(id) => {
                if let Ok(action) = id.parse() {
                    self.act(action);
                }
            }
            Event::Activated => {
                if let Some(action) = self.tray.as_ref().and_then(Tray::primary) {
                    self.act(action);
                }
            }
            Event::Ended => {
                self.tray = None;
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Never waits: who clicks faster than things can be done is not served.
    fn act(&self, action: Action) {
        let _ = self.actions.try_send(action);
    }
}

/// On a Mac a click opens the menu; elsewhere the left button is for the main thing the icon does.
fn is_activation(event: &TrayIconEvent) -> bool {
    cfg!(not(target_os = "macos"))
        && matches!(
            event,
            TrayIconEvent::Click {
                button: MouseButton::Left,
                button_state: MouseButtonState::Up,
                ..
            }
        )
}

struct Ended<F: Fn(Event)>(Arc<F>);

impl<F: Fn(Event)> Drop for Ended<F> {
    fn drop(&mut self) {
        (self.0)(Event::Ended);
    }
}
