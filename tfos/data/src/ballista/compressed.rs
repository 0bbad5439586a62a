//! The compression of files, which DataFusion leaves out when a scan travels: told by an operator above the scan.
//!
//! The scan itself stays what it is, because Ballista gives a task its share of the files of scans that it knows, and all
//! files of one that it does not.

use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{GetExt, Result as DfResult, internal_err};
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::physical_plan::{FileScanConfig, FileScanConfigBuilder};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};

use crate::error::Result;

/// A scan of compressed files.
#[derive(Debug)]
pub(super) struct Compressed {
    scan: Arc<dyn ExecutionPlan>,
    compression: FileCompressionType,
}

fn config(plan: &Arc<dyn ExecutionPlan>) -> Option<&FileScanConfig> {
    plan.downcast_ref::<DataSourceExec>()?.data_source().downcast_ref()
}

/// The plan with a [`Compressed`] above each scan that needs one.
pub(super) fn marked(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let plan = plan.transform_up(|node| {
        let compression = config(&node).map(|c| c.file_compression_type);
        Ok(match compression.filter(FileCompressionType::is_compressed) {
            None => Transformed::no(node),
            Some(compression) => Transformed::yes(Arc::new(Compressed { scan: node, compression }) as _),
        })
    });
    Ok(plan?.data)
}

impl Compressed {
    /// Its name.
    pub(super) fn compression(&self) -> String {
        self.compression.get_ext()
    }

    /// The scan with that compression.
    pub(super) fn restore(scan: &Arc<dyn ExecutionPlan>, compression: &str) -> DfResult<Arc<dyn ExecutionPlan>> {
        let Some(config) = config(scan) else { return internal_err!("`{}` is no scan of files", scan.name()) };
        let compression: FileCompressionType = compression.trim_start_matches('.').parse()?;
        let config = FileScanConfigBuilder::from(config.clone()).with_file_compression_type(compression).build();
        Ok(DataSourceExec::from_data_source(config))
    }
}

impl DisplayAs for Compressed {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Compressed: {}", self.compression.get_ext())
    }
}

impl ExecutionPlan for Compressed {
    fn name(&self) -> &str {
        "Compressed"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.scan.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.scan]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DfResult<TreeNodeRecursion>,
    ) -> DfResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> DfResult<Arc<dyn ExecutionPlan>> {
        let [scan] = children.as_slice() else { return internal_err!("a scan is one") };
        Ok(Arc::new(Self { scan: Arc::clone(scan), compression: self.compression }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> DfResult<SendableRecordBatchStream> {
        self.scan.execute(partition, context)
    }
}
