//! Several columns of a batch side by side as one CPU tensor, each value copied once.
//!
//! A table of clicks has some dozen columns, and a tensor of each costs more than the values of a batch: libtorch makes
//! an object of a microsecond for every one of them.

use tch::Tensor;
use tfos_data::arrow::array::RecordBatch;
use tfos_data::arrow::buffer::{Buffer, MutableBuffer};

use super::{TensorError, Values, blocks, dimension, shim};

/// Rows of one step: their part of the tensor stays in the first cache while the columns are written into it.
const STEP: usize = 64;

/// The columns `names`, in that order, as one contiguous CPU tensor `[rows, columns]`; of lists of length k
/// `[rows, columns, k]`. They are of one element type and shape; see [`column`](super::column) for both.
pub fn stacked(pieces: &[RecordBatch], names: &[&str]) -> Result<Tensor, TensorError> {
    let Some(first) = names.first() else { return Err(TensorError::NoColumns) };
    let mut alike = None;
    let mut columns = Vec::with_capacity(names.len());
    for name in names {
        let (blocks, rows) = blocks(pieces, name)?;
        let Some(block) = blocks.first() else { return Err(TensorError::NoPieces { column: (*name).to_owned() }) };
        let (kind, tail, _) = alike.get_or_insert_with(|| (block.kind, block.tail.clone(), rows));
        if (*kind, &*tail) != (block.kind, &block.tail) {
            return Err(TensorError::Unlike {
                column: (*name).to_owned(),
                found: block.describe(),
                first: (*first).to_owned(),
                expected: format!("{kind:?} {tail:?}"),
            });
        }
        let mut parts = Vec::with_capacity(blocks.len());
        for block in blocks {
            parts.push(match &block.values {
                Values::Bytes(buffer) => buffer.clone(),
                _ => {
                    let mut bytes = MutableBuffer::with_capacity(block.bytes());
                    block.append(&mut bytes, name)?;
                    Buffer::from(bytes)
                }
            });
        }
        columns.push(parts);
    }
    let Some((kind, tail, rows)) = alike else { return Err(TensorError::NoColumns) };
    let cell = tail.iter().product::<usize>() * kind.elt_size_in_bytes();
    let mut bytes = MutableBuffer::from_len_zeroed(rows * names.len() * cell);
    match cell {
        1 => lay::<1>(&columns, bytes.as_slice_mut()),
        2 => lay::<2>(&columns, bytes.as_slice_mut()),
        4 => lay::<4>(&columns, bytes.as_slice_mut()),
        8 => lay::<8>(&columns, bytes.as_slice_mut()),
        _ => lay_long(&columns, cell, bytes.as_slice_mut()),
    }
    let shape: Vec<i64> = [rows, names.len()].into_iter().chain(tail).map(dimension).collect();
    let memory = |source| TensorError::Memory { column: (*first).to_owned(), source };
    shim::tensor_from_buffer(&bytes.into(), 0, &shape, kind).map_err(memory)
}

/// Writes cells of `N` bytes, row after row. Every column has the same rows in each of its parts.
fn lay<const N: usize>(columns: &[Vec<Buffer>], out: &mut [u8]) {
    let mut out = out.as_chunks_mut::<N>().0;
    for part in 0..columns.first().map_or(0, Vec::len) {
        let cells: Vec<&[[u8; N]]> =
            columns.iter().map(|parts| parts.get(part).map_or(&[][..], |part| part.as_chunks().0)).collect();
        let rows = cells.first().map_or(0, |cells| cells.len());
        let (of_part, rest) = out.split_at_mut((rows * columns.len()).min(out.len()));
        for (step, out) in of_part.chunks_mut(STEP * columns.len()).enumerate() {
            for (column, cells) in cells.iter().enumerate() {
                let cells = cells.get(step * STEP..).unwrap_or_default();
                for (row, cell) in out.chunks_exact_mut(columns.len()).zip(cells) {
                    row[column] = *cell;
                }
            }
        }
        out = rest;
    }
}

/// As [`lay`], for cells that are worth a call of their own.
fn lay_long(columns: &[Vec<Buffer>], cell: usize, out: &mut [u8]) {
    for (number, parts) in columns.iter().enumerate() {
        let mut to = out.chunks_exact_mut(cell.max(1)).skip(number).step_by(columns.len().max(1));
        for from in parts.iter().flat_map(|part| part.chunks_exact(cell.max(1))) {
            if let Some(to) = to.next() {
                to.copy_from_slice(from);
            }
        }
    }
}
