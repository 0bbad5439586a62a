//! `--deterministic`: the same bits on any cluster, in any run, and after a kill and a resume on another cluster.

use serde_json::Value;
use tfos_tests::data::noisy_line;
use tfos_tests::procs::{Signal, executor_of, signal};
use tfos_tests::{Done, Gate, Lab, Running, Submit, wait};

use crate::verified_rows;

/// 19 batches of 10 and one of 5 in each of 4 files: 10 steps of 8 batches in an epoch.
const ROWS: u64 = 780;
const EPOCHS: u64 = 2;
const STEPS: u64 = 20;

/// One trainer without ps, then 1, 2 and 5 workers with 1 or 2 ps.
const SHAPES: [&str; 6] = [
    "--cluster-size 1",
    "--cluster-size 2 --num-ps 1",
    "--cluster-size 3 --num-ps 1",
    "--cluster-size 4 --num-ps 2",
    "--cluster-size 6 --num-ps 1",
    "--cluster-size 7 --num-ps 2",
];

fn job(lab: &Lab, name: &str, shape: &str, extra: &str) -> Submit {
    let data = noisy_line(lab.folder(), ROWS, 4);
    let args = format!("mode=bits epochs={EPOCHS} block=64 data={} {extra}", data.display());
    lab.probe(&args).model_dir(&lab.path(name)).flags("--deterministic --quiet").flags(shape)
}

/// Checksums of parameters, buffers and slots of the last checkpoint; those of the parameters are in the summary too.
fn hash(lab: &Lab, name: &str, done: &Done) -> Value {
    let folder = lab.path(name);
    let found = Submit::tfos("checkpoints hash --output json").flags(&folder.display().to_string()).run().ok();
    assert_eq!(found.json["step"], done.json["global_step"]);
    let hash = found.json["hash"].clone();
    assert!(hash["parameters_crc32c"].is_u64(), "{}", found.json);
    assert_eq!(done.json["parameters_crc32c"], hash["parameters_crc32c"]);
    hash
}

#[test] // DET-2, DET-3
fn the_bits_are_the_same_for_1_2_and_5_workers_and_in_a_second_run() {
    let lab = Lab::new("the_bits_are_the_same_for_1_2_and_5_workers_and_in_a_second_run");
    let mut hashes = vec![];
    for (i, shape) in SHAPES.iter().chain([&SHAPES[3]]).enumerate() {
        let name = format!("model-{i}");
        let done = job(&lab, &name, shape, "clip=1").run().ok();
        assert_eq!((done.number("global_step") as u64, done.number("rows") as u64), (STEPS, EPOCHS * ROWS), "{shape}");
        assert_eq!(verified_rows(&lab.path(&name)), EPOCHS * ROWS);
        hashes.push((*shape, hash(&lab, &name, &done)));
    }
    assert!(hashes.iter().all(|(_, hash)| *hash == hashes[0].1), "{hashes:#?}");
    // They are equal because of what they are, not because nothing is in them.
    let other = job(&lab, "other", "--cluster-size 1 --seed 1", "clip=1").run().ok();
    let (other, one) = (hash(&lab, "other", &other), &hashes[0].1);
    for part in ["parameters_crc32c", "buffers_crc32c", "optimizer_crc32c"] {
        assert_ne!(other[part], one[part], "{part}");
    }
}

#[test] // DET-2: convolutions, which libtorch leaves to another library
fn a_convolutional_network_has_the_same_bits_on_any_cluster() {
    let lab = Lab::new("a_convolutional_network_has_the_same_bits_on_any_cluster");
    let hashes = ["--cluster-size 1", "--cluster-size 5 --num-ps 2"].map(|shape| {
        let args = "--rows 300 --epochs 1 --network cnn --shuffle-block 50 --optimizer lamb";
        let name = &shape[15..16];
        let submit = lab.submit("mnist").model_dir(&lab.path(name)).args(args);
        let done = submit.flags("--deterministic --micro-batches 3 --quiet").flags(shape).run().ok();
        hash(&lab, name, &done)
    });
    assert_eq!(hashes[0], hashes[1]);
}

/// Waits until a trainer stands at the gate, and soon all wait for it, in the middle of the job behind a checkpoint.
fn in_the_middle(running: &mut Running, gate: &Gate) {
    let stands = wait::until("a trainer at the gate", wait::secs(60), || {
        (0..5).any(|trainer| gate.has(trainer)).then_some(true).or_else(|| (!running.is_running()).then_some(false))
    });
    assert!(stands, "the job ended before a trainer came to the gate");
    let step = running.until_checkpoint(2);
    assert!(step < STEPS, "the job was to be in its middle, not at step {step}");
}

#[test] // DET-2
fn a_kill_and_a_resume_on_another_cluster_change_no_bit() {
    let lab = Lab::new("a_kill_and_a_resume_on_another_cluster_change_no_bit");
    let unbroken = job(&lab, "unbroken", SHAPES[0], "").run().ok();
    let expected = hash(&lab, "unbroken", &unbroken);
    // Before which of its own batches a trainer stands still, which the busiest certainly comes to; and the victim, an
    // executor or the driver.
    let kills = [
        ("worker", SHAPES[2], 20, Some(2), SHAPES[5]),
        ("ps", SHAPES[5], 20, Some(1), SHAPES[0]),
        ("driver", SHAPES[0], 50, None, SHAPES[2]),
    ];
    for (name, shape, at, victim, then) in kills {
        let mut gate = lab.gate(&format!("gate-{name}"));
        let broken = job(&lab, name, shape, "").args_of(gate.arguments(at)).flags("--save-checkpoints-steps 2");
        let mut running = broken.start();
        in_the_middle(&mut running, &gate);
        match victim {
            Some(victim) => {
                signal(executor_of(&lab.path(name), victim).pid, Signal::SIGKILL);
                let done = running.wait().fails(1, &["SIGKILL"]);
                assert_eq!(done.number("root_cause.executor_id"), f64::from(victim));
            }
            None => {
                running.signal(Signal::SIGKILL);
                assert_eq!(running.wait().signal(), Some(9));
            }
        }
        gate.open();
        let done = job(&lab, name, then, "").run().ok().says(&["resuming from step"]);
        let rows = done.number("rows") as u64;
        assert!(rows > 0 && rows < EPOCHS * ROWS, "the second run was to do a part, it did {rows} rows");
        assert_eq!(verified_rows(&lab.path(name)), EPOCHS * ROWS);
        assert_eq!(hash(&lab, name, &done), expected, "{name} was killed");
    }
}

#[test] // rows that are counted by staging them, and an order that the query gives them
fn a_query_has_the_same_bits_on_any_cluster() {
    let lab = Lab::new("a_query_has_the_same_bits_on_any_cluster");
    let queries = [
        ("filter", "SELECT x, y FROM data WHERE x < 0.5", "counted"),
        ("join", "SELECT a.x, b.y FROM data a JOIN data b ON a.x = b.x AND a.y < b.y WHERE a.x < 0.05", "exchange"),
    ];
    for (name, query, why) in queries {
        let hashes = [SHAPES[0], SHAPES[3]].map(|shape| {
            let name = format!("{name}-{}", &shape[15..16]);
            let done = job(&lab, &name, shape, "").args_of([format!("sql={query}")]).flags("--max-steps 3").run().ok();
            assert_eq!(done.number("global_step"), 3.0);
            let why = if why == "counted" { "number of rows of each partition" } else { "has an exchange" };
            assert!(done.logs().is_empty() || done.stderr.is_empty() || done.stderr.contains(why), "{}", done.stderr);
            hash(&lab, &name, &done)
        });
        assert_eq!(hashes[0], hashes[1], "{query}");
    }
    let shuffled = "SELECT x, y FROM data ORDER BY random()";
    let refused = job(&lab, "random", SHAPES[0], "").args_of([format!("sql={shuffled}")]).run();
    refused.fails(1, &["random()", "something else each time"]).error();
    let union = "SELECT x, sum(y) AS y FROM (SELECT * FROM data UNION ALL SELECT * FROM data) GROUP BY x";
    let refused = job(&lab, "union", SHAPES[0], "").args_of([format!("sql={union}")]).run();
    refused.fails(1, &["over several partitions", "--deterministic"]).error();
}

#[test]
fn what_would_give_other_bits_is_refused() {
    let lab = Lab::new("what_would_give_other_bits_is_refused");
    let deterministic = |extra: &str, flags: &str| job(&lab, "model", SHAPES[0], extra).flags(flags);
    deterministic("", "--max-steps 3").run().ok();
    deterministic("", "--micro-batches 4").run().fails(1, &["8 micro-batches a step", "--micro-batches 8"]).error();
    deterministic("batch=12", "").run().fails(1, &["a batch of 12 rows", "10 before"]).error();
    let passed_over = job(&lab, "over", SHAPES[0], "mode=never-steps").run();
    passed_over.fails(1, &["a batch of step 1 was passed over"]).error();
    let data = noisy_line(lab.folder(), ROWS, 4);
    let plain = |flags: &str| {
        let args = format!("mode=bits data={}", data.display());
        lab.probe(&args).model_dir(&lab.path("plain")).flags("--quiet").flags(flags)
    };
    plain("--max-steps 3").run().ok();
    plain("--deterministic").run().fails(1, &["was not trained with --deterministic"]).error();
    let two = "--deterministic --cluster-size 3 --num-ps 1 --sync-replicas --replicas-to-aggregate 1 --num-gpus 1";
    let refused = lab.submit("mnist").flags(two).run();
    refused.fails(2, &["--replicas-to-aggregate", "--num-gpus", "on CPUs only"]).error();
}
