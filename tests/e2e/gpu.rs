//! GPUs are asked for, leased, and an error when they cannot be had. `nvidia-smi` is a script here.

use std::os::unix::fs::PermissionsExt;

use tfos_tests::data::numbers;
use tfos_tests::{Lab, Submit};

/// `PATH` with an `nvidia-smi` in front that lists so many GPUs, of names that no other test uses.
fn with_gpus(lab: &Lab, count: usize) -> String {
    let folder = lab.path(&format!("gpus-{count}"));
    std::fs::create_dir_all(&folder).unwrap();
    let lines: String = (0..count)
        .map(|i| format!("echo '{i}, GPU-{}-{i}'\n", folder.display().to_string().replace('/', "-")))
        .collect();
    let script = format!("#!/bin/sh\ncase \"$1\" in\n--query-gpu*)\n{lines};;\nesac\n");
    let path = folder.join("nvidia-smi");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}", folder.display(), std::env::var("PATH").unwrap())
}

/// `PATH` without any `nvidia-smi`.
fn without_gpus() -> String {
    let path = std::env::var("PATH").unwrap();
    let kept: Vec<&str> = path.split(':').filter(|f| !std::path::Path::new(f).join("nvidia-smi").exists()).collect();
    kept.join(":")
}

fn visible(logs: &str) -> Vec<String> {
    let lines = logs.lines().filter_map(|l| l.strip_prefix("probe: CUDA_VISIBLE_DEVICES=["));
    let mut found: Vec<String> = lines.map(|l| l.trim_end_matches(']').to_owned()).collect();
    found.sort();
    found
}

fn job(lab: &Lab, flags: &str) -> Submit {
    let data = numbers(lab.folder(), 100, 1);
    lab.probe(&format!("mode=basic data={}", data.display())).flags(flags)
}

#[test]
fn test_gpu_unavailable() {
    let lab = Lab::new("test_gpu_unavailable");
    let done = job(&lab, "--num-gpus 1").env("PATH", &without_gpus()).run().fails(3, &["executor-0.log"]);
    assert!(done.logs().contains("no nvidia-smi"), "the executor was to say why");
    // The reason has to be where the user looks first.
    assert!(done.error().contains("GPU"), "the one message was to be about GPUs: {}", done.error());
}

#[test] // three executors, two GPUs: two get one each, the third is told so
fn test_gpu_available() {
    let lab = Lab::new("test_gpu_available");
    let flags = "--cluster-size 3 --num-ps 1 --num-gpus 1";
    let done = job(&lab, flags).env("PATH", &with_gpus(&lab, 2)).run();
    // libtorch finds no such GPUs, so the nodes cannot start; who has which was decided before.
    let done = done.fails(1, &["is leased, and libtorch cannot use it"]);
    assert_eq!(visible(&done.logs()), ["0", "1"], "chief and worker each have a GPU of their own");

    let flags = "--cluster-size 4 --num-ps 1 --num-gpus 1";
    let done = job(&lab, flags).env("PATH", &with_gpus(&lab, 2)).run().fails(3, &["exited with code"]);
    assert!(done.logs().contains("leased by other executors"), "the executor was to say why");
}

#[test] // a resource manager's list wins over the host's
fn test_gpu_spark_available() {
    let lab = Lab::new("test_gpu_spark_available");
    let done = job(&lab, "--num-gpus 1").env("PATH", &with_gpus(&lab, 2)).env("TFOS_GPUS", "5").run();
    let done = done.fails(1, &["GPU 5 is leased"]);
    assert_eq!(visible(&done.logs()), ["5"]);
}

#[test] // decided: nobody gets a GPU without asking, and none is visible then
fn test_gpu_default() {
    let lab = Lab::new("test_gpu_default");
    let done = job(&lab, "").env("PATH", &with_gpus(&lab, 2)).run().ok();
    assert_eq!(visible(&done.logs()), [""]);
}
