//! Gradients in fewer bytes, with error feedback: what a push leaves out is added to the worker's next gradient.
//!
//! The worker keeps one f32 per parameter, the *residual*: what it owes. A push sends an approximation of gradient plus
//! residual, and the difference is the new residual, exactly: so every bit of every gradient arrives sooner or later,
//! and the parameters follow the path that they would have taken, a few steps behind. bf16 owes the rounding, `topk` all but
//! the largest elements. Of a push that the ps drop, everything is taken back: the residual is what it was before.
//!
//! The ps make a plain gradient of what they get (elements that were not sent are 0), so clipping, optimizers and
//! snapshots know nothing of this. Parameters come back as f32: whoever computes gradients should do it with the parameters
//! that are trained. The residual belongs to no checkpoint; a worker that dies takes it along, which is as if its last
//! gradient had been approximate.

mod coding;
mod kernels;

use std::fmt;
use std::str::FromStr;

pub(crate) use self::coding::Coding;
use self::kernels::{HALF, Histogram};
use crate::wire;

/// Elements per block: gradient, residual and codes of a block stay in the core's own cache.
const BLOCK: usize = 4096;

/// How gradients travel.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Compress {
    /// As they are, f32.
    #[default]
    None,
    /// Rounded to bf16: half of the bytes.
    Bf16,
    /// The largest elements of each shard only, as index and f32: 8 bytes for each that is sent.
    TopK {
        /// Of the elements, above 0 and at most 0.5, where it would need as many bytes as all of them.
        fraction: f64,
    },
}

impl Compress {
    /// Words of 4 bytes in which `len` elements are sent.
    pub fn words(self, len: usize) -> usize {
        match self {
            Compress::None => len,
            Compress::Bf16 => len.div_ceil(2),
            Compress::TopK { fraction } => 2 * kept(fraction, len),
        }
    }

    /// In the header of a push.
    pub(crate) fn flag(self) -> u8 {
        match self {
            Compress::None => 0,
            Compress::Bf16 => wire::BF16,
            Compress::TopK { .. } => wire::SPARSE,
        }
    }
}

/// At least one of any, so that each is sent some day.
fn kept(fraction: f64, len: usize) -> usize {
    ((len as f64 * fraction).ceil() as usize).max(1).min(len)
}

impl fmt::Display for Compress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compress::None => f.write_str("none"),
            Compress::Bf16 => f.write_str("bf16"),
            Compress::TopK { fraction } => write!(f, "topk:{fraction}"),
        }
    }
}

impl FromStr for Compress {
    type Err = String;

    fn from_str(text: &str) -> Result<Compress, String> {
        match text {
            "none" => return Ok(Compress::None),
            "bf16" => return Ok(Compress::Bf16),
            _ => {}
        }
        let Some(fraction) = text.strip_prefix("topk:") else {
            return Err(format!("`{text}` is none of `none`, `bf16` and `topk:FRACTION`, such as `topk:0.01`"));
        };
        match fraction.parse() {
            Ok(fraction) if fraction > 0.0 && fraction <= 0.5 => Ok(Compress::TopK { fraction }),
            _ => Err(format!("`{fraction}` of `{text}` must be a number above 0 and at most 0.5")),
        }
    }
}

/// What a worker owes to one shard, and the codes of its last push.
#[derive(Debug)]
pub(crate) struct Feedback {
    compress: Compress,
    /// One for each element of the shard.
    residual: Vec<f32>,
    /// `BF16`: pairs of halves. `SPARSE`: indices, then the bits of the values.
    codes: Vec<u32>,
    histogram: Histogram,
}

impl Feedback {
    pub(crate) fn new(compress: Compress, len: usize) -> Feedback {
        let codes = vec![0; compress.words(len)];
        Feedback { compress, residual: vec![0.0; len], codes, histogram: Histogram::new() }
    }

    pub(crate) fn compress(&self) -> Compress {
        self.compress
    }

    /// Codes of the shard's gradient, given in pieces, plus what is owed; what they leave out is owed then.
    pub(crate) fn encode<'a>(&mut self, gradient: impl Iterator<Item = &'a [f32]>) -> &[u32] {
        let Feedback { compress, residual, codes, histogram } = self;
        let mut gradient = Pieces::new(gradient);
        match compress {
            Compress::None => {}
            Compress::Bf16 => {
                for (owed, codes) in residual.chunks_mut(BLOCK).zip(codes.chunks_mut(BLOCK / 2)) {
                    gradient.add_to(owed, kernels::add);
                    kernels::encode_bf16(owed, codes);
                }
            }
            Compress::TopK { .. } => {
                histogram.clear();
                for owed in residual.chunks_mut(BLOCK) {
                    gradient.add_to(owed, kernels::add);
                    histogram.count(owed);
                }
                let kept = codes.len() / 2;
                let (indices, values) = codes.split_at_mut(kept);
                kernels::take_largest(residual, histogram, indices, values);
            }
        }
        &self.codes
    }

    /// The last push was dropped: owes again what it sent, and no more the gradient that it was made of.
    pub(crate) fn undo<'a>(&mut self, gradient: impl Iterator<Item = &'a [f32]>) {
        match self.compress {
            Compress::None => return,
            Compress::Bf16 => {
                for (owed, &code) in self.residual.chunks_mut(2).zip(&self.codes) {
                    owed.iter_mut().zip([code << HALF, code]).for_each(|(owed, code)| *owed += kernels::wide(code));
                }
            }
            Compress::TopK { .. } => {
                let (indices, values) = self.codes.split_at(self.codes.len() / 2);
                for (&index, &value) in indices.iter().zip(values) {
                    if let Some(owed) = self.residual.get_mut(index as usize) {
                        *owed += f32::from_bits(value);
                    }
                }
            }
        }
        let mut gradient = Pieces::new(gradient);
        for owed in self.residual.chunks_mut(BLOCK) {
            gradient.add_to(owed, kernels::subtract);
        }
    }
}

/// A vector in pieces, read in order in blocks of any size.
struct Pieces<'a, I> {
    pieces: I,
    rest: &'a [f32],
}

impl<'a, I: Iterator<Item = &'a [f32]>> Pieces<'a, I> {
    fn new(pieces: I) -> Self {
        Pieces { pieces, rest: &[] }
    }

    /// Adds (or whatever `add` does) the next elements to `block`.
    fn add_to(&mut self, mut block: &mut [f32], add: impl Fn(&mut [f32], &[f32])) {
        while !block.is_empty() {
            if self.rest.is_empty() {
                let Some(next) = self.pieces.next() else { return };
                self.rest = next;
                continue;
            }
            let count = block.len().min(self.rest.len());
            let (now, later) = block.split_at_mut(count);
            let (these, rest) = self.rest.split_at(count);
            add(now, these);
            (block, self.rest) = (later, rest);
        }
    }
}

#[cfg(test)]
mod tests;
