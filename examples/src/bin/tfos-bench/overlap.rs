//! What it gains that gradients leave while the backward pass still runs: one worker and one ps over a wire of a known
//! rate, with and without, in turn. The wire is the loopback device of a network namespace of the job's own, with a
//! token bucket in front of it: it takes root, or user namespaces.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use tfos::prelude::*;
use tfos::tch::Reduction;

use crate::report::{Report, number, spread};

/// Rows of a step: the backward pass then takes about as long as the gradient on a wire of a few Gb/s.
const BATCH: usize = 256;
/// Neurons of a layer: 4 M parameters in all.
const WIDTH: i64 = 1024;
const LAYERS: usize = 4;
/// Steps that are not measured, and that are.
const WARM_UP: usize = 5;
const STEPS: usize = 40;

/// Trains dense layers of equal width, and measures its own steps.
pub(crate) struct WideApp;

impl Application for WideApp {
    fn name(&self) -> &str {
        "wide"
    }

    fn main(&self, cluster: &mut Cluster, arguments: &[String]) -> Result<()> {
        let [data] = arguments else { return Err(Error::Usage("DATA".into())) };
        let rows = cluster.read(data, tfos::data::session::Format::Arrow, None)?;
        cluster.train(rows, 1)?;
        Ok(())
    }

    fn node(&self, ctx: &mut NodeContext) -> Result<(), NodeError> {
        let vs = ctx.variables();
        let init = tfos::tch::nn::Init::Randn { mean: 0.0, stdev: 0.03 };
        let widths = std::iter::once(784).chain(std::iter::repeat_n(WIDTH, LAYERS)).collect::<Vec<_>>();
        let weights = widths.windows(2).enumerate().map(|(layer, widths)| {
            vs.f_var(&format!("weight{layer}"), &[widths[0], widths[1]], init).map_err(NodeError::application)
        });
        let weights = weights.collect::<Result<Vec<Tensor>, _>>()?;
        ctx.train_with(Optimizer::sgd(1e-3))?;
        let mut feed = ctx.data_feed()?;
        let (mut steps, mut begun) = (0usize, Instant::now());
        while let Some(batch) = feed.next_batch(BATCH)? {
            let mut x = batch.tensor("image")?.f_to_kind(Kind::Float)?.f_div_scalar(255.0)?;
            for weight in &weights {
                x = x.f_matmul(weight)?.f_relu()?;
            }
            let label = batch.tensor("label")?;
            let loss = x.f_cross_entropy_loss::<Tensor>(&label, None, Reduction::Mean, -100, 0.0)?;
            ctx.step(&loss)?;
            steps += 1;
            if steps == WARM_UP {
                begun = Instant::now();
            }
        }
        let seconds = begun.elapsed().as_secs_f64() / steps.saturating_sub(WARM_UP) as f64;
        ctx.report_metrics(&[("step_ms", seconds * 1000.0)], 1);
        Ok(())
    }
}

pub(crate) fn run(arguments: &[String]) -> Result<Report, String> {
    let after = |flag: &str| arguments.iter().skip_while(|a| *a != flag).nth(1).cloned();
    let rounds: usize = after("--rounds").and_then(|n| n.parse().ok()).unwrap_or(3);
    let folder = std::env::temp_dir().join(format!("tfos-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let result = measure(&folder, rounds);
    let _ = std::fs::remove_dir_all(&folder);
    result
}

fn measure(folder: &Path, rounds: usize) -> Result<Report, String> {
    let rows = tfos::apps::digits::record_batch(1, BATCH * (WARM_UP + STEPS)).map_err(|e| e.to_string())?;
    let data = crate::feed::write_arrow(folder, "rows.arrow", &rows)?;
    let mut report = Report::new("overlap");
    report.note(format!(
        "{:.1} M f32 parameters, batches of {BATCH}, 1 ps and 1 worker over TCP, {STEPS} steps, in turn",
        ((784 + (LAYERS as i64 - 1) * WIDTH) * WIDTH) as f64 / 1e6
    ));
    for gigabits in [1, 2, 4] {
        let (mut with, mut without) = (vec![], vec![]);
        for round in 0..rounds {
            for (overlap, times) in [("off", &mut without), ("on", &mut with)] {
                let dir = folder.join(format!("model-{gigabits}-{round}-{overlap}"));
                times.push(job(&data, &dir, gigabits, overlap)?);
            }
        }
        report.runs(&format!("{gigabits} Gb/s, sent after the backward pass"), "ms a step", &without);
        report.runs(&format!("{gigabits} Gb/s, sent meanwhile"), "ms a step", &with);
        let gain = (1.0 - spread(&with).1 / spread(&without).1) * 100.0;
        report.runs(&format!("{gigabits} Gb/s, gain of the medians"), "%", &[gain]);
    }
    Ok(report)
}

/// Milliseconds of a step.
fn job(data: &str, model: &Path, gigabits: u32, overlap: &str) -> Result<f64, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    // Room for a few frames of the loopback device, which has the largest there are.
    let wire = "ip link set lo up && tc qdisc add dev lo root tbf rate \"$0\" burst 512kb latency 50ms && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--net", "sh", "-c", wire, &format!("{gigabits}gbit")]).arg(program);
    command.args(["submit", "--cluster-size", "2", "--num-ps", "1", "--transport", "tcp", "--overlap", overlap]);
    command.arg("--model-dir").arg(model).args(["--quiet", "--output", "json", "wide", "--", data]);
    let output = command.output().map_err(|e| format!("unshare: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    let failed = |e| format!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr));
    let value = serde_json::from_str(last).map_err(failed)?;
    let took = number(&value, "metrics.step_ms");
    if output.status.success() && took.is_finite() { Ok(took) } else { Err(format!("the job failed: {value}")) }
}
