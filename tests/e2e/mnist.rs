//! Handwritten digits, trained on 8,000 and scored on 2,000: every way of
//! feeding, every kind of update, both networks.

use std::path::Path;

use tfos_tests::data::{Digits, convert, digits};
use tfos_tests::submit::checkpoints;
use tfos_tests::wait::secs;
use tfos_tests::{Done, Lab};

use crate::verified_rows;

/// Accuracy that has to be reached on the rows that were not trained on.
const MLP: f64 = 0.96;
const CNN: f64 = 0.98;

const ROWS: u64 = 8000;

const SHAPES: [&str; 4] = [
    "--cluster-size 3 --num-ps 1 --sync-replicas",
    "--cluster-size 4 --num-ps 2 --sync-replicas",
    "--cluster-size 3 --num-ps 1",
    "--cluster-size 1",
];

fn data() -> &'static Digits {
    digits(env!("CARGO_TARGET_TMPDIR"))
}

fn paths(train: &Path, test: &Path) -> String {
    format!("--data {} --eval-data {}", train.display(), test.display())
}

/// The three ways of feeding, as arguments.
fn feed(way: &str) -> Vec<String> {
    let d = data();
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    match way {
        "parquet" => words(paths(&d.train_parquet, &d.test_parquet)),
        "sql" => {
            // A filter that keeps every row but needs each one's value, and a computed column.
            let query = "SELECT image, CAST(label + 10 - 10 AS BIGINT) AS label FROM data WHERE label >= 0";
            let mut all = words(paths(&d.train_parquet, &d.test_parquet));
            all.extend(["--sql".to_owned(), query.to_owned()]);
            all
        }
        _ => words(paths(&d.train_tfrecord, &d.test_tfrecord) + " --input-mode direct"),
    }
}

fn train(lab: &Lab, network: &str, epochs: u64, way: &str, shape: &str, extra: &str) -> Done {
    let name: String = format!("{network}-{way}{shape}").chars().filter(|c| !c.is_whitespace()).collect();
    let submit = lab.submit("mnist").model_dir(&lab.path(&name)).flags(shape).flags("--quiet").within(secs(300));
    let done = submit.args_of(feed(way)).args(&format!("--network {network} --epochs {epochs} {extra}")).run().ok();
    let (accuracy, wall) = (done.number("metrics.accuracy"), done.wall.as_secs_f64());
    eprintln!("{network} {way} {shape}: {accuracy:.4} in {wall:.1} s");
    assert_eq!(done.number("rows") as u64, ROWS * epochs);
    assert_eq!(verified_rows(&lab.path(&name)), ROWS * epochs);
    done
}

fn accurate(done: &Done, wanted: f64) {
    // Drawn digits are another task; that it is learned at all shows the same machinery.
    let wanted = if data().real { wanted } else { 0.9 };
    assert!(done.number("metrics.accuracy") >= wanted, "the accuracy was to be {wanted} or more");
}

const MLP_EPOCHS: u64 = 15;
const CNN_EPOCHS: u64 = 10;

/// A rate that falls to zero by the last step: without it the last few steps decide on a percent.
fn falling(shape: &str, epochs: u64) -> String {
    let per_step = if shape.contains("--sync-replicas") { 2 } else { 1 };
    format!("--schedule cosine --schedule-steps {}", ROWS * epochs / 32 / per_step)
}

fn mlp(name: &'static str, way: &str) {
    let lab = Lab::new(name);
    for shape in SHAPES {
        accurate(&train(&lab, "mlp", MLP_EPOCHS, way, shape, &falling(shape, MLP_EPOCHS)), MLP);
    }
}

#[test]
fn mlp_from_parquet() {
    mlp("mlp_from_parquet", "parquet");
}

#[test]
fn mlp_from_a_query() {
    mlp("mlp_from_a_query", "sql");
}

#[test]
fn mlp_from_tfrecords_read_directly() {
    mlp("mlp_from_tfrecords_read_directly", "direct");
}

fn cnn(lab: &Lab, way: &str, shape: &str) {
    accurate(&train(lab, "cnn", CNN_EPOCHS, way, shape, &falling(shape, CNN_EPOCHS)), CNN);
}

#[test]
fn cnn_from_parquet() {
    let lab = Lab::new("cnn_from_parquet");
    for shape in SHAPES {
        cnn(&lab, "parquet", shape);
    }
}

// The mlp has shown every combination; the cnn costs much more.
#[test]
fn cnn_from_a_query() {
    let lab = Lab::new("cnn_from_a_query");
    cnn(&lab, "sql", SHAPES[0]);
}

#[test]
fn cnn_from_tfrecords_read_directly() {
    let lab = Lab::new("cnn_from_tfrecords_read_directly");
    cnn(&lab, "direct", SHAPES[1]);
}

#[test] // each rule, at its own default rate
fn every_optimizer_learns() {
    let lab = Lab::new("every_optimizer_learns");
    for rule in ["sgd", "adagrad", "adam", "adamw", "lamb", "rmsprop", "adadelta", "ftrl"] {
        let shape = "--cluster-size 3 --num-ps 1 --sync-replicas";
        let model = lab.path(rule);
        let submit = lab.submit("mnist").model_dir(&model).flags(shape).flags("--quiet");
        let done = submit.args_of(feed("parquet")).args(&format!("--epochs 3 --optimizer {rule}")).run().ok();
        assert!(done.number("metrics.accuracy") > 0.85, "{rule}");
    }
}

#[test] // the backup's late gradients are dropped, and their rows are trained on nevertheless
fn backup_workers_lose_no_row() {
    let lab = Lab::new("backup_workers_lose_no_row");
    let shape = "--cluster-size 4 --num-ps 1 --sync-replicas --replicas-to-aggregate 2";
    let done = train(&lab, "mlp", 3, "parquet", shape, "");
    assert!(done.number("metrics.accuracy") > 0.85);
}

#[test] // whoever is too far ahead waits, and nobody for ever
fn staleness_stays_within_its_bound() {
    let lab = Lab::new("staleness_stays_within_its_bound");
    let free = train(&lab, "mlp", 3, "parquet", "--cluster-size 4 --num-ps 1", "");
    assert!(free.number("largest_staleness") > 2.0, "without a bound there is nothing to see");
    let bounded = train(&lab, "mlp", 3, "parquet", "--cluster-size 5 --num-ps 2 --max-staleness 2", "--clip-norm 5");
    assert!(bounded.number("metrics.accuracy") > 0.85);
    assert!((1.0..=2.0).contains(&bounded.number("largest_staleness")));
}

#[test] // one node scores every checkpoint on the second input
fn an_evaluator_gives_the_accuracy() {
    let lab = Lab::new("an_evaluator_gives_the_accuracy");
    let shape = "--cluster-size 4 --num-ps 1 --evaluator --save-checkpoints-steps 200 --keep-best accuracy";
    let submit = lab.submit("mnist").flags(shape).flags("--quiet").args_of(feed("parquet"));
    let done = submit.args("--epochs 4").run().ok();
    assert!(done.number("metrics.accuracy") > 0.85);
    let logs = done.logs();
    let scored = logs.lines().filter(|l| l.contains("on 2000 rows")).count();
    assert!(scored >= 1, "the evaluator's log was to name the checkpoints");
    let newest = checkpoints(&lab.model()).last().copied().unwrap();
    assert!(logs.contains(&format!("checkpoints/{newest:012}/manifest.json on 2000 rows")), "the last one is scored");
    let scores = std::fs::read(lab.model().join(format!("checkpoints/{newest:012}/scores.json"))).unwrap();
    let scores: serde_json::Value = serde_json::from_slice(&scores).unwrap();
    let difference = scores["accuracy"].as_f64().unwrap() - done.number("metrics.accuracy");
    assert!(difference.abs() < 1e-6, "for --keep-best: {scores}");
}

#[test] // one prediction per row, in their order: the accuracy counted from the file is the summary's
fn predictions_are_written() {
    let lab = Lab::new("predictions_are_written");
    let file = lab.path("predictions.parquet");
    let submit = lab.submit("mnist").flags("--cluster-size 3 --num-ps 1 --quiet").args_of(feed("parquet"));
    let done = submit.args(&format!("--epochs 2 --predictions {}", file.display())).run().ok();
    let csv = lab.path("predictions.csv");
    convert(&file, &csv, "");
    let text = std::fs::read_to_string(&csv).unwrap();
    let rows: Vec<Vec<&str>> = text.lines().skip(1).map(|l| l.split(',').collect()).collect();
    assert_eq!((rows.len(), done.number("inference_rows")), (2000, 2000.0));
    let right = rows.iter().filter(|r| r[0] == r[1]).count();
    assert!((right as f64 / 2000.0 - done.number("metrics.accuracy")).abs() < 1e-9, "{right} of 2000 are right");
    // The labels stand in the order of the data.
    let original = lab.path("original.csv");
    convert(&data().test_parquet, &original, "");
    let original = std::fs::read_to_string(original).unwrap();
    let column = original.lines().next().unwrap().split(',').position(|c| c == "label").unwrap();
    let labels = original.lines().skip(1).map(|l| l.split(',').nth(column).unwrap());
    assert!(labels.eq(rows.iter().map(|r| r[0])), "the rows are out of order");
}

#[test] // no data, no network: digits that it draws, one ps, chief and worker, by the program's own command
fn the_example_program_is_a_whole_cluster() {
    let lab = Lab::new("the_example_program_is_a_whole_cluster");
    let program = tfos_tests::bin::program("mnist");
    let done = tfos_tests::Submit::program(program).flags("--rows 2000 --epochs 4").run().ok();
    assert!(done.stdout.contains("accuracy:"), "the text was to end with the accuracy");
    drop(lab);
}

#[test] // drawn digits are drawn once, so a second submit resumes on the same
fn drawn_digits_resume() {
    let lab = Lab::new("drawn_digits_resume");
    let run = |epochs: u32| lab.submit("mnist").flags("--quiet").args(&format!("--rows 1000 --epochs {epochs}")).run();
    run(1).ok();
    run(2).ok().says(&["resuming from step"]);
    assert_eq!(verified_rows(&lab.model()), 2000);
}
