//! Framework overhead: one worker without ps against the same loop in bare tch, in turn.

use crate::bare::steps_per_second;
use crate::report::{Report, cluster, number, spread};

const RUNS: usize = 3;
const ROWS: usize = 20_000;
const EPOCHS: u32 = 4;

pub(crate) fn run() -> Result<Report, String> {
    let folder = std::env::temp_dir().join(format!("tfos-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let result = measure(&folder);
    let _ = std::fs::remove_dir_all(&folder);
    result
}

/// The bare loop starts as cold as the other.
fn in_a_process_of_its_own() -> Result<f64, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let output = std::process::Command::new(program).arg("bare").output();
    let output = output.map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().map_err(|e| format!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// Prints what [`in_a_process_of_its_own`] reads.
pub(crate) fn bare() -> Result<f64, String> {
    let rows = tfos::apps::digits::record_batch(1, ROWS).map_err(|e| e.to_string())?;
    steps_per_second(&rows, EPOCHS).map_err(|e| e.to_string())
}

fn measure(folder: &std::path::Path) -> Result<Report, String> {
    let rows = tfos::apps::digits::record_batch(1, ROWS).map_err(|e| e.to_string())?;
    let data = crate::feed::write_arrow(folder, "digits.arrow", &rows)?;
    let (mut bare, mut framework, mut ratios) = (vec![], vec![], vec![]);
    for run in 0..RUNS {
        let one = in_a_process_of_its_own()?;
        let dir = folder.join(format!("model-{run}"));
        let value = cluster(
            &["--cluster-size", "1", "--model-dir", &dir.display().to_string()],
            "train",
            &[&data, &EPOCHS.to_string()],
        )?;
        let two = number(&value, "metrics.steps_per_sec");
        bare.push(one);
        framework.push(two);
        ratios.push((one / two - 1.0) * 100.0);
    }
    let mut report = Report::new("overhead");
    report.note(format!(
        "mlp 784-256-10, batch 64, adam, {ROWS} rows x {EPOCHS} epochs, in turn; tfos feeds from an Arrow file"
    ));
    report.runs("bare tch", "steps/s", &bare);
    report.runs("tfos, one worker, no ps", "steps/s", &framework);
    report.runs("overhead", "%", &ratios);
    report.note(format!("overhead of the medians: {:.2} %", (spread(&bare).1 / spread(&framework).1 - 1.0) * 100.0));
    Ok(report)
}
