//! TensorFlowOnSpark's tests of cluster and feed, under their names.

use tfos_tests::data::numbers;
use tfos_tests::wait::secs;
use tfos_tests::{Lab, procs};

#[test] // SimpleTest: the sum of 0..=999, fed to two trainers
fn test_spark() {
    let lab = Lab::new("test_spark");
    let data = numbers(lab.folder(), 1000, 10);
    let args = format!("mode=sum data={}", data.display());
    let done = lab.probe(&args).flags("--cluster-size 3 --num-ps 1").run().ok();
    assert_eq!(done.number("metrics.sum") * 2.0, 499_500.0);
    assert_eq!(done.number("metrics.rows") * 2.0, 1000.0);
}

#[test] // independent arithmetic on every node, the feed left alone, clean shutdown
fn test_basic_tf() {
    let lab = Lab::new("test_basic_tf");
    let data = numbers(lab.folder(), 100, 2);
    let args = format!("mode=basic data={}", data.display());
    let done = lab.probe(&args).flags("--cluster-size 1").run().ok();
    assert_eq!(done.number("metrics.three"), 3.0);
    procs::assert_none_left(lab.folder(), secs(1));
}

#[test] // as above with a ps, whose model nobody ever names
fn test_basic_tf_with_ps() {
    let lab = Lab::new("test_basic_tf_with_ps");
    let data = numbers(lab.folder(), 100, 2);
    let args = format!("mode=basic data={}", data.display());
    let done = lab.probe(&args).flags("--cluster-size 3 --num-ps 1").within(secs(30)).run().ok();
    assert_eq!(done.number("metrics.three"), 3.0);
}

#[test] // 0..=999 in ten files, two workers, batches of ten: exact squares, one per row, in order
fn test_inputmode_spark() {
    let lab = Lab::new("test_inputmode_spark");
    let data = numbers(lab.folder(), 1000, 10);
    let args = format!("mode=square data={}", data.display());
    let done = lab.probe(&args).flags("--cluster-size 3 --num-ps 1").run().ok();
    assert_eq!(done.number("inference_rows"), 1000.0);
    let wanted = format!("\"rows\":1000,\"sum\":{},\"in_order\":true,\"exact\":true", 332_833_500);
    assert!(done.stdout.contains(&wanted), "the driver's own check was to give {wanted}");
}

#[test] // the worker's own error is the driver's message, at once
fn test_inputmode_spark_exception() {
    let lab = Lab::new("test_inputmode_spark_exception");
    let data = numbers(lab.folder(), 1000, 10);
    let args = format!("mode=error at=3 data={}", data.display());
    let done = lab.probe(&args).run().fails(1, &["chief:0", "deliberate error at batch 3", "executor-0.log"]);
    assert!(done.wall < secs(5), "it took {:?}", done.wall);
    assert_eq!(done.text("status"), "failed");
    assert_eq!(done.text("root_cause.kind"), "error");
}

#[test] // a failure after the last row fails the job, and nobody has to guess how long to wait for it
fn test_inputmode_spark_late_exception() {
    let lab = Lab::new("test_inputmode_spark_late_exception");
    let data = numbers(lab.folder(), 1000, 10);
    let mut gate = lab.gate("late");
    let args = format!("mode=late-error data={}", data.display());
    let mut running = lab.probe(&args).args_of(gate.arguments(0)).start();
    gate.reached(&mut running, &[0]);
    assert!(running.is_running(), "the job was declared done while its node had not returned");
    gate.open();
    let done = running.wait().fails(1, &["deliberate error after the feed"]);
    assert_eq!(done.text("status"), "failed");
}

#[test] // the listener of the reserved port is handed over, never released
fn test_port_released() {
    let lab = Lab::new("test_port_released");
    let data = numbers(lab.folder(), 100, 1);
    let done = lab.probe(&format!("mode=listener data={}", data.display())).run().ok();
    assert_eq!(done.number("metrics.held"), 1.0);
}

#[test] // nobody else gets the port while the node has it; probe_app tries, on chief and worker
fn test_port_unreleased() {
    let lab = Lab::new("test_port_unreleased");
    let data = numbers(lab.folder(), 100, 1);
    let args = format!("mode=listener data={}", data.display());
    let done = lab.probe(&args).flags("--cluster-size 3 --num-ps 1").within(secs(30)).run().ok();
    assert_eq!(done.number("metrics.held"), 1.0);
}

#[test] // role, index, arguments and seed reach the node
fn test_run() {
    let lab = Lab::new("test_run");
    let data = numbers(lab.folder(), 100, 1);
    let args = format!("mode=role hello=world data={}", data.display());
    let done = lab.probe(&args).flags("--cluster-size 1 --seed 7").run().ok();
    assert_eq!(done.number("metrics.seed"), 7.0);
}

#[test] // early stop: nothing more is read, and the job is a success
fn terminate_ends_the_feed_for_everybody() {
    let lab = Lab::new("terminate_ends_the_feed_for_everybody");
    let data = numbers(lab.folder(), 100_000, 10);
    for shape in ["--cluster-size 1", "--cluster-size 3 --num-ps 1"] {
        let model = lab.path(shape.split(' ').nth(1).unwrap());
        let args = format!("mode=terminate at=3 data={}", data.display());
        let done = lab.probe(&args).model_dir(&model).flags(shape).within(secs(30)).run().ok();
        let rows = done.number("rows");
        assert!(rows < 50_000.0, "{rows} rows were read on");
    }
}

#[test] // rows that no step has seen count as passed over; the job ends
fn a_node_that_never_steps_reads_everything_and_ends() {
    let lab = Lab::new("a_node_that_never_steps_reads_everything_and_ends");
    let data = numbers(lab.folder(), 1000, 10);
    for mode in ["never-steps", "no-train-with"] {
        for shape in ["--cluster-size 1", "--cluster-size 3 --num-ps 1"] {
            let model = lab.path(&format!("{mode}{}", shape.len()));
            let args = format!("mode={mode} data={}", data.display());
            let done = lab.probe(&args).model_dir(&model).flags(shape).within(secs(30)).run().ok();
            assert_eq!((done.number("rows"), done.number("global_step")), (1000.0, 0.0), "{mode} {shape}");
        }
    }
}

#[test] // a missing or surplus result is an error at once, not a wait for ever
fn results_that_do_not_fit_the_rows_are_an_error() {
    let lab = Lab::new("results_that_do_not_fit_the_rows_are_an_error");
    let data = numbers(lab.folder(), 100, 2);
    let run = |mode: &str| lab.probe(&format!("mode={mode} data={}", data.display())).within(secs(20)).run();
    run("wrong-count").fails(1, &["9 results in `square`", "10 rows"]);
    run("no-results").fails(1, &["0 results", "10 rows"]);
}

#[test] // a driver that needs no executor does not wait for them
fn an_application_may_leave_its_cluster_alone() {
    let lab = Lab::new("an_application_may_leave_its_cluster_alone");
    let done = lab.probe("mode=idle").flags("--cluster-size 3 --num-ps 1").within(secs(20)).run().ok();
    assert_eq!(done.text("status"), "ok");
    procs::assert_none_left(lab.folder(), secs(1));
}
