//! From `submit` to the first applied update, files warm: one ps, chief and worker on this machine.

use crate::report::{Report, cluster, number};

const RUNS: usize = 7;

pub(crate) fn run() -> Result<Report, String> {
    let folder = std::env::temp_dir().join(format!("tfos-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let result = measure(&folder);
    let _ = std::fs::remove_dir_all(&folder);
    result
}

fn measure(folder: &std::path::Path) -> Result<Report, String> {
    let rows = tfos::apps::digits::record_batch(1, 4000).map_err(|e| e.to_string())?;
    let data = crate::feed::write(folder, "digits.parquet", &rows)?;
    let (mut alone, mut three, mut wall) = (vec![], vec![], vec![]);
    for run in 0..RUNS {
        for (shape, firsts) in [(["1", "0"], &mut alone), (["3", "1"], &mut three)] {
            let dir = folder.join(format!("model-{run}-{}", shape[0]));
            let value = cluster(
                &["--cluster-size", shape[0], "--num-ps", shape[1], "--model-dir", &dir.display().to_string()],
                "mnist",
                &["--data", &data, "--epochs", "1"],
            )?;
            firsts.push(number(&value, "first_step_secs"));
            if shape[0] == "3" {
                wall.push(number(&value, "wall_secs"));
            }
        }
    }
    let mut report = Report::new("submit");
    report.runs("submit to first step, 1 node", "s", &alone);
    report.runs("submit to first step, 1 ps + 2 workers", "s", &three);
    report.runs("whole job of 4,000 rows, 1 ps + 2 workers", "s", &wall);
    Ok(report)
}
