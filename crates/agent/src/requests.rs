//! What the guest asks of its host.
//!
//! Programs of the guest ask at a socket that root alone can reach. The agent can't open streams to
//! the host, so the host keeps one open to the agent, `GET /requests`, on which it is told. Such a
//! stream ends with the agent that serves it, which is how the host knows that a new one has to be
//! told who it is.

use crate::error::{AgentError, io_error};
use crate::http::{self, AgentBody, Answer};
use crate::init::RUN_DIR;
use crate::server::Agent;
use bytes::Bytes;
use slicer_api::GuestRequest;
use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};

/// How long the host has to answer.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// How long the agent waits for a program to say what it wants, and it for the agent's answer.
const WORD_TIME: Duration = Duration::from_secs(2);
/// The longest word, and answer, bytes.
const WORD_LIMIT: u64 = 1 << 10;
/// Programs that are served at a time.
const MAX_PROGRAMS: usize = 16;
/// What an accept waits that failed, as it does without free descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a program says that wants secrets, and what it is told when it has them.
const SECRETS: &str = "secrets";
const DONE: &str = "done";

/// Requests on their way to the host.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// The newest request for secrets, and the newest that was answered: 0 is none.
    asked: watch::Sender<u64>,
    answered: watch::Sender<u64>,
    /// How many streams of the host's there are.
    hosts: watch::Sender<usize>,
}

impl Requests {
    /// Notes that secrets have come which answer this request.
    pub(crate) fn secrets_given(&self, answers: u64) {
        self.answered.send_modify(|a| *a = answers.max(*a));
    }

    /// Asks for secrets; returns when they are there, or says why not.
    async fn secrets(&self) -> Result<(), String> {
        let mut id = 0;
        self.asked.send_modify(|asked| {
            *asked += 1;
            id = *asked;
        });
        let mut answered = self.answered.subscribe();
        let answer = answered.wait_for(|a| *a >= id);
        match tokio::time::timeout(ANSWER_TIME, answer).await {
            Ok(_) => Ok(()),
            Err(_) if *self.hosts.borrow() == 0 => Err(format!(
                "the host did not listen for {} s: is its daemon running?",
                ANSWER_TIME.as_secs()
            )),
            Err(_) => Err(format!(
                "the host did not answer within {} s: its daemon's log says why",
                ANSWER_TIME.as_secs()
            )),
        }
    }

    /// Tells the host, line by line, until it leaves.
    async fn tell(&self, lines: mpsc::Sender<Bytes>) {
        self.hosts.send_modify(|n| *n += 1);
        let mut asked = self.asked.subscribe();
        asked.mark_changed();
        loop {
            tokio::select! {
                // The sender is self, so this can't fail.
                _ = asked.changed() => {}
                () = lines.closed() => break,
            }
            let id = *asked.borrow_and_update();
            if id <= *self.answered.borrow() {
                continue;
            }
            let request = GuestRequest::Secrets { id };
            let mut line = serde_json::to_vec(&request).unwrap_or_default();
            line.push(b'\n');
            if lines.send(line.into()).await.is_err() {
                break;
            }
        }
        self.hosts.send_modify(|n| *n = n.saturating_sub(1));
    }
}

/// `GET /requests`: the guest's requests, a line of JSON each, for as long as the host listens.
pub(crate) fn handle(agent: &Arc<Agent>) -> Answer {
    let (lines, receiver) = mpsc::channel(1);
    let teller = Arc::clone(agent);
    agent
        .tasks
        .spawn(async move { teller.requests.tell(lines).await });
    http::answer("application/x-ndjson", AgentBody::Stream(receiver))
}

/// Where programs of the guest ask.
pub(crate) fn socket() -> PathBuf {
    Path::new(RUN_DIR).join("agent.sock")
}

/// Serves the programs that ask at `path`, for ever.
pub(crate) async fn serve(agent: Arc<Agent>, path: PathBuf) -> Result<(), AgentError> {
    // A former worker's.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(io_error::<io::Error>("listen on", &path))?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))
        .map_err(io_error("change mode of", &path))?;
    let places = Arc::new(Semaphore::new(MAX_PROGRAMS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return Ok(());
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let server = Arc::clone(&agent);
        agent.tasks.spawn(async move {
            // One that breaks off has lost interest.
            let _ = answer(&server.requests, stream).await;
            drop(place);
        });
    }
}

async fn answer(requests: &Requests, mut stream: UnixStream) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut word = String::new();
    let mut limited = reader.take(WORD_LIMIT);
    tokio::time::timeout(WORD_TIME, limited.read_to_string(&mut word)).await??;
    let outcome = match word.trim() {
        SECRETS => requests.secrets().await,
        other => Err(format!("the agent does not know {other:.40?}")),
    };
    let text = match outcome {
        Ok(()) => DONE.to_owned(),
        Err(why) => why,
    };
    tokio::time::timeout(WORD_TIME, writer.write_all(text.as_bytes())).await?
}

/// `slicer-agent secrets sync`: asks the agent at `path` for the host's secrets, and blocks until
/// they are there.
pub(crate) fn sync_secrets(path: &Path) -> Result<(), String> {
    let asked = || {
        let mut stream = StdUnixStream::connect(path)?;
        stream.set_read_timeout(Some(ANSWER_TIME + WORD_TIME))?;
        stream.set_write_timeout(Some(WORD_TIME))?;
        stream.write_all(SECRETS.as_bytes())?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut text = String::new();
        stream.take(WORD_LIMIT).read_to_string(&mut text)?;
        Ok::<_, io::Error>(text)
    };
    let text = asked().map_err(|e| match e.kind() {
        io::ErrorKind::PermissionDenied => "only root may ask for secrets: use sudo".to_owned(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!("no agent listens on {}", path.display())
        }
        _ => format!("cannot ask the agent on {}: {e}", path.display()),
    })?;
    match text.as_str() {
        DONE => Ok(()),
        "" => Err("the agent broke off".to_owned()),
        why => Err(why.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Scope;

    #[tokio::test]
    async fn a_request_reaches_the_host_and_its_answer_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let agent = Agent::new(Scope::Process);
        let serving = tokio::spawn(serve(Arc::clone(&agent), path.clone()));
        while !path.exists() {
            tokio::task::yield_now().await;
        }
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let program = tokio::task::spawn_blocking({
            let path = path.clone();
            move || sync_secrets(&path)
        });
        // A host that comes later is told all the same.
        let mut asked = agent.requests.asked.subscribe();
        asked.wait_for(|n| *n == 1).await.unwrap();
        let (lines, mut told) = mpsc::channel(1);
        let teller = Arc::clone(&agent);
        let telling = tokio::spawn(async move { teller.requests.tell(lines).await });
        let line = told.recv().await.unwrap();
        let request: GuestRequest = serde_json::from_slice(&line).unwrap();
        assert_eq!(request, GuestRequest::Secrets { id: 1 });
        assert_eq!(*agent.requests.hosts.borrow(), 1);
        agent.requests.secrets_given(1);
        program.await.unwrap().unwrap();

        drop(told);
        telling.await.unwrap();
        assert_eq!(*agent.requests.hosts.borrow(), 0);
        let wrong = tokio::task::spawn_blocking(move || {
            let mut stream = StdUnixStream::connect(&path).unwrap();
            stream.write_all(b"everything").unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        });
        assert!(wrong.await.unwrap().contains("everything"));
        serving.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_does_not_listen_is_said_so() {
        let requests = Requests::default();
        let why = requests.secrets().await.unwrap_err();
        assert!(why.contains("daemon running"), "{why}");
    }

    #[test]
    fn without_an_agent_there_is_nobody_to_ask() {
        let dir = tempfile::tempdir().unwrap();
        let why = sync_secrets(&dir.path().join("agent.sock")).unwrap_err();
        assert!(why.contains("no agent listens"), "{why}");
    }
}
