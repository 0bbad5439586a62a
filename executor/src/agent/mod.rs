//! A second process of each executor, which writes the snapshot of an executor that died, and removes its folders.
//!
//! It is forked at the start, before there is a thread, and sleeps on a socket; it costs no memory of its own. Of each
//! snapshot that is being written it is given the descriptors of the memory in which that lies. The end of the socket is
//! the end of the executor. With a snapshot in hand the agent then asks the driver whether it is wanted, writes the part,
//! reports it, and ends; without one it ends at once.
//!
//! Folders of the executor's own are removed when it is dead, however it ended: while it lives, a thread of it may make them
//! anew.
//!
//! - `AGT-1` an agent outlives its executor only while the driver says that it waits for the part, and to remove folders.

mod client;
mod rescue;
mod will;

#[cfg(feature = "ballista")]
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
#[cfg(feature = "ballista")]
use std::path::{Path, PathBuf};
#[cfg(feature = "ballista")]
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
#[cfg(feature = "ballista")]
use nix::unistd::getppid;
use nix::unistd::{ForkResult, Pid, fork, getpid};

use tfos_core::failure::chain;

use crate::checkpoint::Content;
pub(crate) use will::Task;
use will::Will;

/// What the executor says; the first byte of a message, the number of a snapshot follows.
const TAKE: u8 = 1;
const DONE: u8 = 2;
const FORGET: u8 = 3;
/// The executor writes below a folder that is of no use without it; its descriptor comes along.
#[cfg(feature = "ballista")]
const FOLDER: u8 = 4;

/// How often is looked whether an executor that ends has ended.
#[cfg(feature = "ballista")]
const ENDING: std::time::Duration = std::time::Duration::from_millis(2);

/// Descriptors of one message: the will and the files that it names.
const MAX_FDS: usize = 8;

/// An agent, and what it has to know beside the snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Heir {
    pub(crate) agent: Arc<Agent>,
    pub(crate) task: Task,
}

impl Heir {
    /// Leaves it the snapshot, in case that this process dies before that is written.
    pub(crate) fn take(&self, task: Task, content: &Content) {
        let id = task.id;
        let left = Will::new(task, content).map_err(|e| chain(&e).join(": "));
        if let Err(error) = left.and_then(|will| self.agent.take(id, &will).map_err(|e| e.to_string())) {
            tracing::warn!("snapshot {id} is lost if this process dies before it is written: {error}");
        }
    }
}

/// The executor's end.
#[derive(Debug)]
pub struct Agent {
    socket: Mutex<Option<OwnedFd>>,
    process: Pid,
    /// It is to remove a folder.
    #[cfg(feature = "ballista")]
    has_folder: AtomicBool,
}

impl Agent {
    /// Forks the agent. `None` when this process has threads already, as a fork would not be safe then, or when the system
    /// has no process to spare: the job runs without.
    pub fn start() -> Option<Arc<Agent>> {
        let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count);
        if threads.ok() != Some(1) {
            return None;
        }
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let (ours, theirs) = pair.ok()?;
        let executor = getpid();
        // SAFETY: this process has one thread, so the child finds every lock free.
        #[expect(unsafe_code, reason = "a fork without exec shares libtorch's pages and takes a millisecond")]
        let forked = unsafe { fork() };
        match forked.ok()? {
            ForkResult::Parent { child } => Some(Arc::new(Agent {
                socket: Mutex::new(Some(ours)),
                process: child,
                #[cfg(feature = "ballista")]
                has_folder: AtomicBool::new(false),
            })),
            ForkResult::Child => {
                drop(ours);
                std::process::exit(live(theirs, executor));
            }
        }
    }

    fn take(&self, id: u64, will: &Will) -> io::Result<()> {
        let file = will.to_file()?;
        let files: Vec<BorrowedFd<'_>> = std::iter::once(file.as_fd()).chain(will.files()).collect();
        self.say(TAKE, id, &files)
    }

    /// Leaves it `folder`, to be removed when this process has ended.
    #[cfg(feature = "ballista")]
    pub(crate) fn take_folder(&self, folder: &Path) -> io::Result<()> {
        self.say(FOLDER, 0, &[File::open(folder)?.as_fd()])?;
        self.has_folder.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// It is written, or given up.
    pub(crate) fn done(&self, id: u64) {
        // An agent that is gone has nothing to forget.
        let _ = self.say(DONE, id, &[]);
    }

    fn say(&self, kind: u8, id: u64, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(socket) = socket.as_ref() else { return Ok(()) };
        if files.len() > MAX_FDS {
            return Err(io::Error::other("it lies in too many files"));
        }
        let fds: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
        let mut message = vec![kind];
        message.extend_from_slice(&id.to_le_bytes());
        sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&message)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// The executor ends as it should: nothing is to be rescued. Returns when the agent is gone, or at once
    /// where it waits for the end of this process to remove a folder.
    pub fn stop(&self) {
        let _ = self.say(FORGET, 0, &[]);
        drop(self.socket.lock().unwrap_or_else(PoisonError::into_inner).take());
        #[cfg(feature = "ballista")]
        if self.has_folder.load(Ordering::Relaxed) {
            return;
        }
        let _ = nix::sys::wait::waitpid(self.process, None);
    }
}

/// The life of the agent; gives its exit code.
#[cfg_attr(not(feature = "ballista"), expect(unused_variables, reason = "only Ballista has folders"))]
fn live(socket: OwnedFd, executor: Pid) -> i32 {
    for ignored in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: no handler is installed, the signal is ignored.
        #[expect(unsafe_code, reason = "what ends the executor must not end who is there for its end")]
        unsafe {
            // A signal that cannot be ignored ends the agent, and the job is as without one.
            let _ = signal(ignored, SigHandler::SigIgn);
        }
    }
    let _ = nix::sys::prctl::set_name(c"tfos-agent");
    let mut wills: Vec<(u64, Vec<OwnedFd>)> = vec![];
    #[cfg(feature = "ballista")]
    let mut folders = vec![];
    loop {
        match hear(&socket) {
            Ok(Some((TAKE, id, files))) => wills.push((id, files)),
            Ok(Some((DONE, id, _))) => wills.retain(|(other, _)| *other != id),
            Ok(Some((FORGET, ..))) => wills.clear(),
            #[cfg(feature = "ballista")]
            Ok(Some((FOLDER, _, files))) => folders.extend(files.iter().filter_map(path)),
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(_) => return 1,
        }
    }
    drop(socket);
    let good = wills.into_iter().fold(true, |good, (_, files)| rescue::run(files) && good);
    #[cfg(feature = "ballista")]
    if !folders.is_empty() {
        while getppid() == executor {
            std::thread::sleep(ENDING);
        }
        // That it is gone already is the usual case.
        folders.iter().for_each(|folder| drop(std::fs::remove_dir_all(folder)));
    }
    i32::from(!good)
}

/// Where an open folder is.
#[cfg(feature = "ballista")]
fn path(folder: &OwnedFd) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd())).ok()
}

/// The next message; `None` at the end.
fn hear(socket: &OwnedFd) -> io::Result<Option<(u8, u64, Vec<OwnedFd>)>> {
    let mut message = [0u8; 9];
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    loop {
        let mut parts = [IoSliceMut::new(&mut message)];
        let received = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
        {
            Ok(received) => received,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut files = vec![];
        for control in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: the kernel has just made these descriptors for this process, and nobody else knows them.
                #[expect(unsafe_code, reason = "descriptors arrive as numbers")]
                files.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        let [kind, id @ ..] = message;
        return Ok(Some((kind, u64::from_le_bytes(id), files)));
    }
}
