//! Several columns of a batch side by side as one CPU tensor, each value copied once: into the tensor, or, of a shuffled
//! block, for all its rows at once, of which tensors are views.
//!
//! A table of clicks has some dozen columns, and a tensor of each costs more than the values of a batch: libtorch makes
//! an object of a microsecond for every one of them.

use std::sync::Arc;

use tch::{Kind, Tensor};
use tfos_data::arrow::buffer::{Buffer, MutableBuffer};
use tfos_data::arrow::datatypes::{DataType, SchemaRef};

use super::{Block, TensorError, Values, blocks, dimension, missing, shim};
use crate::feed::{Part, lay};

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
    let Some(schema) = parts.first().and_then(Part::schema) else { return Ok(None) };
    let (mut columns, mut next) = (Vec::with_capacity(names.len()), 0);
    for name in names {
        let index = index(schema, name, next)?;
        next = index + 1;
        columns.push(index);
    }
    let mut types = columns.iter().map(|column| schema.field(*column).data_type());
    let Some(first) = types.next() else { return Ok(None) };
    let Some(kind) = kind(first).filter(|_| types.all(|other| other == first)) else { return Ok(None) };
    let rows = parts.iter().map(Part::num_rows).sum::<usize>();
    if let [part] = parts
        && let Some(bytes) = part.laid(&columns)
    {
        return tensor(&bytes, names, rows, kind, &[]).map(Some);
    }
    let mut bytes = MutableBuffer::with_capacity(rows * names.len() * kind.elt_size_in_bytes());
    let is_alike = |part: &Part| part.schema().is_some_and(|other| Arc::ptr_eq(other, schema) || other == schema);
    if !parts.iter().all(|part| is_alike(part) && part.lay(&columns, &mut bytes)) {
        return Ok(None);
    }
    tensor(&bytes.into(), names, rows, kind, &[]).map(Some)
}

/// The column of this name; names are often asked for in the order of the columns.
fn index(schema: &SchemaRef, name: &str, next: usize) -> Result<usize, TensorError> {
    let fields = schema.fields();
    if fields.get(next).is_some_and(|field| field.name() == name) {
        return Ok(next);
    }
    fields.iter().position(|field| field.name() == name).ok_or_else(|| missing(schema, name))
}

/// Of numbers that a tensor has as Arrow does.
fn kind(of: &DataType) -> Option<Kind> {
    Some(match of {
        DataType::Int64 => Kind::Int64,
        DataType::Float32 => Kind::Float,
        DataType::Float64 => Kind::Double,
        DataType::Int32 => Kind::Int,
        DataType::UInt8 => Kind::Uint8,
        DataType::Int16 => Kind::Int16,
        DataType::Int8 => Kind::Int8,
        _ => return None,
    })
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
    let cell = tail.iter().product::<usize>() * kind.elt_size_in_bytes();
    let mut bytes = MutableBuffer::with_capacity(rows * names.len() * cell);
    for part in 0..columns.first().map_or(0, Vec::len) {
        let of_part: Vec<&[u8]> =
            columns.iter().map(|parts| parts.get(part).map_or(&[][..], Buffer::as_slice)).collect();
        lay(&of_part, cell, &mut bytes);
    }
    tensor(&bytes.into(), names, rows, kind, &tail)
}

fn bytes_of(block: &Block, name: &str) -> Result<Buffer, TensorError> {
    if let Values::Bytes(buffer) = &block.values {
        return Ok(buffer.clone());
    }
    let mut bytes = MutableBuffer::with_capacity(block.bytes());
    block.append(&mut bytes, name)?;
    Ok(bytes.into())
}

fn tensor(bytes: &Buffer, names: &[&str], rows: usize, kind: Kind, tail: &[usize]) -> Result<Tensor, TensorError> {
    let shape: Vec<i64> = [rows, names.len()].into_iter().chain(tail.iter().copied()).map(dimension).collect();
    let column = || names.first().map(|first| (*first).to_owned()).unwrap_or_default();
    let memory = |source| TensorError::Memory { column: column(), source };
    shim::tensor_from_buffer(bytes, 0, &shape, kind).map_err(memory)
}
