//! Plans of deterministic training: the same rows in the same order each time, in partitions whose rows can be counted.

use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::execution::SessionStateBuilder;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::{DataFrame, SessionConfig};

use super::{file_scan, partitions, validate_no_exchange};
use crate::error::{Error, Result};

/// Operators that take rows from whichever of their partitions has some first.
const MERGING: [&str; 4] = ["CoalescePartitionsExec", "RepartitionExec", "SortPreservingMergeExec", "InterleaveExec"];

/// Names of the files of which a partition has all rows, in their order; `None` where it has other rows.
pub fn whole_files(plan: &Arc<dyn ExecutionPlan>, partition: usize) -> Option<Vec<String>> {
    let files = file_scan(plan)?.file_groups.get(partition)?;
    let name = |file: &PartitionedFile| match file.range {
        None => file.object_meta.location.filename().map(str::to_owned),
        Some(_) => None,
    };
    files.iter().map(name).collect()
}

/// The first operator that may give its rows in another order when the plan is run again: one that merges partitions.
pub fn merges_partitions(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<String>> {
    let mut found = None;
    plan.apply(|node| {
        let merges = MERGING.contains(&node.name()) && node.children().iter().any(|child| partitions(child) > 1);
        found = found.take().or_else(|| merges.then(|| node.name().to_owned()));
        Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// The physical plan of a query that gives the same rows in the same order each time: files are not divided, so that
/// their rows can be counted, and a plan with an exchange runs in one partition. An error if it merges several even so.
pub async fn in_one_order(query: DataFrame) -> Result<Arc<dyn ExecutionPlan>> {
    let (state, logical) = query.into_parts();
    let mut volatile = None;
    logical.apply_with_subqueries(|node| {
        volatile = node.expressions().iter().find(|e| e.is_volatile()).map(ToString::to_string);
        Ok(if volatile.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    if let Some(expression) = volatile {
        return Err(Error::Volatile { expression });
    }
    let with = |change: fn(SessionConfig) -> SessionConfig| {
        SessionStateBuilder::new_from_existing(state.clone()).with_config(change(state.config().clone())).build()
    };
    let plan = with(|config| config.with_repartition_file_scans(false)).create_physical_plan(&logical).await?;
    match validate_no_exchange(&plan) {
        Err(Error::Exchange { .. }) => {}
        other => return other.map(|()| plan),
    }
    let one = |config: SessionConfig| config.with_repartition_file_scans(false).with_target_partitions(1);
    let plan = with(one).create_physical_plan(&logical).await?;
    match merges_partitions(&plan)? {
        Some(operator) => Err(Error::Unordered { operator }),
        None => Ok(plan),
    }
}

#[cfg(test)]
mod tests {
    use crate::plan::partition_rows;
    use crate::session::session;

    use super::*;

    async fn plan(sql: &str) -> Result<Arc<dyn ExecutionPlan>> {
        let ctx = session();
        // Several partitions, as of several files.
        let rows = ctx.sql("select column1 as x, column2 as y from (values (1, 2), (3, 4), (5, 6))").await.unwrap();
        let batches = rows.collect().await.unwrap();
        let schema = batches[0].schema();
        let parts = vec![batches.clone(), batches.clone(), batches];
        let table = datafusion::datasource::MemTable::try_new(schema, parts).unwrap();
        ctx.register_table("t", Arc::new(table)).unwrap();
        in_one_order(ctx.sql(sql).await.unwrap()).await
    }

    #[tokio::test] // DET-1
    async fn a_plan_without_exchange_keeps_its_partitions_and_others_have_one() {
        let streaming = plan("select x + 1 as x from t").await.unwrap();
        assert_eq!(partition_rows(&streaming, 2), Some(3));
        for sql in ["select x, y from t order by y", "select y, sum(x) from t group by y", "select x from t limit 4"] {
            match plan(sql).await {
                Ok(plan) => assert_eq!((partitions(&plan), merges_partitions(&plan).unwrap()), (1, None), "{sql}"),
                // A table in memory stays in its partitions; files are read one after the other.
                Err(Error::Unordered { operator }) => assert!(operator.contains("Exec"), "{operator}"),
                Err(other) => panic!("{sql}: {other}"),
            }
        }
    }

    #[tokio::test] // DET-1
    async fn what_differs_each_time_is_refused() {
        for sql in ["select x from t order by random()", "select x from (select x, random() as r from t) where r < 0.5"]
        {
            let refused = plan(sql).await.unwrap_err();
            assert!(matches!(&refused, Error::Volatile { expression } if expression.contains("random")), "{refused}");
        }
        let refused = plan("select x, count(*) from (select x from t union all select y from t) group by x").await;
        assert!(matches!(refused.unwrap_err(), Error::Unordered { .. }));
    }
}
