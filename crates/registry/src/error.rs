//! Why an image could not be pulled.

use oci_client::errors::{OciDistributionError, OciErrorCode};
use slicer_image::ImageError;
use std::error::Error;

/// An error of a pull; each says of which image.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The reference can't be an image's name.
    #[error("invalid image reference {reference:?}: {why}")]
    Reference {
        /// The reference as given.
        reference: String,
        /// What is wrong with it.
        why: String,
    },
    /// The registry has no such image, or doesn't show it.
    #[error(
        "{registry} has no image {reference}, or doesn't show it to {whom}: check the name and the \
         tag"
    )]
    NotFound {
        /// The image.
        reference: String,
        /// Its registry.
        registry: String,
        /// Who asked.
        whom: &'static str,
    },
    /// The registry wants to know who asks, or doesn't like who does.
    #[error("{registry} refuses {reference} to {whom}: run `docker login {registry}`")]
    Unauthorized {
        /// The image.
        reference: String,
        /// Its registry.
        registry: String,
        /// Who asked.
        whom: &'static str,
    },
    /// The image exists, but not for this architecture.
    #[error("{reference} is not available for linux/{arch}; it has: {available}")]
    NoPlatform {
        /// The image.
        reference: String,
        /// The architecture that was asked for.
        arch: String,
        /// The platforms it has.
        available: String,
    },
    /// What the registry sent is no image.
    #[error("{registry} sent no usable image for {reference}: {why}")]
    Senseless {
        /// The image.
        reference: String,
        /// Its registry.
        registry: String,
        /// What is wrong with it.
        why: String,
    },
    /// The registry can't be reached, or broke off time and again.
    #[error("cannot fetch {what} of {reference} from {registry}: {why}{hint}")]
    Network {
        /// What was fetched.
        what: String,
        /// The image.
        reference: String,
        /// Its registry.
        registry: String,
        /// What happened.
        why: String,
        /// What may help.
        hint: &'static str,
    },
    /// Somebody else has been fetching the same blob for too long.
    #[error("another process has been fetching {blob} for {minutes} minutes: end it and try again")]
    Busy {
        /// The blob's digest.
        blob: String,
        /// How long was waited.
        minutes: u64,
    },
    /// The cache failed, or what came is not what it should be.
    #[error(transparent)]
    Cache(#[from] ImageError),
    /// A task failed in a way it never should.
    #[error("pulling an image failed unexpectedly")]
    Internal,
}

/// What errors have in common.
pub(crate) struct Step {
    pub(crate) reference: String,
    pub(crate) registry: String,
    pub(crate) anonymous: bool,
}

impl Step {
    pub(crate) fn senseless(&self, why: &str) -> PullError {
        PullError::Senseless {
            reference: self.reference.clone(),
            registry: self.registry.clone(),
            why: why.to_owned(),
        }
    }

    pub(crate) fn no_platform(&self, arch: &str, available: &str) -> PullError {
        PullError::NoPlatform {
            reference: self.reference.clone(),
            arch: arch.to_owned(),
            available: if available.is_empty() {
                "nothing".to_owned()
            } else {
                available.to_owned()
            },
        }
    }

    fn whom(&self) -> &'static str {
        if self.anonymous {
            "strangers"
        } else {
            "the user of Docker's configuration"
        }
    }

    /// What a failure of the registry means for whoever wanted `what`.
    pub(crate) fn failed(&self, what: &str, e: &OciDistributionError) -> PullError {
        let (reference, registry) = (self.reference.clone(), self.registry.clone());
        let whom = self.whom();
        match Kind::of(e) {
            Kind::Refused => PullError::Unauthorized {
                reference,
                registry,
                whom,
            },
            Kind::Missing => PullError::NotFound {
                reference,
                registry,
                whom,
            },
            Kind::Other => self.network(what, &chain(e)),
        }
    }

    pub(crate) fn network(&self, what: &str, why: &str) -> PullError {
        // rustls' words for an answer that is no TLS.
        let hint = if why.contains("InvalidContentType") || why.contains("corrupt message") {
            "; if it speaks plain HTTP, set insecure_registry: true"
        } else {
            ""
        };
        PullError::Network {
            what: what.to_owned(),
            reference: self.reference.clone(),
            registry: self.registry.clone(),
            why: why.to_owned(),
            hint,
        }
    }
}

/// What kind of answer an error is.
enum Kind {
    Refused,
    Missing,
    Other,
}

impl Kind {
    fn of(e: &OciDistributionError) -> Self {
        match e {
            OciDistributionError::AuthenticationFailure(_)
            | OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::ServerError {
                code: 401 | 403, ..
            } => Self::Refused,
            OciDistributionError::ImageManifestNotFoundError(_)
            | OciDistributionError::ServerError { code: 404, .. } => Self::Missing,
            OciDistributionError::RegistryError { envelope, .. } => {
                let kind = |code: &OciErrorCode| match code {
                    OciErrorCode::Unauthorized | OciErrorCode::Denied => Some(Self::Refused),
                    OciErrorCode::ManifestUnknown
                    | OciErrorCode::NameUnknown
                    | OciErrorCode::NotFound => Some(Self::Missing),
                    _ => None,
                };
                let kinds = envelope.errors.iter().find_map(|e| kind(&e.code));
                kinds.unwrap_or(Self::Other)
            }
            _ => Self::Other,
        }
    }
}

/// An error and its causes, in one line.
pub(crate) fn chain(e: &dyn Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(e) = source {
        let cause = e.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = e.source();
    }
    text
}
