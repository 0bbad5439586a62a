//! `rows_of(STEP)` in `tfos sql`: the rows themselves that an update was computed from, out of the training input, which
//! the job has kept as a plan.

use std::fmt;
use std::sync::Arc;

use tfos_core::checkpoint::Paths;
use tfos_core::proto::Input;
use tfos_core::rows::RowRange;
use tfos_data::SessionContext;
use tfos_data::arrow::array::{ArrayRef, AsArray, RecordBatch, UInt32Array, UInt64Array};
use tfos_data::arrow::datatypes::{DataType, Field, Schema, UInt32Type, UInt64Type};
use tfos_data::datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use tfos_data::datafusion::datasource::MemTable;
use tfos_data::datafusion::error::{DataFusionError, Result as DfResult};
use tfos_data::datafusion::logical_expr::Expr;
use tfos_driver::model_dir::ModelDir;

use crate::{Application, Error, Result};

/// Keeps the training input beside the job, once for each.
pub(super) async fn keep_input(dir: &ModelDir, fingerprint: &str, input: &Input) -> Result<()> {
    Ok(dir.keep(&Paths::input(crc32c::crc32c(fingerprint.as_bytes())), input.to_bytes()).await?)
}

/// Makes `rows_of` known to a session that has the table `samples`.
pub(crate) fn register(context: &SessionContext, dir: ModelDir, applications: &[Arc<dyn Application>]) -> Result<()> {
    let functions = tfos_data::session::session();
    for application in applications {
        application.register(&functions)?;
    }
    // A session of its own with the same tables: one that held itself would never be freed.
    let asked = SessionContext::new_with_state(context.state());
    context.register_udtf("rows_of", Arc::new(RowsOf { dir, asked, functions }));
    Ok(())
}

struct RowsOf {
    dir: ModelDir,
    asked: SessionContext,
    functions: SessionContext,
}

impl fmt::Debug for RowsOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowsOf").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl TableFunctionImpl for RowsOf {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> DfResult<Arc<dyn TableProvider>> {
        let step = match args.exprs() {
            [Expr::Literal(value, _)] => value.to_string().parse::<u64>().ok(),
            _ => None,
        };
        let Some(step) = step else {
            return Err(DataFusionError::Plan("rows_of takes the number of one update, such as rows_of(17)".into()));
        };
        // Planning is not asynchronous, and these rows are few.
        let rows = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(self.rows_of(step)));
        let rows = rows.map_err(|e| DataFusionError::External(Box::new(e)))?;
        let Some(schema) = rows.first().map(RecordBatch::schema) else {
            return Err(DataFusionError::Plan(format!("the ledger has no rows of an update {step}")));
        };
        Ok(Arc::new(MemTable::try_new(schema, vec![rows])?))
    }
}

impl RowsOf {
    async fn rows_of(&self, step: u64) -> Result<Vec<RecordBatch>> {
        let samples = format!(
            "SELECT epoch, \"partition\", row_start, row_end, worker FROM samples WHERE global_step = {step} ORDER BY 1, 2, 3"
        );
        let mut ranges = vec![];
        for batch in self.asked.sql(&samples).await?.collect().await? {
            let [epochs, partitions, starts, ends, workers] = batch.columns() else { continue };
            let small = |column: &ArrayRef, i: usize| column.as_primitive::<UInt32Type>().value(i);
            let large = |column: &ArrayRef, i: usize| column.as_primitive::<UInt64Type>().value(i);
            ranges.extend((0..batch.num_rows()).map(|i| {
                let (epoch, partition) = (small(epochs, i), small(partitions, i));
                (RowRange { epoch, partition, start: large(starts, i), end: large(ends, i) }, small(workers, i))
            }));
        }
        let input = self.input().await?;
        let mut rows = vec![];
        for (range, worker) in ranges {
            let found = tfos_executor::feed::rows_at(&input, self.functions.clone(), &[range]).await?;
            for (range, batch) in found {
                rows.push(addressed(range, worker, &batch)?);
            }
        }
        Ok(rows)
    }

    async fn input(&self) -> Result<Input> {
        let newest = self.dir.list_checkpoints().await?.into_iter().rev().find_map(|c| c.manifest.ok());
        let fingerprint = newest.map(|m| m.input_fingerprint).unwrap_or_default();
        let kept = self.dir.kept(&Paths::input(crc32c::crc32c(fingerprint.as_bytes()))).await?;
        let input = kept.and_then(|bytes| Input::from_bytes(&bytes));
        input.ok_or_else(|| {
            Error::Usage("the training input was not kept: `samples` has the addresses of the rows".into())
        })
    }
}

/// The rows with their addresses before them.
fn addressed(range: RowRange, worker: u32, rows: &RecordBatch) -> Result<RecordBatch> {
    let count = rows.num_rows();
    let numbers = |value: u32| -> ArrayRef { Arc::new(UInt32Array::from_value(value, count)) };
    let addresses: ArrayRef = Arc::new(UInt64Array::from_iter_values(range.start..range.end));
    let named = [
        ("_epoch", DataType::UInt32, numbers(range.epoch)),
        ("_partition", DataType::UInt32, numbers(range.partition)),
        ("_row", DataType::UInt64, addresses),
        ("_worker", DataType::UInt32, numbers(worker)),
    ];
    let (mut fields, mut columns) = (vec![], vec![]);
    for (name, ty, column) in named {
        fields.push(Arc::new(Field::new(name, ty, false)));
        columns.push(column);
    }
    fields.extend(rows.schema().fields().iter().cloned());
    columns.extend(rows.columns().iter().cloned());
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(tfos_data::Error::from)?)
}
