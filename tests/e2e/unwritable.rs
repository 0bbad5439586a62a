//! A model directory that cannot be written for a while: training goes on, nothing is lost, and the user hears of it.

use std::path::Path;

use tfos_tests::submit::checkpoints;
use tfos_tests::{Gate, Lab, Running, Submit};

use crate::failure::{EPOCHS, ROWS, in_mid_epoch, job};
use crate::{assert_learned, verified_rows};

/// A file where the folder of the checkpoints was: also root cannot write into that.
fn break_store(model: &Path) {
    std::fs::rename(model.join("checkpoints"), model.join("aside")).unwrap();
    std::fs::write(model.join("checkpoints"), "in the way").unwrap();
}

fn mend_store(model: &Path) {
    std::fs::remove_file(model.join("checkpoints")).unwrap();
    std::fs::rename(model.join("aside"), model.join("checkpoints")).unwrap();
}

/// A job in mid-epoch whose store breaks before its trainer goes on.
fn broken(lab: &Lab, name: &str, flags: &str) -> (Running, Gate) {
    let mut gate = lab.gate(name);
    let submit: Submit = job(lab, &gate, 150, "--cluster-size 2 --num-ps 1");
    let mut running = submit.flags(flags).start();
    in_mid_epoch(&mut running, &gate, &[0]);
    // Which one is the last before the gate is a matter of chance: each is due 20 steps after the one before was cut.
    running.until_checkpoint(110);
    break_store(&lab.model());
    gate.open();
    (running, gate)
}

#[test] // CKP-6
fn a_store_that_recovers_has_every_row_once() {
    let lab = Lab::new("a_store_that_recovers_has_every_row_once");
    let (mut running, _gate) = broken(&lab, "gate", "");
    let said = running.says("a checkpoint could not be written (1 in a row, the job stops at 5)");
    assert!(said.contains("training goes on"), "{said}");
    running.says("(2 in a row");
    mend_store(&lab.model());
    let done = running.wait().ok();
    assert_eq!(done.number("rows") as u64, EPOCHS * ROWS);
    assert_eq!(verified_rows(&lab.model()), EPOCHS * ROWS);
    assert_learned(&done);
}

#[test]
fn a_store_that_does_not_stops_the_job_at_the_limit_and_what_was_written_is_good() {
    let lab = Lab::new("a_store_that_does_not_stops_the_job_at_the_limit_and_what_was_written_is_good");
    let (running, mut gate) = broken(&lab, "gate", "--checkpoint-failure-limit 2");
    running
        .wait()
        .fails(1, &["2 checkpoints in a row could not be written", "checkpoints", "--checkpoint-failure-limit"]);
    mend_store(&lab.model());
    let before = verified_rows(&lab.model());
    let newest = checkpoints(&lab.model()).into_iter().max().unwrap();
    assert!(newest >= 110 && before < EPOCHS * ROWS, "{before} rows at step {newest}");
    gate.open();
    let again = job(&lab, &gate, 150, "--cluster-size 2 --num-ps 1")
        .run()
        .ok()
        .says(&[&format!("resuming from step {newest}")]);
    assert_eq!(again.number("rows") as u64 + before, EPOCHS * ROWS);
    assert_eq!(verified_rows(&lab.model()), EPOCHS * ROWS);
    assert_learned(&again);
}
