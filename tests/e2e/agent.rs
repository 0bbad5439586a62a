//! A process is killed while the snapshot that it took is being written: its agent writes it all the same.

use std::path::{Path, PathBuf};

use tfos_tests::data::line;
use tfos_tests::procs::{Signal, assert_none_left, executor_of, signal};
use tfos_tests::submit::checkpoints;
use tfos_tests::wait::{poll, secs};
use tfos_tests::{Lab, logs};

use crate::verified_rows;

/// 32 MB of parameters and twice that of Adam's slots: takes longer to write than a test needs to look.
const BALLAST: &str = "8000000";
const ROWS: u64 = 300;

/// A part that is being written, and of which more than half is there: by then the snapshot is complete.
fn unfinished(model: &Path) -> Option<PathBuf> {
    let steps = std::fs::read_dir(model.join("checkpoints")).ok()?.flatten();
    let mut files = steps.flat_map(|step| std::fs::read_dir(step.path()).into_iter().flatten().flatten());
    let half = |file: &std::fs::DirEntry| file.metadata().is_ok_and(|m| m.len() > 50_000_000);
    files
        .find(|file| file.file_name().to_string_lossy().contains(".safetensors#") && half(file))
        .map(|file| file.path())
}

/// Kills executor `victim` in the middle of a write; false where the write was quicker than the signal.
fn killed_while_writing(lab: &Lab, name: &str, shape: &str, victim: u32, node: &str) -> bool {
    let model = lab.path(name);
    let data = line(lab.folder(), ROWS, 1);
    let args = format!("mode=linear epochs=1 ballast={BALLAST} data={}", data.display());
    let mut gate = lab.gate(&format!("{name}-gate"));
    let submit = || lab.probe(&args).model_dir(&model).flags("--save-checkpoints-steps 3 --quiet").flags(shape);
    let mut running = submit().args_of(gate.arguments(20)).start();
    let part = poll(secs(60), || unfinished(&model).map(Some).or_else(|| (!running.is_running()).then_some(None)));
    assert!(part.is_some(), "no part was written\n{}", logs::tails(&model));
    let part = part.flatten().expect("the job lives while it writes");
    signal(executor_of(&model, victim).pid, Signal::SIGKILL);
    let done = running.wait().fails(1, &[node, "SIGKILL"]);
    assert_none_left(&model, secs(1));
    let log = std::fs::read_to_string(done.text("root_cause.log")).unwrap();
    if !log.contains("the executor is dead; writing its part") {
        return false;
    }
    assert!(!part.exists(), "{} is left", part.display());
    let steps = checkpoints(&model);
    assert_eq!(steps.len(), 1, "{steps:?}: the snapshot has become a checkpoint");
    let trained = verified_rows(&model);
    assert!((30..ROWS).contains(&trained), "{trained} rows");
    gate.open();
    let again = submit().run().ok().says(&[&format!("resuming from step {}", steps[0])]);
    assert_eq!(again.number("rows") as u64 + trained, ROWS);
    assert_eq!(verified_rows(&model), ROWS);
    true
}

#[test] // CKP-7, AGT-1
fn a_snapshot_outlives_the_process_that_took_it() {
    let lab = Lab::new("a_snapshot_outlives_the_process_that_took_it");
    for (name, shape, victim, node) in
        [("ps", "--cluster-size 2 --num-ps 1", 0, "ps:0"), ("alone", "--cluster-size 1", 0, "chief:0")]
    {
        let fired = (0..5).any(|i| killed_while_writing(&lab, &format!("{name}-{i}"), shape, victim, node));
        assert!(fired, "{name}: five times the part was written before the signal came");
    }
}
