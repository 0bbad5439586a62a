//! A push whose gradient lies in the window, and whose answer does too: see [`crate::transport::Window`].
//!
//! - `PS-8` the parameters that a worker reads are those of its answer: they are lent until it speaks again or its
//!   connection has ended.

use std::sync::Arc;

use super::Served;
use crate::error::{Error, Violation};
use crate::memory::Arena;
use crate::shard::{Gradient, Staged, Version};
use crate::transport;
use crate::wire::{self, Header, Kind};

/// The ps' end of a window.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// While no push is under way.
    stage: Option<Staged>,
    /// What the worker may be reading.
    lent: Option<Version>,
}

impl Window {
    /// The worker has read what it was given: it speaks again.
    pub(super) fn take_back(&mut self) {
        self.lent = None;
    }

    /// A stage that has come back.
    pub(super) fn put(&mut self, stage: Staged) {
        self.stage = Some(stage);
    }
}

impl Served<'_> {
    /// Makes the stage, where the connection has a window and there is memory for it; the answer says whether.
    pub(super) fn open_window(&mut self, header: Header) -> Result<(), Error> {
        wire::recv_meta(&mut *self.connection, &header, 0)?;
        let len = self.gradient_len()?;
        self.length("window", len, header.body)?;
        let mut answer = Header::new(Kind::Ok);
        let made = match self.connection.window() {
            Some(transport::Window::Ours { stage }) if self.window.stage.is_none() => make(&stage, len),
            _ => Ok(None),
        };
        match made {
            Ok(None) => {}
            Ok(stage) => {
                self.window.stage = stage;
                answer.flags = wire::WINDOW;
            }
            Err(error) => tracing::warn!(worker = self.worker, %error, "no window: gradients come through the ring"),
        }
        wire::send(&mut *self.connection, answer, &[], [])
    }

    /// The stage, of whose gradient the worker says that it is complete.
    pub(super) fn written(&mut self, header: &Header, len: usize) -> Result<Staged, Error> {
        let coded = header.flags & (wire::BF16 | wire::SPARSE | wire::SLICED) != 0;
        let stage = self.window.stage.take().filter(|stage| stage.gradient.len() == len);
        match stage {
            Some(stage) if header.body == 0 && !coded => Ok(stage),
            _ => {
                let detail = format!("of {len} elements, {} of which came with the frame; no such window", header.body);
                Err(wire::violated(&*self.connection, Violation::Malformed { what: "gradient", detail }))
            }
        }
    }

    /// Says where the parameters lie.
    pub(super) fn lend(&mut self, mut header: Header, version: Version) -> Result<(), Error> {
        header.flags |= wire::WINDOW;
        (header.step, header.rows) = (version.step, version.params.place().1);
        self.window.lent = Some(version);
        wire::send(&mut *self.connection, header, &[], [])
    }

    /// Ends the connection, and lets go of what was lent only then: who reads it still sees the end.
    pub(super) fn close_window(&mut self) {
        if self.window.lent.is_some()
            && let Ok(closer) = self.connection.closer()
        {
            closer.close();
        }
        self.window = Window::default();
    }
}

/// `None` where the stage was made before: its worker has lost what it knew of it.
fn make(arena: &Arc<Arena>, len: usize) -> Result<Option<Staged>, Error> {
    if arena.is_used() {
        return Ok(None);
    }
    let floats = arena.floats(len)?;
    floats.populate();
    Ok(Some(Staged { gradient: Gradient::Window(floats), ..Staged::default() }))
}
