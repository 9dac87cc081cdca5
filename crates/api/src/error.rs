//! The one error form of the API: an HTTP status and `{"error": "...", "code": "..."}`.

use serde::{Deserialize, Serialize};

/// The JSON body of every answer that isn't 2xx.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// A sentence for the user.
    pub error: String,
    /// A stable word for programs, such as `not_found`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

/// An error with the HTTP status it is answered with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// A stable word for programs.
    pub code: &'static str,
    /// A sentence for the user: what failed, on which VM, and what to do.
    pub message: String,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident = $status:literal),* $(,)?) => {
        impl ApiError {
            $($(#[$doc])* #[must_use]
            pub fn $name(message: impl Into<String>) -> Self {
                Self { status: $status, code: stringify!($name), message: message.into() }
            })*
        }
    };
}

constructors! {
    /// 400: the request itself is wrong.
    bad_request = 400,
    /// 401: the bearer token is missing or wrong.
    unauthorized = 401,
    /// 403: the request is understood and not allowed, such as deleting a protected VM.
    forbidden = 403,
    /// 404: no such VM, group or file.
    not_found = 404,
    /// 405: the path exists, the method doesn't.
    method_not_allowed = 405,
    /// 408: a wait ran out.
    timeout = 408,
    /// 409: the VM is in a state that doesn't allow this.
    conflict = 409,
    /// 410: it existed and is gone for good.
    gone = 410,
    /// 500: the daemon failed.
    internal = 500,
    /// 501: this platform can't do it.
    unsupported = 501,
    /// 502: the guest could not reach what it was asked to reach.
    bad_gateway = 502,
    /// 503: not yet; asking again later may succeed.
    unavailable = 503,
    /// 507: no room on the disk.
    insufficient_storage = 507,
}

impl ApiError {
    /// The body this error is answered with.
    #[must_use]
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            error: self.message.clone(),
            code: Some(self.code.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_carries_text_and_code() {
        let e = ApiError::not_found("VM \"sbox-9\" not found");
        assert_eq!(
            serde_json::to_string(&e.body()).unwrap(),
            r#"{"error":"VM \"sbox-9\" not found","code":"not_found"}"#
        );
        let old: ErrorBody = serde_json::from_str(r#"{"error":"x"}"#).unwrap();
        assert_eq!(old.code, None);
    }
}
