//! One column of a batch as one CPU tensor: borrowed from Arrow where its layout is a tensor's, else copied once.
//!
//! | Arrow | tensor |
//! |---|---|
//! | signed integers, floats, `UInt8`, `Boolean` | the same kind, `[rows]` |
//! | `UInt16`, `UInt32`, `UInt64` | `Int`, `Int64`, `Int64` (an error if too large), `[rows]` |
//! | `FixedSizeList<T, k>` | `T`'s kind, `[rows, k]`; nested, `[rows, k1, k2]` |
//! | `List<T>`, `LargeList<T>`, all rows of length k | as `FixedSizeList<T, k>` |
//! | `Binary`, `LargeBinary`, `FixedSizeBinary`, all of length k | `Uint8`, `[rows, k]` |
//!
//! Nothing is copied if one part has all the rows and no value needs converting (booleans and wide unsigned
//! integers do); [`is_zero_copy`] tells. Otherwise everything is copied exactly once. The tensor outlives the
//! parts. It may share memory with them, so use no in-place operation on it.

mod stacked;

use tch::{Kind, Tensor};
use tfos_data::arrow::array::{Array, ArrayData, ArrayRef, ArrowPrimitiveType, AsArray, OffsetSizeTrait, RecordBatch};
use tfos_data::arrow::buffer::{BooleanBuffer, Buffer, MutableBuffer, ScalarBuffer};
use tfos_data::arrow::datatypes::{
    DataType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, Schema, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use tfos_data::arrow::error::ArrowError;

pub(crate) use self::stacked::stacked;
use super::shim;
use crate::feed::Part;

/// Why a column is not a tensor. Rows count from 0 over all pieces of the batch.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// There is no piece, so neither element type nor shape is known.
    #[error("no rows, so column `{column}` has no type")]
    NoPieces {
        /// The column asked for.
        column: String,
    },
    /// The batch has no such column.
    #[error("no column `{column}`, there are: {}", available.join(", "))]
    Missing {
        /// The column asked for.
        column: String,
        /// The columns of the batch.
        available: Vec<String>,
    },
    /// A value is missing; tensors have no word for that.
    #[error("column `{column}` is null in row {row}; give nulls a value in the query, as in COALESCE({column}, 0)")]
    Null {
        /// The column asked for.
        column: String,
        /// The first row with a null.
        row: usize,
    },
    /// The rows of a list or binary column differ in length.
    #[error("column `{column}` has {found} elements in row {row}, but {expected} before; a tensor needs equal lengths")]
    Ragged {
        /// The column asked for.
        column: String,
        /// The first row with another length.
        row: usize,
        /// Its length, in elements or bytes.
        found: usize,
        /// The length of the rows before it.
        expected: usize,
    },
    /// libtorch has no element type for the column's.
    #[error(
        "column `{column}` holds {dtype}, which no tensor does; convert it in the query, as in CAST({column} AS REAL)"
    )]
    Unsupported {
        /// The column asked for.
        column: String,
        /// The element type that has no counterpart, inside of any lists.
        dtype: DataType,
    },
    /// An unsigned value is above what libtorch's int64 holds.
    #[error("column `{column}` is {value} in row {row}, above the largest int64; convert it in the query")]
    TooLarge {
        /// The column asked for.
        column: String,
        /// The row of the value.
        row: usize,
        /// The value.
        value: u64,
    },
    /// The pieces of the batch disagree about the column.
    #[error("column `{column}` is {found} from row {row} on, but {expected} before")]
    Mixed {
        /// The column asked for.
        column: String,
        /// The first row of the piece that differs.
        row: usize,
        /// Element type and shape of one row there.
        found: String,
        /// Element type and shape of one row before it.
        expected: String,
    },
    /// Rows of a shuffled block do not fit into one array.
    #[error("column `{column}`")]
    Gather {
        /// The column asked for.
        column: String,
        #[source]
        source: ArrowError,
    },
    /// No column was named.
    #[error("no columns to stack")]
    NoColumns,
    /// Columns that were to be stacked are of different types or shapes.
    #[error(
        "column `{column}` is {found}, but `{first}` is {expected}; only like columns stack, so CAST one in the query"
    )]
    Unlike {
        /// The column that differs.
        column: String,
        /// Its element type and the shape of one row.
        found: String,
        /// The first column.
        first: String,
        /// Its element type and the shape of one row.
        expected: String,
    },
    /// The bytes did not become a tensor.
    #[error("column `{column}`")]
    Memory {
        /// The column asked for.
        column: String,
        #[source]
        source: shim::Error,
    },
}

/// Column `name` of all rows of `parts`, in order, as one contiguous CPU tensor; see the module's text.
pub(crate) fn column(parts: &[Part], name: &str) -> Result<Tensor, TensorError> {
    let (blocks, rows) = blocks(parts, name)?;
    let Some(first) = blocks.first() else { return Err(TensorError::NoPieces { column: name.to_owned() }) };
    let shape: Vec<i64> = std::iter::once(rows).chain(first.tail.iter().copied()).map(dimension).collect();
    let memory = |source| TensorError::Memory { column: name.to_owned(), source };
    if let [Block { values: Values::Bytes(buffer), .. }] = blocks.as_slice() {
        return shim::tensor_from_buffer(buffer, 0, &shape, first.kind).map_err(memory);
    }
    let mut bytes = MutableBuffer::with_capacity(blocks.iter().map(Block::bytes).sum());
    for block in &blocks {
        block.append(&mut bytes, name)?;
    }
    shim::tensor_from_buffer(&bytes.into(), 0, &shape, first.kind).map_err(memory)
}

/// The parts of a column, which agree about it, and their rows; none only where there is no part.
fn blocks(parts: &[Part], name: &str) -> Result<(Vec<Block>, usize), TensorError> {
    let mut blocks = Vec::with_capacity(parts.len());
    let mut row = 0;
    for part in parts {
        let Some(schema) = part.schema() else { continue };
        let (index, _) = schema.column_with_name(name).ok_or_else(|| missing(schema, name))?;
        let array = part.column(index).map_err(|source| TensorError::Gather { column: name.to_owned(), source })?;
        blocks.push(Block::new(array, name, row)?);
        row += part.num_rows();
    }
    // A list column without rows has no length, so it must not contradict the others.
    if row > 0 {
        blocks.retain(|block| block.rows > 0);
    }
    let other = blocks.iter().skip(1).find(|block| (block.kind, &block.tail) != (blocks[0].kind, &blocks[0].tail));
    if let Some(other) = other {
        return Err(TensorError::Mixed {
            column: name.to_owned(),
            row: other.first_row,
            found: other.describe(),
            expected: blocks[0].describe(),
        });
    }
    Ok((blocks, row))
}

fn missing(schema: &Schema, name: &str) -> TensorError {
    let available = schema.fields().iter().map(|field| field.name().clone()).collect();
    TensorError::Missing { column: name.to_owned(), available }
}

/// Whether `tensor` reads the memory of column `name` of one of `pieces`, rather than a copy of it.
pub fn is_zero_copy(tensor: &Tensor, pieces: &[RecordBatch], name: &str) -> bool {
    fn holds(data: &ArrayData, address: *const u8) -> bool {
        data.buffers().iter().any(|buffer| buffer.as_ptr_range().contains(&address))
            || data.child_data().iter().any(|child| holds(child, address))
    }
    let address = shim::address(tensor);
    pieces.iter().filter_map(|piece| piece.column_by_name(name)).any(|array| holds(&array.to_data(), address))
}

/// One piece's rows of the column, checked: no nulls, equal lengths.
struct Block {
    /// The piece's first row in the batch.
    first_row: usize,
    rows: usize,
    /// The kind of the tensor, which for some values is wider than Arrow's.
    kind: Kind,
    /// The shape of one row.
    tail: Vec<usize>,
    values: Values,
}

/// The elements of a block, row after row.
enum Values {
    /// Already as libtorch wants them.
    Bytes(Buffer),
    Bits(BooleanBuffer),
    U16(ScalarBuffer<u16>),
    U32(ScalarBuffer<u32>),
    U64(ScalarBuffer<u64>),
}

impl Block {
    /// Goes down through the lists of `array` to its elements.
    fn new(mut array: ArrayRef, name: &str, first_row: usize) -> Result<Self, TensorError> {
        let rows = array.len();
        let mut tail = Vec::new();
        loop {
            let place = Place { name, first_row, per_row: tail.iter().product() };
            if let Some(index) = array.nulls().and_then(|nulls| nulls.iter().position(|valid| !valid)) {
                return Err(TensorError::Null { column: name.to_owned(), row: place.row(index) });
            }
            array = if let Some(list) = array.as_fixed_size_list_opt() {
                let length = usize::try_from(list.value_length()).unwrap_or(0);
                tail.push(length);
                list.values().slice(0, list.len() * length)
            } else if let Some(list) = array.as_list_opt::<i32>() {
                let (start, length) = place.uniform(list.value_offsets())?;
                tail.push(length);
                list.values().slice(start, list.len() * length)
            } else if let Some(list) = array.as_list_opt::<i64>() {
                let (start, length) = place.uniform(list.value_offsets())?;
                tail.push(length);
                list.values().slice(start, list.len() * length)
            } else {
                let (kind, length, values) = place.elements(array.as_ref())?;
                tail.extend(length);
                return Ok(Self { first_row, rows, kind, tail, values });
            };
        }
    }

    /// Number of elements.
    fn elements(&self) -> usize {
        self.rows * self.tail.iter().product::<usize>()
    }

    /// Size of the elements in the tensor.
    fn bytes(&self) -> usize {
        self.elements() * self.kind.elt_size_in_bytes()
    }

    /// Writes the elements as the tensor has them.
    fn append(&self, out: &mut MutableBuffer, name: &str) -> Result<(), TensorError> {
        match &self.values {
            Values::Bytes(buffer) => out.extend_from_slice(buffer),
            Values::Bits(bits) => out.extend(bits.iter().map(u8::from)),
            Values::U16(values) => out.extend(values.iter().map(|&value| i32::from(value))),
            Values::U32(values) => out.extend(values.iter().map(|&value| i64::from(value))),
            Values::U64(values) => {
                let per_row = self.tail.iter().product();
                let place = Place { name, first_row: self.first_row, per_row };
                for (index, &value) in values.iter().enumerate() {
                    let small = i64::try_from(value).map_err(|_| TensorError::TooLarge {
                        column: name.to_owned(),
                        row: place.row(index),
                        value,
                    })?;
                    out.push(small);
                }
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        format!("{:?} {:?}", self.kind, self.tail)
    }
}

/// Where in the batch an array lies; for messages.
struct Place<'a> {
    name: &'a str,
    first_row: usize,
    /// Elements of the array for each row of the batch.
    per_row: usize,
}

impl Place<'_> {
    /// The batch's row of the array's element `index`.
    fn row(&self, index: usize) -> usize {
        self.first_row + index / self.per_row.max(1)
    }

    /// Start and common length of the lists between `offsets`, in elements; length 0 if there is no list.
    fn uniform<O: OffsetSizeTrait>(&self, offsets: &[O]) -> Result<(usize, usize), TensorError> {
        let lengths = || offsets.windows(2).map(|pair| pair[1].as_usize() - pair[0].as_usize());
        let expected = lengths().next().unwrap_or(0);
        if let Some((index, found)) = lengths().enumerate().find(|&(_, length)| length != expected) {
            return Err(TensorError::Ragged { column: self.name.to_owned(), row: self.row(index), found, expected });
        }
        Ok((offsets.first().map_or(0, |offset| offset.as_usize()), expected))
    }

    /// Kind, length of each value if values have one, and values of an array that is no list.
    fn elements(&self, array: &dyn Array) -> Result<(Kind, Option<usize>, Values), TensorError> {
        fn same<T: ArrowPrimitiveType>(array: &dyn Array) -> Option<Values> {
            let values = array.as_primitive_opt::<T>()?.values();
            Some(Values::Bytes(values.inner().slice_with_length(0, std::mem::size_of_val::<[T::Native]>(values))))
        }
        fn native<T: ArrowPrimitiveType>(array: &dyn Array) -> Option<ScalarBuffer<T::Native>> {
            array.as_primitive_opt::<T>().map(|array| array.values().clone())
        }
        let binary = |(start, length): (usize, usize), bytes: &Buffer| {
            (Kind::Uint8, Some(length), Values::Bytes(bytes.slice_with_length(start, length * array.len())))
        };
        if let Some(array) = array.as_binary_opt::<i32>() {
            return Ok(binary(self.uniform(array.value_offsets())?, array.values()));
        }
        if let Some(array) = array.as_binary_opt::<i64>() {
            return Ok(binary(self.uniform(array.value_offsets())?, array.values()));
        }
        if let Some(array) = array.as_fixed_size_binary_opt() {
            return Ok(binary((0, array.value_size()), array.values()));
        }
        let found = match array.data_type() {
            DataType::UInt8 => same::<UInt8Type>(array).map(|values| (Kind::Uint8, values)),
            DataType::Int8 => same::<Int8Type>(array).map(|values| (Kind::Int8, values)),
            DataType::Int16 => same::<Int16Type>(array).map(|values| (Kind::Int16, values)),
            DataType::Int32 => same::<Int32Type>(array).map(|values| (Kind::Int, values)),
            DataType::Int64 => same::<Int64Type>(array).map(|values| (Kind::Int64, values)),
            DataType::Float16 => same::<Float16Type>(array).map(|values| (Kind::Half, values)),
            DataType::Float32 => same::<Float32Type>(array).map(|values| (Kind::Float, values)),
            DataType::Float64 => same::<Float64Type>(array).map(|values| (Kind::Double, values)),
            DataType::Boolean => array.as_boolean_opt().map(|array| (Kind::Bool, Values::Bits(array.values().clone()))),
            DataType::UInt16 => native::<UInt16Type>(array).map(|values| (Kind::Int, Values::U16(values))),
            DataType::UInt32 => native::<UInt32Type>(array).map(|values| (Kind::Int64, Values::U32(values))),
            DataType::UInt64 => native::<UInt64Type>(array).map(|values| (Kind::Int64, Values::U64(values))),
            _ => None,
        };
        found
            .map(|(kind, values)| (kind, None, values))
            .ok_or_else(|| TensorError::Unsupported { column: self.name.to_owned(), dtype: array.data_type().clone() })
    }
}

/// A length as libtorch counts; one too long for it becomes one that no memory holds, which the shim refuses.
fn dimension(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "tensor_tests.rs"]
mod tests;
