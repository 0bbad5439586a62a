//! Defects planted into the ledger of a real job: what proves "exactly once" has to find them, and to name them.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tfos::data::arrow::array::{ArrayRef, AsArray, RecordBatch, UInt64Array};
use tfos::data::arrow::compute::concat_batches;
use tfos::data::arrow::datatypes::{UInt32Type, UInt64Type};
use tfos::data::parquet::arrow::ArrowWriter;
use tfos::data::parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use tfos_tests::data::line;
use tfos_tests::submit::checkpoints;
use tfos_tests::{Done, Lab, Submit};

const ROWS: u64 = 2000;

fn read(segment: &Path) -> RecordBatch {
    let batches: Vec<_> =
        ParquetRecordBatchReader::try_new(File::open(segment).unwrap(), 1 << 20).unwrap().map(Result::unwrap).collect();
    concat_batches(&batches[0].schema(), &batches).unwrap()
}

fn write(segment: &Path, lines: &RecordBatch) {
    let mut writer = ArrowWriter::try_new(File::create(segment).unwrap(), lines.schema(), None).unwrap();
    writer.write(lines).unwrap();
    writer.close().unwrap();
}

/// The range of a line, as `verify-ledger` prints it.
fn range(lines: &RecordBatch, line: usize) -> Value {
    let u32s = |name: &str| lines.column_by_name(name).unwrap().as_primitive::<UInt32Type>().value(line);
    let u64s = |name: &str| lines.column_by_name(name).unwrap().as_primitive::<UInt64Type>().value(line);
    json!({"epoch": u32s("epoch"), "partition": u32s("partition"), "start": u64s("row_start"), "end": u64s("row_end")})
}

fn step(lines: &RecordBatch, line: usize) -> u64 {
    lines.column_by_name("global_step").unwrap().as_primitive::<UInt64Type>().value(line)
}

/// The same lines under another step.
fn at_step(lines: &RecordBatch, step: u64) -> RecordBatch {
    let mut columns = lines.columns().to_vec();
    let at = lines.schema().index_of("global_step").unwrap();
    columns[at] = Arc::new(UInt64Array::from_value(step, lines.num_rows())) as ArrayRef;
    RecordBatch::try_new(lines.schema(), columns).unwrap()
}

fn verify(lab: &Lab, output: &str) -> Done {
    Submit::tfos(&format!("verify-ledger --output {output} {}", lab.model().display())).run()
}

#[test] // LED-1
fn a_lease_committed_twice_or_dropped_is_found_and_named() {
    let lab = Lab::new("a_lease_committed_twice_or_dropped_is_found_and_named");
    let data = line(lab.folder(), ROWS, 4);
    let job = lab.probe(&format!("mode=linear epochs=2 data={}", data.display()));
    job.flags("--cluster-size 3 --num-ps 1 --save-checkpoints-steps 50 --quiet").run().ok();
    let last = checkpoints(&lab.model()).last().copied().unwrap();
    let manifest = std::fs::read(lab.model().join(format!("checkpoints/{last:012}/manifest.json"))).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let names: Vec<&str> = manifest["ledger"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let [first, .., newest] = names[..] else { panic!("two segments were to be there: {names:?}") };
    let (one, other) = (lab.model().join(first), lab.model().join(newest));
    let (lines, newer) = (read(&one), read(&other));
    assert!(verify(&lab, "json").ok().json["audit"]["epochs"].as_array().is_some_and(|e| e.len() == 2));

    // The first lease of the first segment again, as if the last step had had it too.
    let again = at_step(&lines.slice(0, 1), step(&newer, 0));
    write(&other, &concat_batches(&newer.schema(), [&newer, &again]).unwrap());
    let found = verify(&lab, "json");
    assert_eq!((found.code(), &found.json["ok"]), (Some(1), &json!(false)));
    let [twice] = &found.json["audit"]["epochs"][0]["twice"].as_array().unwrap()[..] else { panic!("{}", found.json) };
    let mut wanted = range(&lines, 0);
    let update = |step: u64, segment: &str| json!({"step": step, "segment": segment});
    let named: Vec<Value> = twice["updates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|u| update(u["global_step"].as_u64().unwrap(), u["segment"].as_str().unwrap()))
        .collect();
    assert_eq!(named, [update(step(&lines, 0), first), update(step(&newer, 0), newest)]);
    wanted["updates"] = twice["updates"].clone();
    assert_eq!(twice, &wanted);
    let said = verify(&lab, "text");
    assert_eq!(said.code(), Some(1));
    for words in ["applied twice: epoch 0", first, newest, "the ledger contradicts itself"] {
        assert!(said.stdout.contains(words), "{words}: {}", said.stdout);
    }

    // Its last lease dropped.
    write(&other, &newer);
    let kept = lines.num_rows() - 1;
    write(&one, &lines.slice(0, kept));
    let found = verify(&lab, "json");
    assert_eq!(found.code(), Some(1));
    let missing: Vec<&Value> =
        found.json["audit"]["epochs"].as_array().unwrap().iter().map(|e| &e["missing"]).collect();
    assert!(missing.contains(&&json!([range(&lines, kept)])), "{missing:?}");
    assert!(verify(&lab, "text").stdout.contains("never applied: epoch "));

    write(&one, &lines);
    assert_eq!(crate::verified_rows(&lab.model()), 2 * ROWS);
}
