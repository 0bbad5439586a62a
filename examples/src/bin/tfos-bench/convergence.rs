//! Accuracy and wall time of the digits' CNN under every setting of the dial, against one process.
//!
//! One worker is made ten times slower for real: it stands still (`SIGSTOP`) for nine tenths of the time. On a machine with
//! fewer cores than nodes that also leaves the others more of them, so `exchange` (the time that nodes stood still for
//! the ps) says more than wall times do.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::report::{Report, number};

/// One row of the table.
struct Case {
    name: &'static str,
    /// `--consistency`; one process where it is empty.
    consistency: &'static str,
    compress: &'static str,
    slowed: bool,
    /// Batches of one update of the parameters.
    per_step: f64,
    /// Batches whose mean one gradient is: the rate grows with its root, as the noise of the gradient falls with it.
    averaged: f64,
}

const NODES: &str = "4";
/// Of the optimizer for one batch.
const RATE: f64 = 0.002;

const fn case(name: &'static str, consistency: &'static str, slowed: bool, per_step: f64, averaged: f64) -> Case {
    Case { name, consistency, compress: "none", slowed, per_step, averaged }
}

const CASES: [Case; 11] = [
    case("one process", "", false, 1.0, 1.0),
    case("sync", "sync", false, 3.0, 3.0),
    case("sync, one slowed", "sync", true, 3.0, 3.0),
    case("sync:2", "sync:2", false, 2.0, 2.0),
    case("sync:2, one slowed", "sync:2", true, 2.0, 2.0),
    case("ssp:4", "ssp:4", false, 1.0, 1.0),
    case("async", "async", false, 1.0, 1.0),
    case("local-sgd:8", "local-sgd:8", false, 24.0, 1.0),
    case("output.*=async,sync", "output.*=async,sync", false, 3.0, 3.0),
    Case { compress: "bf16", ..case("sync, bf16", "sync", false, 3.0, 3.0) },
    Case { compress: "bf16", ..case("async, bf16", "async", false, 1.0, 1.0) },
];

pub(crate) fn run(arguments: &[String]) -> Result<Report, String> {
    let option = |name: &str| arguments.iter().skip_while(|a| *a != name).nth(1);
    let epochs: u64 =
        option("--epochs").map_or(Ok(10), |n| n.parse().map_err(|_| format!("--epochs {n} is no number")))?;
    let only: Option<&String> = option("--only");
    let folder = std::env::temp_dir().join(format!("tfos-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let result = measure(&folder, epochs, only);
    let _ = std::fs::remove_dir_all(&folder);
    result
}

/// The digits of `../shared/data` where they are, else drawn ones: training and test.
fn digits(folder: &Path) -> Result<(String, String, u64), String> {
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/mnist");
    if !original.join("train-images-idx3-ubyte.gz").is_file() {
        let drawn = |name: &str, seed, rows| {
            let rows = tfos::apps::digits::record_batch(seed, rows).map_err(|e| e.to_string())?;
            crate::feed::write(folder, name, &rows)
        };
        return Ok((drawn("train.parquet", 1, 8000)?, drawn("test.parquet", 2, 2000)?, 8000));
    }
    let convert = |from: &str, to: PathBuf, flags: &[&str]| {
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut command = Command::new(program);
        command.args(["data", "convert"]).arg(original.join(from)).arg(&to).args(flags);
        let output = command.output().map_err(|e| e.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(to.display().to_string())
    };
    let train = convert("train", folder.join("train"), &["--num-files", "4", "--to-format", "parquet"])?;
    Ok((train, convert("test", folder.join("test.parquet"), &[])?, 8000))
}

fn measure(folder: &Path, epochs: u64, only: Option<&String>) -> Result<Report, String> {
    let (train, test, rows) = digits(folder)?;
    let mut report = Report::new("convergence");
    report.note(format!(
        "cnn, batch 32 a node, adam, cosine, {rows} rows x {epochs} epochs; 1 ps and 3 training nodes, with a thread each"
    ));
    let cases = CASES.iter().filter(|case| only.is_none_or(|only| case.name == only));
    for (index, case) in cases.enumerate() {
        let model = folder.join(format!("model-{index}"));
        let steps = (rows * epochs) as f64 / 32.0 / case.per_step;
        let mut flags: Vec<&str> = vec!["--cluster-size", "1"];
        if !case.consistency.is_empty() {
            flags = vec!["--cluster-size", NODES, "--num-ps", "1", "--consistency", case.consistency];
            flags.extend(["--compress", case.compress]);
        }
        let (epochs, steps) = (epochs.to_string(), (steps.ceil() as u64).to_string());
        let rate = (RATE * case.averaged.sqrt()).to_string();
        let arguments = ["--network", "cnn", "--data", &train, "--eval-data", &test, "--epochs", &epochs];
        let schedule = ["--schedule", "cosine", "--schedule-steps", &steps, "--learning-rate", &rate];
        let value = job(&model, &flags, &[&arguments[..], &schedule].concat(), case.slowed)?;
        let figure = |path| number(&value, path);
        report.runs(&format!("{}: accuracy", case.name), "%", &[100.0 * figure("metrics.accuracy")]);
        report.runs(&format!("{}: wall", case.name), "s", &[figure("wall_secs")]);
        report.runs(&format!("{}: training", case.name), "rows/s", &[figure("rows_per_sec")]);
        report.note(format!(
            "{}: {} global steps, {} gradients dropped, at most {} steps ahead",
            case.name,
            figure("global_step"),
            figure("dropped_gradients"),
            figure("largest_staleness")
        ));
        // Whoever waits for the table wants to see it grow.
        eprintln!("{}: {:.2} % in {:.1} s", case.name, 100.0 * figure("metrics.accuracy"), figure("wall_secs"));
    }
    Ok(report)
}

fn job(model: &Path, flags: &[&str], arguments: &[&str], slowed: bool) -> Result<Value, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new(program);
    command.arg("submit").arg("--model-dir").arg(model).args(flags);
    command.args(["--quiet", "--output", "json", "mnist", "--"]).args(arguments);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(|e| e.to_string())?;
    let brake = if slowed { Some(Brake::on(model, 3)?) } else { None };
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    drop(brake);
    let text = String::from_utf8_lossy(&output.stdout);
    let value: Value = serde_json::from_str(text.lines().last().unwrap_or_default())
        .map_err(|e| format!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
    if output.status.success() { Ok(value) } else { Err(format!("the job failed: {value}")) }
}

/// Lets an executor run for a tenth of the time.
struct Brake(Child);

impl Brake {
    fn on(model: &Path, executor: u32) -> Result<Self, String> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let pid = loop {
            match pid_of(model, executor) {
                Some(pid) => break pid,
                None if Instant::now() > deadline => return Err(format!("executor {executor} did not start")),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let script = "while kill -STOP $0; do sleep 0.09; kill -CONT $0; sleep 0.01; done";
        let child = Command::new("sh").args(["-c", script, &pid.to_string()]).stderr(Stdio::null()).spawn();
        child.map(Self).map_err(|e| e.to_string())
    }
}

impl Drop for Brake {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `executor … --executor-id N … --log FILE`, with the log below the model directory.
fn pid_of(model: &Path, executor: u32) -> Option<u32> {
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|p| p.file_name().to_str()?.parse().ok()).find(|pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<String> = line.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        let after = |flag: &str| words.iter().skip_while(|w| *w != flag).nth(1);
        // Its agent is a fork with the same command line, and only writes what it leaves behind.
        let is_agent = std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "tfos-agent\n");
        let id = after("--executor-id").is_some_and(|id| *id == executor.to_string());
        id && !is_agent && after("--log").is_some_and(|log| Path::new(log).starts_with(model))
    })
}
