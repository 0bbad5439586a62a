//! PyTorch and TensorFlow on the same model: their scripts print steps per second of each worker as one JSON line.

use std::process::{Command, Stdio};

use crate::{Failure, Options};

/// Script, its arguments, and what that is.
const CASES: [(&str, [&str; 2], &str, &str); 5] = [
    ("torch_ddp.py", ["ddp", "step"], "torch-ddp-gloo", "step"),
    ("tf_ps.py", ["async", "step"], "tensorflow-ps-async", "step"),
    ("tf_ps.py", ["sync", "step"], "tensorflow-ps-sync", "step"),
    ("torch_ddp.py", ["ddp", "exchange"], "torch-gloo-allreduce", "exchange"),
    ("tf_ps.py", ["async", "exchange"], "tensorflow-ps-async", "exchange"),
];

type Rates = (String, &'static str, Vec<f64>);

pub(crate) fn measure(options: &Options, elements: usize) -> Result<Vec<Rates>, Failure> {
    let mut measured = Vec::new();
    for (script, arguments, system, what) in CASES {
        let python = if script.starts_with("torch") { &options.torch } else { &options.tensorflow };
        let Some(python) = python.as_ref().filter(|_| format!("{system} {what}").contains(&options.only)) else {
            continue;
        };
        let path = format!("{}/{script}", options.scripts);
        let (elements, seconds) = (elements.to_string(), options.seconds.to_string());
        let mut command = Command::new(python);
        command.arg(&path).args(arguments).args([&elements, &seconds]).stdin(Stdio::null());
        if script.starts_with("torch") && !options.torch_packages.is_empty() {
            command.env("PYTHONPATH", &options.torch_packages);
        }
        let output = command.output().map_err(|error| format!("{python} does not start: {error}"))?;
        if !output.status.success() {
            // Only then: both warn of much that does not matter here.
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
            return Err(format!("{path}: {}; its message is above", output.status).into());
        }
        let text = String::from_utf8(output.stdout)?;
        let line = text.lines().rev().find(|line| line.starts_with('[')).ok_or(format!("{path} printed no rates"))?;
        measured.push((system.to_owned(), what, serde_json::from_str(line)?));
    }
    Ok(measured)
}
