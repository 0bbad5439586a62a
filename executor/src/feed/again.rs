//! Rows by their addresses, read once more after the job: which rows was an update computed from?

use tfos_core::proto::Input;
use tfos_core::rows::RowRange;
use tfos_data::SessionContext;
use tfos_data::arrow::array::RecordBatch;

use super::{Scan, batch_bytes, direct_source, feed_source, scan::Step};
use crate::Error;

/// Bytes of the feed that the rows are read for: batches are as small as those of a job's.
const FEED_MEMORY: usize = 256 << 20;

/// The rows of these ranges, in their order, each batch with its own range. The session knows the functions of the query.
pub async fn rows_at(
    input: &Input,
    session: SessionContext,
    ranges: &[RowRange],
) -> Result<Vec<(RowRange, RecordBatch)>, Error> {
    let bytes = batch_bytes(FEED_MEMORY);
    let source = if input.plan.is_empty() { direct_source(input, bytes)? } else { feed_source(input, session, bytes)? };
    let mut scan = Scan::new(source, input.row_shuffle());
    let mut found = vec![];
    for range in ranges {
        let mut left = *range;
        while left.start < left.end {
            match scan.next(&left).await? {
                Step::Rows { start, rows } => {
                    let end = start + rows.num_rows() as u64;
                    let rows = rows.batch().map_err(tfos_data::Error::from)?;
                    found.push((RowRange { start, end, ..left }, rows));
                    left.start = end;
                }
                Step::End { rows } => {
                    return Err(Error::Usage {
                        what: format!("partition {} has {rows} rows, and {left} were trained on", range.partition),
                        try_this: "the input has changed since".into(),
                    });
                }
            }
        }
    }
    Ok(found)
}
