//! `kill -9` in the middle of an epoch. Every test makes sure that the fault fired there: the nodes stand at a gate
//! in front of a step, with more rows to come.

use tfos_tests::data::line;
use tfos_tests::procs::{Signal, assert_none_left, executor_of, executors};
use tfos_tests::wait::secs;
use tfos_tests::{Gate, Lab, Running, Submit};

use crate::{assert_learned, verified_rows};

/// Rows of the table, and passes over it.
pub(crate) const ROWS: u64 = 4000;
pub(crate) const EPOCHS: u64 = 2;

/// A small training job whose trainers stand still before their step `at`, with a checkpoint every 20 steps.
pub(crate) fn job(lab: &Lab, gate: &Gate, at: u64, shape: &str) -> Submit {
    let data = line(lab.folder(), ROWS, 4);
    let args = format!("mode=linear epochs={EPOCHS} data={}", data.display());
    lab.probe(&args).args_of(gate.arguments(at)).flags("--save-checkpoints-steps 20 --quiet").flags(shape)
}

/// Waits until every trainer stands at the gate and a checkpoint is there.
pub(crate) fn in_mid_epoch(running: &mut Running, gate: &Gate, trainers: &[u32]) {
    gate.reached(running, trainers);
    let step = running.until_checkpoint(20);
    assert!(step < EPOCHS * ROWS / 10, "the job was to be in its middle, not at step {step}");
}

/// The same job again, with the gate open: resumes, ends, and has every row exactly once.
fn resumes(lab: &Lab, gate: &mut Gate, shape: &str) {
    gate.open();
    let done = job(lab, gate, 150, shape).run().ok().says(&["resuming from step"]);
    let rows = done.number("rows") as u64;
    assert!(rows > 0 && rows < EPOCHS * ROWS, "the second run was to do a part of the rows, it did {rows}");
    assert_eq!(verified_rows(&lab.model()), EPOCHS * ROWS);
    assert_eq!(done.number("generation"), 2.0);
    assert_learned(&done);
}

const CLUSTER: &str = "--cluster-size 3 --num-ps 1";

#[test]
fn kill_of_the_driver_leaves_nobody_and_the_job_resumes() {
    let lab = Lab::new("kill_of_the_driver_leaves_nobody_and_the_job_resumes");
    for (name, shape, trainers, at) in [("alone", "--cluster-size 1", 1, 600), ("cluster", CLUSTER, 2, 150)] {
        let mut gate = lab.gate(name);
        let mut running = job(&lab, &gate, at, shape).start();
        in_mid_epoch(&mut running, &gate, &(0..trainers).collect::<Vec<_>>());
        assert!(!executors(&lab.model()).is_empty());
        running.signal(Signal::SIGKILL);
        assert_eq!(running.wait().signal(), Some(9), "the driver was to die of the signal");
        assert_none_left(&lab.model(), secs(5));
        resumes(&lab, &mut gate, shape);
        std::fs::remove_dir_all(lab.model()).unwrap();
    }
}

/// Kills an executor and checks what the user is told.
fn kill_of(lab: &Lab, shape: &str, trainers: &[u32], victim: u32, node: &str) {
    let mut gate = lab.gate(&format!("kill-{victim}"));
    let mut running = job(lab, &gate, 150, shape).start();
    in_mid_epoch(&mut running, &gate, trainers);
    let executor = executor_of(&lab.model(), victim);
    assert!(running.is_running());
    let killed = std::time::Instant::now();
    tfos_tests::procs::signal(executor.pid, Signal::SIGKILL);
    let log = format!("executor-{victim}.log");
    let done = running.wait().fails(1, &[node, "SIGKILL", "signal 9", &log]);
    assert!(killed.elapsed() < secs(2), "the end came {:?} after the kill", killed.elapsed());
    assert_none_left(&lab.model(), secs(1));
    done.error();
    assert_eq!(done.text("root_cause.kind"), "signal");
    assert_eq!(done.number("root_cause.signal"), 9.0);
    assert_eq!(done.number("root_cause.executor_id"), f64::from(victim));
    assert!(done.text("root_cause.log").ends_with(&log));
    resumes(lab, &mut gate, shape);
}

#[test]
fn kill_of_a_worker_is_the_root_cause_and_the_job_resumes() {
    let lab = Lab::new("kill_of_a_worker_is_the_root_cause_and_the_job_resumes");
    kill_of(&lab, CLUSTER, &[0, 1], 2, "worker:0");
}

#[test]
fn kill_of_the_chief_is_the_root_cause_and_the_job_resumes() {
    let lab = Lab::new("kill_of_the_chief_is_the_root_cause_and_the_job_resumes");
    kill_of(&lab, CLUSTER, &[0, 1], 1, "chief:0");
}

#[test]
fn kill_of_the_only_ps_is_the_root_cause_and_the_job_resumes() {
    let lab = Lab::new("kill_of_the_only_ps_is_the_root_cause_and_the_job_resumes");
    kill_of(&lab, CLUSTER, &[0, 1], 0, "ps:0");
}

#[test] // its peers notice too, and are not blamed
fn kill_of_one_ps_of_two_is_the_root_cause_and_the_job_resumes() {
    let lab = Lab::new("kill_of_one_ps_of_two_is_the_root_cause_and_the_job_resumes");
    kill_of(&lab, "--cluster-size 4 --num-ps 2 --sync-replicas", &[0, 1], 1, "ps:1");
}

#[test] // while steps are being taken, not at a gate
fn kill_of_a_ps_under_load_is_the_root_cause_and_the_job_resumes() {
    let lab = Lab::new("kill_of_a_ps_under_load_is_the_root_cause_and_the_job_resumes");
    let data = line(lab.folder(), 200_000, 4);
    let submit = || {
        let args = format!("mode=linear data={}", data.display());
        lab.probe(&args).flags(CLUSTER).flags("--save-checkpoints-steps 200 --quiet")
    };
    let mut running = submit().start();
    running.until_checkpoint(400);
    assert!(running.is_running(), "the job was too short to be killed");
    tfos_tests::procs::signal(executor_of(&lab.model(), 0).pid, Signal::SIGKILL);
    running.wait().fails(1, &["ps:0", "SIGKILL"]).error();
    let done = submit().run().ok().says(&["resuming from step"]);
    assert_eq!(verified_rows(&lab.model()), 200_000);
    assert_learned(&done);
}

#[test] // SIGSTOP: no process ends and no stream breaks, only the heartbeats stop (MEM-1)
fn a_node_without_heartbeats_is_lost() {
    let lab = Lab::new("a_node_without_heartbeats_is_lost");
    let gate = lab.gate("gate");
    let mut running = job(&lab, &gate, 150, CLUSTER).flags("--heartbeat-timeout 1s").start();
    in_mid_epoch(&mut running, &gate, &[0, 1]);
    tfos_tests::procs::signal(executor_of(&lab.model(), 2).pid, Signal::SIGSTOP);
    let done = running.wait().fails(1, &["worker:0", "no sign of life"]);
    assert_eq!(done.text("root_cause.kind"), "lost");
    assert_none_left(&lab.model(), secs(5));
}

#[test]
fn a_panic_in_the_training_function_is_the_root_cause() {
    let lab = Lab::new("a_panic_in_the_training_function_is_the_root_cause");
    let data = line(lab.folder(), ROWS, 4);
    let args = format!("mode=panic at=3 data={}", data.display());
    let done = lab.probe(&args).run().fails(1, &["chief:0", "panicked", "deliberate panic at 3", "probe_app.rs"]);
    done.error();
    assert_eq!(done.text("root_cause.kind"), "panic");
}

#[test] // a scan runs beside the node's function, and its panic is told all the same
fn a_panic_in_a_function_of_the_query_is_the_root_cause() {
    let lab = Lab::new("a_panic_in_a_function_of_the_query_is_the_root_cause");
    let data = tfos_tests::data::numbers(lab.folder(), 1000, 2);
    let args = format!("mode=panic-in-query at=700 data={}", data.display());
    let job = lab.probe(&args).flags("--cluster-size 3 --num-ps 1").within(secs(30));
    let done = job.run().fails(1, &["panicked", "deliberate panic at 700", "probe_app.rs"]);
    done.error();
    assert_eq!(done.text("root_cause.kind"), "panic");
}
