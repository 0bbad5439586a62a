//! What the command prints: results on stdout, for people or as one JSON object.
#![expect(clippy::print_stdout, reason = "results go to stdout")]

use std::sync::Arc;

use serde_json::json;
use tfos_core::config::{Consistency, Engine, Job, Master};
use tfos_core::failure::chain;

use super::flags::Output;
use super::placement::Placed;
use crate::cluster::Ended;
use crate::{Application, Error, Result};

/// Version of the program, of libtorch, and the devices.
pub(super) fn long_version() -> String {
    let own = env!("CARGO_PKG_VERSION");
    #[cfg(feature = "torch")]
    {
        let torch = tfos_executor::torch::torch_version();
        format!("{own} (libtorch {torch}; devices: {})", tfos_executor::torch::describe_devices().join(", "))
    }
    #[cfg(not(feature = "torch"))]
    format!("{own} (without libtorch)")
}

/// One message: the error and its causes, and for a failed node where to look.
pub(super) fn error_text(error: &Error) -> String {
    chain(error).join(": ")
}

pub(super) fn apps(applications: &[Arc<dyn Application>], output: Output) -> Result<u8> {
    match output {
        Output::Text => {
            let width = applications.iter().map(|a| a.name().len()).max().unwrap_or(0);
            for a in applications {
                println!("{:width$}  {}", a.name(), a.about());
            }
        }
        Output::Json => {
            let list: Vec<_> = applications.iter().map(|a| json!({"name": a.name(), "about": a.about()})).collect();
            println!("{}", json!(list));
        }
    }
    Ok(0)
}

/// The cluster that would be formed.
pub(super) fn dry_run(job: &Job, placed: &Placed, output: Output) {
    let nodes = job.shape.nodes();
    let gpus = |role| if role == crate::Role::Ps { 0 } else { job.num_gpus };
    if output == Output::Json {
        let nodes: Vec<_> = nodes
            .iter()
            .enumerate()
            .map(|(id, n)| json!({"executor_id": id, "node": n.to_string(), "role": n.role, "gpus": gpus(n.role)}))
            .collect();
        println!(
            "{}",
            json!({"application": job.application, "nodes": nodes, "placement": placed.json(job), "job": job})
        );
        return;
    }
    let launcher = match job.master {
        Master::Local => "local (child processes of this program)",
        Master::Standalone => "standalone (executors that you start)",
    };
    println!("application    {} {}", job.application, job.arguments.join(" "));
    println!("launcher       {launcher}");
    println!("model dir      {}", job.model_dir.as_deref().unwrap_or("temporary, gone with the job"));
    let mode = match &job.consistency {
        Consistency::Deterministic { micro_batches } => {
            format!("deterministic, of {micro_batches} batches each, added in one order")
        }
        _ if job.shape.num_ps == 0 => "one trainer, nothing is sent".to_owned(),
        Consistency::Async => "asynchronous".to_owned(),
        Consistency::Sync { replicas_to_aggregate } => {
            format!("synchronous, {replicas_to_aggregate} of {} gradients per update", job.shape.num_trainers())
        }
        Consistency::Bounded { max_staleness } => {
            format!("asynchronous, nobody more than {max_staleness} steps ahead of the slowest")
        }
        Consistency::Groups { .. } => format!("by groups of variables: {}", job.consistency),
        Consistency::LocalSgd { steps } => {
            format!("local: each training node takes {steps} steps alone, then all are averaged")
        }
    };
    println!("updates        {mode}");
    println!("precision      {}", job.precision);
    let engine = match job.engine {
        Some(engine) => engine.to_string(),
        None if Engine::Ballista.is_built_in() => "datafusion; ballista when executors are on several hosts".into(),
        None => "datafusion".into(),
    };
    println!("joins, sorts   {engine}");
    println!("executors      {}", job.shape.cluster_size);
    for (id, node) in nodes.iter().enumerate() {
        println!("  {id:<4} {:<12} {} GPU(s)", node.to_string(), gpus(node.role));
    }
    if job.shape.num_ps > 0 {
        println!("transport      {}", job.plane.transport);
    }
    placed.lines(job).iter().for_each(|line| println!("{line}"));
}

/// The end of a job that stops at once: nothing is known of it but that.
pub(super) fn aborted() {
    println!("{}", json!({"status": "interrupted", "error": error_text(&Error::Interrupted)}));
}

/// The end of a command that failed before it had a result.
pub(super) fn failed(error: &Error) {
    println!("{}", json!({"status": "failed", "error": error_text(error)}));
}

/// The end of a job.
pub(super) fn summary(name: &str, result: &Result<()>, ended: Option<&Ended>, wall: f64, output: Output) {
    let train = ended.and_then(|e| e.report.train.clone()).unwrap_or_default();
    let metrics = ended.map(|e| e.report.metrics.clone()).unwrap_or_default();
    let rate = if train.seconds > 0.0 { train.rows as f64 / train.seconds } else { 0.0 };
    let checkpoint = ended.and_then(|e| e.checkpoint.clone()).filter(|_| ended.is_some_and(|e| e.kept));
    if output == Output::Json {
        let error = result.as_ref().err();
        println!(
            "{}",
            json!({
                "application": name,
                "status": match error { None => "ok", Some(Error::Interrupted) => "interrupted", Some(_) => "failed" },
                "global_step": train.global_step.max(checkpoint.as_ref().map_or(0, |c| c.1)),
                "rows": train.rows,
                "rows_per_sec": rate,
                "epochs": train.epochs,
                "loss": train.loss,
                "metrics": metrics,
                "dropped_gradients": train.dropped,
                "rows_passed_over": train.passed_over,
                "largest_staleness": train.largest_staleness,
                "feed_memory": train.feed_memory,
                "already_done": train.already_done,
                "inference_rows": ended.and_then(|e| e.report.inference_rows),
                "checkpoint": checkpoint.as_ref().map(|c| &c.0),
                "parameters_crc32c": ended.and_then(|e| e.digest).map(|d| d.parameters_crc32c),
                "model_dir": ended.filter(|e| e.kept).map(|e| &e.model_dir),
                "first_step_secs": train.first_step_seconds,
                "wall_secs": wall,
                "generation": ended.map(|e| e.generation),
                "root_cause": error.and_then(Error::root_cause),
                "error": error.map(error_text),
            })
        );
        return;
    }
    let Some(ended) = ended else { return };
    if result.is_ok() && train.global_step > 0 {
        println!(
            "{name}: step {}, {} epochs, {} rows in this run ({rate:.0} rows/s), {wall:.1} s",
            train.global_step, train.epochs, train.rows
        );
        if train.largest_staleness > 0 {
            println!("staleness: nobody was more than {} steps ahead of the slowest", train.largest_staleness);
        }
    }
    for (metric, value) in &metrics {
        println!("{metric}: {value:.4}");
    }
    if let Some(digest) = ended.digest {
        println!("parameters: crc32c {:08x}", digest.parameters_crc32c);
    }
    if let Some((path, step)) = &checkpoint {
        println!("checkpoint: {}/{path} (step {step})", ended.model_dir.trim_end_matches('/'));
        if result.is_ok() {
            println!("to train on, submit again with --model-dir {} and more --epochs", ended.model_dir);
        } else {
            println!("to resume, submit again with --model-dir {}", ended.model_dir);
        }
    }
}
