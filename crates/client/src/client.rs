//! One method per REST call.

use crate::conn::{Connection, Pool, RequestBody, empty_body};
use crate::{ClientError, ExecStream, Stdin, Token};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::Incoming;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use slicer_api::{
    CreateNode, CreatedNode, DeletedNode, Endpoint, ErrorBody, ExecBuffered, ExecRequest, Health,
    HostGroup, Info, Logs, Node, NodeDetail, ShutdownAction, ShutdownRequest, Wait,
};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::io::ReaderStream;

/// How long an ordinary call may take.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// How long a create may take that waits for nothing; also the daemon's default wait.
pub(crate) const CREATE_LIMIT: Duration = Duration::from_mins(5);
/// How long a VM's memory may take to get to disk.
const SUSPEND_LIMIT: Duration = Duration::from_mins(15);
/// What a daemon gets on top of a wait it was asked for, to answer that it ran out.
pub(crate) const WAIT_GRACE: Duration = Duration::from_secs(30);
/// How long the rest of an error's answer may take.
const ERROR_BODY_LIMIT: Duration = Duration::from_secs(5);

const MAX_ANSWER: usize = 64 << 20;
const MAX_ERROR_BODY: usize = 64 << 10;
/// A daemon caps a buffered exec's output at 256 MiB, which base64 makes a third longer.
const MAX_BUFFERED: usize = 384 << 20;
const STDIN_CHUNK: usize = 64 << 10;

/// What stands for itself in a segment of a path (RFC 3986, unreserved).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Which VMs a list shows. The daemon takes one of the two.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFilter {
    /// Only VMs with exactly this tag.
    pub tag: Option<String>,
    /// Only VMs with a tag that begins like this.
    pub tag_prefix: Option<String>,
}

impl NodeFilter {
    fn query(&self) -> String {
        let mut q = form_urlencoded::Serializer::new(String::new());
        for (key, value) in [("tag", &self.tag), ("tag_prefix", &self.tag_prefix)] {
            if let Some(value) = value {
                q.append_pair(key, value);
            }
        }
        q.finish()
    }
}

/// A daemon's API. Cheap to clone; clones share idle connections.
///
/// Every call is bounded: connecting takes at most 5 s, an ordinary call 30 s, a create the time
/// it was told to wait and a little more. Only an exec lasts as long as its command.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pool: Pool,
    host: HeaderValue,
    user_agent: HeaderValue,
    authorization: Option<HeaderValue>,
}

pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) path: &'a str,
    pub(crate) query: String,
    pub(crate) json: Option<Bytes>,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) limit: Duration,
    pub(crate) max_answer: usize,
}

impl<'a> Call<'a> {
    pub(crate) fn new(method: Method, path: &'a str) -> Self {
        Self {
            method,
            path,
            query: String::new(),
            json: None,
            headers: Vec::new(),
            limit: CALL_LIMIT,
            max_answer: MAX_ANSWER,
        }
    }

    pub(crate) fn get(path: &'a str) -> Self {
        Self::new(Method::GET, path)
    }

    pub(crate) fn post(path: &'a str) -> Self {
        Self::new(Method::POST, path)
    }

    pub(crate) fn query(mut self, query: String) -> Self {
        self.query = query;
        self
    }

    pub(crate) fn what(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    pub(crate) fn json(mut self, body: &impl Serialize) -> Result<Self, ClientError> {
        let json = serde_json::to_vec(body).map_err(|source| ClientError::Decode {
            request: self.what(),
            source,
        })?;
        self.json = Some(json.into());
        Ok(self)
    }
}

impl Client {
    /// A client of the daemon at `endpoint`. Nothing is connected yet. Without a token no
    /// `Authorization` is sent.
    pub fn new(
        endpoint: Endpoint,
        token: Option<&Token>,
        user_agent: &str,
    ) -> Result<Self, ClientError> {
        let authorization = token.map(|token| {
            // A token is printable ASCII, so this can't fail.
            HeaderValue::try_from(format!("Bearer {}", token.as_str())).map(|mut value| {
                value.set_sensitive(true);
                value
            })
        });
        let invalid = |source: header::InvalidHeaderValue| ClientError::Request {
            request: format!("talking to {endpoint}"),
            source: source.into(),
        };
        let host = match &endpoint {
            Endpoint::Unix(_) => HeaderValue::from_static("localhost"),
            Endpoint::Http { authority } => HeaderValue::from_str(authority).map_err(invalid)?,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                host,
                user_agent: HeaderValue::from_str(user_agent)
                    .map_err(|_| ClientError::UserAgent(user_agent.to_owned()))?,
                authorization: authorization.transpose().map_err(invalid)?,
                pool: Pool::new(endpoint),
            }),
        })
    }

    /// The daemon this client talks to.
    pub fn endpoint(&self) -> &Endpoint {
        self.inner.pool.endpoint()
    }

    /// `GET /info`: the daemon's version and platform.
    pub async fn info(&self) -> Result<Info, ClientError> {
        self.fetch(Call::get("/info")).await
    }

    /// `GET /healthz`: whether the daemon answers at all. Needs no token.
    pub async fn healthz(&self) -> Result<(), ClientError> {
        self.call(Call::get("/healthz")).await.map(drop)
    }

    /// `GET /hostgroup`: the groups VMs can be created in.
    pub async fn host_groups(&self) -> Result<Vec<HostGroup>, ClientError> {
        self.fetch_list(Call::get("/hostgroup")).await
    }

    /// `GET /nodes`: all VMs.
    pub async fn nodes(&self, filter: &NodeFilter) -> Result<Vec<Node>, ClientError> {
        self.fetch_list(Call::get("/nodes").query(filter.query()))
            .await
    }

    /// `GET /hostgroup/{g}/nodes`: the VMs of a group.
    pub async fn group_nodes(
        &self,
        group: &str,
        filter: &NodeFilter,
    ) -> Result<Vec<Node>, ClientError> {
        let path = format!("/hostgroup/{}/nodes", segment(group));
        self.fetch_list(Call::get(&path).query(filter.query()))
            .await
    }

    /// `GET /vm/{h}`: everything known about a VM.
    pub async fn node(&self, hostname: &str) -> Result<NodeDetail, ClientError> {
        self.fetch(Call::get(&vm_path(hostname, ""))).await
    }

    /// `POST /hostgroup/{g}/nodes`: creates a VM. With `wait` the answer comes when the VM is
    /// that far, or as status 408 after `timeout` (5 minutes unless given), the VM deleted.
    pub async fn create_node(
        &self,
        group: &str,
        node: &CreateNode,
        wait: Option<Wait>,
        timeout: Option<Duration>,
    ) -> Result<CreatedNode, ClientError> {
        let path = format!("/hostgroup/{}/nodes", segment(group));
        let mut call = Call::post(&path).json(node)?;
        call.limit = CREATE_LIMIT + WAIT_GRACE;
        if let Some(wait) = wait {
            let mut q = form_urlencoded::Serializer::new(String::new());
            q.append_pair("wait", &wait.to_string());
            if let Some(timeout) = timeout {
                q.append_pair("timeout", &go_millis(timeout));
                call.limit = timeout.saturating_add(WAIT_GRACE);
            }
            call.query = q.finish();
        }
        self.fetch(call).await
    }

    /// `DELETE /hostgroup/{g}/nodes/{h}`: ends a VM at once and removes its disk.
    pub async fn delete_node(
        &self,
        group: &str,
        hostname: &str,
    ) -> Result<DeletedNode, ClientError> {
        let path = format!("/hostgroup/{}/nodes/{}", segment(group), segment(hostname));
        self.fetch(Call::new(Method::DELETE, &path)).await
    }

    /// `GET /vm/{h}/health`: what the agent says about itself. Doesn't wait for it.
    pub async fn health(&self, hostname: &str) -> Result<Health, ClientError> {
        self.fetch(Call::get(&vm_path(hostname, "/health"))).await
    }

    /// `GET /vm/{h}/logs`: the last `lines` lines of the serial console, 20 unless given, all
    /// when 0.
    pub async fn logs(&self, hostname: &str, lines: Option<u64>) -> Result<Logs, ClientError> {
        let query = lines.map(|n| format!("lines={n}")).unwrap_or_default();
        self.fetch(Call::get(&vm_path(hostname, "/logs")).query(query))
            .await
    }

    /// `POST /vm/{h}/shutdown`: asks the guest to power off. Returns before it has.
    pub async fn shutdown(
        &self,
        hostname: &str,
        action: ShutdownAction,
    ) -> Result<(), ClientError> {
        let path = vm_path(hostname, "/shutdown");
        let body = ShutdownRequest {
            action: Some(action),
        };
        self.call(Call::post(&path).json(&body)?).await.map(drop)
    }

    /// `POST /vm/{h}/pause`: freezes a VM's CPUs.
    pub async fn pause(&self, hostname: &str) -> Result<(), ClientError> {
        self.call(Call::post(&vm_path(hostname, "/pause")))
            .await
            .map(drop)
    }

    /// `POST /vm/{h}/resume`: lets a paused VM run on.
    pub async fn resume(&self, hostname: &str) -> Result<(), ClientError> {
        self.call(Call::post(&vm_path(hostname, "/resume")))
            .await
            .map(drop)
    }

    /// `POST /vm/{h}/suspend`: writes a VM to disk and ends it. Done when this returns.
    pub async fn suspend(&self, hostname: &str) -> Result<(), ClientError> {
        let path = vm_path(hostname, "/suspend");
        let mut call = Call::post(&path);
        call.limit = SUSPEND_LIMIT;
        self.call(call).await.map(drop)
    }

    /// `POST /vm/{h}/restore`: has a suspended VM run on, and waits for its agent, at most as long
    /// as `timeout`. A VM that can't be restored is booted from its disk; what the daemon says of
    /// that is returned.
    pub async fn restore(
        &self,
        hostname: &str,
        timeout: Duration,
    ) -> Result<Option<String>, ClientError> {
        let path = vm_path(hostname, "/restore");
        let query = format!("wait=agent&timeout={}", go_millis(timeout));
        let mut call = Call::post(&path).query(query);
        call.limit = timeout.saturating_add(WAIT_GRACE);
        let answer = self.call(call).await?;
        let text = String::from_utf8_lossy(&answer).trim().to_owned();
        Ok(Some(text).filter(|t| t != slicer_api::RESTORED))
    }

    /// `POST /vm/{h}/relaunch`: starts a stopped VM again with its disk; one that is being stopped,
    /// as soon as it is.
    pub async fn relaunch(&self, hostname: &str) -> Result<CreatedNode, ClientError> {
        let path = vm_path(hostname, "/relaunch");
        let mut call = Call::post(&path);
        call.limit = CREATE_LIMIT + WAIT_GRACE;
        self.fetch(call).await
    }

    /// `POST /vm/{h}/exec`: runs a command and streams its output. `stdin`, when given, is sent
    /// as it can be read, both directions at once; `request.stdin` follows from it. Unbounded in
    /// time: dropping the future or the stream cancels the command.
    pub async fn exec(
        &self,
        hostname: &str,
        request: &ExecRequest,
        stdin: Option<Stdin>,
    ) -> Result<ExecStream, ClientError> {
        let request = ExecRequest {
            stdin: stdin.is_some(),
            buffered: false,
            background: false,
            ..request.clone()
        };
        let path = vm_path(hostname, "/exec");
        let call = Call::post(&path).query(request.to_query());
        let body = stdin.map_or_else(empty_body, |stdin| {
            let chunks = ReaderStream::with_capacity(stdin, STDIN_CHUNK).map_ok(Frame::data);
            RequestBody::new(StreamBody::new(chunks))
        });
        let (response, connection) = self.send(&call, body).await?;
        Ok(ExecStream::new(
            call.what(),
            response.into_body(),
            connection,
        ))
    }

    /// `POST /vm/{h}/exec?buffered=true`: runs a command and gives back its whole output, at
    /// most some hundred MiB. Unbounded in time; see [`output_bytes`](crate::output_bytes).
    pub async fn exec_buffered(
        &self,
        hostname: &str,
        request: &ExecRequest,
    ) -> Result<ExecBuffered, ClientError> {
        let request = ExecRequest {
            stdin: false,
            buffered: true,
            background: false,
            ..request.clone()
        };
        let path = vm_path(hostname, "/exec");
        let mut call = Call::post(&path).query(request.to_query());
        call.limit = Duration::MAX;
        call.max_answer = MAX_BUFFERED;
        self.fetch(call).await
    }

    /// Runs `operation` with a VM reference as it is and, only when there is no such hostname,
    /// once more with the hostname of the one VM that has it as its friendly name.
    pub async fn with_vm<T, F>(&self, reference: &str, operation: F) -> Result<T, ClientError>
    where
        F: AsyncFn(&str) -> Result<T, ClientError>,
    {
        match operation(reference).await {
            Err(e) if e.is_not_found() => match self.hostname_of(reference).await? {
                Some(hostname) => operation(&hostname).await,
                None => Err(e),
            },
            done => done,
        }
    }

    /// The hostname of the VM whose friendly name is `name`.
    pub async fn hostname_of(&self, name: &str) -> Result<Option<String>, ClientError> {
        let filter = NodeFilter {
            tag: Some(format!("name={name}")),
            tag_prefix: None,
        };
        let mut nodes = self.nodes(&filter).await?;
        if nodes.len() > 1 {
            return Err(ClientError::Ambiguous {
                name: name.to_owned(),
                hostnames: nodes.into_iter().map(|n| n.hostname).collect(),
            });
        }
        Ok(nodes.pop().map(|n| n.hostname))
    }

    pub(crate) async fn fetch<T: DeserializeOwned>(
        &self,
        call: Call<'_>,
    ) -> Result<T, ClientError> {
        let what = call.what();
        let answer = self.call(call).await?;
        serde_json::from_slice(&answer).map_err(|source| ClientError::Decode {
            request: what,
            source,
        })
    }

    /// Like `fetch`; `null` is an empty list, which Go servers may send.
    pub(crate) async fn fetch_list<T: DeserializeOwned>(
        &self,
        call: Call<'_>,
    ) -> Result<Vec<T>, ClientError> {
        Ok(self
            .fetch::<Option<Vec<T>>>(call)
            .await?
            .unwrap_or_default())
    }

    pub(crate) async fn call(&self, call: Call<'_>) -> Result<Bytes, ClientError> {
        let body = call.json.clone().map_or_else(empty_body, |json| {
            RequestBody::new(Full::new(json).map_err(|never| match never {}))
        });
        let exchange = async {
            let (response, connection) = self.send(&call, body).await?;
            let answer = read(&call.what(), response.into_body(), call.max_answer).await?;
            self.inner.pool.give_back(connection);
            Ok(answer)
        };
        match tokio::time::timeout(call.limit, exchange).await {
            Ok(done) => done,
            Err(_) => Err(ClientError::Timeout {
                request: call.what(),
                limit: call.limit,
            }),
        }
    }

    /// Sends and gives back the head of a 2xx answer or of a change of protocols; any other answer
    /// is an error.
    pub(crate) async fn send(
        &self,
        call: &Call<'_>,
        body: RequestBody,
    ) -> Result<(Response<Incoming>, Connection), ClientError> {
        let inner = &*self.inner;
        let target = if call.query.is_empty() {
            call.path.to_owned()
        } else {
            format!("{}?{}", call.path, call.query)
        };
        let mut request = Request::builder()
            .method(&call.method)
            .uri(target)
            .header(header::HOST, &inner.host)
            .header(header::USER_AGENT, &inner.user_agent);
        if let Some(authorization) = &inner.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        if call.json.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        // hyper leaves it out, RFC 9110 (8.6) wants it where a body could have been.
        if call.method == Method::POST && body.size_hint().exact() == Some(0) {
            request = request.header(header::CONTENT_LENGTH, 0);
        }
        let request = request.body(body).map_err(|source| ClientError::Request {
            request: call.what(),
            source,
        })?;
        let what = call.what();
        let (response, connection) = inner.pool.send(&what, request).await?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok((response, connection));
        }
        let body = read(&what, response.into_body(), MAX_ERROR_BODY);
        // The status alone says enough when the rest doesn't come.
        let body = match tokio::time::timeout(ERROR_BODY_LIMIT, body).await {
            Ok(Ok(body)) => {
                inner.pool.give_back(connection);
                body
            }
            _ => Bytes::new(),
        };
        Err(api_error(&what, status.as_u16(), &body))
    }
}

pub(crate) fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

pub(crate) fn vm_path(hostname: &str, rest: &str) -> String {
    format!("/vm/{}{rest}", segment(hostname))
}

/// A duration in Go's grammar, rounded up to milliseconds so it never becomes "no time".
pub(crate) fn go_millis(duration: Duration) -> String {
    format!("{}ms", duration.as_nanos().div_ceil(1_000_000))
}

pub(crate) async fn read(what: &str, body: Incoming, limit: usize) -> Result<Bytes, ClientError> {
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) => Err(match e.downcast::<hyper::Error>() {
            Ok(source) => ClientError::Transport {
                request: what.to_owned(),
                source: *source,
            },
            Err(e) => {
                debug_assert!(e.is::<LengthLimitError>());
                ClientError::TooLarge {
                    request: what.to_owned(),
                    limit,
                }
            }
        }),
    }
}

fn api_error(what: &str, status: u16, body: &[u8]) -> ClientError {
    let (message, code) = match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => (body.error, body.code),
        // Not every endpoint answers in JSON.
        Err(_) => (String::from_utf8_lossy(body).into_owned(), None),
    };
    let message = message.trim();
    ClientError::Api {
        status,
        message: if message.is_empty() {
            format!("{what} was refused")
        } else {
            message.to_owned()
        },
        code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_segments_are_escaped() {
        assert_eq!(vm_path("sbox-1", "/logs"), "/vm/sbox-1/logs");
        assert_eq!(vm_path("a/b?c d%é", ""), "/vm/a%2Fb%3Fc%20d%25%C3%A9");
    }

    #[test]
    fn errors_are_read_in_every_form() {
        let text = |body: &[u8]| api_error("GET /x", 404, body).to_string();
        assert_eq!(
            text(br#"{"error":"no VM","code":"not_found"}"#),
            "no VM (404 Not Found)"
        );
        assert_eq!(text(b"plain\n"), "plain (404 Not Found)");
        assert_eq!(text(b""), "GET /x was refused (404 Not Found)");
    }

    #[test]
    fn waits_are_never_rounded_to_nothing() {
        assert_eq!(go_millis(Duration::from_nanos(1)), "1ms");
        assert_eq!(go_millis(Duration::from_mins(1)), "60000ms");
    }
}
