//! Submitting again on the same model directory: other shapes, damaged checkpoints, reached targets, retention.

use std::path::PathBuf;

use tfos_tests::data::{line, noisy_line, numbers};
use tfos_tests::procs::Signal;
use tfos_tests::submit::checkpoints;
use tfos_tests::{Lab, Submit};

use crate::failure::{EPOCHS, ROWS, in_mid_epoch, job};
use crate::{assert_learned, verified_rows};

fn plain(lab: &Lab, epochs: u64, flags: &str) -> Submit {
    let data = line(lab.folder(), ROWS, 4);
    lab.probe(&format!("mode=linear epochs={epochs} data={}", data.display())).flags("--quiet").flags(flags)
}

#[test] // 1 ps and two trainers, then 2 ps and three trainers, then one node alone
fn resume_on_another_cluster_size_and_number_of_ps() {
    let lab = Lab::new("resume_on_another_cluster_size_and_number_of_ps");
    let stages = [
        ("one", "--cluster-size 3 --num-ps 1", &[0, 1][..]),
        ("two", "--cluster-size 5 --num-ps 2 --sync-replicas", &[0, 1, 2][..]),
    ];
    let mut before = 0;
    for (name, shape, trainers) in stages {
        let mut gate = lab.gate(name);
        let mut running = job(&lab, &gate, 60, shape).start();
        in_mid_epoch(&mut running, &gate, trainers);
        running.signal(Signal::SIGINT);
        running.says("finishing the batch");
        gate.open();
        running.wait().fails(130, &[]);
        let rows = verified_rows(&lab.model());
        assert!(rows > before && rows < EPOCHS * ROWS, "{rows} rows after stage {name}, {before} before");
        before = rows;
    }
    let done = plain(&lab, EPOCHS, "--cluster-size 1").run().ok().says(&["resuming from step"]);
    assert_eq!(done.number("rows") as u64 + before, EPOCHS * ROWS);
    assert_eq!(verified_rows(&lab.model()), EPOCHS * ROWS);
    assert_learned(&done);
}

#[test] // one node is deterministic, so a job with a break gives the very parameters of one without
fn a_broken_run_equals_an_unbroken_one() {
    let lab = Lab::new("a_broken_run_equals_an_unbroken_one");
    // Noise, so that the parameters never come to rest and the last rows always show.
    let data = noisy_line(lab.folder(), 20_000, 2);
    let submit = |model: &str| {
        let args = format!("mode=linear data={}", data.display());
        lab.probe(&args).model_dir(&lab.path(model)).flags("--save-checkpoints-steps 100 --quiet")
    };
    let unbroken = submit("unbroken").run().ok();
    let mut gate = lab.gate("gate");
    let mut running = submit("broken").args_of(gate.arguments(1500)).start();
    gate.reached(&mut running, &[0]);
    let step = running.until_checkpoint(100);
    assert!(step < 2000, "the fault was to come before the end");
    running.signal(Signal::SIGKILL);
    assert_eq!(running.wait().signal(), Some(9));
    gate.open();
    let broken = submit("broken").run().ok().says(&["resuming from step"]);
    assert_eq!(verified_rows(&lab.path("broken")), 20_000);
    assert_eq!(broken.number("global_step"), unbroken.number("global_step"));
    for metric in ["metrics.w", "metrics.b"] {
        assert_eq!(broken.number(metric), unbroken.number(metric), "{metric}");
    }
}

#[test]
fn a_reached_target_is_said_and_nothing_is_trained() {
    let lab = Lab::new("a_reached_target_is_said_and_nothing_is_trained");
    let first = plain(&lab, 1, "--cluster-size 1").run().ok();
    let again = plain(&lab, 1, "--cluster-size 1").run().ok().says(&["has reached the target (1 epochs)"]);
    assert_eq!(again.json["already_done"], true);
    assert_eq!(again.number("global_step"), first.number("global_step"));
    assert_eq!((again.number("rows"), first.number("rows") as u64), (0.0, ROWS));
    assert_eq!(again.number("metrics.w"), first.number("metrics.w"));
}

#[test]
fn two_runs_after_one_another_add_up() {
    let lab = Lab::new("two_runs_after_one_another_add_up");
    plain(&lab, 1, "--cluster-size 3 --num-ps 1").run().ok();
    assert_eq!(verified_rows(&lab.model()), ROWS);
    let done = plain(&lab, 3, "--cluster-size 3 --num-ps 1").run().ok().says(&["resuming from step"]);
    assert_eq!((done.number("rows") as u64, done.number("epochs")), (2 * ROWS, 3.0));
    assert_eq!(verified_rows(&lab.model()), 3 * ROWS);
    assert_learned(&done);
}

#[test]
fn max_steps_is_kept_to_the_step() {
    let lab = Lab::new("max_steps_is_kept_to_the_step");
    for (name, shape) in [
        ("alone", "--cluster-size 1"),
        ("async", "--cluster-size 3 --num-ps 1"),
        ("sync", "--cluster-size 3 --num-ps 1 --sync-replicas"),
    ] {
        let model = lab.path(name);
        let run =
            |steps: u64| plain(&lab, EPOCHS, shape).model_dir(&model).flags(&format!("--max-steps {steps}")).run().ok();
        let done = run(100);
        assert_eq!(done.number("global_step"), 100.0, "{shape}");
        assert!((done.number("rows") as u64) < EPOCHS * ROWS);
        let rows = verified_rows(&model);
        let again = run(100).says(&["has reached the target (step 100)"]);
        assert_eq!(again.json["already_done"], true);
        assert_eq!(run(120).number("global_step"), 120.0, "{shape}");
        assert!(verified_rows(&model) > rows);
    }
}

#[test]
fn only_the_newest_checkpoints_are_kept() {
    let lab = Lab::new("only_the_newest_checkpoints_are_kept");
    plain(&lab, 1, "--cluster-size 1 --save-checkpoints-steps 50 --keep-checkpoints 2").run().ok();
    let kept = checkpoints(&lab.model());
    assert_eq!(kept.len(), 2, "{kept:?}");
    assert_eq!(kept.last().copied(), Some(ROWS / 10));
    let folders = std::fs::read_dir(lab.model().join("checkpoints")).unwrap().count();
    assert_eq!(folders, 2, "what is deleted leaves no folder");
    assert_eq!(verified_rows(&lab.model()), ROWS);
}

#[test]
fn beside_the_newest_one_now_and_then_stays() {
    let lab = Lab::new("beside_the_newest_one_now_and_then_stays");
    plain(&lab, 2, "--cluster-size 1 --save-checkpoints-steps 20 --keep-checkpoints 1 --keep-every 100").run().ok();
    let kept = checkpoints(&lab.model());
    let [first, .., last] = kept[..] else { panic!("two checkpoints were to be there: {kept:?}") };
    assert!(first >= 100 && last == 2 * ROWS / 10, "{kept:?}");
    let mut stretches: Vec<u64> = kept[..kept.len() - 1].iter().map(|step| step / 100).collect();
    let all = stretches.len();
    stretches.dedup();
    assert_eq!(stretches.len(), all, "one in each stretch: {kept:?}");
    assert_eq!(verified_rows(&lab.model()), 2 * ROWS);
}

/// The first part of a checkpoint.
fn part(lab: &Lab, step: u64) -> PathBuf {
    let folder = lab.model().join(format!("checkpoints/{step:012}"));
    let files = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path());
    files.filter(|f| f.extension().is_some_and(|e| e == "safetensors")).min().expect("a checkpoint has a part")
}

#[test] // a bit, a missing file, and half a manifest
fn a_damaged_checkpoint_is_named_and_the_one_before_it_is_used() {
    let lab = Lab::new("a_damaged_checkpoint_is_named_and_the_one_before_it_is_used");
    for (i, shape) in ["--cluster-size 1", "--cluster-size 4 --num-ps 2", "--cluster-size 1"].into_iter().enumerate() {
        plain(&lab, 1, shape).flags("--save-checkpoints-steps 100").run().ok();
        let steps = checkpoints(&lab.model());
        let [.., before, newest] = steps[..] else { panic!("two checkpoints were to be there: {steps:?}") };
        let damaged = part(&lab, newest);
        match i {
            0 => {
                let mut bytes = std::fs::read(&damaged).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 4;
                std::fs::write(&damaged, bytes).unwrap();
            }
            1 => std::fs::remove_file(&damaged).unwrap(),
            _ => {
                let manifest = damaged.with_file_name("manifest.json");
                let text = std::fs::read(&manifest).unwrap();
                std::fs::write(&manifest, &text[..text.len() / 2]).unwrap();
            }
        }
        let named = format!("checkpoint {newest} is damaged");
        let done = plain(&lab, 2, shape).run().ok().says(&[&named, &format!("resuming from step {before}")]);
        assert_eq!(verified_rows(&lab.model()), 2 * ROWS);
        assert_learned(&done);
        std::fs::remove_dir_all(lab.model()).unwrap();
    }
}

#[test]
fn changed_data_are_not_resumed_on() {
    let lab = Lab::new("changed_data_are_not_resumed_on");
    plain(&lab, 1, "--cluster-size 1").run().ok();
    let folder = line(lab.folder(), ROWS, 4);
    let files = std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().path());
    std::fs::remove_file(files.max().unwrap()).unwrap();
    let done =
        plain(&lab, 2, "--cluster-size 1").run().fails(1, &["its query or its shuffling has changed", "--model-dir"]);
    done.error();
}

#[test]
fn the_checkpoint_of_another_application_is_not_resumed() {
    let lab = Lab::new("the_checkpoint_of_another_application_is_not_resumed");
    plain(&lab, 1, "--cluster-size 1").run().ok();
    let mnist = lab.submit("mnist").args("--rows 100 --epochs 1");
    mnist.run().fails(1, &["`probe`", "`mnist`", "--model-dir"]).error();
}

#[test] // the model itself is another: which checkpoint, and in what it differs
fn a_checkpoint_with_other_slots_is_not_resumed() {
    let lab = Lab::new("a_checkpoint_with_other_slots_is_not_resumed");
    let mnist =
        |rule: &str, epochs: u32| lab.submit("mnist").args(&format!("--rows 200 --epochs {epochs} --optimizer {rule}"));
    mnist("adam", 1).run().ok();
    mnist("sgd", 2).run().fails(1, &["manifest.json", "use the same optimizer", "--restore parameters-only"]).error();
    let fresh = mnist("sgd", 2).flags("--restore parameters-only").run().ok();
    fresh.says(&["resuming from step", "the optimizer's state begins fresh"]);
    assert_eq!(verified_rows(&lab.model()), 400);
}

#[test] // the ledger of a directory that has none
fn there_is_nothing_to_verify_without_a_checkpoint() {
    let lab = Lab::new("there_is_nothing_to_verify_without_a_checkpoint");
    let empty = numbers(lab.folder(), 10, 1);
    let done = Submit::tfos("verify-ledger").flags(&empty.display().to_string()).run();
    done.fails(2, &["has no checkpoint"]).error();
}
