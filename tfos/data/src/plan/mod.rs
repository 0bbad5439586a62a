//! Physical plans that travel: made by the driver, sent as bytes, executed partition by partition anywhere.
//!
//! Invariants:
//! * PLN-2: a plan that [`validate_no_exchange`] accepts computes partition i from nothing but the files of partition i.
//! * PLN-3: a decoded plan has the partitions of the encoded one, file for file.

mod blame;
mod order;
mod run;

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write;
use std::sync::Arc;

use datafusion::common::stats::Precision;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{GetExt, Result as DfResult, internal_err};
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::physical_plan::{FileScanConfig, FileScanConfigBuilder};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, displayable};
use datafusion::prelude::SessionContext;
use datafusion_proto::bytes::{
    physical_plan_from_bytes_with_extension_codec, physical_plan_to_bytes_with_extension_codec,
};
use datafusion_proto::physical_plan::from_proto::{parse_protobuf_file_scan_config, parse_table_schema_from_proto};
use datafusion_proto::physical_plan::to_proto::serialize_file_scan_config;
use datafusion_proto::physical_plan::{
    PhysicalExtensionCodec, PhysicalPlanDecodeContext, PhysicalProtoConverterExtension,
};
use datafusion_proto::protobuf::FileScanExecConf;
use prost::Message;
use url::Url;

pub use self::order::{in_one_order, merges_partitions, whole_files};
pub use self::run::{Prepared, execute};
use crate::error::{Error, Result};
use crate::store;
use crate::tfrecord::TfRecordSource;

/// Operators that work on each partition for itself.
const STREAMING: [&str; 9] = [
    "DataSourceExec",
    "FilterExec",
    "ProjectionExec",
    "CoalesceBatchesExec",
    "UnionExec",
    "CooperativeExec",
    "UnnestExec",
    "EmptyExec",
    "PlaceholderRowExec",
];

/// What travels: DataFusion's bytes, and what they leave out.
#[derive(Clone, PartialEq, Message)]
struct Envelope {
    #[prost(bytes = "vec", tag = "1")]
    plan: Vec<u8>,
    /// The compression of each file scan, in depth-first order.
    #[prost(string, repeated, tag = "2")]
    compressions: Vec<String>,
    /// The stores that it reads from: a scan of Parquet asks for its store as soon as it is decoded.
    #[prost(string, repeated, tag = "3")]
    stores: Vec<String>,
}

/// The plan as bytes for [`decode`] of the same version.
pub fn encode(plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<u8>> {
    let mut compressions = Vec::new();
    each_scan(plan, |scan| compressions.push(scan.file_compression_type.get_ext()))?;
    let stores = stores(plan)?.iter().map(Url::to_string).collect();
    let plan = physical_plan_to_bytes_with_extension_codec(Arc::clone(plan), &Codec)?.to_vec();
    Ok(Envelope { plan, compressions, stores }.encode_to_vec())
}

/// The plan from bytes of [`encode`]; makes the stores that it reads from known to `ctx`.
pub fn decode(bytes: &[u8], ctx: &SessionContext) -> Result<Arc<dyn ExecutionPlan>> {
    let envelope = Envelope::decode(bytes)?;
    let runtime = ctx.runtime_env();
    for root in envelope.stores {
        let url = Url::parse(&root).map_err(|e| Error::BadUrl { url: root, reason: e.to_string() })?;
        store::register(&runtime, &url)?;
    }
    let plan = physical_plan_from_bytes_with_extension_codec(&envelope.plan, &ctx.task_ctx(), &Codec)?;
    let mut compressions = VecDeque::from(envelope.compressions);
    let plan = plan.transform_down(|node| {
        let Some(scan) = file_scan(&node) else {
            return Ok(Transformed::no(node));
        };
        let compression: FileCompressionType =
            compressions.pop_front().unwrap_or_default().trim_start_matches('.').parse()?;
        // Keeping the order also forbids that one partition's stream takes over another's files.
        let scan =
            FileScanConfigBuilder::from(scan.clone()).with_file_compression_type(compression).with_preserve_order(true);
        Ok(Transformed::yes(DataSourceExec::from_data_source(scan.build()) as Arc<dyn ExecutionPlan>))
    });
    Ok(plan?.data)
}

/// The object stores that the plan reads from, as scheme and authority.
pub fn stores(plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<Url>> {
    let mut roots = BTreeSet::new();
    each_scan(plan, |scan| {
        roots.insert(scan.object_store_url.as_str().to_owned());
    })?;
    let parse = |root: String| Url::parse(&root).map_err(|e| Error::BadUrl { url: root, reason: e.to_string() });
    roots.into_iter().map(parse).collect()
}

/// Refuses plans in which a partition's rows depend on another partition.
pub fn validate_no_exchange(plan: &Arc<dyn ExecutionPlan>) -> Result<()> {
    let mut refused = None;
    plan.apply(|node| {
        if !STREAMING.contains(&node.name()) {
            refused = Some(node.name().to_owned());
        } else if node.fetch().is_some() {
            // A scan may stop early by itself, but LIMIT counts rows over all partitions.
            refused = Some(format!("{} with a limit", node.name()));
        }
        Ok(if refused.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    refused.map_or(Ok(()), |operator| Err(Error::Exchange { operator }))
}

/// How many partitions the plan's output has.
pub fn partitions(plan: &Arc<dyn ExecutionPlan>) -> usize {
    plan.output_partitioning().partition_count()
}

/// How many rows a partition has, where the files' own statistics say it exactly.
pub fn partition_rows(plan: &Arc<dyn ExecutionPlan>, partition: usize) -> Option<u64> {
    if plan.fetch().is_some() {
        return None;
    }
    if let Some(source) = plan.downcast_ref::<DataSourceExec>() {
        let source = source.data_source();
        if let Some(memory) = source.downcast_ref::<MemorySourceConfig>() {
            return memory.partitions().get(partition).map(|p| p.iter().map(|b| b.num_rows() as u64).sum());
        }
        let scan = source.downcast_ref::<FileScanConfig>()?;
        let mut files = scan.file_groups.get(partition)?.iter();
        return files.try_fold(0, |sum, file| {
            match (&file.range, file.statistics.as_ref()?.num_rows) {
                // The statistics are the whole file's: a part of it has an unknown share.
                (None, Precision::Exact(rows)) => Some(sum + rows as u64),
                _ => None,
            }
        });
    }
    let children = plan.children();
    if plan.is::<UnionExec>() {
        let mut partition = partition;
        for child in children {
            match partition.checked_sub(partitions(child)) {
                None => return partition_rows(child, partition),
                Some(rest) => partition = rest,
            }
        }
        return None;
    }
    match (plan.name(), children.as_slice()) {
        ("ProjectionExec" | "CoalesceBatchesExec" | "CooperativeExec", [child]) => partition_rows(child, partition),
        _ => None,
    }
}

/// A text that is equal for plans that give the same rows in the same partitions: the operators, and each file with
/// its size. Neither times nor machines are part of it, so a copied data set keeps its fingerprint.
pub fn fingerprint(plan: &Arc<dyn ExecutionPlan>) -> Result<String> {
    let mut text = displayable(plan.as_ref()).indent(false).to_string();
    each_scan(plan, |scan| {
        text.push_str(scan.object_store_url.as_str());
        for (i, group) in scan.file_groups.iter().enumerate() {
            for file in group.iter() {
                let range = file.range.as_ref().map(|r| (r.start, r.end));
                // Writing to a string does not fail.
                let _ = writeln!(text, "{i} {} {} {range:?}", file.object_meta.location, file.object_meta.size);
            }
        }
    })?;
    // FNV-1a: the standard library's hashers may change between versions.
    let hash = text.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    Ok(format!("{hash:032x}"))
}

/// The plan with scans of TFRecord files whose batches have at most about `batch_bytes`: these files do not say how large
/// their rows are.
fn bounded(plan: Arc<dyn ExecutionPlan>, batch_bytes: usize) -> Result<Arc<dyn ExecutionPlan>> {
    let plan = plan.transform_down(|node| {
        let source =
            file_scan(&node).and_then(|scan| Some((scan, scan.file_source().downcast_ref::<TfRecordSource>()?)));
        let Some((scan, source)) = source else { return Ok(Transformed::no(node)) };
        let source = Arc::new(source.clone().with_batch_bytes(batch_bytes));
        let scan = FileScanConfigBuilder::from(scan.clone()).with_source(source).build();
        Ok(Transformed::yes(DataSourceExec::from_data_source(scan) as Arc<dyn ExecutionPlan>))
    });
    Ok(plan?.data)
}

/// About how many bytes reading a partition keeps beside the rows that it gives: of Parquet the row group, still
/// compressed, which is taken to be no larger than twice what the partition has of its largest file, and than the file.
pub fn read_ahead(plan: &Arc<dyn ExecutionPlan>, partition: usize) -> usize {
    let bytes = |(kind, file): &(String, PartitionedFile)| -> u64 {
        match &file.range {
            _ if kind != "parquet" => 0,
            // A row group is read where its middle is: of the two halves of a file of one group, one has all of it.
            Some(range) => {
                u64::try_from(range.end - range.start).unwrap_or(0).saturating_mul(2).min(file.object_meta.size)
            }
            None => file.object_meta.size,
        }
    };
    let most = files(plan, partition).iter().map(bytes).max().unwrap_or(0);
    usize::try_from(most).unwrap_or(usize::MAX).min(LARGEST_AHEAD)
}

/// A row group is rarely larger than that, however large its file is.
const LARGEST_AHEAD: usize = 64 << 20;

/// The files of a partition, each with the name of its format.
fn files(plan: &Arc<dyn ExecutionPlan>, partition: usize) -> Vec<(String, PartitionedFile)> {
    if let Some(scan) = file_scan(plan) {
        let kind = scan.file_source().file_type().to_owned();
        let group = scan.file_groups.get(partition);
        return group.iter().flat_map(|g| g.iter()).map(|file| (kind.clone(), file.clone())).collect();
    }
    let mut partition = partition;
    for child in plan.children() {
        let count = partitions(child);
        if partition < count || !plan.is::<UnionExec>() {
            return files(child, partition);
        }
        partition -= count;
    }
    vec![]
}

fn file_scan(plan: &Arc<dyn ExecutionPlan>) -> Option<&FileScanConfig> {
    plan.downcast_ref::<DataSourceExec>()?.data_source().downcast_ref()
}

fn each_scan(plan: &Arc<dyn ExecutionPlan>, mut each: impl FnMut(&FileScanConfig)) -> Result<()> {
    plan.apply(|node| {
        if let Some(scan) = file_scan(node) {
            each(scan);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// Whether it is a scan of TFRecord files.
#[cfg(feature = "ballista")]
pub(crate) fn is_tfrecord(node: &Arc<dyn ExecutionPlan>) -> bool {
    file_scan(node).is_some_and(|scan| scan.file_source().is::<TfRecordSource>())
}

/// Carries scans of TFRecord files, which DataFusion does not know.
#[derive(Debug, Clone, Copy, Default)]
pub struct Codec;

impl PhysicalExtensionCodec for Codec {
    fn try_decode(
        &self,
        buf: &[u8],
        _inputs: &[Arc<dyn ExecutionPlan>],
        ctx: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let conf = FileScanExecConf::decode(buf).map_err(|e| Error::PlanBytes(e).into_datafusion())?;
        let source = Arc::new(TfRecordSource::new(parse_table_schema_from_proto(&conf)?));
        let ctx = PhysicalPlanDecodeContext::new(ctx, self);
        let scan = parse_protobuf_file_scan_config(&conf, &ctx, converter, source)?;
        Ok(DataSourceExec::from_data_source(scan))
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        buf: &mut Vec<u8>,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> DfResult<()> {
        match file_scan(&node) {
            Some(scan) if scan.file_source().is::<TfRecordSource>() => {
                let conf = serialize_file_scan_config(scan, self, converter)?;
                buf.extend_from_slice(&conf.encode_to_vec());
                Ok(())
            }
            _ => internal_err!("the operator `{}` cannot be sent to another process", node.name()),
        }
    }
}

#[cfg(test)]
mod tests;
