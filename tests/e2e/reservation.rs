//! Who gets a place in the cluster, where the driver is to be found, and what is said about who is missing.

use std::net::TcpListener;

use tfos_tests::data::numbers;
use tfos_tests::procs::Signal;
use tfos_tests::wait::{self, secs};
use tfos_tests::{Lab, Running, Submit, bin};

/// A job that waits for executors which the test starts.
pub(crate) struct Standalone {
    pub(crate) driver: Running,
    pub(crate) url: String,
    pub(crate) token_file: String,
}

impl Standalone {
    pub(crate) fn start(submit: Submit) -> Self {
        let mut driver = submit.flags("--master standalone").start();
        let line = driver.says("tfos executor --driver");
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |flag: &str| words.iter().skip_while(|w| **w != flag).nth(1).map(|w| (*w).to_owned());
        let (url, token_file) = (after("--driver").unwrap(), after("--token-file").unwrap());
        Self { driver, url, token_file }
    }

    /// An executor of `probe_app`, as somebody would start it by hand.
    pub(crate) fn executor(&self, flags: &str) -> Submit {
        let words = format!("executor --driver {} --token-file {} {flags}", self.url, self.token_file);
        Submit::program(bin::probe()).flags(&words)
    }
}

fn job(lab: &Lab, mode: &str, flags: &str) -> Submit {
    let data = numbers(lab.folder(), 100, 2);
    lab.probe(&format!("mode={mode} data={}", data.display())).flags(flags)
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test] // REG, spec, work, stop
fn test_reservation_server() {
    let lab = Lab::new("test_reservation_server");
    let job = Standalone::start(job(&lab, "sum", "--cluster-size 1 --bind 127.0.0.1"));
    let executor = job.executor("--bind 127.0.0.1").start();
    let done = job.driver.wait().ok();
    assert_eq!(done.number("metrics.sum"), 4950.0);
    executor.wait().ok();
}

#[test] // five at once, none of which asked for a place
fn test_reservation_server_multi() {
    let lab = Lab::new("test_reservation_server_multi");
    let job = Standalone::start(job(&lab, "sum", "--cluster-size 5 --num-ps 1 --bind 127.0.0.1"));
    let executors: Vec<Running> = (0..5).map(|_| job.executor("--bind 127.0.0.1 --threads 1").start()).collect();
    let done = job.driver.wait().ok();
    assert_eq!(done.number("metrics.sum") * 4.0, 4950.0);
    for executor in executors {
        executor.wait().ok();
    }
}

#[test]
fn test_reservation_server_env_host_exists() {
    let lab = Lab::new("test_reservation_server_env_host_exists");
    let job = Standalone::start(job(&lab, "sum", "").env("TFOS_DRIVER_HOST", "driver.example"));
    assert!(job.url.starts_with("http://driver.example:"), "{}", job.url);
}

#[test]
fn test_reservation_server_env_host_not_exists() {
    let lab = Lab::new("test_reservation_server_env_host_not_exists");
    let job = Standalone::start(job(&lab, "sum", "--bind 127.0.0.1"));
    assert!(job.url.starts_with("http://127.0.0.1:"), "{}", job.url);
}

#[test]
fn test_reservation_server_env_port_exists() {
    let lab = Lab::new("test_reservation_server_env_port_exists");
    let port = free_port();
    let job = Standalone::start(job(&lab, "sum", "").env("TFOS_DRIVER_PORT", &port.to_string()));
    assert!(job.url.ends_with(&format!(":{port}")), "{}", job.url);
}

#[test]
fn test_reservation_server_env_port_not_exists() {
    let lab = Lab::new("test_reservation_server_env_port_not_exists");
    let job = Standalone::start(job(&lab, "sum", ""));
    let port: u16 = job.url.rsplit(':').next().unwrap().parse().unwrap();
    assert_ne!(port, 0);
}

#[test] // a range of which every port is taken: which range, and what to do
fn test_reservation_server_port_range() {
    let lab = Lab::new("test_reservation_server_port_range");
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    let range = format!("{port}-{port}");
    let submit = job(&lab, "sum", "").flags(&format!("--port {range}")).within(secs(10));
    let done = submit.run().fails(2, &[&port.to_string(), "127.0.0.1"]);
    done.error();
}

#[test]
fn an_executor_without_the_token_is_refused() {
    let lab = Lab::new("an_executor_without_the_token_is_refused");
    let job = Standalone::start(job(&lab, "sum", "--cluster-size 1 --bind 127.0.0.1"));
    let forged = lab.write("forged", "0123456789abcdef0123456789abcdef");
    let words = format!("executor --driver {} --token-file {}", job.url, forged.display());
    let refused = Submit::program(bin::probe()).flags(&words).within(secs(10)).run();
    refused.fails(1, &["the token is not this job's"]);
    // The job is not disturbed by it.
    let executor = job.executor("--bind 127.0.0.1").start();
    job.driver.wait().ok();
    executor.wait().ok();
}

#[test] // else the driver waits for somebody who has long gone home
fn the_reservation_timeout_tells_who_was_turned_away() {
    let lab = Lab::new("the_reservation_timeout_tells_who_was_turned_away");
    let job = Standalone::start(job(&lab, "sum", "--cluster-size 1 --bind 127.0.0.1 --reservation-timeout 3s"));
    let forged = lab.write("forged", "0123456789abcdef0123456789abcdef");
    let words = format!("executor --driver {} --token-file {}", job.url, forged.display());
    Submit::program(bin::probe()).flags(&words).within(secs(10)).run().fails(1, &["the token is not this job's"]);
    job.driver.wait().fails(3, &["executor 0 (chief:0): never seen", "was turned away", "token is not this job's"]);
}

#[test]
fn the_token_file_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new("the_token_file_is_for_its_owner_only");
    let token = lab.path("token");
    let job = Standalone::start(job(&lab, "sum", "").flag("--token-file", &token));
    assert_eq!(job.token_file, token.display().to_string());
    assert_eq!(std::fs::metadata(&token).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test] // RES-3: the place is held by a living executor
fn a_second_executor_of_the_same_id_is_refused() {
    let lab = Lab::new("a_second_executor_of_the_same_id_is_refused");
    let job = Standalone::start(job(&lab, "sum", "--cluster-size 2 --num-ps 1 --bind 127.0.0.1"));
    // Whichever comes second is refused.
    let twins = [(); 2].map(|()| job.executor("--bind 127.0.0.1 --executor-id 0").start());
    let (mut refused, holder) = refused_of(twins);
    let text = refused.says("already registered");
    assert!(text.contains("executor `0`"), "{text}");
    let other = job.executor("--bind 127.0.0.1 --executor-id 1").start();
    job.driver.wait().ok();
    holder.wait().ok();
    other.wait().ok();
}

fn refused_of([mut a, mut b]: [Running; 2]) -> (Running, Running) {
    let a_ended = wait::until("one of two executors to be refused", secs(20), || {
        (!a.is_running()).then_some(true).or_else(|| (!b.is_running()).then_some(false))
    });
    if a_ended { (a, b) } else { (b, a) }
}

#[test] // a place beyond the last one
fn an_executor_too_many_is_refused() {
    let lab = Lab::new("an_executor_too_many_is_refused");
    let job = Standalone::start(job(&lab, "sum", "--cluster-size 2 --num-ps 1 --bind 127.0.0.1"));
    job.executor("--bind 127.0.0.1 --executor-id 9").within(secs(10)).run().fails(1, &["`9` is not needed"]);
}

#[test] // an executor that leaves before the cluster is complete may come again
fn an_executor_may_come_again_while_the_cluster_forms() {
    let lab = Lab::new("an_executor_may_come_again_while_the_cluster_forms");
    let job = Standalone::start(job(&lab, "sum", "--cluster-size 2 --num-ps 1 --bind 127.0.0.1"));
    // That one of two was refused shows that the other one is registered.
    let twins = [(); 2].map(|()| job.executor("--bind 127.0.0.1 --executor-id 1").start());
    let (_refused, leaver) = refused_of(twins);
    leaver.signal(Signal::SIGKILL);
    assert_eq!(leaver.wait().signal(), Some(9));
    let again = |id| job.executor(&format!("--bind 127.0.0.1 --executor-id {id} --attempt 1")).start();
    let executors: Vec<Running> = (0..2).map(again).collect();
    job.driver.wait().ok();
    for executor in executors {
        executor.wait().ok();
    }
}

#[test] // who is missing, and what was last known of them
fn the_reservation_timeout_names_who_is_missing() {
    let lab = Lab::new("the_reservation_timeout_names_who_is_missing");
    let flags = "--cluster-size 3 --num-ps 1 --reservation-timeout 1s --bind 127.0.0.1";
    let job = Standalone::start(job(&lab, "sum", flags));
    let executor = job.executor("--bind 127.0.0.1 --executor-id 0").start();
    let done = job.driver.wait().fails(3, &["executor 1 (chief:0)", "executor 2 (worker:0)", "never seen"]);
    assert!(done.wall < secs(5), "the timeout is 1 s and it took {:?}", done.wall);
    let error = done.error();
    assert!(error.contains("1 of 3") && !error.contains("ps:0") || error.contains("0 of 3"), "{error}");
    drop(executor);
}

#[test] // a process that has died already is not waited for
fn an_executor_that_dies_before_it_registers_fails_the_job_at_once() {
    let lab = Lab::new("an_executor_that_dies_before_it_registers_fails_the_job_at_once");
    // Two executors and one port.
    let flags = format!("--cluster-size 2 --num-ps 1 --executor-ports {}", free_port());
    let done = job(&lab, "sum", &flags).within(secs(20)).run().fails(3, &["exited with code", ".log"]);
    assert!(done.wall < secs(5), "it took {:?}", done.wall);
    assert!(done.logs().contains("unable to bind"), "the executor was to say why");
}
