//! Settings and surroundings that cannot work: each gets one message that names the thing, and a code that is not 0.

use tfos_tests::procs::executors;
use tfos_tests::wait::secs;
use tfos_tests::{Lab, Submit};

/// Runs to a failure with this code and one message with these words.
fn refused(submit: Submit, code: i32, words: &[&str]) {
    let done = submit.within(secs(20)).run().fails(code, words);
    done.error();
    assert!(done.wall < secs(10), "it took {:?}", done.wall);
}

#[test]
fn an_unknown_flag() {
    let lab = Lab::new("an_unknown_flag");
    refused(lab.submit("mnist").flags("--no-such-flag"), 2, &["--no-such-flag"]);
    refused(lab.submit("mnist").args("--no-such-argument"), 2, &["--no-such-argument"]);
}

#[test]
fn a_cluster_too_small_for_its_roles() {
    let lab = Lab::new("a_cluster_too_small_for_its_roles");
    let small = |flags: &str| lab.submit("mnist").flags(flags);
    refused(small("--cluster-size 1 --num-ps 1"), 2, &["cluster of 1", "need at least 2", "--cluster-size"]);
    refused(small("--cluster-size 2 --num-ps 1 --evaluator"), 2, &["evaluator", "at least 3"]);
    refused(small("--cluster-size 2"), 2, &["--num-ps 1"]);
}

#[test]
fn options_that_are_not_built_in_are_not_ignored() {
    let lab = Lab::new("options_that_are_not_built_in_are_not_ignored");
    let flags = "--rdma --tensorboard --sync-replicas --max-staleness 3 --ps-replicas 2 --master yarn";
    let words = ["--rdma", "--tensorboard", "--max-staleness", "--ps-replicas", "`yarn`"];
    refused(lab.submit("mnist").flags(flags), 2, &words);
}

#[test]
fn an_application_that_is_none() {
    let lab = Lab::new("an_application_that_is_none");
    refused(lab.submit("no-such-application"), 2, &["no-such-application", "mnist"]);
    let file = lab.write("not-a-program", "text");
    refused(lab.submit(&file.display().to_string()), 1, &["not-a-program"]);
}

#[test]
fn a_missing_job_file() {
    let lab = Lab::new("a_missing_job_file");
    refused(Submit::tfos("submit").flag("--config", lab.path("none.yaml")), 2, &["none.yaml"]);
}

#[test] // below a regular file nobody can write, not even root
fn a_model_directory_that_cannot_be_written() {
    let lab = Lab::new("a_model_directory_that_cannot_be_written");
    let file = lab.write("file", "not a folder");
    let model = file.join("model");
    refused(lab.submit("mnist").model_dir(&model), 1, &["model directory", "file/model"]);
    assert!(executors(lab.folder()).is_empty(), "known before anything is started");
}

#[test]
fn a_model_directory_of_no_known_store() {
    let lab = Lab::new("a_model_directory_of_no_known_store");
    let submit = Submit::tfos("submit --output json --model-dir gopher://nowhere/x mnist");
    refused(submit, 1, &["gopher"]);
    drop(lab);
}

#[test]
fn a_port_range_that_is_taken() {
    let lab = Lab::new("a_port_range_that_is_taken");
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port().to_string();
    refused(lab.submit("mnist").flags(&format!("--port {port}")), 2, &[&port]);
    refused(lab.submit("mnist").flags("--port 99999"), 2, &["99999"]);
    refused(lab.submit("mnist").flags("--port 9-1"), 2, &["9-1"]);
}

#[test]
fn a_token_that_is_too_short() {
    let lab = Lab::new("a_token_that_is_too_short");
    let token = lab.write("token", "1234");
    refused(lab.submit("mnist").flag("--token-file", &token), 2, &["token", "too short"]);
}

#[test]
fn an_application_that_panics() {
    let lab = Lab::new("an_application_that_panics");
    let data = tfos_tests::data::numbers(lab.folder(), 100, 1);
    let submit = lab.probe(&format!("mode=panic at=1 data={}", data.display()));
    refused(submit, 1, &["chief:0", "deliberate panic at 1", "executor-0.log"]);
}

#[test] // durations and sizes that are none
fn values_that_do_not_parse() {
    let lab = Lab::new("values_that_do_not_parse");
    refused(lab.submit("mnist").flags("--reservation-timeout soon"), 2, &["soon", "reservation-timeout"]);
    refused(lab.submit("mnist").flags("--feed-memory lots"), 2, &["lots", "feed-memory"]);
    refused(lab.submit("mnist").flags("--keep-checkpoints 0"), 2, &["--keep-checkpoints"]);
    refused(lab.submit("mnist").flags("--keep-best -loss"), 2, &["--keep-best", "--evaluator"]);
    refused(lab.submit("mnist").args("--learning-rate=-1"), 2, &["--learning-rate"]);
}
