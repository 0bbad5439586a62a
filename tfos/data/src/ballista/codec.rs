//! Plans as bytes between Ballista's scheduler and its executors. The first byte says whose an operator is.

use std::sync::Arc;

use ballista_core::serde::BallistaPhysicalExtensionCodec;
use datafusion::common::{Result as DfResult, exec_err};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};

use super::compressed::Compressed;
use crate::plan::{Codec, is_tfrecord};
use crate::stage::{Sink, Writer};

const BALLISTA: u8 = b'b';
const TFRECORD: u8 = b't';
const SINK: u8 = b's';
const COMPRESSED: u8 = b'c';

/// See the module's text.
#[derive(Debug, Default)]
pub struct ShippingCodec {
    ballista: BallistaPhysicalExtensionCodec,
    /// What sinks that arrive here are given.
    writer: Option<Writer>,
}

impl ShippingCodec {
    /// For a process in which sinks write.
    pub fn writing(writer: Writer) -> Self {
        Self { writer: Some(writer), ..Self::default() }
    }
}

fn text(bytes: &[u8]) -> DfResult<&str> {
    std::str::from_utf8(bytes).or_else(|e| exec_err!("a plan that arrived cannot be read: {e}"))
}

impl PhysicalExtensionCodec for ShippingCodec {
    fn try_decode(
        &self,
        buf: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        ctx: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        match (buf.split_first(), inputs) {
            (Some((&BALLISTA, rest)), _) => self.ballista.try_decode(rest, inputs, ctx, converter),
            (Some((&TFRECORD, rest)), _) => Codec.try_decode(rest, inputs, ctx, converter),
            (Some((&SINK, rest)), [input]) => {
                Ok(Arc::new(Sink::new(Arc::clone(input), text(rest)?.to_owned(), self.writer.clone())))
            }
            (Some((&COMPRESSED, rest)), [scan]) => Compressed::restore(scan, text(rest)?),
            _ => exec_err!("a plan that arrived cannot be read; driver and executor must be the same version"),
        }
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        buf: &mut Vec<u8>,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> DfResult<()> {
        if let Some(sink) = node.downcast_ref::<Sink>() {
            buf.push(SINK);
            buf.extend_from_slice(sink.folder().as_bytes());
        } else if let Some(compressed) = node.downcast_ref::<Compressed>() {
            buf.push(COMPRESSED);
            buf.extend_from_slice(compressed.compression().as_bytes());
        } else if is_tfrecord(&node) {
            buf.push(TFRECORD);
            Codec.try_encode(node, buf, converter)?;
        } else {
            buf.push(BALLISTA);
            self.ballista.try_encode(node, buf, converter)?;
        }
        Ok(())
    }
}
