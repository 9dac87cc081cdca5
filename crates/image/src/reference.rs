//! Where an image is: `oci:PATH[:TAG]` and the forms other tools know.

use crate::ImageError;
use std::path::PathBuf;

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
    OciArchive(String),
    /// `docker-archive:PATH[:REF]`: what `docker save` writes.
    DockerArchive(String),
    /// A name in a registry, with or without `docker://`.
    Registry(String),
}

impl ImageRef {
    /// Parses a reference. Every form parses; [`crate::Resolved::find`] says which can be used.
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
        if text.starts_with("oci-archive:") {
            return Ok(Self::OciArchive(text.to_owned()));
        }
        if text.starts_with("docker-archive:") {
            return Ok(Self::DockerArchive(text.to_owned()));
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

impl std::fmt::Display for ImageRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OciLayout {
                path,
                tag: Some(tag),
            } => write!(f, "oci:{}:{tag}", path.display()),
            Self::OciLayout { path, tag: None } => write!(f, "oci:{}", path.display()),
            Self::OciArchive(text) | Self::DockerArchive(text) | Self::Registry(text) => {
                f.write_str(text)
            }
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
        assert!(matches!(
            parse("oci-archive:x.tar"),
            ImageRef::OciArchive(_)
        ));
        assert!(matches!(
            parse("docker-archive:x.tar:a:b"),
            ImageRef::DockerArchive(_)
        ));
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
            "a\nb",
        ] {
            assert!(ImageRef::parse(text).is_err(), "{text:?}");
        }
    }
}
