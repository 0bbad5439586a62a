//! What a job begins with: checkpoints of other clusters, of renamed and of changed models, and other models'
//! parameters. At rate 0 a job that trains on changes nothing, so what it loaded shows at its end, to the bit.

use std::path::Path;

use tfos_tests::data::line;
use tfos_tests::submit::checkpoints;
use tfos_tests::{Done, Lab, Submit};

use crate::verified_rows;

const ROWS: u64 = 400;

fn network(lab: &Lab, model: &Path, epochs: u64, arguments: &str) -> Submit {
    let data = line(lab.folder(), ROWS, 4);
    let args = format!("mode=network epochs={epochs} data={} {arguments}", data.display());
    lab.probe(&args).model_dir(model).flags("--quiet")
}

const STILL: &str = "rate=0 still=1";

/// Numbers of ps and of workers. Without ps there is one trainer.
const SHAPES: [(u32, u32); 7] = [(0, 1), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)];

fn fit(done: &Done) -> f64 {
    done.number("metrics.fit")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn shape((ps, workers): (u32, u32)) -> String {
    format!("--cluster-size {} --num-ps {ps}", ps + workers)
}

#[test] // LOD-2: the same evaluation to the bit, and training goes on with the right rows
fn every_shape_goes_on_from_the_checkpoint_of_every_other() {
    let lab = Lab::shared("every_shape_goes_on_from_the_checkpoint_of_every_other");
    for written in SHAPES {
        let model = lab.path(&format!("{}-{}", written.0, written.1));
        // In step: a stale gradient more or less must not decide whether it learns.
        let first = network(&lab, &model, 1, "").flags(&shape(written)).flags("--sync-replicas").run().ok();
        for read in SHAPES {
            let copied = lab.path(&format!("{}-{}-to-{}-{}", written.0, written.1, read.0, read.1));
            copy(&model, &copied);
            let job = network(&lab, &copied, 2, STILL).flags(&shape(read)).flags("--sync-replicas");
            let done = job.run().ok().says(&["resuming from step"]);
            assert_eq!(fit(&done), fit(&first), "{written:?} to {read:?}");
            assert_eq!(done.number("rows") as u64, ROWS);
            assert_eq!(verified_rows(&copied), 2 * ROWS, "{written:?} to {read:?}");
            let logs = done.logs();
            let parts = logs.lines().filter(|l| l.contains("read elements")).count();
            assert_eq!(parts, read.0 as usize, "each ps was to read its part by itself");
        }
    }
}

#[test]
fn what_does_not_match_is_listed_mapped_or_initialised() {
    let lab = Lab::shared("what_does_not_match_is_listed_mapped_or_initialised");
    let model = lab.model();
    let first = network(&lab, &model, 1, "").flags(&shape((2, 1))).run().ok();
    let renamed = |epochs, arguments: &str, flags: &str| {
        let arguments = format!("trunk=backbone {STILL} {arguments}");
        network(&lab, &model, epochs, &arguments).flags(&shape((1, 1))).flags(flags).run()
    };
    let refused = renamed(2, "hidden=40 extra=3", "").fails(1, &["chief:0"]);
    let error = refused.error();
    for words in [
        "checkpoints/000000000040/manifest.json",
        "it lacks backbone.dense.bias [40], backbone.dense.weight [40, 1]",
        "extra [3]",
        "only it has trunk.dense.bias [40]",
        "trunk.norm.running_mean [40]",
        "--restore-map OLD=NEW",
        "--restore-missing init",
    ] {
        assert!(error.contains(words), "`{words}` in {error}");
    }
    // A target that was reached: only the evaluation loads it.
    let map = "--restore-map trunk.*=backbone.*";
    let done = renamed(1, "", map).ok().says(&["chief:0: loaded 8 of the model's 8 variables", "6 under new names"]);
    assert_eq!((done.json["already_done"].as_bool(), fit(&done)), (Some(true), fit(&first)));
    let done = renamed(2, "extra=3", &format!("{map} --restore-missing init")).ok();
    let done = done.says(&["resuming from step 40", "chief:0: not loaded: the checkpoint lacks extra [3]"]);
    assert_eq!((fit(&done), done.number("metrics.extra")), (fit(&first), 0.0));
    assert_eq!(verified_rows(&model), 2 * ROWS);
    // The new checkpoint has the new names: the same command goes on, and says that there is nothing to rename.
    let done = renamed(3, "extra=3", map).ok().says(&["--restore-map trunk.*=backbone.*: the checkpoint has no such"]);
    assert_eq!(fit(&done), fit(&first));
    // Another shape.
    renamed(4, "extra=3 hidden=41", "").fails(1, &["it has backbone.dense.bias as [40] and not [41]"]).error();
}

#[test]
fn another_models_parameters_are_where_a_job_starts() {
    let lab = Lab::shared("another_models_parameters_are_where_a_job_starts");
    let source = lab.path("source");
    let first = network(&lab, &source, 1, "").flags("--cluster-size 1").run().ok();
    let step = checkpoints(&source).last().copied().unwrap();
    let folder = source.join(format!("checkpoints/{step:012}"));
    let file = folder.join("part-00000-of-00001.g1.safetensors");
    let places = [
        ("directory", source.clone(), (2, 1), "optimizer=momentum"),
        ("manifest", folder.join("manifest.json"), (0, 1), ""),
        ("file", file, (2, 2), "trunk=backbone"),
    ];
    for (name, place, cluster, arguments) in places {
        let model = lab.path(name);
        let map = if arguments.contains("trunk") { "--restore-map trunk.*=backbone.*" } else { "" };
        let submit = |epochs: u64| {
            let job = network(&lab, &model, epochs, &format!("{STILL} {arguments}")).flags(&shape(cluster)).flags(map);
            job.flag("--init-from", &place)
        };
        let done = submit(1).run().ok().says(&["starting at step 0 with the parameters of", "chief:0: loaded 8"]);
        assert_eq!(fit(&done), fit(&first), "{name}");
        assert_eq!(verified_rows(&model), ROWS, "its own rows, all of them");
        let steps = ROWS as f64 / 10.0;
        // Two trainers may end with a short batch each.
        assert!(done.number("global_step") <= steps + 4.0, "counted from 0");
        let again =
            submit(2).run().ok().says(&["is ignored: the model directory has a checkpoint", "resuming from step"]);
        assert_eq!(fit(&again), fit(&first), "{name}, resumed");
        assert_eq!(verified_rows(&model), 2 * ROWS);
    }
}

#[test]
fn a_start_from_nothing_that_can_be_used_is_refused_before_it() {
    let lab = Lab::shared("a_start_from_nothing_that_can_be_used_is_refused_before_it");
    let from = |place: &Path| network(&lab, &lab.model(), 1, "").flag("--init-from", place).run();
    from(&lab.path("nothing")).fails(2, &["--init-from", "nothing", "has no checkpoint"]).error();
    from(&lab.path("nothing.safetensors")).fails(2, &["nothing.safetensors", "cannot be read"]).error();
    from(&lab.path("manifest.json")).fails(2, &["MODEL_DIR/checkpoints/STEP/manifest.json"]).error();
    let text = lab.write("text.safetensors", "this is no such file");
    from(&text).fails(1, &["chief:0", "text.safetensors", "no safetensors file"]).error();
    let source = lab.path("source");
    network(&lab, &source, 1, "").run().ok();
    let manifest = source.join("checkpoints/000000000040/manifest.json");
    let part = source.join("checkpoints/000000000040/part-00000-of-00001.g1.safetensors");
    let good = std::fs::read(&part).unwrap();
    std::fs::write(&part, &good[..good.len() - 1]).unwrap();
    from(&manifest).fails(1, &["checkpoint 40 is damaged", "part-00000-of-00001"]).error();
    from(&source).fails(2, &["is passed over", "has no checkpoint that can be used"]).error();
    let network_of = |flags: &str| network(&lab, &lab.model(), 1, "").flags(flags).run();
    network_of("--restore some --restore-missing maybe --restore-map x")
        .fails(2, &["--restore: `some`", "--restore-missing: `maybe`", "--restore-map: `x`"]);
}

#[test] // nothing is set aside: the newer program's work is still there
fn a_checkpoint_of_a_newer_version_is_not_passed_over() {
    let lab = Lab::shared("a_checkpoint_of_a_newer_version_is_not_passed_over");
    let submit = || network(&lab, &lab.model(), 2, "").flags("--cluster-size 1 --save-checkpoints-steps 20");
    submit().run().ok();
    let newest = checkpoints(&lab.model()).last().copied().unwrap();
    let manifest = lab.model().join(format!("checkpoints/{newest:012}/manifest.json"));
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replacen("\"format\": 1", "\"format\": 2", 1)).unwrap();
    let named = format!("checkpoints/{newest:012}/manifest.json");
    submit().run().fails(1, &[&named, "format 2", "newer tfos"]).error();
    assert!(manifest.exists());
}
