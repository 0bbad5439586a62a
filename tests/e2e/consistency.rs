//! The dial: each setting of `--consistency` trains the line with every row exactly once.

use tfos_tests::data::line;
use tfos_tests::procs::{Signal, executor_of, signal};
use tfos_tests::submit::checkpoints;
use tfos_tests::{Done, Gate, Lab, Submit};

use crate::{assert_learned, verified_rows};

const ROWS: u64 = 8000;
const EPOCHS: u64 = 2;
/// Rows that take so long that the dial can be turned many times.
const LONG: u64 = 600_000;

fn job(lab: &Lab, shape: &str) -> Submit {
    let data = line(lab.folder(), ROWS, 4);
    lab.probe(&format!("mode=linear epochs={EPOCHS} data={}", data.display())).flags("--quiet").flags(shape)
}

#[test]
fn every_setting_of_the_dial_trains_each_row_once() {
    let lab = Lab::new("every_setting_of_the_dial_trains_each_row_once");
    // Batches of 10 rows, with how many of them one global step has at most.
    for (setting, shape, most) in [
        ("sync", "--cluster-size 4 --num-ps 1", 3),
        ("sync:2", "--cluster-size 4 --num-ps 1", 2),
        ("ssp:4", "--cluster-size 3 --num-ps 1", 1),
        ("async", "--cluster-size 4 --num-ps 2", 1),
        ("local-sgd:8", "--cluster-size 4 --num-ps 2", 16),
        ("local-sgd:3", "--cluster-size 2 --num-ps 1", 3),
        ("*.weight=async,sync", "--cluster-size 4 --num-ps 2", 3),
        ("*.bias=ssp:1,sync:2", "--cluster-size 4 --num-ps 1", 2),
    ] {
        let name = format!("{setting} on {shape}").replace([' ', ':', '*', '=', ','], "-");
        let submit = job(&lab, shape).model_dir(&lab.path(&name));
        let done = submit.flags("--save-checkpoints-steps 10").flags(&format!("--consistency {setting}")).run().ok();
        assert_eq!(done.number("rows") as u64, EPOCHS * ROWS, "{setting}");
        assert_eq!(verified_rows(&lab.path(&name)), EPOCHS * ROWS, "{setting}");
        let (steps, batches) = (done.number("global_step"), (EPOCHS * ROWS / 10) as f64);
        assert!(steps >= batches / f64::from(most), "{setting}: {steps} steps");
        // Ends of epochs and of leases cut some of them short.
        assert!(steps <= 1.5 * batches / f64::from(most) + 20.0 || most == 1, "{setting}: {steps} steps");
        assert_learned(&done);
    }
}

#[test]
fn a_worker_killed_between_two_averages_loses_only_its_own_rows() {
    let lab = Lab::new("a_worker_killed_between_two_averages_loses_only_its_own_rows");
    let shape = "--cluster-size 3 --num-ps 1 --consistency local-sgd:8 --save-checkpoints-steps 2";
    let mut gate: Gate = lab.gate("gate");
    // 149 of its own steps: 18 averages, and 5 steps that nobody else has seen.
    let mut running = job(&lab, shape).args_of(gate.arguments(150)).start();
    gate.reached(&mut running, &[0, 1]);
    // One is due two averages after the one before was durable, so which ones there are is a matter of chance.
    running.until_checkpoint(16);
    signal(executor_of(&lab.model(), 2).pid, Signal::SIGKILL);
    running.wait().fails(1, &["worker:0", "SIGKILL"]).error();
    let newest = checkpoints(&lab.model()).last().copied().unwrap();
    assert!((16..=18).contains(&newest), "{newest}");
    let before = verified_rows(&lab.model());
    assert_eq!(before, newest * 2 * 8 * 10, "a checkpoint is cut where states are averaged");
    gate.open();
    let done = job(&lab, shape).run().ok().says(&[&format!("resuming from step {newest}")]);
    assert_eq!(done.number("rows") as u64, EPOCHS * ROWS - before);
    assert_eq!(verified_rows(&lab.model()), EPOCHS * ROWS);
    assert_learned(&done);
}

/// `tfos set` on the lab's model directory.
fn set(lab: &Lab, setting: &str) -> Done {
    Submit::tfos("set --output json").flags(&lab.model().display().to_string()).flags(setting).run()
}

#[test] // PS-7
fn the_dial_is_turned_while_the_job_runs() {
    let lab = Lab::new("the_dial_is_turned_while_the_job_runs");
    let data = line(lab.folder(), LONG, 4);
    let mut running = lab
        .probe(&format!("mode=linear data={}", data.display()))
        .flags("--cluster-size 4 --num-ps 2 --quiet --consistency sync --save-checkpoints-steps 500")
        .start();
    running.until_checkpoint(500);
    let mut last = 0.0;
    for setting in ["async", "*.weight=async,sync", "ssp:2", "sync:1", "sync"] {
        let step = set(&lab, &format!("consistency={setting}")).ok().number("global_step");
        assert!(step >= last, "{setting} after step {step}, what was before it after {last}");
        last = step;
    }
    set(&lab, "consistency=local-sgd:4").fails(2, &["local-sgd", "submitted again"]);
    set(&lab, "consistency=sync:7").fails(2, &["give 1 to 2"]);
    set(&lab, "consistency=q*=async,sync").fails(2, &["matches none of the variables line.bias, line.weight"]);
    set(&lab, "batch-size=7").fails(2, &["consistency can"]);
    assert!(running.is_running(), "all of that was to happen in mid-job");
    let done = running.wait().ok();
    assert_eq!(done.number("rows") as u64, LONG);
    assert_eq!(verified_rows(&lab.model()), LONG);
    assert_learned(&done);
    let query =
        "SELECT event, count(*) AS n FROM events WHERE detail LIKE 'consistency=%' GROUP BY event ORDER BY event";
    let events = Submit::tfos("sql --output json").flag(&lab.model().display().to_string(), query).run().ok();
    assert!(events.stdout.contains(r#""event":"set","n":5"#), "{}", events.stdout);
    assert!(events.stdout.contains(r#""event":"set_refused","n":3"#), "{}", events.stdout);
}

#[test]
fn without_a_job_there_is_nobody_to_ask() {
    let lab = Lab::new("without_a_job_there_is_nobody_to_ask");
    set(&lab, "consistency=sync").fails(1, &["no job answered"]).error();
    job(&lab, "--cluster-size 1").run().ok();
    set(&lab, "--timeout 1s consistency=sync").fails(1, &["no job answered", "generation 1"]).error();
}

#[test]
fn what_the_dial_cannot_do_is_told_at_once() {
    let lab = Lab::new("what_the_dial_cannot_do_is_told_at_once");
    let flags = "--cluster-size 3 --num-ps 1 --consistency local-sgd:0 --sync-replicas --max-staleness 2";
    let told =
        job(&lab, flags).run().fails(2, &["--consistency", "1 step or more", "--sync-replicas", "--max-staleness"]);
    told.error();
    let alone = job(&lab, "--cluster-size 1 --consistency local-sgd:4").run();
    alone.fails(2, &["--consistency", "give --num-ps"]);
    let file = lab.write("job.yaml", "cluster-size: 3\nnum-ps: 1\nconsistency: ssp:3\n");
    let shown = Submit::tfos("submit --dry-run mnist").flag("--config", &file).run().ok();
    assert!(shown.stdout.contains("nobody more than 3 steps ahead"), "{}", shown.stdout);
}
