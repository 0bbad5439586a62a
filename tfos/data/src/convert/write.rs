//! Batches into files of one format, a new file whenever one has its rows.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::array::cast::AsArray;
use datafusion::arrow::array::{Array, ArrayRef, RecordBatch, UInt64Array};
use datafusion::arrow::compute::{concat_batches, take};
use datafusion::arrow::csv;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::ipc::writer::FileWriter;
use datafusion::arrow::json::LineDelimitedWriter;
use datafusion::arrow_avro::errors::AvroError;
use datafusion::arrow_avro::writer::AvroWriter;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::basic;
use datafusion::parquet::errors::ParquetError;
use datafusion::parquet::file::properties::WriterProperties;

use super::Converted;
use super::output::{AtomicFile, Output, Pending};
use crate::error::{Error, Result};
use crate::session::Format;
use crate::store;
use crate::tfrecord::{Compression, ExampleEncoder, FrameWriter};

/// Takes batches and yields files.
pub(super) struct Writer {
    target: Target,
    format: Format,
    compression: Compression,
    schema: SchemaRef,
    rows_per_file: usize,
    open: Option<(Sink, PathBuf, usize)>,
    done: Vec<Pending>,
    rows: u64,
    /// Columns of float64, and how many of their values a TFRecord file could not hold.
    rounded: BTreeMap<String, u64>,
}

enum Target {
    File(PathBuf),
    Directory(PathBuf),
}

enum Sink {
    Csv(Box<csv::Writer<Output>>),
    NdJson(Box<LineDelimitedWriter<Output>>),
    Arrow(Box<FileWriter<AtomicFile>>),
    Avro(Box<AvroWriter<AtomicFile>>),
    Parquet(Box<ArrowWriter<AtomicFile>>),
    TfRecord(FrameWriter<Output>, ExampleEncoder),
    /// An idx file has its number of rows in front, so its rows are collected.
    Idx(Vec<RecordBatch>),
}

impl Writer {
    pub(super) fn new(
        to: &str,
        format: Format,
        compression: Compression,
        rows_per_file: Option<usize>,
        schema: SchemaRef,
    ) -> Result<Self> {
        let schema = match format {
            Format::Csv => flat_schema(&schema)?,
            Format::TfRecord => {
                ExampleEncoder::check(&schema)?;
                schema
            }
            Format::Idx if rows_per_file.is_some() => {
                return Err(Error::Unsupported {
                    what: "idx in several files".into(),
                    instead: "write one pair".into(),
                });
            }
            Format::Avro => lists(&schema),
            Format::Parquet | Format::NdJson | Format::Arrow | Format::Idx => schema,
        };
        if compression == Compression::Zlib && format != Format::TfRecord {
            return Err(Error::Unsupported { what: format!("zlib for {format}"), instead: "use gzip or none".into() });
        }
        if compression != Compression::None && matches!(format, Format::Arrow | Format::Avro) {
            return Err(Error::Unsupported {
                what: format!("{compression:?} for {format}").to_lowercase(),
                instead: "write it without".into(),
            });
        }
        let path = local(to)?;
        let target = if rows_per_file.is_some() || to.ends_with('/') || path.is_dir() && format != Format::Idx {
            Target::Directory(empty_directory(path)?)
        } else {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(Error::io("create", parent.display().to_string()))?;
            }
            Target::File(path)
        };
        let rows_per_file = rows_per_file.unwrap_or(usize::MAX);
        let (open, done, rows, rounded) = (None, Vec::new(), 0, BTreeMap::new());
        Ok(Self { target, format, compression, schema, rows_per_file, open, done, rows, rounded })
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let mut rest = match self.format {
            Format::Csv => flatten(batch, &self.schema)?,
            Format::Avro => cast(batch, &self.schema)?,
            _ => batch.clone(),
        };
        while rest.num_rows() > 0 {
            let (mut sink, path, written) = match self.open.take() {
                Some(open) => open,
                None => self.next_file()?,
            };
            let now = rest.num_rows().min(self.rows_per_file - written);
            sink.write(&rest.slice(0, now), &path)?;
            rest = rest.slice(now, rest.num_rows() - now);
            self.rows += now as u64;
            if written + now == self.rows_per_file {
                self.note_rounded(&sink);
                self.done.push(sink.close(&path)?);
            } else {
                self.open = Some((sink, path, written + now));
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Converted> {
        let open = match self.open.take() {
            // No row at all still gives one file: an empty data set is one.
            None if self.done.is_empty() => Some(self.next_file()?),
            open => open,
        };
        match open {
            Some((Sink::Idx(batches), path, _)) => {
                let schema = batches.first().map_or_else(|| Arc::clone(&self.schema), RecordBatch::schema);
                let all = concat_batches(&schema, &batches)?;
                let (images, labels) = crate::idx::to_bytes(&all)?;
                let (a, b) =
                    crate::idx::output_files(&path.display().to_string(), self.compression == Compression::Gzip);
                for (path, bytes) in [(a, images), (b, labels)] {
                    let mut output = Output::create(Path::new(&path), self.compression)?;
                    output.write_all(&bytes).map_err(Error::io("write", path.as_str()))?;
                    self.done.push(output.close(Path::new(&path))?);
                }
            }
            Some((sink, path, _)) => {
                self.note_rounded(&sink);
                self.done.push(sink.close(&path)?);
            }
            None => {}
        }
        let files = self.done.into_iter().map(Pending::publish).collect::<Result<_>>()?;
        let warning = |(column, values): (String, u64)| {
            format!(
                "column `{column}` is float64, and a TFRecord file holds float32: {values} values were rounded; CAST it \
                 to REAL in a query, or write parquet, to be rid of this warning"
            )
        };
        Ok(Converted { rows: self.rows, files, warnings: self.rounded.into_iter().map(warning).collect() })
    }

    fn note_rounded(&mut self, sink: &Sink) {
        if let Sink::TfRecord(_, encoder) = sink {
            for (column, values) in encoder.rounded() {
                *self.rounded.entry(column.clone()).or_default() += values;
            }
        }
    }

    fn next_file(&self) -> Result<(Sink, PathBuf, usize)> {
        let path = match &self.target {
            Target::File(path) => path.clone(),
            Target::Directory(dir) => {
                // Parquet compresses its pages: the file itself stays a plain one.
                let end = if self.format == Format::Parquet { "" } else { self.compression.extension() };
                dir.join(format!("part-{:05}.{}{end}", self.done.len(), self.format))
            }
        };
        let sink = match self.format {
            Format::Csv => Sink::Csv(Box::new(csv::Writer::new(Output::create(&path, self.compression)?))),
            Format::Parquet => {
                let compression = match self.compression {
                    Compression::Gzip => basic::Compression::GZIP(basic::GzipLevel::default()),
                    _ => basic::Compression::SNAPPY,
                };
                let properties = WriterProperties::builder().set_compression(compression).build();
                let writer =
                    ArrowWriter::try_new(AtomicFile::create(&path)?, Arc::clone(&self.schema), Some(properties));
                Sink::Parquet(Box::new(writer.map_err(parquet)?))
            }
            Format::TfRecord => {
                Sink::TfRecord(FrameWriter::new(Output::create(&path, self.compression)?), ExampleEncoder::default())
            }
            Format::NdJson => {
                Sink::NdJson(Box::new(LineDelimitedWriter::new(Output::create(&path, self.compression)?)))
            }
            Format::Arrow => Sink::Arrow(Box::new(FileWriter::try_new(AtomicFile::create(&path)?, &self.schema)?)),
            Format::Avro => {
                let writer = AvroWriter::new(AtomicFile::create(&path)?, self.schema.as_ref().clone());
                Sink::Avro(Box::new(writer.map_err(avro)?))
            }
            Format::Idx => Sink::Idx(Vec::new()),
        };
        Ok((sink, path, 0))
    }
}

impl Sink {
    fn write(&mut self, batch: &RecordBatch, path: &Path) -> Result<()> {
        match self {
            Self::Csv(writer) => Ok(writer.write(batch)?),
            Self::NdJson(writer) => Ok(writer.write(batch)?),
            Self::Arrow(writer) => Ok(writer.write(batch)?),
            Self::Avro(writer) => writer.write(batch).map_err(avro),
            Self::Parquet(writer) => writer.write(batch).map_err(parquet),
            Self::TfRecord(writer, encoder) => encoder
                .encode(batch, |record| writer.write(record).map_err(Error::io("write", path.display().to_string()))),
            Self::Idx(batches) => {
                batches.push(batch.clone());
                Ok(())
            }
        }
    }

    fn close(self, path: &Path) -> Result<Pending> {
        match self {
            Self::Csv(writer) => writer.into_inner().close(path),
            Self::NdJson(mut writer) => {
                writer.finish()?;
                writer.into_inner().close(path)
            }
            Self::Arrow(writer) => writer.into_inner()?.close(),
            Self::Avro(mut writer) => {
                writer.finish().map_err(avro)?;
                writer.into_inner().close()
            }
            Self::Parquet(writer) => writer.into_inner().map_err(parquet)?.close(),
            Self::TfRecord(writer, _) => writer.into_inner().close(path),
            Self::Idx(_) => {
                Err(Error::Unsupported { what: "idx in several files".into(), instead: "write one pair".into() })
            }
        }
    }
}

fn avro(error: AvroError) -> Error {
    Error::Arrow(error.into())
}

/// Avro has neither lists of a fixed size nor small or unsigned numbers: the same values in types that it has.
fn lists(schema: &Schema) -> SchemaRef {
    fn wider(t: &DataType) -> DataType {
        match t {
            DataType::FixedSizeList(item, _) | DataType::List(item) => {
                DataType::List(Arc::new(Field::new("item", wider(item.data_type()), true)))
            }
            DataType::Int8 | DataType::Int16 | DataType::UInt8 | DataType::UInt16 => DataType::Int32,
            DataType::UInt32 => DataType::Int64,
            other => other.clone(),
        }
    }
    let field = |f: &Arc<Field>| Field::new(f.name(), wider(f.data_type()), f.is_nullable());
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

fn cast(batch: &RecordBatch, to: &SchemaRef) -> Result<RecordBatch> {
    let columns = batch.columns().iter().zip(to.fields());
    let columns = columns.map(|(c, f)| datafusion::arrow::compute::cast(c, f.data_type()));
    Ok(RecordBatch::try_new(Arc::clone(to), columns.collect::<std::result::Result<Vec<_>, _>>()?)?)
}

fn parquet(error: ParquetError) -> Error {
    Error::DataFusion(Box::new(error.into()))
}

fn local(to: &str) -> Result<PathBuf> {
    store::to_url(to)?.to_file_path().map_err(|()| Error::Unsupported {
        what: format!("writing to `{to}`"),
        instead: "write to a local path and copy the files".into(),
    })
}

/// Old files beside new ones would be read as one data set.
fn empty_directory(path: PathBuf) -> Result<PathBuf> {
    let name = path.display().to_string();
    std::fs::create_dir_all(&path).map_err(Error::io("create", name.as_str()))?;
    let mut entries = std::fs::read_dir(&path).map_err(Error::io("list", name.as_str()))?;
    let data = entries.find_map(|e| e.ok().filter(|e| !e.file_name().to_string_lossy().starts_with(['.', '_'])));
    match data {
        None => Ok(path),
        Some(_) => Err(occupied(&name)),
    }
}

pub(super) fn occupied(name: &str) -> Error {
    Error::Unsupported {
        what: format!("writing into `{name}`, which has files,"),
        instead: "empty it or name another directory".into(),
    }
}

/// The columns of a CSV file: a fixed-size list becomes one column per value, and `label` goes in front of the
/// pixels of an image.
fn flat_schema(schema: &Schema) -> Result<SchemaRef> {
    let mut fields = Vec::new();
    for field in ordered(schema) {
        match field.data_type() {
            DataType::FixedSizeList(item, n) => {
                let prefix = prefix(field.name());
                fields.extend((0..*n).map(|i| Field::new(format!("{prefix}{i}"), item.data_type().clone(), true)));
            }
            t if t.is_nested() || matches!(t, DataType::Binary | DataType::LargeBinary | DataType::BinaryView) => {
                return Err(Error::Unsupported {
                    what: format!("column `{}` of type {t} in a CSV file", field.name()),
                    instead: format!("give a schema with `{}:uint8[n]`, or write parquet", field.name()),
                });
            }
            _ => fields.push(field.clone()),
        }
    }
    Ok(Arc::new(Schema::new(fields)))
}

fn flatten(batch: &RecordBatch, flat: &SchemaRef) -> Result<RecordBatch> {
    let schema = batch.schema();
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(flat.fields().len());
    for field in ordered(&schema) {
        let Some(column) = batch.column_by_name(field.name()) else {
            continue;
        };
        let DataType::FixedSizeList(_, n) = field.data_type() else {
            columns.push(Arc::clone(column));
            continue;
        };
        let list = column.as_fixed_size_list();
        for i in 0..*n {
            let index: UInt64Array =
                (0..list.len()).map(|row| column.is_valid(row).then(|| (list.value_offset(row) + i) as u64)).collect();
            columns.push(take(list.values(), &index, None)?);
        }
    }
    Ok(RecordBatch::try_new(Arc::clone(flat), columns)?)
}

fn ordered(schema: &Schema) -> impl Iterator<Item = &Field> {
    let is_list = |f: &&Field| matches!(f.data_type(), DataType::FixedSizeList(..));
    let fields = || schema.fields().iter().map(|f| f.as_ref());
    fields().filter(move |f| !is_list(f)).chain(fields().filter(move |f| is_list(f)))
}

fn prefix(name: &str) -> String {
    if name == "image" { "p".to_owned() } else { format!("{name}_") }
}
