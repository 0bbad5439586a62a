//! What a benchmark prints: lines for people, or one JSON object.

use serde_json::{Map, Value};

/// Named figures in order, with their units in the names.
#[derive(Debug, Default)]
pub(crate) struct Report {
    name: &'static str,
    figures: Map<String, Value>,
    lines: Vec<String>,
}

impl Report {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, ..Self::default() }
    }

    /// A figure with the median, least and most of its runs.
    pub(crate) fn runs(&mut self, key: &str, unit: &str, runs: &[f64]) {
        let (low, mid, high) = spread(runs);
        self.lines.push(format!("{key:<44} {mid:>12.3} {unit}  [{low:.3} - {high:.3}, n={}]", runs.len()));
        self.figures
            .insert(key.replace(' ', "_"), serde_json::json!({"unit": unit, "median": mid, "min": low, "max": high}));
    }

    pub(crate) fn note(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }

    pub(crate) fn print(&self, json: bool) {
        if json {
            println!("{}", serde_json::json!({"benchmark": self.name, "figures": self.figures}));
        } else {
            println!("{}", self.lines.join("\n"));
        }
    }
}

/// Least, median, most.
pub(crate) fn spread(runs: &[f64]) -> (f64, f64, f64) {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    (at(0), at(sorted.len() / 2), at(sorted.len().saturating_sub(1)))
}

/// Runs this program as a cluster and gives the JSON object of its last line.
pub(crate) fn cluster(flags: &[&str], application: &str, arguments: &[&str]) -> Result<Value, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = std::process::Command::new(program);
    command.arg("submit").args(flags).args(["--quiet", "--output", "json", application, "--"]).args(arguments);
    let output = command.output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    let value: Value =
        serde_json::from_str(last).map_err(|e| format!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
    if output.status.success() { Ok(value) } else { Err(format!("the job failed: {value}")) }
}

/// A number inside a JSON object.
pub(crate) fn number(value: &Value, path: &str) -> f64 {
    path.split('.').try_fold(value, |v, key| v.get(key)).and_then(Value::as_f64).unwrap_or(f64::NAN)
}
