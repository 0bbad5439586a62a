//! The framework's own loop: an application says what its model is, and training, scoring and inference
//! follow.

use std::collections::BTreeMap;

use tfos_data::arrow::array::ArrayRef;
use tfos_executor::ps::{Optimizer, Schedule, Scheduled};
use tfos_executor::{Batch, Error, NodeContext, PhaseKind};

use tch::Tensor;
use tfos_core::cluster::Role;

/// Name of the input that an evaluator scores.
pub const EVAL_INPUT: &str = "eval";

/// A model: variables, loss, metrics, predictions.
pub trait Model: Sized {
    /// Creates the variables on [`NodeContext::variables`]; called once per phase on every node that trains
    /// or scores.
    fn build(context: &NodeContext) -> Result<Self, Error>;

    /// How the variables are updated.
    fn optimizer(&self) -> Optimizer;

    /// How the optimizer's rate changes over the global steps; not at all by default.
    fn schedule(&self) -> Schedule {
        Schedule::constant()
    }

    /// L2 norm to which larger gradients are scaled down, as by PyTorch's `clip_grad_norm_`; none by default. See
    /// [`Scheduled::with_clip_norm`].
    fn clip_norm(&self) -> Option<f64> {
        None
    }

    /// Rows per step of each worker.
    fn batch_size(&self) -> usize;

    /// Whether training leaves out what is left of an epoch when it is fewer rows than a batch; see
    /// [`DataFeed::drop_last`](crate::DataFeed::drop_last). Not by default.
    fn drop_last(&self) -> bool {
        false
    }

    /// Loss of a batch: a scalar, the mean over its rows.
    fn loss(&self, batch: &Batch) -> Result<Tensor, Error>;

    /// Metrics of a batch, each the mean over its rows; none by default.
    fn metrics(&self, _batch: &Batch) -> Result<Vec<(&'static str, f64)>, Error> {
        Ok(vec![])
    }

    /// Predictions for a batch: named columns with one value per row.
    fn predict(&self, batch: &Batch) -> Result<Vec<(&'static str, ArrayRef)>, Error>;
}

/// The body of a node for a [`Model`], whatever the phase and the role.
pub fn run_model<M: Model>(context: &mut NodeContext) -> Result<(), Error> {
    let model = M::build(context)?;
    if context.node().role == Role::Evaluator {
        return score_checkpoints(&model, context);
    }
    let optimizer = model.optimizer().with_schedule(model.schedule());
    context.train_with(Scheduled { clip_norm: model.clip_norm(), ..optimizer })?;
    let mut feed = context.data_feed()?;
    match context.kind() {
        PhaseKind::Train => {
            feed = feed.drop_last(model.drop_last());
            while let Some(batch) = feed.next_batch(model.batch_size())? {
                let loss = model.loss(&batch)?;
                context.step(&loss)?;
            }
        }
        PhaseKind::Evaluate => {
            while let Some(batch) = feed.next_batch(model.batch_size())? {
                let metrics = tch::no_grad(|| model.metrics(&batch))?;
                context.report_metrics(&metrics, batch.rows() as u64);
            }
        }
        PhaseKind::Inference => {
            while let Some(batch) = feed.next_batch(model.batch_size())? {
                let columns = tch::no_grad(|| model.predict(&batch))?;
                context.batch_results(&columns)?;
            }
        }
    }
    Ok(())
}

/// Scores every checkpoint on the input `eval`.
fn score_checkpoints<M: Model>(model: &M, context: &mut NodeContext) -> Result<(), Error> {
    while let Some(manifest) = context.next_checkpoint() {
        match context.load_from(&manifest) {
            // Deleted meanwhile, because newer ones are there: the next one counts.
            Err(e) if e.is_gone() => {
                tracing::info!("checkpoint {manifest} is gone; use a larger --keep-checkpoints to have it scored");
                continue;
            }
            other => other?,
        }
        let mut sums: BTreeMap<&'static str, f64> = BTreeMap::new();
        let mut rows = 0u64;
        for batch in context.input_batches(EVAL_INPUT, 512)? {
            let batch = batch?;
            for (name, value) in tch::no_grad(|| model.metrics(&batch))? {
                *sums.entry(name).or_default() += value * batch.rows() as f64;
            }
            rows += batch.rows() as u64;
        }
        let means: Vec<(&str, f64)> = sums.into_iter().map(|(name, sum)| (name, sum / rows.max(1) as f64)).collect();
        tracing::info!("checkpoint {manifest} on {rows} rows: {means:?}");
        context.report_metrics(&means, rows);
    }
    Ok(())
}
