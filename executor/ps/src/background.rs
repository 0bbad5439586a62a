//! Threads whose work can wait, beside training, whose work cannot.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Of ten ticks that both want, training gets nine (`sched(7)`: each level is a factor of 1.25).
const NICENESS: i32 = 10;

/// Runs `work` on a thread that gives way to those of training. Holding a lock that training waits for, it would hold it up
/// for longer than its work takes: the writer of a snapshot does so for one chunk at most, where nobody has copied that yet.
pub fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(move || {
        give_way();
        work()
    })
}

fn give_way() {
    // SAFETY: a system call on this thread; it touches no memory.
    #[expect(unsafe_code, reason = "nix has no wrapper for it")]
    unsafe {
        // 0 is this thread alone on Linux. Where it is not allowed the work is done all the same.
        nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, NICENESS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_new_thread_gives_way() {
        let niceness = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // Field 19; the second one, in brackets, may have blanks.
            stat.rsplit(')').next().unwrap().split_whitespace().nth(16).unwrap().parse::<i32>().unwrap()
        };
        let before = niceness();
        let there = spawn("quiet", niceness).unwrap().join().unwrap();
        assert_eq!((there, niceness()), (NICENESS, before));
    }
}
