//! Sleep as systemd-logind tells of it, by D-Bus (org.freedesktop.login1(5)).

use super::{Hold, PowerError, PowerEvent, PowerEvents, PowerSource, SleepInhibitor};
use async_trait::async_trait;
use futures_util::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;
use zbus::connection::Builder;
use zbus::proxy::{CacheProperties, SignalStream};
use zbus::{Connection, OwnedFd, Proxy};

/// How long logind may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// No administrator has the host's sleep delayed for longer.
const MAX_DELAY: Duration = Duration::from_hours(1);

/// Follows this host's sleep by its system bus: that at `bus`, else where `DBUS_SYSTEM_BUS_ADDRESS`
/// says, else at its usual place.
///
/// # Errors
/// When there is no bus, no logind on it, or it lets its sleep be delayed by nobody.
pub async fn connect(bus: Option<&str>) -> Result<PowerSource, PowerError> {
    let unreachable = |e: zbus::Error| PowerError::Unreachable(e.to_string());
    let builder = bus.map_or_else(Builder::system, Builder::address);
    let builder = builder.method_timeout(ANSWER_TIME);
    let bus = builder.build().await.map_err(unreachable)?;
    let logind = Logind::new(&bus).await.map_err(unreachable)?;
    // Before there is a delay, so that no sleep goes by unseen.
    let signals = logind.0.receive_signal("PrepareForSleep").await;
    let signals = signals.map_err(unreachable)?;
    let delay = logind.delay().await.map_err(unreachable)?;
    let (tell, events) = mpsc::channel(8);
    let told = tokio::spawn(follow(logind.clone(), signals, delay, tell));
    Ok(PowerSource {
        events: Box::new(Events {
            events,
            _told: AbortOnDropHandle::new(told),
        }),
        inhibitor: Arc::new(logind),
    })
}

/// The manager of sleep, and of much else.
#[derive(Clone)]
struct Logind(Proxy<'static>);

/// What keeps the host awake when it is about to sleep, and for how long at most.
struct Delay {
    hold: Hold,
    most: Duration,
}

impl Logind {
    async fn new(bus: &Connection) -> zbus::Result<Self> {
        let proxy: Proxy<'static> = zbus::proxy::Builder::new(bus)
            .destination("org.freedesktop.login1")
            .path("/org/freedesktop/login1")
            .interface("org.freedesktop.login1.Manager")
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        Ok(Self(proxy))
    }

    async fn lock(&self, why: &str, mode: &str) -> zbus::Result<Hold> {
        let asked = &("sleep", "slicer", why, mode);
        let lock: OwnedFd = self.0.call("Inhibit", asked).await?;
        Ok(Box::new(lock))
    }

    async fn delay(&self) -> zbus::Result<Delay> {
        let hold = self.lock("VMs are made ready for it", "delay").await?;
        let most: u64 = self.0.get_property("InhibitDelayMaxUSec").await?;
        Ok(Delay {
            hold,
            most: Duration::from_micros(most).min(MAX_DELAY),
        })
    }
}

#[async_trait]
impl SleepInhibitor for Logind {
    async fn inhibit(&self) -> Result<Hold, PowerError> {
        let lock = self.lock("VMs run", "block").await;
        lock.map_err(|e| PowerError::Refused(e.to_string()))
    }
}

/// Tells what the signals mean, until they end.
async fn follow(
    logind: Logind,
    mut signals: SignalStream<'static>,
    delay: Delay,
    tell: mpsc::Sender<PowerEvent>,
) {
    let mut most = delay.most;
    let mut hold = Some(delay.hold);
    while let Some(signal) = signals.next().await {
        let event = match signal.body().deserialize() {
            Ok(true) => PowerEvent::AboutToSleep {
                // Without one the host sleeps in the middle of it, which does no harm.
                delay: hold.take().unwrap_or_else(|| Box::new(())),
                // Not to the last moment, which is when logind complains.
                deadline: Instant::now() + most * 9 / 10,
            },
            Ok(false) => {
                match logind.delay().await {
                    Ok(delay) => {
                        most = delay.most;
                        hold = Some(delay.hold);
                    }
                    Err(e) => warn!("the host's next sleep won't wait for VMs: {e}"),
                }
                PowerEvent::WokeUp
            }
            Err(e) => {
                warn!("logind said something else than that the host sleeps or wakes: {e}");
                continue;
            }
        };
        if tell.send(event).await.is_err() {
            return;
        }
    }
}

struct Events {
    events: mpsc::Receiver<PowerEvent>,
    _told: AbortOnDropHandle<()>,
}

#[async_trait]
impl PowerEvents for Events {
    async fn next(&mut self) -> Option<PowerEvent> {
        self.events.recv().await
    }
}
