//! The columns that are read here: what they are, and a reader for each.

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::arrow::error::ArrowError;
use datafusion::parquet::basic::Type;
use datafusion::parquet::file::metadata::ColumnChunkMetaData;

use super::Undecodable;
use super::chunks::Chunks;
use super::flat::FlatReader;
use super::levels::Meaning;
use super::lists::ListReader;
use super::values::Number;

macro_rules! each_number {
    ($with:ident) => {
        $with! {
            UInt8 => UInt8Type,
            Int8 => Int8Type,
            UInt16 => UInt16Type,
            Int16 => Int16Type,
            UInt32 => UInt32Type,
            Int32 => Int32Type,
            UInt64 => UInt64Type,
            Int64 => Int64Type,
            Float32 => Float32Type,
            Float64 => Float64Type,
        }
    };
}

/// A column of numbers, or of lists of them, as the table has it.
#[derive(Debug, Clone)]
pub(super) enum Numbers {
    Flat { number: DataType, nullable: bool },
    Lists(ListColumn),
}

/// How the lists are laid out in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    List,
    LargeList,
    Fixed(i32),
}

/// A column of lists of numbers, as the table has it.
#[derive(Debug, Clone)]
pub(super) struct ListColumn {
    pub item: FieldRef,
    pub layout: Layout,
    pub meaning: Meaning,
}

/// Reads a column chunk.
pub(super) trait ReadColumn: Send {
    /// The next `rows` rows, which there must be.
    fn read(&mut self, rows: usize) -> Result<ArrayRef, Undecodable>;
}

/// How numbers of this type are stored, where they can be read here.
pub(super) fn stored(item: &DataType) -> Option<Type> {
    macro_rules! stored {
        ($($kind:ident => $number:ty,)*) => {
            match item {
                $(DataType::$kind => Some(<$number>::STORED),)*
                _ => None,
            }
        };
    }
    each_number!(stored)
}

/// A reader of the chunk.
pub(super) fn open(
    column: &Numbers,
    chunk: &ColumnChunkMetaData,
    chunks: &Chunks,
    rows: usize,
) -> Result<Box<dyn ReadColumn>, Undecodable> {
    macro_rules! open {
        ($($kind:ident => $number:ty,)*) => {
            match column {
                $(Numbers::Flat { number: DataType::$kind, nullable } => {
                    Ok(Box::new(FlatReader::<$number>::open(*nullable, chunk, chunks, rows)?))
                })*
                $(Numbers::Lists(lists) if *lists.item.data_type() == DataType::$kind => {
                    Ok(Box::new(ListReader::<$number>::open(lists.clone(), chunk, chunks, rows)?))
                })*
                _ => Err(Undecodable("another type")),
            }
        };
    }
    each_number!(open)
}

impl From<ArrowError> for Undecodable {
    fn from(_: ArrowError) -> Self {
        Self("not an array")
    }
}
