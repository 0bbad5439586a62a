//! A worker's end of the windows: gradients are copied to where the ps adds them up, parameters from where it keeps them.
//!
//! See [`crate::transport::Window`]. Only pushes that wait for their result use them, after the first one; what is compressed
//! is small, and goes through the stream.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::PsClient;
use crate::compress::Compress;
use crate::error::{Error, Violation};
use crate::memory::View;
use crate::transport::{Connection, Pages, Window};
use crate::wire::{self, Header, Kind};

/// Mappings that are kept: a ps has a version under way for each worker, and a few more.
const KEPT: usize = 64;

/// Elements, 16 MiB, from which a version is given back as soon as it is read: it is memory that others could use.
const LARGE: usize = 4 << 20;

/// The memory of one ps.
#[derive(Debug)]
pub(super) struct Open {
    pages: Arc<Pages>,
    stage: View,
    /// Versions of the parameters that were read, by where they begin.
    versions: Vec<(u64, View)>,
}

/// Of each shard; `None` where it has none. Each is used by the thread that talks to it.
pub(super) type Windows = Vec<Mutex<Option<Open>>>;

impl PsClient {
    /// To how many ps gradients go without a stream, which is so after the first push.
    pub fn windows(&self) -> usize {
        self.windows.iter().filter(|window| lock(window).is_some()).count()
    }

    /// After the first push that waited for its result, for the next.
    pub(super) fn open_windows(&mut self) -> Result<(), Error> {
        if self.windows.len() == self.shards.len() {
            return Ok(());
        }
        let mut windows = Vec::with_capacity(self.shards.len());
        for (connection, range) in self.shards.iter_mut().zip(&self.ranges) {
            let window = match connection.window() {
                Some(Window::Theirs(pages)) if self.compress == Compress::None => {
                    open(&mut **connection, pages, range)?
                }
                _ => None,
            };
            windows.push(Mutex::new(window));
        }
        self.windows = windows;
        Ok(())
    }

    /// Copies the part of a slice that lies in each window; whether all ps have one.
    pub(super) fn write_slice(&self, start: usize, slice: &[f32]) -> Result<bool, Error> {
        let mut all = !self.windows.is_empty();
        for (shard, (window, range)) in self.windows.iter().zip(&self.ranges).enumerate() {
            let here = start.max(range.start)..(start + slice.len()).min(range.end);
            match lock(window).as_ref() {
                Some(open) if !here.is_empty() => {
                    let part = &slice[here.start - start..here.end - start];
                    let written = open.stage.write(here.start - range.start, part);
                    written.map_err(|source| Error::PeerLost { address: self.address(shard), source })?;
                }
                Some(_) => {}
                None => all = false,
            }
        }
        Ok(all)
    }
}

fn open(connection: &mut dyn Connection, pages: Arc<Pages>, range: &Range<usize>) -> Result<Option<Open>, Error> {
    if range.is_empty() {
        return Ok(None);
    }
    let mut header = Header::new(Kind::Window);
    header.body = range.len() as u64;
    wire::send(connection, header, &[], [])?;
    let answer = wire::expect(connection, Kind::Ok, "Ok")?;
    if answer.flags & wire::WINDOW == 0 {
        return Ok(None);
    }
    match View::of(pages.stage(), 0, range.len(), true) {
        Ok(stage) => Ok(Some(Open { pages, stage, versions: Vec::new() })),
        Err(error) => {
            tracing::warn!(%error, "cannot map the window of {}: gradients go through the ring", connection.peer());
            Ok(None)
        }
    }
}

impl Open {
    /// Copies the gradient, in pieces, to the stage.
    pub(super) fn write<'a>(
        &self,
        connection: &dyn Connection,
        pieces: impl Iterator<Item = &'a [f32]>,
    ) -> Result<(), Error> {
        let mut at = 0;
        for piece in pieces {
            self.stage.write(at, piece).map_err(|source| wire::lost(connection, source))?;
            at += piece.len();
        }
        Ok(())
    }

    /// Copies the parameters that a Result names to `pieces`, of `len` elements together.
    pub(super) fn read(
        &mut self,
        connection: &mut dyn Connection,
        header: &Header,
        len: usize,
        pieces: Vec<&mut [f32]>,
    ) -> Result<(), Error> {
        let offset = header.rows;
        if !self.versions.iter().any(|(begin, _)| *begin == offset) {
            let view = View::of(self.pages.state(), offset, len, false).map_err(|source| {
                let detail = format!("{len} elements at {offset} of the state: {source}");
                wire::violated(connection, Violation::Malformed { what: "result", detail })
            })?;
            if self.versions.len() == KEPT {
                self.versions.clear();
            }
            self.versions.push((offset, view));
        }
        let Some((_, view)) = self.versions.iter().find(|(begin, _)| *begin == offset) else {
            return Err(Error::Stopped);
        };
        let mut at = 0;
        for piece in pieces {
            view.read(at, piece).map_err(|source| wire::lost(connection, source))?;
            at += piece.len();
        }
        // Only while the connection stands does the ps keep what it has named.
        if !self.pages.is_open() {
            return Err(wire::lost(connection, std::io::ErrorKind::UnexpectedEof.into()));
        }
        if len >= LARGE { wire::send(connection, Header::new(Kind::Taken), &[], []) } else { Ok(()) }
    }
}

pub(super) fn lock(window: &Mutex<Option<Open>>) -> std::sync::MutexGuard<'_, Option<Open>> {
    window.lock().unwrap_or_else(PoisonError::into_inner)
}
