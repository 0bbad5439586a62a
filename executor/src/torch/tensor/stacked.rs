//! Several columns of a batch side by side as one CPU tensor, each value copied once.
//!
//! A table of clicks has some dozen columns, and a tensor of each costs more than the values of a batch: libtorch makes
//! an object of a microsecond for every one of them.

use tch::{Kind, Tensor};
use tfos_data::arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, RecordBatch};
use tfos_data::arrow::buffer::{Buffer, MutableBuffer};
use tfos_data::arrow::datatypes::{Float32Type, Float64Type, Int32Type, Int64Type, UInt8Type};

use super::{Block, TensorError, Values, blocks, dimension, missing, shim};
use crate::feed::Part;

/// Rows of one step: their part of the tensor stays in the first cache while the columns are written into it.
const STEP: usize = 64;

/// The columns `names`, in that order, as one contiguous CPU tensor `[rows, columns]`; of lists of length k
/// `[rows, columns, k]`. They are of one element type and shape; see the module above for both.
pub(crate) fn stacked(parts: &[Part], names: &[&str]) -> Result<Tensor, TensorError> {
    match plain(parts, names)? {
        Some(tensor) => Ok(tensor),
        None => any(parts, names),
    }
}

/// Numbers without nulls, which are nearly all columns that are stacked: nothing is made of a column but the place of its
/// values. `None` for others.
fn plain(parts: &[Part], names: &[&str]) -> Result<Option<Tensor>, TensorError> {
    let rows = parts.iter().map(Part::num_rows).sum::<usize>();
    let mut all: Option<Kind> = None;
    let mut columns: Vec<&[u8]> = Vec::with_capacity(parts.len() * names.len());
    for part in parts {
        let Some((batch, from)) = part.in_batch() else { return Ok(None) };
        let mut next = 0;
        for name in names {
            let index = index(batch, name, next)?;
            next = index + 1;
            let Some((kind, bytes)) = batch.columns().get(index).and_then(numbers) else { return Ok(None) };
            if *all.get_or_insert(kind) != kind {
                return Ok(None);
            }
            let width = kind.elt_size_in_bytes();
            let Some(bytes) = bytes.get(from * width..(from + part.num_rows()) * width) else { return Ok(None) };
            columns.push(bytes);
        }
    }
    let Some(kind) = all else { return Ok(None) };
    tensor(&columns, names, rows, kind, &[]).map(Some)
}

/// The column of this name; names are often asked for in the order of the columns.
fn index(batch: &RecordBatch, name: &str, next: usize) -> Result<usize, TensorError> {
    let fields = batch.schema_ref().fields();
    if fields.get(next).is_some_and(|field| field.name() == name) {
        return Ok(next);
    }
    fields.iter().position(|field| field.name() == name).ok_or_else(|| missing(batch.schema_ref(), name))
}

fn numbers(array: &ArrayRef) -> Option<(Kind, &[u8])> {
    fn of<T: ArrowPrimitiveType>(array: &ArrayRef) -> Option<&[u8]> {
        Some(array.as_primitive_opt::<T>()?.values().inner().as_slice())
    }
    if array.nulls().is_some() {
        return None;
    }
    None.or_else(|| of::<Int64Type>(array).map(|bytes| (Kind::Int64, bytes)))
        .or_else(|| of::<Float32Type>(array).map(|bytes| (Kind::Float, bytes)))
        .or_else(|| of::<Float64Type>(array).map(|bytes| (Kind::Double, bytes)))
        .or_else(|| of::<Int32Type>(array).map(|bytes| (Kind::Int, bytes)))
        .or_else(|| of::<UInt8Type>(array).map(|bytes| (Kind::Uint8, bytes)))
}

fn any(parts: &[Part], names: &[&str]) -> Result<Tensor, TensorError> {
    let mut alike = None;
    let mut columns: Vec<Vec<Buffer>> = Vec::with_capacity(names.len());
    for name in names {
        let (blocks, rows) = blocks(parts, name)?;
        let Some(block) = blocks.first() else { return Err(TensorError::NoPieces { column: (*name).to_owned() }) };
        let (kind, tail, _) = alike.get_or_insert_with(|| (block.kind, block.tail.clone(), rows));
        if (*kind, &*tail) != (block.kind, &block.tail) {
            return Err(TensorError::Unlike {
                column: (*name).to_owned(),
                found: block.describe(),
                first: names.first().map(|first| (*first).to_owned()).unwrap_or_default(),
                expected: format!("{kind:?} {tail:?}"),
            });
        }
        columns.push(blocks.iter().map(|block| bytes_of(block, name)).collect::<Result<_, _>>()?);
    }
    let Some((kind, tail, rows)) = alike else { return Err(TensorError::NoColumns) };
    let parts = columns.first().map_or(0, Vec::len);
    let columns: Vec<&[u8]> = (0..parts)
        .flat_map(|part| columns.iter().map(move |parts| parts.get(part).map_or(&[][..], Buffer::as_slice)))
        .collect();
    tensor(&columns, names, rows, kind, &tail)
}

fn bytes_of(block: &Block, name: &str) -> Result<Buffer, TensorError> {
    if let Values::Bytes(buffer) = &block.values {
        return Ok(buffer.clone());
    }
    let mut bytes = MutableBuffer::with_capacity(block.bytes());
    block.append(&mut bytes, name)?;
    Ok(bytes.into())
}

/// `columns`: the bytes of each column of the first part, then of the second, and so on.
fn tensor(columns: &[&[u8]], names: &[&str], rows: usize, kind: Kind, tail: &[usize]) -> Result<Tensor, TensorError> {
    let cell = tail.iter().product::<usize>() * kind.elt_size_in_bytes();
    let mut bytes = MutableBuffer::from_len_zeroed(rows * names.len() * cell);
    let mut out = bytes.as_slice_mut();
    for part in columns.chunks_exact(names.len()) {
        let (of_part, rest) = out.split_at_mut(part.iter().map(|bytes| bytes.len()).sum::<usize>().min(out.len()));
        match cell {
            1 => lay::<1>(part, of_part),
            2 => lay::<2>(part, of_part),
            4 => lay::<4>(part, of_part),
            8 => lay::<8>(part, of_part),
            _ => lay_long(part, cell.max(1), of_part),
        }
        out = rest;
    }
    let shape: Vec<i64> = [rows, names.len()].into_iter().chain(tail.iter().copied()).map(dimension).collect();
    let column = || names.first().map(|first| (*first).to_owned()).unwrap_or_default();
    let memory = |source| TensorError::Memory { column: column(), source };
    shim::tensor_from_buffer(&bytes.into(), 0, &shape, kind).map_err(memory)
}

/// Writes cells of `N` bytes, row after row, of four columns at a time.
fn lay<const N: usize>(columns: &[&[u8]], out: &mut [u8]) {
    let width = columns.len();
    for (step, out) in out.as_chunks_mut::<N>().0.chunks_mut(STEP * width).enumerate() {
        let of_step = |bytes: &&'_ [u8]| -> usize { bytes.len().min(step * STEP * N) };
        let (fours, rest) = columns.as_chunks::<4>();
        for (number, four) in fours.iter().enumerate() {
            let [a, b, c, d] = four.each_ref().map(|bytes| bytes[of_step(bytes)..].as_chunks::<N>().0);
            for ((((row, a), b), c), d) in out.chunks_exact_mut(width).zip(a).zip(b).zip(c).zip(d) {
                if let Some(cells) = row.get_mut(4 * number..).and_then(<[_]>::first_chunk_mut) {
                    *cells = [*a, *b, *c, *d];
                }
            }
        }
        for (number, bytes) in rest.iter().enumerate() {
            let cells = bytes[of_step(bytes)..].as_chunks::<N>().0;
            for (row, cell) in out.chunks_exact_mut(width).zip(cells) {
                row[4 * fours.len() + number] = *cell;
            }
        }
    }
}

/// As [`lay`], for cells that are worth a call of their own.
fn lay_long(columns: &[&[u8]], cell: usize, out: &mut [u8]) {
    for (column, bytes) in columns.iter().enumerate() {
        let to = out.chunks_exact_mut(cell).skip(column).step_by(columns.len());
        for (to, from) in to.zip(bytes.chunks_exact(cell)) {
            to.copy_from_slice(from);
        }
    }
}
