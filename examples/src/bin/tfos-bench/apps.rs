//! What is measured: a consumer that only makes tensors, and a small training loop.

use std::time::Instant;

use tfos::apps::networks::Mlp;
use tfos::data::session::Format;
use tfos::prelude::*;
use tfos::tch::Reduction;

/// Rows per batch of the feed benchmark, as the peers' scripts use.
pub(crate) const FEED_BATCH: usize = 256;

/// Rows per step of the training loops.
pub(crate) const TRAIN_BATCH: usize = 64;

/// Steps that are not measured: caches fill, memory is allocated.
pub(crate) const WARM_UP: usize = 100;

fn path(arguments: &[String]) -> Result<(String, u32)> {
    let epochs = arguments.get(1).and_then(|n| n.parse().ok()).unwrap_or(1);
    arguments.first().cloned().map(|p| (p, epochs)).ok_or_else(|| Error::Usage("DATA EPOCHS [BLOCK]".into()))
}

fn train(cluster: &mut Cluster, arguments: &[String]) -> Result<()> {
    let (data, epochs) = path(arguments)?;
    let block = arguments.get(2).and_then(|n| n.parse().ok()).unwrap_or(0);
    cluster.shuffle(block, 0);
    let names = std::fs::read_dir(&data).into_iter().flatten().filter_map(|e| e.ok()?.file_name().into_string().ok());
    let format = names.chain([data.clone()]).find_map(|name| Format::from_path(&name)).unwrap_or(Format::Parquet);
    let rows = cluster.read(&data, format, None)?;
    cluster.train(rows, epochs)?;
    Ok(())
}

/// Takes every batch and turns both columns into tensors.
pub(crate) struct FeedApp;

impl Application for FeedApp {
    fn name(&self) -> &str {
        "feed"
    }

    fn main(&self, cluster: &mut Cluster, arguments: &[String]) -> Result<()> {
        train(cluster, arguments)
    }

    fn node(&self, ctx: &mut NodeContext) -> Result<(), NodeError> {
        let mut feed = ctx.data_feed()?;
        let begun = Instant::now();
        let (mut rows, mut sum) = (0u64, 0i64);
        while let Some(batch) = feed.next_batch(FEED_BATCH)? {
            let (image, label) = (batch.tensor("image")?, batch.tensor("label")?);
            rows += image.size().first().copied().unwrap_or(0) as u64;
            sum += label.f_int64_value(&[0])?;
        }
        let seconds = begun.elapsed().as_secs_f64();
        ctx.report_metrics(&[("rows_per_sec", rows as f64 / seconds), ("checksum", sum as f64)], rows.max(1));
        Ok(())
    }
}

/// Trains the small network, and measures its own steps.
pub(crate) struct TrainApp;

impl Application for TrainApp {
    fn name(&self) -> &str {
        "train"
    }

    fn main(&self, cluster: &mut Cluster, arguments: &[String]) -> Result<()> {
        train(cluster, arguments)
    }

    fn node(&self, ctx: &mut NodeContext) -> Result<(), NodeError> {
        let net = Mlp::new(&ctx.variables(), 10)?;
        ctx.train_with(Optimizer::adam(1e-3))?;
        let mut feed = ctx.data_feed()?;
        let (mut steps, mut begun) = (0usize, Instant::now());
        while let Some(batch) = feed.next_batch(TRAIN_BATCH)? {
            let loss = net.forward(&batch.tensor("image")?, true)?;
            let label = batch.tensor("label")?;
            let loss = loss.f_cross_entropy_loss::<Tensor>(&label, None, Reduction::Mean, -100, 0.0)?;
            ctx.step(&loss)?;
            steps += 1;
            if steps == WARM_UP {
                begun = Instant::now();
            }
        }
        let rate = (steps.saturating_sub(WARM_UP)) as f64 / begun.elapsed().as_secs_f64();
        ctx.report_metrics(&[("steps_per_sec", rate)], 1);
        Ok(())
    }
}

/// Columns of the wide table, besides its label.
pub(crate) const DENSE: [&str; 13] = ["f0", "f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9", "f10", "f11", "f12"];
pub(crate) const CATEGORIES: [&str; 26] = [
    "c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8", "c9", "c10", "c11", "c12", "c13", "c14", "c15", "c16", "c17",
    "c18", "c19", "c20", "c21", "c22", "c23", "c24", "c25",
];

/// The schema of a table's TFRecord files.
pub(crate) fn schema(table: &str) -> String {
    if table == "mnist" {
        return "image:uint8[784],label:int64".to_owned();
    }
    let dense = DENSE.iter().map(|name| format!("{name}:float32"));
    let categories = CATEGORIES.iter().map(|name| format!("{name}:int64"));
    dense.chain(categories).chain(["label:int64".to_owned()]).collect::<Vec<_>>().join(",")
}

/// Makes batches that are ready for training, as the peers' scripts do, of arguments DATA EPOCHS TABLE MODE BLOCK.
pub(crate) struct ReadyApp;

impl Application for ReadyApp {
    fn name(&self) -> &str {
        "ready"
    }

    fn main(&self, cluster: &mut Cluster, arguments: &[String]) -> Result<()> {
        let (url, epochs) = path(arguments)?;
        let table = arguments.get(2).map(String::as_str).unwrap_or_default();
        cluster.set_arguments(&table)?;
        cluster.shuffle(arguments.get(4).and_then(|n| n.parse().ok()).unwrap_or(0), 0);
        let format = match url.ends_with("tfrecord") {
            true => Format::TfRecord,
            false => Format::Parquet,
        };
        let schema = (format == Format::TfRecord).then(|| schema(table));
        if arguments.get(3).is_some_and(|mode| mode == "direct") {
            cluster.train_direct(&tfos::DirectInput { url, format, schema }, epochs)?;
            return Ok(());
        }
        let rows = cluster.read(&url, format, schema.as_deref())?;
        cluster.train(rows, epochs)?;
        Ok(())
    }

    fn node(&self, ctx: &mut NodeContext) -> Result<(), NodeError> {
        let begun = Instant::now();
        let mnist = ctx.arguments().contains("mnist");
        let mut feed = ctx.data_feed()?;
        while let Some(batch) = feed.next_batch(FEED_BATCH)? {
            let label = batch.tensor("label")?;
            let ready = match mnist {
                true => vec![batch.tensor("image")?.f_to_kind(Kind::Float)?.f_div_scalar(255.0)?, label],
                false => vec![batch.stacked(&DENSE)?, batch.stacked(&CATEGORIES)?, label],
            };
            std::hint::black_box(ready);
        }
        ctx.report_metrics(&[("seconds", begun.elapsed().as_secs_f64())], 1);
        Ok(())
    }
}
