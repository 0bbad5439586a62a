//! Queries with an exchange: staged into files once, whoever dies meanwhile, and fed from there for every epoch and after
//! a resume.

use std::path::PathBuf;

use tfos_tests::data::numbers;
use tfos_tests::procs::{Signal, assert_none_left, executor_of};
use tfos_tests::wait::secs;
use tfos_tests::{Gate, Lab, Submit};

use crate::verified_rows;

const ROWS: u64 = 4000;

/// A job of `mode` over the rows of a query on the table `data` with the numbers 0 to 3999.
fn job(lab: &Lab, mode: &str, query: &str) -> Submit {
    let data = numbers(lab.folder(), ROWS, 8);
    let words = [format!("mode={mode}"), format!("data={}", data.display()), format!("sql={query}")];
    lab.probe("").args_of(words).flags("--quiet")
}

/// What is staged: manifests, and names of the folders of attempts that hold files.
fn staged(lab: &Lab) -> (Vec<PathBuf>, Vec<String>) {
    let (mut manifests, mut attempts) = (vec![], vec![]);
    for query in std::fs::read_dir(lab.model().join("staging")).into_iter().flatten().flatten() {
        for entry in std::fs::read_dir(query.path()).unwrap().flatten() {
            match entry.file_name().into_string().unwrap() {
                name if name == "manifest.json" => manifests.push(entry.path()),
                name if std::fs::read_dir(entry.path()).unwrap().next().is_some() => attempts.push(name),
                _ => {}
            }
        }
    }
    (manifests, attempts)
}

#[test]
fn joins_and_aggregates_are_fed() {
    let lab = Lab::new("joins_and_aggregates_are_fed");
    let query = "SELECT sum(a.x) AS x FROM data a JOIN data b ON a.x = b.x GROUP BY a.x % 500";
    let done = job(&lab, "sum", query).flags("--cluster-size 3 --num-ps 1").run().ok().says(&["staged 500 rows"]);
    // Each trainer reports its own sum, and the summary has their mean.
    assert_eq!(done.number("metrics.sum") * 2.0, (ROWS * (ROWS - 1) / 2) as f64);
    assert_eq!(done.number("metrics.rows") * 2.0, 500.0);
}

#[test] // the result of each row, in the order that the query asked for
fn inference_keeps_the_order_of_a_sorted_query() {
    let lab = Lab::new("inference_keeps_the_order_of_a_sorted_query");
    let query = "SELECT 999 - x AS x FROM data WHERE x < 1000 ORDER BY x";
    let done = job(&lab, "square", query).flags("--cluster-size 3 --num-ps 1").run().ok();
    assert!(done.stdout.contains("\"in_order\":true,\"exact\":true"), "{}", done.stdout);
    assert_eq!(done.number("inference_rows"), 1000.0);
}

/// A shuffle of the whole table, that stands still at the gate in its middle.
fn shuffle(gate: &str) -> String {
    format!("SELECT gated(x, 2000, '{gate}') AS x FROM data ORDER BY random()")
}

fn at_the_gate(lab: &Lab, gate: &Gate, query: &str) -> tfos_tests::Running {
    let mut running = job(lab, "ordered", query).flags("--cluster-size 3 --num-ps 1").start();
    gate.reached(&mut running, &[0]);
    assert_eq!(staged(lab).0.len(), 0, "there is a manifest before the query has ended");
    running
}

#[test]
fn a_kill_or_an_interrupt_while_staging_loses_and_repeats_nothing() {
    let lab = Lab::new("a_kill_or_an_interrupt_while_staging_loses_and_repeats_nothing");
    let mut gate = lab.gate("gate");
    let query = shuffle(&lab.path("gate").display().to_string());
    // The chief runs the query.
    let running = at_the_gate(&lab, &gate, &query);
    tfos_tests::procs::signal(executor_of(&lab.model(), 1).pid, Signal::SIGKILL);
    running.wait().fails(1, &["chief:0", "SIGKILL"]);
    std::fs::remove_file(lab.path("gate.reached-0")).unwrap();
    let running = at_the_gate(&lab, &gate, &query);
    running.signal(Signal::SIGKILL);
    assert_eq!(running.wait().signal(), Some(9));
    assert_none_left(&lab.model(), secs(5));
    std::fs::remove_file(lab.path("gate.reached-0")).unwrap();
    let mut running = at_the_gate(&lab, &gate, &query);
    running.signal(Signal::SIGINT);
    running.says("finishing the batch");
    gate.open();
    running.wait().fails(130, &[]);
    assert_eq!(staged(&lab).0.len(), 0, "an interrupted query was taken for a whole one");

    // With the gate open: staged by this generation, and nothing of the others stays.
    let shape = "--cluster-size 3 --num-ps 1 --save-checkpoints-steps 20 --max-steps 100";
    let done = job(&lab, "ordered", &query).flags(shape).run().ok().says(&["staged 4000 rows"]);
    let generation = format!("g{}", done.number("generation"));
    assert_eq!(staged(&lab).1, [generation]);
    // The rest of the rows, from the same files, on another cluster.
    let done = job(&lab, "ordered", &query).flags("--cluster-size 1").run().ok();
    let done = done.says(&["was staged before: 4000 rows", "resuming from step"]);
    assert_eq!(verified_rows(&lab.model()), ROWS);
    let mut seen: Vec<u64> =
        done.logs().lines().filter_map(|line| line.strip_prefix("row ")?.rsplit_once(' ')?.1.parse().ok()).collect();
    assert!(seen.iter().take(100).any(|x| *x != seen[0] && x.abs_diff(seen[0]) > 500), "the table is not shuffled");
    seen.sort_unstable();
    seen.dedup();
    assert!(seen.iter().copied().eq(0..ROWS), "some rows were never trained on");
}

#[test]
fn staged_files_that_are_gone_are_named() {
    let lab = Lab::new("staged_files_that_are_gone_are_named");
    let query = "SELECT x FROM data ORDER BY x DESC";
    job(&lab, "ordered", query).flags("--max-steps 10").run().ok();
    let manifest = staged(&lab).0.remove(0);
    let part = manifest.with_file_name("g1").join("part-00000-00000.arrow");
    std::fs::remove_file(&part).unwrap();
    let words = ["are not those that its manifest names", "delete `", "staging/"];
    job(&lab, "ordered", query).run().fails(1, &words).error();
    // As told: staged again, in the same order, so it goes on.
    std::fs::remove_dir_all(manifest.parent().unwrap()).unwrap();
    job(&lab, "ordered", query).run().ok().says(&["staged 4000 rows", "resuming from step 10"]);
    assert_eq!(verified_rows(&lab.model()), ROWS);
}
