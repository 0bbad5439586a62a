//! Two small networks for 28x28 grey images: one of dense layers, one convolutional with batch normalization.

use tch::nn::{self, Init};
use tch::{Kind, TchError, Tensor};

/// Width and height of the images, in pixels.
const SIDE: i64 = 28;

/// Pixels of an image.
const PIXELS: i64 = SIDE * SIDE;

/// Two dense layers with a relu between: 784 - 256 - classes.
#[derive(Debug)]
pub struct Mlp {
    hidden: Dense,
    output: Dense,
}

impl Mlp {
    /// Neurons between input and output.
    pub const HIDDEN: i64 = 256;

    /// Makes the variables `hidden.{weight,bias}` and `output.{weight,bias}` under `vs`, on its device.
    pub fn new(vs: &nn::Path<'_>, classes: i64) -> Result<Self, TchError> {
        Ok(Self {
            hidden: Dense::new(&(vs / "hidden"), PIXELS, Self::HIDDEN)?,
            output: Dense::new(&(vs / "output"), Self::HIDDEN, classes)?,
        })
    }

    /// Logits, f32 `[n, classes]`, of `images`, `[n, 784]` as u8 (0 to 255) or float (0 to 1), on the variables' device.
    /// Training and scoring do not differ.
    pub fn forward(&self, images: &Tensor, _train: bool) -> Result<Tensor, TchError> {
        self.output.forward(&self.hidden.forward(&unit(images)?)?.f_relu()?)
    }
}

/// Two blocks of 5x5 convolution, batch normalization, relu and 2x2 pooling, then dropout and one dense layer.
///
/// Batch normalization keeps running means and variances: variables that no gradient reaches, but that a checkpoint
/// needs for scoring.
#[derive(Debug)]
pub struct Cnn {
    first: Block,
    second: Block,
    output: Dense,
}

impl Cnn {
    /// Channels of the first and the second block.
    pub const CHANNELS: [i64; 2] = [8, 16];

    /// Share of the last features that training forgets at random.
    pub const DROPOUT: f64 = 0.25;

    /// Makes the variables of `conv1`, `conv2` and `output` under `vs`, on its device.
    pub fn new(vs: &nn::Path<'_>, classes: i64) -> Result<Self, TchError> {
        let [first, second] = Self::CHANNELS;
        // Two poolings have divided each side by four.
        let features = second * (SIDE / 4) * (SIDE / 4);
        Ok(Self {
            first: Block::new(&(vs / "conv1"), 1, first)?,
            second: Block::new(&(vs / "conv2"), first, second)?,
            output: Dense::new(&(vs / "output"), features, classes)?,
        })
    }

    /// Logits, f32 `[n, classes]`, of `images`, `[n, 784]` as u8 (0 to 255) or float (0 to 1), on the variables' device.
    /// With `train`, dropout is on, and batch normalization uses and records this batch's statistics.
    pub fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor, TchError> {
        let images = unit(images)?.f_view([-1, 1, SIDE, SIDE])?;
        let features = self.second.forward(&self.first.forward(&images, train)?, train)?;
        self.output.forward(&features.f_flatten(1, -1)?.f_dropout(Self::DROPOUT, train)?)
    }
}

/// A dense layer without activation.
#[derive(Debug)]
struct Dense {
    weight: Tensor,
    bias: Tensor,
}

impl Dense {
    fn new(vs: &nn::Path<'_>, inputs: i64, outputs: i64) -> Result<Self, TchError> {
        Ok(Self {
            weight: vs.f_var("weight", &[outputs, inputs], nn::init::DEFAULT_KAIMING_UNIFORM)?,
            bias: vs.f_var("bias", &[outputs], Init::Const(0.0))?,
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        input.f_linear(&self.weight, Some(&self.bias))
    }
}

/// Convolution, batch normalization, relu, pooling: `[n, c, h, w]` to `[n, c', h/2, w/2]`.
#[derive(Debug)]
struct Block {
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    variance: Tensor,
}

impl Block {
    const KERNEL: i64 = 5;

    fn new(vs: &nn::Path<'_>, inputs: i64, outputs: i64) -> Result<Self, TchError> {
        let norm = vs / "norm";
        Ok(Self {
            // No bias: the normalization would subtract it.
            weight: vs.f_var(
                "weight",
                &[outputs, inputs, Self::KERNEL, Self::KERNEL],
                nn::init::DEFAULT_KAIMING_UNIFORM,
            )?,
            scale: norm.f_var("weight", &[outputs], Init::Const(1.0))?,
            shift: norm.f_var("bias", &[outputs], Init::Const(0.0))?,
            mean: norm.f_zeros_no_train("running_mean", &[outputs])?,
            variance: norm.f_ones_no_train("running_var", &[outputs])?,
        })
    }

    fn forward(&self, input: &Tensor, train: bool) -> Result<Tensor, TchError> {
        const MOMENTUM: f64 = 0.1;
        const EPSILON: f64 = 1e-5;
        input
            .f_conv2d(&self.weight, None::<&Tensor>, 1, Self::KERNEL / 2, 1, 1)?
            .f_batch_norm(
                Some(&self.scale),
                Some(&self.shift),
                Some(&self.mean),
                Some(&self.variance),
                train,
                MOMENTUM,
                EPSILON,
                true,
            )?
            .f_relu()?
            .f_max_pool2d(2, 2, 0, 1, false)
    }
}

/// Images as f32 between 0 and 1.
fn unit(images: &Tensor) -> Result<Tensor, TchError> {
    match images.f_kind()? {
        Kind::Float => Ok(images.shallow_clone()),
        Kind::Uint8 => images.f_to_kind(Kind::Float)?.f_div_scalar(255.0),
        _ => images.f_to_kind(Kind::Float),
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    /// Losses of `steps` steps on one batch: any network that gets gradients learns it by heart.
    fn losses(forward: impl Fn(&Tensor) -> Tensor, vs: &nn::VarStore, steps: usize) -> (f64, f64) {
        use nn::OptimizerConfig;
        // Tests run side by side, and libtorch's threads would spin waiting for each other.
        tch::set_num_threads(1);
        let images = Tensor::randint(256, [32, PIXELS], (Kind::Uint8, Device::Cpu));
        let labels = Tensor::arange(32, (Kind::Int64, Device::Cpu)).remainder(10);
        let mut optimizer = nn::Adam::default().build(vs, 1e-2).unwrap();
        let losses: Vec<f64> = (0..steps)
            .map(|_| {
                let loss = forward(&images).cross_entropy_for_logits(&labels);
                optimizer.backward_step(&loss);
                loss.double_value(&[])
            })
            .collect();
        (losses[0], losses[steps - 1])
    }

    #[test]
    fn the_mlp_learns_a_batch() {
        let vs = nn::VarStore::new(Device::Cpu);
        let network = Mlp::new(&vs.root(), 10).unwrap();
        let (first, last) = losses(|images| network.forward(images, true).unwrap(), &vs, 50);
        assert!(last < first / 10.0, "{first} {last}");
        let mut names: Vec<String> = vs.variables().into_keys().collect();
        names.sort();
        assert_eq!(names, ["hidden.bias", "hidden.weight", "output.bias", "output.weight"]);
    }

    #[test]
    fn the_cnn_learns_a_batch_and_its_statistics() {
        let vs = nn::VarStore::new(Device::Cpu);
        let network = Cnn::new(&vs.root(), 10).unwrap();
        let (first, last) = losses(|images| network.forward(images, true).unwrap(), &vs, 15);
        assert!(last < first / 3.0, "{first} {last}");
        assert!(network.first.mean.abs().max().double_value(&[]) > 0.0);
        assert_eq!(vs.trainable_variables().len(), 8);
        assert_eq!(vs.variables().len(), 12);
    }

    #[test]
    fn bytes_and_unit_floats_score_alike() {
        let vs = nn::VarStore::new(Device::Cpu);
        let network = Cnn::new(&vs.root(), 7).unwrap();
        let bytes = Tensor::randint(256, [3, PIXELS], (Kind::Uint8, Device::Cpu));
        let floats = bytes.to_kind(Kind::Double) / 255.0;
        let scores = network.forward(&bytes, false).unwrap();
        assert_eq!(scores.size(), [3, 7]);
        assert!(scores.allclose(&network.forward(&floats, false).unwrap(), 1e-4, 1e-5, false));
    }

    #[test]
    fn a_wrong_shape_is_an_error() {
        let vs = nn::VarStore::new(Device::Cpu);
        let images = Tensor::zeros([2, 100], (Kind::Float, Device::Cpu));
        assert!(Mlp::new(&(vs.root() / "mlp"), 10).unwrap().forward(&images, false).is_err());
        assert!(Cnn::new(&(vs.root() / "cnn"), 10).unwrap().forward(&images, false).is_err());
    }
}
