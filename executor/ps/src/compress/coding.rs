//! A ps' end: what a compressed gradient is on the wire, checked before any of it is believed.

use super::{BLOCK, kernels};
use crate::cast;
use crate::error::{Error, Violation};
use crate::transport::Connection;
use crate::wire::{self, Header, Kind};

/// How the gradient of a push comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Plain,
    Bf16,
    /// So many elements.
    Sparse(usize),
}

impl Coding {
    /// Of a push to a shard of `len` elements; its length is checked here, so that nothing is read or allocated by a length
    /// that does not fit.
    pub(crate) fn of(header: &Header, len: usize) -> Result<Coding, Violation> {
        let wrong =
            |allowed: usize| Violation::Length { what: "gradient", allowed: allowed as u64, found: header.body };
        let exactly = |words: usize, coding| if header.body == words as u64 { Ok(coding) } else { Err(wrong(words)) };
        let flags = header.flags & (wire::BF16 | wire::SPARSE);
        if flags != 0 && header.kind == Kind::Push {
            let detail = "compressed, which deterministic training is not".to_owned();
            return Err(Violation::Malformed { what: "gradient", detail });
        }
        match flags {
            0 => exactly(len, Coding::Plain),
            wire::BF16 => exactly(len.div_ceil(2), Coding::Bf16),
            wire::SPARSE => {
                let kept = header.body / 2;
                if kept > len as u64 {
                    return Err(wrong(2 * len));
                }
                exactly(2 * kept as usize, Coding::Sparse(kept as usize))
            }
            flags => {
                let detail = format!("flags {flags} are two codings at once");
                Err(Violation::Malformed { what: "gradient", detail })
            }
        }
    }

    /// Receives the gradient. `codes` is used again from push to push.
    pub(crate) fn recv(
        self,
        connection: &mut dyn Connection,
        gradient: &mut [f32],
        codes: &mut Vec<u32>,
    ) -> Result<(), Error> {
        match self {
            Coding::Plain => wire::recv_floats(connection, [gradient]),
            Coding::Bf16 => {
                codes.resize(BLOCK.min(gradient.len().div_ceil(2)), 0);
                // Block by block, so that the codes are still in the cache when they are read.
                for part in gradient.chunks_mut(2 * BLOCK) {
                    let codes = &mut codes[..part.len().div_ceil(2)];
                    wire::recv_floats(connection, [cast::floats_mut(codes)])?;
                    kernels::decode_bf16(codes, part);
                }
                Ok(())
            }
            Coding::Sparse(kept) => {
                codes.resize(2 * kept, 0);
                wire::recv_floats(connection, [cast::floats_mut(codes)])?;
                scatter(codes, gradient).map_err(|violation| wire::violated(connection, violation))
            }
        }
    }
}

/// Indices, which ascend, then values; all other elements become 0.
pub(super) fn scatter(codes: &[u32], gradient: &mut [f32]) -> Result<(), Violation> {
    gradient.fill(0.0);
    let (indices, values) = codes.split_at(codes.len() / 2);
    let mut least = 0;
    for (&index, &value) in indices.iter().zip(values) {
        let place = gradient.get_mut(index as usize).filter(|_| index >= least);
        let Some(place) = place else {
            let detail = format!("index {index} where {least} or more was due, of {} elements", gradient.len());
            return Err(Violation::Malformed { what: "sparse gradient", detail });
        };
        *place = f32::from_bits(value);
        least = index.saturating_add(1);
    }
    Ok(())
}
