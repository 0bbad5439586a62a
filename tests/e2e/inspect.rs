//! `tfos checkpoints` and `tfos sql`: what a model directory holds, asked after a job.

use tfos_tests::data::line;
use tfos_tests::submit::checkpoints;
use tfos_tests::{Done, Lab, Submit};

use crate::{assert_learned, verified_rows};

const ROWS: u64 = 2000;

/// One worker, a checkpoint every 50 steps of 10 rows.
fn job(lab: &Lab, epochs: u64) -> Submit {
    let data = line(lab.folder(), ROWS, 4);
    let job = lab.probe(&format!("mode=linear epochs={epochs} data={}", data.display()));
    job.flags("--cluster-size 4 --num-ps 2 --save-checkpoints-steps 50 --keep-checkpoints 9 --quiet")
}

fn ask(lab: &Lab, words: &str, rest: &str) -> Done {
    let words = words.replacen("DIR", &lab.model().display().to_string(), 1);
    Submit::tfos(&format!("{words} {rest}")).run()
}

#[test]
fn checkpoints_are_listed_shown_verified_compared_and_deleted() {
    let lab = Lab::shared("checkpoints_are_listed_shown_verified_compared_and_deleted");
    job(&lab, 1).run().ok();
    let steps = checkpoints(&lab.model());
    let [first, .., last] = steps[..] else { panic!("two checkpoints were to be there: {steps:?}") };

    let listed = ask(&lab, "checkpoints list DIR", "--output json").ok();
    let found: Vec<u64> =
        listed.json["checkpoints"].as_array().unwrap().iter().map(|c| c["step"].as_u64().unwrap()).collect();
    assert_eq!(found, steps);
    assert_eq!(listed.json["checkpoints"][steps.len() - 1]["rows"], ROWS);
    assert!(ask(&lab, "checkpoints list DIR", "").ok().stdout.contains("generation"));

    let shown = ask(&lab, "checkpoints show DIR", "").ok();
    assert!(shown.stdout.contains("line.weight") && shown.stdout.contains("sgd"), "{}", shown.stdout);
    assert_eq!(
        ask(&lab, "checkpoints show DIR", &format!("{first} --output json")).ok().number("global_step"),
        first as f64
    );

    let differ = ask(&lab, "checkpoints diff DIR", &format!("{first} {last} --output json")).ok();
    let names: Vec<&str> =
        differ.json["variables"].as_array().unwrap().iter().filter_map(|v| v["name"].as_str()).collect();
    assert_eq!(names, ["line.bias", "line.weight"]);
    let same = ask(&lab, "checkpoints diff DIR", &format!("{last} {last} --output json")).ok();
    assert_eq!(same.json["variables"][0]["max_abs"], 0.0);

    assert_eq!(ask(&lab, "checkpoints verify DIR", "--output json").ok().json["ok"], true);
    let folder = lab.model().join(format!("checkpoints/{first:012}"));
    let part = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).find(|f| f.extension().unwrap() != "json");
    let part = part.unwrap();
    let mut bytes = std::fs::read(&part).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    let damaged = ask(&lab, "checkpoints verify DIR", "");
    assert_eq!(damaged.code(), Some(1));
    assert!(damaged.stdout.contains(&format!("checkpoint {first}: `")) && damaged.stdout.contains("checksum"));
    ask(&lab, "checkpoints diff DIR", &format!("{first} {last}")).fails(1, &["is damaged", "checksum"]).error();

    ask(&lab, "checkpoints delete DIR", &first.to_string()).ok();
    assert_eq!(checkpoints(&lab.model()), steps[1..]);
    ask(&lab, "checkpoints delete DIR", &first.to_string()).fails(1, &[&format!("step {first}")]).error();
    Submit::tfos(&format!("checkpoints list {}", lab.path("none").display())).run().fails(2, &["has no checkpoint"]);
}

#[test] // the copy is a model directory: a job resumes from it, and its ledger is whole
fn a_copied_checkpoint_is_trained_on() {
    let lab = Lab::shared("a_copied_checkpoint_is_trained_on");
    job(&lab, 1).run().ok();
    let last = checkpoints(&lab.model()).last().copied().unwrap();
    let copy = lab.path("copy");
    ask(&lab, "checkpoints copy DIR", &format!("{last} {}", copy.display())).ok();
    assert_eq!(checkpoints(&copy), [last]);
    assert_eq!(verified_rows(&copy), ROWS);
    let query = "SELECT count(*) AS n FROM events WHERE event = 'checkpoint'";
    let counted = Submit::tfos("sql --output json").flag(&copy.display().to_string(), query).run().ok();
    assert!(counted.number("n") >= 1.0, "{}", counted.stdout);
    let done = job(&lab, 2).model_dir(&copy).run().ok().says(&[&format!("resuming from step {last}")]);
    assert_eq!(done.number("generation"), 2.0);
    assert_eq!(verified_rows(&copy), 2 * ROWS);
    assert_learned(&done);
    // Never into a directory of which a job may have checkpoints.
    ask(&lab, "checkpoints copy DIR", &format!("{last} {}", copy.display())).fails(1, &["in use"]).error();
}

#[test] // CKP-1: what killed jobs left behind
fn files_of_no_checkpoint_are_listed_and_deleted() {
    let lab = Lab::shared("files_of_no_checkpoint_are_listed_and_deleted");
    job(&lab, 1).run().ok();
    job(&lab, 2).run().ok().says(&["resuming from step"]);
    let stray =
        ["checkpoints/000000000007/part-00000-of-00001.g1.safetensors", "ledger/000000000001-000000000007.g1.parquet"];
    std::fs::create_dir(lab.model().join("checkpoints/000000000007")).unwrap();
    stray.iter().for_each(|file| std::fs::write(lab.model().join(file), "half").unwrap());
    // Of a checkpoint that generation 2 may be writing.
    let writing = lab.model().join("ledger/000000099001-000000099999.g2.parquet");
    std::fs::write(&writing, "half").unwrap();
    let dry = ask(&lab, "checkpoints gc DIR", "--dry-run --output json").ok();
    assert_eq!(dry.json["would_delete"], serde_json::json!(stray));
    assert!(stray.iter().all(|file| lab.model().join(file).exists()), "a dry run deletes nothing");
    let done = ask(&lab, "checkpoints gc DIR", "").ok();
    assert_eq!(done.stdout.lines().collect::<Vec<_>>(), stray.map(|file| format!("deleted {file}")));
    assert!(!lab.model().join("checkpoints/000000000007").exists() && writing.exists());
    assert_eq!(ask(&lab, "checkpoints gc DIR", "").ok().stdout, "nothing to delete\n");
    ask(&lab, "checkpoints verify DIR", "").ok();
    assert_eq!(verified_rows(&lab.model()), 2 * ROWS);
}

#[test]
fn the_ledger_answers_queries() {
    let lab = Lab::shared("the_ledger_answers_queries");
    job(&lab, 2).run().ok();
    let query = |sql: &str, output: &str| {
        let words = [lab.model().display().to_string(), sql.to_owned()];
        Submit::tfos(&format!("sql --output {output}")).args_of(words).run()
    };
    let lines = |sql: &str| query(sql, "json").ok().stdout.lines().map(str::to_owned).collect::<Vec<_>>();
    let epochs = [format!("{{\"epoch\":0,\"rows\":{ROWS}}}"), format!("{{\"epoch\":1,\"rows\":{ROWS}}}")];
    for table in ["samples", "steps"] {
        // Each update here has the rows of one batch, and a batch is of one epoch.
        let per_epoch = format!("SELECT epoch, sum(rows) AS rows FROM {table} GROUP BY epoch ORDER BY epoch");
        assert_eq!(lines(&per_epoch), epochs);
    }
    let table = query("SELECT max(row_end) AS top FROM samples", "text").ok();
    assert!(table.stdout.contains("| top ") && table.stdout.contains(&format!("| {} ", ROWS / 4)), "{}", table.stdout);
    let last = checkpoints(&lab.model()).last().copied().unwrap();
    let steps = "SELECT count(*) AS n, count(DISTINCT global_step) AS d, max(global_step) AS top FROM steps";
    assert_eq!(lines(steps), [format!("{{\"n\":{last},\"d\":{last},\"top\":{last}}}")]);
    let metrics = "SELECT phase, node, name FROM metrics WHERE value > 0.9 AND value < 2.1 ORDER BY node, name";
    let reported =
        |node: &str, name: &str| format!("{{\"phase\":\"evaluate\",\"node\":\"{node}\",\"name\":\"{name}\"}}");
    let nodes = ["chief:0", "worker:0"];
    assert_eq!(lines(metrics), nodes.map(|node| ["b", "w"].map(|name| reported(node, name))).concat());
    let events = lines("SELECT event, phase FROM events ORDER BY time, event");
    assert_eq!(events.first().map(String::as_str), Some("{\"event\":\"began\"}"));
    for event in ["formed", "phase_began", "checkpoint", "phase_ended", "ended"] {
        assert!(events.iter().any(|line| line.contains(&format!("\"event\":\"{event}\""))), "{event}: {events:?}");
    }
    let listed = "SELECT count(DISTINCT global_step) AS n FROM events WHERE event = 'checkpoint'";
    assert_eq!(lines(listed), [format!("{{\"n\":{}}}", checkpoints(&lab.model()).len())]);
    // The rows themselves.
    let step = "SELECT x, y FROM rows_of(7) ORDER BY _partition, _row";
    let rows = query(step, "json").ok().stdout.lines().count();
    assert_eq!(lines("SELECT rows FROM steps WHERE global_step = 7"), [format!("{{\"rows\":{rows}}}")]);
    let line = "SELECT count(*) AS n FROM rows_of(7) WHERE abs(y - (2 * x + 1)) > 0.001";
    assert_eq!(lines(line), ["{\"n\":0}"]);
    query("SELECT * FROM rows_of(1000000)", "text").fails(1, &["no rows of an update 1000000"]).error();
    query("SELECT nothing FROM steps", "text").fails(1, &["nothing"]).error();
}
