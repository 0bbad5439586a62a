//! Jobs with real processes, submitted as a user does: each test has the machine for itself, or shares it with another
//! that does not mind how fast things go. The ports of TensorFlowOnSpark's tests keep their names.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test ends by a panic")]

mod agent;
mod bad_data;
mod bad_input;
mod ballista;
mod cli;
mod consistency;
mod determinism;
mod failure;
mod faults;
mod feeding;
mod gpu;
mod inspect;
mod interrupt;
mod kills;
mod linear;
mod loading;
mod mnist;
mod netns;
mod order;
mod plane;
mod planted;
mod portable;
mod ported;
mod reservation;
mod resume;
mod staging;
mod stores;
mod unwritable;

use std::path::Path;

use tfos_tests::{Done, Submit};

/// `tfos verify-ledger`: every row of every finished epoch exactly once; gives the rows applied in all.
fn verified_rows(model_dir: &Path) -> u64 {
    let done = Submit::tfos("verify-ledger --output json").flags(&model_dir.display().to_string()).run().ok();
    assert_eq!(done.json["ok"], true, "{}", done.json);
    for epoch in done.json["audit"]["epochs"].as_array().expect("epochs") {
        assert_eq!(epoch["twice"].as_array().map(Vec::len), Some(0), "{epoch}");
        assert_eq!(epoch["missing"].as_array().map(Vec::len), Some(0), "{epoch}");
    }
    done.number("rows_total") as u64
}

/// The line that `probe_app mode=linear` has learned is y = 2 x + 1.
fn assert_learned(done: &Done) {
    let (w, b) = (done.number("metrics.w"), done.number("metrics.b"));
    assert!((w - 2.0).abs() < 0.01 && (b - 1.0).abs() < 0.01, "learned y = {w} x + {b}");
}
