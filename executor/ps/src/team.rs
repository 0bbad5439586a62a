//! Threads that take over a part of some work: who has the work begins at once, and nothing is allocated.
//!
//! [`Team::join`] offers one half to whoever is free and does the other half itself; what nobody has begun by then it does
//! too. So a thread that wakes late, or not at all because the cores are busy, holds nobody up. Who waits for the
//! other half takes what else is offered meanwhile.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::available_parallelism;

use crate::error::Error;

/// So many halves at a time need no more memory: each thread has few, as those of a half are halves of it.
const ROOM: usize = 256;

/// Half of some work, on the stack of who offers it.
type Half = &'static (dyn Fn() + Sync);

/// What is offered, and what has been taken.
#[derive(Default)]
struct Halves {
    /// The oldest, which is the largest, first.
    offered: VecDeque<Half>,
    under_way: Vec<Half>,
    /// Threads that sleep, and those that wait for an end.
    idle: usize,
    waiting: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    halves: Mutex<Halves>,
    /// Something was offered, or the team is closed.
    offered: Condvar,
    /// Something has ended, or was offered while somebody waits for such an end.
    ended: Condvar,
}

/// Threads of its own; they end when it is dropped.
pub(crate) struct Team {
    shared: Arc<Shared>,
    threads: usize,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Team").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl Team {
    /// Of `wanted` threads beside those that call, or of as many as can be started.
    pub(crate) fn new(name: &str, wanted: usize) -> Team {
        let shared = Arc::new(Shared::default());
        let mut halves = shared.lock();
        halves.offered.reserve(ROOM);
        halves.under_way.reserve(ROOM);
        drop(halves);
        let start = |_| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(name.to_owned()).spawn(move || shared.serve()).is_ok()
        };
        let threads = (0..wanted).map(start).take_while(|started| *started).count();
        Team { shared, threads }
    }

    /// The one for updates of parameters, which has a thread for each core but that of who calls.
    pub(crate) fn for_updates() -> &'static Team {
        static TEAM: OnceLock<Team> = OnceLock::new();
        TEAM.get_or_init(|| Team::new("update", available_parallelism().map_or(1, usize::from) - 1))
    }

    /// How many threads there are beside those that call.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Does both, at the same time if a thread is free. The error of the first counts before that of the second; a panic is
    /// passed on when both have ended.
    pub(crate) fn join(
        &self,
        first: impl FnOnce() -> Result<(), Error>,
        second: impl FnOnce() -> Result<(), Error> + Send,
    ) -> Result<(), Error> {
        if self.threads == 0 {
            return first().and(second());
        }
        let (second, result) = (Mutex::new(Some(second)), Mutex::new(Ok(Ok(()))));
        let half = || {
            if let Some(second) = lock(&second).take() {
                let done = catch_unwind(AssertUnwindSafe(second));
                *lock(&result) = done;
            }
        };
        let offered: &(dyn Fn() + Sync) = &half;
        // SAFETY: nobody has it any more when this function returns, which is after it was taken back or has ended; that `first`
        // panics does not end the function before that.
        #[expect(unsafe_code, reason = "a thread that lives longer borrows from this stack")]
        let offered: Half = unsafe { std::mem::transmute::<&(dyn Fn() + Sync), Half>(offered) };
        self.shared.offer(offered);
        let begun = catch_unwind(AssertUnwindSafe(first));
        if self.shared.take_back(offered) {
            half()
        } else {
            self.shared.await_end(offered)
        }
        match (begun, result.into_inner().unwrap_or_else(PoisonError::into_inner)) {
            (Ok(first), Ok(second)) => first.and(second),
            (Err(panic), _) | (_, Err(panic)) => resume_unwind(panic),
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.offered.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Halves> {
        lock(&self.halves)
    }

    fn offer(&self, half: Half) {
        let mut halves = self.lock();
        halves.offered.push_back(half);
        let (idle, waiting) = (halves.idle > 0, halves.waiting > 0);
        drop(halves);
        if idle {
            self.offered.notify_one();
        } else if waiting {
            // They can take it just as well.
            self.ended.notify_all();
        }
    }

    /// Whether nobody had begun with it, and nobody will.
    fn take_back(&self, half: Half) -> bool {
        let mut halves = self.lock();
        let at = halves.offered.iter().rposition(|other| is_same(other, half));
        at.and_then(|at| halves.offered.remove(at)).is_some()
    }

    /// What ends the wait: who has taken it comes to its end, as it waits for nobody but those below it.
    fn await_end(&self, half: Half) {
        let mut halves = self.lock();
        while halves.under_way.iter().any(|other| is_same(other, half)) {
            if let Some(other) = halves.offered.pop_front() {
                halves = self.perform(halves, other);
                continue;
            }
            halves.waiting += 1;
            halves = self.ended.wait(halves).unwrap_or_else(PoisonError::into_inner);
            halves.waiting -= 1;
        }
    }

    /// Only the list is touched after the work: who has offered it may be gone when it is not in there any more.
    fn perform<'a>(&'a self, mut halves: MutexGuard<'a, Halves>, half: Half) -> MutexGuard<'a, Halves> {
        halves.under_way.push(half);
        drop(halves);
        half();
        let mut halves = self.lock();
        halves.under_way.retain(|other| !is_same(other, half));
        if halves.waiting > 0 {
            self.ended.notify_all();
        }
        halves
    }

    fn serve(&self) {
        let mut halves = self.lock();
        while !halves.closed {
            if let Some(half) = halves.offered.pop_front() {
                halves = self.perform(halves, half);
                continue;
            }
            halves.idle += 1;
            halves = self.offered.wait(halves).unwrap_or_else(PoisonError::into_inner);
            halves.idle -= 1;
        }
    }
}

/// Whether these are one and the same on somebody's stack; those of others lie elsewhere for as long as both are there.
fn is_same(one: &Half, other: Half) -> bool {
    std::ptr::addr_eq(std::ptr::from_ref(*one), std::ptr::from_ref(other))
}

/// Nothing panics while it is locked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    /// Adds up a range by halves.
    fn sum(team: &Team, range: std::ops::Range<usize>, into: &AtomicUsize) -> Result<(), Error> {
        if range.len() <= 3 {
            into.fetch_add(range.sum(), Ordering::Relaxed);
            return Ok(());
        }
        let middle = range.start + range.len() / 2;
        team.join(|| sum(team, range.start..middle, into), || sum(team, middle..range.end, into))
    }

    #[test]
    fn every_half_is_done_once_with_any_number_of_threads_and_callers() {
        for threads in [0, 1, 3] {
            let team = Team::new("test", threads);
            assert_eq!(team.threads(), threads);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        for n in 0..500 {
                            let total = AtomicUsize::new(0);
                            sum(&team, 0..n, &total).unwrap();
                            assert_eq!(total.into_inner(), n * n.saturating_sub(1) / 2);
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn both_halves_run_at_the_same_time_where_there_is_a_thread() {
        let team = Team::new("test", 2);
        let met = std::sync::Barrier::new(3);
        let wait = || {
            met.wait();
            Ok(())
        };
        team.join(wait, || team.join(wait, wait)).unwrap();
    }

    #[test]
    fn an_error_or_a_panic_of_either_half_is_passed_on_when_both_have_ended() {
        let team = Team::new("test", 1);
        let ended = AtomicUsize::new(0);
        let fine = || {
            ended.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        let fails = || Err(Error::Stopped);
        assert!(matches!(team.join(fails, fine), Err(Error::Stopped)));
        assert!(matches!(team.join(fine, fails), Err(Error::Stopped)));
        let panics = || -> Result<(), Error> { panic!("on purpose") };
        assert!(catch_unwind(AssertUnwindSafe(|| team.join(panics, fine))).is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| team.join(fine, panics))).is_err());
        assert_eq!(ended.load(Ordering::Relaxed), 4);
        // And the thread is still there.
        sum(&team, 0..100, &ended).unwrap();
    }

    #[test]
    fn threads_end_with_their_team() {
        let team = Team::new("test", 2);
        let shared = Arc::downgrade(&team.shared);
        drop(team);
        let deadline = Instant::now() + Duration::from_secs(30);
        while shared.strong_count() > 0 {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }
}
