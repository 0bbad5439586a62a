//! Data that are missing, of another shape, cut short or changed by a bit: which file, which place, which column.

use std::path::{Path, PathBuf};

use tfos_tests::data::convert;
use tfos_tests::wait::secs;
use tfos_tests::{Done, Lab, Submit};

const ROWS: usize = 200;

/// A small set of drawn digits.
fn drawn(lab: &Lab) -> PathBuf {
    let to = lab.path("drawn.parquet");
    let words = format!("mode=draw rows={ROWS} to={}", to.display());
    Submit::new(&tfos_tests::bin::probe().display().to_string()).args(&words).run().ok();
    to
}

fn train(lab: &Lab, data: &Path, extra: &str) -> Done {
    let submit = lab.submit("mnist").args(&format!("--data {} --epochs 1 {extra}", data.display()));
    submit.flags("--quiet").within(secs(30)).run()
}

/// One message with these words; 1 or 2 is the code.
fn refused(done: Done, words: &[&str]) {
    assert!(matches!(done.code(), Some(1 | 2)), "it was to fail");
    let done = done.says(words);
    done.error();
}

#[test]
fn a_missing_file() {
    let lab = Lab::shared("a_missing_file");
    for name in ["none.parquet", "none.tfrecord", "none.csv"] {
        refused(train(&lab, &lab.path(name), ""), &[name, "does not exist"]);
    }
    refused(train(&lab, &lab.path("none.tfrecord"), "--input-mode direct"), &["none.tfrecord", "does not exist"]);
    let empty = lab.path("empty");
    std::fs::create_dir(&empty).unwrap();
    refused(train(&lab, &empty, "--format parquet"), &["empty", "no data files"]);
}

#[test]
fn a_missing_column() {
    let lab = Lab::shared("a_missing_column");
    let csv = lab.write("rows.csv", "image,digit\n1,2\n3,4\n");
    refused(train(&lab, &csv, ""), &["label", "digit"]);
    let data = drawn(&lab);
    let submit = lab.submit("mnist").args(&format!("--data {} --epochs 1", data.display()));
    let done = submit.args_of(["--sql", "SELECT image FROM data"]).within(secs(30)).run();
    refused(done, &["no column `label`"]);
    let submit = lab.submit("mnist").args(&format!("--data {} --epochs 1", data.display()));
    let done = submit.args_of(["--sql", "SELECT image, lable AS label FROM data"]).within(secs(30)).run();
    refused(done, &["lable"]);
}

#[test]
fn a_query_that_is_none() {
    let lab = Lab::shared("a_query_that_is_none");
    let data = drawn(&lab);
    let query = |sql: &str| {
        let submit = lab.submit("mnist").args(&format!("--data {} --epochs 1", data.display()));
        submit.args_of(["--sql", sql]).within(secs(30)).run()
    };
    refused(query("SELEKT 1"), &["SELEKT"]);
    refused(query("SELECT image, label FROM data ORDER BY nothing"), &["nothing"]);
}

#[test] // a label as text
fn a_wrong_dtype() {
    let lab = Lab::shared("a_wrong_dtype");
    let data = drawn(&lab);
    let submit = lab.submit("mnist").args(&format!("--data {} --epochs 1", data.display()));
    let sql = "SELECT image, CASE WHEN label = 1 THEN 'one' ELSE 'many' END AS label FROM data";
    let done = submit.args_of(["--sql", sql]).within(secs(30)).run();
    refused(done, &["`label`", "Utf8"]);
    // Of a feature of a TFRecord the schema says something else than the file.
    let records = lab.path("rows.tfrecord");
    convert(&data, &records, "");
    let done = train(&lab, &records, "--schema image:binary,label:string");
    refused(done, &["label", "rows.tfrecord"]);
}

/// Drawn digits as TFRecords, several files; damages the second one.
fn damaged(lab: &Lab, name: &str, damage: impl Fn(&mut Vec<u8>)) -> (PathBuf, PathBuf) {
    let folder = lab.path(name);
    convert(&drawn(lab), &folder, "--num-files 4 --to-format tfrecord");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let file = files.swap_remove(1);
    let mut bytes = std::fs::read(&file).unwrap();
    damage(&mut bytes);
    std::fs::write(&file, bytes).unwrap();
    (folder, file)
}

/// Byte at which record `n` begins: each is a length, its checksum, data, their checksum.
fn record(bytes: &[u8], n: usize) -> usize {
    (0..n).fold(0, |at, _| at + 16 + u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize)
}

#[test] // which file and which offset, in feed and in direct mode
fn a_truncated_tfrecord() {
    let lab = Lab::shared("a_truncated_tfrecord");
    let (folder, file) = damaged(&lab, "cut", |bytes| bytes.truncate(bytes.len() - 100));
    let bytes = std::fs::read(&file).unwrap();
    let offset = record(&bytes, ROWS / 4 - 1).to_string();
    let name = file.file_name().unwrap().to_str().unwrap();
    for mode in ["feed", "direct"] {
        let done = train(&lab, &folder, &format!("--input-mode {mode}"));
        refused(done, &[name, "truncated", &format!("byte {offset}")]);
    }
}

#[test]
fn a_bit_flipped_tfrecord() {
    let lab = Lab::shared("a_bit_flipped_tfrecord");
    let (folder, file) = damaged(&lab, "flipped", |bytes| {
        let at = record(bytes, 7) + 12 + 30;
        bytes[at] ^= 0x10;
    });
    let offset = record(&std::fs::read(&file).unwrap(), 7).to_string();
    let name = file.file_name().unwrap().to_str().unwrap();
    for mode in ["feed", "direct"] {
        let done = train(&lab, &folder, &format!("--input-mode {mode}"));
        refused(done, &[name, "corrupt", &format!("byte {offset}")]);
    }
}

#[test]
fn a_truncated_parquet_file() {
    let lab = Lab::shared("a_truncated_parquet_file");
    let data = drawn(&lab);
    let bytes = std::fs::read(&data).unwrap();
    let cut = lab.write("cut.parquet", &bytes[..bytes.len() / 2]);
    refused(train(&lab, &cut, ""), &["cut.parquet", "truncated"]);
}

#[test] // a page in the middle, which only a node reads
fn a_parquet_file_with_a_broken_page() {
    let lab = Lab::shared("a_parquet_file_with_a_broken_page");
    let data = drawn(&lab);
    let mut bytes = std::fs::read(&data).unwrap();
    for byte in &mut bytes[40..400] {
        *byte = !*byte;
    }
    let broken = lab.write("broken.parquet", &bytes);
    refused(train(&lab, &broken, ""), &["broken.parquet"]);
}

#[test]
fn rows_with_a_null_and_rows_of_unequal_length() {
    let lab = Lab::shared("rows_with_a_null_and_rows_of_unequal_length");
    let data = drawn(&lab);
    let query = |sql: &str| {
        let submit = lab.submit("mnist").args(&format!("--data {} --epochs 1", data.display()));
        submit.args_of(["--sql", sql]).within(secs(30)).run()
    };
    let sql = "SELECT image, CASE WHEN label = 3 THEN NULL ELSE label END AS label FROM data";
    refused(query(sql), &["`label`", "null"]);
}

#[test] // of `tfos data` too
fn data_commands_name_what_is_wrong() {
    let lab = Lab::shared("data_commands_name_what_is_wrong");
    let run = |words: String| Submit::tfos(&words).within(secs(20)).run();
    refused(run(format!("data describe {}", lab.path("none.parquet").display())), &["none.parquet"]);
    refused(run(format!("data describe {}", lab.write("x.unknown", "x").display())), &["x.unknown", "--format"]);
    let (from, to) = (drawn(&lab), lab.path("out.unknown"));
    refused(run(format!("data convert {} {}", from.display(), to.display())), &["out.unknown", "--to-format"]);
}
