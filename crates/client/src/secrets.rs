//! Secrets.

use crate::client::{Call, segment};
use crate::{Client, ClientError};
use hyper::Method;
use slicer_api::{CreateSecret, Secret, UpdateSecret};

fn secret_path(name: &str) -> String {
    format!("/secrets/{}", segment(name))
}

impl Client {
    /// `GET /secrets`: all secrets, without their values.
    pub async fn secrets(&self) -> Result<Vec<Secret>, ClientError> {
        self.fetch_list(Call::get("/secrets")).await
    }

    /// `POST /secrets`: makes a secret.
    pub async fn create_secret(&self, secret: &CreateSecret) -> Result<Secret, ClientError> {
        self.fetch(Call::post("/secrets").json(secret)?).await
    }

    /// `PATCH /secrets/{name}`: changes a secret's value, permissions or owner.
    pub async fn update_secret(
        &self,
        name: &str,
        change: &UpdateSecret,
    ) -> Result<Secret, ClientError> {
        let path = secret_path(name);
        self.fetch(Call::new(Method::PATCH, &path).json(change)?)
            .await
    }

    /// `DELETE /secrets/{name}`: removes a secret, in guests too.
    pub async fn remove_secret(&self, name: &str) -> Result<(), ClientError> {
        let path = secret_path(name);
        self.call(Call::new(Method::DELETE, &path)).await.map(drop)
    }
}
