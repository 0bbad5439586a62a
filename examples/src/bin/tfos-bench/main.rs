//! The project's own benchmarks: `cargo xtask bench NAME [--output json]`. The programs that are measured are
//! applications of this same binary.

mod apps;
mod bare;
mod checkpoint;
mod convergence;
mod feed;
mod feed_peers;
mod memory;
mod overhead;
mod overlap;
mod report;
mod submit;

use std::process::ExitCode;
use std::sync::Arc;

use report::Report;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = arguments.first().map(String::as_str).unwrap_or_default();
    if name == "data" {
        return tfos::run_all(vec![]);
    }
    if matches!(name, "submit" | "executor") && arguments.iter().any(|a| a.starts_with("--")) && name_is_cli(&arguments)
    {
        return tfos::run_all(vec![
            Arc::new(apps::FeedApp),
            Arc::new(apps::ReadyApp),
            Arc::new(apps::TrainApp),
            Arc::new(checkpoint::CheckpointApp),
            Arc::new(overlap::WideApp),
            Arc::new(tfos::apps::mnist::Mnist),
        ]);
    }
    let json = arguments.iter().any(|a| a == "json");
    if name == "bare" {
        return match overhead::bare() {
            Ok(rate) => {
                println!("{rate}");
                ExitCode::SUCCESS
            }
            Err(e) => {
                eprintln!("error: {e}");
                ExitCode::FAILURE
            }
        };
    }
    let result = match name {
        "submit" => submit::run(),
        "feed" => feed::run(),
        "feed-peers" => feed_peers::run(&arguments),
        "memory" => memory::run(),
        "overhead" => overhead::run(),
        "overlap" => overlap::run(&arguments),
        "checkpoint" => checkpoint::run(&arguments),
        "convergence" => convergence::run(&arguments),
        other => Err(format!(
            "unknown benchmark `{other}`; there are submit, feed, feed-peers, memory, overhead, overlap, \
             checkpoint, convergence"
        )),
    };
    match result {
        Ok(report) => {
            Report::print(&report, json);
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// `submit` is also the name of a benchmark: as a command it always has a model directory or a driver.
fn name_is_cli(arguments: &[String]) -> bool {
    arguments.iter().any(|a| a == "--model-dir" || a == "--driver")
}
