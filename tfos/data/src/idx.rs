//! MNIST's idx files: a pair of images and labels as one record batch, both ways.
//!
//! Format: two zero bytes, the value type (8: unsigned byte), the number of dimensions, each dimension as a big-endian
//! u32, then the values row by row. `DIR/train` means `DIR/train-images-idx3-ubyte[.gz]` and
//! `DIR/train-labels-idx1-ubyte[.gz]`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::array::cast::AsArray;
use datafusion::arrow::array::types::{Int64Type, UInt8Type};
use datafusion::arrow::array::{Array, ArrayRef, FixedSizeListArray, Int64Array, RecordBatch, UInt8Array};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use flate2::read::MultiGzDecoder;

use crate::error::{Error, Result};

const IMAGES: &str = "-images-idx3-ubyte";
const LABELS: &str = "-labels-idx1-ubyte";

/// Which files a prefix means: images, labels.
pub fn files(prefix: &str) -> Result<(PathBuf, PathBuf)> {
    Ok((existing(prefix, IMAGES)?, existing(prefix, LABELS)?))
}

/// Reads both files: `image: FixedSizeList<UInt8, height*width>`, whose field metadata has `height` and `width`, and
/// `label: Int64`.
pub fn read(prefix: &str) -> Result<RecordBatch> {
    let (images, labels) = files(prefix)?;
    read_from((&images, open(&images)?), (&labels, open(&labels)?))
}

/// As [`read`], of two inputs at hand, which are decompressed already; the paths appear in errors. Memory grows as
/// bytes arrive, whatever the headers say.
pub fn read_from(images: (&Path, impl Read), labels: (&Path, impl Read)) -> Result<RecordBatch> {
    let ((images, pixels), (labels, label_bytes)) = (images, labels);
    let (dims, pixels) = values(images, pixels, 3)?;
    let (label_dims, label_bytes) = values(labels, label_bytes, 1)?;
    let [count, height, width] = dims[..] else {
        return Err(bad(images, "three dimensions expected"));
    };
    if label_dims != [count] {
        return Err(bad(labels, format!("{} labels for {count} images", label_bytes.len())));
    }
    let size = height.checked_mul(width).and_then(|size| i32::try_from(size).ok());
    let size = size.ok_or_else(|| bad(images, "the images are too large"))?;
    if size == 0 {
        return Err(bad(images, format!("images of {height} x {width} pixels")));
    }
    let item = Arc::new(Field::new_list_field(DataType::UInt8, true));
    let image = FixedSizeListArray::try_new(item, size, Arc::new(UInt8Array::from(pixels)), None)?;
    let label = Int64Array::from_iter_values(label_bytes.into_iter().map(i64::from));
    let metadata = [("height", height), ("width", width)].map(|(k, v)| (k.to_owned(), v.to_string()));
    let schema = Schema::new(vec![
        Field::new("image", image.data_type().clone(), false).with_metadata(metadata.into()),
        Field::new("label", DataType::Int64, false),
    ]);
    Ok(RecordBatch::try_new(Arc::new(schema), vec![Arc::new(image), Arc::new(label)])?)
}

/// The bytes of the images and the labels file for rows as [`read`] gives them; binary images and any integer labels
/// do too, and so do columns `p0` to `pN` in place of `image`. Without metadata an image is square if it can be.
pub fn to_bytes(batch: &RecordBatch) -> Result<(Vec<u8>, Vec<u8>)> {
    let (pixels, size) = pixels(batch)?;
    let label = column(batch, "label")?;
    let label = strict(label, &DataType::UInt8)?;
    let label = label.as_primitive::<UInt8Type>();
    if label.null_count() > 0 {
        return Err(bad(Path::new("label"), "a label is null"));
    }
    let (height, width) = shape(batch, size)?;
    let mut images = head(&[batch.num_rows(), height, width])?;
    images.extend_from_slice(&pixels);
    let mut labels = head(&[batch.num_rows()])?;
    labels.extend_from_slice(label.values());
    Ok((images, labels))
}

/// The paths that a prefix is written to.
pub fn output_files(prefix: &str, gzip: bool) -> (String, String) {
    let end = if gzip { ".gz" } else { "" };
    (format!("{prefix}{IMAGES}{end}"), format!("{prefix}{LABELS}{end}"))
}

fn existing(prefix: &str, kind: &str) -> Result<PathBuf> {
    let plain = PathBuf::from(format!("{prefix}{kind}"));
    let gzip = PathBuf::from(format!("{prefix}{kind}.gz"));
    match (plain.is_file(), gzip.is_file()) {
        (true, _) => Ok(plain),
        (_, true) => Ok(gzip),
        _ => Err(Error::NotFound { url: format!("{}[.gz]", plain.display()) }),
    }
}

fn open(path: &Path) -> Result<Box<dyn Read>> {
    let file = std::fs::File::open(path).map_err(Error::io("open", path.display().to_string()))?;
    Ok(match path.extension().is_some_and(|e| e == "gz") {
        true => Box::new(MultiGzDecoder::new(file)),
        false => Box::new(file),
    })
}

/// Dimensions and values of one file of unsigned bytes.
fn values(path: &Path, mut input: impl Read, dims: usize) -> Result<(Vec<usize>, Vec<u8>)> {
    let failed = || Error::io("read", path.display().to_string());
    let mut head = Vec::new();
    input.by_ref().take(4 + 4 * dims as u64).read_to_end(&mut head).map_err(failed())?;
    let Some((magic, sizes)) = head.split_at_checked(4).filter(|_| head.len() == 4 + 4 * dims) else {
        return Err(bad(path, "the header is cut off"));
    };
    if magic != [0, 0, 8, dims as u8] {
        return Err(bad(path, format!("it begins with {magic:?}, not with [0, 0, 8, {dims}]")));
    }
    let sizes: Vec<usize> = sizes.as_chunks::<4>().0.iter().map(|b| u32::from_be_bytes(*b) as usize).collect();
    let Some(wanted) = sizes.iter().try_fold(1_usize, |n, d| n.checked_mul(*d)) else {
        return Err(bad(path, format!("the header says {sizes:?}, more than a file can hold")));
    };
    // One byte more shows that there are too many; a bomb of a gzip file is not inflated further.
    let mut data = Vec::new();
    input.take((wanted as u64).saturating_add(1)).read_to_end(&mut data).map_err(failed())?;
    if wanted != data.len() {
        let follow = if data.len() > wanted { "more".to_owned() } else { format!("{} bytes", data.len()) };
        return Err(bad(path, format!("the header says {sizes:?}, but {follow} follow; it may be truncated")));
    }
    Ok((sizes, data))
}

fn head(dims: &[usize]) -> Result<Vec<u8>> {
    let mut bytes = vec![0, 0, 8, dims.len() as u8];
    for dim in dims {
        let dim = u32::try_from(*dim).map_err(|_| bad(Path::new("output"), "more than 2^32 rows"))?;
        bytes.extend_from_slice(&dim.to_be_bytes());
    }
    Ok(bytes)
}

/// All images one after another, and the size of one.
fn pixels(batch: &RecordBatch) -> Result<(Vec<u8>, usize)> {
    let Some(image) = batch.column_by_name("image") else {
        return pixel_columns(batch);
    };
    let wrong = || Error::ColumnType {
        column: "image".into(),
        wanted: "binary or a list of uint8, every image of the same size".into(),
        found: image.data_type().clone(),
    };
    if image.null_count() > 0 {
        return Err(wrong());
    }
    match image.data_type() {
        DataType::FixedSizeList(_, n) => {
            let list = image.as_fixed_size_list();
            let values = list.values().slice(list.value_offset(0) as usize, list.len() * *n as usize);
            Ok((strict(&values, &DataType::UInt8)?.as_primitive::<UInt8Type>().values().to_vec(), *n as usize))
        }
        DataType::Binary => {
            let images = image.as_binary::<i32>();
            let size = if images.is_empty() { 0 } else { images.value(0).len() };
            if images.iter().flatten().any(|i| i.len() != size) {
                return Err(wrong());
            }
            Ok((images.iter().flatten().flatten().copied().collect(), size))
        }
        _ => Err(wrong()),
    }
}

/// Images spread over the columns p0, p1, ... as in CSV.
fn pixel_columns(batch: &RecordBatch) -> Result<(Vec<u8>, usize)> {
    let mut columns = Vec::new();
    while let Some(column) = batch.column_by_name(&format!("p{}", columns.len())) {
        columns.push(strict(column, &DataType::UInt8)?);
    }
    if columns.is_empty() {
        column(batch, "image")?;
    }
    let columns: Vec<&UInt8Array> = columns.iter().map(|c| c.as_primitive::<UInt8Type>()).collect();
    let rows = (0..batch.num_rows()).flat_map(|row| columns.iter().map(move |c| c.value(row)));
    Ok((rows.collect(), columns.len()))
}

fn shape(batch: &RecordBatch, size: usize) -> Result<(usize, usize)> {
    let schema = batch.schema();
    let metadata = schema.field_with_name("image").map(Field::metadata).ok();
    let get = |key: &str| metadata.and_then(|m| m.get(key)?.parse::<usize>().ok());
    let side = size.isqrt();
    match (get("height"), get("width")) {
        (Some(h), Some(w)) if h.checked_mul(w) == Some(size) => Ok((h, w)),
        _ if side * side == size => Ok((side, side)),
        _ => Ok((1, size)),
    }
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch.column_by_name(name).ok_or_else(|| Error::MissingColumn {
        column: name.to_owned(),
        existing: batch.schema_ref().fields().iter().map(|f| f.name().clone()).collect(),
    })
}

fn strict(values: &ArrayRef, target: &DataType) -> Result<ArrayRef> {
    Ok(cast_with_options(values, target, &CastOptions { safe: false, ..CastOptions::default() })?)
}

fn bad(path: &Path, reason: impl Into<String>) -> Error {
    Error::Idx { path: path.display().to_string(), reason: reason.into() }
}

/// The labels of a batch of [`read`].
pub fn labels(batch: &RecordBatch) -> Result<&Int64Array> {
    let label = column(batch, "label")?;
    label.as_primitive_opt::<Int64Type>().ok_or_else(|| Error::ColumnType {
        column: "label".into(),
        wanted: "int64".into(),
        found: label.data_type().clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(prefix: &str, images: &[u8], labels: &[u8]) {
        let (i, l) = output_files(prefix, false);
        std::fs::write(i, images).unwrap();
        std::fs::write(l, labels).unwrap();
    }

    #[test]
    fn round_trip_and_damage() {
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("t").display().to_string();
        let images = [&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3][..], &[1, 2, 3, 4, 5, 255]].concat();
        let labels = [0, 0, 8, 1, 0, 0, 0, 2, 7, 9];
        write(&prefix, &images, &labels);
        let batch = read(&prefix).unwrap();
        assert_eq!(super::labels(&batch).unwrap().values(), &[7, 9]);
        assert_eq!(batch.column(0).as_fixed_size_list().values().as_primitive::<UInt8Type>().values(), &images[16..]);
        assert_eq!(to_bytes(&batch).unwrap(), (images.clone(), labels.to_vec()));
        for end in 0..images.len() {
            write(&prefix, &images[..end], &labels);
            assert!(read(&prefix).unwrap_err().to_string().contains("t-images-idx3-ubyte"));
        }
        write(&prefix, &images, &labels[..9]);
        assert!(read(&prefix).unwrap_err().to_string().contains("t-labels-idx1-ubyte"));
        assert!(matches!(read("/no/where"), Err(Error::NotFound { .. })));
    }

    #[test]
    fn headers_that_lie_are_refused() {
        let labels = || (Path::new("l"), &[0, 0, 8, 1, 0, 0, 0, 1, 7][..]);
        let images = |dims: [u32; 3]| [&[0, 0, 8, 3][..], &dims.map(u32::to_be_bytes).concat()].concat();
        for (dims, words) in [
            ([u32::MAX; 3], "more than a file can hold"),
            ([1, u32::MAX, 1], "0 bytes follow"),
            ([0, u32::MAX, 1], "1 labels for 0 images"),
            ([1, 0, 9], "0 x 9 pixels"),
        ] {
            let error = read_from((Path::new("i"), &images(dims)[..]), labels()).unwrap_err();
            assert!(error.to_string().contains(words), "{dims:?}: {error}");
        }
        let more = [images([1, 1, 2]), vec![0; 3]].concat();
        assert!(read_from((Path::new("i"), &more[..]), labels()).unwrap_err().to_string().contains("more follow"));
    }

    #[test]
    fn real_digits() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/mnist");
        if !Path::new(dir).is_dir() {
            println!("skipped: {dir} does not exist");
            return;
        }
        let batch = read(&format!("{dir}/test")).unwrap();
        assert_eq!(
            batch.column(0).data_type(),
            &DataType::FixedSizeList(Arc::new(Field::new_list_field(DataType::UInt8, true)), 784)
        );
        assert!(batch.num_rows() > 0 && super::labels(&batch).unwrap().iter().flatten().all(|l| (0..10).contains(&l)));
    }
}
