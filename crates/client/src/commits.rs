//! Commits and forks.

use crate::client::{CREATE_LIMIT, Call, WAIT_GRACE, go_millis, segment, vm_path};
use crate::{Client, ClientError};
use hyper::Method;
use slicer_api::{
    Commit, CommitRequest, Committed, DeletedCommit, ForkRequest, ForkWait, Forked,
    LiveForkRequest, LiveForked, is_commit_id,
};
use std::time::Duration;

/// Which commits a list shows: those to which all of it applies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommitFilter {
    /// Only commits with all these tags.
    pub tags: Vec<String>,
    /// Only the commit with this cache key.
    pub cache_key: Option<String>,
    /// Only commits of this VM.
    pub source: Option<String>,
    /// Only commits of this kind: `disk`.
    pub mode: Option<String>,
}

impl CommitFilter {
    fn query(&self) -> String {
        let mut q = form_urlencoded::Serializer::new(String::new());
        for tag in &self.tags {
            q.append_pair("tag", tag);
        }
        for (key, value) in [
            ("cache_key", &self.cache_key),
            ("source", &self.source),
            ("mode", &self.mode),
        ] {
            if let Some(value) = value {
                q.append_pair(key, value);
            }
        }
        q.finish()
    }
}

/// The path of a commit.
fn commit_path(id: &str, rest: &str) -> Result<String, ClientError> {
    // A server of SlicerVM may have others than ours.
    let strange = id.is_empty() || id.contains(['/', '\\', '\0']) || id.contains("..");
    if strange && !is_commit_id(id) {
        return Err(ClientError::CommitId(id.to_owned()));
    }
    Ok(format!("/vm/commits/{}{rest}", segment(id)))
}

impl Client {
    /// `POST /vm/{h}/commit`: keeps the disk of a stopped, persistent VM as it is now.
    pub async fn commit(
        &self,
        hostname: &str,
        request: &CommitRequest,
    ) -> Result<Committed, ClientError> {
        let path = vm_path(hostname, "/commit");
        let mut call = Call::post(&path).json(request)?;
        // Where disks can neither be shared nor lain over, this copies one.
        call.limit = CREATE_LIMIT + WAIT_GRACE;
        self.fetch(call).await
    }

    /// `GET /vm/commits`.
    pub async fn commits(&self, filter: &CommitFilter) -> Result<Vec<Commit>, ClientError> {
        self.fetch_list(Call::get("/vm/commits").query(filter.query()))
            .await
    }

    /// `DELETE /vm/commits/{id}`: removes a commit that no VM and no other commit needs.
    pub async fn delete_commit(&self, id: &str) -> Result<DeletedCommit, ClientError> {
        let path = commit_path(id, "")?;
        self.fetch(Call::new(Method::DELETE, &path)).await
    }

    /// `POST /vm/commits/{id}/fork`: launches a VM whose disk begins as a commit's. With
    /// [`ForkWait::Agent`] the answer comes when it is ready, or as status 408 after `timeout` (5
    /// minutes unless given), the VM deleted.
    pub async fn fork(
        &self,
        id: &str,
        request: &ForkRequest,
        wait: ForkWait,
        timeout: Option<Duration>,
    ) -> Result<Forked, ClientError> {
        let path = commit_path(id, "/fork")?;
        let mut call = Call::post(&path).json(request)?;
        (call.query, call.limit) = waiting(wait, timeout);
        self.fetch(call).await
    }

    /// `POST /vm/{h}/fork`: launches VMs that go on from where one that runs is now. With
    /// [`ForkWait::Agent`] the answer comes when all are ready, or as status 408 after `timeout` (5
    /// minutes unless given), all of them deleted.
    pub async fn fork_live(
        &self,
        hostname: &str,
        request: &LiveForkRequest,
        wait: ForkWait,
        timeout: Option<Duration>,
    ) -> Result<LiveForked, ClientError> {
        let path = vm_path(hostname, "/fork");
        let mut call = Call::post(&path).json(request)?;
        (call.query, call.limit) = waiting(wait, timeout);
        self.fetch(call).await
    }
}

/// The query of a fork, and how long its answer may take.
fn waiting(wait: ForkWait, timeout: Option<Duration>) -> (String, Duration) {
    let mut q = form_urlencoded::Serializer::new(String::new());
    q.append_pair("wait", &wait.to_string());
    let mut limit = CREATE_LIMIT + WAIT_GRACE;
    if let Some(timeout) = timeout {
        q.append_pair("timeout", &go_millis(timeout));
        limit = timeout.saturating_add(WAIT_GRACE);
    }
    (q.finish(), limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_be_paths_are_refused() {
        assert_eq!(
            commit_path("cmt-1", "/fork").unwrap(),
            "/vm/commits/cmt-1/fork"
        );
        // Another server's.
        assert!(commit_path("cmt_A b", "").is_ok());
        for bad in ["", "..", "cmt-/x", "a\\b", "a\0", "x..y"] {
            assert!(matches!(
                commit_path(bad, ""),
                Err(ClientError::CommitId(_))
            ));
        }
    }

    #[test]
    fn filters_are_queries() {
        let filter = CommitFilter {
            tags: vec!["a=1".into(), "b".into()],
            source: Some("sbox-1".into()),
            ..CommitFilter::default()
        };
        assert_eq!(filter.query(), "tag=a%3D1&tag=b&source=sbox-1");
        assert_eq!(CommitFilter::default().query(), "");
    }
}
