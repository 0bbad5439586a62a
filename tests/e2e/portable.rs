//! Models that come from other programs and go to them: weights imported, exported, and used without a model directory.

use tfos_tests::data::line;
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
    let lab = Lab::new("training_starts_from_imported_weights");
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
    let lab = Lab::new("weights_that_do_not_fit_are_refused");
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
    let wrong =
        train(&lab, "").run().fails(1, &["does not fit the model", "line.weight [1, 2]", "head []", "line.bias [1]"]);
    wrong.error();
    import(&other.display().to_string(), &lab, "--application probe")
        .fails(1, &["in use", "new model directory"])
        .error();
    let foreign = lab.submit("mnist").args("--rows 100 --epochs 1").run();
    foreign.fails(1, &["belongs to the application `probe`"]).error();
    let words = "--application mnist -- --network round";
    import(&other.display().to_string(), &lab, words).fails(2, &["round"]).error();
}
