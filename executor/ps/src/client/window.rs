//! A worker's end of the windows: gradients lie or are copied where the ps reads them, parameters are read where it keeps them.
//!
//! See [`crate::transport::Window`]. Only pushes that wait for their result use them, after the first one; what is compressed
//! is small, and goes through the stream.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::PsClient;
use super::push::Pieces;
use crate::compress::Compress;
use crate::error::{Error, Violation};
use crate::memory::{Access, Block, Blocks, View, needed};
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
    /// Behind the stage; `None` where no variable is worth one.
    blocks: Option<Arc<Blocks>>,
    /// What of the next gradient lies in blocks, and what of the last one did, as the ps was told.
    table: Vec<u8>,
    told: Vec<u8>,
    /// Versions of the parameters that were read, by where they begin.
    versions: Vec<(u64, Arc<View>)>,
    /// The one of the last answer.
    last: Option<Arc<View>>,
}

/// Of each shard; `None` where it has none. Each is used by the thread that talks to it.
pub(super) type Windows = Vec<Mutex<Option<Open>>>;

impl PsClient {
    /// To how many ps gradients go without a stream, which is so after the first push.
    pub fn windows(&self) -> usize {
        self.windows.iter().filter(|window| lock(window).is_some()).count()
    }

    /// Where gradients can be computed of which no copy is made; see [`Blocks`]. Each ps of this host has some, for the
    /// variables that it holds in one piece.
    pub fn blocks(&self) -> Vec<Arc<Blocks>> {
        self.windows.iter().filter_map(|window| lock(window).as_ref()?.blocks.clone()).collect()
    }

    /// One of those blocks, for `len` elements.
    pub fn block(&self, len: usize) -> Option<Block> {
        self.blocks().iter().find_map(|blocks| blocks.take(len))
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
                    let whole = |variable: &&Range<usize>| range.start <= variable.start && variable.end <= range.end;
                    let variables: Vec<usize> = self.variables.iter().filter(whole).map(|v| v.len()).collect();
                    open(&mut **connection, pages, range, &variables)?
                }
                _ => None,
            };
            windows.push(Mutex::new(window));
        }
        self.windows = windows;
        Ok(())
    }

    /// Copies the part of a slice that lies in each window.
    pub(super) fn write_slice(&self, start: usize, slice: &[f32]) -> Result<Written, Error> {
        let mut written = if self.windows.is_empty() { Written::Partly } else { Written::Wholly };
        for (shard, (window, range)) in self.windows.iter().zip(&self.ranges).enumerate() {
            let here = start.max(range.start)..(start + slice.len()).min(range.end);
            match lock(window).as_ref() {
                Some(open) if !here.is_empty() => {
                    let part = &slice[here.start - start..here.end - start];
                    if part.len() == slice.len() && open.find(part).is_some() {
                        return Ok(Written::InPlace);
                    }
                    let copied = open.stage.write(here.start - range.start, part);
                    copied.map_err(|source| Error::PeerLost { address: self.address(shard), source })?;
                }
                Some(_) => {}
                None => written = Written::Partly,
            }
        }
        Ok(written)
    }
}

/// How much of a slice needs no stream.
pub(super) enum Written {
    /// Some ps has no window.
    Partly,
    /// All of it is in stages.
    Wholly,
    /// It lies in a block of its ps; where, the push says.
    InPlace,
}

fn open(
    connection: &mut dyn Connection,
    pages: Arc<Pages>,
    range: &Range<usize>,
    variables: &[usize],
) -> Result<Option<Open>, Error> {
    if range.is_empty() {
        return Ok(None);
    }
    let elements = needed(variables);
    let mut header = Header::new(Kind::Window);
    (header.body, header.rows) = (range.len() as u64, elements as u64);
    wire::send(connection, header, &[], [])?;
    let answer = wire::expect(connection, Kind::Ok, "Ok")?;
    if answer.flags & wire::WINDOW == 0 {
        return Ok(None);
    }
    let views = || {
        let stage = View::of(pages.stage(), 0, range.len(), Access::Write)?;
        let blocks = (elements > 0).then(|| View::of(pages.stage(), answer.rows, elements, Access::Write));
        Ok::<_, std::io::Error>((stage, blocks.transpose()?.map(|view| Blocks::new(view, variables))))
    };
    match views() {
        Ok((stage, blocks)) => {
            let (table, told) = (Vec::new(), Vec::new());
            Ok(Some(Open { pages, stage, blocks, table, told, versions: Vec::new(), last: None }))
        }
        Err(error) => {
            tracing::warn!(%error, "cannot map the window of {}: gradients go through the ring", connection.peer());
            Ok(None)
        }
    }
}

impl Open {
    fn find(&self, slice: &[f32]) -> Option<Range<usize>> {
        self.blocks.as_ref()?.find(slice)
    }

    /// Sees to it that the gradient, in pieces, is where the ps reads it: what lies in blocks is told where it has not been, what
    /// does not is copied to the stage, unless slices have brought it.
    pub(super) fn place<'a>(
        &mut self,
        connection: &mut dyn Connection,
        pieces: impl Iterator<Item = &'a [f32]>,
        copy: bool,
    ) -> Result<(), Error> {
        let mut at = 0;
        self.table.clear();
        for piece in pieces {
            match self.find(piece) {
                Some(place) => {
                    let numbers = [at, piece.len(), place.start];
                    self.table.extend(numbers.into_iter().flat_map(|number| (number as u64).to_le_bytes()));
                }
                None if copy => self.stage.write(at, piece).map_err(|source| wire::lost(connection, source))?,
                None => {}
            }
            at += piece.len();
        }
        if self.table != self.told {
            wire::send(connection, Header::new(Kind::Blocks), &self.table, [])?;
            std::mem::swap(&mut self.table, &mut self.told);
        }
        Ok(())
    }

    /// Copies `pieces` of the parameters that a Result names, `len` elements in all. If they are lent, the ps keeps them.
    pub(super) fn read(
        &mut self,
        connection: &mut dyn Connection,
        header: &Header,
        len: usize,
        pieces: &mut Pieces<'_>,
        lend: bool,
    ) -> Result<(), Error> {
        let offset = header.rows;
        let known = self.versions.iter().find(|(begin, _)| *begin == offset).map(|(_, view)| Arc::clone(view));
        let view = match known {
            Some(view) => view,
            None => {
                let access = if lend { Access::Private } else { Access::Read };
                let view = View::of(self.pages.state(), offset, len, access).map_err(|source| {
                    let detail = format!("{len} elements at {offset} of the state: {source}");
                    wire::violated(connection, Violation::Malformed { what: "result", detail })
                })?;
                let view = Arc::new(view);
                if self.versions.len() == KEPT {
                    self.versions.clear();
                }
                self.versions.push((offset, Arc::clone(&view)));
                view
            }
        };
        for (at, piece) in pieces.drain(..) {
            view.read(at, piece).map_err(|source| wire::lost(connection, source))?;
        }
        // Only while the connection stands does the ps keep what it has named.
        if !self.pages.is_open() {
            return Err(wire::lost(connection, std::io::ErrorKind::UnexpectedEof.into()));
        }
        self.last = lend.then_some(view);
        if len >= LARGE && !lend { wire::send(connection, Header::new(Kind::Taken), &[], []) } else { Ok(()) }
    }

    /// The parameters of the last answer, if they were lent.
    pub(super) fn lent(&self) -> Option<Arc<View>> {
        self.last.clone()
    }

    /// Versions are mapped anew.
    pub(super) fn forget(&mut self) {
        self.versions.clear();
    }
}

pub(super) fn lock(window: &Mutex<Option<Open>>) -> std::sync::MutexGuard<'_, Option<Open>> {
    window.lock().unwrap_or_else(PoisonError::into_inner)
}
