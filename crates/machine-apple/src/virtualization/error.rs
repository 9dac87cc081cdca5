//! The framework's errors and exceptions as plain data.

use crate::framework::{ErrorKind, VzError};
use objc2::exception::{Exception, catch};
use objc2::rc::Retained;
use objc2_foundation::NSError;
use objc2_virtualization::{VZErrorCode, VZErrorDomain};
use std::panic::AssertUnwindSafe;

impl From<&NSError> for VzError {
    fn from(e: &NSError) -> Self {
        let (domain, code) = (e.domain(), e.code());
        // SAFETY: a string constant of the framework.
        let ours = unsafe { VZErrorDomain }.is_some_and(|ours| *domain == *ours);
        let kind = match VZErrorCode(code) {
            _ if !ours => ErrorKind::Other,
            VZErrorCode::Restore => ErrorKind::Restore,
            VZErrorCode::InvalidVirtualMachineState
            | VZErrorCode::InvalidVirtualMachineStateTransition => ErrorKind::State,
            _ => ErrorKind::Other,
        };
        let mut text = e.localizedDescription().to_string();
        if let Some(reason) = e.localizedFailureReason() {
            text = format!("{text} {reason}");
        }
        Self {
            kind,
            text: format!("{text} ({domain} {code})"),
        }
    }
}

impl From<Retained<NSError>> for VzError {
    fn from(e: Retained<NSError>) -> Self {
        Self::from(&*e)
    }
}

fn exception(e: Option<Retained<Exception>>) -> VzError {
    match e {
        Some(e) => VzError::other(format!("the framework raised {e:?}")),
        None => VzError::other("the framework raised nothing at all"),
    }
}

/// Calls the framework. It raises exceptions where it finds that it was called wrongly, and one that
/// goes through Rust ends the process, with all VMs.
pub(super) fn caught<T>(call: impl FnOnce() -> Result<T, VzError>) -> Result<T, VzError> {
    // What was half-done is an object nobody uses any more.
    catch(AssertUnwindSafe(call)).unwrap_or_else(|e| Err(exception(e)))
}
