//! Ctrl-C: the first drains, checkpoints, reaps and exits with 130; the second stops at once.

use tfos_tests::Lab;
use tfos_tests::procs::{Signal, assert_none_left};
use tfos_tests::submit::checkpoints;
use tfos_tests::wait::secs;

use crate::failure::{EPOCHS, ROWS, in_mid_epoch, job};
use crate::{assert_learned, verified_rows};

#[test]
fn the_first_ctrl_c_drains_and_checkpoints() {
    let lab = Lab::new("the_first_ctrl_c_drains_and_checkpoints");
    let shapes = [("alone", "--cluster-size 1", 1, 600), ("cluster", "--cluster-size 3 --num-ps 1", 2, 150)];
    for (name, shape, trainers, at) in shapes {
        let mut gate = lab.gate(name);
        let mut running = job(&lab, &gate, at, shape).start();
        in_mid_epoch(&mut running, &gate, &(0..trainers).collect::<Vec<_>>());
        let before = checkpoints(&lab.model()).last().copied().unwrap();
        running.signal(Signal::SIGINT);
        running.says("finishing the batch and writing a checkpoint");
        assert!(running.is_running(), "a batch is at hand and has to be finished");
        gate.open();
        let done = running.wait().fails(130, &[]);
        assert_none_left(&lab.model(), secs(1));
        assert_eq!(done.text("status"), "interrupted");
        let after = checkpoints(&lab.model()).last().copied().unwrap();
        assert!(after > before && after >= 150, "{after} was to be a new checkpoint, the one before is {before}");
        assert!(after < EPOCHS * ROWS / 10, "it was to stop before its end");
        let drained = verified_rows(&lab.model());

        let done = job(&lab, &gate, 150, shape).run().ok().says(&[&format!("resuming from step {after}")]);
        assert_eq!(done.number("rows") as u64 + drained, EPOCHS * ROWS);
        assert_eq!(verified_rows(&lab.model()), EPOCHS * ROWS);
        assert_learned(&done);
        std::fs::remove_dir_all(lab.model()).unwrap();
    }
}

#[test]
fn the_second_ctrl_c_stops_at_once() {
    let lab = Lab::new("the_second_ctrl_c_stops_at_once");
    let gate = lab.gate("gate");
    let mut running = job(&lab, &gate, 150, "--cluster-size 3 --num-ps 1").start();
    in_mid_epoch(&mut running, &gate, &[0, 1]);
    running.signal(Signal::SIGINT);
    running.says("again to stop at once");
    let second = std::time::Instant::now();
    running.signal(Signal::SIGINT);
    let done = running.wait().fails(130, &["stopped"]);
    assert_eq!(done.text("status"), "interrupted");
    assert!(second.elapsed() < secs(2), "it took {:?}", second.elapsed());
    assert_none_left(&lab.model(), secs(2));
}

#[test] // nothing has begun, so there is nothing to finish
fn ctrl_c_while_the_cluster_forms_stops_at_once() {
    let lab = Lab::new("ctrl_c_while_the_cluster_forms_stops_at_once");
    let gate = lab.gate("gate");
    let waiting = job(&lab, &gate, 0, "--master standalone --bind 127.0.0.1");
    let mut running = waiting.start();
    running.says("waiting for 1 executors");
    running.signal(Signal::SIGINT);
    let done = running.wait().fails(130, &[]);
    assert_eq!(done.text("status"), "interrupted");
    assert!(done.wall < secs(10));
}
