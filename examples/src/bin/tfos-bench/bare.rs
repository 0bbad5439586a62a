//! The same training loop in bare tch: images in memory, libtorch's own Adam, no framework.

use std::time::Instant;

use tfos::apps::networks::Mlp;
use tfos::data::arrow::array::RecordBatch;
use tfos::prelude::*;
use tfos::tch::Reduction;
use tfos::tch::nn::OptimizerConfig;

use crate::apps::{TRAIN_BATCH, WARM_UP};

/// Steps per second after the warm-up.
pub(crate) fn steps_per_second(data: &RecordBatch, epochs: u32) -> Result<f64, NodeError> {
    let whole = Batch::from_record_batch(data.clone());
    let (images, labels) = (whole.tensor("image")?, whole.tensor("label")?);
    let vs = nn::VarStore::new(Device::Cpu);
    let net = Mlp::new(&vs.root(), 10)?;
    let mut optimizer = nn::Adam::default().build(&vs, 1e-3)?;
    let rows = data.num_rows() as i64;
    let (mut steps, mut begun) = (0usize, Instant::now());
    let mut sum = 0.0;
    for _ in 0..epochs {
        let mut at = 0;
        while at < rows {
            let n = (TRAIN_BATCH as i64).min(rows - at);
            let logits = net.forward(&images.f_narrow(0, at, n)?, true)?;
            let label = labels.f_narrow(0, at, n)?;
            let loss = logits.f_cross_entropy_loss::<Tensor>(&label, None, Reduction::Mean, -100, 0.0)?;
            optimizer.backward_step(&loss);
            // Whoever trains looks at the loss.
            sum += loss.f_double_value(&[])?;
            at += n;
            steps += 1;
            if steps == WARM_UP {
                begun = Instant::now();
            }
        }
    }
    let rate = (steps.saturating_sub(WARM_UP)) as f64 / begun.elapsed().as_secs_f64();
    if sum.is_finite() { Ok(rate) } else { Err(NodeError::application("the loss is not finite")) }
}
