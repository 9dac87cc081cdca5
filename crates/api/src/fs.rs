//! The file system of a VM: entries, directories, and the watch on changes.

use crate::exec::{flag, id, invalid};
use crate::{AUTO_ID, Glob, QueryError, Timestamp, null_default, parse_duration};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// What a directory entry is.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsKind {
    /// A file, or a device, pipe or socket.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, whatever it leads to.
    Symlink,
}

/// A directory entry; of a symbolic link, the link itself.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsEntry {
    /// The last part of its path. What is no UTF-8 in it is U+FFFD here.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: FsKind,
    /// Bytes.
    pub size: u64,
    /// When its content was changed last.
    pub mtime: Timestamp,
    /// Permissions in octal with a leading 0, such as `0644`.
    pub mode: String,
}

/// The body of `POST /vm/{h}/fs/mkdir`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakeDirectory {
    /// What to make; `~` is the default user's home.
    pub path: String,
    /// Make missing parents too, and mind none that exist.
    #[serde(default, deserialize_with = "null_default")]
    #[cfg_attr(feature = "openapi", schema(nullable))]
    pub recursive: bool,
    /// Permissions in octal; `0755` unless given.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "String::is_empty"
    )]
    #[cfg_attr(feature = "openapi", schema(nullable))]
    pub mode: String,
}

/// The query of the other `fs` calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FsQuery {
    /// What it is about; `~` is the default user's home.
    pub path: String,
    /// Of a removal: with everything in it.
    pub recursive: bool,
}

impl FsQuery {
    /// Reads a query string. Unknown parameters are ignored.
    pub fn from_query(query: &str) -> Result<Self, QueryError> {
        let mut r = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "path" => r.path = value.into_owned(),
                "recursive" => r.recursive = flag("recursive", &value)?,
                _ => {}
            }
        }
        if r.path.is_empty() {
            return Err(QueryError::Missing("path"));
        }
        Ok(r)
    }

    /// The query string with the path alone.
    #[must_use]
    pub fn path_query(path: &str) -> String {
        form_urlencoded::Serializer::new(String::new())
            .append_pair("path", path)
            .finish()
    }

    /// The query string of a removal.
    #[must_use]
    pub fn to_query(&self) -> String {
        format!(
            "{}&recursive={}",
            Self::path_query(&self.path),
            self.recursive
        )
    }
}

/// What happened to a file.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WatchKind {
    /// It is new here.
    Create,
    /// Its content changed.
    Write,
    /// It was removed.
    Remove,
    /// It was moved away from this name.
    Rename,
    /// Its attributes changed.
    Chmod,
    /// Events were lost: whatever is watched may have changed. Comes whatever was asked for.
    Overflow,
}

impl WatchKind {
    /// Its name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Write => "write",
            Self::Remove => "remove",
            Self::Rename => "rename",
            Self::Chmod => "chmod",
            Self::Overflow => "overflow",
        }
    }
}

impl fmt::Display for WatchKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One event of a watch.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// Its place in the stream; the first is 1.
    pub id: u64,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: WatchKind,
    /// To what. What is no UTF-8 in it is U+FFFD here.
    pub path: String,
    /// When it was told.
    pub timestamp: Timestamp,
    /// Bytes it has now; 0 when it is gone.
    pub size: u64,
    /// Whether it is a directory.
    #[serde(rename = "isDir")]
    pub is_dir: bool,
    /// A sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How long events of one kind on one path are taken for one, unless a watch says otherwise.
pub const DEFAULT_DEBOUNCE: Duration = Duration::from_millis(200);
/// How many paths, patterns and kinds one watch may name.
const MAX_LIST: usize = 256;

/// The query of `GET /vm/{h}/fs/watch`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchRequest {
    /// Files and directories to watch; at least one.
    pub paths: Vec<String>,
    /// Globs of which one must match the whole path or the last part of it; none is all.
    pub patterns: Vec<Glob>,
    /// The kinds of events wanted; none is all.
    pub events: Vec<WatchKind>,
    /// Directories with everything below them.
    pub recursive: bool,
    /// End after the first event.
    pub one_shot: bool,
    /// How long events of one kind on one path are taken for one.
    pub debounce: Duration,
    /// End after this time.
    pub timeout: Option<Duration>,
    /// End after so many events.
    pub max_events: Option<u64>,
    /// Whose home `~` is.
    pub uid: u32,
}

impl Default for WatchRequest {
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            patterns: Vec::new(),
            events: Vec::new(),
            recursive: false,
            one_shot: false,
            debounce: DEFAULT_DEBOUNCE,
            timeout: None,
            max_events: None,
            uid: AUTO_ID,
        }
    }
}

impl WatchRequest {
    /// Reads a query string. Unknown parameters are ignored.
    pub fn from_query(query: &str) -> Result<Self, QueryError> {
        let mut r = Self::default();
        let mut all = false;
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            let duration = |name| {
                parse_duration(&value)
                    .map_err(|_| invalid(name, &value, "a duration such as 500ms or 1m30s"))
            };
            match &*key {
                "paths" if !value.is_empty() => r.paths.push(value.into_owned()),
                "patterns" if !value.is_empty() => {
                    let glob = Glob::new(&value)
                        .map_err(|_| invalid("patterns", &value, "a glob such as *.rs"))?;
                    r.patterns.push(glob);
                }
                "events" => match &*value {
                    "" => {}
                    "all" => all = true,
                    "create" => r.events.push(WatchKind::Create),
                    "write" => r.events.push(WatchKind::Write),
                    "remove" => r.events.push(WatchKind::Remove),
                    "rename" => r.events.push(WatchKind::Rename),
                    "chmod" => r.events.push(WatchKind::Chmod),
                    _ => {
                        return Err(invalid(
                            "events",
                            &value,
                            "create, write, remove, rename, chmod or all",
                        ));
                    }
                },
                "recursive" => r.recursive = flag("recursive", &value)?,
                "one_shot" => r.one_shot = flag("one_shot", &value)?,
                "debounce" if !value.is_empty() => r.debounce = duration("debounce")?,
                "timeout" if !value.is_empty() => r.timeout = Some(duration("timeout")?),
                "max_events" if !value.is_empty() => {
                    let count = value.parse().ok().filter(|n| *n > 0);
                    r.max_events =
                        Some(count.ok_or_else(|| {
                            invalid("max_events", &value, "a number greater than 0")
                        })?);
                }
                "uid" => r.uid = id("uid", &value)?,
                _ => {}
            }
        }
        if r.paths.is_empty() {
            return Err(QueryError::Missing("paths"));
        }
        for (name, len) in [
            ("paths", r.paths.len()),
            ("patterns", r.patterns.len()),
            ("events", r.events.len()),
        ] {
            if len > MAX_LIST {
                return Err(invalid(name, &len.to_string(), "at most 256 of them"));
            }
        }
        if all {
            r.events.clear();
        }
        Ok(r)
    }

    /// The query string this request is sent with.
    #[must_use]
    pub fn to_query(&self) -> String {
        let mut q = form_urlencoded::Serializer::new(String::new());
        for path in &self.paths {
            q.append_pair("paths", path);
        }
        for pattern in &self.patterns {
            q.append_pair("patterns", pattern.as_str());
        }
        for event in &self.events {
            q.append_pair("events", event.name());
        }
        for (name, set) in [("recursive", self.recursive), ("one_shot", self.one_shot)] {
            if set {
                q.append_pair(name, "true");
            }
        }
        let millis = |d: Duration| format!("{}ms", d.as_millis());
        if self.debounce != DEFAULT_DEBOUNCE {
            q.append_pair("debounce", &millis(self.debounce));
        }
        if let Some(timeout) = self.timeout {
            q.append_pair("timeout", &millis(timeout));
        }
        if let Some(count) = self.max_events {
            q.append_pair("max_events", &count.to_string());
        }
        if self.uid != AUTO_ID {
            q.append_pair("uid", &self.uid.to_string());
        }
        q.finish()
    }

    /// Whether an event is one that was asked for.
    #[must_use]
    pub fn wants(&self, kind: WatchKind, path: &[u8]) -> bool {
        kind == WatchKind::Overflow
            || ((self.events.is_empty() || self.events.contains(&kind))
                && (self.patterns.is_empty()
                    || self
                        .patterns
                        .iter()
                        .any(|glob| glob.matches(path) || glob.matches_name(path))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_watch_survives_its_query() {
        let request = WatchRequest {
            paths: vec!["/a b".into(), "~/x".into()],
            patterns: vec![Glob::new("*.rs").unwrap()],
            events: vec![WatchKind::Create, WatchKind::Remove],
            recursive: true,
            one_shot: true,
            debounce: Duration::from_millis(5),
            timeout: Some(Duration::from_secs(3)),
            max_events: Some(7),
            uid: 0,
        };
        assert_eq!(
            WatchRequest::from_query(&request.to_query()),
            Ok(request.clone())
        );
        assert!(request.wants(WatchKind::Create, b"/a b/src/x.rs"));
        assert!(!request.wants(WatchKind::Write, b"/a b/src/x.rs"));
        assert!(!request.wants(WatchKind::Create, b"/a b/src/x.o"));
        assert!(request.wants(WatchKind::Overflow, b"/a b"));
    }

    #[test]
    fn what_is_no_watch_is_refused() {
        for query in [
            "",
            "paths=",
            "paths=/a&events=explode",
            "paths=/a&debounce=5",
            "paths=/a&timeout=-1s",
            "paths=/a&max_events=0",
            "paths=/a&max_events=x",
            "paths=/a&patterns=[",
            "paths=/a&recursive=x",
        ] {
            assert!(WatchRequest::from_query(query).is_err(), "{query}");
        }
        let all = WatchRequest::from_query("paths=/a&events=write&events=all").unwrap();
        assert!(all.wants(WatchKind::Chmod, b"/a"));
        let many = "paths=/a&".repeat(257);
        assert!(WatchRequest::from_query(&many).is_err());
    }

    #[test]
    fn a_path_is_needed() {
        let query = FsQuery::from_query("path=%2Fa+b&recursive=true").unwrap();
        assert_eq!((&*query.path, query.recursive), ("/a b", true));
        assert_eq!(FsQuery::from_query(&query.to_query()), Ok(query));
        assert!(FsQuery::from_query("recursive=true").is_err());
    }

    proptest! {
        #[test]
        fn any_query_is_read_or_refused(query in "\\PC{0,80}") {
            let _ = WatchRequest::from_query(&query);
            let _ = FsQuery::from_query(&query);
            let _ = crate::LogsRequest::from_query(&query);
        }
    }
}
