//! Steps per second of 1 ps and 2 workers as processes, beside PyTorch and TensorFlow, in turn on the same machine.
//!
//! `cargo xtask bench ps` runs it with both peers. By hand, without them:
//! `cargo run -p tfos-ps --features grpc --example ps_bench -- [--elements N,…] [--seconds S] [--rounds N] [--compress HOW]
//! [--output json]`; without the feature there are no rows of gRPC.
//! `ps_bench scaling` instead tells what a step costs against the numbers of ps and workers.
//! The model is linear with one row and squared loss, so its gradient is as long as its parameters and costs two
//! passes; `exchange` pushes a constant gradient instead. Rates are means of the workers, of their own steps in
//! async mode and of global steps in sync mode. GB/s is 8 bytes x parameters x steps/s: one gradient out, one model in.

mod case;
mod limit;
mod peers;
mod report;
mod role;
mod scaling;

use std::process::ExitCode;

use tfos_ps::Compress;

type Failure = Box<dyn std::error::Error>;

const USAGE: &str =
    "usage: ps_bench [scaling] [--elements N,...] [--seconds S] [--rounds N] [--only WORD] [--compress none|bf16|topk:F]
                [--output text|json]
                [--scripts DIR [--tensorflow PYTHON] [--torch PYTHON --torch-packages DIR]]";

/// What the command line asks for.
#[derive(Debug)]
struct Options {
    elements: Vec<usize>,
    seconds: f64,
    rounds: u32,
    /// Only cases whose name has this word.
    only: String,
    /// How ours send gradients; the peers have no such thing.
    compress: Compress,
    json: bool,
    scripts: String,
    tensorflow: Option<String>,
    torch: Option<String>,
    /// Folder that `torch` is imported from.
    torch_packages: String,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.split_first() {
        Some((role, rest)) if role == "role" => role::run(rest),
        Some((task, rest)) if task == "scaling" => options(rest).and_then(|options| scaling::run(&options)),
        _ => options(&arguments).and_then(|options| case::run_all(&options)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ps_bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options(arguments: &[String]) -> Result<Options, Failure> {
    let mut options = Options {
        elements: vec![1_000_000, 25_000_000, 100_000_000],
        seconds: 3.0,
        rounds: 1,
        only: String::new(),
        compress: Compress::None,
        json: false,
        scripts: String::new(),
        tensorflow: None,
        torch: None,
        torch_packages: String::new(),
    };
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { return Err(USAGE.into()) };
        match name.as_str() {
            "--elements" => options.elements = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--seconds" => options.seconds = value.parse()?,
            "--rounds" => options.rounds = value.parse()?,
            "--only" => options.only.clone_from(value),
            "--compress" => options.compress = value.parse()?,
            "--output" if value == "json" || value == "text" => options.json = value == "json",
            "--scripts" => options.scripts.clone_from(value),
            "--tensorflow" => options.tensorflow = Some(value.clone()),
            "--torch" => options.torch = Some(value.clone()),
            "--torch-packages" => options.torch_packages.clone_from(value),
            _ => return Err(USAGE.into()),
        }
    }
    Ok(options)
}
