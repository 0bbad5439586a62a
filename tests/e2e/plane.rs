//! How parameters travel, chosen by flags: who holds what is told before a job and in its log, and the choice is kept.

use tfos_tests::data::{line, noisy_line};
use tfos_tests::submit::checkpoints;
use tfos_tests::{Lab, Submit};

use crate::{assert_learned, verified_rows};

#[test]
fn a_dry_run_tells_who_would_hold_what_and_how_many_bytes_a_step_moves() {
    let lab = Lab::new("a_dry_run_tells_who_would_hold_what_and_how_many_bytes_a_step_moves");
    let shape = "--cluster-size 4 --num-ps 2 --dry-run";
    let done = lab.submit("mnist").flags(shape).flags("--compress bf16").args("--network mlp").run().ok();
    let placed = &done.json["placement"];
    // 784 x 256 + 256 + 256 x 10 + 10.
    assert_eq!((placed["elements"].as_u64(), placed["bytes_received"].as_u64()), (Some(203_530), Some(814_120)));
    assert_eq!(placed["bytes_sent"].as_u64(), Some(407_060));
    assert!(placed["imbalance"].as_f64().unwrap() < 1.05, "{placed}");
    let held: Vec<u64> = placed["ps"].as_array().unwrap().iter().map(|ps| ps["elements"].as_u64().unwrap()).collect();
    assert_eq!(held.iter().sum::<u64>(), 203_530);

    let text =
        Submit::tfos("submit --placement round-robin --transport tcp").flags(shape).flags("mnist -- --network mlp");
    let text = text.run().ok();
    for words in [
        "ps:0 holds 203264 f32: hidden.weight, output.weight",
        "ps:1 holds 266 f32: hidden.bias, output.bias",
        "transport      tcp",
        "each sends 814120 (compression none) and gets 814120",
    ] {
        assert!(text.stdout.contains(words), "the text was to say `{words}`");
    }
    // A program that cannot be asked: the dry run says so, and after training the checkpoint tells.
    let data = line(lab.folder(), 400, 2);
    let job = || lab.probe(&format!("mode=linear data={}", data.display())).flags("--cluster-size 3 --num-ps 2");
    let before = job().flags("--dry-run").run().ok();
    assert!(before.json["placement"]["unknown"].as_str().unwrap().contains("log of the chief"), "{}", before.json);
    job().run().ok();
    let after = job().flags("--dry-run").run().ok();
    let (placed, step) = (&after.json["placement"], checkpoints(&lab.model()).pop().unwrap());
    assert_eq!(placed["according_to"].as_str(), Some(format!("checkpoint {step}").as_str()));
    assert_eq!(placed["elements"].as_u64(), Some(2));
}

#[test]
fn what_cannot_be_honoured_is_told_at_once() {
    let lab = Lab::new("what_cannot_be_honoured_is_told_at_once");
    let wrong = "--placement odd --transport pigeon --compress topk:0.9 --num-ps 1 --cluster-size 2";
    lab.submit("mnist")
        .flags(wrong)
        .run()
        .fails(2, &["--placement", "`round-robin`", "--transport", "--compress", "0.5"]);
    let alone = "--placement round-robin --transport tcp --compress bf16";
    lab.submit("mnist").flags(alone).run().fails(2, &["--placement", "--transport", "--compress", "--num-ps"]);
    let exact = "--compress bf16 --deterministic --num-ps 1 --cluster-size 2";
    lab.submit("mnist").flags(exact).run().fails(2, &["--compress", "--deterministic"]);
}

#[test] // LOD-2
fn every_choice_learns_the_line_and_the_logs_say_what_it_was() {
    let lab = Lab::new("every_choice_learns_the_line_and_the_logs_say_what_it_was");
    let data = line(lab.folder(), 2000, 4);
    for (flags, words) in [
        ("--placement round-robin --transport tcp", ["is reached over TCP", "placement round-robin"]),
        ("--transport shared-memory --compress bf16", ["is reached over shared memory", "compression bf16"]),
        ("--overlap on --sync-replicas", ["gradients leave while the backward pass still runs", "compression none"]),
        ("--transport grpc --sync-replicas", ["is reached over gRPC", "is connected over gRPC"]),
        ("--compress topk:0.5 --sync-replicas", ["is reached over shared memory", "compression topk:0.5"]),
    ] {
        let name: String = flags.chars().filter(|c| c.is_alphanumeric()).collect();
        let job = lab.probe(&format!("mode=linear epochs=3 data={}", data.display())).model_dir(&lab.path(&name));
        let done = job.flags("--cluster-size 4 --num-ps 2").flags(flags).run().ok();
        assert_learned(&done);
        assert_eq!(verified_rows(&lab.path(&name)), done.number("rows") as u64);
        let logs = done.logs();
        for word in words.iter().chain(&["ps:0 holds", "in a step each training node sends it"]) {
            assert!(logs.contains(word), "{flags}: no log says `{word}`");
        }
    }
}

#[test] // LOD-2, DET-3
fn a_job_goes_on_with_another_placement_to_the_same_bits() {
    let lab = Lab::new("a_job_goes_on_with_another_placement_to_the_same_bits");
    let data = noisy_line(lab.folder(), 400, 4);
    let train = |model: &str, shape: &str, epochs: u32| {
        let args = format!("mode=bits epochs={epochs} block=64 data={}", data.display());
        let job = lab.probe(&args).model_dir(&lab.path(model)).flags("--deterministic --quiet").flags(shape);
        job.run().ok().json["parameters_crc32c"].clone()
    };
    let whole = train("even", "--cluster-size 2 --num-ps 1", 2);
    train("moved", "--cluster-size 4 --num-ps 2 --placement round-robin", 1);
    assert_eq!(train("moved", "--cluster-size 5 --num-ps 3 --overlap on", 2), whole);
    train("back", "--cluster-size 3 --num-ps 2", 1);
    assert_eq!(train("back", "--cluster-size 4 --num-ps 3 --placement round-robin", 2), whole);
}

#[test] // computed in halves, kept whole
fn digits_are_learned_in_bf16_as_in_f32() {
    let lab = Lab::new("digits_are_learned_in_bf16_as_in_f32");
    let accuracy = |precision: &str, shape: &str| {
        let job = lab.submit("mnist").model_dir(&lab.path(&format!("{precision}{}", shape.len()))).flags("--quiet");
        let job = job.flags(shape).flags("--precision").flags(precision).within(tfos_tests::wait::secs(240));
        let done = job.args("--network mlp --rows 4000 --epochs 8").run().ok();
        let says = done.logs().contains("computed in bf16");
        assert_eq!(says, precision == "bf16");
        done.number("metrics.accuracy")
    };
    for shape in ["--cluster-size 1", "--cluster-size 3 --num-ps 1 --sync-replicas"] {
        let (whole, half) = (accuracy("f32", shape), accuracy("bf16", shape));
        eprintln!("{shape}: {whole:.4} in f32, {half:.4} in bf16");
        assert!(whole > 0.9 && (whole - half).abs() < 0.02, "{shape}: {whole} in f32, {half} in bf16");
    }
}
