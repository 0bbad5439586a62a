//! A snapshot as a safetensors file: a header, then the snapshot's own memory, piece by piece.

use std::ops::Range;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tfos_ps::memory::{Cut, Piece};
use tfos_ps::{Layout, Snapshot, Variable};

use crate::Error;

/// Where variables meet a shard's range: (variable, elements of the variable).
fn overlaps<'a>(layout: &'a Layout, range: &'a Range<usize>) -> impl Iterator<Item = (&'a Variable, Range<usize>)> {
    layout.variables.iter().filter_map(move |v| {
        let begin = v.offset.max(range.start);
        let end = (v.offset + v.len()).min(range.end);
        (begin < end || (v.is_empty() && range.start == 0)).then(|| (v, begin - v.offset..end.max(begin) - v.offset))
    })
}

/// The bytes of a part before those of its tensors.
pub(super) fn header(layout: &Layout, snapshot: &Snapshot) -> Result<Bytes, serde_json::Error> {
    let Snapshot { step, optimizer_step, range, slots, buffers, .. } = snapshot;
    let mut header = Map::new();
    header.insert(
        "__metadata__".into(),
        json!({"format": "pt", "global_step": step.to_string(), "optimizer_step": optimizer_step.to_string()}),
    );
    let mut at = 0usize;
    let mut entry = |name: String, shape: &[i64], elements: usize| {
        let end = at + elements * 4;
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    };
    let mut block = |prefix: &str| {
        for (v, part) in overlaps(layout, range) {
            if part.len() == v.len() {
                entry(format!("{prefix}{}", v.name), &v.shape, v.len());
            } else {
                entry(format!("{prefix}{}@{}", v.name, part.start), &[part.len() as i64], part.len());
            }
        }
    };
    block("");
    for (slot, _) in slots {
        block(&format!("optimizer/{slot}/"));
    }
    if buffers.is_some() {
        for v in &layout.buffers {
            entry(format!("buffer/{}", v.name), &v.shape, v.len());
        }
    }
    let text = serde_json::to_vec(&Value::Object(header))?;
    // Data begins at a multiple of 8, as the format asks.
    let padded = text.len().next_multiple_of(8);
    let mut bytes = Vec::with_capacity(8 + padded);
    bytes.extend_from_slice(&(padded as u64).to_le_bytes());
    bytes.extend_from_slice(&text);
    bytes.resize(8 + padded, b' ');
    Ok(bytes.into())
}

/// What is written of a snapshot, in the order of the file.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    header: Bytes,
    body: Body,
    buffers: Bytes,
}

#[derive(Debug, Clone)]
enum Body {
    Cuts(Vec<Cut>),
    /// Of another process.
    Mapped(Vec<Bytes>),
}

impl Content {
    pub(crate) fn new(layout: &Layout, snapshot: Snapshot) -> Result<Self, serde_json::Error> {
        let header = header(layout, &snapshot)?;
        let Snapshot { params, slots, buffers, .. } = snapshot;
        let cuts = std::iter::once(params).chain(slots.into_iter().map(|(_, cut)| cut)).collect();
        let buffers = buffers.unwrap_or_default().into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>().into();
        Ok(Self { header, body: Body::Cuts(cuts), buffers })
    }

    /// The same, of values that another process left.
    pub(crate) fn mapped(header: Bytes, body: Vec<Bytes>, buffers: Bytes) -> Self {
        Self { header, body: Body::Mapped(body), buffers }
    }

    /// Size of the file.
    pub(crate) fn bytes(&self) -> u64 {
        let body: usize = match &self.body {
            Body::Cuts(cuts) => cuts.iter().map(|cut| cut.len() * 4).sum(),
            Body::Mapped(pieces) => pieces.iter().map(Bytes::len).sum(),
        };
        (self.header.len() + body + self.buffers.len()) as u64
    }

    /// What comes before the frozen values, and what comes after them.
    pub(crate) fn ends(&self) -> (&Bytes, &Bytes) {
        (&self.header, &self.buffers)
    }

    /// The frozen values. Those that are still to be copied are copied now.
    pub(crate) fn frozen(&self) -> impl Iterator<Item = Result<Piece, tfos_ps::Error>> + '_ {
        let cuts: &[Cut] = if let Body::Cuts(cuts) = &self.body { cuts } else { &[] };
        cuts.iter().flat_map(Cut::pieces)
    }

    /// The file, piece by piece: a few MiB each, without a copy of what is frozen already.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Result<Bytes, Error>> + '_ {
        let mapped: &[Bytes] = if let Body::Mapped(pieces) = &self.body { pieces } else { &[] };
        let frozen = self.frozen().map(|piece| Ok(Bytes::from_owner(piece?)));
        let [header, buffers] = [self.header.clone(), self.buffers.clone()].map(|b| Some(Ok(b)));
        header.into_iter().chain(frozen).chain(mapped.iter().cloned().map(Ok)).chain(buffers)
    }
}
