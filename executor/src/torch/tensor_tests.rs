//! Every layout of a column, borrowed and copied, and every reason to refuse one.
use std::sync::Arc;

use tch::kind::Element;
use tfos_data::arrow::array::*;
use tfos_data::arrow::compute;
use tfos_data::arrow::datatypes::*;

use super::*;

fn read<T: Element + Copy>(tensor: &Tensor) -> Vec<T> {
    Vec::try_from(tensor.flatten(0, -1)).unwrap()
}

fn parts(pieces: &[RecordBatch]) -> Vec<Part> {
    pieces.iter().cloned().map(Part::from).collect()
}

fn column(pieces: &[RecordBatch], name: &str) -> Result<Tensor, TensorError> {
    super::column(&parts(pieces), name)
}

fn stacked(pieces: &[RecordBatch], names: &[&str]) -> Result<Tensor, TensorError> {
    super::stacked(&parts(pieces), names)
}

fn batch(array: ArrayRef) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable([("id", id(array.len())), ("x", array)].map(|(n, a)| (n, a, true)))
        .unwrap()
}

fn id(rows: usize) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(0..rows as i64))
}

/// Lists of `length` values each.
fn fixed(values: ArrayRef, length: i32) -> ArrayRef {
    let field = Arc::new(Field::new_list_field(values.data_type().clone(), true));
    Arc::new(FixedSizeListArray::new(field, length, values, None))
}

fn list<O: OffsetSizeTrait>(rows: &[&[Option<f32>]]) -> ArrayRef {
    let rows = rows.iter().map(|row| Some(row.iter().copied()));
    Arc::new(GenericListArray::<O>::from_iter_primitive::<Float32Type, _, _>(rows))
}

/// One piece, in full and as a slice with an offset, must be borrowed; two pieces must be copied; all must be right.
fn check<T: Element + Copy + PartialEq + std::fmt::Debug>(
    array: ArrayRef,
    kind: Kind,
    tail: &[i64],
    values: &[T],
    borrowed: bool,
) {
    let rows = array.len();
    let per_row = values.len() / rows;
    let whole = batch(array);
    let parts = |from: usize, to: usize| &values[from * per_row..to * per_row];
    for (pieces, expected) in [
        (vec![whole.clone()], parts(0, rows).to_vec()),
        (vec![whole.slice(1, rows - 1)], parts(1, rows).to_vec()),
        (vec![whole.slice(0, 0), whole.slice(1, 1)], parts(1, 2).to_vec()),
        (vec![whole.slice(1, rows - 1), whole.slice(0, 2)], [parts(1, rows), parts(0, 2)].concat()),
    ] {
        let tensor = column(&pieces, "x").unwrap();
        let full = pieces.iter().filter(|piece| piece.num_rows() > 0).count();
        assert_eq!(is_zero_copy(&tensor, &pieces, "x"), borrowed && full == 1);
        let rows: usize = pieces.iter().map(RecordBatch::num_rows).sum();
        drop(pieces);
        assert_eq!(tensor.kind(), kind);
        assert_eq!(tensor.size(), [&[rows as i64], tail].concat());
        assert_eq!(read::<T>(&tensor), expected);
    }
}

#[test]
fn primitives_are_borrowed() {
    check(Arc::new(UInt8Array::from(vec![1, 2, 255])), Kind::Uint8, &[], &[1u8, 2, 255], true);
    check(Arc::new(Int8Array::from(vec![1, -2, 3])), Kind::Int8, &[], &[1i8, -2, 3], true);
    check(Arc::new(Int16Array::from(vec![1, -2, 3])), Kind::Int16, &[], &[1i16, -2, 3], true);
    check(Arc::new(Int32Array::from(vec![1, -2, 3])), Kind::Int, &[], &[1i32, -2, 3], true);
    check(Arc::new(Int64Array::from(vec![1, -2, 3])), Kind::Int64, &[], &[1i64, -2, 3], true);
    check(Arc::new(Float32Array::from(vec![1.0, -2.5, 3.0])), Kind::Float, &[], &[1f32, -2.5, 3.0], true);
    check(Arc::new(Float64Array::from(vec![1.0, -2.5, 3.0])), Kind::Double, &[], &[1f64, -2.5, 3.0], true);
}

#[test]
fn halves_are_borrowed() {
    let halves = tfos_data::arrow::compute::cast(&Float32Array::from(vec![1.0, -2.5]), &DataType::Float16).unwrap();
    let pieces = [batch(halves)];
    let tensor = column(&pieces, "x").unwrap();
    assert_eq!(tensor.kind(), Kind::Half);
    assert!(is_zero_copy(&tensor, &pieces, "x"));
    assert_eq!(read::<f32>(&tensor.to_kind(Kind::Float)), [1.0, -2.5]);
}

#[test]
fn booleans_and_wide_unsigned_are_converted() {
    check(Arc::new(BooleanArray::from(vec![true, false, true])), Kind::Bool, &[], &[true, false, true], false);
    check(Arc::new(UInt16Array::from(vec![1, 2, u16::MAX])), Kind::Int, &[], &[1i32, 2, 65535], false);
    check(Arc::new(UInt32Array::from(vec![1, 2, u32::MAX])), Kind::Int64, &[], &[1i64, 2, 4_294_967_295], false);
    check(Arc::new(UInt64Array::from(vec![1, 2, i64::MAX as u64])), Kind::Int64, &[], &[1, 2, i64::MAX], false);
    let bools = fixed(Arc::new(BooleanArray::from(vec![true, false, true, true, false, false])), 2);
    check(bools, Kind::Bool, &[2], &[true, false, true, true, false, false], false);
}

#[test]
fn fixed_lists_nest() {
    let values: Vec<f32> = (0..24).map(|value| value as f32).collect();
    let flat: ArrayRef = Arc::new(Float32Array::from(values.clone()));
    check(fixed(Arc::clone(&flat), 4), Kind::Float, &[4], &values, true);
    check(fixed(fixed(flat, 4), 2), Kind::Float, &[2, 4], &values, true);
}

#[test]
fn equal_lists_are_borrowed() {
    let rows: [&[Option<f32>]; 3] = [&[Some(1.0), Some(2.0)], &[Some(3.0), Some(4.0)], &[Some(5.0), Some(6.0)]];
    check(list::<i32>(&rows), Kind::Float, &[2], &[1f32, 2.0, 3.0, 4.0, 5.0, 6.0], true);
    check(list::<i64>(&rows), Kind::Float, &[2], &[1f32, 2.0, 3.0, 4.0, 5.0, 6.0], true);
}

#[test]
fn equal_binaries_are_bytes() {
    let rows: Vec<&[u8]> = vec![b"ab", b"cd", b"ef"];
    check(Arc::new(BinaryArray::from(rows.clone())), Kind::Uint8, &[2], b"abcdef", true);
    check(Arc::new(LargeBinaryArray::from(rows.clone())), Kind::Uint8, &[2], b"abcdef", true);
    let fixed = FixedSizeBinaryArray::try_from_iter(rows.into_iter()).unwrap();
    check(Arc::new(fixed), Kind::Uint8, &[2], b"abcdef", true);
}

#[test]
fn a_tensor_outlives_its_batch_and_its_own_view() {
    let pieces = [batch(fixed(Arc::new(UInt8Array::from_iter_values(0..200)), 10)).slice(5, 3)];
    let tensor = column(&pieces, "x").unwrap();
    assert!(is_zero_copy(&tensor, &pieces, "x"));
    drop(pieces);
    let row = tensor.get(2);
    drop(tensor);
    assert_eq!(read::<u8>(&row), (70..80).collect::<Vec<u8>>());
}

#[test]
fn no_rows_are_a_tensor_too() {
    let none: [&[Option<f32>]; 0] = [];
    assert_eq!(column(&[batch(list::<i32>(&none))], "x").unwrap().size(), [0, 0]);
    let empty = batch(fixed(Arc::new(Int64Array::from(Vec::<i64>::new())), 3));
    let tensor = column(&[empty.clone(), empty], "x").unwrap();
    assert_eq!((tensor.kind(), tensor.size()), (Kind::Int64, vec![0, 3]));
    assert!(matches!(column(&[], "x"), Err(TensorError::NoPieces { .. })));
}

fn message(pieces: &[RecordBatch], name: &str) -> String {
    column(pieces, name).unwrap_err().to_string()
}

#[test]
fn a_missing_column_is_told_what_exists() {
    assert_eq!(message(&[batch(id(1))], "image"), "no column `image`, there are: id, x");
}

#[test]
fn nulls_are_found_at_every_depth() {
    let plain = batch(Arc::new(Int64Array::from(vec![Some(1), None])));
    assert_eq!(
        message(&[batch(id(3)), plain], "x"),
        "column `x` is null in row 4; give nulls a value in the query, as in COALESCE(x, 0)"
    );
    let inside = batch(list::<i32>(&[&[Some(1.0), Some(2.0)], &[Some(3.0), None]]));
    assert!(matches!(column(std::slice::from_ref(&inside), "x"), Err(TensorError::Null { row: 1, .. })));
    // The null is outside of this slice.
    assert!(column(&[inside.slice(0, 1)], "x").is_ok());
    let values = fixed(Arc::new(Int64Array::from(vec![Some(1), Some(2), Some(3), None])), 2);
    let field = Arc::new(Field::new_list_field(DataType::Int64, true));
    let outer = FixedSizeListArray::new(field, 1, id(2), Some(vec![true, false].into()));
    assert!(matches!(column(&[batch(values)], "x"), Err(TensorError::Null { row: 1, .. })));
    assert!(matches!(column(&[batch(Arc::new(outer))], "x"), Err(TensorError::Null { row: 1, .. })));
}

#[test]
fn unequal_lengths_name_row_and_lengths() {
    let ragged = batch(list::<i32>(&[&[Some(1.0)], &[Some(1.0)], &[Some(1.0), Some(2.0)]]));
    assert_eq!(
        message(&[ragged], "x"),
        "column `x` has 2 elements in row 2, but 1 before; a tensor needs equal lengths"
    );
    let bytes = BinaryArray::from(vec![b"ab".as_slice(), b"c"]);
    assert!(matches!(
        column(&[batch(Arc::new(bytes))], "x"),
        Err(TensorError::Ragged { row: 1, found: 1, expected: 2, .. })
    ));
    let (one, two) = (batch(list::<i32>(&[&[Some(1.0)]])), batch(list::<i32>(&[&[Some(1.0), Some(2.0)]])));
    assert_eq!(message(&[one, two], "x"), "column `x` is Float [2] from row 1 on, but Float [1] before");
}

#[test]
fn foreign_types_are_told_what_to_do() {
    assert_eq!(
        message(&[batch(Arc::new(StringArray::from(vec!["a"])))], "x"),
        "column `x` holds Utf8, which no tensor does; convert it in the query, as in CAST(x AS REAL)"
    );
    assert!(matches!(
        column(&[batch(fixed(Arc::new(Date32Array::from(vec![1, 2])), 2))], "x"),
        Err(TensorError::Unsupported { dtype: DataType::Date32, .. })
    ));
    assert!(matches!(
        column(&[batch(Arc::new(NullArray::new(2)))], "x"),
        Err(TensorError::Unsupported { dtype: DataType::Null, .. })
    ));
    let large = fixed(Arc::new(UInt64Array::from(vec![1, 2, 3, u64::MAX])), 2);
    assert!(matches!(column(&[batch(large)], "x"), Err(TensorError::TooLarge { row: 1, value: u64::MAX, .. })));
}

/// Rows of three columns in two pieces, one of which is a slice, stacked here and by libtorch.
fn check_stacked(columns: [ArrayRef; 3]) {
    let rows = RecordBatch::try_from_iter(["a", "b", "c"].into_iter().zip(columns)).unwrap();
    for pieces in
        [vec![rows.clone()], vec![rows.slice(3, 150)], vec![rows.slice(7, 90), rows.slice(0, 0), rows.clone()]]
    {
        for names in [&["c", "a", "b"][..], &["b"], &["a", "a"]] {
            let each: Vec<Tensor> = names.iter().map(|name| column(&pieces, name).unwrap()).collect();
            let (wanted, found) = (Tensor::stack(&each, 1), stacked(&pieces, names).unwrap());
            assert_eq!((found.kind(), found.size()), (wanted.kind(), wanted.size()));
            assert!(found.equal(&wanted) && found.is_contiguous(), "{names:?} of {:?}", wanted.kind());
        }
    }
    // Part of a record batch, as a queue cuts it.
    let whole = Part::from(rows.clone());
    let found = super::stacked(&[whole.slice(70, 30), whole.slice(0, 70)], &["b", "c"]).unwrap();
    let wanted = stacked(&[rows.slice(70, 30), rows.slice(0, 70)], &["b", "c"]).unwrap();
    assert!(found.equal(&wanted));
    // Rows of a shuffled block, laid once and taken twice.
    let pieces = [rows.slice(7, 90), rows.slice(0, 110)];
    let order: Vec<u32> = (0..200).map(|row| row * 77 % 200).collect();
    let block = Part::mixed(pieces.to_vec(), &order);
    let together = compute::concat_batches(&rows.schema(), &pieces).unwrap();
    let mixed = compute::take_record_batch(&together, &UInt32Array::from(order)).unwrap();
    for rows in [0..80, 80..200] {
        let found = super::stacked(&[block.slice(rows.start, rows.len())], &["c", "a"]).unwrap();
        assert!(found.equal(&stacked(&[mixed.slice(rows.start, rows.len())], &["c", "a"]).unwrap()));
    }
}

#[test]
fn stacked_columns_are_what_libtorch_stacks() {
    let numbers =
        |add: i64| -> ArrayRef { Arc::new(Int64Array::from_iter_values((0..200).map(|i| i * 37 % 101 + add))) };
    let as_type = |kind: &DataType| [1, 2, 3].map(|add| compute::cast(&numbers(add), kind).unwrap());
    for kind in [
        DataType::UInt8,
        DataType::Int16,
        DataType::UInt16,
        DataType::UInt32,
        DataType::UInt64,
        DataType::Int64,
        DataType::Float32,
        DataType::Float64,
        DataType::Boolean,
    ] {
        check_stacked(as_type(&kind));
    }
    check_stacked(as_type(&DataType::Float32).map(|column| {
        let values = compute::concat(&[column.as_ref(), column.as_ref(), column.as_ref()]).unwrap();
        fixed(values, 3)
    }));
    check_stacked(as_type(&DataType::UInt8).map(|column| fixed(column, 1)));
}

#[test]
fn unlike_columns_do_not_stack() {
    let columns: [(&str, ArrayRef); 3] = [
        ("a", Arc::new(Int64Array::from(vec![1, 2]))),
        ("b", Arc::new(Float32Array::from(vec![1.0, 2.0]))),
        ("c", Arc::new(Int64Array::from(vec![Some(1), None]))),
    ];
    let rows = [RecordBatch::try_from_iter(columns).unwrap()];
    assert!(matches!(stacked(&rows, &["a", "b"]), Err(TensorError::Unlike { column, .. }) if column == "b"));
    assert!(matches!(stacked(&rows, &["a", "c"]), Err(TensorError::Null { column, row: 1 }) if column == "c"));
    assert!(matches!(stacked(&rows, &["a", "d"]), Err(TensorError::Missing { .. })));
    assert!(matches!(stacked(&rows, &[]), Err(TensorError::NoColumns)));
    assert!(matches!(stacked(&[], &["a"]), Err(TensorError::NoPieces { .. })));
}
