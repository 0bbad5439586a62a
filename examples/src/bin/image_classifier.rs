//! Classifies images of any size and number of classes: columns `image` (raw bytes, height x width x channels) and
//! `label`. Stands where TensorFlowOnSpark's `train_image_classifier` stood.

use std::sync::Arc;

use clap::Parser;
use serde::{Deserialize, Serialize};
use tfos::application::Stop;
use tfos::apps::digits;
use tfos::data::arrow::array::{ArrayRef, Int64Array};
use tfos::data::session::Format;
use tfos::prelude::*;
use tfos::tch::Reduction;

/// Trains a convolutional network on raw images.
#[derive(Debug, Clone, Parser, Serialize, Deserialize)]
#[command(name = "image_classifier", no_binary_name = true)]
struct Args {
    /// Images and labels: parquet or tfrecord files [default: drawn digits].
    #[arg(long)]
    data: Option<String>,
    /// Format of --data.
    #[arg(long, default_value = "parquet")]
    format: String,
    /// Height and width, pixels.
    #[arg(long, default_value_t = 28)]
    size: i64,
    /// Bytes per pixel.
    #[arg(long, default_value_t = 1)]
    channels: i64,
    /// Labels are 0 to this, exclusive.
    #[arg(long, default_value_t = 10)]
    classes: i64,
    /// Channels of the first block; each further one has twice as many.
    #[arg(long, default_value_t = 8)]
    width: i64,
    /// Passes over the data.
    #[arg(long, default_value_t = 3)]
    epochs: u32,
    /// Rows per step of each worker.
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
    /// Learning rate of Adam.
    #[arg(long, default_value_t = 0.001)]
    learning_rate: f64,
}

impl Args {
    fn read(arguments: &[String]) -> Result<Self, Stop> {
        Self::try_parse_from(arguments).map_err(|e| match e.use_stderr() {
            true => Stop::Usage(e.render().to_string()),
            false => Stop::Help(e.render().to_string()),
        })
    }
}

struct ImageClassifier;

impl Application for ImageClassifier {
    fn name(&self) -> &str {
        "image_classifier"
    }

    fn check(&self, arguments: &[String]) -> Result<(), Stop> {
        Args::read(arguments).map(drop)
    }

    fn main(&self, cluster: &mut Cluster, arguments: &[String]) -> Result<()> {
        let args = Args::read(arguments).map_err(|_| Error::Usage("bad arguments".into()))?;
        cluster.set_arguments(&args)?;
        let rows = match &args.data {
            Some(url) => cluster.read(url, args.format.parse::<Format>()?, None)?,
            None => {
                let path = format!("{}/job/images.parquet", cluster.model_dir().trim_end_matches('/'));
                if cluster.block_on(tfos::data::store::list(&path)).is_err() {
                    let batch = digits::record_batch(7, 4000).map_err(tfos::data::Error::from)?;
                    let frame = cluster.session().read_batch(batch)?;
                    let options =
                        tfos::datafusion::dataframe::DataFrameWriteOptions::new().with_single_file_output(true);
                    cluster.block_on(frame.write_parquet(&path, options, None))?;
                }
                cluster.read(&path, Format::Parquet, None)?
            }
        };
        let images = rows.select_columns(&["image", "label"])?;
        cluster.train(images.clone(), args.epochs)?;
        let metrics = cluster.evaluate(images)?;
        println!("accuracy on the training images: {:.4}", metrics.get("accuracy").copied().unwrap_or(f64::NAN));
        Ok(())
    }

    fn node(&self, ctx: &mut NodeContext) -> Result<(), NodeError> {
        run_model::<Network>(ctx)
    }
}

/// Convolutions with stride 2 until 4 x 4 are left, then a mean over the image and a dense layer.
#[derive(Debug)]
struct Network {
    args: Args,
    blocks: Vec<(nn::Conv2D, nn::BatchNorm)>,
    output: nn::Linear,
    device: Device,
}

impl Network {
    fn logits(&self, batch: &Batch, train: bool) -> Result<Tensor, NodeError> {
        let Args { size, channels, .. } = self.args;
        let images = batch.tensor("image")?.f_to_device(self.device)?.f_to_kind(Kind::Float)?;
        let mut x = images.f_div_scalar(255.0)?.f_reshape([-1, size, size, channels])?.f_permute([0, 3, 1, 2])?;
        for (convolution, normalization) in &self.blocks {
            x = convolution.forward(&x.f_contiguous()?);
            x = nn::ModuleT::forward_t(normalization, &x, train).f_relu()?;
        }
        Ok(self.output.forward(&x.f_mean_dim([2i64, 3].as_slice(), false, Kind::Float)?))
    }

    fn labels(&self, batch: &Batch) -> Result<Tensor, NodeError> {
        Ok(batch.tensor("label")?.f_to_kind(Kind::Int64)?.f_to_device(self.device)?)
    }
}

impl Model for Network {
    fn build(context: &NodeContext) -> Result<Self, NodeError> {
        let args: Args = serde_json::from_str(context.arguments()).map_err(NodeError::application)?;
        let vs = context.variables();
        let mut blocks = vec![];
        let (mut side, mut from, mut to) = (args.size, args.channels, args.width);
        while side > 4 {
            let path = &vs / format!("block{}", blocks.len());
            let config = nn::ConvConfig { stride: 2, padding: 1, bias: false, ..Default::default() };
            let convolution = nn::conv2d(&path / "conv", from, to, 3, config);
            blocks.push((convolution, nn::batch_norm2d(&path / "norm", to, Default::default())));
            (side, from, to) = ((side + 1) / 2, to, to * 2);
        }
        let output = nn::linear(&vs / "output", from, args.classes, Default::default());
        Ok(Self { args, blocks, output, device: context.device() })
    }

    fn optimizer(&self) -> Optimizer {
        Optimizer::adam(self.args.learning_rate)
    }

    fn batch_size(&self) -> usize {
        self.args.batch_size
    }

    fn loss(&self, batch: &Batch) -> Result<Tensor, NodeError> {
        let logits = self.logits(batch, true)?;
        Ok(logits.f_cross_entropy_loss::<Tensor>(&self.labels(batch)?, None, Reduction::Mean, -100, 0.0)?)
    }

    fn metrics(&self, batch: &Batch) -> Result<Vec<(&'static str, f64)>, NodeError> {
        let right = self.logits(batch, false)?.f_argmax(-1, false)?.f_eq_tensor(&self.labels(batch)?)?;
        Ok(vec![("accuracy", right.f_to_kind(Kind::Float)?.f_mean(Kind::Float)?.f_double_value(&[])?)])
    }

    fn predict(&self, batch: &Batch) -> Result<Vec<(&'static str, ArrayRef)>, NodeError> {
        let classes: Vec<i64> =
            Vec::try_from(self.logits(batch, false)?.f_argmax(-1, false)?.f_to_device(Device::Cpu)?)?;
        Ok(vec![("prediction", Arc::new(Int64Array::from(classes)))])
    }
}

fn main() -> std::process::ExitCode {
    tfos::run(ImageClassifier)
}
