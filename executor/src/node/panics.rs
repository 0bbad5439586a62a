//! What a panic said, and where. The place is known only to the hook, on the thread that panics, and is wanted where
//! the panic is caught: elsewhere, if the future that panicked has gone on to another thread since. So the hook keeps the
//! last few, and who catches one finds its place by its message.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, Once, PoisonError};

use futures::FutureExt;

use crate::Error;

/// Panics that are caught and not told, as those of decoders, must not push out one that is on its way.
const KEPT: usize = 16;

static LAST: Mutex<VecDeque<Told>> = Mutex::new(VecDeque::new());

struct Told {
    message: String,
    place: String,
}

/// What `future` gives, or its panic as an error.
pub(crate) async fn unpanicked<T>(future: impl Future<Output = T>) -> Result<T, Error> {
    remember();
    let result = AssertUnwindSafe(future).catch_unwind().await;
    result.map_err(|payload| Error::Panicked(message(&*payload)))
}

/// From now on panics are kept for [`message`], and still printed to the log.
pub(super) fn remember() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let place = info.location().map_or_else(String::new, |l| format!(" at {l}"));
            let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
            if last.len() == KEPT {
                last.pop_front();
            }
            last.push_back(Told { message: text(info.payload()), place });
            drop(last);
            print(info);
        }));
    });
}

/// Message and place of a panic that was caught.
pub(super) fn message(payload: &(dyn Any + Send)) -> String {
    let message = text(payload);
    let last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let place = last.iter().rfind(|told| told.message == message).map_or("", |told| &told.place);
    format!("{message}{place}")
}

fn text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};

    use super::{message, remember};

    #[test]
    fn a_panic_that_is_caught_elsewhere_is_told_with_its_place() {
        remember();
        let panicked = std::thread::spawn(|| panic!("one of {}", 3)).join().unwrap_err();
        let here = concat!(file!(), ":");
        // Others in between, caught by whoever: neither takes the place of the first.
        for _ in 0..3 {
            drop(catch_unwind(|| panic!("another")).unwrap_err());
        }
        let told = message(&*panicked);
        assert!(told.starts_with("one of 3 at ") && told.contains(here), "{told}");
        let again = catch_unwind(AssertUnwindSafe(|| std::panic::resume_unwind(panicked))).unwrap_err();
        assert_eq!(message(&*again), told, "a panic that goes on is the same one");
        let odd = catch_unwind(|| panic_any(7)).unwrap_err();
        assert!(message(&*odd).starts_with("no message at "));
    }
}
