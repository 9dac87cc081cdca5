//! What can go wrong with a tree.

use std::io;

/// Why a tree could not be packed or extracted.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The bytes are no tar archive, or one of a kind that isn't taken.
    #[error("the archive is not usable: {0}")]
    Archive(&'static str),
    /// The archive ends within an entry.
    #[error("the archive is cut off")]
    CutOff,
    /// An entry's name could lead out of the tree, or is no name.
    #[error("the archive holds {name:?}, which is not a clean relative path")]
    Name {
        /// The name, as text.
        name: String,
    },
    /// More than is taken.
    #[error("the tree is too large: {0}")]
    TooLarge(&'static str),
    /// Something on the way is no directory. Links to directories are none.
    #[error("{path} is not a directory (symbolic links are not followed)")]
    NotDirectory {
        /// Where, from the tree's root.
        path: String,
    },
    /// Two names of the tree are one where it is extracted.
    #[error(
        "{path} is the same name as another one of the tree, on this file system: they differ by case, \
         or by how a letter is spelt"
    )]
    SameName {
        /// The second one, from the tree's root.
        path: String,
    },
    /// A file that changed while it was read.
    #[error("{path} became shorter while it was read")]
    Shrank {
        /// Where, from the tree's root.
        path: String,
    },
    /// A system call.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was attempted, such as `create`.
        action: &'static str,
        /// On what, from the tree's root.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl TreeError {
    /// The system's error, if it was one.
    #[must_use]
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Names the operation and the path of a system call's error.
pub(crate) fn failed<E: Into<io::Error>>(
    action: &'static str,
    path: &[u8],
) -> impl FnOnce(E) -> TreeError {
    move |source| TreeError::Io {
        action,
        path: text(path),
        source: source.into(),
    }
}

/// A path for people.
pub(crate) fn text(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into_owned(),
    }
}
