//! Loads a checkpoint, or a safetensors file of anybody, into a model of any cut.
//!
//! - `LOD-1` a node reads the blocks that hold its own range of the variables, and no others; it believes none whose
//!   checksum is not the manifest's.
//! - `LOD-2` what was loaded does not depend on how the checkpoint was cut, nor on how the model is.

use std::ops::Range;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use tfos_core::checkpoint::{Extent, Loading, Manifest, Part, Paths};
use tfos_ps::{FullState, Layout, Scheduled};

use super::file::{Check, File, Piece, fetch};
use super::matching::{Kind, Matched, Saved, matched};
use super::values::{Destination, Segments, Target, is_float};
use super::{CheckpointStore, cannot};
use crate::Error;

/// Files open at a time.
const OPENING: usize = 8;

/// Where the values are.
#[derive(Debug)]
enum Source {
    /// Parts of the flat vectors.
    Parts(Vec<Part>),
    /// One file with everything by name.
    File(Arc<File>),
}

/// A checkpoint in memory.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Its variables.
    pub layout: Layout,
    /// Its optimizer, with its schedule; `None`: weights alone, which another program wrote.
    pub optimizer: Option<Scheduled>,
    /// Its values.
    pub state: FullState,
}

/// What is to be loaded, known by names and shapes, matched with a model. Nothing but headers has been read.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Of the manifest or the file, as the user knows it.
    name: String,
    store: CheckpointStore,
    source: Source,
    saved: Vec<Saved>,
    model: Layout,
    matched: Matched,
    extent: Extent,
    step: u64,
    optimizer_step: u64,
}

/// A plan's checkpoint before it is matched.
struct Found {
    store: CheckpointStore,
    source: Source,
    saved: Vec<Saved>,
    step: u64,
    optimizer_step: u64,
    optimizer: Value,
}

impl CheckpointStore {
    /// Finds out what there is to load, and matches it with `model`. With an optimizer, its state is to be loaded too
    /// where the checkpoint is taken in full.
    pub(crate) async fn plan(
        &self,
        loading: &Loading,
        model: &Layout,
        optimizer: Option<&Scheduled>,
    ) -> Result<Plan, Error> {
        let store = match &loading.folder {
            Some(url) => Self { shown: format!("{}/", url.trim_end_matches('/')), ..Self::open(url)? },
            None => self.clone(),
        };
        let found = if loading.path.ends_with(".safetensors") {
            store.find_file(&loading.path).await?
        } else {
            let manifest = store.manifest(&loading.path).await?;
            store.find_parts(&loading.path, manifest)?
        };
        found.matched(loading, model, optimizer)
    }

    /// Reads a whole checkpoint into memory.
    pub async fn load(&self, manifest: &Manifest) -> Result<Checkpoint, Error> {
        self.load_with(manifest, true).await
    }

    /// The same without the optimizer's slots, of which nothing is read.
    pub async fn load_values(&self, manifest: &Manifest) -> Result<Checkpoint, Error> {
        self.load_with(manifest, false).await
    }

    async fn load_with(&self, manifest: &Manifest, with_slots: bool) -> Result<Checkpoint, Error> {
        let path = Paths::manifest(manifest.global_step);
        let bad = |e: serde_json::Error| cannot(&self.name(&path), "read", e);
        let layout: Layout = serde_json::from_value(manifest.layout.clone()).map_err(bad)?;
        let optimizer: Option<Scheduled> = serde_json::from_value(manifest.optimizer.clone()).map_err(bad)?;
        let found = self.clone().find_parts(&path, manifest.clone())?;
        let plan = found.matched(&Loading::own(path), &layout, optimizer.as_ref())?;
        let mut state = FullState {
            step: plan.step,
            optimizer_step: plan.optimizer_step,
            params: vec![0.0; layout.total],
            slots: optimizer
                .iter()
                .filter(|_| with_slots)
                .flat_map(Scheduled::slots)
                .map(|s| ((*s).to_owned(), vec![0.0; layout.total]))
                .collect(),
            buffers: vec![0.0; layout.buffers_total],
        };
        let slots = state.slots.iter_mut().map(|(name, slot)| (name.clone(), Segments::new(0, [slot.as_mut_slice()])));
        let mut into = Destination {
            params: Segments::new(0, [state.params.as_mut_slice()]),
            slots: slots.collect(),
            buffers: Some(Segments::new(0, [state.buffers.as_mut_slice()])),
        };
        plan.load(0..layout.total, &mut into).await?;
        Ok(Checkpoint { layout, optimizer, state })
    }
    fn find_parts(self, path: &str, manifest: Manifest) -> Result<Found, Error> {
        let layout: Layout =
            serde_json::from_value(manifest.layout).map_err(|e| cannot(&self.name(path), "read", e))?;
        let covered = manifest.parts.iter().map(|p| p.end).max().unwrap_or(0);
        if covered != layout.total as u64 {
            let what = format!("its parts hold {covered} elements of a model of {}", layout.total);
            return Err(cannot(&self.name(path), "read", what));
        }
        // Imported weights do not say which of them are trained.
        let kind = if manifest.optimizer.is_null() { Kind::Unknown } else { Kind::Trained };
        let trained = layout.variables.iter().map(|v| Saved::of(v, kind.clone()));
        let saved = trained.chain(layout.buffers.iter().map(|v| Saved::of(v, Kind::Buffer))).collect();
        Ok(Found {
            store: self,
            source: Source::Parts(manifest.parts),
            saved,
            step: manifest.global_step.0,
            optimizer_step: manifest.optimizer_step,
            optimizer: manifest.optimizer,
        })
    }

    async fn find_file(self, path: &str) -> Result<Found, Error> {
        let (location, name) = (self.path(path), self.name(path));
        let file = File::open(Arc::clone(&self.store), location, name, None, Check::Nothing).await?;
        let mut saved = vec![];
        for (name, info) in file.header.tensors() {
            // A part of a checkpoint of ours: its optimizer's state is nobody's variable.
            if name.starts_with("optimizer/") {
                continue;
            }
            let kind = if is_float(info.dtype) { Kind::Unknown } else { Kind::Unusable(format!("{:?}", info.dtype)) };
            let shape = info.shape.iter().map(|d| i64::try_from(*d).unwrap_or(i64::MAX)).collect();
            let name = name.strip_prefix("buffer/").unwrap_or(&name).to_owned();
            saved.push(Saved { name, shape, kind, offset: 0 });
        }
        saved.sort_by(|a, b| a.name.cmp(&b.name));
        let source = Source::File(Arc::new(file));
        Ok(Found { store: self, source, saved, step: 0, optimizer_step: 0, optimizer: Value::Null })
    }
}

impl Found {
    fn matched(self, loading: &Loading, model: &Layout, optimizer: Option<&Scheduled>) -> Result<Plan, Error> {
        let mismatch = |why: String| Error::Mismatch { path: loading.to_string(), why };
        let Found { store, source, saved, step, optimizer_step, optimizer: theirs } = self;
        let matched = matched(&saved, model, loading).map_err(mismatch)?;
        // Weights alone have no optimizer's state.
        let extent = if theirs.is_null() { loading.extent.max(Extent::ParametersOnly) } else { loading.extent };
        if let Some(ours) = optimizer.filter(|_| extent == Extent::Full) {
            same_rule(&theirs, ours).map_err(mismatch)?;
        }
        let (step, optimizer_step) = match extent {
            Extent::Full => (step, optimizer_step),
            Extent::ParametersOnly => (step, 0),
            Extent::Warm => (0, 0),
        };
        let model = model.clone();
        let name = store.name(&loading.path);
        Ok(Plan { name, store, source, saved, model, matched, extent, step, optimizer_step })
    }
}

/// Whether the state of one is that of the other; their rates and the like may differ.
fn same_rule(theirs: &Value, ours: &Scheduled) -> Result<(), String> {
    let hint = "use the same optimizer, or --restore parameters-only, with which its state begins fresh";
    let saved: Scheduled = serde_json::from_value(theirs.clone())
        .map_err(|_| format!("its optimizer {theirs} is none that this program knows; {hint}"))?;
    let name = |s: &Scheduled| serde_json::to_value(s).ok().and_then(|v| Some(v.get("name")?.as_str()?.to_owned()));
    let names = (name(&saved).unwrap_or_default(), name(ours).unwrap_or_default());
    if names.0 != names.1 {
        return Err(format!("its optimizer is {} and this one {}; {hint}", names.0, names.1));
    }
    if saved.slots() != ours.slots() {
        return Err(format!("its {} keeps {:?} and this one {:?}; {hint}", names.0, saved.slots(), ours.slots()));
    }
    Ok(())
}

#[cfg(any(feature = "torch", test))]
impl Plan {
    /// Global step of the loaded parameters.
    pub(crate) fn step(&self) -> u64 {
        self.step
    }

    /// Updates that the loaded slots have seen.
    pub(crate) fn optimizer_step(&self) -> u64 {
        self.optimizer_step
    }

    /// What the user has to know about what did not match.
    pub(crate) fn notes(&self) -> &[String] {
        &self.matched.notes
    }

    /// Ranges of the flat vectors that keep their initial values: of the variables, and of the buffers.
    pub(crate) fn fresh(&self) -> (Vec<Range<usize>>, Vec<Range<usize>>) {
        fn of(list: &[tfos_ps::Variable], found: &[Option<usize>]) -> Vec<Range<usize>> {
            let fresh = list.iter().zip(found).filter(|(v, found)| found.is_none() && !v.is_empty());
            fresh.map(|(v, _)| v.offset..v.offset + v.len()).collect()
        }
        (of(&self.model.variables, &self.matched.params), of(&self.model.buffers, &self.matched.buffers))
    }
}

impl Plan {
    /// Reads `range` of the variables, and what else `into` has room for, straight into place. What is fresh is left
    /// as it is. Gives the number of bytes that were read beside headers.
    pub(crate) async fn load(&self, range: Range<usize>, into: &mut Destination<'_>) -> Result<u64, Error> {
        let mut wanted = vec![];
        for (v, found) in self.model.variables.iter().zip(&self.matched.params) {
            let (begin, end) = (v.offset.max(range.start), (v.offset + v.len()).min(range.end));
            let Some(saved) = found.and_then(|i| self.saved.get(i)).filter(|_| begin < end) else { continue };
            let elements = begin - v.offset..end - v.offset;
            wanted.push(Wanted { saved, slot: None, elements: elements.clone(), target: Target::Params, at: begin });
            if self.extent != Extent::Full || saved.kind != Kind::Trained {
                continue;
            }
            for (index, (slot, _)) in into.slots.iter().enumerate() {
                let (slot, target) = (Some(slot.clone()), Target::Slot(index));
                wanted.push(Wanted { saved, slot, elements: elements.clone(), target, at: begin });
            }
        }
        if into.buffers.is_some() {
            for (v, found) in self.model.buffers.iter().zip(&self.matched.buffers) {
                let Some(saved) = found.and_then(|i| self.saved.get(i)).filter(|_| !v.is_empty()) else { continue };
                wanted.push(Wanted { saved, slot: None, elements: 0..v.len(), target: Target::Buffers, at: v.offset });
            }
        }
        match &self.source {
            Source::File(file) => {
                let pieces = wanted.iter().map(|w| w.in_file(file)).collect::<Result<Vec<_>, _>>()?;
                fetch(std::slice::from_ref(&**file), pieces, into).await
            }
            Source::Parts(parts) => self.load_parts(parts, &wanted, into).await,
        }
    }

    async fn load_parts(
        &self,
        parts: &[Part],
        wanted: &[Wanted<'_>],
        into: &mut Destination<'_>,
    ) -> Result<u64, Error> {
        let needed: Vec<&Part> = parts.iter().filter(|part| wanted.iter().any(|w| w.may_be_in(part))).collect();
        let mut found = vec![0; wanted.len()];
        let mut read = 0;
        // A few at a time: an open file holds its first block.
        for group in needed.chunks(OPENING) {
            let opened = group.iter().map(|part| async {
                let check = part.blocks.clone().map_or(Check::Whole(part.crc32c), Check::Blocks);
                let (location, name) = (self.store.path(&part.path), self.store.name(&part.path));
                let mut file =
                    File::open(Arc::clone(&self.store.store), location, name, Some(part.bytes), check).await?;
                // What cannot be opened here the store reads.
                let host = self.store.local.as_ref().map(|root| root.join(&part.path));
                file.host = host.and_then(|path| std::fs::File::open(path).ok());
                Ok::<_, Error>(file)
            });
            let files: Vec<File> = stream::iter(opened).buffered(OPENING).try_collect().await?;
            let mut pieces = vec![];
            for (w, found) in wanted.iter().zip(&mut found) {
                for (index, (part, file)) in group.iter().zip(&files).enumerate() {
                    if let Some(piece) = w.in_part(index, part, file)? {
                        *found += piece.bytes.end - piece.bytes.start;
                        pieces.push(piece);
                    }
                }
            }
            read += fetch(&files, pieces, into).await?;
        }
        if let Some((w, _)) = wanted.iter().zip(&found).find(|(w, found)| **found != w.elements.len() as u64 * 4) {
            let what = format!("its parts do not hold all of `{}`", w.saved.name);
            return Err(cannot(&self.name, "read", what));
        }
        Ok(read)
    }
}

/// Elements of a variable of the checkpoint, and where they go.
struct Wanted<'a> {
    saved: &'a Saved,
    slot: Option<String>,
    elements: Range<usize>,
    target: Target,
    at: usize,
}

impl Wanted<'_> {
    /// In the flat vector of the checkpoint.
    fn flat(&self) -> Range<usize> {
        self.saved.offset + self.elements.start..self.saved.offset + self.elements.end
    }

    fn may_be_in(&self, part: &Part) -> bool {
        match self.saved.kind {
            // Shard 0 has them, and begins at 0 even where it has no variable.
            Kind::Buffer => part.start == 0,
            _ => (part.start as usize) < self.flat().end && self.flat().start < part.end as usize,
        }
    }

    fn piece(&self, file: usize, bytes: Range<u64>, skipped: usize) -> Piece {
        let dtype = safetensors::tensor::Dtype::F32;
        Piece { file, bytes, dtype, target: self.target, at: self.at + skipped }
    }

    /// What part `index` has of it.
    fn in_part(&self, index: usize, part: &Part, file: &File) -> Result<Option<Piece>, Error> {
        let Saved { name, offset, kind, .. } = self.saved;
        let len = self.saved.len();
        if *kind == Kind::Buffer {
            let name = format!("buffer/{name}");
            if file.header.info(&name).is_none() {
                return Ok(None);
            }
            return Ok(Some(self.piece(index, file.floats(&name, len, self.elements.clone())?, 0)));
        }
        let flat = self.flat();
        let (start, end) = (flat.start.max(part.start as usize), flat.end.min(part.end as usize));
        if start >= end {
            return Ok(None);
        }
        // What the part has of the variable, of which this is what is wanted.
        let (first, last) = ((*offset).max(part.start as usize), (offset + len).min(part.end as usize));
        let prefix = self.slot.as_ref().map_or_else(String::new, |slot| format!("optimizer/{slot}/"));
        let slice = if last - first == len { String::new() } else { format!("@{}", first - offset) };
        let bytes = file.floats(&format!("{prefix}{name}{slice}"), last - first, start - first..end - first)?;
        Ok(Some(self.piece(index, bytes, start - flat.start)))
    }

    /// Where it is in a file of another program.
    fn in_file(&self, file: &File) -> Result<Piece, Error> {
        let name = &self.saved.name;
        let buffer = format!("buffer/{name}");
        let (info, begin) = file.find(if file.header.info(name).is_some() { name } else { &buffer })?;
        let width = (info.dtype.bitsize() / 8) as u64;
        let bytes = begin + self.elements.start as u64 * width..begin + self.elements.end as u64 * width;
        Ok(Piece { dtype: info.dtype, ..self.piece(0, bytes, 0) })
    }
}
