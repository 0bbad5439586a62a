//! Handwritten digits: the main job of the README, on drawn digits or on any data of that shape.

mod args;
mod model;

use tfos_core::config::InputMode;
use tfos_data::datafusion::dataframe::DataFrameWriteOptions;

use super::digits;
use crate::application::{Shapes, Stop};
use crate::cluster::check_columns;
use crate::model::EVAL_INPUT;
use crate::{Application, Cluster, DirectInput, Error, NodeContext, NodeError, Result, run_model};
use args::Mode;

pub use args::{Args, Decline, Network, Rule};
pub use model::Classifier;

/// See the module's text.
#[derive(Debug, Clone, Copy)]
pub struct Mnist;

/// What training and scoring need.
const COLUMNS: [&str; 2] = ["image", "label"];

/// Share of the drawn digits that is kept for scoring.
const EVAL_SHARE: usize = 5;

impl Application for Mnist {
    fn name(&self) -> &str {
        "mnist"
    }

    fn about(&self) -> &str {
        "classifier of handwritten digits, on digits that it draws or on --data"
    }

    fn check(&self, arguments: &[String]) -> std::result::Result<(), Stop> {
        Args::read(arguments).map(drop)
    }

    fn node_arguments(&self, arguments: &[String]) -> std::result::Result<Option<String>, Stop> {
        serde_json::to_string(&Args::read(arguments)?).map(Some).map_err(|e| Stop::Usage(e.to_string()))
    }

    fn inputs(&self, _node_arguments: &str) -> Vec<String> {
        vec!["image".into()]
    }

    fn variables(&self, arguments: &[String]) -> std::result::Result<Option<Shapes>, Stop> {
        let args = Args::read(arguments)?;
        model::variables(args.network).map(Some).map_err(|e| Stop::Usage(e.to_string()))
    }

    fn main(&self, cluster: &mut Cluster, arguments: &[String]) -> Result<()> {
        let mut args = Args::read(arguments).map_err(|stop| match stop {
            Stop::Help(text) | Stop::Usage(text) => Error::Usage(text),
        })?;
        let seed = *args.seed.get_or_insert(cluster.job().seed);
        if args.data.is_none() {
            draw(cluster, &mut args, seed)?;
        }
        let data = args.data.clone().unwrap_or_default();
        let format = cluster.format_of(&data, args.format.as_deref())?;
        cluster.set_arguments(&args)?;
        let eval = match &args.eval_data {
            Some(url) => {
                let format = cluster.format_of(url, args.format.as_deref())?;
                let rows = cluster.read(url, format, args.schema.as_deref())?;
                check_columns(&rows, url, &COLUMNS)?;
                Some(rows)
            }
            None => None,
        };
        match (&eval, cluster.job().shape.evaluator) {
            (Some(rows), true) => cluster.add_input(EVAL_INPUT, rows.clone()),
            (None, true) => return Err(Error::Usage("--evaluator needs --eval-data to score on".into())),
            (_, false) => {}
        }
        let mode = match args.input_mode {
            Mode::Feed => InputMode::Feed,
            Mode::Direct => InputMode::Direct,
        };
        let direct = DirectInput { url: data.clone(), format, schema: args.schema.clone() };
        let rows = |cluster: &Cluster| {
            cluster.register("data", &data, format, args.schema.as_deref())?;
            let rows = match &args.sql {
                Some(query) => cluster.sql(query)?,
                None => cluster.sql("SELECT image, label FROM data")?,
            };
            check_columns(&rows, args.sql.as_deref().unwrap_or(&data), &COLUMNS)?;
            Ok(rows)
        };
        cluster.shuffle(args.shuffle_block, seed);
        cluster.train_input(mode, rows, &direct, args.passes())?;
        let Some(eval) = eval else { return Ok(()) };
        if !cluster.job().shape.evaluator {
            cluster.evaluate(eval.clone())?;
        }
        if let Some(file) = &args.predictions {
            let scored = cluster.inference(eval)?;
            let scored = scored.select_columns(&["label", "prediction"])?;
            cluster.block_on(scored.write_parquet(file, DataFrameWriteOptions::new(), None))?;
        }
        Ok(())
    }

    fn node(&self, context: &mut NodeContext) -> std::result::Result<(), NodeError> {
        run_model::<Classifier>(context)
    }
}

/// Draws digits into the model directory, once: a job that resumes finds the same ones.
fn draw(cluster: &Cluster, args: &mut Args, seed: u64) -> Result<()> {
    let folder = format!("{}/job/digits", cluster.model_dir().trim_end_matches('/'));
    let eval_rows = (args.rows / EVAL_SHARE).max(1);
    let train = format!("{folder}/train-seed{seed}-{}.parquet", args.rows);
    let eval = format!("{folder}/eval-seed{seed}-{eval_rows}.parquet");
    for (path, seed, rows) in [(&train, seed, args.rows), (&eval, seed.wrapping_add(1), eval_rows)] {
        if cluster.block_on(tfos_data::store::list(path)).is_ok() {
            continue;
        }
        let batch = digits::record_batch(seed, rows).map_err(tfos_data::Error::from)?;
        let frame = cluster.session().read_batch(batch)?;
        let (_, _, url) = tfos_data::store::resolve(path)?;
        tfos_data::store::register(&cluster.session().runtime_env(), &url)?;
        let options = DataFrameWriteOptions::new().with_single_file_output(true);
        cluster.block_on(frame.write_parquet(url.as_str(), options, None))?;
    }
    args.format = Some("parquet".into());
    args.data = Some(train);
    args.eval_data.get_or_insert(eval);
    Ok(())
}
