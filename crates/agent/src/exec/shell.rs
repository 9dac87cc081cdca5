//! `GET /shell`: an interactive shell on a terminal, over a WebSocket.

use super::pty::Pty;
use super::spawn::{self, Process};
use crate::http::{self, Answer};
use crate::server::Agent;
use crate::upgrade::{self, Socket};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::Request;
use hyper::body::Incoming;
use rustix::process::Signal;
use slicer_api::{
    ApiError, ExecRequest, MAX_SHELL_DATA, ShellFrame, ShellRequest, whole_characters,
};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::tungstenite::Message;

/// How long a character's missing bytes are waited for before its first ones are sent alone.
const CHARACTER_TIME: Duration = Duration::from_millis(50);
/// How long a terminal must be silent, after its shell has ended, to be taken as done. Programs
/// in the background may hold it for ever.
const SILENCE: Duration = Duration::from_millis(100);
/// How long a shell has to end that was hung up on.
const HANGUP_GRACE: Duration = Duration::from_secs(2);
/// How long programs may leave what was typed unread. The client is not heard meanwhile.
const TYPING_TIME: Duration = Duration::from_mins(1);
/// How long a client has to take the last messages.
const FAREWELL_TIME: Duration = Duration::from_secs(5);
/// Heartbeats that may wait to be answered.
const ECHOES: usize = 4;

/// Starts the shell, then agrees to the WebSocket: what is wrong is an HTTP error before.
pub(crate) fn handle(agent: &Arc<Agent>, mut request: Request<Incoming>) -> Answer {
    let started = start(agent, &request);
    let accepted = started.and_then(|shell| {
        let (answer, socket) = upgrade::websocket(&mut request)?;
        Ok((shell, answer, socket))
    });
    let ((process, pty), answer, socket) = match accepted {
        Ok(accepted) => accepted,
        Err(e) => return http::error(&e),
    };
    agent.tasks.spawn(async move {
        match socket.await {
            Ok(socket) => serve(process, pty, socket).await,
            Err(_) => hang_up(process, pty).await,
        }
    });
    answer
}

fn start(agent: &Agent, request: &Request<Incoming>) -> Result<(Process, Pty), ApiError> {
    agent.check_ready()?;
    if !upgrade::wants(request, "websocket") {
        return Err(ApiError::bad_request("a shell needs a WebSocket"));
    }
    let shell = ShellRequest::from_query(request.uri().query().unwrap_or_default())
        .map_err(|e| ApiError::bad_request(e.to_string()))?;
    let database = agent.users.get();
    let refused = |f: spawn::Failure| ApiError::bad_request(f.error);
    let user = spawn::user(shell.uid, &database).map_err(refused)?;
    let program = shell.shell.unwrap_or_else(|| {
        // An image may name a shell that it doesn't have.
        if Path::new(&user.shell).is_file() {
            user.shell.clone()
        } else {
            "/bin/sh".to_owned()
        }
    });
    let exec = ExecRequest {
        cmd: program.clone(),
        env: vec!["TERM=xterm-256color".to_owned()],
        uid: shell.uid,
        gid: shell.gid,
        cwd: shell.cwd,
        ..ExecRequest::default()
    };
    super::check_cwd(exec.cwd.as_deref())?;
    let plan = spawn::plan(&exec, &database).map_err(refused)?;
    let root = rustix::process::geteuid().is_root();
    let (pty, shell_end) = Pty::open(root.then_some(plan.uid()))
        .map_err(|e| ApiError::internal(format!("cannot open a terminal: {e}")))?;
    let process = plan
        .into_login(&program)
        .spawn_on(shell_end)
        .map_err(refused)?;
    Ok((process, pty))
}

/// Serves a session to its end: that of the shell, or that of its client.
async fn serve(mut process: Process, pty: Pty, socket: Socket) {
    let (mut sink, mut stream) = socket.split();
    let (ended, has_ended) = watch::channel(false);
    let (echo, echoes) = mpsc::channel(ECHOES);
    let status = {
        let typing = type_in(&mut stream, &pty, echo);
        let showing = show(&mut sink, &pty, has_ended, echoes);
        tokio::pin!(typing, showing);
        let mut shown = false;
        loop {
            tokio::select! {
                status = process.child.wait() => {
                    ended.send_replace(true);
                    if !shown {
                        let _ = tokio::time::timeout(FAREWELL_TIME, &mut showing).await;
                    }
                    break Some(status);
                }
                () = &mut typing => break None,
                done = &mut showing, if !shown => match done {
                    // All that was on the terminal has gone; the shell is about to.
                    Ok(()) => shown = true,
                    Err(_) => break None,
                },
            }
        }
    };
    let Some(status) = status else {
        // A client that asked for the end learns that it has come, not that something broke.
        let close = sink.send(Message::Close(Some(upgrade::normal_close())));
        let close = tokio::time::timeout(FAREWELL_TIME, close);
        let _ = tokio::join!(hang_up(process, pty), close);
        return;
    };
    let code = status.map_or(1, exit_code);
    let farewell = async {
        let frame = ShellFrame::SessionClose(Some(code)).encode();
        sink.send(Message::Binary(frame.into())).await?;
        sink.send(Message::Close(Some(upgrade::normal_close())))
            .await?;
        // The client's own close, or nothing more.
        while let Some(Ok(_)) = stream.next().await {}
        sink.close().await
    };
    let _ = tokio::time::timeout(FAREWELL_TIME, farewell).await;
}

/// The exit code of a shell's own, or 128 and the signal's number.
fn exit_code(status: ExitStatus) -> u32 {
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    code.unsigned_abs()
}

/// Ends a shell whose client has left, as a terminal that is closed does.
async fn hang_up(mut process: Process, pty: Pty) {
    let _ = rustix::process::kill_process_group(process.group(), Signal::HUP);
    // The kernel tells whoever is in the foreground.
    drop(pty);
    if tokio::time::timeout(HANGUP_GRACE, process.child.wait())
        .await
        .is_err()
    {
        process.abandon().await;
    }
}

/// Does what the client says until it leaves.
async fn type_in(stream: &mut SplitStream<Socket>, pty: &Pty, echo: mpsc::Sender<()>) {
    while let Some(Ok(message)) = stream.next().await {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Close(_) => return,
            _ => continue,
        };
        match ShellFrame::decode(&bytes) {
            Some(ShellFrame::Data(data)) => {
                let typed = tokio::time::timeout(TYPING_TIME, pty.write_all(data)).await;
                if let Ok(Err(_)) = typed {
                    return;
                }
            }
            Some(ShellFrame::WindowSize { columns, rows }) => {
                // What can't be set is not worth the session.
                let _ = pty.resize(columns, rows);
            }
            Some(ShellFrame::Shutdown) => return,
            Some(ShellFrame::Heartbeat) => drop(echo.try_send(())),
            Some(ShellFrame::SessionClose(_)) | None => {}
        }
    }
}

/// Sends what the terminal shows until nothing is on it any more, or its shell has ended and it
/// is silent.
async fn show(
    sink: &mut SplitSink<Socket, Message>,
    pty: &Pty,
    mut ended: watch::Receiver<bool>,
    mut echoes: mpsc::Receiver<()>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut buffer = vec![0; MAX_SHELL_DATA];
    // Bytes at the beginning of the buffer that may be the first of a character.
    let mut kept = 0;
    let mut over = *ended.borrow();
    loop {
        let limit = match (kept, over) {
            (0, false) => Duration::MAX,
            (0, true) => SILENCE,
            _ => CHARACTER_TIME,
        };
        let read = tokio::select! {
            read = tokio::time::timeout(limit, pty.read(&mut buffer[kept..])) => read,
            Some(()) = echoes.recv() => {
                let frame = ShellFrame::Heartbeat.encode();
                sink.send(Message::Binary(frame.into())).await?;
                continue;
            }
            Ok(()) = ended.changed(), if !over => {
                over = true;
                continue;
            }
        };
        let (length, at_end, split) = match read {
            Ok(read) => {
                let read = read?;
                (kept + read, read == 0, read == 0)
            }
            Err(_) if kept == 0 => return Ok(()),
            // The rest of the character didn't come.
            Err(_) => (kept, false, true),
        };
        let send = if split {
            length
        } else {
            whole_characters(&buffer[..length])
        };
        if send > 0 {
            let frame = ShellFrame::Data(&buffer[..send]).encode();
            sink.send(Message::Binary(Bytes::from(frame))).await?;
        }
        if at_end {
            return Ok(());
        }
        buffer.copy_within(send..length, 0);
        kept = length - send;
    }
}
