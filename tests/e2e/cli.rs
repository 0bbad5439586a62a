//! What the command line prints without starting anything, and settings from a file.

use std::process::Command;

use tfos_tests::data::numbers;
use tfos_tests::wait::secs;
use tfos_tests::{Lab, Submit, bin};

#[test]
fn a_dry_run_shows_the_cluster_and_starts_nothing() {
    let lab = Lab::shared("a_dry_run_shows_the_cluster_and_starts_nothing");
    let shape = "--cluster-size 5 --num-ps 1 --evaluator --sync-replicas --num-gpus 2 --dry-run";
    let done = lab.submit("mnist").flags(shape).run().ok();
    let nodes = done.json["nodes"].as_array().expect("nodes");
    let shown: Vec<(&str, u64)> =
        nodes.iter().map(|n| (n["node"].as_str().unwrap(), n["gpus"].as_u64().unwrap())).collect();
    let wanted = [("ps:0", 0), ("chief:0", 2), ("evaluator:0", 2), ("worker:0", 2), ("worker:1", 2)];
    assert_eq!(shown, wanted);
    assert_eq!(done.text("application"), "mnist");

    let text = Submit::tfos("submit").flags(shape).flag("--model-dir", lab.model()).flags("mnist").run().ok();
    for word in ["mnist", "local", "ps:0", "chief:0", "evaluator:0", "worker:1", "synchronous, 3 of 3"] {
        assert!(text.stdout.contains(word), "the text was to name {word}");
    }
    assert!(!lab.model().exists(), "a dry run leaves nothing behind");
}

#[test] // handed over to a program, and still nothing is started
fn a_dry_run_of_a_program_starts_nothing() {
    let lab = Lab::shared("a_dry_run_of_a_program_starts_nothing");
    let done = lab.probe("mode=idle").flags("--dry-run --num-ps 1 --cluster-size 2").run().ok();
    assert_eq!(done.text("application"), "probe");
    assert!(!lab.model().exists());
}

#[test]
fn settings_come_from_a_file_and_flags_win() {
    let lab = Lab::shared("settings_come_from_a_file_and_flags_win");
    let data = numbers(lab.folder(), 100, 2);
    let yaml = format!(
        "application: {}\ncluster-size: 4\nnum-ps: 1\nmodel-dir: {}\nseed: 3\narguments: [mode=role, hello=world, 'data={}']\n",
        bin::probe().display(),
        lab.model().display(),
        data.display()
    );
    let file = lab.write("job.yaml", yaml);
    let base = || Submit::tfos("submit --output json").flag("--config", &file);
    let shown = base().flags("--dry-run").run().ok();
    assert_eq!(shown.json["nodes"].as_array().map(Vec::len), Some(4));
    // The flags make it a cluster of one, whose node has the file's seed and arguments.
    let done = base().flags("--cluster-size 1 --num-ps 0").run().ok();
    assert_eq!(done.number("metrics.seed"), 3.0);
}

#[test]
fn an_unknown_yaml_key_is_named_with_a_hint() {
    let lab = Lab::shared("an_unknown_yaml_key_is_named_with_a_hint");
    let file = lab.write("job.yaml", "application: mnist\nnum_workers: 3\ncluster-sise: 3\n");
    let done = Submit::tfos("submit").flag("--config", &file).within(secs(10)).run();
    let done = done.fails(2, &["job.yaml", "`num_workers`", "`cluster-sise`", "did you mean `cluster-size`"]);
    done.error();
}

#[test]
fn applications_are_listed() {
    let _lab = Lab::shared("applications_are_listed");
    let text = Submit::tfos("apps").run().ok();
    assert!(text.stdout.contains("mnist"));
    let json = Submit::tfos("apps --output json").run().ok();
    let list: serde_json::Value = serde_json::from_str(json.stdout.trim()).unwrap();
    assert!(list.as_array().unwrap().iter().any(|a| a["name"] == "mnist" && a["about"].is_string()));
}

#[test]
fn the_version_names_libtorch_and_the_devices() {
    let _lab = Lab::shared("the_version_names_libtorch_and_the_devices");
    for program in [bin::tfos(), bin::probe()] {
        let done = Submit::program(program).flags("--version").run().ok();
        for word in ["libtorch 2.13", "devices: cpu"] {
            assert!(done.stdout.contains(word), "the version was to say {word}");
        }
    }
}

#[test]
fn completions_are_scripts() {
    let lab = Lab::shared("completions_are_scripts");
    for shell in ["bash", "zsh", "fish"] {
        let done = Submit::tfos(&format!("completions {shell}")).run().ok();
        assert!(done.stdout.contains("tfos") && done.stdout.contains("model-dir"), "{shell}");
        if shell == "bash" {
            let script = lab.write("completion.bash", &done.stdout);
            assert!(Command::new("bash").arg("-n").arg(script).status().unwrap().success());
        }
    }
}

#[test]
fn help_of_an_application_is_help() {
    let lab = Lab::shared("help_of_an_application_is_help");
    let done = lab.submit("mnist").args("--help").run().ok();
    for word in ["--eval-data", "--sql", "--input-mode", "--network"] {
        assert!(done.stdout.contains(word), "the help was to name {word}");
    }
    assert!(!lab.model().exists());
}

#[test] // nothing but the summary on stdout, nothing but messages on stderr
fn output_is_for_machines_when_asked() {
    let lab = Lab::shared("output_is_for_machines_when_asked");
    let data = numbers(lab.folder(), 100, 2);
    let done = lab.probe(&format!("mode=sum data={}", data.display())).flags("--quiet").run().ok();
    assert_eq!(done.stdout.lines().count(), 1, "one line of JSON");
    assert_eq!(done.stderr, "", "quiet is quiet");
}

#[test] // whatever the end, a machine finds one object on stdout
fn a_failure_is_for_machines_too() {
    let lab = Lab::shared("a_failure_is_for_machines_too");
    let done = lab.probe("mode=sum data=none").flags("--num-ps 3 --cluster-size 2").run().fails(2, &[]);
    assert_eq!((done.stdout.lines().count(), done.text("status")), (1, "failed"));
    assert!(done.text("error").contains("--cluster-size"), "{}", done.text("error"));
    let done = lab.probe(&format!("mode=sum data={}", lab.path("none").display())).run().fails(1, &["does not exist"]);
    assert_eq!((done.stdout.lines().count(), done.text("status")), (1, "failed"));
}
