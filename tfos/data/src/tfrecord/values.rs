//! One column under construction: values are appended straight from the wire.
//!
//! A feature fits a column by this table; everything else is an [`ExampleFault::Kind`].
//!
//! | feature | column of |
//! |---|---|
//! | Int64List | int8 to int64, uint8 to uint64 (checked), bool (not zero), float32, float64 |
//! | FloatList | float32, float64 |
//! | BytesList | binary, string, their large forms; uint8: the raw bytes of all values |

use std::sync::Arc;

use datafusion::arrow::array::types::*;
use datafusion::arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, BooleanArray, BooleanBufferBuilder, FixedSizeListArray, GenericBinaryArray,
    GenericStringArray, LargeListArray, ListArray, NullBufferBuilder, OffsetSizeTrait, PrimitiveArray,
};
use datafusion::arrow::buffer::{BooleanBuffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use datafusion::arrow::datatypes::{DataType, FieldRef};

use super::example::{Feature, Kind, Wire};
use crate::error::{Error, ExampleFault, Result};

/// A column's name, type and the values so far.
#[derive(Debug)]
pub(crate) struct Column {
    name: String,
    shape: Shape,
    values: Values,
    nulls: NullBufferBuilder,
}

#[derive(Debug)]
enum Shape {
    Scalar,
    /// Item field, and where each row's values end.
    List(FieldRef, Vec<i32>),
    LargeList(FieldRef, Vec<i64>),
    Fixed(FieldRef, usize),
}

#[derive(Debug)]
enum Values {
    Bool(BooleanBufferBuilder),
    I8(Vec<i8>),
    I16(Vec<i16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    U8(Vec<u8>),
    U16(Vec<u16>),
    U32(Vec<u32>),
    U64(Vec<u64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bytes { ends: Vec<i32>, data: Vec<u8>, utf8: bool },
    LargeBytes { ends: Vec<i64>, data: Vec<u8>, utf8: bool },
}

impl Column {
    pub(crate) fn new(name: &str, data_type: &DataType) -> Result<Self> {
        let (shape, value) = match data_type {
            DataType::List(item) => (Shape::List(item.clone(), vec![0]), item.data_type()),
            DataType::LargeList(item) => (Shape::LargeList(item.clone(), vec![0]), item.data_type()),
            DataType::FixedSizeList(item, n) if *n > 0 => (Shape::Fixed(item.clone(), *n as usize), item.data_type()),
            other => (Shape::Scalar, other),
        };
        let Some(values) = Values::new(value) else {
            return Err(Error::Unsupported {
                what: format!("column `{name}` of type {data_type} in a TFRecord file"),
                instead: "use binary, string, bool, an integer, float32 or float64, or a list of one of these".into(),
            });
        };
        Ok(Self { name: name.to_owned(), shape, values, nulls: NullBufferBuilder::new(0) })
    }

    #[inline(always)]
    pub(crate) fn append(&mut self, feature: Feature<'_>) -> Wire<()> {
        // Tables of many columns have one number in each.
        if let Shape::Scalar = self.shape {
            let taken = match &mut self.values {
                Values::I64(to) => feature.one_int().map(|value| to.push(value)),
                Values::F32(to) => feature.one_float().map(|value| to.push(value)),
                _ => None,
            };
            if taken.is_some() {
                self.nulls.append_non_null();
                return Ok(());
            }
        }
        self.append_any(feature)
    }

    fn append_any(&mut self, feature: Feature<'_>) -> Wire<()> {
        let found = self.values.append(&self.name, feature)?;
        match &mut self.shape {
            // An empty list where one value is wanted says "no value".
            Shape::Scalar if found == 0 => {
                self.values.pad(1);
                self.nulls.append_null();
                return Ok(());
            }
            Shape::Scalar if found == 1 => {}
            Shape::Scalar => return Err(self.count(1, found)),
            Shape::Fixed(_, n) if *n == found => {}
            Shape::Fixed(_, n) => {
                let wanted = *n;
                return Err(self.count(wanted, found));
            }
            Shape::List(_, ends) => match i32::try_from(self.values.len()) {
                Ok(end) => ends.push(end),
                Err(_) => return Err(too_large(&self.name)),
            },
            Shape::LargeList(_, ends) => ends.push(self.values.len() as i64),
        }
        self.nulls.append_non_null();
        Ok(())
    }

    pub(crate) fn append_null(&mut self) {
        self.nulls.append_null();
        match &mut self.shape {
            Shape::Scalar => self.values.pad(1),
            Shape::Fixed(_, n) => self.values.pad(*n),
            Shape::List(_, ends) => ends.push(ends.last().copied().unwrap_or(0)),
            Shape::LargeList(_, ends) => ends.push(ends.last().copied().unwrap_or(0)),
        }
    }

    /// Takes back what was appended after the first `rows` rows.
    pub(crate) fn truncate(&mut self, rows: usize) {
        self.nulls.truncate(rows);
        let values = match &mut self.shape {
            Shape::Scalar => rows,
            Shape::Fixed(_, n) => rows * *n,
            Shape::List(_, ends) => {
                ends.truncate(rows + 1);
                ends.last().map_or(0, |end| *end as usize)
            }
            Shape::LargeList(_, ends) => {
                ends.truncate(rows + 1);
                ends.last().map_or(0, |end| *end as usize)
            }
        };
        self.values.truncate(values);
    }

    /// About how many bytes the column holds.
    pub(crate) fn bytes(&self) -> usize {
        self.values.bytes()
    }

    /// Bytes that a row without this feature takes.
    pub(crate) fn least(&self) -> usize {
        match &self.shape {
            Shape::Fixed(_, n) => n.saturating_mul(self.values.data_type().primitive_width().unwrap_or(8)),
            _ => 0,
        }
    }

    /// The column as an array; a new one begins.
    pub(crate) fn finish(&mut self) -> Result<ArrayRef> {
        let nulls = self.nulls.finish();
        Ok(match &mut self.shape {
            Shape::Scalar => self.values.finish(nulls)?,
            Shape::List(item, ends) => {
                let offsets = OffsetBuffer::new(restart(ends).into());
                Arc::new(ListArray::try_new(item.clone(), offsets, self.values.finish(None)?, nulls)?)
            }
            Shape::LargeList(item, ends) => {
                let offsets = OffsetBuffer::new(restart(ends).into());
                Arc::new(LargeListArray::try_new(item.clone(), offsets, self.values.finish(None)?, nulls)?)
            }
            Shape::Fixed(item, n) => {
                Arc::new(FixedSizeListArray::try_new(item.clone(), *n as i32, self.values.finish(None)?, nulls)?)
            }
        })
    }

    #[cold]
    fn count(&self, wanted: usize, found: usize) -> Box<ExampleFault> {
        Box::new(ExampleFault::Count { feature: self.name.clone(), wanted, found })
    }
}

impl Values {
    fn new(data_type: &DataType) -> Option<Self> {
        Some(match data_type {
            DataType::Boolean => Self::Bool(BooleanBufferBuilder::new(0)),
            DataType::Int8 => Self::I8(Vec::new()),
            DataType::Int16 => Self::I16(Vec::new()),
            DataType::Int32 => Self::I32(Vec::new()),
            DataType::Int64 => Self::I64(Vec::new()),
            DataType::UInt8 => Self::U8(Vec::new()),
            DataType::UInt16 => Self::U16(Vec::new()),
            DataType::UInt32 => Self::U32(Vec::new()),
            DataType::UInt64 => Self::U64(Vec::new()),
            DataType::Float32 => Self::F32(Vec::new()),
            DataType::Float64 => Self::F64(Vec::new()),
            DataType::Binary | DataType::Utf8 => {
                Self::Bytes { ends: vec![0], data: Vec::new(), utf8: *data_type == DataType::Utf8 }
            }
            DataType::LargeBinary | DataType::LargeUtf8 => {
                Self::LargeBytes { ends: vec![0], data: Vec::new(), utf8: *data_type == DataType::LargeUtf8 }
            }
            _ => return None,
        })
    }

    /// Appends every value of the feature and says how many there were.
    #[inline]
    fn append(&mut self, name: &str, feature: Feature<'_>) -> Wire<usize> {
        let before = self.len();
        match (&mut *self, feature.kind) {
            (Self::I64(to), Kind::Int64) => feature.for_each_int(|v| {
                to.push(v);
                Ok(())
            })?,
            (Self::Bool(to), Kind::Int64) => feature.for_each_int(|v| {
                to.append(v != 0);
                Ok(())
            })?,
            (Self::F32(to), Kind::Int64) => feature.for_each_int(|v| {
                to.push(v as f32);
                Ok(())
            })?,
            (Self::F64(to), Kind::Int64) => feature.for_each_int(|v| {
                to.push(v as f64);
                Ok(())
            })?,
            (Self::I8(to), Kind::Int64) => narrow(to, name, "int8", feature)?,
            (Self::I16(to), Kind::Int64) => narrow(to, name, "int16", feature)?,
            (Self::I32(to), Kind::Int64) => narrow(to, name, "int32", feature)?,
            (Self::U8(to), Kind::Int64) => narrow(to, name, "uint8", feature)?,
            (Self::U16(to), Kind::Int64) => narrow(to, name, "uint16", feature)?,
            (Self::U32(to), Kind::Int64) => narrow(to, name, "uint32", feature)?,
            (Self::U64(to), Kind::Int64) => narrow(to, name, "uint64", feature)?,
            (Self::F32(to), Kind::Float) => feature.for_each_floats(|run| {
                to.extend(floats(run));
                Ok(())
            })?,
            (Self::F64(to), Kind::Float) => feature.for_each_floats(|run| {
                to.extend(floats(run).map(f64::from));
                Ok(())
            })?,
            (Self::U8(to), Kind::Bytes) => feature.for_each_bytes(|v| {
                to.extend_from_slice(v);
                Ok(())
            })?,
            (Self::Bytes { ends, data, utf8 }, Kind::Bytes) => feature.for_each_bytes(|v| {
                check_utf8(name, v, *utf8)?;
                data.extend_from_slice(v);
                ends.push(i32::try_from(data.len()).map_err(|_| too_large(name))?);
                Ok(())
            })?,
            (Self::LargeBytes { ends, data, utf8 }, Kind::Bytes) => feature.for_each_bytes(|v| {
                check_utf8(name, v, *utf8)?;
                data.extend_from_slice(v);
                ends.push(data.len() as i64);
                Ok(())
            })?,
            (_, found) => {
                return Err(Box::new(ExampleFault::Kind {
                    feature: name.to_owned(),
                    wanted: self.data_type().to_string(),
                    found: found.name(),
                    found_hint: found.hint(),
                }));
            }
        }
        Ok(self.len() - before)
    }

    fn len(&self) -> usize {
        match self {
            Self::Bool(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::U8(v) => v.len(),
            Self::U16(v) => v.len(),
            Self::U32(v) => v.len(),
            Self::U64(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::Bytes { ends, .. } => ends.len() - 1,
            Self::LargeBytes { ends, .. } => ends.len() - 1,
        }
    }

    /// Keeps the first `n` values.
    fn truncate(&mut self, n: usize) {
        match self {
            Self::Bool(v) => v.truncate(n),
            Self::I8(v) => v.truncate(n),
            Self::I16(v) => v.truncate(n),
            Self::I32(v) => v.truncate(n),
            Self::I64(v) => v.truncate(n),
            Self::U8(v) => v.truncate(n),
            Self::U16(v) => v.truncate(n),
            Self::U32(v) => v.truncate(n),
            Self::U64(v) => v.truncate(n),
            Self::F32(v) => v.truncate(n),
            Self::F64(v) => v.truncate(n),
            Self::Bytes { ends, data, .. } => {
                ends.truncate(n + 1);
                data.truncate(ends.last().map_or(0, |end| *end as usize));
            }
            Self::LargeBytes { ends, data, .. } => {
                ends.truncate(n + 1);
                data.truncate(ends.last().map_or(0, |end| *end as usize));
            }
        }
    }

    /// Adds `n` values that a null covers.
    fn pad(&mut self, n: usize) {
        match self {
            Self::Bool(v) => v.append_n(n, false),
            Self::I8(v) => v.resize(v.len() + n, 0),
            Self::I16(v) => v.resize(v.len() + n, 0),
            Self::I32(v) => v.resize(v.len() + n, 0),
            Self::I64(v) => v.resize(v.len() + n, 0),
            Self::U8(v) => v.resize(v.len() + n, 0),
            Self::U16(v) => v.resize(v.len() + n, 0),
            Self::U32(v) => v.resize(v.len() + n, 0),
            Self::U64(v) => v.resize(v.len() + n, 0),
            Self::F32(v) => v.resize(v.len() + n, 0.0),
            Self::F64(v) => v.resize(v.len() + n, 0.0),
            Self::Bytes { ends, .. } => ends.resize(ends.len() + n, ends.last().copied().unwrap_or(0)),
            Self::LargeBytes { ends, .. } => ends.resize(ends.len() + n, ends.last().copied().unwrap_or(0)),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Bool(v) => v.len() / 8,
            Self::Bytes { data, ends, .. } => data.len() + 4 * ends.len(),
            Self::LargeBytes { data, ends, .. } => data.len() + 8 * ends.len(),
            other => other.len() * other.data_type().primitive_width().unwrap_or(8),
        }
    }

    fn data_type(&self) -> DataType {
        match self {
            Self::Bool(_) => DataType::Boolean,
            Self::I8(_) => DataType::Int8,
            Self::I16(_) => DataType::Int16,
            Self::I32(_) => DataType::Int32,
            Self::I64(_) => DataType::Int64,
            Self::U8(_) => DataType::UInt8,
            Self::U16(_) => DataType::UInt16,
            Self::U32(_) => DataType::UInt32,
            Self::U64(_) => DataType::UInt64,
            Self::F32(_) => DataType::Float32,
            Self::F64(_) => DataType::Float64,
            Self::Bytes { utf8, .. } => {
                if *utf8 {
                    DataType::Utf8
                } else {
                    DataType::Binary
                }
            }
            Self::LargeBytes { utf8, .. } => {
                if *utf8 {
                    DataType::LargeUtf8
                } else {
                    DataType::LargeBinary
                }
            }
        }
    }

    fn finish(&mut self, nulls: Option<NullBuffer>) -> Result<ArrayRef> {
        Ok(match self {
            Self::Bool(v) => {
                let bits: BooleanBuffer = v.finish();
                Arc::new(BooleanArray::new(bits, nulls))
            }
            Self::I8(v) => primitive::<Int8Type>(v, nulls)?,
            Self::I16(v) => primitive::<Int16Type>(v, nulls)?,
            Self::I32(v) => primitive::<Int32Type>(v, nulls)?,
            Self::I64(v) => primitive::<Int64Type>(v, nulls)?,
            Self::U8(v) => primitive::<UInt8Type>(v, nulls)?,
            Self::U16(v) => primitive::<UInt16Type>(v, nulls)?,
            Self::U32(v) => primitive::<UInt32Type>(v, nulls)?,
            Self::U64(v) => primitive::<UInt64Type>(v, nulls)?,
            Self::F32(v) => primitive::<Float32Type>(v, nulls)?,
            Self::F64(v) => primitive::<Float64Type>(v, nulls)?,
            Self::Bytes { ends, data, utf8 } => byte_array(ends, data, *utf8, nulls)?,
            Self::LargeBytes { ends, data, utf8 } => byte_array(ends, data, *utf8, nulls)?,
        })
    }
}

#[inline]
fn narrow<T: TryFrom<i64>>(to: &mut Vec<T>, name: &str, wanted: &'static str, feature: Feature<'_>) -> Wire<()> {
    feature.for_each_int(|value| {
        to.push(
            T::try_from(value)
                .map_err(|_| Box::new(ExampleFault::Range { feature: name.to_owned(), value, wanted }))?,
        );
        Ok(())
    })
}

#[cold]
fn too_large(name: &str) -> Box<ExampleFault> {
    Box::new(ExampleFault::TooLarge { feature: name.to_owned() })
}

#[inline]
fn floats(run: &[u8]) -> impl Iterator<Item = f32> + '_ {
    run.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))
}

#[inline]
fn check_utf8(name: &str, value: &[u8], utf8: bool) -> Wire<()> {
    if utf8 && std::str::from_utf8(value).is_err() {
        return Err(Box::new(ExampleFault::Utf8 { feature: name.to_owned() }));
    }
    Ok(())
}

/// Takes the offsets out and leaves those of an empty column with room for as many.
fn restart<T: OffsetSizeTrait>(ends: &mut Vec<T>) -> Vec<T> {
    let mut next = Vec::with_capacity(ends.len());
    next.push(T::default());
    std::mem::replace(ends, next)
}

fn primitive<T: ArrowPrimitiveType>(values: &mut Vec<T::Native>, nulls: Option<NullBuffer>) -> Result<ArrayRef> {
    // The next batch is likely as large as this one.
    let next = Vec::with_capacity(values.len());
    let buffer = ScalarBuffer::from(std::mem::replace(values, next));
    Ok(Arc::new(PrimitiveArray::<T>::try_new(buffer, nulls)?))
}

fn byte_array<O: OffsetSizeTrait>(
    ends: &mut Vec<O>,
    data: &mut Vec<u8>,
    utf8: bool,
    nulls: Option<NullBuffer>,
) -> Result<ArrayRef> {
    let offsets = OffsetBuffer::new(restart(ends).into());
    let next = Vec::with_capacity(data.len());
    let data = std::mem::replace(data, next).into();
    let array: Arc<dyn Array> = if utf8 {
        Arc::new(GenericStringArray::<O>::try_new(offsets, data, nulls)?)
    } else {
        Arc::new(GenericBinaryArray::<O>::try_new(offsets, data, nulls)?)
    };
    Ok(array)
}
