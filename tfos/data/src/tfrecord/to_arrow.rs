//! Records to record batches: each wanted feature goes from the wire into its column, the others are stepped over.
//!
//! Writers tend to put features in the same order into every record, so the decoder first guesses that the i-th feature
//! is what the i-th was last time, and looks a name up only when the guess is wrong. Values go into their columns while
//! the record is walked; of a feature that comes twice the last one counts, so such a record is taken back and walked again.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::SchemaRef;

use super::example::{Feature, Place, Wire, for_each_feature};
use super::frame::Record;
use super::values::Column;
use crate::error::{Error, Result};

/// When a batch is handed over: at so many rows, or at so many bytes, whichever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSize {
    pub rows: usize,
    pub bytes: usize,
}

impl From<usize> for BatchSize {
    /// So many rows, and the usual 32 MiB.
    fn from(rows: usize) -> Self {
        Self { rows, bytes: 32 << 20 }
    }
}
/// Sizes are added up after so many rows or so many bytes, because that costs more than appending a small row.
const LOOK_ROWS: usize = 64;
const LOOK_BYTES: usize = 1 << 20;

/// Collects records into batches of one schema.
#[derive(Debug)]
pub struct BatchDecoder {
    schema: SchemaRef,
    path: Arc<str>,
    columns: Vec<Column>,
    index: HashMap<Vec<u8>, usize>,
    /// Names as they came in the last record, and the columns they belong to.
    guess: Vec<(Vec<u8>, Option<usize>)>,
    /// For each column the record that last had its feature, and where.
    places: Vec<(u64, Place)>,
    record: u64,
    rows: usize,
    size: BatchSize,
    /// Bytes of a row without any feature: fixed-size lists are filled up.
    least_row: usize,
    /// About how many bytes came since sizes were added up.
    since: usize,
    full: bool,
}

impl BatchDecoder {
    /// Decodes the columns of `schema` into batches; `path` appears in errors.
    pub fn new(schema: SchemaRef, size: impl Into<BatchSize>, path: Arc<str>) -> Result<Self> {
        let size = size.into();
        let columns =
            schema.fields().iter().map(|f| Column::new(f.name(), f.data_type())).collect::<Result<Vec<_>>>()?;
        let index = schema.fields().iter().enumerate().map(|(i, f)| (f.name().as_bytes().to_vec(), i)).collect();
        Ok(Self {
            places: vec![(0, Place::NOWHERE); columns.len()],
            guess: Vec::new(),
            record: 0,
            rows: 0,
            size: BatchSize { rows: size.rows.max(1), bytes: size.bytes.max(1) },
            least_row: columns.iter().map(Column::least).sum(),
            since: 0,
            full: false,
            schema,
            path,
            columns,
            index,
        })
    }

    /// Appends one record as a row.
    pub fn push(&mut self, record: Record<'_>) -> Result<()> {
        self.append(record.data).map_err(|reason| Error::BadExample {
            path: Arc::clone(&self.path),
            offset: record.offset,
            reason: *reason,
        })?;
        self.rows += 1;
        self.since = self.since.saturating_add(record.data.len().max(self.least_row));
        if self.rows.is_multiple_of(LOOK_ROWS) || self.since >= LOOK_BYTES.min(self.size.bytes) {
            self.since = 0;
            self.full = self.bytes() >= self.size.bytes;
        }
        Ok(())
    }

    /// Is the batch to be taken with [`Self::finish`] now?
    pub fn is_full(&self) -> bool {
        self.full || self.rows >= self.size.rows
    }

    /// The rows so far as a batch, `None` if there are none.
    pub fn finish(&mut self) -> Result<Option<RecordBatch>> {
        if self.rows == 0 {
            return Ok(None);
        }
        (self.since, self.full) = (0, false);
        let columns = self.columns.iter_mut().map(Column::finish).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(std::mem::take(&mut self.rows)));
        Ok(Some(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?))
    }

    fn bytes(&self) -> usize {
        self.columns.iter().map(Column::bytes).sum()
    }

    fn append(&mut self, record: &[u8]) -> Wire<()> {
        match self.append_once(record) {
            Ok(true) => Ok(()),
            // What is wrong depends on which of two features counts.
            Ok(false) | Err(_) => self.append_last(record),
        }
    }

    /// The column of the record's feature number `position`, if it is wanted.
    #[inline(always)]
    fn column(
        guess: &mut Vec<(Vec<u8>, Option<usize>)>,
        index: &HashMap<Vec<u8>, usize>,
        position: usize,
        name: &[u8],
    ) -> Option<usize> {
        match guess.get_mut(position) {
            Some((known, column)) if same(known, name) => *column,
            Some(stale) => {
                *stale = (name.to_vec(), index.get(name).copied());
                stale.1
            }
            None => {
                let column = index.get(name).copied();
                guess.push((name.to_vec(), column));
                column
            }
        }
    }

    /// False if a feature came twice.
    fn append_once(&mut self, record: &[u8]) -> Wire<bool> {
        let Self { columns, index, guess, places, record: serial, .. } = self;
        *serial += 1;
        let (mut position, mut found, mut once) = (0, 0, true);
        for_each_feature(record, |name, feature| {
            let column = Self::column(guess, index, position, name);
            position += 1;
            let Some((column, (at, _))) = column.and_then(|c| columns.get_mut(c).zip(places.get_mut(c))) else {
                return Ok(());
            };
            once &= *at != *serial;
            *at = *serial;
            found += 1;
            column.append(feature)
        })?;
        if once && found < columns.len() {
            let missing = columns.iter_mut().zip(places).filter(|(_, (at, _))| *at != *serial);
            missing.for_each(|(column, _)| column.append_null());
        }
        Ok(once)
    }

    #[cold]
    fn append_last(&mut self, record: &[u8]) -> Wire<()> {
        let Self { columns, index, guess, places, record: serial, rows, .. } = self;
        columns.iter_mut().for_each(|column| column.truncate(*rows));
        *serial += 1;
        let mut position = 0;
        // With no column wanted (a count) the walk still proves that the record is an Example.
        for_each_feature(record, |name, feature| {
            let column = Self::column(guess, index, position, name);
            position += 1;
            if let Some(place) = column.and_then(|c| places.get_mut(c)) {
                *place = (*serial, feature.place());
            }
            Ok(())
        })?;
        for (column, (at, place)) in columns.iter_mut().zip(places) {
            if *at == *serial {
                column.append(Feature::at(record, *place))?;
            } else {
                column.append_null();
            }
        }
        Ok(())
    }
}

/// Whether they are equal; names are short, and a call for each costs more than the comparison.
#[inline(always)]
fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    if a.len() > 16 {
        return a == b;
    }
    a.iter().zip(b).all(|(a, b)| a == b)
}
