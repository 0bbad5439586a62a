//! Executors as child processes of the driver, of the same binary.
//!
//! A child cannot outlive its driver: the kernel kills it when the launching thread is gone
//! (`PR_SET_PDEATHSIG`), and it ends by itself when its control stream breaks. It stands in a process group
//! of its own, so that Ctrl-C reaches the driver alone and the driver decides.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use tfos_core::failure::Cause;
use tfos_core::ids::ExecutorId;
use tokio::sync::mpsc::UnboundedSender;

use super::{Launcher, Rendezvous};
use crate::error::Error;
use crate::event::Event;

/// Child processes.
#[derive(Debug)]
pub struct Local {
    /// The program that every executor runs.
    pub program: PathBuf,
    /// Its arguments, before those that this launcher adds.
    pub arguments: Vec<String>,
    /// How many to start, and how many GPUs each wants.
    pub gpus: Vec<u32>,
    /// Ports of the executors' listeners.
    pub ports: String,
    /// Threads for the computing of each.
    pub threads: usize,
    /// How many of them compute.
    pub trainers: u32,
    watcher: Option<(mpsc::Sender<Duration>, JoinHandle<()>)>,
}

impl Local {
    /// Executors `0..gpus.len()` of `program`.
    pub fn new(program: PathBuf, arguments: Vec<String>, gpus: Vec<u32>, ports: String) -> Self {
        Self { program, arguments, gpus, ports, threads: 1, trainers: 1, watcher: None }
    }

    fn command(&self, id: usize, gpus: u32, rendezvous: &Rendezvous, log: &File) -> std::io::Result<Command> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .args(["executor", "--driver", &rendezvous.url, "--executor-id", &id.to_string()])
            .args(["--num-gpus", &gpus.to_string(), "--bind", "127.0.0.1", "--ports", &self.ports])
            .args(["--threads", &self.threads.to_string()])
            .arg("--log")
            .arg(rendezvous.log_dir.join(log_name(id)))
            // Not on the command line, where every user of the host could read it.
            .env("TFOS_TOKEN", &rendezvous.token)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .process_group(0);
        // OpenMP's threads spin for a millisecond before they sleep. One process that computes gains by it, two times
        // the steps were measured; several starve each other on busy cores, ten times fewer were measured.
        if self.trainers > 1 && std::env::var_os("GOMP_SPINCOUNT").is_none() {
            command.env("GOMP_SPINCOUNT", "0");
        }
        let parent = std::process::id();
        // SAFETY: between fork and exec only prctl and getppid are called, both async-signal-safe.
        #[expect(unsafe_code, reason = "the death signal has to be set in the child before exec")]
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from)?;
                // The driver may have died before the line above took effect.
                if nix::unistd::getppid().as_raw() as u32 != parent {
                    return Err(std::io::Error::other("the driver is gone"));
                }
                Ok(())
            });
        }
        Ok(command)
    }
}

fn log_name(id: usize) -> String {
    format!("executor-{id}.log")
}

/// A child and its log.
struct Running {
    process: Child,
    log: PathBuf,
}

/// How far back in a log the first error is looked for, bytes.
const LOG_TAIL: u64 = 64 << 10;

/// The first error near the end of a log: of a process that ended by itself it is the reason.
fn first_error(log: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let size = file.seek(SeekFrom::End(0)).ok()?;
    file.seek(SeekFrom::Start(size.saturating_sub(LOG_TAIL))).ok()?;
    let mut tail = vec![];
    file.take(LOG_TAIL).read_to_end(&mut tail).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    tail.lines().find_map(|line| {
        let said = match line.split_once(" ERROR ") {
            // The module that wrote it comes first.
            Some((_, said)) => said.split_once(": ").map_or(said, |(_, said)| said),
            None if line.starts_with("error: ") || line.starts_with("terminate called") => line,
            None if line.contains(" panicked at ") => line,
            None => return None,
        };
        Some(said.trim().to_owned())
    })
}

/// How a process ended, as the cause of a failure.
fn cause_of(status: ExitStatus) -> Cause {
    match status.signal() {
        Some(signal) => Cause::Signal { signal },
        None => Cause::Exit { code: status.code().unwrap_or(-1) },
    }
}

impl Launcher for Local {
    fn launch(&mut self, rendezvous: &Rendezvous, events: UnboundedSender<Event>) -> Result<(), Error> {
        let mut commands = vec![];
        for (id, gpus) in self.gpus.iter().enumerate() {
            let path = rendezvous.log_dir.join(log_name(id));
            let file = |source| Error::File { path: path.display().to_string(), action: "created", source };
            let log = File::create(&path).map_err(file)?;
            let command = self.command(id, *gpus, rendezvous, &log).map_err(file)?;
            commands.push((ExecutorId(id as u32), command, path.display().to_string()));
        }
        let program = self.program.display().to_string();
        let (started_tx, started_rx) = mpsc::channel();
        let (stop_tx, stop_rx) = mpsc::channel();
        // The death signal is tied to the thread that forks, so that thread lives as long as its children.
        let spawned = std::thread::Builder::new().name("launcher".into()).spawn(move || {
            // What an executor leaves behind when it dies, its agent, becomes this process' child, and is reaped like one.
            let adopts = nix::sys::prctl::set_child_subreaper(true).is_ok();
            let mut groups = vec![];
            let mut children = BTreeMap::new();
            let mut result = Ok(());
            for (executor, mut command, log) in commands {
                match command.spawn() {
                    Ok(process) => {
                        let _ = events.send(Event::Launched { executor, pid: process.id(), log: log.clone() });
                        groups.push(Pid::from_raw(process.id() as i32));
                        children.insert(executor, Running { process, log: log.into() });
                    }
                    Err(source) => {
                        result = Err(Error::Launch { executor: executor.0, program, source });
                        break;
                    }
                }
            }
            let failed = result.is_err();
            let _ = started_tx.send(result);
            let grace = if failed { Duration::ZERO } else { watch(&mut children, &events, &stop_rx) };
            reap(children, grace);
            if adopts {
                groups.into_iter().for_each(reap_group);
            }
        });
        let handle = spawned.map_err(|source| Error::Launch {
            executor: 0,
            program: self.program.display().to_string(),
            source,
        })?;
        self.watcher = Some((stop_tx, handle));
        started_rx.recv().unwrap_or(Err(Error::Stopped))
    }

    fn stop(&mut self, grace: Duration) {
        if let Some((stop, handle)) = self.watcher.take() {
            let _ = stop.send(grace);
            let _ = handle.join();
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

/// Reports exits until somebody says stop; returns the grace that the living get.
fn watch(
    children: &mut BTreeMap<ExecutorId, Running>,
    events: &UnboundedSender<Event>,
    stop: &mpsc::Receiver<Duration>,
) -> Duration {
    loop {
        match stop.recv_timeout(Duration::from_millis(20)) {
            Ok(grace) => return grace,
            Err(mpsc::RecvTimeoutError::Disconnected) => return Duration::ZERO,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        children.retain(|executor, child| match child.process.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                let (cause, said) = (cause_of(status), first_error(&child.log));
                let _ = events.send(Event::ProcessExited { executor: *executor, cause, said });
                false
            }
            Err(e) => {
                let cause = Cause::Lost { reason: format!("cannot be waited for: {e}") };
                let _ = events.send(Event::ProcessExited { executor: *executor, cause, said: None });
                false
            }
        });
    }
}

/// Ends what is left of an executor's process group: of an agent nobody wants anything any more.
fn reap_group(group: Pid) {
    // Fails when nobody is left in it, which is how it mostly is.
    let _ = killpg(group, Signal::SIGKILL);
    while waitpid(Pid::from_raw(-group.as_raw()), None).is_ok() {}
}

/// Waits up to `grace`, then kills; afterwards no child is left.
fn reap(mut children: BTreeMap<ExecutorId, Running>, grace: Duration) {
    let deadline = Instant::now() + grace;
    while !children.is_empty() && Instant::now() < deadline {
        children.retain(|_, child| matches!(child.process.try_wait(), Ok(None)));
        std::thread::sleep(Duration::from_millis(5));
    }
    for child in children.values_mut() {
        let _ = child.process.kill();
    }
    for child in children.values_mut() {
        let _ = child.process.wait();
    }
}
