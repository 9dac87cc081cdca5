//! Secrets: files the daemon keeps and gives to guests, as `/secrets` shows and changes them.

use crate::Timestamp;
use serde::{Deserialize, Serialize};

/// Longest name of a secret, bytes.
const MAX_NAME: usize = 253;

/// A secret as lists show it: everything but its value.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Its name, which is that of its file.
    pub name: String,
    /// Length of its value, bytes.
    pub size: u64,
    /// Permissions of its file in guests, octal, such as `0600`.
    pub permissions: String,
    /// Owner of its file in guests.
    pub uid: u32,
    /// Group of its file in guests.
    pub gid: u32,
    /// When its value was last written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified_at: Option<Timestamp>,
    /// The same, by the name the documentation of SlicerVM has for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mod_time: Option<Timestamp>,
}

/// `POST /secrets`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSecret {
    /// Its name.
    #[cfg_attr(
        feature = "openapi",
        schema(required = true, pattern = "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}$")
    )]
    #[serde(default)]
    pub name: String,
    /// Its value, base64.
    #[cfg_attr(feature = "openapi", schema(format = Byte))]
    #[serde(default)]
    pub data: String,
    /// Permissions, octal; absent is `0600`.
    #[cfg_attr(feature = "openapi", schema(pattern = "^(0{0,2}[4-7][0-7]{2})?$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
    /// Owner; absent is root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group; absent is root's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// `PATCH /secrets/{name}`: what is absent stays as it is.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateSecret {
    /// Its value, base64. Empty is like absent, since Go clients always send it.
    #[cfg_attr(feature = "openapi", schema(format = Byte))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Permissions, octal.
    #[cfg_attr(feature = "openapi", schema(pattern = "^(0{0,2}[4-7][0-7]{2})?$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
    /// Owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// A secret on its way to a guest.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSecret {
    /// Its name.
    pub name: String,
    /// Its value, base64.
    pub data: String,
    /// Permission bits of its file.
    pub mode: u32,
    /// Owner of its file.
    pub uid: u32,
    /// Group of its file.
    pub gid: u32,
}

impl std::fmt::Debug for GuestSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GuestSecret({})", self.name)
    }
}

/// All secrets a guest may see (`PUT /secrets` on the guest channel): those it has besides go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSecrets {
    /// The secrets.
    pub secrets: Vec<GuestSecret>,
    /// The guest's request they answer, see [`GuestRequest`](crate::GuestRequest).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<u64>,
}

/// Whether a secret may have this name: letters, digits, `.`, `_` and `-`, at most 253, and no dot
/// in front, since it is a file's name on host and guest.
#[must_use]
pub fn is_secret_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    !name.is_empty() && name.len() <= MAX_NAME && !name.starts_with('.') && name.bytes().all(plain)
}

/// Permission bits from octal text such as `0600` or `644`. The owner must be able to read.
#[must_use]
pub fn parse_permissions(text: &str) -> Option<u32> {
    let octal = !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
    let mode = u32::from_str_radix(text, 8).ok().filter(|_| octal)?;
    (mode <= 0o777 && mode & 0o400 != 0).then_some(mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_file_names_and_nothing_more() {
        for name in ["a", "API_KEY", "x.y-z", &"n".repeat(253)] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            ".x",
            "a/b",
            "a b",
            "ä",
            "a\0",
            &"n".repeat(254),
        ] {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    #[test]
    fn permissions_are_octal() {
        for (text, mode) in [
            ("0600", Some(0o600)),
            ("644", Some(0o644)),
            ("0400", Some(0o400)),
            ("0000", None),
            ("1777", None),
            ("8", None),
            ("+600", None),
            ("", None),
            ("0o600", None),
        ] {
            assert_eq!(parse_permissions(text), mode, "{text}");
        }
    }

    #[test]
    fn a_value_is_not_shown_by_accident() {
        let secret = GuestSecret {
            name: "key".into(),
            data: "c2VzYW1l".into(),
            mode: 0o600,
            uid: 0,
            gid: 0,
        };
        assert_eq!(format!("{secret:?}"), "GuestSecret(key)");
    }
}
