//! TensorFlowOnSpark's linear regression: y = 3.14 a + 1.618 b from 1,000 rows, then inference on (1, 1), which has
//! to give 4.758. Shows a hand-written loop, data from SQL alone, and results as a DataFrame.

use std::sync::Arc;

use tfos::data::arrow::array::{ArrayRef, AsArray, Float32Array};
use tfos::data::arrow::datatypes::Float32Type;
use tfos::prelude::*;

#[expect(clippy::approx_constant, reason = "the weights of the original test, not pi")]
const WEIGHTS: [f64; 2] = [3.14, 1.618];

struct LinearRegression;

impl Application for LinearRegression {
    fn name(&self) -> &str {
        "linear_regression"
    }

    fn main(&self, cluster: &mut Cluster, _arguments: &[String]) -> Result<()> {
        let data = cluster.model_dir();
        let folder = format!("{}/job/regression", data.trim_end_matches('/'));
        let rows = format!("{folder}/rows.parquet");
        write_rows(cluster, &rows)?;
        let train = cluster.sql(&format!("SELECT a, b, y FROM '{rows}'"))?;
        let outcome = cluster.train(train, 120)?;
        let one = cluster
            .sql(&format!("SELECT CAST(a - a + 1 AS FLOAT) AS a, CAST(b - b + 1 AS FLOAT) AS b, y FROM '{rows}'"))?;
        let scored = cluster.inference(one)?;
        let batches = cluster.block_on(scored.collect())?;
        let predictions: Vec<f32> = batches
            .iter()
            .filter_map(|b| b.column_by_name("prediction"))
            .flat_map(|c| c.as_primitive::<Float32Type>().values().to_vec())
            .collect();
        let first = predictions.first().copied().unwrap_or(f32::NAN);
        println!("step {}: {} predictions, f(1, 1) = {first:.4}", outcome.global_step, predictions.len());
        let wanted = (WEIGHTS[0] + WEIGHTS[1]) as f32;
        if predictions.len() != 1000 || predictions.iter().any(|p| (p - wanted).abs() > 5e-4) {
            return Err(Error::Application(format!("f(1, 1) should be {wanted:.3} on each of 1000 rows")));
        }
        Ok(())
    }

    fn node(&self, ctx: &mut NodeContext) -> Result<(), NodeError> {
        let line = nn::linear(ctx.variables() / "line", 2, 1, Default::default());
        ctx.train_with(Optimizer::adam(0.05))?;
        let mut feed = ctx.data_feed()?;
        while let Some(batch) = feed.next_batch(50)? {
            let x = Tensor::f_stack(&[batch.tensor("a")?, batch.tensor("b")?], 1)?;
            let f = line.forward(&x).f_squeeze_dim(1)?;
            match ctx.kind() {
                PhaseKind::Train => {
                    let loss = f.f_sub(&batch.tensor("y")?)?.f_square()?.f_mean(Kind::Float)?;
                    ctx.step(&loss)?;
                }
                PhaseKind::Inference | PhaseKind::Evaluate => {
                    let values: Vec<f32> = Vec::try_from(f)?;
                    let column: ArrayRef = Arc::new(Float32Array::from(values));
                    ctx.batch_results(&[("prediction", column)])?;
                }
            }
        }
        Ok(())
    }
}

/// 1,000 rows on a grid that covers the square (0..1, 0..1) evenly.
fn write_rows(cluster: &Cluster, path: &str) -> Result<()> {
    if cluster.block_on(tfos::data::store::list(path)).is_ok() {
        return Ok(());
    }
    let query = format!(
        "COPY (SELECT CAST(a AS FLOAT) AS a, CAST(b AS FLOAT) AS b, CAST({} * a + {} * b AS FLOAT) AS y FROM
         (SELECT (value % 40) / 40.0 AS a, (value * 7 % 25) / 25.0 AS b FROM generate_series(0, 999)))
         TO '{path}' STORED AS PARQUET",
        WEIGHTS[0], WEIGHTS[1]
    );
    cluster.block_on(cluster.sql(&query)?.collect())?;
    Ok(())
}

fn main() -> std::process::ExitCode {
    tfos::run(LinearRegression)
}
