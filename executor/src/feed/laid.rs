//! Columns of numbers laid side by side, row after row, as the tensor of a wide table has them.
//!
//! Of a shuffled block all rows are laid at once, when columns are first asked for: a row is then a few cache lines that
//! lie together, and to take rows in another order costs little. Column by column each value would be a cache line.

use std::sync::{Arc, Mutex, PoisonError};

use tfos_data::arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, RecordBatch};
use tfos_data::arrow::buffer::MutableBuffer;
use tfos_data::arrow::datatypes::{Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type};

/// Rows of one step: their part of the output stays in the first cache while the columns are written into it.
const STEP: usize = 64;

/// Appends `rows` rows of these columns from row `from` on; `false` if one is not of numbers of one width, without nulls.
pub(super) fn lay_batch(
    batch: &RecordBatch,
    columns: &[usize],
    from: usize,
    rows: usize,
    out: &mut MutableBuffer,
) -> bool {
    let mut bytes: Vec<&[u8]> = Vec::with_capacity(columns.len());
    let mut all = None;
    for column in columns {
        let Some((width, numbers)) = batch.columns().get(*column).and_then(numbers) else { return false };
        let Some(numbers) = numbers.get(from * width..(from + rows) * width) else { return false };
        if *all.get_or_insert(width) != width {
            return false;
        }
        bytes.push(numbers);
    }
    let Some(width) = all else { return false };
    lay(&bytes, width, out);
    true
}

/// Appends cells of `width` bytes of each column, row after row.
pub(crate) fn lay(columns: &[&[u8]], width: usize, out: &mut MutableBuffer) {
    let begin = out.len();
    out.resize(begin + columns.iter().map(|bytes| bytes.len()).sum::<usize>(), 0);
    let out = out.as_slice_mut().get_mut(begin..).unwrap_or_default();
    match width {
        1 => lay_cells::<1>(columns, out),
        2 => lay_cells::<2>(columns, out),
        4 => lay_cells::<4>(columns, out),
        8 => lay_cells::<8>(columns, out),
        _ => lay_long(columns, width.max(1), out),
    }
}

/// Bytes of a number and of all of them.
fn numbers(array: &ArrayRef) -> Option<(usize, &[u8])> {
    fn of<T: ArrowPrimitiveType>(array: &ArrayRef) -> Option<(usize, &[u8])> {
        Some((size_of::<T::Native>(), array.as_primitive_opt::<T>()?.values().inner().as_slice()))
    }
    if array.nulls().is_some() {
        return None;
    }
    None.or_else(|| of::<Int64Type>(array))
        .or_else(|| of::<Float32Type>(array))
        .or_else(|| of::<Float64Type>(array))
        .or_else(|| of::<Int32Type>(array))
        .or_else(|| of::<UInt8Type>(array))
        .or_else(|| of::<Int16Type>(array))
        .or_else(|| of::<Int8Type>(array))
}

/// Writes cells of `N` bytes, row after row, of four columns at a time.
fn lay_cells<const N: usize>(columns: &[&[u8]], out: &mut [u8]) {
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

/// As [`lay_cells`], for cells that are worth a call of their own.
fn lay_long(columns: &[&[u8]], width: usize, out: &mut [u8]) {
    for (column, bytes) in columns.iter().enumerate() {
        let to = out.chunks_exact_mut(width).skip(column).step_by(columns.len());
        for (to, from) in to.zip(bytes.chunks_exact(width)) {
            to.copy_from_slice(from);
        }
    }
}

/// What the columns take of memory when they are laid.
fn size(rows: &RecordBatch, columns: &[usize]) -> usize {
    let width = |column: &usize| rows.columns().get(*column)?.data_type().primitive_width();
    columns.iter().filter_map(width).sum::<usize>() * rows.num_rows()
}

/// The rows of a block, laid once for each list of columns that is asked for.
#[derive(Debug, Default)]
pub(super) struct Laid(Mutex<Vec<Columns>>);

#[derive(Debug)]
struct Columns {
    columns: Vec<usize>,
    /// All rows, in the order of the pieces; `None` where they cannot be laid.
    rows: Option<Arc<MutableBuffer>>,
}

impl Laid {
    /// Appends the rows of these numbers, of the `rows` that `pieces` have together; `false` as of [`lay_batch`].
    pub(super) fn take(
        &self,
        pieces: &[RecordBatch],
        columns: &[usize],
        numbers: &[u32],
        out: &mut MutableBuffer,
    ) -> bool {
        let count: usize = pieces.iter().map(RecordBatch::num_rows).sum();
        let Some(laid) = self.rows(pieces, columns) else { return false };
        let width = laid.len() / count.max(1);
        let begin = out.len();
        out.resize(begin + numbers.len() * width, 0);
        let out = out.as_slice_mut().get_mut(begin..).unwrap_or_default();
        for (to, number) in out.chunks_exact_mut(width.max(1)).zip(numbers) {
            let from = *number as usize * width;
            to.copy_from_slice(&laid.as_slice()[from..from + width]);
        }
        true
    }

    fn rows(&self, pieces: &[RecordBatch], columns: &[usize]) -> Option<Arc<MutableBuffer>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.iter().find(|known| known.columns == columns) {
            return known.rows.clone();
        }
        let mut rows = MutableBuffer::with_capacity(pieces.iter().map(|piece| size(piece, columns)).sum());
        let laid = pieces.iter().all(|piece| lay_batch(piece, columns, 0, piece.num_rows(), &mut rows));
        let rows = laid.then(|| Arc::new(rows));
        all.push(Columns { columns: columns.to_vec(), rows: rows.clone() });
        rows
    }
}
