use super::super::prevent::prevent;
use super::super::{PowerError, SleepInhibitor};
use super::*;
use async_trait::async_trait;
use std::sync::{Mutex, MutexGuard};
use tokio::sync::{mpsc, watch};

/// How long the host lets its sleep be delayed.
const DELAY: Duration = Duration::from_secs(10);

/// A VM of a test.
#[derive(Clone)]
struct Vm {
    guest: Guest,
    /// How long a suspend, a shutdown or a sync takes.
    takes: Duration,
    /// How long until it is ready.
    boots: Duration,
    /// What its suspend fails with.
    refuses: Option<&'static str>,
}

fn vm(name: &str, action: SleepAction) -> Vm {
    Vm {
        guest: Guest {
            name: name.to_owned(),
            action,
            paused: false,
        },
        takes: Duration::from_secs(1),
        boots: Duration::ZERO,
        refuses: None,
    }
}

/// The VMs, and what was done to them and when, in seconds.
struct Book {
    vms: Mutex<Vec<Vm>>,
    log: Mutex<Vec<(u64, String)>>,
    begun: Instant,
    locks: Arc<()>,
    changes: watch::Sender<()>,
    refuses: bool,
    asked: Mutex<usize>,
}

impl Book {
    fn vms(&self) -> MutexGuard<'_, Vec<Vm>> {
        self.vms.lock().unwrap()
    }

    fn get(&self, name: &str) -> Vm {
        let vms = self.vms();
        vms.iter().find(|v| v.guest.name == name).unwrap().clone()
    }

    fn log(&self, what: String) {
        let at = self.begun.elapsed().as_secs();
        self.log.lock().unwrap().push((at, what));
    }

    /// What was done since the last time this was asked.
    fn done(&self) -> Vec<(u64, String)> {
        let mut done = std::mem::take(&mut *self.log.lock().unwrap());
        done.sort();
        done
    }

    fn locks(&self) -> usize {
        Arc::strong_count(&self.locks) - 1
    }

    fn remove(&self, name: &str) {
        self.vms().retain(|v| v.guest.name != name);
        self.changes.send_replace(());
    }
}

#[async_trait]
impl Guests for Book {
    fn list(&self) -> Vec<Guest> {
        self.vms().iter().map(|v| v.guest.clone()).collect()
    }

    async fn ready(&self, name: &str) -> Result<(), String> {
        tokio::time::sleep(self.get(name).boots).await;
        Ok(())
    }

    async fn suspend(&self, name: &str) -> Result<(), String> {
        let vm = self.get(name);
        tokio::time::sleep(vm.takes).await;
        if let Some(why) = vm.refuses {
            return Err(why.to_owned());
        }
        self.remove(name);
        self.log(format!("{name} suspended"));
        Ok(())
    }

    async fn shut_down(&self, name: &str) -> Result<(), String> {
        self.log(format!("{name} asked to power off"));
        tokio::time::sleep(self.get(name).takes).await;
        self.remove(name);
        self.log(format!("{name} off"));
        Ok(())
    }

    async fn sync(&self, name: &str) -> Result<(), String> {
        tokio::time::sleep(self.get(name).takes).await;
        self.log(format!("{name} synced"));
        Ok(())
    }

    async fn restore(&self, name: &str, paused: bool) -> Result<(), String> {
        let how = if paused { "paused" } else { "running" };
        self.log(format!("{name} restored {how}"));
        Ok(())
    }

    fn set_clocks(&self) {
        self.log("clocks".to_owned());
    }
}

#[async_trait]
impl SleepInhibitor for Book {
    async fn inhibit(&self) -> Result<Hold, PowerError> {
        *self.asked.lock().unwrap() += 1;
        if self.refuses {
            return Err(PowerError::Refused("no".to_owned()));
        }
        Ok(Box::new(self.locks.clone()))
    }
}

struct Events(mpsc::UnboundedReceiver<PowerEvent>);

#[async_trait]
impl PowerEvents for Events {
    async fn next(&mut self) -> Option<PowerEvent> {
        self.0.recv().await
    }
}

struct Host {
    book: Arc<Book>,
    events: mpsc::UnboundedSender<PowerEvent>,
    tasks: JoinSet<()>,
}

fn book(vms: Vec<Vm>, refuses: bool) -> Arc<Book> {
    Arc::new(Book {
        vms: Mutex::new(vms),
        log: Mutex::default(),
        begun: Instant::now(),
        locks: Arc::new(()),
        changes: watch::channel(()).0,
        refuses,
        asked: Mutex::default(),
    })
}

fn host(vms: Vec<Vm>) -> Host {
    let book = book(vms, false);
    let (events, received) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(Sleeper::new(book.clone()).run(Box::new(Events(received))));
    Host {
        book,
        events,
        tasks,
    }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

impl Host {
    /// Tells that it goes to sleep. What is returned has one owner when it may.
    fn dusk(&self) -> Arc<()> {
        let delay = Arc::new(());
        let event = PowerEvent::AboutToSleep {
            delay: Box::new(delay.clone()),
            deadline: Instant::now() + DELAY,
        };
        self.events.send(event).ok().unwrap();
        delay
    }

    /// Goes to sleep; tells how long that was delayed.
    async fn sleep(&self) -> Duration {
        let begun = Instant::now();
        let delay = self.dusk();
        while Arc::strong_count(&delay) > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        begun.elapsed()
    }

    fn wake(&self) {
        self.events.send(PowerEvent::WokeUp).ok().unwrap();
    }

    /// What happens until then.
    async fn after(&self, time: Duration) -> Vec<(u64, String)> {
        tokio::time::sleep(time).await;
        self.book.done()
    }
}

fn said(wanted: &[(u64, &str)]) -> Vec<(u64, String)> {
    let said = wanted.iter().map(|(at, what)| (*at, (*what).to_owned()));
    said.collect()
}

#[tokio::test(start_paused = true)]
async fn every_group_gets_what_it_asks_for() {
    let host = host(vec![
        vm("none-1", SleepAction::None),
        vm("prevent-1", SleepAction::Prevent),
        vm("shutdown-1", SleepAction::Shutdown),
        vm("suspend-1", SleepAction::Suspend),
    ]);
    let delayed = host.sleep().await;
    assert!(delayed < seconds(2), "{delayed:?}");
    assert_eq!(
        host.book.done(),
        said(&[
            (0, "shutdown-1 asked to power off"),
            (1, "none-1 synced"),
            (1, "prevent-1 synced"),
            (1, "shutdown-1 off"),
            (1, "suspend-1 suspended"),
        ])
    );
    assert_eq!(host.after(seconds(59)).await, []);
    host.wake();
    assert_eq!(
        host.after(seconds(10)).await,
        said(&[(60, "clocks"), (65, "suspend-1 restored running")])
    );
    // Nothing is left to do for the next wake.
    host.wake();
    assert_eq!(host.after(seconds(10)).await, said(&[(70, "clocks")]));
}

#[tokio::test(start_paused = true)]
async fn a_host_without_vms_sleeps_at_once() {
    let host = host(Vec::new());
    assert!(host.sleep().await < seconds(1));
}

#[tokio::test(start_paused = true)]
async fn what_was_paused_is_so_again() {
    let mut frozen = vm("a-1", SleepAction::Suspend);
    frozen.guest.paused = true;
    let mut dumb = vm("b-1", SleepAction::None);
    dumb.guest.paused = true;
    let host = host(vec![frozen, dumb]);
    host.sleep().await;
    host.wake();
    assert_eq!(
        host.after(seconds(10)).await,
        said(&[
            (1, "a-1 suspended"),
            (1, "clocks"),
            (6, "a-1 restored paused")
        ])
    );
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_suspended_is_shut_down() {
    let host = host(vec![Vm {
        refuses: Some("no room"),
        ..vm("a-1", SleepAction::Suspend)
    }]);
    let delayed = host.sleep().await;
    assert!(
        (seconds(2)..seconds(3)).contains(&delayed),
        "delayed by {delayed:?}"
    );
    host.wake();
    assert_eq!(
        host.after(seconds(10)).await,
        said(&[(1, "a-1 asked to power off"), (2, "a-1 off"), (2, "clocks")])
    );
}

#[tokio::test(start_paused = true)]
async fn a_suspend_that_takes_longer_than_there_is_time_is_taken_back_after_the_wake() {
    let slow = Vm {
        takes: seconds(30),
        ..vm("a-1", SleepAction::Suspend)
    };
    let host = host(vec![slow]);
    let delayed = host.sleep().await;
    assert!(
        (DELAY..DELAY + seconds(1)).contains(&delayed),
        "{delayed:?}"
    );
    host.wake();
    assert_eq!(
        host.after(seconds(30)).await,
        said(&[
            (10, "clocks"),
            (30, "a-1 restored running"),
            (30, "a-1 suspended"),
        ])
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_is_begun_when_it_is_late() {
    let host = host(vec![
        // Fails after the wake, when there is no reason left to shut it down.
        Vm {
            takes: seconds(30),
            refuses: Some("no room"),
            ..vm("a-1", SleepAction::Suspend)
        },
        // Becomes ready during the sleep.
        Vm {
            boots: seconds(12),
            ..vm("b-1", SleepAction::Suspend)
        },
    ]);
    host.sleep().await;
    host.wake();
    assert_eq!(host.after(seconds(60)).await, said(&[(10, "clocks")]));
    assert_eq!(host.book.list().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_sleep_that_is_called_off_ends_what_was_not_begun() {
    let host = host(vec![Vm {
        boots: seconds(5),
        ..vm("a-1", SleepAction::Suspend)
    }]);
    let delay = host.dusk();
    tokio::time::sleep(seconds(1)).await;
    host.wake();
    assert_eq!(host.after(seconds(60)).await, said(&[(1, "clocks")]));
    assert_eq!(Arc::strong_count(&delay), 1);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_sleeps_again_before_vms_are_restored_has_them_restored_later() {
    let host = host(vec![vm("a-1", SleepAction::Suspend)]);
    host.sleep().await;
    host.wake();
    tokio::time::sleep(seconds(3)).await;
    host.sleep().await;
    assert_eq!(
        host.after(seconds(20)).await,
        said(&[(1, "a-1 suspended"), (1, "clocks")])
    );
    host.wake();
    let done = host.after(seconds(10)).await;
    assert_eq!(done, said(&[(24, "clocks"), (29, "a-1 restored running")]));
}

#[tokio::test(start_paused = true)]
async fn what_sleeps_is_woken_when_nobody_tells_any_more() {
    let host = host(vec![vm("a-1", SleepAction::Suspend)]);
    host.sleep().await;
    assert_eq!(host.book.done(), said(&[(1, "a-1 suspended")]));
    let Host {
        book,
        events,
        tasks,
    } = host;
    drop(events);
    tokio::time::sleep(seconds(10)).await;
    assert_eq!(
        book.done(),
        said(&[(1, "clocks"), (6, "a-1 restored running")])
    );
    assert_eq!(tasks.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_host_is_kept_awake_while_a_vm_runs_that_asks_for_it() {
    let book = book(
        vec![
            vm("a-1", SleepAction::Suspend),
            vm("p-1", SleepAction::Prevent),
            vm("p-2", SleepAction::Prevent),
        ],
        false,
    );
    let mut tasks = JoinSet::new();
    let (guests, changes) = (book.clone(), book.changes.subscribe());
    tasks.spawn(async move { prevent(&*guests, &*guests, changes).await });
    let settle = || tokio::time::sleep(Duration::from_millis(10));
    settle().await;
    assert_eq!(book.locks(), 1);
    book.remove("p-1");
    settle().await;
    assert_eq!(book.locks(), 1);
    // One that is paused does nothing.
    book.vms()[1].guest.paused = true;
    book.changes.send_replace(());
    settle().await;
    assert_eq!(book.locks(), 0);
    book.vms()[1].guest.paused = false;
    book.changes.send_replace(());
    settle().await;
    assert_eq!(book.locks(), 1);
    book.remove("p-2");
    settle().await;
    assert_eq!(book.locks(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_can_not_be_kept_awake_is_asked_again_with_the_next_vm() {
    let book = book(vec![vm("p-1", SleepAction::Prevent)], true);
    let mut tasks = JoinSet::new();
    let (guests, changes) = (book.clone(), book.changes.subscribe());
    tasks.spawn(async move { prevent(&*guests, &*guests, changes).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    book.changes.send_replace(());
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(book.locks(), 0);
    assert_eq!(*book.asked.lock().unwrap(), 2);
}
