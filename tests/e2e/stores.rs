//! Rows, checkpoints and ledger on real servers, S3 and HDFS: the same jobs as on a file system, and what is said of
//! a bucket, a key or a server that is wrong.

use std::path::Path;

use tfos_tests::data::{digits, line, numbers};
use tfos_tests::procs::{Signal, assert_none_left, executors};
use tfos_tests::s3::SECRET;
use tfos_tests::server::Store;
use tfos_tests::submit::checkpoints;
use tfos_tests::wait::{self, secs};
use tfos_tests::{Done, Hdfs, Lab, S3, Submit, Web, bin};

use crate::assert_learned;

const ROWS: u64 = 4000;
const EPOCHS: u64 = 2;

fn s3(lab: &Lab) -> Option<Box<dyn Store>> {
    S3::start(lab).map(|s| Box::new(s) as Box<dyn Store>)
}

fn hdfs(lab: &Lab) -> Option<Box<dyn Store>> {
    Hdfs::start(lab).map(|s| Box::new(s) as Box<dyn Store>)
}

fn ask(store: &dyn Store, words: &str) -> Done {
    store.known_to(Submit::tfos(words)).run().ok()
}

/// `tfos data convert` into the store.
fn put(store: &dyn Store, from: &Path, to: &str, flags: &str) {
    let done = ask(store, &format!("data convert {} {} {flags} --output json", from.display(), store.url(to)));
    let files = done.json["files"].as_array().unwrap();
    assert!(files.iter().all(|f| f["path"].as_str().unwrap().starts_with(&store.url(to))), "{}", done.json);
}

fn on(store: &dyn Store, lab: &Lab, application: &str, model: &str) -> Submit {
    let submit = store.known_to(Submit::new(application)).flags("--quiet").flag("--log-dir", lab.path("logs"));
    submit.flag("--model-dir", store.url(model))
}

/// `tfos verify-ledger` on the store: the rows applied in all.
fn verified(store: &dyn Store, model: &str) -> u64 {
    let done = ask(store, &format!("verify-ledger --output json {}", store.url(model)));
    assert_eq!(done.json["ok"], true, "{}", done.json);
    done.number("rows_total") as u64
}

/// `tfos checkpoints list` on the store: the steps.
fn steps(store: &dyn Store, model: &str) -> Vec<u64> {
    let done = ask(store, &format!("checkpoints list --output json {}", store.url(model)));
    let listed = done.json["checkpoints"].as_array().unwrap();
    listed.iter().map(|c| c["step"].as_u64().unwrap()).collect()
}

fn keeps_the_secret(done: &Done, lab: &Lab) {
    for text in [&done.stdout, &done.stderr, &tfos_tests::logs::text(lab.folder())] {
        assert!(!text.contains(SECRET), "the secret was shown");
    }
}

/// Digits from Parquet in folders `half=…`, and from TFRecord files that the nodes read themselves.
fn digits_are_trained(lab: &Lab, store: &dyn Store) {
    let data = digits(env!("CARGO_TARGET_TMPDIR"));
    put(store, &data.train_parquet, "parquet/train/half=1", "--num-files 2 --to-format parquet");
    put(store, &data.train_parquet, "parquet/train/half=2", "--num-files 2 --to-format parquet");
    put(store, &data.train_tfrecord, "tfrecord/train", "--num-files 4 --to-format tfrecord");
    for (name, test, extra) in [
        ("parquet", &data.test_parquet, vec!["--sql", "SELECT image, label FROM data WHERE half = 2"]),
        ("tfrecord", &data.test_tfrecord, vec!["--input-mode", "direct"]),
    ] {
        put(store, test, &format!("{name}/test.{name}"), "");
        let urls = [store.url(&format!("{name}/train")), store.url(&format!("{name}/test.{name}"))];
        let submit = on(store, lab, "mnist", &format!("{name}/model")).flags("--cluster-size 3 --num-ps 1");
        let submit = submit.args_of(["--data", &urls[0], "--eval-data", &urls[1], "--epochs", "3"]).args_of(extra);
        let done = submit.run().ok();
        assert!(done.number("metrics.accuracy") > 0.85, "{name}: {}", done.json);
        assert_eq!(verified(store, &format!("{name}/model")), 3 * 8000);
        keeps_the_secret(&done, lab);
    }
    // A model leaves and comes in, all of it on the store.
    let [model, rows, predicted] = ["parquet/model", "parquet/test.parquet", "predicted.parquet"].map(|p| store.url(p));
    ask(store, &format!("export {model}"));
    let words = format!("predict {model}/export --data {rows} --output {predicted} --quiet --summary json");
    assert_eq!(ask(store, &words).number("rows"), 2000.0);
    assert_eq!(ask(store, &format!("data describe --output json {predicted}")).number("rows"), 2000.0);
    ask(store, &format!("import {model}/export/model.safetensors {} --application mnist", store.url("imported")));
    assert_eq!(steps(store, "imported"), [0]);
    let described = ask(store, &format!("data describe --output json {}", store.url("parquet/train")));
    assert_eq!(described.number("rows"), 16_000.0);
    let columns = described.json["columns"].as_array().unwrap();
    assert_eq!(columns.last().unwrap()["name"], "half");
    // Back to a local folder, by a glob.
    let back = lab.path(&format!("back-{}", store.name()));
    let glob = store.url("tfrecord/train/part-0000[01]*");
    ask(store, &format!("data convert {glob} {}/ --from-format tfrecord --to-format avro", back.display()));
    let described = ask(store, &format!("data describe --output json {}", back.display()));
    assert_eq!((described.number("rows"), described.text("format")), (4000.0, "avro"));
}

#[test]
fn digits_on_s3_are_trained() {
    let lab = Lab::new("digits_on_s3_are_trained");
    let Some(store) = s3(&lab) else { return };
    digits_are_trained(&lab, &*store);
}

#[test]
fn digits_on_hdfs_are_trained() {
    let lab = Lab::new("digits_on_hdfs_are_trained");
    let Some(store) = hdfs(&lab) else { return };
    digits_are_trained(&lab, &*store);
}

/// `probe_app mode=linear` with rows and checkpoints on the store.
fn linear(store: &dyn Store, lab: &Lab, arguments: &str) -> Submit {
    let job = on(store, lab, &bin::probe().display().to_string(), "model");
    let job = job.flags("--cluster-size 3 --num-ps 1 --save-checkpoints-steps 20");
    job.args(&format!("mode=linear epochs={EPOCHS} data={} {arguments}", store.url("line")))
}

/// kill -9 of the driver in mid-epoch; then every question to what is on the store.
fn a_killed_job_resumes(lab: &Lab, store: &dyn Store) {
    put(store, &line(lab.folder(), ROWS, 4), "line", "--num-files 4 --to-format parquet");
    let mut gate = lab.gate("gate");
    let mut running = linear(store, lab, "").args_of(gate.arguments(150)).start();
    gate.reached(&mut running, &[0, 1]);
    let step = wait::until("a checkpoint on the store", secs(30), || steps(store, "model").last().copied());
    assert!(step < EPOCHS * ROWS / 10, "the job was to be in its middle, not at step {step}");
    assert!(!executors(lab.folder()).is_empty());
    running.signal(Signal::SIGKILL);
    assert_eq!(running.wait().signal(), Some(9), "the driver was to die of the signal");
    assert_none_left(lab.folder(), secs(5));
    gate.open();
    let done = linear(store, lab, "").run().ok().says(&["resuming from step"]);
    let rows = done.number("rows") as u64;
    assert!(rows > 0 && rows < EPOCHS * ROWS, "the second run was to do a part of the rows, it did {rows}");
    assert_eq!(done.number("generation"), 2.0);
    assert_learned(&done);
    keeps_the_secret(&done, lab);
    assert_eq!(verified(store, "model"), EPOCHS * ROWS);

    let (url, all) = (store.url("model"), steps(store, "model"));
    let last = *all.last().unwrap();
    assert_eq!(done.number("global_step") as u64, last);
    assert_eq!(ask(store, &format!("checkpoints verify {url} --output json")).json["ok"], true);
    let warm =
        store.known_to(Submit::new(&bin::probe().display().to_string())).flags("--quiet --cluster-size 2 --num-ps 1");
    let warm = warm.model_dir(&lab.path("warm")).flag("--init-from", &url).args("mode=linear");
    let warm = warm.args(&format!("data={}", store.url("line"))).run().ok();
    assert_learned(&warm.says(&["starting at step 0", "loaded 2 of the model's 2 variables"]));
    let copy = lab.path("copy");
    ask(store, &format!("checkpoints copy {url} {last} {}", copy.display()));
    assert_eq!(checkpoints(&copy), [last], "from the store to a local folder");
    ask(store, &format!("checkpoints delete {url} {last}"));
    assert_eq!(steps(store, "model"), all[..all.len() - 1]);
    let dry = linear(store, lab, "").flags("--dry-run").run().ok();
    keeps_the_secret(&dry, lab);
}

#[test]
fn a_killed_job_on_s3_resumes() {
    let lab = Lab::new("a_killed_job_on_s3_resumes");
    let Some(store) = s3(&lab) else { return };
    generations_are_claimed_once(&lab, &*store);
    a_killed_job_resumes(&lab, &*store);
    a_join_is_staged(&lab, &*store);
}

#[test]
fn a_killed_job_on_hdfs_resumes() {
    let lab = Lab::new("a_killed_job_on_hdfs_resumes");
    let Some(store) = hdfs(&lab) else { return };
    generations_are_claimed_once(&lab, &*store);
    a_killed_job_resumes(&lab, &*store);
    a_join_is_staged(&lab, &*store);
}

/// A join and an aggregate by three executors: they read from the store, write what is staged there, and are fed from it.
fn a_join_is_staged(lab: &Lab, store: &dyn Store) {
    put(store, &numbers(lab.folder(), ROWS, 8), "numbers", "--num-files 8 --to-format parquet");
    let query = "SELECT sum(a.x) AS x FROM data a JOIN data b ON a.x = b.x GROUP BY a.x % 500";
    let words = ["mode=sum".to_owned(), format!("data={}", store.url("numbers")), format!("sql={query}")];
    let job = || {
        let job = on(store, lab, &bin::probe().display().to_string(), "staged").args_of(&words);
        job.flags("--engine ballista --cluster-size 4 --num-ps 1")
    };
    let done = job().run().ok().says(&["by 3 executors (Ballista)", "staged 500 rows"]);
    // Means of what three report.
    assert_eq!(done.number("metrics.sum") * 3.0, (ROWS * (ROWS - 1) / 2) as f64);
    assert_eq!(done.number("metrics.rows") * 3.0, 500.0);
    keeps_the_secret(&done, lab);
    job().run().ok().says(&["was staged before"]);
}

/// Of drivers that begin at the same moment each claims a generation of its own: creating is refused where a file is. One
/// that was overtaken while it began is told so, and the newest never is.
fn generations_are_claimed_once(lab: &Lab, store: &dyn Store) {
    let probe = bin::probe().display().to_string();
    let idle = |i: u32| {
        let submit = store.known_to(Submit::new(&probe)).flags("--quiet").flag("--log-dir", lab.path(&format!("{i}")));
        submit.flag("--model-dir", store.url("claimed")).args("mode=idle").start()
    };
    let running: Vec<_> = (0..4).map(idle).collect();
    let generation = |done: Done| {
        if done.code() == Some(0) {
            return (done.number("generation") as u64, true);
        }
        let error = done.fails(1, &["has been superseded by generation"]).error();
        let number = error.strip_prefix("error: generation ").and_then(|rest| rest.split(' ').next());
        (number.expect("the generation that was overtaken").parse().expect("its number"), false)
    };
    let mut claimed: Vec<(u64, bool)> = running.into_iter().map(|r| generation(r.wait())).collect();
    claimed.sort();
    assert_eq!(claimed.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(claimed.last(), Some(&(4, true)), "the newest was turned away: {claimed:?}");
}

/// The three ways to a store: the model directory, the data, and a question.
fn ways(store: &dyn Store, lab: &Lab, url: &str) -> [Submit; 3] {
    let probe = || store.known_to(Submit::new(&bin::probe().display().to_string())).flags("--quiet");
    let local = lab.path("line");
    [
        probe().flags(&format!("--model-dir {url}")).args(&format!("mode=linear data={}", local.display())),
        probe().flag("--model-dir", lab.path("model")).args(&format!("mode=linear data={url}")),
        store.known_to(Submit::tfos(&format!("verify-ledger {url}"))),
    ]
}

/// Known within seconds, by one message, before an executor is started.
fn refused(submit: Submit, lab: &Lab, words: &[&str]) {
    let done = submit.run().fails(1, words);
    let error = done.error();
    assert!(done.wall < secs(15), "it took {:?}: {error}", done.wall);
    keeps_the_secret(&done, lab);
    assert!(executors(lab.folder()).is_empty());
}

#[test]
fn a_wrong_bucket_key_or_server_is_told_at_once() {
    let lab = Lab::new("a_wrong_bucket_key_or_server_is_told_at_once");
    let Some(store) = s3(&lab) else { return };
    line(lab.folder(), ROWS, 4);
    let good = store.url("x");
    for submit in ways(&*store, &lab, "s3://none/x") {
        refused(submit, &lab, &["the bucket of `s3://none/x`", "does not exist", "AWS_ENDPOINT_URL"]);
    }
    for submit in ways(&*store, &lab, &good) {
        let submit = submit.env("AWS_ENDPOINT_URL", "http://127.0.0.1:1");
        refused(submit, &lab, &["`s3://tfos/x`", "does not answer", "Connection refused", "AWS_ENDPOINT_URL"]);
    }
    for submit in ways(&*store, &lab, &good) {
        let submit = submit.env("AWS_SECRET_ACCESS_KEY", "another");
        refused(submit, &lab, &["`s3://tfos/x` refuses (", "AWS_SECRET_ACCESS_KEY"]);
    }
    for submit in ways(&*store, &lab, &good) {
        let submit = submit.env("AWS_ACCESS_KEY_ID", "NOBODY");
        refused(submit, &lab, &["`s3://tfos/x` refuses (", "AWS_ACCESS_KEY_ID"]);
    }
    let [_, data, _] = ways(&*store, &lab, &good);
    refused(data, &lab, &["`s3://tfos/x` does not exist"]);
}

#[test] // listed by WebDAV, read by ranges; what is kept goes elsewhere, and is not even tried here
fn rows_from_a_web_server_are_trained_on() {
    let lab = Lab::new("rows_from_a_web_server_are_trained_on");
    let Some(store) = Web::start(&lab) else { return };
    let data = digits(env!("CARGO_TARGET_TMPDIR"));
    for (name, files) in [("parquet", &data.train_parquet), ("tfrecord", &data.train_tfrecord)] {
        std::fs::create_dir(store.folder().join(name)).unwrap();
        for file in std::fs::read_dir(files).unwrap().flatten() {
            std::fs::copy(file.path(), store.folder().join(name).join(file.file_name())).unwrap();
        }
    }
    let job = |data: &str, model: &str| {
        let job = Submit::new("mnist").flags("--cluster-size 3 --num-ps 1 --quiet").flag("--model-dir", model);
        job.flag("--log-dir", lab.path("logs")).args_of(["--data", &store.url(data), "--epochs", "1"])
    };
    let one = store.url("parquet/part-00001.parquet");
    assert_eq!(ask(&store, &format!("data describe --output json {one}")).number("rows"), 2000.0);
    let glob = store.url("parquet/part-0000[01].parquet");
    assert_eq!(ask(&store, &format!("data describe --output json {glob}")).number("rows"), 4000.0);
    for (data, extra) in [("parquet", "--input-mode feed"), ("tfrecord", "--input-mode direct")] {
        let model = lab.path(data);
        job(data, &model.display().to_string()).args(extra).run().ok();
        assert_eq!(crate::verified_rows(&model), 8000, "{data}");
    }
    let model = lab.path("model").display().to_string();
    refused(job("parquet/none.parquet", &model), &lab, &["/parquet/none.parquet` does not exist"]);
    refused(job("parquet", &store.url("model")), &lab, &["a model directory on a web server", "s3://"]);
    let closed = Submit::new("mnist").flag("--model-dir", &model).args_of(["--data", "http://127.0.0.1:1/x.parquet"]);
    refused(closed.flags("--quiet"), &lab, &["`http://127.0.0.1:1/x.parquet` does not answer", "Connection refused"]);
}

#[test] // the keys are in job.yaml alone, and nothing that the job leaves behind shows them
fn keys_in_job_yaml_are_used_and_never_shown() {
    let lab = Lab::new("keys_in_job_yaml_are_used_and_never_shown");
    let Some(store) = S3::start(&lab) else { return };
    put(&store, &line(lab.folder(), 400, 2), "line", "--num-files 2 --to-format parquet");
    let config = lab.write("job.yaml", format!("storage:\n{}cluster-size: 3\nnum-ps: 1\n", store.yaml()));
    let job = |extra: &str| {
        let job = Submit::new(&bin::probe().display().to_string()).flag("--config", &config).flags(extra);
        let job = job.flag("--log-dir", lab.path("logs")).flag("--model-dir", store.url("yaml"));
        job.args(&format!("mode=linear data={}", store.url("line")))
    };
    let dry = job("--dry-run").run().ok();
    assert!(dry.stdout.contains("AWS_SECRET_ACCESS_KEY"), "the names are shown: {}", dry.stdout);
    keeps_the_secret(&dry, &lab);
    let done = job("--quiet").run().ok();
    assert_eq!(done.number("rows"), 400.0);
    keeps_the_secret(&done, &lab);
    for file in store.texts() {
        assert!(!file.contains(SECRET), "a file of the model directory shows the secret");
    }
    let wrong = lab.write("wrong.yaml", format!("storage: {SECRET}\n"));
    let wrong = Submit::new("mnist").flag("--config", &wrong).run().fails(2, &["storage", "VARIABLE"]);
    keeps_the_secret(&wrong, &lab);
}

#[test]
fn a_wrong_path_or_name_node_is_told_at_once() {
    let lab = Lab::new("a_wrong_path_or_name_node_is_told_at_once");
    let Some(store) = hdfs(&lab) else { return };
    line(lab.folder(), ROWS, 4);
    for submit in ways(&*store, &lab, "hdfs://127.0.0.1:1/x") {
        refused(submit, &lab, &["`hdfs://127.0.0.1:1/x`", "does not answer", "Connection refused", "HADOOP_CONF_DIR"]);
    }
    let [_, data, _] = ways(&*store, &lab, &store.url("x"));
    refused(data, &lab, &["/x` does not exist"]);
}
