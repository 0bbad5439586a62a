//! Memory that both ends of a connection see, beside its stream: what is large need not go through the stream.
//!
//! The frames still do, and say whose turn it is: until a frame says that a gradient is complete, only its worker writes the
//! stage; from then until the answer only the ps reads it. Behind the stage are blocks ([`crate::Blocks`]): a gradient
//! that was computed there is not copied at all, the ps is told where it lies. What an answer names stays as it is until that worker
//! pushes again, so parameters need not be copied either ([`crate::Lent`]).

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::memory::Arena;

/// See the module's text.
#[derive(Debug, Clone)]
pub enum Window {
    /// The end that accepted: it makes the stage as large as it has to be.
    Ours {
        /// What the other end writes into.
        stage: Arc<Arena>,
    },
    /// The end that connected.
    Theirs(Arc<Pages>),
}

/// The other end's memory.
#[derive(Debug)]
pub struct Pages {
    /// To write into.
    pub(super) stage: File,
    /// To read from.
    pub(super) state: File,
    /// Ends with the connection.
    pub(super) end: UnixStream,
}

impl Pages {
    pub(crate) fn stage(&self) -> &File {
        &self.stage
    }

    pub(crate) fn state(&self) -> &File {
        &self.state
    }

    /// Whether the other end still holds for this connection what it has named: asked after that has been read.
    pub(crate) fn is_open(&self) -> bool {
        // Both ends shut down both directions when they close.
        let mut end = [PollFd::new(self.end.as_fd(), PollFlags::POLLHUP)];
        matches!(poll(&mut end, PollTimeout::ZERO), Ok(0))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::memory::{Access, View};
    use crate::transport::{Acceptor, SharedAcceptor, connect_shared};

    #[test]
    fn both_ends_see_the_same_memory_and_the_end_of_the_other() {
        let state = Arena::new().unwrap();
        let mut params = state.floats(10).unwrap();
        params[3] = 5.0;
        let acceptor = SharedAcceptor::new(state).unwrap();
        let deadline = Duration::from_secs(30);
        let (connected, accepted) = std::thread::scope(|scope| {
            let accepted = scope.spawn(|| acceptor.accept().unwrap());
            (connect_shared(acceptor.name(), "ps", deadline).unwrap(), accepted.join().unwrap())
        });
        let (Some(Window::Theirs(pages)), Some(Window::Ours { stage })) = (connected.window(), accepted.window())
        else {
            panic!("no windows");
        };
        let gradient = stage.floats(4).unwrap();
        View::of(pages.stage(), 0, 4, Access::Write).unwrap().write(0, &[1.0, 2.0, 3.0, 4.0]).unwrap();
        let mut seen = [0.0; 10];
        View::of(pages.state(), params.place().1, 10, Access::Read).unwrap().read(0, &mut seen).unwrap();
        assert_eq!((&gradient[..], seen[3], pages.is_open()), (&[1.0, 2.0, 3.0, 4.0][..], 5.0, true));
        accepted.closer().unwrap().close();
        let begun = Instant::now();
        while pages.is_open() {
            assert!(begun.elapsed() < deadline);
        }
    }
}
