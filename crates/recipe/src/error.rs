//! How a build fails.

use std::fmt::Display;
use std::io;
use std::process::ExitStatus;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// A program that the build calls isn't there.
    #[error("{program} not found: install the Debian package {package}")]
    Missing {
        /// The program.
        program: &'static str,
        /// The package it is in.
        package: &'static str,
    },
    /// This machine can't run programs of the guest's architecture.
    #[error(
        "this machine runs no {0} programs: install the Debian packages qemu-user-static, \
         binfmt-support and arch-test; if they are there, as in a container, mount binfmt_misc at \
         /proc/sys/fs/binfmt_misc and run `update-binfmts --enable`"
    )]
    Foreign(crate::Arch),
    /// A program failed.
    #[error("{program} failed ({status}):\n{said}")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said on standard error.
        said: String,
    },
    /// What a step was about, and why it failed.
    #[error("{what}")]
    During {
        /// What could not be done.
        what: String,
        /// Why.
        source: Box<RecipeError>,
    },
    /// Something is not as it should be.
    #[error("{0}")]
    Unexpected(String),
    /// Somebody asked it to end.
    #[error("the build was stopped")]
    Stopped,
    /// A file can't be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A layout of before can't be read.
    #[error(transparent)]
    Layout(#[from] oci_spec::OciSpecError),
    /// A document can't be written.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The kernel is packed in a way nobody knows.
    #[error(transparent)]
    Kernel(#[from] slicer_image::VmlinuxError),
}

/// What can be told about an error, or the lack of a value.
pub(crate) trait Context<T> {
    /// Says what could not be done.
    fn with_context<S: Display>(self, what: impl FnOnce() -> S) -> Result<T, RecipeError>;
}

impl<T, E: Into<RecipeError>> Context<T> for Result<T, E> {
    fn with_context<S: Display>(self, what: impl FnOnce() -> S) -> Result<T, RecipeError> {
        self.map_err(|e| RecipeError::During {
            what: what().to_string(),
            source: Box::new(e.into()),
        })
    }
}

impl<T> Context<T> for Option<T> {
    fn with_context<S: Display>(self, what: impl FnOnce() -> S) -> Result<T, RecipeError> {
        self.ok_or_else(|| RecipeError::Unexpected(what().to_string()))
    }
}
