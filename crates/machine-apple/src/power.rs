//! The host's sleep, as macOS tells of it (IOKit, `IORegisterForSystemPower`).
//!
//! The system asks every listener for leave before it sleeps, and waits for the answers, at most 30
//! seconds. This is what becomes of its messages; who receives them is `virtualization::power`.

use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long the system waits for an answer is 30 s: this much of it may be used.
const ANSWER_TIME: Duration = Duration::from_secs(27);
/// Messages that may wait. They come in pairs, minutes apart.
const MESSAGES: usize = 8;

/// The messages of `IOMessage.h`, `iokit_common_msg`.
const CAN_SYSTEM_SLEEP: u32 = 0xE000_0270;
const SYSTEM_WILL_SLEEP: u32 = 0xE000_0280;
const SYSTEM_HAS_POWERED_ON: u32 = 0xE000_0300;

/// What the host does.
#[derive(Debug)]
pub enum HostPower {
    /// It sleeps as soon as this is dropped, and soon in any case.
    AboutToSleep(Delay),
    /// It is awake again.
    WokeUp,
}

/// Gives the system leave to do what a message was about.
pub type Allow = Arc<dyn Fn(isize) + Send + Sync>;

/// Keeps the host from going to sleep, for as long as the system waits.
pub struct Delay {
    allow: Allow,
    message: isize,
    /// When the system no longer waits.
    pub deadline: Instant,
}

impl std::fmt::Debug for Delay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delay")
            .field("message", &self.message)
            .finish_non_exhaustive()
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        (self.allow)(self.message);
    }
}

/// Receives the system's messages.
pub struct Messages {
    tell: mpsc::Sender<HostPower>,
    allow: Allow,
}

impl Messages {
    /// What receives messages, and what they mean as it comes. `allow` is called once for each message
    /// that asks for leave.
    pub fn new(allow: Allow) -> (Self, mpsc::Receiver<HostPower>) {
        let (tell, events) = mpsc::channel(MESSAGES);
        (Self { tell, allow }, events)
    }

    /// A message. Doesn't block.
    pub fn on_message(&self, kind: u32, message: isize) {
        let event = match kind {
            // Only that the host has been idle: who wants to keep it awake has said so.
            CAN_SYSTEM_SLEEP => return (self.allow)(message),
            SYSTEM_WILL_SLEEP => HostPower::AboutToSleep(Delay {
                allow: self.allow.clone(),
                message,
                deadline: Instant::now() + ANSWER_TIME,
            }),
            SYSTEM_HAS_POWERED_ON => HostPower::WokeUp,
            _ => return,
        };
        // One that nobody takes is dropped, and with it the delay.
        let _ = self.tell.try_send(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn messages() -> (Messages, mpsc::Receiver<HostPower>, Arc<Mutex<Vec<isize>>>) {
        let allowed = Arc::new(Mutex::new(Vec::new()));
        let to = allowed.clone();
        let (messages, events) = Messages::new(Arc::new(move |id| to.lock().unwrap().push(id)));
        (messages, events, allowed)
    }

    #[test]
    fn an_idle_host_may_sleep_at_once() {
        let (messages, mut events, allowed) = messages();
        messages.on_message(CAN_SYSTEM_SLEEP, 7);
        assert_eq!(*allowed.lock().unwrap(), [7]);
        assert!(events.try_recv().is_err());
    }

    #[test]
    fn a_host_about_to_sleep_waits_until_the_delay_is_dropped() {
        let (messages, mut events, allowed) = messages();
        let before = Instant::now();
        messages.on_message(SYSTEM_WILL_SLEEP, 8);
        messages.on_message(SYSTEM_HAS_POWERED_ON, 0);
        let Ok(HostPower::AboutToSleep(delay)) = events.try_recv() else {
            panic!("it is about to sleep")
        };
        assert!(delay.deadline - before < Duration::from_secs(30));
        assert!(allowed.lock().unwrap().is_empty());
        drop(delay);
        assert_eq!(*allowed.lock().unwrap(), [8]);
        assert!(matches!(events.try_recv(), Ok(HostPower::WokeUp)));
        assert_eq!(*allowed.lock().unwrap(), [8]);
    }

    #[test]
    fn a_sleep_nobody_takes_notice_of_is_allowed() {
        let (messages, events, allowed) = messages();
        for id in 0..=isize::try_from(MESSAGES).unwrap() {
            messages.on_message(SYSTEM_WILL_SLEEP, id);
        }
        // The queue is full, and the last one could not get in.
        assert_eq!(*allowed.lock().unwrap(), [8]);
        drop(events);
        assert_eq!(allowed.lock().unwrap().len(), MESSAGES + 1);
        messages.on_message(SYSTEM_WILL_SLEEP, 99);
        assert_eq!(allowed.lock().unwrap().last(), Some(&99));
    }

    #[test]
    fn other_messages_are_no_business_of_ours() {
        let (messages, mut events, allowed) = messages();
        // That the host will power on, or will not sleep after all.
        for kind in [0xE000_0320, 0xE000_0290, 0] {
            messages.on_message(kind, 1);
        }
        assert!(events.try_recv().is_err());
        assert!(allowed.lock().unwrap().is_empty());
    }
}
