//! Columns of numbers laid side by side, row after row, as the tensor of a wide table has them.
//!
//! Of a shuffled block all rows are laid at once, when columns are first asked for, each where the block's order has it:
//! columns are read from their first row to their last, and a row is a few cache lines that lie together. Tensors of the
//! block's rows are then views of it.

use std::sync::{Mutex, PoisonError};

use tfos_data::arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, RecordBatch};
use tfos_data::arrow::buffer::{Buffer, MutableBuffer};
use tfos_data::arrow::datatypes::{Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type};

/// Rows of one step: their part of the output stays in the second cache while the columns are written into it. Of each
/// column a step takes so many bytes one after the other that the processor fetches them ahead.
const STEP: usize = 256;

/// The same where rows lie apart: their part stays in the first cache.
const SCATTERED: usize = 64;

/// Appends `rows` rows of these columns from row `from` on; `false` if one is not of numbers of one width, without nulls.
pub(super) fn lay_batch(
    batch: &RecordBatch,
    columns: &[usize],
    from: usize,
    rows: usize,
    out: &mut MutableBuffer,
) -> bool {
    let alike = alike(batch, columns, from, rows);
    alike.is_some_and(|(width, bytes)| {
        lay(&bytes, width, out);
        true
    })
}

/// The bytes of each of these columns, and of a number of any of them.
fn alike<'a>(batch: &'a RecordBatch, columns: &[usize], from: usize, rows: usize) -> Option<(usize, Vec<&'a [u8]>)> {
    let mut bytes: Vec<&[u8]> = Vec::with_capacity(columns.len());
    let mut all = None;
    for column in columns {
        let (width, numbers) = batch.columns().get(*column).and_then(numbers)?;
        bytes.push(numbers.get(from * width..(from + rows) * width)?);
        if *all.get_or_insert(width) != width {
            return None;
        }
    }
    Some((all?, bytes))
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

/// As [`lay_cells`], with row i at `places[i]`.
fn scatter<const N: usize>(columns: &[&[u8]], places: &[u32], out: &mut [u8]) {
    let (out, width) = (out.as_chunks_mut::<N>().0, columns.len());
    let (fours, rest) = columns.as_chunks::<4>();
    for (step, places) in places.chunks(SCATTERED).enumerate() {
        let of_step = |bytes: &&'_ [u8]| -> usize { bytes.len().min(step * SCATTERED * N) };
        for (number, four) in fours.iter().enumerate() {
            let [a, b, c, d] = four.each_ref().map(|bytes| bytes[of_step(bytes)..].as_chunks::<N>().0);
            for ((((place, a), b), c), d) in places.iter().zip(a).zip(b).zip(c).zip(d) {
                let cells = out.get_mut(*place as usize * width + 4 * number..);
                if let Some(cells) = cells.and_then(<[_]>::first_chunk_mut) {
                    *cells = [*a, *b, *c, *d];
                }
            }
        }
        for (number, bytes) in rest.iter().enumerate() {
            let cells = bytes[of_step(bytes)..].as_chunks::<N>().0;
            for (place, cell) in places.iter().zip(cells) {
                if let Some(to) = out.get_mut(*place as usize * width + 4 * fours.len() + number) {
                    *to = *cell;
                }
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

/// The rows of a block, laid once for each list of columns that is asked for.
#[derive(Debug, Default)]
pub(super) struct Laid(Mutex<Vec<Columns>>);

#[derive(Debug)]
struct Columns {
    columns: Vec<usize>,
    /// All rows, in the order of the block; `None` where they cannot be laid.
    rows: Option<Buffer>,
}

impl Laid {
    /// All rows of `pieces` in this order, of which each is somewhere in it; `None` as of [`lay_batch`].
    pub(super) fn rows(&self, pieces: &[RecordBatch], columns: &[usize], order: &[u32]) -> Option<Buffer> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.iter().find(|known| known.columns == columns) {
            return known.rows.clone();
        }
        let rows = in_order(pieces, columns, order).map(Buffer::from);
        all.push(Columns { columns: columns.to_vec(), rows: rows.clone() });
        rows
    }
}

fn in_order(pieces: &[RecordBatch], columns: &[usize], order: &[u32]) -> Option<MutableBuffer> {
    let mut places = vec![0; order.len()];
    for (place, row) in (0..).zip(order) {
        *places.get_mut(*row as usize)? = place;
    }
    let (mut out, mut left) = (MutableBuffer::new(0), places.as_slice());
    for piece in pieces {
        let (width, bytes) = alike(piece, columns, 0, piece.num_rows())?;
        out.resize(order.len() * columns.len() * width, 0);
        let of_piece = left.split_off(..piece.num_rows())?;
        match width {
            1 => scatter::<1>(&bytes, of_piece, out.as_slice_mut()),
            2 => scatter::<2>(&bytes, of_piece, out.as_slice_mut()),
            4 => scatter::<4>(&bytes, of_piece, out.as_slice_mut()),
            8 => scatter::<8>(&bytes, of_piece, out.as_slice_mut()),
            _ => return None,
        }
    }
    left.is_empty().then_some(out)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tfos_data::arrow::array::{Float32Array, Int64Array};

    use super::*;

    /// Columns of both widths, 100 rows from `from` on.
    fn piece(from: i64) -> RecordBatch {
        let wide = |number: i64| Arc::new(Int64Array::from_iter_values((from..from + 100).map(|i| i * 10 + number)));
        let narrow = |n: i64| Arc::new(Float32Array::from_iter_values((from..from + 100).map(|i| (i * 10 + n) as f32)));
        let column = |number: i64| -> ArrayRef { if number < 6 { wide(number) } else { narrow(number) } };
        RecordBatch::try_from_iter((0..9).map(|number| (format!("c{number}"), column(number)))).unwrap()
    }

    #[test]
    fn rows_are_laid_in_the_order_of_the_block() {
        let pieces = [piece(0), piece(100)];
        let order: Vec<u32> = (0..200).map(|i| i * 77 % 200).collect();
        let laid = Laid::default();
        let wide = [5, 0, 1, 2, 3, 4];
        let rows = laid.rows(&pieces, &wide, &order).unwrap();
        let expected = order.iter().flat_map(|row| wide.map(|c| i64::from(*row) * 10 + c as i64)).collect::<Vec<_>>();
        assert_eq!(rows.typed_data::<i64>(), expected);
        let rows = laid.rows(&pieces, &[7], &order).unwrap();
        let expected = order.iter().map(|row| (row * 10 + 7) as f32).collect::<Vec<_>>();
        assert_eq!(rows.typed_data::<f32>(), expected);
        assert_eq!(laid.rows(&pieces, &[7], &order).unwrap().as_ptr(), rows.as_ptr(), "laid once");
        assert!(laid.rows(&pieces, &[0, 7], &order).is_none(), "of two widths");
        assert!(laid.rows(&pieces, &[9], &order).is_none(), "no such column");
        assert!(Laid::default().rows(&pieces, &wide, &order[1..]).is_none(), "not all rows");
    }
}
