//! Waiting for a condition instead of an amount of time.

use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until `there` is so.
///
/// # Panics
/// When it isn't within `bound`.
pub async fn wait_until(what: &str, bound: Duration, mut there: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !there().await {
        assert!(start.elapsed() < bound, "not within {bound:?}: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until `there` is so, for callers that are not async; whether it came to that.
pub fn soon(bound: Duration, mut there: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if there() {
            return true;
        }
        if start.elapsed() >= bound {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
}
