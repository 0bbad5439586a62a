//! A push whose gradient lies in the window, and whose answer does too: see [`crate::transport::Window`].
//!
//! - `PS-8` the parameters that a worker reads are those of its answer: they are lent until it pushes again, says that it
//!   has read them, or its connection has ended.

use std::sync::Arc;

use super::Served;
use crate::error::{Error, Violation};
use crate::memory::{Arena, Floats};
use crate::shard::{Gradient, InBlock, InWindow, Staged, Version};
use crate::transport;
use crate::wire::{self, Header, Kind};

/// Elements of blocks that a worker may ask for, for each element of its gradient.
const MOST_BLOCKS: u64 = 4;

/// The ps' end of a window.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// While no push is under way.
    stage: Option<Staged>,
    /// Elements of its blocks.
    blocks: usize,
    /// What of the next gradient lies in them.
    table: Arc<[InBlock]>,
    /// What the worker may be reading.
    lent: Option<Version>,
}

impl Window {
    /// The worker has read what it was given.
    pub(super) fn take_back(&mut self) {
        self.lent = None;
    }

    /// A stage that has come back.
    pub(super) fn put(&mut self, stage: Staged) {
        self.stage = Some(stage);
    }
}

impl Served<'_> {
    /// Makes the stage and blocks, where the connection has a window and there is memory for them; the answer says whether.
    pub(super) fn open_window(&mut self, header: Header) -> Result<(), Error> {
        wire::recv_meta(&mut *self.connection, &header, 0)?;
        let len = self.gradient_len()?;
        self.length("window", len, header.body)?;
        let most = MOST_BLOCKS.saturating_mul(len as u64);
        if header.rows > most {
            let violation = Violation::Length { what: "blocks", allowed: most, found: header.rows };
            return Err(wire::violated(&*self.connection, violation));
        }
        let mut answer = Header::new(Kind::Ok);
        let made = match self.connection.window() {
            Some(transport::Window::Ours { stage }) if self.window.stage.is_none() => {
                make(&stage, len, header.rows as usize)
            }
            _ => Ok(None),
        };
        match made {
            Ok(None) => {}
            Ok(Some(window)) => {
                answer.rows = window.blocks.place().1;
                answer.flags = wire::WINDOW;
                self.window.blocks = window.blocks.len();
                self.window.stage = Some(Staged { gradient: Gradient::Window(window), ..Staged::default() });
            }
            Err(error) => tracing::warn!(worker = self.worker, %error, "no window: gradients come through the ring"),
        }
        wire::send(&mut *self.connection, answer, &[], [])
    }

    /// Hears what of the gradients lies in blocks from now on.
    pub(super) fn hear_blocks(&mut self, header: &Header) -> Result<(), Error> {
        let meta = wire::recv_meta(&mut *self.connection, header, wire::MAX_META)?;
        let len = self.gradient_len()?;
        match InBlock::table(&meta, len, self.window.blocks) {
            Some(table) => {
                self.window.table = table;
                Ok(())
            }
            None => {
                let detail = format!("{} bytes for {len} elements and {} in blocks", meta.len(), self.window.blocks);
                Err(wire::violated(&*self.connection, Violation::Malformed { what: "table of blocks", detail }))
            }
        }
    }

    /// The stage, of whose gradient the worker says that it is complete.
    pub(super) fn written(&mut self, header: &Header, len: usize) -> Result<Staged, Error> {
        let coded = header.flags & (wire::BF16 | wire::SPARSE | wire::SLICED) != 0;
        let stage = self.window.stage.take().filter(|stage| stage.gradient.len() == len);
        match stage {
            Some(mut stage) if header.body == 0 && !coded => {
                if let Gradient::Window(window) = &mut stage.gradient {
                    window.table = Arc::clone(&self.window.table);
                }
                Ok(stage)
            }
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

/// `None` where the stage was made before: its worker has lost what it knew of it. Memory is found as it is written.
fn make(arena: &Arc<Arena>, len: usize, blocks: usize) -> Result<Option<InWindow>, Error> {
    if arena.is_used() {
        return Ok(None);
    }
    let (stage, blocks): (Floats, Floats) = (arena.floats(len)?, arena.floats(blocks)?);
    Ok(Some(InWindow { stage, blocks, table: Arc::default() }))
}
