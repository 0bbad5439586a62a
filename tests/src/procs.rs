//! Executor processes of a job, found by their command lines: `executor … --executor-id N … --log FILE`, with the
//! log below the job's model directory.
#![expect(clippy::panic, reason = "the harness of tests ends a test by a panic")]

use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;

pub use nix::sys::signal::Signal;

use crate::wait;

/// A running executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Executor {
    /// Its place in the cluster.
    pub id: u32,
    /// Its process.
    pub pid: i32,
}

/// The living executors whose log is below `folder`, by id.
pub fn executors(folder: &Path) -> Vec<Executor> {
    let mut found = with_agents(folder);
    found.retain(|e| std::fs::read_to_string(format!("/proc/{}/comm", e.pid)).is_ok_and(|c| c != "tfos-agent\n"));
    found
}

/// Executors and their agents, which are forks of them.
fn with_agents(folder: &Path) -> Vec<Executor> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut found: Vec<Executor> =
        processes.filter_map(|p| executor(p.file_name().to_str()?.parse().ok()?, folder)).collect();
    found.sort();
    found
}

fn executor(pid: i32, folder: &Path) -> Option<Executor> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<String> = line.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
    let after = |flag: &str| words.iter().skip_while(|w| *w != flag).nth(1);
    let ours = words.get(1)? == "executor" && Path::new(after("--log")?).starts_with(folder);
    // A dead process that nobody has reaped yet has no command line, so those found here live.
    ours.then(|| after("--executor-id")?.parse().ok()).flatten().map(|id| Executor { id, pid })
}

/// Waits until executor `id` of the job below `folder` runs.
pub fn executor_of(folder: &Path, id: u32) -> Executor {
    wait::until(&format!("executor {id} to run"), wait::secs(30), || executors(folder).into_iter().find(|e| e.id == id))
}

/// Sends a signal; a process that is gone already is an error of the test.
pub fn signal(pid: i32, signal: Signal) {
    if let Err(e) = nix::sys::signal::kill(Pid::from_raw(pid), signal) {
        panic!("{signal} could not be sent to process {pid}: {e}");
    }
}

/// Kills a process group if it is there.
pub fn kill_group(leader: i32) {
    let _ = nix::sys::signal::killpg(Pid::from_raw(leader), Signal::SIGKILL);
}

/// Whether a process exists (a zombie does).
pub fn exists(pid: i32) -> bool {
    nix::sys::signal::kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}

/// Ends the test if an executor or an agent of the job below `folder` is left after `limit`; kills those first.
pub fn assert_none_left(folder: &Path, limit: Duration) {
    let gone = wait::poll(limit, || with_agents(folder).is_empty().then_some(()));
    if gone.is_none() {
        let left = with_agents(folder);
        for executor in &left {
            let _ = nix::sys::signal::kill(Pid::from_raw(executor.pid), Signal::SIGKILL);
        }
        panic!("executors are left after {limit:?}: {left:?}");
    }
}
