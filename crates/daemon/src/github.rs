//! Public keys of GitHub users, which GitHub shows to everybody at `https://github.com/USER.keys`.

use crate::config::is_public_key;
use slicer_api::ApiError;
use std::collections::HashMap;
use std::error::Error;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Where GitHub is, unless this variable says otherwise, as for a GitHub Enterprise Server.
const URL: &str = "https://github.com";
pub(crate) const URL_VARIABLE: &str = "SLICER_GITHUB_URL";
/// How long an answer may take, and how many bytes it may have.
const ANSWER_TIME: Duration = Duration::from_secs(8);
const MAX_ANSWER: usize = 256 << 10;
/// The longest name, and how many keys are taken.
const MAX_NAME: usize = 39;
const MAX_KEYS: usize = 100;
/// How long an answer, or a failure, is good for: a hundred VMs that start make one request.
const FRESH: Duration = Duration::from_mins(1);

type Answer = Result<Vec<String>, ApiError>;

/// Asks for keys.
pub(crate) struct Github {
    url: String,
    http: OnceLock<reqwest::Client>,
    known: Mutex<HashMap<String, (Instant, Answer)>>,
}

impl Github {
    /// GitHub, or what the environment has in its place.
    pub(crate) fn from_env() -> Self {
        let url = std::env::var(URL_VARIABLE).ok().filter(|u| !u.is_empty());
        Self::at(url.as_deref().unwrap_or(URL))
    }

    fn at(url: &str) -> Self {
        Self {
            url: url.trim_end_matches('/').to_owned(),
            http: OnceLock::new(),
            known: Mutex::default(),
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Instant, Answer)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The user's public keys, of which there is at least one.
    pub(crate) async fn keys(&self, user: &str) -> Answer {
        check_user(user)?;
        if let Some((when, answer)) = self.known().get(user)
            && when.elapsed() < FRESH
        {
            return answer.clone();
        }
        let answer = self.fetch(user).await;
        let mut known = self.known();
        known.retain(|_, (when, _)| when.elapsed() < FRESH);
        known.insert(user.to_owned(), (Instant::now(), answer.clone()));
        answer
    }

    fn client(&self) -> Result<&reqwest::Client, reqwest::Error> {
        if let Some(client) = self.http.get() {
            return Ok(client);
        }
        // An error says that there is one already, which will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .user_agent(concat!("slicer/", env!("CARGO_PKG_VERSION")))
            .timeout(ANSWER_TIME)
            .build()?;
        Ok(self.http.get_or_init(|| client))
    }

    async fn fetch(&self, user: &str) -> Answer {
        let unreachable = |e: &reqwest::Error| {
            ApiError::bad_gateway(format!(
                "cannot fetch the SSH keys of GitHub user {user}: {}; pass them as ssh_keys instead",
                chain(e)
            ))
        };
        let url = format!("{}/{user}.keys", self.url);
        let client = self.client().map_err(|e| unreachable(&e))?;
        let response = client.get(url).send().await.map_err(|e| unreachable(&e))?;
        if response.status() == reqwest::StatusCode::NOT_FOUND {
            let text = format!("there is no GitHub user {user}");
            return Err(ApiError::bad_request(text));
        }
        let mut response = response.error_for_status().map_err(|e| unreachable(&e))?;
        let mut text = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|e| unreachable(&e))? {
            text.extend_from_slice(&piece);
            if text.len() > MAX_ANSWER {
                let text = format!("the SSH keys of GitHub user {user} exceed {MAX_ANSWER} bytes");
                return Err(ApiError::bad_gateway(text));
            }
        }
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().map(str::trim).filter(|l| is_public_key(l));
        let keys: Vec<String> = lines.take(MAX_KEYS).map(str::to_owned).collect();
        if keys.is_empty() {
            let text = format!("GitHub user {user} has no SSH keys there");
            return Err(ApiError::bad_request(text));
        }
        Ok(keys)
    }
}

/// Refuses what can't be a user: letters, digits, `-` and `_`.
pub(crate) fn check_user(user: &str) -> Result<(), ApiError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if user.is_empty() || user.len() > MAX_NAME || !user.bytes().all(plain) {
        return Err(ApiError::bad_request(format!(
            "invalid GitHub user {user:.64?}: use up to {MAX_NAME} letters, digits, - and _"
        )));
    }
    Ok(())
}

/// An error and its causes, the first of which repeats the URL.
fn chain(e: &reqwest::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(e) = source {
        text.push_str(": ");
        text.push_str(&e.to_string());
        source = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::get;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ me";

    /// A GitHub of a test, and how often it was asked.
    async fn github() -> (Github, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let asked = Arc::clone(&count);
        let routes = Router::new()
            .route(
                "/me.keys",
                get(|| async { format!("{KEY}\n# no key\n{KEY} 2\n\n") }),
            )
            .route("/empty.keys", get(|| async { "" }))
            .route("/huge.keys", get(|| async { vec![b'x'; MAX_ANSWER + 1] }))
            .route("/broken.keys", get(|| async { StatusCode::BAD_GATEWAY }))
            .layer(axum::middleware::map_request(
                move |request: axum::extract::Request| {
                    asked.fetch_add(1, Ordering::Relaxed);
                    async move { request }
                },
            ));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (Github::at(&url), count)
    }

    #[tokio::test]
    async fn keys_are_fetched_and_kept_for_a_while() {
        let (github, asked) = github().await;
        let keys = [KEY.to_owned(), format!("{KEY} 2")];
        assert_eq!(github.keys("me").await.unwrap(), keys);
        assert_eq!(github.keys("me").await.unwrap(), keys);
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn what_is_wrong_is_told() {
        let (github, _) = github().await;
        for (user, status, part) in [
            ("nobody", 400, "no GitHub user nobody"),
            ("empty", 400, "no SSH keys"),
            ("huge", 502, "exceed"),
            ("broken", 502, "502 Bad Gateway"),
            ("../x", 400, "invalid GitHub user"),
            ("", 400, "invalid GitHub user"),
        ] {
            let e = github.keys(user).await.unwrap_err();
            assert_eq!(e.status, status, "{user}: {e:?}");
            assert!(e.message.contains(part), "{user}: {e:?}");
        }
        let gone = Github::at("http://127.0.0.1:1");
        let e = gone.keys("me").await.unwrap_err();
        assert_eq!(e.status, 502);
        assert!(e.message.contains("ssh_keys instead"), "{e:?}");
    }
}
