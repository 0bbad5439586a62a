//! Models that come from other programs and go to them: weights imported, exported, and used without a model directory.

use std::path::{Path, PathBuf};

use tfos_tests::data::{convert, line};
use tfos_tests::submit::checkpoints;
use tfos_tests::weights::{self, f32s};
use tfos_tests::{Done, Lab, Submit};

use crate::{assert_learned, verified_rows};

/// y = 9 x - 4 as a state_dict of the model of `probe_app mode=linear`.
fn line_weights(lab: &Lab, name: &str) -> String {
    let path = lab.path(name);
    let half = |v: u16| v.to_le_bytes().to_vec();
    weights::write(
        &path,
        // 9 as f16, -4 as bf16.
        &[
            ("line.weight", "F16", &[1, 1], half(0x4880)),
            ("line.bias", "BF16", &[1], half(0xC080)),
            ("norm.num_batches_tracked", "I64", &[], vec![0; 8]),
        ],
    );
    path.display().to_string()
}

fn import(weights: &str, lab: &Lab, rest: &str) -> Done {
    let model = lab.model().display().to_string();
    Submit::tfos(&format!("import {weights} {model} {rest}")).run()
}

fn train(lab: &Lab, rest: &str) -> Submit {
    let data = line(lab.folder(), 2000, 4);
    lab.probe(&format!("mode=linear data={}", data.display())).flags(rest)
}

#[test] // any shape of cluster; whatever the types in the file
fn training_starts_from_imported_weights() {
    let lab = Lab::shared("training_starts_from_imported_weights");
    let weights = line_weights(&lab, "line.safetensors");
    let done = import(&weights, &lab, "--application probe --output json").ok();
    assert_eq!(done.number("parameters"), 2.0);
    assert_eq!((done.number("converted.f16"), done.number("converted.bf16")), (1.0, 1.0));
    assert_eq!(done.json["left_out"], serde_json::json!(["norm.num_batches_tracked (i64)"]));
    assert_eq!(checkpoints(&lab.model()), [0]);
    let copy = lab.path("copy");
    Submit::tfos(&format!("checkpoints copy {} 0 {}", lab.model().display(), copy.display())).run().ok();
    // One small step from where the weights are: a model of its own would be far from there.
    let done = train(&lab, "--max-steps 1 --cluster-size 3 --num-ps 1").run().ok();
    done.says(&["starting at step 0 from weights that have seen no rows here"]);
    let values = Submit::tfos(&format!("checkpoints diff {} 0 1 --output json", lab.model().display())).run().ok();
    let moved = |i: usize| values.json["variables"][i]["max_abs"].as_f64().unwrap();
    assert!(moved(0) < 3.0 && moved(1) < 3.0 && moved(0) > 0.0, "{}", values.json);
    // The rows are those of this data from now on.
    train(&lab, "--cluster-size 4 --num-ps 2").args("epochs=2").run().ok().says(&["resuming from step 1"]);
    assert_eq!(verified_rows(&lab.model()), 4000);
    let done = train(&lab, "").model_dir(&copy).args("epochs=2").run().ok();
    assert_learned(&done);
}

#[test] // one message each, and nothing is left behind that would be in the way of the next try
fn weights_that_do_not_fit_are_refused() {
    let lab = Lab::shared("weights_that_do_not_fit_are_refused");
    let refused = |weights: &str, words: &[&str]| {
        import(weights, &lab, "--application probe").fails(1, words).error();
        assert!(checkpoints(&lab.model()).is_empty());
    };
    refused(&lab.path("none.safetensors").display().to_string(), &["none.safetensors", "does not exist"]);
    let cut = std::fs::read(line_weights(&lab, "whole.safetensors")).unwrap();
    let cut = lab.write("cut.safetensors", &cut[..cut.len() - 3]).display().to_string();
    refused(&cut, &["cut.safetensors", "not complete"]);
    let zip = lab.write("model.pt", b"PK\x03\x04 and so on, as torch.save writes").display().to_string();
    refused(&zip, &["model.pt", "safetensors.torch.save_file"]);
    let other = lab.path("other.safetensors");
    weights::write(&other, &[("line.weight", "F32", &[1, 2], f32s(&[1.0, 2.0])), ("head", "F32", &[], f32s(&[0.0]))]);
    import(&other.display().to_string(), &lab, "--application probe").ok();
    // The model is known when a job builds it.
    let wrong = train(&lab, "")
        .run()
        .fails(1, &["does not fit the model", "lacks line.bias [1]", "line.weight as [1, 2]", "head []"]);
    wrong.error();
    import(&other.display().to_string(), &lab, "--application probe")
        .fails(1, &["in use", "new model directory"])
        .error();
    let foreign = lab.submit("mnist").args("--rows 100 --epochs 1").run();
    foreign.fails(1, &["belongs to the application `probe`"]).error();
    let words = "--application mnist -- --network round";
    import(&other.display().to_string(), &lab, words).fails(2, &["round"]).error();
}

fn export(lab: &Lab, rest: &str) -> Done {
    Submit::tfos(&format!("export {} {rest}", lab.model().display())).run()
}

fn predict(export: &Path, data: &Path, output: &Path, rest: &[(&str, &str)]) -> Done {
    let submit = Submit::tfos(&format!("predict {}", export.display())).flag("--data", data).flag("--output", output);
    rest.iter().fold(submit, |submit, (flag, value)| submit.flag(flag, value)).run()
}

/// Columns of a CSV file, by their names.
fn columns(csv: &Path, names: &[&str]) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(csv).unwrap();
    let mut lines = text.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let header = lines.next().unwrap();
    let at: Vec<usize> = names.iter().map(|name| header.iter().position(|c| c == name).expect(name)).collect();
    lines.map(|line| at.iter().map(|i| line[*i].to_owned()).collect()).collect()
}

#[test] // the model directory is gone; any number of executors; rows in their order
fn an_export_predicts_what_its_job_predicted() {
    let lab = Lab::shared("an_export_predicts_what_its_job_predicted");
    let (there, digits) = (lab.path("there.parquet"), lab.path("digits.parquet"));
    let train =
        lab.submit("mnist").flags("--cluster-size 3 --num-ps 1 --quiet").args("--rows 1000 --network cnn --epochs 2");
    train.args(&format!("--predictions {}", there.display())).run().ok();
    std::fs::rename(lab.model().join("job/digits/eval-seed0-200.parquet"), &digits).unwrap();
    let done = export(&lab, "--output json").ok();
    assert_eq!(done.json["files"], serde_json::json!(["model.safetensors"]));
    let exported = lab.path("export");
    std::fs::rename(lab.model().join("export"), &exported).unwrap();
    std::fs::remove_dir_all(lab.model()).unwrap();
    let weights = weights::read(&exported.join("model.safetensors"));
    assert_eq!(weights["conv1.norm.running_mean"].0, [8]);
    assert!(weights["conv1.norm.running_mean"].1.iter().any(|v| *v != 0.0));

    let csv = lab.path("there.csv");
    convert(&there, &csv, "");
    let wanted = columns(&csv, &["label", "prediction"]);
    assert_eq!(wanted.len(), 200);
    for (shape, sql) in [("1", "SELECT * FROM data"), ("3", "SELECT label, image FROM data")] {
        let output = lab.path(&format!("here-{shape}.csv"));
        let done =
            predict(&exported, &digits, &output, &[("--cluster-size", shape), ("--sql", sql), ("--summary", "json")])
                .ok();
        assert_eq!(done.number("rows"), 200.0);
        assert_eq!(columns(&output, &["label", "prediction"]), wanted, "{shape} executors");
    }
    // What is not there is told before, or by one message of a node.
    let refused = |data: &Path, rest: &[(&str, &str)], code: i32, words: &[&str]| {
        predict(&exported, data, &lab.path("none.csv"), rest).fails(code, words).error();
        assert!(!lab.path("none.csv").exists());
    };
    refused(&digits, &[("--sql", "SELECT label FROM data")], 2, &["no column `image`", "AS image"]);
    refused(&digits, &[("--sql", "SELECT label AS image FROM data")], 1, &["chief:0", "shape"]);
    refused(&digits, &[("--sql", "SELECT image FROM data WHERE label > 99")], 2, &["no rows to predict"]);
    refused(&digits, &[("--cluster-size", "0")], 2, &["--cluster-size"]);
    refused(&lab.path("no.parquet"), &[], 1, &["no.parquet", "does not exist"]);
    refused(&lab.path("no.parquet"), &[("--format", "yaml")], 1, &["yaml"]);
    std::fs::write(exported.join("model.safetensors"), "something else").unwrap();
    refused(&digits, &[], 1, &["model.safetensors", "export again"]);
}

#[test] // a program of somebody else has its own models; what nobody knows is not guessed
fn an_export_belongs_to_its_application() {
    let lab = Lab::shared("an_export_belongs_to_its_application");
    train(&lab, "--save-checkpoints-steps 100 --quiet").run().ok();
    export(&lab, "--step 7").fails(1, &["step 7"]).error();
    let steps = checkpoints(&lab.model());
    let [first, .., last] = steps[..] else { panic!("two checkpoints were to be there: {steps:?}") };
    assert_eq!(export(&lab, &format!("--step {first} --output json")).ok().number("step"), first as f64);
    assert_eq!(export(&lab, "--output json").ok().number("step"), last as f64);
    let data = line(lab.folder(), 2000, 4);
    let words = ["application `probe`", "torchscript", "PROGRAM predict"];
    predict(&lab.model().join("export"), &data, &lab.path("out.csv"), &[("--format", "parquet")])
        .fails(2, &words)
        .error();
    Submit::tfos(&format!("export {}", lab.path("none").display())).run().fails(2, &["no checkpoint"]).error();
    // Imported weights, of which no job has said how their model is built.
    let (model, weights) = (lab.path("imported"), line_weights(&lab, "line.safetensors"));
    let model = model.display();
    Submit::tfos(&format!("import {weights} {model} --application torchscript")).run().ok();
    Submit::tfos(&format!("export {model}")).run().ok();
    let exported = lab.path("imported/export");
    predict(&exported, &data, &lab.path("out.csv"), &[("--format", "parquet")])
        .fails(1, &["imported", "train first"])
        .error();
}

/// A job of `torchscript` on y = 2 x + 1.
fn scripted(lab: &Lab, module: &Path, columns: &str, rest: &str) -> Submit {
    let data = line(lab.folder(), 2000, 4);
    let words = format!("--module {} --data {} --loss mse --learning-rate 0.3", module.display(), data.display());
    lab.submit("torchscript").args(&words).args(columns).args(rest)
}

const COLUMNS: &str = "--features x --label y";

/// `torch.jit.script(torch.nn.Linear(1, 1)).save("linear.pt")`
fn linear(lab: &Lab) -> PathBuf {
    lab.write("linear.pt", include_bytes!("linear.pt"))
}

#[test] // its file comes back with the trained values, and is all that predictions need
fn a_module_of_pytorch_is_trained_and_exported() {
    let lab = Lab::shared("a_module_of_pytorch_is_trained_and_exported");
    let (data, module) = (line(lab.folder(), 2000, 4), linear(&lab));
    let evaluated = |epochs: u32| format!("--epochs {epochs} --eval-data {}", data.display());
    let done = scripted(&lab, &module, COLUMNS, &evaluated(1)).flags("--cluster-size 4 --num-ps 2").run().ok();
    assert!(done.number("metrics.loss") < 0.1);
    // It goes on where it was, on another cluster.
    let done = scripted(&lab, &module, COLUMNS, &evaluated(4)).run().ok().says(&["resuming from step"]);
    assert!(done.number("metrics.loss") < 1e-3);
    assert_eq!(verified_rows(&lab.model()), 8000);
    let copy = lab.path("copy");
    let last = checkpoints(&lab.model()).last().copied().unwrap();
    Submit::tfos(&format!("checkpoints {} copy {last} {}", lab.model().display(), copy.display())).run().ok();
    export(&lab, "").ok();
    let exported = lab.path("export");
    std::fs::rename(lab.model().join("export"), &exported).unwrap();
    std::fs::remove_dir_all(lab.model()).unwrap();
    let values = weights::read(&exported.join("model.safetensors"));
    assert_eq!(values.keys().collect::<Vec<_>>(), ["bias", "weight"]);
    let output = lab.path("out.csv");
    predict(&exported, &data, &output, &[("--format", "parquet"), ("--cluster-size", "2")]).ok();
    let near = |row: &Vec<String>| (row[0].parse::<f64>().unwrap() - row[1].parse::<f64>().unwrap()).abs() < 0.1;
    let rows = columns(&output, &["y", "prediction"]);
    assert!(rows.len() == 2000 && rows.iter().all(near), "{:?}", rows.first());
    // The module that comes out goes in again, and begins where it was.
    let trained = exported.join("module.pt");
    let done = scripted(&lab, &trained, COLUMNS, &evaluated(1)).flags("--max-steps 1").run().ok();
    assert!(done.number("metrics.loss") < 1e-3);
    // A model directory keeps to the module that it was trained with; so does a copy of it.
    for model in [lab.model(), copy] {
        let other = if model == lab.model() { &module } else { &trained };
        let refused = scripted(&lab, other, COLUMNS, "").model_dir(&model).run();
        refused.fails(2, &["assets/module.pt", "another file", "--model-dir"]).error();
    }
}

#[test] // one message each
fn what_torchscript_cannot_use_is_refused() {
    let lab = Lab::shared("what_torchscript_cannot_use_is_refused");
    let module = linear(&lab);
    let refused = |module: &Path, columns: &str, rest: &str, code: i32, words: &[&str]| {
        scripted(&lab, module, columns, rest).run().fails(code, words).error();
    };
    let text = lab.write("text.pt", "no module");
    refused(&text, COLUMNS, "", 2, &["text.pt", "is no TorchScript module", "torch.jit.script"]);
    refused(&lab.path("none.pt"), COLUMNS, "", 1, &["none.pt", "does not exist"]);
    refused(&module, COLUMNS, "--batch-size 0", 2, &["--batch-size"]);
    refused(&module, "--features x --label z", "", 2, &["no column `z`"]);
    refused(&module, COLUMNS, "--eval-data none.parquet", 1, &["none.parquet", "does not exist"]);
    refused(&module, COLUMNS, "--shape 2", 1, &["chief:0", "1 values", "--shape"]);
    refused(&module, "--features x,y --label y", "", 1, &["chief:0", "shapes cannot be multiplied"]);
}
