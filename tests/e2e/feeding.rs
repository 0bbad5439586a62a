//! What a training node is promised of its rows: whole batches where it wants them, nobody who waits for a node without
//! rows, and all the time that it needs for a batch.

use serde_json::Value;
use tfos_tests::data::line;
use tfos_tests::wait::secs;
use tfos_tests::{Done, Lab, Submit};

use crate::{assert_learned, verified_rows};

/// For each global step how many nodes it was computed by, and from how many rows.
fn steps(lab: &Lab) -> Vec<(u64, u64)> {
    let query = "SELECT count(DISTINCT worker) AS nodes, sum(row_end - row_start) AS n FROM samples GROUP BY global_step \
                 ORDER BY global_step";
    let model = lab.model().display().to_string();
    let done = Submit::tfos("sql --output json").flag(&model, query).run().ok();
    let line = |line: &str| -> (u64, u64) {
        let line: Value = serde_json::from_str(line).unwrap();
        (line["nodes"].as_u64().unwrap(), line["n"].as_u64().unwrap())
    };
    done.stdout.lines().map(line).collect()
}

fn linear(lab: &Lab, rows: u64, shape: &str, extra: &str) -> Submit {
    let data = line(lab.folder(), rows, 1);
    lab.probe(&format!("mode=linear data={} {extra}", data.display())).flags("--quiet").flags(shape)
}

#[test] // PS-5: 32, 32 and 6 rows in batches of 10; the third node has none from its second step on
fn a_node_without_rows_says_so_and_the_divisor_shrinks() {
    let lab = Lab::new("a_node_without_rows_says_so_and_the_divisor_shrinks");
    let done = linear(&lab, 70, "--cluster-size 4 --num-ps 1 --sync-replicas", "").run().ok();
    assert_eq!(done.number("global_step"), 4.0);
    assert_eq!(done.number("dropped_gradients"), 0.0);
    assert_eq!(verified_rows(&lab.model()), 70);
    let mut found = steps(&lab);
    // Which of the four steps the node of 6 rows took part in depends on who came first.
    found.sort_unstable();
    let nodes: Vec<u64> = found.iter().map(|(nodes, _)| *nodes).collect();
    assert_eq!(nodes, [2, 2, 2, 3], "{found:?}");
    assert_eq!(found.iter().map(|(_, rows)| rows).sum::<u64>(), 70);
}

/// Every step had a whole batch of each node, and what was left over counts once.
fn whole_batches(done: &Done, lab: &Lab, rows: u64) {
    let passed_over = done.number("rows_passed_over") as u64;
    assert_eq!(done.number("rows") as u64, rows);
    assert_eq!(verified_rows(&lab.model()), rows);
    assert_eq!(done.number("global_step") as u64 * 10 + passed_over, rows);
    assert_learned(done);
}

#[test] // FED-1
fn rows_left_over_of_an_epoch_count_once_and_complete_it() {
    let lab = Lab::new("rows_left_over_of_an_epoch_count_once_and_complete_it");
    let epochs = "drop-last=1 epochs=3";
    let done = linear(&lab, 1003, "--cluster-size 1", epochs).run().ok();
    assert_eq!(done.number("rows_passed_over"), 9.0, "3 rows of each epoch");
    whole_batches(&done, &lab, 3009);
    std::fs::remove_dir_all(lab.model()).unwrap();
    let done = linear(&lab, 1003, "--cluster-size 4 --num-ps 1", epochs).run().ok();
    let passed_over = done.number("rows_passed_over");
    assert!((3.0..200.0).contains(&passed_over), "three nodes passed over {passed_over} rows");
    whole_batches(&done, &lab, 3009);
}

#[test] // MEM-1: three heartbeat timeouts in one batch, in which libtorch has all cores
fn a_node_that_computes_is_alive() {
    let lab = Lab::new("a_node_that_computes_is_alive");
    let shape = "--cluster-size 3 --num-ps 1 --sync-replicas --heartbeat-timeout 1s";
    let done = linear(&lab, 2000, shape, "compute-secs=3").run().ok();
    assert!(done.wall > secs(3), "the chief was to compute for 3 s");
    assert_eq!(verified_rows(&lab.model()), 2000);
}

/// `--feed-memory` of the test, and a table of twenty times as much.
const BOUND: u64 = 24 << 20;
const WIDE_ROWS: u64 = 20 * BOUND / 784;

/// A run over a table of so many rows in 16 files: what the feed held, and what the process had.
fn resident(lab: &Lab, rows: u64) -> (f64, f64) {
    let table = lab.path(&format!("wide-{rows}"));
    let rows_of_file = rows / 16;
    lab.probe(&format!("mode=wide files=4 rows={rows_of_file} to={}", table.display())).run().ok();
    // Other files for the scan, the same ones on the disk.
    for number in 4..16 {
        let name = |number: u64| table.join(format!("part-{number:03}.parquet"));
        std::fs::hard_link(name(number % 4), name(number)).unwrap();
    }
    let submit = lab.probe(&format!("mode=touch data={}", table.display()));
    let done = submit.model_dir(&lab.path(&format!("model-{rows}"))).flags("--quiet --feed-memory 24MiB").run().ok();
    assert_eq!(done.number("rows") as u64, rows_of_file * 16);
    assert!(done.logs().contains("feed memory: at most"), "the node's log was to say what its feed held");
    assert_eq!(done.number("feed_memory.bound") as u64, BOUND);
    (done.number("feed_memory.together"), done.number("feed_memory.resident"))
}

#[test] // FED-5
fn a_table_of_twenty_times_the_bound_streams_through() {
    let lab = Lab::new("a_table_of_twenty_times_the_bound_streams_through");
    let (_, base) = resident(&lab, 320);
    let (together, resident) = resident(&lab, WIDE_ROWS);
    // Several batches at a time, or the bound would not be what is tested.
    assert!((0.2..=1.0).contains(&(together / BOUND as f64)), "the feed held {together} bytes of {BOUND}");
    let own = (resident - base) / BOUND as f64;
    assert!(own <= 1.1, "{resident} bytes were resident, {base} of them with next to no rows: {own:.2} bounds");
}
