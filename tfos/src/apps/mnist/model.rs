//! The classifier: one of two networks, cross entropy, accuracy.

use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};
use tfos_data::arrow::array::{ArrayRef, Float32Array, Int64Array};
use tfos_executor::ps::{Optimizer, Schedule};
use tfos_executor::{Batch, Error, NodeContext, PhaseKind};

use super::args::{Args, Network};
use crate::Model;
use crate::apps::columns::floats;
use crate::apps::networks::{Cnn, Mlp};

/// Digits.
const CLASSES: i64 = 10;

/// Width and height of an image.
const SIDE: i64 = 28;

#[derive(Debug)]
enum Net {
    Mlp(Mlp),
    Cnn(Cnn),
}

/// See the module's text.
#[derive(Debug)]
pub struct Classifier {
    net: Net,
    args: Args,
    device: Device,
}

impl Classifier {
    /// Logits, f32 `[rows, 10]`.
    fn forward(&self, batch: &Batch, train: bool) -> Result<Tensor, Error> {
        let mut images = self.to_device(batch.tensor("image")?)?;
        if train && self.args.shift > 0 {
            images = shifted(&images, self.offsets(batch))?;
        }
        Ok(match &self.net {
            Net::Mlp(net) => net.forward(&images, train)?,
            Net::Cnn(net) => net.forward(&images, train)?,
        })
    }

    /// By how many pixels to move the batch: from its first row's address, so that a run can be repeated.
    fn offsets(&self, batch: &Batch) -> [i64; 2] {
        let Some(first) = batch.ranges().first() else { return [0, 0] };
        let address = [self.args.seed.unwrap_or_default(), first.epoch.into(), first.partition.into(), first.start];
        let mut seed = [0; 32];
        for (bytes, part) in seed.chunks_exact_mut(8).zip(address) {
            bytes.copy_from_slice(&part.to_le_bytes());
        }
        let mut random = ChaCha8Rng::from_seed(seed);
        let most = i64::from(self.args.shift);
        [random.random_range(-most..=most), random.random_range(-most..=most)]
    }

    fn labels(&self, batch: &Batch) -> Result<Tensor, Error> {
        self.to_device(batch.tensor("label")?.f_to_kind(Kind::Int64)?)
    }

    fn to_device(&self, tensor: Tensor) -> Result<Tensor, Error> {
        Ok(if self.device == Device::Cpu { tensor } else { tensor.f_to_device(self.device)? })
    }
}

/// What a network trains, in the order of its creation.
pub(super) fn variables(network: Network) -> Result<Vec<(String, Vec<i64>)>, Error> {
    let vs = tch::nn::VarStore::new(Device::Cpu);
    match network {
        Network::Mlp => drop(Mlp::new(&vs.root(), CLASSES)?),
        Network::Cnn => drop(Cnn::new(&vs.root(), CLASSES)?),
    }
    Ok(tfos_executor::torch::created(&vs))
}

/// `images`, `[n, 784]`, moved down and to the right by so many pixels; what comes in is black.
fn shifted(images: &Tensor, [down, right]: [i64; 2]) -> Result<Tensor, Error> {
    let pad = [right, -right, down, -down];
    let grid = images.f_view([-1, SIDE, SIDE])?;
    Ok(grid.f_constant_pad_nd(pad)?.f_contiguous()?.f_view([-1, SIDE * SIDE])?)
}

impl Model for Classifier {
    fn build(context: &NodeContext) -> Result<Self, Error> {
        let args: Args = serde_json::from_str(context.arguments()).map_err(Error::application)?;
        if context.kind() == PhaseKind::Train && context.worker_num() == 0 {
            // The chief's values are everybody's: the network depends on the seed alone.
            tch::manual_seed(args.seed.unwrap_or(context.seed()) as i64);
        }
        let vs = context.variables();
        let net = match args.network {
            Network::Mlp => Net::Mlp(Mlp::new(&vs, CLASSES)?),
            Network::Cnn => Net::Cnn(Cnn::new(&vs, CLASSES)?),
        };
        Ok(Self { net, args, device: context.device() })
    }

    fn optimizer(&self) -> Optimizer {
        self.args.rule()
    }

    fn schedule(&self) -> Schedule {
        self.args.rates()
    }

    fn clip_norm(&self) -> Option<f64> {
        self.args.clip_norm
    }

    fn batch_size(&self) -> usize {
        self.args.batch_size
    }

    fn loss(&self, batch: &Batch) -> Result<Tensor, Error> {
        let labels = self.labels(batch)?;
        let logits = self.forward(batch, true)?;
        let sum = logits.f_cross_entropy_loss::<Tensor>(&labels, None, tch::Reduction::Sum, -100, 0.0)?;
        // Over the size of a full batch: at the end of an epoch a batch may be a single row, and with the mean over it that
        // row would weigh as much as a whole batch: misclassified, it can undo a part of what was learned.
        Ok(sum.f_div_scalar(self.args.batch_size as f64)?)
    }

    fn metrics(&self, batch: &Batch) -> Result<Vec<(&'static str, f64)>, Error> {
        let labels = self.labels(batch)?;
        let logits = self.forward(batch, false)?;
        let loss = logits.f_cross_entropy_loss::<Tensor>(&labels, None, tch::Reduction::Mean, -100, 0.0)?;
        let right = logits.f_argmax(-1, false)?.f_eq_tensor(&labels)?.f_to_kind(Kind::Float)?.f_mean(Kind::Float)?;
        Ok(vec![("accuracy", right.f_double_value(&[])?), ("loss", loss.f_double_value(&[])?)])
    }

    fn predict(&self, batch: &Batch) -> Result<Vec<(&'static str, ArrayRef)>, Error> {
        let logits = self.forward(batch, false)?.f_to_device(Device::Cpu)?;
        let probabilities = logits.f_softmax(-1, Kind::Float)?;
        let (confidence, digit) = probabilities.f_max_dim(-1, false)?;
        let digits: Vec<i64> = Vec::try_from(digit)?;
        let confidence: Vec<f32> = Vec::try_from(confidence)?;
        Ok(vec![
            ("prediction", Arc::new(Int64Array::from(digits))),
            ("confidence", Arc::new(Float32Array::from(confidence))),
            ("probabilities", floats(&probabilities)?),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_move_and_what_comes_in_is_black() {
        let image = Tensor::arange(784, (Kind::Float, Device::Cpu)).f_add_scalar(1).unwrap().view([1, 784]);
        let moved = shifted(&image, [1, -2]).unwrap().view([SIDE, SIDE]);
        assert_eq!(moved.double_value(&[0, 5]), 0.0);
        assert_eq!(moved.double_value(&[5, 27]), 0.0);
        // Row 4, column 5 of the image: 4 * 28 + 5 + 1.
        assert_eq!(moved.double_value(&[5, 3]), 118.0);
        assert!(shifted(&image, [0, 0]).unwrap().equal(&image));
    }
}
