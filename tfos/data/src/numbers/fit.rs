//! Which files the decoder takes, and which columns and row groups of them.

use std::ops::Range;

use datafusion::arrow::datatypes::{DataType, Field, SchemaRef};
use datafusion::datasource::listing::{FileRange, PartitionedFile};
use datafusion::datasource::physical_plan::parquet::{ParquetAccessPlan, ParquetRowSelection};
use datafusion::parquet::arrow::arrow_reader::ArrowReaderMetadata;
use datafusion::parquet::basic::{Encoding, Type};
use datafusion::parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use datafusion::parquet::schema::types::SchemaDescriptor;

use super::column::{Layout, ListColumn, Numbers, stored};
use super::levels::Meaning;

/// A file that the decoder takes.
#[derive(Debug)]
pub(super) struct Fit {
    /// What is read, in the order of the projection.
    pub schema: SchemaRef,
    pub columns: Vec<Column>,
    pub metadata: ArrowReaderMetadata,
    /// Row groups to read, in the order of the file.
    pub groups: Vec<Group>,
}

/// A column of the projection.
#[derive(Debug)]
pub(super) struct Column {
    /// Which of the file's columns it is.
    pub root: usize,
    /// Its first leaf.
    pub leaf: usize,
    /// The same for a column of numbers, or of lists of them.
    pub numbers: Option<Numbers>,
}

/// A row group of a file that fits.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub index: usize,
    pub rows: usize,
    /// Which columns of the projection the decoder reads; their encodings are known to it.
    pub numbers: Vec<usize>,
    /// The column chunks of the projection.
    pub ranges: Vec<Range<u64>>,
}

/// Whether the decoder may take a column like that.
pub(super) fn is_numbers(field: &Field) -> bool {
    stored(field.data_type()).is_some() || list_of_numbers(field).is_some()
}

/// A column of lists of numbers as the table has it, if it is one.
fn list_of_numbers(field: &Field) -> Option<ListColumn> {
    let (item, layout) = match field.data_type() {
        DataType::List(item) => (item, Layout::List),
        DataType::LargeList(item) => (item, Layout::LargeList),
        DataType::FixedSizeList(item, size) if *size > 0 => (item, Layout::Fixed(*size)),
        _ => return None,
    };
    stored(item.data_type())?;
    let fixed = match layout {
        Layout::Fixed(size) => usize::try_from(size).ok(),
        _ => None,
    };
    let meaning = Meaning { list_nullable: field.is_nullable(), item_nullable: item.is_nullable(), fixed };
    Some(ListColumn { item: item.clone(), layout, meaning })
}

impl Fit {
    /// `schema`: the columns of the projection, as the table has them.
    pub(super) fn of(file: &PartitionedFile, schema: &SchemaRef, metadata: ArrowReaderMetadata) -> Option<Self> {
        let extensions = &file.extensions;
        if extensions.get::<ParquetAccessPlan>().is_some() || extensions.get::<ParquetRowSelection>().is_some() {
            return None;
        }
        let column = |field: &std::sync::Arc<Field>| column(field, &metadata);
        let columns = schema.fields().iter().map(column).collect::<Option<Vec<_>>>()?;
        let stored = metadata.parquet_schema();
        let mut groups = vec![];
        for (index, group) in metadata.metadata().row_groups().iter().enumerate() {
            if in_range(group, file.range.as_ref())? {
                groups.push(Group::of(index, group, &columns, stored, file.object_meta.size)?);
            }
        }
        if groups.iter().all(|group| group.numbers.is_empty()) {
            return None;
        }
        Some(Self { schema: schema.clone(), columns, metadata, groups })
    }
}

/// The column of the file that `wanted` is read from, if its rows need no conversion.
fn column(wanted: &Field, metadata: &ArrowReaderMetadata) -> Option<Column> {
    let (file, stored_as) = (metadata.schema(), metadata.parquet_schema());
    let mut named = file.fields().iter().enumerate().filter(|(_, field)| field.name() == wanted.name());
    let ((root, found), None) = (named.next()?, named.next()) else { return None };
    if found.is_nullable() && !wanted.is_nullable() {
        return None;
    }
    let leaves: Vec<usize> =
        (0..stored_as.num_columns()).filter(|leaf| stored_as.get_column_root_idx(*leaf) == root).collect();
    let leaf = *leaves.first()?;
    if let (Some(of_table), Some(of_file), [_]) = (list_of_numbers(wanted), list_of_numbers(found), &leaves[..])
        && of_table.layout == of_file.layout
        && of_table.item.data_type() == of_file.item.data_type()
        && (of_table.item.is_nullable() || !of_file.item.is_nullable())
    {
        let descriptor = stored_as.column(leaf);
        // What is null is as the file says; the names of elements are as the table says.
        let lists = ListColumn { meaning: of_file.meaning, ..of_table };
        let levels = (descriptor.max_rep_level(), u32::try_from(descriptor.max_def_level()));
        if levels == (1, Ok(lists.meaning.max_def()))
            && Some(descriptor.physical_type()) == stored(lists.item.data_type())
        {
            return Some(Column { root, leaf, numbers: Some(Numbers::Lists(lists)) });
        }
    }
    if let Some(kind) = stored(wanted.data_type())
        && found.data_type() == wanted.data_type()
    {
        let (descriptor, nullable) = (stored_as.column(leaf), found.is_nullable());
        let levels = (descriptor.max_rep_level(), descriptor.max_def_level());
        if levels == (0, i16::from(nullable)) && descriptor.physical_type() == kind {
            let number = wanted.data_type().clone();
            return Some(Column { root, leaf, numbers: Some(Numbers::Flat { number, nullable }) });
        }
    }
    // Arrow's reader gives the others. Of a struct DataFusion's reads only what is asked for, and it converts INT96.
    let plain = !matches!(found.data_type(), DataType::Struct(_) | DataType::Map(..))
        && leaves.iter().all(|leaf| stored_as.column(*leaf).physical_type() != Type::INT96);
    (plain && found.data_type() == wanted.data_type()).then_some(Column { root, leaf, numbers: None })
}

/// DataFusion's rule: a row group belongs to the range in which its first page begins.
fn in_range(group: &RowGroupMetaData, range: Option<&FileRange>) -> Option<bool> {
    let first = group.columns().first()?;
    let offset = first.dictionary_page_offset().unwrap_or_else(|| first.data_page_offset());
    Some(range.is_none_or(|range| range.contains(offset)))
}

impl Group {
    fn of(
        index: usize,
        group: &RowGroupMetaData,
        columns: &[Column],
        stored: &SchemaDescriptor,
        file_size: u64,
    ) -> Option<Self> {
        let rows = usize::try_from(group.num_rows()).ok()?;
        let chunks = group.columns();
        if chunks.len() != stored.num_columns() {
            return None;
        }
        let of_projection = |leaf: &usize| columns.iter().any(|c| c.root == stored.get_column_root_idx(*leaf));
        let ranges = (0..chunks.len())
            .filter(of_projection)
            .map(|leaf| range(&chunks[leaf], file_size))
            .collect::<Option<_>>()?;
        let known = |column: &Column| column.numbers.is_some() && chunks[column.leaf].encodings().all(is_known);
        let numbers = (0..columns.len()).filter(|column| known(&columns[*column])).collect();
        Some(Self { index, rows, numbers, ranges })
    }
}

/// Where the chunk is, if that is in the file.
fn range(chunk: &ColumnChunkMetaData, file_size: u64) -> Option<Range<u64>> {
    let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
    let (start, size) = (u64::try_from(start).ok()?, u64::try_from(chunk.compressed_size()).ok()?);
    let end = start.checked_add(size)?;
    (end <= file_size).then_some(start..end)
}

fn is_known(encoding: Encoding) -> bool {
    // Some writers name the old packed bits for levels that a column does not have; a page with others is refused.
    #[expect(deprecated, reason = "files have it")]
    let levels = matches!(encoding, Encoding::RLE | Encoding::BIT_PACKED);
    levels || matches!(encoding, Encoding::PLAIN | Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY)
}
