//! The standalone launcher across two network namespaces with different addresses: as on two hosts, nothing is
//! reachable under `localhost`, and every node has to be found under the address that it told.

use std::process::{Command, Output};

use tfos_tests::data::line;
use tfos_tests::procs::Signal;
use tfos_tests::wait::secs;
use tfos_tests::{Lab, Running, Submit};

use crate::reservation::Standalone;
use crate::{assert_learned, verified_rows};

/// Two or more namespaces, removed at the end.
pub(crate) struct Namespaces {
    name: String,
}

fn script(words: &[&str]) -> std::io::Result<Output> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/netns.sh");
    Command::new("sh").arg(path).args(words).output()
}

impl Namespaces {
    /// `None`, said aloud, where the machine does not let us; `TFOS_REQUIRE_NETNS=1` makes that a failure.
    fn create() -> Option<Self> {
        Self::made(&[])
    }

    /// One for the driver and so many for nodes, `node1` and on.
    pub(crate) fn of_nodes(nodes: usize) -> Option<Self> {
        Self::made(&[&nodes.to_string()])
    }

    fn made(more: &[&str]) -> Option<Self> {
        let name = format!("tfos-{}", std::process::id());
        let result = script(&[&["up", &name], more].concat());
        let this = Self { name };
        let reason = match result {
            Ok(output) if output.status.success() => return Some(this),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(e) => e.to_string(),
        };
        let required = std::env::var("TFOS_REQUIRE_NETNS").is_ok_and(|v| v == "1");
        assert!(!required, "network namespaces are required and cannot be made: {reason}");
        eprintln!("SKIPPED: no network namespaces here (they need root and iproute2): {reason}");
        None
    }

    /// Words before a command that is to run in one.
    pub(crate) fn exec(&self, side: &str) -> String {
        format!("ip netns exec {}-{side}", self.name)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        let _ = script(&["down", &self.name]);
    }
}

fn submit(lab: &Lab, namespaces: &Namespaces) -> Submit {
    let data = line(lab.folder(), 4000, 4);
    let job = lab.probe(&format!("mode=linear data={}", data.display())).flags("--cluster-size 4 --num-ps 2 --quiet");
    job.flags("--advertise 10.77.0.1 --save-checkpoints-steps 50").through(&namespaces.exec("driver"))
}

/// One ps beside the driver; the other, chief and worker beyond the cable, which do not say their address.
fn executors(job: &Standalone, namespaces: &Namespaces) -> Vec<Running> {
    let near = job.executor("--executor-id 0 --threads 1 --bind 10.77.0.1").through(&namespaces.exec("driver"));
    let far = |id: u32| {
        let executor = job.executor(&format!("--executor-id {id} --threads 1"));
        executor.through(&namespaces.exec("nodes")).start()
    };
    vec![near.start(), far(1), far(2), far(3)]
}

#[test]
fn a_cluster_across_two_network_namespaces_trains() {
    let lab = Lab::new("a_cluster_across_two_network_namespaces_trains");
    let Some(namespaces) = Namespaces::create() else { return };
    let job = Standalone::start(submit(&lab, &namespaces));
    assert!(job.url.starts_with("http://10.77.0.1:"), "{}", job.url);
    let executors = executors(&job, &namespaces);
    let done = job.driver.wait().ok();
    assert_eq!(verified_rows(&lab.model()), 4000);
    assert_learned(&done);
    for (id, executor) in executors.into_iter().enumerate() {
        let ended = executor.wait().ok();
        // The log says what the cluster looked like from there.
        let log = format!("{}{}", ended.stdout, ended.stderr);
        assert!(log.contains("10.77.0.1:") && log.contains("10.77.0.2:"), "executor {id} was to know both sides");
        assert!(!log.contains("127.0.0.1:"), "executor {id} was told of a loopback address");
    }
}

#[test] // no process is a child of the driver here: the stream's end is what is seen, and everybody goes home
fn a_kill_beyond_the_cable_ends_the_job_within_two_seconds() {
    let lab = Lab::new("a_kill_beyond_the_cable_ends_the_job_within_two_seconds");
    let Some(namespaces) = Namespaces::create() else { return };
    let mut gate = lab.gate("gate");
    let mut job = Standalone::start(submit(&lab, &namespaces).args_of(gate.arguments(50)));
    let mut running = executors(&job, &namespaces);
    gate.reached(&mut job.driver, &[0, 1]);
    let killed = std::time::Instant::now();
    // `ip netns exec` becomes the executor, so the process is the executor itself.
    running[3].signal(Signal::SIGKILL);
    job.driver.wait().fails(1, &["worker:0", "control stream"]).error();
    assert!(killed.elapsed() < secs(2), "the end came {:?} after the kill", killed.elapsed());
    for executor in running.drain(..3) {
        assert_eq!(executor.wait().code(), Some(0), "the others are told to stop");
    }
    gate.open();
    let job = Standalone::start(submit(&lab, &namespaces).args_of(gate.arguments(50)));
    let again = self::executors(&job, &namespaces);
    let done = job.driver.wait().ok().says(&["resuming from step"]);
    assert_eq!(verified_rows(&lab.model()), 4000);
    assert_learned(&done);
    drop(again);
}
