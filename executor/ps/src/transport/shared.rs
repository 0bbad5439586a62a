//! Shared memory between two processes of one host: a ring per direction in a memfd, and a socket pair for each to sleep on.
//!
//! The acceptor makes the memory and sends it over an abstract Unix socket, so whoever has it can reach that socket:
//! it is on the same host, in the same network namespace, and its kernel passed the descriptor. A byte on a socket
//! wakes the other side; the end of a socket is the end of the process or of the connection, seen at once. The
//! kernel frees all of it with the last process: no name is left anywhere. With the rings go two more files, a
//! [`Window`].

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use memmap2::MmapRaw;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{self, ControlMessage, ControlMessageOwned, MsgFlags, sockopt};

use super::ring::{CHUNK, MEMORY, Ring, WAKE};
use super::{Acceptor, Closer, Connection, Pages, Window};
use crate::memory::Arena;

/// With these nobody can cut the memory off under the other's feet.
const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);
/// The first byte on the socket; another layout of the memory gets another.
const LAYOUT: u8 = 2;
/// Descriptors that come with it: the rings, the second socket, the stage and the state.
const DESCRIPTORS: usize = 4;

/// One direction.
#[derive(Debug)]
struct Half {
    ring: Ring,
    /// A byte here wakes the other side.
    wake: UnixStream,
}

#[derive(Debug)]
struct Channel {
    outgoing: Half,
    incoming: Half,
    closed: AtomicBool,
}

impl Channel {
    /// Ring 0 and `first` carry what the connecting side sends.
    fn new(memory: &File, first: UnixStream, second: UnixStream, accepts: bool) -> io::Result<Channel> {
        let seals = SealFlag::from_bits_truncate(fcntl(memory, FcntlArg::F_GET_SEALS)?);
        if memory.metadata()?.len() != MEMORY as u64 || !seals.contains(SEALS) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let memory = Arc::new(MmapRaw::map_raw(memory)?);
        let first = Half { ring: Ring::new(&memory, 0)?, wake: first };
        let second = Half { ring: Ring::new(&memory, 1)?, wake: second };
        let (outgoing, incoming) = if accepts { (second, first) } else { (first, second) };
        Ok(Channel { outgoing, incoming, closed: AtomicBool::new(false) })
    }

    /// `unsaid` bytes were written before that a sleeping reader has not been woken for; `more` are to come at once. A frame
    /// is a few small slices, and a wake-up for each would cost more than all of them.
    fn send_part(&self, mut rest: &[u8], unsaid: &mut usize, more: bool) -> io::Result<()> {
        let Half { ring, wake } = &self.outgoing;
        while !rest.is_empty() {
            if self.closed.load(Ordering::Acquire) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let count = ring.write(rest)?;
            rest = &rest[count..];
            *unsaid += count;
            if *unsaid >= CHUNK || count == 0 || (rest.is_empty() && !more) {
                *unsaid = 0;
                if ring.must_wake_reader()? {
                    rouse(wake)?;
                }
            }
            if count == 0 && ring.writer_sleeps(rest.len().min(WAKE))? && is_ended(wake)? {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
        Ok(())
    }

    /// `left` is what this call still needs, this slice included.
    fn recv_part(&self, mut rest: &mut [u8], mut left: usize) -> io::Result<()> {
        let Half { ring, wake } = &self.incoming;
        while !rest.is_empty() {
            if self.closed.load(Ordering::Acquire) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let count = ring.read(rest)?;
            rest = &mut rest[count..];
            left -= count;
            // What was written before the end still counts.
            if count == 0 && ring.reader_sleeps(left.min(WAKE))? && is_ended(wake)? && ring.used()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if ring.must_wake_writer()? {
                // Who cannot be woken is gone; that is noticed when its bytes end.
                drop(rouse(wake));
            }
        }
        Ok(())
    }
}

/// Sleeps until a byte comes; true when there never will be one. A byte of an earlier time only costs another look.
fn is_ended(mut wake: &UnixStream) -> io::Result<bool> {
    match wake.read(&mut [0; 64]) {
        Ok(count) => Ok(count == 0),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(true),
        Err(error) => Err(error),
    }
}

fn rouse(wake: &UnixStream) -> io::Result<()> {
    match socket::send(wake.as_raw_fd(), &[0], MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
        // Full of bytes that nobody has read yet: the sleeper wakes anyway.
        Ok(_) | Err(Errno::EAGAIN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Closer for Channel {
    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        for half in [&self.outgoing, &self.incoming] {
            // Fails only when the peer closed first, which is what is wanted.
            drop(half.wake.shutdown(Shutdown::Both));
        }
    }
}

#[derive(Debug)]
struct Handle(Arc<Channel>);

impl Closer for Handle {
    fn close(&self) {
        self.0.close();
    }
}

#[derive(Debug)]
struct SharedConnection {
    channel: Arc<Channel>,
    window: Window,
    peer: String,
}

impl Connection for SharedConnection {
    fn send(&mut self, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let last = slices.iter().rposition(|slice| !slice.is_empty()).unwrap_or(0);
        let mut unsaid = 0;
        let mut numbered = slices.iter().enumerate();
        numbered.try_for_each(|(number, slice)| self.channel.send_part(slice, &mut unsaid, number < last))
    }

    fn recv(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let mut left = slices.iter().map(|slice| slice.len()).sum();
        slices.iter_mut().try_for_each(|slice| {
            let needed = left;
            left -= slice.len();
            self.channel.recv_part(slice, needed)
        })
    }

    fn split(&self) -> io::Result<Box<dyn Connection>> {
        let (channel, window) = (Arc::clone(&self.channel), self.window.clone());
        Ok(Box::new(SharedConnection { channel, window, peer: self.peer.clone() }))
    }

    fn closer(&self) -> io::Result<Box<dyn Closer>> {
        Ok(Box::new(Handle(Arc::clone(&self.channel))))
    }

    fn set_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.channel.incoming.wake.set_read_timeout(timeout)
    }

    fn peer(&self) -> &str {
        &self.peer
    }

    fn transport(&self) -> &'static str {
        "shared memory"
    }

    fn window(&self) -> Option<Window> {
        Some(self.window.clone())
    }
}

/// Accepts connections over shared memory under a name that only the kernel of this host knows.
#[derive(Debug)]
pub struct SharedAcceptor {
    listener: UnixListener,
    state: Arc<Arena>,
    name: String,
    closed: Arc<AtomicBool>,
}

impl SharedAcceptor {
    /// Listens under a new name in this network namespace. Who connects may read what lies in `state`.
    pub fn new(state: Arc<Arena>) -> io::Result<SharedAcceptor> {
        // A hasher's seed is random; taken names are an error of `bind`, so this need not be a secret.
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
        let name = format!("tfos-ps-{}-{random:016x}", std::process::id());
        let listener = UnixListener::bind_addr(&abstract_address(&name)?)?;
        Ok(SharedAcceptor { listener, state, name, closed: Arc::default() })
    }

    /// What [`connect_shared`] needs.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Acceptor for SharedAcceptor {
    fn accept(&self) -> io::Result<Box<dyn Connection>> {
        loop {
            let (first, _) = self.listener.accept()?;
            if self.closed.load(Ordering::Acquire) {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            match offer(first, &self.state) {
                // Another user, or one who left again: no reason to serve the others worse.
                Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::BrokenPipe) => {
                    tracing::warn!(%error, "refused shared memory");
                }
                offered => return offered,
            }
        }
    }

    fn closer(&self) -> io::Result<Box<dyn Closer>> {
        let (closed, address) = (Arc::clone(&self.closed), abstract_address(&self.name)?);
        Ok(Box::new(SharedAcceptorCloser { closed, address }))
    }
}

/// Makes the memory of a connection and passes it to who has just come.
fn offer(first: UnixStream, state: &Arena) -> io::Result<Box<dyn Connection>> {
    check_user(&first)?;
    let (second, theirs) = UnixStream::pair()?;
    let memory = File::from(memfd_create("tfos-ps", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    memory.set_len(MEMORY as u64)?;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(SEALS))?;
    let stage = Arena::new().map_err(io::Error::other)?;
    let state = state.reader()?;
    let descriptors: [RawFd; DESCRIPTORS] =
        [memory.as_raw_fd(), theirs.as_raw_fd(), stage.file().as_raw_fd(), state.as_raw_fd()];
    let (layout, rights) = ([IoSlice::new(&[LAYOUT])], [ControlMessage::ScmRights(&descriptors)]);
    socket::sendmsg::<()>(first.as_raw_fd(), &layout, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    let channel = Arc::new(Channel::new(&memory, first, second, true)?);
    let (window, peer) = (Window::Ours { stage }, "a process on this host".to_owned());
    Ok(Box::new(SharedConnection { channel, window, peer }))
}

/// As with TCP, a connection to ourselves ends the waiting.
#[derive(Debug)]
struct SharedAcceptorCloser {
    closed: Arc<AtomicBool>,
    address: SocketAddr,
}

impl Closer for SharedAcceptorCloser {
    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        drop(UnixStream::connect_addr(&self.address));
    }
}

/// Connects to the acceptor of that name; fails at once when it is on another host or in another network namespace.
/// `peer` is what the connection calls the other side, and `timeout` bounds the wait for its answer.
pub fn connect_shared(name: &str, peer: &str, timeout: Duration) -> io::Result<Box<dyn Connection>> {
    let first = UnixStream::connect_addr(&abstract_address(name)?)?;
    check_user(&first)?;
    first.set_read_timeout(Some(timeout.max(Duration::from_millis(1))))?;
    let mut layout = [0];
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    let mut space = nix::cmsg_space!([RawFd; DESCRIPTORS]);
    let mut slices = [IoSliceMut::new(&mut layout)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    for message in socket::recvmsg::<()>(first.as_raw_fd(), &mut slices, Some(&mut space), flags)?.cmsgs()? {
        if let ControlMessageOwned::ScmRights(passed) = message {
            // SAFETY: the kernel has just made these descriptors for us, and nobody else knows them.
            descriptors.extend(passed.into_iter().map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) }));
        }
    }
    first.set_read_timeout(None)?;
    let Ok([memory, second, stage, state]) = <[OwnedFd; DESCRIPTORS]>::try_from(descriptors) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    if layout != [LAYOUT] {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let second = UnixStream::from(second);
    let window = Window::Theirs(Arc::new(Pages { stage: stage.into(), state: state.into(), end: second.try_clone()? }));
    let channel = Arc::new(Channel::new(&File::from(memory), first, second, false)?);
    Ok(Box::new(SharedConnection { channel, window, peer: peer.to_owned() }))
}

fn abstract_address(name: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(name)
}

/// An abstract name has no owner and no mode: another user of this host must not share memory with us.
fn check_user(stream: &UnixStream) -> io::Result<()> {
    if socket::getsockopt(stream, sockopt::PeerCredentials)?.uid() == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "the process at the other end belongs to another user"))
}
