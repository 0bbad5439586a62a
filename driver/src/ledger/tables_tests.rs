//! The tables over a ledger and journals that are written as a job writes them.

use std::time::Instant;

use tfos_core::checkpoint::FORMAT;
use tfos_core::cluster::Shape;
use tfos_core::ids::{ExecutorId, Generation, GlobalStep};
use tfos_core::rows::{CommittedRows, RowRange};
use tfos_data::arrow::util::pretty::pretty_format_batches;

use super::*;
use crate::event::{Action, CommitRecord};
use crate::journal::{Journal, Recorder};
use crate::ledger::write_segment;

fn directory() -> (tempfile::TempDir, ModelDir) {
    let folder = tempfile::tempdir().unwrap();
    let dir = ModelDir::open(&folder.path().display().to_string()).unwrap();
    (folder, dir)
}

async fn answer(context: &SessionContext, query: &str) -> Vec<String> {
    let rows = context.sql(query).await.unwrap().collect().await.unwrap();
    let table = pretty_format_batches(&rows).unwrap().to_string();
    let lines = table.lines().skip(3).filter(|line| line.starts_with('|'));
    lines.map(|line| line.split_whitespace().filter(|word| *word != "|").collect::<Vec<_>>().join(" ")).collect()
}

fn commit(global_step: u64, worker: u32, loss: f64, ranges: &[(u32, u64, u64)]) -> CommitRecord {
    let range = |(partition, start, end): &(u32, u64, u64)| RowRange {
        epoch: 1,
        partition: *partition,
        start: *start,
        end: *end,
    };
    CommitRecord { global_step, worker, loss, ranges: ranges.iter().map(range).collect(), at: Instant::now() }
}

async fn checkpoint(dir: &ModelDir, commits: &[CommitRecord]) {
    let (generation, step) = (Generation(1), GlobalStep(3));
    let segment = write_segment(dir, generation, GlobalStep(0), step, commits).await.unwrap();
    let manifest = Manifest {
        format: FORMAT,
        tfos_version: "0".into(),
        application: "a".into(),
        generation,
        global_step: step,
        layout: serde_json::Value::Null,
        optimizer: serde_json::Value::Null,
        optimizer_step: 0,
        parts: vec![],
        input_fingerprint: "f".into(),
        rows: CommittedRows::default(),
        rows_total: 0,
        ledger: vec![segment],
        arguments: serde_json::Value::Null,
        columns: vec![],
    };
    dir.claim_generation("{}").await.unwrap();
    dir.commit(&manifest, false, None).await.unwrap();
}

#[tokio::test]
async fn steps_have_one_line_each_and_samples_one_per_range() {
    let (_folder, dir) = directory();
    let commits = [
        commit(1, 0, 1.0, &[(0, 0, 10), (1, 0, 20)]),
        commit(1, 1, 4.0, &[(2, 0, 60)]),
        commit(2, 1, 9.0, &[(2, 60, 70)]),
        commit(3, 0, 5.0, &[]),
    ];
    checkpoint(&dir, &commits).await;
    let context = open(&dir).await.unwrap().unwrap();
    let steps =
        answer(&context, "SELECT global_step, generation, epoch, workers, rows, loss FROM steps ORDER BY 1").await;
    assert_eq!(steps, ["1 1 1 2 90 3.0", "2 1 1 1 10 9.0", "3 1 1 0 5.0"], "an update without rows has no epoch");
    let jump = "SELECT \"partition\", row_start, row_end, worker FROM samples WHERE global_step =
                (SELECT global_step FROM steps ORDER BY loss DESC LIMIT 1)";
    assert_eq!(answer(&context, jump).await, ["2 60 70 1"]);
    assert_eq!(answer(&context, "SELECT count(*), sum(rows) FROM samples").await, ["4 100"]);
    let year = answer(&context, "SELECT date_part('year', min(time)) > 2000 FROM steps").await;
    assert_eq!(year, ["true"]);
    assert!(answer(&context, "SHOW TABLES").await.iter().any(|line| line.contains("metrics")));
    assert!(answer(&context, "SELECT * FROM events").await.is_empty());
}

#[tokio::test]
async fn journals_of_all_generations_are_asked_and_a_broken_one_is_left_out() {
    let (folder, dir) = directory();
    assert!(open(&dir).await.unwrap().is_none(), "there is nothing to ask");
    for generation in [Generation(1), Generation(2)] {
        let recorder = Recorder::start(dir.clone(), generation);
        let mut journal = Journal::new(generation, Shape { cluster_size: 1, num_ps: 0, evaluator: false });
        journal.begin(1, None, "nothing".into());
        let metrics = vec![("accuracy".to_owned(), 0.25 * generation.0 as f64, 100)];
        journal.on_action(2, &Action::Reported { from: ExecutorId(0), step: GlobalStep(7), metrics });
        recorder.record(&journal);
        recorder.finish().await;
    }
    std::fs::write(folder.path().join(Paths::events(Generation(3))), "half").unwrap();
    let context = open(&dir).await.unwrap().unwrap();
    let metrics = "SELECT generation, node, global_step, name, value, rows FROM metrics ORDER BY generation";
    assert_eq!(answer(&context, metrics).await, ["1 chief:0 7 accuracy 0.25 100", "2 chief:0 7 accuracy 0.5 100"]);
    let events = "SELECT generation, event, detail FROM events ORDER BY generation";
    assert_eq!(answer(&context, events).await, ["1 began nothing", "2 began nothing"]);
    assert!(answer(&context, "SELECT * FROM steps").await.is_empty());
}
