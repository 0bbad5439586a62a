//! The journal is complete where it matters, bounded where it could grow without end, and readable at any moment.

use tfos_core::failure::{Cause, Failure};
use tfos_data::arrow::array::{Array, AsArray};
use tfos_data::arrow::datatypes::UInt64Type;

use super::*;

const SHAPE: Shape = Shape { cluster_size: 4, num_ps: 1, evaluator: true };

fn journal() -> Journal {
    let mut journal = Journal::new(Generation(3), SHAPE);
    journal.begin(1, Some(GlobalStep(20)), "checkpoints/000000000020/manifest.json".into());
    journal
}

fn reported(executor: u32, step: u64) -> Action {
    let metrics = vec![("loss".to_owned(), 1.0, 10), ("accuracy".to_owned(), 0.5, 10)];
    Action::Reported { from: ExecutorId(executor), step: GlobalStep(step), metrics }
}

fn texts(batch: &RecordBatch, name: &str) -> Vec<String> {
    let column = batch.column_by_name(name).unwrap().as_string::<i32>().clone();
    column.iter().map(|t| t.unwrap_or("-").to_owned()).collect()
}

#[test]
fn deaths_and_checkpoints_are_written_at_once_and_name_their_node() {
    let mut journal = journal();
    let failure = Failure {
        node: None,
        executor_id: ExecutorId(1),
        host: "h".into(),
        cause: Cause::Signal { signal: 9 },
        first_error: None,
        log: None,
    };
    assert!(!journal.on_event(2, &Event::Tick));
    let stored = Event::CheckpointStored { step: GlobalStep(40), manifest: "the manifest".into() };
    assert!(journal.on_event(3, &stored));
    assert!(journal.on_action(4, &Action::Lost(Box::new(failure))));
    let batch = journal.batch().unwrap();
    assert_eq!(texts(&batch, "event"), ["restored", "checkpoint", "lost"]);
    assert_eq!(texts(&batch, "node"), ["-", "-", "chief:0"]);
    assert!(texts(&batch, "detail")[2].contains("SIGKILL"));
    assert_eq!(batch.column_by_name("global_step").unwrap().as_primitive::<UInt64Type>().value(1), 40);
}

#[test]
fn metrics_without_end_are_thinned_evenly_and_the_evaluators_stay() {
    let mut journal = journal();
    for step in 0..200_000 {
        journal.on_action(step, &reported(1, step));
        if step.is_multiple_of(100) {
            assert!(journal.on_action(step, &reported(2, step)), "what the evaluator found is worth a request");
        }
    }
    assert!(journal.metrics.entries.len() <= MOST && journal.metrics.entries.len() > MOST / 4);
    assert_eq!(journal.scores.entries.len(), 2 * 2000);
    let steps: Vec<u64> = journal.metrics.entries.iter().filter_map(|(_, e)| e.step).collect();
    let gaps: Vec<u64> = steps.windows(2).map(|w| w[1] - w[0]).filter(|gap| *gap > 0).collect();
    assert!(gaps.iter().all(|gap| *gap == gaps[0]), "an even choice");
    assert_eq!(steps.first(), Some(&0));
    assert_eq!(steps.len() % 2, 0, "what was reported together stays together");
    let batch = journal.batch().unwrap();
    let times = batch.column_by_name("time_ms").unwrap().as_primitive::<UInt64Type>().clone();
    assert!(times.values().is_sorted() && times.null_count() == 0);
}

#[tokio::test]
async fn the_newest_state_is_in_the_file_when_the_recorder_has_finished() {
    let folder = tempfile::tempdir().unwrap();
    let dir = ModelDir::open(&folder.path().display().to_string()).unwrap();
    let recorder = Recorder::start(dir, Generation(3));
    let mut journal = journal();
    for time in 2..50 {
        journal.on_action(time, &Action::Note(format!("note {time}")));
        recorder.record(&journal);
    }
    recorder.finish().await;
    let file = std::fs::File::open(folder.path().join(Paths::events(Generation(3)))).unwrap();
    let reader = tfos_data::parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(file, 1 << 20).unwrap();
    let rows: usize = reader.map(|batch| batch.unwrap().num_rows()).sum();
    assert_eq!(rows, 49);
}
