//! Where an image is: `oci:PATH[:TAG]` and the forms other tools know.

use crate::ImageError;
use std::path::{Path, PathBuf};

/// A parsed image reference, in the transport syntax of containers-transports(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageRef {
    /// `oci:PATH[:TAG]`: an image in an OCI layout directory.
    OciLayout {
        /// The layout.
        path: PathBuf,
        /// Which of its images; without one, `latest` or the only one.
        tag: Option<String>,
    },
    /// `oci-archive:PATH[:TAG]`: an OCI layout in a tar archive.
    OciArchive {
        /// The archive.
        path: PathBuf,
        /// Which of its images; without one, `latest` or the only one.
        tag: Option<String>,
    },
    /// `docker-archive:PATH[:NAME[:TAG]]`: what `docker save` writes.
    DockerArchive {
        /// The archive.
        path: PathBuf,
        /// Which of its images, as docker names it; without one, the only one.
        name: Option<String>,
    },
    /// A name in a registry, with or without `docker://`.
    Registry(String),
}

impl ImageRef {
    /// Parses a reference. Layouts are read in place by [`crate::Resolved::find`], archives by way of
    /// [`crate::ImageCache::import`].
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        let invalid = |why| ImageError::Reference {
            reference: text.to_owned(),
            why,
        };
        if text.is_empty() {
            return Err(invalid("it is empty"));
        }
        if text.chars().any(char::is_control) {
            return Err(invalid("it holds control characters"));
        }
        // What follows the first colon is a name, which may hold more of them: as skopeo has it.
        let archive = |rest: &str| {
            let (path, name) = match rest.split_once(':') {
                Some((path, name)) => (path, Some(name)),
                None => (rest, None),
            };
            match (path, name) {
                ("", _) => Err(invalid("the path of the archive is missing")),
                (_, Some("")) => Err(invalid("the name after the colon is missing")),
                _ => Ok((PathBuf::from(path), name.map(str::to_owned))),
            }
        };
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            return archive(rest).map(|(path, tag)| Self::OciArchive { path, tag });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            return archive(rest).map(|(path, name)| Self::DockerArchive { path, name });
        }
        let Some(rest) = text.strip_prefix("oci:") else {
            let name = text.strip_prefix("docker://").unwrap_or(text);
            return if name.is_empty() || name.contains(char::is_whitespace) {
                Err(invalid("expected oci:PATH:TAG or the name of an image"))
            } else {
                Ok(Self::Registry(name.to_owned()))
            };
        };
        // A colon within a directory's name belongs to the path.
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        if path.is_empty() {
            return Err(invalid("the path of the OCI layout is missing"));
        }
        if tag == Some("") {
            return Err(invalid("the tag after the last colon is missing"));
        }
        Ok(Self::OciLayout {
            path: path.into(),
            tag: tag.map(str::to_owned),
        })
    }
}

impl ImageRef {
    /// The same with a path that is relative to `dir` if it is relative at all.
    #[must_use]
    pub fn relative_to(mut self, dir: &Path) -> Self {
        match &mut self {
            Self::OciLayout { path, .. }
            | Self::OciArchive { path, .. }
            | Self::DockerArchive { path, .. } => *path = dir.join(&*path),
            Self::Registry(_) => {}
        }
        self
    }
}

impl std::fmt::Display for ImageRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (transport, path, name) = match self {
            Self::OciLayout { path, tag } => ("oci", path, tag),
            Self::OciArchive { path, tag } => ("oci-archive", path, tag),
            Self::DockerArchive { path, name } => ("docker-archive", path, name),
            Self::Registry(name) => return f.write_str(name),
        };
        write!(f, "{transport}:{}", path.display())?;
        match name {
            Some(name) => write!(f, ":{name}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(path: &str, tag: Option<&str>) -> ImageRef {
        ImageRef::OciLayout {
            path: path.into(),
            tag: tag.map(str::to_owned),
        }
    }

    #[test]
    fn layouts_parse() {
        for (text, path, tag) in [
            ("oci:dir", "dir", None),
            ("oci:/a/b:latest", "/a/b", Some("latest")),
            ("oci:/a:1/b", "/a:1/b", None),
            ("oci:/a:1/b:v2.0", "/a:1/b", Some("v2.0")),
        ] {
            assert_eq!(ImageRef::parse(text).unwrap(), layout(path, tag), "{text}");
            assert_eq!(ImageRef::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_transports_parse() {
        let parse = |t| ImageRef::parse(t).unwrap();
        assert_eq!(
            parse("oci-archive:x.tar"),
            ImageRef::OciArchive {
                path: "x.tar".into(),
                tag: None
            }
        );
        let docker = parse("docker-archive:x.tar:a:b").relative_to(Path::new("/d"));
        assert_eq!(
            docker,
            ImageRef::DockerArchive {
                path: "/d/x.tar".into(),
                name: Some("a:b".into())
            }
        );
        assert_eq!(docker.to_string(), "docker-archive:/d/x.tar:a:b");
        assert_eq!(
            parse("docker://debian:12"),
            ImageRef::Registry("debian:12".into())
        );
        assert_eq!(
            parse("ghcr.io/a/b@sha256:00"),
            ImageRef::Registry("ghcr.io/a/b@sha256:00".into())
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "oci:",
            "oci::tag",
            "oci:/a:",
            "two words",
            "docker://",
            "oci-archive:",
            "docker-archive::a",
            "oci-archive:x.tar:",
            "a\nb",
        ] {
            assert!(ImageRef::parse(text).is_err(), "{text:?}");
        }
    }
}
