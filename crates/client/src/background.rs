//! Background exec.

use crate::client::{Call, segment, vm_path};
use crate::conn::{Connection, empty_body};
use crate::exec::MAX_LINE;
use crate::lines::{LineDecoder, LineTooLong};
use crate::{Client, ClientError};
use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::Incoming;
use slicer_api::{
    BackgroundExec, ExecInfo, ExecRequest, FrameType, KillRequest, Killed, LogFrame, LogsRequest,
    MAX_WAIT, Reaped, WaitExit,
};
use std::time::Duration;

/// How often a broken log is asked for again before that counts as failed, and the pause before.
const RETRIES: u32 = 5;
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// What a daemon gets on top of a wait.
const WAIT_GRACE: Duration = Duration::from_secs(30);

fn exec_path(hostname: &str, id: &str, action: &str) -> String {
    vm_path(hostname, &format!("/exec/{}{action}", segment(id)))
}

impl Client {
    /// `POST /vm/{h}/exec?background=true`: starts a command that goes on without its client.
    pub async fn start_background(
        &self,
        hostname: &str,
        request: &ExecRequest,
    ) -> Result<BackgroundExec, ClientError> {
        let request = ExecRequest {
            stdin: false,
            buffered: false,
            background: true,
            ..request.clone()
        };
        let path = vm_path(hostname, "/exec");
        self.fetch(Call::post(&path).query(request.to_query()))
            .await
    }

    /// `GET /vm/{h}/exec`: all background execs, running or not removed yet.
    pub async fn background_execs(&self, hostname: &str) -> Result<Vec<ExecInfo>, ClientError> {
        self.fetch_list(Call::get(&vm_path(hostname, "/exec")))
            .await
    }

    /// `GET /vm/{h}/exec/{id}`: one of them.
    pub async fn background_exec(&self, hostname: &str, id: &str) -> Result<ExecInfo, ClientError> {
        self.fetch(Call::get(&exec_path(hostname, id, ""))).await
    }

    /// `GET /vm/{h}/exec/{id}/logs`: the frames that are still there, and with `follow` those to
    /// come until the exit frame. A log that is followed goes on where it was when its connection
    /// breaks.
    pub async fn background_logs(
        &self,
        hostname: &str,
        id: &str,
        request: LogsRequest,
    ) -> Result<LogStream, ClientError> {
        let mut stream = LogStream {
            client: self.clone(),
            path: exec_path(hostname, id, "/logs"),
            request,
            open: None,
            retries: 0,
            over: false,
        };
        stream.connect().await?;
        Ok(stream)
    }

    /// `GET /vm/{h}/exec/{id}/wait-exit`: waits for a command's end, at most 10 minutes.
    pub async fn wait_background(
        &self,
        hostname: &str,
        id: &str,
        timeout: Duration,
    ) -> Result<WaitExit, ClientError> {
        // 0 would be the daemon's default.
        let secs = timeout.min(MAX_WAIT).as_secs_f64().ceil().max(1.0);
        let path = exec_path(hostname, id, "/wait-exit");
        let mut call = Call::get(&path).query(format!("timeout={secs}"));
        call.limit = Duration::from_secs_f64(secs) + WAIT_GRACE;
        self.fetch(call).await
    }

    /// `POST /vm/{h}/exec/{id}/kill`: sends a command's process group a signal.
    pub async fn kill_background(
        &self,
        hostname: &str,
        id: &str,
        request: &KillRequest,
    ) -> Result<Killed, ClientError> {
        let path = exec_path(hostname, id, "/kill");
        self.fetch(Call::post(&path).json(request)?).await
    }

    /// `DELETE /vm/{h}/exec/{id}`: forgets a command that has ended, its log included.
    pub async fn remove_background(&self, hostname: &str, id: &str) -> Result<Reaped, ClientError> {
        let path = exec_path(hostname, id, "");
        self.fetch(Call::new(Method::DELETE, &path)).await
    }
}

#[derive(Debug)]
struct Open {
    lines: LineDecoder,
    body: Incoming,
    _connection: Connection,
}

/// The frames of a background exec.
#[derive(Debug)]
pub struct LogStream {
    client: Client,
    path: String,
    request: LogsRequest,
    open: Option<Open>,
    retries: u32,
    over: bool,
}

impl LogStream {
    async fn connect(&mut self) -> Result<(), ClientError> {
        let call = Call::get(&self.path).query(self.request.to_query());
        let (response, connection) = self.client.send(&call, empty_body()).await?;
        self.open = Some(Open {
            lines: LineDecoder::new(MAX_LINE),
            body: response.into_body(),
            _connection: connection,
        });
        Ok(())
    }

    fn what(&self) -> String {
        format!("GET {}", self.path)
    }

    /// The next frame; none at the end, which of a log that is followed is after its exit frame.
    pub async fn next_frame(&mut self) -> Option<Result<LogFrame, ClientError>> {
        while !self.over {
            let broken = match self.read().await {
                Ok(Some(frame)) => {
                    self.retries = 0;
                    self.request.from_id = frame.id.saturating_add(1);
                    self.over = frame.frame.kind == Some(FrameType::Exit);
                    return Some(Ok(frame));
                }
                Ok(None) if !self.request.follow => {
                    self.over = true;
                    return None;
                }
                Ok(None) => ClientError::Truncated {
                    request: self.what(),
                },
                Err(e) => e,
            };
            // Only what broke is tried again, not what was refused or makes no sense.
            let passing = matches!(
                broken,
                ClientError::Truncated { .. }
                    | ClientError::Transport { .. }
                    | ClientError::BrokenOff { .. }
                    | ClientError::Connect { .. }
                    | ClientError::NoDaemon { .. }
            );
            if !passing || !self.request.follow || self.retries >= RETRIES {
                self.over = true;
                return Some(Err(broken));
            }
            self.open = None;
            tokio::time::sleep(RETRY_PAUSE * 2u32.pow(self.retries)).await;
            self.retries += 1;
        }
        None
    }

    async fn read(&mut self) -> Result<Option<LogFrame>, ClientError> {
        if self.open.is_none() {
            self.connect().await?;
        }
        let what = self.what();
        let Some(open) = &mut self.open else {
            return Ok(None);
        };
        loop {
            let line = open
                .lines
                .next_line()
                .map_err(|LineTooLong| ClientError::TooLarge {
                    request: what.clone(),
                    limit: MAX_LINE,
                })?;
            if let Some(line) = line {
                return serde_json::from_slice(&line).map(Some).map_err(|source| {
                    ClientError::Decode {
                        request: what.clone(),
                        source,
                    }
                });
            }
            match open.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        open.lines.push(data);
                    }
                }
                Some(Err(source)) => {
                    return Err(ClientError::BrokenOff {
                        request: what,
                        source,
                    });
                }
                None => return Ok(None),
            }
        }
    }
}
