//! Random tables with numbers and lists of them, written in every way that is read here.

use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Int64Array, ListArray, RecordBatch, StringArray, types::Int64Type};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::basic::{Compression, ZstdLevel};
use datafusion::parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};

/// Numbers that follow from a seed.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Less than `n`, which is not 0.
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }

    /// Once in `n` times.
    pub(super) fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A type of numbers, and bits of its positive ones.
fn number(random: &mut Random) -> (DataType, usize) {
    [
        (DataType::UInt8, 8),
        (DataType::Int8, 7),
        (DataType::UInt16, 16),
        (DataType::Int16, 15),
        (DataType::UInt32, 31),
        (DataType::Int32, 31),
        (DataType::UInt64, 40),
        (DataType::Int64, 40),
        (DataType::Float32, 20),
        (DataType::Float64, 40),
    ][random.below(10)]
    .clone()
}

/// A column of numbers; what it is like.
fn numbers(rows: usize, random: &mut Random) -> (Field, ArrayRef, String) {
    let (kind, bits) = number(random);
    let nulls = random.once_in(2).then(|| [1, 2, 9, 100][random.below(4)]);
    let distinct = 1usize << random.below(bits).min(random.below(14));
    let (mut run, mut value) = (0, None);
    let array = Int64Array::from_iter((0..rows).map(|_| {
        if run == 0 {
            run = if random.once_in(4) { 1 + random.below(60) } else { 1 };
            value = (!nulls.is_some_and(|n| random.once_in(n))).then(|| random.below(distinct) as i64);
        }
        run -= 1;
        value
    }));
    let nullable = nulls.is_some() || random.once_in(2);
    (
        Field::new("y", kind.clone(), nullable),
        cast(&array, &kind).unwrap(),
        format!("{kind} of {distinct}, nulls {nulls:?}"),
    )
}

/// A column of lists; what it is like.
fn lists(rows: usize, random: &mut Random) -> (Field, ArrayRef, String) {
    let (number, bits) = number(random);
    let (null_lists, null_items) = (random.once_in(3), random.once_in(3));
    let (list_nullable, item_nullable) = (null_lists || random.once_in(2), null_items || random.once_in(2));
    let layout = random.below(4);
    let length = [1, 2, 9, 40, 784][random.below(5)];
    let distinct = 1usize << random.below(bits).min(1 + random.below(12));
    let empty = layout != 0 && random.once_in(2);
    let list = |random: &mut Random| {
        let length = match layout {
            0 | 1 => length,
            _ => 1 + random.below(length),
        };
        let length = if empty && random.once_in(3) { 0 } else { length };
        let signed = matches!(number, DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64);
        let mut run = 0;
        let mut value = 0;
        let item = |_| {
            if run == 0 {
                run = if random.once_in(4) { 1 + random.below(60) } else { 1 };
                value = random.below(distinct) as i64 * if signed && random.once_in(2) { -1 } else { 1 };
            }
            run -= 1;
            (!null_items || !random.once_in(5)).then_some(value)
        };
        (0..length).map(item).collect::<Vec<_>>()
    };
    let lists = (0..rows).map(|_| (!null_lists || !random.once_in(4)).then(|| list(random))).collect::<Vec<_>>();
    let array: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists));
    let item = Arc::new(Field::new("item", number, item_nullable));
    let kind = match layout {
        0 => DataType::FixedSizeList(item, length as i32),
        3 => DataType::LargeList(item),
        _ => DataType::List(item),
    };
    let array = cast(&array, &kind).unwrap();
    (Field::new("x", kind.clone(), list_nullable), array, format!("{kind} of {distinct}"))
}

/// Writes a table; what it is like.
pub(super) fn table(path: &Path, random: &mut Random) -> String {
    let rows = if random.once_in(40) { 0 } else { 1 + random.below(500) };
    let (x, x_values, x_like) = lists(rows, random);
    let (z, z_values, z_like) = lists(rows, random);
    let (y, y_values, y_like) = numbers(rows, random);
    let label: ArrayRef = Arc::new(Int64Array::from_iter((0..rows as i64).map(|i| (i % 7 != 3).then_some(i))));
    let name: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(|i| format!("row {}", i % 90))));
    let fields = vec![
        Field::new("label", DataType::Int64, true),
        x,
        Field::new("name", DataType::Utf8, false),
        z.with_name("z"),
        y,
    ];
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![label, x_values, name, z_values, y_values]).unwrap();
    let version = [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0][random.below(2)];
    let compression =
        [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default()), Compression::LZ4_RAW]
            [random.below(4)];
    let (dictionary, page, entries) =
        (!random.once_in(3), [200, 3000, 1 << 20][random.below(3)], [60, 700, 1 << 20][random.below(3)]);
    let group = [50, 170, 1 << 20][random.below(3)];
    let properties = WriterProperties::builder()
        .set_writer_version(version)
        .set_compression(compression)
        .set_dictionary_enabled(dictionary)
        .set_dictionary_page_size_limit(entries)
        .set_data_page_size_limit(page)
        .set_write_batch_size([1, 16, 1024][random.below(3)])
        .set_max_row_group_row_count(Some(group))
        .set_statistics_enabled([EnabledStatistics::None, EnabledStatistics::Page][random.below(2)]);
    // The second version's own choice without a dictionary are encodings that go to arrow's reader.
    let properties = match version {
        WriterVersion::PARQUET_2_0 => {
            let path = |column: &str| vec![column.to_owned(), "list".into(), "item".into()].into();
            let plain = datafusion::parquet::basic::Encoding::PLAIN;
            let properties = properties.set_column_encoding(path("x"), plain).set_column_encoding(path("z"), plain);
            properties.set_column_encoding(vec!["y".to_owned()].into(), plain)
        }
        _ => properties,
    };
    let mut writer =
        ArrowWriter::try_new(std::fs::File::create(path).unwrap(), schema, Some(properties.build())).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    format!(
        "{rows} rows, x {x_like}, z {z_like}, y {y_like}, {version:?}, {compression}, dictionary {dictionary} {entries}, page {page}, group {group}"
    )
}
