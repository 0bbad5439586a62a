//! Record batches to records, one `tf.train.Example` per row.
//!
//! | column | feature |
//! |---|---|
//! | float16 to float64 | FloatList (the format has no doubles: values of float64 are rounded, and counted) |
//! | bool, every integer | Int64List |
//! | string, binary, their large and view forms | BytesList |
//! | list, large list, fixed-size list of these | the same list with every value |
//! | list of uint8 | BytesList with one value, the raw bytes: how images are usually stored |
//!
//! A null is an absent feature. Other types are refused by column name.

use std::collections::BTreeMap;

use datafusion::arrow::array::cast::AsArray;
use datafusion::arrow::array::types::{Float32Type, Float64Type, Int64Type, UInt8Type};
use datafusion::arrow::array::{
    Array, ArrayRef, BinaryArray, FixedSizeListArray, Float32Array, Float64Array, GenericListArray, Int64Array,
    LargeListArray, ListArray, OffsetSizeTrait, RecordBatch,
};
use datafusion::arrow::compute::CastOptions;
use datafusion::arrow::compute::cast_with_options;
use datafusion::arrow::datatypes::{DataType, Schema};

use super::encode::ExampleWriter;
use crate::error::{Error, Result};

/// Encodes batches row by row.
#[derive(Debug, Default)]
pub struct ExampleEncoder {
    writer: ExampleWriter,
    rounded: BTreeMap<String, u64>,
}

struct Column {
    name: String,
    rows: Rows,
    values: Flat,
    /// Row nulls; those of the values are refused.
    nulls: ArrayRef,
    rounded: u64,
}

/// Which values belong to a row.
enum Rows {
    One,
    /// With the offset of the first value that is at hand.
    List(ListArray, i32),
    Large(LargeListArray, i64),
    Fixed(usize),
}

enum Flat {
    Floats(Float32Array),
    Ints(Int64Array),
    Bytes(BinaryArray),
    /// Each row's bytes are one value.
    Raw(Vec<u8>),
}

impl ExampleEncoder {
    /// Can every column be written? A test before any file is begun.
    pub fn check(schema: &Schema) -> Result<()> {
        schema.fields().iter().try_for_each(|f| target(f.name(), f.data_type()).map(drop))
    }

    /// Calls `each` with every row's record.
    pub fn encode(&mut self, batch: &RecordBatch, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let columns = batch.schema_ref().fields().iter().zip(batch.columns());
        let columns = columns.map(|(f, array)| Column::new(f.name(), array)).collect::<Result<Vec<_>>>()?;
        for column in columns.iter().filter(|column| column.rounded > 0) {
            *self.rounded.entry(column.name.clone()).or_default() += column.rounded;
        }
        for row in 0..batch.num_rows() {
            for column in &columns {
                column.write(row, &mut self.writer);
            }
            each(self.writer.finish())?;
        }
        Ok(())
    }
}

impl ExampleEncoder {
    /// Columns of float64 with values that are no float32, and how many of these were rounded so far.
    pub fn rounded(&self) -> &BTreeMap<String, u64> {
        &self.rounded
    }
}

/// What the values of a column are cast to; `UInt8` for raw bytes.
fn target(name: &str, data_type: &DataType) -> Result<DataType> {
    let (value, listed) = match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => (item.data_type(), true),
        other => (other, false),
    };
    match value {
        DataType::UInt8 if listed => Ok(DataType::UInt8),
        DataType::Float16 | DataType::Float32 | DataType::Float64 => Ok(DataType::Float32),
        DataType::Boolean => Ok(DataType::Int64),
        t if t.is_integer() => Ok(DataType::Int64),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            Ok(DataType::Binary)
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Ok(DataType::Binary),
        _ => Err(Error::Unsupported {
            what: format!("column `{name}` of type {data_type} in a TFRecord file"),
            instead: "cast it in the query, or leave it out".into(),
        }),
    }
}

impl Column {
    fn new(name: &str, array: &ArrayRef) -> Result<Self> {
        let target = target(name, array.data_type())?;
        let (rows, values) = match array.data_type() {
            DataType::List(_) => {
                let (list, first, values) = list_values::<i32>(array);
                (Rows::List(list, first), values)
            }
            DataType::LargeList(_) => {
                let (list, first, values) = list_values::<i64>(array);
                (Rows::Large(list, first), values)
            }
            DataType::FixedSizeList(_, n) => (Rows::Fixed(*n as usize), fixed_values(array.as_fixed_size_list())),
            _ => (Rows::One, array.clone()),
        };
        // Inside a list a null has no form in an Example; the nulls of a scalar column are its rows'.
        if !matches!(rows, Rows::One) && values.null_count() > 0 && !null_rows_only(array, &values) {
            return Err(Error::Unsupported {
                what: format!("column `{name}`: a null inside a list in a TFRecord file"),
                instead: "replace it in the query, for example with array_remove_all or coalesce".into(),
            });
        }
        let mut rounded = 0;
        let values = match target {
            DataType::UInt8 => Flat::Raw(values.as_primitive::<UInt8Type>().values().to_vec()),
            DataType::Float32 => {
                let floats = strict(&values, &target)?.as_primitive::<Float32Type>().clone();
                rounded = values.as_primitive_opt::<Float64Type>().map_or(0, |exact| differing(exact, &floats));
                Flat::Floats(floats)
            }
            DataType::Int64 => Flat::Ints(strict(&values, &target)?.as_primitive::<Int64Type>().clone()),
            _ => Flat::Bytes(strict(&values, &target)?.as_binary().clone()),
        };
        Ok(Self { name: name.to_owned(), rows, values, nulls: array.clone(), rounded })
    }

    fn write(&self, row: usize, to: &mut ExampleWriter) {
        if self.nulls.is_null(row) {
            return;
        }
        let (from, until) = match &self.rows {
            Rows::One => (row, row + 1),
            Rows::List(list, first) => {
                let offsets = list.value_offsets();
                ((offsets[row] - first) as usize, (offsets[row + 1] - first) as usize)
            }
            Rows::Large(list, first) => {
                let offsets = list.value_offsets();
                ((offsets[row] - first) as usize, (offsets[row + 1] - first) as usize)
            }
            Rows::Fixed(n) => (row * n, (row + 1) * n),
        };
        let name = &self.name;
        match &self.values {
            Flat::Floats(v) => to.floats(name, v.values()[from..until].iter().copied()),
            Flat::Ints(v) => to.ints(name, v.values()[from..until].iter().copied()),
            Flat::Bytes(v) => to.bytes(name, (from..until).map(|i| v.value(i))),
            Flat::Raw(v) => to.bytes(name, std::iter::once(&v[from..until])),
        }
    }
}

/// An error rather than a null where a value does not fit (a uint64 above the largest int64).
fn strict(values: &ArrayRef, target: &DataType) -> Result<ArrayRef> {
    Ok(cast_with_options(values, target, &CastOptions { safe: false, ..CastOptions::default() })?)
}

/// The list, and of its values those of its own rows: a slice's array keeps those of the rows that were cut off.
fn list_values<O: OffsetSizeTrait>(array: &ArrayRef) -> (GenericListArray<O>, O, ArrayRef) {
    let list = array.as_list::<O>().clone();
    let bounds = list.value_offsets().first().copied().zip(list.value_offsets().last().copied());
    let (first, last) = bounds.unwrap_or_default();
    let values = list.values().slice(first.as_usize(), (last - first).as_usize());
    (list, first, values)
}

/// How many values are no longer what they were.
fn differing(exact: &Float64Array, floats: &Float32Array) -> u64 {
    let pairs = exact.iter().zip(floats.iter());
    let differs = |pair: &(Option<f64>, Option<f32>)| match *pair {
        (Some(exact), Some(float)) => f64::from(float) != exact && !exact.is_nan(),
        _ => false,
    };
    pairs.filter(differs).count() as u64
}

/// The values of the rows of `array`: a slice's array keeps those of the rows that were cut off.
fn fixed_values(array: &FixedSizeListArray) -> ArrayRef {
    array.values().slice(array.value_offset(0) as usize, array.len() * array.value_length() as usize)
}

/// Do all null values lie under null rows of a fixed-size list?
fn null_rows_only(array: &ArrayRef, values: &ArrayRef) -> bool {
    let DataType::FixedSizeList(_, n) = array.data_type() else {
        return false;
    };
    (0..values.len()).all(|i| values.is_valid(i) || array.is_null(i / *n as usize))
}
