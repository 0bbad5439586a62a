//! The one place of the tests that looks at the clock: it polls a condition until a deadline.
#![expect(clippy::panic, reason = "the harness of tests ends a test by a panic")]

use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(5);

/// Polls `condition` until it gives something, at most for `limit`.
pub fn poll<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        // Asked once more after the deadline: this thread may have been the one that was late.
        let late = Instant::now() >= deadline;
        if let Some(found) = condition() {
            return Some(found);
        }
        if late {
            return None;
        }
        std::thread::sleep(PAUSE);
    }
}

/// As [`poll`]; ends the test when the deadline passes.
pub fn until<T>(what: &str, limit: Duration, condition: impl FnMut() -> Option<T>) -> T {
    match poll(limit, condition) {
        Some(found) => found,
        None => panic!("waited {limit:?} in vain for {what}"),
    }
}

/// Takes a while, for a server that has to be slow. A test itself waits for a condition.
pub(crate) fn pace(time: Duration) {
    std::thread::sleep(time);
}

/// Seconds, shorter.
pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
