//! Who asks: credentials of Docker's configuration, and of the helpers it names.

use docker_credential::{CredentialRetrievalError, DockerCredential};
use oci_client::secrets::RegistryAuth;
use tokio::task::spawn_blocking;

/// What Docker Hub is called in Docker's configuration.
const HUB: &str = "https://index.docker.io/v1/";

/// Credentials for a registry, if there are any.
pub(crate) struct Credentials(Option<(String, String)>);

impl Credentials {
    pub(crate) fn anonymous(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn auth(&self) -> RegistryAuth {
        match &self.0 {
            Some((user, password)) => RegistryAuth::Basic(user.clone(), password.clone()),
            None => RegistryAuth::Anonymous,
        }
    }
}

/// Those for `registry`. A configuration or a helper that can't be used is like none: most images
/// are public, and a registry that wants to know will say so.
pub(crate) async fn of(registry: &str) -> Credentials {
    let server = match registry {
        "index.docker.io" | "docker.io" => HUB.to_owned(),
        other => other.to_owned(),
    };
    // A helper is a program.
    let found = spawn_blocking(move || docker_credential::get_credential(&server)).await;
    Credentials(
        match found.unwrap_or(Err(CredentialRetrievalError::ConfigReadError)) {
            Ok(DockerCredential::UsernamePassword(user, password)) => Some((user, password)),
            Ok(DockerCredential::IdentityToken(_)) | Err(_) => None,
        },
    )
}
