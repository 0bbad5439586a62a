//! Parquet files with numbers and lists of numbers, read several times faster than by arrow's own reader.
//!
//! Images, embeddings and features are often stored as lists of a few hundred numbers. Arrow's reader makes two levels
//! of 16 bits and a number of 32 bits of each element, and goes over these several times, about 7 ns for each. Here a
//! run of levels is one step, whatever its length, and an index of a dictionary becomes a number of the column's own type
//! at once. Tables of clicks and measurements have some dozen columns of numbers, where the same is worth as much:
//!
//! ```text
//! page --hybrid--> runs --levels--> where lists begin, what is null --+--> array
//!                  runs --values--> numbers --------------------------+
//! ```
//!
//! * [`faster`] puts [`NumberSource`](source::NumberSource) in place of DataFusion's source, where a plan is about to be
//!   executed. Plans that travel know nothing of it.
//! * [`fit`] decides for each file. The decoder takes a column at the top of the schema that is an integer (8 to 64 bits)
//!   or a float (32, 64), or a list, large list or list of fixed size of these, nulls included, in pages of version 1 and
//!   2, of PLAIN and dictionary encoding, with any compression. A scan with a predicate or a limit, a file with another
//!   schema than the table's in the columns that are read, and one without such a column stay with DataFusion's own
//!   opener.
//! * Footers, page headers and decompression are the `parquet` crate's; what is fetched, and when, is as it was: the column
//!   chunks of one row group at a time, which `plan::read_ahead` accounts for.
//!
//! Invariants:
//! * PQT-1: rows and their order are those of DataFusion's reader, because addresses of rows outlive the process.
//! * PQT-2: nothing is an error here. What a file says that the decoder does not know or believe goes to arrow's reader,
//!   at the row where it is met: it gives the rows, or says what is wrong.
//! * PQT-3: no length in a file is believed before the bytes that it speaks of are there; a length that needs no bytes,
//!   that of a run, is bounded by the page's number of values.

mod chunks;
mod column;
mod fit;
mod flat;
mod group;
pub mod hostile;
mod hybrid;
mod levels;
mod lists;
mod pages;
mod source;
mod values;

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::datasource::physical_plan::{FileScanConfig, FileScanConfigBuilder};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_plan::ExecutionPlan;

/// The plan with this module's decoder in scans that have a column of numbers.
pub(crate) fn faster(plan: &Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let scan = |node: Arc<dyn ExecutionPlan>| {
        let scan = node.downcast_ref::<DataSourceExec>();
        let scan = scan.and_then(|node| node.data_source().downcast_ref::<FileScanConfig>());
        let Some((scan, source)) = scan.and_then(|scan| Some((scan, source::NumberSource::new(scan)?))) else {
            return Ok(Transformed::no(node));
        };
        let scan = FileScanConfigBuilder::from(scan.clone()).with_source(Arc::new(source)).build();
        Ok(Transformed::yes(DataSourceExec::from_data_source(scan) as Arc<dyn ExecutionPlan>))
    };
    Arc::clone(plan).transform_down(scan).data()
}

/// Why the decoder leaves rows to arrow's reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Undecodable(&'static str);

#[cfg(test)]
mod tests;
