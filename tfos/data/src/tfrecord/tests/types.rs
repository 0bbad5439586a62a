//! The type table of TensorFlowOnSpark's `dfutil`, row by row, there and back, with what it could not do: arrays of
//! strings and binaries, nulls, exact 64-bit floats or a count of those that were rounded.

use datafusion::arrow::array::types::{
    Float64Type, Int8Type, Int16Type, Int32Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use datafusion::arrow::buffer::OffsetBuffer;

use super::super::frame::Record;
use super::*;

/// What a column is called in a schema text, what inference makes of it, and its values: one a row, the last null.
struct Row {
    hint: &'static str,
    inferred: &'static str,
    values: ArrayRef,
}

fn row(hint: &'static str, inferred: &'static str, values: impl Array + 'static) -> Row {
    Row { hint, inferred, values: Arc::new(values) }
}

fn numbers<T: ArrowPrimitiveType>(values: [T::Native; 2]) -> PrimitiveArray<T> {
    values.into_iter().map(Some).chain([None]).collect()
}

fn table() -> Vec<Row> {
    let text = [Some("ünï"), Some(""), None];
    let bytes = [Some(b"\xff\x00".as_slice()), Some(b""), None];
    vec![
        row("float32", "float32", numbers::<Float32Type>([1.5, f32::MIN])),
        row("float64", "float32", numbers::<Float64Type>([-0.5, f64::INFINITY])),
        row("bool", "int64", BooleanArray::from(vec![Some(true), Some(false), None])),
        row("int8", "int64", numbers::<Int8Type>([i8::MIN, i8::MAX])),
        row("int16", "int64", numbers::<Int16Type>([i16::MIN, i16::MAX])),
        row("int32", "int64", numbers::<Int32Type>([i32::MIN, i32::MAX])),
        row("int64", "int64", numbers::<Int64Type>([i64::MIN, i64::MAX])),
        row("uint8", "int64", numbers::<UInt8Type>([0, u8::MAX])),
        row("uint16", "int64", numbers::<UInt16Type>([0, u16::MAX])),
        row("uint32", "int64", numbers::<UInt32Type>([0, u32::MAX])),
        row("uint64", "int64", numbers::<UInt64Type>([0, i64::MAX as u64])),
        row("string", "binary", StringArray::from_iter(text)),
        row("large_string", "binary", LargeStringArray::from_iter(text)),
        row("binary", "binary", BinaryArray::from_iter(bytes)),
        row("large_binary", "binary", LargeBinaryArray::from_iter(bytes)),
    ]
}

/// Each row a list: all values that are not null, none, null.
fn listed(values: &ArrayRef) -> ArrayRef {
    let item = Arc::new(Field::new_list_field(values.data_type().clone(), true));
    let offsets = OffsetBuffer::from_lengths([2, 0, 0]);
    let nulls = vec![true, true, false].into();
    Arc::new(ListArray::new(item, offsets, values.slice(0, 2), Some(nulls)))
}

fn read(bytes: &[u8], schema: SchemaRef) -> RecordBatch {
    let mut reader = FrameReader::new(bytes, "types.tfrecord");
    let mut decoder = BatchDecoder::new(schema, 100, "types.tfrecord".into()).unwrap();
    while let Some(record) = reader.next_record().unwrap() {
        decoder.push(record).unwrap();
    }
    decoder.finish().unwrap().unwrap()
}

fn inferred(bytes: &[u8]) -> String {
    let mut reader = FrameReader::new(bytes, "types.tfrecord");
    let mut inference = schema::Inference::default();
    while let Some(record) = reader.next_record().unwrap() {
        inference.add(record.data).unwrap();
    }
    schema_text(&inference.schema()).unwrap()
}

#[test]
fn each_row_of_the_table_comes_back_with_its_type_and_its_nulls() {
    for Row { hint, inferred: without_hint, values } in table() {
        let rows = batch(vec![("x", values)]);
        let bytes = frames(&rows);
        assert_eq!(read(&bytes, parse_schema(&format!("x:{hint}")).unwrap()), rows, "{hint}");
        assert_eq!(inferred(&bytes), format!("x:{without_hint}"), "{hint}");
    }
}

#[test]
fn so_does_each_row_as_an_array_an_empty_one_and_no_array() {
    for Row { hint, inferred: without_hint, values } in table() {
        let rows = batch(vec![("x", listed(&values))]);
        let bytes = frames(&rows);
        assert_eq!(read(&bytes, parse_schema(&format!("x:{hint}[]")).unwrap()), rows, "{hint}[]");
        // A list of uint8 is how images are stored: one value of raw bytes, also where the list is empty.
        let without_hint = if hint == "uint8" { "binary".to_owned() } else { format!("{without_hint}[]") };
        assert_eq!(inferred(&bytes), format!("x:{without_hint}"), "{hint}[]");
        // A slice has values of others before its own.
        assert_eq!(frames(&rows.slice(1, 2)), frames(&read(&bytes, rows.schema()).slice(1, 2)), "{hint}[]");
    }
}

#[test]
fn an_array_of_one_value_stays_an_array() {
    // Where TensorFlowOnSpark looked at the first record only, and made a scalar of it.
    let one = |n: usize| -> ArrayRef {
        let item = Arc::new(Field::new_list_field(DataType::Int64, true));
        let values = Int64Array::from_iter_values(0..n as i64);
        Arc::new(ListArray::new(item, OffsetBuffer::from_lengths([1, n - 1]), Arc::new(values), None))
    };
    let ragged = batch(vec![("x", one(4))]);
    assert_eq!(inferred(&frames(&ragged)), "x:int64[]");
    let single = batch(vec![("x", one(2))]);
    assert_eq!(read(&frames(&single), parse_schema("x:int64[]").unwrap()), single);
}

#[test]
fn rounded_values_are_counted_by_column() {
    let exact: ArrayRef = Arc::new(Float64Array::from(vec![Some(0.5), None, Some(f64::NAN)]));
    let rounded: ArrayRef = Arc::new(Float64Array::from(vec![0.1, 1e300, 0.25]));
    let list: ArrayRef = listed(&(Arc::new(Float64Array::from(vec![0.1, 0.2, 0.3])) as ArrayRef));
    let rows = batch(vec![("exact", exact), ("list", list), ("rounded", rounded)]);
    let mut encoder = ExampleEncoder::default();
    for part in [rows.slice(0, 1), rows.slice(1, 2)] {
        encoder.encode(&part, |_| Ok(())).unwrap();
    }
    let counted: Vec<_> = encoder.rounded().iter().map(|(column, n)| (column.as_str(), *n)).collect();
    assert_eq!(counted, [("list", 2), ("rounded", 2)]);
}

#[test]
fn what_an_example_cannot_hold_is_refused_by_name() {
    let item = |t: DataType| Arc::new(Field::new_list_field(t, true));
    let entry = Field::new("entries", DataType::Struct(vec![Field::new("k", DataType::Utf8, false)].into()), false);
    for t in [
        DataType::Date32,
        DataType::Decimal128(10, 2),
        DataType::Timestamp(datafusion::arrow::datatypes::TimeUnit::Second, None),
        DataType::List(item(DataType::List(item(DataType::Int64)))),
        DataType::Struct(vec![Field::new("a", DataType::Int64, true)].into()),
        DataType::Map(Arc::new(entry), false),
        DataType::Null,
    ] {
        let schema = Schema::new(vec![Field::new("odd", t.clone(), true)]);
        let error = ExampleEncoder::check(&schema).unwrap_err();
        assert!(matches!(&error, Error::Unsupported { what, .. } if what.contains("`odd`")), "{t}: {error}");
        assert!(error.is_user());
    }
}

/// Two Examples one after the other are one message, in which the later of two equal names counts.
#[test]
fn of_a_feature_that_comes_twice_the_last_one_counts() {
    let schema = parse_schema("a:int64,b:int64[],c:float32[2],d:string,e:bool,f:large_binary[],g:float32").unwrap();
    let mut writer = ExampleWriter::default();
    let mut all = |n: i64| {
        writer.ints("a", [n << 20].into_iter());
        writer.ints("b", 0..n);
        writer.floats("c", [n as f32, 0.5].into_iter());
        writer.bytes("d", ["x".repeat(n as usize).as_bytes()].into_iter());
        writer.ints("e", [n % 2].into_iter());
        writer.bytes("f", (0..n).map(|_| b"yy".as_slice()));
        writer.floats("g", [n as f32].into_iter());
        writer.finish().to_vec()
    };
    let records: Vec<_> = (1..5).map(&mut all).collect();
    let mut writer = ExampleWriter::default();
    // Neither a number nor two values nor a text: wrong, were it to count.
    writer.bytes("a", [b"no".as_slice()].into_iter());
    writer.ints("c", [1, 2, 3].into_iter());
    writer.bytes("d", [b"\xff".as_slice()].into_iter());
    let wrong = writer.finish().to_vec();
    let decode = |records: &[Vec<u8>]| {
        let mut decoder = BatchDecoder::new(Arc::clone(&schema), 100, "twice.tfrecord".into()).unwrap();
        for data in records {
            decoder.push(Record { offset: 0, data })?;
        }
        decoder.finish()
    };
    let [a, b, c, d] = records.try_into().unwrap();
    let once = decode(&[a.clone(), b.clone(), vec![], c.clone(), d.clone()]).unwrap().unwrap();
    let twice = decode(&[a.clone(), [&*a, &*b].concat(), vec![], [&*wrong, &*b, &*c].concat(), d]).unwrap().unwrap();
    assert_eq!(once, twice);
    assert!(decode(&[a, [&*b, &*wrong].concat()]).is_err());
}
