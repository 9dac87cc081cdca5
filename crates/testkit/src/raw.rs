//! HTTP by hand, for what the client would never send.

use crate::LIMIT;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use slicer_api::Endpoint;
use tokio::net::{TcpStream, UnixStream};

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {:?}", self.text()))
    }
}

/// Sends requests as they are given, each on a connection of its own.
#[derive(Debug, Clone)]
pub struct RawClient {
    endpoint: Endpoint,
}

impl RawClient {
    /// A client of the daemon there.
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    /// Sends a request without headers.
    pub async fn send(&self, method: Method, target: &str, body: impl Into<Bytes>) -> Answer {
        self.send_with(method, target, &[], body).await
    }

    /// Gets something.
    pub async fn get(&self, target: &str) -> Answer {
        self.send(Method::GET, target, "").await
    }

    /// Posts something.
    pub async fn post(&self, target: &str, body: impl Into<Bytes>) -> Answer {
        self.send(Method::POST, target, body).await
    }

    /// Sends a request with these headers.
    pub async fn send_with(
        &self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let mut request = Request::builder()
            .method(method.clone())
            .uri(target)
            .header("host", "test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let answer = tokio::time::timeout(crate::BOOT + LIMIT, self.exchange(request)).await;
        answer.unwrap_or_else(|_| panic!("no answer to {method} {target}"))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Answer {
        let response = match &self.endpoint {
            Endpoint::Unix(path) => {
                let io = TokioIo::new(UnixStream::connect(path).await.unwrap());
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(io).await.unwrap();
                tokio::spawn(connection);
                sender.send_request(request).await.unwrap()
            }
            Endpoint::Http { authority } => {
                let io = TokioIo::new(TcpStream::connect(authority).await.unwrap());
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(io).await.unwrap();
                tokio::spawn(connection);
                sender.send_request(request).await.unwrap()
            }
        };
        let (head, body) = response.into_parts();
        Answer {
            status: head.status,
            headers: head.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }
}
