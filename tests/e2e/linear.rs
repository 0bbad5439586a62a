//! TensorFlowOnSpark's pipeline test: linear regression whose weights, trained and scored on a cluster, give
//! f(1, 1) = 4.758. The program compares all 1,000 predictions itself.

use tfos_tests::{Lab, bin};

fn predicted(stdout: &str) -> f64 {
    let value = stdout.split("f(1, 1) = ").nth(1).and_then(|rest| rest.split_whitespace().next());
    value.and_then(|v| v.parse().ok()).expect("the program prints f(1, 1)")
}

#[test]
fn test_spark_saved_model() {
    let lab = Lab::shared("test_spark_saved_model");
    let program = bin::program("linear_regression").display().to_string();
    let done = lab.submit(&program).flags("--cluster-size 3 --num-ps 1 --sync-replicas").run().ok();
    assert!((predicted(&done.stdout) - 4.758).abs() < 5e-4);
    assert_eq!(done.number("inference_rows"), 1000.0);
}

#[test] // the same weights from the checkpoint, without training again
fn test_spark_checkpoint() {
    let lab = Lab::shared("test_spark_checkpoint");
    let program = bin::program("linear_regression").display().to_string();
    let first = lab.submit(&program).flags("--cluster-size 1").run().ok();
    let again = lab.submit(&program).flags("--cluster-size 1").run().ok().says(&["has reached the target"]);
    assert_eq!(again.json["already_done"], true);
    assert_eq!(predicted(&first.stdout), predicted(&again.stdout));
    assert_eq!(crate::verified_rows(&lab.model()), first.number("rows") as u64);
}
