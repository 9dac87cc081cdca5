//! Starting daemons so that none outlives the tests, however these end.

use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::thread;

type Job = (Command, Sender<std::io::Result<Child>>);

static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();

/// A command that is killed when the thread that starts it ends, which [`spawn`] sees to being the
/// end of the tests.
pub(crate) fn mortal(program: &std::path::Path) -> Command {
    wrapped(&[], program)
}

/// Such a command, with words before it that start it in some other way.
pub(crate) fn wrapped(words: &[String], program: &std::path::Path) -> Command {
    let all = words.iter().map(String::as_str);
    let mut all = all.chain(["setpriv", "--pdeathsig", "KILL", "--"]);
    let mut command = Command::new(all.next().unwrap_or("setpriv"));
    command.args(all).arg(program);
    command
}

/// Starts a process from a thread that lives as long as this process: the kernel's parent-death
/// signal is sent when the thread that forked ends, and threads of tests end early.
pub(crate) fn spawn(command: Command) -> std::io::Result<Child> {
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue): (Sender<Job>, Receiver<Job>) = channel();
        thread::spawn(move || {
            for (mut command, reply) in queue {
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(jobs)
    });
    let (reply, child) = channel();
    spawner.lock().unwrap().send((command, reply)).unwrap();
    child.recv().unwrap()
}
